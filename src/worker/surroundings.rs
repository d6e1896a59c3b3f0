//! What a worker takes from the world around it: time, ids, where things lie, where its loops run.
//!
//! All of it is injected, so that several workers can live in one process under a seed.

use super::{Clock, Place, WorkerError};
use crate::epoch::checkpoint::Cadence;
use crate::epoch::plan::{self, Compile};
use crate::pipeline::{Pipeline, SourceSpec};
use crate::source::{self, Source, SourceError};
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Ids that are never given twice. Ids of writers are compared: the lowest of them commits.
pub type Ids = Arc<dyn Fn() -> Uuid + Send + Sync>;

#[async_trait]
pub trait Surroundings: Send + Sync {
    fn clock(&self) -> Arc<dyn Clock>;

    fn ids(&self) -> Ids;

    /// Opens the lake and the log of this pipeline.
    async fn open_place(&self, pipeline: &Pipeline) -> Result<Place, WorkerError>;

    /// Opens a source for this worker.
    fn open_source(&self, spec: &SourceSpec, pipeline: &str, worker: &str) -> Result<Box<dyn Source>, SourceError>;

    fn hosting(&self) -> Hosting;

    /// Is there no space where this lies or will lie, or no quota left?
    fn is_full(&self, at: &Path) -> bool;

    /// How many lanes decode side by side.
    fn lanes(&self) -> usize;

    /// How often the log is made short.
    fn cadence(&self) -> Cadence {
        Cadence::default()
    }

    /// How the log's plans become those of tables.
    fn compile(&self) -> Compile {
        plan::compile
    }
}

/// Less than a start needs.
const SPACE_BYTES: usize = 1 << 20;

/// The real world.
pub struct System {
    pub clock: Arc<dyn Clock>,
}

#[async_trait]
impl Surroundings for System {
    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn ids(&self) -> Ids {
        Arc::new(Uuid::now_v7)
    }

    async fn open_place(&self, pipeline: &Pipeline) -> Result<Place, WorkerError> {
        Place::open(pipeline, &self.clock).await
    }

    fn open_source(&self, spec: &SourceSpec, pipeline: &str, worker: &str) -> Result<Box<dyn Source>, SourceError> {
        source::open(spec, pipeline, worker)
    }

    fn hosting(&self) -> Hosting {
        Hosting::Threads
    }

    /// Found out by writing: file systems count in many ways.
    fn is_full(&self, at: &Path) -> bool {
        let Some(folder) = at.ancestors().find(|f| f.is_dir()) else { return false };
        let path = folder.join(".millpond-space");
        let written = std::fs::write(&path, vec![0x5a; SPACE_BYTES]);
        let _ = std::fs::remove_file(&path);
        written.is_err_and(|e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }

    fn lanes(&self) -> usize {
        std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(1, 16)
    }
}

/// Where the loops of sources and lanes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosting {
    /// Each on a thread of its own: they block and compute.
    Threads,
    /// As tasks of the caller's runtime, which has one thread: what happens is decided by its order of tasks.
    Tasks,
}

/// A loop that was started.
pub enum Hosted {
    Thread(std::thread::JoinHandle<()>),
    Task(Task<()>),
}

impl Hosting {
    pub fn start(self, name: String, work: BoxFuture<'static, ()>) -> std::io::Result<Hosted> {
        Ok(match self {
            Self::Threads => Hosted::Thread(std::thread::Builder::new().name(name).spawn(move || futures::executor::block_on(work))?),
            Self::Tasks => Hosted::Task(Task(tokio::spawn(work))),
        })
    }

    /// Sleeps, in a loop that was started by [`Hosting::start`].
    pub async fn sleep(self, time: Duration) {
        match self {
            Self::Threads => std::thread::sleep(time),
            Self::Tasks => tokio::time::sleep(time).await,
        }
    }

    /// What a call that may block, and found nothing within `time`, leaves to wait for: a task must not block.
    pub async fn rest(self, time: Duration) {
        if self == Self::Tasks {
            tokio::time::sleep(time).await;
        }
    }
}

impl Hosted {
    /// Waits for the loop, which has been told to end. A task is ended here.
    pub fn end(self) {
        if let Self::Thread(thread) = self {
            let _ = thread.join();
        }
    }
}

/// A task that does not outlive its handle.
pub struct Task<T>(pub tokio::task::JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
