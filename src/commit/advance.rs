//! Brings one table, in one format, from its stamp to a later entry: resolves keys, writes the
//! emitted rows, commits, and lets the key index follow.

use super::key_index::hash::KeyHasher;
use super::key_index::{FileKeys, KeyIndex, KeyIndexError, NewFiles, WindowBound};
use super::upsert::{ChangeOp, KeyedChange, resolve};
use super::{ANOTHER_NAME, Base, CommitError, Committed, LakeTable, Stamp, TableChange};
use crate::failpoint;
use crate::mutant::{self, Mutant};
use crate::observe::{FileCounts, Metrics, cpu, thread_cpu_ns};
use crate::pipeline::TableFormatKind;
use crate::pipeline::sql::Tumble;
use crate::read::ReadError;
use crate::runtime::in_place;
use crate::stage::file_layout::file_layout;
use crate::stage::parquet::ParquetStager;
use crate::stage::rows::RowBatches;
use crate::stage::{DataFile, TableSpec, names};
use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;
use uuid::Uuid;

/// How often a commit that lost its base to another is tried again before the turn is given up.
const MOVES: usize = 10;

/// Staged files that are looked for at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// What one entry does to one table of the lake.
pub struct Pending {
    pub seq: u64,
    pub files: Vec<(TableFormatKind, DataFile)>,
    pub rows: Vec<(ChangeOp, Arc<dyn RowBatches + Send + Sync>)>,
    pub bytes: u64,
    /// Since when it waits to be committed.
    pub since: Instant,
}

/// A table in one format, as the worker holds it.
pub struct Side {
    kind: TableFormatKind,
    table: Box<dyn LakeTable>,
    base: Base,
    /// The highest entry that it was seen stamped with.
    held: u64,
    index_folder: PathBuf,
    index: Option<KeyIndex>,
    /// The table's horizon at its stamp, or a lower one: what ends after it can still be corrected. The
    /// horizon of the entries that are committed next is higher, and would forget rows that they correct.
    horizon: Option<i64>,
    /// The last answer was lost: look before anything else.
    unknown: bool,
    /// Others were here since files were staged, or may have been: look whether those still lie there.
    disturbed: bool,
}

impl Side {
    pub fn new(kind: TableFormatKind, table: Box<dyn LakeTable>, base: Base, index_folder: PathBuf, horizon: Option<i64>) -> Self {
        Self { kind, table, held: base.stamp.entry, base, index_folder, index: None, horizon, unknown: false, disturbed: true }
    }

    pub fn kind(&self) -> TableFormatKind {
        self.kind
    }

    /// The entry that the table was stamped with when it was looked at last, or a later one up to which there
    /// is nothing for it.
    pub fn stamp(&self) -> u64 {
        self.base.stamp.entry
    }

    /// The entry that the table itself says, as it was looked at last.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// See [`LakeTable::expect`].
    pub fn expect(&mut self, spec: Arc<TableSpec>) {
        self.table.expect(spec);
    }

    /// Looks at the table anew. What it held before it must hold still: the rows in between are nowhere else by now.
    async fn look(&mut self, name: &str) -> Result<(), CommitError> {
        self.base = self.table.load().await?;
        let found = self.base.stamp.entry;
        if found < self.held {
            return Err(set_back(self.kind, name, &self.base.version, found, self.held));
        }
        self.held = found;
        Ok(())
    }

    fn tell_files(&self, name: &str, metrics: &Metrics) {
        let about = format!("{} table {name}", self.kind);
        let files = self.table.files();
        metrics.set_files(name, &self.kind.to_string(), files);
        let Some(files) = files.filter(FileCounts::are_many_and_small) else { return metrics.alert_over(&about) };
        let remedy = self.table.compaction();
        // Said once: the numbers change with every commit.
        if !metrics.alerts().contains_key(&about) {
            let of = files.bytes as f64 / (files.data + files.deletes) as f64 / 1024.0;
            metrics.alert(
                &about,
                &format!(
                    "{} data files ({} with deletes) of {of:.1} KiB on average: queries open them one by one; compact the table with another engine \
                     ({remedy}), commit less often (`commit.every`), or partition it more coarsely",
                    files.data, files.deletes
                ),
            );
        }
    }
}

/// A table that this log has filled is not where it was.
pub fn gone(format: TableFormatKind, table: &str, uuid: &str, place: &str) -> CommitError {
    let keys = match format {
        TableFormatKind::Iceberg => ", or lake.namespace, lake.iceberg.name or lake.iceberg.uri is another than before",
        TableFormatKind::Delta => "",
    };
    CommitError::Refused(format!(
        "the {format} table {table} (uuid {uuid}) is gone: it is not at {place}, so that it was dropped, or the place was emptied{keys}; bring it back, or {ANOTHER_NAME}"
    ))
}

