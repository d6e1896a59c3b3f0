//! What an index costs, and what it does when the table moved without it.

use super::*;
use crate::pipeline::ColumnType;
use crate::read::LiveFile;
use crate::read::counting::CountingStore;
use crate::stage::{ColumnStats, FIELD_ID, Scalar};
use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{Schema, SchemaRef};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;

fn spec() -> TableSpec {
    let fields = [("w", ColumnType::Timestamp(None)), ("k", ColumnType::Int64)];
    let fields = fields.iter().enumerate().map(|(i, (name, ty))| ty.field(name, true).with_metadata([(FIELD_ID.to_string(), (i + 1).to_string())].into()));
    TableSpec {
        name: "t".to_string(),
        schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        key: vec!["w".to_string(), "k".to_string()],
        formats: vec![TableFormatKind::Delta],
        partition_by: vec![],
        properties: BTreeMap::new(),
        comment: None,
    }
}

fn open(folder: &Path) -> KeyIndex {
    KeyIndex::open(folder.to_path_buf(), &spec(), TableFormatKind::Delta).unwrap()
}

fn batch(schema: &SchemaRef, window: i64, keys: std::ops::Range<i64>) -> RecordBatch {
    let windows: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![window; keys.clone().count()]).with_timezone("UTC"));
    RecordBatch::try_new(schema.clone(), vec![windows, Arc::new(Int64Array::from_iter_values(keys))]).unwrap()
}

async fn put(store: &CountingStore, path: &str, batch: &RecordBatch) -> LiveFile {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let size = bytes.len() as u64;
    store.put(&object_store::path::Path::from(path), bytes.into()).await.unwrap();
    LiveFile { path: path.to_string(), bytes: size, records: batch.num_rows() as u64, deleted: RoaringTreemap::new(), partition_values: BTreeMap::new(), columns: vec![] }
}

fn store() -> Arc<CountingStore> {
    Arc::new(CountingStore::new(Arc::new(InMemory::new())))
}

#[tokio::test]
async fn a_foreign_commit_costs_its_files_and_not_the_table() {
    let (store, folder, schema) = (store(), tempfile::tempdir().unwrap(), spec().schema);
    let mut files = Vec::new();
    for n in 0..6 {
        files.push(put(&store, &format!("f{n}"), &batch(&schema, 0, n * 10..n * 10 + 10)).await);
    }
    let mut index = open(folder.path());
    let report = index.sync(store.clone(), &files, &schema, "1", None).await.unwrap();
    assert_eq!(report, SyncReport { files_read: 6, rows_read: 60, files_removed: 0 });
    drop(index);

    // Two files became one while nobody looked, and a row of a third was deleted.
    files.drain(..2);
    files.push(put(&store, "merged", &batch(&schema, 0, 0..20)).await);
    files[0].deleted.insert(4);
    let mut index = open(folder.path());
    assert_eq!(index.version(), Some("1"));
    let report = index.sync(store.clone(), &files, &schema, "2", None).await.unwrap();
    assert_eq!(report, SyncReport { files_read: 1, rows_read: 20, files_removed: 2 });
    let reads = store.reads();
    let hashes = index.hashes(&batch(&schema, 0, 0..60)).unwrap();
    let found = index.find(&hashes).unwrap();
    assert_eq!(store.reads(), reads, "lookups read no data file");
    for (k, row) in found.into_iter().enumerate() {
        let expected = match k {
            0..20 => Some(("merged".into(), k as u64)),
            24 => None,
            k => Some((format!("f{}", k / 10).into(), k as u64 % 10)),
        };
        assert_eq!(row, expected, "key {k}");
    }

    // A restore brought the row back: its file is read again.
    files[0].deleted.clear();
    let report = index.sync(store.clone(), &files, &schema, "3", None).await.unwrap();
    assert_eq!((report.files_read, report.files_removed), (1, 0));
    assert_eq!(index.find(&hashes[24..25]).unwrap(), [Some(("f2".into(), 4))]);
}

