//! Questions to the brokers that rdkafka has no words for: a topic's id, and many offsets at once.
//!
//! Both are admin requests on the consumer's own handle, so that they use its connections and its
//! credentials. Each costs one request a broker, however many partitions there are.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long one request may take before it counts as failed.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that failed, as librdkafka tells it.
#[derive(Debug, Clone)]
pub(super) struct AdminError {
    pub code: RDKafkaErrorCode,
    pub text: String,
}

/// A topic as the brokers describe it.
#[derive(Debug)]
pub(super) struct Topic {
    /// `None` where the brokers keep no ids (before 2.8, and some that only speak the protocol).
    pub id: Option<String>,
    pub partitions: Vec<i32>,
}

/// Called while a request is under way, so that the client's events (a failed login, a rebalance)
/// are seen; an error ends the waiting.
pub(super) type Pump<'a> = &'a dyn Fn() -> Option<AdminError>;

/// An admin result, freed when dropped.
struct Event(NonNull<rd::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: taken from rd_kafka_queue_poll, which hands over ownership, and freed only here.
        unsafe { rd::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

fn text_of(chars: *const std::os::raw::c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's texts are NUL-terminated and outlive the object that they were read from.
    unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned()
}

/// Sends one request and waits for its answer.
fn ask(
    client: *mut rd::rd_kafka_t,
    op: rd::rd_kafka_admin_op_t,
    isolation: Option<rd::rd_kafka_IsolationLevel_t>,
    pump: Pump<'_>,
    submit: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
) -> Result<Event, AdminError> {
    // SAFETY: `client` lives as long as the consumer that the caller borrows. Options and queue are
    // destroyed on every path below; a reply that comes after that is discarded by librdkafka.
    unsafe {
        let options = rd::rd_kafka_AdminOptions_new(client, op);
        let mut words = [0; 256];
        rd::rd_kafka_AdminOptions_set_request_timeout(options, REQUEST_TIMEOUT.as_millis() as i32, words.as_mut_ptr(), words.len());
        if let Some(level) = isolation {
            let error = rd::rd_kafka_AdminOptions_set_isolation_level(options, level);
            if !error.is_null() {
                rd::rd_kafka_error_destroy(error);
            }
        }
        let queue = rd::rd_kafka_queue_new(client);
        submit(options, queue);
        let deadline = Instant::now() + REQUEST_TIMEOUT + Duration::from_secs(1);
        let answer = loop {
            if let Some(event) = NonNull::new(rd::rd_kafka_queue_poll(queue, 100)) {
                break Ok(Event(event));
            }
            if let Some(error) = pump() {
                break Err(error);
            }
            if Instant::now() >= deadline {
                break Err(AdminError { code: RDKafkaErrorCode::OperationTimedOut, text: "no answer".into() });
            }
        };
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        let event = answer?;
        let code = rd::rd_kafka_event_error(event.0.as_ptr());
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(AdminError { code: code.into(), text: text_of(rd::rd_kafka_event_error_string(event.0.as_ptr())) });
        }
        Ok(event)
    }
}

/// One topic: its id and its partitions. One request.
pub(super) fn describe_topic(client: *mut rd::rd_kafka_t, topic: &str, pump: Pump<'_>) -> Result<Topic, AdminError> {
    let none = || AdminError { code: RDKafkaErrorCode::UnknownTopicOrPartition, text: "no such topic".into() };
    let name = CString::new(topic).map_err(|_| none())?;
    // SAFETY: the collection copies the names; everything read from the result is copied before the
    // event, which owns it, is dropped at the end.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let event = ask(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, None, pump, |options, queue| {
            rd::rd_kafka_DescribeTopics(client, topics, options, queue);
        });
        rd::rd_kafka_TopicCollection_destroy(topics);
        let event = event?;
        let mut count = 0;
        let list = rd::rd_kafka_DescribeTopics_result_topics(rd::rd_kafka_event_DescribeTopics_result(event.0.as_ptr()), &mut count);
        if list.is_null() || count == 0 {
            return Err(none());
        }
        let described = *list;
        let error = rd::rd_kafka_TopicDescription_error(described);
        if !error.is_null() && rd::rd_kafka_error_code(error) != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(AdminError { code: rd::rd_kafka_error_code(error).into(), text: text_of(rd::rd_kafka_error_string(error)) });
        }
        let uuid = rd::rd_kafka_TopicDescription_topic_id(described);
        let zero = uuid.is_null() || (rd::rd_kafka_Uuid_most_significant_bits(uuid) == 0 && rd::rd_kafka_Uuid_least_significant_bits(uuid) == 0);
        let id = (!zero).then(|| text_of(rd::rd_kafka_Uuid_base64str(uuid)));
        let mut count = 0;
        let infos = rd::rd_kafka_TopicDescription_partitions(described, &mut count);
        let mut partitions: Vec<i32> = (0..count).map(|i| rd::rd_kafka_TopicPartitionInfo_partition(*infos.add(i))).collect();
        partitions.sort_unstable();
        Ok(Topic { id, partitions })
    }
}

