//! One simulated world: what is really in the store, the catalog and the broker, how badly it
//! behaves, and the workers that live in it.

use super::broker::{Broker, SimSource, Topics, wall};
use super::check::{self, Decided};
use super::clocks::{Clocks, LAST};
use super::disk::LocalLake;
use super::reckoning::{Reckoning, Rows, sorted};
use super::references::{References, Upkeep, checkpoint_version};
use super::store::{Fate, WorkerCatalog, WorkerStore};
use super::trace::Trace;
use crate::commit::iceberg::Ambient;
use crate::epoch::checkpoint::Cadence;
use crate::epoch::entry::{Entry, Plan, parse};
use crate::epoch::log::Log;
use crate::epoch::plan::{self, Compile, PlanError};
use crate::epoch::protocol_tests::Rng;
use crate::mutant::{self, Mutant};
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{Clean, Pipeline, SourceSpec, TableFormatKind};
use crate::source::{Source, SourceError};
use crate::stage::names::{self, Owner};
use crate::store::double::Double;
use crate::worker::surroundings::{Hosting, Ids, Surroundings};
use crate::worker::{Clock, Place, WorkerError};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutResult};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use uuid::Uuid;

pub const PIPELINE: &str = "p";
/// Of a hundred commits, those after which the table is read whole.
const COMPARED: u64 = 10;
/// Where the simulation's time begins: 2021-11-01, an hour after the end of a day of 25 hours in Berlin.
pub const START_MS: i64 = 1_635_724_800_000;
/// Where the lake says that it lies.
pub const LAKE_URL: &str = "file:///lake/";

/// How badly a world behaves.
#[derive(Debug, Clone, Default)]
pub struct Temper {
    /// Calls that go wrong, of a thousand.
    pub faults: u64,
    /// Calls that sleep for long, of ten thousand.
    pub naps: u64,
    /// Those of the log's entries.
    pub naps_deciding: u64,
    /// Those of the files that an epoch stages.
    pub naps_staging: u64,
    /// Virtual milliseconds that a worker lives, about; 0: it is never killed.
    pub life_ms: u64,
    pub workers: usize,
    /// Nothing can be written to this format between two virtual times.
    pub lagging: Option<(TableFormatKind, i64, i64)>,
    pub cadence: Cadence,
    pub reread_runs: bool,
    /// `None`: nobody lives long enough to clean up.
    pub clean: Option<Clean>,
    /// The lake lies on a local disk, where puts that a kill cuts short leave something.
    pub local: bool,
    /// All workers share one host, and its disk.
    pub one_host: bool,
    /// Of a hundred kills, those that take the host's power away.
    pub power_cuts: u64,
    /// How far the clock of each worker is off, in milliseconds: by its slot. Those of others are right.
    pub skew_ms: [i64; 3],
    /// Clocks of workers are set back and forth.
    pub clocks_set: bool,
    /// Bytes for panes and the like, where they are so few that panes spill all the time.
    pub memory: Option<u64>,
}

/// What other hands did to the rows of a table.
#[derive(Debug, Clone, Default)]
pub struct Foreign {
    pub added: Rows,
    /// As they were then: what is written anew under their key is there again.
    pub deleted: Rows,
}

