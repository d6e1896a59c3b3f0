//! The log in an object store: reading it whole or from where one stands, and appending to it.

use super::checkpoint::Stamps;
use super::decide::{self, PutAnswer, ReadBack, Verdict};
use super::entry::{self, Body, CheckpointRef, Entry};
use super::ledger::{Corrupt, Ledger};
use crate::failpoint;
use crate::mutant::{self, Mutant};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{0}")]
    Corrupt(#[from] Corrupt),
    /// An object of the log that cannot be read as one.
    #[error("{0}")]
    Damaged(String),
    #[error("the log cannot be reached: {0}")]
    Unavailable(String),
    /// The log went on without us past what can still be read: the caller reads it from the start.
    #[error("entries up to {upto} were truncated while this worker stood at {next}")]
    LeftBehind { next: u64, upto: u64 },
}

impl From<StoreError> for LogError {
    fn from(e: StoreError) -> Self {
        Self::Unavailable(e.to_string())
    }
}

/// What became of a proposal.
#[derive(Debug)]
pub enum Proposed {
    /// It is the entry of this number.
    Decided(u64),
    /// Others' entries took its place; read them and see whether it still fits.
    Lost,
    /// Nothing is known about it: drop the work, read the log from the start, delete nothing.
    StartOver,
}

/// A whole reading of a log: the state at a checkpoint (or at birth), and every entry after it.
#[derive(Debug)]
pub struct Reading {
    /// The state before `tail[0]`.
    pub start: Ledger,
    /// Ascending, without a gap, up to the head.
    pub tail: Vec<(u64, Entry)>,
    /// The state at the head.
    pub head: Ledger,
    /// What the checkpoint that it starts from says of the tables.
    pub stamps: Stamps,
}

#[derive(Debug, Clone)]
pub struct Log {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

/// How often the end of the log is looked for again when it moves away between list and read.
const READS: usize = 100;

fn number(path: &Path) -> Option<u64> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

impl Log {
    /// The log in this folder of the store. The store must not retry creates by itself.
    pub fn new(store: Arc<dyn ObjectStore>, folder: Path) -> Self {
        Self { store, folder }
    }

    fn path(&self, seq: u64) -> Path {
        self.folder.clone().join(format!("{seq:020}.json"))
    }

    /// Sequence numbers of the objects at or above `from`, ascending.
    pub async fn list(&self, from: u64) -> Result<Vec<u64>, LogError> {
        let objects = match from.checked_sub(1) {
            Some(below) => self.store.list_with_offset(Some(&self.folder), &self.path(below)),
            None => self.store.list(Some(&self.folder)),
        };
        let mut found: Vec<u64> = objects.try_filter_map(|o| async move { Ok(number(&o.location)) }).try_collect().await?;
        found.retain(|n| *n >= from);
        found.sort_unstable();
        Ok(found)
    }

