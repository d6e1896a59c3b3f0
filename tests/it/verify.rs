//! `verify` is an honest judge: right lakes are found right, and each of many planted corruptions is found
//! and named.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, UInt32Array, make_array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use iceberg::spec::{FormatVersion, ManifestContentType, ManifestFile, ManifestList, ManifestListWriter};
use millpond::pipeline::{Pipeline, SourceSpec, TableFormatKind};
use millpond::store::local::DurableLocal;
use millpond::verify::{Lake, Options, Report, verify};
use millpond::source;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::Pond;

mod choices;
mod doubled;
mod expressions;
mod floats;
mod forgotten;
mod letters;
mod metadata;
mod readers;
mod rewrites;

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
    let lake = Lake::new(Arc::new(local), root, format!("_millpond/{}", pipeline.name));
    let open = |spec: &SourceSpec| source::open(spec, "judge", "judge");
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
    assert!(ended.code == 2 && ended.stderr.contains("spend_log"), "{ended:?}");
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--deep", "--from", "yesterday"]);
    assert!(ended.code == 2 && ended.stderr.contains("yesterday"), "{ended:?}");
    let fresh = Pond::new(&yaml(pond.path(), "[delta]", "5s"));
    let ended = fresh.millpond(&["verify", "pipeline.yaml"]);
    assert!(ended.code == 1 && ended.stderr.contains("has not run yet"), "{ended:?}");
    assert!(!fresh.path().join("lake").exists(), "asking makes no folder");
}

/// A lake that is right, and what is needed to damage it and to mend it again.
struct Site {
    pond: Pond,
    healthy: tempfile::TempDir,
    format: TableFormatKind,
    planted: Vec<String>,
    /// Corruptions that were not named.
    missed: Vec<String>,
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let before = value.clone();
    edit(&mut value);
    assert_ne!(value, before, "nothing was changed in {}", path.display());
    std::fs::write(path, value.to_string()).unwrap();
}

fn read_rows(path: &Path) -> RecordBatch {
    let bytes = bytes::Bytes::from(std::fs::read(path).unwrap());
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let schema = reader.schema().clone();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(|b| b.unwrap()).collect();
    concat_batches(&schema, &batches).unwrap()
}

/// Reads a Parquet file whole, changes it, writes it in its place.
fn edit_rows(path: &Path, edit: impl FnOnce(RecordBatch) -> RecordBatch) {
    let before = read_rows(path);
    let after = edit(before.clone());
    assert_ne!(before, after, "nothing was changed in {}", path.display());
    let mut writer = ArrowWriter::try_new(vec![], after.schema(), None).unwrap();
    writer.write(&after).unwrap();
    std::fs::write(path, writer.into_inner().unwrap()).unwrap();
}

/// One more in the first row of an integer, timestamp or decimal column.
fn one_more(batch: RecordBatch, column: &str) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let old = batch.column(at);
    let data = old.to_data();
    let width = old.data_type().primitive_width().unwrap();
    let mut values = data.buffers()[0].as_slice().to_vec();
    let first = data.offset() * width;
    values[first] = values[first].wrapping_add(1);
    let new = data.into_builder().buffers(vec![arrow::buffer::Buffer::from_vec(values)]).build().unwrap();
    let mut columns = batch.columns().to_vec();
    columns[at] = make_array(new);
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

fn in_text(batch: RecordBatch, column: &str, from: &str, to: &str) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let old = arrow::compute::cast(batch.column(at), &DataType::Utf8).unwrap();
    let mut done = false;
    let each = old.as_string::<i32>().iter().map(|v| v.map(|v| if !done && v.contains(from) { done = true; v.replace(from, to) } else { v.to_string() }));
    let new: ArrayRef = Arc::new(each.collect::<StringArray>());
    let mut columns = batch.columns().to_vec();
    columns[at] = arrow::compute::cast(&new, batch.column(at).data_type()).unwrap();
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

impl Site {
    fn new(format: TableFormatKind) -> Self {
        let pond = Pond::new("");
        pond.rewrite(&yaml(pond.path(), &format!("[{format}]"), "5s"));
        fill(&pond);
        Self::over(pond, format)
    }

    /// Around a lake that is right.
    fn over(pond: Pond, format: TableFormatKind) -> Self {
        let healthy = tempfile::tempdir().unwrap();
        copy(&pond.path().join("lake"), healthy.path());
        let site = Self { pond, healthy, format, planted: vec![], missed: vec![] };
        assert_right(&judge(&site.pond, deep()));
        site
    }

    fn lake(&self) -> PathBuf {
        self.pond.path().join("lake")
    }

    fn mend(&self) {
        std::fs::remove_dir_all(self.lake()).unwrap();
        copy(self.healthy.path(), &self.lake());
    }

    /// Mends the lake, damages it, and asserts that the judge names the damage.
    fn plant(&mut self, what: &str, kinds: &[&str], damage: impl FnOnce(&Self)) {
        self.mend();
        damage(self);
        let report = judge(&self.pond, deep());
        let found: BTreeSet<&str> = report.findings.iter().map(|f| f.kind).collect();
        if let Some(kind) = kinds.iter().find(|k| !found.contains(*k)) {
            self.missed.push(format!("{what}: expected {kind}, found {found:?}"));
        }
        self.planted.push(what.to_string());
    }

    /// The file of an entry of the log.
    fn entry(&self, nth: u64) -> PathBuf {
        self.lake().join(format!("_millpond/proof/log/{nth:020}.json"))
    }

    /// Numbers of the data entries that hold rows.
    fn data_entries(&self) -> Vec<u64> {
        let entries = files(&self.lake().join("_millpond/proof/log"));
        let rows = |p: &PathBuf| {
            let value: Value = serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap();
            value["body"]["data"]["counts"]["events"]["records"].as_u64() > Some(0)
        };
        entries.iter().filter(|p| rows(p)).map(|p| p.file_stem().unwrap().to_str().unwrap().parse().unwrap()).collect()
    }

    fn folder(&self, table: &str) -> PathBuf {
        self.lake().join(format!("{}/proof/{table}", self.format))
    }

    /// Data files that the table's readers see; the first is the oldest.
    fn live(&self, table: &str) -> Vec<PathBuf> {
        let folder = self.folder(table);
        match self.format {
            TableFormatKind::Iceberg => {
                let all = files(&folder.join("data"));
                all.into_iter().filter(|p| !p.to_str().unwrap().contains("/deletes-")).collect()
            }
            TableFormatKind::Delta => {
                let mut live = vec![];
                for commit in self.commits(table) {
                    for action in actions(&commit) {
                        let path = |kind: &str| action[kind]["path"].as_str().map(|p| folder.join(p));
                        live.extend(path("add"));
                        if let Some(gone) = path("remove") {
                            live.retain(|p| *p != gone);
                        }
                    }
                }
                live
            }
        }
    }

