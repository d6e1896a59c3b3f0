//! The table half: folds decided entries in order, and brings the tables up to them.

use super::head::{Appended, Decided, Head, HeadError};
use super::progress::instant;
use super::receipt::{Receipt, Receipts};
use super::surroundings::Ids;
use super::{Clock, Pressure, WorkerError};
use crate::commit::known::Known;
use crate::commit::advance::{Advance, Pending, Side, advance, gone, set_back};
use crate::commit::upsert::ChangeOp;
use crate::commit::{ANOTHER_NAME, CommitError, Stamp, TableFormat};
use crate::console::note;
use crate::epoch::checkpoint::{self, Cadence, Checkpoint, Stamps};
use crate::epoch::entry::{Body, Entry, SpecRecord};
use crate::epoch::history::{self, History};
use crate::epoch::ledger::{Ledger, LiveRun, Times};
use crate::epoch::plan::Compile;
use crate::failpoint;
use crate::mutant::{self, Mutant};
use crate::fold::{EntryTimes, FoldConfig, FoldError, TableFold};
use crate::observe::{Metrics, cpu};
use crate::pipeline::sql::TablePlan;
use crate::pipeline::{Emit, Pipeline, TableFormatKind};
use crate::runtime::in_place;
use crate::stage::dead::DeadRows;
use crate::stage::rows::RowBatches;
use crate::partial::Run;
use crate::stage::runs::{RunRef, read_run};
use crate::stage::TableSpec;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Whoever wrote none of this many newest entries of the log counts as gone.
const RECENT_ENTRIES: u64 = 50;
/// Bytes of runs that are read from an object at a time.
const READ_AT_ONCE: u64 = 8 << 20;

pub struct LakeEntry {
    pub spec: Arc<TableSpec>,
    /// The declared windowed table whose windows it holds.
    pub windowed: Option<String>,
    pub sides: Vec<Side>,
    pub pending: VecDeque<Pending>,
}

pub struct Tables {
    pub(super) parts: Parts,
    /// The log's state at the fold's position.
    pub(super) at: Ledger,
    /// M of the checkpoint from which the fold starts.
    begun: u64,
    /// The log's state at the newest checkpoint's M, and the entries since.
    pub(super) trail: Ledger,
    recent: VecDeque<(u64, Arc<Entry>)>,
    plans: BTreeMap<String, Arc<TablePlan>>,
    /// Behind a lock that nobody waits for: a fold can be sent to another thread, not shared with one.
    pub(super) folds: BTreeMap<String, Mutex<TableFold>>,
    lake: BTreeMap<String, LakeEntry>,
    last_commit: Instant,
    /// Source to the partitions that its newest entry claims idle: they do not hold its watermark.
    idle: BTreeMap<String, BTreeSet<i32>>,
    /// The entry of the newest receipt.
    released: Option<u64>,
    /// Where the log ended at the start: what is folded below it was counted by those who decided it.
    counts_from: u64,
}

/// What a table half is built from.
pub struct Parts {
    pub pipeline: Arc<Pipeline>,
    pub store: Arc<dyn ObjectStore>,
    pub state_folder: String,
    pub scratch: PathBuf,
    pub formats: BTreeMap<TableFormatKind, Arc<dyn TableFormat>>,
    pub head: Arc<Head>,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    pub ids: Ids,
    pub cadence: Cadence,
    pub compile: Compile,
    pub pressure: Arc<Pressure>,
    pub entries: mpsc::UnboundedReceiver<Decided>,
    /// Tables that the plan which this worker is about to propose lets end.
    pub ending: BTreeSet<String>,
    /// What the tables were stamped with when the checkpoint was written from which the fold starts.
    pub held: Stamps,
}

fn refused(e: CommitError) -> WorkerError {
    match e {
        CommitError::Refused(why) => WorkerError::Refused(why),
        CommitError::Unavailable(why) => WorkerError::Unavailable(why),
    }
}

fn damaged_spec(table: &str, why: String) -> WorkerError {
    WorkerError::Refused(format!("table {table}: its record in the log is damaged: {why}"))
}

/// A disk that is full while panes spill fills again: the panes are restored from the log then.
pub(super) fn folding(table: &str, e: FoldError) -> WorkerError {
    match e {
        FoldError::Spill { .. } => WorkerError::Unavailable(format!("table {table}: {e}")),
        other => WorkerError::Internal(format!("table {table}: {other}")),
    }
}

