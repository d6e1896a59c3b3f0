//! Millpond carries Kafka topics into Iceberg and Delta tables, exactly once.
//!
//! The modules stand in the order in which a record meets them. The epoch log parts them in two
//! halves that know nothing of each other: the ingest half appends facts to the log, the table
//! half is a deterministic function of the log.
//!
//! ```text
//!  INGEST half (one per worker, holds no state)        the log          TABLE half (a fold over the log)
//!  source ─► decode ─► transform ─► partial ─► stage ─────────► epoch ────────► fold ─► commit
//!  records   columns   rows         runs       durable files    decided         rows    tables
//! ```
//!
//! A module imports only modules above it. The single back-edge, at run time only, is the receipt
//! by which the committed tables release what the sources still hold.

pub mod console;

pub mod failpoint;

pub mod runtime;

pub mod mutant;

pub mod observe;

pub mod store;

pub mod pipeline;

pub mod source;

pub mod decode;

pub mod run;

pub mod transform;

pub mod time;

pub mod partial;

pub mod stage;

pub mod epoch;

pub mod fold;

pub mod read;

pub mod commit;

pub mod maintain;

pub mod verify;

pub mod worker;

pub mod cli;

/// The tests run on the allocator that `millpond` runs on: it is a good part of how fast the simulation is.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;
