//! Raw records to Arrow columns, or to dead letters: exact or dead, never changed.

pub mod json;

use crate::source::RawBatch;
use arrow::record_batch::RecordBatch;

/// The rows of one [`RawBatch`] that could be decoded, and the records that could not.
#[derive(Debug)]
pub struct Decoded {
    /// The columns that some table reads, in the order asked for when the decoder was built.
    pub batch: RecordBatch,
    /// For each row of `batch`, its index in [`RawBatch::records`]. Ascending.
    pub rows: Vec<u32>,
    /// Index in [`RawBatch::records`] and the reason, in words that a person understands.
    pub dead: Vec<(u32, String)>,
}

/// One payload format. A decoder is driven by one thread; it may keep buffers between calls.
pub trait Decoder: Send {
    fn decode(&mut self, raw: &RawBatch) -> Decoded;
}
