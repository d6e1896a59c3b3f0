//! Runs merged into few, so that what a restart reads stays bounded.
//!
//! Only a prefix of a window's runs may be merged, in the order of the log, and only below every
//! stamp of the table: then the additions are grouped as the fold groups them, and sums of floats
//! come out the same (`model/`, rules MergeMiddle and MergeAcrossStamp).

use super::{Deltas, EntryTimes, FoldError, TableFold, aggregate_of, copied};
use crate::partial::{Run, RunKind, cut, epoch_groups, shared_schema};
use arrow::array::{ArrayRef, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

impl TableFold {
    /// The rows of an entry's judge-later runs that were in time, as partial runs by window start.
    pub fn judged(&self, horizon_before: Option<i64>, later: Vec<Run>) -> Result<BTreeMap<i64, Vec<RecordBatch>>, FoldError> {
        let deltas = self.deltas(&EntryTimes { horizon_before, ..Default::default() }, later, None)?;
        Ok(deltas.by_window().collect::<Result<_, _>>()?)
    }

    /// The rows of a run whose windows begin within `starts`, with the window's start before the other columns.
    pub fn within(&self, run: &Run, starts: &RangeInclusive<i64>) -> Result<RecordBatch, FoldError> {
        match run.kind {
            RunKind::Partial { window_start_us } if starts.contains(&window_start_us) => self.of_window(window_start_us, &run.batch),
            RunKind::Windows { first_start_us, last_start_us } => {
                let values = self.starts(&run.batch, first_start_us, last_start_us)?;
                let from = values.partition_point(|v| v < starts.start());
                let to = values.partition_point(|v| v <= starts.end());
                Ok(copied(&run.batch, from..to.max(from))?)
            }
            _ => Ok(RecordBatch::new_empty(shared_schema(aggregate_of(&self.plan)?))),
        }
    }

    /// The rows of a run by window, without the windows' starts.
    pub fn by_window(&self, run: Run) -> Result<Vec<(i64, Vec<RecordBatch>)>, FoldError> {
        let mut deltas = Deltas::default();
        self.spread(run, aggregate_of(&self.plan)?, &mut deltas)?;
        Ok(deltas.by_window().collect::<Result<_, _>>()?)
    }

    /// Rows of one window, with its start before the other columns.
    pub fn of_window(&self, start: i64, batch: &RecordBatch) -> Result<RecordBatch, FoldError> {
        let schema = shared_schema(aggregate_of(&self.plan)?);
        let starts = TimestampMicrosecondArray::from_value(start, batch.num_rows()).with_data_type(schema.field(0).data_type().clone());
        let columns = [Arc::new(starts) as ArrayRef].into_iter().chain(batch.columns().iter().cloned()).collect();
        Ok(RecordBatch::try_new(schema, columns).map_err(DataFusionError::from)?)
    }

    /// Runs that add up to `batches`, which stand in the order of the log and have their windows' starts before the other
    /// columns.
    pub fn merged(&self, batches: impl IntoIterator<Item = RecordBatch>) -> Result<Vec<Run>, FoldError> {
        let mut groups = epoch_groups(aggregate_of(&self.plan)?)?;
        for batch in batches {
            groups.merge(batch.columns(), batch.num_rows())?;
        }
        Ok(cut(&self.plan, groups)?)
    }
}
