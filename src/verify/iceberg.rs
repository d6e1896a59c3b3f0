//! An Iceberg table as its metadata shows it, read by the judge itself: catalog row, metadata file,
//! manifest lists, manifests, position deletes.

use super::bounds::{Said, summary_excludes};
use super::manifests::{Lists, Tally};
use super::position_deletes::{self, DeleteFile, Live};
use super::schema::Layout;
use super::structure::{Commit, TableState};
use super::{Finding, Lake, VerifyError, footer, rewrites};
use crate::pipeline::{LakeSpec, TableFormatKind};
use crate::read::LiveFile;
use crate::store::iceberg_io::{LakeRoot, file_io};
use ::iceberg::io::FileIO;
use ::iceberg::spec::{DataContentType, DataFile, DataFileFormat, FormatVersion, Manifest, ManifestFile, ManifestList, ManifestStatus, Operation, PrimitiveType, Snapshot, TableMetadata};
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const LOG: &str = "millpond.log";
const ENTRY: &str = "millpond.entry";
const KIND: TableFormatKind = TableFormatKind::Iceberg;

pub struct Reader {
    io: FileIO,
    root: LakeRoot,
}

impl Reader {
    pub fn new(lake: &Lake) -> Result<Self, VerifyError> {
        let url = url::Url::from_directory_path(&lake.root).map_err(|()| VerifyError::Refused(format!("{} is no absolute folder", lake.root.display())))?;
        let root = LakeRoot::new(&url);
        Ok(Self { io: file_io(lake.store.clone(), root.clone()), root })
    }

    /// The table, or what keeps it from being read.
    pub async fn read(&self, lake: &Lake, spec: &LakeSpec, pipeline: &str, table: &str) -> Result<TableState, Finding> {
        let finding = |kind: &'static str, text: String| Finding::new(kind, text).of(table, KIND);
        let location = location(spec, table).map_err(|e| finding("table-unreadable", format!("the catalog {}: {e}", spec.iceberg_catalog.display())))?;
        let Some(location) = location else {
            return Err(finding("table-missing", format!("the catalog {} has no table {}.{table}", spec.iceberg_catalog.display(), spec.namespace)));
        };
        let metadata = TableMetadata::read_from(&self.io, &location)
            .await
            .map_err(|e| finding("table-unreadable", format!("its metadata file {location} cannot be read: {}", e.message())))?;
        let mut state = TableState::new(KIND, location.clone(), metadata.uuid().to_string());
        state.folder = format!("iceberg/{pipeline}/{table}");
        self.place(&metadata, &mut state, table);
        state.name_mapping = metadata.properties().contains_key("schema.name-mapping.default");
        self.stamp(&metadata, &mut state, table);
        state.layout = Some(Layout::of_iceberg(&metadata));
        self.hint(lake, &location, &mut state).await.map_err(|e| finding("table-unreadable", e))?;
        state.referenced.extend(self.root.relative(&location).map(str::to_string));
        state.referenced.extend(metadata.metadata_log().iter().filter_map(|m| self.root.relative(&m.metadata_file).map(str::to_string)));
        self.commits(&metadata, &mut state);
        self.files(lake, &metadata, &mut state, table).await?;
        rewrites::count(lake, &self.io, &self.root, &metadata, &mut state.commits).await;
        Ok(state)
    }

    /// What a worker refuses before it reads any further.
    fn place(&self, metadata: &TableMetadata, state: &mut TableState, table: &str) {
        let mut say = |kind: &'static str, text: String| state.findings.push(Finding::new(kind, text).of(table, KIND));
        if metadata.format_version() != FormatVersion::V2 {
            say("format-version", format!("its format version is {}: workers write v2 alone, and readers of v1 know no deletes", metadata.format_version()));
        }
        if self.root.relative(metadata.location().trim_end_matches('/')) != Some(state.folder.as_str()) {
            let text = format!("its metadata places it at {}, and it lies in {}: what others write goes there", metadata.location(), self.root.location(&state.folder));
            say("location", text);
        }
    }

