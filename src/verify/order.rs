//! How far floats may be off because they were added in another order.
//!
//! Each addition of a float rounds, so that a sum of `n` values is known to `n` ulps of the sum of their magnitudes, which
//! may be far more than ulps of the sum itself: values that cancel leave little else. What stands above the sums is
//! computed once more with each of them that much higher and lower, and as the roundest number between, and how far the
//! result moves is how far it may be off.
//!
//! Source: N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition, sections 4.2 (sums) and 1.9 (variances,
//! with the bound of Chan and Lewis).

use super::strict::Strict;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, StringArray};
use arrow::compute::cast;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarUDF, Volatility, create_udf};
use std::sync::Arc;

/// Begins the names of columns that tell how far sums of floats may be off.
pub(super) const WITHIN: &str = "may be off ";

/// The column of computed rows that a table may hold or not. No column of a table can have its name.
pub const MAYBE: &str = "\0maybe";

/// Name of the column that says how far column `place` of a computed row may be off; infinite: by anything.
pub fn within_column(place: usize) -> String {
    format!("\0within {place}")
}

/// Sums that are moved together in every way.
const TOGETHER: usize = 3;

/// What is added up.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Sum,
    Mean,
    /// A variance or its root, over the rows or one fewer.
    Spread { sample: bool, root: bool },
}

impl Kind {
    /// The aggregate of this name over floats, if the order of its rows matters.
    pub(super) fn of(name: &str) -> Option<Self> {
        let spread = |sample, root| Some(Self::Spread { sample, root });
        match name {
            "sum" => Some(Self::Sum),
            "avg" => Some(Self::Mean),
            "var" | "var_samp" => spread(true, false),
            "var_pop" => spread(false, false),
            "stddev" | "stddev_samp" => spread(true, true),
            "stddev_pop" => spread(false, true),
            _ => None,
        }
    }

    /// Of an argument: what is summed up for [`Kind::slack`].
    pub(super) fn magnitude(self, arg: Expr) -> Expr {
        let squares = matches!(self, Self::Spread { .. });
        let of = move |values: &[ColumnarValue]| {
            let arrays = ColumnarValue::values_to_arrays(values)?;
            // What an infinite value does to a sum does not depend on the order.
            let size = |v: f64| if !v.is_finite() { 0.0 } else if squares { v * v } else { v.abs() };
            Ok(ColumnarValue::Array(Arc::new(arrays[0].as_primitive::<Float64Type>().unary::<_, Float64Type>(size))))
        };
        let udf = create_udf(if squares { "square" } else { "magnitude" }, vec![DataType::Float64], DataType::Float64, Volatility::Immutable, Arc::new(of));
        udf.call(vec![Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(arg), DataType::Float64))])
    }

    /// A function of an aggregate's value, the sum of [`Kind::magnitude`] and the number of values: how far the value may be off.
    pub(super) fn slack(self) -> ScalarUDF {
        let of = move |values: &[ColumnarValue]| {
            let arrays = ColumnarValue::values_to_arrays(values)?;
            let value = cast(&arrays[0], &DataType::Float64)?;
            let (value, size, rows) = (value.as_primitive::<Float64Type>(), arrays[1].as_primitive::<Float64Type>(), arrays[2].as_primitive::<Int64Type>());
            let each = (0..rows.len()).map(|i| {
                let any = value.is_valid(i) && size.is_valid(i);
                Some(if any { self.bound(value.value(i), size.value(i), rows.value(i) as f64) } else { 0.0 })
            });
            Ok(ColumnarValue::Array(Arc::new(each.collect::<Float64Array>())))
        };
        create_udf("slack", vec![DataType::Float64, DataType::Float64, DataType::Int64], DataType::Float64, Volatility::Immutable, Arc::new(of))
    }

    /// `size`: the sum of the magnitudes or squares of `n` values.
    fn bound(self, value: f64, size: f64, n: f64) -> f64 {
        // Two sums are compared, and each is off by half of this.
        let ulps = f64::EPSILON * (n + 2.0);
        match self {
            Self::Sum => ulps * size,
            Self::Mean => ulps * size / n,
            Self::Spread { sample, root } => {
                let by = if sample { n - 1.0 } else { n };
                if by <= 0.0 || value.is_nan() {
                    return 0.0;
                }
                // Near the end of what floats hold the order decides whether a sum of squares is infinite.
                if value.is_infinite() || size > f64::MAX / (4.0 * n) {
                    return f64::INFINITY;
                }
                let variance = if root { value * value } else { value };
                let squares = size / by;
                let off = 8.0 * ulps * ((squares * variance).sqrt() + ulps * squares);
                if root { (variance + off).sqrt() - value } else { off }
            }
        }
    }
}

