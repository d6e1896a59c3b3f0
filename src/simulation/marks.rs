//! Rows that another engine marks as deleted while their file stays as it is: position deletes in Iceberg, deletion
//! vectors in Delta. Written without the code that writes ours, as their specifications say.

use super::broker::wall;
use super::check;
use super::foreign::{Claim, inside, metadata_of, newest_commit, removal, snapshot_of, spoiled};
use super::world::{LAKE_URL, World};
use crate::pipeline::TableFormatKind;
use crate::read::LiveFile;
use crate::store::iceberg_io::{LakeRoot, file_io};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use futures::TryStreamExt;
use iceberg::spec::{DataContentType, DataFileBuilder, DataFileFormat, FormatVersion, Manifest, ManifestList, ManifestWriterBuilder, Operation};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY};
use serde_json::{Value, json};
use std::sync::Arc;

/// Marks a row or two of some table.
pub async fn mark(world: &Arc<World>) {
    let tables = check::tables(world);
    let Some((table, kind)) = tables.get(world.below(tables.len() as u64) as usize) else { return };
    if let Some((done, rows)) = try_mark(world, table, *kind).await {
        world.trace.note("hand", format_args!("{kind} table {table}: {rows} rows are marked as deleted{}", if done { "" } else { ", but somebody was faster" }));
    }
}

async fn try_mark(world: &Arc<World>, table: &str, kind: TableFormatKind) -> Option<(bool, usize)> {
    if spoiled(world, table, kind) {
        return None;
    }
    let newest = world.decided.lock().unwrap().record(table)?.shared().ok()?;
    let mut open = check::open(world, &newest, kind).await.ok()??;
    let stamp = open.load().await.ok()?.stamp.entry;
    let live = open.live_files().await.ok()?;
    let file = live.get(world.below(live.len() as u64) as usize)?;
    let alive: Vec<u64> = (0..file.records).filter(|p| !file.deleted.contains(*p)).collect();
    let from = world.below(alive.len() as u64) as usize;
    let chosen = from..alive.len().min(from + 1 + world.below(2) as usize);
    let spec = world.decided.lock().unwrap().record_at(table, stamp)?.shared().ok()?;
    let columns = world.reckoned(table, kind, stamp).ok()?.0.columns(table);
    let batches: Vec<RecordBatch> = crate::read::live_rows(world.objects.clone(), file, &check::schema_of(&spec, kind), Some(&columns), 8192).try_collect().await.ok()?;
    let rows: Vec<_> = batches.iter().flat_map(check::texts).collect();
    let (positions, deleted) = (alive.get(chosen.clone())?, rows.get(chosen)?.to_vec());
    let (claim, many) = (Claim::new(world, table, kind, vec![], deleted), positions.len());
    let done = match kind {
        TableFormatKind::Iceberg => position_deletes(world, table, file, positions).await,
        TableFormatKind::Delta => deletion_vector(world, table, file, positions).await,
    };
    claim.settle(world, done == Some(true));
    Some((done?, many))
}

/// Field ids that the Iceberg specification reserves.
const FILE_PATH: i32 = 2_147_483_546;
const POS: i32 = 2_147_483_545;

