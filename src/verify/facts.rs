//! What the log says, read entry by entry and checked on the way: intervals tile every partition,
//! plans follow one another, watermark and horizons are derived anew from event times and idle claims.

use super::window::Windows;
use super::{Finding, Lake, Report, VerifyError};
use crate::epoch::checkpoint::Checkpoint;
use crate::epoch::entry::{Body, Data, Interval, Note, Plan, RunObject};
use crate::epoch::history::{self, History, Recorded, RecordedBody};
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::epoch::log::{Log, LogError};
use crate::pipeline::Pipeline;
use object_store::path::Path;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// What an entry decided of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: i64,
    pub to: i64,
    pub entry: u64,
    pub max_event_us: Option<i64>,
}

/// Event time around one entry.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Windowed table to its horizon before the entry.
    pub horizon_before: BTreeMap<String, Option<i64>>,
    /// Windowed table to its source's watermark after the entry.
    pub watermark_after: BTreeMap<String, Option<i64>>,
    pub ends_input: bool,
}

/// A plan, from its entry on.
#[derive(Debug, Clone)]
pub struct Era {
    pub entry: u64,
    pub plan: Arc<Plan>,
}

/// Everything that the log and its history tell.
pub struct Facts {
    pub log: Uuid,
    /// The first entry whose facts are known: 0, or the one after a checkpoint's M.
    pub first: u64,
    pub last: u64,
    /// M of the newest checkpoint.
    pub upto: Option<u64>,
    /// The newest checkpoint's own number.
    pub checkpoint: Option<u64>,
    /// Table to the runs that the newest checkpoint holds.
    pub held_runs: BTreeMap<String, Vec<LiveRun>>,
    /// Windowed table to its horizon as of the newest checkpoint's M: what it held below that may be dropped.
    pub held_horizons: BTreeMap<String, Option<i64>>,
    /// Runs of the entries that the log holds.
    pub runs: BTreeMap<u64, RunObject>,
    /// The plan in force at `first`, and every later one.
    pub eras: Vec<Era>,
    /// Source to partition to what its entries decided, ascending.
    pub spans: BTreeMap<String, BTreeMap<i32, Vec<Span>>>,
    /// Source to partition to where the first known interval must start, and the entry that says so.
    pub starts: BTreeMap<String, BTreeMap<i32, (i64, u64)>>,
    /// Highest event time below the first known entry, by source: what is lost may lie up to there.
    pub lost_event_us: BTreeMap<String, Option<i64>>,
    pub times: BTreeMap<u64, Times>,
    pub data: BTreeMap<u64, Data>,
    pub attempts: BTreeMap<Uuid, u64>,
    /// Source to partition to its name, where it has one.
    pub names: BTreeMap<String, BTreeMap<i32, String>>,
}

impl Facts {
    pub fn plan(&self) -> &Plan {
        // `read` makes no facts without a plan.
        &self.eras[self.eras.len() - 1].plan
    }

    /// The plan that an entry was made under, by its place in [`Facts::eras`].
    pub fn era_of(&self, entry: u64) -> usize {
        self.eras.partition_point(|e| e.entry < entry).saturating_sub(1)
    }

    /// Offsets that the log holds as of an entry.
    pub fn positions(&self, as_of: u64) -> BTreeMap<String, BTreeMap<i32, i64>> {
        let known = |starts: &BTreeMap<i32, (i64, u64)>| starts.iter().filter(|(_, (_, by))| *by <= as_of).map(|(p, (at, _))| (*p, *at)).collect();
        let mut positions: BTreeMap<String, BTreeMap<i32, i64>> = self.starts.iter().map(|(s, p)| (s.clone(), known(p))).collect();
        positions.retain(|_, p| !p.is_empty());
        for (source, partitions) in &self.spans {
            for (partition, spans) in partitions {
                let upto = spans.partition_point(|s| s.entry <= as_of);
                if let Some(last) = upto.checked_sub(1).map(|i| spans[i]) {
                    positions.entry(source.clone()).or_default().insert(*partition, last.to);
                }
            }
        }
        positions
    }
}

/// The state that entries change.
#[derive(Clone)]
struct State {
    plan: Arc<Plan>,
    plan_entry: u64,
    sources: BTreeMap<String, SourceState>,
    horizons: BTreeMap<String, Option<i64>>,
    upto: Option<u64>,
    condemned: BTreeSet<Uuid>,
}

