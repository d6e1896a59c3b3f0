//! What truncation takes from the log, kept for those who prove the tables right.
//!
//! A fold needs the entries above the newest checkpoint's M only; a proof needs the facts of all of
//! them: which offsets an entry decided, how far event time was in it, which partitions it claimed
//! idle, under which plan, what it staged. Before a checkpoint frees entries, the worker writes those
//! facts, without runs and column statistics, as one *segment*. Entries never change once they are
//! decided, so that segments which overlap agree, and one that is written twice is the same bytes
//! under the same name. Nothing but `verify` and `query` ever reads them.
//!
//! ```text
//!   <state>/history/<first entry>-<last entry>.json.zst     20 digits each
//! ```
//! Small segments are merged into larger ones, [`FAN_OUT`] at a time, so that their number grows with
//! the logarithm of the log's length.

use super::entry::{Body, Data, Entry, Note, Plan};
use crate::failpoint;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Version of the segments written. A reader refuses a higher one.
pub const VERSION: u32 = 1;

/// Segments of about one size are merged when there are so many at the end.
pub const FAN_OUT: usize = 16;

/// Entries beyond which a segment is not merged again: merging holds one in memory.
const LARGEST: u64 = 50_000;

/// An entry as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its sequence number.
    pub entry: u64,
    pub attempt: Uuid,
    pub writer: String,
    /// Sequence number of the plan that it was made under.
    pub plan: u64,
    pub began: u64,
    pub written_at_ms: i64,
    pub body: RecordedBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedBody {
    /// Without runs, column statistics and split offsets.
    Data(Data),
    Plan(Plan),
    Note(Note),
    Checkpoint { upto: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
struct Segment {
    version: u32,
    log: Uuid,
    entries: Vec<Recorded>,
}

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("the log's history cannot be reached: {0}")]
    Unavailable(#[from] StoreError),
    #[error("history segment {path} cannot be read: {why}; restore it from a backup")]
    Damaged { path: String, why: String },
}

/// What is kept of an entry.
pub fn record(seq: u64, entry: &Entry) -> Recorded {
    let body = match &entry.body {
        Body::Plan(plan) => RecordedBody::Plan(plan.clone()),
        Body::Note(note) => RecordedBody::Note(note.clone()),
        Body::Checkpoint(checkpoint) => RecordedBody::Checkpoint { upto: checkpoint.upto },
        Body::Data(data) => {
            let mut files = data.files.clone();
            for staged in &mut files {
                staged.file.columns = vec![];
                staged.file.split_offsets = vec![];
            }
            let (intervals, bounds, counts) = (data.intervals.clone(), data.bounds.clone(), data.counts.clone());
            RecordedBody::Data(Data { read_at_ms: data.read_at_ms, intervals, bounds, files, runs: None, counts })
        }
    };
    let (attempt, writer) = (entry.attempt, entry.writer.clone());
    Recorded { entry: seq, attempt, writer, plan: entry.plan, began: entry.began, written_at_ms: entry.written_at_ms, body }
}

/// The history of one log.
#[derive(Debug, Clone)]
pub struct History {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

impl History {
    /// `state_folder` is the pipeline's, `_millpond/<pipeline>`.
    pub fn new(store: Arc<dyn ObjectStore>, state_folder: &str) -> Self {
        Self { store, folder: Path::from(format!("{state_folder}/history")) }
    }

    fn path(&self, first: u64, last: u64) -> Path {
        self.folder.clone().join(format!("{first:020}-{last:020}.json.zst"))
    }

    /// The segments that there are, as first and last entry, ascending.
    pub async fn list(&self) -> Result<Vec<(u64, u64)>, HistoryError> {
        let objects: Vec<_> = self.store.list(Some(&self.folder)).try_collect().await?;
        let mut found: Vec<(u64, u64)> = objects.iter().filter_map(|o| range_of(o.location.filename()?)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Writes the entries that a checkpoint is about to free, ascending without a gap; durable when it
    /// returns. Merges what has become many.
    pub async fn append(&self, log: Uuid, entries: Vec<Recorded>) -> Result<(), HistoryError> {
        self.write(log, entries).await?;
        while let Some(merged) = due(&self.list().await?) {
            let mut entries = BTreeMap::new();
            for (first, last) in &merged {
                let segment = self.read_segment(*first, *last).await?;
                entries.extend(segment.entries.into_iter().map(|e| (e.entry, e)));
            }
            let whole = (entries.keys().next().copied(), entries.keys().next_back().copied());
            self.write(log, entries.into_values().collect()).await?;
            failpoint::hit("history-merged");
            for (first, last) in merged.into_iter().filter(|s| (Some(s.0), Some(s.1)) != whole) {
                match self.store.delete(&self.path(first, last)).await {
                    // Another worker merges too.
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
                failpoint::hit("history-deleted");
            }
        }
        Ok(())
    }

    async fn write(&self, log: Uuid, entries: Vec<Recorded>) -> Result<(), HistoryError> {
        let (Some(first), Some(last)) = (entries.first().map(|e| e.entry), entries.last().map(|e| e.entry)) else { return Ok(()) };
        let path = self.path(first, last);
        let damaged = |why: String| HistoryError::Damaged { path: path.to_string(), why };
        let json = serde_json::to_vec(&Segment { version: VERSION, log, entries }).map_err(|e| damaged(e.to_string()))?;
        let bytes = zstd::encode_all(json.as_slice(), 3).map_err(|e| damaged(e.to_string()))?;
        failpoint::hit("history-before-put");
        self.store.put(&path, bytes.into()).await?;
        failpoint::hit("history-after-put");
        Ok(())
    }

    async fn read_segment(&self, first: u64, last: u64) -> Result<Segment, HistoryError> {
        let path = self.path(first, last);
        let damaged = |why: String| HistoryError::Damaged { path: path.to_string(), why };
        let bytes = self.store.get(&path).await?.bytes().await?;
        let json = zstd::decode_all(bytes.as_ref()).map_err(|e| damaged(e.to_string()))?;
        let segment: Segment = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        if segment.version > VERSION {
            return Err(damaged(format!("it has version {}, this program reads up to {VERSION}", segment.version)));
        }
        let whole = segment.entries.iter().map(|e| e.entry).eq(first..=last);
        if whole { Ok(segment) } else { Err(damaged(format!("it does not hold the entries {first} to {last}"))) }
    }

    /// Every entry that is kept, by its number, with the log that each segment was written from.
    ///
    /// # Errors
    /// A segment that cannot be read, and two that disagree about an entry.
    pub async fn read(&self) -> Result<(Option<Uuid>, BTreeMap<u64, Recorded>), HistoryError> {
        let (mut log, mut entries) = (None, BTreeMap::<u64, Recorded>::new());
        for (first, last) in self.list().await? {
            let damaged = |why: String| HistoryError::Damaged { path: self.path(first, last).to_string(), why };
            let segment = match self.read_segment(first, last).await {
                // Merged into another between listing and reading.
                Err(HistoryError::Unavailable(StoreError::NotFound { .. })) => return Box::pin(self.read()).await,
                read => read?,
            };
            if log.is_some_and(|l| l != segment.log) {
                return Err(damaged(format!("it is of log {}, other segments of another", segment.log)));
            }
            log = Some(segment.log);
            for entry in segment.entries {
                if entries.get(&entry.entry).is_some_and(|known| *known != entry) {
                    return Err(damaged(format!("entry {} is another in a segment beside it", entry.entry)));
                }
                entries.insert(entry.entry, entry);
            }
        }
        Ok((log, entries))
    }
}

fn range_of(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_suffix(".json.zst")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Which segments are to become one: the last [`FAN_OUT`] or more of about one size that join on.
fn due(segments: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
    let size = |(first, last): (u64, u64)| last - first + 1;
    let class = |s: (u64, u64)| size(s).ilog(FAN_OUT as u64);
    let newest = *segments.last()?;
    let mut run = vec![newest];
    for &segment in segments.iter().rev().skip(1) {
        let first = run[run.len() - 1].0;
        if segment.1 + 1 < first || class(segment) > class(newest) || size(segment) > LARGEST / FAN_OUT as u64 {
            break;
        }
        run.push(segment);
    }
    run.reverse();
    (run.len() >= FAN_OUT).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn recorded(entry: u64) -> Recorded {
        let body = RecordedBody::Checkpoint { upto: entry / 2 };
        Recorded { entry, attempt: Uuid::from_u128(entry as u128), writer: "w".into(), plan: 0, began: 0, written_at_ms: 7, body }
    }

    #[tokio::test]
    async fn every_entry_is_kept_in_few_segments() {
        let history = History::new(Arc::new(InMemory::new()), "_millpond/p");
        let log = Uuid::from_u128(1);
        assert_eq!(history.read().await.unwrap(), (None, BTreeMap::new()));
        let mut next = 0;
        for n in 0..300 {
            let last = next + 24 + n % 3;
            history.append(log, (next..=last).map(recorded).collect()).await.unwrap();
            // Another worker cut elsewhere, or the same one wrote it twice.
            if n % 10 == 0 {
                history.append(log, (next..=last + 5).map(recorded).collect()).await.unwrap();
                history.append(log, (next..=last).map(recorded).collect()).await.unwrap();
            }
            next = last + 1;
        }
        let (found, entries) = history.read().await.unwrap();
        assert_eq!(found, Some(log));
        assert!(entries.keys().copied().take(next as usize).eq(0..next));
        assert!(entries.values().all(|e| *e == recorded(e.entry)));
        let segments = history.list().await.unwrap();
        assert!(segments.len() < 60, "{} segments", segments.len());
    }

    #[tokio::test]
    async fn segments_that_disagree_or_are_cut_are_refused_by_name() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let history = History::new(store.clone(), "s");
        let log = Uuid::from_u128(1);
        history.append(log, (0..=9).map(recorded).collect()).await.unwrap();
        let mut other = recorded(5);
        other.writer = "x".into();
        history.append(log, vec![other]).await.unwrap();
        assert!(history.read().await.unwrap_err().to_string().contains("entry 5"));
        let path = history.path(5, 5);
        store.put(&path, bytes::Bytes::from_static(b"(\xb5/\xfd").into()).await.unwrap();
        assert!(history.read().await.unwrap_err().to_string().contains(path.as_ref()));
    }
}
