//! One partition far ahead of another in event time, and little memory: it waits, and nothing shows it but a counter.

use crate::support::kafka::Broker;
use crate::support::millpond::Pond;

#[test]
fn a_partition_that_is_far_ahead_waits_while_open_windows_take_much_memory() {
    let broker = Broker::start();
    // Whether there is a need to wait is a race between what is read and what is folded: it must come up in one of a few runs.
    // What the tables hold must be right in each.
    let waited = (0..6).any(|nth| paused(&broker, &format!("skewed-{nth}")) > 0);
    assert!(waited, "the partition that is ahead never waited");
}

/// How often a partition had to wait.
fn paused(broker: &Broker, topic: &str) -> i64 {
    broker.create_topic(topic, 2);
    // Every row a group of its own: what is ahead fills memory that no watermark can free. Small fetches: many epochs.
    let pond = Pond::new(&format!(
        "pipeline: skewed
sources:
  events:
    kafka:
      brokers: '{}'
      topic: {topic}
      start: earliest
      options: {{queued.min.messages: 1, fetch.message.max.bytes: 16384, fetch.queue.backoff.ms: 5}}
    format: json
    columns: {{user_id: string, at: timestamp}}
    watermark: {{column: at}}
tables:
  minutes: {{sql: \"select window_start, user_id, count(*) as n from tumble(events, interval '1 minute') group by window_start, user_id\"}}
lake: {{root: ./lake}}
epoch: {{every: 10ms}}
memory: 16MiB
",
        broker.address()
    ));
    // In small batches: a fetch brings whole ones, and of a large one the partition that is behind may be at its end at once.
    let producer = broker.producer();
    let (rows, batch) = (20_000, 200);
    for from in (0..rows).step_by(batch as usize) {
        for (partition, first_minute) in [(0, 10_000), (1, 0)] {
            for n in from..from + batch {
                let at = chrono::DateTime::from_timestamp(1_769_853_600 + 60 * first_minute + n * 7200 / rows, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
                producer.send(topic, partition, "k", &format!(r#"{{"user_id":"somebody-with-a-long-name-{n}","at":"{at}"}}"#), 0);
            }
        }
        producer.flush();
    }
    let summary = pond.run(&["--final"]);
    assert_eq!((summary["records"].as_i64(), summary["late"].as_i64()), (Some(2 * rows), Some(0)), "{summary}");
    assert_eq!(pond.number("select sum(n) from minutes where _op = 'insert'"), 2 * rows);
    assert_eq!(pond.number("select count(*) from minutes where _op = 'retract'"), 0);
    summary["pauses"].as_i64().unwrap_or(0)
}
