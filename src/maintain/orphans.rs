//! Condemn, then delete (I4).
//!
//! Nothing proves that an epoch is undecided: a put lands after any delay. So one pass
//!
//! 1. lists files whose names say that they are ours, older than the grace period;
//! 2. reads the log whole, from its newest checkpoint;
//! 3. reads every retained snapshot and unexpired Remove of the tables in whose folders they lie;
//! 4. appends a note that condemns the attempts it found nowhere: no writer proposes those from then on. The
//!    note is void when the log came to hold one of them meanwhile, or a checkpoint that the reading in step 2
//!    had not reached: what such a checkpoint hides may have been decided after the tables were read;
//! 5. deletes.
//!
//! The order is what makes it right (`model/`, `clean` and `log`). An attempt that is not in the log above M
//! and that the note condemns was either never decided, or at or below the M of step 2; then every table had
//! it before step 3, and a file of it that no snapshot names has been replaced and expired.
//!
//! Other files of an attempt that a table does name need no note, once M has passed it.
//!
//! What the table half writes needs no note: a commit is conditional on its base, and the table's stamp says
//! that the base is gone ([`crate::commit::LakeTable::unneeded`]). Runs belong to attempts, or are named by
//! the newest checkpoint.
//!
//! The grace period saves the work of those who are slow, and nothing else. Any number of cleaners may run.

use crate::commit::known::Known;
use crate::commit::{CommitError, TableFormat};
use crate::epoch::entry::Note;
use crate::epoch::log::{Log, LogError, Reading};
use crate::failpoint;
use crate::mutant::{self, Mutant};
use crate::pipeline::TableFormatKind;
use crate::runtime::offload;
use crate::stage::TableSpec;
use crate::stage::names::{self, Owner};
use crate::store::local::DurableLocal;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Files looked at in one pass, in each of the three folders: a larger folder takes several passes.
pub const FILES_AT_ONCE: usize = 50_000;

/// Attempts that one note names at most. The rest waits for the next pass.
pub const ATTEMPTS_AT_ONCE: usize = 1_000;

/// Probes are left alone for a day at least, so that no clock that is ahead takes one away under the racers of a start:
/// they would create it a second time, and a sound store be refused as one without conditional puts.
const PROBES_AFTER_MS: i64 = 86_400_000;

const PARALLEL_DELETES: usize = 8;

/// Who appends the note.
#[async_trait]
pub trait Notes: Send + Sync {
    /// Appends the note if it fits the log: `false` where it does not, or where its fate is unknown.
    ///
    /// `began`: the number that the log's next entry had when the search began.
    async fn append(&self, attempt: Uuid, began: u64, note: Note) -> Result<bool, LogError>;
}

#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    #[error("cannot list {folder}: {why}")]
    List { folder: String, why: String },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What a pass did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Files that belong to nobody, whether they could be deleted already or not.
    pub found: u64,
    pub attempts_condemned: u64,
    pub deleted: u64,
    pub bytes: u64,
    /// Tables whose files were left alone, and why; files that could not be deleted.
    pub left: Vec<String>,
}

/// Cleans up after one pipeline. Holds nothing that it must not forget.
pub struct Cleaner {
    pub pipeline: String,
    /// `_millpond/<pipeline>` below the lake's root.
    pub state_folder: String,
    pub store: Arc<dyn ObjectStore>,
    /// The same store where it is a local disk: half-written files show nowhere else.
    pub local: Option<Arc<DurableLocal>>,
    pub log: Log,
    pub formats: BTreeMap<TableFormatKind, Arc<dyn TableFormat>>,
    /// Files younger than this are left alone.
    pub after_ms: i64,
    /// Where the last pass stopped in a folder that has more files than one pass looks at.
    cursors: BTreeMap<String, Path>,
}

/// A file that may belong to nobody.
struct Candidate {
    path: Path,
    bytes: u64,
    owner: Owner,
}

impl Candidate {
    fn attempt(&self) -> Option<Uuid> {
        match self.owner {
            Owner::Attempt(of) => Some(of),
            Owner::Stamp(_) | Owner::Metadata(_) => None,
        }
    }
}

