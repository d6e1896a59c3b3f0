//! The epoch log with everything that is written to it: data and idle claims, plans, checkpoints with
//! merged runs, truncation, condemnations with the files that they free.
//!
//! Workers and the cleaner sleep at any step. Who owns a partition is not modelled, since nothing may
//! depend on it: any worker stages any partition. A put lands whenever it likes: after its sender lost
//! patience, crashed, or was told of a conflict that wrote nothing. Names are freed and strays land on
//! them between any list and the read that follows it. Verdicts are [`verdict`]'s, what fits and what
//! it adds up to is [`super::ledgers`]' (the real ledger's) to say.

use super::ledgers::{Attempts, Entry, Kind, Ledgers, PARTITIONS, Without, id, newest};
use super::search::{Step, World};
use crate::epoch::decide::{PutAnswer, ReadBack, Verdict, verdict};
use uuid::Uuid;

const WORKERS: usize = 2;
const CLEANER: usize = WORKERS;
const NAMES: [&str; WORKERS + 1] = ["worker", "worker", "cleaner"];
/// The name of an attempt that was just made, until names are given anew.
const FRESH: u8 = 31;

/// What is left out, or done otherwise than the real code does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    Sound,
    Entries(Without),
    /// A clean answer counts, whatever the newest checkpoint says; or another's entry read back; or any.
    TrustCreated,
    TrustLost,
    TrustAnswers,
    /// "It exists" is taken for lost, or for won, without reading back.
    ExistsIsLost,
    ExistsIsWon,
    /// What lost is proposed again as it is.
    LostAsItIs,
    /// A worker's attempts all have one id.
    OneAttemptId,
    /// Other work under the id of an attempt whose fate is unknown.
    OtherWorkSentAgain,
    /// A worker that gives up deletes what it staged; or one that finds itself stale.
    DeleteOnGivingUp,
    DeleteWhenStale,
    /// As the last; and another's entry read back counts, or "it exists" is taken for lost.
    TrustLostDelete,
    ExistsIsLostDelete,
    /// The store does not honour the condition of a create.
    PutsOverwrite,
    /// No second look for the newest checkpoint after reading.
    OneLook,
    /// The cleaner looks at the newest checkpoint before the log; at the log before the files.
    CheckpointBeforeLog,
    LogBeforeFiles,
    /// What the cleaner found nowhere is deleted, with no note; or before the note is decided.
    DeleteUnnamed,
    DeleteBeforeNote,
    /// Entries up to M go in any order; or all below the checkpoint itself.
    TruncateAnyOrder,
    TruncateAboveM,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Actor {
    /// Knows nothing of the log, or forgot.
    Away,
    /// Knows the log below `next`. The cleaner listed these files.
    Knows { next: u8, files: Attempts },
    /// The cleaner, after it read the log: not found there.
    Suspects { next: u8, attempts: Attempts },
    Prepared { at: u8, work: Entry },
    Waiting { at: u8, work: Entry },
    /// After an answer that was not clean: about to read back.
    Asking { at: u8, work: Entry },
    /// Its entry is decided: these files, or run objects, may go.
    Deleting { next: u8, files: Attempts, runs: Attempts },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// What was decided, whatever the store still holds of it.
    log: Vec<Entry>,
    /// A bit for each name that was freed.
    freed: u16,
    /// What landed on freed names. It is not in the log.
    strays: Vec<(u8, Entry)>,
    flying: Vec<(u8, Entry)>,
    actors: [Actor; WORKERS + 1],
    /// Attempts whose files lie in the store, and those whose files or run objects were deleted.
    files: Attempts,
    deleted: Attempts,
    runs_deleted: Attempts,
    budget: Budget,
    wrong: Option<&'static str>,
}

/// How often each may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub faults: u8,
    pub checkpoints: u8,
    pub condemnations: u8,
    pub plans: u8,
    pub claims: u8,
}

pub struct LogWorld {
    pub rule: Rule,
    /// Offsets to be read of each partition.
    pub ends: [u8; PARTITIONS],
    pub budget: Budget,
    /// Checkpoints may merge runs.
    pub merging: bool,
    pub ledgers: Ledgers,
}

