//! What the entries of a log add up to: a pure fold, the same for everybody who reads it.

use super::entry::{Body, ByPartition, CheckpointRef, Data, Entry, Note, Plan, RunEntry, SourcePlan, SpecRecord};
use crate::mutant::{self, Mutant};
use crate::time::{self, PartitionTime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The state of a log before its entry `next`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    pub log: Uuid,
    /// Sequence number of the entry that comes next.
    pub next: u64,
    pub plan_entry: u64,
    pub plan: Plan,
    pub sources: BTreeMap<String, SourceState>,
    /// Declared windowed table to its horizon.
    pub horizons: BTreeMap<String, Option<i64>>,
    /// Declared windowed table to the runs that its panes are made of, in entry order.
    pub runs: BTreeMap<String, Vec<LiveRun>>,
    /// The highest M whose checkpoint's runs these are: those of an older one may be merged and deleted by now.
    #[serde(default)]
    pub runs_as_of: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointRef>,
    /// Attempts that are in the log above the newest checkpoint's M, by their entry.
    #[serde(default)]
    pub attempts: BTreeMap<u64, Uuid>,
    /// Condemned attempts, by the entry of the note. Once a checkpoint holds that entry, work that is as old as
    /// the attempt is stale by itself, and the name can be forgotten.
    #[serde(default, rename = "condemned_at", skip_serializing_if = "BTreeMap::is_empty")]
    pub condemned: BTreeMap<Uuid, u64>,
    /// The newest end-of-input note: all windows that held a row then were emitted.
    #[serde(default)]
    pub ended_at: Option<u64>,
    /// The newest entry that brought rows.
    #[serde(default)]
    pub rows_at: u64,
    /// Tables that some plan had and the newest has not: their names are not to be used again just so, since the
    /// lake still holds their rows and no pane does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ended: BTreeSet<String>,
    /// Sources that some plan had and the newest has not, as they were last: one that comes again goes on at its
    /// offsets, which must mean the same records still.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ended_sources: BTreeMap<String, SourcePlan>,
    /// Windowed tables that began when their source had rows already, to the latest event time then: windows that begin
    /// no later may lack rows, which nobody has counted for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lacking_until: BTreeMap<String, i64>,
    /// The plans before the newest one, oldest first, at most [`PAST_PLANS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_plans: Vec<PastPlan>,
    /// Who decided data entries lately: writer to its newest entry.
    #[serde(default)]
    pub writers: BTreeMap<String, u64>,
}

/// Plans before the newest one that a ledger remembers.
pub const PAST_PLANS: usize = 64;

/// A plan that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPlan {
    pub entry: u64,
    /// [`Plan::fingerprint`].
    pub fingerprint: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    pub incarnation: Option<String>,
    pub partitions: BTreeMap<i32, PartitionState>,
    pub watermark: Option<i64>,
    pub records: u64,
    pub dead: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    pub offset: i64,
    pub leader_epoch: i32,
    pub max_event_us: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A run that some pane still needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveRun {
    /// The entry that decided it.
    pub entry: u64,
    /// Its place in that entry, among runs of all tables: merges happen in this order.
    pub nth: usize,
    pub object: String,
    #[serde(flatten)]
    pub run: RunEntry,
    /// The horizon before its entry: what its judge-later rows are judged by, each time they are read.
    pub horizon_before: Option<i64>,
}

/// What an entry does to the time of one windowed table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub watermark_before: Option<i64>,
    pub watermark_after: Option<i64>,
    pub horizon_before: Option<i64>,
    pub horizon_after: Option<i64>,
    /// End of input: every open window is emitted, the watermark's place notwithstanding.
    pub emit_all: bool,
}

/// Entries that contradict the log so far: somebody wrote past the protocol, or a file is damaged.
#[derive(Debug, thiserror::Error)]
#[error("log entry {entry} does not fit the entries before it: {why}; restore the log's folder from a backup, or compare with `status`")]
pub struct Corrupt {
    pub entry: u64,
    pub why: String,
}

impl Ledger {
    /// The state after entry 0, which must be a plan.
    pub fn born(entry: &Entry) -> Result<Self, Corrupt> {
        let Body::Plan(plan) = &entry.body else {
            return Err(Corrupt { entry: 0, why: "it is no plan".into() });
        };
        let mut ledger = Self {
            log: entry.log,
            next: 0,
            plan_entry: 0,
            plan: plan.clone(),
            sources: BTreeMap::new(),
            horizons: BTreeMap::new(),
            runs: BTreeMap::new(),
            runs_as_of: 0,
            checkpoint: None,
            attempts: BTreeMap::new(),
            condemned: BTreeMap::new(),
            ended_at: None,
            rows_at: 0,
            ended: BTreeSet::new(),
            ended_sources: BTreeMap::new(),
            lacking_until: BTreeMap::new(),
            past_plans: vec![],
            writers: BTreeMap::new(),
        };
        ledger.adopt(plan);
        ledger.next = 1;
        Ok(ledger)
    }