async fn position_deletes(world: &Arc<World>, table: &str, file: &LiveFile, positions: &[u64]) -> Option<bool> {
    let (from, metadata) = metadata_of(world, table).await?;
    let root = LakeRoot::new(&url::Url::parse(LAKE_URL).ok()?);
    let (io, location) = (file_io(world.objects.clone(), root.clone()), root.location(&file.path));
    let read = async |at: &str| world.objects.get(&inside(at)).await.ok()?.bytes().await.ok();
    let list = ManifestList::parse_with_version(&read(metadata.current_snapshot()?.manifest_list()).await?, FormatVersion::V2).ok()?;
    let mut partition = None;
    for manifest in list.entries() {
        let of = Manifest::parse_avro(&read(&manifest.manifest_path).await?).ok()?;
        let found = of.entries().iter().find(|e| e.is_alive() && e.file_path() == location);
        partition = found.map(|e| (e.data_file().partition().clone(), manifest.partition_spec_id)).or(partition);
    }
    let (partition, spec_id) = partition?;

    let field = |name: &str, ty, id: i32| Field::new(name, ty, false).with_metadata([(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())].into());
    let schema = Arc::new(Schema::new(vec![field("file_path", DataType::Utf8, FILE_PATH), field("pos", DataType::Int64, POS)]));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(positions.iter().map(|_| &location)));
    let places: ArrayRef = Arc::new(Int64Array::from_iter_values(positions.iter().map(|p| *p as i64)));
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), None).ok()?;
    writer.write(&RecordBatch::try_new(schema, vec![paths, places]).ok()?).ok()?;
    let bytes = writer.into_inner().ok()?;

    let deletes = format!("{}/data/{}-deletes.parquet", metadata.location(), world.new_id());
    let size = bytes.len() as u64;
    world.objects.put(&inside(&deletes), bytes.into()).await.ok()?;
    let theirs = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(deletes)
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .partition_spec_id(spec_id)
        .record_count(positions.len() as u64)
        .file_size_in_bytes(size)
        .build()
        .ok()?;
    let id = (world.new_id().as_u64_pair().0 >> 2) as i64;
    let output = io.new_output(format!("{}/metadata/{}-m0.avro", metadata.location(), world.new_id())).ok()?;
    let spec = metadata.partition_spec_by_id(spec_id)?.as_ref().clone();
    let mut writer = ManifestWriterBuilder::new(output, Some(id), metadata.current_schema().clone(), spec).build_v2_deletes();
    writer.add_file(theirs, -1).ok()?;
    let mut manifests = vec![writer.write_manifest_file().await.ok()?];
    manifests.extend(list.consume_entries());
    snapshot_of(world, table, (from, metadata), id, manifests, Operation::Delete).await
}

/// Delta protocol, "Deletion Vector Format".
const MAGIC: u32 = 1_681_511_377;
const FEATURE: &str = "deletionVectors";

async fn deletion_vector(world: &Arc<World>, table: &str, file: &LiveFile, positions: &[u64]) -> Option<bool> {
    let (newest, commit) = newest_commit(world, table).await;
    let (old, protocol) = world.references.lock().unwrap().added(table, &Path::from(file.path.as_str()))?;
    let mut deleted = file.deleted.clone();
    deleted.extend(positions.iter().copied());
    let mut body = MAGIC.to_le_bytes().to_vec();
    deleted.serialize_into(&mut body).ok()?;
    let (now, mut new) = (wall(world), old.clone());
    new["deletionVector"] = json!({"storageType": "i", "pathOrInlineDv": z85(&body), "sizeInBytes": body.len(), "cardinality": deleted.len()});
    new["dataChange"] = json!(true);
    let gone = removal(world, table, &file.path, now, true);
    let mut actions = vec![json!({"commitInfo": {"timestamp": now, "operation": "DELETE"}})];
    actions.extend(with_vectors(&protocol).map(|protocol| json!({ "protocol": protocol })));
    actions.extend([json!({ "remove": gone }), json!({ "add": new })]);
    let text: String = actions.iter().map(|a| format!("{a}\n")).collect();
    Some(world.put("foreign", &commit(newest + 1), text.into(), true).await.is_ok())
}

/// The protocol with the feature that vectors need; `None`: it has it.
fn with_vectors(protocol: &Value) -> Option<Value> {
    let named = |key: &str| protocol[key].as_array().cloned().unwrap_or_default();
    let (mut readers, mut writers) = (named("readerFeatures"), named("writerFeatures"));
    if readers.contains(&json!(FEATURE)) {
        return None;
    }
    if protocol["minWriterVersion"].as_i64() != Some(7) {
        writers.extend([json!("appendOnly"), json!("invariants")]);
    }
    readers.push(json!(FEATURE));
    writers.push(json!(FEATURE));
    Some(json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers, "writerFeatures": writers}))
}

const ALPHABET: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// ZeroMQ RFC 32, of bytes that are filled up with zeros to whole words.
fn z85(bytes: &[u8]) -> String {
    let word = |chunk: &[u8]| chunk.iter().chain(&[0; 4]).take(4).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let digits = |word: u32| (0..5).rev().map(move |power| ALPHABET[(word / 85u32.pow(power) % 85) as usize] as char);
    bytes.chunks(4).flat_map(|chunk| digits(word(chunk))).collect()
}
