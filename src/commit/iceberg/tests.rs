use super::*;
use crate::commit::{Committed, TableChange};
use crate::pipeline::{ColumnType as T, PartitionField, PartitionTransform, TableFormatKind};
use crate::stage::layout::assign_field_ids;
use crate::stage::parquet::ParquetStager;
use crate::stage::{DataFile, Scalar};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use futures::TryStreamExt;
use iceberg::spec::ManifestList;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use roaring::RoaringTreemap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

struct World {
    store: Arc<dyn ObjectStore>,
    catalog: SqliteCatalog,
    ambient: Ambient,
    root: Url,
    names: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "millpond").await.unwrap();
        let (clock, ids) = (AtomicI64::new(1_767_225_600_000), AtomicU64::new(1));
        let ambient = Ambient {
            now_ms: Arc::new(move || clock.fetch_add(1000, SeqCst)),
            new_id: Arc::new(move || Uuid::from_u64_pair(ids.fetch_add(1, SeqCst).wrapping_mul(0x9E37_79B9_7F4A_7C15), 7)),
        };
        let root = Url::parse("file:///lake").unwrap();
        Self { store: Arc::new(InMemory::new()), catalog, ambient, root, names: Arc::default(), _dir: dir }
    }

    fn format(&self) -> IcebergFormat {
        IcebergFormat::new(self.store.clone(), &self.root, self.catalog.clone(), "pond", "pond", self.ambient.clone())
    }

    async fn stage(&self, spec: &Arc<TableSpec>, batch: &RecordBatch) -> Vec<DataFile> {
        let names = self.names.clone();
        let name = Box::new(move || format!("f{:05}.parquet", names.fetch_add(1, SeqCst)));
        let mut stager = ParquetStager::new(spec.clone(), TableFormatKind::Iceberg, data_folder("pond", &spec.name), name).unwrap();
        stager.write(batch).unwrap();
        let mut files = Vec::new();
        for (file, bytes) in stager.finish().unwrap() {
            self.store.put(&Path::parse(&file.path).unwrap(), bytes.into()).await.unwrap();
            files.push(file);
        }
        files
    }

    async fn objects(&self, ending: &str) -> Vec<String> {
        let all: Vec<_> = self.store.list(None).try_collect().await.unwrap();
        all.into_iter().map(|o| o.location.to_string()).filter(|p| p.ends_with(ending)).collect()
    }

    async fn metadata(&self, table: &str) -> TableMetadata {
        let location = self.catalog.metadata_location("pond", table).await.unwrap().unwrap();
        TableMetadata::read_from(&file_io(self.store.clone(), LakeRoot::new(&self.root)), location).await.unwrap()
    }
}

const LOG: Uuid = Uuid::from_u128(0xABCD);

fn stamp_at(entry: u64) -> Stamp {
    Stamp { log: LOG, entry, offsets: [("src".to_string(), [(0, entry as i64 * 10)].into())].into() }
}

fn spec(partition_by: Vec<PartitionField>) -> Arc<TableSpec> {
    let fields = vec![T::Int64.field("id", false), T::String.field("v", true), T::Timestamp(None).field("at", true)];
    Arc::new(TableSpec {
        name: "t".into(),
        schema: assign_field_ids(&Schema::new(fields), None).unwrap(),
        key: vec!["id".into()],
        formats: vec![TableFormatKind::Iceberg],
        partition_by,
        properties: Default::default(),
        comment: Some("a table".into()),
    })
}

fn rows(spec: &TableSpec, rows: &[(i64, &str, i64)]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.2)).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(times),
    ];
    RecordBatch::try_new(spec.schema.clone(), columns).unwrap()
}

fn change(spec: &Arc<TableSpec>, entry: u64, add: Vec<DataFile>, delete: &[(&str, &[u64])]) -> TableChange {
    TableChange {
        add,
        delete: delete.iter().map(|(p, d)| (p.to_string(), d.iter().copied().collect())).collect(),
        stamp: stamp_at(entry),
        spec: spec.clone(),
        attempt: Uuid::from_u128(entry as u128),
    }
}

