//! The ingest half: cuts what the sources deliver into epochs and has each decided by the log.
//!
//! It holds no state of its own: every epoch starts from the log's positions, and work that became
//! stale is dropped and read again.

use super::head::{Appended, Head};
use super::lane::{EpochTerms, LaneCommand, LanePart};
use super::sources::{Command, Event, SourceThread};
use super::surroundings::Ids;
use super::{Clock, Pressure, WorkerError, known_source};
use crate::epoch::entry::{Body, ByPartition, Data, Interval, Note, RunEntry, RunObject, StagedFile};
use crate::epoch::ledger::{Ledger, SourceState};
use crate::failpoint;
use crate::mutant::{self, Mutant};
use crate::observe::{Metrics, cpu};
use crate::pipeline::Pipeline;
use crate::source::{END_PATIENCE, Position, RawBatch, SourceError, SourceFacts};
use crate::partial::Run;
use crate::stage::names;
use crate::stage::runs::write_runs;
use crate::time;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

/// A transaction that is open for longer than this (or than `idle_after` where that is shorter) is told of.
const HELD_PATIENCE: Duration = Duration::from_secs(60);
/// How often the lag is looked at while no epoch is decided.
const LAG_EVERY: Duration = Duration::from_secs(5);

/// Files and runs put at the same time.
const PARALLEL_PUTS: usize = 8;

/// How long the flags that others set (stop, paused) may go unseen while no source has anything to say.
const LOOK_UP: Duration = Duration::from_millis(20);

/// While partitions wait for others, an epoch ends once the others have had nothing for so long: only the next one may let go
/// of those that wait.
const STARVED: Duration = Duration::from_millis(100);

pub struct Ingest {
    pub pipeline: Arc<Pipeline>,
    pub store: Arc<dyn ObjectStore>,
    /// `_millpond/<pipeline>` below the lake's root.
    pub state_folder: String,
    pub head: Arc<Head>,
    pub sources: Vec<SourceThread>,
    pub lanes: Vec<mpsc::Sender<LaneCommand>>,
    /// Bytes that the open epoch holds, by lane.
    pub held: Vec<Arc<AtomicU64>>,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    pub ids: Ids,
    pub pressure: Arc<Pressure>,
    pub stop: Arc<AtomicBool>,
    /// Ends to reach, then stop: `--until-end`.
    pub until: Option<ByPartition<i64>>,
    pub final_note: bool,
    /// The source that is asked first for the next event.
    pub turn: usize,
}

/// How one source stands, as this worker sees it.
#[derive(Default)]
struct Reading {
    generation: u64,
    own: BTreeSet<i32>,
    /// Where the log stood when the source was started.
    started: BTreeMap<i32, i64>,
    /// Where the next batch of a partition must start.
    next: BTreeMap<i32, i64>,
    /// Partitions whose end was seen at `next`.
    at_end: BTreeSet<i32>,
    /// Since when a partition has had no new row.
    quiet_since: BTreeMap<i32, Instant>,
    names: BTreeMap<i32, String>,
    /// Partitions whose end an open transaction holds back: at which offset, and since when.
    held: BTreeMap<i32, (i64, Instant)>,
    /// Partitions that wait for those behind them.
    paused: Vec<i32>,
    /// Something came since the epoch began.
    moved: bool,
}

#[derive(Default)]
struct Open {
    attempt: Uuid,
    began: u64,
    data: Data,
    leader_epochs: BTreeMap<(usize, i32), i32>,
    records: u64,
    raw_bytes: u64,
    /// Some interval is not empty. There need be no record in it: control records and aborted ones are offsets too.
    moved: bool,
}

