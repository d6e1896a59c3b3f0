//! What may be deleted (I4): who still names a file, told without the code that cleans.
//!
//! Kept up to date with every commit of every table, and asked at every delete of anybody, so that what is
//! wrong shows at once, whether somebody misses the file later or not.

use super::world::{LAKE_URL, PIPELINE, World};
use crate::epoch::entry::Body;
use crate::pipeline::TableFormatKind;
use crate::stage::names::{self, Owner};
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use iceberg::spec::{DataContentType, FormatVersion, Manifest, ManifestEntry, ManifestList, ManifestStatus, TableMetadata};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A table as its newest version is.
#[derive(Debug, Default)]
struct Table {
    /// Its newest metadata file, where that was not read yet.
    unread: Option<String>,
    /// The entry that it is stamped with.
    stamp: u64,
    /// The number of its metadata file, in Iceberg; in Delta that of its newest commit.
    version: u64,
    /// Metadata files that the newest one names, itself included; in Delta every file that was ever added: removed
    /// ones are kept for days for those who read older versions, and a simulation does not last so long.
    own: BTreeSet<Path>,
    /// By retained snapshot: its list, manifests and files.
    snapshots: Vec<Arc<BTreeSet<Path>>>,
    /// The rows that its newest version has.
    rows: i64,
    /// In Delta, those of each file.
    rows_of: BTreeMap<Path, i64>,
    /// In Delta, how each live file was added, and what the table asks of its readers and writers.
    adds: BTreeMap<Path, serde_json::Value>,
    protocol: serde_json::Value,
    /// In Delta, by file, what took it out of the table.
    removed: BTreeMap<Path, Removal>,
    /// In Delta, for how long a removed file is kept, and the log below a checkpoint.
    removed_kept_ms: i64,
    log_kept_ms: i64,
    /// Metadata files that were the table's once.
    past: BTreeSet<Path>,
}

/// What took a file out of a Delta table.
#[derive(Debug, Clone, Copy)]
struct Removal {
    version: u64,
    at_ms: i64,
}

/// What a worker does to keep a table small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Upkeep {
    /// A snapshot of an Iceberg table is expired: its manifest list is deleted.
    SnapshotExpired,
    /// A manifest that only expired snapshots named is deleted.
    ManifestDeleted,
    /// Manifests are merged into one.
    ManifestsMerged,
    /// A metadata file that fell off the log of them is deleted.
    MetadataDropped,
    /// A file of rows or deletes that only expired snapshots named is deleted.
    ExpiredFileDeleted,
    DeltaCheckpoint,
    /// A commit below a checkpoint is deleted.
    DeltaCommitDeleted,
    DeltaCheckpointDeleted,
    /// A file that a commit removed is deleted.
    RemovedFileDeleted,
}

impl Upkeep {
    pub const ALL: [Self; 9] = [
        Self::SnapshotExpired,
        Self::ManifestDeleted,
        Self::ManifestsMerged,
        Self::MetadataDropped,
        Self::ExpiredFileDeleted,
        Self::DeltaCheckpoint,
        Self::DeltaCommitDeleted,
        Self::DeltaCheckpointDeleted,
        Self::RemovedFileDeleted,
    ];
}

/// Days that removed files of a Delta table are kept which says nothing of it.
const REMOVED_KEPT_MS: i64 = 7 * 86_400_000;
/// What Millpond sets where nothing else is said.
const LOG_KEPT_MS: i64 = 3_600_000;

impl Table {
    fn names(&self, at: &Path) -> bool {
        self.own.contains(at) || self.snapshots.iter().any(|s| s.contains(at))
    }

    /// Whether this file was removed so long ago that nobody may count on it.
    fn is_over(&self, at: &Path, now_ms: i64) -> bool {
        !self.adds.contains_key(at) && self.removed.get(at).is_some_and(|by| by.at_ms <= now_ms.saturating_sub(self.removed_kept_ms))
    }
}

#[derive(Debug, Default)]
pub struct References {
    tables: BTreeMap<(TableFormatKind, String), Table>,
    /// What immutable files name, by their path: manifest lists with all below them, and manifests.
    lists: BTreeMap<Path, (Arc<BTreeSet<Path>>, i64)>,
    manifests: BTreeMap<Path, (BTreeSet<Path>, i64)>,
}

fn inside(location: &str) -> Path {
    Path::from(location.trim_start_matches(LAKE_URL))
}

