//! The pipeline file: what a user writes, as one validated type.
//!
//! YAML is parsed loosely into a tree that knows where each word stands ([`raw`]) and built
//! strictly into a [`Pipeline`] ([`build`]): every problem is reported at once, each with its
//! place. Nothing behind this module ever sees a value that has not been checked here.
//!
//! ```text
//!   text ─► raw (YAML with places) ─► substitute (${VAR}) ─► build (keys, types, names) ─► Pipeline
//! ```

mod build;
mod duration;
pub mod keys;
pub mod problem;
mod raw;
mod schema;
mod secret;
pub mod sql;
mod substitute;
#[cfg(test)]
mod tests;
mod types;
mod variables;

pub use build::{OptionPart, Parts, SourcePart, TablePart};
pub use problem::{Level, Problem, Problems, SourceText, Span, sql_problem};
pub use schema::json_schema;
pub use variables::Variables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Reads and checks a pipeline file. Relative paths in it (`lake.root`, `sqlite://./…`, `file`)
/// are resolved against `cwd`, the working directory; variables are looked up by `env`.
///
/// # Errors
/// Everything that is wrong with the file, in its order; a file that cannot be read is one
/// problem at its first line.
pub fn load(path: &Path, cwd: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Pipeline, Problems> {
    check(path, cwd, env).0
}

/// As [`load`], with what is right of a file that is wrong, whose SQL can be checked all the same.
pub fn check(path: &Path, cwd: &Path, env: &dyn Fn(&str) -> Option<String>) -> (Result<Pipeline, Problems>, Parts) {
    let file = path.display().to_string();
    let unreadable = |message: String| (Err(Problems { list: vec![SourceText::new(file.clone(), "").problem(Span::START, message)] }), Parts::default());
    let bytes = match std::fs::read(cwd.join(path)) {
        Ok(bytes) => bytes,
        Err(e) => return unreadable(format!("cannot read the pipeline file: {}", e.to_string().to_lowercase())),
    };
    match String::from_utf8(bytes) {
        Ok(text) => check_text(&SourceText::new(file, &text), cwd, env),
        Err(e) => {
            let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
            unreadable(format!("the pipeline file is not UTF-8 (line {line})"))
        }
    }
}

/// Checks the text of a pipeline file; see [`load`].
pub fn load_text(text: &SourceText, cwd: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Pipeline, Problems> {
    check_text(text, cwd, env).0
}

fn check_text(text: &SourceText, cwd: &Path, env: &dyn Fn(&str) -> Option<String>) -> (Result<Pipeline, Problems>, Parts) {
    let mut list = Vec::new();
    let mut root = raw::parse(text, &mut list);
    if let Some(root) = &mut root {
        substitute::substitute(root, text, cwd, env, &mut list);
    }
    let (pipeline, parts) = root.map(|root| build::build(text, cwd, &root, &mut list)).unwrap_or_default();
    match pipeline {
        Some(pipeline) if list.is_empty() => (Ok(pipeline), parts),
        _ => {
            list.sort_by_key(|p| (p.line, p.column));
            list.dedup();
            (Err(Problems { list }), parts)
        }
    }
}

/// A pipeline that has passed every check that needs no connection.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Identity: names the log, the stamps and the consumer group. `[a-z][a-z0-9_-]*`.
    pub name: String,
    /// In the order of the file.
    pub sources: Vec<SourceSpec>,
    /// In the order of the file.
    pub tables: Vec<TableDecl>,
    pub lake: LakeSpec,
    pub epoch_every_ms: u64,
    pub commit_every_ms: u64,
    /// What the worker may hold in memory, in bytes.
    pub memory_bytes: u64,
    pub backlog: Backlog,
    pub clean: Clean,
    /// Where metrics and health are served; loopback unless the user says otherwise.
    pub listen: Option<std::net::SocketAddr>,
    /// What was put into its tables' declarations: never printed.
    pub variables: Variables,
}

/// How far the ingest half may run ahead of the tables before it pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub bytes: u64,
    pub hours: u64,
}

