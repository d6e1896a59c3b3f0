//! From DataFusion's analyzed plan to the parts of a [`TablePlan`].

use super::aggregate::output_type;
use super::error::UNNAMED;
use super::{Aggregate, AggregateCall, AggregateFunction, GroupColumn, OP, Place, Projected, SqlError, Step, TablePlan, Tumble, bounded, caught, functions, types};
use crate::pipeline::{SourceSpec, TYPE_KEY, TableDecl};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, ScalarValue};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder};
use datafusion::logical_expr::expr::{BinaryExpr as LogicalBinary, Cast};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Aggregate as LogicalAggregate, Expr, ExprSchemable, LogicalPlan, Operator, Volatility};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::ast::Statement;
use std::collections::BTreeSet;
use std::sync::Arc;

type Physical = Arc<dyn PhysicalExpr>;

pub(super) fn session() -> SessionState {
    let mut config = SessionConfig::new().with_target_partitions(1);
    let options = config.options_mut();
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.execution.time_zone = Some("UTC".to_string());
    let mut state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    // Another build has another answer.
    let _ = state.deregister_udf("version");
    for function in bounded(&state) {
        // Only registries that cannot be written to refuse.
        let _ = state.register_udf(function);
    }
    state
}

fn planned<T>(r: DataFusionResult<T>) -> Result<T, SqlError> {
    r.map_err(|e| SqlError::of_planner(&e))
}

/// What a statement is planned over.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    pub source: &'a SourceSpec,
    pub window: Option<Tumble>,
    /// Rows have the bounds of a window. Where the window itself or its time is wrong they have some type, for what
    /// else can be told.
    pub windowed: bool,
}

