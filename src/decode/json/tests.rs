use super::*;
use crate::pipeline::{EpochUnit, Segment};
use arrow::array::*;
use arrow::datatypes::{DataType, TimeUnit};
use std::ops::Range;

/// A value of an Arrow array, for comparing.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Bool(bool),
    Int(i128),
    Float(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Cell>),
    Map(Vec<(Cell, Cell)>),
}

pub fn cell(array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    macro_rules! value {
        ($array:ty) => {
            array.as_any().downcast_ref::<$array>().unwrap().value(row)
        };
    }
    match array.data_type() {
        DataType::Boolean => Cell::Bool(value!(BooleanArray)),
        DataType::Int32 => Cell::Int(value!(Int32Array) as i128),
        DataType::Int64 => Cell::Int(value!(Int64Array) as i128),
        DataType::Date32 => Cell::Int(value!(Date32Array) as i128),
        DataType::Time64(TimeUnit::Microsecond) => Cell::Int(value!(Time64MicrosecondArray) as i128),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Cell::Int(value!(TimestampMicrosecondArray) as i128),
        DataType::Decimal128(..) => Cell::Int(value!(Decimal128Array)),
        DataType::Float32 => Cell::Float(value!(Float32Array).to_bits() as u64),
        DataType::Float64 => Cell::Float(value!(Float64Array).to_bits()),
        DataType::Utf8 => Cell::Text(value!(StringArray).to_string()),
        DataType::Binary => Cell::Bytes(value!(BinaryArray).to_vec()),
        DataType::FixedSizeBinary(_) => Cell::Bytes(value!(FixedSizeBinaryArray).to_vec()),
        DataType::List(_) => {
            let items = value!(ListArray);
            Cell::List((0..items.len()).map(|i| cell(&items, i)).collect())
        }
        DataType::Struct(_) => {
            let fields = array.as_any().downcast_ref::<StructArray>().unwrap();
            Cell::List(fields.columns().iter().map(|field| cell(field, row)).collect())
        }
        DataType::Map(..) => {
            let entries = value!(MapArray);
            Cell::Map((0..entries.len()).map(|i| (cell(entries.column(0), i), cell(entries.column(1), i))).collect())
        }
        other => panic!("{other}"),
    }
}

pub fn raw(values: &[&[u8]]) -> RawBatch {
    let mut batch = RawBatch { partition: 3, to: values.len() as i64, ..RawBatch::default() };
    for (i, value) in values.iter().enumerate() {
        let range = put(&mut batch, value);
        let record = RawRecord { offset: i as i64, timestamp_ms: Some(1000), key: None, value: Some(range), headers: Vec::new(), oversized: None };
        batch.records.push(record);
    }
    batch
}

fn put(batch: &mut RawBatch, bytes: &[u8]) -> Range<u32> {
    let from = batch.bytes.len() as u32;
    batch.bytes.extend_from_slice(bytes);
    from..batch.bytes.len() as u32
}

pub fn column(name: &str, ty: ColumnType) -> Column {
    Column { name: name.into(), ty, nullable: true, from: From::Path(vec![Segment::Field(name.into())]) }
}

fn at(name: &str, ty: ColumnType, path: &[Segment]) -> Column {
    Column { from: From::Path(path.to_vec()), ..column(name, ty) }
}

fn field(name: &str) -> Segment {
    Segment::Field(name.into())
}

