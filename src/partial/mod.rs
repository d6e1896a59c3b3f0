//! What one epoch adds to a windowed table: partial aggregates per window, and rows that the fold judges.
//!
//! A row is late only when its entry is decided, and the ingest half does not know the horizon then. Rows
//! of windows that may be over by that time are therefore kept as they are (judge-later rows); all others
//! are aggregated at once, into one hash table for the whole epoch, which is cut by window when the epoch ends, small windows in one piece.

pub mod accumulate;
pub mod groups;
pub mod sets;
#[cfg(test)]
pub(crate) mod tests;

pub use crate::run::{Run, RunKind};

use crate::decode::Decoded;
use crate::pipeline::sql::{Aggregate, TablePlan, Tumble};
use crate::source::RawBatch;
use crate::transform::Transform;
use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{concat_batches, take_arrays, take_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::DataFusionError;
use groups::Groups;
use std::sync::Arc;

/// The plan and the batches do not belong together, or memory for an aggregate ran out of its bounds.
#[derive(Debug, thiserror::Error)]
pub enum PartialError {
    #[error("table {table} has no window: only windowed tables have partial aggregates")]
    NotWindowed { table: String },
    #[error("table {table}: {source}")]
    Evaluate { table: String, source: DataFusionError },
}

/// The rows of one epoch of one lane, on their way to one windowed table.
pub struct Partials {
    plan: Arc<TablePlan>,
    transform: Transform,
    /// Columns of the decoded batch that are the plan's scan columns.
    projection: Vec<usize>,
    window: Tumble,
    time: usize,
    groups: Option<Groups>,
    later: Vec<RecordBatch>,
    later_bytes: usize,
    input: SchemaRef,
    later_schema: SchemaRef,
}

impl Partials {
    /// `projection` says for each of [`TablePlan::scan`] which column of the decoded batches it is.
    ///
    /// # Errors
    /// The table is not windowed.
    pub fn new(plan: Arc<TablePlan>, projection: Vec<usize>) -> Result<Self, PartialError> {
        let (Some(window), Some(time), Some(_)) = (plan.window, plan.time, &plan.aggregate) else {
            return Err(PartialError::NotWindowed { table: plan.table.clone() });
        };
        let transform = Transform::new(plan.clone());
        let (input, later_schema) = (plan.below_input(), plan.judge_later_schema());
        Ok(Self { plan, transform, projection, window, time, groups: None, later: vec![], later_bytes: 0, input, later_schema })
    }

    /// Adds the rows of one decoded batch.
    ///
    /// Rows of windows that end at or before `judge_at_us` become judge-later rows (`None`: nothing can be late yet).
    /// Returns the records whose expressions failed, by their index in [`RawBatch::records`], and why.
    ///
    /// # Errors
    /// The batch does not have the columns that the plan reads.
    pub fn add(&mut self, decoded: &Decoded, raw: &RawBatch, topic: &str, judge_at_us: Option<i64>) -> Result<Vec<(u32, String)>, PartialError> {
        let table = self.plan.table.clone();
        self.try_add(decoded, raw, topic, judge_at_us).map_err(|source| PartialError::Evaluate { table, source })
    }

    fn try_add(&mut self, decoded: &Decoded, raw: &RawBatch, topic: &str, judge_at_us: Option<i64>) -> Result<Vec<(u32, String)>, DataFusionError> {
        let mut dead = vec![];
        let mut columns: Vec<ArrayRef> = self.projection.iter().map(|i| decoded.batch.column(*i).clone()).collect();
        // Row of `columns` to row of the decoded batch, where they differ.
        let mut kept: Option<Vec<u32>> = None;
        if columns[self.time].null_count() > 0 {
            // The decoder judges event times; a plan over a batch of another decoder must not lose rows all the same.
            let time = columns[self.time].clone();
            let (valid, null): (Vec<u32>, Vec<u32>) = (0..time.len() as u32).partition(|i| time.is_valid(*i as usize));
            dead.extend(null.iter().map(|i| (decoded.rows[*i as usize], "the event time is null".to_string())));
            columns = take_arrays(&columns, &UInt32Array::from(valid.clone()), None)?;
            kept = Some(valid);
        }
        let record = |row: u32| decoded.rows[kept.as_ref().map_or(row, |k| k[row as usize]) as usize];
        let input = with_windows(&self.input, columns, self.time, self.window)?;
        let done = self.transform.apply(&input)?;
        dead.extend(done.failed.into_iter().map(|(row, why)| (record(row), why)));
        let mut batch = done.batch;
        if let Some(judge_at) = judge_at_us {
            let ends = input.column(input.num_columns() - 1).as_primitive::<TimestampMicrosecondType>().values();
            let raw_row = |row: &u32| ends[*row as usize] <= judge_at;
            if done.rows.iter().any(raw_row) {
                let (later, now): (Vec<u32>, Vec<u32>) = (0..done.rows.len() as u32).partition(|i| raw_row(&done.rows[*i as usize]));
                let later: Vec<u32> = later.iter().map(|i| done.rows[*i as usize]).collect();
                self.keep_for_later(&input, &later, &later.iter().map(|row| record(*row)).collect::<Vec<_>>(), raw, topic)?;
                batch = take_record_batch(&batch, &UInt32Array::from(now))?;
            }
        }
        if batch.num_rows() > 0 {
            let aggregate = aggregate_of(&self.plan)?;
            let groups = match &mut self.groups {
                Some(groups) => groups,
                none => none.insert(epoch_groups(aggregate)?),
            };
            groups.update(aggregate, &batch)?;
        }
        dead.sort_by_key(|(record, _)| *record);
        Ok(dead)
    }

    fn keep_for_later(&mut self, input: &RecordBatch, rows: &[u32], records: &[u32], raw: &RawBatch, topic: &str) -> Result<(), DataFusionError> {
        let of = |i: &u32| &raw.records[*i as usize];
        let mut keys = BinaryBuilder::new();
        records.iter().for_each(|i| keys.append_option(of(i).key.as_ref().map(|k| raw.slice(k))));
        let times = records.iter().map(|i| of(i).timestamp_ms.and_then(|ms| ms.checked_mul(1_000))).collect::<TimestampMicrosecondArray>();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(records.iter().map(|_| topic))),
            Arc::new(Int32Array::from_iter_values(records.iter().map(|_| raw.partition))),
            Arc::new(Int64Array::from_iter_values(records.iter().map(|i| of(i).offset))),
            Arc::new(times.with_timezone("UTC")),
            Arc::new(keys.finish()),
        ];
        columns.extend(take_arrays(input.columns(), &UInt32Array::from(rows.to_vec()), None)?);
        let batch = RecordBatch::try_new(self.later_schema.clone(), columns)?;
        self.later_bytes += batch.get_array_memory_size();
        self.later.push(batch);
        Ok(())
    }

    /// Memory held, about.
    pub fn bytes(&self) -> usize {
        self.later_bytes + self.groups.as_ref().map_or(0, |g| g.bytes())
    }

    /// Nothing was added, or all of it was filtered out.
    pub fn is_empty(&self) -> bool {
        self.later.is_empty() && self.groups.as_ref().is_none_or(|g| g.is_empty())
    }

    /// The runs of the epoch: judge-later rows first, if any, then those of the windows in their order.
    pub fn finish(self) -> Result<Vec<Run>, PartialError> {
        let table = self.plan.table.clone();
        self.try_finish().map_err(|source| PartialError::Evaluate { table, source })
    }

    fn try_finish(self) -> Result<Vec<Run>, DataFusionError> {
        let mut runs = vec![];
        if !self.later.is_empty() {
            let batch = concat_batches(&self.later_schema, &self.later)?;
            runs.push(Run { table: self.plan.table.clone(), kind: RunKind::JudgeLater, batch });
        }
        if let Some(groups) = self.groups {
            runs.extend(cut(&self.plan, groups)?);
        }
        Ok(runs)
    }
}

