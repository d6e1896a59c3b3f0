//! What kills leave behind belongs to nobody and goes; what belongs to somebody stays.

use crate::support::process::{Pipeline, until};
use millpond::pipeline::{SourceText, load_text};
use millpond::stage::names::{self, Owner};
use millpond::worker::{Clock, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn yaml(clean: &str) -> String {
    format!(
        r#"
pipeline: cleaned
sources:
  rows:
    file: rows.ndjson
    columns: {{id: int64, user: string, at: timestamp, cents: int64}}
    watermark: {{column: at}}
tables:
  by_user:
    sql: select window_start, user, sum(cents) as cents, count(*) as n from tumble(rows, interval '5 minutes') group by window_start, user
    key: [window_start, user]
    allowed_lateness: 1h
  plain: {{sql: "select id, user, at, cents from rows"}}
lake: {{root: ./lake}}
epoch: {{every: 20ms}}
commit: {{every: 100ms}}
clean: {clean}
"#
    )
}

struct Rows {
    written: i64,
    rounds: i64,
    cents: BTreeMap<(i64, String), (i64, i64)>,
}

impl Rows {
    /// Ten minutes of event time more; every fifth row is of the ten minutes before.
    fn append(&mut self, dir: &Path, count: i64) {
        let mut file = std::io::BufWriter::new(fs::File::options().create(true).append(true).open(dir.join("rows.ndjson")).unwrap());
        let start = 1_769_853_600 + self.rounds * 600;
        self.rounds += 1;
        for n in 0..count {
            let id = self.written + n;
            let at = start + n * 300 / count - if id % 5 == 4 { 400 } else { 0 };
            let (user, cents) = (format!("u{}", id * 7 % 11), id % 1000);
            writeln!(file, "{{\"id\":{id},\"user\":\"{user}\",\"at\":\"{}\",\"cents\":{cents}}}", chrono::DateTime::from_timestamp(at, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ")).unwrap();
            let sum = self.cents.entry((at.div_euclid(300) * 300, user)).or_default();
            *sum = (sum.0 + cents, sum.1 + 1);
        }
        self.written += count;
        file.into_inner().unwrap().sync_all().unwrap();
    }

    fn are_in(&self, pipeline: &Pipeline) {
        for format in ["iceberg", "delta"] {
            let ids = pipeline.query(format, "select count(*) as n, count(distinct id) as ids from plain").unwrap();
            assert_eq!((ids[0]["n"].as_i64(), ids[0]["ids"].as_i64()), (Some(self.written), Some(self.written)), "{format}");
            let late = pipeline.query(format, "select count(*) as n from by_user__late").unwrap();
            assert_eq!(late[0]["n"].as_i64(), Some(0), "{format}");
            let sums = pipeline.query(format, "select cast(window_start as bigint) / 1000000 as at, user, cents, n from by_user").unwrap();
            let number = |v: &serde_json::Value| v.as_i64().or_else(|| v.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{v}"));
            let found: BTreeMap<(i64, String), (i64, i64)> =
                sums.iter().map(|r| ((number(&r["at"]), r["user"].as_str().unwrap().to_string()), (number(&r["cents"]), number(&r["n"])))).collect();
            assert_eq!(sums.len(), found.len(), "{format}: a key stands twice");
            assert_eq!(found, self.cents, "{format}");
        }
    }
}

struct Epoch;

impl Clock for Epoch {
    fn now_ms(&self) -> i64 {
        1_769_853_600_000
    }
}

fn files_below(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let (entry, path) = entry.map(|e| (e.file_type().unwrap(), e.path())).unwrap();
        // Links lead to what is not ours.
        if entry.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path.to_str().unwrap().to_string());
        }
    }
}

/// Files of ours that no table, no entry above M and no checkpoint names.
fn orphans(dir: &Path) -> BTreeSet<String> {
    let pipeline = load_text(&SourceText::new("pipeline.yaml", &yaml("{after: 0s}")), dir, &|_| None).unwrap_or_else(|e| panic!("{e}"));
    let clock: Arc<dyn Clock> = Arc::new(Epoch);
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let place = Place::open(&pipeline, &clock).await.unwrap();
        let reading = place.log.open().await.unwrap().unwrap();
        let decided: BTreeSet<_> = reading.head.attempts.values().copied().collect();
        let mut orphans = BTreeSet::new();
        for (record, _) in reading.head.specs() {
            for format in &record.formats {
                let mut listed = vec![];
                files_below(&dir.join(format!("lake/{format}/cleaned/{}", record.name)), &mut listed);
                let listed: BTreeSet<String> = listed.iter().map(|p| names::file_name(p).to_string()).collect();
                let mut table = place.formats[format].open(record.shared().unwrap()).await.unwrap().unwrap();
                let (base, unneeded) = table.unneeded(listed.clone()).await.unwrap();
                orphans.extend(unneeded.into_iter().filter(|n| !matches!(names::owner(n), Some(Owner::Attempt(a)) if decided.contains(&a))));
                // What could still be under way is not: nobody runs.
                orphans.extend(listed.into_iter().filter(|n| matches!(names::owner(n), Some(Owner::Stamp(s)) if s >= base.stamp.entry)));
            }
        }
        let live: BTreeSet<String> = [&reading.start, &reading.head].into_iter().flat_map(|l| l.runs.values().flatten()).map(|r| names::file_name(&r.object).to_string()).collect();
        let mut runs = vec![];
        files_below(&dir.join("lake/_millpond/cleaned/runs"), &mut runs);
        let runs = runs.iter().map(|p| names::file_name(p).to_string()).filter(|n| !live.contains(n));
        orphans.extend(runs.filter(|n| !matches!(names::owner(n), Some(Owner::Attempt(a)) if decided.contains(&a))));
        orphans
    })
}

