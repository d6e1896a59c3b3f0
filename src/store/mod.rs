//! (filled next)

pub mod iceberg_io;
