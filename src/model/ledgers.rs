//! What the worlds write to a log, in few bytes, and the real [`Ledger`] that it adds up to.
//!
//! A rule is switched off by changing what the real functions are given (`doctored`), never the
//! functions: the sound worlds run on [`fits`] and [`Ledger::apply`] as they are.

use super::file;
use super::search::hash_of;
use crate::epoch::checkpoint::Checkpoint;
use crate::epoch::decide::fits;
use crate::epoch::entry::{self as real, Body, CheckpointRef, Data, Interval, Note, RunEntry, RunObject};
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::epoch::tests::{birth_of, entry};
use crate::partial::RunKind;
use crate::stage::runs::RunRef;
use hashbrown::HashTable;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use uuid::Uuid;

pub const PARTITIONS: usize = 2;

/// A set of attempts, a bit for each.
pub type Attempts = u32;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Entry {
    pub attempt: u8,
    /// How long the log was when the work began, and its newest plan then.
    pub began: u8,
    pub plan: u8,
    pub kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    Birth,
    /// With a bit of `claims` for each partition that is claimed idle at `from`.
    Data { from: [u8; PARTITIONS], to: [u8; PARTITIONS], claims: u8 },
    Plan { replaces: u8 },
    /// Folded from the checkpoint that is entry `base` (0: from birth), its runs merged into one or not.
    Checkpoint { upto: u8, base: u8, merged: bool },
    Condemned { attempts: Attempts },
}

/// What is left out of the rules about entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Without {
    Nothing,
    /// A condemnation is not compared with the newest M by when it began; or data is not, and a checkpoint
    /// ends the condemnations that it covers.
    BeganCondemned,
    BeganData,
    /// A checkpoint may have an M below the newest.
    RisingCheckpoints,
    /// A checkpoint may be made without a look at the newest one.
    CheckpointsOnNewest,
    /// A condemned attempt may be decided.
    Condemned,
    /// A checkpoint ends all condemnations, those of entries above its M too.
    CondemnedAboveM,
    /// A condemnation is not compared with the attempts of the log.
    CondemnsUndecided,
    /// A plan replaces whichever is the newest.
    PlanReplaces,
    /// Data is taken under whichever plan is the newest.
    PlanOfData,
    /// An idle claim is not compared with the position.
    Claims,
}

const TABLE: &str = "sums";

/// States of logs, as the real code folds them. Kept, since the same logs come up over and over.
pub struct Ledgers {
    without: Without,
    birth: real::Entry,
    known: RefCell<HashTable<(Vec<Entry>, Folded)>>,
}

/// `Err` when the log's own readers refuse it.
pub type Folded = Rc<Result<Ledger, String>>;

/// States kept at most.
const KEPT: usize = 20_000;

impl Ledgers {
    pub fn new(without: Without) -> Self {
        Self { without, birth: birth_of(&file("1m", "5 minutes", "[iceberg, delta]"), PARTITIONS as i32), known: RefCell::new(HashTable::new()) }
    }

    /// The state after the last entry of `log`, folded from birth.
    pub fn after(&self, log: &[Entry]) -> Folded {
        let hash = hash_of(&log);
        if let Some((_, folded)) = self.known.borrow().find(hash, |(l, _)| l == log) {
            return folded.clone();
        }
        let folded = Rc::new(self.fold(log));
        let mut known = self.known.borrow_mut();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert_unique(hash, (log.to_vec(), folded.clone()), |(l, _)| hash_of(&l.as_slice()));
        folded
    }

    fn fold(&self, log: &[Entry]) -> Result<Ledger, String> {
        let Some((last, below)) = log.split_last().filter(|(_, below)| !below.is_empty()) else {
            return Ledger::born(&self.birth).map_err(|e| e.to_string());
        };
        let mut ledger = (*self.after(below)).clone()?;
        self.apply(&mut ledger, log, last)?;
        // Who starts at the newest checkpoint comes to the same state, whatever it holds.
        let newest = newest(log).map_or(0, |c| c.entry as u8);
        let read = self.read(log, newest, log.len() - 1)?;
        if read != ledger && self.without == Without::Nothing {
            return Err(format!("from its newest checkpoint the log adds up to {read:?}, from its birth to {ledger:?}"));
        }
        Ok(ledger)
    }

