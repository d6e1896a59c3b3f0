//! Merging the runs below a checkpoint: part of writing it.

use super::WorkerError;
use super::tables::{Tables, folding};
use crate::epoch::entry::RunEntry;
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::failpoint;
use crate::fold::merge::Share;
use crate::mutant::{self, Mutant};
use crate::partial::SHARED_ROWS;
use crate::pipeline::sql::Tumble;
use crate::runtime::in_place;
use crate::stage::names;
use crate::stage::runs::write_runs;
use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use uuid::Uuid;

impl Tables {
    /// Replaces the runs of tables that have many, in the state that the checkpoint of this attempt is to hold.
    /// What they were made of is deleted once it is decided. Until then the merged ones count for nothing, and
    /// the cleaner may take them with the attempt: no other checkpoint may name them.
    pub(super) async fn merge_runs(&mut self, trail: &mut Ledger, attempt: Uuid) -> Result<(), WorkerError> {
        if mutant::on(Mutant::MergedAcrossCheckpoint) {
            trail.runs = self.at.runs.clone();
        }
        // Shares of one window count as one: merging them again would make no fewer.
        let count = |runs: &[LiveRun]| runs.iter().map(|r| (r.entry, r.nth, r.run.run.kind.windows())).collect::<BTreeSet<_>>().len();
        let crowded: Vec<String> = trail.runs.iter().filter(|(_, runs)| count(runs) > self.parts.cadence.most_runs).map(|(n, _)| n.clone()).collect();
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
        let Some(window) = trail.plan.tables.get(table).and_then(|t| t.window) else { return Ok(vec![]) };
        // Windows that begin earlier are over for good.
        let oldest = trail.horizons.get(table).copied().flatten().map_or(i64::MIN, |h| window.window_of(h).0);
        let mut pieces = vec![];
        for run in trail.runs.get(table).cloned().unwrap_or_default() {
            if let Some((first, last)) = run.run.run.kind.windows() {
                pieces.push(Piece { first, last, rows: run.run.run.rows, entry: run.entry, nth: run.nth + 1, rest: Rest::Run(Box::new(run)) });
                continue;
            }
            // Judge-later rows: few, and of many windows. Within an entry they come first, as in the fold.
            let read = self.fetch_run(&run.object, &run.run.run).await?;
            let fold = self.fold_of(table).ok_or_else(|| fold_gone(table))?;
            let judged = fold.judged(run.horizon_before, vec![read]).map_err(|e| folding(table, e))?;
            pieces.extend(judged.into_iter().filter(|(start, _)| *start >= oldest).map(|(start, batches)| Piece::read(start, run.entry, 0, batches)));
        }
        let rows = self.parts.cadence.merge_rows;
        let pieces = self.narrowed(table, pieces, oldest, rows).await?;
        let mut merged = vec![];
        for mut group in groups(pieces, rows) {
            if mutant::on(Mutant::MergedNotAsPrefix) && group.len() > 2 && matches!(group[1].rest, Rest::Run(_)) {
                merged.extend(match group.remove(1).rest {
                    Rest::Run(run) => Some(*run),
                    Rest::Read(_) => None,
                });
            }
            if let [Piece { rest: Rest::Run(run), .. }] = group.as_slice() {
                merged.push((**run).clone());
                continue;
            }
            for starts in parts(&group, oldest, rows) {
                let chosen: Vec<&Piece> = group.iter().filter(|p| p.first <= *starts.end() && p.last >= *starts.start()).collect();
                merged.extend(self.merge_part(trail, table, window, &chosen, starts, attempt, put).await?);
            }
        }
        merged.sort_by_key(|r| (r.entry, r.nth));
        Ok(merged)
    }

    /// Runs with a straggler or two reach over everything that is open. Lest all of it be merged with them, the widest are
    /// taken apart, as many as hold so many rows.
    async fn narrowed(&mut self, table: &str, pieces: Vec<Piece>, oldest: i64, rows: u64) -> Result<Vec<Piece>, WorkerError> {
        let wide = widest(&pieces, rows);
        let mut narrow = vec![];
        for (nth, piece) in pieces.into_iter().enumerate() {
            let Rest::Run(run) = &piece.rest else {
                narrow.push(piece);
                continue;
            };
            if !wide.contains(&nth) {
                narrow.push(piece);
                continue;
            }
            let read = self.fetch_run(&run.object, &run.run.run).await?;
            let fold = self.fold_of(table).ok_or_else(|| fold_gone(table))?;
            let windows = fold.by_window(read).map_err(|e| folding(table, e))?;
            narrow.extend(windows.into_iter().filter(|(start, _)| *start >= oldest).map(|(start, batches)| Piece::read(start, piece.entry, piece.nth, batches)));
        }
        Ok(narrow)
    }

