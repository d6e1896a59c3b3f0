use super::merge::Share;
use super::*;
use crate::partial::Partials;
use crate::partial::tests::{Row, decoded, planned, projection};
use crate::stage::runs::{read_run, write_runs};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use proptest::prelude::*;
use std::collections::BTreeMap;

const MINUTE: i64 = 60_000_000;
const PLENTY: usize = 64 << 20;

fn runs(plan: &Arc<TablePlan>, lanes: &[Vec<(i64, Vec<Row>)>], judge_at: Option<i64>) -> Vec<Run> {
    let mut all = vec![];
    for lane in lanes {
        let mut p = Partials::new(plan.clone(), projection(plan)).unwrap();
        for (first, rows) in lane {
            let (d, raw) = decoded(rows, *first);
            assert!(p.add(&d, &raw, "topic", judge_at).unwrap().is_empty());
        }
        all.extend(p.finish().unwrap());
    }
    all
}

fn text(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("null");
    let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap()).collect();
    (0..batch.num_rows()).map(|r| columns.iter().map(|c| c.value(r).to_string()).collect()).collect()
}

fn all_rows(set: &RowSet) -> Vec<Vec<String>> {
    let rows: Vec<_> = set.batches().unwrap().flat_map(|b| text(&b.unwrap())).collect();
    assert_eq!(rows.len() as u64, set.rows());
    rows
}

/// Changes in an order that does not depend on how groups lie in memory.
fn plain(changes: &Changes) -> String {
    let rows: Vec<_> = changes
        .rows
        .iter()
        .map(|c| {
            let mut rows = all_rows(&c.rows);
            rows.sort();
            (c.op, rows)
        })
        .collect();
    let late: Vec<_> = changes.late.iter().map(text).collect();
    let mut dead = changes.dead.clone();
    dead.sort_by(|a, b| (a.window_start_us, &a.key, &a.column).cmp(&(b.window_start_us, &b.key, &b.column)));
    format!("{rows:?} {late:?} {dead:?} {:?} {:?}", changes.closed, changes.corrected)
}

fn fold(plan: &Arc<TablePlan>, emit: Emit, memory_bytes: usize, dir: &std::path::Path) -> TableFold {
    TableFold::new(plan.clone(), emit, FoldConfig { memory_bytes, spill_dir: dir.into() }).unwrap()
}

/// A table as its rows by key, strict about what an operation promises.
#[derive(Default)]
struct Table {
    rows: BTreeMap<Vec<String>, Vec<String>>,
    bag: BTreeMap<Vec<String>, i64>,
}

impl Table {
    fn apply(&mut self, plan: &TablePlan, changes: &Changes) {
        for c in &changes.rows {
            for mut row in all_rows(&c.rows) {
                if !plan.upsert {
                    assert_eq!(c.op, ChangeOp::Insert);
                    let op = row.pop().unwrap();
                    let n = self.bag.entry(row).or_default();
                    *n += if op == "insert" { 1 } else { -1 };
                    assert!((0..=1).contains(n), "{op}");
                    continue;
                }
                let key = row[..plan.key.len()].to_vec();
                let there = self.rows.contains_key(&key);
                assert_eq!(there, c.op != ChangeOp::Insert, "{:?} {key:?}", c.op);
                if c.op == ChangeOp::Remove {
                    assert_eq!(self.rows.remove(&key), Some(row));
                } else {
                    self.rows.insert(key, row);
                }
            }
        }
    }

    fn content(&self) -> Vec<Vec<String>> {
        self.rows.values().cloned().chain(self.bag.iter().filter(|(_, n)| **n > 0).map(|(r, _)| r.clone())).collect()
    }
}

