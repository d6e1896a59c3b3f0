//! What other hands do to the tables.

use super::broker::wall;
use super::check;
use super::reckoning::Rows;
use super::store::{TrueCatalog, pause};
use super::world::{Foreign, LAKE_URL, PIPELINE, World};
use crate::commit::LakeTable;
use crate::commit::iceberg::Catalog;
use crate::pipeline::TableFormatKind;
use crate::stage::parquet::ParquetStager;
use crate::stage::{DataFile, Scalar, TableSpec, data_folder};
use crate::store::iceberg_io::{LakeRoot, file_io};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use iceberg::TableUpdate;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, Literal, MAIN_BRANCH, ManifestFile, ManifestList, ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot, SnapshotReference,
    SnapshotRetention, Struct, Summary, TableMetadata,
};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn inside(location: &str) -> Path {
    Path::from(location.trim_start_matches(LAKE_URL))
}

/// Sets one table back to an earlier state, as an operator does who made a mistake.
pub async fn roll_back(world: &Arc<World>) {
    let mut tables = check::tables(world);
    tables.retain(|(t, kind)| world.decided.lock().unwrap().lives(t) && !spoiled(world, t, *kind));
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

pub(super) async fn metadata_of(world: &World, table: &str) -> Option<(String, TableMetadata)> {
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

pub(super) async fn newest_commit(world: &World, table: &str) -> (u64, impl Fn(u64) -> Path + use<>) {
    let folder = format!("delta/p/{table}/_delta_log");
    let all: Vec<_> = world.objects.list(Some(&Path::from(folder.as_str()))).try_collect().await.expect("it is in memory");
    let newest = all.iter().filter_map(|o| o.location.filename()?.strip_suffix(".json")?.parse().ok()).max().unwrap_or(0);
    (newest, move |v: u64| Path::from(format!("{folder}/{v:020}.json")))
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

/// What another engine does to a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// Writes all rows into one file, or one a partition.
    Compact,
    /// Adds a file with a row of its own, to a plain table.
    Append,
    /// Both at once.
    Overwrite,
    /// Writes all rows but one into new files: a right to be forgotten.
    Delete,
}

impl Rewrite {
    fn whole(self) -> bool {
        self != Self::Append
    }

    fn more(self) -> bool {
        matches!(self, Self::Append | Self::Overwrite)
    }
}

/// Rows that another hand adds to a table, and takes from it, with a commit that it is about to make: whoever reads then
/// must find it so.
pub(super) struct Claim {
    at: (String, TableFormatKind),
    before: Option<Foreign>,
}

impl Claim {
    pub fn new(world: &World, table: &str, kind: TableFormatKind, added: Rows, deleted: Rows) -> Self {
        let at = (table.to_string(), kind);
        let mut foreign = world.foreign.lock().unwrap();
        let before = foreign.get(&at).cloned();
        let of = foreign.entry(at.clone()).or_default();
        of.added.extend(added);
        of.deleted.extend(deleted);
        Self { at, before }
    }

    /// The commit was made, or not.
    pub fn settle(self, world: &World, done: bool) {
        if !done {
            world.foreign.lock().unwrap().insert(self.at, self.before.unwrap_or_default());
        }
    }
}

/// Does so to some table of which the newest plan knows.
pub async fn write(world: &Arc<World>, how: Rewrite) {
    let plain = |table: &str| {
        let decided = world.decided.lock().unwrap();
        decided.ledger.as_ref().and_then(|l| l.plan.tables.get(table).map(|t| t.window.is_none())).unwrap_or(false)
    };
    let tables: Vec<_> = check::tables(world).into_iter().filter(|(t, _)| !how.more() || plain(t)).collect();
    if tables.is_empty() {
        return;
    }
    let (table, kind) = tables[world.below(tables.len() as u64) as usize].clone();
    if let Some(done) = try_write(world, &table, kind, how).await {
        world.trace.note("hand", format_args!("{kind} table {table}: {how:?}{}", if done { "" } else { ", but somebody was faster" }));
    }
}

pub(super) fn spoiled(world: &World, table: &str, kind: TableFormatKind) -> bool {
    let at = (table.to_string(), kind);
    world.frozen.lock().unwrap().contains(&at) || world.away.lock().unwrap().contains(&at)
}

async fn try_write(world: &Arc<World>, table: &str, kind: TableFormatKind, how: Rewrite) -> Option<bool> {
    if spoiled(world, table, kind) {
        return None;
    }
    let newest = world.decided.lock().unwrap().record(table)?.shared().ok()?;
    let mut open: Box<dyn LakeTable> = check::open(world, &newest, kind).await.ok()??;
    let stamp = open.load().await.ok()?.stamp.entry;
    let live = open.live_files().await.ok()?;
    if how.whole() && live.is_empty() {
        return None;
    }
    // Its columns are those of now, not those that a plan promises.
    let spec = world.decided.lock().unwrap().record_at(table, stamp)?.shared().ok()?;
    let id = world.new_id();
    let mut nth = 0;
    let named = move || {
        nth += 1;
        format!("{id}-{nth}.parquet")
    };
    let mut stager = ParquetStager::new(spec.clone(), kind, data_folder("p", kind, table), Box::new(named)).ok()?;
    let columns = world.reckoned(table, kind, stamp).ok()?.0.columns(table);
    let (mut added, mut deleted) = (vec![], vec![]);
    let schema = check::schema_of(&spec, kind);
    let rows: u64 = live.iter().map(|f| f.records - f.deleted.len()).sum();
    let mut left = (how == Rewrite::Delete).then(|| world.below(rows.max(1)) as usize);
    for file in live.iter().filter(|_| how.whole()) {
        let batches: Vec<RecordBatch> = crate::read::live_rows(world.objects.clone(), file, &schema, None, 8192).try_collect().await.ok()?;
        for mut batch in batches {
            match left {
                Some(at) if at < batch.num_rows() => {
                    let one = batch.slice(at, 1).project(&columns.iter().map(|c| schema.index_of(c)).collect::<Result<Vec<_>, _>>().ok()?).ok()?;
                    deleted.extend(check::texts(&one));
                    let keep: BooleanArray = (0..batch.num_rows()).map(|r| Some(r != at)).collect();
                    batch = arrow::compute::filter_record_batch(&batch, &keep).ok()?;
                    left = None;
                }
                Some(at) => left = Some(at - batch.num_rows()),
                None => {}
            }
            let batch = RecordBatch::try_new(spec.schema.clone(), batch.columns().iter().zip(spec.schema.fields()).map(|(c, f)| arrow::compute::cast(c, f.data_type())).collect::<Result<_, _>>().ok()?).ok()?;
            stager.write(&batch).ok()?;
        }
    }
    if how == Rewrite::Delete && deleted.is_empty() {
        return None;
    }
    if how.more() {
        let row = world.below(1 << 40) as i64 + 1000;
        let mut cells: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![row])), Arc::new(StringArray::from(vec!["zz"])), Arc::new(Int64Array::from(vec![7]))];
        cells.extend((cells.len()..spec.schema.fields().len()).map(|_| Arc::new(Int64Array::from(vec![None::<i64>])) as ArrayRef));
        stager.write(&RecordBatch::try_new(spec.schema.clone(), cells).expect("it is a row of a plain table")).ok()?;
        added.push(vec![row.to_string(), "zz".into(), "7".into(), String::new()]);
    }
    let mut files = vec![];
    for (file, bytes) in stager.finish().ok()? {
        world.objects.put(&Path::from(file.path.as_str()), bytes.into()).await.ok()?;
        files.push(file);
    }
    let claim = Claim::new(world, table, kind, added, deleted);
    let done = match kind {
        TableFormatKind::Iceberg => snapshot(world, table, &files, how).await.unwrap_or(false),
        TableFormatKind::Delta => version(world, &spec, &files, &live.iter().map(|f| f.path.clone()).collect::<Vec<_>>(), how).await,
    };
    claim.settle(world, done);
    Some(done)
}

