//! One Iceberg table: loading and judging it, its live files, its history.

use super::propose::ManifestCache;
use super::stamp::{self, Found, Link, Soundness};
use super::{Lake, schema, storage, unavailable};
use crate::commit::{ANOTHER_NAME, Base, CommitError, CommitRow, Committed, LakeTable, LiveFile, TableChange};
use crate::mutant::{self, Mutant};
use crate::observe::FileCounts;
use crate::pipeline::TableFormatKind;
use crate::stage::TableSpec;
use async_trait::async_trait;
use iceberg::spec::{DataContentType, DataFileFormat, FormatVersion, ManifestFile, ManifestList, Snapshot, TableMetadata};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Older metadata files that are read to prove that a table still holds our newest commit.
const OLDER_METADATA: usize = 100;

/// [`LakeTable`] for Iceberg.
pub struct IcebergTable {
    pub(super) lake: Arc<Lake>,
    pub(super) spec: Arc<TableSpec>,
    log: Option<Uuid>,
    uuid: Option<String>,
    pub(super) loaded: Option<Loaded>,
    pub(super) cache: ManifestCache,
}

/// The state that the next commit builds on.
pub(super) struct Loaded {
    pub metadata: TableMetadata,
    pub location: String,
    pub found: Found,
    pub base: Base,
    /// Snapshots that the metadata does not tell any more, as far as its judgement needs them.
    pub expired: BTreeMap<i64, Link>,
}

impl IcebergTable {
    pub(super) fn new(lake: Arc<Lake>, spec: Arc<TableSpec>, log: Option<Uuid>, uuid: Option<String>) -> Self {
        Self { lake, spec, log, uuid, loaded: None, cache: ManifestCache::default() }
    }

    /// From here on the table is known under this uuid: another one is refused.
    pub fn expect_uuid(&mut self, uuid: &str) {
        self.uuid = Some(uuid.to_string());
    }

    pub(super) fn name(&self) -> String {
        self.lake.identifier(&self.spec.name)
    }

    pub(super) fn loaded(&self) -> Result<&Loaded, CommitError> {
        self.loaded.as_ref().ok_or_else(|| CommitError::Unavailable(format!("the Iceberg table {} is not loaded", self.name())))
    }

    /// Whether a commit under this spec leaves the columns and the partitioning as they are, but for columns that it adds.
    pub(super) fn fits(&self, metadata: &TableMetadata, spec: &TableSpec) -> Result<(), CommitError> {
        let Some(how) = schema::difference(metadata, spec)? else { return Ok(()) };
        let name = self.name();
        Err(CommitError::Refused(format!("the Iceberg table {name} does not fit: {how}, or {ANOTHER_NAME}; what was decided for it waits in the log")))
    }

    /// Everything that must hold before we touch a table. Pure but for what it was given.
    fn judge(&self, metadata: &TableMetadata, location: &str, expired: &BTreeMap<i64, Link>) -> Result<(Found, Base), CommitError> {
        let name = self.name();
        let refused = |text: String| Err(CommitError::Refused(text));
        if let Some(how) = stamp::lost(metadata) {
            return refused(format!("the Iceberg table {name} cannot be continued: {how}; or {ANOTHER_NAME}"));
        }
        let Some(found) = stamp::find(metadata.properties()).map_err(|e| CommitError::Refused(format!("the Iceberg table {name}: {e}")))? else {
            return refused(format!(
                "the Iceberg table {name} exists and is not ours: it has no stamp; {}; {ANOTHER_NAME}",
                describe(metadata)
            ));
        };
        let uuid = metadata.uuid().to_string();
        if let Some(expected) = self.uuid.as_ref().filter(|e| **e != uuid) {
            return refused(format!(
                "the Iceberg table {name} has the uuid {uuid}, but we wrote to {expected}: it was dropped and made anew; drop it and restore the old one, or {ANOTHER_NAME}"
            ));
        }
        if let Some(own) = metadata.properties().get(stamp::TABLE_UUID).filter(|own| **own != uuid) {
            return refused(format!("the Iceberg table {name} has the uuid {uuid}, but its properties were copied from the table {own}; a copy is not written to"));
        }
        if let Some(log) = self.log.filter(|log| *log != found.stamp.log) {
            return refused(format!(
                "the Iceberg table {name} is stamped by the log {}, and this pipeline's log is {log}; restore its log, or {ANOTHER_NAME}",
                found.stamp.log
            ));
        }
        if metadata.format_version() != FormatVersion::V2 {
            return refused(format!("the Iceberg table {name} has the format version {}: this version writes v2 only", metadata.format_version()));
        }
        if self.lake.root.relative(metadata.location()).is_none() {
            return refused(format!("the Iceberg table {name} lies at {}, outside of the lake's root {}", metadata.location(), self.lake.root.location("")));
        }
        self.fits(metadata, &self.spec)?;
        let links = stamp::links(metadata, expired);
        let head = links.first().map_or("no snapshot".to_string(), |l| format!("snapshot {} (sequence number {})", l.0, l.2));
        let stamped = found.snapshot.map_or(String::new(), |(id, n)| format!("snapshot {id} (sequence number {n})"));
        let foreign = match stamp::judge(&links, found.snapshot) {
            Soundness::Sound { foreign } => foreign,
            Soundness::RolledBack | Soundness::Unproven if mutant::on(Mutant::RollbackIgnored) => links.len() as u64,
            Soundness::RolledBack => {
                return refused(format!(
                    "the Iceberg table {name} was rolled back: our newest commit is {stamped} with the log's entry {}, and the table is at {head} without it; set the branch forward to {stamped} again, or {ANOTHER_NAME}",
                    found.stamp.entry
                ));
            }
            Soundness::Unproven => {
                return refused(format!(
                    "nothing proves that the Iceberg table {name} still holds our newest commit, {stamped} with the log's entry {}: the table is at {head}, and the snapshots between were expired; compare it with the source, and if it holds everything, set its properties {} and {} to those of the snapshot it is at; otherwise {ANOTHER_NAME}",
                    found.stamp.entry,
                    stamp::SNAPSHOT_ID,
                    stamp::SEQUENCE_NUMBER
                ));
            }
        };
        let base = Base { version: location.to_string(), table_uuid: uuid, stamp: found.stamp.clone(), foreign_commits: foreign };
        Ok((found, base))
    }

