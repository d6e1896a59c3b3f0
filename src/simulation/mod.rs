//! The whole worker under a seed: both halves, the real decision, fold and commits, real Parquet and
//! manifests, on a simulated store, catalog and broker, in virtual time.
//!
//! A seed decides everything: how the world behaves, which calls fail and how, when workers are
//! killed, how long they sleep. Every entry is checked as it is decided (I1, I4, I5, I8), every delete as it is done (I4), tables are
//! read whole after some of their commits and all of them in the end, and compared with a row-by-row
//! reckoning that shares no code with the product (I2, I3, I6, I7).
//!
//! `infra/simulate --seeds 50000` runs many; `infra/simulate --seed 1234 --trace` replays one.

mod broker;
mod check;
mod disk;
mod foreign;
mod reckoning;
mod references;
mod run;
mod store;
mod trace;
mod world;

use crate::mutant::Mutant;
use run::{Outcome, run_seed};

/// Seeds that a plain run of the tests tries: what fits beside the others on two cores.
const SEEDS: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn report(outcome: &Outcome) -> String {
    let why = outcome.failure.as_deref().unwrap_or("all is well");
    format!("seed {}: {why}\nto see it again: infra/simulate --seed {} --trace", outcome.seed, outcome.seed)
}

/// The first seed of `from..to` that fails, tried on all cores; and the sum of what the others led to.
fn first_failure(from: u64, to: u64, mutant: Option<crate::mutant::Mutant>) -> (Option<Outcome>, Vec<Outcome>) {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let (failed, done) = (Mutex::new(None::<Outcome>), Mutex::new(vec![]));
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
                    if outcome.failure.is_some() {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock().unwrap();
                        if failed.as_ref().is_none_or(|f| f.seed > seed) {
                            *failed = Some(outcome);
                        }
                    } else {
                        if to > from + 1 {
                            outcome.trace.clear();
                        }
                        done.lock().unwrap().push(outcome);
                    }
                }
            });
        }
    });
    (failed.into_inner().unwrap(), done.into_inner().unwrap())
}

#[test]
fn seeds() {
    let (from, to) = match number("MILLPOND_SEED") {
        Some(seed) => (seed, seed + number("MILLPOND_SEEDS").unwrap_or(1)),
        None => (0, number("MILLPOND_SEEDS").unwrap_or(SEEDS)),
    };
    let began = std::time::Instant::now();
    let (failed, done) = first_failure(from, to, None);
    let sum = |of: fn(&Outcome) -> u64| done.iter().map(of).sum::<u64>();
    eprintln!(
        "{} seeds in {:.1} s: {} entries of {} rows, {} late, {} lives of workers, {} logs truncated, {} strays on freed names, \
         {} commits counted, {} times tables read whole, {:.0} s of virtual time",
        done.len(),
        began.elapsed().as_secs_f64(),
        sum(|o| o.entries),
        sum(|o| o.rows),
        sum(|o| o.late),
        sum(|o| o.lives),
        sum(|o| o.truncated as u64),
        sum(|o| o.strays),
        sum(|o| o.commits),
        sum(|o| o.compared),
        sum(|o| o.virtual_ms as u64) as f64 / 1000.0
    );
    if std::env::var_os("MILLPOND_TRACE").is_some() {
        failed.iter().chain(done.iter().take(1)).for_each(|o| eprintln!("{}", o.trace));
    }
    if let Some(failed) = failed {
        panic!("{}", report(&failed));
    }
}

/// Each of the bugs of [`Mutant::ALL`] is found.
#[test]
fn every_mutant_is_found() {
    let most = number("MILLPOND_MUTANT_SEEDS").unwrap_or(4000);
    let only = std::env::var("MILLPOND_MUTANT").ok();
    let mut missed = vec![];
    for mutant in Mutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|o| *o != name) {
            continue;
        }
        let began = std::time::Instant::now();
        match first_failure(0, most, Some(mutant)).0 {
            Some(found) => {
                let why = found.failure.as_deref().unwrap_or_default().lines().next().unwrap_or_default().to_string();
                eprintln!("{name}: seed {} in {:.1} s: {why}", found.seed, began.elapsed().as_secs_f64());
            }
            None => {
                eprintln!("{name}: NOT FOUND in {most} seeds, {:.1} s", began.elapsed().as_secs_f64());
                missed.push(name);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
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
