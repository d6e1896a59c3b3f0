//! Any bytes as a run at rest: what was not written so is refused, and what can be read is written as it was.

use super::{drive, files, kind};
use millpond::stage::runs::{RunRef, read_run, write_runs};
use std::sync::OnceLock;

/// The segments of the fixture, and the entries that name them.
fn fixture() -> &'static [(RunRef, Vec<u8>)] {
    static FIXTURE: OnceLock<Vec<(RunRef, Vec<u8>)>> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let folder = super::here().join("tests/data/runs/v2");
        let object = std::fs::read(folder.join("runs.bin")).unwrap();
        let refs: Vec<RunRef> = serde_json::from_slice(&std::fs::read(folder.join("refs.json")).unwrap()).unwrap();
        refs.into_iter().map(|r| (r.clone(), object[r.offset as usize..(r.offset + r.length) as usize].to_vec())).collect()
    })
}

fn target(bytes: &[u8]) -> String {
    // As the object of an entry that was decided: it is that run, or none.
    for (at, whole) in fixture() {
        match read_run(bytes, at) {
            // Two bytes of a segment's header mean nothing yet.
            Ok(_) => assert!(bytes.len() == whole.len() && bytes[8..] == whole[8..] && bytes[..6] == whole[..6], "other bytes were taken for the run"),
            Err(e) => assert!(e.to_string().contains(&format!("table {}", at.table)) && e.to_string().contains("restore") | e.to_string().contains("newer"), "{e}"),
        }
    }
    // As a segment that some writer meant so: with the right length and checksum.
    let Some(body) = bytes.get(16..) else { return "too short".into() };
    let mut segment = b"MPRN\x01\0\0\0".to_vec();
    segment.extend(twox_hash::XxHash3_64::oneshot(body).to_le_bytes());
    segment.extend(body);
    let at = RunRef { rows: fixture()[bytes.len() % 2].0.rows, offset: 0, length: segment.len() as u64, ..fixture()[0].0.clone() };
    match read_run(&segment, &at) {
        Err(e) => kind(&e.to_string()),
        Ok(run) => {
            let (object, refs) = write_runs(std::slice::from_ref(&run)).unwrap();
            let again = read_run(&object[refs[0].offset as usize..], &refs[0]).unwrap();
            // Arrow writes a time zone without a name as none. No plan has one, so that no fold takes such a run.
            let nameless = |f: &arrow::datatypes::FieldRef| matches!(f.data_type(), arrow::datatypes::DataType::Timestamp(_, Some(zone)) if zone.is_empty());
            if !run.batch.schema().fields().iter().any(nameless) {
                assert_eq!(again, run, "a run that was written is the one that is read");
            }
            format!("{} columns", run.batch.num_columns())
        }
    }
}

#[test]
fn run() {
    let mut seeds: Vec<Vec<u8>> = fixture().iter().map(|(_, segment)| segment.clone()).collect();
    seeds.extend(files("tests/data/runs/v1"));
    seeds.extend(files("tests/data/runs/v2"));
    let words: [&[u8]; 5] = [b"MPRN", b"\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x04\x22\x4d\x18"];
    drive("run", target, seeds, &words);
}
