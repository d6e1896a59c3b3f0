//! A run: what one epoch adds to some windows of a table, or the rows that it leaves to judge.
//!
//! The ingest half makes runs, stages them and names them in the log; the table half merges them. They share this form and
//! nothing else.

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

/// What one epoch adds to some windows of one table, or the rows that it leaves to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub table: String,
    pub kind: RunKind,
    /// [`Aggregate::run`](crate::pipeline::sql::Aggregate::run) with each key once; of several windows, in their order, with
    /// the window's start before the other columns; or
    /// [`TablePlan::judge_later_schema`](crate::pipeline::sql::TablePlan::judge_later_schema) in the order of the rows.
    pub batch: RecordBatch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    Partial { window_start_us: i64 },
    /// Many windows of few rows: one by one, each would take more room in the log than its rows do.
    Windows { first_start_us: i64, last_start_us: i64 },
    JudgeLater,
}

impl RunKind {
    /// Starts of the first and the last window that it has rows of; `None` where only the rows know.
    pub fn windows(self) -> Option<(i64, i64)> {
        match self {
            Self::Partial { window_start_us } => Some((window_start_us, window_start_us)),
            Self::Windows { first_start_us, last_start_us } => Some((first_start_us, last_start_us)),
            Self::JudgeLater => None,
        }
    }
}
