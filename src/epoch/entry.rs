//! What an entry of the log holds. JSON, so that a person can read a log with a pager.

use crate::pipeline::{Format, PartitionField, TableFormatKind};
use crate::stage::runs::RunRef;
use crate::stage::{DataFile, TableSpec};
use base64::Engine;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Version of the entries written. A reader refuses a higher one.
///
/// 2: a run may hold several windows. 3: a plan holds the limits of records.
pub const VERSION: u32 = 3;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub version: u32,
    /// Identity of the proposal: the same bytes may be sent again, never other bytes under it.
    pub attempt: Uuid,
    pub log: Uuid,
    pub writer: String,
    /// Sequence number of the plan that this was made under.
    pub plan: u64,
    /// The sequence number that the log's next entry had when the work began.
    pub began: u64,
    /// The newest checkpoint that the writer knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointRef>,
    pub written_at_ms: i64,
    pub body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Its own sequence number.
    pub entry: u64,
    /// M: the entry as of which it holds the state.
    pub upto: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    Data(Data),
    Plan(Plan),
    Checkpoint(super::checkpoint::Checkpoint),
    Note(Note),
}

/// Source name to partition to something.
pub type ByPartition<T> = BTreeMap<String, BTreeMap<i32, T>>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// The clock when the epoch began, in milliseconds: the one clock in a result (the cap of DESIGN section 3).
    pub read_at_ms: i64,
    pub intervals: ByPartition<Interval>,
    /// What the ingest half assumed of each source's watermark; `None` is "before any row".
    pub bounds: BTreeMap<String, Option<i64>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<StagedFile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<RunObject>,
    pub counts: BTreeMap<String, Counts>,
}

/// A half-open interval of offsets; an empty one claims that the partition is idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub from: i64,
    pub to: i64,
    pub leader_epoch: i32,
    /// Highest event time of the decoded rows that are not beyond the cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_event_us: Option<i64>,
    /// The partition's name, when this entry is the first to mention it and it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Interval {
    pub fn claims_idle(&self) -> bool {
        self.from == self.to
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records read, dead ones included.
    pub records: u64,
    pub dead: u64,
    /// Bytes of keys, values and headers.
    pub bytes: u64,
    /// Rows whose event time was beyond the cap: kept, but they move no watermark.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ahead: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagedFile {
    pub table: String,
    pub format: TableFormatKind,
    #[serde(flatten)]
    pub file: DataFile,
}

/// All runs of an epoch, in one object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunObject {
    pub path: String,
    pub bytes: u64,
    pub runs: Vec<RunEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEntry {
    #[serde(flatten)]
    pub run: RunRef,
    /// End of the last window that the run has rows of: when the horizon is there, it is dead.
    pub last_window_end_us: i64,
}

/// What the pipeline file means from here on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub pipeline: String,
    /// The plan that this one replaces; `None` in entry 0.
    pub replaces: Option<u64>,
    pub sources: BTreeMap<String, SourcePlan>,
    pub tables: BTreeMap<String, WindowedOrPlain>,
}

impl Plan {
    /// What of the plan the pipeline file says, and not the log, as 32 hexadecimal digits. Two files of one
    /// fingerprint are the same file for all purposes. Never to change: ledgers hold it.
    pub fn fingerprint(&self) -> String {
        self.print(true)
    }

    /// The fingerprint that versions gave it which kept no limits.
    pub fn fingerprint_without_limits(&self) -> String {
        self.print(false)
    }

