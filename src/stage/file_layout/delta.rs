//! Delta knows identity columns only in partitions, and leaves them out of its files. It has neither uuid nor
//! time: both become text, at every depth.

use super::FileLayout;
use crate::pipeline::{PartitionField, PartitionTransform, TYPE_KEY};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use std::sync::Arc;

pub struct Delta;

impl FileLayout for Delta {
    fn folder(&self, pipeline: &str, table: &str) -> String {
        format!("delta/{pipeline}/{table}")
    }

    fn partition_fields<'a>(&self, wanted: &'a [PartitionField]) -> &'a [PartitionField] {
        if wanted.iter().all(|p| p.transform == PartitionTransform::Identity) { wanted } else { &[] }
    }

    fn partition_name(&self, field: &PartitionField) -> String {
        field.column.clone()
    }

    fn null(&self) -> &'static str {
        "__HIVE_DEFAULT_PARTITION__"
    }

    fn holds_partition_columns(&self) -> bool {
        false
    }

    fn schema(&self, schema: &Schema) -> SchemaRef {
        Arc::new(Schema::new(schema.fields().iter().map(|f| shown(f)).collect::<Vec<_>>()))
    }
}

fn shown(field: &Field) -> Field {
    let ty = match field.data_type() {
        DataType::FixedSizeBinary(_) | DataType::Time64(_) => {
            let mut metadata = field.metadata().clone();
            metadata.remove(TYPE_KEY);
            return field.clone().with_data_type(DataType::Utf8).with_metadata(metadata);
        }
        DataType::List(e) => DataType::List(Arc::new(shown(e))),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| shown(f)).collect()),
        DataType::Map(e, sorted) => DataType::Map(Arc::new(shown(e)), *sorted),
        other => other.clone(),
    };
    field.clone().with_data_type(ty)
}