    /// The entry, or `None` where there is none.
    pub async fn read(&self, seq: u64) -> Result<Option<Entry>, LogError> {
        let path = self.path(seq);
        let bytes = match self.store.get(&path).await {
            Ok(got) => got.bytes().await?,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        entry::parse(path.as_ref(), &bytes).map(Some).map_err(LogError::Damaged)
    }

    /// The newest checkpoint that the entries at or above `from` show: the last one listed names it.
    async fn newest_checkpoint(&self, from: u64) -> Result<Option<CheckpointRef>, LogError> {
        for _ in 0..READS {
            let Some(&last) = self.list(from).await?.last() else { return Ok(None) };
            // Gone between list and read: the log was truncated past it, and its new end says how far.
            let Some(entry) = self.read(last).await? else { continue };
            return Ok(checkpoint_named_by(last, &entry));
        }
        Err(LogError::Unavailable(format!("the last entry listed in {} cannot be read, {READS} times over", self.folder)))
    }

    /// Reads the log from its newest checkpoint. `None`: there is no log yet.
    ///
    /// Lists, starts at the newest checkpoint (never at the first object listed), and lists again
    /// after reading: if the newest checkpoint is another by then it starts over, since a stray may
    /// have landed on a freed name.
    pub async fn open(&self) -> Result<Option<Reading>, LogError> {
        loop {
            let listed = self.list(0).await?;
            let Some(&last) = listed.last() else { return Ok(None) };
            let Some(newest) = self.read(last).await? else { continue };
            let checkpoint = checkpoint_named_by(last, &newest);
            let read = self.read_from(checkpoint, last).await;
            let again = self.newest_checkpoint(last).await?;
            if again.map(|c| c.entry) != checkpoint.map(|c| c.entry) && again.is_some() && !mutant::on(Mutant::NoSecondList) {
                continue;
            }
            return read.map(Some);
        }
    }

    async fn read_from(&self, checkpoint: Option<CheckpointRef>, last: u64) -> Result<Reading, LogError> {
        let missing = |seq: u64| LogError::Damaged(format!("log entry {} is missing although later ones exist; restore it from a backup", self.path(seq)));
        let (start, first, stamps) = match checkpoint {
            None => {
                let birth = self.read(0).await?.ok_or_else(|| missing(0))?;
                (Ledger::born(&birth)?, 1, Stamps::new())
            }
            Some(at) => match self.read(at.entry).await?.ok_or_else(|| missing(at.entry))?.body {
                Body::Checkpoint(c) if c.ledger.next == c.upto + 1 => (*c.ledger, c.upto + 1, c.stamps),
                Body::Checkpoint(c) => {
                    return Err(LogError::Damaged(format!("log entry {} is a checkpoint as of entry {}, and its state is that before entry {}", self.path(at.entry), c.upto, c.ledger.next)));
                }
                _ => return Err(LogError::Damaged(format!("log entry {} is no checkpoint although others name it so", self.path(at.entry)))),
            },
        };
        let mut tail = vec![];
        let mut head = start.clone();
        for seq in first..=last {
            let entry = self.read(seq).await?.ok_or_else(|| missing(seq))?;
            head.apply(&entry)?;
            tail.push((seq, entry));
        }
        Ok(Reading { start, tail, head, stamps })
    }

    /// Entries from `next` on, as far as there are any.
    ///
    /// # Errors
    /// [`LogError::LeftBehind`] when the newest checkpoint holds `next` already: what lies there
    /// now may be a stray.
    pub async fn tail(&self, next: u64) -> Result<Vec<(u64, Entry)>, LogError> {
        let listed = self.list(next).await?;
        let Some(&last) = listed.last() else { return Ok(vec![]) };
        let newest = self.read(last).await?;
        let left_behind = |c: Option<CheckpointRef>| match c {
            Some(c) if c.upto >= next => Err(LogError::LeftBehind { next, upto: c.upto }),
            _ => Ok(()),
        };
        left_behind(newest.as_ref().and_then(|e| checkpoint_named_by(last, e)))?;
        let mut tail = vec![];
        for seq in next..=last {
            let Some(entry) = self.read(seq).await? else { break };
            tail.push((seq, entry));
        }
        left_behind(self.newest_checkpoint(last).await?)?;
        Ok(tail)
    }

    /// Entries below `next` that lie there still: nothing needs them any more, and truncation takes them in time.
    /// Where the history has one of them, that one counts: what lies on a name that was freed may be a stray.
    pub async fn remains(&self, next: u64) -> Result<Vec<(u64, Entry)>, LogError> {
        let mut remains = vec![];
        for seq in self.list(0).await?.into_iter().take_while(|s| *s < next) {
            match self.read(seq).await {
                Ok(Some(entry)) => remains.push((seq, entry)),
                // Taken meanwhile, or not worth a refusal.
                Ok(None) | Err(LogError::Damaged(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(remains)
    }

    /// Creates entry 0. `Ok(false)`: another did, adopt theirs by [`Log::open`].
    pub async fn give_birth(&self, birth: &Entry) -> Result<bool, LogError> {
        let bytes = encode(birth)?;
        loop {
            let put = self.create(0, bytes.clone()).await;
            if let Some(reading) = self.open().await? {
                let mine = self.read(0).await?.is_some_and(|e| e.attempt == birth.attempt);
                return Ok(mine && reading.head.log == birth.log);
            }
            if let Err(e) = put {
                match e {
                    StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } => {}
                    other => return Err(other.into()),
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn create(&self, seq: u64, bytes: Bytes) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        self.store.put_opts(&self.path(seq), bytes.into(), options).await.map(|_| ())
    }

    /// Proposes `entry` as number `at`, and does not return before its fate is known.
    ///
    /// While it is not (the store is away), nothing else is appended and nothing is deleted;
    /// `waiting` is told the reason now and then.
    pub async fn propose(&self, at: u64, entry: &Entry, mut waiting: impl FnMut(&str)) -> Result<Proposed, LogError> {
        let bytes = encode(entry)?;
        let mut pause = Duration::from_millis(50);
        let mut send = true;
        let mut answer = PutAnswer::NotClean;
        loop {
            let mut reason = String::new();
            if send {
                failpoint::hit("decide-before-put");
                answer = match self.create(at, bytes.clone()).await {
                    Ok(()) => PutAnswer::Created,
                    Err(e) => {
                        reason = e.to_string();
                        PutAnswer::NotClean
                    }
                };
                failpoint::hit("decide-after-put");
            }
            let read_back = match answer {
                PutAnswer::Created => None,
                PutAnswer::NotClean => Some(match self.read(at).await {
                    Ok(Some(found)) => ReadBack::Attempt(found.attempt),
                    Ok(None) => ReadBack::Absent,
                    Err(LogError::Damaged(e)) => return Err(LogError::Damaged(e)),
                    Err(e) => {
                        reason = e.to_string();
                        ReadBack::Unreadable
                    }
                }),
            };
            let newest = self.newest_checkpoint(at).await.map_err(|e| reason = e.to_string());
            match decide::verdict(at, entry.attempt, answer, read_back, newest) {
                Verdict::Decided => {
                    failpoint::hit("decide-answered");
                    return Ok(Proposed::Decided(at));
                }
                Verdict::Lost => return Ok(Proposed::Lost),
                Verdict::StartOver => return Ok(Proposed::StartOver),
                Verdict::SendAgain => send = true,
                Verdict::AskAgain => send = false,
            }
            waiting(&reason);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Removes entries up to and including `upto`, in ascending order. What lies there may be a
    /// stray: nothing may be concluded from what it names.
    pub async fn truncate(&self, upto: u64) -> Result<u64, LogError> {
        let mut removed = 0;
        for seq in self.list(0).await?.into_iter().take_while(|s| *s <= upto) {
            self.store.delete(&self.path(seq)).await?;
            failpoint::hit("truncate-between");
            removed += 1;
        }
        Ok(removed)
    }
}

fn checkpoint_named_by(seq: u64, entry: &Entry) -> Option<CheckpointRef> {
    match &entry.body {
        Body::Checkpoint(c) => Some(CheckpointRef { entry: seq, upto: c.upto }),
        _ => entry.checkpoint,
    }
}

fn encode(entry: &Entry) -> Result<Bytes, LogError> {
    serde_json::to_vec(entry).map(Bytes::from).map_err(|e| LogError::Damaged(format!("an entry cannot be written as JSON: {e}")))
}
