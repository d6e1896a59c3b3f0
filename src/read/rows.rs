//! The live rows of one file, in the table's schema.

use super::adapt::{adapt, partition_column, position};
use super::parquet_file::ParquetFile;
use super::{LiveFile, ReadError};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use parquet::arrow::push_decoder::ParquetPushDecoder;
use std::sync::Arc;

/// Batches of rows in file order.
pub type LiveRows = BoxStream<'static, Result<RecordBatch, ReadError>>;

/// Batches of rows in file order, each with the positions of its rows in the file, ascending.
pub type PositionedRows = BoxStream<'static, Result<(RecordBatch, Vec<u64>), ReadError>>;

/// Reads the rows of `file` that were not deleted, in file order, at most `batch_rows` at a time.
///
/// The batches have the schema of `schema` (the table's; field ids in its metadata), or of those
/// `columns` of it, in that order. Only the columns asked for are fetched; a file from which nothing
/// is needed but its number of rows is not opened at all.
pub fn live_rows(store: Arc<dyn ObjectStore>, file: &LiveFile, schema: &SchemaRef, columns: Option<&[String]>, batch_rows: usize) -> LiveRows {
    positioned_rows(store, file, schema, columns, batch_rows).map_ok(|(batch, _)| batch).boxed()
}

/// As [`live_rows`], with each row's position in the file, deleted rows counted.
pub fn positioned_rows(store: Arc<dyn ObjectStore>, file: &LiveFile, schema: &SchemaRef, columns: Option<&[String]>, batch_rows: usize) -> PositionedRows {
    let projected = match columns {
        None => schema.clone(),
        Some(columns) => match project(schema, columns) {
            Ok(schema) => schema,
            Err(e) => return futures::stream::once(async move { Err(e) }).boxed(),
        },
    };
    let start = Reading::Start { store, file: file.clone(), schema: projected, batch_rows: batch_rows.max(1) };
    futures::stream::try_unfold(start, Reading::step).boxed()
}

fn project(schema: &Schema, columns: &[String]) -> Result<SchemaRef, ReadError> {
    let fields = columns.iter().map(|column| match schema.index_of(column) {
        Ok(at) => Ok(schema.fields()[at].clone()),
        Err(_) => {
            let found: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            Err(ReadError::UnknownColumn { column: column.clone(), found: found.join(", ") })
        }
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>, _>>()?)))
}

/// Where the values of an output column come from.
enum Origin {
    /// The n-th of the columns fetched from the file.
    File(usize),
    Partition(Option<String>),
    /// The file is older than the column.
    Absent,
}

struct Plan {
    schema: SchemaRef,
    origins: Vec<Origin>,
    path: String,
}

