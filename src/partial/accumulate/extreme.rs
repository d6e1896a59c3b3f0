//! Smallest and largest values. `bool_and` is the smallest boolean, `bool_or` the largest.

use super::{Accumulator, Ids, each_live, valid, wrong_state};
use arrow::array::{ArrayRef, ArrowNativeTypeOp, AsArray, BinaryBuilder, BooleanArray, FixedSizeBinaryBuilder, PrimitiveArray, StringBuilder};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use datafusion::error::{DataFusionError, Result};
use std::sync::Arc;

pub(super) fn new(input: &DataType, smallest: bool) -> Result<Box<dyn Accumulator>> {
    fn numbers<T: ArrowPrimitiveType>(input: &DataType, smallest: bool) -> Box<dyn Accumulator> {
        floats::<T>(input, smallest, |v| v)
    }
    fn floats<T: ArrowPrimitiveType>(input: &DataType, smallest: bool, kept: fn(T::Native) -> T::Native) -> Box<dyn Accumulator> {
        Box::new(Numbers::<T> { newest: vec![], has: vec![], input: input.clone(), smallest, kept })
    }
    Ok(match input {
        DataType::Boolean => Box::new(Booleans { newest: vec![], smallest }),
        DataType::Int32 => numbers::<Int32Type>(input, smallest),
        DataType::Int64 => numbers::<Int64Type>(input, smallest),
        DataType::Float32 => floats::<Float32Type>(input, smallest, |v| if v.is_nan() { f32::NAN } else { v }),
        DataType::Float64 => floats::<Float64Type>(input, smallest, |v| if v.is_nan() { f64::NAN } else { v }),
        DataType::Decimal128(_, _) => numbers::<Decimal128Type>(input, smallest),
        DataType::Date32 => numbers::<Date32Type>(input, smallest),
        DataType::Time64(_) => numbers::<Time64MicrosecondType>(input, smallest),
        DataType::Timestamp(_, _) => numbers::<TimestampMicrosecondType>(input, smallest),
        DataType::Utf8 | DataType::Binary | DataType::FixedSizeBinary(_) => Box::new(Bytes { newest: vec![], heap: 0, input: input.clone(), smallest }),
        other => return Err(DataFusionError::Internal(format!("min of {other} was planned"))),
    })
}

/// Floats are in IEEE 754's total order with one NaN above all numbers.
struct Numbers<T: ArrowPrimitiveType> {
    newest: Vec<T::Native>,
    has: Vec<bool>,
    input: DataType,
    smallest: bool,
    /// The value as it is kept: what stands above the aggregate orders one NaN by its bits.
    kept: fn(T::Native) -> T::Native,
}

impl<T: ArrowPrimitiveType> Numbers<T> {
    fn take(&mut self, values: &ArrayRef, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.newest.resize(total, T::Native::default());
        self.has.resize(total, false);
        let values = values.as_primitive_opt::<T>().ok_or_else(|| wrong_state("min or max"))?.values();
        let (newest, has, smallest, kept) = (&mut self.newest, &mut self.has, self.smallest, self.kept);
        each_live(groups.len(), live, |i| {
            let (g, v) = (groups[i], values[i]);
            // Arrow orders a NaN with its sign bit set below all numbers; a NaN differs from itself.
            let is_nan = |v: T::Native| v.partial_cmp(&v).is_none();
            let less = |a: T::Native, b: T::Native| if is_nan(a) || is_nan(b) { !is_nan(a) } else { a.is_lt(b) };
            if !has[g] || (if smallest { less(v, newest[g]) } else { less(newest[g], v) }) {
                newest[g] = kept(v);
                has[g] = true;
            }
        });
        Ok(())
    }
}

impl<T: ArrowPrimitiveType> Accumulator for Numbers<T> {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.take(values.ok_or_else(|| wrong_state("min or max"))?, live, groups, total)
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.take(&state[0], valid(&state[0]).as_ref(), groups, total)
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let column: PrimitiveArray<T> = ids.iter().map(|g| self.has[g].then(|| self.newest[g])).collect();
        Ok(vec![Arc::new(column.with_data_type(self.input.clone()))])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        Ok(self.state(ids)?.remove(0))
    }

    fn bytes(&self) -> usize {
        self.newest.capacity() * size_of::<T::Native>() + self.has.capacity()
    }
}

struct Booleans {
    newest: Vec<Option<bool>>,
    smallest: bool,
}

impl Booleans {
    fn take(&mut self, values: &ArrayRef, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.newest.resize(total, None);
        let values = values.as_boolean_opt().ok_or_else(|| wrong_state("a boolean aggregate"))?;
        let (newest, smallest) = (&mut self.newest, self.smallest);
        each_live(groups.len(), live, |i| {
            let (v, at) = (values.value(i), &mut newest[groups[i]]);
            *at = Some(at.map_or(v, |old| if smallest { old && v } else { old || v }));
        });
        Ok(())
    }
}

