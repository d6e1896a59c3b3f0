//! A real Kafka broker, one for all tests of a run, and what tests do to its topics.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/kafka/kafka.sh");
const WAIT: Duration = Duration::from_secs(60);

/// A broker of this test run. Tests that stop it use one of their own ([`Broker::own`]).
pub struct Broker {
    dir: PathBuf,
    port: u16,
    _keep: tempfile::TempDir,
}

/// Folders of brokers that still run, to be stopped when the process ends.
static RUNNING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

extern "C" fn stop_all() {
    let dirs = std::mem::take(&mut *RUNNING.lock().unwrap_or_else(|e| e.into_inner()));
    for dir in dirs {
        let _ = Command::new(SCRIPT).arg("stop").arg(&dir).output();
        let _ = std::fs::remove_dir_all(&dir);
    }
}

/// Neighbouring ports that are free now: the first of them.
fn free_ports(count: u16) -> u16 {
    loop {
        // Below the ports that the system hands out to clients: one of those may be taken while its broker is down.
        let port = 20_000 + (uuid::Uuid::new_v4().as_u128() % 12_000) as u16;
        if (0..count).all(|n| TcpListener::bind(("127.0.0.1", port + n)).is_ok()) {
            return port;
        }
    }
}

#[allow(dead_code)]
impl Broker {
    /// The broker that all tests of this run share; started on first use, stopped when the run ends.
    pub fn start() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Broker::own)
    }

    /// A broker for one test, which may stop and start it.
    pub fn own() -> Broker {
        Self::with(2, |_, _| String::new())
    }

    /// A broker with further listeners and settings: `more` gets its folder and the first of `ports`
    /// neighbouring ports (two are taken), and returns properties that override the usual ones.
    pub fn with(ports: u16, more: impl FnOnce(&Path, u16) -> String) -> Broker {
        static AT_EXIT: OnceLock<()> = OnceLock::new();
        AT_EXIT.get_or_init(|| {
            // SAFETY: the function touches only statics that are never torn down.
            unsafe { libc::atexit(stop_all) };
        });
        let keep = tempfile::Builder::new().prefix("millpond-kafka-").tempdir().expect("a temporary folder");
        let broker = Broker { dir: keep.path().to_path_buf(), port: free_ports(ports), _keep: keep };
        let more = more(&broker.dir, broker.port);
        if !more.is_empty() {
            std::fs::write(broker.dir.join("more.properties"), more).expect("more.properties");
        }
        broker.up();
        broker
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the broker again after [`Broker::down`].
    pub fn up(&self) {
        let out = Command::new(SCRIPT).arg("start").arg(&self.dir).arg(self.port.to_string()).output().expect("kafka.sh runs");
        assert!(out.status.success(), "this test needs a Kafka broker, which infra/kafka/kafka.sh installs and starts; it said: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        RUNNING.lock().unwrap().push(self.dir.clone());
    }

    /// Stops the broker; its data stays.
    pub fn down(&self) {
        let out = Command::new(SCRIPT).arg("stop").arg(&self.dir).output().expect("kafka.sh runs");
        assert!(out.status.success(), "kafka.sh stop: {}", String::from_utf8_lossy(&out.stderr));
        RUNNING.lock().unwrap().retain(|d| *d != self.dir);
    }

    /// Kills the broker; its data stays as it is.
    pub fn kill(&self) {
        let pid: i32 = std::fs::read_to_string(self.dir.join("broker.pid")).expect("a broker that runs").trim().parse().expect("its pid");
        // SAFETY: plain integers; kafka.sh keeps the file as long as the broker lives.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        // SAFETY: as above; signal 0 only asks.
        while unsafe { libc::kill(pid, 0) } == 0 && !is_zombie(pid) {
            std::thread::sleep(Duration::from_millis(20));
        }
        RUNNING.lock().unwrap().retain(|d| *d != self.dir);
    }

    /// No transaction is open on the partition: what can be read is what is written.
    pub fn settled(&self, topic: &str, partition: i32) -> bool {
        let end = |isolation: &str| {
            let consumer: BaseConsumer = self.config().set("isolation.level", isolation).create().expect("a consumer");
            consumer.fetch_watermarks(topic, partition, WAIT).map(|(_, end)| end)
        };
        matches!((end("read_committed"), end("read_uncommitted")), (Ok(stable), Ok(written)) if stable == written)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address());
        config
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client")
    }

    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    pub fn create_topic_with(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let answer = block_on(self.admin().create_topics([&topic], &options())).expect("create_topics");
        answer[0].as_ref().expect("created");
        self.wait_for_partitions(name, partitions as usize);
    }

    /// Sets all that is set of a topic.
    pub fn alter_topic(&self, name: &str, config: &[(&str, &str)]) {
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in config {
            altered = altered.set(key, value);
        }
        let answer = block_on(self.admin().alter_configs([&altered], &options())).expect("alter_configs");
        answer[0].as_ref().expect("altered");
    }

    pub fn delete_topic(&self, name: &str) {
        let answer = block_on(self.admin().delete_topics(&[name], &options())).expect("delete_topics");
        answer[0].as_ref().expect("deleted");
        self.wait_for_partitions(name, 0);
    }

    pub fn add_partitions(&self, name: &str, total: usize) {
        let answer = block_on(self.admin().create_partitions([&NewPartitions::new(name, total)], &options())).expect("create_partitions");
        answer[0].as_ref().expect("added");
        self.wait_for_partitions(name, total);
    }

    /// Until the broker's metadata shows this many partitions, each with a leader (0: no topic).
    fn wait_for_partitions(&self, name: &str, count: usize) {
        let admin = self.admin();
        for _ in 0..200 {
            if let Ok(metadata) = admin.inner().fetch_metadata(Some(name), WAIT) {
                let led = metadata.topics().iter().flat_map(|t| t.partitions()).filter(|p| p.leader() >= 0).count();
                if led == count {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("topic {name} did not come to {count} partitions");
    }

    /// Deletes the records of a partition before `offset`.
    pub fn delete_records(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        let answer = block_on(self.admin().delete_records(&list, &options())).expect("delete_records");
        answer.elements()[0].error().expect("deleted");
    }

    fn member(&self, group: &str) -> BaseConsumer {
        self.config().set("group.id", group).set("enable.auto.commit", "false").create().expect("a consumer")
    }

    /// The offsets that a group has committed, by partition.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let found = self.member(group).committed_offsets(list, WAIT).expect("committed offsets");
        (0..partitions).map(|p| found.find_partition(topic, p).and_then(|e| e.offset().to_raw()).filter(|o| *o >= 0)).collect()
    }

    /// Sets offsets of a group that has no member now.
    pub fn set_committed(&self, group: &str, topic: &str, offsets: &[(i32, i64)]) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).unwrap();
        }
        self.member(group).commit(&list, CommitMode::Sync).expect("committed");
    }

    pub fn producer(&self) -> Producing {
        Producing { inner: self.config().set("linger.ms", "0").create().expect("a producer") }
    }

    pub fn produce(&self, topic: &str, partition: i32, key: &str, value: &str, timestamp_ms: i64) {
        let producer = self.producer();
        producer.send(topic, partition, key, value, timestamp_ms);
        producer.flush();
    }

    /// Writes `values` to one partition in a transaction, then commits or aborts it.
    pub fn produce_in_transaction(&self, topic: &str, partition: i32, values: &[&str], commit: bool) {
        let id = format!("tx-{}", uuid::Uuid::new_v4());
        let open = self.transaction(&id, topic, partition, values);
        if commit {
            open.commit();
        } else {
            open.abort();
        }
    }

    /// Writes `values` to one partition in a transaction that stays open.
    pub fn transaction(&self, id: &str, topic: &str, partition: i32, values: &[&str]) -> Open {
        let inner: BaseProducer = self.config().set("transactional.id", id).create().expect("a producer");
        inner.init_transactions(WAIT).expect("init_transactions");
        inner.begin_transaction().expect("begin_transaction");
        let producer = Producing { inner };
        for value in values {
            producer.send(topic, partition, "tx", value, 0);
        }
        producer.flush();
        Open(producer)
    }

    /// Writes one record of `size` bytes that all are the same, compressed by its producer.
    pub fn produce_bomb(&self, topic: &str, partition: i32, codec: &str, size: usize) {
        let mut config = self.config();
        config.set("compression.codec", codec).set("message.max.bytes", "1000000000").set("queue.buffering.max.kbytes", "1000000");
        let producer = Producing { inner: config.create().expect("a producer") };
        producer.send(topic, partition, "k", &"0".repeat(size), 0);
        producer.flush();
        assert_eq!(producer.inner.in_flight_count(), 0, "the record was not taken");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = Command::new(SCRIPT).arg("stop").arg(&self.dir).output();
        RUNNING.lock().unwrap_or_else(|e| e.into_inner()).retain(|d| *d != self.dir);
    }
}

