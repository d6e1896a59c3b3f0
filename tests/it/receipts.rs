//! Progress that others see: the group's offsets follow the tables, and nothing is ever read back from them.

use crate::support::kafka::Broker;
use crate::support::millpond::Pond;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn pipeline(broker: &Broker, topic: &str) -> String {
    format!(
        "pipeline: shown
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest}}
    format: json
    columns: {{id: int64, at: timestamp}}
    watermark: {{column: at}}
tables:
  rows: {{sql: \"select id from events\"}}
lake: {{root: ./lake}}
epoch: {{every: 100ms}}
commit: {{every: 200ms}}
",
        broker.address()
    )
}

#[test]
fn the_groups_offsets_follow_the_tables_and_are_never_read() {
    let broker = Broker::start();
    let topic = "shown";
    broker.create_topic(topic, 3);
    let producer = broker.producer();
    let sends = |ids: std::ops::Range<i64>| {
        for id in ids {
            producer.send(topic, (id % 3) as i32, "k", &format!(r#"{{"id":{id},"at":"2026-01-31T10:00:00Z"}}"#), 0);
        }
        producer.flush();
    };
    let pond = Pond::new(&pipeline(broker, topic));
    let source = || pond.status()["sources"]["events"].clone();

    sends(0..30);
    assert_eq!(pond.until_end()["lag"], json!({"events": 0}));
    let group = source()["group"].as_str().unwrap().to_string();
    assert!(group.starts_with("millpond-shown-events-") && pond.millpond(&["status", "pipeline.yaml"]).stdout.contains(&group), "{group}");
    let committed = || broker.committed(&group, topic, 3);
    assert_eq!(committed(), [Some(10), Some(10), Some(10)], "what the tables hold");
    assert_eq!(source()["lag"], 0);

    // Behind: by what the partitions have gained since, in total and for each.
    sends(30..34);
    let shown = source();
    assert_eq!((&shown["lag"], &shown["partitions"]["0"]["lag"], &shown["partitions"]["0"]["end"]), (&json!(4), &json!(2), &json!(12)), "{shown}");
    let human = pond.millpond(&["status", "pipeline.yaml"]).stdout;
    assert!(human.contains("lag 4") && human.contains("partition 0: offset 10 of 12"), "{human}");

    // Set back, or ahead, by hand: the log knows better, and the next receipt says so.
    broker.set_committed(&group, topic, &[(0, 0), (1, 11), (2, 3)]);
    assert_eq!(pond.until_end()["records"], 4);
    assert_eq!(committed(), [Some(12), Some(11), Some(11)]);
    assert_eq!(pond.number("select count(distinct id) from rows"), 34);
    assert_eq!(pond.number("select count(*) from rows"), 34);
    // A run that finds nothing new reads nothing for them.
    broker.set_committed(&group, topic, &[(0, 0)]);
    assert_eq!(pond.until_end()["records"], 0);

    // They follow while a worker runs, too.
    let running = pond.start(&["run", "pipeline.yaml"]);
    sends(34..40);
    let start = Instant::now();
    while committed() != [Some(14), Some(13), Some(13)] {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}: {}", committed(), running.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(pond.number("select count(*) from rows"), 40, "no receipt before the tables have it");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
}

/// Without a broker the log still tells where the pipeline stands.
#[test]
fn status_without_the_broker_says_that_the_lag_is_unknown() {
    let broker = Broker::start();
    let topic = "unknown_lag";
    broker.create_topic(topic, 1);
    let good = pipeline(broker, topic);
    let pond = Pond::new(&good);
    pond.until_end();
    pond.rewrite(&good.replace(&broker.address(), "127.0.0.1:1"));
    let status = pond.status();
    let source = &status["sources"]["events"];
    assert_eq!((&source["lag"], &source["partitions"]["0"]["offset"]), (&Value::Null, &json!(0)), "{status}");
    assert!(source["lag_unknown"].as_str().is_some_and(|why| !why.is_empty()), "{status}");
}

/// Two lakes may be fed from one cluster under one name, a test and the real one: neither takes partitions from the other.
#[test]
fn two_lakes_with_one_pipeline_name_share_no_group() {
    let broker = Broker::start();
    let topic = "two_lakes";
    broker.create_topic(topic, 2);
    let send = |ids: std::ops::Range<i64>| {
        for id in ids {
            broker.produce(topic, (id % 2) as i32, "k", &format!(r#"{{"id":{id},"at":"2026-01-31T10:00:00Z"}}"#), 0);
        }
    };
    send(0..10);
    let (one, other) = (Pond::new(&pipeline(broker, topic)), Pond::new(&pipeline(broker, topic)));
    // One runs on, and holds every partition of its group.
    let running = one.start(&["run", "pipeline.yaml"]);
    let start = Instant::now();
    let rows = |pond: &Pond| pond.millpond(&["query", "pipeline.yaml", "select count(*) as n from rows", "--json"]).stdout.trim().to_string();
    while rows(&one) != r#"{"n":10}"# {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(other.until_end()["records"], 10);
    send(10..14);
    assert_eq!(other.until_end()["records"], 4);
    while rows(&one) != r#"{"n":14}"# {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait().code, 0);
    let group = |pond: &Pond| pond.status()["sources"]["events"]["group"].as_str().unwrap().to_string();
    assert_ne!(group(&one), group(&other));
    for pond in [&one, &other] {
        assert_eq!(broker.committed(&group(pond), topic, 2), [Some(7), Some(7)]);
    }
}