/// A sum of floats that may be off.
struct Doubtful {
    place: usize,
    values: Float64Array,
    slack: Float64Array,
}

/// As what a sum is tried.
#[derive(Clone, Copy)]
enum Step {
    AsItIs,
    Higher,
    Lower,
    /// The roundest number that it may be: what conditions compare with.
    Round,
}

impl Doubtful {
    fn at(&self, row: usize, step: Step) -> Option<f64> {
        let (value, slack) = (self.values.is_valid(row).then(|| self.values.value(row))?, self.slack.value(row));
        Some(match step {
            Step::AsItIs => value,
            Step::Higher => value + slack,
            Step::Lower => value - slack,
            Step::Round if slack > 0.0 => round(value, slack),
            Step::Round => value,
        })
    }
}

/// The number of the fewest decimals that is as near as this; 0 before all others.
fn round(value: f64, slack: f64) -> f64 {
    if value.abs() <= slack {
        return 0.0;
    }
    let mut decimals = (0..17).filter_map(|digits| format!("{value:.digits$}").parse::<f64>().ok());
    decimals.find(|near| (near - value).abs() <= slack).unwrap_or(value)
}

/// The sums that may be off. `first`: the place of the first aggregate.
fn doubtful(summed: &RecordBatch, first: usize) -> Result<Vec<Doubtful>> {
    let mut all = vec![];
    for (field, slack) in summed.schema_ref().fields().iter().zip(summed.columns()) {
        let Some(nth) = field.name().strip_prefix(WITHIN).and_then(|n| n.parse::<usize>().ok()) else { continue };
        let slack = slack.as_primitive::<Float64Type>().clone();
        if slack.values().iter().all(|s| *s == 0.0) {
            continue;
        }
        let place = first + nth;
        let values = cast(summed.column(place), &DataType::Float64)?.as_primitive::<Float64Type>().clone();
        all.push(Doubtful { place, values, slack });
    }
    Ok(all)
}

/// `summed` with each of its sums in turn as high, as low and as round as it may be, and with up to [`TOGETHER`] of them in all
/// ways, of more all of them alike. With each: the places of the sums that were moved.
fn moved(summed: &RecordBatch, first: usize) -> Result<Vec<(Vec<usize>, RecordBatch)>> {
    const STEPS: [Step; 3] = [Step::Higher, Step::Lower, Step::Round];
    let sums = doubtful(summed, first)?;
    let mut ways: Vec<Vec<Step>> = vec![];
    for nth in 0..sums.len() {
        ways.extend(STEPS.map(|step| (0..sums.len()).map(|i| if i == nth { step } else { Step::AsItIs }).collect()));
    }
    if (2..=TOGETHER).contains(&sums.len()) {
        for way in 0..4usize.pow(sums.len() as u32) {
            let steps: Vec<Step> = (0..sums.len()).map(|i| [Step::AsItIs, Step::Higher, Step::Lower, Step::Round][way / 4usize.pow(i as u32) % 4]).collect();
            if steps.iter().filter(|s| !matches!(s, Step::AsItIs)).count() > 1 {
                ways.push(steps);
            }
        }
    } else if sums.len() > TOGETHER {
        ways.extend(STEPS.map(|step| vec![step; sums.len()]));
    }
    let mut all = vec![];
    for steps in ways {
        let (mut columns, mut places) = (summed.columns().to_vec(), vec![]);
        for (sum, step) in sums.iter().zip(steps).filter(|(_, step)| !matches!(step, Step::AsItIs)) {
            let each: Float64Array = (0..sum.values.len()).map(|row| sum.at(row, step)).collect();
            columns[sum.place] = cast(&(Arc::new(each) as ArrayRef), summed.column(sum.place).data_type())?;
            places.push(sum.place);
        }
        all.push((places, RecordBatch::try_new(summed.schema(), columns)?));
    }
    Ok(all)
}

/// Where two columns of one type differ, a null from a value too.
fn differ(a: &ArrayRef, b: &ArrayRef) -> Result<BooleanArray> {
    let same = if a.data_type().is_nested() {
        let options = FormatOptions::default().with_null("null");
        let text = |a: &ArrayRef| {
            let shown = ArrayFormatter::try_new(a.as_ref(), &options)?;
            Ok::<_, arrow::error::ArrowError>((0..a.len()).map(|i| Some(shown.value(i).to_string())).collect::<StringArray>())
        };
        not_distinct(&text(a)?, &text(b)?)?
    } else {
        not_distinct(a, b)?
    };
    Ok(arrow::compute::not(&same)?)
}

