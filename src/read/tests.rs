//! Files written as the table half writes them, and as others do; read back and queried.

use super::*;
use crate::pipeline::ColumnType;
use crate::read::query::{Ndjson, human_table, run};
use crate::stage::{ColumnStats, FIELD_ID, Scalar};
use arrow::array::*;
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// Gives every top-level field an id, from 1.
fn schema(columns: Vec<(&str, ColumnType)>) -> SchemaRef {
    let fields = columns.into_iter().enumerate().map(|(i, (name, ty))| {
        let field = ty.field(name, true);
        let mut metadata = field.metadata().clone();
        metadata.insert(FIELD_ID.to_string(), (i + 1).to_string());
        field.with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

async fn put(store: &InMemory, path: &str, batch: &RecordBatch) -> LiveFile {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(7)).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let size = bytes.len() as u64;
    store.put(&Path::parse(path).unwrap(), bytes.into()).await.unwrap();
    LiveFile {
        path: path.to_string(),
        bytes: size,
        records: batch.num_rows() as u64,
        deleted: RoaringTreemap::new(),
        partition_values: BTreeMap::new(),
        columns: Vec::new(),
    }
}

async fn sql(schema: &SchemaRef, store: Arc<InMemory>, files: Vec<LiveFile>, sql: &str) -> String {
    let table = Arc::new(LakeTableProvider::new(store, schema.clone(), files));
    let (_, rows) = run(vec![("t".to_string(), table)], sql).await.unwrap();
    let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    let mut out = Ndjson::new(Vec::new());
    rows.iter().for_each(|b| out.write(b).unwrap());
    String::from_utf8(out.finish().unwrap()).unwrap()
}

fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
    let schema = schema(vec![("n", ColumnType::Int64), ("s", ColumnType::String)]);
    let text = StringArray::from_iter_values(range.clone().map(|n| format!("s{n}")));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(range)), Arc::new(text)]).unwrap()
}

#[tokio::test]
async fn deleted_rows_are_left_out_and_positions_count_them() {
    let store = Arc::new(InMemory::new());
    let batch = numbers(0..30);
    let whole = put(&store, "t/a.parquet", &batch).await;
    for deleted in [vec![], vec![0], vec![29], (0..7).collect(), (5..23).collect(), vec![0, 2, 4, 6, 8, 28, 29], (0..30).collect::<Vec<u64>>()] {
        let file = LiveFile { deleted: deleted.iter().copied().collect(), ..whole.clone() };
        for columns in [None, Some(vec!["n".to_string()]), Some(vec!["s".to_string(), "n".to_string()])] {
            for batch_rows in [1, 4, 1000] {
                let rows: Vec<_> = positioned_rows(store.clone(), &file, &batch.schema(), columns.as_deref(), batch_rows).try_collect().await.unwrap();
                let expected: Vec<u64> = (0..30).filter(|p| !deleted.contains(p)).collect();
                let positions: Vec<u64> = rows.iter().flat_map(|(_, p)| p.clone()).collect();
                assert_eq!(positions, expected);
                let values: Vec<i64> = rows.iter().flat_map(|(b, _)| b.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().to_vec()).collect();
                assert_eq!(values, expected.iter().map(|p| *p as i64).collect::<Vec<_>>());
                assert!(rows.iter().all(|(b, _)| b.num_rows() <= batch_rows));
            }
        }
        let count = sql(&batch.schema(), store.clone(), vec![file], "select count(*) as n from t").await;
        assert_eq!(count, format!("{{\"n\":{}}}\n", 30 - deleted.len()));
    }
}