    /// Merges the rows of the windows that begin within `starts`, one piece after the other. Of a window with more keys than
    /// memory is for, one share of the keys at a time.
    #[allow(clippy::too_many_arguments)]
    async fn merge_part(
        &mut self,
        trail: &Ledger,
        table: &str,
        window: Tumble,
        pieces: &[&Piece],
        starts: RangeInclusive<i64>,
        attempt: Uuid,
        put: &mut usize,
    ) -> Result<Vec<LiveRun>, WorkerError> {
        let failed = |e: &dyn std::fmt::Display| WorkerError::Internal(format!("table {table}: merging runs: {e}"));
        let (bytes, groups) = ((self.parts.pipeline.memory_bytes / 8) as usize, self.parts.cadence.merge_rows as usize);
        let mut emitted = BTreeSet::new();
        for piece in pieces.iter().filter(|p| trail.ended_at.is_some_and(|e| p.entry < e)) {
            self.rows_of(table, piece, &starts).await?.iter().for_each(|b| emitted.extend(window_starts(b).iter().copied()));
        }
        let mut merged = vec![];
        for side in if emitted.is_empty() { &[false][..] } else { &[true, false] } {
            // Of all keys: a run says by its entry alone whether its windows are emitted.
            let mut first = None;
            let mut shares = vec![Share::WHOLE];
            while let Some(share) = shares.pop() {
                let mut merging = self.fold_of(table).ok_or_else(|| fold_gone(table))?.merging(share, bytes, groups).map_err(|e| folding(table, e))?;
                for piece in pieces {
                    for batch in self.rows_of(table, piece, &starts).await? {
                        let batch = on_side(batch, &emitted, *side).map_err(|e| failed(&e))?;
                        if batch.num_rows() > 0 {
                            first = Some(first.unwrap_or(piece.entry).min(piece.entry));
                            in_place(|| merging.add(&batch)).map_err(|e| folding(table, e))?;
                        }
                    }
                }
                while let Some(runs) = in_place(|| merging.next_runs()).map_err(|e| folding(table, e))? {
                    let Some(entry) = first.filter(|_| !runs.is_empty()) else { continue };
                    *put += 1;
                    let object = format!("{}/runs/{}", self.parts.state_folder, names::merged_runs(trail.next - 1, attempt, *put));
                    let (bytes, refs) = write_runs(&runs).map_err(|e| failed(&e))?;
                    failpoint::hit("merge-before-put");
                    self.parts.store.put(&Path::from(object.as_str()), bytes.into()).await.map_err(|e| WorkerError::Unavailable(format!("cannot write {object}: {e}")))?;
                    failpoint::hit("merge-after-put");
                    merged.extend(refs.into_iter().map(|run| {
                        let last_window_end_us = run.kind.windows().map_or(i64::MAX, |(_, last)| window.window_of(last).1);
                        LiveRun { entry, nth: 0, object: object.clone(), run: RunEntry { run, last_window_end_us }, horizon_before: None }
                    }));
                }
                shares.extend(merging.left());
            }
        }
        Ok(merged)
    }

    /// The rows of a piece whose windows begin within `starts`, with the window's start before the other columns.
    async fn rows_of(&mut self, table: &str, piece: &Piece, starts: &RangeInclusive<i64>) -> Result<Vec<RecordBatch>, WorkerError> {
        let read = match &piece.rest {
            Rest::Run(run) => Some(self.fetch_run(&run.object, &run.run.run).await?),
            Rest::Read(_) => None,
        };
        let fold = self.fold_of(table).ok_or_else(|| fold_gone(table))?;
        let found = match (&piece.rest, read) {
            (Rest::Read(batches), _) => batches.iter().map(|b| fold.of_window(piece.first, b)).collect(),
            (_, Some(run)) => fold.within(&run, starts).map(|b| vec![b]),
            (Rest::Run(_), None) => Ok(vec![]),
        };
        found.map_err(|e| folding(table, e))
    }
}

/// Without it rows would be left out of the merged runs, and the originals be deleted.
fn fold_gone(table: &str) -> WorkerError {
    WorkerError::Internal(format!("table {table}: merging runs: its fold is gone"))
}

/// Rows that are to be merged.
struct Piece {
    /// Starts of the first and last window.
    first: i64,
    last: i64,
    rows: u64,
    entry: u64,
    /// Its place among the entry's.
    nth: usize,
    rest: Rest,
}

enum Rest {
    Run(Box<LiveRun>),
    /// Rows of one window, without its start.
    Read(Vec<RecordBatch>),
}

