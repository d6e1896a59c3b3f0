//! Variance and standard deviation, by rows, mean and the sum of squared distances from it.
//!
//! Two states merge by the formula of Chan, Golub and LeVeque (1979), which stays accurate where a
//! difference of sums of squares does not.

use super::{Accumulator, Ids, each_live, wrong_state};
use crate::pipeline::sql::AggregateFunction;
use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Float64Type, Int64Type};
use datafusion::error::Result;
use std::sync::Arc;

#[derive(Clone, Copy, Default)]
struct State {
    rows: i64,
    mean: f64,
    /// NaN: a value was NaN or infinite. Infinite: beyond all floats, and the mean is of no account.
    distances: f64,
}

impl State {
    fn add(&mut self, value: f64) {
        self.rows += 1;
        let from_old = value - self.mean;
        self.mean += from_old / self.rows as f64;
        let more = from_old * (value - self.mean);
        self.grow(more, value.is_finite());
    }

    fn merge(&mut self, more: State) {
        if self.rows == 0 {
            *self = State { rows: more.rows, mean: more.mean, distances: 0.0 };
            return self.grow(more.distances, !more.distances.is_nan());
        }
        let (a, b) = (self.rows as f64, more.rows as f64);
        let apart = more.mean - self.mean;
        self.rows += more.rows;
        self.mean += apart * b / (a + b);
        self.grow(more.distances + apart * (apart * (a * b / (a + b))), !more.distances.is_nan());
    }

    /// `finite`: every value that brought `more` was. Whatever the order of the values, what overflows is infinite.
    fn grow(&mut self, more: f64, finite: bool) {
        let sum = self.distances + more;
        if self.distances.is_nan() || !finite {
            self.distances = f64::NAN;
        } else if sum.is_finite() && self.mean.is_finite() {
            self.distances = sum;
        } else {
            (self.mean, self.distances) = (0.0, f64::INFINITY);
        }
    }
}

pub(super) struct Moments {
    states: Vec<State>,
    function: AggregateFunction,
}

impl Moments {
    pub(super) fn new(function: AggregateFunction) -> Self {
        Self { states: vec![], function }
    }
}

impl Accumulator for Moments {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.states.resize(total, State::default());
        let values = values.and_then(|v| v.as_primitive_opt::<Float64Type>()).ok_or_else(|| wrong_state("variance"))?.values();
        each_live(groups.len(), live, |i| self.states[groups[i]].add(values[i]));
        Ok(())
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.states.resize(total, State::default());
        let rows = state[0].as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        let mean = state[1].as_primitive_opt::<Float64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        let distances = state[2].as_primitive_opt::<Float64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        for (i, g) in groups.iter().enumerate().filter(|(i, _)| rows[*i] > 0) {
            self.states[*g].merge(State { rows: rows[i], mean: mean[i], distances: distances[i] });
        }
        Ok(())
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let rows: Int64Array = ids.iter().map(|g| self.states[g].rows).collect();
        let mean: Float64Array = ids.iter().map(|g| Some(self.states[g].mean)).collect();
        let distances: Float64Array = ids.iter().map(|g| Some(self.states[g].distances)).collect();
        Ok(vec![Arc::new(rows), Arc::new(mean), Arc::new(distances)])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        use AggregateFunction::*;
        let sample = matches!(self.function, VarSamp | StddevSamp);
        let root = matches!(self.function, StddevSamp | StddevPop);
        let one = |g: usize| {
            let s = self.states[g];
            let by = if sample { s.rows - 1 } else { s.rows };
            let variance = s.distances / by as f64;
            (by > 0).then(|| if root { variance.sqrt() } else { variance })
        };
        Ok(Arc::new(ids.iter().map(one).collect::<Float64Array>()))
    }

    fn bytes(&self) -> usize {
        self.states.capacity() * size_of::<State>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AggregateFunction::*;

    /// One row has no variance of a sample, and equal rows have none at all, to the last bit, however they are merged.
    #[test]
    fn one_row_and_equal_rows() {
        let of = |function, rows: &[f64], parts: usize| {
            let mut all = Moments::new(function);
            for part in rows.chunks(rows.len().div_ceil(parts).max(1)) {
                let mut one = Moments::new(function);
                let values: ArrayRef = Arc::new(Float64Array::from(part.to_vec()));
                one.update(Some(&values), None, &vec![0; part.len()], 1).unwrap();
                all.merge(&one.state(&Ids::Range(0..1)).unwrap(), &[0], 1).unwrap();
            }
            all.states.resize(1, State::default());
            all.values(&Ids::Range(0..1), &mut vec![]).unwrap().as_primitive::<Float64Type>().iter().next().unwrap()
        };
        for (function, none, one) in [(VarSamp, None, None), (StddevSamp, None, None), (VarPop, None, Some(0.0)), (StddevPop, None, Some(0.0))] {
            assert_eq!((of(function, &[], 1), of(function, &[0.1], 1)), (none, one), "{function}");
            assert_eq!((of(function, &[0.1; 7], 1), of(function, &[0.1; 7], 3)), (Some(0.0), Some(0.0)), "{function}");
        }
        assert_eq!(of(VarSamp, &[1.0, 2.0, 3.0, 4.0], 2), Some(5.0 / 3.0));
        assert_eq!(of(VarPop, &[1.0, 2.0, 3.0, 4.0], 3), Some(1.25));
    }

    /// What is beyond all floats is infinite and what is of no number is NaN, in every order and however it is merged.
    #[test]
    fn what_overflows_is_infinite_and_never_negative() {
        let part = |rows: &[f64]| {
            let mut one = Moments::new(VarPop);
            let values: ArrayRef = Arc::new(Float64Array::from(rows.to_vec()));
            one.update(Some(&values), None, &vec![0; rows.len()], 1).unwrap();
            one
        };
        for (mut rows, wanted) in [
            (vec![1e308, -1e308], f64::INFINITY),
            (vec![1e308, -1e308, 0.0, 7.0], f64::INFINITY),
            (vec![f64::MAX, f64::MIN, f64::MAX, f64::MIN], f64::INFINITY),
            (vec![1e200, -1e200, 3.0, 1e308], f64::INFINITY),
            (vec![f64::INFINITY, 1.0, 2.0], f64::NAN),
            (vec![f64::NEG_INFINITY, 1e308, -1e308], f64::NAN),
            (vec![f64::NAN, 1e308, -1e308, 1.0], f64::NAN),
            (vec![f64::INFINITY], f64::NAN),
        ] {
            for turn in 0..rows.len() {
                rows.rotate_left(1);
                for at in 0..=rows.len() {
                    let (mut all, swapped) = (part(&rows[..at]), if turn % 2 == 0 { part(&rows[at..]) } else { part(&rows[at..].iter().rev().copied().collect::<Vec<_>>()) });
                    all.states.resize(1, State::default());
                    if at < rows.len() {
                        all.merge(&swapped.state(&Ids::Range(0..1)).unwrap(), &[0], 1).unwrap();
                    }
                    for function in [VarPop, StddevPop] {
                        all.function = function;
                        let got = all.values(&Ids::Range(0..1), &mut vec![]).unwrap().as_primitive::<Float64Type>().value(0);
                        assert!(got == wanted || (got.is_nan() && wanted.is_nan()), "{rows:?} at {at}: {got}");
                    }
                }
            }
        }
    }
}