pub(super) fn split(decl: &TableDecl, statement: Statement, frame: &Frame<'_>) -> Result<TablePlan, SqlError> {
    let source = frame.source;
    let mut fields: Vec<Field> = source.columns.iter().map(|c| c.ty.field(&c.name, c.nullable)).collect();
    let declared = fields.len();
    let mut time = None;
    if frame.windowed {
        let mut ty = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        if let Some(at) = source.watermark.as_ref().and_then(|w| source.columns.iter().position(|c| c.name == w.column)) {
            ty = fields[at].data_type().clone();
            if !matches!(ty, DataType::Timestamp(_, _)) {
                let column = fields[at].name();
                return Err(SqlError::new(format!("the watermark column {column} must be a timestamp; found {}", types::describe(&ty))).placed(Place::Source));
            }
            time = Some(at);
        }
        fields.extend(["window_start", "window_end"].map(|n| Field::new(n, ty.clone(), false)));
    }
    let full = Arc::new(Schema::new(fields));
    let context = SessionContext::new_with_state(session());
    let name = datafusion::common::TableReference::bare(source.name.as_str());
    planned(context.register_table(name, Arc::new(EmptyTable::new(full.clone()))))?;
    let state = context.state();
    let statement = datafusion::sql::parser::Statement::Statement(Box::new(statement));
    // Planning only looks up the table registered above: nothing in it ever waits.
    let logical = planned(futures::executor::block_on(state.statement_to_plan(statement)))?;
    refuse_volatile(&logical)?;
    if let LogicalPlan::Projection(p) = &logical
        && let Some(e) = p.expr.iter().find(|e| !matches!(e, Expr::Alias(_) | Expr::Column(_)))
    {
        return Err(unnamed(e));
    }
    let logical = planned(floats_stay_floats(logical))?;
    let analyzed = planned(state.analyzer().execute_and_check(logical, state.config_options(), |_, _| {}))?;

    let mut builder = Builder { state: &state };
    let windowed = frame.windowed;
    let LogicalPlan::Projection(top) = &analyzed else { return Err(refuse_node(&analyzed)) };
    let (having, node) = filter_above(&top.input);
    let (mut below, aggregate, above, output, key) = match node {
        LogicalPlan::Aggregate(a) => {
            if !windowed {
                return Err(SqlError::new("an aggregate over a stream never ends without a window").placed(Place::Group));
            }
            let (below, aggregate) = builder.aggregate(a)?;
            let mut above: Vec<Step> = vec![];
            if let Some(e) = having {
                above.push(Step::Filter(builder.physical(e, &a.schema)?));
            }
            let (project, values) = builder.output(&top.expr, &a.schema, &full)?;
            let (aggregate, key) = finish_aggregate(decl, a, aggregate, &top.expr, &values)?;
            above.push(Step::Project(project, values.clone()));
            let mut output: Vec<Arc<Field>> = values.fields().to_vec();
            if decl.key.is_none() {
                output.push(Arc::new(Field::new(OP, DataType::Utf8, false)));
            }
            (below, Some(aggregate), above, Arc::new(Schema::new(output)), key)
        }
        LogicalPlan::TableScan(_) | LogicalPlan::SubqueryAlias(_) => {
            if windowed {
                return Err(SqlError::new("a window is used without an aggregate").placed(Place::Source));
            }
            if decl.key.is_some() {
                let error = SqlError::later("key on a select without an aggregate is not in this version");
                return Err(error.placed(Place::Key(None)).expecting("no `key`, for an append-only table"));
            }
            let schema = node.schema();
            let mut below = vec![];
            if let Some(e) = having {
                below.push(Step::Filter(builder.physical(e, schema)?));
            }
            let (project, values) = builder.output(&top.expr, schema, &full)?;
            below.push(Step::Project(project, values.clone()));
            (below, None, vec![], values, vec![])
        }
        other => return Err(refuse_node(other)),
    };
    refuse_names(&output)?;

    // Only what is read is scanned; indexes into the full schema become indexes into the scan.
    let mut used: BTreeSet<usize> = time.into_iter().collect();
    let mut first = true;
    for step in &below {
        // Behind a projection columns are no longer those of the source.
        if first {
            for e in step_exprs(step) {
                planned(e.apply(|e| {
                    if let Some(c) = e.as_any().downcast_ref::<Column>() {
                        used.insert(c.index());
                    }
                    Ok(TreeNodeRecursion::Continue)
                }))?;
            }
        }
        first &= matches!(step, Step::Filter(_));
    }
    let scanned: Vec<usize> = used.iter().copied().filter(|i| *i < declared).collect();
    let place = |i: usize| if i < declared { scanned.iter().position(|s| *s == i) } else { Some(scanned.len() + i - declared) };
    let mut first = true;
    for step in &mut below {
        if first {
            match step {
                Step::Filter(e) => *e = renumber(e, &place)?,
                Step::Project(es, _) => {
                    for p in es {
                        p.expr = renumber(&p.expr, &place)?;
                    }
                }
            }
        }
        first &= matches!(step, Step::Filter(_));
    }
    let scan_schema = Arc::new(planned(full.project(&scanned).map_err(DataFusionError::from))?);
    Ok(TablePlan {
        table: decl.name.clone(),
        source: source.name.clone(),
        scan: scan_schema.fields().iter().map(|f| f.name().clone()).collect(),
        scan_schema,
        time: time.and_then(|t| scanned.iter().position(|s| *s == t)),
        below,
        window: frame.window,
        aggregate,
        above,
        output,
        upsert: !key.is_empty(),
        key,
        variables: Default::default(),
    })
}

fn step_exprs(step: &Step) -> Vec<&Physical> {
    match step {
        Step::Filter(e) => vec![e],
        Step::Project(es, _) => es.iter().map(|p| &p.expr).collect(),
    }
}

fn renumber(e: &Physical, place: &dyn Fn(usize) -> Option<usize>) -> Result<Physical, SqlError> {
    let moved = e.clone().transform_up(|e| {
        let Some(c) = e.as_any().downcast_ref::<Column>() else { return Ok(Transformed::no(e)) };
        let to = place(c.index()).ok_or_else(|| DataFusionError::Internal(format!("column {} is read but not scanned", c.name())))?;
        Ok(Transformed::yes(Arc::new(Column::new(c.name(), to)) as Physical))
    });
    planned(moved.map(|t| t.data))
}

fn filter_above(node: &LogicalPlan) -> (Option<&Expr>, &LogicalPlan) {
    match node {
        LogicalPlan::Filter(f) => (Some(&f.predicate), &f.input),
        other => (None, other),
    }
}

