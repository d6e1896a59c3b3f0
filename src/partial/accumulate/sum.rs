//! Sums and averages: exact for integers and decimals, in the order of the rows for floats.

use super::{Accumulator, Ids, each_live, valid, wrong_state};
use crate::pipeline::sql::{AggregateCall, AggregateFunction, NARROW_PRECISION, WIDE};
use arrow::array::{ArrayRef, AsArray, Decimal128Array, Decimal256Array, Float64Array, Int64Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, Float64Type, Int64Type, i256};
use datafusion::error::{DataFusionError, Result};
use std::sync::Arc;

pub(super) fn new(call: &AggregateCall) -> Result<Box<dyn Accumulator>> {
    let averages = call.function == AggregateFunction::Avg;
    let (input, output) = (call.input.clone(), call.output.clone());
    Ok(match &call.input {
        DataType::Int64 => Box::new(Sum::<i128>::new(input, output, averages)),
        DataType::Decimal128(p, _) if *p <= NARROW_PRECISION => Box::new(Sum::<i128>::new(input, output, averages)),
        DataType::Decimal128(_, _) => Box::new(Sum::<i256>::new(input, output, averages)),
        DataType::Float64 => Box::new(Sum::<f64>::new(input, output, averages)),
        other => return Err(DataFusionError::Internal(format!("sum of {other} was planned"))),
    })
}

/// What sums are kept in.
trait Total: Copy + Default + Send + 'static {
    fn plus(self, other: Self) -> Self;
    /// Calls `f` with each live value of an argument column.
    fn read(values: &ArrayRef, live: Option<&BooleanBuffer>, f: impl FnMut(usize, Self)) -> Option<()>;
    /// The same for a state column.
    fn read_state(values: &ArrayRef, live: Option<&BooleanBuffer>, f: impl FnMut(usize, Self)) -> Option<()>;
    fn write_state(totals: impl Iterator<Item = Option<Self>>, scale: i8) -> Result<ArrayRef>;
    fn wide(self) -> i256;
    fn float(self) -> f64;
}

impl Total for i128 {
    #[inline]
    fn plus(self, other: Self) -> Self {
        // Fewer than 2^63 values of at most 19 digits: never near 2^127.
        self.wrapping_add(other)
    }

    fn read(values: &ArrayRef, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize, Self)) -> Option<()> {
        if let Some(v) = values.as_primitive_opt::<Int64Type>() {
            let v = v.values();
            each_live(v.len(), live, |i| f(i, v[i] as i128));
            return Some(());
        }
        Self::read_state(values, live, f)
    }

    fn read_state(values: &ArrayRef, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize, Self)) -> Option<()> {
        let v = values.as_primitive_opt::<Decimal128Type>()?.values();
        each_live(v.len(), live, |i| f(i, v[i]));
        Some(())
    }

    fn write_state(totals: impl Iterator<Item = Option<Self>>, scale: i8) -> Result<ArrayRef> {
        Ok(Arc::new(totals.collect::<Decimal128Array>().with_precision_and_scale(38, scale)?))
    }

    fn wide(self) -> i256 {
        i256::from_i128(self)
    }

    fn float(self) -> f64 {
        self as f64
    }
}

impl Total for i256 {
    #[inline]
    fn plus(self, other: Self) -> Self {
        // Fewer than 2^63 values of at most 38 digits: never near 2^255.
        self.wrapping_add(other)
    }

    fn read(values: &ArrayRef, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize, Self)) -> Option<()> {
        let v = values.as_primitive_opt::<Decimal128Type>()?.values();
        each_live(v.len(), live, |i| f(i, i256::from_i128(v[i])));
        Some(())
    }

    fn read_state(values: &ArrayRef, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize, Self)) -> Option<()> {
        let v = values.as_primitive_opt::<Decimal256Type>()?.values();
        each_live(v.len(), live, |i| f(i, v[i]));
        Some(())
    }

    fn write_state(totals: impl Iterator<Item = Option<Self>>, scale: i8) -> Result<ArrayRef> {
        Ok(Arc::new(totals.collect::<Decimal256Array>().with_precision_and_scale(WIDE, scale)?))
    }

    fn wide(self) -> i256 {
        self
    }

    fn float(self) -> f64 {
        // Only integers and floats are averaged as floats, and neither is summed here.
        f64::NAN
    }
}

impl Total for f64 {
    #[inline]
    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn read(values: &ArrayRef, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize, Self)) -> Option<()> {
        let v = values.as_primitive_opt::<Float64Type>()?.values();
        each_live(v.len(), live, |i| f(i, v[i]));
        Some(())
    }

    fn read_state(values: &ArrayRef, live: Option<&BooleanBuffer>, f: impl FnMut(usize, Self)) -> Option<()> {
        Self::read(values, live, f)
    }

    fn write_state(totals: impl Iterator<Item = Option<Self>>, _: i8) -> Result<ArrayRef> {
        Ok(Arc::new(totals.collect::<Float64Array>()))
    }

    fn wide(self) -> i256 {
        i256::ZERO
    }

    fn float(self) -> f64 {
        self
    }
}

