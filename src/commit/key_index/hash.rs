//! The 128-bit hash of an upsert key.
//!
//! The hash is stored, so what it is computed from never changes without a new [`ENCODING`]: XXH3
//! (128 bits, seed 0) over the key's columns in their declared order, each a tag and a value, all
//! little-endian:
//!
//! | tag | column | value |
//! |---|---|---|
//! | 0 | null, of any type | nothing: nulls equal themselves |
//! | 1 | bool | one byte |
//! | 2 | integers | i64: a column that was widened keeps its hashes |
//! | 3 | floats | f64 bits; -0.0 as 0.0, every NaN as the one quiet NaN |
//! | 4 | decimal | scale (i8), unscaled i128 |
//! | 5 | string | length (u32), UTF-8 |
//! | 6 | binary, uuid | length (u32), bytes |
//! | 7 | date | days, i64 |
//! | 8 | time of day | microseconds, i64 |
//! | 9 | timestamp, instant or local | microseconds, i64 |
//!
//! Two keys of one table collide with a chance of n² / 2^129: for 10^12 rows, 10^-15.

use super::KeyIndexError;
use crate::read::conform;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int64Type, Schema};
use std::sync::Arc;
use twox_hash::XxHash3_128;

/// Version of the encoding above. An index of another one is not read but rebuilt.
pub const ENCODING: u32 = 1;

/// Hashes the upsert key of one table.
#[derive(Debug, Clone)]
pub struct KeyHasher {
    fields: Vec<FieldRef>,
}

/// A key column in the few shapes that are hashed.
enum Column {
    Bool(BooleanArray),
    Int(u8, Int64Array),
    Float(Float64Array),
    Decimal(i8, Decimal128Array),
    Text(arrow::array::StringArray),
    Binary(arrow::array::BinaryArray),
}

impl KeyHasher {
    /// Errors when `key` is empty or names a column that the schema lacks or that cannot be a key
    /// (list, struct, map).
    pub fn new(schema: &Schema, key: &[String]) -> Result<Self, KeyIndexError> {
        if key.is_empty() {
            return Err(KeyIndexError::Key { reason: "the table is append-only: it has no key to index".to_string() });
        }
        let fields = key.iter().map(|name| {
            let field = schema.field_with_name(name).map_err(|_| KeyIndexError::Key { reason: format!("key column {name} is not in the table") })?;
            if tag(field.data_type()).is_none() {
                let reason = format!("key column {name} has type {}: expected a column without nesting", field.data_type());
                return Err(KeyIndexError::Key { reason });
            }
            Ok(Arc::new(field.clone()))
        });
        Ok(Self { fields: fields.collect::<Result<_, _>>()? })
    }

    /// The key's columns, in the key's order.
    pub fn fields(&self) -> &[FieldRef] {
        &self.fields
    }

    /// Tells apart keys whose hashes cannot be compared.
    pub fn identity(&self) -> String {
        let columns: Vec<_> = self.fields.iter().map(|f| format!("{}:{}", f.name(), tag(f.data_type()).unwrap_or_default())).collect();
        format!("{ENCODING}/{}", columns.join(","))
    }

