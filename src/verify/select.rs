//! A table's SQL as one batch query: planned by DataFusion from the text that the log holds, row by row
//! where a single row may fail, as a GROUP BY over all rows at once where they are summed.
//!
//! Two things are not DataFusion's own, because the project promises otherwise: arithmetic fails instead
//! of wrapping, and sums are kept wide and are null when their type cannot hold them.

use super::order::{Leeway, MAYBE, within_column};
use super::strict::{Physical, Strict, strict};
use super::widen::{AT, UNFIT, group_key, wide};
use super::window::Windows;
use crate::pipeline::Column;
use crate::pipeline::sql::{Tumble, bounded, reason, values, write_uuids_out};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array, UInt64Array, new_null_array};
use arrow::compute::{concat, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType, UInt64Type};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DFSchemaRef, ScalarValue, TableReference};
use datafusion::datasource::MemTable;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Aggregate, BinaryExpr as LogicalBinary, Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::ast::{Expr as Ast, Function, FunctionArguments, Ident, ObjectName, ObjectNamePart, SetExpr, Statement, TableFactor, Value, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The query of one table under one plan.
pub struct Select {
    sql: String,
    context: SessionContext,
    /// The source columns that are read, followed by `window_start` and `window_end` of a windowed table.
    pub input: SchemaRef,
    /// Names of the source columns among them.
    pub reads: Vec<String>,
    plan: LogicalPlan,
    condition: Option<Physical>,
    /// What each row must be able to yield: group keys, arguments, filters; or a plain table's columns.
    values: Vec<Strict>,
    /// Columns of the table, of the rows that come out (without `_op`).
    output: SchemaRef,
    /// Positions in `output` of values that depend on the order in which floats come.
    pub inexact: BTreeSet<usize>,
}

/// Rows that came through, by their place in what was given, and those that could not.
pub struct Passed {
    pub rows: Vec<u32>,
    /// Columns of a plain table; of a windowed one its group key and arguments.
    pub values: RecordBatch,
    /// With every reason that its expressions give.
    pub failed: Vec<(u32, Vec<String>)>,
}

/// Groups as they were after several entries.
pub struct States {
    /// Columns of the table, and as in [`Shown::rows`].
    pub rows: RecordBatch,
    pub groups: RecordBatch,
    /// By row: the entry, the window's start, and whether `having` lets it be seen, or may.
    pub at: Vec<u64>,
    pub window: Vec<i64>,
    pub shown: Vec<bool>,
}

/// Rows of the table after all is summed up.
pub struct Shown {
    /// Columns of the table; behind them how far a row may be off ([`within_column`]), and whether it must be there ([`MAYBE`]).
    pub rows: RecordBatch,
    /// Window start and group key by which each row was summed: columns of the aggregate.
    pub groups: RecordBatch,
    /// The same of groups with a value that does not fit its type, shown or not, in the types of the SQL.
    pub unfit: RecordBatch,
}

fn context() -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(2);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".to_string());
    let context = SessionContext::new_with_config(config);
    bounded(&context).into_iter().for_each(|function| context.register_udf(function.as_ref().clone()));
    context
}

impl Select {
    /// `table` is the schema of the table in the lake, with `_op` last where it has one.
    pub fn new(sql: &str, source: &str, columns: &[Column], window: Option<Tumble>, time: Option<&str>, table: &Schema) -> Result<Self> {
        let statement = statement(sql, source, columns, window.is_some())?;
        let all: Vec<Field> = columns.iter().map(|c| c.ty.field(&c.name, c.nullable)).collect();
        let bounds: Vec<Field> = match (window, time) {
            (Some(_), Some(time)) => {
                let ty = all.iter().find(|f| f.name() == time).map(|f| f.data_type().clone());
                let ty = ty.ok_or_else(|| DataFusionError::Plan(format!("no column {time}")))?;
                ["window_start", "window_end"].map(|n| Field::new(n, ty.clone(), false)).to_vec()
            }
            _ => vec![],
        };
        let full = Arc::new(Schema::new([all.clone(), bounds.clone()].concat()));
        let (_, plan) = planned(source, &statement, full)?;
        // Once more over the columns that it reads: others need not be kept.
        let mut read: BTreeSet<String> = time.filter(|_| window.is_some()).map(str::to_string).into_iter().collect();
        let reads = |plan: &LogicalPlan, read: &mut BTreeSet<String>| {
            plan.apply_with_subqueries(|node| {
                node.apply_expressions(|e| {
                    read.extend(e.column_refs().into_iter().map(|c| c.name.clone()));
                    Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
                })
            })
        };
        reads(&plan, &mut read)?;
        let kept: Vec<Field> = all.into_iter().filter(|f| read.contains(f.name())).collect();
        let reads = kept.iter().map(|f| f.name().clone()).collect();
        let input = Arc::new(Schema::new([kept, bounds].concat()));
        let (context, plan) = planned(source, &statement, input.clone())?;
        let output = match table.fields().last() {
            Some(op) if op.name() == crate::pipeline::sql::OP => Arc::new(Schema::new(table.fields()[..table.fields().len() - 1].to_vec())),
            _ => Arc::new(table.clone()),
        };
        let mut select = Self { sql: sql.to_string(), context, input, reads, plan, condition: None, values: vec![], output, inexact: BTreeSet::new() };
        select.analyze()?;
        Ok(select)
    }