/// When files that belong to nobody are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clean {
    /// Younger ones are left alone.
    pub after_ms: u64,
    pub every_ms: u64,
}

#[derive(Debug, Clone)]
pub struct SourceSpec {
    pub name: String,
    pub input: Input,
    pub format: Format,
    pub columns: Vec<Column>,
    pub watermark: Option<Watermark>,
    pub max_record_bytes: usize,
    /// Nesting beyond this depth makes a record dead.
    pub max_depth: usize,
}

#[derive(Debug, Clone)]
pub enum Input {
    Kafka(KafkaInput),
    File(FileInput),
}

impl Input {
    /// A consumer group is told how far the tables are.
    pub fn has_group(&self) -> bool {
        matches!(self, Self::Kafka(_))
    }

    /// Records carry times of their own, which cap how far ahead an event may be.
    pub fn has_record_times(&self) -> bool {
        matches!(self, Self::Kafka(_))
    }
}

#[derive(Clone)]
pub struct KafkaInput {
    pub brokers: String,
    pub topic: String,
    pub start: Start,
    /// Properties passed to librdkafka as they are, `security.protocol`, `sasl.*` and `ssl.*`
    /// included. Values may be secrets: never print them.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for KafkaInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options: Vec<_> = self.options.keys().collect();
        f.debug_struct("KafkaInput").field("brokers", &self.brokers).field("topic", &self.topic).field("start", &self.start).field("options", &options).finish()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    Earliest,
    Latest,
    /// Milliseconds since 1970-01-01 UTC: the first record at or after it.
    Timestamp(i64),
    /// Partition to offset. A partition that is not named starts at its beginning.
    Offsets(BTreeMap<i32, i64>),
}

#[derive(Debug, Clone)]
pub struct FileInput {
    /// A path or a glob; each file is one partition, in the order of their names.
    pub path: String,
}

/// The format of a source's payloads: what [`crate::decode::open`] makes decoders by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
}

impl Format {
    pub const ALL: [Self; 1] = [Self::Json];

    /// Its word in the pipeline file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Json => "json",
        }
    }

    /// By its word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.word() == word)
    }

    /// What logs that name no format mean.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// A declared column of a source.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    pub name: String,
    pub ty: ColumnType,
    pub nullable: bool,
    pub from: From,
}

/// Where a column's value is found.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum From {
    /// A path from the record's root; empty is the record itself (`$`).
    Path(Vec<Segment>),
    /// `_key` (binary or string), `_partition` (int32), `_offset` (int64), `_timestamp`
    /// (timestamp), `_headers` (map of string to binary).
    Key,
    Partition,
    Offset,
    Timestamp,
    Headers,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Segment {
    Field(String),
    Index(usize),
}

/// The declared type of a column. [`ColumnType::arrow`] is its Arrow type.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum ColumnType {
    Bool,
    Int32,
    Int64,
    Float32,
    Float64,
    /// Precision 1 to 38, scale 0 to precision.
    Decimal(u8, u8),
    String,
    /// Base64 in JSON.
    Binary,
    Date,
    Time,
    /// An instant; numbers are epoch values in this unit. Without a unit numbers are refused.
    Timestamp(Option<EpochUnit>),
    /// A wall clock reading; not UTC-adjusted.
    TimestampLocal(Option<EpochUnit>),
    Uuid,
    List(Box<ColumnType>),
    Struct(Vec<(String, ColumnType)>),
    Map(Box<ColumnType>, Box<ColumnType>),
    /// Any JSON value, kept as its text.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EpochUnit {
    Seconds,
    Millis,
    Micros,
    Nanos,
}

/// Field metadata key that tells apart types that share an Arrow type: `uuid` (on
/// FixedSizeBinary(16)) and `json` (on Utf8).
pub const TYPE_KEY: &str = "millpond.type";