impl Piece {
    fn read(start: i64, entry: u64, nth: usize, batches: Vec<RecordBatch>) -> Self {
        let rows = batches.iter().map(|b| b.num_rows() as u64).sum();
        Self { first: start, last: start, rows, entry, nth, rest: Rest::Read(batches) }
    }
}

/// A run that shares windows with more others than this is wide.
const WIDE: usize = 8;

/// The runs that share windows with the most others, as many as hold so many rows.
fn widest(pieces: &[Piece], rows: u64) -> BTreeSet<usize> {
    let (mut firsts, mut lasts): (Vec<i64>, Vec<i64>) = pieces.iter().map(|p| (p.first, p.last)).unzip();
    firsts.sort_unstable();
    lasts.sort_unstable();
    // Itself is among them.
    let shares = |p: &Piece| firsts.partition_point(|f| *f <= p.last) - lasts.partition_point(|l| *l < p.first);
    let mut wide: Vec<(usize, usize)> = pieces.iter().enumerate().filter(|(_, p)| p.first < p.last).map(|(nth, p)| (shares(p), nth)).filter(|(n, _)| *n > WIDE).collect();
    wide.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = rows;
    let fits = |nth: &usize| {
        left = left.saturating_sub(pieces[*nth].rows);
        left > 0
    };
    wide.into_iter().map(|(_, nth)| nth).take_while(fits).collect()
}

/// What is merged together, each in the order of the log: pieces that may share windows, and small ones that lie side by
/// side, up to about so many rows. A large piece that shares none stays as it is.
fn groups(mut pieces: Vec<Piece>, rows: u64) -> Vec<Vec<Piece>> {
    pieces.sort_by_key(|p| (p.first, p.entry, p.nth));
    let mut sharing: Vec<Vec<Piece>> = vec![];
    let mut last = None;
    for piece in pieces {
        let shares = last.is_some_and(|l| piece.first <= l);
        last = last.max(Some(piece.last));
        match sharing.last_mut().filter(|_| shares) {
            Some(with) => with.push(piece),
            None => sharing.push(vec![piece]),
        }
    }
    let total = |of: &[Piece]| of.iter().map(|p| p.rows).sum::<u64>();
    let mut groups: Vec<Vec<Piece>> = vec![];
    // Of the last group, if it takes more.
    let mut held: Option<u64> = None;
    for of in sharing {
        let more = total(&of);
        let small = more < rows.min(SHARED_ROWS as u64);
        match (groups.last_mut(), held.filter(|held| small && *held < rows)) {
            (Some(group), Some(before)) => {
                group.extend(of);
                held = Some(before + more);
            }
            _ => {
                groups.push(of);
                held = small.then_some(more);
            }
        }
    }
    groups.iter_mut().for_each(|g| g.sort_by_key(|p| (p.entry, p.nth)));
    groups
}

/// Ranges of windows' starts, from `oldest` on, that hold about so many rows each, as far as can be told without reading:
/// a run's rows are taken to lie evenly over its windows.
fn parts(group: &[Piece], oldest: i64, rows: u64) -> Vec<RangeInclusive<i64>> {
    let expected = |from: i64, to: i64| -> f64 {
        let share = |p: &Piece| {
            let common = p.last.min(to).saturating_sub(p.first.max(from)).saturating_add(1).max(0);
            p.rows as f64 * common as f64 / (p.last - p.first + 1) as f64
        };
        group.iter().map(share).sum()
    };
    let first = group.iter().map(|p| p.first).min().unwrap_or(0).max(oldest);
    let last = group.iter().map(|p| p.last).max().unwrap_or(0).max(first);
    let mut open = vec![(first, last)];
    let mut ends = vec![];
    while let Some((from, to)) = open.pop() {
        if from == to || expected(from, to) <= rows as f64 {
            ends.push(to);
        } else {
            let middle = from + (to - from) / 2;
            open.extend([(middle + 1, to), (from, middle)]);
        }
    }
    ends.pop();
    let froms = [oldest].into_iter().chain(ends.iter().map(|end| end + 1));
    froms.zip(ends.iter().copied().chain([i64::MAX])).map(|(from, to)| from..=to).collect()
}

fn window_starts(batch: &RecordBatch) -> &[i64] {
    batch.column(0).as_primitive::<TimestampMicrosecondType>().values()
}

