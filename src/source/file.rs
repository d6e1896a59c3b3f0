//! NDJSON files, plain, gzip or zstd: one partition a file in the order of their paths, offset =
//! line number from 0. Blank lines are no records but keep their offsets.
//!
//! Files are taken to be finished: a line count is taken once, by reading each file to its end. Reading goes on only behind
//! the very line that was the last one read: its hash is kept where Kafka has a leader epoch. A last line without a line
//! feed is a record; whoever writes on in it changes what was read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::{KEPT_BYTES, Position, RawBatch, RawRecord, Source, SourceError, SourceEvent, SourceFacts};
use crate::pipeline::{Input, SourceSpec};

const BATCH_RECORDS: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;
/// Files that are open at the same time, so that a glob of many keeps within the process's limit.
const OPEN_FILES: usize = 64;
const BUFFER_BYTES: usize = 256 << 10;

/// The files of one path or glob.
pub struct FileSource {
    name: String,
    pattern: String,
    max_record_bytes: usize,
    /// Longer lines leave only their number.
    kept_bytes: usize,
    /// Partition = index. `None` until the pattern was first looked at.
    files: Option<Vec<PathBuf>>,
    /// How many lines each has, and the hash of the last one, or -1.
    lines: BTreeMap<i32, (i64, i32)>,
    assigned: bool,
    /// In the order in which their turn comes.
    turns: VecDeque<Reading>,
    paused: BTreeSet<i32>,
    /// Told after what was read before it.
    failed: Option<SourceError>,
}

struct Reading {
    partition: i32,
    /// The next line.
    at: i64,
    /// Hash of the line before it, or -1.
    last: i32,
    lines: Option<Lines>,
}

impl FileSource {
    /// Looks at nothing yet. Refused: `spec` is no file source.
    pub fn new(spec: &SourceSpec) -> Result<Self, SourceError> {
        let Input::File(input) = &spec.input else {
            return Err(SourceError::Refused(format!("source `{}`: expected a file source, found another kind", spec.name)));
        };
        Ok(Self {
            name: spec.name.clone(),
            pattern: input.path.clone(),
            max_record_bytes: spec.max_record_bytes,
            kept_bytes: spec.max_record_bytes.max(KEPT_BYTES),
            files: None,
            lines: BTreeMap::new(),
            assigned: false,
            turns: VecDeque::new(),
            paused: BTreeSet::new(),
            failed: None,
        })
    }

    fn files(&mut self) -> Result<&[PathBuf], SourceError> {
        if self.files.is_none() {
            let refused = |text: String| SourceError::Refused(format!("source `{}`: {text}", self.name));
            let mut files = Vec::new();
            if Path::new(&self.pattern).is_file() {
                files.push(PathBuf::from(&self.pattern));
            } else {
                let found = glob::glob(&self.pattern).map_err(|e| refused(format!("`{}` is no path and no glob: {e}", self.pattern)))?;
                for path in found {
                    let path = path.map_err(|e| refused(format!("cannot look into {}: {}", e.path().display(), e.error())))?;
                    if path.is_file() {
                        files.push(path);
                    }
                }
            }
            if files.is_empty() {
                return Err(refused(format!("no file matches `{}`; correct the path", self.pattern)));
            }
            files.sort();
            self.files = Some(files);
        }
        Ok(self.files.as_deref().unwrap_or_default())
    }

    fn path(&self, partition: i32) -> Option<&Path> {
        let files = self.files.as_deref()?;
        files.get(usize::try_from(partition).ok()?).map(PathBuf::as_path)
    }

    fn broken(&self, partition: i32, line: i64, error: &io::Error) -> SourceError {
        let path = self.path(partition).map_or_else(String::new, |p| p.display().to_string());
        let text = match error.kind() {
            ErrorKind::NotFound => format!("{path} is gone; put it back"),
            ErrorKind::PermissionDenied => format!("{path} may not be read by this user; allow it"),
            _ if error.get_ref().is_some_and(|e| e.is::<Changed>()) => {
                format!("{path}: {error}: the file was cut or replaced since, or its last line was written on; put the old file back, or begin anew under another pipeline name")
            }
            // What the decompressors say of bytes that are not theirs.
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof | ErrorKind::Other => {
                format!("{path} is corrupt or cut short after line {line}: {error}; replace it by a whole file")
            }
            _ => return SourceError::Unavailable(format!("source `{}`: {path}, line {line}: {error}", self.name)),
        };
        SourceError::Refused(format!("source `{}`: {text}", self.name))
    }

