//! Keeps the process's own pages within `memory`.
//!
//! An epoch's buffers come and go every few seconds. The allocator gives freed pages back to the system
//! only a while later, since the kernel clears each page that is asked for anew; what it holds
//! back meanwhile may be as much as what is in use. So it may, as long as there is room.

use crate::console::note;
use std::ffi::{c_int, c_long};
use std::time::Duration;

// Linked for its functions; it is the allocator where `main.rs` says so.
use mimalloc as _;

unsafe extern "C" {
    /// Of mimalloc; its crate declares neither.
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_collect(force: bool);
}

/// `mi_option_purge_delay`, in milliseconds.
const PURGE_DELAY: c_int = 15;
const KEPT_FOR_MS: c_long = 10_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lets the allocator hold freed pages back for ten seconds. To be called before there is a second
/// thread; `MIMALLOC_PURGE_DELAY` in the environment rules.
pub fn reuse_pages() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number.
        unsafe { mi_option_set(PURGE_DELAY, KEPT_FOR_MS) }
    }
}

/// From now on, whenever the process's own pages come near `memory_bytes`, those that are held back go to
/// the system at once. Does nothing where the system does not tell how many they are.
pub(super) fn keep_within(memory_bytes: u64) {
    let watch = move || {
        while let Some(bytes) = own_bytes() {
            if bytes > memory_bytes / 8 * 7 {
                // SAFETY: may be called by any thread; gives only free pages back.
                unsafe { mi_collect(true) }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("footprint".into()).spawn(watch) {
        note(format_args!("more memory than `memory` may be held back for reuse: {e}"));
    }
}

/// Resident pages that are not of a file, in bytes (proc(5): statm).
fn own_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').skip(1).map(|n| n.parse::<u64>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    // SAFETY: asks for a constant of the system.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(resident.saturating_sub(shared) * page)
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn own_pages_are_counted() {
        let before = super::own_bytes().unwrap();
        let taken = std::hint::black_box(vec![1u8; 64 << 20]);
        let with = super::own_bytes().unwrap();
        assert!(with > before + (32 << 20), "{before} bytes before, {with} with {} more", taken.len());
    }
}
