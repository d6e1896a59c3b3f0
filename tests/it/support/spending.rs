//! Events of users who spend, the pipeline that counts them, and what its tables must hold.
//!
//! Which rows are late depends on where epochs are cut. Here it does not: a row of the first part
//! is in time however it is cut; the second part, written when the first is in the tables, holds
//! rows that are in time however it is cut and rows whose windows were over for good before it.

use super::kafka::{Broker, Producing};
use super::process::{Enough, Pipeline};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const PARTITIONS: i32 = 4;
/// 2026-01-31T10:00:00Z.
const START_MS: i64 = 1_769_853_600_000;
const MINUTE_MS: i64 = 60_000;

#[derive(Debug, Clone)]
pub struct Event {
    pub partition: i32,
    pub id: i64,
    /// `None`: a record that no reader can make a row of.
    pub time_ms: Option<i64>,
    user: Option<u32>,
    cents: i64,
    late: bool,
}

impl Event {
    fn json(&self) -> String {
        let Some(ms) = self.time_ms else {
            return if self.id % 2 == 0 { format!("{{\"id\": {}, broken", self.id) } else { format!("{{\"id\":{},\"event_time\":\"yesterday\"}}", self.id) };
        };
        let time = chrono::DateTime::from_timestamp_millis(ms).expect("a time").format("%Y-%m-%dT%H:%M:%S%.3fZ");
        let user = self.user.map_or("null".into(), |u| format!("\"u{u}\""));
        format!("{{\"id\":{},\"user_id\":{user},\"event_time\":\"{time}\",\"amount\":\"{}.{:02}\"}}", self.id, self.cents / 100, self.cents % 100)
    }
}

/// Numbers that look like chance and are the same every time.
pub fn mixed(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn event(id: i64, time_ms: Option<i64>, late: bool) -> Event {
    let chance = mixed(id as u64);
    let user = (chance % 23 != 0).then_some((chance >> 8) as u32 % 9);
    Event { partition: (id % i64::from(PARTITIONS)) as i32, id, time_ms, user, cents: (chance >> 20) as i64 % 100_000, late }
}

/// An hour of events in `count` rows from `first` on, up to a quarter of an hour out of order.
pub fn first_part(first: i64, count: i64) -> Vec<Event> {
    let row = |n: i64| {
        let chance = mixed((first + n) as u64 ^ 0xabcd);
        let behind = if chance % 3 == 0 { (chance >> 8) as i64 % (14 * MINUTE_MS) } else { 0 };
        let time = START_MS + 15 * MINUTE_MS + n * 45 * MINUTE_MS / count - behind;
        event(first + n, (chance % 37 != 1).then_some(time), false)
    };
    (0..count).map(row).collect()
}

/// The quarter of an hour after it, with corrections of the windows before and rows that are too late.
pub fn second_part(first: i64, count: i64) -> Vec<Event> {
    let row = |n: i64| {
        let chance = mixed((first + n) as u64 ^ 0xdcba);
        let id = first + n;
        if chance % 37 == 1 {
            return event(id, None, false);
        }
        match chance % 11 {
            0 => event(id, Some(START_MS + (chance >> 8) as i64 % (25 * MINUTE_MS)), true),
            1 | 2 => event(id, Some(START_MS + 56 * MINUTE_MS + (chance >> 8) as i64 % (4 * MINUTE_MS)), false),
            _ => event(id, Some(START_MS + 60 * MINUTE_MS + n * 15 * MINUTE_MS / count), false),
        }
    };
    (0..count).map(row).collect()
}

/// A small step every time, never late: for workers that are stopped and woken meanwhile.
pub fn steady(first: i64, count: i64) -> Vec<Event> {
    stepping(first, count, 500)
}

/// The same with a step of so many milliseconds.
pub fn stepping(first: i64, count: i64, step_ms: i64) -> Vec<Event> {
    (first..first + count).map(|id| event(id, (mixed(id as u64 ^ 0x77) % 97 != 0).then_some(START_MS + id * step_ms), false)).collect()
}

/// Writes them in small batches, so that a fetch that asks for little gets little.
pub fn produce(broker: &Broker, topic: &str, events: &[Event]) {
    produce_by(&broker.producer(), topic, events);
}

/// The same by a producer that is there already.
pub fn produce_by(producer: &Producing, topic: &str, events: &[Event]) {
    for some in events.chunks(8 * PARTITIONS as usize) {
        for event in some {
            producer.send(topic, event.partition, "k", &event.json(), 0);
        }
        producer.flush_soon();
    }
}

/// A topic to which [`steady`] events keep coming.
pub struct Growing<'a> {
    broker: &'a Broker,
    topic: &'a str,
    written: Mutex<i64>,
    enough: AtomicBool,
}