    /// Commit files of a Delta table, oldest first.
    fn commits(&self, table: &str) -> Vec<PathBuf> {
        files(&self.folder(table).join("_delta_log")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "json")).collect()
    }

    /// The newest metadata file of an Iceberg table.
    fn metadata(&self, table: &str) -> PathBuf {
        let catalog = rusqlite::Connection::open(self.lake().join("catalog.db")).unwrap();
        let location: String = catalog.query_row("select metadata_location from iceberg_tables where table_name = ?1", [table], |r| r.get(0)).unwrap();
        PathBuf::from(location.trim_start_matches("file://"))
    }

    fn catalog(&self, sql: &str, values: &[&str]) {
        let catalog = rusqlite::Connection::open(self.lake().join("catalog.db")).unwrap();
        assert_eq!(catalog.execute(sql, rusqlite::params_from_iter(values)).unwrap(), 1);
    }

    /// Manifest lists of an Iceberg table, oldest snapshot first.
    fn lists(&self, table: &str) -> Vec<PathBuf> {
        let metadata: Value = serde_json::from_slice(&std::fs::read(self.metadata(table)).unwrap()).unwrap();
        let mut snapshots = metadata["snapshots"].as_array().unwrap().clone();
        snapshots.sort_by_key(|s| s["sequence-number"].as_i64());
        snapshots.iter().map(|s| PathBuf::from(s["manifest-list"].as_str().unwrap().trim_start_matches("file://"))).collect()
    }

    /// Writes the newest manifest list of an Iceberg table again, with other manifests.
    fn edit_list(&self, table: &str, edit: impl FnOnce(Vec<ManifestFile>) -> Vec<ManifestFile>) {
        let metadata: Value = serde_json::from_slice(&std::fs::read(self.metadata(table)).unwrap()).unwrap();
        let snapshot = metadata["snapshots"].as_array().unwrap().iter().max_by_key(|s| s["sequence-number"].as_i64()).unwrap().clone();
        let path = PathBuf::from(snapshot["manifest-list"].as_str().unwrap().trim_start_matches("file://"));
        let list = ManifestList::parse_with_version(&std::fs::read(&path).unwrap(), FormatVersion::V2).unwrap();
        let manifests = edit(list.consume_entries().into_iter().collect());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let io = iceberg::io::FileIO::new_with_memory();
            let output = io.new_output("memory:///list.avro").unwrap();
            let number = |key: &str| snapshot[key].as_i64();
            let writer = output.writer().await.unwrap();
            let mut writer = ManifestListWriter::v2(writer, number("snapshot-id").unwrap(), number("parent-snapshot-id"), number("sequence-number").unwrap());
            writer.add_manifests(manifests.into_iter()).unwrap();
            writer.close().await.unwrap();
            std::fs::write(&path, io.new_input("memory:///list.avro").unwrap().read().await.unwrap()).unwrap();
        });
    }

    /// Changes the last commit of a Delta table that has such an action.
    fn edit_commit(&self, table: &str, kind: &str, edit: impl FnOnce(&mut Vec<Value>)) {
        let commit = self.commits(table).into_iter().rfind(|c| actions(c).iter().any(|a| a.get(kind).is_some())).unwrap();
        let mut lines = actions(&commit);
        let before = lines.clone();
        edit(&mut lines);
        assert_ne!(lines, before);
        std::fs::write(commit, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    }

    fn done(&self, least: usize) {
        assert!(self.missed.is_empty(), "{:#?}", self.missed);
        let names: BTreeSet<&String> = self.planted.iter().collect();
        assert_eq!(names.len(), self.planted.len());
        assert!(names.len() >= least, "{} corruptions planted", names.len());
    }

    /// Damage to what lies in files, whatever the format calls them.
    fn plant_in_files(&mut self) {
        self.plant("a data file removed", &["file-missing"], |s| std::fs::remove_file(&s.live("plain")[0]).unwrap());
        self.plant("a data file of a windowed table removed", &["file-missing"], |s| std::fs::remove_file(&s.live("spend")[0]).unwrap());
        self.plant("a data file cut short", &["file-size", "file-unreadable"], |s| {
            let path = s.live("plain")[0].clone();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        });
        self.plant("a data file overwritten with as many bytes of nothing", &["file-unreadable"], |s| {
            let path = s.live("plain")[0].clone();
            let bytes = std::fs::metadata(&path).unwrap().len();
            std::fs::write(path, vec![0; bytes as usize]).unwrap();
        });
        self.plant("a data file in the place of another", &["row-missing", "row-extra"], |s| {
            let live = s.live("plain");
            std::fs::copy(&live[0], &live[1]).unwrap();
        });
        self.plant("a value changed in a row", &["row-missing", "row-extra"], |s| edit_rows(&s.live("plain")[0], |b| one_more(b, "id")));
        self.plant("a row taken out of a file", &["file-rows"], |s| edit_rows(&s.live("plain")[0], |b| b.slice(1, b.num_rows() - 1)));
        self.plant("a row written twice into a file", &["file-rows"], |s| {
            edit_rows(&s.live("spend_log")[0], |b| concat_batches(&b.schema(), &[b.slice(0, 1), b.clone()]).unwrap());
        });
        self.plant("a window's sum off by one cent", &["row-different"], |s| edit_rows(s.live("spend").last().unwrap(), |b| one_more(b, "total")));
        self.plant("a window's count off by one", &["row-different"], |s| edit_rows(s.live("spend").last().unwrap(), |b| one_more(b, "n")));
        self.plant("a key of an upsert changed", &["row-missing", "row-extra"], |s| edit_rows(s.live("spend").last().unwrap(), |b| in_text(b, "user_id", "n", "m")));
        self.plant("a retraction turned into an insertion", &["row-extra"], |s| {
            let retracts = |p: &&PathBuf| std::fs::read(p).is_ok_and(|b| String::from_utf8_lossy(&b).contains("retract"));
            let path = s.live("spend_log").iter().rfind(retracts).unwrap().clone();
            edit_rows(&path, |b| in_text(b, "_op", "retract", "insert"));
        });
        self.plant("an inserted row of an append-only table changed", &["row-missing", "row-extra"], |s| edit_rows(&s.live("spend_log")[0], |b| one_more(b, "ids")));
        self.plant("a correction lost, its retraction and what it took back", &["row-missing"], |s| {
            let live = s.live("spend_log");
            let op = |b: &RecordBatch, r: usize| arrow::compute::cast(b.column_by_name("_op").unwrap(), &DataType::Utf8).unwrap().as_string::<i32>().value(r).to_string();
            let ids = |b: &RecordBatch, r: usize| b.column_by_name("ids").unwrap().as_primitive::<Int64Type>().value(r);
            let mut taken_back = None;
            for path in &live {
                let batch = read_rows(path);
                taken_back = taken_back.or((0..batch.num_rows()).find(|r| op(&batch, *r) == "retract").map(|r| ids(&batch, r)));
            }
            let mut lost = 0;
            for path in live.iter().filter(|p| { let b = read_rows(p); (0..b.num_rows()).any(|r| Some(ids(&b, r)) == taken_back) }) {
                edit_rows(path, |b| {
                    let kept: Vec<u32> = (0..b.num_rows()).filter(|r| Some(ids(&b, *r)) != taken_back).map(|r| r as u32).collect();
                    lost += b.num_rows() - kept.len();
                    take_record_batch(&b, &UInt32Array::from(kept)).unwrap()
                });
            }
            assert_eq!(lost, 2);
        });
        self.plant("a late row with another offset", &["row-missing", "row-extra"], |s| edit_rows(&s.live("spend__late")[0], |b| one_more(b, "_offset")));
        self.plant("a late row with another window", &["row-different"], |s| edit_rows(&s.live("spend__late")[0], |b| one_more(b, "window_start")));
        self.plant("a dead letter that names another table", &["row-missing", "row-extra"], |s| edit_rows(&s.live("events__dead")[0], |b| in_text(b, "_table", "plain", "other")));
        self.plant("an open window's count of users off by one", &["row-different"], |s| edit_rows(s.live("live").last().unwrap(), |b| one_more(b, "users")));
    }
}

