//! Sums of floats depend on the order of addition: what that order can do is no difference, and anything more is one.

use super::*;
use arrow::array::Float64Array;
use arrow::datatypes::Float64Type;

fn yaml(dir: &Path) -> String {
    format!(
        r#"
pipeline: proof
sources:
  events:
    file: "{}/data/*.ndjson"
    format: json
    columns: {{id: int64, user_id: string, event_time: timestamp, f: float64, g: float32}}
    watermark: {{column: event_time, delay: 1m, idle_after: never}}
tables:
  money:
    sql: |
      select window_start, user_id, sum(f) as total, avg(f) as mean, stddev(f) as spread, var_pop(f) as var, sum(g) as light,
        sum(f) / count(*) as each, round(sum(f), 3) as rounded, cast(sum(f) as varchar) as words, sum(f) > 0 as won, max(f) as top, 1 / sum(f) as odd
      from tumble(events, interval '1 hour') group by window_start, user_id
    key: [window_start, user_id]
    allowed_lateness: 5h
  winners:
    sql: select window_start, user_id, sum(f) as total from tumble(events, interval '1 hour') group by window_start, user_id having sum(f) > 0
    key: [window_start, user_id]
    allowed_lateness: 5h
  balances:
    sql: |
      select window_start, user_id, sum(f) as total, count(*) / nullif(sum(f), 0) as share, sum(f) * avg(f) as square, case when sum(f) = 0 then 'even' else 'odd' end as word
      from tumble(events, interval '1 hour') group by window_start, user_id having sum(f) <> 0 or avg(f) <> 0
    key: [window_start, user_id]
    allowed_lateness: 5h
  winners_log:
    sql: select window_start, user_id, sum(f) as total, count(*) as n from tumble(events, interval '1 hour') group by window_start, user_id having sum(f) > 0
    allowed_lateness: 5h
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
"#,
        dir.display()
    )
}

/// Gains and losses that cancel but for their roundings, in runs of their own.
fn fill(pond: &Pond) {
    let mut seed = 11u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut values: Vec<f64> = (0..300).map(|n| (random() - 0.5) * 10f64.powi(n % 13)).collect();
    values.extend(values.clone().iter().map(|v| -v));
    for i in (1..values.len()).rev() {
        values.swap(i, (random() * (i + 1) as f64) as usize);
    }
    let line = |id: usize, user: &str, minute: usize, f: f64| {
        format!(r#"{{"id":{id},"user_id":"{user}","event_time":"2026-01-31T{:02}:{:02}:00Z","f":{f:e},"g":{}}}"#, 10 + minute / 60, minute % 60, f / 3.0)
    };
    for (run, part) in values.chunks(120).enumerate() {
        let mut lines = vec![];
        for (n, f) in part.iter().enumerate() {
            lines.push(line(n, "even", n % 60, *f));
            // Cents that are nothing together, or next to nothing.
            let cents = [[0.1, 0.2, -0.3], [-0.4, 0.1, 0.3], [0.7, -0.1, -0.6]][n % 3];
            lines.push(line(n, &format!("cents{}", n / 3 % 40), n % 60, cents[run % 3]));
            lines.push(line(n, "plus", n % 60, f + 1e5));
            // The window is shown from the first run on, and corrected by every other.
            lines.push(line(n, "clock", 60 + run * 20 + n % 20, 1.0));
        }
        append(pond, 0, &lines);
        pond.until_end();
    }
}

#[test]
fn what_the_order_of_addition_does_to_floats_is_no_difference() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path()));
    fill(&pond);
    assert!(pond.number("select count(*) as n from winners_log where _op = 'retract'") > 0);
    let mut site = Site::over(pond, TableFormatKind::Iceberg);
    let edit = |s: &Site, table: &str, column: &str, by: &dyn Fn(f64) -> f64| {
        let path = s.live(table).pop().unwrap();
        edit_rows(&path, |batch| {
            let users = arrow::compute::cast(batch.column_by_name("user_id").unwrap(), &DataType::Utf8).unwrap();
            let at = batch.schema().index_of(column).unwrap();
            let old = batch.column(at).as_primitive::<Float64Type>();
            let each = (0..old.len()).map(|i| if users.as_string::<i32>().value(i) == "plus" { by(old.value(i)) } else { old.value(i) });
            let mut columns = batch.columns().to_vec();
            columns[at] = Arc::new(Float64Array::from_iter_values(each));
            RecordBatch::try_new(batch.schema(), columns).unwrap()
        });
    };
    for column in ["total", "mean", "each", "spread", "var", "odd"] {
        site.plant(&format!("{column} a millionth off"), &["row-different"], |s| edit(s, "money", column, &|v| v * (1.0 + 1e-6)));
    }
    site.plant("the largest one off in its last bit", &["row-different"], |s| edit(s, "money", "top", &|v| f64::from_bits(v.to_bits() + 1)));
    site.plant("a total of the log off", &["row-missing", "row-extra"], |s| edit(s, "winners_log", "total", &|v| v * 1.001));
    site.done(8);
}

