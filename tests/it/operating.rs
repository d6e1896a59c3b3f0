//! What an operator sees of a run and does to it: metrics, signals, secrets.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::millpond::{Pond, reader};

const PIPELINE: &str = "
pipeline: watched
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, at: timestamp}
    watermark: {column: at}
tables:
  minutes:
    sql: select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start
    key: [window_start]
  ids: {sql: select id from events}
lake: {root: ./lake}
epoch: {every: 50ms}
commit: {every: 100ms}
";

/// Appends `n` events, a second apart, to the file of `dir`.
fn arrive(dir: &Path, from: i64, n: i64) {
    let mut file = fs::File::options().create(true).append(true).open(dir.join("events.ndjson")).unwrap();
    for id in from..from + n {
        writeln!(file, "{{\"id\":{id},\"at\":\"2026-01-31T{:02}:{:02}:{:02}Z\"}}", id / 3600, id / 60 % 60, id % 60).unwrap();
    }
}

/// Status and body that a path of the port answers with.
fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_string()))
}

/// The names in the first column of the README's table of metrics.
fn documented() -> BTreeSet<String> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|l| l.strip_prefix("| `millpond_")?.split(" |").next().map(|cell| format!("`millpond_{cell}")));
    rows.flat_map(|cell| cell.split('`').filter(|w| w.starts_with("millpond_")).map(|w| w.split('{').next().unwrap().to_string()).collect::<Vec<_>>()).collect()
}

/// One line that renews itself on a terminal; whole lines elsewhere.
#[test]
fn a_run_shows_how_it_goes() {
    let pond = Pond::new(PIPELINE);
    arrive(pond.path(), 0, 500);
    // The last second holds the watermark, the 500th, at 00:08:19.
    let parts = ["500 rows, ", " rows/s, ", " open windows, 0 late, 0 dead, ", " epochs, ", " commits, the last ", " s ago; events complete to 2026-01-31T00:08:19Z (held by partition 0)"];
    let shown = pond.on_a_terminal(&["run", "pipeline.yaml"], &parts);
    // Each begins where the one before it did.
    assert!(shown.contains("\r\x1b[2K500 rows, "), "{shown:?}");
    let mut running = pond.start(&["run", "pipeline.yaml"]);
    running.until_told(" rows/s, ");
    running.signal(libc::SIGTERM);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!ended.stderr.contains(['\r', '\x1b']), "{ended:?}");
}

