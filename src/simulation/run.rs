//! One seed from its first roll to the comparison of every table.

use super::broker::{Partition, Row, Slot, wall};
use super::check;
use super::disk;
use super::foreign;
use super::reckoning::{MINUTE, Reckoning};
use super::store::pause;
use super::world::{Life, PIPELINE, START_MS, Temper, World};
use crate::epoch::checkpoint::Cadence;
use crate::epoch::protocol_tests::Rng;
use crate::epoch::tests::loaded;
use crate::observe::Metrics;
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{Clean, Pipeline, TableFormatKind};
use crate::worker::surroundings::Task;
use crate::worker::{self, RunOptions, WorkerError};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// What a seed led to.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    pub seed: u64,
    pub failure: Option<String>,
    pub trace: String,
    pub entries: u64,
    pub strays: u64,
    pub late: u64,
    pub rows: u64,
    pub lives: u64,
    pub truncated: bool,
    pub virtual_ms: i64,
}

/// The pipeline file of a seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct File {
    /// Tables by their number: 0 `sums`, 1 `pairs`, 2 `plain`.
    tables: Vec<u64>,
    formats: &'static str,
    lateness_min: [u64; 2],
    on_update: bool,
    idle: bool,
}

impl File {
    fn roll(rng: &mut Rng) -> Self {
        let tables = [vec![0], vec![1], vec![0, 2], vec![0, 1], vec![0], vec![0, 1, 2]][rng.below(6) as usize].clone();
        let formats = ["iceberg", "delta", "iceberg, delta"][rng.below(3) as usize];
        Self { tables, formats, lateness_min: [[0, 3, 10][rng.below(3) as usize], [0, 3][rng.below(2) as usize]], on_update: rng.chance(25), idle: rng.chance(50) }
    }

    fn text(&self) -> String {
        let idle = if self.idle { "300ms" } else { "never" };
        let mut text = format!(
            "pipeline: {PIPELINE}\nsources:\n  events:\n    kafka: {{brokers: \"nowhere:1\", topic: events, start: earliest}}\n    format: json\n    \
             columns: {{id: int64, k: string, at: timestamp, v: int64}}\n    watermark: {{column: at, delay: 1m, idle_after: {idle}, max_ahead: 6h}}\ntables:\n"
        );
        let windowed = "select window_start, k, sum(v) as s, count(*) as n from tumble(events, interval '5 minutes') where v > 0 group by window_start, k";
        let emit = if self.on_update { "on_update" } else { "on_close" };
        for table in &self.tables {
            let _ = match table {
                0 => write!(text, "  sums:\n    sql: {windowed}\n    key: [window_start, k]\n    allowed_lateness: {}m\n    emit: {emit}\n", self.lateness_min[0]),
                1 => write!(text, "  pairs:\n    sql: {windowed}\n    allowed_lateness: {}m\n    emit: {emit}\n", self.lateness_min[1]),
                _ => write!(text, "  plain:\n    sql: select id, k, v from events\n"),
            };
            let _ = writeln!(text, "    formats: [{}]", self.formats);
        }
        text + "lake: {root: ./lake}\nepoch: {every: 200ms}\ncommit: {every: 600ms}\n"
    }

    /// Planned once: planning SQL costs more than a seed may.
    fn planned(&self) -> (Pipeline, Vec<Arc<TablePlan>>) {
        type Known = Mutex<BTreeMap<File, (Pipeline, Vec<Arc<TablePlan>>)>>;
        static KNOWN: OnceLock<Known> = OnceLock::new();
        let mut known = KNOWN.get_or_init(Known::default).lock().unwrap_or_else(|e| e.into_inner());
        known.entry(self.clone()).or_insert_with(|| loaded(&self.text())).clone()
    }
}

