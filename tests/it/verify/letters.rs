//! Late and dead rows: reasons, raw bytes and origin are compared, and letters of values that did not fit are there.

use super::*;
use arrow::array::{BinaryArray, TimestampMicrosecondArray, new_null_array};

/// The column in this place by name, made of itself.
fn column(batch: RecordBatch, name: &str, make: impl Fn(&ArrayRef) -> ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).unwrap();
    let mut columns = batch.columns().to_vec();
    columns[at] = arrow::compute::cast(&make(&columns[at]), columns[at].data_type()).unwrap();
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

fn bytes(array: &ArrayRef) -> Vec<Option<Vec<u8>>> {
    let array = arrow::compute::cast(array, &DataType::Binary).unwrap();
    array.as_binary::<i32>().iter().map(|v| v.map(<[u8]>::to_vec)).collect()
}

fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = arrow::compute::cast(batch.column_by_name(name).unwrap(), &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|v| v.unwrap_or_default().to_string()).collect()
}

/// The file of a dead-letter table with such a reason.
fn with_reason(site: &Site, what: &str) -> PathBuf {
    site.live("events__dead").into_iter().find(|p| texts(&read_rows(p), "_reason").iter().any(|r| r.contains(what))).unwrap()
}

fn without(batch: RecordBatch, what: &str) -> RecordBatch {
    let reasons = texts(&batch, "_reason");
    let kept: Vec<u32> = (0..batch.num_rows() as u32).filter(|r| !reasons[*r as usize].contains(what)).collect();
    take_record_batch(&batch, &UInt32Array::from(kept)).unwrap()
}

#[test]
fn reasons_raw_bytes_and_letters_of_what_did_not_fit_are_compared() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s").replace(
        "  plain:\n",
        "  wide:\n    sql: select window_start, user_id, id % 2 as odd, sum(id * 1) as total, count(*) as n from tumble(events, interval '5 minutes') group by window_start, user_id, id % 2\n    key: [window_start, user_id, odd]\n    formats: [iceberg, delta]\n  plain:\n",
    ));
    let huge = |n: i64| event(i64::MAX - n * 2, "max", 12, n, 100);
    append(&pond, 0, &(0..3).map(huge).collect::<Vec<_>>());
    fill(&pond);
    assert!(pond.number("select count(*) as n from wide where total is null") > 0);
    assert!(pond.number("select count(*) as n from events__dead where _partition is null") > 0);
    let mut site = Site::over(pond, TableFormatKind::Iceberg);
    for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
        site.format = format;
        let dead = |s: &Site| s.live("events__dead").into_iter().find(|p| read_rows(p).column_by_name("_partition").is_some_and(|c| c.null_count() == 0)).unwrap();
        let mut plant = |what: &str, kind: &'static str, damage: &dyn Fn(&Site)| site.plant(&format!("{format}: {what}"), &[kind], damage);
        let letter = "does not fit";
        plant("another reason of what could not be decoded", "row-different", &|s| {
            edit_rows(&dead(s), |b| column(b, "_reason", |c| Arc::new(StringArray::from(vec!["nobody knows"; c.len()]))));
        });
        plant("another reason of what could not be computed", "row-different", &|s| edit_rows(&with_reason(s, "divide by zero"), |b| in_text(b, "_reason", "divide by zero", "divide by one")));
        plant("another reason of a late row", "row-different", &|s| edit_rows(&s.live("spend__late")[0], |b| in_text(b, "_reason", "2026", "2027")));
        plant("other bytes of a dead record", "row-different", &|s| {
            edit_rows(&dead(s), |b| column(b, "_value", |c| {
                Arc::new(BinaryArray::from_iter(bytes(c).into_iter().map(|v| v.map(|mut v| { v.reverse(); v }))))
            }));
        });
        plant("a key that the record had not", "row-different", &|s| edit_rows(&dead(s), |b| column(b, "_key", |c| Arc::new(BinaryArray::from_iter((0..c.len()).map(|_| Some(b"key")))))));
        plant("a timestamp that the record had not", "row-different", &|s| {
            edit_rows(&dead(s), |b| column(b, "_timestamp", |c| Arc::new(TimestampMicrosecondArray::from(vec![7; c.len()]).with_timezone("UTC"))));
        });
        plant("headers that are gone", "row-different", &|s| edit_rows(&dead(s), |b| column(b, "_headers", |c| new_null_array(c.data_type(), c.len()))));
        plant("no letter of a sum that did not fit", "overflow-missing", &|s| edit_rows(&with_reason(s, letter), |b| without(b, letter)));
        plant("a letter of another key", "overflow-missing", &|s| edit_rows(&with_reason(s, letter), |b| in_text(b, "_reason", "=max", "=min")));
        plant("a letter of a window without rows", "overflow-extra", &|s| edit_rows(&with_reason(s, letter), |b| in_text(b, "_reason", "window 2026", "window 2016")));
    }
    site.done(20);
}

