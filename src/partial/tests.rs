use super::*;
use crate::decode::Decoded;
use crate::pipeline::sql::{plan, tests::{decl, events}};
use crate::source::{RawBatch, RawRecord};
use arrow::array::{BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array};

const MINUTE: i64 = 60_000_000;

pub(crate) fn planned(sql: &str, key: Option<&[&str]>) -> Arc<TablePlan> {
    Arc::new(plan(&decl(&sql.replace(" T", " tumble(events, interval '5 minutes')"), key), &[events()]).unwrap())
}

/// user, time in minutes, amount in whole units, i
pub(crate) type Row = (Option<&'static str>, i64, i128, i64);

pub(crate) fn decoded(rows: &[Row], first_offset: i64) -> (Decoded, RawBatch) {
    let n = rows.len();
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("user_id", Arc::new(rows.iter().map(|r| r.0).collect::<StringArray>()) as ArrayRef, true),
        ("event_time", Arc::new(rows.iter().map(|r| Some(r.1 * MINUTE)).collect::<TimestampMicrosecondArray>().with_timezone("UTC")), true),
        ("amount", Arc::new(rows.iter().map(|r| Some(r.2 * 100)).collect::<Decimal128Array>().with_precision_and_scale(12, 2).unwrap()), true),
        ("wide", Arc::new(rows.iter().map(|r| Some(r.2 * 10_000)).collect::<Decimal128Array>().with_precision_and_scale(38, 4).unwrap()), true),
        ("i", Arc::new(rows.iter().map(|r| Some(r.3)).collect::<Int64Array>()), true),
        ("n", Arc::new(rows.iter().map(|r| Some(r.3 as i32)).collect::<Int32Array>()), true),
        ("x", Arc::new(rows.iter().map(|r| Some(r.3 as f64)).collect::<Float64Array>()), true),
        ("b", Arc::new(rows.iter().map(|r| Some(r.3 % 2 == 0)).collect::<BooleanArray>()), true),
        ("cityName", Arc::new(rows.iter().map(|r| Some(format!("c{}", r.3))).collect::<StringArray>()), true),
        ("id", Arc::new(FixedSizeBinaryArray::try_from_iter(rows.iter().map(|r| [r.3 as u8; 16])).unwrap_or_else(|_| FixedSizeBinaryArray::new_null(16, 0))), true),
    ])
    .unwrap();
    let record = |i: i64| RawRecord { offset: first_offset + i, timestamp_ms: Some(i), key: None, value: None, headers: vec![], oversized: None };
    let raw = RawBatch { partition: 3, from: first_offset, to: first_offset + n as i64, records: (0..n as i64).map(record).collect(), ..Default::default() };
    (Decoded { batch, rows: (0..n as u32).collect(), dead: vec![] }, raw)
}

pub(crate) fn projection(plan: &TablePlan) -> Vec<usize> {
    let (d, _) = decoded(&[], 0);
    plan.scan.iter().map(|c| d.batch.schema().index_of(c).unwrap()).collect()
}

fn partials(plan: &Arc<TablePlan>, rows: &[Row], judge_at: Option<i64>) -> (Vec<Run>, Vec<(u32, String)>) {
    let mut p = Partials::new(plan.clone(), projection(plan)).unwrap();
    let (d, raw) = decoded(rows, 100);
    let dead = p.add(&d, &raw, "topic", judge_at).unwrap();
    (p.finish().unwrap(), dead)
}

#[test]
fn an_epoch_is_grouped_once_and_cut_by_window() {
    let plan = planned("select window_start, user_id, sum(amount) as s, count(*) as n from T group by window_start, user_id", None);
    let (runs, dead) = partials(&plan, &[(Some("A"), 0, 5, 0), (Some("B"), 2, 3, 0), (Some("B"), 6, 1, 0), (Some("A"), 4, 2, 0), (None, 1, 9, 0)], None);
    assert!(dead.is_empty());
    let kinds: Vec<RunKind> = runs.iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [RunKind::Windows { first_start_us: 0, last_start_us: 5 * MINUTE }]);
    let run = &runs[0].batch;
    assert_eq!(run.column(0).as_primitive::<TimestampMicrosecondType>().values(), &[0, 0, 0, 5 * MINUTE]);
    assert_eq!(run.column(1).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("A"), Some("B"), None, Some("B")]);
    assert_eq!(run.column(2).as_primitive::<arrow::datatypes::Decimal128Type>().values(), &[700, 300, 900, 100]);
    assert_eq!(run.column(3).as_primitive::<arrow::datatypes::Int64Type>().values(), &[2, 1, 1, 1]);
}