/// Format and table, and what was listed in its folder, by name.
type ByTable = BTreeMap<(TableFormatKind, String), BTreeMap<String, Candidate>>;

impl Cleaner {
    pub fn new(
        pipeline: &str,
        state_folder: &str,
        store: Arc<dyn ObjectStore>,
        local: Option<Arc<DurableLocal>>,
        log: Log,
        formats: BTreeMap<TableFormatKind, Arc<dyn TableFormat>>,
        after_ms: i64,
    ) -> Self {
        Self { pipeline: pipeline.into(), state_folder: state_folder.into(), store, local, log, formats, after_ms, cursors: BTreeMap::new() }
    }

    /// One pass. `attempt` is that of the note, if one is needed; `now_ms` is compared with the store's
    /// modification times.
    ///
    /// # Errors
    /// Nothing is lost and nothing needs to be undone: the next pass starts anew.
    pub async fn pass(&mut self, notes: &dyn Notes, now_ms: i64, attempt: Uuid) -> Result<Cleaned, CleanError> {
        let before_ms = now_ms.saturating_sub(self.after_ms);
        let (tables, runs) = self.list(before_ms).await?;
        let mut done = Cleaned::default();
        let nothing = tables.is_empty() && runs.is_empty();
        if !nothing && let Some(reading) = self.log.open().await? {
            self.clean(tables, runs, &reading, notes, attempt, &mut done).await?;
        }
        self.sweep(before_ms, now_ms.saturating_sub(self.after_ms.max(PROBES_AFTER_MS)), &mut done).await;
        Ok(done)
    }

    async fn clean(&self, tables: ByTable, runs: Vec<Candidate>, reading: &Reading, notes: &dyn Notes, attempt: Uuid, done: &mut Cleaned) -> Result<(), CleanError> {
        let decided: BTreeSet<Uuid> = reading.head.attempts.values().copied().collect();
        let mut free = vec![];
        // Attempts that a table or the checkpoint names; those that a table may name which cannot be read.
        let (mut held, mut unsure) = (BTreeSet::new(), BTreeSet::new());
        let mut of_attempts: Vec<(Uuid, Candidate)> = vec![];
        let specs: BTreeMap<String, (Arc<TableSpec>, u64)> = reading.head.specs().into_iter().filter_map(|(s, born)| Some((s.name.clone(), (s.shared().ok()?, born)))).collect();
        for ((format, table), mut listed) in tables {
            listed.retain(|_, c| !matches!(c.owner, Owner::Attempt(a) if decided.contains(&a)));
            if listed.is_empty() {
                continue;
            }
            let names = listed.keys().cloned().collect();
            // A table that the pipeline file has no more, or a folder that is none of its tables: not for us to judge. What an
            // attempt left elsewhere is judged by who is there.
            let Some((spec, born)) = specs.get(&table) else { continue };
            let unneeded = match self.unneeded(format, spec, *born, reading.head.log, names).await {
                Ok(unneeded) => unneeded,
                Err(why) => {
                    done.left.push(format!("{format} table {table}: {why}"));
                    unsure.extend(listed.values().filter_map(Candidate::attempt));
                    continue;
                }
            };
            for (name, candidate) in listed {
                match (unneeded.contains(&name), candidate.attempt()) {
                    (true, Some(of)) => of_attempts.push((of, candidate)),
                    (true, None) => free.push(candidate),
                    (false, of) => held.extend(of),
                }
            }
        }
        let live: BTreeSet<&str> = [&reading.start, &reading.head].into_iter().flat_map(|l| l.runs.values().flatten()).map(|r| names::file_name(&r.object)).collect();
        for run in runs {
            let Some(of) = run.attempt() else { continue };
            if live.contains(run.path.filename().unwrap_or_default()) {
                held.insert(of);
            } else if !decided.contains(&of) {
                of_attempts.push((of, run));
            }
        }
        of_attempts.retain(|(of, _)| !unsure.contains(of));
        done.found += (free.len() + of_attempts.len()) as u64;

        let (of_held, mut nowhere): (Vec<_>, Vec<_>) = of_attempts.into_iter().partition(|(of, _)| held.contains(of));
        free.extend(self.settled(of_held, reading).await?);
        let named: BTreeSet<Uuid> = nowhere.iter().map(|(of, _)| *of).collect();
        let mut condemned: BTreeSet<Uuid> = named.iter().copied().filter(|a| reading.head.condemned.contains_key(a)).collect();
        let new: Vec<Uuid> = named.difference(&condemned).copied().take(ATTEMPTS_AT_ONCE).collect();
        if mutant::on(Mutant::DeletesBeforeCondemning) {
            self.delete(nowhere.drain(..).map(|(_, file)| file).collect(), done).await;
        }
        if !new.is_empty() {
            failpoint::hit("clean-before-condemn");
            if notes.append(attempt, reading.head.next, Note::Condemned { attempts: new.clone() }).await? {
                failpoint::hit("clean-after-condemn");
                done.attempts_condemned += new.len() as u64;
                condemned.extend(new);
            }
        }
        free.extend(nowhere.into_iter().filter(|(of, _)| condemned.contains(of)).map(|(_, file)| file));
        self.delete(free, done).await;
        Ok(())
    }

