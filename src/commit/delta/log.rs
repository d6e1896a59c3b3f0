//! `_delta_log` read: commits and checkpoints folded into the table's state.
//!
//! File paths are kept as the log writes them (percent-encoded): a remove must name its add byte
//! for byte, and only the way to the store decodes them.

use super::vector::DeletionVector;
use crate::commit::{ANOTHER_NAME, CommitError};
use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, path::Path};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A data file as the log adds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Add {
    /// Relative to the table's folder, percent-encoded.
    pub path: String,
    #[serde(default)]
    pub partition_values: BTreeMap<String, Option<String>>,
    pub size: i64,
    #[serde(default)]
    pub modification_time: i64,
    #[serde(default)]
    pub data_change: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_vector: Option<DeletionVector>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remove {
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<i64>,
    #[serde(default)]
    pub data_change: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_file_metadata: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_values: Option<BTreeMap<String, Option<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_vector: Option<DeletionVector>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Txn {
    pub app_id: String,
    pub version: i64,
}

/// One line of a commit, or one row of a checkpoint. Actions that we do not know are ignored, as
/// the protocol asks: what matters is announced by a table feature.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_info: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txn: Option<Txn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<Remove>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<Add>,
}

/// Which commit a version is, as far as provenance goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Origin {
    pub version: u64,
    /// Log uuid and entry, where millpond wrote it.
    pub ours: Option<(String, u64)>,
    /// A RESTORE, and the version it went to where it says.
    pub restore: Option<Option<u64>>,
}

impl Origin {
    fn of(version: u64, info: Option<&Value>) -> Self {
        let Some(info) = info else { return Self { version, ours: None, restore: None } };
        let ours = match (info[super::INFO_LOG].as_str(), info[super::INFO_ENTRY].as_u64()) {
            (Some(log), Some(entry)) => Some((log.to_string(), entry)),
            _ => None,
        };
        let restore = info["operation"].as_str().is_some_and(|op| op.eq_ignore_ascii_case("restore")).then(|| {
            let to = &info["operationParameters"]["version"];
            to.as_u64().or_else(|| to.as_str().and_then(|t| t.trim_matches('"').parse().ok()))
        });
        Self { version, ours, restore }
    }
}

/// Whether the newest state descends from the first of these commits (ours), RESTOREs followed: one
/// that went below it lost it, one that went back up to where it was found it again.
pub(crate) fn holds_first(origins: &[Origin]) -> bool {
    let Some(first) = origins.first() else { return false };
    let mut sound: Vec<bool> = Vec::with_capacity(origins.len());
    for (i, origin) in origins.iter().enumerate() {
        let now = match &origin.restore {
            _ if i == 0 => true,
            None => sound[i - 1],
            Some(Some(to)) if *to >= first.version && *to < origin.version => sound[(to - first.version) as usize],
            Some(_) => false,
        };
        sound.push(now);
    }
    sound.last().copied().unwrap_or(false)
}

/// The table at one version.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub version: u64,
    /// Of the version's commit file, where the store tells: a recreated table has another.
    pub etag: Option<String>,
    pub protocol: Value,
    pub metadata: Value,
    pub txns: BTreeMap<String, i64>,
    /// By path and deletion vector: that pair is what a remove names.
    pub files: BTreeMap<(String, String), Add>,
    pub checkpoint: Option<u64>,
    /// Contiguous, from our newest commit (as far as the log still tells) to the newest version.
    pub origins: Vec<Origin>,
    /// Offsets of our newest commit.
    pub offsets: Value,
    /// The highest field id of our columns with our newest commit; one of an older version does not say it.
    pub last_column: Option<i32>,
}

impl State {
    pub fn table_uuid(&self) -> &str {
        self.metadata["id"].as_str().unwrap_or_default()
    }

    pub fn config(&self, key: &str) -> Option<&str> {
        self.metadata["configuration"][key].as_str()
    }