    /// One hash per row. The batch needs the key's columns only, found by name; their types are
    /// the table's, or what a Delta file has in their place (text for uuid and time of day).
    pub fn hashes(&self, batch: &RecordBatch) -> Result<Vec<u128>, KeyIndexError> {
        let columns = self.fields.iter().map(|field| {
            let at = batch.schema_ref().index_of(field.name()).map_err(|_| KeyIndexError::Key { reason: format!("the rows lack key column {}", field.name()) })?;
            column(batch.column(at), &batch.schema_ref().fields()[at], field)
                .map_err(|e| KeyIndexError::Key { reason: format!("key column {} cannot be hashed: {e}", field.name()) })
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let mut hashes = Vec::with_capacity(batch.num_rows());
        let mut bytes = Vec::with_capacity(64);
        for row in 0..batch.num_rows() {
            bytes.clear();
            for column in &columns {
                column.encode(row, &mut bytes);
            }
            hashes.push(XxHash3_128::oneshot(&bytes));
        }
        Ok(hashes)
    }
}

/// `None` for what cannot be a key.
fn tag(ty: &DataType) -> Option<u8> {
    Some(match ty {
        DataType::Boolean => 1,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => 2,
        DataType::Float32 | DataType::Float64 => 3,
        DataType::Decimal128(_, _) => 4,
        DataType::Utf8 => 5,
        DataType::Binary | DataType::FixedSizeBinary(_) => 6,
        DataType::Date32 => 7,
        DataType::Time64(_) => 8,
        DataType::Timestamp(_, _) => 9,
        _ => return None,
    })
}

fn column(array: &ArrayRef, from: &FieldRef, field: &FieldRef) -> Result<Column, arrow::error::ArrowError> {
    use arrow::datatypes::TimeUnit::Microsecond;
    let array = conform(array, from, field)?;
    let int = |tag, array: &ArrayRef| Ok(Column::Int(tag, cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone()));
    match field.data_type() {
        DataType::Boolean => Ok(Column::Bool(array.as_boolean().clone())),
        DataType::Float32 | DataType::Float64 => Ok(Column::Float(cast(&array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())),
        DataType::Decimal128(_, scale) => Ok(Column::Decimal(*scale, array.as_primitive::<Decimal128Type>().clone())),
        DataType::Utf8 => Ok(Column::Text(array.as_string::<i32>().clone())),
        DataType::Binary | DataType::FixedSizeBinary(_) => Ok(Column::Binary(cast(&array, &DataType::Binary)?.as_binary::<i32>().clone())),
        DataType::Date32 => int(7, &cast(&array, &DataType::Int32)?),
        DataType::Time64(_) => int(8, &cast(&array, &DataType::Time64(Microsecond))?),
        DataType::Timestamp(_, zone) => {
            let micros = Field::new(field.name(), DataType::Timestamp(Microsecond, zone.clone()), true);
            int(9, &cast(&array, micros.data_type())?)
        }
        _ => int(2, &array),
    }
}

impl Column {
    fn encode(&self, row: usize, out: &mut Vec<u8>) {
        let nulls = match self {
            Self::Bool(a) => a.nulls(),
            Self::Int(_, a) => a.nulls(),
            Self::Float(a) => a.nulls(),
            Self::Decimal(_, a) => a.nulls(),
            Self::Text(a) => a.nulls(),
            Self::Binary(a) => a.nulls(),
        };
        if nulls.is_some_and(|n| n.is_null(row)) {
            out.push(0);
            return;
        }
        match self {
            Self::Bool(a) => out.extend([1, u8::from(a.value(row))]),
            Self::Int(tag, a) => {
                out.push(*tag);
                out.extend(a.value(row).to_le_bytes());
            }
            Self::Float(a) => {
                let value = a.value(row);
                let canonical = if value.is_nan() { f64::NAN } else { value + 0.0 };
                out.push(3);
                out.extend(if canonical.is_nan() { 0x7ff8_0000_0000_0000_u64 } else { canonical.to_bits() }.to_le_bytes());
            }
            Self::Decimal(scale, a) => {
                out.extend([4, scale.to_le_bytes()[0]]);
                out.extend(a.value(row).to_le_bytes());
            }
            Self::Text(a) => bytes(5, a.value(row).as_bytes(), out),
            Self::Binary(a) => bytes(6, a.value(row), out),
        }
    }
}

/// Arrow's 32-bit offsets bound the length.
fn bytes(tag: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ColumnType;
    use arrow::array::*;

    fn hashes(columns: Vec<(ColumnType, ArrayRef)>) -> Vec<u128> {
        let fields: Vec<_> = columns.iter().enumerate().map(|(i, (t, _))| t.field(&format!("c{i}"), true)).collect();
        let names: Vec<_> = fields.iter().map(|f| f.name().clone()).collect();
        let hasher = KeyHasher::new(&Schema::new(fields), &names).unwrap();
        // As a batch of an older file might look: without the metadata.
        let batch = RecordBatch::try_from_iter(names.iter().cloned().zip(columns.into_iter().map(|(_, a)| a))).unwrap();
        hasher.hashes(&batch).unwrap()
    }

    /// These numbers stand in indexes on disk. When one changes, [`ENCODING`] must change.
    #[test]
    fn golden_hashes() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some(""), None]));
        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(-1), None]));
        let got = hashes(vec![(ColumnType::Int64, number), (ColumnType::String, text)]);
        let expected = |bytes: &[u8]| XxHash3_128::oneshot(bytes);
        assert_eq!(got[0], expected(b"\x02\x01\0\0\0\0\0\0\0\x05\x01\0\0\0a"));
        assert_eq!(got[1], expected(b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\x05\0\0\0\0"));
        assert_eq!(got[2], expected(b"\0\0"));
        assert_eq!(format!("{:032x}", got[2]), GOLDEN_NULLS);
        assert_eq!(format!("{:032x}", got[0]), GOLDEN_ONE_A);
    }

    const GOLDEN_NULLS: &str = "4758ddac5f9ee9383325230e1f285505";
    const GOLDEN_ONE_A: &str = "28d7bbed1b822ce8c9a6fa69f92d3c3f";

    #[test]
    fn equal_keys_hash_alike_and_others_do_not() {
        let float = |v: Vec<f64>| hashes(vec![(ColumnType::Float64, Arc::new(Float64Array::from(v)) as ArrayRef)]);
        let got = float(vec![0.0, -0.0, f64::NAN, -f64::NAN, f64::from_bits(0x7ff0_0000_0000_0001), f64::INFINITY]);
        assert_eq!(got[0], got[1]);
        assert_eq!(got[2], got[3]);
        assert_eq!(got[2], got[4]);
        assert_ne!(got[2], got[5]);
        // A column that was widened since the file was written.
        let wide = hashes(vec![(ColumnType::Int64, Arc::new(Int64Array::from(vec![7])) as ArrayRef)]);
        assert_eq!(hashes(vec![(ColumnType::Int64, Arc::new(Int32Array::from(vec![7])) as ArrayRef)]), wide);
        assert_eq!(hashes(vec![(ColumnType::Int32, Arc::new(Int32Array::from(vec![7])) as ArrayRef)]), wide);
        // Delta's text for what it has no type for.
        let id = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let fixed: ArrayRef = Arc::new(FixedSizeBinaryArray::try_from_iter([id.into_bytes()].into_iter()).unwrap());
        let text: ArrayRef = Arc::new(StringArray::from(vec![id.to_string()]));
        assert_eq!(hashes(vec![(ColumnType::Uuid, fixed)]), hashes(vec![(ColumnType::Uuid, text)]));
        let time: ArrayRef = Arc::new(Time64MicrosecondArray::from(vec![3_600_000_001]));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["01:00:00.000001"]));
        assert_eq!(hashes(vec![(ColumnType::Time, time)]), hashes(vec![(ColumnType::Time, text)]));
        // Where one value ends and the next begins is part of the key.
        let pair = |a: &str, b: &str| {
            let (a, b): (ArrayRef, ArrayRef) = (Arc::new(StringArray::from(vec![a])), Arc::new(StringArray::from(vec![b])));
            hashes(vec![(ColumnType::String, a), (ColumnType::String, b)])
        };
        assert_ne!(pair("ab", "c"), pair("a", "bc"));
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let list = ColumnType::List(Box::new(ColumnType::Int64)).field("l", true);
        let error = KeyHasher::new(&Schema::new(vec![list.clone()]), &["l".to_string()]).unwrap_err();
        assert!(error.to_string().contains("key column l"), "{error}");
        assert!(KeyHasher::new(&Schema::new(vec![list]), &["x".to_string()]).is_err());
        let text = ColumnType::Uuid.field("u", true);
        let hasher = KeyHasher::new(&Schema::new(vec![text]), &["u".to_string()]).unwrap();
        let batch = RecordBatch::try_from_iter([("u", Arc::new(StringArray::from(vec!["no uuid"])) as ArrayRef)]).unwrap();
        assert!(hasher.hashes(&batch).unwrap_err().to_string().contains("no uuid"));
    }
}