pub struct World {
    pub seed: u64,
    pub trace: Trace,
    rng: Mutex<Rng>,
    pub temper: Temper,
    /// Nothing goes wrong any more.
    pub calm: AtomicBool,
    pub objects: Arc<InMemory>,
    lake: OnceLock<LocalLake>,
    /// Puts that a kill cut short.
    pub cut_short: AtomicU64,
    /// When an object was written, and by whom; what is not in it others wrote.
    written: Mutex<BTreeMap<Path, (i64, String)>>,
    pub references: Mutex<References>,
    /// Namespace and table to where the table's metadata lies.
    catalog: Mutex<BTreeMap<(String, String), String>>,
    pub broker: Broker,
    pub decided: Mutex<Decided>,
    /// Rows that somebody else appended, and those that somebody else deleted.
    pub foreign: Mutex<BTreeMap<(String, TableFormatKind), Foreign>>,
    /// The highest stamp seen of each table.
    pub stamps: Mutex<BTreeMap<(String, TableFormatKind), u64>>,
    failure: Mutex<Option<String>>,
    /// Words of refusals that are right by now.
    expected: Mutex<Vec<&'static str>>,
    /// Something happened after which nothing may go on.
    pub doomed: AtomicBool,
    /// Tables that were set back: nobody may commit to them.
    pub frozen: Mutex<BTreeSet<(String, TableFormatKind)>>,
    /// Tables that another hand dropped.
    pub away: Mutex<BTreeSet<(String, TableFormatKind)>>,
    /// How often a table was read whole, of how many commits.
    pub compared: AtomicU64,
    pub commits: AtomicU64,
    /// How often workers did something to keep tables small.
    pub upkeep: Mutex<BTreeMap<Upkeep, u64>>,
    pub clocks: Clocks,
    /// How often somebody set one of them.
    pub clock_steps: AtomicU64,
    ids: AtomicU64,
    runtime: tokio::runtime::Handle,
    me: std::sync::Weak<World>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the world of seed {}", self.seed)
    }
}

impl World {
    pub fn new(seed: u64, rng: Rng, temper: Temper) -> Arc<Self> {
        let clocks = Clocks::new(temper.skew_ms);
        Arc::new_cyclic(|me| Self {
            seed,
            trace: Trace::new(),
            rng: Mutex::new(rng),
            temper,
            calm: AtomicBool::new(false),
            objects: Arc::new(InMemory::new()),
            lake: OnceLock::new(),
            cut_short: AtomicU64::new(0),
            written: Mutex::default(),
            references: Mutex::default(),
            catalog: Mutex::default(),
            broker: Broker::default(),
            decided: Mutex::default(),
            foreign: Mutex::default(),
            stamps: Mutex::default(),
            failure: Mutex::default(),
            expected: Mutex::default(),
            doomed: AtomicBool::new(false),
            frozen: Mutex::default(),
            away: Mutex::default(),
            compared: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            upkeep: Mutex::default(),
            clocks,
            clock_steps: AtomicU64::new(0),
            runtime: tokio::runtime::Handle::current(),
            ids: AtomicU64::new(1),
            me: me.clone(),
        })
    }

    /// The lake lies in this folder.
    pub fn lies_in(&self, root: &std::path::Path) -> std::io::Result<()> {
        let _ = self.lake.set(LocalLake::new(root)?);
        Ok(())
    }

    /// The folder of the lake, where it lies on a local disk.
    pub fn lake(&self) -> Option<&LocalLake> {
        self.lake.get()
    }

    /// Looks at the broker's topics, or changes them.
    pub fn topics<T>(&self, look: impl FnOnce(&mut Topics) -> T) -> T {
        look(&mut self.broker.topics.lock().unwrap())
    }

    pub fn below(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().below(n.max(1))
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.rng.lock().unwrap().chance(percent)
    }

    /// As [`World::below`], for who is called about an object. A library on a thread of its own must not draw between
    /// others: what it gets is decided by the object and the time.
    pub fn dice(&self, at: &Path, n: u64, nth: u64) -> u64 {
        if !self.trace.elsewhere() {
            return self.below(n);
        }
        let object = at.as_ref().bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        Rng(object ^ (self.trace.now_ms() as u64).rotate_left(20) ^ nth.rotate_left(50)).below(n.max(1))
    }

