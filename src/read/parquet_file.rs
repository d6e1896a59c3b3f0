//! One Parquet file of a store, read by ranges: the footer, then the chunks that a reader asks for.

use super::{LiveFile, ReadError};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataPushDecoder};
use roaring::RoaringTreemap;
use std::ops::Range;
use std::sync::Arc;

/// Read in one request with the footer's length: most footers lie wholly in it.
const FOOTER_GUESS_BYTES: u64 = 64 * 1024;

/// An open file: its footer was read, nothing else.
pub struct ParquetFile {
    store: Arc<dyn ObjectStore>,
    location: Path,
    path: String,
    metadata: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Reads the footer. Errors when the file is gone, cut short or holds another number of rows
    /// than the table's metadata says: positions would be wrong.
    pub async fn open(store: Arc<dyn ObjectStore>, file: &LiveFile) -> Result<Self, ReadError> {
        let corrupt = |e: &dyn std::fmt::Display| ReadError::Corrupt { path: file.path.clone(), reason: e.to_string() };
        let location = Path::parse(&file.path).map_err(|e| corrupt(&e))?;
        let mut decoder = ParquetMetaDataPushDecoder::try_new(file.bytes).map_err(|e| corrupt(&e))?.with_page_index_policy(PageIndexPolicy::Skip);
        let guess = file.bytes.saturating_sub(FOOTER_GUESS_BYTES)..file.bytes;
        let bytes = fetch(&*store, &location, &file.path, std::slice::from_ref(&guess)).await?;
        decoder.push_ranges(vec![guess], bytes).map_err(|e| corrupt(&e))?;
        let metadata = loop {
            match decoder.try_decode().map_err(|e| corrupt(&e))? {
                DecodeResult::NeedsData(ranges) => {
                    let bytes = fetch(&*store, &location, &file.path, &ranges).await?;
                    decoder.push_ranges(ranges, bytes).map_err(|e| corrupt(&e))?;
                }
                DecodeResult::Data(metadata) => break metadata,
                DecodeResult::Finished => return Err(corrupt(&"the footer ends early")),
            }
        };
        let rows = metadata.file_metadata().num_rows();
        if u64::try_from(rows).ok() != Some(file.records) {
            return Err(corrupt(&format!("expected {} rows, found {rows}", file.records)));
        }
        // Types as Parquet states them, not as the writer's Arrow schema had them: one view of
        // every file, whoever wrote it.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), options).map_err(|e| corrupt(&e))?;
        Ok(Self { store, location, path: file.path.clone(), metadata })
    }

    pub fn fields(&self) -> &arrow::datatypes::Fields {
        self.metadata.schema().fields()
    }

    /// A decoder of these top-level columns and of the rows that are not in `deleted`.
    pub fn decoder(&self, columns: &[usize], deleted: &RoaringTreemap, batch_rows: usize) -> Result<ParquetPushDecoder, ReadError> {
        let rows = self.metadata.metadata().file_metadata().num_rows() as u64;
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), columns.iter().copied());
        let mut builder = ParquetPushDecoderBuilder::new_with_metadata(self.metadata.clone()).with_projection(mask).with_batch_size(batch_rows);
        if !deleted.is_empty() {
            builder = builder.with_row_selection(selection(deleted, rows));
        }
        builder.build().map_err(|e| self.corrupt(&e))
    }

    /// The decoder's next batch; `None` after the last.
    pub async fn next_batch(&self, decoder: &mut ParquetPushDecoder) -> Result<Option<arrow::record_batch::RecordBatch>, ReadError> {
        loop {
            match decoder.try_decode().map_err(|e| self.corrupt(&e))? {
                DecodeResult::NeedsData(ranges) => {
                    let bytes = fetch(&*self.store, &self.location, &self.path, &ranges).await?;
                    decoder.push_ranges(ranges, bytes).map_err(|e| self.corrupt(&e))?;
                }
                DecodeResult::Data(batch) => return Ok(Some(batch)),
                DecodeResult::Finished => return Ok(None),
            }
        }
    }

    fn corrupt(&self, e: &dyn std::fmt::Display) -> ReadError {
        ReadError::Corrupt { path: self.path.clone(), reason: e.to_string() }
    }
}

async fn fetch(store: &dyn ObjectStore, location: &Path, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ReadError> {
    let failed = |source| ReadError::Store { path: path.to_string(), source };
    let bytes = match ranges {
        [one] => vec![store.get_range(location, one.clone()).await.map_err(failed)?],
        many => store.get_ranges(location, many).await.map_err(failed)?,
    };
    // Some stores answer a range beyond the end with what there is.
    for (range, got) in ranges.iter().zip(&bytes) {
        if got.len() as u64 != range.end - range.start {
            let reason = format!("expected bytes {} to {}, found {} of them: the file is shorter than the table says", range.start, range.end, got.len());
            return Err(ReadError::Corrupt { path: path.to_string(), reason });
        }
    }
    Ok(bytes)
}

/// All rows but the deleted ones.
fn selection(deleted: &RoaringTreemap, rows: u64) -> RowSelection {
    let mut selectors: Vec<RowSelector> = Vec::new();
    let mut next = 0;
    for position in deleted.iter().take_while(|p| *p < rows) {
        if position > next {
            selectors.push(RowSelector::select((position - next) as usize));
        }
        match selectors.last_mut() {
            Some(last) if last.skip => last.row_count += 1,
            _ => selectors.push(RowSelector::skip(1)),
        }
        next = position + 1;
    }
    if rows > next {
        selectors.push(RowSelector::select((rows - next) as usize));
    }
    selectors.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_is_the_complement_of_the_deletes() {
        let check = |deleted: &[u64], rows: u64, expected: Vec<RowSelector>| {
            let deleted: RoaringTreemap = deleted.iter().copied().collect();
            assert_eq!(Vec::<RowSelector>::from(selection(&deleted, rows)), expected, "{deleted:?} of {rows}");
        };
        let (select, skip) = (RowSelector::select, RowSelector::skip);
        check(&[0, 1, 4], 6, vec![skip(2), select(2), skip(1), select(1)]);
        check(&[5, 9], 6, vec![select(5), skip(1)]);
        check(&[0], 1, vec![skip(1)]);
    }
}
