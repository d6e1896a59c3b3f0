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
    distances: f64,
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
        each_live(groups.len(), live, |i| {
            let s = &mut self.states[groups[i]];
            s.rows += 1;
            let from_old = values[i] - s.mean;
            s.mean += from_old / s.rows as f64;
            s.distances += from_old * (values[i] - s.mean);
        });
        Ok(())
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.states.resize(total, State::default());
        let rows = state[0].as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        let mean = state[1].as_primitive_opt::<Float64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        let distances = state[2].as_primitive_opt::<Float64Type>().ok_or_else(|| wrong_state("variance"))?.values();
        for (i, g) in groups.iter().enumerate().filter(|(i, _)| rows[*i] > 0) {
            let (s, more) = (&mut self.states[*g], State { rows: rows[i], mean: mean[i], distances: distances[i] });
            if s.rows == 0 {
                *s = more;
                continue;
            }
            let (a, b) = (s.rows as f64, more.rows as f64);
            let apart = more.mean - s.mean;
            s.rows += more.rows;
            s.distances += more.distances + apart * apart * a * b / (a + b);
            s.mean += apart * b / (a + b);
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
}
