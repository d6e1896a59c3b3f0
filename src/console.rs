//! What a process says on stdout and stderr. Neither ends it: whoever reads may have seen enough.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// A line on stderr, for whoever still reads it.
pub fn note(line: impl Display) {
    if cfg!(test) {
        // The test harness takes what this macro writes, and nothing else.
        eprintln!("{line}");
    } else {
        let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
    }
}

/// Writes to stdout, and flushes it. `false`: the pipe is closed, and nobody reads any more.
///
/// # Errors
/// The file that stdout is cannot be written.
pub fn answer(bytes: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    is_read(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Whether somebody reads what was written.
///
/// # Errors
/// As they were, but for a closed pipe.
pub fn is_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e),
    }
}
