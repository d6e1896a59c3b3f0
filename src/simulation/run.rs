//! One seed from its first roll to the comparison of every table.

use super::broker::{Row, Slot, Topic, wall};
use super::check;
use super::clocks::{self, LAST};
use super::disk;
use super::file::{File, OTHER, Table, What};
use super::foreign::{self, Rewrite};
use super::marks;
use super::reckoning::MINUTE;
use super::references::Upkeep;
use super::store::pause;
use super::upkeep;
use super::world::{Life, PIPELINE, START_MS, Temper, World};
use crate::epoch::checkpoint::Cadence;
use crate::epoch::protocol_tests::Rng;
use crate::observe::Metrics;
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{Clean, Pipeline, TableFormatKind};
use crate::worker::surroundings::Task;
use crate::worker::{self, RunOptions, WorkerError};
use object_store::path::Path;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

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
    pub commits: u64,
    /// How often a table was read whole.
    pub compared: u64,
    pub truncated: bool,
    /// Puts that a kill cut short.
    pub cut_short: u64,
    pub virtual_ms: i64,
    pub upkeep: BTreeMap<Upkeep, u64>,
    pub clock_steps: u64,
}

/// Rolls how a world behaves.
fn temper(rng: &mut Rng) -> Temper {
    let wild = rng.below(4);
    let lagging = rng.chance(25).then(|| {
        let kind = [TableFormatKind::Iceberg, TableFormatKind::Delta][rng.below(2) as usize];
        let from = rng.below(2000) as i64;
        (kind, from, from + 500 + rng.below(2500) as i64)
    });
    let clean = cleaning(rng);
    let (local, one_host) = (rng.chance(50), rng.chance(50));
    let power_cuts = [0, 30][rng.below(2) as usize];
    let memory = rng.chance(12).then_some(1 << 12);
    let off = |rng: &mut Rng| rng.below(2 * 7_200_000) as i64 - 7_200_000;
    let skew_ms = if rng.chance(30) { [off(rng), off(rng), off(rng)] } else { [0; 3] };
    let clocks_set = rng.chance(12);
    if rng.chance(25) {
        // Whoever is about to decide falls asleep, and the others shorten the log as fast as they can.
        return Temper {
            faults: [0, 10][rng.below(2) as usize],
            naps: 5,
            naps_deciding: 700,
            naps_staging: [5, 700][rng.below(2) as usize],
            life_ms: 0,
            workers: 2 + rng.below(2) as usize,
            lagging: None,
            cadence: Cadence { trail: rng.below(2), every: 1 + rng.below(2), ..Cadence::default() },
            reread_runs: false,
            // And delete what it staged, where they may.
            clean: rng.chance(75).then_some(Clean { after_ms: 0, every_ms: 700 }),
            local,
            one_host,
            power_cuts,
            skew_ms,
            clocks_set,
            memory,
        };
    }
    let naps = [0, 5, 20, 60][rng.below(4) as usize];
    Temper {
        faults: [0, 10, 40, 100][wild as usize],
        naps,
        naps_deciding: naps * 8,
        naps_staging: naps,
        life_ms: [0, 4000, 2000, 1200][rng.below(4) as usize],
        workers: [1, 2, 2, 3][rng.below(4) as usize],
        lagging,
        cadence: Cadence { trail: rng.below(4), every: 2 + rng.below(6), most_runs: [2, 6, 256][rng.below(3) as usize], merge_rows: if naps == 0 { 3 } else { 1 << 16 } },
        reread_runs: rng.chance(50),
        clean,
        local,
        one_host,
        power_cuts,
        skew_ms,
        clocks_set,
        memory,
    }
}

/// In some worlds everybody cleans up all the time.
fn cleaning(rng: &mut Rng) -> Option<Clean> {
    let every_ms = [700, 2000][rng.below(2) as usize];
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
    /// The operator has stopped all workers.
    stopped: AtomicBool,
    stopping: Notify,
}

impl Scene {
    /// Stops all workers, and waits for what they sent.
    async fn stop(&self) {
        self.world.trace.note("hand", "all workers are stopped");
        self.stopped.store(true, Ordering::Relaxed);
        self.stopping.notify_waiters();
        pause(7000).await;
    }

    fn go_on(&self) {
        self.stopped.store(false, Ordering::Relaxed);
    }

