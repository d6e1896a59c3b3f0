//! Compactions of others, honest and faulty: one that claims to change no data and has another number of rows is named
//! without the source. And tables that are no longer in the file, which nobody judges: that is said.

use super::readers::plant;
use super::*;
use crate::support::millpond::act;

impl Site {
    /// Another engine's hand at the lake as it lies there now.
    fn hand(&self, action: &str, more: Value) -> Value {
        let mut step = json!({"in": self.format.to_string(), "do": action});
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        act(&self.lake().canonicalize().unwrap(), "proof", &[step]).remove(0)
    }
}

fn structure(site: &Site) -> Report {
    judge(&site.pond, Options { caught_up: true, ..Options::default() })
}

#[test]
fn a_compaction_of_others_that_loses_or_doubles_a_row_is_found_and_named() {
    for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
        let mut site = Site::new(format);
        for table in ["spend", "spend_log", "live", "plain", "spend__late", "events__dead"] {
            for (what, fault) in [("loses", "lose"), ("doubles", "double")] {
                plant(&mut site, &format!("{table}: a compaction that {what} a row"), "rewrite-rows", |s| {
                    let done = s.hand("replace", json!({"table": table, fault: 1}));
                    assert!(done["files"].as_u64() > Some(1), "{done}");
                });
            }
        }
        plant(&mut site, "spend: a compaction of some files that loses two rows", "rewrite-rows", |s| drop(s.hand("replace", json!({"table": "spend", "files": 2, "lose": 2}))));
        // It names the commit and both numbers.
        site.mend();
        let before = structure(&site).tables.iter().find(|t| t.table == "spend").unwrap().rows;
        site.hand("replace", json!({"table": "spend", "lose": 3}));
        let report = structure(&site);
        let found: Vec<_> = report.findings.iter().map(|f| (f.kind, f.table.as_deref(), f.text.as_str())).collect();
        let [("rewrite-rows", Some("spend"), text)] = found[..] else { panic!("{found:#?}") };
        let version = match format {
            TableFormatKind::Delta => site.commits("spend").last().unwrap().file_stem().unwrap().to_str().unwrap().trim_start_matches('0').to_string(),
            TableFormatKind::Iceberg => serde_json::from_slice::<Value>(&std::fs::read(site.metadata("spend")).unwrap()).unwrap()["current-snapshot-id"].to_string(),
        };
        assert!(text.contains(&format!("commit {version} (")) && text.contains("by another engine"), "{text}");
        assert!(text.contains(&format!("{} rows for the {before} that it took away, 3 are lost", before - 3)), "{text}");
        site.done(13);
    }
}

/// Deletes that a compaction applies take nothing away that was not gone before.
#[test]
fn an_honest_compaction_of_others_is_no_finding() {
    for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
        let site = Site::new(format);
        if format == TableFormatKind::Iceberg {
            // One that says that it changed something has changed nothing when it has applied deletes.
            site.hand("compact", json!({"table": "spend"}));
            let report = structure(&site);
            assert!(report.is_right() && report.notes.iter().any(|n| n.contains("(overwrite) is not ours: ") && n.ends_with("rows written anew, as many as before")), "{report:#?}");
            site.mend();
        }
        let tables = ["spend", "spend_log", "live", "plain", "spend__late"];
        for table in tables {
            for files in [json!(2), Value::Null] {
                let done = site.hand("replace", json!({"table": table, "files": files}));
                if files == 2 {
                    assert_eq!(done["files"], 2, "{table}: {done}");
                }
                if format == TableFormatKind::Iceberg && table == "spend" && files == 2 {
                    assert!(done["with_deletes"].as_u64() > Some(0) && done["records"].as_u64() > done["rows"].as_u64(), "deletes are applied: {done}");
                }
            }
        }
        assert_right(&structure(&site));
        assert_right(&judge(&site.pond, deep()));
    }
}

/// What the log of a Delta table does not say, the files do, as far as they are there; where they are not, nothing is said.
#[test]
fn rows_that_a_delta_log_does_not_count_are_counted_in_the_files() {
    let site = Site::new(TableFormatKind::Delta);
    // Deleted by a deletion vector, which the compaction applies.
    site.hand("hide", json!({"table": "spend", "rows": 2}));
    let hidden = structure(&site);
    assert!(hidden.is_right() && hidden.notes.iter().any(|n| n.contains("2 fewer")), "{hidden:#?}");
    let done = site.hand("replace", json!({"table": "spend", "stats": false}));
    assert!(done["rows"].as_u64() > Some(0), "{done}");
    let report = structure(&site);
    assert!(report.is_right(), "{report:#?}");
    // The next one has no word of how many rows there were.
    let rows = report.tables.iter().find(|t| t.table == "spend").unwrap().rows;
    site.hand("replace", json!({"table": "spend", "stats": false, "double": 1}));
    let report = structure(&site);
    let said = format!("{} rows for the {rows} that it took away, 1 are there that were not", rows + 1);
    assert!(report.findings.iter().any(|f| f.kind == "rewrite-rows" && f.text.contains(&said)), "{report:#?}");
    std::fs::remove_file(files(&site.folder("spend")).into_iter().find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("another-")).unwrap()).unwrap();
    let report = structure(&site);
    assert!(!report.findings.iter().any(|f| f.kind == "rewrite-rows"), "{report:#?}");
}

#[test]
fn a_table_that_was_taken_out_is_said_to_be_not_judged() {
    let pond = Pond::new("");
    let whole = yaml(pond.path(), "[iceberg, delta]", "5s");
    let (before, rest) = whole.split_once("  live:\n").unwrap();
    let without = format!("{before}  plain:\n{}", rest.split_once("  plain:\n").unwrap().1);
    pond.rewrite(&whole);
    append(&pond, 0, &(0..30).map(|n| event(n, "ann", n, 0, 100)).collect::<Vec<_>>());
    pond.until_end();
    let said = |report: &Report| report.notes.iter().filter(|n| n.contains("not judged")).cloned().collect::<Vec<_>>();
    assert_eq!(said(&judge(&pond, deep())), Vec::<String>::new());
    pond.rewrite(&without);
    append(&pond, 0, &(30..60).map(|n| event(n, "ann", n, 0, 100)).collect::<Vec<_>>());
    pond.until_end();
    let report = judge(&pond, deep());
    assert_right(&report);
    let notes = said(&report);
    assert!(notes.len() == 2 && notes[0].starts_with("table live is in the log and no longer in the pipeline file") && notes[1].starts_with("table live__late is"), "{notes:#?}");
    let ended = pond.millpond(&["verify", "pipeline.yaml"]);
    assert!(ended.code == 0 && ended.stdout.contains(&format!("note: {}\n", notes[0])), "{ended:?}");
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--json"]);
    let value: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(ended.code == 0 && value["report"]["notes"].as_array().unwrap().contains(&json!(notes[0])), "{value}");
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--table", "live"]);
    assert!(ended.code == 2 && ended.stderr.contains(&notes[0]), "{ended:?}");
    // Whatever becomes of it then is its owner's affair.
    std::fs::remove_dir_all(pond.path().join("lake/delta/proof/live")).unwrap();
    assert_right(&judge(&pond, deep()));
}
