//! One window's groups: in memory, or spilled.

use super::FoldError;
use super::emit::{Emitted, Emitter};
use super::rows::{Scratch, Scratches};
use super::sets::{Take, Values};
use super::spill::{Order, Scanned, SharedFile, Spilled, Written};
use crate::partial::accumulate::Ids;
use crate::partial::groups::{Groups, Keys};
use crate::partial::sets::has_sets;
use crate::pipeline::sql::{Aggregate, TablePlan};
use arrow::array::{Array, ArrayRef, UInt32Array, UInt64Array};
use arrow::compute::{concat, interleave, take_arrays, take_record_batch};
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use std::ops::Range;
use std::sync::Arc;

/// Memory of a pane besides what its groups count: the pane, tables without entries, accumulators.
const OVERHEAD: usize = 1024;
/// The same once it is spilled.
const SPILLED_OVERHEAD: usize = 128;

/// Groups that are emitted at once.
const EMIT_ROWS: usize = 8192;

pub(super) struct Pane {
    /// The window, half-open, in microseconds.
    pub window: (i64, i64),
    /// Emitted at an end of input, before the watermark reached its end.
    pub emitted_early: bool,
    state: State,
}

enum State {
    Memory(Box<Groups>),
    Spilled(Box<Spilled>),
}

/// The groups that an entry changed.
pub(super) struct Changed {
    pub now: Emitted,
    /// Whether the group was there before the entry.
    pub existed: Vec<bool>,
    /// The rows before the entry of the groups that existed, in their order; only when asked for.
    pub before: Option<Emitted>,
}

/// What a pane needs to know to emit.
pub(super) struct Emission<'a> {
    pub plan: &'a TablePlan,
    pub aggregate: &'a Aggregate,
    pub emitter: &'a Emitter,
}

impl Emission<'_> {
    fn rows(&self, window: (i64, i64), keys: &[ArrayRef], values: (Vec<ArrayRef>, Vec<Vec<usize>>), groups: usize) -> Result<Emitted, DataFusionError> {
        self.emitter.emit(self.plan, self.aggregate, window, keys, values, groups)
    }
}

impl Pane {
    pub(super) fn new(window: (i64, i64), aggregate: &Aggregate) -> Result<Self, DataFusionError> {
        Ok(Self { window, emitted_early: false, state: State::Memory(Box::new(Groups::new(aggregate, &aggregate.keys)?)) })
    }

    /// Adds a run, whose keys each come once.
    pub(super) fn merge(&mut self, run: RecordBatch) -> Result<(), FoldError> {
        match &mut self.state {
            State::Memory(groups) => {
                groups.merge(run.columns(), run.num_rows())?;
            }
            State::Spilled(spilled) => spilled.push(run),
        }
        Ok(())
    }

    /// Adds an entry's runs and tells what became of their groups.
    pub(super) fn merge_and_emit(&mut self, runs: Vec<RecordBatch>, ask_before: bool, emission: &Emission<'_>, scratches: &mut Scratches) -> Result<Changed, FoldError> {
        let aggregate = emission.aggregate;
        let window = self.window;
        let width = aggregate.keys.len();
        match &mut self.state {
            State::Memory(groups) => {
                let known = groups.len();
                let mut seen = vec![false; known];
                let (mut changed, mut first_at) = (vec![], vec![]);
                let mut ids_of = vec![];
                for (r, run) in runs.iter().enumerate() {
                    let mut ids = vec![];
                    groups.keys.intern(&run.columns()[..width], run.num_rows(), &mut ids)?;
                    seen.resize(groups.len(), false);
                    for (row, id) in ids.iter().enumerate() {
                        if !std::mem::replace(&mut seen[*id], true) {
                            changed.push(*id);
                            first_at.push((r, row));
                        }
                    }
                    ids_of.push(ids);
                }
                let keys = keys_at(&runs, width, &first_at)?;
                let existed: Vec<bool> = changed.iter().map(|id| *id < known).collect();
                let before = if ask_before {
                    let ids: Vec<usize> = changed.iter().copied().filter(|id| *id < known).collect();
                    let at: Vec<(usize, usize)> = first_at.iter().zip(&existed).filter(|(_, e)| **e).map(|(at, _)| *at).collect();
                    let values = groups.accumulators.values(&Ids::List(&ids))?;
                    Some(emission.rows(window, &keys_at(&runs, width, &at)?, values, ids.len())?)
                } else {
                    None
                };
                let total = groups.len();
                for (run, ids) in runs.iter().zip(&ids_of) {
                    groups.accumulators.merge(&run.columns()[width..], ids, total)?;
                }
                let values = groups.accumulators.values(&Ids::List(&changed))?;
                let now = emission.rows(window, &keys, values, changed.len())?;
                Ok(Changed { now, existed, before })
            }
            State::Spilled(spilled) => {
                // The changed groups alone are brought back, from their oldest state to their newest.
                let mut touched = Keys::new(&aggregate.keys);
                let mut ids_of = vec![];
                for run in &runs {
                    let mut ids = vec![];
                    touched.intern(&run.columns()[..width], run.num_rows(), &mut ids)?;
                    ids_of.push(ids);
                }
                let n = touched.len();
                let mut keys = touched.list()?;
                if has_sets(aggregate) {
                    // In their order, some can be brought back without the others.
                    let order = spilled.ordered(&keys, n)?;
                    keys = pick_columns(&keys, &order)?;
                    let mut rank = vec![0; n];
                    order.iter().enumerate().for_each(|(at, id)| rank[*id] = at);
                    ids_of.iter_mut().flatten().for_each(|id| *id = rank[*id]);
                }
                let touched = Touched { spilled, aggregate, keys: &keys, runs: &runs, ids_of: &ids_of };
                let (mut existed, mut before, mut now) = (vec![], vec![], vec![]);
                let mut open = vec![0..n];
                while let Some(some) = open.pop() {
                    match touched.values(some.clone(), ask_before, scratches)? {
                        Some(values) => {
                            existed.extend(values.existed);
                            before.extend(values.before);
                            now.push(values.now);
                        }
                        // Too much at once.
                        None => {
                            let middle = some.start + some.len() / 2;
                            open.extend([middle..some.end, some.start..middle]);
                        }
                    }
                }
                let older: Vec<usize> = (0..n).filter(|id| existed[*id]).collect();
                let before = if ask_before { Some(emission.rows(window, &pick_columns(&keys, &older)?, joined(before)?, older.len())?) } else { None };
                let now = emission.rows(window, &keys, joined(now)?, n)?;
                runs.into_iter().for_each(|run| spilled.push(run));
                Ok(Changed { now, existed, before })
            }
        }
    }