impl Tables {
    /// Opens (or creates) every table, and restores the panes as of `start`.
    pub async fn open(parts: Parts, start: Ledger) -> Result<Self, WorkerError> {
        let plans = (parts.compile)(&start.plan).map_err(|e| WorkerError::Refused(e.to_string()))?;
        let mut tables = Self {
            parts,
            begun: start.next.saturating_sub(1),
            trail: start.clone(),
            recent: VecDeque::new(),
            at: start,
            plans,
            folds: BTreeMap::new(),
            lake: BTreeMap::new(),
            last_commit: Instant::now(),
            idle: BTreeMap::new(),
            released: None,
            counts_from: 0,
        };
        let windowed: Vec<String> = tables.at.plan.tables.iter().filter(|(_, t)| t.window.is_some()).map(|(n, _)| n.clone()).collect();
        for table in windowed {
            let fold = tables.restored(&table).await?;
            tables.folds.insert(table, Mutex::new(fold));
        }
        tables.open_lake().await?;
        Ok(tables)
    }

    /// Opens the tables that the plan at the fold's position asks for and that are not open yet.
    async fn open_lake(&mut self) -> Result<(), WorkerError> {
        let specs: Vec<(SpecRecord, u64)> = self.at.specs().into_iter().map(|(s, b)| (s.clone(), b)).collect();
        let wanted: BTreeSet<String> = specs.iter().map(|(s, _)| s.name.clone()).collect();
        self.lake.retain(|name, _| wanted.contains(name));
        // A table may have been evolved under a plan that this fold has yet to come to.
        let newest: BTreeMap<String, (SpecRecord, u64)> = self.parts.head.with(|l| l.specs().into_iter().map(|(s, b)| (s.name.clone(), (s.clone(), b))).collect()).await;
        for (record, born) in specs {
            let spec = record.shared().map_err(|e| damaged_spec(&record.name, e))?;
            let known: BTreeSet<TableFormatKind> = match self.lake.get_mut(&record.name) {
                Some(known) => {
                    known.spec = spec.clone();
                    // Dead letters are in the formats of the tables that read the source, which come and go.
                    known.sides.retain(|s| record.formats.contains(&s.kind()));
                    known.sides.iter_mut().for_each(|s| s.expect(spec.clone()));
                    known.sides.iter().map(Side::kind).collect()
                }
                None => BTreeSet::new(),
            };
            // Or it has ended by then: what is dropped since is not made again.
            let lives = newest.get(&record.name).is_some_and(|(_, b)| *b == born);
            // One more format of a table that is there holds nothing of what was before.
            let birth = Stamp { log: self.at.log, entry: if known.is_empty() { born } else { self.at.next - 1 }, offsets: BTreeMap::new() };
            let mut sides = vec![];
            for format in record.formats.iter().filter(|f| !known.contains(f)) {
                match self.opened(*format, &record, &birth, newest.get(&record.name).map(|(n, _)| n), lives.then_some(born)).await {
                    Ok(side) => sides.extend(side),
                    // The user let it end: what is wrong with it holds up nothing.
                    Err(WorkerError::Refused(why)) if !lives || self.parts.ending.contains(&record.name) => {
                        note(format_args!("{format} table {} has ended and is left as it is: {why}", record.name));
                    }
                    Err(WorkerError::Refused(why)) => return Err(self.refused(why).await),
                    Err(e) => return Err(e),
                }
            }
            if let Some(known) = self.lake.get_mut(&record.name) {
                known.sides.extend(sides);
                continue;
            }
            let windowed = self.at.plan.tables.contains_key(&record.name).then(|| record.name.clone()).filter(|n| self.folds.contains_key(n));
            self.lake.insert(record.name.clone(), LakeEntry { spec, windowed, sides, pending: VecDeque::new() });
        }
        Ok(())
    }

    /// What a refused table means. Another worker may have evolved it under a plan of which this one has yet to hear:
    /// then that is what is to be said.
    async fn refused(&self, why: String) -> WorkerError {
        match self.parts.head.refresh().await {
            Err(newer @ (HeadError::PlanReplaced { .. } | HeadError::StartOver)) => newer.into(),
            Ok(()) => WorkerError::Refused(why),
            Err(unread @ HeadError::Log(_)) => match unread.into() {
                WorkerError::Unavailable(e) => WorkerError::Unavailable(format!("{why} (whether a newer plan made it so cannot be seen: {e})")),
                _ => WorkerError::Refused(why),
            },
        }
    }

