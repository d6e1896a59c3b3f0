//! A file's columns as the table's: matched by field id, else by name; widened, null-filled.

use crate::pipeline::TYPE_KEY;
use crate::stage::FIELD_ID;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, FixedSizeBinaryArray, ListArray, MapArray, StringArray, StructArray, UInt64Array, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{DataType, FieldRef, Fields};
use arrow::error::ArrowError;
use std::sync::Arc;

/// Where among `found` the field `wanted` lies. A column whose id is known to be another's never
/// matches by name: it is a dropped column whose name was used again.
pub fn position(found: &Fields, wanted: &FieldRef) -> Option<usize> {
    let id = |field: &FieldRef| field.metadata().get(FIELD_ID).cloned();
    let by_id = id(wanted).and_then(|wanted| found.iter().position(|f| id(f).as_ref() == Some(&wanted)));
    by_id.or_else(|| found.iter().position(|f| f.name() == wanted.name() && (id(f).is_none() || id(wanted).is_none())))
}

/// `array` as a column of the type of `wanted`. Never changes a value: what does not fit is an error.
pub fn adapt(array: &ArrayRef, from: &FieldRef, wanted: &FieldRef) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == wanted.data_type() {
        return Ok(array.clone());
    }
    match (array.data_type(), wanted.data_type()) {
        (DataType::Struct(_), DataType::Struct(fields)) => Ok(Arc::new(adapt_struct(array.as_struct(), fields)?)),
        (DataType::List(_) | DataType::LargeList(_), DataType::List(item)) => {
            let plain = DataType::List(inner(array.data_type()).unwrap_or(from).clone());
            let list = if array.data_type() == &plain { array.clone() } else { exact_cast(array, &plain)? };
            let list = list.as_list::<i32>();
            let values = adapt(list.values(), inner(list.data_type()).unwrap_or(from), item)?;
            Ok(Arc::new(ListArray::try_new(item.clone(), list.offsets().clone(), values, list.nulls().cloned())?))
        }
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let map = array.as_map();
            let DataType::Struct(fields) = entries.data_type() else {
                return Err(ArrowError::SchemaError(format!("map {} has no key and value", wanted.name())));
            };
            // The names of key and value differ between writers; their order does not.
            let found = map.entries();
            let columns = found.columns().iter().zip(found.fields()).zip(fields).map(|((a, f), w)| adapt(a, f, w)).collect::<Result<Vec<_>, _>>()?;
            let adapted = StructArray::try_new(fields.clone(), columns, found.nulls().cloned())?;
            Ok(Arc::new(MapArray::try_new(entries.clone(), map.offsets().clone(), adapted, map.nulls().cloned(), *sorted)?))
        }
        (DataType::Utf8, DataType::FixedSizeBinary(16)) if is_uuid(wanted) => uuid_from_text(array.as_string::<i32>()),
        (DataType::FixedSizeBinary(16), DataType::Utf8) => Ok(uuid_to_text(array.as_fixed_size_binary())),
        (found, to) if widens(found, to) => exact_cast(array, to),
        (found, to) => Err(ArrowError::CastError(format!("expected {to}, found {found}"))),
    }
}

/// Whether a cast either keeps every value or fails. Nanoseconds are the exception: they come
/// from the old 96-bit timestamps, whose writers mean microseconds.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let text = |t: &D| matches!(t, D::Utf8 | D::LargeUtf8 | D::Utf8View);
    let bytes = |t: &D| matches!(t, D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_));
    match (from, to) {
        (from, to) if from.is_integer() && (to.is_integer() || matches!(to, D::Decimal128(_, _))) => true,
        (D::Int8 | D::Int16, D::Float32) | (D::Int8 | D::Int16 | D::Int32 | D::Float32, D::Float64) => true,
        (D::Decimal128(_, from) | D::Decimal64(_, from) | D::Decimal32(_, from), D::Decimal128(_, to)) => from <= to,
        (D::Timestamp(_, _), D::Timestamp(_, _)) | (D::Time32(_), D::Time64(_)) | (D::Date32, D::Timestamp(_, None)) => true,
        // Text is parsed: partition values and what Delta has no type for.
        (from, to) if text(from) => !to.is_nested(),
        (from, to) if bytes(from) => bytes(to),
        (D::Time64(_), to) => text(to),
        _ => false,
    }
}

fn adapt_struct(array: &StructArray, wanted: &Fields) -> Result<StructArray, ArrowError> {
    let columns = wanted.iter().map(|field| match position(array.fields(), field) {
        Some(at) => adapt(array.column(at), &array.fields()[at], field),
        None => Ok(new_null_array(field.data_type(), array.len())),
    });
    StructArray::try_new_with_length(wanted.clone(), columns.collect::<Result<Vec<_>, _>>()?, array.nulls().cloned(), array.len())
}

fn inner(list: &DataType) -> Option<&FieldRef> {
    match list {
        DataType::List(item) | DataType::LargeList(item) => Some(item),
        _ => None,
    }
}

fn exact_cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    cast_with_options(array, to, &CastOptions { safe: false, ..Default::default() })
}

pub fn is_uuid(field: &FieldRef) -> bool {
    field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid")
}

/// Sixteen bytes per value; refuses text that is not a uuid.
pub fn uuid_from_text(text: &StringArray) -> Result<ArrayRef, ArrowError> {
    let parsed = text.iter().map(|t| match t {
        Some(t) => uuid::Uuid::parse_str(t).map(|u| Some(u.into_bytes())).map_err(|_| ArrowError::CastError(format!("'{t}' is not a uuid"))),
        None => Ok(None),
    });
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(parsed.into_iter(), 16)?))
}

