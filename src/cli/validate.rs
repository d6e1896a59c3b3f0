//! `millpond validate FILE`.

use super::{CONFIG, OK, SystemClock, code_of, has_run, load, report};
use crate::epoch::plan::{self, Fit, Given};
use crate::pipeline::{PartitionTransform, Pipeline, TableFormatKind};
use crate::store::probe;
use crate::worker::{Clock, Place, WorkerError, check_declared, check_free, open_source};
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
    let mut failures: Vec<WorkerError> = vec![];
    if !a.offline {
        match connected(&loaded.pipeline, &loaded.plans).await {
            Ok(more) => notes.extend(more),
            Err(all) => failures = all,
        }
    }
    if a.json {
        let errors: Vec<String> = failures.iter().map(|e| e.to_string()).collect();
        println!("{}", json!({ "ok": errors.is_empty(), "errors": errors, "notes": notes }));
    } else {
        notes.iter().for_each(|n| println!("note: {n}"));
        failures.iter().for_each(|e| eprintln!("error: {e}"));
        if failures.is_empty() {
            println!("{} is right{}", a.file.display(), if a.offline { " as far as that can be told without a connection" } else { "" });
        }
    }
    match failures.first() {
        None => OK,
        Some(WorkerError::Refused(_)) => CONFIG,
        Some(e) => code_of(e),
    }
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

async fn connected(pipeline: &Arc<Pipeline>, plans: &[Arc<crate::pipeline::sql::TablePlan>]) -> Result<Vec<String>, Vec<WorkerError>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut failures = vec![];
    let (mut facts, mut starts) = (BTreeMap::new(), BTreeMap::new());
    for spec in &pipeline.sources {
        let asked = tokio::task::block_in_place(|| {
            let mut source = open_source(spec, &pipeline.name, "validate")?;
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
            Err(e) => failures.push(e.into()),
        }
    }
    let mut notes = vec![];
    // Where it never ran nothing is to be left behind: the store is tried in a folder of its own, as near as there is one.
    let trial = match trial(pipeline) {
        Ok(trial) => trial,
        Err(e) => {
            failures.push(e);
            return Err(failures);
        }
    };
    if let Some(trial) = trial.as_ref().filter(|_| pipeline.lake.root.is_dir()) {
        // Other pipelines' lake, or what is left of one: looked at, and not written to.
        let mut there = Pipeline::clone(pipeline);
        there.lake.iceberg_catalog.clone_from(&trial.pipeline.lake.iceberg_catalog);
        let free = match Place::open(&there, &clock).await {
            Ok(place) => check_free(&place, &there, plans).await,
            Err(e) => Err(e),
        };
        failures.extend(free.err());
    }
    let pipeline = trial.as_ref().map_or(pipeline, |t| &t.pipeline);
    match Place::open(pipeline, &clock).await {
        Err(e) => failures.push(e),
        Ok(place) => {
            failures.extend(check_declared(&place, pipeline, plans).err());
            let folder = Path::from(format!("{}/probe", place.state_folder));
            if let Err(e) = probe::create_if_absent(&place.store, &folder, Uuid::new_v4()).await {
                failures.push(e.into());
            }
            match place.log.open().await {
                Err(e) => failures.push(e.into()),
                Ok(None) => notes.push("the pipeline has not run yet: its tables will be made at the first run".into()),
                Ok(Some(reading)) => {
                    // What a source that does not answer would change cannot be told; its own failure is.
                    if facts.len() == pipeline.sources.len() {
                        match plan::fit(&reading.head, Given { pipeline, plans, facts: &facts, starts: &starts }, false) {
                            Err(e) => failures.push(e.into()),
                            Ok(Fit::Same) => {}
                            Ok(Fit::Change(_, what)) => notes.extend(what.into_iter().map(|w| format!("the next run changes the plan: {w}"))),
                        }
                    }
                    for (record, _) in reading.head.specs() {
                        let Ok(spec) = record.shared() else { continue };
                        for format in &record.formats {
                            match place.formats[format].open(spec.clone()).await {
                                Ok(_) => {}
                                Err(e) => failures.push(WorkerError::Refused(format!("{format} table {}: {e}", record.name))),
                            }
                        }
                    }
                }
            }
        }
    }
    if failures.is_empty() { Ok(notes) } else { Err(failures) }
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
