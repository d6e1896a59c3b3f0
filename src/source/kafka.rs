//! Kafka: one consumer, whose group only deals out partitions, among the workers of one log. Where reading starts comes from the
//! epoch log, never from the group, and nothing is ever skipped silently: a position that the
//! brokers no longer hold is refused, with the choices named.
//!
//! A recreated topic is seen by its id: ask [`Source::incarnation`] after the data of an epoch is
//! read and before it is decided; equal to the id in the log both times, all rows are of one topic.

mod admin;
mod cut;
mod fetch;
mod membership;
pub mod options;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CString;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use uuid::Uuid;

use self::admin::{AdminError, At};
use self::cut::Cutter;
use self::fetch::{FetchQueue, PartitionError};
use self::membership::Membership;
use super::{END_PATIENCE, Position, RawBatch, Source, SourceError, SourceEvent, SourceFacts};
use crate::pipeline::keys::nearest;
use crate::pipeline::{Input, SourceSpec, Start};

/// Properties that the guarantees rest on, with their values; `options` must not name them.
const OWNED: [(&str, &str); 7] = [
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // With anything else a truncated or expired position is moved silently.
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    // An end event is the only thing that tells the end of a partition whose tail is aborted.
    ("enable.partition.eof", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
];

/// What we set unless `options` say otherwise. The prefetch limits hold for all partitions together.
const DEFAULTS: [(&str, &str); 14] = [
    ("fetch.queue.backoff.ms", "10"),
    // A live topic is fetched ten times a second, not once for each record.
    ("fetch.wait.max.ms", "100"),
    ("fetch.min.bytes", "65536"),
    // Small enough that one answer holds something of each of 16 partitions: the next request begins
    // with the first ones again, and those that found no room would wait until these are read.
    ("fetch.message.max.bytes", "524288"),
    ("fetch.max.bytes", "8388608"),
    ("queued.min.messages", "100000"),
    // Of values; librdkafka adds some 500 bytes to each record.
    ("queued.max.messages.kbytes", "8192"),
    ("check.crcs", "true"),
    // How soon partitions that were added are seen.
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    ("session.timeout.ms", "15000"),
    ("heartbeat.interval.ms", "1000"),
    ("socket.keepalive.enable", "true"),
];

/// How long records wait for more of their partition: tiny batches cost as much as large ones.
const LINGER: Duration = Duration::from_millis(20);
/// How long the consumer's events may wait while we wait for records.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a partition that was just assigned may take until it can be placed.
const SEEK_PATIENCE: Duration = Duration::from_secs(15);
/// How long brokers that cannot be connected to at all are tried again, at a start, before that is told.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// How long the brokers may take to name their topics, when one that was asked for is not there.
const NAMES_PATIENCE: Duration = Duration::from_secs(3);
/// How often a position that the brokers hold is placed again before their refusal is believed.
const PLACED_AGAIN: u32 = 3;
/// One that is refused at once each time; what comes later is about something else.
const PLACED_AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// One Kafka topic as one worker reads it.
pub struct KafkaSource {
    /// Dropped before the consumer that it belongs to.
    fetch: FetchQueue,
    consumer: BaseConsumer<Membership>,
    /// Of the consumer, which is made anew with a group once the log is known.
    config: ClientConfig,
    pipeline: String,
    name: String,
    brokers: String,
    topic: String,
    topic_c: CString,
    /// Empty before [`Source::join`].
    group: String,
    principal: String,
    start: Start,
    cutter: Cutter,
    /// Between `start` and the next `Assigned`.
    reading: bool,
    paused: BTreeSet<i32>,
    /// What [`Source::pause`] asked for; `paused` follows as soon as the brokers allow.
    to_pause: BTreeSet<i32>,
    /// The brokers have answered once: a login that fails from now on may pass.
    reached: bool,
    /// Errors in the stream that are not dealt with yet.
    failed: Vec<PartitionError>,
    /// How often a partition was placed again since it last delivered, and when it last was.
    placed_again: BTreeMap<i32, (u32, Instant)>,
    /// What was last told as a notice; said again only after something went well.
    noticed: BTreeSet<String>,
    notices: VecDeque<String>,
}

impl KafkaSource {
    /// Connects lazily: nothing but the properties is checked here.
    ///
    /// Refused: `spec` is not a Kafka source, or `options` hold a property that librdkafka does not
    /// know or that the guarantees rest on.
    pub fn new(spec: &SourceSpec, pipeline: &str, worker: &str) -> Result<Self, SourceError> {
        let refused = |text: String| SourceError::Refused(format!("source `{}`: {text}", spec.name));
        let Input::Kafka(input) = &spec.input else {
            return Err(refused("expected a kafka source, found another kind".into()));
        };
        let mut config = ClientConfig::new();
        // KIP-848 groups: the broker decides about sessions and assignment.
        let new_protocol = input.options.get("group.protocol").is_some_and(|v| v == "consumer");
        let brokers_set = |key: &str| new_protocol && ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"].contains(&key);
        for (key, value) in DEFAULTS.iter().chain(&OWNED).filter(|(k, _)| !brokers_set(k)) {
            config.set(*key, *value);
        }
        for (key, value) in &input.options {
            let ours = OWNED.iter().any(|(k, _)| k == key) || ["group.id", "bootstrap.servers", "metadata.broker.list"].contains(&key.as_str());
            if ours {
                return Err(refused(format!("option `{key}` cannot be set: exactly-once reading rests on its value; remove it from `options`")));
            }
            config.set(key, value);
        }
        config.set("bootstrap.servers", &input.brokers);
        if !input.options.contains_key("client.id") {
            config.set("client.id", format!("millpond-{worker}"));
        }
        let topic_c = fetch::c_name(&input.topic).ok_or_else(|| refused("the topic's name holds a NUL".into()))?;
        let consumer: BaseConsumer<Membership> = config
            .create_with_context(Membership::new(&input.topic, topic_c.clone()))
            .map_err(|e| refused(format!("librdkafka refuses the options: {e}")))?;
        Ok(Self {
            fetch: FetchQueue::new(consumer.client().native_ptr()),
            consumer,
            config,
            pipeline: pipeline.to_string(),
            name: spec.name.clone(),
            brokers: input.brokers.clone(),
            topic: input.topic.clone(),
            topic_c,
            group: String::new(),
            principal: principal(&input.options),
            start: input.start.clone(),
            cutter: Cutter::new(spec.max_record_bytes),
            reading: false,
            paused: BTreeSet::new(),
            to_pause: BTreeSet::new(),
            reached: false,
            failed: Vec::new(),
            placed_again: BTreeMap::new(),
            noticed: BTreeSet::new(),
            notices: VecDeque::new(),
        })
    }

    fn client(&self) -> *mut rd::rd_kafka_t {
        self.consumer.client().native_ptr()
    }

    fn refused(&self, text: impl std::fmt::Display) -> SourceError {
        SourceError::Refused(format!("source `{}`: {text}", self.name))
    }

    /// Serves the consumer's events: rebalances, errors, commits.
    fn pump(&self) {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            let mut told = self.consumer.context().told();
            match event {
                Ok(message) => _ = told.strayed.insert(message.partition()),
                Err(KafkaError::PartitionEOF(partition)) => _ = told.strayed.insert(partition),
                // It ended the fetching of a partition, and does not say of which.
                Err(KafkaError::MessageConsumption(code)) if is_about_a_position(code) => {
                    let owned = told.owned.clone();
                    told.strayed.extend(owned);
                }
                // Other errors have come by the context already.
                Err(_) => {}
            }
        }
    }

    /// Sends an admin request, serving events meanwhile. Before the brokers were ever reached, a login that fails ends it
    /// at once, and so does, soon, that none of them can be connected to.
    fn ask<T>(&mut self, request: impl FnOnce(*mut rd::rd_kafka_t, &str, admin::Pump<'_>) -> Result<T, AdminError>) -> Result<T, SourceError> {
        let (reached, asked) = (self.reached, Instant::now());
        let answer = request(self.client(), &self.topic, &|| {
            self.pump();
            let told = self.consumer.context().told();
            let denied = told.denied.clone().map(|(code, text)| AdminError { code, text });
            let away = || AdminError { code: Code::AllBrokersDown, text: "no broker can be connected to".into() };
            denied.or_else(|| (told.all_away && asked.elapsed() >= FIRST_PATIENCE).then(away)).filter(|_| !reached)
        });
        match answer {
            Ok(answer) => {
                self.reached = true;
                self.consumer.context().told().denied = None;
                Ok(answer)
            }
            Err(error) => Err(self.judge(error.code, &error.text)),
        }
    }

    /// The one table from what librdkafka says to what the caller should do.
    fn judge(&self, code: Code, text: &str) -> SourceError {
        let (topic, brokers) = (&self.topic, &self.brokers);
        match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId | Code::InvalidTopic => {
                let meant = self.topic_meant().map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                self.refused(format!(
                    "topic `{topic}` does not exist on {brokers}; create it (kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions 4) or correct `topic`{meant}"
                ))
            }
            Code::TopicAuthorizationFailed => self.refused(format!(
                "{} may not read topic `{topic}` on {brokers}; allow it Read and Describe on Topic:{topic}",
                self.principal
            )),
            Code::GroupAuthorizationFailed => {
                self.refused(format!("{} may not use the consumer group `{}` on {brokers}; allow it Read on Group:{}", self.principal, self.group, self.group))
            }
            Code::ClusterAuthorizationFailed => self.refused(format!("{} is not allowed on the cluster {brokers}: {text}", self.principal)),
            Code::UnsupportedSASLMechanism | Code::SaslAuthenticationFailed | Code::Authentication if !self.reached => self.refused(format!(
                "{brokers} refused the login of {}: {text}; check `security.protocol` and `sasl.*` in `options`",
                self.principal
            )),
            Code::SSL if !self.reached => {
                self.refused(format!("no TLS connection to {brokers} as {}: {text}; check `security.protocol` and `ssl.*` in `options`", self.principal))
            }
            Code::Fatal | Code::Fenced => self.refused(format!("the consumer of topic `{topic}` cannot go on: {text}")),
            _ if !self.reached => {
                let told = self.consumer.context().told();
                let why = told.last_error.as_deref().unwrap_or(text);
                // What follows counts repetitions, and would make each telling another one.
                let why = why.split(" (after ").next().unwrap_or(why);
                SourceError::Unavailable(format!("source `{}`: no answer from {brokers}: {why}; correct `brokers`, or start them", self.name))
            }
            _ => {
                let last = self.consumer.context().told().last_error.clone();
                let why = last.filter(|l| l != text).map_or(String::new(), |l| format!(" (last heard: {l})"));
                SourceError::Unavailable(format!("source `{}`: {brokers}, topic `{topic}`: {text}{why}", self.name))
            }
        }
    }

    /// The topic on these brokers that is named much like ours.
    fn topic_meant(&self) -> Option<String> {
        let all = self.consumer.fetch_metadata(None, NAMES_PATIENCE).ok()?;
        nearest(&self.topic, all.topics().iter().map(|t| t.name()).filter(|n| *n != self.topic && !n.starts_with("__"))).map(str::to_string)
    }

    fn notice(&mut self, text: String) {
        if self.noticed.insert(text.clone()) {
            self.notices.push_back(text);
        }
    }

    /// Serves events and turns what they told into notices or a refusal.
    fn serve(&mut self) -> Result<(), SourceError> {
        self.pump();
        let (errors, strayed, commit_failed) = {
            let mut told = self.consumer.context().told();
            (std::mem::take(&mut told.errors), std::mem::take(&mut told.strayed), told.commit_failed.take())
        };
        for (code, text) in errors.into_iter().filter(|(code, _)| !is_about_a_position(*code)) {
            self.weigh(code, &text)?;
        }
        if let Some(text) = commit_failed {
            self.notice(format!("source `{}`: lag tools will show too much: the group `{}` does not take offsets: {text}", self.name, self.group));
        }
        // Records of a partition that was recreated inside librdkafka come past our queue: read
        // them again, by ours.
        let strayed: BTreeMap<i32, Position> = strayed.into_iter().filter_map(|p| Some((p, self.cutter.position(p)?))).collect();
        if self.reading && !strayed.is_empty() {
            let placed = self.place(&strayed);
            if placed.is_err() {
                self.consumer.context().told().strayed.extend(strayed.into_keys());
            }
            placed?;
        }
        Ok(())
    }

    /// An error that may pass becomes a notice; one that will not is returned.
    fn weigh(&mut self, code: Code, text: &str) -> Result<(), SourceError> {
        let gone = matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId);
        // A broker that has just come up may not know its topics yet: ask before believing it.
        let verdict = if gone {
            match self.incarnation() {
                Ok(_) => return Ok(()),
                Err(error) => error,
            }
        } else {
            self.judge(code, text)
        };
        match verdict {
            SourceError::Refused(_) => Err(verdict),
            SourceError::Unavailable(_) => {
                // Connection errors name ports and times: only their kind is told once.
                self.notice(match code {
                    Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut => {
                        format!("source `{}`: a broker of {} is away; waiting for it", self.name, self.brokers)
                    }
                    _ => format!("source `{}`: {text}", self.name),
                });
                Ok(())
            }
        }
    }

    /// Begin and last stable offset of each partition.
    fn ranges(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, (i64, i64)>, SourceError> {
        let begins = self.ask(|client, topic, pump| admin::list_offsets(client, topic, partitions, At::Begin, pump))?;
        let ends = self.ask(|client, topic, pump| admin::list_offsets(client, topic, partitions, At::End, pump))?;
        Ok(begins.into_iter().filter_map(|(p, begin)| Some((p, (begin, (*ends.get(&p)?).max(begin))))).collect())
    }

    fn out_of_range(&self, partition: i32, at: i64, (begin, end): (i64, i64)) -> SourceError {
        let topic = &self.topic;
        if at < begin {
            self.refused(format!(
                "partition {partition} of topic `{topic}`: the epoch log goes on at offset {at}, but the brokers hold {begin}..{end}: \
                 {} offsets were deleted before they were read (retention, or DeleteRecords); restore them, or begin anew under \
                 another pipeline name; accepting the gap is not in this version",
                begin - at
            ))
        } else {
            self.refused(format!(
                "partition {partition} of topic `{topic}`: the epoch log goes on at offset {at}, but the brokers hold {begin}..{end}: \
                 the topic was truncated or recreated; restore it, or begin anew under another pipeline name; \
                 accepting the loss is not in this version"
            ))
        }
    }

    /// Refuses a position that the brokers do not hold.
    fn check(&mut self, positions: &BTreeMap<i32, Position>) -> Result<(), SourceError> {
        let partitions: Vec<i32> = positions.keys().copied().collect();
        let mut seen = None;
        loop {
            let mut ranges = self.ranges(&partitions)?;
            let over = |ranges: &BTreeMap<i32, (i64, i64)>| positions.iter().any(|(p, at)| ranges.get(p).is_some_and(|r| at.offset > r.1));
            if over(&ranges) {
                // An open transaction may hold the stable end back after a change of leader.
                let high = self.ask(|client, topic, pump| admin::list_offsets(client, topic, &partitions, At::HighWatermark, pump))?;
                ranges.iter_mut().for_each(|(p, r)| r.1 = r.1.max(high.get(p).copied().unwrap_or(0)));
                // Counted from an answer on, for the first may have waited long, and be of a broker that just came up.
                if over(&ranges) && seen.get_or_insert_with(Instant::now).elapsed() < END_PATIENCE {
                    self.notice(format!("source `{}`: the brokers hold less than was read; asking again, as they may just have come up", self.name));
                    std::thread::sleep(Duration::from_millis(250));
                    continue;
                }
            }
            for (partition, at) in positions {
                match ranges.get(partition) {
                    Some(range) if at.offset < range.0 || at.offset > range.1 => return Err(self.out_of_range(*partition, at.offset, *range)),
                    _ => {}
                }
            }
            return Ok(());
        }
    }

    /// Makes partitions that are ours deliver from these positions, by our queue. The leader epoch
    /// goes along, so that librdkafka asks the brokers whether that log was truncated (KIP-320);
    /// it does so for a seek only, not for an assignment. False where a rebalance came between: some may not be placed,
    /// the next poll tells of it, and another start follows.
    fn place(&mut self, positions: &BTreeMap<i32, Position>) -> Result<bool, SourceError> {
        let deadline = Instant::now() + SEEK_PATIENCE;
        let mut left: BTreeMap<i32, Position> = positions.clone();
        let mut rounds = 0;
        loop {
            let list = self.list(left.iter().map(|(p, at)| (*p, at.offset)))?;
            for (partition, at) in &left {
                self.fetch.attach(self.client(), &self.topic_c, *partition);
                if let Some(entry) = entry(&list, &self.topic_c, *partition) {
                    // SAFETY: `entry` points into `list`, which is alive and not shared.
                    unsafe { rd::rd_kafka_topic_partition_set_leader_epoch(entry, at.leader_epoch) }
                }
            }
            // SAFETY: the list lives across the call; the error is ours to destroy.
            let failed = unsafe {
                let error = rd::rd_kafka_seek_partitions(self.client(), list.ptr(), 5000);
                let failed = !error.is_null();
                if failed {
                    rd::rd_kafka_error_destroy(error);
                }
                failed
            };
            let mut stuck = Vec::new();
            left.retain(|partition, _| {
                // SAFETY: as above.
                let error = entry(&list, &self.topic_c, *partition).map(|e| unsafe { (*e).err });
                let done = !failed && error == Some(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
                if !done && error == Some(rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__STATE) {
                    stuck.push(*partition);
                }
                !done
            });
            if left.is_empty() {
                // Once more: what revived a partition has also led it back to the consumer's own queue, perhaps only now.
                positions.keys().for_each(|p| _ = self.fetch.attach(self.client(), &self.topic_c, *p));
                return Ok(true);
            }
            self.pump();
            if self.consumer.context().told().changed {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                let which: Vec<i32> = left.into_keys().collect();
                return Err(SourceError::Unavailable(format!("source `{}`: partitions {which:?} of topic `{}` could not be placed yet", self.name, self.topic)));
            }
            rounds += 1;
            if rounds % 50 == 0 && !stuck.is_empty() {
                // One whose fetching ended with an error is only revived by assigning it again.
                let again = self.list(stuck.iter().map(|p| (*p, left[p].offset)))?;
                let revived = self.consumer.incremental_unassign(&again).and_then(|()| self.consumer.incremental_assign(&again));
                if let Err(error) = revived {
                    self.notice(format!("source `{}`: partitions {stuck:?}: {error}", self.name));
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn list(&self, offsets: impl Iterator<Item = (i32, i64)>) -> Result<TopicPartitionList, SourceError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))
                .map_err(|e| self.refused(format!("partition {partition}: {offset} is no offset: {e}")))?;
        }
        Ok(list)
    }

    fn partition_failed(&mut self, error: &PartitionError) -> Result<(), SourceError> {
        let (partition, topic) = (error.partition, self.topic.clone());
        match error.code {
            // Either the position is gone, or another log was found where it points (KIP-320), or the
            // error is about a position that librdkafka made up: a batch read counts an end event
            // as a record, and whatever pauses a partition then goes on one offset too far; and what
            // it took a marker for is of leader epoch 0. We place a partition again after every
            // pause, but that error is still delivered.
            code if is_about_a_position(code) => {
                let Some(position) = self.cutter.position(partition) else { return Ok(()) };
                let at = position.offset;
                if let Some(range) = self.ranges(&[partition])?.get(&partition)
                    && (at < range.0 || at > range.1)
                {
                    return Err(self.out_of_range(partition, at, *range));
                }
                // A position within the range that claims no epoch cannot have been truncated away: the
                // error is about another one.
                if position.leader_epoch >= 0 {
                    let (tries, last) = self.placed_again.entry(partition).or_insert((0, Instant::now()));
                    *tries = if last.elapsed() < PLACED_AGAIN_WITHIN { *tries + 1 } else { 1 };
                    *last = Instant::now();
                    if *tries > PLACED_AGAIN {
                        return Err(self.truncated(partition, at, &error.text));
                    }
                }
                self.place(&[(partition, position)].into()).map(drop)
            }
            // The other partitions go on; it is asked for again and again.
            Code::BadCompression => {
                self.notice(format!(
                    "source `{}`: partition {partition} of topic `{topic}`: {}: the batch is damaged, or does not decompress within `receive.message.max.bytes` \
                     (100000000 unless set, a third of it with zstd); raise it in `options`: records over max_record_bytes become dead letters then",
                    self.name, error.text
                ));
                Ok(())
            }
            code => self.weigh(code, &format!("partition {partition} of topic `{topic}`: {}", error.text)),
        }
    }

    fn truncated(&self, partition: i32, at: i64, text: &str) -> SourceError {
        self.refused(format!(
            "partition {partition} of topic `{}`: the records before offset {at} are not the ones that the epoch log holds: {text}; the topic was \
             truncated (an unclean leader election) or recreated; restore it, or begin anew under another pipeline name; \
             accepting the loss is not in this version",
            self.topic
        ))
    }

    /// Pauses and resumes until only what should be is paused.
    fn hold(&mut self) -> Result<(), SourceError> {
        let (wanted, now) = (&self.to_pause, &self.paused);
        let (stop, go): (Vec<i32>, Vec<i32>) = (wanted.difference(now).copied().collect(), now.difference(wanted).copied().collect());
        let failed = |name: &str, e| SourceError::Unavailable(format!("source `{name}`: {e}"));
        if !stop.is_empty() {
            let list = self.list(stop.iter().map(|p| (*p, 0)))?;
            self.consumer.pause(&list).map_err(|e| failed(&self.name, e))?;
            self.paused.extend(stop);
        }
        // Never from where librdkafka would go on: see `partition_failed`.
        let positions: BTreeMap<i32, Position> = go.iter().filter_map(|p| Some((*p, self.cutter.position(*p)?))).collect();
        if !positions.is_empty() && self.place(&positions)? {
            let list = self.list(go.iter().map(|p| (*p, 0)))?;
            self.consumer.resume(&list).map_err(|e| failed(&self.name, e))?;
            self.paused.clone_from(&self.to_pause);
        }
        Ok(())
    }

    fn take(&mut self) -> Option<RawBatch> {
        let batch = self.cutter.take(&self.paused)?;
        self.placed_again.remove(&batch.partition);
        Some(batch)
    }

    /// Reads what has come. True where anything did.
    fn read(&mut self, wait: Duration) -> Result<bool, SourceError> {
        let known = self.failed.len();
        let count = self.fetch.read(wait.as_millis() as i32, &mut self.cutter, &mut self.failed);
        if count > self.failed.len() - known {
            self.noticed.clear();
        }
        // One that cannot be answered now, because the brokers are away, is answered later.
        while let Some(error) = self.failed.last().cloned() {
            self.partition_failed(&error)?;
            self.failed.pop();
        }
        Ok(count > 0)
    }
}

/// The consumer group in which the workers of one log share a source. Two lakes may have pipelines of one name: each
/// must have all partitions, so the end of the log's uuid, which is chance, goes in.
pub fn group(pipeline: &str, source: &str, log: Uuid) -> String {
    format!("millpond-{pipeline}-{source}-{:08x}", log.as_u128() as u32)
}

/// Such an error ends the fetching of the partition; it goes on from where it is placed next.
fn is_about_a_position(code: Code) -> bool {
    matches!(code, Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation)
}

/// The entry of a partition in a list, for what the safe type cannot say.
fn entry(list: &TopicPartitionList, topic: &CString, partition: i32) -> Option<*mut rd::rd_kafka_topic_partition_t> {
    // SAFETY: the list is alive; the pointer is used only while it is.
    let entry = unsafe { rd::rd_kafka_topic_partition_list_find(list.ptr(), topic.as_ptr(), partition) };
    (!entry.is_null()).then_some(entry)
}

/// Whom the brokers take us for, as their ACLs would name it.
fn principal(options: &BTreeMap<String, String>) -> String {
    let user = options.get("sasl.username").or_else(|| options.get("sasl.user"));
    match (user, options.get("ssl.certificate.location")) {
        (Some(user), _) => format!("principal `User:{user}`"),
        (None, Some(path)) => format!("the principal of certificate `{path}`"),
        (None, None) => "principal `User:ANONYMOUS`".to_string(),
    }
}

impl Source for KafkaSource {
    fn facts(&mut self) -> Result<SourceFacts, SourceError> {
        let topic = self.ask(|client, topic, pump| admin::describe_topic(client, topic, pump))?;
        let partitions = self.ranges(&topic.partitions)?;
        // Asked for after the stable ends: what lies between may be new, and the next answer shows it.
        let written = self.ask(|client, name, pump| admin::list_offsets(client, name, &topic.partitions, At::HighWatermark, pump))?;
        let held = written.into_iter().filter(|(p, high)| partitions.get(p).is_some_and(|(_, stable)| high > stable)).collect();
        Ok(SourceFacts { incarnation: topic.id, topic: self.topic.clone(), partitions, held, names: BTreeMap::new(), last: BTreeMap::new() })
    }

    fn incarnation(&mut self) -> Result<Option<String>, SourceError> {
        Ok(self.ask(|client, topic, pump| admin::describe_topic(client, topic, pump))?.id)
    }

    fn thins_out(&mut self) -> Result<Option<bool>, SourceError> {
        let policy = self.ask(|client, topic, pump| match admin::topic_setting(client, topic, "cleanup.policy", pump) {
            Err(e) if e.code == Code::TopicAuthorizationFailed => Ok(None),
            answer => answer,
        })?;
        Ok(policy.map(|policy| policy.split(',').any(|p| p.trim() == "compact")))
    }

    fn start_offsets(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, SourceError> {
        let ranges = self.ranges(partitions)?;
        match self.start.clone() {
            Start::Earliest => Ok(ranges.into_iter().map(|(p, (begin, _))| (p, begin)).collect()),
            Start::Latest => Ok(ranges.into_iter().map(|(p, (_, end))| (p, end)).collect()),
            Start::Timestamp(ms) => {
                let found = self.ask(|client, topic, pump| admin::list_offsets(client, topic, partitions, At::Time(ms), pump))?;
                Ok(ranges.into_iter().map(|(p, (_, end))| (p, found.get(&p).copied().filter(|o| *o >= 0).unwrap_or(end))).collect())
            }
            Start::Offsets(wanted) => ranges
                .into_iter()
                .map(|(p, (begin, end))| match wanted.get(&p) {
                    Some(at) if *at < begin || *at > end => Err(self.refused(format!(
                        "`start` asks for offset {at} of partition {p} of topic `{}`, but the brokers hold {begin}..{end}; name an offset within",
                        self.topic
                    ))),
                    Some(at) => Ok((p, *at)),
                    None => Ok((p, begin)),
                })
                .collect(),
        }
    }

    fn join(&mut self, log: Uuid) -> Result<(), SourceError> {
        if self.group.is_empty() {
            let group = group(&self.pipeline, &self.name, log);
            let grouped = self.config.set("group.id", &group).create_with_context(Membership::new(&self.topic, self.topic_c.clone()));
            let consumer: BaseConsumer<Membership> = grouped.map_err(|e| self.refused(format!("librdkafka refuses the options: {e}")))?;
            // The queue goes before the consumer that it belongs to.
            self.fetch = FetchQueue::new(consumer.client().native_ptr());
            self.consumer = consumer;
            self.group = group;
        }
        self.consumer.subscribe(&[&self.topic]).map_err(|e| self.refused(format!("cannot subscribe to topic `{}`: {e}", self.topic)))
    }

    /// Positions of partitions that are not assigned are left out; an assigned partition without a
    /// position stays silent.
    fn start(&mut self, positions: &BTreeMap<i32, Position>) -> Result<(), SourceError> {
        let owned = self.consumer.context().told().owned.clone();
        let positions: BTreeMap<i32, Position> = positions.iter().filter(|(p, _)| owned.contains(p)).map(|(p, at)| (*p, *at)).collect();
        self.reading = false;
        self.paused.clear();
        self.to_pause.clear();
        self.cutter.clear();
        self.failed.clear();
        if !positions.is_empty() {
            self.check(&positions)?;
            if !self.place(&positions)? {
                return Ok(());
            }
            let list = self.list(positions.iter().map(|(p, at)| (*p, at.offset)))?;
            self.consumer.resume(&list).map_err(|e| SourceError::Unavailable(format!("source `{}`: {e}", self.name)))?;
        }
        self.cutter.start(&positions);
        self.placed_again.clear();
        self.reading = true;
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<SourceEvent, SourceError> {
        let (deadline, patience) = (Instant::now() + timeout, Instant::now() + timeout.min(LINGER));
        loop {
            self.serve()?;
            let assigned = {
                let mut told = self.consumer.context().told();
                std::mem::take(&mut told.changed).then(|| told.owned.iter().copied().collect::<Vec<i32>>())
            };
            if let Some(partitions) = assigned {
                self.reading = false;
                self.cutter.clear();
                self.failed.clear();
                self.paused.clear();
                self.to_pause.clear();
                return Ok(SourceEvent::Assigned(partitions));
            }
            if self.paused != self.to_pause {
                self.hold()?;
            }
            if let Some(text) = self.notices.pop_front() {
                return Ok(SourceEvent::Notice(text));
            }
            if let Some(batch) = self.take() {
                return Ok(SourceEvent::Batch(batch));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.reading {
                if left.is_zero() {
                    return Ok(SourceEvent::Idle);
                }
                std::thread::sleep(left.min(EVENT_INTERVAL / 5));
                continue;
            }
            let came = self.read(Duration::ZERO)?;
            if came && !left.is_zero() {
                continue;
            }
            // Nothing more came for a while, or the time is up: give what there is.
            if Instant::now() >= patience {
                self.cutter.flush();
                if let Some(batch) = self.take() {
                    return Ok(SourceEvent::Batch(batch));
                }
            }
            if left.is_zero() {
                return Ok(SourceEvent::Idle);
            }
            self.read(left.min(EVENT_INTERVAL).max(Duration::from_millis(1)))?;
        }
    }

    fn pause(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.to_pause = partitions.iter().copied().filter(|p| self.cutter.position(*p).is_some()).collect();
        self.hold()
    }

    fn report_committed(&mut self, offsets: &BTreeMap<i32, i64>) -> Result<(), SourceError> {
        // Others report theirs: of two that report one partition the slower would set it back.
        let owned = self.consumer.context().told().owned.clone();
        let list = self.list(offsets.iter().filter(|(p, o)| **o >= 0 && owned.contains(p)).map(|(p, o)| (*p, *o)))?;
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            self.notice(format!("source `{}`: lag tools will show too much: {error}", self.name));
        }
        Ok(())
    }
}