#[tokio::test]
async fn windows_that_cannot_change_are_neither_held_nor_read() {
    let (store, folder, schema) = (store(), tempfile::tempdir().unwrap(), spec().schema);
    let minute = 60_000_000;
    let mut files = Vec::new();
    for n in 0..5 {
        files.push(put(&store, &format!("f{n}"), &batch(&schema, n * minute, 0..10)).await);
    }
    // The bounds of the first file are known.
    files[0].columns = vec![ColumnStats { field_id: 1, bytes: 0, values: 10, nulls: 0, nans: 0, lower: Some(Scalar::Int(0)), upper: Some(Scalar::Int(0)) }];
    let bound = |horizon_us| WindowBound { column: "w".to_string(), length_us: minute, horizon_us };
    let mut index = open(folder.path());
    let report = index.sync(store.clone(), &files, &schema, "1", Some(&bound(2 * minute))).await.unwrap();
    assert_eq!(report.files_read, 4, "the first one is closed by its bounds");
    let held = |index: &mut KeyIndex| -> Vec<bool> {
        let keys: Vec<u128> = (0..5).flat_map(|n| index.hashes(&batch(&schema, n * minute, 3..4)).unwrap()).collect();
        index.find(&keys).unwrap().iter().map(Option::is_some).collect()
    };
    assert_eq!(held(&mut index), [false, false, true, true, true]);
    index.forget_before(4 * minute).unwrap();
    assert_eq!(index.version(), None, "not of a version before it is advanced");
    index.advance_to("2").unwrap();
    assert_eq!(held(&mut index), [false, false, false, false, true]);
    // Closed files stay known: they are not read again.
    let mut index = open(folder.path());
    assert_eq!(index.version(), Some("2"));
    let report = index.sync(store.clone(), &files, &schema, "3", Some(&bound(4 * minute))).await.unwrap();
    assert_eq!(report.files_read, 0);
    assert_eq!(held(&mut index), [false, false, false, false, true]);
}

#[test]
fn many_small_commits_leave_few_segments() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = open(folder.path());
    let schema = spec().schema;
    for n in 0..300 {
        let hashes = index.hashes(&batch(&schema, 0, n * 4..n * 4 + 4)).unwrap();
        index.add_file(&format!("f{n}"), &hashes, None).unwrap();
        if n % 3 == 0 && n > 0 {
            index.remove_file(&format!("f{}", n - 1)).unwrap();
        }
        index.advance_to(&n.to_string()).unwrap();
    }
    let on_disk = std::fs::read_dir(folder.path()).unwrap().filter(|f| f.as_ref().unwrap().path().extension().is_some()).count();
    assert_eq!(on_disk, index.segments.len());
    assert!(on_disk < 2 * TIER, "{on_disk} segments");
    let hashes = index.hashes(&batch(&schema, 0, 0..1200)).unwrap();
    for (k, row) in index.find(&hashes).unwrap().into_iter().enumerate() {
        let file = k / 4;
        let removed = (file + 1) % 3 == 0 && file + 1 < 300;
        assert_eq!(row, (!removed).then(|| (format!("f{file}").into(), k as u64 % 4)), "key {k}");
    }
}

/// Entries lie on disk; what stays in memory is a fence for each 256 of them.
#[test]
fn memory_is_a_small_share_of_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = open(folder.path());
    let (files, rows) = (20_u64, 100_000_u64);
    let hash = |n: u64| u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).rotate_left(64) | 1;
    for f in 0..files {
        let mut keys = index.begin_file();
        for r in 0..rows {
            keys.push(&[hash(f * rows + r)]).unwrap();
        }
        index.add(&format!("f{f}"), keys, None).unwrap();
        index.advance_to(&f.to_string()).unwrap();
    }
    assert_eq!(index.segments.iter().map(Segment::entries).sum::<u64>(), files * rows);
    assert!(index.segments.iter().map(Segment::fence_bytes).sum::<usize>() as u64 <= files * rows / 20);
    assert!(index.fresh.capacity() <= ENTRIES_AT_ONCE / 8);
    let asked: Vec<u64> = (0..2000).map(|i| i * 997).collect();
    let found = index.find(&asked.iter().map(|n| hash(*n)).collect::<Vec<_>>()).unwrap();
    for (n, row) in asked.into_iter().zip(found) {
        assert_eq!(row, Some((format!("f{}", n / rows).into(), n % rows)));
    }
    assert!(index.find(&[0, 2, u128::MAX - 1]).unwrap().iter().all(Option::is_none));
}

#[test]
fn a_file_that_is_dropped_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = open(folder.path());
    index.set_entries_at_once(10);
    let mut keys = index.begin_file();
    keys.push(&(0..35).collect::<Vec<u128>>()).unwrap();
    let segments = || std::fs::read_dir(folder.path()).unwrap().filter(|f| f.as_ref().unwrap().path().extension().is_some()).count();
    assert_eq!(segments(), 3);
    drop(keys);
    assert_eq!(segments(), 0);
    // A crash cannot tidy up; opening does.
    let mut keys = index.begin_file();
    keys.push(&(0..35).collect::<Vec<u128>>()).unwrap();
    std::mem::forget(keys);
    assert_eq!(segments(), 3);
    drop(index);
    open(folder.path());
    assert_eq!(segments(), 0);
}

#[test]
fn changes_to_files_that_are_not_known_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = open(folder.path());
    let error = index.mark_deleted("x", &[1].into_iter().collect()).unwrap_err();
    assert!(matches!(error, KeyIndexError::UnknownFile { path } if path == "x"));
    assert!(index.replace_file("x", None, &RoaringTreemap::new()).is_err());
    index.remove_file("x").unwrap();
    let append_only = TableSpec { key: vec![], ..spec() };
    assert!(KeyIndex::open(folder.path().join("b"), &append_only, TableFormatKind::Iceberg).is_err());
}
