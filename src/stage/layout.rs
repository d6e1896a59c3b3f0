//! How a table's columns are laid out: every field, nested ones included, has an id for life.
//!
//! Readers find columns by id, not by name. An id that changed, or that came back for another
//! column, would show old files under new columns; so ids are given once, in the order in which
//! Iceberg numbers a fresh table, and later only ever added.

use super::FIELD_ID;
use crate::pipeline::TYPE_KEY;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

/// Why columns cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The columns differ from those of the table in more than added nullable ones.
    #[error("the columns changed in a way that a table cannot follow in this version: {}; keep them as they were, or give the table another name", .0.join("; "))]
    Changed(Vec<String>),
    /// A type that tables do not hold.
    #[error(
        "column `{column}` has the type {found}, which tables do not hold; cast it to bool, int, bigint, float, double, decimal, string, binary, date, time or timestamp(6)"
    )]
    Unsupported { column: String, found: String },
    /// Two columns of one name.
    #[error("two columns are named `{0}`; give one of them another name (a column of the source: `name: {{type: …, from: {0}}}`)")]
    Duplicate(String),
    /// A schema that was taken for one that already has its ids.
    #[error("field `{0}` carries no field id, but a table's fields must; its plan in the log was not made by this version")]
    NoId(String),
}

/// Gives every field its id, in the Arrow metadata [`FIELD_ID`].
///
/// Without `previous`: the ids of a fresh table, level by level: all fields of a struct first, then
/// what is nested in each of them. With `previous` (whose fields have ids): columns of the same name
/// keep their ids, added ones (all nullable) get ids above every earlier one.
///
/// # Errors
/// [`LayoutError::Changed`] shows each column that was removed, retyped, or added `not null`.
pub fn assign_field_ids(schema: &Schema, previous: Option<&Schema>) -> Result<SchemaRef, LayoutError> {
    for (i, field) in schema.fields().iter().enumerate() {
        check_type(field, field.name())?;
        if schema.fields()[..i].iter().any(|f| f.name() == field.name()) {
            return Err(LayoutError::Duplicate(field.name().clone()));
        }
    }
    let Some(previous) = previous else {
        let mut next = 1;
        return Ok(Arc::new(Schema::new(number_fields(schema.fields(), &mut next))));
    };

    let mut next = highest_field_id(previous)? + 1;
    let mut differences = Vec::new();
    for old in previous.fields() {
        if schema.field_with_name(old.name()).is_err() {
            differences.push(format!("column `{}` ({}) is gone", old.name(), type_name(old)));
        }
    }
    let added: Fields = schema.fields().iter().filter(|f| previous.field_with_name(f.name()).is_err()).cloned().collect();
    for new in added.iter().filter(|f| !f.is_nullable()) {
        differences.push(format!("column `{}` was added as `not null`, but older rows have no value for it", new.name()));
    }
    let mut added = number_fields(&added, &mut next).into_iter().cloned().collect::<Vec<_>>().into_iter();
    let mut fields: Vec<FieldRef> = Vec::with_capacity(schema.fields().len());
    for new in schema.fields() {
        match previous.field_with_name(new.name()) {
            Ok(old) => {
                if !same_shape(old, new) {
                    differences.push(format!("column `{}` was {} and would become {}", new.name(), type_name(old), type_name(new)));
                }
                fields.push(Arc::new(old.clone()));
            }
            Err(_) => fields.extend(added.next()),
        }
    }
    if differences.is_empty() { Ok(Arc::new(Schema::new(fields))) } else { Err(LayoutError::Changed(differences)) }
}

/// The id of a field, if it has one.
pub fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(FIELD_ID).and_then(|id| id.parse().ok())
}

/// Whether this is a uuid, which shares its Arrow type with any 16 bytes.
pub fn is_uuid(field: &Field) -> bool {
    field.data_type() == &DataType::FixedSizeBinary(16) && field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid")
}

