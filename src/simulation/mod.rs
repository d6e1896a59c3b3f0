//! The whole worker under a seed: both halves, the real decision, fold and commits, real Parquet and
//! manifests, on a simulated store, catalog and broker, in virtual time.
//!
//! A seed decides everything: how the world behaves, which calls fail and how, when workers are
//! killed, how long they sleep, how the pipeline file changes, what other hands do to the tables. Every
//! entry is checked as it is decided (I1, I4, I5, I8), every delete as it is done (I4). The rows of a
//! table are counted after each of its commits; tables are read whole after many of them and all of
//! them in the end, and compared with a row-by-row reckoning that shares no code with the product
//! (I2, I3, I6, I7).
//!
//! `infra/simulate --seeds 50000` runs many; `infra/simulate --seed 1234 --trace` replays one.

mod broker;
mod check;
mod clocks;
mod disk;
mod file;
mod foreign;
mod marks;
mod reckoning;
mod references;
mod run;
mod store;
mod trace;
mod upkeep;
mod world;

use crate::mutant::Mutant;
use references::Upkeep;
use run::{Outcome, run_seed};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds that a plain run of the tests tries: what fits beside the others on two cores.
const SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The bug that is to be switched on, by its name.
fn mutant_asked_for() -> Option<Mutant> {
    let name = std::env::var("MILLPOND_MUTANT").ok()?;
    let found = Mutant::ALL.into_iter().find(|m| format!("{m:?}") == name);
    let unknown = || format!("there is no switchable bug {name}: expected one of {:?}", Mutant::ALL);
    Some(found.unwrap_or_else(|| {
        say(&unknown());
        panic!("{}", unknown())
    }))
}

/// Lines of a trace that are shown unasked.
const TAIL: usize = 40;

/// What went wrong, what led to it (all of it, or the end), and how to see it again.
fn report(outcome: &Outcome, mutant: Option<Mutant>, whole: bool) -> String {
    let lines: Vec<&str> = outcome.trace.lines().collect();
    let from = if whole { 0 } else { lines.len().saturating_sub(TAIL) };
    let left_out = if from > 0 { format!("({from} lines before)\n") } else { String::new() };
    let why = outcome.failure.as_deref().unwrap_or("all is well");
    let with = mutant.map(|m| format!(" --mutant {m:?}")).unwrap_or_default();
    let seed = outcome.seed;
    format!("{left_out}{}\nseed {seed}: {why}\nto see it again: infra/simulate --seed {seed}{with} --trace", lines[from..].join("\n"))
}

/// Past the test harness, which keeps what is printed to itself until a test fails.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// What came of some seeds.
#[derive(Default)]
struct Tried {
    /// In the order of the seeds.
    failed: Vec<Outcome>,
    well: Vec<Outcome>,
}

/// How often it is said how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Tries the seeds of `from..to` on all cores, all of them or until one fails.
fn try_seeds(from: u64, to: u64, mutant: Option<Mutant>, all: bool) -> Tried {
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let (tried, told) = (Mutex::new(Tried::default()), Mutex::new(Instant::now()));
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                crate::mutant::switch(mutant);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    let mut outcome = run_seed(seed);
                    let mut tried = tried.lock().unwrap();
                    if outcome.failure.is_some() {
                        if all {
                            say(&format!("seed {seed}: {}", outcome.failure.as_deref().unwrap_or_default()));
                        }
                        stop.store(!all, Ordering::Relaxed);
                        tried.failed.push(outcome);
                    } else {
                        if to > from + 1 {
                            outcome.trace = String::new();
                        }
                        tried.well.push(outcome);
                    }
                    let mut told = told.lock().unwrap();
                    if told.elapsed() > PROGRESS_EVERY {
                        *told = Instant::now();
                        let done = tried.well.len() + tried.failed.len();
                        say(&format!("{done} of {} seeds, {} failed", to - from, tried.failed.len()));
                    }
                }
            });
        }
    });
    let mut tried = tried.into_inner().unwrap();
    tried.failed.sort_by_key(|o| o.seed);
    tried
}

