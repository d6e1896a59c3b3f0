//! One commit: manifests, manifest list, snapshot, metadata, and the swap that decides it.

use super::table::{IcebergTable, Loaded};
use super::{KEEP_SNAPSHOTS, MERGE_MANIFESTS, deletes, schema, stamp, storage};
use crate::commit::{Base, CommitError, CommitReport, Committed, TableChange};
use crate::commit::iceberg::catalog::CatalogError;
use crate::mutant::{self, Mutant};
use crate::stage::names;
use iceberg::TableUpdate;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestContentType, ManifestFile, ManifestListWriter, ManifestWriter, ManifestWriterBuilder, Operation, PartitionSpec, SchemaRef, Snapshot,
    SnapshotReference, SnapshotRetention, Struct, Summary, TableMetadata, TableMetadataBuilder,
};
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// So many small manifests of a kind are merged into one, unless the table says otherwise.
const DEFAULT_MERGE_AT: usize = 40;
/// A manifest of this size is left alone.
const SMALL_MANIFEST: i64 = 8 << 20;
/// Snapshots kept unless the table says otherwise.
const DEFAULT_KEEP: usize = 100;
/// Expiry waits until this many are too many: it reads the manifest lists of what it removes.
const EXPIRE_SLACK: usize = 10;

/// Data files by their path below the lake's root.
type FilePartitions = HashMap<String, Place>;

/// How readers find the deletes of a data file: by its location, letter by letter as the table has it, and by its partition, which is
/// of a spec that others may have given the table for a while.
#[derive(Clone)]
struct Place {
    location: String,
    spec_id: i32,
    partition: Struct,
}

/// What was read of immutable files.
#[derive(Default)]
pub(super) struct ManifestCache {
    /// Data manifest to its files.
    files: HashMap<String, Arc<FilePartitions>>,
    /// Manifest list to its manifests.
    lists: HashMap<String, Arc<Vec<String>>>,
}

/// Everything written for a commit, before the swap.
struct Proposal {
    metadata: TableMetadata,
    location: String,
    /// Locations of all files that only this commit names.
    written: Vec<String>,
    bytes: u64,
    /// Metadata files that fell off the log.
    outdated: Vec<String>,
    /// Manifest lists of expired snapshots.
    expired: Vec<Snapshot>,
    snapshot: Option<Snapshot>,
}

impl IcebergTable {
    /// Writes what `change` needs and swaps the catalog's row. Never rebases.
    pub(super) async fn propose(&mut self, change: TableChange) -> Result<Committed, CommitError> {
        self.check(&change)?;
        let mut written = Vec::new();
        let proposal = match self.build(&change, &mut written).await {
            Ok(proposal) => proposal,
            Err(e) => {
                self.discard(&written).await;
                return Err(e);
            }
        };
        let from = self.loaded()?.location.clone();
        let lake = self.lake.clone();
        match lake.catalog.swap(&lake.namespace, &self.spec.name, &from, &proposal.location).await {
            Ok(true) => {}
            Ok(false) => {
                self.discard(&proposal.written).await;
                self.loaded = None;
                return Ok(Committed::Moved);
            }
            Err(CatalogError::AnswerLost { reason, .. }) => {
                self.loaded = None;
                return Ok(Committed::Unknown(reason));
            }
            Err(e @ (CatalogError::Busy { .. } | CatalogError::Unavailable { .. } | CatalogError::Damaged { .. })) => {
                self.discard(&proposal.written).await;
                return Err(super::unavailable(e));
            }
        }
        lake.write_version_hint(&proposal.metadata, &proposal.location).await;
        self.clean_up(&proposal).await;
        let report = CommitReport {
            version: proposal.location.clone(),
            snapshot: proposal.snapshot.as_ref().map_or_else(String::new, |s| s.snapshot_id().to_string()),
            bytes_written: proposal.bytes,
            ..CommitReport::default()
        };
        let found = stamp::find(proposal.metadata.properties()).ok().flatten().unwrap_or(stamp::Found { stamp: change.stamp.clone(), snapshot: None });
        let base = Base {
            version: proposal.location.clone(),
            table_uuid: proposal.metadata.uuid().to_string(),
            stamp: change.stamp.clone(),
            foreign_commits: 0,
        };
        self.spec = change.spec;
        self.loaded = Some(Loaded { metadata: proposal.metadata, location: proposal.location, found, base, expired: BTreeMap::new() });
        Ok(Committed::Done(report))
    }