#[test]
fn metrics_have_the_names_of_the_readme_and_count() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pond = Pond::new(&format!("{PIPELINE}observe: {{listen: \"127.0.0.1:{port}\"}}\n"));
    arrive(pond.path(), 0, 500);
    let mut running = pond.start(&["run", "pipeline.yaml"]);
    let value = |body: &str, name: &str| body.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
    let start = Instant::now();
    let body = loop {
        // Every row in both formats of both tables: the last commit is counted after it was made.
        match get(port, "/metrics") {
            Some((200, body)) if value(&body, "millpond_records_total") == Some(500.0) && value(&body, "millpond_commits_total") >= Some(4.0) => break body,
            _ => assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr()),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(get(port, "/livez").map(|(code, _)| code), Some(200));
    assert_eq!(get(port, "/readyz").map(|(code, _)| code), Some(200));
    let typed: BTreeSet<String> = body.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_string)).collect();
    assert_eq!(typed, documented(), "left: what /metrics shows, right: what README.md says");
    for line in body.lines().filter(|l| !l.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(typed.contains(name), "{line} has no TYPE");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    for stage in ["consume", "decode", "partial", "run", "fold", "parquet", "commit"] {
        assert!(value(&body, &format!("millpond_stage_cpu_seconds_total{{stage=\"{stage}\"}}")).is_some(), "{stage}: {body}");
    }
    // The last event closes what begins before it.
    assert_eq!(value(&body, "millpond_watermark_seconds{source=\"events\"}"), Some(1_769_817_600.0 + 499.0));
    running.signal_if_alive(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
}

/// FAULTS 66: an epoch of more partitions than a table may have files open.
#[test]
fn f66_more_partitions_than_files_may_be_open_are_written_and_corrected() {
    const PARTITIONS: usize = 300;
    let pond = Pond::new(
        "
pipeline: parted
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, at: timestamp}
    watermark: {column: at}
tables:
  by_id: {sql: \"select window_start, id, count(*) as n from tumble(events, interval '1 hour') group by window_start, id\", key: [window_start, id], allowed_lateness: 5h, partition_by: [id]}
lake: {root: ./lake}
",
    );
    let mut text = String::new();
    for turn in 1..=2 {
        (0..2 * PARTITIONS).for_each(|n| text += &format!("{{\"id\":{},\"at\":\"2026-01-31T10:00:00Z\"}}\n", n % PARTITIONS));
        fs::write(pond.path().join("events.ndjson"), &text).unwrap();
        pond.run(&["--final"]);
        for format in ["iceberg", "delta"] {
            let found = pond.query_in(format, "select count(*) as rows, count(distinct id) as ids, min(n) as least, max(n) as most from by_id");
            assert_eq!(found, [serde_json::json!({"rows": PARTITIONS, "ids": PARTITIONS, "least": 2 * turn, "most": 2 * turn})], "{format}");
        }
    }
    pond.assert_proven();
}

/// FAULTS 67: nobody finds out by slow queries alone that a table has come to consist of small files.
#[test]
fn f67_many_small_files_are_counted_and_told_until_they_are_compacted() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let plain = "
pipeline: scattered
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, user: string}
tables:
  by_user: {sql: \"select id, user from events\", partition_by: [user]}
lake: {root: ./lake}
epoch: {every: 50ms}
commit: {every: 200ms}
";
    let pond = Pond::new(&format!("{plain}observe: {{listen: \"127.0.0.1:{port}\"}}\n"));
    let mut written = 0;
    let mut arrive = |n: i64| {
        let mut file = fs::File::options().create(true).append(true).open(pond.path().join("events.ndjson")).unwrap();
        for id in written..written + n {
            writeln!(file, "{{\"id\":{id},\"user\":\"u{}\"}}", id % 250).unwrap();
        }
        written += n;
    };
    let told = |format: &str| format!("alert: {format} table by_user: ");
    let finish = || {
        let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stderr
    };
    for _ in 0..4 {
        arrive(250);
        let said = finish();
        assert!(!said.contains("alert:"), "a thousand files are none too many: {said}");
    }
    arrive(10);
    let said = finish();
    for (format, remedy) in [("iceberg", "rewrite_data_files"), ("delta", "optimize.compact()")] {
        let line = said.lines().find(|l| l.starts_with(&told(format))).unwrap_or_else(|| panic!("nothing of {format}: {said}"));
        assert!(line.contains("1010 data files (0 with deletes)") && line.contains(remedy) && line.contains("`commit.every`"), "{line}");
        assert_eq!(pond.status()["tables"]["by_user"]["formats"][format]["files"]["data"], 1010);
    }

    let lake = pond.path().join("lake");
    let compacted = reader(&["delta-compact", lake.join("delta/scattered/by_user").to_str().unwrap()]);
    assert!(compacted[0]["files_removed"].as_i64() >= Some(1000), "{compacted:?}");
    arrive(10);
    let mut running = pond.start(&["run", "pipeline.yaml"]);
    let start = Instant::now();
    let of = |format: &str| format!("{{table=\"by_user\",format=\"{format}\"}}");
    let counted = [("iceberg", 1020), ("delta", 260)].map(|(format, files)| format!("\nmillpond_data_files{} {files}\n", of(format)));
    let body = loop {
        match get(port, "/metrics") {
            Some((200, body)) if counted.iter().all(|line| body.contains(line)) => break body,
            answer => assert!(start.elapsed() < Duration::from_secs(60), "{answer:?}, {}", running.stderr()),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    for format in ["iceberg", "delta"] {
        assert!(body.contains(&format!("\nmillpond_delete_files{} 0\n", of(format))), "{body}");
        assert_eq!(body.contains(&format!("\nmillpond_alert{{about=\"{format} table by_user\"}} 1\n")), format == "iceberg", "{body}");
    }
    running.signal_if_alive(libc::SIGTERM);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains(&told("iceberg")) && !ended.stderr.contains(&told("delta")), "{ended:?}");
}

/// FAULTS 7: who does not want to wait for the drain asks again.
#[test]
fn a_second_signal_ends_it_at_once_and_nothing_is_lost() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0, 100);
    pond.until_end();
    // A writer on the catalog: what is decided now cannot be drained.
    let others = rusqlite::Connection::open(dir.join("lake/catalog.db")).unwrap();
    others.execute_batch("BEGIN IMMEDIATE").unwrap();
    arrive(&dir, 100, 200);
    let mut running = pond.start(&["run", "pipeline.yaml"]);
    running.until_told("waiting for");
    running.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(500));
    running.signal(libc::SIGINT);
    let asked = Instant::now();
    let ended = running.wait();
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "at once is not {:?}", asked.elapsed());
    others.execute_batch("ROLLBACK").unwrap();
    pond.until_end();
    for format in ["iceberg", "delta"] {
        let found = pond.query_in(format, "select count(*) as n, count(distinct id) as ids from ids");
        assert_eq!(found[0], serde_json::json!({"n": 300, "ids": 300}), "{format}");
    }
    pond.assert_proven();
}
