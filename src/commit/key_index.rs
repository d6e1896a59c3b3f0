//! Where the row of an upsert key lies: key → data file and position, for one table in one format.
//!
//! The index is derived from the table and holds nothing else: whatever is wrong with it, it can be
//! made again from the key columns of the live files. It is valid for exactly one version of the
//! table ([`KeyIndex::version`]); between versions it advances by what a commit did
//! ([`KeyIndex::committed`]), or by the difference between the files that it knows and those that
//! the table has ([`KeyIndex::sync`]), so that a foreign compaction costs its files, not the table.
//!
//! Keys are 128-bit hashes ([`hash`]), sorted in segments on local disk ([`segment`]) that are
//! merged in tiers of eight, so that their number grows with the logarithm of the rows. What is
//! held in memory per row is a hundredth of a byte in fences and the bitmaps of deleted rows.
//! A lookup reads the index alone, never a data file.
//!
//! All methods block on local disk. One process at a time uses a folder.

mod files;
pub mod hash;
mod journal;
mod segment;
mod sync;
#[cfg(test)]
mod tests;

pub use sync::{SyncReport, WindowBound};

use super::Rewritten;
use crate::pipeline::TableFormatKind;
use crate::stage::TableSpec;
use arrow::record_batch::RecordBatch;
use files::{Files, Record};
use hash::KeyHasher;
use journal::Journal;
use roaring::RoaringTreemap;
use segment::{Entry, Segment, SegmentWriter, merge};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries sorted at a time in memory: 32 MiB.
const ENTRIES_AT_ONCE: usize = 1 << 20;
/// Segments of a tier before they are merged.
const TIER: usize = 8;
/// Entries of a segment of the lowest tier, at most.
const LOWEST_TIER: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KeyIndexError {
    /// The key does not fit the table or the rows do not fit the key.
    #[error("{reason}")]
    Key { reason: String },
    #[error("cannot use the key index at {path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    /// [`KeyIndex::sync`] makes it again.
    #[error("the key index at {path} is damaged and must be made again from the table: {reason}")]
    Corrupt { path: PathBuf, reason: String },
    /// The change is not to the version that the index holds; [`KeyIndex::sync`] repairs it.
    #[error("the key index does not know data file {path}: it is not at the version that was changed")]
    UnknownFile { path: String },
    #[error("data file {path} has more than 2^32 rows: compact it into smaller ones")]
    TooManyRows { path: String },
    #[error(transparent)]
    Read(#[from] crate::read::ReadError),
}

impl KeyIndexError {
    fn disk(path: &Path) -> impl Fn(std::io::Error) -> KeyIndexError + use<> {
        let path = path.to_path_buf();
        move |source| KeyIndexError::Disk { path: path.clone(), source }
    }
}

/// A live row: the data file that holds it, and its position there, deleted rows counted.
pub type RowAt = (Arc<str>, u64);

pub struct KeyIndex {
    folder: PathBuf,
    hasher: KeyHasher,
    files: Files,
    segments: Vec<Segment>,
    journal: Journal,
    /// Entries in no segment yet.
    fresh: Vec<Entry>,
    fresh_sorted: bool,
    /// Applied and not yet durable.
    pending: Vec<Record>,
    /// A segment was found to hold something else than was written: nothing here is to be trusted.
    damaged: bool,
    entries_at_once: usize,
}

/// Data files that are begun.
pub struct NewFiles {
    folder: PathBuf,
    next: u32,
    entries_at_once: usize,
}

impl NewFiles {
    pub fn begin(&mut self) -> FileKeys {
        self.next += 1;
        FileKeys {
            folder: self.folder.clone(),
            file: self.next - 1,
            next_position: 0,
            rows: 0,
            buffer: Vec::new(),
            spilled: Vec::new(),
            entries_at_once: self.entries_at_once,
        }
    }
}

/// A data file that is being written: its keys, on their way into the index.
///
/// Dropped without [`KeyIndex::add`], it leaves nothing behind.
pub struct FileKeys {
    folder: PathBuf,
    file: u32,
    next_position: u64,
    rows: u64,
    buffer: Vec<Entry>,
    spilled: Vec<Segment>,
    entries_at_once: usize,
}

impl KeyIndex {
    /// Opens what `folder` holds of this table, in this format; creates it empty otherwise. An
    /// index of another key, or one that cannot be read, counts as empty. Errors when the table
    /// has no key or the disk fails.
    pub fn open(folder: PathBuf, table: &TableSpec, format: TableFormatKind) -> Result<Self, KeyIndexError> {
        let hasher = KeyHasher::new(&table.schema, &table.key)?;
        std::fs::create_dir_all(&folder).map_err(KeyIndexError::disk(&folder))?;
        let identity = format!("{format}/{}", hasher.identity());
        let (mut journal, mut files) = Journal::open(&folder, &identity)?;
        let opened: Result<Vec<_>, _> = files.segments.iter().map(|name| Segment::open(&folder.join(name))).collect();
        let segments = match opened {
            Ok(segments) => segments,
            Err(KeyIndexError::Disk { source, path }) if source.kind() != std::io::ErrorKind::NotFound => return Err(KeyIndexError::Disk { source, path }),
            Err(_) => {
                (journal, files) = Journal::reset(&folder, &identity)?;
                Vec::new()
            }
        };
        let index = Self { folder, hasher, files, segments, journal, fresh: Vec::new(), fresh_sorted: true, pending: Vec::new(), damaged: false, entries_at_once: ENTRIES_AT_ONCE };
        index.remove_strays()?;
        Ok(index)
    }

    /// Spills early, so that small tables see what large ones do.
    #[cfg(test)]
    pub fn set_entries_at_once(&mut self, entries: usize) {
        self.entries_at_once = entries;
    }

    /// Segments that a crash left unnamed.
    fn remove_strays(&self) -> Result<(), KeyIndexError> {
        let failed = KeyIndexError::disk(&self.folder);
        for entry in std::fs::read_dir(&self.folder).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(SEGMENT_SUFFIX) && !self.files.segments.contains(&name) {
                std::fs::remove_file(entry.path()).map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// Forgets everything, durably: [`KeyIndex::sync`] then reads the whole table.
    pub fn clear(&mut self) -> Result<(), KeyIndexError> {
        let (next_file, next_segment) = (self.files.next_file, self.files.next_segment);
        (self.journal, self.files) = Journal::reset(&self.folder, &self.files.identity)?;
        // Files that were begun keep their numbers.
        (self.files.next_file, self.files.next_segment) = (next_file, next_segment);
        self.segments.clear();
        self.fresh.clear();
        self.fresh_sorted = true;
        self.pending.clear();
        self.damaged = false;
        self.remove_strays()
    }

    /// The version of the table that the index is valid for. `None`: for none, because it is empty
    /// was changed since [`KeyIndex::advance_to`], or turned out to be damaged.
    pub fn version(&self) -> Option<&str> {
        if self.pending.is_empty() && !self.damaged { self.files.version.as_deref() } else { None }
    }

    /// Columns that [`KeyIndex::hashes`] needs, in the key's order.
    pub fn key_columns(&self) -> Vec<String> {
        self.hasher.fields().iter().map(|f| f.name().clone()).collect()
    }

    pub fn hasher(&self) -> KeyHasher {
        self.hasher.clone()
    }

    /// One hash per row, from the key's columns, which are found by name.
    pub fn hashes(&self, batch: &RecordBatch) -> Result<Vec<u128>, KeyIndexError> {
        self.hasher.hashes(batch)
    }

    /// For each key its live row; the one of the file indexed last, should there be several.
    /// Reads the index only. After an error, [`KeyIndex::sync`] and start over.
    pub fn find(&mut self, keys: &[u128]) -> Result<Vec<Option<RowAt>>, KeyIndexError> {
        let found = self.search(keys);
        self.damaged |= matches!(found, Err(KeyIndexError::Corrupt { .. }));
        found
    }

    fn search(&mut self, keys: &[u128]) -> Result<Vec<Option<RowAt>>, KeyIndexError> {
        if !self.fresh_sorted {
            self.fresh.sort_unstable();
            self.fresh_sorted = true;
        }
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut found: Vec<Option<(u32, u64)>> = vec![None; sorted.len()];
        let files = &self.files;
        let mut meet = |i: usize, entry: Entry| {
            if let Some(position) = files.live(entry.file, entry.position) {
                found[i] = found[i].max(Some((entry.file, position)));
            }
        };
        for segment in &self.segments {
            segment.find(&sorted, &mut meet)?;
        }
        if !self.fresh.is_empty() {
            for (i, key) in sorted.iter().enumerate() {
                let from = self.fresh.partition_point(|e| e.hash < *key);
                self.fresh[from..].iter().take_while(|e| e.hash == *key).for_each(|e| meet(i, *e));
            }
        }
        let row = |key: &u128| {
            let (file, position) = found[sorted.binary_search(key).ok()?]?;
            Some((files.file(file)?.path.clone(), position))
        };
        Ok(keys.iter().map(row).collect())
    }

    /// Begins a data file; its hashes are [`FileKeys::push`]ed in the order of its rows.
    pub fn begin_file(&mut self) -> FileKeys {
        let mut new = self.new_files();
        let keys = new.begin();
        self.begun(&new);
        keys
    }

    /// Begins data files while the index is read. No others may be begun before [`KeyIndex::begun`].
    pub fn new_files(&self) -> NewFiles {
        NewFiles { folder: self.folder.clone(), next: self.files.next_file, entries_at_once: self.entries_at_once }
    }

    /// The numbers of these files are taken.
    pub fn begun(&mut self, files: &NewFiles) {
        self.files.next_file = files.next;
    }

    /// The file is in the table, as `path`. `until_us`: the latest end of a window that it holds
    /// rows of, where the table has windows.
    pub fn add(&mut self, path: &str, mut keys: FileKeys, until_us: Option<i64>) -> Result<(), KeyIndexError> {
        self.remove_file(path)?;
        if keys.next_position > 1 << 32 {
            return Err(KeyIndexError::TooManyRows { path: path.to_string() });
        }
        self.record(Record::File { id: keys.file, path: path.to_string(), rows: keys.rows, until: until_us, closed: false })?;
        for segment in std::mem::take(&mut keys.spilled) {
            self.record(Record::Segment(name_of(&segment)))?;
            self.segments.push(segment);
        }
        self.fresh.append(&mut keys.buffer);
        self.fresh_sorted = self.fresh.is_empty();
        if self.fresh.len() >= self.entries_at_once { self.flush() } else { Ok(()) }
    }

    /// [`KeyIndex::begin_file`], [`FileKeys::push`] and [`KeyIndex::add`] in one.
    pub fn add_file(&mut self, path: &str, hashes: &[u128], until_us: Option<i64>) -> Result<(), KeyIndexError> {
        let mut keys = self.begin_file();
        keys.push(hashes)?;
        self.add(path, keys, until_us)
    }

    /// Rows of `path` are hidden by a delete file or vector; positions as the file lies there.
    pub fn mark_deleted(&mut self, path: &str, positions: &RoaringTreemap) -> Result<(), KeyIndexError> {
        let id = self.known(path)?;
        let Some(file) = self.files.file(id).filter(|f| !f.closed) else { return Ok(()) };
        let fresh = positions - &file.deleted;
        if fresh.is_empty() { Ok(()) } else { self.record(Record::Deleted(id, fresh)) }
    }

    /// `old` was rewritten as `new`, in the same order, without the rows at `dropped` (positions in
    /// `old`); without a `new`, nothing was left.
    pub fn replace_file(&mut self, old: &str, new: Option<&str>, dropped: &RoaringTreemap) -> Result<(), KeyIndexError> {
        let id = self.known(old)?;
        match new {
            Some(new) => self.record(Record::Rewritten { id, path: new.to_string(), dropped: dropped.clone() }),
            None => self.record(Record::Gone(id)),
        }
    }

    /// The file is not in the table any more. Does nothing for one that is not known.
    pub fn remove_file(&mut self, path: &str) -> Result<(), KeyIndexError> {
        match self.files.id(path) {
            Some(id) => self.record(Record::Gone(id)),
            None => Ok(()),
        }
    }

    /// Drops the entries of files that hold only rows of windows with `window_end <= horizon_us`:
    /// nothing changes them any more.
    pub fn forget_before(&mut self, horizon_us: i64) -> Result<(), KeyIndexError> {
        let closed: Vec<u32> = self.files.iter().filter(|(_, f)| !f.closed && f.until.is_some_and(|u| u <= horizon_us)).map(|(id, _)| id).collect();
        closed.into_iter().try_for_each(|id| self.record(Record::Closed(id)))
    }

    /// What a commit did, in one: `rewritten` and `delete` as the commit reported and proposed
    /// them, the files that it added; then [`KeyIndex::advance_to`]. The commit stands whatever this
    /// says: after an error the index is valid for no version, and [`KeyIndex::sync`] repairs it.
    pub fn committed(
        &mut self,
        delete: &BTreeMap<String, RoaringTreemap>,
        rewritten: &[Rewritten],
        added: Vec<(String, FileKeys, Option<i64>)>,
        version: &str,
    ) -> Result<(), KeyIndexError> {
        for file in rewritten {
            self.replace_file(&file.old, file.new.as_ref().map(|f| f.path.as_str()), &file.dropped)?;
        }
        for (path, positions) in delete {
            if !rewritten.iter().any(|r| r.old == *path) {
                self.mark_deleted(path, positions)?;
            }
        }
        for (path, keys, until) in added {
            self.add(&path, keys, until)?;
        }
        self.advance_to(version)
    }

    /// The index as it is now is that of `version`: durable when it returns. A crash before leaves
    /// the index of the version before.
    pub fn advance_to(&mut self, version: &str) -> Result<(), KeyIndexError> {
        self.flush()?;
        let merged = self.merge_tiers();
        self.damaged |= matches!(merged, Err(KeyIndexError::Corrupt { .. }));
        let obsolete = merged?;
        let (next_file, next_segment) = (self.files.next_file, self.files.next_segment);
        self.record(Record::Version { version: version.to_string(), next_file, next_segment })?;
        self.journal.append(&self.pending, &self.files)?;
        self.pending.clear();
        // Only now does no durable state name them.
        obsolete.iter().try_for_each(|path| std::fs::remove_file(path).map_err(KeyIndexError::disk(path)))
    }

    fn known(&self, path: &str) -> Result<u32, KeyIndexError> {
        self.files.id(path).ok_or_else(|| KeyIndexError::UnknownFile { path: path.to_string() })
    }

    fn record(&mut self, record: Record) -> Result<(), KeyIndexError> {
        self.files.apply(&record)?;
        self.pending.push(record);
        Ok(())
    }

    /// Fresh entries become a segment.
    fn flush(&mut self) -> Result<(), KeyIndexError> {
        let mut entries = std::mem::take(&mut self.fresh);
        self.fresh_sorted = true;
        if entries.is_empty() {
            return Ok(());
        }
        let path = self.next_segment();
        let segment = write_sorted(path, &mut entries)?;
        entries.clear();
        self.fresh = entries;
        if self.fresh.capacity() > self.entries_at_once / 8 {
            self.fresh = Vec::new();
        }
        self.adopt(segment)
    }

    fn next_segment(&mut self) -> PathBuf {
        let n = self.files.next_segment;
        self.files.next_segment += 1;
        self.folder.join(format!("{n:010}{SEGMENT_SUFFIX}"))
    }

    fn adopt(&mut self, segment: Option<Segment>) -> Result<(), KeyIndexError> {
        if let Some(segment) = segment {
            self.record(Record::Segment(name_of(&segment)))?;
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Merges tiers that are full, and everything when more than half of it is dead. Returns the
    /// files that the next durable state does not name.
    fn merge_tiers(&mut self) -> Result<Vec<PathBuf>, KeyIndexError> {
        let mut obsolete = Vec::new();
        loop {
            let entries: u64 = self.segments.iter().map(Segment::entries).sum();
            let dead = entries.saturating_sub(self.files.live_rows());
            let mut tiers: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (i, segment) in self.segments.iter().enumerate() {
                tiers.entry(tier(segment.entries())).or_default().push(i);
            }
            let which = match tiers.into_values().find(|t| t.len() >= TIER) {
                Some(full) => full,
                None if dead > entries / 2 && entries > LOWEST_TIER => (0..self.segments.len()).collect(),
                None => return Ok(obsolete),
            };
            let path = self.next_segment();
            let merging: Vec<&Segment> = which.iter().map(|i| &self.segments[*i]).collect();
            let merged = merge(&merging, path, |e| self.files.live(e.file, e.position).is_some())?;
            for i in which.into_iter().rev() {
                let segment = self.segments.swap_remove(i);
                self.record(Record::SegmentGone(name_of(&segment)))?;
                obsolete.push(segment.path().to_path_buf());
            }
            self.adopt(merged)?;
        }
    }
}

const SEGMENT_SUFFIX: &str = ".keys";

fn name_of(segment: &Segment) -> String {
    segment.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn tier(entries: u64) -> u32 {
    (entries / LOWEST_TIER).checked_ilog(TIER as u64).map_or(0, |t| t + 1)
}

fn write_sorted(path: PathBuf, entries: &mut [Entry]) -> Result<Option<Segment>, KeyIndexError> {
    entries.sort_unstable();
    let mut writer = SegmentWriter::create(path)?;
    entries.iter().try_for_each(|entry| writer.push(entry))?;
    writer.finish()
}

impl FileKeys {
    /// The file's next rows.
    pub fn push(&mut self, hashes: &[u128]) -> Result<(), KeyIndexError> {
        for hash in hashes {
            self.push_at(*hash, self.next_position)?;
        }
        Ok(())
    }

    /// The row at `position`; positions ascend, those left out are not indexed.
    pub fn push_at(&mut self, hash: u128, position: u64) -> Result<(), KeyIndexError> {
        // More rows than positions fit is refused when the file is added.
        self.buffer.push(Entry { hash, file: self.file, position: position as u32 });
        self.next_position = position + 1;
        self.rows += 1;
        if self.buffer.len() < self.entries_at_once {
            return Ok(());
        }
        let path = self.folder.join(format!("f{:010}-{}{SEGMENT_SUFFIX}", self.file, self.spilled.len()));
        self.spilled.extend(write_sorted(path, &mut self.buffer)?);
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for FileKeys {
    fn drop(&mut self) {
        for segment in &self.spilled {
            // What stays is removed when the index is opened again.
            let _ = std::fs::remove_file(segment.path());
        }
    }
}