fn actions(commit: &Path) -> Vec<Value> {
    std::fs::read_to_string(commit).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn every_corruption_of_an_iceberg_table_is_found_and_named() {
    let mut site = Site::new(TableFormatKind::Iceberg);
    site.plant_in_files();
    let deletes = |s: &Site| files(&s.folder("spend").join("data")).into_iter().rfind(|p| p.to_str().unwrap().contains("/deletes-")).unwrap();
    site.plant("a delete file lost", &["delete-file-missing", "key-twice"], |s| std::fs::remove_file(deletes(s)).unwrap());
    site.plant("a delete file cut short", &["delete-file-unreadable"], |s| {
        let bytes = std::fs::read(deletes(s)).unwrap();
        std::fs::write(deletes(s), &bytes[..bytes.len() - 9]).unwrap();
    });
    site.plant("a delete of a row beyond the file's end", &["delete-file-rows", "key-twice"], |s| {
        edit_rows(&deletes(s), |b| {
            let positions: ArrayRef = Arc::new(Int64Array::from(vec![1_000_000; b.num_rows()]));
            RecordBatch::try_new(b.schema(), vec![b.column(0).clone(), positions]).unwrap()
        });
    });
    site.plant("a delete taken out of a delete file", &["delete-file-rows", "key-twice"], |s| edit_rows(&deletes(s), |b| b.slice(1, b.num_rows() - 1)));
    site.plant("all deletes forgotten by the newest commit", &["commit-counts", "key-twice"], |s| {
        s.edit_list("spend", |m| m.into_iter().filter(|m| m.content == ManifestContentType::Data).collect());
    });
    site.plant("a manifest forgotten by the newest commit", &["commit-counts", "staged-missing", "row-count", "row-missing"], |s| {
        s.edit_list("plain", |m| m[1..].to_vec());
    });
    site.plant("a manifest named twice", &["file-twice"], |s| s.edit_list("plain", |m| [m.clone(), m[..1].to_vec()].concat()));
    site.plant("a manifest removed", &["metadata-missing"], |s| {
        let manifest = files(&s.folder("plain").join("metadata")).into_iter().find(|p| p.to_str().unwrap().contains("/manifest-")).unwrap();
        std::fs::remove_file(manifest).unwrap();
    });
    site.plant("a manifest list removed", &["metadata-missing"], |s| std::fs::remove_file(s.lists("spend").last().unwrap()).unwrap());
    let property = |s: &Site, table: &str, key: &str, value: Value| edit_json(&s.metadata(table), |m| m["properties"][key] = value);
    let stamp = |s: &Site| -> u64 {
        let metadata: Value = serde_json::from_slice(&std::fs::read(s.metadata("spend")).unwrap()).unwrap();
        metadata["properties"]["millpond.entry"].as_str().unwrap().parse().unwrap()
    };
    site.plant("a stamp moved back", &["stamp-disagrees", "stamp-offsets", "staged-early"], |s| property(s, "plain", "millpond.entry", json!("1")));
    site.plant("a stamp moved beyond the log", &["stamp-ahead"], |s| property(s, "spend", "millpond.entry", json!("99")));
    site.plant("a stamp that says other offsets", &["stamp-offsets"], |s| property(s, "spend", "millpond.offsets", json!(r#"{"events":{"0":1,"1":1}}"#)));
    site.plant("a stamp of another log", &["stamp-log"], |s| property(s, "spend", "millpond.log", json!("00000000-0000-4000-8000-000000000000")));
    site.plant("a stamp lost", &["stamp-missing"], |s| edit_json(&s.metadata("spend"), |m| drop(m["properties"].as_object_mut().unwrap().remove("millpond.log"))));
    site.plant("a table under another uuid", &["table-uuid"], |s| edit_json(&s.metadata("spend"), |m| m["table-uuid"] = json!("00000000-0000-4000-8000-000000000000")));
    site.plant("a table under another uuid that its properties know", &["table-uuid"], |s| {
        let other = json!("00000000-0000-4000-8000-000000000000");
        edit_json(&s.metadata("spend"), |m| (m["table-uuid"], m["properties"]["millpond.table-uuid"]) = (other.clone(), other));
    });
    site.plant("a table dropped from the catalog", &["table-missing"], |s| s.catalog("delete from iceberg_tables where table_name = ?1", &["spend"]));
    site.plant("a metadata file cut short", &["table-unreadable"], |s| {
        let bytes = std::fs::read(s.metadata("spend")).unwrap();
        std::fs::write(s.metadata("spend"), &bytes[..bytes.len() / 2]).unwrap();
    });
    site.plant("a table rolled back by its branch", &["rolled-back"], |s| {
        edit_json(&s.metadata("spend"), |m| {
            let first = m["snapshots"].as_array().unwrap().iter().min_by_key(|s| s["sequence-number"].as_i64()).unwrap()["snapshot-id"].clone();
            m["current-snapshot-id"] = first.clone();
            m["refs"]["main"]["snapshot-id"] = first;
        });
    });
    site.plant("the newest commit taken back in the catalog: late rows dropped", &["row-missing"], |s| {
        let before: Value = serde_json::from_slice(&std::fs::read(s.metadata("spend__late")).unwrap()).unwrap();
        let older = before["metadata-log"].as_array().unwrap().last().unwrap()["metadata-file"].as_str().unwrap().to_string();
        s.catalog("update iceberg_tables set metadata_location = ?1 where table_name = ?2", &[&older, "spend__late"]);
    });
    site.plant("a commit whose counts do not add up", &["commit-counts"], |s| {
        edit_json(&s.metadata("plain"), |m| {
            let newest = m["current-snapshot-id"].clone();
            let snapshot = m["snapshots"].as_array_mut().unwrap().iter_mut().find(|s| s["snapshot-id"] == newest).unwrap();
            snapshot["summary"]["total-records"] = json!("1");
        });
    });
    site.plant("a commit stamped below the one before it", &["commit-order"], |s| {
        let entry = stamp(s);
        edit_json(&s.metadata("spend"), |m| {
            let first = m["snapshots"].as_array_mut().unwrap().iter_mut().min_by_key(|s| s["sequence-number"].as_i64()).unwrap();
            first["summary"]["millpond.entry"] = json!((entry + 1).to_string());
        });
    });
    site.done(35);
}

#[test]
fn every_corruption_of_a_delta_table_is_found_and_named() {
    let mut site = Site::new(TableFormatKind::Delta);
    site.plant_in_files();
    site.plant("an add forgotten", &["commit-counts", "staged-missing", "row-missing"], |s| s.edit_commit("plain", "add", |a| a.retain(|a| a.get("add").is_none())));
    site.plant("a remove forgotten", &["commit-counts", "key-twice"], |s| s.edit_commit("spend", "remove", |a| a.retain(|a| a.get("remove").is_none())));
    site.plant("a file doubled under another name", &["row-count", "file-unstaged", "row-extra"], |s| {
        s.edit_commit("plain", "add", |a| {
            let mut add = a.iter().find(|a| a.get("add").is_some()).unwrap().clone();
            let folder = s.folder("plain");
            std::fs::copy(folder.join(add["add"]["path"].as_str().unwrap()), folder.join("again.parquet")).unwrap();
            add["add"]["path"] = json!("again.parquet");
            a.push(add);
        });
    });
    site.plant("an upserted file doubled", &["key-twice"], |s| {
        s.edit_commit("spend", "add", |a| {
            let mut add = a.iter().find(|a| a.get("add").is_some()).unwrap().clone();
            let folder = s.folder("spend");
            std::fs::copy(folder.join(add["add"]["path"].as_str().unwrap()), folder.join("again.parquet")).unwrap();
            add["add"]["path"] = json!("again.parquet");
            a.push(add);
        });
    });
    let add = |a: &mut Vec<Value>, edit: &dyn Fn(&mut Value)| edit(a.iter_mut().find_map(|a| a.get_mut("add")).unwrap());
    site.plant("a file's size changed", &["file-size"], |s| s.edit_commit("plain", "add", |a| add(a, &|add| add["size"] = json!(add["size"].as_u64().unwrap() + 1))));
    site.plant("a file's number of rows changed", &["file-rows"], |s| {
        s.edit_commit("plain", "add", |a| {
            add(a, &|add| {
                let mut stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
                stats["numRecords"] = json!(stats["numRecords"].as_u64().unwrap() + 1);
                add["stats"] = json!(stats.to_string());
            });
        });
    });
    let txn = |a: &mut Vec<Value>, edit: &dyn Fn(&mut Value)| edit(a.iter_mut().find_map(|a| a.get_mut("txn")).unwrap());
    let info = |a: &mut Vec<Value>, edit: &dyn Fn(&mut Value)| edit(a.iter_mut().find_map(|a| a.get_mut("commitInfo")).unwrap());
    site.plant("a stamp moved back", &["stamp-disagrees", "stamp-offsets", "staged-early"], |s| s.edit_commit("plain", "txn", |a| txn(a, &|t| t["version"] = json!(1))));
    site.plant("a stamp moved beyond the log", &["stamp-ahead"], |s| s.edit_commit("spend", "txn", |a| txn(a, &|t| t["version"] = json!(99))));
    site.plant("a stamp that says other offsets", &["stamp-offsets"], |s| s.edit_commit("spend", "txn", |a| info(a, &|i| i["millpond.offsets"]["events"]["0"] = json!(1))));
    site.plant("stamps of two logs", &["stamp-log"], |s| {
        s.edit_commit("spend", "txn", |a| a.push(json!({"txn": {"appId": "millpond/proof/00000000-0000-4000-8000-000000000000", "version": 1}})));
    });
    site.plant("stamps lost", &["stamp-missing"], |s| {
        for commit in s.commits("spend") {
            let lines: String = actions(&commit).iter().filter(|a| a.get("txn").is_none()).map(|a| format!("{a}\n")).collect();
            std::fs::write(commit, lines).unwrap();
        }
    });
    site.plant("a table made anew in its place", &["table-uuid"], |s| {
        let metadata = actions(&s.commits("spend")[0]).into_iter().find(|a| a.get("metaData").is_some()).unwrap();
        s.edit_commit("spend", "add", |a| {
            let mut other = metadata;
            other["metaData"]["id"] = json!("00000000-0000-4000-8000-000000000000");
            a.push(other);
        });
    });
    site.plant("a table under another id from its first version on", &["table-uuid"], |s| {
        s.edit_commit("spend", "metaData", |a| a.iter_mut().filter_map(|a| a.get_mut("metaData")).for_each(|m| m["id"] = json!("00000000-0000-4000-8000-000000000000")));
    });
    site.plant("a commit removed from the middle", &["metadata-missing"], |s| std::fs::remove_file(&s.commits("plain")[1]).unwrap());
    site.plant("the newest commit removed", &["row-missing"], |s| std::fs::remove_file(s.commits("plain").last().unwrap()).unwrap());
    site.plant("the newest commit of late rows removed", &["row-missing"], |s| std::fs::remove_file(s.commits("spend__late").last().unwrap()).unwrap());
    site.plant("a commit that is no JSON", &["metadata-missing"], |s| std::fs::write(s.commits("plain").last().unwrap(), "{\"add\":").unwrap());
    site.plant("a table's folder removed", &["table-missing"], |s| std::fs::remove_dir_all(s.folder("spend")).unwrap());
    site.plant("a commit whose counts do not add up", &["commit-counts"], |s| {
        s.edit_commit("plain", "add", |a| info(a, &|i| i["operationMetrics"]["numOutputRows"] = json!("1")));
    });
    site.plant("a commit stamped below the one before it", &["commit-order"], |s| {
        let commit = s.commits("spend")[1].clone();
        let mut lines = actions(&commit);
        info(&mut lines, &|i| i["millpond.entry"] = json!(98));
        std::fs::write(commit, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    });
    site.plant("a deletion vector that hides a row", &["row-missing"], |s| {
        s.edit_commit("plain", "add", |a| {
            add(a, &|add| {
                let mut positions = vec![];
                roaring::RoaringTreemap::from_iter([0u64]).serialize_into(&mut positions).unwrap();
                let bytes = [1_681_511_377u32.to_le_bytes().to_vec(), positions].concat();
                let text = z85(&bytes);
                add["deletionVector"] = json!({"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": bytes.len(), "cardinality": 1});
            });
        });
    });
    site.plant("a deletion vector that is gone", &["delete-file-missing"], |s| {
        s.edit_commit("plain", "add", |a| {
            add(a, &|add| add["deletionVector"] = json!({"storageType": "u", "pathOrInlineDv": z85(&[7; 16]), "offset": 1, "sizeInBytes": 40, "cardinality": 1}));
        });
    });
    site.done(35);
}

fn z85(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    let mut text = String::new();
    for word in bytes.chunks(4) {
        let mut padded = [0; 4];
        padded[..word.len()].copy_from_slice(word);
        let value = u32::from_be_bytes(padded);
        (0..5).rev().for_each(|p| text.push(DIGITS[(value / 85u32.pow(p) % 85) as usize] as char));
    }
    text
}

#[test]
fn every_corruption_of_the_log_is_found_and_named() {
    let mut site = Site::new(TableFormatKind::Delta);
    let entries = site.data_entries();
    assert!(entries.len() >= 3, "{entries:?}");
    let (first, second, last) = (entries[0], entries[1], entries[entries.len() - 1]);
    let data = |s: &Site, nth: u64, edit: &dyn Fn(&mut Value)| edit_json(&s.entry(nth), |e| edit(&mut e["body"]["data"]));
    let shift = |key: &'static str, by: i64| move |d: &mut Value| d["intervals"]["events"]["0"][key] = json!(d["intervals"]["events"]["0"][key].as_i64().unwrap() + by);
    site.plant("an interval that begins too early", &["interval-overlap"], |s| data(s, second, &shift("from", -2)));
    site.plant("an interval that begins too late", &["interval-gap"], |s| data(s, second, &shift("from", 2)));
    site.plant("an interval that ends too late", &["interval-overlap"], |s| data(s, first, &shift("to", 3)));
    site.plant("a newest interval that ends too early", &["stamp-offsets", "entry-counts", "row-extra"], |s| data(s, last, &shift("to", -3)));
    site.plant("an interval that runs backwards", &["interval-backwards"], |s| data(s, second, &shift("to", -100_000)));
    site.plant("an entry removed", &["log-gap"], |s| std::fs::remove_file(s.entry(second)).unwrap());
    site.plant("an entry cut short", &["log-entry-unreadable"], |s| {
        let bytes = std::fs::read(s.entry(second)).unwrap();
        std::fs::write(s.entry(second), &bytes[..bytes.len() / 2]).unwrap();
    });
    site.plant("the newest entry removed", &["stamp-ahead"], |s| {
        let log = files(&s.lake().join("_millpond/proof/log"));
        log.iter().filter(|p| **p >= s.entry(last)).for_each(|p| std::fs::remove_file(p).unwrap());
    });
    site.plant("an entry of another log", &["log-uuid"], |s| edit_json(&s.entry(second), |e| e["log"] = json!("00000000-0000-4000-8000-000000000000")));
    site.plant("an attempt decided twice", &["attempt-twice"], |s| {
        let other: Value = serde_json::from_slice(&std::fs::read(s.entry(first)).unwrap()).unwrap();
        edit_json(&s.entry(second), |e| e["attempt"] = other["attempt"].clone());
    });
    site.plant("an entry made under a plan that was none", &["plan-stale"], |s| edit_json(&s.entry(second), |e| e["plan"] = json!(7)));
    site.plant("a bound below the watermark", &["bound-passed"], |s| data(s, last, &|d| d["bounds"]["events"] = json!(0)));
    site.plant("an event time that no record has", &["event-time"], |s| {
        data(s, first, &|d| d["intervals"]["events"]["0"]["max_event_us"] = json!(TEN * 1000 + 1));
    });
    site.plant("a number of records that the offsets do not hold", &["entry-counts"], |s| data(s, second, &|d| d["counts"]["events"]["records"] = json!(1)));
    site.plant("a number of dead letters that the records do not make", &["entry-counts"], |s| data(s, second, &|d| d["counts"]["events"]["dead"] = json!(0)));
    site.plant("a staged file that no entry names", &["file-unstaged", "row-count"], |s| {
        data(s, second, &|d| d["files"].as_array_mut().unwrap().retain(|f| f["table"] != "plain"));
    });
    site.plant("another lateness in the plan", &["row-different", "row-missing"], |s| {
        edit_json(&s.entry(0), |e| e["body"]["plan"]["tables"]["spend"]["allowed_lateness_us"] = json!(0));
    });
    site.plant("another query in the plan", &["row-different"], |s| {
        edit_json(&s.entry(0), |e| {
            let sql = e["body"]["plan"]["tables"]["spend"]["sql"].as_str().unwrap().replace("amount > 0", "amount > 1.5");
            e["body"]["plan"]["tables"]["spend"]["sql"] = json!(sql);
        });
    });
    site.plant("a log without a beginning", &["log-birth"], |s| {
        let other: Value = serde_json::from_slice(&std::fs::read(s.entry(first)).unwrap()).unwrap();
        edit_json(&s.entry(0), |e| e["body"] = other["body"].clone());
    });
    site.plant("another file in the place of a partition", &["partition-name"], |s| {
        data(s, second, &|d| d["intervals"]["events"]["0"]["name"] = json!("elsewhere.ndjson"));
    });
    site.done(20);
    // The source itself: a record that is not the one that was read.
    std::fs::remove_dir_all(site.lake()).unwrap();
    copy(site.healthy.path(), &site.lake());
    let path = site.pond.path().join("data/p0.ndjson");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"ann\"", "\"amy\"", 1)).unwrap();
    let report = judge(&site.pond, deep());
    let different = report.findings.iter().find(|f| f.kind == "row-missing" && f.table.as_deref() == Some("spend")).unwrap();
    assert!(different.rows[0].offsets.contains(&"0:0".to_string()) && different.rows[0].key.contains("amy"), "{different:?}");
    // Lines that are gone: said, not passed over, and nothing is called wrong for it.
    std::fs::write(&path, text.lines().take(70).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let report = judge(&site.pond, deep());
    assert!(report.is_right() && !report.is_proven(), "{report:#?}");
    let ended = site.pond.millpond(&["verify", "pipeline.yaml", "--deep"]);
    assert!(ended.code == 4 && ended.stdout.contains("no longer in the source"), "{ended:?}");
    // A file that was rotated: the log says nothing wrong of what was read from it, and nobody can prove it any more.
    let rotated = path.with_file_name("p0-rotated.ndjson");
    std::fs::write(&rotated, text.replace("\"ann\"", "\"amy\"")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let report = judge(&site.pond, deep());
    assert!(report.is_right() && !report.is_proven() && report.unprovable.iter().any(|u| u.contains("another has its place")), "{report:#?}");
    std::fs::remove_file(&rotated).unwrap();
    // A file that is gone gives the others its number.
    let report = judge(&site.pond, deep());
    assert!(report.is_right() && report.unprovable.iter().any(|u| u.contains("in the order of names")), "{report:#?}");
}

/// Edges from what the judge uses to what makes the tables, and why they cannot make both wrong in one way.
const ALLOWED: [(&str, &str, &str); 1] = [(
    "epoch/ledger.rs",
    "time",
    "the judge reads a checkpoint's ledger as data, compares it with watermarks and horizons of its own, and calls none of its functions",
)];

/// Code without comments and without tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|l| l.split("//").next().unwrap()).map(|l| format!("{l}\n")).collect()
}

/// Files of a module that are not tests alone.
fn sources(module: &str) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = files(&src.join(module));
    all.extend([src.join(format!("{module}.rs"))].into_iter().filter(|p| p.exists()));
    let mut tests = BTreeSet::new();
    for path in &all {
        let text = std::fs::read_to_string(path).unwrap();
        for rest in text.split("#[cfg(test)]\n").skip(1) {
            let name = rest.lines().find_map(|l| l.split_once("mod ")?.1.strip_suffix(';'));
            let first = rest.lines().find(|l| !l.starts_with("#[")).unwrap_or_default();
            tests.extend(name.filter(|n| first.ends_with(&format!("mod {n};"))).map(str::to_string));
        }
    }
    all.retain(|p| !tests.contains(p.file_stem().unwrap().to_str().unwrap()) && !p.to_str().unwrap().ends_with("_tests.rs"));
    all
}

/// Modules that a file names: `crate::name`, or each of `crate::{name, …}`.
fn named(code: &str) -> BTreeSet<String> {
    let word = |t: &str| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut parts = vec![String::new()];
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => parts.push(String::new()),
                _ => {}
            }
            parts.last_mut().unwrap().push(c);
        }
        found.extend(parts.iter().map(|p| word(p.trim_start_matches([',', ' ', '\n']))).filter(|w| !w.is_empty()));
    }
    found
}