/// The rows of windows that an end of input has emitted, or those of the others.
fn on_side(batch: RecordBatch, emitted: &BTreeSet<i64>, side: bool) -> Result<RecordBatch, ArrowError> {
    if emitted.is_empty() {
        return Ok(if side { batch.slice(0, 0) } else { batch });
    }
    let chosen: BooleanArray = window_starts(&batch).iter().map(|s| Some(emitted.contains(s) == side)).collect();
    filter_record_batch(&batch, &chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::protocol_tests::Rng;
    use arrow::array::{Int64Array, TimestampMicrosecondArray};
    use std::sync::Arc;

    fn pieces(rng: &mut Rng) -> Vec<Piece> {
        let spread = [20, 400][rng.below(2) as usize];
        let piece = |rng: &mut Rng, entry| {
            let first = rng.below(spread) as i64;
            Piece { first, last: first + rng.below(5) as i64, rows: 1 + rng.below(9), entry, nth: 0, rest: Rest::Read(vec![]) }
        };
        (0..1 + rng.below(60)).map(|entry| piece(rng, entry)).collect()
    }

    #[test]
    fn every_row_of_a_window_is_in_one_group_and_one_part() {
        for seed in 0..2000 {
            let mut rng = Rng(seed);
            let of = pieces(&mut rng);
            let (n, rows) = (of.len(), 1 + rng.below(30));
            let groups = groups(of, rows);
            assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), n, "seed {seed}");
            let mut before = i64::MIN;
            for group in &groups {
                assert!(group.is_sorted_by_key(|p| p.entry), "seed {seed}: in the order of the log");
                let first = group.iter().map(|p| p.first).min().unwrap();
                assert!(first > before, "seed {seed}: groups share a window");
                before = group.iter().map(|p| p.last).max().unwrap();
                let oldest = [i64::MIN, first, first + 2][rng.below(3) as usize];
                let mut next = oldest;
                let parts = parts(group, oldest, rows);
                let held = |part: &RangeInclusive<i64>| group.iter().filter(|p| part.contains(&p.first) && p.first == p.last).map(|p| p.rows).sum::<u64>();
                // One window is never cut.
                let windows = |part: &RangeInclusive<i64>| group.iter().filter(|p| part.contains(&p.first)).map(|p| p.first).collect::<BTreeSet<_>>().len();
                assert!(parts.iter().all(|part| held(part) <= rows || windows(part) == 1), "seed {seed}: a part is too large");
                for part in parts {
                    assert_eq!(*part.start(), next, "seed {seed}: windows are left out, or twice there");
                    assert!(part.end() >= part.start());
                    next = part.end().wrapping_add(1);
                }
                assert_eq!(next, i64::MIN, "seed {seed}: the last part has no end");
            }
        }
    }

    #[test]
    fn runs_that_reach_over_everything_are_taken_apart() {
        let mut of: Vec<Piece> = (0..40).map(|i| Piece { first: i * 10, last: i * 10 + 9, rows: 100, entry: 0, nth: i as usize, rest: Rest::Read(vec![]) }).collect();
        of.extend((1..4).map(|entry| Piece { first: 0, last: 399, rows: 3, entry, nth: 0, rest: Rest::Read(vec![]) }));
        assert_eq!(widest(&of, 1000), BTreeSet::from([40, 41, 42]));
        assert_eq!(widest(&of, 7), BTreeSet::from([41, 42]), "as many as may be held");
        assert_eq!(widest(&of[..40], 1000), BTreeSet::new());
    }

    #[test]
    fn small_neighbours_are_merged_and_large_ones_left_alone() {
        let piece = |first, rows, entry| Piece { first, last: first, rows, entry, nth: 0, rest: Rest::Read(vec![]) };
        let sizes = |of: Vec<Piece>, rows| groups(of, rows).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes((0..6).map(|i| piece(i, 1, i as u64)).collect(), 100), [6]);
        assert_eq!(sizes((0..6).map(|i| piece(i, 1, i as u64)).collect(), 2), [2, 2, 2]);
        let large = SHARED_ROWS as u64;
        assert_eq!(sizes(vec![piece(0, large, 0), piece(1, large, 1), piece(2, 1, 2), piece(3, 1, 3), piece(4, large, 4)], 1 << 16), [1, 1, 2, 1]);
    }

    #[test]
    fn windows_that_an_end_of_input_emitted_are_told_from_the_others() {
        let starts = Arc::new(TimestampMicrosecondArray::from(vec![0, 5, 9]).with_timezone("UTC")) as arrow::array::ArrayRef;
        let batch = RecordBatch::try_from_iter([("window_start", starts), ("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)]).unwrap();
        let rows = |emitted: &[i64], side| {
            let batch = on_side(batch.clone(), &emitted.iter().copied().collect(), side).unwrap();
            batch.column(1).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()
        };
        assert_eq!((rows(&[0, 9], true), rows(&[0, 9], false)), (vec![1, 3], vec![2]));
        assert_eq!((rows(&[], true), rows(&[], false)), (vec![], vec![1, 2, 3]));
    }
}
