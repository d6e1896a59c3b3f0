//! From groups to the table's rows: what stands above the aggregate, value by value.

use crate::pipeline::sql::{Aggregate, GroupColumn, Projected, Step, TablePlan};
use crate::pipeline::sql::reason;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array};
use arrow::compute::{concat, take_record_batch};
use arrow::datatypes::DataType;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::{DataFusionError, Result};
use std::sync::Arc;

/// A value that could not be emitted: it is null in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmitDead {
    pub window_start_us: i64,
    /// The group key in words.
    pub key: String,
    /// The output column, or `having`.
    pub column: String,
    pub reason: String,
}

/// Rows of the table made of groups.
pub(super) struct Emitted {
    /// The table's columns without [`OP`](crate::pipeline::sql::OP); one row for each group, shown or not.
    pub rows: RecordBatch,
    /// Whether `having` lets each row be seen.
    pub shown: Vec<bool>,
    pub dead: Vec<EmitDead>,
}

/// What the fold needs to know of a plan to emit.
pub(super) struct Emitter {
    window_type: DataType,
    having: bool,
}

impl Emitter {
    pub(super) fn new(plan: &TablePlan) -> Self {
        let having = plan.above.iter().any(|s| matches!(s, Step::Filter(_)));
        Self { window_type: plan.window_type().cloned().unwrap_or(DataType::Null), having }
    }

    /// Rows may vanish again.
    pub(super) fn has_filter(&self) -> bool {
        self.having
    }

    /// Makes rows of groups: their keys, the results of their aggregates, and for each aggregate the positions whose
    /// result its type cannot hold.
    pub(super) fn emit(
        &self,
        plan: &TablePlan,
        aggregate: &Aggregate,
        window: (i64, i64),
        keys: &[ArrayRef],
        (values, unfit): (Vec<ArrayRef>, Vec<Vec<usize>>),
        groups: usize,
    ) -> Result<Emitted> {
        let bound = |us: i64| Arc::new(TimestampMicrosecondArray::from_value(us, groups).with_data_type(self.window_type.clone())) as ArrayRef;
        let mut columns: Vec<ArrayRef> = vec![];
        for column in &aggregate.group {
            columns.push(match column {
                GroupColumn::WindowStart => bound(window.0),
                GroupColumn::WindowEnd => bound(window.1),
                GroupColumn::Key(i) => keys[*i].clone(),
            });
        }
        columns.extend(values);
        let input = RecordBatch::try_new_with_options(aggregate.output.clone(), columns, &RecordBatchOptions::new().with_row_count(Some(groups)))?;
        let mut dead = vec![];
        let mut bury = |row: usize, column: &str, reason: String| -> Result<()> {
            dead.push(EmitDead { window_start_us: window.0, key: describe(aggregate, keys, row)?, column: column.to_string(), reason });
            Ok(())
        };
        for (call, rows) in aggregate.calls.iter().zip(unfit) {
            for row in rows {
                bury(row, &call.label, format!("the {} does not fit its type {}", call.function, call.output))?;
            }
        }
        let (mut shown, mut rows) = (vec![true; groups], None);
        for step in &plan.above {
            match step {
                Step::Filter(e) => {
                    let condition = Projected { expr: e.clone(), digits: None, canonical: false };
                    let mut failed = vec![];
                    let passed = each_row(&condition, &input, &DataType::Boolean, 0, &mut failed)?;
                    let passed: &BooleanArray = passed.as_boolean();
                    (0..groups).for_each(|i| shown[i] &= passed.is_valid(i) && passed.value(i));
                    for (row, why) in failed {
                        bury(row, "having", why)?;
                    }
                }
                Step::Project(projected, schema) => {
                    let mut columns = vec![];
                    for (p, field) in projected.iter().zip(schema.fields()) {
                        let mut failed = vec![];
                        columns.push(each_row(p, &input, field.data_type(), 0, &mut failed)?);
                        for (row, why) in failed.into_iter().filter(|(row, _)| shown[*row]) {
                            bury(row, field.name(), why)?;
                        }
                    }
                    rows = Some(RecordBatch::try_new_with_options(schema.clone(), columns, &RecordBatchOptions::new().with_row_count(Some(groups)))?);
                }
            }
        }
        let rows = rows.ok_or_else(|| DataFusionError::Internal("a plan's last step above the aggregate is a projection".into()))?;
        Ok(Emitted { rows, shown, dead })
    }
}

/// A column; null in the rows whose expression fails.
fn each_row(p: &Projected, input: &RecordBatch, ty: &DataType, first: usize, failed: &mut Vec<(usize, String)>) -> Result<ArrayRef> {
    let n = input.num_rows();
    match p.evaluate(input, ty) {
        Ok(column) => Ok(column),
        Err(e) if n == 0 => Err(e),
        Err(e) if n == 1 => {
            failed.push((first, reason(&e)));
            Ok(new_null_array(ty, 1))
        }
        Err(_) => {
            let low = each_row(p, &input.slice(0, n / 2), ty, first, failed)?;
            let high = each_row(p, &input.slice(n / 2, n - n / 2), ty, first + n / 2, failed)?;
            Ok(concat(&[low.as_ref(), high.as_ref()])?)
        }
    }
}

fn describe(aggregate: &Aggregate, keys: &[ArrayRef], row: usize) -> Result<String> {
    let options = FormatOptions::default().with_null("null");
    let mut text = vec![];
    for (key, name) in keys.iter().zip(&aggregate.key_names) {
        text.push(format!("{name}={}", ArrayFormatter::try_new(key.as_ref(), &options)?.value(row)));
    }
    Ok(text.join(", "))
}

/// The rows at these positions.
pub(super) fn pick(rows: &RecordBatch, at: &[u32]) -> Result<RecordBatch> {
    if at.len() == rows.num_rows() {
        return Ok(rows.clone());
    }
    Ok(take_record_batch(rows, &UInt32Array::from(at.to_vec()))?)
}

/// The rows with the column that tells insertions from retractions.
pub(super) fn marked(plan: &TablePlan, rows: RecordBatch, op: &str) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(StringArray::from_iter_values(std::iter::repeat_n(op, rows.num_rows()))));
    Ok(RecordBatch::try_new(plan.output.clone(), columns)?)
}