/// The least and greatest of floats with infinities and NaN, and spreads beyond all floats.
#[test]
fn what_no_number_can_be_is_judged_as_it_is_written() {
    let pond = Pond::new("");
    pond.rewrite(&format!(
        r#"
pipeline: proof
sources:
  events:
    file: "{}/data/*.ndjson"
    columns: {{user_id: string, event_time: timestamp, x: float64, y: float64, g: float32}}
    watermark: {{column: event_time, delay: 1m, idle_after: never}}
tables:
  ends:
    sql: |
      select window_start, user_id, min(x / y) as least, max(x / y) as most, min(g) as light, max(-g) as heavy,
        var_pop(x / y) as odd, var_pop(y) as wide, stddev(y) as root, max(x / y) > 1 as above, cast(min(x / y) as varchar) as word
      from tumble(events, interval '1 hour') group by window_start, user_id
    key: [window_start, user_id]
    allowed_lateness: 5h
  ends_log:
    sql: select window_start, user_id, min(x / y) as least, max(x / y) as most, var_pop(y) as wide from tumble(events, interval '1 hour') group by window_start, user_id
    allowed_lateness: 5h
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
"#,
        pond.path().display()
    ));
    // Of each user the rows of two runs.
    let users: [(&str, &[(&str, &str)], &[(&str, &str)]); 8] = [
        ("nan first", &[("0", "0")], &[("3", "2")]),
        ("nan last", &[("3", "2")], &[("0", "0")]),
        ("nan", &[("0", "0"), ("0", "-0.0")], &[("0", "0")]),
        ("below", &[("-1", "0")], &[("-1", "0")]),
        ("below nan", &[("-1", "0"), ("0", "0")], &[("-7", "2")]),
        ("above", &[("1", "0")], &[("5", "2"), ("-5", "-0.0")]),
        ("wide", &[("0", "1e308"), ("-0.0", "1e308")], &[("0", "-1e308")]),
        ("wide too", &[("0", "1e308"), ("0", "-1e308"), ("0", "1")], &[("-0.0", "1e200"), ("0", "5")]),
    ];
    for run in 0..2 {
        let mut lines = vec![];
        for (user, first, second) in users {
            for (x, y) in if run == 0 { first } else { second } {
                lines.push(format!(r#"{{"user_id":"{user}","event_time":"2026-01-31T10:00:00Z","x":{x},"y":{y},"g":0.1}}"#));
            }
        }
        lines.push(format!(r#"{{"user_id":"clock","event_time":"2026-01-31T1{}:30:00Z","x":1,"y":2,"g":0.5}}"#, 2 + run));
        append(&pond, 0, &lines);
        pond.until_end();
    }
    let rows = pond.query("select user_id, least, most, odd, wide, root from ends where user_id <> 'clock' order by user_id");
    let of = |column: &str| rows.iter().map(|r| r[column].to_string().trim_matches('"').to_string()).collect::<Vec<_>>();
    assert_eq!(of("user_id"), ["above", "below", "below nan", "nan", "nan first", "nan last", "wide", "wide too"]);
    assert_eq!(of("least"), ["2.5", "-Infinity", "-Infinity", "NaN", "1.5", "1.5", "-0.0", "-0.0"]);
    assert_eq!(of("most"), ["Infinity", "-Infinity", "NaN", "NaN", "NaN", "NaN", "0.0", "0.0"]);
    assert_eq!(of("odd")[..6], ["NaN"; 6]);
    assert_eq!((of("wide")[6..].to_vec(), of("root")[6..].to_vec()), (vec!["Infinity".to_string(); 2], vec!["Infinity".to_string(); 2]));
    let mut site = Site::over(pond, TableFormatKind::Iceberg);
    let edit = |s: &Site, column: &str, by: &dyn Fn(f64) -> f64| {
        edit_rows(&s.live("ends").pop().unwrap(), |batch| {
            let at = batch.schema().index_of(column).unwrap();
            let each: Float64Array = batch.column(at).as_primitive::<Float64Type>().unary(by);
            let mut columns = batch.columns().to_vec();
            columns[at] = Arc::new(each);
            RecordBatch::try_new(batch.schema(), columns).unwrap()
        });
    };
    site.plant("the lowest number instead of an infinity", &["row-different"], |s| edit(s, "most", &|v| if v == f64::NEG_INFINITY { f64::MIN } else { v }));
    site.plant("a number instead of a NaN", &["row-different"], |s| edit(s, "most", &|v| if v.is_nan() { 1.5 } else { v }));
    site.plant("a spread of values that are no numbers", &["row-different"], |s| edit(s, "odd", &|v| if v.is_nan() { f64::INFINITY } else { v }));
    site.plant("a spread below zero", &["row-different"], |s| edit(s, "wide", &|v| if v.is_infinite() { f64::NEG_INFINITY } else { v }));
    site.done(4);
}
