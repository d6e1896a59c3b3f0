//! The plan of a table's SQL, split at the aggregate.
//!
//! ```text
//!   source columns ─► below (filter, project: row by row) ─► aggregate ─► above (row by row) ─► table
//! ```
//!
//! DataFusion resolves names and types; what comes out of it is a list of physical expressions per
//! part, and the plan of the aggregate's state. Nothing is optimized across the parts, so that the same
//! SQL has the same state in every version.
//!
//! What a user can rely on:
//! - integer and decimal arithmetic never wraps: a row for which it would becomes a dead letter;
//! - a number with a point is a decimal, not a float;
//! - in a group key, and in `count(distinct …)`, all NaN are one value and -0.0 is 0.0; `min` and `max` order NaN above all
//!   numbers, and -0.0 below 0.0;
//! - variance and stddev of a NaN or an infinity are NaN; of finite values that are too far apart they are infinite;
//! - `avg` of decimals has four more digits and is rounded half away from zero;
//! - a uuid is compared with the text that names it, and cast to a text in lower case with hyphens.

mod aggregate;
mod bounded;
mod error;
mod evaluate;
mod functions;
mod isolate;
mod names;
mod split;
mod statement;
#[cfg(test)]
pub(crate) mod tests;
mod types;
mod uuids;
mod window;

pub use aggregate::{AggregateCall, AggregateFunction};
pub use error::{Place, SqlError};
pub(crate) use bounded::bounded;
pub(crate) use evaluate::{caught, values};
#[cfg(test)]
pub(crate) use functions::scalar_functions;
pub(crate) use aggregate::{NARROW_PRECISION, WIDE};
pub(crate) use uuids::write_out as write_uuids_out;
pub use window::{Align, Tumble};

use crate::pipeline::{Emit, SourceSpec, TableDecl, Variables};
use arrow::array::{ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::physical_expr::PhysicalExpr;
use std::sync::Arc;

/// The column that an append-only aggregated table has after its own: `insert` or `retract`.
pub const OP: &str = "_op";

/// What one table does with the rows of its source.
#[derive(Debug)]
pub struct TablePlan {
    pub table: String,
    /// The source that it reads.
    pub source: String,
    /// The source columns that it reads, in the order of their declaration; the watermark column is
    /// among them when the table is windowed.
    pub scan: Vec<String>,
    /// Types of [`TablePlan::scan`].
    pub scan_schema: SchemaRef,
    /// Position in `scan` of the watermark column of a windowed table.
    pub time: Option<usize>,
    /// What is done to each row before it is aggregated, or before it is the table's row. The steps read the scan
    /// columns, followed by `window_start` and `window_end` when the table is windowed.
    pub below: Vec<Step>,
    pub window: Option<Tumble>,
    /// `None`: the output of `below` is the table.
    pub aggregate: Option<Aggregate>,
    /// What is done to each row of [`Aggregate::output`] to make it the table's row; ends in a projection.
    pub above: Vec<Step>,
    /// The table's columns. An append-only aggregated table has [`OP`] as its last one.
    pub output: SchemaRef,
    /// Output columns; empty for an append-only table.
    pub key: Vec<String>,
    /// Rows are replaced by key.
    pub upsert: bool,
    /// What stands for others in the SQL: reasons of dead letters do not show it.
    pub variables: Variables,
}

/// One row-wise step.
#[derive(Debug, Clone)]
pub enum Step {
    /// Rows for which it is not true are left out.
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Projected>, SchemaRef),
}

/// A computed column.
#[derive(Debug, Clone)]
pub struct Projected {
    pub expr: Arc<dyn PhysicalExpr>,
    /// Result type where decimal arithmetic may have left more digits than it allows.
    pub digits: Option<(u8, i8)>,
    /// A float that is compared for equality: one NaN, one zero.
    pub canonical: bool,
}