fn refuse_node(node: &LogicalPlan) -> SqlError {
    let name = node.display().to_string();
    let name = name.split([':', ' ', '(']).next().unwrap_or_default().to_lowercase();
    SqlError::new(format!("a table is one select over one source, with at most one aggregate; found {name}"))
}

fn refuse_volatile(plan: &LogicalPlan) -> Result<(), SqlError> {
    let mut found = None;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|e| {
            e.apply(|e| {
                if let Expr::ScalarFunction(f) = e
                    && f.func.signature().volatility != Volatility::Immutable
                {
                    found.get_or_insert_with(|| f.name().to_string());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    planned(walked)?;
    match found {
        None => Ok(()),
        Some(name) => Err(SqlError::new(format!(
            "{name}() gives another answer each time it is asked, and a table must depend on its source alone; use a column of the source"
        ))),
    }
}

/// DataFusion compares a float with a decimal as `decimal(30,15)`, which loses digits and fails on NaN and large
/// numbers. Where the two meet outside of arithmetic the decimal becomes a float instead.
fn floats_stay_floats(plan: LogicalPlan) -> DataFusionResult<LogicalPlan> {
    let done = plan.transform_up(|node| {
        let Some(schema) = node.inputs().first().map(|i| i.schema().clone()) else { return Ok(Transformed::no(node)) };
        let names = NamePreserver::new(&node);
        let done = node.map_expressions(|e| {
            let name = names.save(&e);
            Ok(e.transform_up(|e| exact_or_float(e, schema.as_ref()))?.update_data(|e| name.restore(e)))
        })?;
        if done.transformed { Ok(Transformed::yes(done.data.recompute_schema()?)) } else { Ok(done) }
    });
    done.map(|t| t.data)
}

fn exact_or_float(e: Expr, schema: &DFSchema) -> DataFusionResult<Transformed<Expr>> {
    let float = |e: &Expr| e.get_type(schema).is_ok_and(|t| t.is_floating());
    let decimal = |e: &Expr| e.get_type(schema).is_ok_and(|t| t.is_decimal());
    let to_float = |e: &mut Expr| {
        if decimal(e) {
            *e = Expr::Cast(Cast::new(Box::new(e.clone()), DataType::Float64));
        }
    };
    let mut e = e;
    // A minus sign wraps at the smallest integer; a subtraction can be told not to.
    if let Expr::Negative(of) = &e
        && !matches!(of.as_ref(), Expr::Literal(..))
        && let Ok(zero @ (DataType::Int32 | DataType::Int64)) = of.get_type(schema).map(|t| t.clone())
    {
        let zero = Expr::Literal(ScalarValue::new_zero(&zero)?, None);
        return Ok(Transformed::yes(Expr::BinaryExpr(LogicalBinary::new(Box::new(zero), Operator::Minus, of.clone()))));
    }
    let mut meet: Vec<&mut Expr> = match &mut e {
        Expr::BinaryExpr(b) if b.op.supports_propagation() => vec![b.left.as_mut(), b.right.as_mut()],
        Expr::Between(b) => vec![b.expr.as_mut(), b.low.as_mut(), b.high.as_mut()],
        Expr::InList(l) => std::iter::once(l.expr.as_mut()).chain(&mut l.list).collect(),
        Expr::Case(c) => c.when_then_expr.iter_mut().map(|(_, then)| then.as_mut()).chain(c.else_expr.as_deref_mut()).collect(),
        Expr::ScalarFunction(f) => f.args.iter_mut().collect(),
        _ => return Ok(Transformed::no(e)),
    };
    if !(meet.iter().any(|e| float(e)) && meet.iter().any(|e| decimal(e))) {
        return Ok(Transformed::no(e));
    }
    meet.iter_mut().for_each(|e| to_float(e));
    Ok(Transformed::yes(e))
}

fn unnamed(e: &Expr) -> SqlError {
    SqlError::new(format!("the column {} {UNNAMED}", short(e))).expecting("`… as name` behind it")
}

fn refuse_names(output: &SchemaRef) -> Result<(), SqlError> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (i, f) in output.fields().iter().enumerate() {
        let marker = f.name() == OP && i + 1 == output.fields().len();
        if f.name().eq_ignore_ascii_case(OP) && !marker {
            return Err(SqlError::new(format!("the column name {OP} is taken by append-only tables")).expecting("another name with `as`"));
        }
        if !seen.insert(f.name().to_lowercase()) {
            return Err(SqlError::new(format!("two columns are named {}; name one of them with `as` (case does not tell columns apart)", f.name())));
        }
    }
    Ok(())
}

struct Builder<'a> {
    state: &'a SessionState,
}

impl Builder<'_> {
    /// A physical expression that fails where DataFusion's own would wrap.
    fn physical(&mut self, e: &Expr, schema: &DFSchemaRef) -> Result<Physical, SqlError> {
        // Folding constants would wrap silently: they are evaluated with the checks first.
        let mut failed = None;
        planned(e.apply(|part| {
            if failed.is_none() && matches!(part, Expr::BinaryExpr(_)) && part.column_refs().is_empty() && !part.contains_outer() {
                let empty = DFSchema::empty();
                let tried = create_physical_expr(part, &empty, self.state.execution_props()).and_then(checked);
                let row = arrow::record_batch::RecordBatch::try_new_with_options(
                    Arc::new(Schema::empty()),
                    vec![],
                    &arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(1)),
                )?;
                if let Err(why) = tried.and_then(|p| caught(|| p.evaluate(&row))) {
                    failed = Some(format!("{part} fails for every row: {}", lower(&why)));
                }
            }
            Ok(TreeNodeRecursion::Continue)
        }))?;
        if let Some(why) = failed {
            return Err(SqlError::new(why));
        }
        let context = SimplifyContext::default().with_schema(schema.clone()).with_config_options(self.state.config_options().clone());
        let e = planned(digits_kept(e.clone(), schema))?;
        let simple = planned(caught(|| ExprSimplifier::new(context).simplify(e)))?;
        planned(create_physical_expr(&simple, schema, self.state.execution_props()).and_then(checked))
    }

    /// The table's columns: their expressions over `schema`, in types that tables have.
    fn output(&mut self, exprs: &[Expr], schema: &DFSchemaRef, source: &Schema) -> Result<(Vec<Projected>, SchemaRef), SqlError> {
        let (mut columns, mut fields) = (vec![], vec![]);
        for e in exprs {
            let (_, field) = planned(e.to_field(schema.as_ref()))?;
            let name = match e {
                Expr::Alias(a) => a.name.clone(),
                Expr::Column(c) => c.name.clone(),
                other => {
                    return Err(unnamed(other));
                }
            };
            let plain = match e.clone().unalias() {
                Expr::Column(c) => Some(c),
                _ => None,
            };
            let ty = field.data_type().clone();
            let to = types::of_table(&ty).map_err(|why| SqlError::new(format!("column {name}: {why}")))?;
            let mut expr = self.physical(e, schema)?;
            if to != ty {
                expr = Arc::new(CastExpr::new(expr, to.clone(), None));
            }
            let digits = match (&plain, &to) {
                (None, DataType::Decimal128(p, s)) => Some((*p, *s)),
                _ => None,
            };
            columns.push(Projected { expr, digits, canonical: false });
            // A column handed through stays what it was declared as; whatever is computed may be null.
            let same = plain.as_ref().and_then(|c| source.field_with_name(&c.name).ok()).filter(|f| f.data_type() == &to);
            let nullable = same.is_none_or(|f| f.is_nullable());
            let mut metadata = same.map(|f| f.metadata().clone()).unwrap_or_default();
            // Nothing else that SQL works on has 16 bytes.
            if to == DataType::FixedSizeBinary(16) {
                metadata.insert(TYPE_KEY.into(), "uuid".into());
            }
            fields.push(Field::new(name, to, nullable).with_metadata(metadata));
        }
        Ok((columns, Arc::new(Schema::new(fields))))
    }

    /// Everything below the aggregate, up to the columns that it reads.
    fn aggregate(&mut self, a: &LogicalAggregate) -> Result<(Vec<Step>, Aggregate), SqlError> {
        let (filter, node) = filter_above(&a.input);
        if !matches!(node, LogicalPlan::TableScan(_) | LogicalPlan::SubqueryAlias(_)) {
            return Err(refuse_node(node));
        }
        let schema = a.input.schema();
        let mut below = vec![];
        if let Some(e) = filter {
            below.push(Step::Filter(self.physical(e, schema)?));
        }
        let is = |e: &Expr, name: &str| matches!(e, Expr::Column(c) if c.name == name);
        let Some(start) = a.group_expr.iter().find(|e| is(e, "window_start")) else {
            let error = SqlError::new("an aggregate over a stream needs window_start in its group by");
            return Err(error.placed(Place::Group).expecting("group by window_start, and what else is grouped by"));
        };
        let (mut projected, mut input, mut keys, mut group) = (vec![], vec![], vec![], vec![]);
        let window_type = planned(start.get_type(schema.as_ref()))?;
        projected.push(Projected { expr: self.physical(start, schema)?, digits: None, canonical: false });
        input.push(Field::new("window_start", window_type, false));
        for (i, e) in a.group_expr.iter().enumerate() {
            if is(e, "window_start") {
                group.push(GroupColumn::WindowStart);
                continue;
            }
            if is(e, "window_end") {
                group.push(GroupColumn::WindowEnd);
                continue;
            }
            let ty = a.schema.field(i).data_type().clone();
            refuse_key(e, &ty)?;
            let field = Field::new(format!("k{}", keys.len()), ty.clone(), true);
            let canonical = matches!(ty, DataType::Float32 | DataType::Float64);
            projected.push(Projected { expr: self.physical(e, schema)?, digits: digits(e, &ty), canonical });
            group.push(GroupColumn::Key(keys.len()));
            input.push(field.clone());
            keys.push(field);
        }
        let mut calls = vec![];
        for (i, e) in a.aggr_expr.iter().enumerate() {
            let declared = a.schema.field(a.group_expr.len() + i).data_type().clone();
            let mut call = self.call(e, schema, &mut projected, &mut input)?;
            if call.output != declared {
                return Err(SqlError::new(format!("{}: expected {}, found {}", call.label, types::describe(&call.output), types::describe(&declared))));
            }
            call.label = short(e);
            calls.push(call);
        }
        let mut run: Vec<Field> = keys.clone();
        for (c, call) in calls.iter().enumerate() {
            run.extend(call.state().into_iter().enumerate().map(|(s, ty)| Field::new(format!("a{c}_{s}"), ty, true)));
        }
        let input = Arc::new(Schema::new(input));
        below.push(Step::Project(projected, input.clone()));
        // What comes out may be null, whatever DataFusion knows of it: a value that does not fit is.
        let out: Vec<Field> = a.schema.fields().iter().enumerate().map(|(i, f)| Field::new(format!("o{i}"), f.data_type().clone(), true)).collect();
        let aggregate = Aggregate { input, key_names: vec![], keys, calls, run: Arc::new(Schema::new(run)), output: Arc::new(Schema::new(out)), group };
        Ok((below, aggregate))
    }

    fn call(&mut self, e: &Expr, schema: &DFSchemaRef, projected: &mut Vec<Projected>, input: &mut Vec<Field>) -> Result<AggregateCall, SqlError> {
        use AggregateFunction::*;
        let Expr::AggregateFunction(f) = e.clone().unalias() else { return Err(SqlError::new(format!("{} is not an aggregate", short(e)))) };
        let name = f.func.name().to_string();
        let refuse = |what: &str| Err(SqlError::new(format!("{}: {what}", short(e))));
        if !f.params.order_by.is_empty() {
            return refuse("order by within an aggregate is not supported");
        }
        if f.params.null_treatment.is_some() {
            return refuse("ignore nulls and respect nulls are not supported");
        }
        let function = match (name.as_str(), f.params.distinct) {
            ("count", false) => Count,
            ("count", true) => CountDistinct,
            ("min", _) => Min,
            ("max", _) => Max,
            ("bool_and", _) => BoolAnd,
            ("bool_or", _) => BoolOr,
            ("sum" | "avg" | "var" | "var_pop" | "stddev" | "stddev_pop", true) => return refuse("distinct is supported for count only"),
            ("sum", false) => Sum,
            ("avg", false) => Avg,
            ("var", false) => VarSamp,
            ("var_pop", false) => VarPop,
            ("stddev", false) => StddevSamp,
            ("stddev_pop", false) => StddevPop,
            _ => {
                return Err(SqlError::later(format!("the aggregate {name} is not in this version")).expecting(format!("one of {}", functions::WRITTEN)));
            }
        };
        let [arg] = f.params.args.as_slice() else { return refuse("one argument is supported; found another number") };
        // `count(*)` arrives as the count of a constant.
        let counts_rows = function == Count && matches!(arg, Expr::Literal(v, _) if !v.is_null());
        let (mut at, mut ty) = (None, DataType::Null);
        if !counts_rows {
            let mut arg = arg.clone();
            // DataFusion averages integers as floats; their sum is exact here, so the cast comes last.
            if function == Avg
                && let Expr::Cast(c) = &arg
                && c.data_type == DataType::Float64
                && planned(c.expr.get_type(schema.as_ref()))?.is_signed_integer()
            {
                arg = *c.expr.clone();
            }
            let was = planned(arg.get_type(schema.as_ref()))?;
            let decimal = matches!(was, DataType::Decimal256(_, _));
            ty = types::of_table(&was).map_err(|why| SqlError::new(format!("{}: {why}", short(e))))?;
            if matches!(function, Sum | Avg) && ty == DataType::Int32 {
                ty = DataType::Int64;
            }
            if decimal || (function == CountDistinct && refuse_key(&arg, &ty).is_err()) {
                return refuse(&format!("an argument of type {} is not supported", types::describe(&was)));
            }
            let mut expr = self.physical(&arg, schema)?;
            if ty != was {
                expr = Arc::new(CastExpr::new(expr, ty.clone(), None));
            }
            let canonical = function == CountDistinct && ty.is_floating();
            at = Some(input.len());
            input.push(Field::new(format!("v{}", input.len()), ty.clone(), true));
            projected.push(Projected { expr, digits: digits(&arg, &ty), canonical });
        }
        let mut filter = None;
        if let Some(condition) = &f.params.filter {
            filter = Some(input.len());
            input.push(Field::new(format!("v{}", input.len()), DataType::Boolean, true));
            projected.push(Projected { expr: self.physical(condition, schema)?, digits: None, canonical: false });
        }
        let output = output_type(function, &ty).map_err(|why| SqlError::new(format!("{}: {why}", short(e))))?;
        Ok(AggregateCall { function, arg: at, filter, input: ty, output, label: short(e) })
    }
}

