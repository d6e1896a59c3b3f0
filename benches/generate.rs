//! Load for Kafka: made-up events that are the same everywhere, and files of real ones.
//!
//! Used by the benchmarks and, included by path, by the tests; needs nothing but rdkafka and what
//! the crate has anyway.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// 2026-01-01T00:00:00Z in milliseconds, a whole multiple of five minutes: when the send clock starts.
pub const EPOCH_MS: i64 = 1_767_225_600_000;

const KINDS: [&str; 8] = ["page_view", "click", "add_to_cart", "remove_item", "checkout", "purchase", "refund", "search"];
const COUNTRIES: [&str; 20] =
    ["US", "DE", "FR", "GB", "IN", "BR", "JP", "CN", "CA", "AU", "ES", "IT", "NL", "SE", "PL", "MX", "ZA", "NG", "KR", "ID"];

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..1`, with all 53 bits of a float.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What a correct reader of the events finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub rows: u64,
    pub bytes: u64,
    pub amount_cents: u64,
    pub user_ids: u64,
}

/// How `event_time` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeText {
    /// `"2026-01-01T00:00:00.000Z"`
    Rfc3339,
    /// Milliseconds since 1970-01-01 UTC, a number.
    Millis,
}

/// One event after another, determined by the seed: user ids follow a Zipf distribution over
/// `1..=keys`, the send clock runs at 1,000 events a second, and 1 % of the events are 5 minutes to
/// 1 hour older than it, 4 % 30 seconds to 5 minutes, the others up to 30 seconds.
pub struct Events {
    random: SplitMix64,
    keys: u64,
    times: TimeText,
    index: u64,
    pub totals: Totals,
    pub user_id: u64,
    /// The JSON text of the event that [`Events::advance`] made last.
    pub json: String,
}

impl Events {
    pub fn new(keys: u64, seed: u64, times: TimeText) -> Self {
        Self { random: SplitMix64(seed), keys, times, index: 0, totals: Totals::default(), user_id: 0, json: String::new() }
    }

    /// Makes the next event. The order of the draws is part of the data's definition.
    pub fn advance(&mut self) {
        let random = &mut self.random;
        let rank = ((self.keys as f64).powf(random.fraction()) as u64).clamp(1, self.keys) - 1;
        self.user_id = rank * 7919 % self.keys + 1;
        let kind = KINDS[random.below(8) as usize];
        let cents = random.below(50_000);
        let country = COUNTRIES[(random.fraction() * random.fraction() * 20.0) as usize];
        let (least, most) = match random.below(100) {
            0 => (300_000, 3_600_000),
            1..=4 => (30_000, 300_000),
            _ => (0, 30_000),
        };
        let age = (least + random.below(most - least)) as i64;
        let time_ms = EPOCH_MS + self.index as i64 - age;
        let (high, low) = (random.next(), random.next());

        let json = &mut self.json;
        json.clear();
        // Writing to a String does not fail.
        let _ = write!(json, r#"{{"user_id":{},"event_type":"{kind}","amount":{}.{:02},"event_time":"#, self.user_id, cents / 100, cents % 100);
        match self.times {
            TimeText::Millis => drop(write!(json, "{time_ms}")),
            TimeText::Rfc3339 => {
                let time = chrono::DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
                let _ = write!(json, "\"{}\"", time.format("%Y-%m-%dT%H:%M:%S%.3fZ"));
            }
        }
        let _ = write!(
            json,
            r#","session":"{:08x}-{:04x}-{:04x}-{:04x}-{:012x}","country":"{country}"}}"#,
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        );
        self.index += 1;
        self.totals.rows += 1;
        self.totals.bytes += json.len() as u64;
        self.totals.amount_cents += cents;
        self.totals.user_ids += self.user_id;
    }
}

fn producer(brokers: &str) -> Result<BaseProducer, Failure> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("compression.codec", "lz4")
        .set("enable.idempotence", "true")
        .set("linger.ms", "50")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "200000")
        .create()?)
}

/// Queues a record, waiting while the producer's queue is full.
fn send(producer: &BaseProducer, mut record: BaseRecord<'_, str, [u8]>) -> Result<(), Failure> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(20));
                record = back;
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}

/// Writes `count` events to a topic that exists; the partition is the user id modulo `partitions`.
pub fn produce_events(brokers: &str, topic: &str, partitions: u64, count: u64, keys: u64, seed: u64, times: TimeText) -> Result<Totals, Failure> {
    let producer = producer(brokers)?;
    let mut events = Events::new(keys, seed, times);
    let mut key = String::new();
    for _ in 0..count {
        events.advance();
        key.clear();
        let _ = write!(key, "{}", events.user_id);
        let partition = (events.user_id % partitions) as i32;
        send(&producer, BaseRecord::to(topic).partition(partition).key(key.as_str()).payload(events.json.as_bytes()))?;
    }
    producer.flush(Duration::from_secs(300))?;
    Ok(events.totals)
}

/// Creates a topic where it is not there yet.
pub fn ensure_topic(brokers: &str, topic: &str, partitions: i32) -> Result<(), Failure> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let answers = futures::executor::block_on(admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(Duration::from_secs(15)))))?;
    match answers.into_iter().next() {
        None | Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((name, code))) => Err(format!("topic {name} was not created: {code}").into()),
    }
}

/// A file of JSON objects, one a line, gzipped or not, as a topic.
pub struct Load<'a> {
    pub brokers: &'a str,
    pub topic: &'a str,
    pub partitions: i32,
    pub path: &'a Path,
    /// The field whose value becomes the key.
    pub key: &'a str,
    /// The record's time is the first of these fields (RFC 3339) that is not null.
    pub times: &'a [&'a str],
}

impl Load<'_> {
    /// Creates the topic and writes the file to it, unless the topic holds anything already. Returns
    /// how many records were written. The partition of a key is chosen by a hash (FNV-1a) of its
    /// bytes, so that it is the same wherever the file is loaded.
    pub fn run(&self) -> Result<u64, Failure> {
        ensure_topic(self.brokers, self.topic, self.partitions)?;
        let probe: BaseConsumer = ClientConfig::new().set("bootstrap.servers", self.brokers).create()?;
        let mut ends = BTreeMap::new();
        for partition in 0..self.partitions {
            ends.insert(partition, self.end(&probe, partition)?);
        }
        if ends.values().any(|end| *end > 0) {
            return Ok(0);
        }
        let file = std::fs::File::open(self.path).map_err(|e| format!("{}: {e}", self.path.display()))?;
        let input: Box<dyn BufRead> = if self.path.extension().is_some_and(|e| e == "gz") {
            Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
        } else {
            Box::new(BufReader::new(file))
        };
        let producer = producer(self.brokers)?;
        let mut rows = 0;
        for line in input.lines() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let row: serde_json::Value = serde_json::from_str(&line)?;
            let key = match &row[self.key] {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            let partition = (hash % self.partitions as u64) as i32;
            let mut record = BaseRecord::to(self.topic).partition(partition).key(key.as_str()).payload(line.as_bytes());
            if let Some(text) = self.times.iter().find_map(|field| row[*field].as_str()) {
                record = record.timestamp(chrono::DateTime::parse_from_rfc3339(text)?.timestamp_millis());
            }
            send(&producer, record)?;
            rows += 1;
        }
        producer.flush(Duration::from_secs(120))?;
        Ok(rows)
    }

    /// A topic that was just created may have no leader for a moment.
    fn end(&self, probe: &BaseConsumer, partition: i32) -> Result<i64, Failure> {
        let mut tries = 0;
        loop {
            match probe.fetch_watermarks(self.topic, partition, Duration::from_secs(5)) {
                Ok((_, end)) => return Ok(end),
                Err(_) if tries < 20 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(250));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