/// Rolls how a world behaves.
fn temper(rng: &mut Rng) -> Temper {
    let wild = rng.below(4);
    let lagging = rng.chance(25).then(|| {
        let kind = [TableFormatKind::Iceberg, TableFormatKind::Delta][rng.below(2) as usize];
        let from = rng.below(3000) as i64;
        (kind, from, from + 500 + rng.below(4000) as i64)
    });
    let clean = cleaning(rng);
    let one_host = rng.chance(50);
    let power_cuts = [0, 30][rng.below(2) as usize];
    let memory = rng.chance(12).then_some(1 << 12);
    let off = |rng: &mut Rng| rng.below(2 * 7_200_000) as i64 - 7_200_000;
    let skew_ms = if rng.chance(30) { [off(rng), off(rng), off(rng)] } else { [0; 3] };
    if rng.chance(25) {
        // Whoever is about to decide falls asleep, and the others shorten the log as fast as they can.
        return Temper {
            faults: [0, 10][rng.below(2) as usize],
            naps: 5,
            naps_deciding: [700, 0][rng.below(2) as usize],
            naps_staging: [5, 700][rng.below(2) as usize],
            life_ms: 0,
            workers: 2 + rng.below(2) as usize,
            lagging: None,
            cadence: Cadence { trail: rng.below(2), every: 1 + rng.below(2), most_runs: 256 },
            reread_runs: false,
            clean,
            one_host,
            power_cuts,
            skew_ms,
            memory,
        };
    }
    let naps = [0, 5, 20, 60][rng.below(4) as usize];
    Temper {
        faults: [0, 10, 40, 100][wild as usize],
        naps,
        naps_deciding: naps * 8,
        naps_staging: naps,
        life_ms: [0, 4000, 2000, 1000][rng.below(4) as usize],
        workers: [1, 2, 2, 3][rng.below(4) as usize],
        lagging,
        cadence: Cadence { trail: rng.below(4), every: 2 + rng.below(6), most_runs: [2, 6, 256][rng.below(3) as usize] },
        reread_runs: rng.chance(50),
        clean,
        one_host,
        power_cuts,
        skew_ms,
        memory,
    }
}

/// In some worlds everybody cleans up all the time.
fn cleaning(rng: &mut Rng) -> Option<Clean> {
    let every_ms = [500, 1500][rng.below(2) as usize];
    rng.chance(40).then(|| Clean { after_ms: [0, 0, 300, 2000][rng.below(4) as usize], every_ms })
}

/// Everything that the lives of a seed share.
struct Scene {
    world: Arc<World>,
    /// The file that whoever starts now is given.
    file: Mutex<(Pipeline, Vec<Arc<TablePlan>>)>,
    lives: AtomicU64,
    /// The local disks of all hosts.
    root: std::path::PathBuf,
}

impl Scene {
    fn give(&self, file: &File) {
        let (mut pipeline, plans) = file.planned();
        pipeline.memory_bytes = self.world.temper.memory.unwrap_or(pipeline.memory_bytes);
        pipeline.clean = self.world.temper.clean.unwrap_or(pipeline.clean);
        *self.file.lock().unwrap() = (pipeline, plans);
    }

    /// Where the local disk of a worker's host begins.
    fn host(&self, slot: usize) -> std::path::PathBuf {
        if self.world.temper.one_host { self.root.join("host") } else { self.root.join(format!("host-{slot}")) }
    }

    /// Starts a worker. Its future is its life: dropped, it is killed.
    fn live(&self, slot: usize, options: RunOptions, stop: Arc<AtomicBool>) -> impl Future<Output = Result<(), WorkerError>> + Send + 'static {
        let nth = self.lives.fetch_add(1, Ordering::Relaxed);
        let who = format!("w{slot}.{nth}");
        let life = Life { world: self.world.clone(), who, skew_ms: self.world.skew_ms(slot), given: Arc::new(AtomicU64::new(slot as u64 * 1_000_000)) };
        let (mut pipeline, plans) = self.file.lock().unwrap().clone();
        pipeline.lake.root = self.host(slot);
        worker::run(Arc::new(pipeline), plans, options, Arc::new(Metrics::default()), Arc::new(life), stop)
    }
}

