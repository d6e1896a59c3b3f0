//! Every integration test, in one binary: each further binary would link DataFusion once more.

mod cleaning;
mod cli;
mod dead_letters;
mod flights_year;
mod iceberg_readers;
mod kills;
mod resources;
mod kafka_source;
mod pipeline_change;
mod running_example;
mod support;
mod two_workers;