impl<'a> Growing<'a> {
    pub fn new(broker: &'a Broker, topic: &'a str) -> Self {
        Self { broker, topic, written: Mutex::new(0), enough: AtomicBool::new(false) }
    }

    /// Writes until there is enough.
    pub fn write(&self) {
        while !self.enough.load(Ordering::Relaxed) {
            let mut first = self.written.lock().unwrap();
            produce(self.broker, self.topic, &steady(*first, 24));
            *first += 24;
            drop(first);
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// So many are in the topic.
    pub fn written(&self) -> i64 {
        *self.written.lock().unwrap()
    }

    /// There is enough once it is dropped.
    pub fn enough(&self) -> Enough<'_> {
        Enough(&self.enough)
    }
}

/// How a pipeline of a test differs from others.
pub struct Terms<'a> {
    pub epoch: &'a str,
    pub commit: &'a str,
    /// Further librdkafka properties.
    pub options: &'a str,
}

/// Small fetches: a topic that is written already still makes many epochs.
pub const TRICKLE: &str = "queued.min.messages: 1, fetch.message.max.bytes: 512, fetch.queue.backoff.ms: 20";

/// The events as the one source of a pipeline file, with its watermark. `options` are librdkafka's; sessions end soon.
pub fn source(broker: &Broker, topic: &str, options: &str) -> String {
    let more = if options.is_empty() { String::new() } else { format!(", {options}") };
    format!(
        r#"sources:
  events:
    kafka:
      brokers: {broker}
      topic: {topic}
      start: earliest
      options: {{session.timeout.ms: 2000, heartbeat.interval.ms: 400{more}}}
    format: json
    columns: {{id: int64, user_id: string, event_time: timestamp, amount: "decimal(12,2)"}}
    watermark: {{column: event_time, delay: 10s, idle_after: never}}"#,
        broker = broker.address(),
    )
}

/// What every user spent in a minute: the beginning of a table, below its name.
pub const SPEND: &str = "    sql: |
      select window_start, user_id, sum(amount) as total, count(*) as n, max(id) as last_id
      from tumble(events, interval '1 minute') group by window_start, user_id
    key: [window_start, user_id]";

pub fn pipeline(dir: PathBuf, name: &str, broker: &Broker, topic: &str, terms: &Terms<'_>) -> Pipeline {
    let yaml = format!(
        r#"
pipeline: {name}
{source}
tables:
  spend:
{SPEND}
    allowed_lateness: 30m
  spend_log:
    sql: |
      select window_start, count(*) as n, sum(amount) as total
      from tumble(events, interval '1 minute') group by window_start
    allowed_lateness: 20m
  large:
    sql: select id, user_id, event_time, amount from events where amount >= 500
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
epoch: {{every: {epoch}}}
commit: {{every: {commit}}}
"#,
        source = source(broker, topic, terms.options),
        epoch = terms.epoch,
        commit = terms.commit,
    );
    Pipeline::new(dir, &yaml)
}

/// Every table as text, one row a line. Of the append-only table the balance of insertions and
/// retractions: how many pairs there are depends on where epochs are cut, what they add up to does not.
const CONTENT: &str = "
    select 'spend' as t, cast(cast(window_start as bigint) as varchar) || ' ' || coalesce(user_id, '-') || ' ' || cast(total as varchar) || ' ' || cast(n as varchar) || ' ' || cast(last_id as varchar) as r from spend
    union all
    select 'spend_log' as t, r || ' x' || cast(times as varchar) as r from (
        select r, sum(step) as times from (
            select cast(cast(window_start as bigint) as varchar) || ' ' || cast(n as varchar) || ' ' || cast(total as varchar) as r,
                   case when _op = 'insert' then 1 when _op = 'retract' then -1 end as step from spend_log
        ) as steps group by r
    ) as balance where times <> 0
    union all
    select 'large' as t, cast(id as varchar) || ' ' || coalesce(user_id, '-') || ' ' || cast(cast(event_time as bigint) as varchar) || ' ' || cast(amount as varchar) as r from large
    union all
    select 'spend__late' as t, cast(id as varchar) || ' ' || cast(_partition as varchar) || ' ' || cast(cast(window_start as bigint) as varchar) || ' ' || cast(cast(window_end as bigint) as varchar) as r from spend__late
    union all
    select 'spend_log__late' as t, cast(amount as varchar) || ' ' || cast(_partition as varchar) || ' ' || cast(cast(window_start as bigint) as varchar) || ' ' || cast(cast(window_end as bigint) as varchar) as r from spend_log__late
    union all
    select 'events__dead' as t, cast(_partition as varchar) || ' ' || cast(_offset as varchar) || ' ' || case when _reason is null then 'no reason' else coalesce(_table, '-') end as r from events__dead
    order by t, r";

