//! `millpond status FILE`.

use super::{OK, SystemClock, answer, fail, has_run, load, report};
use crate::epoch::ledger::{LiveRun, PartitionState};
use crate::pipeline::{Pipeline, SourceSpec};
use crate::source::{self, kafka};
use crate::worker::progress::instant;
use crate::worker::{Clock, Place, WorkerError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc as std_mpsc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the sources may take to tell where their partitions end.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub struct Arguments {
    /// The pipeline file
    file: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn main(a: Arguments) -> i32 {
    let loaded = match load(&a.file) {
        Ok(loaded) => loaded,
        Err(problems) => return report(&problems, a.json),
    };
    match status(&loaded.pipeline).await {
        Ok(value) if a.json => answer(format_args!("{value}\n"), OK),
        Ok(value) => answer(text_of(&value), OK),
        Err(e) => fail(e, a.json),
    }
}

async fn status(pipeline: &Arc<Pipeline>) -> Result<Value, WorkerError> {
    if !has_run(pipeline) {
        return Ok(json!({ "pipeline": pipeline.name, "log": null }));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let place = Place::open(pipeline, &clock).await?;
    let Some(reading) = place.log.open().await? else {
        return Ok(json!({ "pipeline": pipeline.name, "log": null }));
    };
    let head = &reading.head;
    let ends = ends(pipeline);
    let time = |t: Option<i64>| t.map(instant);
    let grouped = |name: &String| pipeline.sources.iter().any(|s| s.name == *name && s.input.has_group());
    let sources: serde_json::Map<String, Value> = head
        .sources
        .iter()
        .map(|(name, s)| {
            let ends = ends.get(name);
            let end = |p: &i32| ends?.as_ref().ok()?.get(p).copied();
            let of = |(p, s): (&i32, &PartitionState)| {
                let end = end(p);
                let lag = end.map(|end| (end - s.offset).max(0));
                (p.to_string(), json!({ "offset": s.offset, "end": end, "lag": lag, "latest_event": time(s.max_event_us), "name": s.name }))
            };
            let partitions: serde_json::Map<String, Value> = s.partitions.iter().map(of).collect();
            // Partitions that nobody has read yet are behind by all that they hold, of which the log knows nothing.
            let lag = ends.and_then(|e| e.as_ref().ok()).map(|_| partitions.values().filter_map(|p| p["lag"].as_i64()).sum::<i64>());
            let unknown = ends.and_then(|e| e.as_ref().err());
            (
                name.clone(),
                json!({
                    "records": s.records, "dead": s.dead, "lag": lag, "lag_unknown": unknown, "watermark": time(s.watermark),
                    "group": grouped(name).then(|| kafka::group(&pipeline.name, name, head.log)), "partitions": partitions,
                }),
            )
        })
        .collect();
    let mut tables = serde_json::Map::new();
    for (record, born) in head.specs() {
        let spec = record.shared().map_err(WorkerError::Refused)?;
        let mut formats = serde_json::Map::new();
        for format in &record.formats {
            let entry = match place.formats[format].open(spec.clone()).await {
                Ok(Some(mut table)) => match table.load().await {
                    Ok(base) => json!({ "entry": base.stamp.entry, "version": base.version, "files": table.files() }),
                    Err(e) => json!({ "error": e.to_string() }),
                },
                Ok(None) => json!({ "error": "not made yet" }),
                Err(e) => json!({ "error": e.to_string() }),
            };
            formats.insert(format.to_string(), entry);
        }
        let planned = head.plan.tables.get(&record.name);
        tables.insert(
            record.name.clone(),
            json!({
                "born": born, "formats": formats,
                "lacking_until": time(head.lacking_until.get(&record.name).copied()),
                "horizon": head.horizons.get(&record.name).copied().flatten().map(instant),
                "allowed_lateness_s": planned.filter(|p| p.window.is_some()).map(|p| p.allowed_lateness_us / 1_000_000),
                "kept": planned.filter(|p| p.window.is_some()).map(|_| kept(head.runs.get(&record.name).map_or(&[], Vec::as_slice))),
            }),
        );
    }
    Ok(json!({
        "pipeline": pipeline.name, "log": head.log, "next_entry": head.next, "plan_entry": head.plan_entry,
        "checkpoint": head.checkpoint.map(|c| json!({ "entry": c.entry, "upto": c.upto })),
        "entries_read": reading.tail.len(), "attempts_condemned": head.condemned.len(), "sources": sources, "tables": tables,
    }))
}

/// Asks every source for the ends of its partitions, all at once and not for long: the log tells the rest without them.
fn ends(pipeline: &Pipeline) -> BTreeMap<String, Result<BTreeMap<i32, i64>, String>> {
    let ask = |spec: &SourceSpec| {
        let (sender, answer) = std_mpsc::channel();
        let (name, spec, pipeline) = (spec.name.clone(), spec.clone(), pipeline.name.clone());
        std::thread::spawn(move || {
            let found = source::open(&spec, &pipeline, "status").and_then(|mut source| source.facts());
            let _ = sender.send(found.map(|f| f.partitions.into_iter().map(|(p, (_, end))| (p, end)).collect()).map_err(|e| e.to_string()));
        });
        (name, answer)
    };
    let asked: Vec<_> = pipeline.sources.iter().map(ask).collect();
    let deadline = Instant::now() + PATIENCE;
    let answer = |(name, answer): (String, std_mpsc::Receiver<_>)| {
        let found = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        (name, found.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
    };
    asked.into_iter().map(answer).collect()
}

/// `, 12 data files of 310 KiB, 1 with deletes`, if the table says so.
fn files(counts: &Value) -> String {
    let Some(data) = counts["data"].as_u64() else { return String::new() };
    let deletes = counts["deletes"].as_u64().filter(|n| *n > 0).map(|n| format!(", {n} with deletes")).unwrap_or_default();
    format!(", {data} data files of {} KiB{deletes}", counts["bytes"].as_u64().unwrap_or(0).div_ceil(1024))
}

/// What waits in the log for windows that are not final yet.
fn kept(runs: &[LiveRun]) -> Value {
    let rows: u64 = runs.iter().map(|r| r.run.run.rows).sum();
    json!({ "runs": runs.len(), "rows": rows, "last_window_end": runs.iter().map(|r| r.run.last_window_end_us).max().map(instant) })
}

fn kept_text(kept: &Value) -> String {
    let Some(end) = kept["last_window_end"].as_str() else { return "; no window is open".into() };
    format!("; {} rows in {} runs kept for windows that end by {end}", kept["rows"], kept["runs"])
}

/// `, WHAT VALUE`, or nothing.
fn known(what: &str, value: &Value) -> String {
    value.as_str().map_or_else(String::new, |value| format!(", {what} {value}"))
}

fn text_of(value: &Value) -> String {
    let mut lines = vec![];
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    if value["log"].is_null() {
        return format!("pipeline {} has not run yet\n", text(&value["pipeline"]));
    }
    lines.push(format!("pipeline {}, log {}, next entry {}", text(&value["pipeline"]), text(&value["log"]), value["next_entry"]));
    for (name, source) in value["sources"].as_object().into_iter().flatten() {
        let lag = match (source["lag"].as_i64(), source["lag_unknown"].as_str()) {
            (Some(lag), _) => format!("lag {lag}"),
            (None, Some(why)) => format!("lag unknown ({why})"),
            (None, None) => "not in the pipeline file".into(),
        };
        lines.push(format!("source {name}: {} records, {} dead, {lag}{}", source["records"], source["dead"], known("complete to", &source["watermark"])));
        if let Some(group) = source["group"].as_str() {
            lines.push(format!("  consumer group {group}"));
        }
        for (partition, p) in source["partitions"].as_object().into_iter().flatten() {
            let of = match (p["end"].as_i64(), p["offset"].as_i64()) {
                (Some(end), Some(offset)) if end < offset => format!(" of {end}, so that what was read is gone (`millpond validate` says what to do)"),
                (Some(end), _) => format!(" of {end}"),
                _ => String::new(),
            };
            lines.push(format!("  partition {partition}: offset {}{of}{}", p["offset"], known("latest event", &p["latest_event"])));
        }
    }
    for (name, table) in value["tables"].as_object().into_iter().flatten() {
        let formats: Vec<String> = table["formats"].as_object().into_iter().flatten().map(|(f, v)| match v.get("error") {
            Some(e) => format!("{f}: {}", text(e)),
            None => format!("{f} at entry {}{}", v["entry"], files(&v["files"])),
        }).collect();
        let formats = formats.join(", ");
        match table["horizon"].as_str() {
            Some(horizon) => lines.push(format!("table {name}: {formats}; rows before {horizon} are late{}", kept_text(&table["kept"]))),
            None => lines.push(format!("table {name}: {formats}")),
        }
        if let Some(until) = table["lacking_until"].as_str() {
            lines.push(format!("  it began at entry {}: windows that begin by {until} may lack rows from before", table["born"]));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