/// Whatever makes the tables may not judge them, by whatever way.
#[test]
fn the_judge_uses_nothing_of_what_makes_the_tables() {
    assert_eq!(named("use crate::{a, b::{c, d}, e}; crate::f::g(); pub(crate) fn"), ["a", "b", "e", "f"].map(str::to_string).into());
    let banned = ["transform", "partial", "fold", "commit", "time", "worker", "cli", "maintain"];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut reached, mut todo) = (BTreeSet::from(["verify".to_string()]), vec!["verify".to_string()]);
    let mut used = BTreeSet::new();
    while let Some(module) = todo.pop() {
        for path in sources(&module) {
            let code = code(&path);
            let file = path.strip_prefix(&src).unwrap().to_str().unwrap().to_string();
            let depth = file.split('/').count() - 1 - usize::from(file.ends_with("/mod.rs"));
            let climbs = |to: &&str| code.contains(&format!("{}{to}::", "super::".repeat(depth + 1)));
            assert!(!banned.iter().any(|to| climbs(to)), "{file} climbs out of its module");
            for name in named(&code) {
                if banned.contains(&name.as_str()) {
                    let allowed = ALLOWED.iter().find(|(from, to, _)| *from == file && *to == name);
                    used.insert(allowed.unwrap_or_else(|| panic!("{file} uses {name}, and the judge uses {module}")));
                } else if src.join(&name).is_dir() || src.join(format!("{name}.rs")).is_file() {
                    if reached.insert(name.clone()) {
                        todo.push(name);
                    }
                }
            }
        }
    }
    assert_eq!(used.len(), ALLOWED.len(), "an edge that is allowed and not there: {used:?}");
    for module in ["decode", "epoch", "pipeline", "read", "source", "stage", "store"] {
        assert!(reached.contains(module), "{module}: {reached:?}");
    }
    for path in sources("verify") {
        let code = code(&path);
        assert!(!code.contains("Ledger::") && !code.contains("ledger.apply") && !code.contains("ledger.position"), "{}: a ledger is data here", path.display());
    }
    let lib = std::fs::read_to_string(src.join("lib.rs")).unwrap();
    let at = |m: &str| lib.find(&format!("pub mod {m};")).unwrap();
    assert!(at("commit") < at("verify") && at("verify") < at("worker"));
}

