//! Every type that a column can have, in both formats, as DuckDB, PyIceberg and deltalake read it; and rows that those find
//! by the bounds and partitions that we wrote.

use crate::support::millpond::{Pond, assert_same, reader};
use serde_json::{Value, json};

const PIPELINE: &str = r#"
pipeline: types
sources:
  events:
    file: "*.ndjson"
    format: json
    columns:
      id: int64
      flag: bool
      small: int32
      f: float64
      g: float32
      d: "decimal(38,6)"
      price: "decimal(9,2)"
      s: string
      b: binary
      day: date
      clock: time
      at: timestamp
      wall: timestamp_local
      u: uuid
      tags: "list<string>"
      point: "struct<x: int64, name: string>"
      counts: "map<string, int64>"
      doc: json
tables:
  everything:
    # JSON has no word for these.
    sql: >
      select id, flag, small,
        case id % 10 when 0 then cast('NaN' as double) when 3 then cast('Infinity' as double) when 4 then cast('-Infinity' as double) else f end as f,
        g, d, price, s, b, day, clock, at, wall, u, tags, point, counts, doc
      from events
  monthly:
    sql: select id, at, flag from events
    partition_by: [month(at), flag]
lake: {root: ./lake}
"#;

/// What bounds have been wrong about: long strings, characters at the ends of the planes, zeros, the ends of a decimal's range.
fn strings() -> [String; 5] {
    ["ä".repeat(100), format!("{}z", "z".repeat(200)), "\u{10FFFF}".repeat(40), "short".into(), format!("{}\u{D7FF}q", "k".repeat(15))]
}

const DECIMALS: [&str; 5] = ["-0.000001", "0.000000", "99999999999999999999999999999999.999999", "-99999999999999999999999999999999.999999", "12345678901234500000.000001"];

/// Row 5 of each ten has nothing but an id and a time.
fn record(id: usize) -> Value {
    // A row a month, over the turn of two years, the last microsecond of each.
    let at = format!("202{}-{:02}-28T23:59:59.999999Z", 4 + id / 12, id % 12 + 1);
    let nth = id % 10;
    if nth == 5 {
        return json!({"id": id, "at": at});
    }
    let raw = [&b""[..], b"\xff", b"\xff\xff", b"plain", b"\x00"][nth];
    let (small, f) = ([i32::MIN, -1, 0, 1, i32::MAX][nth], [1.5, -0.0, 0.0, 2.5, 3.5][nth]);
    json!({
        "id": id, "flag": nth % 2 == 0, "small": small, "f": f, "g": 0.25 * nth as f64,
        "d": DECIMALS[nth], "price": format!("-{nth}.50"), "s": strings()[nth], "b": base64(raw),
        "day": format!("19{}9-12-31", 5 + nth), "clock": format!("23:59:5{nth}.00000{nth}"), "at": at, "wall": format!("2024-02-29 00:00:00.00{nth}"),
        "u": format!("80000000-0000-0000-0000-00000000000{nth}"), "tags": [format!("t{nth}"), Value::Null], "point": {"x": nth, "name": "n"},
        "counts": {"k": nth}, "doc": {"n": [nth, 1.0]},
    })
}

fn base64(raw: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(raw)
}

/// Runs until `ids`, a file of their own, are in the tables: in files of their own there, too.
fn arrive(pond: &Pond, ids: impl Iterator<Item = usize> + Clone) {
    let lines: String = ids.clone().map(|id| record(id).to_string() + "\n").collect();
    std::fs::write(pond.path().join(format!("{:03}.ndjson", ids.clone().next().unwrap())), lines).unwrap();
    assert_eq!(pond.until_end()["dead"], 0);
}