#[derive(Clone, Default)]
struct SourceState {
    partitions: BTreeMap<i32, PartitionState>,
    watermark: Option<i64>,
}

#[derive(Clone, Default)]
struct PartitionState {
    offset: i64,
    max_event_us: Option<i64>,
}

impl State {
    fn of_plan(plan: Arc<Plan>, entry: u64) -> Self {
        let mut state = Self { plan: plan.clone(), plan_entry: entry, sources: BTreeMap::new(), horizons: BTreeMap::new(), upto: None, condemned: BTreeSet::new() };
        state.adopt(plan, entry);
        state
    }

    fn of_checkpoint(ledger: &Ledger) -> Self {
        let of = |s: &crate::epoch::ledger::SourceState| SourceState {
            partitions: s.partitions.iter().map(|(p, s)| (*p, PartitionState { offset: s.offset, max_event_us: s.max_event_us })).collect(),
            watermark: s.watermark,
        };
        Self {
            plan: Arc::new(ledger.plan.clone()),
            plan_entry: ledger.plan_entry,
            sources: ledger.sources.iter().map(|(n, s)| (n.clone(), of(s))).collect(),
            horizons: ledger.horizons.clone(),
            upto: ledger.checkpoint.map(|c| c.upto),
            condemned: ledger.condemned.keys().copied().collect(),
        }
    }

    fn adopt(&mut self, plan: Arc<Plan>, entry: u64) {
        for (name, planned) in &plan.sources {
            let source = self.sources.entry(name.clone()).or_default();
            for (&partition, &offset) in &planned.starts {
                source.partitions.entry(partition).or_insert(PartitionState { offset, max_event_us: None });
            }
        }
        self.horizons.retain(|name, _| plan.tables.contains_key(name));
        (self.plan, self.plan_entry) = (plan, entry);
        self.raise_horizons();
    }

    /// A horizon is the highest that watermark less lateness ever was.
    fn raise_horizons(&mut self) {
        let plan = self.plan.clone();
        for (name, table) in plan.tables.iter().filter(|(_, t)| t.window.is_some()) {
            let watermark = self.sources.get(&table.source).and_then(|s| s.watermark);
            let reached = watermark.map(|w| w.saturating_sub(table.allowed_lateness_us));
            let horizon = self.horizons.entry(name.clone()).or_default();
            *horizon = (*horizon).max(reached);
        }
    }

    fn data(&mut self, data: &Data, made_under: u64, say: &mut dyn FnMut(Finding)) {
        if made_under != self.plan_entry {
            say(Finding::new("plan-stale", format!("it was made under plan {made_under}, and plan {} was the newest", self.plan_entry)));
        }
        for (name, bound) in &data.bounds {
            let watermark = self.sources.get(name).and_then(|s| s.watermark);
            if watermark > *bound {
                say(Finding::new("bound-passed", format!("source {name}: the watermark had passed the bound that its rows were staged under")));
            }
        }
        for (name, intervals) in &data.intervals {
            let Some(source) = self.sources.get_mut(name) else {
                say(Finding::new("source-unknown", format!("it has offsets of source {name}, which no plan has")));
                continue;
            };
            for (&partition, interval) in intervals {
                check_interval(name, partition, interval, source.partitions.get(&partition).map(|p| p.offset), say);
                let state = source.partitions.entry(partition).or_default();
                state.offset = interval.to;
                state.max_event_us = state.max_event_us.max(interval.max_event_us);
            }
            let Some(planned) = self.plan.sources.get(name).filter(|s| s.time_column.is_some()) else { continue };
            // Idle partitions count for nothing in this entry alone; one without a row holds the watermark.
            let counted = source.partitions.iter().filter(|(p, _)| intervals.get(p).is_none_or(|i| i.from != i.to));
            let ends: Option<Vec<i64>> = counted.map(|(_, p)| p.max_event_us.map(|m| m.saturating_sub(planned.delay_us))).collect();
            if let Some(lowest) = ends.and_then(|e| e.into_iter().min()) {
                source.watermark = source.watermark.max(Some(lowest));
            }
        }
        self.raise_horizons();
    }