impl LogWorld {
    pub fn new(rule: Rule, ends: [u8; PARTITIONS], merging: bool, budget: Budget) -> Self {
        let without = if let Rule::Entries(without) = rule { without } else { Without::Nothing };
        Self { rule, ends, budget, merging, ledgers: Ledgers::new(without) }
    }
}

fn position(log: &[Entry]) -> [u8; PARTITIONS] {
    let mut at = [0; PARTITIONS];
    for e in log {
        if let Kind::Data { from, to, .. } = e.kind {
            (0..PARTITIONS).filter(|&p| from[p] < to[p]).for_each(|p| at[p] = to[p]);
        }
    }
    at
}

fn plan(log: &[Entry]) -> u8 {
    log.iter().rposition(|e| matches!(e.kind, Kind::Plan { .. })).unwrap_or(0) as u8
}

fn data_attempts(entries: &[Entry]) -> Attempts {
    entries.iter().filter(|e| matches!(e.kind, Kind::Data { .. })).fold(0, |set, e| set | 1 << e.attempt)
}

impl State {
    /// The first entry that a reader of the newest checkpoint reads.
    fn first(&self) -> u8 {
        newest(&self.log).map_or(1, |c| c.upto as u8 + 1)
    }

    fn object(&self, at: u8) -> Option<Entry> {
        if self.freed >> at & 1 == 1 {
            return self.strays.iter().find(|(n, _)| *n == at).map(|(_, e)| *e);
        }
        self.log.get(at as usize).copied()
    }

    pub fn log(&self) -> &[Entry] {
        &self.log
    }

    /// What the store shows, by its names. What a checkpoint holds depends on the log below it.
    pub fn shown(&self) -> Vec<(u8, Entry)> {
        (0..self.log.len() as u8).filter_map(|at| Some((at, self.object(at)?))).collect()
    }

    /// A put lands. Whether it made the object.
    fn land(&mut self, at: u8, entry: Entry, overwrite: bool) -> bool {
        if self.object(at).is_some() && !overwrite {
            return false;
        }
        if self.freed >> at & 1 == 1 {
            self.strays.retain(|(n, _)| *n != at);
            self.strays.push((at, entry));
        } else if (at as usize) < self.log.len() {
            self.log[at as usize] = entry;
        } else {
            if at as usize > self.log.len() {
                self.wrong = Some("I1: a number was skipped");
            }
            self.log.push(entry);
        }
        true
    }

    /// Attempts are named in the order in which they are met, so that there are not ever more of them;
    /// one that nobody can decide any more, and whose files are gone, loses its name. Workers are alike.
    fn rename(&mut self) {
        self.actors[..WORKERS].sort();
        let mut order: Vec<u8> = vec![];
        let mut meet = |attempt: u8| {
            if !order.contains(&attempt) {
                order.push(attempt);
            }
        };
        self.log.iter().for_each(|e| meet(e.attempt));
        self.strays.iter().chain(&self.flying).for_each(|(_, e)| meet(e.attempt));
        for actor in &self.actors {
            if let Actor::Prepared { work, .. } | Actor::Waiting { work, .. } | Actor::Asking { work, .. } = actor {
                meet(work.attempt);
            }
        }
        // Orphans are of interest as long as somebody may come for them.
        let hunted = self.budget.condemnations > 0 || self.actors[CLEANER] != Actor::Away;
        let lying = if hunted { self.files & !self.deleted } else { 0 };
        (0..32).filter(|a| lying >> a & 1 == 1).for_each(&mut meet);
        let set = |old: Attempts| order.iter().enumerate().filter(|(_, a)| old >> **a & 1 == 1).fold(0, |new, (n, _)| new | 1 << n);
        let entry = |e: &mut Entry| {
            e.attempt = order.iter().position(|a| *a == e.attempt).expect("met above") as u8;
            if let Kind::Condemned { attempts } = &mut e.kind {
                *attempts = set(*attempts);
            }
        };
        self.log.iter_mut().for_each(entry);
        self.strays.iter_mut().chain(&mut self.flying).for_each(|(_, e)| entry(e));
        for actor in &mut self.actors {
            match actor {
                Actor::Prepared { work, .. } | Actor::Waiting { work, .. } | Actor::Asking { work, .. } => entry(work),
                Actor::Knows { files, .. } => *files = set(*files),
                Actor::Suspects { attempts, .. } => *attempts = set(*attempts),
                Actor::Deleting { files, runs, .. } => (*files, *runs) = (set(*files), set(*runs)),
                Actor::Away => {}
            }
        }
        self.files = set(self.files);
        self.deleted = set(self.deleted);
        self.runs_deleted = set(self.runs_deleted);
        self.strays.sort();
        self.flying.sort();
        self.actors[..WORKERS].sort();
    }
}

