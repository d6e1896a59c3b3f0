//! `millpond status FILE`.

use super::{OK, SystemClock, fail, load, report};
use crate::pipeline::Pipeline;
use crate::worker::progress::instant;
use crate::worker::{Clock, Place, WorkerError};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

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
        Ok(value) if a.json => println!("{value}"),
        Ok(value) => print_human(&value),
        Err(e) => return fail(&e, a.json),
    }
    OK
}

async fn status(pipeline: &Arc<Pipeline>) -> Result<Value, WorkerError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let place = Place::open(pipeline, &clock).await?;
    let Some(reading) = place.log.open().await? else {
        return Ok(json!({ "pipeline": pipeline.name, "log": null }));
    };
    let head = &reading.head;
    let time = |t: Option<i64>| t.map(instant);
    let sources: serde_json::Map<String, Value> = head
        .sources
        .iter()
        .map(|(name, s)| {
            let partitions: serde_json::Map<String, Value> = s
                .partitions
                .iter()
                .map(|(p, s)| (p.to_string(), json!({ "offset": s.offset, "latest_event": time(s.max_event_us), "name": s.name })))
                .collect();
            (name.clone(), json!({ "records": s.records, "dead": s.dead, "watermark": time(s.watermark), "partitions": partitions }))
        })
        .collect();
    let mut tables = serde_json::Map::new();
    for (record, born) in head.specs() {
        let spec = record.shared().map_err(WorkerError::Refused)?;
        let mut formats = serde_json::Map::new();
        for format in &record.formats {
            let entry = match place.formats[format].open(spec.clone()).await {
                Ok(Some(mut table)) => match table.load().await {
                    Ok(base) => json!({ "entry": base.stamp.entry, "version": base.version }),
                    Err(e) => json!({ "error": e.to_string() }),
                },
                Ok(None) => json!({ "error": "not made yet" }),
                Err(e) => json!({ "error": e.to_string() }),
            };
            formats.insert(format.to_string(), entry);
        }
        let planned = head.plan.tables.get(&record.name);
        let windows: std::collections::BTreeSet<i64> =
            head.runs.get(&record.name).into_iter().flatten().map(|r| r.run.last_window_end_us).collect();
        tables.insert(
            record.name.clone(),
            json!({
                "born": born, "formats": formats,
                "horizon": head.horizons.get(&record.name).copied().flatten().map(instant),
                "allowed_lateness_s": planned.filter(|p| p.window.is_some()).map(|p| p.allowed_lateness_us / 1_000_000),
                "windows_kept": planned.filter(|p| p.window.is_some()).map(|_| windows.len()),
            }),
        );
    }
    Ok(json!({
        "pipeline": pipeline.name, "log": head.log, "next_entry": head.next, "plan_entry": head.plan_entry,
        "checkpoint": head.checkpoint.map(|c| json!({ "entry": c.entry, "upto": c.upto })),
        "entries_read": reading.tail.len(), "attempts_condemned": head.condemned.len(), "sources": sources, "tables": tables,
    }))
}

fn print_human(value: &Value) {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    if value["log"].is_null() {
        println!("pipeline {} has not run yet", text(&value["pipeline"]));
        return;
    }
    println!("pipeline {}, log {}, next entry {}", text(&value["pipeline"]), text(&value["log"]), value["next_entry"]);
    for (name, source) in value["sources"].as_object().into_iter().flatten() {
        println!("source {name}: {} records, {} dead, complete to {}", source["records"], source["dead"], text(&source["watermark"]));
        for (partition, p) in source["partitions"].as_object().into_iter().flatten() {
            println!("  partition {partition}: offset {}, latest event {}", p["offset"], text(&p["latest_event"]));
        }
    }
    for (name, table) in value["tables"].as_object().into_iter().flatten() {
        let formats: Vec<String> = table["formats"].as_object().into_iter().flatten().map(|(f, v)| match v.get("error") {
            Some(e) => format!("{f}: {}", text(e)),
            None => format!("{f} at entry {}", v["entry"]),
        }).collect();
        let formats = formats.join(", ");
        match table["horizon"].as_str() {
            Some(horizon) => println!("table {name}: {formats}; rows before {horizon} are late; {} windows kept", table["windows_kept"]),
            None => println!("table {name}: {formats}"),
        }
    }
}
