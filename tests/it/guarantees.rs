//! `tests/README.md` promises nothing that no test holds.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all test functions below a folder.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                match function {
                    Some(rest) if marked => {
                        found.insert(rest.split(['(', '<']).next().unwrap_or_default().to_string());
                        marked = false;
                    }
                    _ if line.starts_with("#[test]") || line.starts_with("#[tokio::test") => marked = true,
                    // Other attributes and comments may stand between.
                    _ if line.starts_with("#[") || line.starts_with("//") => {}
                    _ => marked = false,
                }
            }
        }
    }
}

/// What stands between backticks and reads like the name of a test.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |s: &&str| s.matches('_').count() >= 2 && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    text.split('`').skip(1).step_by(2).filter(is_name)
}

#[test]
fn every_test_that_the_page_names_exists_and_every_fault_has_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("tests/README.md")).unwrap();
    let mut tests = BTreeSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    assert!(tests.len() > 200, "only {} tests were found", tests.len());

    let missing: Vec<&str> = named(&page).filter(|n| !tests.contains(*n)).collect();
    assert!(missing.is_empty(), "tests/README.md names tests that do not exist: {missing:#?}");

    for fault in (1..=30).chain(56..=70) {
        let row = page.lines().find(|l| l.starts_with(&format!("| {fault} |"))).unwrap_or_else(|| panic!("tests/README.md has no row of fault {fault}"));
        assert!(named(row).next().is_some() || row.contains("not in this version"), "tests/README.md names no test of fault {fault}");
    }
}
