//! The whole table half, on real formats, against a straight fold over the rows: whatever the cut
//! into epochs, the worker that made each, the grouping of commits, the call of the store at which a worker died, and
//! whether runs were handed over in memory or read back.
//!
//! A seed decides everything. `MILLPOND_CASES=n` tries so many seeds, `MILLPOND_CASE=s` that one.

use super::*;
use crate::commit::iceberg::{Ambient, SqliteCatalog};
use crate::epoch::entry::{ByPartition, Data, Interval, Note, RunEntry, RunObject, StagedFile};
use crate::epoch::history::RecordedBody;
use crate::epoch::log::Log;
use crate::epoch::protocol_tests::Rng;
use crate::epoch::tests::{MINUTE, birth_of, facts, loaded};
use crate::read::LakeTableProvider;
use crate::source::{RawBatch, RawRecord};
use crate::stage::runs::write_runs;
use crate::store::double::{Delegating, Double, lost};
use crate::time;
use crate::worker::lane::{EpochTerms, Lane, LaneCommand, LanePart, SourceLayout, TableLayout};
use crate::worker::Clock;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::{CopyOptions, GetOptions, GetResult, ListResult, ObjectMeta, PutOptions, PutPayload, PutResult};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use tokio::sync::Notify;
use uuid::Uuid;

const FILE: &str = "\
pipeline: p
sources:
  events:
    file: events.ndjson
    columns: {k: string, at: timestamp, v: int64}
    watermark: {column: at, delay: 1m}
tables:
  sums:
    sql: |
      select window_start, k, sum(v) as s, count(*) as n from tumble(events, interval '5 minutes')
      where v > 0 group by window_start, k
    key: [window_start, k]
    allowed_lateness: 10m
    formats: [iceberg, delta]
  pairs:
    sql: |
      select window_start, k, sum(v) as s, count(*) as n from tumble(events, interval '5 minutes')
      where v > 0 group by window_start, k
    allowed_lateness: 3m
    formats: [delta]
  plain:
    sql: select k, v from events
    formats: [iceberg]
lake: {root: ./lake}
";

const PARTITIONS: i32 = 3;
const FIVE: i64 = 5 * MINUTE;

struct Still;

impl Clock for Still {
    fn now_ms(&self) -> i64 {
        1_767_225_600_000
    }
}

/// Key, event time, value. An undecodable record is `None`.
type Row = Option<(&'static str, i64, i64)>;

struct World {
    store: Arc<dyn ObjectStore>,
    catalog: SqliteCatalog,
    pipeline: Arc<Pipeline>,
    layout: Arc<SourceLayout>,
    dir: tempfile::TempDir,
    rows: Vec<Vec<Row>>,
    ids: Arc<AtomicU64>,
    cadence: Cadence,
    /// An epoch has fewer rows of a partition.
    longest: u64,
    /// What was proposed, by attempt: its place among the epochs.
    proposed: Mutex<BTreeMap<Uuid, usize>>,
    /// So many epochs are known to be decided.
    decided: AtomicU64,
}

/// A worker: its view of the log, its lane, its table half.
struct Worker {
    head: Arc<Head>,
    tables: Tables,
    lane: mpsc::Sender<LaneCommand>,
    life: Arc<Double<Life>>,
}

/// A worker's way to the store, until it dies: at one call, which was done or not.
#[derive(Debug)]
struct Life {
    store: Arc<dyn ObjectStore>,
    /// Calls to come before the last.
    left: AtomicI64,
    /// The last one is done, and nobody hears of it.
    last_done: bool,
    dead: AtomicBool,
    died: Notify,
}

impl Life {
    /// Whether this call is the last one. An error: there was a last one.
    fn call(&self) -> object_store::Result<bool> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(lost());
        }
        let last = self.left.fetch_sub(1, Ordering::Relaxed) == 0;
        if last {
            self.dead.store(true, Ordering::Relaxed);
        }
        Ok(last)
    }

    async fn through<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        if !self.call()? {
            return call.await;
        }
        if self.last_done {
            let _ = call.await;
        }
        self.died.notify_one();
        Err(lost())
    }

    /// One that lasts for as long as nobody says when it ends.
    fn over(store: Arc<dyn ObjectStore>, last_done: bool) -> Arc<Double<Self>> {
        Arc::new(Double(Self { store, left: AtomicI64::new(i64::MAX), last_done, dead: AtomicBool::new(false), died: Notify::new() }))
    }

    /// What the worker does, until it dies in the middle of it.
    async fn while_it_lasts<T>(&self, what: impl Future<Output = Result<T, WorkerError>>) -> Result<T, WorkerError> {
        let done = tokio::select! {
            biased;
            done = what => Some(done),
            () = self.died.notified() => None,
        };
        done.filter(|_| !self.dead.load(Ordering::Relaxed)).unwrap_or_else(|| Err(WorkerError::StartOver("killed".into())))
    }
}

