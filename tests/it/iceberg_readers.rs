//! PyIceberg and DuckDB read what was committed: every type, partitions, deletes, added columns,
//! merged manifests; and find rows by the bounds that we wrote.

use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use millpond::commit::iceberg::{Ambient, IcebergFormat, SqliteCatalog, data_folder, table_folder};
use millpond::commit::{Committed, LakeTable, Stamp, TableChange, TableFormat};
use millpond::pipeline::{ColumnType as T, PartitionField, PartitionTransform, TableFormatKind};
use millpond::stage::layout::assign_field_ids;
use millpond::stage::parquet::ParquetStager;
use millpond::stage::{DataFile, TableSpec};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use uuid::Uuid;

/// Rows as `tests/it/readers/read.py` prints them.
fn read(args: &[&str]) -> Vec<Value> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(here.join("infra/readers")).output().expect("infra/readers runs");
    assert!(python.status.success(), "infra/readers: {}", String::from_utf8_lossy(&python.stderr));
    let python = String::from_utf8(python.stdout).unwrap().trim().to_string();
    let out = Command::new(python).arg(here.join("tests/it/readers/read.py")).args(args).output().unwrap();
    assert!(out.status.success(), "read.py {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    let mut rows: Vec<Value> = String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    rows.sort_by_key(|r| r["id"].as_i64());
    rows
}

struct Lake {
    dir: tempfile::TempDir,
    root: PathBuf,
    store: Arc<dyn ObjectStore>,
    format: IcebergFormat,
}

impl Lake {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A space in the root: locations must name it as readers take it.
        let root = dir.path().join("my lake");
        std::fs::create_dir_all(&root).unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(&root).unwrap());
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "millpond").await.unwrap();
        let ambient = Ambient { now_ms: Arc::new(|| chrono::Utc::now().timestamp_millis()), new_id: Arc::new(Uuid::new_v4) };
        let url = url::Url::from_directory_path(&root).unwrap();
        let format = IcebergFormat::new(store.clone(), &url, catalog, "pond", "pond", ambient);
        Self { dir, root, store, format }
    }

    async fn stage(&self, spec: &Arc<TableSpec>, batch: &RecordBatch) -> Vec<DataFile> {
        let name = Box::new(|| format!("{}.parquet", Uuid::new_v4()));
        let mut stager = ParquetStager::new(spec.clone(), TableFormatKind::Iceberg, data_folder("pond", &spec.name), name).unwrap();
        stager.write(batch).unwrap();
        let mut files = Vec::new();
        for (file, bytes) in stager.finish().unwrap() {
            self.store.put(&ObjectPath::parse(&file.path).unwrap(), bytes.into()).await.unwrap();
            files.push(file);
        }
        files
    }

    fn pyiceberg(&self, table: &str, filter: Option<&str>) -> Vec<Value> {
        let (db, id) = (self.dir.path().join("catalog.db"), format!("pond.{table}"));
        let mut args = vec!["pyiceberg", db.to_str().unwrap(), &id];
        args.extend(filter);
        read(&args)
    }

    /// By the table's folder, as DuckDB users do.
    fn duckdb(&self, table: &str, filter: Option<&str>) -> Vec<Value> {
        let folder = self.root.join(table_folder("pond", table));
        let mut args = vec!["duckdb-iceberg", folder.to_str().unwrap()];
        args.extend(filter);
        read(&args)
    }
}

fn stamp(entry: u64) -> Stamp {
    Stamp { log: Uuid::from_u128(7), entry, offsets: BTreeMap::new() }
}

async fn commit(table: &mut Box<dyn LakeTable>, spec: &Arc<TableSpec>, entry: u64, add: Vec<DataFile>, delete: &[(&str, u64)]) {
    let mut deletes: BTreeMap<String, roaring::RoaringTreemap> = BTreeMap::new();
    for (path, position) in delete {
        deletes.entry(path.to_string()).or_default().insert(*position);
    }
    let change = TableChange { add, delete: deletes, stamp: stamp(entry), spec: spec.clone(), attempt: Uuid::from_u128(entry.into()) };
    match table.commit(change).await.unwrap() {
        Committed::Done(_) => {}
        other => panic!("{other:?}"),
    }
}

fn spec(name: &str, columns: &[(&str, T)], partition_by: &[(&str, PartitionTransform)]) -> Arc<TableSpec> {
    let fields: Vec<Field> = columns.iter().map(|(n, t)| t.field(n, *n != "id")).collect();
    Arc::new(TableSpec {
        name: name.into(),
        schema: assign_field_ids(&Schema::new(fields), None).unwrap(),
        key: vec!["id".into()],
        formats: vec![TableFormatKind::Iceberg],
        partition_by: partition_by.iter().map(|(c, t)| PartitionField { column: c.to_string(), transform: *t }).collect(),
        properties: BTreeMap::new(),
        comment: None,
    })
}

