//! What a person sees while a worker runs: one line that renews itself on a terminal, plain lines otherwise.

use crate::observe::Metrics;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Microseconds since 1970 as RFC 3339, to the second.
pub fn instant(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us).map_or_else(|| format!("{us} us"), |t| t.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Prints until it is aborted.
pub async fn show(metrics: Arc<Metrics>, json: bool) {
    let terminal = std::io::stderr().is_terminal() && !json;
    let every = Duration::from_secs(if terminal { 1 } else { 10 });
    let (mut before, mut at) = (0, Instant::now());
    loop {
        tokio::time::sleep(every).await;
        let records = metrics.records.load(Ordering::Relaxed);
        let rate = (records - before) as f64 / at.elapsed().as_secs_f64();
        (before, at) = (records, Instant::now());
        let line = if json { as_json(&metrics, rate) } else { line(&metrics, rate) };
        let mut err = std::io::stderr().lock();
        let _ = if terminal { write!(err, "\r\x1b[2K{line}") } else { writeln!(err, "{line}") };
        let _ = err.flush();
    }
}

/// Rows of the dead-letter tables: records and rows that could not be used, and values that did not fit when emitted.
fn dead_letters(m: &Metrics) -> u64 {
    m.dead.load(Ordering::Relaxed) + m.overflow.load(Ordering::Relaxed)
}

fn line(m: &Metrics, rate: f64) -> String {
    let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    let marks: Vec<String> = m
        .watermarks()
        .into_iter()
        .map(|(source, (at, held))| match at {
            Some(at) => format!("{source} complete to {} (held by {held})", instant(at)),
            None => format!("{source} has no watermark yet (held by {held})"),
        })
        .collect();
    let lags = m.lags();
    let lag = if lags.is_empty() { String::new() } else { format!("lag {}, ", lags.values().sum::<u64>()) };
    let last = m.last_commit().map(|ago| format!(", the last {} s ago", ago.as_secs())).unwrap_or_default();
    format!(
        "{} rows, {rate:.0} rows/s, {lag}{} open windows, {} late, {} dead, {} epochs, {} commits{last}{}",
        get(&m.records),
        get(&m.open_windows),
        get(&m.late),
        dead_letters(m),
        get(&m.epochs),
        get(&m.commits),
        marks.iter().map(|m| format!("; {m}")).collect::<String>()
    )
}

fn as_json(m: &Metrics, rate: f64) -> String {
    let mut value = summary(m);
    value["rows_per_second"] = rate.into();
    value.to_string()
}

/// The worker's numbers as one JSON object.
pub fn summary(m: &Metrics) -> serde_json::Value {
    let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    let stages: serde_json::Map<String, serde_json::Value> = m.stages().iter().map(|(n, ns)| (n.to_string(), (*ns as f64 / 1e9).into())).collect();
    let marks: serde_json::Map<String, serde_json::Value> = m.watermarks().into_iter().map(|(s, (at, _))| (s, at.map(instant).into())).collect();
    let held: BTreeMap<String, String> = m.watermarks().into_iter().map(|(s, (_, held))| (s, held)).collect();
    serde_json::json!({
        "records": get(&m.records), "bytes": get(&m.bytes), "dead": dead_letters(m), "late": get(&m.late), "ahead": get(&m.ahead),
        "epochs": get(&m.epochs), "stale_epochs": get(&m.stale), "commits": get(&m.commits), "commit_bytes": get(&m.commit_bytes),
        "commit_files_read": get(&m.commit_files_read), "runs_read": get(&m.runs_read),
        "overflow": get(&m.overflow), "pauses": get(&m.pauses), "open_windows": get(&m.open_windows), "watermarks": marks, "held_by": held, "lag": m.lags(), "alerts": m.alerts(), "cpu_seconds": stages,
    })
}