    fn stamp(&self, metadata: &TableMetadata, state: &mut TableState, table: &str) {
        let properties = metadata.properties();
        let mut say = |kind: &'static str, text: String| state.findings.push(Finding::new(kind, text).of(table, KIND));
        if let Some(own) = properties.get("millpond.table-uuid").filter(|own| **own != metadata.uuid().to_string()) {
            say("table-uuid", format!("its uuid is {}, and its properties are those of table {own}: it is a copy, or was made anew", metadata.uuid()));
        }
        let stamp = properties.get(LOG).zip(properties.get(ENTRY)).and_then(|(log, entry)| Some((log.parse().ok()?, entry.parse().ok()?)));
        let Some(stamp) = stamp else {
            say("stamp-missing", "its properties hold no stamp".into());
            return;
        };
        let offsets = properties.get("millpond.offsets").map(|t| serde_json::from_str(t));
        match offsets {
            Some(Ok(offsets)) => state.offsets = Some(offsets),
            Some(Err(_)) | None => say("stamp-offsets", "its stamp has no readable offsets".into()),
        }
        state.stamp = Some(stamp);
    }

    /// The main branch, newest first.
    fn commits(&self, metadata: &TableMetadata, state: &mut TableState) {
        let log = state.stamp.map(|(log, _)| log.to_string());
        let mut next = metadata.current_snapshot();
        while let Some(snapshot) = next {
            let summary = &snapshot.summary().additional_properties;
            let ours = summary.get(LOG).filter(|l| Some(*l) == log.as_ref()).and_then(|_| summary.get(ENTRY)?.parse().ok());
            let changes = !matches!(snapshot.summary().operation, Operation::Replace);
            let number = |key: &str| summary.get(key).and_then(|v| v.parse::<u64>().ok());
            let out = [number("deleted-records"), number("added-position-deletes")];
            state.commits.push(Commit {
                version: snapshot.snapshot_id().to_string(),
                entry: ours,
                operation: snapshot.summary().operation.as_str().to_string(),
                changes_data: changes,
                // The keys of what did not happen may be left out.
                rows_in: number("added-records").or(number("total-records").map(|_| 0)),
                rows_out: number("total-records").map(|_| out.into_iter().flatten().sum()),
                by: summary.get("engine-name").cloned(),
                removed: BTreeSet::new(),
            });
            if state.commits.len() > metadata.snapshots().len() {
                break;
            }
            next = snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        }
        // Who expires snapshots may take the parent's id from the oldest that is left (PyIceberg does): its number tells.
        let oldest = state.commits.last().and_then(|c| c.version.parse().ok()).and_then(|id| metadata.snapshot_by_id(id));
        state.all_commits = oldest.map_or(metadata.last_sequence_number(), |s| s.sequence_number()) <= 1;
        // The stamped snapshot must be the newest of ours; below one that is not retained nobody knows.
        let stamped = metadata.properties().get("millpond.snapshot-id").cloned();
        let retained = |id: &String| state.commits.iter().any(|c| c.version == *id);
        let parents_end = oldest.and_then(|s| s.parent_snapshot_id());
        if let Some(id) = stamped.filter(|id| !retained(id) && parents_end.map(|p| p.to_string()).as_ref() != Some(id)) {
            let text = format!("its stamp names snapshot {id}, which the main branch does not hold");
            if state.all_commits || metadata.snapshots().any(|s| s.snapshot_id().to_string() == id) {
                state.findings.push(Finding::new("rolled-back", text));
            } else {
                state.unprovable.push(format!("{text}: it may have been expired or rolled back"));
            }
        }
    }

    async fn files(&self, lake: &Lake, metadata: &TableMetadata, state: &mut TableState, table: &str) -> Result<(), Finding> {
        let mut live: BTreeMap<String, Live> = BTreeMap::new();
        let mut deletes: Vec<DeleteFile> = vec![];
        let current = metadata.current_snapshot().map(|s| s.snapshot_id());
        let mut tallies: HashMap<String, Tally> = HashMap::new();
        let mut lists = Lists::default();
        for snapshot in metadata.snapshots() {
            let now = Some(snapshot.snapshot_id()) == current;
            for named in self.manifests(snapshot, state, table).await? {
                if let Some(tally) = tallies.get(&named.manifest_path).filter(|_| !now) {
                    lists.compare(tally, &named, snapshot, metadata);
                    continue;
                }
                state.referenced.extend(self.root.relative(&named.manifest_path).map(str::to_string));
                let (manifest, tally) = self.manifest(&named, table).await?;
                lists.compare(&tally, &named, snapshot, metadata);
                tallies.insert(named.manifest_path.clone(), tally);
                self.entries(metadata, &named, &manifest, now, (&mut live, &mut deletes), state, table);
            }
        }
        state.findings.extend(lists.findings(table));
        self.totals(metadata, &live, &deletes, state, table);
        for delete in &deletes {
            position_deletes::apply(lake, &self.root, delete, &mut live, state, table).await;
        }
        state.files = live.into_values().map(|l| l.file).collect();
        Ok(())
    }

