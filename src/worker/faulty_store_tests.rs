//! A whole worker on real files, under a store that fails at each write in turn: nothing is lost,
//! nothing doubled, and what it says names the object and the reason.

use super::surroundings::{Hosting, Ids, Surroundings};
use super::*;
use crate::cli::SystemClock;
use crate::epoch::checkpoint::Cadence;
use crate::epoch::entry::{Body, Note, parse};
use crate::epoch::history::History;
use crate::epoch::tests::loaded;
use crate::pipeline::{Clean, SourceSpec};
use crate::read::LakeTableProvider;
use crate::stage::names;
use crate::store::double::{Delegating, Double, lost, taken};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use futures::StreamExt;
use object_store::*;
use std::io::Write;
use std::sync::Mutex;

const EVENTS: usize = 120;
/// They come in so many parts, each with rows of all windows: all but the first correct what is there.
const PARTS: usize = 2;

fn file(dir: &std::path::Path) -> String {
    format!(
        "pipeline: faulty
sources:
  events:
    file: {0}/events.ndjson
    columns: {{id: int64, k: string, at: timestamp, v: int64}}
    watermark: {{column: at}}
tables:
  sums:
    sql: select window_start, k, sum(v) as s, count(*) as n from tumble(events, interval '5 minutes') group by window_start, k
    key: [window_start, k]
    allowed_lateness: 3h
    properties: {{delta.checkpointInterval: \"1\"}}
  plain: {{sql: \"select id, k from events\"}}
lake: {{root: {0}/lake, iceberg: {{catalog: sql, uri: \"sqlite://{0}/lake/catalog.db\"}}}}
epoch: {{every: 50ms}}
commit: {{every: 50ms}}
",
        dir.display()
    )
}

/// What a write does instead of what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// No space, so many times over; then somebody made room.
    Full(usize),
    /// Written, and the answer lost.
    AnswerLost,
    /// Nothing written, and told that the name is taken.
    EmptyConflict,
    /// The service asks to come back later, three times over.
    SlowDown,
    /// The credentials have expired, and are renewed after three calls.
    Expired,
}

/// Where a store fails.
#[derive(Debug, Clone)]
enum At {
    /// At this write of all.
    Write(usize),
    /// At this write of a kind, counted from 0 as well.
    Kind(String, usize),
}

/// A store that fails at one write, and remembers what was written.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    at: Option<(At, Fault)>,
    seen: Mutex<Vec<String>>,
    left: Mutex<usize>,
    /// Kinds of the writes that failed.
    failed: Mutex<BTreeSet<String>>,
}

/// What is written there: the path without what differs from run to run, and of the log what kind of entry it is.
fn kind(path: &Path, payload: &PutPayload) -> String {
    let plain: String = path.as_ref().chars().map(|c| if c.is_ascii_hexdigit() && !c.is_ascii_lowercase() { '0' } else { c }).collect();
    let parts: Vec<&str> = plain.split('/').collect();
    let (name, folder) = (parts.last().copied().unwrap_or_default(), parts[..parts.len() - 1].join("/"));
    if folder.ends_with("/log") {
        let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
        let of = match parse(name, &bytes).map(|entry| entry.body) {
            Ok(Body::Data(_)) => "data",
            Ok(Body::Plan(_)) => "plan",
            Ok(Body::Checkpoint(_)) => "checkpoint",
            Ok(Body::Note(Note::EndOfInput { .. })) => "end",
            Ok(Body::Note(Note::Condemned { .. })) => "condemned",
            Err(_) => "no-entry",
        };
        return format!("{folder}/{of}*.json");
    }
    if name == "_last_checkpoint" {
        return format!("{folder}/{name}");
    }
    let ending = name.split_once('.').map_or("", |(_, ending)| ending);
    let known = ["emit", "rewrite", "deletes", "merged", "epoch", "manifest", "snap", "probe"];
    let start = name.split(['-', '.']).next().filter(|s| known.contains(s)).unwrap_or("");
    format!("{folder}/{start}*.{ending}")
}

/// Every kind of write, by a part of its name.
const KINDS: [&str; 23] = [
    "/probe*",
    "/log/plan*",
    "/log/data*",
    "/log/end*",
    "/log/checkpoint*",
    "/log/condemned*",
    "/history/*.json.zst",
    "/runs/*.run",
    "/runs/merged*.run",
    "/tables/*",
    "data/epoch*.parquet",
    "data/emit*.parquet",
    "data/deletes*.parquet",
    "metadata/manifest*.avro",
    "metadata/snap*.avro",
    "metadata/*.metadata.json",
    "metadata/*.text",
    "/plain/epoch*.parquet",
    "/sums/emit*.parquet",
    "/sums/rewrite*.parquet",
    "_delta_log/*.json",
    "_delta_log/*.checkpoint.parquet",
    "_delta_log/_last_checkpoint",
];

/// Kinds of which there was no write.
fn missing<'a>(seen: impl IntoIterator<Item = &'a String>) -> Vec<&'static str> {
    let seen: BTreeSet<&String> = seen.into_iter().collect();
    KINDS.into_iter().filter(|wanted| !seen.iter().any(|k| k.contains(wanted))).collect()
}

fn faulty(inner: Arc<dyn ObjectStore>, at: Option<(At, Fault)>) -> Arc<Double<Faulty>> {
    Arc::new(Double(Faulty { inner, at, seen: Mutex::default(), left: Mutex::new(0), failed: Mutex::default() }))
}

impl Faulty {
    /// What becomes of this write.
    fn fate(&self, path: &Path, payload: &PutPayload) -> Option<Fault> {
        let kind = kind(path, payload);
        let mut seen = self.seen.lock().unwrap();
        seen.push(kind.clone());
        let (at, fault) = self.at.as_ref()?;
        let mut left = self.left.lock().unwrap();
        let begins = match at {
            At::Write(nth) => seen.len() == nth + 1,
            At::Kind(of, nth) => *of == kind && seen.iter().filter(|k| **k == kind).count() == nth + 1,
        };
        if begins {
            *left = match fault {
                Fault::Full(times) => *times,
                Fault::SlowDown | Fault::Expired => 3,
                Fault::AnswerLost | Fault::EmptyConflict => 1,
            };
        }
        // A full disk takes nothing, whatever it is.
        let hit = *left > 0 && (matches!(fault, Fault::Full(_)) || matches!(at, At::Kind(of, _) if *of == kind));
        *left -= usize::from(hit);
        if hit {
            self.failed.lock().unwrap().insert(kind);
        }
        hit.then_some(*fault)
    }
}

fn said(what: &str) -> Error {
    Error::Generic { store: "faulty", source: what.to_string().into() }
}

#[async_trait]
impl Delegating for Faulty {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.fate(at, &payload) {
            None => self.inner.put_opts(at, payload, options).await,
            Some(Fault::Full(_)) => Err(said(&format!("cannot write {at}: No space left on device (os error 28)"))),
            Some(Fault::Expired) => Err(Error::Unauthenticated { path: at.to_string(), source: "the security token included in the request is expired".into() }),
            Some(Fault::SlowDown) => Err(said(&format!("cannot write {at}: 503 Slow Down"))),
            Some(Fault::AnswerLost) => self.inner.put_opts(at, payload, options).await.and(Err(lost())),
            Some(Fault::EmptyConflict) if options.mode == PutMode::Create => Err(taken(at)),
            Some(Fault::EmptyConflict) => Err(said("409 conflict")),
        }
    }
}

struct Around {
    store: Arc<Double<Faulty>>,
    root: std::path::PathBuf,
}

#[async_trait]
impl Surroundings for Around {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
    fn ids(&self) -> Ids {
        Arc::new(Uuid::now_v7)
    }
    async fn open_place(&self, pipeline: &Pipeline) -> std::result::Result<Place, WorkerError> {
        Place::over(self.store.clone(), &self.root, pipeline, &self.clock()).await
    }
    fn open_source(&self, spec: &SourceSpec, pipeline: &str, worker: &str) -> std::result::Result<Box<dyn Source>, SourceError> {
        crate::source::open(spec, pipeline, worker)
    }
    fn hosting(&self) -> Hosting {
        Hosting::Threads
    }
    fn is_full(&self, _: &std::path::Path) -> bool {
        false
    }

    fn lanes(&self) -> usize {
        1
    }

    /// A log that is made short at every turn.
    fn cadence(&self) -> Cadence {
        Cadence { trail: 0, every: 1, most_runs: 1, ..Cadence::default() }
    }
}

struct Lake {
    dir: tempfile::TempDir,
    pipeline: Arc<Pipeline>,
    plans: Vec<Arc<TablePlan>>,
}

impl Lake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("events.ndjson"), "").unwrap();
        let (mut pipeline, plans) = loaded(&file(dir.path()));
        pipeline.clean = Clean { after_ms: 0, every_ms: 3_600_000 };
        let lake = Self { dir, pipeline: Arc::new(pipeline), plans };
        std::fs::create_dir_all(lake.orphan().parent().unwrap()).unwrap();
        std::fs::write(lake.orphan(), "staged by a worker that was killed").unwrap();
        lake
    }

    /// A file of an attempt that nobody ever decided.
    fn orphan(&self) -> std::path::PathBuf {
        self.root().join("iceberg/faulty/plain/data").join(names::epoch_file(Uuid::from_u128(7), 0, 1))
    }

    /// More rows come.
    fn feed(&self, part: usize) {
        let rows: String = (0..EVENTS)
            .filter(|i| i % PARTS == part)
            .map(|i| format!("{{\"id\":{i},\"k\":\"{}\",\"at\":\"2026-01-31T1{}:{:02}:00Z\",\"v\":{}}}\n", ["a", "b", "c"][i % 3], i / 60, i % 60, i % 7))
            .collect();
        let mut events = std::fs::File::options().append(true).open(self.dir.path().join("events.ndjson")).unwrap();
        events.write_all(rows.as_bytes()).unwrap();
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("lake")
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(DurableLocal::open(&self.root()).unwrap())
    }

    /// Runs a worker to the end; what it waited for meanwhile, and how it ended.
    async fn run(&self, store: Arc<Double<Faulty>>) -> std::result::Result<(), WorkerError> {
        let options = RunOptions { until_end: true, last: true, deadline: Duration::from_secs(5), ..Default::default() };
        let around = Arc::new(Around { store, root: self.root().canonicalize().unwrap() });
        super::run(self.pipeline.clone(), self.plans.clone(), options, Arc::new(Metrics::default()), around, Arc::default()).await
    }

    /// Entries that are neither in the log nor in its history, and runs that a fold needs and that are not there.
    async fn lost(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let place = Place::open(&self.pipeline, &clock).await.unwrap();
        let ledger = place.log.open().await.unwrap().unwrap().head;
        let (_, history) = History::new(place.store.clone(), &place.state_folder).read().await.unwrap();
        let listed = place.log.list(0).await.unwrap();
        let mut lost: Vec<String> = (0..ledger.next).filter(|seq| !history.contains_key(seq) && !listed.contains(seq)).map(|seq| format!("entry {seq}")).collect();
        for run in ledger.runs.values().flatten() {
            if place.store.head(&Path::from(run.object.as_str())).await.is_err() {
                lost.push(run.object.clone());
            }
        }
        lost
    }

    /// More starts, until this is so and the cleaner was there. What belongs to nobody is left to the next pass where a note
    /// fails, or is void beside a checkpoint; whether there is something to merge for a checkpoint, the timing decides.
    async fn run_on(&self, store: &Arc<Double<Faulty>>, done: impl Fn(&Faulty) -> bool) {
        for _ in 0..10 {
            if done(store) && !self.orphan().exists() {
                return;
            }
            // What it says when it fails was looked at before.
            let _ = self.run(store.clone()).await;
        }
    }

    /// The rows of both tables in both formats, as text.
    async fn content(&self) -> Vec<String> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let place = Place::open(&self.pipeline, &clock).await.unwrap();
        let ledger = place.log.open().await.unwrap().unwrap().head;
        let mut content = vec![];
        for (spec, _) in ledger.specs() {
            let spec = spec.shared().unwrap();
            for (kind, format) in &place.formats {
                let mut table = format.open(spec.clone()).await.unwrap().unwrap();
                table.load().await.unwrap();
                let provider = LakeTableProvider::new(place.store.clone(), spec.schema.clone(), table.live_files().await.unwrap());
                let context = datafusion::prelude::SessionContext::new();
                context.register_table("t", Arc::new(provider)).unwrap();
                for batch in context.sql("select * from t").await.unwrap().collect().await.unwrap() {
                    let options = FormatOptions::default();
                    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
                    content.extend((0..batch.num_rows()).map(|row| format!("{kind} {}: {}", spec.name, columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join(" "))));
                }
            }
        }
        content.sort();
        content
    }
}

