//! The running example, to the digit: `pipelines/spend.yaml` as it is, and beside its table one
//! without a key and one that allows no lateness. All readers of both formats see each step.

use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, texts};

/// `pipelines/spend.yaml` with two more tables from the same source.
fn pipeline(broker: &Broker, topic: &str) -> String {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/spend.yaml")).unwrap();
    let sql = "from tumble(events, interval '5 minutes') where amount > 0 group by window_start, user_id";
    let more = format!(
        "\n  appended:\n    sql: \"select window_start, user_id, sum(amount) as sum_amount {sql}\"\n    allowed_lateness: 10m\
         \n  strict:\n    sql: \"select window_start, user_id, sum(amount) as sum_amount {sql}\"\n    key: [window_start, user_id]\n"
    );
    let cut = file.find("\n# Where it all lies").expect("the place after the tables");
    let text = format!("{}{more}{}", &file[..cut], &file[cut..]);
    text.replace("${KAFKA_BROKERS:-localhost:9092}", &broker.address()).replace("${SPEND_TOPIC:-spend_events}", topic)
}

struct Example<'a> {
    broker: &'a Broker,
    topic: &'a str,
    pond: Pond,
}

impl Example<'_> {
    fn sends(&self, user: &str, minute: &str, amount: u32) {
        let event = format!(r#"{{"user_id":"{user}","event_time":"2026-01-31T{minute}:00Z","amount":"{amount}.00"}}"#);
        self.broker.produce(self.topic, 0, user, &event, 0);
    }

    fn keyed(&self) -> Vec<String> {
        texts(&self.pond.rows("spend", "spend_by_user"), &["window_start", "user_id", "sum_amount", "n"])
    }

    fn appended(&self) -> Vec<String> {
        texts(&self.pond.rows("spend", "appended"), &["window_start", "user_id", "_op", "sum_amount"])
    }

    fn strict(&self) -> Vec<String> {
        texts(&self.pond.rows("spend", "strict"), &["window_start", "user_id", "sum_amount"])
    }

    fn late(&self, table: &str) -> Vec<String> {
        let columns = ["_topic", "_partition", "_offset", "user_id", "event_time", "amount", "window_start", "window_end"];
        texts(&self.pond.rows("spend", &format!("{table}__late")), &columns)
    }
}

/// FAULTS 59, 60: within the allowed lateness a corrected row, after it a late one; a watermark exactly on a window's end.
#[test]
fn seven_becomes_eight_or_stays_seven() {
    let broker = Broker::start();
    let topic = "running-example";
    broker.create_topic(topic, 1);
    let example = Example { broker, topic, pond: Pond::new(&pipeline(broker, topic)) };

    example.sends("A", "10:00", 5);
    example.sends("B", "10:02", 3);
    example.sends("A", "10:04", 2);
    let first = example.pond.until_end();
    assert_eq!(first["records"], 3);
    assert_eq!(first["runs_read"], 0, "what it staged itself was read back: {first}");
    // The watermark stands at 10:03, a minute behind the latest row: nothing shows yet.
    assert_eq!(example.keyed(), Vec::<String>::new());
    assert_eq!(example.appended(), Vec::<String>::new());

    // 10:06 less a minute is 10:05, just the end of the first window.
    example.sends("B", "10:06", 1);
    example.pond.until_end();
    assert_eq!(example.keyed(), ["10:00 A 7.00 2", "10:00 B 3.00 1"]);

    // Amount 0 is filtered out, and yet its time counts: the watermark moves to 10:10.
    example.sends("Z", "10:11", 0);
    example.pond.until_end();
    assert_eq!(example.keyed(), ["10:00 A 7.00 2", "10:00 B 3.00 1", "10:05 B 1.00 1"]);
    assert_eq!(example.appended(), ["10:00 A insert 7.00", "10:00 B insert 3.00", "10:05 B insert 1.00"]);
    assert_eq!(example.strict(), ["10:00 A 7.00", "10:00 B 3.00", "10:05 B 1.00"]);

    example.sends("A", "10:01", 1);
    let late = example.pond.until_end();
    assert_eq!(late["late"], 1, "only the table that allows no lateness has a late row: {late}");
    assert_eq!(example.keyed(), ["10:00 A 8.00 3", "10:00 B 3.00 1", "10:05 B 1.00 1"]);
    assert_eq!(example.appended(), ["10:00 A insert 7.00", "10:00 A insert 8.00", "10:00 A retract 7.00", "10:00 B insert 3.00", "10:05 B insert 1.00"]);
    assert_eq!(example.strict(), ["10:00 A 7.00", "10:00 B 3.00", "10:05 B 1.00"]);
    assert_eq!(example.late("strict"), ["running-example 0 5 A 10:01 1.00 10:00 10:05"]);
    assert_eq!(example.late("spend_by_user"), Vec::<String>::new());
    assert_eq!(example.late("appended"), Vec::<String>::new());

    // Ten minutes beyond 10:05 nothing changes the first window any more: 8 stays.
    example.sends("Z", "10:16", 0);
    example.pond.until_end();
    example.sends("A", "10:02", 4);
    let late = example.pond.until_end();
    assert_eq!(late["late"], 3, "{late}");
    assert_eq!(example.keyed(), ["10:00 A 8.00 3", "10:00 B 3.00 1", "10:05 B 1.00 1"]);
    assert_eq!(example.late("spend_by_user"), ["running-example 0 7 A 10:02 4.00 10:00 10:05"]);
    assert_eq!(example.late("appended"), example.late("spend_by_user"));
    assert_eq!(example.late("strict").len(), 2);

    // Nothing new: nothing is committed.
    let commits = || example.pond.query("select table_name, format, snapshot from millpond.commits order by 1, 2, 3");
    let before = commits();
    let again = example.pond.until_end();
    assert_eq!((&again["records"], &again["commits"]), (&0.into(), &0.into()), "{again}");
    assert_eq!(commits(), before);
    example.pond.assert_proven();
}
