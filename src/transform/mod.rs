//! What the SQL does to single rows: filters and computed columns, below the aggregate and above it.
//!
//! A row whose expression fails is a dead letter, never a failed batch: a batch that fails is halved until
//! the rows at fault stand alone.

#[cfg(test)]
mod extremes;

use crate::pipeline::sql::{Step, TablePlan, reason, values};
use arrow::array::{AsArray, UInt32Array};
use arrow::compute::{FilterBuilder, concat_batches};
use arrow::datatypes::UInt32Type;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::error::Result as DataFusionResult;
use std::sync::Arc;

/// The steps below a table's aggregate, or a plain table's whole `select`.
#[derive(Debug, Clone)]
pub struct Transform {
    plan: Arc<TablePlan>,
}

/// The rows that came out, and those that could not.
#[derive(Debug)]
pub struct Transformed {
    /// The columns of the last projection.
    pub batch: RecordBatch,
    /// For each row of `batch`, the row of the input that it was made of. Ascending.
    pub rows: Vec<u32>,
    /// Rows of the input whose expressions failed, ascending, and why.
    pub failed: Vec<(u32, String)>,
}

impl Transform {
    pub fn new(plan: Arc<TablePlan>) -> Self {
        Self { plan }
    }

    /// Runs the steps over a batch of [`TablePlan::below_input`].
    ///
    /// # Errors
    /// The batch does not have the columns that the plan reads: never because of a row's values.
    pub fn apply(&self, batch: &RecordBatch) -> DataFusionResult<Transformed> {
        let mut parts = vec![];
        let mut failed = vec![];
        halve(&self.plan.below, batch, 0, &mut parts, &mut failed)?;
        failed.iter_mut().for_each(|(_, why)| *why = self.plan.variables.hide_within(why));
        if parts.len() == 1 {
            let (batch, rows) = parts.remove(0);
            return Ok(Transformed { batch, rows, failed });
        }
        let rows = parts.iter().flat_map(|(_, rows)| rows.iter().copied()).collect();
        let schema = self.schema(batch);
        let batch = concat_batches(&schema, parts.iter().map(|(b, _)| b))?;
        Ok(Transformed { batch, rows, failed })
    }

    fn schema(&self, input: &RecordBatch) -> arrow::datatypes::SchemaRef {
        let project = |s: &Step| if let Step::Project(_, schema) = s { Some(schema.clone()) } else { None };
        self.plan.below.iter().rev().find_map(project).unwrap_or_else(|| input.schema())
    }
}

fn halve(steps: &[Step], batch: &RecordBatch, first: u32, parts: &mut Vec<(RecordBatch, Vec<u32>)>, failed: &mut Vec<(u32, String)>) -> DataFusionResult<()> {
    match run(steps, batch, first) {
        Ok(part) => parts.push(part),
        Err(e) if batch.num_rows() == 0 => return Err(e),
        Err(e) if batch.num_rows() == 1 => failed.push((first, reason(&e))),
        Err(_) => {
            let half = batch.num_rows() / 2;
            halve(steps, &batch.slice(0, half), first, parts, failed)?;
            halve(steps, &batch.slice(half, batch.num_rows() - half), first + half as u32, parts, failed)?;
        }
    }
    Ok(())
}

fn run(steps: &[Step], batch: &RecordBatch, first: u32) -> DataFusionResult<(RecordBatch, Vec<u32>)> {
    let mut batch = batch.clone();
    let mut rows: Option<UInt32Array> = None;
    for step in steps {
        match step {
            Step::Filter(e) => {
                let mask = values(e, &batch)?;
                let mask = mask.as_boolean();
                if mask.true_count() == batch.num_rows() {
                    continue;
                }
                let before = rows.unwrap_or_else(|| (first..first + batch.num_rows() as u32).collect());
                let filter = FilterBuilder::new(mask).optimize().build();
                rows = Some(filter.filter(&before)?.as_primitive::<UInt32Type>().clone());
                batch = filter.filter_record_batch(&batch)?;
            }
            // Some expressions fail of no row at all: one that was left out is no dead letter for that.
            Step::Project(_, schema) if batch.num_rows() == 0 => batch = RecordBatch::new_empty(schema.clone()),
            Step::Project(columns, schema) => {
                let arrays = columns.iter().zip(schema.fields()).map(|(c, field)| c.evaluate(&batch, field.data_type())).collect::<DataFusionResult<Vec<_>>>()?;
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                batch = RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?;
            }
        }
    }
    let rows = match rows {
        Some(rows) => rows.values().to_vec(),
        None => (first..first + batch.num_rows() as u32).collect(),
    };
    Ok((batch, rows))
}
