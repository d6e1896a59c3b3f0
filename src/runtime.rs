//! Blocking work under either kind of tokio runtime.
//!
//! Production has many threads, and work that blocks must not hold up what else waits for one.
//! The seeded simulation has a single one, on which all work is done where it is asked for: what
//! another thread did, it would do at a moment that no seed decides.

use tokio::runtime::{Handle, RuntimeFlavor};

fn one_thread() -> bool {
    Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::CurrentThread)
}

/// Does work that takes long on this thread, and lets another take over what else it had to do.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    if one_thread() { work() } else { tokio::task::block_in_place(work) }
}

/// Does work that blocks on a thread made for that.
///
/// # Errors
/// The work panicked, or the runtime ends.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, tokio::task::JoinError> {
    if one_thread() { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}

/// Waits for work of a library that has threads of its own. Where there is a single thread, all else waits, too.
///
/// # Errors
/// The work panicked, or nothing could be started for it.
pub async fn apart<T: Send>(work: impl Future<Output = T> + Send) -> Result<T, String> {
    if !one_thread() {
        return Ok(work.await);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    std::thread::scope(|scope| scope.spawn(move || runtime.block_on(work)).join()).map_err(|_| "it panicked".to_string())
}