#[async_trait]
impl Delegating for Life {
    fn inner(&self) -> &dyn ObjectStore {
        self.store.as_ref()
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.through(self.store.put_opts(at, payload, options)).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.through(self.store.get_opts(at, options)).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, object_store::Result<Path>>) -> BoxStream<'static, object_store::Result<Path>> {
        match self.call() {
            Ok(false) => self.store.delete_stream(paths),
            last => {
                self.died.notify_one();
                match last.is_ok() && self.last_done {
                    true => self.store.delete_stream(paths).map(|_| Err(lost())).boxed(),
                    false => futures::stream::iter([Err(lost())]).boxed(),
                }
            }
        }
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.call() {
            Ok(false) => self.store.list(prefix),
            _ => {
                self.died.notify_one();
                futures::stream::iter([Err(lost())]).boxed()
            }
        }
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.through(self.store.list_with_delimiter(prefix)).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.through(self.store.copy_opts(from, to, options)).await
    }
}

#[tokio::test]
async fn the_store_of_a_worker_that_does_not_die_is_one_like_any_other() {
    crate::store::conformance::holds(Life::over(Arc::new(InMemory::new()), false)).await;
}

struct Work {
    attempt: Uuid,
    began: u64,
    data: Data,
    part: LanePart,
}

fn raw(rows: &[Row], partition: i32, from: i64) -> RawBatch {
    let mut batch = RawBatch { partition, from, to: from + rows.len() as i64, leader_epoch: -1, ..Default::default() };
    for (i, row) in rows.iter().enumerate() {
        let text = match row {
            Some((k, at, v)) => format!(r#"{{"k":"{k}","at":"{}","v":{v}}}"#, instant(*at)),
            None => "no json".to_string(),
        };
        let start = batch.bytes.len() as u32;
        batch.bytes.extend(text.as_bytes());
        let value = Some(start..batch.bytes.len() as u32);
        batch.records.push(RawRecord { offset: from + i as i64, timestamp_ms: None, key: None, value, headers: vec![], oversized: None });
    }
    batch
}

impl World {
    async fn new(rng: &mut Rng) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let (pipeline, plans) = loaded(FILE);
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "millpond").await.unwrap();
        let birth = birth_of(FILE, PARTITIONS);
        assert!(Log::new(store.clone(), Path::from("log")).give_birth(&birth).await.unwrap());
        let Body::Plan(plan) = birth.body else { panic!() };
        let tables = plans.iter().map(|p| TableLayout { plan: p.clone(), spec: plan.tables[&p.table].table.shared().unwrap() }).collect();
        let dead = plan.sources["events"].dead.shared().unwrap();
        let layout = Arc::new(SourceLayout { spec: pipeline.sources[0].clone(), topic: facts(1)["events"].topic.clone(), tables, dead });
        // Time goes on, with stragglers of all ages; one partition is behind the others and one begins late.
        let mut rows = vec![];
        let most = 60 + rng.below(100) as i64;
        for p in 0..PARTITIONS {
            let of = |i: i64, rng: &mut Rng| {
                let behind = if rng.chance(20) { rng.below(25) as i64 } else { rng.below(3) as i64 };
                let at = (i * 40 + p as i64 * 100) * 1_000_000 - behind * MINUTE + 3_600_000_000;
                (!rng.chance(4)).then(|| (["a", "b", "c", "d"][rng.below(4) as usize], at, rng.below(20) as i64 - 1))
            };
            rows.push((0..most).map(|i| of(i, rng)).collect());
        }
        let cadence = Cadence { trail: 1 + rng.below(4), every: 1 + rng.below(8), most_runs: [2, 6, 256][rng.below(3) as usize], merge_rows: [3, 1 << 16][rng.below(2) as usize] };
        let (longest, ids) = ([3, 7, 25][rng.below(3) as usize], Arc::new(AtomicU64::new(1)));
        Self { store, catalog, pipeline: Arc::new(pipeline), layout, dir, rows, ids, cadence, longest, proposed: Mutex::default(), decided: AtomicU64::new(0) }
    }

    fn formats(&self, store: &Arc<dyn ObjectStore>) -> crate::commit::Formats {
        let (now, next) = (Arc::new(|| 1_767_225_600_000_i64) as Arc<dyn Fn() -> i64 + Send + Sync>, self.ids.clone());
        let new_id: Arc<dyn Fn() -> Uuid + Send + Sync> = Arc::new(move || Uuid::from_u64_pair(next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15), 7));
        let root = url::Url::parse("file:///lake/").unwrap();
        crate::commit::formats(store, &root, self.catalog.clone(), "p", "p", Ambient { now_ms: now, new_id })
    }

    /// Takes note of the epochs that the log is seen to hold.
    fn look(&self, ledger: &Ledger) {
        let proposed = self.proposed.lock().unwrap();
        let newest = ledger.attempts.values().filter_map(|a| proposed.get(a)).max();
        self.decided.fetch_max(newest.map_or(0, |n| *n as u64 + 1), Ordering::Relaxed);
    }

    /// A worker as it starts: from the log, and nothing else.
    async fn start(&self, name: &str, keep_runs: bool) -> Worker {
        self.start_for(name, keep_runs, i64::MAX, false).await
    }

    /// The same, for so many calls of the store once it has started.
    async fn start_for(&self, name: &str, keep_runs: bool, calls: i64, last_done: bool) -> Worker {
        let metrics = Arc::new(Metrics::default());
        let life = Life::over(self.store.clone(), last_done);
        let store: Arc<dyn ObjectStore> = life.clone();
        let log = Log::new(store.clone(), Path::from("log"));
        let reading = log.open().await.unwrap().unwrap();
        self.look(&reading.head);
        let (sender, entries) = mpsc::unbounded_channel();
        let mut at = reading.start.clone();
        for (seq, entry) in reading.tail {
            let times = at.apply(&entry).unwrap();
            assert!(sender.send(Decided { seq, entry: Arc::new(entry), times, runs: None, staged: Default::default() }).is_ok());
        }
        // So little that runs are read back too when several entries wait.
        let head = Arc::new(Head::new(log, name.into(), reading.head, sender, metrics.clone(), keep_runs).with_run_memory(4096));
        // A key index of its own for each life: it is rebuilt from the table.
        let nth = self.ids.fetch_add(1, Ordering::Relaxed);
        let scratch = self.dir.path().join(if nth % 2 == 0 { name.to_string() } else { format!("{name}-{nth}") });
        std::fs::create_dir_all(scratch.join("spill")).unwrap();
        let parts = Parts {
            pipeline: self.pipeline.clone(),
            store: store.clone(),
            state_folder: "_millpond/p".into(),
            scratch,
            formats: self.formats(&store),
            head: head.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(Still),
            ids: Arc::new(Uuid::now_v7),
            cadence: self.cadence,
            compile: crate::epoch::plan::compile,
            pressure: Arc::default(),
            entries,
            ending: Default::default(),
            held: reading.stamps,
        };
        let mut tables = Tables::open(parts, reading.start).await.unwrap_or_else(|e| panic!("{e}"));
        head.refresh().await.unwrap();
        tables.check_stamps(head.with(|l| l.next).await).unwrap();
        let (lane, commands) = mpsc::channel(64);
        let made = Lane::new("p".into(), 0, &[self.layout.clone()], metrics, Arc::default()).unwrap();
        tokio::spawn(made.run(commands));
        life.left.store(calls, Ordering::Relaxed);
        Worker { head, tables, lane, life }
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(0xF00D_0000_0000 + self.ids.fetch_add(1, Ordering::Relaxed) as u128)
    }

    /// What [`crate::worker::ingest`] does from beginning an epoch to closing it, with a cut of our choosing: by chance,
    /// or as `again` had it.
    async fn work(&self, worker: &Worker, rng: &mut Rng, again: Option<&[Data]>) -> Result<Option<Work>, WorkerError> {
        worker.head.refresh().await?;
        let ledger = worker.head.ledger().await;
        self.look(&ledger);
        let nth = self.decided.load(Ordering::Relaxed) as usize;
        let again = match again {
            Some(all) => match all.get(nth) {
                Some(data) => Some(data),
                None => return Ok(None),
            },
            None => None,
        };
        let chosen = |p: &i32, rng: &mut Rng| again.map_or_else(|| rng.chance(60), |a| a.intervals["events"].contains_key(p));
        let own: Vec<i32> = (0..PARTITIONS).filter(|p| chosen(p, rng)).collect();
        let state = &ledger.sources["events"];
        let end = |p: i32| self.rows[p as usize].len() as i64;
        let marks = own.iter().map(|p| (state.partitions[p].max_event_us, state.partitions[p].offset < end(*p)));
        let bound = again.map_or_else(|| time::bound(state.watermark, marks, MINUTE), |a| a.bounds["events"]);
        let attempt = self.id();
        self.proposed.lock().unwrap().insert(attempt, nth);
        let windowed = ledger.plan.tables.iter().filter(|(_, t)| t.window.is_some());
        let judge_at = windowed.map(|(n, t)| (n.clone(), time::judge_below(ledger.horizons[n], bound, t.allowed_lateness_us))).collect();
        let mut data = Data { bounds: [("events".to_string(), bound)].into(), ..Default::default() };
        assert!(worker.lane.send(LaneCommand::Begin(EpochTerms { attempt, read_at_ms: 0, judge_at })).await.is_ok());
        let mut intervals = BTreeMap::new();
        for p in own {
            let from = state.partitions[&p].offset;
            let to = match again {
                Some(again) => again.intervals["events"][&p].to,
                None => (from + rng.below(self.longest) as i64).min(end(p)),
            };
            // Only a partition at its end may be claimed idle.
            if again.is_none() && to == from && !(from == end(p) && rng.chance(30)) {
                continue;
            }
            if to > from {
                let middle = from + rng.below((to - from) as u64 + 1) as i64;
                for (a, b) in [(from, middle), (middle, to)] {
                    let rows = &self.rows[p as usize][a as usize..b as usize];
                    assert!(worker.lane.send(LaneCommand::Batch { source: 0, batch: raw(rows, p, a) }).await.is_ok());
                }
            }
            intervals.insert(p, Interval { from, to, leader_epoch: -1, max_event_us: None, name: None });
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        assert!(worker.lane.send(LaneCommand::Close(reply)).await.is_ok());
        let part = answer.await.unwrap().unwrap_or_else(|e| panic!("{e}"));
        for ((_, p), highest) in &part.max_event_us {
            intervals.get_mut(p).unwrap().max_event_us = Some(*highest);
        }
        let any = !intervals.is_empty();
        data.intervals = [("events".to_string(), intervals)].into();
        Ok(any.then_some(Work { attempt, began: ledger.next, data, part }))
    }

    /// The epochs that were decided, of the log's whole life.
    async fn epochs(&self) -> Vec<Data> {
        let log = Log::new(self.store.clone(), Path::from("log"));
        let (_, mut kept) = History::new(self.store.clone(), "_millpond/p").read().await.unwrap();
        let mut epochs = vec![];
        for seq in 0..log.open().await.unwrap().unwrap().head.next {
            let body = match kept.remove(&seq) {
                Some(recorded) => recorded.body,
                None => history::record(seq, &log.read(seq).await.unwrap().unwrap()).body,
            };
            if let RecordedBody::Data(data) = body {
                epochs.push(data);
            }
        }
        epochs
    }

    /// Stages the work and proposes it.
    async fn append(&self, worker: &Worker, mut work: Work) -> Result<bool, WorkerError> {
        let store = worker.tables.parts.store.clone();
        let put = async |path: &str, bytes: bytes::Bytes| store.put(&Path::from(path), bytes.into()).await.map_err(|e| WorkerError::Unavailable(e.to_string()));
        for (table, format, file, bytes) in work.part.files.drain(..) {
            put(&file.path, bytes).await?;
            work.data.files.push(StagedFile { table, format, file });
        }
        if !work.part.runs.is_empty() {
            let (bytes, refs) = write_runs(&work.part.runs).unwrap();
            let path = format!("_millpond/p/runs/{}.run", work.attempt);
            let runs = refs.into_iter().zip(&work.part.runs).map(|(run, made)| RunEntry {
                run,
                last_window_end_us: made.kind.windows().map_or_else(|| crate::worker::ingest::last_window_end(made), |(_, last)| last + FIVE),
            });
            work.data.runs = Some(RunObject { path: path.clone(), bytes: bytes.len() as u64, runs: runs.collect() });
            put(&path, bytes.into()).await?;
        }
        let done = worker.head.append(work.attempt, work.began, Body::Data(work.data), work.part.runs, 0).await?;
        worker.head.with(|l| self.look(l)).await;
        Ok(matches!(done, Appended::Decided(_)))
    }

    async fn query(&self, table: &str, format: TableFormatKind, ledger: &Ledger, sql: &str) -> Vec<Vec<String>> {
        let record = ledger.specs().into_iter().find(|(s, _)| s.name == table).unwrap().0.clone();
        let mut open = self.formats(&self.store)[&format].open(record.shared().unwrap()).await.unwrap().unwrap();
        let base = open.load().await.unwrap();
        assert_eq!(base.foreign_commits, 0);
        let files = open.live_files().await.unwrap();
        let provider = LakeTableProvider::new(self.store.clone(), record.shared().unwrap().schema.clone(), files);
        let (_, stream) = crate::read::query::run(vec![("t".into(), Arc::new(provider))], sql).await.unwrap_or_else(|e| panic!("{e}"));
        let mut rows = vec![];
        for batch in stream.try_collect::<Vec<_>>().await.unwrap() {
            let options = FormatOptions::default();
            let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
            rows.extend((0..batch.num_rows()).map(|r| columns.iter().map(|c| c.value(r).to_string()).collect::<Vec<_>>()));
        }
        rows.sort();
        rows
    }
}

