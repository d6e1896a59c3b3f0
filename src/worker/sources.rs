//! One thread per source: it polls, and answers commands between polls.

use crate::observe::{Metrics, cpu};
use super::surroundings::{Hosted, Hosting};
use crate::source::{Position, RawBatch, Source, SourceError, SourceEvent, SourceFacts};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Batches that wait between a source's thread and the ingest half.
const QUEUED: usize = 4;

/// How long a poll may find nothing.
const POLL: Duration = Duration::from_millis(20);

pub enum Command {
    /// Read from here; everything delivered from now on belongs to this generation.
    Start { generation: u64, positions: BTreeMap<i32, Position> },
    Pause(Vec<i32>),
    Facts(oneshot::Sender<Result<SourceFacts, SourceError>>),
    /// The tables hold the offsets up to here.
    Committed(BTreeMap<i32, i64>),
    Stop,
}

pub enum Event {
    Batch { generation: u64, batch: RawBatch },
    Assigned(Vec<i32>),
    Notice(String),
    /// The source went on after trouble.
    Fine,
    /// About the reading of this generation, like a batch: a later one may not even hold what it speaks of.
    Failed { generation: u64, error: SourceError },
}

/// The ingest half's handle to a source's thread.
pub struct SourceThread {
    pub name: String,
    commands: mpsc::UnboundedSender<Command>,
    pub events: mpsc::Receiver<Event>,
    hosted: Option<Hosted>,
}

impl SourceThread {
    /// Joins those that read the source for the same log, and starts to poll.
    pub fn spawn(name: String, source: Box<dyn Source>, log: Uuid, metrics: Arc<Metrics>, hosting: Hosting) -> std::io::Result<Self> {
        let (commands, received) = mpsc::unbounded_channel();
        let (sender, events) = mpsc::channel(QUEUED);
        let hosted = hosting.start(format!("source {name}"), Box::pin(run(source, log, received, sender, metrics, hosting)))?;
        Ok(Self { name, commands, events, hosted: Some(hosted) })
    }

    /// Where receipts go.
    pub fn receipts(&self) -> (String, mpsc::UnboundedSender<Command>) {
        (self.name.clone(), self.commands.clone())
    }

    pub fn send(&self, command: Command) {
        // A thread that has ended has said why in its events.
        let _ = self.commands.send(command);
    }

    /// Asks the source for its facts. The events must be drained meanwhile only when the thread waits
    /// for nothing else: it answers commands before it delivers.
    pub async fn facts(&self) -> Result<SourceFacts, SourceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Facts(reply));
        answer.await.unwrap_or_else(|_| Err(SourceError::Unavailable(format!("the thread of source {} has ended", self.name))))
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.send(Command::Stop);
        self.events.close();
        if let Some(hosted) = self.hosted.take() {
            hosted.end();
        }
    }
}

async fn run(
    mut source: Box<dyn Source>,
    log: Uuid,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
    hosting: Hosting,
) {
    let mut generation = 0;
    let mut started = false;
    let mut joined = false;
    let mut troubled = false;
    let mut waiting: VecDeque<Event> = VecDeque::new();
    let mut released = BTreeMap::new();
    loop {
        // With something to deliver and nobody to take it, commands are all there is to do.
        let mut command = commands.try_recv().ok();
        if command.is_none() && !waiting.is_empty() && events.capacity() == 0 {
            hosting.sleep(Duration::from_millis(2)).await;
            command = commands.try_recv().ok();
        }
        match command {
            Some(Command::Stop) => return,
            Some(Command::Start { generation: next, positions }) => {
                waiting.retain(|e| !matches!(e, Event::Batch { .. }));
                generation = next;
                match source.start(&positions) {
                    Ok(()) => {
                        started = true;
                        // What was released before partitions were ours is told now that they are.
                        if let Err(e) = source.report_committed(&released) {
                            waiting.push_back(Event::Notice(e.to_string()));
                        }
                    }
                    Err(error) => waiting.push_back(Event::Failed { generation, error }),
                }
                continue;
            }
            Some(Command::Pause(partitions)) => {
                if let Err(e) = source.pause(&partitions) {
                    waiting.push_back(Event::Notice(e.to_string()));
                }
                continue;
            }
            Some(Command::Facts(reply)) => {
                let _ = reply.send(source.facts());
                continue;
            }
            Some(Command::Committed(offsets)) => {
                if let Err(e) = source.report_committed(&offsets) {
                    waiting.push_back(Event::Notice(e.to_string()));
                }
                released = offsets;
                continue;
            }
            None => {}
        }
        while let Some(event) = waiting.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    waiting.push_front(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
        if !waiting.is_empty() {
            continue;
        }
        if !joined {
            match source.join(log) {
                Ok(()) => joined = true,
                Err(SourceError::Unavailable(why)) => {
                    waiting.push_back(Event::Notice(why));
                    hosting.sleep(Duration::from_millis(500)).await;
                }
                Err(error) => waiting.push_back(Event::Failed { generation, error }),
            }
            continue;
        }
        match cpu(&metrics.cpu.consume, || source.poll(POLL)) {
            Ok(SourceEvent::Batch(batch)) => {
                if std::mem::take(&mut troubled) {
                    waiting.push_back(Event::Fine);
                }
                if started {
                    waiting.push_back(Event::Batch { generation, batch });
                }
            }
            Ok(SourceEvent::Assigned(partitions)) => {
                started = false;
                waiting.push_back(Event::Assigned(partitions));
            }
            Ok(SourceEvent::Notice(why)) | Err(SourceError::Unavailable(why)) => {
                troubled = true;
                waiting.push_back(Event::Notice(why));
            }
            Ok(SourceEvent::Idle) => hosting.rest(POLL).await,
            Err(error) => {
                waiting.push_back(Event::Failed { generation, error });
                started = false;
                hosting.sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
