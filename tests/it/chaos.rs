//! Chaos on real parts: a real broker, two workers, a producer that keeps writing, and workers that
//! are killed, stopped and starved at random moments. Afterwards the tables hold what was committed, and
//! `millpond verify --deep` finds them right.
//!
//! `infra/chaos` runs it at any size; as a test among others it is small.

mod producer;
mod reckoning;
mod storm;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use self::producer::Writer;
use self::reckoning::{Judged, Lake, Reckoning, committed};
use self::storm::{Chance, Storm};
use crate::support::disk::Mounted;
use crate::support::kafka::Broker;
use crate::support::process::{Enough, Pipeline, until};
use crate::support::skip;
use crate::support::spending::{SPEND, source};

const PARTITIONS: i32 = 3;
const NAME: &str = "chaos";
const PATIENCE: Duration = Duration::from_secs(120);

fn pipeline(broker: &Broker) -> String {
    format!(
        r#"
pipeline: {NAME}
{source}
tables:
  spend:
{SPEND}
    allowed_lateness: 10m
    partition_by: [hour(window_start)]
  live:
    sql: |
      select window_start, count(*) as n, sum(amount) as total
      from tumble(events, interval '1 minute') group by window_start
    key: [window_start]
    emit: on_update
    allowed_lateness: 5m
  appended:
    sql: |
      select window_start, count(*) as n, sum(amount) as total
      from tumble(events, interval '1 minute') group by window_start
    allowed_lateness: 2m
  large:
    sql: select id, user_id, event_time, amount from events where amount >= 900
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
epoch: {{every: 100ms}}
commit: {{every: 400ms}}
"#,
        source = source(broker, NAME, "topic.metadata.refresh.interval.ms: 500"),
    )
}

/// What a storm is like; the environment says otherwise (see `infra/chaos`).
struct Size {
    kills: u32,
    longest: Duration,
    seed: u64,
}

impl Size {
    fn given() -> Self {
        let number = |name: &str, otherwise: u64| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")),
            Err(_) => otherwise,
        };
        let kills = number("MILLPOND_CHAOS_KILLS", 6);
        let minutes = number("MILLPOND_CHAOS_MINUTES", 4);
        Self { kills: kills as u32, longest: Duration::from_secs(60 * minutes), seed: number("MILLPOND_CHAOS_SEED", 1) }
    }
}

/// Keeps the lake for a look when the test fails.
struct Evidence<'a> {
    dir: &'a Path,
    seed: u64,
}

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("millpond-chaos-{}-{}", self.seed, std::process::id()));
            let _ = std::process::Command::new("cp").arg("-r").arg(self.dir).arg(&kept).status();
            println!("the lake and what the workers said are kept in {}", kept.display());
        }
    }
}

#[test]
fn tables_hold_what_was_committed_after_kills_sleep_full_disks_and_broker_restarts() {
    let size = Size::given();
    println!("chaos: {} kills, at most {} s, seed {}; again: infra/chaos --kills {} --seed {}", size.kills, size.longest.as_secs(), size.seed, size.kills, size.seed);
    let start = Instant::now();
    let dir = tempfile::Builder::new().prefix("millpond-chaos-").tempdir().unwrap();
    let lake = dir.path().join("lake");
    let mounted = Mounted::tmpfs(&lake, 96 + size.kills);
    if mounted.is_none() {
        skip("chaos: the full disk", "a file system of limited size cannot be mounted here (needs root)");
    }
    let evidence = Evidence { dir: dir.path(), seed: size.seed };
    let broker = Broker::own();
    broker.create_topic(NAME, PARTITIONS);
    let pipeline = Pipeline::new(dir.path().to_path_buf(), &pipeline(&broker));
    let writer = Writer::new(&broker, NAME, PARTITIONS);
    let stop = AtomicBool::new(false);
    let disk = mounted.is_some().then(|| lake.clone());
    let mut storm = Storm::new(&pipeline, NAME, &broker, NAME, &writer, disk, size.seed);
    std::thread::scope(|scope| {
        let _enough = Enough(&stop);
        scope.spawn(|| writer.write(Chance::new(size.seed ^ 0x5eed), &stop));
        storm.rage(size.kills, Instant::now() + size.longest);
    });
    let raged = start.elapsed();
    assert!(storm.tally.kills >= size.kills, "only {} kills in {} s: give it more minutes", storm.tally.kills, raged.as_secs());
    // The last two end as they please: one is killed, one is asked to.
    let [first, second] = std::mem::take(&mut storm.workers);
    drop(first);
    if let Some(mut worker) = second {
        worker.signal(libc::SIGTERM);
        worker.wait(PATIENCE);
    }
    until(PATIENCE, "no transaction is open", || (0..writer.partitions()).all(|p| broker.settled(NAME, p)));
    pipeline.complete(&["--until-end"]);
    writer.write_old();
    pipeline.complete(&["--until-end", "--final"]);

    let records = committed(&broker, NAME, writer.partitions());
    let reckoning = Reckoning { records: &records, delay_us: 10_000_000, first_partitions: PARTITIONS };
    let judged = |table, minutes: i64| Judged { table, lateness_us: minutes * 60_000_000 };
    let mut late = 0;
    for (reader, format) in [("duckdb-iceberg", "iceberg"), ("deltalake", "delta")] {
        let folder = lake.join(format).join(NAME);
        late = reckoning.compare(&Lake { reader, folder: &folder }, judged("spend", 10), judged("live", 5), judged("appended", 2));
    }
    // And once more by the judge that a user has.
    let (code, said) = pipeline.verify(&["--deep", "--caught-up"]);
    assert_eq!(code, Some(0), "verify --deep: {said}");
    let log = pipeline.log(NAME);
    println!(
        "chaos: {} records written, {} committed, {late} late for `spend`; the log is at entry {}, its first is {}; {:?}; {} s, of which {} s of storm",
        writer.written(),
        records.len(),
        log.last().unwrap_or(&0),
        log.first().unwrap_or(&0),
        storm.tally,
        start.elapsed().as_secs(),
        raged.as_secs()
    );
    drop(evidence);
}
