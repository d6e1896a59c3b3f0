//! The log under writers that sleep, crash and lose answers: seeded interleavings of the real
//! [`Log`], [`Ledger`] and decisions over a store that lies in every way a store can.

use super::checkpoint::Checkpoint;
use super::decide::{Unfit, fits};
use super::entry::{Body, Data, Entry, Interval, Note};
use super::ledger::Ledger;
use super::log::{Log, LogError, Proposed};
use super::tests::{FILE, birth_of, entry};
use crate::store::double::{Delegating, Double, lost, taken};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// A small generator of our own: the same seed, the same run.
#[derive(Debug)]
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Creates may land and be denied, be taken for taken, or land long after their sender gave up;
/// every call may take its time.
#[derive(Debug)]
struct Unreliable {
    inner: InMemory,
    rng: Mutex<Rng>,
    faults: u64,
    delayed: Mutex<Vec<(Path, Bytes)>>,
    /// The entry whose create decided each number: what the log is, whatever lies in the store later.
    decided: Mutex<BTreeMap<Path, Bytes>>,
    /// The attempts of those.
    attempts: Mutex<BTreeMap<u64, Uuid>>,
    strays: Mutex<u64>,
}

impl Unreliable {
    fn roll(&self, percent: u64) -> bool {
        self.rng.lock().unwrap().chance(percent)
    }

    async fn dawdle(&self) {
        let n = self.rng.lock().unwrap().below(6);
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
        if self.roll(10) {
            let late = self.delayed.lock().unwrap().pop();
            if let Some((at, bytes)) = late {
                let _ = self.create(&at, bytes).await;
            }
        }
    }

    async fn create(&self, at: &Path, bytes: Bytes) -> Result<PutResult> {
        let put = self.inner.put_opts(at, bytes.clone().into(), PutOptions { mode: PutMode::Create, ..Default::default() }).await?;
        if !at.as_ref().starts_with("log/") {
            return Ok(put);
        }
        let mut decided = self.decided.lock().unwrap();
        match decided.get(at) {
            None => {
                let entry: Entry = serde_json::from_slice(&bytes).unwrap();
                let seq = at.filename().unwrap().trim_end_matches(".json").parse().unwrap();
                self.attempts.lock().unwrap().insert(seq, entry.attempt);
                decided.insert(at.clone(), bytes);
            }
            Some(_) => *self.strays.lock().unwrap() += 1,
        }
        Ok(put)
    }
}

/// A create that is answered with a lie. `real` is the create itself, and comes about only if it is awaited;
/// what lands when nobody thinks of it any more waits in `delayed`.
pub(crate) async fn lie(rng: &Mutex<Rng>, delayed: &Mutex<Vec<(Path, Bytes)>>, at: &Path, bytes: Bytes, real: impl Future<Output = Result<PutResult>>) -> Result<PutResult> {
    let kind = rng.lock().unwrap().below(5);
    let lands_late = || delayed.lock().unwrap().insert(0, (at.clone(), bytes));
    match kind {
        // Landed; the answer is lost, or the client sent it twice.
        0 => real.await.and(Err(lost())),
        1 => real.await.and(Err(taken(at))),
        // A conflict that wrote nothing.
        2 => Err(taken(at)),
        // Not there yet.
        3 => {
            lands_late();
            Err(lost())
        }
        _ => {
            lands_late();
            real.await
        }
    }
}

#[async_trait]
impl Delegating for Unreliable {
    fn inner(&self) -> &dyn ObjectStore {
        &self.inner
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.dawdle().await;
        if !matches!(options.mode, PutMode::Create) {
            return self.inner.put_opts(at, payload, options).await;
        }
        let bytes: Bytes = payload.into();
        if !self.roll(self.faults) {
            return self.create(at, bytes).await;
        }
        lie(&self.rng, &self.delayed, at, bytes.clone(), self.create(at, bytes)).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.dawdle().await;
        if self.roll(self.faults / 4) {
            return Err(lost());
        }
        self.inner.get_opts(at, options).await
    }
}

