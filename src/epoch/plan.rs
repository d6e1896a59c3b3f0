//! Plan entries: what a pipeline file means to a log, and what changing it does.

use super::entry::{Limits, Plan, SourcePlan, SpecRecord, WindowedOrPlain};
use super::ledger::Ledger;
use crate::pipeline::sql::{self, Step, TablePlan};
use crate::pipeline::{Emit, FileInput, Input, Pipeline, SourceSpec, TableDecl, TableFormatKind, Watermark};
use crate::source::SourceFacts;
use crate::stage::dead::dead_schema;
use crate::stage::TableSpec;
use crate::stage::layout::assign_field_ids;
use arrow::datatypes::{Field, Schema, SchemaRef};
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
        PlanError::Refused(format!("table {table}: {e}; only added nullable columns are evolved in place"))
    })
}

fn record(spec: TableSpec) -> Result<SpecRecord, PlanError> {
    SpecRecord::of(&spec).map_err(|e| PlanError::Layout { table: spec.name.clone(), why: e.to_string() })
}

/// All formats that some table of the source has: late and dead letters lie where their tables do.
fn formats_of(pipeline: &Pipeline, source: &str, plans: &[Arc<TablePlan>]) -> Vec<TableFormatKind> {
    let of = pipeline.tables.iter().zip(plans).filter(|(_, p)| p.source == source).flat_map(|(t, _)| t.formats.clone());
    let all: BTreeSet<TableFormatKind> = of.collect();
    if all.is_empty() { TableFormatKind::ALL.to_vec() } else { all.into_iter().collect() }
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
        format: spec.format,
        columns: spec.columns.clone(),
        delay_us: spec.watermark.as_ref().map_or(0, |w| w.delay_us),
        time_column: spec.watermark.as_ref().map(|w| w.column.clone()),
        limits: Some(Limits {
            max_record_bytes: spec.max_record_bytes as u64,
            max_depth: spec.max_depth as u64,
            max_ahead_us: spec.watermark.as_ref().map(|w| w.max_ahead_us),
        }),
        dead: record(TableSpec { name, schema, key: vec![], formats, partition_by: vec![], properties: BTreeMap::new(), comment: None })?,
    })
}

