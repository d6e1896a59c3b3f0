//! When the cleaner runs, and who appends its notes.

use super::surroundings::Ids;
use super::{Clock, scratch};
use super::head::{Appended, Head, HeadError};
use crate::console::note;
use crate::epoch::entry::{Body, Note};
use crate::epoch::log::LogError;
use crate::maintain::orphans::{Cleaned, Cleaner, Notes};
use crate::observe::Metrics;
use crate::runtime::offload;
use async_trait::async_trait;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

struct ByHead {
    head: Arc<Head>,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Notes for ByHead {
    async fn append(&self, attempt: Uuid, began: u64, note: Note) -> Result<bool, LogError> {
        match self.head.append(attempt, began, Body::Note(note), vec![], self.clock.now_ms()).await {
            Ok(Appended::Decided(_)) => Ok(true),
            // Whatever became of it: the halves find out by themselves, and nothing is deleted.
            Ok(Appended::Stale(_)) | Err(HeadError::StartOver | HeadError::PlanReplaced { .. }) => Ok(false),
            Err(HeadError::Log(e)) => Err(e),
        }
    }
}

/// The cleaner of one worker.
pub struct Cleaning {
    cleaner: Cleaner,
    notes: ByHead,
    metrics: Arc<Metrics>,
    ids: Ids,
    /// This worker's local folder, beside those of others.
    scratch: PathBuf,
    told: Vec<String>,
    pub passes: u64,
}

impl Cleaning {
    pub fn new(cleaner: Cleaner, head: Arc<Head>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>, ids: Ids, scratch: PathBuf) -> Self {
        Self { cleaner, notes: ByHead { head, clock }, metrics, ids, scratch, told: vec![], passes: 0 }
    }

    /// One pass, unless another worker of this host is at it.
    pub async fn pass(&mut self) {
        scratch::touch(&self.scratch);
        let Some(beside) = self.scratch.parent().map(|p| p.to_path_buf()) else { return };
        // Two on one host would do the same work.
        let Ok(turn) = File::options().create(true).truncate(false).write(true).open(beside.join("cleaner")) else { return };
        // SAFETY: flock takes a descriptor, which `turn` keeps open, and an integer.
        if unsafe { libc::flock(turn.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return;
        }
        let now_ms = self.notes.clock.now_ms();
        match self.cleaner.pass(&self.notes, now_ms, (self.ids)()).await {
            Ok(done) => self.count(&done),
            Err(e) => self.tell(vec![e.to_string()]),
        }
        // What other workers left on the local disk is rebuilt by whoever needs it.
        let before_ms = now_ms.saturating_sub(self.cleaner.after_ms);
        let _ = offload(move || scratch::sweep_dead(&beside, before_ms)).await;
        self.passes += 1;
    }

    fn count(&mut self, done: &Cleaned) {
        let m = &self.metrics;
        m.orphans.store(done.found.saturating_sub(done.deleted), Ordering::Relaxed);
        m.orphans_deleted.fetch_add(done.deleted, Ordering::Relaxed);
        m.orphan_bytes_deleted.fetch_add(done.bytes, Ordering::Relaxed);
        m.attempts_condemned.fetch_add(done.attempts_condemned, Ordering::Relaxed);
        if done.deleted > 0 {
            note(format_args!("cleaner: deleted {} files of {} bytes that belong to nobody", done.deleted, done.bytes));
        }
        self.tell(done.left.clone());
    }

    /// What stays as it was is not said again.
    fn tell(&mut self, why: Vec<String>) {
        for line in why.iter().filter(|l| !self.told.contains(l)) {
            note(format_args!("cleaner: {line}"));
        }
        self.told = why;
    }

    /// A first pass when the tables have had time to catch up, then one `every` so often, until told to stop.
    pub async fn run(&mut self, first: Duration, every: Duration, stop: &AtomicBool) {
        let mut due = Instant::now() + first;
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() >= due {
                self.pass().await;
                due = Instant::now() + every;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
