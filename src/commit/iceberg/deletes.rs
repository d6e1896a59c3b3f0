//! Position deletes: Parquet files that say which rows of which data files are gone.

use crate::stage::{FIELD_ID, parquet::parquet_schema};
use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Struct};
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ::parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Field ids that the specification reserves.
const FILE_PATH: i32 = 2_147_483_546;
const POS: i32 = 2_147_483_545;

/// Rows encoded at once.
const BATCH: usize = 64 * 1024;

/// Encodes positions by the location of their data file, in the order that the specification asks
/// for: by file, then by position.
pub fn encode(deletes: &BTreeMap<&str, &RoaringTreemap>) -> Result<Bytes, ::parquet::errors::ParquetError> {
    let field = |name: &str, ty, id: i32| Field::new(name, ty, false).with_metadata([(FIELD_ID.to_string(), id.to_string())].into());
    let schema = Arc::new(Schema::new(vec![field("file_path", DataType::Utf8, FILE_PATH), field("pos", DataType::Int64, POS)]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        // Readers match files by these bounds: they must be whole.
        .set_statistics_truncate_length(None)
        .set_column_index_truncate_length(None)
        .build();
    let options =
        ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true).with_parquet_schema(parquet_schema(&schema)?);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema.clone(), options)?;
    for (path, positions) in deletes {
        let mut positions = positions.iter().map(|p| p as i64).peekable();
        while positions.peek().is_some() {
            let some: Vec<i64> = positions.by_ref().take(BATCH).collect();
            let paths = StringArray::from_iter_values(std::iter::repeat_n(path, some.len()));
            writer.write(&RecordBatch::try_new(schema.clone(), vec![Arc::new(paths), Arc::new(Int64Array::from(some))])?)?;
        }
    }
    writer.into_inner().map(Bytes::from)
}

/// The manifest entry of an encoded file at `location`.
pub fn entry(
    deletes: &BTreeMap<&str, &RoaringTreemap>,
    location: String,
    bytes: u64,
    partition: Struct,
    spec_id: i32,
) -> Result<DataFile, iceberg::Error> {
    let records = deletes.values().map(|d| d.len()).sum::<u64>();
    let (first, last) = (deletes.keys().next().copied().unwrap_or(""), deletes.keys().next_back().copied().unwrap_or(""));
    let least = deletes.values().filter_map(|d| d.min()).min().unwrap_or(0) as i64;
    let most = deletes.values().filter_map(|d| d.max()).max().unwrap_or(0) as i64;
    DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location)
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .record_count(records)
        .file_size_in_bytes(bytes)
        .value_counts(HashMap::from([(FILE_PATH, records), (POS, records)]))
        .null_value_counts(HashMap::from([(FILE_PATH, 0), (POS, 0)]))
        .lower_bounds(HashMap::from([(FILE_PATH, Datum::string(first)), (POS, Datum::long(least))]))
        .upper_bounds(HashMap::from([(FILE_PATH, Datum::string(last)), (POS, Datum::long(most))]))
        .referenced_data_file((deletes.len() == 1).then(|| first.to_string()))
        .partition_spec_id(spec_id)
        .build()
        .map_err(|e| iceberg::Error::new(iceberg::ErrorKind::Unexpected, e.to_string()))
}

/// Positions by data file location, of any writer's position-delete file.
///
/// # Errors
/// A file without the columns `file_path` and `pos`, or one that is no Parquet.
pub fn decode(bytes: Bytes) -> Result<BTreeMap<String, RoaringTreemap>, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let mut deleted: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
    for batch in builder.build().map_err(|e| e.to_string())? {
        let batch = batch.map_err(|e| e.to_string())?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("has no column `{name}`"));
        let paths = arrow::compute::cast(column("file_path")?, &DataType::Utf8).map_err(|e| e.to_string())?;
        let paths = paths.as_string::<i32>();
        let positions = column("pos")?.as_primitive_opt::<Int64Type>().ok_or("has a `pos` that is not int64")?;
        for (i, position) in positions.values().iter().enumerate() {
            let position = u64::try_from(*position).map_err(|_| format!("has the position {position}"))?;
            match deleted.get_mut(paths.value(i)) {
                Some(d) => d.insert(position),
                None => deleted.entry(paths.value(i).to_string()).or_default().insert(position),
            };
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_and_bounds_are_whole() {
        let (a, b) = (RoaringTreemap::from_iter([5, 1, 1 << 33]), RoaringTreemap::from_iter(0..200_000u64));
        let long = format!("file:///lake/{}.parquet", "x".repeat(300));
        let deletes = BTreeMap::from([(long.as_str(), &a), ("file:///lake/a.parquet", &b)]);
        let bytes = encode(&deletes).unwrap();
        let got = decode(bytes.clone()).unwrap();
        assert_eq!(got.len(), 2);
        assert_eq!((&got[&long], &got["file:///lake/a.parquet"]), (&a, &b));
        let e = entry(&deletes, "d".into(), bytes.len() as u64, Struct::empty(), 0).unwrap();
        assert_eq!(e.record_count(), 200_003);
        assert_eq!(e.upper_bounds()[&FILE_PATH], Datum::string(&long));
        assert_eq!(e.referenced_data_file(), None);
        let one = BTreeMap::from([(long.as_str(), &a)]);
        assert_eq!(entry(&one, "d".into(), 1, Struct::empty(), 0).unwrap().referenced_data_file(), Some(long.clone()));
    }
}