    /// The number of lines of a file, and the hash of the last one: both taken once.
    fn count(&mut self, partition: i32) -> Result<(i64, i32), SourceError> {
        if let Some(lines) = self.lines.get(&partition) {
            return Ok(*lines);
        }
        let mut counted = 0;
        let path = self.path(partition).map(Path::to_path_buf).unwrap_or_default();
        let last = (|| {
            let mut lines = Lines::open(&path)?;
            let (mut bytes, mut last) = (vec![], None);
            while !lines.at_end()? {
                bytes.clear();
                last = Some(lines.read(&mut bytes, self.kept_bytes)?);
                counted += 1;
            }
            Ok(last.map_or(-1, |line| hash(&bytes, &line)))
        })();
        let last = last.map_err(|e| self.broken(partition, counted, &e))?;
        self.lines.insert(partition, (counted, last));
        Ok((counted, last))
    }

    /// The next batch of one file; `true` where the file is at its end.
    fn batch(&self, reading: &mut Reading) -> (RawBatch, io::Result<bool>) {
        let mut batch = RawBatch { partition: reading.partition, from: reading.at, to: reading.at, leader_epoch: reading.last, ..RawBatch::default() };
        let end = self.fill(reading, &mut batch);
        reading.last = batch.leader_epoch;
        batch.at_end = matches!(end, Ok(true));
        reading.at = batch.to;
        (batch, end)
    }

    fn fill(&self, reading: &mut Reading, batch: &mut RawBatch) -> io::Result<bool> {
        let lines = match &mut reading.lines {
            Some(lines) => lines,
            closed => {
                let mut lines = Lines::open(self.path(reading.partition).unwrap_or(Path::new("")))?;
                let before = |line: i64| io::Error::other(Changed(format!("line {line} was read before and is not there now")));
                for line in 1..reading.at {
                    lines.skip()?.ok_or_else(|| before(line))?;
                }
                if reading.at > 0 {
                    let mut bytes = vec![];
                    if lines.at_end()? {
                        return Err(before(reading.at));
                    }
                    let line = lines.read(&mut bytes, self.kept_bytes)?;
                    if reading.last >= 0 && hash(&bytes, &line) != reading.last {
                        return Err(io::Error::other(Changed(format!("line {} is another than was read before", reading.at))));
                    }
                }
                closed.insert(lines)
            }
        };
        while batch.records.len() < BATCH_RECORDS && batch.bytes.len() < BATCH_BYTES {
            if lines.at_end()? {
                return Ok(true);
            }
            let start = batch.bytes.len();
            let line = match lines.read(&mut batch.bytes, self.kept_bytes) {
                Ok(line) => line,
                Err(error) => {
                    batch.bytes.truncate(start);
                    return Err(error);
                }
            };
            let offset = batch.to;
            batch.to += 1;
            batch.leader_epoch = hash(&batch.bytes[start..], &line);
            let record = |value, oversized| RawRecord { offset, timestamp_ms: None, key: None, value, headers: Vec::new(), oversized };
            match line {
                Line::Oversized(size) => {
                    batch.bytes.truncate(start);
                    batch.records.push(record(None, Some(size)));
                }
                Line::Kept if batch.bytes[start..].trim_ascii().is_empty() => batch.bytes.truncate(start),
                Line::Kept => {
                    let size = batch.bytes.len() - start;
                    let oversized = (size > self.max_record_bytes).then_some(size as u64);
                    batch.records.push(record(Some(start as u32..batch.bytes.len() as u32), oversized));
                }
            }
        }
        lines.at_end()
    }
}

/// A file is not the one that was read before.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Changed(String);

/// By what a line is known again, 31 bits.
fn hash(bytes: &[u8], line: &Line) -> i32 {
    let hash = match line {
        Line::Kept if bytes.len() <= KEPT_BYTES => twox_hash::XxHash3_64::oneshot(bytes),
        // The same whether it was kept or not.
        Line::Kept => bytes.len() as u64,
        Line::Oversized(size) => *size,
    };
    (hash & 0x7fff_ffff) as i32
}

enum Line {
    /// Appended, without its line end.
    Kept,
    /// Longer than what is kept; its size in bytes. What was appended of it is to be dropped.
    Oversized(u64),
}

