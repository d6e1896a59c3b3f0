//! A broker: a topic for each source, consumer groups that deal out their partitions, and the source that reads one.
//!
//! Offsets have gaps (control records, aborted transactions), consumed records are removed, fetches
//! stall, members vanish without a word and are missed only after their session's time, so that two
//! workers read one partition for a while.

use super::world::{START_MS, World};
use crate::worker::progress::instant;
use crate::source::{Position, RawBatch, RawRecord, Source, SourceError, SourceEvent, SourceFacts};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// A row as the producer meant it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub id: i64,
    pub key: &'static str,
    pub at_us: i64,
    pub value: i64,
}

#[derive(Debug, Clone)]
pub enum Slot {
    /// `None`: bytes that are no row.
    Record { row: Option<Row>, timestamp_ms: i64 },
    /// A control record, or one of an aborted transaction.
    Gap,
}

#[derive(Debug, Default)]
pub struct Partition {
    pub slots: Vec<Slot>,
    /// What lies below was removed.
    pub begin: i64,
    /// Virtual time and the end from then on.
    pub ends: Vec<(i64, i64)>,
    /// An open transaction begins there and ends then: nothing from there on is to be seen before.
    open: Option<(i64, i64)>,
    /// Fetches bring nothing until then.
    stalled_until: i64,
}

impl Partition {
    /// How far it is written.
    pub fn written(&self) -> i64 {
        self.slots.len() as i64
    }

    /// How far it can be read.
    pub fn end(&self, now_ms: i64) -> i64 {
        self.held(now_ms).unwrap_or(self.written())
    }

    fn held(&self, now_ms: i64) -> Option<i64> {
        self.open.filter(|(_, until)| *until > now_ms).map(|(from, _)| from)
    }

    /// How far it was written at a time.
    pub fn written_at(&self, ms: i64) -> i64 {
        self.ends.iter().take_while(|(at, _)| *at <= ms).last().map_or(0, |(_, end)| *end)
    }
}

#[derive(Debug, Default)]
struct Member {
    own: BTreeSet<i32>,
    /// It has not been told yet.
    changed: bool,
    /// It is gone, and will be missed then.
    missed_at: Option<i64>,
}

#[derive(Debug, Default)]
pub struct Topic {
    pub incarnation: u64,
    /// The records of the topic that the log was born from, when there is another by now.
    pub first: Option<Vec<Vec<Slot>>>,
    pub partitions: Vec<Partition>,
    members: BTreeMap<u64, Member>,
    next_member: u64,
    turn: usize,
}

/// The topics by the name of the source that reads each, which is the topic's own.
pub type Topics = BTreeMap<String, Topic>;

#[derive(Debug, Default)]
pub struct Broker {
    pub topics: Mutex<Topics>,
}

impl Topic {
    pub fn new(partitions: u64) -> Self {
        Self { partitions: (0..partitions).map(|_| Partition::default()).collect(), ..Self::default() }
    }

    fn deal(&mut self) {
        self.turn += 1;
        let members: Vec<u64> = self.members.keys().copied().collect();
        let mut dealt: BTreeMap<u64, BTreeSet<i32>> = members.iter().map(|m| (*m, BTreeSet::new())).collect();
        for p in 0..self.partitions.len() {
            if let Some(member) = members.get((p + self.turn) % members.len().max(1)) {
                dealt.entry(*member).or_default().insert(p as i32);
            }
        }
        for (id, own) in dealt {
            let Some(member) = self.members.get_mut(&id) else { continue };
            // Cooperative: who keeps what it had is not disturbed.
            if member.own != own {
                (member.own, member.changed) = (own, true);
            }
        }
    }

    fn miss(&mut self, now_ms: i64) {
        let before = self.members.len();
        self.members.retain(|_, m| m.missed_at.is_none_or(|at| at > now_ms));
        if self.members.len() != before {
            self.deal();
        }
    }

    pub fn append(&mut self, partition: usize, slot: Slot, now_ms: i64) {
        let p = &mut self.partitions[partition];
        p.slots.push(slot);
        let end = p.written();
        match p.ends.last_mut() {
            Some((at, last)) if *at == now_ms => *last = end,
            _ => p.ends.push((now_ms, end)),
        }
    }

    pub fn stall(&mut self, partition: usize, until_ms: i64) {
        self.partitions[partition].stalled_until = until_ms;
    }

