//! What librdkafka tells a consumer while it is polled: which partitions are its own, and errors.
//!
//! The group is used for assignment only. A new partition is held back first and then taken over at a
//! number, so that no offset is looked up and no record asked for before the epoch log has said where
//! reading starts.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::fetch;

/// At most this many errors wait for the reader; older ones are dropped.
const ERRORS_KEPT: usize = 64;

#[derive(Default)]
pub(super) struct Told {
    /// Partitions that are ours now.
    pub owned: BTreeSet<i32>,
    /// `owned` is not what was last reported.
    pub changed: bool,
    pub errors: VecDeque<(RDKafkaErrorCode, String)>,
    /// Partitions whose records came by the consumer's own queue, past the one that we read.
    pub strayed: BTreeSet<i32>,
    /// The last failed login or TLS handshake since the brokers were last reached.
    pub denied: Option<(RDKafkaErrorCode, String)>,
    /// The last thing that went wrong with a connection.
    pub last_error: Option<String>,
    pub commit_failed: Option<String>,
    /// No broker could be connected to, at least once.
    pub all_away: bool,
}

pub(super) struct Membership {
    topic: String,
    topic_c: CString,
    told: Mutex<Told>,
}

impl Membership {
    pub fn new(topic: &str, topic_c: CString) -> Self {
        Self { topic: topic.to_string(), topic_c, told: Mutex::default() }
    }

    /// Callbacks only write plain values, so a poisoned lock holds nothing half done.
    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, what: &str, result: KafkaResult<()>) {
        if let Err(error) = result {
            self.told().errors.push_back((RDKafkaErrorCode::Fail, format!("{what}: {error}")));
        }
    }
}

impl ClientContext for Membership {
    /// Why a connection failed is told here in full; as an error it only comes when all brokers are
    /// down, and without the reason. Nothing else of the log is of use.
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility != "FAIL" {
            return;
        }
        let mut told = self.told();
        // An alert comes after the handshake where the broker does not take our certificate (TLS 1.3).
        if message.contains("SSL handshake") || message.contains("SSL alert") || message.contains("connecting to a PLAINTEXT") {
            told.denied = Some((RDKafkaErrorCode::SSL, message.to_string()));
        }
        told.last_error = Some(message.to_string());
    }

    fn stats(&self, _statistics: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        if code == RDKafkaErrorCode::PartitionEOF {
            return;
        }
        let mut told = self.told();
        if matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) {
            told.denied = Some((code, reason.to_string()));
        }
        told.all_away |= code == RDKafkaErrorCode::AllBrokersDown;
        if code != RDKafkaErrorCode::AllBrokersDown || told.last_error.is_none() {
            told.last_error = Some(reason.to_string());
        }
        if told.errors.len() == ERRORS_KEPT {
            told.errors.pop_front();
        }
        told.errors.push_back((code, reason.to_string()));
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements_for_topic(&self.topic).iter().map(|e| e.partition()).collect();
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // Held back before they are taken over: between the two, records would be asked for already, and the
            // answer that there are none at 0 (they expired) ends the fetching, perhaps after the seek.
            let mut held = Ok(());
            for partition in &partitions {
                // Makes the partition known, without which it cannot be held.
                fetch::touch(consumer.client().native_ptr(), &self.topic_c, *partition);
            }
            if !partitions.is_empty() {
                held = consumer.pause(list).and_then(|()| list.elements().iter().try_for_each(|e| e.error()));
            }
            self.failed("holding new partitions back", held);
            // They are placed by a seek. Any number will do until then, but it must be one: a place that
            // librdkafka has to look up (the end, the beginning, the group's) is looked up again half a second
            // after an answer that the seek has overtaken, and reading goes on from there, past records that
            // nobody has seen (`rd_kafka_toppar_handle_Offset`, librdkafka 2.12.1).
            self.failed("taking over partitions", list.set_all_offsets(Offset::Offset(0)));
            let taken = if cooperative { consumer.incremental_assign(list) } else { consumer.assign(list) };
            self.failed("taking over partitions", taken);
            let mut told = self.told();
            if !cooperative {
                told.owned.clear();
            }
            told.owned.extend(partitions);
            told.changed = true;
        } else {
            let given = if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() };
            self.failed("giving partitions up", given);
            let mut told = self.told();
            told.owned.retain(|p| cooperative && !partitions.contains(p));
            told.changed = true;
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.told().commit_failed = result.err().map(|e| e.to_string());
    }
}
