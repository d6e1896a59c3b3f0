use super::checkpoint::{self, Cadence, Checkpoint};
use super::decide::{PutAnswer, ReadBack, Unfit, Verdict, fits, verdict};
use super::entry::{Body, ByPartition, CheckpointRef, Counts, Data, Entry, Interval, Note, Plan, RunEntry, RunObject, StagedFile, VERSION, parse};
use super::ledger::{Ledger, LiveRun};
use super::plan::{Fit, Given, PlanError, birth, compile, fit};
use crate::partial::RunKind;
use crate::pipeline::sql::{self, TablePlan};
use crate::pipeline::{Pipeline, SourceText, TableFormatKind, load_text};
use crate::source::SourceFacts;
use crate::stage::DataFile;
use crate::stage::runs::RunRef;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

pub(crate) const MINUTE: i64 = 60_000_000;

pub(crate) const FILE: &str = "\
pipeline: p
sources:
  events:
    file: events.ndjson
    columns: {k: string, at: timestamp, v: int64}
    watermark: {column: at, delay: 1m}
tables:
  sums:
    sql: |
      select window_start, k, sum(v) as s, count(*) as n from tumble(events, interval '5 minutes')
      group by window_start, k
    key: [window_start, k]
    allowed_lateness: 10m
    formats: [iceberg, delta]
  plain:
    sql: select k, v from events
lake: {root: ./lake}
";

pub(crate) fn loaded(text: &str) -> (Pipeline, Vec<Arc<TablePlan>>) {
    let pipeline = load_text(&SourceText::new("p.yaml", text), Path::new("/cwd"), &|_| None).unwrap_or_else(|e| panic!("{e}"));
    let plans = pipeline.tables.iter().map(|t| Arc::new(sql::plan(t, &pipeline.sources).unwrap())).collect();
    (pipeline, plans)
}

pub(crate) fn facts(partitions: i32) -> BTreeMap<String, SourceFacts> {
    let at = (0..partitions).map(|p| (p, (0, 0))).collect();
    [("events".to_string(), SourceFacts { incarnation: None, topic: "events.ndjson".into(), partitions: at, held: BTreeMap::new(), names: BTreeMap::new(), last: BTreeMap::new() })].into()
}

pub(crate) fn starts(partitions: i32) -> ByPartition<i64> {
    [("events".to_string(), (0..partitions).map(|p| (p, 0)).collect())].into()
}

pub(crate) const LOG: Uuid = Uuid::from_u128(0x10c);

pub(crate) fn entry(attempt: u128, plan: u64, began: u64, body: Body) -> Entry {
    Entry { version: VERSION, attempt: Uuid::from_u128(attempt), log: LOG, writer: "w1".into(), plan, began, checkpoint: None, written_at_ms: 1_767_225_600_000, body }
}

pub(crate) fn birth_of(text: &str, partitions: i32) -> Entry {
    let (pipeline, plans) = loaded(text);
    entry(1, 0, 0, Body::Plan(birth(Given { pipeline: &pipeline, plans: &plans, facts: &facts(partitions), starts: &starts(partitions) }).unwrap()))
}

fn ledger() -> Ledger {
    Ledger::born(&birth_of(FILE, 2)).unwrap()
}

/// Partition, from, to, highest event time in minutes; bound in minutes.
fn data(intervals: &[(i32, i64, i64, Option<i64>)], bound: Option<i64>) -> Data {
    let of = |&(p, from, to, max): &(i32, i64, i64, Option<i64>)| (p, Interval { from, to, leader_epoch: 3, max_event_us: max.map(|m| m * MINUTE), name: None });
    Data {
        read_at_ms: 1_767_225_600_000,
        intervals: [("events".to_string(), intervals.iter().map(of).collect())].into(),
        bounds: [("events".to_string(), bound.map(|b| b * MINUTE))].into(),
        ..Default::default()
    }
}

fn apply(ledger: &mut Ledger, attempt: u128, body: Body) {
    let next = entry(attempt, ledger.plan_entry, ledger.next, body);
    ledger.apply(&next).unwrap_or_else(|e| panic!("{e}"));
}

const MINE: Uuid = Uuid::from_u128(7);
const THEIRS: Uuid = Uuid::from_u128(8);

#[test]
fn the_table_of_verdicts_row_by_row() {
    let at = 10;
    let answers = [PutAnswer::Created, PutAnswer::NotClean];
    let backs = [None, Some(ReadBack::Attempt(MINE)), Some(ReadBack::Attempt(THEIRS)), Some(ReadBack::Absent), Some(ReadBack::Unreadable)];
    let newest = |upto: u64| Ok(Some(CheckpointRef { entry: upto + 15, upto }));
    for answer in answers {
        for back in backs {
            for upto in [10, 11, 500] {
                assert_eq!(verdict(at, MINE, answer, back, newest(upto)), Verdict::StartOver, "{answer:?} {back:?} M={upto}");
            }
            assert_eq!(verdict(at, MINE, answer, back, Err(())), Verdict::AskAgain, "{answer:?} {back:?}");
            let expected = match (answer, back) {
                (PutAnswer::Created, _) => Verdict::Decided,
                (PutAnswer::NotClean, Some(ReadBack::Attempt(a))) if a == MINE => Verdict::Decided,
                (PutAnswer::NotClean, Some(ReadBack::Attempt(_))) => Verdict::Lost,
                (PutAnswer::NotClean, Some(ReadBack::Absent)) => Verdict::SendAgain,
                (PutAnswer::NotClean, _) => Verdict::AskAgain,
            };
            for below in [Ok(None), newest(9), newest(0)] {
                assert_eq!(verdict(at, MINE, answer, back, below), expected, "{answer:?} {back:?} {below:?}");
            }
        }
    }
}