    async fn manifest(&self, named: &ManifestFile, table: &str) -> Result<(Manifest, Tally), Finding> {
        let failed = |e: ::iceberg::Error| Finding::new("metadata-missing", format!("manifest {} cannot be read: {e}", named.manifest_path)).of(table, KIND);
        let bytes = self.io.new_input(&named.manifest_path).map_err(failed)?.read().await.map_err(failed)?;
        let manifest = Manifest::parse_avro(&bytes).map_err(failed)?;
        let tally = Tally::of(&manifest, bytes.len() as u64);
        Ok((manifest, tally))
    }

    /// Takes in a manifest's files; `now`: readers see those that are alive.
    #[allow(clippy::too_many_arguments)]
    fn entries(&self, metadata: &TableMetadata, named: &ManifestFile, manifest: &Manifest, now: bool, (live, deletes): (&mut BTreeMap<String, Live>, &mut Vec<DeleteFile>), state: &mut TableState, table: &str) {
        let spec = metadata.partition_spec_by_id(named.partition_spec_id);
        let tuple = spec.and_then(|s| s.partition_type(metadata.current_schema()).ok());
        let partitions = tuple.map(|t| t.fields().iter().filter_map(|f| Some((f.name.clone(), f.field_type.as_primitive_type()?.clone()))).collect::<Vec<_>>());
        for entry in manifest.entries() {
            let file = entry.data_file();
            let Some(path) = self.root.relative(file.file_path()).map(str::to_string) else {
                state.findings.push(Finding::new("file-outside", format!("it names {}, which is not in the lake", file.file_path())).of(table, KIND));
                continue;
            };
            state.referenced.insert(path.clone());
            let by = entry.snapshot_id().unwrap_or(named.added_snapshot_id).to_string();
            if entry.status() == ManifestStatus::Deleted
                && let Some(commit) = state.commits.iter_mut().find(|c| c.version == by)
            {
                commit.removed.insert(path.clone());
            }
            if !entry.is_alive() {
                continue;
            }
            if !now {
                state.older.insert(path);
                continue;
            }
            let sequence = entry.sequence_number().unwrap_or(named.sequence_number);
            match (file.content_type(), file.file_format()) {
                (DataContentType::Data, DataFileFormat::Parquet) => {
                    self.summaries(named, partitions.as_deref().unwrap_or_default(), file, state, table);
                    let by = spec.map_or_else(Vec::new, |s| s.fields().iter().map(|f| (f.source_id, f.transform)).collect());
                    state.said.insert(path.clone(), Said::Iceberg(Box::new(file.clone()), by));
                    let live_file = LiveFile {
                        path: path.clone(),
                        bytes: file.file_size_in_bytes(),
                        records: file.record_count(),
                        deleted: RoaringTreemap::new(),
                        partition_values: BTreeMap::new(),
                        columns: vec![],
                    };
                    let partition = (named.partition_spec_id, file.partition().clone());
                    if live.insert(path.clone(), Live { sequence, location: file.file_path().to_string(), partition, file: live_file }).is_some() {
                        state.findings.push(Finding::new("file-twice", format!("data file {path} is in it twice: its rows count twice")).of(table, KIND));
                    }
                }
                (DataContentType::PositionDeletes, DataFileFormat::Parquet) => {
                    deletes.push(DeleteFile { sequence, path, spec_id: named.partition_spec_id, said: file.clone() });
                }
                (content, format) => {
                    state.unprovable.push(format!("it holds the file {path} ({content:?}, {format}) of another writer, which is not read here"));
                }
            }
        }
    }

    /// Readers that skip a manifest by what the list says of its partitions must not miss this file.
    fn summaries(&self, manifest: &ManifestFile, partitions: &[(String, PrimitiveType)], file: &DataFile, state: &mut TableState, table: &str) {
        let summaries = manifest.partitions.iter().flatten();
        for ((summary, (name, ty)), value) in summaries.zip(partitions).zip(file.partition().iter()) {
            if let Some(text) = summary_excludes(summary, ty, value) {
                let text = format!("the manifest list says of {name} in {} {text}: readers may leave its files out", manifest.manifest_path);
                let finding = Finding::new("manifest-bounds", text).of(table, KIND);
                if !state.findings.iter().any(|f| f.text == finding.text) {
                    state.findings.push(finding);
                }
            }
        }
    }

