//! The cleaner among writers and committers that sleep, crash and lose answers: seeded interleavings of the real
//! log, the real cleaner and real Delta commits, over a store that lies. An oracle looks at every delete (I4).

use super::orphans::{Cleaner, Notes};
use crate::commit::delta::DeltaFormat;
use crate::commit::{CommitError, Committed, LakeTable, Stamp, TableChange, TableFormat};
use crate::epoch::checkpoint::Checkpoint;
use crate::epoch::decide::fits;
use crate::epoch::entry::{Body, Data, Entry, Interval, Note, RunEntry, RunObject, StagedFile};
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::epoch::log::{Log, LogError, Proposed, Reading};
use crate::epoch::protocol_tests::{Rng, lie};
use crate::epoch::tests::{FILE, LOG, birth_of, entry};
use crate::partial::RunKind;
use crate::pipeline::TableFormatKind;
use crate::stage::runs::RunRef;
use crate::stage::names::{self, Owner};
use crate::stage::{DataFile, TableSpec};
use crate::store::double::{Delegating, Double, lost};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use url::Url;
use uuid::Uuid;

const PARTITIONS: i32 = 2;
const END: i64 = 14;
const LOG_FOLDER: &str = "_millpond/p/log";

/// What came to be, whatever lies in the store later.
#[derive(Debug, Default)]
struct Truth {
    /// By number: the entry that was created first under it.
    entries: BTreeMap<u64, Entry>,
    /// By name of a Delta commit file: the names of the files that the commit which came first adds.
    commits: BTreeMap<Path, BTreeSet<String>>,
    broken: Vec<String>,
    deleted: u64,
}

impl Truth {
    fn created(&mut self, at: &Path, bytes: &Bytes) {
        if at.as_ref().starts_with(LOG_FOLDER) {
            let seq = at.filename().and_then(|n| n.trim_end_matches(".json").parse().ok()).expect("a log entry's name");
            self.entries.entry(seq).or_insert_with(|| serde_json::from_slice(bytes).expect("an entry"));
        } else if at.as_ref().contains("_delta_log") {
            let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice::<serde_json::Value>(l).expect("an action"));
            let adds = lines.filter_map(|l| Some(names::file_name(l["add"]["path"].as_str()?).to_string())).collect();
            self.commits.entry(at.clone()).or_insert(adds);
        }
    }

    fn attempts(&self) -> BTreeMap<Uuid, u64> {
        self.entries.iter().map(|(seq, e)| (e.attempt, *seq)).collect()
    }

    /// Tables lose no file here: what was decided or committed is needed for good. Runs end with their windows.
    fn deletes(&mut self, at: &Path) {
        if at.as_ref().starts_with(LOG_FOLDER) {
            return;
        }
        self.deleted += 1;
        let name = at.filename().expect("a file").to_string();
        if at.as_ref().ends_with(".parquet") {
            match names::owner(&name) {
                Some(Owner::Attempt(a)) if self.attempts().contains_key(&a) => self.broken.push(format!("{at} is deleted, and entry {} names it", self.attempts()[&a])),
                Some(_) if self.commits.values().any(|c| c.contains(&name)) => self.broken.push(format!("{at} is deleted, and a commit adds it")),
                None => self.broken.push(format!("{at} is deleted, and is not ours")),
                _ => {}
            }
        }
    }
}

/// Puts may land and be denied, be taken for taken, or land long after; every call may take its time.
#[derive(Debug)]
struct Lying {
    inner: Arc<InMemory>,
    rng: Mutex<Rng>,
    faults: AtomicU64,
    delayed: Mutex<Vec<(Path, Bytes)>>,
    truth: Arc<Mutex<Truth>>,
}

