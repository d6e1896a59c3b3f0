//! What a user may ask of `verify`: a table, a time, a share of the rows, and to see how far it is.

use super::*;

#[test]
fn what_is_asked_for_is_compared_and_progress_shows_on_a_terminal_alone() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s"));
    fill(&pond);
    // The bar, to its end.
    let shown = pond.on_a_terminal(&["verify", "pipeline.yaml", "--deep"], &[]);
    let total = std::fs::read_dir(pond.path().join("data")).unwrap().map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap().lines().count()).sum::<usize>();
    assert!(shown.contains(&format!("[{}] {total} of {total} records", "#".repeat(30))), "{shown:?}");
    assert_eq!(pond.on_a_terminal(&["verify", "pipeline.yaml", "--deep", "--json"], &[]), "");
    assert_eq!(pond.on_a_terminal(&["verify", "pipeline.yaml"], &[]), "");
    let ended = pond.millpond(&["verify", "pipeline.yaml", "--deep"]);
    assert!(ended.code == 0 && ended.stderr.is_empty() && !ended.stdout.contains(" of "), "{ended:?}");
    let ask = |args: &[&str]| {
        let ended = pond.millpond(&[&["verify", "pipeline.yaml", "--deep", "--json"], args].concat());
        let value: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
        (ended.code, value["report"].clone())
    };
    let compared = |report: &Value, table: &str| report["tables"].as_array().unwrap().iter().find(|t| t["table"] == table).and_then(|t| t["compared"].as_u64()).unwrap();
    let (_, all) = ask(&[]);
    // A share of the rows, the same at every time.
    let (code, some) = ask(&["--sample", "40"]);
    assert_eq!((code, &some), (0, &ask(&["--sample", "40"]).1));
    for table in ["plain", "spend"] {
        let (some, all) = (compared(&some, table), compared(&all, table));
        assert!(0 < some && some < all, "{table}: {some} of {all}");
    }
    // A part of the time.
    let (code, some) = ask(&["--from", "2026-01-31T10:10:00Z", "--to", "2026-01-31T10:40:00Z"]);
    assert!(code == 0 && compared(&some, "spend") > 0 && compared(&some, "spend") < compared(&all, "spend"), "{some}");
    // A record of the first window is another now: only who looks there finds it.
    let path = pond.path().join("data/p0.ndjson");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"amount\":\"1.07\"", "\"amount\":\"1.08\"", 1)).unwrap();
    let found = |args: &[&str]| {
        let (code, report) = ask(args);
        let tables: BTreeSet<String> = report["findings"].as_array().unwrap().iter().map(|f| f["table"].as_str().unwrap().to_string()).collect();
        let looked: BTreeSet<String> = report["tables"].as_array().unwrap().iter().map(|t| t["table"].as_str().unwrap().to_string()).collect();
        assert_eq!(code, if tables.is_empty() { 0 } else { 3 }, "{args:?} {report}");
        (tables.into_iter().collect::<Vec<_>>(), looked.into_iter().collect::<Vec<_>>())
    };
    assert_eq!(found(&[]).0, ["spend"]);
    assert_eq!(found(&["--table", "spend"]), (vec!["spend".to_string()], vec!["spend".to_string(), "spend__late".to_string()]));
    assert_eq!(found(&["--table", "plain"]), (vec![], vec!["plain".to_string()]));
    assert_eq!(found(&["--table", "spend__late"]), (vec![], vec!["spend__late".to_string()]));
    assert_eq!(found(&["--to", "2026-01-31T10:05:00Z"]).0, ["spend"]);
    assert_eq!(found(&["--from", "2026-01-31T10:05:00Z"]).0, Vec::<String>::new());
    assert_eq!(found(&["--sample", "100"]).0, ["spend"]);
}

/// A worker decides, commits, truncates its log and deletes runs while the judge looks: nothing of that is wrong.
#[test]
fn a_judge_beside_a_worker_accuses_nobody() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "1ms"));
    let done = std::sync::atomic::AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let judge = scope.spawn(|| {
            let pipeline = millpond::pipeline::load(Path::new("pipeline.yaml"), pond.path(), &|_| None).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let mut looks = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(report) = runtime.block_on(judged(&pipeline, Options::default())) else { continue };
                // Before the first commit some tables are not there yet.
                let wrong: Vec<_> = report.findings.iter().filter(|f| f.kind != "table-missing").collect();
                assert!(wrong.is_empty(), "{wrong:#?}");
                looks += 1;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            looks
        });
        // Each file is read in a turn of its own: many short epochs, and a log that is cut.
        let mut run = 0;
        while run < 3 || files(&pond.path().join("lake/_millpond/proof/log"))[0].ends_with("00000000000000000000.json") {
            assert!(run < 30, "the log was not truncated");
            for file in 0..26 {
                append(&pond, 10 + file, &(0..10).map(|n| event(run * 1000 + file as i64 * 10 + n, ["ann", "bob"][n as usize % 2], run * 20 + n, file as i64, 100 + n)).collect::<Vec<_>>());
            }
            pond.until_end();
            run += 1;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        judge.join().unwrap()
    });
    assert!(looks > 3, "{looks}");
    assert_right(&judge(&pond, deep()));
    // A run that only the checkpoint names by now.
    let log = files(&pond.path().join("lake/_millpond/proof/log"));
    let newest = log.iter().rev().map(|p| serde_json::from_slice::<Value>(&std::fs::read(p).unwrap()).unwrap()).find(|e| e["body"]["checkpoint"].is_object()).unwrap();
    let runs = newest["body"]["checkpoint"]["ledger"]["runs"].as_object().unwrap();
    let object = runs.values().flat_map(|r| r.as_array().unwrap()).find_map(|r| r["object"].as_str()).unwrap();
    std::fs::remove_file(pond.path().join("lake").join(object)).unwrap();
    let report = judge(&pond, Options::default());
    let missing: Vec<_> = report.findings.iter().filter(|f| f.kind == "run-missing").collect();
    assert!(missing.len() == 1 && missing[0].text.contains(object) && missing[0].text.contains("checkpoint"), "{report:#?}");
}
