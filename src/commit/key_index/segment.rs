//! Sorted runs of index entries on local disk, searched by reading single blocks.
//!
//! Layout: blocks of up to 256 entries of 24 bytes (hash, file, position; little-endian), each
//! followed by its 64-bit XXH3; then for every block the upper half of its first hash; then the
//! number of entries, the checksum of the upper halves, and the magic. Only those halves, a 768th
//! of the entries' size, are held in memory; the rest is left to the page cache.

use super::KeyIndexError;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"mpkeys01";
const FOOTER_BYTES: u64 = 24;
const ENTRY_BYTES: usize = 24;
const BLOCK_ENTRIES: usize = 256;
const BLOCK_BYTES: usize = BLOCK_ENTRIES * ENTRY_BYTES + 8;
/// Read at once when neighbouring blocks are needed: 390 KiB.
const BLOCKS_AT_ONCE: usize = 64;

/// Where a row with this key was put when its file was indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub hash: u128,
    /// The index's own number of the data file.
    pub file: u32,
    pub position: u32,
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.hash.to_le_bytes());
        out.extend(self.file.to_le_bytes());
        out.extend(self.position.to_le_bytes());
    }

    fn read(bytes: &[u8]) -> Self {
        let mut hash = [0; 16];
        let (mut file, mut position) = ([0; 4], [0; 4]);
        hash.copy_from_slice(&bytes[..16]);
        file.copy_from_slice(&bytes[16..20]);
        position.copy_from_slice(&bytes[20..24]);
        Self { hash: u128::from_le_bytes(hash), file: u32::from_le_bytes(file), position: u32::from_le_bytes(position) }
    }
}

fn upper(hash: u128) -> u64 {
    (hash >> 64) as u64
}

/// Writes a segment; entries come in ascending order.
pub struct SegmentWriter {
    path: PathBuf,
    out: BufWriter<File>,
    block: Vec<u8>,
    fences: Vec<u64>,
    entries: u64,
}

impl SegmentWriter {
    pub fn create(path: PathBuf) -> Result<Self, KeyIndexError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(KeyIndexError::disk(&path))?;
        Ok(Self { path, out: BufWriter::with_capacity(1 << 18, file), block: Vec::with_capacity(BLOCK_BYTES), fences: Vec::new(), entries: 0 })
    }

    pub fn push(&mut self, entry: &Entry) -> Result<(), KeyIndexError> {
        if self.block.is_empty() {
            self.fences.push(upper(entry.hash));
        }
        entry.write(&mut self.block);
        self.entries += 1;
        if self.block.len() == BLOCK_ENTRIES * ENTRY_BYTES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), KeyIndexError> {
        let sum = XxHash3_64::oneshot(&self.block);
        self.block.extend(sum.to_le_bytes());
        self.out.write_all(&self.block).map_err(KeyIndexError::disk(&self.path))?;
        self.block.clear();
        Ok(())
    }

    /// Durable when it returns, but for the folder's entry. `None`: no entry was pushed, no file is left.
    pub fn finish(mut self) -> Result<Option<Segment>, KeyIndexError> {
        let failed = KeyIndexError::disk(&self.path);
        if self.entries == 0 {
            std::fs::remove_file(&self.path).map_err(failed)?;
            return Ok(None);
        }
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let fences: Vec<u8> = self.fences.iter().flat_map(|f| f.to_le_bytes()).collect();
        let mut tail = self.entries.to_le_bytes().to_vec();
        tail.extend(XxHash3_64::oneshot(&fences).to_le_bytes());
        tail.extend(MAGIC);
        self.out.write_all(&fences).and_then(|()| self.out.write_all(&tail)).map_err(&failed)?;
        let file = self.out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_data().map_err(&failed)?;
        Ok(Some(Segment { path: self.path, file, fences: self.fences, entries: self.entries }))
    }
}

/// An open segment. Its file never changes.
pub struct Segment {
    path: PathBuf,
    file: File,
    /// Upper halves of each block's first hash.
    fences: Vec<u64>,
    entries: u64,
}

