//! Runs that the log still needs: those that its newest checkpoint holds, and those of every entry above its M. A worker
//! that starts reads each of them; without one, no window that it has a part in can be summed up again.

use super::coverage::{self, Covered};
use super::facts::Facts;
use super::structure::{Checked, Role, chosen};
use super::{Finding, Lake, Options, Report, VerifyError, footer};
use crate::stage::runs::{RunRef, read_run};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::collections::{BTreeMap, BTreeSet};

/// An object with runs, as the log names it.
#[derive(Default)]
struct Object<'a> {
    /// Of an entry's; a checkpoint does not say how long its objects are.
    bytes: Option<u64>,
    runs: Vec<&'a RunRef>,
    by: BTreeSet<String>,
}

fn needed(facts: &Facts) -> BTreeMap<&str, Object<'_>> {
    let mut objects: BTreeMap<&str, Object> = BTreeMap::new();
    for (table, runs) in &facts.held_runs {
        for run in runs {
            let object = objects.entry(&run.object).or_default();
            object.runs.push(&run.run.run);
            object.by.insert(format!("the checkpoint as of entry {} for table {table}", facts.upto.unwrap_or(0)));
        }
    }
    let above = facts.upto.map_or(0, |upto| upto + 1);
    for (entry, named) in facts.runs.range(above..) {
        let object = objects.entry(&named.path).or_default();
        object.bytes = Some(named.bytes);
        object.runs.extend(named.runs.iter().map(|r| &r.run));
        object.by.insert(format!("entry {entry}"));
    }
    objects
}

/// Reads every run that is needed, and lists the objects that nobody names. `None`: the log was truncated meanwhile, and
/// what its older entries name may be gone for that.
pub async fn check(lake: &Lake, facts: &Facts, tables: &[Checked], options: &Options, report: &mut Report) -> Result<Option<()>, VerifyError> {
    let folder = format!("{}/runs", lake.state_folder);
    // What a worker has staged and not decided yet is among them.
    let listed: Vec<_> = lake.store.list(Some(&Path::from(folder.as_str()))).try_collect().await?;
    let objects = needed(facts);
    let (mut findings, mut covered) = (vec![], Covered::default());
    for (path, object) in &objects {
        let wanted = |run: &&&RunRef| chosen(options, &run.table, &Role::Declared { windowed: true });
        if object.runs.iter().any(|r| wanted(&r)) {
            one(lake, facts, path, object, &wanted, (&mut findings, &mut covered)).await?;
        }
    }
    findings.extend(coverage::check(facts, tables, &covered));
    if !findings.is_empty() && super::facts::newest_checkpoint(lake).await? != facts.checkpoint {
        return Ok(None);
    }
    report.findings.extend(findings);
    if options.table.is_none() {
        report.orphans.extend(listed.into_iter().map(|o| o.location.to_string()).filter(|path| !objects.contains_key(path.as_str())));
    }
    Ok(Some(()))
}

async fn one(lake: &Lake, facts: &Facts, path: &str, object: &Object<'_>, wanted: &dyn Fn(&&&RunRef) -> bool, (findings, covered): (&mut Vec<Finding>, &mut Covered)) -> Result<(), VerifyError> {
    let by = object.by.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut say = |kind: &'static str, text: String| findings.push(Finding::new(kind, text));
    let Some(bytes) = footer::size(lake, path).await.map_err(VerifyError::Unavailable)? else {
        say("run-missing", format!("the runs {path} are gone, and {by} needs them: a worker that starts stops there"));
        object.runs.iter().for_each(|r| covered.missing(&r.table));
        return Ok(());
    };
    if let Some(expected) = object.bytes.filter(|expected| *expected != bytes) {
        say("run-size", format!("the runs {path} have {bytes} bytes, {by} says {expected}"));
    }
    let location = Path::parse(path).map_err(|e| VerifyError::Refused(e.to_string()))?;
    // One run at a time: an object holds those of every window of its epoch.
    for run in object.runs.iter().filter(wanted) {
        let range = run.offset.min(bytes)..(run.offset + run.length).min(bytes);
        let segment = match range.is_empty() {
            true => bytes::Bytes::new(),
            false => match lake.store.get_range(&location, range).await {
                Ok(bytes) => bytes,
                Err(object_store::Error::NotFound { .. }) => {
                    say("run-missing", format!("the runs {path} went away while they were read, and {by} needs them"));
                    object.runs.iter().for_each(|r| covered.missing(&r.table));
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            },
        };
        match read_run(&segment, run) {
            Ok(run) => covered.take(facts, &run),
            Err(e) => {
                covered.missing(&run.table);
                say("run-damaged", format!("the runs {path}, which {by} needs: {e}"));
            }
        }
    }
    Ok(())
}
