//! How many files the process may have open.

/// With fewer to come nothing begins: the runtime and the signals take as many, and end the process where they cannot have them.
const NEEDED: u64 = 9;
/// Those that are open before anything is.
const STANDARD: u64 = 3;

/// Raises the limit to the highest that the system lets this process have: shells begin with one that is for people.
///
/// # Errors
/// It is too low for anything to begin; the text says what to do.
pub fn raise() -> Result<(), String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes to the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Ok(());
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: reads the struct that it is given.
    if limit.rlim_cur < limit.rlim_max && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit = raised;
    }
    // Whoever started the process may have left it others. The folder itself is open while it is read.
    let open = std::fs::read_dir("/proc/self/fd").map_or(STANDARD, |open| (open.count() as u64).saturating_sub(1));
    if limit.rlim_cur < open + NEEDED {
        return Err(format!("this process may have {} files open and needs some hundreds: raise the limit (`ulimit -n 1024`)", limit.rlim_cur));
    }
    Ok(())
}
