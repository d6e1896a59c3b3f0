//! Evaluates expressions over rows of people's data, whose functions may panic.

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::PhysicalExpr;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Once};

thread_local! {
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, in which a panic is an error like any other: some functions of DataFusion have one for arguments that they did
/// not expect. Nothing is printed of it.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    done.unwrap_or_else(|what| {
        let text = what.downcast_ref::<String>().map(String::as_str).or(what.downcast_ref::<&str>().copied());
        Err(DataFusionError::Execution(format!("a function of the SQL cannot compute this: {}", text.unwrap_or("it gave no reason"))))
    })
}

/// The values of an expression for these rows.
///
/// # Errors
/// Some row has none.
pub(crate) fn values(expr: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef> {
    caught(|| expr.evaluate(batch)?.into_array(batch.num_rows()))
}
