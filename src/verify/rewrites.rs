//! Commits of others that claim to change no data: Iceberg's `replace`, Delta's `dataChange` = false. What they write
//! anew must be as many rows as readers saw in what they take away. Rows that deletes had taken before count on neither
//! side: a compaction applies deletes.

use super::structure::Commit;
use super::{Lake, footer};
use crate::store::iceberg_io::LakeRoot;
use ::iceberg::io::FileIO;
use ::iceberg::spec::{DataContentType, DataFileFormat, FormatVersion, Manifest, ManifestFile, ManifestList, Snapshot, TableMetadata};
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl Commit {
    /// It is not ours, and says that readers see the rows that they saw before.
    pub fn claims_no_change(&self) -> bool {
        self.entry.is_none() && !self.changes_data
    }

    /// What a compaction of others did to the number of rows, where both numbers are known.
    pub fn miscounted(&self) -> Option<String> {
        let (brought, took) = self.rows_in.zip(self.rows_out).filter(|(brought, took)| self.claims_no_change() && brought != took)?;
        let by = self.by.as_ref().map_or(String::new(), |by| format!(" by {by}"));
        let n = brought.abs_diff(took);
        let how = if brought < took { format!("{n} are lost") } else { format!("{n} are there that were not") };
        Some(format!("commit {} ({}{by}) is not ours and claims to change no data: it wrote {brought} rows for the {took} that it took away, {how}", self.version, self.operation))
    }
}

/// Fills in how many rows readers saw of what each commit of others in an Iceberg table wrote and took away: a summary counts deleted
/// ones, too. Where its parent is no longer retained, or a file that tells is gone, a compaction's stay unknown.
pub async fn count(lake: &Lake, io: &FileIO, root: &LakeRoot, metadata: &TableMetadata, commits: &mut [Commit]) {
    let mut counter = Counter { lake, io, root, manifests: HashMap::new(), positions: HashMap::new() };
    for commit in commits.iter_mut().filter(|c| c.entry.is_none()) {
        let after = commit.version.parse().ok().and_then(|id| metadata.snapshot_by_id(id));
        let before = after.and_then(|s| metadata.snapshot_by_id(s.parent_snapshot_id()?));
        let counted = match before.zip(after) {
            Some((before, after)) => counter.shown(before).await.zip(counter.shown(after).await),
            None => None,
        };
        match counted {
            Some((before, after)) => (commit.rows_in, commit.rows_out) = (Some(beyond(&after, &before)), Some(beyond(&before, &after))),
            None if commit.claims_no_change() => (commit.rows_in, commit.rows_out) = (None, None),
            None => {}
        }
    }
}

/// Rows that one snapshot shows of its files and the other does not.
fn beyond(one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>) -> u64 {
    one.iter().map(|(file, rows)| rows.saturating_sub(other.get(file).copied().unwrap_or(0))).sum()
}

/// Counts the rows that readers of a snapshot see.
struct Counter<'a> {
    lake: &'a Lake,
    io: &'a FileIO,
    root: &'a LakeRoot,
    manifests: HashMap<String, Arc<Vec<File>>>,
    /// Delete file to the positions that it takes from each data file.
    positions: HashMap<String, Arc<BTreeMap<String, RoaringTreemap>>>,
}

/// A file of a manifest.
struct File {
    location: String,
    sequence: i64,
    records: u64,
    deletes: bool,
}

impl Counter<'_> {
    /// Data file to the rows that it shows. `None`: something of the snapshot cannot be read here.
    async fn shown(&mut self, snapshot: &Snapshot) -> Option<BTreeMap<String, u64>> {
        let bytes = self.io.new_input(snapshot.manifest_list()).ok()?.read().await.ok()?;
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2).ok()?;
        let mut data: BTreeMap<String, (i64, u64, RoaringTreemap)> = BTreeMap::new();
        let mut deletes = vec![];
        for named in list.consume_entries() {
            for file in self.manifest(&named).await?.iter() {
                if file.deletes {
                    deletes.push((file.sequence, file.location.clone()));
                } else {
                    let (sequence, records, _) = data.entry(file.location.clone()).or_insert((file.sequence, 0, RoaringTreemap::new()));
                    (*sequence, *records) = ((*sequence).min(file.sequence), *records + file.records);
                }
            }
        }
        for (sequence, location) in deletes {
            for (target, positions) in self.positions(&location).await?.iter() {
                // A delete file reaches only data that is not younger.
                if let Some((_, _, deleted)) = data.get_mut(target).filter(|(written, _, _)| *written <= sequence) {
                    *deleted |= positions;
                }
            }
        }
        Some(data.into_iter().map(|(f, (_, records, deleted))| (f, records.saturating_sub(deleted.len()))).collect())
    }

    async fn manifest(&mut self, named: &ManifestFile) -> Option<Arc<Vec<File>>> {
        if let Some(known) = self.manifests.get(&named.manifest_path) {
            return Some(known.clone());
        }
        let bytes = self.io.new_input(&named.manifest_path).ok()?.read().await.ok()?;
        let manifest = Manifest::parse_avro(&bytes).ok()?;
        let mut files = vec![];
        for entry in manifest.entries().iter().filter(|e| e.is_alive()) {
            let file = entry.data_file();
            let deletes = match (file.content_type(), file.file_format()) {
                (DataContentType::Data, _) => false,
                (DataContentType::PositionDeletes, DataFileFormat::Parquet) => true,
                _ => return None,
            };
            let sequence = entry.sequence_number().unwrap_or(named.sequence_number);
            files.push(File { location: file.file_path().to_string(), sequence, records: file.record_count(), deletes });
        }
        let files = Arc::new(files);
        self.manifests.insert(named.manifest_path.clone(), files.clone());
        Some(files)
    }

    async fn positions(&mut self, location: &str) -> Option<Arc<BTreeMap<String, RoaringTreemap>>> {
        if let Some(known) = self.positions.get(location) {
            return Some(known.clone());
        }
        let bytes = footer::object(self.lake, self.root.relative(location)?).await.ok()??;
        let positions = Arc::new(footer::positions(bytes).ok()?);
        self.positions.insert(location.to_string(), positions.clone());
        Some(positions)
    }
}