    fn end_input(&mut self) {
        let plan = self.plan.clone();
        for table in plan.tables.values() {
            let (Some(window), Some(source)) = (table.window, self.sources.get_mut(&table.source)) else { continue };
            if let Some(latest) = source.partitions.values().filter_map(|p| p.max_event_us).max() {
                source.watermark = source.watermark.max(Some(Windows::new(window).of(latest).1));
            }
        }
        self.raise_horizons();
    }

    fn watermarks(&self) -> BTreeMap<String, Option<i64>> {
        let windowed = self.plan.tables.iter().filter(|(_, t)| t.window.is_some());
        windowed.map(|(n, t)| (n.clone(), self.sources.get(&t.source).and_then(|s| s.watermark))).collect()
    }

    /// What a checkpoint says other than the entries below it.
    fn differs(&self, ledger: &Ledger) -> Option<String> {
        if ledger.plan_entry != self.plan_entry || ledger.plan != *self.plan {
            return Some(format!("its plan is entry {}, expected that of entry {}", ledger.plan_entry, self.plan_entry));
        }
        for (name, source) in &self.sources {
            let Some(other) = ledger.sources.get(name) else { return Some(format!("it lacks source {name}")) };
            if other.watermark != source.watermark {
                return Some(format!("the watermark of {name} is {:?} in it, expected {:?}", other.watermark, source.watermark));
            }
            for (partition, state) in &source.partitions {
                let found = other.partitions.get(partition).map(|p| (p.offset, p.max_event_us));
                if found != Some((state.offset, state.max_event_us)) {
                    return Some(format!("{name} partition {partition} stands at {found:?} in it, expected {:?}", (state.offset, state.max_event_us)));
                }
            }
        }
        (ledger.horizons != self.horizons).then(|| format!("its horizons are {:?}, expected {:?}", ledger.horizons, self.horizons))
    }
}

fn check_interval(source: &str, partition: i32, interval: &Interval, position: Option<i64>, say: &mut dyn FnMut(Finding)) {
    let (from, to) = (interval.from, interval.to);
    let place = format!("{source} partition {partition}: offsets {from}..{to}");
    if to < from {
        say(Finding::new("interval-backwards", format!("{place} run backwards")));
    }
    match position {
        Some(at) if from < at => say(Finding::new("interval-overlap", format!("{place} begin below {at}, up to which earlier entries have decided: {} records would count twice", at - from))),
        Some(at) if from > at => say(Finding::new("interval-gap", format!("{place} begin above {at}: offsets {at}..{from} are in no entry"))),
        _ => {}
    }
}

/// The objects of a log, as far as they can be read.
struct Objects {
    recorded: BTreeMap<u64, Recorded>,
    checkpoints: BTreeMap<u64, Checkpoint>,
    runs: BTreeMap<u64, RunObject>,
    newest: Option<u64>,
    log: Uuid,
    last: u64,
    broken: bool,
}

