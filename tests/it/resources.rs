//! What a worker needs goes away for a while: it waits, says why, and goes on.

use crate::support::kafka::Broker;
use crate::support::keys;
use crate::support::process::{Pipeline, until};
use crate::support::spending::{Terms, assert_content, expected, in_table, large, pipeline, produce, steady};
use std::fs::{self, File};
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// FAULTS 28: it waits, says why, stops within its deadline meanwhile, and goes on.
#[test]
fn a_broker_that_goes_away_is_waited_for() {
    let broker = Broker::own();
    let topic = "away";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-away-").tempdir().unwrap();
    let terms = Terms { epoch: "100ms", commit: "300ms", options: "" };
    let lake = pipeline(dir.path().to_path_buf(), "away", &broker, topic, &terms);
    let mut events = steady(0, 800);
    produce(&broker, topic, &events);
    let mut worker = lake.start(&["--deadline", "10"], None);
    until(PATIENCE, "the first rows are in the table", || in_table(&lake) == Some(large(&events)));

    broker.down();
    worker.wait_to_be_told("waiting for source events", PATIENCE);
    // The minute in which the timeouts of a client begin one after the other.
    std::thread::sleep(Duration::from_secs(60));
    assert!(worker.ended().is_none(), "it did not wait: {}", worker.told());
    broker.up();
    let more = steady(events.len() as i64, 800);
    produce(&broker, topic, &more);
    events.extend(more);
    until(PATIENCE, "it goes on when the broker is back", || {
        assert!(worker.ended().is_none(), "it did not go on: {}", worker.told());
        in_table(&lake) == Some(large(&events))
    });

    broker.down();
    std::thread::sleep(Duration::from_secs(2));
    worker.signal(libc::SIGTERM);
    let asked = Instant::now();
    let status = worker.wait(Duration::from_secs(20));
    assert!(status.success(), "stopped with {status}: {}", worker.told());
    assert!(asked.elapsed() < Duration::from_secs(15), "stopping took {:?} with a deadline of 10 s", asked.elapsed());
    // Nor is a start held up that never saw the broker.
    let mut started = lake.start(&["--deadline", "10"], None);
    started.wait_to_be_told("waiting for source events", PATIENCE);
    started.signal(libc::SIGTERM);
    let status = started.wait(Duration::from_secs(20));
    assert!(status.success(), "stopped with {status}: {}", started.told());
    broker.up();
    lake.complete(&["--until-end", "--final"]);
    assert_content(&lake, &expected(&events), "after the broker was away");
}

/// Runs the pipeline to its end. Returns the most pages of its own that the process had, in KiB.
fn own_pages_to_the_end(pipeline: &Pipeline, options: &[&str], what: &str) -> u64 {
    let start = Instant::now();
    let mut run = pipeline.start(options, None);
    let (mut peak_kib, mut own_kib) = (0, 0);
    let status = loop {
        peak_kib = peak_kib.max(run.peak_kib().unwrap_or(0));
        own_kib = own_kib.max(run.own_kib().unwrap_or(0));
        if let Some(status) = run.ended() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(240), "it takes too long: {}", run.told());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "ended with {status}: {}", run.told());
    println!("{what}: peak resident set {} MiB, own pages {} MiB, {:.1} s", peak_kib / 1024, own_kib / 1024, start.elapsed().as_secs_f64());
    own_kib
}

/// Runs the pipeline until more than so many entries with records are in its log, and kills it.
fn killed_in_the_midst(pipeline: &Pipeline, entries: u64) {
    let mut killed = pipeline.start(&["--until-end", "--final"], None);
    let in_log = || pipeline.query("iceberg", "select count(*) as n from millpond.epochs where kind = 'data'").ok()?.first()?["n"].as_u64();
    until(PATIENCE, "some of it is in the log", || in_log().is_some_and(|n| n > entries));
    killed.signal(libc::SIGKILL);
    killed.wait(PATIENCE);
}

