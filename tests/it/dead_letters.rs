//! What cannot be read or computed lands in `<source>__dead` with its bytes, its place and a reason,
//! and the run goes on; what comes too late lands in `<table>__late` with its window.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::kafka::Broker;
use crate::support::millpond::Pond;

const TOPIC: &str = "dead-letters";

fn pipeline(broker: &Broker) -> String {
    format!(
        "pipeline: letters
sources:
  readings:
    kafka: {{brokers: '{}', topic: {TOPIC}, start: earliest}}
    format: json
    columns: {{id: int64 not null, at: timestamp, level: string, count: int32}}
    watermark: {{column: at}}
tables:
  plain: {{sql: \"select id, level from readings\"}}
  numbers: {{sql: \"select id, cast(level as bigint) as level from readings\"}}
  summed:
    sql: \"select window_start, sum(cast(level as bigint)) as levels, count(*) as n from tumble(readings, interval '1 minute') group by window_start\"
    key: [window_start]
lake: {{root: ./lake}}
",
        broker.address()
    )
}

fn send(broker: &Broker, value: Option<&[u8]>) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.address()).create().unwrap();
    let headers = OwnedHeaders::new().insert(Header { key: "trace", value: Some(b"\x00\xff") });
    let mut record = BaseRecord::to(TOPIC).partition(0).key(b"k\xfe".as_slice()).headers(headers).timestamp(1_769_853_600_123);
    if let Some(value) = value {
        record = record.payload(value);
    }
    producer.send(record).map_err(|(e, _)| e).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// Also what only failed to fit when its window was emitted, of which no record is to blame.
#[test]
fn the_summary_counts_every_dead_letter() {
    let pond = Pond::new(
        "pipeline: sums
sources:
  readings: {file: \"*.ndjson\", columns: {k: string, at: timestamp, n: int64}, watermark: {column: at}}
tables:
  summed:
    sql: \"select window_start, k, sum(n) as total, count(*) as n from tumble(readings, interval '1 minute') group by window_start, k\"
    key: [window_start, k]
lake: {root: ./lake}
",
    );
    let row = |k: &str, n: i64| format!("{{\"k\":\"{k}\",\"at\":\"2026-01-31T10:00:00Z\",\"n\":{n}}}\n");
    let rows = [row("a", i64::MAX), row("a", 1), row("b", 2), "{\"k\":\n".into(), row("c", i64::MIN), row("c", -1)].concat();
    std::fs::write(pond.path().join("r.ndjson"), rows).unwrap();
    let summary = pond.run(&["--final"]);
    assert_eq!((&summary["dead"], &summary["overflow"]), (&json!(3), &json!(2)), "{summary}");
    assert_eq!(pond.number("select count(*) from readings__dead"), 3);
    assert_eq!(pond.number("select count(*) from summed where total is null"), 2);
    pond.assert_proven();
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert!(ended.code == 0 && ended.stdout.contains("0 dead") && !ended.stdout.contains("why dead"), "{ended:?}");
}

#[test]
fn every_record_that_cannot_be_used_is_kept_as_it_came() {
    let broker = Broker::start();
    broker.create_topic(TOPIC, 1);
    let good = |id: i32, minute: &str, level: &str| format!(r#"{{"id":{id},"at":"2026-01-31T10:{minute}Z","level":"{level}","count":1}}"#).into_bytes();
    // What is sent, which table cannot take it (null: it could not be decoded), a word of the reason.
    let sent: Vec<(Option<Vec<u8>>, Option<(Value, &str)>)> = vec![
        (Some(good(0, "00:00", "1")), None),
        (Some(b"{\"id\":".to_vec()), Some((Value::Null, "JSON"))),
        (None, Some((Value::Null, "null"))),
        (Some(b"{\"id\":3,\"at\":\"2026-01-31T10:00:00Z\",\"undeclared\":\"\xff\"}".to_vec()), Some((Value::Null, "UTF-8"))),
        (Some(br#"{"id":9223372036854775808,"at":"2026-01-31T10:00:00Z"}"#.to_vec()), Some((Value::Null, "id"))),
        (Some(br#"{"id":5,"at":null}"#.to_vec()), Some((Value::Null, "at"))),
        (Some(br#"{"id":6}"#.to_vec()), Some((Value::Null, "at"))),
        // No table reads `count`, and yet it is judged: adding a table never changes what is dead.
        (Some(br#"{"id":7,"at":"2026-01-31T10:00:00Z","count":2147483648}"#.to_vec()), Some((Value::Null, "count"))),
        (Some(b"[1]".to_vec()), Some((Value::Null, "object"))),
        (Some(br#"{"id":9,"at":"2026-01-31T10:00:00Z"} x"#.to_vec()), Some((Value::Null, "JSON"))),
        (Some(good(10, "00:30", "2")), None),
    ];
    for (value, _) in &sent {
        send(broker, value.as_deref());
    }
    // One that two of three tables cannot compute.
    send(broker, Some(&good(11, "00:40", "high")));
    send(broker, Some(&good(12, "05:00", "3")));
    let pond = Pond::new(&pipeline(broker));
    let summary = pond.until_end();
    assert_eq!(summary["records"], 13, "{summary}");
    assert_eq!(summary["dead"], 11, "{summary}");

    let mut dead = pond.rows("letters", "readings__dead");
    dead.sort_by_key(|r| (r["_offset"].as_i64(), r["_table"].as_str().map(str::to_string)));
    let mut expected: Vec<(i64, Option<Vec<u8>>, Value, &str)> = vec![];
    for (offset, (value, verdict)) in sent.iter().enumerate() {
        if let Some((table, word)) = verdict {
            expected.push((offset as i64, value.clone(), table.clone(), word));
        }
    }
    for table in ["numbers", "summed"] {
        expected.push((11, Some(good(11, "00:40", "high")), json!(table), "high"));
    }
    assert_eq!(dead.len(), expected.len(), "{dead:#?}");
    for (row, (offset, value, table, word)) in dead.iter().zip(expected) {
        assert_eq!(row["_offset"], offset, "{row}");
        assert_eq!(row["_value"], value.map_or(Value::Null, |v| STANDARD.encode(v).into()), "{row}");
        assert_eq!(row["_table"], table, "{row}");
        let reason = row["_reason"].as_str().unwrap();
        assert!(reason.to_lowercase().contains(&word.to_lowercase()), "expected {word:?} in the reason: {row}");
        assert_eq!((&row["_topic"], &row["_partition"]), (&json!(TOPIC), &json!(0)), "{row}");
        assert_eq!(row["_key"], STANDARD.encode(b"k\xfe"), "{row}");
        assert_eq!(row["_timestamp"], "2026-01-31T10:00:00.123000+00:00", "{row}");
        assert_eq!(row["_headers"], json!({ "trace": STANDARD.encode(b"\x00\xff") }), "{row}");
    }

    let rows = |table: &str| pond.rows("letters", table);
    let ids = |rows: Vec<Value>| {
        let mut ids: Vec<i64> = rows.iter().map(|r| r["id"].as_i64().unwrap()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(rows("plain")), [0, 10, 11, 12]);
    assert_eq!(ids(rows("numbers")), [0, 10, 12]);
    assert_eq!(rows("summed"), [json!({ "window_start": "2026-01-31T10:00:00.000000+00:00", "levels": 3, "n": 2 })]);

    // A late row that the table could count, and a late one that it could not compute.
    send(broker, Some(&good(13, "01:00", "4")));
    send(broker, Some(&good(14, "01:00", "low")));
    let summary = pond.until_end();
    assert_eq!((&summary["late"], &summary["records"]), (&json!(1), &json!(2)), "{summary}");
    let late = rows("summed__late");
    let reason = late[0]["_reason"].as_str().unwrap_or_default().to_string();
    assert!(!reason.is_empty(), "{late:?}");
    let expected = json!({
        "_topic": TOPIC, "_partition": 0, "_offset": 13, "_timestamp": "2026-01-31T10:00:00.123000+00:00", "_key": STANDARD.encode(b"k\xfe"), "_reason": reason,
        "at": "2026-01-31T10:01:00.000000+00:00", "level": "4",
        "window_start": "2026-01-31T10:01:00.000000+00:00", "window_end": "2026-01-31T10:02:00.000000+00:00",
    });
    assert_eq!(late, [expected]);
    assert_eq!(pond.number("select count(*) from readings__dead where _offset = 14"), 2);
    pond.assert_proven();
}