    /// Applies entry `self.next`. Returns what it does to the time of every windowed table.
    ///
    /// # Errors
    /// [`Corrupt`] when the entry is not one that [`super::decide::fits`] allows.
    pub fn apply(&mut self, entry: &Entry) -> Result<BTreeMap<String, Times>, Corrupt> {
        super::decide::fits(self, entry).map_err(|why| Corrupt { entry: self.next, why: why.to_string() })?;
        let before: BTreeMap<String, Times> = self.windowed().map(|(name, source)| (name.to_string(), self.times(name, source))).collect();
        match &entry.body {
            Body::Data(data) => self.apply_data(entry, data),
            Body::Plan(plan) => {
                self.past_plans.push(PastPlan { entry: self.plan_entry, fingerprint: self.plan.fingerprint() });
                let over = self.past_plans.len().saturating_sub(PAST_PLANS);
                self.past_plans.drain(..over);
                self.plan_entry = self.next;
                self.adopt(plan);
            }
            Body::Checkpoint(checkpoint) => {
                self.checkpoint = Some(CheckpointRef { entry: self.next, upto: checkpoint.upto });
                self.attempts = self.attempts.split_off(&(checkpoint.upto + 1));
                self.condemned.retain(|_, note| *note > checkpoint.upto);
                self.take_over_runs(checkpoint);
            }
            Body::Note(Note::EndOfInput { .. }) => self.end_input(),
            Body::Note(Note::Condemned { attempts }) => self.condemned.extend(attempts.iter().map(|a| (*a, self.next))),
        }
        self.attempts.insert(self.next, entry.attempt);
        self.next += 1;
        let ended = matches!(entry.body, Body::Note(Note::EndOfInput { .. }));
        let names: Vec<(String, String)> = self.windowed().map(|(n, s)| (n.to_string(), s.to_string())).collect();
        let mut times = BTreeMap::new();
        for (name, source) in names {
            let after = self.times(&name, &source);
            let old = before.get(&name).copied().unwrap_or(after);
            let change = Times {
                watermark_before: old.watermark_before,
                watermark_after: after.watermark_before,
                horizon_before: old.horizon_before,
                horizon_after: after.horizon_before,
                emit_all: ended,
            };
            self.drop_dead_runs(&name);
            times.insert(name, change);
        }
        Ok(times)
    }