    /// Opens a table in one format, or creates it if it lives and was born at this entry. One that this log has
    /// filled before must still be there, but for one that has ended: `None` then.
    async fn opened(&self, format: TableFormatKind, record: &SpecRecord, birth: &Stamp, newest: Option<&SpecRecord>, lives: Option<u64>) -> Result<Option<Side>, WorkerError> {
        let name = &record.name;
        let Some(maker) = self.parts.formats.get(&format) else { return Ok(None) };
        let damaged = |e: String| damaged_spec(name, e);
        let spec = record.shared().map_err(damaged)?;
        let known = Known::new(self.parts.store.clone(), &self.parts.state_folder, self.at.log);
        let uuid = match lives {
            Some(born) => known.uuid(name, format, born).await.map_err(refused)?,
            None => None,
        };
        let evolved = newest.filter(|n| *n != record).map(SpecRecord::shared).transpose().map_err(damaged)?;
        let existing = match evolved {
            Some(evolved) => maker.open(evolved).await.map_err(refused)?,
            None if lives.is_some() && uuid.is_none() => None,
            None => maker.open(spec.clone()).await.map_err(refused)?,
        };
        let mut table = match (existing, &uuid) {
            (Some(table), _) => table,
            (None, Some(uuid)) => return Err(refused(gone(format, name, uuid, &maker.place(name)))),
            (None, None) if lives.is_some() => maker.open_or_create(spec, birth).await.map_err(refused)?,
            (None, None) => return Ok(None),
        };
        let base = table.load().await.map_err(refused)?;
        match (uuid, lives) {
            (None, Some(born)) => known.remember(name, format, born, &base.table_uuid).await.map_err(refused)?,
            (Some(uuid), _) if uuid != base.table_uuid => {
                return Err(WorkerError::Refused(format!(
                    "the {format} table {name} has the uuid {}, and this pipeline filled {uuid}: it was dropped and made anew; bring the old one back, or {ANOTHER_NAME}",
                    base.table_uuid
                )));
            }
            _ => {}
        }
        let held = self.parts.held.get(name).and_then(|of| of.get(&format)).copied().unwrap_or(0);
        if checkpoint::lacks_entries(base.stamp.entry, held, self.begun) {
            return Err(refused(set_back(format, name, &maker.place(name), base.stamp.entry, held)));
        }
        // Versions of a table that was dropped and made anew say nothing about this one.
        let folder = self.parts.scratch.join("index").join(format!("{name}-{format}-{}", base.table_uuid));
        let horizon = self.at.horizons.get(name).copied().flatten();
        Ok(Some(Side::new(format, table, base, folder, horizon)))
    }

    /// Refuses a stamp beyond the log. `head` is the number of its next entry, read after the stamps.
    pub fn check_stamps(&mut self, head: u64) -> Result<(), WorkerError> {
        self.counts_from = head;
        for (name, table) in &self.lake {
            for side in &table.sides {
                if side.stamp() >= head {
                    return Err(WorkerError::Refused(format!(
                        "{} table {name} holds the log's entries up to {}, and the log ends before entry {head}: the log was wiped or replaced by an older copy; restore {} from a backup",
                        side.kind(),
                        side.stamp(),
                        self.parts.state_folder
                    )));
                }
            }
        }
        Ok(())
    }

    pub(super) fn fold_of(&mut self, table: &str) -> Option<&mut TableFold> {
        self.folds.get_mut(table).map(|f| f.get_mut().unwrap_or_else(|e| e.into_inner()))
    }

    async fn restored(&self, table: &str) -> Result<TableFold, WorkerError> {
        let planned = &self.at.plan.tables[table];
        let windowed = self.at.plan.tables.values().filter(|t| t.window.is_some()).count().max(1) as u64;
        let emit = if planned.emit_on_update { Emit::OnUpdate } else { Emit::OnClose };
        let config = FoldConfig { memory_bytes: (self.parts.pipeline.memory_bytes / 4 / windowed) as usize, spill_dir: self.parts.scratch.join("spill").join(table) };
        let mut fold = TableFold::new(self.plans[table].clone(), emit, config).map_err(|e| folding(table, e))?;
        let live: Vec<LiveRun> = self.at.runs.get(table).cloned().unwrap_or_default();
        let horizon = self.at.horizons.get(table).copied().flatten();
        let mut at = 0;
        // The runs of an entry lie in one object, those that were merged in many, none of which shares a key of a window with another.
        while at < live.len() {
            let LiveRun { entry, horizon_before, object, .. } = &live[at];
            let same: Vec<&RunRef> = live[at..].iter().take_while(|r| r.entry == *entry && r.object == *object).map(|r| &r.run.run).collect();
            at += same.len();
            let runs = self.fetch_runs(object, &same).await?;
            let emitted = self.at.ended_at.is_some_and(|e| *entry < e);
            let at = EntryTimes { horizon_before: *horizon_before, horizon_after: horizon, emit_all: emitted, ..Default::default() };
            fold.restore_entry(&at, runs).map_err(|e| folding(table, e))?;
        }
        let source = self.at.sources.get(&planned.source);
        fold.resume(source.and_then(|s| s.watermark), horizon);
        Ok(fold)
    }

