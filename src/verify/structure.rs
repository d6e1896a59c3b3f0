//! Checks that need no source: the tables' metadata, their files, their keys, against the log.

use super::bounds::Said;
use super::facts::Facts;
use super::schema::Layout;
use super::shown::Shown;
use super::{Finding, Lake, Options, Report, TableReport, VerifyError, contents, delta, footer, iceberg, schema};
use crate::epoch::entry::{Plan, SpecRecord};
use crate::pipeline::{Pipeline, TableFormatKind};
use crate::read::LiveFile;
use crate::stage::{TableSpec, names};
use futures::TryStreamExt;
use object_store::path::Path;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// Rows that a finding shows.
pub const SHOWN: usize = 5;

/// One table in one format as its own metadata has it.
pub struct TableState {
    pub format: TableFormatKind,
    pub version: String,
    pub uuid: String,
    /// Relative to the lake's root.
    pub folder: String,
    pub stamp: Option<(Uuid, u64)>,
    pub offsets: Option<BTreeMap<String, BTreeMap<i32, i64>>>,
    pub files: Vec<LiveFile>,
    /// File to what the metadata says of its columns and its partition.
    pub said: HashMap<String, Said>,
    /// Columns and partitioning as its metadata has them.
    pub layout: Option<Layout>,
    pub notes: Vec<String>,
    /// Everything that any retained version of it names.
    pub referenced: BTreeSet<String>,
    /// Data and delete files that a retained version needs which is not the newest, as far as that was looked at.
    pub older: BTreeSet<String>,
    /// Files without field ids are read by their columns' names.
    pub name_mapping: bool,
    /// Starts of windows that its rows show and that may still be corrected.
    pub open_windows: BTreeSet<i64>,
    /// Newest first, as far as they are retained.
    pub commits: Vec<Commit>,
    /// They reach back to the table's first.
    pub all_commits: bool,
    pub findings: Vec<Finding>,
    pub unprovable: Vec<String>,
}

pub struct Commit {
    pub version: String,
    /// The entry of a commit of ours.
    pub entry: Option<u64>,
    pub operation: String,
    pub changes_data: bool,
    /// Rows that it brought and took away, those of files that it wrote anew in both; as far as it tells.
    pub rows_in: Option<u64>,
    pub rows_out: Option<u64>,
    /// The engine that made it, where it says so.
    pub by: Option<String>,
    pub removed: BTreeSet<String>,
}

impl Commit {
    /// Rows of others, or fewer of ours.
    pub fn changed_rows_and_is_not_ours(&self) -> bool {
        self.entry.is_none() && self.changes_data && self.operation != "CREATE TABLE"
    }

    /// What it did, for people.
    fn told(&self) -> String {
        let by = self.by.as_ref().map_or(String::new(), |by| format!(" by {by}"));
        let did = match (self.rows_in, self.rows_out) {
            (Some(n), Some(0)) => format!("{n} rows more"),
            (Some(0), Some(n)) => format!("{n} rows fewer"),
            (Some(new), Some(old)) if new == old => format!("{new} rows written anew, as many as before"),
            (Some(new), Some(old)) if new < old => format!("{new} of {old} rows written anew, {} fewer", old - new),
            (Some(new), Some(old)) => format!("{new} rows for {old}, {} more", new - old),
            _ => "how many rows it changed is not known".into(),
        };
        format!("commit {} ({}{by}) is not ours: {did}", self.version, self.operation)
    }
}

impl TableState {
    pub fn new(format: TableFormatKind, version: String, uuid: String) -> Self {
        let (folder, referenced) = (String::new(), BTreeSet::new());
        Self { format, version, uuid, folder, stamp: None, offsets: None, files: vec![], said: HashMap::new(), layout: None, notes: vec![], referenced, older: BTreeSet::new(), name_mapping: false, open_windows: BTreeSet::new(), commits: vec![], all_commits: false, findings: vec![], unprovable: vec![] }
    }
}

/// What a table of the lake holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A declared table, with or without a window.
    Declared { windowed: bool },
    /// Late rows of this table.
    Late(String),
    /// Dead letters of this source.
    Dead(String),
}

/// A table that was checked, for the deep check.
pub struct Checked {
    pub spec: Arc<TableSpec>,
    pub role: Role,
    pub born: u64,
    pub states: Vec<TableState>,
    /// Of a windowed table whose SQL can be read.
    pub shown: Option<Shown>,
}

