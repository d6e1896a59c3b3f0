//! Proof that the tables hold what the log says, and nothing else.
//!
//! [`structure`] looks at the log and at what lies in the lake: whether the entries tile every
//! partition, whether every staged file is in its table once, whether files, counts and stamps agree.
//! [`schema`] compares columns and partitioning with the plan's, [`contents`] reads every file once:
//! what may be there but once is ([`once`]), and what readers prune by ([`bounds`]) holds every row. [`runs`] reads what a
//! start needs, and [`coverage`] asks whether that is all of it, and [`rewrites`] counts what compactions of others kept. [`deep`] reads the source again over the logged offsets and computes every table by a way of
//! its own: it judges lateness row by row from the facts of the log, runs the SQL as one batch in
//! DataFusion, and compares rows.
//!
//! A judge who asks the accused proves nothing: this module imports none of the code that makes the
//! tables (`transform`, `partial`, `fold`, `commit`, `time`), and reads table metadata itself. A test
//! holds it to that. What it shares with them is below: the store, the pipeline file, the source, the
//! decoder, the log's entries, and the reader of Parquet files.
//!
//! What cannot be proven is said, never passed over: [`Report::unprovable`].

mod append_only;
mod bounds;
mod columns;
mod compare;
mod contents;
mod coverage;
mod dead_letters;
mod deep;
mod delta;
mod delta_protocol;
mod facts;
mod footer;
mod iceberg;
mod manifests;
mod once;
mod order;
mod position_deletes;
mod reach;
mod rewrites;
mod runs;
mod schema;
mod select;
mod shown;
mod source_rows;
mod strict;
mod structure;
mod widen;
mod window;

use crate::pipeline::{Pipeline, SourceSpec, TableFormatKind};
use crate::source::{Source, SourceError};
use object_store::ObjectStore;
use serde::Serialize;
use reach::WatchedStore;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Where everything of a pipeline lies.
pub struct Lake {
    pub store: Arc<dyn ObjectStore>,
    watched: Arc<WatchedStore>,
    /// The store's root as an absolute folder.
    pub root: PathBuf,
    /// `_millpond/<pipeline>`, relative to the root.
    pub state_folder: String,
}

impl Lake {
    pub fn new(store: Arc<dyn ObjectStore>, root: PathBuf, state_folder: String) -> Self {
        let watched = Arc::new(WatchedStore::new(store));
        Self { store: watched.clone(), watched, root, state_folder }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Read the source again and compare rows.
    pub deep: bool,
    /// Only this table (with its late table), or this late or dead-letter table.
    pub table: Option<String>,
    /// Event time in microseconds: only windows that start in `from..to` and plain rows whose event time lies there.
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
    /// Only about this share of windows and plain rows, in percent; which ones depends on their content alone.
    pub sample_percent: Option<u8>,
    /// No worker runs: entries that a table lacks are a difference and not a delay.
    pub caught_up: bool,
}

/// Something that is wrong. `kind` is one word for programs; `tests/it/verify.rs` plants one of each.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<TableFormatKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// How often; `rows` shows the first few.
    pub count: u64,
    /// What was expected, what was found.
    pub text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowFinding>,
}

/// A row that is not as it must be.
#[derive(Debug, Clone, Serialize)]
pub struct RowFinding {
    /// Key, or where the record came from, in words.
    pub key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Source records behind the row, as `partition:offset`, the first few.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<String>,
    /// Source records behind the row, all of them.
    pub records: u64,
}

impl Finding {
    pub(crate) fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, table: None, format: None, entry: None, count: 1, text: text.into(), rows: vec![] }
    }

    pub(crate) fn of(mut self, table: &str, format: TableFormatKind) -> Self {
        (self.table, self.format) = (Some(table.to_string()), Some(format));
        self
    }

    pub(crate) fn at(mut self, entry: u64) -> Self {
        self.entry = Some(entry);
        self
    }

    pub(crate) fn times(mut self, count: usize) -> Self {
        self.count = count as u64;
        self
    }
}

