//! A producer that keeps writing: plain records, transactions that are committed or aborted, and
//! ones that stay open for a while.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::storm::Chance;
use crate::support::kafka::Broker;

/// 2026-01-31T10:00:00Z.
pub const START_MS: i64 = 1_769_853_600_000;
/// Event time from one record to the next.
const STEP_MS: i64 = 150;
/// How far a record's time may lie behind the newest.
const BEHIND_MS: u64 = 25 * 60_000;
/// The broker ends a transaction that is left alone.
const LEFT_ALONE: &str = "4000";
const WAIT: Duration = Duration::from_secs(5);

pub struct Writer<'a> {
    broker: &'a Broker,
    topic: &'a str,
    partitions: AtomicI32,
    next: AtomicI64,
}

/// A transaction that stays open.
struct Hanging {
    producer: BaseProducer,
    until: Instant,
    ends: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Commit,
    Abort,
    /// Its producer dies: the broker aborts it.
    Never,
}

impl<'a> Writer<'a> {
    pub fn new(broker: &'a Broker, topic: &'a str, partitions: i32) -> Self {
        Self { broker, topic, partitions: AtomicI32::new(partitions), next: AtomicI64::new(0) }
    }

    pub fn partitions(&self) -> i32 {
        self.partitions.load(Ordering::Relaxed)
    }

    pub fn use_partitions(&self, total: i32) {
        self.partitions.store(total, Ordering::Relaxed);
    }

    pub fn written(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.address()).set("linger.ms", "2").set("enable.idempotence", "true");
        config
    }

    /// A producer with an open transaction; `None` while the broker is away.
    fn in_transaction(&self, id: &str) -> Option<BaseProducer> {
        let producer: BaseProducer = self.config().set("transactional.id", id).set("transaction.timeout.ms", LEFT_ALONE).create().expect("a producer");
        producer.init_transactions(WAIT).ok()?;
        producer.begin_transaction().ok()?;
        Some(producer)
    }

    fn send(&self, producer: &BaseProducer, chance: &mut Chance, count: u64) {
        for _ in 0..count {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let partition = chance.below(self.partitions() as u64) as i32;
            let value = value(id, chance);
            let record = BaseRecord::<str, str>::to(self.topic).partition(partition).key("k").payload(&value);
            // What could not be queued was not written: the topic says what there is.
            let _ = producer.send(record);
            producer.poll(Duration::ZERO);
        }
    }

    /// Writes until it is told to stop; leaves no transaction of its own open, but those that the broker ends.
    pub fn write(&self, mut chance: Chance, stop: &AtomicBool) {
        let plain: BaseProducer = self.config().set("message.timeout.ms", "120000").create().expect("a producer");
        let mut transactional: Option<BaseProducer> = None;
        let mut hanging: Option<Hanging> = None;
        let mut made = 0;
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20 + chance.below(60)));
            if hanging.as_ref().is_some_and(|h| Instant::now() >= h.until)
                && let Some(over) = hanging.take()
                && over.ends != End::Never
            {
                finish(&over.producer, over.ends == End::Commit);
            }
            let count = 4 + chance.below(24);
            match chance.below(10) {
                0..=5 => {
                    self.send(&plain, &mut chance, count);
                    let _ = plain.flush(Duration::from_secs(60));
                }
                6..=8 => {
                    let producer = match transactional.take() {
                        Some(producer) => producer.begin_transaction().is_ok().then_some(producer),
                        None => self.in_transaction("chaos"),
                    };
                    let Some(producer) = producer else { continue };
                    self.send(&producer, &mut chance, count);
                    let commit = chance.below(2) == 0;
                    if finish(&producer, commit) {
                        transactional = Some(producer);
                    }
                }
                _ if hanging.is_none() && chance.below(4) == 0 => {
                    made += 1;
                    let Some(producer) = self.in_transaction(&format!("chaos-hanging-{made}")) else { continue };
                    self.send(&producer, &mut chance, 3);
                    let _ = producer.flush(WAIT);
                    let ends = [End::Commit, End::Abort, End::Never][chance.below(3) as usize];
                    hanging = Some(Hanging { producer, until: Instant::now() + Duration::from_millis(500 + chance.below(3000)), ends });
                }
                _ => {}
            }
        }
        if let Some(over) = hanging {
            finish(&over.producer, over.ends == End::Commit);
        }
        let _ = plain.flush(Duration::from_secs(60));
    }

    /// Records from long before everything else, one on each partition: late for whatever has a window.
    pub fn write_old(&self) {
        let producer: BaseProducer = self.config().create().expect("a producer");
        for partition in 0..self.partitions() {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let value = record(id, START_MS - 3_600_000 + id, Some("old"), 100);
            producer.send(BaseRecord::<str, str>::to(self.topic).partition(partition).key("k").payload(&value)).map_err(|(e, _)| e).expect("queued");
        }
        producer.flush(Duration::from_secs(30)).expect("flushed");
    }
}

/// Ends a transaction. False: the producer is of no further use.
fn finish(producer: &BaseProducer, mut commit: bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // Also before an abort: its records lie in the topic then, and librdkafka waits for their answers in vain otherwise.
        let done = producer.flush(WAIT).and_then(|()| if commit { producer.commit_transaction(WAIT) } else { producer.abort_transaction(WAIT) });
        match done {
            Ok(()) => return true,
            Err(KafkaError::Transaction(e)) if e.txn_requires_abort() && commit => commit = false,
            Err(KafkaError::Transaction(e)) if e.is_retriable() && Instant::now() < deadline => {}
            Err(KafkaError::Flush(_)) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
}

fn record(id: i64, time_ms: i64, user: Option<&str>, cents: i64) -> String {
    let time = chrono::DateTime::from_timestamp_millis(time_ms).expect("a time").format("%Y-%m-%dT%H:%M:%S%.3fZ");
    let user = user.map_or("null".into(), |u| format!("\"{u}\""));
    format!("{{\"id\":{id},\"user_id\":{user},\"event_time\":\"{time}\",\"amount\":\"{}.{:02}\"}}", cents / 100, cents % 100)
}

fn value(id: i64, chance: &mut Chance) -> String {
    match chance.below(40) {
        0 => return format!("{{\"id\": {id}, broken"),
        1 => return format!("{{\"id\":{id},\"event_time\":\"yesterday\"}}"),
        _ => {}
    }
    let behind = if chance.below(12) == 0 { chance.below(BEHIND_MS) } else { chance.below(4_000) };
    let user = chance.below(24);
    let user = (user > 0).then(|| format!("u{user}"));
    record(id, START_MS + id * STEP_MS - behind as i64, user.as_deref(), chance.below(100_000) as i64)
}