/// Every table that a plan asks for.
fn wanted(plan: &Plan) -> Vec<(SpecRecord, Role, u64)> {
    let mut wanted = vec![];
    for (name, table) in &plan.tables {
        wanted.push((table.table.clone(), Role::Declared { windowed: table.window.is_some() }, table.born));
        wanted.extend(table.late.clone().map(|late| (late, Role::Late(name.clone()), table.born)));
    }
    for (name, source) in &plan.sources {
        wanted.push((source.dead.clone(), Role::Dead(name.clone()), 0));
    }
    wanted
}

/// Tables that an older plan asked for and the newest does not, each with the entry that took it out.
fn taken_out(facts: &Facts) -> BTreeMap<String, u64> {
    let mut ended = BTreeMap::new();
    for pair in facts.eras.windows(2) {
        ended.extend(wanted(&pair[0].plan).into_iter().map(|(record, _, _)| (record.name, pair[1].entry)));
        for (record, _, _) in wanted(&pair[1].plan) {
            ended.remove(&record.name);
        }
    }
    ended
}

fn not_judged(table: &str, entry: u64) -> String {
    format!("table {table} is in the log and no longer in the pipeline file, out of which entry {entry} took it: not judged")
}

pub fn chosen(options: &Options, name: &str, role: &Role) -> bool {
    match &options.table {
        None => true,
        Some(table) => table == name || matches!(role, Role::Late(of) if of == table),
    }
}

pub async fn check(pipeline: &Pipeline, lake: &Lake, facts: &Facts, options: &Options, report: &mut Report) -> Result<Vec<Checked>, VerifyError> {
    let reader = iceberg::Reader::new(lake)?;
    let mut checked = vec![];
    let all = wanted(facts.plan());
    let ended = taken_out(facts);
    if let Some(table) = &options.table
        && !all.iter().any(|(r, _, _)| r.name == *table)
    {
        let names: Vec<&str> = all.iter().map(|(r, _, _)| r.name.as_str()).collect();
        let why = ended.get(table).map_or_else(|| format!("there is no table {table}"), |entry| not_judged(table, *entry));
        return Err(VerifyError::NoTable(format!("{why}; there are {}", names.join(", "))));
    }
    if options.table.is_none() {
        report.notes.extend(ended.iter().map(|(table, entry)| not_judged(table, *entry)));
    }
    for (record, role, born) in all {
        if !chosen(options, &record.name, &role) {
            continue;
        }
        let spec = match record.shared() {
            Ok(spec) => spec,
            Err(e) => {
                report.findings.push(Finding::new("plan-damaged", format!("table {}: its record in the log cannot be read: {e}", record.name)));
                continue;
            }
        };
        let mut states = vec![];
        for format in &record.formats {
            let read = match format {
                TableFormatKind::Iceberg => {
                    iceberg::reachable(&pipeline.lake)?;
                    reader.read(lake, &pipeline.lake, &pipeline.name, &record.name).await
                }
                TableFormatKind::Delta => delta::read(lake, &pipeline.name, &record.name).await,
            };
            match read {
                Ok(state) => states.push(state),
                Err(finding) => report.findings.push(finding),
            }
        }
        let shown = if role == (Role::Declared { windowed: true }) { Shown::of(facts, &spec) } else { None };
        let table = Checked { spec, role, born, states, shown };
        one(lake, facts, table, report, &mut checked).await?;
    }
    Ok(checked)
}

async fn one(lake: &Lake, facts: &Facts, mut table: Checked, report: &mut Report, checked: &mut Vec<Checked>) -> Result<(), VerifyError> {
    let name = table.spec.name.clone();
    for state in &mut table.states {
        identity(lake, facts, &name, table.born, state).await?;
        stamps(facts, &name, table.born, state);
        schema::check(facts, &table.spec, &table.role, table.born, state, report);
        contents::check(lake, facts, &table.spec, &table.role, table.shown.as_ref(), state).await?;
        staged(facts, &name, &table.role, table.born, state);
        let miscounted = state.commits.iter().filter_map(Commit::miscounted).map(|text| Finding::new("rewrite-rows", text).of(&name, state.format));
        state.findings.extend(miscounted.collect::<Vec<_>>());
        orphans(lake, facts, &name, state, report).await?;
        for commit in state.commits.iter().filter(|c| c.changed_rows_and_is_not_ours()) {
            report.notes.push(format!("{} table {name}: {}", state.format, commit.told()));
        }
        report.notes.extend(state.notes.drain(..).map(|n| format!("{} table {name}: {n}", state.format)));
        report.findings.append(&mut state.findings);
        report.unprovable.extend(state.unprovable.drain(..).map(|u| format!("{} table {name}: {u}", state.format)));
        report.tables.push(TableReport {
            table: name.clone(),
            format: state.format,
            entry: state.stamp.map_or(0, |s| s.1),
            version: state.version.clone(),
            files: state.files.len() as u64,
            rows: state.files.iter().map(|f| f.records.saturating_sub(f.deleted.len())).sum(),
            compared: None,
        });
    }
    checked.push(table);
    Ok(())
}

