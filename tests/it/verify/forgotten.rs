//! A checkpoint of the log that forgets runs: its windows would be summed up again without them.

use super::*;

/// The newest checkpoint in the log.
fn checkpoint(pond: &Pond) -> PathBuf {
    let log = files(&pond.path().join("lake/_millpond/proof/log"));
    let holds = |p: &&PathBuf| serde_json::from_slice::<Value>(&std::fs::read(p).unwrap()).unwrap()["body"]["checkpoint"].is_object();
    log.iter().rfind(holds).unwrap().clone()
}

/// A run of the pipeline over more of each file. Each is read in a turn of its own: many entries, and of none a record is dead.
fn more(pond: &Pond, run: i64, minute: i64) {
    for file in 0..26 {
        append(pond, 10 + file, &(1..10).map(|n| event(run * 1000 + file as i64 * 10 + n, ["ann", "bob"][n as usize % 2], minute + n, file as i64, 100 + n)).collect::<Vec<_>>());
    }
    pond.until_end();
}

#[test]
fn a_checkpoint_that_forgets_runs_is_found_and_named() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[delta]", "1ms"));
    let truncated = || !files(&pond.path().join("lake/_millpond/proof/log"))[0].ends_with("00000000000000000000.json");
    let mut run = 0;
    while run < 3 || !truncated() {
        assert!(run < 30, "the log was not truncated");
        more(&pond, run, run * 20);
        run += 1;
    }
    let options = || Options { caught_up: true, ..Options::default() };
    assert_right(&judge(&pond, options()));
    let path = checkpoint(&pond);
    let healthy = std::fs::read(&path).unwrap();
    let found = |edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        std::fs::write(&path, &healthy).unwrap();
        edit_json(&path, |e| edit(e["body"]["checkpoint"]["ledger"]["runs"].as_object_mut().unwrap()));
        let report = judge(&pond, options());
        let told = |kind: &str| report.findings.iter().filter(|f| f.kind == kind).filter_map(|f| f.table.clone()).collect::<BTreeSet<String>>();
        (told("run-forgotten"), told("run-twice"))
    };
    let (forgotten, twice) = found(&|runs| runs.values_mut().for_each(|r| *r = json!([])));
    assert!(["spend", "spend_log", "live"].iter().all(|t| forgotten.contains(*t)) && twice.is_empty(), "{forgotten:?} {twice:?}");
    let (forgotten, _) = found(&|runs| runs.clear());
    assert_eq!(forgotten.len(), 3, "{forgotten:?}");
    // Without a condition in its SQL each entry's latest record tells: any one entry may be the one whose runs are lost.
    let ledger: Value = serde_json::from_slice(&healthy).unwrap();
    for table in ["spend_log", "live"] {
        let held = ledger["body"]["checkpoint"]["ledger"]["runs"][table].as_array().unwrap().len();
        assert!(held > 3, "{table}: {held}");
        for nth in [0, held / 2, held - 1] {
            let entry = ledger["body"]["checkpoint"]["ledger"]["runs"][table][nth]["entry"].clone();
            let (forgotten, _) = found(&|runs| runs[table].as_array_mut().unwrap().retain(|r| r["entry"] != entry));
            assert_eq!(forgotten, BTreeSet::from([table.to_string()]), "runs of entry {entry}, {nth} of {held}");
        }
    }
    let (forgotten, twice) = found(&|runs| {
        let again = runs["live"][0].clone();
        runs["live"].as_array_mut().unwrap().push(again);
    });
    assert_eq!((forgotten.len(), twice), (0, BTreeSet::from(["live".to_string()])));
}

/// A merged run does not say of which entries it is: that the windows are there is all that can be asked. Of the entries
/// after it each must be there still, whatever other runs have of its windows.
#[test]
fn runs_that_were_merged_are_not_missed() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[delta]", "1ms").replace("allowed_lateness: 15m", "allowed_lateness: 30d"));
    let held = || {
        let ledger: Value = serde_json::from_slice(&std::fs::read(checkpoint(&pond)).unwrap()).unwrap();
        ledger["body"]["checkpoint"]["ledger"]["runs"]["spend_log"].as_array().cloned().unwrap_or_default()
    };
    let is_merged = |run: &Value| run["object"].as_str().unwrap().contains("/merged-");
    // A run after the merge of a window that another entry has, too.
    let shared = |held: &[Value]| {
        let after = held.iter().rev().take_while(|run| !is_merged(run));
        let found = after.clone().find(|run| held.iter().any(|other| other["entry"] != run["entry"] && other["kind"] == run["kind"]));
        found.filter(|_| held.iter().any(is_merged)).cloned()
    };
    let truncated = || !files(&pond.path().join("lake/_millpond/proof/log"))[0].ends_with("00000000000000000000.json");
    let mut run = 0;
    while run < 3 || !truncated() || shared(&held()).is_none() {
        assert!(run < 60, "nothing was merged, or nothing came after it");
        more(&pond, run, run * 20);
        run += 1;
    }
    assert_right(&judge(&pond, deep()));
    let (path, held) = (checkpoint(&pond), held());
    let healthy = std::fs::read(&path).unwrap();
    let forgotten = |runs: Vec<Value>| {
        std::fs::write(&path, &healthy).unwrap();
        edit_json(&path, |e| e["body"]["checkpoint"]["ledger"]["runs"]["spend_log"] = json!(runs));
        let report = judge(&pond, Options::default());
        assert!(report.findings.iter().any(|f| f.kind == "run-forgotten" && f.table.as_deref() == Some("spend_log")), "{report:#?}");
    };
    forgotten(vec![]);
    // An entry after the merge, whose window others have, too.
    let mut others = held.clone();
    let lost = shared(&held).unwrap();
    others.retain(|r| r["entry"] != lost["entry"]);
    forgotten(others);
}