fn digits(e: &Expr, ty: &DataType) -> Option<(u8, i8)> {
    match (e, ty) {
        (Expr::Column(_), _) => None,
        (_, DataType::Decimal128(p, s)) => Some((*p, *s)),
        _ => None,
    }
}

fn refuse_key(e: &Expr, ty: &DataType) -> Result<(), SqlError> {
    let keyed = matches!(types::of_table(ty), Ok(t) if &t == ty) && !ty.is_nested();
    if keyed { Ok(()) } else { Err(SqlError::new(format!("{} cannot be a group key: its type is {}; cast it", short(e), types::describe(ty)))) }
}

/// Checks the table's key against the group key, and names the calls by the columns that show them.
fn finish_aggregate(
    decl: &TableDecl,
    a: &LogicalAggregate,
    mut aggregate: Aggregate,
    exprs: &[Expr],
    values: &Schema,
) -> Result<(Aggregate, Vec<String>), SqlError> {
    let shown = |at: usize| -> Option<String> {
        let (qualifier, field) = a.schema.qualified_field(at);
        let wanted = datafusion::common::Column::new(qualifier.cloned(), field.name());
        let position = exprs.iter().position(|e| matches!(e.clone().unalias(), Expr::Column(c) if c.relation == wanted.relation && c.name == wanted.name));
        position.map(|i| values.field(i).name().clone())
    };
    for (i, call) in aggregate.calls.iter_mut().enumerate() {
        if let Some(name) = shown(a.group_expr.len() + i) {
            call.label = name;
        }
    }
    aggregate.key_names = (0..a.group_expr.len())
        .filter(|i| matches!(aggregate.group[*i], GroupColumn::Key(_)))
        .map(|i| shown(i).unwrap_or_else(|| short(&a.group_expr[i])))
        .collect();
    let Some(key) = &decl.key else { return Ok((aggregate, vec![])) };
    let mut wanted = vec![];
    for (i, e) in a.group_expr.iter().enumerate() {
        match shown(i) {
            Some(name) => wanted.push((name, aggregate.group[i] == GroupColumn::WindowEnd)),
            None if aggregate.group[i] == GroupColumn::WindowEnd => {}
            None => {
                let error = SqlError::new(format!("the key is the group key, but {} is not among the selected columns", short(e)));
                return Err(error.placed(Place::Key(None)).expecting(format!("{} in the select list and in the key", short(e))));
            }
        }
    }
    let exact = |k: &String| {
        let fits: Vec<&String> = values.fields().iter().map(|f| f.name()).filter(|n| n.eq_ignore_ascii_case(k)).collect();
        if values.field_with_name(k).is_ok() || fits.len() != 1 { k.clone() } else { fits[0].clone() }
    };
    let key: Vec<String> = key.iter().map(exact).collect();
    let covers = wanted.iter().all(|(name, optional)| *optional || key.contains(name));
    let only = key.iter().all(|k| wanted.iter().any(|(name, _)| name == k));
    let distinct: BTreeSet<&String> = key.iter().collect();
    if !covers || !only || distinct.len() != key.len() {
        let should: Vec<&str> = wanted.iter().filter(|(_, optional)| !optional).map(|(n, _)| n.as_str()).collect();
        let message = format!("the key of an aggregated table is its group key; found [{}]", key.join(", "));
        let other = key.iter().find(|k| !wanted.iter().any(|(name, _)| name == *k)).cloned();
        let nearest = other.as_ref().and_then(|k| super::error::nearest(k, &should)).filter(|near| !key.iter().any(|k| k == near)).map(String::from);
        let error = SqlError::new(message).placed(Place::Key(other)).expecting(format!("[{}]", should.join(", ")));
        return Err(SqlError { nearest, ..error });
    }
    Ok((aggregate, key))
}