/// The aggregate of a windowed table.
#[derive(Debug)]
pub struct Aggregate {
    /// The output of `below`: `window_start`, the group keys, then what the calls read.
    pub input: SchemaRef,
    /// The group key without the window's bounds: columns `1..=keys.len()` of `input`.
    pub keys: Vec<Field>,
    /// What users know the keys by: the output column, else the SQL of the expression.
    pub key_names: Vec<String>,
    pub calls: Vec<AggregateCall>,
    /// One window's run: the keys, then the state of each call.
    pub run: SchemaRef,
    /// What `above` reads: the group expressions as they stand in the SQL, then the calls.
    pub output: SchemaRef,
    /// What the leading columns of `output` hold.
    pub group: Vec<GroupColumn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupColumn {
    WindowStart,
    WindowEnd,
    /// Index in [`Aggregate::keys`].
    Key(usize),
}

/// A source as far as its declaration is right: what is wrong with it has been told, and is no fault of the SQL.
#[derive(Debug, Clone, Copy)]
pub struct Declared<'a> {
    pub spec: &'a SourceSpec,
    /// Columns that are there, of no known type.
    pub doubtful: &'a [String],
    /// Any name may be one of its columns.
    pub open: bool,
    /// Its watermark is there, and wrong.
    pub timeless: bool,
}

/// All that is wrong with a table's SQL.
#[derive(Debug)]
pub struct Wrong {
    /// At least one, unless all that is wrong lies in what was declared.
    pub errors: Vec<SqlError>,
    /// Names of the table's columns, where all of them are known.
    pub columns: Option<Vec<String>>,
    /// It has neither a window nor an aggregate.
    pub plain: bool,
}

/// Plans a table's SQL over the declared sources.
///
/// # Errors
/// The SQL does not parse, names what does not exist, or asks for what one table cannot be: the first of what
/// [`check`] finds.
pub fn plan(decl: &TableDecl, sources: &[SourceSpec]) -> Result<TablePlan, SqlError> {
    let declared: Vec<Declared<'_>> = sources.iter().map(|spec| Declared { spec, doubtful: &[], open: false, timeless: false }).collect();
    check(decl, &declared, false).map_err(|wrong| wrong.errors.into_iter().next().unwrap_or_else(|| SqlError::new("the SQL cannot be planned")))
}