type Push<'a> = &'a mut dyn FnMut(Step, &dyn Fn(&mut State));

impl LogWorld {
    /// What stood at `at` reads on. A log that went past it makes it start over; whether its work still
    /// fits is asked when it is proposed, since other work of its process reads on too.
    fn read_on(&self, s: &mut State, actor: usize, at: u8, work: Entry) {
        let behind = s.first() > at && !matches!(self.rule, Rule::OneLook | Rule::TrustLostDelete);
        s.actors[actor] = if behind { Actor::Away } else { Actor::Prepared { at: s.log.len() as u8, work } };
    }

    fn propose(&self, s: &mut State, actor: usize, at: u8, work: Entry) {
        let again = self.rule == Rule::LostAsItIs && work.began != at;
        if again || self.ledgers.fits(&s.log[..at as usize], &work) {
            s.flying.push((at, work));
            s.actors[actor] = Actor::Waiting { at, work };
            return;
        }
        if matches!(self.rule, Rule::DeleteWhenStale | Rule::TrustLostDelete | Rule::ExistsIsLostDelete) {
            s.deleted |= 1 << work.attempt;
        }
        s.actors[actor] = if actor == CLEANER { Actor::Away } else { Actor::Knows { next: at, files: 0 } };
    }

    fn judge(&self, s: &mut State, actor: usize, at: u8, work: Entry, answer: PutAnswer, read_back: Option<ReadBack>) {
        let others = matches!(read_back, Some(ReadBack::Attempt(a)) if a != id(work.attempt));
        let blind = match self.rule {
            Rule::TrustCreated => answer == PutAnswer::Created,
            Rule::TrustLost | Rule::TrustLostDelete => others,
            Rule::TrustAnswers => true,
            _ => false,
        };
        // Listed from the number on: a checkpoint that lies below it cannot have an M at or above it.
        let found = newest(&s.log).filter(|_| !blind);
        match verdict(at as u64, id(work.attempt), answer, read_back, Ok(found)) {
            Verdict::Decided => {
                if s.log.get(at as usize) != Some(&work) {
                    s.wrong = Some("I5: work was taken for decided that the log does not hold");
                    return;
                }
                let runs = self.ledgers.runs_replaced(&s.log[..at as usize], &work);
                let next = at + 1;
                s.actors[actor] = match work.kind {
                    Kind::Condemned { attempts } => Actor::Deleting { next, files: attempts, runs: 0 },
                    _ if runs != 0 => Actor::Deleting { next, files: 0, runs },
                    _ => Actor::Knows { next, files: 0 },
                };
            }
            Verdict::Lost => self.read_on(s, actor, at, work),
            Verdict::StartOver => s.actors[actor] = Actor::Away,
            Verdict::SendAgain => {
                let again = match work.kind {
                    Kind::Data { from, claims, .. } if self.rule == Rule::OtherWorkSentAgain => Entry { kind: Kind::Data { from, to: self.ends, claims }, ..work },
                    _ => work,
                };
                // A third copy would do nothing that two do not.
                if s.flying.iter().filter(|f| **f == (at, again)).count() < 2 {
                    s.flying.push((at, again));
                }
                s.actors[actor] = Actor::Waiting { at, work: again };
            }
            Verdict::AskAgain => {}
        }
    }

