//! Phase 2: a table advances from stamp `a` to stamp `b` in one commit of its format.
//!
//! The commit is conditional on the very base whose stamp was read (a value that is never used
//! twice: Iceberg's metadata location, Delta's version). No client library may rebase or retry it.

pub mod advance;
pub mod delta;
pub mod iceberg;
pub mod key_index;
pub mod known;
pub mod upsert;

pub use crate::read::LiveFile;

use crate::observe::FileCounts;
use crate::pipeline::TableFormatKind;
use crate::stage::{DataFile, TableSpec};
use async_trait::async_trait;
use self::iceberg::{Ambient, Catalog, IcebergFormat};
use object_store::ObjectStore;
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use url::Url;
use uuid::Uuid;

/// Which prefix of which log a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub log: Uuid,
    /// The highest entry whose rows are in the table.
    pub entry: u64,
    /// Source to partition to the offset after the newest row folded in; lineage, never read back.
    pub offsets: BTreeMap<String, BTreeMap<i32, i64>>,
}

/// A table as loaded: what the next commit is conditional on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Iceberg: metadata location. Delta: version, as text. Never used twice.
    pub version: String,
    pub table_uuid: String,
    /// What the table says of itself; a table that we created always has one.
    pub stamp: Stamp,
    /// Commits since `since` (the base given to [`LakeTable::load`]) that are not ours.
    pub foreign_commits: u64,
}

/// One commit: files that come, rows that go.
#[derive(Debug, Clone)]
pub struct TableChange {
    pub add: Vec<DataFile>,
    /// Path of a live data file (relative to the lake's root) to positions of rows to delete in it.
    /// Positions are those of the file as it lies there, deleted rows counted.
    pub delete: BTreeMap<String, RoaringTreemap>,
    /// The stamp after this commit.
    pub stamp: Stamp,
    /// The spec after this commit: columns may have been added, all nullable.
    pub spec: Arc<TableSpec>,
    /// Unique to this commit; found again in the table when an answer was lost.
    pub attempt: Uuid,
}

/// What became of a commit.
#[derive(Debug)]
pub enum Committed {
    /// It is in the table, exactly as proposed.
    Done(CommitReport),
    /// The base is not the table's newest any more: nothing was written; load and decide anew.
    Moved,
    /// Nobody knows yet. Load and look at the stamp; delete nothing.
    Unknown(String),
}

#[derive(Debug, Default, Clone)]
pub struct CommitReport {
    pub version: String,
    /// Snapshot id or Delta version, as users know it.
    pub snapshot: String,
    pub bytes_written: u64,
    /// Data files that replaced others (copy on write): old path, new file, and for every row of
    /// the new file, in order, its position in the old one.
    pub rewritten: Vec<Rewritten>,
    /// Data files read to make this commit: only those from which rows were deleted.
    pub data_files_read: u64,
}

#[derive(Debug, Clone)]
pub struct Rewritten {
    pub old: String,
    pub new: Option<DataFile>,
    /// Positions (in the old file) of all rows that the new file does not hold.
    pub dropped: RoaringTreemap,
}

#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Going on would lose or double rows, or touch what is not ours. The message names the choices.
    #[error("{0}")]
    Refused(String),
    /// Will pass: the catalog or the store is away. The table waits and says so.
    #[error("{0}")]
    Unavailable(String),
}

/// The way out of a refusal that is always there.
pub(crate) const ANOTHER_NAME: &str = "give the table another name in the pipeline file, under which it begins anew";

/// One table in one format.
#[async_trait]
pub trait LakeTable: Send + Sync {
    fn format(&self) -> TableFormatKind;

    fn spec(&self) -> &Arc<TableSpec>;

    /// The log has given the table this spec by now, at a plan entry to which the caller's fold has yet to come:
    /// another worker may have evolved it so far.
    fn expect(&mut self, spec: Arc<TableSpec>);

    /// Reads the table's newest state. Refuses a table that is not the one we know: another uuid,
    /// another log's stamp, rolled back, a schema that does not fit.
    async fn load(&mut self) -> Result<Base, CommitError>;

    /// Commits `change` if the table is still at the base that [`LakeTable::load`] returned last.
    async fn commit(&mut self, change: TableChange) -> Result<Committed, CommitError>;

    /// All data files that readers of the loaded base see.
    async fn live_files(&mut self) -> Result<Vec<LiveFile>, CommitError>;

    /// What the state that was loaded or committed last says of its files, where it says so without being read further:
    /// Iceberg's totals may be missing after another engine's commit.
    fn files(&self) -> Option<FileCounts>;

    /// By what another engine compacts it, for people.
    fn compaction(&self) -> &'static str;

    /// Takes out of `names` every file that this table needs or may come to need, and returns what may go, with
    /// the newest base, by which this was judged. `names` are names of files in the table's folder (without
    /// folders: those and schemes are spelled in many ways), listed before the call.
    ///
    /// Needed is what any retained snapshot or unexpired Remove names. May come to be needed: what a commit
    /// under way has written, that is, what names the table's stamp or a later one. A file of an attempt may
    /// go only when the log has condemned the attempt.
    async fn unneeded(&mut self, names: BTreeSet<String>) -> Result<(Base, BTreeSet<String>), CommitError>;

    /// The newest commits, newest first: (snapshot or version, time in ms, stamp's entry if ours, operation, summary).
    async fn history(&mut self, most: usize) -> Result<Vec<CommitRow>, CommitError>;
}

/// A row of `millpond.commits`.
#[derive(Debug, Clone, Serialize)]
pub struct CommitRow {
    pub snapshot: String,
    pub committed_at_ms: i64,
    /// `None`: not one of ours.
    pub entry: Option<u64>,
    pub operation: String,
    pub added_files: u64,
    pub added_records: u64,
    pub deleted_records: u64,
}

/// A table format: makes its tables, opens them.
#[async_trait]
pub trait TableFormat: Send + Sync {
    /// Whether a table like this can be made at all, by its columns, partitions and properties: asked before anything is
    /// decided that needs it.
    fn check(&self, spec: &TableSpec) -> Result<(), CommitError>;

    /// Opens the table, or creates it empty, stamped with `birth`. Creating is safe to race: who
    /// loses opens what the other made. A table that exists and is not ours is refused.
    async fn open_or_create(&self, spec: Arc<TableSpec>, birth: &Stamp) -> Result<Box<dyn LakeTable>, CommitError>;

    /// Opens it if it exists; creates nothing.
    async fn open(&self, spec: Arc<TableSpec>) -> Result<Option<Box<dyn LakeTable>>, CommitError>;

    /// Where a table is looked for, for people.
    fn place(&self, table: &str) -> String;
}

/// Every format of a lake.
pub type Formats = BTreeMap<TableFormatKind, Arc<dyn TableFormat>>;

/// The formats of a pipeline's tables: the line where each is named. `store` is rooted at the lake's root, which is
/// `root` for people, messages and metadata.
pub fn formats(store: &Arc<dyn ObjectStore>, root: &Url, catalog: impl Catalog + 'static, pipeline: &str, namespace: &str, ambient: Ambient) -> Formats {
    let delta = delta::DeltaFormat::new(store.clone(), root.clone(), pipeline, ambient.now_ms.clone(), ambient.new_id.clone());
    let iceberg = IcebergFormat::new(store.clone(), root, catalog, pipeline, namespace, ambient);
    BTreeMap::from([(TableFormatKind::Iceberg, Arc::new(iceberg) as Arc<dyn TableFormat>), (TableFormatKind::Delta, Arc::new(delta))])
}
