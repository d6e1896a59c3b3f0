//! Pipeline files, good and bad, with what is said about them.

use std::path::{Path, PathBuf};

use super::*;

const CWD: &str = "/work-dir";

fn parsed(text: &str) -> Result<Pipeline, Problems> {
    let env = |name: &str| match name {
        "EVERY" => Some("soon".to_string()),
        "PASSWORD" => Some("hunter2".to_string()),
        _ => None,
    };
    load_text(&SourceText::new("p.yaml", text), Path::new(CWD), &env)
}

/// All problems of a file, as they are printed.
fn said(text: &str) -> String {
    match parsed(text) {
        Ok(_) => "no problem".into(),
        Err(problems) => problems.to_string(),
    }
}

/// The small pipeline that the tests vary.
const GOOD: &str = "\
pipeline: spend
sources:
  events:
    kafka: {brokers: localhost:9092, topic: events}
    columns:
      user_id: string
      event_time: timestamp
      amount: decimal(12,2)
    watermark: {column: event_time}
tables:
  spend_by_user:
    sql: select user_id from events
lake: {root: ./lake}
";

fn with(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    GOOD.replace(from, to)
}

#[test]
fn defaults_are_as_documented() {
    let p = parsed(GOOD).unwrap();
    assert_eq!(p.name, "spend");
    let source = &p.sources[0];
    let Input::Kafka(kafka) = &source.input else { panic!() };
    assert_eq!((kafka.brokers.as_str(), kafka.topic.as_str(), &kafka.start), ("localhost:9092", "events", &Start::Earliest));
    assert_eq!((source.format, source.max_record_bytes, source.max_depth), (Format::Json, 8 << 20, 512));
    let minute = 60_000_000;
    assert_eq!(source.watermark, Some(Watermark { column: "event_time".into(), delay_us: 0, idle_after_us: Some(minute), max_ahead_us: 60 * minute }));
    assert_eq!(source.columns[2], Column { name: "amount".into(), ty: ColumnType::Decimal(12, 2), nullable: true, from: From::Path(vec![Segment::Field("amount".into())]) });
    let table = &p.tables[0];
    assert_eq!((table.allowed_lateness_us, table.emit, &table.key), (0, Emit::OnClose, &None));
    assert_eq!(table.formats, [TableFormatKind::Iceberg, TableFormatKind::Delta]);
    assert_eq!(p.lake.root, PathBuf::from("/work-dir/lake"));
    assert_eq!(p.lake.iceberg_catalog, PathBuf::from("/work-dir/lake/catalog.db"));
    assert_eq!((p.lake.catalog_name.as_str(), p.lake.namespace.as_str()), ("millpond", "spend"));
    assert_eq!((p.epoch_every_ms, p.commit_every_ms, p.memory_bytes), (5_000, 30_000, 512 << 20));
    assert_eq!((p.backlog, p.clean, p.listen), (Backlog { bytes: 10 << 30, hours: 24 }, Clean { after_ms: 3_600_000, every_ms: 3_600_000 }, None));
}