/// What a worker wrote down of a table when it opened it first.
#[derive(Deserialize)]
struct Filled {
    log: Uuid,
    uuid: String,
}

/// It is the very table that this log has filled, as far as that was written down.
async fn identity(lake: &Lake, facts: &Facts, name: &str, born: u64, state: &mut TableState) -> Result<(), VerifyError> {
    let path = format!("{}/tables/{name}-{born}.{}.json", lake.state_folder, state.format);
    let Some(bytes) = footer::object(lake, &path).await.map_err(VerifyError::Unavailable)? else { return Ok(()) };
    match serde_json::from_slice::<Filled>(&bytes) {
        Ok(filled) if filled.log == facts.log && filled.uuid != state.uuid => {
            let text = format!("its uuid is {}, and the table that this log has filled is {}: it was made anew in its place", state.uuid, filled.uuid);
            state.findings.push(Finding::new("table-uuid", text).of(name, state.format));
        }
        Ok(_) => {}
        Err(e) => state.unprovable.push(format!("{path}, which says what table this log has filled, is damaged: {e}")),
    }
    Ok(())
}

fn stamps(facts: &Facts, name: &str, born: u64, state: &mut TableState) {
    let mut found = vec![];
    if let Some((log, entry)) = state.stamp {
        if log != facts.log {
            found.push(Finding::new("stamp-log", format!("it is stamped by log {log}, and the log is {}", facts.log)));
        } else if entry > facts.last {
            found.push(Finding::new("stamp-ahead", format!("it is stamped with entry {entry}, and the log ends at entry {}", facts.last)));
        } else if entry < born {
            found.push(Finding::new("stamp-behind", format!("it is stamped with entry {entry}, below entry {born} by which it came into being")));
        } else if let Some(offsets) = state.offsets.as_ref().filter(|_| entry > born && entry >= facts.first) {
            let expected = facts.positions(entry);
            if *offsets != expected {
                found.push(Finding::new("stamp-offsets", format!("its stamp of entry {entry} says offsets {offsets:?}, and the log {expected:?}")).at(entry));
            }
        }
    }
    let ours: Vec<(String, u64)> = state.commits.iter().rev().filter_map(|c| Some((c.version.clone(), c.entry?))).collect();
    for pair in ours.windows(2).filter(|p| p[0].1 > p[1].1) {
        let text = format!("commit {} holds entry {}, and the later {} entry {}", pair[0].0, pair[0].1, pair[1].0, pair[1].1);
        found.push(Finding::new("commit-order", text));
    }
    if let (Some((_, entry)), Some((version, newest))) = (state.stamp, ours.last())
        && entry != *newest
        && state.format == TableFormatKind::Iceberg
    {
        found.push(Finding::new("stamp-disagrees", format!("its properties say entry {entry}, and its newest commit of ours, {version}, entry {newest}")));
    }
    state.findings.extend(found.into_iter().map(|f| f.of(name, state.format)));
}

