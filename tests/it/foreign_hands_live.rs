//! Other engines at the tables of a worker that runs: they compact, append, delete, expire and vacuum
//! while it commits several times a second. What they do is kept, what it does is neither lost nor doubled.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::kafka::Broker;
use crate::support::millpond::act;
use crate::support::process::{Pipeline, until};
use crate::support::spending::{Content, Growing, Terms, content, difference, expected, pipeline, produce, steady};

const PATIENCE: Duration = Duration::from_secs(90);
const FORMATS: [&str; 2] = ["delta", "iceberg"];
const NAME: &str = "live_hands";
/// Rows whose id is below it are in the tables when others delete some of them.
const OLD: i64 = 600;

/// One round of what others do, on both formats; `nth` names the rows that they append.
fn round(nth: i64) -> Vec<Value> {
    let row = json!([{"id": -nth, "user_id": "other", "event_time": "2026-01-30T10:00:00+00:00", "amount": "700.00"}]);
    let window = json!([{"window_start": format!("2026-01-30T10:{nth:02}:00+00:00"), "user_id": "other", "total": "1.00", "n": 1, "last_id": -nth}]);
    let mut steps = vec![];
    for format in FORMATS {
        steps.push(json!({"in": format, "do": "append", "table": "large", "rows": row, "tries": 50}));
        steps.push(json!({"in": format, "do": "append", "table": "spend", "rows": window, "tries": 50}));
        for table in ["large", "spend", "spend_log"] {
            // PyIceberg's way, which is an overwrite, and that of engines which know `replace`.
            let compact = if format == "iceberg" && nth % 2 == 0 { "replace" } else { "compact" };
            steps.push(json!({"in": format, "do": compact, "table": table, "tries": 50}));
            // What was compacted away goes at once: a worker that still reads it finds it gone.
            let clean = if format == "delta" { "vacuum" } else { "expire" };
            steps.push(json!({"in": format, "do": clean, "table": table, "tries": 50}));
        }
    }
    steps
}

/// What the tables hold of the source, and what others made of it.
fn with_others(events: i64, rounds: i64) -> Content {
    let mut rows = expected(&steady(0, events));
    for nth in 1..=rounds {
        rows.entry("large".into()).or_default().push(format!("{} other 1769767200000000 700.00", -nth));
        let window = 1_769_767_200_000_000 + nth * 60_000_000;
        rows.entry("spend".into()).or_default().push(format!("{window} other 1.00 1 {}", -nth));
    }
    rows.values_mut().for_each(|r| r.sort());
    rows
}

fn is_deleted(table: &str, row: &str) -> bool {
    let mut words = row.split(' ');
    let first: i64 = words.next().unwrap().parse().unwrap();
    match table {
        "large" => (0..OLD).contains(&first) && words.next() == Some("u3"),
        "spend" => (1_769_853_600_000_000..1_769_853_600_000_000 + 120_000_000).contains(&first) && words.next() == Some("u3"),
        _ => false,
    }
}

fn assert_holds(lake: &Pipeline, expected: &Content, when: &str) {
    for format in FORMATS {
        let found = content(lake, format).unwrap_or_else(|e| panic!("{when}: {format}: {e}"));
        if let Some(said) = difference(&found, expected) {
            panic!("{when}: {format} tables in {}:\n{said}", lake.dir.display());
        }
    }
}