#[test]
fn the_running_example() {
    let dir = tempfile::tempdir().unwrap();
    let sql = "select window_start, user_id, sum(amount) as sum_amount from T where amount > 0 group by window_start, user_id";
    let rows = [(Some("A"), 600, 5, 0), (Some("B"), 602, 3, 0), (Some("A"), 604, 2, 0), (Some("B"), 606, 1, 0)];
    let closed = Some(606 * MINUTE);
    let first = EntryTimes { watermark_after: closed, horizon_after: Some(606 * MINUTE - 10 * MINUTE), ..Default::default() };
    for key in [Some(&["window_start", "user_id"][..]), None] {
        let plan = planned(sql, key);
        let mut fold = fold(&plan, Emit::OnClose, PLENTY, dir.path());
        let changes = fold.apply(&first, runs(&plan, &[vec![(0, rows.to_vec())]], None)).unwrap();
        let mut table = Table::default();
        table.apply(&plan, &changes);
        let want = |a: &'static str| [vec!["1970-01-01T10:00:00Z", "A", a], vec!["1970-01-01T10:00:00Z", "B", "3.00"]];
        assert_eq!(table.content(), want("7.00"), "the window of 10:05 is still open");
        assert_eq!(changes.closed, [600 * MINUTE]);
        // Late, and allowed.
        let after = EntryTimes { horizon_before: first.horizon_after, watermark_before: closed, watermark_after: closed, horizon_after: first.horizon_after, emit_all: false };
        let late = vec![(4, vec![(Some("A"), 601, 1, 0)])];
        let changes = fold.apply(&after, runs(&plan, &[late.clone()], Some(605 * MINUTE))).unwrap();
        assert_eq!(changes.corrected, [600 * MINUTE]);
        let ops: Vec<_> = changes.rows.iter().map(|c| (c.op, all_rows(&c.rows))).collect();
        let row = |v: &str, op: &[&str]| [&["1970-01-01T10:00:00Z", "A", v][..], op].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>();
        if key.is_some() {
            assert_eq!(ops, [(ChangeOp::Replace, vec![row("8.00", &[])])]);
        } else {
            assert_eq!(ops, [(ChangeOp::Insert, vec![row("7.00", &["retract"])]), (ChangeOp::Insert, vec![row("8.00", &["insert"])])]);
        }
        table.apply(&plan, &changes);
        assert_eq!(table.content(), want("8.00"));
        // Late, and beyond what is allowed; then the last window.
        let over = Some(620 * MINUTE);
        let at = EntryTimes { horizon_before: Some(610 * MINUTE), watermark_before: over, watermark_after: over, horizon_after: Some(610 * MINUTE), emit_all: false };
        let passed = EntryTimes { horizon_before: after.horizon_after, watermark_before: closed, watermark_after: over, horizon_after: Some(610 * MINUTE), emit_all: false };
        table.apply(&plan, &fold.apply(&passed, vec![]).unwrap());
        assert!(fold.open_windows().is_empty());
        let changes = fold.apply(&at, runs(&plan, &[late], Some(620 * MINUTE))).unwrap();
        assert!(changes.rows.is_empty());
        assert_eq!(changes.late.len(), 1);
        assert_eq!(changes.late[0].schema(), plan.late_schema());
        let text = text(&changes.late[0]);
        assert!(text[0][5].ends_with("the horizon had reached 1970-01-01T10:10:00Z"), "{text:?}");
        assert_eq!(table.content().len(), 3);
        assert_eq!(table.content()[0][2], "8.00");
    }
}

#[test]
fn a_partial_run_of_a_dropped_window_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = planned("select window_start, count(*) as n from T group by window_start", None);
    let mut fold = fold(&plan, Emit::OnClose, PLENTY, dir.path());
    let at = EntryTimes { horizon_before: Some(5 * MINUTE), ..Default::default() };
    let e = fold.apply(&at, runs(&plan, &[vec![(0, vec![(None, 1, 1, 1)])]], None)).unwrap_err();
    assert!(matches!(e, FoldError::Dropped { .. }), "{e}");
    let other = planned("select window_start, max(x) as n from T group by window_start", None);
    let e = fold.apply(&EntryTimes::default(), runs(&other, &[vec![(0, vec![(None, 1, 1, 1)])]], None)).unwrap_err();
    assert!(e.to_string().contains("expected [Int64], found [Float64]"), "{e}");
}

#[test]
fn what_does_not_fit_is_null_with_a_dead_letter_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let sql = "select window_start, user_id, sum(i) as s, sum(wide * 1e0 ) as f, 10 / (count(*) - 1) as r from T group by window_start, user_id";
    let plan = planned(sql, Some(&["window_start", "user_id"]));
    let mut fold = fold(&plan, Emit::OnUpdate, PLENTY, dir.path());
    let changes = fold.apply(&EntryTimes::default(), runs(&plan, &[vec![(0, vec![(Some("A"), 1, 1, i64::MAX), (Some("A"), 2, 1, i64::MAX)])], vec![(0, vec![(Some("B"), 1, 1, 1)])]], None)).unwrap();
    let mut rows = all_rows(&changes.rows[0].rows);
    rows.sort();
    assert_eq!(rows[0][2..], ["null", "2.0", "10"]);
    assert_eq!(rows[1][2..], ["1", "1.0", "null"]);
    let dead: Vec<_> = changes.dead.iter().map(|d| (d.key.as_str(), d.column.as_str())).collect();
    assert_eq!(dead, [("user_id=A", "s"), ("user_id=B", "r")]);
    // The pane was not poisoned: what brings the sum back into bounds brings the value back.
    let changes = fold.apply(&EntryTimes::default(), runs(&plan, &[vec![(0, vec![(Some("A"), 3, 1, -i64::MAX)])]], None)).unwrap();
    assert_eq!(changes.rows[0].op, ChangeOp::Replace);
    assert_eq!(all_rows(&changes.rows[0].rows)[0][2], i64::MAX.to_string());
    assert!(changes.dead.is_empty());
}

