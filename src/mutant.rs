//! Bugs that a test can switch on, to show that the simulation would find them.
//!
//! Each stands in the code where the rule that it breaks is kept. Outside of tests [`on`] is the
//! constant `false`, and nothing of them is compiled. The switch belongs to a thread: a seed runs
//! on one, and other tests beside it are not touched.

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A worker's ids begin again when it is started again.
    EpochsReusedAfterRestart,
}

#[cfg(test)]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Is this bug switched on, in this thread?
    pub fn on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// Switches a bug on, or all off, in this thread.
    pub fn switch(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}

#[cfg(test)]
pub use switch::{on, switch};

/// Is this bug switched on? Only ever in tests.
#[cfg(not(test))]
#[inline(always)]
pub const fn on(_: Mutant) -> bool {
    false
}
