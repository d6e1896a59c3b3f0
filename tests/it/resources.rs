//! What a worker needs goes away for a while: it waits, says why, and goes on.

use crate::support::kafka::Broker;
use crate::support::process::{Pipeline, until};
use crate::support::skip;
use crate::support::spending::{Event, Terms, assert_content, expected, pipeline, produce, steady};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(90);

/// How many of the events the plain table must hold.
fn large(events: &[Event]) -> usize {
    expected(events).get("large").map_or(0, Vec::len)
}

fn in_table(pipeline: &Pipeline) -> Option<usize> {
    let rows = pipeline.query("delta", "select count(*) as n from large").ok()?;
    rows.first()?["n"].as_u64().map(|n| n as usize)
}

/// A file system of its own, unmounted at the end.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    pub fn tmpfs(at: &'a Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then_some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

/// FAULTS 64, and 7: a stop keeps its deadline while nothing can be written.
#[test]
fn a_full_disk_is_waited_for() {
    let dir = tempfile::Builder::new().prefix("millpond-full-").tempdir().unwrap();
    let lake = dir.path().join("lake");
    let Some(_mounted) = Mounted::tmpfs(&lake, 24) else {
        skip("resources::a_full_disk_is_waited_for", "a file system of limited size cannot be mounted here (needs root)");
        return;
    };
    let broker = Broker::start();
    let topic = "full_disk";
    broker.create_topic(topic, 4);
    let terms = Terms { epoch: "100ms", commit: "300ms", options: "" };
    let full = pipeline(dir.path().to_path_buf(), "full", broker, topic, &terms);
    let mut events = steady(0, 800);
    produce(broker, topic, &events);
    let mut worker = full.start(&["--deadline", "5"], None);
    until(PATIENCE, "the first rows are in the table", || in_table(&full) == Some(large(&events)));

    let ballast = lake.join("ballast");
    let mut filling = File::create(&ballast).unwrap();
    let block = vec![7u8; 4096];
    while filling.write_all(&block).is_ok() {}
    let more = steady(events.len() as i64, 800);
    produce(broker, topic, &more);
    events.extend(more);
    worker.wait_to_be_told("waiting for", PATIENCE);
    let told = worker.told();
    assert!(told.to_lowercase().contains("no space") || told.to_lowercase().contains("full"), "it does not say why: {told}");
    std::thread::sleep(Duration::from_secs(3));
    assert!(worker.ended().is_none(), "it did not wait: {}", worker.told());
    // Stopping does not wait for space; whatever was decided is brought to the tables by the next one.
    worker.signal(libc::SIGTERM);
    let status = worker.wait(Duration::from_secs(20));
    assert!(status.success(), "stopped with {status}: {}", worker.told());
    drop(filling);
    fs::remove_file(&ballast).unwrap();
    let mut worker = full.start(&["--deadline", "5"], None);
    until(PATIENCE, "the next one goes on", || {
        assert!(worker.ended().is_none(), "it did not go on: {}", worker.told());
        in_table(&full) == Some(large(&events))
    });

    // Once more, and now the same worker lives to see the space come back.
    let mut filling = File::create(&ballast).unwrap();
    while filling.write_all(&block).is_ok() {}
    let more = steady(events.len() as i64, 800);
    produce(broker, topic, &more);
    events.extend(more);
    worker.wait_to_be_told("waiting for", PATIENCE);
    std::thread::sleep(Duration::from_secs(3));
    assert!(worker.ended().is_none(), "it did not wait: {}", worker.told());
    drop(filling);
    fs::remove_file(&ballast).unwrap();
    until(PATIENCE, "it goes on when there is space again", || {
        assert!(worker.ended().is_none(), "it did not go on: {}", worker.told());
        in_table(&full) == Some(large(&events))
    });
    worker.signal(libc::SIGTERM);
    let status = worker.wait(Duration::from_secs(40));
    assert!(status.success(), "stopped with {status}: {}", worker.told());
    full.complete(&["--until-end", "--final"]);
    assert_content(&full, &expected(&events), "after a full disk");
}

