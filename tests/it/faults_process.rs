//! What happens to processes, each as a test that is named after what users of other systems were
//! bitten by. Elsewhere: FAULTS 1, 2 and 5 at every failpoint in `kills`, 3 and 23 in `two_workers`, too; 9 to 12 beside the log;
//! 7 in `cli::an_interrupt_drains_and_loses_nothing`; all of them at random moments in `chaos`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::support::kafka::Broker;
use crate::support::millpond::reader;
use crate::support::process::{Pipeline, until};
use crate::support::spending::{Event, TRICKLE, Terms, assert_content, expected, first_part, pipeline, produce, second_part, steady};

const PATIENCE: Duration = Duration::from_secs(90);
const TO_END: [&str; 1] = ["--until-end"];
const TO_FINAL: [&str; 2] = ["--until-end", "--final"];

/// A topic with events of steady time, and a pipeline over it.
struct Scene {
    _dir: tempfile::TempDir,
    topic: String,
    pipeline: Pipeline,
    events: Vec<Event>,
}

impl Scene {
    fn new(name: &str, terms: &Terms<'_>) -> Self {
        let broker = Broker::start();
        broker.create_topic(name, 4);
        let dir = tempfile::Builder::new().prefix("millpond-fault-").tempdir().unwrap();
        let pipeline = pipeline(dir.path().to_path_buf(), name, broker, name, terms);
        Self { _dir: dir, topic: name.to_string(), pipeline, events: vec![] }
    }

    fn write(&mut self, count: i64) {
        let more = steady(self.events.len() as i64, count);
        self.write_these(more);
    }

    fn write_these(&mut self, more: Vec<Event>) {
        produce(Broker::start(), &self.topic, &more);
        self.events.extend(more);
    }

    fn finish(&self, what: &str) {
        self.pipeline.complete(&TO_FINAL);
        assert_content(&self.pipeline, &expected(&self.events), what);
    }

    fn number(&self, sql: &str) -> Option<i64> {
        let rows = self.pipeline.query("delta", sql).ok()?;
        rows.first()?.as_object()?.values().next()?.as_i64()
    }

    fn writers(&self) -> BTreeSet<String> {
        let rows = self.pipeline.query("iceberg", "select distinct writer from millpond.epochs where kind = 'data'").unwrap_or_default();
        rows.iter().filter_map(|r| Some(r["writer"].as_str()?.to_string())).collect()
    }

    fn newest(&self) -> u64 {
        self.pipeline.log(&self.topic).last().copied().unwrap_or(0)
    }
}

const QUICK: Terms<'static> = Terms { epoch: "100ms", commit: "300ms", options: "" };

/// FAULTS 1: killed before a file is closed, before the commit, and after it before anything is noted or told to the broker.
#[test]
fn f01_killed_before_a_file_is_closed_before_the_commit_and_before_it_is_noted() {
    let mut scene = Scene::new("killed_once", &QUICK);
    for point in ["ingest-closed", "stage-before-put", "commit-before-swap", "commit-after-swap", "receipt"] {
        scene.write(60);
        scene.pipeline.killed_at(&TO_END, point);
    }
    scene.finish("after five kills");
}

/// FAULTS 2: each recovery dies in its turn, a little further on.
#[test]
fn f02_killed_while_recovering_again_and_again() {
    let mut scene = Scene::new("killed_again", &QUICK);
    scene.write(200);
    scene.pipeline.killed_at(&TO_END, "decide-after-put");
    for recovery in ["fold-before-entry", "fold-after-entry", "commit-before-put", "commit-after-stage", "commit-after-swap", "commit-one-format", "commit-done"] {
        scene.pipeline.killed_at(&TO_END, recovery);
    }
    scene.finish("after seven recoveries that were killed");
}

/// FAULTS 3: a worker is stopped for longer than its session lasts, with a commit just before its swap; another one goes on
/// and ends. The first one wakes as a zombie, and goes on from what it finds.
#[test]
fn f03_a_worker_that_paused_for_long_wakes_as_a_zombie() {
    let mut scene = Scene::new("zombie", &QUICK);
    scene.write(200);
    let mut zombie = scene.pipeline.start(&[], Some("commit-before-swap:2:stop"));
    zombie.wait_to_stop(PATIENCE);
    scene.write(200);
    // The group waits for the session of who sleeps to end.
    scene.pipeline.complete(&TO_END);
    let large = || expected(&scene.events)["large"].len() as i64;
    assert_eq!(scene.number("select count(*) from large"), Some(large()));
    zombie.signal(libc::SIGCONT);
    scene.write(100);
    let large = expected(&scene.events)["large"].len() as i64;
    until(PATIENCE, "it goes on", || {
        assert!(zombie.ended().is_none(), "the zombie ended: {}", zombie.told());
        scene.number("select count(*) from large") >= Some(large)
    });
    zombie.signal(libc::SIGTERM);
    let status = zombie.wait(PATIENCE);
    assert!(status.success(), "stopped with {status}: {}", zombie.told());
    scene.finish("after the zombie");
}

