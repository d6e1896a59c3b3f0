//! A table's live rows: its data files less the rows that were deleted from them.
//!
//! One reader serves `query`, the rebuild of the key index and every check of a table's content.
//! It knows nothing of a table format: what it needs is the list of [`LiveFile`]s that a format's
//! metadata yields. A file may be older than the table's schema (columns added since are null),
//! written by someone else (columns without field ids are found by name), or lack the partition
//! columns (Delta leaves them out): what comes out always has the table's own Arrow schema.

mod adapt;
#[cfg(test)]
pub(crate) mod counting;
mod parquet_file;
mod prune;
pub mod query;
mod rows;
mod table;
#[cfg(test)]
mod tests;

pub use rows::{LiveRows, PositionedRows, live_rows, positioned_rows};
pub use table::LakeTableProvider;

pub(crate) use adapt::adapt as conform;

use crate::pipeline::TYPE_KEY;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A data file that readers see, with the rows of it that they do not.
#[derive(Debug, Clone)]
pub struct LiveFile {
    /// Relative to the lake's root, `/` between segments: the object's name as the store knows it.
    pub path: String,
    pub bytes: u64,
    /// Rows that lie in the file, deleted ones counted.
    pub records: u64,
    pub deleted: RoaringTreemap,
    /// Values of partition columns that the file itself does not hold (Delta), by column name; text
    /// as Delta writes it, `None` for null.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// Lower and upper bounds by field id, where known: for pruning.
    pub columns: Vec<crate::stage::ColumnStats>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store is away or the file is gone.
    #[error("cannot read {path} from the store: {source}")]
    Store { path: String, source: object_store::Error },
    /// The file is not what the table's metadata says it is: cut short, overwritten, not Parquet.
    #[error("{path} is not the Parquet file that the table's metadata names: {reason}")]
    Corrupt { path: String, reason: String },
    /// The file's column cannot be read as the table's.
    #[error("column {column} of {path} does not fit the table: {reason}")]
    Column { path: String, column: String, reason: String },
    #[error("the table has no column {column}; it has {found}")]
    UnknownColumn { column: String, found: String },
}

/// The schema in which a Delta table shows a table: Delta has neither `uuid` nor time of day, they
/// are text there. Field ids and order stay.
pub fn delta_schema(schema: &Schema) -> Schema {
    Schema::new_with_metadata(delta_fields(schema.fields()), schema.metadata().clone())
}

fn delta_fields(fields: &Fields) -> Fields {
    fields.iter().map(delta_field).collect()
}

fn delta_field(field: &FieldRef) -> FieldRef {
    let uuid = field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid");
    let data_type = match field.data_type() {
        DataType::FixedSizeBinary(16) if uuid => DataType::Utf8,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Utf8,
        DataType::Struct(children) => DataType::Struct(delta_fields(children)),
        DataType::List(item) => DataType::List(delta_field(item)),
        DataType::Map(entries, sorted) => DataType::Map(delta_field(entries), *sorted),
        _ => return field.clone(),
    };
    let mut metadata = field.metadata().clone();
    if data_type == DataType::Utf8 {
        metadata.remove(TYPE_KEY);
    }
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(metadata))
}