fn point() -> T {
    T::Struct(vec![("x".into(), T::Int64), ("u".into(), T::Uuid)])
}

/// No byte, one and two of 0xFF.
const RAW: [&str; 3] = ["", "/w==", "//8="];
const REGIONS: [Option<&str>; 4] = [Some("eu/west 1"), None, Some("100%"), Some("plain")];

fn wide() -> Arc<TableSpec> {
    let columns = [
        ("id", T::Int64),
        ("region", T::String),
        ("at", T::Timestamp(None)),
        ("flag", T::Bool),
        ("small", T::Int32),
        ("f", T::Float32),
        ("amount", T::Decimal(12, 2)),
        ("huge", T::Decimal(38, 4)),
        ("u", T::Uuid),
        ("raw", T::Binary),
        ("day", T::Date),
        ("clock", T::Time),
        ("wall", T::TimestampLocal(None)),
        ("tags", T::List(Box::new(T::String))),
        ("point", point()),
        ("points", T::List(Box::new(point()))),
        ("counts", T::Map(Box::new(T::String), Box::new(T::Int64))),
        ("doc", T::Json),
    ];
    spec("wide", &columns, &[("region", PartitionTransform::Identity), ("at", PartitionTransform::Day)])
}

fn points(ids: &[i64]) -> StructArray {
    let DataType::Struct(fields) = point().arrow() else { unreachable!() };
    let uuids = FixedSizeBinaryArray::try_from_iter(ids.iter().map(|i| *Uuid::from_u128(*i as u128).as_bytes())).unwrap();
    StructArray::new(fields, vec![Arc::new(Int64Array::from(ids.to_vec())), Arc::new(uuids)], None)
}