impl Ingest {
    /// Runs until the ends are reached, the stop flag is up, or something must be told to the user. Returns the sources,
    /// which take receipts until the tables are done.
    pub async fn run(mut self) -> Result<Vec<SourceThread>, WorkerError> {
        let mut readings: Vec<Reading> = self.sources.iter().map(|_| Reading::default()).collect();
        let every = Duration::from_millis(self.pipeline.epoch_every_ms);
        // A share of the memory for what an epoch gathers; the rest is for prefetch, fold and commit.
        let epoch_bytes = (self.pipeline.memory_bytes / 4).max(8 << 20);
        let mut open: Option<Open> = None;
        let mut since = Instant::now();
        let mut came = since;
        let mut lag_told = Instant::now();
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let reached = match &self.until {
                Some(ends) => self.head.with(|l| reached(l, ends)).await,
                None => false,
            };
            if stopping && let Some(work) = open.take().filter(|w| w.moved) {
                self.close(work, &mut readings).await?;
            }
            if stopping || reached {
                if reached && self.final_note && !stopping {
                    self.end_input().await?;
                }
                return Ok(self.sources);
            }
            if open.is_none() {
                open = Some(self.begin(&mut readings).await?);
                since = Instant::now();
                came = since;
            }
            let Some(work) = &mut open else { continue };
            let full = |work: &Open, held: &[Arc<AtomicU64>]| {
                // Groups outgrow their tables by doubling, and are copied into runs while the next epoch is gathered.
                let held: u64 = held.iter().map(|h| h.load(Ordering::Relaxed)).sum();
                held >= epoch_bytes / 2 || work.raw_bytes / 2 >= epoch_bytes
            };
            // An epoch that is full and may not be decided takes nothing more: the sources wait.
            let blocked = full(work, &self.held) && self.tables_are_behind();
            let left = every.saturating_sub(since.elapsed());
            let got = if blocked {
                tokio::time::sleep(LOOK_UP).await;
                Gathered::Nothing
            } else {
                self.gather(&mut readings, work, left.min(LOOK_UP)).await?
            };
            if got == Gathered::Some {
                came = Instant::now();
            }
            if got == Gathered::Reassigned {
                // What the open epoch had taken of other sources is read again.
                let moved = work.moved;
                open = None;
                if moved {
                    self.restart(&mut readings).await?;
                }
                continue;
            }
            let full = full(work, &self.held);
            let all_ends = self.until.as_ref().is_some_and(|ends| would_reach(&readings, &self.sources, ends));
            let starved = came.elapsed() >= STARVED && readings.iter().any(|r| !r.paused.is_empty());
            let due = since.elapsed() >= every || full || starved || (all_ends && work.moved);
            if !due {
                if all_ends && !work.moved && since.elapsed() > Duration::from_millis(200) {
                    // Others read the rest: see how far they are.
                    self.head.refresh().await?;
                    since = Instant::now();
                }
                continue;
            }
            if self.tables_are_behind() && work.moved {
                self.metrics.waiting("tables", "they are too far behind the log: no epoch is decided until they catch up (backlog, memory)");
                if lag_told.elapsed() > LAG_EVERY {
                    self.refresh_lag().await?;
                    lag_told = Instant::now();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            lag_told = Instant::now();
            self.metrics.waiting_over("tables");
            let Some(work) = open.take() else { continue };
            if !self.close(work, &mut readings).await? {
                self.restart(&mut readings).await?;
            }
        }
    }

    /// So far that nothing more is to be decided meanwhile, by what the table half told last and what it has not seen since.
    fn tables_are_behind(&self) -> bool {
        self.pressure.holds_up(self.head.unseen_bytes(), &self.pipeline.backlog)
    }

    async fn begin(&mut self, readings: &mut [Reading]) -> Result<Open, WorkerError> {
        self.head.refresh().await?;
        let ledger = self.head.ledger().await;
        let mut work = Open { attempt: (self.ids)(), began: ledger.next, ..Default::default() };
        work.data.read_at_ms = self.clock.now_ms();
        let mut judge_at = BTreeMap::new();
        for (thread, reading) in self.sources.iter().zip(readings) {
            let Some(state) = ledger.sources.get(&thread.name) else { continue };
            // An epoch in which nothing came while some waited shows that it is not the others that have rows.
            let moved = std::mem::take(&mut reading.moved);
            let wait = if moved && self.pressure.memory.load(Ordering::Relaxed) { ahead(&ledger, &thread.name, state, reading) } else { vec![] };
            if wait != reading.paused {
                self.metrics.pauses.fetch_add(wait.iter().filter(|p| !reading.paused.contains(p)).count() as u64, Ordering::Relaxed);
                thread.send(Command::Pause(wait.clone()));
                reading.paused = wait;
            }
            let delay = ledger.plan.sources.get(&thread.name).map_or(0, |s| s.delay_us);
            let own = reading.own.iter().map(|p| (state.partitions.get(p).and_then(|s| s.max_event_us), !reading.at_end.contains(p)));
            let bound = time::bound(state.watermark, own, delay);
            work.data.bounds.insert(thread.name.clone(), bound);
            for (name, table) in ledger.plan.tables.iter().filter(|(_, t)| t.source == thread.name && t.window.is_some()) {
                judge_at.insert(name.clone(), time::judge_below(ledger.horizons.get(name).copied().flatten(), bound, table.allowed_lateness_us));
            }
        }
        let terms = EpochTerms { attempt: work.attempt, read_at_ms: work.data.read_at_ms, judge_at };
        for lane in &self.lanes {
            send(lane, LaneCommand::Begin(terms.clone())).await?;
        }
        Ok(work)
    }

    /// Takes in the next event of any source, or nothing where none comes in time.
    async fn gather(&mut self, readings: &mut [Reading], work: &mut Open, patience: Duration) -> Result<Gathered, WorkerError> {
        let Some((nth, event)) = self.next_event(patience).await else { return Ok(Gathered::Nothing) };
        match event {
            Event::Batch { generation, batch } => {
                if generation == readings[nth].generation {
                    self.take(nth, batch, &mut readings[nth], work).await?;
                }
                return Ok(Gathered::Some);
            }
            Event::Assigned(partitions) => {
                readings[nth].own = partitions.into_iter().collect();
                self.start(nth, &mut readings[nth]).await?;
                return Ok(Gathered::Reassigned);
            }
            Event::Notice(why) => self.source_waits(nth, &why),
            Event::Fine => self.metrics.waiting_over(&format!("source {}", self.sources[nth].name)),
            Event::Failed { generation, .. } if generation != readings[nth].generation => {}
            Event::Failed { error: SourceError::Unavailable(why), .. } => {
                self.source_waits(nth, &why);
                tokio::time::sleep(Duration::from_millis(500)).await;
                self.start(nth, &mut readings[nth]).await?;
                return Ok(Gathered::Reassigned);
            }
            Event::Failed { error: SourceError::Refused(why), .. } => {
                // Others may have gone on since the log was read, and what lay there may have been removed.
                self.head.refresh().await?;
                let name = &self.sources[nth].name;
                let started = &readings[nth].started;
                let moved = self.head.with(|l| started.iter().any(|(p, at)| l.position(name, *p).is_some_and(|now| now > *at))).await;
                if !moved {
                    return Err(WorkerError::Refused(why));
                }
                self.start(nth, &mut readings[nth]).await?;
                return Ok(Gathered::Reassigned);
            }
        }
        Ok(Gathered::Nothing)
    }

    /// The sources take turns at being asked first, so that a busy one starves none.
    async fn next_event(&mut self, patience: Duration) -> Option<(usize, Event)> {
        let (first, sources) = (self.turn, &mut self.sources);
        let count = sources.len();
        let next = std::future::poll_fn(|context| {
            for nth in (0..count).map(|i| (first + i) % count) {
                // A thread that has ended has said why in its last event.
                if let Poll::Ready(Some(event)) = sources[nth].events.poll_recv(context) {
                    return Poll::Ready((nth, event));
                }
            }
            Poll::Pending
        });
        let came = tokio::time::timeout(patience, next).await.ok();
        self.turn = came.as_ref().map_or(first, |(nth, _)| (nth + 1) % count);
        came
    }

    async fn take(&self, nth: usize, batch: RawBatch, reading: &mut Reading, work: &mut Open) -> Result<(), WorkerError> {
        let (partition, name) = (batch.partition, &self.sources[nth].name);
        let expected = reading.next.get(&partition).copied();
        if expected != Some(batch.from) {
            return Err(WorkerError::Internal(format!(
                "source {name} partition {partition}: a batch starts at offset {}, expected {expected:?}; nothing of it was used (I1)",
                batch.from
            )));
        }
        reading.next.insert(partition, batch.to);
        if batch.at_end {
            reading.at_end.insert(partition);
        } else {
            reading.at_end.remove(&partition);
        }
        if batch.from == batch.to {
            return Ok(());
        }
        reading.quiet_since.insert(partition, Instant::now());
        (work.moved, reading.moved) = (true, true);
        let intervals = work.data.intervals.entry(name.clone()).or_default();
        let interval = intervals.entry(partition).or_insert_with(|| Interval {
            from: batch.from,
            to: batch.from,
            leader_epoch: -1,
            max_event_us: None,
            name: reading.names.get(&partition).cloned(),
        });
        interval.to = batch.to;
        work.leader_epochs.insert((nth, partition), batch.leader_epoch);
        work.records += batch.records.len() as u64;
        work.raw_bytes += batch.bytes.len() as u64;
        failpoint::hit("ingest-read");
        if !batch.records.is_empty() {
            let lane = &self.lanes[(partition as usize + nth) % self.lanes.len()];
            send(lane, LaneCommand::Batch { source: nth, batch }).await?;
        }
        Ok(())
    }

    /// Reads a source's own partitions from the log's positions.
    async fn start(&self, nth: usize, reading: &mut Reading) -> Result<(), WorkerError> {
        let name = self.sources[nth].name.clone();
        self.head.refresh().await?;
        let known: BTreeMap<i32, (i64, i32)> =
            self.head.with(|l| l.sources.get(&name).map(|s| s.partitions.iter().map(|(p, s)| (*p, (s.offset, s.leader_epoch))).collect()).unwrap_or_default()).await;
        let mut positions = BTreeMap::new();
        let unknown = reading.own.iter().any(|p| !known.contains_key(p));
        let facts = if unknown { Some(self.facts(nth).await?) } else { None };
        if let Some(facts) = &facts {
            reading.names.clone_from(&facts.names);
        }
        for &partition in &reading.own {
            // A partition that the log does not know yet starts at its beginning.
            let begin = || facts.as_ref().and_then(|f| f.partitions.get(&partition)).map_or(0, |(begin, _)| *begin);
            let (offset, leader_epoch) = known.get(&partition).copied().unwrap_or_else(|| (begin(), -1));
            positions.insert(partition, Position { offset, leader_epoch });
        }
        reading.generation += 1;
        reading.next = positions.iter().map(|(p, at)| (*p, at.offset)).collect();
        reading.started.clone_from(&reading.next);
        reading.at_end.clear();
        reading.paused.clear();
        let now = Instant::now();
        reading.quiet_since = reading.own.iter().map(|p| (*p, now)).collect();
        self.sources[nth].send(Command::Start { generation: reading.generation, positions });
        Ok(())
    }

    /// Refused: the source does not hold any more what the log read of it: all of it would count as read.
    pub(super) async fn check_ends(&self, nth: usize) -> Result<(), WorkerError> {
        let name = &self.sources[nth].name;
        // Before the ends are asked for, for others read on meanwhile.
        let Some(known) = self.head.with(|l| l.sources.get(name).cloned()).await else { return Ok(()) };
        let mut seen = None;
        loop {
            let facts = self.facts(nth).await?;
            let checked = known_source::check_ends(name, &known, &facts);
            // A file is what it is; brokers that have just come up may know of less than they hold.
            let told = checked.is_ok() || !facts.names.is_empty() || seen.get_or_insert_with(Instant::now).elapsed() >= END_PATIENCE;
            if told || self.stop.load(Ordering::Relaxed) {
                return checked;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn facts(&self, nth: usize) -> Result<SourceFacts, WorkerError> {
        loop {
            match self.sources[nth].facts().await {
                Ok(facts) => return Ok(facts),
                Err(SourceError::Refused(why)) => return Err(WorkerError::Refused(why)),
                Err(SourceError::Unavailable(why)) => {
                    self.source_waits(nth, &why);
                    if self.stop.load(Ordering::Relaxed) {
                        return Err(WorkerError::Stopped);
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    async fn restart(&mut self, readings: &mut [Reading]) -> Result<(), WorkerError> {
        for (nth, reading) in readings.iter_mut().enumerate() {
            if !reading.own.is_empty() {
                self.start(nth, reading).await?;
            }
        }
        Ok(())
    }

    /// Closes the epoch: stages, then has it decided. `false`: it was stale, and is to be read again.
    async fn close(&mut self, mut work: Open, readings: &mut [Reading]) -> Result<bool, WorkerError> {
        let mut parts = vec![];
        for lane in &self.lanes {
            let (reply, answer) = tokio::sync::oneshot::channel();
            send(lane, LaneCommand::Close(reply)).await?;
            parts.push(answer);
        }
        let mut part = LanePart::default();
        for answer in parts {
            let one = answer.await.map_err(|_| WorkerError::Internal("a lane has ended".into()))?.map_err(|e| WorkerError::Internal(e.to_string()))?;
            part.runs.extend(one.runs);
            part.files.extend(one.files);
            part.max_event_us.extend(one.max_event_us);
            for (source, counts) in one.counts {
                let sum = work.data.counts.entry(self.sources[source].name.clone()).or_default();
                sum.records += counts.records;
                sum.dead += counts.dead;
                sum.bytes += counts.bytes;
                sum.ahead += counts.ahead;
            }
        }
        failpoint::hit("ingest-closed");
        for ((source, partition), highest) in &part.max_event_us {
            if let Some(interval) = work.data.intervals.get_mut(&self.sources[*source].name).and_then(|i| i.get_mut(partition)) {
                interval.max_event_us = Some(*highest);
            }
        }
        for ((source, partition), epoch) in &work.leader_epochs {
            if let Some(interval) = work.data.intervals.get_mut(&self.sources[*source].name).and_then(|i| i.get_mut(partition)) {
                interval.leader_epoch = *epoch;
            }
        }
        // After the data was read and before its entry is made: still the same topic? (PROTOCOLS section 3)
        let mut all_facts = vec![];
        for (nth, reading) in readings.iter_mut().enumerate() {
            let facts = self.facts(nth).await?;
            self.check_same(nth, &facts).await?;
            self.watch_transactions(nth, reading, &facts);
            self.claim_idle(nth, reading, &facts, &mut work).await;
            all_facts.push(facts);
        }
        if !work.moved && !self.claims_matter(&work.data).await {
            self.tell_lag(&all_facts).await;
            return Ok(true);
        }
        self.stage(&mut work, &mut part).await?;
        let (records, counts) = (work.records, work.data.counts.clone());
        match self.head.append(work.attempt, work.began, Body::Data(work.data), part.runs, self.clock.now_ms()).await? {
            Appended::Decided(_) => {
                failpoint::hit("log-created");
                let m = &self.metrics;
                m.records.fetch_add(records, Ordering::Relaxed);
                m.epochs.fetch_add(1, Ordering::Relaxed);
                for (name, counts) in &counts {
                    m.bytes.fetch_add(counts.bytes, Ordering::Relaxed);
                    m.dead.fetch_add(counts.dead, Ordering::Relaxed);
                    m.ahead.fetch_add(counts.ahead, Ordering::Relaxed);
                    if counts.ahead > 0 {
                        m.alert(
                            &format!("source {name}"),
                            "rows came whose event time is more than max_ahead beyond the time at which they were written: they are kept and counted \
                             (millpond_ahead_rows_total), but move no watermark; correct the producer's clock, or raise watermark.max_ahead if they are meant",
                        );
                    }
                }
                self.tell_lag(&all_facts).await;
                Ok(true)
            }
            Appended::Stale(_) => {
                self.metrics.stale.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
        }
    }

    /// While nothing is decided nobody asks for the ends otherwise.
    async fn refresh_lag(&self) -> Result<(), WorkerError> {
        let mut facts = vec![];
        for nth in 0..self.sources.len() {
            facts.push(self.facts(nth).await?);
        }
        self.tell_lag(&facts).await;
        Ok(())
    }

    /// How far the log is behind the ends of the partitions, by facts of all sources.
    async fn tell_lag(&self, facts: &[SourceFacts]) {
        for (thread, facts) in self.sources.iter().zip(facts) {
            let behind = |l: &Ledger| {
                let of = |(p, (begin, end)): (&i32, &(i64, i64))| end.saturating_sub(l.position(&thread.name, *p).unwrap_or(*begin)).max(0) as u64;
                facts.partitions.iter().map(of).sum()
            };
            self.metrics.set_lag(&thread.name, self.head.with(behind).await);
        }
    }

    /// Refused: these facts are of another source than the log was written from.
    pub(super) async fn check_same(&self, nth: usize, facts: &SourceFacts) -> Result<(), WorkerError> {
        let name = &self.sources[nth].name;
        self.head.with(|l| l.sources.get(name).map_or(Ok(()), |known| known_source::check_same(name, known, facts))).await
    }

    /// Tells of transactions that stay open: nothing behind their first record can be read, whoever wrote it.
    fn watch_transactions(&self, nth: usize, reading: &mut Reading, facts: &SourceFacts) {
        let name = &self.sources[nth].name;
        let idle_after = self.pipeline.sources.iter().find(|s| s.name == *name).and_then(|s| s.watermark.as_ref()?.idle_after_us);
        let patience = idle_after.map_or(HELD_PATIENCE, |us| Duration::from_micros(us as u64).min(HELD_PATIENCE));
        let about = |partition: &i32| format!("source {name} partition {partition}");
        let stable = |partition: &i32| facts.partitions.get(partition).map(|(_, stable)| *stable);
        reading.held.retain(|partition, (offset, _)| {
            let still = reading.own.contains(partition) && facts.held.contains_key(partition) && stable(partition) == Some(*offset);
            if !still {
                self.metrics.alert_over(&about(partition));
            }
            still
        });
        for partition in facts.held.keys().filter(|p| reading.own.contains(p)) {
            let Some(offset) = stable(partition) else { continue };
            let (_, since) = reading.held.entry(*partition).or_insert_with(|| (offset, Instant::now()));
            if since.elapsed() >= patience {
                let topic = &facts.topic;
                self.metrics.alert(
                    &about(partition),
                    &format!(
                        "an open transaction has held back everything from offset {offset} of topic `{topic}` for {} s or more, and with it the watermark; the other \
                         partitions go on. Have its producer commit or abort it (kafka-transactions.sh find-hanging --topic {topic} --partition {partition}, then abort --topic {topic} --partition {partition} --start-offset {offset})",
                        patience.as_secs()
                    ),
                );
            }
        }
    }

    /// A source's own words begin with its name, which is said already.
    fn source_waits(&self, nth: usize, why: &str) {
        let name = &self.sources[nth].name;
        self.metrics.waiting(&format!("source {name}"), why.strip_prefix(&format!("source `{name}`: ")).unwrap_or(why));
    }

    /// Claims partitions idle whose end is still where the log stands, after `idle_after` without a row.
    async fn claim_idle(&self, nth: usize, reading: &Reading, facts: &SourceFacts, work: &mut Open) {
        let name = &self.sources[nth].name;
        let Some(spec) = self.pipeline.sources.iter().find(|s| s.name == *name) else { return };
        let Some(idle_after) = spec.watermark.as_ref().and_then(|w| w.idle_after_us) else { return };
        let intervals = work.data.intervals.entry(name.clone()).or_default();
        for &partition in &reading.own {
            let (Some(&next), Some(quiet)) = (reading.next.get(&partition), reading.quiet_since.get(&partition)) else { continue };
            // What an open transaction holds back is there: a partition that has it is not idle.
            let shown = reading.at_end.contains(&partition) && !facts.held.contains_key(&partition) && facts.partitions.get(&partition).is_some_and(|(_, end)| *end <= next);
            let at_end = shown || mutant::on(Mutant::SilenceIsIdleness);
            let quiet_long = quiet.elapsed() >= Duration::from_micros(idle_after as u64);
            if at_end && quiet_long && !intervals.contains_key(&partition) {
                intervals.insert(partition, Interval { from: next, to: next, leader_epoch: -1, max_event_us: None, name: reading.names.get(&partition).cloned() });
            }
        }
        if intervals.is_empty() {
            work.data.intervals.remove(name);
        }
    }

    /// Would an entry of idle claims alone move a watermark?
    async fn claims_matter(&self, data: &Data) -> bool {
        self.head
            .with(|l| {
                data.intervals.iter().any(|(name, claims)| {
                    let (Some(source), Some(plan)) = (l.sources.get(name), l.plan.sources.get(name)) else { return false };
                    let of = |(p, s): (&i32, &crate::epoch::ledger::PartitionState)| time::PartitionTime { max_event_us: s.max_event_us, idle: claims.contains_key(p) };
                    plan.time_column.is_some() && time::watermark(source.watermark, source.partitions.iter().map(of), plan.delay_us) > source.watermark
                })
            })
            .await
    }

    async fn stage(&self, work: &mut Open, part: &mut LanePart) -> Result<(), WorkerError> {
        let mut puts: Vec<(String, bytes::Bytes)> = vec![];
        for (table, format, file, bytes) in part.files.drain(..) {
            puts.push((file.path.clone(), bytes));
            work.data.files.push(StagedFile { table, format, file });
        }
        if !part.runs.is_empty() {
            let (bytes, refs) = cpu(&self.metrics.cpu.run, || write_runs(&part.runs)).map_err(|e| WorkerError::Internal(e.to_string()))?;
            let path = format!("{}/runs/{}", self.state_folder, names::epoch_runs(work.attempt));
            let ledger_plan = self.head.with(|l| l.plan.clone()).await;
            let runs = refs.into_iter().zip(&part.runs).map(|(run, made)| {
                let window = ledger_plan.tables.get(&made.table).and_then(|t| t.window.clone());
                let last_window_end_us = match made.kind.windows() {
                    Some((_, last)) => window.map_or(i64::MAX, |w| w.window_of(last).1),
                    None => last_window_end(made),
                };
                RunEntry { run, last_window_end_us }
            });
            work.data.runs = Some(RunObject { path: path.clone(), bytes: bytes.len() as u64, runs: runs.collect() });
            puts.push((path, bytes.into()));
        }
        let put = |(path, bytes): (String, bytes::Bytes)| async move {
            failpoint::hit("stage-before-put");
            self.put_until_done(&path, bytes).await?;
            if path.ends_with(".run") {
                failpoint::hit("stage-runs-put");
            } else {
                failpoint::hit("stage-file-put");
            }
            Ok::<_, WorkerError>(())
        };
        stream::iter(puts).map(put).buffer_unordered(PARALLEL_PUTS).try_collect::<Vec<()>>().await?;
        failpoint::hit("stage-done");
        Ok(())
    }

    /// Puts, for as long as the store is away (a full disk, …): names are used once, so that putting again is safe.
    async fn put_until_done(&self, path: &str, bytes: bytes::Bytes) -> Result<(), WorkerError> {
        let mut pause = Duration::from_millis(100);
        // As it stands: `Path::from` would write a partition's %20 as %2520, where no reader looks.
        let location = Path::parse(path).map_err(|e| WorkerError::Internal(format!("{path} is no name of an object: {e}")))?;
        loop {
            match self.store.put(&location, bytes.clone().into()).await {
                Ok(_) => {
                    self.metrics.waiting_over("store");
                    return Ok(());
                }
                Err(e) => self.metrics.waiting("store", &format!("cannot write {path}: {e}")),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(WorkerError::Stopped);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn end_input(&self) -> Result<(), WorkerError> {
        let (ends, began, nothing_new) = self.head.with(|l| (l.positions(), l.next, l.ended_at.is_some_and(|e| e > l.rows_at))).await;
        if nothing_new {
            return Ok(());
        }
        let note = Body::Note(Note::EndOfInput { ends });
        match self.head.append((self.ids)(), began, note, vec![], self.clock.now_ms()).await? {
            Appended::Decided(_) => Ok(()),
            Appended::Stale(unfit) => Err(WorkerError::Internal(format!("the end of input was not accepted: {unfit}"))),
        }
    }
}

/// Own partitions that are more than a window ahead of another one with rows waiting.
fn ahead(ledger: &Ledger, source: &str, state: &SourceState, reading: &Reading) -> Vec<i32> {
    let windows = ledger.plan.tables.values().filter(|t| t.source == source).filter_map(|t| Some(t.window?.size_us));
    let waiting = reading.own.iter().filter(|p| !reading.at_end.contains(p));
    time::furthest_ahead(waiting.map(|p| (*p, state.partitions.get(p).and_then(|s| s.max_event_us))), windows.max().unwrap_or(i64::MAX))
}

#[derive(PartialEq)]
enum Gathered {
    Nothing,
    Some,
    Reassigned,
}

/// A lane's queue is short on purpose.
async fn send(lane: &mpsc::Sender<LaneCommand>, command: LaneCommand) -> Result<(), WorkerError> {
    lane.send(command).await.map_err(|_| WorkerError::Internal("a lane has ended".into()))
}

pub(super) fn last_window_end(run: &Run) -> i64 {
    use arrow::array::AsArray;
    use arrow::datatypes::TimestampMicrosecondType;
    let ends = run.batch.column_by_name("window_end").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    ends.and_then(arrow::compute::max).unwrap_or(i64::MAX)
}

fn reached(ledger: &Ledger, ends: &ByPartition<i64>) -> bool {
    ends.iter().all(|(source, ends)| ends.iter().all(|(p, end)| ledger.position(source, *p).unwrap_or(0) >= *end))
}

/// Every own partition has been read to its end of then.
fn would_reach(readings: &[Reading], sources: &[SourceThread], ends: &ByPartition<i64>) -> bool {
    readings.iter().zip(sources).all(|(reading, thread)| {
        let Some(ends) = ends.get(&thread.name) else { return true };
        !reading.own.is_empty() && reading.own.iter().all(|p| reading.next.get(p).copied().unwrap_or(0) >= ends.get(p).copied().unwrap_or(0))
    })
}
