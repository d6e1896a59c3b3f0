//! Receipts: the one back-edge. What every format of every table holds, the sources may let go of.
//!
//! Only the table half makes a receipt, from the stamps that it read or wrote; only a receipt
//! releases source progress. What a source does with it (Kafka's group offsets) is for lag tools:
//! reading always starts where the log says.

use super::sources::Command;
use crate::epoch::entry::{Body, ByPartition, Entry};
use crate::epoch::ledger::Ledger;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Every format of every table holds all entries up to this one, which is to say: these offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    entry: u64,
    offsets: ByPartition<i64>,
}

impl Receipt {
    /// `passed`: the highest entry with nothing left to do for any table. `at`: the log's state where the fold stands;
    /// `recent`: the entries on the way there, at least those above `passed`.
    pub(super) fn new<'a>(passed: u64, at: &Ledger, recent: impl DoubleEndedIterator<Item = &'a (u64, Arc<Entry>)>) -> Self {
        let mut offsets = at.positions();
        for (_, entry) in recent.rev().take_while(|(seq, _)| *seq > passed) {
            let Body::Data(data) = &entry.body else { continue };
            for (source, intervals) in &data.intervals {
                let of = offsets.entry(source.clone()).or_default();
                of.extend(intervals.iter().map(|(partition, interval)| (*partition, interval.from)));
            }
        }
        Self { entry: passed, offsets }
    }

    pub fn entry(&self) -> u64 {
        self.entry
    }
}

/// The way of receipts to the sources.
#[derive(Clone, Default)]
pub struct Receipts {
    sources: Vec<(String, mpsc::UnboundedSender<Command>)>,
}

impl Receipts {
    pub fn to(sources: Vec<(String, mpsc::UnboundedSender<Command>)>) -> Self {
        Self { sources }
    }

    /// Releases the progress that the receipt proves. A source that has ended needs no telling.
    pub fn give(&self, receipt: &Receipt) {
        for (name, commands) in &self.sources {
            if let Some(offsets) = receipt.offsets.get(name) {
                let _ = commands.send(Command::Committed(offsets.clone()));
            }
        }
    }
}
