//! Every file of the JSON parsing test suite, read with `v: {type: json, from: "$"}`.

use super::*;
use base64::Engine;
use std::io::Read;
use std::path::Path;

#[test]
fn every_outcome_of_the_json_test_suite() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/json-test-suite");
    let mut lines = String::new();
    let file = std::fs::File::open(folder.join("test_parsing.ndjson.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut lines).unwrap();
    let column = Column { name: "v".into(), ty: ColumnType::Json, nullable: true, from: From::Path(Vec::new()) };
    let mut decoder = JsonDecoder::new(&[column], &[0], None, 512).unwrap();
    let mut outcomes = String::new();
    let mut wrong = Vec::new();
    let mut files = 0;
    for line in lines.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let (name, expect) = (case["name"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let bytes = base64::engine::general_purpose::STANDARD.decode(case["bytes_b64"].as_str().unwrap()).unwrap();
        let decoded = decoder.decode(&tests::raw(&[&bytes]));
        let outcome = match (&decoded.rows[..], &decoded.dead[..]) {
            ([0], []) => "read",
            ([], [(0, _)]) => "dead",
            other => panic!("{name}: {other:?}"),
        };
        if (expect, outcome) == ("accept", "dead") || (expect, outcome) == ("reject", "read") {
            wrong.push(format!("{name}: {outcome}"));
        }
        if outcome == "read" {
            let text = std::str::from_utf8(&bytes).unwrap().trim_matches([' ', '\n', '\r', '\t']);
            let kept = tests::cell(decoded.batch.column(0), 0);
            assert_eq!(kept, if text == "null" { tests::Cell::Null } else { tests::Cell::Text(text.into()) }, "{name}");
        }
        let reason = decoded.dead.first().map(|(_, reason)| format!("\t{reason}")).unwrap_or_default();
        outcomes.push_str(&format!("{name}\t{outcome}{reason}\n"));
        files += 1;
    }
    assert_eq!(files, 318);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let golden = folder.join("outcomes.golden");
    if std::env::var_os("MILLPOND_BLESS").is_some() {
        std::fs::write(&golden, &outcomes).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (found, expected) in outcomes.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(outcomes.len(), expected.len());
}