#[test]
fn wide_decimals_are_summed_and_averaged_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let plan = planned("select window_start, sum(wide) as s, avg(wide) as a, avg(amount) as m, avg(i) as i from T group by window_start", None);
    let mut fold = fold(&plan, Emit::OnUpdate, PLENTY, dir.path());
    let rows = vec![(None, 0, 1, i64::MAX), (None, 0, 1, i64::MAX), (None, 0, 0, i64::MAX)];
    let changes = fold.apply(&EntryTimes::default(), runs(&plan, &[vec![(0, rows)]], None)).unwrap();
    assert_eq!(all_rows(&changes.rows[0].rows)[0][1..], ["2.0000", "0.66666667", "0.666667", "9.223372036854776e18", "insert"]);
    // Ten of the widest numbers exceed 38 digits on the way, and come back into bounds.
    let plan = planned("select window_start, sum(w) as s, avg(w) as a from T group by window_start".replace("(w)", "(cast(i * 9 as decimal(38,0)) * cast('10000000000000000000' as decimal(20,0)))").as_str(), None);
    let mut fold = super::tests::fold(&plan, Emit::OnUpdate, PLENTY, dir.path());
    let most = i64::MAX / 9;
    let mut apply = |i: i64| fold.apply(&EntryTimes::default(), runs(&plan, &[vec![(0, vec![(None, 0, 1, i); 10])]], None)).unwrap();
    let changes = apply(most);
    let dead: Vec<_> = changes.dead.iter().map(|d| d.column.as_str()).collect();
    assert_eq!(dead, ["s", "a"], "the sum has 39 digits, the average 38 and four after the point");
    let changes = apply(-most);
    assert!(changes.dead.is_empty());
    let rows = all_rows(&changes.rows[1].rows);
    assert_eq!(rows[0][1], "0");
}

/// An event: partition, user, minute, amount, i.
type Event = (usize, u8, i64, i128, i64);

#[derive(Debug, Clone)]
struct Case {
    /// What each entry brings.
    entries: Vec<Vec<Event>>,
    /// The lane of each partition, by entry.
    lanes: Vec<[usize; 3]>,
    /// How far above the horizon rows are staged raw, in minutes.
    judge: Vec<i64>,
    lateness: i64,
}

fn cases() -> impl Strategy<Value = Case> {
    let event = (0..3usize, 0..4u8, 0..8i64, -2..9i128, 0..4i64);
    let entry = (proptest::collection::vec(event, 0..14), [0..2usize, 0..2, 0..2], 0..25i64);
    (proptest::collection::vec(entry, 1..9), 0..20i64).prop_map(|(entries, lateness)| {
        let mut case = Case { entries: vec![], lanes: vec![], judge: vec![], lateness };
        for (n, (mut events, lanes, judge)) in entries.into_iter().enumerate() {
            // Time goes on, with disorder.
            events.iter_mut().for_each(|e| e.2 = (e.2 * 3 - 10 + 5 * n as i64).max(-7));
            case.entries.push(events);
            case.lanes.push(lanes);
            case.judge.push(judge);
        }
        case
    })
}

fn user(u: u8) -> Option<&'static str> {
    [None, Some("A"), Some("B"), Some("C")][u as usize]
}

struct Step {
    at: EntryTimes,
    runs: Vec<Run>,
}