/// Dead, and nobody has asked after it: where the launcher is gone, that may take a while.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(WAIT)).request_timeout(Some(WAIT))
}

/// A transaction that is open.
pub struct Open(Producing);

#[allow(dead_code)]
impl Open {
    pub fn commit(self) {
        self.0.inner.commit_transaction(WAIT).expect("commit_transaction");
    }

    pub fn abort(self) {
        self.0.inner.abort_transaction(WAIT).expect("abort_transaction");
    }
}

/// A producer for many records.
pub struct Producing {
    inner: BaseProducer,
}

#[allow(dead_code)]
impl Producing {
    /// `timestamp_ms` 0: now.
    pub fn send(&self, topic: &str, partition: i32, key: &str, value: &str, timestamp_ms: i64) {
        let mut record = BaseRecord::to(topic).partition(partition).key(key).payload(value);
        if timestamp_ms > 0 {
            record = record.timestamp(timestamp_ms);
        }
        self.inner.send(record).map_err(|(e, _)| e).expect("queued");
    }

    pub fn flush(&self) {
        self.inner.flush(WAIT).expect("flushed");
    }

    /// The same for few records: rdkafka's looks up ten times a second.
    pub fn flush_soon(&self) {
        let start = Instant::now();
        while self.inner.in_flight_count() > 0 {
            assert!(start.elapsed() < WAIT, "not flushed");
            self.inner.poll(Duration::from_millis(1));
        }
    }
}