#[tokio::test]
async fn older_and_foreign_files_fit_the_table() {
    let store = Arc::new(InMemory::new());
    let table = schema(vec![("id", ColumnType::Int64), ("name", ColumnType::String), ("day", ColumnType::Date)]);
    // Ours, from before `name` was added and `id` was widened and renamed.
    let old = Schema::new(vec![Field::new("key", DataType::Int32, true).with_metadata([(FIELD_ID.to_string(), "1".to_string())].into())]);
    let old = RecordBatch::try_new(Arc::new(old), vec![Arc::new(Int32Array::from(vec![1, 2]))]).unwrap();
    let mut old = put(&store, "t/day=1970-01-02/old.parquet", &old).await;
    old.partition_values = [("day".to_string(), Some("1970-01-02".to_string()))].into();
    // Another's: no ids, another order, large strings, the partition column left out.
    let names: ArrayRef = Arc::new(LargeStringArray::from(vec![Some("x"), None]));
    let foreign = RecordBatch::try_from_iter_with_nullable([("name", names, true), ("id", Arc::new(Int64Array::from(vec![3, 4])), true)]).unwrap();
    let mut foreign = put(&store, "t/day=__HIVE_DEFAULT_PARTITION__/f.parquet", &foreign).await;
    foreign.partition_values = [("day".to_string(), None)].into();
    foreign.deleted.insert(0);
    let files = vec![old, foreign];
    let all = sql(&table, store.clone(), files.clone(), "select * from t order by id").await;
    assert_eq!(
        all,
        "{\"id\":1,\"name\":null,\"day\":\"1970-01-02\"}\n{\"id\":2,\"name\":null,\"day\":\"1970-01-02\"}\n{\"id\":4,\"name\":null,\"day\":null}\n"
    );
    // Only partition values are needed: no file is opened.
    store.delete(&Path::parse(&files[0].path).unwrap()).await.unwrap();
    let days = sql(&table, store.clone(), files, "select day, count(*) as n from t group by day order by day nulls last").await;
    assert_eq!(days, "{\"day\":\"1970-01-02\",\"n\":2}\n{\"day\":null,\"n\":1}\n");
}

#[tokio::test]
async fn a_delta_file_reads_in_its_own_types_and_in_the_tables() {
    let store = Arc::new(InMemory::new());
    let table = schema(vec![("u", ColumnType::Uuid), ("at", ColumnType::Time), ("l", ColumnType::List(Box::new(ColumnType::Uuid)))]);
    let shown = delta_schema(&table);
    assert_eq!(shown.field(0).data_type(), &DataType::Utf8);
    assert_eq!(shown.field(1).data_type(), &DataType::Utf8);
    assert_eq!(shown.field(2).data_type(), &DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))));
    assert_eq!(shown.field(0).metadata().get(FIELD_ID).map(String::as_str), Some("1"));
    let text = "01234567-89ab-cdef-0123-456789abcdef";
    let mut list = ListBuilder::new(StringBuilder::new());
    list.append_value([Some(text), None]);
    let batch = RecordBatch::try_new(
        Arc::new(shown.clone()),
        vec![Arc::new(StringArray::from(vec![text])), Arc::new(StringArray::from(vec!["23:59:59.000001"])), Arc::new(list.finish())],
    )
    .unwrap();
    let file = put(&store, "t/a.parquet", &batch).await;
    let read = |schema: SchemaRef| live_rows(store.clone(), &file, &schema, None, 10).try_collect::<Vec<_>>();
    assert_eq!(read(Arc::new(shown)).await.unwrap(), [batch]);
    let rows = read(table.clone()).await.unwrap();
    assert_eq!(rows[0].schema(), table);
    assert_eq!(rows[0].column(0).as_fixed_size_binary().value(0), uuid::Uuid::parse_str(text).unwrap().as_bytes());
    assert_eq!(rows[0].column(1).as_primitive::<arrow::datatypes::Time64MicrosecondType>().value(0), 86_399_000_001);
    let json = sql(&table, store.clone(), vec![file.clone()], "select * from t").await;
    assert_eq!(json, format!("{{\"u\":\"{text}\",\"at\":\"23:59:59.000001\",\"l\":[\"{text}\",null]}}\n"));
}

