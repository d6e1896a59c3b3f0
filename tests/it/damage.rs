//! Files of a lake that cannot be read, by every worker's real files: a clear error that names the
//! object, nothing lost once it is restored. And a worker that lacks what its host must give it.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::millpond::{Pond, assert_same};

const PIPELINE: &str = "
pipeline: hurt
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, k: string, at: timestamp}
    watermark: {column: at}
tables:
  counts:
    sql: select window_start, k, count(*) as n from tumble(events, interval '1 minute') group by window_start, k
    key: [window_start, k]
    allowed_lateness: 1d
  plain:
    sql: select id, k from events
lake: {root: ./lake}
epoch: {every: 50ms}
commit: {every: 50ms}
";

/// Ten minutes of events, one in ten seconds; the first of each round corrects the first window.
fn arrive(dir: &Path, round: i64) {
    let mut text = fs::read_to_string(dir.join("events.ndjson")).unwrap_or_default();
    for id in round * 60..(round + 1) * 60 {
        let at = if id % 60 == 0 { 0 } else { id * 10 };
        text += &format!("{{\"id\":{id},\"k\":\"k{}\",\"at\":\"2026-01-31T{:02}:{:02}:{:02}Z\"}}\n", id % 2, at / 3600, at / 60 % 60, at % 60);
    }
    fs::write(dir.join("events.ndjson"), text).unwrap();
}

fn assert_holds(pond: &Pond, rounds: i64, when: &str) {
    let last = rounds * 600 - 10;
    let mut counts = std::collections::BTreeMap::new();
    for id in 0..rounds * 60 {
        let at = if id % 60 == 0 { 0 } else { id * 10 };
        if at / 60 * 60 + 60 <= last {
            *counts.entry((at / 60, format!("k{}", id % 2))).or_insert(0) += 1;
        }
    }
    let expected: Vec<Value> = counts.iter().map(|((m, k), n)| json!({"m": m, "k": k, "n": n})).collect();
    for format in ["iceberg", "delta"] {
        let sql = "select (cast(window_start as bigint) / 1000000 - 1769817600) / 60 as m, k, n from counts order by 1, 2";
        assert_same(&pond.query_in(format, sql), &expected, &format!("{when}: {format} counts"));
        let ids: Vec<Value> = (0..rounds * 60).map(|id| json!({"id": id})).collect();
        assert_same(&pond.query_in(format, "select id from plain order by id"), &ids, &format!("{when}: {format} plain"));
    }
}

/// The newest file below a folder whose path holds all of these.
fn newest(below: &Path, holds: &[&str]) -> PathBuf {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
        }
    }
    let mut found = vec![];
    walk(below, &mut found);
    found.retain(|p| holds.iter().all(|h| p.to_str().unwrap().contains(h)));
    found.sort_by_key(|p| (fs::metadata(p).unwrap().modified().unwrap(), p.clone()));
    found.pop().unwrap_or_else(|| panic!("no file with {holds:?} below {}", below.display()))
}

/// FAULTS 16: each kind of object that a start reads, cut to a third and overwritten with zeros.
#[test]
fn a_damaged_object_is_named_and_nothing_is_lost_once_it_is_restored() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    for round in 0..2 {
        arrive(&dir, round);
        pond.until_end();
    }
    let lake = dir.join("lake");
    let state = lake.join("_millpond/hurt");
    let kinds: [(&str, &[&str]); 10] = [
        ("log entry", &["_millpond/hurt/log/", ".json"]),
        ("runs", &["_millpond/hurt/runs/"]),
        ("known table", &["_millpond/hurt/tables/plain-", "delta"]),
        ("metadata", &["iceberg/hurt/counts/metadata/", ".metadata.json"]),
        ("manifest list", &["iceberg/hurt/counts/metadata/snap-"]),
        ("manifest", &["iceberg/hurt/counts/metadata/manifest-"]),
        ("position deletes", &["iceberg/hurt/counts/data/deletes-"]),
        ("Iceberg data", &["iceberg/hurt/counts/data/", "emit-"]),
        ("Delta commit", &["delta/hurt/counts/_delta_log/", ".json"]),
        ("Delta data", &["delta/hurt/counts/", "rewrite-"]),
    ];
    let mut rounds = 2;
    for (kind, holds) in kinds {
        for zeroed in [false, true] {
            arrive(&dir, rounds);
            rounds += 1;
            // The key index knows what it has read: a host that lost it reads the tables' files again.
            fs::remove_dir_all(state.join("scratch")).unwrap();
            let path = newest(&lake, holds);
            let kept = fs::read(&path).unwrap();
            fs::write(&path, if zeroed { vec![0; kept.len()] } else { kept[..kept.len() / 3].to_vec() }).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let named = if kind == "Delta commit" { format!("commit {} ", name.trim_end_matches(".json").trim_start_matches('0')) } else { name };
            // What is found at the start ends it; what one table lacks later holds up that table, which waits and says so.
            let mut running = pond.start(&["run", "pipeline.yaml", "--until-end", "--json"]);
            running.until_told(&named);
            running.signal_if_alive(libc::SIGKILL);
            let ended = running.wait();
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert!([69, 75, 128 + libc::SIGKILL].contains(&ended.code), "{kind}, zeroed {zeroed}: {ended:?}");
            assert!(said.contains(&named) && !said.contains("panicked"), "{kind}, zeroed {zeroed}: {named} is not named: {said}");
            fs::write(&path, kept).unwrap();
        }
        pond.until_end();
        assert_holds(&pond, rounds, &format!("after the {kind} was restored"));
    }
}

