//! The only place that spawns tasks and threads and wires the stages.
//!
//! Stopping goes with the flow: the sources first, then the lanes and the log, the committer last.

mod clean;
#[cfg(test)]
mod faulty_store_tests;
pub mod head;
pub mod ingest;
pub mod known_source;
pub mod lane;
mod merge;
pub mod progress;
pub mod receipt;
pub mod scratch;
pub mod sources;
pub mod surroundings;
pub mod tables;

use crate::commit::{self, CommitError, Formats};
use crate::commit::iceberg::{Ambient, SqliteCatalog};
use crate::console::note;
use crate::epoch::entry::{Body, ByPartition, Entry, Plan, SpecRecord, VERSION};
use crate::epoch::log::{Log, LogError, Reading};
use crate::epoch::plan::{self, Fit, Given, PlanError};
use crate::maintain::orphans::Cleaner;
use crate::observe::Metrics;
use crate::pipeline::sql::TablePlan;
use crate::runtime::in_place;
use crate::pipeline::{Backlog, Pipeline, TableFormatKind};
use crate::source::{Source, SourceError, SourceFacts};
use crate::stage::names;
use crate::store::local::DurableLocal;
use crate::store::probe::{self, ProbeError};
use clean::Cleaning;
use head::{Head, HeadError};
use ingest::Ingest;
use lane::{Lane, SourceLayout, TableLayout};
use receipt::Receipts;
use object_store::ObjectStore;
use object_store::path::Path;
use scratch::Scratch;
use sources::SourceThread;
use surroundings::{Hosted, Surroundings, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tables::{Parts, Tables};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// What the table half asks of the ingest half.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Rows and entries that wait for the tables fill memory: nothing more is to be decided meanwhile.
    pub behind: AtomicBool,
    /// Bytes of staged files that the table half has taken and not every format holds.
    pub staged: AtomicU64,
    /// Since when the oldest of what waits has waited.
    pub oldest: Mutex<Option<Instant>>,
    /// Open windows take much memory: partitions that are ahead of others wait for them.
    pub memory: AtomicBool,
}

impl Pressure {
    /// Nothing more is to be decided until a commit. `unseen`: bytes of staged files that are decided and that the table
    /// half has not taken yet; it may be held up by a commit, and tells nothing meanwhile.
    pub fn holds_up(&self, unseen: u64, limit: &Backlog) -> bool {
        let oldest = *self.oldest.lock().unwrap_or_else(|e| e.into_inner());
        self.behind.load(Ordering::Relaxed)
            || self.staged.load(Ordering::Relaxed) + unseen > limit.bytes
            || oldest.is_some_and(|since| since.elapsed() > Duration::from_secs(limit.hours * 3600))
    }
}

/// The wall clock, injected.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> i64;
}

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Going on would lose or double rows, or the pipeline file cannot be. The text names the choices.
    #[error("{0}")]
    Refused(String),
    /// The pipeline file asks for what no table can be.
    #[error("{0}")]
    Misdeclared(String),
    /// Something that is needed to start is away.
    #[error("{0}")]
    Unavailable(String),
    /// The log went on without this worker: it begins again from the log.
    #[error("{0}")]
    StartOver(String),
    /// A run that the log named when it was last read: truncated since then, or lost.
    #[error("run {0} is gone: the log may have been truncated meanwhile")]
    RunGone(String),
    #[error("stopped")]
    Stopped,
    #[error("{0}")]
    Internal(String),
}

