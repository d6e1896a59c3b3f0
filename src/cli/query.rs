//! `millpond query FILE 'select …'`.

use super::{FAILED, Failure, OK, SystemClock, USAGE, fail, has_run, load, report};
use crate::commit::LakeTable;
use crate::console::{self, note};
use crate::epoch::entry::{Body, Entry};
use crate::epoch::history::{self, History, Recorded, RecordedBody};
use crate::pipeline::{Pipeline, TableFormatKind};
use crate::read::query::{Ndjson, QueryError, human_table, named_twice, run};
use crate::read::LakeTableProvider;
use crate::worker::{Clock, Place, WorkerError};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Commits shown of each table in each format.
const COMMITS: usize = 1000;

const EXAMPLES: &str = "Examples:
  millpond query spend.yaml 'select * from spend_by_user order by window_start desc limit 10'
  millpond query spend.yaml 'select _reason, count(*) from events__dead group by 1'
  millpond query spend.yaml 'select * from millpond.commits' --json";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The pipeline file
    file: PathBuf,
    /// One SQL query over the pipeline's tables (with their __late and __dead tables), millpond.epochs and millpond.commits
    sql: String,
    /// Which of a table's formats to read (else the first that it is in)
    #[arg(long)]
    format: Option<TableFormatKind>,
    /// Rows as NDJSON
    #[arg(long)]
    json: bool,
}

impl ValueEnum for TableFormatKind {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.word()))
    }
}

pub async fn main(a: Arguments) -> i32 {
    let loaded = match load(&a.file) {
        Ok(loaded) => loaded,
        Err(problems) => return report(&problems, a.json),
    };
    match query(&loaded.pipeline, &a).await {
        Ok(()) => OK,
        Err(failure) => fail(failure, a.json),
    }
}

async fn query(pipeline: &Arc<Pipeline>, a: &Arguments) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let not_yet = || Failure(FAILED, format!("pipeline {} has not run yet: there is nothing to query", pipeline.name));
    if !has_run(pipeline) {
        return Err(not_yet());
    }
    let place = Place::open(pipeline, &clock).await?;
    let reading = place.log.open().await.map_err(WorkerError::from)?.ok_or_else(not_yet)?;
    let mut providers: Vec<(String, Arc<dyn TableProvider>)> = vec![];
    let mut commits = Commits::default();
    for (record, _) in reading.head.specs() {
        let spec = record.shared().map_err(WorkerError::Refused)?;
        let mut shown = false;
        for format in &record.formats {
            let refused = |e: crate::commit::CommitError| WorkerError::Refused(format!("{format} table {}: {e}", record.name));
            let Some(mut table) = place.formats[format].open(spec.clone()).await.map_err(refused)? else { continue };
            table.load().await.map_err(refused)?;
            commits.add(&record.name, *format, table.as_mut()).await.map_err(refused)?;
            if shown || a.format.is_some_and(|w| w != *format) {
                continue;
            }
            let files = table.live_files().await.map_err(refused)?;
            providers.push((record.name.clone(), Arc::new(LakeTableProvider::new(place.store.clone(), spec.schema.clone(), files))));
            shown = true;
        }
    }
    let internal = |e: datafusion::error::DataFusionError| WorkerError::Internal(e.to_string());
    let memory = |batch: RecordBatch| Ok::<Arc<dyn TableProvider>, WorkerError>(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(internal)?));
    // Read before the history: what is freed meanwhile is in it by then.
    let begins = reading.start.next;
    let mut read = place.log.remains(begins).await.map_err(WorkerError::from)?;
    read.extend(reading.tail);
    // What truncation took from the log.
    let kept = History::new(place.store.clone(), &place.state_folder).read().await.map(|(_, entries)| entries);
    let kept = kept.unwrap_or_else(|e| {
        note(format_args!("note: millpond.epochs begins where the log does: {e}"));
        // What is below may be strays, which only the history tells apart.
        read.retain(|(seq, _)| *seq >= begins);
        BTreeMap::new()
    });
    providers.push(("millpond.epochs".into(), memory(epochs(kept, &read)?)?));
    providers.push(("millpond.commits".into(), memory(commits.batch()?)?));

    let names: Vec<String> = providers.iter().map(|(name, _)| name.clone()).collect();
    let (schema, stream) = run(providers, &a.sql).await.map_err(|e| match e {
        QueryError::Refused(why) => Failure(USAGE, asked_wrongly(&why, &names)),
        failed => Failure(FAILED, failed.to_string()),
    })?;
    if let (true, Some(name)) = (a.json, named_twice(&schema)) {
        return Err(Failure(USAGE, format!("two columns of the answer are named {name}, and a JSON object holds one value of a name: name one of them with `as`")));
    }
    let failed = |e: &dyn std::fmt::Display| WorkerError::Internal(e.to_string());
    let unwritten = |e: std::io::Error| Failure(FAILED, format!("cannot write the answer to stdout: {e}"));
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(|e| failed(&e))?;
    if !a.json {
        console::answer(human_table(&schema, &batches).map_err(|e| failed(&e))?.as_bytes()).map_err(unwritten)?;
        return Ok(());
    }
    for batch in &batches {
        let mut rows = Ndjson::new(vec![]);
        rows.write(batch).map_err(|e| failed(&e))?;
        if !console::answer(&rows.finish().map_err(|e| failed(&e))?).map_err(unwritten)? {
            break;
        }
    }
    Ok(())
}