fn log(case: &Case, plan: &Arc<TablePlan>) -> Vec<Step> {
    let mut highest = [None; 3];
    let mut offsets = [0i64; 3];
    let (mut watermark, mut horizon) = (None, None);
    let mut steps = vec![];
    for ((events, of), ahead) in case.entries.iter().zip(&case.lanes).zip(&case.judge) {
        let mut lanes = vec![vec![], vec![]];
        for p in 0..3 {
            let rows: Vec<Row> = events.iter().filter(|e| e.0 == p).map(|e| (user(e.1), e.2, e.3, e.4)).collect();
            highest[p] = rows.iter().map(|r| r.1 * MINUTE).max().max(highest[p]);
            // A partition's rows in two batches.
            let half = rows.len() / 2;
            lanes[of[p]].push((offsets[p] + 1000 * p as i64, rows[..half].to_vec()));
            lanes[of[p]].push((offsets[p] + 1000 * p as i64 + half as i64, rows[half..].to_vec()));
            offsets[p] += rows.len() as i64;
        }
        // The bound of the ingest half is never below the horizon.
        let judge_at = horizon.map(|h: i64| h + ahead * MINUTE);
        let lowest: Option<i64> = highest.iter().copied().min().flatten();
        let at_before = (horizon, watermark);
        watermark = watermark.max(lowest);
        horizon = horizon.max(watermark.map(|w| w - case.lateness * MINUTE));
        let at = EntryTimes { horizon_before: at_before.0, watermark_before: at_before.1, watermark_after: watermark, horizon_after: horizon, emit_all: false };
        steps.push(Step { at, runs: runs(plan, &lanes, judge_at) });
    }
    steps
}

/// The table and the late rows after each entry, row by row.
fn reference(case: &Case, steps: &[Step], emit: Emit, having: bool, by_user: bool) -> Vec<(Vec<Vec<String>>, usize)> {
    let mut groups: BTreeMap<(i64, Option<&str>), Vec<(i128, i64)>> = BTreeMap::new();
    let mut late = 0;
    let mut after = vec![];
    for (events, step) in case.entries.iter().zip(steps) {
        for e in events.iter().filter(|e| e.3 > 0) {
            let start = e.2.div_euclid(5) * 5;
            if step.at.horizon_before.is_some_and(|h| (start + 5) * MINUTE <= h) {
                late += 1;
            } else {
                groups.entry((start, user(e.1).filter(|_| by_user))).or_default().push((e.3, e.4));
            }
        }
        let visible = |start: i64| emit == Emit::OnUpdate || step.at.watermark_after.is_some_and(|w| (start + 5) * MINUTE <= w);
        let mut rows: Vec<Vec<String>> = vec![];
        for ((start, user), values) in groups.iter().filter(|((start, _), _)| visible(*start)) {
            let sum: i128 = values.iter().map(|v| v.0).sum();
            if having && sum >= 12 {
                continue;
            }
            let distinct: std::collections::BTreeSet<i64> = values.iter().map(|v| v.1).collect();
            let start = instant(start * MINUTE);
            let mut row = vec![start, user.unwrap_or("null").into(), format!("{sum}.00"), values.len().to_string(), distinct.last().unwrap().to_string(), distinct.len().to_string()];
            if !by_user {
                row.remove(1);
            }
            rows.push(row);
        }
        rows.sort();
        after.push((rows, late));
    }
    after
}

fn through_bytes(runs: &[Run]) -> Vec<Run> {
    let (object, refs) = write_runs(runs).unwrap();
    refs.iter().map(|r| read_run(&object[r.offset as usize..(r.offset + r.length) as usize], r).unwrap()).collect()
}

/// Runs that add up to these batches, of so many groups at a time.
fn merged(fold: &TableFold, batches: &[RecordBatch], most_groups: usize) -> Vec<Run> {
    let (mut runs, mut shares) = (vec![], vec![Share::WHOLE]);
    while let Some(share) = shares.pop() {
        let mut merging = fold.merging(share, if most_groups == usize::MAX { usize::MAX } else { 0 }, most_groups).unwrap();
        batches.iter().for_each(|b| merging.add(b).unwrap());
        while let Some(more) = merging.next_runs().unwrap() {
            runs.extend(more);
        }
        shares.extend(merging.left());
    }
    runs
}

/// The runs of these steps put together.
fn merged_runs(fold: &TableFold, steps: &[Step], most_groups: usize) -> Vec<Run> {
    let mut batches = vec![];
    for step in steps {
        let (later, partial): (Vec<Run>, Vec<Run>) = step.runs.iter().cloned().partition(|r| r.kind == RunKind::JudgeLater);
        for (start, judged) in fold.judged(step.at.horizon_before, later).unwrap() {
            batches.extend(judged.iter().map(|b| fold.of_window(start, b).unwrap()));
        }
        // Cut at some window, as where there are too many rows for one piece.
        batches.extend(partial.iter().flat_map(|r| [fold.within(r, &(i64::MIN..=5 * MINUTE)).unwrap(), fold.within(r, &(5 * MINUTE + 1..=i64::MAX)).unwrap()]));
    }
    merged(fold, &batches, most_groups)
}

