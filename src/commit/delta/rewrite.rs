//! Copy on write: a data file without some of its rows.

use super::stats::{field_id, truncate_text};
use crate::stage::parquet::without_float_statistics;
use crate::stage::{ColumnStats, Scalar, TableSpec};
use arrow::array::*;
use arrow::compute::{self, filter_record_batch};
use arrow::datatypes::*;
use bytes::Bytes;
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use roaring::RoaringTreemap;
use std::sync::Arc;

/// What is left of a file.
pub(super) struct Rest {
    /// The new Parquet file; `None` when no row is left.
    pub file: Option<Vec<u8>>,
    pub records: u64,
    pub columns: Vec<ColumnStats>,
    pub split_offsets: Vec<i64>,
}

/// The file without the rows at these positions: same columns, same order. Pure; the file is held in
/// memory twice.
pub(super) fn without(old: Bytes, drop: &RoaringTreemap, spec: &TableSpec) -> Result<Rest, String> {
    let said = |e: &dyn std::fmt::Display| e.to_string();
    let plain = ArrowReaderMetadata::load(&old, ArrowReaderOptions::new()).map_err(|e| said(&e))?;
    let rows = plain.metadata().file_metadata().num_rows() as u64;
    if let Some(last) = drop.max()
        && last >= rows
    {
        return Err(format!("position {last} is to be deleted and the file has {rows} rows"));
    }
    let schema = Arc::new(micros(plain.schema(), &spec.schema));
    let options = ArrowReaderOptions::new().with_schema(schema.clone());
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(old, options).map_err(|e| said(&e))?;
    let properties = properties(&schema).map_err(|e| said(&e))?;
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, schema.clone(), Some(properties)).map_err(|e| said(&e))?;
    let mut bounds: Vec<Option<Bounds>> = schema.fields().iter().map(|f| Bounds::of(f, spec)).collect();
    let (mut at, mut records) = (0u64, 0u64);
    let mut gone = drop.iter().peekable();
    for batch in reader.with_batch_size(8192).build().map_err(|e| said(&e))? {
        let batch = batch.map_err(|e| said(&e))?;
        let end = at + batch.num_rows() as u64;
        let mut keep = vec![true; batch.num_rows()];
        while let Some(position) = gone.next_if(|p| *p < end) {
            keep[(position - at) as usize] = false;
        }
        at = end;
        let batch = filter_record_batch(&batch, &BooleanArray::from(keep)).map_err(|e| said(&e))?;
        records += batch.num_rows() as u64;
        for (column, bounds) in batch.columns().iter().zip(&mut bounds) {
            if let Some(bounds) = bounds {
                bounds.take(column)?;
            }
        }
        writer.write(&batch).map_err(|e| said(&e))?;
    }
    if records == 0 {
        return Ok(Rest { file: None, records: 0, columns: Vec::new(), split_offsets: Vec::new() });
    }
    let metadata = writer.close().map_err(|e| said(&e))?;
    let split_offsets = metadata.row_groups().iter().map(|g| g.column(0)).map(|c| c.dictionary_page_offset().unwrap_or(c.data_page_offset())).collect();
    let mut columns = Vec::new();
    for (field, bounds) in schema.fields().iter().zip(bounds) {
        let Some(bounds) = bounds else { continue };
        let of_column = |c: &&parquet::file::metadata::ColumnChunkMetaData| c.column_path().parts().first().is_some_and(|p| p == field.name());
        let bytes: i64 = metadata.row_groups().iter().flat_map(|g| g.columns()).filter(of_column).map(|c| c.compressed_size()).sum();
        columns.push(bounds.done(records, bytes as u64));
    }
    Ok(Rest { file: Some(file), records, columns, split_offsets })
}

/// How files are written: zstd, and no footer statistics of floats.
pub(super) fn properties(schema: &Schema) -> parquet::errors::Result<WriterProperties> {
    let builder = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?)).set_created_by(super::ENGINE.to_string());
    Ok(without_float_statistics(builder, &ArrowSchemaConverter::new().convert(schema)?).build())
}

/// Nanosecond timestamps (INT96 of old Spark) are read and written on as microseconds: Delta has no
/// others. The zone comes from the table.
fn micros(file: &Schema, table: &Schema) -> Schema {
    let fields: Vec<_> = file.fields().iter().map(|f| micros_field(f, table.field_with_name(f.name()).ok())).collect();
    Schema::new_with_metadata(fields, file.metadata().clone())
}

