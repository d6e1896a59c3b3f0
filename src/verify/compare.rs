//! Rows against rows, as multisets: exact but for columns that depend on the order in which floats were
//! added, which agree within what that order can change ([`super::order`]).

use super::order::{MAYBE, within_column};
use arrow::array::{Array, ArrayRef, AsArray, StringArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::collections::{BTreeSet, HashMap};

/// Turns rows into bytes that are equal when the rows are, values that may differ left out.
pub struct Encoder {
    exact: Exact,
    floats: Vec<usize>,
    /// Other columns that were computed from floats: equal to the last bit, or of no account.
    computed: Vec<(usize, Exact)>,
}

/// Columns that are compared to the last bit.
struct Exact {
    columns: Vec<usize>,
    types: Vec<DataType>,
    converter: RowConverter,
}

impl Exact {
    fn new(columns: Vec<usize>, types: &[DataType]) -> Result<Self, ArrowError> {
        let types: Vec<DataType> = columns.iter().map(|c| types[*c].clone()).collect();
        // What has no order is compared by its text.
        let field = |t: &DataType| SortField::new(if t.is_nested() { DataType::Utf8 } else { t.clone() });
        let converter = RowConverter::new(types.iter().map(field).collect())?;
        Ok(Self { columns, types, converter })
    }

    fn encode(&self, batch: &RecordBatch) -> Result<Vec<Vec<u8>>, ArrowError> {
        if self.columns.is_empty() {
            return Ok(vec![vec![]; batch.num_rows()]);
        }
        let mut columns: Vec<ArrayRef> = vec![];
        for (c, ty) in self.columns.iter().zip(&self.types) {
            let column = batch.column(*c);
            let column = if column.data_type() == ty { column.clone() } else { cast(column, ty)? };
            columns.push(if ty.is_nested() { as_text(&column)? } else { column });
        }
        Ok(self.converter.convert_columns(&columns)?.iter().map(|r| r.data().to_vec()).collect())
    }
}

/// A value that another order of adding floats may have made another.
#[derive(Debug, Clone, PartialEq)]
pub struct Loose {
    value: Value,
    /// How far a right value may be from this one.
    within: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Null,
    Float(f64),
    Bytes(Vec<u8>),
}

impl Loose {
    /// Equal for values that are the same to the last bit.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.value {
            Value::Null => vec![0],
            Value::Float(f) => [&[1], f.to_bits().to_le_bytes().as_slice()].concat(),
            Value::Bytes(b) => [&[2], (b.len() as u64).to_le_bytes().as_slice(), b].concat(),
        }
    }

    fn admits(&self, found: &Loose) -> bool {
        let same = match (&self.value, &found.value) {
            (Value::Float(a), Value::Float(b)) => a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= self.within,
            (a, b) => a == b,
        };
        same || self.within == f64::INFINITY
    }
}

impl Encoder {
    /// Columns `wanted` of rows with these types.
    pub fn new(types: &[DataType], wanted: &[usize], inexact: &BTreeSet<usize>) -> Result<Self, ArrowError> {
        let (loose, exact): (Vec<usize>, Vec<usize>) = wanted.iter().copied().partition(|c| inexact.contains(c));
        let (floats, computed): (Vec<usize>, Vec<usize>) = loose.into_iter().partition(|c| types[*c].is_floating());
        let computed = computed.into_iter().map(|c| Ok((c, Exact::new(vec![c], types)?))).collect::<Result<_, ArrowError>>()?;
        Ok(Self { exact: Exact::new(exact, types)?, floats, computed })
    }

    /// Bytes of each row, and its values that may differ.
    pub fn encode(&self, batch: &RecordBatch) -> Result<Vec<(Vec<u8>, Vec<Loose>)>, ArrowError> {
        let mut rows: Vec<(Vec<u8>, Vec<Loose>)> = self.exact.encode(batch)?.into_iter().map(|bytes| (bytes, vec![])).collect();
        // Only rows that were computed say how far they may be off.
        let within = |c: usize| batch.column_by_name(&within_column(c)).map(|w| w.as_primitive::<Float64Type>().clone());
        for &c in &self.floats {
            let (values, within) = (cast(batch.column(c), &DataType::Float64)?, within(c));
            let values = values.as_primitive::<Float64Type>();
            for (i, (_, loose)) in rows.iter_mut().enumerate() {
                let value = if values.is_valid(i) { Value::Float(values.value(i)) } else { Value::Null };
                loose.push(Loose { value, within: within.as_ref().map_or(0.0, |w| w.value(i)) });
            }
        }
        for (c, exact) in &self.computed {
            let within = within(*c);
            for (i, ((_, loose), bytes)) in rows.iter_mut().zip(exact.encode(batch)?).enumerate() {
                loose.push(Loose { value: Value::Bytes(bytes), within: within.as_ref().map_or(0.0, |w| w.value(i)) });
            }
        }
        Ok(rows)
    }
}

fn as_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let shown = ArrayFormatter::try_new(column.as_ref(), &options)?;
    let each = (0..column.len()).map(|i| column.is_valid(i).then(|| shown.value(i).to_string()));
    Ok(std::sync::Arc::new(each.collect::<StringArray>()))
}

fn close(expected: &[Loose], found: &[Loose]) -> bool {
    expected.iter().zip(found).all(|(e, f)| e.admits(f))
}

/// A row by its place: batch and row in it.
pub type At = (usize, usize);

