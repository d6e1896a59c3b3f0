//! Every integration test, in one binary: each further binary would link DataFusion once more.

mod iceberg_readers;
mod support;
