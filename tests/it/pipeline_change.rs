//! A changed pipeline file on a log that exists, and a stop with a backlog.

use serde_json::{Value, json};

use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, texts};
use std::process::Command;
use std::time::{Duration, Instant};

struct File {
    lateness: &'static str,
    sum: &'static str,
    plain: &'static str,
    more: &'static str,
}

fn pipeline(broker: &Broker, topic: &str, file: &File) -> String {
    let File { lateness, sum, plain, more } = file;
    format!(
        "pipeline: changing
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest}}
    format: json
    columns: {{user_id: string, event_time: timestamp, amount: int64}}
    watermark: {{column: event_time}}
tables:
  spend:
    sql: \"select window_start, user_id, {sum} as amount from tumble(events, interval '5 minutes') group by window_start, user_id\"
    key: [window_start, user_id]
    allowed_lateness: {lateness}
  plain: {{sql: \"select {plain} from events\"}}
{more}
lake: {{root: ./lake}}
",
        broker.address()
    )
}

#[test]
fn a_changed_file_goes_on_or_is_refused() {
    let broker = Broker::start();
    let topic = "changing";
    broker.create_topic(topic, 1);
    let sends = |user: &str, minute: &str| {
        broker.produce(topic, 0, user, &format!(r#"{{"user_id":"{user}","event_time":"2026-01-31T{minute}:00Z","amount":1}}"#), 0);
    };
    let mut file = File { lateness: "10m", sum: "sum(amount)", plain: "user_id", more: "" };
    let pond = Pond::new(&pipeline(broker, topic, &file));
    let spend = || texts(&pond.rows("changing", "spend"), &["window_start", "user_id", "amount"]);
    let late = || texts(&pond.rows("changing", "spend__late"), &["event_time", "window_start"]);

    sends("A", "10:01");
    sends("A", "10:07");
    sends("Z", "10:16");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 1"]);

    // Raised: what was dropped stays dropped (the horizon is at 10:06), the rest lives longer.
    file.lateness = "1h";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("Z", "10:40");
    pond.until_end();
    sends("A", "10:08");
    sends("A", "10:02");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 2", "10:15 Z 1"]);
    assert_eq!(late(), ["10:02 10:00"]);

    // Lowered: from the next entry on.
    file.lateness = "0s";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("Z", "10:41");
    pond.until_end();
    sends("A", "10:09");
    pond.until_end();
    assert_eq!(spend(), ["10:00 A 1", "10:05 A 2", "10:15 Z 1"]);
    assert_eq!(late(), ["10:02 10:00", "10:09 10:05"]);

    // A column is added, a table is added.
    file.plain = "user_id, amount, event_time as at";
    file.more = "  born: {sql: \"select window_start, count(*) as n from tumble(events, interval '5 minutes') group by window_start\", key: [window_start], allowed_lateness: 5m}\n";
    pond.rewrite(&pipeline(broker, topic, &file));
    let validated = pond.millpond(&["validate", "pipeline.yaml", "--json"]);
    assert_eq!(validated.code, 0, "{validated:?}");
    let notes: Value = serde_json::from_str(&validated.stdout).unwrap();
    assert!(notes["notes"].to_string().contains("born"), "{notes}");
    sends("B", "10:43");
    sends("Z", "10:46");
    pond.until_end();
    let plain = texts(&pond.rows("changing", "plain"), &["user_id", "amount", "at"]);
    let mut expected: Vec<String> = ["A", "A", "A", "A", "A", "Z", "Z", "Z"].map(|u| format!("{u} null null")).to_vec();
    expected.extend(["B 1 10:43".to_string(), "Z 1 10:46".to_string()]);
    expected.sort();
    assert_eq!(plain, expected);
    let born = texts(&pond.rows("changing", "born"), &["window_start", "n"]);
    assert_eq!(born, ["10:40 1"], "only rows after its birth");
    let status = pond.status();
    assert!(status["tables"]["born"]["born"].as_i64() > Some(0), "{status}");
    assert_eq!((&status["tables"]["born"]["lacking_until"], &status["tables"]["spend"]["lacking_until"]), (&json!("2026-01-31T10:41:00Z"), &Value::Null));

    // Another meaning of a sum that is kept: refused, with the ways out, and nothing moves.
    let commits = || pond.query("select table_name, format, snapshot, entry from millpond.commits order by 1, 2, 3");
    let (rows, log) = (commits(), pond.status()["next_entry"].clone());
    file.sum = "max(amount)";
    pond.rewrite(&pipeline(broker, topic, &file));
    sends("B", "10:58");
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("another name") && ended.stderr.contains("spend"), "{ended:?}");
    let validated = pond.millpond(&["validate", "pipeline.yaml"]);
    assert_eq!(validated.code, 78, "{validated:?}");
    // So is a column that goes away.
    file.sum = "sum(amount)";
    file.plain = "user_id, amount";
    pond.rewrite(&pipeline(broker, topic, &file));
    let ended = pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    file.plain = "user_id, amount, event_time as at";
    pond.rewrite(&pipeline(broker, topic, &file));
    assert_eq!(commits(), rows);
    assert_eq!(pond.status()["next_entry"], log);
    pond.until_end();
    assert_eq!(spend().last().unwrap(), "10:45 Z 1");
    pond.assert_proven();
}

/// A partition was idle and the watermark went on without it; then everything stopped and a backlog
/// grew on both partitions. The claim of then counts no more: its rows hold the watermark.
/// FAULTS 58.
#[test]
fn a_backlog_on_an_idle_partition_is_not_late() {
    let broker = Broker::start();
    let topic = "backlog";
    broker.create_topic(topic, 2);
    let yaml = format!(
        "pipeline: backlog
sources:
  events:
    kafka: {{brokers: '{}', topic: {topic}, start: earliest}}
    format: json
    columns: {{event_time: timestamp}}
    watermark: {{column: event_time, idle_after: 1s}}
tables:
  minutes: {{sql: \"select window_start, count(*) as n from tumble(events, interval '1 minute') group by window_start\", key: [window_start]}}
lake: {{root: ./lake}}
epoch: {{every: 200ms}}
commit: {{every: 300ms}}
",
        broker.address()
    );
    let pond = Pond::new(&yaml);
    let producer = broker.producer();
    let sends = |partition: i32, minute: i64| {
        let at = chrono::DateTime::from_timestamp(1_769_853_600 + 60 * minute, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
        producer.send(topic, partition, "k", &format!(r#"{{"event_time":"{at}"}}"#), 0);
    };
    sends(0, 0);
    sends(1, 30);
    producer.flush();
    let running = pond.start(&["run", "pipeline.yaml"]);
    let start = Instant::now();
    // Partition 0 holds the watermark at minute 0 until it is claimed idle.
    let watermark = loop {
        let shown = pond.millpond(&["status", "pipeline.yaml", "--json"]);
        let status: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        let watermark = status["sources"]["events"]["watermark"].clone();
        if watermark == "2026-01-31T10:30:00Z" {
            break watermark;
        }
        sends(1, 30);
        producer.flush();
        assert!(start.elapsed() < Duration::from_secs(60), "{status} {}", running.stderr());
        std::thread::sleep(Duration::from_millis(300));
    };
    running.signal(libc::SIGINT);
    let ended = running.wait();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(watermark, "2026-01-31T10:30:00Z");

    let before = pond.status()["sources"]["events"]["records"].as_i64().unwrap();
    // Partition 1 is far ahead of 0 and delivers first; 0 has rows from where the watermark stands.
    for minute in 31..400 {
        sends(1, minute);
    }
    producer.flush();
    for minute in 31..400 {
        sends(0, minute);
    }
    producer.flush();
    let summary = pond.until_end();
    assert_eq!(summary["records"], 2 * 369, "{summary}");
    assert_eq!((&summary["late"], &summary["dead"]), (&json!(0), &json!(0)), "{summary}");
    let rows = pond.rows("backlog", "minutes");
    let counted: i64 = rows.iter().map(|r| r["n"].as_i64().unwrap()).sum();
    // The last window is open still.
    assert_eq!(counted, before + 2 * 368);
    pond.assert_proven();
}

/// A pipeline over one file, so that a change of plan costs no waiting for a group.
struct Filed {
    pond: Pond,
    tables: String,
}

const SPEND: &str = "  spend: {sql: \"select window_start, user_id, sum(amount) as amount from tumble(events, interval '5 minutes') \
group by window_start, user_id\", key: [window_start, user_id], allowed_lateness: 10m}\n";
const PLAIN: &str = "  plain: {sql: \"select user_id from events\"}\n";

impl Filed {
    fn new(tables: &str) -> Self {
        let filed = Self { pond: Pond::new(""), tables: String::new() };
        filed.sends(&[]);
        filed.with(tables)
    }

    fn with(mut self, tables: &str) -> Self {
        self.says(tables);
        self
    }

    fn says(&mut self, tables: &str) {
        self.tables = tables.to_string();
        self.pond.rewrite(&format!(
            "pipeline: changing\nsources:\n  events:\n    file: events.ndjson\n    columns: {{user_id: string, event_time: timestamp, amount: int64}}\n    \
             watermark: {{column: event_time}}\ntables:\n{tables}lake: {{root: ./lake}}\n"
        ));
    }

    fn sends(&self, rows: &[(&str, &str)]) {
        use std::io::Write;
        let mut file = std::fs::File::options().create(true).append(true).open(self.pond.path().join("events.ndjson")).unwrap();
        for (user, minute) in rows {
            writeln!(file, r#"{{"user_id":"{user}","event_time":"2026-01-31T{minute}:00Z","amount":1}}"#).unwrap();
        }
    }

    /// By our own reader, which starts faster than four others.
    fn spend(&self) -> Vec<String> {
        let rows = self.pond.query("select to_char(window_start, '%H:%M') as at, user_id, amount from spend");
        texts(&rows, &["at", "user_id", "amount"])
    }

    /// `run` ends with 75, and says all of this.
    fn refused(&self, more: &[&str], parts: &[&str]) {
        let next = self.pond.status()["next_entry"].clone();
        let mut args = vec!["run", "pipeline.yaml", "--until-end"];
        args.extend(more);
        let ended = self.pond.millpond(&args);
        assert_eq!(ended.code, 75, "{ended:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
        assert_eq!(self.pond.status()["next_entry"], next, "the log did not move");
    }
}

/// What is computed from what a window holds can be shown from now on: rows that were written before hold null, until
/// their window is corrected.
#[test]
fn a_windowed_table_is_given_a_column() {
    let with = |columns: &str| {
        let sql = format!("select window_start, user_id, sum(amount) as amount, count(*) as n{columns} from tumble(events, interval '5 minutes') group by window_start, user_id");
        let rest = "key: [window_start, user_id], allowed_lateness: 10m";
        format!("  spend: {{sql: \"{sql}\", {rest}}}\n  open: {{sql: \"{sql}\", {rest}, emit: on_update}}\n")
    };
    let mut filed = Filed::new(&with(""));
    filed.sends(&[("A", "10:01"), ("B", "10:02"), ("Z", "10:14")]);
    filed.pond.until_end();
    let given = ", sum(amount) / count(*) as mean, window_start as begins";
    filed.says(&with(given));
    filed.sends(&[("A", "10:03"), ("Z", "10:33")]);
    filed.pond.until_end();
    let rows = |filed: &Filed, table: &str, columns: &[&str]| texts(&filed.pond.rows("changing", table), columns);
    let all = ["window_start", "user_id", "amount", "n", "mean", "begins"];
    let spend = ["10:00 A 2 2 1 10:00", "10:00 B 1 1 null null", "10:10 Z 1 1 1 10:10"];
    assert_eq!(rows(&filed, "spend", &all), spend);
    // Open windows were shown before, too.
    assert_eq!(rows(&filed, "open", &all), ["10:00 A 2 2 1 10:00", "10:00 B 1 1 null null", "10:10 Z 1 1 null null", "10:30 Z 1 1 1 10:30"]);
    filed.pond.assert_proven();
    // What is there by now stays, when there is more.
    filed.says(&with(&format!("{given}, user_id as who")));
    filed.sends(&[("W", "10:29")]);
    filed.pond.until_end();
    let spend: Vec<String> = spend.iter().map(|row| format!("{row} null")).chain(["10:25 W 1 1 1 10:25 W".to_string()]).collect();
    assert_eq!(rows(&filed, "spend", &["window_start", "user_id", "amount", "n", "mean", "begins", "who"]), spend);
    filed.pond.assert_proven();
    // A judge that takes any row for right would not do: a null that should not be one, and a value too early.
    filed.says(&with(&format!("{given}, user_id as who, max(amount) as top")));
    filed.refused(&[], &["sum(int64), count(Null), max(int64)", "another aggregate needs a table of its own"]);
}

/// Columns are known by their names, by the tables' readers and by the judge: the place of one in the select list means nothing.
#[test]
fn a_plain_select_is_given_columns_anywhere_and_in_another_order() {
    let tables = |given: &str, turned: &str| format!("  given: {{sql: \"select {given} from events\"}}\n  turned: {{sql: \"select {turned} from events\"}}\n");
    let mut filed = Filed::new(&tables("user_id, upper(user_id) as word", "user_id, upper(user_id) as word, amount"));
    filed.sends(&[("a", "10:01")]);
    filed.pond.until_end();
    // None of the first row's values would fit the column that has its place now, or it would fit too well.
    filed.says(&tables("user_id, amount, upper(user_id) as word", "amount, upper(user_id) as word, user_id"));
    let said = filed.pond.millpond(&["validate", "pipeline.yaml"]);
    let said = said.stdout + &said.stderr;
    assert!(said.contains("table given: columns are added") && said.contains("table turned: its columns stand in another order"), "{said}");
    filed.sends(&[("b", "10:02")]);
    filed.pond.until_end();
    filed.says(&tables("event_time, user_id, amount, upper(user_id) as word", "upper(user_id) as word, amount, user_id"));
    filed.sends(&[("c", "10:03")]);
    filed.pond.until_end();
    let rows = |table: &str, columns: &[&str]| texts(&filed.pond.rows("changing", table), columns);
    assert_eq!(rows("given", &["user_id", "word", "amount", "event_time"]), ["a A null null", "b B 1 null", "c C 1 10:03"]);
    assert_eq!(rows("turned", &["user_id", "word", "amount"]), ["a A 1", "b B 1", "c C 1"]);
    filed.pond.assert_proven();
}

#[test]
fn an_older_file_is_refused_until_it_is_accepted() {
    let older = format!("{SPEND}{PLAIN}");
    let newer = older.replace("allowed_lateness: 10m", "allowed_lateness: 1h");
    let mut filed = Filed::new(&older);
    filed.sends(&[("A", "10:01"), ("Z", "10:16")]);
    filed.pond.until_end();
    filed.says(&newer);
    filed.pond.until_end();
    let newest = filed.pond.status()["plan_entry"].clone();
    filed.says(&older);
    let parts = ["the pipeline file of plan 0", "allowed lateness changes from 1h to 10m", "--accept"];
    filed.refused(&[], &parts);
    let validated = filed.pond.millpond(&["validate", "pipeline.yaml"]);
    assert_eq!(validated.code, 78, "{validated:?}");
    assert!(validated.stderr.contains("--accept"), "{validated:?}");
    assert_eq!(filed.pond.status()["plan_entry"], newest);
    // Said once it is the newest plan, and the other file the older one.
    filed.pond.run(&["--accept"]);
    assert!(filed.pond.status()["plan_entry"].as_i64() > newest.as_i64());
    filed.sends(&[("A", "10:12")]);
    assert_eq!(filed.pond.until_end()["records"], 1);
    filed.says(&newer);
    filed.refused(&[], &["which plan", "from 10m to 1h"]);
}

/// Each kind of change to a table that is there, on the real binary: what is told, and what comes of it.
#[test]
fn what_may_not_change_is_refused_with_the_way_out() {
    let filtered = SPEND.replace("minutes') group", "minutes') where amount > 0 group");
    let good = format!("{filtered}{PLAIN}");
    let mut filed = Filed::new(&good);
    filed.sends(&[("A", "10:01"), ("Z", "10:16")]);
    filed.pond.until_end();
    for (from, to, word) in [
        ("where amount > 0", "where amount > 1", "counts other rows, or the same rows otherwise"),
        ("sum(amount) as amount", "sum(amount) as amount, count(*) as n", "another aggregate needs a table of its own"),
        ("sum(amount) as amount", "sum(amount) + 1 as amount", "select list or having"),
        ("allowed_lateness: 10m", "emit: on_update", "its way of emission changes"),
        ("key: [window_start, user_id], ", "", "its key changes from [window_start, user_id] to none"),
        ("select user_id from", "select amount from", "user_id"),
        ("{sql: \"select user_id", "{formats: [delta], sql: \"select user_id", "its formats change from [iceberg, delta] to [delta]"),
        ("{sql: \"select user_id", "{partition_by: [user_id], sql: \"select user_id", "its partitioning changes"),
    ] {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        filed.says(&good.replace(from, to));
        filed.refused(&["--accept"], &[word, "another name"]);
    }
    filed.says(&good);
    filed.sends(&[("A", "10:04"), ("A", "10:31")]);
    filed.pond.until_end();
    assert_eq!(filed.spend(), ["10:00 A 1", "10:15 Z 1"], "the late row is late, and nothing else happened");
}

#[test]
fn a_table_taken_out_comes_again_only_anew() {
    let both = format!("{SPEND}{PLAIN}");
    let mut filed = Filed::new(&both);
    filed.sends(&[("A", "10:01"), ("Z", "10:06")]);
    filed.pond.until_end();
    assert_eq!(filed.spend(), ["10:00 A 1"]);
    filed.says(PLAIN);
    filed.sends(&[("B", "10:02")]);
    filed.pond.until_end();
    filed.says(&format!("{SPEND}{PLAIN}").replace("10m", "9m"));
    filed.refused(&[], &["table spend was in the pipeline file before", "another name", "--accept"]);
    filed.refused(&["--accept"], &["table spend is still in the lake", "drop it there"]);
    // Dropped, in the catalog and as folders, with its late rows.
    let lake = filed.pond.path().join("lake");
    let catalog = rusqlite::Connection::open(lake.join("catalog.db")).unwrap();
    for table in ["spend", "spend__late"] {
        assert_eq!(catalog.execute("delete from iceberg_tables where table_name = ?1", [table]).unwrap(), 1);
        for format in ["iceberg", "delta"] {
            std::fs::remove_dir_all(lake.join(format).join("changing").join(table)).unwrap();
        }
    }
    drop(catalog);
    // Without the table in the file nothing of it is made again, although the log holds rows of it.
    filed.says(PLAIN);
    filed.pond.until_end();
    assert!(!lake.join("delta/changing/spend").exists());
    filed.says(&format!("{SPEND}{PLAIN}").replace("10m", "9m"));
    // Killed right after it is decided, when no table is there yet.
    let killed = filed.pond.start_with(&["run", "pipeline.yaml", "--until-end", "--accept"], &[("MILLPOND_FAILPOINT", "fold-before-entry")]).wait();
    assert_eq!(killed.code, 128 + libc::SIGKILL, "{killed:?}");
    filed.sends(&[("B", "10:03"), ("Z", "10:17")]);
    filed.pond.until_end();
    assert_eq!(filed.spend(), ["10:00 B 1"], "rows since it began anew");
    assert_eq!(filed.pond.number("select count(*) from plain"), 5, "the other table went on");
    filed.sends(&[("B", "10:04"), ("Z", "10:33")]);
    filed.pond.until_end();
    let rows = filed.pond.rows("changing", "spend");
    assert_eq!(texts(&rows, &["window_start", "user_id", "amount"]), ["10:00 B 1", "10:15 Z 1"]);
    filed.pond.assert_proven();
}

/// A log that is gone must not be begun again below the tables that it filled.
#[test]
fn tables_without_their_log_are_not_begun_again() {
    let mut filed = Filed::new(PLAIN);
    filed.sends(&[("A", "10:01")]);
    filed.pond.until_end();
    let (state, aside) = (filed.pond.path().join("lake/_millpond"), filed.pond.path().join("aside"));
    std::fs::rename(&state, &aside).unwrap();
    let ended = filed.pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    for part in ["table plain is in the lake already", "restore the log", "another name"] {
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
    // Nothing was begun, so that the old log can be put back.
    assert!(!state.join("changing/log").exists());
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    filed.sends(&[("B", "10:02")]);
    assert_eq!(filed.pond.until_end()["records"], 1);
    // Nor is a table of somebody else's taken over under the name of a new one.
    let folder = filed.pond.path().join("lake/delta/changing");
    let copy = Command::new("cp").arg("-r").arg(folder.join("plain")).arg(folder.join("copy")).status().unwrap();
    assert!(copy.success());
    filed.says(&format!("{PLAIN}  copy: {{sql: \"select user_id from events\", formats: [delta]}}\n"));
    filed.refused(&[], &["delta table copy is still in the lake, and this pipeline did not make it", "another name"]);
}

#[test]
fn comment_and_properties_reach_the_tables_with_their_next_commit() {
    let mut filed = Filed::new(PLAIN);
    filed.sends(&[("A", "10:01")]);
    filed.pond.until_end();
    let told = |ended: &crate::support::millpond::Ended, text: &str| assert!(ended.stderr.contains(text), "{text}: {}", ended.stderr);
    filed.says(&PLAIN.replace("events\"", "events\", comment: who came, properties: {team: mill}"));
    filed.sends(&[("B", "10:02")]);
    let ended = filed.pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    told(&ended, "table plain: its next commit sets property team to mill");
    let lake = filed.pond.path().join("lake");
    let iceberg = || {
        let folder = lake.join("iceberg/changing/plain/metadata");
        let newest = std::fs::read_to_string(folder.join("version-hint.text")).unwrap();
        let text = std::fs::read_to_string(folder.join(format!("{newest}.metadata.json"))).unwrap();
        let properties = serde_json::from_str::<Value>(&text).unwrap()["properties"].clone();
        (properties["team"].clone(), properties["comment"].clone())
    };
    let delta = || {
        let folder = lake.join("delta/changing/plain/_delta_log");
        let mut commits: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        commits.sort();
        let texts: Vec<String> = commits.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
        let metadata: Vec<Value> = texts.iter().flat_map(|t| t.lines()).filter_map(|l| serde_json::from_str::<Value>(l).unwrap().get("metaData").cloned()).collect();
        let newest = metadata.last().unwrap().clone();
        (metadata.len(), newest["configuration"]["team"].clone(), newest["description"].clone())
    };
    assert_eq!(iceberg(), (json!("mill"), json!("who came")));
    assert_eq!(delta(), (2, json!("mill"), json!("who came")));
    // Taken out of the file they stay; and a property that no table can have is refused before anything is decided.
    filed.says(PLAIN.trim_end());
    filed.says(&PLAIN.replace("events\"", "events\", properties: {delta.appendOnly: 'true'}"));
    for args in [&["run", "pipeline.yaml", "--until-end"][..], &["validate", "pipeline.yaml"]] {
        let ended = filed.pond.millpond(args);
        assert!(ended.code == 78 && ended.stderr.contains("delta.appendOnly"), "{args:?}: {ended:?}");
    }
    filed.says(&PLAIN.replace("events\"", "events\", comment: who came"));
    filed.sends(&[("C", "10:03")]);
    let ended = filed.pond.millpond(&["run", "pipeline.yaml", "--until-end"]);
    told(&ended, "property team stays in the tables");
    assert_eq!((iceberg().0, delta()), (json!("mill"), (2, json!("mill"), json!("who came"))));
    assert_eq!(filed.pond.rows("changing", "plain").len(), 3);
}

/// Dead letters lie in the formats of the tables that read the source: one more format begins with an empty table.
#[test]
fn a_format_that_comes_with_a_new_table_takes_dead_letters_from_then_on() {
    let first = PLAIN.replace("{sql", "{formats: [iceberg], sql");
    let mut filed = Filed::new(&first);
    filed.sends(&[("A", "10:01"), ("A", "never")]);
    filed.pond.until_end();
    filed.says(&format!("{first}  more: {{sql: \"select amount from events\", formats: [delta]}}\n"));
    filed.sends(&[("A", "10:02"), ("A", "nowhere")]);
    filed.pond.until_end();
    let dead = |format: &str| {
        let ended = filed.pond.millpond(&["query", "pipeline.yaml", "select _offset from events__dead order by 1", "--json", "--format", format]);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.stdout.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["_offset"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((dead("iceberg"), dead("delta")), (vec![json!(1), json!(3)], vec![json!(3)]));
    filed.pond.assert_proven();
}

#[test]
fn a_worker_whose_plan_was_replaced_stops_and_names_the_reason() {
    let broker = Broker::start();
    let topic = "replaced";
    broker.create_topic(topic, 1);
    let mut file = File { lateness: "10m", sum: "sum(amount)", plain: "user_id", more: "" };
    let yaml = |file: &File| pipeline(broker, topic, file) + "epoch: {every: 200ms}\ncommit: {every: 300ms}\n";
    let pond = Pond::new(&yaml(&file));
    let running = pond.start(&["run", "pipeline.yaml"]);
    let start = Instant::now();
    while pond.millpond(&["status", "pipeline.yaml", "--json"]).stdout.contains("\"log\":null") {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    file.lateness = "1h";
    pond.rewrite(&yaml(&file));
    let newer = pond.start(&["run", "pipeline.yaml"]);
    let ended = running.wait();
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("replaced plan 0, under which this worker runs"), "{ended:?}");
    newer.signal(libc::SIGTERM);
    assert_eq!(newer.wait().code, 0);
    // The old file started again is refused: two versions do not alternate.
    file.lateness = "10m";
    pond.rewrite(&yaml(&file));
    let ended = pond.millpond(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(ended.stderr.contains("--accept"), "{ended:?}");
}