/// Meets rows as they are found with those that were expected.
pub struct Matcher {
    encoder: Encoder,
    expected: HashMap<Vec<u8>, Vec<(At, Vec<Loose>)>>,
    /// Rows that may be there, or not.
    optional: BTreeSet<At>,
    pub extra: Vec<RecordBatch>,
    pub matched: u64,
}

impl Matcher {
    pub fn new(encoder: Encoder, expected: &[RecordBatch]) -> Result<Self, ArrowError> {
        let mut map: HashMap<Vec<u8>, Vec<(At, Vec<Loose>)>> = HashMap::new();
        let mut optional = BTreeSet::new();
        for (b, batch) in expected.iter().enumerate() {
            if let Some(maybe) = batch.column_by_name(MAYBE).and_then(|c| c.as_boolean_opt()) {
                optional.extend((0..maybe.len()).filter(|r| maybe.value(*r)).map(|r| (b, r)));
            }
            for (r, (bytes, loose)) in encoder.encode(batch)?.into_iter().enumerate() {
                map.entry(bytes).or_default().push(((b, r), loose));
            }
        }
        Ok(Self { encoder, expected: map, optional, extra: vec![], matched: 0 })
    }

    /// Rows found in the table.
    pub fn found(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let mut extra = vec![];
        for (row, (bytes, loose)) in self.encoder.encode(batch)?.into_iter().enumerate() {
            let met = self.expected.get_mut(&bytes).and_then(|waiting| {
                // Of rows that are equal to the last bit, which may be very many, any will do.
                if loose.is_empty() {
                    return (!waiting.is_empty()).then(|| waiting.swap_remove(0));
                }
                // A row that may be far off takes no value that another one is exactly.
                let rank = |at: usize| {
                    let other = waiting[at].1.iter().zip(&loose).any(|(e, f)| e.value != f.value);
                    (other, waiting[at].1.iter().map(|e| e.within).fold(0.0, f64::max))
                };
                let close = (0..waiting.len()).filter(|at| close(&waiting[*at].1, &loose)).map(|at| (rank(at), at));
                let (_, at) = close.min_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))?;
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
        let mut missing: Vec<At> = self.expected.values().flatten().map(|(at, _)| *at).filter(|at| !self.optional.contains(at)).collect();
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
    fn floats_agree_within_what_the_order_can_change() {
        let types = [DataType::Int64, DataType::Float64];
        let wide = |within: &[f64]| {
            let rows = batch(&[(1, 0.3), (1, 0.3), (2, 5.0), (3, f64::NAN), (4, 1e300)]);
            let mut columns: Vec<(String, ArrayRef)> = rows.schema().fields().iter().zip(rows.columns()).map(|(f, c)| (f.name().clone(), c.clone())).collect();
            columns.push((within_column(1), Arc::new(Float64Array::from(within.to_vec()))));
            RecordBatch::try_from_iter(columns).unwrap()
        };
        let run = |inexact: &BTreeSet<usize>| {
            let expected = wide(&[1e-15, 1e-15, 1e-9, 1e-9, f64::INFINITY]);
            let mut m = Matcher::new(Encoder::new(&types, &[0, 1], inexact).unwrap(), &[expected]).unwrap();
            m.found(&batch(&[(1, 0.1 + 0.2), (1, 0.3), (2, 5.000_1), (3, f64::NAN), (4, 7.0)])).unwrap();
            (m.matched, m.missing(), m.extra.iter().map(|b| b.num_rows()).sum::<usize>())
        };
        assert_eq!(run(&[1].into()), (4, vec![(0, 2)], 1));
        assert_eq!(run(&BTreeSet::new()), (2, vec![(0, 1), (0, 2), (0, 4)], 3));
    }

    /// Of a hundred thousand rows that are the same none is looked for among the others.
    #[test]
    fn a_wide_row_takes_no_value_of_another_and_many_equal_ones_are_met_at_once() {
        let types = [DataType::Int64, DataType::Float64];
        let within: ArrayRef = Arc::new(Float64Array::from(vec![22.0, 0.0]));
        let rows = batch(&[(1, 4.0), (1, 1.0)]);
        let expected = RecordBatch::try_from_iter([("k".to_string(), rows.column(0).clone()), ("v".to_string(), rows.column(1).clone()), (within_column(1), within)]).unwrap();
        for found in [[(1, 1.0), (1, 4.0)], [(1, 5.0), (1, 1.0)]] {
            let mut m = Matcher::new(Encoder::new(&types, &[0, 1], &[1].into()).unwrap(), std::slice::from_ref(&expected)).unwrap();
            m.found(&batch(&found)).unwrap();
            assert_eq!((m.matched, m.extra.len()), (2, 0), "{found:?}");
        }
        let many = batch(&vec![(7, 0.5); 100_000]);
        let mut m = Matcher::new(Encoder::new(&types, &[0, 1], &BTreeSet::new()).unwrap(), std::slice::from_ref(&many)).unwrap();
        m.found(&many).unwrap();
        assert_eq!((m.matched, m.missing().len()), (100_000, 0));
    }

    #[test]
    fn a_row_that_may_be_there_is_not_missing_and_not_surplus() {
        let maybe: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true, true, false]));
        let k: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let expected = RecordBatch::try_from_iter([("k", k), (MAYBE, maybe)]).unwrap();
        let mut m = Matcher::new(Encoder::new(&[DataType::Int64], &[0], &BTreeSet::new()).unwrap(), &[expected]).unwrap();
        m.found(&RecordBatch::try_from_iter([("k", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap()).unwrap();
        assert_eq!((m.matched, m.missing(), m.extra.len()), (1, vec![(0, 2)], 0));
    }
}