/// Nobody spins: the clock, which is paused, moves on when all rest.
async fn rest(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl Lying {
    fn roll(&self, percent: u64) -> bool {
        self.rng.lock().unwrap().chance(percent)
    }

    fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    async fn dawdle(&self) {
        let n = self.rng.lock().unwrap().below(4);
        rest(n).await;
        if self.roll(10) {
            self.land().await;
        }
    }

    async fn land(&self) -> bool {
        let late = self.delayed.lock().unwrap().pop();
        match late {
            Some((at, bytes)) => self.create(&at, bytes).await.map(|_| ()).is_ok() || true,
            None => false,
        }
    }

    async fn create(&self, at: &Path, bytes: Bytes) -> Result<PutResult> {
        let put = self.inner.put_opts(at, bytes.clone().into(), PutOptions { mode: PutMode::Create, ..Default::default() }).await?;
        self.truth.lock().unwrap().created(at, &bytes);
        Ok(put)
    }
}

#[async_trait]
impl Delegating for Lying {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.dawdle().await;
        let bytes: Bytes = payload.into();
        let lies = self.roll(self.faults());
        if !matches!(options.mode, PutMode::Create) {
            if lies && self.roll(50) {
                return Err(lost());
            }
            let put = self.inner.put_opts(at, bytes.into(), options).await;
            return if lies { Err(lost()) } else { put };
        }
        if !lies {
            return self.create(at, bytes).await;
        }
        lie(&self.rng, &self.delayed, at, bytes.clone(), self.create(at, bytes)).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.dawdle().await;
        if self.roll(self.faults() / 4) {
            return Err(lost());
        }
        self.inner.get_opts(at, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, truth) = (self.inner.clone(), self.truth.clone());
        let fails = self.roll(self.faults() / 2);
        paths
            .and_then(move |at| {
                let (inner, truth) = (inner.clone(), truth.clone());
                async move {
                    if fails {
                        return Err(lost());
                    }
                    truth.lock().unwrap().deletes(&at);
                    inner.delete(&at).await.map(|()| at)
                }
            })
            .boxed()
    }
}

/// How the cleaner under test gets its notes into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condemning {
    Sound,
    /// Says that the note is in the log, and writes none.
    Never,
    /// Takes what the search knew for what is known now: the rule that `OldCondemnation` leaves out.
    AsIfJustSearched,
}

struct World {
    store: Arc<Double<Lying>>,
    log: Log,
    rng: Mutex<Rng>,
    delta: Arc<DeltaFormat>,
    ids: Arc<AtomicU64>,
    working: AtomicU64,
    condemned: AtomicU64,
    stale: AtomicU64,
    checkpoints: AtomicU64,
    condemning: Condemning,
    /// No more faults, naps and crashes.
    calm: AtomicBool,
}

enum Fate {
    Decided,
    Stale,
    Unknown,
}

impl World {
    fn new(seed: u64, condemning: Condemning) -> Self {
        let store = Arc::new(Double(Lying {
            inner: Arc::default(),
            rng: Mutex::new(Rng(seed)),
            faults: AtomicU64::new([0, 8, 20, 35][(seed % 4) as usize]),
            delayed: Mutex::default(),
            truth: Arc::default(),
        }));
        let ids = Arc::new(AtomicU64::new(1000));
        let id = ids.clone();
        let new_id = Arc::new(move || Uuid::from_u128(u128::from(id.fetch_add(1, Ordering::Relaxed))));
        let delta = DeltaFormat::new(store.clone(), Url::parse("file:///lake/").unwrap(), "p", Arc::new(|| 1_767_225_600_000), new_id);
        Self {
            log: Log::new(store.clone(), Path::from(LOG_FOLDER)),
            store,
            rng: Mutex::new(Rng(seed ^ 0xABCD)),
            delta: Arc::new(delta),
            ids,
            working: AtomicU64::new(0),
            condemned: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            condemning,
            calm: AtomicBool::new(false),
        }
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(u128::from(self.ids.fetch_add(1, Ordering::Relaxed)))
    }

    fn roll(&self, percent: u64) -> bool {
        !self.calm.load(Ordering::Relaxed) && self.rng.lock().unwrap().chance(percent)
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().below(n)
    }

    /// Mostly short, sometimes long enough for the others to do anything.
    async fn nap(&self) {
        if self.calm.load(Ordering::Relaxed) {
            return;
        }
        rest(if self.roll(8) { 800 } else { self.below(20) }).await;
    }

