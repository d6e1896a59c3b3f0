//! The real [`Log`] reads every store that the world of the log can show it, and every store that turns into
//! a later one between any two of its requests: names are freed, strays land on them, others append.

use super::ledgers::{Entry, Ledgers, newest};
use super::log::{Budget, LogWorld, Rule, State};
use super::search::reach;
use crate::epoch::entry::Body;
use crate::epoch::ledger::Ledger;
use crate::epoch::log::{Log, LogError};
use crate::store::double::{Delegating, Double};
use futures::executor::block_on;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A log, and what the store shows of it.
type Shown = (Vec<Entry>, Vec<(u8, Entry)>);

/// Shows one content for so many requests, and another from then on.
#[derive(Debug)]
struct Turning {
    first: Arc<InMemory>,
    then: Arc<InMemory>,
    requests: AtomicUsize,
    turns_after: usize,
}

impl Delegating for Turning {
    fn inner(&self) -> &dyn ObjectStore {
        if self.requests.fetch_add(1, Ordering::Relaxed) < self.turns_after { &*self.first } else { &*self.then }
    }
}

fn store(ledgers: &Ledgers, state: &State) -> Arc<InMemory> {
    let store = InMemory::new();
    for (at, entry) in state.shown() {
        let written = ledgers.written(state.log(), at, &entry).unwrap();
        let bytes = serde_json::to_vec(&written).unwrap();
        block_on(store.put(&Path::from(format!("log/{at:020}.json")), bytes.into())).unwrap();
    }
    Arc::new(store)
}

/// What is wrong with the entries that were read from `next` on, if this is the log by now, and was so
/// long before.
fn misread(ledgers: &Ledgers, log: &[Entry], long: usize, next: usize, tail: &[(u64, crate::epoch::entry::Entry)]) -> Option<String> {
    for (nth, (seq, read)) in tail.iter().enumerate() {
        let decided = log.get(next + nth).and_then(|e| ledgers.written(log, (next + nth) as u8, e).ok());
        if *seq != (next + nth) as u64 || decided.as_ref() != Some(read) {
            return Some(format!("entry {seq} was read as {read:?}, the log has {decided:?}"));
        }
    }
    (next + tail.len() < long).then(|| format!("{} entries were read from {next} on, of {long} in all", tail.len()))
}

/// Reads once, and does not look whether the log went on meanwhile.
async fn careless(log: &Log) -> Option<Ledger> {
    let last = *log.list(0).await.ok()?.last()?;
    let newest = log.read(last).await.ok()??;
    let at = match &newest.body {
        Body::Checkpoint(_) => Some(last),
        _ => newest.checkpoint.map(|c| c.entry),
    };
    let Body::Checkpoint(start) = log.read(at?).await.ok()??.body else { return None };
    let mut ledger = *start.ledger;
    for seq in start.upto + 1..=last {
        ledger.apply(&log.read(seq).await.ok()??).ok()?;
    }
    Some(ledger)
}

#[test]
fn nobody_reads_a_stray_whatever_happens_between_two_requests() {
    let world = LogWorld::new(Rule::Sound, [2, 0], false, Budget { checkpoints: 2, ..Default::default() });
    let ledgers = Ledgers::new(super::ledgers::Without::Nothing);
    let reached = reach(&world);
    let mut stores: HashMap<Shown, Arc<InMemory>> = HashMap::new();
    let shown = |state: &State| -> Shown { (state.log().to_vec(), state.shown()) };
    let mut kept = |state: &State| stores.entry(shown(state)).or_insert_with(|| store(&ledgers, state)).clone();
    let mut pairs: HashSet<(Shown, Shown)> = HashSet::new();
    let (mut readings, mut behind, mut refused) = (0, 0, 0);
    for (n, after) in reached.states.iter().enumerate() {
        for before in std::iter::once(after).chain(reached.before(n)) {
            // The name of an attempt may change on the way: such a pair is met by another way, or not at all.
            if !after.log().starts_with(before.log()) || !pairs.insert((shown(before), shown(after))) {
                continue;
            }
            let (first, then) = (kept(before), kept(after));
            let whole = [before, after].map(|s| ledgers.after(s.log()));
            let is_whole = |head: &Ledger| whole.iter().any(|w| w.as_ref().as_ref() == Ok(head));
            let steady = shown(before) == shown(after);
            for turns_after in if steady { 1..2 } else { 1..12 } {
                let turning = || Arc::new(Double(Turning { first: first.clone(), then: then.clone(), requests: AtomicUsize::new(0), turns_after }));
                let log = |store: &Arc<Double<Turning>>| Log::new(store.clone(), Path::from("log"));
                let context = || format!("after {turns_after} requests\n  {before:?}\nturned into\n  {after:?}");
                let opened = turning();
                match block_on(log(&opened).open()) {
                    Ok(Some(reading)) => assert!(is_whole(&reading.head), "{}: another state was read: {:?}", context(), reading.head.sources),
                    other => panic!("{}: {other:?}", context()),
                }
                let long = before.log().len();
                for next in 1..=long {
                    match block_on(log(&turning()).tail(next as u64)) {
                        Ok(tail) => assert_eq!(misread(&ledgers, after.log(), long, next, &tail), None, "{}", context()),
                        Err(LogError::LeftBehind { upto, .. }) => {
                            assert!(upto >= next as u64, "{}: left behind at {next} by M {upto}", context());
                            behind += 1;
                        }
                        Err(e) => panic!("{}: reading from {next}: {e}", context()),
                    }
                }
                readings += 1;
                let read = block_on(careless(&log(&turning())));
                refused += (newest(before.log()).is_some() && !read.is_some_and(|head| is_whole(&head))) as usize;
                // It has made all its requests before the turn.
                if opened.requests.load(Ordering::Relaxed) <= turns_after {
                    break;
                }
            }
        }
    }
    println!("{} states, {} stores, {} pairs, {readings} readings, {behind} left behind, {refused} that a careless reader gets wrong", reached.states.len(), stores.len(), pairs.len());
    assert!(behind > 1000 && refused > 100, "the stores are too easy: {behind}, {refused}");
}

#[tokio::test]
async fn a_store_that_does_not_turn_is_one_like_any_other() {
    let turning = Turning { first: Arc::default(), then: Arc::default(), requests: AtomicUsize::new(0), turns_after: usize::MAX };
    crate::store::conformance::holds(Arc::new(Double(turning))).await;
}
