//! Bugs that a test can switch on, to show that the simulation would find them.
//!
//! Each stands in the code where the rule that it breaks is kept. Outside of tests [`on`] is the
//! constant `false`, and nothing of them is compiled. The switch belongs to a thread: a seed runs
//! on one, and other tests beside it are not touched.

use uuid::Uuid;

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// `AlreadyExists` is taken for a loss, also where our own attempt lies there.
    TakenMeansLost,
    /// `AlreadyExists` is taken for our own put, whoever's attempt lies there.
    TakenMeansWon,
    /// A create that landed on a name that truncation freed is taken for a decision.
    FreedNameDecides,
    /// Work that began at or below the newest checkpoint's M is proposed.
    OldWorkFits,
    /// An attempt that the log condemns is proposed.
    CondemnedProposed,
    /// Work made under a plan that was replaced is proposed.
    OldPlanFits,
    /// Intervals need not start where the log stands.
    AnyPositionFits,
    /// The bound may be below the watermark at the decision.
    ExpiredBoundFits,
    /// Entries do not name the newest checkpoint and its M.
    CheckpointForgotten,
    /// A reader does not list again after it has read.
    NoSecondList,
    /// The horizon is that of the newest watermark and lateness, not the highest so far.
    HorizonFalls,
    /// A partition that an entry does not mention counts as idle, as if an earlier claim still held.
    IdlenessCarriedOver,
    /// A partition is claimed idle because nothing was heard of it, wherever its end is.
    SilenceIsIdleness,
    /// Rows are judged by the horizon after their own entry.
    JudgedByOwnEntry,
    /// Judge-later rows all count.
    NothingIsJudged,
    /// Late rows go to the late table and count as well.
    LateRowsCountToo,
    /// What a table waits for is forgotten before the table has it.
    ReceiptBeforeCommit,
    /// A checkpoint's M does not wait for tables that lag.
    TruncatesBeforeSlowest,
    /// Runs of entries above M are merged into a checkpoint.
    MergedAcrossCheckpoint,
    /// Runs of a window are merged past one between them, which stays.
    MergedNotAsPrefix,
    /// After a commit that lost its base, the new base's stamp is not looked at.
    StampNotCheckedAgain,
    /// A commit whose answer was lost is made again without a look at the table.
    BlindRetry,
    /// The key index is not brought to the version that is committed against.
    IndexNotSynced,
    /// Deletes resolved before another engine's compaction are committed after it: those that hit no file any more
    /// are dropped.
    DeletesLostUnderCompaction,
    /// A table that was rolled back is committed to.
    RollbackIgnored,
    /// The cleaner deletes the files of attempts that it found nowhere, and condemns them then.
    DeletesBeforeCondemning,
    /// The cleaner deletes what a commit from the table's stamp may still bring.
    UnpassedStampDeleted,
    /// A worker's ids begin again when it is started again.
    EpochsReusedAfterRestart,
}

impl Mutant {
    /// All of them: the simulation finds each.
    pub const ALL: [Self; 28] = [
        Self::TakenMeansLost,
        Self::TakenMeansWon,
        Self::FreedNameDecides,
        Self::OldWorkFits,
        Self::CondemnedProposed,
        Self::OldPlanFits,
        Self::AnyPositionFits,
        Self::ExpiredBoundFits,
        Self::CheckpointForgotten,
        Self::NoSecondList,
        Self::HorizonFalls,
        Self::IdlenessCarriedOver,
        Self::SilenceIsIdleness,
        Self::JudgedByOwnEntry,
        Self::NothingIsJudged,
        Self::LateRowsCountToo,
        Self::ReceiptBeforeCommit,
        Self::TruncatesBeforeSlowest,
        Self::MergedAcrossCheckpoint,
        Self::MergedNotAsPrefix,
        Self::StampNotCheckedAgain,
        Self::BlindRetry,
        Self::IndexNotSynced,
        Self::DeletesLostUnderCompaction,
        Self::RollbackIgnored,
        Self::DeletesBeforeCondemning,
        Self::UnpassedStampDeleted,
        Self::EpochsReusedAfterRestart,
    ];
}

#[cfg(test)]
mod switch {
    use super::{Mutant, Uuid};
    use std::cell::{Cell, RefCell};

    type Witness = Box<dyn Fn(Uuid, Option<u64>)>;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
        static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
    }

    pub fn on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// Switches a bug on, or all off, in this thread.
    pub fn switch(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    /// Who hears in this thread what writers are told.
    pub fn listen(witness: Option<Witness>) {
        WITNESS.set(witness);
    }

    pub fn told(attempt: Uuid, decided: Option<u64>) {
        WITNESS.with_borrow(|w| {
            if let Some(witness) = w {
                witness(attempt, decided);
            }
        });
    }
}

#[cfg(test)]
pub use switch::{listen, on, switch, told};

/// Is this bug switched on? Only ever in tests.
#[cfg(not(test))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}

/// A writer was told that its attempt is this entry, or that it fits no more. The simulation listens.
#[cfg(not(test))]
#[inline(always)]
pub const fn told(_: Uuid, _: Option<u64>) {}
