//! Our columns, partitions, values and files as Iceberg has them, and back.

use crate::commit::CommitError;
use crate::pipeline::PartitionTransform;
use crate::stage::layout::{children, field_id, is_uuid};
use crate::stage::partition::partition_name;
use crate::stage::{ColumnStats, Scalar, TableSpec};
use crate::pipeline::TableFormatKind;
use arrow::datatypes::{DataType, Field};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, ListType, Literal, MapType, NestedField, NestedFieldRef, PartitionSpec, PrimitiveLiteral,
    PrimitiveType, Schema, Struct, StructType, TableMetadata, Transform, Type, UnboundPartitionSpec,
};
use std::collections::HashMap;

/// The table's Iceberg schema, with the ids that its fields carry. Key columns are its identifier
/// fields where Iceberg allows it: all of them required and none a float.
pub fn iceberg_schema(spec: &TableSpec) -> Result<Schema, CommitError> {
    let fields = spec.schema.fields().iter().map(|f| nested(f)).collect::<Result<Vec<_>, _>>()?;
    let keys: Vec<Option<i32>> = spec
        .key
        .iter()
        .map(|k| {
            let field = fields.iter().find(|f| &f.name == k)?;
            let primitive = field.field_type.as_primitive_type()?;
            (field.required && !is_float(primitive)).then_some(field.id)
        })
        .collect();
    let identifiers: Vec<i32> = keys.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default();
    Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(identifiers)
        .build()
        .map_err(|e| CommitError::Refused(format!("table `{}` has columns that Iceberg does not hold: {e}", spec.name)))
}

fn nested(field: &Field) -> Result<NestedFieldRef, CommitError> {
    Ok(NestedField::new(id_of(field)?, field.name(), iceberg_type(field)?, !field.is_nullable()).into())
}

fn id_of(field: &Field) -> Result<i32, CommitError> {
    field_id(field).ok_or_else(|| CommitError::Refused(format!("field `{}` carries no field id, but a table's fields must", field.name())))
}

fn iceberg_type(field: &Field) -> Result<Type, CommitError> {
    let inner = children(field.data_type());
    Ok(Type::Primitive(match field.data_type() {
        DataType::Boolean => PrimitiveType::Boolean,
        DataType::Int32 => PrimitiveType::Int,
        DataType::Int64 => PrimitiveType::Long,
        DataType::Float32 => PrimitiveType::Float,
        DataType::Float64 => PrimitiveType::Double,
        DataType::Decimal128(p, s) => PrimitiveType::Decimal { precision: u32::from(*p), scale: *s as u32 },
        DataType::Utf8 => PrimitiveType::String,
        DataType::Binary => PrimitiveType::Binary,
        DataType::Date32 => PrimitiveType::Date,
        DataType::Time64(_) => PrimitiveType::Time,
        DataType::Timestamp(_, Some(_)) => PrimitiveType::Timestamptz,
        DataType::Timestamp(_, None) => PrimitiveType::Timestamp,
        DataType::FixedSizeBinary(16) if is_uuid(field) => PrimitiveType::Uuid,
        DataType::Struct(fields) => {
            return Ok(Type::Struct(StructType::new(fields.iter().map(|f| nested(f)).collect::<Result<_, _>>()?)));
        }
        DataType::List(e) => {
            let element = NestedField::list_element(id_of(e)?, iceberg_type(e)?, !e.is_nullable());
            return Ok(Type::List(ListType::new(element.into())));
        }
        DataType::Map(..) if inner.len() == 2 => {
            let key = NestedField::map_key_element(id_of(inner[0])?, iceberg_type(inner[0])?);
            let value = NestedField::map_value_element(id_of(inner[1])?, iceberg_type(inner[1])?, !inner[1].is_nullable());
            return Ok(Type::Map(MapType::new(key.into(), value.into())));
        }
        other => return Err(CommitError::Refused(format!("column `{}` has the type {other}, which Iceberg v2 does not hold", field.name()))),
    }))
}

