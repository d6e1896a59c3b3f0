//! A pipeline file and the plans of its tables: everything that can be wrong with them without a connection, at once.

use super::{formats, has_run};
use super::properties::{self, Told};
use crate::pipeline::sql::{self, Declared, Place, SqlError, TablePlan};
use crate::pipeline::{self, Level, Parts, Pipeline, Problem, SourcePart, SourceText, TableDecl, TablePart, keys};
use crate::source::kafka::options;
use crate::stage::partition::PartitionSplitter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pipeline file that has passed every check that needs no connection.
pub struct Loaded {
    pub pipeline: Arc<Pipeline>,
    pub plans: Vec<Arc<TablePlan>>,
    /// What is right, and mostly not meant.
    pub warnings: Vec<Problem>,
    pub text: SourceText,
    /// Where things stand in `text`.
    pub parts: Parts,
}

/// Reads a pipeline file and plans its SQL.
///
/// # Errors
/// Every problem, in the order of the file, warnings among them.
pub fn load(file: &Path) -> Result<Loaded, Vec<Problem>> {
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let env = |name: &str| std::env::var(name).ok();
    let (pipeline, mut parts) = pipeline::check(file, &cwd, &env);
    let text = SourceText::read(file).unwrap_or_else(|_| SourceText::new(file.display().to_string(), ""));
    let (mut plans, mut problems) = (vec![], std::mem::take(&mut parts.warnings));
    for source in &parts.sources {
        problems.extend(option_problems(&text, source));
    }
    let declared: Vec<Declared<'_>> = parts.sources.iter().map(SourcePart::declared).collect();
    // Tables that are there are judged as they are, by the log and by themselves.
    let begun = pipeline.as_ref().is_ok_and(has_run);
    for table in &parts.tables {
        let mut found: Vec<Problem> = property_problems(&text, table).collect();
        let plain = match sql::check(&table.decl, &declared, parts.unsure) {
            Ok(mut plan) => {
                plan.variables = table.variables.clone();
                found.extend(partition_problems(&text, table, &plan));
                if !begun {
                    found.extend(format_problems(&text, table, &plan, |column| sql::column_place(&table.decl, &declared, parts.unsure, column)));
                }
                let plain = plan.window.is_none();
                plans.push(Arc::new(plan));
                plain
            }
            Err(wrong) => {
                found.extend(wrong.errors.iter().map(|e| pipeline::sql_problem(&text, table, e)));
                found.extend(wrong.columns.iter().flat_map(|columns| missing(&text, table, columns)));
                wrong.plain
            }
        };
        found.extend(table.lateness_at.filter(|_| plain && table.decl.allowed_lateness_us > 0).map(|at| {
            let problem = text.problem(at, format!("table {}: allowed_lateness is for windows; no row of a plain select is late", table.decl.name));
            problem.expected("no `allowed_lateness`, or an aggregate over tumble(…)")
        }));
        found.iter_mut().for_each(|problem| table.variables.hide_in(problem));
        problems.extend(found);
    }
    drop(declared);
    let in_order = |problems: &mut Vec<Problem>| {
        problems.sort_by_key(|p| (p.line, p.column));
        problems.dedup();
    };
    let errors = problems.iter().any(|p| p.level == Level::Error);
    match pipeline {
        Ok(pipeline) if !errors => {
            in_order(&mut problems);
            Ok(Loaded { pipeline: Arc::new(pipeline), plans, warnings: problems, text, parts })
        }
        other => {
            problems.extend(other.err().map(|p| p.list).unwrap_or_default());
            in_order(&mut problems);
            Err(problems)
        }
    }
}

/// Properties that cannot hold, and those that do nothing here.
fn property_problems<'t>(text: &'t SourceText, table: &'t TablePart) -> impl Iterator<Item = Problem> + 't {
    table.properties.iter().filter_map(|property| {
        let told = properties::judge(&property.name, &property.value, &table.decl.formats)?;
        let say = |span, message: &str| text.problem(span, format!("table {}: {}", table.decl.name, message.replace(&format!("`{}`", property.value.trim()), &format!("`{}`", property.shown.trim()))));
        Some(match told {
            Told::Value(message, expected) => say(property.value_at, &message).expected(expected),
            Told::Name(message, expected) => say(property.name_at, &message).expected(expected),
            Told::Idle(message) => say(property.name_at, &message).warning(),
        })
    })
}

