//! Which Arrow types a table's column may have, and what users call them.

use arrow::datatypes::{DataType, Field, TimeUnit};
use std::sync::Arc;

/// The type that a computed column has in its table, or why it can have none. Wider forms of the same
/// values (large and view strings, other time units, small integers) become the one that tables use.
pub(super) fn of_table(t: &DataType) -> Result<DataType, String> {
    use DataType as D;
    Ok(match t {
        D::Boolean | D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Date32 | D::Utf8 | D::Binary => t.clone(),
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 => D::Int32,
        D::UInt32 | D::UInt64 => D::Int64,
        D::Float16 => D::Float32,
        D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::LargeBinary | D::BinaryView => D::Binary,
        D::FixedSizeBinary(16) => t.clone(),
        D::FixedSizeBinary(_) => D::Binary,
        D::Date64 => D::Date32,
        D::Time32(_) | D::Time64(_) => D::Time64(TimeUnit::Microsecond),
        D::Timestamp(_, None) => D::Timestamp(TimeUnit::Microsecond, None),
        D::Timestamp(_, Some(_)) => D::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s) if *s >= 0 => D::Decimal128(*p, *s),
        D::Decimal256(p, s) if *p <= 38 && *s >= 0 => D::Decimal128(*p, *s),
        D::Decimal256(_, _) => return Err(format!("{} has more than 38 digits; cast it to a decimal of at most 38", describe(t))),
        D::Dictionary(_, v) => of_table(v)?,
        D::List(f) | D::LargeList(f) => D::List(Arc::new(Field::new("item", of_table(f.data_type())?, true))),
        D::Struct(fields) => {
            let each = fields.iter().map(|f| Ok(Field::new(f.name(), of_table(f.data_type())?, true).with_metadata(f.metadata().clone())));
            D::Struct(each.collect::<Result<Vec<_>, String>>()?.into())
        }
        D::Map(_, _) => t.clone(),
        D::Null => return Err("null has no type; give it one with cast(null as …)".to_string()),
        other => return Err(format!("a table's column cannot be of type {}; cast it", describe(other))),
    })
}

/// A type in the words of the pipeline file; stable, because plans are compared by it.
pub(super) fn describe(t: &DataType) -> String {
    use DataType as D;
    match t {
        D::Boolean => "bool".into(),
        D::Int32 => "int32".into(),
        D::Int64 => "int64".into(),
        D::Float32 => "float32".into(),
        D::Float64 => "float64".into(),
        D::Decimal128(p, s) => format!("decimal({p},{s})"),
        D::Decimal256(p, s) => format!("decimal256({p},{s})"),
        D::Utf8 => "string".into(),
        D::Binary => "binary".into(),
        D::Date32 => "date".into(),
        D::Time64(TimeUnit::Microsecond) => "time".into(),
        D::Timestamp(TimeUnit::Microsecond, Some(z)) if z.as_ref() == "UTC" => "timestamp".into(),
        D::Timestamp(TimeUnit::Microsecond, None) => "timestamp_local".into(),
        D::FixedSizeBinary(16) => "uuid".into(),
        D::List(f) => format!("list<{}>", describe(f.data_type())),
        D::Struct(fields) => {
            let each: Vec<_> = fields.iter().map(|f| format!("{}: {}", f.name(), describe(f.data_type()))).collect();
            format!("struct<{}>", each.join(", "))
        }
        D::Map(entries, _) => match entries.data_type() {
            D::Struct(kv) if kv.len() == 2 => format!("map<{}, {}>", describe(kv[0].data_type()), describe(kv[1].data_type())),
            _ => format!("{t:?}"),
        },
        other => format!("{other:?}"),
    }
}