    pub fn partition_columns(&self) -> Vec<String> {
        let columns = self.metadata["partitionColumns"].as_array();
        columns.map(|a| a.iter().filter_map(|c| c.as_str().map(String::from)).collect()).unwrap_or_default()
    }

    /// What our newest commit says.
    fn told(&mut self, info: Option<&Value>) {
        self.offsets = info.map(|i| i[super::INFO_OFFSETS].clone()).unwrap_or_default();
        self.last_column = info.and_then(|i| i[super::INFO_LAST_COLUMN].as_i64()).and_then(|id| i32::try_from(id).ok());
    }

    fn apply(&mut self, line: Line) {
        if let Some(protocol) = line.protocol {
            self.protocol = protocol;
        }
        if let Some(metadata) = line.meta_data {
            self.metadata = metadata;
        }
        if let Some(txn) = line.txn {
            self.txns.insert(txn.app_id, txn.version);
        }
        if let Some(remove) = line.remove {
            self.files.remove(&key(&remove.path, &remove.deletion_vector));
        }
        if let Some(add) = line.add {
            self.files.insert(key(&add.path, &add.deletion_vector), add);
        }
    }

    /// Applies the commit of the next version. Within a commit order means nothing: removes go first.
    pub fn apply_commit(&mut self, version: u64, bytes: &[u8], etag: Option<String>) -> Result<(), CommitError> {
        let mut lines = parse(version, bytes)?;
        let info = lines.iter_mut().find_map(|l| l.commit_info.take());
        let origin = Origin::of(version, info.as_ref());
        if origin.ours.is_some() {
            self.origins.clear();
            self.told(info.as_ref());
        }
        self.origins.push(origin);
        let (adds, others): (Vec<_>, Vec<_>) = lines.into_iter().partition(|l| l.add.is_some());
        others.into_iter().chain(adds).for_each(|l| self.apply(l));
        (self.version, self.etag) = (version, etag);
        Ok(())
    }
}

fn key(path: &str, vector: &Option<DeletionVector>) -> (String, String) {
    (path.to_string(), vector.as_ref().map(DeletionVector::id).unwrap_or_default())
}

/// The lines of a commit file.
pub(super) fn parse(version: u64, bytes: &[u8]) -> Result<Vec<Line>, CommitError> {
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.iter().all(u8::is_ascii_whitespace));
    lines
        .map(|l| serde_json::from_slice(l))
        .collect::<Result<_, _>>()
        .map_err(|e| CommitError::Refused(format!("commit {version} of the delta log is not readable: {e}; restore the file from a copy")))
}

pub(super) fn commit_path(version: u64) -> Path {
    Path::from(format!("_delta_log/{version:020}.json"))
}

/// Names of a log, as listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub commits: BTreeMap<u64, ObjectMeta>,
    /// Complete checkpoints only, with all their parts in order.
    pub checkpoints: BTreeMap<u64, Vec<ObjectMeta>>,
    /// Checkpoints of the v2 kind, which are named by a uuid.
    pub v2_checkpoints: BTreeSet<u64>,
    /// Everything that belongs to a version, `.crc` files included.
    pub all: Vec<(u64, ObjectMeta)>,
}

impl Listing {
    pub fn newest(&self) -> Option<u64> {
        self.commits.keys().next_back().copied().max(self.checkpoints.keys().next_back().copied())
    }
}