async fn objects(log: &Log, report: &mut Report) -> Result<Option<Objects>, VerifyError> {
    let away = |e: LogError| VerifyError::Unavailable(e.to_string());
    for _ in 0..20 {
        let listed = log.list(0).await.map_err(away)?;
        let Some(&last) = listed.last() else { return Ok(None) };
        let unreadable = |seq: u64, why: String| Finding::new("log-entry-unreadable", why).at(seq);
        let newest = match log.read(last).await {
            Ok(Some(entry)) => entry,
            Ok(None) => continue,
            Err(LogError::Unavailable(why)) => return Err(VerifyError::Unavailable(why)),
            Err(e) => {
                report.findings.push(unreadable(last, e.to_string()));
                return Ok(Some(Objects { recorded: BTreeMap::new(), checkpoints: BTreeMap::new(), runs: BTreeMap::new(), newest: None, log: Uuid::nil(), last, broken: true }));
            }
        };
        let named = match &newest.body {
            Body::Checkpoint(c) => Some((last, c.upto)),
            _ => newest.checkpoint.map(|c| (c.entry, c.upto)),
        };
        let first = named.map_or(0, |(_, upto)| upto + 1);
        let mut found = Objects { recorded: BTreeMap::new(), checkpoints: BTreeMap::new(), runs: BTreeMap::new(), newest: named.map(|n| n.0), log: newest.log, last, broken: false };
        let mut findings = vec![];
        for seq in first..=last {
            match log.read(seq).await {
                Ok(Some(entry)) => {
                    if entry.log != newest.log {
                        findings.push(Finding::new("log-uuid", format!("it is of log {}, the newest entry of log {}", entry.log, newest.log)).at(seq));
                    }
                    match &entry.body {
                        Body::Checkpoint(c) => drop(found.checkpoints.insert(seq, c.clone())),
                        Body::Data(Data { runs: Some(runs), .. }) => drop(found.runs.insert(seq, runs.clone())),
                        _ => {}
                    }
                    found.recorded.insert(seq, history::record(seq, &entry));
                }
                Ok(None) => findings.push(Finding::new("log-gap", format!("log entry {seq} is missing, and the log goes on to {last}")).at(seq)),
                Err(LogError::Unavailable(why)) => return Err(VerifyError::Unavailable(why)),
                Err(e) => findings.push(unreadable(seq, e.to_string())),
            }
        }
        // Truncated while it was read: entries that are gone prove nothing.
        let again = log.list(0).await.map_err(away)?.last().copied();
        let moved = match again {
            Some(at) if at != last => log.read(at).await.ok().flatten().and_then(|e| match e.body {
                Body::Checkpoint(c) => Some(c.upto),
                _ => e.checkpoint.map(|c| c.upto),
            }),
            _ => None,
        };
        if !findings.is_empty() && moved.is_some() && moved != named.map(|n| n.1) {
            continue;
        }
        found.broken = findings.iter().any(|f| f.kind != "log-uuid");
        report.findings.extend(findings);
        return Ok(Some(found));
    }
    Err(VerifyError::Unavailable("the log is truncated faster than it can be read; try again".into()))
}

/// The number of the log's newest entry.
pub async fn newest(lake: &Lake) -> Result<Option<u64>, VerifyError> {
    let log = Log::new(lake.store.clone(), Path::from(format!("{}/log", lake.state_folder)));
    log.list(0).await.map(|l| l.last().copied()).map_err(|e| VerifyError::Unavailable(e.to_string()))
}

/// The number of the checkpoint that the log's newest entry names, or is.
pub async fn newest_checkpoint(lake: &Lake) -> Result<Option<u64>, VerifyError> {
    let log = Log::new(lake.store.clone(), Path::from(format!("{}/log", lake.state_folder)));
    let Some(at) = newest(lake).await? else { return Ok(None) };
    let entry = log.read(at).await.map_err(|e| VerifyError::Unavailable(e.to_string()))?;
    Ok(entry.and_then(|e| if matches!(e.body, Body::Checkpoint(_)) { Some(at) } else { e.checkpoint.map(|c| c.entry) }))
}

/// Reads and checks the log. `None`: it is too damaged to judge anything by it; the report says why.
pub async fn read(pipeline: &Pipeline, lake: &Lake, report: &mut Report) -> Result<Option<Facts>, VerifyError> {
    let log = Log::new(lake.store.clone(), Path::from(format!("{}/log", lake.state_folder)));
    let Some(objects) = objects(&log, report).await? else { return Err(VerifyError::NothingYet(pipeline.name.clone())) };
    if objects.broken {
        report.unprovable.push("the log is damaged: no table can be judged by it; restore its folder from a backup".into());
        return Ok(None);
    }
    let upto = objects.newest.and_then(|at| objects.checkpoints.get(&at)).map(|c| c.upto);
    let mut kept = match History::new(lake.store.clone(), &lake.state_folder).read().await {
        Ok((of, entries)) if of.is_none_or(|of| of == objects.log) => entries,
        Ok((of, _)) => {
            report.findings.push(Finding::new("history-log", format!("the history is of log {of:?}, the log is {}", objects.log)));
            BTreeMap::new()
        }
        Err(e) => {
            report.findings.push(Finding::new("history-unreadable", e.to_string()));
            BTreeMap::new()
        }
    };
    for (seq, entry) in &objects.recorded {
        if kept.get(seq).is_some_and(|k| k != entry) {
            report.findings.push(Finding::new("history-differs", "the log's history holds another entry of this number").at(*seq));
        }
    }
    kept.retain(|seq, _| upto.is_some_and(|upto| *seq <= upto));
    let needed = upto.map_or(0, |u| u + 1);
    let whole = kept.keys().copied().eq(0..needed);
    if !whole {
        let missing: Vec<u64> = (0..needed).filter(|s| !kept.contains_key(s)).collect();
        let (lowest, highest) = (missing[0], missing[missing.len() - 1]);
        report.unprovable.push(format!(
            "the log is truncated up to entry {}, and its history lacks {} of these entries ({lowest} to {highest}): what was decided before entry {needed} cannot be proven",
            needed - 1,
            missing.len()
        ));
        kept.clear();
    }
    let mut entries = kept;
    entries.extend(objects.recorded);
    let facts = Walk::new(&objects.checkpoints, objects.log, objects.last, upto, report).run(entries, objects.newest);
    Ok(facts.map(|facts| Facts { runs: objects.runs, ..facts }))
}

