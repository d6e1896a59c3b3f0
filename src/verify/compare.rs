//! Rows against rows, as multisets: exact but for columns that depend on the order in which floats were
//! added, which agree within [`TOLERANCE`].

use arrow::array::{Array, ArrayRef, AsArray, StringArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::collections::{BTreeSet, HashMap};

/// Relative difference up to which sums, averages and deviations of floats are equal.
pub const TOLERANCE: f64 = 1e-9;

/// Turns rows into bytes that are equal when the rows are, floats that may differ left out.
pub struct Encoder {
    exact: Vec<usize>,
    inexact: Vec<usize>,
    types: Vec<DataType>,
    /// Columns that have no order and are compared by their text.
    texts: BTreeSet<usize>,
    converter: RowConverter,
}

impl Encoder {
    /// Columns `wanted` of rows with these types.
    pub fn new(types: &[DataType], wanted: &[usize], inexact: &BTreeSet<usize>) -> Result<Self, ArrowError> {
        let float = |c: &usize| inexact.contains(c) && types[*c].is_floating();
        let (loose, exact): (Vec<usize>, Vec<usize>) = wanted.iter().copied().partition(float);
        let texts: BTreeSet<usize> = exact.iter().copied().filter(|c| types[*c].is_nested()).collect();
        let field = |c: &usize| SortField::new(if texts.contains(c) { DataType::Utf8 } else { types[*c].clone() });
        let converter = RowConverter::new(exact.iter().map(field).collect())?;
        Ok(Self { exact, inexact: loose, types: types.to_vec(), texts, converter })
    }

    /// Bytes of each row, and its inexact values.
    pub fn encode(&self, batch: &RecordBatch) -> Result<Vec<(Vec<u8>, Vec<Option<f64>>)>, ArrowError> {
        let mut columns: Vec<ArrayRef> = vec![];
        for &c in &self.exact {
            let column = batch.column(c);
            let column = if column.data_type() == &self.types[c] { column.clone() } else { cast(column, &self.types[c])? };
            columns.push(if self.texts.contains(&c) { as_text(&column)? } else { column });
        }
        let loose: Vec<ArrayRef> = self.inexact.iter().map(|c| cast(batch.column(*c), &DataType::Float64)).collect::<Result<_, _>>()?;
        let value = |c: &ArrayRef, i: usize| c.is_valid(i).then(|| c.as_primitive::<Float64Type>().value(i));
        if columns.is_empty() {
            return Ok((0..batch.num_rows()).map(|i| (vec![], loose.iter().map(|c| value(c, i)).collect())).collect());
        }
        let rows = self.converter.convert_columns(&columns)?;
        Ok(rows.iter().enumerate().map(|(i, r)| (r.data().to_vec(), loose.iter().map(|c| value(c, i)).collect())).collect())
    }
}

fn as_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let shown = ArrayFormatter::try_new(column.as_ref(), &options)?;
    let each = (0..column.len()).map(|i| column.is_valid(i).then(|| shown.value(i).to_string()));
    Ok(std::sync::Arc::new(each.collect::<StringArray>()))
}

fn close(a: &[Option<f64>], b: &[Option<f64>]) -> bool {
    a.iter().zip(b).all(|pair| match pair {
        (None, None) => true,
        (Some(a), Some(b)) => a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(f64::MIN_POSITIVE),
        _ => false,
    })
}

/// A row by its place: batch and row in it.
pub type At = (usize, usize);

/// Meets rows as they are found with those that were expected.
pub struct Matcher {
    encoder: Encoder,
    expected: HashMap<Vec<u8>, Vec<(At, Vec<Option<f64>>)>>,
    pub extra: Vec<RecordBatch>,
    pub matched: u64,
}

impl Matcher {
    pub fn new(encoder: Encoder, expected: &[RecordBatch]) -> Result<Self, ArrowError> {
        let mut map: HashMap<Vec<u8>, Vec<(At, Vec<Option<f64>>)>> = HashMap::new();
        for (b, batch) in expected.iter().enumerate() {
            for (r, (bytes, loose)) in encoder.encode(batch)?.into_iter().enumerate() {
                map.entry(bytes).or_default().push(((b, r), loose));
            }
        }
        Ok(Self { encoder, expected: map, extra: vec![], matched: 0 })
    }

    /// Rows found in the table.
    pub fn found(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let mut extra = vec![];
        for (row, (bytes, loose)) in self.encoder.encode(batch)?.into_iter().enumerate() {
            let met = self.expected.get_mut(&bytes).and_then(|waiting| {
                let at = waiting.iter().position(|(_, l)| close(l, &loose))?;
                Some(waiting.swap_remove(at))
            });
            match met {
                Some(_) => self.matched += 1,
                None => extra.push(row as u32),
            }
        }
        if !extra.is_empty() {
            self.extra.push(take_record_batch(batch, &UInt32Array::from(extra))?);
        }
        Ok(())
    }

    /// Expected rows that were not found, in their order.
    pub fn missing(&self) -> Vec<At> {
        let mut missing: Vec<At> = self.expected.values().flatten().map(|(at, _)| *at).collect();
        missing.sort_unstable();
        missing
    }
}

/// A row in words: the named columns, or all of them.
pub fn show(batch: &RecordBatch, row: usize, columns: &[usize]) -> String {
    let options = FormatOptions::default().with_null("null");
    let each = columns.iter().map(|c| {
        let value = ArrayFormatter::try_new(batch.column(*c).as_ref(), &options).map_or_else(|_| "?".to_string(), |f| f.value(row).to_string());
        format!("{}={value}", batch.schema_ref().field(*c).name())
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array};
    use std::sync::Arc;

    fn batch(rows: &[(i64, f64)]) -> RecordBatch {
        let (k, v): (Vec<i64>, Vec<f64>) = rows.iter().copied().unzip();
        RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(k)) as ArrayRef), ("v", Arc::new(Float64Array::from(v)))]).unwrap()
    }

    #[test]
    fn floats_agree_within_the_tolerance_only_where_they_were_added() {
        let types = [DataType::Int64, DataType::Float64];
        let run = |inexact: &BTreeSet<usize>| {
            let mut m = Matcher::new(Encoder::new(&types, &[0, 1], inexact).unwrap(), &[batch(&[(1, 0.3), (1, 0.3), (2, 5.0), (3, f64::NAN)])]).unwrap();
            m.found(&batch(&[(1, 0.1 + 0.2), (1, 0.3), (2, 5.000_1), (3, f64::NAN)])).unwrap();
            (m.matched, m.missing(), m.extra.iter().map(|b| b.num_rows()).sum::<usize>())
        };
        assert_eq!(run(&[1].into()), (3, vec![(0, 2)], 1));
        assert_eq!(run(&BTreeSet::new()), (2, vec![(0, 1), (0, 2)], 2));
    }
}
