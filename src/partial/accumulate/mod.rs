//! Accumulators: the state of one aggregate for many groups.
//!
//! Unlike those of a query engine they are read without being consumed, and for any choice of groups:
//! a pane emits, lives on, and a correction costs what it changed.

mod distinct;
mod extreme;
mod moments;
mod sum;

use crate::pipeline::sql::{AggregateCall, AggregateFunction, Aggregate};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use std::ops::Range;
use std::sync::Arc;

/// A choice of groups, in order.
#[derive(Debug, Clone)]
pub enum Ids<'a> {
    Range(Range<usize>),
    List(&'a [usize]),
}

impl Ids<'_> {
    pub fn len(&self) -> usize {
        match self {
            Ids::Range(r) => r.len(),
            Ids::List(l) => l.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let (range, list) = match self {
            Ids::Range(r) => (r.clone(), &[][..]),
            Ids::List(l) => (0..0, *l),
        };
        range.chain(list.iter().copied())
    }
}

/// The state of one aggregate for groups `0..total`.
pub trait Accumulator: Send {
    /// Adds rows: row `i` belongs to group `groups[i]`, all below `total`. Only rows set in `live` count (all of
    /// them when it is `None`): neither null nor filtered out. `values` is `None` for `count(*)`.
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()>;

    /// Adds states: columns as [`AggregateCall::state`] says, row `i` to group `groups[i]`.
    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()>;

    /// The states of these groups.
    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>>;

    /// The results of these groups. One that its type cannot hold is null, and its position in `ids` is added to `unfit`.
    fn values(&self, ids: &Ids<'_>, unfit: &mut Vec<usize>) -> Result<ArrayRef>;

    /// Memory held, about.
    fn bytes(&self) -> usize;

    /// Of these, what sets of values take.
    fn set_bytes(&self) -> usize {
        0
    }
}

/// An accumulator without groups.
pub fn accumulator(call: &AggregateCall) -> Result<Box<dyn Accumulator>> {
    use AggregateFunction::*;
    Ok(match call.function {
        Count => Box::new(Count64::default()),
        CountDistinct => Box::new(distinct::Distinct::new(&call.input)?),
        Sum | Avg => sum::new(call)?,
        Min | Max => extreme::new(&call.input, call.function == Min)?,
        BoolAnd => extreme::new(&call.input, true)?,
        BoolOr => extreme::new(&call.input, false)?,
        VarSamp | VarPop | StddevSamp | StddevPop => Box::new(moments::Moments::new(call.function)),
    })
}

/// One accumulator for each call of a table's aggregate.
pub struct Accumulators {
    each: Vec<Box<dyn Accumulator>>,
    /// How many columns of a run each has.
    widths: Vec<usize>,
}

impl Accumulators {
    pub fn new(aggregate: &Aggregate) -> Result<Self> {
        let each = aggregate.calls.iter().map(accumulator).collect::<Result<_>>()?;
        Ok(Self { each, widths: aggregate.calls.iter().map(|c| c.state().len()).collect() })
    }

    /// Adds rows of [`Aggregate::input`].
    pub fn update(&mut self, aggregate: &Aggregate, batch: &RecordBatch, groups: &[usize], total: usize) -> Result<()> {
        for (acc, call) in self.each.iter_mut().zip(&aggregate.calls) {
            let values = call.arg.map(|i| batch.column(i));
            let filter = call.filter.map(|i| batch.column(i).as_boolean());
            let live = live(values, filter);
            acc.update(values, live.as_ref(), groups, total)?;
        }
        Ok(())
    }

    /// Adds the state columns of a run.
    pub fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        let mut at = 0;
        for (acc, width) in self.each.iter_mut().zip(&self.widths) {
            acc.merge(&state[at..at + width], groups, total)?;
            at += width;
        }
        Ok(())
    }

    pub fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let mut columns = vec![];
        for acc in &self.each {
            columns.extend(acc.state(ids)?);
        }
        Ok(columns)
    }

    /// The results, and for each call the positions in `ids` whose result did not fit.
    pub fn values(&self, ids: &Ids<'_>) -> Result<(Vec<ArrayRef>, Vec<Vec<usize>>)> {
        let mut unfit = vec![vec![]; self.each.len()];
        let columns = self.each.iter().zip(&mut unfit).map(|(acc, unfit)| acc.values(ids, unfit)).collect::<Result<_>>()?;
        Ok((columns, unfit))
    }

    pub fn bytes(&self) -> usize {
        self.each.iter().map(|a| a.bytes()).sum()
    }

    /// What sets of values take of the memory.
    pub fn set_bytes(&self) -> usize {
        self.each.iter().map(|a| a.set_bytes()).sum()
    }
}

fn live(values: Option<&ArrayRef>, filter: Option<&BooleanArray>) -> Option<BooleanBuffer> {
    let valid = values.and_then(|v| v.logical_nulls()).filter(|n| n.null_count() > 0).map(NullBuffer::into_inner);
    let passed = filter.map(|f| match f.nulls() {
        Some(n) => f.values() & n.inner(),
        None => f.values().clone(),
    });
    match (valid, passed) {
        (Some(a), Some(b)) => Some(&a & &b),
        (a, b) => a.or(b),
    }
}

/// Calls `f` for each live row.
fn each_live(rows: usize, live: Option<&BooleanBuffer>, mut f: impl FnMut(usize)) {
    match live {
        None => (0..rows).for_each(f),
        Some(live) => live.set_indices().for_each(&mut f),
    }
}

/// Live rows of a state column.
fn valid(state: &ArrayRef) -> Option<BooleanBuffer> {
    live(Some(state), None)
}

fn wrong_state(what: &str) -> DataFusionError {
    DataFusionError::Internal(format!("the state of {what} does not have the type that its plan gives it"))
}

#[derive(Default)]
struct Count64 {
    rows: Vec<i64>,
}

impl Accumulator for Count64 {
    fn update(&mut self, _: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.rows.resize(total, 0);
        each_live(groups.len(), live, |i| self.rows[groups[i]] += 1);
        Ok(())
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.rows.resize(total, 0);
        let more = state[0].as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_state("count"))?;
        groups.iter().zip(more.values()).for_each(|(g, n)| self.rows[*g] += n);
        Ok(())
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        Ok(vec![Arc::new(ids.iter().map(|g| self.rows[g]).collect::<Int64Array>())])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        Ok(self.state(ids)?.remove(0))
    }

    fn bytes(&self) -> usize {
        self.rows.capacity() * 8
    }
}