    fn analyze(&mut self) -> Result<()> {
        let LogicalPlan::Projection(top) = &self.plan else { return Err(odd(&self.plan)) };
        let (above, base) = filtered(&top.input);
        let physical = |e: &Expr, schema: &DFSchemaRef| strict(&self.context, e, schema);
        let value = |e: &Expr, schema: &DFSchemaRef, to: Option<DataType>| -> Result<Strict> {
            let digits = match (e, e.get_type(schema)?) {
                (Expr::Column(_), _) => None,
                (_, DataType::Decimal128(p, _)) => Some(p),
                _ => None,
            };
            Ok(Strict { expr: physical(e, schema)?, digits, to })
        };
        let mut values = vec![];
        let condition;
        if let LogicalPlan::Aggregate(a) = base {
            let (below, _) = filtered(&a.input);
            let schema = a.input.schema();
            condition = below.map(|e| physical(e, schema)).transpose()?;
            for e in &a.group_expr {
                values.push(value(&group_key(e, schema)?, schema, None)?);
            }
            for e in &a.aggr_expr {
                let Expr::AggregateFunction(f) = e.clone().unalias() else { return Err(odd(&self.plan)) };
                for arg in f.params.args.iter().filter(|a| !matches!(a, Expr::Literal(..))) {
                    let unsigned = arg.get_type(schema)?.is_unsigned_integer();
                    values.push(value(arg, schema, unsigned.then_some(DataType::Int64))?);
                }
                if let Some(filter) = &f.params.filter {
                    values.push(value(filter, schema, None)?);
                }
            }
            let inexact = |e: &Expr| {
                let names: BTreeSet<String> = e.column_refs().into_iter().map(|c| c.name.clone()).collect();
                a.aggr_expr.iter().enumerate().any(|(i, call)| {
                    let (_, field) = a.schema.qualified_field(a.group_expr.len() + i);
                    names.contains(field.name()) && depends_on_order(call, schema)
                })
            };
            self.inexact = top.expr.iter().enumerate().filter(|(_, e)| inexact(e)).map(|(i, _)| i).collect();
        } else {
            let schema = base.schema();
            condition = above.map(|e| physical(e, schema)).transpose()?;
            for (e, field) in top.expr.iter().zip(self.output.fields()) {
                values.push(value(e, schema, Some(field.data_type().clone()))?);
            }
        }
        (self.condition, self.values) = (condition, values);
        Ok(())
    }

    /// Which rows of `batch` (of [`Select::input`]) the query takes, and which it cannot compute.
    pub fn pass(&self, batch: &RecordBatch) -> Result<Passed> {
        let (mut parts, mut failed) = (vec![], vec![]);
        self.pass_part(batch, 0, &mut parts, &mut failed)?;
        let rows = parts.iter().flat_map(|(r, _): &(Vec<u32>, RecordBatch)| r.iter().copied()).collect();
        let values = match parts.len() {
            1 => parts.remove(0).1,
            _ => {
                let schema = parts.first().map_or_else(|| self.values_schema(), |(_, b)| Ok(b.schema()))?;
                arrow::compute::concat_batches(&schema, parts.iter().map(|(_, b)| b))?
            }
        };
        Ok(Passed { rows, values, failed })
    }