/// FAULTS 10, 19, 20, with both sides at work.
#[test]
fn others_commit_to_the_tables_of_a_worker_that_runs() {
    let broker = Broker::start();
    let topic = "live_hands";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-live-hands-").tempdir().unwrap();
    let terms = Terms { epoch: "60ms", commit: "2s", options: "" };
    let lake = pipeline(dir.path().to_path_buf(), NAME, broker, topic, &terms);
    let root: PathBuf = dir.path().join("lake");
    let growing = Growing::new(broker, topic);
    let rounds = 2;
    std::thread::scope(|scope| {
        scope.spawn(|| growing.write());
        let done = growing.enough();
        let mut worker = lake.start(&[], None);
        let count = |format: &str, sql: &str| lake.query(format, sql).ok().and_then(|r| r.first()?["n"].as_i64()).unwrap_or(0);
        // Two windows are over when the third begins, ten seconds of delay later.
        let closed = "select count(distinct window_start) as n from spend";
        until(PATIENCE, "the first windows are in the tables", || FORMATS.iter().all(|f| count(f, closed) >= 3));
        let root = root.canonicalize().unwrap();
        let steps: Vec<Value> = (1..=rounds).flat_map(round).collect();
        act(&root, NAME, &steps);

        let old = expected(&steady(0, OLD))["large"].len() as i64;
        let there = format!("select count(*) as n from large where id >= 0 and id < {OLD}");
        until(PATIENCE, "the old rows are in the tables", || FORMATS.iter().all(|f| count(f, &there) >= old));
        let delete = |format: &str| {
            let windows = "user_id = 'u3' and window_start >= '2026-01-31T10:00:00+00:00' and window_start < '2026-01-31T10:02:00+00:00'";
            [
                json!({"in": format, "do": "delete", "table": "large", "where": format!("user_id = 'u3' and id >= 0 and id < {OLD}"), "tries": 50}),
                json!({"in": format, "do": "delete", "table": "spend", "where": windows, "tries": 50}),
            ]
        };
        act(&root, NAME, FORMATS.map(delete).as_flattened());
        let at = growing.written();
        until(PATIENCE, "the worker goes on", || {
            assert!(worker.ended().is_none(), "the worker ended: {}", worker.told());
            FORMATS.iter().all(|f| count(f, "select max(id) as n from large") > at)
        });
        drop(done);
        worker.signal(libc::SIGTERM);
        let status = worker.wait(Duration::from_secs(40));
        assert!(status.success(), "stopped with {status}: {}", worker.told());
    });
    lake.complete(&["--until-end", "--final"]);

    let whole = with_others(growing.written(), rounds);
    let mut rows = whole.clone();
    rows.iter_mut().for_each(|(table, rows)| rows.retain(|r| !is_deleted(table, r)));
    let gone: BTreeMap<&str, usize> = ["large", "spend"].map(|t| (t, whole[t].len() - rows[t].len())).into();
    assert!(gone.values().all(|n| *n > 0), "{gone:?}");
    assert_holds(&lake, &rows, "after others were at work");
    judged(&lake, &gone, rounds as usize);
}

/// `verify` says what is so: the tables are sound, others deleted and appended rows, and nothing else differs.
fn judged(lake: &Pipeline, gone: &BTreeMap<&str, usize>, appended: usize) {
    // Of what others expired nobody can count any more what they took away: structure alone proves nothing then.
    let (code, said) = lake.verify(&["--caught-up"]);
    assert!(code == Some(4) && said.contains("iceberg table large") && !said.contains("WRONG"), "{said}");
    let (code, said) = lake.verify(&["--caught-up", "--deep", "--table", "spend_log"]);
    assert_eq!(code, Some(0), "a table that others only compacted: {said}");
    for table in ["large", "spend"] {
        let (code, said) = lake.verify(&["--caught-up", "--deep", "--json", "--table", table]);
        let found: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {said}"));
        assert_eq!(code, Some(3), "{said}");
        let report = &found["report"];
        for format in FORMATS {
            let findings = report["findings"].as_array().unwrap().iter().filter(|f| f["format"] == format);
            let differ: BTreeMap<&str, u64> = findings.map(|f| (f["kind"].as_str().unwrap(), f["count"].as_u64().unwrap())).collect();
            assert_eq!(differ, [("row-extra", appended as u64), ("row-missing", gone[table] as u64)].into(), "{format} {table}: {report:#}");
            let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).filter(|n| n.starts_with(&format!("{format} table {table}: commit "))).collect();
            assert!(notes.iter().all(|n| n.contains(" is not ours: ")), "{notes:?}");
            assert_eq!(named(&notes, "fewer"), gone[table] as u64, "{format} {table}: {notes:#?}");
            // Of Iceberg's snapshots only those since the last expiry are left.
            assert_eq!(named(&notes, "more"), if format == "delta" { appended as u64 } else { 0 }, "{format} {table}: {notes:#?}");
        }
    }
}

