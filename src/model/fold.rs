//! Event time: which rows are staged raw, which partitions an entry may leave out of the watermark, what
//! the fold makes of the log.
//!
//! Rows reach the broker at any moment, each with any event time. A worker begins an entry, may claim
//! partitions idle while it makes it, and may sleep anywhere; any worker may own any partition, and claim
//! one that another owns. The decision is one atomic append here ([`super::log`] has the rest). A state
//! holds what the fold made and not the entries, so that logs of any length are searched. Bound and
//! judging are [`crate::time`]'s, whether an entry fits and what it does to the times is the real ledger's.
//!
//! A worker makes one entry after the other: one that began the next before its last is decided would
//! have to count that in its bound.

use super::file;
use super::search::{Step, World, hash_of};
use crate::epoch::decide::fits;
use crate::epoch::entry::{Body, Data, Interval, Note, Plan};
use crate::epoch::ledger::{Ledger, Times};
use crate::epoch::tests::{MINUTE, birth_of, entry};
use crate::time::{self, PartitionTime};
use hashbrown::HashTable;
use std::cell::RefCell;

const ROWS: usize = 2;
const PARTITIONS: usize = 2;
const WORKERS: usize = 2;
/// Windows of one minute, by their ends; the first ends at 1.
const WINDOWS: usize = 5;
const NOT_YET: i8 = -1;

/// Minutes; `None` is before any row.
type Minutes = Option<i8>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    Sound,
    /// A partition stays idle until rows of it are decided.
    ClaimCarriedOver,
    /// Claimed because nothing came, without a look at the broker's end.
    ClaimFromSilence,
    /// A partition without a row does not hold the watermark.
    UnseenDoesNotHold,
    /// Where no rows wait the bound is the watermark alone.
    BoundIsWatermark,
    /// Partitions at their end hold the bound down too.
    BoundOfAll,
    /// The bound is not compared with the watermark at the decision.
    AnyWatermark,
    /// Nothing is staged raw.
    NoJudgeLater,
    /// Rows are judged by the horizon of when their entry began; or after their entry.
    JudgeAtBegin,
    JudgeAfter,
    /// Panes are dropped before the entry's rows are placed.
    DropFirst,
    /// A closed window that gets a row is not emitted again.
    NoCorrections,
    /// The watermark follows its partitions down; or the horizon, when the lateness is raised.
    WatermarkFalls,
    HorizonFalls,
    /// Data that began under an older plan is taken under the new one.
    AnyPlan,
}

/// What the log says of time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Facts {
    ends: [u8; PARTITIONS],
    highest: [Minutes; PARTITIONS],
    watermark: Minutes,
    horizon: Minutes,
    /// Plan entries so far.
    plan: u8,
    lateness: i8,
}

/// An entry in the making.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Work {
    /// Its place in the order in which the works at hand began.
    nth: u8,
    own: [bool; PARTITIONS],
    /// A partition of its own had rows waiting when it began.
    waiting: bool,
    from: [u8; PARTITIONS],
    claims: [Option<u8>; PARTITIONS],
    /// The broker's ends when it began, or the log's positions where they are above.
    arrived: [u8; PARTITIONS],
    bound: Minutes,
    judge_below: Minutes,
    /// Only under the rule that looks at it.
    horizon: Minutes,
    plan: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    times: [[i8; ROWS]; PARTITIONS],
    facts: Facts,
    carried: [bool; PARTITIONS],
    /// A bit for each row: in which pane, table row and late table it is, by the window's end.
    panes: [u8; WINDOWS],
    table: [u8; WINDOWS],
    late: [u8; WINDOWS],
    works: [Option<Work>; WORKERS],
    ended: bool,
    wrong: Option<&'static str>,
}

pub struct FoldWorld {
    pub rule: Rule,
    pub rows: [u8; PARTITIONS],
    pub last_time: i8,
    pub lateness: i8,
    /// A plan entry may change the lateness to this.
    pub replan: Option<i8>,
    pub idleness: bool,
    /// One worker, which owns every partition.
    pub alone: bool,
    /// An end-of-input note may come.
    pub ends: bool,
    known: RefCell<Known>,
    birth: Ledger,
    plan: Plan,
}

type Known = HashTable<((Facts, Change), Option<(Facts, Times)>)>;

/// What an entry brings, as far as time goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Change {
    Data { from: [u8; PARTITIONS], to: [u8; PARTITIONS], highest: [Minutes; PARTITIONS], claims: [Option<u8>; PARTITIONS], bound: Minutes, plan: u8 },
    Plan { lateness: i8 },
    End,
}

