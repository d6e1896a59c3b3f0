//! The columns and the partitioning that a table's own metadata states, against those that the plan in the log gives it.
//!
//! Readers see what the metadata names: a column that was renamed, dropped or retyped hides values that lie in the
//! files, and one whose field id changed shows those of another column.

use super::facts::Facts;
use super::structure::{Role, TableState};
use super::{Finding, Report};
use crate::epoch::entry::SpecRecord;
use crate::pipeline::{TYPE_KEY, TableFormatKind};
use crate::read::delta_schema;
use crate::stage::partition::{partition_name, transform_name};
use crate::stage::{FIELD_ID, TableSpec};
use ::iceberg::spec::{NestedField, TableMetadata, Type};
use arrow::datatypes::{DataType, Field};
use serde_json::Value;

/// A column as a format knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Iceberg's field id; Delta finds columns by their names.
    id: Option<i32>,
    name: String,
    /// A primitive type as the format calls it, or `struct`, `list`, `map`.
    ty: String,
    nullable: bool,
    inner: Vec<Column>,
}

/// What a table's metadata says of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<Column>,
    /// In order; of Iceberg each with its transform, column and name.
    partitioning: Vec<String>,
}

impl Layout {
    /// What the plan asks for.
    fn planned(spec: &TableSpec, format: TableFormatKind) -> Self {
        let columns: Vec<Column> = match format {
            TableFormatKind::Iceberg => spec.schema.fields().iter().map(|f| planned(f, format)).collect(),
            TableFormatKind::Delta => delta_schema(&spec.schema).fields().iter().map(|f| planned(f, format)).collect(),
        };
        let partitioning = spec.partition_fields(format).iter().map(|p| match format {
            TableFormatKind::Iceberg => format!("{}({}) as {}", transform_name(p.transform), p.column, partition_name(p)),
            TableFormatKind::Delta => p.column.clone(),
        });
        Self { columns, partitioning: partitioning.collect() }
    }

    pub fn of_iceberg(metadata: &TableMetadata) -> Self {
        let schema = metadata.current_schema();
        let partitioning = metadata.default_partition_spec().fields().iter().map(|p| {
            let column = schema.name_by_field_id(p.source_id).map_or_else(|| format!("field {}", p.source_id), str::to_string);
            format!("{}({column}) as {}", p.transform, p.name)
        });
        Self { columns: schema.as_struct().fields().iter().map(|f| of_iceberg(f)).collect(), partitioning: partitioning.collect() }
    }

    /// Of a `metaData` action.
    pub fn of_delta(metadata: &Value) -> Result<Self, String> {
        let text = metadata["schemaString"].as_str().ok_or("its metaData has no schemaString")?;
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("its schemaString is no JSON: {e}"))?;
        let fields = schema["fields"].as_array().ok_or("its schemaString has no fields")?;
        let partitioning = metadata["partitionColumns"].as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(Self { columns: fields.iter().map(of_delta_field).collect(), partitioning: partitioning.map(str::to_string).collect() })
    }
}

fn planned(field: &Field, format: TableFormatKind) -> Column {
    let inner = match field.data_type() {
        DataType::Struct(fields) => fields.iter().map(|f| planned(f, format)).collect(),
        DataType::List(item) => vec![planned(item, format)],
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(kv) => kv.iter().map(|f| planned(f, format)).collect(),
            _ => vec![],
        },
        _ => vec![],
    };
    let id = field.metadata().get(FIELD_ID).and_then(|id| id.parse().ok()).filter(|_| format == TableFormatKind::Iceberg);
    Column { id, name: field.name().clone(), ty: type_name(field, format), nullable: field.is_nullable(), inner }
}

/// Iceberg specification, "Primitive Types"; Delta protocol, "Primitive Types".
fn type_name(field: &Field, format: TableFormatKind) -> String {
    let iceberg = format == TableFormatKind::Iceberg;
    match field.data_type() {
        DataType::Boolean => "boolean",
        DataType::Int32 if iceberg => "int",
        DataType::Int32 => "integer",
        DataType::Int64 => "long",
        DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Decimal128(p, s) => return format!("decimal({p},{s})"),
        DataType::Utf8 => "string",
        DataType::Binary => "binary",
        DataType::Date32 => "date",
        DataType::Time64(_) => "time",
        DataType::Timestamp(_, Some(_)) if iceberg => "timestamptz",
        DataType::Timestamp(_, None) if !iceberg => "timestamp_ntz",
        DataType::Timestamp(..) => "timestamp",
        DataType::FixedSizeBinary(16) if field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid") => "uuid",
        DataType::Struct(_) => "struct",
        DataType::List(_) => "list",
        DataType::Map(..) => "map",
        other => return other.to_string(),
    }
    .to_string()
}

fn of_iceberg(field: &NestedField) -> Column {
    let (ty, inner): (String, Vec<Column>) = match field.field_type.as_ref() {
        Type::Primitive(p) => (p.to_string().replace(' ', ""), vec![]),
        Type::Struct(s) => ("struct".into(), s.fields().iter().map(|f| of_iceberg(f)).collect()),
        Type::List(l) => ("list".into(), vec![of_iceberg(&l.element_field)]),
        Type::Map(m) => ("map".into(), vec![of_iceberg(&m.key_field), of_iceberg(&m.value_field)]),
    };
    Column { id: Some(field.id), name: field.name.clone(), ty, nullable: !field.required, inner }
}

fn of_delta_field(field: &Value) -> Column {
    of_delta_type(field["name"].as_str().unwrap_or_default(), &field["type"], field["nullable"].as_bool().unwrap_or(true))
}