    fn exists(&self, s: &mut State, actor: usize, at: u8, work: Entry) {
        match self.rule {
            Rule::ExistsIsLost | Rule::ExistsIsLostDelete => self.judge(s, actor, at, work, PutAnswer::NotClean, Some(ReadBack::Attempt(Uuid::nil()))),
            Rule::ExistsIsWon => self.judge(s, actor, at, work, PutAnswer::Created, None),
            _ => s.actors[actor] = Actor::Asking { at, work },
        }
    }

    /// Reads from `next` to the end, looks for the newest checkpoint once more, and begins something.
    fn read_and_begin(&self, s: &State, actor: usize, next: u8, files: Attempts, push: Push) {
        let who = NAMES[actor];
        if s.first() > next && self.rule != Rule::OneLook {
            push((who, "was left behind at", next), &|t| t.actors[actor] = Actor::Away);
            return;
        }
        let read: Vec<Entry> = (next..).map_while(|at| s.object(at)).collect();
        let at = next + read.len() as u8;
        if s.log.get(next as usize..) != Some(&read) {
            push((who, "reads up to", at), &|t| t.wrong = Some("a reader took another log for the log"));
            return;
        }
        if actor == CLEANER {
            // Under LogBeforeFiles: what the log holds, not what it lacks.
            let found = self.ledgers.attempts(&s.log);
            let attempts = if self.rule == Rule::LogBeforeFiles { found } else { files & !found };
            push((who, "reads up to", at), &|t| t.actors[actor] = Actor::Suspects { next: at, attempts });
            return;
        }
        let (from, plan) = (position(&s.log), plan(&s.log));
        let attempt = if self.rule == Rule::OneAttemptId { FRESH - 1 - actor as u8 } else { FRESH };
        let mut begin = |what: (&'static str, u8), kind: Kind, change: &dyn Fn(&mut State)| {
            let work = Entry { attempt, began: at, plan, kind };
            push((who, what.0, what.1), &|t| {
                t.actors[actor] = Actor::Prepared { at, work };
                change(t);
            });
        };
        for (a, b) in (from[0]..=self.ends[0]).flat_map(|a| (from[1]..=self.ends[1]).map(move |b| (a, b))) {
            for claims in 0..1u8 << PARTITIONS {
                let to = [a, b];
                let claimed = (0..PARTITIONS).filter(|p| claims >> p & 1 == 1);
                let idle = claimed.clone().all(|p| to[p] == from[p]) && claims.count_ones() <= s.budget.claims as u32;
                if !idle || to == from && claims == 0 {
                    continue;
                }
                begin(("stages up to", 10 * a + b), Kind::Data { from, to, claims }, &|t| {
                    t.files |= 1 << attempt;
                    t.budget.claims -= claims.count_ones() as u8;
                });
            }
        }
        let (base, first) = newest(&s.log).map_or((0, 1), |c| (c.entry as u8, c.upto as u8 + 1));
        if s.budget.checkpoints > 0 {
            for upto in first..at {
                for merged in if self.merging { 0..2 } else { 0..1 } {
                    begin(("folds up to", upto), Kind::Checkpoint { upto, base, merged: merged == 1 }, &|t| t.budget.checkpoints -= 1);
                }
            }
        }
        if s.budget.plans > 0 {
            begin(("plans after", plan), Kind::Plan { replaces: plan }, &|t| t.budget.plans -= 1);
        }
    }