/// What is said of a run in the log must not outgrow the run.
#[test]
fn small_windows_share_runs_and_large_ones_have_their_own() {
    let plan = planned("select window_start, i, count(*) as n from T group by window_start, i", None);
    let most = SHARED_ROWS as i64;
    // A large window between many small ones, out of order: after 1.5 runs of them, and before half a one.
    let (large, last) = (most * 3 / 2, most * 2);
    let mut rows: Vec<Row> = (0..=last).rev().map(|w| (None, w * 5, 1, 0)).collect();
    rows.extend((0..most).map(|i| (None, large * 5, 1, i)));
    let (runs, _) = partials(&plan, &rows, None);
    let kinds: Vec<(i64, i64, i64)> = runs.iter().map(|r| (r.kind.windows().unwrap().0 / MINUTE / 5, r.kind.windows().unwrap().1 / MINUTE / 5, r.batch.num_rows() as i64)).collect();
    assert_eq!(kinds, [(0, most - 1, most), (most, large - 1, most / 2), (large, large, most), (large + 1, last, last - large)]);
    assert_eq!(runs[2].kind, RunKind::Partial { window_start_us: large * 5 * MINUTE });
    assert_eq!(runs[2].batch.num_columns() + 1, runs[0].batch.num_columns());
}

#[test]
fn a_filtered_row_is_never_late_and_a_failing_one_is_dead() {
    let plan = planned("select window_start, sum(1 / i) as s from T where amount > 2 group by window_start", None);
    let rows = [(Some("A"), 0, 5, 1), (Some("B"), 1, 1, 1), (Some("C"), 2, 5, 0), (Some("D"), 6, 5, 1), (Some("E"), 7, 1, 0)];
    let (runs, dead) = partials(&plan, &rows, Some(5 * MINUTE));
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].0, 2);
    assert!(dead[0].1.contains("divide by zero"), "{}", dead[0].1);
    assert_eq!(runs[0].kind, RunKind::JudgeLater);
    let later = &runs[0].batch;
    assert_eq!(later.num_rows(), 1, "B was filtered out, C is dead");
    assert_eq!(later.schema(), plan.judge_later_schema());
    assert_eq!(later["_offset"].as_primitive::<arrow::datatypes::Int64Type>().value(0), 100);
    assert_eq!(later["_partition"].as_primitive::<arrow::datatypes::Int32Type>().value(0), 3);
    assert_eq!(later["window_end"].as_primitive::<TimestampMicrosecondType>().value(0), 5 * MINUTE);
    assert_eq!(runs[1].kind, RunKind::Partial { window_start_us: 5 * MINUTE });
    assert_eq!(runs.len(), 2);
}

#[test]
fn arithmetic_never_wraps() {
    for (expr, word) in [("i + i", "overflow"), ("i * 2", "overflow"), ("-(0 - i - 1)", "overflow"), ("0 - i - 2", "overflow"), ("cast(i as int)", "can't cast"), ("wide * wide", "")] {
        let plan = planned(&format!("select window_start, max({expr}) as s from T group by window_start"), None);
        let (runs, dead) = partials(&plan, &[(None, 0, 10i128.pow(20), i64::MAX), (None, 0, 1, 1)], None);
        assert_eq!(dead.iter().map(|d| d.0).collect::<Vec<_>>(), [0], "{expr}");
        assert!(dead[0].1.to_lowercase().contains(word), "{expr}: {}", dead[0].1);
        assert_eq!(runs[0].batch.num_rows(), 1);
    }
}

#[test]
fn all_nan_are_one_key_and_the_zeros_are_one() {
    let sql = "select window_start, case when i = 0 then cast('NaN' as double) when i = 1 then -cast('NaN' as double) when i = 2 then -0.0e0 else 0.0e0 end as k, \
               count(*) as n from T group by 1, 2";
    let (runs, _) = partials(&planned(sql, None), &[(None, 0, 0, 0), (None, 0, 0, 1), (None, 0, 0, 2), (None, 0, 0, 3)], None);
    assert_eq!(runs[0].batch.num_rows(), 2);
}
