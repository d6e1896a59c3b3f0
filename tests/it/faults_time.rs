//! What users of other systems were bitten by in event time, each as a test that is named after it.
//! Elsewhere: FAULTS 58 (a backlog that grew on an idle partition) in `pipeline_change`, 59 in
//! `running_example`, 63 also in `kills`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use millpond::observe::Metrics;
use millpond::pipeline::sql;
use millpond::worker::surroundings::System;
use millpond::worker::{self, Clock, RunOptions};
use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, texts};

/// Minutes counted, every row kept as it is; `more` are further lines of the source.
fn minutes(name: &str, source: &str, watermark: &str, lateness: &str) -> String {
    format!(
        "pipeline: {name}
sources:
  events:
    {source}
    format: json
    columns: {{id: int64, at: timestamp}}
    watermark: {{column: at{watermark}}}
tables:
  minutes:
    sql: \"select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start\"
    key: [window_start]
    allowed_lateness: {lateness}
  all: {{sql: \"select id, at from events\"}}
lake: {{root: ./lake}}
epoch: {{every: 200ms}}
commit: {{every: 400ms}}
"
    )
}

fn kafka(broker: &Broker, topic: &str) -> String {
    format!("kafka: {{brokers: '{}', topic: {topic}, start: earliest}}", broker.address())
}

struct Sends<'a> {
    broker: &'a Broker,
    topic: &'a str,
}

impl Sends<'_> {
    /// `at`: a minute of 2026-01-31, or a whole time. Written at 10:00 of that day, as its broker saw it.
    fn send(&self, partition: i32, id: i64, at: &str) {
        let at = if at.len() == 5 { format!("2026-01-31T{at}:00Z") } else { at.to_string() };
        self.broker.produce(self.topic, partition, "k", &format!("{{\"id\":{id},\"at\":\"{at}\"}}"), 1_769_853_600_000);
    }
}

fn counted(pond: &Pond, pipeline: &str) -> Vec<String> {
    texts(&pond.rows(pipeline, "minutes"), &["window_start", "n"])
}

fn late(pond: &Pond, pipeline: &str) -> Vec<String> {
    texts(&pond.rows(pipeline, "minutes__late"), &["_offset", "window_start"])
}

/// FAULTS 56: a broken clock writes one row of the year 2999. The row is kept, nothing else is
/// late for it, and somebody is told.
#[test]
fn f56_one_event_of_the_far_future_closes_no_window() {
    let broker = Broker::start();
    let topic = "far-future";
    broker.create_topic(topic, 1);
    let to = Sends { broker, topic };
    let pond = Pond::new(&minutes("future", &kafka(broker, topic), "", "0s"));
    to.send(0, 1, "10:00");
    to.send(0, 2, "2999-12-31T23:59:59Z");
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("alert: source events") && ended.stderr.contains("max_ahead"), "{ended:?}");
    let summary: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(summary["ahead"], 1, "{summary}");
    // Ten minutes later everything is as if that row had not been.
    to.send(0, 3, "10:00");
    to.send(0, 4, "10:10");
    assert_eq!(pond.until_end()["late"], 0);
    assert_eq!(counted(&pond, "future"), ["10:00 2"]);
    // At the end of input its window is emitted, too; and it still makes nobody late.
    pond.run(&["--final"]);
    assert_eq!(counted(&pond, "future"), ["10:00 2", "10:10 1", "2999-12-31T23:59 1"]);
    to.send(0, 5, "10:20");
    to.send(0, 6, "10:22");
    assert_eq!(pond.until_end()["late"], 0);
    assert_eq!(counted(&pond, "future"), ["10:00 2", "10:10 1", "10:20 1", "2999-12-31T23:59 1"]);
    assert_eq!(pond.number("select count(*) from \"all\""), 6);
}

