//! Every verdict about an entry, as a pure function. No I/O, no clock.
//!
//! | answer to the put of entry N | read back        | checkpoint with M >= N | verdict            |
//! |------------------------------|------------------|------------------------|--------------------|
//! | any                          | any              | yes                    | start over         |
//! | created                      | not needed       | no                     | decided            |
//! | anything else                | my attempt       | no                     | decided            |
//! | anything else                | another attempt  | no                     | lost: read the log, propose as N+1 if it still fits |
//! | anything else                | nothing there    | no                     | send the same bytes again |
//! | anything else                | unreadable       | unknown                | ask again, append nothing, delete nothing |
//!
//! `AlreadyExists` is not a verdict: it may be our own put, sent twice by a client, or a conflict
//! answer that wrote nothing. And no answer about N, success included, is one when the log holds a
//! checkpoint with M at or above N: truncation has freed the name (`model/`, rules TrustSuccess,
//! TrustLoss).

use super::entry::{Body, CheckpointRef, Entry, Note};
use super::ledger::Ledger;
use crate::mutant::{self, Mutant};
use uuid::Uuid;

/// What a put of entry N was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutAnswer {
    Created,
    /// An error of any kind, `AlreadyExists` included.
    NotClean,
}

/// What reading entry N back showed, after an answer that was not clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBack {
    Attempt(Uuid),
    Absent,
    Unreadable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Decided,
    Lost,
    SendAgain,
    AskAgain,
    /// Nothing is known about this work any more: drop it, read the log from the start, delete nothing.
    StartOver,
}

/// The table above. `newest` is the newest checkpoint found by listing from N after the answer,
/// `Err` when that listing failed.
pub fn verdict(at: u64, mine: Uuid, answer: PutAnswer, read_back: Option<ReadBack>, newest: Result<Option<CheckpointRef>, ()>) -> Verdict {
    let Ok(newest) = newest else { return Verdict::AskAgain };
    if newest.is_some_and(|c| c.upto >= at) && !mutant::on(Mutant::FreedNameDecides) {
        return Verdict::StartOver;
    }
    match (answer, read_back) {
        (PutAnswer::Created, _) => Verdict::Decided,
        (PutAnswer::NotClean, Some(ReadBack::Attempt(_))) if mutant::on(Mutant::TakenMeansWon) => Verdict::Decided,
        (PutAnswer::NotClean, Some(ReadBack::Attempt(a))) if a == mine && !mutant::on(Mutant::TakenMeansLost) => Verdict::Decided,
        (PutAnswer::NotClean, Some(ReadBack::Attempt(_))) => Verdict::Lost,
        (PutAnswer::NotClean, Some(ReadBack::Absent)) => Verdict::SendAgain,
        (PutAnswer::NotClean, Some(ReadBack::Unreadable) | None) => Verdict::AskAgain,
    }
}

/// Why an entry may not be appended to the log as it is now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it was made for another log ({0})")]
    OtherLog(Uuid),
    #[error("it was made under plan {made}, the newest is {newest}")]
    Plan { made: u64, newest: u64 },
    #[error("its work began before entry {began} was read, and the newest checkpoint holds the state as of entry {upto}")]
    BeganBelowCheckpoint { began: u64, upto: u64 },
    #[error("attempt {0} is condemned: its files may be gone")]
    Condemned(Uuid),
    #[error("{source_name} partition {partition}: it starts at offset {from}, the log stands at {position}")]
    Position { source_name: String, partition: i32, from: i64, position: i64 },
    #[error("{source_name} partition {partition}: offsets {from}..{to} run backwards")]
    Backwards { source_name: String, partition: i32, from: i64, to: i64 },
    #[error("{source_name} partition {partition} is {found}, the log knows it as {known}")]
    Name { source_name: String, partition: i32, found: String, known: String },
    #[error("the watermark of {source_name} has passed the bound that it was staged under")]
    Bound { source_name: String },
    #[error("source {0} is not in the plan")]
    UnknownSource(String),
    #[error("a checkpoint as of entry {upto} does not rise above the newest one, as of {newest}")]
    CheckpointFalls { upto: u64, newest: u64 },
    #[error("a checkpoint that was begun at entry {began} has not seen the newest one, entry {newest}: runs that it names may have been merged and removed")]
    CheckpointUnseen { began: u64, newest: u64 },
    #[error("{source_name} partition {partition} stands at {position}, the end of input is {end}")]
    EndNotReached { source_name: String, partition: i32, position: i64, end: i64 },
    #[error("attempt {0} is in the log: it cannot be condemned")]
    CondemnsDecided(Uuid),
    #[error("the log has a first entry already")]
    BirthTaken,
}

