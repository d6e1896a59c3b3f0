//! A Delta table as its log shows it, read by the judge itself: checkpoint, commits, deletion vectors.

use super::bounds::Said;
use super::delta_protocol::{self, Hint};
use super::schema::Layout;
use super::structure::{Commit, TableState};
use super::{Finding, Lake, footer};
use crate::pipeline::TableFormatKind;
use crate::read::LiveFile;
use arrow::json::LineDelimitedWriter;
use futures::TryStreamExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use uuid::Uuid;

const KIND: TableFormatKind = TableFormatKind::Delta;

/// Commits and checkpoints that the log's folder holds.
#[derive(Default)]
struct Listing {
    commits: BTreeMap<u64, String>,
    checkpoints: BTreeMap<u64, Vec<String>>,
    /// Versions with a checkpoint of the v2 kind, which is named by a uuid.
    v2_checkpoints: BTreeSet<u64>,
    /// All that are named as the protocol says.
    all: Vec<String>,
}

/// What the actions add up to.
#[derive(Default)]
struct Snapshot {
    adds: BTreeMap<(String, String), Value>,
    metadata: Value,
    protocol: Value,
    txns: BTreeMap<String, u64>,
}

impl Snapshot {
    fn apply(&mut self, action: &Value) {
        let named = |a: &Value| (a["path"].as_str().unwrap_or_default().to_string(), vector_id(a).unwrap_or_default());
        if let Some(add) = action.get("add").filter(|a| !a.is_null()) {
            self.adds.insert(named(add), add.clone());
        }
        if let Some(remove) = action.get("remove").filter(|a| !a.is_null()) {
            self.adds.remove(&named(remove));
        }
        if let Some(metadata) = action.get("metaData").filter(|a| !a.is_null()) {
            self.metadata = metadata.clone();
        }
        if let Some(protocol) = action.get("protocol").filter(|a| !a.is_null()) {
            self.protocol = protocol.clone();
        }
        if let Some((app, version)) = action.get("txn").and_then(|t| Some((t["appId"].as_str()?.to_string(), t["version"].as_u64()?))) {
            self.txns.insert(app, version);
        }
    }
}

fn vector_id(action: &Value) -> Option<String> {
    let vector = action.get("deletionVector").filter(|v| !v.is_null())?;
    let at = vector["offset"].as_i64().map(|o| format!("@{o}")).unwrap_or_default();
    Some(format!("{}{}{at}", vector["storageType"].as_str()?, vector["pathOrInlineDv"].as_str()?))
}

