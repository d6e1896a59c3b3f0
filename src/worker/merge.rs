//! Merging the runs below a checkpoint: part of writing it.

use super::WorkerError;
use super::tables::{Tables, folding};
use crate::epoch::entry::RunEntry;
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::mutant::{self, Mutant};
use crate::partial::RunKind;
use crate::runtime::in_place;
use crate::stage::names;
use crate::stage::runs::write_runs;
use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use object_store::ObjectStoreExt;
use std::collections::BTreeMap;
use uuid::Uuid;

impl Tables {
    /// Replaces the runs of tables that have many, in the state that the checkpoint of this attempt is to hold.
    /// What they were made of is deleted once it is decided. Until then the merged ones count for nothing, and
    /// the cleaner may take them with the attempt: no other checkpoint may name them.
    pub(super) async fn merge_runs(&mut self, trail: &mut Ledger, attempt: Uuid) -> Result<(), WorkerError> {
        if mutant::on(Mutant::MergedAcrossCheckpoint) {
            trail.runs = self.at.runs.clone();
        }
        let crowded: Vec<String> = trail.runs.iter().filter(|(_, runs)| runs.len() > self.parts.cadence.most_runs).map(|(n, _)| n.clone()).collect();
        let mut put = 0;
        for table in crowded {
            if self.folds.contains_key(&table) {
                let merged = self.merge_table(trail, &table, attempt, &mut put).await?;
                trail.runs.insert(table, merged);
            }
        }
        Ok(())
    }

    async fn merge_table(&mut self, trail: &Ledger, table: &str, attempt: Uuid, put: &mut usize) -> Result<Vec<LiveRun>, WorkerError> {
        let live = trail.runs.get(table).cloned().unwrap_or_default();
        // Judge-later rows first: few, and of many windows. By entry and window.
        let mut judged: BTreeMap<i64, Vec<(u64, Vec<RecordBatch>)>> = BTreeMap::new();
        let mut partial: BTreeMap<i64, Vec<LiveRun>> = BTreeMap::new();
        for run in live {
            match run.run.run.kind {
                RunKind::Partial { window_start_us } => partial.entry(window_start_us).or_default().push(run),
                RunKind::JudgeLater => {
                    let read = self.fetch_run(&run.object, &run.run.run).await?;
                    let Some(fold) = self.fold_of(table) else { continue };
                    for (window, batches) in fold.judged(run.horizon_before, vec![read]).map_err(|e| folding(table, e))? {
                        judged.entry(window).or_default().push((run.entry, batches));
                    }
                }
            }
        }
        let horizon = trail.horizons.get(table).copied().flatten();
        let windows: Vec<i64> = partial.keys().chain(judged.keys()).copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let mut merged = vec![];
        for window in windows {
            let runs = partial.remove(&window).unwrap_or_default();
            let rows = judged.remove(&window).unwrap_or_default();
            let end = trail.plan.tables.get(table).and_then(|t| t.window).map_or(i64::MAX, |w| w.window_of(window).1);
            if crate::time::is_late(end, horizon) {
                continue;
            }
            if runs.len() == 1 && rows.is_empty() {
                merged.extend(runs);
                continue;
            }
            *put += 1;
            let object = format!("{}/runs/{}", self.parts.state_folder, names::merged_runs(trail.next - 1, attempt, *put));
            merged.push(self.merge_window(table, window, end, runs, rows, object).await?);
        }
        merged.sort_by_key(|r| (r.entry, r.nth));
        Ok(merged)
    }

    async fn merge_window(&mut self, table: &str, window: i64, end: i64, runs: Vec<LiveRun>, rows: Vec<(u64, Vec<RecordBatch>)>, object: String) -> Result<LiveRun, WorkerError> {
        let failed = |e: &dyn std::fmt::Display| WorkerError::Internal(format!("table {table}: merging runs: {e}"));
        // Within an entry the judged rows come first, as in the fold.
        let mut ordered: Vec<(u64, usize, Vec<RecordBatch>)> = rows.into_iter().map(|(entry, batches)| (entry, 0, batches)).collect();
        for run in &runs {
            let read = self.fetch_run(&run.object, &run.run.run).await?;
            ordered.push((run.entry, run.nth + 1, vec![read.batch]));
        }
        ordered.sort_by_key(|(entry, nth, _)| (*entry, *nth));
        let first = ordered.first().map_or(0, |(entry, ..)| *entry);
        let Some(fold) = self.fold_of(table) else {
            return Err(failed(&"its fold is gone"));
        };
        let one = in_place(|| fold.merged(window, ordered.into_iter().flat_map(|(_, _, batches)| batches))).map_err(|e| folding(table, e))?;
        let (bytes, refs) = write_runs(&[one]).map_err(|e| failed(&e))?;
        self.parts.store.put(&Path::from(object.as_str()), bytes.into()).await.map_err(|e| WorkerError::Unavailable(format!("cannot write {object}: {e}")))?;
        let run = refs.into_iter().next().ok_or_else(|| failed(&"nothing was written"))?;
        Ok(LiveRun { entry: first, nth: 0, object, run: RunEntry { run, last_window_end_us: end }, horizon_before: None })
    }
}
