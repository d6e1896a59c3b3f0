//! Arrow schemas as Delta schemas, and whether a table's schema fits what a spec asks for.
//!
//! Types follow the Delta protocol ("Schema Serialization Format"). Delta has neither uuid nor
//! time: both are strings, as text that sorts as the value does.

use crate::pipeline::TYPE_KEY;
use crate::stage::layout::field_id;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde_json::{Value, json};

/// The Delta type of an Arrow field: a primitive's name, or the object of a struct, array or map.
/// The error names the field.
pub(super) fn delta_type(field: &Field) -> Result<Value, String> {
    let name = match field.data_type() {
        DataType::Boolean => "boolean",
        DataType::Int8 => "byte",
        DataType::Int16 => "short",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary",
        DataType::FixedSizeBinary(16) if is_uuid(field) => "string",
        DataType::FixedSizeBinary(_) => "binary",
        DataType::Time32(_) | DataType::Time64(_) => "string",
        DataType::Date32 => "date",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamp",
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp_ntz",
        DataType::Decimal128(p, s) if *s >= 0 => return Ok(json!(format!("decimal({p},{s})"))),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|f| delta_field(f)).collect::<Result<Vec<_>, _>>()?;
            return Ok(json!({"type": "struct", "fields": fields}));
        }
        DataType::List(item) | DataType::LargeList(item) => {
            return Ok(json!({"type": "array", "elementType": delta_type(item)?, "containsNull": item.is_nullable()}));
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(kv) = entries.data_type() else {
                return Err(format!("column `{}`: map entries are not a struct", field.name()));
            };
            return Ok(json!({
                "type": "map", "keyType": delta_type(&kv[0])?, "valueType": delta_type(&kv[1])?, "valueContainsNull": kv[1].is_nullable(),
            }));
        }
        other => return Err(format!("column `{}` has type {other}, which delta does not know: cast it in the sql", field.name())),
    };
    Ok(json!(name))
}

pub(super) fn is_uuid(field: &Field) -> bool {
    field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid")
}

fn delta_field(field: &Field) -> Result<Value, String> {
    Ok(json!({"name": field.name(), "type": delta_type(field)?, "nullable": field.is_nullable(), "metadata": {}}))
}

/// The fields of a Delta schema, in order.
pub(super) fn delta_fields(schema: &Schema) -> Result<Vec<Value>, String> {
    for field in schema.fields() {
        // Without column mapping Parquet's old writers cannot hold these characters.
        if field.name().is_empty() || field.name().contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=']) {
            return Err(format!(
                "column `{}`: delta allows none of space , ; {{ }} ( ) tab newline = in a name without column mapping: rename it in the sql",
                field.name()
            ));
        }
    }
    schema.fields().iter().map(|f| delta_field(f)).collect()
}

/// `metaData.schemaString` of these fields.
pub(super) fn schema_string(fields: &[Value]) -> String {
    json!({"type": "struct", "fields": fields}).to_string()
}

/// The fields of a `metaData.schemaString`.
pub(super) fn parse_schema(text: &str) -> Result<Vec<Value>, String> {
    let schema: Value = serde_json::from_str(text).map_err(|e| format!("schemaString is no json: {e}"))?;
    schema["fields"].as_array().cloned().ok_or_else(|| "schemaString has no fields".to_string())
}

/// How a table's schema differs from the one that is wanted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fit {
    /// Top-level nullable columns that the table lacks: adding them makes it fit.
    pub missing: Vec<Value>,
    /// What no addition can mend, one sentence each.
    pub differences: Vec<String>,
}

/// The highest field id of the columns. A column that is added later has a higher one.
pub(super) fn last_column(schema: &Schema) -> Option<i32> {
    schema.fields().iter().filter_map(|f| field_id(f)).max()
}

/// Columns that the table had with our newest commit and lacks now, where `upto` was the highest field id then. Others took them
/// out, and to add them would undo that.
pub(super) fn dropped(schema: &Schema, missing: &[Value], upto: Option<i32>) -> Vec<String> {
    let had = |f: &&Value| upto.is_some() && f["name"].as_str().and_then(|n| field_id(schema.field_with_name(n).ok()?)).is_some_and(|id| Some(id) <= upto);
    let told = |f: &Value| format!("the column `{}` ({}) was dropped from the table, and a commit would bring it back", f["name"].as_str().unwrap_or_default(), type_name(&f["type"]));
    missing.iter().filter(had).map(told).collect()
}

/// Compares the wanted fields with the table's. Columns that the table has beyond them are fine as
/// long as they are nullable: we write none.
pub(super) fn fit(want: &[Value], have: &[Value]) -> Fit {
    let mut fit = Fit::default();
    compare_fields("", want, have, &mut fit);
    fit
}