impl From<HeadError> for WorkerError {
    fn from(e: HeadError) -> Self {
        match e {
            HeadError::StartOver | HeadError::Log(LogError::LeftBehind { .. }) => Self::StartOver(e.to_string()),
            HeadError::Log(LogError::Unavailable(_)) => Self::Unavailable(e.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl From<LogError> for WorkerError {
    fn from(e: LogError) -> Self {
        HeadError::Log(e).into()
    }
}

impl From<SourceError> for WorkerError {
    fn from(e: SourceError) -> Self {
        match e {
            SourceError::Refused(why) => Self::Refused(why),
            SourceError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl From<ProbeError> for WorkerError {
    fn from(e: ProbeError) -> Self {
        match e {
            ProbeError::Unavailable(why) => Self::Unavailable(why),
            ProbeError::Broken(why) => Self::Refused(why),
        }
    }
}

impl From<PlanError> for WorkerError {
    fn from(e: PlanError) -> Self {
        Self::Refused(e.to_string())
    }
}

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// End when the log has reached the ends that the partitions have at the start.
    pub until_end: bool,
    /// Then emit every open window.
    pub last: bool,
    /// Read own runs back from the store instead of handing them over in memory.
    pub reread_runs: bool,
    /// How long stopping may take to bring the tables up to the log.
    pub deadline: Duration,
    /// The user means to go back to an older plan, or to give the name of a table that ended to a new one.
    pub accept: bool,
}

/// Where everything of a pipeline lies, opened.
pub struct Place {
    pub store: Arc<dyn ObjectStore>,
    pub log: Log,
    /// `_millpond/<pipeline>`, relative to the lake's root.
    pub state_folder: String,
    pub formats: Formats,
    /// The store, where it is a local disk.
    pub local: Option<Arc<DurableLocal>>,
}

impl Place {
    /// Opens the lake's root (and makes it) and the catalog.
    pub async fn open(pipeline: &Pipeline, clock: &Arc<dyn Clock>) -> Result<Self, WorkerError> {
        let root = &pipeline.lake.root;
        let local = DurableLocal::open(root).map_err(|e| WorkerError::Unavailable(format!("cannot open lake.root {}: {e}; check the path, its permissions and free space", root.display())))?;
        let root = local.root().to_path_buf();
        let local = Arc::new(local);
        let place = Self::over(local.clone(), &root, pipeline, clock).await?;
        Ok(Self { local: Some(local), ..place })
    }

    /// The same over a store of this folder that is open already.
    async fn over(store: Arc<dyn ObjectStore>, root: &std::path::Path, pipeline: &Pipeline, clock: &Arc<dyn Clock>) -> Result<Self, WorkerError> {
        let url = url::Url::from_directory_path(root).map_err(|()| WorkerError::Refused(format!("lake.root {} is no absolute path", root.display())))?;
        let state_folder = names::state_folder(&pipeline.name);
        let log = Log::new(store.clone(), Path::from(format!("{state_folder}/log")));
        let catalog = SqliteCatalog::open(&pipeline.lake.iceberg_catalog, &pipeline.lake.catalog_name)
            .await
            .map_err(|e| WorkerError::Unavailable(e.to_string()))?;
        let now: Arc<dyn Fn() -> i64 + Send + Sync> = Arc::new({
            let clock = clock.clone();
            move || clock.now_ms()
        });
        let ids: Arc<dyn Fn() -> Uuid + Send + Sync> = Arc::new(Uuid::new_v4);
        let formats = commit::formats(&store, &url, catalog, &pipeline.name, &pipeline.lake.namespace, Ambient { now_ms: now, new_id: ids });
        Ok(Self { store, log, state_folder, formats, local: None })
    }
}

/// Asks until the answer is not "away", for `patience`.
async fn patiently<T>(patience: Duration, stop: &AtomicBool, metrics: &Metrics, what: &str, mut ask: impl FnMut() -> Result<T, SourceError>) -> Result<T, WorkerError> {
    let start = Instant::now();
    loop {
        match in_place(&mut ask) {
            Ok(answer) => {
                metrics.waiting_over(what);
                return Ok(answer);
            }
            Err(SourceError::Unavailable(_)) if stop.load(Ordering::Relaxed) => return Err(WorkerError::Stopped),
            Err(SourceError::Unavailable(why)) if start.elapsed() < patience => {
                metrics.waiting(what, &why);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Runs a worker until it is stopped, its ends are reached, or it must tell the user something.
///
/// A worker that slept past a truncation of the log begins again from the log.
pub async fn run(pipeline: Arc<Pipeline>, plans: Vec<Arc<TablePlan>>, options: RunOptions, metrics: Arc<Metrics>, world: Arc<dyn Surroundings>, stop: Arc<AtomicBool>) -> Result<(), WorkerError> {
    let mut settled = false;
    let mut gone = (String::new(), 0);
    loop {
        match once(&pipeline, &plans, options, &metrics, &world, &stop, &mut settled).await {
            Err(WorkerError::StartOver(_) | WorkerError::RunGone(_)) if stop.load(Ordering::Relaxed) => return Ok(()),
            Err(WorkerError::RunGone(object)) if gone == (object.clone(), RUN_MISSED) => {
                return Err(WorkerError::Refused(format!(
                    "run {object} is gone, and the log, read again, still names it: the rows of open windows are in it; restore it from a backup"
                )));
            }
            Err(e @ (WorkerError::StartOver(_) | WorkerError::RunGone(_))) => {
                note(format_args!("beginning again from the log: {e}"));
                if let WorkerError::RunGone(object) = e {
                    gone = if gone.0 == object { (object, gone.1 + 1) } else { (object, 1) };
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(WorkerError::Stopped) => return Ok(()),
            // It ran before: what is away now comes back, and the log knows where to go on. At a start a wrong path
            // stays wrong; a full disk does not.
            Err(WorkerError::Unavailable(why)) => {
                let why = match metrics.ready.load(Ordering::Relaxed) {
                    true => why,
                    false => match in_place(|| full(&pipeline, world.as_ref())) {
                        Some(at) => format!("{why} (no space is left where {} lies)", at.display()),
                        None => return Err(WorkerError::Unavailable(why)),
                    },
                };
                metrics.waiting("lake", &why);
                for _ in 0..20 {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            other => return other,
        }
    }
}

/// How often the same run may be missed before it counts as lost: a truncation is over by then, and the log names others.
const RUN_MISSED: u32 = 5;

/// What lies, or will lie, where there is no space.
fn full(pipeline: &Pipeline, world: &dyn Surroundings) -> Option<std::path::PathBuf> {
    let scratch = pipeline.lake.root.join(names::state_folder(&pipeline.name)).join("scratch");
    [pipeline.lake.root.clone(), pipeline.lake.iceberg_catalog.clone(), scratch].into_iter().find(|at| world.is_full(at))
}

async fn once(pipeline: &Arc<Pipeline>, plans: &[Arc<TablePlan>], options: RunOptions, metrics: &Arc<Metrics>, world: &Arc<dyn Surroundings>, stop: &Arc<AtomicBool>, settled: &mut bool) -> Result<(), WorkerError> {
    let (clock, ids, hosting) = (world.clock(), world.ids(), world.hosting());
    let writer = format!("w{}", ids().simple());
    // Before the lake is made: a wrong topic should leave nothing behind.
    let mut sources = vec![];
    let mut facts = BTreeMap::new();
    for spec in &pipeline.sources {
        let what = format!("source {}", spec.name);
        let open = || {
            let mut source = world.open_source(spec, &pipeline.name, &writer)?;
            let facts = source.facts()?;
            Ok((source, facts))
        };
        let (source, found) = patiently(Duration::from_secs(300), stop, metrics, &what, open).await?;
        facts.insert(spec.name.clone(), found);
        sources.push(source);
    }
    let place = world.open_place(pipeline).await?;
    probe::create_if_absent(&place.store, &Path::from(format!("{}/probe", place.state_folder)), ids()).await?;
    let scratch = Scratch::claim(&pipeline.lake.root.join(&place.state_folder).join("scratch")).map_err(|e| WorkerError::Unavailable(format!("cannot use the local state folder: {e}")))?;
    let (reading, change) = settle_plan(pipeline, plans, &place, &mut sources, &facts, &writer, world, options.accept).await?;
    // A plan is proposed once, at start: what replaced it since then is newer, whatever was to be accepted.
    if *settled && change.is_some() {
        return Err(WorkerError::Refused(format!(
            "plan {} replaced the one under which this worker ran: another worker was started with a changed pipeline file; restart this one with that file",
            reading.head.plan_entry
        )));
    }

    let (sender, entries) = mpsc::unbounded_channel();
    let mut at = reading.start.clone();
    for (seq, entry) in reading.tail {
        let times = at.apply(&entry).map_err(LogError::from)?;
        let _ = sender.send(head::Decided { seq, entry: Arc::new(entry), times, runs: None, staged: head::Weight::default() });
    }
    let pressure = Arc::new(Pressure::default());
    let head = Head::new(place.log.clone(), writer.clone(), reading.head, sender, metrics.clone(), !options.reread_runs);
    let head = Arc::new(head.with_run_memory(pipeline.memory_bytes / 8));
    let parts = Parts {
        pipeline: pipeline.clone(),
        store: place.store.clone(),
        state_folder: place.state_folder.clone(),
        scratch: scratch.path().to_path_buf(),
        formats: place.formats.clone(),
        head: head.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        cadence: world.cadence(),
        compile: world.compile(),
        pressure: pressure.clone(),
        entries,
        ending: change.as_ref().map(|to| &lake_tables(&reading.start.plan) - &lake_tables(to)).unwrap_or_default(),
        held: reading.stamps,
    };
    let mut tables = Tables::open(parts, reading.start).await?;
    // The stamps were read first: a stamp beyond this end of the log cannot come from it.
    head.refresh().await?;
    tables.check_stamps(head.with(|l| l.next).await)?;
    if let Some(plan) = change {
        let began = head.with(|l| l.next).await;
        match head.append(ids(), began, Body::Plan(*plan), vec![], clock.now_ms()).await? {
            head::Appended::Decided(_) => {}
            head::Appended::Stale(why) => return Err(WorkerError::StartOver(format!("another worker changed the plan meanwhile: {why}"))),
        }
    }
    *settled = true;
    metrics.ready.store(true, Ordering::Relaxed);
    metrics.waiting_over("lake");

    let layouts = layouts(pipeline, plans, &head, &facts).await?;
    let (lanes, held, lanes_hosted) = spawn_lanes(pipeline, &layouts, metrics, world.as_ref())?;
    let until = options.until_end.then(|| facts.iter().map(|(n, f)| (n.clone(), f.partitions.iter().map(|(p, (_, end))| (*p, *end)).collect())).collect::<ByPartition<i64>>());
    let log = head.with(|l| l.log).await;
    let mut source_threads = vec![];
    for (source, spec) in sources.into_iter().zip(&pipeline.sources) {
        source_threads.push(SourceThread::spawn(spec.name.clone(), source, log, metrics.clone(), hosting).map_err(|e| WorkerError::Internal(e.to_string()))?);
    }
    let cleaner = Cleaner::new(&pipeline.name, &place.state_folder, place.store.clone(), place.local.clone(), place.log.clone(), place.formats.clone(), pipeline.clean.after_ms as i64);
    let mut cleaning = Cleaning::new(cleaner, head.clone(), metrics.clone(), clock.clone(), ids.clone(), scratch.path().to_path_buf());
    let receipts = Receipts::to(source_threads.iter().map(SourceThread::receipts).collect());
    let ingest = Ingest {
        pipeline: pipeline.clone(),
        store: place.store.clone(),
        state_folder: place.state_folder.clone(),
        head: head.clone(),
        sources: source_threads,
        lanes,
        held,
        metrics: metrics.clone(),
        clock,
        ids,
        pressure,
        stop: stop.clone(),
        until,
        final_note: options.last,
        turn: 0,
    };
    // Before it is asked whether the ends are reached: those of another topic say nothing.
    for (nth, spec) in pipeline.sources.iter().enumerate() {
        ingest.check_same(nth, &facts[&spec.name]).await?;
        if ingest.until.is_some() {
            ingest.check_ends(nth).await?;
        }
    }
    let mut tables = Task(tokio::spawn(tables.run(receipts)));
    let mut ingest = Task(tokio::spawn(ingest.run()));
    let cleaner_stop = Arc::new(AtomicBool::new(false));
    let mut cleaner = Task(tokio::spawn({
        let cleaner_stop = cleaner_stop.clone();
        let first = Duration::from_millis(2 * pipeline.commit_every_ms.max(pipeline.epoch_every_ms));
        let every = Duration::from_millis(pipeline.clean.every_ms);
        async move {
            cleaning.run(first, every, &cleaner_stop).await;
            cleaning
        }
    }));
    // To give up half way is what a kill does: the next start goes on from the log.
    let overdue = overdue(stop, options.deadline);
    tokio::pin!(overdue);
    let ingested = tokio::select! {
        biased;
        done = &mut ingest.0 => flatten(done),
        done = &mut tables.0 => {
            // The table half ends first only when it must say something.
            stop_quietly(&mut ingest.0).await;
            return flatten(done).and(Err(WorkerError::Internal("the table half has ended".into())));
        }
        () = &mut overdue => {
            return Err(WorkerError::Stopped);
        }
    };
    // They stay until the tables are done: a receipt needs a member of the group to take it.
    let sources = match ingested {
        Ok(sources) => sources,
        Err(WorkerError::Stopped) => vec![],
        Err(e) => {
            stop_quietly(&mut tables.0).await;
            return Err(e);
        }
    };
    let caught_up = async {
        head.close().await;
        (&mut tables.0).await
    };
    let drained = tokio::select! {
        biased;
        done = caught_up => flatten(done),
        () = &mut overdue => return Err(WorkerError::Stopped),
    };
    // A run to the end may be over before its first turn comes: then all that ever cleans is this.
    cleaner_stop.store(true, Ordering::Relaxed);
    if options.until_end && drained.is_ok() && !stop.load(Ordering::Relaxed) {
        let last = async {
            if let Some(mut cleaning) = (&mut cleaner.0).await.ok().filter(|c| c.passes == 0) {
                cleaning.pass().await;
            }
        };
        tokio::select! {
            biased;
            () = last => {}
            () = &mut overdue => {}
        }
    }
    in_place(|| {
        drop(sources);
        lanes_hosted.into_iter().for_each(Hosted::end);
    });
    drained
}

/// Every table of the lake that a plan asks for.
fn lake_tables(plan: &Plan) -> BTreeSet<String> {
    let declared = plan.tables.values().flat_map(|t| [Some(&t.table), t.late.as_ref()]).flatten();
    declared.chain(plan.sources.values().map(|s| &s.dead)).map(|t| t.name.clone()).collect()
}

/// Until stopping has been asked for and has taken as long as it may. Reaching the ends is no
/// reason to stop: `--until-end` waits for the tables however long they take.
async fn overdue(stop: &AtomicBool, deadline: Duration) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(deadline).await;
}

async fn stop_quietly<T>(task: &mut tokio::task::JoinHandle<Result<T, WorkerError>>) {
    task.abort();
    let _ = task.await;
}

fn flatten<T>(done: Result<Result<T, WorkerError>, tokio::task::JoinError>) -> Result<T, WorkerError> {
    done.unwrap_or_else(|e| if e.is_cancelled() { Err(WorkerError::Stopped) } else { Err(WorkerError::Internal(format!("a task failed: {e}"))) })
}

/// Gives birth to the log where there is none, and compares its plan with the file's: who loses the race for
/// entry 0 runs under the winner's plan. Returns the very reading that was compared, and a plan to propose.
#[allow(clippy::too_many_arguments)]
async fn settle_plan(pipeline: &Pipeline, plans: &[Arc<TablePlan>], place: &Place, sources: &mut [Box<dyn Source>], facts: &BTreeMap<String, SourceFacts>, writer: &str, world: &Arc<dyn Surroundings>, accept: bool) -> Result<(Reading, Option<Box<Plan>>), WorkerError> {
    let mut existing = place.log.open().await?;
    // Tables that are there are what they are.
    let known: BTreeSet<String> = existing.iter().flat_map(|r| r.head.specs()).map(|(spec, _)| spec.name.clone()).collect();
    check_declared(place, pipeline, plans, &known)?;
    let mut starts = BTreeMap::new();
    for (source, spec) in sources.iter_mut().zip(&pipeline.sources) {
        let known = existing.as_ref().is_some_and(|r| r.head.sources.contains_key(&spec.name));
        if !known {
            let partitions: Vec<i32> = facts[&spec.name].partitions.keys().copied().collect();
            starts.insert(spec.name.clone(), in_place(|| source.start_offsets(&partitions))?);
        }
    }
    let given = Given { pipeline, plans, facts, starts: &starts };
    if existing.is_none() {
        let declared = plan::declared(pipeline, plans)?;
        if let Some(found) = in_lake(place, declared.iter(), |r| r.formats.clone()).await? {
            // Another worker may have begun the log just now.
            existing = place.log.open().await?;
            if existing.is_none() {
                return Err(WorkerError::Refused(format!(
                    "{found} is in the lake already, and there is no log in {}/log that it could come from: restore the log, or, to begin anew, drop the \
                     pipeline's tables (in the catalog and their folders) or give the pipeline another name",
                    place.state_folder
                )));
            }
        }
    }
    if existing.is_none() {
        let birth = Entry {
            version: VERSION,
            attempt: world.ids()(),
            log: world.ids()(),
            writer: writer.to_string(),
            plan: 0,
            began: 0,
            checkpoint: None,
            written_at_ms: world.clock().now_ms(),
            body: Body::Plan(plan::birth(given)?),
        };
        place.log.give_birth(&birth).await?;
        existing = place.log.open().await?;
    }
    let reading = existing.ok_or_else(|| WorkerError::Internal("the log is gone right after it was made".into()))?;
    if reading.head.plan.pipeline != pipeline.name {
        return Err(WorkerError::Refused(format!("the log in {} belongs to pipeline {}, expected {}", place.state_folder, reading.head.plan.pipeline, pipeline.name)));
    }
    match plan::fit(&reading.head, given, accept)? {
        Fit::Same => Ok((reading, None)),
        Fit::Change(plan, what) => {
            check_begun(place, &reading, &plan).await?;
            for line in what {
                note(format_args!("the pipeline file changed: {}", pipeline.variables.hide(&line)));
            }
            Ok((reading, Some(plan)))
        }
    }
}

/// Refuses tables that their formats cannot hold, before the log knows of them.
pub fn check_declared(place: &Place, pipeline: &Pipeline, plans: &[Arc<TablePlan>], known: &BTreeSet<String>) -> Result<(), WorkerError> {
    for record in plan::declared(pipeline, plans)?.into_iter().filter(|r| !known.contains(&r.name)) {
        let spec = record.spec().map_err(WorkerError::Internal)?;
        for format in &record.formats {
            place.formats[format].check(&spec).map_err(|e| WorkerError::Misdeclared(e.to_string()))?;
        }
    }
    Ok(())
}

/// The first of these tables that is in the lake, in one of these formats: which, and why it is none that could be used.
async fn in_lake(place: &Place, records: impl Iterator<Item = &SpecRecord>, formats: impl Fn(&SpecRecord) -> Vec<TableFormatKind>) -> Result<Option<String>, WorkerError> {
    for record in records {
        let spec = record.shared().map_err(WorkerError::Internal)?;
        for format in formats(record) {
            match place.formats[&format].open(spec.clone()).await {
                Ok(None) => {}
                Err(CommitError::Unavailable(why)) => return Err(WorkerError::Unavailable(why)),
                Ok(Some(_)) => return Ok(Some(format!("{format} table {}", record.name))),
                Err(CommitError::Refused(why)) => return Ok(Some(format!("{format} table {} ({why})", record.name))),
            }
        }
    }
    Ok(None)
}

/// Refuses a first run whose tables would find another table in their place.
pub async fn check_free(place: &Place, pipeline: &Pipeline, plans: &[Arc<TablePlan>]) -> Result<(), WorkerError> {
    let declared = plan::declared(pipeline, plans)?;
    let Some(found) = in_lake(place, declared.iter(), |r| r.formats.clone()).await? else { return Ok(()) };
    Err(WorkerError::Refused(format!(
        "{found} is in the lake, and this pipeline, which has not run yet, did not make it: drop it there (in the catalog and its folder), or give the table another name"
    )))
}

/// Refuses a plan whose new tables would find another table in their place.
async fn check_begun(place: &Place, reading: &Reading, plan: &Plan) -> Result<(), WorkerError> {
    let ledger = &reading.head;
    for (name, table) in plan.tables.iter().filter(|(name, _)| !ledger.plan.tables.contains_key(*name)) {
        let again = ledger.ended.contains(name);
        let formats = |r: &SpecRecord| if again { place.formats.keys().copied().collect() } else { r.formats.clone() };
        let Some(found) = in_lake(place, std::iter::once(&table.table).chain(&table.late), formats).await? else { continue };
        // Another worker with the same file may have made it just now.
        if place.log.open().await?.is_none_or(|now| now.head.plan_entry != ledger.plan_entry) {
            return Err(WorkerError::StartOver("another worker changed the plan meanwhile".into()));
        }
        let why = if again { "with the rows from before it was taken out of the pipeline file" } else { "and this pipeline did not make it" };
        return Err(WorkerError::Refused(format!(
            "{found} is still in the lake, {why}: drop it there (in the catalog and its folder) to begin {name} anew, or give the new table another name"
        )));
    }
    Ok(())
}

async fn layouts(pipeline: &Pipeline, plans: &[Arc<TablePlan>], head: &Head, facts: &BTreeMap<String, SourceFacts>) -> Result<Vec<Arc<SourceLayout>>, WorkerError> {
    let plan = head.with(|l| l.plan.clone()).await;
    let damaged = |e: String| WorkerError::Refused(format!("the log's plan is damaged: {e}"));
    let mut layouts = vec![];
    for spec in &pipeline.sources {
        let mut tables = vec![];
        for planned in plans.iter().filter(|p| p.source == spec.name) {
            let record = plan.tables.get(&planned.table).ok_or_else(|| damaged(format!("no table {}", planned.table)))?;
            tables.push(TableLayout { plan: planned.clone(), spec: record.table.shared().map_err(damaged)? });
        }
        let source = plan.sources.get(&spec.name).ok_or_else(|| damaged(format!("no source {}", spec.name)))?;
        let dead = source.dead.shared().map_err(damaged)?;
        layouts.push(Arc::new(SourceLayout { spec: spec.clone(), topic: facts[&spec.name].topic.clone(), tables, dead }));
    }
    Ok(layouts)
}

/// Commands that wait for a lane: its batches fill memory, and one is enough to keep it busy.
const LANE_QUEUE: usize = 2;

type Lanes = (Vec<mpsc::Sender<lane::LaneCommand>>, Vec<Arc<AtomicU64>>, Vec<Hosted>);

fn spawn_lanes(pipeline: &Pipeline, layouts: &[Arc<SourceLayout>], metrics: &Arc<Metrics>, world: &dyn Surroundings) -> Result<Lanes, WorkerError> {
    let internal = |e: &dyn std::fmt::Display| WorkerError::Internal(e.to_string());
    let (mut senders, mut held, mut hosted) = (vec![], vec![], vec![]);
    for nth in 0..world.lanes() {
        let bytes = Arc::new(AtomicU64::new(0));
        let lane = Lane::new(pipeline.name.clone(), nth, layouts, metrics.clone(), bytes.clone()).map_err(|e| internal(&e))?;
        let (sender, commands) = mpsc::channel(LANE_QUEUE);
        let started = world.hosting().start(format!("lane {nth}"), Box::pin(lane.run(commands))).map_err(|e| internal(&e))?;
        senders.push(sender);
        held.push(bytes);
        hosted.push(started);
    }
    Ok((senders, held, hosted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_holds_up_the_reading() {
        let limit = Backlog { bytes: 100, hours: 24 };
        let pressure = Pressure::default();
        assert!(!pressure.holds_up(100, &limit));
        assert!(pressure.holds_up(101, &limit), "a commit that hangs tells nothing");
        pressure.staged.store(60, Ordering::Relaxed);
        assert!(!pressure.holds_up(40, &limit));
        assert!(pressure.holds_up(41, &limit), "what is told and what is not seen are one backlog");
        *pressure.oldest.lock().unwrap() = Some(Instant::now());
        assert!(!pressure.holds_up(0, &limit));
        std::thread::sleep(Duration::from_millis(2));
        assert!(pressure.holds_up(0, &Backlog { bytes: 100, hours: 0 }), "it grows old without a word of the table half");
        *pressure.oldest.lock().unwrap() = None;
        pressure.behind.store(true, Ordering::Relaxed);
        assert!(pressure.holds_up(0, &limit));
    }
}