    /// Of attempts that were decided, those files that M has left behind: runs of windows that are over or were
    /// merged, data files that were replaced and expired.
    ///
    /// What a table names was decided before the table was read. Where the log, read again, does not hold it
    /// above the M of the first reading, it lies at or below that, and every table had it when it was read.
    async fn settled(&self, files: Vec<(Uuid, Candidate)>, first: &Reading) -> Result<Vec<Candidate>, CleanError> {
        if files.is_empty() {
            return Ok(vec![]);
        }
        let Some(again) = self.log.open().await?.filter(|again| again.start.next == first.start.next) else { return Ok(vec![]) };
        let above: BTreeSet<Uuid> = again.head.attempts.values().copied().collect();
        Ok(files.into_iter().filter(|(of, _)| !above.contains(of)).map(|(_, file)| file).collect())
    }

    /// Lists what is old enough and ours by its name: by table, and the runs.
    async fn list(&mut self, before_ms: i64) -> Result<(ByTable, Vec<Candidate>), CleanError> {
        let mut tables = ByTable::new();
        for format in self.formats.keys().copied().collect::<Vec<_>>() {
            let folder = format!("{format}/{}", self.pipeline);
            for candidate in self.list_folder(&folder, before_ms).await? {
                // <format>/<pipeline>/<table>/…
                let Some(table) = candidate.path.parts().nth(2).map(|p| p.as_ref().to_string()) else { continue };
                let Some(name) = candidate.path.filename().map(str::to_string) else { continue };
                tables.entry((format, table)).or_default().insert(name, candidate);
            }
        }
        let runs = self.list_folder(&format!("{}/runs", self.state_folder), before_ms).await?;
        Ok((tables, runs))
    }

