//! Runs merged into few, so that what a restart reads stays bounded.
//!
//! Only a prefix of a window's runs may be merged, in the order of the log, and only below every
//! stamp of the table: then the additions are grouped as the fold groups them, and sums of floats
//! come out the same (`model/`, rules MergeMiddle and MergeAcrossStamp).

use super::{Deltas, EntryTimes, FoldError, TableFold, aggregate_of, copied};
use super::rows::{Scratch, Scratches};
use super::sets::{Parted, Parting, read_rows};
use crate::partial::{Run, RunKind, cut, shared_schema};
use crate::pipeline::sql::TablePlan;
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
        let scratches = Scratches::new(self.config.spill_dir.clone(), &format!("{}-merging", self.plan.table));
        let parting = parting(&self.plan, most_bytes, 0)?;
        Ok(Merging { plan: self.plan.clone(), parting: Some(parting), parts: vec![], scratches, share, left: vec![], most_bytes, most_groups })
    }
}

/// Of rows that have their window's start before the other columns.
fn parting(plan: &TablePlan, most_bytes: usize, level: u32) -> Result<Parting, FoldError> {
    let aggregate = aggregate_of(plan)?;
    Parting::new(aggregate, &shared_schema(aggregate), aggregate.keys.len() + 1, most_bytes / 2, level)
}

/// Keys, each with its window's start, by a hash: one of so many parts of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    parts: u64,
    nth: u64,
}

impl Share {
    /// All of them.
    pub const WHOLE: Share = Share { parts: 1, nth: 0 };

    /// The rows with these keys, which come after the window's start.
    fn of(self, batch: &RecordBatch, keys: usize) -> Result<RecordBatch, DataFusionError> {
        match self {
            Share::WHOLE => Ok(batch.clone()),
            _ => Ok(filter_record_batch(batch, &self.chosen(&batch.columns()[..=keys])?)?),
        }
    }

    fn chosen(self, columns: &[ArrayRef]) -> Result<BooleanArray, DataFusionError> {
        let converter = RowConverter::new(columns.iter().map(|c| SortField::new(c.data_type().clone())).collect())?;
        let rows = converter.convert_columns(columns)?;
        Ok(rows.iter().map(|row| Some(XxHash3_64::oneshot(row.as_ref()) % self.parts == self.nth)).collect())
    }
}

/// Rows that are added to those of the same key and window, in the order of the log.
pub struct Merging {
    plan: Arc<TablePlan>,
    parting: Option<Parting>,
    /// Parts of sets, each with its level.
    parts: Vec<(Scratch, u32)>,
    scratches: Scratches,
    share: Share,
    left: Vec<Share>,
    most_bytes: usize,
    most_groups: usize,
}

impl Merging {
    /// Adds rows that have their window's start before the other columns.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<(), FoldError> {
        let aggregate = aggregate_of(&self.plan)?;
        let Some(parting) = &mut self.parting else {
            return Err(DataFusionError::Internal(format!("table {}: rows to merge come behind the last", self.plan.table)).into());
        };
        let keys = aggregate.keys.len();
        parting.add(aggregate, &self.share.of(batch, keys)?, &mut self.scratches)?;
        while parting.groups().bytes() > self.most_bytes && parting.groups().len() > self.most_groups.max(1) && self.share.parts < MOST_PARTS {
            let Share { parts, nth } = self.share;
            self.left.push(Share { parts: parts * 2, nth: nth + parts });
            self.share = Share { parts: parts * 2, nth };
            parting.narrow(aggregate, |rows| self.share.of(rows, keys))?;
        }
        Ok(())
    }

    /// Some of the merged runs; `None`: there are no more. Of sets that are larger than memory is for, one part at a time.
    pub fn next_runs(&mut self) -> Result<Option<Vec<Run>>, FoldError> {
        let aggregate = aggregate_of(&self.plan)?;
        loop {
            let parting = match (self.parting.take(), self.parts.pop()) {
                (Some(parting), _) => parting,
                (None, None) => return Ok(None),
                (None, Some((part, level))) => {
                    let mut parting = parting(&self.plan, self.most_bytes, level)?;
                    read_rows(&part, &mut |rows| parting.add(aggregate, rows, &mut self.scratches))?;
                    parting
                }
            };
            match parting.finish()? {
                Parted::Whole(groups) if !groups.is_empty() => return Ok(Some(cut(&self.plan, groups)?)),
                Parted::Whole(_) => {}
                Parted::Parts(parts, level) => self.parts.extend(parts.into_iter().map(|part| (part, level))),
            }
        }
    }

    /// The keys that must be merged by themselves.
    pub fn left(self) -> Vec<Share> {
        self.left
    }
}

/// So many passes at most: then what takes more memory takes it.
const MOST_PARTS: u64 = 1 << 12;