/// The type as users name it, `not null` included.
pub fn type_name(field: &Field) -> String {
    let name = match field.data_type() {
        DataType::Boolean => "bool".into(),
        DataType::Int32 => "int32".into(),
        DataType::Int64 => "int64".into(),
        DataType::Float32 => "float32".into(),
        DataType::Float64 => "float64".into(),
        DataType::Decimal128(p, s) => format!("decimal({p},{s})"),
        DataType::Utf8 if field.metadata().get(TYPE_KEY).is_some_and(|t| t == "json") => "json".into(),
        DataType::Utf8 => "string".into(),
        DataType::Binary => "binary".into(),
        DataType::Date32 => "date".into(),
        DataType::Time64(_) => "time".into(),
        DataType::Timestamp(_, Some(_)) => "timestamp".into(),
        DataType::Timestamp(_, None) => "timestamp_local".into(),
        DataType::FixedSizeBinary(16) if is_uuid(field) => "uuid".into(),
        DataType::List(e) => format!("list<{}>", type_name(e)),
        DataType::Struct(fields) => {
            format!("struct<{}>", fields.iter().map(|f| format!("{}: {}", f.name(), type_name(f))).collect::<Vec<_>>().join(", "))
        }
        DataType::Map(e, _) => match e.data_type() {
            DataType::Struct(kv) if kv.len() == 2 => format!("map<{}, {}>", type_name(&kv[0]), type_name(&kv[1])),
            other => other.to_string(),
        },
        other => other.to_string(),
    };
    if field.is_nullable() { name } else { format!("{name} not null") }
}

/// The highest id of all fields, nested ones included; 0 of a schema without fields.
///
/// # Errors
/// [`LayoutError::NoId`] when a field has none.
pub fn highest_field_id(schema: &Schema) -> Result<i32, LayoutError> {
    let mut highest = 0;
    for field in schema.fields() {
        visit(field, &mut |f| {
            highest = highest.max(field_id(f).ok_or_else(|| LayoutError::NoId(f.name().clone()))?);
            Ok(())
        })?;
    }
    Ok(highest)
}

/// Calls `see` for a field and all that are nested in it and have ids of their own.
fn visit(field: &Field, see: &mut impl FnMut(&Field) -> Result<(), LayoutError>) -> Result<(), LayoutError> {
    see(field)?;
    for child in children(field.data_type()) {
        visit(child, see)?;
    }
    Ok(())
}

/// The nested fields that have ids: struct fields, list elements, map keys and values.
pub(crate) fn children(ty: &DataType) -> Vec<&FieldRef> {
    match ty {
        DataType::Struct(fields) => fields.iter().collect(),
        DataType::List(element) => vec![element],
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => kv.iter().collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn with_id(field: &Field, id: i32) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(FIELD_ID.to_string(), id.to_string());
    field.clone().with_metadata(metadata)
}

fn take(next: &mut i32) -> i32 {
    let id = *next;
    *next += 1;
    id
}

fn number_fields(fields: &Fields, next: &mut i32) -> Fields {
    let level: Vec<Field> = fields.iter().map(|f| with_id(f, take(next))).collect();
    level
        .into_iter()
        .map(|f| {
            let ty = number_nested(f.data_type(), next);
            f.with_data_type(ty)
        })
        .collect()
}

fn number_nested(ty: &DataType, next: &mut i32) -> DataType {
    let one = |field: &Field, next: &mut i32| {
        let field = with_id(field, take(next));
        let ty = number_nested(field.data_type(), next);
        field.with_data_type(ty)
    };
    match ty {
        DataType::Struct(fields) => DataType::Struct(number_fields(fields, next)),
        DataType::List(element) => DataType::List(Arc::new(one(element, next))),
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(kv) => {
                let kv: Fields = kv.iter().map(|f| one(f, next)).collect();
                DataType::Map(Arc::new(entries.as_ref().clone().with_data_type(DataType::Struct(kv))), *sorted)
            }
            _ => ty.clone(),
        },
        _ => ty.clone(),
    }
}

/// Same name, type and nullability at every level, whatever the ids.
fn same_shape(a: &Field, b: &Field) -> bool {
    let kind = |t: &DataType| match t {
        DataType::Struct(_) | DataType::List(_) | DataType::Map(..) => std::mem::discriminant(t),
        _ => std::mem::discriminant(&DataType::Null),
    };
    let (ca, cb) = (children(a.data_type()), children(b.data_type()));
    let named = matches!(a.data_type(), DataType::Struct(_));
    a.is_nullable() == b.is_nullable()
        && a.metadata().get(TYPE_KEY) == b.metadata().get(TYPE_KEY)
        && kind(a.data_type()) == kind(b.data_type())
        && ca.len() == cb.len()
        && (!ca.is_empty() || a.data_type() == b.data_type())
        && ca.iter().zip(&cb).all(|(x, y)| (!named || x.name() == y.name()) && same_shape(x, y))
}