/// The kinds of writes that failed.
async fn case(at: At, fault: Fault, expected: Arc<Vec<String>>) -> BTreeSet<String> {
    let lake = Lake::new();
    let store = faulty(lake.store(), Some((at.clone(), fault)));
    let what = format!("{fault:?} at {at:?}");
    for part in 0..PARTS {
        lake.feed(part);
        // Before it ever ran a worker ends and says why; later it waits.
        let mut ended = lake.run(store.clone()).await;
        for _ in 0..10 {
            let Err(why) = ended else { break };
            assert!(matches!(why, WorkerError::Unavailable(_) | WorkerError::Refused(_)), "{what}: {why}");
            let why = why.to_string();
            let reason = ["No space", "503", "token included in the request is expired", "connection reset", "409", "not there", "succeeded", "answer"].iter().any(|r| why.contains(r));
            let object = ["_millpond", "iceberg/", "delta/", "catalog", "commit "].iter().any(|o| why.contains(o));
            assert!(reason && object, "{what}: it does not say what and why: {why}");
            ended = lake.run(store.clone()).await;
        }
        ended.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let comes_later = matches!(at, At::Kind(..));
    lake.run_on(&store, |store| !(comes_later && store.failed.lock().unwrap().is_empty())).await;
    assert!(!lake.orphan().exists(), "{what}: the cleaner left what belongs to nobody");
    assert_eq!(lake.lost().await, Vec::<String>::new(), "{what}");
    let content = lake.content().await;
    let surplus: Vec<_> = content.iter().filter(|r| !expected.contains(r)).take(3).collect();
    let missing: Vec<_> = expected.iter().filter(|r| !content.contains(r)).take(3).collect();
    assert!(content == *expected, "{what}: {} rows, expected {}; not expected: {surplus:?}; missing: {missing:?}", content.len(), expected.len());
    let failed = store.failed.lock().unwrap().clone();
    failed
}

/// What the tables hold when all goes well, and the writes that it takes, by their kinds.
async fn calm() -> (Arc<Vec<String>>, Vec<String>) {
    let calm = Lake::new();
    let store = faulty(calm.store(), None);
    for part in 0..PARTS {
        calm.feed(part);
        calm.run(store.clone()).await.unwrap();
    }
    calm.run_on(&store, |store| missing(store.seen.lock().unwrap().iter()).is_empty()).await;
    let expected = calm.content().await;
    assert!(expected.iter().filter(|r| r.contains("plain")).count() == 2 * EVENTS && expected.iter().any(|r| r.contains("sums")), "{expected:?}");
    let seen = store.seen.lock().unwrap().clone();
    assert_eq!(missing(&seen), Vec::<&str>::new(), "{seen:#?}");
    (Arc::new(expected), seen)
}

/// FAULTS 11, 12, 13, 22: at some write of each kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_answer_a_false_conflict_and_a_slow_service_at_a_write_of_every_kind() {
    let (expected, seen) = calm().await;
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
    for kind in seen {
        *writes.entry(kind).or_default() += 1;
    }
    let mut cases = vec![];
    for (kind, times) in writes {
        // A table is made and then committed to at least once; how often, the timing decides.
        let made_first = ["metadata.json", "_delta_log/*.json", ".text"].iter().any(|k| kind.contains(k));
        let last = usize::from(made_first || kind.contains("/log/data")).min(times - 1);
        cases.push((At::Kind(kind.clone(), last), Fault::AnswerLost));
        cases.push((At::Kind(kind.clone(), 0), Fault::SlowDown));
        // Where somebody else could be the cause: the names that are created.
        if kind.contains("/log/") {
            cases.push((At::Kind(kind.clone(), last), Fault::EmptyConflict));
        }
    }
    let (missed, failed) = all_hold(cases, expected).await;
    assert!(missed.is_empty(), "never came to that: {missed:?}");
    assert_eq!(missing(&failed), Vec::<&str>::new());
}