#[test]
fn readers_agree_on_every_type_and_find_each_row_by_its_bounds() {
    let pond = Pond::new(PIPELINE);
    // Files of one row, whose bounds are that row, and one of all: bounds of many.
    for id in 0..6 {
        arrive(&pond, id..id + 1);
    }
    arrive(&pond, 10..16);
    let rows = pond.rows("types", "everything");
    assert_eq!(rows.len(), 12);
    for row in &rows {
        let id = row["id"].as_u64().unwrap() as usize;
        assert_same(std::slice::from_ref(row), &[as_read(id)], &format!("row {id}"));
    }
    assert_eq!(pond.rows("types", "monthly").len(), 12);

    let (lake, text) = (pond.path().join("lake"), |p: std::path::PathBuf| p.to_str().unwrap().to_string());
    let (iceberg, delta) = (|t: &str| text(lake.join("iceberg/types").join(t)), |t: &str| text(lake.join("delta/types").join(t)));
    // What finds rows, in SQL that DuckDB and DataFusion (in deltalake) read alike, and the rows.
    let mut filters: Vec<(String, Vec<i64>)> = vec![
        ("f = 0.0".into(), vec![1, 2, 11, 12]),
        ("f >= 0.0 and f < 1.0".into(), vec![1, 2, 11, 12]),
        ("f = cast('Infinity' as double)".into(), vec![3, 13]),
        ("f = cast('-Infinity' as double)".into(), vec![4, 14]),
        ("f > 1e300".into(), vec![0, 3, 10, 13]),
        ("f = cast('NaN' as double)".into(), vec![0, 10]),
        ("small = -2147483648".into(), vec![0, 10]),
        ("flag is null".into(), vec![5, 15]),
        ("price = cast('-3.50' as decimal(9,2))".into(), vec![3, 13]),
        ("day = date '1999-12-31'".into(), vec![4, 14]),
        ("\"at\" = timestamp '2024-03-28 23:59:59.999999'".into(), vec![2]),
        ("\"at\" > timestamp '2024-12-28 23:59:59.999998' and \"at\" < timestamp '2025-01-28 23:59:59.999999'".into(), vec![11]),
        ("wall = timestamp '2024-02-29 00:00:00.001'".into(), vec![1, 11]),
        ("s is null".into(), vec![5, 15]),
    ];
    for nth in 0..5 {
        filters.push((format!("s = '{}'", strings()[nth]), vec![nth as i64, nth as i64 + 10]));
        filters.push((format!("d = cast('{}' as decimal(38,6))", DECIMALS[nth]), vec![nth as i64, nth as i64 + 10]));
    }
    // The ids that each filter finds; all filters of a reader at once, for its start takes longer than they do.
    let found = |by: &str, table: String, filters: &[&str]| {
        let ids = reader(&[&["ids", by, &table], filters].concat());
        ids.iter().map(|ids| ids.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()).collect::<Vec<Vec<i64>>>()
    };
    let texts: Vec<&str> = filters.iter().map(|(f, _)| f.as_str()).collect();
    for (by, table) in [("duckdb-iceberg", iceberg("everything")), ("duckdb-delta", delta("everything")), ("deltalake", delta("everything"))] {
        for ((filter, ids), found) in filters.iter().zip(found(by, table, &texts)) {
            assert_eq!(&found, ids, "{by}: {filter}");
        }
    }
    // They do leave out files by what we wrote: of seven files two can hold it.
    let left = |column: &str, value: &str| reader(&["deltalake-files", &delta("everything"), column, value])[0].clone();
    assert_eq!(left("id", "2"), json!({"files": 7, "left": 1}));
    for (column, value) in [("s", "short"), ("small", "1"), ("g", "0.75"), ("clock", "23:59:53.000003")] {
        assert_eq!(left(column, value), json!({"files": 7, "left": 2}), "{column}");
    }
    // By month, where Iceberg partitions.
    let catalog = text(lake.join("catalog.db"));
    let (late, early) = ("\"at\" >= timestamp '2025-01-01 00:00:00'", "\"at\" < timestamp '2024-02-01 00:00:00' and flag");
    for (by, table) in [("duckdb-iceberg", iceberg("monthly")), ("duckdb-delta", delta("monthly")), ("deltalake", delta("monthly"))] {
        assert_eq!(found(by, table, &[late, early]), [vec![12, 13, 14, 15], vec![0]], "{by}");
    }
    for (filter, ids) in [("at >= '2025-01-01T00:00:00+00:00'", 12..16), ("at < '2024-02-01T00:00:00+00:00' and flag = true", 0..1)] {
        let mut rows: Vec<i64> = reader(&["pyiceberg", &catalog, "types.monthly", filter]).iter().map(|r| r["id"].as_i64().unwrap()).collect();
        rows.sort();
        assert_eq!(rows, ids.collect::<Vec<i64>>(), "PyIceberg: {filter}");
    }
    let months = reader(&["pyiceberg-partitions", &catalog, "types.monthly"]);
    let months: Vec<(&Value, &Value)> = months.iter().map(|r| (&r["at_month"], &r["records"])).collect();
    assert_eq!(months.len(), 12, "{months:?}");
    // Months since 1970.
    assert!(months.iter().any(|(m, n)| **m == 12 * 54 && **n == 1) && months.iter().any(|(m, _)| **m == 12 * 55 + 3), "{months:?}");
    pond.assert_proven();
}

/// The row as `tests/it/readers/read.py` prints it.
fn as_read(id: usize) -> Value {
    let mut row = record(id);
    let nth = id % 10;
    let row_of = row.as_object_mut().unwrap();
    row_of["at"] = json!(row_of["at"].as_str().unwrap().replace('Z', "+00:00"));
    if nth == 5 {
        for name in ["flag", "small", "f", "g", "d", "price", "s", "b", "day", "clock", "wall", "u", "tags", "point", "counts", "doc"] {
            row_of.insert(name.into(), Value::Null);
        }
        return row;
    }
    row_of["f"] = [json!("NaN"), json!(-0.0), json!(0.0), json!("Infinity"), json!("-Infinity")][nth].clone();
    row_of["wall"] = json!(format!("2024-02-29T00:00:00.00{nth}000"));
    row_of["doc"] = json!(row_of["doc"].to_string());
    row
}