/// The canonical text, lower case with hyphens.
pub fn uuid_to_text(bytes: &FixedSizeBinaryArray) -> ArrayRef {
    let text = bytes.iter().map(|b| b.and_then(|b| uuid::Uuid::from_slice(b).ok()).map(|u| u.to_string()));
    Arc::new(text.collect::<StringArray>())
}

/// `rows` times the partition value `text`, as Delta writes it: an empty text is null, but in a column that cannot be null.
pub fn partition_column(text: Option<&str>, wanted: &FieldRef, rows: usize) -> Result<ArrayRef, ArrowError> {
    if text.is_none_or(str::is_empty) && !wanted.is_nullable() && wanted.data_type() == &DataType::Utf8 {
        return Ok(Arc::new(StringArray::from(vec![""; rows])));
    }
    let Some(text) = text.filter(|t| !t.is_empty()) else {
        return Ok(new_null_array(wanted.data_type(), rows));
    };
    let one: ArrayRef = match wanted.data_type() {
        DataType::Binary => Arc::new(BinaryArray::from_iter_values([unescape_binary(text)?])),
        _ => {
            let one: ArrayRef = Arc::new(StringArray::from_iter_values([text]));
            adapt(&one, wanted, wanted)?
        }
    };
    take(&one, &UInt64Array::from(vec![0; rows]), None)
}

/// Delta writes each byte of a binary partition value as the escape `\u00XX`; other characters
/// stand for themselves.
fn unescape_binary(text: &str) -> Result<Vec<u8>, ArrowError> {
    let bad = || ArrowError::CastError(format!("'{text}' is not a binary partition value: expected bytes as \\u0000 to \\u00ff"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match rest.strip_prefix("\\u") {
            Some(escape) => {
                let code = escape.get(..4).and_then(|h| u16::from_str_radix(h, 16).ok()).ok_or_else(bad)?;
                bytes.push(u8::try_from(code).map_err(|_| bad())?);
                rest = &escape[4..];
            }
            None => {
                bytes.push(u8::try_from(u32::from(c)).map_err(|_| bad())?);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, Int64Array};
    use arrow::datatypes::{Field, Int64Type, TimeUnit};

    fn field(name: &str, ty: DataType, id: Option<i32>) -> FieldRef {
        let field = Field::new(name, ty, true);
        Arc::new(match id {
            Some(id) => field.with_metadata([(FIELD_ID.to_string(), id.to_string())].into()),
            None => field,
        })
    }

    #[test]
    fn ids_decide_before_names() {
        let found: Fields = vec![field("a", DataType::Int32, Some(2)), field("b", DataType::Int32, Some(1)), field("c", DataType::Int32, None)].into();
        assert_eq!(position(&found, &field("a", DataType::Int32, Some(1))), Some(1));
        assert_eq!(position(&found, &field("c", DataType::Int32, Some(9))), Some(2));
        assert_eq!(position(&found, &field("a", DataType::Int32, Some(7))), None, "the name was used again for another column");
        assert_eq!(position(&found, &field("a", DataType::Int32, None)), Some(0));
    }

    #[test]
    fn nested_columns_widen_and_fill() {
        let old: Fields = vec![field("x", DataType::Int32, Some(3))].into();
        let new: Fields = vec![field("y", DataType::Utf8, Some(4)), field("renamed", DataType::Int64, Some(3))].into();
        let from = field("s", DataType::Struct(old.clone()), Some(1));
        let to = field("s", DataType::Struct(new), Some(1));
        let array: ArrayRef = Arc::new(StructArray::new(old, vec![Arc::new(Int32Array::from(vec![Some(7), None]))], None));
        let adapted = adapt(&array, &from, &to).unwrap();
        assert_eq!(adapted.as_struct().column(0).null_count(), 2);
        assert_eq!(adapted.as_struct().column(1).as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(7), None]));

        let list = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        let list: ArrayRef = Arc::new(list);
        let to = field("l", DataType::List(field("element", DataType::Int64, Some(6))), Some(5));
        let adapted = adapt(&list, &field("l", list.data_type().clone(), Some(5)), &to).unwrap();
        assert_eq!(adapted.data_type(), to.data_type());
        assert_eq!(adapted.as_list::<i32>().values().as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(1), None]));
    }

    #[test]
    fn partition_values_are_read_as_delta_writes_them() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let at = |text| partition_column(Some(text), &field("t", utc.clone(), None), 2).unwrap().as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(1);
        assert_eq!(at("1970-01-01 00:00:01.5"), 1_500_000);
        assert_eq!(at("1970-01-01T00:00:01.5Z"), 1_500_000);
        let date = partition_column(Some("1970-01-03"), &field("d", DataType::Date32, None), 1).unwrap();
        assert_eq!(date.as_primitive::<arrow::datatypes::Date32Type>().value(0), 2);
        let binary = partition_column(Some("\\u0000A\\u00ff"), &field("b", DataType::Binary, None), 1).unwrap();
        assert_eq!(binary.as_binary::<i32>().value(0), b"\0A\xff");
        assert_eq!(partition_column(Some(""), &field("s", DataType::Utf8, None), 3).unwrap().null_count(), 3);
        let required: FieldRef = Arc::new(Field::new("s", DataType::Utf8, false));
        for text in [Some(""), None] {
            assert_eq!(partition_column(text, &required, 2).unwrap().as_string::<i32>(), &StringArray::from(vec!["", ""]));
        }
        assert!(partition_column(Some("x"), &field("n", DataType::Int64, None), 1).is_err());
    }
}