impl ColumnType {
    /// The Arrow type. Timestamps are microseconds, instants zoned `UTC`; lists, structs and maps
    /// have nullable children (but map keys).
    pub fn arrow(&self) -> arrow::datatypes::DataType {
        use arrow::datatypes::{DataType as D, Field, TimeUnit};
        use std::sync::Arc;
        match self {
            Self::Bool => D::Boolean,
            Self::Int32 => D::Int32,
            Self::Int64 => D::Int64,
            Self::Float32 => D::Float32,
            Self::Float64 => D::Float64,
            Self::Decimal(p, s) => D::Decimal128(*p, *s as i8),
            Self::String | Self::Json => D::Utf8,
            Self::Binary => D::Binary,
            Self::Date => D::Date32,
            Self::Time => D::Time64(TimeUnit::Microsecond),
            Self::Timestamp(_) => D::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::TimestampLocal(_) => D::Timestamp(TimeUnit::Microsecond, None),
            Self::Uuid => D::FixedSizeBinary(16),
            Self::List(e) => D::List(Arc::new(e.field("item", true))),
            Self::Struct(fields) => D::Struct(fields.iter().map(|(n, t)| t.field(n, true)).collect()),
            Self::Map(k, v) => {
                let entries = Field::new("entries", D::Struct(vec![k.field("key", false), v.field("value", true)].into()), false);
                D::Map(Arc::new(entries), false)
            }
        }
    }

    /// The Arrow field, with [`TYPE_KEY`] where the Arrow type alone does not tell.
    pub fn field(&self, name: &str, nullable: bool) -> arrow::datatypes::Field {
        let field = arrow::datatypes::Field::new(name, self.arrow(), nullable);
        match self {
            Self::Uuid => field.with_metadata([(TYPE_KEY.to_string(), "uuid".to_string())].into()),
            Self::Json => field.with_metadata([(TYPE_KEY.to_string(), "json".to_string())].into()),
            _ => field,
        }
    }
}

/// How the watermark of a source follows its rows. All durations in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Watermark {
    pub column: String,
    pub delay_us: i64,
    /// `None` is `never`.
    pub idle_after_us: Option<i64>,
    pub max_ahead_us: i64,
}

/// A table as declared; [`crate::pipeline::sql`] plans its SQL.
#[derive(Debug, Clone)]
pub struct TableDecl {
    pub name: String,
    pub sql: String,
    /// `None`: append-only.
    pub key: Option<Vec<String>>,
    pub allowed_lateness_us: i64,
    pub emit: Emit,
    pub formats: Vec<TableFormatKind>,
    pub partition_by: Vec<PartitionField>,
    pub properties: BTreeMap<String, String>,
    pub comment: Option<String>,
    /// Where the SQL text starts in the pipeline file: line and column, from 1.
    pub sql_at: (usize, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    OnClose,
    OnUpdate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFormatKind {
    Iceberg,
    Delta,
}

impl TableFormatKind {
    /// What a table has that names none.
    pub const ALL: [Self; 2] = [Self::Iceberg, Self::Delta];

    /// Its word in the pipeline file and in every message.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Iceberg => "iceberg",
            Self::Delta => "delta",
        }
    }

    /// By its word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.word() == word)
    }
}

impl std::fmt::Display for TableFormatKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartitionField {
    pub column: String,
    pub transform: PartitionTransform,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionTransform {
    Identity,
    Hour,
    Day,
    Month,
}

#[derive(Debug, Clone)]
pub struct LakeSpec {
    /// Absolute folder; tables, log and state lie below it.
    pub root: PathBuf,
    /// Absolute path of the SQLite catalog.
    pub iceberg_catalog: PathBuf,
    /// The catalog's name in `iceberg_tables`; `millpond` unless set.
    pub catalog_name: String,
    /// The Iceberg namespace; the pipeline's name unless set.
    pub namespace: String,
}