/// Lists the log: all of it, or from the commit file of this version on (inclusive).
pub(super) async fn list(store: &dyn ObjectStore, from: Option<u64>) -> Result<Listing, CommitError> {
    let folder = Path::from("_delta_log");
    let stream = match from {
        // Just below the commit's name, so that it is part of the answer.
        Some(version) => store.list_with_offset(Some(&folder), &Path::from(format!("_delta_log/{version:020}.js"))),
        None => store.list(Some(&folder)),
    };
    let metas: Vec<ObjectMeta> = stream.try_collect().await.map_err(|e| unavailable("list the delta log", e))?;
    let mut listing = Listing::default();
    let mut parts: BTreeMap<(u64, u64), Vec<(u64, ObjectMeta)>> = BTreeMap::new();
    for meta in metas {
        let name = meta.location.filename().unwrap_or_default();
        let in_folder = meta.location.parts().count() == 2;
        let Some((version, rest)) = name.split_once('.') else { continue };
        if !in_folder || version.len() != 20 {
            continue;
        }
        let Ok(version) = version.parse::<u64>() else { continue };
        let words: Vec<&str> = rest.split('.').collect();
        match words[..] {
            ["json"] => {
                listing.commits.insert(version, meta.clone());
            }
            ["checkpoint", "parquet"] => {
                parts.entry((version, 1)).or_default().push((1, meta.clone()));
            }
            ["checkpoint", part, of, "parquet"] => {
                if let (Ok(part), Ok(of)) = (part.parse(), of.parse()) {
                    parts.entry((version, of)).or_default().push((part, meta.clone()));
                }
            }
            ["checkpoint", _, "parquet" | "json"] => {
                listing.v2_checkpoints.insert(version);
            }
            ["crc"] => {}
            _ => continue,
        }
        listing.all.push((version, meta));
    }
    for ((version, of), mut found) in parts {
        found.sort_by_key(|(part, _)| *part);
        found.dedup_by_key(|(part, _)| *part);
        if found.len() as u64 == of {
            listing.checkpoints.insert(version, found.into_iter().map(|(_, m)| m).collect());
        }
    }
    Ok(listing)
}

/// Reads the newest state from nothing; `None` where there is no log. Provenance is followed back
/// to our newest commit, as far as the commits are still there.
pub(super) async fn read(store: &dyn ObjectStore) -> Result<Option<State>, CommitError> {
    // Someone's cleanup may take a file away between the listing and the read: list again then.
    for _ in 0..3 {
        let listing = list(store, None).await?;
        match read_listed(store, &listing).await {
            Err(Gone::Vanished) => continue,
            Err(Gone::Damaged(why)) => return Err(CommitError::Refused(why)),
            Err(Gone::Failed(e)) => return Err(e),
            Ok(state) => return Ok(state),
        }
    }
    Err(CommitError::Unavailable("the delta log changes faster than it can be read".into()))
}

enum Gone {
    Vanished,
    /// A checkpoint that cannot be read.
    Damaged(String),
    Failed(CommitError),
}

async fn read_listed(store: &dyn ObjectStore, listing: &Listing) -> Result<Option<State>, Gone> {
    let Some(newest) = listing.newest() else {
        if listing.v2_checkpoints.is_empty() {
            return Ok(None);
        }
        return Err(Gone::Failed(CommitError::Refused("the delta log holds only v2 checkpoints (table feature `v2Checkpoint`), which millpond does not read".into())));
    };
    let reaches = |from: u64| (from..=newest).all(|v| listing.commits.contains_key(&v));
    let mut starts: Vec<Option<u64>> = listing.checkpoints.keys().rev().copied().filter(|c| reaches(c + 1)).map(Some).collect();
    if reaches(0) {
        starts.push(None);
    }
    if starts.is_empty() {
        let missing = (0..=newest).rev().find(|v| !listing.commits.contains_key(v)).unwrap_or(0);
        return Err(Gone::Failed(CommitError::Refused(format!(
            "the delta log has a gap: commit {missing} is missing below version {newest} and no checkpoint covers it; restore the file from a copy, \
             or {ANOTHER_NAME}"
        ))));
    }
    // A checkpoint only spares reading: where it is damaged, an older one or the commits say the same.
    let mut damaged = None;
    for checkpoint in starts {
        match read_from(store, listing, newest, checkpoint).await {
            Err(Gone::Damaged(why)) => damaged = damaged.or(Some(why)),
            done => return done.map(Some),
        }
    }
    Err(Gone::Failed(CommitError::Refused(damaged.unwrap_or_default())))
}