#[test]
fn every_way_not_to_fit() {
    let mut l = ledger();
    apply(&mut l, 2, Body::Data(data(&[(0, 0, 10, Some(20)), (1, 0, 5, Some(21))], None)));
    assert_eq!(l.sources["events"].watermark, Some(19 * MINUTE));
    let good = || entry(50, 0, l.next, Body::Data(data(&[(0, 10, 12, Some(30))], Some(19))));
    assert_eq!(fits(&l, &good()), Ok(()));
    let why = |change: &dyn Fn(&mut Entry)| {
        let mut e = good();
        change(&mut e);
        fits(&l, &e).unwrap_err()
    };
    let with = |d: Data| why(&|e| e.body = Body::Data(d.clone()));
    let at = |from: i64, to: i64| with(data(&[(0, from, to, None)], Some(19)));
    let name = || "events".to_string();

    assert_eq!(why(&|e| e.log = THEIRS), Unfit::OtherLog(THEIRS));
    assert_eq!(why(&|e| e.plan = 1), Unfit::Plan { made: 1, newest: 0 });
    assert_eq!(at(9, 12), Unfit::Position { source_name: name(), partition: 0, from: 9, position: 10 });
    assert_eq!(at(11, 12), Unfit::Position { source_name: name(), partition: 0, from: 11, position: 10 });
    assert_eq!(at(11, 11), Unfit::Position { source_name: name(), partition: 0, from: 11, position: 10 }, "a claim is void when the position moved");
    assert_eq!(at(10, 9), Unfit::Backwards { source_name: name(), partition: 0, from: 10, to: 9 });
    for bound in [None, Some(18)] {
        assert_eq!(with(data(&[(0, 10, 12, None)], bound)), Unfit::Bound { source_name: name() });
    }
    let mut other = data(&[(0, 10, 12, None)], Some(19));
    other.intervals.insert("clicks".into(), BTreeMap::new());
    assert_eq!(with(other), Unfit::UnknownSource("clicks".into()));
    let mut other = data(&[(0, 10, 12, None)], Some(19));
    other.bounds.insert("clicks".into(), None);
    assert_eq!(with(other), Unfit::UnknownSource("clicks".into()));

    let Body::Plan(plan) = birth_of(FILE, 2).body else { panic!() };
    assert_eq!(why(&|e| e.body = Body::Plan(plan.clone())), Unfit::BirthTaken);
    let replacing = |replaces| Body::Plan(Plan { replaces: Some(replaces), ..plan.clone() });
    assert_eq!(why(&|e| e.body = replacing(1)), Unfit::Plan { made: 1, newest: 0 });
    assert_eq!(fits(&l, &entry(51, 0, 2, replacing(0))), Ok(()));

    let ends = |p, end| Body::Note(Note::EndOfInput { ends: [(name(), [(p, end)].into())].into() });
    assert_eq!(why(&|e| e.body = ends(0, 11)), Unfit::EndNotReached { source_name: name(), partition: 0, position: 10, end: 11 });
    assert_eq!(why(&|e| e.body = ends(9, 1)), Unfit::EndNotReached { source_name: name(), partition: 9, position: 0, end: 1 });
    assert_eq!(fits(&l, &entry(51, 0, 2, ends(0, 10))), Ok(()));

    // A partition that nobody has mentioned begins wherever it begins; then it has a name.
    let mut unknown = data(&[(2, 40, 41, None)], Some(19));
    unknown.intervals.get_mut("events").unwrap().get_mut(&2).unwrap().name = Some("c.ndjson".into());
    assert_eq!(fits(&l, &entry(51, 0, 2, Body::Data(unknown.clone()))), Ok(()));
    let mut named = l.clone();
    apply(&mut named, 3, Body::Data(unknown.clone()));
    let interval = unknown.intervals.get_mut("events").unwrap().get_mut(&2).unwrap();
    (interval.from, interval.to, interval.name) = (41, 42, Some("b.ndjson".into()));
    let e = entry(51, 0, 3, Body::Data(unknown));
    assert_eq!(fits(&named, &e), Err(Unfit::Name { source_name: name(), partition: 2, found: "b.ndjson".into(), known: "c.ndjson".into() }));

    // Condemned attempts, and condemnations of what is in the log.
    let condemn = |a: u128| Body::Note(Note::Condemned { attempts: vec![Uuid::from_u128(a)] });
    assert_eq!(why(&|e| e.body = condemn(2)), Unfit::CondemnsDecided(Uuid::from_u128(2)));
    let mut condemned = l.clone();
    apply(&mut condemned, 60, condemn(50));
    assert_eq!(fits(&condemned, &good()), Err(Unfit::Condemned(Uuid::from_u128(50))));
}

/// FAULTS 9: we have read 3..20; another incarnation decides 3..5, 5..9, strictly inside it, and one that overlaps its end.
#[test]
fn f09_another_incarnation_decided_strictly_inside_our_range() {
    let mut l = ledger();
    apply(&mut l, 2, Body::Data(data(&[(0, 0, 3, Some(1)), (1, 0, 1, Some(1))], None)));
    let ours = entry(50, 0, l.next, Body::Data(data(&[(0, 3, 20, Some(2))], Some(0))));
    assert_eq!(fits(&l, &ours), Ok(()));
    for (attempt, from, to) in [(3, 3, 5), (4, 5, 9), (5, 9, 25)] {
        apply(&mut l, attempt, Body::Data(data(&[(0, from, to, Some(2))], Some(0))));
        let why = Unfit::Position { source_name: "events".into(), partition: 0, from: 3, position: to };
        assert_eq!(fits(&l, &ours), Err(why), "not even the part that is new is taken");
        let rest = entry(51, 0, l.next, Body::Data(data(&[(0, to, to + 5, Some(2))], Some(0))));
        assert_eq!(fits(&l, &rest), Ok(()), "what comes after it, read again, is");
    }
}

