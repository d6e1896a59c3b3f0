//! `millpond validate FILE`.

use super::load::Loaded;
use super::{CONFIG, OK, SystemClock, answer, code_of, has_run, load, report, tell};
use crate::commit::advance::gone;
use crate::commit::known::Known;
use crate::epoch::ledger::Ledger;
use crate::epoch::plan::{self, Fit, Given};
use crate::pipeline::sql::{Place as SqlPlace, SqlError};
use crate::pipeline::{PartitionTransform, Parts, Pipeline, Problem, Span, TableFormatKind, TablePart, sql_problem};
use crate::store::probe;
use crate::worker::{Clock, Place, WorkerError, check_declared, check_free, known_source};
use object_store::path::Path;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

#[derive(clap::Args)]
pub struct Arguments {
    /// The pipeline file
    file: PathBuf,
    /// Check only what needs no connection
    #[arg(long)]
    offline: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn main(a: Arguments) -> i32 {
    let loaded = match load(&a.file) {
        Ok(loaded) => loaded,
        Err(problems) => return report(&problems, a.json),
    };
    let mut notes = notes(&loaded.pipeline);
    let mut failures: Vec<Trouble> = vec![];
    if !a.offline {
        match connected(&loaded).await {
            Ok(more) => notes.extend(more.iter().map(|note| loaded.pipeline.variables.hide(note))),
            Err(all) => failures = all,
        }
    }
    let mut problems = loaded.warnings.clone();
    problems.extend(failures.iter().map(|trouble| trouble.problem(&loaded)));
    problems.sort_by_key(|p| (p.line, p.column));
    let code = match failures.first().map(|trouble| &trouble.error) {
        None => OK,
        Some(WorkerError::Refused(_)) => CONFIG,
        Some(e) => code_of(e),
    };
    if a.json {
        return answer(format_args!("{}\n", json!({ "ok": failures.is_empty(), "problems": problems, "notes": notes })), code);
    }
    let mut text: String = notes.iter().map(|n| format!("note: {n}\n")).collect();
    if failures.is_empty() {
        text += &format!("{} is right{}\n", a.file.display(), if a.offline { " as far as that can be told without a connection" } else { "" });
    }
    let code = answer(text, code);
    tell(&problems);
    code
}

/// What only a connection shows to be wrong, and with what part of the file.
struct Trouble {
    error: WorkerError,
    at: At,
}

enum At {
    Pipeline,
    Lake,
    Source(String),
    /// What a source is read from.
    Input(String),
    /// Of a table, its late table among them, or of a source's dead letters.
    Table(String),
}

impl Trouble {
    fn problem(&self, loaded: &Loaded) -> Problem {
        let (message, parts) = (loaded.pipeline.variables.hide_difference(&self.error.to_string()), &loaded.parts);
        let source = |name: &str| parts.sources.iter().find(|s| s.spec.name == name).map(|s| s.name_at);
        let span = match &self.at {
            At::Pipeline => parts.pipeline_at,
            At::Lake => parts.root_at,
            At::Source(name) => source(name),
            At::Input(name) => input_at(parts, name, &message).or_else(|| source(name)),
            At::Table(name) => match parts.tables.iter().find(|t| t.decl.name == name.trim_end_matches("__late")) {
                Some(table) => Some(declared_at(loaded, table, &message)),
                None => source(name.trim_end_matches("__dead")),
            },
        };
        loaded.text.problem(span.or(parts.pipeline_at).unwrap_or(Span::START), message)
    }
}

/// The topic where the message is about one, else the brokers.
fn input_at(parts: &Parts, name: &str, message: &str) -> Option<Span> {
    let (brokers, topic) = parts.sources.iter().find(|s| s.spec.name == name)?.input_at?;
    Some(if message.contains("topic") { topic } else { brokers })
}

/// The part of a table's declaration that a message is about.
fn declared_at(loaded: &Loaded, table: &TablePart, message: &str) -> Span {
    let about = |words: &str| message.contains(words);
    let found = match () {
        () if about("its key changes") => table.key_at,
        () if about("its formats change") => table.formats_at,
        () if about("its partitioning changes") => table.partition_at.first().copied(),
        () if about("its way of emission") => table.emit_at,
        () if about("its SQL") || about("select list") || about("the columns changed") || about("kept in another form") => {
            let error = SqlError { message: String::new(), place: SqlPlace::Unknown, expected: None, nearest: None, unsupported: false };
            let problem = sql_problem(&loaded.text, table, &error);
            Some(Span { line: problem.line, column: problem.column, length: problem.length })
        }
        () => None,
    };
    found.unwrap_or(table.name_at)
}

fn notes(pipeline: &Pipeline) -> Vec<String> {
    let mut notes = vec![];
    for table in &pipeline.tables {
        let only_iceberg = table.partition_by.iter().any(|p| p.transform != PartitionTransform::Identity);
        if only_iceberg && table.formats.contains(&TableFormatKind::Delta) {
            notes.push(format!("table {}: Delta partitions by plain columns only; its Delta table is not partitioned", table.name));
        }
    }
    notes
}

async fn connected(loaded: &Loaded) -> Result<Vec<String>, Vec<Trouble>> {
    let (pipeline, plans) = (&loaded.pipeline, &loaded.plans);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut failures: Vec<Trouble> = vec![];
    let (mut facts, mut starts) = (BTreeMap::new(), BTreeMap::new());
    for spec in &pipeline.sources {
        let asked = tokio::task::block_in_place(|| {
            let mut source = crate::source::open(spec, &pipeline.name, "validate")?;
            let found = source.facts()?;
            let partitions: Vec<i32> = found.partitions.keys().copied().collect();
            let from = source.start_offsets(&partitions)?;
            Ok::<_, crate::source::SourceError>((found, from))
        });
        match asked {
            Ok((found, from)) => {
                facts.insert(spec.name.clone(), found);
                starts.insert(spec.name.clone(), from);
            }
            Err(e) => failures.push(Trouble { error: e.into(), at: At::Input(spec.name.clone()) }),
        }
    }
    let mut notes = vec![];
    // Where it never ran nothing is to be left behind: the store is tried in a folder of its own, as near as there is one.
    let trial = match trial(pipeline) {
        Ok(trial) => trial,
        Err(error) => {
            failures.push(Trouble { error, at: At::Lake });
            return Err(failures);
        }
    };
    if let Some(trial) = trial.as_ref().filter(|_| pipeline.lake.root.is_dir()) {
        // Other pipelines' lake, or what is left of one: looked at, and not written to.
        let mut there = Pipeline::clone(pipeline);
        there.lake.iceberg_catalog.clone_from(&trial.pipeline.lake.iceberg_catalog);
        match Place::open(&there, &clock).await {
            Ok(place) => {
                for (decl, plan) in there.tables.iter().zip(plans) {
                    let alone = Pipeline { tables: vec![decl.clone()], ..there.clone() };
                    let free = check_free(&place, &alone, std::slice::from_ref(plan)).await;
                    failures.extend(free.err().map(|error| Trouble { error, at: At::Table(decl.name.clone()) }));
                }
            }
            Err(error) => failures.push(Trouble { error, at: At::Lake }),
        }
    }
    let pipeline = trial.as_ref().map_or(pipeline, |t| &t.pipeline);
    match Place::open(pipeline, &clock).await {
        Err(error) => failures.push(Trouble { error, at: At::Lake }),
        Ok(place) => {
            failures.extend(check_declared(&place, pipeline, plans, &Default::default()).err().map(|error| Trouble { error, at: At::Pipeline }));
            let folder = Path::from(format!("{}/probe", place.state_folder));
            if let Err(e) = probe::create_if_absent(&place.store, &folder, Uuid::new_v4()).await {
                failures.push(Trouble { error: e.into(), at: At::Lake });
            }
            match place.log.open().await {
                Err(e) => failures.push(Trouble { error: e.into(), at: At::Pipeline }),
                Ok(None) => notes.push("the pipeline has not run yet: its tables will be made at the first run".into()),
                Ok(Some(reading)) => {
                    for (name, read) in &reading.head.sources {
                        let Some(facts) = facts.get(name) else { continue };
                        let held = known_source::check_same(name, read, facts).and_then(|()| known_source::check_ends(name, read, facts));
                        failures.extend(held.err().map(|error| Trouble { error, at: At::Input(name.clone()) }));
                    }
                    // What a source that does not answer would change cannot be told; its own failure is.
                    if facts.len() == pipeline.sources.len() {
                        let given = Given { pipeline, plans, facts: &facts, starts: &starts };
                        match plan::fit(&reading.head, given, false) {
                            Err(e) => failures.extend(misfits(&reading.head, given, e.to_string())),
                            Ok(Fit::Same) => {}
                            Ok(Fit::Change(_, what)) => notes.extend(what.into_iter().map(|w| format!("the next run changes the plan: {w}"))),
                        }
                    }
                    let known = Known::new(place.store.clone(), &place.state_folder, reading.head.log);
                    for (record, born) in reading.head.specs() {
                        let Ok(spec) = record.shared() else { continue };
                        for format in &record.formats {
                            let why = match place.formats[format].open(spec.clone()).await {
                                Ok(Some(_)) => None,
                                Ok(None) => {
                                    let uuid = known.uuid(&record.name, *format, born).await.ok().flatten();
                                    uuid.map(|uuid| gone(*format, &record.name, &uuid, &place.formats[format].place(&record.name)).to_string())
                                }
                                Err(e) => Some(format!("{format} table {}: {e}", record.name)),
                            };
                            failures.extend(why.map(|why| Trouble { error: WorkerError::Refused(why), at: At::Table(record.name.clone()) }));
                        }
                    }
                }
            }
        }
    }
    if failures.is_empty() { Ok(notes) } else { Err(failures) }
}

/// Everything in which the file does not fit the log: each source and each table is compared for itself. `whole` is what
/// was said of all of it, where the first difference ended the comparison.
fn misfits(log: &Ledger, given: Given<'_>, whole: String) -> Vec<Trouble> {
    let refused = |pipeline: &Pipeline, plans| {
        let why = plan::fit(log, Given { pipeline, plans, ..given }, false).err()?.to_string();
        // Of a part of the file it means nothing that an older plan was the same.
        match (why.starts_with("this is the pipeline file of plan"), why.split_once("it cannot be gone back to: ")) {
            (true, Some((_, why))) => Some(why.to_string()),
            (true, None) => None,
            (false, _) => Some(why),
        }
    };
    let mut found: Vec<(String, At)> = vec![];
    for source in &given.pipeline.sources {
        let alone = Pipeline { sources: vec![source.clone()], tables: vec![], ..given.pipeline.clone() };
        found.extend(refused(&alone, &[]).map(|why| (why, At::Source(source.name.clone()))));
    }
    for (decl, plan) in given.pipeline.tables.iter().zip(given.plans) {
        let sources = given.pipeline.sources.iter().filter(|s| s.name == plan.source).cloned().collect();
        let alone = Pipeline { sources, tables: vec![decl.clone()], ..given.pipeline.clone() };
        let why = refused(&alone, std::slice::from_ref(plan)).filter(|why| !found.iter().any(|(known, _)| known == why));
        found.extend(why.map(|why| (why, At::Table(decl.name.clone()))));
    }
    if !found.iter().any(|(why, _)| *why == whole) {
        found.retain(|(why, _)| !whole.contains(why.as_str()));
        found.insert(0, (whole, At::Pipeline));
    }
    found.into_iter().map(|(why, at)| Trouble { error: WorkerError::Refused(why), at }).collect()
}

/// A lake for one validation, removed when it is dropped.
struct Trial {
    pipeline: Arc<Pipeline>,
    folder: PathBuf,
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A trial lake beside the one that a first run will make; `None` where there has been a run.
fn trial(pipeline: &Arc<Pipeline>) -> Result<Option<Trial>, WorkerError> {
    if has_run(pipeline) {
        return Ok(None);
    }
    let root = &pipeline.lake.root;
    let near = root.ancestors().find(|f| f.exists()).unwrap_or(root);
    let folder = near.join(format!(".millpond-validate-{}", Uuid::new_v4()));
    std::fs::create_dir(&folder).map_err(|e| WorkerError::Unavailable(format!("cannot make lake.root {}: {e}; check the path, its permissions and free space", root.display())))?;
    let mut tried = Pipeline::clone(pipeline);
    tried.lake.root = folder.join("lake");
    if !tried.lake.iceberg_catalog.exists() {
        tried.lake.iceberg_catalog = tried.lake.root.join("catalog.db");
    }
    Ok(Some(Trial { pipeline: Arc::new(tried), folder }))
}
