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
    let code = millpond::cli::main();
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // Not `exit`: it runs the C libraries' own endings (OpenSSL's frees its tables) while threads of
    // librdkafka may still use them. Whatever must last is on disk by now.
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}