fn of_delta_type(name: &str, ty: &Value, nullable: bool) -> Column {
    let (called, inner) = match (ty.as_str(), ty["type"].as_str()) {
        (Some(primitive), _) => (primitive.replace(' ', ""), vec![]),
        (_, Some("struct")) => ("struct".into(), ty["fields"].as_array().into_iter().flatten().map(of_delta_field).collect()),
        (_, Some("array")) => ("list".into(), vec![of_delta_type("element", &ty["elementType"], ty["containsNull"].as_bool().unwrap_or(true))]),
        (_, Some("map")) => {
            let value = of_delta_type("value", &ty["valueType"], ty["valueContainsNull"].as_bool().unwrap_or(true));
            ("map".into(), vec![of_delta_type("key", &ty["keyType"], false), value])
        }
        _ => (ty.to_string(), vec![]),
    };
    Column { id: None, name: name.to_string(), ty: called, nullable, inner }
}

/// What differs, and what is only worth knowing.
#[derive(Default)]
struct Told {
    wrong: Vec<String>,
    notes: Vec<String>,
}

fn shown(c: &Column) -> String {
    format!("{}{}", c.ty, if c.nullable { "" } else { " not null" })
}

/// `must`: of the columns in `plan`, whether the table has to have it by now.
fn columns(at: &str, plan: &[Column], table: &[Column], format: TableFormatKind, must: &dyn Fn(&str) -> bool, told: &mut Told) {
    let known = |c: &Column| plan.iter().any(|p| p.name == c.name);
    for p in plan {
        let name = format!("{at}{}", p.name);
        match table.iter().find(|t| t.name == p.name) {
            Some(t) => column(&name, p, t, format, told),
            None if !at.is_empty() || must(&p.name) => {
                let renamed = table.iter().find(|t| p.id.is_some() && t.id == p.id).or_else(|| {
                    let strange: Vec<&Column> = table.iter().filter(|t| !known(t) && t.ty == p.ty).collect();
                    strange.first().copied().filter(|_| strange.len() == 1)
                });
                let now = renamed.map_or("and it has none of that name".to_string(), |t| format!("and it calls it, or another, {}", t.name));
                told.wrong.push(format!("column {name} ({}) is in the plan, {now}: readers do not see its values", shown(p)));
            }
            None => {}
        }
    }
    for t in table.iter().filter(|t| !known(t)) {
        let text = format!("it has the column {at}{} ({}), which the plan has not", t.name, shown(t));
        // A worker goes on where it has nothing to write there, and only Delta's leaves it so.
        if format == TableFormatKind::Delta && t.nullable {
            told.notes.push(format!("{text}: another tool added it, and rows of ours hold null there"));
        } else {
            told.wrong.push(format!("{text}: a worker does not go on with it"));
        }
    }
}

fn column(name: &str, p: &Column, t: &Column, format: TableFormatKind, told: &mut Told) {
    if p.id != t.id {
        let id = |c: &Column| c.id.map_or("none".to_string(), |id| id.to_string());
        told.wrong.push(format!("column {name} has the field id {}, expected {}: readers look for its values under another column", id(t), id(p)));
    }
    if p.ty != t.ty {
        told.wrong.push(format!("column {name} is {}, expected {}", t.ty, p.ty));
        return;
    }
    // A Delta column that may be null where ours never is takes nothing from anybody.
    let looser = format == TableFormatKind::Delta && t.nullable;
    if p.nullable != t.nullable && !looser {
        told.wrong.push(format!("column {name} is {}, expected {}", shown(t), shown(p)));
    }
    match p.ty.as_str() {
        "struct" => columns(&format!("{name}."), &p.inner, &t.inner, format, &|_| true, told),
        _ => p.inner.iter().zip(&t.inner).for_each(|(p, t)| column(&format!("{name}.{}", p.name), p, t, format, told)),
    }
}

/// The table's record under the plan that was in force at an entry.
fn record_at<'a>(facts: &'a Facts, name: &str, role: &Role, born: u64, entry: u64) -> Option<&'a SpecRecord> {
    let of = |plan: &'a crate::epoch::entry::Plan| match role {
        Role::Declared { .. } => plan.tables.get(name).filter(|t| t.born == born).map(|t| &t.table),
        Role::Late(table) => plan.tables.get(table).filter(|t| t.born == born).and_then(|t| t.late.as_ref()),
        Role::Dead(source) => plan.sources.get(source).map(|s| &s.dead),
    };
    facts.eras.iter().rev().filter(|e| e.entry <= entry).find_map(|e| of(&e.plan))
}

/// Compares what the table says of itself with its spec under the newest plan. Columns that came by a plan which the
/// table's stamp has not reached may be missing yet.
pub fn check(facts: &Facts, spec: &TableSpec, role: &Role, born: u64, state: &TableState, report: &mut Report) {
    let Some(found) = &state.layout else { return };
    let plan = Layout::planned(spec, state.format);
    let reached = state.stamp.and_then(|(_, entry)| record_at(facts, &spec.name, role, born, entry)).and_then(|r| r.spec().ok());
    let must = |column: &str| reached.as_ref().is_some_and(|r| r.schema.field_with_name(column).is_ok());
    let mut told = Told::default();
    columns("", &plan.columns, &found.columns, state.format, &must, &mut told);
    for text in told.wrong {
        report.findings.push(Finding::new("schema", text).of(&spec.name, state.format));
    }
    report.notes.extend(told.notes.into_iter().map(|text| format!("{} table {}: {text}", state.format, spec.name)));
    if plan.partitioning != found.partitioning {
        let show = |p: &[String]| if p.is_empty() { "nothing".to_string() } else { p.join(", ") };
        let text = format!("it is partitioned by {}, expected {}", show(&found.partitioning), show(&plan.partitioning));
        report.findings.push(Finding::new("partitioning", text).of(&spec.name, state.format));
    }
}
