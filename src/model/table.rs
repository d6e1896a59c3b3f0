//! Tables that roll forward over one log: stamps, lost answers, foreign commits and rollbacks; two formats
//! that advance on their own, and the checkpoints, merged runs and truncation that wait for the slower one.
//!
//! Entries 1 to [`LAST`] each stage a file; all but the last add a run to one window, which the last
//! closes. Its value depends on the order in which runs are merged, as a sum of floats does. Whether a
//! table still holds what its stamp says is the real code's to judge ([`judge`], [`holds_first`]), and so
//! is how far a checkpoint may reach ([`upto`]).

use super::search::{Step, World};
use crate::commit::delta::log::{Origin, holds_first};
use crate::commit::iceberg::stamp::{Link, Soundness, judge};
use crate::epoch::checkpoint::{Cadence, upto};

const WORKERS: usize = 2;
const SIDES: usize = 2;
const LAST: u8 = 4;
/// Checkpoints trail the head by an entry, and are worth writing after each.
const CADENCE: Cadence = Cadence { trail: 1, every: 1, most_runs: 1, merge_rows: 1 << 16 };
/// The entry that has nothing for the second side.
const QUIET: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    Sound,
    /// A commit lands whatever the table is by now; or while the branch's head is the same.
    NoBase,
    BaseIsHead,
    /// Who lost the base commits the same on the new one; or who got no answer does.
    RebaseUnread,
    ResendOnNewBase,
    /// The same range again although another committed a part of it.
    PartTwice,
    /// Nobody looks whether the table was set back.
    IgnoreRollback,
    /// The stamped snapshot must be retained itself.
    StampedRetained,
    /// Checkpoints do not wait for the stamps; or only for the fastest format; or count no quiet entries.
    CheckpointIgnoresStamps,
    CheckpointOfFastest,
    /// A reader takes a checkpoint for the state as of its own number.
    CheckpointAsOfItself,
    /// Runs merged that a checkpoint does not cover; or that are no prefix.
    MergeAbove,
    MergeMiddle,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Iceberg,
    Delta,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Content {
    files: u8,
    twice: bool,
    window: u32,
}

