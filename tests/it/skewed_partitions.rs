//! One partition far ahead of another in event time, and little memory: it waits, and nothing shows it but a counter.

use crate::support::millpond::Pond;
use std::fmt::Write;

#[test]
fn a_partition_that_is_far_ahead_waits_while_open_windows_take_much_memory() {
    let pond = Pond::new(
        "pipeline: skewed
sources:
  events:
    file: events-*.ndjson
    columns: {user_id: string, at: timestamp}
    watermark: {column: at}
tables:
  minutes: {sql: \"select window_start, user_id, count(*) as n from tumble(events, interval '1 minute') group by window_start, user_id\"}
lake: {root: ./lake}
epoch: {every: 10ms}
memory: 16MiB
",
    );
    // Every row a group of its own: what is ahead fills memory that no watermark can free.
    let rows = |first_minute: i64, count: i64| {
        (0..count).fold(String::new(), |mut text, n| {
            let at = chrono::DateTime::from_timestamp(1_769_853_600 + 60 * first_minute + n * 7200 / count, 0).unwrap();
            let _ = writeln!(text, r#"{{"user_id":"somebody-with-a-long-name-{n}","at":"{}"}}"#, at.format("%Y-%m-%dT%H:%M:%SZ"));
            text
        })
    };
    std::fs::write(pond.path().join("events-ahead.ndjson"), rows(10_000, 40_000)).unwrap();
    std::fs::write(pond.path().join("events-behind.ndjson"), rows(0, 60_000)).unwrap();
    let summary = pond.run(&["--final"]);
    assert!(summary["pauses"].as_i64() > Some(0), "{summary}");
    assert_eq!((summary["records"].as_i64(), summary["late"].as_i64()), (Some(100_000), Some(0)), "{summary}");
    assert_eq!(pond.number("select sum(n) from minutes where _op = 'insert'"), 100_000);
    assert_eq!(pond.number("select count(*) from minutes where _op = 'retract'"), 0);
}
