//! Cuts what the brokers deliver, all partitions in one stream, into batches of one partition each.
//!
//! The intervals of a partition's batches tile: each starts where the one before ended (I1), and
//! offsets that hold no record belong to the batch of the next record, or of the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::source::{KEPT_BYTES, Position, RawBatch, RawRecord};

pub(super) const BATCH_RECORDS: usize = 8192;
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// What batches that are still filling may hold together before all of them are cut.
const FILLING_BYTES: usize = 32 << 20;

/// A record as it lies in the fetch buffer.
pub(super) struct Fetched<'a> {
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    pub leader_epoch: i32,
}

pub(super) struct Cutter {
    max_record_bytes: usize,
    /// Larger ones leave only their place, time and key.
    kept_bytes: usize,
    filling: BTreeMap<i32, RawBatch>,
    filling_bytes: usize,
    ready: VecDeque<RawBatch>,
}

impl Cutter {
    pub fn new(max_record_bytes: usize) -> Self {
        Self { max_record_bytes, kept_bytes: max_record_bytes.max(KEPT_BYTES), filling: BTreeMap::new(), filling_bytes: 0, ready: VecDeque::new() }
    }

    /// Forgets everything and starts anew at `positions`.
    pub fn start(&mut self, positions: &BTreeMap<i32, Position>) {
        self.clear();
        self.filling = positions
            .iter()
            .map(|(partition, at)| (*partition, fresh(*partition, at.offset, at.leader_epoch)))
            .collect();
    }

    pub fn clear(&mut self) {
        self.filling.clear();
        self.ready.clear();
        self.filling_bytes = 0;
    }

    /// Where the next record of a partition is expected.
    pub fn position(&self, partition: i32) -> Option<Position> {
        self.filling.get(&partition).map(|b| Position { offset: b.to, leader_epoch: b.leader_epoch })
    }

    /// Copies one record. A record of a partition that is not read, or that lies before its
    /// position, is dropped: it was fetched for an earlier reading.
    pub fn push(&mut self, partition: i32, record: &Fetched<'_>) {
        let Some(batch) = self.filling.get_mut(&partition) else { return };
        if record.offset < batch.to {
            return;
        }
        let headers_len: usize = record.headers.iter().map(|(n, v)| n.len() + v.map_or(0, <[u8]>::len)).sum();
        let key_len = record.key.map_or(0, <[u8]>::len);
        let size = key_len + record.value.map_or(0, <[u8]>::len) + headers_len;
        let oversized = size > self.max_record_bytes;
        let whole = size <= self.kept_bytes;
        let kept = if whole { size } else if key_len > self.kept_bytes { 0 } else { key_len };
        if !batch.records.is_empty() && batch.bytes.len() + kept > BATCH_BYTES {
            self.cut(partition);
        }
        let Some(batch) = self.filling.get_mut(&partition) else { return };
        let mut put = |bytes: &[u8]| {
            let start = batch.bytes.len() as u32;
            batch.bytes.extend_from_slice(bytes);
            start..batch.bytes.len() as u32
        };
        let key = record.key.filter(|k| k.len() <= self.kept_bytes).map(&mut put);
        let (value, headers) = match record.headers {
            _ if !whole => (None, Vec::new()),
            [] => (record.value.map(&mut put), Vec::new()),
            headers => (record.value.map(&mut put), headers.iter().map(|(n, v)| (put(n), v.map(&mut put))).collect()),
        };
        batch.records.push(RawRecord {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key,
            value,
            headers,
            oversized: oversized.then_some(size as u64),
        });
        batch.to = record.offset + 1;
        batch.at_end = false;
        batch.leader_epoch = record.leader_epoch;
        self.filling_bytes += kept;
        if batch.records.len() >= BATCH_RECORDS || batch.bytes.len() >= BATCH_BYTES {
            self.cut(partition);
        } else if self.filling_bytes > FILLING_BYTES {
            self.flush();
        }
    }

    /// The broker showed `offset` to be the end of the partition.
    pub fn end(&mut self, partition: i32, offset: i64) {
        let Some(batch) = self.filling.get_mut(&partition) else { return };
        if offset > batch.to {
            // The tail holds no record that we see, only markers and aborted records, perhaps of a
            // later leader epoch. The last record's epoch said of this offset would look like a
            // truncation, so we say that we do not know it.
            batch.to = offset;
            batch.leader_epoch = -1;
        }
        batch.at_end = batch.to == offset;
        // With records in it the batch may wait for more: a live partition ends behind nearly each of them.
        if batch.at_end && batch.from == batch.to {
            self.cut(partition);
        }
    }

    /// Makes every batch that holds anything ready.
    pub fn flush(&mut self) {
        let due: Vec<i32> = self.filling.iter().filter(|(_, b)| b.to > b.from).map(|(p, _)| *p).collect();
        for partition in due {
            self.cut(partition);
        }
    }

    fn cut(&mut self, partition: i32) {
        let Some(batch) = self.filling.get_mut(&partition) else { return };
        let mut next = fresh(partition, batch.to, batch.leader_epoch);
        if batch.records.len() > BATCH_RECORDS / 4 {
            // A backlog: the next batch will be of about this size.
            next.records.reserve(batch.records.len());
            next.bytes.reserve(batch.bytes.len());
        }
        self.filling_bytes -= batch.bytes.len();
        self.ready.push_back(std::mem::replace(batch, next));
    }