fn table_plan(decl: &TableDecl, plan: &TablePlan, born: u64, old: Option<&WindowedOrPlain>) -> Result<WindowedOrPlain, PlanError> {
    let known = old.map(|o| o.table.spec()).transpose().map_err(|why| PlanError::Layout { table: decl.name.clone(), why })?;
    // Rows that are there lack a column that is added: it is nullable, and stays so, whatever the SQL makes of it.
    let lacked = |f: &Field| known.as_ref().is_some_and(|k| k.schema.field_with_name(f.name()).map_or(true, |f| f.is_nullable()));
    let fields: Vec<Field> = plan.output.fields().iter().map(|f| f.as_ref().clone().with_nullable(f.is_nullable() || lacked(f))).collect();
    let schema = ids(&decl.name, &Schema::new(fields), old.map(|o| &o.table))?;
    // The order in which a file names them means nothing.
    let sorted = |formats: &[TableFormatKind]| formats.iter().copied().collect::<BTreeSet<_>>();
    let formats = old.map(|o| &o.table.formats).filter(|o| sorted(o) == sorted(&decl.formats)).unwrap_or(&decl.formats);
    let table = record(TableSpec {
        name: decl.name.clone(),
        schema,
        key: plan.key.clone(),
        formats: formats.clone(),
        partition_by: decl.partition_by.clone(),
        properties: decl.properties.clone(),
        comment: decl.comment.clone(),
    })?;
    let late = plan.window.as_ref().map(|_| {
        let name = format!("{}__late", decl.name);
        let schema = ids(&name, &plan.late_schema(), old.and_then(|o| o.late.as_ref()))?;
        record(TableSpec { name, schema, key: vec![], formats: formats.clone(), partition_by: vec![], properties: BTreeMap::new(), comment: None })
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

/// The declared tables and their late tables as the file alone describes them.
pub fn declared(pipeline: &Pipeline, plans: &[Arc<TablePlan>]) -> Result<Vec<SpecRecord>, PlanError> {
    let each: Vec<_> = pipeline.tables.iter().zip(plans).map(|(decl, plan)| declared_table(decl, plan)).collect::<Result<_, _>>()?;
    Ok(each.concat())
}

/// One of them.
pub fn declared_table(decl: &TableDecl, plan: &TablePlan) -> Result<Vec<SpecRecord>, PlanError> {
    let planned = table_plan(decl, plan, 0, None)?;
    Ok(std::iter::once(planned.table).chain(planned.late).collect())
}

/// What a plan is made of.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub pipeline: &'a Pipeline,
    /// Of its tables, in their order.
    pub plans: &'a [Arc<TablePlan>],
    /// What is there of each source.
    pub facts: &'a BTreeMap<String, SourceFacts>,
    /// Where the file says that each partition starts, of sources that the log does not know.
    pub starts: &'a BTreeMap<String, BTreeMap<i32, i64>>,
}

/// Entry 0: every partition that there is, and where the file says that each starts.
pub fn birth(Given { pipeline, plans, facts, starts }: Given<'_>) -> Result<Plan, PlanError> {
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

/// Compares a pipeline file with the newest plan of the log. `accept`: the user says that going back to an older
/// plan, or giving the name of a table that ended to a new one, is meant.
///
/// | in the file | a table that is there |
/// |---|---|
/// | lateness, delay, columns and limits of a source | from the plan entry on |
/// | a table or a source is added | begins at the plan entry |
/// | a table or a source is taken out | stays as it is, gets no more rows |
/// | a plain table: nullable columns are added, its columns change places, its SQL changes otherwise | from the plan entry on |
/// | comment, properties | set by the next commit; what is taken out of the file stays |
/// | a windowed table with a key: columns are added at the end that are computed from what its windows hold | rows that are written from the plan entry on have them |
/// | a windowed table: what its SQL means otherwise, its way of emission | refused: rows that were counted cannot be counted again |
/// | key, formats, partitioning, source | refused |
/// | it is the file of an older plan, or names a table that ended | refused unless accepted |
///
/// # Errors
/// [`PlanError::Refused`] names the difference and the ways out.
pub fn fit(ledger: &Ledger, given: Given<'_>, accept: bool) -> Result<Fit, PlanError> {
    // As if there were no log: what the file says, and nothing else.
    let file = birth(Given { starts: &BTreeMap::new(), ..given })?;
    let (fingerprint, bare) = (file.fingerprint(), file.fingerprint_without_limits());
    // A plan of a version that kept no limits is the file's whatever these are, unless they are all that changes now.
    let differs = bare != ledger.plan.fingerprint_without_limits();
    let is_file = |print: &str| print == fingerprint || differs && print == bare;
    let older = ledger.past_plans.iter().rev().find(|p| is_file(&p.fingerprint)).filter(|_| fingerprint != ledger.plan.fingerprint());
    let changed = change(ledger, given, accept);
    let Some(older) = older else { return changed };
    let which = format!("this is the pipeline file of plan {}, which plan {} has replaced", older.entry, ledger.plan_entry);
    match changed {
        Err(PlanError::Refused(why)) => Err(PlanError::Refused(format!("{which}; it cannot be gone back to: {why}"))),
        Ok(Fit::Change(_, lines)) if !accept => Err(PlanError::Refused(format!(
            "{which}: an old copy of the file, or an old worker that was started again\n  against the newest plan: {}\n\
             run with the newest file, or say once that going back is meant: millpond run FILE --accept",
            lines.join("\n  against the newest plan: ")
        ))),
        other => other,
    }
}

fn change(ledger: &Ledger, Given { pipeline, plans, facts, starts }: Given<'_>, accept: bool) -> Result<Fit, PlanError> {
    let old = &ledger.plan;
    let mut changes = vec![];
    let mut sources = BTreeMap::new();
    for spec in &pipeline.sources {
        let found = &facts[&spec.name];
        let known = old.sources.get(&spec.name);
        let before = known.or(ledger.ended_sources.get(&spec.name));
        let begins = before.map_or_else(|| starts.get(&spec.name).cloned().unwrap_or_default(), |b| b.starts.clone());
        let mut planned = source_plan(pipeline, spec, found, begins, plans, before)?;
        if let Some(before) = before {
            // The identity of the topic is checked where it is read, with the choices named.
            planned.incarnation.clone_from(&before.incarnation);
            planned.names.clone_from(&before.names);
            source_change(&spec.name, before, &planned, &mut changes)?;
        }
        match (known, before) {
            (None, None) => changes.push(format!("source {} begins here", spec.name)),
            (None, Some(_)) => changes.push(format!("source {} goes on at the offsets where it ended", spec.name)),
            _ => {}
        }
        sources.insert(spec.name.clone(), planned);
    }
    let mut tables = BTreeMap::new();
    for (decl, plan) in pipeline.tables.iter().zip(plans) {
        let before = old.tables.get(&decl.name);
        if let Some(before) = before {
            same_table(&decl.name, before, decl, plan)?;
        }
        let planned = table_plan(decl, plan, before.map_or(ledger.next, |b| b.born), before)?;
        match before {
            None if ledger.ended.contains(&decl.name) && !accept => {
                return Err(PlanError::Refused(format!(
                    "table {0} was in the pipeline file before and was taken out: its rows are still in the lake and its windows are forgotten, so that \
                     going on with it would double or lose rows; give it another name, or, to begin it anew, drop {0} and what belongs to it from the lake and \
                     say so once: millpond run FILE --accept",
                    decl.name
                )));
            }
            None => changes.push(format!("table {} begins here", decl.name)),
            Some(before) if before == &planned => {}
            Some(before) => {
                table_change(&decl.name, before, &planned, &mut changes)?;
                if before.window.is_some() && before.sql != planned.sql {
                    same_meaning(&decl.name, &compile(old)?[&decl.name], plan)?;
                }
            }
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

fn source_change(name: &str, before: &SourcePlan, after: &SourcePlan, changes: &mut Vec<String>) -> Result<(), PlanError> {
    if before.topic != after.topic {
        return Err(PlanError::Refused(format!(
            "source {name} reads {} and the log was written from {}: offsets of one mean nothing in the other; give the source another name, or name {} again",
            after.topic, before.topic, before.topic
        )));
    }
    if before.time_column != after.time_column {
        let word = |c: &Option<String>| c.clone().unwrap_or_else(|| "none".into());
        return Err(PlanError::Refused(format!(
            "source {name}: its watermark column changes from {} to {}, which would judge the same rows differently; give the source and its tables other names, or undo the change",
            word(&before.time_column), word(&after.time_column)
        )));
    }
    if before.format != after.format {
        changes.push(format!("source {name}: its format changes from {} to {}; records from here on are decoded by it", before.format, after.format));
    }
    if before.columns != after.columns {
        let names = |s: &SourcePlan| s.columns.iter().map(|c| c.name.clone()).collect::<BTreeSet<_>>();
        let (old, new) = (names(before), names(after));
        let of = |word: &str, names: Vec<String>| if names.is_empty() { None } else { Some(format!("{word} {}", names.join(", "))) };
        let other = before.columns.iter().filter(|b| after.columns.iter().any(|a| a.name == b.name && a != *b)).map(|b| b.name.clone());
        let what: Vec<String> = [
            of("without", old.difference(&new).cloned().collect()),
            of("with", new.difference(&old).cloned().collect()),
            of("read in another way:", other.collect()),
        ]
        .into_iter()
        .flatten()
        .collect();
        let what = if what.is_empty() { "in another order".to_string() } else { what.join("; ") };
        changes.push(format!("source {name}: its columns change ({what}); records from here on are judged by them"));
    }
    if before.delay_us != after.delay_us {
        changes.push(format!("source {name}: delay changes from {} to {}; its watermark never goes back", duration(before.delay_us), duration(after.delay_us)));
    }
    match (before.limits, after.limits) {
        (Some(old), Some(new)) => {
            let ahead = |us: Option<i64>| us.map_or_else(|| "none".to_string(), duration);
            let mut limit = |what: &str, old: String, new: String| {
                if old != new {
                    changes.push(format!("source {name}: {what} changes from {old} to {new}; records from here on are judged by it"));
                }
            };
            limit("max_record_bytes", old.max_record_bytes.to_string(), new.max_record_bytes.to_string());
            limit("max_depth", old.max_depth.to_string(), new.max_depth.to_string());
            limit("max_ahead", ahead(old.max_ahead_us), ahead(new.max_ahead_us));
        }
        (None, Some(_)) => changes.push(format!("source {name}: the limits of its records are kept in the log from here on")),
        _ => {}
    }
    if before.dead != after.dead {
        changes.push(format!("source {name}: its dead letters go to other formats than before"));
    }
    Ok(())
}

fn duration(us: i64) -> String {
    let ms = us / 1000;
    [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")].iter().find(|(unit, _)| ms != 0 && ms % unit == 0).map_or_else(
        || if ms == 0 { "0s".to_string() } else { format!("{ms}ms") },
        |(unit, word)| format!("{}{word}", ms / unit),
    )
}

/// What the steps do, in the words of the planner.
fn steps(steps: &[Step]) -> Vec<String> {
    let each = |step: &Step| match step {
        Step::Filter(e) => vec![format!("where {e}")],
        Step::Project(columns, schema) => columns.iter().zip(schema.fields()).map(|(c, f)| format!("{} as {}", c.expr, f.name())).collect(),
    };
    steps.iter().flat_map(each).collect()
}

/// Windows that are open at a plan entry go on: what their rows, groups and results mean must stay. Rows that wait
/// to be judged, too, are read by the newest plan.
fn same_meaning(name: &str, before: &TablePlan, after: &TablePlan) -> Result<(), PlanError> {
    let calls = |p: &TablePlan| match &p.aggregate {
        Some(a) => a.calls.iter().map(|c| format!("{}({:?}) where {:?}", c.function, c.arg, c.filter)).chain(a.group.iter().map(|g| format!("{g:?}"))).collect(),
        None => vec![],
    };
    let difference = |old: Vec<String>, new: Vec<String>| {
        let only = |a: &[String], b: &[String]| a.iter().find(|x| !b.contains(x)).cloned().unwrap_or_else(|| "nothing".into());
        (old != new).then(|| format!("\n  the log has:  {}\n  the file has: {}\n", only(&old, &new), only(&new, &old)))
    };
    if let Some(what) = difference(steps(&before.below), steps(&after.below)).or_else(|| difference(calls(before), calls(after))) {
        return Err(refuse(name, &format!("its SQL counts other rows, or the same rows otherwise:{what}windows that are open now would hold rows of both kinds")));
    }
    // Columns may be added behind those that there are.
    let (old, mut new) = (steps(&before.above), steps(&after.above));
    if new.starts_with(&old) && before.upsert {
        new.truncate(old.len());
    }
    if let Some(what) = difference(old, new) {
        return Err(refuse(
            name,
            &format!("what its SQL makes of a window's results changes (select list or having):{what}rows that are corrected later would be doubled or left over"),
        ));
    }
    Ok(())
}

fn refuse(name: &str, what: &str) -> PlanError {
    PlanError::Refused(format!("table {name}: {what}; give the changed table another name (it begins empty and `run` fills it from here on), or undo the change"))
}

/// Whether a windowed table differs in columns only, which are added at the end; refused where that cannot be done.
fn adds_columns(name: &str, before: &WindowedOrPlain, after: &WindowedOrPlain) -> Result<bool, PlanError> {
    let of = |state: &'_ str, kind: fn(&str) -> bool| state.lines().filter(|l| kind(l)).map(String::from).collect::<Vec<_>>();
    let is_column = |l: &str| l.starts_with("column ");
    let is_aggregate = |l: &str| l.starts_with("aggregate ");
    let rest = |l: &str| !l.starts_with("column ") && !l.starts_with("aggregate ") && !l.starts_with("reads ");
    let differs = |kind: fn(&str) -> bool| of(&before.state, kind) != of(&after.state, kind);
    if differs(rest) {
        return Ok(false);
    }
    let (old, new) = (of(&before.state, is_column), of(&after.state, is_column));
    let added: Vec<&String> = new.iter().filter(|c| !old.contains(c)).collect();
    if old.iter().any(|c| !new.contains(c)) || added.is_empty() {
        return Ok(false);
    }
    const WAY: &str = "a column can be added at the end of the select list that is computed from the aggregates, the group key and the window's bounds that the table has";
    let (held, wanted) = (of(&before.state, is_aggregate), of(&after.state, is_aggregate));
    if held != wanted || differs(|l| l.starts_with("reads ")) {
        let calls = |lines: &[String]| lines.iter().filter_map(|l| l.strip_prefix("aggregate ")?.split(" as ").next()).collect::<Vec<_>>().join(", ");
        return Err(refuse(
            name,
            &format!(
                "its SQL counts something more, which windows that are open now have not counted\n  the log has:  {}\n  the file has: {}\n{WAY}; another aggregate needs a table of its own",
                calls(&held),
                calls(&wanted)
            ),
        ));
    }
    if before.table.key.is_empty() {
        return Err(refuse(name, "it is append-only, and what it retracts must be what it inserted, column by column; a windowed table with a key can be given columns"));
    }
    if !new.starts_with(&old) {
        return Err(refuse(name, &format!("a column is added in the middle of the select list; {WAY}")));
    }
    Ok(true)
}

/// What a table is, whatever its columns: asked before they are compared, for the better word.
fn same_table(name: &str, before: &WindowedOrPlain, decl: &TableDecl, plan: &TablePlan) -> Result<(), PlanError> {
    let refuse = |what: &str| Err(refuse(name, what));
    let old = &before.table;
    let sorted = |formats: &[TableFormatKind]| formats.iter().copied().collect::<BTreeSet<_>>();
    if before.source != plan.source {
        return refuse(&format!("it moves from source {} to {}", before.source, plan.source));
    }
    if before.window.is_some() != plan.window.is_some() {
        return refuse("it changes between a plain select and a windowed aggregate");
    }
    if old.key != plan.key {
        let words = |key: &[String]| if key.is_empty() { "none".to_string() } else { format!("[{}]", key.join(", ")) };
        return refuse(&format!("its key changes from {} to {}", words(&old.key), words(&plan.key)));
    }
    if sorted(&old.formats) != sorted(&decl.formats) {
        let words = |formats: &[TableFormatKind]| formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return refuse(&format!("its formats change from [{}] to [{}]: the rows so far are in the former only", words(&old.formats), words(&decl.formats)));
    }
    if old.partition_by != decl.partition_by {
        return refuse("its partitioning changes");
    }
    Ok(())
}

fn table_change(name: &str, before: &WindowedOrPlain, after: &WindowedOrPlain, changes: &mut Vec<String>) -> Result<(), PlanError> {
    let refuse = |what: &str| refuse(name, what);
    let (old, new) = (&before.table, &after.table);
    let windowed = before.window.is_some();
    if windowed && before.state != after.state && !adds_columns(name, before, after)? {
        let only = |a: &str, b: &str| a.lines().filter(|l| !b.lines().any(|m| m == *l)).collect::<Vec<_>>().join("; ");
        let or_nothing = |text: String| if text.is_empty() { "nothing".to_string() } else { text };
        let sorted = |text: &str| text.lines().map(String::from).collect::<BTreeSet<_>>();
        if sorted(&before.state) == sorted(&after.state) {
            let moved = |a: &str, b: &str| a.lines().zip(b.lines()).filter(|(x, y)| x != y).map(|(x, _)| x).collect::<Vec<_>>().join("; ");
            return Err(refuse(&format!(
                "its windows are kept in another form: its columns, or those of its source that it reads, come in another order\n  the log has:  {}\n  the file has: {}\nput them back into their order, and new ones behind them",
                moved(&before.state, &after.state),
                moved(&after.state, &before.state)
            )));
        }
        return Err(refuse(&format!(
            "its windows are kept in another form, which needs a replay\n  the log has:  {}\n  the file has: {}\nrows already counted cannot be counted again in the new form",
            or_nothing(only(&before.state, &after.state)),
            or_nothing(only(&after.state, &before.state))
        )));
    }
    if before.window.is_some() && before.emit_on_update != after.emit_on_update {
        return Err(refuse("its way of emission changes: rows of windows that are open now would be left out or doubled"));
    }
    let known = changes.len();
    let names = |spec: &SpecRecord| spec.spec().map(|s| s.schema.fields().iter().map(|f| f.name().clone()).collect::<BTreeSet<_>>());
    let reordered = old.schema != new.schema && names(old).ok() == names(new).ok();
    if reordered {
        changes.push(format!("table {name}: its columns stand in another order; rows from here on follow its SQL"));
    } else if old.schema != new.schema {
        let corrected = if windowed { ", until their window is corrected" } else { "" };
        changes.push(format!("table {name}: columns are added; rows written before hold null in them{corrected}"));
    } else if before.sql != after.sql {
        let what = if before.window.is_some() { "its SQL is written differently and means the same" } else { "its SQL changes; rows from here on follow it" };
        changes.push(format!("table {name}: {what}"));
    }
    if before.allowed_lateness_us != after.allowed_lateness_us {
        let (from, to) = (duration(before.allowed_lateness_us), duration(after.allowed_lateness_us));
        changes.push(format!("table {name}: allowed lateness changes from {from} to {to}; what is late already stays late"));
    }
    for (key, value) in new.properties.iter().filter(|(k, v)| old.properties.get(*k) != Some(v)) {
        changes.push(format!("table {name}: its next commit sets property {key} to {value}"));
    }
    for key in old.properties.keys().filter(|k| !new.properties.contains_key(*k)) {
        changes.push(format!("table {name}: property {key} stays in the tables as it is; unset it there if it is to go"));
    }
    match &new.comment {
        _ if old.comment == new.comment => {}
        Some(_) => changes.push(format!("table {name}: its next commit sets its comment")),
        None => changes.push(format!("table {name}: its comment stays in the tables as it is; unset it there if it is to go")),
    }
    if changes.len() == known {
        changes.push(format!("table {name}: its record in the log changes"));
    }
    Ok(())
}

/// [`compile`], or what remembers its answers.
pub type Compile = fn(&Plan) -> Result<BTreeMap<String, Arc<TablePlan>>, PlanError>;

/// Plans the tables of a plan entry again: what the fold runs on, whatever the pipeline file says by now.
pub fn compile(plan: &Plan) -> Result<BTreeMap<String, Arc<TablePlan>>, PlanError> {
    let source = |(name, s): (&String, &SourcePlan)| SourceSpec {
        name: name.clone(),
        // Planning looks at the columns and the watermark column only.
        input: Input::File(FileInput { path: String::new() }),
        format: s.format,
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
