//! Plan entries: what a pipeline file means to a log, and what changing it does.

use super::entry::{Plan, SourcePlan, SpecRecord, WindowedOrPlain};
use super::ledger::Ledger;
use crate::pipeline::sql::{self, TablePlan};
use crate::pipeline::{Emit, FileInput, Format, Input, Pipeline, SourceSpec, TableDecl, TableFormatKind, Watermark};
use crate::source::SourceFacts;
use crate::stage::dead::dead_schema;
use crate::stage::TableSpec;
use crate::stage::layout::assign_field_ids;
use arrow::datatypes::{Schema, SchemaRef};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot go on with this log; the text says what differs and the ways out.
    #[error("{0}")]
    Refused(String),
    #[error("table {table}: {why}")]
    Layout { table: String, why: String },
}

/// What a worker's pipeline file means to the log as it is.
#[derive(Debug)]
pub enum Fit {
    /// The newest plan says just this.
    Same,
    /// To be proposed. One line for each difference, for the user.
    Change(Box<Plan>, Vec<String>),
}

fn ids(table: &str, schema: &Schema, previous: Option<&SpecRecord>) -> Result<SchemaRef, PlanError> {
    let layout = |why: String| PlanError::Layout { table: table.to_string(), why };
    let previous = previous.map(|p| p.spec()).transpose().map_err(layout)?;
    assign_field_ids(schema, previous.as_ref().map(|p| p.schema.as_ref())).map_err(|e| {
        PlanError::Refused(format!(
            "table {table} cannot take its new columns: {e}; only added nullable columns are evolved in place: give the table another name, or undo the change"
        ))
    })
}

fn record(spec: TableSpec) -> Result<SpecRecord, PlanError> {
    SpecRecord::of(&spec).map_err(|e| PlanError::Layout { table: spec.name.clone(), why: e.to_string() })
}

/// All formats that some table of the source has: late and dead letters lie where their tables do.
fn formats_of(pipeline: &Pipeline, source: &str, plans: &[Arc<TablePlan>]) -> Vec<TableFormatKind> {
    let of = pipeline.tables.iter().zip(plans).filter(|(_, p)| p.source == source).flat_map(|(t, _)| t.formats.clone());
    let all: BTreeSet<TableFormatKind> = of.collect();
    if all.is_empty() { vec![TableFormatKind::Iceberg, TableFormatKind::Delta] } else { all.into_iter().collect() }
}

fn source_plan(pipeline: &Pipeline, spec: &SourceSpec, facts: &SourceFacts, starts: BTreeMap<i32, i64>, plans: &[Arc<TablePlan>], old: Option<&SourcePlan>) -> Result<SourcePlan, PlanError> {
    let name = format!("{}__dead", spec.name);
    let schema = ids(&name, &dead_schema(), old.map(|o| &o.dead))?;
    let formats = formats_of(pipeline, &spec.name, plans);
    Ok(SourcePlan {
        incarnation: facts.incarnation.clone(),
        topic: facts.topic.clone(),
        starts,
        names: facts.names.clone(),
        columns: spec.columns.clone(),
        delay_us: spec.watermark.as_ref().map_or(0, |w| w.delay_us),
        time_column: spec.watermark.as_ref().map(|w| w.column.clone()),
        dead: record(TableSpec { name, schema, key: vec![], formats, partition_by: vec![], properties: BTreeMap::new(), comment: None })?,
    })
}

fn table_plan(decl: &TableDecl, plan: &TablePlan, born: u64, old: Option<&WindowedOrPlain>) -> Result<WindowedOrPlain, PlanError> {
    let schema = ids(&decl.name, &plan.output, old.map(|o| &o.table))?;
    let table = record(TableSpec {
        name: decl.name.clone(),
        schema,
        key: plan.key.clone(),
        formats: decl.formats.clone(),
        partition_by: decl.partition_by.clone(),
        properties: decl.properties.clone(),
        comment: decl.comment.clone(),
    })?;
    let late = plan.window.as_ref().map(|_| {
        let name = format!("{}__late", decl.name);
        let schema = ids(&name, &plan.late_schema(), old.and_then(|o| o.late.as_ref()))?;
        record(TableSpec { name, schema, key: vec![], formats: decl.formats.clone(), partition_by: vec![], properties: BTreeMap::new(), comment: None })
    });
    Ok(WindowedOrPlain {
        source: plan.source.clone(),
        sql: decl.sql.clone(),
        state: plan.describe(),
        window: plan.window.clone(),
        allowed_lateness_us: decl.allowed_lateness_us,
        emit_on_update: decl.emit == Emit::OnUpdate,
        born,
        table,
        late: late.transpose()?,
    })
}

