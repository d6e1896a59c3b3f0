//! Exact `count(distinct …)`.
//!
//! All pairs of group and value lie in one hash table; the values of a group are a chain through the order in
//! which they came, so that any group's state can be read and only touched groups cost anything.

use super::{Accumulator, Ids, each_live, wrong_state};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, UInt32Array, UInt64Array};
use arrow::buffer::{BooleanBuffer, OffsetBuffer};
use arrow::compute::{concat, interleave, take};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use std::sync::Arc;

const END: u32 = u32::MAX;

pub(super) struct Distinct {
    pairs: Box<dyn GroupValues>,
    counts: Vec<i64>,
    /// First and newest pair of each group.
    ends: Vec<(u32, u32)>,
    /// The pair after each pair, within its group.
    next: Vec<u32>,
    /// Values of the pairs, in the order of their ids, in pieces.
    values: Vec<ArrayRef>,
    /// For each piece, the id of its first pair.
    starts: Vec<u32>,
    input: DataType,
    ids: Vec<usize>,
}

impl Distinct {
    pub(super) fn new(input: &DataType) -> Result<Self> {
        let schema = Schema::new(vec![Field::new("group", DataType::UInt64, false), Field::new("value", input.clone(), true)]);
        let pairs = new_group_values(Arc::new(schema), &GroupOrdering::None)?;
        Ok(Self { pairs, counts: vec![], ends: vec![], next: vec![], values: vec![], starts: vec![], input: input.clone(), ids: vec![] })
    }

    fn add(&mut self, values: ArrayRef, groups: UInt64Array, total: usize) -> Result<()> {
        self.counts.resize(total, 0);
        self.ends.resize(total, (END, END));
        if values.is_empty() {
            return Ok(());
        }
        let groups = Arc::new(groups);
        self.pairs.intern(&[groups.clone(), values.clone()], &mut self.ids)?;
        let mut fresh = vec![];
        for (row, &pair) in self.ids.iter().enumerate() {
            // Ids are given in the order of first appearance: a new pair's is the next one.
            if pair != self.next.len() {
                continue;
            }
            let id = u32::try_from(pair).ok().filter(|id| *id < END).ok_or_else(|| DataFusionError::ResourcesExhausted("more than 2^32 distinct values in one pane".into()))?;
            let group = groups.value(row) as usize;
            self.next.push(END);
            match &mut self.ends[group] {
                ends @ (END, END) => *ends = (id, id),
                (_, newest) => {
                    self.next[*newest as usize] = id;
                    *newest = id;
                }
            }
            self.counts[group] += 1;
            fresh.push(row as u32);
        }
        if !fresh.is_empty() {
            self.starts.push((self.next.len() - fresh.len()) as u32);
            self.values.push(take(&values, &UInt32Array::from(fresh), None)?);
            self.join_small_pieces()?;
        }
        Ok(())
    }

    /// Joins the newest pieces while the last is not much smaller than the one before: as many pieces as a
    /// number has digits, and each value is copied as often.
    fn join_small_pieces(&mut self) -> Result<()> {
        while let [.., a, b] = self.values.as_slice() {
            if b.len() * 2 < a.len() {
                break;
            }
            let joined = concat(&[a.as_ref(), b.as_ref()])?;
            self.values.truncate(self.values.len() - 2);
            self.values.push(joined);
            self.starts.pop();
        }
        Ok(())
    }
}

impl Accumulator for Distinct {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        let values = values.ok_or_else(|| wrong_state("count distinct"))?;
        if live.is_none() {
            return self.add(values.clone(), groups.iter().map(|g| *g as u64).collect(), total);
        }
        let mut rows = vec![];
        each_live(groups.len(), live, |i| rows.push(i as u32));
        let of = rows.iter().map(|i| groups[*i as usize] as u64).collect();
        self.add(take(values, &UInt32Array::from(rows), None)?, of, total)
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        let lists = state[0].as_list_opt::<i32>().ok_or_else(|| wrong_state("count distinct"))?;
        let offsets = lists.value_offsets();
        let mut of = vec![];
        for (i, g) in groups.iter().enumerate() {
            of.extend(std::iter::repeat_n(*g as u64, (offsets[i + 1] - offsets[i]) as usize));
        }
        let first = offsets[0] as usize;
        self.add(lists.values().slice(first, of.len()), of.into(), total)
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let (mut at, mut offsets) = (vec![], vec![0i32]);
        for g in ids.iter() {
            let mut pair = self.ends[g].0;
            while pair != END {
                let piece = self.starts.partition_point(|s| *s <= pair) - 1;
                at.push((piece, (pair - self.starts[piece]) as usize));
                pair = self.next[pair as usize];
            }
            offsets.push(i32::try_from(at.len()).map_err(|_| DataFusionError::ResourcesExhausted("more than 2^31 distinct values in one run".into()))?);
        }
        let pieces: Vec<&dyn Array> = self.values.iter().map(|v| v.as_ref()).collect();
        let values = if at.is_empty() { arrow::array::new_empty_array(&self.input) } else { interleave(&pieces, &at)? };
        let field = Arc::new(Field::new("item", self.input.clone(), true));
        Ok(vec![Arc::new(ListArray::try_new(field, OffsetBuffer::new(offsets.into()), values, None)?)])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        Ok(Arc::new(ids.iter().map(|g| self.counts[g]).collect::<Int64Array>()))
    }

    fn bytes(&self) -> usize {
        self.set_bytes() + self.counts.capacity() * 8 + self.ends.capacity() * 8
    }

    fn set_bytes(&self) -> usize {
        let values: usize = self.values.iter().map(|v| v.get_array_memory_size()).sum();
        self.pairs.size() + values + self.next.capacity() * 4
    }
}