fn unreliable(seed: u64, faults: u64) -> Arc<Double<Unreliable>> {
    Arc::new(Double(Unreliable {
        inner: InMemory::new(),
        rng: Mutex::new(Rng(seed)),
        faults,
        delayed: Mutex::default(),
        decided: Mutex::default(),
        attempts: Mutex::default(),
        strays: Mutex::default(),
    }))
}

#[tokio::test]
async fn a_store_without_faults_is_one_like_any_other() {
    crate::store::conformance::holds(unreliable(1, 0)).await;
}

const PARTITIONS: i32 = 3;
const END: i64 = 60;

/// What the simulated writers agree to check in the end.
#[derive(Default)]
struct Seen {
    /// What writers were told was decided: number to attempt.
    told: BTreeMap<u64, Uuid>,
    /// Attempts whose writer was told that they are stale: their files are gone.
    discarded: BTreeSet<Uuid>,
    attempts: u128,
    started_over: u64,
    lost: u64,
    checkpoints: u64,
}

/// One life of a writer after another, until everything is read.
async fn writer(nth: u64, store: &Unreliable, log: Log, rng: &Mutex<Rng>, seen: &Mutex<Seen>) {
    let roll = |percent: u64| rng.lock().unwrap().chance(percent);
    let below = |n: u64| rng.lock().unwrap().below(n);
    'life: loop {
        let mut reading = match log.open().await {
            Ok(reading) => reading.expect("it was born"),
            Err(LogError::Unavailable(_)) => continue,
            Err(e) => panic!("{e}"),
        };
        let mut ledger = reading.head;
        // What a checkpoint needs: the state some entries back, and the entries since.
        let (mut trail, mut recent) = (reading.start, std::mem::take(&mut reading.tail));
        loop {
            if (0..PARTITIONS).all(|p| ledger.position("events", p) == Some(END)) {
                return;
            }
            if roll(3) {
                continue 'life; // killed
            }
            let naps = if roll(5) { 400 } else { below(10) };
            let attempt = {
                let mut s = seen.lock().unwrap();
                s.attempts += 1;
                Uuid::from_u128(1000 + s.attempts)
            };
            let began = ledger.next;
            let body = match below(20) {
                0 | 1 if recent.len() > 4 => {
                    let upto = recent[below(recent.len() as u64 - 2) as usize].0;
                    while recent.first().is_some_and(|(seq, _)| *seq <= upto) {
                        let (_, e) = recent.remove(0);
                        trail.apply(&e).expect("it was applied before");
                    }
                    Body::Checkpoint(Checkpoint { upto, ledger: Box::new(trail.clone()), stamps: Default::default() })
                }
                2 => {
                    // The cleaner has searched the log up to here, and the tables: it names what it found nowhere.
                    let named = Uuid::from_u128(1000 + below(seen.lock().unwrap().attempts as u64) as u128);
                    let found = store.attempts.lock().unwrap().range(..began).any(|(_, a)| *a == named);
                    if found {
                        continue;
                    }
                    Body::Note(Note::Condemned { attempts: vec![named] })
                }
                _ => Body::Data(random_data(&ledger, rng)),
            };
            for _ in 0..naps {
                tokio::task::yield_now().await;
            }
            let mut e: Entry = entry(0, ledger.plan_entry, began, body);
            (e.attempt, e.writer) = (attempt, format!("w{nth}"));
            loop {
                if let Err(unfit) = fits(&ledger, &e) {
                    // Condemned files are another's to delete, stale work is its writer's.
                    if !matches!(unfit, Unfit::Condemned(_)) {
                        seen.lock().unwrap().discarded.insert(attempt);
                    }
                    break;
                }
                let at = ledger.next;
                e.checkpoint = ledger.checkpoint;
                let proposed = log.propose(at, &e, |_| {}).await.unwrap_or_else(|e| panic!("{e}"));
                match proposed {
                    Proposed::Decided(seq) => {
                        ledger.apply(&e).unwrap_or_else(|e| panic!("what was decided does not fit: {e}"));
                        recent.push((seq, e.clone()));
                        let mut s = seen.lock().unwrap();
                        assert_eq!(s.told.insert(seq, attempt), None, "two writers were told of entry {seq} (I5)");
                        if let Body::Checkpoint(c) = &e.body {
                            s.checkpoints += 1;
                            let upto = c.upto;
                            drop(s);
                            if roll(80) {
                                let _ = log.truncate(upto).await;
                            }
                        }
                        break;
                    }
                    Proposed::StartOver => {
                        seen.lock().unwrap().started_over += 1;
                        continue 'life;
                    }
                    Proposed::Lost => seen.lock().unwrap().lost += 1,
                }
                match log.tail(ledger.next).await {
                    Ok(tail) => {
                        for (seq, e) in tail {
                            ledger.apply(&e).unwrap_or_else(|e| panic!("entry {seq}: {e}"));
                            recent.push((seq, e));
                        }
                    }
                    Err(LogError::LeftBehind { .. }) => {
                        seen.lock().unwrap().started_over += 1;
                        continue 'life;
                    }
                    Err(LogError::Unavailable(_)) => continue 'life,
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
}

fn random_data(ledger: &Ledger, rng: &Mutex<Rng>) -> Data {
    let mut r = rng.lock().unwrap();
    let mut intervals = BTreeMap::new();
    for p in 0..PARTITIONS {
        let from = ledger.position("events", p).unwrap();
        let to = (from + r.below(4) as i64).min(END);
        if to > from || r.chance(10) {
            intervals.insert(p, Interval { from, to, leader_epoch: 0, max_event_us: (to > from).then_some(to * 1_000_000), name: None });
        }
    }
    let bound = ledger.sources["events"].watermark.max(Some(r.below(80) as i64 * 1_000_000));
    Data { intervals: [("events".to_string(), intervals)].into(), bounds: [("events".to_string(), bound)].into(), ..Default::default() }
}

struct Outcome {
    started_over: u64,
    lost: u64,
    checkpoints: u64,
    strays: u64,
}

async fn simulate(seed: u64) -> Outcome {
    let faults = [0, 10, 25, 40][(seed % 4) as usize];
    let store = unreliable(seed, faults);
    let log = Log::new(store.clone(), Path::from("log"));
    let birth = birth_of(FILE, PARTITIONS);
    while log.give_birth(&birth).await.is_err() {}
    let (rng, seen) = (Mutex::new(Rng(seed ^ 0xABCD)), Mutex::new(Seen::default()));
    futures::join!(writer(0, &store, log.clone(), &rng, &seen), writer(1, &store, log.clone(), &rng, &seen));
    let seen = seen.into_inner().unwrap();

    // The log as it really came to be, whatever was removed or landed later.
    let decided = store.decided.lock().unwrap().clone();
    let entries: Vec<Entry> = decided.values().map(|b| serde_json::from_slice(b).unwrap()).collect();
    let mut whole = Ledger::born(&entries[0]).unwrap();
    let mut attempts = BTreeSet::new();
    let mut positions: BTreeMap<i32, i64> = (0..PARTITIONS).map(|p| (p, 0)).collect();
    let mut condemned: BTreeSet<Uuid> = BTreeSet::new();
    let mut states = vec![whole.clone()];
    for (seq, e) in entries.iter().enumerate() {
        assert_eq!(decided.keys().nth(seq).unwrap().filename().unwrap(), format!("{seq:020}.json"), "seed {seed}: a number was skipped");
        assert!(attempts.insert(e.attempt), "seed {seed}: attempt {} was decided twice", e.attempt);
        assert!(!seen.discarded.contains(&e.attempt), "seed {seed}: I4: entry {seq} was told stale and its files deleted");
        assert!(!condemned.contains(&e.attempt), "seed {seed}: I4: entry {seq} was condemned: {:?}", e.body);
        if let Some(told) = seen.told.get(&(seq as u64)) {
            assert_eq!(*told, e.attempt, "seed {seed}: I5: a writer was told that entry {seq} is its own");
        }
        match &e.body {
            Body::Data(data) => {
                for (p, i) in &data.intervals["events"] {
                    assert_eq!(positions.insert(*p, i.to), Some(i.from), "seed {seed}: I1: entry {seq} partition {p}");
                }
            }
            Body::Note(Note::Condemned { attempts: named }) => {
                assert!(named.iter().all(|a| !attempts.contains(a)), "seed {seed}: I4: entry {seq} condemns what was decided");
                condemned.extend(named);
            }
            Body::Checkpoint(c) => assert_eq!(*c.ledger, states[c.upto as usize], "seed {seed}: the checkpoint differs from the log that it folds"),
            _ => {}
        }
        if seq > 0 {
            whole.apply(e).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            states.push(whole.clone());
        }
    }
    assert!(positions.values().all(|p| *p == END), "seed {seed}: nobody starves");
    assert!(seen.told.keys().all(|seq| (*seq as usize) < entries.len()), "seed {seed}: I5: an entry was told decided that the log does not hold");
    let reading = loop {
        match log.open().await {
            Ok(reading) => break reading.unwrap(),
            Err(LogError::Unavailable(_)) => {}
            Err(e) => panic!("seed {seed}: {e}"),
        }
    };
    assert_eq!(reading.head, whole, "seed {seed}: a reader of what is left sees another log");
    let strays = *store.strays.lock().unwrap();
    Outcome { started_over: seen.started_over, lost: seen.lost, checkpoints: seen.checkpoints, strays }
}

#[tokio::test]
async fn any_interleaving_of_two_writers_over_an_unreliable_store_makes_one_log() {
    let all = futures::future::join_all((0..100).map(simulate)).await;
    let sum = |of: fn(&Outcome) -> u64| all.iter().map(of).sum::<u64>();
    // The simulation is only worth something if it gets where it hurts.
    let reached = [sum(|o| o.started_over), sum(|o| o.lost), sum(|o| o.checkpoints), sum(|o| o.strays)];
    assert!(reached.iter().all(|n| *n > 20), "started over, lost, checkpoints, strays: {reached:?}");
}

/// A store that lies about one create.
#[derive(Debug)]
struct Lying {
    inner: InMemory,
    /// Whether it is done, and what is said of it.
    lie: Mutex<Option<(bool, fn(&Path) -> Error)>>,
    creates: Mutex<u64>,
}

#[async_trait]
impl Delegating for Lying {
    fn inner(&self) -> &dyn ObjectStore {
        &self.inner
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        *self.creates.lock().unwrap() += 1;
        let lie = self.lie.lock().unwrap().take();
        match lie {
            None => self.inner.put_opts(at, payload, options).await,
            Some((true, says)) => self.inner.put_opts(at, payload, options).await.and(Err(says(at))),
            Some((false, says)) => Err(says(at)),
        }
    }
}

fn lying() -> Arc<Double<Lying>> {
    Arc::new(Double(Lying { inner: InMemory::new(), lie: Mutex::new(None), creates: Mutex::new(0) }))
}

#[tokio::test]
async fn a_store_that_was_told_no_lie_is_one_like_any_other() {
    crate::store::conformance::holds(lying()).await;
}

/// Proposes entry 1 to a log that has its birth alone, or another's entry 1, too. What became of it, after how many creates.
async fn proposed(done: bool, says: fn(&Path) -> Error, others: bool) -> (bool, u64) {
    let store = lying();
    let log = Log::new(store.clone(), Path::from("log"));
    assert!(log.give_birth(&birth_of(FILE, PARTITIONS)).await.unwrap());
    let ledger = log.open().await.unwrap().unwrap().head;
    let of = |attempt| entry(attempt, 0, 1, Body::Data(random_data(&ledger, &Mutex::new(Rng(3)))));
    if others {
        assert!(matches!(log.propose(1, &of(51), |_| {}).await, Ok(Proposed::Decided(1))));
    }
    *store.lie.lock().unwrap() = Some((done, says));
    *store.creates.lock().unwrap() = 0;
    let decided = match log.propose(1, &of(50), |_| {}).await {
        Ok(Proposed::Decided(1)) => true,
        Ok(Proposed::Lost) => false,
        other => panic!("{other:?}"),
    };
    let whose = log.read(1).await.unwrap().unwrap().attempt;
    assert_eq!(whose == Uuid::from_u128(50), decided, "what is said is what lies there");
    assert_eq!(log.list(0).await.unwrap(), [0, 1]);
    (decided, *store.creates.lock().unwrap())
}

/// FAULTS 11: it is read back, and not put a second time.
#[tokio::test]
async fn f11_a_put_that_timed_out_and_landed_is_ours() {
    assert_eq!(proposed(true, |_| lost(), false).await, (true, 1));
    assert_eq!(proposed(false, |_| lost(), false).await, (true, 2), "one that did not land is put again");
}

/// FAULTS 12: a 412 may be our own put, sent twice; a 409 may come where nothing was written; both may be another's entry.
#[tokio::test]
async fn f12_a_conditional_create_that_answers_a_conflict_is_read_back() {
    assert_eq!(proposed(true, taken, false).await, (true, 1), "our own");
    assert_eq!(proposed(false, taken, false).await, (true, 2), "nobody's");
    assert_eq!(proposed(false, taken, true).await, (false, 1), "another's");
}

/// A writer proposes, sleeps through a checkpoint and the truncation past its entry, and wakes to a
/// create that succeeds on a freed name.
/// FAULTS 3.
#[tokio::test]
async fn a_sleeper_whose_put_succeeds_on_a_freed_name_starts_over() {
    let store = Arc::new(InMemory::new());
    let log = Log::new(store.clone(), Path::from("log"));
    assert!(log.give_birth(&birth_of(FILE, PARTITIONS)).await.unwrap());
    assert!(!log.give_birth(&Entry { attempt: Uuid::from_u128(77), log: Uuid::from_u128(78), ..birth_of(FILE, PARTITIONS) }).await.unwrap());
    let mut ledger = log.open().await.unwrap().unwrap().head;
    let asleep = entry(50, 0, 1, Body::Data(random_data(&ledger, &Mutex::new(Rng(3)))));
    let mut at_two = None;
    for n in 1..6u64 {
        let from = n as i64 - 1;
        let interval = Interval { from, to: from + 1, leader_epoch: 0, max_event_us: None, name: None };
        let intervals = [("events".to_string(), [(0, interval)].into())].into();
        let e = entry(n as u128 + 1, 0, n, Body::Data(Data { intervals, ..Default::default() }));
        assert!(matches!(log.propose(n, &e, |_| {}).await, Ok(Proposed::Decided(_))));
        ledger.apply(&e).unwrap();
        if n == 2 {
            at_two = Some(ledger.clone());
        }
    }
    let checkpoint = entry(20, 0, 6, Body::Checkpoint(Checkpoint { upto: 2, ledger: Box::new(at_two.unwrap()), stamps: Default::default() }));
    assert!(matches!(log.propose(6, &checkpoint, |_| {}).await, Ok(Proposed::Decided(6))));
    ledger.apply(&checkpoint).unwrap();
    assert_eq!(log.truncate(2).await.unwrap(), 3);
    assert!(matches!(log.propose(1, &asleep, |_| {}).await, Ok(Proposed::StartOver)));
    assert_eq!(log.list(0).await.unwrap(), [1, 3, 4, 5, 6], "its put landed, and is a stray");
    assert_eq!(log.open().await.unwrap().unwrap().head, ledger, "nobody reads a stray");
    for next in [1, 2] {
        assert!(matches!(log.tail(next).await, Err(LogError::LeftBehind { upto: 2, .. })));
    }
    assert_eq!(log.tail(3).await.unwrap().len(), 4);
    assert!(!log.give_birth(&Entry { attempt: Uuid::from_u128(77), log: Uuid::from_u128(78), ..birth_of(FILE, PARTITIONS) }).await.unwrap(), "entry 0 is free again, and no birth");
}