    fn cleaner_steps(&self, s: &State, push: Push) {
        let lying = s.files & !s.deleted;
        match s.actors[CLEANER] {
            Actor::Knows { next: 0, .. } | Actor::Away if lying != 0 && s.budget.condemnations > 0 => {
                let next = s.first();
                let known = data_attempts(&s.log[..next as usize]);
                let files = match self.rule {
                    Rule::CheckpointBeforeLog => lying & !known,
                    _ => lying,
                };
                push(("cleaner", "lists files", 0), &|t| t.actors[CLEANER] = Actor::Knows { next, files });
            }
            Actor::Knows { files, .. } if self.rule == Rule::CheckpointBeforeLog => self.read_and_begin(s, CLEANER, s.first(), files, push),
            Actor::Suspects { next, attempts } => {
                // In the live set of the newest checkpoint, or in a table by now.
                let known = data_attempts(&s.log[..s.first() as usize]);
                let attempts = match self.rule {
                    Rule::CheckpointBeforeLog => attempts,
                    Rule::LogBeforeFiles => lying & !attempts & !known,
                    _ => attempts & !known,
                };
                let work = Entry { attempt: FRESH, began: next, plan: 0, kind: Kind::Condemned { attempts } };
                push(("cleaner", "looks into the checkpoint and the tables", 0), &|t| {
                    t.budget.condemnations -= (attempts != 0) as u8;
                    t.actors[CLEANER] = match self.rule {
                        _ if attempts == 0 => Actor::Away,
                        Rule::DeleteUnnamed => Actor::Deleting { next, files: attempts, runs: 0 },
                        _ => Actor::Prepared { at: next, work },
                    };
                    if self.rule == Rule::DeleteBeforeNote {
                        t.deleted |= attempts;
                    }
                });
            }
            Actor::Knows { next, files } => self.read_and_begin(s, CLEANER, next, files, push),
            _ => {}
        }
    }

    fn actor_steps(&self, s: &State, actor: usize, push: Push) {
        let who = NAMES[actor];
        if s.budget.faults > 0 && s.actors[actor] != Actor::Away {
            push((who, "crashes", 0), &|t| {
                t.budget.faults -= 1;
                if let (Rule::DeleteOnGivingUp, Actor::Waiting { work, .. } | Actor::Asking { work, .. }) = (self.rule, t.actors[actor]) {
                    t.deleted |= 1 << work.attempt;
                }
                t.actors[actor] = Actor::Away;
            });
        }
        match s.actors[actor] {
            Actor::Away if actor != CLEANER => {
                let next = s.first();
                push((who, "lists from", next), &|t| t.actors[actor] = Actor::Knows { next, files: 0 });
            }
            Actor::Knows { next, files } if actor != CLEANER => self.read_and_begin(s, actor, next, files, push),
            Actor::Prepared { at, work } => {
                push((who, "proposes", at), &|t| self.propose(t, actor, at, work));
                if at as usize != s.log.len() {
                    push((who, "reads on before it proposes", at), &|t| self.read_on(t, actor, at, work));
                }
            }
            Actor::Waiting { at, work } if s.budget.faults > 0 => {
                push((who, "waits no longer", at), &|t| {
                    t.budget.faults -= 1;
                    t.actors[actor] = Actor::Asking { at, work };
                });
                push((who, "is told of a conflict that wrote nothing", at), &|t| {
                    t.budget.faults -= 1;
                    let flown = t.flying.iter().position(|f| *f == (at, work)).expect("who waits has a put in flight");
                    t.flying.remove(flown);
                    self.exists(t, actor, at, work);
                });
            }
            Actor::Asking { at, work } => {
                let back = s.object(at).map_or(ReadBack::Absent, |e| ReadBack::Attempt(id(e.attempt)));
                push((who, "reads back", at), &|t| self.judge(t, actor, at, work, PutAnswer::NotClean, Some(back)));
            }
            Actor::Deleting { next, files, runs } => push((who, "deletes", 0), &|t| {
                t.deleted |= files;
                t.runs_deleted |= runs;
                t.actors[actor] = if actor == CLEANER { Actor::Away } else { Actor::Knows { next, files: 0 } };
            }),
            _ => {}
        }
        if actor == CLEANER {
            self.cleaner_steps(s, push);
        }
    }