#[test]
fn everything_can_be_said() {
    let p = parsed(
        r#"
pipeline: "my-pipe_1"
sources:
  a:
    kafka:
      brokers: [k1:9092, "k2:9092,[::1]:9093"]
      topic: a.b
      start: {offsets: {0: 12, 3: 0}}
      options: {security.protocol: SASL_SSL, sasl.mechanism: SCRAM-SHA-512, sasl.username: me, sasl.password: "${PASSWORD}", fetch.wait.max.ms: 50}
    format: json
    columns:
      id: int64 not null
      at: {type: timestamp, unit: ms, from: "meta.times[0]", nullable: false}
      tags: {type: "list<struct<t: timestamp, n: string>>", unit: s}
      whole: {type: json, from: $}
      _offset: int64
      k: {type: string, from: _key}
      _headers: "map<string, binary>"
    watermark: {column: at, delay: 90s, idle_after: never, max_ahead: 1d}
    max_record_bytes: 1MB
    max_depth: 64
  b:
    file: data/*.ndjson.gz
    columns: {x: string}
  c:
    kafka: {brokers: k, topic: c, start: {timestamp: 2026-01-31T00:00:00+01:00}}
    columns: {x: {type: string}}
tables:
  t:
    sql: 'select it''s'
    key: [id, at]
    allowed_lateness: 10m
    emit: on_update
    formats: delta
    partition_by: [day(at), id]
    properties: {write.target-file-size-bytes: 1000, x: "y"}
    comment: a table
lake: {root: /abs/./x/../lake, namespace: ns, iceberg: {catalog: sql, uri: "sqlite:////abs/c.db", name: cat}}
epoch: {every: 100ms}
commit: {every: 1s}
memory: 256MiB
backlog: {bytes: 1GB, hours: 2}
clean: {after: 0s, every: 10m}
observe: {listen: "localhost:9090"}
"#,
    )
    .unwrap_or_else(|problems| panic!("{problems}"));
    let Input::Kafka(kafka) = &p.sources[0].input else { panic!() };
    assert_eq!(kafka.brokers, "k1:9092,k2:9092,[::1]:9093");
    assert_eq!(kafka.start, Start::Offsets([(0, 12), (3, 0)].into()));
    assert_eq!(kafka.options["sasl.password"], "hunter2");
    assert_eq!(kafka.options["fetch.wait.max.ms"], "50");
    assert!(!format!("{p:?}").contains("hunter2"));
    let columns = &p.sources[0].columns;
    assert!(!columns[0].nullable && !columns[1].nullable && columns[2].nullable);
    assert_eq!(columns[1].ty, ColumnType::Timestamp(Some(EpochUnit::Millis)));
    assert_eq!(columns[1].from, From::Path(vec![Segment::Field("meta".into()), Segment::Field("times".into()), Segment::Index(0)]));
    let tag = ColumnType::Struct(vec![("t".into(), ColumnType::Timestamp(Some(EpochUnit::Seconds))), ("n".into(), ColumnType::String)]);
    assert_eq!(columns[2].ty, ColumnType::List(Box::new(tag)));
    assert_eq!((&columns[3].from, &columns[4].from, &columns[5].from, &columns[6].from), (&From::Path(vec![]), &From::Offset, &From::Key, &From::Headers));
    assert_eq!(p.sources[0].watermark.as_ref().unwrap().idle_after_us, None);
    assert_eq!((p.sources[0].max_record_bytes, p.sources[0].max_depth), (1_000_000, 64));
    let Input::File(file) = &p.sources[1].input else { panic!() };
    assert_eq!(file.path, "/work-dir/data/*.ndjson.gz");
    let Input::Kafka(kafka) = &p.sources[2].input else { panic!() };
    assert_eq!(kafka.start, Start::Timestamp(1_769_814_000_000));
    let table = &p.tables[0];
    assert_eq!((table.sql.as_str(), table.sql_at), ("select it's", (30, 11)));
    assert_eq!(table.key.as_deref(), Some(["id".to_string(), "at".to_string()].as_slice()));
    assert_eq!((table.allowed_lateness_us, table.emit, table.formats.as_slice()), (600_000_000, Emit::OnUpdate, [TableFormatKind::Delta].as_slice()));
    assert_eq!(table.partition_by[0], PartitionField { column: "at".into(), transform: PartitionTransform::Day });
    assert_eq!((table.properties["write.target-file-size-bytes"].as_str(), table.comment.as_deref()), ("1000", Some("a table")));
    assert_eq!((p.lake.root.as_path(), p.lake.iceberg_catalog.as_path()), (Path::new("/abs/lake"), Path::new("/abs/c.db")));
    assert_eq!((p.lake.namespace.as_str(), p.lake.catalog_name.as_str()), ("ns", "cat"));
    assert_eq!((p.epoch_every_ms, p.commit_every_ms, p.memory_bytes, p.backlog), (100, 1_000, 256 << 20, Backlog { bytes: 1_000_000_000, hours: 2 }));
    assert_eq!(p.clean, Clean { after_ms: 0, every_ms: 600_000 });
    assert_eq!(p.listen, Some("127.0.0.1:9090".parse().unwrap()));
}

#[test]
fn every_form_of_a_sqlite_uri() {
    for (uri, path) in [
        ("sqlite://./lake/c.db", "/work-dir/lake/c.db"),
        ("sqlite://lake/c.db", "/work-dir/lake/c.db"),
        ("sqlite:///./lake/c.db", "/work-dir/lake/c.db"),
        ("sqlite:////abs/c.db", "/abs/c.db"),
        ("sqlite:///abs/c.db", "/abs/c.db"),
    ] {
        let p = parsed(&with("{root: ./lake}", &format!("{{root: ./lake, iceberg: {{uri: \"{uri}\"}}}}"))).unwrap();
        assert_eq!(p.lake.iceberg_catalog, PathBuf::from(path), "{uri}");
    }
}

#[test]
fn the_shipped_pipelines_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let load = |name: &str| load(&folder.join(name), Path::new(CWD), &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
    let spend = load("spend.yaml");
    let Input::Kafka(kafka) = &spend.sources[0].input else { panic!() };
    assert_eq!((kafka.brokers.as_str(), kafka.topic.as_str()), ("localhost:9092", "spend_events"));
    assert_eq!(spend.tables[0].allowed_lateness_us, 600_000_000);
    assert_eq!(spend.tables[0].key.as_ref().unwrap(), &["window_start", "user_id"]);
    let (kafka, file) = (load("flights.yaml"), load("flights-file.yaml"));
    assert_eq!(kafka.sources[0].columns, file.sources[0].columns);
    assert_eq!(kafka.tables[0].sql, file.tables[0].sql);
    assert_eq!(kafka.tables[0].allowed_lateness_us, 22 * 3_600_000_000);
    let Input::File(input) = &file.sources[0].input else { panic!() };
    assert_eq!(input.path, "/work-dir/infra/data/flights-2013-week1.ndjson.gz");
}


/// A typo of any letter of any key is refused, and the key is suggested.
#[test]
fn a_typo_of_any_key_in_a_file_is_answered_with_the_key() {
    let full = with("{root: ./lake}", "{root: ./lake, namespace: ns}") + "memory: 1GiB\nbacklog: {hours: 3}\nepoch: {every: 1s}\n";
    let mut tried = 0;
    for key in ["pipeline", "sources", "tables", "lake", "memory", "backlog", "epoch", "kafka", "columns", "watermark", "sql", "root", "namespace", "hours", "topic", "brokers"] {
        for at in 0..key.len() {
            let mut typo = key.to_string();
            typo.remove(at);
            let file = full.replacen(&format!("{key}: "), &format!("{typo}: "), 1).replacen(&format!("{key}:\n"), &format!("{typo}:\n"), 1);
            let problems = parsed(&file).unwrap_err().list;
            assert_eq!(problems.len(), 1, "{typo}: {problems:?}");
            assert_eq!(problems[0].nearest.as_deref(), Some(key), "{typo}");
            assert!(problems[0].message.starts_with(&format!("unknown key `{typo}`")), "{}", problems[0]);
            tried += 1;
        }
    }
    assert!(tried > 80);
}

#[test]
fn a_key_without_a_value_is_not_taken_for_absent() {
    for (file, key) in [
        (with("  spend_by_user:\n", "  spend_by_user:\n    key:\n"), "key"),
        (with("    watermark: {column: event_time}", "    watermark:"), "watermark"),
        (GOOD.to_string() + "memory: ~\n", "memory"),
    ] {
        let problems = parsed(&file).unwrap_err().list;
        assert_eq!(problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>(), [format!("`{key}` has no value")]);
    }
}

#[test]
fn no_name_leads_out_of_its_folder() {
    for name in ["..", "../x", "a/b", "a\\\\b", "/abs", ".", "a..b", "Ä", "a b", "a\\0b", "-a", "1a", ""] {
        for file in [
            with("pipeline: spend", &format!("pipeline: \"{name}\"")),
            with("  events:\n", &format!("  \"{name}\":\n")),
            with("  spend_by_user:\n", &format!("  \"{name}\":\n")),
            with("{root: ./lake}", &format!("{{root: ./lake, namespace: \"{name}\"}}")),
        ] {
            assert!(said(&file).contains("cannot name a"), "{name}: {}", said(&file));
        }
    }
    assert!(said(&with("topic: events", "topic: ../x")).contains("cannot be a Kafka topic"));
}

#[test]
fn secrets_are_never_printed() {
    let options = |options: &str| with("topic: events}", &format!("topic: events, options: {{{options}}}, typo: 1}}"));
    for file in [
        options("sasl.password: hunter2"),
        options("\"ssl.key.password\": 'hunter2', group.id: x"),
        options("sasl.password: [hunter2]"),
        options("sasl.password: \"${PASSWORD}\""),
        options("sasl.pasword: hunter2"),
        with("pipeline: spend", "pasword: hunter2"),
        // Values of variables are not shown, wherever they stand.
        with("{root: ./lake}", "{root: ./lake}\nmemory: ${PASSWORD}"),
        with("watermark: {column: event_time}", "watermark: {column: \"${PASSWORD}\"}"),
        with("user_id: string", "user_id: ${PASSWORD}"),
        with("  spend_by_user:", "  spend_by_user:\n    key: [\"${PASSWORD}\", \"${PASSWORD}\"]\n    emit: ${PASSWORD}\n    partition_by: [\"${PASSWORD}(x)\"]\n    formats: [\"${PASSWORD}\"]"),
        with("{root: ./lake}", "{root: \"${PASSWORD}://x\", iceberg: {uri: \"${PASSWORD}\", catalog: \"${PASSWORD}\"}}"),
        with("brokers: localhost:9092", "brokers: \"a b ${PASSWORD}\", start: {timestamp: \"${PASSWORD}\"}"),
    ] {
        let said = said(&file);
        assert_ne!(said, "no problem", "{file}");
        assert!(!said.contains("hunter2"), "{said}");
        let json = serde_json::to_string(&parsed(&file).unwrap_err()).unwrap();
        assert!(!json.contains("hunter2"), "{json}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let said = |path: &Path| load(path, Path::new("/"), &|_| None).unwrap_err().to_string();
    assert!(said(Path::new("/nonexistent/p.yaml")).starts_with("/nonexistent/p.yaml:1:1: error: cannot read the pipeline file: "));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.yaml"), b"a: b\n\xff").unwrap();
    assert!(said(&dir.path().join("p.yaml")).ends_with("error: the pipeline file is not UTF-8 (line 2)"));
}

#[test]
fn words_of_later_versions_are_told_from_mistakes() {
    for (from, to) in [
        ("topic: events}", "topic: events}\n    format: avro"),
        ("topic: events}", "topic: events}\n    format: debezium-json"),
        ("topic: events}", "topic: events, options: {sasl.mechanism: GSSAPI}}"),
        ("kafka: {brokers: localhost:9092, topic: events}", "generator: {rows: 10}"),
        ("{root: ./lake}", "{root: \"s3://bucket/lake\"}"),
        ("{root: ./lake}", "{root: ./lake, iceberg: {catalog: rest, uri: \"http://x\"}}"),
        ("{root: ./lake}", "{root: ./lake, iceberg: {uri: \"postgresql://x/y\"}}"),
        ("  spend_by_user:", "  spend_by_user:\n    sort_by: [user_id]"),
        ("  spend_by_user:", "  spend_by_user:\n    into: {create: never}"),
        ("  spend_by_user:", "  spend_by_user:\n    merge: copy-on-write"),
        ("  spend_by_user:", "  spend_by_user:\n    partition_by: [\"bucket(16, user_id)\"]"),
        ("  spend_by_user:", "  spend_by_user:\n    partition_by: [\"truncate(2, user_id)\"]"),
    ] {
        let problems = parsed(&with(from, to)).unwrap_err();
        assert_eq!(problems.list.len(), 1, "{problems}");
        assert!(problems.list[0].unsupported, "{problems}");
        assert!(problems.list[0].message.ends_with("not in this version"), "{problems}");
    }
    assert!(!parsed(&with("pipeline: spend", "pipeline: Spend")).unwrap_err().list[0].unsupported);
}

fn placed(text: &SourceText, table: &TableDecl, at: Option<(usize, usize)>) -> Problem {
    let place = at.map_or(sql::Place::Unknown, |from| sql::Place::Sql { from, to: None });
    let error = sql::SqlError { message: "no".into(), place, expected: None, nearest: None, unsupported: false };
    let part = TablePart {
        decl: table.clone(),
        name_at: Span::START,
        key_at: None,
        key_items: vec![],
        emit_at: None,
        lateness_at: None,
        formats_at: None,
        partition_at: vec![],
        properties: vec![],
        variables: Variables::default(),
    };
    sql_problem(text, &part, &error)
}

#[test]
fn sql_problems_are_placed_in_the_file() {
    let place = |sql: &str, word: &str| {
        let file = with("sql: select user_id from events", &format!("sql: {sql}"));
        let text = SourceText::new("p.yaml", &file);
        let p = load_text(&text, Path::new(CWD), &|_| Some("substituted".into())).unwrap_or_else(|problems| panic!("{problems}"));
        let table = &p.tables[0];
        let (line, column) = table.sql.lines().enumerate().find_map(|(i, l)| l.find(word).map(|at| (i + 1, l[..at].chars().count() + 1))).unwrap();
        let problem = placed(&text, table, Some((line, column)));
        let marked: String = problem.line_text.chars().skip(problem.column - 1).take(problem.length).collect();
        (problem.line, marked)
    };
    assert_eq!(place("select a, bad from e", "bad"), (12, "bad".into()));
    assert_eq!(place("\"select \\\"a\\\",\\n bad from e\"", "bad"), (12, "bad".into()));
    assert_eq!(place("'select ''x'' as bad'", "bad"), (12, "bad".into()));
    assert_eq!(place("'select ''x y'' as bad'", "'x"), (12, "''".into()));
    assert_eq!(place("|\n      select a,\n        é, bad\n      from e", "bad"), (14, "bad".into()));
    assert_eq!(place("|-\n\n      select 'a b' as bad\n", "'a b'"), (14, "'a b'".into()));
    assert_eq!(place(">\n      select a,\n      bad\n      from e", "bad"), (14, "bad".into()));
    assert_eq!(place("select a,\n      bad\n      from e", "bad"), (13, "bad".into()));
    // Behind a variable nothing can be placed: the variable itself is shown.
    assert_eq!(place("select ${X}, bad from e", "bad").0, 12);
    let text = SourceText::new("p.yaml", GOOD);
    let table = &parsed(GOOD).unwrap().tables[0];
    assert_eq!(
        placed(&text, table, None).to_string(),
        "p.yaml:12:10: error: table spend_by_user: no\n 12 |     sql: select user_id from events\n    |          ^^^^^^"
    );
    // A place beyond the SQL's end does no harm.
    assert_eq!(placed(&text, table, Some((9, 99))).line, 13);
}

proptest::proptest! {
    /// Whatever a hand does to a file: an answer, whose places lie in the file, and no panic.
    #[test]
    fn no_damage_to_a_file_is_too_much(at in 0..GOOD.len(), cut in 0usize..12, put in "[a-z0-9:{}\\[\\]\"'|>#&*!%@$,.<>()_ \n\té\u{E000}-]{0,6}") {
        let damaged = format!("{}{put}{}", &GOOD[..at], &GOOD[(at + cut).min(GOOD.len())..]);
        if let Err(problems) = parsed(&damaged) {
            assert!(!problems.list.is_empty());
            for problem in problems.list {
                let lines = damaged.split('\n').count();
                assert!((1..=lines).contains(&problem.line) && problem.column >= 1 && problem.length >= 1, "{problem}");
                let end = problem.column - 1 + problem.length;
                assert!(end <= problem.line_text.chars().count() + 1, "{problem}");
            }
        }
    }
}

/// Bad files and all that is said about them.
#[test]
fn bad_files_are_answered_with_every_problem_at_its_place() {
    let cases: &[(&str, String, &str)] = &[
        ("an empty file", String::new(), r#"
p.yaml:1:1: error: the file is empty
   expected: a pipeline: `pipeline`, `sources`, `tables` and `lake`
"#),
        ("nothing that is needed", "foo: bar\n".into(), r#"
p.yaml:1:1: error: unknown key `foo` in the pipeline file
 1 | foo: bar
   | ^^^
   expected: one of pipeline, sources, tables, lake, epoch, commit, memory, backlog, clean, observe

p.yaml:1:1: error: the pipeline file needs `pipeline`
 1 | foo: bar
   | ^
   expected: `pipeline: name`

p.yaml:1:1: error: the pipeline file needs `sources`
 1 | foo: bar
   | ^
   expected: `sources: {events: {kafka: {…}, columns: {…}}}`

p.yaml:1:1: error: the pipeline file needs `tables`
 1 | foo: bar
   | ^
   expected: `tables: {name: {sql: select …}}`

p.yaml:1:1: error: the pipeline file needs `lake`
 1 | foo: bar
   | ^
   expected: `lake: {root: ./lake}`
"#),
        ("no lake", with("lake: {root: ./lake}\n", ""), r#"
p.yaml:1:1: error: the pipeline file needs `lake`
 1 | pipeline: spend
   | ^
   expected: `lake: {root: ./lake}`
"#),
        ("a list at the top", "- a\n".into(), r#"
p.yaml:1:1: error: the pipeline file must be a map, not a list
 1 | - a
   | ^^^
   expected: keys: pipeline, sources, tables, lake, epoch, commit, memory, backlog, clean, observe
"#),
        ("everything at once", "pipline: Spend\nsources:\n  events:\n    kafka: {broker: localhost, topic: events, start: erliest}\n    columns:\n      a: strin\n      A: int64\n      b: list<double>\n      _op: string\n    watermark: {column: c, delay: 5 minutes}\n    max_record_bytes: 8MB8\ntables:\n  t__late:\n    sql:\n    allowed_latenes: 10\n    emit: on_closed\nlake: {root: ./lake, iceberg: {uri: ./c.db}}\nepoch: 5s\n".into(), r#"
p.yaml:1:1: error: unknown key `pipline` in the pipeline file
 1 | pipline: Spend
   | ^^^^^^^
   expected: one of pipeline, sources, tables, lake, epoch, commit, memory, backlog, clean, observe
   did you mean `pipeline`?

p.yaml:1:10: error: `Spend` cannot name a pipeline
 1 | pipline: Spend
   |          ^^^^^
   expected: a name of a-z, 0-9, _ and -, starting with a letter
   did you mean `spend`?

p.yaml:4:13: error: unknown key `broker` in `kafka`
 4 |     kafka: {broker: localhost, topic: events, start: erliest}
   |             ^^^^^^
   expected: one of brokers, topic, start, options
   did you mean `brokers`?

p.yaml:4:54: error: `erliest` is no value of `start`
 4 |     kafka: {broker: localhost, topic: events, start: erliest}
   |                                                      ^^^^^^^
   expected: one of earliest, latest
   did you mean `earliest`?

p.yaml:6:10: error: `strin` is no type
 6 |       a: strin
   |          ^^^^^
   expected: bool, int32, int64, float32, float64, decimal(p,s), string, binary, date, time, timestamp, timestamp_local, uuid, list<…>, struct<name: …>, map<string, …> or json
   did you mean `string`?

p.yaml:7:7: error: the columns `a` and `A` differ only in case
 7 |       A: int64
   |       ^
   expected: names that differ in more than case, which Iceberg's and Delta's readers do not look at; `from` takes each from its own name

p.yaml:8:15: error: `double` is no type
 8 |       b: list<double>
   |               ^^^^^^
   expected: bool, int32, int64, float32, float64, decimal(p,s), string, binary, date, time, timestamp, timestamp_local, uuid, list<…>, struct<name: …>, map<string, …> or json
   did you mean `float64`?

p.yaml:9:7: error: the column name `_op` is reserved
 9 |       _op: string
   |       ^^^
   expected: another name, with a path to the value: `op_: {type: …, from: _op}`

p.yaml:10:35: error: `5 minutes` is no duration
 10 |     watermark: {column: c, delay: 5 minutes}
    |                                   ^^^^^^^^^
   expected: a duration: a whole number with ms, s, m, h or d, such as 30s
   did you mean `5m`?

p.yaml:11:23: error: `8MB8` is no size
 11 |     max_record_bytes: 8MB8
    |                       ^^^^
   expected: a size: a whole number with KiB, MiB, GiB, KB, MB or GB, such as 8MiB, or plain bytes

p.yaml:13:3: error: `t__late` ends with `__late`, which marks tables that Millpond makes itself
 13 |   t__late:
    |   ^^^^^^^
   expected: another name

p.yaml:14:5: error: `sql` has no value
 14 |     sql:
    |     ^^^
   expected: `sql: …`: one select over one source, with or without one aggregate over tumble(source, interval '…')

p.yaml:15:5: error: unknown key `allowed_latenes` in a table
 15 |     allowed_latenes: 10
    |     ^^^^^^^^^^^^^^^
   expected: one of sql, key, allowed_lateness, emit, formats, partition_by, properties, comment
   did you mean `allowed_lateness`?

p.yaml:15:22: error: `10` is no duration
 15 |     allowed_latenes: 10
    |                      ^^
   expected: a duration: a whole number with ms, s, m, h or d, such as 30s

p.yaml:16:11: error: `on_closed` is no value of `emit`
 16 |     emit: on_closed
    |           ^^^^^^^^^
   expected: one of on_close, on_update
   did you mean `on_close`?

p.yaml:17:37: error: `./c.db` is no uri of a catalog
 17 | lake: {root: ./lake, iceberg: {uri: ./c.db}}
    |                                     ^^^^^^
   expected: sqlite://./relative/catalog.db or sqlite:////absolute/catalog.db
   did you mean `sqlite://./c.db`?

p.yaml:18:8: error: `epoch` must be a map, not a text
 18 | epoch: 5s
    |        ^^
   expected: keys: every
"#),
        ("a torn type", with("columns:\n", "columns: {x: decimal(12,2), t: timestamp}\n    colums:\n").replace("{column: event_time}", "{column: t}"), r#"
p.yaml:5:27: error: `,` is missing at the end
 5 |     columns: {x: decimal(12,2), t: timestamp}
   |                           ^
   expected: decimal(12,2); inside { } it needs quotes, since YAML ends a value at a comma: "decimal(12,2)"

p.yaml:6:5: error: unknown key `colums` in a source
 6 |     colums:
   |     ^^^^^^
   expected: one of kafka, file, format, columns, watermark, max_record_bytes, max_depth
   did you mean `columns`?
"#),
        ("names", with("pipeline: spend", "pipeline: My Pipe").replace("  events:\n", "  Events:\n").replace("spend_by_user", "a__dead"), r#"
p.yaml:1:11: error: `My Pipe` cannot name a pipeline
 1 | pipeline: My Pipe
   |           ^^^^^^^
   expected: a name of a-z, 0-9, _ and -, starting with a letter
   did you mean `my_pipe`?

p.yaml:3:3: error: `Events` cannot name a source
 3 |   Events:
   |   ^^^^^^
   expected: a name of a-z, 0-9 and _, starting with a letter
   did you mean `events`?

p.yaml:11:3: error: `a__dead` ends with `__dead`, which marks tables that Millpond makes itself
 11 |   a__dead:
    |   ^^^^^^^
   expected: another name
"#),
        ("owned options", with("topic: events}", "topic: events, options: {group.id: g, auto.offset.reset: earliest, security.protocol: sasl_sll}}"), r#"
p.yaml:4:63: error: `group.id` cannot be set: the consumer group is made of the pipeline, the source and the log, whose workers share the partitions
 4 |     kafka: {brokers: localhost:9092, topic: events, options: {group.id: g, auto.offset.reset: earliest, security.protocol: sasl_sll}}
   |                                                               ^^^^^^^^
   expected: any other property of librdkafka

p.yaml:4:76: error: `auto.offset.reset` cannot be set: reading begins at `start`, then at the log's offsets; it is never reset silently
 4 |     kafka: {brokers: localhost:9092, topic: events, options: {group.id: g, auto.offset.reset: earliest, security.protocol: sasl_sll}}
   |                                                                            ^^^^^^^^^^^^^^^^^
   expected: any other property of librdkafka

p.yaml:4:124: error: `sasl_sll` is no `security.protocol`
 4 |     kafka: {brokers: localhost:9092, topic: events, options: {group.id: g, auto.offset.reset: earliest, security.protocol: sasl_sll}}
   |                                                                                                                            ^^^^^^^^
   expected: one of plaintext, ssl, sasl_plaintext, sasl_ssl
   did you mean `sasl_ssl`?
"#),
        ("both inputs", with("    columns:", "    file: x\n    columns:"), r#"
p.yaml:5:5: error: a source has both `kafka` and `file`
 5 |     file: x
   |     ^^^^
   expected: one of the two; another source for the other
"#),
        ("no input", with("    kafka: {brokers: localhost:9092, topic: events}\n", ""), r#"
p.yaml:3:3: error: a source needs `kafka` or `file`
 3 |   events:
   |   ^^^^^^
   expected: `kafka: {brokers: …, topic: …}` or `file: path`
"#),
        ("a key in the wrong place", with("{root: ./lake}", "{root: ./lake, max_ahead: 1h}"), r#"
p.yaml:13:22: error: unknown key `max_ahead` in `lake`
 13 | lake: {root: ./lake, max_ahead: 1h}
    |                      ^^^^^^^^^
   expected: `max_ahead` belongs under sources.<source>.watermark; here: root, iceberg, namespace
"#),
        ("a variable that is not set", with("localhost:9092", "\"${BROKERS}\"") + "epoch: {every: \"${EVERY}\"}\n", r#"
p.yaml:4:23: error: the variable `BROKERS` is not set
 4 |     kafka: {brokers: "${BROKERS}", topic: events}
   |                       ^^^^^^^^^^
   expected: BROKERS in the environment, or a default: ${BROKERS:-…}

p.yaml:14:16: error: `${EVERY}` is no duration
 14 | epoch: {every: "${EVERY}"}
    |                ^^^^^^^^^^
   expected: a duration: a whole number with ms, s, m, h or d, such as 30s
"#),
        ("a duplicate", with("lake: {root: ./lake}", "lake: {root: ./lake}\npipeline: x\nmemory: lots"), r#"
p.yaml:14:1: error: `pipeline` stands here twice
 14 | pipeline: x
    | ^^^^^^^^
   expected: each key once; remove one of the two

p.yaml:15:9: error: `lots` is no size
 15 | memory: lots
    |         ^^^^
   expected: a size: a whole number with KiB, MiB, GiB, KB, MB or GB, such as 8MiB, or plain bytes
"#),
        ("no yaml", with("lake: {root: ./lake}", "lake: {root: ./lake"), r#"
p.yaml:13:19: error: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'
 13 | lake: {root: ./lake
    |                   ^
"#),
        ("watermark on another type", with("{column: event_time}", "{column: user_id, idle_after: nevr}"), r#"
p.yaml:9:25: error: the column `user_id` is no timestamp
 9 |     watermark: {column: user_id, idle_after: nevr}
   |                         ^^^^^^^
   expected: a timestamp column of this source: event_time

p.yaml:9:46: error: `nevr` is no duration
 9 |     watermark: {column: user_id, idle_after: nevr}
   |                                              ^^^^
   expected: a duration such as 30s, or `never`
"#),
        ("record parts", with("user_id: string", "_key: int64\n      _offset: {type: int64, from: a}\n      user_id: {type: string, from: \"a[x]\", unit: ms}"), r#"
p.yaml:6:13: error: `_key` cannot be read as this type
 6 |       _key: int64
   |             ^^^^^
   expected: binary or string

p.yaml:7:7: error: the column name `_offset` is reserved
 7 |       _offset: {type: int64, from: a}
   |       ^^^^^^^
   expected: `from: _offset` or no `from`, or another name for the column

p.yaml:8:40: error: `x` is no index
 8 |       user_id: {type: string, from: "a[x]", unit: ms}
   |                                        ^
   expected: a number from 0, or a quoted name, and `]`

p.yaml:8:51: error: a unit, but `string` holds no timestamp
 8 |       user_id: {type: string, from: "a[x]", unit: ms}
   |                                                   ^^
   expected: `unit` with timestamp or timestamp_local only
"#),
        ("table lists", with("  spend_by_user:", "  spend_by_user:\n    key: [a, a]\n    formats: [icebrg, delta, delta]\n    partition_by: [dya(x), \"day(x\"]"), r#"
p.yaml:12:14: error: `a` stands in `key` twice
 12 |     key: [a, a]
    |              ^
   expected: each column once

p.yaml:13:15: error: `icebrg` is no value of `formats`
 13 |     formats: [icebrg, delta, delta]
    |               ^^^^^^
   expected: one of iceberg, delta
   did you mean `iceberg`?

p.yaml:13:30: error: `delta` stands in `formats` twice
 13 |     formats: [icebrg, delta, delta]
    |                              ^^^^^
   expected: each format once

p.yaml:14:20: error: `dya` is no partition transform
 14 |     partition_by: [dya(x), "day(x"]
    |                    ^^^
   expected: a column, or day(column), hour(column), month(column), identity(column)
   did you mean `day`?

p.yaml:14:33: error: `day(` needs one column and `)`
 14 |     partition_by: [dya(x), "day(x"]
    |                                 ^
   expected: a column, or day(column), hour(column), month(column), identity(column)
"#),
        ("bounds", GOOD.to_string() + "memory: 1MiB\nepoch: {every: 0s}\nobserve: {listen: \":9090\"}\nbacklog: {hours: 1.5, bytes: 10g}\n", r#"
p.yaml:14:9: error: `memory` is too small to work with
 14 | memory: 1MiB
    |         ^^^^
   expected: at least 16MiB

p.yaml:15:8: error: `epoch.every` is too short
 15 | epoch: {every: 0s}
    |        ^^^^^^^^^^^
   expected: at least 1ms; 1s to 30s is usual

p.yaml:16:19: error: `:9090` is no address to listen on
 16 | observe: {listen: ":9090"}
    |                   ^^^^^^^
   expected: an IP address and a port, such as 127.0.0.1:9090 or [::1]:9090
   did you mean `127.0.0.1:9090`?

p.yaml:17:18: error: `1.5` is no whole number
 17 | backlog: {hours: 1.5, bytes: 10g}
    |                  ^^^
   expected: a whole number from 0

p.yaml:17:30: error: `10g` is no size
 17 | backlog: {hours: 1.5, bytes: 10g}
    |                              ^^^
   expected: a size: a whole number with KiB, MiB, GiB, KB, MB or GB, such as 8MiB, or plain bytes
   did you mean `10GiB`?
"#),
    ];
    let mut wrong = Vec::new();
    for (name, file, expected) in cases {
        let said = said(file);
        if said != expected.trim_matches('\n') {
            wrong.push(format!("=== {name}\n{said}\n"));
        }
    }
    assert!(wrong.is_empty(), "these are answered otherwise:\n{}", wrong.join(""));
}