/// FAULTS 57: rows from long ago go to the late table with their window, each counted, and open
/// no state that would stay.
#[test]
fn f57_events_of_the_far_past_are_late_and_counted() {
    let pond = Pond::new(&minutes("past", "file: rows.ndjson", "", "5m"));
    let rows = pond.path().join("rows.ndjson");
    let mut text = "{\"id\":1,\"at\":\"2026-01-31T10:00:00Z\"}\n{\"id\":2,\"at\":\"2026-01-31T10:30:00Z\"}\n".to_string();
    std::fs::write(&rows, &text).unwrap();
    pond.until_end();
    text += "{\"id\":3,\"at\":\"1970-01-01T00:00:00Z\"}\n{\"id\":4,\"at\":\"0001-01-01T00:00:00Z\"}\n{\"id\":5,\"at\":\"2026-01-31T10:26:00Z\"}\n{\"id\":6,\"at\":\"2026-01-31T10:31:00Z\"}\n";
    std::fs::write(&rows, &text).unwrap();
    let summary = pond.until_end();
    assert_eq!((&summary["late"], &summary["dead"]), (&json!(2), &json!(0)), "{summary}");
    assert_eq!(counted(&pond, "past"), ["10:00 1", "10:26 1", "10:30 1"]);
    assert_eq!(late(&pond, "past"), ["2 1970-01-01T00:00", "3 0001-01-01T00:00"]);
    assert_eq!(pond.number("select count(*) from \"all\""), 6);
}

