//! The process killed at every failpoint, on a real broker: the tables come out as if it had not been.

use crate::support::kafka::Broker;
use crate::support::process::{Enough, Pipeline};
use crate::support::spending::{SPEND, TRICKLE, Terms, assert_content, content, difference, expected, first_part, pipeline, produce, produce_by, second_part, source, stepping};
use millpond::failpoint;
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Runs at the same time: most of a run is waiting for the group to settle and for the disk.
const AT_ONCE: usize = 4;
const TO_END: [&str; 1] = ["--until-end"];
const TO_FINAL: [&str; 2] = ["--until-end", "--final"];

/// Points that only a lake in the making has.
const CREATING: [&str; 5] = ["create-before-metadata", "create-after-metadata", "create-after-entry", "create-before-version", "create-after-version"];
/// Points that only a long log has, in the order in which it comes to them.
const LONG: [&str; 7] = ["history-before-put", "history-after-put", "merge-before-put", "merge-after-put", "checkpoint-run-deleted", "history-merged", "history-deleted"];
/// Points of the cleaner, which has something to do once others were killed.
const CLEANING: [&str; 4] = ["clean-before-condemn", "clean-after-condemn", "clean-before-delete", "clean-after-delete"];
/// Points that share a pipeline: it is killed at the one first, at the other later.
const SHARED: [(&str, &str); 1] = [("stage-before-put", "commit-before-put")];

struct Scenario {
    point: &'static str,
    later: &'static str,
    /// Where the process that recovers dies in its turn.
    again: Option<&'static str>,
    pipeline: Pipeline,
}

fn all_at_once(scenarios: &[Scenario], what: impl Fn(&Scenario) + Sync) {
    let queue: Mutex<VecDeque<&Scenario>> = Mutex::new(scenarios.iter().collect());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(next) = { queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front() } {
                    what(next);
                }
            });
        }
    });
}

/// FAULTS 1 (before a file is closed, before the commit, after it and before anything is acknowledged),
/// 2 (the recovery is killed in its turn), 5 (the commit landed, what follows it did not), 22 (one
/// format is committed, the other not), 63 (which rows are late does not change by a kill).
#[test]
fn killed_at_any_point_the_tables_are_those_of_an_undisturbed_run() {
    let broker = Broker::start();
    let topic = "kills";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-kills-").tempdir().unwrap();
    let terms = Terms { epoch: "20ms", commit: "150ms", options: TRICKLE };
    let make = |name: &str| pipeline(dir.path().join(name), name, broker, topic, &terms);
    let undisturbed = make("undisturbed");
    // The recovery dies where it has just changed something: twice killed.
    let again = [None, Some("fold-after-entry:3"), None, Some("commit-after-swap"), Some("decide-after-put"), None, Some("commit-one-format:2")];
    // The tests below have the others.
    let mut points = failpoint::ALL.to_vec();
    points.retain(|p| !CREATING.iter().chain(&LONG).chain(&CLEANING).chain(SHARED.iter().map(|(_, later)| later)).any(|other| other == p));
    let later = |point: &'static str| SHARED.iter().find(|(first, _)| *first == point).map_or(point, |(_, later)| *later);
    let scenarios: Vec<Scenario> = points
        .into_iter()
        .enumerate()
        .map(|(nth, point)| Scenario { point, later: later(point), again: again[nth % again.len()], pipeline: make(&format!("k{nth}")) })
        .collect();

    let killed_again = AtomicU64::new(0);
    // First hit: on a lake that is just being made.
    let mut events = first_part(0, 2400);
    produce(broker, topic, &events);
    undisturbed.complete(&TO_END);
    let halfway = content(&undisturbed, "iceberg").unwrap();
    all_at_once(&scenarios, |s| {
        s.pipeline.killed_at(&TO_END, s.point);
        if let Some(again) = s.again {
            // A recovery that has nothing left to do may never come there.
            let ended = s.pipeline.start(&TO_END, Some(again)).wait(Duration::from_secs(120));
            killed_again.fetch_add(u64::from(ended.signal() == Some(libc::SIGKILL)), Ordering::Relaxed);
        }
        s.pipeline.complete(&TO_END);
        for format in ["iceberg", "delta"] {
            let found = content(&s.pipeline, format).unwrap();
            let said = difference(&found, &halfway);
            assert_eq!(said, None, "killed at {} (first part), {format}", s.point);
        }
    });

    assert!(killed_again.load(Ordering::Relaxed) > 4, "too few recoveries were killed: the test shows too little");

    // A later hit: on tables with a past, with corrections and rows that are too late.
    let more = second_part(events.len() as i64, 1600);
    produce(broker, topic, &more);
    events.extend(more);
    undisturbed.complete(&TO_FINAL);
    let wanted = expected(&events);
    assert!(wanted.values().all(|rows| !rows.is_empty()) && wanted.len() == 6, "every table is to hold rows");
    assert_content(&undisturbed, &wanted, "undisturbed");
    all_at_once(&scenarios, |s| {
        let nth = if s.later == "checkpoint-decided" { 1 } else { 3 };
        let newest = || s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap()).last().copied().unwrap_or(0);
        let before = newest();
        let mut run = s.pipeline.start(&TO_FINAL, Some(&format!("{}:{nth}", s.later)));
        let ended = run.wait(Duration::from_secs(120));
        // On a busy machine a run makes few epochs, and no checkpoint is due; the first part was killed there.
        let too_few = ["checkpoint-decided", "truncate-between"].contains(&s.later) && ended.success() && newest() < before + 60;
        assert!(too_few || ended.signal() == Some(libc::SIGKILL), "{}:{nth} did not kill the run, which ended with {ended}: {}", s.later, run.told());
        s.pipeline.complete(&TO_FINAL);
        assert_content(&s.pipeline, &wanted, &format!("killed at {}:{nth}", s.later));
        // Run again it finds nothing new and decides nothing.
        let log = s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap());
        s.pipeline.complete(&TO_FINAL);
        let after = s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap());
        assert!(after.last() <= log.last().map(|n| n + 1).as_ref(), "killed at {}: a run with nothing new went from entry {:?} to {:?}", s.later, log.last(), after.last());
    });
}

