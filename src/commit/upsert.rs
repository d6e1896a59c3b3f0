//! The changes of one commit, folded per key: which rows to write, which to delete.
//!
//! Of a key's changes only the last counts. Rows that the table holds of a key that is replaced or
//! removed are found through the key index. Inserts of keys that nothing else in the commit
//! touches, the bulk of every commit, stream through: they are neither looked up nor remembered.

#[cfg(test)]
mod tests;

use super::key_index::{KeyIndex, KeyIndexError};
use crate::stage::rows::RowBatches;
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use hashbrown::HashMap;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;

/// What happens to the keys of a set of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOp {
    /// The table holds no row of the key, unless an earlier change of this commit replaced or
    /// removed it. It is not looked up: a key inserted twice is two rows.
    Insert,
    /// The row takes the place of the key's row, if there is one.
    Replace,
    /// The key's row goes, if there is one. The rows need hold no more than the key.
    Remove,
}

/// One change, in the order of the log.
pub struct KeyedChange<'a> {
    pub op: ChangeOp,
    pub rows: &'a dyn RowBatches,
}

/// What a commit does to rows that the table holds, and what it did with those it was given.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Resolved {
    /// For [`super::TableChange::delete`].
    pub delete: BTreeMap<String, RoaringTreemap>,
    /// Rows handed to the sink.
    pub rows_written: u64,
    /// Rows given that a later change of the same commit overtook, and removals.
    pub rows_dropped: u64,
    /// Keys replaced or removed that the table holds no row of.
    pub keys_not_found: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("cannot read the changes: {0}")]
    Rows(String),
    #[error(transparent)]
    Index(#[from] KeyIndexError),
    /// The sink's own words.
    #[error("{0}")]
    Sink(String),
}

/// Takes rows to write with their key hashes, for [`super::key_index::FileKeys::push`].
pub type Sink<'a> = dyn FnMut(RecordBatch, &[u128]) -> Result<(), String> + 'a;

/// Keys replaced or removed that are held at a time: about 64 MiB.
const CORRECTED_AT_ONCE: usize = 1 << 20;
/// Keys looked up at a time.
const LOOKUP_KEYS: usize = 1 << 16;
/// An ordinal is a change's number above, a row's number in it below.
const ROW_BITS: u32 = 40;

