//! Local folders for what can be rebuilt: spilled panes, key indexes.
//!
//! Several workers on one host each take the first numbered folder that no living process holds,
//! so that a restart finds the key index that it left.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

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
                touch(&path);
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other(format!("all 1024 folders below {} are in use", parent.display())))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Says that the folder is in use: [`sweep_dead`] goes by the time of its lock file.
pub fn touch(folder: &Path) {
    let _ = File::options().write(true).open(folder.join("lock")).and_then(|f| f.write_all_at(b"+", 0));
}

/// Empties the folders below `parent` whose process is gone and that nobody has used since `before_ms` (since
/// 1970). A worker that comes back sooner finds its key index. Returns how many were not empty.
///
/// The lock files stay: one that is deleted under a worker that just opened it would lock nobody out.
pub fn sweep_dead(parent: &Path, before_ms: i64) -> io::Result<usize> {
    let mut swept = 0;
    for folder in fs::read_dir(parent)? {
        let folder = folder?.path();
        let Ok(lock) = File::options().write(true).open(folder.join("lock")) else { continue };
        let old = lock.metadata()?.modified()?.duration_since(UNIX_EPOCH).is_ok_and(|t| t.as_millis() as i64 <= before_ms);
        // SAFETY: flock takes a descriptor, which `lock` keeps open, and an integer.
        if !old || unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            continue;
        }
        let mut full = false;
        for left in fs::read_dir(&folder)? {
            let left = left?;
            if left.file_name() == "lock" {
                continue;
            }
            full = true;
            if left.file_type()?.is_dir() { fs::remove_dir_all(left.path())? } else { fs::remove_file(left.path())? }
        }
        swept += usize::from(full);
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_dead_are_emptied_when_they_are_old_and_those_of_the_living_never() {
        let dir = tempfile::tempdir().unwrap();
        let (living, dead) = (Scratch::claim(dir.path()).unwrap(), Scratch::claim(dir.path()).unwrap());
        fs::write(dir.path().join("cleaner"), "").unwrap();
        for folder in [living.path(), dead.path()] {
            fs::create_dir_all(folder.join("index/t-delta")).unwrap();
            fs::write(folder.join("index/t-delta/journal"), "entries").unwrap();
            fs::write(folder.join("spilled"), "rows").unwrap();
        }
        let gone = dead.path().to_path_buf();
        drop(dead);
        assert_eq!(sweep_dead(dir.path(), 0).unwrap(), 0, "too young");
        assert_eq!(sweep_dead(dir.path(), i64::MAX).unwrap(), 1);
        assert_eq!(fs::read_dir(&gone).unwrap().count(), 1, "only the lock is left");
        assert!(living.path().join("index/t-delta/journal").exists());
        assert_eq!(sweep_dead(dir.path(), i64::MAX).unwrap(), 0);
        assert_eq!(Scratch::claim(dir.path()).unwrap().path(), gone, "and it is taken again");
    }
}