/// Lines of a file, decompressed by what its first bytes are, not by its name.
struct Lines {
    input: Box<dyn BufRead + Send>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
        let magic = file.fill_buf()?;
        let input: Box<dyn BufRead + Send> = if magic.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::bufread::MultiGzDecoder::new(file)))
        } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::stream::read::Decoder::with_buffer(file)?))
        } else {
            let compressed = path.extension().is_some_and(|e| e == "gz" || e == "zst");
            if compressed && !magic.is_empty() {
                return Err(io::Error::new(ErrorKind::InvalidData, "its first bytes are not those of a compressed file"));
            }
            Box::new(file)
        };
        Ok(Self { input })
    }

    fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }

    /// Appends the next line, at most `most` bytes of it; the file must not be at its end.
    fn read(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<Line> {
        let start = into.len();
        // A line end of two bytes fits beside the longest line allowed.
        let limit = most as u64 + 2;
        (&mut self.input).take(limit).read_until(b'\n', into)?;
        let ended = into.last() == Some(&b'\n') && into.len() > start;
        if ended {
            into.pop();
            if into.len() > start && into.last() == Some(&b'\r') {
                into.pop();
            }
        }
        let size = (into.len() - start) as u64;
        if ended || size < limit {
            return Ok(if size <= most as u64 { Line::Kept } else { Line::Oversized(size) });
        }
        into.truncate(start);
        let rest = self.skip()?;
        Ok(Line::Oversized(size + rest.unwrap_or(0)))
    }

    /// Passes over the rest of the line: its size without the line feed, `None` at the file's end.
    fn skip(&mut self) -> io::Result<Option<u64>> {
        let mut size = 0;
        let mut any = false;
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(any.then_some(size));
            }
            any = true;
            match buffer.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    self.input.consume(at + 1);
                    return Ok(Some(size + at as u64));
                }
                None => {
                    let len = buffer.len();
                    size += len as u64;
                    self.input.consume(len);
                }
            }
        }
    }
}

impl Source for FileSource {
    fn facts(&mut self) -> Result<SourceFacts, SourceError> {
        let names: BTreeMap<i32, String> = self.files()?.iter().zip(0..).map(|(path, p)| (p, path.display().to_string())).collect();
        let (mut partitions, mut last) = (BTreeMap::new(), BTreeMap::new());
        for partition in names.keys() {
            let (lines, hash) = self.count(*partition)?;
            partitions.insert(*partition, (0, lines));
            last.insert(*partition, hash);
        }
        Ok(SourceFacts { incarnation: None, topic: self.pattern.clone(), partitions, held: BTreeMap::new(), names, last })
    }

    /// A file has no identity beyond its path.
    fn incarnation(&mut self) -> Result<Option<String>, SourceError> {
        Ok(None)
    }

