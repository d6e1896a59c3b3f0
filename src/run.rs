//! A run: what one epoch adds to one window of a table, or the rows that it leaves to judge.
//!
//! The ingest half makes runs, stages them and names them in the log; the table half merges them. They share this form and
//! nothing else.

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

/// What one epoch adds to one window of one table, or the rows that it leaves to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub table: String,
    pub kind: RunKind,
    /// [`Aggregate::run`](crate::pipeline::sql::Aggregate::run) with each key once, or
    /// [`TablePlan::judge_later_schema`](crate::pipeline::sql::TablePlan::judge_later_schema) in the order of the rows.
    pub batch: RecordBatch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    Partial { window_start_us: i64 },
    JudgeLater,
}