impl Plan {
    fn batch(&self, fetched: &[ArrayRef], from: &Fields, rows: usize) -> Result<RecordBatch, ReadError> {
        let failed = |column: &str, e: ArrowError| ReadError::Column { path: self.path.clone(), column: column.to_string(), reason: e.to_string() };
        let mut columns = Vec::with_capacity(self.origins.len());
        for (field, origin) in self.schema.fields().iter().zip(&self.origins) {
            let column = match origin {
                Origin::File(at) => adapt(&fetched[*at], &from[*at], field),
                Origin::Partition(text) => partition_column(text.as_deref(), field, rows),
                Origin::Absent => Ok(new_null_array(field.data_type(), rows)),
            };
            columns.push(column.map_err(|e| failed(field.name(), e))?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(|e| failed("(all)", e))
    }
}

enum Reading {
    Start { store: Arc<dyn ObjectStore>, file: LiveFile, schema: SchemaRef, batch_rows: usize },
    /// Nothing but the number of rows is needed.
    Counting { plan: Plan, positions: Positions, batch_rows: usize },
    Decoding { plan: Plan, positions: Positions, file: ParquetFile, decoder: Box<ParquetPushDecoder> },
}

type Step = Result<Option<((RecordBatch, Vec<u64>), Reading)>, ReadError>;

impl Reading {
    async fn step(self) -> Step {
        let opened = match self {
            Reading::Start { store, file, schema, batch_rows } => match Reading::open(store, file, schema, batch_rows).await? {
                Some(opened) => opened,
                None => return Ok(None),
            },
            opened => opened,
        };
        match opened {
            Reading::Decoding { plan, mut positions, file, mut decoder } => {
                let Some(batch) = file.next_batch(&mut decoder).await? else { return Ok(None) };
                let at = positions.take(batch.num_rows());
                if at.len() != batch.num_rows() {
                    let reason = format!("expected {} more live rows, found {}", at.len(), batch.num_rows());
                    return Err(ReadError::Corrupt { path: plan.path, reason });
                }
                let adapted = plan.batch(batch.columns(), batch.schema_ref().fields(), batch.num_rows())?;
                Ok(Some(((adapted, at), Reading::Decoding { plan, positions, file, decoder })))
            }
            Reading::Counting { plan, mut positions, batch_rows } => {
                let at = positions.take(batch_rows);
                if at.is_empty() {
                    return Ok(None);
                }
                let batch = plan.batch(&[], &Fields::empty(), at.len())?;
                Ok(Some(((batch, at), Reading::Counting { plan, positions, batch_rows })))
            }
            Reading::Start { .. } => Ok(None),
        }
    }

    /// Opens the file, if it must be; `None` when no row of it is live.
    async fn open(store: Arc<dyn ObjectStore>, file: LiveFile, schema: SchemaRef, batch_rows: usize) -> Result<Option<Self>, ReadError> {
        let positions = Positions { next: 0, rows: file.records, deleted: file.deleted.clone() };
        if file.records <= file.deleted.range_cardinality(..file.records) {
            return Ok(None);
        }
        let partition: Vec<Option<&Option<String>>> = schema.fields().iter().map(|f| file.partition_values.get(f.name())).collect();
        if partition.iter().all(Option::is_some) {
            let origins = partition.into_iter().flatten().cloned().map(Origin::Partition).collect();
            return Ok(Some(Reading::Counting { plan: Plan { schema, origins, path: file.path }, positions, batch_rows }));
        }
        let open = ParquetFile::open(store, &file).await?;
        let found: Vec<Option<usize>> = schema.fields().iter().zip(&partition).map(|(f, p)| if p.is_some() { None } else { position(open.fields(), f) }).collect();
        // The decoder yields columns in the file's order, whatever order they are asked for in.
        let mut fetched: Vec<usize> = found.iter().flatten().copied().collect();
        fetched.sort_unstable();
        fetched.dedup();
        let mut origins = Vec::with_capacity(found.len());
        for ((field, at), partition) in schema.fields().iter().zip(&found).zip(&partition) {
            origins.push(match (partition, at) {
                (Some(value), _) => Origin::Partition((*value).clone()),
                (None, Some(at)) => Origin::File(fetched.partition_point(|f| f < at)),
                (None, None) if field.is_nullable() => Origin::Absent,
                (None, None) => {
                    let reason = "the table requires it and the file lacks it".to_string();
                    return Err(ReadError::Column { path: file.path, column: field.name().clone(), reason });
                }
            });
        }
        let plan = Plan { schema, origins, path: file.path.clone() };
        if fetched.is_empty() {
            return Ok(Some(Reading::Counting { plan, positions, batch_rows }));
        }
        let decoder = Box::new(open.decoder(&fetched, &file.deleted, batch_rows)?);
        Ok(Some(Reading::Decoding { plan, positions, file: open, decoder }))
    }
}

/// The positions of a file's live rows, in order.
struct Positions {
    next: u64,
    rows: u64,
    deleted: roaring::RoaringTreemap,
}

impl Positions {
    fn take(&mut self, most: usize) -> Vec<u64> {
        let mut taken = Vec::with_capacity(most.min((self.rows - self.next.min(self.rows)) as usize));
        let mut deleted = self.deleted.iter();
        deleted.advance_to(self.next);
        let mut skip = deleted.next();
        while taken.len() < most && self.next < self.rows {
            if skip == Some(self.next) {
                skip = deleted.next();
            } else {
                taken.push(self.next);
            }
            self.next += 1;
        }
        taken
    }
}
