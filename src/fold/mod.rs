//! The table half's heart: entries of the log in, rows of a table out.
//!
//! A fold is a pure function of the log's prefix. It holds one pane per window; an entry's runs are merged into
//! the panes in the order of the log, windows that the watermark passed are emitted, windows that were
//! emitted before and got rows are corrected, and panes that the horizon has reached are dropped (I7, I8).
//! How much memory there was, and whether the process was ever stopped, shows in no row.

mod emit;
pub(crate) mod merge;
mod pane;
mod rows;
mod sets;
mod spill;
#[cfg(test)]
mod tests;

pub use emit::EmitDead;
pub use rows::RowSet;

use crate::mutant::{self, Mutant};
use crate::partial::{Run, RunKind, aggregate_of, cut, epoch_groups, shared_schema};
use crate::pipeline::Emit;
use crate::pipeline::sql::{Aggregate, TablePlan, Tumble};
use crate::transform::Transform;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatchOptions, StringArray, UInt32Array};
use arrow::compute::{take_arrays, take_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use emit::{Emitted, Emitter, marked, pick};
use pane::{Emission, Pane};
use rows::{RowSetBuilder, Scratches};
use spill::{Order, SharedFile};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What a fold may use.
#[derive(Debug, Clone)]
pub struct FoldConfig {
    /// Memory for panes and for the rows on their way out, about. What goes beyond is written to `spill_dir`.
    pub memory_bytes: usize,
    /// A folder of this fold's own. Files in it are removed when they are not needed any more; those that a killed
    /// process left behind are the caller's to clear before the fold is made.
    pub spill_dir: PathBuf,
}

/// Event time around one entry, in microseconds; `None` is before all time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryTimes {
    /// The table's horizon before the entry: rows of windows that end at or before it are late.
    pub horizon_before: Option<i64>,
    pub watermark_before: Option<i64>,
    /// Windows that end at or before it are emitted.
    pub watermark_after: Option<i64>,
    /// Panes of windows that end at or before it are dropped. In a restore it may be that of the last entry.
    pub horizon_after: Option<i64>,
    /// End of input: every window is emitted, wherever the watermark is. In a restore: such an entry followed.
    pub emit_all: bool,
}

/// What is done with the rows of a [`ChangeRows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOp {
    /// The key is not in the table; append-only tables have nothing else.
    Insert,
    /// The key is in the table.
    Replace,
    /// The key is in the table and has to go. The rows are those that were shown last.
    Remove,
}

#[derive(Debug, Clone)]
pub struct ChangeRows {
    pub op: ChangeOp,
    /// Rows of [`TablePlan::output`].
    pub rows: RowSet,
}

/// What one entry does to the table. A key is in at most one of the row sets.
#[derive(Debug, Default)]
pub struct Changes {
    /// In this order. Of an append-only table: retractions, then insertions.
    pub rows: Vec<ChangeRows>,
    /// Late rows, of [`TablePlan::late_schema`], in the order of the runs.
    pub late: Vec<RecordBatch>,
    /// Values that could not be emitted.
    pub dead: Vec<EmitDead>,
    /// Starts of the windows emitted for the first time.
    pub closed: Vec<i64>,
    /// Starts of the windows that were emitted before and changed.
    pub corrected: Vec<i64>,
}

/// What an entry brings, by window.
#[derive(Default)]
struct Deltas {
    /// Without the windows' starts.
    batches: Vec<RecordBatch>,
    /// By a window's start, its rows: which of the batches, and from where to where in it.
    places: BTreeMap<i64, Vec<(usize, Range<usize>)>>,
}

impl Deltas {
    fn add(&mut self, start: i64, rows: Range<usize>) {
        if !rows.is_empty() {
            self.places.entry(start).or_default().push((self.batches.len(), rows));
        }
    }