    fn check(&self, change: &TableChange) -> Result<(), CommitError> {
        let base = &self.loaded()?.base;
        let name = self.name();
        if change.stamp.log != base.stamp.log {
            return Err(CommitError::Refused(format!("a commit of the log {} is not for the Iceberg table {name}, which holds the log {}", change.stamp.log, base.stamp.log)));
        }
        if change.stamp.entry < base.stamp.entry {
            return Err(CommitError::Refused(format!("a commit of the log's entry {} would set the Iceberg table {name} back, which holds entry {}", change.stamp.entry, base.stamp.entry)));
        }
        if change.spec.name != self.spec.name {
            return Err(CommitError::Refused(format!("a commit for the table {} is not for the Iceberg table {name}", change.spec.name)));
        }
        Ok(())
    }

    async fn build(&mut self, change: &TableChange, written: &mut Vec<String>) -> Result<Proposal, CommitError> {
        let name = self.name();
        let refused = |e: iceberg::Error| CommitError::Refused(format!("the commit to the Iceberg table {name} cannot be built: {e}"));
        let metadata = self.loaded()?.metadata.clone();
        let from = self.loaded()?.location.clone();
        let mut builder = metadata.clone().into_builder(Some(from.clone()));
        let apply = |builder: TableMetadataBuilder, update: TableUpdate| update.apply(builder).map_err(refused);

        let ours = schema::iceberg_schema(&change.spec)?;
        self.fits(&metadata, &change.spec)?;
        let mut current: SchemaRef = metadata.current_schema().clone();
        if let Some(schema) = schema::evolved(&current, &ours).map_err(refused)? {
            builder = apply(builder, TableUpdate::AddSchema { schema })?;
            builder = apply(builder, TableUpdate::SetCurrentSchema { schema_id: TableMetadataBuilder::LAST_ADDED })?;
            // Built once to learn the id that the schema got.
            current = builder.clone().build().map_err(refused)?.metadata.current_schema().clone();
        }

        let mut bytes = 0;
        let mut properties = stamp::pairs(&change.stamp, change.attempt);
        // Somebody may have taken it off.
        properties.insert(stamp::TABLE_UUID.into(), metadata.uuid().to_string());
        properties.extend(super::asked_for(&change.spec).filter(|(k, v)| metadata.properties().get(k) != Some(v)));
        let mut expired = Vec::new();
        let snapshot = if change.add.is_empty() && change.delete.is_empty() {
            None
        } else {
            let (snapshot, list_bytes) = self.write_snapshot(change, &metadata, &current, written).await?;
            bytes += list_bytes;
            properties.insert(stamp::SNAPSHOT_ID.into(), snapshot.snapshot_id().to_string());
            properties.insert(stamp::SEQUENCE_NUMBER.into(), snapshot.sequence_number().to_string());
            builder = apply(builder, TableUpdate::AddSnapshot { snapshot: snapshot.clone() })?;
            let retention = metadata_refs(&metadata).remove(MAIN_BRANCH).map_or_else(|| SnapshotRetention::branch(None, None, None), |r| r.retention);
            let reference = SnapshotReference::new(snapshot.snapshot_id(), retention);
            builder = apply(builder, TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.into(), reference })?;
            expired = expirable(&metadata);
            if !expired.is_empty() {
                for old in &expired {
                    if metadata.statistics_for_snapshot(old.snapshot_id()).is_some() {
                        builder = apply(builder, TableUpdate::RemoveStatistics { snapshot_id: old.snapshot_id() })?;
                    }
                    if metadata.partition_statistics_for_snapshot(old.snapshot_id()).is_some() {
                        builder = apply(builder, TableUpdate::RemovePartitionStatistics { snapshot_id: old.snapshot_id() })?;
                    }
                }
                builder = apply(builder, TableUpdate::RemoveSnapshots { snapshot_ids: expired.iter().map(|s| s.snapshot_id()).collect() })?;
            }
            Some(snapshot)
        };
        let file_id = (self.lake.ambient.new_id)();
        properties.insert(stamp::METADATA_ID.into(), file_id.to_string());
        builder = apply(builder, TableUpdate::SetProperties { updates: properties })?;
        let built = builder.build().map_err(refused)?;