/// Long runs: the log's beginning is gone, and what it said is kept.
#[test]
fn a_truncated_log_is_proven_from_its_history() {
    let pond = Pond::new("");
    // Few commits between the checkpoints of the Delta log, so that it is read from one.
    let text = yaml(pond.path(), "[iceberg, delta]", "1ms");
    pond.rewrite(&text.replace("    formats: [", "    properties: {delta.checkpointInterval: \"3\"}\n    formats: ["));
    // Many files: each is read in a turn of its own, and epochs are short.
    let rows = |from: i64, minute: i64| {
        for file in 0..26 {
            let lines: Vec<String> = (0..20).map(|n| event(from + file as i64 * 20 + n, ["ann", "bob"][n as usize % 2], minute + n % 10, file as i64, 100 + n)).collect();
            append(&pond, 10 + file, &lines);
        }
    };
    let truncated = || !files(&pond.path().join("lake/_millpond/proof/log"))[0].ends_with("00000000000000000000.json");
    let mut run = 0;
    while run < 3 || !truncated() {
        assert!(run < 30, "the log was not truncated");
        // The third brings rows whose windows are over for good.
        rows(run * 1000, if run == 2 { 0 } else { run * 20 });
        pond.until_end();
        run += 1;
    }
    let report = judge(&pond, deep());
    assert_right(&report);
    assert_eq!(report.entries.unwrap().0, 0);
    assert!(files(&pond.path().join("lake/delta/proof/plain")).iter().any(|f| f.to_str().unwrap().contains(".checkpoint.")));
    // The log as a table goes back to its beginning, too.
    assert_eq!(pond.number("select min(entry) as first from millpond.epochs"), 0);
    // A sleeper that wakes may put its entry on a name that was freed.
    let log = pond.path().join("lake/_millpond/proof/log");
    let whole = || pond.query("select * from millpond.epochs order by entry, source, partition");
    let (before, stray) = (whole(), log.join("00000000000000000001.json"));
    let newest = files(&log).pop().unwrap();
    std::fs::copy(newest, &stray).unwrap();
    assert_eq!(whole(), before);
    std::fs::remove_file(&stray).unwrap();
    assert!(report.tables.iter().any(|t| t.table == "spend__late" && t.compared > Some(0)), "{report:#?}");

    let history = pond.path().join("lake/_millpond/proof/history");
    let segment = files(&history)[0].clone();
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &bytes[..bytes.len() / 2]).unwrap();
    let report = judge(&pond, deep());
    assert!(report.findings.iter().any(|f| f.kind == "history-unreadable"), "{report:#?}");
    // Without it nothing is called wrong: it is said what cannot be known.
    std::fs::remove_dir_all(&history).unwrap();
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--deep", "--caught-up"]);
    assert!(ended.code == 4 && ended.stdout.contains("cannot be proven"), "{ended:?}");
    let log = files(&pond.path().join("lake/_millpond/proof/log"));
    let newest = log.iter().rfind(|p| std::fs::read_to_string(p).unwrap().contains("\"body\":{\"checkpoint\"")).unwrap();
    edit_json(newest, |e| {
        let at = &mut e["body"]["checkpoint"]["ledger"]["sources"]["events"]["partitions"]["0"]["offset"];
        *at = json!(at.as_i64().unwrap() - 1);
    });
    let report = judge(&pond, deep());
    assert!(!report.is_right(), "{report:#?}");
}

