//! Every function that SQL may call, over values that nobody thought of, as rows are computed.

use super::Transform;
use crate::observe::thread_cpu_ns;
use crate::pipeline::sql::{plan, scalar_functions, tests::{decl, events}};
use crate::pipeline::{Column, ColumnType, From, Segment, SourceSpec};
use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::compute::take_arrays;
use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::logical_expr::type_coercion::functions::fields_with_udf;
use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const COLUMNS: [(&str, &str); 17] = [
    ("s", "string"),
    ("i", "int64"),
    ("n", "int32"),
    ("x", "float64"),
    ("r", "float32"),
    ("d", "decimal"),
    ("b", "bool"),
    ("t", "timestamp"),
    ("l", "timestamp_local"),
    ("a", "date"),
    ("c", "time"),
    ("y", "binary"),
    ("u", "uuid"),
    ("li", "list of int64"),
    ("ls", "list of string"),
    ("m", "map"),
    ("st", "struct"),
];

fn source() -> SourceSpec {
    let list = |of: ColumnType| ColumnType::List(Box::new(of));
    let ty = |what: &str| match what {
        "string" => ColumnType::String,
        "int64" => ColumnType::Int64,
        "int32" => ColumnType::Int32,
        "float64" => ColumnType::Float64,
        "float32" => ColumnType::Float32,
        "decimal" => ColumnType::Decimal(38, 4),
        "bool" => ColumnType::Bool,
        "timestamp" => ColumnType::Timestamp(None),
        "timestamp_local" => ColumnType::TimestampLocal(None),
        "date" => ColumnType::Date,
        "time" => ColumnType::Time,
        "binary" => ColumnType::Binary,
        "uuid" => ColumnType::Uuid,
        "list of int64" => list(ColumnType::Int64),
        "list of string" => list(ColumnType::String),
        "map" => ColumnType::Map(Box::new(ColumnType::String), Box::new(ColumnType::Int64)),
        _ => ColumnType::Struct(vec![("a".into(), ColumnType::Int64)]),
    };
    let column = |(name, what): (&str, &str)| Column { name: name.into(), ty: ty(what), nullable: true, from: From::Path(vec![Segment::Field(name.into())]) };
    SourceSpec { columns: COLUMNS.into_iter().map(column).collect(), watermark: None, ..events() }
}

/// Values of a column, null first.
fn values(ty: &DataType) -> ArrayRef {
    let long = "é".repeat(1_000);
    match ty {
        DataType::Utf8 => Arc::new(StringArray::from(vec![
            None, Some(""), Some("a"), Some("é\u{0}😀"), Some(&long), Some("%"), Some("("), Some("(a*)*$"), Some("-9223372036854775808"), Some("2024-02-30T25:61:61"), Some("{\"a\":[1,"), Some("NaN"),
        ])),
        DataType::Int64 => Arc::new(Int64Array::from(vec![None, Some(0), Some(1), Some(-1), Some(i64::MIN), Some(i64::MAX), Some(1 << 40), Some(64), Some(-100)])),
        DataType::Int32 => Arc::new(Int32Array::from(vec![None, Some(0), Some(1), Some(-1), Some(i32::MIN), Some(i32::MAX), Some(5_000_000)])),
        DataType::Float64 => Arc::new(Float64Array::from(vec![None, Some(0.0), Some(-0.0), Some(f64::NAN), Some(f64::INFINITY), Some(f64::NEG_INFINITY), Some(f64::MAX), Some(f64::MIN_POSITIVE), Some(-1.5), Some(1e18)])),
        DataType::Float32 => Arc::new(Float32Array::from(vec![None, Some(0.0), Some(f32::NAN), Some(f32::INFINITY), Some(f32::MAX), Some(-1.5)])),
        DataType::Decimal128(p, s) => {
            let most = 10i128.pow(u32::from(*p)) - 1;
            Arc::new(Decimal128Array::from(vec![None, Some(0), Some(1), Some(most), Some(-most), Some(10_000)]).with_precision_and_scale(*p, *s).unwrap())
        }
        DataType::Boolean => Arc::new(BooleanArray::from(vec![None, Some(true), Some(false)])),
        DataType::Timestamp(_, zone) => {
            let times = vec![None, Some(0), Some(i64::MIN), Some(i64::MAX), Some(-62_135_596_800_000_001), Some(253_402_300_800_000_000), Some(1_700_000_000_000_001)];
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone_opt(zone.clone()))
        }
        DataType::Date32 => Arc::new(Date32Array::from(vec![None, Some(0), Some(i32::MIN), Some(i32::MAX), Some(19_000), Some(-719_529)])),
        DataType::Time64(_) => Arc::new(Time64MicrosecondArray::from(vec![None, Some(0), Some(86_399_999_999), Some(1)])),
        DataType::Binary => Arc::new(BinaryArray::from(vec![None, Some(&b""[..]), Some(b"\xff\x00"), Some(b"abc")])),
        DataType::FixedSizeBinary(16) => Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size([None, Some([0u8; 16]), Some([255; 16])].into_iter(), 16).unwrap()),
        DataType::List(item) => {
            let items = values(item.data_type());
            let n = items.len() as i32;
            let offsets = OffsetBuffer::new(vec![0, 0, 0, n, n + 1].into());
            let two = take_arrays(&[items.clone()], &UInt32Array::from_iter_values((0..n as u32).chain([0])), None).unwrap().remove(0);
            Arc::new(ListArray::new(item.clone(), offsets, two, Some(vec![false, true, true, true].into())))
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { panic!("{entries}") };
            let values = values(&DataType::Int64);
            let n = values.len() as i32;
            let keys: ArrayRef = Arc::new((0..n).map(|k| Some(k.to_string())).collect::<StringArray>());
            let pairs = StructArray::new(fields.clone(), vec![keys, values], None);
            Arc::new(MapArray::new(entries.clone(), OffsetBuffer::new(vec![0, 0, 0, n].into()), pairs, Some(vec![false, true, true].into()), false))
        }
        DataType::Struct(fields) => {
            let values = values(&DataType::Int64);
            let nulls: Vec<bool> = (0..values.len()).map(|row| row != 0).collect();
            Arc::new(StructArray::new(fields.clone(), vec![values], Some(nulls.into())))
        }
        other => panic!("no values of {other}"),
    }
}