/// The newest state, read from this checkpoint on, or from version 0.
async fn read_from(store: &dyn ObjectStore, listing: &Listing, newest: u64, checkpoint: Option<u64>) -> Result<State, Gone> {
    let mut state = State {
        version: checkpoint.unwrap_or(0),
        etag: None,
        protocol: Value::Null,
        metadata: Value::Null,
        txns: BTreeMap::new(),
        files: BTreeMap::new(),
        checkpoint,
        origins: Vec::new(),
        offsets: Value::Null,
        last_column: None,
    };
    if let Some(version) = checkpoint {
        for part in &listing.checkpoints[&version] {
            let (bytes, _) = get(store, &part.location).await?;
            let lines = checkpoint_lines(bytes, &STATE).map_err(|e| {
                Gone::Damaged(format!("checkpoint {} of the delta log is damaged ({e}), and the commits that it stands for are gone; restore it from a copy", part.location))
            })?;
            lines.into_iter().for_each(|l| state.apply(l));
        }
    }
    let first = checkpoint.map_or(0, |c| c + 1);
    for version in first..=newest {
        let (bytes, etag) = get(store, &listing.commits[&version].location).await?;
        state.apply_commit(version, &bytes, etag).map_err(Gone::Failed)?;
    }
    if newest < first {
        state.etag = listing.commits.get(&newest).and_then(|m| m.e_tag.clone());
    }
    // Provenance below the checkpoint, as far as the commits are still there.
    if state.origins.first().is_none_or(|o| o.ours.is_none()) {
        for version in (0..first).rev() {
            let Some(meta) = listing.commits.get(&version) else { break };
            let (bytes, _) = get(store, &meta.location).await?;
            let info = parse(version, &bytes).map_err(Gone::Failed)?.into_iter().find_map(|l| l.commit_info);
            let origin = Origin::of(version, info.as_ref());
            let done = origin.ours.is_some();
            state.origins.insert(0, origin);
            if done {
                state.told(info.as_ref());
                break;
            }
        }
    }
    if state.metadata.is_null() || state.protocol.is_null() {
        return Err(Gone::Failed(CommitError::Refused(format!("the delta log has no metadata or no protocol at version {newest}: the table is damaged"))));
    }
    Ok(state)
}

async fn get(store: &dyn ObjectStore, path: &Path) -> Result<(Bytes, Option<String>), Gone> {
    let failed = |e: object_store::Error| match e {
        object_store::Error::NotFound { .. } => Gone::Vanished,
        e => Gone::Failed(unavailable("read the delta log", e)),
    };
    let answer = store.get(path).await.map_err(failed)?;
    let etag = answer.meta.e_tag.clone();
    Ok((answer.bytes().await.map_err(failed)?, etag))
}

/// Every remove that the log still tells of, up to this version: those that the newest checkpoint at or below it
/// has kept, and those of the commits after that.
pub(super) async fn removes(store: &dyn ObjectStore, version: u64, mut each: impl FnMut(Remove)) -> Result<(), CommitError> {
    let vanished = || CommitError::Unavailable("a file of the delta log went away while its removes were read".into());
    let failed = |gone: Gone| match gone {
        Gone::Vanished => vanished(),
        Gone::Failed(e) => e,
        Gone::Damaged(why) => CommitError::Refused(why),
    };
    let listing = list(store, None).await?;
    let checkpoint = listing.checkpoints.range(..=version).next_back();
    for part in checkpoint.into_iter().flat_map(|(_, parts)| parts) {
        let (bytes, _) = get(store, &part.location).await.map_err(failed)?;
        let lines = checkpoint_lines(bytes, &["remove"]).map_err(|e| CommitError::Refused(format!("checkpoint {} of the delta log is not readable: {e}", part.location)))?;
        lines.into_iter().filter_map(|l| l.remove).for_each(&mut each);
    }
    for at in checkpoint.map_or(0, |(v, _)| v + 1)..=version {
        let meta = listing.commits.get(&at).ok_or_else(vanished)?;
        let (bytes, _) = get(store, &meta.location).await.map_err(failed)?;
        parse(at, &bytes)?.into_iter().filter_map(|l| l.remove).for_each(&mut each);
    }
    Ok(())
}