    /// Does something later, whoever has died by then.
    pub fn later(&self, what: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(what));
    }

    /// A worker did something to keep a table small.
    pub fn did(&self, what: Upkeep) {
        *self.upkeep.lock().unwrap().entry(what).or_default() += 1;
    }

    /// The latest time that a life was shown by its clock.
    pub fn latest_shown(&self, who: &str) -> i64 {
        self.clocks.latest(who).unwrap_or_else(|| wall(self))
    }

    pub fn new_id(&self) -> Uuid {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        Uuid::from_u64_pair(Rng(self.seed ^ n.rotate_left(32)).below(u64::MAX), n)
    }

    /// The first thing that went wrong counts.
    pub fn fail(&self, why: String) {
        self.trace.note("CHECK", &why);
        self.failure.lock().unwrap().get_or_insert(why);
    }

    pub fn failed(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }

    /// What a writer was told of its work must be so (I4, I5).
    pub fn told(&self, attempt: Uuid, entry: Option<u64>) {
        let mut decided = self.decided.lock().unwrap();
        let found = decided.entries.iter().position(|e| e.attempt == attempt);
        let wrong = match entry {
            None => {
                decided.stale.insert(attempt);
                found.map(|seq| format!("I4: the writer of entry {seq} is told that it is stale"))
            }
            Some(seq) if found != Some(seq as usize) => Some(format!("I5: a writer is told that attempt {attempt} is entry {seq}, and it is {found:?}")),
            Some(_) => None,
        };
        drop(decided);
        if let Some(why) = wrong {
            self.fail(why);
        }
    }

    /// From now on refusals with this word are right.
    pub fn expect(&self, word: &'static str) {
        self.expected.lock().unwrap().push(word);
    }

    pub fn expects(&self, why: &str) -> bool {
        self.expected.lock().unwrap().iter().any(|word| why.contains(word))
    }

    /// Whether the log holds something for this table beyond its stamp.
    pub fn waits(&self, table: &str, stamp: Option<u64>) -> bool {
        let decided = self.decided.lock().unwrap();
        let (Some(then), Some(now)) = (stamp.and_then(|s| decided.reckoned.get(s as usize)), decided.reckoned.last()) else { return false };
        // A column that was added, and is null in every row, makes no commit.
        let width = then.columns(table).len();
        then.content(table) != sorted(now.content(table).into_iter().map(|mut row| {
            row.truncate(width);
            row
        }).collect())
    }

    /// What the log implies up to the stamp of a table, and how long the log is.
    pub fn reckoned(&self, table: &str, kind: TableFormatKind, stamp: u64) -> Result<(Arc<Reckoning>, usize), String> {
        let decided = self.decided.lock().unwrap();
        let length = decided.entries.len();
        let reckoned = decided.reckoned.get(stamp as usize).cloned();
        reckoned.map(|r| (r, length)).ok_or_else(|| format!("I5: {kind} table {table} is stamped with entry {stamp} of a log of {length} entries"))
    }

    /// The rows of a table, with what other hands did to them.
    pub fn with_foreign(&self, table: &str, kind: TableFormatKind, reckoned: &Reckoning) -> Rows {
        let mut rows = reckoned.content(table);
        if let Some(foreign) = self.foreign.lock().unwrap().get(&(table.to_string(), kind)) {
            let width = reckoned.columns(table).len();
            rows.extend(foreign.added.iter().map(|row| row[..width].to_vec()));
            for gone in &foreign.deleted {
                // It was deleted before a column was added, or read with one that is not asked for here.
                if let Some(at) = rows.iter().position(|row| row.iter().zip(gone).all(|(a, b)| a == b)) {
                    rows.swap_remove(at);
                }
            }
        }
        sorted(rows)
    }

    fn quiet(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn a_long_time(&self, at: &Path) -> Duration {
        Duration::from_millis(50 + self.dice(at, if self.dice(at, 100, 3) < 30 { 6000 } else { 600 }, 4))
    }

    /// A call takes its time, or its worker is stopped in it until others have gone on.
    pub async fn dawdle(&self, who: &str, at: &Path) {
        if self.quiet() {
            return;
        }
        self.doze(who, at, self.temper.naps).await;
    }

    /// As [`World::dawdle`], of a worker that is about to put an object.
    pub async fn dawdle_before_put(&self, who: &str, at: &Path, create: bool) {
        if self.quiet() {
            return;
        }
        let naps = match at.filename().and_then(names::owner) {
            _ if create && at.as_ref().contains("/log/0") => self.temper.naps_deciding,
            Some(Owner::Attempt(_)) => self.temper.naps_staging,
            _ => self.temper.naps,
        };
        self.doze(who, at, naps).await;
    }

    async fn doze(&self, who: &str, at: &Path, naps: u64) {
        // All wait for it already.
        if self.trace.elsewhere() {
            return;
        }
        let ms = match self.below(10_000) {
            n if n < naps => 300 + self.below(3000),
            n if n % 2 == 0 => 0,
            n => n % 7,
        };
        if ms >= 300 {
            self.trace.note(who, format_args!("sleeps {ms} ms at {at}"));
        }
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn lags(&self, at: &Path) -> bool {
        let Some((kind, from, to)) = self.temper.lagging else { return false };
        let now = self.trace.now_ms();
        let metadata = match kind {
            TableFormatKind::Iceberg => at.as_ref().starts_with("catalog/") || at.as_ref().contains("/metadata/"),
            TableFormatKind::Delta => at.as_ref().contains("/_delta_log/"),
        };
        metadata && (from..to).contains(&now)
    }

    /// What becomes of a call that changes something.
    pub fn fate(&self, at: &Path, create: bool) -> Fate {
        // The probe is of a store that may be trusted.
        if self.quiet() || at.as_ref().contains("/probe/") {
            return Fate::Done;
        }
        if self.lags(at) {
            return Fate::Denied;
        }
        // What decides is where it hurts.
        let here = if create || at.as_ref().starts_with("catalog/") { self.temper.faults * 2 } else { self.temper.faults };
        if self.dice(at, 1000, 0) >= here {
            return Fate::Done;
        }
        match self.dice(at, if create { 6 } else { 3 }, 1) {
            0 => Fate::Denied,
            1 => Fate::AnswerLost,
            2 => Fate::LandsLate,
            3 => Fate::SentTwice,
            4 => Fate::EmptyConflict,
            _ => Fate::LandsAgain,
        }
    }

    pub fn read_fails(&self, at: &Path) -> bool {
        !self.quiet() && !at.as_ref().contains("/probe/") && self.dice(at, 1000, 2) < self.temper.faults / 3
    }

    pub fn broker_fails(&self) -> bool {
        !self.quiet() && self.below(1000) < self.temper.faults / 3
    }

    fn strong(&self) -> Arc<World> {
        self.me.upgrade().expect("who calls holds the world")
    }

    /// Writes, at this very moment.
    pub async fn put(&self, who: &str, at: &Path, bytes: Bytes, create: bool) -> object_store::Result<PutResult> {
        let mode = if create { PutMode::Create } else { PutMode::Overwrite };
        let put = self.objects.put_opts(at, bytes.clone().into(), PutOptions { mode, ..Default::default() }).await?;
        self.written.lock().unwrap().insert(at.clone(), (wall(self), who.to_string()));
        if let Some(Err(e)) = self.lake().map(|lake| lake.has(at)) {
            self.fail(format!("the simulated lake: {e}"));
        }
        if !at.as_ref().contains("/probe/") {
            self.trace.note(who, format_args!("wrote {at} ({} bytes)", if at.as_ref().contains("/log/") || create { bytes.len() } else { 0 }));
        }
        if create && at.as_ref().contains("/_millpond/") | at.as_ref().starts_with("_millpond/") && at.as_ref().contains("/log/") {
            self.entry_landed(who, at, &bytes).await;
        }
        if let Some((folder, name)) = at.as_ref().split_once("/_delta_log/")
            && let Some(version) = checkpoint_version(name)
        {
            self.did(Upkeep::DeltaCheckpoint);
            // The library has its clock from the world outside, where days have passed.
            self.references.lock().unwrap().forgot_removed(folder.rsplit('/').next().unwrap_or_default(), version);
        }
        if create
            && let Some((folder, version)) = at.as_ref().split_once("/_delta_log/")
            && version.ends_with(".json")
            && let Some(table) = folder.rsplit('/').next()
            && !self.away.lock().unwrap().contains(&(table.to_string(), TableFormatKind::Delta))
        {
            let version = version.trim_end_matches(".json").parse().unwrap_or(0);
            if self.references.lock().unwrap().version(table).is_some_and(|newest| version <= newest) {
                self.trace.note(who, format_args!("STRAY on the freed name of version {version} of delta table {table}"));
                return Ok(put);
            }
            let known = self.references.lock().unwrap().delta(self, table, version, &bytes);
            known.unwrap_or_else(|why| self.fail(why));
            self.committed(who, table, TableFormatKind::Delta).await;
        }
        Ok(put)
    }

    pub async fn delete(&self, who: &str, at: &Path) -> object_store::Result<()> {
        if !at.as_ref().contains("/probe/") {
            self.trace.note(who, format_args!("deleted {at}"));
        }
        if self.objects.head(at).await.is_ok() {
            let mut references = self.references.lock().unwrap();
            if let Some(why) = references.objection(self, who, at) {
                self.fail(format!("I4: {at} is deleted, and {why}"));
            }
            references.upkeep(at).into_iter().for_each(|what| self.did(what));
        }
        self.objects.delete(at).await
    }

    /// The clock of the store is the simulation's.
    pub fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let at = self.modified_at(&meta.location).unwrap_or(START_MS);
        meta.last_modified = chrono::DateTime::from_timestamp_millis(at).unwrap_or_default();
        meta
    }

    pub fn modified_at(&self, at: &Path) -> Option<i64> {
        self.written.lock().unwrap().get(at).map(|(ms, _)| *ms)
    }

    /// The worker's life that wrote this; `None`: another hand.
    pub fn author(&self, at: &Path) -> Option<String> {
        self.written.lock().unwrap().get(at).map(|(_, who)| who.clone()).filter(|who| who != "foreign")
    }

    /// What should be gone from the store by now.
    pub fn orphans(&self, before_ms: i64) -> Vec<Path> {
        self.references.lock().unwrap().orphans(self, before_ms)
    }

    async fn entry_landed(&self, who: &str, at: &Path, bytes: &Bytes) {
        let Some(seq) = at.filename().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse::<u64>().ok()) else { return };
        let entry: Entry = match parse(at.as_ref(), bytes) {
            Ok(entry) => entry,
            Err(e) => return self.fail(format!("what was written as entry {seq} is none: {e}")),
        };
        if (seq as usize) < self.decided.lock().unwrap().entries.len() {
            self.decided.lock().unwrap().strays += 1;
            return self.trace.note(who, format_args!("STRAY on the freed name of entry {seq}"));
        }
        self.trace.note(who, format_args!("DECIDED entry {seq}: {}", summary(&entry)));
        let missing = check::missing(self, &entry).await;
        // `w2.17` is the seventeenth life, in slot 2.
        let slot = who.strip_prefix('w').and_then(|w| w.split_once('.')?.0.parse().ok());
        let done = self.decided.lock().unwrap().landed(seq, entry, self, slot.unwrap_or(LAST));
        if let Err(why) = done {
            self.fail(why);
        }
        if let Some(path) = missing {
            self.fail(format!("I4: entry {seq} names {path}, which is not there"));
        }
    }

    /// The log of a Delta table lies there again.
    pub fn put_back(&self, table: &str) {
        let known = self.references.lock().unwrap().delta_anew(self, table);
        known.unwrap_or_else(|why| self.fail(why));
    }

    pub fn location(&self, namespace: &str, table: &str) -> Option<String> {
        self.catalog.lock().unwrap().get(&(namespace.to_string(), table.to_string())).cloned()
    }

    pub fn create_table(&self, who: &str, namespace: &str, table: &str, location: &str) -> String {
        let mut catalog = self.catalog.lock().unwrap();
        let now = catalog.entry((namespace.to_string(), table.to_string())).or_insert_with(|| location.to_string()).clone();
        self.refers(namespace, table, &now);
        self.trace.note(who, format_args!("table {table} is at {now}"));
        now
    }

    fn refers(&self, namespace: &str, table: &str, location: &str) {
        let away = self.away.lock().unwrap().contains(&(table.to_string(), TableFormatKind::Iceberg));
        if namespace == PIPELINE && !away {
            let known = self.references.lock().unwrap().iceberg(self, table, location);
            known.unwrap_or_else(|why| self.fail(why));
        }
    }

    pub async fn swap(&self, who: &str, namespace: &str, table: &str, from: &str, to: &str) -> bool {
        {
            let mut catalog = self.catalog.lock().unwrap();
            let Some(now) = catalog.get_mut(&(namespace.to_string(), table.to_string())).filter(|now| *now == from) else { return false };
            *now = to.to_string();
        }
        self.refers(namespace, table, to);
        self.trace.note(who, format_args!("COMMITTED {table} {to}"));
        self.committed(who, table, TableFormatKind::Iceberg).await;
        true
    }

    /// The tables of a namespace.
    pub fn tables_of(&self, namespace: &str) -> BTreeSet<String> {
        self.catalog.lock().unwrap().keys().filter(|(n, _)| n == namespace).map(|(_, t)| t.clone()).collect()
    }

    /// A table is gone for good, with what other hands did to it.
    pub fn forget(&self, table: &str, kind: TableFormatKind) {
        self.references.lock().unwrap().forget(table, kind);
        self.foreign.lock().unwrap().remove(&(table.to_string(), kind));
    }

    pub fn drop_table(&self, namespace: &str, table: &str) {
        self.catalog.lock().unwrap().remove(&(namespace.to_string(), table.to_string()));
    }

    /// A table was committed: its rows are counted, and sometimes read, at once.
    async fn committed(&self, who: &str, table: &str, kind: TableFormatKind) {
        let at = (table.to_string(), kind);
        self.commits.fetch_add(1, Ordering::Relaxed);
        if self.away.lock().unwrap().contains(&at) {
            return;
        }
        if self.frozen.lock().unwrap().contains(&at) {
            if who != "foreign" {
                self.fail(format!("{kind} table {table} was rolled back, and is committed to"));
            }
            return;
        }
        if self.decided.lock().unwrap().ledger.is_none() {
            return;
        }
        if let Err(why) = self.count(table, kind) {
            return self.fail(why);
        }
        if self.chance(COMPARED) {
            self.compare(table, kind).await;
        }
    }

    /// The rows that the newest version of a table says it has are as many as the log implies.
    fn count(&self, table: &str, kind: TableFormatKind) -> Result<(), String> {
        let Some((stamp, found)) = self.references.lock().unwrap().count(self, table, kind)? else { return Ok(()) };
        self.stamped(table, kind, stamp)?;
        let (reckoned, length) = self.reckoned(table, kind, stamp)?;
        let expected = self.with_foreign(table, kind, &reckoned).len() as i64;
        if found != expected {
            return Err(format!("I2, I3: {kind} table {table} at entry {stamp} of {length} has {found} rows, expected {expected}"));
        }
        Ok(())
    }

    fn stamped(&self, table: &str, kind: TableFormatKind, stamp: u64) -> Result<(), String> {
        let mut stamps = self.stamps.lock().unwrap();
        let highest = stamps.entry((table.to_string(), kind)).or_default();
        if stamp < *highest {
            return Err(format!("I5: the stamp of {kind} table {table} fell from entry {highest} to {stamp}"));
        }
        *highest = stamp;
        Ok(())
    }

    /// `None`: it is not there, or another hand spoiled it.
    pub async fn compare(&self, table: &str, kind: TableFormatKind) -> Option<u64> {
        let at = (table.to_string(), kind);
        if self.frozen.lock().unwrap().contains(&at) || self.away.lock().unwrap().contains(&at) {
            return None;
        }
        self.compared.fetch_add(1, Ordering::Relaxed);
        let stamp = check::compare(&self.strong(), table, kind).await.and_then(|stamp| {
            stamp.map_or(Ok(()), |stamp| self.stamped(table, kind, stamp))?;
            Ok(stamp)
        });
        stamp.unwrap_or_else(|why| {
            self.fail(why);
            None
        })
    }
}

