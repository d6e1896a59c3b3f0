//! A table in a store, changed by random commits, compacted and deleted from by others, its index
//! lost, stale or cut off by crashes: what it shows is always what a plain map holds.

use super::*;
use crate::commit::Rewritten;
use crate::commit::key_index::FileKeys;
use crate::pipeline::{ColumnType, TableFormatKind};
use crate::read::counting::CountingStore;
use crate::read::{LiveFile, live_rows, positioned_rows};
use crate::stage::{DataFile, FIELD_ID, TableSpec};
use arrow::array::{Array, AsArray, Int64Array, StringArray, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

type Key = (Option<i64>, Option<String>);

fn spec() -> TableSpec {
    let columns = [("a", ColumnType::Int64), ("v", ColumnType::Int64), ("b", ColumnType::String)];
    let fields = columns.iter().enumerate().map(|(i, (name, ty))| ty.field(name, true).with_metadata([(FIELD_ID.to_string(), (i + 1).to_string())].into()));
    TableSpec {
        name: "t".to_string(),
        schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        key: vec!["b".to_string(), "a".to_string()],
        formats: vec![TableFormatKind::Iceberg],
        partition_by: vec![],
        properties: BTreeMap::new(),
        comment: None,
    }
}

/// Nulls in each column and in both; texts that run together with the numbers.
fn key(n: u8) -> Key {
    let a = [None, Some(0), Some(1), Some(-1)][usize::from(n % 4)];
    let b = [None, Some(""), Some("1"), Some("x")][usize::from(n / 4 % 4)];
    (a, b.map(str::to_string))
}

fn rows(schema: &SchemaRef, rows: &[(Key, i64)]) -> RecordBatch {
    let a: Int64Array = rows.iter().map(|((a, _), _)| *a).collect();
    let v: Int64Array = rows.iter().map(|(_, v)| Some(*v)).collect();
    let b: StringArray = rows.iter().map(|((_, b), _)| b.clone()).collect();
    RecordBatch::try_new(schema.clone(), vec![Arc::new(a), Arc::new(v), Arc::new(b)]).unwrap()
}

fn read_back(batch: &RecordBatch) -> Vec<(Key, i64)> {
    let (a, v, b) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>(), batch.column(2).as_string::<i32>());
    (0..batch.num_rows()).map(|i| ((a.is_valid(i).then(|| a.value(i)), b.is_valid(i).then(|| b.value(i).to_string())), v.value(i))).collect()
}

struct Table {
    store: Arc<CountingStore>,
    spec: TableSpec,
    files: Vec<LiveFile>,
    version: u64,
    next_name: u64,
    next_value: i64,
    model: BTreeMap<Key, i64>,
    folder: tempfile::TempDir,
    index: KeyIndex,
}

#[derive(Debug, Clone)]
enum Step {
    Commit { changes: Vec<(u8, u8)>, copy_on_write: bool, file_rows: usize, corrected_at_once: usize, after: After },
    /// Another tool merges files and turns their rows about.
    Compact { from: usize, count: usize },
    /// Another tool deletes a row.
    ForeignDelete { file: usize, row: u64 },
    LoseIndex,
    DamageIndex { byte: usize },
}

/// What becomes of the process when the commit is in the table.
#[derive(Debug, Clone, Copy)]
enum After {
    Advances,
    AdvancesAndRestarts,
    DiesBefore,
    DiesBetween,
}

fn step() -> impl Strategy<Value = Step> {
    let after = prop_oneof![4 => Just(After::Advances), 1 => Just(After::AdvancesAndRestarts), 1 => Just(After::DiesBefore), 1 => Just(After::DiesBetween)];
    let changes = prop::collection::vec((0u8..16, 0u8..4), 0..24);
    prop_oneof![
        12 => (changes, any::<bool>(), 1usize..6, 1usize..6, after)
            .prop_map(|(changes, copy_on_write, file_rows, corrected_at_once, after)| Step::Commit { changes, copy_on_write, file_rows, corrected_at_once, after }),
        2 => (0usize..8, 1usize..5).prop_map(|(from, count)| Step::Compact { from, count }),
        1 => (0usize..8, 0u64..6).prop_map(|(file, row)| Step::ForeignDelete { file, row }),
        1 => Just(Step::LoseIndex),
        1 => (0usize..4000).prop_map(|byte| Step::DamageIndex { byte }),
    ]
}

impl Table {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec();
        let store = Arc::new(CountingStore::new(Arc::new(InMemory::new())));
        let index = open(&folder, &spec);
        Self { store, spec, files: vec![], version: 0, next_name: 0, next_value: 0, model: BTreeMap::new(), folder, index }
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    async fn write(&mut self, batch: &RecordBatch) -> LiveFile {
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
        self.next_name += 1;
        let path = format!("t/{}.parquet", self.next_name);
        let size = bytes.len() as u64;
        self.store.put(&Path::from(path.as_str()), bytes.into()).await.unwrap();
        LiveFile { path, bytes: size, records: batch.num_rows() as u64, deleted: RoaringTreemap::new(), partition_values: BTreeMap::new(), columns: vec![] }
    }

