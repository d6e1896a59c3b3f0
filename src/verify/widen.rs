//! Aggregates over types in which no sum of rows ends, narrowed again to the declared ones: what does not fit there is told
//! from what is null.

use super::order::{Kind, WITHIN};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Float64Type, Int64Type, i256};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::{Aggregate, Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, TryCast, Volatility, create_udf};
use std::sync::Arc;

/// The column that tells states of the same rows apart; no source can have it, because it is no word.
pub(super) const AT: &str = "at entry";

/// Begins the names of columns that tell which values did not fit.
pub(super) const UNFIT: &str = "does not fit ";

/// The aggregate with sums that hold any number of rows, narrowed again to the declared types: what
/// does not fit is null. Behind its columns, which are in their places under other names, stand [`AT`] where states are told apart, what did not fit ([`UNFIT`]), and how
/// far sums of floats may be off ([`WITHIN`]).
pub(super) fn wide(a: &Aggregate, states: bool, scan: &dyn Fn(LogicalPlan) -> Result<Transformed<LogicalPlan>>) -> Result<LogicalPlan> {
    let schema = a.input.schema();
    let (mut calls, mut columns): (Vec<Expr>, Vec<Expr>) = (vec![], vec![]);
    let (mut groups, mut unfit, mut slack) = (vec![], vec![], vec![]);
    // Known by their places: a cast has the name of what it casts.
    for (i, e) in a.group_expr.iter().enumerate() {
        let name = format!("group {i}");
        groups.push(group_key(e, schema)?.alias(name.clone()));
        columns.push(Expr::Column(datafusion::common::Column::new_unqualified(name)));
    }
    for (i, e) in a.aggr_expr.iter().enumerate() {
        let field = a.schema.field(a.group_expr.len() + i);
        let Expr::AggregateFunction(f) = e.clone().unalias() else { return Err(DataFusionError::Plan(format!("{e} is no aggregate"))) };
        let (done, total) = widened(&f, field.data_type(), schema, i, &mut calls)?;
        slack.extend(off(&f, &done, schema, i, &mut calls)?.map(|e| e.alias(format!("{WITHIN}{i}"))));
        unfit.extend(total.map(|total| total.is_not_null().and(done.clone().is_null()).alias(format!("{UNFIT}{i}"))));
        columns.push(done.alias(format!("call {i}")));
    }
    if states {
        let at = Expr::Column(datafusion::common::Column::new_unqualified(AT));
        groups.push(at.clone());
        columns.push(at);
    }
    columns.extend(unfit);
    columns.extend(slack);
    // The plan names the table as it was planned; its rows are read under the same name.
    let input = a.input.as_ref().clone().transform_up(scan)?.data;
    // What holds of a plan's schema was written when it was made.
    let input = input.transform_up(|node| Ok(Transformed::yes(node.recompute_schema()?)))?.data;
    LogicalPlanBuilder::from(input).aggregate(groups, calls)?.project(columns)?.build()
}

/// How far `value`, of an aggregate over floats, may be off.
fn off(f: &AggregateFunction, value: &Expr, schema: &DFSchema, nth: usize, calls: &mut Vec<Expr>) -> Result<Option<Expr>> {
    let (Some(kind), Some(arg)) = (Kind::of(f.func.name()), f.params.args.first()) else { return Ok(None) };
    let exact = matches!(arg, Expr::Cast(c) if f.func.name() == "avg" && c.expr.get_type(schema)?.is_signed_integer());
    if exact || !arg.get_type(schema)?.is_floating() {
        return Ok(None);
    }
    let mut call = |func: Arc<datafusion::logical_expr::AggregateUDF>, arg: Expr, part: &str| {
        let name = format!("call {nth} {part}");
        let params = AggregateFunctionParams { args: vec![arg], distinct: false, filter: f.params.filter.clone(), order_by: vec![], null_treatment: None };
        calls.push(Expr::AggregateFunction(AggregateFunction { func, params }).alias(name.clone()));
        Expr::Column(datafusion::common::Column::new_unqualified(name))
    };
    let size = call(datafusion::functions_aggregate::sum::sum_udaf(), kind.magnitude(arg.clone()), "size");
    let rows = call(datafusion::functions_aggregate::count::count_udaf(), arg.clone(), "values");
    let value = Expr::Cast(Cast::new(Box::new(value.clone()), DataType::Float64));
    let slack = kind.slack().call(vec![value, size, rows]);
    let Kind::Spread { .. } = kind else { return Ok(Some(slack)) };
    let least = call(datafusion::functions_aggregate::min_max::min_udaf(), arg.clone(), "least");
    let most = call(datafusion::functions_aggregate::min_max::max_udaf(), arg.clone(), "most");
    Ok(Some(datafusion::logical_expr::when(apart(least, most), datafusion::logical_expr::lit(0.0)).otherwise(slack)?))
}

