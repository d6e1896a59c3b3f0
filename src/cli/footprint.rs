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
const PURGE_DELAY_VARIABLE: &str = "MIMALLOC_PURGE_DELAY";
const KEPT_FOR_MS: c_long = 10_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lets the allocator hold freed pages back for ten seconds, and the C library's, which librdkafka uses for records and the
/// buffers that they came in, until they are asked for. To be called before there is a second thread;
/// `MIMALLOC_PURGE_DELAY` and `MALLOC_TRIM_THRESHOLD_` in the environment rule.
pub fn reuse_pages() {
    c_library::reuse_pages();
    if std::env::var_os(PURGE_DELAY_VARIABLE).is_none() {
        // SAFETY: sets a number.
        unsafe { mi_option_set(PURGE_DELAY, KEPT_FOR_MS) }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod c_library {
    use std::ffi::c_int;

    /// Free bytes at a heap's end that stay.
    const KEPT: c_int = 256 << 20;
    /// A heap grows by so much more than is asked for.
    const GROWN: c_int = 4 << 20;
    /// Up to this, which is the most that it may be, pieces are of a heap: others are the kernel's again as soon as they are freed.
    const LARGEST: c_int = 32 << 20;

    pub fn reuse_pages() {
        if std::env::var_os("MALLOC_TRIM_THRESHOLD_").is_none() {
            // SAFETY: sets numbers.
            unsafe {
                libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
                libc::mallopt(libc::M_TOP_PAD, GROWN);
                libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            }
        }
    }

    pub fn give_back() {
        // SAFETY: may be called by any thread; gives only free pages back.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod c_library {
    pub fn reuse_pages() {}
    pub fn give_back() {}
}

/// From now on, whenever the process's own pages come near `memory_bytes`, those that are held back go to
/// the system at once; while they are beyond it, none are held back. Does nothing where the system does not tell how many they are.
pub(super) fn keep_within(memory_bytes: u64) {
    let watch = move || {
        let mut watch = Watch::new(memory_bytes);
        while let Some(bytes) = own_bytes() {
            if watch.collects(bytes) {
                // SAFETY: may be called by any thread; gives only free pages back.
                unsafe { mi_collect(true) }
                c_library::give_back();
                watch.collected(own_bytes().unwrap_or(bytes));
            }
            if let Some(delay) = watch.turned() && std::env::var_os(PURGE_DELAY_VARIABLE).is_none() {
                // SAFETY: sets a number.
                unsafe { mi_option_set(PURGE_DELAY, delay) }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("footprint".into()).spawn(watch) {
        note(format_args!("more memory than `memory` may be held back for reuse: {e}"));
    }
}

/// When to give pages back. What is in use cannot be, so that looking for free pages again is of use only after
/// there are more: else the kernel clears the same pages over and over.
struct Watch {
    memory: u64,
    /// Collected again beyond this.
    next: u64,
    tight: bool,
    was_tight: bool,
}

impl Watch {
    fn new(memory: u64) -> Self {
        Self { memory, next: 0, tight: false, was_tight: false }
    }

    fn near(&self) -> u64 {
        self.memory / 8 * 7
    }

    fn collects(&mut self, bytes: u64) -> bool {
        if bytes <= self.near() {
            (self.next, self.tight) = (0, false);
        }
        bytes > self.near().max(self.next)
    }

    fn collected(&mut self, left: u64) {
        self.next = left + self.memory / 16;
        self.tight |= left > self.memory;
    }

    /// The allocator's delay, where it is to be another.
    fn turned(&mut self) -> Option<c_long> {
        let turned = self.tight != self.was_tight;
        self.was_tight = self.tight;
        turned.then_some(if self.tight { 0 } else { KEPT_FOR_MS })
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
    use super::{KEPT_FOR_MS, Watch};

    #[test]
    fn pages_are_asked_for_again_only_when_there_are_more() {
        let mut watch = Watch::new(800);
        let mut looks = |bytes, left| {
            let collects = watch.collects(bytes);
            if collects {
                watch.collected(left);
            }
            (collects, watch.turned())
        };
        assert_eq!(looks(700, 0), (false, None));
        assert_eq!(looks(720, 690), (true, None));
        assert_eq!(looks(720, 690), (false, None), "what is in use is not looked through each time");
        assert_eq!(looks(760, 740), (true, None));
        assert_eq!(looks(790, 780), (false, None));
        assert_eq!(looks(820, 810), (true, Some(0)), "beyond memory nothing is held back");
        assert_eq!(looks(810, 0), (false, None));
        assert_eq!(looks(650, 0), (false, Some(KEPT_FOR_MS)), "and there is room again");
        assert_eq!(looks(720, 690), (true, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_pages_are_counted() {
        let before = super::own_bytes().unwrap();
        let taken = std::hint::black_box(vec![1u8; 64 << 20]);
        let with = super::own_bytes().unwrap();
        assert!(with > before + (32 << 20), "{before} bytes before, {with} with {} more", taken.len());
    }
}