#[test]
fn a_changed_pipeline_file_is_judged_by_the_plan_of_each_entry() {
    let pond = Pond::new("");
    let first = yaml(pond.path(), "[iceberg, delta]", "5s");
    let minutes = |from: i64, range: std::ops::Range<i64>| range.map(|n| event(from + n, ["ann", "bob"][n as usize % 2], n, 0, 100 + n)).collect::<Vec<_>>();
    pond.rewrite(&first);
    append(&pond, 0, &minutes(0, 0..40));
    pond.until_end();
    // A column, a lateness, a table.
    let second = first
        .replace("100 / (id % 10) as share from", "100 / (id % 10) as share, amount from")
        .replace("allowed_lateness: 20m", "allowed_lateness: 5m")
        .replace("lake: {root", "  born:\n    sql: select window_start, count(*) as n from tumble(events, interval '5 minutes') group by window_start\n    key: [window_start]\nlake: {root");
    pond.rewrite(&second);
    append(&pond, 0, &minutes(100, 30..60));
    pond.until_end();
    append(&pond, 0, &[event(300, "ann", 44, 1, 9), event(301, "ann", 55, 1, 9), event(302, "bob", 58, 3, 7)]);
    pond.until_end();
    assert_right(&judge(&pond, deep()));
    assert!(pond.number("select count(*) as n from spend__late") > 0);
    // Other rows and values of a plain table from here on.
    pond.rewrite(&second.replace("where amount <> 3", "where amount <> 1.04").replace("upper(user_id) as who", "lower(user_id) as who"));
    append(&pond, 0, &minutes(400, 58..90));
    pond.until_end();
    assert_right(&judge(&pond, deep()));
    assert!(pond.number("select count(*) as n from plain where who = 'ann'") > 0);
}