impl Accumulator for Booleans {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.take(values.ok_or_else(|| wrong_state("a boolean aggregate"))?, live, groups, total)
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.take(&state[0], valid(&state[0]).as_ref(), groups, total)
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        Ok(vec![Arc::new(ids.iter().map(|g| self.newest[g]).collect::<BooleanArray>())])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        Ok(self.state(ids)?.remove(0))
    }

    fn bytes(&self) -> usize {
        self.newest.capacity()
    }
}

/// Strings and binaries, by their bytes.
struct Bytes {
    newest: Vec<Option<Box<[u8]>>>,
    heap: usize,
    input: DataType,
    smallest: bool,
}

impl Bytes {
    fn take(&mut self, values: &ArrayRef, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.newest.resize(total, None);
        let (newest, heap, smallest) = (&mut self.newest, &mut self.heap, self.smallest);
        let mut offer = |g: usize, v: &[u8]| {
            let at = &mut newest[g];
            if at.as_deref().is_none_or(|old| if smallest { v < old } else { v > old }) {
                *heap = *heap + v.len() - at.as_ref().map_or(0, |old| old.len());
                *at = Some(v.into());
            }
        };
        if let Some(v) = values.as_string_opt::<i32>() {
            each_live(groups.len(), live, |i| offer(groups[i], v.value(i).as_bytes()));
        } else if let Some(v) = values.as_binary_opt::<i32>() {
            each_live(groups.len(), live, |i| offer(groups[i], v.value(i)));
        } else if let Some(v) = values.as_fixed_size_binary_opt() {
            each_live(groups.len(), live, |i| offer(groups[i], v.value(i)));
        } else {
            return Err(wrong_state("min or max"));
        }
        Ok(())
    }
}

impl Accumulator for Bytes {
    fn update(&mut self, values: Option<&ArrayRef>, live: Option<&BooleanBuffer>, groups: &[usize], total: usize) -> Result<()> {
        self.take(values.ok_or_else(|| wrong_state("min or max"))?, live, groups, total)
    }

    fn merge(&mut self, state: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.take(&state[0], valid(&state[0]).as_ref(), groups, total)
    }

    fn state(&self, ids: &Ids<'_>) -> Result<Vec<ArrayRef>> {
        let each = ids.iter().map(|g| self.newest[g].as_deref());
        Ok(vec![match &self.input {
            DataType::Utf8 => {
                let mut b = StringBuilder::new();
                for v in each {
                    // What came from a string column is valid UTF-8.
                    b.append_option(v.map(std::str::from_utf8).transpose().map_err(|_| wrong_state("min or max"))?);
                }
                Arc::new(b.finish()) as ArrayRef
            }
            DataType::FixedSizeBinary(width) => {
                let mut b = FixedSizeBinaryBuilder::new(*width);
                for v in each {
                    match v {
                        Some(v) => b.append_value(v)?,
                        None => b.append_null(),
                    }
                }
                Arc::new(b.finish())
            }
            _ => {
                let mut b = BinaryBuilder::new();
                each.for_each(|v| b.append_option(v));
                Arc::new(b.finish())
            }
        }])
    }

    fn values(&self, ids: &Ids<'_>, _: &mut Vec<usize>) -> Result<ArrayRef> {
        Ok(self.state(ids)?.remove(0))
    }

    fn bytes(&self) -> usize {
        self.newest.capacity() * size_of::<Option<Box<[u8]>>>() + self.heap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Float64Array;

    /// Every NaN is the same one, above all numbers, whichever came first; infinities and zeros are in their order.
    #[test]
    fn the_ends_of_floats_are_in_total_order() {
        let odd = -f64::NAN;
        for (rows, least, most) in [
            (&[odd, 1.5][..], 1.5, f64::NAN),
            (&[1.5, odd, f64::NAN], 1.5, f64::NAN),
            (&[odd], f64::NAN, f64::NAN),
            (&[f64::NEG_INFINITY], f64::NEG_INFINITY, f64::NEG_INFINITY),
            (&[f64::INFINITY, odd, f64::NEG_INFINITY], f64::NEG_INFINITY, f64::NAN),
            (&[0.0, -0.0], -0.0, 0.0),
            (&[-0.0, 0.0], -0.0, 0.0),
        ] {
            for (smallest, wanted) in [(true, least), (false, most)] {
                let mut ends = new(&DataType::Float64, smallest).unwrap();
                for row in rows {
                    let mut part = new(&DataType::Float64, smallest).unwrap();
                    part.update(Some(&(Arc::new(Float64Array::from(vec![*row])) as ArrayRef)), None, &[0], 1).unwrap();
                    ends.merge(&part.state(&Ids::Range(0..1)).unwrap(), &[0], 1).unwrap();
                }
                let got = ends.values(&Ids::Range(0..1), &mut vec![]).unwrap().as_primitive::<Float64Type>().value(0);
                assert_eq!(got.to_bits(), wanted.to_bits(), "{rows:?}: {got}");
            }
        }
    }
}