/// The table's partition fields, their sources by id.
pub fn partition_spec(spec: &TableSpec, schema: &Schema) -> Result<UnboundPartitionSpec, CommitError> {
    let mut builder = UnboundPartitionSpec::builder();
    for p in spec.partition_fields(TableFormatKind::Iceberg) {
        let source = schema.field_by_name(&p.column).ok_or_else(|| CommitError::Refused(format!("`partition_by` of table `{}` names the column `{}`, which it does not have", spec.name, p.column)))?;
        // The library writes its values into manifests in a way that it cannot read.
        if matches!(*source.field_type, Type::Primitive(PrimitiveType::Uuid)) {
            return Err(CommitError::Refused(format!(
                "`partition_by` of table `{}` names the column `{}`, a uuid, by which Iceberg tables are not partitioned in this version; declare the column as string",
                spec.name, p.column
            )));
        }
        builder = builder
            .add_partition_field(source.id, partition_name(p), transform(p.transform))
            .map_err(|e| CommitError::Refused(format!("`partition_by` of table `{}`: {e}", spec.name)))?;
    }
    Ok(builder.build())
}

fn transform(ours: PartitionTransform) -> Transform {
    match ours {
        PartitionTransform::Identity => Transform::Identity,
        PartitionTransform::Hour => Transform::Hour,
        PartitionTransform::Day => Transform::Day,
        PartitionTransform::Month => Transform::Month,
    }
}

/// What keeps the table's columns and partitioning from being those that a commit under `spec` writes, in words, with what mends it;
/// `None` when it may be committed to. Columns that only we know may yet be added, if they are nullable and the table never had them.
pub fn difference(table: &TableMetadata, spec: &TableSpec) -> Result<Option<String>, CommitError> {
    let ours = iceberg_schema(spec)?;
    let partitioning = partition_spec(spec, &ours)?;
    let columns = schema_differences(table, table.current_schema(), &ours);
    let parts = partition_difference(table.default_partition_spec(), &partitioning);
    if columns.is_empty() && parts.is_none() {
        return Ok(None);
    }
    let mut mends = vec![];
    if !columns.is_empty() {
        let fits = table.schemas_iter().filter(|s| schema_differences(table, s, &ours).is_empty()).map(|s| s.schema_id()).max();
        mends.extend(fits.map(|id| format!("make its schema {id} the current one again")));
    }
    if parts.is_some() {
        let fits = table.partition_specs_iter().filter(|p| partition_difference(p, &partitioning).is_none()).map(|p| p.spec_id()).max();
        mends.extend(fits.map(|id| format!("make its partition spec {id} the default one again")));
    }
    let way = if mends.is_empty() { String::new() } else { format!("; {}", mends.join(" and ")) };
    Ok(Some(format!("{}{way}", columns.into_iter().chain(parts).collect::<Vec<_>>().join("; "))))
}

/// The schema after a commit: the table's own, as others may have ordered and described it, and our columns that it lacks.
pub fn evolved(table: &Schema, ours: &Schema) -> Result<Option<Schema>, iceberg::Error> {
    let missing: Vec<NestedFieldRef> = ours.as_struct().fields().iter().filter(|f| table.as_struct().field_by_name(&f.name).is_none()).cloned().collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let fields = table.as_struct().fields().iter().cloned().chain(missing);
    Schema::builder().with_fields(fields).with_identifier_field_ids(table.identifier_field_ids()).build().map(Some)
}