/// The same pipeline with a topic in the place of files.
fn over(broker: &Broker, topic: &str) -> Pond {
    let pond = Pond::new("");
    let kafka = format!("kafka: {{brokers: '{}', topic: {topic}, start: earliest}}", broker.address());
    let text = yaml(pond.path(), "[iceberg, delta]", "300ms");
    let line = text.lines().find(|l| l.contains("file:")).unwrap().trim().to_string();
    pond.rewrite(&text.replace(&line, &kafka));
    pond
}

#[test]
fn a_topic_is_read_again_and_expired_records_are_said_to_be_unprovable() {
    let broker = Broker::start();
    let topic = "verified";
    broker.create_topic(topic, 2);
    let pond = over(&broker, topic);
    let producer = broker.producer();
    let send = |range: std::ops::Range<i64>, minute: i64| {
        for n in range {
            let stamp = TEN + 200 * MINUTE;
            producer.send(topic, (n % 2) as i32, "key", &event(n, ["ann", "bob"][(n / 2) as usize % 2], minute + n % 30, 0, n), stamp);
        }
        producer.flush();
    };
    send(0..60, 0);
    broker.produce_in_transaction(topic, 1, &["aborted"], false);
    broker.produce_in_transaction(topic, 0, &[&event(70, "cid", 12, 0, 5), "no json"], true);
    pond.until_end();
    send(100..160, 40);
    pond.until_end();
    send(200..260, 5);
    pond.until_end();
    let report = judge(&pond, deep());
    assert_right(&report);
    assert!(report.tables.iter().any(|t| t.table == "spend__late" && t.compared > Some(0)), "{report:#?}");
    broker.delete_records(topic, 0, 20);
    let report = judge(&pond, deep());
    assert!(report.is_right() && report.unprovable.iter().any(|u| u.contains("partition 0: offsets 0..20")), "{report:#?}");
    assert!(report.tables.iter().any(|t| t.table == "spend" && t.compared > Some(0)), "later windows are still compared: {report:#?}");
}

