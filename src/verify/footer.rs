//! Single files as they lie in the store: there or not, how long, what their footers say.

use super::Lake;
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;

/// The whole object; `None` where there is none.
pub async fn object(lake: &Lake, path: &str) -> Result<Option<Bytes>, String> {
    let path = Path::parse(path).map_err(|e| e.to_string())?;
    match lake.store.get(&path).await {
        Ok(got) => got.bytes().await.map(Some).map_err(|e| e.to_string()),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// How long the object is; `None` where there is none.
pub async fn size(lake: &Lake, path: &str) -> Result<Option<u64>, String> {
    let path = Path::parse(path).map_err(|e| e.to_string())?;
    match lake.store.head(&path).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Read at once from a file's end: most footers lie wholly in it.
const TAIL_BYTES: u64 = 64 * 1024;

/// A Parquet file's footer.
pub async fn metadata(lake: &Lake, path: &str, size: u64) -> Result<ParquetMetaData, String> {
    let location = Path::parse(path).map_err(|e| e.to_string())?;
    let mut tail = TAIL_BYTES.min(size);
    let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
    loop {
        let bytes = lake.store.get_range(&location, size - tail..size).await.map_err(|e| e.to_string())?;
        match reader.try_parse_sized(&bytes, size) {
            Ok(()) => break,
            Err(ParquetError::NeedMoreData(more)) if more as u64 > tail && more as u64 <= size => tail = more as u64,
            Err(e) => return Err(e.to_string()),
        }
    }
    reader.finish().map_err(|e| e.to_string())
}

/// Deleted positions by data file, of an Iceberg position-delete file.
pub fn positions(bytes: Bytes) -> Result<BTreeMap<String, RoaringTreemap>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build()).map_err(|e| text(&e))?;
    let mut found: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
    for batch in reader {
        let batch = batch.map_err(|e| text(&e))?;
        let (Some(files), Some(at)) = (batch.column_by_name("file_path"), batch.column_by_name("pos")) else {
            return Err("it lacks the columns file_path and pos".into());
        };
        let files = arrow::compute::cast(files, &DataType::Utf8).map_err(|e| text(&e))?;
        let at = at.as_primitive_opt::<Int64Type>().ok_or("its column pos is not of int64")?;
        for (file, at) in files.as_string::<i32>().iter().zip(at.iter()) {
            let (Some(file), Some(Ok(at))) = (file, at.map(u64::try_from)) else { return Err("it holds a null or negative position".into()) };
            match found.get_mut(file) {
                Some(positions) => positions.insert(at),
                None => found.entry(file.to_string()).or_default().insert(at),
            };
        }
    }
    Ok(found)
}