/// FAULTS 16: the checkpoint of the log, which stands for entries that are gone.
#[test]
fn a_damaged_checkpoint_of_the_log_is_named_and_nothing_is_lost_once_it_is_restored() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    let log = dir.join("lake/_millpond/hurt/log");
    // The newest entry that is one: a start begins there, for entries before it are gone.
    let checkpoint = || {
        let mut entries: Vec<PathBuf> = fs::read_dir(&log).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        let is_one = |p: &PathBuf| serde_json::from_slice::<Value>(&fs::read(p).unwrap()).unwrap()["body"]["checkpoint"].is_object();
        entries.into_iter().rfind(is_one)
    };
    let mut rounds = 0;
    while rounds == 0 || checkpoint().is_none() {
        assert!(rounds < 200, "no checkpoint was written");
        arrive(&dir, rounds);
        rounds += 1;
        pond.until_end();
    }
    for zeroed in [false, true] {
        arrive(&dir, rounds);
        rounds += 1;
        let path = checkpoint().unwrap();
        let kept = fs::read(&path).unwrap();
        fs::write(&path, if zeroed { vec![0; kept.len()] } else { kept[..kept.len() / 3].to_vec() }).unwrap();
        let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!([69, 75].contains(&ended.code) && ended.stdout.contains(name) && !ended.stderr.contains("panicked"), "{ended:?}");
        fs::write(&path, kept).unwrap();
        pond.until_end();
        assert_holds(&pond, rounds, "after the checkpoint was restored");
    }
}

/// A run that is not there may have been truncated away meanwhile; one that the log goes on naming is lost.
#[test]
fn a_run_that_is_gone_ends_it_with_its_name_until_it_is_back() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    let runs = dir.join("lake/_millpond/hurt/runs");
    fs::rename(&runs, dir.join("kept")).unwrap();
    arrive(&dir, 1);
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
    assert!(ended.code == 75 && ended.stdout.contains("/runs/") && ended.stdout.contains("restore it"), "{ended:?}");
    fs::remove_dir_all(&runs).ok();
    fs::rename(dir.join("kept"), &runs).unwrap();
    pond.until_end();
    assert_holds(&pond, 2, "after the runs were put back");
}

/// FAULTS 16: of what only spares reading, an older one does.
#[test]
fn a_damaged_delta_checkpoint_is_passed_over_while_the_commits_are_there() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    let lake = dir.join("lake");
    crate::support::millpond::act(&lake, "hurt", &[json!({"in": "delta", "do": "checkpoint", "table": "counts"})]);
    let checkpoint = newest(&lake, &["delta/hurt/counts/_delta_log/", ".checkpoint.parquet"]);
    let whole = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &whole[..whole.len() / 2]).unwrap();
    arrive(&dir, 1);
    pond.until_end();
    assert_holds(&pond, 2, "past a checkpoint that is cut short");
    // Without the commits that it stands for there is no way past it.
    let birth = lake.join("delta/hurt/counts/_delta_log/00000000000000000000.json");
    let kept = fs::read(&birth).unwrap();
    fs::remove_file(&birth).unwrap();
    arrive(&dir, 2);
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
    assert!(ended.code == 75 && ended.stdout.contains(checkpoint.file_name().unwrap().to_str().unwrap()), "{ended:?}");
    fs::write(&birth, kept).unwrap();
    pond.until_end();
    assert_holds(&pond, 3, "after the commit came back");
}

