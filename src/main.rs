//! Arguments in, exit code out.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    millpond::cli::footprint::reuse_pages();
    let code = millpond::cli::main();
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // Not `exit`: it runs the C libraries' own endings (OpenSSL's frees its tables) while threads of
    // librdkafka may still use them. Whatever must last is on disk by now.
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}
