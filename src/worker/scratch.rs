//! Local folders for what can be rebuilt: spilled panes, key indexes.
//!
//! Several workers on one host each take the first numbered folder that no living process holds,
//! so that a restart finds the key index that it left.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A folder that is this process's alone for as long as the value lives.
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Takes the first free numbered folder below `parent`.
    pub fn claim(parent: &Path) -> io::Result<Self> {
        for nth in 0..1024 {
            let path = parent.join(nth.to_string());
            fs::create_dir_all(&path)?;
            let lock = File::options().create(true).truncate(false).write(true).open(path.join("lock"))?;
            // SAFETY: flock takes a descriptor, which `lock` keeps open, and an integer.
            if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                // Spilled state of a process that is gone is of no use: panes are restored from runs.
                let _ = fs::remove_dir_all(path.join("spill"));
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other(format!("all 1024 folders below {} are in use", parent.display())))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