/// The table, or what keeps it from being read.
pub async fn read(lake: &Lake, pipeline: &str, table: &str) -> Result<TableState, Finding> {
    let finding = |kind: &'static str, text: String| Finding::new(kind, text).of(table, KIND);
    let folder = format!("delta/{pipeline}/{table}");
    // Before the log, which has what it names by then.
    let hint = footer::object(lake, &format!("{folder}/_delta_log/_last_checkpoint")).await.map_err(|e| finding("table-unreadable", e))?;
    let listing = list(lake, &folder).await.map_err(|e| finding("table-unreadable", e))?;
    let newest = listing.commits.keys().next_back().max(listing.checkpoints.keys().next_back()).copied();
    let Some(newest) = newest else { return Err(finding("table-missing", format!("{folder} has no delta log"))) };
    let whole = |from: u64| (from..=newest).all(|v| listing.commits.contains_key(&v));
    let base = listing.checkpoints.keys().rev().copied().find(|c| whole(c + 1));
    if base.is_none() && !whole(0) {
        let missing = (0..=newest).rev().find(|v| !listing.commits.contains_key(v)).unwrap_or(0);
        return Err(finding("metadata-missing", format!("commit {missing} of its log is missing below version {newest}, and no checkpoint holds it")));
    }
    let mut snapshot = Snapshot::default();
    if let Some(base) = base {
        for part in &listing.checkpoints[&base] {
            let actions = checkpoint(lake, part).await.map_err(|e| finding("metadata-missing", format!("checkpoint {part}: {e}")))?;
            actions.iter().for_each(|a| snapshot.apply(a));
        }
    }
    let mut state = TableState::new(KIND, newest.to_string(), String::new());
    state.folder = folder.clone();
    state.referenced.extend(listing.all.iter().cloned());
    let mut provenance = Provenance { pipeline, table, folder: &folder, ..Provenance::default() };
    // Commits below the checkpoint tell where files came from, as far as they are still there.
    for (&version, path) in &listing.commits {
        let actions = commit(lake, path).await.map_err(|e| finding("metadata-missing", format!("commit {version}: {e}")))?;
        provenance.look(lake, &actions).await;
        provenance.commit(version, &actions, &mut state);
        if base.is_none_or(|b| version > b) {
            // Within a commit order means nothing.
            actions.iter().filter(|a| a.get("add").is_none()).for_each(|a| snapshot.apply(a));
            actions.iter().filter(|a| a.get("add").is_some()).for_each(|a| snapshot.apply(a));
        }
    }
    state.commits.reverse();
    state.all_commits = listing.commits.contains_key(&0);
    state.uuid = snapshot.metadata["id"].as_str().unwrap_or_default().to_string();
    match Layout::of_delta(&snapshot.metadata) {
        Ok(layout) => state.layout = Some(layout),
        Err(why) => state.findings.push(finding("schema", why)),
    }
    let vectors = snapshot.adds.values().any(|a| a.get("deletionVector").is_some_and(|v| !v.is_null()));
    let asked = delta_protocol::check(&snapshot.protocol, &snapshot.metadata, vectors);
    state.findings.extend(asked.into_iter().map(|(kind, text)| finding(kind, text)));
    let exists = |version: u64| listing.checkpoints.contains_key(&version) || listing.v2_checkpoints.contains(&version);
    match hint.map_or(Hint::Fine, |bytes| delta_protocol::hint(&bytes, newest, exists)) {
        Hint::Fine => {}
        Hint::Unreadable(why) => state.notes.push(format!("{why}: readers list the log instead")),
        Hint::Wrong(why) => state.findings.push(finding("last-checkpoint", why)),
    }
    stamp(&snapshot, &provenance, pipeline, table, &mut state);
    files(lake, &snapshot, &folder, table, &mut state).await;
    Ok(state)
}

async fn list(lake: &Lake, folder: &str) -> Result<Listing, String> {
    let prefix = Path::from(format!("{folder}/_delta_log"));
    let objects: Vec<_> = lake.store.list(Some(&prefix)).try_collect().await.map_err(|e| e.to_string())?;
    let mut listing = Listing::default();
    let mut parts: BTreeMap<(u64, usize), Vec<(usize, String)>> = BTreeMap::new();
    for object in objects {
        let path = object.location.to_string();
        let Some((version, rest)) = object.location.filename().and_then(|n| n.split_once('.')) else { continue };
        let Some(version) = Some(version).filter(|v| v.len() == 20).and_then(|v| v.parse::<u64>().ok()) else { continue };
        listing.all.push(path.clone());
        match rest.split('.').collect::<Vec<_>>()[..] {
            ["json"] => drop(listing.commits.insert(version, path)),
            ["checkpoint", "parquet"] => parts.entry((version, 1)).or_default().push((1, path)),
            ["checkpoint", _, "parquet" | "json"] => drop(listing.v2_checkpoints.insert(version)),
            ["checkpoint", part, of, "parquet"] => {
                if let (Ok(part), Ok(of)) = (part.parse(), of.parse()) {
                    parts.entry((version, of)).or_default().push((part, path));
                }
            }
            _ => {}
        }
    }
    for ((version, of), mut found) in parts {
        found.sort();
        if found.len() == of {
            listing.checkpoints.insert(version, found.into_iter().map(|(_, p)| p).collect());
        }
    }
    Ok(listing)
}

async fn commit(lake: &Lake, path: &str) -> Result<Vec<Value>, String> {
    let bytes = footer::object(lake, path).await?.ok_or_else(|| format!("{path} is gone"))?;
    let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty());
    lines.map(|l| serde_json::from_slice(l).map_err(|e| format!("{path} is not readable: {e}"))).collect()
}

async fn checkpoint(lake: &Lake, path: &str) -> Result<Vec<Value>, String> {
    let bytes = footer::object(lake, path).await?.ok_or_else(|| format!("{path} is gone"))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|b| b.build()).map_err(|e| e.to_string())?;
    let mut writer = LineDelimitedWriter::new(Vec::new());
    for batch in reader {
        writer.write(&batch.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    writer.finish().map_err(|e| e.to_string())?;
    let text = writer.into_inner();
    text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).map_err(|e| e.to_string())).collect()
}