/// Table to its rows, in one order.
pub type Content = BTreeMap<String, Vec<String>>;

pub fn content(pipeline: &Pipeline, format: &str) -> Result<Content, String> {
    let mut content = Content::new();
    for row in pipeline.query(format, CONTENT)? {
        let text = |name: &str| row[name].as_str().map(str::to_string).ok_or_else(|| format!("no {name} in {row}"));
        content.entry(text("t")?).or_default().push(text("r")?);
    }
    content.values_mut().for_each(|rows| rows.sort());
    Ok(content)
}

/// What the tables must hold of `events` once every window is closed.
pub fn expected(events: &[Event]) -> Content {
    let money = |cents: i64| format!("{}.{:02}", cents / 100, cents % 100);
    let mut content = Content::new();
    let mut spend: BTreeMap<(i64, String), (i64, i64, i64)> = BTreeMap::new();
    let mut windows: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    let mut offsets = [0i64; PARTITIONS as usize];
    let mut push = |table: &str, row: String| content.entry(table.to_string()).or_default().push(row);
    for event in events {
        let offset = offsets[event.partition as usize];
        offsets[event.partition as usize] += 1;
        let Some(ms) = event.time_ms else {
            push("events__dead", format!("{} {offset} -", event.partition));
            continue;
        };
        let user = event.user.map_or("-".to_string(), |u| format!("u{u}"));
        if event.cents >= 50_000 {
            push("large", format!("{} {user} {} {}", event.id, ms * 1000, money(event.cents)));
        }
        let window = ms.div_euclid(MINUTE_MS) * MINUTE_MS * 1000;
        if event.late {
            let ends = window + MINUTE_MS * 1000;
            push("spend__late", format!("{} {} {window} {ends}", event.id, event.partition));
            push("spend_log__late", format!("{} {} {window} {ends}", money(event.cents), event.partition));
            continue;
        }
        let group = spend.entry((window, user)).or_insert((0, 0, i64::MIN));
        *group = (group.0 + event.cents, group.1 + 1, group.2.max(event.id));
        let all = windows.entry(window).or_default();
        *all = (all.0 + 1, all.1 + event.cents);
    }
    for ((window, user), (cents, n, last)) in spend {
        push("spend", format!("{window} {user} {} {n} {last}", money(cents)));
    }
    for (window, (n, cents)) in windows {
        push("spend_log", format!("{window} {n} {} x1", money(cents)));
    }
    content.values_mut().for_each(|rows| rows.sort());
    content
}

/// Compares, and says what is missing and what is too much.
pub fn difference(found: &Content, expected: &Content) -> Option<String> {
    let tables: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let none = vec![];
    let mut said = String::new();
    for table in tables {
        let (have, want) = (found.get(table).unwrap_or(&none), expected.get(table).unwrap_or(&none));
        if have != want {
            let surplus: Vec<&String> = have.iter().filter(|r| !want.contains(r)).take(5).collect();
            let missing: Vec<&String> = want.iter().filter(|r| !have.contains(r)).take(5).collect();
            said += &format!("{table}: {} rows, expected {}; not expected: {surplus:?}; missing: {missing:?}\n", have.len(), want.len());
        }
    }
    (!said.is_empty()).then_some(said)
}

/// Both formats of every table hold `expected`.
pub fn assert_content(pipeline: &Pipeline, expected: &Content, when: &str) {
    for format in ["iceberg", "delta"] {
        let found = content(pipeline, format).unwrap_or_else(|e| panic!("{when}: {format}: {e}"));
        if let Some(said) = difference(&found, expected) {
            panic!("{when}: {format} tables in {}:\n{said}", pipeline.dir.display());
        }
    }
}

/// How many of the events the plain table `large` must hold.
pub fn large(events: &[Event]) -> usize {
    expected(events).get("large").map_or(0, Vec::len)
}

/// How many rows `large` holds, where it can be read.
pub fn in_table(pipeline: &Pipeline) -> Option<usize> {
    let rows = pipeline.query("delta", "select count(*) as n from large").ok()?;
    rows.first()?["n"].as_u64().map(|n| n as usize)
}
