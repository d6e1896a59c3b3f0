//! Phase 1: bytes durable, nothing visible. Parquet files of the tables and the runs of an epoch.
//!
//! A staged file lies where its table will find it, under a name that is used once. Until an
//! entry of the log names it, it belongs to nobody.

pub mod dead;
pub mod bounds;
mod claims;
pub mod file_layout;
pub mod formats;
pub mod layout;
pub mod names;
pub mod parquet;
pub mod partition;
pub mod rows;
pub mod runs;

use crate::pipeline::{PartitionField, TableFormatKind};
use arrow::datatypes::SchemaRef;
use file_layout::file_layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A table as it lies in the lake: one that the user declared, or a late or dead-letter table.
#[derive(Debug, Clone, PartialEq)]
pub struct TableSpec {
    pub name: String,
    /// Every field, nested ones included, carries [`FIELD_ID`] in its metadata. The ids are part of
    /// the plan in the log: they never change and are never used again.
    pub schema: SchemaRef,
    /// The upsert key; empty for an append-only table.
    pub key: Vec<String>,
    pub formats: Vec<TableFormatKind>,
    pub partition_by: Vec<PartitionField>,
    pub properties: BTreeMap<String, String>,
    pub comment: Option<String>,
}

impl TableSpec {
    /// The partition fields that this format supports.
    pub fn partition_fields(&self, format: TableFormatKind) -> &[PartitionField] {
        file_layout(format).partition_fields(&self.partition_by)
    }
}

/// Path of a table's data folder, relative to the lake's root.
pub fn data_folder(pipeline: &str, format: TableFormatKind, table: &str) -> String {
    file_layout(format).folder(pipeline, table)
}

/// Arrow field metadata key of the field id, as parquet's Arrow writer expects it.
pub const FIELD_ID: &str = ::parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// A Parquet file of one table in one format: durable, and known by its name alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the lake's root, `/` between segments.
    pub path: String,
    pub bytes: u64,
    pub records: u64,
    /// One value per partition field of the table in this format; empty when unpartitioned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partition: Vec<Option<Scalar>>,
    #[serde(default)]
    pub columns: Vec<ColumnStats>,
    /// Where the row groups start, in bytes.
    #[serde(default)]
    pub split_offsets: Vec<i64>,
}

/// What readers may prune by. A bound is right for every row or absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnStats {
    /// Of a leaf column.
    pub field_id: i32,
    /// Compressed size.
    pub bytes: u64,
    /// Nulls and NaNs included.
    pub values: u64,
    pub nulls: u64,
    /// 0 for what is not a float.
    pub nans: u64,
    /// Never NaN; strings and binaries truncated to 16 code points or bytes, the upper bound rounded up.
    /// Only for primitive top-level columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<Scalar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Scalar>,
}

/// A value of a primitive column, independent of any table format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    Bool(bool),
    /// int32, int64, date (days), time and timestamps (microseconds); a partition's hours, days, months.
    Int(i64),
    /// float32 and float64; by its bits, so that -0.0 and infinities survive JSON.
    Float(#[serde(with = "float_bits")] f64),
    /// The unscaled value, as decimal text.
    Decimal(#[serde(with = "int_text")] i128),
    Text(String),
    /// Binary and uuid.
    Bytes(#[serde(with = "base64_text")] Vec<u8>),
}

mod float_bits {
    pub fn serialize<S: serde::Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(v.to_bits())
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        <u64 as serde::Deserialize>::deserialize(d).map(f64::from_bits)
    }
}

mod int_text {
    pub fn serialize<S: serde::Serializer>(v: &i128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&v.to_string())
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i128, D::Error> {
        <String as serde::Deserialize>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

mod base64_text {
    use base64::Engine;
    pub fn serialize<S: serde::Serializer>(v: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&base64::engine::general_purpose::STANDARD.encode(v))
    }
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        base64::engine::general_purpose::STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
