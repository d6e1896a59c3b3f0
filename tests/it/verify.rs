//! `verify` is an honest judge: right lakes are found right, and each of many planted corruptions is found
//! and named.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millpond::pipeline::{Pipeline, SourceSpec, TableFormatKind};
use millpond::store::local::DurableLocal;
use millpond::verify::{Lake, Options, Report, verify};
use millpond::worker::open_source;
use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::Pond;

const MINUTE: i64 = 60_000;
/// 2026-01-31T10:00:00Z.
const TEN: i64 = 1_769_853_600_000;

fn event(id: i64, user: &str, minute: i64, second: i64, cents: i64) -> String {
    let at = chrono::DateTime::from_timestamp_millis(TEN + minute * MINUTE + second * 1000).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
    let weight = (id * 37 % 101) as f64 / 7.0;
    format!(r#"{{"id":{id},"user_id":"{user}","event_time":"{at}","amount":"{}.{:02}","weight":{weight}}}"#, cents / 100, cents % 100)
}

fn append(pond: &Pond, file: usize, lines: &[String]) {
    let folder = pond.path().join("data");
    std::fs::create_dir_all(&folder).unwrap();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join(format!("p{file}.ndjson"))).unwrap();
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
}

fn yaml(dir: &Path, formats: &str, every: &str) -> String {
    format!(
        r#"
pipeline: proof
sources:
  events:
    file: "{dir}/data/*.ndjson"
    format: json
    columns: {{id: int64, user_id: string, event_time: timestamp, amount: "decimal(12,2)", weight: float64}}
    watermark: {{column: event_time, delay: 1m, idle_after: never}}
tables:
  spend:
    sql: |
      select window_start, user_id, sum(amount) as total, count(*) as n, avg(weight) as weight, avg(amount) as mean, stddev(weight) as spread
      from tumble(events, interval '5 minutes') where amount > 0 group by window_start, USER_ID
    key: [window_start, user_id]
    allowed_lateness: 20m
    formats: {formats}
  spend_log:
    sql: |
      select window_start, count(*) as n, sum(id) as ids, min(amount) filter (where id > 3) as least
      from tumble(events, interval '10 minutes') e group by window_start
    allowed_lateness: 15m
    formats: {formats}
  live:
    sql: |
      select window_start, window_end, count(distinct user_id) as users, avg(id) as middle, bool_or(amount > 5) as large
      from tumble(events, interval '1 hour', interval '30 minutes') group by window_start, window_end having count(*) > 2
    key: [window_start]
    emit: on_update
    formats: {formats}
  plain:
    sql: select id, upper(user_id) as who, event_time, 100 / (id % 10) as share from events where amount <> 3
    formats: {formats}
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
epoch: {{every: {every}}}
commit: {{every: {every}}}
"#,
        dir = dir.display()
    )
}

/// Three runs: rows in time, then corrections, late rows and records that nobody can read, then more of them.
fn fill(pond: &Pond) {
    let users = ["ann", "bob", "cid"];
    let first = |p: i64| (0..60).map(|n| event(n * 2 + p, users[(n % 3) as usize], n, p * 10, 100 + n * 7)).collect::<Vec<_>>();
    (0..2).for_each(|p| append(pond, p as usize, &first(p)));
    pond.until_end();
    for p in 0..2 {
        let mut lines = vec![event(201 + p, "ann", 50, 1, 900), event(203 + p, "bob", 47, 2, 50), "{\"id\": 1, broken".into(), event(205 + p, "cid", 3, 3, 77)];
        lines.extend((60..66).map(|n| event(n * 4 + p, users[(n % 3) as usize], n, 0, n)));
        append(pond, p as usize, &lines);
    }
    pond.until_end();
    for p in 0..2 {
        let mut lines = vec![event(401 + p, "ann", 51, 4, 1), event(403 + p, "dot", 62, 2, 300), event(405 + p, "eve", 10, 3, 5)];
        lines.extend((66..90).map(|n| event(n * 6 + p, users[(n % 3) as usize], n, 0, n)));
        append(pond, p as usize, &lines);
    }
    pond.until_end();
}

/// Verifies in this process: a process for each of many corruptions would take longer than the work.
fn judge(pond: &Pond, options: Options) -> Report {
    let pipeline = millpond::pipeline::load(Path::new("pipeline.yaml"), pond.path(), &|_| None).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(judged(&pipeline, options)).unwrap()
}

async fn judged(pipeline: &Pipeline, options: Options) -> Result<Report, millpond::verify::VerifyError> {
    let local = DurableLocal::open(&pipeline.lake.root).unwrap();
    let root = local.root().to_path_buf();
    let lake = Lake { store: Arc::new(local), root, state_folder: format!("_millpond/{}", pipeline.name) };
    let open = |spec: &SourceSpec| open_source(spec, "judge", "judge");
    verify(pipeline, &lake, &options, &open, &|_, _| {}).await
}

fn deep() -> Options {
    Options { deep: true, caught_up: true, ..Options::default() }
}

fn assert_right(report: &Report) {
    assert!(report.is_right() && report.is_proven(), "{report:#?}");
}

#[test]
fn right_tables_are_found_right() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s"));
    fill(&pond);
    let report = judge(&pond, deep());
    assert_right(&report);
    // It compared something in every table, late and dead ones included.
    for table in ["spend", "spend__late", "spend_log", "spend_log__late", "live", "live__late", "plain", "events__dead"] {
        for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
            let line = report.tables.iter().find(|t| t.table == table && t.format == format).unwrap();
            assert!(line.compared > Some(0), "{line:?}");
        }
    }
    let rows = |t: &str| pond.number(&format!("select count(*) as n from {t}"));
    assert!(rows("spend__late") > 0 && rows("events__dead") > 10 && pond.number("select count(*) as n from spend_log where _op = 'retract'") > 0);
    // The command says so, each of its forms.
    for args in [vec!["--deep"], vec![], vec!["--deep", "--table", "spend"], vec!["--deep", "--sample", "40"], vec!["--deep", "--from", "2026-01-31T10:10:00Z", "--to", "2026-01-31T10:40:00Z"]] {
        let ended = pond.millpond(&[vec!["verify", "pipeline.yaml", "--json", "--caught-up"], args.clone()].concat());
        assert_eq!(ended.code, 0, "{args:?} {ended:?}");
        let value: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&value["ok"], &value["proven"]), (&json!(true), &json!(true)), "{value}");
    }
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--deep"]);
    assert!(ended.code == 0 && ended.stdout.contains("is right"), "{ended:?}");
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--table", "spent"]);
    assert!(ended.code == 75 && ended.stderr.contains("spend_log"), "{ended:?}");
}