/// FAULTS 3, 4, 9: a worker has read and staged an epoch and is stopped just before it decides it. The
/// group takes it for dead; the other worker owns its partitions and decides the same offsets, in
/// several entries that lie strictly inside the sleeper's range. Woken, the sleeper still believes
/// that the partitions are its own.
#[test]
fn f04_two_workers_after_a_rebalance_both_have_work_for_the_same_offsets() {
    let mut scene = Scene::new("both_own", &Terms { epoch: "50ms", commit: "300ms", options: "" });
    scene.write(400);
    // Its second epoch: the first may be of few records.
    let mut sleeper = scene.pipeline.start(&[], Some("decide-before-put:2:stop"));
    until(PATIENCE, "the first epoch", || scene.newest() > 0);
    scene.write(400);
    sleeper.wait_to_stop(PATIENCE);
    let asleep_at = scene.newest();
    let mut other = scene.pipeline.start(&[], None);
    until(PATIENCE, "the other decides over the sleeper's offsets", || {
        scene.write(100);
        scene.newest() > asleep_at + 3
    });
    sleeper.signal(libc::SIGCONT);
    let at = scene.newest();
    until(PATIENCE, "the log goes on with both alive", || {
        scene.write(100);
        scene.newest() > at + 2
    });
    for worker in [&mut sleeper, &mut other] {
        worker.signal(libc::SIGTERM);
        let status = worker.wait(PATIENCE);
        assert!(status.success(), "stopped with {status}: {}", worker.told());
    }
    scene.finish("after two owners");
}

/// FAULTS 5: the tables have the commit, and the worker dies before it has noted anything of it; what
/// it kept on its own disk (the key index, spilled panes) is lost with the machine.
#[test]
fn f05_a_commit_landed_and_the_local_bookkeeping_is_lost() {
    let mut scene = Scene::new("landed", &Terms { epoch: "20ms", commit: "150ms", options: TRICKLE });
    scene.write_these(first_part(0, 1200));
    scene.pipeline.killed_at(&TO_END, "commit-after-swap:4");
    let scratch = scene.pipeline.dir.join("lake/_millpond/landed/scratch");
    assert!(scratch.is_dir(), "the local state lies elsewhere: {}", scratch.display());
    fs::remove_dir_all(&scratch).unwrap();
    scene.pipeline.complete(&TO_END);
    fs::remove_dir_all(&scratch).unwrap();
    // Corrections of windows whose keys the lost index held.
    let more = second_part(scene.events.len() as i64, 800);
    scene.write_these(more);
    scene.pipeline.killed_at(&TO_END, "commit-one-format:2");
    fs::remove_dir_all(&scratch).unwrap();
    scene.finish("with the local state lost three times");
}

/// FAULTS 6: three workers, then one, then two; each has another name than any before it.
#[test]
fn f06_a_restart_with_another_number_of_workers_goes_on_where_the_log_ends() {
    let mut scene = Scene::new("worker_count", &QUICK);
    for (round, count) in [3, 1, 2].into_iter().enumerate() {
        let before = scene.writers();
        let mut workers: Vec<_> = (0..count).map(|_| scene.pipeline.start(&[], None)).collect();
        until(PATIENCE, "as many decide as there are", || {
            scene.write(40);
            let new: Vec<String> = scene.writers().difference(&before).cloned().collect();
            assert!(workers.iter_mut().all(|w| w.ended().is_none()), "round {round}: a worker ended");
            new.len() == count
        });
        for mut worker in workers {
            worker.signal(libc::SIGTERM);
            let status = worker.wait(PATIENCE);
            assert!(status.success(), "round {round}: stopped with {status}: {}", worker.told());
        }
    }
    scene.finish("after 3, 1 and 2 workers");
}