    /// The next files of a folder, in the order of their names, which is roughly that of their age.
    async fn list_folder(&mut self, folder: &str, before_ms: i64) -> Result<Vec<Candidate>, CleanError> {
        let failed = |why: object_store::Error| CleanError::List { folder: folder.to_string(), why: why.to_string() };
        let prefix = Path::from(folder);
        let after = self.cursors.get(folder).cloned();
        let mut some: BTreeMap<Path, Candidate> = BTreeMap::new();
        let mut more = false;
        let mut objects = self.store.list(Some(&prefix));
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            if after.as_ref().is_some_and(|a| object.location <= *a) {
                continue;
            }
            let Some(candidate) = self.candidate(&prefix, object, before_ms) else { continue };
            some.insert(candidate.path.clone(), candidate);
            if some.len() > FILES_AT_ONCE {
                some.pop_last();
                more = true;
            }
        }
        match some.last_key_value().filter(|_| more) {
            Some((last, _)) => self.cursors.insert(folder.to_string(), last.clone()),
            None => self.cursors.remove(folder),
        };
        Ok(some.into_values().collect())
    }

    fn candidate(&self, prefix: &Path, object: ObjectMeta, before_ms: i64) -> Option<Candidate> {
        let owner = names::owner(object.location.filename()?)?;
        let old = object.last_modified.timestamp_millis() <= before_ms;
        // A link in the folder may lead anywhere: what lies elsewhere is not ours to judge.
        let inside = object.location.prefix_match(prefix).is_some() && self.local.as_ref().is_none_or(|l| l.lies_inside(&object.location, prefix));
        (old && inside).then_some(Candidate { bytes: object.size, path: object.location, owner })
    }

    /// Names of files that the table does not need. Text: why it cannot be told.
    async fn unneeded(&self, format: TableFormatKind, spec: &Arc<TableSpec>, born: u64, log: Uuid, names: BTreeSet<String>) -> Result<BTreeSet<String>, String> {
        let maker = self.formats.get(&format).ok_or("this program cannot open it")?;
        let text = |e: CommitError| e.to_string();
        let mut table = maker.open(spec.clone()).await.map_err(text)?.ok_or("it does not exist")?;
        let (base, unneeded) = table.unneeded(names).await.map_err(text)?;
        if base.stamp.log != log {
            return Err(format!("it is stamped by log {}, and this pipeline's is {log}", base.stamp.log));
        }
        // Commits to the table that was dropped may have landed in the one that was made anew, and tell stamps that the
        // other one, once it is brought back, has not reached.
        let known = Known::new(self.store.clone(), &self.state_folder, log).uuid(&spec.name, format, born).await.map_err(text)?;
        if let Some(known) = known.filter(|known| *known != base.table_uuid) {
            return Err(format!("its uuid is {}, and this pipeline filled {known}: it was dropped and made anew", base.table_uuid));
        }
        Ok(unneeded)
    }

    async fn delete(&self, files: Vec<Candidate>, done: &mut Cleaned) {
        let store = &self.store;
        let each = |file: Candidate| async move {
            failpoint::hit("clean-before-delete");
            let gone = match store.delete(&file.path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(e) => Err(format!("cannot delete {}: {e}", file.path)),
            };
            failpoint::hit("clean-after-delete");
            (file.bytes, gone)
        };
        let mut deletes = stream::iter(files).map(each).buffer_unordered(PARALLEL_DELETES);
        while let Some((bytes, gone)) = deletes.next().await {
            match gone {
                Ok(()) => {
                    done.deleted += 1;
                    done.bytes += bytes;
                }
                Err(why) => done.left.push(why),
            }
        }
    }

    /// What no log speaks of: names of the start's probe, and puts that a kill cut short. Nobody needs either
    /// once it is old: a writer that wakes up finds its put failed, and puts again.
    async fn sweep(&self, before_ms: i64, probes_before_ms: i64, done: &mut Cleaned) {
        let probes: Vec<ObjectMeta> = self.store.list(Some(&Path::from(format!("{}/probe", self.state_folder)))).try_collect().await.unwrap_or_default();
        let old = |o: &ObjectMeta| o.last_modified.timestamp_millis() <= probes_before_ms && crate::store::probe::is_probe(&o.location);
        let probes: Vec<Candidate> = probes.into_iter().filter(old).map(|o| Candidate { path: o.location, bytes: o.size, owner: Owner::Stamp(0) }).collect();
        done.found += probes.len() as u64;
        self.delete(probes, done).await;
        let Some(local) = &self.local else { return };
        let folders = self.formats.keys().map(|f| format!("{f}/{}", self.pipeline)).chain([self.state_folder.clone()]);
        for folder in folders {
            let local = local.clone();
            let swept = offload(move || local.sweep_cut_short(&Path::from(folder), before_ms)).await;
            match swept {
                Ok(Ok((files, bytes))) => {
                    done.found += files;
                    done.deleted += files;
                    done.bytes += bytes;
                }
                Ok(Err(e)) => done.left.push(e.to_string()),
                Err(e) => done.left.push(e.to_string()),
            }
        }
    }
}
