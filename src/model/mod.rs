//! Small worlds in which everything that can happen does.

mod catalogue;
mod fold;
mod ledgers;
mod log;
mod search;
mod table;

use catalogue::Case;
use std::time::Instant;

fn prove(cases: Vec<Case>) {
    let show = std::env::var("MILLPOND_MODEL_SHOW").ok();
    let full = std::env::var("MILLPOND_MODEL").is_ok_and(|v| v == "full");
    let mut surprises = vec![];
    for case in cases {
        if show.as_ref().map_or(case.large && !full, |part| !case.name.contains(part.as_str())) {
            continue;
        }
        let start = Instant::now();
        let found = (case.run)();
        let (why, way) = found.broken.map_or(("holds", vec![]), |(why, way)| (why, way));
        println!("{:<44} {:>9} states {:>6.1} s  {why}{}", case.name, found.states, start.elapsed().as_secs_f64(), if way.is_empty() { String::new() } else { format!(" ({} steps)", way.len() - 1) });
        let expected = case.breaks.map_or(way.is_empty(), |b| !way.is_empty() && why.starts_with(b));
        if !expected {
            surprises.push(format!("{}: expected {:?}, found {why}:\n    {}", case.name, case.breaks, way.join("\n    ")));
        } else if show.is_some() {
            println!("    {}", way.join("\n    "));
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n\n"));
}

#[test]
fn the_log_keeps_every_row_once_whoever_sleeps() {
    prove(catalogue::log());
}

#[test]
fn no_row_is_late_by_timing_and_nobody_starves() {
    prove(catalogue::fold());
}

#[test]
fn every_format_of_a_table_is_the_fold_up_to_its_stamp() {
    prove(catalogue::table());
}
