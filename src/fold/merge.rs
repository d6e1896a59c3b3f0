//! Runs of one window merged into one, so that what a restart reads stays bounded.
//!
//! Only a prefix of a window's runs may be merged, in the order of the log, and only below every
//! stamp of the table: then the additions are grouped as the fold groups them, and sums of floats
//! come out the same (`model/`, rules MergeMiddle and MergeAcrossStamp).

use super::{EntryTimes, FoldError, TableFold, aggregate_of};
use crate::partial::groups::Groups;
use crate::partial::{Run, RunKind};
use arrow::record_batch::RecordBatch;
use std::collections::BTreeMap;

impl TableFold {
    /// The rows of an entry's judge-later runs that were in time, as partial runs by window start.
    pub fn judged(&self, horizon_before: Option<i64>, later: Vec<Run>) -> Result<BTreeMap<i64, Vec<RecordBatch>>, FoldError> {
        self.deltas(&EntryTimes { horizon_before, ..Default::default() }, later, None)
    }

    /// One run that adds up to `runs`, which are of one window and stand in the order of the log.
    pub fn merged(&self, window_start_us: i64, runs: impl IntoIterator<Item = RecordBatch>) -> Result<Run, FoldError> {
        let aggregate = aggregate_of(&self.plan)?;
        let mut groups = Groups::new(aggregate, &aggregate.keys)?;
        for run in runs {
            groups.merge(run.columns(), run.num_rows())?;
        }
        let batch = groups.run(&aggregate.run)?;
        Ok(Run { table: self.plan.table.clone(), kind: RunKind::Partial { window_start_us }, batch })
    }
}
