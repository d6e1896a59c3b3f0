//! Functions that make much of little: `repeat('x', 1e15)` would end the process where memory cannot be had, which no row
//! may do. What one evaluation makes is bounded; rows that ask for more fail. So do times that a function would turn into
//! others, because it counts in 64 bits of nanoseconds.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::kernels::length::length;
use arrow::compute::{cast, cast_with_options, CastOptions};
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};
use std::any::Any;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Bytes of text that one evaluation may make.
const MOST_BYTES: u64 = 64 << 20;
/// Elements of lists.
const MOST_ELEMENTS: u64 = 4 << 20;
/// Comparisons of single letters.
const MOST_STEPS: u64 = 200_000_000;

#[derive(Debug, Clone, Copy)]
enum Makes {
    Repeat,
    Pad,
    Replace,
    RegexpReplace,
    Elements,
    Range,
    Distance,
    /// A time that 64 bits of nanoseconds since 1970 hold.
    Nanoseconds,
}

const BOUNDED: [(&str, Makes); 11] = [
    ("repeat", Makes::Repeat),
    ("lpad", Makes::Pad),
    ("rpad", Makes::Pad),
    ("replace", Makes::Replace),
    ("regexp_replace", Makes::RegexpReplace),
    ("array_repeat", Makes::Elements),
    ("array_resize", Makes::Elements),
    ("range", Makes::Range),
    ("generate_series", Makes::Range),
    ("levenshtein", Makes::Distance),
    ("date_trunc", Makes::Nanoseconds),
];

/// The registry's functions of this kind, bounded: to be registered in their places.
pub(crate) fn bounded(registry: &dyn FunctionRegistry) -> Vec<Arc<ScalarUDF>> {
    let each = BOUNDED.iter().filter_map(|(name, makes)| {
        let inner = registry.udf(name).ok()?;
        Some(Arc::new(ScalarUDF::from(Bounded { inner, makes: *makes })))
    });
    each.collect()
}

#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    makes: Makes,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl ScalarUDFImpl for Bounded {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.inner().schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.inner().return_type(arg_types)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::from(Self { inner, makes: self.makes }))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.inner().return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(arg_types)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.inner().simplify(args, context)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let (made, most, what) = match self.makes {
            Makes::Repeat | Makes::Pad | Makes::Replace | Makes::RegexpReplace => (self.made(&arrays)?, MOST_BYTES, "bytes"),
            Makes::Range => (self.made(&arrays)?, MOST_ELEMENTS, "elements"),
            Makes::Elements => (self.made(&arrays)?, MOST_BYTES, "bytes"),
            Makes::Distance => (self.made(&arrays)?, MOST_STEPS, "comparisons"),
            Makes::Nanoseconds => {
                if let Some(us) = arrays.get(1).filter(|times| coarse(&arrays[0], times)).and_then(beyond_nanoseconds) {
                    let shown = chrono::DateTime::from_timestamp_micros(us).map_or_else(|| format!("{us} us"), |t| t.to_rfc3339());
                    return Err(DataFusionError::Execution(format!("{} takes times from 1677-09-22 to 2262-04-11, found {shown}", self.name())));
                }
                return self.inner.inner().invoke_with_args(args);
            }
        };
        if made > most {
            return Err(DataFusionError::Execution(format!("{} would make more than {most} {what}", self.name())));
        }
        self.inner.inner().invoke_with_args(args)
    }
}

impl Bounded {
    /// At most what these rows make, together.
    fn made(&self, args: &[ArrayRef]) -> Result<u64> {
        let (Some(first), rows) = (args.first(), args.first().map_or(0, |a| a.len())) else { return Ok(0) };
        let sum = |of: &dyn Fn(usize) -> u64| (0..rows).fold(0u64, |sum, row| sum.saturating_add(of(row)));
        Ok(match self.makes {
            Makes::Repeat => {
                let (text, times) = (lengths(first)?, numbers(args.get(1))?);
                sum(&|row| at(&text, row).saturating_mul(at(&times, row)))
            }
            Makes::Pad => {
                let to = numbers(args.get(1))?;
                sum(&|row| at(&to, row))
            }
            Makes::Elements => {
                let to = numbers(args.get(1))?;
                // What is repeated, or what an array is filled up with.
                let each = if self.name() == "array_resize" { args.get(2) } else { Some(first) };
                let sizes: Vec<u64> = match each {
                    Some(each) => (0..rows).map(|row| if at(&to, row) > 0 { size(each, row) } else { Ok(0) }).collect::<Result<_>>()?,
                    None => vec![16; rows],
                };
                sum(&|row| at(&to, row).saturating_mul(sizes[row].max(16)))
            }
            Makes::Replace | Makes::RegexpReplace => {
                let (Some(from), Some(to)) = (args.get(1), args.get(2)) else { return Ok(0) };
                let (texts, by) = (lengths(first)?, lengths(to)?);
                let most = sum(&|row| (at(&texts, row) + 1).saturating_mul(at(&by, row) + 1));
                match (most > MOST_BYTES, self.makes) {
                    (true, Makes::Replace) => {
                        let (texts, from) = (cast(first, &DataType::Utf8)?, cast(from, &DataType::Utf8)?);
                        let (texts, from) = (texts.as_string::<i32>(), from.as_string::<i32>());
                        sum(&|row| if texts.is_null(row) || from.is_null(row) { 0 } else { (texts.value(row).matches(from.value(row)).count() as u64).saturating_mul(at(&by, row)) })
                    }
                    // How often a pattern fits is not known before.
                    (true, _) => most / 16,
                    (false, _) => most,
                }
            }
            Makes::Range => {
                let (from, to) = if args.len() == 1 { (None, first) } else { (Some(first), &args[1]) };
                let (from, to) = (from.map(places).transpose()?, places(to)?);
                let step = args.get(2).map(steps).transpose()?;
                let place = |row: usize, of: &[Option<i128>]| of.get(row).copied().flatten();
                sum(&|row| {
                    let start = from.as_ref().map_or(Some(0), |from| place(row, from));
                    let step = step.as_ref().map_or(Some(1), |step| place(row, step)).unwrap_or(0).unsigned_abs();
                    match (start, place(row, &to)) {
                        (Some(start), Some(end)) if step > 0 => u64::try_from(end.abs_diff(start) / step).unwrap_or(u64::MAX),
                        _ => 0,
                    }
                })
            }
            Makes::Nanoseconds => 0,
            Makes::Distance => {
                let Some(second) = args.get(1) else { return Ok(0) };
                let (one, other) = (lengths(first)?, lengths(second)?);
                sum(&|row| at(&one, row).saturating_mul(at(&other, row)))
            }
        })
    }
}