/// A compacted topic loses the older records of a key from between others: what they counted in is not proven, and wrong
/// in a topic that is not compacted.
#[test]
fn what_a_compacted_topic_has_lost_is_said_to_be_unprovable() {
    let broker = Broker::own();
    let topic = "compacted";
    broker.create_topic_with(topic, 2, &[("cleanup.policy", "compact"), ("segment.ms", "1000"), ("min.cleanable.dirty.ratio", "0.01"), ("max.compaction.lag.ms", "1000")]);
    let pond = over(&broker, topic);
    let producer = broker.producer();
    // Segments end by the times of records: the first one ends after the first run.
    let stamp = |n: i64| TEN + (200 + (n - 199).max(0)) * MINUTE;
    let send = |partition: i32, key: &str, n: i64, minute: i64| producer.send(topic, partition, key, &event(n, "ann", minute, 0, n * 100), stamp(n));
    for n in 0..20 {
        send(0, ["a", "b"][n as usize % 2], n, n);
        // Each of them has a key of its own: nothing of this partition goes.
        send(1, &format!("key {n}"), 100 + n, n);
    }
    producer.send(topic, 0, "a", "no json", stamp(0));
    producer.flush();
    pond.until_end();
    let mut report = judge(&pond, deep());
    assert_right(&report);
    // The segment that is written is not compacted.
    for round in 0..60 {
        send(0, ["a", "b"][round % 2], 200 + round as i64, 40 + round as i64);
        producer.flush();
        std::thread::sleep(std::time::Duration::from_secs(1));
        report = judge(&pond, deep());
        if !report.is_proven() {
            break;
        }
    }
    let told = |what: &str| report.unprovable.iter().any(|u| u.contains(what));
    assert!(report.is_right() && told("partition 0: records of the offsets 0..21 that the log counted are not in the source any more, and the topic is compacted"), "{report:#?}");
    assert!(!told("partition 1: "), "{report:#?}");
    let compared = |table: &str| report.tables.iter().find(|t| t.table == table).and_then(|t| t.compared).unwrap();
    assert!(compared("plain") > 10, "what is still there is compared: {report:#?}");
    pond.until_end();
    let report = judge(&pond, deep());
    assert!(report.is_right(), "{report:#?}");
    // In a topic that is not compacted nothing of that may be.
    broker.alter_topic(topic, &[("cleanup.policy", "delete"), ("retention.ms", "-1")]);
    let report = judge(&pond, deep());
    let kinds: BTreeSet<&str> = report.findings.iter().map(|f| f.kind).collect();
    assert!(kinds.contains("entry-counts") && kinds.contains("row-extra"), "{kinds:?}");
}

/// Types and aggregates of all kinds: what is computed by two ways must be one.
#[test]
fn every_type_and_aggregate_is_computed_alike() {
    let pond = Pond::new("");
    pond.rewrite(&format!(
        r#"
pipeline: proof
sources:
  events:
    file: "{dir}/data/*.ndjson"
    format: json
    columns:
      ID: int64
      b: bool
      i: int32
      f: float32
      d: float64
      m: "decimal(38,4)"
      s: string
      x: binary
      day: date
      tod: time
      at: timestamp
      loc: timestamp_local
      u: uuid
      l: "list<int64>"
      st: "struct<a: int64, b: string>"
      mp: "map<string, int64>"
      j: json
    watermark: {{column: at, delay: 1m, idle_after: never}}
tables:
  all_columns:
    sql: >
      select id, b, i, f, d, m, s, x, day, tod, at, loc, u, l, st, mp, j, i + 1 as next, -id as minus, d / 3 as third, m * 2 as twice, s || '!' as loud,
      case when d > 0.5 then 1.5 else d end as picked, cast(s as int) as number, date_trunc('hour', at) as hour, coalesce(st['a'], 7) as inner_a
      from events where d < 1e300 and f <> 0.25
  sums:
    sql: >
      select window_start, b, f, sum(id) as ids, sum(i) as eyes, sum(m) as money, avg(m) as mean_money, avg(id) as mean_id, avg(d) as mean_d,
      sum(d) as ds, sum(f) as fs, stddev_pop(d) as spread, variance(d) as variance, variance_pop(i) as spread_i, min(s) as low, max(s) as high, min(at) as first, max(day) as last_day,
      min(x) as bytes, count(distinct f) as floats, count(distinct s) as texts, bool_and(b) as every, bool_or(b) as some, max(f) as most,
      min(d) as least, count(i) filter (where i > 3) as large, sum(m) + 1 as more
      from tumble(events, interval '1 day', 'Europe/Berlin') group by window_start, b, f
    key: [window_start, b, f]
    allowed_lateness: 30d
  by_expression:
    sql: >
      select window_start, upper(s) as who, i % 3 as third, count(*) as n, max(loc) as latest, sum(m) filter (where b) as paid
      from tumble(events, interval '90 minutes', interval '20 minutes') group by window_start, upper(s), i % 3 having count(*) < 4
lake: {{root: ./lake}}
epoch: {{every: 1s}}
"#,
        dir = pond.path().display()
    ));
    let row = |n: i64| {
        let at = n as usize;
        let (f, s, x) = ([0.5, 0.25, 1.5, -0.0, 0.0][at % 5], ["ann", "Bob", "7", "çé"][at % 4], ["AAE=", "//8=", ""][at % 3]);
        let mut row = json!({
            "ID": if n % 40 == 7 { json!(i64::MAX - n) } else { json!(n * 3 - 50) },
            "b": n % 3 == 0, "i": n % 11, "f": f, "d": (n as f64 * 0.37).sin(), "m": format!("{}.{:04}", n * n * 1_000_003, n),
            "s": s, "x": x, "day": format!("2026-01-{:02}", 1 + n % 28),
            "tod": format!("{:02}:30:00.000{:03}", n % 24, n), "at": chrono::DateTime::from_timestamp_millis(TEN + n * 17 * MINUTE).unwrap().to_rfc3339(),
            "loc": format!("2026-02-{:02}T01:02:03", 1 + n % 28), "u": format!("00000000-0000-4000-8000-{n:012}"), "l": [n, null, n + 1], "st": {"a": n, "b": "x"},
            "mp": {"k": n}, "j": {"any": [n, "thing"]},
        });
        // Nulls everywhere but in the time.
        let columns: Vec<String> = row.as_object().unwrap().keys().filter(|k| *k != "at").cloned().collect();
        if n % 6 == 5 {
            row[&columns[n as usize % columns.len()]] = Value::Null;
        }
        row.to_string()
    };
    for run in 0..3 {
        append(&pond, 0, &(run * 80..run * 80 + 80).map(row).collect::<Vec<_>>());
        append(&pond, 1, &(run * 80..run * 80 + 80).map(|n| row(n * 7 % 240)).collect::<Vec<_>>());
        pond.until_end();
    }
    pond.run(&["--final"]);
    let report = judge(&pond, deep());
    assert_right(&report);
    for table in ["all_columns", "sums", "by_expression", "events__dead"] {
        assert!(report.tables.iter().any(|t| t.table == table && t.compared > Some(20)), "{table}: {report:#?}");
    }
    assert!(pond.number("select count(*) as n from sums where ids is null") > 0, "a sum that did not fit");
}