    /// The batches of each window. A pane must not hold on to the rows of the others.
    fn by_window(self) -> impl Iterator<Item = Result<(i64, Vec<RecordBatch>), DataFusionError>> {
        let batches = self.batches;
        self.places.into_iter().map(move |(start, places)| {
            Ok((start, places.into_iter().map(|(nth, rows)| copied(&batches[nth], rows)).collect::<Result<_, _>>()?))
        })
    }
}

impl Changes {
    /// Nothing is to be committed.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.late.is_empty() && self.dead.is_empty()
    }
}

/// These rows, which keep nothing of the others alive. A batch may have no columns.
fn copied(whole: &RecordBatch, rows: Range<usize>) -> Result<RecordBatch, DataFusionError> {
    if rows.len() == whole.num_rows() {
        return Ok(whole.clone());
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let columns = take_arrays(whole.columns(), &UInt32Array::from_iter_values(rows.start as u32..rows.end as u32), None)?;
    Ok(RecordBatch::try_new_with_options(whole.schema(), columns, &options)?)
}

#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("table {table} has no window: only windowed tables are folded")]
    NotWindowed { table: String },
    /// The log and the plan do not belong together.
    #[error("a run of table {table} does not fit its plan: expected {expected}, found {found}")]
    Schema { table: String, expected: String, found: String },
    /// A rule of the log was broken: the row should have been staged raw.
    #[error("table {table}: a partial aggregate of the window that ended at {window_end_us} us came when the horizon had reached {horizon_us} us")]
    Dropped { table: String, window_end_us: i64, horizon_us: i64 },
    /// The disk is full or failed; nothing was lost, the entry can be folded again after a restart.
    #[error("cannot spill to {path}: {source}", path = path.display())]
    Spill { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Evaluate(#[from] DataFusionError),
}

/// One table's fold. After an error it must be made anew and restored.
pub struct TableFold {
    plan: Arc<TablePlan>,
    window: Tumble,
    emit: Emit,
    transform: Transform,
    emitter: Emitter,
    panes: BTreeMap<i64, Pane>,
    /// Of all panes.
    held: Held,
    order: Arc<Order>,
    config: FoldConfig,
    scratches: Scratches,
}

/// Memory of panes.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    bytes: usize,
    /// Of these, what a spill would free.
    spillable: usize,
}

impl Held {
    fn of(pane: &Pane, aggregate: &Aggregate) -> Self {
        Self { bytes: pane.bytes(), spillable: pane.spillable_bytes(aggregate) }
    }

    fn replace(&mut self, before: Self, after: Self) {
        self.bytes = self.bytes - before.bytes + after.bytes;
        self.spillable = self.spillable - before.spillable + after.spillable;
    }
}

/// Rows of one entry, by what is done with them.
struct Out {
    retract: RowSetBuilder,
    insert: RowSetBuilder,
    replace: RowSetBuilder,
    remove: RowSetBuilder,
}

impl TableFold {
    /// # Errors
    /// The table is not windowed.
    pub fn new(plan: Arc<TablePlan>, emit: Emit, config: FoldConfig) -> Result<Self, FoldError> {
        let (Some(window), Some(aggregate)) = (plan.window, &plan.aggregate) else {
            return Err(FoldError::NotWindowed { table: plan.table.clone() });
        };
        let order = Arc::new(Order::new(aggregate, config.memory_bytes)?);
        let scratches = Scratches::new(config.spill_dir.clone(), &plan.table);
        let (transform, emitter) = (Transform::new(plan.clone()), Emitter::new(&plan));
        Ok(Self { plan, window, emit, transform, emitter, panes: BTreeMap::new(), held: Held::default(), order, config, scratches })
    }

    pub fn plan(&self) -> &Arc<TablePlan> {
        &self.plan
    }

    /// Applies one entry: its runs of this table, in the order in which the entry names them.
    pub fn apply(&mut self, at: &EntryTimes, runs: Vec<Run>) -> Result<Changes, FoldError> {
        let mut changes = Changes::default();
        let deltas = self.deltas(at, runs, Some(&mut changes.late))?;
        let limit = self.config.memory_bytes / 16;
        let builder = || RowSetBuilder::new(self.plan.output.clone(), limit);
        let mut out = Out { retract: builder(), insert: builder(), replace: builder(), remove: builder() };
        for delta in deltas.by_window() {
            let (start, batches) = delta?;
            let end = self.window.window_of(start).1;
            let emitted_before = reached(at.watermark_before, end) || self.panes.get(&start).is_some_and(|p| p.emitted_early);
            if emitted_before || self.emit == Emit::OnUpdate {
                self.correct(start, batches, &mut out, &mut changes)?;
                if emitted_before {
                    changes.corrected.push(start);
                }
            } else {
                self.merge(start, batches)?;
            }
        }
        self.close(at, &mut out, &mut changes)?;
        self.drop_panes(at.horizon_after);
        for (op, builder) in
            [(ChangeOp::Remove, out.remove), (ChangeOp::Insert, out.retract), (ChangeOp::Insert, out.insert), (ChangeOp::Replace, out.replace)]
        {
            if let Some(rows) = builder.finish(&mut self.scratches)? {
                changes.rows.push(ChangeRows { op, rows });
            }
        }
        Ok(changes)
    }

    /// Rebuilds the panes from the runs that still live, in the order of the log, up to some entry. Nothing is
    /// emitted: what was due is in the table.
    pub fn restore(&mut self, entries: Vec<(EntryTimes, Vec<Run>)>) -> Result<(), FoldError> {
        for (at, runs) in entries {
            self.restore_entry(&at, runs)?;
        }
        Ok(())
    }

    /// As [`TableFold::restore`], one entry at a time.
    pub fn restore_entry(&mut self, at: &EntryTimes, runs: Vec<Run>) -> Result<(), FoldError> {
        for delta in self.deltas(at, runs, None)?.by_window() {
            let (start, batches) = delta?;
            // A run lives as long as the last of its windows.
            if reached(at.horizon_after, self.window.window_of(start).1) {
                continue;
            }
            self.merge(start, batches)?;
            if let Some(pane) = self.panes.get_mut(&start) {
                pane.emitted_early |= at.emit_all;
            }
        }
        self.drop_panes(at.horizon_after);
        Ok(())
    }

    /// Ends a restore: the times after the last entry that the table holds. The next [`TableFold::apply`] goes on as if the
    /// fold had never stopped.
    pub fn resume(&mut self, _watermark: Option<i64>, horizon: Option<i64>) {
        self.drop_panes(horizon);
    }

    /// The windows that have rows and are not dropped yet, in order: `[start, end)` in microseconds.
    pub fn open_windows(&self) -> Vec<(i64, i64)> {
        self.panes.values().map(|p| p.window).collect()
    }

    /// Memory held by panes, about.
    pub fn bytes(&self) -> usize {
        self.held.bytes
    }

    /// Panes take more than half of what they may before they are written to disk, or some are there already.
    pub fn crowded(&self) -> bool {
        self.bytes() > self.config.memory_bytes / 6 || self.spilled_windows() > 0
    }

    /// Panes that are on disk.
    pub fn spilled_windows(&self) -> usize {
        self.panes.values().filter(|p| p.is_spilled()).count()
    }

    /// The partial runs of an entry by window, judged rows first.
    fn deltas(&self, at: &EntryTimes, runs: Vec<Run>, mut late: Option<&mut Vec<RecordBatch>>) -> Result<Deltas, FoldError> {
        let aggregate = aggregate_of(&self.plan)?;
        let mut deltas = Deltas::default();
        let (later, partial): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(|r| r.kind == RunKind::JudgeLater);
        for run in later {
            self.fits(&run.batch, &self.plan.judge_later_schema())?;
            for run in self.judge(at.horizon_before, run.batch, aggregate, late.as_deref_mut())? {
                self.spread(run, aggregate, &mut deltas)?;
            }
        }
        for run in partial {
            let first = run.kind.windows().map_or(i64::MIN, |(first, _)| first);
            let end = self.window.window_of(first).1;
            if let Some(horizon_us) = at.horizon_before.filter(|h| end <= *h) {
                return Err(FoldError::Dropped { table: self.plan.table.clone(), window_end_us: end, horizon_us });
            }
            self.spread(run, aggregate, &mut deltas)?;
        }
        Ok(deltas)
    }

    /// Finds the windows of a run.
    fn spread(&self, run: Run, aggregate: &Aggregate, deltas: &mut Deltas) -> Result<(), FoldError> {
        let n = run.batch.num_rows();
        match run.kind {
            RunKind::Partial { window_start_us } => {
                self.fits(&run.batch, &aggregate.run)?;
                deltas.add(window_start_us, 0..n);
                deltas.batches.push(run.batch);
            }
            RunKind::Windows { first_start_us, last_start_us } => {
                let mut from = 0;
                for window in self.starts(&run.batch, first_start_us, last_start_us)?.chunk_by(|a, b| a == b) {
                    deltas.add(window[0], from..from + window.len());
                    from += window.len();
                }
                let rows = RecordBatchOptions::new().with_row_count(Some(n));
                let batch = RecordBatch::try_new_with_options(aggregate.run.clone(), run.batch.columns()[1..].to_vec(), &rows);
                deltas.batches.push(batch.map_err(DataFusionError::from)?);
            }
            RunKind::JudgeLater => return Err(DataFusionError::Internal(format!("table {}: rows that were judged are to be judged", self.plan.table)).into()),
        }
        Ok(())
    }

    /// The window's start of each row of a run of several windows.
    fn starts<'a>(&self, batch: &'a RecordBatch, first_us: i64, last_us: i64) -> Result<&'a [i64], FoldError> {
        self.fits(batch, &shared_schema(aggregate_of(&self.plan)?))?;
        let starts = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        let values = starts.values();
        if starts.null_count() == 0 && values.is_sorted() && values.first() == Some(&first_us) && values.last() == Some(&last_us) {
            return Ok(values);
        }
        let expected = format!("windows in order from {} to {}", instant(first_us), instant(last_us));
        Err(FoldError::Schema { table: self.plan.table.clone(), expected, found: "others".into() })
    }

    fn fits(&self, batch: &RecordBatch, expected: &arrow::datatypes::Schema) -> Result<(), FoldError> {
        let found = batch.schema();
        let types = |s: &arrow::datatypes::Schema| s.fields().iter().map(|f| f.data_type().clone()).collect::<Vec<_>>();
        if types(&found) == types(expected) {
            return Ok(());
        }
        let text = |s: &arrow::datatypes::Schema| format!("{:?}", types(s));
        Err(FoldError::Schema { table: self.plan.table.clone(), expected: text(expected), found: text(&found) })
    }

    /// Judges rows one by one; those in time become partial runs.
    fn judge(&self, horizon: Option<i64>, rows: RecordBatch, aggregate: &Aggregate, late: Option<&mut Vec<RecordBatch>>) -> Result<Vec<Run>, FoldError> {
        let ends = rows.column(rows.num_columns() - 1).as_primitive::<TimestampMicrosecondType>().values().clone();
        let judged = horizon.filter(|_| !mutant::on(Mutant::NothingIsJudged));
        let (over, mut in_time): (Vec<u32>, Vec<u32>) = (0..ends.len() as u32).partition(|i| reached(judged, ends[*i as usize]));
        if mutant::on(Mutant::LateRowsCountToo) {
            in_time.extend(&over);
        }
        if let (Some(late), Some(horizon), false) = (late, horizon, over.is_empty()) {
            let part = pick(&rows, &over)?;
            let reason = format!("its window was over for good: the horizon had reached {}", instant(horizon));
            let mut columns: Vec<ArrayRef> = part.columns()[..5].to_vec();
            columns.push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(reason, part.num_rows()))));
            columns.extend(part.columns()[5..].iter().cloned());
            late.push(RecordBatch::try_new(self.plan.late_schema(), columns).map_err(DataFusionError::from)?);
        }
        if in_time.is_empty() {
            return Ok(vec![]);
        }
        let part = take_record_batch(&rows, &UInt32Array::from(in_time)).map_err(DataFusionError::from)?;
        let input = RecordBatch::try_new(self.plan.below_input(), part.columns()[5..].to_vec()).map_err(DataFusionError::from)?;
        let done = self.transform.apply(&input)?;
        if let Some((_, why)) = done.failed.first() {
            // It did not fail when it was staged, and expressions are immutable.
            return Err(DataFusionError::Internal(format!("a judge-later row of table {} fails now: {why}", self.plan.table)).into());
        }
        let mut groups = epoch_groups(aggregate)?;
        groups.update(aggregate, &done.batch)?;
        Ok(cut(&self.plan, groups)?)
    }

    fn merge(&mut self, start: i64, batches: Vec<RecordBatch>) -> Result<(), FoldError> {
        let plan = self.plan.clone();
        let aggregate = aggregate_of(&plan)?;
        for batch in batches {
            let (pane, before) = pane(&mut self.panes, start, self.window, aggregate)?;
            pane.merge(batch)?;
            self.held.replace(before, Held::of(pane, aggregate));
            self.keep_within_memory()?;
        }
        Ok(())
    }

    /// Merges, and emits what changed.
    fn correct(&mut self, start: i64, batches: Vec<RecordBatch>, out: &mut Out, changes: &mut Changes) -> Result<(), FoldError> {
        let plan = self.plan.clone();
        let aggregate = aggregate_of(&plan)?;
        let emission = Emission { plan: &plan, aggregate, emitter: &self.emitter };
        let ask_before = !plan.upsert || self.emitter.has_filter();
        let (pane, before) = pane(&mut self.panes, start, self.window, aggregate)?;
        let mut changed = pane.merge_and_emit(batches, ask_before, &emission, &mut self.scratches)?;
        self.held.replace(before, Held::of(pane, aggregate));
        self.keep_within_memory()?;
        changes.dead.append(&mut changed.now.dead);
        // Which of the changed groups were to be seen before, and where their old rows are.
        let mut old_row = vec![None; changed.existed.len()];
        let mut next = 0;
        for (i, existed) in changed.existed.iter().enumerate().filter(|(_, e)| **e) {
            debug_assert!(existed);
            if changed.before.as_ref().is_none_or(|b| b.shown[next]) {
                old_row[i] = Some(next as u32);
            }
            next += 1;
        }
        let groups = 0..changed.existed.len();
        let now = |keep: &dyn Fn(usize) -> bool| groups.clone().filter(|i| keep(*i)).map(|i| i as u32).collect::<Vec<_>>();
        let shown = &changed.now.shown;
        let scratches = &mut self.scratches;
        if !plan.upsert {
            if let Some(before) = &changed.before {
                let old: Vec<u32> = old_row.iter().flatten().copied().collect();
                out.retract.push(marked(&plan, pick(&before.rows, &old)?, "retract")?, scratches)?;
            }
            let fresh = now(&|i| shown[i]);
            return out.insert.push(marked(&plan, pick(&changed.now.rows, &fresh)?, "insert")?, scratches);
        }
        out.insert.push(pick(&changed.now.rows, &now(&|i| shown[i] && old_row[i].is_none()))?, scratches)?;
        out.replace.push(pick(&changed.now.rows, &now(&|i| shown[i] && old_row[i].is_some()))?, scratches)?;
        if let Some(before) = &changed.before {
            let gone: Vec<u32> = groups.clone().filter(|i| !shown[*i]).filter_map(|i| old_row[i]).collect();
            out.remove.push(pick(&before.rows, &gone)?, scratches)?;
        }
        Ok(())
    }

    /// Emits the windows that this entry's watermark passes.
    fn close(&mut self, at: &EntryTimes, out: &mut Out, changes: &mut Changes) -> Result<(), FoldError> {
        let plan = self.plan.clone();
        let emission = Emission { plan: &plan, aggregate: aggregate_of(&plan)?, emitter: &self.emitter };
        for (start, pane) in &mut self.panes {
            let due = at.emit_all || reached(at.watermark_after, pane.window.1);
            if pane.emitted_early || reached(at.watermark_before, pane.window.1) || !due {
                continue;
            }
            pane.emitted_early = !reached(at.watermark_after, pane.window.1);
            changes.closed.push(*start);
            if self.emit == Emit::OnUpdate {
                continue;
            }
            let (dead, insert) = (&mut changes.dead, &mut out.insert);
            pane.emit_all(&emission, &mut self.scratches, &mut |mut emitted: Emitted, scratches| {
                dead.append(&mut emitted.dead);
                let shown: Vec<u32> = (0..emitted.shown.len() as u32).filter(|i| emitted.shown[*i as usize]).collect();
                let rows = pick(&emitted.rows, &shown)?;
                insert.push(if plan.upsert { rows } else { marked(&plan, rows, "insert")? }, scratches)
            })?;
        }
        Ok(())
    }

    fn drop_panes(&mut self, horizon: Option<i64>) {
        self.panes.retain(|_, p| !reached(horizon, p.window.1));
        self.count();
    }

    fn count(&mut self) {
        self.held = Held::default();
        let Some(aggregate) = &self.plan.aggregate else { return };
        for pane in self.panes.values() {
            self.held.replace(Held::default(), Held::of(pane, aggregate));
        }
    }

    /// Writes panes to disk until the others fit, the biggest first, of small ones those that end last. A pane is
    /// copied while it is written, so panes get a third of the memory.
    ///
    /// It looks at all panes, so it waits until there is enough to write: what spilled panes keep may alone be too much.
    fn keep_within_memory(&mut self) -> Result<(), FoldError> {
        let plan = self.plan.clone();
        let aggregate = aggregate_of(&plan)?;
        let limit = self.config.memory_bytes / 3;
        while self.held.bytes > limit && self.held.spillable > limit / 8 {
            let mut sizes: Vec<(usize, i64)> = self.panes.iter().map(|(start, p)| (p.spillable_bytes(aggregate), *start)).filter(|(size, _)| *size > 0).collect();
            sizes.sort_unstable();
            let mut sizes = sizes.into_iter().rev().peekable();
            // A quarter more than needed, lest the next window begins it again.
            let mut excess = self.held.bytes.saturating_sub(limit / 4 * 3);
            while excess > 0 && sizes.peek().is_some() {
                let mut file = SharedFile::new(aggregate, &mut self.scratches)?;
                let mut written = vec![];
                while excess > 0 && !file.is_full() {
                    let Some((size, start)) = sizes.next() else { break };
                    let Some(pane) = self.panes.get_mut(&start) else { continue };
                    written.push((start, pane.spill(aggregate, &self.order, &mut file)?));
                    excess = excess.saturating_sub(size);
                }
                let file = file.finish()?;
                for (start, written) in written {
                    if let Some(pane) = self.panes.get_mut(&start) {
                        pane.attach(written, file.clone(), aggregate, &mut self.scratches)?;
                    }
                }
            }
            self.count();
        }
        Ok(())
    }
}

/// The pane of a window, made where there is none, and what it holds now.
fn pane<'a>(panes: &'a mut BTreeMap<i64, Pane>, start: i64, window: Tumble, aggregate: &Aggregate) -> Result<(&'a mut Pane, Held), FoldError> {
    Ok(match panes.entry(start) {
        std::collections::btree_map::Entry::Occupied(e) => {
            let pane = e.into_mut();
            let held = Held::of(pane, aggregate);
            (pane, held)
        }
        std::collections::btree_map::Entry::Vacant(e) => (e.insert(Pane::new(window.window_of(start), aggregate)?), Held::default()),
    })
}

/// Whether a time has reached this instant.
fn reached(time: Option<i64>, instant_us: i64) -> bool {
    time.is_some_and(|t| instant_us <= t)
}

fn instant(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us).map_or_else(|| format!("{us} us"), |t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}