    /// Readers that are given the folder alone, such as DuckDB, find the newest metadata by a hint beside it. Commits of
    /// others may leave it behind: that is worth knowing, and nothing is wrong with the table.
    async fn hint(&self, lake: &Lake, location: &str, state: &mut TableState) -> Result<(), String> {
        let path = format!("{}/metadata/version-hint.text", state.folder);
        let Some(bytes) = footer::object(lake, &path).await? else {
            state.notes.push(format!("{path} is not there: readers by folder, such as DuckDB, do not find the table"));
            return Ok(());
        };
        let hint = String::from_utf8_lossy(&bytes).trim().to_string();
        let newest = location.rsplit('/').next().unwrap_or(location);
        let names = [format!("{hint}.metadata.json"), format!("v{hint}.metadata.json")];
        if names.iter().any(|n| n == newest) {
            return Ok(());
        }
        for name in &names {
            if footer::size(lake, &format!("{}/metadata/{name}", state.folder)).await?.is_some() {
                state.notes.push(format!("{path} names {name}, and the table is at {newest}: readers by folder, such as DuckDB, see an older state"));
                return Ok(());
            }
        }
        state.notes.push(format!("{path} names {hint}, which is not there: readers by folder, such as DuckDB, cannot read the table"));
        Ok(())
    }

    async fn manifests(&self, snapshot: &Snapshot, state: &mut TableState, table: &str) -> Result<Vec<ManifestFile>, Finding> {
        let failed = |e: &dyn std::fmt::Display| {
            Finding::new("metadata-missing", format!("manifest list {} of snapshot {} cannot be read: {e}", snapshot.manifest_list(), snapshot.snapshot_id())).of(table, KIND)
        };
        state.referenced.extend(self.root.relative(snapshot.manifest_list()).map(str::to_string));
        let bytes = match self.io.new_input(snapshot.manifest_list()) {
            Ok(input) => input.read().await.map_err(|e| failed(&e))?,
            Err(e) => return Err(failed(&e)),
        };
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2).map_err(|e| failed(&e))?;
        Ok(list.consume_entries().into_iter().collect())
    }

    /// What the newest summary adds up to is what the manifests hold.
    fn totals(&self, metadata: &TableMetadata, live: &BTreeMap<String, Live>, deletes: &[DeleteFile], state: &mut TableState, table: &str) {
        let Some(snapshot) = metadata.current_snapshot() else { return };
        let summary = &snapshot.summary().additional_properties;
        let found = [
            ("total-data-files", live.len() as u64),
            ("total-records", live.values().map(|l| l.file.records).sum()),
            ("total-delete-files", deletes.len() as u64),
            ("total-position-deletes", deletes.iter().map(|d| d.said.record_count()).sum()),
        ];
        for (key, found) in found {
            let Some(said) = summary.get(key).and_then(|v| v.parse::<u64>().ok()) else { continue };
            if said != found {
                let text = format!("the newest commit says {key} = {said}, and its manifests add up to {found}");
                state.findings.push(Finding::new("commit-counts", text).of(table, KIND));
            }
        }
    }
}

/// Where the catalog says that the table's newest metadata lies.
/// A catalog that is locked or cannot be opened at the moment says nothing of the tables.
pub fn reachable(spec: &LakeSpec) -> Result<(), VerifyError> {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, PermissionDenied, ReadOnly, SystemIoFailure};
    match location(spec, "") {
        Err(e) if spec.iceberg_catalog.exists() && matches!(e.sqlite_error_code(), Some(CannotOpen | DatabaseBusy | DatabaseLocked | PermissionDenied | ReadOnly | SystemIoFailure)) => {
            Err(VerifyError::Unavailable(format!("the catalog {} cannot be read: {e}", spec.iceberg_catalog.display())))
        }
        _ => Ok(()),
    }
}

fn location(spec: &LakeSpec, table: &str) -> Result<Option<String>, rusqlite::Error> {
    use rusqlite::{OpenFlags, OptionalExtension};
    let connection = rusqlite::Connection::open_with_flags(&spec.iceberg_catalog, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    let sql = "select metadata_location from iceberg_tables where catalog_name = ?1 and table_namespace = ?2 and table_name = ?3";
    let row = connection.query_row(sql, [&spec.catalog_name, &spec.namespace, table], |row| row.get::<_, Option<String>>(0));
    Ok(row.optional()?.flatten())
}