    /// Files are read from their first line.
    fn start_offsets(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, SourceError> {
        Ok(partitions.iter().map(|p| (*p, 0)).collect())
    }

    /// Every file is this worker's.
    fn join(&mut self, _: Uuid) -> Result<(), SourceError> {
        self.files()?;
        self.assigned = true;
        Ok(())
    }

    fn start(&mut self, positions: &BTreeMap<i32, Position>) -> Result<(), SourceError> {
        self.turns.clear();
        self.paused.clear();
        self.failed = None;
        for (partition, at) in positions {
            let (lines, _) = self.count(*partition)?;
            if at.offset < 0 || at.offset > lines {
                let path = self.path(*partition).map_or_else(String::new, |p| p.display().to_string());
                return Err(SourceError::Refused(format!(
                    "source `{}`: the epoch log goes on at line {} of {path}, which has {lines} lines: the file was replaced, or files before it \
                     in the order of names came or went; put the old files back, or begin anew under another pipeline name",
                    self.name, at.offset
                )));
            }
            self.turns.push_back(Reading { partition: *partition, at: at.offset, last: at.leader_epoch, lines: None });
        }
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Result<SourceEvent, SourceError> {
        if std::mem::take(&mut self.assigned) {
            let count = self.files()?.len() as i32;
            return Ok(SourceEvent::Assigned((0..count).collect()));
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some(turn) = self.turns.iter().take(OPEN_FILES).position(|r| !self.paused.contains(&r.partition)) else {
            std::thread::sleep(timeout);
            return Ok(SourceEvent::Idle);
        };
        let Some(mut reading) = self.turns.remove(turn) else { return Ok(SourceEvent::Idle) };
        let (batch, end) = self.batch(&mut reading);
        match end {
            Ok(true) => {}
            // The files that are open take turns; those beyond wait for one of them to end.
            Ok(false) => self.turns.insert((OPEN_FILES - 1).min(self.turns.len()), reading),
            Err(error) => {
                let error = self.broken(batch.partition, batch.to, &error);
                reading.lines = None;
                self.turns.push_front(reading);
                if batch.records.is_empty() {
                    return Err(error);
                }
                self.failed = Some(error);
            }
        }
        Ok(SourceEvent::Batch(batch))
    }

    fn pause(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.paused = partitions.iter().copied().collect();
        Ok(())
    }

    fn report_committed(&mut self, _offsets: &BTreeMap<i32, i64>) -> Result<(), SourceError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{FileInput, Format};
    use std::io::Write;

    fn source(path: &Path, max_record_bytes: usize) -> FileSource {
        let input = Input::File(FileInput { path: path.display().to_string() });
        let spec = SourceSpec { name: "f".into(), input, format: Format::Json, columns: vec![], watermark: None, max_record_bytes, max_depth: 9 };
        FileSource::new(&spec).unwrap()
    }

    /// Reads from `start` to the end: per partition the values with their offsets, and the last `to`.
    type Read = BTreeMap<i32, (Vec<(i64, String)>, i64)>;
    fn read_all(source: &mut FileSource, start: i64) -> Result<Read, SourceError> {
        source.join(Uuid::nil()).unwrap();
        let SourceEvent::Assigned(partitions) = source.poll(Duration::ZERO)? else { panic!("expected an assignment") };
        let at = Position { offset: start, leader_epoch: -1 };
        source.start(&partitions.iter().map(|p| (*p, at)).collect())?;
        let mut read: Read = partitions.iter().map(|p| (*p, (vec![], start))).collect();
        let mut ended = BTreeSet::new();
        loop {
            match source.poll(Duration::ZERO)? {
                SourceEvent::Batch(b) => {
                    let entry = read.get_mut(&b.partition).unwrap();
                    assert_eq!(entry.1, b.from, "intervals tile");
                    entry.1 = b.to;
                    for r in &b.records {
                        let text = match (&r.value, r.oversized) {
                            (Some(v), None) => String::from_utf8(b.slice(v).to_vec()).unwrap(),
                            (Some(v), Some(size)) => format!("<{size}> {}", String::from_utf8_lossy(b.slice(v))),
                            (None, Some(size)) => format!("<{size}>"),
                            other => panic!("{other:?}"),
                        };
                        entry.0.push((r.offset, text));
                    }
                    assert!(!ended.contains(&b.partition), "nothing after the end");
                    if b.at_end {
                        ended.insert(b.partition);
                    }
                }
                SourceEvent::Idle => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(ended.len(), partitions.len());
        Ok(read)
    }

    fn texts(read: &Read, partition: i32) -> Vec<(i64, &str)> {
        read[&partition].0.iter().map(|(o, t)| (*o, t.as_str())).collect()
    }

    #[test]
    fn lines_of_every_kind_keep_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "one\r\n\n  \r\ntwo\n0123456789\n0123456789x\n0123456789\r\nlast").unwrap();
        let mut source = source(&path, 10);
        assert_eq!(source.facts().unwrap().partitions, [(0, (0, 8))].into());
        let read = read_all(&mut source, 0).unwrap();
        assert_eq!(texts(&read, 0), [(0, "one"), (3, "two"), (4, "0123456789"), (5, "<11> 0123456789x"), (6, "0123456789"), (7, "last")]);
        assert_eq!(read[&0].1, 8);
        let read = read_all(&mut source, 4).unwrap();
        assert_eq!(texts(&read, 0), [(4, "0123456789"), (5, "<11> 0123456789x"), (6, "0123456789"), (7, "last")]);
    }

    #[test]
    fn a_huge_line_is_counted_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        let mut text = vec![b'x'; KEPT_BYTES + 1];
        text.extend_from_slice(b"\nshort\n");
        std::fs::write(&path, text).unwrap();
        let read = read_all(&mut source(&path, 1000), 0).unwrap();
        assert_eq!(texts(&read, 0), [(0, format!("<{}>", KEPT_BYTES + 1).as_str()), (1, "short")]);
    }

    #[test]
    fn a_glob_reads_plain_gzip_members_and_zstd_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c.ndjson"), "c0\n").unwrap();
        let mut gz = Vec::new();
        for member in ["a0\na1", "-\na2\n"] {
            let mut encoder = flate2::write::GzEncoder::new(&mut gz, flate2::Compression::fast());
            encoder.write_all(member.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        std::fs::write(dir.path().join("a.ndjson.gz"), gz).unwrap();
        let frames = [zstd::encode_all(&b"b0\n"[..], 1).unwrap(), zstd::encode_all(&b"b1\n"[..], 1).unwrap()].concat();
        std::fs::write(dir.path().join("b.ndjson.zst"), frames).unwrap();
        std::fs::write(dir.path().join("d.ndjson"), "").unwrap();
        let mut source = source(&dir.path().join("*.ndjson*"), 100);
        let facts = source.facts().unwrap();
        assert_eq!(facts.partitions, [(0, (0, 3)), (1, (0, 2)), (2, (0, 1)), (3, (0, 0))].into());
        assert!(facts.names[&1].ends_with("b.ndjson.zst"));
        let read = read_all(&mut source, 0).unwrap();
        assert_eq!(texts(&read, 0), [(0, "a0"), (1, "a1-"), (2, "a2")]);
        assert_eq!(texts(&read, 1), [(0, "b0"), (1, "b1")]);
        assert_eq!(texts(&read, 2), [(0, "c0")]);
        assert_eq!(texts(&read, 3), []);
    }

    #[test]
    fn a_cut_gzip_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.ndjson.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for i in 0..50_000 {
            writeln!(encoder, "{{\"line\":{i}}}").unwrap();
        }
        let whole = encoder.finish().unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = source(&path, 100).facts().unwrap_err();
        assert!(matches!(&error, SourceError::Refused(t) if t.contains("cut.ndjson.gz") && t.contains("corrupt")), "{error}");
        // Reading without having counted: the whole lines come, then the refusal.
        let mut source = source(&path, 100);
        source.files().unwrap();
        source.lines.insert(0, (50_000, -1));
        assert!(matches!(read_all(&mut source, 0), Err(SourceError::Refused(t)) if t.contains("cut.ndjson.gz")));
    }

    #[test]
    fn a_file_that_got_shorter_and_a_glob_without_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "1\n2\n").unwrap();
        let mut short = source(&path, 100);
        assert!(matches!(read_all(&mut short, 3), Err(SourceError::Refused(t)) if t.contains("line 3") && t.contains("2 lines")));
        let mut none = source(&dir.path().join("*.nothing"), 100);
        assert!(matches!(none.facts(), Err(SourceError::Refused(t)) if t.contains("*.nothing")));
    }