    fn print(&self, limits: bool) -> String {
        let source = |s: &SourcePlan| {
            let mut said = vec![serde_json::json!(s.topic), serde_json::json!(s.columns), serde_json::json!(s.delay_us), serde_json::json!(s.time_column)];
            said.extend(s.limits.filter(|_| limits).map(|l| serde_json::json!(l)));
            said.extend((!s.format.is_default()).then(|| serde_json::json!(s.format)));
            said
        };
        let sources: BTreeMap<_, _> = self.sources.iter().map(|(n, s)| (n, source(s))).collect();
        let table = |t: &WindowedOrPlain| {
            let r = &t.table;
            let formats: BTreeSet<_> = r.formats.iter().collect();
            serde_json::json!([t.source, t.sql, t.allowed_lateness_us, t.emit_on_update, r.key, formats, r.partition_by, r.properties, r.comment])
        };
        let tables: BTreeMap<_, _> = self.tables.iter().map(|(n, t)| (n, table(t))).collect();
        // Maps are sorted and structs have an order: one text for one meaning.
        let text = serde_json::json!([sources, tables]).to_string();
        format!("{:032x}", twox_hash::XxHash3_128::oneshot(text.as_bytes()))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Kafka's topic id, where there is one.
    pub incarnation: Option<String>,
    pub topic: String,
    /// The partitions that the log knows when the plan is written, and where each starts.
    pub starts: BTreeMap<i32, i64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<i32, String>,
    /// Of the payloads. Logs name it where it is not JSON; the first such format takes a new [`VERSION`].
    #[serde(default, skip_serializing_if = "Format::is_default")]
    pub format: Format,
    /// All of them are judged, whatever the tables read.
    pub columns: Vec<crate::pipeline::Column>,
    pub delay_us: i64,
    /// `None`: no watermark column.
    pub time_column: Option<String>,
    /// `None` in logs of versions that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    pub dead: SpecRecord,
}

/// What a single record may be, or is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub max_record_bytes: u64,
    pub max_depth: u64,
    /// `None`: no watermark.
    pub max_ahead_us: Option<i64>,
}

/// A declared table as the plan knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowedOrPlain {
    pub source: String,
    pub sql: String,
    /// The layout of state and rows, as [`crate::pipeline::sql::TablePlan::describe`] writes it.
    pub state: String,
    pub window: Option<crate::pipeline::sql::Tumble>,
    pub allowed_lateness_us: i64,
    pub emit_on_update: bool,
    /// The entry by which the table came into being.
    pub born: u64,
    pub table: SpecRecord,
    /// `<table>__late`; windowed tables have one.
    pub late: Option<SpecRecord>,
}

/// A [`TableSpec`] as it is kept in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpecRecord {
    pub name: String,
    /// Arrow's own encoding of a schema (an IPC stream without batches), in base64.
    pub schema: String,
    pub key: Vec<String>,
    pub formats: Vec<TableFormatKind>,
    pub partition_by: Vec<PartitionField>,
    pub properties: BTreeMap<String, String>,
    pub comment: Option<String>,
}

impl SpecRecord {
    pub fn of(spec: &TableSpec) -> Result<Self, arrow::error::ArrowError> {
        let mut bytes = vec![];
        arrow::ipc::writer::StreamWriter::try_new(&mut bytes, &spec.schema)?.finish()?;
        Ok(Self {
            name: spec.name.clone(),
            schema: base64::engine::general_purpose::STANDARD.encode(bytes),
            key: spec.key.clone(),
            formats: spec.formats.clone(),
            partition_by: spec.partition_by.clone(),
            properties: spec.properties.clone(),
            comment: spec.comment.clone(),
        })
    }

    pub fn spec(&self) -> Result<TableSpec, String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.schema).map_err(|e| e.to_string())?;
        // Where the schema names types that are none, arrow panics: nothing outlives the closure, so that no harm is done.
        let read = || arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None).map(|reader| reader.schema());
        let schema = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).map_err(|_| "its schema contradicts itself".to_string())?;
        let schema = schema.map_err(|e| e.to_string())?;
        Ok(TableSpec {
            name: self.name.clone(),
            schema,
            key: self.key.clone(),
            formats: self.formats.clone(),
            partition_by: self.partition_by.clone(),
            properties: self.properties.clone(),
            comment: self.comment.clone(),
        })
    }

    pub fn shared(&self) -> Result<Arc<TableSpec>, String> {
        self.spec().map(Arc::new)
    }
}

/// Facts beside the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// No more rows will come for now: valid once the positions reach `ends`. Every open window is emitted.
    EndOfInput { ends: ByPartition<i64> },
    /// These attempts will never be decided; their files may go. Valid while the log holds none of
    /// them and the search for them did not begin below the newest checkpoint's M (`Entry::began`).
    Condemned { attempts: Vec<Uuid> },
}

/// Text that is an entry, or what is wrong with it.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Entry, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|e| format!("{name} is no log entry ({e}); {} bytes were read", bytes.len()))?;
    if head.version > VERSION {
        return Err(format!("{name} has version {}, this program reads up to {VERSION}: use a newer millpond", head.version));
    }
    serde_json::from_slice(bytes).map_err(|e| format!("{name} is no whole log entry: {e}"))
}