/// FAULTS 16: the catalog is one file. Cut, overwritten or gone, it is named; put back, nothing is lost.
#[test]
fn a_damaged_catalog_is_named_and_nothing_is_lost_once_it_is_restored() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    let path = dir.join("lake/catalog.db");
    let zeroed = |kept: &[u8]| [&kept[..100], &vec![0; kept.len() - 100]].concat();
    let noise = |kept: &[u8]| (0..kept.len() as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u8).collect();
    // What is done to it, the exit code, and what must be said.
    type Damage<'a> = (&'a str, &'a dyn Fn(&[u8]) -> Option<Vec<u8>>, i32, &'a str);
    let damages: [Damage<'_>; 5] = [
        ("cut", &|kept| Some(kept[..kept.len() / 3].to_vec()), 69, "is damaged"),
        ("noise", &|kept| Some(noise(kept)), 69, "is damaged"),
        ("zeros behind its header", &|kept| Some(zeroed(kept)), 69, "is damaged"),
        ("empty", &|_| Some(vec![]), 75, "is gone"),
        ("deleted", &|_| None, 75, "is gone"),
    ];
    let mut rounds = 1;
    for (what, damage, code, said) in damages {
        arrive(&dir, rounds);
        rounds += 1;
        let kept = fs::read(&path).unwrap();
        match damage(&kept) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
        assert!(ended.code == code && ended.stdout.contains(said) && ended.stdout.contains(path.to_str().unwrap()), "{what}: {ended:?}");
        assert!(ended.stdout.contains("restore it") || ended.stdout.contains("bring it back"), "{what}: no way out in {ended:?}");
        let judged = pond.millpond(&["verify", "pipeline.yaml"]);
        assert!(judged.code == 3 && judged.stdout.contains(path.to_str().unwrap()), "{what}: {judged:?}");
        for beside in ["catalog.db-wal", "catalog.db-shm"] {
            let _ = fs::remove_file(path.with_file_name(beside));
        }
        fs::write(&path, kept).unwrap();
        pond.until_end();
        assert_holds(&pond, rounds, what);
    }
}

/// FAULTS 18: a reader or a writer that holds the catalog: waited for, and told.
#[test]
fn a_catalog_that_others_lock_is_waited_for() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    arrive(&dir, 1);
    let others = rusqlite::Connection::open(dir.join("lake/catalog.db")).unwrap();
    // A reader in the middle of its transaction holds up nobody.
    others.execute_batch("BEGIN; SELECT count(*) FROM iceberg_tables;").unwrap();
    let rows: i64 = others.query_row("SELECT count(*) FROM iceberg_tables", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 4);
    pond.until_end();
    others.execute_batch("COMMIT").unwrap();
    // A writer does: the worker waits, and goes on when it is done.
    arrive(&dir, 2);
    others.execute_batch("BEGIN IMMEDIATE").unwrap();
    let running = pond.start(&["run", "pipeline.yaml", "--until-end", "--json"]);
    std::thread::sleep(Duration::from_secs(3));
    others.execute_batch("ROLLBACK").unwrap();
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_holds(&pond, 3, "after the catalog was locked");
}

/// File descriptors that run out: told, and nothing is lost.
#[test]
fn a_host_without_file_descriptors_is_told() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    arrive(&dir, 1);
    let mut told = 0;
    for (limit, left) in [(6, 0), (8, 0), (11, 0), (13, 0), (13, 4), (15, 0), (18, 0), (22, 0), (30, 0)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(["run", "pipeline.yaml", "--until-end", "--json", "--deadline", "1"]).current_dir(&dir).stdin(Stdio::null());
        // SAFETY: only system calls, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // What tests beside this one leave open (librdkafka's pipes) is not for it: a loader that has no descriptor says so itself.
                if libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                for _ in 0..left {
                    libc::dup(0);
                }
                let rlimit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                if libc::setrlimit(libc::RLIMIT_NOFILE, &rlimit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let start = std::time::Instant::now();
        // One that has begun waits for descriptors: stopped, it ends. A second signal would end it without a word.
        let mut stopped = false;
        while child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(90), "with {limit} descriptors and {left} in use it does not end");
            if !stopped && start.elapsed() > Duration::from_secs(5) {
                // SAFETY: the child is not reaped yet: the id is its own.
                unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
                stopped = true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let out = child.wait_with_output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() {
            assert!(!said.contains("panicked") && out.status.code() != Some(101), "with {limit} descriptors and {left} in use: {said}");
            if limit < 12 + left {
                assert!(said.contains(&format!("cannot start: this process may have {limit} files open")), "with {limit} descriptors and {left} in use: {said}");
            }
            let reason = ["Too many open files", "os error 24", "Error 24", "unable to open database file", "files open"].iter().any(|r| said.contains(r));
            assert!(reason, "with {limit} descriptors and {left} in use: {said}");
            told += 1;
        }
    }
    assert!(told > 0, "no limit was low enough");
    pond.until_end();
    assert_holds(&pond, 2, "after there were descriptors again");
}