fn check_type(field: &Field, at: &str) -> Result<(), LayoutError> {
    let good = match field.data_type() {
        DataType::Boolean | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64 => true,
        DataType::Utf8 | DataType::Binary | DataType::Date32 | DataType::Time64(TimeUnit::Microsecond) => true,
        DataType::Decimal128(p, s) => *p >= 1 && *p <= 38 && *s >= 0 && *s as u8 <= *p,
        DataType::Timestamp(TimeUnit::Microsecond, zone) => zone.as_deref().is_none_or(|z| z == "UTC"),
        DataType::FixedSizeBinary(_) => is_uuid(field),
        DataType::List(_) | DataType::Struct(_) | DataType::Map(..) => !children(field.data_type()).is_empty(),
        _ => false,
    };
    if !good {
        return Err(LayoutError::Unsupported { column: at.to_string(), found: field.data_type().to_string() });
    }
    for child in children(field.data_type()) {
        check_type(child, &format!("{at}.{}", child.name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ColumnType as T;

    fn schema(columns: &[(&str, T, bool)]) -> Schema {
        Schema::new(columns.iter().map(|(n, t, nullable)| t.field(n, *nullable)).collect::<Vec<_>>())
    }

    fn ids(schema: &Schema) -> Vec<(String, i32)> {
        let mut all = Vec::new();
        for field in schema.fields() {
            visit(field, &mut |f| {
                all.push((f.name().clone(), field_id(f).unwrap()));
                Ok(())
            })
            .unwrap();
        }
        all
    }

    fn nested() -> Schema {
        let point = T::Struct(vec![("x".into(), T::Float64), ("tags".into(), T::List(Box::new(T::String)))]);
        schema(&[
            ("id", T::Uuid, false),
            ("points", T::List(Box::new(point.clone())), true),
            ("m", T::Map(Box::new(T::String), Box::new(point)), true),
            ("last", T::Int64, true),
        ])
    }

    #[test]
    fn a_fresh_table_is_numbered_level_by_level() {
        let got = assign_field_ids(&nested(), None).unwrap();
        let want = [
            ("id", 1),
            ("points", 2),
            ("item", 5),
            ("x", 6),
            ("tags", 7),
            ("item", 8),
            ("m", 3),
            ("key", 9),
            ("value", 10),
            ("x", 11),
            ("tags", 12),
            ("item", 13),
            ("last", 4),
        ];
        assert_eq!(ids(&got), want.map(|(n, i)| (n.to_string(), i)));
    }

    #[test]
    fn added_columns_get_ids_above_all_earlier_ones() {
        let first = assign_field_ids(&nested(), None).unwrap();
        let mut columns: Vec<FieldRef> = nested().fields().iter().cloned().collect();
        columns.insert(1, Arc::new(T::List(Box::new(T::Int32)).field("added", true)));
        let second = assign_field_ids(&Schema::new(columns), Some(&first)).unwrap();
        assert_eq!(second.fields()[0], first.fields()[0]);
        assert_eq!(second.fields()[2], first.fields()[1]);
        assert_eq!(field_id(&second.fields()[1]), Some(14));
        assert_eq!(highest_field_id(&second).unwrap(), 15);
        assert_eq!(assign_field_ids(&second, Some(&second)).unwrap(), second);
    }

    #[test]
    fn removed_retyped_and_required_columns_are_shown_all_at_once() {
        let first = assign_field_ids(&schema(&[("a", T::Int32, true), ("b", T::String, true), ("c", T::List(Box::new(T::Int32)), true)]), None).unwrap();
        let next = schema(&[("a", T::Int64, true), ("c", T::List(Box::new(T::Int64)), true), ("d", T::Date, false)]);
        let LayoutError::Changed(differences) = assign_field_ids(&next, Some(&first)).unwrap_err() else { panic!() };
        assert_eq!(differences.len(), 4, "{differences:?}");
        assert!(differences.iter().any(|d| d == "column `a` was int32 and would become int64"), "{differences:?}");
        assert!(differences.iter().any(|d| d == "column `b` (string) is gone"), "{differences:?}");
        assert!(differences.iter().any(|d| d == "column `c` was list<int32> and would become list<int64>"), "{differences:?}");
        assert!(differences.iter().any(|d| d.starts_with("column `d` was added as `not null`")), "{differences:?}");
    }

    #[test]
    fn a_text_column_does_not_turn_into_json() {
        let first = assign_field_ids(&schema(&[("a", T::String, true)]), None).unwrap();
        assert!(assign_field_ids(&schema(&[("a", T::Json, true)]), Some(&first)).is_err());
    }

    #[test]
    fn foreign_arrow_types_are_refused_by_name() {
        let s = Schema::new(vec![Field::new("n", DataType::UInt64, true)]);
        assert!(matches!(assign_field_ids(&s, None), Err(LayoutError::Unsupported { column, .. }) if column == "n"));
        let s = Schema::new(vec![Field::new("t", DataType::Timestamp(TimeUnit::Nanosecond, None), true)]);
        assert!(assign_field_ids(&s, None).is_err());
    }
}