    fn give(&self, file: &File) {
        let (mut pipeline, plans) = file.planned();
        pipeline.memory_bytes = self.world.temper.memory.unwrap_or(pipeline.memory_bytes);
        pipeline.clean = self.world.temper.clean.unwrap_or(pipeline.clean);
        *self.file.lock().unwrap() = (pipeline, plans);
    }

    /// Whether an object of a table's folder, or of none, is of a table of the file.
    fn has_folder(&self, object: &str) -> bool {
        let mut parts = object.split('/');
        let (Some("iceberg" | "delta"), Some(PIPELINE), Some(folder)) = (parts.next(), parts.next(), parts.next()) else { return true };
        let pipeline = &self.file.lock().unwrap().0;
        let named = |name: &str, suffix: &str| folder.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest == suffix);
        pipeline.tables.iter().any(|t| named(&t.name, "__late")) || pipeline.sources.iter().any(|s| named(&s.name, "__dead"))
    }

    /// Where the local disk of a worker's host begins.
    fn host(&self, slot: usize) -> std::path::PathBuf {
        if self.world.temper.one_host { self.root.join("host") } else { self.root.join(format!("host-{slot}")) }
    }

    /// Starts a worker. Its future is its life: dropped, it is killed.
    fn live(&self, slot: usize, options: RunOptions, stop: Arc<AtomicBool>) -> impl Future<Output = Result<(), WorkerError>> + Send + 'static {
        let nth = self.lives.fetch_add(1, Ordering::Relaxed);
        let who = format!("w{slot}.{nth}");
        let life = Life { world: self.world.clone(), who, slot, given: Arc::new(AtomicU64::new(slot as u64 * 1_000_000)) };
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
        () = scene.stopping.notified() => None,
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
        pause(world.below(1200)).await;
        while scene.stopped.load(Ordering::Relaxed) {
            pause(100).await;
        }
    }
}

/// What people do to a pipeline and its surroundings while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    LatenessChanges,
    /// Plain tables, and windows with a key, get one more column.
    ColumnAdded,
    /// The tables get another comment and property.
    Remarked,
    /// A table begins, of the rows from here on.
    TableAdded,
    /// A table is taken out of the file, and stays as it is.
    TableRemoved,
    /// A table is taken out of the file, dropped once it has all, and begun anew under its name.
    TableRetaken,
    /// The other source begins, or comes back, with a table of its own.
    SourceAdded,
    /// The other source is taken out of the file, with its tables.
    SourceRemoved,
    /// The file says that windows are emitted in another way: that is refused, and taken back.
    EmitChanges,
    /// Somebody runs `--until-end --final`, and then more rows come.
    EndOfInput,
    PartitionAdded,
    /// The topic is deleted and made again: nothing of it may be counted.
    TopicRecreated,
    /// A table is set back by another hand: it must be refused from then on.
    RolledBack,
    /// A table is dropped, and sometimes an empty one made of its name: refused, until somebody does what the message says.
    Dropped,
    /// Another engine writes a table's rows into one file.
    Compacted,
    /// Another engine appends rows of its own, or writes all into one file and adds them.
    Appended,
    /// Another engine deletes a row.
    Deleted,
    /// Another engine marks rows as deleted, and leaves their file as it is.
    Marked,
    /// Another engine expires all snapshots but the newest.
    Expired,
    /// Another engine writes a checkpoint of a Delta table, and cuts its log below it.
    LogCleaned,
    /// Another engine deletes the files that commits removed from a Delta table.
    Vacuumed,
}