/// May `entry` be the next one? Asked before every proposal, and again after every entry that
/// came in between.
pub fn fits(ledger: &Ledger, entry: &Entry) -> Result<(), Unfit> {
    if entry.log != ledger.log {
        return Err(Unfit::OtherLog(entry.log));
    }
    if let Body::Plan(plan) = &entry.body {
        return match plan.replaces {
            None => Err(Unfit::BirthTaken),
            Some(replaced) if replaced != ledger.plan_entry => Err(Unfit::Plan { made: replaced, newest: ledger.plan_entry }),
            Some(_) => Ok(()),
        };
    }
    let upto = ledger.checkpoint.map(|c| c.upto);
    // Work that began at M has not seen entry M, and nobody can see it any more (`model/`, OldWork, OldCondemnation).
    if let Some(upto) = upto.filter(|&upto| entry.began <= upto && !mutant::on(Mutant::OldWorkFits)) {
        return Err(Unfit::BeganBelowCheckpoint { began: entry.began, upto });
    }
    if ledger.condemned.contains_key(&entry.attempt) && !mutant::on(Mutant::CondemnedProposed) {
        return Err(Unfit::Condemned(entry.attempt));
    }
    match &entry.body {
        Body::Data(data) => fits_data(ledger, entry, data),
        Body::Checkpoint(checkpoint) => match ledger.checkpoint {
            Some(newest) if checkpoint.upto <= newest.upto => Err(Unfit::CheckpointFalls { upto: checkpoint.upto, newest: newest.upto }),
            // Its runs are those of the checkpoint before, and who wrote the newest has removed what it merged
            // (`model/`, CheckpointsOnNewest).
            Some(newest) if entry.began <= newest.entry => Err(Unfit::CheckpointUnseen { began: entry.began, newest: newest.entry }),
            _ => Ok(()),
        },
        Body::Note(Note::EndOfInput { ends }) => {
            if entry.plan != ledger.plan_entry {
                return Err(Unfit::Plan { made: entry.plan, newest: ledger.plan_entry });
            }
            for (source, ends) in ends {
                for (&partition, &end) in ends {
                    let position = ledger.position(source, partition).unwrap_or(0);
                    if position < end {
                        return Err(Unfit::EndNotReached { source_name: source.clone(), partition, position, end });
                    }
                }
            }
            Ok(())
        }
        Body::Note(Note::Condemned { attempts }) => match attempts.iter().find(|a| ledger.attempts.values().any(|decided| decided == *a)) {
            Some(decided) => Err(Unfit::CondemnsDecided(*decided)),
            None => Ok(()),
        },
        Body::Plan(_) => Ok(()),
    }
}

fn fits_data(ledger: &Ledger, entry: &Entry, data: &super::entry::Data) -> Result<(), Unfit> {
    if entry.plan != ledger.plan_entry && !mutant::on(Mutant::OldPlanFits) {
        return Err(Unfit::Plan { made: entry.plan, newest: ledger.plan_entry });
    }
    for (name, intervals) in &data.intervals {
        let source = ledger.sources.get(name).ok_or_else(|| Unfit::UnknownSource(name.clone()))?;
        for (&partition, interval) in intervals {
            let source_name = || name.clone();
            let (from, to) = (interval.from, interval.to);
            if to < from {
                return Err(Unfit::Backwards { source_name: source_name(), partition, from, to });
            }
            // A partition that the log does not know starts at its beginning, wherever that is.
            let Some(known) = source.partitions.get(&partition) else { continue };
            if from != known.offset && !mutant::on(Mutant::AnyPositionFits) {
                return Err(Unfit::Position { source_name: source_name(), partition, from, position: known.offset });
            }
            if let (Some(found), Some(known)) = (&interval.name, &known.name)
                && found != known
            {
                return Err(Unfit::Name { source_name: source_name(), partition, found: found.clone(), known: known.clone() });
            }
        }
    }
    for (name, bound) in &data.bounds {
        let source = ledger.sources.get(name).ok_or_else(|| Unfit::UnknownSource(name.clone()))?;
        if source.watermark > *bound && !mutant::on(Mutant::ExpiredBoundFits) {
            return Err(Unfit::Bound { source_name: name.clone() });
        }
    }
    Ok(())
}