fn micros_field(field: &Arc<Field>, table: Option<&Field>) -> Arc<Field> {
    let ty = match (field.data_type(), table.map(Field::data_type)) {
        (DataType::Timestamp(TimeUnit::Nanosecond, _), Some(DataType::Timestamp(_, zone))) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        (DataType::Timestamp(TimeUnit::Nanosecond, _), _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        (DataType::Struct(fields), ty) => {
            let inside = |name: &str| match ty {
                Some(DataType::Struct(of)) => of.iter().find(|f| f.name() == name).map(|f| f.as_ref()),
                _ => None,
            };
            DataType::Struct(fields.iter().map(|f| micros_field(f, inside(f.name()))).collect())
        }
        (DataType::List(item), Some(DataType::List(of))) => DataType::List(micros_field(item, Some(of))),
        (DataType::List(item), _) => DataType::List(micros_field(item, None)),
        (DataType::Map(entries, sorted), Some(DataType::Map(of, _))) => DataType::Map(micros_field(entries, Some(of)), *sorted),
        (DataType::Map(entries, sorted), _) => DataType::Map(micros_field(entries, None), *sorted),
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(ty))
}

/// Bounds of one top-level primitive column, batch by batch.
struct Bounds {
    field_id: i32,
    nulls: u64,
    nans: u64,
    lower: Option<Scalar>,
    upper: Option<Scalar>,
}

impl Bounds {
    fn of(file: &Field, spec: &TableSpec) -> Option<Self> {
        let column = spec.schema.field_with_name(file.name()).ok()?;
        if column.data_type().is_nested() {
            return None;
        }
        Some(Self { field_id: field_id(column)?, nulls: 0, nans: 0, lower: None, upper: None })
    }

    fn take(&mut self, array: &ArrayRef) -> Result<(), String> {
        self.nulls += array.null_count() as u64;
        if let DataType::Dictionary(_, value) = array.data_type() {
            let plain = compute::cast(array, value).map_err(|e| e.to_string())?;
            self.nulls -= array.null_count() as u64;
            return self.take(&plain);
        }
        macro_rules! numbers {
            ($ty:ty, $scalar:path, $as:ty) => {{
                let array = array.as_primitive::<$ty>();
                let value = |v: Option<_>| v.map(|v| $scalar(v as $as));
                (value(compute::min(array)), value(compute::max(array)))
            }};
        }
        macro_rules! floats {
            ($ty:ty) => {{
                let mut range: Option<(f64, f64)> = None;
                for v in array.as_primitive::<$ty>().iter().flatten().map(|v| v as f64) {
                    if v.is_nan() {
                        self.nans += 1;
                    } else {
                        range = Some(range.map_or((v, v), |(lo, hi)| (if v.total_cmp(&lo).is_lt() { v } else { lo }, if v.total_cmp(&hi).is_gt() { v } else { hi })));
                    }
                }
                (range.map(|r| Scalar::Float(r.0)), range.map(|r| Scalar::Float(r.1)))
            }};
        }
        let text = |v: Option<&str>| v.map(|v| Scalar::Text(v.to_string()));
        let (lower, upper) = match array.data_type() {
            DataType::Boolean => {
                let array = array.as_boolean();
                (compute::min_boolean(array).map(Scalar::Bool), compute::max_boolean(array).map(Scalar::Bool))
            }
            DataType::Int8 => numbers!(Int8Type, Scalar::Int, i64),
            DataType::Int16 => numbers!(Int16Type, Scalar::Int, i64),
            DataType::Int32 => numbers!(Int32Type, Scalar::Int, i64),
            DataType::Int64 => numbers!(Int64Type, Scalar::Int, i64),
            DataType::Date32 => numbers!(Date32Type, Scalar::Int, i64),
            DataType::Timestamp(TimeUnit::Microsecond, _) => numbers!(TimestampMicrosecondType, Scalar::Int, i64),
            DataType::Decimal128(..) => numbers!(Decimal128Type, Scalar::Decimal, i128),
            DataType::Float32 => floats!(Float32Type),
            DataType::Float64 => floats!(Float64Type),
            DataType::Utf8 => (text(compute::min_string(array.as_string::<i32>())), text(compute::max_string(array.as_string::<i32>()))),
            DataType::LargeUtf8 => (text(compute::min_string(array.as_string::<i64>())), text(compute::max_string(array.as_string::<i64>()))),
            _ => (None, None),
        };
        if let Some(v) = lower
            && self.lower.as_ref().is_none_or(|l| below(&v, l))
        {
            self.lower = Some(v);
        }
        if let Some(v) = upper
            && self.upper.as_ref().is_none_or(|u| below(u, &v))
        {
            self.upper = Some(v);
        }
        Ok(())
    }

    fn done(self, records: u64, bytes: u64) -> ColumnStats {
        let cut = |v: Option<Scalar>, upper| match v {
            Some(Scalar::Text(t)) => truncate_text(&t, 16, upper).map(Scalar::Text),
            v => v,
        };
        ColumnStats {
            field_id: self.field_id,
            bytes,
            values: records,
            nulls: self.nulls,
            nans: self.nans,
            lower: cut(self.lower, false),
            upper: cut(self.upper, true),
        }
    }
}

/// Order within one column; all values of a column are of one kind.
fn below(a: &Scalar, b: &Scalar) -> bool {
    match (a, b) {
        (Scalar::Int(a), Scalar::Int(b)) => a < b,
        (Scalar::Decimal(a), Scalar::Decimal(b)) => a < b,
        (Scalar::Float(a), Scalar::Float(b)) => a.total_cmp(b).is_lt(),
        (Scalar::Text(a), Scalar::Text(b)) => a < b,
        (Scalar::Bool(a), Scalar::Bool(b)) => !a & b,
        _ => false,
    }
}
