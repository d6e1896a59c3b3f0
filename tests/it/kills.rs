//! The process killed at every failpoint, on a real broker: the tables come out as if it had not been.

use crate::support::kafka::Broker;
use crate::support::process::Pipeline;
use crate::support::spending::{TRICKLE, Terms, assert_content, content, difference, expected, first_part, pipeline, produce, second_part};
use millpond::failpoint;
use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Runs at the same time: most of a run is waiting for the group to settle and for the disk.
const AT_ONCE: usize = 4;
const TO_END: [&str; 1] = ["--until-end"];
const TO_FINAL: [&str; 2] = ["--until-end", "--final"];

struct Scenario {
    point: &'static str,
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
    let scenarios: Vec<Scenario> = failpoint::ALL
        .iter()
        .enumerate()
        .map(|(nth, point)| Scenario { point, again: again[nth % again.len()], pipeline: make(&format!("k{nth}")) })
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
        let nth = if s.point == "checkpoint-decided" { 1 } else { 3 };
        let newest = || s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap()).last().copied().unwrap_or(0);
        let before = newest();
        let mut run = s.pipeline.start(&TO_FINAL, Some(&format!("{}:{nth}", s.point)));
        let ended = run.wait(Duration::from_secs(120));
        // On a busy machine a run makes few epochs, and no checkpoint is due; the first part was killed there.
        let too_few = ["checkpoint-decided", "truncate-between"].contains(&s.point) && ended.success() && newest() < before + 60;
        assert!(too_few || ended.signal() == Some(libc::SIGKILL), "{}:{nth} did not kill the run, which ended with {ended}: {}", s.point, run.told());
        s.pipeline.complete(&TO_FINAL);
        assert_content(&s.pipeline, &wanted, &format!("killed at {}:{nth}", s.point));
        // Run again it finds nothing new and decides nothing.
        let log = s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap());
        s.pipeline.complete(&TO_FINAL);
        let after = s.pipeline.log(s.pipeline.dir.file_name().unwrap().to_str().unwrap());
        assert!(after.last() <= log.last().map(|n| n + 1).as_ref(), "killed at {}: a run with nothing new went from entry {:?} to {:?}", s.point, log.last(), after.last());
    });
}
