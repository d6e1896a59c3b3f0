//! What each table format asks of its data files: where they lie, how rows are parted, what the columns look like.

mod delta;
mod iceberg;

use crate::pipeline::{PartitionField, TableFormatKind};
use arrow::datatypes::{Schema, SchemaRef};

/// The data files of one table format. The same for every table, and known without a lake.
pub trait FileLayout: Sync {
    /// Path of a table's data folder, relative to the lake's root.
    fn folder(&self, pipeline: &str, table: &str) -> String;

    /// Of the fields that a table is to be partitioned by, those that the format supports: all or none.
    fn partition_fields<'a>(&self, wanted: &'a [PartitionField]) -> &'a [PartitionField];

    /// What stands before `=` in the folder's name of a partition.
    fn partition_name(&self, field: &PartitionField) -> String;

    /// What stands there for a value that is null.
    fn null(&self) -> &'static str;

    /// Partition columns are in the files, too.
    fn holds_partition_columns(&self) -> bool;

    /// A table's columns as they are on disk, partition columns included. The format's readers show the same.
    fn schema(&self, schema: &Schema) -> SchemaRef;
}

/// The layout of a format's files: the line where each is named.
pub fn file_layout(format: TableFormatKind) -> &'static dyn FileLayout {
    match format {
        TableFormatKind::Iceberg => &iceberg::Iceberg,
        TableFormatKind::Delta => &delta::Delta,
    }
}
