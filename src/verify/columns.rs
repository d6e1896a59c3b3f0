//! How a data file marks its columns: the field ids by which Iceberg's readers find them, and whether an instant is one.
//!
//! A column under another id is null to readers or shows another's values; an instant that is not marked as UTC is read
//! in whatever zone the reader is in.

use crate::pipeline::TableFormatKind;
use crate::stage::layout::field_id;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::basic::LogicalType;
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::Type;
use std::collections::BTreeSet;

/// What is wrong with a file's columns: kind, column, text. `mapped`: files without ids are read by their columns' names.
pub fn check(metadata: &ParquetMetaData, schema: &Schema, format: TableFormatKind, mapped: bool) -> Vec<(&'static str, String, String)> {
    let mut wrong = vec![];
    let roots = metadata.file_metadata().schema_descr().root_schema().get_fields();
    for field in schema.fields() {
        let by_id = roots.iter().find(|r| id(r).is_some() && id(r) == field_id(field)).filter(|_| format == TableFormatKind::Iceberg);
        let Some(root) = by_id.or_else(|| roots.iter().find(|r| r.name() == field.name())) else { continue };
        if let Some(text) = strange_id(root, field, mapped).filter(|_| format == TableFormatKind::Iceberg) {
            wrong.push(("field-ids", field.name().clone(), text));
        }
        if let (DataType::Timestamp(_, zone), Some(LogicalType::Timestamp { is_adjusted_to_u_t_c, .. })) = (field.data_type(), root.get_basic_info().logical_type_ref())
            && zone.is_some() != *is_adjusted_to_u_t_c
        {
            let text = if zone.is_some() { "as local time, and the table as an instant" } else { "as an instant, and the table as local time" };
            wrong.push(("time-zone", field.name().clone(), format!("marks it {text}")));
        }
    }
    wrong
}

fn id(root: &Type) -> Option<i32> {
    Some(root.get_basic_info()).filter(|i| i.has_id()).map(|i| i.id())
}

/// How a file's column has ids that are not the table's.
fn strange_id(root: &Type, field: &Field, mapped: bool) -> Option<String> {
    let wanted = field_id(field)?;
    match id(root) {
        None if mapped => return None,
        None => return Some(format!("gives it no field id, and the table {wanted}")),
        Some(found) if found != wanted => return Some(format!("gives it the field id {found}, and the table {wanted}")),
        Some(_) => {}
    }
    let (mut known, mut found) = (BTreeSet::new(), vec![]);
    ids_of(field.data_type(), &mut known);
    leaves(root, &mut found);
    let strange = found.into_iter().find(|leaf| field.data_type().is_nested() && leaf.is_none_or(|id| !known.contains(&id)))?;
    Some(match strange {
        None => "gives a column in it no field id".into(),
        Some(id) => format!("gives a column in it the field id {id}, which the table does not know there"),
    })
}

/// Field ids of what is nested in a type.
fn ids_of(ty: &DataType, ids: &mut BTreeSet<i32>) {
    let inner: Vec<&Field> = match ty {
        DataType::Struct(fields) => fields.iter().map(AsRef::as_ref).collect(),
        DataType::List(item) | DataType::Map(item, _) => vec![item.as_ref()],
        _ => vec![],
    };
    for field in inner {
        ids.extend(field_id(field));
        ids_of(field.data_type(), ids);
    }
}

/// Field ids of the leaves below a column of a file.
fn leaves(of: &Type, ids: &mut Vec<Option<i32>>) {
    if of.is_primitive() {
        ids.push(id(of));
    } else {
        of.get_fields().iter().for_each(|f| leaves(f, ids));
    }
}