/// What the entries up to the stamp staged is in the table, once, or in a file that it was compacted into.
fn staged(facts: &Facts, name: &str, role: &Role, born: u64, state: &mut TableState) {
    let Some((_, stamp)) = state.stamp else { return };
    let mut staged: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut found = vec![];
    // Files of a table of this name that was dropped before are not this one's.
    for (entry, data) in facts.data.range(born..) {
        for file in data.files.iter().filter(|f| f.table == name && f.format == state.format) {
            if let Some((before, _)) = staged.insert(&file.file.path, (*entry, file.file.records)) {
                found.push(Finding::new("staged-twice", format!("file {} is staged by entry {before} too", file.file.path)).at(*entry));
            }
        }
    }
    let live: HashMap<&str, &LiveFile> = state.files.iter().map(|f| (f.path.as_str(), f)).collect();
    // Whoever took it away: a compaction keeps its rows, a commit of others that changed data is told as such.
    let taken = |path: &str| state.commits.iter().find(|c| c.removed.contains(path));
    let (mut gone, mut gone_rows) = (vec![], 0);
    for (path, (entry, records)) in &staged {
        match live.get(path) {
            Some(_) if *entry > stamp => {
                found.push(Finding::new("staged-early", format!("file {path} of entry {entry} is in it, and its stamp is entry {stamp}")).at(*entry));
            }
            Some(file) if file.records != *records => {
                found.push(Finding::new("file-rows", format!("file {path} was staged with {records} rows, the table says {}", file.records)).at(*entry));
            }
            Some(_) => {}
            None if *entry > stamp => {}
            None => {
                gone.push((*path, *entry, *records));
                gone_rows += records;
            }
        }
    }
    let foreign = state.commits.iter().any(Commit::changed_rows_and_is_not_ours);
    let others: u64 = state.files.iter().filter(|f| !staged.contains_key(f.path.as_str())).map(|f| f.records - f.deleted.len().min(f.records)).sum();
    // Files that only others can have written, and of their commits nobody can see all.
    let hidden = !state.all_commits && state.files.iter().any(|f| !staged.contains_key(f.path.as_str()) && names::owner(names::file_name(&f.path)).is_none());
    // A windowed table's files are made by its commits, and so are late rows: only plain rows are all staged.
    let all_staged = *role == Role::Declared { windowed: false } && facts.first == 0;
    let mut untold = 0;
    for (path, entry, records) in &gone {
        let moved = match taken(path) {
            Some(commit) => !commit.changes_data || commit.entry.is_none(),
            // By a commit that is not retained any more: rows that are in no staged file speak for a compaction.
            None if others > 0 && others >= gone_rows => true,
            // Others may have changed rows, and some of what was done cannot be seen: nobody can count after them.
            None if hidden || foreign && !state.all_commits && others > 0 => {
                untold += 1;
                true
            }
            None => false,
        };
        if !moved {
            found.push(Finding::new("staged-missing", format!("file {path} with {records} rows, staged by entry {entry}, is not in it, and its stamp is entry {stamp}")).at(*entry));
        }
    }
    if untold > 0 {
        let text = "files that entries staged are not in it, taken away by commits that are no longer retained";
        state.unprovable.push(format!("{untold} {text}: {gone_rows} rows, {others} are in files that others wrote; --deep compares rows"));
    }
    if all_staged && !foreign {
        let rows: u64 = state.files.iter().map(|f| f.records - f.deleted.len().min(f.records)).sum();
        let expected: u64 = staged.values().filter(|(entry, _)| *entry <= stamp).map(|(_, r)| r).sum();
        let text = format!("it shows {rows} rows, and the entries up to its stamp staged {expected}");
        if rows != expected && hidden {
            state.unprovable.push(format!("{text}: it holds files of others, whose commits are no longer retained; --deep compares rows"));
        } else if rows != expected {
            let others = if state.all_commits { "" } else { "; of its commits only the newest are retained, and others may have made some of those that are not" };
            found.push(Finding::new("row-count", format!("{text}{others}")));
        }
        for file in state.files.iter().filter(|f| !hidden && gone.is_empty() && !staged.contains_key(f.path.as_str())) {
            found.push(Finding::new("file-unstaged", format!("file {} with {} rows is in it, and no entry staged it", file.path, file.records)));
        }
    }
    state.findings.extend(found.into_iter().map(|f| f.of(name, state.format)));
}

/// Files in the table's folder that nobody names: neither the table nor an entry that it has yet to take.
async fn orphans(lake: &Lake, facts: &Facts, name: &str, state: &TableState, report: &mut Report) -> Result<(), VerifyError> {
    if state.folder.is_empty() {
        return Ok(());
    }
    let known: BTreeSet<&str> = facts.data.values().flat_map(|d| &d.files).filter(|f| f.table == name).map(|f| f.file.path.as_str()).collect();
    let objects: Vec<_> = lake.store.list(Some(&Path::from(state.folder.as_str()))).try_collect().await?;
    let there: BTreeSet<&str> = objects.iter().map(|o| o.location.as_ref()).collect();
    let live: BTreeSet<&str> = state.files.iter().map(|f| f.path.as_str()).collect();
    let gone = state.older.iter().map(String::as_str).filter(|path| path.starts_with(&state.folder) && !there.contains(path) && !live.contains(path)).count();
    if gone > 0 {
        report.notes.push(format!("{} table {name}: {gone} files that only older snapshots name are gone: what it was then can no longer be read", state.format));
    }
    for object in objects {
        let path = object.location.to_string();
        let hint = path.ends_with("version-hint.text") || path.ends_with("_last_checkpoint") || path.ends_with(".crc");
        if !hint && !state.referenced.contains(&path) && !known.contains(path.as_str()) {
            report.orphans.push(path);
        }
    }
    Ok(())
}