    /// All groups as rows, a bounded number at a time.
    pub(super) fn emit_all(
        &mut self,
        emission: &Emission<'_>,
        scratches: &mut Scratches,
        each: &mut dyn FnMut(Emitted, &mut Scratches) -> Result<(), FoldError>,
    ) -> Result<(), FoldError> {
        let window = self.window;
        let emit = |groups: &mut Groups, scratches: &mut Scratches, each: &mut dyn FnMut(Emitted, &mut Scratches) -> Result<(), FoldError>| {
            let keys = groups.keys.list()?;
            let n = groups.len();
            for from in (0..n).step_by(EMIT_ROWS) {
                let to = (from + EMIT_ROWS).min(n);
                let part: Vec<ArrayRef> = keys.iter().map(|k| k.slice(from, to - from)).collect();
                each(emission.rows(window, &part, groups.accumulators.values(&Ids::Range(from..to))?, to - from)?, scratches)?;
            }
            Ok(())
        };
        match &mut self.state {
            State::Memory(groups) => emit(groups, scratches, each),
            State::Spilled(spilled) => spilled.scan(emission.aggregate, scratches, &mut |scanned, scratches| match scanned {
                Scanned::Groups(groups) => emit(groups, scratches, &mut *each),
                Scanned::Large(large) => {
                    let values = large.values(scratches)?;
                    each(emission.rows(window, &large.key, values, 1)?, scratches)
                }
            }),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.state {
            State::Memory(groups) => OVERHEAD + groups.bytes(),
            State::Spilled(spilled) => SPILLED_OVERHEAD + spilled.bytes(),
        }
    }

    pub(super) fn is_spilled(&self) -> bool {
        matches!(self.state, State::Spilled(_))
    }

    /// Memory that [`Pane::spill`] would free.
    pub(super) fn spillable_bytes(&self, aggregate: &Aggregate) -> usize {
        match &self.state {
            // There is nothing to write.
            State::Memory(_) if aggregate.run.fields().is_empty() => 0,
            State::Memory(groups) if groups.is_empty() => 0,
            State::Memory(groups) => OVERHEAD + groups.bytes(),
            State::Spilled(spilled) => spilled.unwritten_bytes(),
        }
    }

    /// Writes what is in memory; [`Pane::attach`] must follow when the file is finished, before the pane is used again.
    pub(super) fn spill(&mut self, aggregate: &Aggregate, order: &Arc<Order>, file: &mut SharedFile) -> Result<Written, FoldError> {
        if let State::Memory(groups) = &mut self.state {
            let run = groups.run(&aggregate.run)?;
            let mut spilled = Spilled::new(order.clone());
            spilled.push(run);
            self.state = State::Spilled(Box::new(spilled));
        }
        let State::Spilled(spilled) = &mut self.state else { unreachable!("made above") };
        spilled.write(aggregate, file)
    }

    /// The file is finished. A pane with many files gets few: small ones come back to memory, and are written together again.
    pub(super) fn attach(&mut self, written: Written, file: Arc<Scratch>, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        let State::Spilled(spilled) = &mut self.state else { return Ok(()) };
        spilled.attach(written, file);
        if spilled.has_many_files() {
            if spilled.is_small() {
                self.state = State::Memory(Box::new(spilled.load(aggregate)?));
            } else {
                spilled.merge_files(aggregate, scratches)?;
            }
        }
        Ok(())
    }
}

/// Groups of a spilled pane that runs come to.
struct Touched<'a> {
    spilled: &'a Spilled,
    aggregate: &'a Aggregate,
    /// Each once.
    keys: &'a [ArrayRef],
    runs: &'a [RecordBatch],
    /// For each run, the places of its rows' keys.
    ids_of: &'a [Vec<usize>],
}