/// FAULTS 58: a partition that nobody writes to holds the watermark for `idle_after` and no longer;
/// one that is written to is not idle, however old or broken what comes is.
#[test]
fn f58_an_idle_partition_lets_go_of_the_watermark_and_a_busy_one_does_not() {
    let broker = Broker::start();
    let topic = "idle-and-busy";
    broker.create_topic(topic, 3);
    let to = Sends { broker, topic };
    let pond = Pond::new(&minutes("idle", &kafka(broker, topic), ", idle_after: 2s", "0s"));
    // Partition 2 never has a row.
    to.send(0, 1, "10:00");
    to.send(1, 2, "10:00");
    let running = pond.start(&["run", "pipeline.yaml"]);
    let watermark = || {
        let shown = pond.millpond(&["status", "pipeline.yaml", "--json"]);
        serde_json::from_str::<Value>(&shown.stdout).unwrap_or_default()["sources"]["events"]["watermark"].as_str().unwrap_or("none").to_string()
    };
    let busy_until = std::time::Instant::now() + Duration::from_secs(6);
    let mut id = 3;
    while std::time::Instant::now() < busy_until {
        to.send(0, id, "10:10");
        // Busy with what is no row at all.
        broker.produce(topic, 1, "k", "broken", 0);
        id += 1;
        std::thread::sleep(Duration::from_millis(200));
        let at = watermark();
        assert!(at == "none" || at == "2026-01-31T10:00:00Z", "a busy partition was taken for idle: {at}; {}", running.stderr());
    }
    // From now on only partition 0 has new rows.
    let start = std::time::Instant::now();
    while watermark() != "2026-01-31T10:10:00Z" {
        assert!(start.elapsed() < Duration::from_secs(60), "the watermark is at {}: {}", watermark(), running.stderr());
        to.send(0, id, "10:10");
        id += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    assert_eq!(counted(&pond, "idle"), ["10:00 2"]);
}

/// FAULTS 60: no delay, and a row exactly on the watermark. A window is `[start, end)`: the row at
/// its end closes it and belongs to the next one; a row at the watermark itself is in time.
#[test]
fn f60_a_row_exactly_on_the_watermark_is_in_time() {
    let pond = Pond::new(&minutes("exact", "file: rows.ndjson", "", "0s"));
    let mut text = String::new();
    let mut step = |rows: &[(i64, &str)]| {
        for (id, second) in rows {
            text += &format!("{{\"id\":{id},\"at\":\"2026-01-31T10:{second}Z\"}}\n");
        }
        std::fs::write(pond.path().join("rows.ndjson"), &text).unwrap();
        pond.until_end()
    };
    step(&[(1, "00:00"), (2, "00:59.999999")]);
    assert_eq!(counted(&pond, "exact"), Vec::<String>::new());
    step(&[(3, "01:00")]);
    assert_eq!(counted(&pond, "exact"), ["10:00 2"]);
    let summary = step(&[(4, "01:00"), (5, "00:59.999999")]);
    assert_eq!(summary["late"], 1, "{summary}");
    assert_eq!(late(&pond, "exact"), ["4 10:00"]);
    step(&[(6, "02:00")]);
    assert_eq!(counted(&pond, "exact"), ["10:00 2", "10:01 2"]);
}

/// A wall clock that jumps by days, back and forth, each time it is asked.
struct Jumping(AtomicI64);

impl Clock for Jumping {
    fn now_ms(&self) -> i64 {
        let nth = self.0.fetch_add(1, Ordering::Relaxed);
        let days = [0, 3, -400, 1, -1, 9_000][nth as usize % 6];
        1_769_853_600_000 + days * 86_400_000
    }
}

/// FAULTS 61: the wall clock jumps while a worker runs. What is in time is judged by the rows, and
/// waiting goes by a clock that cannot jump: epochs and commits go on, and nothing is lost or late.
#[test]
fn f61_a_wall_clock_that_jumps_changes_no_result() {
    let broker = Broker::start();
    let topic = "jumping";
    broker.create_topic(topic, 2);
    let to = Sends { broker, topic };
    let producer = broker.producer();
    for n in 0..3_000 {
        // The second partition has nothing after five minutes: it is idle for the rest.
        for partition in 0..if n < 300 { 2 } else { 1 } {
            let at = chrono::DateTime::from_timestamp(1_769_853_600 + n, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
            producer.send(topic, partition, "k", &format!("{{\"id\":{n},\"at\":\"{at}\"}}"), 1_769_853_600_000);
        }
    }
    producer.flush();
    let pond = Pond::new(&minutes("jumping", &kafka(broker, topic), ", idle_after: 1s", "0s"));
    let pipeline = millpond::pipeline::load("pipeline.yaml".as_ref(), pond.path(), &|_| None).unwrap_or_else(|p| panic!("{:?}", p.list));
    let plans: Vec<_> = pipeline.tables.iter().map(|t| Arc::new(sql::plan(t, &pipeline.sources).unwrap())).collect();
    let metrics = Arc::new(Metrics::default());
    let stop = Arc::new(AtomicBool::new(false));
    let world = Arc::new(System { clock: Arc::new(Jumping(AtomicI64::new(0))) });
    let options = RunOptions { deadline: Duration::from_secs(20), ..Default::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let run = tokio::spawn(worker::run(Arc::new(pipeline), plans, options, metrics.clone(), world, stop.clone()));
        let start = std::time::Instant::now();
        // It takes the idle claim of the second partition to get there, and rows read while the clock is right.
        let mut id = 3_000;
        while metrics.watermarks().get("events").and_then(|(at, _)| *at) != Some(1_769_856_600_000_000) {
            assert!(start.elapsed() < Duration::from_secs(60), "the watermark is at {:?}", metrics.watermarks());
            assert!(!run.is_finished(), "{:?}", run.await);
            to.send(0, id, "10:50");
            id += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.store(true, Ordering::Relaxed);
        run.await.unwrap().unwrap();
    });
    assert_eq!(metrics.late.load(Ordering::Relaxed), 0);
    let rows = counted(&pond, "jumping");
    let expected: Vec<String> = (0..50).map(|m| format!("10:{m:02} {}", if m < 5 { 120 } else { 60 })).collect();
    assert_eq!(rows, expected);
    assert_eq!(pond.number("select count(*) from \"all\" where id < 3000"), 3_300);
}

/// The machine's clock, put off by some days.
struct Off(i64);

impl Clock for Off {
    fn now_ms(&self) -> i64 {
        chrono::Utc::now().timestamp_millis() + self.0 * 86_400_000
    }
}

/// FAULTS 61: the clock is set forth and back by years between one start and the next, while windows are open
/// and a cleaner is at work, to which everything that is being made looks old or not yet born.
#[test]
fn f61_a_wall_clock_that_is_set_forth_and_back_between_starts_loses_nothing() {
    let broker = Broker::start();
    let topic = "set-back";
    broker.create_topic(topic, 2);
    let yaml = minutes("setback", &kafka(broker, topic), ", idle_after: never", "0s") + "clean: {after: 1h, every: 30ms}\n";
    let pond = Pond::new(&yaml);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let watermark = |at: &str| format!("2026-01-31T{at}Z");
    let mut ahead = vec![];
    // Ten minutes of rows at a time. A clock of ten years ago takes them for rows of the future: they are kept, and wait
    // in their windows for rows that a right clock reads.
    for (nth, (days, expected)) in [(0, "10:09:59"), (4_000, "10:19:59"), (-4_000, "10:19:59"), (4_000, "10:39:59"), (0, "10:49:59")].into_iter().enumerate() {
        let producer = broker.producer();
        for n in nth as i64 * 600..(nth as i64 + 1) * 600 {
            let at = chrono::DateTime::from_timestamp(1_769_853_600 + n, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
            for partition in 0..2 {
                producer.send(topic, partition, "k", &format!("{{\"id\":{n},\"at\":\"{at}\"}}"), 1_769_853_600_000);
            }
        }
        producer.flush();
        let pipeline = millpond::pipeline::load("pipeline.yaml".as_ref(), pond.path(), &|_| None).unwrap_or_else(|p| panic!("{:?}", p.list));
        let plans: Vec<_> = pipeline.tables.iter().map(|t| Arc::new(sql::plan(t, &pipeline.sources).unwrap())).collect();
        let metrics = Arc::new(Metrics::default());
        let world = Arc::new(System { clock: Arc::new(Off(days)) });
        let options = RunOptions { until_end: true, deadline: Duration::from_secs(20), ..Default::default() };
        runtime.block_on(worker::run(Arc::new(pipeline), plans, options, metrics.clone(), world, Arc::default())).unwrap();
        assert_eq!(metrics.late.load(Ordering::Relaxed), 0, "a clock off by {days} days");
        ahead.push(metrics.ahead.load(Ordering::Relaxed));
        let shown = pond.status()["sources"]["events"]["watermark"].as_str().unwrap_or("none").to_string();
        assert_eq!(shown, watermark(expected), "a clock off by {days} days");
    }
    assert_eq!(ahead, [0, 0, 1200, 0, 0]);
    let closed: Vec<String> = (0..49).map(|m| format!("10:{m:02} 120")).collect();
    assert_eq!(counted(&pond, "setback"), closed);
    for format in ["iceberg", "delta"] {
        assert_eq!(pond.query_in(format, "select count(*) as n, count(distinct id) as ids from \"all\""), [json!({"n": 6000, "ids": 3000})], "{format}");
    }
    // The clock that `verify` needs is that of the entries.
    pond.assert_proven();
}

/// FAULTS 62: the past is read again beside the live job: under a name of its own, with tables,
/// log and consumer group of its own. Neither disturbs the other.
#[test]
fn f62_a_replay_beside_the_live_job_disturbs_neither() {
    let broker = Broker::start();
    let topic = "replayed";
    broker.create_topic(topic, 2);
    let to = Sends { broker, topic };
    for n in 0..20 {
        to.send((n % 2) as i32, n, &format!("10:{:02}", n / 2));
    }
    let live = Pond::new(&minutes("live", &kafka(broker, topic), "", "0s"));
    let replay = minutes("replay", &kafka(broker, topic), "", "0s").replace("start: earliest", "start: {offsets: {0: 3, 1: 2}}");
    // In the same lake, beside the live one's tables.
    let beside = live.path().join("replay.yaml");
    std::fs::write(&beside, replay).unwrap();
    let running = live.start(&["run", "pipeline.yaml"]);
    let counted_by = |pipeline: &str| texts(&live.rows(pipeline, "minutes"), &["window_start", "n"]);
    let all: Vec<String> = (0..9).map(|m| format!("10:{m:02} 2")).collect();
    let start = std::time::Instant::now();
    while live.millpond(&["query", "pipeline.yaml", "select count(*) as n from minutes", "--json"]).stdout.trim() != "{\"n\":9}" {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
    let ended = live.millpond(&["run", "replay.yaml", "--until-end", "--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(serde_json::from_str::<Value>(ended.stdout.lines().last().unwrap()).unwrap()["records"], 15, "{ended:?}");
    // Partition 0 holds the even rows from the fourth on, partition 1 the odd ones from the third.
    let mut expected = vec!["10:02 1".to_string()];
    expected.extend((3..9).map(|m| format!("10:{m:02} 2")));
    assert_eq!(counted_by("replay"), expected);
    to.send(0, 20, "10:30");
    to.send(1, 21, "10:30");
    let start = std::time::Instant::now();
    while live.millpond(&["query", "pipeline.yaml", "select count(*) as n from minutes", "--json"]).stdout.trim() != "{\"n\":10}" {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    assert_eq!(counted_by("live"), [all, vec!["10:09 2".to_string()]].concat());
    assert_eq!(counted_by("replay"), expected, "the replay's tables are its own");
}

/// FAULTS 63: a worker dies after the watermark had moved and before its rows were in the tables.
/// What it reads again is judged by the watermark of the log, not by what the rows themselves say.
#[test]
fn f63_rows_read_again_after_a_kill_are_not_suddenly_late() {
    let broker = Broker::start();
    let topic = "read-again";
    broker.create_topic(topic, 1);
    let to = Sends { broker, topic };
    let pond = Pond::new(&minutes("again", &kafka(broker, topic), ", delay: 1m", "0s"));
    to.send(0, 1, "10:00");
    to.send(0, 2, "10:03");
    pond.until_end();
    // One epoch: the early row comes first in the topic and is in time, the late one moves the watermark.
    for (point, id) in [("commit-before-swap", 10), ("decide-before-put", 20), ("decide-after-put", 30), ("fold-after-entry", 40)] {
        let minute = |n: i64| format!("10:{:02}", id + n);
        to.send(0, id, &minute(0));
        to.send(0, id + 1, &minute(5));
        to.send(0, id + 2, &minute(4));
        let killed = pond.start_with(&["run", "pipeline.yaml", "--until-end"], &[("MILLPOND_FAILPOINT", point)]).wait();
        assert_eq!(killed.code, 128 + libc::SIGKILL, "{point}: {killed:?}");
        let summary = pond.until_end();
        assert_eq!(summary["late"], 0, "{point}: {summary}");
    }
    assert_eq!(late(&pond, "again"), Vec::<String>::new());
    let expected: Vec<String> = [0, 3, 10, 14, 15, 20, 24, 25, 30, 34, 35, 40].map(|m| format!("10:{m:02} 1")).to_vec();
    assert_eq!(counted(&pond, "again"), expected);
}

/// A gap of the first release: `start: {timestamp: …}` from end to end. Every partition begins at its
/// first record of that time or later, one without such a record at its end; a restart goes on from the log.
#[test]
fn a_start_by_timestamp_reads_what_was_written_from_then_on() {
    let broker = Broker::start();
    let topic = "from-then-on";
    broker.create_topic(topic, 3);
    let record = |partition: i32, id: i64, second: i64| broker.produce(topic, partition, "k", &format!("{{\"id\":{id},\"at\":\"2026-01-31T10:00:00Z\"}}"), 1_769_853_600_000 + second * 1000);
    for id in 0..10 {
        record(0, id, id);
    }
    record(1, 100, 2);
    let file = minutes("then", &kafka(broker, topic), "", "0s").replace("start: earliest", "start: {timestamp: \"2026-01-31T10:00:04.500Z\"}");
    let pond = Pond::new(&file);
    let ids = || {
        let mut ids: Vec<i64> = pond.rows("then", "all").iter().map(|r| r["id"].as_i64().unwrap()).collect();
        ids.sort();
        ids
    };
    assert_eq!(pond.until_end()["records"], 5);
    assert_eq!(ids(), [5, 6, 7, 8, 9]);
    // The log counts from now on, not the time.
    record(1, 101, 1);
    record(2, 200, 1);
    pond.until_end();
    assert_eq!(ids(), [5, 6, 7, 8, 9, 101, 200]);
}