/// What its formats cannot hold of a table, at the column that it is about, where one is named. What was told of
/// properties and partition fields is not told again.
fn format_problems(text: &SourceText, table: &TablePart, plan: &TablePlan, place: impl Fn(&str) -> Option<Place>) -> Vec<Problem> {
    let fits = |field: &&pipeline::PartitionField| PartitionSplitter::new(&plan.output, std::slice::from_ref(*field)).is_ok();
    let partition_by = table.decl.partition_by.iter().filter(fits).cloned().collect();
    let decl = TableDecl { properties: Default::default(), partition_by, ..table.decl.clone() };
    let each = |why: String| {
        let name = &table.decl.name;
        let message = [format!("table `{name}` "), format!("table {name}: ")].iter().fold(why, |why, prefix| why.strip_prefix(prefix.as_str()).map(String::from).unwrap_or(why));
        // There is no table yet that could follow a change.
        let message = message.replace("; only added nullable columns are evolved in place", "").replace("FixedSizeBinary(16)", "uuid");
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let partition = message.contains("partition").then(|| table.decl.partition_by.iter().position(|p| quoted.contains(&p.column.as_str()))).flatten();
        if let Some(at) = partition.and_then(|i| table.partition_at.get(i)) {
            return text.problem(*at, format!("table {name}: {message}"));
        }
        // A field within a column has the column's name before its own.
        match quoted.iter().find_map(|column| place(column).or_else(|| place(column.split('.').next()?))) {
            Some(place) => {
                let error = SqlError { message, place, expected: None, nearest: None, unsupported: false };
                pipeline::sql_problem(text, table, &error)
            }
            None => text.problem(table.name_at, format!("table {name}: {message}")),
        }
    };
    formats::refusals(&decl, plan).into_iter().map(each).collect()
}

fn option_problems(text: &SourceText, source: &SourcePart) -> Vec<Problem> {
    let given: Vec<(&str, &str)> = source.options.iter().map(|o| (o.name.as_str(), o.value.as_str())).collect();
    let each = |refusal: options::Refusal| {
        let option = refusal.name.as_ref().and_then(|name| source.options.iter().find(|o| o.name == *name)).or(source.options.first())?;
        let span = if refusal.of_value { option.value_at } else { option.name_at };
        // What a variable stands for is not shown.
        let message = if option.shown == option.value { refusal.message } else { refusal.message.replace(&option.value, &option.shown) };
        let mut problem = text.problem(span, message).nearest(refusal.nearest.filter(|_| !refusal.of_value || option.shown == option.value));
        problem.expected = refusal.expected;
        Some(problem)
    };
    options::refusals(&given, !source.options_open).into_iter().filter_map(each).collect()
}

/// What a table that can be planned cannot be partitioned by.
fn partition_problems(text: &SourceText, table: &TablePart, plan: &TablePlan) -> Vec<Problem> {
    let columns: Vec<String> = plan.output.fields().iter().map(|f| f.name().clone()).collect();
    let mut problems = missing(text, table, &columns);
    for (field, span) in table.decl.partition_by.iter().zip(&table.partition_at) {
        if let (true, Err(why)) = (columns.contains(&field.column), PartitionSplitter::new(&plan.output, std::slice::from_ref(field))) {
            let problem = text.problem(*span, format!("table {}: {why}", table.decl.name));
            problems.push(problem.expected(format!("a time or a plain value among the columns {}", columns.join(", "))));
        }
    }
    problems
}

