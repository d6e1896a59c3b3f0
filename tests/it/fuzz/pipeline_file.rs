//! Any text as a pipeline file: problems at places that exist, or a pipeline that is the same when read again.

use super::{drive, files, kind};
use millpond::pipeline::{self, SourceText, sql};
use std::path::Path;

fn target(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let source = SourceText::new("fuzz.yaml", &text);
    let env = |name: &str| (name.len() % 2 == 0).then(|| format!("value of {name}"));
    let cwd = Path::new("/nonexistent");
    match pipeline::load_text(&source, cwd, &env) {
        Err(problems) => {
            assert!(!problems.list.is_empty(), "refused without a reason");
            let lines = 1 + text.replace("\r\n", "\n").matches(['\r', '\n']).count();
            for problem in &problems.list {
                assert!((1..=lines).contains(&problem.line), "no such line: {problem:?}");
                let length = problem.line_text.chars().count();
                assert!(problem.column >= 1 && problem.length >= 1, "{problem:?}");
                assert!(problem.column + problem.length <= length + 2, "beyond the line: {problem:?}");
                assert!(!problem.message.is_empty());
            }
            assert!(!problems.to_string().is_empty());
            kind(&problems.list[0].message)
        }
        Ok(pipeline) => {
            let again = pipeline::load_text(&source, cwd, &env).unwrap();
            assert_eq!(format!("{again:?}"), format!("{pipeline:?}"));
            let planned: Vec<&str> = pipeline.tables.iter().map(|t| if sql::plan(t, &pipeline.sources).is_ok() { "planned" } else { "refused" }).collect();
            format!("read {}", planned.join(" "))
        }
    }
}

#[test]
fn pipeline_file() {
    let words: [&[u8]; 28] = [
        b"pipeline: ", b"sources:\n", b"tables:\n", b"lake: {root: ./lake}\n", b"sql: ", b"key: [", b"columns: {", b"watermark: {column: ", b"${", b"}", b"${VAR:-x}", b"&a ", b"*a", b"<<: *a",
        b"|\n", b">-\n", b"!!binary ", b"\t", b"'", b"\"", b"decimal(38,39)", b"list<list<", b"tumble(events, interval '1 minute')", b"group by window_start", b"999999999999999999999d", b"- ", b"? ", b"\xe2\x80\xa8",
    ];
    drive("pipeline_file", target, files("pipelines"), &words);
}