#[test]
fn work_that_began_at_or_below_the_newest_m_is_stale_whatever_its_kind() {
    let mut l = ledger();
    for n in 0..5 {
        apply(&mut l, 10 + n, Body::Data(data(&[(0, n as i64, n as i64 + 1, None)], None)));
    }
    let mut at_three = ledger();
    for n in 0..3 {
        apply(&mut at_three, 10 + n, Body::Data(data(&[(0, n as i64, n as i64 + 1, None)], None)));
    }
    let checkpoint = |upto| Body::Checkpoint(Checkpoint { upto, ledger: Box::new(at_three.clone()), stamps: Default::default() });
    apply(&mut l, 30, checkpoint(3));
    assert_eq!(l.checkpoint, Some(CheckpointRef { entry: 6, upto: 3 }));
    assert_eq!(l.attempts.keys().copied().collect::<Vec<_>>(), [4, 5, 6], "what M holds is for the tables to know");
    for upto in [2, 3] {
        assert_eq!(fits(&l, &entry(31, 0, l.next, checkpoint(upto))), Err(Unfit::CheckpointFalls { upto, newest: 3 }));
    }
    assert_eq!(fits(&l, &entry(31, 0, l.next, checkpoint(4))), Ok(()));
    assert_eq!(fits(&l, &entry(31, 0, 6, checkpoint(4))), Err(Unfit::CheckpointUnseen { began: 6, newest: 6 }), "it may name runs that were merged");
    // Attempt 12 is entry 3: the log shows it no more, and a search that began there has not seen it.
    let bodies = [
        Body::Data(data(&[(0, 5, 6, None)], None)),
        Body::Note(Note::Condemned { attempts: vec![Uuid::from_u128(12)] }),
        Body::Note(Note::EndOfInput { ends: BTreeMap::new() }),
        checkpoint(4),
    ];
    for body in bodies {
        for began in [0, 2, 3] {
            assert_eq!(fits(&l, &entry(40, 0, began, body.clone())), Err(Unfit::BeganBelowCheckpoint { began, upto: 3 }), "{body:?}");
        }
        // A checkpoint is made on the newest one, which is entry 6.
        let began = if matches!(body, Body::Checkpoint(_)) { 7 } else { 4 };
        assert_eq!(fits(&l, &entry(40, 0, began, body)), Ok(()));
    }
}

/// A condemned attempt is remembered until a checkpoint holds the note: whatever is as old is stale by itself then.
#[test]
fn condemned_attempts_are_forgotten_when_m_reaches_their_note() {
    let mut l = ledger();
    apply(&mut l, 10, Body::Data(data(&[(0, 0, 1, None)], None)));
    let began = l.next;
    apply(&mut l, 11, Body::Note(Note::Condemned { attempts: vec![Uuid::from_u128(50)] }));
    let note = l.next - 1;
    apply(&mut l, 12, Body::Data(data(&[(0, 1, 2, None)], None)));
    let as_of = |upto: u64| {
        let mut state = ledger();
        (state.next, state.plan_entry) = (upto + 1, 0);
        Body::Checkpoint(Checkpoint { upto, ledger: Box::new(state), stamps: Default::default() })
    };
    let late = |l: &Ledger| fits(l, &entry(50, 0, began, Body::Data(data(&[(0, 2, 3, None)], None))));
    apply(&mut l, 13, as_of(note - 1));
    assert_eq!(l.condemned, [(Uuid::from_u128(50), note)].into());
    assert_eq!(late(&l), Err(Unfit::Condemned(Uuid::from_u128(50))));
    let text = serde_json::to_string(&l).unwrap();
    assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), l, "a checkpoint carries it");
    apply(&mut l, 14, as_of(note));
    assert!(l.condemned.is_empty());
    assert_eq!(late(&l), Err(Unfit::BeganBelowCheckpoint { began, upto: note }), "its search began before the note, and so did its work");
}

#[test]
fn a_reader_from_a_checkpoint_ends_where_one_from_the_start_does() {
    let mut whole = ledger();
    let mut all = vec![];
    let mut at_four = None;
    for n in 0..9u64 {
        if n == 7 {
            let at: Ledger = at_four.clone().unwrap();
            all.push(entry(100, 0, whole.next, Body::Checkpoint(Checkpoint { upto: 4, ledger: Box::new(at), stamps: Default::default() })));
        } else if n == 5 {
            all.push(entry(n as u128 + 10, 0, whole.next, Body::Note(Note::Condemned { attempts: vec![Uuid::from_u128(999)] })));
        } else {
            let p = (n % 2) as i32;
            let from = whole.position("events", p).unwrap();
            let bound = whole.sources["events"].watermark.map(|w| w / MINUTE);
            let idle = if n == 4 { Some((1 - p, whole.position("events", 1 - p).unwrap())) } else { None };
            let mut intervals = vec![(p, from, from + 3, Some(10 * n as i64))];
            intervals.extend(idle.map(|(p, at)| (p, at, at, None)));
            all.push(entry(n as u128 + 10, 0, whole.next, Body::Data(data(&intervals, bound))));
        }
        whole.apply(all.last().unwrap()).unwrap();
        if whole.next == 5 {
            at_four = Some(whole.clone());
        }
    }
    let mut from_checkpoint = at_four.unwrap();
    assert_eq!(from_checkpoint.next, 5);
    let text = serde_json::to_string(&from_checkpoint).unwrap();
    from_checkpoint = serde_json::from_str(&text).unwrap();
    for e in &all[4..] {
        from_checkpoint.apply(e).unwrap();
    }
    assert_eq!(from_checkpoint, whole);
}

fn run(table: &str, window_end: i64) -> RunEntry {
    let run = RunRef { table: table.into(), kind: RunKind::Partial { window_start_us: (window_end - 5) * MINUTE }, rows: 2, offset: 8, length: 100 };
    RunEntry { run, last_window_end_us: window_end * MINUTE }
}

