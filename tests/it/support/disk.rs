//! File systems of limited size, and how to fill them.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Why a test that needs [`Mounted`] is skipped.
pub const NO_MOUNT: &str = "a file system of limited size cannot be mounted here (needs root)";

/// A file system of its own, unmounted at the end.
pub struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    pub fn tmpfs(at: &'a Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then_some(Self(at))
    }

    pub fn resized(&self, mib: u32) {
        let done = Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(self.0).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

/// Writes a file until not a byte more fits.
pub fn fill(ballast: &Path) {
    let mut filling = File::create(ballast).unwrap();
    for block in [&[7; 4096][..], &[7]] {
        while filling.write_all(block).is_ok() {}
    }
}