fn summary(entry: &Entry) -> String {
    use crate::epoch::entry::{Body, Note};
    match &entry.body {
        Body::Plan(plan) => format!("a plan of {}", plan.tables.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
        Body::Checkpoint(c) => format!("a checkpoint as of {}", c.upto),
        Body::Note(Note::EndOfInput { .. }) => "end of input".into(),
        Body::Note(Note::Condemned { attempts }) => format!("{} attempts condemned", attempts.len()),
        Body::Data(data) => {
            let all = data.intervals.iter().flat_map(|(source, of)| of.iter().map(move |(p, i)| (source, p, i)));
            let intervals = all.map(|(source, p, i)| format!("{source} {p}:{}..{}", i.from, i.to));
            format!("{} by {} (attempt {})", intervals.collect::<Vec<_>>().join(" "), &entry.writer[..6.min(entry.writer.len())], entry.attempt)
        }
    }
}

/// What one life of a worker takes from its world.
pub struct Life {
    pub world: Arc<World>,
    pub who: String,
    /// Whose clock it has.
    pub slot: usize,
    pub given: Arc<AtomicU64>,
}

impl Clock for Life {
    fn now_ms(&self) -> i64 {
        self.world.clocks.shows(&self.who, wall(&self.world) + self.world.clocks.off_ms(self.slot))
    }
}

impl Life {
    fn id_source(&self) -> Ids {
        let (world, given) = (self.world.clone(), self.given.clone());
        Arc::new(move || {
            if mutant::on(Mutant::EpochsReusedAfterRestart) {
                return Uuid::from_u64_pair(world.seed, given.fetch_add(1, Ordering::Relaxed));
            }
            world.new_id()
        })
    }
}

#[async_trait]
impl Surroundings for Life {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(Life { world: self.world.clone(), who: self.who.clone(), slot: self.slot, given: self.given.clone() })
    }

    fn ids(&self) -> Ids {
        self.id_source()
    }

    async fn open_place(&self, _: &Pipeline) -> Result<Place, WorkerError> {
        let store: Arc<dyn ObjectStore> = Arc::new(Double(WorkerStore { world: self.world.clone(), who: self.who.clone() }));
        let state_folder = format!("_millpond/{PIPELINE}");
        let log = Log::new(store.clone(), Path::from(format!("{state_folder}/log")));
        let url = url::Url::parse(LAKE_URL).expect("it is a url");
        let clock = self.clock();
        let now: Arc<dyn Fn() -> i64 + Send + Sync> = Arc::new(move || clock.now_ms());
        let ids = self.ids();
        let catalog = WorkerCatalog { world: self.world.clone(), who: self.who.clone() };
        let formats = crate::commit::formats(&store, &url, catalog, PIPELINE, PIPELINE, Ambient { now_ms: now, new_id: ids });
        Ok(Place { store, log, state_folder, formats, local: self.world.lake().map(|lake| lake.store.clone()) })
    }

    fn open_source(&self, spec: &SourceSpec, _: &str, _: &str) -> Result<Box<dyn Source>, SourceError> {
        Ok(Box::new(SimSource::new(self.world.clone(), self.who.clone(), spec.name.clone())))
    }

    fn hosting(&self) -> Hosting {
        Hosting::Tasks
    }

    /// Faults of the store are simulated; nothing in this world lies on a disk but scratch files.
    fn is_full(&self, _: &std::path::Path) -> bool {
        false
    }

    fn lanes(&self) -> usize {
        2
    }

    fn cadence(&self) -> Cadence {
        self.world.temper.cadence
    }

    fn compile(&self) -> Compile {
        compiled
    }
}

type Compiled = BTreeMap<String, Arc<TablePlan>>;

/// What a plan means is found out once: it costs a good part of a start.
fn compiled(plan: &Plan) -> Result<Compiled, PlanError> {
    static KNOWN: OnceLock<Mutex<BTreeMap<String, Compiled>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(|e| e.into_inner());
    let fingerprint = plan.fingerprint();
    if let Some(found) = known.get(&fingerprint) {
        return Ok(found.clone());
    }
    let made = plan::compile(plan)?;
    known.insert(fingerprint, made.clone());
    Ok(made)
}