    fn windowed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.plan.tables.iter().filter(|(_, t)| t.window.is_some()).map(|(n, t)| (n.as_str(), t.source.as_str()))
    }

    fn times(&self, table: &str, source: &str) -> Times {
        let watermark = self.sources.get(source).and_then(|s| s.watermark);
        let horizon = self.horizons.get(table).copied().flatten();
        Times { watermark_before: watermark, watermark_after: watermark, horizon_before: horizon, horizon_after: horizon, emit_all: false }
    }

    fn adopt(&mut self, plan: &Plan) {
        for (name, planned) in &plan.sources {
            let source = self.sources.entry(name.clone()).or_default();
            source.incarnation.clone_from(&planned.incarnation);
            for (&partition, &offset) in &planned.starts {
                source.partitions.entry(partition).or_insert_with(|| PartitionState {
                    offset,
                    leader_epoch: -1,
                    max_event_us: None,
                    name: planned.names.get(&partition).cloned(),
                });
            }
        }
        for (name, table) in plan.tables.iter().filter(|(_, t)| t.window.is_some()) {
            let watermark = self.sources.get(&table.source).and_then(|s| s.watermark);
            let before = self.horizons.get(name).copied().flatten();
            self.horizons.insert(name.clone(), time::horizon(before, watermark, table.allowed_lateness_us));
            let latest = self.sources.get(&table.source).and_then(|s| s.partitions.values().filter_map(|p| p.max_event_us).max());
            if let Some(latest) = latest.filter(|_| !self.plan.tables.contains_key(name)) {
                self.lacking_until.insert(name.clone(), latest);
            }
        }
        self.lacking_until.retain(|name, _| plan.tables.contains_key(name));
        self.ended.extend(self.plan.tables.keys().cloned());
        self.ended.retain(|name| !plan.tables.contains_key(name));
        self.ended_sources.extend(self.plan.sources.iter().map(|(n, s)| (n.clone(), s.clone())));
        self.ended_sources.retain(|name, _| !plan.sources.contains_key(name));
        self.horizons.retain(|name, _| plan.tables.contains_key(name));
        self.runs.retain(|name, _| plan.tables.contains_key(name));
        self.plan = plan.clone();
    }

    fn apply_data(&mut self, entry: &Entry, data: &Data) {
        self.writers.insert(entry.writer.clone(), self.next);
        if data.intervals.values().flatten().any(|(_, i)| !i.claims_idle()) {
            self.rows_at = self.next;
        }
        let next = self.next;
        // A writer that has been silent for long is no candidate for anything any more.
        self.writers.retain(|_, newest| *newest + 1000 > next);
        for (name, intervals) in &data.intervals {
            let source = self.sources.entry(name.clone()).or_default();
            for (&partition, interval) in intervals {
                let begins = || PartitionState { offset: interval.from, leader_epoch: -1, max_event_us: None, name: None };
                let state = source.partitions.entry(partition).or_insert_with(begins);
                state.offset = interval.to;
                state.max_event_us = state.max_event_us.max(interval.max_event_us);
                // A tail of markers is of an epoch that we were not shown: the epoch of the record before it,
                // said of the offset behind it, would look like a truncation.
                if !interval.claims_idle() {
                    state.leader_epoch = interval.leader_epoch;
                }
                if state.name.is_none() {
                    state.name.clone_from(&interval.name);
                }
            }
            let Some(planned) = self.plan.sources.get(name) else { continue };
            if planned.time_column.is_some() {
                let of = |(p, s): (&i32, &PartitionState)| PartitionTime {
                    max_event_us: s.max_event_us,
                    idle: intervals.get(p).map_or(s.max_event_us.is_some() && mutant::on(Mutant::IdlenessCarriedOver), |i| i.claims_idle()),
                };
                source.watermark = time::watermark(source.watermark, source.partitions.iter().map(of), planned.delay_us);
            }
        }
        for (name, counts) in &data.counts {
            let source = self.sources.entry(name.clone()).or_default();
            source.records += counts.records;
            source.dead += counts.dead;
        }
        if let Some(object) = &data.runs {
            for (nth, run) in object.runs.iter().enumerate() {
                let live = LiveRun {
                    entry: self.next,
                    nth,
                    object: object.path.clone(),
                    run: run.clone(),
                    horizon_before: self.horizons.get(&run.run.table).copied().flatten(),
                };
                self.runs.entry(run.run.table.clone()).or_default().push(live);
            }
        }
        self.raise_horizons();
    }

    fn raise_horizons(&mut self) {
        for (name, table) in self.plan.tables.iter().filter(|(_, t)| t.window.is_some()) {
            let watermark = self.sources.get(&table.source).and_then(|s| s.watermark);
            let before = self.horizons.get(name).copied().flatten();
            self.horizons.insert(name.clone(), time::horizon(before, watermark, table.allowed_lateness_us));
        }
    }

    /// A checkpoint may hold merged runs in the place of those up to its M, which are deleted then.
    ///
    /// A state that began at a newer checkpoint meets older ones in the log after it: what those name is gone.
    fn take_over_runs(&mut self, checkpoint: &super::checkpoint::Checkpoint) {
        if checkpoint.upto <= self.runs_as_of {
            return;
        }
        self.runs_as_of = checkpoint.upto;
        for (table, runs) in &mut self.runs {
            let mut taken = checkpoint.ledger.runs.get(table).cloned().unwrap_or_default();
            taken.extend(runs.iter().filter(|r| r.entry > checkpoint.upto).cloned());
            // A checkpoint as of an earlier life of the name knows runs that died with it.
            let born = self.plan.tables.get(table).map_or(0, |t| t.born);
            taken.retain(|r| r.entry > born);
            *runs = taken;
        }
    }

    /// The watermark moves to the end of the latest window that holds a row within `max_ahead`.
    fn end_input(&mut self) {
        self.ended_at = Some(self.next);
        for table in self.plan.tables.values() {
            let (Some(window), Some(source)) = (&table.window, self.sources.get_mut(&table.source)) else { continue };
            let latest = source.partitions.values().filter_map(|p| p.max_event_us).max();
            source.watermark = source.watermark.max(latest.map(|l| window.window_of(l).1));
        }
        self.raise_horizons();
    }

    fn drop_dead_runs(&mut self, table: &str) {
        let horizon = self.horizons.get(table).copied().flatten();
        if let Some(runs) = self.runs.get_mut(table) {
            runs.retain(|r| !time::is_late(r.run.last_window_end_us, horizon));
        }
    }

    pub fn position(&self, source: &str, partition: i32) -> Option<i64> {
        Some(self.sources.get(source)?.partitions.get(&partition)?.offset)
    }

    pub fn positions(&self) -> ByPartition<i64> {
        let of = |s: &SourceState| s.partitions.iter().map(|(&p, s)| (p, s.offset)).collect();
        self.sources.iter().map(|(n, s)| (n.clone(), of(s))).collect()
    }

    /// Every table in the lake that the plan asks for: declared, late and dead-letter tables, with
    /// the entry each was born by.
    pub fn specs(&self) -> Vec<(&SpecRecord, u64)> {
        let tables = self.plan.tables.values().flat_map(|t| [Some((&t.table, t.born)), t.late.as_ref().map(|l| (l, t.born))]);
        let dead = self.plan.sources.values().map(|s| (&s.dead, 0));
        tables.flatten().chain(dead).collect()
    }
}