impl Segment {
    /// Reads the fences. Anything but the segment that was written is [`KeyIndexError::Corrupt`].
    pub fn open(path: &Path) -> Result<Self, KeyIndexError> {
        let corrupt = |reason: &str| KeyIndexError::Corrupt { path: path.to_path_buf(), reason: reason.to_string() };
        let file = File::open(path).map_err(KeyIndexError::disk(path))?;
        let bytes = file.metadata().map_err(KeyIndexError::disk(path))?.len();
        if bytes < FOOTER_BYTES {
            return Err(corrupt("the file is cut short"));
        }
        let mut footer = [0; FOOTER_BYTES as usize];
        file.read_exact_at(&mut footer, bytes - FOOTER_BYTES).map_err(KeyIndexError::disk(path))?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| footer[at + i]));
        let entries = word(0);
        let blocks = entries.div_ceil(BLOCK_ENTRIES as u64);
        let size = |n: u64, each: u64| n.checked_mul(each);
        let expected = size(entries, ENTRY_BYTES as u64).and_then(|e| Some(e.checked_add(size(blocks, 16)?)? + FOOTER_BYTES));
        if &footer[16..] != MAGIC || expected != Some(bytes) {
            return Err(corrupt("the footer is not that of a segment of this length"));
        }
        let mut fences = vec![0; blocks as usize * 8];
        file.read_exact_at(&mut fences, bytes - FOOTER_BYTES - blocks * 8).map_err(KeyIndexError::disk(path))?;
        if XxHash3_64::oneshot(&fences) != word(8) {
            return Err(corrupt("the fences have another checksum"));
        }
        let fences = fences.chunks_exact(8).map(|c| u64::from_le_bytes(std::array::from_fn(|i| c[i]))).collect();
        Ok(Self { path: path.to_path_buf(), file, fences, entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn entries(&self) -> u64 {
        self.entries
    }

    #[cfg(test)]
    pub fn fence_bytes(&self) -> usize {
        self.fences.capacity() * 8
    }

    /// Calls `found` with the index of a key and an entry, for every entry of every key. `keys`
    /// ascend. Each block that may hold one is read once.
    pub fn find(&self, keys: &[u128], mut found: impl FnMut(usize, Entry)) -> Result<(), KeyIndexError> {
        let mut at = 0;
        let mut buffer = Vec::new();
        while at < keys.len() {
            // The keys whose blocks lie close together are looked for in one read.
            let first = self.blocks_of(keys[at]);
            let mut blocks = first.clone();
            let mut until = at + 1;
            while until < keys.len() {
                let next = self.blocks_of(keys[until]);
                if next.start > blocks.end || next.end - blocks.start > BLOCKS_AT_ONCE {
                    break;
                }
                blocks.end = blocks.end.max(next.end);
                until += 1;
            }
            self.read(blocks.clone(), &mut buffer)?;
            let count = buffer.len() / ENTRY_BYTES;
            let entry = |i: usize| Entry::read(&buffer[i * ENTRY_BYTES..(i + 1) * ENTRY_BYTES]);
            let mut low = 0;
            for (i, key) in keys.iter().enumerate().take(until).skip(at) {
                let mut high = count;
                while low < high {
                    let middle = low + (high - low) / 2;
                    if entry(middle).hash < *key { low = middle + 1 } else { high = middle }
                }
                let mut equal = low;
                while equal < count && entry(equal).hash == *key {
                    found(i, entry(equal));
                    equal += 1;
                }
            }
            at = until;
        }
        Ok(())
    }

    /// The blocks in which entries of `key` may lie: equal hashes may span blocks, and upper
    /// halves may be equal where hashes are not.
    fn blocks_of(&self, key: u128) -> Range<usize> {
        let start = self.fences.partition_point(|f| *f < upper(key)).saturating_sub(1);
        let end = self.fences.partition_point(|f| *f <= upper(key));
        start..end.max(start)
    }

    /// The entries of these blocks, checked, without the checksums between them.
    fn read(&self, blocks: Range<usize>, buffer: &mut Vec<u8>) -> Result<(), KeyIndexError> {
        buffer.clear();
        if blocks.is_empty() {
            return Ok(());
        }
        let data_bytes = self.entries as usize * ENTRY_BYTES + self.fences.len() * 8;
        let (from, to) = (blocks.start * BLOCK_BYTES, (blocks.end * BLOCK_BYTES).min(data_bytes));
        buffer.resize(to - from, 0);
        self.file.read_exact_at(buffer, from as u64).map_err(KeyIndexError::disk(&self.path))?;
        let mut kept = 0;
        let mut next = 0;
        while next < buffer.len() {
            let end = (next + BLOCK_BYTES).min(buffer.len());
            let sum = u64::from_le_bytes(std::array::from_fn(|i| buffer[end - 8 + i]));
            if XxHash3_64::oneshot(&buffer[next..end - 8]) != sum {
                let reason = format!("the block at byte {} has another checksum", from + next);
                return Err(KeyIndexError::Corrupt { path: self.path.clone(), reason });
            }
            buffer.copy_within(next..end - 8, kept);
            kept += end - 8 - next;
            next = end;
        }
        buffer.truncate(kept);
        Ok(())
    }
}

/// Reads a segment from its start, a few blocks at a time.
struct Cursor<'a> {
    segment: &'a Segment,
    next_block: usize,
    buffer: Vec<u8>,
    at: usize,
}