async fn done(table: &mut Box<dyn LakeTable>, change: TableChange) -> crate::commit::CommitReport {
    match table.commit(change).await.unwrap() {
        Committed::Done(report) => report,
        other => panic!("{other:?}"),
    }
}

fn refusal<V>(result: Result<V, CommitError>) -> String {
    match result {
        Err(CommitError::Refused(text)) => text,
        Err(CommitError::Unavailable(text)) => panic!("unavailable: {text}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test]
async fn a_new_table_keeps_our_field_ids_and_its_birth_stamp() {
    let world = World::new().await;
    let nested = T::Struct(vec![("x".into(), T::List(Box::new(T::Uuid))), ("y".into(), T::Decimal(12, 2))]);
    let fields = vec![
        T::Map(Box::new(T::String), Box::new(nested.clone())).field("m", true),
        T::List(Box::new(nested)).field("l", true),
        T::Int64.field("id", false),
    ];
    let mut wide = spec(vec![]).as_ref().clone();
    wide.schema = assign_field_ids(&Schema::new(fields), None).unwrap();
    let wide = Arc::new(wide);
    let mut table = world.format().open_or_create(wide.clone(), &stamp_at(3)).await.unwrap();
    let base = table.load().await.unwrap();
    assert_eq!((base.stamp, base.foreign_commits), (stamp_at(3), 0));
    let metadata = world.metadata("t").await;
    assert_eq!(metadata.current_schema().as_struct(), super::schema::iceberg_schema(&wide).unwrap().as_struct());
    assert_eq!(metadata.current_schema_id(), 0);
    assert_eq!(metadata.location(), "file:///lake/iceberg/pond/t");
    assert_eq!(metadata.properties()["comment"], "a table");
    assert!(table.live_files().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_table_made_after_its_columns_evolved_keeps_their_ids_too() {
    let world = World::new().await;
    let first = spec(vec![]);
    let mut columns: Vec<Arc<Field>> = first.schema.fields().iter().cloned().collect();
    columns.insert(1, Arc::new(T::Date.field("added", true)));
    let mut later = spec(vec![PartitionField { column: "added".into(), transform: PartitionTransform::Month }]).as_ref().clone();
    later.schema = assign_field_ids(&Schema::new(columns), Some(&first.schema)).unwrap();
    world.format().open_or_create(Arc::new(later), &stamp_at(1)).await.unwrap();
    let metadata = world.metadata("t").await;
    assert_eq!(metadata.current_schema().field_by_name("added").unwrap().id, 4);
    assert_eq!(metadata.current_schema().field_by_name("v").unwrap().id, 2);
    assert_eq!(metadata.schemas_iter().len(), 1);
    assert_eq!(metadata.default_partition_spec().fields()[0].source_id, 4);
}

#[tokio::test]
async fn rows_are_added_and_deleted_by_position() {
    let world = World::new().await;
    let day = 86_400_000_000;
    let t = spec(vec![PartitionField { column: "at".into(), transform: PartitionTransform::Day }]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let files = world.stage(&t, &rows(&t, &[(1, "a", 0), (2, "b", day), (3, "c", 1), (4, "d", -1)])).await;
    assert_eq!(files.iter().map(|f| f.partition[0].clone()).collect::<Vec<_>>(), [0, 1, -1].map(|d| Some(Scalar::Int(d))));
    let report = done(&mut table, change(&t, 5, files.clone(), &[])).await;
    assert_eq!(table.load().await.unwrap().stamp, stamp_at(5));
    assert_eq!((report.rewritten.len(), report.data_files_read), (0, 0));

    let more = world.stage(&t, &rows(&t, &[(1, "A", 0)])).await;
    done(&mut table, change(&t, 6, more, &[(&files[0].path, &[0]), (&files[1].path, &[0])])).await;
    done(&mut table, change(&t, 7, vec![], &[(&files[0].path, &[1])])).await;

    // A fresh process sees the same.
    let mut table = world.format().with_log(LOG).open(t.clone()).await.unwrap().unwrap();
    let live = table.live_files().await.unwrap();
    let deleted: Vec<_> = live.iter().map(|f| (f.records, f.deleted.iter().collect::<Vec<_>>())).collect();
    // In the order of their folders: the last day of 1969 comes first.
    assert_eq!(deleted, [(1, vec![]), (2, vec![0, 1]), (1, vec![]), (1, vec![0])]);
    assert!(live.iter().all(|f| f.columns.len() == 3));
    let history = table.history(10).await.unwrap();
    let seen: Vec<_> = history.iter().map(|r| (r.entry, r.operation.as_str(), r.added_records, r.deleted_records)).collect();
    assert_eq!(seen, [(Some(7), "delete", 0, 1), (Some(6), "overwrite", 1, 2), (Some(5), "append", 4, 0)]);
    let metadata = world.metadata("t").await;
    let summary = &metadata.current_snapshot().unwrap().summary().additional_properties;
    assert_eq!((summary["total-records"].as_str(), summary["total-position-deletes"].as_str(), summary["total-delete-files"].as_str()), ("5", "3", "3"));
    assert_eq!(summary["millpond.entry"], "7");
    assert_eq!(summary["millpond.offsets"], r#"{"src":{"0":70}}"#);

    let text = refusal(table.commit(change(&t, 8, vec![], &[("iceberg/pond/t/data/none.parquet", &[0])])).await);
    assert!(text.contains("is not a live file"), "{text}");
}

/// FAULTS 8: a commit that comes through after another one's.
#[tokio::test]
async fn a_stale_base_moves_nothing() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut one = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let mut two = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let file = world.stage(&t, &rows(&t, &[(1, "a", 0)])).await;
    done(&mut one, change(&t, 1, file.clone(), &[])).await;
    let before = world.objects("").await;
    assert!(matches!(two.commit(change(&t, 1, file, &[])).await.unwrap(), Committed::Moved));
    assert_eq!(world.objects("").await, before, "the loser takes its files back");
    assert_eq!(two.load().await.unwrap().stamp, stamp_at(1));
    assert_eq!(two.live_files().await.unwrap().len(), 1);
}

/// FAULTS 8, 18.
#[tokio::test]
async fn a_lost_answer_is_unknown_and_the_stamp_tells() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let file = world.stage(&t, &rows(&t, &[(1, "a", 0)])).await;
    world.catalog.lose_next_answer();
    assert!(matches!(table.commit(change(&t, 1, file, &[])).await.unwrap(), Committed::Unknown(_)));
    // Nothing was deleted, and the table says that it landed.
    assert_eq!(table.load().await.unwrap().stamp, stamp_at(1));
    assert_eq!(table.live_files().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_empty_change_is_a_stamp_without_a_snapshot() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let file = world.stage(&t, &rows(&t, &[(1, "a", 0)])).await;
    done(&mut table, change(&t, 1, file, &[])).await;
    let first = table.load().await.unwrap();
    let report = done(&mut table, change(&t, 9, vec![], &[])).await;
    assert_eq!(report.snapshot, "");
    let second = table.load().await.unwrap();
    assert_ne!(first.version, second.version);
    assert_eq!(second.stamp, stamp_at(9));
    assert_eq!(table.history(10).await.unwrap().len(), 1);
    assert!(refusal(table.commit(change(&t, 8, vec![], &[])).await).contains("would set"));
}

#[tokio::test]
async fn columns_are_added_in_the_commit_that_brings_them() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let old = world.stage(&t, &rows(&t, &[(1, "a", 0)])).await;
    done(&mut table, change(&t, 1, old, &[])).await;
    let mut columns: Vec<Arc<Field>> = t.schema.fields().iter().cloned().collect();
    columns.push(Arc::new(T::Int64.field("n", true)));
    let mut wider = t.as_ref().clone();
    wider.schema = assign_field_ids(&Schema::new(columns), Some(&t.schema)).unwrap();
    let wider = Arc::new(wider);
    let mut batch: Vec<ArrayRef> = rows(&t, &[(2, "b", 0)]).columns().to_vec();
    batch.push(Arc::new(Int64Array::from(vec![7])));
    let new = world.stage(&wider, &RecordBatch::try_new(wider.schema.clone(), batch).unwrap()).await;
    done(&mut table, change(&wider, 2, new, &[])).await;
    assert_eq!(table.spec().schema, wider.schema);
    let metadata = world.metadata("t").await;
    assert_eq!((metadata.current_schema_id(), metadata.current_snapshot().unwrap().schema_id()), (1, Some(1)));
    assert_eq!(metadata.current_schema().field_by_name("n").unwrap().id, 4);
    assert_eq!(table.live_files().await.unwrap().len(), 2);
    // Who still has the old columns is told what is different.
    let text = refusal(world.format().open(t).await);
    assert!(text.contains("the table has the column `n` (long), which the pipeline does not"), "{text}");
    // The file with the new column opens the old table: the column comes with its first commit.
    world.format().open(wider).await.unwrap().unwrap();
}

#[tokio::test]
async fn three_hundred_commits_keep_their_bounds() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let mut previous: Option<String> = None;
    for entry in 1..=300 {
        let file = world.stage(&t, &rows(&t, &[(entry as i64, "old", 0), (-(entry as i64), "kept", 0)])).await;
        let path = file[0].path.clone();
        let delete: Vec<(&str, &[u64])> = previous.iter().map(|p| (p.as_str(), &[0u64][..])).collect();
        done(&mut table, change(&t, entry, file, &delete)).await;
        previous = Some(path);
    }
    let metadata = world.metadata("t").await;
    assert!(metadata.snapshots().len() <= 110, "{} snapshots", metadata.snapshots().len());
    assert_eq!(metadata.metadata_log().len(), 100);
    assert_eq!(world.objects(".metadata.json").await.len(), 101);
    let io = file_io(world.store.clone(), LakeRoot::new(&world.root));
    let mut named = std::collections::HashSet::new();
    for snapshot in metadata.snapshots() {
        let bytes = io.new_input(snapshot.manifest_list()).unwrap().read().await.unwrap();
        let list = ManifestList::parse_with_version(&bytes, FormatVersion::V2).unwrap();
        assert!(list.entries().len() <= 90, "{} manifests", list.entries().len());
        named.insert(snapshot.manifest_list().to_string());
        named.extend(list.entries().iter().map(|m| m.manifest_path.clone()));
    }
    // Exactly what the retained snapshots name is still there.
    let root = LakeRoot::new(&world.root);
    let there: std::collections::HashSet<String> = world.objects(".avro").await.iter().map(|p| root.location(p)).collect();
    assert_eq!(there, named);
    assert_eq!(world.objects(".parquet").await.len(), 300 + 299);

    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    assert_eq!(table.load().await.unwrap().stamp, stamp_at(300));
    let live = table.live_files().await.unwrap();
    assert_eq!(live.len(), 300);
    assert_eq!(live.iter().map(|f| f.deleted.len()).sum::<u64>(), 299);
    let first = live.iter().find(|f| f.path.ends_with("f00000.parquet")).unwrap();
    assert_eq!((first.columns[0].lower.clone(), first.columns[0].upper.clone()), (Some(Scalar::Int(-1)), Some(Scalar::Int(1))));
}

#[tokio::test]
async fn tables_of_others_are_refused_with_what_they_are() {
    let world = World::new().await;
    let t = spec(vec![]);
    world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();

    let other = Stamp { log: Uuid::from_u128(99), ..stamp_at(0) };
    let text = refusal(world.format().open_or_create(t.clone(), &other).await);
    assert!(text.contains(&LOG.to_string()) && text.contains(&other.log.to_string()), "{text}");

    let format = world.format();
    format.expect_uuid("t", "0000");
    assert!(refusal(format.open(t.clone()).await).contains("it was dropped and made anew"));
    format.expect_uuid("gone", "0000");
    let mut gone = t.as_ref().clone();
    gone.name = "gone".into();
    assert!(refusal(format.open_or_create(Arc::new(gone), &stamp_at(0)).await).contains("no longer in the catalog"));

    let mut partitioned = t.as_ref().clone();
    partitioned.partition_by = vec![PartitionField { column: "at".into(), transform: PartitionTransform::Day }];
    let text = refusal(world.format().open(Arc::new(partitioned)).await);
    assert!(text.contains("partitioned by nothing, the pipeline by at_day (day)"), "{text}");

    // A table that Flink made.
    let io = file_io(world.store.clone(), LakeRoot::new(&world.root));
    let from = world.catalog.metadata_location("pond", "t").await.unwrap().unwrap();
    let keys: Vec<String> = world.metadata("t").await.properties().keys().cloned().collect();
    let builder = world.metadata("t").await.into_builder(None).remove_properties(&keys).unwrap();
    let foreign = builder.set_properties([("flink.job-id".to_string(), "7".to_string())].into()).unwrap().build().unwrap().metadata;
    io.new_output("file:///lake/x.metadata.json").unwrap().write(serde_json::to_vec(&foreign).unwrap().into()).await.unwrap();
    assert!(world.catalog.swap("pond", "t", &from, "file:///lake/x.metadata.json").await.unwrap());
    let text = refusal(world.format().open(t).await);
    assert!(text.contains("is not ours") && text.contains("Flink") && text.contains("id, v, at"), "{text}");
}

#[tokio::test]
async fn a_table_that_was_rolled_back_is_refused_and_one_that_others_wrote_to_is_not() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    for entry in 1..=3 {
        let file = world.stage(&t, &rows(&t, &[(entry as i64, "a", 0)])).await;
        done(&mut table, change(&t, entry, file, &[])).await;
    }
    let io = file_io(world.store.clone(), LakeRoot::new(&world.root));
    let put = async |metadata: TableMetadata, name: &str| {
        let from = world.catalog.metadata_location("pond", "t").await.unwrap().unwrap();
        let to = format!("file:///lake/iceberg/pond/t/metadata/{name}.metadata.json");
        io.new_output(&to).unwrap().write(serde_json::to_vec(&metadata).unwrap().into()).await.unwrap();
        assert!(world.catalog.swap("pond", "t", &from, &to).await.unwrap());
    };
    let ours = world.metadata("t").await;
    let newest = ours.current_snapshot().unwrap().clone();

    // Another writer's snapshot on top keeps the stamp sound.
    let theirs = iceberg::spec::Snapshot::builder()
        .with_snapshot_id(77)
        .with_parent_snapshot_id(Some(newest.snapshot_id()))
        .with_sequence_number(ours.next_sequence_number())
        .with_timestamp_ms(newest.timestamp_ms() + 1)
        .with_manifest_list(newest.manifest_list())
        .with_summary(iceberg::spec::Summary { operation: iceberg::spec::Operation::Replace, additional_properties: Default::default() })
        .with_schema_id(0)
        .build();
    let on_top = ours.clone().into_builder(None).set_branch_snapshot(theirs, "main").unwrap().build().unwrap().metadata;
    put(on_top, "00010-a").await;
    let base = table.load().await.unwrap();
    assert_eq!((base.foreign_commits, base.stamp.entry), (1, 3));
    assert_eq!(table.history(2).await.unwrap().iter().map(|r| r.entry).collect::<Vec<_>>(), [None, Some(3)]);
    let file = world.stage(&t, &rows(&t, &[(4, "a", 0)])).await;
    done(&mut table, change(&t, 4, file, &[])).await;
    assert!(table.load().await.unwrap().version.contains("/metadata/00011-"));

    // Back to the first snapshot, by whoever.
    let first = ours.snapshots().min_by_key(|s| s.sequence_number()).unwrap().snapshot_id();
    let reference = iceberg::spec::SnapshotReference::new(first, iceberg::spec::SnapshotRetention::branch(None, None, None));
    let back = world.metadata("t").await.into_builder(None).set_ref("main", reference).unwrap().build().unwrap().metadata;
    put(back, "00012-b").await;
    let text = refusal(table.load().await);
    assert!(text.contains("was rolled back") && text.contains("entry 4") && text.contains(&first.to_string()), "{text}");
    assert!(table.commit(change(&t, 5, vec![], &[])).await.is_err());
}

#[tokio::test]
async fn racing_creations_open_one_table() {
    let world = Arc::new(World::new().await);
    let opened = futures::future::join_all((0..8).map(|_| {
        let world = world.clone();
        tokio::spawn(async move { world.format().open_or_create(spec(vec![]), &stamp_at(0)).await.unwrap().load().await.unwrap().table_uuid })
    }))
    .await;
    let uuids: std::collections::HashSet<String> = opened.into_iter().map(|u| u.unwrap()).collect();
    assert_eq!(uuids.len(), 1);
    assert_eq!(world.objects(".metadata.json").await.len(), 1);
    assert_eq!(world.objects("version-hint.text").await.len(), 1);
}

#[tokio::test]
async fn a_deleted_row_set_is_exact_across_files_of_one_commit() {
    let world = World::new().await;
    let t = spec(vec![]);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let (a, b) = (world.stage(&t, &rows(&t, &[(1, "a", 0), (2, "b", 0)])).await, world.stage(&t, &rows(&t, &[(3, "c", 0), (4, "d", 0)])).await);
    let (pa, pb) = (a[0].path.clone(), b[0].path.clone());
    done(&mut table, change(&t, 1, a.into_iter().chain(b).collect(), &[])).await;
    done(&mut table, change(&t, 2, vec![], &[(&pa, &[1]), (&pb, &[0])])).await;
    assert_eq!(world.objects(".parquet").await.iter().filter(|p| p.contains("/deletes-")).count(), 1);
    let live = table.live_files().await.unwrap();
    assert_eq!(live.iter().map(|f| f.deleted.clone()).collect::<Vec<_>>(), [RoaringTreemap::from_iter([1]), RoaringTreemap::from_iter([0])]);
}

#[tokio::test]
async fn properties_that_are_not_honoured_are_refused() {
    let world = World::new().await;
    for (key, value) in [("write.data.path", "file:///x"), ("format-version", "3"), ("millpond.log", "x")] {
        let mut t = spec(vec![]).as_ref().clone();
        t.properties.insert(key.into(), value.into());
        assert!(refusal(world.format().open_or_create(Arc::new(t), &stamp_at(0)).await).contains(key));
    }
}

/// What the cleaner may take of a table, and what its snapshots and commits under way need.
#[tokio::test]
async fn only_files_that_no_snapshot_and_no_commit_under_way_needs_are_unneeded() {
    use crate::stage::names::{self, Owner, file_name};
    use std::collections::BTreeSet;
    let world = World::new().await;
    let mut t = spec(vec![]).as_ref().clone();
    t.properties.insert(super::KEEP_SNAPSHOTS.into(), "3".into());
    t.properties.insert("write.metadata.previous-versions-max".into(), "4".into());
    let t = Arc::new(t);
    let mut table = world.format().open_or_create(t.clone(), &stamp_at(0)).await.unwrap();
    let ours = async |name: &str| {
        let mut file = world.stage(&t, &rows(&t, &[(1, "a", 0), (2, "b", 0)])).await.remove(0);
        let path = format!("iceberg/pond/t/data/{name}");
        world.store.rename(&Path::from(file.path.as_str()), &Path::from(path.as_str())).await.unwrap();
        file.path = path;
        file
    };
    let id = Uuid::from_u128;
    let first = ours(&names::epoch_file(id(1), 0, 1)).await;
    done(&mut table, change(&t, 1, vec![first.clone()], &[])).await;
    done(&mut table, change(&t, 2, vec![ours(&names::emitted(1, id(2), 1)).await], &[(&first.path, &[1])])).await;
    // Killed before the swap: everything but the swap was written, on top of what the table was at stamps 2 and 4.
    let proposed = async |table: &mut Box<dyn LakeTable>, entry: u64| {
        let before: BTreeSet<String> = world.objects("").await.into_iter().collect();
        let base = table.load().await.unwrap();
        world.catalog.lose_next_answer();
        assert!(matches!(table.commit(change(&t, entry, vec![], &[(&first.path, &[0])])).await.unwrap(), Committed::Unknown(_)));
        let now = world.catalog.metadata_location("pond", "t").await.unwrap().unwrap();
        assert!(world.catalog.swap("pond", "t", &now, &base.version).await.unwrap(), "as if the swap had not been");
        table.load().await.unwrap();
        let after: BTreeSet<String> = world.objects("").await.into_iter().collect();
        after.difference(&before).map(|p| file_name(p).to_string()).filter(|n| names::owner(n).is_some()).collect::<BTreeSet<String>>()
    };
    let lost = proposed(&mut table, 3).await;
    assert_eq!(lost.len(), 4, "deletes, manifest, manifest list, metadata: {lost:?}");
    for entry in 3..5 {
        done(&mut table, change(&t, entry, vec![ours(&names::emitted(entry - 1, id(100 + entry as u128), 1)).await], &[])).await;
    }
    let under_way = proposed(&mut table, 5).await;
    let waiting = names::epoch_file(id(9), 0, 1);
    ours(&waiting).await;
    // Another program's state of the table, of a version that is long past.
    let location = world.catalog.metadata_location("pond", "t").await.unwrap().unwrap();
    let io = file_io(world.store.clone(), LakeRoot::new(&world.root));
    let copied = io.new_input(&location).unwrap().read().await.unwrap();
    io.new_output(format!("file:///lake/iceberg/pond/t/metadata/{}", names::metadata(2, id(77)))).unwrap().write(copied).await.unwrap();

    let unneeded = async || {
        let listed: BTreeSet<String> = world.objects("").await.iter().map(|p| file_name(p).to_string()).collect();
        let mut fresh = world.format().open(t.clone()).await.unwrap().unwrap();
        fresh.unneeded(listed).await.unwrap()
    };
    let (base, found) = unneeded().await;
    assert_eq!(base.stamp, stamp_at(4));
    assert_eq!(found, lost.iter().cloned().chain([waiting.clone()]).collect(), "of 5 commits and 2 that never were");
    // The table passes the stamp of what was under way: now it never can come in.
    for entry in 5..8 {
        done(&mut table, change(&t, entry, vec![ours(&names::emitted(entry - 1, id(100 + entry as u128), 1)).await], &[])).await;
    }
    let (_, found) = unneeded().await;
    let expected: BTreeSet<String> = lost.iter().chain(&under_way).cloned().chain([waiting]).collect();
    assert_eq!(found, expected);
    // With all of it gone the table reads as before.
    let before = table.live_files().await.unwrap();
    for path in world.objects("").await.iter().filter(|p| found.contains(file_name(p))) {
        world.store.delete(&Path::from(path.as_str())).await.unwrap();
    }
    let mut fresh = world.format().open(t.clone()).await.unwrap().unwrap();
    fresh.load().await.unwrap();
    assert_eq!(fresh.live_files().await.unwrap().len(), before.len());
    assert!(found.iter().any(|n| matches!(names::owner(n), Some(Owner::Metadata(_)))));
}