    /// Why a single row cannot be computed: by each expression that fails, since their order is the planner's.
    fn reasons(&self, row: &RecordBatch, first: &DataFusionError) -> Vec<String> {
        let condition = self.condition.iter().filter_map(|c| values(c, row).err());
        let mut all: Vec<String> = std::iter::once(reason(first)).chain(condition.chain(self.values.iter().filter_map(|v| v.of(row).err())).map(|e| reason(&e))).collect();
        all.sort();
        all.dedup();
        all
    }

    fn pass_part(&self, batch: &RecordBatch, first: u32, parts: &mut Vec<(Vec<u32>, RecordBatch)>, failed: &mut Vec<(u32, Vec<String>)>) -> Result<()> {
        let n = batch.num_rows();
        match self.try_pass(batch, first) {
            Ok(part) => parts.push(part),
            // Some expressions fail of no row at all: that makes no dead letter.
            Err(_) if n == 0 => parts.push((vec![], RecordBatch::new_empty(self.values_schema()?))),
            Err(e) if n == 1 => failed.push((first, self.reasons(batch, &e))),
            Err(_) => {
                self.pass_part(&batch.slice(0, n / 2), first, parts, failed)?;
                self.pass_part(&batch.slice(n / 2, n - n / 2), first + (n / 2) as u32, parts, failed)?;
            }
        }
        Ok(())
    }

    fn try_pass(&self, batch: &RecordBatch, first: u32) -> Result<(Vec<u32>, RecordBatch)> {
        let Some(condition) = &self.condition else {
            return Ok(((first..first + batch.num_rows() as u32).collect(), self.values_of(batch)?));
        };
        let mask = values(condition, batch)?;
        let mask: BooleanArray = mask.as_boolean().iter().map(|b| Some(b == Some(true))).collect();
        let rows = (0..batch.num_rows()).filter(|i| mask.value(*i)).map(|i| first + i as u32).collect();
        if mask.true_count() == 0 {
            return Ok((rows, RecordBatch::new_empty(self.values_schema()?)));
        }
        Ok((rows, self.values_of(&filter_record_batch(batch, &mask)?)?))
    }