    pub(super) async fn fetch_run(&self, object: &str, run: &RunRef) -> Result<Run, WorkerError> {
        let mut runs = self.fetch_runs(object, &[run]).await?;
        runs.pop().ok_or_else(|| WorkerError::Internal(format!("no run was read from {object}")))
    }

    /// Runs of one object, in this order. Neighbours are read together: an epoch may have one for each of many windows.
    async fn fetch_runs(&self, object: &str, runs: &[&RunRef]) -> Result<Vec<Run>, WorkerError> {
        let mut read = Vec::with_capacity(runs.len());
        let mut rest = runs;
        while let Some(first) = rest.first() {
            let mut end = first.offset;
            let mut follows = |r: &&&RunRef| {
                let next = r.offset == end && (end == first.offset || r.offset + r.length - first.offset <= READ_AT_ONCE);
                end += if next { r.length } else { 0 };
                next
            };
            let (now, later) = rest.split_at(rest.iter().take_while(&mut follows).count());
            rest = later;
            let mut pause = Duration::from_millis(100);
            let bytes = loop {
                match self.parts.store.get_range(&Path::from(object), first.offset..end).await {
                    Ok(bytes) => break bytes,
                    Err(object_store::Error::NotFound { .. }) => return Err(WorkerError::RunGone(object.to_string())),
                    Err(e) => self.parts.metrics.waiting("store", &format!("cannot read {object}: {e}")),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            };
            for run in now {
                // An object that was cut short has fewer bytes than were asked for.
                let from = ((run.offset - first.offset) as usize).min(bytes.len());
                let to = (from + run.length as usize).min(bytes.len());
                self.parts.metrics.runs_read.fetch_add(1, Ordering::Relaxed);
                read.push(read_run(&bytes[from..to], run).map_err(|e| WorkerError::Refused(format!("{object}: {e}; restore it from a backup")))?);
            }
        }
        Ok(read)
    }

    /// Folds and commits until `entries` is closed and everything in it is in the tables.
    pub async fn run(mut self, receipts: Receipts) -> Result<(), WorkerError> {
        let every = Duration::from_millis(self.parts.pipeline.commit_every_ms);
        self.last_commit = Instant::now().checked_sub(every).unwrap_or_else(Instant::now);
        loop {
            let wait = every.saturating_sub(self.last_commit.elapsed()).max(Duration::from_millis(10));
            let next = tokio::time::timeout(wait.min(Duration::from_millis(200)), self.parts.entries.recv()).await;
            match next {
                Ok(Some(decided)) => self.fold(decided).await?,
                Ok(None) => {
                    self.commit_all(true).await?;
                    self.release(&receipts);
                    if self.lake.values().all(|t| t.pending.is_empty()) {
                        self.checkpoint_and_truncate(true).await?;
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(_) => {}
            }
            self.tell_pressure();
            if self.last_commit.elapsed() >= every || self.crowded() {
                self.commit_all(false).await?;
                self.release(&receipts);
                self.checkpoint_and_truncate(false).await?;
            }
        }
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.lake.values().flat_map(|t| &t.pending)
    }

    /// What waits in memory; files wait in the store.
    fn emitted_bytes(&self) -> u64 {
        self.pending().filter(|p| !p.rows.is_empty()).map(|p| p.bytes).sum()
    }

    /// Bytes of the staged files that wait.
    fn staged_bytes(&self) -> u64 {
        self.pending().flat_map(|p| &p.files).map(|(_, f)| f.bytes).sum()
    }

    /// So much waits, in memory or of the backlog, that it is committed before its time.
    fn crowded(&self) -> bool {
        let much = self.emitted_bytes() > self.parts.pipeline.memory_bytes / 8 || self.staged_bytes() > self.parts.pipeline.backlog.bytes / 2;
        much && self.last_commit.elapsed() > Duration::from_millis(200)
    }

    fn tell_pressure(&mut self) {
        self.parts.metrics.backlog_bytes.store(self.pending().map(|p| p.bytes).sum(), Ordering::Relaxed);
        let behind = self.emitted_bytes() > self.parts.pipeline.memory_bytes / 4 || self.parts.entries.len() > 8;
        let pressure = &self.parts.pressure;
        pressure.behind.store(behind, Ordering::Relaxed);
        pressure.staged.store(self.staged_bytes(), Ordering::Relaxed);
        *pressure.oldest.lock().unwrap_or_else(|e| e.into_inner()) = self.lake.values().filter_map(|t| t.pending.front()).map(|p| p.since).min();
        let crowded = self.folds.values_mut().any(|f| f.get_mut().unwrap_or_else(|e| e.into_inner()).crowded());
        self.parts.pressure.memory.store(crowded, Ordering::Relaxed);
    }

    fn pend(&mut self, table: &str, seq: u64, bytes: u64, change: impl FnOnce(&mut Pending)) {
        let Some(entry) = self.lake.get_mut(table) else { return };
        // Rows that every format holds already are not kept.
        if entry.sides.iter().all(|s| s.stamp() >= seq) {
            return;
        }
        if entry.pending.back().is_none_or(|p| p.seq != seq) {
            entry.pending.push_back(Pending { seq, files: vec![], rows: vec![], bytes: 0, since: Instant::now() });
        }
        if let Some(last) = entry.pending.back_mut() {
            last.bytes += bytes;
            change(last);
        }
    }

    async fn fold(&mut self, decided: Decided) -> Result<(), WorkerError> {
        failpoint::hit("fold-before-entry");
        let Decided { seq, entry, times, runs, staged } = decided;
        if matches!(entry.body, Body::Plan(_)) {
            // No commit spans an entry that changes its table.
            self.commit_until_clear().await?;
        }
        self.at.apply(&entry).map_err(|e| WorkerError::Refused(e.to_string()))?;
        match &entry.body {
            Body::Data(data) => {
                for (source, intervals) in &data.intervals {
                    self.idle.insert(source.clone(), intervals.iter().filter(|(_, i)| i.claims_idle()).map(|(p, _)| *p).collect());
                }
                for file in &data.files {
                    self.pend(&file.table, seq, file.file.bytes, |p| p.files.push((file.format, file.file.clone())));
                }
                let runs = match (runs, &data.runs) {
                    (Some(runs), _) => runs.take(),
                    (None, None) => vec![],
                    (None, Some(object)) => {
                        let all: Vec<&RunRef> = object.runs.iter().map(|r| &r.run).collect();
                        self.fetch_runs(&object.path, &all).await?
                    }
                };
                self.fold_runs(seq, &times, runs)?;
            }
            Body::Plan(_) => self.change_plan().await?,
            Body::Note(_) => self.fold_runs(seq, &times, vec![])?,
            Body::Checkpoint(c) => {
                self.advance_trail(c.upto)?;
                // Its writer may have merged runs: what they were made of goes now.
                if self.trail.next == c.ledger.next {
                    self.trail = (*c.ledger).clone();
                }
            }
        }
        self.recent.push_back((seq, entry));
        // Counted here before it counts as unseen no more.
        self.tell_pressure();
        drop(staged);
        failpoint::hit("fold-after-entry");
        Ok(())
    }

    async fn commit_until_clear(&mut self) -> Result<(), WorkerError> {
        while self.lake.values().any(|t| !t.pending.is_empty()) {
            self.commit_all(true).await?;
            if self.lake.values().any(|t| !t.pending.is_empty()) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }

    async fn change_plan(&mut self) -> Result<(), WorkerError> {
        self.plans = (self.parts.compile)(&self.at.plan).map_err(|e| WorkerError::Refused(e.to_string()))?;
        let windowed: Vec<String> = self.at.plan.tables.iter().filter(|(_, t)| t.window.is_some()).map(|(n, _)| n.clone()).collect();
        self.folds.retain(|name, _| windowed.contains(name));
        for table in windowed {
            // Panes of a table that goes on are the same runs, read under the new plan. The old ones go first: what they
            // spilled has the names that the new ones give, and is deleted with them.
            self.folds.remove(&table);
            let fold = self.restored(&table).await?;
            self.folds.insert(table, Mutex::new(fold));
        }
        self.open_lake().await
    }

    fn fold_runs(&mut self, seq: u64, times: &BTreeMap<String, Times>, runs: Vec<Run>) -> Result<(), WorkerError> {
        let mut by_table: BTreeMap<String, Vec<Run>> = BTreeMap::new();
        for run in runs {
            by_table.entry(run.table.clone()).or_default().push(run);
        }
        let names: Vec<String> = self.folds.keys().cloned().collect();
        let mut open_windows = 0;
        for name in names {
            let Some(t) = times.get(&name) else { continue };
            let at = EntryTimes {
                horizon_before: if mutant::on(Mutant::JudgedByOwnEntry) { t.horizon_after } else { t.horizon_before },
                watermark_before: t.watermark_before,
                watermark_after: t.watermark_after,
                horizon_after: t.horizon_after,
                emit_all: t.emit_all,
            };
            let runs = by_table.remove(&name).unwrap_or_default();
            let metrics = self.parts.metrics.clone();
            let Some(fold) = self.fold_of(&name) else { continue };
            let changes = in_place(|| cpu(&metrics.cpu.fold, || fold.apply(&at, runs))).map_err(|e| folding(&name, e))?;
            open_windows += fold.open_windows().len() as u64;
            for change in changes.rows {
                let bytes = change.rows.bytes() as u64;
                let op = match change.op {
                    crate::fold::ChangeOp::Insert => ChangeOp::Insert,
                    crate::fold::ChangeOp::Replace => ChangeOp::Replace,
                    crate::fold::ChangeOp::Remove => ChangeOp::Remove,
                };
                let rows: Arc<dyn RowBatches + Send + Sync> = Arc::new(change.rows);
                self.pend(&name, seq, bytes, |p| p.rows.push((op, rows)));
            }
            if !changes.late.is_empty() {
                let late: usize = changes.late.iter().map(|b| b.num_rows()).sum();
                let bytes = changes.late.iter().map(|b| b.get_array_memory_size() as u64).sum();
                if seq >= self.counts_from {
                    self.parts.metrics.late.fetch_add(late as u64, Ordering::Relaxed);
                }
                self.pend(&format!("{name}__late"), seq, bytes, |p| p.rows.push((ChangeOp::Insert, Arc::new(changes.late))));
            }
            if !changes.dead.is_empty() {
                if seq >= self.counts_from {
                    self.parts.metrics.overflow.fetch_add(changes.dead.len() as u64, Ordering::Relaxed);
                }
                let mut rows = DeadRows::default();
                for dead in &changes.dead {
                    let reason = self.parts.pipeline.variables.hide_within(&dead.reason);
                    rows.push_emitted(&format!("window {}, key {}: column {}: {reason}", instant(dead.window_start_us), dead.key, dead.column), &name);
                }
                let source = self.at.plan.tables.get(&name).map(|t| t.source.clone()).unwrap_or_default();
                if let Some(batch) = rows.finish().map_err(|e| WorkerError::Internal(e.to_string()))? {
                    self.pend(&format!("{source}__dead"), seq, batch.get_array_memory_size() as u64, |p| p.rows.push((ChangeOp::Insert, Arc::new(vec![batch]))));
                }
            }
        }
        self.parts.metrics.open_windows.store(open_windows, Ordering::Relaxed);
        let timed = |name: &String| self.at.plan.sources.get(name).is_some_and(|s| s.time_column.is_some());
        for (name, source) in self.at.sources.iter().filter(|(name, _)| timed(name)) {
            let idle = self.idle.get(name);
            let counted = source.partitions.iter().filter(|(p, _)| !idle.is_some_and(|i| i.contains(p)));
            let held = counted.min_by_key(|(_, p)| p.max_event_us).map(|(p, s)| match s.max_event_us {
                Some(_) => format!("partition {p}"),
                None => format!("partition {p}, which has no row yet"),
            });
            self.parts.metrics.set_watermark(name, source.watermark, held.unwrap_or_else(|| "all partitions, which are idle".into()));
        }
        Ok(())
    }

    /// Has no recent writer of the log a lower id? Then it is this worker that commits and truncates. One that wrote nothing
    /// since this worker began may have ended before.
    fn is_lowest(&self) -> bool {
        let wrote = |newest: u64| newest >= self.counts_from && newest + RECENT_ENTRIES > self.at.next;
        let recent = self.at.writers.iter().filter(|(_, newest)| wrote(**newest)).map(|(w, _)| w);
        recent.min().is_none_or(|w| *w >= self.parts.head.writer)
    }

    /// Am I the one who commits? Others step in when a table has waited twice as long as it should.
    fn commits_now(&self, entry: &LakeEntry, every: Duration) -> bool {
        self.is_lowest() || entry.pending.front().is_some_and(|p| p.since.elapsed() > every * 2)
    }

    /// Tells the tables what a plan makes of them that is decided and not folded yet: a worker that is further may
    /// have evolved them.
    async fn expect_newest(&mut self) -> Result<(), WorkerError> {
        let folded = self.at.plan_entry;
        let specs = |l: &Ledger| l.specs().into_iter().map(|(s, born)| (s.clone(), born)).collect::<Vec<_>>();
        let ahead = self.parts.head.with(|l| if l.plan_entry > folded { specs(l) } else { vec![] }).await;
        let known: BTreeSet<(String, u64)> = self.at.specs().into_iter().map(|(s, born)| (s.name.clone(), born)).collect();
        for (record, born) in ahead {
            // Another table by now that has the name.
            if !known.contains(&(record.name.clone(), born)) {
                continue;
            }
            let Some(entry) = self.lake.get_mut(&record.name) else { continue };
            let spec = record.shared().map_err(|e| damaged_spec(&record.name, e))?;
            for side in &mut entry.sides {
                side.expect(spec.clone());
            }
        }
        Ok(())
    }

    async fn commit_all(&mut self, draining: bool) -> Result<(), WorkerError> {
        self.last_commit = Instant::now();
        let every = Duration::from_millis(self.parts.pipeline.commit_every_ms);
        self.expect_newest().await?;
        let names: Vec<String> = self.lake.keys().cloned().collect();
        let upto = self.at.next - 1;
        let stamp = Stamp { log: self.at.log, entry: upto, offsets: self.at.positions() };
        for name in names {
            let Some(entry) = self.lake.get(&name) else { continue };
            if entry.pending.is_empty() {
                continue;
            }
            let mine = draining || self.commits_now(entry, every);
            let planned = entry.windowed.as_ref().and_then(|w| self.at.plan.tables.get(w));
            let horizon = entry.windowed.as_ref().and_then(|w| self.at.horizons.get(w).copied().flatten());
            let corrections = planned.is_some_and(|t| t.allowed_lateness_us > 0 || t.emit_on_update);
            let window = planned.and_then(|t| t.window.clone());
            let Some(entry) = self.lake.get_mut(&name) else { continue };
            for nth in 0..entry.sides.len() {
                if nth > 0 {
                    failpoint::hit("commit-one-format");
                }
                let what = Advance {
                    store: &self.parts.store,
                    pipeline: &self.parts.pipeline.name,
                    spec: &entry.spec,
                    stamp: &stamp,
                    horizon,
                    window: window.as_ref(),
                    corrections,
                    only_look: !mine,
                    attempt: (self.parts.ids)(),
                    new_id: self.parts.ids.as_ref(),
                    metrics: &self.parts.metrics,
                };
                match advance(&mut entry.sides[nth], &entry.pending, what).await {
                    Ok(()) => self.parts.metrics.waiting_over(&format!("{} table {name}", entry.sides[nth].kind())),
                    Err(CommitError::Refused(why)) => return Err(self.refused(why).await),
                    Err(CommitError::Unavailable(why)) => self.parts.metrics.waiting(&format!("{} table {name}", entry.sides[nth].kind()), &why),
                }
            }
            let lowest = entry.sides.iter().map(|s| s.stamp()).min().filter(|_| !mutant::on(Mutant::ReceiptBeforeCommit)).unwrap_or(upto);
            while entry.pending.front().is_some_and(|p| p.seq <= lowest) {
                entry.pending.pop_front();
            }
            failpoint::hit("commit-done");
        }
        self.last_commit = Instant::now();
        Ok(())
    }

    fn advance_trail(&mut self, upto: u64) -> Result<(), WorkerError> {
        while self.recent.front().is_some_and(|(seq, _)| *seq <= upto) {
            let Some((seq, entry)) = self.recent.pop_front() else { break };
            if seq >= self.trail.next {
                self.trail.apply(&entry).map_err(|e| WorkerError::Refused(e.to_string()))?;
            }
        }
        Ok(())
    }

    /// Writes down the facts of the entries up to M that no segment holds yet, before they are freed.
    async fn keep_history(&self, upto: u64) -> Result<(), String> {
        let mut kept = vec![];
        // A fold that began at birth has not seen entry 0 as such.
        if self.trail.next == 1
            && let Some(birth) = self.parts.head.log.read(0).await.map_err(|e| e.to_string())?
        {
            kept.push(history::record(0, &birth));
        }
        let freed = self.recent.iter().filter(|(seq, _)| *seq >= self.trail.next && *seq <= upto);
        kept.extend(freed.map(|(seq, entry)| history::record(*seq, entry)));
        History::new(self.parts.store.clone(), &self.parts.state_folder).append(self.at.log, kept).await.map_err(|e| e.to_string())
    }

    /// The highest entry with nothing left to do for any format of any table.
    fn lowest_stamp(&self) -> u64 {
        let folded = self.at.next - 1;
        let waiting = self.lake.values().filter_map(|t| t.pending.front()).filter(|_| !mutant::on(Mutant::TruncatesBeforeSlowest));
        waiting.map(|p| p.seq.saturating_sub(1)).min().unwrap_or(folded)
    }

    /// Gives a receipt for what has come into every format of every table since the last one.
    fn release(&mut self, receipts: &Receipts) {
        let passed = self.lowest_stamp();
        if self.released.is_some_and(|r| r >= passed) {
            return;
        }
        let receipt = Receipt::new(passed, &self.at, self.recent.iter());
        failpoint::hit("receipt");
        receipts.give(&receipt);
        failpoint::hit("receipt-given");
        self.released = Some(receipt.entry());
    }

    /// Who ends does it whatever its id: of runs that are all short, each follows one that is gone and was lower.
    async fn checkpoint_and_truncate(&mut self, ending: bool) -> Result<(), WorkerError> {
        let lowest = self.lowest_stamp();
        if !ending && !self.is_lowest() {
            return Ok(());
        }
        // One that was decided and is not folded yet would refuse the next, and has removed runs that the trail still names.
        let newest = self.parts.head.with(|l| l.checkpoint.map(|c| c.entry)).await;
        if newest != self.at.checkpoint.map(|c| c.entry) {
            return Ok(());
        }
        let Some(upto) = checkpoint::upto(self.parts.cadence, self.at.next, lowest, self.at.checkpoint.map(|c| c.upto)) else { return Ok(()) };
        // Run objects that entries up to M made or kept, by the entries that were folded here: an object found
        // by its number when it is removed may be a stray, whose attempt was decided under a higher one.
        let objects = |l: &Ledger| l.runs.values().flatten().map(|r| r.object.clone()).collect::<BTreeSet<String>>();
        let mut known = objects(&self.trail);
        known.extend(self.recent.iter().take_while(|(seq, _)| *seq <= upto).filter_map(|(_, e)| match &e.body {
            Body::Data(data) => data.runs.as_ref().map(|r| r.path.clone()),
            _ => None,
        }));
        if let Err(why) = self.keep_history(upto).await {
            self.parts.metrics.waiting("store", &why);
            return Ok(());
        }
        // On a copy: should another's checkpoint be decided in its place, then what that one merged is gone,
        // and the trail goes on from there.
        let mut trail = self.trail.clone();
        for (seq, entry) in self.recent.iter().take_while(|(seq, _)| *seq <= upto) {
            if *seq >= trail.next {
                trail.apply(entry).map_err(|e| WorkerError::Refused(e.to_string()))?;
            }
        }
        if trail.next != upto + 1 {
            return Ok(());
        }
        let (attempt, began) = ((self.parts.ids)(), self.at.next);
        self.merge_runs(&mut trail, attempt).await?;
        trail.runs_as_of = upto;
        let live = objects(&trail);
        let stamps = self.lake.iter().map(|(name, table)| (name.clone(), table.sides.iter().map(|s| (s.kind(), s.held())).collect())).collect();
        let body = Body::Checkpoint(Checkpoint { upto, ledger: Box::new(trail), stamps });
        match self.parts.head.append(attempt, began, body, vec![], self.parts.clock.now_ms()).await? {
            Appended::Stale(_) => return Ok(()),
            Appended::Decided(_) => failpoint::hit("checkpoint-decided"),
        }
        for path in known.difference(&live) {
            // What stays for want of an answer is an orphan, and found as one.
            let _ = self.parts.store.delete(&Path::from(path.as_str())).await;
            failpoint::hit("checkpoint-run-deleted");
        }
        match self.parts.head.log.truncate(upto).await {
            Ok(_) => Ok(()),
            Err(e) => {
                self.parts.metrics.waiting("log", &e.to_string());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
