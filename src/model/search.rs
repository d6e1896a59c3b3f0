//! Searches every state that a world can come to, nearest first.
//!
//! Nothing is sampled: two states are one only when they are equal. What is found first is a
//! shortest way to it. Where no invariant breaks, the ways are walked back from the finished
//! states: a state that none of them comes from can never be finished, and counts as broken too.

use hashbrown::HashTable;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

/// Who does what.
pub type Step = (&'static str, &'static str, u8);

pub trait World {
    type State: Clone + Eq + Hash + Debug;

    fn start(&self) -> Self::State;

    /// Every step that can be taken from `at`, and where it leads.
    fn steps(&self, at: &Self::State, out: &mut Vec<(Step, Self::State)>);

    /// The invariant that does not hold in `at`.
    fn broken(&self, at: &Self::State) -> Option<&'static str>;

    /// All the work is done. It must be possible to come here from everywhere.
    fn finished(&self, at: &Self::State) -> bool;
}

pub const STUCK: &str = "liveness: the work can never be finished any more";

pub struct Found {
    pub states: usize,
    /// The invariant that broke, and the way there, one line a step.
    pub broken: Option<(&'static str, Vec<String>)>,
}

/// Multiplies and rotates: states are many, small and not hostile.
#[derive(Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n as u64);
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n as u64);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
    }
}

pub fn hash_of<T: Hash>(value: &T) -> u64 {
    let mut hasher = Quick::default();
    value.hash(&mut hasher);
    hasher.finish()
}

const NOWHERE: u32 = u32::MAX;

pub fn search<W: World>(world: &W) -> Found {
    let reached = reach(world);
    let broken = reached.broken.or_else(|| stuck(world, &reached).map(|at| (STUCK, at)));
    Found { states: reached.states.len(), broken: broken.map(|(why, at)| (why, way(world, &reached, at))) }
}

/// All states, or those up to the first one that is broken.
pub struct Reached<S> {
    pub states: Vec<S>,
    /// For each the one from which it was found; none for the first.
    from: Vec<u32>,
    edges: Vec<(u32, u32)>,
    broken: Option<(&'static str, u32)>,
}

impl<S> Reached<S> {
    /// The states on the way to this one, backwards.
    pub fn before(&self, at: usize) -> impl Iterator<Item = &S> {
        let mut at = self.from[at];
        std::iter::from_fn(move || {
            let state = self.states.get(at as usize)?;
            at = self.from[at as usize];
            Some(state)
        })
    }
}

pub fn reach<W: World>(world: &W) -> Reached<W::State> {
    let mut states: Vec<W::State> = vec![world.start()];
    let mut from: Vec<u32> = vec![NOWHERE];
    let mut edges: Vec<(u32, u32)> = vec![];
    let mut seen: HashTable<u32> = HashTable::new();
    seen.insert_unique(hash_of(&states[0]), 0, |&i| hash_of(&states[i as usize]));
    let mut broken = world.broken(&states[0]).map(|why| (why, 0));
    let mut out = vec![];
    let mut next = 0;
    while broken.is_none() && next < states.len() {
        let at = states[next].clone();
        world.steps(&at, &mut out);
        for (_, state) in out.drain(..) {
            let hash = hash_of(&state);
            let to = match seen.find(hash, |&i| states[i as usize] == state) {
                Some(&to) => to,
                None => {
                    let to = states.len() as u32;
                    if broken.is_none() {
                        broken = world.broken(&state).map(|why| (why, to));
                    }
                    states.push(state);
                    from.push(next as u32);
                    seen.insert_unique(hash, to, |&i| hash_of(&states[i as usize]));
                    to
                }
            };
            edges.push((next as u32, to));
        }
        next += 1;
    }
    Reached { states, from, edges, broken }
}

/// The first state from which no finished one can be reached.
fn stuck<W: World>(world: &W, Reached { states, edges, .. }: &Reached<W::State>) -> Option<u32> {
    // The edges by where they lead: those into `to` lie at first[to]..first[to + 1] of `into`.
    let mut first = vec![0u32; states.len() + 1];
    for (_, to) in edges {
        first[*to as usize + 1] += 1;
    }
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    let mut place = first.clone();
    let mut into = vec![0u32; edges.len()];
    for &(from, to) in edges {
        into[place[to as usize] as usize] = from;
        place[to as usize] += 1;
    }
    let mut done: Vec<bool> = states.iter().map(|s| world.finished(s)).collect();
    let mut todo: Vec<u32> = (0..states.len() as u32).filter(|&i| done[i as usize]).collect();
    while let Some(to) = todo.pop() {
        for &from in &into[first[to as usize] as usize..first[to as usize + 1] as usize] {
            if !done[from as usize] {
                done[from as usize] = true;
                todo.push(from);
            }
        }
    }
    done.iter().position(|done| !done).map(|i| i as u32)
}

fn way<W: World>(world: &W, Reached { states, from, .. }: &Reached<W::State>, mut at: u32) -> Vec<String> {
    let mut lines = vec![];
    while from[at as usize] != NOWHERE {
        let before = from[at as usize];
        let mut out = vec![];
        world.steps(&states[before as usize], &mut out);
        let ((who, what, n), _) = out.into_iter().find(|(_, s)| *s == states[at as usize]).expect("this way was gone before");
        lines.push(format!("{who} {what} {n}\n      {:?}", states[at as usize]));
        at = before;
    }
    lines.push(format!("start {:?}", states[at as usize]));
    lines.reverse();
    lines
}

/// A counter that may stop at a state it cannot leave, and may count past what is allowed.
#[cfg(test)]
mod tests {
    use super::*;

    struct Count {
        trap: bool,
        limit: u8,
    }

    impl World for Count {
        type State = (u8, bool);

        fn start(&self) -> Self::State {
            (0, false)
        }

        fn steps(&self, &(n, trapped): &Self::State, out: &mut Vec<(Step, Self::State)>) {
            if !trapped && n < 5 {
                out.push((("counter", "counts", n), (n + 1, false)));
            }
            if self.trap && n == 3 {
                out.push((("counter", "falls", n), (n, true)));
            }
        }

        fn broken(&self, at: &Self::State) -> Option<&'static str> {
            (at.0 > self.limit).then_some("too much")
        }

        fn finished(&self, at: &Self::State) -> bool {
            at.0 == 5
        }
    }

    #[test]
    fn a_search_finds_what_breaks_and_what_is_stuck_and_nothing_else() {
        let found = search(&Count { trap: false, limit: 9 });
        assert_eq!((found.states, found.broken.is_none()), (6, true));
        let (why, way) = search(&Count { trap: true, limit: 9 }).broken.unwrap();
        assert_eq!((why, way.len()), (STUCK, 5), "{way:?}");
        let (why, way) = search(&Count { trap: true, limit: 1 }).broken.unwrap();
        assert_eq!((why, way.len()), ("too much", 3), "{way:?}");
    }
}