    fn store_steps(&self, s: &State, push: Push) {
        for (i, &(at, entry)) in s.flying.iter().enumerate() {
            if i > 0 && s.flying[i - 1] == (at, entry) {
                continue;
            }
            let twin = s.flying.get(i + 1) == Some(&(at, entry));
            let waits = |a: &Actor| *a == Actor::Waiting { at, work: entry };
            let land = |t: &mut State| {
                t.flying.remove(i);
                t.land(at, entry, self.rule == Rule::PutsOverwrite)
            };
            let Some(actor) = s.actors.iter().position(waits) else {
                push(("store", "lands, unheard,", at), &|t| {
                    land(t);
                });
                continue;
            };
            if twin {
                push(("store", "lands, unheard,", at), &|t| {
                    land(t);
                });
            }
            push(("store", "lands and answers", at), &|t| {
                if land(t) { self.judge(t, actor, at, entry, PutAnswer::Created, None) } else { self.exists(t, actor, at, entry) }
            });
            if s.budget.faults > 0 {
                push(("store", "lands, and the client sends it twice,", at), &|t| {
                    t.budget.faults -= 1;
                    land(t);
                    self.exists(t, actor, at, entry);
                });
            }
        }
        let newest = newest(&s.log);
        let below = match self.rule {
            Rule::TruncateAboveM => newest.map_or(0, |c| c.entry),
            _ => newest.map_or(0, |c| c.upto + 1),
        };
        let kept = (0..below).filter(|n| s.freed >> n & 1 == 0);
        for name in kept.take(if self.rule == Rule::TruncateAnyOrder { usize::MAX } else { 1 }) {
            push(("log", "is truncated at", name as u8), &|t| t.freed |= 1 << name);
        }
    }
}

impl World for LogWorld {
    type State = State;

    fn start(&self) -> State {
        State {
            log: vec![Entry { attempt: 0, began: 0, plan: 0, kind: Kind::Birth }],
            freed: 0,
            strays: vec![],
            flying: vec![],
            actors: [Actor::Away; WORKERS + 1],
            files: 0,
            deleted: 0,
            runs_deleted: 0,
            budget: self.budget,
            wrong: None,
        }
    }

    fn steps(&self, s: &State, out: &mut Vec<(Step, State)>) {
        let mut push = |step: Step, change: &dyn Fn(&mut State)| {
            let mut t = s.clone();
            change(&mut t);
            if self.rule != Rule::OneAttemptId {
                t.rename();
            }
            out.push((step, t));
        };
        for actor in (0..=CLEANER).filter(|&a| a != 1 || s.actors[0] != s.actors[1]) {
            self.actor_steps(s, actor, &mut push);
        }
        self.store_steps(s, &mut push);
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        let mut at = [0; PARTITIONS];
        let mut plan = 0;
        for (n, e) in s.log.iter().enumerate() {
            match e.kind {
                Kind::Data { from, to, claims } => {
                    if s.deleted >> e.attempt & 1 == 1 {
                        return Some("I4: files of a decided epoch were deleted");
                    }
                    for p in 0..PARTITIONS {
                        if from[p] < to[p] && from[p] != at[p] {
                            return Some("I1: an offset is in no epoch, or in two");
                        }
                        if claims >> p & 1 == 1 && from[p] != at[p] {
                            return Some("an idle claim was decided that the position had left");
                        }
                        at[p] = at[p].max(to[p]);
                    }
                    if e.plan != plan {
                        return Some("data of one plan was decided under another");
                    }
                }
                Kind::Plan { replaces } => {
                    if replaces != plan {
                        return Some("a plan was decided that was never compared with the one before it");
                    }
                    plan = n as u8;
                }
                Kind::Birth | Kind::Checkpoint { .. } | Kind::Condemned { .. } => {}
            }
        }
        if s.wrong.is_some() {
            return s.wrong;
        }
        if self.ledgers.after(&s.log).is_err() {
            return Some("the readers of the log refuse it");
        }
        if self.ledgers.runs_needed(&s.log) & s.runs_deleted != 0 {
            return Some("I4: a run was deleted that the panes are restored from");
        }
        None
    }

    fn finished(&self, s: &State) -> bool {
        let rests = |a: &Actor| matches!(a, Actor::Away | Actor::Knows { .. });
        s.flying.is_empty() && s.actors.iter().all(rests) && position(&s.log) == self.ends
    }
}