/// Entry 0: every partition that there is, and where the file says that each starts.
pub fn birth(pipeline: &Pipeline, plans: &[Arc<TablePlan>], facts: &BTreeMap<String, SourceFacts>, starts: &BTreeMap<String, BTreeMap<i32, i64>>) -> Result<Plan, PlanError> {
    let mut sources = BTreeMap::new();
    for spec in &pipeline.sources {
        let starts = starts.get(&spec.name).cloned().unwrap_or_default();
        sources.insert(spec.name.clone(), source_plan(pipeline, spec, &facts[&spec.name], starts, plans, None)?);
    }
    let mut tables = BTreeMap::new();
    for (decl, plan) in pipeline.tables.iter().zip(plans) {
        tables.insert(decl.name.clone(), table_plan(decl, plan, 0, None)?);
    }
    Ok(Plan { pipeline: pipeline.name.clone(), replaces: None, sources, tables })
}

/// Compares a pipeline file with the newest plan of the log.
///
/// # Errors
/// [`PlanError::Refused`] names the difference and the ways out.
pub fn fit(ledger: &Ledger, pipeline: &Pipeline, plans: &[Arc<TablePlan>], facts: &BTreeMap<String, SourceFacts>, starts: &BTreeMap<String, BTreeMap<i32, i64>>) -> Result<Fit, PlanError> {
    let old = &ledger.plan;
    let mut changes = vec![];
    let mut sources = BTreeMap::new();
    for spec in &pipeline.sources {
        let (found, before) = (&facts[&spec.name], old.sources.get(&spec.name));
        let begins = match before {
            Some(before) => before.starts.clone(),
            None => {
                changes.push(format!("source {} begins here", spec.name));
                starts.get(&spec.name).cloned().unwrap_or_default()
            }
        };
        let mut planned = source_plan(pipeline, spec, found, begins, plans, before)?;
        if let Some(before) = before {
            if before.topic != planned.topic {
                return Err(PlanError::Refused(format!(
                    "source {} reads {} and the log was written from {}: offsets of one mean nothing in the other; give the source another name, or name the topic {} again",
                    spec.name, planned.topic, before.topic, before.topic
                )));
            }
            // The identity of the topic is checked where it is read, with the choices named.
            planned.incarnation.clone_from(&before.incarnation);
            planned.names.clone_from(&before.names);
            if before.time_column != planned.time_column {
                return Err(PlanError::Refused(format!(
                    "source {}: its watermark column changes from {:?} to {:?}, which would judge the same rows differently; give the source and its tables other names, or undo the change",
                    spec.name, before.time_column, planned.time_column
                )));
            }
            if before != &planned {
                changes.push(format!("source {}: its columns, delay or formats change", spec.name));
            }
        }
        sources.insert(spec.name.clone(), planned);
    }
    let mut tables = BTreeMap::new();
    for (decl, plan) in pipeline.tables.iter().zip(plans) {
        let before = old.tables.get(&decl.name);
        let planned = table_plan(decl, plan, before.map_or(ledger.next, |b| b.born), before)?;
        match before {
            None if ledger.ended.contains(&decl.name) => {
                return Err(PlanError::Refused(format!(
                    "table {0} was in the pipeline file before and was taken out: its rows are still in the lake, and its windows are forgotten, so that their corrections would double rows; give it another name",
                    decl.name
                )));
            }
            None => changes.push(format!("table {} begins here", decl.name)),
            Some(before) if before == &planned => {}
            Some(before) if before.window.is_some() && before.sql != planned.sql && having(&compile(old)?[&decl.name]) != having(plan) => {
                return Err(refuse(&decl.name, "its having changes: rows of windows that are still corrected would be doubled or left over"));
            }
            Some(before) => changes.push(table_change(&decl.name, before, &planned)?),
        }
        tables.insert(decl.name.clone(), planned);
    }
    for gone in old.tables.keys().filter(|t| !tables.contains_key(*t)) {
        changes.push(format!("table {gone} ends here: it stays as it is and gets no more rows"));
    }
    for gone in old.sources.keys().filter(|s| !sources.contains_key(*s)) {
        changes.push(format!("source {gone} ends here"));
    }
    if changes.is_empty() {
        return Ok(Fit::Same);
    }
    let plan = Plan { pipeline: pipeline.name.clone(), replaces: Some(ledger.plan_entry), sources, tables };
    Ok(Fit::Change(Box::new(plan), changes))
}

