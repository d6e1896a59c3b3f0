//! What the tables must hold, reckoned from the topic alone: what a reader of committed records
//! finds there, grouped in plain maps. Which rows are late depends on where epochs were cut; so the
//! late tables are believed where a row can have been late, and every row is counted once: in its
//! window, or as late for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use crate::support::kafka::Broker;
use crate::support::millpond::reader;
use crate::support::spending::{Content, difference};

const MINUTE_US: i64 = 60_000_000;

/// A record that was committed.
#[derive(Debug)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// `None`: nobody can make a row of it.
    pub row: Option<Row>,
}

#[derive(Debug)]
pub struct Row {
    id: i64,
    time_us: i64,
    user: Option<String>,
    cents: i64,
}

fn row(text: &str) -> Option<Row> {
    let value: Value = serde_json::from_str(text).ok()?;
    let time = chrono::DateTime::parse_from_rfc3339(value["event_time"].as_str()?).ok()?;
    let amount: String = value["amount"].as_str()?.chars().filter(|c| *c != '.').collect();
    Some(Row { id: value["id"].as_i64()?, time_us: time.timestamp_micros(), user: value["user_id"].as_str().map(str::to_string), cents: amount.parse().ok()? })
}

/// Everything committed in the topic, in the order of partition and offset.
pub fn committed(broker: &Broker, topic: &str, partitions: i32) -> Vec<Record> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.address()).set("group.id", "reckoning").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true").set("auto.offset.reset", "error");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("assigned");
    let (mut records, mut ended) = (vec![], BTreeSet::new());
    let deadline = Instant::now() + Duration::from_secs(120);
    while ended.len() < partitions as usize {
        assert!(Instant::now() < deadline, "the topic could not be read to its end: {ended:?} of {partitions}");
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                let text = message.payload_view::<str>().and_then(Result::ok).unwrap_or_default();
                records.push(Record { partition: message.partition(), offset: message.offset(), row: row(text) });
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Err(e)) => panic!("the topic cannot be read: {e}"),
            None => {}
        }
    }
    records.sort_by_key(|r| (r.partition, r.offset));
    records
}

/// How a windowed table of the pipeline judges.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    pub table: &'static str,
    pub lateness_us: i64,
}

pub struct Reckoning<'a> {
    pub records: &'a [Record],
    pub delay_us: i64,
    /// Partitions that were there when the log was made: only there can a row be shown to be in time.
    pub first_partitions: i32,
}

fn text(us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(us).expect("a time").format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

fn window(time_us: i64) -> i64 {
    time_us.div_euclid(MINUTE_US) * MINUTE_US
}

/// One format's tables, as a reader that is not ours reads them.
pub struct Lake<'a> {
    pub reader: &'a str,
    pub folder: &'a Path,
}

impl Lake<'_> {
    fn rows(&self, table: &str) -> Vec<Value> {
        reader(&[self.reader, self.folder.join(table).to_str().expect("a path")])
    }

    fn lines(&self, table: &str, columns: &[&str]) -> Vec<String> {
        let one = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
        self.rows(table).iter().map(|r| columns.iter().map(|c| one(&r[*c])).collect::<Vec<_>>().join(" ")).collect()
    }
}