/// The sum of the rows that notes call `fewer`, or `more`.
fn named(notes: &[&str], what: &str) -> u64 {
    let count = |note: &&str| note.strip_suffix(what)?.trim_end().trim_end_matches("rows").trim_end().rsplit(' ').next()?.parse::<u64>().ok();
    notes.iter().filter_map(count).sum()
}

/// A folder or a file, and what lies in it, as a backup takes it and puts it back.
fn put(from: &Path, to: &Path) {
    if from.is_dir() {
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
            put(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// The catalog with what SQLite has not moved into it yet.
fn put_catalog(from: &Path, to: &Path) {
    for name in ["catalog.db-shm", "catalog.db-wal", "catalog.db"] {
        let _ = fs::remove_file(to.join(name));
    }
    for name in ["catalog.db", "catalog.db-wal"].into_iter().filter(|n| from.join(n).exists()) {
        put(&from.join(name), &to.join(name));
    }
}

/// FAULTS 21: a backup of the catalog, or of a table, is put back that is older than what the log still
/// holds. What came in between is nowhere else: going on would lose it silently.
#[test]
fn an_older_copy_of_a_table_is_refused_until_the_newer_one_is_back() {
    let broker = Broker::start();
    let topic = "older_copy";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-older-copy-").tempdir().unwrap();
    let terms = Terms { epoch: "20ms", commit: "60ms", options: "" };
    let lake = pipeline(dir.path().to_path_buf(), "older", broker, topic, &terms);
    let (root, older, newer) = (dir.path().join("lake"), dir.path().join("of yesterday"), dir.path().join("of today"));
    for folder in [&older, &newer] {
        fs::create_dir_all(folder).unwrap();
    }
    let mut written = 0;
    let mut more = || {
        produce(broker, topic, &steady(written, 24));
        written += 24;
    };
    let count = |format: &str| lake.query(format, "select count(*) as n from large").ok().and_then(|r| r.first()?["n"].as_i64()).unwrap_or(0);

    more();
    let mut worker = lake.start(&[], None);
    until(PATIENCE, "rows are in the tables", || FORMATS.iter().all(|f| count(f) > 0));
    worker.signal(libc::SIGTERM);
    worker.wait(PATIENCE);
    put_catalog(&root, &older);
    put(&root.join("delta/older/large"), &older.join("large"));
    let at = lake.log("older").last().copied().unwrap();

    // The catalog is replaced under a worker whose log has left that copy behind.
    let mut worker = lake.start(&[], None);
    until(PATIENCE, "the log is truncated past the copies", || {
        more();
        lake.log("older").first().is_some_and(|first| *first > at + 1)
    });
    worker.signal(libc::SIGSTOP);
    put_catalog(&root, &newer);
    put_catalog(&older, &root);
    worker.signal(libc::SIGCONT);
    more();
    assert_eq!(worker.wait(PATIENCE).code(), Some(75), "{}", worker.told());
    let said = |told: &str, what: &str| assert!(told.contains(what) && told.contains("an older copy") && told.contains("put the newer one back"), "{told}");
    said(&worker.told(), "the iceberg table ");

    // It lies there when a worker starts.
    let mut worker = lake.start(&["--until-end"], None);
    assert_eq!(worker.wait(PATIENCE).code(), Some(75), "{}", worker.told());
    said(&worker.told(), "in the catalog ");
    put_catalog(&newer, &root);
    put(&root.join("delta/older/large"), &newer.join("large"));
    put(&older.join("large"), &root.join("delta/older/large"));
    let mut worker = lake.start(&["--until-end"], None);
    assert_eq!(worker.wait(PATIENCE).code(), Some(75), "{}", worker.told());
    said(&worker.told(), "the delta table large ");

    put(&newer.join("large"), &root.join("delta/older/large"));
    lake.complete(&["--until-end", "--final"]);
    assert_holds(&lake, &expected(&steady(0, written)), "after the newer copies were put back");
}
