//! What other hands do to the tables.

use super::broker::wall;
use super::check;
use super::store::TrueCatalog;
use super::world::{LAKE_URL, PIPELINE, World};
use crate::commit::LakeTable;
use crate::commit::iceberg::Catalog;
use crate::pipeline::TableFormatKind;
use crate::stage::parquet::ParquetStager;
use crate::stage::{DataFile, data_folder};
use crate::store::iceberg_io::{LakeRoot, file_io};
use arrow::array::{Int64Array, RecordBatch, StringArray};
use futures::TryStreamExt;
use iceberg::TableUpdate;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, MAIN_BRANCH, ManifestList, ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot, SnapshotReference,
    SnapshotRetention, Struct, Summary, TableMetadata,
};
use object_store::path::Path;
use object_store::ObjectStoreExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn inside(location: &str) -> Path {
    Path::from(location.trim_start_matches(LAKE_URL))
}

/// Sets one table back to an earlier state, as an operator does who made a mistake.
pub async fn roll_back(world: &Arc<World>) {
    let mut tables = check::tables(world);
    while !tables.is_empty() {
        let (table, kind) = tables.swap_remove(world.below(tables.len() as u64) as usize);
        world.frozen.lock().unwrap().insert((table.clone(), kind));
        let done = match kind {
            TableFormatKind::Iceberg => set_back(world, &table).await,
            TableFormatKind::Delta => restore(world, &table).await,
        };
        if done {
            world.trace.note("hand", format_args!("rolled back {kind} table {table}"));
            world.expect("rolled back");
            world.doomed.store(true, Ordering::Relaxed);
            return;
        }
        world.frozen.lock().unwrap().remove(&(table, kind));
    }
}

async fn metadata_of(world: &World, table: &str) -> Option<(String, TableMetadata)> {
    let from = world.location(PIPELINE, table)?;
    let got = world.objects.get(&inside(&from)).await.ok()?.bytes().await.ok()?;
    Some((from, serde_json::from_slice(&got).expect("it was written by us")))
}

/// Writes the metadata and makes it the table's, unless another was faster.
async fn swap(world: &Arc<World>, table: &str, from: &str, metadata: &TableMetadata) -> bool {
    let number = from.rsplit('/').next().and_then(|n| n.split('-').next()?.parse::<u64>().ok()).unwrap_or(0) + 1;
    let to = format!("{}/metadata/{number:05}-{}.metadata.json", metadata.location(), world.new_id());
    world.objects.put(&inside(&to), serde_json::to_vec(metadata).expect("it was read from JSON").into()).await.expect("it is in memory");
    TrueCatalog(world.clone()).swap(PIPELINE, table, from, &to).await.unwrap_or(false)
}

async fn set_back(world: &Arc<World>, table: &str) -> bool {
    let Some((from, metadata)) = metadata_of(world, table).await else { return false };
    let Some(parent) = metadata.current_snapshot().and_then(|s| s.parent_snapshot_id()).filter(|p| metadata.snapshot_by_id(*p).is_some()) else { return false };
    // Only what takes our newest commit away is a rollback.
    let ours = metadata.current_snapshot().is_some_and(|s| s.summary().additional_properties.contains_key("engine-name"));
    let reference = SnapshotReference::new(parent, SnapshotRetention::branch(None, None, None));
    let update = TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.into(), reference };
    let built = update.apply(metadata.into_builder(Some(from.clone()))).and_then(|b| b.build()).expect("the snapshot is there").metadata;
    ours && swap(world, table, &from, &built).await
}

async fn newest_commit(world: &World, table: &str) -> (u64, impl Fn(u64) -> Path + use<>) {
    let folder = format!("delta/p/{table}/_delta_log");
    let commit = move |v: u64| Path::from(format!("{folder}/{v:020}.json"));
    let mut newest = 0;
    while world.objects.head(&commit(newest + 1)).await.is_ok() {
        newest += 1;
    }
    (newest, commit)
}