fn us(minutes: Minutes) -> Option<i64> {
    minutes.map(|m| m as i64 * MINUTE)
}

fn minutes(us: Option<i64>) -> Minutes {
    us.map(|us| (us / MINUTE) as i8)
}

fn end_of(minute: i8) -> i8 {
    minute + 1
}

fn is_late(end: i8, horizon: Minutes) -> bool {
    time::is_late(end as i64 * MINUTE, us(horizon))
}

fn bit(p: usize, i: usize) -> u8 {
    1 << (p * ROWS + i)
}

impl State {
    fn arrived(&self) -> [u8; PARTITIONS] {
        self.times.map(|rows| rows.iter().filter(|t| **t != NOT_YET).count() as u8)
    }

    fn highest(&self, p: usize, to: u8) -> Minutes {
        self.times[p][..to as usize].iter().copied().max()
    }

    fn drop_work(&mut self, worker: usize) {
        if let Some(gone) = self.works[worker].take() {
            self.works.iter_mut().flatten().filter(|w| w.nth > gone.nth).for_each(|w| w.nth -= 1);
        }
    }
}

type Push<'a> = &'a mut dyn FnMut(Step, &dyn Fn(&mut State));

impl FoldWorld {
    pub fn new(rule: Rule, rows: [u8; PARTITIONS], last_time: i8, lateness: i8) -> Self {
        let born = birth_of(&file("0s", "1 minute", "[iceberg]"), PARTITIONS as i32);
        let birth = Ledger::born(&born).expect("it is a plan");
        let Body::Plan(plan) = born.body else { unreachable!("it was born by it") };
        Self { rule, rows, last_time, lateness, replan: None, idleness: true, alone: false, ends: false, known: RefCell::default(), birth, plan }
    }

    /// The real ledger of these facts.
    fn ledger(&self, facts: &Facts) -> Ledger {
        let mut ledger = self.birth.clone();
        ledger.next = 100;
        ledger.plan_entry = facts.plan as u64;
        ledger.plan.tables.get_mut("sums").expect("the plan has it").allowed_lateness_us = facts.lateness as i64 * MINUTE;
        ledger.horizons.insert("sums".into(), us(facts.horizon));
        let source = ledger.sources.get_mut("events").expect("the plan has it");
        source.watermark = us(facts.watermark);
        for (&p, state) in &mut source.partitions {
            state.offset = facts.ends[p as usize] as i64;
            state.max_event_us = us(facts.highest[p as usize]);
        }
        ledger
    }

    /// What an entry does to the log: `None` when it does not fit.
    fn appended(&self, facts: &Facts, change: &Change) -> Option<(Facts, Times)> {
        let key = (*facts, *change);
        let hash = hash_of(&key);
        if let Some((_, known)) = self.known.borrow().find(hash, |(k, _)| *k == key) {
            return *known;
        }
        let made = self.append(facts, change);
        self.known.borrow_mut().insert_unique(hash, (key, made), |(k, _)| hash_of(k));
        made
    }

    fn append(&self, facts: &Facts, change: &Change) -> Option<(Facts, Times)> {
        let mut ledger = self.ledger(facts);
        let (plan, body) = match *change {
            Change::Data { from, to, highest, claims, bound, plan } => {
                let mut intervals = std::collections::BTreeMap::new();
                for p in 0..PARTITIONS {
                    let empty = claims[p].map(|at| (at, at)).filter(|_| from[p] == to[p]);
                    let Some((from, to)) = empty.or((from[p] < to[p]).then_some((from[p], to[p]))) else { continue };
                    let interval = Interval { from: from as i64, to: to as i64, leader_epoch: 0, max_event_us: us(highest[p]), name: None };
                    intervals.insert(p as i32, interval);
                }
                let bounds = if self.rule == Rule::AnyWatermark { Default::default() } else { [("events".to_string(), us(bound))].into() };
                (plan, Body::Data(Data { intervals: [("events".to_string(), intervals)].into(), bounds, ..Default::default() }))
            }
            Change::Plan { lateness } => {
                let mut plan = Plan { replaces: Some(facts.plan as u64), ..self.plan.clone() };
                plan.tables.get_mut("sums").expect("the plan has it").allowed_lateness_us = lateness as i64 * MINUTE;
                (facts.plan, Body::Plan(plan))
            }
            Change::End => (facts.plan, Body::Note(Note::EndOfInput { ends: ledger.positions() })),
        };
        let entry = entry(7, plan as u64, ledger.next, body);
        fits(&ledger, &entry).ok()?;
        let mut times = ledger.apply(&entry).ok()?.remove("sums")?;
        let mut after = *facts;
        match *change {
            Change::Plan { lateness } => (after.plan, after.lateness) = (facts.plan + 1, lateness),
            Change::Data { .. } | Change::End => {}
        }
        for (&p, state) in &ledger.sources["events"].partitions {
            after.ends[p as usize] = state.offset as u8;
            after.highest[p as usize] = minutes(state.max_event_us);
        }
        (after.watermark, after.horizon) = (minutes(times.watermark_after), minutes(times.horizon_after));
        self.mistake(facts, change, &mut after);
        times.watermark_after = us(after.watermark);
        times.horizon_after = us(after.horizon);
        Some((after, times))
    }