/// Whether DataFusion counts in nanoseconds to cut times to this unit.
fn coarse(unit: &ArrayRef, times: &ArrayRef) -> bool {
    let unit = cast(unit, &DataType::Utf8).ok().filter(|u| !u.is_empty() && u.is_valid(0)).map(|u| u.as_string::<i32>().value(0).to_lowercase());
    let zoned = matches!(times.data_type(), DataType::Timestamp(_, Some(_)));
    match unit.as_deref() {
        Some("microsecond" | "millisecond" | "second" | "minute") => false,
        Some("hour" | "day") => zoned,
        _ => true,
    }
}

/// A time of these that cannot be counted in 64 bits of nanoseconds.
fn beyond_nanoseconds(times: &ArrayRef) -> Option<i64> {
    let times = times.as_primitive_opt::<TimestampMicrosecondType>()?;
    times.iter().flatten().find(|us| us.checked_mul(1000).is_none())
}

/// Bytes of a value.
fn size(values: &ArrayRef, row: usize) -> Result<u64> {
    if values.is_null(row) {
        return Ok(0);
    }
    if let Some(width) = values.data_type().primitive_width() {
        return Ok(width as u64);
    }
    if let Some(texts) = values.as_string_opt::<i32>() {
        return Ok(texts.value_length(row) as u64);
    }
    let one = arrow::compute::take(values, &Int64Array::from(vec![row as i64]), None)?;
    Ok(one.to_data().get_slice_memory_size()? as u64)
}

fn at(numbers: &Int64Array, row: usize) -> u64 {
    if numbers.is_null(row) { 0 } else { u64::try_from(numbers.value(row)).unwrap_or(0) }
}

/// Bytes of texts.
fn lengths(texts: &ArrayRef) -> Result<Int64Array> {
    let lengths = match texts.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => length(texts)?,
        _ => length(&cast(texts, &DataType::LargeUtf8)?)?,
    };
    Ok(cast(&lengths, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn numbers(array: Option<&ArrayRef>) -> Result<Int64Array> {
    let none = || Int64Array::from(Vec::<i64>::new());
    let Some(array) = array else { return Ok(none()) };
    // What is too large for this is the largest that there is.
    let cast = cast_with_options(array, &DataType::Int64, &CastOptions { safe: true, ..CastOptions::default() })?;
    let numbers = cast.as_primitive::<Int64Type>();
    Ok((0..array.len()).map(|row| if array.is_null(row) { None } else if numbers.is_null(row) { Some(i64::MAX) } else { Some(numbers.value(row)) }).collect())
}

/// The ends of a range: numbers as they are, days and times in nanoseconds.
fn places(array: &ArrayRef) -> Result<Vec<Option<i128>>> {
    const DAY_NS: i128 = 86_400_000_000_000;
    let unit = match array.data_type() {
        DataType::Date32 => DAY_NS,
        DataType::Timestamp(TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(TimeUnit::Millisecond, _) => 1_000_000,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1_000,
        _ => 1,
    };
    let plain = if array.data_type() == &DataType::Date32 { cast(array, &DataType::Int32)? } else { array.clone() };
    let numbers = cast(&plain, &DataType::Int64)?;
    Ok(numbers.as_primitive::<Int64Type>().iter().map(|n| n.map(|n| i128::from(n) * unit)).collect())
}

fn steps(array: &ArrayRef) -> Result<Vec<Option<i128>>> {
    const DAY_NS: i128 = 86_400_000_000_000;
    match array.as_primitive_opt::<IntervalMonthDayNanoType>() {
        Some(intervals) => Ok(intervals.iter().map(|i| i.map(|i| (i128::from(i.months) * 28 + i128::from(i.days)) * DAY_NS + i128::from(i.nanoseconds))).collect()),
        None => places(array),
    }
}