pub(crate) fn aggregate_of(plan: &TablePlan) -> Result<&Aggregate, DataFusionError> {
    plan.aggregate.as_ref().ok_or_else(|| DataFusionError::Internal(format!("table {} has no aggregate", plan.table)))
}

/// Groups of a whole epoch: keyed by `window_start` and the keys.
pub(crate) fn epoch_groups(aggregate: &Aggregate) -> Result<Groups, DataFusionError> {
    let keys: Vec<_> = aggregate.input.fields()[..=aggregate.keys.len()].iter().map(|f| f.as_ref().clone()).collect();
    Groups::new(aggregate, &keys)
}

/// Windows of fewer rows share a run, to which no more are added once it has as many.
pub(crate) const SHARED_ROWS: usize = 512;

/// The columns of a run of several windows.
pub(crate) fn shared_schema(aggregate: &Aggregate) -> SchemaRef {
    let mut fields = vec![aggregate.input.fields()[0].clone()];
    fields.extend(aggregate.run.fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

/// Groups with a window's start before their keys as runs, in the order of windows; rows keep their order within one.
/// A window of many rows has a run of its own.
pub(crate) fn cut(plan: &TablePlan, mut groups: Groups) -> Result<Vec<Run>, DataFusionError> {
    let aggregate = aggregate_of(plan)?;
    let all = groups.run(&shared_schema(aggregate))?;
    drop(groups);
    let starts = all.column(0).as_primitive::<TimestampMicrosecondType>().values().clone();
    let sorted = starts.is_sorted();
    let mut order: Vec<u32> = (0..starts.len() as u32).collect();
    if !sorted {
        order.sort_by_key(|row| starts[*row as usize]);
    }
    let mut runs = vec![];
    let mut make = |rows: &[u32]| -> Result<(), DataFusionError> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
        let (first_start_us, last_start_us) = (starts[*first as usize], starts[*last as usize]);
        let one = first_start_us == last_start_us;
        let columns = &all.columns()[one as usize..];
        let columns = if sorted && rows.len() == starts.len() { columns.to_vec() } else { take_arrays(columns, &UInt32Array::from(rows.to_vec()), None)? };
        let (kind, schema) = match one {
            true => (RunKind::Partial { window_start_us: first_start_us }, aggregate.run.clone()),
            false => (RunKind::Windows { first_start_us, last_start_us }, all.schema()),
        };
        let batch = RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows.len())))?;
        runs.push(Run { table: plan.table.clone(), kind, batch });
        Ok(())
    };
    let mut shared = 0;
    let mut at = 0;
    for window in order.chunk_by(|a, b| starts[*a as usize] == starts[*b as usize]) {
        if window.len() >= SHARED_ROWS || at - shared >= SHARED_ROWS {
            make(&order[shared..at])?;
            shared = at;
        }
        at += window.len();
        if window.len() >= SHARED_ROWS {
            make(&order[shared..at])?;
            shared = at;
        }
    }
    make(&order[shared..at])?;
    Ok(runs)
}

/// Adds `window_start` and `window_end` to the scan columns.
fn with_windows(schema: &SchemaRef, mut columns: Vec<ArrayRef>, time: usize, window: Tumble) -> Result<RecordBatch, DataFusionError> {
    let times = columns[time].as_primitive_opt::<TimestampMicrosecondType>();
    let times = times.ok_or_else(|| DataFusionError::Internal(format!("the event time is a {}, not a timestamp", columns[time].data_type())))?;
    let (mut starts, mut ends) = (Vec::with_capacity(times.len()), Vec::with_capacity(times.len()));
    let mut newest = (0, 0);
    for t in times.values() {
        // Neighbours mostly lie in one window; the empty one before the first row holds nothing.
        if *t < newest.0 || *t >= newest.1 {
            newest = window.window_of(*t);
        }
        starts.push(newest.0);
        ends.push(newest.1);
    }
    let ty: DataType = times.data_type().clone();
    for bounds in [starts, ends] {
        columns.push(Arc::new(TimestampMicrosecondArray::from(bounds).with_data_type(ty.clone())));
    }
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