/// Where rows and files came from.
#[derive(Default)]
struct Provenance<'a> {
    pipeline: &'a str,
    table: &'a str,
    folder: &'a str,
    /// Log and entry of the newest commit of ours, with its offsets.
    ours: Option<(String, u64, Value)>,
    id: Option<String>,
    /// Rows that readers see of every live file that a retained commit added, where that is known.
    rows: HashMap<String, Option<u64>>,
    /// Rows of files by their own footers, deleted ones included.
    looked: HashMap<String, u64>,
}

/// The actions of a kind.
fn of(actions: &[Value], kind: &str) -> Vec<Value> {
    actions.iter().filter_map(|a| a.get(kind).cloned()).filter(|a| !a.is_null()).collect()
}

fn info(actions: &[Value]) -> Value {
    of(actions, "commitInfo").into_iter().next().unwrap_or_default()
}

fn ours(info: &Value) -> Option<(&str, u64)> {
    info["millpond.log"].as_str().zip(info["millpond.entry"].as_u64())
}

fn changes_data(actions: &[Value]) -> bool {
    of(actions, "add").iter().chain(&of(actions, "remove")).any(|a| a["dataChange"].as_bool() != Some(false))
}

fn records(add: &Value) -> Option<u64> {
    add["stats"].as_str().and_then(|s| serde_json::from_str::<Value>(s).ok()).and_then(|s| s["numRecords"].as_u64())
}

impl Provenance<'_> {
    /// Of a compaction of others: files of which the log does not say how many rows they hold tell it themselves, as far as
    /// they are still there.
    async fn look(&mut self, lake: &Lake, actions: &[Value]) {
        if ours(&info(actions)).is_some() || changes_data(actions) {
            return;
        }
        let silent = of(actions, "add").into_iter().filter(|a| records(a).is_none());
        let unknown = of(actions, "remove").into_iter().filter(|r| r["path"].as_str().is_some_and(|p| self.rows.get(p).copied().flatten().is_none()));
        for action in silent.chain(unknown).collect::<Vec<_>>() {
            let Some((written, path)) = action["path"].as_str().and_then(|w| Some((w, format!("{}/{}", self.folder, decoded(w)?)))) else { continue };
            let Ok(Some(size)) = footer::size(lake, &path).await else { continue };
            let rows = footer::metadata(lake, &path, size).await.ok().and_then(|m| u64::try_from(m.file_metadata().num_rows()).ok());
            self.looked.extend(rows.map(|rows| (written.to_string(), rows)));
        }
    }

    /// Rows that readers see of a file, by an action that names it.
    fn shown(&self, action: &Value) -> Option<u64> {
        let all = records(action).or_else(|| self.looked.get(action["path"].as_str()?).copied())?;
        Some(all.saturating_sub(action["deletionVector"]["cardinality"].as_u64().unwrap_or(0)))
    }

    /// Rows that readers saw of what a commit takes away or names again. `whole`: every file that was there is known; otherwise
    /// what only adds may add what is there already.
    fn rows_out(&mut self, adds: &[Value], removes: &[Value], whole: bool) -> Option<u64> {
        let path = |a: &Value| a["path"].as_str().unwrap_or_default().to_string();
        let removed: Vec<Option<u64>> = removes.iter().map(|r| self.rows.remove(&path(r)).flatten().or_else(|| self.shown(r))).collect();
        let again: Vec<Option<u64>> = adds.iter().filter_map(|a| self.rows.get(&path(a)).copied()).collect();
        let known = whole || adds.is_empty() || !removes.is_empty();
        removed.into_iter().chain(again).sum::<Option<u64>>().filter(|_| known)
    }

    fn commit(&mut self, version: u64, actions: &[Value], state: &mut TableState) {
        let folder = self.folder;
        let (adds, removes) = (of(actions, "add"), of(actions, "remove"));
        let info = info(actions);
        let mut say = |kind: &'static str, text: String| state.findings.push(Finding::new(kind, text).of(self.table, KIND));
        for metadata in of(actions, "metaData") {
            let id = metadata["id"].as_str().unwrap_or_default().to_string();
            if let Some(known) = self.id.replace(id.clone()).filter(|known| *known != id) {
                say("table-uuid", format!("version {version} gives it the id {id}, and it had {known}: it was made anew in its place"));
            }
        }
        let ours = ours(&info);
        if ours.is_some() {
            let number = |key: &str| info["operationMetrics"][key].as_str().and_then(|v| v.parse::<u64>().ok());
            let rows = adds.iter().filter_map(records).sum::<u64>();
            for (key, found) in [("numAddedFiles", adds.len() as u64), ("numRemovedFiles", removes.len() as u64), ("numOutputRows", rows)] {
                if let Some(said) = number(key).filter(|said| *said != found) {
                    say("commit-counts", format!("version {version} says {key} = {said}, and its actions add up to {found}"));
                }
            }
        }
        let path = |a: &Value| a["path"].as_str().and_then(decoded).map(|p| format!("{folder}/{p}"));
        let whole = version == 0 || state.commits.first().is_some_and(|c| c.version == "0");
        let rows_out = self.rows_out(&adds, &removes, whole);
        let rows_in = adds.iter().map(|a| self.shown(a)).sum();
        let added: Vec<_> = adds.iter().filter_map(|a| Some((a["path"].as_str()?.to_string(), self.shown(a)))).collect();
        self.rows.extend(added);
        state.commits.push(Commit {
            version: version.to_string(),
            entry: ours.map(|(_, entry)| entry),
            operation: info["operation"].as_str().unwrap_or("unknown").to_string(),
            changes_data: changes_data(actions) || info["operation"].as_str().is_some_and(|o| o.eq_ignore_ascii_case("restore")),
            rows_in,
            rows_out,
            by: info["engineInfo"].as_str().or(info["clientVersion"].as_str()).map(str::to_string),
            removed: removes.iter().filter_map(path).collect(),
        });
        state.referenced.extend(adds.iter().chain(&removes).filter_map(path));
        if let Some((log, entry)) = ours {
            self.ours = Some((log.to_string(), entry, info["millpond.offsets"].clone()));
        }
    }
}