/// The simulated store answers at once.
pub fn read(world: &World, at: &Path) -> Result<Bytes, String> {
    let got = world.objects.get(at).now_or_never().ok_or("the store does not answer at once")?.map_err(|e| format!("I4: {at} cannot be read: {e}"))?;
    got.bytes().now_or_never().ok_or("the store does not answer at once")?.map_err(|e| e.to_string())
}

fn there(world: &World, at: &Path) -> Result<(), String> {
    read(world, at).map(drop).map_err(|_| format!("I4: a commit names {at}, which is not there"))
}

impl References {
    /// A Delta table has a new version.
    pub fn delta(&mut self, world: &World, table: &str, version: u64, commit: &Bytes) -> Result<(), String> {
        let of = self.tables.entry((TableFormatKind::Delta, table.to_string())).or_default();
        of.version = version;
        let mut added = vec![];
        for line in commit.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let action: serde_json::Value = serde_json::from_slice(line).map_err(|e| format!("what was committed to delta table {table} is no action: {e}"))?;
            if let Some(path) = action["add"]["path"].as_str() {
                // No name in the simulation needs to be encoded.
                let at = Path::from(format!("delta/{PIPELINE}/{table}/{path}"));
                there(world, &at)?;
                let stats: serde_json::Value = action["add"]["stats"].as_str().and_then(|s| serde_json::from_str(s).ok()).unwrap_or_default();
                let rows = stats["numRecords"].as_i64().ok_or_else(|| format!("I2: {at} was added to delta table {table} without its number of rows"))?;
                let deleted = action["add"]["deletionVector"]["cardinality"].as_i64().unwrap_or(0);
                added.push((at.clone(), rows - deleted, action["add"].clone()));
                of.own.insert(at);
            }
            if let Some(path) = action["remove"]["path"].as_str() {
                let at = Path::from(format!("delta/{PIPELINE}/{table}/{path}"));
                of.rows_of.remove(&at);
                of.adds.remove(&at);
                of.removed.insert(at, Removal { version, at_ms: action["remove"]["deletionTimestamp"].as_i64().unwrap_or(i64::MAX) });
            }
            if let Some(configuration) = action["metaData"]["configuration"].as_object() {
                // The files of the simulation say it in milliseconds.
                let interval = |name: &str| configuration.get(name)?.as_str()?.strip_prefix("interval ")?.strip_suffix(" milliseconds")?.parse().ok();
                of.removed_kept_ms = interval("delta.deletedFileRetentionDuration").unwrap_or(REMOVED_KEPT_MS);
                of.log_kept_ms = interval("delta.logRetentionDuration").unwrap_or(LOG_KEPT_MS);
            }
            if action["protocol"].is_object() {
                of.protocol = action["protocol"].clone();
            }
            if let Some(entry) = action["txn"]["version"].as_u64() {
                of.stamp = entry;
            }
        }
        // A file that gets other deletes is removed and added in one commit.
        for (at, rows, add) in added {
            of.rows_of.insert(at.clone(), rows);
            of.adds.insert(at, add);
        }
        of.rows = of.rows_of.values().sum();
        Ok(())
    }

    /// A table is gone for good.
    pub fn forget(&mut self, table: &str, kind: TableFormatKind) {
        self.tables.remove(&(kind, table.to_string()));
    }

    /// The newest version of a Delta table.
    pub fn version(&self, table: &str) -> Option<u64> {
        self.tables.get(&(TableFormatKind::Delta, table.to_string())).map(|t| t.version)
    }

    /// How this file of a Delta table was added, and the table's protocol.
    pub fn added(&self, table: &str, file: &Path) -> Option<(serde_json::Value, serde_json::Value)> {
        let of = self.tables.get(&(TableFormatKind::Delta, table.to_string()))?;
        Some((of.adds.get(file)?.clone(), of.protocol.clone()))
    }

    /// The files that commits removed from a Delta table: they may be vacuumed, and are forgotten here.
    pub fn removed(&mut self, table: &str) -> Vec<Path> {
        let Some(of) = self.tables.get_mut(&(TableFormatKind::Delta, table.to_string())) else { return vec![] };
        let removed: Vec<Path> = of.own.iter().filter(|at| !of.adds.contains_key(at)).cloned().collect();
        of.own.retain(|at| of.adds.contains_key(at));
        removed
    }

    /// A checkpoint of this version does not name removed files any more: for who wrote it, their retention is over.
    pub fn forgot_removed(&mut self, table: &str, version: u64) {
        let Some(of) = self.tables.get_mut(&(TableFormatKind::Delta, table.to_string())) else { return };
        of.own.retain(|at| of.adds.contains_key(at) || of.removed.get(at).is_none_or(|by| by.version > version));
    }

    /// The files that only snapshots named which are not among the retained ones any more.
    pub fn expired(&self, table: &str, before: &BTreeSet<Path>) -> Vec<Path> {
        let retained = self.retained(table);
        before.difference(&retained).cloned().collect()
    }

    /// The files that the retained snapshots of an Iceberg table name.
    pub fn retained(&self, table: &str) -> BTreeSet<Path> {
        let of = self.tables.get(&(TableFormatKind::Iceberg, table.to_string()));
        of.into_iter().flat_map(|t| &t.snapshots).flat_map(|s| s.iter().cloned()).collect()
    }

    /// A Delta table was put back: its versions are those that its log holds now, with what landed behind them while it
    /// was away.
    pub fn delta_anew(&mut self, world: &World, table: &str) -> Result<(), String> {
        // Its first versions may have been deleted below a checkpoint.
        let next = self.version(table).map_or(0, |newest| newest + 1);
        let versions = (next..).map(|v: u64| (v, Path::from(format!("delta/{PIPELINE}/{table}/_delta_log/{v:020}.json"))));
        for (version, commit) in versions.map_while(|(v, at)| Some((v, read(world, &at).ok()?))) {
            self.delta(world, table, version, &commit)?;
        }
        Ok(())
    }

    /// The entry that a table is stamped with, and how many rows it has.
    pub fn count(&mut self, world: &World, table: &str, kind: TableFormatKind) -> Result<Option<(u64, i64)>, String> {
        if kind == TableFormatKind::Iceberg {
            self.read_on(world, table)?;
        }
        Ok(self.tables.get(&(kind, table.to_string())).map(|t| (t.stamp, t.rows)))
    }

    /// An Iceberg table's metadata is this file from now on.
    pub fn iceberg(&mut self, world: &World, table: &str, location: &str) -> Result<(), String> {
        self.tables.entry((TableFormatKind::Iceberg, table.to_string())).or_default().unread = Some(location.to_string());
        self.read_on(world, table)
    }

    fn read_on(&mut self, world: &World, table: &str) -> Result<(), String> {
        let unread = self.tables.get_mut(&(TableFormatKind::Iceberg, table.to_string())).and_then(|t| t.unread.take());
        let Some(at) = unread.map(|location| inside(&location)) else { return Ok(()) };
        let metadata: TableMetadata = serde_json::from_slice(&read(world, &at)?).map_err(|e| format!("{at} is no metadata: {e}"))?;
        let mut snapshots = vec![];
        for snapshot in metadata.snapshots() {
            let list = inside(snapshot.manifest_list());
            if !self.lists.contains_key(&list) {
                let (below, rows) = self.below(world, &list)?;
                self.lists.insert(list.clone(), (Arc::new(below), rows));
            }
            snapshots.push(self.lists[&list].0.clone());
        }
        let keep = metadata.properties().get("history.expire.min-snapshots-to-keep").and_then(|k| k.parse::<usize>().ok());
        let before = self.tables.get(&(TableFormatKind::Iceberg, table.to_string())).map_or(0, |t| t.snapshots.len());
        if let Some(keep) = keep.filter(|_| world.author(&at).is_some())
            && !(before.min(keep)..=before.max(keep + keep / 2)).contains(&snapshots.len())
        {
            return Err(format!("I8: {at} holds {} snapshots after {before}, and is to keep {keep}", snapshots.len()));
        }
        let newest = metadata.current_snapshot().map(|s| self.lists[&inside(s.manifest_list())].1);
        let of = self.tables.entry((TableFormatKind::Iceberg, table.to_string())).or_default();
        of.past.insert(at.clone());
        of.own = metadata.metadata_log().iter().map(|m| inside(&m.metadata_file)).chain([at.clone()]).collect();
        of.version = match at.filename().and_then(names::owner) {
            Some(Owner::Metadata(version)) => version,
            _ => return Err(format!("{at} is not named as a metadata file")),
        };
        of.stamp = metadata.properties().get("millpond.entry").and_then(|e| e.parse().ok()).ok_or_else(|| format!("iceberg table {table} has lost its stamp"))?;
        of.snapshots = snapshots;
        of.rows = newest.unwrap_or(0);
        Ok(())
    }

    fn below(&mut self, world: &World, list: &Path) -> Result<(BTreeSet<Path>, i64), String> {
        let damaged = |at: &Path, e: iceberg::Error| format!("{at} cannot be read: {e}");
        let manifests = ManifestList::parse_with_version(&read(world, list)?, FormatVersion::V2).map_err(|e| damaged(list, e))?;
        let (mut all, mut rows) = (BTreeSet::from([list.clone()]), 0);
        for manifest in manifests.consume_entries() {
            let at = inside(&manifest.manifest_path);
            if !self.manifests.contains_key(&at) {
                let parsed = Manifest::parse_avro(&read(world, &at)?).map_err(|e| damaged(&at, e))?;
                let files: BTreeSet<Path> = parsed.entries().iter().filter(|e| e.is_alive()).map(|e| inside(e.file_path())).collect();
                files.iter().try_for_each(|file| there(world, file))?;
                // A row is deleted at most once: what we and others write holds no position twice.
                let signed = |e: &Arc<ManifestEntry>| e.record_count() as i64 * if e.content_type() == DataContentType::Data { 1 } else { -1 };
                let counted = parsed.entries().iter().filter(|e| e.is_alive()).map(signed).sum();
                // Others write their manifests anew.
                if parsed.entries().iter().any(|e| e.status() == ManifestStatus::Existing) {
                    world.did(Upkeep::ManifestsMerged);
                }
                self.manifests.insert(at.clone(), (files, counted));
            }
            let (files, counted) = &self.manifests[&at];
            all.extend(files.iter().cloned());
            rows += counted;
            all.insert(at);
        }
        Ok((all, rows))
    }

    /// The table in whose folder this lies.
    fn table_of(&self, at: &Path) -> Option<&Table> {
        let mut parts = at.parts();
        let format = match parts.next()?.as_ref() {
            "iceberg" => TableFormatKind::Iceberg,
            "delta" => TableFormatKind::Delta,
            _ => return None,
        };
        self.tables.get(&(format, parts.nth(1)?.as_ref().to_string()))
    }

    /// Why this object may not be deleted now.
    pub fn objection(&mut self, world: &World, who: &str, at: &Path) -> Option<String> {
        let text = at.as_ref();
        if text.starts_with("iceberg/")
            && let Some(table) = at.parts().nth(2)
            && let Err(why) = self.read_on(world, table.as_ref())
        {
            return Some(why);
        }
        let state = format!("_millpond/{PIPELINE}");
        let decided = world.decided.lock().unwrap();
        if text.starts_with(&format!("{state}/history/")) {
            return None;
        }
        if text.starts_with(&format!("{state}/probe/")) {
            return world.author(at).is_some_and(|by| by != who).then(|| "another worker's start may race for it".into());
        }
        let name = at.filename().unwrap_or_default();
        if text.starts_with(&format!("{state}/log/")) {
            let seq: Option<u64> = name.strip_suffix(".json").and_then(|n| n.parse().ok());
            return (seq.is_none() || seq > decided.upto()).then(|| format!("the newest checkpoint is as of {:?}", decided.upto()));
        }
        let table = self.table_of(at);
        if table.is_some_and(|t| t.names(at) && !t.is_over(at, world.latest_shown(who))) {
            return Some("the table names it".into());
        }
        if let Some((folder, name)) = text.split_once("/_delta_log/") {
            let kept = table.map_or(i64::MAX, |t| t.log_kept_ms);
            return log_objection(world, folder, name, world.latest_shown(who).saturating_sub(kept));
        }
        // Whoever wrote it may know that what it was for was refused.
        let another = world.author(at).is_none_or(|by| by != who);
        match names::owner(name)? {
            Owner::Attempt(of) => match decided.entry_of(of) {
                None if decided.condemned.contains(&of) => None,
                None => Some("its attempt may still be decided: it is not condemned".into()),
                Some(_) if text.ends_with(".run") => decided.names_run(text).then(|| "a fold from the newest checkpoint needs it".into()),
                Some(seq) => table.is_none_or(|t| t.stamp < seq).then(|| format!("entry {seq} names it, and the table is at {:?}", table.map(|t| t.stamp))),
            },
            Owner::Stamp(from) => (another && table.is_none_or(|t| t.stamp <= from)).then(|| format!("the table is still at {:?}", table.map(|t| t.stamp))),
            Owner::Metadata(version) => (another && table.is_none_or(|t| t.version < version)).then(|| "a swap to it may be under way".into()),
        }
    }

    /// Whether it is upkeep of a table that a worker deletes this. What was never a table's is an orphan.
    pub fn upkeep(&self, at: &Path) -> Option<Upkeep> {
        let (table, name) = (self.table_of(at)?, at.filename()?);
        match at.as_ref().split_once("/_delta_log/") {
            Some(_) if name.ends_with(".json") => return Some(Upkeep::DeltaCommitDeleted),
            Some(_) => return name.ends_with(".checkpoint.parquet").then_some(Upkeep::DeltaCheckpointDeleted),
            None => {}
        }
        let expired = || self.lists.values().any(|(below, _)| below.contains(at)).then_some(Upkeep::ExpiredFileDeleted);
        match () {
            () if table.removed.contains_key(at) => Some(Upkeep::RemovedFileDeleted),
            () if table.past.contains(at) => Some(Upkeep::MetadataDropped),
            () if self.lists.contains_key(at) => Some(Upkeep::SnapshotExpired),
            () if self.manifests.contains_key(at) => Some(Upkeep::ManifestDeleted),
            () => expired(),
        }
    }

    /// What lies in the store, belongs to nobody, and could not have been needed for long.
    pub fn orphans(&self, world: &World, before_ms: i64) -> Vec<Path> {
        let all: Vec<ObjectMeta> = world.objects.list(None).try_collect().now_or_never().and_then(Result::ok).unwrap_or_default();
        let old = |at: &Path| world.modified_at(at).is_none_or(|ms| ms < before_ms);
        all.into_iter().map(|o| o.location).filter(|at| old(at) && self.is_orphan(world, at)).collect()
    }

    fn is_orphan(&self, world: &World, at: &Path) -> bool {
        let (Some(owner), table) = (at.filename().and_then(names::owner), self.table_of(at)) else { return false };
        let decided = world.decided.lock().unwrap();
        let named = table.is_some_and(|t| t.names(at));
        match owner {
            Owner::Attempt(of) => match decided.entry_of(of) {
                None => !named,
                Some(_) if at.as_ref().ends_with(".run") => !decided.names_run(at.as_ref()),
                Some(seq) => !named && Some(seq) <= decided.upto(),
            },
            Owner::Stamp(from) => !named && table.is_some_and(|t| t.stamp > from),
            Owner::Metadata(version) => !named && world.author(at).is_some() && table.is_some_and(|t| t.version >= version),
        }
    }
}