/// What is wrong with a query, in fewer words than DataFusion's, and what there is instead.
fn asked_wrongly(why: &str, names: &[String]) -> String {
    let mut text = why.to_string();
    for words in ["Error during planning: ", "SQL error: ", "This feature is not implemented: ", "datafusion.public.", "datafusion."] {
        text = text.replace(words, "");
    }
    let text = text.trim_start_matches("ParserError(\"").trim_start_matches("TokenizerError(\"").trim_end_matches("\")");
    let mut text = text.replace("The context currently only supports a single SQL statement", "one query at a time");
    if text.starts_with("table '") && text.ends_with("not found") {
        text = format!("{text}; there are {}", names.join(", "));
    } else if text.contains("not supported: ") {
        text = format!("{text}; only queries are run: tables change by the pipeline alone");
    }
    format!("cannot run the query: {text}")
}

/// The entries that were read from the log, and those of its history, one row a source partition of a data entry, one row
/// for each other entry. The history knows of no runs.
fn epochs(kept: BTreeMap<u64, Recorded>, read: &[(u64, Entry)]) -> Result<RecordBatch, WorkerError> {
    #[derive(Default)]
    struct Rows {
        entry: Vec<u64>,
        kind: Vec<&'static str>,
        writer: Vec<String>,
        written_at: Vec<i64>,
        source: Vec<Option<String>>,
        partition: Vec<Option<i64>>,
        from: Vec<Option<i64>>,
        to: Vec<Option<i64>>,
        files: Vec<u64>,
        runs: Vec<u64>,
    }
    let mut rows = Rows::default();
    let runs = |e: &Entry| Some(if let Body::Data(d) = &e.body { d.runs.as_ref()?.runs.len() as u64 } else { return None });
    let runs_of: BTreeMap<_, u64> = read.iter().filter_map(|(seq, e)| Some(((*seq, e.attempt), runs(e)?))).collect();
    let mut entries: BTreeMap<u64, Recorded> = read.iter().map(|(seq, entry)| (*seq, history::record(*seq, entry))).collect();
    entries.extend(kept);
    for (seq, entry) in &entries {
        let kind = match &entry.body {
            RecordedBody::Data(_) => "data",
            RecordedBody::Plan(_) => "plan",
            RecordedBody::Checkpoint { .. } => "checkpoint",
            RecordedBody::Note(_) => "note",
        };
        let mut push = |source: Option<&String>, partition: Option<i32>, span: Option<(i64, i64)>, files: u64, runs: u64| {
            rows.entry.push(*seq);
            rows.kind.push(kind);
            rows.writer.push(entry.writer.clone());
            rows.written_at.push(entry.written_at_ms);
            rows.source.push(source.cloned());
            rows.partition.push(partition.map(i64::from));
            rows.from.push(span.map(|s| s.0));
            rows.to.push(span.map(|s| s.1));
            rows.files.push(files);
            rows.runs.push(runs);
        };
        match &entry.body {
            RecordedBody::Data(data) if !data.intervals.is_empty() => {
                for (source, intervals) in &data.intervals {
                    for (partition, i) in intervals {
                        push(Some(source), Some(*partition), Some((i.from, i.to)), data.files.len() as u64, runs_of.get(&(*seq, entry.attempt)).copied().unwrap_or(0));
                    }
                }
            }
            _ => push(None, None, None, 0, 0),
        }
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("entry", Arc::new(UInt64Array::from(rows.entry))),
        ("kind", Arc::new(StringArray::from(rows.kind))),
        ("writer", Arc::new(StringArray::from(rows.writer))),
        ("written_at", Arc::new(TimestampMillisecondArray::from(rows.written_at).with_timezone("UTC"))),
        ("source", Arc::new(StringArray::from(rows.source))),
        ("partition", Arc::new(Int64Array::from(rows.partition))),
        ("from_offset", Arc::new(Int64Array::from(rows.from))),
        ("to_offset", Arc::new(Int64Array::from(rows.to))),
        ("files", Arc::new(UInt64Array::from(rows.files))),
        ("runs", Arc::new(UInt64Array::from(rows.runs))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).map_err(|e| WorkerError::Internal(e.to_string()))
}

#[derive(Default)]
struct Commits {
    table: Vec<String>,
    format: Vec<String>,
    snapshot: Vec<String>,
    committed_at: Vec<i64>,
    entry: Vec<Option<u64>>,
    operation: Vec<String>,
    files: Vec<u64>,
    added: Vec<u64>,
    deleted: Vec<u64>,
}

impl Commits {
    async fn add(&mut self, name: &str, format: TableFormatKind, table: &mut dyn LakeTable) -> Result<(), crate::commit::CommitError> {
        for row in table.history(COMMITS).await? {
            self.table.push(name.to_string());
            self.format.push(format.to_string());
            self.snapshot.push(row.snapshot);
            self.committed_at.push(row.committed_at_ms);
            self.entry.push(row.entry);
            self.operation.push(row.operation);
            self.files.push(row.added_files);
            self.added.push(row.added_records);
            self.deleted.push(row.deleted_records);
        }
        Ok(())
    }

    fn batch(self) -> Result<RecordBatch, WorkerError> {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("table_name", Arc::new(StringArray::from(self.table))),
            ("format", Arc::new(StringArray::from(self.format))),
            ("snapshot", Arc::new(StringArray::from(self.snapshot))),
            ("committed_at", Arc::new(TimestampMillisecondArray::from(self.committed_at).with_timezone("UTC"))),
            ("entry", Arc::new(UInt64Array::from(self.entry))),
            ("operation", Arc::new(StringArray::from(self.operation))),
            ("added_files", Arc::new(UInt64Array::from(self.files))),
            ("added_records", Arc::new(UInt64Array::from(self.added))),
            ("deleted_records", Arc::new(UInt64Array::from(self.deleted))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).map_err(|e| WorkerError::Internal(e.to_string()))
    }
}