/// As [`plan`], with every error. `unsure`: there may be more sources than these.
///
/// # Errors
/// [`Wrong`], also when the SQL reads what is declared wrong and nothing else is amiss.
pub fn check(decl: &TableDecl, sources: &[Declared<'_>], unsure: bool) -> Result<TablePlan, Wrong> {
    let checked = statement::check(&decl.sql, sources, unsure).map_err(|errors| Wrong { errors, columns: None, plain: false })?;
    let mut found = vec![];
    if decl.emit == Emit::OnUpdate && !checked.windowed && !checked.aggregated() {
        let message = "emit: on_update is for tables with an aggregate; rows of a plain select are never held back";
        found.push(SqlError::new(message).placed(Place::Emit).expecting("on_close, or no `emit`"));
    }
    if checked.errors.is_empty() && found.is_empty() && !checked.in_doubt() {
        match split::split(decl, checked.planned(|_| true), &checked.frame()) {
            Ok(plan) => return Ok(plan),
            Err(whole) => found.extend(isolate::find(decl, &checked, Some(whole))),
        }
    } else {
        found.extend(isolate::find(decl, &checked, None));
    }
    let columns = checked.columns();
    let plain = !checked.windowed && !checked.aggregated();
    let mut errors = checked.errors;
    for error in found {
        let same_name = |e: &SqlError| error.message == error::SAME_NAME && e.message.contains("no two columns have the same name");
        let unnamed = |e: &SqlError| error.message.ends_with(error::UNNAMED) && e.message.ends_with(error::UNNAMED);
        let told = |e: &SqlError| unnamed(e) || e.message == error.message || (error.place.is_sql() && e.place == error.place) || same_name(e);
        if !errors.iter().any(told) {
            errors.push(error);
        }
    }
    Err(Wrong { errors, columns, plain })
}

/// Where the SQL computes this column of the table.
pub fn column_place(decl: &TableDecl, sources: &[Declared<'_>], unsure: bool, column: &str) -> Option<Place> {
    let checked = statement::check(&decl.sql, sources, unsure).ok()?;
    let at = checked.names().iter().position(|name| name.as_deref() == Some(column))?;
    let span = checked.items.get(at)?.span?;
    Some(SqlError::new(String::new()).spanning(span).place)
}

impl Projected {
    /// The column for these rows, in the type that was planned for it.
    ///
    /// # Errors
    /// Some row's value does not exist: a cast, an overflow, a division by zero.
    pub fn evaluate(&self, batch: &RecordBatch, planned: &DataType) -> DataFusionResult<ArrayRef> {
        let mut column = values(&self.expr, batch)?;
        // Some functions choose the digits of a decimal by their arguments, and others when they are planned.
        if column.data_type() != planned {
            column = cast_with_options(&column, planned, &CastOptions { safe: false, ..CastOptions::default() })?;
        }
        if let Some((precision, scale)) = self.digits {
            let checked = column.as_primitive::<arrow::datatypes::Decimal128Type>().validate_decimal_precision(precision);
            checked.map_err(|_| DataFusionError::Execution(format!("the result has more digits than decimal({precision},{scale}) holds")))?;
        }
        if self.canonical {
            column = canonical(column);
        }
        Ok(column)
    }
}

fn canonical(column: ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 => {
            let one = |v: f64| if v.is_nan() { f64::NAN } else { v + 0.0 };
            Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(one))
        }
        DataType::Float32 => {
            let one = |v: f32| if v.is_nan() { f32::NAN } else { v + 0.0 };
            Arc::new(column.as_primitive::<Float32Type>().unary::<_, Float32Type>(one))
        }
        _ => column,
    }
}

impl TablePlan {
    /// Type of `window_start` and `window_end`: that of the watermark column.
    pub fn window_type(&self) -> Option<&DataType> {
        self.time.map(|i| self.scan_schema.field(i).data_type())
    }

    /// What `below` reads: the scan columns and, when windowed, `window_start` and `window_end`.
    pub fn below_input(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> = self.scan_schema.fields().to_vec();
        fields.extend(self.window_fields());
        Arc::new(Schema::new(fields))
    }

    fn window_fields(&self) -> Vec<Arc<Field>> {
        let each = |t: &DataType| ["window_start", "window_end"].map(|n| Arc::new(Field::new(n, t.clone(), false))).to_vec();
        self.window_type().map(each).unwrap_or_default()
    }