/// The version in the name of a Delta checkpoint.
pub fn checkpoint_version(name: &str) -> Option<u64> {
    name.strip_suffix(".checkpoint.parquet")?.parse().ok()
}

/// Why this file of a Delta log may not be deleted now: a version can be read for as long as the log is kept, and from the
/// newest checkpoint somebody may be about to read.
fn log_objection(world: &World, folder: &str, name: &str, before_ms: i64) -> Option<String> {
    let version: u64 = name.split_once('.').and_then(|(version, _)| version.parse().ok())?;
    let log: Vec<ObjectMeta> = world.objects.list(Some(&Path::from(format!("{folder}/_delta_log")))).try_collect().now_or_never()?.ok()?;
    let mut checkpoints: Vec<_> = log.iter().filter_map(|o| Some((checkpoint_version(o.location.filename()?)?, world.modified_at(&o.location)))).collect();
    checkpoints.sort_unstable();
    // What others wrote has no date here.
    let old = |at: Option<i64>| at.is_none_or(|at| at <= before_ms);
    let covered = checkpoints.iter().rev().skip(1).any(|(of, at)| *of > version && old(*at));
    (!covered).then(|| format!("no checkpoint above it but the newest was there at {before_ms}: {checkpoints:?}"))
}

impl super::check::Decided {
    /// Whether a run object is needed by who starts at the newest checkpoint.
    fn names_run(&self, object: &str) -> bool {
        let newest = self.entries.iter().rev().find_map(|e| if let Body::Checkpoint(c) = &e.body { Some(c) } else { None });
        let above = newest.map_or(0, |c| c.upto + 1) as usize;
        let later = self.entries.iter().skip(above).filter_map(|e| if let Body::Data(d) = &e.body { d.runs.as_ref() } else { None });
        newest.is_some_and(|c| c.ledger.runs.values().flatten().any(|r| r.object == object)) || later.into_iter().any(|r| r.path == object)
    }
}
