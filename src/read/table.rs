//! A table's live rows as a DataFusion table.

use super::prune::FileBounds;
use super::{LiveFile, live_rows};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use std::any::Any;
use std::sync::Arc;

/// One version of a table: its live files at the moment it was made. Streams; fetches only the
/// columns that a query needs, of the files that its filters leave over.
pub struct LakeTableProvider {
    store: Arc<dyn ObjectStore>,
    schema: SchemaRef,
    files: Vec<LiveFile>,
}

impl LakeTableProvider {
    /// `schema` is the table's, with field ids; for a Delta table its [`super::delta_schema`] or,
    /// to see uuids and times of day as what they are, the table's own: both read.
    pub fn new(store: Arc<dyn ObjectStore>, schema: SchemaRef, files: Vec<LiveFile>) -> Self {
        Self { store, schema, files }
    }

    /// The files that `filters` do not rule out.
    fn pruned(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<LiveFile>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(self.files.clone()) };
        let physical = state.create_physical_expr(filter, &DFSchema::try_from(self.schema.clone())?)?;
        let predicate = PruningPredicate::try_new(physical, self.schema.clone())?;
        let keep = predicate.prune(&FileBounds::new(self.schema.clone(), &self.files))?;
        Ok(self.files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file.clone()).collect())
    }
}

impl std::fmt::Debug for LakeTableProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LakeTableProvider").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for LakeTableProvider {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(&self, state: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let mut files = self.pruned(state, filters)?;
        // Largest first, each to the partition with the least so far: partitions end together.
        files.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
        let count = state.config().target_partitions().min(files.len()).max(1);
        let mut partitions: Vec<(u64, Vec<LiveFile>)> = vec![(0, Vec::new()); count];
        for file in files {
            if let Some(least) = partitions.iter_mut().min_by_key(|(bytes, _)| *bytes) {
                least.0 += file.bytes.max(1);
                least.1.push(file);
            }
        }
        let partitions = partitions.into_iter().map(|(_, files)| {
            let part = FilePartition { store: self.store.clone(), schema: schema.clone(), files: files.into() };
            Arc::new(part) as Arc<dyn PartitionStream>
        });
        Ok(Arc::new(StreamingTableExec::try_new(schema.clone(), partitions.collect(), None, [], false, limit)?))
    }
}

/// Files that one task reads, one after the other.
struct FilePartition {
    store: Arc<dyn ObjectStore>,
    /// What is read of each.
    schema: SchemaRef,
    files: Arc<[LiveFile]>,
}

impl std::fmt::Debug for FilePartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FilePartition").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

impl PartitionStream for FilePartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batch_rows = context.session_config().batch_size();
        let (store, schema, files) = (self.store.clone(), self.schema.clone(), self.files.clone());
        let rows = futures::stream::iter(0..files.len()).flat_map(move |at| live_rows(store.clone(), &files[at], &schema, None, batch_rows));
        let rows = rows.map_err(|e| DataFusionError::External(Box::new(e)));
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}