    /// The rules of watermark and horizon that are left out.
    fn mistake(&self, before: &Facts, change: &Change, after: &mut Facts) {
        let idle = |p: usize| matches!(change, Change::Data { claims, from, to, .. } if claims[p].is_some() && from[p] == to[p]);
        let mark = |before: Minutes, skips: &dyn Fn(usize) -> bool| {
            let of = |p: usize| PartitionTime { max_event_us: us(after.highest[p]), idle: idle(p) || skips(p) };
            minutes(time::watermark(us(before), (0..PARTITIONS).map(of), 0))
        };
        match self.rule {
            Rule::UnseenDoesNotHold => after.watermark = mark(before.watermark, &|p| after.highest[p].is_none()),
            Rule::WatermarkFalls => after.watermark = mark(None, &|_| false).or(before.watermark),
            Rule::HorizonFalls => {
                after.horizon = minutes(time::horizon(None, us(after.watermark), after.lateness as i64 * MINUTE));
                return;
            }
            _ => return,
        }
        after.horizon = minutes(time::horizon(us(before.horizon), us(after.watermark), after.lateness as i64 * MINUTE));
    }

    fn begin(&self, s: &State, own: [bool; PARTITIONS]) -> Work {
        let arrived = s.arrived();
        let facts = &s.facts;
        let from = facts.ends;
        let waits = |p: usize| from[p] < arrived[p];
        let counted = (0..PARTITIONS).filter(|&p| own[p] && (self.rule != Rule::BoundIsWatermark || waits(p)));
        let bound = time::bound(us(facts.watermark), counted.map(|p| (us(facts.highest[p]), waits(p) || self.rule == Rule::BoundOfAll)), 0);
        let judge_below = match self.rule {
            Rule::NoJudgeLater => None,
            _ => minutes(time::judge_below(us(facts.horizon), bound, facts.lateness as i64 * MINUTE)),
        };
        Work {
            nth: s.works.iter().flatten().count() as u8,
            own,
            waiting: (0..PARTITIONS).any(|p| own[p] && waits(p)),
            from,
            claims: [None; PARTITIONS],
            arrived,
            bound: if self.rule == Rule::AnyWatermark { None } else { minutes(bound) },
            judge_below,
            horizon: if self.rule == Rule::JudgeAtBegin { facts.horizon } else { None },
            plan: facts.plan,
        }
    }

    /// The entry that this work is when it ends at `to`.
    fn change(&self, s: &State, work: &Work, to: [u8; PARTITIONS]) -> Change {
        let highest = |p: usize| s.times[p][work.from[p] as usize..to[p] as usize].iter().copied().max();
        let mut claims = work.claims;
        for (p, claim) in claims.iter_mut().enumerate() {
            if self.rule == Rule::ClaimCarriedOver && s.carried[p] && work.from[p] == to[p] {
                *claim = Some(s.facts.ends[p]);
            }
        }
        let plan = if self.rule == Rule::AnyPlan { s.facts.plan } else { work.plan };
        // Positions where nothing is read say nothing.
        let from = std::array::from_fn(|p| if to[p] > work.from[p] { work.from[p] } else { 0 });
        let to = std::array::from_fn(|p| if to[p] > work.from[p] { to[p] } else { 0 });
        Change::Data { from, to, highest: [highest(0), highest(1)], claims, bound: work.bound, plan }
    }

