//! Other engines and people at our tables: what they do is kept, or refused with the way out, as
//! DESIGN says of the stamp. Real files, changed by deltalake and PyIceberg.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::support::millpond::{Pond, act, assert_same};

mod columns;
mod rewrites;

const REFUSED: i32 = 75;
const UNPROVEN: i32 = 4;
const FORMATS: [&str; 2] = ["delta", "iceberg"];
const NAME: &str = "hands";

const PIPELINE: &str = "
pipeline: hands
sources:
  events:
    file: events.ndjson
    format: json
    columns: {id: int64, user_id: string, at: timestamp, amount: int32}
    watermark: {column: at, delay: 10s}
tables:
  spend:
    sql: |
      select window_start, user_id, sum(amount) as total, count(*) as n
      from tumble(events, interval '1 minute') group by window_start, user_id
    key: [window_start, user_id]
    allowed_lateness: 2h
  plain:
    sql: select id, user_id, amount from events
lake: {root: ./lake}
epoch: {every: 50ms}
commit: {every: 50ms}
";

/// 2026-01-31T10:00:00Z.
const START_S: i64 = 1_769_853_600;

struct Event {
    id: i64,
    user: i64,
    at_s: i64,
    amount: i64,
}

/// Ten seconds a step; every fifth, once there is a past, corrects a window of `back_s` ago.
fn event(id: i64, back_s: i64) -> Event {
    let back = if id % 5 == 0 && id > 130 { back_s } else { 0 };
    Event { id, user: id % 4, at_s: START_S + id * 10 - back, amount: id % 7 + 1 }
}

/// A lake in which others are at work, and what its tables must hold.
struct Lake {
    pond: Pond,
    events: Vec<Event>,
    /// Window and user to total and count, as the table holds it.
    spend: BTreeMap<(i64, String), (i64, i64)>,
    /// Id to user and amount.
    plain: BTreeMap<i64, (String, i64)>,
    /// How far back the next events correct.
    back_s: i64,
}

impl Lake {
    /// With rows in every table, of two commits.
    fn new() -> Self {
        let mut lake = Self { pond: Pond::new(PIPELINE), events: vec![], spend: BTreeMap::new(), plain: BTreeMap::new(), back_s: 1200 };
        lake.more();
        lake.more();
        lake
    }