/// A table that lacks what it held before, without a trace of who took it.
pub fn set_back(format: TableFormatKind, table: &str, place: &str, found: u64, held: u64) -> CommitError {
    CommitError::Refused(format!(
        "the {format} table {table} ({place}) is stamped with the log's entry {found}, and was with entry {held} before: an older copy of it, or of its catalog, was put in its place, and the log may not hold the entries between any more; put the newer one back, or {ANOTHER_NAME}"
    ))
}

/// One turn of the committer at one side of a table.
pub struct Advance<'a> {
    pub store: &'a Arc<dyn ObjectStore>,
    pub pipeline: &'a str,
    pub spec: &'a Arc<TableSpec>,
    /// What the table is stamped with afterwards.
    pub stamp: &'a Stamp,
    /// Of a windowed table: windows that end at or before it change no more.
    pub horizon: Option<i64>,
    pub window: Option<&'a Tumble>,
    /// Rows that are written now may be corrected later.
    pub corrections: bool,
    /// Another worker commits: see how far it is, and write nothing.
    pub only_look: bool,
    pub attempt: Uuid,
    /// Ids that are never given twice: of the attempts after the first.
    pub new_id: &'a (dyn Fn() -> Uuid + Send + Sync),
    pub metrics: &'a Metrics,
}

/// What the disk says may pass; a data file that is not what the table says stays so until someone restores it.
fn index_error(e: KeyIndexError) -> CommitError {
    match e {
        KeyIndexError::Read(ReadError::Store { .. }) => CommitError::Unavailable(e.to_string()),
        KeyIndexError::Read(e) => CommitError::Refused(format!("{e}; restore the file from a copy")),
        e => CommitError::Unavailable(format!("key index: {e}")),
    }
}

/// Advances the side to `what.stamp`, if it is not there yet.
pub async fn advance(side: &mut Side, pending: &VecDeque<Pending>, mut what: Advance<'_>) -> Result<(), CommitError> {
    for _ in 0..MOVES {
        if side.unknown || what.only_look {
            side.look(&what.spec.name).await?;
            side.unknown = false;
            side.tell_files(&what.spec.name, what.metrics);
        }
        let todo: Vec<&Pending> = pending.iter().filter(|p| p.seq > side.stamp() && concerns(p, side.kind)).collect();
        if todo.is_empty() {
            // Nothing of these entries is for this format: it does not lag.
            if pending.back().is_some_and(|p| p.seq > side.stamp()) && !what.only_look {
                side.base.stamp.entry = side.base.stamp.entry.max(what.stamp.entry);
            }
            return Ok(());
        }
        if what.only_look {
            return Ok(());
        }
        match commit(side, &todo, &what).await? {
            Committed::Done(_) => return Ok(()),
            Committed::Moved => {
                side.disturbed = true;
                let before = side.stamp();
                side.look(&what.spec.name).await?;
                if mutant::on(Mutant::StampNotCheckedAgain) {
                    side.base.stamp.entry = before;
                }
                if side.base.stamp.log != what.stamp.log {
                    return Err(CommitError::Refused(format!("table {} is stamped with another log now", what.spec.name)));
                }
                what.attempt = (what.new_id)();
            }
            Committed::Unknown(_) if mutant::on(Mutant::BlindRetry) => {
                let before = side.stamp();
                side.base = side.table.load().await?;
                side.base.stamp.entry = before;
            }
            Committed::Unknown(why) => {
                side.unknown = true;
                return Err(CommitError::Unavailable(format!("the commit's answer was lost ({why}); the table is looked at again")));
            }
        }
    }
    Err(CommitError::Unavailable(format!("others committed {MOVES} times in between; trying again later")))
}

fn concerns(pending: &Pending, kind: TableFormatKind) -> bool {
    !pending.rows.is_empty() || pending.files.iter().any(|(k, _)| *k == kind)
}

/// The key hashes of the files that are being written, file by file, in the order of their rows.
struct Keys {
    hasher: KeyHasher,
    window: Option<WindowBound>,
    new: NewFiles,
    /// By the number of the stager's file.
    files: Vec<FileHashes>,
}

struct FileHashes {
    keys: FileKeys,
    /// Latest end of a window that the file holds rows of.
    until_us: Option<i64>,
}

impl Keys {
    fn new(index: &KeyIndex, window: Option<WindowBound>) -> Self {
        Self { hasher: index.hasher(), window, new: index.new_files(), files: vec![] }
    }

