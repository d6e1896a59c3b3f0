//! Rows on their way from the fold to the tables: in memory, or in a file when there are many.

use super::FoldError;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use arrow::ipc::CompressionType;
use arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows that are kept as one batch, about: a window with few rows shall not cost a batch of its own.
const BATCH_ROWS: usize = 8192;

/// A file that is removed when nobody reads it any more.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever starts with this folder next clears it: a file that cannot be removed costs space only.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Names for scratch files, each used once in the life of a fold.
#[derive(Debug)]
pub(super) struct Scratches {
    folder: PathBuf,
    prefix: String,
    made: u64,
}

impl Scratches {
    pub(super) fn new(folder: PathBuf, table: &str) -> Self {
        Self { folder, prefix: table.to_string(), made: 0 }
    }

    pub(super) fn writer(&mut self, schema: &SchemaRef) -> Result<ScratchWriter, FoldError> {
        self.made += 1;
        let path = self.folder.join(format!("{}-{}.arrow", self.prefix, self.made));
        let failed = |source| FoldError::Spill { path: path.clone(), source };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        let scratch = Scratch(path);
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME));
        let writer = options.and_then(|o| FileWriter::try_new_with_options(BufWriter::new(file), schema, o));
        Ok(ScratchWriter { writer: writer.map_err(|e| spill_error(scratch.path(), e))?, scratch, rows: 0 })
    }
}

pub(super) struct ScratchWriter {
    writer: FileWriter<BufWriter<File>>,
    scratch: Scratch,
    rows: u64,
}

impl ScratchWriter {
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), FoldError> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch).map_err(|e| spill_error(self.scratch.path(), e))
    }

    pub(super) fn finish(mut self) -> Result<(Scratch, u64), FoldError> {
        self.writer.finish().map_err(|e| spill_error(self.scratch.path(), e))?;
        Ok((self.scratch, self.rows))
    }
}

pub(super) fn open(path: &Path) -> Result<FileReader<BufReader<File>>, FoldError> {
    let file = File::open(path).map_err(|source| FoldError::Spill { path: path.into(), source })?;
    FileReader::try_new(BufReader::new(file), None).map_err(|e| spill_error(path, e))
}

pub(super) fn spill_error(path: &Path, e: arrow::error::ArrowError) -> FoldError {
    let source = match e {
        arrow::error::ArrowError::IoError(_, source) => source,
        other => std::io::Error::other(other),
    };
    FoldError::Spill { path: path.into(), source }
}

/// Memory that the rows of a batch take, whatever else its buffers hold.
pub(super) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or_else(|_| c.get_array_memory_size())).sum()
}

/// Rows of one schema.
#[derive(Debug, Clone)]
pub struct RowSet {
    schema: SchemaRef,
    rows: u64,
    kept: Kept,
}

#[derive(Debug, Clone)]
enum Kept {
    Memory(Vec<RecordBatch>),
    File(Arc<Scratch>),
}

impl RowSet {
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Memory held; rows in a file hold none.
    pub fn bytes(&self) -> usize {
        match &self.kept {
            Kept::Memory(batches) => batches.iter().map(batch_bytes).sum(),
            Kept::File(_) => 0,
        }
    }

    pub fn is_spilled(&self) -> bool {
        matches!(self.kept, Kept::File(_))
    }

    /// The rows in batches of bounded size, as often as wanted.
    pub fn batches(&self) -> Result<Box<dyn Iterator<Item = Result<RecordBatch, FoldError>> + Send + '_>, FoldError> {
        Ok(match &self.kept {
            Kept::Memory(batches) => Box::new(batches.iter().cloned().map(Ok)),
            Kept::File(scratch) => Box::new(open(scratch.path())?.map(|b| b.map_err(|e| spill_error(scratch.path(), e)))),
        })
    }
}

/// Collects rows, in a file from `limit` bytes on.
pub(super) struct RowSetBuilder {
    schema: SchemaRef,
    small: BatchCoalescer,
    memory: Vec<RecordBatch>,
    bytes: usize,
    rows: u64,
    limit: usize,
    file: Option<ScratchWriter>,
}

impl RowSetBuilder {
    pub(super) fn new(schema: SchemaRef, limit: usize) -> Self {
        let small = BatchCoalescer::new(schema.clone(), BATCH_ROWS).with_biggest_coalesce_batch_size(Some(BATCH_ROWS / 2));
        Self { schema, small, memory: vec![], bytes: 0, rows: 0, limit, file: None }
    }

    pub(super) fn push(&mut self, batch: RecordBatch, scratches: &mut Scratches) -> Result<(), FoldError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.rows += batch.num_rows() as u64;
        self.small.push_batch(batch).map_err(DataFusionError::from)?;
        while let Some(batch) = self.small.next_completed_batch() {
            self.keep(batch, scratches)?;
        }
        Ok(())
    }

    fn keep(&mut self, batch: RecordBatch, scratches: &mut Scratches) -> Result<(), FoldError> {
        if self.file.is_none() && self.bytes + batch_bytes(&batch) > self.limit {
            let mut file = scratches.writer(&self.schema)?;
            for batch in self.memory.drain(..) {
                file.write(&batch)?;
            }
            self.bytes = 0;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write(&batch)?,
            None => {
                self.bytes += batch_bytes(&batch);
                self.memory.push(batch);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, scratches: &mut Scratches) -> Result<Option<RowSet>, FoldError> {
        if self.rows == 0 {
            return Ok(None);
        }
        self.small.finish_buffered_batch().map_err(DataFusionError::from)?;
        while let Some(batch) = self.small.next_completed_batch() {
            self.keep(batch, scratches)?;
        }
        let kept = match self.file {
            Some(file) => Kept::File(Arc::new(file.finish()?.0)),
            None => Kept::Memory(self.memory),
        };
        Ok(Some(RowSet { schema: self.schema, rows: self.rows, kept }))
    }
}

impl crate::stage::rows::RowBatches for RowSet {
    fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_> {
        match RowSet::batches(self) {
            Ok(batches) => Box::new(batches.map(|b| b.map_err(|e| e.to_string()))),
            Err(e) => Box::new(std::iter::once(Err(e.to_string()))),
        }
    }
}