fn stamp(snapshot: &Snapshot, provenance: &Provenance<'_>, pipeline: &str, table: &str, state: &mut TableState) {
    let mut say = |kind: &'static str, text: String| state.findings.push(Finding::new(kind, text).of(table, KIND));
    let prefix = format!("millpond/{pipeline}/");
    let stamps: Vec<(Uuid, u64)> = snapshot.txns.iter().filter_map(|(app, v)| Some((app.strip_prefix(&prefix)?.parse().ok()?, *v))).collect();
    match stamps[..] {
        [] => say("stamp-missing", format!("no txn of pipeline {} is in it", provenance.pipeline)),
        [stamp] => {
            state.stamp = Some(stamp);
            match &provenance.ours {
                Some((log, entry, offsets)) => {
                    if (log.as_str(), *entry) != (stamp.0.to_string().as_str(), stamp.1) {
                        say("stamp-disagrees", format!("its txn says entry {} of log {}, and our newest commit in it entry {entry} of log {log}", stamp.1, stamp.0));
                    }
                    state.offsets = serde_json::from_value(offsets.clone()).ok();
                }
                None => state.unprovable.push("our newest commit is no longer in its delta log".into()),
            }
        }
        _ => say("stamp-log", format!("it carries the stamps of {} logs", stamps.len())),
    }
}

