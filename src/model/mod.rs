//! Small worlds in which everything that can happen does: two workers, a cleaner and others' hands, asleep
//! at any step, searched state by state ([`search`]).
//!
//! | world     | what is in it                                                                                 | what runs of the real code |
//! |-----------|-----------------------------------------------------------------------------------------------|----------------------------|
//! | [`log`]   | data, idle claims, plans, checkpoints with merged runs, truncation, condemnations; late puts, strays on freed names, lost answers, crashes | `verdict`, `fits`, `Ledger::apply` |
//! | [`fold`]  | rows that arrive at any moment with any event time, idle claims by anyone, a changed lateness, the end of input | `time`, `fits`, `Ledger::apply` |
//! | [`table`] | stamps, commits that race or land late, compaction, expiry, rollback and RESTORE by others; two formats of which one lags, the checkpoints and truncation that wait for it | `judge`, `holds_first`, `checkpoint::upto` |
//!
//! [`reader`] gives what the first of them can show of a store to the real `Log`. [`catalogue`] names every world and, for each rule of the protocol, what breaks without it: a rule that
//! nothing breaks without is none (some stand there as held on purpose). A sound world holds every
//! invariant in every state, and from every state the work can still be finished. A rule is changed here
//! first.
//!
//! Not in these worlds: several sources, `max_ahead`, upserts and the key index, sessions, stores without an
//! atomic create, overlapped epochs of one worker.
//!
//! ```text
//! cargo test --release --lib model:: -- --nocapture                                  every case, a line each
//! MILLPOND_MODEL=full cargo test --release --lib model:: -- --nocapture              the large worlds too: minutes, and gigabytes
//! MILLPOND_MODEL_SHOW='merge' cargo test --release --lib model:: -- --nocapture      those so called, step by step
//! ```

mod catalogue;
mod fold;
mod ledgers;
mod log;
mod reader;
mod search;
mod table;

use catalogue::Case;
use std::time::Instant;

/// The pipeline file of the worlds: one windowed table, `sums`.
fn file(delay: &str, window: &str, formats: &str) -> String {
    format!(
        "\
pipeline: p
sources:
  events:
    file: events.ndjson
    columns: {{k: string, at: timestamp}}
    watermark: {{column: at, delay: {delay}}}
tables:
  sums:
    sql: select window_start, k, count(*) as n from tumble(events, interval '{window}') group by window_start, k
    key: [window_start, k]
    formats: {formats}
lake: {{root: ./lake}}
"
    )
}

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
        let seconds = start.elapsed().as_secs_f64();
        let (why, way) = found.broken.unwrap_or(("holds", vec![]));
        let steps = if way.is_empty() { String::new() } else { format!(", in {} steps", way.len() - 1) };
        println!("{:<44} {:>9} states {seconds:>6.1} s  {why}{steps}", case.name, found.states);
        let expected = case.breaks.map_or(way.is_empty(), |begins| !way.is_empty() && why.starts_with(begins));
        let way = way.join("\n    ");
        if !expected {
            surprises.push(format!("{}: expected {}, found {why}\n    {way}", case.name, case.breaks.unwrap_or("that it holds")));
        } else if show.is_some() {
            println!("    {way}");
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
