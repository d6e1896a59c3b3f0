//! Arguments in, exit code out.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Of mimalloc, which is linked in whole; its crate does not declare it.
    fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
}
/// `mi_option_purge_delay`, in milliseconds.
const PURGE_DELAY: std::ffi::c_int = 15;

fn main() {
    // An epoch's buffers come and go every few seconds: memory given back after the default second is
    // asked for again at once, and the kernel clears each page of it.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number before there is a second thread.
        unsafe { mi_option_set(PURGE_DELAY, 10_000) };
    }
    std::process::exit(millpond::cli::main());
}
