//! Disks that fill: it says which object it cannot write and why, waits, and nothing is lost once there is room.

use crate::support::disk::{Mounted, NO_MOUNT, fill};
use crate::support::kafka::Broker;
use crate::support::keys;
use crate::support::process::{Pipeline, until};
use crate::support::skip;
use crate::support::spending::{Terms, assert_content, expected, in_table, large, pipeline, produce, steady};
use std::fs;
use std::io::Write;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// FAULTS 64, and 7: a stop keeps its deadline while nothing can be written.
#[test]
fn a_full_disk_is_waited_for() {
    let dir = tempfile::Builder::new().prefix("millpond-full-").tempdir().unwrap();
    let lake = dir.path().join("lake");
    let Some(_mounted) = Mounted::tmpfs(&lake, 24) else {
        skip("full_disks::a_full_disk_is_waited_for", NO_MOUNT);
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
    fill(&ballast);
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
    fs::remove_file(&ballast).unwrap();
    let mut worker = full.start(&["--deadline", "5"], None);
    until(PATIENCE, "the next one goes on", || {
        assert!(worker.ended().is_none(), "it did not go on: {}", worker.told());
        in_table(&full) == Some(large(&events))
    });

    // Once more, and now the same worker lives to see the space come back.
    fill(&ballast);
    let more = steady(events.len() as i64, 800);
    produce(broker, topic, &more);
    events.extend(more);
    worker.wait_to_be_told("waiting for", PATIENCE);
    std::thread::sleep(Duration::from_secs(3));
    assert!(worker.ended().is_none(), "it did not wait: {}", worker.told());
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
        skip("full_disks::a_disk_that_is_full_at_the_start_is_waited_for", NO_MOUNT);
        return;
    };
    fs::write(dir.path().join("rows.ndjson"), "{\"k\":1}\n{\"k\":2}\n").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let yaml = format!(
        "pipeline: started\nsources:\n  rows: {{file: rows.ndjson, columns: {{k: int64}}}}\ntables:\n  copied: {{sql: select k from rows}}\nlake: {{root: ./lake}}\nobserve: {{listen: \"127.0.0.1:{port}\"}}\n"
    );
    let full = Pipeline::new(dir.path().to_path_buf(), &yaml);
    let ballast = lake.join("ballast");
    let ready = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
        answer.split(' ').nth(1)?.parse::<u16>().ok()
    };
    fill(&ballast);
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

/// FAULTS 64, of what is kept beside the lake and can be made again: spilled windows, the key index.
#[test]
fn a_scratch_folder_that_is_full_costs_no_row() {
    const KEYS: u64 = 200_000;
    let cases = [("spills", "16MiB", "spill"), ("keys", "512MiB", "index")];
    for (name, memory, told) in cases {
        let dir = tempfile::Builder::new().prefix("millpond-scratch-").tempdir().unwrap();
        let scratch = dir.path().join(format!("lake/_millpond/{name}/scratch"));
        let Some(mounted) = Mounted::tmpfs(&scratch, 1) else {
            skip("full_disks::a_scratch_folder_that_is_full_costs_no_row", NO_MOUNT);
            return;
        };
        keys::write_rows(&dir.path().join("rows.ndjson"), 0..2 * KEYS, KEYS);
        // Corrections may come: the index of keys is needed.
        let yaml = keys::pipeline(name, memory, "300ms", "1s").replace("    key: ", "    allowed_lateness: 1d\n    key: ");
        let full = Pipeline::new(dir.path().to_path_buf(), &yaml);
        let mut run = full.start(&["--until-end", "--final"], None);
        run.wait_to_be_told("o space left", PATIENCE);
        std::thread::sleep(Duration::from_secs(1));
        let said = run.told();
        assert!(said.contains(told) && said.contains("scratch"), "{name}: it is not said what cannot be written: {said}");
        mounted.resized(256);
        let ended = run.wait(PATIENCE);
        // What spills may end it; the log has every row.
        assert!(ended.success() || ended.code() == Some(69), "{name}: ended with {ended}: {}", run.told());
        if !ended.success() {
            full.complete(&["--until-end", "--final"]);
        }
        for format in ["iceberg", "delta"] {
            let found = full.numbers(format, "select count(*) as rows, sum(total) as total, min(n) as least, max(n) as most from by_key", ["rows", "total", "least", "most"]);
            assert_eq!(found, [KEYS, keys::total(2 * KEYS), 2, 2], "{name}: {format}");
        }
    }
}

/// FAULTS 64, of the catalog, which may lie on another disk than the tables.
#[test]
fn a_catalog_on_a_full_disk_is_waited_for() {
    let dir = tempfile::Builder::new().prefix("millpond-catalog-").tempdir().unwrap();
    let place = dir.path().join("catalog");
    let Some(_mounted) = Mounted::tmpfs(&place, 4) else {
        skip("full_disks::a_catalog_on_a_full_disk_is_waited_for", NO_MOUNT);
        return;
    };
    fs::write(dir.path().join("a.ndjson"), "{\"k\":1}\n").unwrap();
    let yaml = r#"
pipeline: catalogued
sources:
  rows: {file: "*.ndjson", columns: {k: int64}}
tables:
  copied: {sql: "select k from rows"}
lake: {root: ./lake, iceberg: {catalog: sql, uri: "sqlite://./catalog/catalog.db"}}
"#;
    let full = Pipeline::new(dir.path().to_path_buf(), yaml);
    let ballast = place.join("ballast");
    // At the first start, where the catalog is made, and later.
    for round in 0..2u64 {
        fs::write(dir.path().join(format!("b-{round}.ndjson")), "{\"k\":2}\n").unwrap();
        fill(&ballast);
        let mut run = full.start(&["--until-end"], None);
        run.wait_to_be_told("no space is left", PATIENCE);
        std::thread::sleep(Duration::from_secs(2));
        assert!(run.ended().is_none(), "round {round}: it did not wait: {}", run.told());
        assert!(run.told().contains("catalog.db"), "round {round}: it is not said what is full: {}", run.told());
        fs::remove_file(&ballast).unwrap();
        let ended = run.wait(PATIENCE);
        assert!(ended.success(), "round {round}: ended with {ended}: {}", run.told());
        for format in ["iceberg", "delta"] {
            assert_eq!(full.numbers(format, "select count(*) as n from copied", ["n"]), [2 + round], "{format}");
        }
    }
}