fn happenings(rng: &mut Rng, kept_small: bool) -> Vec<(u64, Happening)> {
    use Happening::*;
    let mut all: Vec<(u64, Happening)> = vec![];
    for (what, percent) in [(LatenessChanges, 35), (EndOfInput, 15), (PartitionAdded, 10), (ColumnAdded, 15), (Remarked, 5), (TableAdded, 10), (TableRemoved, 10), (TableRetaken, 15), (SourceAdded, 8), (SourceRemoved, 8), (EmitChanges, 5)] {
        if rng.chance(percent) {
            all.push((300 + rng.below(2200), what));
        }
    }
    for what in [Compacted, Appended, Deleted, Marked, Expired, LogCleaned, Vacuumed] {
        let percent = match what {
            // What it replaces is ours to delete.
            Compacted if kept_small => 70,
            Compacted | Appended | Expired => 30,
            _ => 20,
        };
        for _ in 0..if rng.chance(percent) { 1 + rng.below(3) } else { 0 } {
            all.push((600 + rng.below(2600), what));
        }
    }
    match rng.below(20) {
        0 => all.push((1800 + rng.below(1700), TopicRecreated)),
        1 => all.push((1800 + rng.below(1700), RolledBack)),
        2 => all.push((1200 + rng.below(2300), Dropped)),
        _ => {}
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Gives everybody another file, and lets a worker propose it. An operator does not change a file again before the
/// log has what it says: a worker that was started with one that the log never had would take the newest back.
async fn change(scene: &Arc<Scene>, before: &mut File, after: File) {
    let world = &scene.world;
    // A lateness, say, that no table of the file has: the log would never hold another plan.
    if after.text() == before.text() || world.doomed.load(Ordering::Relaxed) {
        return;
    }
    for _ in 0..20 {
        if world.decided.lock().unwrap().ledger.is_some() {
            break;
        }
        pause(200).await;
    }
    let Some(known) = Some(world.decided.lock().unwrap().plans()).filter(|n| *n > 0) else { return };
    *before = after;
    scene.give(before);
    world.expect("plan");
    // Said to who was started with the older file.
    world.expect("the columns changed");
    for _ in 0..10 {
        one_life(scene, 7, RunOptions { accept: true, ..RunOptions::default() }, 2500).await;
        if world.decided.lock().unwrap().plans() > known || world.failed().is_some() {
            return;
        }
    }
}

/// Makes way for a table that is to begin anew under the name that it had: nobody may begin it beside what is still in
/// the lake, so that the operator waits until it has all, stops the workers and drops it. `false`: it stays as it is.
async fn retake(scene: &Arc<Scene>, without: &File, with: &File, table: &str) -> bool {
    let world = &scene.world;
    let formats = check::tables(world).into_iter().filter(|(t, _)| t == table || t.strip_suffix("__late") == Some(table)).collect::<Vec<_>>();
    let known = world.decided.lock().unwrap().plans();
    if world.decided.lock().unwrap().lives(table) || known == 0 || !foreign::is_whole(world, &formats).await {
        return false;
    }
    for word in ["was in the pipeline file before", "is still in the lake"] {
        world.expect(word);
    }
    scene.give(with);
    one_life(scene, 7, RunOptions { accept: true, ..RunOptions::default() }, 2500).await;
    if world.decided.lock().unwrap().plans() != known {
        world.fail(format!("table {table} was begun anew beside what it had"));
        return false;
    }
    scene.give(without);
    scene.stop().await;
    foreign::drop_all(world, table, &formats).await;
    true
}

/// A table of the file, and the name of one that would take its place.
fn successor(file: &File, nth: usize) -> Table {
    Table { what: file.tables[nth].what, nth: 1 + file.tables.iter().map(|t| t.nth).max().unwrap_or(1) }
}

async fn happen(scene: Arc<Scene>, mut file: File, all: Vec<(u64, Happening)>) {
    let world = &scene.world;
    for (at, what) in all {
        pause(at.saturating_sub(world.trace.now_ms() as u64)).await;
        world.trace.note("hand", format_args!("{what:?}"));
        let mut other = file.clone();
        let any = world.below(file.tables.len() as u64) as usize;
        match what {
            Happening::LatenessChanges => {
                other.lateness_min = [[0, 3, 10, 20][world.below(4) as usize], [0, 3, 15][world.below(3) as usize]];
                change(&scene, &mut file, other).await;
            }
            Happening::ColumnAdded => {
                other.column_added |= file.tables.iter().any(|t| t.what != What::Pairs);
                change(&scene, &mut file, other).await;
            }
            Happening::Remarked => {
                other.remarks += 1;
                change(&scene, &mut file, other).await;
            }
            Happening::TableAdded => {
                let mut added = successor(&file, any);
                if added.source() == "events" {
                    added.what = [What::Sums, What::Pairs, What::Plain][world.below(3) as usize];
                }
                other.tables.push(added);
                change(&scene, &mut file, other).await;
            }
            Happening::TableRemoved => {
                let gone = other.tables.remove(any);
                // A source without tables is another story.
                if other.tables.iter().any(|t| t.source() == gone.source()) {
                    change(&scene, &mut file, other).await;
                }
            }
            Happening::TableRetaken => {
                let gone = other.tables.remove(any);
                if other.tables.iter().any(|t| t.source() == gone.source()) {
                    let with = file.clone();
                    change(&scene, &mut file, other).await;
                    if retake(&scene, &file, &with, &gone.name()).await {
                        change(&scene, &mut file, with).await;
                        scene.go_on();
                        // Rows for it: those of before are not its own.
                        let begin_us = begin_us(&file) + 15 * MINUTE;
                        produce(world.clone(), vec![gone.source()], 8, begin_us).await;
                    }
                }
            }
            Happening::SourceAdded if file.sources().contains(&OTHER) => {}
            Happening::SourceAdded => {
                let what = [What::Tally, What::Hits][world.below(2) as usize];
                other.tables.push(Table { what, ..successor(&file, any) });
                change(&scene, &mut file, other).await;
            }
            Happening::SourceRemoved => {
                other.tables.retain(|t| t.source() != OTHER);
                change(&scene, &mut file, other).await;
            }
            Happening::EmitChanges => {
                if world.decided.lock().unwrap().ledger.is_none() || file.tables.iter().all(|t| t.is_plain()) {
                    continue;
                }
                other.on_update = !file.on_update;
                scene.give(&other);
                world.expect("its way of emission changes");
                one_life(&scene, 7, RunOptions { accept: true, ..RunOptions::default() }, 2500).await;
                if world.decided.lock().unwrap().emits_on_update() == Some(other.on_update) {
                    world.fail("a plan that changes the way of emission was decided".into());
                }
                scene.give(&file);
            }
            Happening::EndOfInput => one_life(&scene, 8, RunOptions { until_end: true, last: true, ..RunOptions::default() }, 5000).await,
            Happening::PartitionAdded => world.topics(|topics| topics.get_mut("events").expect("it is always there").add_partition()),
            Happening::TopicRecreated => {
                if world.decided.lock().unwrap().ledger.is_none() {
                    continue;
                }
                world.expect("topic");
                // A source that is told to go on where the new topic has nothing refuses by itself.
                world.expect("the log goes on at");
                world.topics(|topics| topics.get_mut("events").expect("it is always there").recreate());
                world.doomed.store(true, Ordering::Relaxed);
            }
            Happening::RolledBack => foreign::roll_back(world).await,
            Happening::Dropped => {
                for word in ["is gone", "was dropped", "was recreated", "has vanished", "has a gap", "did not make", "is not ours", "a copy is not written to", "commits were deleted", "an older copy of it"] {
                    world.expect(word);
                }
                let Some(dropped) = foreign::drop_one(world).await else { continue };
                // Meanwhile they refuse.
                pause(500 + world.below(2000)).await;
                let nth = file.tables.iter().position(|t| t.name() == dropped.table);
                match nth.filter(|_| world.chance(50)) {
                    Some(nth) => {
                        other.tables[nth] = successor(&file, nth);
                        change(&scene, &mut file, other).await;
                    }
                    None => foreign::bring_back(world, dropped).await,
                }
            }
            Happening::Compacted => foreign::write(world, Rewrite::Compact).await,
            Happening::Appended => foreign::write(world, if world.chance(30) { Rewrite::Overwrite } else { Rewrite::Append }).await,
            Happening::Deleted => foreign::write(world, Rewrite::Delete).await,
            Happening::Marked => marks::mark(world).await,
            Happening::LogCleaned => upkeep::clean_log(world).await,
            Happening::Vacuumed => upkeep::vacuum(world).await,
            Happening::Expired => foreign::expire(world).await,
        }
    }
}

/// How far the producer is with a partition.
struct Producing {
    source: &'static str,
    partition: usize,
    at: i64,
    upto: i64,
}

/// The event time that the rows begin with: they lie on both sides of a midnight, where days count one of Berlin.
fn begin_us(file: &File) -> i64 {
    START_MS * 1000 - if file.zoned { 68 * MINUTE } else { 0 }
}

/// Time goes on, with stragglers of all ages and rows from a clock that is wrong; transactions are
/// committed and aborted.
async fn produce(world: Arc<World>, sources: Vec<&'static str>, rows: i64, begin_us: i64) {
    let mut left: Vec<Producing> = vec![];
    for source in sources {
        let partitions = world.topics(|topics| topics[source].partitions.len());
        let upto = if source == OTHER { rows / 2 } else { rows };
        left.extend((0..partitions).map(|partition| Producing { source, partition, at: 0, upto }));
    }
    let mut known = world.topics(|topics| topics["events"].partitions.len());
    let mut id = 0;
    while !left.is_empty() {
        pause(world.below(300)).await;
        let there = world.topics(|topics| topics["events"].partitions.len());
        if there > known && world.chance(50) {
            // One that was added later: its rows are not older than the others'.
            left.push(Producing { source: "events", partition: known, at: rows / 2, upto: rows });
            known = there;
        }
        let nth = world.below(left.len() as u64) as usize;
        let &Producing { source, partition: p, mut at, upto } = &left[nth];
        let aborted = world.chance(8);
        let now = wall(&world);
        for _ in 0..1 + world.below(4) {
            let behind = if world.chance(20) { world.below(25) as i64 } else { world.below(3) as i64 };
            let mut at_us = begin_us + (at * 60 + p as i64 * 100) * 1_000_000 - behind * MINUTE;
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
            world.topics(|topics| topics.get_mut(source).expect("it is a source").append(p, slot, world.trace.now_ms()));
        }
        left[nth].at = at;
        if at >= upto {
            left.swap_remove(nth);
        }
        let mut topics = world.broker.topics.lock().unwrap();
        let topic = topics.get_mut(source).expect("it is a source");
        if aborted || world.chance(10) {
            topic.append(p, Slot::Gap, world.trace.now_ms());
        }
        if world.chance(4) {
            topic.open(p, world.trace.now_ms() + world.below(2000) as i64);
        }
        if world.chance(3) {
            topic.stall(p, world.trace.now_ms() + world.below(2000) as i64);
        }
        // What the log has may be removed.
        if world.chance(10)
            && let Some(ledger) = &world.decided.lock().unwrap().ledger
        {
            for (partition, state) in ledger.sources.get(source).map(|s| &s.partitions).into_iter().flatten() {
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
        let all = happenings(&mut rng, file.kept_small.is_some());
        let (partitions, rows) = (1 + rng.below(3), 10 + rng.below(14) as i64);
        let world = World::new(seed, rng, temper);
        if world.temper.local {
            world.lies_in(&dir.path().join("lake")).expect("a folder for the lake");
        }
        world.trace.note("world", format_args!("{:?}", world.temper));
        world.trace.note("world", format_args!("{all:?}"));
        world.trace.note("world", format_args!("{file:?}, {partitions} partitions of {rows} rows and more"));
        let mut sources = file.sources();
        if all.iter().any(|(_, what)| *what == Happening::SourceAdded) && !sources.contains(&OTHER) {
            sources.push(OTHER);
        }
        for source in &sources {
            let partitions = if *source == OTHER { 1 + world.below(2) } else { partitions };
            world.topics(|topics| topics.insert(source.to_string(), Topic::new(partitions)));
        }
        let listening = world.clone();
        crate::mutant::listen(Some(Box::new(move |attempt, entry| listening.told(attempt, entry))));
        let scene = Arc::new(Scene { world: world.clone(), file: Mutex::new(file.planned()), lives: AtomicU64::new(0), root: dir.path().to_path_buf(), stopped: AtomicBool::new(false), stopping: Notify::new() });
        scene.give(&file);
        scenario(&scene, file, sources, rows, all).await;
        crate::mutant::listen(None);
        let decided = world.decided.lock().unwrap();
        let reckoned = decided.reckoned.last().cloned().unwrap_or_default();
        Outcome {
            seed,
            failure: world.failed(),
            trace: world.trace.text(),
            entries: decided.entries.len() as u64,
            strays: decided.strays,
            late: reckoned.late,
            rows: reckoned.positions().values().sum::<i64>() as u64,
            lives: scene.lives.load(Ordering::Relaxed),
            commits: world.commits.load(Ordering::Relaxed),
            compared: world.compared.load(Ordering::Relaxed),
            truncated: decided.ledger.as_ref().is_some_and(|l| l.checkpoint.is_some()),
            cut_short: world.cut_short.load(Ordering::Relaxed),
            virtual_ms: world.trace.now_ms(),
            upkeep: world.upkeep.lock().unwrap().clone(),
            clock_steps: world.clock_steps.load(Ordering::Relaxed),
        }
    })
}

async fn scenario(scene: &Arc<Scene>, file: File, sources: Vec<&'static str>, rows: i64, all: Vec<(u64, Happening)>) {
    let world = &scene.world;
    let hosts: Vec<_> = (0..world.temper.workers).map(|slot| Task(tokio::spawn(host(scene.clone(), slot)))).collect();
    let producer = Task(tokio::spawn(produce(world.clone(), sources, rows, begin_us(&file))));
    let hand = Task(tokio::spawn(happen(scene.clone(), file, all)));
    let clocks = Task(tokio::spawn(clocks::meddle(world.clone())));
    while !(producer.0.is_finished() && hand.0.is_finished()) && world.failed().is_none() {
        pause(50).await;
    }
    // Let them work on what there is, or not.
    let more = world.below(1500);
    for _ in 0..more / 100 {
        if world.failed().is_some() {
            return;
        }
        pause(100).await;
    }
    world.calm.store(true, Ordering::Relaxed);
    world.trace.note("world", "calm: everybody is killed, and one worker brings everything to its end");
    drop((hosts, producer, hand));
    world.topics(|topics| topics.values_mut().for_each(Topic::calm));
    pause(1).await;
    finish(scene, clocks).await;
}

/// One more worker, in a world where all goes well: nobody may starve, and everything must be right.
async fn finish(scene: &Arc<Scene>, clocks: Task<()>) {
    let world = &scene.world;
    let doomed = world.doomed.load(Ordering::Relaxed);
    let options = RunOptions { until_end: true, last: true, reread_runs: false, deadline: Duration::from_secs(1), accept: world.expects("plan") };
    let mut life = Task(tokio::spawn(scene.live(LAST, options, Arc::default())));
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
        let read: Vec<String> = scene.file.lock().unwrap().0.sources.iter().map(|s| s.name.clone()).collect();
        let ends: BTreeMap<(String, i32), i64> =
            world.topics(|topics| topics.iter().filter(|(name, _)| read.contains(*name)).flat_map(|(name, t)| t.partitions.iter().zip(0..).map(|(p, n)| ((name.clone(), n), p.written()))).collect());
        let mut positions = world.decided.lock().unwrap().reckoned.last().map(|r| r.positions()).unwrap_or_default();
        positions.retain(|(source, _), _| read.contains(source));
        // A partition that was added and got no row need not be known.
        ends.keys().for_each(|p| _ = positions.entry(p.clone()).or_default());
        if positions != ends {
            return world.fail(format!("the log stands at {positions:?}, the broker ends at {ends:?}"));
        }
    }
    for (table, kind) in check::tables(world) {
        let stamp = world.compare(&table, kind).await;
        if stamp.is_some() && !doomed && world.waits(&table, stamp) {
            world.fail(format!("{kind} table {table} stopped at entry {stamp:?}"));
        }
        if stamp.is_none() && !doomed && world.decided.lock().unwrap().lives(&table) {
            world.fail(format!("{kind} table {table} is not there"));
        }
    }
    if let Some(clean) = world.temper.clean.filter(|_| !doomed && world.seed % 4 == 0 && world.failed().is_none()) {
        // A cleaner whose clock stays behind would wait for as long.
        drop(clocks);
        world.clocks.set(LAST, world.trace.now_ms(), 0);
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
        one_life(scene, LAST, RunOptions { until_end: true, ..RunOptions::default() }, 600_000).await;
        left = world.orphans(began);
        // What is no longer in the file stays in the lake as it is.
        left.retain(|at| scene.has_folder(at.as_ref()));
        left.extend(world.lake().and_then(|lake| lake.left(began).ok()).into_iter().flatten().map(Path::from));
        if left.is_empty() || world.failed().is_some() {
            return;
        }
    }
    let left: Vec<&str> = left.iter().map(|at| at.as_ref()).collect();
    world.fail(format!("what belongs to nobody stays:\n    {}", left.join("\n    ")));
}