/// Folds `changes` and hands the rows to write to `sink`, in the order of the log as far as a key
/// is concerned. The rows of `changes` are read two times or three; when more than a million keys
/// are replaced or removed, once more for each million. Nothing is deleted when this errors: the
/// answer is what deletes.
pub fn resolve(changes: &[KeyedChange<'_>], index: &mut KeyIndex, sink: &mut Sink<'_>) -> Result<Resolved, ResolveError> {
    resolve_within(changes, index, sink, CORRECTED_AT_ONCE)
}

/// Keys whose hashes begin alike: a share of all keys that is small enough to be held.
#[derive(Clone, Copy)]
struct Share {
    bits: u32,
    number: u128,
}

impl Share {
    fn holds(self, hash: u128) -> bool {
        self.bits == 0 || hash >> (128 - self.bits) == self.number
    }
}

fn resolve_within(changes: &[KeyedChange<'_>], index: &mut KeyIndex, sink: &mut Sink<'_>, at_once: usize) -> Result<Resolved, ResolveError> {
    let mut resolved = Resolved::default();
    let mut share = Share { bits: 0, number: 0 };
    loop {
        let last = last_changes(changes, index, &mut share, at_once)?;
        look_up(&last, index, &mut resolved)?;
        write(changes, index, share, &last, &mut resolved, sink)?;
        if share.number + 1 == 1 << share.bits {
            return Ok(resolved);
        }
        share.number += 1;
    }
}

/// For every key of the share that is replaced or removed, its last change of whatever kind.
/// Halves the share until its keys fit.
fn last_changes(changes: &[KeyedChange<'_>], index: &KeyIndex, share: &mut Share, at_once: usize) -> Result<HashMap<u128, u64>, ResolveError> {
    let mut last: HashMap<u128, u64> = HashMap::new();
    for_rows(changes, |op| op != ChangeOp::Insert, |_, batch, first| {
        for (row, hash) in index.hashes(&batch)?.into_iter().enumerate() {
            if share.holds(hash) {
                last.insert(hash, first + row as u64);
            }
        }
        while last.len() > at_once.max(1) && share.bits < 64 {
            *share = Share { bits: share.bits + 1, number: share.number * 2 };
            last.retain(|hash, _| share.holds(*hash));
        }
        Ok(())
    })?;
    if !last.is_empty() {
        for_rows(changes, |op| op == ChangeOp::Insert, |_, batch, first| {
            for (row, hash) in index.hashes(&batch)?.into_iter().enumerate() {
                if let Some(ordinal) = last.get_mut(&hash) {
                    *ordinal = (*ordinal).max(first + row as u64);
                }
            }
            Ok(())
        })?;
    }
    Ok(last)
}

fn look_up(last: &HashMap<u128, u64>, index: &mut KeyIndex, resolved: &mut Resolved) -> Result<(), ResolveError> {
    let mut keys: Vec<u128> = last.keys().copied().collect();
    keys.sort_unstable();
    for keys in keys.chunks(LOOKUP_KEYS) {
        for row in index.find(keys)? {
            match row {
                Some((path, position)) => match resolved.delete.get_mut(&*path) {
                    Some(positions) => _ = positions.insert(position),
                    None => _ = resolved.delete.insert(path.to_string(), [position].into_iter().collect()),
                },
                None => resolved.keys_not_found += 1,
            }
        }
    }
    Ok(())
}

fn write(changes: &[KeyedChange<'_>], index: &KeyIndex, share: Share, last: &HashMap<u128, u64>, resolved: &mut Resolved, sink: &mut Sink<'_>) -> Result<(), ResolveError> {
    for_rows(changes, |_| true, |op, batch, first| {
        let mut hashes = index.hashes(&batch)?;
        let ours = |hash: &u128| share.holds(*hash);
        let given = hashes.iter().filter(|h| ours(h)).count();
        if op == ChangeOp::Remove {
            resolved.rows_dropped += given as u64;
            return Ok(());
        }
        let keep = |(row, hash): (usize, &u128)| ours(hash) && last.get(hash).is_none_or(|ordinal| *ordinal == first + row as u64);
        let kept: Vec<bool> = hashes.iter().enumerate().map(keep).collect();
        let count = kept.iter().filter(|k| **k).count();
        resolved.rows_written += count as u64;
        resolved.rows_dropped += (given - count) as u64;
        if count == 0 {
            return Ok(());
        }
        if count == kept.len() {
            return sink(batch, &hashes).map_err(ResolveError::Sink);
        }
        let mut kept_too = kept.iter();
        hashes.retain(|_| kept_too.next().copied().unwrap_or(false));
        let batch = filter_record_batch(&batch, &BooleanArray::from(kept)).map_err(|e| ResolveError::Rows(e.to_string()))?;
        sink(batch, &hashes).map_err(ResolveError::Sink)
    })
}

/// Calls `each` with every batch of the changes that `which` names, and its first row's ordinal.
fn for_rows(
    changes: &[KeyedChange<'_>],
    which: impl Fn(ChangeOp) -> bool,
    mut each: impl FnMut(ChangeOp, RecordBatch, u64) -> Result<(), ResolveError>,
) -> Result<(), ResolveError> {
    for (number, change) in changes.iter().enumerate().filter(|(_, c)| which(c.op)) {
        let mut row = 0_u64;
        for batch in change.rows.batches() {
            let batch = batch.map_err(ResolveError::Rows)?;
            let rows = batch.num_rows() as u64;
            if number >> (64 - ROW_BITS) != 0 || (row + rows) >> ROW_BITS != 0 {
                return Err(ResolveError::Rows(format!("expected at most 2^24 changes of 2^40 rows each, found more in change {number}: commit more often")));
            }
            each(change.op, batch, ((number as u64) << ROW_BITS) + row)?;
            row += rows;
        }
    }
    Ok(())
}
