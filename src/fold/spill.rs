//! A pane that outgrew memory: runs sorted by key, in files.
//!
//! The states of a key are never added to each other on the way into a file, but for a prefix of all of them:
//! reading adds them from the oldest to the newest, as memory would have. Floats are summed in the same
//! order either way, so that a result does not depend on how much memory there was.

use super::FoldError;
use super::rows::{Scratch, Scratches, batch_bytes, open, spill_error};
use crate::partial::groups::Groups;
use crate::pipeline::sql::Aggregate;
use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::ipc::reader::FileReader;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::error::DataFusionError;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;

/// Rows of a block of a file, unless one key has more.
const BLOCK_ROWS: usize = 4096;
/// Files that are merged at once; one more than this and all become one.
const MOST_FILES: usize = 32;

/// State rows of one pane: in files, the newest ones in memory.
pub(super) struct Spilled {
    files: Vec<Sorted>,
    tail: Vec<RecordBatch>,
    tail_bytes: usize,
    converter: RowConverter,
    keys: usize,
}

/// Rows in the order of their keys; all rows of a key, oldest first, are in one block.
struct Sorted {
    scratch: Scratch,
    /// The last key of each block.
    lasts: Vec<Box<[u8]>>,
}

impl Spilled {
    pub(super) fn new(aggregate: &Aggregate) -> Result<Self, DataFusionError> {
        let fields = aggregate.keys.iter().map(|f| SortField::new(f.data_type().clone())).collect();
        Ok(Self { files: vec![], tail: vec![], tail_bytes: 0, converter: RowConverter::new(fields)?, keys: aggregate.keys.len() })
    }

    pub(super) fn push(&mut self, batch: RecordBatch) {
        self.tail_bytes += batch_bytes(&batch);
        self.tail.push(batch);
    }

    pub(super) fn bytes(&self) -> usize {
        self.tail_bytes + self.files.iter().flat_map(|f| &f.lasts).map(|k| k.len() + size_of::<Box<[u8]>>()).sum::<usize>()
    }

    pub(super) fn unwritten_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Writes what is in memory.
    pub(super) fn flush(&mut self, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        if self.tail.is_empty() {
            return Ok(());
        }
        let tail = std::mem::take(&mut self.tail);
        self.tail_bytes = 0;
        let batch = if tail.len() == 1 { tail[0].clone() } else { concat_batches(&aggregate.run, &tail).map_err(DataFusionError::from)? };
        drop(tail);
        let rows = self.encode(&batch.columns()[..self.keys])?;
        let mut order: Vec<u32> = (0..batch.num_rows() as u32).collect();
        order.sort_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
        let mut writer = scratches.writer(&aggregate.run)?;
        let mut lasts = vec![];
        let mut from = 0;
        while from < order.len() {
            let mut to = (from + BLOCK_ROWS).min(order.len());
            while to < order.len() && rows.row(order[to] as usize) == rows.row(order[to - 1] as usize) {
                to += 1;
            }
            writer.write(&take_record_batch(&batch, &UInt32Array::from(order[from..to].to_vec())).map_err(DataFusionError::from)?)?;
            lasts.push(rows.row(order[to - 1] as usize).as_ref().into());
            from = to;
        }
        let (scratch, _) = writer.finish()?;
        self.files.push(Sorted { scratch, lasts });
        if self.files.len() > MOST_FILES {
            self.merge_files(aggregate, scratches)?;
        }
        Ok(())
    }

    fn encode(&self, columns: &[ArrayRef]) -> Result<Rows, DataFusionError> {
        Ok(self.converter.convert_columns(columns)?)
    }