/// One life, of at most this long. Whatever it ends with must be something that may happen.
async fn one_life(scene: &Arc<Scene>, slot: usize, mut options: RunOptions, time_ms: u64) {
    let world = &scene.world;
    options.reread_runs = world.temper.reread_runs;
    options.deadline = Duration::from_millis(500);
    let stop = Arc::new(AtomicBool::new(false));
    let mut life = Task(tokio::spawn(scene.live(slot, options, stop.clone())));
    let ended = tokio::select! {
        biased;
        ended = &mut life.0 => Some(ended),
        () = pause(time_ms) => None,
    };
    let note = |what: String| world.trace.note("host", format_args!("worker {slot} {what}"));
    match ended {
        None if world.chance(25) => {
            note("is asked to stop".into());
            stop.store(true, Ordering::Relaxed);
            tokio::select! {
                biased;
                _ = &mut life.0 => {}
                () = pause(2000) => {}
            }
        }
        None => {
            note("is killed".into());
            if !world.temper.one_host && world.chance(world.temper.power_cuts) {
                life.0.abort();
                let _ = (&mut life.0).await;
                // Its tasks end with it.
                pause(1).await;
                disk::tear(world, &scene.host(slot)).unwrap_or_else(|e| world.fail(format!("the simulated disk of worker {slot}: {e}")));
            }
        }
        Some(Ok(Ok(()))) if options.until_end => note("has reached the end".into()),
        Some(Ok(Ok(()))) => world.fail(format!("worker {slot} ended without being asked to")),
        Some(Ok(Err(WorkerError::Unavailable(why)))) => note(format!("gives up: {why}")),
        Some(Ok(Err(WorkerError::Refused(why)))) if world.expects(&why) => note(format!("refuses: {why}")),
        Some(Ok(Err(why))) => world.fail(format!("worker {slot} ended: {why}")),
        Some(Err(e)) => world.fail(format!("worker {slot} panicked: {e}")),
    }
}

/// Lives of one worker, one after the other.
async fn host(scene: Arc<Scene>, slot: usize) {
    let world = &scene.world;
    loop {
        let time = if world.temper.life_ms == 0 { 3_600_000 } else { 100 + world.below(world.temper.life_ms * 2) };
        one_life(&scene, slot, RunOptions::default(), time).await;
        pause(world.below(700)).await;
    }
}

/// What people do to a pipeline and its surroundings while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    LatenessChanges,
    /// Somebody runs `--until-end --final`, and then more rows come.
    EndOfInput,
    PartitionAdded,
    /// The topic is deleted and made again: nothing of it may be counted.
    TopicRecreated,
    /// A table is set back by another hand: it must be refused from then on.
    RolledBack,
    /// Another engine writes a table's rows into one file.
    Compacted,
    /// Another engine appends rows of its own, or writes all into one file and adds them.
    Appended,
    /// Another engine expires all snapshots but the newest.
    Expired,
}