#[tokio::test]
async fn what_does_not_fit_is_named() {
    let store = Arc::new(InMemory::new());
    let batch = numbers(0..3);
    let file = put(&store, "t/a.parquet", &batch).await;
    let read = |file: LiveFile, schema: SchemaRef, columns: Option<Vec<String>>| {
        let store: Arc<dyn ObjectStore> = store.clone();
        async move { live_rows(store, &file, &schema, columns.as_deref(), 10).try_collect::<Vec<_>>().await.unwrap_err().to_string() }
    };
    let error = read(file.clone(), batch.schema(), Some(vec!["x".to_string()])).await;
    assert_eq!(error, "the table has no column x; it has n, s");
    let error = read(LiveFile { records: 4, ..file.clone() }, batch.schema(), None).await;
    assert!(error.contains("expected 4 rows, found 3"), "{error}");
    let error = read(LiveFile { bytes: file.bytes - 1, ..file.clone() }, batch.schema(), None).await;
    assert!(error.contains("t/a.parquet is not the Parquet file"), "{error}");
    let error = read(LiveFile { bytes: file.bytes + 9, ..file.clone() }, batch.schema(), None).await;
    assert!(error.contains("t/a.parquet"), "{error}");
    let error = read(LiveFile { path: "t/b.parquet".to_string(), ..file.clone() }, batch.schema(), None).await;
    assert!(error.contains("cannot read t/b.parquet from the store"), "{error}");
    let other = schema(vec![("n", ColumnType::Int32), ("s", ColumnType::Bool)]);
    let fields = [other.field(0).clone().with_data_type(DataType::Decimal128(5, 0)), Field::new("new", DataType::Int64, false)];
    let error = read(file.clone(), Arc::new(Schema::new(vec![fields[1].clone()])), None).await;
    assert!(error.contains("column new of t/a.parquet") && error.contains("requires it"), "{error}");
    let narrow = Schema::new(vec![Field::new("s", DataType::Struct(vec![fields[0].clone()].into()), true)]);
    let error = read(file, Arc::new(narrow), None).await;
    assert!(error.contains("column s of t/a.parquet does not fit the table"), "{error}");
}

#[tokio::test]
async fn queries_filter_join_and_limit() {
    let store = Arc::new(InMemory::new());
    let files = vec![put(&store, "t/a.parquet", &numbers(0..20)).await, put(&store, "t/b.parquet", &numbers(20..50)).await];
    let schema = numbers(0..1).schema();
    let q = |text: &'static str| sql(&schema, store.clone(), files.clone(), text);
    assert_eq!(q("select s from t where n > 18 and n < 21 order by n").await, "{\"s\":\"s19\"}\n{\"s\":\"s20\"}\n");
    assert_eq!(q("select count(*) as c, sum(n) as s from t").await, "{\"c\":50,\"s\":1225}\n");
    assert_eq!(q("select n from t limit 7").await.lines().count(), 7);
    assert_eq!(q("select a.n from t a join t b on a.n = b.n + 48 order by 1").await, "{\"n\":48}\n{\"n\":49}\n");
    let empty = sql(&schema, store.clone(), vec![], "select count(*) as c from t").await;
    assert_eq!(empty, "{\"c\":0}\n");
}

#[tokio::test]
async fn only_queries_run_and_names_may_have_a_schema() {
    let store = Arc::new(InMemory::new());
    let table: Arc<LakeTableProvider> = Arc::new(LakeTableProvider::new(store, numbers(0..1).schema(), vec![]));
    for refused in ["drop table t", "create table x as select 1", "insert into t values (1, 'a')", "set datafusion.execution.batch_size = 1", "select missing from t", "selec"] {
        let Err(error) = run(vec![("t".to_string(), table.clone())], refused).await else { panic!("{refused} was not refused") };
        assert!(error.to_string().starts_with("cannot run the query: "), "{error}");
    }
    let (schema, rows) = run(vec![("millpond.epochs".to_string(), table.clone()), ("t".to_string(), table)], "select e.n from millpond.epochs e, t").await.unwrap();
    assert_eq!(schema.field(0).name(), "n");
    assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
}