    /// A hundred more events, whether or not a worker takes them in.
    fn arrive(&mut self) {
        let first = self.events.len() as i64;
        let mut out = fs::File::options().create(true).append(true).open(self.pond.path().join("events.ndjson")).unwrap();
        for e in (first..first + 100).map(|id| event(id, self.back_s)) {
            let at = chrono::DateTime::from_timestamp(e.at_s, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ");
            writeln!(out, r#"{{"id":{},"user_id":"u{}","at":"{at}","amount":{}}}"#, e.id, e.user, e.amount).unwrap();
            self.events.push(e);
        }
        let window = |e: &Event| e.at_s.div_euclid(60) * 60;
        let closed = |seen: &[Event], window: i64| seen.iter().map(|e| e.at_s - 10).max().is_some_and(|watermark| window + 60 <= watermark);
        let (old, new) = self.events.split_at(first as usize);
        for e in new {
            self.plain.insert(e.id, (format!("u{}", e.user), e.amount));
        }
        // A window is written when it closes, and when a row corrects it.
        let changed: BTreeSet<i64> = self.events.iter().map(window).filter(|w| closed(&self.events, *w)).filter(|w| !closed(old, *w) || new.iter().any(|e| window(e) == *w)).collect();
        for w in changed {
            let corrected: BTreeSet<i64> = new.iter().filter(|e| window(e) == w).map(|e| e.user).collect();
            for user in 0..4 {
                let rows: Vec<&Event> = self.events.iter().filter(|e| window(e) == w && e.user == user).collect();
                if !rows.is_empty() && (!closed(old, w) || corrected.contains(&user)) {
                    self.spend.insert((w, format!("u{user}")), (rows.iter().map(|e| e.amount).sum(), rows.len() as i64));
                }
            }
        }
    }

    /// More events, taken to the tables.
    fn more(&mut self) {
        self.arrive();
        self.pond.until_end();
    }

    /// A start that must be refused; what it says.
    fn refused(&self) -> String {
        let ended = self.pond.millpond(&["run", "pipeline.yaml", "--until-end", "--json"]);
        assert_eq!(ended.code, REFUSED, "{ended:?}");
        let said: Value = serde_json::from_str(ended.stdout.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        said["error"].as_str().unwrap_or_default().to_string()
    }

    fn root(&self) -> PathBuf {
        self.pond.path().join("lake").canonicalize().unwrap()
    }

    fn act(&self, steps: &[Value]) -> Vec<Value> {
        act(&self.root(), NAME, steps)
    }

    /// Both tables in both formats, as `millpond query` reads them.
    fn assert_holds(&self, when: &str) {
        let spend: Vec<Value> = self.spend.iter().map(|((w, u), (total, n))| json!({"w": w, "u": u, "total": total, "n": n})).collect();
        let plain: Vec<Value> = self.plain.iter().map(|(id, (u, amount))| json!({"id": id, "u": u, "amount": amount})).collect();
        for format in FORMATS {
            let queries = [
                ("select cast(window_start as bigint) / 1000000 as w, user_id as u, total, n from spend order by 1, 2", &spend),
                ("select id, user_id as u, amount from plain order by 1, 2", &plain),
            ];
            for (sql, expected) in queries {
                assert_same(&self.pond.query_in(format, sql), expected, &format!("{when}: {format}: {sql}"));
            }
        }
        // The judge may know less than before, and accuses nobody.
        let judged = self.pond.millpond(&["verify", "pipeline.yaml", "--json"]);
        let said: Value = serde_json::from_str(&judged.stdout).unwrap_or_else(|e| panic!("{when}: {e}: {judged:?}"));
        assert_eq!(said["report"]["findings"], json!([]), "{when}");
    }
}

/// The same action on both tables in both formats.
fn everywhere(what: &Value) -> Vec<Value> {
    let mut steps = vec![];
    for (table, format) in [("spend", "delta"), ("plain", "delta"), ("spend", "iceberg"), ("plain", "iceberg")] {
        let mut step = what.clone();
        step["table"] = table.into();
        step["in"] = format.into();
        steps.push(step);
    }
    steps
}

/// FAULTS 10, 19, 20.
#[test]
fn what_other_engines_commit_is_kept() {
    let mut lake = Lake::new();

    let done = lake.act(&everywhere(&json!({"do": "compact"})));
    assert!(done.iter().all(|d| d["removed"].as_i64() > Some(1)), "{done:?}");
    lake.more();
    lake.assert_holds("after a compaction by others");

    let (plain, spend) = (json!([{"id": -1, "user_id": "x", "amount": 1000}]), json!([{"window_start": "2026-01-31T10:00:00+00:00", "user_id": "x", "total": 1000, "n": 1}]));
    let appends = FORMATS.map(|f| [json!({"in": f, "do": "append", "table": "plain", "rows": plain}), json!({"in": f, "do": "append", "table": "spend", "rows": spend})]);
    lake.act(appends.as_flattened());
    lake.plain.insert(-1, ("x".into(), 1000));
    lake.spend.insert((START_S, "x".into()), (1000, 1));
    lake.more();
    lake.assert_holds("after rows that others appended");

    let deleted = lake.act(&everywhere(&json!({"do": "delete", "where": "user_id = 'u3'"})));
    let plain = lake.plain.values().filter(|(u, _)| u == "u3").count();
    let spend = lake.spend.keys().filter(|(_, u)| u == "u3").count();
    assert_eq!(deleted, [spend, plain, spend, plain].map(Value::from));
    lake.plain.retain(|_, (u, _)| u != "u3");
    lake.spend.retain(|(_, u), _| u != "u3");
    lake.assert_holds("after a DELETE of others");
    lake.more();
    assert!(lake.spend.keys().any(|(_, u)| u == "u3"), "what came since counts");
    lake.assert_holds("after more of the same user");

    let row = json!([{"id": 5, "user_id": "u1", "amount": 999}]);
    lake.act(&[
        json!({"in": "delta", "do": "update", "table": "plain", "set": {"amount": "999"}, "where": "id = 5"}),
        json!({"in": "iceberg", "do": "overwrite", "table": "plain", "where": "id == 5", "rows": row}),
    ]);
    lake.plain.insert(5, ("u1".into(), 999));
    lake.more();
    lake.assert_holds("after rows that others rewrote");

    // Files and snapshots that only the past needs go; of the newest snapshot's parent even the name.
    let gone = lake.act(&[
        json!({"in": "delta", "do": "vacuum", "table": "plain"}),
        json!({"in": "delta", "do": "vacuum", "table": "spend", "full": true}),
        json!({"in": "delta", "do": "checkpoint", "table": "spend"}),
        json!({"in": "iceberg", "do": "expire", "table": "plain"}),
        json!({"in": "iceberg", "do": "compact", "table": "spend"}),
        json!({"in": "iceberg", "do": "compact", "table": "spend"}),
        json!({"in": "iceberg", "do": "expire", "table": "spend"}),
    ]);
    assert!([0, 1, 3, 6].iter().all(|n| gone[*n].as_i64() > Some(0)), "{gone:?}");
    lake.assert_holds("after a vacuum and an expiry of others");
    // What took our newest snapshot away is expired, too: nobody can see whether it was a rollback.
    let judged = lake.pond.millpond(&["verify", "pipeline.yaml", "--table", "spend"]);
    assert!(judged.code == UNPROVEN && judged.stdout.contains("iceberg table spend: its stamp names snapshot") && judged.stdout.contains("expired or rolled back"), "{judged:?}");
    lake.more();
    lake.assert_holds("after more");

    let ours = ["write.metadata.previous-versions-max", "write.parquet.compression-codec", "millpond.table-uuid", "millpond.offsets", "millpond.attempt"];
    let removed = lake.act(&[
        json!({"in": "delta", "do": "unset", "table": "spend", "keys": ["delta.checkpointInterval", "delta.logRetentionDuration"]}),
        json!({"in": "iceberg", "do": "unset", "table": "spend", "keys": ours}),
    ]);
    assert_eq!(removed.iter().map(|r| r.as_array().map_or(0, Vec::len)).collect::<Vec<_>>(), [2, ours.len()]);
    lake.more();
    lake.assert_holds("after properties were removed");
    for table in ["spend", "plain"] {
        lake.pond.rows(NAME, table);
    }
}

/// FAULTS 20: every snapshot but the newest is gone, ours among them: the stamp outlives them.
#[test]
fn f20_snapshots_that_another_tool_expired_take_no_stamp_with_them() {
    let mut lake = Lake::new();
    for round in 0..2 {
        let gone = lake.act(&everywhere(&json!({"do": "compact"})));
        assert!(gone.iter().all(|d| d["removed"].as_i64() > Some(0)), "{gone:?}");
        let expired = lake.act(&["spend", "plain"].map(|table| json!({"in": "iceberg", "do": "expire", "table": table})));
        assert!(expired.iter().all(|n| n.as_i64() > Some(0)), "{expired:?}");
        lake.act(&["spend", "plain"].map(|table| json!({"in": "delta", "do": "vacuum", "table": table, "full": true})));
        lake.assert_holds(&format!("after expiry {round}"));
        lake.more();
        lake.assert_holds(&format!("after more, {round}"));
    }
}

/// FAULTS 21: a rollback must not lose data silently.
#[test]
fn a_table_that_was_set_back_is_refused_until_it_is_set_forward() {
    let mut lake = Lake::new();
    let at = lake.act(&[json!({"in": "delta", "do": "version", "table": "spend"}), json!({"in": "iceberg", "do": "snapshots", "table": "plain"})]);
    let (version, snapshots) = (at[0].as_i64().unwrap(), at[1].clone());

    lake.act(&[json!({"in": "delta", "do": "restore", "table": "spend", "version": version - 1})]);
    lake.arrive();
    let said = lake.refused();
    assert!(said.contains("delta/hands/spend: rolled back: a RESTORE") && said.contains("restore it forward"), "{said}");
    lake.act(&[json!({"in": "delta", "do": "restore", "table": "spend", "version": version})]);

    lake.act(&[json!({"in": "iceberg", "do": "rollback", "table": "plain", "snapshot": snapshots[0]})]);
    let said = lake.refused();
    assert!(said.contains("hands.plain was rolled back") && said.contains(&format!("set the branch forward to snapshot {}", snapshots[1])), "{said}");
    lake.act(&[json!({"in": "iceberg", "do": "set_current", "table": "plain", "snapshot": snapshots[1]})]);

    lake.pond.until_end();
    lake.assert_holds("after both were set forward");
    lake.more();
    lake.assert_holds("after more");
}

/// What the message says to set, set.
fn properties_named(said: &str) -> Value {
    let set = said.split("; set ").nth(1).and_then(|rest| rest.split(" again").next()).unwrap_or_else(|| panic!("no way out in: {said}"));
    set.split(", ").filter_map(|pair| pair.split_once(" = ")).map(|(k, v)| (k.to_string(), Value::from(v))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn a_stamp_that_was_taken_off_is_named_and_put_back() {
    let mut lake = Lake::new();
    let all = ["millpond.log", "millpond.entry", "millpond.snapshot-id", "millpond.sequence-number", "millpond.table-uuid"];
    for keys in [&all[..2], &all[2..3], &all[..]] {
        lake.act(&[json!({"in": "iceberg", "do": "unset", "table": "spend", "keys": keys})]);
        lake.arrive();
        let said = lake.refused();
        assert!(said.contains("the Iceberg table hands.spend") && keys.iter().all(|k| *k == "millpond.table-uuid" || said.contains(k)), "{said}");
        lake.act(&[json!({"in": "iceberg", "do": "set", "table": "spend", "properties": properties_named(&said)})]);
        lake.pond.until_end();
        lake.assert_holds("after the stamp was put back");
    }
}

/// FAULTS 21.
#[test]
fn a_dropped_or_recreated_table_is_refused_and_another_name_goes_on() {
    let mut lake = Lake::new();
    let begun = lake.events.len() as i64;
    lake.act(&[json!({"in": "iceberg", "do": "drop", "table": "plain"})]);
    lake.arrive();
    let said = lake.refused();
    assert!(said.contains("the iceberg table plain") && said.contains("is gone") && said.contains("another name"), "{said}");

    let renamed = PIPELINE.replace("  plain:", "  plainly:");
    lake.pond.rewrite(&renamed);
    lake.pond.until_end();
    let from = |first: i64| (first..).take_while(|id| *id < 300).map(|id| json!({"id": id})).collect::<Vec<_>>();
    for format in FORMATS {
        assert_same(&lake.pond.query_in(format, "select id from plainly order by id"), &from(begun), &format!("the new name in {format}"));
    }

    // Made anew by another hand, empty, where ours lay.
    lake.act(&[json!({"in": "delta", "do": "recreate", "table": "plainly"})]);
    let said = lake.refused();
    assert!(said.contains("delta/hands/plainly") && said.contains("nobody's stamp") && said.contains("another name"), "{said}");
    lake.act(&[json!({"in": "delta", "do": "drop", "table": "plainly"})]);
    let said = lake.refused();
    assert!(said.contains("the delta table plainly") && said.contains("is gone"), "{said}");
    lake.pond.rewrite(&renamed.replace("plainly:", "plainest:"));
    lake.act(&[json!({"in": "iceberg", "do": "recreate", "table": "plainly", "keep_properties": true})]);
    lake.more();
    let rows = lake.pond.query_in("delta", "select count(*) as n from plainest");
    assert_eq!(rows, [json!({"n": 100})]);
    // The other table noticed nothing.
    let spend: Vec<Value> = lake.spend.iter().map(|((w, u), (total, n))| json!({"w": w, "u": u, "total": total, "n": n})).collect();
    for format in FORMATS {
        assert_same(&lake.pond.query_in(format, "select cast(window_start as bigint) / 1000000 as w, user_id as u, total, n from spend order by 1, 2"), &spend, format);
    }
}

#[test]
fn what_nobody_can_prove_is_refused() {
    let mut lake = Lake::new();
    let metadata = lake.root().join("iceberg/hands/plain/metadata");
    let newest = lake.act(&[
        json!({"in": "iceberg", "do": "compact", "table": "plain"}),
        json!({"in": "iceberg", "do": "expire", "table": "plain"}),
        json!({"in": "iceberg", "do": "metadata_location", "table": "plain"}),
        json!({"in": "iceberg", "do": "snapshot", "table": "plain"}),
    ]);
    // Somebody also cleaned up after himself: no file tells any more what came between.
    for file in fs::read_dir(&metadata).unwrap().map(|f| f.unwrap().path()) {
        let name = file.to_str().unwrap();
        if name.ends_with(".metadata.json") && !newest[2].as_str().unwrap().ends_with(file.file_name().unwrap().to_str().unwrap()) {
            fs::remove_file(&file).unwrap();
        }
    }
    lake.arrive();
    let said = lake.refused();
    assert!(said.contains("nothing proves that the Iceberg table hands.plain still holds") && said.contains("set its properties"), "{said}");
    let vouched = json!({"millpond.snapshot-id": newest[3].to_string(), "millpond.sequence-number": "3"});
    lake.act(&[json!({"in": "iceberg", "do": "set", "table": "plain", "properties": vouched})]);
    lake.pond.until_end();
    lake.assert_holds("after the user vouched for it");

    // In Delta the commit that bears our stamp proves it; a checkpoint alone does not.
    let log = lake.root().join("delta/hands/plain/_delta_log");
    let at = lake.act(&[
        json!({"in": "delta", "do": "compact", "table": "plain"}),
        json!({"in": "delta", "do": "checkpoint", "table": "plain"}),
        json!({"in": "delta", "do": "version", "table": "plain"}),
    ]);
    let ours = log.join(format!("{:020}.json", at[2].as_u64().unwrap() - 1));
    let kept = fs::read(&ours).unwrap();
    fs::remove_file(&ours).unwrap();
    lake.arrive();
    let said = lake.refused();
    assert!(said.contains("delta/hands/plain: unproven") && said.contains("restore its commit file"), "{said}");
    fs::write(&ours, kept).unwrap();
    lake.pond.until_end();
    lake.assert_holds("after the commit file came back");
}

/// A cleaner that removes what no table names yet: it must not reach files that wait for a commit.
#[test]
fn a_waiting_file_that_a_vacuum_removed_is_named() {
    let mut lake = Lake::new();
    lake.arrive();
    let killed = lake.pond.start_with(&["run", "pipeline.yaml", "--until-end"], &[("MILLPOND_FAILPOINT", "commit-before-stage")]).wait();
    assert_eq!(killed.code, 128 + libc::SIGKILL, "{killed:?}");
    let folder = lake.root().join("delta/hands/plain");
    let files = || -> BTreeSet<PathBuf> { fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "parquet")).collect() };
    let copies: BTreeMap<PathBuf, Vec<u8>> = files().into_iter().map(|f| (f.clone(), fs::read(&f).unwrap())).collect();
    lake.act(&[json!({"in": "delta", "do": "vacuum", "table": "plain", "full": true})]);
    let left = files();
    let gone: Vec<&PathBuf> = copies.keys().filter(|f| !left.contains(*f)).collect();
    assert_eq!(gone.len(), 1);

    let said = lake.refused();
    assert!(said.contains(gone[0].file_name().unwrap().to_str().unwrap()) && said.contains("is gone") && said.contains("backlog.hours"), "{said}");
    fs::write(gone[0], &copies[gone[0]][1..]).unwrap();
    let said = lake.refused();
    assert!(said.contains("bytes, expected"), "{said}");
    fs::write(gone[0], &copies[gone[0]]).unwrap();
    lake.pond.until_end();
    lake.assert_holds("after the file came back");
}
