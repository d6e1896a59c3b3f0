//! The sets of `count(distinct …)` taken apart, where the values of one group are more than memory is for.
//!
//! By a hash of the values into parts, each of which can be counted by itself; and by their places into rows
//! of bounded size. A part or a row holds a group's other states or nothing of them, so that all of them add up to
//! what they were made of.

use super::accumulate::{Ids, accumulator};
use crate::pipeline::sql::{Aggregate, AggregateCall, AggregateFunction};
use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt32Array, new_empty_array};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{filter_record_batch, interleave, take, take_arrays};
use arrow::datatypes::DataType;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::row::{RowConverter, SortField};
use datafusion::error::{DataFusionError, Result};
use std::ops::Range;
use std::sync::Arc;
use twox_hash::XxHash3_64;

/// Values that are hashed at once.
const HASHED: usize = 1 << 16;

/// Whether the states of this aggregate hold sets.
pub fn has_sets(aggregate: &Aggregate) -> bool {
    aggregate.calls.iter().any(is_set)
}

pub fn is_set(call: &AggregateCall) -> bool {
    call.function == AggregateFunction::CountDistinct
}

/// What these rows of state have of each of [`PARTS`] parts of the values, chosen by a hash; another choice on each of [`LEVELS`]
/// levels. What is no set belongs to the first part. Key columns come first, however many; rows that have nothing of
/// a part are left out of it.
pub fn parted(aggregate: &Aggregate, batch: &RecordBatch, level: u32) -> Result<Vec<RecordBatch>> {
    let rows = batch.num_rows();
    let mut at = keys(aggregate, batch);
    let mut columns = vec![batch.columns()[..at].to_vec(); PARTS];
    let mut there = vec![vec![false; rows]; PARTS];
    there[0] = vec![true; rows];
    for call in &aggregate.calls {
        let state = &batch.columns()[at..at + call.state().len()];
        at += state.len();
        if is_set(call) {
            for (part, lists) in parted_lists(lists(&state[0])?, level)?.into_iter().enumerate() {
                there[part].iter_mut().zip(lists.offsets().lengths()).for_each(|(there, values)| *there |= values > 0);
                columns[part].push(Arc::new(lists));
            }
            continue;
        }
        columns[0].extend_from_slice(state);
        let nothing = take_arrays(&nothing(call)?, &UInt32Array::from(vec![0; rows]), None)?;
        columns[1..].iter_mut().for_each(|of_part| of_part.extend_from_slice(&nothing));
    }
    let parts = columns.into_iter().zip(there).map(|(columns, there)| Ok(filter_record_batch(&with_rows(batch, columns, rows)?, &there.into())?));
    parts.collect()
}

/// Parts of sets on one level, and levels.
pub const PARTS: usize = 1 << BITS;
pub const LEVELS: u32 = 4;
const BITS: u32 = 4;

fn parted_lists(lists: &ListArray, level: u32) -> Result<Vec<ListArray>> {
    let offsets = lists.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[lists.len()] as usize);
    let values = lists.values().slice(first, last - first);
    let converter = RowConverter::new(vec![SortField::new(values.data_type().clone())])?;
    let mut part_of = Vec::with_capacity(values.len());
    for from in (0..values.len()).step_by(HASHED) {
        let some = converter.convert_columns(&[values.slice(from, HASHED.min(values.len() - from))])?;
        part_of.extend(some.iter().map(|value| (XxHash3_64::oneshot(value.as_ref()) >> (level * BITS)) as usize % PARTS));
    }
    let (mut places, mut lengths) = (vec![vec![]; PARTS], vec![Vec::with_capacity(lists.len()); PARTS]);
    for of_row in offsets.windows(2) {
        let before: Vec<usize> = places.iter().map(Vec::len).collect();
        for place in of_row[0] as usize - first..of_row[1] as usize - first {
            places[part_of[place]].push(place as u32);
        }
        lengths.iter_mut().zip(&places).zip(before).for_each(|((lengths, places), before)| lengths.push(places.len() - before));
    }
    let list = |(places, lengths): (Vec<u32>, Vec<usize>)| {
        let values = take(&values, &UInt32Array::from(places), None)?;
        Ok(ListArray::try_new(item(lists), OffsetBuffer::from_lengths(lengths), values, None)?)
    };
    places.into_iter().zip(lengths).map(list).collect()
}

/// Rows of state, of which each holds no more of a set than it should.
pub struct Pieces {
    pub batch: RecordBatch,
    /// For each row, which one it was a piece of.
    pub of: Vec<u32>,
    /// For each row, the bytes of its sets, about.
    bytes: Vec<usize>,
}

