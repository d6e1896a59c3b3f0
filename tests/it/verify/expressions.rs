//! Expressions that DataFusion takes otherwise as one query than row by row.

use super::*;

fn pond(tables: &str, lines: &[&str]) -> Pond {
    let pond = Pond::new("");
    let data = pond.path().join("in.ndjson");
    std::fs::write(&data, lines.join("\n") + "\n").unwrap();
    pond.rewrite(&format!(
        "pipeline: proof\nsources:\n  e:\n    file: \"{}\"\n    columns: {{ts: timestamp, v: int64, s: string}}\n    watermark: {{column: ts}}\ntables:\n{tables}lake: {{root: ./lake, iceberg: {{catalog: sql, uri: \"sqlite://./lake/catalog.db\"}}}}\n",
        data.display()
    ));
    pond
}

/// A column and a cast of it have one name in a plan: both are in the key, each with its own values.
#[test]
fn a_column_and_a_cast_of_it_are_two_keys() {
    let table = "  w:\n    sql: select window_start, ts, cast(ts as date) as d, v, cast(v as varchar) as t, count(*) as n, sum(v) as total from tumble(e, interval '5 minutes') group by window_start, ts, cast(ts as date), v, cast(v as varchar)\n    key: [window_start, ts, d, v, t]\n";
    let pond = pond(table, &[r#"{"ts":"2024-01-01T00:00:00Z","v":1}"#, r#"{"ts":"2024-01-01T00:00:00Z","v":1}"#, r#"{"ts":"2024-01-01T00:00:01Z","v":2}"#]);
    pond.run(&["--final"]);
    assert_eq!(pond.number("select count(*) as n from w where d = date '2024-01-01' and t = cast(v as varchar)"), 2);
    let report = judge(&pond, deep());
    assert_right(&report);
    assert_eq!(report.tables.iter().filter(|t| t.table == "w").map(|t| t.compared).collect::<Vec<_>>(), [Some(2), Some(2)]);
}

/// A row of which an argument cannot be computed is one dead letter, whatever stands beside it; an argument that is
/// computed of some rows alone does not fail for others.
#[test]
fn an_argument_that_fails_for_some_rows_fails_for_those() {
    let lines: Vec<String> = (0..40).map(|n| format!(r#"{{"ts":"2024-01-01T00:00:{n:02}Z","v":{},"s":"{}"}}"#, n % 4, ["abc", "def", "rare"][n % 3])).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let table = |name: &str, value: &str, condition: &str| {
        format!("  {name}:\n    sql: \"select window_start, {value} as q, count(*) as n from tumble(e, interval '5 minutes') {condition} group by window_start\"\n    key: [window_start]\n")
    };
    let tables = [
        table("some", "max(case when s = 'abc' then date_trunc('zzz', ts) else ts end)", ""),
        table("every", "max(date_trunc('zzz', ts))", ""),
        table("nobody", "max(case when s = 'none' then date_trunc('zzz', ts) end)", "where s = 'none'"),
        table("beside", "sum(v) filter (where v <> 0 and 10 / v > 3)", ""),
        table("taken", "max(case when v = 3 then date_trunc('zzz', ts) else ts end)", "where s = 'def'"),
    ];
    let pond = pond(&tables.concat(), &lines);
    pond.run(&["--final"]);
    let dead = |table: &str| pond.number(&format!("select count(*) as n from e__dead where _table = '{table}'"));
    assert_eq!(["some", "every", "nobody", "beside", "taken"].map(dead), [14, 40, 0, 0, 3]);
    assert_eq!(pond.number("select q from beside"), 30);
    assert_right(&judge(&pond, deep()));
}

/// A variable may hold a secret: neither dead letters nor the judge tell it, and the judge knows the letters again when it
/// has changed.
#[test]
fn a_secret_in_the_sql_is_in_no_reason() {
    let tables = "  plain:\n    sql: \"select ts, case when s = 'abc' then date_trunc('${TOK}', ts) end as a, cast(s || '${TOK}' as int) as b from e where s <> 'z'\"\n  w:\n    sql: \"select window_start, max(date_trunc('${TOK}', ts)) as q, count(*) as n from tumble(e, interval '5 minutes') group by window_start having cast(max(s) || '${TOK}' as int) = 1\"\n    key: [window_start]\n";
    let pond = pond(&tables.replace("max(date_trunc('${TOK}', ts))", "max(ts)"), &[r#"{"ts":"2024-01-01T00:00:00Z","v":1,"s":"abc"}"#, r#"{"ts":"2024-01-01T00:00:01Z","v":1,"s":"abd"}"#]);
    let ended = |args: &[&str], secret: &str| {
        let ended = pond.start_with(args, &[("TOK", secret)]).wait();
        let all = format!("{}{}", ended.stdout, ended.stderr).to_lowercase();
        assert!(!all.contains("topsecret"), "{args:?}: {ended:?}");
        ended
    };
    assert_eq!(ended(&["run", "pipeline.yaml", "--until-end", "--final"], "Zq9TopSecretToken").code, 0);
    let reasons = ended(&["query", "pipeline.yaml", "select _table, _reason from e__dead order by _reason", "--json"], "x");
    assert!(reasons.stdout.matches("${TOK}").count() >= 3 && reasons.stdout.lines().count() == 3, "{reasons:?}");
    for args in [&["verify", "pipeline.yaml", "--deep"][..], &["verify", "pipeline.yaml", "--deep", "--json"]] {
        assert_eq!(ended(args, "Zq9TopSecretToken").code, 0);
        // The log has the old one.
        assert_eq!(ended(args, "Zq9OtherSecret").code, 0, "{:?}", ended(args, "Zq9OtherSecret"));
    }
}