    async fn content(&self) -> Vec<(Key, i64)> {
        let mut found = Vec::new();
        for file in &self.files {
            let batches: Vec<_> = live_rows(self.store(), file, &self.spec.schema, None, 3).try_collect().await.unwrap();
            found.extend(batches.iter().flat_map(read_back));
        }
        found.sort();
        found
    }

    /// Rows of a file that are not in `dropped`.
    async fn without(&self, file: &LiveFile, dropped: &RoaringTreemap) -> RecordBatch {
        let batches: Vec<_> = positioned_rows(self.store(), file, &self.spec.schema, None, 1000).try_collect().await.unwrap();
        let kept = batches.into_iter().flat_map(|(b, p)| read_back(&b).into_iter().zip(p)).filter(|(_, p)| !dropped.contains(*p)).map(|(r, _)| r);
        rows(&self.spec.schema, &kept.collect::<Vec<_>>())
    }

    async fn sync(&mut self) {
        let version = self.version.to_string();
        if self.index.version() == Some(&version) {
            return;
        }
        let schema = self.spec.schema.clone();
        self.index.sync(self.store(), &self.files, &schema, &version, None).await.unwrap();
    }

    /// What the fold would yield: inserts only of keys that are not there.
    fn changes(&mut self, wanted: &[(u8, u8)]) -> Vec<(ChangeOp, Vec<RecordBatch>)> {
        let mut changes: Vec<(ChangeOp, Vec<(Key, i64)>)> = Vec::new();
        for (n, how) in wanted {
            let key = key(*n);
            self.next_value += 1;
            let op = match (self.model.contains_key(&key), how) {
                (false, 0 | 1) => ChangeOp::Insert,
                (_, 3) => ChangeOp::Remove,
                _ => ChangeOp::Replace,
            };
            match op {
                ChangeOp::Remove => self.model.remove(&key),
                _ => self.model.insert(key.clone(), self.next_value),
            };
            match changes.last_mut().filter(|(last, _)| *last == op) {
                Some((_, rows)) => rows.push((key, self.next_value)),
                None => changes.push((op, vec![(key, self.next_value)])),
            }
        }
        changes.into_iter().map(|(op, all)| (op, all.chunks(2).map(|c| rows(&self.spec.schema, c)).collect())).collect()
    }

    async fn commit(&mut self, wanted: &[(u8, u8)], copy_on_write: bool, file_rows: usize, corrected_at_once: usize, after: After) {
        self.sync().await;
        let changes = self.changes(wanted);
        let changes: Vec<_> = changes.iter().map(|(op, rows)| KeyedChange { op: *op, rows }).collect();
        let mut tries = 0;
        let (resolved, written) = loop {
            let reads = self.store.reads();
            let mut written: Vec<((Key, i64), u128)> = Vec::new();
            let mut sink = |batch: RecordBatch, hashes: &[u128]| {
                assert_eq!(batch.num_rows(), hashes.len());
                written.extend(read_back(&batch).into_iter().zip(hashes.iter().copied()));
                Ok(())
            };
            let resolved = resolve_within(&changes, &mut self.index, &mut sink, corrected_at_once);
            assert_eq!(self.store.reads(), reads, "no data file is read");
            match resolved {
                Ok(resolved) => break (resolved, written),
                // Nothing was committed yet.
                Err(ResolveError::Index(KeyIndexError::Corrupt { .. })) if tries == 0 => self.sync().await,
                Err(e) => panic!("{e}"),
            }
            tries += 1;
        };
        drop(changes);
        assert_eq!(resolved.rows_written as usize, written.len());
        assert_eq!(resolved.rows_written + resolved.rows_dropped, wanted.len() as u64);

        let mut added: Vec<(LiveFile, FileKeys)> = Vec::new();
        for chunk in written.chunks(file_rows) {
            let mut keys = self.index.begin_file();
            keys.push(&chunk.iter().map(|(_, h)| *h).collect::<Vec<_>>()).unwrap();
            let batch = rows(&self.spec.schema, &chunk.iter().map(|(r, _)| r.clone()).collect::<Vec<_>>());
            added.push((self.write(&batch).await, keys));
        }
        let mut rewritten = Vec::new();
        for (path, positions) in &resolved.delete {
            let at = self.files.iter().position(|f| f.path == *path).expect("deletes name live files");
            assert!(self.files[at].deleted.is_disjoint(positions), "rows are deleted once");
            if !copy_on_write {
                self.files[at].deleted |= positions;
                continue;
            }
            let old = self.files[at].clone();
            let dropped = &old.deleted | positions;
            let batch = self.without(&old, &dropped).await;
            let new = if batch.num_rows() == 0 { None } else { Some(self.write(&batch).await) };
            let data = new.as_ref().map(|f| DataFile { path: f.path.clone(), bytes: f.bytes, records: f.records, partition: vec![], columns: vec![], split_offsets: vec![] });
            rewritten.push(Rewritten { old: old.path.clone(), new: data, dropped });
            match new {
                Some(new) => self.files[at] = new,
                None => _ = self.files.remove(at),
            }
        }
        self.files.extend(added.iter().map(|(f, _)| f.clone()));
        self.version += 1;
        let added: Vec<_> = added.into_iter().map(|(f, k)| (f.path, k, None)).collect();
        let version = self.version.to_string();
        match after {
            After::Advances | After::AdvancesAndRestarts => {
                match self.index.committed(&resolved.delete, &rewritten, added, &version) {
                    Ok(()) => assert_eq!(self.index.version(), Some(version.as_str())),
                    Err(KeyIndexError::Corrupt { .. }) => assert_eq!(self.index.version(), None),
                    Err(e) => panic!("{e}"),
                }
                if matches!(after, After::AdvancesAndRestarts) {
                    let before = self.index.version().map(str::to_string);
                    self.restart();
                    assert!(before.is_none() || self.index.version().map(str::to_string) == before);
                }
            }
            After::DiesBefore => {
                drop(added);
                self.restart();
            }
            After::DiesBetween => {
                for (path, keys, until) in added {
                    self.index.add(&path, keys, until).unwrap();
                }
                self.restart();
                assert_ne!(self.index.version(), Some(version.as_str()));
            }
        }
    }