/// Goes through the entries in order.
struct Walk<'a> {
    checkpoints: &'a BTreeMap<u64, Checkpoint>,
    facts: Facts,
    report: &'a mut Report,
}

impl<'a> Walk<'a> {
    fn new(checkpoints: &'a BTreeMap<u64, Checkpoint>, log: Uuid, last: u64, upto: Option<u64>, report: &'a mut Report) -> Self {
        let facts = Facts {
            log,
            first: 0,
            last,
            upto,
            checkpoint: None,
            held_runs: BTreeMap::new(),
            held_horizons: BTreeMap::new(),
            runs: BTreeMap::new(),
            eras: vec![],
            spans: BTreeMap::new(),
            starts: BTreeMap::new(),
            lost_event_us: BTreeMap::new(),
            times: BTreeMap::new(),
            data: BTreeMap::new(),
            attempts: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        Self { checkpoints, facts, report }
    }

    fn say(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    fn run(mut self, mut entries: BTreeMap<u64, Recorded>, newest: Option<u64>) -> Option<Facts> {
        let born = entries.get(&0).is_some_and(|e| matches!(e.body, RecordedBody::Plan(_)));
        let mut state = if born {
            let birth = entries.remove(&0)?;
            let RecordedBody::Plan(plan) = birth.body else { return None };
            self.facts.attempts.insert(birth.attempt, 0);
            State::of_plan(Arc::new(plan), 0)
        } else if let Some(checkpoint) = newest.and_then(|at| self.checkpoints.get(&at)) {
            self.facts.first = checkpoint.upto + 1;
            self.facts.lost_event_us =
                checkpoint.ledger.sources.iter().map(|(n, s)| (n.clone(), s.partitions.values().filter_map(|p| p.max_event_us).max())).collect();
            State::of_checkpoint(&checkpoint.ledger)
        } else {
            self.say(Finding::new("log-birth", "the log's first entry is no plan").at(0));
            self.report.unprovable.push("the log has no beginning: no table can be judged by it".into());
            return None;
        };
        self.facts.checkpoint = newest;
        if let Some(checkpoint) = newest.and_then(|at| self.checkpoints.get(&at)) {
            (self.facts.held_runs, self.facts.held_horizons) = (checkpoint.ledger.runs.clone(), checkpoint.ledger.horizons.clone());
        }
        self.adopt(&state, state.plan_entry);
        let begins = Times { horizon_before: state.horizons.clone(), watermark_after: state.watermarks(), ends_input: false };
        self.facts.times.insert(self.facts.first.saturating_sub(1), begins);
        // State after the entries that a checkpoint in the log claims to hold.
        let mut held: BTreeMap<u64, State> = self.checkpoints.values().map(|c| (c.upto, state.clone())).collect();
        held.retain(|upto, _| *upto + 1 >= self.facts.first);
        let first = self.facts.first;
        for (seq, entry) in entries {
            if seq < first {
                continue;
            }
            self.entry(&mut state, seq, entry, &held);
            if let Some(slot) = held.get_mut(&seq) {
                *slot = state.clone();
            }
        }
        Some(self.facts)
    }

    fn adopt(&mut self, state: &State, entry: u64) {
        self.facts.eras.push(Era { entry, plan: state.plan.clone() });
        for (name, source) in &state.sources {
            let starts = self.facts.starts.entry(name.clone()).or_default();
            for (partition, at) in &source.partitions {
                starts.entry(*partition).or_insert((at.offset, entry));
            }
        }
        for (name, planned) in &state.plan.sources {
            self.facts.names.entry(name.clone()).or_default().extend(planned.names.iter().map(|(p, n)| (*p, n.clone())));
        }
    }

    fn entry(&mut self, state: &mut State, seq: u64, entry: Recorded, held: &BTreeMap<u64, State>) {
        if let Some(before) = self.facts.attempts.insert(entry.attempt, seq) {
            self.say(Finding::new("attempt-twice", format!("attempt {} was decided by entry {before} already", entry.attempt)).at(seq));
        }
        if state.condemned.contains(&entry.attempt) {
            self.say(Finding::new("attempt-condemned", format!("attempt {} was condemned before: its files may be gone", entry.attempt)).at(seq));
        }
        let mut times = Times { horizon_before: state.horizons.clone(), ..Times::default() };
        match entry.body {
            RecordedBody::Plan(plan) => {
                if plan.replaces != Some(state.plan_entry) {
                    self.say(Finding::new("plan-chain", format!("it replaces plan {:?}, and the newest was {}", plan.replaces, state.plan_entry)).at(seq));
                }
                for (name, source) in &plan.sources {
                    let before = state.plan.sources.get(name).and_then(|s| s.incarnation.clone());
                    if before.is_some() && before != source.incarnation {
                        self.say(Finding::new("topic-id", format!("source {name} is topic {:?} from here on, and was {before:?}", source.incarnation)).at(seq));
                    }
                }
                state.adopt(Arc::new(plan), seq);
                self.adopt(state, seq);
            }
            RecordedBody::Data(data) => {
                let mut said = vec![];
                state.data(&data, entry.plan, &mut |f| said.push(f.at(seq)));
                self.report.findings.extend(said);
                for (name, intervals) in &data.intervals {
                    for (&partition, interval) in intervals {
                        let span = Span { from: interval.from, to: interval.to, entry: seq, max_event_us: interval.max_event_us };
                        self.facts.starts.entry(name.clone()).or_default().entry(partition).or_insert((interval.from, seq));
                        self.facts.spans.entry(name.clone()).or_default().entry(partition).or_default().push(span);
                        if let Some(called) = &interval.name {
                            let known = self.facts.names.entry(name.clone()).or_default().entry(partition).or_insert_with(|| called.clone()).clone();
                            if known != *called {
                                self.say(Finding::new("partition-name", format!("{name} partition {partition} is {called} in it, and was {known} before")).at(seq));
                            }
                        }
                    }
                }
                self.facts.data.insert(seq, data);
            }
            RecordedBody::Note(Note::EndOfInput { ends }) => {
                for (name, ends) in &ends {
                    for (partition, end) in ends {
                        let at = state.sources.get(name).and_then(|s| s.partitions.get(partition)).map_or(0, |p| p.offset);
                        if at < *end {
                            self.say(Finding::new("end-not-reached", format!("{name} partition {partition} stood at {at}, the end of input is {end}")).at(seq));
                        }
                    }
                }
                state.end_input();
                times.ends_input = true;
            }
            RecordedBody::Note(Note::Condemned { attempts }) => {
                for attempt in &attempts {
                    // At or below M the tables hold what it decided, and what is condemned is a run that nobody
                    // needs any more and that a kill kept from being deleted.
                    let decided = self.facts.attempts.get(attempt).copied().filter(|decided| state.upto.is_none_or(|upto| *decided > upto));
                    if let Some(decided) = decided {
                        self.say(Finding::new("attempt-condemned", format!("it condemns attempt {attempt}, which entry {decided} decided")).at(seq));
                    }
                }
                state.condemned.extend(attempts);
            }
            RecordedBody::Checkpoint { upto } => {
                if state.upto.is_some_and(|newest| upto <= newest) {
                    self.say(Finding::new("checkpoint-falls", format!("it holds the state as of entry {upto}, an earlier one that as of {:?}", state.upto)).at(seq));
                }
                state.upto = Some(upto);
                let differs = self.checkpoints.get(&seq).zip(held.get(&upto)).and_then(|(c, known)| known.differs(&c.ledger));
                if let Some(why) = differs {
                    self.say(Finding::new("checkpoint-differs", format!("the checkpoint as of entry {upto} is not what the entries add up to: {why}")).at(seq));
                }
            }
        }
        times.watermark_after = state.watermarks();
        self.facts.times.insert(seq, times);
    }
}