fn schema_differences(table: &TableMetadata, schema: &Schema, ours: &Schema) -> Vec<String> {
    let mut differences = Vec::new();
    let show = |f: &NestedField| format!("{}{}", f.field_type, if f.required { " required" } else { "" });
    let by_id = |s: &Schema, id: i32| s.as_struct().fields().iter().find(|f| f.id == id).map(|f| f.name.clone());
    for theirs in schema.as_struct().fields() {
        match ours.as_struct().field_by_name(&theirs.name) {
            None => differences.push(match by_id(ours, theirs.id) {
                Some(name) => format!("the table calls the column `{name}` `{}` ({})", theirs.name, show(theirs)),
                None => format!("the table has the column `{}` ({}), which the pipeline does not", theirs.name, show(theirs)),
            }),
            Some(f) if f.id != theirs.id => {
                differences.push(format!("column `{}` has the field id {} in the table and {} in the pipeline's plan", f.name, theirs.id, f.id))
            }
            Some(f) if f.field_type != theirs.field_type || f.required != theirs.required => {
                differences.push(format!("column `{}` is {} in the table and {} in the pipeline", f.name, show(theirs), show(f)))
            }
            Some(_) => {}
        }
    }
    for f in ours.as_struct().fields().iter().filter(|f| schema.as_struct().field_by_name(&f.name).is_none()) {
        let had = |s: &Schema| s.as_struct().field_by_id(f.id).is_some_and(|old| old.name == f.name);
        if by_id(schema, f.id).is_some() {
            // Told with the column that has its id.
        } else if table.schemas_iter().any(|s| had(s)) {
            differences.push(format!("the column `{}` ({}) was dropped from the table", f.name, show(f)));
        } else if f.id <= table.last_column_id() {
            // Others gave it to a column that they dropped since: files may hold its values.
            differences.push(format!("the table lacks the column `{}`, whose field id {} was used for another", f.name, f.id));
        } else if f.required {
            differences.push(format!("the table lacks the column `{}`, which is required", f.name));
        }
    }
    differences
}

/// What differs between a table's partitioning and ours; `None` when they agree.
fn partition_difference(table: &PartitionSpec, ours: &UnboundPartitionSpec) -> Option<String> {
    let theirs: Vec<_> = table.fields().iter().map(|f| (f.source_id, f.transform, f.name.clone())).collect();
    let wanted: Vec<_> = ours.fields().iter().map(|f| (f.source_id, f.transform, f.name.clone())).collect();
    if theirs == wanted {
        return None;
    }
    let show = |fields: &[(i32, Transform, String)]| match fields {
        [] => "nothing".to_string(),
        fields => fields.iter().map(|(_, t, n)| format!("{n} ({t})")).collect::<Vec<_>>().join(", "),
    };
    Some(format!("the table is partitioned by {}, the pipeline by {}", show(&theirs), show(&wanted)))
}

fn is_float(ty: &PrimitiveType) -> bool {
    matches!(ty, PrimitiveType::Float | PrimitiveType::Double)
}

/// A value as Iceberg's typed one; `None` when it is not of the type.
pub fn datum(value: &Scalar, ty: &PrimitiveType) -> Option<Datum> {
    let bytes = match (value, ty) {
        (Scalar::Bool(v), PrimitiveType::Boolean) => vec![u8::from(*v)],
        (Scalar::Int(v), PrimitiveType::Int | PrimitiveType::Date) => i32::try_from(*v).ok()?.to_le_bytes().to_vec(),
        (Scalar::Int(v), PrimitiveType::Long | PrimitiveType::Time | PrimitiveType::Timestamp | PrimitiveType::Timestamptz) => v.to_le_bytes().to_vec(),
        (Scalar::Float(v), PrimitiveType::Float) => (*v as f32).to_le_bytes().to_vec(),
        (Scalar::Float(v), PrimitiveType::Double) => v.to_le_bytes().to_vec(),
        (Scalar::Decimal(v), PrimitiveType::Decimal { .. }) => v.to_be_bytes().to_vec(),
        (Scalar::Text(v), PrimitiveType::String) => v.as_bytes().to_vec(),
        (Scalar::Bytes(v), PrimitiveType::Binary | PrimitiveType::Fixed(_) | PrimitiveType::Uuid) => v.clone(),
        _ => return None,
    };
    Datum::try_from_bytes(&bytes, ty.clone()).ok()
}