#[test]
fn what_kills_leave_behind_is_deleted_and_nothing_else() {
    let dir = tempfile::Builder::new().prefix("millpond-clean-").tempdir().unwrap();
    let pipeline = Pipeline::new(dir.path().to_path_buf(), &yaml("{after: 1h}"));
    let mut rows = Rows { written: 0, rounds: 0, cents: BTreeMap::new() };
    rows.append(dir.path(), 400);
    pipeline.complete(&["--until-end"]);
    for point in ["stage-file-put", "stage-file-put:2", "stage-runs-put", "stage-done", "decide-before-put", "commit-after-stage", "commit-before-swap:2", "commit-after-stage:2"] {
        rows.append(dir.path(), 400);
        pipeline.killed_at(&["--until-end"], point);
        // What another attempt left is not this one's to judge: the grace period is an hour.
        pipeline.complete(&["--until-end"]);
    }
    let left = orphans(dir.path());
    let kinds: BTreeSet<&str> = left.iter().map(|n| if n.ends_with(".run") { "run" } else { n.split('-').next().unwrap() }).collect();
    for kind in ["epoch", "run", "emit"] {
        assert!(kinds.contains(kind), "the kills left no {kind}: {left:?}");
    }

    // Leftovers that no failpoint makes, and files that are not ours.
    let state = dir.path().join("lake/_millpond/cleaned");
    fs::create_dir_all(state.join("probe")).unwrap();
    let cut_short = [state.join("log/00000000000000009999.json#4711000000012"), dir.path().join("lake/delta/cleaned/plain/epoch-x.parquet#471100000001"), state.join("probe/probe-6b0b6f0c-1d0a-4d4a-9a54-3e2f8c1f0a11")];
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join("lake/delta/cleaned/plain/linked")).unwrap();
    let unknown = "epoch-01980000-0000-7000-8000-000000000001-0-1.parquet";
    let foreign = [
        dir.path().join("lake/delta/cleaned/plain/part-00000-01980000-0000-7000-8000-000000000001-c000.snappy.parquet"),
        dir.path().join("lake/delta/cleaned/plain/notes#1.txt"),
        dir.path().join("lake/iceberg/cleaned/plain/data/00000-0-01980000-0000-7000-8000-000000000001.parquet"),
        dir.path().join("lake/delta/cleaned2/plain").join(unknown),
        dir.path().join("lake/delta/cleaned/no_table_of_ours").join(unknown),
        elsewhere.join(unknown),
    ];
    for path in cut_short.iter().chain(&foreign) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "bytes").unwrap();
    }
    // The names of a probe are another start's business for a day.
    let fresh = state.join("probe/probe-6b0b6f0c-1d0a-4d4a-9a54-3e2f8c1f0a12");
    fs::write(&fresh, "bytes").unwrap();
    let days_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 86_400);
    fs::File::options().write(true).open(&cut_short[2]).unwrap().set_modified(days_ago).unwrap();

    fs::write(dir.path().join("pipeline.yaml"), yaml("{after: 0s}")).unwrap();
    rows.append(dir.path(), 400);
    pipeline.complete(&["--until-end"]);
    let after = orphans(dir.path());
    assert_eq!(after, BTreeSet::new());
    assert!(cut_short.iter().all(|p| !p.exists()), "what puts left half-written is gone");
    assert!(fresh.exists(), "a start that runs now may be at its probe");
    assert!(foreign.iter().all(|p| p.exists()), "what is not ours, or lies elsewhere, stays: {foreign:?}");

    // The state that was left is whole: the open windows go on from the runs, and close.
    let before = pipeline.log("cleaned").last().copied();
    pipeline.complete(&["--until-end"]);
    assert!(pipeline.log("cleaned").last().copied() <= before.map(|n| n + 1), "nothing to clean, no note appended");
    rows.append(dir.path(), 400);
    pipeline.complete(&["--until-end", "--final"]);
    rows.are_in(&pipeline);
}

/// No grace at all, a pass every 30 ms, and kills: attempts are condemned while they are being made.
#[test]
fn a_cleaner_that_never_waits_costs_work_and_no_row() {
    let dir = tempfile::Builder::new().prefix("millpond-eager-").tempdir().unwrap();
    let pipeline = Pipeline::new(dir.path().to_path_buf(), &yaml("{after: 0s, every: 30ms}"));
    let mut rows = Rows { written: 0, rounds: 0, cents: BTreeMap::new() };
    for _ in 0..3 {
        rows.append(dir.path(), 60_000);
        let mut run = pipeline.start(&["--until-end"], None);
        until(PATIENCE, "some epochs are decided", || pipeline.log("cleaned").len() > 4 || run.ended().is_some());
        run.signal(libc::SIGKILL);
        run.wait(PATIENCE);
    }
    rows.append(dir.path(), 60_000);
    pipeline.complete(&["--until-end", "--final"]);
    rows.are_in(&pipeline);
    // The last pass of that run may have come before the commit that went past what the kills left.
    pipeline.complete(&["--until-end", "--final"]);
    assert_eq!(orphans(dir.path()), BTreeSet::new());
}
