//! Two workers on one pipeline: both decide epochs; one is killed, one sleeps through a truncation
//! of the log and is woken.

use crate::support::kafka::Broker;
use crate::support::process::{Pipeline, until};
use crate::support::spending::{Growing, Terms, assert_content, expected, pipeline, steady};
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// Who decided data entries after `entry`.
fn writers(pipeline: &Pipeline, entry: u64) -> BTreeSet<String> {
    let sql = format!("select distinct writer from millpond.epochs where kind = 'data' and entry > {entry}");
    let rows = pipeline.query("iceberg", &sql).unwrap_or_default();
    rows.iter().filter_map(|r| Some(r["writer"].as_str()?.to_string())).collect()
}

/// FAULTS 3 (a long pause, and the zombie wakes), 4 (it still believes that it owns its partitions),
/// 6 (another number of workers), 23 (rebalances with work in the making).
#[test]
fn one_worker_is_killed_and_one_sleeps_through_a_truncation() {
    let broker = Broker::start();
    let topic = "two_workers";
    broker.create_topic(topic, 4);
    let dir = tempfile::Builder::new().prefix("millpond-two-").tempdir().unwrap();
    let terms = Terms { epoch: "60ms", commit: "300ms", options: "" };
    let shared = pipeline(dir.path().to_path_buf(), "two", broker, topic, &terms);
    let newest = || shared.log("two").last().copied().unwrap_or(0);
    let growing = Growing::new(broker, topic);
    std::thread::scope(|scope| {
        scope.spawn(|| growing.write());
        // Whatever fails below ends the producer too.
        let done = growing.enough();

        let mut sleeper = shared.start(&[], None);
        until(PATIENCE, "the first worker decides", || newest() > 3);
        let mut killed = shared.start(&[], None);
        until(PATIENCE, "both decide epochs", || writers(&shared, 0).len() == 2);
        killed.signal(libc::SIGKILL);
        killed.wait(PATIENCE);
        let mut other = shared.start(&[], None);
        let at = newest();
        until(PATIENCE, "two of the living decide epochs", || writers(&shared, at).len() == 2);

        sleeper.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(300));
        let asleep_at = newest();
        until(PATIENCE, "the other truncates the log past the sleeper", || shared.log("two").first().is_some_and(|first| *first > asleep_at));
        sleeper.signal(libc::SIGCONT);
        let woken_at = newest();
        until(PATIENCE, "both decide epochs again", || {
            assert!(sleeper.ended().is_none(), "the sleeper did not go on: {}", sleeper.told());
            assert!(other.ended().is_none(), "the other did not go on: {}", other.told());
            writers(&shared, woken_at).len() >= 2
        });
        drop(done);
        for worker in [&mut sleeper, &mut other] {
            worker.signal(libc::SIGTERM);
            let status = worker.wait(Duration::from_secs(40));
            assert!(status.success(), "stopped with {status}: {}", worker.told());
        }
    });
    shared.complete(&["--until-end", "--final"]);
    let events = steady(0, growing.written());
    assert_content(&shared, &expected(&events), "two workers");
}