fn short(e: &Expr) -> String {
    match e {
        Expr::Alias(a) => a.name.clone(),
        Expr::Column(c) => c.name.clone(),
        other => other.human_display().to_string(),
    }
}

fn lower(e: &DataFusionError) -> String {
    super::reason(e)
}

/// `round`, for one, gives a decimal of fewer digits once its second argument has become a literal than it was planned to,
/// and what compares or adds it was planned for those.
fn digits_kept(e: Expr, schema: &DFSchemaRef) -> DataFusionResult<Expr> {
    let done = e.transform_up(|e| {
        let ty = if matches!(e, Expr::ScalarFunction(_)) { e.get_type(schema.as_ref())? } else { DataType::Null };
        Ok(match ty {
            DataType::Decimal128(..) => Transformed::yes(Expr::Cast(Cast::new(Box::new(e), ty))),
            _ => Transformed::no(e),
        })
    });
    done.map(|e| e.data)
}

/// DataFusion's integer `+`, `-` and `*` wrap unless told not to.
fn checked(e: Physical) -> DataFusionResult<Physical> {
    let done = e.transform_up(|e: Physical| {
        if let Some(b) = e.as_any().downcast_ref::<BinaryExpr>()
            && matches!(b.op(), Operator::Plus | Operator::Minus | Operator::Multiply)
        {
            let b = BinaryExpr::new(b.left().clone(), *b.op(), b.right().clone()).with_fail_on_overflow(true);
            return Ok(Transformed::yes(Arc::new(b) as Physical));
        }
        Ok(Transformed::no(e))
    });
    done.map(|e| e.data)
}