impl Worker {
    /// Reads on in the log and folds some of it.
    async fn fold(&mut self, most: u64) -> Result<(), WorkerError> {
        self.head.refresh().await?;
        for _ in 0..most {
            let Ok(next) = self.tables.parts.entries.try_recv() else { break };
            self.tables.fold(next).await?;
        }
        Ok(())
    }
}

/// The tables that the rows and the cut imply, reckoned row by row with none of the product's code.
#[derive(Default)]
struct Straight {
    highest: BTreeMap<i32, i64>,
    at: BTreeMap<i32, i64>,
    watermark: Option<i64>,
    tables: BTreeMap<&'static str, StraightTable>,
    plain: Vec<Vec<String>>,
    dead: Vec<Vec<String>>,
}

#[derive(Default)]
struct StraightTable {
    lateness: i64,
    horizon: Option<i64>,
    groups: BTreeMap<(i64, &'static str), (i64, i64)>,
    late: Vec<Vec<String>>,
}

impl Straight {
    fn entry(&mut self, rows: &[Vec<Row>], data: &Data) {
        let mut idle = vec![];
        for (p, i) in &data.intervals["events"] {
            assert_eq!(self.at.insert(*p, i.to).unwrap_or(0), i.from, "I1");
            if i.from == i.to {
                idle.push(*p);
            }
            for offset in i.from..i.to {
                let Some((k, at, v)) = rows[*p as usize][offset as usize] else {
                    self.dead.push(vec![p.to_string(), offset.to_string()]);
                    continue;
                };
                self.plain.push(vec![k.to_string(), v.to_string()]);
                let highest = self.highest.entry(*p).or_insert(at);
                *highest = (*highest).max(at);
                if v <= 0 {
                    continue;
                }
                let start = at.div_euclid(FIVE) * FIVE;
                for table in self.tables.values_mut() {
                    if table.horizon.is_some_and(|h| start + FIVE <= h) {
                        table.late.push(vec![p.to_string(), offset.to_string(), k.to_string(), v.to_string()]);
                    } else {
                        let group = table.groups.entry((start, k)).or_default();
                        *group = (group.0 + v, group.1 + 1);
                    }
                }
            }
        }
        let counted: Vec<i32> = (0..PARTITIONS).filter(|p| !idle.contains(p)).collect();
        if !counted.is_empty() && counted.iter().all(|p| self.highest.contains_key(p)) {
            let lowest = counted.iter().map(|p| self.highest[p] - MINUTE).min();
            self.watermark = self.watermark.max(lowest);
        }
        for table in self.tables.values_mut() {
            table.horizon = table.horizon.max(self.watermark.map(|w| w - table.lateness));
        }
    }
}

fn groups(table: &StraightTable) -> Vec<Vec<String>> {
    let row = |(&(start, k), &(s, n)): (&(i64, &str), &(i64, i64))| vec![start.to_string(), k.to_string(), s.to_string(), n.to_string()];
    let mut rows: Vec<Vec<String>> = table.groups.iter().map(row).collect();
    rows.sort();
    rows
}

fn sorted(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    rows.sort();
    rows
}

#[derive(Default)]
struct Reached {
    stale: u64,
    restarts: u64,
    /// Kills in the middle of folding, committing and making the log short.
    killed_within: u64,
    late: u64,
    truncated: bool,
    merged: bool,
}

/// What a case ends with: its epochs, and every table as each format has it.
struct End {
    epochs: Vec<Data>,
    tables: BTreeMap<(&'static str, TableFormatKind), Vec<Vec<String>>>,
    reached: Reached,
}

/// Rows and cadence are the seed's; cut, assignment, crashes and commits are those of `seed` and `keep_runs`, but for the cut
/// where it is that of another run.
async fn one(seed: u64, keep_runs: bool, again: Option<&[Data]>) -> End {
    let world = World::new(&mut Rng(seed)).await;
    let mut rng = Rng(seed ^ if keep_runs { 0x5eed } else { 0xcafe });
    let names = &["w1", "w2", "w3"][..1 + rng.below(3) as usize];
    let (mortal, commits) = (rng.chance(70), 3 + rng.below(20));
    let start = async |name: &str, rng: &mut Rng| match mortal && rng.chance(60) {
        true => world.start_for(name, keep_runs, rng.below(400) as i64, rng.chance(50)).await,
        false => world.start(name, keep_runs).await,
    };
    let mut workers = vec![];
    for name in names {
        workers.push(start(name, &mut rng).await);
    }
    let mut open: Vec<Option<Work>> = names.iter().map(|_| None).collect();
    let mut reached = Reached::default();
    let ends: ByPartition<i64> = [("events".to_string(), world.rows.iter().zip(0..).map(|(r, p)| (p, r.len() as i64)).collect())].into();
    // The same claim, decided a second time, would be another log.
    let claim = |work: &Work| work.data.intervals["events"].values().all(|i| i.claims_idle());
    for _ in 0..4000 {
        let w = rng.below(workers.len() as u64) as usize;
        let life = workers[w].life.clone();
        let step = rng.below(100);
        let done = match step {
            0..45 if open[w].is_none() => {
                let all = match again {
                    Some(all) => world.decided.load(Ordering::Relaxed) as usize >= all.len(),
                    None => workers[w].head.with(|l| l.positions() == ends).await,
                };
                if all {
                    break;
                }
                let work = life.while_it_lasts(world.work(&workers[w], &mut rng, again)).await;
                let alone = open.iter().all(Option::is_none);
                work.map(|work| open[w] = work.filter(|work| again.is_none() || alone || (!claim(work) && !open.iter().flatten().any(claim))))
            }
            0..65 => match open[w].take() {
                Some(work) => life.while_it_lasts(world.append(&workers[w], work)).await.map(|done| reached.stale += u64::from(!done)),
                None => Ok(()),
            },
            65..80 => {
                let most = rng.below(8);
                life.while_it_lasts(workers[w].fold(most)).await
            }
            80..94 if rng.below(23) < commits => {
                let ending = rng.chance(30);
                let Worker { tables, head, .. } = &mut workers[w];
                let done = life
                    .while_it_lasts(async {
                        tables.commit_all(true).await?;
                        tables.checkpoint_and_truncate(ending).await
                    })
                    .await;
                let merged = |l: &Ledger| l.runs.values().flatten().any(|r| crate::stage::names::file_name(&r.object).starts_with("merged-"));
                reached.merged |= head.with(merged).await;
                done
            }
            94..96 => Err(WorkerError::StartOver("killed".into())),
            _ => Ok(()),
        };
        let dead = life.dead.load(Ordering::Relaxed);
        match done {
            Ok(()) => {}
            Err(WorkerError::StartOver(_) | WorkerError::RunGone(_)) => {
                reached.restarts += 1;
                reached.killed_within += u64::from(dead && step >= 65);
                open[w] = None;
                workers[w] = start(names[w], &mut rng).await;
            }
            Err(e) => panic!("case {seed}: {e}"),
        }
    }
    let epochs = world.epochs().await;
    let mut straight = Straight::default();
    straight.tables.insert("sums", StraightTable { lateness: 10 * MINUTE, ..Default::default() });
    straight.tables.insert("pairs", StraightTable { lateness: 3 * MINUTE, ..Default::default() });
    for data in &epochs {
        straight.entry(&world.rows, data);
    }
    assert_eq!(straight.at, ends["events"], "case {seed}: everything was read");
    drop(workers);
    let mut last = world.start("w1", keep_runs).await;
    let began = last.head.with(|l| l.next).await;
    let note = Body::Note(Note::EndOfInput { ends });
    assert!(matches!(last.head.append(world.id(), began, note, vec![], 0).await, Ok(Appended::Decided(_))));
    while let Ok(next) = last.tables.parts.entries.try_recv() {
        last.tables.fold(next).await.unwrap_or_else(|e| panic!("case {seed}: {e}"));
        if rng.chance(20) {
            last.tables.commit_all(true).await.unwrap();
        }
    }
    last.tables.commit_all(true).await.unwrap();
    assert!(last.tables.lake.values().all(|t| t.pending.is_empty()));

    let ledger = last.head.ledger().await;
    let (iceberg, delta) = (TableFormatKind::Iceberg, TableFormatKind::Delta);
    let (at, net) = ("cast(window_start as bigint) / 1", "sum(case _op when 'insert' then 1 else -1 end)");
    let sums = format!("select {at}, k, s, n from t");
    // What was inserted less what was retracted: how often each is.
    let pairs = format!("select {at}, k, s, n, {net} from t group by window_start, k, s, n having {net} <> 0");
    let late = "select _partition, _offset, k, v from t";
    let dead = "select _partition, _offset from t";
    let once = |row: Vec<String>| row.into_iter().chain(["1".to_string()]).collect();
    let mut tables = BTreeMap::new();
    for (name, format, sql, wanted) in [
        ("sums", iceberg, sums.as_str(), groups(&straight.tables["sums"])),
        ("sums", delta, &sums, groups(&straight.tables["sums"])),
        ("sums__late", iceberg, late, sorted(straight.tables["sums"].late.clone())),
        ("sums__late", delta, late, sorted(straight.tables["sums"].late.clone())),
        ("pairs", delta, &pairs, groups(&straight.tables["pairs"]).into_iter().map(once).collect()),
        ("pairs__late", delta, late, sorted(straight.tables["pairs"].late.clone())),
        ("plain", iceberg, "select k, v from t", sorted(straight.plain.clone())),
        ("events__dead", iceberg, dead, sorted(straight.dead.clone())),
        ("events__dead", delta, dead, sorted(straight.dead.clone())),
    ] {
        let rows = world.query(name, format, &ledger, sql).await;
        assert_eq!(rows, wanted, "case {seed}, runs {}: {format} table {name}", if keep_runs { "handed over" } else { "read back" });
        tables.insert((name, format), rows);
    }
    reached.late = straight.tables["pairs"].late.len() as u64;
    reached.truncated = ledger.checkpoint.is_some();
    End { epochs, tables, reached }
}

/// With runs handed over in memory, then from the same cut with runs read back from the log, other crashes and other commits:
/// equal to the row.
async fn both(seed: u64) -> [Reached; 2] {
    let handed_over = one(seed, true, None).await;
    let read_back = one(seed, false, Some(&handed_over.epochs)).await;
    let cut = |end: &End| end.epochs.iter().map(|d| (d.intervals.clone(), d.bounds.clone())).collect::<Vec<_>>();
    assert_eq!(cut(&handed_over), cut(&read_back), "case {seed}: the cut");
    assert_eq!(handed_over.tables, read_back.tables, "case {seed}");
    [handed_over.reached, read_back.reached]
}

/// Cases that a plain run of the tests tries.
const CASES: u64 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_equal_the_straight_fold_whatever_the_cuts_crashes_and_commits() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds = number("MILLPOND_CASE").map_or(0..number("MILLPOND_CASES").unwrap_or(CASES), |s| s..s + 1);
    let few = seeds.end - seeds.start < CASES;
    let mut cases = futures::stream::iter(seeds).map(|seed| async move { (seed, tokio::spawn(both(seed)).await) }).buffer_unordered(3);
    let mut all = vec![];
    while let Some((seed, case)) = cases.next().await {
        all.extend(case.unwrap_or_else(|e| panic!("case {seed} failed, MILLPOND_CASE={seed} shows it again: {e}")));
    }
    let sum = |of: fn(&Reached) -> u64| all.iter().map(of).sum::<u64>();
    let reached = [sum(|r| r.stale), sum(|r| r.restarts), sum(|r| r.killed_within), sum(|r| r.late), sum(|r| r.truncated as u64), sum(|r| r.merged as u64)];
    println!("stale, restarts, killed within, late, truncated, merged: {reached:?}");
    assert!(few || reached.iter().all(|n| *n > 10), "stale, restarts, killed within, late, truncated, merged: {reached:?}");
}

/// Two workers make a checkpoint at the same time; who wins has merged runs, and removed what they were
/// made of. The other's may not name those, neither this time nor the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_lost_names_no_runs_that_the_winner_removed() {
    let mut rng = Rng(5);
    let mut world = World::new(&mut rng).await;
    // So few rows that all runs of the entries to come fit into memory.
    world.longest = 3;
    let mut first = world.start("w1", true).await;
    let mut second = world.start("w2", true).await;
    first.tables.parts.cadence = Cadence { trail: 1, every: 2, most_runs: 1, merge_rows: 1 << 16 };
    second.tables.parts.cadence = Cadence { trail: 1, every: 2, most_runs: usize::MAX, merge_rows: 1 << 16 };
    let newest = |l: &Ledger| l.checkpoint.map(|c| c.upto);
    for _ in 0..2 {
        let begin = second.head.with(|l| l.next).await;
        while second.head.with(|l| l.next).await < begin + 8 {
            if let Some(work) = world.work(&second, &mut rng, None).await.unwrap() {
                world.append(&second, work).await.unwrap();
            }
        }
        // The first is some entries behind, so that its checkpoint's M is the lower one.
        first.fold(6).await.unwrap();
        first.tables.commit_all(true).await.unwrap();
        second.fold(100).await.unwrap();
        second.tables.commit_all(true).await.unwrap();
        let merged = first.tables.lowest_stamp() - 1;
        first.tables.checkpoint_and_truncate(false).await.unwrap();
        assert_eq!(first.head.with(newest).await, Some(merged));
        second.tables.checkpoint_and_truncate(false).await.unwrap();
        assert_eq!(second.head.with(newest).await, Some(merged), "it was begun before the first one's was decided");
        // Whoever starts now restores the panes from runs that are there.
        world.start("w3", true).await;
        second.fold(100).await.unwrap();
        second.tables.checkpoint_and_truncate(false).await.unwrap();
        assert!(second.head.with(newest).await > Some(merged), "on top of the first one's it may be");
        world.start("w3", true).await;
        first.fold(100).await.unwrap();
        second.fold(100).await.unwrap();
    }
}