async fn version(world: &Arc<World>, spec: &TableSpec, files: &[DataFile], live: &[String], how: Rewrite) -> bool {
    let (newest, commit) = newest_commit(world, &spec.name).await;
    let folder = format!("{}/", data_folder(PIPELINE, TableFormatKind::Delta, &spec.name));
    let now = wall(world);
    let changed = how != Rewrite::Compact;
    let operation = match how {
        Rewrite::Compact => "OPTIMIZE",
        Rewrite::Delete => "DELETE",
        Rewrite::Append | Rewrite::Overwrite => "WRITE",
    };
    let mut lines = vec![serde_json::json!({"commitInfo": {"timestamp": now, "operation": operation}})];
    for path in live.iter().filter(|_| how.whole()) {
        lines.push(serde_json::json!({"remove": removal(world, &spec.name, path, now, changed)}));
    }
    for file in files {
        let stats = format!(r#"{{"numRecords":{}}}"#, file.records);
        let fields = spec.partition_fields(TableFormatKind::Delta).iter().zip(&file.partition);
        let values: serde_json::Map<String, serde_json::Value> = fields.map(|(field, value)| (field.column.clone(), serde_json::json!(text_of(value)))).collect();
        lines.push(serde_json::json!({"add": {
            "path": file.path.trim_start_matches(&folder), "partitionValues": values, "size": file.bytes, "modificationTime": now, "dataChange": changed, "stats": stats
        }}));
    }
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    world.put("foreign", &commit(newest + 1), text.into(), true).await.is_ok()
}

/// What takes a live file of a Delta table out of it: the file as it was added, with its deletion vector.
pub(super) fn removal(world: &World, table: &str, path: &str, now_ms: i64, changed: bool) -> serde_json::Value {
    let added = world.references.lock().unwrap().added(table, &Path::from(path)).map(|(add, _)| add).unwrap_or_default();
    let mut remove = serde_json::json!({"path": added["path"], "deletionTimestamp": now_ms, "dataChange": changed});
    if added["deletionVector"].is_object() {
        remove["deletionVector"] = added["deletionVector"].clone();
    }
    remove
}

/// The pipelines here are partitioned by texts, and by hours, days and months in Iceberg.
fn text_of(value: &Option<Scalar>) -> Option<&str> {
    if let Some(Scalar::Text(text)) = value { Some(text) } else { None }
}

fn literal_of(value: &Option<Scalar>) -> Option<Literal> {
    match value {
        Some(Scalar::Text(text)) => Some(Literal::string(text)),
        Some(Scalar::Int(n)) => Some(Literal::int(*n as i32)),
        _ => None,
    }
}

async fn snapshot(world: &Arc<World>, table: &str, files: &[DataFile], how: Rewrite) -> Option<bool> {
    let (from, metadata) = metadata_of(world, table).await?;
    let root = LakeRoot::new(&url::Url::parse(LAKE_URL).ok()?);
    let io = file_io(world.objects.clone(), root.clone());
    let id = (world.new_id().as_u64_pair().0 >> 2) as i64;
    let folder = format!("{}/metadata", metadata.location());
    let named = world.new_id();
    let schema = metadata.current_schema().clone();
    let mut list = vec![];
    if !files.is_empty() {
        let output = io.new_output(format!("{folder}/{named}-m0.avro")).ok()?;
        let mut writer = ManifestWriterBuilder::new(output, Some(id), schema.clone(), metadata.default_partition_spec().as_ref().clone()).build_v2_data();
        for file in files {
            let data = DataFileBuilder::default()
                .content(DataContentType::Data)
                .file_path(root.location(&file.path))
                .file_format(DataFileFormat::Parquet)
                .partition(Struct::from_iter(file.partition.iter().map(literal_of)))
                .partition_spec_id(metadata.default_partition_spec_id())
                .record_count(file.records)
                .file_size_in_bytes(file.bytes)
                .build()
                .ok()?;
            writer.add_file(data, -1).ok()?;
        }
        list.push(writer.write_manifest_file().await.ok()?);
    }
    if let Some(current) = metadata.current_snapshot().filter(|_| !how.whole()) {
        let bytes = io.new_input(current.manifest_list()).ok()?.read().await.ok()?;
        list.extend(ManifestList::parse_with_version(&bytes, FormatVersion::V2).ok()?.consume_entries());
    }
    let operation = match how {
        Rewrite::Append => Operation::Append,
        Rewrite::Compact => Operation::Replace,
        Rewrite::Overwrite => Operation::Overwrite,
        Rewrite::Delete => Operation::Delete,
    };
    snapshot_of(world, table, (from, metadata), id, list, operation).await
}

/// Commits a snapshot of these manifests on top of this metadata.
pub(super) async fn snapshot_of(world: &Arc<World>, table: &str, (from, metadata): (String, TableMetadata), id: i64, manifests: Vec<ManifestFile>, operation: Operation) -> Option<bool> {
    let io = file_io(world.objects.clone(), LakeRoot::new(&url::Url::parse(LAKE_URL).ok()?));
    let sequence = metadata.next_sequence_number();
    let location = format!("{}/metadata/snap-{id}-0-{}.avro", metadata.location(), world.new_id());
    let output = io.new_output(&location).ok()?.writer().await.ok()?;
    let mut writer = ManifestListWriter::v2(output, id, metadata.current_snapshot_id(), sequence);
    writer.add_manifests(manifests.into_iter()).ok()?;
    writer.close().await.ok()?;
    let theirs = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(sequence)
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list(location)
        .with_summary(Summary { operation, additional_properties: Default::default() })
        .with_schema_id(metadata.current_schema_id())
        .build();
    let built = metadata.into_builder(Some(from.clone())).set_branch_snapshot(theirs, MAIN_BRANCH).and_then(|b| b.build()).ok()?.metadata;
    Some(swap(world, table, &from, &built).await)
}

/// A table that somebody dropped, as it was.
pub struct Dropped {
    pub table: String,
    kind: TableFormatKind,
    /// In Iceberg, where the catalog said that it is.
    location: Option<String>,
    /// In Delta, its log.
    objects: Vec<(Path, Bytes)>,
}

/// Drops a table that the newest plan asks for, and sometimes makes an empty one of its name.
pub async fn drop_one(world: &Arc<World>) -> Option<Dropped> {
    let mut tables = check::tables(world);
    tables.retain(|(t, kind)| world.decided.lock().unwrap().lives(t) && !spoiled(world, t, *kind));
    let (table, kind) = tables.get(world.below(tables.len() as u64) as usize)?.clone();
    // Nobody misses a table that was not opened yet: it is made again, and then there would be two.
    let noted: Vec<_> = world.objects.list(Some(&Path::from(format!("_millpond/{PIPELINE}/tables")))).try_collect().await.ok()?;
    let (begins, ends) = (format!("{table}-"), format!(".{kind}.json"));
    if !noted.iter().filter_map(|o| o.location.filename()).any(|name| name.starts_with(&begins) && name.ends_with(&ends)) {
        return None;
    }
    let mut dropped = Dropped { table: table.clone(), kind, location: None, objects: vec![] };
    let anew = world.chance(50);
    match kind {
        TableFormatKind::Iceberg => {
            let (location, metadata) = metadata_of(world, &table).await?;
            world.away.lock().unwrap().insert((table.clone(), kind));
            world.drop_table(PIPELINE, &table);
            dropped.location = Some(location.clone());
            if anew {
                // A copy of its description, or one that somebody else made.
                let stamps: Vec<String> = metadata.properties().keys().filter(|k| k.starts_with("millpond.")).cloned().collect();
                let copied = world.chance(50);
                let snapshots: Vec<i64> = metadata.snapshots().map(|s| s.snapshot_id()).collect();
                let builder = metadata.into_builder(None).assign_uuid(world.new_id()).remove_ref(MAIN_BRANCH).remove_snapshots(&snapshots);
                let builder = if copied { Ok(builder) } else { builder.remove_properties(&stamps) };
                let empty = builder.and_then(|b| b.build()).expect("what is left of it is a table").metadata;
                let at = format!("{}/metadata/00000-{}.metadata.json", empty.location(), world.new_id());
                world.objects.put(&inside(&at), serde_json::to_vec(&empty).expect("it was read from JSON").into()).await.expect("it is in memory");
                world.create_table("foreign", PIPELINE, &table, &at);
            }
        }
        TableFormatKind::Delta => {
            let folder = Path::from(format!("{}/_delta_log", data_folder(PIPELINE, kind, &table)));
            let all: Vec<_> = world.objects.list(Some(&folder)).try_collect::<Vec<_>>().await.ok()?;
            let first = all.iter().find(|o| o.location.as_ref().ends_with("/00000000000000000000.json"))?.location.clone();
            world.away.lock().unwrap().insert((table.clone(), kind));
            for object in all {
                dropped.objects.push((object.location.clone(), world.objects.get(&object.location).await.ok()?.bytes().await.ok()?));
                world.objects.delete(&object.location).await.ok()?;
            }
            if anew {
                let text = String::from_utf8_lossy(&dropped.objects.iter().find(|(at, _)| *at == first)?.1).into_owned();
                let mut lines: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
                lines.retain(|l| l.get("protocol").is_some() || l.get("metaData").is_some());
                for line in lines.iter_mut().filter(|l| l.get("metaData").is_some()) {
                    line["metaData"]["id"] = serde_json::json!(world.new_id().to_string());
                }
                let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
                world.put("foreign", &first, text.into(), true).await.ok()?;
            }
        }
    }
    world.trace.note("hand", format_args!("dropped {kind} table {table}{}", if anew { ", and made it anew" } else { "" }));
    Some(dropped)
}

/// Waits until these tables, which are in the file no more, have all that the log has for them. `false`: they do not come to it.
pub async fn is_whole(world: &Arc<World>, tables: &[(String, TableFormatKind)]) -> bool {
    for _ in 0..20 {
        let mut waits = false;
        for (table, kind) in tables {
            if spoiled(world, table, *kind) {
                return false;
            }
            let stamp = world.compare(table, *kind).await;
            waits |= stamp.is_none() || world.waits(table, stamp);
        }
        if !waits {
            return true;
        }
        pause(500).await;
    }
    false
}

/// Drops tables for good: they may begin anew under their names.
pub async fn drop_all(world: &Arc<World>, table: &str, tables: &[(String, TableFormatKind)]) {
    for (name, kind) in tables {
        if *kind == TableFormatKind::Iceberg {
            world.drop_table(PIPELINE, name);
        }
        let folder = Path::from(data_folder(PIPELINE, *kind, name));
        for object in world.objects.list(Some(&folder)).try_collect::<Vec<_>>().await.expect("it is in memory") {
            world.objects.delete(&object.location).await.expect("it is in memory");
        }
        world.forget(name, *kind);
    }
    world.trace.note("hand", format_args!("dropped table {table} and what belongs to it, for good"));
}

/// Brings it back as it was, whatever was made in its place.
pub async fn bring_back(world: &Arc<World>, dropped: Dropped) {
    let Dropped { table, kind, location, objects } = dropped;
    match location {
        Some(location) => {
            world.drop_table(PIPELINE, &table);
            world.create_table("foreign", PIPELINE, &table, &location);
        }
        None => {
            for (at, bytes) in objects {
                // A commit that was under way may have landed on a name that the drop freed: it never was one, and its
                // writer was not told that it is.
                world.objects.put(&at, bytes.into()).await.expect("it is in memory");
            }
            world.put_back(&table);
        }
    }
    world.away.lock().unwrap().remove(&(table.clone(), kind));
    world.trace.note("hand", format_args!("brought {kind} table {table} back"));
}

/// Another engine expires all snapshots of an Iceberg table but the newest, as long as our stamp can be proven afterwards,
/// and sometimes deletes the files that only they named.
pub async fn expire(world: &Arc<World>) {
    let tables: Vec<_> = check::tables(world).into_iter().filter(|(_, kind)| *kind == TableFormatKind::Iceberg).collect();
    if tables.is_empty() {
        return;
    }
    let (table, kind) = &tables[world.below(tables.len() as u64) as usize];
    if spoiled(world, table, *kind) {
        return;
    }
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
    let before = world.references.lock().unwrap().retained(table);
    if !swap(world, table, &from, &built).await {
        return;
    }
    let mut deleted = 0;
    if world.chance(50) {
        for at in world.references.lock().unwrap().expired(table, &before) {
            deleted += u64::from(world.objects.delete(&at).now_or_never().is_some_and(|gone| gone.is_ok()));
        }
    }
    world.trace.note("hand", format_args!("iceberg table {table}: {} snapshots expired, {deleted} files of theirs deleted", gone.len()));
}
