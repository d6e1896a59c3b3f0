//! Whole tables: created, advanced, disturbed by others, in memory and on disk.

use super::log::{commit_path, encode_path, list};
use super::vector::z85_encode;
use super::*;
use crate::commit::{Base, Committed, LakeTable, TableChange};
use crate::pipeline::{ColumnType as C, PartitionField, PartitionTransform};
use crate::stage::{ColumnStats, DataFile, FIELD_ID, Scalar};
use crate::store::double::{Delegating, Double, lost, taken};
use arrow::array::*;
use arrow::datatypes::*;
use object_store::memory::InMemory;
use object_store::*;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What the n-th create of a commit file does, from now on once.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Writes, then says that it failed.
    LostAnswer,
    /// Writes nothing and says that the name is taken.
    FalseExists,
    /// Another writer's commit lands first.
    Beaten,
    /// Writes, says that it failed, and reads fail from then on.
    LostAndDark,
    /// Writes nothing, ever.
    Dead,
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    fault: Mutex<Option<Fault>>,
    dark: std::sync::atomic::AtomicBool,
    data_reads: AtomicU64,
    log_reads: AtomicU64,
}

#[async_trait]
impl Delegating for Faulty {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = *self.fault.lock().unwrap();
        if !at.as_ref().contains("_delta_log/0") || fault.is_none() {
            return self.inner.put_opts(at, payload, options).await;
        }
        if fault != Some(Fault::Dead) {
            *self.fault.lock().unwrap() = None;
        }
        match fault {
            Some(Fault::LostAnswer) => {
                self.inner.put_opts(at, payload, options).await?;
                Err(lost())
            }
            Some(Fault::FalseExists) => Err(taken(at)),
            Some(Fault::Beaten) => {
                self.inner.put(at, r#"{"commitInfo":{"operation":"OPTIMIZE"}}"#.into()).await?;
                self.inner.put_opts(at, payload, options).await
            }
            Some(Fault::LostAndDark) => {
                self.inner.put_opts(at, payload, options).await?;
                self.dark.store(true, Ordering::SeqCst);
                Err(lost())
            }
            _ => Err(lost()),
        }
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        if self.dark.load(Ordering::SeqCst) {
            return Err(lost());
        }
        if !at.as_ref().contains("_delta_log") {
            self.data_reads.fetch_add(1, Ordering::SeqCst);
        } else {
            self.log_reads.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.get_opts(at, options).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_faulty_store_is_a_store_until_it_is_told_to_fail() {
    crate::store::conformance::holds(lake_on(Arc::new(InMemory::new()), "memory:///").store).await;
}

/// A lake with one pipeline, `pipe`; the clock is set by hand.
struct Lake {
    store: Arc<Double<Faulty>>,
    format: DeltaFormat,
    now: Arc<AtomicI64>,
    log: Uuid,
}

fn lake_on(inner: Arc<dyn ObjectStore>, root: &str) -> Lake {
    let store = Arc::new(Double(Faulty { inner, fault: Mutex::new(None), dark: false.into(), data_reads: 0.into(), log_reads: 0.into() }));
    let now = Arc::new(AtomicI64::new(1_700_000_000_000));
    let clock = now.clone();
    let format = DeltaFormat::new(store.clone(), Url::parse(root).unwrap(), "pipe", Arc::new(move || clock.load(Ordering::SeqCst)), Arc::new(Uuid::new_v4));
    Lake { store, format, now, log: Uuid::from_u128(42) }
}

fn lake() -> Lake {
    lake_on(Arc::new(InMemory::new()), "file:///lake/")
}

impl Lake {
    fn stamp(&self, entry: u64) -> Stamp {
        Stamp { log: self.log, entry, offsets: [("events".to_string(), [(0, entry as i64 * 10)].into())].into() }
    }

    async fn table(&self, spec: &Arc<TableSpec>) -> Box<dyn LakeTable> {
        let mut table = self.format.open_or_create(spec.clone(), &self.stamp(1)).await.unwrap();
        table.load().await.unwrap();
        table
    }

    /// A staged file of these rows, as the ingest half would leave it: partition columns not in it.
    async fn file(&self, spec: &TableSpec, batch: &RecordBatch, partition: Vec<Option<Scalar>>) -> DataFile {
        let partitioned: Vec<String> = spec.partition_fields(TableFormatKind::Delta).iter().map(|p| p.column.clone()).collect();
        let kept: Vec<usize> = (0..batch.num_columns()).filter(|i| !partitioned.contains(batch.schema().field(*i).name())).collect();
        let batch = batch.project(&kept).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(super::rewrite::properties(&batch.schema()).unwrap())).unwrap();
        writer.write(&batch).unwrap();
        let bytes = writer.into_inner().unwrap();
        // The bounds come from the same fold that copy on write uses.
        let rest = super::rewrite::without(bytes.clone().into(), &RoaringTreemap::new(), spec).unwrap();
        let path = format!("delta/pipe/{}/part-{}.parquet", spec.name, Uuid::new_v4());
        let size = bytes.len() as u64;
        self.store.put(&Path::from(path.as_str()), bytes.into()).await.unwrap();
        DataFile { path, bytes: size, records: batch.num_rows() as u64, partition, columns: rest.columns, split_offsets: rest.split_offsets }
    }

    fn change(&self, spec: &Arc<TableSpec>, entry: u64, add: Vec<DataFile>) -> TableChange {
        TableChange { add, delete: BTreeMap::new(), stamp: self.stamp(entry), spec: spec.clone(), attempt: Uuid::new_v4() }
    }

    /// Writes a commit as someone else would.
    async fn foreign(&self, table: &str, version: u64, text: &str) {
        let at = Path::from(format!("delta/pipe/{table}/{}", commit_path(version)));
        self.store.inner.put(&at, text.to_string().into()).await.unwrap();
    }

    /// The column `id` of all live rows, sorted.
    async fn ids(&self, table: &mut Box<dyn LakeTable>) -> Vec<i64> {
        let mut ids = Vec::new();
        for file in table.live_files().await.unwrap() {
            let bytes = self.store.inner.get(&Path::parse(&file.path).unwrap()).await.unwrap().bytes().await.unwrap();
            let mut at = 0;
            for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
                let batch = batch.unwrap();
                for id in batch.column_by_name("id").unwrap().as_primitive::<Int64Type>().values() {
                    if !file.deleted.contains(at) {
                        ids.push(*id);
                    }
                    at += 1;
                }
            }
            assert_eq!(at, file.records);
        }
        ids.sort();
        ids
    }
}

fn spec_of(name: &str, columns: &[(&str, C, bool)], partition_by: &[&str]) -> Arc<TableSpec> {
    fn numbered(field: &Field, next: &mut i32) -> Field {
        *next += 1;
        let mut metadata = field.metadata().clone();
        metadata.insert(FIELD_ID.into(), next.to_string());
        field.clone().with_metadata(metadata)
    }
    let mut next = 0;
    let fields: Vec<Field> = columns.iter().map(|(n, t, null)| numbered(&t.field(n, *null), &mut next)).collect();
    Arc::new(TableSpec {
        name: name.into(),
        schema: Arc::new(Schema::new(fields)),
        key: vec![],
        formats: vec![TableFormatKind::Delta],
        partition_by: partition_by.iter().map(|c| PartitionField { column: c.to_string(), transform: PartitionTransform::Identity }).collect(),
        properties: BTreeMap::new(),
        comment: Some("a test".into()),
    })
}

fn ids_spec() -> Arc<TableSpec> {
    spec_of("t", &[("id", C::Int64, false), ("v", C::String, true)], &[])
}

fn rows(spec: &TableSpec, ids: &[i64]) -> RecordBatch {
    let v = StringArray::from_iter_values(ids.iter().map(|i| format!("value {i}")));
    RecordBatch::try_new(spec.schema.clone(), vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(v)]).unwrap()
}

