//! Disks that hold what is not whole.
//!
//! A worker's own disk after the power was cut: what was being written is there in part, and so may be what was
//! not synced, or synced by a disk that lies. All that lies on it can be made again from the log and the tables: key
//! indexes, spilled panes. None of it may be believed when it is not whole.
//!
//! A lake on a local disk after its writer was killed: the [local store](crate::store::local) links a file to its name
//! when it is whole and synced, so that nothing is ever short under its own name; but what a put wrote so far stays beside
//! it under a temporary name. No reader may see it, and it goes away when it is old.

use super::world::World;
use crate::store::local::{DurableLocal, temporary_name};
use object_store::path::Path as Object;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

/// The folder of a lake, with all that is in it but the objects themselves: those are in memory.
#[derive(Debug)]
pub struct LocalLake {
    pub store: Arc<DurableLocal>,
    folders: Mutex<BTreeSet<String>>,
    puts: AtomicU64,
}

impl LocalLake {
    pub fn new(root: &Path) -> std::io::Result<Self> {
        Ok(Self { store: Arc::new(DurableLocal::open(root)?), folders: Mutex::default(), puts: AtomicU64::new(0) })
    }

    /// The folder of an object is there.
    pub fn has(&self, at: &Object) -> std::io::Result<()> {
        let folder = at.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
        let new = self.folders.lock().unwrap().insert(folder.to_string());
        if new { fs::create_dir_all(self.store.root().join(folder)) } else { Ok(()) }
    }

    /// A put begins, and has written so much of it.
    fn write(&self, at: &Object, bytes: &[u8], now_ms: i64) -> std::io::Result<PathBuf> {
        self.has(at)?;
        let nth = self.puts.fetch_add(1, Ordering::Relaxed);
        let file = PathBuf::from(temporary_name(&self.store.root().join(at.as_ref()).display().to_string(), 1, nth));
        fs::write(&file, bytes)?;
        fs::File::options().write(true).open(&file)?.set_modified(UNIX_EPOCH + Duration::from_millis(now_ms as u64))?;
        Ok(file)
    }

    /// What puts left half-written before a time.
    pub fn left(&self, before_ms: i64) -> std::io::Result<Vec<String>> {
        let mut files = vec![];
        list(self.store.root(), &mut files)?;
        let old = |file: &PathBuf| fs::metadata(file).and_then(|m| m.modified()).is_ok_and(|at| at < UNIX_EPOCH + Duration::from_millis(before_ms as u64));
        Ok(files.iter().filter(|f| old(f)).map(|f| f.strip_prefix(self.store.root()).unwrap_or(f).display().to_string()).collect())
    }
}

/// A put under way, on a lake that lies on a local disk. Dropped before it is [finished](UnderWay::finish), its writer was
/// killed in the midst of it.
pub struct UnderWay {
    world: Arc<World>,
    who: String,
    at: Object,
    file: PathBuf,
    began_ms: i64,
    finished: bool,
}

impl UnderWay {
    /// `None`: the lake is elsewhere.
    pub fn begin(world: &Arc<World>, who: &str, at: &Object, bytes: &[u8]) -> Option<Self> {
        let lake = world.lake()?;
        let now_ms = super::broker::wall(world);
        let so_far = world.dice(at, bytes.len() as u64 + 1, 5) as usize;
        let file = lake.write(at, &bytes[..so_far], now_ms).unwrap_or_else(|e| panic!("the simulated lake: {e}"));
        Some(Self { world: world.clone(), who: who.into(), at: at.clone(), file, began_ms: now_ms, finished: false })
    }

    /// Whether a cleaner, to whom it looked old, took what was written.
    pub fn is_gone(&self) -> bool {
        let gone = !self.file.exists();
        if gone {
            self.world.trace.note(&self.who, format_args!("what it writes for {} was swept away", self.at));
            let (grace_ms, age_ms) = (self.world.temper.clean.map_or(i64::MAX, |c| c.after_ms as i64), super::broker::wall(&self.world) - self.began_ms);
            if age_ms < grace_ms && self.world.clocks.are_right() {
                self.world.fail(format!("what was written for {} is gone after {age_ms} ms, and may lie for {grace_ms} ms", self.at));
            }
        }
        gone
    }

    /// The temporary name is taken away.
    pub fn finish(&mut self) {
        self.finished = true;
        let _ = fs::remove_file(&self.file);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if !self.finished
            && let Ok(found) = fs::metadata(&self.file)
        {
            self.world.cut_short.fetch_add(1, Ordering::Relaxed);
            self.world.trace.note(&self.who, format_args!("was killed while it wrote {}: {} bytes stay under a temporary name", self.at, found.len()));
        }
    }
}

/// Cuts some of the files below this folder short.
pub fn tear(world: &World, host: &Path) -> std::io::Result<()> {
    let mut files = vec![];
    list(host, &mut files)?;
    // Folders carry the uuids of tables, which a library rolls: their order must not decide.
    files.sort_by_key(|f| f.iter().map(|part| name_without_id(&part.to_string_lossy())).collect::<PathBuf>());
    for file in files {
        let bytes = fs::metadata(&file)?.len();
        if bytes == 0 || !world.chance(40) {
            continue;
        }
        let left = bytes * world.below(100) / 100;
        fs::OpenOptions::new().write(true).open(&file)?.set_len(left)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        world.trace.note("host", format_args!("of {name} {left} of {bytes} bytes are left"));
    }
    Ok(())
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.file_name().is_some_and(|n| n == "lock" || n == "cleaner") {
            true => {}
            false if path.is_dir() => list(&path, into)?,
            false => into.push(path),
        }
    }
    Ok(())
}

/// `sums-delta-67e55044-10b1-426f-9247-bb680e5fe0c8` as `sums-delta`.
fn name_without_id(name: &str) -> String {
    let cut = name.len().checked_sub(36).filter(|at| name.is_char_boundary(*at) && uuid::Uuid::try_parse(&name[*at..]).is_ok());
    cut.map_or(name, |at| &name[..at]).to_string()
}