/// The value in its type, and what it was made of where that may not fit.
fn widened(f: &AggregateFunction, declared: &DataType, schema: &DFSchema, nth: usize, calls: &mut Vec<Expr>) -> Result<(Expr, Option<Expr>)> {
    let mut call = |func: Arc<datafusion::logical_expr::AggregateUDF>, args: Vec<Expr>, distinct: bool, part: &str| {
        let name = format!("call {nth} {part}");
        let params = AggregateFunctionParams { args, distinct, filter: f.params.filter.clone(), order_by: vec![], null_treatment: None };
        calls.push(Expr::AggregateFunction(AggregateFunction { func, params }).alias(name.clone()));
        Expr::Column(datafusion::common::Column::new_unqualified(name))
    };
    let args = f.params.args.clone();
    let arg = args.first().cloned().ok_or_else(|| DataFusionError::Plan("an aggregate without an argument".into()))?;
    let ty = arg.get_type(schema)?;
    let sum = datafusion::functions_aggregate::sum::sum_udaf;
    let count = datafusion::functions_aggregate::count::count_udaf;
    let cast = |e: Expr, to: DataType| Expr::Cast(Cast::new(Box::new(e), to));
    let room = |ty: &DataType| match ty {
        DataType::Decimal128(p, s) if *p <= 19 => Some(DataType::Decimal128(38, *s)),
        DataType::Decimal128(_, s) => Some(DataType::Decimal256(76, *s)),
        t if t.is_integer() => Some(DataType::Decimal128(38, 0)),
        _ => None,
    };
    Ok(match f.func.name() {
        "sum" if room(&ty).is_some() => {
            let to = room(&ty).unwrap_or(DataType::Null);
            let total = call(sum(), vec![cast(arg, to)], false, "sum");
            (Expr::TryCast(TryCast::new(Box::new(total.clone()), declared.clone())), Some(total))
        }
        "avg" => {
            // DataFusion turns integers into floats before it adds them up.
            let whole = match &arg {
                Expr::Cast(c) if c.data_type == DataType::Float64 && c.expr.get_type(schema)?.is_signed_integer() => Some(c.expr.as_ref().clone()),
                _ => None,
            };
            match (whole, &ty) {
                (Some(int), _) => {
                    let total = call(sum(), vec![cast(int.clone(), DataType::Decimal128(38, 0))], false, "sum");
                    let rows = call(count(), vec![int], false, "rows");
                    (mean(DataType::Decimal128(38, 0), DataType::Float64).call(vec![total, rows]), None)
                }
                (None, DataType::Decimal128(_, scale)) => {
                    let wide = DataType::Decimal256(76, *scale);
                    let total = call(sum(), vec![cast(arg.clone(), wide.clone())], false, "sum");
                    let rows = call(count(), vec![arg], false, "rows");
                    (mean(wide, declared.clone()).call(vec![total.clone(), rows]), Some(total))
                }
                _ => (call(f.func.clone(), args, false, "all"), None),
            }
        }
        "min" | "max" if ty.is_floating() => (cast(unranked(call(f.func.clone(), vec![ranked(arg)], false, "all")), declared.clone()), None),
        name if ty.is_floating() && matches!(Kind::of(name), Some(Kind::Spread { .. })) => {
            let value = call(f.func.clone(), args, f.params.distinct, "all");
            let strange = call(count(), vec![strange(arg)], false, "strange");
            (spread(value, strange), None)
        }
        "count" if f.params.distinct && ty.is_floating() => (call(f.func.clone(), vec![one_zero(arg)], true, "all"), None),
        _ => (call(f.func.clone(), args, f.params.distinct, "all"), None),
    })
}

/// What rows are grouped by, and found by among the groups.
pub(super) fn group_key(e: &Expr, schema: &DFSchema) -> Result<Expr> {
    Ok(if e.get_type(schema)?.is_floating() { one_zero(e.clone()) } else { e.clone() })
}

/// A float as it is compared, in 64 bits: -0.0 is 0.0, and there is one NaN.
fn one_zero(e: Expr) -> Expr {
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let one = arrays[0].as_primitive::<Float64Type>().unary::<_, Float64Type>(|v| if v.is_nan() { f64::NAN } else { v + 0.0 });
        Ok(ColumnarValue::Array(Arc::new(one)))
    };
    let double = create_udf("one_zero", vec![DataType::Float64], DataType::Float64, Volatility::Immutable, Arc::new(of));
    double.call(vec![Expr::Cast(Cast::new(Box::new(e), DataType::Float64))])
}

/// The place of a float in IEEE 754's total order, in which there is one NaN, above all numbers. DataFusion's own least and
/// greatest floats know no infinities, and of NaN what comes first decides.
fn ranked(e: Expr) -> Expr {
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let rank = |v: f64| turned(if v.is_nan() { f64::NAN } else { v }.to_bits() as i64);
        Ok(ColumnarValue::Array(Arc::new(arrays[0].as_primitive::<Float64Type>().unary::<_, Int64Type>(rank))))
    };
    let udf = create_udf("ranked", vec![DataType::Float64], DataType::Int64, Volatility::Immutable, Arc::new(of));
    udf.call(vec![Expr::Cast(Cast::new(Box::new(e), DataType::Float64))])
}

