//! Checkpoints: where a reader starts, so that the log can be short.

use super::ledger::Ledger;
use crate::pipeline::TableFormatKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that the entries up to and including `upto` add up to.
///
/// `upto` is never above the lowest stamp of any format of any table when it is written, so that
/// the newest checkpoint always serves a fold that must bring every table up, and entries at or
/// below it may be removed as soon as it is decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// M.
    pub upto: u64,
    /// The state before entry `upto + 1`.
    pub ledger: Box<Ledger>,
    /// The stamps that its writer had read from the tables, or written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stamps: Stamps,
}

/// Table to format to the entry that it is stamped with.
pub type Stamps = BTreeMap<String, BTreeMap<TableFormatKind, u64>>;

/// Whether a table that is stamped with `found` lacks entries that the log may not hold any more: it was
/// stamped with `held` when the checkpoint as of `upto` was written, and an older copy of it lies there now.
///
/// A stamp below M alone says nothing: nothing may have come for the table since.
pub fn lacks_entries(found: u64, held: u64, upto: u64) -> bool {
    found < held && found < upto
}

/// How far checkpoints trail the head, in entries, so that other workers' reads are not in vain.
pub const TRAIL: u64 = 12;

/// A checkpoint is worth writing when it moves M by this many entries.
pub const EVERY: u64 = 24;

/// How often the log is made short, in entries and runs.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    pub trail: u64,
    pub every: u64,
    /// A table's runs below a checkpoint are merged when there are more.
    pub most_runs: usize,
    /// And about so many rows of them at a time.
    pub merge_rows: u64,
}

impl Default for Cadence {
    fn default() -> Self {
        Self { trail: TRAIL, every: EVERY, most_runs: 256, merge_rows: 1 << 16 }
    }
}

/// M of a checkpoint written now, if one is worth writing: a head of `next`, the lowest effective
/// stamp of all formats of all tables, and the newest M.
pub fn upto(cadence: Cadence, next: u64, lowest_stamp: u64, newest: Option<u64>) -> Option<u64> {
    let upto = next.checked_sub(1 + cadence.trail)?.min(lowest_stamp);
    let moved = match newest {
        Some(newest) => upto.checked_sub(newest)?,
        None => upto,
    };
    (moved >= cadence.every).then_some(upto)
}