/// FAULTS 14: what stores of later versions have, said by one that stands in for them. Every file is one put, which is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f14_credentials_that_expire_at_a_write_of_any_kind_are_waited_for() {
    let (expected, seen) = calm().await;
    let kinds: BTreeSet<String> = seen.into_iter().collect();
    let (missed, failed) = all_hold(kinds.iter().map(|kind| (At::Kind(kind.clone(), 0), Fault::Expired)).collect(), expected).await;
    assert!(missed.is_empty(), "never came to that: {missed:?}");
    assert_eq!(missing(&failed), Vec::<&str>::new());
}

/// Runs the cases side by side: they wait most of the time. Those that did not come to their write, and the kinds of writes that
/// failed in the others.
async fn all_hold(cases: Vec<(At, Fault)>, expected: Arc<Vec<String>>) -> (Vec<At>, BTreeSet<String>) {
    let run = |(at, fault): (At, Fault)| {
        let task = tokio::spawn(case(at.clone(), fault, expected.clone()));
        async { (at, task.await) }
    };
    let (mut failures, mut missed, mut failed) = (vec![], vec![], BTreeSet::new());
    for (at, done) in futures::stream::iter(cases).map(run).buffer_unordered(12).collect::<Vec<_>>().await {
        match done {
            Ok(kinds) if kinds.is_empty() => missed.push(at),
            Ok(kinds) => failed.extend(kinds),
            Err(e) => failures.push(e.into_panic().downcast_ref::<String>().cloned().unwrap_or_default()),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    (missed, failed)
}

/// FAULTS 64: at each write in turn, whatever it is of; once, or several times over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_is_full_at_each_write_in_turn() {
    let (expected, seen) = calm().await;
    let kinds: BTreeSet<String> = seen.iter().cloned().collect();
    let mut cases: Vec<(At, Fault)> = (0..seen.len()).map(|nth| (At::Write(nth), Fault::Full([1, 3, 7][nth % 3]))).collect();
    // How many commits there are the timing decides, and so which write is the last; not that there is one of each kind.
    cases.extend(kinds.iter().map(|kind| (At::Kind(kind.clone(), 0), Fault::Full(1))));
    let (_, failed) = all_hold(cases, expected).await;
    assert_eq!(kinds.difference(&failed).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(missing(&failed), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_faulty_store_is_a_store_until_it_fails() {
    crate::store::conformance::holds(faulty(Arc::new(memory::InMemory::new()), None)).await;
}