fn unranked(e: Expr) -> Expr {
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let float = |rank: i64| f64::from_bits(turned(rank) as u64);
        Ok(ColumnarValue::Array(Arc::new(arrays[0].as_primitive::<Int64Type>().unary::<_, Float64Type>(float))))
    };
    create_udf("unranked", vec![DataType::Int64], DataType::Float64, Volatility::Immutable, Arc::new(of)).call(vec![e])
}

/// A float's bits as an integer of the same order, and back: below zero all but the sign are the other way round.
fn turned(bits: i64) -> i64 {
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

/// Not null where a float is no number that can be counted with: NaN or infinite.
fn strange(e: Expr) -> Expr {
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let each = arrays[0].as_primitive::<Float64Type>().iter().map(|v| v.is_some_and(|v| !v.is_finite()).then_some(1));
        Ok(ColumnarValue::Array(Arc::new(each.collect::<Int64Array>())))
    };
    let udf = create_udf("strange", vec![DataType::Float64], DataType::Int64, Volatility::Immutable, Arc::new(of));
    udf.call(vec![Expr::Cast(Cast::new(Box::new(e), DataType::Float64))])
}

/// Whether values this far apart, on both sides of zero, have squared distances from their mean that no float holds, in
/// whatever order they are added.
fn apart(least: Expr, most: Expr) -> Expr {
    const FAR: f64 = 3.5e156; // 2^520
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let (least, most) = (arrays[0].as_primitive::<Float64Type>(), arrays[1].as_primitive::<Float64Type>());
        let each = least.iter().zip(most.iter()).map(|(l, m)| Some(l.zip(m).is_some_and(|(l, m)| l < 0.0 && m > 0.0 && m - l > FAR)));
        Ok(ColumnarValue::Array(Arc::new(each.collect::<BooleanArray>())))
    };
    let double = |e: Expr| Expr::Cast(Cast::new(Box::new(e), DataType::Float64));
    create_udf("apart", vec![DataType::Float64, DataType::Float64], DataType::Boolean, Volatility::Immutable, Arc::new(of)).call(vec![double(least), double(most)])
}

/// A variance or its root: NaN where a value was no finite number, else infinite where it is beyond all floats.
fn spread(value: Expr, strange: Expr) -> Expr {
    let of = |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let (value, strange) = (arrays[0].as_primitive::<Float64Type>(), arrays[1].as_primitive::<Int64Type>());
        let one = |(v, strange): (f64, i64)| if strange > 0 { f64::NAN } else if v.is_finite() { v } else { f64::INFINITY };
        let each = value.iter().zip(strange.iter()).map(|(v, strange)| v.map(|v| one((v, strange.unwrap_or(0)))));
        Ok(ColumnarValue::Array(Arc::new(each.collect::<Float64Array>())))
    };
    create_udf("spread", vec![DataType::Float64, DataType::Int64], DataType::Float64, Volatility::Immutable, Arc::new(of)).call(vec![value, strange])
}

/// Exact total by number of rows: decimals rounded half away from zero, null where they do not fit.
fn mean(total: DataType, to: DataType) -> datafusion::logical_expr::ScalarUDF {
    let target = to.clone();
    let of = move |values: &[ColumnarValue]| {
        let arrays = ColumnarValue::values_to_arrays(values)?;
        let rows = arrays[1].as_primitive::<Int64Type>();
        let done: ArrayRef = match &target {
            DataType::Decimal128(p, s) => {
                let totals = arrays[0].as_primitive::<Decimal256Type>();
                let DataType::Decimal256(_, from) = arrays[0].data_type() else { return Err(DataFusionError::Internal("a total that is no decimal".into())) };
                let raise = i256::from_i128(10).checked_pow(u32::try_from(s - from).unwrap_or(0)).unwrap_or(i256::ONE);
                let each = (0..rows.len()).map(|i| (totals.is_valid(i) && rows.value(i) > 0).then(|| rounded(totals.value(i), raise, rows.value(i), *p)).flatten());
                Arc::new(each.collect::<Decimal128Array>().with_precision_and_scale(*p, *s)?)
            }
            _ => {
                let totals = arrays[0].as_primitive::<Decimal128Type>();
                let each = (0..rows.len()).map(|i| (totals.is_valid(i) && rows.value(i) > 0).then(|| totals.value(i) as f64 / rows.value(i) as f64));
                Arc::new(each.collect::<Float64Array>())
            }
        };
        Ok(ColumnarValue::Array(done))
    };
    create_udf("exact_mean", vec![total, DataType::Int64], to, Volatility::Immutable, Arc::new(of))
}

fn rounded(total: i256, raise: i256, rows: i64, precision: u8) -> Option<i128> {
    let (raised, rows) = (total.checked_mul(raise)?, i256::from_i128(rows.into()));
    let half = rows.checked_div(i256::from_i128(2))?;
    // Away from zero from the half on: add (or take) half a divisor and cut. An odd divisor has no exact half.
    let nudged = if raised.is_negative() { raised.checked_sub(half)? } else { raised.checked_add(half)? };
    let value = nudged.checked_div(rows)?.to_i128()?;
    (value.unsigned_abs() < 10u128.pow(precision.into())).then_some(value)
}