impl Cursor<'_> {
    fn next(&mut self) -> Result<Option<Entry>, KeyIndexError> {
        if self.at == self.buffer.len() {
            let blocks = self.next_block..(self.next_block + BLOCKS_AT_ONCE).min(self.segment.fences.len());
            if blocks.is_empty() {
                return Ok(None);
            }
            self.next_block = blocks.end;
            self.segment.read(blocks, &mut self.buffer)?;
            self.at = 0;
        }
        let entry = Entry::read(&self.buffer[self.at..self.at + ENTRY_BYTES]);
        self.at += ENTRY_BYTES;
        Ok(Some(entry))
    }
}

/// Merges segments into one at `path`, without the entries that `keep` refuses. Memory: one
/// buffer of 390 KiB per segment. `None` when nothing is left.
pub fn merge(segments: &[&Segment], path: PathBuf, mut keep: impl FnMut(&Entry) -> bool) -> Result<Option<Segment>, KeyIndexError> {
    let mut out = SegmentWriter::create(path)?;
    let mut cursors: Vec<_> = segments.iter().map(|segment| Cursor { segment, next_block: 0, buffer: Vec::new(), at: 0 }).collect();
    let mut heap = BinaryHeap::with_capacity(cursors.len());
    for (i, cursor) in cursors.iter_mut().enumerate() {
        heap.extend(cursor.next()?.map(|entry| Reverse((entry, i))));
    }
    while let Some(Reverse((entry, i))) = heap.pop() {
        if keep(&entry) {
            out.push(&entry)?;
        }
        heap.extend(cursors[i].next()?.map(|entry| Reverse((entry, i))));
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, entries: &[Entry]) -> Segment {
        let mut writer = SegmentWriter::create(path).unwrap();
        for entry in entries {
            writer.push(entry).unwrap();
        }
        writer.finish().unwrap().unwrap()
    }

    /// Hashes that share upper halves, repeat, and fill several blocks.
    fn entries(n: u32) -> Vec<Entry> {
        let mut entries: Vec<_> = (0..n).map(|i| Entry { hash: (u128::from(i / 700) << 64) | u128::from(i / 3), file: i % 5, position: i }).collect();
        entries.sort_unstable();
        entries
    }

    #[test]
    fn every_entry_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for n in [1, 255, 256, 257, 5_000] {
            let entries = entries(n);
            write(folder.path().join("s"), &entries);
            let segment = Segment::open(&folder.path().join("s")).unwrap();
            assert_eq!(segment.entries(), u64::from(n));
            let mut keys: Vec<u128> = entries.iter().flat_map(|e| [e.hash, e.hash + (1 << 90)]).collect();
            keys.sort_unstable();
            keys.dedup();
            for step in [1, 7, 1000] {
                let asked: Vec<u128> = keys.iter().copied().step_by(step).collect();
                let mut found = Vec::new();
                segment.find(&asked, |i, e| found.push((asked[i], e))).unwrap();
                let expected: Vec<_> = entries.iter().filter(|e| asked.contains(&e.hash)).map(|e| (e.hash, *e)).collect();
                assert_eq!(found, expected, "{n} entries, every {step}th key");
            }
        }
    }

    #[test]
    fn merging_keeps_order_and_drops_what_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let all = entries(3_000);
        let parts: Vec<Segment> = (0..3).map(|p| write(folder.path().join(format!("{p}")), &all.iter().copied().skip(p).step_by(3).collect::<Vec<_>>())).collect();
        let parts: Vec<&Segment> = parts.iter().collect();
        let merged = merge(&parts, folder.path().join("m"), |e| e.file != 2).unwrap().unwrap();
        let mut cursor = Cursor { segment: &merged, next_block: 0, buffer: Vec::new(), at: 0 };
        let mut got = Vec::new();
        while let Some(entry) = cursor.next().unwrap() {
            got.push(entry);
        }
        assert_eq!(got, all.into_iter().filter(|e| e.file != 2).collect::<Vec<_>>());
        assert!(merge(&parts, folder.path().join("none"), |_| false).unwrap().is_none());
        assert!(!folder.path().join("none").exists());
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let entries = entries(700);
        write(path.clone(), &entries);
        let good = std::fs::read(&path).unwrap();
        let keys: Vec<u128> = {
            let mut keys: Vec<_> = entries.iter().map(|e| e.hash).collect();
            keys.dedup();
            keys
        };
        for at in (0..good.len()).step_by(97).chain(good.len() - 30..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let outcome = Segment::open(&path).and_then(|s| s.find(&keys, |_, _| {}));
            assert!(matches!(outcome, Err(KeyIndexError::Corrupt { .. })), "byte {at} of {}", good.len());
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Segment::open(&path).is_err());
    }
}