/// Files that a filter rules out by their bounds are not opened: here they do not even exist.
#[tokio::test]
async fn bounds_spare_files_and_never_rows() {
    let store = Arc::new(InMemory::new());
    let stats = |id, lower: Option<Scalar>, upper: Option<Scalar>, nans| ColumnStats { field_id: id, bytes: 0, values: 1, nulls: 0, nans, lower, upper };
    let table = schema(vec![("n", ColumnType::Int64), ("s", ColumnType::String), ("f", ColumnType::Float64), ("d", ColumnType::Decimal(9, 2))]);
    let rows = |n: i64, s: &str, f: f64, d: i128| {
        let decimal = Decimal128Array::from(vec![d]).with_precision_and_scale(9, 2).unwrap();
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![n])), Arc::new(StringArray::from(vec![s])), Arc::new(Float64Array::from(vec![f])), Arc::new(decimal)];
        RecordBatch::try_new(table.clone(), columns).unwrap()
    };
    let long = "z".repeat(40);
    let mut here = put(&store, "here", &rows(5, &long, 0.0, 250)).await;
    here.columns = vec![
        stats(1, Some(Scalar::Int(5)), Some(Scalar::Int(5)), 0),
        stats(2, Some(Scalar::Text("z".repeat(16))), Some(Scalar::Text(format!("{}{{", "z".repeat(15)))), 0),
        stats(3, Some(Scalar::Float(-0.0)), Some(Scalar::Float(0.0)), 0),
        stats(4, Some(Scalar::Decimal(250)), Some(Scalar::Decimal(250)), 0),
    ];
    let mut nan = put(&store, "nan", &rows(6, "a", f64::NAN, 0)).await;
    nan.columns = vec![stats(1, Some(Scalar::Int(6)), Some(Scalar::Int(6)), 0), stats(3, Some(Scalar::Float(1.0)), Some(Scalar::Float(1.0)), 1)];
    let mut absent = here.clone();
    absent.path = "absent".to_string();
    absent.columns = vec![
        stats(1, Some(Scalar::Int(100)), Some(Scalar::Int(200)), 0),
        stats(2, Some(Scalar::Text("b".into())), Some(Scalar::Text("c".into())), 0),
        stats(3, Some(Scalar::Float(10.0)), Some(Scalar::Float(20.0)), 0),
        stats(4, Some(Scalar::Decimal(9_000)), Some(Scalar::Decimal(9_900)), 0),
    ];
    for (filter, found) in [
        ("n = 5", "5"),
        ("n < 7 and n > 5", "6"),
        ("s = 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz'", "5"),
        ("s > 'zzzzzzzzzzzzzzzz'", "5"),
        ("f = 0.0", "5"),
        ("f >= 0.0 and f < 1.0", "5"),
        ("f > 5.0 and n < 100", "6"),
        ("d = 2.50", "5"),
        ("d > 2.49 and d < 3 ", "5"),
    ] {
        let answer = sql(&table, store.clone(), vec![here.clone(), nan.clone(), absent.clone()], &format!("select n from t where {filter}")).await;
        assert_eq!(answer, format!("{{\"n\":{found}}}\n"), "{filter}");
    }
}