/// A topic's setting as the brokers have it; `None`: there is none of this name. One request.
pub(super) fn topic_setting(client: *mut rd::rd_kafka_t, topic: &str, setting: &str, pump: Pump<'_>) -> Result<Option<String>, AdminError> {
    let none = || AdminError { code: RDKafkaErrorCode::UnknownTopicOrPartition, text: "no such topic".into() };
    let name = CString::new(topic).map_err(|_| none())?;
    // SAFETY: the resource copies the name and lives across the request; everything read from the result is copied before
    // the event, which owns it, is dropped at the end.
    unsafe {
        let resource = rd::rd_kafka_ConfigResource_new(rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr());
        let mut resources = [resource];
        let event = ask(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, None, pump, |options, queue| {
            rd::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), resources.len(), options, queue);
        });
        rd::rd_kafka_ConfigResource_destroy(resource);
        let event = event?;
        let mut count = 0;
        let list = rd::rd_kafka_DescribeConfigs_result_resources(rd::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr()), &mut count);
        if list.is_null() || count == 0 {
            return Err(none());
        }
        let described = *list;
        let code = rd::rd_kafka_ConfigResource_error(described);
        if code != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(AdminError { code: code.into(), text: text_of(rd::rd_kafka_ConfigResource_error_string(described)) });
        }
        let mut count = 0;
        let entries = rd::rd_kafka_ConfigResource_configs(described, &mut count);
        let found = (0..count).map(|i| *entries.add(i)).find(|entry| text_of(rd::rd_kafka_ConfigEntry_name(*entry)) == setting);
        Ok(found.map(|entry| text_of(rd::rd_kafka_ConfigEntry_value(entry))))
    }
}

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// The first one that is still there.
    Begin,
    /// The last stable offset: where a read_committed reader comes to its end.
    End,
    /// The high watermark, open transactions included.
    HighWatermark,
    /// The first record at or after this time, in milliseconds since 1970-01-01 UTC; -1 where none is.
    Time(i64),
}

/// One offset for each of `partitions`. One request to each leader.
pub(super) fn list_offsets(
    client: *mut rd::rd_kafka_t,
    topic: &str,
    partitions: &[i32],
    at: At,
    pump: Pump<'_>,
) -> Result<BTreeMap<i32, i64>, AdminError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    use rd::rd_kafka_IsolationLevel_t::{RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED, RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED};
    let (wanted, isolation) = match at {
        At::Begin => (Offset::Beginning, RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED),
        At::End => (Offset::End, RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED),
        At::HighWatermark => (Offset::End, RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED),
        At::Time(ms) => (Offset::Offset(ms.max(0)), RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED),
    };
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition_offset(topic, *partition, wanted)
            .map_err(|e| AdminError { code: RDKafkaErrorCode::InvalidArgument, text: e.to_string() })?;
    }
    let event = ask(client, rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, Some(isolation), pump, |options, queue| {
        // SAFETY: the list is copied by the call; options and queue live until `ask` returns.
        unsafe { rd::rd_kafka_ListOffsets(client, list.ptr(), options, queue) }
    })?;
    let mut offsets = BTreeMap::new();
    // SAFETY: the result belongs to `event`, which lives to the end of this function.
    unsafe {
        let mut count = 0;
        let infos = rd::rd_kafka_ListOffsets_result_infos(rd::rd_kafka_event_ListOffsets_result(event.0.as_ptr()), &mut count);
        for i in 0..count {
            let found = rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(i));
            if found == ptr::null() {
                continue;
            }
            let found = &*found;
            if found.err != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                let text = format!("partition {}: {}", found.partition, text_of(rd::rd_kafka_err2str(found.err)));
                return Err(AdminError { code: found.err.into(), text });
            }
            offsets.insert(found.partition, found.offset);
        }
    }
    match partitions.iter().find(|p| !offsets.contains_key(p)) {
        Some(p) => Err(AdminError { code: RDKafkaErrorCode::UnknownPartition, text: format!("partition {p}: not in the answer") }),
        None => Ok(offsets),
    }
}