    /// These rows come next in a file.
    fn note(&mut self, file: usize, rows: &RecordBatch) -> Result<(), String> {
        let hashes = self.hasher.hashes(rows).map_err(|e| e.to_string())?;
        let ends = self.window.as_ref().and_then(|w| {
            let column = rows.column_by_name(&w.column)?.as_primitive_opt::<TimestampMicrosecondType>()?;
            arrow::compute::max(column).map(|latest| latest.saturating_add(w.length_us))
        });
        while self.files.len() <= file {
            self.files.push(FileHashes { keys: self.new.begin(), until_us: None });
        }
        let file = &mut self.files[file];
        file.keys.push(&hashes).map_err(|e| e.to_string())?;
        file.until_us = file.until_us.max(ends);
        Ok(())
    }
}

/// Which column of the table bounds its windows, for the index to forget what is closed.
fn window_bound(what: &Advance<'_>) -> Option<WindowBound> {
    let (window, horizon_us) = (what.window?, what.horizon?);
    let has = |name: &str| what.spec.schema.field_with_name(name).is_ok();
    // A window aligned to a time zone's days can be an hour or two longer than its size.
    let longest = window.size_us.saturating_add(3 * 3_600_000_000);
    if has("window_end") {
        Some(WindowBound { column: "window_end".into(), length_us: 0, horizon_us })
    } else {
        has("window_start").then(|| WindowBound { column: "window_start".into(), length_us: longest, horizon_us })
    }
}

/// Brings the index to the base: files of foreign commits (or of other workers) are read, no others.
async fn sync_index(side: &mut Side, what: &Advance<'_>) -> Result<(), CommitError> {
    let mut index = match side.index.take() {
        Some(index) => index,
        None => KeyIndex::open(side.index_folder.clone(), what.spec, side.kind).map_err(index_error)?,
    };
    let left_behind = mutant::on(Mutant::IndexNotSynced) || mutant::on(Mutant::DeletesLostUnderCompaction);
    if index.version() != Some(side.base.version.as_str()) && !(left_behind && index.version().is_some()) {
        let live = side.table.live_files().await?;
        let schema = file_layout(side.kind).schema(&what.spec.schema);
        let window = window_bound(what).zip(side.horizon).map(|(bound, horizon_us)| WindowBound { horizon_us, ..bound });
        index.sync(what.store.clone(), &live, &schema, &side.base.version, window.as_ref()).await.map_err(index_error)?;
    }
    side.index = Some(index);
    Ok(())
}

async fn put(store: &Arc<dyn ObjectStore>, path: &str, bytes: bytes::Bytes) -> Result<(), CommitError> {
    store.put(&object(path)?, bytes.into()).await.map_err(|e| CommitError::Unavailable(format!("cannot write {path}: {e}")))?;
    Ok(())
}

/// The object of this name as it stands: `Path::from` would write a partition's %20 as %2520, where no reader looks.
fn object(path: &str) -> Result<Path, CommitError> {
    Path::parse(path).map_err(|e| CommitError::Refused(format!("{path} is no name of an object: {e}")))
}

/// A commit that names a file which is not there would break the table for every reader.
async fn check_staged(side: &mut Side, todo: &[&Pending], what: &Advance<'_>) -> Result<(), CommitError> {
    let mut looks = vec![];
    for pending in todo {
        for (_, file) in pending.files.iter().filter(|(k, _)| *k == side.kind) {
            let whose = format!("that entry {} of the log brings to the {} table {}", pending.seq, side.kind, what.spec.name);
            looks.push(staged(what.store.clone(), file.path.clone(), file.bytes, whose));
        }
    }
    futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).try_collect::<()>().await?;
    side.disturbed = false;
    Ok(())
}

async fn staged(store: Arc<dyn ObjectStore>, path: String, bytes: u64, whose: String) -> Result<(), CommitError> {
    match store.head(&object(&path)?).await {
        Ok(meta) if meta.size == bytes => Ok(()),
        Ok(meta) => Err(CommitError::Refused(format!(
            "the file {path} {whose} has {} bytes, expected {bytes}: it is damaged; restore it from a copy, or {ANOTHER_NAME}",
            meta.size
        ))),
        Err(object_store::Error::NotFound { .. }) => Err(CommitError::Refused(format!(
            "the file {path} {whose} is gone: somebody's cleaner removed a file that waited to be committed; restore it from a copy, \
             or {ANOTHER_NAME}, and let nobody remove files younger than `backlog.hours`"
        ))),
        Err(e) => Err(CommitError::Unavailable(format!("cannot look at {path}: {e}"))),
    }
}

