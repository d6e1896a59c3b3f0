//! Raw records to Arrow columns, or to dead letters: exact or dead, never changed.

mod json;

use crate::pipeline::{Column, Format};
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

/// A decoder of this format for these declared columns, of which `used` (indices, in the order wanted)
/// become Arrow columns; all are judged. A record whose `time_column` is null or missing is dead.
/// `max_depth` is the number of arrays and objects that may be open at once.
///
/// # Errors
/// Columns that no decoder of the format can be built for.
pub fn open(format: Format, columns: &[Column], used: &[usize], time_column: Option<usize>, max_depth: usize) -> Result<Box<dyn Decoder>, ColumnError> {
    Ok(match format {
        Format::Json => Box::new(json::JsonDecoder::new(columns, used, time_column, max_depth)?),
    })
}

/// Declared columns that no decoder can be built for.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ColumnError {
    #[error("column {column}: {found} cannot be the type of {from}, expected {expected}")]
    Meta { column: String, from: &'static str, expected: &'static str, found: String },
    #[error("column {column}: decimal({precision},{scale}) does not exist, expected a precision of 1 to 38 and a scale of 0 to the precision")]
    Decimal { column: String, precision: u8, scale: u8 },
    #[error("column {column}: the keys of a map are string, int32 or int64, found {found}")]
    MapKey { column: String, found: String },
    #[error("column number {index} is not declared: there are {declared} columns")]
    Undeclared { index: usize, declared: usize },
}
