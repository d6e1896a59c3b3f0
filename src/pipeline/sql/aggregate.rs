//! The aggregates that a table may use, and the state that each leaves in a run.
//!
//! A run outlives the program that wrote it, so the state of an aggregate is fixed here and nowhere
//! else. It is wide enough that no number of rows can make it wrap: what does not fit its declared
//! type is found when it is emitted, not before, and never poisons a pane.

use arrow::datatypes::{DataType, Field};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateFunction {
    Count,
    CountDistinct,
    Sum,
    Avg,
    Min,
    Max,
    BoolAnd,
    BoolOr,
    VarSamp,
    VarPop,
    StddevSamp,
    StddevPop,
}

/// One aggregate of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateCall {
    pub function: AggregateFunction,
    /// Column of [`super::Aggregate::input`] that it reads; `None` is `count(*)`.
    pub arg: Option<usize>,
    /// Boolean column of [`super::Aggregate::input`]; rows that are not true are left out.
    pub filter: Option<usize>,
    /// Type of the argument; `Null` without one.
    pub input: DataType,
    pub output: DataType,
    /// What users know the result by: the output column, else the SQL of the aggregate.
    pub label: String,
}

/// Decimals up to this precision are summed in 128 bits: 2^63 of them stay below 10^38.
pub(crate) const NARROW_PRECISION: u8 = 19;
pub(crate) const WIDE: u8 = 76;

impl AggregateCall {
    /// The types of the columns that hold this aggregate's state in a run, in order:
    ///
    /// | aggregate | state |
    /// |---|---|
    /// | count | rows |
    /// | count distinct | list of the values |
    /// | sum | the sum (null: no value yet): `decimal(38,0)` for integers, `decimal(38,s)` for decimals of at most 19 digits, `decimal256(76,s)` for wider ones, float64 |
    /// | avg | the sum as above, then rows |
    /// | min, max, bool_and, bool_or | the value so far (null: none yet) |
    /// | variance, stddev | rows, mean, sum of squared distances from the mean |
    pub fn state(&self) -> Vec<DataType> {
        use AggregateFunction::*;
        match self.function {
            Count => vec![DataType::Int64],
            CountDistinct => vec![DataType::List(Arc::new(Field::new("item", self.input.clone(), true)))],
            Sum => vec![sum_state(&self.input)],
            Avg => vec![sum_state(&self.input), DataType::Int64],
            Min | Max => vec![self.input.clone()],
            BoolAnd | BoolOr => vec![DataType::Boolean],
            VarSamp | VarPop | StddevSamp | StddevPop => vec![DataType::Int64, DataType::Float64, DataType::Float64],
        }
    }
}

fn sum_state(input: &DataType) -> DataType {
    match input {
        DataType::Int64 => DataType::Decimal128(38, 0),
        DataType::Decimal128(p, s) if *p <= NARROW_PRECISION => DataType::Decimal128(38, *s),
        DataType::Decimal128(_, s) => DataType::Decimal256(WIDE, *s),
        _ => DataType::Float64,
    }
}

/// The type of a result, or why this argument cannot be aggregated so.
pub(super) fn output_type(function: AggregateFunction, input: &DataType) -> Result<DataType, String> {
    use AggregateFunction::*;
    let not = |what: &str| Err(format!("{what} of {} is not supported; cast the argument", super::types::describe(input)));
    Ok(match (function, input) {
        (Count | CountDistinct, _) => DataType::Int64,
        (Sum, DataType::Int64) => DataType::Int64,
        (Sum, DataType::Float64) => DataType::Float64,
        (Sum, DataType::Decimal128(p, s)) => DataType::Decimal128((p + 10).min(38), *s),
        (Sum, _) => return not("sum"),
        (Avg, DataType::Int64 | DataType::Float64) => DataType::Float64,
        (Avg, DataType::Decimal128(p, s)) => DataType::Decimal128((p + 4).min(38), (s + 4).min(38)),
        (Avg, _) => return not("avg"),
        (Min | Max, t) if comparable(t) => t.clone(),
        (Min | Max, _) => return not("min and max"),
        (BoolAnd | BoolOr, DataType::Boolean) => DataType::Boolean,
        (BoolAnd | BoolOr, _) => return not("bool_and and bool_or"),
        (VarSamp | VarPop | StddevSamp | StddevPop, DataType::Float64) => DataType::Float64,
        (VarSamp | VarPop | StddevSamp | StddevPop, _) => return not("stddev and variance"),
    })
}

fn comparable(t: &DataType) -> bool {
    use DataType::*;
    matches!(
        t,
        Boolean | Int32 | Int64 | Float32 | Float64 | Decimal128(_, _) | Utf8 | Binary | FixedSizeBinary(_) | Date32 | Time64(_) | Timestamp(_, _)
    )
}

impl std::fmt::Display for AggregateFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use AggregateFunction::*;
        f.write_str(match self {
            Count => "count",
            CountDistinct => "count_distinct",
            Sum => "sum",
            Avg => "avg",
            Min => "min",
            Max => "max",
            BoolAnd => "bool_and",
            BoolOr => "bool_or",
            VarSamp => "var_samp",
            VarPop => "var_pop",
            StddevSamp => "stddev_samp",
            StddevPop => "stddev_pop",
        })
    }
}
