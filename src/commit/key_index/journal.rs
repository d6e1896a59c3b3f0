//! What makes a state of the index durable in one step: a file of checksummed frames.
//!
//! Each frame (length, 64-bit XXH3, JSON records) brings the index from one version of the table
//! to another. A frame that a crash cut short is as if it had never been begun: the index is then
//! valid for the version before, which its user recognises as not the table's. When frames outgrow
//! the state they describe, the file is replaced by a snapshot (write, fsync, rename, fsync).

use super::KeyIndexError;
use super::files::{Files, Record};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

const NAME: &str = "journal";
const TEMPORARY: &str = "journal.tmp";
const HEADER_BYTES: usize = 12;
/// Below this a journal is not worth replacing.
const SMALL_BYTES: u64 = 256 * 1024;

pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    snapshot_bytes: u64,
}

impl Journal {
    /// Reads the state that the journal holds: the empty one when there is none, or when it is of
    /// another identity or cannot be read. The index can always be made again.
    pub fn open(folder: &Path, identity: &str) -> Result<(Self, Files), KeyIndexError> {
        let path = folder.join(NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(KeyIndexError::disk(&path)(e)),
        };
        if let Some((files, good)) = replay(&bytes).filter(|(files, _)| files.identity == identity) {
            let file = File::options().write(true).open(&path).map_err(KeyIndexError::disk(&path))?;
            return Ok((Self { path, file, bytes: good, snapshot_bytes: good }, files));
        }
        Self::reset(folder, identity)
    }

    /// Starts over with nothing.
    pub fn reset(folder: &Path, identity: &str) -> Result<(Self, Files), KeyIndexError> {
        let files = Files::empty(identity);
        Ok((Self::replace(folder, &files)?, files))
    }

    /// Starts over from what `files` are now.
    fn replace(folder: &Path, files: &Files) -> Result<Self, KeyIndexError> {
        let (path, temporary) = (folder.join(NAME), folder.join(TEMPORARY));
        let failed = KeyIndexError::disk(&path);
        let frame = frame(&files.snapshot());
        let file = File::options().write(true).create(true).truncate(true).open(&temporary).map_err(&failed)?;
        file.write_all_at(&frame, 0).and_then(|()| file.sync_all()).map_err(&failed)?;
        std::fs::rename(&temporary, &path).map_err(&failed)?;
        sync_folder(folder)?;
        let bytes = frame.len() as u64;
        Ok(Self { path, file, bytes, snapshot_bytes: bytes })
    }

    /// Makes `records`, which `files` have applied already, durable as one step.
    pub fn append(&mut self, records: &[Record], files: &Files) -> Result<(), KeyIndexError> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if self.bytes > SMALL_BYTES.max(4 * self.snapshot_bytes) {
            *self = Self::replace(folder, files)?;
            return Ok(());
        }
        // Segments named by the frame are new entries of the folder.
        sync_folder(folder)?;
        let frame = frame(records);
        let failed = KeyIndexError::disk(&self.path);
        // What a cut frame left behind must not follow ours.
        self.file.set_len(self.bytes).and_then(|()| self.file.write_all_at(&frame, self.bytes)).and_then(|()| self.file.sync_all()).map_err(failed)?;
        self.bytes += frame.len() as u64;
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> Result<(), KeyIndexError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(KeyIndexError::disk(folder))
}

fn frame(records: &[Record]) -> Vec<u8> {
    let body = serde_json::to_vec(records).expect("records are strings, numbers and base64: they always serialize");
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(XxHash3_64::oneshot(&body).to_le_bytes());
    frame.extend(body);
    frame
}

/// The state after the last whole frame, and where that frame ends. `None`: not even one.
fn replay(bytes: &[u8]) -> Option<(Files, u64)> {
    let mut files = Files::default();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let length = u32::from_le_bytes(std::array::from_fn(|i| header[i])) as usize;
        let sum = u64::from_le_bytes(std::array::from_fn(|i| header[4 + i]));
        let Some(body) = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + length).filter(|b| XxHash3_64::oneshot(b) == sum) else { break };
        let records: Vec<Record> = serde_json::from_slice(body).ok()?;
        for record in &records {
            files.apply(record).ok()?;
        }
        at += HEADER_BYTES + length;
    }
    (at > 0).then_some((files, at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(n: u32) -> Record {
        Record::Version { version: format!("v{n}"), next_file: n, next_segment: 0 }
    }

    fn commit(journal: &mut Journal, files: &mut Files, n: u32) {
        let records = [Record::File { id: n, path: format!("f{n}"), rows: 1, until: None, closed: false }, version(n)];
        records.iter().for_each(|r| files.apply(r).unwrap());
        journal.append(&records, files).unwrap();
    }

    #[test]
    fn a_cut_frame_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut files) = Journal::open(folder.path(), "k").unwrap();
        let mut ends = vec![journal.bytes as usize];
        for n in 0..3 {
            commit(&mut journal, &mut files, n);
            ends.push(journal.bytes as usize);
        }
        let whole = std::fs::read(folder.path().join(NAME)).unwrap();
        assert_eq!(whole.len(), ends[3]);
        for cut in ends[0]..whole.len() {
            std::fs::write(folder.path().join(NAME), &whole[..cut]).unwrap();
            let (mut journal, mut files) = Journal::open(folder.path(), "k").unwrap();
            let frames = ends.iter().filter(|e| **e <= cut).count() as u32 - 1;
            assert_eq!(files.version, frames.checked_sub(1).map(|n| format!("v{n}")), "cut at {cut}");
            commit(&mut journal, &mut files, 7);
            let (_, files) = Journal::open(folder.path(), "k").unwrap();
            assert_eq!((files.version.as_deref(), files.id("f7")), (Some("v7"), Some(7)));
        }
    }

    #[test]
    fn another_identity_or_a_broken_file_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut files) = Journal::open(folder.path(), "k").unwrap();
        commit(&mut journal, &mut files, 1);
        assert_eq!(Journal::open(folder.path(), "other").unwrap().1.version, None);
        std::fs::write(folder.path().join(NAME), b"something else").unwrap();
        assert_eq!(Journal::open(folder.path(), "k").unwrap().1.version, None);
    }

    #[test]
    fn the_journal_stays_near_the_size_of_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut files) = Journal::open(folder.path(), "k").unwrap();
        let long = "p".repeat(4_000);
        for n in 0..300 {
            let records = [Record::File { id: n, path: format!("{long}{n}"), rows: 1, until: None, closed: false }, Record::Gone(n), version(n)];
            records.iter().for_each(|r| files.apply(r).unwrap());
            journal.append(&records, &files).unwrap();
        }
        assert!(journal.bytes <= SMALL_BYTES + 5_000, "{} bytes for an empty state", journal.bytes);
        assert_eq!(Journal::open(folder.path(), "k").unwrap().1.version.as_deref(), Some("v299"));
    }
}