        let version = metadata_version(&from) + 1;
        let location = format!("{}/metadata/{}", metadata.location(), names::metadata(version, file_id));
        written.push(location.clone());
        bytes += self.lake.write_metadata(&built.metadata, &location).await?;
        Ok(Proposal {
            metadata: built.metadata,
            location,
            written: written.clone(),
            bytes,
            outdated: built.expired_metadata_logs.into_iter().map(|l| l.metadata_file).collect(),
            expired,
            snapshot,
        })
    }

    /// Writes delete files, manifests and the manifest list; returns the snapshot and the bytes written.
    async fn write_snapshot(
        &mut self,
        change: &TableChange,
        metadata: &TableMetadata,
        current: &SchemaRef,
        written: &mut Vec<String>,
    ) -> Result<(Snapshot, u64), CommitError> {
        let lake = self.lake.clone();
        let base = self.loaded()?.base.stamp.entry;
        let id = snapshot_id(metadata, || (lake.ambient.new_id)());
        let attempt = (lake.ambient.new_id)();
        let spec = metadata.default_partition_spec().as_ref().clone();
        let mut bytes = 0;
        let old = match metadata.current_snapshot() {
            Some(snapshot) => self.manifests(snapshot).await?,
            None => Vec::new(),
        };
        let mut old: Vec<ManifestFile> = old.into_iter().filter(|m| m.has_added_files() || m.has_existing_files()).collect();
        self.cache.files.retain(|path, _| old.iter().any(|m| &m.manifest_path == path));

        let mut added = Vec::with_capacity(change.add.len());
        for file in &change.add {
            added.push(schema::data_file(file, lake.root.location(&file.path), current, &spec)?);
        }
        let deletes = self.write_deletes(change, &old, metadata.location(), written).await?;

        let mut manifests = 0;
        let mut open = |content: ManifestContentType, spec: &PartitionSpec, written: &mut Vec<String>| -> Result<ManifestWriter, CommitError> {
            let location = format!("{}/metadata/{}", metadata.location(), names::manifest(base, attempt, manifests));
            manifests += 1;
            let output = lake.io.new_output(&location).map_err(storage)?;
            written.push(location);
            let builder = ManifestWriterBuilder::new(output, Some(id), current.clone(), spec.clone());
            Ok(if content == ManifestContentType::Data { builder.build_v2_data() } else { builder.build_v2_deletes() })
        };

        let mut list = Vec::new();
        let fresh = (!added.is_empty()).then_some((ManifestContentType::Data, spec.spec_id(), &added));
        for (content, spec_id, files) in fresh.into_iter().chain(deletes.iter().map(|(id, files)| (ManifestContentType::Deletes, *id, files))) {
            let of = metadata.partition_spec_by_id(spec_id).ok_or_else(|| CommitError::Refused(format!("{} has data files of the partition spec {spec_id}, which it does not know", self.name())))?;
            let mut writer = open(content, of, written)?;
            for file in files {
                // No sequence number of its own: it inherits the snapshot's.
                writer.add_file(file.clone(), -1).map_err(storage)?;
            }
            list.push(writer.write_manifest_file().await.map_err(storage)?);
        }
        let merge_at = number(metadata, MERGE_MANIFESTS).unwrap_or(DEFAULT_MERGE_AT).max(2);
        for content in [ManifestContentType::Data, ManifestContentType::Deletes] {
            let small = |m: &ManifestFile| m.content == content && m.partition_spec_id == spec.spec_id() && m.manifest_length < SMALL_MANIFEST;
            if old.iter().filter(|m| small(m)).count() < merge_at {
                continue;
            }
            let (merged, kept): (Vec<_>, Vec<_>) = old.into_iter().partition(|m| small(m));
            old = kept;
            let mut writer = open(content, &spec, written)?;
            for manifest in &merged {
                for entry in lake.read_manifest(manifest).await?.entries().iter().filter(|e| e.is_alive()) {
                    // What a file inherited so far is written out: the merged manifest is younger.
                    let (Some(snapshot), Some(sequence)) = (entry.snapshot_id(), entry.sequence_number()) else {
                        return Err(CommitError::Refused(format!("the manifest {} names {} without a sequence number", manifest.manifest_path, entry.file_path())));
                    };
                    writer
                        .add_existing_file(entry.data_file().clone(), snapshot, sequence, entry.file_sequence_number)
                        .map_err(storage)?;
                }
            }
            list.push(writer.write_manifest_file().await.map_err(storage)?);
        }
        list.extend(old);
        let delete_files: Vec<DataFile> = deletes.into_values().flatten().collect();
        bytes += list.iter().filter(|m| m.added_snapshot_id == id).map(|m| m.manifest_length as u64).sum::<u64>();
        bytes += delete_files.iter().map(|f| f.file_size_in_bytes()).sum::<u64>();

        let sequence = metadata.next_sequence_number();
        let location = format!("{}/metadata/{}", metadata.location(), names::manifest_list(id, base, attempt));
        written.push(location.clone());
        let paths: Vec<String> = list.iter().map(|m| m.manifest_path.clone()).collect();
        let output = lake.io.new_output(&location).map_err(storage)?.writer().await.map_err(storage)?;
        let mut writer = ManifestListWriter::v2(output, id, metadata.current_snapshot_id(), sequence);
        writer.add_manifests(list.into_iter()).map_err(storage)?;
        writer.close().await.map_err(storage)?;
        self.cache.lists.insert(location.clone(), Arc::new(paths));

        let mut properties = summary(metadata, &added, &delete_files);
        properties.extend(stamp::pairs(&change.stamp, change.attempt));
        let operation = if delete_files.is_empty() {
            Operation::Append
        } else if added.is_empty() {
            Operation::Delete
        } else {
            Operation::Overwrite
        };
        let snapshot = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(sequence)
            // A clock that was set back must not make the table's history run backwards.
            .with_timestamp_ms((lake.ambient.now_ms)().max(metadata.last_updated_ms()))
            .with_manifest_list(location)
            .with_summary(Summary { operation, additional_properties: properties })
            .with_schema_id(current.schema_id())
            .build();
        Ok((snapshot, bytes))
    }

    /// One position-delete file per partition of the data files that lose rows, by the spec of the partition.
    async fn write_deletes(
        &mut self,
        change: &TableChange,
        manifests: &[ManifestFile],
        folder: &str,
        written: &mut Vec<String>,
    ) -> Result<BTreeMap<i32, Vec<DataFile>>, CommitError> {
        let lake = self.lake.clone();
        let base = self.loaded()?.base.stamp.entry;
        let wanted: Vec<(&str, &RoaringTreemap)> = change.delete.iter().filter(|(_, d)| !d.is_empty()).map(|(p, d)| (p.as_str(), d)).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let targets = self.partitions_of(&wanted.iter().map(|(p, _)| *p).collect::<Vec<_>>(), manifests).await?;
        let mut by_partition: Vec<(i32, Struct, BTreeMap<&str, &RoaringTreemap>)> = Vec::new();
        for (path, positions) in &wanted {
            let Some(Place { location, spec_id, partition }) = targets.get(*path) else {
                if mutant::on(Mutant::DeletesLostUnderCompaction) {
                    continue;
                }
                return Err(CommitError::Refused(format!(
                    "the data file {path}, from which rows are to be deleted, is not a live file of {} as loaded; nothing was committed",
                    self.name()
                )));
            };
            match by_partition.iter_mut().find(|(id, p, _)| id == spec_id && p == partition) {
                Some((_, _, files)) => {
                    files.insert(location, positions);
                }
                None => by_partition.push((*spec_id, partition.clone(), BTreeMap::from([(location.as_str(), *positions)]))),
            }
        }
        let mut files: BTreeMap<i32, Vec<DataFile>> = BTreeMap::new();
        for (spec_id, partition, positions) in by_partition {
            let bytes = deletes::encode(&positions).map_err(|e| CommitError::Refused(format!("position deletes of {}: {e}", self.name())))?;
            let location = format!("{folder}/data/{}", names::deletes(base, (lake.ambient.new_id)()));
            let size = bytes.len() as u64;
            written.push(location.clone());
            lake.io.new_output(&location).map_err(storage)?.write(bytes).await.map_err(storage)?;
            files.entry(spec_id).or_default().push(deletes::entry(&positions, location, size, partition, spec_id).map_err(storage)?);
        }
        Ok(files)
    }

    /// For each path that is a live data file's its place. Younger manifests are looked into first, and only until all are found.
    async fn partitions_of(&mut self, paths: &[&str], manifests: &[ManifestFile]) -> Result<FilePartitions, CommitError> {
        let mut found = HashMap::new();
        let mut data: Vec<&ManifestFile> = manifests.iter().filter(|m| m.content == ManifestContentType::Data).collect();
        data.sort_by_key(|m| std::cmp::Reverse(m.sequence_number));
        for manifest in data {
            if found.len() == paths.len() {
                break;
            }
            let files = match self.cache.files.get(&manifest.manifest_path) {
                Some(files) => files.clone(),
                None => {
                    let loaded = self.lake.read_manifest(manifest).await?;
                    let alive = loaded.entries().iter().filter(|e| e.is_alive());
                    let files: Arc<FilePartitions> = Arc::new(
                        alive
                            .filter_map(|e| {
                                let path = self.lake.root.relative(e.file_path())?;
                                let place = Place { location: e.file_path().to_string(), spec_id: manifest.partition_spec_id, partition: e.data_file().partition().clone() };
                                Some((path.to_string(), place))
                            })
                            .collect(),
                    );
                    self.cache.files.insert(manifest.manifest_path.clone(), files.clone());
                    files
                }
            };
            for path in paths {
                if let Some(file) = files.get(*path) {
                    found.insert(path.to_string(), file.clone());
                }
            }
        }
        Ok(found)
    }

    /// Takes back files that no table names and none ever will.
    async fn discard(&self, written: &[String]) {
        for location in written {
            let _ = self.lake.io.delete(location).await;
        }
    }

    /// Deletes what no retained snapshot names: best effort, after the commit. Data and delete files
    /// are never touched here, nor anything outside the table's metadata folder.
    async fn clean_up(&mut self, proposal: &Proposal) {
        let folder = format!("{}/metadata/", proposal.metadata.location());
        let mut unused: Vec<String> = proposal.outdated.clone();
        if !proposal.expired.is_empty() {
            let mut kept = HashSet::new();
            for snapshot in proposal.metadata.snapshots() {
                kept.insert(snapshot.manifest_list().to_string());
                // Without every list nothing is known to be unused.
                let Ok(manifests) = self.listed(snapshot).await else { return };
                kept.extend(manifests.iter().cloned());
            }
            for snapshot in &proposal.expired {
                let Ok(manifests) = self.listed(snapshot).await else { continue };
                unused.extend(manifests.iter().cloned());
                unused.push(snapshot.manifest_list().to_string());
                self.cache.lists.remove(snapshot.manifest_list());
            }
            unused.retain(|path| !kept.contains(path));
            unused.sort();
            unused.dedup();
        }
        for location in unused.iter().filter(|l| l.starts_with(&folder)) {
            let _ = self.lake.io.delete(location).await;
        }
    }

    async fn listed(&mut self, snapshot: &Snapshot) -> Result<Arc<Vec<String>>, CommitError> {
        if let Some(known) = self.cache.lists.get(snapshot.manifest_list()) {
            return Ok(known.clone());
        }
        let paths: Arc<Vec<String>> = Arc::new(self.manifests(snapshot).await?.into_iter().map(|m| m.manifest_path).collect());
        self.cache.lists.insert(snapshot.manifest_list().to_string(), paths.clone());
        Ok(paths)
    }
}

