//! A changed pipeline file on a log that exists, and a stop with a backlog.

use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, texts};
use std::time::{Duration, Instant};

struct File {
    lateness: &'static str,
    sum: &'static str,
    plain: &'static str,
    more: &'static str,
}

fn pipeline(broker: &Broker, topic: &str, file: &File) -> String {
    let File { lateness, sum, plain, more } = file;
    format!(
        "pipeline: changing
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest}}
    format: json
    columns: {{user_id: string, event_time: timestamp, amount: int64}}
    watermark: {{column: event_time}}
tables:
  spend:
    sql: \"select window_start, user_id, {sum} as amount from tumble(events, interval '5 minutes') group by window_start, user_id\"
    key: [window_start, user_id]
    allowed_lateness: {lateness}
  plain: {{sql: \"select {plain} from events\"}}
{more}
lake: {{root: ./lake}}
",
        broker.address()
    )
}

#[test]
fn a_changed_file_goes_on_or_is_refused() {
    let broker = Broker::start();
    let topic = "changing";
    broker.create_topic(topic, 1);
    let sends = |user: &str, minute: &str| {
        broker.produce(topic, 0, user, &format!(r#"{{"user_id":"{user}","event_time":"2026-01-31T{minute}:00Z","amount":1}}"#), 0);
    };
    let mut file = File { lateness: "10m", sum: "sum(amount)", plain: "user_id", more: "" };
    let pond = Pond::new(&pipeline(broker, topic, &file));
    let spend = || texts(&pond.rows("changing", "spend"), &["window_start", "user_id", "amount"]);
    let late = || texts(&pond.rows("changing", "spend__late"), &["event_time", "window_start"]);

    sends("A", "10:01");
    sends("A", "10:07");
    sends("Z", "10:16");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 1"]);

    // Raised: what was dropped stays dropped (the horizon is at 10:06), the rest lives longer.
    file.lateness = "1h";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("Z", "10:40");
    pond.until_end();
    sends("A", "10:08");
    sends("A", "10:02");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 2", "10:15 Z 1"]);
    assert_eq!(late(), ["10:02 10:00"]);

    // Lowered: from the next entry on.
    file.lateness = "0s";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("Z", "10:41");
    pond.until_end();
    sends("A", "10:09");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 2", "10:15 Z 1"]);
    assert_eq!(late(), ["10:02 10:00", "10:09 10:05"]);

    // A column is added, a table is added.
    file.plain = "user_id, amount, event_time as at";
    file.more = "  born: {sql: \"select window_start, count(*) as n from tumble(events, interval '5 minutes') group by window_start\", key: [window_start], allowed_lateness: 5m}\n";
    pond.rewrite(&pipeline(broker, topic, &file));
    let validated = pond.millpond(&["validate", "pipeline.yaml", "--json"]);
    assert_eq!(validated.code, 0, "{validated:?}");
    let notes: Value = serde_json::from_str(&validated.stdout).unwrap();
    assert!(notes["notes"].to_string().contains("born"), "{notes}");
    sends("B", "10:43");
    sends("Z", "10:46");
    pond.until_end();
    let plain = texts(&pond.rows("changing", "plain"), &["user_id", "amount", "at"]);
    let mut expected: Vec<String> = ["A", "A", "A", "A", "A", "Z", "Z", "Z"].map(|u| format!("{u} null null")).to_vec();
    expected.extend(["B 1 10:43".to_string(), "Z 1 10:46".to_string()]);
    expected.sort();
    assert_eq!(plain, expected);
    let born = texts(&pond.rows("changing", "born"), &["window_start", "n"]);
    assert_eq!(born, ["10:40 1"], "only rows after its birth");
    let status = pond.status();
    assert!(status["tables"]["born"]["born"].as_i64() > Some(0), "{status}");

    // Another meaning of a sum that is kept: refused, with the ways out, and nothing moves.
    let commits = || pond.query("select table_name, format, snapshot, entry from millpond.commits order by 1, 2, 3");
    let (rows, log) = (commits(), pond.status()["next_entry"].clone());
    file.sum = "max(amount)";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("B", "10:58");
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("another name") && ended.stderr.contains("spend"), "{ended:?}");
    let validated = pond.millpond(&["validate", "pipeline.yaml"]);
    assert_eq!(validated.code, 78, "{validated:?}");
    // So is a column that goes away.
    file.sum = "sum(amount)";
    file.plain = "user_id, amount";
    pond.rewrite(&pipeline(broker, topic, &file));
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    file.plain = "user_id, amount, event_time as at";
    pond.rewrite(&pipeline(broker, topic, &file));
    assert_eq!(commits(), rows);
    assert_eq!(pond.status()["next_entry"], log);
    pond.until_end();
    assert_eq!(spend().last().unwrap(), "10:45 Z 1");
}

/// A partition was idle and the watermark went on without it; then everything stopped and a backlog
/// grew on both partitions. The claim of then counts no more: its rows hold the watermark.
/// FAULTS 58.
#[test]
fn a_backlog_on_an_idle_partition_is_not_late() {
    let broker = Broker::start();
    let topic = "backlog";
    broker.create_topic(topic, 2);
    let yaml = format!(
        "pipeline: backlog
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest}}
    format: json
    columns: {{event_time: timestamp}}
    watermark: {{column: event_time, idle_after: 1s}}
tables:
  minutes: {{sql: \"select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start\", key: [window_start]}}
lake: {{root: ./lake}}
epoch: {{every: 200ms}}
commit: {{every: 300ms}}
",
        broker.address()
    );
    let pond = Pond::new(&yaml);
    let producer = broker.producer();
    let sends = |partition: i32, minute: i64| {
        let at = chrono::DateTime::from_timestamp(1_769_853_600 + 60 * minute, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
        producer.send(topic, partition, "k", &format!(r#"{{"event_time":"{at}"}}"#), 0);
    };
    sends(0, 0);
    sends(1, 30);
    producer.flush();
    let running = pond.start(&["run", "pipeline.yaml"]);
    let start = Instant::now();
    // Partition 0 holds the watermark at minute 0 until it is claimed idle.
    let watermark = loop {
        let shown = pond.millpond(&["status", "pipeline.yaml", "--json"]);
        let status: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        let watermark = status["sources"]["events"]["watermark"].clone();
        if watermark == "2026-01-31T10:30:00Z" {
            break watermark;
        }
        sends(1, 30);
        producer.flush();
        assert!(start.elapsed() < Duration::from_secs(60), "{status} {}", running.stderr());
        std::thread::sleep(Duration::from_millis(300));
    };
    running.signal(libc::SIGINT);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(watermark, "2026-01-31T10:30:00Z");

    let before = pond.status()["sources"]["events"]["records"].as_i64().unwrap();
    // Partition 1 is far ahead of 0 and delivers first; 0 has rows from where the watermark stands.
    for minute in 31..400 {
        sends(1, minute);
    }
    producer.flush();
    for minute in 31..400 {
        sends(0, minute);
    }
    producer.flush();
    let summary = pond.until_end();
    assert_eq!(summary["records"], 2 * 369, "{summary}");
    assert_eq!((&summary["late"], &summary["dead"]), (&json!(0), &json!(0)), "{summary}");
    let rows = pond.rows("backlog", "minutes");
    let counted: i64 = rows.iter().map(|r| r["n"].as_i64().unwrap()).sum();
    // The last window is open still.
    assert_eq!(counted, before + 2 * 368);
}