/// What the rows of an aggregate may be, given how far its sums may be off.
pub(super) struct Leeway {
    /// With the places of the sums that are others.
    moved: Vec<(Vec<usize>, RecordBatch)>,
}

impl Leeway {
    pub(super) fn new(summed: &RecordBatch, first: usize) -> Result<Self> {
        Ok(Self { moved: moved(summed, first)? })
    }

    /// Only where all that was moved is read: of the others there is one that moves less.
    fn each<'a>(&'a self, summed: &'a RecordBatch, of: &'a Strict, reads: &'a dyn Fn(&str) -> bool) -> impl Iterator<Item = Result<ArrayRef>> + 'a {
        let read = move |place: &usize| reads(summed.schema_ref().field(*place).name());
        let taken = move |places: &[usize]| if places.len() > TOGETHER { places.iter().any(read) } else { places.iter().all(read) };
        self.moved.iter().filter(move |(places, _)| taken(places)).map(|(_, batch)| of.each(batch, 0, &mut vec![]))
    }

    /// How far each row of `column` may be off. `of`: its expression, `reads`: whether it reads a column of `summed`.
    pub(super) fn within(&self, summed: &RecordBatch, column: &ArrayRef, of: &Strict, reads: &dyn Fn(&str) -> bool) -> Result<Float64Array> {
        let mut within = vec![0.0; column.len()];
        if !column.data_type().is_floating() {
            for other in self.each(summed, of, reads) {
                let other = differ(column, &other?)?;
                within.iter_mut().enumerate().filter(|(i, _)| other.value(*i)).for_each(|(_, w)| *w = f64::INFINITY);
            }
            return Ok(within.into());
        }
        let value = cast(column, &DataType::Float64)?;
        let value = value.as_primitive::<Float64Type>();
        for other in self.each(summed, of, reads) {
            let other = cast(&other?, &DataType::Float64)?;
            let other = other.as_primitive::<Float64Type>();
            for (i, within) in within.iter_mut().enumerate() {
                let (a, b) = (value.value(i), other.value(i));
                *within += match (value.is_valid(i), other.is_valid(i)) {
                    (false, false) => 0.0,
                    (true, true) if a == b || (a.is_nan() && b.is_nan()) => 0.0,
                    (true, true) if (a - b).is_finite() => (a - b).abs(),
                    _ => f64::INFINITY,
                };
            }
        }
        // All steps count together. What is above the sums rounds, too.
        let relative = if column.data_type() == &DataType::Float32 { f64::from(f32::EPSILON) } else { 4.0 * f64::EPSILON };
        let rounded = |(i, w): (usize, f64)| if w == 0.0 || !value.is_valid(i) || !value.value(i).is_finite() { w } else { 2.0 * w + relative * value.value(i).abs() };
        Ok(within.into_iter().enumerate().map(rounded).collect::<Vec<f64>>().into())
    }

    /// Rows in which a condition may be another than `passed`.
    pub(super) fn undecided(&self, summed: &RecordBatch, passed: &ArrayRef, of: &Strict, reads: &dyn Fn(&str) -> bool) -> Result<Vec<bool>> {
        let mut undecided = vec![false; passed.len()];
        for other in self.each(summed, of, reads) {
            let other = differ(passed, &other?)?;
            undecided.iter_mut().enumerate().for_each(|(i, u)| *u |= other.value(i));
        }
        Ok(undecided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the order and the size of the parts that are summed up, the results are within the bound of one another.
    #[test]
    fn no_order_of_additions_leaves_the_bound() {
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        for round in 0..200 {
            let mut values: Vec<f64> = (0..3 + round * 5).map(|_| (random() - 0.5) * 10f64.powi((random() * 24.0) as i32 - 12)).collect();
            // Half of them cancel.
            if round % 2 == 0 {
                values = values.iter().flat_map(|v| [*v, -v]).collect();
                values.push(random());
            }
            let n = values.len();
            let sums: Vec<f64> = (0..10)
                .map(|_| {
                    for i in (1..n).rev() {
                        values.swap(i, (random() * (i + 1) as f64) as usize);
                    }
                    let part = 1 + (random() * n as f64) as usize;
                    values.chunks(part).map(|c| c.iter().fold(0.0, |a, b| a + b)).fold(0.0, |a, b| a + b)
                })
                .collect();
            let size: f64 = values.iter().map(|v| v.abs()).sum();
            let bound = Kind::Sum.bound(sums[0], size, n as f64);
            for s in &sums {
                assert!((s - sums[0]).abs() <= bound, "{n} values: {s} and {} are apart by more than {bound}", sums[0]);
            }
        }
    }
}