#[test]
fn time_moves_by_the_rows_of_an_entry_and_dead_runs_go() {
    let mut l = ledger();
    let mut first = data(&[(0, 0, 10, Some(3)), (1, 0, 5, Some(9))], None);
    first.runs = Some(RunObject { path: "runs/a".into(), bytes: 200, runs: vec![run("sums", 5), run("sums", 10)] });
    let times = l.apply(&entry(2, 0, 1, Body::Data(first))).unwrap();
    let t = times["sums"];
    assert_eq!((t.watermark_before, t.watermark_after), (None, Some(2 * MINUTE)), "the lower of 3 and 9, less the delay");
    assert_eq!((t.horizon_before, t.horizon_after), (None, Some(-8 * MINUTE)));
    assert_eq!(times.keys().collect::<Vec<_>>(), ["sums"], "plain tables have no time");
    // Partition 0 is claimed idle: 9 minutes less one.
    let times = l.apply(&entry(3, 0, 2, Body::Data(data(&[(0, 10, 10, None)], Some(2))))).unwrap();
    assert_eq!(times["sums"].watermark_after, Some(8 * MINUTE));
    // Claims are not carried over: the next entry takes partition 0 for what it is, and the watermark stays.
    let times = l.apply(&entry(4, 0, 3, Body::Data(data(&[(1, 5, 6, Some(60))], Some(8))))).unwrap();
    assert_eq!(times["sums"].watermark_after, Some(8 * MINUTE));
    assert_eq!(l.runs["sums"].len(), 2);
    // 16 minutes less one less ten: the window up to 5 is over for good, that up to 10 is not.
    let times = l.apply(&entry(5, 0, 4, Body::Data(data(&[(0, 10, 11, Some(16))], Some(8))))).unwrap();
    assert_eq!(times["sums"].horizon_after, Some(5 * MINUTE));
    assert_eq!(l.runs["sums"].iter().map(|r| (r.entry, r.nth)).collect::<Vec<_>>(), [(1, 1)]);
    // The end of input closes the window of the latest row.
    let ends = l.positions();
    let times = l.apply(&entry(6, 0, 5, Body::Note(Note::EndOfInput { ends }))).unwrap();
    assert!(times["sums"].emit_all);
    assert_eq!(times["sums"].watermark_after, Some(65 * MINUTE));
    assert!(l.runs["sums"].is_empty());
    assert!(l.ended_at.unwrap() > l.rows_at);
}

#[test]
fn lateness_raised_or_lowered_never_lets_the_horizon_fall() {
    let mut l = ledger();
    apply(&mut l, 2, Body::Data(data(&[(0, 0, 10, Some(100)), (1, 0, 5, Some(100))], None)));
    assert_eq!(l.horizons["sums"], Some(89 * MINUTE));
    let change = |l: &mut Ledger, lateness: &str| {
        let (pipeline, plans) = loaded(&FILE.replace("allowed_lateness: 10m", &format!("allowed_lateness: {lateness}")));
        let Fit::Change(plan, _) = fit(l, Given { pipeline: &pipeline, plans: &plans, facts: &facts(2), starts: &BTreeMap::new() }, false).unwrap() else { panic!() };
        let e = entry(l.next as u128 + 1, l.plan_entry, l.next, Body::Plan(*plan));
        l.apply(&e).unwrap()["sums"]
    };
    let t = change(&mut l, "1h");
    assert_eq!((t.horizon_before, t.horizon_after), (Some(89 * MINUTE), Some(89 * MINUTE)));
    let t = change(&mut l, "2m");
    assert_eq!((t.horizon_before, t.horizon_after), (Some(89 * MINUTE), Some(97 * MINUTE)));
    // Work under the older plan is stale.
    assert!(matches!(fits(&l, &entry(90, 0, l.next, Body::Data(data(&[], Some(99))))), Err(Unfit::Plan { made: 0, newest: 3 })));
}

/// FAULTS 28: the epoch of a position is that of its last record or unknown, never an older one.
#[test]
fn the_epoch_of_a_tail_without_records_is_unknown() {
    let mut l = ledger();
    let mut step = |from: i64, to: i64, leader_epoch: i32, partition: i32| {
        let mut data = data(&[(partition, from, to, None)], None);
        data.intervals.get_mut("events").unwrap().get_mut(&partition).unwrap().leader_epoch = leader_epoch;
        apply(&mut l, 1, Body::Data(data));
        l.sources["events"].partitions[&partition].leader_epoch
    };
    assert_eq!(step(0, 5, 2, 0), 2);
    assert_eq!(step(5, 5, -1, 0), 2, "an idle claim moves nothing");
    assert_eq!(step(5, 8, -1, 0), -1, "markers of a later leader");
    assert_eq!(step(8, 9, 4, 0), 4);
    assert_eq!(step(0, 3, -1, 7), -1, "a partition that was added, and showed no record of a known epoch yet");
}

#[test]
fn a_checkpoint_trails_the_head_and_every_stamp() {
    let (trail, every) = (checkpoint::TRAIL, checkpoint::EVERY);
    assert_eq!(checkpoint::upto(Cadence::default(), 0, 0, None), None);
    assert_eq!(checkpoint::upto(Cadence::default(), trail, 100, None), None);
    assert_eq!(checkpoint::upto(Cadence::default(), trail + every, 1000, None), None, "M would be {}", every - 1);
    assert_eq!(checkpoint::upto(Cadence::default(), trail + every + 1, 1000, None), Some(every));
    assert_eq!(checkpoint::upto(Cadence::default(), 1000, every, None), Some(every));
    assert_eq!(checkpoint::upto(Cadence::default(), 1000, every - 1, None), None, "a table lags");
    assert_eq!(checkpoint::upto(Cadence::default(), 1000, 200, Some(200 - every)), Some(200));
    assert_eq!(checkpoint::upto(Cadence::default(), 1000, 200, Some(201 - every)), None);
    assert_eq!(checkpoint::upto(Cadence::default(), 1000, 200, Some(300)), None, "M never falls");
}