    /// All files are the oldest part of each key's states: they may become one.
    fn merge_files(&mut self, aggregate: &Aggregate, scratches: &mut Scratches) -> Result<(), FoldError> {
        let mut writer = scratches.writer(&aggregate.run)?;
        let mut lasts = vec![];
        let converter = RowConverter::new(aggregate.keys.iter().map(|f| SortField::new(f.data_type().clone())).collect()).map_err(DataFusionError::from)?;
        self.scan_files(aggregate, &mut |groups: &mut Groups| {
            let run = groups.run(&aggregate.run)?;
            let rows = converter.convert_columns(&run.columns()[..aggregate.keys.len()]).map_err(DataFusionError::from)?;
            let mut order: Vec<u32> = (0..run.num_rows() as u32).collect();
            order.sort_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
            for part in order.chunks(BLOCK_ROWS) {
                writer.write(&take_record_batch(&run, &UInt32Array::from(part.to_vec())).map_err(DataFusionError::from)?)?;
                lasts.push(rows.row(part[part.len() - 1] as usize).as_ref().into());
            }
            Ok(())
        })?;
        let (scratch, _) = writer.finish()?;
        self.files = vec![Sorted { scratch, lasts }];
        Ok(())
    }

    /// All groups of the pane, a bounded number at a time, each once.
    pub(super) fn scan(
        &mut self,
        aggregate: &Aggregate,
        scratches: &mut Scratches,
        each: &mut dyn FnMut(&mut Groups, &mut Scratches) -> Result<(), FoldError>,
    ) -> Result<(), FoldError> {
        self.flush(aggregate, scratches)?;
        self.scan_files(aggregate, &mut |groups: &mut Groups| each(groups, &mut *scratches))
    }

    fn scan_files(&self, aggregate: &Aggregate, each: &mut dyn FnMut(&mut Groups) -> Result<(), FoldError>) -> Result<(), FoldError> {
        let mut cursors = self.files.iter().map(|f| Cursor::new(self, f)).collect::<Result<Vec<_>, _>>()?;
        loop {
            cursors.retain(|c| !c.done());
            // Up to the lowest of the blocks' last keys, every file's rows are at hand.
            let Some(bound) = cursors.iter().map(|c| c.last()).min().map(<[u8]>::to_vec) else { return Ok(()) };
            let mut groups = Groups::new(aggregate, &aggregate.keys)?;
            for cursor in &mut cursors {
                let part = cursor.up_to(&bound);
                if part.num_rows() > 0 {
                    groups.merge_repeated(part.columns(), part.num_rows())?;
                }
                cursor.load_next(self)?;
            }
            each(&mut groups)?;
        }
    }

    /// The states of some keys, oldest first: rows of state, and for each the position of its key in `keys`.
    pub(super) fn lookup(&self, keys: &[ArrayRef]) -> Result<Vec<(RecordBatch, Vec<usize>)>, FoldError> {
        let wanted = self.encode(keys)?;
        let mut order: Vec<usize> = (0..wanted.num_rows()).collect();
        order.sort_by(|a, b| wanted.row(*a).cmp(&wanted.row(*b)));
        let mut found = vec![];
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
                let rows = self.encode(&batch.columns()[..self.keys])?;
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
                if !ids.is_empty() {
                    found.push((take_record_batch(&batch, &UInt32Array::from(take)).map_err(DataFusionError::from)?, ids));
                }
                at = upto;
            }
        }
        let by_key: HashMap<&[u8], usize> = (0..wanted.num_rows()).map(|i| (wanted.row(i).data(), i)).collect();
        for batch in &self.tail {
            let rows = self.encode(&batch.columns()[..self.keys])?;
            let (take, ids): (Vec<u32>, Vec<usize>) = (0..rows.num_rows()).filter_map(|r| Some((r as u32, *by_key.get(rows.row(r).data())?))).unzip();
            if !ids.is_empty() {
                found.push((take_record_batch(batch, &UInt32Array::from(take)).map_err(DataFusionError::from)?, ids));
            }
        }
        Ok(found)
    }
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
    reader.set_index(block).map_err(|e| spill_error(path, e))?;
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
            let rows = pane.encode(&batch.columns()[..pane.keys])?;
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

    fn up_to(&mut self, bound: &[u8]) -> RecordBatch {
        let (batch, rows) = self.block.as_ref().expect("files that are done were left out");
        let n = partition_point(rows.num_rows() - self.row, |r| rows.row(self.row + r).data() <= bound);
        let part = batch.slice(self.row, n);
        self.row += n;
        part
    }
}