/// What was found out.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub pipeline: String,
    /// First entry whose facts are known, and the last one.
    pub entries: Option<(u64, u64)>,
    pub deep: bool,
    pub findings: Vec<Finding>,
    /// What cannot be proven, and why.
    pub unprovable: Vec<String>,
    /// Tables that this version failed to check, and why; the others were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unchecked: Vec<String>,
    /// What is worth knowing and nothing wrong: commits of others, tables that have not caught up.
    pub notes: Vec<String>,
    /// Files in the folders of the tables and of the runs that nothing refers to, sorted.
    pub orphans: Vec<String>,
    pub tables: Vec<TableReport>,
}

/// One table in one format.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub table: String,
    pub format: TableFormatKind,
    /// The entry that it is stamped with.
    pub entry: u64,
    pub version: String,
    pub files: u64,
    /// Rows that readers see.
    pub rows: u64,
    /// Rows that were computed from the source and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<u64>,
}

impl Report {
    pub fn is_right(&self) -> bool {
        self.findings.is_empty()
    }

    pub fn is_proven(&self) -> bool {
        self.unprovable.is_empty() && self.unchecked.is_empty()
    }
}

/// Nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("pipeline {0} has not run yet: there is nothing to verify")]
    NothingYet(String),
    #[error("{0}")]
    NoTable(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<SourceError> for VerifyError {
    fn from(e: SourceError) -> Self {
        match e {
            SourceError::Refused(why) => Self::Refused(why),
            SourceError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl From<object_store::Error> for VerifyError {
    fn from(e: object_store::Error) -> Self {
        Self::Unavailable(format!("the lake cannot be read: {e}"))
    }
}

/// Makes a reader of a source that disturbs no worker.
pub type OpenSource<'a> = &'a (dyn Fn(&SourceSpec) -> Result<Box<dyn Source>, SourceError> + Sync);

/// Told how many of how many records have been read.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Checks a pipeline's lake.
///
/// # Errors
/// Only when nothing can be said: no log, or a store that is away. What is damaged is a finding.
pub async fn verify(pipeline: &Pipeline, lake: &Lake, options: &Options, open: OpenSource<'_>, progress: Progress<'_>) -> Result<Report, VerifyError> {
    let mut tries = 0;
    let (facts, tables, mut report) = loop {
        let mut report = Report { pipeline: pipeline.name.clone(), deep: options.deep, ..Report::default() };
        let Some(facts) = facts::read(pipeline, lake, &mut report).await? else { return Ok(report) };
        report.entries = Some((facts.first, facts.last));
        let tables = structure::check(pipeline, lake, &facts, options, &mut report).await?;
        lake.watched.check()?;
        // A worker may have decided and committed since the log was read: then it is read again.
        let ahead = tables.iter().flat_map(|t| &t.states).any(|s| s.stamp.is_some_and(|(log, entry)| log == facts.log && entry > facts.last));
        let runs = runs::check(lake, &facts, &tables, options, &mut report).await?;
        tries += 1;
        if tries < 5 && (runs.is_none() || (ahead && facts::newest(lake).await? != Some(facts.last))) {
            continue;
        }
        if ahead && facts::newest(lake).await? != Some(facts.last) {
            return Err(VerifyError::Unavailable(format!(
                "the pipeline commits faster than its tables can be read, {tries} times in a row: what was read of them does not belong together; \
                 check one table at a time (--table), or while no worker runs"
            )));
        }
        if runs.is_none() {
            report.unprovable.push("the log is truncated faster than its runs can be read: whether all of them are there is not known".into());
        }
        break (facts, tables, report);
    };
    if options.deep {
        match deep::check(pipeline, lake, &facts, &tables, options, open, progress, &mut report).await {
            Err(VerifyError::Unavailable(why) | VerifyError::Refused(why)) if !report.is_right() => report.unprovable.push(format!("rows could not be compared: {why}")),
            done => done?,
        }
    }
    // Both formats of a table say the same of their source.
    let mut said = BTreeSet::new();
    report.unprovable.retain(|u| said.insert(u.clone()));
    report.unchecked.retain(|u| said.insert(u.clone()));
    report.notes.retain(|n| said.insert(n.clone()));
    report.orphans.sort();
    Ok(report)
}

/// An instant as people read it.
pub(crate) fn instant(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us).map_or_else(|| format!("{us} us"), |t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}