#[test]
fn what_a_changed_file_means_to_a_log() {
    let mut l = ledger();
    apply(&mut l, 2, Body::Data(data(&[(0, 0, 10, Some(100)), (1, 0, 5, Some(100))], None)));
    let with = |text: &str| {
        let (pipeline, plans) = loaded(text);
        fit(&l, Given { pipeline: &pipeline, plans: &plans, facts: &facts(2), starts: &BTreeMap::new() }, false)
    };
    let changed = |text: &str| match with(text) {
        Ok(Fit::Change(plan, lines)) => (*plan, lines.join("\n")),
        other => panic!("{other:?}"),
    };
    let refused = |text: &str| match with(text) {
        Err(PlanError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(matches!(with(FILE), Ok(Fit::Same)));
    assert!(matches!(with(&FILE.replace("select k, v from", "select k, v\n      from").replace("sql: select k", "sql: |\n      select k")), Ok(_)), "compatible");

    let (plan, said) = changed(&FILE.replace("allowed_lateness: 10m", "allowed_lateness: 1h"));
    assert_eq!(plan.replaces, Some(0));
    assert_eq!(plan.tables["sums"].born, 0);
    assert!(said.contains("allowed lateness changes from 10m to 1h"), "{said}");

    let (plan, said) = changed(&FILE.replace("select k, v from", "select k, v, v * 2 as twice from"));
    assert!(said.contains("table plain: columns are added"), "{said}");
    let ids = |p: &Plan| p.tables["plain"].table.spec().unwrap().schema.fields().iter().map(|f| f.metadata()[crate::stage::FIELD_ID].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&plan)[..2], ids(&l.plan)[..], "known columns keep their field ids");

    let named = |p: &Plan| p.tables["plain"].table.spec().unwrap().schema.fields().iter().map(|f| (f.name().clone(), f.metadata()[crate::stage::FIELD_ID].clone())).collect::<BTreeMap<_, _>>();
    let (plan, said) = changed(&FILE.replace("select k, v from", "select k, v * 2 as twice, v from"));
    assert!(said.contains("table plain: columns are added"), "{said}");
    assert!(named(&l.plan).iter().all(|column| named(&plan).contains_key(column.0) && named(&plan)[column.0] == *column.1), "wherever they stand");
    let (plan, said) = changed(&FILE.replace("select k, v from", "select v, k from"));
    assert!(said.contains("table plain: its columns stand in another order") && !said.contains("columns are added"), "{said}");
    assert_eq!(named(&plan), named(&l.plan));

    // A windowed table is given what its windows hold already.
    let grouped = "count(*) as n from tumble";
    let (plan, said) = changed(&FILE.replace(grouped, "count(*) as n, sum(v) / count(*) as mean, window_start as begins, k as who from tumble"));
    assert!(said.contains("table sums: columns are added") && said.contains("until their window is corrected"), "{said}");
    let fields: Vec<(String, bool)> = plan.tables["sums"].table.spec().unwrap().schema.fields().iter().skip(4).map(|f| (f.name().clone(), f.is_nullable())).collect();
    assert_eq!(fields, [("mean".to_string(), true), ("begins".to_string(), true), ("who".to_string(), true)], "also what is never null from here on");
    for (columns, parts) in [
        ("count(*) as n, max(v) as top", &["the file has: sum(int64), count(Null), max(int64)", "another aggregate needs a table of its own", "another name"][..]),
        ("count(*) as n, count(*) filter (where v > 1) as some", &["another aggregate needs a table of its own"]),
        ("sum(v) / count(*) as mean, count(*) as n", &["in the middle of the select list", "at the end"]),
        ("sum(v) as n, count(*) as m", &["what its SQL makes of a window's results changes", "another name"]),
    ] {
        let said = refused(&FILE.replace(grouped, &format!("{columns} from tumble")));
        for part in parts {
            assert!(said.contains(part), "{columns}: {part}: {said}");
        }
    }

    let (plan, said) = changed(&FILE.replace("lake:", "  more:\n    sql: select v from events\nlake:"));
    assert_eq!((plan.tables["more"].born, plan.tables["plain"].born), (l.next, 0));
    assert!(said.contains("table more begins here"), "{said}");

    // A windowed one among them lacks what was read before.
    let mut grown = l.clone();
    let again = FILE[FILE.find("  sums:").unwrap()..FILE.find("  plain:").unwrap()].replace("  sums:", "  again:");
    adopt(&mut grown, &FILE.replace("lake:", &format!("{again}lake:")), false).unwrap();
    assert_eq!(grown.lacking_until, [("again".to_string(), 100 * MINUTE)].into(), "and no older table");
    adopt(&mut grown, FILE, true).unwrap();
    assert!(grown.lacking_until.is_empty());

    let (plan, said) = changed(&FILE.replace("  plain:\n    sql: select k, v from events\n", ""));
    assert!(!plan.tables.contains_key("plain") && said.contains("table plain ends here"), "{said}");

    for (from, to, word) in [
        ("sum(v) as s", "max(v) as s", "rows already counted cannot be counted again"),
        ("interval '5 minutes'", "interval '1 hour'", "kept in another form"),
        ("key: [window_start, k]", "comment: no key", "table sums"),
        ("formats: [iceberg, delta]", "formats: [delta]", "its formats change from [iceberg, delta] to [delta]"),
        ("allowed_lateness: 10m", "emit: on_update\n    allowed_lateness: 10m", "its way of emission changes"),
        ("group by window_start, k\n", "group by window_start, k having count(*) > 1\n", "select list or having"),
        ("file: events.ndjson", "file: other.ndjson", "offsets of one mean nothing in the other"),
    ] {
        assert_eq!(FILE.matches(from).count(), 1, "{from}");
        let said = match loaded(&FILE.replace(from, to)) {
            (pipeline, plans) if from.starts_with("file") => {
                let mut facts = facts(2);
                facts.get_mut("events").unwrap().topic = "other.ndjson".into();
                fit(&l, Given { pipeline: &pipeline, plans: &plans, facts: &facts, starts: &BTreeMap::new() }, false).unwrap_err().to_string()
            }
            _ => refused(&FILE.replace(from, to)),
        };
        assert!(said.contains(word), "{to}: {said}");
        assert!(said.contains("name"), "it says what to do: {said}");
    }
    assert_eq!(compile(&l.plan).unwrap()["sums"].describe(), loaded(FILE).1[0].describe());

    // A table that was taken out leaves rows in the lake: its name is not given again just so.
    let mut ended = l.clone();
    apply(&mut ended, 77, Body::Plan(plan));
    let (pipeline, plans) = loaded(FILE);
    let again = |accept| fit(&ended, Given { pipeline: &pipeline, plans: &plans, facts: &facts(2), starts: &BTreeMap::new() }, accept);
    let said = again(false).unwrap_err().to_string();
    assert!(said.contains("table plain was in the pipeline file before") && said.contains("another name") && said.contains("--accept"), "{said}");
    let Ok(Fit::Change(plan, _)) = again(true) else { panic!() };
    assert_eq!(plan.tables["plain"].born, ended.next, "anew");
    apply(&mut ended, 78, Body::Plan(*plan));
    assert!(ended.ended.is_empty());
}

/// Applies what the file means; the lines for the user.
fn adopt(l: &mut Ledger, text: &str, accept: bool) -> Result<String, String> {
    let (pipeline, plans) = loaded(text);
    match fit(l, Given { pipeline: &pipeline, plans: &plans, facts: &facts(2), starts: &starts(2) }, accept) {
        Ok(Fit::Change(plan, lines)) => {
            apply(l, 1000 + l.next as u128, Body::Plan(*plan));
            Ok(lines.join("\n"))
        }
        Ok(Fit::Same) => Ok("same".into()),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn an_older_file_is_refused_until_going_back_is_meant() {
    let mut l = ledger();
    let lateness = |to: &str| FILE.replace("allowed_lateness: 10m", &format!("allowed_lateness: {to}"));
    adopt(&mut l, &lateness("1h"), false).unwrap();
    let said = adopt(&mut l, FILE, false).unwrap_err();
    for part in ["the pipeline file of plan 0", "which plan 1 has replaced", "allowed lateness changes from 1h to 10m", "millpond run FILE --accept"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(adopt(&mut l, &lateness("1h"), false).unwrap(), "same");
    // What is carried from checkpoint to checkpoint knows it too.
    let mut read: Ledger = serde_json::from_str(&serde_json::to_string(&l).unwrap()).unwrap();
    assert!(adopt(&mut read, FILE, false).is_err());
    assert!(adopt(&mut l, FILE, true).unwrap().contains("from 1h to 10m"));
    assert_eq!((l.plan_entry, adopt(&mut l, FILE, false).unwrap().as_str()), (2, "same"), "it is the newest now");
    assert!(adopt(&mut l, &lateness("1h"), false).unwrap_err().contains("plan 1"), "and the other is older");
    // Formats in another order are the same file; blanks in the SQL are not, but mean the same.
    assert_eq!(adopt(&mut l, &FILE.replace("[iceberg, delta]", "[delta, iceberg]"), false).unwrap(), "same");
    assert!(adopt(&mut l, &FILE.replace("sum(v) as s,", "sum( v )  as s,"), false).unwrap().contains("means the same"));
    // Only so many are remembered.
    for n in 0..crate::epoch::ledger::PAST_PLANS + 5 {
        adopt(&mut l, &lateness(&format!("{}s", n + 1)), false).unwrap();
    }
    assert_eq!(l.past_plans.len(), crate::epoch::ledger::PAST_PLANS);
    assert!(adopt(&mut l, &lateness("1h"), false).is_ok(), "long forgotten");
    // Where an older file does not fit any more, the reason is told with it.
    let mut l = ledger();
    adopt(&mut l, &FILE.replace("select k, v from", "select k, v, v * 2 as twice from"), false).unwrap();
    for accept in [false, true] {
        let said = adopt(&mut l, FILE, accept).unwrap_err();
        assert!(said.contains("the pipeline file of plan 0") && said.contains("twice"), "{said}");
    }
}

/// Logs did not always hold the limits of records: a file from then is known again, and limits may change.
#[test]
fn an_older_file_of_a_log_without_limits_is_known_again() {
    let mut l = Ledger::born(&as_of(2, birth_of(FILE, 2))).unwrap();
    let deeper = |text: &str| text.replace("    watermark:", "    max_depth: 9\n    watermark:");
    let later = FILE.replace("allowed_lateness: 10m", "allowed_lateness: 1h");
    // The newest plan is no older one, with limits or without.
    let mut same = l.clone();
    assert_eq!(adopt(&mut same, FILE, false).unwrap(), "source events: the limits of its records are kept in the log from here on");
    assert!(adopt(&mut same, &deeper(FILE), false).unwrap().contains("max_depth changes from 512 to 9"));
    assert!(adopt(&mut same, FILE, false).unwrap_err().contains("the pipeline file of plan 1"), "and that is gone back on");
    // Limits and another change came at once.
    adopt(&mut l, &later, false).unwrap();
    let said = adopt(&mut l, FILE, false).unwrap_err();
    assert!(said.contains("the pipeline file of plan 0") && said.contains("--accept"), "{said}");
    assert!(adopt(&mut l, &deeper(&later), false).unwrap().contains("max_depth"));
    assert!(adopt(&mut l, FILE, true).unwrap().contains("from 1h to 10m"));
    assert_eq!(adopt(&mut l, FILE, false).unwrap(), "same");
}

#[test]
fn a_windowed_table_keeps_its_meaning_and_a_plain_one_may_change_it() {
    let filtered = FILE.replace("interval '5 minutes')\n", "interval '5 minutes') where v > 0\n");
    let mut l = Ledger::born(&birth_of(&filtered, 2)).unwrap();
    for (from, to, word) in [
        ("where v > 0", "", "windows that are open now would hold rows of both kinds"),
        ("where v > 0", "where v > 1", "the log has:  where"),
        ("sum(v) as s", "sum(v + 1) as s", "windows that are open now"),
        ("count(*) as n", "count(*) filter (where v > 5) as n", "windows that are open now"),
        ("sum(v) as s", "sum(v) * 2 as s", "select list or having"),
        ("where v > 0\n      group by window_start, k", "where v > 0\n      group by window_start, k having sum(v) > 3", "select list or having"),
        ("count(*) as n", "count(*) as n, max(v) as m", "another aggregate needs a table of its own"),
        ("count(*) as n", "count(*) as many", "column `n` (int64) is gone"),
    ] {
        assert_eq!(filtered.matches(from).count(), 1, "{from}");
        let said = adopt(&mut l, &filtered.replace(from, to), true).unwrap_err();
        assert!(said.contains(word) && said.contains("table sums") && said.contains("another name"), "{to}: {said}");
    }
    assert_eq!(l.next, 1, "nothing was proposed");
    let said = adopt(&mut l, &filtered.replace("select k, v from events", "select k, v from events where v > 2"), false).unwrap();
    assert_eq!(said, "table plain: its SQL changes; rows from here on follow it");
}

#[test]
fn every_small_change_of_a_file_is_told() {
    let mut l = ledger();
    let props = |text: &str| FILE.replace("    formats: [iceberg, delta]\n", &format!("    formats: [iceberg, delta]\n{text}"));
    let said = adopt(&mut l, &props("    comment: spend\n    properties: {a: '1', b: '2'}\n"), false).unwrap();
    for part in ["sets property a to 1", "sets property b to 2", "sets its comment"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = adopt(&mut l, &props("    properties: {b: '3'}\n"), false).unwrap();
    for part in ["property a stays in the tables", "sets property b to 3", "its comment stays in the tables"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let mut l = ledger();
    let columns = |to: &str| FILE.replace("{k: string, at: timestamp, v: int64}", to);
    let said = adopt(&mut l, &columns("{k: string, at: timestamp, v: int64, w: string}"), false).unwrap();
    assert!(said.contains("its columns change (with w)"), "{said}");
    let said = adopt(&mut l, &columns("{k: string, at: timestamp, v: {type: int64, from: a.b}}"), false).unwrap();
    assert!(said.contains("without w; read in another way: v"), "{said}");
    let said = adopt(&mut l, &columns("{k: string, at: timestamp, v: {type: int64, from: a.b}}").replace("delay: 1m", "delay: 1500ms"), false).unwrap();
    assert_eq!(said, "source events: delay changes from 1m to 1500ms; its watermark never goes back");
    let said = adopt(&mut l, &FILE.replace("v: int64", "v: int32"), false).unwrap_err();
    assert!(said.contains("table sums") || said.contains("table plain"), "{said}");
    let said = adopt(&mut l, &FILE.replace("column: at", "column: other").replace("k: string,", "k: string, other: timestamp,"), false).unwrap_err();
    assert!(said.contains("its watermark column changes from at to other"), "{said}");
}

#[test]
fn a_source_that_comes_again_is_the_one_that_ended() {
    let more = "  clicks:\n    file: clicks.ndjson\n    columns: {k: string}\ntables:\n  seen: {sql: select k from clicks}\n";
    let both = FILE.replace("tables:\n", more);
    let with_clicks = |topic: &str| {
        let mut facts = facts(2);
        facts.insert("clicks".into(), SourceFacts { topic: topic.into(), partitions: [(0, (5, 9))].into(), ..facts["events"].clone() });
        facts
    };
    let begins: ByPartition<i64> = [("clicks".to_string(), [(0, 5)].into())].into();
    let mut l = ledger();
    let (pipeline, plans) = loaded(&both);
    let meant = |l: &Ledger, topic: &str| match fit(l, Given { pipeline: &pipeline, plans: &plans, facts: &with_clicks(topic), starts: &begins }, true) {
        Ok(Fit::Change(plan, lines)) => Ok((*plan, lines.join("\n"))),
        Ok(Fit::Same) => panic!("a change was expected"),
        Err(e) => Err(e.to_string()),
    };
    let (plan, said) = meant(&l, "clicks.ndjson").unwrap();
    assert!(said.contains("source clicks begins here"), "{said}");
    apply(&mut l, 20, Body::Plan(plan));
    let interval = Interval { from: 5, to: 7, leader_epoch: -1, max_event_us: None, name: None };
    apply(&mut l, 21, Body::Data(Data { intervals: [("clicks".to_string(), [(0, interval)].into())].into(), ..Default::default() }));
    assert!(adopt(&mut l, FILE, true).unwrap().contains("source clicks ends here"));
    let said = meant(&l, "other.ndjson").unwrap_err();
    assert!(said.contains("source clicks reads other.ndjson and the log was written from clicks.ndjson"), "{said}");
    let (plan, said) = meant(&l, "clicks.ndjson").unwrap();
    assert!(said.contains("source clicks goes on at the offsets where it ended"), "{said}");
    apply(&mut l, 22, Body::Plan(plan));
    assert_eq!((l.position("clicks", 0), l.ended_sources.len()), (Some(7), 0));
}

#[test]
fn runs_of_an_earlier_life_of_a_name_stay_dead() {
    let mut l = ledger();
    let mut first = data(&[(0, 0, 10, Some(3))], None);
    first.runs = Some(RunObject { path: "runs/a".into(), bytes: 200, runs: vec![run("sums", 5)] });
    apply(&mut l, 2, Body::Data(first));
    let then = l.clone();
    assert_eq!(then.runs["sums"].len(), 1);
    let without = FILE.replace(&FILE[FILE.find("  sums:").unwrap()..FILE.find("  plain:").unwrap()], "");
    adopt(&mut l, &without, false).unwrap();
    adopt(&mut l, FILE, true).unwrap();
    let mut second = data(&[(0, 10, 11, Some(4))], None);
    second.runs = Some(RunObject { path: "runs/b".into(), bytes: 200, runs: vec![run("sums", 5)] });
    apply(&mut l, 3, Body::Data(second));
    apply(&mut l, 4, Body::Checkpoint(Checkpoint { upto: 1, ledger: Box::new(then), stamps: Default::default() }));
    assert_eq!(l.runs["sums"].iter().map(|r| r.object.as_str()).collect::<Vec<_>>(), ["runs/b"]);
}

/// One entry of each kind, as this version writes them.
fn samples() -> Vec<(&'static str, Entry)> {
    let mut first = data(&[(0, 0, 10, Some(3)), (1, 5, 5, None)], Some(-3));
    first.intervals.get_mut("events").unwrap().get_mut(&0).unwrap().name = Some("a.ndjson".into());
    first.runs = Some(RunObject { path: "_millpond/p/runs/x.run".into(), bytes: 200, runs: vec![run("sums", 5)] });
    first.counts = [("events".to_string(), Counts { records: 10, dead: 1, bytes: 1234, ahead: 2 })].into();
    let columns = vec![];
    let file = DataFile { path: "delta/p/plain/f.parquet".into(), partition: vec![], records: 9, bytes: 4321, columns, split_offsets: vec![4] };
    first.files = vec![StagedFile { table: "plain".into(), format: TableFormatKind::Delta, file }];
    let mut l = ledger();
    l.sources.get_mut("events").unwrap().partitions.get_mut(&1).unwrap().offset = 5;
    let start = l.clone();
    let mut with_checkpoint = entry(3, 0, 2, Body::Data(first));
    with_checkpoint.checkpoint = Some(CheckpointRef { entry: 1, upto: 0 });
    apply(&mut l, 20, Body::Data(data(&[(0, 0, 10, Some(3))], None)));
    let Body::Plan(second) = birth_of(FILE, 2).body else { panic!() };
    vec![
        ("plan-birth", birth_of(FILE, 2)),
        ("plan-change", entry(2, 0, 1, Body::Plan(Plan { replaces: Some(0), ..second }))),
        ("data", with_checkpoint),
        ("checkpoint", entry(4, 0, 3, Body::Checkpoint(Checkpoint { upto: start.next - 1, ledger: Box::new(start), stamps: Default::default() }))),
        ("note-end-of-input", entry(5, 0, 4, Body::Note(Note::EndOfInput { ends: starts(2) }))),
        ("note-condemned", entry(6, 0, 5, Body::Note(Note::Condemned { attempts: vec![MINE, THEIRS] }))),
    ]
}

/// What a version brought is in its fixtures.
fn as_of(version: u32, mut entry: Entry) -> Entry {
    entry.version = version;
    if let (2.., Body::Data(Data { runs: Some(object), .. })) = (version, &mut entry.body) {
        let shared = object.runs.iter_mut().find(|r| r.run.kind != RunKind::JudgeLater).unwrap();
        shared.run.kind = RunKind::Windows { first_start_us: 0, last_start_us: shared.last_window_end_us - 5 * MINUTE };
    }
    let plan = match &mut entry.body {
        Body::Plan(plan) => Some(plan),
        Body::Checkpoint(checkpoint) => Some(&mut checkpoint.ledger.plan),
        _ => None,
    };
    if let (..3, Some(plan)) = (version, plan) {
        plan.sources.values_mut().for_each(|s| s.limits = None);
    }
    entry
}

/// `tests/data/log/v<n>` was written by version n; it is never written again, and read for ever.
/// A new field is optional. To make the fixtures of a new version, set `WRITE_LOG_FIXTURES`.
#[test]
fn entries_of_every_version_are_read_as_what_they_were() {
    for version in 1..=VERSION {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/log/v{version}"));
        let write = std::env::var_os("WRITE_LOG_FIXTURES").is_some() && !folder.exists();
        for (name, entry) in samples() {
            let entry = as_of(version, entry);
            let again = parse(name, &serde_json::to_vec(&entry).unwrap()).unwrap();
            assert_eq!(again, entry, "{name}: written and read back");
            let path = folder.join(format!("{name}.json"));
            if write {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, serde_json::to_vec_pretty(&entry).unwrap()).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(parse(name, &kept).unwrap(), entry, "{name}: the fixture of version {version}");
        }
    }
}

#[test]
fn a_later_version_and_a_torn_entry_are_told_apart() {
    let mut later = birth_of(FILE, 2);
    later.version = VERSION + 1;
    let said = parse("7.json", &serde_json::to_vec(&later).unwrap()).unwrap_err();
    assert!(said.contains("use a newer millpond"), "{said}");
    let whole = serde_json::to_vec(&birth_of(FILE, 2)).unwrap();
    assert!(parse("7.json", &whole[..whole.len() / 2]).unwrap_err().contains("is no log entry"));
    assert!(parse("7.json", br#"{"version": 1}"#).unwrap_err().contains("no whole log entry"));
}

#[test]
fn an_older_checkpoint_brings_no_runs_back_that_a_newer_one_has_merged() {
    let run = |object: &str| LiveRun {
        entry: 1,
        nth: 0,
        object: object.to_string(),
        run: RunEntry {
            run: RunRef { table: "sums".into(), kind: RunKind::Partial { window_start_us: 0 }, rows: 1, offset: 0, length: 1 },
            last_window_end_us: i64::MAX,
        },
        horizon_before: None,
    };
    let mut state = ledger();
    let mut older = state.clone();
    older.runs.insert("sums".into(), vec![run("merged once, gone since")]);
    state.runs.insert("sums".into(), vec![run("merged twice")]);
    state.runs_as_of = 40;
    let mut behind = Ledger { runs_as_of: 20, ..state.clone() };
    let checkpoint = || Body::Checkpoint(Checkpoint { upto: 30, ledger: Box::new(older.clone()), stamps: Default::default() });
    apply(&mut state, 2, checkpoint());
    assert_eq!((state.runs["sums"][0].object.as_str(), state.runs_as_of), ("merged twice", 40));
    apply(&mut behind, 2, checkpoint());
    assert_eq!((behind.runs["sums"][0].object.as_str(), behind.runs_as_of), ("merged once, gone since", 30), "a newer one does");
}