#[tokio::test]
async fn json_and_the_human_table_say_exactly_what_is_there() {
    let entry = ColumnType::Struct(vec![("a".to_string(), ColumnType::Int64)]);
    let schema = schema(vec![
        ("i", ColumnType::Int64),
        ("d", ColumnType::Decimal(38, 4)),
        ("f", ColumnType::Float64),
        ("t", ColumnType::Timestamp(None)),
        ("l", ColumnType::TimestampLocal(None)),
        ("u", ColumnType::Uuid),
        ("b", ColumnType::Binary),
        ("s", entry),
        ("j", ColumnType::Json),
        ("m", ColumnType::Map(Box::new(ColumnType::Int64), Box::new(ColumnType::Uuid))),
    ]);
    let DataType::Map(entries, _) = schema.field(9).data_type() else { panic!() };
    let DataType::Struct(pair) = entries.data_type() else { panic!() };
    let uuids = FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([7u8; 16]), None].into_iter(), 16).unwrap();
    let pairs = StructArray::new(pair.clone(), vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(uuids)], None);
    let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 2, 2].into());
    let map = MapArray::new(entries.clone(), offsets, pairs, None, false);
    let DataType::Struct(fields) = schema.field(7).data_type() else { panic!() };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(i64::MAX), None])),
        Arc::new(Decimal128Array::from(vec![Some(99_999_999_999_999_999_999_999_999_999_999_990_001), None]).with_precision_and_scale(38, 4).unwrap()),
        Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(0.1)])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(1_500_000), Some(i64::MAX)]).with_timezone("UTC")),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(1_000_000), None])),
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([7u8; 16]), None].into_iter(), 16).unwrap()),
        Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None])),
        Arc::new(StructArray::new(fields.clone(), vec![Arc::new(Int64Array::from(vec![Some(1), None]))], None)),
        Arc::new(StringArray::from(vec![Some("{\"k\": \"\u{e9}\"}"), None])),
        Arc::new(map),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let store = Arc::new(InMemory::new());
    let file = put(&store, "a", &batch).await;
    let json = sql(&schema, store.clone(), vec![file.clone()], "select * from t").await;
    let expected = concat!(
        r#"{"i":9223372036854775807,"d":9999999999999999999999999999999999.0001,"f":"NaN","t":"1970-01-01T00:00:01.500Z","l":"1970-01-01T00:00:01","#,
        r#""u":"07070707-0707-0707-0707-070707070707","b":"AP8=","s":{"a":1},"j":"{\"k\": \"é\"}","m":{"1":"07070707-0707-0707-0707-070707070707","2":null}}"#,
        "\n",
        r#"{"i":null,"d":null,"f":0.1,"t":9223372036854775807,"l":null,"u":null,"b":null,"s":{"a":null},"j":null,"m":{}}"#,
        "\n"
    );
    assert_eq!(json, expected);
    let table = Arc::new(LakeTableProvider::new(store, schema.clone(), vec![file]));
    let (schema, rows) = run(vec![("t".to_string(), table)], "select i, u from t where i is not null").await.unwrap();
    let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    let table = human_table(&schema, &rows).unwrap();
    assert!(table.contains("| 9223372036854775807 | 07070707-0707-0707-0707-070707070707 |"), "{table}");
    assert!(human_table(&schema, &[]).unwrap().contains("| i | u |"));
}

/// A filter on one column fetches nothing of the others.
#[tokio::test]
async fn columns_that_are_not_asked_for_are_not_fetched() {
    let store = Arc::new(InMemory::new());
    let n = 20_000;
    let schema = schema(vec![("k", ColumnType::Int32), ("wide", ColumnType::String)]);
    let wide = StringArray::from_iter_values((0..n).map(|i| format!("{:x}", (i as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(Int32Array::from_iter_values(0..n)), Arc::new(wide)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema.clone(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let total = bytes.len() as u64;
    store.put(&Path::from("a"), bytes.into()).await.unwrap();
    let file = LiveFile { path: "a".into(), bytes: total, records: n as u64, deleted: RoaringTreemap::new(), partition_values: BTreeMap::new(), columns: vec![] };
    let counted = Arc::new(crate::read::counting::CountingStore::new(store));
    let rows: Vec<_> = live_rows(counted.clone(), &file, &schema, Some(&["k".to_string()]), 8192).try_collect().await.unwrap();
    let values: Vec<i32> = rows.iter().flat_map(|b| b.column(0).as_primitive::<Int32Type>().values().to_vec()).collect();
    assert_eq!(values, (0..n).collect::<Vec<_>>());
    assert!(counted.bytes() < total / 2, "{} of {total} bytes", counted.bytes());
    assert_eq!(counted.reads(), 2, "the footer and one column chunk");
}