    /// A row that is judged when its entry is decided: `_topic`, `_partition`, `_offset`, `_timestamp`, `_key`, the scan
    /// columns, `window_start`, `window_end`. Only of windowed tables.
    pub fn judge_later_schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> = lineage().into_iter().map(Arc::new).collect();
        fields.extend(self.below_input().fields().iter().cloned());
        Arc::new(Schema::new(fields))
    }

    /// The table of late rows: as [`TablePlan::judge_later_schema`], with `_reason` after `_key`.
    pub fn late_schema(&self) -> SchemaRef {
        let mut fields: Vec<Arc<Field>> = lineage().into_iter().map(Arc::new).collect();
        fields.push(Arc::new(Field::new("_reason", DataType::Utf8, false)));
        fields.extend(self.below_input().fields().iter().cloned());
        Arc::new(Schema::new(fields))
    }

    /// What the table's state and content consist of, one fact a line. Two plans with the same text read each other's
    /// runs and tables; how the SQL is written, its filters included, is not in it.
    pub fn describe(&self) -> String {
        use std::fmt::Write;
        let mut text = String::from("layout 1\n");
        let field = |f: &Field| format!("{}: {}{}", f.name(), types::describe(f.data_type()), if f.is_nullable() { "" } else { " not null" });
        // Writing to a string does not fail.
        let _ = writeln!(text, "source {}", self.source);
        for f in self.scan_schema.fields() {
            let _ = writeln!(text, "reads {}", field(f));
        }
        if let (Some(window), Some(time)) = (&self.window, self.time) {
            let _ = writeln!(text, "window {window} over {}", self.scan[time]);
        }
        if let Some(aggregate) = &self.aggregate {
            for f in &aggregate.keys {
                let _ = writeln!(text, "group {}", types::describe(f.data_type()));
            }
            for call in &aggregate.calls {
                let state: Vec<String> = call.state().iter().map(types::describe).collect();
                let _ = writeln!(text, "aggregate {}({}) as {}", call.function, types::describe(&call.input), state.join(", "));
            }
        }
        for f in self.output.fields() {
            let _ = writeln!(text, "column {}", field(f));
        }
        let _ = writeln!(text, "key {}", if self.upsert { self.key.join(", ") } else { "none".to_string() });
        text
    }
}

/// Whose row it is: `_topic`, `_partition`, `_offset`, `_timestamp`, `_key`.
pub fn lineage() -> [Field; 5] {
    [
        Field::new("_topic", DataType::Utf8, false),
        Field::new("_partition", DataType::Int32, false),
        Field::new("_offset", DataType::Int64, false),
        Field::new("_timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("_key", DataType::Binary, true),
    ]
}

/// A literal interval in microseconds; days count 24 hours.
fn interval_us(e: &datafusion::sql::sqlparser::ast::Expr) -> Result<i64, String> {
    use datafusion::common::DFSchema;
    use datafusion::logical_expr::Expr;
    let text = e.to_string();
    let unit = text.to_lowercase().replacen("interval", "", 1).chars().any(char::is_alphabetic);
    if !unit {
        return Err(format!("needs a unit, like interval '5 minutes'; found {e}"));
    }
    let state = split::session();
    let planned = state.create_logical_expr(&text, &DFSchema::empty());
    let simple = planned.map_err(|_| format!("is no length of time like interval '5 minutes'; found {e}"))?;
    match simple {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(i)), _) => {
            if i.months != 0 {
                return Err(format!("cannot be counted in months, which differ in length; use days: found {e}"));
            }
            if i.nanoseconds % 1_000 != 0 {
                return Err(format!("cannot be finer than a microsecond; found {e}"));
            }
            (i.days as i64).checked_mul(86_400_000_000).and_then(|d| d.checked_add(i.nanoseconds / 1_000)).ok_or_else(|| format!("is too long: {e}"))
        }
        _ => Err(format!("must be a literal like interval '5 minutes'; found {e}")),
    }
}

/// An evaluation error in a few words, for a dead letter.
pub(crate) fn reason(e: &DataFusionError) -> String {
    let text = match e.find_root() {
        DataFusionError::ArrowError(e, _) => e.to_string(),
        DataFusionError::Execution(t) => t.clone(),
        other => other.strip_backtrace(),
    };
    let text = text.lines().next().unwrap_or_default();
    // "Cast error: Cannot cast …": the kind says nothing that the rest does not.
    let kinds = ["Arrow error: ", "Compute error: ", "Cast error: ", "Arithmetic overflow: ", "Invalid argument error: ", "Execution error: ", "Parser error: "];
    let mut text = text;
    while let Some(rest) = kinds.iter().find_map(|k| text.strip_prefix(k)) {
        text = rest;
    }
    // The value that did not fit, in quotes, is left as it is.
    let (value, rest) = text.split_at(text.rfind("' ").unwrap_or(0));
    let text = format!("{value}{}", error::in_our_words(rest.trim_end_matches('.')));
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}