async fn commit(side: &mut Side, todo: &[&Pending], what: &Advance<'_>) -> Result<Committed, CommitError> {
    failpoint::hit("commit-before-stage");
    if side.disturbed
        && let Err(gone) = check_staged(side, todo, what).await
    {
        // Another worker may have brought it in, and others have rewritten and removed it since.
        let before = side.base.version.clone();
        side.look(&what.spec.name).await?;
        return if side.base.version == before { Err(gone) } else { Ok(Committed::Moved) };
    }
    let spec = what.spec;
    let upsert = !spec.key.is_empty();
    let rows: Vec<&(ChangeOp, Arc<dyn RowBatches + Send + Sync>)> = todo.iter().flat_map(|p| &p.rows).collect();
    let corrected = rows.iter().any(|(op, _)| *op != ChangeOp::Insert);
    // Without corrections, now or later, nobody ever looks a key up.
    let indexed = upsert && (corrected || what.corrections) && !rows.is_empty();
    if indexed {
        sync_index(side, what).await?;
    }
    let mut add: Vec<DataFile> = todo.iter().flat_map(|p| &p.files).filter(|(k, _)| *k == side.kind).map(|(_, f)| f.clone()).collect();
    let mut delete = BTreeMap::new();
    let mut fresh: Vec<(String, FileKeys, Option<i64>)> = vec![];
    if !rows.is_empty() {
        let stamp = side.stamp();
        let attempt = what.attempt;
        let mut nth = 0;
        let name = move || {
            nth += 1;
            names::emitted(stamp, attempt, nth)
        };
        let folder = crate::stage::data_folder(what.pipeline, side.kind, &spec.name);
        let refuse = |e: String| CommitError::Refused(format!("table {}: {e}", spec.name));
        let stager = ParquetStager::new(spec.clone(), side.kind, folder, Box::new(name)).map_err(|e| refuse(e.to_string()))?;
        let metrics = what.metrics;
        let mut stager = stager;
        let mut noted = None;
        match side.index.as_mut().filter(|_| indexed) {
            Some(index) => {
                let mut keys = Keys::new(index, window_bound(what));
                let resolved = in_place(|| {
                    let mut sink = |batch: RecordBatch, _: &[u128]| -> Result<(), String> {
                        let parts = cpu(&metrics.cpu.parquet, || stager.write(&batch)).map_err(|e| e.to_string())?;
                        parts.iter().try_for_each(|(file, rows)| keys.note(*file, rows))
                    };
                    let changes: Vec<KeyedChange<'_>> = rows.iter().map(|(op, rows)| KeyedChange { op: *op, rows: rows.as_ref() as &dyn RowBatches }).collect();
                    resolve(&changes, index, &mut sink)
                });
                index.begun(&keys.new);
                delete = resolved.map_err(|e| CommitError::Unavailable(format!("table {}: {e}", spec.name)))?.delete;
                noted = Some(keys.files.into_iter());
            }
            None => in_place(|| {
                for (_, rows) in &rows {
                    for batch in rows.batches() {
                        let batch = batch.map_err(CommitError::Unavailable)?;
                        cpu(&metrics.cpu.parquet, || stager.write(&batch)).map_err(|e| refuse(e.to_string()))?;
                    }
                }
                Ok::<_, CommitError>(())
            })?,
        }
        let files = in_place(|| cpu(&metrics.cpu.parquet, || stager.finish())).map_err(|e| refuse(e.to_string()))?;
        for (file, bytes) in files {
            failpoint::hit("commit-before-put");
            put(what.store, &file.path, bytes).await?;
            failpoint::hit("commit-after-put");
            if let Some(hashes) = noted.as_mut().and_then(Iterator::next) {
                fresh.push((file.path.clone(), hashes.keys, hashes.until_us));
            }
            add.push(file);
        }
    }
    failpoint::hit("commit-after-stage");
    let change = TableChange { add, delete: delete.clone(), stamp: what.stamp.clone(), spec: spec.clone(), attempt: what.attempt };
    let start = thread_cpu_ns();
    failpoint::hit("commit-before-swap");
    let committed = side.table.commit(change).await?;
    what.metrics.cpu.commit.fetch_add(thread_cpu_ns().saturating_sub(start), Ordering::Relaxed);
    failpoint::hit("commit-after-swap");
    if let Committed::Done(report) = &committed {
        what.metrics.committed_now();
        what.metrics.commit_bytes.fetch_add(report.bytes_written, Ordering::Relaxed);
        what.metrics.commit_files_read.fetch_add(report.data_files_read, Ordering::Relaxed);
        side.base.version.clone_from(&report.version);
        side.base.stamp = what.stamp.clone();
        side.held = what.stamp.entry;
        side.horizon = what.horizon;
        side.tell_files(&spec.name, what.metrics);
        match side.index.as_mut().filter(|_| indexed) {
            Some(index) => {
                if let Some(horizon) = what.horizon {
                    index.forget_before(horizon).map_err(index_error)?;
                }
                index.committed(&delete, &report.rewritten, fresh, &report.version).map_err(index_error)?;
            }
            // It is behind now, and finds out by its version.
            None => side.index = None,
        }
    }
    Ok(committed)
}