fn done(committed: Committed) -> crate::commit::CommitReport {
    match committed {
        Committed::Done(report) => report,
        other => panic!("not done: {other:?}"),
    }
}

fn refusal<T: std::fmt::Debug>(answer: std::result::Result<T, CommitError>) -> String {
    match answer {
        Err(CommitError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

async fn append(lake: &Lake, table: &mut Box<dyn LakeTable>, entry: u64, ids: &[i64]) -> Committed {
    let spec = table.spec().clone();
    let file = lake.file(&spec, &rows(&spec, ids), vec![]).await;
    table.commit(lake.change(&spec, entry, vec![file])).await.unwrap()
}

#[tokio::test]
async fn a_table_is_created_appended_deleted_from_and_found_again() {
    let lake = lake();
    let spec = ids_spec();
    let mut table = lake.table(&spec).await;
    done(append(&lake, &mut table, 2, &[1, 2, 3, 4]).await);
    done(append(&lake, &mut table, 3, &[5, 6]).await);
    assert_eq!(lake.store.data_reads.load(Ordering::SeqCst), 0, "an append reads no data file");
    let files = table.live_files().await.unwrap();
    let four = files.iter().find(|f| f.records == 4).unwrap().clone();
    let id = |f: &crate::commit::LiveFile| (f.columns[0].lower.clone(), f.columns[0].upper.clone());
    assert_eq!(id(&four), (Some(Scalar::Int(1)), Some(Scalar::Int(4))));

    let mut change = lake.change(&spec, 4, vec![lake.file(&spec, &rows(&spec, &[20]), vec![]).await]);
    change.delete.insert(four.path.clone(), [0u64, 3].into_iter().collect());
    let report = done(table.commit(change).await.unwrap());
    assert_eq!(report.data_files_read, 1);
    assert_eq!(lake.store.data_reads.load(Ordering::SeqCst), 1, "only the file from which rows go");
    let rewritten = &report.rewritten[0];
    assert_eq!((rewritten.old.as_str(), rewritten.dropped.iter().collect::<Vec<_>>()), (four.path.as_str(), vec![0, 3]));
    let new = rewritten.new.as_ref().unwrap();
    assert_eq!((new.records, new.columns[0].lower.clone()), (2, Some(Scalar::Int(2))));
    assert_eq!(lake.ids(&mut table).await, [2, 3, 5, 6, 20]);

    let whole = table.live_files().await.unwrap().into_iter().find(|f| f.path == new.path).unwrap();
    let mut change = lake.change(&spec, 5, vec![]);
    change.delete.insert(whole.path, [0u64, 1].into_iter().collect());
    assert!(done(table.commit(change).await.unwrap()).rewritten[0].new.is_none(), "no row left, no file");
    done(table.commit(lake.change(&spec, 6, vec![])).await.unwrap());

    let mut again = lake.format.open(spec.clone()).await.unwrap().unwrap();
    let base = again.load().await.unwrap();
    assert_eq!((base.version.as_str(), base.foreign_commits), ("5", 0));
    assert_eq!(base.stamp, lake.stamp(6), "a stamp alone is a commit");
    assert_eq!(lake.ids(&mut again).await, [5, 6, 20]);
    let history = again.history(3).await.unwrap();
    assert_eq!(history.iter().map(|r| (r.entry, r.added_records, r.deleted_records)).collect::<Vec<_>>(), [(Some(6), 0, 0), (Some(5), 0, 2), (Some(4), 1, 2)]);
}

/// FAULTS 8: a commit that comes through after another one's.
#[tokio::test]
async fn a_stale_base_moves_and_writes_nothing() {
    let lake = lake();
    let spec = ids_spec();
    let (mut a, mut b) = (lake.table(&spec).await, lake.table(&spec).await);
    done(append(&lake, &mut a, 2, &[1]).await);
    assert!(matches!(append(&lake, &mut b, 2, &[1]).await, Committed::Moved));
    let base = b.load().await.unwrap();
    assert_eq!((base.stamp.entry, base.foreign_commits), (2, 0), "another worker of ours is not foreign");
    done(append(&lake, &mut b, 3, &[2]).await);
    a.load().await.unwrap();
    assert_eq!(lake.ids(&mut a).await, [1, 2]);
    assert!(refusal(a.commit(lake.change(&spec, 2, vec![])).await).contains("entry 3"), "a stamp never goes back");
}

/// FAULTS 8, 18.
#[tokio::test]
async fn lost_answers_are_read_back() {
    for fault in [Fault::LostAnswer, Fault::FalseExists] {
        let lake = lake();
        let mut table = lake.table(&ids_spec()).await;
        *lake.store.fault.lock().unwrap() = Some(fault);
        done(append(&lake, &mut table, 2, &[1]).await);
        done(append(&lake, &mut table, 3, &[2]).await);
        assert_eq!(lake.ids(&mut table).await, [1, 2], "{fault:?}");
    }
    let lake = lake();
    let mut table = lake.table(&ids_spec()).await;
    *lake.store.fault.lock().unwrap() = Some(Fault::Beaten);
    assert!(matches!(append(&lake, &mut table, 2, &[1]).await, Committed::Moved));
    assert_eq!(table.load().await.unwrap().foreign_commits, 1);
}

#[tokio::test]
async fn what_cannot_be_known_is_unknown_until_it_is_loaded() {
    let lake = lake();
    let mut table = lake.table(&ids_spec()).await;
    *lake.store.fault.lock().unwrap() = Some(Fault::LostAndDark);
    assert!(matches!(append(&lake, &mut table, 2, &[1]).await, Committed::Unknown(_)));
    assert!(matches!(table.load().await, Err(CommitError::Unavailable(_))));
    lake.store.dark.store(false, Ordering::SeqCst);
    assert_eq!(table.load().await.unwrap().stamp.entry, 2, "it had landed");
    *lake.store.fault.lock().unwrap() = Some(Fault::Dead);
    assert!(matches!(append(&lake, &mut table, 3, &[2]).await, Committed::Unknown(_)));
    *lake.store.fault.lock().unwrap() = None;
    assert_eq!(table.load().await.unwrap().stamp.entry, 2, "it had not");
    done(append(&lake, &mut table, 3, &[2]).await);
}

#[tokio::test]
async fn racing_creates_make_one_table() {
    let lake = lake();
    let spec = ids_spec();
    let stamp = lake.stamp(1);
    let opens = (0..8).map(|_| lake.format.open_or_create(spec.clone(), &stamp));
    let mut uuids: Vec<String> = Vec::new();
    for table in futures::future::join_all(opens).await {
        uuids.push(table.unwrap().load().await.unwrap().table_uuid);
    }
    uuids.dedup();
    assert_eq!(uuids.len(), 1);
}

#[tokio::test]
async fn columns_are_added_and_old_files_stay() {
    let lake = lake();
    let old = ids_spec();
    let mut table = lake.table(&old).await;
    done(append(&lake, &mut table, 2, &[1, 2]).await);
    let new = spec_of("t", &[("id", C::Int64, false), ("v", C::String, true), ("at", C::TimestampLocal(None), true)], &[]);
    let batch = rows(&old, &[3]);
    let at: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(5)]));
    let batch = RecordBatch::try_new(new.schema.clone(), vec![batch.column(0).clone(), batch.column(1).clone(), at]).unwrap();
    let mut change = lake.change(&new, 3, vec![lake.file(&new, &batch, vec![]).await]);
    let first = table.live_files().await.unwrap()[0].path.clone();
    change.delete.insert(first, [0u64].into_iter().collect());
    done(table.commit(change).await.unwrap());
    let mut again = lake.table(&new).await;
    assert_eq!(lake.ids(&mut again).await, [2, 3]);
    let bad = spec_of("t", &[("id", C::Int32, false), ("w", C::String, false)], &[]);
    let why = refusal(lake.format.open_or_create(bad, &lake.stamp(1)).await.map(|_| ()));
    assert!(why.contains("`id` is integer here and long") && why.contains("`w` is not null"), "{why}");
}

