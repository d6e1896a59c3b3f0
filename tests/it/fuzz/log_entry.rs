//! Any bytes as an entry of the log: refused with its name, or an entry that survives being written.

use super::{drive, files, kind};
use millpond::epoch::entry::{self, Body, Entry};
use millpond::epoch::ledger::Ledger;
use millpond::epoch::plan;

fn birth() -> Entry {
    let bytes = std::fs::read(super::here().join("tests/data/log/v1/plan-birth.json")).unwrap();
    entry::parse("birth", &bytes).unwrap()
}

fn target(bytes: &[u8]) -> String {
    let entry = match entry::parse("log/00000000000000000007.json", bytes) {
        Ok(entry) => entry,
        Err(why) => {
            assert!(why.contains("log/00000000000000000007.json"), "which object is damaged is said: {why}");
            return kind(why.split_once("json").unwrap().1);
        }
    };
    assert!(entry.version <= entry::VERSION);
    let written = serde_json::to_vec(&entry).unwrap();
    let again = entry::parse("again", &written).unwrap();
    assert_eq!(again, entry, "an entry that was written is the one that is read");
    assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    // What a reader does with it next: whatever it says, that is refused or applied.
    if let Body::Plan(plan) = &entry.body {
        let compiled = plan::compile(plan).map(|_| "compiles").unwrap_or("does not compile");
        for table in plan.tables.values() {
            let _ = table.table.shared();
        }
        let born = Ledger::born(&entry).map(|_| "born").unwrap_or("not born");
        return format!("plan {compiled} {born}");
    }
    let mut ledger = Ledger::born(&birth()).unwrap();
    let before = ledger.clone();
    let mut fitting = Entry { log: ledger.log, plan: 0, ..entry };
    fitting.began = fitting.began.min(1);
    match ledger.apply(&fitting) {
        Ok(_) => {
            assert_eq!(ledger.next, 2);
            "applied".into()
        }
        Err(corrupt) => {
            assert_eq!(ledger, before, "an entry that is refused changes nothing");
            kind(&corrupt.why)
        }
    }
}

#[test]
fn log_entry() {
    let words: [&[u8]; 15] = [
        b"\"version\":3", b"\"limits\":{\"max_record_bytes\":1,\"max_depth\":0,\"max_ahead_us\":null}", b"\"format\":\"json\"",
        b"\"version\":1", b"\"body\":{\"note\":", b"{\"data\":{", b"\"end_of_input\"", b"\"condemned\"", b"null", b"-1", b"1e3", b"{}", b"[]", b"\"\"", b",\"checkpoint\":{\"entry\":3,\"upto\":2}",
    ];
    // Whatever some version wrote.
    let seeds = (1..=entry::VERSION).flat_map(|version| files(&format!("tests/data/log/v{version}"))).collect();
    drive("log_entry", target, seeds, &words);
}
