//! The plan of a table's SQL, split at the aggregate.
//!
//! ```text
//!   source columns ─► below (filter, project: row by row) ─► aggregate ─► above (row by row) ─► table
//! ```