#[test]
fn seeds() {
    let (from, to) = match number("MILLPOND_SEED") {
        Some(seed) => (seed, seed + number("MILLPOND_SEEDS").unwrap_or(1)),
        None => (0, number("MILLPOND_SEEDS").unwrap_or(SEEDS)),
    };
    let (mutant, whole) = (mutant_asked_for(), std::env::var_os("MILLPOND_TRACE").is_some());
    let began = Instant::now();
    let Tried { failed, well } = try_seeds(from, to, mutant, std::env::var_os("MILLPOND_KEEP_GOING").is_some());
    let sum = |of: fn(&Outcome) -> u64| well.iter().map(of).sum::<u64>();
    if whole && let Some(outcome) = well.first().filter(|_| failed.is_empty()) {
        say(&report(outcome, mutant, true));
    }
    let summary = format!(
        "{} seeds in {:.1} s: {} entries of {} rows, {} late, {} lives of workers, {} logs truncated, {} strays on freed names, {} puts cut short, {} commits counted, \
         {} times tables read whole, {:.0} s of virtual time",
        well.len() + failed.len(),
        began.elapsed().as_secs_f64(),
        sum(|o| o.entries),
        sum(|o| o.rows),
        sum(|o| o.late),
        sum(|o| o.lives),
        sum(|o| o.truncated as u64),
        sum(|o| o.strays),
        sum(|o| o.cut_short),
        sum(|o| o.commits),
        sum(|o| o.compared),
        sum(|o| o.virtual_ms as u64) as f64 / 1000.0
    );
    say(&summary);
    let upkeep = |what: Upkeep| well.iter().filter_map(|o| o.upkeep.get(&what)).sum::<u64>();
    say(&format!("{} steps of clocks; upkeep by workers: {:?}", sum(|o| o.clock_steps), Upkeep::ALL.map(|what| (what, upkeep(what)))));
    if let Some(first) = failed.first() {
        let report = report(first, mutant, whole);
        say(&report);
        say(&format!("{} of {} seeds failed: {:?}", failed.len(), well.len() + failed.len(), failed.iter().map(|o| o.seed).collect::<Vec<_>>()));
        panic!("{report}");
    }
    if to - from >= SEEDS && mutant.is_none() {
        let never: Vec<Upkeep> = Upkeep::ALL.into_iter().filter(|what| upkeep(*what) == 0).collect();
        assert!(sum(|o| o.clock_steps) > SEEDS / 4, "clocks were hardly set");
        assert!(never.is_empty(), "no worker did any of this in {} seeds: {never:?}", to - from);
    }
}

/// Each of the bugs of [`Mutant::ALL`] is found.
#[test]
fn every_mutant_is_found() {
    let most = number("MILLPOND_MUTANT_SEEDS").unwrap_or(4000);
    let only = mutant_asked_for();
    let mut missed = vec![];
    for mutant in Mutant::ALL.into_iter().filter(|m| only.is_none_or(|o| o == *m)) {
        let began = Instant::now();
        match try_seeds(0, most, Some(mutant), false).failed.first() {
            Some(found) => {
                let why = found.failure.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
                let (seed, seconds) = (found.seed, began.elapsed().as_secs_f64());
                say(&format!("{mutant:?}: {why} ({seconds:.1} s; infra/simulate --seed {seed} --mutant {mutant:?})"));
            }
            None => {
                say(&format!("{mutant:?}: NOT FOUND in {most} seeds, {:.1} s", began.elapsed().as_secs_f64()));
                missed.push(format!("{mutant:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}

/// What is printed of a failing seed ends with the command that shows it again: run as printed, in a process of its
/// own, it fails in the same way with the same trace to the byte.
#[test]
fn a_failing_seed_prints_the_command_that_replays_it() {
    let mutant = Some(Mutant::LateRowsCountToo);
    let failed = try_seeds(0, 400, mutant, false).failed;
    let first = failed.first().expect("this bug shows within a few seeds");
    let printed = report(first, mutant, false);
    let tail: Vec<&str> = first.trace.lines().rev().take(TAIL).collect();
    assert!(tail.len() == TAIL && tail.iter().all(|line| printed.contains(line)), "the end of the trace is shown unasked: {printed}");
    let command = printed.lines().last().and_then(|l| l.strip_prefix("to see it again: ")).expect("the last line has the command");
    // What is compiled already need not be compiled again.
    let again = std::process::Command::new("bash")
        .args(["-c", command])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("MILLPOND_SIMULATION", std::env::current_exe().unwrap())
        .env_remove("MILLPOND_SEEDS")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success(), "{command} says that all is well: {shown}");
    assert!(shown.contains(&report(first, mutant, true)), "{command} shows another trace than\n{}\n\nnamely\n{shown}", first.trace);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..6 {
        let (one, two) = (run_seed(seed), run_seed(seed));
        if let Some((a, b)) = one.trace.lines().zip(two.trace.lines()).find(|(a, b)| a != b) {
            panic!("seed {seed} went two ways:\n  {a}\n  {b}");
        }
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
    }
}