/// Rows in which every column has all of its values, next to different ones of the others.
fn rows(schema: &Schema) -> RecordBatch {
    const ROWS: usize = 40;
    let column = |(nth, field): (usize, &FieldRef)| {
        let all = values(field.data_type());
        // The first rows are alike: all null, then the second value of each, and so on.
        let pick = |row: usize| if row < 6 { row } else { row * (nth % 7 + 1) + nth };
        let picked = UInt32Array::from_iter_values((0..ROWS).map(|row| (pick(row) % all.len()) as u32));
        take_arrays(&[all], &picked, None).unwrap().remove(0)
    };
    RecordBatch::try_new(Arc::new(schema.clone()), schema.fields().iter().enumerate().map(column).collect()).unwrap()
}

/// Calls of a function that the planner may take, of as many kinds of arguments as there are.
fn calls(function: &Arc<datafusion::logical_expr::ScalarUDF>) -> Vec<String> {
    const MOST: usize = 6;
    let spec = source();
    let field = |name: &str, ty: DataType| Arc::new(Field::new(name, ty, true)) as FieldRef;
    let columns: Vec<(String, FieldRef)> = spec.columns.iter().map(|c| (c.name.clone(), field(&c.name, c.ty.arrow()))).collect();
    let literals = ["'day'", "'x'", "'%Y-%m-%d'", "'hex'", "'g'", "'Europe/Berlin'", "'Int64'", "'a'"].map(|l| (l.to_string(), field(l, DataType::Utf8)));
    let interval = ("interval '1 day'".to_string(), field("interval", DataType::Interval(IntervalUnit::MonthDayNano)));
    let all: Vec<(String, FieldRef)> = columns.iter().cloned().chain(literals.iter().cloned()).chain([interval.clone()]).collect();
    let few: Vec<(String, FieldRef)> = all.iter().filter(|(n, _)| ["s", "i", "n", "x", "t", "li", "ls", "'x'", "'day'", "'g'", "interval '1 day'"].contains(&n.as_str())).cloned().collect();
    let fewest: Vec<(String, FieldRef)> = few.iter().filter(|(n, _)| ["s", "i", "li", "'g'"].contains(&n.as_str())).cloned().collect();
    let (mut found, mut seen) = (vec![], BTreeSet::new());
    for (arity, of) in [(0, &all), (1, &all), (2, &all), (3, &few), (4, &fewest)] {
        let mut here = 0;
        let total = of.len().pow(arity);
        for nth in 0..total {
            let mut left = nth;
            let args: Vec<&(String, FieldRef)> = (0..arity).map(|_| { let one = &of[left % of.len()]; left /= of.len(); one }).collect();
            let fields: Vec<FieldRef> = args.iter().map(|(_, f)| f.clone()).collect();
            let Ok(taken) = fields_with_udf(&fields, function.as_ref()) else { continue };
            let literal: Vec<bool> = args.iter().map(|(n, _)| n.starts_with(['\'', 'i']) && n.contains('\'')).collect();
            let kind = format!("{:?} {literal:?}", taken.iter().map(|f| f.data_type().to_string()).collect::<Vec<_>>());
            if here < MOST && seen.insert(kind) {
                here += 1;
                found.push(format!("\"{}\"({})", function.name(), args.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ")));
            }
        }
    }
    found
}

/// What a row cannot have is a dead letter with a reason: no panic, no error of the whole batch, and soon.
#[test]
fn no_function_breaks_on_any_value() {
    let (sender, told) = mpsc::channel();
    let at_work = std::thread::spawn(move || {
        let (mut taken, mut computed, mut slow, all) = (BTreeSet::new(), 0, vec![], scalar_functions());
        for function in &all {
            for call in calls(function) {
                let sql = format!("select {call} as v, i from events");
                let _ = sender.send(sql.clone());
                let Ok(plan) = plan(&decl(&sql, None), &[source()]) else { continue };
                taken.insert(function.name().to_string());
                let batch = rows(&plan.below_input());
                let began = thread_cpu_ns();
                let done = Transform::new(Arc::new(plan)).apply(&batch).unwrap_or_else(|e| panic!("{sql}: {e}"));
                let took = thread_cpu_ns() - began;
                if took > 1_000_000_000 {
                    slow.push(format!("{sql}: {} ms", took / 1_000_000));
                }
                assert_eq!(done.batch.num_rows() + done.failed.len(), batch.num_rows(), "{sql}");
                for (row, reason) in &done.failed {
                    assert!(!reason.trim().is_empty() && !reason.contains('\n'), "{sql}: row {row}: {reason:?}");
                }
                computed += 1;
            }
        }
        assert!(slow.is_empty(), "{slow:#?}");
        let never: Vec<&str> = all.iter().map(|f| f.name()).filter(|name| !taken.contains(*name)).collect();
        assert!(never.len() < 15 && computed > 500, "{} functions, {computed} calls; never called: {never:?}", taken.len());
    });
    let mut last = String::new();
    loop {
        match told.recv_timeout(Duration::from_secs(60)) {
            Ok(sql) => last = sql,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end of {last}"),
        }
    }
    at_work.join().unwrap_or_else(|_| panic!("it ended at {last}"));
}

/// Memory that cannot be had would end the process.
#[test]
fn what_one_row_makes_is_bounded() {
    for call in ["repeat(s, i)", "lpad(s, i)", "rpad(s, i, 'x')", "array_repeat(s, i)", "array_repeat(repeat(s, 1000), i / 100000000000000)", "array_resize(li, i)", "range(i)", "generate_series(0, i, 1)", "replace(s, '', repeat('x', 60000000))"] {
        let plan = plan(&decl(&format!("select {call} as v from events where i = 9223372036854775807 or i = 2"), None), &[source()]).unwrap_or_else(|e| panic!("{call}: {e}"));
        let schema = plan.below_input();
        let column = |f: &FieldRef| -> ArrayRef {
            match f.data_type() {
                DataType::Int64 => Arc::new(Int64Array::from(vec![i64::MAX, 2, 3])),
                DataType::Utf8 => Arc::new(StringArray::from(vec!["abc", "", "abc"])),
                ty => take_arrays(&[values(ty)], &UInt32Array::from(vec![3, 3, 3]), None).unwrap().remove(0),
            }
        };
        let batch = RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect()).unwrap();
        let done = Transform::new(Arc::new(plan)).apply(&batch).unwrap();
        assert_eq!((done.rows.as_slice(), done.failed.len()), ([1].as_slice(), 1), "{call}: {:?}", done.failed);
        assert!(done.failed[0].0 == 0 && done.failed[0].1.contains("would make more than"), "{call}: {:?}", done.failed);
    }
}
