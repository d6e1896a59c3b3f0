//! What SQL functions do with rows that nobody thought of when they were planned.

use std::fs;

use crate::support::millpond::Pond;
use serde_json::json;

const SOURCE: &str = "
pipeline: odd
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, u: string, w: int64, d: \"decimal(12,2)\", at: timestamp, user-id: string not null, uid: uuid}
    watermark: {column: at}
lake: {root: ./lake}
tables:
";

const EVENTS: &str = r#"{"id":1,"u":"a","w":1,"d":"10.25","at":"2026-01-31T10:00:00Z","user-id":"x","uid":"550e8400-e29b-41d4-a716-446655440000"}
{"id":2,"u":"a","w":-5,"d":"1.19","at":"2026-01-31T10:01:00Z","user-id":"y","uid":"550e8400-e29b-41d4-a716-446655440001"}
{"id":3,"u":"b","w":2,"d":"0.33","at":"2026-01-31T12:02:00Z","user-id":"x","uid":"550e8400-e29b-41d4-a716-446655440002"}
"#;

fn pond(tables: &str) -> Pond {
    let pond = Pond::new(&format!("{SOURCE}{tables}"));
    fs::write(pond.path().join("events.ndjson"), EVENTS).unwrap();
    pond
}

/// A function may give a decimal of other digits than it was planned to, or panic: neither ends a pipeline.
#[test]
fn decimals_are_of_the_planned_digits_and_a_function_that_panics_fails_for_its_rows_alone() {
    let pond = pond(
        "  rounded: {sql: \"select window_start, u, round(sum(d), 1) as s, round(avg(d), 2) as m from tumble(events, interval '1 hour') group by window_start, u having round(sum(d), 1) > 1\", key: [window_start, u]}
  plain: {sql: \"select id, round(d, 1) * 2 as r, overlay(u placing 'x' from w) as o from events\"}
  above: {sql: \"select window_start, u, overlay(u placing 'x' from sum(w)) as o from tumble(events, interval '1 hour') group by window_start, u\", key: [window_start, u]}
",
    );
    let ran = pond.run(&["--final"]);
    assert_eq!(ran["records"], 3, "{ran}");
    for format in ["iceberg", "delta"] {
        assert_eq!(pond.query_in(format, "select u, cast(s as double) as s, cast(m as double) as m from rounded"), [json!({"u": "a", "s": 11.4, "m": 5.72})], "{format}");
        assert_eq!(pond.query_in(format, "select id, cast(r as double) as r, o from plain order by id"), [json!({"id": 1, "r": 20.6, "o": "x"}), json!({"id": 3, "r": 0.6, "o": "x"})], "{format}");
        assert_eq!(pond.query_in(format, "select u, o from above order by u"), [json!({"u": "a", "o": null}), json!({"u": "b", "o": "x"})], "{format}");
        let dead = pond.query_in(format, "select _table, _offset, _reason from events__dead order by _table");
        assert_eq!(dead.len(), 2, "{dead:?}");
        assert_eq!((&dead[0]["_table"], &dead[1]["_table"], &dead[1]["_offset"]), (&json!("above"), &json!("plain"), &json!(1)), "{dead:?}");
        assert!(dead.iter().all(|d| d["_reason"].as_str().unwrap().contains("a function of the SQL cannot compute this")), "{dead:?}");
    }
    pond.assert_proven();
}

/// Manifests are Avro, and Avro names are letters, digits and `_`.
#[test]
fn a_column_of_any_name_partitions_a_table_and_its_rows_are_corrected() {
    let pond = pond(
        "  parted: {sql: \"select window_start, \\\"user-id\\\", count(*) as n from tumble(events, interval '1 hour') group by window_start, \\\"user-id\\\"\", key: [window_start, user-id], allowed_lateness: 5h, partition_by: [user-id]}\n",
    );
    pond.until_end();
    let later = r#"{"id":4,"u":"a","w":1,"d":"5.00","at":"2026-01-31T10:05:00Z","user-id":"x","uid":"550e8400-e29b-41d4-a716-446655440003"}"#;
    fs::write(pond.path().join("events.ndjson"), format!("{EVENTS}{later}\n")).unwrap();
    pond.run(&["--final"]);
    for format in ["iceberg", "delta"] {
        let found = pond.query_in(format, "select \"user-id\" as u, n from parted order by window_start, u");
        assert_eq!(found, [json!({"u": "x", "n": 2}), json!({"u": "y", "n": 1}), json!({"u": "x", "n": 1})], "{format}");
    }
    pond.assert_proven();
}

/// A uuid is 16 bytes to most functions; what people do with one works, whatever computes it.
#[test]
fn uuids_are_found_by_their_text_and_handed_on() {
    let pond = pond(
        "  one: {sql: \"select id, uid, cast(uid as varchar) as t, coalesce(uid, uid) as c from events where uid = '550E8400-e29b-41d4-a716-446655440001' or uid in ('550e8400-e29b-41d4-a716-446655440002')\"}
  most: {sql: \"select window_start, u, max(uid) as m, min(cast(uid as varchar)) as t, count(distinct uid) as n from tumble(events, interval '1 day') group by window_start, u\", key: [window_start, u]}
  by_id: {sql: \"select window_start, uid, count(*) as n from tumble(events, interval '1 day') group by window_start, uid having uid <> '550e8400-e29b-41d4-a716-446655440000'\", key: [window_start, uid]}
",
    );
    pond.run(&["--final"]);
    let id = |n: u32| format!("550e8400-e29b-41d4-a716-44665544000{n}");
    for format in ["iceberg", "delta"] {
        let rows: Vec<_> = [1, 2].map(|n| json!({"id": n + 1, "uid": id(n), "t": id(n), "c": id(n)})).into();
        assert_eq!(pond.query_in(format, "select * from one order by id"), rows, "{format}");
        let most = [json!({"u": "a", "m": id(1), "t": id(0), "n": 2}), json!({"u": "b", "m": id(2), "t": id(2), "n": 1})];
        assert_eq!(pond.query_in(format, "select u, m, t, n from most order by u"), most, "{format}");
        assert_eq!(pond.query_in(format, "select uid, n from by_id order by uid"), [json!({"uid": id(1), "n": 1}), json!({"uid": id(2), "n": 1})], "{format}");
        let asked = format!("select cast(uid as varchar) as t from one join by_id using (uid) where by_id.uid = '{}'", id(1).to_uppercase());
        assert_eq!(pond.query_in(format, &asked.replace("cast(uid", "cast(one.uid")), [json!({"t": id(1)})], "{format}");
    }
    let wrong = pond.millpond(&["query", "pipeline.yaml", "select id from one where uid = 'seven'"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("'seven' is no uuid"), "{wrong:?}");
    pond.assert_proven();
}

#[test]
fn a_column_of_two_words_partitions_an_iceberg_table() {
    let pond = pond("  t: {sql: 'select id, u as \"the u\" from events', formats: iceberg, partition_by: ['\"the u\"']}\n");
    pond.until_end();
    assert_eq!(pond.query("select id from t where \"the u\" = 'b'"), [json!({"id": 3})]);
    pond.assert_proven();
}

/// Memory that cannot be had would end the process: such a row is a dead letter.
#[test]
fn a_row_that_asks_for_too_much_is_a_dead_letter() {
    let pond = pond("  much: {sql: \"select id, length(repeat(u, case when w = 1 then 9223372036854775807 else w end)) as n from events\"}\n");
    pond.until_end();
    assert_eq!(pond.query("select id, n from much order by id"), [json!({"id": 2, "n": 0}), json!({"id": 3, "n": 2})]);
    let dead = pond.query("select _offset, _reason from events__dead");
    assert!(dead.len() == 1 && dead[0]["_reason"].as_str().unwrap().contains("would make more than"), "{dead:?}");
    pond.assert_proven();
}

#[test]
fn what_cannot_be_computed_for_any_row_is_refused_by_validate() {
    for (table, why) in [
        ("by_id: {sql: \"select id, uid from events\", partition_by: [uid]}", "declare the column as string"),
        ("by_user: {sql: \"select window_start, u, count(*) as n from tumble(events, interval '1 hour') group by window_start, u\", key: [window_start, u], partition_by: [u]}", "declare the column `not null`"),
        ("ones: {sql: \"select window_start, count(distinct *) as n from tumble(events, interval '1 hour') group by window_start\"}", "name a column"),
        ("far: {sql: \"select id, overlay('abc' placing 'x' from -100) as o from events\"}", "cannot compute this"),
    ] {
        let pond = pond(&format!("  {table}\n"));
        for args in [&["validate", "pipeline.yaml", "--offline"][..], &["validate", "pipeline.yaml"], &["run", "pipeline.yaml", "--until-end"]] {
            let said = pond.millpond(args);
            assert_eq!(said.code, 78, "{args:?} {table}: {said:?}");
            assert!(said.stderr.contains(why) && said.stderr.contains('^'), "{args:?} {table}: {said:?}");
            assert!(!said.stderr.contains("panicked"), "{said:?}");
        }
    }
}

/// `date_trunc` counts in nanoseconds, which wrap in the year 2262: dates that stand for "never" lie beyond.
#[test]
fn a_time_that_nanoseconds_do_not_hold_is_truncated_to_no_other() {
    let pond = pond("  days: {sql: \"select id, date_trunc('day', at) as day from events\"}\n");
    let far = |id: i64, at: &str| format!(r#"{{"id":{id},"u":"a","at":"{at}","user-id":"x"}}"#) + "\n";
    fs::write(pond.path().join("events.ndjson"), far(1, "2261-12-31T10:00:00Z") + &far(2, "9999-12-31T00:00:00Z") + &far(3, "0001-01-01T00:00:00Z")).unwrap();
    pond.until_end();
    assert_eq!(pond.query("select id, day from days"), [json!({"id": 1, "day": "2261-12-31T00:00:00Z"})]);
    let dead = pond.query("select _offset, _reason from events__dead order by _offset");
    assert!(dead.len() == 2 && dead[0]["_reason"].as_str().unwrap().contains("found 9999-12-31"), "{dead:?}");
    pond.assert_proven();
    let asked = pond.millpond(&["query", "pipeline.yaml", "select date_trunc('day', timestamp '9999-12-31')"]);
    assert!(asked.code != 0 && !asked.stdout.contains("1816"), "{asked:?}");
}

/// To Delta an empty partition value is null: in a column that cannot be null it stays what it was, and one row, after its index was
/// lost, too.
#[test]
fn an_empty_text_that_partitions_a_table_is_one_key() {
    let pond = pond(
        "  by_user: {sql: \"select window_start, \\\"user-id\\\" as u, count(*) as n from tumble(events, interval '1 hour') group by window_start, \\\"user-id\\\"\", key: [window_start, u], allowed_lateness: 5h, partition_by: [u]}
",
    );
    let events = pond.path().join("events.ndjson");
    let line = |id: i64, u: &str| format!(r#"{{"id":{id},"u":"a","at":"2026-01-31T10:05:00Z","user-id":"{u}"}}"#) + "\n";
    let mut text = format!("{EVENTS}{}", line(4, ""));
    for turn in 0..3i64 {
        fs::write(&events, &text).unwrap();
        pond.run(&["--final"]);
        for format in ["iceberg", "delta"] {
            let found = pond.query_in(format, "select u, n from by_user where u = ''");
            assert_eq!(found, [json!({"u": "", "n": turn + 1})], "{format}, turn {turn}");
        }
        pond.assert_proven();
        text += &line(5 + turn, "");
        if turn == 1 {
            fs::remove_dir_all(pond.path().join("lake/_millpond/odd/scratch")).unwrap();
        }
    }
}