    fn restart(&mut self) {
        self.index = open(&self.folder, &self.spec);
    }

    async fn run(&mut self, step: &Step) {
        match step {
            Step::Commit { changes, copy_on_write, file_rows, corrected_at_once, after } => {
                self.commit(changes, *copy_on_write, *file_rows, *corrected_at_once, *after).await;
            }
            Step::Compact { from, count } => {
                let from = (*from).min(self.files.len());
                let until = (from + count).min(self.files.len());
                let old: Vec<LiveFile> = self.files.drain(from..until).collect();
                let mut all = Vec::new();
                for file in &old {
                    all.extend(read_back(&self.without(file, &RoaringTreemap::new()).await));
                }
                all.reverse();
                if !all.is_empty() {
                    let file = self.write(&rows(&self.spec.schema, &all)).await;
                    self.files.push(file);
                }
                self.version += 1;
            }
            Step::ForeignDelete { file, row } => {
                if let Some(at) = self.files.len().checked_sub(1).map(|last| (*file).min(last)) {
                    let batch = self.without(&self.files[at].clone(), &(0..*row).chain(row + 1..100).collect()).await;
                    read_back(&batch).iter().for_each(|(key, _)| _ = self.model.remove(key));
                    if *row < self.files[at].records {
                        self.files[at].deleted.insert(*row);
                    }
                    self.version += 1;
                }
            }
            Step::LoseIndex => {
                let empty = tempfile::tempdir().unwrap();
                self.index = open(&empty, &self.spec);
                self.folder = empty;
            }
            Step::DamageIndex { byte } => {
                let mut files: Vec<_> = std::fs::read_dir(self.folder.path().join("index")).unwrap().map(|f| f.unwrap().path()).collect();
                files.sort();
                let Some(path) = files.get(byte % files.len().max(1)) else { return };
                let mut bytes = std::fs::read(path).unwrap();
                let Some(at) = byte.checked_rem(bytes.len()) else { return };
                bytes[at] ^= 1;
                std::fs::write(path, bytes).unwrap();
                self.restart();
            }
        }
        let expected: Vec<(Key, i64)> = self.model.iter().map(|(k, v)| (k.clone(), *v)).collect();
        let mut found = self.content().await;
        found.sort();
        assert_eq!(found, expected);
    }
}

fn open(folder: &tempfile::TempDir, spec: &TableSpec) -> KeyIndex {
    let mut index = KeyIndex::open(folder.path().join("index"), spec, TableFormatKind::Iceberg).unwrap();
    index.set_entries_at_once(5);
    index
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_is_always_what_a_map_holds(steps in prop::collection::vec(step(), 1..30)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut table = Table::new();
            for step in &steps {
                table.run(step).await;
            }
        });
    }
}

fn index(spec: &TableSpec) -> (tempfile::TempDir, KeyIndex) {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder, spec);
    (folder, index)
}