    /// The fold of one decided entry.
    fn fold(&self, t: &mut State, after: Facts, times: &Times, rows: Option<(&Work, [u8; PARTITIONS])>) {
        let before = t.facts;
        t.facts = after;
        let (horizon, watermark) = (before.horizon, before.watermark);
        if self.rule == Rule::DropFirst {
            self.drop_panes(t);
        }
        let mut touched = [false; WINDOWS];
        if let Some((work, to)) = rows {
            let judged_at = match self.rule {
                Rule::JudgeAtBegin => work.horizon,
                Rule::JudgeAfter => after.horizon,
                _ => minutes(times.horizon_before),
            };
            for p in 0..PARTITIONS {
                for i in work.from[p] as usize..to[p] as usize {
                    let (minute, row) = (t.times[p][i], bit(p, i));
                    let end = end_of(minute);
                    let raw = is_late(end, work.judge_below);
                    let late = raw && is_late(end, judged_at);
                    if !raw && is_late(end, horizon) {
                        t.wrong = Some("I6: a late row was not staged raw, and nobody judges it");
                    } else if late != is_late(end, horizon) {
                        t.wrong = Some("I6: the late table differs from the straight fold");
                    }
                    if late {
                        t.late[end as usize] |= row;
                    } else {
                        t.panes[end as usize] |= row;
                        touched[end as usize] = true;
                    }
                }
            }
        }
        for end in 1..WINDOWS {
            let reached = |mark: Minutes| mark.is_some_and(|m| end as i8 <= m);
            let closes = reached(after.watermark) && !reached(watermark) || times.emit_all;
            let corrected = touched[end] && reached(watermark) && self.rule != Rule::NoCorrections;
            if (closes || corrected) && t.panes[end] != 0 {
                t.table[end] = t.panes[end];
            }
        }
        self.drop_panes(t);
    }

    fn drop_panes(&self, t: &mut State) {
        for end in 1..WINDOWS {
            if is_late(end as i8, t.facts.horizon) {
                t.panes[end] = 0;
            }
        }
    }

    /// A row that had arrived when the making began is not made late by leaving its partition out.
    fn judge_claims(&self, t: &mut State, work: &Work, before: &Facts, claimed: [bool; PARTITIONS]) {
        let after = t.facts;
        for p in 0..PARTITIONS {
            let of = |q: usize| PartitionTime { max_event_us: us(after.highest[q]), idle: claimed[q] && q != p };
            let held = time::watermark(us(before.watermark), (0..PARTITIONS).map(of), 0);
            let held = minutes(time::horizon(us(before.horizon), held, after.lateness as i64 * MINUTE));
            for i in after.ends[p]..work.arrived[p] {
                let end = end_of(t.times[p][i as usize]);
                if is_late(end, after.horizon) && !is_late(end, held) {
                    t.wrong = Some("a row that had arrived before an entry's making began was made late by leaving its partition out");
                }
            }
        }
    }

    /// Nobody starves: only an entry that claims one of its partitions carries the watermark past work
    /// at hand, and only an older one past work that began with rows waiting.
    fn judge_passed(&self, t: &mut State, by: &Work, before: &Facts) {
        for work in t.works.iter().flatten() {
            let intact = work.plan == before.plan && (0..PARTITIONS).all(|p| !work.own[p] || t.facts.ends[p] <= work.from[p]);
            if !intact || before.watermark > work.bound || t.facts.watermark <= work.bound {
                continue;
            }
            if !(0..PARTITIONS).any(|p| work.own[p] && by.claims[p].is_some()) {
                t.wrong = Some("work was made stale by an entry that claims none of its partitions");
            } else if work.waiting && by.nth > work.nth {
                t.wrong = Some("work with rows waiting was made stale by an entry that began later");
            }
        }
    }