/// The conditions on emitted rows. What they let through once must be found again by the corrections.
fn having(plan: &TablePlan) -> Vec<String> {
    plan.above.iter().filter_map(|s| if let sql::Step::Filter(e) = s { Some(e.to_string()) } else { None }).collect()
}

fn refuse(name: &str, what: &str) -> PlanError {
    PlanError::Refused(format!("table {name}: {what}; give the changed table another name (it begins empty and `run` fills it from here on), or undo the change"))
}

fn table_change(name: &str, before: &WindowedOrPlain, after: &WindowedOrPlain) -> Result<String, PlanError> {
    let refuse = |what: &str| refuse(name, what);
    if before.source != after.source {
        return Err(refuse(&format!("it moves from source {} to {}", before.source, after.source)));
    }
    if before.table.key != after.table.key {
        return Err(refuse(&format!("its key changes from {:?} to {:?}", before.table.key, after.table.key)));
    }
    if before.table.formats != after.table.formats || before.table.partition_by != after.table.partition_by {
        return Err(refuse("its formats or its partitioning change"));
    }
    if before.window.is_some() && before.state != after.state {
        return Err(refuse(&format!(
            "its windows are kept in another form\n  the log has:  {}\n  the file has: {}\nrows already counted cannot be counted again in the new form",
            before.state, after.state
        )));
    }
    if before.window.is_some() && before.emit_on_update != after.emit_on_update {
        return Err(refuse("its way of emission changes: rows of windows that are open now would be left out or doubled"));
    }
    if before.table.schema != after.table.schema {
        return Ok(format!("table {name}: columns are added; rows written before hold null in them"));
    }
    if before.allowed_lateness_us != after.allowed_lateness_us {
        return Ok(format!("table {name}: allowed lateness changes from {} s to {} s", before.allowed_lateness_us / 1_000_000, after.allowed_lateness_us / 1_000_000));
    }
    Ok(format!("table {name}: its SQL, comment or properties change; its rows keep their form"))
}

/// Plans the tables of a plan entry again: what the fold runs on, whatever the pipeline file says by now.
pub fn compile(plan: &Plan) -> Result<BTreeMap<String, Arc<TablePlan>>, PlanError> {
    let source = |(name, s): (&String, &SourcePlan)| SourceSpec {
        name: name.clone(),
        // Planning looks at the columns and the watermark column only.
        input: Input::File(FileInput { path: String::new() }),
        format: Format::Json,
        columns: s.columns.clone(),
        watermark: s.time_column.clone().map(|column| Watermark { column, delay_us: s.delay_us, idle_after_us: None, max_ahead_us: 0 }),
        max_record_bytes: 0,
        max_depth: 0,
    };
    let sources: Vec<SourceSpec> = plan.sources.iter().map(source).collect();
    let mut compiled = BTreeMap::new();
    for (name, table) in &plan.tables {
        let decl = TableDecl {
            name: name.clone(),
            sql: table.sql.clone(),
            key: (!table.table.key.is_empty()).then(|| table.table.key.clone()),
            allowed_lateness_us: table.allowed_lateness_us,
            emit: if table.emit_on_update { Emit::OnUpdate } else { Emit::OnClose },
            formats: table.table.formats.clone(),
            partition_by: table.table.partition_by.clone(),
            properties: table.table.properties.clone(),
            comment: table.table.comment.clone(),
            sql_at: (1, 1),
        };
        let planned = sql::plan(&decl, &sources).map_err(|e| PlanError::Layout { table: name.clone(), why: format!("the log's SQL cannot be planned by this version: {e}") })?;
        compiled.insert(name.clone(), Arc::new(planned));
    }
    Ok(compiled)
}
