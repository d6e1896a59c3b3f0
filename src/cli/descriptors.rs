//! How many files the process may have open.

/// With fewer nothing begins: the runtime alone takes nine.
const NEEDED: u64 = 12;

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
    if limit.rlim_cur < NEEDED {
        return Err(format!("this process may have {} files open and needs some hundreds: raise the limit (`ulimit -n 1024`)", limit.rlim_cur));
    }
    Ok(())
}