    fn worker_steps(&self, s: &State, worker: usize, push: Push) {
        let Some(work) = s.works[worker] else {
            let owned: &[[bool; PARTITIONS]] = if self.alone { &[[true; 2]] } else { &[[true, false], [false, true], [true; 2]] };
            for &own in owned {
                let work = self.begin(s, own);
                push(("worker", "begins", own[0] as u8 + 2 * own[1] as u8), &|t| t.works[worker] = Some(work));
            }
            return;
        };
        push(("worker", "crashes", 0), &|t| t.drop_work(worker));
        let arrived = s.arrived();
        for p in (0..PARTITIONS).filter(|&p| self.idleness && work.claims[p].is_none()) {
            let at = if work.own[p] { work.from[p] } else { s.facts.ends[p] };
            if arrived[p] == at || self.rule == Rule::ClaimFromSilence {
                push(("worker", "claims idle", p as u8), &|t| {
                    if let Some(work) = &mut t.works[worker] {
                        work.claims[p] = Some(at);
                    }
                });
            }
        }
        let most = |p: usize| if work.own[p] && work.claims[p].is_none() { arrived[p].max(work.from[p]) } else { work.from[p] };
        let mut fitted = false;
        for to in (work.from[0]..=most(0)).flat_map(|a| (work.from[1]..=most(1)).map(move |b| [a, b])) {
            let change = self.change(s, &work, to);
            let Some((after, times)) = self.appended(&s.facts, &change) else { continue };
            fitted = true;
            // Claims that move no watermark are not worth an entry.
            if to == work.from && after == s.facts {
                continue;
            }
            push(("worker", "appends up to", 10 * to[0] + to[1]), &|t| {
                let before = t.facts;
                t.drop_work(worker);
                self.fold(t, after, &times, Some((&work, to)));
                let Change::Data { claims, .. } = change else { return };
                let claimed = std::array::from_fn(|p| claims[p].is_some() && to[p] == work.from[p]);
                if self.rule == Rule::ClaimCarriedOver {
                    t.carried = claimed;
                }
                if self.rule == Rule::UnseenDoesNotHold {
                    let unseen = std::array::from_fn(|p| claimed[p] || after.highest[p].is_none());
                    self.judge_claims(t, &work, &before, unseen);
                } else {
                    self.judge_claims(t, &work, &before, claimed);
                }
                if self.rule != Rule::AnyWatermark {
                    self.judge_passed(t, &work, &before);
                }
            });
        }
        if !fitted {
            push(("worker", "finds its work stale", 0), &|t| t.drop_work(worker));
        }
    }
}

impl World for FoldWorld {
    type State = State;

    fn start(&self) -> State {
        let highest = [None; PARTITIONS];
        State {
            times: [[NOT_YET; ROWS]; PARTITIONS],
            facts: Facts { ends: [0; PARTITIONS], highest, watermark: None, horizon: None, plan: 0, lateness: self.lateness },
            carried: [false; PARTITIONS],
            panes: [0; WINDOWS],
            table: [0; WINDOWS],
            late: [0; WINDOWS],
            works: [None; WORKERS],
            ended: false,
            wrong: None,
        }
    }

    fn steps(&self, s: &State, out: &mut Vec<(Step, State)>) {
        let mut push = |step: Step, change: &dyn Fn(&mut State)| {
            let mut t = s.clone();
            change(&mut t);
            let ends = t.facts.ends;
            for work in t.works.iter_mut().flatten() {
                (0..PARTITIONS).for_each(|p| work.arrived[p] = work.arrived[p].max(ends[p]));
            }
            t.works.sort(); // the workers are alike
            out.push((step, t));
        };
        let arrived = s.arrived();
        for p in (0..PARTITIONS).filter(|&p| arrived[p] < self.rows[p]) {
            for minute in 0..=self.last_time {
                push(("broker", if p == 0 { "gets in 0 a row of" } else { "gets in 1 a row of" }, minute as u8), &|t| t.times[p][arrived[p] as usize] = minute);
            }
        }
        if let Some(lateness) = self.replan.filter(|_| s.facts.plan == 0)
            && let Some((after, times)) = self.appended(&s.facts, &Change::Plan { lateness })
        {
            push(("plan", "changes the lateness to", lateness as u8), &|t| self.fold(t, after, &times, None));
        }
        if self.ends
            && !s.ended
            && let Some((after, times)) = self.appended(&s.facts, &Change::End)
        {
            push(("note", "ends the input", 0), &|t| {
                self.fold(t, after, &times, None);
                t.ended = true;
            });
        }
        for worker in if self.alone || s.works[0] == s.works[1] { 1..2 } else { 0..2 } {
            self.worker_steps(s, worker, &mut push);
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        if s.wrong.is_some() {
            return s.wrong;
        }
        let mut straight = [0; WINDOWS];
        for p in 0..PARTITIONS {
            for i in 0..s.facts.ends[p] as usize {
                let end = end_of(s.times[p][i]);
                straight[end as usize] |= bit(p, i) & !s.late[end as usize];
            }
        }
        let closed = |end: usize| s.facts.watermark.is_some_and(|m| end as i8 <= m);
        (1..WINDOWS).any(|end| closed(end) && s.table[end] != straight[end]).then_some("I2: the table differs from the straight fold")
    }

    /// All rows are decided, and the watermark stands as high as they allow.
    fn finished(&self, s: &State) -> bool {
        let highest = [s.highest(0, self.rows[0]), s.highest(1, self.rows[1])];
        let reached = if self.idleness { highest[0].max(highest[1]) } else { highest[0].min(highest[1]) };
        s.works == [None; WORKERS] && s.facts.ends == self.rows && s.facts.watermark >= reached && (s.ended || !self.ends)
    }
}
