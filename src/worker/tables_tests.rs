//! The whole table half, on real formats, against a straight fold over the rows: whatever the cut
//! into epochs, the worker that made each, the grouping of commits, the points where it died, and
//! whether runs were handed over in memory or read back.

use super::*;
use crate::commit::iceberg::{Ambient, SqliteCatalog};
use crate::epoch::entry::{ByPartition, Data, Interval, Note, RunEntry, RunObject, StagedFile};
use crate::epoch::log::Log;
use crate::epoch::protocol_tests::Rng;
use crate::epoch::tests::{MINUTE, birth_of, facts, loaded};
use crate::read::LakeTableProvider;
use crate::source::{RawBatch, RawRecord};
use crate::stage::runs::write_runs;
use crate::time;
use crate::worker::lane::{EpochTerms, Lane, LaneCommand, LanePart, SourceLayout, TableLayout};
use crate::worker::Clock;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use std::sync::atomic::AtomicU64;
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
    formats: BTreeMap<TableFormatKind, Arc<dyn TableFormat>>,
    pipeline: Arc<Pipeline>,
    layout: Arc<SourceLayout>,
    dir: tempfile::TempDir,
    rows: Vec<Vec<Row>>,
    ids: Arc<AtomicU64>,
}

/// A worker: its view of the log, its lane, its table half.
struct Worker {
    head: Arc<Head>,
    tables: Tables,
    lane: mpsc::Sender<LaneCommand>,
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
        let ids = Arc::new(AtomicU64::new(1));
        let (now, next) = (Arc::new(|| 1_767_225_600_000_i64) as Arc<dyn Fn() -> i64 + Send + Sync>, ids.clone());
        let new_id: Arc<dyn Fn() -> Uuid + Send + Sync> = Arc::new(move || Uuid::from_u64_pair(next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15), 7));
        let root = url::Url::parse("file:///lake/").unwrap();
        let formats = crate::commit::formats(&store, &root, catalog, "p", "p", Ambient { now_ms: now, new_id: new_id });
        let birth = birth_of(FILE, PARTITIONS);
        assert!(Log::new(store.clone(), Path::from("log")).give_birth(&birth).await.unwrap());
        let Body::Plan(plan) = birth.body else { panic!() };
        let tables = plans.iter().map(|p| TableLayout { plan: p.clone(), spec: plan.tables[&p.table].table.shared().unwrap() }).collect();
        let dead = plan.sources["events"].dead.shared().unwrap();
        let layout = Arc::new(SourceLayout { spec: pipeline.sources[0].clone(), topic: facts(1)["events"].topic.clone(), tables, dead });
        // Time goes on, with stragglers of all ages; one partition is behind the others and one begins late.
        let mut rows = vec![];
        for p in 0..PARTITIONS {
            let of = |i: i64, rng: &mut Rng| {
                let behind = if rng.chance(20) { rng.below(25) as i64 } else { rng.below(3) as i64 };
                let at = (i * 40 + p as i64 * 100) * 1_000_000 - behind * MINUTE + 3_600_000_000;
                (!rng.chance(4)).then(|| (["a", "b", "c", "d"][rng.below(4) as usize], at, rng.below(20) as i64 - 1))
            };
            rows.push((0..160).map(|i| of(i, rng)).collect());
        }
        Self { store, formats, pipeline: Arc::new(pipeline), layout, dir, rows, ids }
    }

    /// A worker as it starts: from the log, and nothing else.
    async fn start(&self, name: &str, keep_runs: bool) -> Worker {
        let metrics = Arc::new(Metrics::default());
        let log = Log::new(self.store.clone(), Path::from("log"));
        let reading = log.open().await.unwrap().unwrap();
        let (sender, entries) = mpsc::unbounded_channel();
        let mut at = reading.start.clone();
        for (seq, entry) in reading.tail {
            let times = at.apply(&entry).unwrap();
            assert!(sender.send(Decided { seq, entry: Arc::new(entry), times, runs: None, staged: Default::default() }).is_ok());
        }
        // So little that runs are read back too when several entries wait.
        let head = Arc::new(Head::new(log, name.into(), reading.head, sender, metrics.clone(), keep_runs).with_run_memory(4096));
        // A key index of its own for each life: it is rebuilt from the table.
        let life = self.ids.fetch_add(1, Ordering::Relaxed);
        let scratch = self.dir.path().join(if life % 2 == 0 { name.to_string() } else { format!("{name}-{life}") });
        std::fs::create_dir_all(scratch.join("spill")).unwrap();
        let parts = Parts {
            pipeline: self.pipeline.clone(),
            store: self.store.clone(),
            state_folder: "_millpond/p".into(),
            scratch,
            formats: self.formats.clone(),
            head: head.clone(),
            metrics: metrics.clone(),
            clock: Arc::new(Still),
            ids: Arc::new(Uuid::now_v7),
            cadence: Cadence::default(),
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
        Worker { head, tables, lane }
    }

    fn id(&self) -> Uuid {
        Uuid::from_u128(0xF00D_0000_0000 + self.ids.fetch_add(1, Ordering::Relaxed) as u128)
    }

    /// What [`crate::worker::ingest`] does from beginning an epoch to closing it, with a cut of our choosing.
    async fn work(&self, worker: &Worker, rng: &mut Rng) -> Result<Work, WorkerError> {
        worker.head.refresh().await?;
        let ledger = worker.head.ledger().await;
        let own: Vec<i32> = (0..PARTITIONS).filter(|_| rng.chance(60)).collect();
        let state = &ledger.sources["events"];
        let end = |p: i32| self.rows[p as usize].len() as i64;
        let marks = own.iter().map(|p| (state.partitions[p].max_event_us, state.partitions[p].offset < end(*p)));
        let bound = time::bound(state.watermark, marks, MINUTE);
        let attempt = self.id();
        let windowed = ledger.plan.tables.iter().filter(|(_, t)| t.window.is_some());
        let judge_at = windowed.map(|(n, t)| (n.clone(), time::judge_below(ledger.horizons[n], bound, t.allowed_lateness_us))).collect();
        let mut data = Data { bounds: [("events".to_string(), bound)].into(), ..Default::default() };
        assert!(worker.lane.send(LaneCommand::Begin(EpochTerms { attempt, read_at_ms: 0, judge_at })).await.is_ok());
        let mut intervals = BTreeMap::new();
        for p in own {
            let from = state.partitions[&p].offset;
            let to = (from + rng.below(7) as i64).min(end(p));
            // Only a partition at its end may be claimed idle.
            if to == from && !(from == end(p) && rng.chance(30)) {
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
        data.intervals = [("events".to_string(), intervals)].into();
        Ok(Work { attempt, began: ledger.next, data, part })
    }

    /// Stages the work and proposes it.
    async fn append(&self, worker: &Worker, mut work: Work) -> Result<bool, WorkerError> {
        for (table, format, file, bytes) in work.part.files.drain(..) {
            self.store.put(&Path::from(file.path.as_str()), bytes.into()).await.unwrap();
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
            self.store.put(&Path::from(path), bytes.into()).await.unwrap();
        }
        let done = worker.head.append(work.attempt, work.began, Body::Data(work.data), work.part.runs, 0).await?;
        Ok(matches!(done, Appended::Decided(_)))
    }

    async fn query(&self, table: &str, format: TableFormatKind, ledger: &Ledger, sql: &str) -> Vec<Vec<String>> {
        let record = ledger.specs().into_iter().find(|(s, _)| s.name == table).unwrap().0.clone();
        let mut open = self.formats[&format].open(record.shared().unwrap()).await.unwrap().unwrap();
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
    late: u64,
    truncated: bool,
    entries: u64,
}

async fn one(seed: u64, keep_runs: bool) -> Reached {
    let mut rng = Rng(seed);
    let world = World::new(&mut rng).await;
    let mut straight = Straight::default();
    straight.tables.insert("sums", StraightTable { lateness: 10 * MINUTE, ..Default::default() });
    straight.tables.insert("pairs", StraightTable { lateness: 3 * MINUTE, ..Default::default() });
    let mut workers = [world.start("w1", keep_runs).await, world.start("w2", keep_runs).await];
    let names = ["w1", "w2"];
    let mut open: [Option<Work>; 2] = [None, None];
    let mut reached = Reached::default();
    let ends: ByPartition<i64> = [("events".to_string(), world.rows.iter().zip(0..).map(|(r, p)| (p, r.len() as i64)).collect())].into();
    let mut decided: Vec<Data> = vec![];
    for _ in 0..4000 {
        let w = rng.below(2) as usize;
        let done = match rng.below(100) {
            0..45 if open[w].is_none() => {
                if workers[w].head.with(|l| l.positions() == ends).await {
                    break;
                }
                let work = world.work(&workers[w], &mut rng).await;
                work.map(|work| open[w] = Some(work).filter(|d| !d.data.intervals["events"].is_empty()))
            }
            0..65 => match open[w].take() {
                Some(work) => {
                    let data = work.data.clone();
                    let appended = world.append(&workers[w], work).await;
                    appended.map(|done| if done { decided.push(data) } else { reached.stale += 1 })
                }
                None => Ok(()),
            },
            65..85 => {
                let most = rng.below(8);
                workers[w].fold(most).await
            }
            85..94 => match workers[w].tables.commit_all(true).await {
                Ok(()) => workers[w].tables.checkpoint_and_truncate(false).await,
                Err(e) => Err(e),
            },
            94..97 => Err(WorkerError::StartOver("killed".into())),
            _ => Ok(()),
        };
        match done {
            Ok(()) => {}
            Err(WorkerError::StartOver(_) | WorkerError::RunGone(_)) => {
                reached.restarts += 1;
                open[w] = None;
                workers[w] = world.start(names[w], keep_runs).await;
            }
            Err(e) => panic!("seed {seed}: {e}"),
        }
    }
    for data in &decided {
        straight.entry(&world.rows, data);
    }
    assert_eq!(straight.at, ends["events"], "seed {seed}: everything was read");
    let [mut last, other] = workers;
    drop(other);
    if rng.chance(50) || last.head.refresh().await.is_err() {
        last = world.start("w1", keep_runs).await;
    }
    let began = last.head.with(|l| l.next).await;
    let note = Body::Note(Note::EndOfInput { ends });
    assert!(matches!(last.head.append(world.id(), began, note, vec![], 0).await, Ok(Appended::Decided(_))));
    while let Ok(next) = last.tables.parts.entries.try_recv() {
        last.tables.fold(next).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        if rng.chance(20) {
            last.tables.commit_all(true).await.unwrap();
        }
    }
    last.tables.commit_all(true).await.unwrap();
    assert!(last.tables.lake.values().all(|t| t.pending.is_empty()));

    let ledger = last.head.ledger().await;
    let (iceberg, delta) = (TableFormatKind::Iceberg, TableFormatKind::Delta);
    let at = "cast(window_start as bigint) / 1";
    for format in [iceberg, delta] {
        let rows = world.query("sums", format, &ledger, &format!("select {at}, k, s, n from t")).await;
        assert_eq!(rows, groups(&straight.tables["sums"]), "seed {seed} {format}: sums");
        let late = world.query("sums__late", format, &ledger, "select _partition, _offset, k, v from t").await;
        assert_eq!(late, sorted(straight.tables["sums"].late.clone()), "seed {seed} {format}: sums__late");
        let dead = world.query("events__dead", format, &ledger, "select _partition, _offset from t").await;
        assert_eq!(dead, sorted(straight.dead.clone()), "seed {seed} {format}: dead");
    }
    let net = "sum(case _op when 'insert' then 1 else -1 end)";
    let rows = world.query("pairs", delta, &ledger, &format!("select {at}, k, s, n from t group by window_start, k, s, n having {net} = 1")).await;
    assert_eq!(rows, groups(&straight.tables["pairs"]), "seed {seed}: pairs");
    let odd = world.query("pairs", delta, &ledger, &format!("select k from t group by window_start, k, s, n having {net} not in (0, 1)")).await;
    assert_eq!(odd, Vec::<Vec<String>>::new(), "seed {seed}: a retraction without its insertion");
    let late = world.query("pairs__late", delta, &ledger, "select _partition, _offset, k, v from t").await;
    assert_eq!(late, sorted(straight.tables["pairs"].late.clone()), "seed {seed}: pairs__late");
    let plain = world.query("plain", iceberg, &ledger, "select k, v from t").await;
    assert_eq!(plain, sorted(straight.plain.clone()), "seed {seed}: plain");
    reached.late = straight.tables["pairs"].late.len() as u64;
    reached.truncated = ledger.checkpoint.is_some();
    reached.entries = ledger.next;
    reached
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_equal_the_straight_fold_whatever_the_cuts_crashes_and_commits() {
    let cases = (0..4).flat_map(|seed| [true, false].map(|keep_runs| tokio::spawn(one(seed, keep_runs))));
    let cases: Vec<_> = cases.collect();
    let mut all = vec![];
    for case in cases {
        all.push(case.await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic())));
    }
    let sum = |of: fn(&Reached) -> u64| all.iter().map(of).sum::<u64>();
    let reached = [sum(|r| r.stale), sum(|r| r.restarts), sum(|r| r.late), sum(|r| r.truncated as u64)];
    assert!(reached.iter().all(|n| *n > 4), "stale, restarts, late, truncated: {reached:?} in {} entries", sum(|r| r.entries));
}

/// Two workers make a checkpoint at the same time; who wins has merged runs, and removed what they were
/// made of. The other's may not name those, neither this time nor the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_lost_names_no_runs_that_the_winner_removed() {
    let mut rng = Rng(5);
    let world = World::new(&mut rng).await;
    let mut first = world.start("w1", true).await;
    let mut second = world.start("w2", true).await;
    first.tables.parts.cadence = Cadence { trail: 1, every: 2, most_runs: 1, merge_rows: 1 << 16 };
    second.tables.parts.cadence = Cadence { trail: 1, every: 2, most_runs: usize::MAX, merge_rows: 1 << 16 };
    let newest = |l: &Ledger| l.checkpoint.map(|c| c.upto);
    for _ in 0..2 {
        let begin = second.head.with(|l| l.next).await;
        while second.head.with(|l| l.next).await < begin + 8 {
            let work = world.work(&second, &mut rng).await.unwrap();
            if !work.data.intervals["events"].is_empty() {
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
        let work = world.work(worker, rng).await.unwrap();
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