/// Sum, or average when rows are counted too.
struct Sum<T> {
    totals: Vec<T>,
    /// Rows per group for an average; 0 or 1 for a sum: whether there was a value.
    rows: Vec<i64>,
    input: DataType,
    output: DataType,
    averages: bool,
}

impl<T: Total> Sum<T> {
    fn new(input: DataType, output: DataType, averages: bool) -> Self {
        Self { totals: vec![], rows: vec![], input, output, averages }
    }

    fn grow(&mut self, total: usize) {
        self.totals.resize(total, T::default());
        self.rows.resize(total, 0);
    }

    fn scale(&self) -> i8 {
        if let DataType::Decimal128(_, s) = self.input { s } else { 0 }
    }

    fn total(&self, group: usize) -> Option<T> {
        (self.rows[group] > 0).then(|| self.totals[group])
    }

    /// The decimal result of a group, unscaled, if 38 digits hold it.
    fn decimal(&self, group: usize, scale: i8) -> Option<i128> {
        let total = self.totals[group];
        if !self.averages {
            return total.wide().to_i128();
        }
        let raised = total.wide().checked_mul(i256::from_i128(10i128.pow((scale - self.scale()).max(0) as u32)))?;
        let rows = i256::from_i128(self.rows[group] as i128);
        let (whole, rest) = (raised.checked_div(rows)?, raised.checked_rem(rows)?);
        // Half away from zero.
        let up = rest.wrapping_abs().wrapping_mul(i256::from_i128(2)) >= rows;
        let step = if !up { i256::ZERO } else if raised.is_negative() { i256::MINUS_ONE } else { i256::ONE };
        whole.wrapping_add(step).to_i128()
    }
}

impl<T: Total> Accumulator for Sum<T> {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        let values = values.ok_or_else(|| wrong_state("sum"))?;
        let (totals, rows, averages) = (&mut self.totals, &mut self.rows, self.averages);
        let read = T::read(values, live, |i, v| {
            let g = groups[i];
            // The first value is taken as it is: -0.0 stays.
            totals[g] = if rows[g] == 0 { v } else { totals[g].plus(v) };
            rows[g] = if averages { rows[g] + 1 } else { 1 };
        });
        read.ok_or_else(|| wrong_state("sum"))
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        let counts = if self.averages { Some(state[1].as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_state("avg"))?) } else { None };
        let (totals, rows) = (&mut self.totals, &mut self.rows);
        let read = T::read_state(&state[0], valid(&state[0]).as_ref(), |i, v| {
            let g = groups[i];
            totals[g] = if rows[g] == 0 { v } else { totals[g].plus(v) };
            rows[g] = match counts {
                Some(c) => rows[g] + c.value(i),
                None => 1,
            };
        });
        read.ok_or_else(|| wrong_state("sum"))
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let mut columns = vec![T::write_state(ids.iter().map(|g| self.total(g)), self.scale())?];
        if self.averages {
            columns.push(Arc::new(ids.iter().map(|g| self.rows[g]).collect::<Int64Array>()));
        }
        Ok(columns)
    }

    fn values(&self, ids: &Ids<'_>, unfit: &mut Vec<usize>) -> Result<ArrayRef> {
        let mut fit = |at: usize, has: bool, v: Option<i128>| {
            if has && v.is_none() {
                unfit.push(at);
            }
            v.filter(|_| has)
        };
        Ok(match &self.output {
            DataType::Decimal128(p, s) => {
                let most = 10i128.pow(*p as u32);
                let one = |(at, g): (usize, usize)| {
                    let has = self.rows[g] > 0;
                    fit(at, has, if has { self.decimal(g, *s).filter(|v| v.unsigned_abs() < most as u128) } else { None })
                };
                Arc::new(ids.iter().enumerate().map(one).collect::<Decimal128Array>().with_precision_and_scale(*p, *s)?)
            }
            DataType::Int64 => {
                let one = |(at, g): (usize, usize)| {
                    let v = self.totals[g].wide().to_i128().filter(|v| i64::try_from(*v).is_ok());
                    fit(at, self.rows[g] > 0, v).map(|v| v as i64)
                };
                Arc::new(ids.iter().enumerate().map(one).collect::<Int64Array>())
            }
            _ => {
                let one = |g: usize| self.total(g).map(|t| if self.averages { t.float() / self.rows[g] as f64 } else { t.float() });
                Arc::new(ids.iter().map(one).collect::<Float64Array>())
            }
        })
    }

    fn bytes(&self) -> usize {
        self.totals.capacity() * size_of::<T>() + self.rows.capacity() * 8
    }
}