fn compare_fields(at: &str, want: &[Value], have: &[Value], fit: &mut Fit) {
    let name = |f: &Value| f["name"].as_str().unwrap_or_default().to_string();
    for w in want {
        let column = format!("{at}{}", name(w));
        let Some(h) = have.iter().find(|h| h["name"] == w["name"]) else {
            let alike = have.iter().find(|h| name(h).to_lowercase() == name(w).to_lowercase());
            if let Some(h) = alike {
                fit.differences.push(format!("column `{column}`: the table has `{}`, and delta names differ by more than case", name(h)));
            } else if w["nullable"] == false {
                fit.differences.push(format!("column `{column}` is not null and the table lacks it: only a nullable column can be added"));
            } else if !at.is_empty() {
                fit.differences.push(format!("field `{column}` is not in the table: fields inside a struct are not added in this version"));
            } else {
                fit.missing.push(w.clone());
            }
            continue;
        };
        if w["nullable"] == true && h["nullable"] == false {
            fit.differences.push(format!("column `{column}` may be null here and is not null in the table"));
        }
        compare_types(&column, &w["type"], &h["type"], fit);
    }
    for h in have.iter().filter(|h| h["nullable"] == false && !want.iter().any(|w| w["name"] == h["name"])) {
        fit.differences.push(format!("column `{at}{}` of the table is not null, and nothing here fills it", name(h)));
    }
}

fn compare_types(column: &str, want: &Value, have: &Value, fit: &mut Fit) {
    match (want["type"].as_str(), have["type"].as_str()) {
        (Some("struct"), Some("struct")) => {
            let fields = |t: &Value| t["fields"].as_array().cloned().unwrap_or_default();
            compare_fields(&format!("{column}."), &fields(want), &fields(have), fit);
        }
        (Some("array"), Some("array")) => {
            compare_types(&format!("{column}.element"), &want["elementType"], &have["elementType"], fit);
            nullable_inside(column, &want["containsNull"], &have["containsNull"], fit);
        }
        (Some("map"), Some("map")) => {
            compare_types(&format!("{column}.key"), &want["keyType"], &have["keyType"], fit);
            compare_types(&format!("{column}.value"), &want["valueType"], &have["valueType"], fit);
            nullable_inside(column, &want["valueContainsNull"], &have["valueContainsNull"], fit);
        }
        _ if want == have => {}
        _ => fit.differences.push(format!("column `{column}` is {} here and {} in the table", type_name(want), type_name(have))),
    }
}

fn nullable_inside(column: &str, want: &Value, have: &Value, fit: &mut Fit) {
    if *want == true && *have == false {
        fit.differences.push(format!("column `{column}` may hold nulls inside here and must not in the table"));
    }
}

fn type_name(ty: &Value) -> String {
    ty.as_str().or_else(|| ty["type"].as_str()).unwrap_or("of an unknown type").to_string()
}

/// Whether a wall-clock timestamp is anywhere in the fields: it needs a table feature.
pub(super) fn has_ntz(fields: &[Value]) -> bool {
    fn inside(ty: &Value) -> bool {
        match ty {
            Value::String(name) => name == "timestamp_ntz",
            Value::Object(_) => {
                ["elementType", "keyType", "valueType"].iter().any(|k| inside(&ty[*k]))
                    || ty["fields"].as_array().is_some_and(|fields| has_ntz(fields))
            }
            _ => false,
        }
    }
    fields.iter().any(|f| inside(&f["type"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ColumnType as C;

    #[test]
    fn every_declared_type_has_a_delta_type() {
        let cases = [
            (C::Bool, json!("boolean")),
            (C::Int32, json!("integer")),
            (C::Decimal(12, 2), json!("decimal(12,2)")),
            (C::Uuid, json!("string")),
            (C::Time, json!("string")),
            (C::Timestamp(None), json!("timestamp")),
            (C::TimestampLocal(None), json!("timestamp_ntz")),
            (C::Json, json!("string")),
            (C::List(Box::new(C::Int64)), json!({"type": "array", "elementType": "long", "containsNull": true})),
            (
                C::Map(Box::new(C::String), Box::new(C::Date)),
                json!({"type": "map", "keyType": "string", "valueType": "date", "valueContainsNull": true}),
            ),
        ];
        for (ty, want) in cases {
            assert_eq!(delta_type(&ty.field("c", true)).unwrap(), want, "{ty:?}");
        }
        assert!(delta_type(&Field::new("u", DataType::UInt64, true)).unwrap_err().contains("`u`"));
    }

    #[test]
    fn a_fit_tells_what_can_be_added_from_what_cannot_be_mended() {
        let field = |n: &str, t: &str, nullable: bool| json!({"name": n, "type": t, "nullable": nullable, "metadata": {}});
        let have = [field("a", "long", false), field("b", "string", true), field("extra", "date", true)];
        let good = fit(&[field("a", "long", false), field("new", "double", true)], &have);
        assert_eq!(good, Fit { missing: vec![field("new", "double", true)], differences: vec![] });
        let bad = fit(&[field("a", "integer", true), field("B", "string", true), field("n", "long", false)], &have);
        assert_eq!(bad.differences.len(), 4, "{:?}", bad.differences);
        assert_eq!(fit(&[field("b", "string", true)], &have).differences.len(), 1, "a is not null and nobody fills it");
    }

    #[test]
    fn a_wall_clock_is_found_inside_nested_types() {
        let nested = C::Struct(vec![("x".into(), C::List(Box::new(C::TimestampLocal(None))))]);
        assert!(has_ntz(&delta_fields(&Schema::new(vec![nested.field("s", true)])).unwrap()));
        assert!(!has_ntz(&delta_fields(&Schema::new(vec![C::Timestamp(None).field("s", true)])).unwrap()));
    }
}