    /// The state after entry `upto`, read from the checkpoint that is entry `base`.
    pub fn read(&self, log: &[Entry], base: u8, upto: usize) -> Result<Ledger, String> {
        let Kind::Checkpoint { upto: m, .. } = log[base as usize].kind else {
            let mut ledger = Ledger::born(&self.birth).map_err(|e| e.to_string())?;
            for n in 1..=upto {
                self.apply(&mut ledger, log, &log[n])?;
            }
            return Ok(ledger);
        };
        let mut ledger = self.checkpointed(log, &log[base as usize])?;
        for entry in &log[m as usize + 1..=upto] {
            self.apply(&mut ledger, log, entry)?;
        }
        Ok(ledger)
    }

    /// The state that a checkpoint of `log` holds.
    fn checkpointed(&self, log: &[Entry], entry: &Entry) -> Result<Ledger, String> {
        let Kind::Checkpoint { upto, base, merged } = entry.kind else { return Err("it is no checkpoint".into()) };
        let mut ledger = self.read(log, base, upto as usize)?;
        if merged && let Some(runs) = ledger.runs.get_mut(TABLE) {
            let first = runs.first().map_or(0, |r| r.entry);
            let one = LiveRun { entry: first, nth: 0, object: object(entry.attempt), run: run(), horizon_before: None };
            *runs = vec![one];
        }
        ledger.runs_as_of = upto as u64;
        Ok(ledger)
    }

    fn apply(&self, ledger: &mut Ledger, log: &[Entry], entry: &Entry) -> Result<(), String> {
        let real = self.real(log, entry, ledger)?;
        let before = ledger.condemned.clone();
        let doctored = self.doctored(ledger, real);
        ledger.apply(&doctored).map_err(|e| e.to_string())?;
        match (self.without, entry.kind) {
            (Without::Condemned, _) => ledger.condemned.extend(before),
            (Without::CondemnedAboveM, Kind::Checkpoint { .. }) => ledger.condemned.clear(),
            (Without::BeganData, Kind::Checkpoint { upto, .. }) => {
                let kept = log[upto as usize + 1..].iter().filter_map(|e| if let Kind::Condemned { attempts } = e.kind { Some(attempts) } else { None });
                let kept: Attempts = kept.fold(0, |all, a| all | a);
                ledger.condemned.retain(|a, _| ids(kept).any(|k| k == *a));
            }
            (Without::CondemnsUndecided, Kind::Condemned { attempts }) => {
                let note = ledger.next - 1;
                ledger.condemned.extend(ids(attempts).map(|a| (a, note)));
            }
            _ => {}
        }
        Ok(())
    }

    /// May `entry` follow this log?
    pub fn fits(&self, log: &[Entry], entry: &Entry) -> bool {
        let folded = self.after(log);
        let Ok(ledger) = folded.as_ref() else { return false };
        // The ledger in a checkpoint is not looked at, and costs most.
        let Ok(real) = self.real(log, entry, ledger) else { return false };
        if self.without == Without::Nothing {
            return fits(ledger, &real).is_ok();
        }
        let mut ledger = ledger.clone();
        let doctored = self.doctored(&mut ledger, real);
        fits(&ledger, &doctored).is_ok()
    }

    fn doctored(&self, ledger: &mut Ledger, mut entry: real::Entry) -> real::Entry {
        match (self.without, &mut entry.body) {
            (Without::BeganData, Body::Data(_)) | (Without::BeganCondemned, Body::Note(_)) => entry.began = ledger.next,
            (Without::RisingCheckpoints, Body::Checkpoint(_)) => ledger.checkpoint = None,
            (Without::CheckpointsOnNewest, Body::Checkpoint(_)) => entry.began = ledger.next,
            (Without::Condemned, _) => {
                ledger.condemned.remove(&entry.attempt);
            }
            (Without::CondemnsUndecided, Body::Note(Note::Condemned { attempts })) => {
                entry.began = ledger.next;
                attempts.clear();
            }
            (Without::PlanReplaces, Body::Plan(plan)) => plan.replaces = Some(ledger.plan_entry),
            (Without::PlanOfData, Body::Data(_)) => entry.plan = ledger.plan_entry,
            (Without::Claims, Body::Data(data)) => data.intervals.values_mut().for_each(|i| i.retain(|_, i| !i.claims_idle())),
            _ => {}
        }
        entry
    }