    /// Between turns: the writers must come to something.
    async fn pause(&self) {
        rest(1 + self.below(400)).await;
    }

    async fn read(&self) -> Reading {
        loop {
            match self.log.open().await {
                Ok(reading) => return reading.expect("it was born"),
                Err(LogError::Unavailable(_)) => rest(1).await,
                Err(e) => panic!("{e}"),
            }
        }
    }

    async fn put(&self, path: &str) {
        while self.store.put(&Path::from(path), "rows".into()).await.is_err() {
            rest(1).await;
        }
    }

    async fn append(&self, ledger: &mut Ledger, mut e: Entry) -> Fate {
        loop {
            if fits(ledger, &e).is_err() {
                self.stale.fetch_add(1, Ordering::Relaxed);
                return Fate::Stale;
            }
            e.checkpoint = ledger.checkpoint;
            match self.log.propose(ledger.next, &e, |_| {}).await.unwrap_or_else(|e| panic!("{e}")) {
                Proposed::Decided(_) => return Fate::Decided,
                Proposed::StartOver => return Fate::Unknown,
                Proposed::Lost => {}
            }
            match self.log.tail(ledger.next).await {
                Ok(tail) => tail.iter().for_each(|(seq, e)| drop(ledger.apply(e).unwrap_or_else(|e| panic!("entry {seq}: {e}")))),
                Err(LogError::LeftBehind { .. } | LogError::Unavailable(_)) => return Fate::Unknown,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// One life of a writer after another, until everything is read.
    async fn write(&self, nth: u64) {
        'life: loop {
            let mut ledger = self.read().await.head;
            if (0..PARTITIONS).all(|p| ledger.position("events", p) == Some(END)) {
                self.working.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let (attempt, began) = (self.id(), ledger.next);
            let mut intervals = BTreeMap::new();
            for p in 0..PARTITIONS {
                let from = ledger.position("events", p).unwrap();
                let to = (from + self.below(4) as i64).min(END);
                if to > from {
                    intervals.insert(p, Interval { from, to, leader_epoch: 0, max_event_us: Some(to * 60_000_000), name: None });
                }
            }
            let bound = ledger.sources["events"].watermark;
            let mut data = Data { intervals: [("events".to_string(), intervals)].into(), bounds: [("events".to_string(), bound)].into(), ..Default::default() };
            for n in 0..=self.below(2) as usize {
                let path = format!("delta/p/plain/{}", names::epoch_file(attempt, nth as usize, n));
                self.put(&path).await;
                if self.roll(2) {
                    continue 'life; // killed
                }
                let file = DataFile { path, bytes: 4, records: 1, partition: vec![], columns: vec![], split_offsets: vec![] };
                data.files.push(StagedFile { table: "plain".into(), format: TableFormatKind::Delta, file });
            }
            if self.roll(60) {
                let path = format!("_millpond/p/runs/{}", names::epoch_runs(attempt));
                self.put(&path).await;
                let run = RunRef { table: "sums".into(), kind: RunKind::Partial { window_start_us: 0 }, rows: 1, offset: 0, length: 4 };
                let runs = vec![RunEntry { run, last_window_end_us: (5 + self.below(60) as i64) * 60_000_000 }];
                data.runs = Some(RunObject { path, bytes: 4, runs });
            }
            self.nap().await;
            if self.roll(4) {
                continue;
            }
            let mut e = entry(0, ledger.plan_entry, began, Body::Data(data));
            (e.attempt, e.writer) = (attempt, format!("w{nth}"));
            self.append(&mut ledger, e).await;
        }
    }

    async fn table(&self, spec: &Arc<TableSpec>) -> Result<Box<dyn LakeTable>, CommitError> {
        self.delta.open_or_create(spec.clone(), &Stamp { log: LOG, entry: 0, offsets: BTreeMap::new() }).await
    }

    /// One turn: brings both tables up to the log, sometimes writes a checkpoint and truncates.
    async fn commit(&self, nth: u64) -> Result<(), CommitError> {
        let mut reading = self.read().await;
        let upto = reading.head.next - 1;
        for name in ["plain", "sums"] {
            let spec = reading.head.plan.tables[name].table.shared().unwrap();
            let mut table = self.table(&spec).await?;
            let from = table.load().await?.stamp.entry;
            let todo = reading.tail.iter().filter(|(seq, _)| *seq > from).filter_map(|(_, e)| if let Body::Data(d) = &e.body { Some(d) } else { None });
            let mut add = vec![];
            for data in todo {
                match name {
                    "plain" => add.extend(data.files.iter().map(|f| f.file.clone())),
                    // Rows of the table half: written here, under the stamp that they start from.
                    _ if data.runs.is_some() => {
                        let path = format!("delta/p/sums/{}", names::emitted(from, self.id(), add.len()));
                        self.put(&path).await;
                        add.push(DataFile { path, bytes: 4, records: 1, partition: vec![], columns: vec![], split_offsets: vec![] });
                    }
                    _ => {}
                }
            }
            self.nap().await;
            if add.is_empty() || self.roll(5) {
                continue;
            }
            let stamp = Stamp { log: LOG, entry: upto, offsets: BTreeMap::new() };
            let change = TableChange { add, delete: BTreeMap::new(), stamp, spec, attempt: self.id() };
            if !matches!(table.commit(change).await?, Committed::Done(_)) {
                return Ok(());
            }
        }
        // Both tables were seen at `upto`, or had nothing to do.
        for name in ["plain", "sums"] {
            let mut table = self.table(&reading.head.plan.tables[name].table.shared().unwrap()).await?;
            let stamp = table.load().await?.stamp.entry;
            let waits = |d: &Data| if name == "plain" { !d.files.is_empty() } else { d.runs.is_some() };
            if reading.tail.iter().any(|(seq, e)| *seq > stamp && *seq <= upto && matches!(&e.body, Body::Data(d) if waits(d))) {
                return Ok(());
            }
        }
        if reading.tail.len() < 4 || self.roll(30) {
            return Ok(());
        }
        let m = reading.tail[self.below(reading.tail.len() as u64 - 2) as usize].0.min(upto);
        let mut state = reading.start;
        for (_, e) in reading.tail.iter().take_while(|(seq, _)| *seq <= m) {
            state.apply(e).expect("it was applied before");
        }
        let attempt = self.id();
        if self.roll(50)
            && let Some(live) = state.runs.get_mut("sums").filter(|r| r.len() > 1)
        {
            let object = format!("_millpond/p/runs/{}", names::merged_runs(m, attempt, 1));
            self.put(&object).await;
            let last_window_end_us = live.iter().map(|r| r.run.last_window_end_us).max().unwrap_or(0);
            *live = vec![LiveRun { entry: live[0].entry, nth: 0, object, run: RunEntry { last_window_end_us, ..live[0].run.clone() }, horizon_before: None }];
        }
        state.runs_as_of = m;
        self.nap().await;
        let mut e = entry(0, reading.head.plan_entry, reading.head.next, Body::Checkpoint(Checkpoint { upto: m, ledger: Box::new(state), stamps: Default::default() }));
        (e.attempt, e.writer) = (attempt, format!("c{nth}"));
        if matches!(self.append(&mut reading.head, e).await, Fate::Decided) {
            self.checkpoints.fetch_add(1, Ordering::Relaxed);
            if !self.roll(20) {
                let _ = self.log.truncate(m).await;
            }
        }
        Ok(())
    }

    async fn commit_until_done(&self, nth: u64) {
        while self.working.load(Ordering::Relaxed) > 0 {
            match self.commit(nth).await {
                Ok(()) | Err(CommitError::Unavailable(_)) => self.pause().await,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn cleaner(&self) -> Cleaner {
        let formats: BTreeMap<TableFormatKind, Arc<dyn TableFormat>> = [(TableFormatKind::Delta, self.delta.clone() as Arc<dyn TableFormat>)].into();
        Cleaner::new("p", "_millpond/p", self.store.clone(), None, self.log.clone(), formats, 0)
    }

    async fn clean_until_done(&self) {
        while self.working.load(Ordering::Relaxed) > 0 {
            // Each pass is a life of its own: it may be cut short anywhere.
            let steps = if self.roll(20) { self.below(200) } else { u64::MAX };
            let mut cleaner = self.cleaner();
            cut_short(cleaner.pass(self, i64::MAX / 2, self.id()), steps).await;
            self.pause().await;
        }
    }

    /// What must be there when somebody starts now.
    async fn names_only_what_is_there(&self, broken: &mut Vec<String>) {
        let reading = self.read().await;
        let there: BTreeSet<Path> = self.store.inner.list(None).map_ok(|o| o.location).try_collect().await.unwrap();
        let runs = reading.start.runs.values().flatten().map(|r| r.object.clone());
        let in_tail = reading.tail.iter().filter_map(|(_, e)| if let Body::Data(d) = &e.body { d.runs.as_ref().map(|r| r.path.clone()) } else { None });
        for object in runs.chain(in_tail) {
            if !there.contains(&Path::from(object.as_str())) {
                broken.push(format!("{object} is gone, and the log's newest checkpoint or what follows it names it"));
            }
        }
        let truth = self.store.truth.lock().unwrap();
        let files = truth.entries.values().filter_map(|e| if let Body::Data(d) = &e.body { Some(&d.files) } else { None }).flatten();
        for file in files {
            if !there.contains(&Path::from(file.file.path.as_str())) {
                broken.push(format!("{} is gone, and its entry was decided", file.file.path));
            }
        }
        for (commit, adds) in &truth.commits {
            for name in adds.iter().filter(|n| !there.iter().any(|t| t.filename() == Some(n))) {
                broken.push(format!("{name} is gone, and {commit} adds it"));
            }
        }
    }
}

/// Polls so often, then drops: a kill at any await.
async fn cut_short<T>(work: impl Future<Output = T>, steps: u64) {
    let mut work = std::pin::pin!(work);
    let mut left = steps;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        work.as_mut().poll(context).map(|_| ())
    })
    .await;
}

#[async_trait]
impl Notes for World {
    async fn append(&self, attempt: Uuid, began: u64, note: Note) -> std::result::Result<bool, LogError> {
        self.nap().await;
        if self.condemning == Condemning::Never {
            return Ok(true);
        }
        let mut ledger = self.read().await.head;
        let began = if self.condemning == Condemning::AsIfJustSearched { ledger.next } else { began };
        let Note::Condemned { attempts } = &note else { panic!("the cleaner writes no other notes") };
        let named = attempts.len() as u64;
        let mut e = entry(0, ledger.plan_entry, began, Body::Note(note));
        e.attempt = attempt;
        let decided = matches!(World::append(self, &mut ledger, e).await, Fate::Decided);
        self.condemned.fetch_add(if decided { named } else { 0 }, Ordering::Relaxed);
        Ok(decided)
    }
}

#[derive(Debug, Default)]
struct Outcome {
    broken: Vec<String>,
    deleted: u64,
    condemned: u64,
    stale: u64,
    checkpoints: u64,
}

async fn simulate(seed: u64, condemning: Condemning) -> Outcome {
    let world = World::new(seed, condemning);
    while world.log.give_birth(&birth_of(FILE, PARTITIONS)).await.is_err() {
        rest(1).await;
    }
    let foreign = ["delta/p/plain/part-00000-00000000-0000-0000-0000-000000000001-c000.snappy.parquet", "delta/p/plain/notes.txt", "delta/p2/plain/epoch-00000000-0000-0000-0000-000000000001-0-1.parquet"];
    for path in foreign {
        world.put(path).await;
    }
    world.working.store(2, Ordering::Relaxed);
    futures::join!(world.write(0), world.write(1), world.commit_until_done(0), world.commit_until_done(1), world.clean_until_done(), world.clean_until_done());

    // Calm: what was under way lands, the tables come up to the log, the cleaner finds the rest.
    world.calm.store(true, Ordering::Relaxed);
    world.store.faults.store(0, Ordering::Relaxed);
    while world.store.land().await {}
    let mut broken = vec![];
    for _ in 0..3 {
        world.commit(0).await.unwrap();
        while world.store.land().await {}
    }
    let mut cleaned = 1;
    while cleaned > 0 && condemning == Condemning::Sound {
        let done = world.cleaner().pass(&world, i64::MAX / 2, world.id()).await.unwrap();
        assert_eq!(done.left, Vec::<String>::new(), "seed {seed}");
        assert_eq!(done.found, done.deleted, "seed {seed}: what is found is deleted when nothing fails");
        cleaned = done.deleted;
    }
    world.names_only_what_is_there(&mut broken).await;
    let reading = world.read().await;
    let left: Vec<ObjectMeta> = world.store.inner.list(None).try_collect().await.unwrap();
    let truth = world.store.truth.lock().unwrap();
    broken.extend(truth.broken.iter().cloned());

    // Nothing leaks: each file that is left is needed, or belongs to a commit that could still be under way.
    if condemning == Condemning::Sound {
        let attempts = truth.attempts();
        let upto = reading.start.next - 1;
        let live: BTreeSet<&str> = [&reading.start, &reading.head].into_iter().flat_map(|l| l.runs.values().flatten()).map(|r| names::file_name(&r.object)).collect();
        for path in left.iter().map(|o| o.location.as_ref()).filter(|p| !p.starts_with("delta/p2")) {
            let name = names::file_name(path);
            let needed = match names::owner(name) {
                Some(Owner::Attempt(a)) if path.ends_with(".run") => live.contains(name) || attempts.get(&a).is_some_and(|seq| *seq > upto),
                Some(Owner::Attempt(a)) => attempts.contains_key(&a),
                Some(Owner::Stamp(stamp)) => {
                    let last = truth.entries.iter().filter(|(_, e)| matches!(&e.body, Body::Data(d) if d.runs.is_some())).map(|(seq, _)| *seq).max();
                    truth.commits.values().any(|c| c.contains(name)) || Some(stamp) >= last
                }
                _ => true,
            };
            if !needed {
                broken.push(format!("{path} leaks"));
            }
        }
        for path in foreign {
            assert!(left.iter().any(|o| o.location.as_ref() == path), "seed {seed}: {path} is not ours and is gone");
        }
        let head = &reading.head;
        assert!(head.condemned.values().all(|note| *note > upto), "seed {seed}: condemned attempts are kept when they need not be");
    }
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Outcome { broken, deleted: truth.deleted, condemned: count(&world.condemned), stale: count(&world.stale), checkpoints: count(&world.checkpoints) }
}

/// `CLEAN_SEEDS=from..to` runs those in their place.
fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let given = std::env::var("CLEAN_SEEDS").ok().and_then(|s| s.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?)));
    given.unwrap_or(usual)
}

#[tokio::test(start_paused = true)]
async fn no_interleaving_deletes_what_is_needed_and_nothing_leaks() {
    let mut reached = [0; 4];
    for seed in seeds(0..48) {
        let o = simulate(seed, Condemning::Sound).await;
        assert!(o.broken.is_empty(), "seed {seed}: {:#?}", o.broken);
        for (sum, more) in reached.iter_mut().zip([o.deleted, o.condemned, o.stale, o.checkpoints]) {
            *sum += more;
        }
    }
    println!("files deleted, attempts condemned, stale, checkpoints: {reached:?}");
    assert!(reached.iter().all(|n| *n > 100), "files deleted, attempts condemned, stale, checkpoints: {reached:?}");
}

/// The oracle sees what it is there to see.
#[tokio::test(start_paused = true)]
async fn a_cleaner_that_condemns_nothing_deletes_what_a_sleeper_decides_later() {
    for seed in seeds(0..16) {
        if simulate(seed, Condemning::Never).await.broken.iter().any(|b| b.contains("its entry was decided")) {
            return;
        }
    }
    panic!("no seed shows it");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_tells_the_truth_is_one_like_any_other() {
    let world = World::new(0, Condemning::Sound);
    assert_eq!(world.store.faults(), 0);
    crate::store::conformance::holds(world.store.clone()).await;
}