    /// A transaction begins, and stays open until then.
    pub fn open(&mut self, partition: usize, until_ms: i64) {
        let p = &mut self.partitions[partition];
        p.open = Some((p.written(), until_ms));
    }

    /// No transaction is open any more, and no fetch stalls.
    pub fn calm(&mut self) {
        for p in &mut self.partitions {
            (p.open, p.stalled_until) = (None, 0);
        }
    }

    pub fn add_partition(&mut self) {
        self.partitions.push(Partition::default());
        self.deal();
    }

    /// What was in a partition when the log was born from the topic, and since then.
    pub fn slots(&self, partition: i32) -> &[Slot] {
        let of = |all: usize| usize::try_from(partition).ok().filter(|p| *p < all);
        match &self.first {
            Some(first) => of(first.len()).map_or(&[], |p| &first[p]),
            None => of(self.partitions.len()).map_or(&[], |p| &self.partitions[p].slots),
        }
    }

    /// Deleted and made again under the same name.
    pub fn recreate(&mut self) {
        self.incarnation += 1;
        self.first.get_or_insert_with(|| self.partitions.iter().map(|p| p.slots.clone()).collect());
        for p in &mut self.partitions {
            *p = Partition::default();
        }
    }
}

/// The source of one life of a worker.
pub struct SimSource {
    world: Arc<World>,
    who: String,
    name: String,
    member: Option<u64>,
    /// Between `start` and the next assignment.
    reading: bool,
    positions: BTreeMap<i32, i64>,
    told_end: BTreeSet<i32>,
    paused: BTreeSet<i32>,
    turns: VecDeque<i32>,
}

impl SimSource {
    pub fn new(world: Arc<World>, who: String, name: String) -> Self {
        Self { world, who, name, member: None, reading: false, positions: BTreeMap::new(), told_end: BTreeSet::new(), paused: BTreeSet::new(), turns: VecDeque::new() }
    }

    /// Looks at the topic, or changes it.
    fn topic<T>(&self, look: impl FnOnce(&mut Topic) -> T) -> T {
        look(self.world.broker.topics.lock().unwrap().get_mut(&self.name).expect("every source has a topic"))
    }

    fn trouble(&self) -> Result<(), SourceError> {
        if self.world.broker_fails() { Err(SourceError::Unavailable("a broker is away".into())) } else { Ok(()) }
    }

    fn batch(&mut self, partition: i32) -> Option<RawBatch> {
        let at = *self.positions.get(&partition)?;
        let now = self.world.trace.now_ms();
        let topics = self.world.broker.topics.lock().unwrap();
        let p = &topics[&self.name].partitions[partition as usize];
        let (end, stalled) = (p.end(now), p.stalled_until > now);
        if stalled || at > end || (at == end && self.told_end.contains(&partition)) {
            return None;
        }
        let most = 1 + self.world.below(8) as usize;
        let mut batch = RawBatch { partition, from: at, to: at, leader_epoch: 1, ..Default::default() };
        let mut offset = at;
        while offset < end && batch.records.len() < most {
            if let Slot::Record { row, timestamp_ms } = &p.slots[offset as usize] {
                let start = batch.bytes.len() as u32;
                batch.bytes.extend(payload(*row).as_bytes());
                let value = Some(start..batch.bytes.len() as u32);
                batch.records.push(RawRecord { offset, timestamp_ms: Some(*timestamp_ms), key: None, value, headers: vec![], oversized: None });
                batch.to = offset + 1;
            }
            offset += 1;
        }
        // Offsets without a record belong to the batch of the next record, or of the end.
        if offset == end {
            batch.to = end;
        }
        batch.at_end = batch.to == end;
        drop(topics);
        if batch.to == batch.from && !batch.at_end {
            return None;
        }
        self.positions.insert(partition, batch.to);
        if batch.at_end {
            self.told_end.insert(partition);
        } else {
            self.told_end.remove(&partition);
        }
        Some(batch)
    }
}