async fn decide(world: &World, worker: &Worker, rng: &mut Rng) {
    loop {
        let Some(work) = world.work(worker, rng, None).await.unwrap() else { continue };
        if !work.data.intervals["events"].is_empty() && world.append(worker, work).await.unwrap() {
            return;
        }
    }
}

/// The lowest id commits. After a restart it may be that of a worker that has ended, for which nobody waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ended_before_a_start_is_not_waited_for() {
    let mut rng = Rng(7);
    let world = World::new(&mut rng).await;
    let lower = world.start("w1", true).await;
    let mut running = world.start("w2", true).await;
    decide(&world, &lower, &mut rng).await;
    running.fold(100).await.unwrap();
    assert!(!running.tables.is_lowest(), "it wrote since this one began");
    let mut started = world.start("w3", true).await;
    started.fold(100).await.unwrap();
    assert!(started.tables.at.writers.contains_key("w1"), "it has written, and lately");
    assert!(started.tables.is_lowest(), "before this one began");
    decide(&world, &lower, &mut rng).await;
    started.fold(100).await.unwrap();
    assert!(!started.tables.is_lowest(), "it had not ended");
    // Once it is silent for long it is not waited for either.
    for _ in 0..RECENT_ENTRIES {
        decide(&world, &started, &mut rng).await;
    }
    started.fold(100).await.unwrap();
    assert!(started.tables.is_lowest());
    running.fold(100).await.unwrap();
    assert!(running.tables.is_lowest(), "of the two that there are");
}
