//! FAULTS 19: others change the columns or the partitioning of a table. What a commit would undo, or could not write, is refused with
//! the difference and the way out; what was decided waits in the log, so that nothing is lost.

use super::*;

fn iceberg(action: &str, more: Value) -> Value {
    step("iceberg", action, more)
}

fn delta(action: &str, more: Value) -> Value {
    step("delta", action, more)
}

fn step(format: &str, action: &str, more: Value) -> Value {
    let mut step = json!({"in": format, "do": action, "table": "plain"});
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

impl Lake {
    /// The tables do not fit any more: a start says so in these words, and leaves them alone.
    fn refused_with(&self, words: &[&str]) -> String {
        let places = ["spend", "plain"].map(|table| iceberg("metadata_location", json!({"table": table})));
        let versions = ["spend", "plain"].map(|table| delta("version", json!({"table": table})));
        let look = || self.act(&[places.clone(), versions.clone()].concat());
        let before = look();
        let said = self.refused();
        assert!(words.iter().all(|w| said.contains(w)) && said.contains("waits in the log") && said.contains("another name"), "{words:?}: {said}");
        // The other format may have come further.
        let after = look();
        let changed = if said.contains("Iceberg table") { 0..2 } else { 2..4 };
        let own = if said.contains("spend") { changed.start } else { changed.start + 1 };
        assert_eq!(after[own], before[own], "{said}");
        said
    }
}

#[test]
fn f19_columns_and_partitions_of_an_iceberg_table_that_others_change_are_refused_until_taken_back() {
    let mut lake = Lake::new();
    let was = json!({"schema": 0});
    let cases = [
        (iceberg("columns", json!({"drop": ["amount"]})), "the column `amount` (int) was dropped from the table; make its schema 0 the current one again", iceberg("layout", was.clone())),
        (iceberg("columns", json!({"drop": ["n"], "table": "spend"})), "the column `n` (long) was dropped from the table", iceberg("layout", json!({"schema": 0, "table": "spend"}))),
        (iceberg("columns", json!({"rename": {"amount": "sum"}})), "the table calls the column `amount` `sum` (int)", iceberg("columns", json!({"rename": {"sum": "amount"}}))),
        (iceberg("columns", json!({"widen": ["amount"]})), "column `amount` is long in the table and int in the pipeline; make its schema 0 the current one again", iceberg("layout", was)),
        (iceberg("columns", json!({"add": ["note"]})), "the table has the column `note` (string), which the pipeline does not", iceberg("columns", json!({"drop": ["note"]}))),
        (
            iceberg("partition", json!({"by": "user_id"})),
            "the table is partitioned by user_id (identity), the pipeline by nothing; make its partition spec 0 the default one again",
            iceberg("layout", json!({"spec": 0})),
        ),
    ];
    for (change, said, taken_back) in cases {
        lake.act(std::slice::from_ref(&change));
        lake.arrive();
        lake.refused_with(&["does not fit: ", said]);
        lake.act(&[taken_back]);
        lake.pond.until_end();
        lake.assert_holds(&format!("after {change} was taken back"));
    }
    for table in ["spend", "plain"] {
        lake.pond.rows(NAME, table);
    }
    // The column that others added and dropped had the id that is the plan's next.
    lake.pond.rewrite(&PIPELINE.replace("amount from events", "amount, amount + 1 as more from events"));
    lake.arrive();
    lake.refused_with(&["the table lacks the column `more`, whose field id 4 was used for another"]);
}

/// The worker has read the table before, and looks at it again once its commit finds another one.
#[test]
fn f19_columns_that_others_change_while_a_commit_is_on_its_way_are_refused() {
    let mut lake = Lake::new();
    let drops = [
        (iceberg("columns", json!({"drop": ["amount"]})), "the column `amount` (int) was dropped from the table"),
        (delta("overwrite", json!({"drop": ["amount"]})), "the column `amount` (integer) was dropped from the table"),
    ];
    for (drop, said) in drops {
        lake.arrive();
        let mut worker = lake.pond.start_with(&["run", "pipeline.yaml", "--until-end"], &[("MILLPOND_FAILPOINT", "commit-before-swap:1:stop")]);
        worker.until_stopped();
        let version = lake.act(&[delta("version", json!({}))])[0].clone();
        lake.act(std::slice::from_ref(&drop));
        worker.signal(libc::SIGCONT);
        let ended = worker.wait();
        assert!(ended.code == REFUSED && ended.stderr.contains(said), "{drop}: {ended:?}");
        lake.refused_with(&[said]);
        lake.act(&[if drop["in"] == "iceberg" { iceberg("layout", json!({"schema": 0})) } else { delta("restore", json!({"version": version})) }]);
        lake.pond.until_end();
        lake.assert_holds(&format!("after {drop} was taken back"));
    }
}

#[test]
fn f19_columns_of_a_delta_table_that_others_overwrite_are_refused_until_it_is_restored() {
    let mut lake = Lake::new();
    let cases = [
        (json!({"drop": ["amount"]}), "the schema does not fit: the column `amount` (integer) was dropped from the table, and a commit would bring it back"),
        (json!({"drop": ["n"], "table": "spend"}), "the schema does not fit: the column `n` (long) was dropped from the table"),
        (json!({"retype": ["amount"]}), "the schema does not fit: column `amount` is integer here and string in the table"),
        (json!({"by": "user_id"}), "it is partitioned by [user_id] and the pipeline asks for []"),
    ];
    for (change, said) in cases {
        let table = change.get("table").cloned().unwrap_or(json!("plain"));
        lake.act(&[delta("overwrite", change.clone())]);
        // What others checkpoint holds their columns alone.
        lake.act(&[delta("checkpoint", json!({"table": table}))]);
        lake.arrive();
        let said = lake.refused_with(&[said, "or RESTORE it to version "]);
        let version: i64 = said.split("RESTORE it to version ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        lake.act(&[delta("restore", json!({"table": table, "version": version}))]);
        lake.pond.until_end();
        lake.assert_holds(&format!("after {change} was restored"));
    }
    for table in ["spend", "plain"] {
        lake.pond.rows(NAME, table);
    }
}

/// What takes nothing from what a commit writes stays as others made it, also when the plan adds a column after that.
#[test]
fn f19_what_others_add_order_and_describe_is_kept() {
    let mut lake = Lake::new();
    for table in ["plain", "spend"] {
        let last = if table == "plain" { "amount" } else { "n" };
        let done = lake.act(&[delta("columns", json!({"add": ["note"], "table": table})), iceberg("columns", json!({"first": [last], "describe": {last: "by others"}, "table": table}))]);
        assert!(done[0].as_array().unwrap().last() == Some(&json!("note")) && done[1][0] == json!([last, "by others"]), "{done:?}");
    }
    lake.more();
    lake.assert_holds("after columns that others added");
    lake.pond.rewrite(&PIPELINE.replace("amount from events", "amount, amount + 1 as more from events"));
    lake.more();
    lake.assert_holds("after a column of ours");
    let columns = lake.act(&[delta("columns", json!({})), iceberg("columns", json!({}))]);
    assert_eq!(columns, [json!(["id", "user_id", "amount", "note", "more"]), json!([["amount", "by others"], ["id", null], ["user_id", null], ["more", null]])]);
    let more = |format: &str| lake.pond.query_in(format, "select count(more) as n, count(*) as whole from plain").remove(0);
    assert_eq!(FORMATS.map(more), FORMATS.map(|_| json!({"n": 100, "whole": 400})));
}