pub fn payload(row: Option<Row>) -> String {
    match row {
        Some(r) => format!(r#"{{"id":{},"k":"{}","at":"{}","v":{}}}"#, r.id, r.key, instant(r.at_us), r.value),
        None => "no json".to_string(),
    }
}

impl Source for SimSource {
    fn facts(&mut self) -> Result<SourceFacts, SourceError> {
        self.trouble()?;
        let now = self.world.trace.now_ms();
        Ok(self.topic(|topic| {
            let partitions = topic.partitions.iter().zip(0..).map(|(p, n)| (n, (p.begin, p.end(now)))).collect();
            let held = topic.partitions.iter().zip(0..).filter(|(p, _)| p.held(now).is_some()).map(|(p, n)| (n, p.written())).collect();
            SourceFacts { incarnation: Some(format!("topic-{}", topic.incarnation)), topic: self.name.clone(), partitions, held, names: BTreeMap::new(), last: BTreeMap::new() }
        }))
    }

    fn start_offsets(&mut self, partitions: &[i32]) -> Result<BTreeMap<i32, i64>, SourceError> {
        self.trouble()?;
        Ok(self.topic(|topic| partitions.iter().map(|p| (*p, topic.partitions[*p as usize].begin)).collect()))
    }

    fn join(&mut self, _: Uuid) -> Result<(), SourceError> {
        self.trouble()?;
        let id = self.topic(|topic| {
            topic.next_member += 1;
            let id = topic.next_member;
            topic.members.insert(id, Member::default());
            topic.deal();
            id
        });
        self.member = Some(id);
        Ok(())
    }

    fn start(&mut self, positions: &BTreeMap<i32, Position>) -> Result<(), SourceError> {
        self.trouble()?;
        (self.reading, self.told_end, self.paused) = (false, BTreeSet::new(), BTreeSet::new());
        self.positions = positions.iter().map(|(p, at)| (*p, at.offset)).collect();
        let topics = self.world.broker.topics.lock().unwrap();
        for (p, at) in &self.positions {
            let held = &topics[&self.name].partitions[*p as usize];
            if *at < held.begin || *at > held.written() {
                return Err(SourceError::Refused(format!("partition {p}: the log goes on at {at}, the broker holds {}..{}", held.begin, held.written())));
            }
        }
        drop(topics);
        self.turns = self.positions.keys().copied().collect();
        self.reading = true;
        let at: Vec<String> = self.positions.iter().map(|(p, at)| format!("{p}@{at}")).collect();
        self.world.trace.note(&self.who, format_args!("reads {} {}", self.name, at.join(" ")));
        Ok(())
    }

    fn poll(&mut self, _: Duration) -> Result<SourceEvent, SourceError> {
        let now = self.world.trace.now_ms();
        {
            let told = self.topic(|topic| {
                topic.miss(now);
                let member = self.member.and_then(|m| topic.members.get_mut(&m))?;
                Some(std::mem::take(&mut member.changed).then(|| member.own.iter().copied().collect::<Vec<i32>>()))
            });
            match told {
                None => return Ok(SourceEvent::Idle),
                Some(Some(own)) => {
                    self.reading = false;
                    self.world.trace.note(&self.who, format_args!("is given {own:?} of {}", self.name));
                    return Ok(SourceEvent::Assigned(own));
                }
                Some(None) => {}
            }
        }
        if !self.reading {
            return Ok(SourceEvent::Idle);
        }
        if self.world.broker_fails() {
            return Ok(SourceEvent::Notice("a broker is away".into()));
        }
        for _ in 0..self.turns.len() {
            self.turns.rotate_left(1);
            let Some(&partition) = self.turns.front() else { break };
            if self.paused.contains(&partition) {
                continue;
            }
            if let Some(batch) = self.batch(partition) {
                return Ok(SourceEvent::Batch(batch));
            }
        }
        Ok(SourceEvent::Idle)
    }

    fn pause(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.paused = partitions.iter().copied().collect();
        Ok(())
    }

    fn report_committed(&mut self, _: &BTreeMap<i32, i64>) -> Result<(), SourceError> {
        Ok(())
    }
}

impl Drop for SimSource {
    /// It vanishes without a word.
    fn drop(&mut self) {
        let missed_at = self.world.trace.now_ms() + self.world.below(800) as i64;
        self.topic(|topic| {
            if let Some(member) = self.member.and_then(|m| topic.members.get_mut(&m)) {
                member.missed_at = Some(missed_at);
            }
        });
    }
}

/// Virtual wall clock, in milliseconds since 1970.
pub fn wall(world: &World) -> i64 {
    START_MS + world.trace.now_ms()
}
