//! What keeps a lake from growing without end beside its tables.
//!
//! [`orphans`] deletes files that no entry of the log and no table will ever name: what kills, stale
//! work and lost races leave behind.

pub mod orphans;

#[cfg(test)]
mod tests;