/// A start needs space before there is anything to fall back on: it says so, is not ready, and goes on.
#[test]
fn a_disk_that_is_full_at_the_start_is_waited_for() {
    let dir = tempfile::Builder::new().prefix("millpond-full-start-").tempdir().unwrap();
    let lake = dir.path().join("lake");
    let Some(_mounted) = Mounted::tmpfs(&lake, 8) else {
        skip("resources::a_disk_that_is_full_at_the_start_is_waited_for", "a file system of limited size cannot be mounted here (needs root)");
        return;
    };
    fs::write(dir.path().join("rows.ndjson"), "{\"k\":1}\n{\"k\":2}\n").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!(
        "pipeline: started\nsources:\n  rows: {{file: rows.ndjson, columns: {{k: int64}}}}\ntables:\n  copied: {{sql: select k from rows}}\nlake: {{root: ./lake}}\nobserve: {{listen: \"127.0.0.1:{port}\"}}\n"
    );
    let full = Pipeline::new(dir.path().to_path_buf(), &yaml);
    let ballast = lake.join("ballast");
    let fill = || {
        let mut filling = File::create(&ballast).unwrap();
        let block = vec![7u8; 4096];
        while filling.write_all(&block).is_ok() {}
    };
    let ready = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
        answer.split(' ').nth(1)?.parse::<u16>().ok()
    };
    fill();
    // Told to stop it stops, and owes nobody anything.
    let mut run = full.start(&["--until-end"], None);
    run.wait_to_be_told("waiting for lake", PATIENCE);
    let told = run.told().to_lowercase();
    assert!(told.contains("no space") || told.contains("full"), "it does not say why: {told}");
    run.signal(libc::SIGTERM);
    let status = run.wait(Duration::from_secs(10));
    assert!(status.success(), "stopped with {status}: {}", run.told());

    let mut run = full.start(&["--until-end"], None);
    run.wait_to_be_told("waiting for lake", PATIENCE);
    std::thread::sleep(Duration::from_secs(3));
    assert!(run.ended().is_none(), "it did not wait: {}", run.told());
    assert_eq!(ready(), Some(503));
    fs::remove_file(&ballast).unwrap();
    let status = run.wait(PATIENCE);
    assert!(status.success(), "ended with {status}: {}", run.told());
    for format in ["iceberg", "delta"] {
        assert_eq!(full.query(format, "select count(*) as n from copied").unwrap()[0]["n"].as_u64(), Some(2), "{format}");
    }
    // Another trouble at the start is not waited for.
    fs::write(dir.path().join("pipeline.yaml"), yaml.replace("./lake", "./rows.ndjson")).unwrap();
    let mut run = full.start(&["--until-end"], None);
    assert_eq!(run.wait(Duration::from_secs(20)).code(), Some(69), "{}", run.told());
}

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
fn own_pages_to_the_end(pipeline: &Pipeline, what: &str) -> u64 {
    let start = Instant::now();
    let mut run = pipeline.start(&["--until-end", "--final"], None);
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

/// Many groups in one window that stays open: more than the memory that the file allows.
#[test]
fn a_million_keys_in_one_open_window() {
    const KEYS: u64 = 1_000_000;
    let dir = tempfile::Builder::new().prefix("millpond-keys-").tempdir().unwrap();
    let mut rows = std::io::BufWriter::new(File::create(dir.path().join("rows.ndjson")).unwrap());
    for n in 0..KEYS + KEYS / 4 {
        // A quarter of the keys come twice, the second time long after the first.
        writeln!(rows, "{{\"k\":{},\"at\":\"2026-01-31T10:00:00Z\",\"v\":{}}}", n * 7_919 % KEYS, n % 1000).unwrap();
    }
    rows.into_inner().unwrap().sync_all().unwrap();
    let yaml = r#"
pipeline: keys
sources:
  rows:
    file: rows.ndjson
    format: json
    columns: {k: int64, at: timestamp, v: int64}
    watermark: {column: at}
tables:
  by_key:
    sql: select window_start, k, sum(v) as total, count(*) as n from tumble(rows, interval '1 day') group by window_start, k
    key: [window_start, k]
lake: {root: ./lake}
memory: 64MiB
epoch: {every: 1s}
commit: {every: 2s}
"#;
    let keys = Pipeline::new(dir.path().to_path_buf(), yaml);
    let own_kib = own_pages_to_the_end(&keys, &format!("{KEYS} keys in one open window"));
    // 130 MiB where it was measured; 217 where `memory` is large enough for nothing to be spilled.
    assert!((1..180 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    let total: u64 = (0..KEYS + KEYS / 4).map(|n| n % 1000).sum();
    for format in ["iceberg", "delta"] {
        let sql = "select count(*) as rows, count(distinct k) as keys, sum(total) as total, sum(n) as n, sum(case when n = 2 then 1 else 0 end) as twice from by_key";
        let found = keys.query(format, sql).unwrap();
        let number = |name: &str| found[0][name].as_u64().or_else(|| found[0][name].as_str()?.parse().ok());
        assert_eq!(number("rows"), Some(KEYS), "{format}: {found:?}");
        assert_eq!(number("keys"), Some(KEYS), "{format}");
        assert_eq!(number("total"), Some(total), "{format}");
        assert_eq!(number("n"), Some(KEYS + KEYS / 4), "{format}");
        assert_eq!(number("twice"), Some(KEYS / 4), "{format}");
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
    let mut killed = windows.start(&["--until-end", "--final"], None);
    let in_log = || windows.query("iceberg", "select count(*) as n from millpond.epochs").ok()?.first()?["n"].as_u64();
    until(PATIENCE, "some of it is in the log", || in_log().is_some_and(|n| n > 1));
    killed.signal(libc::SIGKILL);
    killed.wait(PATIENCE);
    let own_kib = own_pages_to_the_end(&windows, &format!("{WINDOWS} open windows"));
    assert!((1..180 * 1024).contains(&own_kib), "{} MiB of own pages for memory: 64MiB", own_kib / 1024);
    for format in ["iceberg", "delta"] {
        let sql = "select count(*) as rows, count(distinct window_start) as windows, sum(n) as n, min(n) as least, max(n) as most from by_second where k >= 0";
        let found = windows.query(format, sql).unwrap();
        let number = |name: &str| found[0][name].as_u64().or_else(|| found[0][name].as_str()?.parse().ok());
        let all = ["rows", "windows", "n", "least", "most"].map(|name| number(name).unwrap());
        assert_eq!(all, [WINDOWS, WINDOWS, 2 * WINDOWS, 2, 2], "{format}");
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
