//! Rows that are read more than once without being held in memory.

use arrow::record_batch::RecordBatch;

/// A set of rows in a fixed order, read in bounded batches as often as the reader likes.
///
/// Every pass yields the same rows in the same order. Where batches are cut is of no meaning and
/// may differ between passes.
pub trait RowBatches {
    /// Starts a pass. An error ends it: the text names what could not be read and why.
    fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_>;
}

/// Rows that lie in memory.
impl RowBatches for Vec<RecordBatch> {
    fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_> {
        Box::new(self.iter().cloned().map(Ok))
    }
}

impl RowBatches for RecordBatch {
    fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_> {
        Box::new(std::iter::once(Ok(self.clone())))
    }
}