async fn files(lake: &Lake, snapshot: &Snapshot, folder: &str, table: &str, state: &mut TableState) {
    let mut paths = BTreeSet::new();
    for add in snapshot.adds.values() {
        let written = add["path"].as_str().unwrap_or_default();
        let Some(path) = decoded(written).map(|p| format!("{folder}/{p}")) else {
            state.findings.push(Finding::new("file-outside", format!("it names {written}, which is not in its folder")).of(table, KIND));
            continue;
        };
        state.referenced.insert(path.clone());
        if !paths.insert(path.clone()) {
            state.findings.push(Finding::new("file-twice", format!("data file {path} is in it twice: its rows count twice")).of(table, KIND));
        }
        let stats = add["stats"].as_str().and_then(|s| serde_json::from_str::<Value>(s).ok()).unwrap_or_default();
        let records = match stats["numRecords"].as_u64() {
            Some(records) => records,
            None => match footer::object(lake, &path).await.ok().flatten().and_then(|b| ParquetRecordBatchReaderBuilder::try_new(b).ok()) {
                Some(file) => file.metadata().file_metadata().num_rows() as u64,
                None => 0,
            },
        };
        let deleted = match add.get("deletionVector").filter(|v| !v.is_null()) {
            None => RoaringTreemap::new(),
            Some(vector) => match deletion_vector(lake, folder, vector, state).await {
                Ok(deleted) => deleted,
                Err(e) => {
                    state.findings.push(Finding::new("delete-file-missing", format!("the deletion vector of {path}: {e}: deleted rows are back")).of(table, KIND));
                    RoaringTreemap::new()
                }
            },
        };
        let values = add["partitionValues"].as_object().into_iter().flatten();
        let columns = snapshot.metadata["partitionColumns"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut partition_values: BTreeMap<String, Option<String>> = columns.map(|c| (c.to_string(), None)).collect();
        for (column, value) in values {
            partition_values.insert(column.clone(), value.as_str().filter(|v| !v.is_empty()).map(str::to_string));
        }
        let bytes = add["size"].as_u64().unwrap_or(0);
        state.said.insert(path.clone(), Said::Delta(stats));
        state.files.push(LiveFile { path, bytes, records, deleted, partition_values, columns: vec![] });
    }
}

/// A path as the log writes it, percent-encoded, below the table's folder.
fn decoded(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains("://") {
        return None;
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        bytes.extend(&rest.as_bytes()[..at]);
        match rest.get(at + 1..at + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[at + 3..];
            }
            None => {
                bytes.push(b'%');
                rest = &rest[at + 1..];
            }
        }
    }
    bytes.extend(rest.as_bytes());
    Path::parse(String::from_utf8(bytes).ok()?).ok().map(|p| p.to_string())
}

/// Delta protocol, "Deletion Vector Format": a framed roaring bitmap, inline or in a file of the table's folder.
async fn deletion_vector(lake: &Lake, folder: &str, vector: &Value, state: &mut TableState) -> Result<RoaringTreemap, String> {
    let text = vector["pathOrInlineDv"].as_str().unwrap_or_default();
    let size = vector["sizeInBytes"].as_u64().unwrap_or(0) as usize;
    let bytes = match vector["storageType"].as_str() {
        Some("i") => {
            let mut bytes = z85(text).ok_or("it is not readable")?;
            bytes.truncate(size);
            bytes
        }
        Some("u") => {
            let (prefix, id) = text.len().checked_sub(20).and_then(|at| text.split_at_checked(at)).ok_or("its name is too short")?;
            let id = z85(id).and_then(|b| Uuid::from_slice(&b).ok()).ok_or("its name is no id")?;
            let inner = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            let path = format!("{folder}/{inner}deletion_vector_{id}.bin");
            state.referenced.insert(path.clone());
            let file = footer::object(lake, &path).await?.ok_or_else(|| format!("{path} is gone"))?;
            let at = vector["offset"].as_u64().unwrap_or(0) as usize + 4;
            file.get(at..at + size).ok_or_else(|| format!("{path} is too short"))?.to_vec()
        }
        other => return Err(format!("its storage type is {other:?}")),
    };
    if bytes.len() < 4 || bytes[..4] != 1_681_511_377u32.to_le_bytes() {
        return Err("it does not begin as a deletion vector does".into());
    }
    let positions = RoaringTreemap::deserialize_from(&bytes[4..]).map_err(|e| e.to_string())?;
    let said = vector["cardinality"].as_u64();
    if said == Some(positions.len()) { Ok(positions) } else { Err(format!("it holds {} positions and says {said:?}", positions.len())) }
}

fn z85(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    let digit = |c: &u8| DIGITS.iter().position(|d| d == c).map(|d| d as u64);
    let words = text.as_bytes().chunks(5).map(|five| {
        let value = five.iter().try_fold(0u64, |v, c| Some(v * 85 + digit(c)?))?;
        (five.len() == 5).then_some(u32::try_from(value).ok()?.to_be_bytes())
    });
    Some(words.collect::<Option<Vec<[u8; 4]>>>()?.concat())
}