/// As `RESTORE` says it. What it would add and remove nobody looks at: the table is refused.
async fn restore(world: &Arc<World>, table: &str) -> bool {
    let (newest, commit) = newest_commit(world, table).await;
    if newest < 2 {
        return false;
    }
    let ours = world.objects.get(&commit(newest)).await.expect("it is there").bytes().await.expect("it is in memory");
    if !String::from_utf8_lossy(&ours).contains("millpond.attempt") {
        return false;
    }
    let text = format!(r#"{{"commitInfo":{{"operation":"RESTORE","operationParameters":{{"version":{}}}}}}}"#, newest - 1);
    world.put("foreign", &commit(newest + 1), text.into(), true).await.is_ok()
}

/// Another engine adds a row to `plain`, or writes all rows of some table into one file, or both.
pub async fn write(world: &Arc<World>, whole: bool, more: bool) {
    let tables: Vec<_> = check::tables(world).into_iter().filter(|(t, _)| !more || t == "plain").collect();
    if tables.is_empty() {
        return;
    }
    let (table, kind) = tables[world.below(tables.len() as u64) as usize].clone();
    if let Some(done) = try_write(world, &table, kind, whole, more).await {
        world.trace.note("hand", format_args!("{kind} table {table}: {}{}", if whole { "all rows into one file" } else { "a file" }, if done { "" } else { ", but somebody was faster" }));
    }
}

async fn try_write(world: &Arc<World>, table: &str, kind: TableFormatKind, whole: bool, more: bool) -> Option<bool> {
    let spec = {
        let decided = world.decided.lock().unwrap();
        let (record, _) = decided.ledger.as_ref()?.specs().into_iter().find(|(s, _)| s.name == table)?;
        record.shared().ok()?
    };
    let mut open: Box<dyn LakeTable> = check::open(world, &spec, kind).await.ok()??;
    open.load().await.ok()?;
    let live = open.live_files().await.ok()?;
    if whole && live.is_empty() || world.frozen.lock().unwrap().contains(&(table.to_string(), kind)) {
        return None;
    }
    let id = world.new_id();
    let named = move || format!("{id}.parquet");
    let mut stager = ParquetStager::new(spec.clone(), kind, data_folder("p", kind, table), Box::new(named)).ok()?;
    for file in live.iter().filter(|_| whole) {
        let batches: Vec<RecordBatch> = crate::read::live_rows(world.objects.clone(), file, &spec.schema, None, 8192).try_collect().await.ok()?;
        batches.iter().try_for_each(|b| stager.write(b)).ok()?;
    }
    let row = world.below(1 << 40) as i64 + 1000;
    if more {
        let batch = RecordBatch::try_new(spec.schema.clone(), vec![Arc::new(Int64Array::from(vec![row])), Arc::new(StringArray::from(vec!["zz"])), Arc::new(Int64Array::from(vec![7]))]);
        stager.write(&batch.expect("it is a row of plain")).ok()?;
    }
    let (file, bytes) = stager.finish().ok()?.into_iter().next()?;
    world.objects.put(&Path::from(file.path.as_str()), bytes.into()).await.ok()?;
    // The row is there with the commit: whoever reads then must find it.
    if more {
        world.foreign.lock().unwrap().entry((table.to_string(), kind)).or_default().push(vec![row.to_string(), "zz".into(), "7".into()]);
    }
    let done = match kind {
        TableFormatKind::Iceberg => snapshot(world, table, &file, whole, more).await.unwrap_or(false),
        TableFormatKind::Delta => version(world, table, &file, &live.iter().map(|f| f.path.clone()).collect::<Vec<_>>(), whole, more).await,
    };
    if more && !done {
        world.foreign.lock().unwrap().entry((table.to_string(), kind)).or_default().pop();
    }
    Some(done)
}

async fn version(world: &Arc<World>, table: &str, file: &DataFile, live: &[String], whole: bool, more: bool) -> bool {
    let (newest, commit) = newest_commit(world, table).await;
    let short = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
    let now = wall(world);
    let mut lines = vec![serde_json::json!({"commitInfo": {"timestamp": now, "operation": if whole { "OPTIMIZE" } else { "WRITE" }}})];
    for path in live.iter().filter(|_| whole) {
        lines.push(serde_json::json!({"remove": {"path": short(path), "deletionTimestamp": now, "dataChange": more}}));
    }
    let stats = format!(r#"{{"numRecords":{}}}"#, file.records);
    lines.push(serde_json::json!({"add": {"path": short(&file.path), "partitionValues": {}, "size": file.bytes, "modificationTime": now, "dataChange": more, "stats": stats}}));
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    world.put("foreign", &commit(newest + 1), text.into(), true).await.is_ok()
}

async fn snapshot(world: &Arc<World>, table: &str, file: &DataFile, whole: bool, more: bool) -> Option<bool> {
    let (from, metadata) = metadata_of(world, table).await?;
    let root = LakeRoot::new(&url::Url::parse(LAKE_URL).ok()?);
    let io = file_io(world.objects.clone(), root.clone());
    let id = (world.new_id().as_u64_pair().0 >> 2) as i64;
    let folder = format!("{}/metadata", metadata.location());
    let named = world.new_id();
    let schema = metadata.current_schema().clone();
    let output = io.new_output(format!("{folder}/{named}-m0.avro")).ok()?;
    let mut writer = ManifestWriterBuilder::new(output, Some(id), schema.clone(), metadata.default_partition_spec().as_ref().clone()).build_v2_data();
    let data = DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(root.location(&file.path))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(0)
        .record_count(file.records)
        .file_size_in_bytes(file.bytes)
        .build()
        .ok()?;
    writer.add_file(data, -1).ok()?;
    let mut list = vec![writer.write_manifest_file().await.ok()?];
    if let Some(current) = metadata.current_snapshot().filter(|_| !whole) {
        let bytes = io.new_input(current.manifest_list()).ok()?.read().await.ok()?;
        list.extend(ManifestList::parse_with_version(&bytes, FormatVersion::V2).ok()?.consume_entries());
    }
    let sequence = metadata.next_sequence_number();
    let location = format!("{folder}/snap-{id}-0-{named}.avro");
    let output = io.new_output(&location).ok()?.writer().await.ok()?;
    let mut writer = ManifestListWriter::v2(output, id, metadata.current_snapshot_id(), sequence);
    writer.add_manifests(list.into_iter()).ok()?;
    writer.close().await.ok()?;
    let operation = match (whole, more) {
        (false, _) => Operation::Append,
        (true, false) => Operation::Replace,
        (true, true) => Operation::Overwrite,
    };
    let theirs = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(sequence)
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list(location)
        .with_summary(Summary { operation, additional_properties: Default::default() })
        .with_schema_id(schema.schema_id())
        .build();
    let built = metadata.into_builder(Some(from.clone())).set_branch_snapshot(theirs, MAIN_BRANCH).and_then(|b| b.build()).ok()?.metadata;
    Some(swap(world, table, &from, &built).await)
}

/// Another engine expires all snapshots of an Iceberg table but the newest, as long as our stamp can be proven afterwards.
pub async fn expire(world: &Arc<World>) {
    let tables: Vec<_> = check::tables(world).into_iter().filter(|(_, kind)| *kind == TableFormatKind::Iceberg).collect();
    if tables.is_empty() {
        return;
    }
    let (table, _) = &tables[world.below(tables.len() as u64) as usize];
    let Some((from, metadata)) = metadata_of(world, table).await else { return };
    let Some(current) = metadata.current_snapshot() else { return };
    let stamped = |id: i64| metadata.properties().values().any(|v| *v == id.to_string());
    if !stamped(current.snapshot_id()) && !current.parent_snapshot_id().is_some_and(stamped) {
        return;
    }
    let gone: Vec<i64> = metadata.snapshots().map(|s| s.snapshot_id()).filter(|id| *id != current.snapshot_id()).collect();
    if gone.is_empty() {
        return;
    }
    let built = metadata.clone().into_builder(Some(from.clone())).remove_snapshots(&gone).build().expect("the newest stays").metadata;
    if swap(world, table, &from, &built).await {
        world.trace.note("hand", format_args!("iceberg table {table}: {} snapshots expired", gone.len()));
    }
}
