//! Every integration test, in one binary: each further binary would link DataFusion once more.

mod kafka_source;
mod iceberg_readers;
mod kills;
mod resources;
mod support;
mod two_workers;