/// Columns of `partition_by` that the table does not have.
fn missing(text: &SourceText, table: &TablePart, columns: &[String]) -> Vec<Problem> {
    let each = table.decl.partition_by.iter().zip(&table.partition_at).filter(|(field, _)| !columns.contains(&field.column));
    let problem = |(field, span): (&pipeline::PartitionField, &pipeline::Span)| {
        let problem = text.problem(*span, format!("table {}: partition_by names `{}`, and the table has no such column", table.decl.name, field.column));
        problem.expected(format!("one of {}", columns.join(", "))).nearest(keys::nearest(&field.column, columns.iter().map(String::as_str)))
    };
    each.map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::entry::Plan;
    use crate::epoch::plan::{self, Given};
    use crate::partial::groups::Groups;
    use crate::source::SourceFacts;
    use arrow::record_batch::RecordBatch;
    use std::collections::BTreeMap;

    /// What is accepted without a connection a worker can run: planned again from what the log holds, down to the state of
    /// its aggregates.
    #[test]
    fn what_is_accepted_offline_the_worker_can_plan() {
        const TYPES: [&str; 16] = [
            "bool", "int32", "int64", "float32", "float64", "decimal(12,2)", "decimal(38,4)", "string", "binary", "date", "time", "timestamp", "timestamp_local", "uuid", "list<int64>", "struct<a: int64, u: uuid>",
        ];
        const CALLS: [&str; 14] = [
            "count(v)", "count(distinct v)", "sum(v)", "avg(v)", "min(v)", "max(v)", "bool_and(v)", "bool_or(v)", "stddev(v)", "var_pop(v)", "max(coalesce(v, v))", "min(cast(v as varchar))", "count(*) filter (where v = v)", "max(case when k > 1 then v end)",
        ];
        let folder = tempfile::tempdir().unwrap();
        let (mut accepted, mut refused) = (0, 0);
        for ty in TYPES {
            let windowed = |what: &str, group: &str| format!("select window_start, {what} as o from tumble(events, interval '5 minutes') group by window_start{group}");
            let mut selects: Vec<String> = CALLS.iter().map(|call| windowed(call, "")).collect();
            selects.extend([windowed("count(*)", ", v"), windowed("k, v", ", k, v"), windowed("count(*)", ", coalesce(v, v) having max(v) = min(v)")]);
            selects.extend(["v", "v, k", "coalesce(v, v)", "cast(v as varchar)", "v = v", "[v]", "nullif(v, v)", "v is null"].map(|what| format!("select {what} as o from events where v = v or k > 1")));
            for sql in selects {
                let text = format!(
                    "pipeline: p\nsources:\n  events:\n    file: e.ndjson\n    columns:\n      k: int64\n      at: timestamp\n      v: {ty}\n    watermark: {{column: at}}\ntables:\n  t:\n    sql: \"{sql}\"\nlake: {{root: ./lake}}\n"
                );
                let file = folder.path().join("p.yaml");
                std::fs::write(&file, text).unwrap();
                let Ok(loaded) = load(&file) else {
                    refused += 1;
                    continue;
                };
                accepted += 1;
                let facts = SourceFacts { incarnation: None, topic: "e".into(), partitions: BTreeMap::from([(0, (0, 0))]), held: BTreeMap::new(), names: BTreeMap::new(), last: BTreeMap::new() };
                let facts = BTreeMap::from([("events".to_string(), facts)]);
                let given = Given { pipeline: &loaded.pipeline, plans: &loaded.plans, facts: &facts, starts: &BTreeMap::new() };
                let born = plan::birth(given).unwrap_or_else(|e| panic!("{ty}: {sql}: {e}"));
                let read: Plan = serde_json::from_str(&serde_json::to_string(&born).unwrap()).unwrap();
                let again = plan::compile(&read).unwrap_or_else(|e| panic!("{ty}: {sql}: {e}"));
                assert_eq!(again["t"].describe(), loaded.plans[0].describe(), "{ty}: {sql}");
                if let Some(aggregate) = &again["t"].aggregate {
                    let mut groups = Groups::new(aggregate, &aggregate.keys).unwrap_or_else(|e| panic!("{ty}: {sql}: {e}"));
                    groups.update(aggregate, &RecordBatch::new_empty(aggregate.input.clone())).unwrap_or_else(|e| panic!("{ty}: {sql}: {e}"));
                }
            }
        }
        assert!(accepted > 200 && refused > 50, "{accepted} accepted, {refused} refused");
    }
}
