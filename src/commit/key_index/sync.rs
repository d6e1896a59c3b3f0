//! The index brought to a version of the table by the difference of their files; also how it is
//! made from nothing.

use super::{KeyIndex, KeyIndexError};
use crate::read::{LiveFile, positioned_rows};
use crate::stage::{FIELD_ID, Scalar};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::max;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType};
use futures::TryStreamExt;
use object_store::ObjectStore;
use std::collections::HashSet;
use std::sync::Arc;

const BATCH_ROWS: usize = 8192;

/// Which rows of a windowed table can still change: those whose window ends after the horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowBound {
    /// A timestamp column of the table, in microseconds: `window_end`, or `window_start`.
    pub column: String,
    /// What to add to it, at most, for the window's end: 0, or the longest window's length.
    pub length_us: i64,
    pub horizon_us: i64,
}

/// What [`KeyIndex::sync`] had to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SyncReport {
    /// Data files whose key columns were read.
    pub files_read: u64,
    pub rows_read: u64,
    /// Files that are gone from the table.
    pub files_removed: u64,
}

impl KeyIndex {
    /// Brings the index to `version`, whose live files are `live`: files that are gone are removed,
    /// files that are new are read (their key columns only), deleted rows are taken over. From an
    /// empty index this reads the key columns of the whole table, but for files that `window`
    /// proves closed. `schema` is the table's, of either format.
    ///
    /// A file's content never changes under its name; deletes only grow: where they shrank (a
    /// restore) the file is read again. An index that is damaged is made anew.
    pub async fn sync(
        &mut self,
        store: Arc<dyn ObjectStore>,
        live: &[LiveFile],
        schema: &SchemaRef,
        version: &str,
        window: Option<&WindowBound>,
    ) -> Result<SyncReport, KeyIndexError> {
        if !self.damaged {
            match self.sync_by_difference(&store, live, schema, version, window).await {
                Err(KeyIndexError::Corrupt { .. } | KeyIndexError::UnknownFile { .. }) => {}
                done => return done,
            }
        }
        self.clear()?;
        self.sync_by_difference(&store, live, schema, version, window).await
    }

    async fn sync_by_difference(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        live: &[LiveFile],
        schema: &SchemaRef,
        version: &str,
        window: Option<&WindowBound>,
    ) -> Result<SyncReport, KeyIndexError> {
        let mut report = SyncReport::default();
        let paths: HashSet<&str> = live.iter().map(|f| f.path.as_str()).collect();
        let gone: Vec<Arc<str>> = self.files.iter().filter(|(_, f)| !paths.contains(&*f.path)).map(|(_, f)| f.path.clone()).collect();
        for path in gone {
            self.remove_file(&path)?;
            report.files_removed += 1;
        }
        for file in live {
            match self.files.id(&file.path).and_then(|id| self.files.file(id)) {
                Some(known) if known.closed => {}
                Some(known) if known.deleted.is_subset(&file.deleted) => self.mark_deleted(&file.path, &file.deleted)?,
                _ => self.index_file(store, file, schema, window, &mut report).await?,
            }
        }
        if let Some(window) = window {
            self.forget_before(window.horizon_us)?;
        }
        self.advance_to(version)?;
        Ok(report)
    }

    async fn index_file(&mut self, store: &Arc<dyn ObjectStore>, file: &LiveFile, schema: &SchemaRef, window: Option<&WindowBound>, report: &mut SyncReport) -> Result<(), KeyIndexError> {
        let mut keys = self.begin_file();
        if let Some(window) = window
            && let Some(until) = bound(file, schema, window)
            && until <= window.horizon_us
        {
            return self.add(&file.path, keys, Some(until));
        }
        let mut columns = self.key_columns();
        if let Some(window) = window.filter(|w| !columns.contains(&w.column)) {
            columns.push(window.column.clone());
        }
        let mut rows = positioned_rows(store.clone(), file, schema, Some(&columns), BATCH_ROWS);
        let mut until = window.map(|_| i64::MIN);
        while let Some((batch, positions)) = rows.try_next().await? {
            for (hash, position) in self.hashes(&batch)?.into_iter().zip(positions) {
                keys.push_at(hash, position)?;
            }
            report.rows_read += batch.num_rows() as u64;
            if let Some(window) = window {
                until = until.zip(latest(&batch, window)).map(|(a, b)| a.max(b));
            }
        }
        report.files_read += 1;
        self.add(&file.path, keys, until)?;
        self.mark_deleted(&file.path, &file.deleted)
    }
}

/// The latest window end of a batch; `None` when a row's is not known.
fn latest(batch: &RecordBatch, window: &WindowBound) -> Option<i64> {
    let column = batch.column_by_name(&window.column)?;
    if column.null_count() > 0 || !matches!(column.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
        return None;
    }
    Some(max(column.as_primitive::<TimestampMicrosecondType>())?.saturating_add(window.length_us))
}

/// The latest window end of a file, told from its bounds.
fn bound(file: &LiveFile, schema: &SchemaRef, window: &WindowBound) -> Option<i64> {
    let id: i32 = schema.field_with_name(&window.column).ok()?.metadata().get(FIELD_ID)?.parse().ok()?;
    let stats = file.columns.iter().find(|c| c.field_id == id)?;
    match stats.upper {
        Some(Scalar::Int(upper)) if stats.nulls == 0 => Some(upper.saturating_add(window.length_us)),
        _ => None,
    }
}