/// FAULTS 8: a worker stops when its commit is on its way and nobody knows its outcome. Another one
/// starts, looks at the tables, finds the commit not there, and commits the same entries itself.
/// Then the first one's commit comes through.
#[test]
fn f08_a_commit_is_still_on_its_way_while_the_restart_looks() {
    for (nth, point) in ["commit-before-swap:3:stop", "commit-after-swap:3:stop", "commit-one-format:2:stop"].into_iter().enumerate() {
        let mut scene = Scene::new(&format!("in_flight_{nth}"), &Terms { epoch: "30ms", commit: "150ms", options: TRICKLE });
        scene.write(600);
        let mut first = scene.pipeline.start(&[], Some(point));
        first.wait_to_stop(PATIENCE);
        let mut second = scene.pipeline.start(&[], None);
        scene.write(200);
        let large = expected(&scene.events)["large"].len() as i64;
        until(PATIENCE, "the second one commits everything", || {
            assert!(second.ended().is_none(), "{point}: the second one ended: {}", second.told());
            scene.number("select count(*) from large") == Some(large)
        });
        first.signal(libc::SIGCONT);
        scene.write(200);
        let large = expected(&scene.events)["large"].len() as i64;
        until(PATIENCE, "they go on", || {
            assert!(first.ended().is_none(), "{point}: the first one ended: {}", first.told());
            scene.number("select count(*) from large") == Some(large)
        });
        for worker in [&mut first, &mut second] {
            worker.signal(libc::SIGTERM);
            let status = worker.wait(PATIENCE);
            assert!(status.success(), "{point}: stopped with {status}: {}", worker.told());
        }
        scene.finish(point);
    }
}

/// FAULTS 10: a worker dies in the middle of its commits, and before the next one starts somebody
/// else has compacted the Delta table and appended nothing but a snapshot to the Iceberg table. The
/// stamp is found behind the foreign commit.
#[test]
fn f10_a_foreign_commit_between_the_crash_and_the_restart_hides_no_stamp() {
    let mut scene = Scene::new("foreign_between", &Terms { epoch: "20ms", commit: "150ms", options: TRICKLE });
    scene.write(800);
    scene.pipeline.killed_at(&TO_END, "commit-one-format:5");
    let lake = scene.pipeline.dir.join("lake");
    let text = |p: std::path::PathBuf| p.display().to_string();
    let said = reader(&["delta-compact", &text(lake.join("delta/foreign_between/large"))]);
    assert!(said[0]["files_removed"].as_i64() > Some(1), "nothing was compacted: {said:?}");
    let said: Vec<Value> = reader(&["iceberg-rewrite", &text(lake.join("catalog.db")), "foreign_between.large"]);
    assert!(said[0]["snapshots"].as_i64() > Some(1), "nothing was committed: {said:?}");
    scene.write(200);
    scene.finish("after foreign commits");
}

/// FAULTS 19: a worker has composed a commit, and before it swaps somebody else compacts the table in both formats.
#[test]
fn f19_a_compaction_lands_while_a_commit_is_on_its_way() {
    let mut scene = Scene::new("compacted", &QUICK);
    for _ in 0..2 {
        scene.write(200);
        scene.pipeline.complete(&TO_END);
    }
    // Of dead letters and of `large`, each in two formats.
    for point in ["commit-before-swap:3:stop", "commit-before-swap:4:stop"] {
        scene.write(400);
        let mut worker = scene.pipeline.start(&TO_END, Some(point));
        worker.wait_to_stop(PATIENCE);
        let lake = scene.pipeline.dir.join("lake");
        let said = reader(&["delta-compact", &lake.join("delta/compacted/large").display().to_string()]);
        assert!(said[0]["files_removed"].as_i64() > Some(1), "nothing was compacted: {said:?}");
        let said = reader(&["iceberg-rewrite", &lake.join("catalog.db").display().to_string(), "compacted.large"]);
        assert!(said[0]["snapshots"].as_i64() > Some(1), "nothing was committed: {said:?}");
        worker.signal(libc::SIGCONT);
        let status = worker.wait(PATIENCE);
        assert!(status.success(), "{point}: ended with {status}: {}", worker.told());
    }
    scene.finish("after compactions beneath commits");
}

/// FAULTS 22: of the tables that wait, the first has its commit in both formats, and the others have none.
#[test]
fn f22_the_first_table_is_committed_and_the_second_is_not() {
    let mut scene = Scene::new("first_alone", &QUICK);
    scene.write(400);
    scene.pipeline.killed_at(&TO_END, "commit-done");
    for format in ["iceberg", "delta"] {
        let [dead, large] = ["events__dead", "large"].map(|table| scene.pipeline.numbers(format, &format!("select count(*) as n from {table}"), ["n"])[0] > 0);
        assert_ne!(dead, large, "{format}: one of them was committed");
    }
    scene.finish("after the first table alone");
}