/// Of some of them.
struct TouchedValues {
    existed: Vec<bool>,
    /// Of those that existed, when asked for.
    before: Option<Values>,
    now: Values,
}

impl Touched<'_> {
    /// The values of these groups. `None`: their sets are too large to be held at once.
    fn values(&self, some: Range<usize>, ask_before: bool, scratches: &mut Scratches) -> Result<Option<TouchedValues>, FoldError> {
        let Self { spilled, aggregate, .. } = *self;
        let (width, n) = (aggregate.keys.len(), some.len());
        let keys: Vec<ArrayRef> = self.keys.iter().map(|k| k.slice(some.start, n)).collect();
        let mut groups = Groups::of_keys(aggregate, &keys, n)?;
        let mut existed = vec![false; n];
        let most_bytes = if has_sets(aggregate) { spilled.most_set_bytes() } else { usize::MAX };
        let mut fits = true;
        spilled.lookup(&keys, n, &mut |states, ids| {
            ids.iter().for_each(|id| existed[*id] = true);
            groups.accumulators.merge(&states.columns()[width..], ids, n)?;
            fits = groups.accumulators.set_bytes() <= most_bytes;
            Ok(fits)
        })?;
        if !fits && n > 1 {
            return Ok(None);
        }
        // The runs' rows of these groups.
        let rows_of = |nth: usize| -> Result<(RecordBatch, Vec<usize>), FoldError> {
            let (run, ids) = (&self.runs[nth], &self.ids_of[nth]);
            let (rows, ids): (Vec<u32>, Vec<usize>) = ids.iter().enumerate().filter(|(_, id)| some.contains(id)).map(|(row, id)| (row as u32, id - some.start)).unzip();
            let run = if rows.len() == run.num_rows() { run.clone() } else { take_record_batch(run, &UInt32Array::from(rows)).map_err(DataFusionError::from)? };
            Ok((run, ids))
        };
        if fits {
            let older: Vec<usize> = (0..n).filter(|id| existed[*id]).collect();
            let before = if ask_before { Some(groups.accumulators.values(&Ids::List(&older))?) } else { None };
            for nth in 0..self.runs.len() {
                let (rows, ids) = rows_of(nth)?;
                groups.accumulators.merge(&rows.columns()[width..], &ids, n)?;
            }
            let now = groups.accumulators.values(&Ids::Range(0..n))?;
            return Ok(Some(TouchedValues { existed, before, now }));
        }
        drop(groups);
        let old = |each: &mut Take<'_>| spilled.lookup(&keys, n, &mut |states, _| each(states).map(|()| true));
        let all = |each: &mut Take<'_>| old(each).and_then(|()| (0..self.runs.len()).try_for_each(|nth| each(&rows_of(nth)?.0)));
        let before = if ask_before { Some(spilled.large(aggregate, keys.clone(), &old).values(scratches)?) } else { None };
        let now = spilled.large(aggregate, keys.clone(), &all).values(scratches)?;
        Ok(Some(TouchedValues { existed, before, now }))
    }
}

/// The results of all groups, those of some after those of others.
fn joined(mut parts: Vec<Values>) -> Result<Values, DataFusionError> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let calls = parts.first().map_or(0, |(columns, _)| columns.len());
    let (mut columns, mut unfit) = (vec![], vec![vec![]; calls]);
    for call in 0..calls {
        let each: Vec<&dyn Array> = parts.iter().map(|(columns, _)| columns[call].as_ref()).collect();
        columns.push(concat(&each)?);
        let mut at = 0;
        for (columns, of_part) in &parts {
            unfit[call].extend(of_part[call].iter().map(|place| at + place));
            at += columns[call].len();
        }
    }
    Ok((columns, unfit))
}

fn pick_columns(columns: &[ArrayRef], at: &[usize]) -> Result<Vec<ArrayRef>, DataFusionError> {
    let at: UInt64Array = at.iter().map(|i| *i as u64).collect();
    Ok(take_arrays(columns, &at, None)?)
}

fn keys_at(runs: &[RecordBatch], width: usize, at: &[(usize, usize)]) -> Result<Vec<ArrayRef>, DataFusionError> {
    let column = |c: usize| {
        let of: Vec<&dyn Array> = runs.iter().map(|r| r.column(c).as_ref()).collect();
        Ok(interleave(&of, at)?)
    };
    (0..width).map(column).collect()
}