/// The number in a metadata file's name; other writers leave zeros out or put a `v` before it.
pub(super) fn metadata_version(location: &str) -> u64 {
    let name = names::file_name(location);
    let digits: String = name.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// A positive id that the table does not have.
fn snapshot_id(metadata: &TableMetadata, mut new_id: impl FnMut() -> uuid::Uuid) -> i64 {
    loop {
        let (high, low) = new_id().as_u64_pair();
        let id = ((high ^ low) & i64::MAX as u64) as i64;
        if id > 0 && metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

/// Branches and tags: the crate keeps them to itself, the metadata's JSON does not.
fn metadata_refs(metadata: &TableMetadata) -> BTreeMap<String, SnapshotReference> {
    serde_json::to_value(metadata).ok().and_then(|mut v| serde_json::from_value(v.get_mut("refs")?.take()).ok()).unwrap_or_default()
}

/// A property of the table that is a number.
fn number(metadata: &TableMetadata, property: &str) -> Option<usize> {
    metadata.properties().get(property)?.trim().parse().ok()
}

/// Snapshots of the main branch that go with the next commit: the oldest beyond what is kept, but
/// none that another branch or a tag reaches.
fn expirable(metadata: &TableMetadata) -> Vec<Snapshot> {
    let keep = number(metadata, KEEP_SNAPSHOTS).unwrap_or(DEFAULT_KEEP).max(2);
    // The snapshot that comes with the commit counts.
    let chain = stamp::ancestry(metadata);
    if chain.len() + 1 <= keep + EXPIRE_SLACK.min(keep / 2) {
        return Vec::new();
    }
    let mut held = HashSet::new();
    for (name, reference) in metadata_refs(metadata) {
        let mut next = (name != MAIN_BRANCH).then_some(reference.snapshot_id);
        while let Some(snapshot) = next.and_then(|id| metadata.snapshot_by_id(id)) {
            if !held.insert(snapshot.snapshot_id()) {
                break;
            }
            next = snapshot.parent_snapshot_id();
        }
    }
    chain.into_iter().skip(keep - 1).filter(|s| !held.contains(&s.snapshot_id())).cloned().collect()
}

/// The summary as Java writes it: totals go on from the parent's, and one that the parent lacks is
/// left out.
fn summary(metadata: &TableMetadata, added: &[DataFile], delete_files: &[DataFile]) -> HashMap<String, String> {
    let records: u64 = added.iter().map(|f| f.record_count()).sum();
    let positions: u64 = delete_files.iter().map(|f| f.record_count()).sum();
    let size: u64 = added.iter().chain(delete_files).map(|f| f.file_size_in_bytes()).sum();
    let partitions: HashSet<_> = added.iter().chain(delete_files).map(|f| f.partition()).collect();
    let mut out = HashMap::new();
    let mut put = |key: &str, value: u64| {
        if value > 0 {
            out.insert(key.to_string(), value.to_string());
        }
    };
    put("added-data-files", added.len() as u64);
    put("added-records", records);
    put("added-files-size", size);
    put("added-delete-files", delete_files.len() as u64);
    put("added-position-delete-files", delete_files.len() as u64);
    put("added-position-deletes", positions);
    out.insert("changed-partition-count".into(), partitions.len().to_string());
    out.insert("engine-name".into(), "millpond".into());
    out.insert("engine-version".into(), env!("CARGO_PKG_VERSION").into());
    let parent = metadata.current_snapshot().map(|s| &s.summary().additional_properties);
    for (key, more) in [
        ("total-data-files", added.len() as u64),
        ("total-records", records),
        ("total-files-size", size),
        ("total-delete-files", delete_files.len() as u64),
        ("total-position-deletes", positions),
        ("total-equality-deletes", 0),
    ] {
        let before = match parent {
            None => Some(0),
            Some(parent) => parent.get(key).and_then(|v| v.parse::<u64>().ok()),
        };
        out.extend(before.map(|b| (key.to_string(), (b + more).to_string())));
    }
    out
}