    /// Where the branch alone proves nothing: what the older metadata files that are still there say
    /// of snapshots that were expired. They are immutable, so that what each says was so.
    async fn expired_links(&self, metadata: &TableMetadata) -> BTreeMap<i64, Link> {
        let mut known = BTreeMap::new();
        let Ok(Some(found)) = stamp::find(metadata.properties()) else { return known };
        let judged = |known: &BTreeMap<i64, Link>| stamp::judge(&stamp::links(metadata, known), found.snapshot);
        for older in metadata.metadata_log().iter().rev().take(OLDER_METADATA) {
            if judged(&known) != Soundness::Unproven {
                break;
            }
            let Ok(older) = self.lake.read_metadata(&older.metadata_file).await else { continue };
            if older.uuid() != metadata.uuid() {
                continue;
            }
            for snapshot in older.snapshots() {
                let link = (snapshot.snapshot_id(), snapshot.parent_snapshot_id(), snapshot.sequence_number());
                let told = known.entry(link.0).or_insert(link);
                told.1 = told.1.or(link.1);
            }
        }
        known
    }

    /// The manifests of a snapshot, as its list has them.
    pub(super) async fn manifests(&self, snapshot: &Snapshot) -> Result<Vec<ManifestFile>, CommitError> {
        let input = self.lake.io.new_input(snapshot.manifest_list()).map_err(storage)?;
        let bytes = input.read().await.map_err(storage)?;
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2)
            .map_err(|e| super::damaged("manifest list", snapshot.manifest_list(), e))?;
        Ok(list.consume_entries().into_iter().collect())
    }

    /// The path below the lake's root of a file that the table names.
    fn relative(&self, location: &str) -> Result<String, CommitError> {
        let path = self.lake.root.relative(location).ok_or_else(|| {
            CommitError::Refused(format!("the Iceberg table {}: {}", self.name(), crate::store::iceberg_io::outside(location, &self.lake.root)))
        })?;
        Ok(path.to_string())
    }
}

#[async_trait]
impl LakeTable for IcebergTable {
    fn format(&self) -> TableFormatKind {
        TableFormatKind::Iceberg
    }

