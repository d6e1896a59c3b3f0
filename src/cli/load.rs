//! A pipeline file and the plans of its tables: everything that can be wrong with them without a connection, at once.

use crate::pipeline::sql::{self, Declared, TablePlan};
use crate::pipeline::{self, Pipeline, Problem, SourcePart, SourceText, TablePart, keys};
use crate::source::kafka::options;
use crate::stage::partition::PartitionSplitter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pipeline file that has passed every check that needs no connection.
pub struct Loaded {
    pub pipeline: Arc<Pipeline>,
    pub plans: Vec<Arc<TablePlan>>,
}

/// Reads a pipeline file and plans its SQL.
///
/// # Errors
/// Every problem, in the order of the file.
pub fn load(file: &Path) -> Result<Loaded, Vec<Problem>> {
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let env = |name: &str| std::env::var(name).ok();
    let (pipeline, parts) = pipeline::check(file, &cwd, &env);
    let text = SourceText::read(file).unwrap_or_else(|_| SourceText::new(file.display().to_string(), ""));
    let (mut plans, mut problems) = (vec![], vec![]);
    for source in &parts.sources {
        problems.extend(option_problems(&text, source));
    }
    let declared: Vec<Declared<'_>> = parts.sources.iter().map(SourcePart::declared).collect();
    for table in &parts.tables {
        match sql::check(&table.decl, &declared, parts.unsure) {
            Ok(plan) => {
                problems.extend(partition_problems(&text, table, &plan));
                plans.push(Arc::new(plan));
            }
            Err(wrong) => {
                problems.extend(wrong.errors.iter().map(|e| pipeline::sql_problem(&text, table, e)));
                problems.extend(wrong.columns.iter().flat_map(|columns| missing(&text, table, columns)));
            }
        }
    }
    match pipeline {
        Ok(pipeline) if problems.is_empty() => Ok(Loaded { pipeline: Arc::new(pipeline), plans }),
        other => {
            problems.extend(other.err().map(|p| p.list).unwrap_or_default());
            problems.sort_by_key(|p| (p.line, p.column));
            problems.dedup();
            Err(problems)
        }
    }
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
    options::refusals(&given).into_iter().filter_map(each).collect()
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