    fn real(&self, log: &[Entry], code: &Entry, ledger: &Ledger) -> Result<real::Entry, String> {
        let body = match code.kind {
            Kind::Birth => self.birth.body.clone(),
            Kind::Data { from, to, claims } => Body::Data(data(code.attempt, from, to, claims)),
            Kind::Plan { replaces } => Body::Plan(real::Plan { replaces: Some(replaces as u64), ..ledger.plan.clone() }),
            Kind::Checkpoint { upto, .. } => Body::Checkpoint(Checkpoint { upto: upto as u64, ledger: Box::new(self.checkpointed(log, code)?), stamps: Default::default() }),
            Kind::Condemned { attempts } => Body::Note(Note::Condemned { attempts: ids(attempts).collect() }),
        };
        Ok(entry(id(code.attempt).as_u128(), code.plan as u64, code.began as u64, body))
    }

    /// The object that is written when this is proposed as entry `at` of the log.
    pub fn written(&self, log: &[Entry], at: u8, entry: &Entry) -> Result<real::Entry, String> {
        let below = &log[..at as usize];
        if at == 0 {
            return Ok(self.birth.clone());
        }
        let folded = self.after(below);
        let made = self.real(log, entry, folded.as_ref().as_ref().map_err(|e| e.clone())?)?;
        Ok(real::Entry { checkpoint: newest(below), ..made })
    }

    /// The attempts above the newest M that the log holds.
    pub fn attempts(&self, log: &[Entry]) -> Attempts {
        let folded = self.after(log);
        folded.as_ref().as_ref().map_or(0, |l| l.attempts.values().map(|a| 1 << (a.as_u128() - 100)).sum())
    }

    /// The attempts whose run objects are needed by whoever reads this log from its newest checkpoint.
    pub fn runs_needed(&self, log: &[Entry]) -> Attempts {
        let at = newest(log).map_or(0, |c| c.entry as u8);
        let (start, first) = match log[at as usize].kind {
            Kind::Checkpoint { upto, .. } => (self.checkpointed(log, &log[at as usize]), upto as usize + 1),
            _ => (self.read(log, 0, 0), 1),
        };
        let staged = log[first..].iter().filter(|e| e.moves()).map(|e| 1 << e.attempt).sum::<Attempts>();
        staged | start.map_or(0, |l| objects(&l))
    }

    /// The run objects that are removed once this checkpoint is decided: what was merged.
    pub fn runs_replaced(&self, log: &[Entry], checkpoint: &Entry) -> Attempts {
        let Kind::Checkpoint { upto, base, merged: true } = checkpoint.kind else { return 0 };
        let (before, after) = (self.read(log, base, upto as usize), self.checkpointed(log, checkpoint));
        before.map_or(0, |l| objects(&l)) & !after.map_or(0, |l| objects(&l))
    }
}

impl Entry {
    /// Brings rows.
    pub fn moves(&self) -> bool {
        matches!(self.kind, Kind::Data { from, to, .. } if from != to)
    }
}

/// The newest checkpoint of a log.
pub fn newest(log: &[Entry]) -> Option<CheckpointRef> {
    let at = log.iter().rposition(|e| matches!(e.kind, Kind::Checkpoint { .. }))?;
    let Kind::Checkpoint { upto, .. } = log[at].kind else { return None };
    Some(CheckpointRef { entry: at as u64, upto: upto as u64 })
}

pub fn id(attempt: u8) -> Uuid {
    Uuid::from_u128(100 + attempt as u128)
}

fn ids(attempts: Attempts) -> impl Iterator<Item = Uuid> {
    (0..32).filter(move |a| attempts >> a & 1 == 1).map(id)
}

fn object(attempt: u8) -> String {
    attempt.to_string()
}

fn objects(ledger: &Ledger) -> Attempts {
    let of = |r: &LiveRun| r.object.parse::<u8>().expect("run objects are named by their attempts");
    ledger.runs.values().flatten().fold(0, |set, r| set | 1 << of(r))
}

fn run() -> RunEntry {
    let run = RunRef { table: TABLE.into(), kind: RunKind::Partial { window_start_us: 0 }, rows: 1, offset: 0, length: 1 };
    RunEntry { run, last_window_end_us: i64::MAX }
}

fn data(attempt: u8, from: [u8; PARTITIONS], to: [u8; PARTITIONS], claims: u8) -> Data {
    let mut intervals = BTreeMap::new();
    for p in (0..PARTITIONS).filter(|&p| from[p] < to[p] || claims >> p & 1 == 1) {
        let interval = Interval { from: from[p] as i64, to: to[p] as i64, leader_epoch: 0, max_event_us: None, name: None };
        intervals.insert(p as i32, interval);
    }
    let runs = (from != to).then(|| RunObject { path: object(attempt), bytes: 1, runs: vec![run()] });
    Data { intervals: [("events".to_string(), intervals)].into(), bounds: [("events".to_string(), None)].into(), runs, ..Default::default() }
}