fn wide_rows(spec: &TableSpec, ids: &[i64]) -> RecordBatch {
    let n = ids.len();
    let each = |f: &dyn Fn(i64) -> i64| ids.iter().map(|i| f(*i)).collect::<Vec<i64>>();
    let lengths = || OffsetBuffer::from_lengths(std::iter::repeat_n(1, n));
    let kv: Fields = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Int64, true)].into();
    let entries = StructArray::new(
        kv.clone(),
        vec![Arc::new(StringArray::from_iter_values(ids.iter().map(|i| format!("k{i}")))), Arc::new(Int64Array::from(ids.to_vec()))],
        None,
    );
    let points_type = Arc::new(Field::new("item", point().arrow(), true));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(ids.iter().map(|i| REGIONS[*i as usize % 4]).collect::<StringArray>()),
        Arc::new(TimestampMicrosecondArray::from(each(&|i| i * 43_200_000_000 - 1)).with_timezone("UTC")),
        Arc::new(ids.iter().map(|i| Some(i % 2 == 0)).collect::<BooleanArray>()),
        Arc::new(ids.iter().map(|i| (i % 3 != 0).then_some(*i as i32 - 2)).collect::<Int32Array>()),
        Arc::new(ids.iter().map(|i| Some(*i as f32 / 4.0)).collect::<Float32Array>()),
        Arc::new(Decimal128Array::from_iter_values(ids.iter().map(|i| *i as i128 * -101)).with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Decimal128Array::from_iter_values(ids.iter().map(|i| 10i128.pow(37) + *i as i128)).with_precision_and_scale(38, 4).unwrap()),
        Arc::new(FixedSizeBinaryArray::try_from_iter(ids.iter().map(|i| *Uuid::from_u128(1 << 127 | *i as u128).as_bytes())).unwrap()),
        Arc::new(BinaryArray::from_iter_values(ids.iter().map(|i| vec![0xFFu8; *i as usize % 3]))),
        Arc::new(Date32Array::from(ids.iter().map(|i| *i as i32 - 3).collect::<Vec<_>>())),
        Arc::new(Time64MicrosecondArray::from(each(&|i| i * 1_000_001))),
        Arc::new(TimestampMicrosecondArray::from(each(&|i| -i))),
        Arc::new(ListArray::new(
            Arc::new(Field::new("item", DataType::Utf8, true)),
            lengths(),
            Arc::new(StringArray::from_iter_values(ids.iter().map(|i| format!("t{i}")))),
            None,
        )),
        Arc::new(points(ids)),
        Arc::new(ListArray::new(points_type, lengths(), Arc::new(points(ids)), None)),
        Arc::new(MapArray::new(Arc::new(Field::new("entries", DataType::Struct(kv), false)), lengths(), entries, None, false)),
        Arc::new(StringArray::from_iter_values(ids.iter().map(|i| format!("{{\"i\":{i}}}")))),
    ];
    let schema = Schema::new(spec.schema.fields().iter().zip(&columns).map(|(f, c)| Field::new(f.name(), c.data_type().clone(), true)).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

fn wide_json(i: i64) -> Value {
    let time = |us: i64, zone: &str| chrono::DateTime::from_timestamp_micros(us).unwrap().format(&format!("%Y-%m-%dT%H:%M:%S%.6f{zone}")).to_string();
    let point = json!({"x": i, "u": Uuid::from_u128(i as u128).to_string()});
    json!({
        "id": i, "region": REGIONS[i as usize % 4], "at": time(i * 43_200_000_000 - 1, "+00:00"), "flag": i % 2 == 0,
        "small": (i % 3 != 0).then_some(i - 2), "f": i as f64 / 4.0,
        "amount": format!("{}{}.{:02}", if i == 0 { "" } else { "-" }, i * 101 / 100, i * 101 % 100),
        "huge": format!("{}.{:04}", 10i128.pow(33), i),
        "u": Uuid::from_u128(1 << 127 | i as u128).to_string(),
        "raw": RAW[i as usize % 3],
        "day": chrono::DateTime::from_timestamp((i - 3) * 86_400, 0).unwrap().format("%Y-%m-%d").to_string(),
        "clock": chrono::DateTime::from_timestamp_micros(i * 1_000_001).unwrap().format("%H:%M:%S%.6f").to_string(),
        "wall": time(-i, ""), "tags": [format!("t{i}")], "point": point.clone(), "points": [point],
        "counts": {format!("k{i}"): i}, "doc": format!("{{\"i\":{i}}}"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn others_read_every_type_partitioned_with_deletes_and_merged_manifests() {
    let lake = Lake::new().await;
    let t = wide();
    let mut table = lake.format.open_or_create(t.clone(), &stamp(0)).await.unwrap();
    let mut gone = Vec::new();
    // Enough commits that manifests of both kinds were merged.
    for entry in 0..45u64 {
        let first = entry as i64 * 3;
        let files = lake.stage(&t, &wide_rows(&t, &[first, first + 1, first + 2])).await;
        let target = files[0].path.clone();
        commit(&mut table, &t, entry * 2 + 1, files, &[]).await;
        commit(&mut table, &t, entry * 2 + 2, vec![], &[(&target, 0)]).await;
        gone.push(first);
    }
    let want: Vec<Value> = (0..45 * 3).filter(|i| !gone.contains(i)).map(wide_json).collect();
    let live = table.live_files().await.unwrap();
    assert_eq!(live.iter().map(|f| f.records - f.deleted.len()).sum::<u64>(), want.len() as u64);
    for (reader, got) in [("pyiceberg", lake.pyiceberg("wide", None)), ("duckdb", lake.duckdb("wide", None))] {
        assert_eq!(got.len(), want.len(), "{reader}");
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got, want, "{reader}");
        }
    }
    // By partition and by bounds of the merged manifests.
    for filter in ["region = 'eu/west 1'", "huge > 1000000000000000000000000000000000.0100", "amount < -100.50", "u = '80000000-0000-0000-0000-000000000007'", "region is null"] {
        let keep = |r: &&Value| match filter.split(' ').next().unwrap() {
            "region" if filter.ends_with("null") => r["region"].is_null(),
            "region" => r["region"] == "eu/west 1",
            "huge" => r["id"].as_i64().unwrap() > 100,
            "amount" => r["id"].as_i64().unwrap() * 101 > 10_050,
            _ => r["id"] == 7,
        };
        let want: Vec<&Value> = want.iter().filter(keep).collect();
        assert!(!want.is_empty());
        assert_eq!(lake.duckdb("wide", Some(filter)).iter().collect::<Vec<_>>(), want, "duckdb {filter}");
        if !filter.starts_with("u ") {
            assert_eq!(lake.pyiceberg("wide", Some(filter)).iter().collect::<Vec<_>>(), want, "pyiceberg {filter}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_pruned_by_a_bound_that_is_too_narrow() {
    let lake = Lake::new().await;
    let t = spec("bounds", &[("id", T::Int64), ("s", T::String), ("f", T::Float64), ("d", T::Decimal(38, 6)), ("b", T::Binary)], &[]);
    let mut table = lake.format.open_or_create(t.clone(), &stamp(0)).await.unwrap();
    let long = "ä".repeat(100);
    let longer = format!("{}z", "z".repeat(200));
    // One file with each row, and one with all: bounds of one value and of many.
    let rows: Vec<(i64, String, f64, i128)> = vec![
        (0, long.clone(), f64::NAN, -1),
        (1, longer.clone(), -0.0, 0),
        (2, "\u{10FFFF}".repeat(40), 0.0, 99_999_999_999_999_999_999_999_999_999_999_999_999),
        (3, "short".into(), f64::INFINITY, -99_999_999_999_999_999_999_999_999_999_999_999_999),
        (4, format!("{}\u{D7FF}q", "k".repeat(15)), f64::NEG_INFINITY, 128),
    ];
    let batch = |rows: &[(i64, String, f64, i128)], first: i64| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0 + first))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.1))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.2))),
            Arc::new(Decimal128Array::from_iter_values(rows.iter().map(|r| r.3)).with_precision_and_scale(38, 6).unwrap()),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| r.1.as_bytes()))),
        ];
        RecordBatch::try_new(t.schema.clone(), columns).unwrap()
    };
    let mut entry = 0;
    for row in &rows {
        entry += 1;
        let files = lake.stage(&t, &batch(std::slice::from_ref(row), 0)).await;
        commit(&mut table, &t, entry, files, &[]).await;
    }
    let files = lake.stage(&t, &batch(&rows, 10)).await;
    commit(&mut table, &t, entry + 1, files, &[]).await;
    let ids = |filter: &str| lake.duckdb("bounds", Some(filter)).iter().map(|r| r["id"].as_i64().unwrap()).collect::<Vec<_>>();
    for (id, s, _, d) in &rows {
        assert_eq!(ids(&format!("s = '{s}'")), [*id, id + 10], "s of row {id}");
        assert_eq!(ids(&format!("b = encode('{s}')")), [*id, id + 10], "b of row {id}");
        let text = Decimal128Array::from(vec![*d]).with_precision_and_scale(38, 6).unwrap().value_as_string(0);
        assert_eq!(ids(&format!("d = '{text}'::decimal(38,6)")), [*id, id + 10], "d of row {id}");
    }
    assert_eq!(ids("f = 0.0"), [1, 2, 11, 12]);
    assert_eq!(ids("f = '-0.0'::double"), [1, 2, 11, 12]);
    assert_eq!(ids("f >= 0.0 and f < 1.0"), [1, 2, 11, 12]);
    assert_eq!(ids("f = 'Infinity'::double"), [3, 13]);
    assert_eq!(ids("f = '-Infinity'::double"), [4, 14]);
    let nan = |r: &Value| r["f"] == "NaN";
    let by_pyiceberg = lake.pyiceberg("bounds", Some("f is nan"));
    assert_eq!(by_pyiceberg.iter().filter(|r| nan(r)).count(), 2);
    assert_eq!(lake.pyiceberg("bounds", Some(&format!("s = '{longer}'"))).len(), 2);
    assert_eq!(lake.pyiceberg("bounds", Some("f = 0.0")).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_read_a_column_that_was_added_later() {
    let lake = Lake::new().await;
    let t = spec("evolving", &[("id", T::Int64), ("s", T::String)], &[]);
    let mut table = lake.format.open_or_create(t.clone(), &stamp(0)).await.unwrap();
    // Both open a table that has no snapshot yet.
    assert!(lake.pyiceberg("evolving", None).is_empty());
    assert!(lake.duckdb("evolving", None).is_empty());
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(StringArray::from(vec!["a"]))];
    let files = lake.stage(&t, &RecordBatch::try_new(t.schema.clone(), columns).unwrap()).await;
    commit(&mut table, &t, 1, files, &[]).await;
    let mut fields: Vec<Arc<Field>> = t.schema.fields().iter().cloned().collect();
    fields.insert(1, Arc::new(T::Decimal(5, 1).field("n", true)));
    let mut later = t.as_ref().clone();
    later.schema = assign_field_ids(&Schema::new(fields), Some(&t.schema)).unwrap();
    let later = Arc::new(later);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![2])),
        Arc::new(Decimal128Array::from(vec![15]).with_precision_and_scale(5, 1).unwrap()),
        Arc::new(StringArray::from(vec!["b"])),
    ];
    let files = lake.stage(&later, &RecordBatch::try_new(later.schema.clone(), columns).unwrap()).await;
    commit(&mut table, &later, 2, files, &[]).await;
    let want = [json!({"id": 1, "n": null, "s": "a"}), json!({"id": 2, "n": "1.5", "s": "b"})];
    assert_eq!(lake.pyiceberg("evolving", None), want);
    assert_eq!(lake.duckdb("evolving", None), want);
}
