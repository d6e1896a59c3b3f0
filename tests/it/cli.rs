//! What a user meets on the command line: errors with places and ways out, exit codes, JSON, signals.

use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, judged_by_schema};

fn pipeline(brokers: &str, topic: &str) -> String {
    format!(
        "pipeline: lines
sources:
  events:
    kafka: {{brokers: '{brokers}', topic: {topic}, start: earliest}}
    format: json
    columns: {{id: int64, at: timestamp}}
    watermark: {{column: at}}
tables:
  rows: {{sql: \"select id from events\"}}
  minutes:
    sql: \"select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start\"
    key: [window_start]
    allowed_lateness: 1m
lake: {{root: ./lake}}
epoch: {{every: 300ms}}
commit: {{every: 600ms}}
"
    )
}

fn event(id: i64) -> String {
    format!(r#"{{"id":{id},"at":"2026-01-31T10:{:02}:00Z"}}"#, id % 60)
}

#[test]
fn a_typo_is_underlined_and_every_error_comes_at_once() {
    let text = pipeline("localhost:1", "t").replace("allowed_lateness:", "allowed_latenes:").replace("format: json", "format: jsonn");
    let pond = Pond::new(&text);
    let ended = pond.millpond(&["validate", "pipeline.yaml", "--offline"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    for part in ["pipeline.yaml:13:5", "allowed_latenes", "^^^^^^^^^^^^^^^", "allowed_lateness", "pipeline.yaml:5:", "jsonn", "2 problems"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let ended = pond.millpond(&["validate", "pipeline.yaml", "--offline", "--json"]);
    assert_eq!(ended.code, 78);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((answer["ok"].as_bool(), answer["problems"].as_array().map(Vec::len)), (Some(false), Some(2)), "{answer}");
    assert!(answer["notes"].is_array() && answer["problems"][0]["level"] == "error", "{answer}");
    // The same for a run, which starts nothing.
    assert_eq!(pond.millpond(&["run", "pipeline.yaml"]).code, 78);
    assert!(!pond.path().join("lake").exists());

    let pond = Pond::new(&pipeline("localhost:1", "t"));
    assert_eq!(pond.millpond(&["validate", "pipeline.yaml", "--offline"]).code, 0);
}

#[test]
fn wrong_sql_comes_with_the_other_errors() {
    let text = pipeline("localhost:1", "t").replace("allowed_lateness:", "allowed_latenes:").replace("select id from", "select idd from");
    let ended = Pond::new(&text).millpond(&["validate", "pipeline.yaml", "--offline"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    let places: Vec<usize> = ["no column is named idd", "did you mean `id`?", "allowed_latenes", "2 problems"].iter().map(|p| ended.stderr.find(p).unwrap_or_else(|| panic!("{p}: {}", ended.stderr))).collect();
    assert!(places.is_sorted(), "in the order of the file: {}", ended.stderr);
    // Where the source is wrong, its tables are not blamed for it.
    let text = pipeline("localhost:1", "t").replace("id: int64", "id: int46");
    let ended = Pond::new(&text).millpond(&["validate", "pipeline.yaml", "--offline"]);
    assert!(ended.stderr.contains("int46") && ended.stderr.contains("1 problem\n"), "{ended:?}");
    // What no table can be partitioned by is told without a connection.
    let text = pipeline("localhost:1", "t").replace("select id from events\"", "select id from events\", partition_by: [day(id)]");
    let ended = Pond::new(&text).millpond(&["validate", "pipeline.yaml", "--offline"]);
    assert!(ended.code == 78 && ended.stderr.contains("table rows") && ended.stderr.contains("`id`"), "{ended:?}");
}

/// What is wrong with a file: the text that is underlined, what is said of it, and the word that was perhaps meant.
fn told(text: &str) -> Vec<(String, String, Option<String>)> {
    let ended = Pond::new(text).millpond(&["validate", "pipeline.yaml", "--offline", "--json"]);
    assert_eq!(ended.code, 78, "{text}\n{ended:?}");
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    let each = |p: &Value| {
        let (at, length) = (p["column"].as_u64().unwrap() as usize - 1, p["length"].as_u64().unwrap() as usize);
        let marked = p["line_text"].as_str().unwrap().chars().skip(at).take(length).collect();
        (marked, p["message"].as_str().unwrap().to_string(), p["nearest"].as_str().map(String::from))
    };
    answer["problems"].as_array().unwrap().iter().map(each).collect()
}

/// Every error of a file at once, each at the text that is wrong, and none of them twice.
#[test]
fn no_error_hides_another_and_each_is_underlined() {
    let file = |columns: &str, tables: &str| {
        format!(
            "pipeline: p\nsources:\n  events:\n    kafka: {{brokers: 'h:1', topic: t}}\n    columns: {{{columns}}}\n    watermark: {{column: at}}\n\
             tables:\n{tables}\nlake: {{root: ./lake}}\n"
        )
    };
    let columns = "user_id: string, at: timestamp, x: float64, n: int64";
    let sql = |select: &str, more: &str| file(columns, &format!("  t: {{sql: \"{}\"{more}}}", select.replace(" T", " tumble(events, interval '5 minutes')")));
    let by = "from T group by window_start, user_id";
    let several = format!("select window_start, user_id, sum(x) as s {by}");
    type Told<'a> = &'a [(&'a str, &'a str, Option<&'a str>)];
    let cases: Vec<(String, Told<'_>)> = vec![
        (
            sql("select user_id, now() as t, random() as r, uper(user_id) as u, amout from events where nn > 1 and at < current_timestamp", ""),
            &[
                ("now()", "gives another answer", None),
                ("random()", "gives another answer", None),
                ("uper", "no function is named uper", Some("upper")),
                ("amout", "no column is named amout", None),
                ("nn", "no column is named nn", Some("n")),
                ("current_timestamp", "gives another answer", None),
            ],
        ),
        (
            sql(&format!("select window_start, user_id, sum(distinct x) as s, median(x) as m, avg(sum(x)) as a {by} having sum(y) > 1"), ""),
            &[("sum(distinct x)", "distinct is supported for count only", None), ("median", "not in this version", None), ("sum(x)", "within another aggregate", None), ("y", "no column is named y", None)],
        ),
        (sql("select * from hop(events, interval '5 minutes', interval '1 minute')", ""), &[("hop", "hop() is not in this version", None), ("hop", "a window is used without an aggregate", None)]),
        (
            sql(&format!("with e as (select * from events) {}", several.replace("T ", "tumble(e, interval '5 minutes') ")), ""),
            &[("with e as (select * from events)", "with … is not supported", None)],
        ),
        (sql(&format!("select window_start, user_id, sum(x) as _op {by}"), ""), &[("sum(x) as _op", "_op is taken", None)]),
        (sql("select n + 1 from events", ""), &[("n + 1", "the column n + 1 needs a name", None)]),
        // A key that does not fit hides behind no word of the planner's.
        (sql("select window_start, count(*) as n from T group by all", ", key: [window_start, user_id]"), &[("user_id", "the key of an aggregated table is its group key", None)]),
        (file("user_id: string, at: timestamp", "  t: {sql: select user_id from events}").replace("./lake}", "./lake(a,b)}"), &[("b)", "unknown key `b)`", None)]),
        (file("user_id: {type: decimal(9,2)}, at: timestamp", "  t: {sql: select user_id from events}"), &[("9", "`,` is missing at the end", None)]),
        (
            file("user_id: string, at: timestamp, k: {type: string not null, from: _key}", "  t: {sql: select user_id from events}").replace("kafka: {brokers: 'h:1', topic: t}", "file: ~/x.ndjson"),
            &[("~/x.ndjson", "`~` is not expanded", None), ("string not null", "the lines of a file have no `_key`", None)],
        ),
        // Types are told of each expression for itself.
        (
            sql("select user_id + 1 as a, upper(n, 1) as b, cast(n as bigimt) as c, null as d, 9223372036854775807 + 1 as e, n as f from events where user_id", ""),
            &[
                ("user_id", "there is no string + int64", None),
                ("upper(n, 1)", "no form of the function takes upper(", None),
                ("n", "SQL has no type bigimt", Some("bigint")),
                ("null", "null has no type", None),
                ("9223372036854775807 + 1", "fails for every row", None),
                ("user_id", "non-boolean predicate", None),
            ],
        ),
        (sql(&several, ", key: [window_start, usr_id]"), &[("usr_id", "its group key", Some("user_id"))]),
        (sql(&several, ", key: [window_start]"), &[("[window_start]", "its group key", None)]),
        (sql("select user_id from events", ", key: [user_id], emit: on_update"), &[("[user_id]", "key on a select without an aggregate", None), ("on_update", "on_update is for tables with an aggregate", None)]),
        (
            sql("select n + 1, n as a, x as A, y as b from events", ", partition_by: ['day(att)', n]"),
            &[("n + 1", "needs a name", None), ("x as A", "two columns are named a", None), ("y", "no column is named y", None)],
        ),
        (sql("select user_id as u from events", ", partition_by: ['day(u)', usr]"), &[("u", "partition", None), ("usr", "no such column", None)]),
        (sql("select usr_id from evnts order by 1", ""), &[("usr_id", "no column", Some("user_id")), ("evnts", "no source", Some("events")), ("1", "order by", None)]),
        (sql("select user_id, count(*) as n from events group by user_id", ""), &[("user_id", "never ends without a window", None)]),
        (sql("select user_id frm events", ""), &[("frm", "no word of SQL", Some("from"))]),
        (sql("select user_id from events where user_id = 'a' and x = \\\"A B\\\"", ""), &[("\\\"A B\\\"", "no column is named A B", None)]),
        // A number for a column that is wrong itself.
        (sql("select window_start, uper(user_id) as u, count(*) as c from T group by 1, 2", ", key: [window_start, u]"), &[("uper", "no function", Some("upper"))]),
        (sql("select window_start, count(*) as c from tumble(events, interval '5 minuts') group by window_start", ""), &[("'5 minuts'", "no length of time", None)]),
        // A column whose declaration is wrong is there: what is said of the SQL is what is wrong with the SQL.
        (
            file(&columns.replace("n: int64", "n: int46"), &format!("  t: {{sql: \"select window_start, user_id, sum(n) as s, uper(user_id) as u, y as z {}\", key: [window_start, userid], allowed_lateness: 5}}\n  u: {{sql: 'select n, usr_id from events', formats: [icberg]}}", by.replace(" T", " tumble(events, interval '5 minutes')"))),
            &[("int46", "no type", Some("int64")), ("uper", "no function", Some("upper")), ("y", "no column", None), ("userid", "its group key", Some("user_id")), ("5", "no duration", None), ("usr_id", "no column", Some("user_id")), ("icberg", "no value of `formats`", Some("iceberg"))],
        ),
        (
            file(columns, &format!("  t: {{sql: \"{}\"}}", several.replace("sum(x)", "sumn(x)").replace(" T", " tumble(events, interval '5 minutes')"))).replace("column: at", "column: att"),
            &[("att", "no column", Some("at")), ("sumn", "no function", Some("sum"))],
        ),
        (
            sql("select user_id from events", "").replace("topic: t", "topic: t, options: {fetch.min.byts: 1, fetch.min.bytes: 0, group.id: g, broker.address.family: v5}"),
            &[("fetch.min.byts", "no property", Some("fetch.min.bytes")), ("0", "refuses this value", None), ("group.id", "cannot be set", None), ("v5", "refuses this value", Some("v4"))],
        ),
    ];
    let mut wrong = vec![];
    for (text, expected) in cases {
        let told = told(&text);
        let fits = told.len() == expected.len()
            && told.iter().zip(expected).all(|((marked, message, nearest), (at, part, near))| marked == at && message.contains(part) && (near.is_none() || nearest.as_deref() == *near));
        if !fits {
            wrong.push(format!("{text}\ntold: {told:#?}"));
        }
    }
    assert!(wrong.is_empty(), "these are told otherwise:\n{}", wrong.join("\n"));
}

/// What is missing for librdkafka because it could not be read is not told a second time.
#[test]
fn an_option_that_cannot_be_read_is_one_error() {
    let file = |mechanism: &str, user: &str| {
        let login = format!("options: {{security.protocol: sasl_plaintext, sasl.mechanism: {mechanism}, sasl.username: {user}, sasl.password: p}}");
        pipeline("x:1", "t").replace("start: earliest", &login)
    };
    for (mechanism, user, marked, message) in [("PLAIN", "\"${NOT_SET_ANYWHERE}\"", "${NOT_SET_ANYWHERE}", "is not set"), ("PLAN", "u", "PLAN", "is no `sasl.mechanism`"), ("PLAIN", "[u]", "[u]", "text")] {
        let told = told(&file(mechanism, user));
        assert!(told.len() == 1 && told[0].0 == marked && told[0].1.contains(message), "{user}: {told:#?}");
    }
}

/// Said in the file and without effect, or with one that is hardly meant.
#[test]
fn what_is_said_in_vain_is_told() {
    let file = |table: &str, more: &str| {
        format!("pipeline: p\nsources:\n  events:\n    file: e.ndjson\n    columns: {{id: int64, at: timestamp}}\n    watermark: {{column: at}}\ntables:\n  t: {{{table}}}\nlake: {{root: ./lake}}\n{more}")
    };
    let plain = "sql: select id from events";
    for (text, marked, message) in [
        (file(&format!("{plain}, allowed_lateness: 10m"), ""), "10m", "allowed_lateness is for windows"),
        (file("sql: 'select idd, id from events', allowed_lateness: 10m", ""), "10m", "allowed_lateness is for windows"),
        (file(&format!("{plain}, properties: {{write.format.default: orc}}"), ""), "orc", "cannot be `orc`"),
        (file(&format!("{plain}, properties: {{delta.checkpointInterval: ten}}"), ""), "ten", "cannot be `ten`"),
        (file(&format!("{plain}, properties: {{delta.logRetentionDuration: a while}}"), ""), "a while", "cannot be `a while`"),
        (file(&format!("{plain}, properties: {{write.data.path: /else}}"), ""), "write.data.path", "not in this version"),
        (file("sql: 'select id as \"the id\", at as \"the time\" from events'", ""), "id", "`the id`: delta allows none of space"),
        (file("sql: 'select id as \"the id\", at as \"the time\" from events'", ""), "at", "`the time`: delta allows none of space"),
    ] {
        let told = told(&text);
        assert!(told.iter().any(|(at, said, _)| at == marked && said.contains(message)), "{text}\n{told:#?}");
    }
    for (text, marked, message) in [
        (file(plain, "").replace("column: at}", "column: at, max_ahead: 1d}"), "1d", "`max_ahead` has no effect"),
        (file(plain, "").replace("./lake}", "./lake, iceberg: {uri: 'sqlite:///c.db'}}"), "'sqlite:///c.db'", "at the root of the file system"),
        (file(plain, "observe: {listen: \"0.0.0.0:9090\"}\n"), "\"0.0.0.0:9090\"", "open to whoever reaches this machine"),
        (file(&format!("{plain}, properties: {{write.target-file-size-bytes: 1000}}"), ""), "write.target-file-size-bytes", "do not follow"),
        (file(&format!("{plain}, formats: iceberg, properties: {{delta.checkpointInterval: 5}}"), ""), "delta.checkpointInterval", "kept in Iceberg only"),
    ] {
        let pond = Pond::new(&text);
        let ended = pond.millpond(&["validate", "pipeline.yaml", "--offline"]);
        assert!(ended.code == 0 && ended.stderr.contains("warning: ") && ended.stderr.contains(message) && ended.stderr.contains("^^"), "{text}\n{ended:?}");
        let ended = pond.millpond(&["validate", "pipeline.yaml", "--offline", "--json"]);
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        let told = &answer["problems"][0];
        let at = told["column"].as_u64().unwrap() as usize - 1;
        let found: String = told["line_text"].as_str().unwrap().chars().skip(at).take(told["length"].as_u64().unwrap() as usize).collect();
        assert_eq!((ended.code, &answer["ok"], &told["level"], found.as_str()), (0, &json!(true), &json!("warning"), marked), "{answer}");
    }
}

/// What a variable holds may be a secret, in SQL as elsewhere.
#[test]
fn values_of_variables_in_sql_are_not_shown() {
    for sql in [
        "select ${SECRET} as a from events",
        "select id from ${SECRET}",
        "select ${SECRET}(id) as a from events",
        "select id from events where id = 'a' || '${SECRET}' + 1",
        "select id from events where ${SECRET}",
        "select id + ${SECRET} from events",
        "select id from events ${SECRET} by",
        "select window_start, count(*) as n from tumble(events, interval '${SECRET}') group by window_start",
    ] {
        let pond = Pond::new(&format!(
            "pipeline: p\nsources: {{events: {{file: e.ndjson, columns: {{id: int64, at: timestamp}}, watermark: {{column: at}}}}}}\ntables:\n  t:\n    sql: \"{sql}\"\n    partition_by: [\"${{SECRET}}\"]\nlake: {{root: ./lake}}\n"
        ));
        for json in [&[][..], &["--json"]] {
            let ended = pond.start_with(&[&["validate", "pipeline.yaml", "--offline"], json].concat(), &[("SECRET", "Hunter2_and_more")]).wait();
            let all = format!("{}{}", ended.stdout, ended.stderr);
            assert!(ended.code == 78 && all.contains("${SECRET}"), "{sql}: {ended:?}");
            assert!(!all.to_lowercase().contains("hunter2"), "{sql}: {ended:?}");
        }
    }
}

/// Nor what they stood for when the log was written.
#[test]
fn values_of_variables_are_not_shown_where_the_log_differs() {
    let pond = Pond::new(&pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson").replace("group by window_start", "where cast(id as varchar) <> '${SECRET}' group by window_start"));
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    let ended = |args: &[&str], secret: &str| pond.start_with(args, &[("SECRET", secret)]).wait();
    assert_eq!(ended(&["run", "pipeline.yaml", "--until-end"], "hunter2").code, 0);
    for (args, code) in [(&["run", "pipeline.yaml", "--until-end"][..], 75), (&["validate", "pipeline.yaml"], 78), (&["validate", "pipeline.yaml", "--json"], 78)] {
        let ended = ended(args, "hunter3");
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(ended.code == code && all.contains("its SQL counts other rows") && all.contains("${SECRET}") && !all.contains("hunter"), "{args:?}: {ended:?}");
    }
}

/// A variable that holds SQL has words of every message in it.
#[test]
fn an_error_of_a_run_is_told_though_a_variable_holds_sql() {
    let file = |path: &str| pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", &format!("file: {path}")).replace("select id from events", "select id from events where ${FILTER}");
    let pond = Pond::new(&file("e.ndjson"));
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    std::fs::write(pond.path().join("f.ndjson"), event(1) + "\n").unwrap();
    let run = || pond.start_with(&["run", "pipeline.yaml", "--until-end"], &[("FILTER", "id is not null and 'the log was written from' <> 'hunter2'")]).wait();
    assert_eq!(run().code, 0);
    pond.rewrite(&file("f.ndjson"));
    let ended = run();
    let told = ["source events reads", "and the log was written from", "offsets of one mean nothing in the other"];
    assert!(ended.code == 75 && told.iter().all(|part| ended.stderr.contains(part)) && !ended.stderr.contains("does not fit here") && !ended.stderr.contains("hunter2"), "{ended:?}");
}

/// Where a log is there, a file is read without asking the formats of its tables, which may be from another version; a table
/// that comes new and cannot be made is refused before anything is decided.
#[test]
fn a_table_that_cannot_be_made_is_refused_where_a_log_is_there() {
    let file = |more: &str| pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson").replace("lake:", &format!("{more}lake:"));
    let spaced = "  spaced: {sql: 'select id as \"the id\" from events'}\n";
    let pond = Pond::new(&file(spaced));
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert!(ended.code == 78 && ended.stderr.contains("delta allows none of space") && ended.stderr.contains("pipeline.yaml:"), "{ended:?}");
    pond.rewrite(&file(""));
    pond.until_end();
    let entries = || pond.number("select count(distinct entry) from millpond.epochs");
    let before = entries();
    pond.rewrite(&file(spaced));
    for args in [&["run", "pipeline.yaml", "--until-end"][..], &["validate", "pipeline.yaml"]] {
        let ended = pond.millpond(args);
        assert!(ended.code != 0 && ended.stderr.contains("spaced") && ended.stderr.contains("delta allows none of space"), "{args:?}: {ended:?}");
    }
    // What only reads does not ask.
    assert_eq!((entries(), pond.millpond(&["status", "pipeline.yaml"]).code), (before, 0));
    pond.rewrite(&file(&spaced.replace("}", ", formats: [iceberg]}")));
    pond.until_end();
    assert_eq!(pond.number("select count(\"the id\") from spaced"), 0, "it begins here");
}

#[test]
fn a_wrong_question_is_told_from_trouble() {
    let good = pipeline("localhost:1", "t").replace("kafka: {brokers: 'localhost:1', topic: t, start: earliest}", "file: e.ndjson");
    let pond = Pond::new(&good);
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    // Looking makes no folder.
    let status = pond.millpond(&["status", "pipeline.yaml"]);
    assert!(status.code == 0 && status.stdout.contains("has not run yet"), "{status:?}");
    assert_eq!(pond.millpond(&["query", "pipeline.yaml", "select 1"]).code, 1);
    assert!(!pond.path().join("lake").exists());
    pond.until_end();
    for (args, word) in [
        (vec!["select * from rowz"], "there are minutes, minutes__late, rows, "),
        (vec!["selec"], "cannot run the query: "),
        (vec!["drop table rows"], "only queries are run"),
        (vec!["select nope from rows"], "nope"),
        (vec!["select 1", "--format", "orc"], "possible values: iceberg, delta"),
    ] {
        let ended = pond.millpond(&[&["query", "pipeline.yaml"], &args[..]].concat());
        assert_eq!(ended.code, 2, "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(word) && !ended.stderr.contains("datafusion"), "{args:?}: {ended:?}");
    }
    let ended = pond.millpond(&["query", "pipeline.yaml", "select cast(cast(id as varchar) || 'x' as bigint) from rows"]);
    assert_eq!(ended.code, 1, "{ended:?}");
}

#[test]
fn words_of_later_versions_say_so() {
    let good = pipeline("localhost:1", "t");
    for (from, to) in [
        ("format: json", "format: debezium-json"),
        ("tumble(events, interval '1 minute')", "session(events, interval '1 minute')"),
        ("root: ./lake", "root: s3://bucket/lake"),
        ("count(*) as n from", "approx_distinct(id) as n from"),
    ] {
        let text = good.replace(from, to);
        assert_ne!(text, good, "{from}");
        let ended = Pond::new(&text).millpond(&["validate", "pipeline.yaml", "--offline"]);
        assert_eq!(ended.code, 78, "{to}: {ended:?}");
        assert!(ended.stderr.contains("not in this version"), "{to}: {}", ended.stderr);
    }
}

#[test]
fn the_schema_of_the_file_is_json() {
    let ended = Pond::new("").millpond(&["schema"]);
    assert_eq!(ended.code, 0);
    let schema: Value = serde_json::from_str(&ended.stdout).unwrap();
    for word in ["pipeline", "sources", "tables", "lake", "epoch", "commit"] {
        assert!(schema["properties"][word].is_object(), "{word}");
    }
    let help = Pond::new("").millpond(&["--help"]);
    // It is wrapped where the line is full.
    let words = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Exit codes") && words.contains("130 ended at once") && help.code == 0);
    let help = Pond::new("").millpond(&["run", "--help"]);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("--accept"), "{help:?}");
    assert_eq!(Pond::new("").millpond(&["run"]).code, 2);
}

/// What an editor underlines by the schema `validate` refuses as well; and it underlines nothing that is right.
#[test]
fn the_schema_of_the_file_agrees_with_validate() {
    let pond = Pond::new("");
    let written = |name: &str, text: &str| {
        let path = pond.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let schema = written("schema.json", &pond.millpond(&["schema"]).stdout);
    let full = r#"
pipeline: full
sources:
  events:
    kafka:
      brokers: "${BROKERS:-127.0.0.1:9092}"
      topic: events
      start: {timestamp: 2026-01-31T00:00:00Z}
      options: {security.protocol: ssl, fetch.wait.max.ms: 100}
    format: json
    columns:
      id: int64 not null
      amount: "decimal(12,2)"
      at: {type: timestamp, from: "a.b[0]", unit: ms}
      _key: binary
    watermark: {column: at, delay: 10s, idle_after: never, max_ahead: 1h}
    max_record_bytes: 1MiB
tables:
  spend:
    sql: select window_start, sum(amount) as total from tumble(events, interval '5 minutes') group by window_start
    key: [window_start]
    allowed_lateness: 1h
    emit: on_update
    formats: iceberg
    partition_by: [day(window_start)]
    properties: {owner: me}
    comment: what was spent
lake: {root: ./lake, iceberg: {catalog: sql, uri: "sqlite://./lake/catalog.db"}}
epoch: {every: 5s}
commit: {every: 30s}
memory: 512MiB
backlog: {bytes: 1GiB}
observe: {listen: 127.0.0.1:9090}
"#;
    let pipelines = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines")).unwrap().map(|f| f.unwrap().path());
    let mut right: Vec<_> = pipelines.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(right.len() >= 3);
    right.push(written("full.yaml", full));
    let damages = [
        ("pipeline: full", "pipline: full"),
        ("pipeline: full", "pipeline: Not A Name"),
        ("topic: events", "topics: events"),
        ("format: json", "format: jsn"),
        ("    format: json", "    file: x.ndjson\n    format: json"),
        ("{timestamp: 2026-01-31T00:00:00Z}", "sometime"),
        ("id: int64 not null", "id: integer"),
        ("delay: 10s", "delay: 10 fortnights"),
        ("unit: ms", "unit: hours"),
        ("emit: on_update", "emit: sometimes"),
        ("formats: iceberg", "formats: [iceberg, hudi]"),
        ("max_record_bytes: 1MiB", "max_record_bytes: much"),
        ("lake: {root: ./lake,", "lake: {rot: ./lake,"),
        ("    sql: select", "    sqll: select"),
        ("listen: 127.0.0.1:9090", "listen: here"),
    ];
    let wrong: Vec<_> = damages.iter().enumerate().map(|(n, (from, to))| {
        assert!(full.contains(from), "{from}");
        written(&format!("wrong-{n}.yaml"), &full.replacen(from, to, 1))
    }).collect();
    for (path, errors) in right.iter().zip(judged_by_schema(&schema, &right)) {
        assert_eq!(errors, json!([]), "{}", path.display());
        let ended = pond.millpond(&["validate", path.to_str().unwrap(), "--offline"]);
        assert_eq!(ended.code, 0, "{}: {ended:?}", path.display());
    }
    for ((path, errors), (_, to)) in wrong.iter().zip(judged_by_schema(&schema, &wrong)).zip(&damages) {
        assert_ne!(errors, json!([]), "{to}: the schema has nothing against it");
        let ended = pond.millpond(&["validate", path.to_str().unwrap(), "--offline"]);
        assert_eq!(ended.code, 78, "{to}: {ended:?}");
    }
}

/// What a first try gets wrong is told soon, and leaves nothing behind.
#[test]
fn a_first_try_that_fails_makes_no_lake() {
    let broker = Broker::start();
    broker.create_topic("first-tries", 1);
    let left = |pond: &Pond| -> Vec<String> {
        let entries = std::fs::read_dir(pond.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        entries.filter(|n| *n != "pipeline.yaml" && !n.ends_with(".out") && !n.ends_with(".err")).collect()
    };
    let misspelt = Pond::new(&pipeline(&broker.address(), "first-trys"));
    let away = Pond::new(&pipeline("127.0.0.1:1", "first-tries"));
    let right = Pond::new(&pipeline(&broker.address(), "first-tries"));
    for verb in ["validate", "run"] {
        let ended = misspelt.millpond(&[verb, "pipeline.yaml"]);
        assert!(ended.code != 0 && ended.stderr.contains("did you mean `first-tries`?"), "{ended:?}");
    }
    let started = Instant::now();
    let ended = away.millpond(&["validate", "pipeline.yaml"]);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stderr.contains("no answer from 127.0.0.1:1") && ended.stderr.contains("refused") && ended.stderr.contains("`brokers`"), "{ended:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "told only after {:?}", started.elapsed());
    for verb in ["status", "verify", "query"] {
        away.millpond(&[&[verb, "pipeline.yaml"][..], if verb == "query" { &["select 1"] } else { &[] }].concat());
    }
    let ended = right.millpond(&["validate", "pipeline.yaml"]);
    assert!(ended.code == 0 && ended.stdout.contains("has not run yet"), "{ended:?}");
    for pond in [&misspelt, &away, &right] {
        assert_eq!(left(pond), Vec::<String>::new());
    }
}

/// A table of somebody else's in the place of ours: told before the first run, which would be refused as well, and nothing is
/// touched. With a run behind it, also when a source does not answer.
#[test]
fn validate_looks_at_the_tables_that_are_there() {
    let text = "pipeline: mine
sources:
  rows:
    file: rows.ndjson
    format: json
    columns: {k: int64}
  more:
    file: more.ndjson
    format: json
    columns: {k: int64}
tables:
  all_rows: {sql: select k from rows}
  all_more: {sql: select k from more}
lake: {root: ./lake}
";
    let pond = Pond::new(text);
    for name in ["rows.ndjson", "more.ndjson"] {
        std::fs::write(pond.path().join(name), "{\"k\":1}\n").unwrap();
    }
    let log = pond.path().join("lake/delta/mine/all_rows/_delta_log");
    std::fs::create_dir_all(&log).unwrap();
    let schema = r#"{\"type\":\"struct\",\"fields\":[{\"name\":\"k\",\"type\":\"long\",\"nullable\":true,\"metadata\":{}}]}"#;
    let theirs = format!(
        "{}\n{}\n",
        r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}"#,
        format_args!(r#"{{"metaData":{{"id":"5f1e","format":{{"provider":"parquet","options":{{}}}},"schemaString":"{schema}","partitionColumns":[],"configuration":{{}},"createdTime":0}}}}"#)
    );
    std::fs::write(log.join("00000000000000000000.json"), theirs).unwrap();
    for verb in ["validate", "run"] {
        let ended = pond.millpond(&[&[verb, "pipeline.yaml"][..], if verb == "run" { &["--until-end"] } else { &[] }].concat());
        assert!(ended.code != 0 && ended.stderr.contains("all_rows") && ended.stderr.contains("did not make"), "{verb}: {ended:?}");
        if verb == "validate" {
            assert!(!pond.path().join("lake/catalog.db").exists() && !pond.path().join("lake/_millpond").exists(), "it left something behind");
        }
    }
    std::fs::remove_dir_all(pond.path().join("lake")).unwrap();
    assert_eq!(pond.millpond(&["validate", "pipeline.yaml"]).code, 0);
    pond.until_end();
    assert_eq!(pond.millpond(&["validate", "pipeline.yaml"]).code, 0);
    // Another place in the catalog has no tables, and that is no first run.
    std::fs::write(pond.path().join("other.yaml"), text.replace("./lake}", "./lake, namespace: other}")).unwrap();
    for verb in ["validate", "run"] {
        let ended = pond.millpond(&[verb, "other.yaml"]);
        assert!(ended.code != 0 && ended.stderr.contains("iceberg table all_") && ended.stderr.contains("or lake.namespace"), "{verb}: {ended:?}");
    }
    // Somebody swaps our table for theirs, and a source is away.
    std::fs::rename(pond.path().join("more.ndjson"), pond.path().join("elsewhere")).unwrap();
    let mut lines: Vec<String> = vec![];
    for line in std::fs::read_to_string(log.join("00000000000000000000.json")).unwrap().lines().filter(|l| !l.contains("\"txn\"")) {
        lines.push(line.to_string());
    }
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(log.join("00000000000000000000.json"), lines.join("\n")).unwrap();
    let ended = pond.millpond(&["validate", "pipeline.yaml"]);
    assert!(ended.code != 0 && ended.stderr.contains("more") && ended.stderr.contains("all_rows"), "both are told: {ended:?}");
}

/// What does not fit the log: every table's difference at once, each where it stands in the file.
#[test]
fn every_difference_from_the_log_is_told_at_its_place() {
    let good = pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson");
    let pond = Pond::new(&good);
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    pond.until_end();
    pond.rewrite(&good.replace("\"select id from events\"", "\"select id from events\", formats: [delta]").replace("select window_start, count(*)", "select window_start, count(id)"));
    let ended = pond.millpond(&["validate", "pipeline.yaml", "--json"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    let told: Vec<(u64, String)> = answer["problems"].as_array().unwrap().iter().map(|p| (p["line"].as_u64().unwrap(), p["message"].as_str().unwrap().to_string())).collect();
    assert_eq!(told.len(), 2, "{answer}");
    assert!(told[0].0 == 9 && told[0].1.contains("its formats change"), "{told:?}");
    assert!(told[1].0 == 11 && told[1].1.contains("table minutes"), "{told:?}");
    assert_eq!(answer["problems"][0]["line_text"].as_str().unwrap().chars().skip(answer["problems"][0]["column"].as_u64().unwrap() as usize - 1).take(7).collect::<String>(), "[delta]", "{answer}");
}

/// A wrong type in the pipeline file makes dead letters of everything: the summary says where to look, and that works as pasted.
#[test]
fn the_summary_says_how_to_see_why_records_are_dead() {
    let broker = Broker::start();
    broker.create_topic("mistyped", 1);
    broker.produce("mistyped", 0, "k", r#"{"id":"seven","at":"2026-01-31T10:00:00Z"}"#, 0);
    let pond = Pond::new(&pipeline(&broker.address(), "mistyped"));
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert!(ended.code == 0 && ended.stdout.contains("1 dead"), "{ended:?}");
    let hint = ended.stdout.lines().find_map(|l| l.strip_prefix("why dead: millpond query pipeline.yaml '")).and_then(|l| l.strip_suffix('\''));
    let rows = pond.query(hint.unwrap_or_else(|| panic!("no hint in {ended:?}")));
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["_reason"].as_str().is_some_and(|r| r.contains("id")) && rows[0]["_value"].as_str().is_some_and(|v| v.contains("seven")), "{rows:?}");
}

/// A broker that takes connections and says nothing, as behind a wrong port or a firewall: Ctrl-C ends the waiting.
#[test]
fn a_run_that_waits_for_its_first_answer_stops_at_once() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pond = Pond::new(&pipeline(&silent.local_addr().unwrap().to_string(), "any"));
    let running = pond.start(&["run", "pipeline.yaml"]);
    let connected = silent.accept().unwrap();
    running.signal(libc::SIGINT);
    let signalled = Instant::now();
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(signalled.elapsed() < Duration::from_secs(4), "it took {:?}: {ended:?}", signalled.elapsed());
    drop(connected);
}

/// FAULTS 24: the topic is deleted and made again, and its offsets mean other records.
#[test]
fn a_missing_topic_and_one_made_again_are_told() {
    let broker = Broker::start();
    let topic = "made-again";
    let pond = Pond::new(&pipeline(&broker.address(), topic));
    for verb in ["validate", "run"] {
        let ended = pond.millpond(&[verb, "pipeline.yaml"]);
        assert_ne!(ended.code, 0, "{ended:?}");
        assert!(ended.stderr.contains("made-again") && ended.stderr.contains("kafka-topics.sh") && ended.stderr.contains("--create"), "{ended:?}");
        assert!(verb == "run" || ended.stderr.contains(&format!(" {}\n", "^".repeat(topic.len()))), "the topic is underlined: {ended:?}");
    }
    broker.create_topic(topic, 1);
    for id in 0..5 {
        broker.produce(topic, 0, "k", &event(id), 0);
    }
    assert_eq!(pond.until_end()["records"], 5);
    broker.delete_topic(topic);
    broker.create_topic(topic, 1);
    for id in 0..9 {
        broker.produce(topic, 0, "k", &event(id), 0);
    }
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("made-again") && ended.stderr.contains("another"), "{ended:?}");
    assert_eq!(pond.number("select count(*) from rows"), 5);
}

/// `millpond query … | head -1`, and a disk that is full.
#[test]
fn an_answer_that_nobody_reads_ends_quietly_and_one_that_cannot_be_written_is_trouble() {
    let pond = Pond::new(&pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson"));
    std::fs::write(pond.path().join("e.ndjson"), (0..500).map(|id| event(id) + "\n").collect::<String>()).unwrap();
    let answered = |args: &[&str], out: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.args(args).current_dir(pond.path()).stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let wrong = ["validate", "wrong.yaml", "--json"];
    std::fs::write(pond.path().join("wrong.yaml"), "pipeline: 1\n").unwrap();
    // The run comes first: the others read what it made.
    let verbs: [&[&str]; 10] = [
        &["run", "pipeline.yaml", "--until-end", "--final"],
        &["run", "pipeline.yaml", "--until-end", "--json"],
        &["validate", "pipeline.yaml", "--offline"],
        &["query", "pipeline.yaml", "select * from rows"],
        &["query", "pipeline.yaml", "select * from rows", "--json"],
        &["status", "pipeline.yaml"],
        &["status", "pipeline.yaml", "--json"],
        &["verify", "pipeline.yaml"],
        &["schema"],
        &["--version"],
    ];
    for args in verbs {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, said) = answered(args, writer.into());
        assert_eq!(code, Some(0), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("error"), "{args:?}: {said}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = answered(args, full.into());
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(!said.contains("panicked") && said.contains("No space left"), "{args:?}: {said}");
    }
    assert_eq!(pond.number("select count(*) from rows"), 500);
    // What is wrong stays wrong, whoever reads it.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(answered(&wrong, writer.into()).0, Some(78));
    // Nobody reads what a run says on the way, and it goes on.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    std::fs::write(pond.path().join("f.ndjson"), event(1) + "\n").unwrap();
    pond.rewrite(&pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: '[ef].ndjson'").replace("pipeline: lines", "pipeline: others").replace("allowed_lateness: 1m", "allowed_lateness: 2m"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(["run", "pipeline.yaml", "--until-end"]).current_dir(pond.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    assert!(command.status().unwrap().success());
    assert_eq!(pond.number("select count(*) from rows"), 501);
}

/// JSON has no words for some floats, and one value for a name.
#[test]
fn odd_floats_and_equal_names_have_an_answer_in_json() {
    let pond = Pond::new(&pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson"));
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n").unwrap();
    pond.until_end();
    let rows = pond.query("select cast('NaN' as double) as a, cast('inf' as float) as b, [cast('-inf' as double), 1.5e0] as c from rows");
    assert_eq!(rows, [json!({"a": "NaN", "b": "Infinity", "c": ["-Infinity", 1.5]})]);
    let twice = "select a.id, b.id from rows a join rows b on a.id = b.id";
    let ended = pond.millpond(&["query", "pipeline.yaml", twice, "--json"]);
    assert!(ended.code == 2 && ended.stdout.contains("two columns of the answer are named id") && ended.stdout.contains("`as`"), "{ended:?}");
    assert_eq!(pond.millpond(&["query", "pipeline.yaml", twice]).code, 0);
}

/// Also what no checkpoint has freed yet, its first entry included.
#[test]
fn the_log_is_a_table_from_its_first_entry() {
    let pond = Pond::new(&pipeline("x:1", "t").replace("kafka: {brokers: 'x:1', topic: t, start: earliest}", "file: e.ndjson"));
    std::fs::write(pond.path().join("e.ndjson"), event(1) + "\n" + &event(2) + "\n").unwrap();
    pond.until_end();
    let of = |columns: &str| pond.query(&format!("select {columns} from millpond.epochs order by entry"));
    assert_eq!(of("entry, kind, to_offset")[..2], [json!({"entry": 0, "kind": "plan", "to_offset": null}), json!({"entry": 1, "kind": "data", "to_offset": 2})]);
    let (whole, folder) = (of("*"), pond.path().join("lake/_millpond"));
    let log = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path().join("log")).find(|l| l.is_dir()).unwrap();
    let entries = std::fs::read_dir(log).unwrap().count();
    assert_eq!(whole.len(), entries, "{whole:?}");
}

/// FAULTS 7.
#[test]
fn an_interrupt_drains_and_loses_nothing() {
    let broker = Broker::start();
    let topic = "interrupted";
    broker.create_topic(topic, 2);
    let pond = Pond::new(&pipeline(&broker.address(), topic));
    let running = pond.start(&["run", "pipeline.yaml", "--json"]);
    let producer = broker.producer();
    let (start, mut id) = (Instant::now(), 0);
    loop {
        producer.send(topic, (id % 2) as i32, "k", &event(id), 0);
        producer.flush();
        id += 1;
        if id % 20 == 0 {
            let shown = pond.millpond(&["status", "pipeline.yaml", "--json"]);
            let status: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
            if status["sources"]["events"]["records"].as_i64() > Some(40) {
                break;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(libc::SIGINT);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    let summary: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    let drained = summary["records"].as_i64().unwrap();
    assert_eq!(pond.number("select count(*) from rows"), drained, "what was decided is in the tables");
    pond.until_end();
    assert_eq!(pond.number("select count(*) from rows"), id);
    assert_eq!(pond.number("select count(distinct id) from rows"), id);
    // The log shows intervals that meet: every offset once.
    let epochs = pond.query("select * from millpond.epochs");
    assert!(epochs.len() > 2, "{epochs:?}");
    // Entry 0 is the table's making, of which only Delta keeps a commit.
    let commits = pond.query("select table_name, format, entry from millpond.commits where table_name = 'rows' and entry > 0 order by 2, 3");
    let of = |format: &str| commits.iter().filter(|c| c["format"] == format).map(|c| c["entry"].clone()).collect::<Vec<_>>();
    assert!(!of("iceberg").is_empty() && of("iceberg") == of("delta"), "{commits:?}");
}
