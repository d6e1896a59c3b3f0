//! Object stores. Everything that the project writes goes through one [`object_store::ObjectStore`].
//!
//! What the epoch log and the committers need of a store: create-if-absent that only one of
//! several racers wins ([`probe`] refuses a store that fails it), reads that see every finished
//! write, and durable puts ([`local`] makes them so on local disk).

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod double;
pub mod local;
pub mod probe;
pub mod iceberg_io;