/// One record into all columns: its cells, or the reason.
fn decode(columns: &[Column], text: impl AsRef<[u8]>) -> Result<Vec<Cell>, String> {
    let used: Vec<usize> = (0..columns.len()).collect();
    let good = b"{}";
    // Between records that live, so that a dead one must leave nothing behind.
    let all_nullable: Vec<Column> = columns.iter().map(|c| Column { nullable: true, ..c.clone() }).collect();
    let mut decoder = JsonDecoder::new(&all_nullable, &used, None, 512).unwrap();
    let decoded = decoder.decode(&raw(&[good, text.as_ref(), good]));
    let strict = JsonDecoder::new(columns, &used, None, 512).unwrap().decode(&raw(&[text.as_ref()]));
    match &strict.dead[..] {
        [] => {
            assert_eq!(decoded.rows, [0, 1, 2]);
            let cells = |d: &Decoded, row| d.batch.columns().iter().map(|c| cell(c, row)).collect::<Vec<_>>();
            assert_eq!(cells(&decoded, 1), cells(&strict, 0));
            Ok(cells(&strict, 0))
        }
        [(0, reason)] => {
            assert_eq!(strict.batch.num_rows(), 0);
            assert!(decoded.batch.columns().iter().all(|c| decoded.rows.len() == c.len()));
            // A column that is not used is judged alike, with the same words.
            let unused = JsonDecoder::new(columns, &[], None, 512).unwrap().decode(&raw(&[text.as_ref()]));
            assert_eq!(unused.dead[0].1, *reason);
            Err(reason.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn one(ty: ColumnType, value: &str) -> Result<Cell, String> {
    decode(&[column("v", ty)], format!("{{\"v\":{value}}}")).map(|mut cells| cells.remove(0))
}

fn accepts(ty: ColumnType, table: &[(&str, Cell)]) {
    for (value, expected) in table {
        assert_eq!(one(ty.clone(), value).as_ref(), Ok(expected), "{ty:?} {value}");
    }
    assert_eq!(one(ty.clone(), "null"), Ok(Cell::Null), "{ty:?}");
}

fn rejects(ty: ColumnType, values: &[&str]) {
    for value in values {
        let outcome = one(ty.clone(), value);
        assert!(outcome.as_ref().is_err_and(|reason| reason.starts_with("column v")), "{ty:?} {value}: {outcome:?}");
    }
}

use Cell::{Bool, Bytes, Float, Int, List, Map, Null, Text};
use ColumnType as T;

#[test]
fn scalars() {
    accepts(T::Bool, &[("true", Bool(true)), ("false", Bool(false))]);
    rejects(T::Bool, &["1", "\"true\"", "[]", "{}"]);
    accepts(T::Int32, &[("2147483647", Int(2147483647)), ("-2147483648.0", Int(-2147483648)), ("1e2", Int(100))]);
    rejects(T::Int32, &["2147483648", "-2147483649", "1.5", "\"1\"", "true", "1e10"]);
    accepts(T::Int64, &[("9007199254740993", Int(9007199254740993)), ("-9223372036854775808", Int(i64::MIN as i128)), ("1.0", Int(1))]);
    rejects(T::Int64, &["9223372036854775808", "0.1", "\"1\"", "1e19"]);
    accepts(T::Float64, &[("1.5", Float(1.5f64.to_bits())), ("-0.0", Float((-0.0f64).to_bits())), ("0.1", Float(0.1f64.to_bits())), ("1e-400", Float(0))]);
    rejects(T::Float64, &["1e400", "-1e309", "\"1\"", "\"NaN\""]);
    accepts(T::Float32, &[("0.1", Float(0.1f32.to_bits() as u64)), ("16777217", Float(16777217f32.to_bits() as u64))]);
    rejects(T::Float32, &["1e39", "-3.5e38"]);
    accepts(
        T::Decimal(12, 2),
        &[("123.45", Int(12345)), ("\"123.45\"", Int(12345)), ("\"\\u0031.5\"", Int(150)), ("1.2300", Int(123)), ("1e3", Int(100000)), ("-9999999999.99", Int(-999999999999))],
    );
    rejects(T::Decimal(12, 2), &["1.005", "10000000000", "\"\"", "\" 1\"", "\"1,5\"", "\"01\"", "\"1 \"", "\"NaN\"", "\"null\"", "true"]);
    accepts(T::String, &[("\"a\\u0000\\n\u{e9}\"", Text("a\0\n\u{e9}".into())), ("\"\"", Text("".into())), ("\"\\ud83d\\ude00\"", Text("😀".into()))]);
    rejects(T::String, &["1", "true", "{}", "[\"a\"]"]);
    accepts(T::Binary, &[("\"AP8=\"", Bytes(vec![0, 255])), ("\"AP8\"", Bytes(vec![0, 255])), ("\"\\/\\/8=\"", Bytes(vec![255, 255])), ("\"\"", Bytes(vec![]))]);
    rejects(T::Binary, &["\"AP9=\"", "\"A\"", "\"-_8=\"", "\"AP 8\"", "\"AA=\"", "1"]);
    let id = "0123abcd-4567-89ab-CDEF-0123456789ab";
    accepts(T::Uuid, &[(&format!("\"{id}\""), Bytes(uuid::Uuid::parse_str(id).unwrap().as_bytes().to_vec()))]);
    rejects(T::Uuid, &["\"0123abcd456789abcdef0123456789ab\"", "\"{0123abcd-4567-89ab-cdef-0123456789ab}\"", "\"0123abcd-4567-89ab-cdef-0123456789ag\"", "\"\""]);
}

#[test]
fn times() {
    accepts(T::Date, &[("\"1970-01-02\"", Int(1)), ("\"0001-01-01\"", Int(-719162)), ("\"9999-12-31\"", Int(2932896))]);
    rejects(T::Date, &["\"2025-02-29\"", "1", "\"2025-01-01T00:00:00Z\""]);
    accepts(T::Time, &[("\"01:02:03.5\"", Int(3_723_500_000))]);
    rejects(T::Time, &["\"24:00:00\"", "\"01:02:03.1234567\"", "3723"]);
    accepts(T::Timestamp(None), &[("\"1970-01-01T00:00:01Z\"", Int(1_000_000)), ("\"1970-01-01 00:00:01.000001\"", Int(1_000_001)), ("\"1970-01-01T02:00:00+02:00\"", Int(0))]);
    rejects(T::Timestamp(None), &["1", "\"1970-01-01T00:00:01\"", "\"1970-01-01T00:00:60Z\"", "\"1\"", "true", "{}"]);
    accepts(T::Timestamp(Some(EpochUnit::Seconds)), &[("1.5", Int(1_500_000)), ("-1", Int(-1_000_000)), ("\"1970-01-01T00:00:01Z\"", Int(1_000_000)), ("253402300799.999999", Int(253402300799999999))]);
    rejects(T::Timestamp(Some(EpochUnit::Seconds)), &["1.0000001", "253402300800", "-62135596801", "1e300", "\"1\"", "[]"]);
    accepts(T::Timestamp(Some(EpochUnit::Millis)), &[("1767225600123", Int(1767225600123000))]);
    accepts(T::Timestamp(Some(EpochUnit::Micros)), &[("1767225600123456", Int(1767225600123456))]);
    accepts(T::Timestamp(Some(EpochUnit::Nanos)), &[("1767225600123456000", Int(1767225600123456))]);
    rejects(T::Timestamp(Some(EpochUnit::Nanos)), &["1767225600123456001", "0.5"]);
    accepts(T::TimestampLocal(None), &[("\"1970-01-01T00:00:01\"", Int(1_000_000)), ("\"1970-01-01 00:00:01\"", Int(1_000_000))]);
    rejects(T::TimestampLocal(None), &["\"1970-01-01T00:00:01Z\"", "\"1970-01-01T00:00:01+01:00\"", "1"]);
}

#[test]
fn nested() {
    let list = T::List(Box::new(T::Int64));
    accepts(list.clone(), &[("[]", List(vec![])), ("[1, null ,3]", List(vec![Int(1), Null, Int(3)]))]);
    rejects(list.clone(), &["{}", "1", "[1,\"a\"]", "[[1]]"]);
    accepts(T::List(Box::new(list)), &[("[[1],null,[],[2,3]]", List(vec![List(vec![Int(1)]), Null, List(vec![]), List(vec![Int(2), Int(3)])]))]);
    let point = T::Struct(vec![("x".into(), T::Int32), ("y\"".into(), T::List(Box::new(T::Uuid)))]);
    accepts(
        point.clone(),
        &[("{}", List(vec![Null, Null])), ("{\"x\":1,\"z\":[{}],\"y\\\"\":[null],\"x\":2}", List(vec![Int(2), List(vec![Null])])), ("{\"x\":\"bad\",\"x\":null}", List(vec![Null, Null]))],
    );
    rejects(point.clone(), &["[]", "{\"x\":1,\"y\\\"\":[\"\"]}"]);
    let map = T::Map(Box::new(T::String), Box::new(T::Int64));
    accepts(map.clone(), &[("{}", Map(vec![])), ("{\"a\":1,\"b\":null,\"\\u0061\":2}", Map(vec![(Text("a".into()), Int(2)), (Text("b".into()), Null)]))]);
    rejects(map, &["[]", "{\"a\":\"1\"}"]);
    let map = T::Map(Box::new(T::Int32), Box::new(point));
    accepts(map.clone(), &[("{\"-1\":{\"x\":5}, \"0\":null}", Map(vec![(Int(-1), List(vec![Int(5), Null])), (Int(0), Null)]))]);
    rejects(map, &["{\"a\":null}", "{\"01\":null}", "{\"-0\":null}", "{\"\":null}", "{\"1.0\":null}", "{\"2147483648\":null}", "{\"+1\":null}"]);
    accepts(T::Json, &[("{ \"a\" : [1.50,1e400] }", Text("{ \"a\" : [1.50,1e400] }".into())), ("\"null\"", Text("\"null\"".into())), ("1.0", Text("1.0".into()))]);
    accepts(T::List(Box::new(T::Json)), &[("[1, {\"a\":null},null]", List(vec![Text("1".into()), Text("{\"a\":null}".into()), Null]))]);
    assert_eq!(one(T::Struct(vec![]), "{\"a\":1}"), Ok(List(vec![])));
}

#[test]
fn reasons() {
    let columns = [
        column("n", T::Int64),
        at("deep", T::List(Box::new(T::Struct(vec![("x".into(), T::Decimal(4, 2))]))), &[field("a"), field("b")]),
        Column { nullable: false, ..at("must", T::String, &[field("m"), Segment::Index(1)]) },
    ];
    for (text, reason) in [
        (r#"{"n":"abc","m":[0,"x"]}"#, "column n: expected int64, found \"abc\""),
        (r#"{"n":1.5,"m":[0,"x"]}"#, "column n: expected int64, found 1.5 (not a whole number)"),
        (r#"{"a":{"b":[null,{"x":1.234}]},"m":[0,"x"]}"#, "column deep (from a.b), at [1].x: expected decimal(4,2), found 1.234 (more digits behind the point than the scale has)"),
        (r#"{"m":[0]}"#, "column must (from m[1]): expected a value, since the column is not null, found nothing"),
        (r#"{"m":[0,null]}"#, "column must (from m[1]): expected a value, since the column is not null, found null"),
        (r#"{"n":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18]}"#, "column n: expected int64, found [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,…"),
        ("[1]", "not a JSON object, found [1]"),
        ("", "empty payload, expected a JSON record"),
        ("  ", "not valid JSON at byte 2: expected a value, found the end of the record"),
        ("{} x", "not valid JSON at byte 3: expected the end of the record, found 'x'"),
        ("\u{feff}{}", "starts with a byte order mark, expected JSON"),
        (r#"{"other":"\ud800"}"#, "lone surrogate at byte 10: a \\u escape that names no character"),
    ] {
        assert_eq!(decode(&columns, text), Err(reason.to_string()), "{text}");
    }
    assert_eq!(decode(&columns, b"{\"other\":\"\xff\"}"), Err("not valid UTF-8 at byte 10".into()));
    assert_eq!(decode(&columns, b"{\"\xed\xa0\x80\":1}"), Err("not valid UTF-8 at byte 2".into()));
    let deep = format!("{{\"other\":{}{}}}", "[".repeat(512), "]".repeat(512));
    assert_eq!(decode(&columns, deep), Err("nested deeper than 512 levels at byte 520".into()));
}

#[test]
fn paths_and_duplicates() {
    let columns = [
        at("b", T::Int64, &[field("a"), field("b")]),
        at("c0", T::Int64, &[field("a"), field("c"), Segment::Index(0)]),
        at("a", T::Json, &[field("a")]),
        column("k", T::Int64),
    ];
    for (text, expected) in [
        (r#"{"a":{"b":1,"c":[2,3]},"k":4}"#, [Int(1), Int(2), Text(r#"{"b":1,"c":[2,3]}"#.into()), Int(4)]),
        (r#"{"k":4, "a":{"c":[],"b":1}}"#, [Int(1), Null, Text(r#"{"c":[],"b":1}"#.into()), Int(4)]),
        // The last one wins, with everything under it.
        (r#"{"a":{"b":1,"c":[2]},"a":{"c":[9]}}"#, [Null, Int(9), Text(r#"{"c":[9]}"#.into()), Null]),
        (r#"{"a":{"b":1,"c":[2]},"a":7}"#, [Null, Null, Text("7".into()), Null]),
        (r#"{"a":{"b":1},"a":null}"#, [Null, Null, Null, Null]),
        (r#"{"a":{"b":"x","b":2,"\u0062":3}}"#, [Int(3), Null, Text(r#"{"b":"x","b":2,"\u0062":3}"#.into()), Null]),
        (r#"{"A":{"b":1},"K":1,"a":[1]}"#, [Null, Null, Text("[1]".into()), Null]),
    ] {
        assert_eq!(decode(&columns, text), Ok(expected.to_vec()), "{text}");
    }
    // More names than are tried one after the other, one that must be escaped, one that is empty.
    let names: Vec<String> = (0..40).map(|i| format!("f{i}")).chain(["q\"\\\n".into(), "".into()]).collect();
    let wide: Vec<Column> = names.iter().map(|n| column(n, T::Int64)).collect();
    let text: Vec<String> = names.iter().enumerate().rev().map(|(i, n)| format!("{}:{i}, \"not {i}\": 0", serde_json::to_string(n).unwrap())).collect();
    assert_eq!(decode(&wide, format!("{{{}}}", text.join(","))), Ok((0..42).map(Int).collect()));
}

#[test]
fn roots_that_are_no_objects() {
    let root = [at("v", T::Json, &[])];
    assert_eq!(decode(&root, " [1, 2] "), Ok(vec![Text("[1, 2]".into())]));
    assert_eq!(decode(&root, "null"), Ok(vec![Null]));
    let list = at("v", T::List(Box::new(T::Int32)), &[]);
    let decoded = JsonDecoder::new(&[list, column("k", T::Int32)], &[0, 1], None, 512).unwrap().decode(&raw(&[b"{}", b"[1]"]));
    assert_eq!(decoded.dead, [(0, "column v (from $): expected list (a JSON array), found {}".to_string())]);
    assert_eq!((cell(decoded.batch.column(0), 0), cell(decoded.batch.column(1), 0)), (List(vec![Int(1)]), Null));
    assert_eq!(decode(&[at("v", T::Int32, &[Segment::Index(1)])], "[1,2]"), Ok(vec![Int(2)]));
}

#[test]
fn what_stands_beside_the_payload() {
    let meta = |name: &str, ty, from| Column { name: name.into(), ty, nullable: true, from };
    let headers = T::Map(Box::new(T::String), Box::new(T::Binary));
    let columns = [
        meta("k", T::String, From::Key),
        meta("kb", T::Binary, From::Key),
        meta("p", T::Int32, From::Partition),
        meta("o", T::Int64, From::Offset),
        meta("t", T::Timestamp(None), From::Timestamp),
        meta("h", headers, From::Headers),
    ];
    let mut batch = raw(&[b"{}", b"{}", b"{}", b"{}", b"{}", b"{}", b"{}"]);
    batch.records[0].key = Some(put(&mut batch, "ключ".as_bytes()));
    let names = [put(&mut batch, b"a"), put(&mut batch, b"b"), put(&mut batch, b"a")];
    let value = put(&mut batch, b"\xff");
    batch.records[0].headers = vec![(names[0].clone(), None), (names[1].clone(), None), (names[2].clone(), Some(value.clone()))];
    batch.records[1].timestamp_ms = None;
    batch.records[2].key = Some(value.clone());
    batch.records[3].headers = vec![(value, None)];
    batch.records[4].timestamp_ms = Some(i64::MAX);
    batch.records[5].value = None;
    batch.records[6].value = None;
    batch.records[6].oversized = Some(9_000_000);
    let decoded = JsonDecoder::new(&columns, &[0, 1, 2, 3, 4, 5], None, 512).unwrap().decode(&batch);
    let row = |row| decoded.batch.columns().iter().map(|c| cell(c, row)).collect::<Vec<_>>();
    let key = "ключ";
    let a = (Text("a".into()), Bytes(vec![255]));
    assert_eq!(row(0), [Text(key.into()), Bytes(key.into()), Int(3), Int(0), Int(1_000_000), Map(vec![(Text("b".into()), Null), a])]);
    assert_eq!(row(1), [Null, Null, Int(3), Int(1), Null, Map(vec![])]);
    assert_eq!(decoded.rows, [0, 1]);
    let reasons: Vec<&str> = decoded.dead.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "column k: expected a key in UTF-8, found \u{fffd}",
            "column h: expected header names in UTF-8, found \u{fffd}",
            "column t: record time 9223372036854775807 ms is not in the years 0001 to 9999",
            "null payload, expected a JSON record",
            "record of 9000000 bytes is over max_record_bytes",
        ]
    );
    // Judged alike when no table reads them.
    let unused = JsonDecoder::new(&columns, &[], None, 512).unwrap().decode(&batch);
    assert_eq!((unused.dead, unused.rows, unused.batch.num_rows()), (decoded.dead, vec![0, 1], 2));
}

#[test]
fn event_time_is_never_null() {
    let columns = [column("t", T::Timestamp(None)), column("n", T::Int64)];
    let mut decoder = JsonDecoder::new(&columns, &[1], Some(0), 512).unwrap();
    let decoded = decoder.decode(&raw(&[br#"{"t":"2026-01-01T00:00:00Z","n":1}"#, br#"{"n":2}"#, br#"{"t":null,"n":3}"#]));
    assert_eq!(decoded.rows, [0]);
    assert_eq!(cell(decoded.batch.column(0), 0), Int(1));
    assert_eq!(decoded.dead[0], (1, "column t: expected the event time, found nothing".into()));
    assert_eq!(decoded.dead[1], (2, "column t: expected the event time, found null".into()));
}

#[test]
fn schema_and_refusals() {
    let columns = [Column { nullable: false, ..column("a", T::Uuid) }, column("b", T::List(Box::new(T::Json))), column("c", T::Bool)];
    let decoded = JsonDecoder::new(&columns, &[2, 0, 1], None, 512).unwrap().decode(&raw(&[]));
    assert_eq!(decoded.batch.schema(), schema(&columns, &[2, 0, 1]));
    assert_eq!(*decoded.batch.schema().field(1), T::Uuid.field("a", false));
    let refused = |ty: ColumnType, from: From| JsonDecoder::new(&[Column { from, ..column("v", ty) }], &[0], None, 512).err().unwrap().to_string();
    let path = From::Path(vec![]);
    assert_eq!(refused(T::Int64, From::Partition), "column v: int64 cannot be the type of _partition, expected int32");
    assert!(refused(T::List(Box::new(T::Decimal(39, 0))), path.clone()).contains("decimal(39,0)"));
    assert!(refused(T::Decimal(2, 3), path.clone()).contains("decimal(2,3)"));
    assert!(refused(T::Map(Box::new(T::Bool), Box::new(T::Bool)), path).contains("found bool"));
    assert!(JsonDecoder::new(&columns, &[3], None, 512).is_err());
    assert!(JsonDecoder::new(&columns, &[0], Some(3), 512).is_err());
}