/// What was read and is gone would count as read, all of it: nothing new, and exit code 0.
#[test]
fn a_source_that_ends_before_the_log_is_refused_by_a_run_to_its_end() {
    let pond = Pond::new(PIPELINE);
    arrive(pond.path(), 0);
    pond.until_end();
    let file = pond.path().join("events.ndjson");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, whole.lines().take(20).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    for options in [&["--until-end"][..], &["--until-end", "--final"]] {
        let ended = pond.millpond(&[&["run", "pipeline.yaml"], options].concat());
        assert_eq!(ended.code, 75, "{options:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("ends at offset 20, and the epoch log goes on at 60"), "{}", ended.stderr);
    }
    let validated = pond.millpond(&["validate", "pipeline.yaml"]);
    assert_eq!(validated.code, 78, "{}", validated.stderr);
    assert!(validated.stderr.contains("ends at offset 20"), "{}", validated.stderr);
    let status = pond.millpond(&["status", "pipeline.yaml"]);
    assert!(status.stdout.contains("offset 60 of 20, so that what was read is gone"), "{}", status.stdout);
    fs::write(&file, whole).unwrap();
    arrive(pond.path(), 1);
    pond.until_end();
    assert_holds(&pond, 2, "after it was put back");
}

/// Iceberg names its files by whole paths: a lake that is elsewhere is no damage, and right again where it was.
#[test]
fn a_lake_that_was_moved_is_told_from_a_damaged_one() {
    let pond = Pond::new(PIPELINE);
    arrive(pond.path(), 0);
    pond.until_end();
    let (here, there) = (pond.path().join("lake"), pond.path().join("elsewhere"));
    fs::rename(&here, &there).unwrap();
    fs::write(pond.path().join("moved.yaml"), PIPELINE.replace("./lake", "./elsewhere")).unwrap();
    for command in ["run", "validate", "verify", "status"] {
        let ended = pond.millpond(&[command, "moved.yaml"]);
        let said = ended.stdout + &ended.stderr;
        assert!(said.contains("the lake was moved") && !said.contains("damaged"), "{command}: {said}");
    }
    fs::rename(&there, &here).unwrap();
    arrive(pond.path(), 1);
    pond.until_end();
    assert_holds(&pond, 2, "back where it was");
}

/// Half a line that was read as a record, and is written on: its other half would be lost.
#[test]
fn a_last_line_that_is_written_on_after_it_was_read_is_refused() {
    let pond = Pond::new(PIPELINE);
    arrive(pond.path(), 0);
    let file = pond.path().join("events.ndjson");
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 10]).unwrap();
    pond.until_end();
    fs::write(&file, &whole).unwrap();
    for command in [&["run", "pipeline.yaml", "--until-end"][..], &["validate", "pipeline.yaml"]] {
        let ended = pond.millpond(command);
        assert_ne!(ended.code, 0, "{command:?}");
        assert!(ended.stderr.contains("its last line was written on after it was read"), "{command:?}: {}", ended.stderr);
    }
}

/// FAULTS 69: who has the name has the log. A second pipeline of the name is refused, in the same
/// lake or with another source.
#[test]
fn two_pipelines_with_one_name_are_told_apart() {
    let pond = Pond::new(PIPELINE);
    let dir = pond.path().canonicalize().unwrap();
    arrive(&dir, 0);
    pond.until_end();
    // Another pipeline that somebody gave the same name: other data, another meaning.
    fs::write(dir.join("orders.ndjson"), "{\"id\":1,\"customer\":\"x\",\"at\":\"2026-01-31T00:00:00Z\"}\n").unwrap();
    let other = PIPELINE
        .replace("events:", "orders:")
        .replace("events.ndjson", "orders.ndjson")
        .replace("{id: int64, k: string, at: timestamp}", "{id: int64, customer: string, at: timestamp}")
        .replace("window_start, k, count(*)", "window_start, customer, count(*)")
        .replace("group by window_start, k", "group by window_start, customer")
        .replace("[window_start, k]", "[window_start, customer]")
        .replace("tumble(events", "tumble(orders")
        .replace("select id, k from events", "select id, customer from orders");
    pond.rewrite(&other);
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
    assert!([75, 78].contains(&ended.code) && ended.stdout.contains("hurt") | ended.stdout.contains("counts"), "{ended:?}");
    // The first one goes on.
    pond.rewrite(PIPELINE);
    arrive(&dir, 1);
    pond.until_end();
    assert_holds(&pond, 2, "after a stranger of the same name");
    // The log of the name lost, and begun anew: the tables still bear the stamp of the old one.
    fs::rename(dir.join("lake/_millpond"), dir.join("kept")).unwrap();
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
    assert!(ended.code == 75 && ended.stdout.contains("log"), "{ended:?}");
    fs::remove_dir_all(dir.join("lake/_millpond")).unwrap();
    fs::rename(dir.join("kept"), dir.join("lake/_millpond")).unwrap();
    arrive(&dir, 2);
    pond.until_end();
    assert_holds(&pond, 3, "after the log came back");
}