/// Logs did not always hold the limits: such a log is judged by those of the next plan, and goes on with its own.
#[test]
fn a_log_without_limits_is_right_and_goes_on() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s").replace("    format: json\n", "    format: json\n    max_depth: 3\n"));
    let nested = |id: usize| format!(r#"{{"id":{id},"user_id":"deep","event_time":"2026-01-31T10:00:00Z","more":[[[[1]]]]}}"#);
    append(&pond, 0, &[nested(1), event(2, "ann", 1, 0, 100)]);
    pond.until_end();
    let log = pond.path().join("lake/_millpond/proof/log");
    for path in files(&log) {
        edit_json(&path, |entry| {
            entry["version"] = json!(2);
            for plan in ["/body/plan", "/body/checkpoint/ledger/plan"] {
                let sources = entry.pointer_mut(&format!("{plan}/sources")).and_then(Value::as_object_mut);
                sources.into_iter().flatten().for_each(|(_, s)| drop(s.as_object_mut().unwrap().remove("limits").unwrap()));
            }
        });
    }
    assert!(!std::fs::read_to_string(&files(&log)[0]).unwrap().contains("limits"));
    assert_right(&judge(&pond, deep()));
    append(&pond, 0, &[nested(3), event(4, "bob", 90, 0, 100)]);
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert!(ended.code == 0 && ended.stderr.contains("source events: the limits of its records are kept in the log from here on"), "{ended:?}");
    assert!(files(&log).iter().any(|entry| std::fs::read_to_string(entry).unwrap().contains("\"limits\":{\"max_record_bytes\":8388608,\"max_depth\":3")));
    assert_eq!(pond.number("select count(*) as n from events__dead"), 2);
    assert_right(&judge(&pond, deep()));
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert!(ended.code == 0 && !ended.stderr.contains("limits"), "said once: {ended:?}");
}

/// What a record may be is in the plan: each is judged by the limits of its time.
#[test]
fn limits_that_change_are_those_of_their_time() {
    let pond = Pond::new("");
    let with = |limits: &str| yaml(pond.path(), "[iceberg, delta]", "5s").replace("    format: json\n", &format!("    format: json\n{limits}"));
    let line = |id: usize| {
        let nested = format!(r#"{{"id":{id},"user_id":"deep","event_time":"2026-01-31T10:00:00Z","more":[[[[1]]]]}}"#);
        let long = format!(r#"{{"id":{id},"user_id":"long","event_time":"2026-01-31T10:00:00Z","more":"{}"}}"#, "x".repeat(300));
        [nested, long]
    };
    let dead = || pond.number("select count(*) as n from events__dead where _table is null");
    for (turn, (limits, expected)) in [("", 0), ("    max_depth: 3\n    max_record_bytes: 200\n", 2), ("    max_depth: 3\n", 3), ("", 3)].into_iter().enumerate() {
        pond.rewrite(&with(limits));
        append(&pond, 0, &line(turn * 10 + 1));
        // The last one goes back to the first.
        let summary = pond.run(if turn == 3 { &["--accept"] } else { &[] });
        assert_eq!(dead(), expected, "{limits} {summary}");
        assert_right(&judge(&pond, deep()));
    }
    assert_eq!(pond.number("select count(*) as n from events__dead where octet_length(cast(_value as varchar)) > 300"), 1, "its bytes are kept");
}

/// A letter names a key as it is written in its type: a float of 32 bits has no digits more than that.
#[test]
fn a_letter_with_a_key_of_32_bits_is_met() {
    let pond = Pond::new("");
    pond.rewrite(
        "pipeline: proof\nsources:\n  events:\n    file: events.ndjson\n    columns: {at: timestamp, g: float32, f: float64, v: int64}\n    watermark: {column: at}\ntables:\n  \
         lost: {sql: \"select window_start, g, -g as minus, f, sum(v) as total from tumble(events, interval '1 hour') group by window_start, g, -g, f\", key: [window_start, g, minus, f]}\n\
         lake: {root: ./lake}\n",
    );
    let line = |minute: &str, v: i64| format!(r#"{{"at":"2026-01-31T{minute}:00Z","g":0.1,"f":0.1,"v":{v}}}"#);
    std::fs::write(pond.path().join("events.ndjson"), [line("10:00", i64::MAX), line("10:01", i64::MAX), line("12:00", 1)].join("\n") + "\n").unwrap();
    pond.until_end();
    assert_eq!(pond.number("select count(*) as n from events__dead where _reason like '%g=0.1,%f=0.1: %'"), 1);
    assert_right(&judge(&pond, deep()));
}