#[tokio::test]
async fn what_is_not_ours_is_refused() {
    let lake = lake();
    let spec = ids_spec();
    lake.table(&spec).await;
    let other = Stamp { log: Uuid::from_u128(7), ..lake.stamp(1) };
    let why = refusal(lake.format.open_or_create(spec.clone(), &other).await.map(|_| ()));
    assert!(why.contains(&other.log.to_string()) && why.contains(&lake.log.to_string()), "{why}");
    let strange = spec_of("u", &[("id", C::Int64, false)], &[]);
    let text = concat!(
        r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}"#, "\n",
        r#"{"metaData":{"id":"x","format":{"provider":"parquet","options":{}},"schemaString":"{\"type\":\"struct\",\"fields\":[]}","partitionColumns":[],"configuration":{}}}"#, "\n",
        r#"{"txn":{"appId":"flink","version":3}}"#
    );
    lake.foreign("u", 0, text).await;
    let why = refusal(lake.format.open_or_create(strange, &lake.stamp(1)).await.map(|_| ()));
    assert!(why.contains("flink"), "{why}");
}

#[tokio::test]
async fn a_recreated_vanished_or_restored_table_is_refused() {
    let lake = lake();
    let spec = ids_spec();
    let mut table = lake.table(&spec).await;
    done(append(&lake, &mut table, 2, &[1]).await);
    done(append(&lake, &mut table, 3, &[2]).await);
    lake.foreign("t", 3, r#"{"commitInfo":{"operation":"RESTORE","operationParameters":{"version":1}}}"#).await;
    assert!(refusal(table.load().await).contains("RESTORE"));
    assert!(refusal(lake.format.open_or_create(spec.clone(), &lake.stamp(1)).await.map(|_| ())).contains("RESTORE"));
    lake.foreign("t", 4, r#"{"commitInfo":{"operation":"RESTORE","operationParameters":{"version":2}}}"#).await;
    assert_eq!(table.load().await.unwrap().stamp.entry, 3, "restored forward");

    let log: Vec<_> = list(&PrefixStore::new(lake.store.clone() as Arc<dyn ObjectStore>, "delta/pipe/t"), None).await.unwrap().commits.into_keys().collect();
    for version in log {
        lake.store.inner.delete(&Path::from(format!("delta/pipe/t/{}", commit_path(version)))).await.unwrap();
    }
    assert!(refusal(table.load().await).contains("vanished"));
    let mut new = lake.table(&spec).await;
    assert!(refusal(table.load().await).contains("recreated"));
    for entry in 2..8 {
        done(append(&lake, &mut new, entry, &[entry as i64]).await);
    }
    assert!(refusal(table.load().await).contains("recreated"), "also when it has grown past the version that was known");
}

#[tokio::test]
async fn foreign_commits_are_honoured_deletion_vectors_included() {
    let lake = lake();
    let spec = ids_spec();
    let mut table = lake.table(&spec).await;
    done(append(&lake, &mut table, 2, &[1, 2, 3, 4]).await);
    let ours = table.live_files().await.unwrap().remove(0);
    let file = lake.file(&spec, &rows(&spec, &[50]), vec![]).await;
    let inside = |path: &str| encode_path(path.strip_prefix("delta/pipe/t/").unwrap());
    lake.foreign("t", 2, &format!(r#"{{"add":{{"path":"{}","partitionValues":{{}},"size":{},"modificationTime":1,"dataChange":true}}}}"#, inside(&file.path), file.bytes)).await;
    let mut body = 1_681_511_377u32.to_le_bytes().to_vec();
    RoaringTreemap::from_iter([1u64]).serialize_into(&mut body).unwrap();
    let vector = format!(r#"{{"storageType":"i","pathOrInlineDv":{},"sizeInBytes":{},"cardinality":1}}"#, serde_json::json!(z85_encode(&body)), body.len());
    let path = inside(&ours.path);
    lake.foreign(
        "t",
        3,
        &format!(
            concat!(
                r#"{{"protocol":{{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors","appendOnly","invariants"]}}}}"#,
                "\n",
                r#"{{"add":{{"path":"{p}","partitionValues":{{}},"size":{s},"modificationTime":1,"dataChange":true,"stats":"{{\"numRecords\":4}}","deletionVector":{v}}}}}"#,
                "\n",
                r#"{{"remove":{{"path":"{p}","dataChange":true}}}}"#
            ),
            p = path, s = ours.bytes, v = vector
        ),
    )
    .await;
    let base: Base = table.load().await.unwrap();
    assert_eq!((base.foreign_commits, base.stamp.entry), (2, 2));
    assert_eq!(table.load().await.unwrap().foreign_commits, 0, "counted once");
    assert_eq!(lake.ids(&mut table).await, [1, 3, 4, 50], "a file without statistics, and a deleted row");
    let mut change = lake.change(&spec, 3, vec![]);
    change.delete.insert(ours.path.clone(), [0u64].into_iter().collect());
    let report = done(table.commit(change).await.unwrap());
    assert_eq!(report.rewritten[0].dropped.iter().collect::<Vec<_>>(), [0, 1], "the vector's row is not in the new file either");
    let mut again = lake.table(&spec).await;
    assert_eq!(lake.ids(&mut again).await, [3, 4, 50]);
    lake.foreign("t", 5, r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["v2Checkpoint"],"writerFeatures":["v2Checkpoint"]}}"#).await;
    assert!(refusal(again.load().await).contains("v2Checkpoint"));
}

#[tokio::test]
async fn no_row_goes_from_a_table_that_someone_made_append_only() {
    let lake = lake();
    let spec = ids_spec();
    let mut table = lake.table(&spec).await;
    done(append(&lake, &mut table, 2, &[1, 2]).await);
    let created = lake.store.inner.get(&Path::from(format!("delta/pipe/t/{}", commit_path(0)))).await.unwrap().bytes().await.unwrap();
    let metadata = String::from_utf8(created.to_vec()).unwrap().lines().find(|l| l.contains("metaData")).unwrap().to_string();
    lake.foreign("t", 2, &metadata.replace(r#""configuration":{"#, r#""configuration":{"delta.appendOnly":"true","#)).await;
    table.load().await.unwrap();
    let mut change = lake.change(&spec, 3, vec![]);
    change.delete.insert(table.live_files().await.unwrap()[0].path.clone(), [0u64].into_iter().collect());
    assert!(refusal(table.commit(change).await).contains("delta.appendOnly"));
    done(append(&lake, &mut table, 3, &[3]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_commits_leave_a_short_log() {
    let temporary = tempfile::tempdir().unwrap();
    let root = out(&temporary);
    let disk = object_store::local::LocalFileSystem::new_with_prefix(&root).unwrap();
    let lake = lake_on(Arc::new(disk), "file:///lake/");
    let spec = spec_of("t", &[("id", C::Int64, false), ("v", C::String, true)], &["v"]);
    let mut table = lake.table(&spec).await;
    for entry in 2..=301u64 {
        let v = (entry % 2 == 0).then(|| Scalar::Text("a b/c%".into()));
        let mut change = lake.change(&spec, entry, vec![lake.file(&spec, &rows(&spec, &[entry as i64]), vec![v]).await]);
        if entry % 3 == 0 {
            let file = table.live_files().await.unwrap().remove(0);
            change.delete.insert(file.path, [0u64].into_iter().collect());
        }
        // As if an hour passed every hundred commits.
        if entry % 100 == 0 {
            lake.now.store(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64 + 3_700_000, Ordering::SeqCst);
        }
        done(table.commit(change).await.unwrap());
    }
    let before = lake.store.log_reads.load(Ordering::SeqCst);
    table.load().await.unwrap();
    assert_eq!(lake.store.log_reads.load(Ordering::SeqCst), before, "nothing new, nothing read");
    let site = PrefixStore::new(lake.store.clone() as Arc<dyn ObjectStore>, "delta/pipe/t");
    let listing = list(&site, None).await.unwrap();
    assert_eq!(listing.checkpoints.keys().next_back(), Some(&300));
    assert_eq!(listing.all.first().map(|_| listing.commits.keys().next().copied()), Some(Some(250)), "older than the newest but one checkpoint");
    assert!(listing.all.len() <= 55, "{} files", listing.all.len());
    let mut again = lake.table(&spec).await;
    let base = again.load().await.unwrap();
    assert_eq!((base.version.as_str(), base.stamp.entry), ("300", 301));
    assert_eq!(lake.ids(&mut again).await, lake.ids(&mut table).await);
    assert_eq!(again.live_files().await.unwrap().len(), 200);
    let mut values: Vec<_> = again.live_files().await.unwrap().iter().map(|f| f.partition_values["v"].clone()).collect();
    values.sort();
    values.dedup();
    assert_eq!(values, [None, Some("a b/c%".to_string())], "nulls survive a checkpoint");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeper_that_puts_on_a_freed_name_does_not_believe_it() {
    let lake = lake();
    let spec = ids_spec();
    let mut sleeper = lake.table(&spec).await;
    done(append(&lake, &mut sleeper, 2, &[2]).await);
    let mut table = lake.table(&spec).await;
    let later = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64 + 3_700_000;
    lake.now.store(later, Ordering::SeqCst);
    for entry in 3..=102 {
        done(append(&lake, &mut table, entry, &[entry as i64]).await);
    }
    assert!(lake.store.inner.head(&Path::from(format!("delta/pipe/t/{}", commit_path(2)))).await.is_err(), "the name is free");
    assert!(matches!(append(&lake, &mut sleeper, 3, &[3]).await, Committed::Unknown(_)));
    let base = sleeper.load().await.unwrap();
    assert_eq!(base.stamp.entry, 102);
    done(append(&lake, &mut sleeper, 103, &[103]).await);
    table.load().await.unwrap();
    assert_eq!(lake.ids(&mut table).await, (2..=103).collect::<Vec<i64>>());
}

/// Where a table on disk goes: `MILLPOND_DELTA_OUT` leaves it for other readers to look at.
fn out(temporary: &tempfile::TempDir) -> std::path::PathBuf {
    let root = std::env::var("MILLPOND_DELTA_OUT").map_or(temporary.path().to_path_buf(), std::path::PathBuf::from);
    std::fs::create_dir_all(&root).unwrap();
    root
}

/// Every type, partitions, a rewritten file, an added column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_goes_in() {
    let temporary = tempfile::tempdir().unwrap();
    let root = out(&temporary);
    let lake = lake_on(Arc::new(object_store::local::LocalFileSystem::new_with_prefix(&root).unwrap()), "file:///lake/");
    let base: Vec<(&str, C, bool)> = vec![
        ("id", C::Int64, false),
        ("part", C::String, true),
        ("day", C::Date, true),
        ("amount", C::Decimal(12, 2), true),
        ("wide", C::Decimal(38, 4), true),
        ("at", C::Timestamp(None), true),
        ("local", C::TimestampLocal(None), true),
        ("f", C::Float64, true),
        ("s", C::String, true),
        ("b", C::Binary, true),
        ("nested", C::Struct(vec![("x".into(), C::Int32), ("tags".into(), C::List(Box::new(C::String)))]), true),
        ("attrs", C::Map(Box::new(C::String), Box::new(C::Decimal(9, 3))), true),
    ];
    let spec = spec_of("types", &base, &["part", "day"]);
    let make = |spec: &Arc<TableSpec>, ids: std::ops::Range<i64>, part: Option<&str>, day: i32| {
        let n = ids.end - ids.start;
        let list = |id: i64| (0..id % 3).map(move |k| format!("tag{k}")).collect::<Vec<_>>();
        let mut tags = ListBuilder::new(StringBuilder::new());
        let mut attrs = MapBuilder::new(
            Some(MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() }),
            StringBuilder::new(),
            Decimal128Builder::new().with_precision_and_scale(9, 3).unwrap(),
        );
        for id in ids.clone() {
            list(id).into_iter().for_each(|t| tags.values().append_value(t));
            tags.append(true);
            attrs.keys().append_value("k");
            attrs.values().append_value(id as i128);
            attrs.append(true).unwrap();
        }
        let DataType::Struct(inner) = spec.schema.field_with_name("nested").unwrap().data_type().clone() else { panic!() };
        let nested = StructArray::new(inner, vec![Arc::new(Int32Array::from_iter_values(ids.clone().map(|i| i as i32))), Arc::new(tags.finish())], None);
        let us = |i: i64| 1_700_000_000_000_000 + i * 1_000_001;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(ids.clone())),
            Arc::new(StringArray::from(vec![part; n as usize])),
            Arc::new(Date32Array::from(vec![day; n as usize])),
            Arc::new(Decimal128Array::from_iter_values(ids.clone().map(|i| i as i128 * 101)).with_precision_and_scale(12, 2).unwrap()),
            Arc::new(Decimal128Array::from_iter_values(ids.clone().map(|i| i as i128 * 10i128.pow(30))).with_precision_and_scale(38, 4).unwrap()),
            Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(us)).with_timezone("UTC")),
            Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(us))),
            Arc::new(Float64Array::from_iter_values(ids.clone().map(|i| if i % 10 == 7 { f64::NAN } else { i as f64 / 4.0 }))),
            Arc::new(StringArray::from_iter_values(ids.clone().map(|i| format!("{}{i:05}", "long prefix ".repeat(6))))),
            Arc::new(BinaryArray::from_iter_values(ids.clone().map(|i| i.to_be_bytes()))),
            Arc::new(nested),
            Arc::new(attrs.finish()),
        ];
        if let Ok(extra) = spec.schema.field_with_name("extra") {
            assert_eq!(extra.data_type(), &DataType::Int32);
            columns.push(Arc::new(Int32Array::from_iter_values(ids.map(|i| i as i32 * 2))));
        }
        RecordBatch::try_new(spec.schema.clone(), columns).unwrap()
    };
    let text = |t: &str| Some(Scalar::Text(t.into()));
    let day = Some(Scalar::Int(19_000));
    let mut table = lake.table(&spec).await;
    let files = vec![
        lake.file(&spec, &make(&spec, 0..100, Some("a/b c%"), 19_000), vec![text("a/b c%"), day.clone()]).await,
        lake.file(&spec, &make(&spec, 100..200, None, 19_000), vec![None, day.clone()]).await,
        lake.file(&spec, &make(&spec, 200..205, Some("ü=1"), 19_000), vec![text("ü=1"), day.clone()]).await,
    ];
    done(table.commit(lake.change(&spec, 2, files.clone())).await.unwrap());
    let mut wider = base.clone();
    wider.push(("extra", C::Int32, true));
    let wider = spec_of("types", &wider, &["part", "day"]);
    let mut change = lake.change(&wider, 3, vec![lake.file(&wider, &make(&wider, 300..310, Some("z"), 19_001), vec![text("z"), Some(Scalar::Int(19_001))]).await]);
    change.delete.insert(files[0].path.clone(), (0u64..50).collect());
    change.delete.insert(files[2].path.clone(), (0u64..5).collect());
    let report = done(table.commit(change).await.unwrap());
    let new = report.rewritten.iter().find_map(|r| r.new.clone()).unwrap();
    assert_eq!(new.partition, files[0].partition);
    let stats = |name: &str| -> ColumnStats {
        let id = super::stats::field_id(wider.schema.field_with_name(name).unwrap()).unwrap();
        new.columns.iter().find(|c| c.field_id == id).unwrap().clone()
    };
    assert_eq!(stats("amount").lower, Some(Scalar::Decimal(50 * 101)));
    assert_eq!((stats("f").nans, stats("f").upper), (5, Some(Scalar::Float(99.0 / 4.0))));
    assert_eq!(stats("s").upper, text("long prefix lonh"));
    let live = table.live_files().await.unwrap();
    assert_eq!(live.iter().map(|f| f.records).sum::<u64>(), 50 + 100 + 10);
    assert_eq!(live.iter().filter(|f| f.partition_values["part"].is_none()).count(), 1);
}

/// What the cleaner may take, and what the log still needs: removes included, those that only a checkpoint knows too.
#[tokio::test]
async fn only_files_that_no_version_needs_are_unneeded() {
    use crate::stage::names;
    use std::collections::BTreeSet;
    let lake = lake();
    // Checkpoints drop removes that are old by the system's clock.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    lake.now.store(now.as_millis() as i64, Ordering::SeqCst);
    let mut spec = ids_spec().as_ref().clone();
    spec.properties.insert("delta.checkpointInterval".into(), "4".into());
    let spec = Arc::new(spec);
    let mut table = lake.table(&spec).await;
    let named = async |name: &str, ids: &[i64]| {
        let mut file = lake.file(&spec, &rows(&spec, ids), vec![]).await;
        let path = format!("delta/pipe/t/{name}");
        lake.store.inner.copy(&Path::from(file.path.as_str()), &Path::from(path.as_str())).await.unwrap();
        file.path = path;
        file
    };
    let id = Uuid::from_u128;
    let (replaced, kept, waiting) = (names::epoch_file(id(1), 0, 1), names::emitted(1, id(2), 1), names::epoch_file(id(3), 0, 1));
    done(table.commit(lake.change(&spec, 2, vec![named(&replaced, &[1, 2]).await, named(&kept, &[3]).await])).await.unwrap());
    let mut change = lake.change(&spec, 3, vec![]);
    change.delete.insert(format!("delta/pipe/t/{replaced}"), [0u64].into_iter().collect());
    let report = done(table.commit(change).await.unwrap());
    let rewritten = names::file_name(&report.rewritten[0].new.as_ref().unwrap().path).to_string();
    assert_eq!(names::owner(&rewritten), Some(names::Owner::Stamp(2)));

    let (lost, under_way) = (names::rewritten(2, id(4)), names::emitted(3, id(5), 1));
    let foreign = "part-00000-00000000-0000-0000-0000-000000000001-c000.snappy.parquet".to_string();
    let listed: BTreeSet<String> = [&replaced, &kept, &waiting, &rewritten, &lost, &under_way, &foreign, &names::metadata(0, id(6))].into_iter().cloned().collect();
    let unneeded = async |listed: &BTreeSet<String>| {
        // As the cleaner does: a table that was opened for it.
        let mut fresh = lake.format.open(spec.clone()).await.unwrap().unwrap();
        fresh.unneeded(listed.clone()).await.unwrap()
    };
    let (base, found) = unneeded(&listed).await;
    assert_eq!(base.stamp.entry, 3);
    assert_eq!(found, [waiting.clone(), lost.clone()].into(), "the removed file is kept for those who read version 1");

    for entry in 4..8 {
        done(append(&lake, &mut table, entry, &[entry as i64 * 10]).await);
    }
    assert!(list(&deltalake_core::logstore::object_store::prefix::PrefixStore::new(lake.store.clone(), "delta/pipe/t"), None).await.unwrap().checkpoints.keys().any(|v| *v > 2));
    let (_, found) = unneeded(&listed).await;
    assert_eq!(found, [waiting.clone(), lost.clone(), under_way.clone()].into(), "the checkpoint still knows the remove, and the stamp has passed");
    lake.now.fetch_add(8 * 86_400_000, Ordering::SeqCst);
    let (_, found) = unneeded(&listed).await;
    assert_eq!(found, [waiting, lost, under_way, replaced].into(), "a week later nobody reads version 1");

    lake.foreign("t", 7, "{\"commitInfo\":{\"operation\":\"RESTORE\",\"operationParameters\":{\"version\":0}}}\n").await;
    let mut fresh = lake.format.open(spec.clone()).await;
    let answer = match &mut fresh {
        Ok(Some(table)) => table.unneeded(listed).await.map(|_| ()),
        Ok(None) => panic!("it exists"),
        Err(e) => Err(CommitError::Refused(e.to_string())),
    };
    assert!(refusal(answer).contains("rolled back"), "nothing goes from a table that was rolled back");
}