/// Many groups in one window that stays open: more than the memory that the file allows.
#[test]
fn a_million_keys_in_one_open_window() {
    const KEYS: u64 = 1_000_000;
    let dir = tempfile::Builder::new().prefix("millpond-keys-").tempdir().unwrap();
    // A quarter of the keys come twice, the second time long after the first.
    keys::write_rows(&dir.path().join("rows.ndjson"), 0..KEYS + KEYS / 4, KEYS);
    let keys = Pipeline::new(dir.path().to_path_buf(), &keys::pipeline("keys", "64MiB", "1s", "2s"));
    let own_kib = own_pages_to_the_end(&keys, &["--until-end", "--final"], &format!("{KEYS} keys in one open window"));
    // 130 MiB where it was measured; 217 where `memory` is large enough for nothing to be spilled.
    assert!((1..180 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    let total = keys::total(KEYS + KEYS / 4);
    for format in ["iceberg", "delta"] {
        let sql = "select count(*) as rows, count(distinct k) as keys, sum(total) as total, sum(n) as n, sum(case when n = 2 then 1 else 0 end) as twice from by_key";
        let found = keys.numbers(format, sql, ["rows", "keys", "total", "n", "twice"]);
        assert_eq!(found, [KEYS, KEYS, total, KEYS + KEYS / 4, KEYS / 4], "{format}");
    }
}

/// FAULTS 65: more groups in one window than the memory that the file allows has room for, by far.
#[test]
fn ten_million_keys_in_one_open_window() {
    const FILES: u64 = 10;
    const KEYS: u64 = 10_000_000;
    let dir = tempfile::Builder::new().prefix("millpond-ten-million-").tempdir().unwrap();
    for file in 0..FILES {
        keys::write_rows(&dir.path().join(format!("{file}.ndjson")), file * KEYS / FILES..(file + 1) * KEYS / FILES, KEYS);
    }
    let total = keys::total(KEYS);
    let keys = Pipeline::new(dir.path().to_path_buf(), &keys::pipeline("many", "256MiB", "5s", "10s"));
    let own_kib = own_pages_to_the_end(&keys, &["--until-end", "--final"], &format!("{KEYS} keys in one open window"));
    // 272 MiB where it was measured.
    assert!((1..400 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 256MiB", own_kib / 1024);
    let sql = "select count(*) as rows, sum(total) as total, min(n) as least, max(n) as most, min(k) as first, max(k) as last, sum(k) as keys from by_key";
    for format in ["iceberg", "delta"] {
        let found = keys.numbers(format, sql, ["rows", "total", "least", "most", "first", "last", "keys"]);
        assert_eq!(found, [KEYS, total, 1, 1, 0, KEYS - 1, KEYS * (KEYS - 1) / 2], "{format}");
    }
}

/// A window that stays open over hundreds of epochs: their runs are merged, many keys and all, within what the file allows.
#[test]
fn runs_of_many_keys_are_merged_within_memory() {
    const FILES: u64 = 1_500;
    const ROWS: u64 = 2_000;
    const KEYS: u64 = 1_000_000;
    let dir = tempfile::Builder::new().prefix("millpond-merge-").tempdir().unwrap();
    // Each file is a partition, which is read in a turn of its own.
    for file in 0..FILES {
        keys::write_rows(&dir.path().join(format!("{file:04}.ndjson")), file * ROWS..(file + 1) * ROWS, KEYS);
    }
    let merging = Pipeline::new(dir.path().to_path_buf(), &keys::pipeline("merging", "64MiB", "1ms", "1s"));
    let own_kib = own_pages_to_the_end(&merging, &["--until-end"], &format!("{KEYS} keys in the runs of one window"));
    let epochs = merging.numbers("iceberg", "select count(*) as n from millpond.epochs", ["n"])[0];
    let runs = fs::read_dir(dir.path().join("lake/_millpond/merging/runs")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    assert!(runs.filter(|name| name.starts_with("merged-")).count() > 0, "nothing was merged in {epochs} epochs");
    merging.complete(&["--until-end", "--final"]);
    // 170 to 245 MiB where it was measured; 264 to 308 where the allocator held back what was beyond `memory`.
    assert!((1..300 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    let sql = "select count(*) as rows, sum(total) as total, sum(n) as n, min(n) as least, max(n) as most from by_key";
    for format in ["iceberg", "delta"] {
        let found = merging.numbers(format, sql, ["rows", "total", "n", "least", "most"]);
        assert_eq!(found, [KEYS, keys::total(FILES * ROWS), FILES * ROWS, 3, 3], "{format}");
    }
}

/// FAULTS 65: more distinct values of one group than the memory that the file allows has room for, also after a restart in the
/// midst of them, and when more come once they were counted.
#[test]
fn millions_of_distinct_values_of_one_group() {
    const FILES: u64 = 20;
    const VALUES: u64 = 3_000_000;
    let dir = tempfile::Builder::new().prefix("millpond-distinct-").tempdir().unwrap();
    // A quarter of the values come twice, the second time long after the first.
    let rows = VALUES + VALUES / 4;
    for file in 0..FILES {
        keys::write_rows(&dir.path().join(format!("{file:02}.ndjson")), file * rows / FILES..(file + 1) * rows / FILES, VALUES);
    }
    let counting = Pipeline::new(dir.path().to_path_buf(), &keys::counting("distinct", "64MiB", "100ms", "1s"));
    killed_in_the_midst(&counting, 3);
    let own_kib = own_pages_to_the_end(&counting, &["--until-end", "--final"], &format!("{VALUES} distinct values of one group"));
    let check = |rows: [u64; 3], when: &str| {
        for format in ["iceberg", "delta"] {
            assert_eq!(counting.numbers(format, "select keys, total, n from counted", ["keys", "total", "n"]), rows, "{format}, {when}");
        }
    };
    check([VALUES, keys::total(rows), rows], "counted");
    fs::write(dir.path().join("late.ndjson"), [5, VALUES, VALUES + 1, 5].map(|k| format!("{{\"k\":{k},\"at\":\"2026-01-31T11:00:00Z\",\"v\":1}}\n")).concat()).unwrap();
    let corrected_kib = own_pages_to_the_end(&counting, &["--until-end", "--final"], "four rows more");
    check([VALUES + 2, keys::total(rows) + 4, rows + 4], "corrected");
    for own_kib in [own_kib, corrected_kib] {
        // 116 to 170 MiB where it was measured; 421 where all values of a group were held at once.
        assert!((1..250 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    }
}

/// Many windows that stay open, since one partition holds the watermark back. What is kept of each must be little, in the
/// process and in the log, also after a restart in the midst of it.
#[test]
fn a_watermark_that_stands_still_over_many_windows() {
    const WINDOWS: u64 = 150_000;
    let dir = tempfile::Builder::new().prefix("millpond-windows-").tempdir().unwrap();
    let file = |name: &str| std::io::BufWriter::new(File::create(dir.path().join(name)).unwrap());
    let mut still = file("a-still.ndjson");
    writeln!(still, "{{\"k\":-1,\"at\":\"2026-01-31T00:00:00Z\"}}").unwrap();
    still.into_inner().unwrap().sync_all().unwrap();
    let begins = chrono::DateTime::parse_from_rfc3339("2026-01-31T00:00:00Z").unwrap();
    // Each window comes twice, the second time long after the first.
    for name in ["b-first.ndjson", "c-second.ndjson"] {
        let mut rows = file(name);
        for n in 0..WINDOWS {
            let at = begins + chrono::Duration::seconds((n * 7_919 % WINDOWS) as i64 + 1);
            writeln!(rows, "{{\"k\":{},\"at\":\"{}\"}}", n % 3, at.format("%Y-%m-%dT%H:%M:%SZ")).unwrap();
        }
        rows.into_inner().unwrap().sync_all().unwrap();
    }
    let yaml = r#"
pipeline: windows
sources:
  rows:
    file: "*.ndjson"
    format: json
    columns: {k: int64, at: timestamp}
    watermark: {column: at, idle_after: never, max_ahead: 365d}
tables:
  by_second:
    sql: select window_start, k, count(*) as n from tumble(rows, interval '1 second') group by window_start, k
    key: [window_start, k]
lake: {root: ./lake}
memory: 64MiB
epoch: {every: 300ms}
commit: {every: 2s}
"#;
    let windows = Pipeline::new(dir.path().to_path_buf(), yaml);
    killed_in_the_midst(&windows, 1);
    let own_kib = own_pages_to_the_end(&windows, &["--until-end", "--final"], &format!("{WINDOWS} open windows"));
    assert!((1..180 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    for format in ["iceberg", "delta"] {
        let sql = "select count(*) as rows, count(distinct window_start) as windows, sum(n) as n, min(n) as least, max(n) as most from by_second where k >= 0";
        let found = windows.numbers(format, sql, ["rows", "windows", "n", "least", "most"]);
        assert_eq!(found, [WINDOWS, WINDOWS, 2 * WINDOWS, 2, 2], "{format}");
    }
}

/// A lake that takes no commits: what is decided and not in the tables is bounded by `backlog`, then reading stops; it goes on
/// where it stopped.
#[test]
fn a_lake_that_takes_nothing_stops_the_reading() {
    let dir = tempfile::Builder::new().prefix("millpond-backlog-").tempdir().unwrap();
    let write = |name: &str, rows: u64| {
        let mut file = std::io::BufWriter::new(File::create(dir.path().join(name)).unwrap());
        for n in 0..rows {
            writeln!(file, "{{\"k\":{n},\"text\":\"{:032x}\"}}", u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)).unwrap();
        }
        file.into_inner().unwrap().sync_all().unwrap();
    };
    write("a.ndjson", 1);
    let yaml = r#"
pipeline: backlog
sources:
  rows: {file: "*.ndjson", format: json, columns: {k: int64, text: string}}
tables:
  plain: {sql: "select k, text from rows", formats: [iceberg]}
lake: {root: ./lake, iceberg: {catalog: sql, uri: "sqlite://./lake/catalog.db"}}
memory: 32MiB
backlog: {bytes: 1MiB}
epoch: {every: 100ms}
commit: {every: 200ms}
"#;
    let lake = Pipeline::new(dir.path().to_path_buf(), yaml);
    lake.complete(&["--until-end"]);
    const ROWS: u64 = 1_500_000;
    write("b.ndjson", ROWS);
    let others = rusqlite::Connection::open(dir.path().join("lake/catalog.db")).unwrap();
    others.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut run = lake.start(&["--until-end"], None);
    run.wait_to_be_told("too far behind the log", PATIENCE);
    // What was under way may still be decided, then nothing more is.
    std::thread::sleep(Duration::from_secs(1));
    let (decided, now) = (lake.log("backlog"), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lake.log("backlog"), decided, "the log went on for {:?}", now.elapsed());
    assert!(run.ended().is_none(), "it ended: {}", run.told());
    let logged: u64 = lake.query("iceberg", "select cast(sum(to_offset - from_offset) as bigint) as n from millpond.epochs").unwrap()[0]["n"].as_u64().unwrap();
    assert!(logged < ROWS, "all was read before it stopped: {logged} of {ROWS}");
    others.execute_batch("ROLLBACK").unwrap();
    let status = run.wait(PATIENCE);
    assert!(status.success(), "ended with {status}: {}", run.told());
    let found = lake.query("iceberg", "select count(*) as n, count(distinct k) as k from plain").unwrap();
    assert_eq!((found[0]["n"].as_u64(), found[0]["k"].as_u64()), (Some(ROWS + 1), Some(ROWS)));
}

/// What waits for the tables is at most the backlog, whatever the cadence of commits: a full one is committed at once.
#[test]
fn a_full_backlog_is_committed_before_its_time() {
    const ROWS: u64 = 400_000;
    let dir = tempfile::Builder::new().prefix("millpond-early-").tempdir().unwrap();
    let mut file = std::io::BufWriter::new(File::create(dir.path().join("rows.ndjson")).unwrap());
    for n in 0..ROWS {
        writeln!(file, "{{\"k\":{n},\"text\":\"{:016x}\"}}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).unwrap();
    }
    file.into_inner().unwrap().sync_all().unwrap();
    let yaml = r#"
pipeline: early
sources:
  rows: {file: rows.ndjson, format: json, columns: {k: int64, text: string}}
tables:
  plain: {sql: "select k, text from rows"}
lake: {root: ./lake}
memory: 32MiB
backlog: {bytes: 128KiB}
epoch: {every: 20ms}
commit: {every: 1h}
"#;
    let lake = Pipeline::new(dir.path().to_path_buf(), yaml);
    lake.complete(&["--until-end"]);
    for format in ["iceberg", "delta"] {
        let found = lake.query(format, "select count(*) as n, count(distinct k) as k from plain").unwrap();
        assert_eq!((found[0]["n"].as_u64(), found[0]["k"].as_u64()), (Some(ROWS), Some(ROWS)), "{format}");
        let commits = format!("select count(*) as n from millpond.commits where table_name = 'plain' and format = '{format}'");
        assert!(lake.query(format, &commits).unwrap()[0]["n"].as_u64() > Some(2), "nothing was committed before its time");
    }
}

/// Two sources in one file: each has its own offsets, dead letters and tables; they share the log, the lake and the proof.
#[test]
fn two_sources_in_one_file() {
    let dir = tempfile::Builder::new().prefix("millpond-two-").tempdir().unwrap();
    let yaml = r#"
pipeline: two
sources:
  orders:
    file: "orders*.ndjson"
    format: json
    columns: {id: int64, at: timestamp, amount: "decimal(12,2)"}
    watermark: {column: at}
  clicks: {file: "clicks*.ndjson", format: json, columns: {id: int64, page: string}}
tables:
  hourly:
    sql: select window_start, sum(amount) as total, count(*) as n from tumble(orders, interval '1 hour') group by window_start
    key: [window_start]
  pages: {sql: "select id, page from clicks"}
  orders_plain: {sql: "select id, amount from orders"}
lake: {root: ./lake}
"#;
    let two = Pipeline::new(dir.path().to_path_buf(), yaml);
    for round in 0..2 {
        let order = |id: u64| format!("{{\"id\":{id},\"at\":\"2026-01-31T1{round}:30:00Z\",\"amount\":\"1.50\"}}\n");
        let click = |id: u64| format!("{{\"id\":{id},\"page\":\"/{id}\"}}\n");
        fs::write(dir.path().join(format!("orders-{round}.ndjson")), format!("{}{}no order\n", order(1), order(2))).unwrap();
        fs::write(dir.path().join(format!("clicks-{round}.ndjson")), format!("{}{}{}no click\nnor this\n", click(1), click(2), click(3))).unwrap();
        two.complete(if round == 0 { &["--until-end"] } else { &["--until-end", "--final"] });
    }
    for format in ["iceberg", "delta"] {
        let count = |table: &str| two.query(format, &format!("select count(*) as n from {table}")).unwrap()[0]["n"].as_u64();
        let counts = ["hourly", "pages", "orders_plain", "orders__dead", "clicks__dead"].map(|t| count(t).unwrap());
        assert_eq!(counts, [2, 6, 4, 2, 4], "{format}");
        let sums = two.query(format, "select cast(sum(total) as varchar) as s, sum(n) as n from hourly").unwrap();
        assert_eq!((sums[0]["s"].as_str(), sums[0]["n"].as_u64()), (Some("6.00"), Some(4)), "{format}");
    }
    let (code, said) = two.verify(&["--deep"]);
    assert_eq!(code, Some(0), "{said}");
    let status = Command::new(env!("CARGO_BIN_EXE_millpond")).args(["status", "pipeline.yaml", "--json"]).current_dir(dir.path()).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("\"orders\"") && status.contains("\"clicks\""), "{status}");
}