    fn values_of(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = vec![];
        for value in &self.values {
            columns.push(value.of(batch)?);
        }
        let fields: Vec<Field> = columns.iter().enumerate().map(|(i, c): (usize, &ArrayRef)| Field::new(format!("c{i}"), c.data_type().clone(), true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
    }

    /// Of [`Passed::values`], where nothing came through.
    fn values_schema(&self) -> Result<SchemaRef> {
        let types = self.values.iter().map(|v| v.to.clone().map_or_else(|| v.expr.data_type(&self.input), Ok));
        let fields = types.enumerate().map(|(i, ty)| Ok(Field::new(format!("c{i}"), ty?, true))).collect::<Result<Vec<Field>>>()?;
        Ok(Arc::new(Schema::new(fields)))
    }

    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Whether it computes the same groups from the same rows as `older`, and shows of each what `older` shows, then more.
    pub fn extends(&self, older: &Select) -> bool {
        let (LogicalPlan::Projection(new), LogicalPlan::Projection(old)) = (&self.plan, &older.plan) else { return false };
        // Rows, groups, aggregates and `having`, in the planner's words.
        let base = |p: &LogicalPlan| p.display_indent().to_string();
        let aggregate = matches!(filtered(&new.input).1, LogicalPlan::Aggregate(_));
        aggregate && self.input == older.input && base(&new.input) == base(&old.input) && new.expr.starts_with(&old.expr)
    }

    /// Where among its columns the one of this name stands.
    pub fn place(&self, column: &str) -> Option<usize> {
        self.output.index_of(column).ok().filter(|at| *at < self.width())
    }

    /// How many columns it shows.
    pub fn width(&self) -> usize {
        match &self.plan {
            LogicalPlan::Projection(top) => top.expr.len(),
            _ => 0,
        }
    }

    /// How many of the leading columns of [`Passed::values`] are the group key.
    pub fn group_width(&self) -> usize {
        match &self.plan {
            LogicalPlan::Projection(top) => match filtered(&top.input).1 {
                LogicalPlan::Aggregate(a) => a.group_expr.len(),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Columns of the table that show the group key, as they stand in the SQL.
    pub fn group_output(&self) -> Vec<usize> {
        let LogicalPlan::Projection(top) = &self.plan else { return vec![] };
        let LogicalPlan::Aggregate(a) = filtered(&top.input).1 else { return vec![] };
        let keys: Vec<String> = (0..a.group_expr.len()).map(|i| a.schema.field(i).name().clone()).collect();
        let shows = |e: &Expr| matches!(e.clone().unalias(), Expr::Column(c) if keys.contains(&c.name));
        top.expr.iter().enumerate().filter(|(_, e)| shows(e)).map(|(i, _)| i).collect()
    }

    /// Whether its columns tell every group from every other. Both bounds of a window tell of it.
    pub fn tells_groups_apart(&self) -> bool {
        let LogicalPlan::Projection(top) = &self.plan else { return false };
        let LogicalPlan::Aggregate(a) = filtered(&top.input).1 else { return false };
        let bound = |n: &str| matches!(n, "window_start" | "window_end");
        let shows = |key: &str| top.expr.iter().any(|e| matches!(e.clone().unalias(), Expr::Column(c) if c.name == key || bound(key) && bound(&c.name)));
        (0..a.group_expr.len()).all(|i| shows(a.schema.field(i).name()))
    }

    /// Whether it takes every row that its expressions can be computed of.
    pub fn takes_all(&self) -> bool {
        self.condition.is_none()
    }

    /// The column of the table that is the start of its windows, where it is shown.
    pub fn window_output(&self) -> Option<usize> {
        let LogicalPlan::Projection(top) = &self.plan else { return None };
        top.expr.iter().position(|e| matches!(e.clone().unalias(), Expr::Column(c) if c.name == "window_start"))
    }

    /// Runs the GROUP BY over rows that [`Select::pass`] has let through, and what stands above it.
    pub async fn sum_up(&self, batches: Vec<RecordBatch>) -> Result<Shown> {
        let (a, having, exprs) = self.parts()?;
        let summed = self.summed(a, batches, None).await?;
        let (rows, shown, unfit) = self.above(a, having, exprs, &summed)?;
        let groups = summed.project(&(0..a.group_expr.len()).collect::<Vec<_>>())?;
        let (mask, unfit) = (BooleanArray::from(shown), BooleanArray::from(unfit));
        let unfit = in_types_of(a, &filter_record_batch(&groups, &unfit)?)?;
        Ok(Shown { rows: filter_record_batch(&rows, &mask)?, groups: filter_record_batch(&groups, &mask)?, unfit })
    }

    /// As [`Select::sum_up`], for several states of the rows at once: `at` says of each row which state it is in.
    pub async fn sum_up_at(&self, batches: Vec<RecordBatch>, at: Vec<Vec<u64>>) -> Result<States> {
        let (a, having, exprs) = self.parts()?;
        let summed = self.summed(a, batches, Some(at)).await?;
        let (rows, shown, _) = self.above(a, having, exprs, &summed)?;
        let width = a.group_expr.len();
        let groups = summed.project(&(0..width).collect::<Vec<_>>())?;
        let column = |name: &str| summed.column_by_name(name).cloned().ok_or_else(|| odd(&self.plan));
        let at = column(AT)?.as_primitive::<UInt64Type>().values().to_vec();
        let start = a.group_expr.iter().position(|e| matches!(e, Expr::Column(c) if c.name == "window_start")).ok_or_else(|| odd(&self.plan))?;
        let window = summed.column(start).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        Ok(States { rows, groups, at, window, shown })
    }

    /// The aggregate, the condition above it, the columns.
    fn parts(&self) -> Result<(&Aggregate, Option<&Expr>, &[Expr])> {
        let LogicalPlan::Projection(top) = &self.plan else { return Err(odd(&self.plan)) };
        let (having, base) = filtered(&top.input);
        let LogicalPlan::Aggregate(a) = base else { return Err(odd(&self.plan)) };
        Ok((a, having, &top.expr))
    }

    /// The aggregate's columns over these rows; after them [`AT`] where states are told apart, and by call whether its
    /// value did not fit.
    async fn summed(&self, a: &Aggregate, mut batches: Vec<RecordBatch>, at: Option<Vec<Vec<u64>>>) -> Result<RecordBatch> {
        let mut fields: Vec<Arc<Field>> = self.input.fields().to_vec();
        let states = at.is_some();
        if let Some(at) = at {
            fields.push(Arc::new(Field::new(AT, DataType::UInt64, false)));
            let schema = Arc::new(Schema::new(fields.clone()));
            for (batch, at) in batches.iter_mut().zip(at) {
                let mut columns = batch.columns().to_vec();
                columns.push(Arc::new(UInt64Array::from(at)));
                *batch = RecordBatch::try_new(schema.clone(), columns)?;
            }
        }
        let input = Arc::new(Schema::new(fields));
        let (schema, batches) = match self.executed(a, states, &input, batches.clone()).await {
            Ok(done) => done,
            // Each row can be computed, and not each of them beside the others.
            Err(_) => {
                let mut parts = vec![];
                batches.iter().for_each(|batch| self.computable(batch, &mut parts));
                self.executed(a, states, &input, parts).await?
            }
        };
        let columns = schema.iter().enumerate().map(|(i, field)| {
            let of: Vec<&dyn Array> = batches.iter().map(|b| b.column(i).as_ref()).collect();
            if of.is_empty() { Ok(new_null_array(field.data_type(), 0)) } else { Ok(concat(&of)?) }
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        let rows = columns.first().map_or(0, |c| c.len());
        let fields: Vec<Field> = schema.iter().zip(&columns).map(|(f, c)| Field::new(f.name(), c.data_type().clone(), true)).collect();
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &RecordBatchOptions::new().with_row_count(Some(rows)))?)
    }

    async fn executed(&self, a: &Aggregate, states: bool, input: &SchemaRef, batches: Vec<RecordBatch>) -> Result<(Vec<Field>, Vec<RecordBatch>)> {
        let table = MemTable::try_new(input.clone(), vec![batches])?;
        let source = datafusion::datasource::provider_as_source(Arc::new(table));
        let plan = wide(a, states, &|node| match node {
            LogicalPlan::TableScan(scan) => Ok(Transformed::yes(LogicalPlanBuilder::scan(scan.table_name.clone(), source.clone(), None)?.build()?)),
            // Its rows are those that came through.
            LogicalPlan::Filter(filter) => Ok(Transformed::yes(filter.input.as_ref().clone())),
            other => Ok(Transformed::no(other)),
        })?;
        let mut schema: Vec<Field> = a.schema.fields().iter().map(|f| f.as_ref().clone()).collect();
        schema.extend(plan.schema().fields().iter().skip(schema.len()).map(|f| f.as_ref().clone()));
        let done = self.context.execute_logical_plan(plan).await?.collect().await?;
        Ok((schema, done))
    }

    /// The rows in parts of which each can be computed as one.
    fn computable(&self, batch: &RecordBatch, parts: &mut Vec<RecordBatch>) {
        let n = batch.num_rows();
        if n > 1 && self.values_of(batch).is_err() {
            self.computable(&batch.slice(0, n / 2), parts);
            self.computable(&batch.slice(n / 2, n - n / 2), parts);
        } else if n > 0 {
            parts.push(batch.clone());
        }
    }

    /// `having` and the columns, row by row: what cannot be computed is null. Which rows are shown, and in which something
    /// did not fit.
    fn above(&self, a: &Aggregate, having: Option<&Expr>, exprs: &[Expr], summed: &RecordBatch) -> Result<(RecordBatch, Vec<bool>, Vec<bool>)> {
        let rows = summed.num_rows();
        let mut shown: Vec<bool> = vec![true; rows];
        let mut unfit: Vec<bool> = vec![false; rows];
        for (column, field) in summed.columns().iter().zip(summed.schema_ref().fields()).filter(|(_, f)| f.name().starts_with(UNFIT)) {
            let column = column.as_boolean_opt().ok_or_else(|| DataFusionError::Internal(format!("{} is no boolean", field.name())))?;
            (0..rows).for_each(|i| unfit[i] |= column.is_valid(i) && column.value(i));
        }
        let mut failed = vec![];
        let leeway = Leeway::new(summed, a.group_expr.len())?;
        let mut maybe = vec![false; rows];
        if let Some(e) = having {
            let value = Strict { expr: strict(&self.context, e, &a.schema)?, digits: None, to: None };
            let passed = value.each(summed, 0, &mut failed)?;
            maybe = leeway.undecided(summed, &passed, &value, &reads(e))?;
            let passed = passed.as_boolean();
            (0..rows).for_each(|i| shown[i] = maybe[i] || (passed.is_valid(i) && passed.value(i)));
            failed.drain(..).for_each(|i: usize| unfit[i] = true);
        }
        let (mut columns, mut within) = (vec![], vec![]);
        for (place, (e, field)) in exprs.iter().zip(self.output.fields()).enumerate() {
            let digits = match (e.clone().unalias(), e.get_type(&a.schema)?) {
                (Expr::Column(_), _) => None,
                (_, DataType::Decimal128(p, _)) => Some(p),
                _ => None,
            };
            let value = Strict { expr: strict(&self.context, e, &a.schema)?, digits, to: Some(field.data_type().clone()) };
            let column = value.each(summed, 0, &mut failed)?;
            if self.inexact.contains(&place) {
                within.push((place, leeway.within(summed, &column, &value, &reads(e))?));
            }
            columns.push(column);
        }
        failed.into_iter().filter(|i| shown[*i]).for_each(|i| unfit[i] = true);
        // The table may have been given columns since.
        let mut fields: Vec<Field> = self.output.fields().iter().take(columns.len()).map(|f| f.as_ref().clone().with_nullable(true)).collect();
        for (place, within) in within {
            fields.push(Field::new(within_column(place), DataType::Float64, false));
            columns.push(Arc::new(within));
        }
        fields.push(Field::new(MAYBE, DataType::Boolean, false));
        columns.push(Arc::new(BooleanArray::from(maybe)));
        let all = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &RecordBatchOptions::new().with_row_count(Some(rows)))?;
        Ok((all, shown, unfit))
    }
}

/// Group keys as they are written: what is grouped by in 64 bits may be a float of 32.
fn in_types_of(a: &Aggregate, groups: &RecordBatch) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (vec![], vec![]);
    for ((field, column), declared) in groups.schema_ref().fields().iter().zip(groups.columns()).zip(a.schema.fields()) {
        let column = if column.data_type().is_floating() { arrow::compute::cast(column, declared.data_type())? } else { column.clone() };
        fields.push(field.as_ref().clone().with_data_type(column.data_type().clone()));
        columns.push(column);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(groups.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// Adds the windows' bounds to the columns that a query reads.
pub fn with_windows(input: &SchemaRef, mut columns: Vec<ArrayRef>, time: &ArrayRef, windows: &mut Windows) -> Result<(RecordBatch, Vec<(i64, i64)>)> {
    let times = time.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| DataFusionError::Plan("the event time is no timestamp".into()))?;
    let found: Vec<(i64, i64)> = times.values().iter().map(|t| windows.of(*t)).collect();
    for bound in [found.iter().map(|w| w.0).collect::<Vec<_>>(), found.iter().map(|w| w.1).collect()] {
        let bound = arrow::array::TimestampMicrosecondArray::from(bound).with_data_type(times.data_type().clone());
        columns.push(Arc::new(bound));
    }
    Ok((RecordBatch::try_new(input.clone(), columns)?, found))
}

/// The rows at these places.
pub fn at(batch: &RecordBatch, rows: &[u32]) -> Result<RecordBatch> {
    Ok(take_record_batch(batch, &UInt32Array::from(rows.to_vec()))?)
}

/// Whether an expression reads the column of this name.
fn reads(e: &Expr) -> impl Fn(&str) -> bool {
    let names: BTreeSet<String> = e.column_refs().into_iter().map(|c| c.name.clone()).collect();
    move |name| names.contains(name)
}

fn odd(plan: &LogicalPlan) -> DataFusionError {
    DataFusionError::Plan(format!("a select of another form than this version verifies: {}", plan.display()))
}

fn filtered(node: &LogicalPlan) -> (Option<&Expr>, &LogicalPlan) {
    match node {
        LogicalPlan::Filter(f) => (Some(&f.predicate), &f.input),
        other => (None, other),
    }
}

/// The statement over a plain table: `tumble(events, …)` becomes `events`, names become exact.
fn statement(sql: &str, source: &str, columns: &[Column], windowed: bool) -> Result<Statement> {
    let parsed = Parser::new(&GenericDialect {}).try_with_sql(sql).and_then(|mut p| p.parse_statement());
    let mut statement = parsed.map_err(|e| DataFusionError::Plan(e.to_string()))?;
    let mut alias = None;
    if let Statement::Query(query) = &mut statement
        && let SetExpr::Select(select) = query.body.as_mut()
        && let Some(from) = select.from.first_mut()
        && let TableFactor::Table { name, args, alias: given, .. } = &mut from.relation
    {
        *args = None;
        *name = ObjectName::from(vec![Ident::with_quote('"', source)]);
        alias = given.as_ref().map(|a| a.name.value.clone());
    }
    let mut names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
    if windowed {
        names.extend(["window_start".to_string(), "window_end".to_string()]);
    }
    let mut exact = Exact { names, source: source.to_string(), alias };
    let _ = VisitMut::visit(&mut statement, &mut exact);
    // Texts that are no uuid were refused before anything ran.
    write_uuids_out(&mut statement, columns);
    Ok(statement)
}

/// An unquoted word is the column that it names but for its case.
struct Exact {
    names: Vec<String>,
    source: String,
    alias: Option<String>,
}

impl Exact {
    fn column(&self, ident: &mut Ident) {
        let same = |n: &&String| **n == ident.value || (ident.quote_style.is_none() && n.eq_ignore_ascii_case(&ident.value));
        let found = self.names.iter().find(|n| **n == ident.value).or_else(|| self.names.iter().find(same));
        if let Some(name) = found {
            *ident = Ident::with_quote('"', name.clone());
        }
    }
}

impl VisitorMut for Exact {
    type Break = ();

    fn pre_visit_expr(&mut self, e: &mut Ast) -> ControlFlow<()> {
        // `user` is a function without brackets to the parser.
        if let Ast::Function(Function { name, args: FunctionArguments::None, .. }) = e
            && let [ObjectNamePart::Identifier(word)] = name.0.as_slice()
            && self.names.iter().any(|n| n.eq_ignore_ascii_case(&word.value))
        {
            *e = Ast::Identifier(word.clone());
        }
        match e {
            Ast::Identifier(ident) => self.column(ident),
            Ast::CompoundIdentifier(parts) => {
                let named = self.alias.as_deref().unwrap_or(&self.source);
                let qualified = parts.len() > 1 && (parts[0].value == named || (parts[0].quote_style.is_none() && parts[0].value.eq_ignore_ascii_case(named)));
                if qualified {
                    if self.alias.is_none() {
                        parts[0] = Ident::with_quote('"', self.source.clone());
                    }
                    self.column(&mut parts[1]);
                } else {
                    self.column(&mut parts[0]);
                }
            }
            // Usual names of aggregates that DataFusion knows by others.
            Ast::Function(f) => {
                if let [ObjectNamePart::Identifier(name)] = f.name.0.as_mut_slice()
                    && let Some(planned) = match name.value.to_lowercase().as_str() {
                        "variance" | "variance_samp" => Some("var_samp"),
                        "variance_pop" | "variance_population" => Some("var_pop"),
                        "std" => Some("stddev"),
                        _ => None,
                    }
                {
                    *name = Ident::new(planned);
                }
            }
            // A number with an exponent is a float.
            Ast::Value(v) => {
                if let Value::Number(text, _) = &v.value
                    && text.contains(['e', 'E'])
                    && let Ok(number) = Parser::new(&GenericDialect {}).try_with_sql(&format!("cast('{text}' as double)")).and_then(|mut p| p.parse_expr())
                {
                    *e = number;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn planned(source: &str, statement: &Statement, schema: SchemaRef) -> Result<(SessionContext, LogicalPlan)> {
    let context = context();
    context.register_table(TableReference::bare(source), Arc::new(EmptyTable::new(schema)))?;
    let state = context.state();
    let statement = datafusion::sql::parser::Statement::Statement(Box::new(statement.clone()));
    // Planning looks up the one table above and never waits.
    let plan = futures::executor::block_on(state.statement_to_plan(statement))?;
    let plan = plan.transform_up(promised)?.data;
    let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    Ok((context, plan))
}

/// What the project promises and DataFusion does otherwise: where a float meets a decimal outside of
/// arithmetic both are floats, and a minus sign is a subtraction that can fail.
fn promised(node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let Some(schema) = node.inputs().first().map(|i| i.schema().clone()) else { return Ok(Transformed::no(node)) };
    let names = datafusion::logical_expr::expr_rewriter::NamePreserver::new(&node);
    let done = node.map_expressions(|e| {
        let name = names.save(&e);
        Ok(e.transform_up(|e| promised_expr(e, &schema))?.update_data(|e| name.restore(e)))
    })?;
    if done.transformed { Ok(Transformed::yes(done.data.recompute_schema()?)) } else { Ok(done) }
}

fn promised_expr(mut e: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let ty = |e: &Expr| e.get_type(schema).ok();
    if let Expr::Negative(of) = &e
        && !matches!(of.as_ref(), Expr::Literal(..))
        && let Some(int @ (DataType::Int32 | DataType::Int64)) = ty(of)
    {
        let zero = Expr::Literal(ScalarValue::new_zero(&int)?, None);
        return Ok(Transformed::yes(Expr::BinaryExpr(LogicalBinary::new(Box::new(zero), Operator::Minus, of.clone()))));
    }
    let mut operands: Vec<&mut Expr> = match &mut e {
        Expr::BinaryExpr(b) if b.op.supports_propagation() => vec![&mut b.left, &mut b.right],
        Expr::Between(b) => vec![&mut b.expr, &mut b.low, &mut b.high],
        Expr::InList(l) => std::iter::once(l.expr.as_mut()).chain(l.list.iter_mut()).collect(),
        Expr::Case(c) => c.when_then_expr.iter_mut().map(|(_, then)| then.as_mut()).chain(c.else_expr.as_deref_mut()).collect(),
        Expr::ScalarFunction(f) => f.args.iter_mut().collect(),
        _ => return Ok(Transformed::no(e)),
    };
    let floats = operands.iter().any(|o| ty(o).is_some_and(|t| t.is_floating()));
    let mut changed = false;
    for operand in operands.iter_mut().filter(|_| floats) {
        if ty(operand).is_some_and(|t| t.is_decimal()) {
            **operand = Expr::Cast(Cast::new(Box::new(operand.clone()), DataType::Float64));
            changed = true;
        }
    }
    Ok(if changed { Transformed::yes(e) } else { Transformed::no(e) })
}

/// Whether the result depends on the order in which floats come.
fn depends_on_order(call: &Expr, schema: &DFSchema) -> bool {
    let Expr::AggregateFunction(f) = call.clone().unalias() else { return true };
    let float = f.params.args.first().and_then(|a| a.get_type(schema).ok()).is_some_and(|t| t.is_floating());
    match f.func.name() {
        // Of least and greatest floats only the bits of a NaN depend on the order.
        "sum" | "avg" | "min" | "max" => float,
        "count" | "bool_and" | "bool_or" => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::tests::loaded;
    use crate::verify::compare::Encoder;
    use arrow::array::{Float32Array, Float64Array, TimestampMicrosecondArray};

    /// By the bytes of its key a row is found among the groups: -0.0 is in that of 0.0, and every NaN in one.
    #[tokio::test]
    async fn a_row_has_the_key_of_its_group() {
        let file = "\
pipeline: p
sources:
  events:
    file: events.ndjson
    columns: {f: float32, d: float64, at: timestamp}
    watermark: {column: at}
tables:
  t: {sql: \"select window_start, f, d, count(*) as n from tumble(events, interval '1 minute') group by window_start, f, d\"}
lake: {root: ./lake}
";
        let (pipeline, plans) = loaded(file);
        let select = Select::new(&pipeline.tables[0].sql, "events", &pipeline.sources[0].columns, plans[0].window, Some("at"), &plans[0].output).unwrap();
        let (f32s, f64s) = ([0.0f32, -0.0, f32::NAN, -f32::NAN, 1.5], [0.0f64, -0.0, f64::from_bits(0x7ff8_0000_0000_0001), f64::NAN, 1.5]);
        let columns = select.input.fields().iter().map(|field| match field.name().as_str() {
            "f" => Arc::new(Float32Array::from(f32s.to_vec())) as ArrayRef,
            "d" => Arc::new(Float64Array::from(f64s.to_vec())),
            _ => Arc::new(TimestampMicrosecondArray::from(vec![0; 5]).with_data_type(field.data_type().clone())),
        });
        let input = RecordBatch::try_new(select.input.clone(), columns.collect()).unwrap();
        let rows = select.pass(&input).unwrap().values;
        let groups = select.sum_up(vec![input]).await.unwrap().groups;
        let places: Vec<usize> = (0..select.group_width()).collect();
        let types: Vec<DataType> = groups.columns().iter().map(|c| c.data_type().clone()).collect();
        let encoder = Encoder::new(&types, &places, &BTreeSet::new()).unwrap();
        let keys = |batch: &RecordBatch| encoder.encode(batch).unwrap().into_iter().map(|(bytes, _)| bytes).collect::<BTreeSet<_>>();
        assert_eq!(groups.num_rows(), 3);
        assert_eq!(keys(&rows.project(&places).unwrap()), keys(&groups));
    }
}