/// What a writer needs of a checkpoint.
const STATE: [&str; 4] = ["add", "txn", "metaData", "protocol"];

/// The rows of a checkpoint that hold one of these actions, as lines: the same reader serves both.
fn checkpoint_lines(bytes: Bytes, wanted: &[&str]) -> Result<Vec<Line>, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let roots = builder.parquet_schema().root_schema().get_fields();
    let roots: Vec<usize> = roots.iter().enumerate().filter(|(_, f)| wanted.contains(&f.name())).map(|(i, _)| i).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let mut lines = Vec::new();
    for batch in builder.with_projection(mask).build().map_err(|e| e.to_string())? {
        let mut writer = LineDelimitedWriter::new(Vec::new());
        writer.write(&batch.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        writer.finish().map_err(|e| e.to_string())?;
        for line in writer.into_inner().split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            lines.push(serde_json::from_slice(line).map_err(|e| e.to_string())?);
        }
    }
    Ok(lines)
}

pub(super) fn unavailable(what: &str, e: object_store::Error) -> CommitError {
    CommitError::Unavailable(format!("could not {what}: {e}"))
}

/// A path as a log writes it: everything but unreserved characters, `/` and `=` percent-encoded.
pub(super) fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'=' => out.push(b as char),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// The object path of a log's path; refuses what lies outside the table's folder.
pub(super) fn object_path(path: &str) -> Result<Path, CommitError> {
    let refuse = |why: &str| CommitError::Refused(format!("data file `{path}` {why}: millpond reads only files below the table's folder"));
    if path.starts_with('/') || path.contains("://") {
        return Err(refuse("has an absolute path (a shallow clone?)"));
    }
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = path.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[i], hex) {
            (b'%', Some(value)) => {
                out.push(value);
                i += 3;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    let text = String::from_utf8(out).map_err(|_| refuse("does not decode to utf-8"))?;
    Path::parse(text).map_err(|e| refuse(&format!("is no object path ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn origin(version: u64, info: Value) -> Origin {
        Origin::of(version, Some(&info))
    }

    #[test]
    fn a_restore_below_our_commit_loses_it_and_one_forward_finds_it() {
        let ours = origin(4, json!({"millpond.log": "L", "millpond.entry": 9}));
        let optimize = |v| origin(v, json!({"operation": "OPTIMIZE"}));
        let restore = |v, to: Value| origin(v, json!({"operation": "RESTORE", "operationParameters": {"version": to}}));
        assert!(holds_first(&[ours.clone(), optimize(5)]));
        assert!(!holds_first(&[ours.clone(), restore(5, json!(3))]));
        assert!(!holds_first(&[ours.clone(), restore(5, json!("3")), optimize(6)]));
        assert!(holds_first(&[ours.clone(), restore(5, json!(3)), restore(6, json!("4"))]), "forward again");
        assert!(!holds_first(&[ours.clone(), restore(5, json!(2)), restore(6, json!(5))]), "to the rolled back version");
        assert!(!holds_first(&[ours.clone(), restore(5, Value::Null)]), "by timestamp: nobody knows where to");
        assert!(!holds_first(&[]));
    }

    #[test]
    fn paths_go_through_the_log_and_back() {
        for p in ["part-1.parquet", "a=b c/x%20y.parquet", "t=10:00/ü#?.parquet"] {
            let encoded = encode_path(p);
            assert!(!encoded.contains([' ', ':', '#', '?']));
            assert_eq!(object_path(&encoded).unwrap().as_ref(), p);
        }
        assert!(object_path("s3://b/x.parquet").is_err());
        assert!(object_path("../x.parquet").is_err());
        assert!(object_path("a/%2E%2E/%2E%2E/x.parquet").is_err());
    }
}