impl Pieces {
    /// Takes the rows apart whose sets take more than `most_bytes` each. Pieces of a row lie side by side, in its order.
    pub fn new(aggregate: &Aggregate, batch: &RecordBatch, most_bytes: usize) -> Result<Self> {
        let n = batch.num_rows();
        let mut at = keys(aggregate, batch);
        // How many pieces each row makes, and what its sets take.
        let (mut pieces, mut bytes) = (vec![1; n], vec![0; n]);
        for call in &aggregate.calls {
            if is_set(call) {
                let lists = lists(batch.column(at))?;
                let width = width(lists);
                for (row, values) in lists.offsets().lengths().enumerate() {
                    bytes[row] += values * width;
                    pieces[row] = pieces[row].max((values * width).div_ceil(most_bytes.max(1)).min(values));
                }
            }
            at += call.state().len();
        }
        let of: Vec<u32> = (0..n).flat_map(|row| std::iter::repeat_n(row as u32, pieces[row])).collect();
        let bytes = of.iter().map(|row| bytes[*row as usize] / pieces[*row as usize]).collect();
        if of.len() == n {
            return Ok(Self { batch: batch.clone(), of, bytes });
        }
        let index = UInt32Array::from(of.clone());
        let mut at = keys(aggregate, batch);
        let mut columns = take_arrays(&batch.columns()[..at], &index, None)?;
        for call in &aggregate.calls {
            let state = &batch.columns()[at..at + call.state().len()];
            at += state.len();
            if is_set(call) {
                columns.push(Arc::new(cut_lists(lists(&state[0])?, &pieces)?));
                continue;
            }
            // The first piece has what is no set.
            let places: Vec<(usize, usize)> = of.iter().enumerate().map(|(i, row)| if i > 0 && of[i - 1] == *row { (1, 0) } else { (0, *row as usize) }).collect();
            for (state, nothing) in state.iter().zip(nothing(call)?) {
                columns.push(interleave(&[state.as_ref(), nothing.as_ref()], &places)?);
            }
        }
        Ok(Self { batch: with_rows(batch, columns, of.len())?, of, bytes })
    }

    /// Neighbouring rows, together up to about so many and so many bytes. `joined` says of two neighbours that they should
    /// stay together where the bytes allow it, by the numbers of the rows that they are pieces of.
    pub fn blocks(&self, most_rows: usize, most_bytes: usize, joined: impl Fn(u32, u32) -> bool) -> Vec<Range<usize>> {
        let mut blocks = vec![];
        let (mut from, mut bytes) = (0, 0);
        for (row, more) in self.bytes.iter().enumerate() {
            let full = row - from >= most_rows && !joined(self.of[row - 1], self.of[row]);
            if row > from && (full || *more > 0 && bytes + more > most_bytes) {
                blocks.push(from..row);
                (from, bytes) = (row, 0);
            }
            bytes += more;
        }
        if from < self.bytes.len() {
            blocks.push(from..self.bytes.len());
        }
        blocks
    }
}

/// As many lists of each row as it makes pieces, of about the same length.
fn cut_lists(lists: &ListArray, pieces: &[usize]) -> Result<ListArray> {
    let offsets = lists.value_offsets();
    let mut cut = vec![offsets[0]];
    for (row, pieces) in pieces.iter().enumerate() {
        let (from, values) = (offsets[row] as i64, (offsets[row + 1] - offsets[row]) as i64);
        cut.extend((1..=*pieces as i64).map(|nth| (from + values * nth / *pieces as i64) as i32));
    }
    Ok(ListArray::try_new(item(lists), OffsetBuffer::new(cut.into()), lists.values().clone(), None)?)
}

/// Bytes of a value, about.
fn width(lists: &ListArray) -> usize {
    let offsets = lists.value_offsets();
    let (first, last) = (offsets[0] as usize, offsets[lists.len()] as usize);
    let values = lists.values().slice(first, last - first);
    let bytes = values.to_data().get_slice_memory_size().unwrap_or_else(|_| values.get_array_memory_size());
    (bytes / values.len().max(1)).max(1)
}

/// The state of a group without rows: one row.
fn nothing(call: &AggregateCall) -> Result<Vec<ArrayRef>> {
    let mut none = accumulator(call)?;
    let empty: Vec<ArrayRef> = call.state().iter().map(new_empty_array).collect();
    none.merge(&empty, &[], 1)?;
    none.state(&Ids::Range(0..1))
}

/// How many columns come before the states.
fn keys(aggregate: &Aggregate, batch: &RecordBatch) -> usize {
    batch.num_columns() - aggregate.calls.iter().map(|c| c.state().len()).sum::<usize>()
}

fn lists(state: &ArrayRef) -> Result<&ListArray> {
    state.as_list_opt::<i32>().ok_or_else(|| DataFusionError::Internal(format!("a set is a {}", state.data_type())))
}

fn item(lists: &ListArray) -> arrow::datatypes::FieldRef {
    match lists.data_type() {
        DataType::List(item) => item.clone(),
        other => unreachable!("a list array is a {other}"),
    }
}

fn with_rows(like: &RecordBatch, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    Ok(RecordBatch::try_new_with_options(like.schema(), columns, &RecordBatchOptions::new().with_row_count(Some(rows)))?)
}