    fn compaction(&self) -> &'static str {
        "Spark's `rewrite_data_files`, say"
    }

    fn spec(&self) -> &Arc<TableSpec> {
        &self.spec
    }

    fn expect(&mut self, spec: Arc<TableSpec>) {
        self.spec = spec;
    }

    async fn load(&mut self) -> Result<Base, CommitError> {
        let location = self.lake.catalog.metadata_location(&self.lake.namespace, &self.spec.name).await.map_err(unavailable)?;
        let Some(location) = location else {
            self.loaded = None;
            return Err(gone(&self.lake, &self.spec.name, self.uuid.as_deref().unwrap_or("unknown")));
        };
        // A metadata location is never used twice: the same one is the same state.
        if let Some(same) = self.loaded.as_ref().filter(|l| l.location == location) {
            let (_, base) = self.judge(&same.metadata, &location, &same.expired)?;
            return Ok(base);
        }
        self.loaded = None;
        let metadata = self.lake.read_metadata(&location).await?;
        let expired = self.expired_links(&metadata).await;
        let (found, base) = self.judge(&metadata, &location, &expired)?;
        self.uuid = Some(base.table_uuid.clone());
        self.loaded = Some(Loaded { metadata, location, found, base: base.clone(), expired });
        Ok(base)
    }

    async fn commit(&mut self, change: TableChange) -> Result<Committed, CommitError> {
        self.propose(change).await
    }

    async fn live_files(&mut self) -> Result<Vec<LiveFile>, CommitError> {
        let Some(snapshot) = self.loaded()?.metadata.current_snapshot().cloned() else { return Ok(Vec::new()) };
        let mut live: BTreeMap<String, (i64, LiveFile)> = BTreeMap::new();
        let mut delete_files = Vec::new();
        for manifest in self.manifests(&snapshot).await? {
            for entry in self.lake.read_manifest(&manifest).await?.entries().iter().filter(|e| e.is_alive()) {
                let file = entry.data_file();
                let sequence = entry.sequence_number().unwrap_or(0);
                match (file.content_type(), file.file_format()) {
                    (DataContentType::Data, DataFileFormat::Parquet) => {
                        let path = self.relative(file.file_path())?;
                        let live_file = LiveFile {
                            path: path.clone(),
                            bytes: file.file_size_in_bytes(),
                            records: file.record_count(),
                            deleted: Default::default(),
                            partition_values: BTreeMap::new(),
                            columns: schema::column_stats(file),
                        };
                        live.insert(path, (sequence, live_file));
                    }
                    (DataContentType::PositionDeletes, DataFileFormat::Parquet) => delete_files.push((sequence, file.file_path().to_string())),
                    (content, format) => {
                        return Err(CommitError::Refused(format!(
                            "the Iceberg table {} holds the file {} ({content:?}, {format}), made by another writer, which this version does not read; compact the table with that writer so that only Parquet data and position deletes are left",
                            self.name(),
                            file.file_path()
                        )));
                    }
                }
            }
        }
        for (sequence, location) in delete_files {
            let input = self.lake.io.new_input(&location).map_err(storage)?;
            let deleted = super::deletes::decode(input.read().await.map_err(storage)?)
                .map_err(|e| CommitError::Refused(format!("the position-delete file {location} of {}: {e}", self.name())))?;
            for (target, positions) in deleted {
                let Some((written, file)) = self.lake.root.relative(&target).and_then(|p| live.get_mut(p)) else { continue };
                // A delete file reaches only data that is not younger.
                if *written <= sequence {
                    file.deleted |= positions;
                }
            }
        }
        Ok(live.into_values().map(|(_, file)| file).collect())
    }

    fn files(&self) -> Option<FileCounts> {
        let Some(newest) = self.loaded.as_ref()?.metadata.current_snapshot() else { return Some(FileCounts::default()) };
        let total = |key: &str| newest.summary().additional_properties.get(key)?.parse().ok();
        Some(FileCounts { data: total("total-data-files")?, deletes: total("total-delete-files")?, bytes: total("total-files-size")? })
    }

    async fn unneeded(&mut self, names: BTreeSet<String>) -> Result<(Base, BTreeSet<String>), CommitError> {
        self.unneeded_of(names).await
    }

    async fn history(&mut self, most: usize) -> Result<Vec<CommitRow>, CommitError> {
        let loaded = self.loaded()?;
        let log = loaded.found.stamp.log.to_string();
        let rows = stamp::ancestry(&loaded.metadata).into_iter().take(most).map(|snapshot| {
            let summary = &snapshot.summary().additional_properties;
            let number = |key: &str| summary.get(key).and_then(|v| v.parse().ok()).unwrap_or(0);
            CommitRow {
                snapshot: snapshot.snapshot_id().to_string(),
                committed_at_ms: snapshot.timestamp_ms(),
                entry: summary.get(stamp::LOG).filter(|l| **l == log).and_then(|_| summary.get(stamp::ENTRY)?.parse().ok()),
                operation: snapshot.summary().operation.as_str().to_string(),
                added_files: number("added-data-files"),
                added_records: number("added-records"),
                deleted_records: number("deleted-records") + number("added-position-deletes"),
            }
        });
        Ok(rows.collect())
    }
}

pub(super) fn gone(lake: &Lake, table: &str, uuid: &str) -> CommitError {
    CommitError::Refused(format!(
        "the Iceberg table {} (uuid {uuid}) is no longer in the catalog {} of {}: it was dropped, or the catalog was replaced; restore it, or {ANOTHER_NAME}",
        lake.identifier(table),
        lake.catalog.name(),
        lake.catalog.place()
    ))
}

/// What a table is that is not ours, with the marks of other writers.
fn describe(metadata: &TableMetadata) -> String {
    let columns: Vec<&str> = metadata.current_schema().as_struct().fields().iter().map(|f| f.name.as_str()).collect();
    let mut text = format!(
        "it lies at {}, has {} snapshots and the columns {}",
        metadata.location(),
        metadata.snapshots().len(),
        if columns.is_empty() { "(none)".to_string() } else { columns.join(", ") }
    );
    let summaries = metadata.snapshots().flat_map(|s| s.summary().additional_properties.keys());
    let keys: Vec<&String> = metadata.properties().keys().chain(summaries).collect();
    for (mark, writer) in [("flink.", "Flink"), ("kafka.connect.", "the Iceberg sink of Kafka Connect"), ("spark.app.id", "Spark")] {
        if keys.iter().any(|k| k.starts_with(mark)) {
            text.push_str(&format!("; it bears the marks of {writer}"));
        }
    }
    text
}
