//! Iceberg holds all our types and partition transforms.

use super::FileLayout;
use crate::pipeline::PartitionField;
use crate::stage::partition::partition_name;
use arrow::datatypes::{Schema, SchemaRef};
use std::sync::Arc;

pub struct Iceberg;

impl FileLayout for Iceberg {
    fn folder(&self, pipeline: &str, table: &str) -> String {
        format!("iceberg/{pipeline}/{table}/data")
    }

    fn partition_fields<'a>(&self, wanted: &'a [PartitionField]) -> &'a [PartitionField] {
        wanted
    }

    fn partition_name(&self, field: &PartitionField) -> String {
        partition_name(field)
    }

    fn null(&self) -> &'static str {
        "null"
    }

    fn holds_partition_columns(&self) -> bool {
        true
    }

    fn schema(&self, schema: &Schema) -> SchemaRef {
        Arc::new(schema.clone())
    }
}