/// FAULTS 1, 2: killed while the tables are made, and while those are made that the first kill left unmade.
#[test]
fn killed_while_tables_are_made_each_is_made_once() {
    let broker = Broker::start();
    let topic = "kills-creating";
    broker.create_topic(topic, 4);
    let events = first_part(0, 200);
    produce(broker, topic, &events);
    let wanted = expected(&events);
    let dir = tempfile::Builder::new().prefix("millpond-kills-").tempdir().unwrap();
    let terms = Terms { epoch: "50ms", commit: "200ms", options: "" };
    let scenarios = CREATING.map(|point| Scenario { point, later: point, again: None, pipeline: pipeline(dir.path().join(point), point, broker, topic, &terms) });
    all_at_once(&scenarios, |s| {
        s.pipeline.killed_at(&TO_FINAL, s.point);
        s.pipeline.killed_at(&TO_FINAL, &format!("{}:2", s.later));
        // Nobody needs what was written and not entered into the catalog.
        clean_at_once(&s.pipeline);
        s.pipeline.complete(&TO_FINAL);
        assert_content(&s.pipeline, &wanted, &format!("killed at {}", s.point));
        let (code, told) = s.pipeline.verify(&["--deep", "--caught-up"]);
        assert_eq!(code, Some(0), "killed at {}: {told}", s.point);
        for table in wanted.keys() {
            let metadata = s.pipeline.dir.join("lake/iceberg").join(s.point).join(table).join("metadata");
            let first = std::fs::read_dir(&metadata).unwrap().filter(|f| f.as_ref().unwrap().file_name().to_str().unwrap().starts_with("00000-")).count();
            assert_eq!(first, 1, "killed at {}: table {table} was made {first} times", s.point);
        }
    });
}

/// From now on the cleaner has no grace period.
fn clean_at_once(pipeline: &Pipeline) {
    let file = pipeline.dir.join("pipeline.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, yaml + "clean: {after: 0s}\n").unwrap();
}

/// A log that is long enough for its runs and its history to be merged, killed while that is done; then the cleaner,
/// killed at what those kills left.
#[test]
fn killed_while_a_long_log_is_made_short_nothing_is_lost() {
    const STEP_MS: i64 = 40;
    let broker = Broker::start();
    let topic = "kills-long";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-kills-").tempdir().unwrap();
    let yaml = format!(
        "pipeline: long
{}
tables:
  spend:
{SPEND}
    allowed_lateness: 2h
lake: {{root: ./lake}}
epoch: {{every: 10ms}}
commit: {{every: 500ms}}
",
        source(broker, topic, "fetch.min.bytes: 1, fetch.wait.max.ms: 1")
    );
    let long = Pipeline::new(dir.path().to_path_buf(), &yaml);
    let (mut written, enough) = (0, AtomicBool::new(false));
    std::thread::scope(|scope| {
        // However few epochs a busy machine makes, more come until every point was reached.
        scope.spawn(|| {
            let producer = broker.producer();
            while !enough.load(Ordering::Relaxed) {
                produce_by(&producer, topic, &stepping(written, 4, STEP_MS));
                written += 4;
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let _done = Enough(&enough);
        for point in LONG {
            long.killed_at(&[], point);
        }
    });
    clean_at_once(&long);
    for point in CLEANING {
        long.killed_at(&TO_END, point);
    }
    long.complete(&TO_FINAL);
    for format in ["iceberg", "delta"] {
        let [rows, last] = long.numbers(format, "select sum(n) as rows, max(last_id) as last from spend", ["rows", "last"]);
        let events = stepping(0, written, STEP_MS);
        let ids = events.iter().filter(|e| e.time_ms.is_some()).map(|e| e.id as u64);
        assert_eq!((rows, Some(last)), (ids.clone().count() as u64, ids.max()), "{format}");
    }
    // The history, with what was merged of it, proves the tables from the first record on.
    let (code, told) = long.verify(&["--deep", "--caught-up"]);
    assert_eq!(code, Some(0), "{told}");
}
