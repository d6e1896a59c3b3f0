//! Where raw records come from, with their offsets. Nothing outside this module knows rdkafka.
//!
//! A source never decides where reading starts: the epoch log does. It reports which partitions
//! it was given, is told where to read them, and delivers batches whose intervals tile the
//! partition without a gap (I1).

pub mod file;
pub mod kafka;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::pipeline::{Input, SourceSpec};
use uuid::Uuid;

/// A new leader may know of less than was acknowledged for a moment, and a broker that was killed, of nothing at all: so long it is
/// asked again before it is believed.
pub const END_PATIENCE: Duration = Duration::from_secs(20);

/// Raw records of one partition, in offset order, covering the half-open interval `from..to` of
/// offsets. Offsets that hold no record (control records, aborted or compacted ones) lie within
/// the interval all the same.
#[derive(Debug, Clone, Default)]
pub struct RawBatch {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    /// By what the record before `to` is known again: its leader epoch, or a hash of a file's line; -1 where there is nothing.
    pub leader_epoch: i32,
    /// The source showed that `to` was the end of the partition when this batch was cut.
    pub at_end: bool,
    /// Keys, values and headers, back to back.
    pub bytes: Vec<u8>,
    pub records: Vec<RawRecord>,
}

/// One record; ranges point into [`RawBatch::bytes`].
#[derive(Debug, Clone)]
pub struct RawRecord {
    pub offset: i64,
    /// Milliseconds since 1970-01-01 UTC, or `None` where the source has no record times.
    pub timestamp_ms: Option<i64>,
    pub key: Option<Range<u32>>,
    /// `None`: a null payload.
    pub value: Option<Range<u32>>,
    /// Name and value; empty for most records (an empty Vec does not allocate).
    pub headers: Vec<(Range<u32>, Option<Range<u32>>)>,
    /// The record was over `max_record_bytes`: this is its size. Above [`KEPT_BYTES`] its value was not kept.
    pub oversized: Option<u64>,
}

/// A record that is over `max_record_bytes` keeps its bytes, for its dead letter, up to this size or the limit.
pub const KEPT_BYTES: usize = 16 << 20;

impl RawBatch {
    pub fn slice(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// Where reading a partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub offset: i64,
    /// [`RawBatch::leader_epoch`] of the record before `offset`, or -1 when unknown.
    pub leader_epoch: i32,
}

/// What a source says of itself before anything is read.
#[derive(Debug, Clone)]
pub struct SourceFacts {
    /// Identity of the topic's incarnation (Kafka's topic id as text); `None` where it has none.
    pub incarnation: Option<String>,
    /// The topic's name, or the file's path: `_topic` in late and dead-letter tables.
    pub topic: String,
    /// Partition to (beginning, end) offsets now.
    pub partitions: BTreeMap<i32, (i64, i64)>,
    /// Partitions whose end is held back by an open transaction, and how far records are written there:
    /// such a partition is not idle, whatever its end says.
    pub held: BTreeMap<i32, i64>,
    /// Partition to its name where it is not a mere number (a file's path), for lineage.
    pub names: BTreeMap<i32, String>,
    /// [`RawBatch::leader_epoch`] of the last record before the end, where the source can tell it at once.
    pub last: BTreeMap<i32, i32>,
}

#[derive(Debug)]
pub enum SourceEvent {
    Batch(RawBatch),
    /// From now on these partitions, and no others, are this worker's. Everything read so far that
    /// is not decided is void. The worker answers with [`Source::start`]; nothing is delivered before.
    Assigned(Vec<i32>),
    /// Nothing within the timeout.
    Idle,
    /// Something worth telling the user that needs no reaction (a broker is away, …).
    Notice(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Reading on would lose or double records. The message names the choices. Never retried.
    #[error("{0}")]
    Refused(String),
    /// Will pass; the caller retries and says so.
    #[error("{0}")]
    Unavailable(String),
}

/// The source as the pipeline file names it, for this worker.
///
/// # Errors
/// Refused: what the file says of it cannot be.
pub fn open(spec: &SourceSpec, pipeline: &str, worker: &str) -> Result<Box<dyn Source>, SourceError> {
    Ok(match &spec.input {
        Input::Kafka(_) => Box::new(kafka::KafkaSource::new(spec, pipeline, worker)?),
        Input::File(_) => Box::new(file::FileSource::new(spec)?),
    })
}

/// One source as one worker sees it. Driven by one thread of its own; every call may block for
/// about its timeout.
pub trait Source: Send {
    /// Identity, partitions and their ends now.
    fn facts(&mut self) -> Result<SourceFacts, SourceError>;

    /// The identity alone, as in [`SourceFacts::incarnation`]: cheap enough to be asked once an epoch.
    fn incarnation(&mut self) -> Result<Option<String>, SourceError> {
        Ok(self.facts()?.incarnation)
    }

    /// Whether records may go away from between others that stay, as in a compacted topic; `None`: it may not be asked.
    fn thins_out(&mut self) -> Result<Option<bool>, SourceError> {
        Ok(Some(false))
    }

    /// Where the pipeline file's `start` lies for these partitions, as offsets.
    fn start_offsets(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, SourceError>;

    /// Joins the others that read this source for the log of this id. `Assigned` events follow.
    fn join(&mut self, log: Uuid) -> Result<(), SourceError>;

    /// Reads the assigned partitions from here (also after work was void: again from here).
    /// Batches delivered before belong to the reading before.
    fn start(&mut self, positions: &BTreeMap<i32, Position>) -> Result<(), SourceError>;

    /// The next event. A batch holds at most about 8,192 records and 4 MiB.
    fn poll(&mut self, timeout: Duration) -> Result<SourceEvent, SourceError>;

    /// Stops delivering these partitions, and delivers all others again.
    fn pause(&mut self, partitions: &[i32]) -> Result<(), SourceError>;

    /// Tells lag tools how far the tables are, of the partitions that are assigned. Advisory: nothing is ever read back
    /// from it.
    fn report_committed(&mut self, offsets: &BTreeMap<i32, i64>) -> Result<(), SourceError>;
}