fn fold(changes: &[(ChangeOp, &[(u8, i64)])], index: &mut KeyIndex, schema: &SchemaRef) -> (Resolved, Vec<i64>) {
    let changes: Vec<_> = changes.iter().map(|(op, all)| (*op, rows(schema, &all.iter().map(|(n, v)| (key(*n), *v)).collect::<Vec<_>>()))).collect();
    let changes: Vec<_> = changes.iter().map(|(op, rows)| KeyedChange { op: *op, rows }).collect();
    let mut values = Vec::new();
    let mut sink = |batch: RecordBatch, _: &[u128]| {
        values.extend(read_back(&batch).into_iter().map(|(_, v)| v));
        Ok(())
    };
    let resolved = resolve(&changes, index, &mut sink).unwrap();
    (resolved, values)
}

#[test]
fn only_the_last_change_of_a_key_counts() {
    use ChangeOp::{Insert, Remove, Replace};
    let spec = spec();
    let (_folder, mut index) = index(&spec);
    let old = rows(&spec.schema, &[(key(1), 0), (key(2), 0), (key(3), 0)]);
    let hashes = index.hashes(&old).unwrap();
    index.add_file("old", &hashes, None).unwrap();
    index.advance_to("1").unwrap();
    // Inserted and removed: it never was. Inserted and replaced: one row, nothing deleted.
    let (resolved, values) = fold(&[(Insert, &[(7, 10), (8, 11), (9, 12)]), (Replace, &[(8, 13)]), (Remove, &[(7, 0)])], &mut index, &spec.schema);
    assert_eq!(values, [12, 13]);
    assert_eq!(resolved, Resolved { delete: BTreeMap::new(), rows_written: 2, rows_dropped: 3, keys_not_found: 2 });
    // Replaced twice in one set of rows, removed and inserted again, removed for good.
    let changes: &[(ChangeOp, &[(u8, i64)])] = &[(Replace, &[(1, 20), (1, 21), (4, 22)]), (Remove, &[(2, 0), (3, 0)]), (Insert, &[(2, 23)])];
    let (resolved, values) = fold(changes, &mut index, &spec.schema);
    assert_eq!(values, [21, 22, 23]);
    assert_eq!(resolved.delete, [("old".to_string(), [0, 1, 2].into_iter().collect())].into());
    assert_eq!((resolved.rows_dropped, resolved.keys_not_found), (3, 1));
}

#[test]
fn inserts_alone_are_read_once_and_never_looked_up() {
    struct Once(RecordBatch, std::cell::Cell<u32>);
    impl RowBatches for Once {
        fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_> {
            self.1.set(self.1.get() + 1);
            Box::new((0..self.0.num_rows()).map(|i| Ok(take_record_batch(&self.0, &UInt64Array::from(vec![i as u64])).unwrap())))
        }
    }
    let spec = spec();
    let (folder, mut index) = index(&spec);
    let batch = rows(&spec.schema, &(0..16).map(|n| (key(n), i64::from(n))).collect::<Vec<_>>());
    let hashes = index.hashes(&batch).unwrap();
    index.add_file("old", &hashes, None).unwrap();
    index.advance_to("1").unwrap();
    // A lookup would fail.
    for file in std::fs::read_dir(folder.path().join("index")).unwrap() {
        std::fs::write(file.unwrap().path(), b"").unwrap();
    }
    let inserts = Once(batch, Default::default());
    let mut count = 0;
    let mut sink = |batch: RecordBatch, _: &[u128]| {
        count += batch.num_rows();
        Ok(())
    };
    resolve(&[KeyedChange { op: ChangeOp::Insert, rows: &inserts }], &mut index, &mut sink).unwrap();
    assert_eq!((count, inserts.1.get()), (16, 1));
    assert!(resolve(&[KeyedChange { op: ChangeOp::Replace, rows: &inserts }], &mut index, &mut |_, _| Ok(())).is_err());
}

#[test]
fn errors_of_rows_and_sink_come_through() {
    struct Bad;
    impl RowBatches for Bad {
        fn batches(&self) -> Box<dyn Iterator<Item = Result<RecordBatch, String>> + '_> {
            Box::new(std::iter::once(Err("run 7 is gone".to_string())))
        }
    }
    let spec = spec();
    let (_folder, mut index) = index(&spec);
    let error = resolve(&[KeyedChange { op: ChangeOp::Replace, rows: &Bad }], &mut index, &mut |_, _| Ok(())).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the changes: run 7 is gone");
    let batch = rows(&spec.schema, &[(key(1), 1)]);
    let error = resolve(&[KeyedChange { op: ChangeOp::Insert, rows: &batch }], &mut index, &mut |_, _| Err("disk full".to_string())).unwrap_err();
    assert!(matches!(error, ResolveError::Sink(text) if text == "disk full"));
}
