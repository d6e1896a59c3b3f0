//! Runs merged into few, so that what a restart reads stays bounded.
//!
//! Only a prefix of a window's runs may be merged, in the order of the log, and only below every
//! stamp of the table: then the additions are grouped as the fold groups them, and sums of floats
//! come out the same (`model/`, rules MergeMiddle and MergeAcrossStamp).

use super::{Deltas, EntryTimes, FoldError, TableFold, aggregate_of, copied};
use super::sets::LEAST_BYTES;
use crate::partial::groups::Groups;
use crate::partial::sets::{Part, Pieces, has_sets};
use crate::partial::{Run, RunKind, cut, epoch_groups, shared_schema};
use crate::pipeline::sql::{Aggregate, TablePlan};
use arrow::array::{ArrayRef, BooleanArray, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use datafusion::error::DataFusionError;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use twox_hash::XxHash3_64;

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

    /// Begins to merge the rows of these keys. What takes more than `most_bytes`, in more than `most_groups` groups, is left
    /// for further passes.
    pub fn merging(&self, share: Share, most_bytes: usize, most_groups: usize) -> Result<Merging, FoldError> {
        let groups = epoch_groups(aggregate_of(&self.plan)?)?;
        Ok(Merging { plan: self.plan.clone(), groups, share, left: vec![], most_bytes, most_groups })
    }
}

/// Keys, each with its window's start, by a hash: one of so many parts of them, and of their sets a part of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    parts: u64,
    nth: u64,
    values: Part,
}

impl Share {
    /// All of them.
    pub const WHOLE: Share = Share { parts: 1, nth: 0, values: Part::WHOLE };

    fn chosen(self, columns: &[ArrayRef]) -> Result<BooleanArray, DataFusionError> {
        let converter = RowConverter::new(columns.iter().map(|c| SortField::new(c.data_type().clone())).collect())?;
        let rows = converter.convert_columns(columns)?;
        Ok(rows.iter().map(|row| Some(XxHash3_64::oneshot(row.as_ref()) % self.parts == self.nth)).collect())
    }
}

/// Rows that are added to those of the same key and window, in the order of the log.
pub struct Merging {
    plan: Arc<TablePlan>,
    groups: Groups,
    share: Share,
    left: Vec<Share>,
    most_bytes: usize,
    most_groups: usize,
}

impl Merging {
    /// Adds rows that have their window's start before the other columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), FoldError> {
        let plan = self.plan.clone();
        let aggregate = aggregate_of(&plan)?;
        if !has_sets(aggregate) {
            let batch = self.chosen(batch)?;
            self.groups.merge(batch.columns(), batch.num_rows())?;
            return self.keep_within_memory(aggregate);
        }
        // Of sets only as much as memory is for.
        let pieces = Pieces::new(aggregate, batch, self.most_bytes / 16)?;
        for block in pieces.blocks(BLOCK_ROWS, self.most_bytes / 16, |_, _| false) {
            let rows = self.chosen(&pieces.batch.slice(block.start, block.len()))?;
            self.groups.merge_repeated(rows.columns(), rows.num_rows())?;
            self.keep_within_memory(aggregate)?;
        }
        Ok(())
    }

    fn keep_within_memory(&mut self, aggregate: &Aggregate) -> Result<(), FoldError> {
        while self.groups.bytes() > self.most_bytes {
            let Share { parts, nth, values } = self.share;
            if self.groups.len() > self.most_groups.max(1) && parts < MOST_PARTS {
                self.left.push(Share { parts: parts * 2, nth: nth + parts, values });
                self.share = Share { parts: parts * 2, nth, values };
            } else if let Some((kept, left)) = values.halves().filter(|_| self.groups.accumulators.set_bytes() > self.most_bytes.max(LEAST_BYTES) / 2) {
                self.left.push(Share { values: left, ..self.share });
                self.share = Share { values: kept, ..self.share };
            } else {
                break;
            }
            let kept = std::mem::replace(&mut self.groups, epoch_groups(aggregate)?).run(&shared_schema(aggregate))?;
            let kept = self.chosen(&kept)?;
            self.groups.merge(kept.columns(), kept.num_rows())?;
        }
        Ok(())
    }

    fn chosen(&self, batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
        let aggregate = aggregate_of(&self.plan)?;
        let of_keys = match self.share.parts {
            1 => batch.clone(),
            _ => filter_record_batch(batch, &self.share.chosen(&batch.columns()[..=aggregate.keys.len()])?)?,
        };
        self.share.values.of(aggregate, &of_keys)
    }

    /// The merged runs, and the keys that must be merged by themselves.
    pub fn finish(self) -> Result<(Vec<Run>, Vec<Share>), FoldError> {
        Ok((cut(&self.plan, self.groups)?, self.left))
    }
}

/// Rows that are merged before memory is looked at, where there are sets.
const BLOCK_ROWS: usize = 4096;

/// So many passes at most: then what takes more memory takes it.
const MOST_PARTS: u64 = 1 << 12;