fn scalar(datum: &Datum) -> Option<Scalar> {
    Some(match datum.literal() {
        PrimitiveLiteral::Boolean(v) => Scalar::Bool(*v),
        PrimitiveLiteral::Int(v) => Scalar::Int(i64::from(*v)),
        PrimitiveLiteral::Long(v) => Scalar::Int(*v),
        PrimitiveLiteral::Float(v) => Scalar::Float(f64::from(v.0)),
        PrimitiveLiteral::Double(v) => Scalar::Float(v.0),
        PrimitiveLiteral::String(v) => Scalar::Text(v.clone()),
        PrimitiveLiteral::Binary(v) => Scalar::Bytes(v.clone()),
        PrimitiveLiteral::Int128(v) => Scalar::Decimal(*v),
        PrimitiveLiteral::UInt128(v) => Scalar::Bytes(v.to_be_bytes().to_vec()),
        PrimitiveLiteral::AboveMax | PrimitiveLiteral::BelowMin => return None,
    })
}

/// A staged file as an entry of a manifest; `location` is where it lies.
pub fn data_file(file: &crate::stage::DataFile, location: String, schema: &Schema, spec: &PartitionSpec) -> Result<DataFile, CommitError> {
    let wrong = |what: String| CommitError::Refused(format!("the staged file {}: {what}", file.path));
    let tuple = spec.partition_type(schema).map_err(|e| wrong(e.to_string()))?;
    if tuple.fields().len() != file.partition.len() {
        return Err(wrong(format!("has {} partition values, but its table is partitioned by {}", file.partition.len(), tuple.fields().len())));
    }
    let mut partition = Vec::with_capacity(file.partition.len());
    for (field, value) in tuple.fields().iter().zip(&file.partition) {
        let ty = field.field_type.as_primitive_type().ok_or_else(|| wrong(format!("its partition field {} is not primitive", field.name)))?;
        let literal = match value {
            None => None,
            Some(v) => {
                let datum = datum(v, ty).ok_or_else(|| wrong(format!("its partition value {v:?} is not of the type {ty}")))?;
                Some(Literal::Primitive(datum.literal().clone()))
            }
        };
        partition.push(literal);
    }
    let (mut sizes, mut values, mut nulls, mut nans) = (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
    let (mut lower, mut upper) = (HashMap::new(), HashMap::new());
    for c in &file.columns {
        let Some(ty) = schema.field_by_id(c.field_id).and_then(|f| f.field_type.as_primitive_type()) else { continue };
        sizes.insert(c.field_id, c.bytes);
        values.insert(c.field_id, c.values);
        nulls.insert(c.field_id, c.nulls);
        if is_float(ty) {
            nans.insert(c.field_id, c.nans);
        }
        lower.extend(c.lower.as_ref().and_then(|v| datum(v, ty)).map(|d| (c.field_id, d)));
        // Bounds leave NaN out, and engines that order it above all numbers (DuckDB) prune by them nevertheless: without an upper one they cannot.
        if c.nans == 0 {
            upper.extend(c.upper.as_ref().and_then(|v| datum(v, ty)).map(|d| (c.field_id, d)));
        }
    }
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(location)
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::from_iter(partition))
        .record_count(file.records)
        .file_size_in_bytes(file.bytes)
        .column_sizes(sizes)
        .value_counts(values)
        .null_value_counts(nulls)
        .nan_value_counts(nans)
        .lower_bounds(lower)
        .upper_bounds(upper)
        .split_offsets((!file.split_offsets.is_empty()).then(|| file.split_offsets.clone()))
        .partition_spec_id(spec.spec_id())
        .build()
        .map_err(|e| wrong(e.to_string()))
}

/// What a manifest says of a file's columns.
pub fn column_stats(file: &DataFile) -> Vec<ColumnStats> {
    let mut columns: Vec<ColumnStats> = file
        .value_counts()
        .iter()
        .map(|(id, values)| ColumnStats {
            field_id: *id,
            bytes: file.column_sizes().get(id).copied().unwrap_or(0),
            values: *values,
            nulls: file.null_value_counts().get(id).copied().unwrap_or(0),
            nans: file.nan_value_counts().get(id).copied().unwrap_or(0),
            lower: file.lower_bounds().get(id).and_then(scalar),
            upper: file.upper_bounds().get(id).and_then(scalar),
        })
        .collect();
    columns.sort_by_key(|c| c.field_id);
    columns
}
