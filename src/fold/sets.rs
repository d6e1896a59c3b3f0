//! Groups whose sets are more than memory is for: counted one part of the values after the other.

use super::FoldError;
use crate::partial::groups::Groups;
use crate::partial::accumulate::Ids;
use crate::partial::sets::{Part, Pieces, is_set};
use crate::pipeline::sql::Aggregate;
use arrow::array::ArrayRef;
use arrow::compute::kernels::numeric::add;
use arrow::record_batch::RecordBatch;

/// Rows that are merged before memory is looked at.
const ROWS: usize = 4096;
/// Less than this is not worth a part of its own.
pub(super) const LEAST_BYTES: usize = 16 * 1024;

/// Takes rows of state, oldest first.
pub(super) type Take<'a> = dyn FnMut(&RecordBatch) -> Result<(), FoldError> + 'a;

/// The same rows of state each time it is called, oldest first.
pub(super) type States<'a> = dyn Fn(&mut Take<'_>) -> Result<(), FoldError> + 'a;

/// Some groups, all of whose states are read as often as there are parts.
pub(super) struct InParts<'a> {
    pub aggregate: &'a Aggregate,
    /// Each once.
    pub keys: &'a [ArrayRef],
    pub groups: usize,
    /// Memory for the sets of a part, about; at least [`LEAST_BYTES`].
    pub most_bytes: usize,
}

impl InParts<'_> {
    /// Calls `done` with the groups as far as each part of their sets goes; those of the first part have what is no set.
    pub(super) fn each(&self, states: &States<'_>, done: &mut dyn FnMut(&mut Groups) -> Result<(), FoldError>) -> Result<(), FoldError> {
        let mut parts = vec![Part::WHOLE];
        while let Some(mut part) = parts.pop() {
            let mut groups = self.groups()?;
            states(&mut |batch| {
                let pieces = Pieces::new(self.aggregate, batch, self.most_bytes / 16)?;
                for block in pieces.blocks(ROWS, self.most_bytes / 16, |_, _| false) {
                    let rows = part.of(self.aggregate, &pieces.batch.slice(block.start, block.len()))?;
                    groups.merge_repeated(rows.columns(), rows.num_rows())?;
                    while groups.accumulators.set_bytes() > self.most_bytes {
                        let Some((kept, left)) = part.halves() else { break };
                        parts.push(left);
                        part = kept;
                        let all = groups.run(&self.aggregate.run)?;
                        groups = self.groups()?;
                        let rows = part.of(self.aggregate, &all)?;
                        groups.merge_repeated(rows.columns(), rows.num_rows())?;
                    }
                }
                Ok(())
            })?;
            done(&mut groups)?;
        }
        Ok(())
    }

    /// The results of these groups, and for each call the positions whose result did not fit.
    pub(super) fn values(&self, ids: &Ids<'_>, states: &States<'_>) -> Result<(Vec<ArrayRef>, Vec<Vec<usize>>), FoldError> {
        let mut all: Option<(Vec<ArrayRef>, Vec<Vec<usize>>)> = None;
        self.each(states, &mut |groups| {
            let of_part = groups.accumulators.values(ids)?;
            let Some((columns, _)) = &mut all else {
                all = Some(of_part);
                return Ok(());
            };
            for (nth, _) in self.aggregate.calls.iter().enumerate().filter(|(_, call)| is_set(call)) {
                columns[nth] = add(&columns[nth], &of_part.0[nth]).map_err(datafusion::error::DataFusionError::from)?;
            }
            Ok(())
        })?;
        Ok(all.unwrap_or_default())
    }

    fn groups(&self) -> Result<Groups, FoldError> {
        Ok(Groups::of_keys(self.aggregate, self.keys, self.groups)?)
    }
}