/// A snapshot, or a Delta version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Snapshot {
    /// Counts up; its sequence number and its version too.
    id: u8,
    /// What it was made on: for a RESTORE the version it went to.
    parent: u8,
    restore: bool,
    stamp: Option<u8>,
    /// The stamp whose content this really has.
    holds: u8,
    content: Content,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Side {
    retained: Vec<Snapshot>,
    head: u8,
    newest: u8,
    /// Of the metadata: counts all changes.
    version: u8,
    stamp: u8,
    stamped: u8,
    committed_below: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Commit {
    side: u8,
    base: u8,
    head: u8,
    from: u8,
    to: u8,
    adds: Content,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Worker {
    Idle,
    Prepared(Commit),
    /// Its answer was lost.
    Unknown(Commit),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Checkpoint {
    upto: u8,
    /// How long the log was.
    at: u8,
    /// The runs that were merged into one, first and last.
    merged: Option<(u8, u8)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub lost: u8,
    pub foreign: u8,
    pub expiries: u8,
    pub rollbacks: u8,
    pub checkpoints: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    entries: u8,
    checkpoint: Option<Checkpoint>,
    truncated: u8,
    sides: [Side; SIDES],
    workers: [Worker; WORKERS],
    flying: Vec<Commit>,
    budget: Budget,
}

pub struct TableWorld {
    pub rule: Rule,
    pub formats: &'static [Format],
    pub budget: Budget,
}

fn digest(values: impl IntoIterator<Item = u32>) -> u32 {
    values.into_iter().fold(0, |sum, v| if sum == 0 { v } else { (sum * 31 + v) % 65_521 })
}

/// The files of entries `from + 1..=to`, as far as they are for this side.
fn files(side: usize, from: u8, to: u8) -> u8 {
    (from + 1..=to).filter(|n| concerns(side, *n)).fold(0, |files, n| files | 1 << n)
}

fn concerns(side: usize, entry: u8) -> bool {
    side == 0 || entry != QUIET
}

/// What a side holds at a stamp.
fn straight(side: usize, stamp: u8) -> Content {
    Content { files: files(side, 0, stamp), twice: false, window: if stamp == LAST { digest(1..LAST as u32) } else { 0 } }
}

impl Side {
    fn snapshot(&self, id: u8) -> Option<&Snapshot> {
        self.retained.iter().find(|s| s.id == id)
    }

    fn holds(&self) -> u8 {
        self.snapshot(self.head).map_or(0, |s| s.holds)
    }

    fn content(&self) -> Content {
        self.snapshot(self.head).map_or(Content::default(), |s| s.content)
    }

    fn add(&mut self, parent: u8, restore: bool, stamp: Option<u8>, holds: u8, content: Content) {
        self.newest += 1;
        self.retained.push(Snapshot { id: self.newest, parent, restore, stamp, holds, content });
        self.head = self.newest;
        self.version += 1;
    }

    /// May a commit of ours go on it?
    fn sound(&self, format: Format, rule: Rule) -> bool {
        if rule == Rule::IgnoreRollback || self.stamped == 0 {
            return true;
        }
        match format {
            Format::Iceberg => {
                let mut chain: Vec<Link> = vec![];
                let mut at = self.head;
                while let Some(s) = self.snapshot(at) {
                    chain.push((s.id as i64, Some(s.parent as i64).filter(|p| *p > 0), s.id as i64));
                    at = s.parent;
                }
                let retained = rule != Rule::StampedRetained || chain.iter().any(|(id, ..)| *id == self.stamped as i64);
                retained && matches!(judge(&chain, Some((self.stamped as i64, self.stamped as i64))), Soundness::Sound { .. })
            }
            Format::Delta => {
                let since = self.retained.iter().filter(|s| s.id >= self.stamped);
                let origins: Vec<Origin> = since
                    .map(|s| Origin {
                        version: s.id as u64,
                        ours: s.stamp.map(|entry| ("log".to_string(), entry as u64)),
                        restore: s.restore.then_some(Some(s.parent as u64)),
                    })
                    .collect();
                let told = origins.first().and_then(|o| o.ours.as_ref()).is_some_and(|(_, entry)| *entry == self.stamp as u64);
                told && holds_first(&origins)
            }
        }
    }
}

type Push<'a> = &'a mut dyn FnMut(Step, &dyn Fn(&mut State));

impl TableWorld {
    /// The runs of the window after entry `to`, read from the newest checkpoint as a worker that starts
    /// does. `None` when the log has them no more.
    fn runs(&self, s: &State, to: u8) -> Option<Vec<u32>> {
        let checkpoint = s.checkpoint;
        let upto = checkpoint.map_or(0, |c| c.upto);
        let first = checkpoint.filter(|_| self.rule == Rule::CheckpointAsOfItself).map_or(upto, |c| c.at) + 1;
        if s.truncated >= first {
            return None;
        }
        let merged = checkpoint.and_then(|c| c.merged);
        let mut runs = vec![];
        for n in 1..=upto.min(LAST - 1) {
            match merged {
                Some((i, j)) if n == i => runs.push(digest(i as u32..=j as u32)),
                Some((i, j)) if n > i && n <= j => {}
                _ => runs.push(n as u32),
            }
        }
        runs.extend((first..=to.min(LAST - 1)).map(u32::from));
        Some(runs)
    }

    fn sound(&self, s: &State, side: usize) -> bool {
        s.sides[side].sound(self.formats[side], self.rule)
    }

    fn commit(&self, s: &State, side: usize, to: u8, window: u32) -> Commit {
        let t = &s.sides[side];
        let adds = Content { files: files(side, t.stamp, to), twice: false, window };
        Commit { side: side as u8, base: t.version, head: t.head, from: t.stamp, to, adds }
    }

    /// A worker that starts: `None` where there is nothing to do, or nothing may be done.
    fn prepare(&self, s: &State, side: usize, to: u8) -> Option<Commit> {
        let t = &s.sides[side];
        if !self.sound(s, side) || files(side, t.stamp, to) == 0 {
            return None;
        }
        // What a checkpoint covers is taken for done.
        let done = s.checkpoint.map_or(0, |c| c.upto).max(t.stamp);
        let runs = self.runs(s, to)?;
        let window = if to == LAST { digest(runs) } else { 0 };
        let commit = self.commit(s, side, to, window);
        Some(Commit { adds: Content { files: files(side, done, to), ..commit.adds }, ..commit })
    }

    fn land(&self, s: &mut State, c: &Commit) -> bool {
        let t = &mut s.sides[c.side as usize];
        let current = match self.rule {
            Rule::NoBase => true,
            Rule::BaseIsHead => t.head == c.head,
            _ => t.version == c.base,
        };
        if !current {
            return false;
        }
        let was = t.content();
        let content = Content {
            files: was.files | c.adds.files,
            twice: was.twice || was.files & c.adds.files != 0,
            window: if c.adds.window != 0 { c.adds.window } else { was.window },
        };
        t.committed_below |= t.holds() != t.stamp;
        t.add(t.head, false, Some(c.to), c.to, content);
        (t.stamp, t.stamped) = (c.to, t.head);
        true
    }

    /// The base moved, or nobody knows: loads the table and decides anew, from the rows still in memory.
    fn look(&self, s: &State, c: &Commit, unknown: bool) -> Worker {
        let side = c.side as usize;
        let t = &s.sides[side];
        let same = Commit { base: t.version, head: t.head, ..*c };
        match self.rule {
            Rule::RebaseUnread if !unknown => Worker::Prepared(same),
            Rule::ResendOnNewBase if unknown => Worker::Prepared(same),
            _ if !self.sound(s, side) || t.stamp >= c.to => Worker::Idle,
            Rule::PartTwice => Worker::Prepared(same),
            _ if files(side, t.stamp, c.to) == 0 => Worker::Idle,
            _ => Worker::Prepared(self.commit(s, side, c.to, c.adds.window)),
        }
    }

    /// The highest entry with nothing left to do for this side.
    fn effective(&self, s: &State, side: usize) -> u8 {
        let stamp = s.sides[side].stamp;
        (stamp..=s.entries).take_while(|n| files(side, stamp, *n) == 0).last().unwrap_or(stamp)
    }

    fn log_steps(&self, s: &State, push: Push) {
        if s.entries < LAST {
            push(("log", "gets entry", s.entries + 1), &|t| t.entries += 1);
        }
        let stamps = (0..self.formats.len()).map(|side| self.effective(s, side));
        let lowest = match self.rule {
            Rule::CheckpointIgnoresStamps => u64::MAX,
            Rule::CheckpointOfFastest => stamps.max().unwrap_or(0) as u64,
            _ => stamps.min().unwrap_or(0) as u64,
        };
        let m = upto(CADENCE, s.entries as u64 + 1, lowest, s.checkpoint.map(|c| c.upto as u64));
        if let Some(upto) = m.map(|m| m as u8).filter(|_| s.budget.checkpoints > 0) {
            let most = if self.rule == Rule::MergeAbove { s.entries.min(LAST - 1) } else { upto.min(LAST - 1) };
            let lowest = if self.rule == Rule::MergeMiddle { 2 } else { 1 };
            // What an older checkpoint merged stays merged.
            let old = s.checkpoint.and_then(|c| c.merged);
            let merges = (1..=lowest).flat_map(|i| (i + 1..=most).map(move |j| Some((i, j)))).filter(|m| old.is_none_or(|o| m.is_some_and(|m| m.0 <= o.0 && m.1 >= o.1)));
            for merged in merges.chain([old]) {
                push(("log", "gets a checkpoint as of", upto), &|t| {
                    t.budget.checkpoints -= 1;
                    t.checkpoint = Some(Checkpoint { upto, at: t.entries, merged });
                });
            }
        }
        if s.truncated < s.checkpoint.map_or(0, |c| c.upto) {
            push(("log", "is truncated at", s.truncated + 1), &|t| t.truncated += 1);
        }
    }

    fn foreign_steps(&self, s: &State, push: Push) {
        for (n, side) in s.sides[..self.formats.len()].iter().enumerate() {
            let name = if n == 0 { "first side" } else { "second side" };
            if s.budget.foreign > 0 && side.head != 0 {
                push((name, "is compacted by another", 0), &|t| {
                    t.budget.foreign -= 1;
                    let side = &mut t.sides[n];
                    side.add(side.head, false, None, side.holds(), side.content());
                });
            }
            if s.budget.expiries > 0 && side.retained.len() > 1 {
                push((name, "loses all but its newest snapshot", 0), &|t| {
                    t.budget.expiries -= 1;
                    let head = t.sides[n].head;
                    t.sides[n].retained.retain(|s| s.id == head);
                    t.sides[n].version += (self.formats[n] == Format::Iceberg) as u8;
                });
            }
            for to in side.retained.iter().filter(|r| s.budget.rollbacks > 0 && r.id != side.head) {
                push((name, "is set back to", to.id), &|t| {
                    t.budget.rollbacks -= 1;
                    let side = &mut t.sides[n];
                    match self.formats[n] {
                        Format::Iceberg => (side.head, side.version) = (to.id, side.version + 1),
                        Format::Delta => side.add(to.id, true, None, to.holds, to.content),
                    }
                });
            }
        }
    }
}

impl World for TableWorld {
    type State = State;

    fn start(&self) -> State {
        State {
            entries: 0,
            checkpoint: None,
            truncated: 0,
            sides: Default::default(),
            workers: [Worker::Idle; WORKERS],
            flying: vec![],
            budget: self.budget,
        }
    }

    fn steps(&self, s: &State, out: &mut Vec<(Step, State)>) {
        let mut push = |step: Step, change: &dyn Fn(&mut State)| {
            let mut t = s.clone();
            change(&mut t);
            t.flying.sort();
            t.workers.sort(); // they are alike
            out.push((step, t));
        };
        self.log_steps(s, &mut push);
        self.foreign_steps(s, &mut push);
        for worker in (0..WORKERS).filter(|&w| w == 0 || s.workers[w] != s.workers[w - 1]) {
            match s.workers[worker] {
                Worker::Idle => {
                    for (side, to) in (0..self.formats.len()).flat_map(|side| (1..=s.entries).map(move |to| (side, to))) {
                        if let Some(c) = self.prepare(s, side, to) {
                            push(("worker", "prepares a commit up to", to), &|t| t.workers[worker] = Worker::Prepared(c));
                        }
                    }
                }
                Worker::Prepared(c) => {
                    push(("worker", "commits up to", c.to), &|t| {
                        let landed = self.land(t, &c);
                        t.workers[worker] = if landed { Worker::Idle } else { self.look(t, &c, false) };
                    });
                    if s.budget.lost > 0 {
                        push(("worker", "gets no answer to its commit up to", c.to), &|t| {
                            t.budget.lost -= 1;
                            t.flying.push(c);
                            t.workers[worker] = Worker::Unknown(c);
                        });
                    }
                    push(("worker", "crashes", 0), &|t| t.workers[worker] = Worker::Idle);
                }
                Worker::Unknown(c) => {
                    push(("worker", "looks at the table", c.side), &|t| t.workers[worker] = self.look(t, &c, true));
                    push(("worker", "crashes", 0), &|t| t.workers[worker] = Worker::Idle);
                }
            }
        }
        for (i, c) in s.flying.iter().enumerate() {
            push(("store", "lands, late, the commit up to", c.to), &|t| {
                t.flying.remove(i);
                self.land(t, c);
            });
        }
    }

    fn broken(&self, s: &State) -> Option<&'static str> {
        for (n, side) in s.sides[..self.formats.len()].iter().enumerate() {
            if side.committed_below {
                return Some("a commit landed on a table that was set back");
            }
            if side.content() != straight(n, side.holds()) {
                return Some("I2: a table differs from the fold of the log up to its stamp");
            }
            if side.holds() != side.stamp {
                continue;
            }
            // One foreign commit and an expiry leave a trace in Iceberg, and none in Delta.
            let expired = s.budget.expiries < self.budget.expiries;
            let provable = self.budget.foreign < 2 && (self.formats[n] == Format::Iceberg || !expired);
            if provable && s.budget.rollbacks == self.budget.rollbacks && !self.sound(s, n) {
                return Some("a table that nobody set back is refused");
            }
            let unfinished = self.effective(s, n) < s.entries;
            if unfinished && s.checkpoint.is_some_and(|c| files(n, side.stamp, c.upto) != 0) {
                return Some("I7: a checkpoint covers what a table has not");
            }
            match self.runs(s, s.entries) {
                None if side.stamp < LAST => return Some("I7: the fold can no longer be restored"),
                Some(runs) if digest(runs.iter().copied()) != digest(1..=s.entries.min(LAST - 1) as u32) => return Some("I7: the restored fold differs"),
                _ => {}
            }
        }
        None
    }

    fn finished(&self, s: &State) -> bool {
        let done = |n: usize| s.sides[n].stamp == LAST || !self.sound(s, n);
        s.flying.is_empty() && s.workers == [Worker::Idle; WORKERS] && (0..self.formats.len()).all(done)
    }
}