    #[test]
    fn a_file_that_was_replaced_behind_its_offset_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ndjson");
        std::fs::write(&path, "1\n2\n").unwrap();
        let mut first = source(&path, 100);
        let last = |source: &mut FileSource, at: Position| {
            source.join(Uuid::nil()).unwrap();
            source.poll(Duration::ZERO).unwrap();
            source.start(&[(0, at)].into()).unwrap();
            source.poll(Duration::ZERO).map(|event| match event {
                SourceEvent::Batch(b) => (b.from, b.to, b.leader_epoch),
                other => panic!("{other:?}"),
            })
        };
        let (_, to, mark) = last(&mut first, Position { offset: 0, leader_epoch: -1 }).unwrap();
        let at = Position { offset: to, leader_epoch: mark };
        assert!((to, mark >= 0) == (2, true));
        std::fs::write(&path, "1\n2\n3\n").unwrap();
        assert!(matches!(last(&mut source(&path, 100), at), Ok((2, 3, _))), "lines were added");
        std::fs::write(&path, "1\nX\n3\n").unwrap();
        let refused = last(&mut source(&path, 100), at);
        assert!(matches!(&refused, Err(SourceError::Refused(t)) if t.contains("line 2") && t.contains("put the old file back")), "{refused:?}");
    }

    #[test]
    fn files_take_turns_and_paused_ones_wait() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::write(dir.path().join(name), "x\n".repeat(BATCH_RECORDS * 2)).unwrap();
        }
        let mut source = source(&dir.path().join("?"), 100);
        source.join(Uuid::nil()).unwrap();
        source.poll(Duration::ZERO).unwrap();
        let at = Position { offset: 0, leader_epoch: -1 };
        source.start(&[(0, at), (1, at)].into()).unwrap();
        let next = |source: &mut FileSource| match source.poll(Duration::ZERO).unwrap() {
            SourceEvent::Batch(b) => (b.partition, b.to as usize, b.at_end),
            other => panic!("{other:?}"),
        };
        assert_eq!(next(&mut source), (0, BATCH_RECORDS, false));
        assert_eq!(next(&mut source), (1, BATCH_RECORDS, false));
        source.pause(&[0]).unwrap();
        assert_eq!(next(&mut source), (1, BATCH_RECORDS * 2, true));
        assert!(matches!(source.poll(Duration::ZERO).unwrap(), SourceEvent::Idle));
        source.pause(&[]).unwrap();
        assert_eq!(next(&mut source), (0, BATCH_RECORDS * 2, true));
    }
}
