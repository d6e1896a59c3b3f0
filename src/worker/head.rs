//! The one place in a worker that appends to the log, and from which both halves learn what was decided.

use crate::epoch::decide::{self, Unfit};
use crate::epoch::entry::{Body, Entry, VERSION};
use crate::epoch::ledger::{Ledger, Times};
use crate::epoch::log::{Log, LogError, Proposed};
use crate::mutant::{self, Mutant};
use crate::observe::Metrics;
use crate::partial::Run;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

/// An entry of the log, on its way to the table half.
pub struct Decided {
    pub seq: u64,
    pub entry: Arc<Entry>,
    /// What it does to the time of every windowed table.
    pub times: BTreeMap<String, Times>,
    /// Its runs, when this worker made them: they need not be read back.
    pub runs: Option<HandedRuns>,
    /// Its staged files, until the table half has taken it.
    pub staged: Weight,
}

/// Bytes that count in a sum for as long as this is there.
#[derive(Debug, Default)]
pub struct Weight {
    bytes: u64,
    sum: Arc<AtomicU64>,
}

impl Weight {
    fn new(bytes: u64, sum: &Arc<AtomicU64>) -> Self {
        sum.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, sum: sum.clone() }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Runs on their way from half to half in memory.
pub struct HandedRuns {
    runs: Vec<Run>,
    _weight: Weight,
}

impl HandedRuns {
    /// The runs; they wait no more.
    pub fn take(mut self) -> Vec<Run> {
        std::mem::take(&mut self.runs)
    }
}

/// What became of an entry that this worker proposed.
#[derive(Debug)]
pub enum Appended {
    Decided(u64),
    /// It fits no more: its work is dropped, and done again from where the log stands now.
    Stale(Unfit),
}

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another worker runs a newer version of the pipeline file.
    #[error("plan {newest} replaced plan {mine}, under which this worker runs: another worker was started with a changed pipeline file; restart this one with that file")]
    PlanReplaced { mine: u64, newest: u64 },
    /// The log was truncated past this worker: it must read it anew.
    #[error("the log went on past this worker while it slept")]
    StartOver,
}

pub struct Head {
    pub log: Log,
    pub writer: String,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
    keep_runs: bool,
    /// Bytes of the runs that wait for the table half, and what they may be.
    waiting: Arc<AtomicU64>,
    most_waiting: u64,
    /// Bytes of staged files of the entries that the table half has not taken yet.
    staged: Arc<AtomicU64>,
}

struct State {
    ledger: Ledger,
    /// `None` once nothing more is decided here: the table half then ends when it has caught up.
    out: Option<mpsc::UnboundedSender<Decided>>,
    plan: u64,
}

impl Head {
    /// `keep_runs`: hand own runs over in memory; without it they are read back from the store,
    /// as after a restart (tests do both).
    pub fn new(log: Log, writer: String, ledger: Ledger, out: mpsc::UnboundedSender<Decided>, metrics: Arc<Metrics>, keep_runs: bool) -> Self {
        let plan = ledger.plan_entry;
        let state = Mutex::new(State { ledger, out: Some(out), plan });
        Self { log, writer, state, metrics, keep_runs, waiting: Arc::default(), most_waiting: u64::MAX, staged: Arc::default() }
    }

    /// Bounds the memory of runs that wait for the table half: those beyond it are read back when their turn comes.
    pub fn with_run_memory(mut self, bytes: u64) -> Self {
        self.most_waiting = bytes;
        self
    }

    /// `None` where the runs are to be read back.
    fn hand_over(&self, runs: Vec<Run>) -> Option<HandedRuns> {
        let bytes = runs.iter().map(|r| r.batch.get_array_memory_size() as u64).sum();
        let before = self.waiting.load(Ordering::Relaxed);
        if !self.keep_runs || (before > 0 && before + bytes > self.most_waiting) {
            return None;
        }
        Some(HandedRuns { runs, _weight: Weight::new(bytes, &self.waiting) })
    }

    /// Bytes of staged files of entries that are decided and that the table half, which may be held up by a commit, has not
    /// seen yet.
    pub fn unseen_bytes(&self) -> u64 {
        self.staged.load(Ordering::Relaxed)
    }

    /// The log as this worker knows it.
    pub async fn ledger(&self) -> Ledger {
        self.state.lock().await.ledger.clone()
    }

    /// Looks at the log's state without copying it.
    pub async fn with<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.state.lock().await.ledger)
    }

    /// Nothing more will be decided by this worker: lets the table half end.
    pub async fn close(&self) {
        self.state.lock().await.out = None;
    }

    /// Reads what others have appended.
    pub async fn refresh(&self) -> Result<(), HeadError> {
        let mut state = self.state.lock().await;
        self.catch_up(&mut state).await
    }

    async fn catch_up(&self, state: &mut State) -> Result<(), HeadError> {
        let tail = match self.log.tail(state.ledger.next).await {
            Err(LogError::LeftBehind { .. }) => return Err(HeadError::StartOver),
            other => other?,
        };
        for (seq, entry) in tail {
            self.take(state, seq, entry, None)?;
        }
        if state.ledger.plan_entry != state.plan && !mutant::on(Mutant::OldPlanFits) {
            return Err(HeadError::PlanReplaced { mine: state.plan, newest: state.ledger.plan_entry });
        }
        Ok(())
    }

    fn take(&self, state: &mut State, seq: u64, entry: Entry, runs: Option<HandedRuns>) -> Result<(), HeadError> {
        let times = state.ledger.apply(&entry).map_err(LogError::from)?;
        // The table half is gone only when the worker stops: then nobody needs the entry here.
        if let Some(out) = &state.out {
            let staged = match &entry.body {
                Body::Data(data) => data.files.iter().map(|f| f.file.bytes).sum(),
                _ => 0,
            };
            let _ = out.send(Decided { seq, entry: Arc::new(entry), times, runs, staged: Weight::new(staged, &self.staged) });
        }
        Ok(())
    }

    /// Appends an entry, as soon as it is known that it fits, and learns its fate.
    ///
    /// `began`: the number that the log's next entry had when the work began.
    pub async fn append(&self, attempt: Uuid, began: u64, body: Body, runs: Vec<Run>, now_ms: i64) -> Result<Appended, HeadError> {
        let mut state = self.state.lock().await;
        let mut entry = Entry {
            version: VERSION,
            attempt,
            log: state.ledger.log,
            writer: self.writer.clone(),
            plan: state.plan,
            began,
            checkpoint: None,
            written_at_ms: now_ms,
            body,
        };
        loop {
            if let Err(unfit) = decide::fits(&state.ledger, &entry) {
                mutant::told(attempt, None);
                return Ok(Appended::Stale(unfit));
            }
            let at = state.ledger.next;
            entry.checkpoint = state.ledger.checkpoint.filter(|_| !mutant::on(Mutant::CheckpointForgotten));
            let proposed = self.log.propose(at, &entry, |why| self.metrics.waiting("log", why)).await?;
            self.metrics.waiting_over("log");
            match proposed {
                Proposed::Decided(seq) => {
                    mutant::told(attempt, Some(seq));
                    let is_plan = matches!(entry.body, Body::Plan(_));
                    self.take(&mut state, seq, entry, self.hand_over(runs))?;
                    if is_plan {
                        state.plan = seq;
                    }
                    return Ok(Appended::Decided(seq));
                }
                Proposed::Lost => self.catch_up(&mut state).await?,
                Proposed::StartOver => return Err(HeadError::StartOver),
            }
        }
    }
}