/// No key, no aggregate: nothing but the windows themselves.
#[test]
fn windows_without_columns_are_folded() {
    let plan = planned("select window_start from T group by window_start", None);
    for memory in [PLENTY, 0] {
        let dir = tempfile::tempdir().unwrap();
        let mut folded = fold(&plan, Emit::OnClose, memory, dir.path());
        let runs = runs(&plan, &[vec![(0, vec![(None, 0, 1, 0), (None, 6, 1, 0), (None, 7, 1, 0), (None, 12, 1, 0)])]], None);
        assert_eq!(runs.len(), 1, "small windows share a run");
        let halves = [folded.within(&runs[0], &(i64::MIN..=5 * MINUTE)).unwrap(), folded.within(&runs[0], &(5 * MINUTE + 1..=i64::MAX)).unwrap()];
        assert_eq!(merged(&folded, &halves, usize::MAX), runs);
        let before = EntryTimes { watermark_after: Some(0), ..EntryTimes::default() };
        assert!(folded.apply(&before, runs.clone()).unwrap().rows.is_empty());
        let changes = folded.apply(&EntryTimes { watermark_before: Some(0), watermark_after: Some(10 * MINUTE), ..EntryTimes::default() }, runs).unwrap();
        assert_eq!(changes.rows.iter().map(|c| c.rows.rows()).sum::<u64>(), 2, "each window once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any cut into epochs, any lanes, any bounds: the table after every entry is what a row by row reckoning says. Whether runs
    /// were handed over or read back, whether the fold was stopped before the entry, and whether it had memory
    /// makes no difference to any change, floats to the last bit included.
    #[test]
    fn the_fold_is_a_function_of_the_log(case in cases(), on_update in any::<bool>(), upsert in any::<bool>(), having in any::<bool>(), by_user in any::<bool>()) {
        let emit = if on_update { Emit::OnUpdate } else { Emit::OnClose };
        let key = if by_user { "window_start, user_id" } else { "window_start" };
        let sql = format!(
            "select {key}, sum(amount) as s, count(*) as n, max(i) as m, count(distinct i) as d, sum(x / 10 + 0.1) as f from T \
             where amount > 0 group by {key} {}", if having { "having sum(amount) < 12" } else { "" });
        let names: Vec<&str> = key.split(", ").collect();
        let plan = planned(&sql, upsert.then_some(&names[..]));
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let steps = log(&case, &plan);
        let want = reference(&case, &steps, emit, having, by_user);
        let mut memory = fold(&plan, emit, PLENTY, dirs[0].path());
        let mut spilling = fold(&plan, emit, 0, dirs[1].path());
        let (mut table, mut late) = (Table::default(), 0);
        for (i, step) in steps.iter().enumerate() {
            let changes = memory.apply(&step.at, step.runs.clone()).unwrap();
            let spilled = spilling.apply(&step.at, through_bytes(&step.runs)).unwrap();
            prop_assert_eq!(plain(&changes), plain(&spilled));
            let mut restored = fold(&plan, emit, PLENTY, dirs[0].path());
            restored.restore(steps[..i].iter().map(|s| (s.at, through_bytes(&s.runs))).collect()).unwrap();
            restored.resume(step.at.watermark_before, step.at.horizon_before);
            let again = restored.apply(&step.at, step.runs.clone()).unwrap();
            prop_assert_eq!(plain(&changes), plain(&again));
            prop_assert_eq!(memory.open_windows(), restored.open_windows());
            // The older half merged, as a checkpoint does it.
            let (older, newer) = steps[..i].split_at(i.div_ceil(2));
            let mut merged = fold(&plan, emit, PLENTY, dirs[0].path());
            // At once, or of few keys at a time.
            let runs = merged_runs(&merged, older, [usize::MAX, 2][i % 2]);
            let whole = EntryTimes { horizon_after: step.at.horizon_before, ..EntryTimes::default() };
            merged.restore([(whole, through_bytes(&runs))].into_iter().chain(newer.iter().map(|s| (s.at, through_bytes(&s.runs)))).collect()).unwrap();
            merged.resume(step.at.watermark_before, step.at.horizon_before);
            prop_assert_eq!(plain(&changes), plain(&merged.apply(&step.at, step.runs.clone()).unwrap()));
            prop_assert_eq!(memory.open_windows(), merged.open_windows());
            table.apply(&plan, &changes);
            late += changes.late.iter().map(|b| b.num_rows()).sum::<usize>();
            let mut got: Vec<_> = table.content().into_iter().map(|mut row| { row.pop(); row }).collect();
            got.sort();
            prop_assert_eq!(&got, &want[i].0, "after entry {}", i);
            prop_assert_eq!(late, want[i].1);
        }
        drop((memory, spilling, table));
        prop_assert!(std::fs::read_dir(dirs[1].path()).unwrap().next().is_none(), "no scratch file is left");
    }
}

/// Every aggregate, split over runs, merged, spilled and emitted, against DataFusion's answer over all rows at once.
#[test]
fn every_aggregate_agrees_with_datafusion() {
    use datafusion::datasource::MemTable;
    let mut seed = 7u64;
    let mut next = |n: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % n
    };
    let rows: Vec<Row> = (0..3000).map(|_| (user(next(4) as u8), next(5) as i64, next(1000) as i128 - 300, next(50) as i64)).collect();
    let (all, _) = decoded(&rows, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let context = datafusion::prelude::SessionContext::new();
    context.register_table("events", Arc::new(MemTable::try_new(all.batch.schema(), vec![vec![all.batch.clone()]]).unwrap())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The columns of the fixture have no nulls: expressions make some.
    for (call, exact) in [
        ("count(*)", true),
        ("count(nullif(i, 3))", true),
        ("count(*) filter (where i > 20)", true),
        ("sum(i)", true),
        ("sum(n)", true),
        ("sum(nullif(i, 3)) filter (where i = 3)", true),
        ("sum(amount)", true),
        ("sum(amount) filter (where b)", true),
        ("sum(wide)", true),
        ("sum(x)", false),
        ("avg(i)", false),
        ("avg(n)", false),
        ("avg(x)", false),
        ("avg(amount)", false),
        ("min(i)", true),
        ("max(nullif(n, 49))", true),
        ("min(x)", true),
        ("max(x)", true),
        ("min(amount)", true),
        ("max(wide)", true),
        ("min(\"cityName\")", true),
        ("max(\"cityName\") filter (where i < 10)", true),
        ("min(event_time)", true),
        ("max(cast(event_time as date))", true),
        ("min(id)", true),
        ("max(b)", true),
        ("bool_and(b)", true),
        ("bool_or(nullif(b, true))", true),
        ("bool_and(i < 50)", true),
        ("stddev(x)", false),
        ("stddev_samp(x) filter (where i = 7)", false),
        ("stddev_pop(x)", false),
        ("var(x)", false),
        ("var_samp(amount)", false),
        ("var_pop(i)", false),
        ("count(distinct i)", true),
        ("count(distinct nullif(i, 3))", true),
        ("count(distinct \"cityName\") filter (where b)", true),
        ("count(distinct amount)", true),
        ("count(distinct id)", true),
        ("count(distinct x)", true),
        ("max(distinct i)", true),
    ] {
        let sql = format!("select window_start, user_id, {call} as v from T group by window_start, user_id");
        let plan = planned(&sql, Some(&["window_start", "user_id"]));
        let answer = runtime.block_on(async { context.sql(&format!("select user_id, {call} as v from events group by user_id")).await.unwrap().collect().await.unwrap() });
        let want: BTreeMap<String, String> = answer.iter().flat_map(text).map(|r| (r[0].clone(), r[1].clone())).collect();
        for memory in [PLENTY, 0] {
            let mut fold = fold(&plan, Emit::OnClose, memory, dir.path());
            for part in rows.chunks(700) {
                fold.apply(&EntryTimes::default(), runs(&plan, &[vec![(0, part[..300.min(part.len())].to_vec())], vec![(0, part[300.min(part.len())..].to_vec())]], None)).unwrap();
            }
            let changes = fold.apply(&EntryTimes { watermark_after: Some(5 * MINUTE), ..Default::default() }, vec![]).unwrap();
            let got: BTreeMap<String, String> = all_rows(&changes.rows[0].rows).into_iter().map(|r| (r[1].clone(), r[2].clone())).collect();
            assert_eq!(got.len(), want.len(), "{call}");
            for (key, value) in &got {
                let expected = &want[key];
                if exact {
                    assert_eq!(value, expected, "{call} of {key}");
                } else {
                    let (a, b): (f64, f64) = (value.parse().unwrap(), expected.parse().unwrap());
                    assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-3), "{call} of {key}: {a} {b}");
                }
            }
        }
    }
}

/// Many keys under a small budget: spilled in many files, merged back, corrected, retracted.
#[test]
fn a_pane_larger_than_memory_is_emitted_and_corrected() {
    let dir = tempfile::tempdir().unwrap();
    let plan = planned("select window_start, i, sum(amount) as s from T group by window_start, i", None);
    let run = |epoch: i64, keys: i64| {
        let rows: Vec<Row> = (0..keys).map(|k| (None, 1, (epoch + 1) as i128, (k * 7919) % keys)).collect();
        runs(&plan, &[vec![(0, rows)]], None)
    };
    let mut fold = fold(&plan, Emit::OnClose, 600_000, dir.path());
    for epoch in 0..50 {
        fold.apply(&EntryTimes::default(), run(epoch, 20_000)).unwrap();
        assert!(fold.bytes() <= 200_000 + 50_000, "{}", fold.bytes());
    }
    assert_eq!(fold.spilled_windows(), 1);
    let closed = Some(5 * MINUTE);
    let changes = fold.apply(&EntryTimes { watermark_after: closed, ..Default::default() }, vec![]).unwrap();
    assert!(changes.rows[0].rows.is_spilled());
    let mut seen = vec![false; 20_000];
    for row in all_rows(&changes.rows[0].rows) {
        assert!(!std::mem::replace(&mut seen[row[1].parse::<usize>().unwrap()], true));
        assert_eq!(row[2], "1275.00");
    }
    assert!(seen.iter().all(|s| *s));
    let at = EntryTimes { watermark_before: closed, watermark_after: closed, ..Default::default() };
    let changes = fold.apply(&at, runs(&plan, &[vec![(0, vec![(None, 1, 5, 17), (None, 2, 5, 999_999)])]], None)).unwrap();
    let got: Vec<_> = changes.rows.iter().map(|c| all_rows(&c.rows).into_iter().map(|r| r[1..].join(" ")).collect::<Vec<_>>()).collect();
    assert_eq!(got, [vec!["17 1275.00 retract"], vec!["17 1280.00 insert", "999999 5.00 insert"]]);
}

/// A watermark that stands still leaves windows open without end, each with few groups, with a key or without:
/// they share files, what stays in memory is small, and each is right when it closes. Late rows come
/// to all of them again and again.
#[test]
fn many_small_windows_share_files() {
    const WINDOWS: i64 = 6_000;
    const ROUNDS: i64 = 40;
    for key in ["window_start, i", "window_start"] {
        let dir = tempfile::tempdir().unwrap();
        let plan = planned(&format!("select {key}, sum(amount) as s from T group by {key}"), None);
        let mut fold = fold(&plan, Emit::OnClose, 9 << 20, dir.path());
        let mut most = 0;
        for round in 0..ROUNDS {
            // The first round makes the windows, each later one comes to some of them.
            let windows = (0..WINDOWS).filter(|w| round == 0 || w % 20 == 3 || (w + round) % 10 == 0);
            let rows: Vec<Row> = windows.map(|w| (None, w * 5, 1, w % 3)).collect();
            let parts: Vec<(i64, Vec<Row>)> = rows.chunks(4096).map(|c| (0, c.to_vec())).collect();
            fold.apply(&EntryTimes::default(), runs(&plan, &[parts], None)).unwrap();
            most = most.max(std::fs::read_dir(dir.path()).map_or(0, |files| files.count()));
            assert!(fold.bytes() <= 4 << 20, "round {round}: {}", fold.bytes());
        }
        assert_eq!(fold.open_windows().len() as i64, WINDOWS);
        assert!(fold.spilled_windows() as i64 > WINDOWS / 3, "{}", fold.spilled_windows());
        assert!((1..100).contains(&most), "{most} files");
        let changes = fold.apply(&EntryTimes { watermark_after: Some(WINDOWS * 5 * MINUTE), ..Default::default() }, vec![]).unwrap();
        let rows = all_rows(&changes.rows[0].rows);
        assert_eq!(rows.len() as i64, WINDOWS);
        for (w, row) in rows.iter().enumerate() {
            let w = w as i64;
            let n = (0..ROUNDS).filter(|round| *round == 0 || w % 20 == 3 || (w + round) % 10 == 0).count();
            assert_eq!((&row[0], &row[row.len() - 2]), (&instant(w * 5 * MINUTE), &format!("{n}.00")), "{row:?}");
        }
    }
}

/// More distinct values of one group than memory is for: spilled, merged, counted and corrected in parts, and merged in the log
/// in parts. Every result is that of a fold with plenty of memory.
#[test]
fn sets_larger_than_memory_are_counted_in_parts() {
    const MEMORY: usize = 400_000;
    let closed = Some(5 * MINUTE);
    let calls = "count(distinct i) as d, count(distinct cityName) as c, sum(x / 10 + 0.1) as f, count(*) as n, avg(x) as a, stddev(x) as v, min(cityName) as m";
    for (key, names, upsert) in [("window_start, user_id", &["window_start", "user_id"][..], true), ("window_start", &["window_start"], true), ("window_start, user_id", &[], false)] {
        let plan = planned(&format!("select {key}, {calls} from T group by {key}"), upsert.then_some(names));
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        // A has most values, each of them twice and long apart; B few; those without a user come between.
        let epoch = |epoch: i64| {
            let row = |k: i64| {
                let user = if k % 20 == 7 { Some("B") } else if k % 5 == 2 { None } else { Some("A") };
                (user, 1, 1, if user == Some("B") { k % 3 } else { (epoch * 400 + k * 7) % 15_000 })
            };
            runs(&plan, &[vec![(0, (0..2_000).map(row).collect())]], None)
        };
        let mut plenty = fold(&plan, Emit::OnClose, PLENTY, dirs[0].path());
        let mut small = fold(&plan, Emit::OnClose, MEMORY, dirs[1].path());
        let all: Vec<Vec<Run>> = (0..40).map(epoch).collect();
        for runs in &all {
            plenty.apply(&EntryTimes::default(), runs.clone()).unwrap();
            small.apply(&EntryTimes::default(), runs.clone()).unwrap();
            assert!(small.bytes() <= MEMORY / 2, "{}", small.bytes());
        }
        assert_eq!(small.spilled_windows(), 1);
        // What a checkpoint makes of the older half, within so little memory that a set is in many runs.
        let batches: Vec<RecordBatch> = all[..20].iter().flatten().map(|run| small.within(run, &(i64::MIN..=i64::MAX)).unwrap()).collect();
        let (mut parts, mut shares) = (vec![], vec![Share::WHOLE]);
        while let Some(share) = shares.pop() {
            let mut merging = small.merging(share, MEMORY, 1_000).unwrap();
            batches.iter().for_each(|b| merging.add(b).unwrap());
            while let Some(runs) = merging.next_runs().unwrap() {
                parts.push(runs);
            }
            shares.extend(merging.left());
        }
        assert!(parts.len() > 3, "{} parts", parts.len());
        let mut restored = fold(&plan, Emit::OnClose, MEMORY, dirs[1].path().join("restored").as_path());
        let entries = parts.iter().chain(&all[20..]).map(|runs| (EntryTimes::default(), through_bytes(runs))).collect();
        restored.restore(entries).unwrap();
        restored.resume(None, None);
        let at = EntryTimes { watermark_after: closed, ..Default::default() };
        let late = |i: i64| runs(&plan, &[vec![(0, vec![(Some("A"), 1, 1, i), (Some("C"), 1, 1, i), (None, 1, 1, 70_000), (Some("B"), 1, 1, 1)])]], None);
        let after = EntryTimes { watermark_before: closed, watermark_after: closed, ..Default::default() };
        for (nth, (at, runs)) in [(at, vec![]), (after, late(80_000)), (after, late(0)), (after, late(80_000))].into_iter().enumerate() {
            let want = plenty.apply(&at, runs.clone()).unwrap();
            assert_eq!(plain(&small.apply(&at, runs.clone()).unwrap()), plain(&want), "{key}: {nth}");
            assert_eq!(plain(&restored.apply(&at, runs).unwrap()), plain(&want), "{key}: {nth}, from merged runs");
            if nth == 0 {
                let rows = all_rows(&want.rows[0].rows);
                let numbers: Vec<(&str, &str)> = rows.iter().map(|r| (r[r.len() - 7 - !upsert as usize].as_str(), r[r.len() - 4 - !upsert as usize].as_str())).collect();
                assert_eq!(numbers.iter().map(|(_, n)| n.parse::<u64>().unwrap()).sum::<u64>(), 80_000, "{rows:?}");
                assert!(numbers.iter().any(|(d, _)| d.parse::<u64>().unwrap() > 10_000), "{rows:?}");
            }
        }
    }
}