    /// The oldest batch that is ready and not of a paused partition.
    pub fn take(&mut self, paused: &BTreeSet<i32>) -> Option<RawBatch> {
        let at = self.ready.iter().position(|b| !paused.contains(&b.partition))?;
        self.ready.remove(at)
    }
}

fn fresh(partition: i32, at: i64, leader_epoch: i32) -> RawBatch {
    RawBatch { partition, from: at, to: at, leader_epoch, ..RawBatch::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64, value: &[u8]) -> Fetched<'_> {
        Fetched { offset, timestamp_ms: Some(offset), key: Some(b"k"), value: Some(value), headers: &[], leader_epoch: 3 }
    }

    fn started(max: usize) -> Cutter {
        let mut cutter = Cutter::new(max);
        cutter.start(&[(0, Position { offset: 5, leader_epoch: 2 }), (1, Position { offset: 0, leader_epoch: -1 })].into());
        cutter
    }

    #[test]
    fn intervals_tile_over_gaps() {
        let mut cutter = started(100);
        cutter.push(0, &record(7, b"a"));
        cutter.push(1, &record(0, b"b"));
        cutter.flush();
        cutter.push(0, &record(10, b"c"));
        cutter.end(0, 14);
        cutter.flush();
        let none = BTreeSet::new();
        let cut: Vec<_> = std::iter::from_fn(|| cutter.take(&none)).map(|b| (b.partition, b.from, b.to, b.records.len(), b.at_end, b.leader_epoch)).collect();
        assert_eq!(cut, [(0, 5, 8, 1, false, 3), (1, 0, 1, 1, false, 3), (0, 8, 14, 1, true, -1)]);
    }

    #[test]
    fn the_end_is_told_even_with_nothing_new() {
        let mut cutter = started(100);
        cutter.end(0, 5);
        let batch = cutter.take(&BTreeSet::new()).unwrap();
        assert!(batch.at_end && batch.records.is_empty());
        assert_eq!((batch.from, batch.to, batch.leader_epoch), (5, 5, 2));
        // What came since is not at the end, until that is seen again.
        cutter.push(0, &record(5, b"a"));
        cutter.end(0, 6);
        cutter.push(0, &record(6, b"b"));
        assert!(cutter.take(&BTreeSet::new()).is_none());
        cutter.flush();
        assert!(!cutter.take(&BTreeSet::new()).unwrap().at_end);
        cutter.end(0, 7);
        assert!(cutter.take(&BTreeSet::new()).unwrap().at_end);
        // An end that lies behind us was true of an earlier reading.
        cutter.end(0, 3);
        assert!(cutter.take(&BTreeSet::new()).is_none());
    }

    #[test]
    fn records_of_an_earlier_reading_are_dropped() {
        let mut cutter = started(100);
        cutter.push(0, &record(4, b"old"));
        cutter.push(9, &record(50, b"not ours"));
        cutter.flush();
        assert!(cutter.take(&BTreeSet::new()).is_none());
    }

    #[test]
    fn too_large_a_record_keeps_its_bytes_and_a_huge_one_its_key_and_its_place() {
        let mut cutter = started(10);
        cutter.kept_bytes = 11;
        cutter.push(0, &record(5, b"0123456789a"));
        cutter.push(0, &record(6, b"012345678"));
        cutter.push(0, &record(7, b"0123456789"));
        cutter.flush();
        let batch = cutter.take(&BTreeSet::new()).unwrap();
        assert_eq!((batch.records[0].oversized, batch.records[0].value.clone()), (Some(12), None));
        assert_eq!(batch.slice(batch.records[0].key.as_ref().unwrap()), b"k");
        assert_eq!(batch.records[1].oversized, None);
        assert_eq!(batch.slice(batch.records[1].value.as_ref().unwrap()), b"012345678");
        assert_eq!(batch.records[2].oversized, Some(11));
        assert_eq!(batch.slice(batch.records[2].value.as_ref().unwrap()), b"0123456789");
        assert_eq!((batch.from, batch.to), (5, 8));
    }

    #[test]
    fn batches_are_bounded_and_paused_ones_wait_in_order() {
        let mut cutter = started(BATCH_BYTES);
        let big = vec![b'x'; BATCH_BYTES / 3];
        for offset in 0..9 {
            cutter.push(1, &record(offset, &big));
        }
        for offset in 5..5 + BATCH_RECORDS as i64 + 1 {
            cutter.push(0, &record(offset, b"y"));
        }
        cutter.flush();
        let held: BTreeSet<i32> = [1].into();
        let first = cutter.take(&held).unwrap();
        assert_eq!((first.partition, first.records.len()), (0, BATCH_RECORDS));
        assert_eq!(cutter.take(&held).unwrap().records.len(), 1);
        assert!(cutter.take(&held).is_none());
        let rest: Vec<_> = std::iter::from_fn(|| cutter.take(&BTreeSet::new())).collect();
        assert!(rest.iter().all(|b| b.bytes.len() <= BATCH_BYTES));
        assert_eq!(rest.iter().map(|b| b.records.len()).sum::<usize>(), 9);
        assert!(rest.windows(2).all(|w| w[0].to == w[1].from));
    }
}
