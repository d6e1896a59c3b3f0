//! A pane that outgrew memory: runs sorted by key, in files.
//!
//! The states of a key are never added to each other on the way into a file, but for a prefix of all of them:
//! reading adds them from the oldest to the newest, as memory would have. Floats are summed in the same
//! order either way, so that a result does not depend on how much memory there was.

use super::FoldError;
use super::rows::{Scratch, ScratchWriter, Scratches, batch_bytes, open, spill_error};
use super::sets::{LEAST_BYTES, Large, States, Take};
use crate::partial::groups::Groups;
use crate::partial::sets::{Pieces, has_sets};
use crate::pipeline::sql::Aggregate;
use arrow::array::{ArrayRef, BooleanArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::DataType;
use arrow::ipc::reader::FileReader;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::DataFusionError;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::sync::Arc;

/// Rows of a block of a file, unless one key has more.
const BLOCK_ROWS: usize = 4096;
/// Files that are merged at once; one more than this and all become one.
const MOST_FILES: usize = 32;

/// Memory that a batch takes besides its values: arrays, buffers and what they point to.
const BATCH_OVERHEAD: usize = 512;
/// Blocks of a file that several panes share, about: each reader of one reads where all blocks are.
const SHARED_BLOCKS: usize = 1024;

/// How the keys of a table's panes are ordered, and how much is held at once of sets that are more than memory is for.
pub(super) struct Order {
    converter: RowConverter,
    keys: usize,
    memory_bytes: usize,
}

impl Order {
    /// `memory_bytes` is what all panes of the table may take.
    pub(super) fn new(aggregate: &Aggregate, memory_bytes: usize) -> Result<Self, DataFusionError> {
        let mut fields: Vec<SortField> = aggregate.keys.iter().map(|f| SortField::new(f.data_type().clone())).collect();
        if fields.is_empty() {
            // The one group without a key has a place, too.
            fields.push(SortField::new(DataType::Boolean));
        }
        Ok(Self { converter: RowConverter::new(fields)?, keys: aggregate.keys.len(), memory_bytes })
    }

    /// The keys of these rows; further columns are left out.
    fn rows(&self, columns: &[ArrayRef], rows: usize) -> Result<Rows, DataFusionError> {
        if self.keys == 0 {
            return Ok(self.converter.convert_columns(&[Arc::new(BooleanArray::from(vec![false; rows]))])?);
        }
        Ok(self.converter.convert_columns(&columns[..self.keys])?)
    }

    /// Bytes of the sets of a block: one of each file is held at a time, and takes some ten times as much when it is counted.
    fn block_bytes(&self) -> usize {
        (self.memory_bytes / 512).max(LEAST_BYTES / 16)
    }
}

/// State rows of one pane: in files, the newest ones in memory.
pub(super) struct Spilled {
    files: Vec<Sorted>,
    tail: Vec<RecordBatch>,
    tail_bytes: usize,
    /// Of all files.
    lasts_bytes: usize,
    order: Arc<Order>,
}

/// Rows in the order of their keys, those of a key oldest first. They are in one block, unless their sets are too large for it.
struct Sorted {
    scratch: Arc<Scratch>,
    /// The first of its blocks in the file, which may hold other panes as well.
    first: usize,
    /// The last key of each block.
    lasts: Box<[Box<[u8]>]>,
    /// The blocks whose last key goes on in the next one.
    continued: Box<[u32]>,
}

impl Sorted {
    fn is_continued(&self, block: usize) -> bool {
        self.continued.binary_search(&(block as u32)).is_ok()
    }
}

/// Blocks that were written, and lie in a file that is not finished yet.
pub(super) struct Written {
    first: usize,
    lasts: Vec<Box<[u8]>>,
    continued: Vec<u32>,
}

/// What comes of reading all groups of a pane.
pub(super) enum Scanned<'a> {
    Groups(&'a mut Groups),
    Large(&'a Large<'a>),
}

/// A file that panes write into, one after the other.
pub(super) struct SharedFile {
    writer: ScratchWriter,
    blocks: usize,
}

impl SharedFile {
    pub(super) fn new(aggregate: &Aggregate, scratches: &mut Scratches) -> Result<Self, FoldError> {
        Ok(Self { writer: scratches.writer(&aggregate.run)?, blocks: 0 })
    }

    pub(super) fn is_full(&self) -> bool {
        self.blocks >= SHARED_BLOCKS
    }

    /// Adds rows in the order of their keys, behind those that were written before.
    fn write(&mut self, aggregate: &Aggregate, order: &Order, batch: &RecordBatch, written: &mut Written) -> Result<(), FoldError> {
        let rows = order.rows(batch.columns(), batch.num_rows())?;
        let mut places: Vec<u32> = (0..batch.num_rows() as u32).collect();
        places.sort_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
        let key = |place: u32| rows.row(places[place as usize] as usize);
        // Rows are copied a block at a time, unless some are to be taken apart.
        let pieces = if has_sets(aggregate) {
            let sorted = take_record_batch(batch, &UInt32Array::from(places.clone())).map_err(DataFusionError::from)?;
            Some(Pieces::new(aggregate, &sorted, order.block_bytes())?)
        } else {
            None
        };
        let joined = |a: u32, b: u32| key(a) == key(b);
        let blocks = match &pieces {
            Some(pieces) => pieces.blocks(BLOCK_ROWS, order.block_bytes(), joined),
            None => blocks_of(places.len(), joined),
        };
        for block in blocks {
            let (rows, first, last) = match &pieces {
                Some(pieces) => (pieces.batch.slice(block.start, block.len()), pieces.of[block.start], pieces.of[block.end - 1]),
                None => {
                    let places = UInt32Array::from(places[block.clone()].to_vec());
                    (take_record_batch(batch, &places).map_err(DataFusionError::from)?, block.start as u32, block.end as u32 - 1)
                }
            };
            if written.lasts.last().is_some_and(|before| **before == *key(first).as_ref()) {
                written.continued.push(written.lasts.len() as u32 - 1);
            }
            written.lasts.push(key(last).as_ref().into());
            self.blocks += 1;
            self.writer.write(&rows)?;
        }
        Ok(())
    }

    /// Blocks that begin here.
    fn begin(&self) -> Written {
        Written { first: self.blocks, lasts: vec![], continued: vec![] }
    }

    pub(super) fn finish(self) -> Result<Arc<Scratch>, FoldError> {
        Ok(Arc::new(self.writer.finish()?.0))
    }
}

impl Spilled {
    pub(super) fn new(order: Arc<Order>) -> Self {
        Self { files: vec![], tail: vec![], tail_bytes: 0, lasts_bytes: 0, order }
    }

    pub(super) fn push(&mut self, batch: RecordBatch) {
        self.tail_bytes += batch_bytes(&batch) + BATCH_OVERHEAD;
        self.tail.push(batch);
    }

    pub(super) fn bytes(&self) -> usize {
        self.tail_bytes + self.lasts_bytes + self.files.len() * size_of::<Sorted>()
    }

    pub(super) fn unwritten_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// So many files that reading one by one costs more than making them one.
    pub(super) fn has_many_files(&self) -> bool {
        self.files.len() > MOST_FILES
    }

    /// One that would fit into a single block of a file.
    pub(super) fn is_small(&self) -> bool {
        self.files.iter().all(|f| f.lasts.len() == 1)
    }

    /// Writes what is in memory. It counts as written with [`Spilled::attach`], and before that the pane is not to be used.
    pub(super) fn write(&mut self, aggregate: &Aggregate, file: &mut SharedFile) -> Result<Written, FoldError> {
        let tail = std::mem::take(&mut self.tail);
        self.tail_bytes = 0;
        let batch = if tail.len() == 1 { tail[0].clone() } else { concat_batches(&aggregate.run, &tail).map_err(DataFusionError::from)? };
        drop(tail);
        let mut written = file.begin();
        file.write(aggregate, &self.order, &batch, &mut written)?;
        Ok(written)
    }

    /// The file with these blocks is finished.
    pub(super) fn attach(&mut self, written: Written, scratch: Arc<Scratch>) {
        let Written { first, lasts, continued } = written;
        self.lasts_bytes += lasts_bytes(&lasts) + continued.len() * size_of::<u32>();
        // Most panes have one file, and there may be very many panes.
        self.files.reserve_exact(1);
        self.files.push(Sorted { scratch, first, lasts: lasts.into(), continued: continued.into() });
    }

    /// Writes what is in memory, into a file of its own.
    fn flush(&mut self, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        if self.tail.is_empty() {
            return Ok(());
        }
        let mut file = SharedFile::new(aggregate, scratches)?;
        let written = self.write(aggregate, &mut file)?;
        self.attach(written, file.finish()?);
        Ok(())
    }

    /// All files are the oldest part of each key's states: they may become one.
    pub(super) fn merge_files(&mut self, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        let mut file = SharedFile::new(aggregate, scratches)?;
        let mut written = file.begin();
        let order = self.order.clone();
        let mut write = |groups: &mut Groups| {
            let run = groups.run(&aggregate.run)?;
            file.write(aggregate, &order, &run, &mut written)
        };
        self.scan_files(aggregate, &mut |scanned: Scanned<'_>| match scanned {
            Scanned::Groups(groups) => write(groups),
            // Each part becomes rows of its own: no value is in two of them.
            Scanned::Large(large) => large.each(scratches, &mut write),
        })?;
        self.files.clear();
        self.lasts_bytes = 0;
        self.attach(written, file.finish()?);
        Ok(())
    }

    /// All groups of a pane that [`Spilled::is_small`], back in memory. What is written nowhere else comes after it.
    pub(super) fn load(&self, aggregate: &Aggregate) -> Result<Groups, FoldError> {
        let mut all = Groups::new(aggregate, &aggregate.keys)?;
        for file in &self.files {
            let mut reader = open(file.scratch.path())?;
            for block in 0..file.lasts.len() {
                let batch = read_block(&mut reader, block, file)?;
                all.merge_repeated(batch.columns(), batch.num_rows())?;
            }
        }
        for batch in &self.tail {
            all.merge(batch.columns(), batch.num_rows())?;
        }
        Ok(all)
    }

    /// All groups of the pane, a bounded number at a time, each once.
    pub(super) fn scan(
        &mut self,
        aggregate: &Aggregate,
        scratches: &mut Scratches,
        each: &mut dyn FnMut(Scanned<'_>, &mut Scratches) -> Result<(), FoldError>,
    ) -> Result<(), FoldError> {
        self.flush(aggregate, scratches)?;
        self.scan_files(aggregate, &mut |scanned| each(scanned, &mut *scratches))
    }

    fn scan_files(&self, aggregate: &Aggregate, each: &mut dyn FnMut(Scanned<'_>) -> Result<(), FoldError>) -> Result<(), FoldError> {
        let mut cursors = self.files.iter().map(|f| Cursor::new(self, f)).collect::<Result<Vec<_>, _>>()?;
        loop {
            cursors.retain(|c| !c.done());
            // Up to the lowest of the blocks' last keys, every file's rows are at hand, unless those of that key go on.
            let Some(bound) = cursors.iter().map(|c| c.last()).min().map(<[u8]>::to_vec) else { return Ok(()) };
            let goes_on = cursors.iter().any(|c| c.last() == bound && c.is_continued());
            let mut groups = Groups::new(aggregate, &aggregate.keys)?;
            for cursor in &mut cursors {
                let part = cursor.take(|key| key < &bound[..] || key == &bound[..] && !goes_on);
                if part.num_rows() > 0 {
                    groups.merge_repeated(part.columns(), part.num_rows())?;
                }
                cursor.load_next(self)?;
            }
            if !groups.is_empty() {
                each(Scanned::Groups(&mut groups))?;
            }
            if goes_on {
                let mut stretches = vec![];
                for cursor in &mut cursors {
                    cursor.take_all_of(&bound, self, &mut stretches)?;
                }
                self.scan_large(aggregate, &stretches, each)?;
            }
        }
    }

    /// The group that these rows are of.
    fn scan_large(&self, aggregate: &Aggregate, stretches: &[Stretch<'_>], each: &mut dyn FnMut(Scanned<'_>) -> Result<(), FoldError>) -> Result<(), FoldError> {
        let states = |each: &mut Take<'_>| {
            for of_file in stretches.chunk_by(|a, b| std::ptr::eq(a.file, b.file)) {
                let mut reader = open(of_file[0].file.scratch.path())?;
                for Stretch { file, block, rows } in of_file {
                    each(&read_block(&mut reader, *block, file)?.slice(rows.start, rows.len()))?;
                }
            }
            Ok(())
        };
        let Some(Stretch { file, block, rows }) = stretches.first() else { return Ok(()) };
        let first = read_block(&mut open(file.scratch.path())?, *block, file)?.slice(rows.start, 1);
        each(Scanned::Large(&self.large(aggregate, first.columns()[..aggregate.keys.len()].to_vec(), &states)))
    }

    /// One group, to be read in parts where memory asks for it.
    pub(super) fn large<'a>(&self, aggregate: &'a Aggregate, key: Vec<ArrayRef>, states: &'a States<'a>) -> Large<'a> {
        Large { aggregate, key, states, most_bytes: self.most_set_bytes() }
    }

    /// Memory for sets that are counted, about.
    pub(super) fn most_set_bytes(&self) -> usize {
        (self.order.memory_bytes / 2).max(LEAST_BYTES)
    }

    /// The places of these keys, in their order.
    pub(super) fn ordered(&self, keys: &[ArrayRef], n: usize) -> Result<Vec<usize>, FoldError> {
        let rows = self.order.rows(keys, n)?;
        let mut places: Vec<usize> = (0..n).collect();
        places.sort_by(|a, b| rows.row(*a).cmp(&rows.row(*b)));
        Ok(places)
    }

    /// The states of some keys, oldest first: calls `each` with rows of state, and for each row the position of its key in `keys`,
    /// until it returns false.
    pub(super) fn lookup(&self, keys: &[ArrayRef], n: usize, each: &mut dyn FnMut(&RecordBatch, &[usize]) -> Result<bool, FoldError>) -> Result<(), FoldError> {
        let wanted = self.order.rows(keys, n)?;
        let order = self.ordered(keys, n)?;
        for file in &self.files {
            let mut reader: Option<FileReader<BufReader<File>>> = None;
            let mut at = 0;
            for (block, last) in file.lasts.iter().enumerate() {
                let upto = at + order[at..].partition_point(|i| wanted.row(*i).as_ref() <= &last[..]);
                if upto == at {
                    continue;
                }
                let reader = match &mut reader {
                    Some(reader) => reader,
                    none => none.insert(open(file.scratch.path())?),
                };
                let batch = read_block(reader, block, file)?;
                let rows = self.order.rows(batch.columns(), batch.num_rows())?;
                let (mut take, mut ids) = (vec![], vec![]);
                let mut row = 0;
                for i in &order[at..upto] {
                    let key = wanted.row(*i);
                    row += partition_point(rows.num_rows() - row, |r| rows.row(row + r) < key);
                    let mut same = row;
                    while same < rows.num_rows() && rows.row(same) == key {
                        take.push(same as u32);
                        ids.push(*i);
                        same += 1;
                    }
                }
                if !ids.is_empty() && !each(&take_record_batch(&batch, &UInt32Array::from(take)).map_err(DataFusionError::from)?, &ids)? {
                    return Ok(());
                }
                // A key that goes on is wanted of the next block, too.
                at = if file.is_continued(block) && wanted.row(order[upto - 1]).as_ref() == &last[..] { upto - 1 } else { upto };
            }
        }
        let by_key: HashMap<&[u8], usize> = (0..wanted.num_rows()).map(|i| (wanted.row(i).data(), i)).collect();
        for batch in &self.tail {
            let rows = self.order.rows(batch.columns(), batch.num_rows())?;
            let (take, ids): (Vec<u32>, Vec<usize>) = (0..rows.num_rows()).filter_map(|r| Some((r as u32, *by_key.get(rows.row(r).data())?))).unzip();
            if !ids.is_empty() && !each(&take_record_batch(batch, &UInt32Array::from(take)).map_err(DataFusionError::from)?, &ids)? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// So many rows to a block, and more of the last one's key.
fn blocks_of(rows: usize, joined: impl Fn(u32, u32) -> bool) -> Vec<Range<usize>> {
    let mut blocks = vec![];
    let mut from = 0;
    while from < rows {
        let mut to = (from + BLOCK_ROWS).min(rows);
        while to < rows && joined(to as u32 - 1, to as u32) {
            to += 1;
        }
        blocks.push(from..to);
        from = to;
    }
    blocks
}

fn lasts_bytes(lasts: &[Box<[u8]>]) -> usize {
    lasts.iter().map(|k| k.len() + size_of::<Box<[u8]>>()).sum()
}

fn partition_point(n: usize, below: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if below(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn read_block(reader: &mut FileReader<BufReader<File>>, block: usize, file: &Sorted) -> Result<RecordBatch, FoldError> {
    let path = file.scratch.path();
    reader.set_index(file.first + block).map_err(|e| spill_error(path, e))?;
    match reader.next() {
        Some(batch) => batch.map_err(|e| spill_error(path, e)),
        None => Err(FoldError::Spill { path: path.into(), source: std::io::Error::other(format!("block {block} is missing")) }),
    }
}

/// Where the merge stands in one file.
struct Cursor<'a> {
    file: &'a Sorted,
    reader: FileReader<BufReader<File>>,
    next_block: usize,
    block: Option<(RecordBatch, Rows)>,
    row: usize,
}

impl<'a> Cursor<'a> {
    fn new(pane: &Spilled, file: &'a Sorted) -> Result<Self, FoldError> {
        let mut cursor = Self { file, reader: open(file.scratch.path())?, next_block: 0, block: None, row: 0 };
        cursor.load_next(pane)?;
        Ok(cursor)
    }

    /// Loads the next block when this one is used up.
    fn load_next(&mut self, pane: &Spilled) -> Result<(), FoldError> {
        if self.block.as_ref().is_some_and(|(_, rows)| self.row < rows.num_rows()) {
            return Ok(());
        }
        self.block = None;
        self.row = 0;
        if self.next_block < self.file.lasts.len() {
            let batch = read_block(&mut self.reader, self.next_block, self.file)?;
            let rows = pane.order.rows(batch.columns(), batch.num_rows())?;
            self.block = Some((batch, rows));
            self.next_block += 1;
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.block.is_none()
    }

    /// The last key of the block at hand, which is loaded unless the file is [`Cursor::done`].
    fn last(&self) -> &[u8] {
        &self.file.lasts[self.next_block - 1]
    }

    /// That key goes on in the next block.
    fn is_continued(&self) -> bool {
        self.file.is_continued(self.next_block - 1)
    }

    /// The next rows, as far as their keys are meant: those that come first in the order.
    fn take(&mut self, meant: impl Fn(&[u8]) -> bool) -> RecordBatch {
        let (batch, rows) = self.block.as_ref().expect("files that are done were left out");
        let n = partition_point(rows.num_rows() - self.row, |r| meant(rows.row(self.row + r).data()));
        let part = batch.slice(self.row, n);
        self.row += n;
        part
    }

    /// Passes all rows of this key, which is the next one or not there, and says where they are.
    fn take_all_of(&mut self, key: &[u8], pane: &Spilled, stretches: &mut Vec<Stretch<'a>>) -> Result<(), FoldError> {
        while !self.done() {
            let (block, from) = (self.next_block - 1, self.row);
            let n = self.take(|k| k == key).num_rows();
            if n == 0 {
                break;
            }
            stretches.push(Stretch { file: self.file, block, rows: from..from + n });
            self.load_next(pane)?;
        }
        Ok(())
    }
}

/// Rows of one key in a block.
struct Stretch<'a> {
    file: &'a Sorted,
    block: usize,
    rows: Range<usize>,
}
