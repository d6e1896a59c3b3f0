//! The epoch log: which work counts, and in which order.
//!
//! One object per entry, written with create-if-absent. That put is the point of no return: it
//! decides an epoch, orders it and fences every stale writer (I5). [`decide`] holds every verdict
//! as a pure function; [`log`] performs the puts and reads; [`ledger`] is what the entries add up
//! to; [`checkpoint`] keeps the log short, [`history`] what that takes away.

pub mod checkpoint;
pub mod decide;
pub mod entry;
pub mod history;
pub mod ledger;
pub mod log;
pub mod plan;

#[cfg(test)]
pub(crate) mod protocol_tests;
#[cfg(test)]
pub(crate) mod tests;