impl Reckoning<'_> {
    /// Rows that cannot have been late for their window, however epochs were cut: the watermark is
    /// never beyond what their own partition held before them.
    fn surely_in_time(&self, lateness_us: i64) -> BTreeSet<(i32, i64)> {
        let mut highest: BTreeMap<i32, i64> = BTreeMap::new();
        let mut sure = BTreeSet::new();
        for record in self.records {
            let Some(row) = &record.row else { continue };
            let before = highest.get(&record.partition).copied();
            let end = window(row.time_us) + MINUTE_US;
            if record.partition < self.first_partitions && before.is_none_or(|b| end > b - self.delay_us - lateness_us) {
                sure.insert((record.partition, record.offset));
            }
            let slot = highest.entry(record.partition).or_insert(row.time_us);
            *slot = (*slot).max(row.time_us);
        }
        sure
    }

    /// What the late table of `judged` holds, each row shown to be one that may be there.
    fn late(&self, lake: &Lake, judged: Judged) -> BTreeSet<(i32, i64)> {
        let table = format!("{}__late", judged.table);
        let by_place: BTreeMap<(i32, i64), &Row> = self.records.iter().filter_map(|r| Some(((r.partition, r.offset), r.row.as_ref()?))).collect();
        let sure = self.surely_in_time(judged.lateness_us);
        let mut late = BTreeSet::new();
        for found in lake.rows(&table) {
            let place = (found["_partition"].as_i64().unwrap_or(-1) as i32, found["_offset"].as_i64().unwrap_or(-1));
            let row = by_place.get(&place).unwrap_or_else(|| panic!("{} of {table}: no such record was committed: {found}", lake.reader));
            let start = window(row.time_us);
            assert_eq!((found["window_start"].as_str(), found["window_end"].as_str()), (Some(text(start).as_str()), Some(text(start + MINUTE_US).as_str())), "{table}: {found}");
            assert!(!sure.contains(&place), "{} of {table}: {found} was in time", lake.reader);
            assert!(late.insert(place), "{} of {table}: twice: {found}", lake.reader);
        }
        for record in self.records {
            let old = record.row.as_ref().is_some_and(|r| r.user.as_deref() == Some("old"));
            assert!(!old || late.contains(&(record.partition, record.offset)), "{} of {table}: {record:?} is hours late and not there", lake.reader);
        }
        late
    }

    fn counted<'r>(&'r self, late: &'r BTreeSet<(i32, i64)>) -> impl Iterator<Item = &'r Row> {
        self.records.iter().filter(|r| !late.contains(&(r.partition, r.offset))).filter_map(|r| r.row.as_ref())
    }

    /// Compares the tables of one format. Returns how many rows were late.
    pub fn compare(&self, lake: &Lake, keyed: Judged, live: Judged, appended: Judged) -> usize {
        let (mut expected, mut found) = (Content::new(), Content::new());
        let late = self.late(lake, keyed);
        let mut groups: BTreeMap<(i64, Option<String>), (i64, i64, i64)> = BTreeMap::new();
        for row in self.counted(&late) {
            let group = groups.entry((window(row.time_us), row.user.clone())).or_insert((0, 0, i64::MIN));
            *group = (group.0 + row.cents, group.1 + 1, group.2.max(row.id));
        }
        let lines = groups.iter().map(|((start, user), (cents, n, last))| format!("{} {} {} {n} {last}", text(*start), user.as_deref().unwrap_or("null"), money(*cents)));
        expected.insert(keyed.table.into(), lines.collect());
        found.insert(keyed.table.into(), lake.lines(keyed.table, &["window_start", "user_id", "total", "n", "last_id"]));

        for judged in [live, appended] {
            let late = self.late(lake, judged);
            let mut windows: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
            for row in self.counted(&late) {
                let sum = windows.entry(window(row.time_us)).or_default();
                *sum = (sum.0 + 1, sum.1 + row.cents);
            }
            expected.insert(judged.table.into(), windows.iter().map(|(start, (n, cents))| format!("{} {n} {}", text(*start), money(*cents))).collect());
        }
        found.insert(live.table.into(), lake.lines(live.table, &["window_start", "n", "total"]));
        found.insert(appended.table.into(), self.balance(lake, appended.table));

        let large = |r: &&Row| r.cents >= 90_000;
        let lines = self.records.iter().filter_map(|r| r.row.as_ref()).filter(large).map(|r| format!("{} {} {}", r.id, text(r.time_us), money(r.cents)));
        expected.insert("large".into(), lines.collect());
        found.insert("large".into(), lake.lines("large", &["id", "event_time", "amount"]));
        let dead = self.records.iter().filter(|r| r.row.is_none()).map(|r| format!("{} {}", r.partition, r.offset));
        expected.insert("events__dead".into(), dead.collect());
        found.insert("events__dead".into(), lake.lines("events__dead", &["_partition", "_offset"]));

        expected.values_mut().chain(found.values_mut()).for_each(|rows| rows.sort());
        assert!(expected.values().all(|rows| !rows.is_empty()), "every table is to hold rows");
        if let Some(said) = difference(&found, &expected) {
            panic!("{} does not find what was committed:\n{said}", lake.reader);
        }
        late.len()
    }

    /// Insertions less retractions: how many pairs there are depends on where epochs were cut.
    fn balance(&self, lake: &Lake, table: &str) -> Vec<String> {
        let mut left: BTreeMap<String, i64> = BTreeMap::new();
        for line in lake.lines(table, &["_op", "window_start", "n", "total"]) {
            let (op, rest) = line.split_once(' ').expect("an _op");
            *left.entry(rest.to_string()).or_default() += if op == "insert" { 1 } else { -1 };
        }
        left.into_iter().filter(|(_, n)| *n != 0).map(|(row, n)| if n == 1 { row } else { format!("{row} x{n}") }).collect()
    }
}
