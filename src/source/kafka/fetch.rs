//! The queue that all partitions of a consumer deliver to, read many records at a time.
//!
//! It is a queue of our own, not the consumer's: on that one a batch read would answer a rebalance
//! by giving everything up. One queue for all partitions also makes librdkafka's prefetch limits
//! (`queued.max.messages.kbytes`) hold for all of them together, however many there are.

use std::ffi::{CStr, CString};
use std::ptr;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode;

use super::cut::{BATCH_BYTES, BATCH_RECORDS, Cutter, Fetched};

/// An error that librdkafka delivered in a partition's place in the stream.
#[derive(Clone)]
pub(super) struct PartitionError {
    pub partition: i32,
    pub code: RDKafkaErrorCode,
    pub text: String,
}

pub(super) struct FetchQueue {
    queue: *mut rd::rd_kafka_queue_t,
    slots: Vec<*mut rd::rd_kafka_message_t>,
    /// Bytes of a record, on average, as last seen: bounds how much one read takes.
    record_bytes: usize,
}

// SAFETY: librdkafka's queues may be used from any thread; `slots` holds pointers only during `read`.
unsafe impl Send for FetchQueue {}

impl Drop for FetchQueue {
    fn drop(&mut self) {
        // SAFETY: created by rd_kafka_queue_new and destroyed only here. Partitions that still
        // forward to it hold their own reference.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) }
    }
}

impl FetchQueue {
    /// `client` must outlive the queue.
    pub fn new(client: *mut rd::rd_kafka_t) -> Self {
        // SAFETY: the client is alive; the call does not fail.
        let queue = unsafe { rd::rd_kafka_queue_new(client) };
        Self { queue, slots: vec![ptr::null_mut(); BATCH_RECORDS], record_bytes: 256 }
    }

    /// Makes a partition deliver here. False where librdkafka does not know the partition.
    pub fn attach(&self, client: *mut rd::rd_kafka_t, topic: &CStr, partition: i32) -> bool {
        // SAFETY: both queues are alive; our reference to the partition's is given back.
        unsafe {
            let from = rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
            if from.is_null() {
                return false;
            }
            rd::rd_kafka_queue_forward(from, self.queue);
            rd::rd_kafka_queue_destroy(from);
        }
        true
    }

    /// Moves what is there into `cutter`; waits up to `wait_ms` for one record where nothing is.
    /// Returns how many messages (records, ends, errors) came.
    pub fn read(&mut self, wait_ms: i32, cutter: &mut Cutter, errors: &mut Vec<PartitionError>) -> usize {
        let most = if wait_ms > 0 { 1 } else { (BATCH_BYTES / self.record_bytes.max(1)).clamp(32, BATCH_RECORDS) };
        // SAFETY: `slots` has room for `most`; the messages are ours until they are destroyed below,
        // and nothing that points into them is kept.
        unsafe {
            let count = rd::rd_kafka_consume_batch_queue(self.queue, wait_ms, self.slots.as_mut_ptr(), most);
            let count = usize::try_from(count).unwrap_or(0);
            let mut bytes = 0;
            for slot in &self.slots[..count] {
                let message = &**slot;
                bytes += message.len + message.key_len;
                take(message, cutter, errors);
                rd::rd_kafka_message_destroy(*slot);
            }
            if count > 0 {
                self.record_bytes = (self.record_bytes + bytes / count) / 2;
            }
            count
        }
    }
}

/// # Safety
/// `message` is a live message of a consumer.
unsafe fn take(message: &rd::rd_kafka_message_t, cutter: &mut Cutter, errors: &mut Vec<PartitionError>) {
    use rd::rd_kafka_resp_err_t::{RD_KAFKA_RESP_ERR__PARTITION_EOF, RD_KAFKA_RESP_ERR_NO_ERROR};
    match message.err {
        RD_KAFKA_RESP_ERR_NO_ERROR => {}
        RD_KAFKA_RESP_ERR__PARTITION_EOF => return cutter.end(message.partition, message.offset),
        code => {
            // SAFETY: the text lives as long as the message.
            let text = unsafe {
                let text = rd::rd_kafka_message_errstr(message);
                if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
            };
            errors.push(PartitionError { partition: message.partition, code: code.into(), text });
            return;
        }
    }
    // SAFETY: librdkafka gives pointer and length of each part; a null pointer is a null part.
    unsafe {
        let bytes = |at: *const std::os::raw::c_void, len: usize| (!at.is_null()).then(|| std::slice::from_raw_parts(at.cast::<u8>(), len));
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let time = rd::rd_kafka_message_timestamp(message, &mut kind);
        let known = kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time >= 0;
        let mut headers = Vec::new();
        let leader_epoch = rd::rd_kafka_message_leader_epoch(message);
        let mut list = ptr::null_mut();
        if rd::rd_kafka_message_headers(message, &mut list) == RD_KAFKA_RESP_ERR_NO_ERROR {
            let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
            let mut index = 0;
            while rd::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut len) == RD_KAFKA_RESP_ERR_NO_ERROR {
                headers.push((CStr::from_ptr(name).to_bytes(), bytes(value, len)));
                index += 1;
            }
        }
        cutter.push(
            message.partition,
            &Fetched {
                offset: message.offset,
                timestamp_ms: known.then_some(time),
                key: bytes(message.key, message.key_len),
                value: bytes(message.payload, message.len),
                headers: &headers,
                leader_epoch,
            },
        );
    }
}

/// Makes a partition known to librdkafka before anything of it is assigned. False where that fails.
pub(super) fn touch(client: *mut rd::rd_kafka_t, topic: &CStr, partition: i32) -> bool {
    // SAFETY: the client is alive; the reference is given back.
    unsafe {
        let queue = rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
        if !queue.is_null() {
            rd::rd_kafka_queue_destroy(queue);
        }
        !queue.is_null()
    }
}

/// A topic's name as C wants it; `None` where it holds a NUL, which no topic's name does.
pub(super) fn c_name(topic: &str) -> Option<CString> {
    CString::new(topic).ok()
}