fn happenings(rng: &mut Rng) -> Vec<(u64, Happening)> {
    use Happening::*;
    let mut all: Vec<(u64, Happening)> = vec![];
    for (what, percent) in [(LatenessChanges, 35), (EndOfInput, 15), (PartitionAdded, 10)] {
        if rng.chance(percent) {
            all.push((500 + rng.below(4000), what));
        }
    }
    for what in [Compacted, Appended, Expired] {
        for _ in 0..if rng.chance(30) { 1 + rng.below(3) } else { 0 } {
            all.push((1000 + rng.below(5000), what));
        }
    }
    match rng.below(20) {
        0 => all.push((2500 + rng.below(2500), TopicRecreated)),
        1 => all.push((2500 + rng.below(2500), RolledBack)),
        _ => {}
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

async fn happen(scene: Arc<Scene>, mut file: File, all: Vec<(u64, Happening)>) {
    let world = &scene.world;
    for (at, what) in all {
        pause(at.saturating_sub(world.trace.now_ms() as u64)).await;
        world.trace.note("hand", format_args!("{what:?}"));
        match what {
            Happening::LatenessChanges => {
                file.lateness_min = [[0, 3, 10, 20][world.below(4) as usize], [0, 3, 15][world.below(3) as usize]];
                scene.give(&file);
                world.expect("plan");
                one_life(&scene, 7, RunOptions { accept: true, ..RunOptions::default() }, 2500).await;
            }
            Happening::EndOfInput => one_life(&scene, 8, RunOptions { until_end: true, last: true, ..RunOptions::default() }, 5000).await,
            Happening::PartitionAdded => world.broker.topic.lock().unwrap().add_partition(),
            Happening::TopicRecreated => {
                if world.decided.lock().unwrap().ledger.is_none() {
                    continue;
                }
                world.expect("topic");
                // A source that is told to go on where the new topic has nothing refuses by itself.
                world.expect("the log goes on at");
                world.broker.topic.lock().unwrap().recreate();
                world.doomed.store(true, Ordering::Relaxed);
            }
            Happening::RolledBack => foreign::roll_back(world).await,
            Happening::Compacted => foreign::write(world, true, false).await,
            Happening::Appended => foreign::write(world, world.chance(30), true).await,
            Happening::Expired => foreign::expire(world).await,
        }
    }
}

/// Time goes on, with stragglers of all ages and rows from a clock that is wrong; transactions are
/// committed and aborted.
async fn produce(world: Arc<World>, rows: i64) {
    let mut left: Vec<(usize, i64)> = (0..world.broker.topic.lock().unwrap().partitions.len()).map(|p| (p, 0)).collect();
    let mut known = left.len();
    let mut id = 0;
    while !left.is_empty() {
        pause(world.below(300)).await;
        let there = world.broker.topic.lock().unwrap().partitions.len();
        if there > known && world.chance(50) {
            // One that was added later: its rows are not older than the others'.
            left.push((known, rows / 2));
            known = there;
        }
        let nth = world.below(left.len() as u64) as usize;
        let (p, mut at) = left[nth];
        let aborted = world.chance(8);
        let now = wall(&world);
        for _ in 0..1 + world.below(4) {
            let behind = if world.chance(20) { world.below(25) as i64 } else { world.below(3) as i64 };
            let mut at_us = START_MS * 1000 + (at * 60 + p as i64 * 100) * 1_000_000 - behind * MINUTE;
            let mut timestamp_ms = now;
            match world.below(40) {
                0 => at_us += 100 * 60 * MINUTE,
                1 => timestamp_ms += 200 * 3_600_000,
                2 => timestamp_ms -= 20 * 3_600_000,
                _ => {}
            }
            at += 1;
            id += 1;
            let row = Row { id, key: ["a", "b", "c"][world.below(3) as usize], at_us, value: world.below(20) as i64 - 1 };
            let slot = match (aborted, world.chance(4)) {
                (true, _) => Slot::Gap,
                (false, true) => Slot::Record { row: None, timestamp_ms },
                (false, false) => Slot::Record { row: Some(row), timestamp_ms },
            };
            world.broker.topic.lock().unwrap().append(p, slot, world.trace.now_ms());
        }
        let mut topic = world.broker.topic.lock().unwrap();
        if aborted || world.chance(10) {
            topic.append(p, Slot::Gap, world.trace.now_ms());
        }
        if world.chance(4) {
            topic.open(p, world.trace.now_ms() + world.below(2000) as i64);
        }
        if world.chance(3) {
            topic.stall(p, world.trace.now_ms() + world.below(2000) as i64);
        }
        left[nth].1 = at;
        if at >= rows {
            left.swap_remove(nth);
        }
        // What the log has may be removed.
        if world.chance(10)
            && let Some(ledger) = &world.decided.lock().unwrap().ledger
        {
            for (partition, state) in ledger.sources.get("events").map(|s| &s.partitions).into_iter().flatten() {
                let held = &mut topic.partitions[*partition as usize];
                held.begin = held.begin.max(state.offset.min(held.written()));
            }
        }
    }
}

/// Runs a seed to its end, or to the first thing that is wrong.
pub fn run_seed(seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime needs nothing");
    let shm = std::path::Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a folder for key indexes");
    runtime.block_on(async {
        let mut rng = Rng(seed);
        let (temper, file) = (temper(&mut rng), File::roll(&mut rng));
        let all = happenings(&mut rng);
        let (partitions, rows) = (1 + rng.below(3), 12 + rng.below(24) as i64);
        let world = World::new(seed, rng, temper);
        world.trace.note("world", format_args!("{:?}", world.temper));
        world.trace.note("world", format_args!("{all:?}"));
        world.trace.note("world", format_args!("{file:?}, {partitions} partitions of {rows} rows and more"));
        world.broker.topic.lock().unwrap().partitions = (0..partitions).map(|_| Partition::default()).collect();
        let listening = world.clone();
        crate::mutant::listen(Some(Box::new(move |attempt, entry| listening.told(attempt, entry))));
        let scene = Arc::new(Scene { world: world.clone(), file: Mutex::new(file.planned()), lives: AtomicU64::new(0), root: dir.path().to_path_buf() });
        scene.give(&file);
        scenario(&scene, file, rows, all).await;
        crate::mutant::listen(None);
        let decided = world.decided.lock().unwrap();
        let reckoned = Reckoning::of(&world.broker.topic.lock().unwrap(), decided.entries.iter());
        Outcome {
            seed,
            failure: world.failed(),
            trace: world.trace.text(),
            entries: decided.entries.len() as u64,
            strays: decided.strays,
            late: reckoned.late,
            rows: reckoned.positions().values().sum::<i64>() as u64,
            lives: scene.lives.load(Ordering::Relaxed),
            truncated: decided.ledger.as_ref().is_some_and(|l| l.checkpoint.is_some()),
            virtual_ms: world.trace.now_ms(),
        }
    })
}

async fn scenario(scene: &Arc<Scene>, file: File, rows: i64, all: Vec<(u64, Happening)>) {
    let world = &scene.world;
    let hosts: Vec<_> = (0..world.temper.workers).map(|slot| Task(tokio::spawn(host(scene.clone(), slot)))).collect();
    let producer = Task(tokio::spawn(produce(world.clone(), rows)));
    let hand = Task(tokio::spawn(happen(scene.clone(), file, all)));
    while !(producer.0.is_finished() && hand.0.is_finished()) && world.failed().is_none() {
        pause(50).await;
    }
    // Let them work on what there is, or not.
    let more = world.below(3000);
    for _ in 0..more / 100 {
        if world.failed().is_some() {
            return;
        }
        pause(100).await;
    }
    world.calm.store(true, Ordering::Relaxed);
    world.trace.note("world", "calm: everybody is killed, and one worker brings everything to its end");
    drop((hosts, producer, hand));
    world.broker.topic.lock().unwrap().calm();
    pause(1).await;
    finish(scene).await;
}

/// One more worker, in a world where all goes well: nobody may starve, and everything must be right.
async fn finish(scene: &Arc<Scene>) {
    let world = &scene.world;
    let doomed = world.doomed.load(Ordering::Relaxed);
    let options = RunOptions { until_end: true, last: true, reread_runs: false, deadline: Duration::from_secs(1), accept: world.expects("plan") };
    let mut life = Task(tokio::spawn(scene.live(9, options, Arc::default())));
    let ended = tokio::select! {
        biased;
        ended = &mut life.0 => ended,
        () = pause(600_000) => return world.fail("the last worker did not come to its end in ten minutes".into()),
    };
    match ended {
        Ok(Ok(())) if doomed => world.fail("the last worker went on as if nothing had happened".into()),
        Ok(Ok(())) => {}
        Ok(Err(WorkerError::Refused(why))) if doomed && world.expects(&why) => {}
        Ok(Err(e)) => return world.fail(format!("the last worker ended: {e}")),
        Err(e) => return world.fail(format!("the last worker panicked: {e}")),
    }
    if !doomed {
        let ends: BTreeMap<i32, i64> = world.broker.topic.lock().unwrap().partitions.iter().zip(0..).map(|(p, n)| (n, p.written())).collect();
        let mut positions = {
            let decided = world.decided.lock().unwrap();
            Reckoning::of(&world.broker.topic.lock().unwrap(), decided.entries.iter()).positions().clone()
        };
        // A partition that was added and got no row need not be known.
        ends.keys().for_each(|p| _ = positions.entry(*p).or_default());
        if positions != ends {
            return world.fail(format!("the log stands at {positions:?}, the broker ends at {ends:?}"));
        }
    }
    for (table, kind) in check::tables(world) {
        let stamp = world.compare(&table, kind).await;
        if stamp.is_some() && !doomed && world.waits(&table, kind, stamp) {
            world.fail(format!("{kind} table {table} stopped at entry {stamp:?}"));
        }
    }
    if let Some(clean) = world.temper.clean.filter(|_| !doomed && world.seed % 4 == 0 && world.failed().is_none()) {
        nothing_leaks(scene, clean.after_ms).await;
    }
}

/// What belongs to nobody goes away in the end: workers start, clean up, and end.
async fn nothing_leaks(scene: &Arc<Scene>, after_ms: u64) {
    let world = &scene.world;
    // Whatever is still under way lands.
    pause(10_000).await;
    let mut left = vec![];
    for _ in 0..4 {
        let began = wall(world);
        pause(after_ms + 1).await;
        one_life(scene, 9, RunOptions { until_end: true, ..RunOptions::default() }, 600_000).await;
        left = world.orphans(began);
        if left.is_empty() || world.failed().is_some() {
            return;
        }
    }
    let left: Vec<&str> = left.iter().map(|at| at.as_ref()).collect();
    world.fail(format!("what belongs to nobody stays:\n    {}", left.join("\n    ")));
}
