//! Whether the runs that the log holds are all that its entries made: a checkpoint that forgets one leaves its windows to
//! be summed up without it. What a checkpoint took over is not said anywhere else, but two things tell of it: windows that
//! the table shows, and the latest record of each partition in each entry.

use super::facts::Facts;
use super::structure::{Checked, Role};
use super::window::Windows;
use super::{Finding, instant};
use crate::epoch::ledger::LiveRun;
use crate::run::{Run, RunKind};
use crate::stage::names::{self, Owner};
use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use std::collections::{BTreeMap, BTreeSet};

/// What the runs that were read hold.
#[derive(Default)]
pub struct Covered {
    /// Table to the starts of windows.
    windows: BTreeMap<String, BTreeSet<i64>>,
    /// Tables with a run that could not be read.
    unknown: BTreeSet<String>,
}

impl Covered {
    pub fn take(&mut self, facts: &Facts, run: &Run) {
        let column = match run.kind {
            RunKind::Partial { window_start_us } => {
                self.windows.entry(run.table.clone()).or_default().insert(window_start_us);
                return;
            }
            RunKind::Windows { .. } => run.batch.columns().first(),
            RunKind::JudgeLater => time_column(facts, &run.table).and_then(|c| run.batch.column_by_name(c)),
        };
        let window = facts.plan().tables.get(&run.table).and_then(|t| t.window);
        let (Some(values), Some(window)) = (column.and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>()), window) else { return self.missing(&run.table) };
        let mut windows = Windows::new(window);
        let starts = values.iter().flatten().map(|at| if run.kind == RunKind::JudgeLater { windows.of(at).0 } else { at });
        self.windows.entry(run.table.clone()).or_default().extend(starts);
    }

    pub fn missing(&mut self, table: &str) {
        self.unknown.insert(table.to_string());
    }

    fn holds(&self, table: &str, start_us: i64) -> bool {
        self.windows.get(table).is_some_and(|w| w.contains(&start_us))
    }
}

fn time_column<'a>(facts: &'a Facts, table: &str) -> Option<&'a str> {
    let plan = facts.plan();
    plan.sources.get(&plan.tables.get(table)?.source)?.time_column.as_deref()
}

fn has(kind: RunKind, start_us: i64) -> bool {
    kind.windows().is_none_or(|(first, last)| (first..=last).contains(&start_us))
}

/// M of the checkpoint for which a run was merged, by its name.
fn merged_at(name: &str) -> Option<u64> {
    name.strip_prefix("merged-")?.split_once('-')?.0.parse().ok()
}

pub fn check(facts: &Facts, tables: &[Checked], covered: &Covered) -> Vec<Finding> {
    let mut found = vec![];
    for table in tables.iter().filter(|t| t.role == Role::Declared { windowed: true }) {
        let name = &table.spec.name;
        let held: &[LiveRun] = facts.held_runs.get(name).map_or(&[], Vec::as_slice);
        let mut say = |kind: &'static str, text: String, times: usize| {
            let mut finding = Finding::new(kind, text).times(times);
            finding.table = Some(name.clone());
            found.push(finding);
        };
        let upto = facts.upto.unwrap_or(0);
        let mut objects = BTreeSet::new();
        let twice = held.iter().filter(|r| !objects.insert((r.object.as_str(), r.run.run.offset)) || r.entry > upto).count();
        if twice > 0 {
            say("run-twice", format!("the checkpoint as of entry {upto} names {twice} runs of table {name} that count already: their rows count twice"), twice);
        }
        let cost = "what comes for them is summed up without what came before";
        let shown: BTreeSet<i64> = table.states.iter().flat_map(|s| s.open_windows.iter().copied()).collect();
        let lost: Vec<i64> = shown.into_iter().filter(|start| !covered.holds(name, *start)).collect();
        if let (Some(first), Some(last), false) = (lost.first(), lost.last(), covered.unknown.contains(name)) {
            let windows = format!("{} windows that may still be corrected, from {} to {}", lost.len(), instant(*first), instant(*last));
            say("run-forgotten", format!("table {name} shows {windows}, and no run that the log holds has a row of them: {cost}"), lost.len());
        }
        let entries = forgotten(facts, table, held, covered);
        if let Some((entry, start)) = entries.first() {
            let first = format!("entry {entry} decided a row of the window from {}", instant(*start));
            say("run-forgotten", format!("{first}, and no run of table {name} that the log holds has it ({} entries in all): {cost}", entries.len()), entries.len());
        }
    }
    found
}

/// Entries with a record that must be in a run, and the window of it.
fn forgotten(facts: &Facts, table: &Checked, held: &[LiveRun], covered: &Covered) -> Vec<(u64, i64)> {
    let name = &table.spec.name;
    let Some((planned, window)) = facts.plan().tables.get(name).and_then(|t| Some((t, t.window?))).filter(|_| table.shown.as_ref().is_some_and(|s| s.takes_all)) else { return vec![] };
    let horizon = facts.held_horizons.get(name).copied().flatten();
    let own = |r: &LiveRun| match names::owner(names::file_name(&r.object)) {
        Some(Owner::Attempt(by)) => facts.attempts.get(&by) == Some(&r.entry) && names::file_name(&r.object) == names::epoch_runs(by),
        _ => false,
    };
    // Runs that were merged do not say of which entries they are, but of none before the first and of none that came later.
    let of: Vec<(&LiveRun, u64)> = held.iter().map(|r| (r, if own(r) { r.entry } else { merged_at(names::file_name(&r.object)).unwrap_or(u64::MAX) })).collect();
    let mut windows = Windows::new(window);
    let mut lost = vec![];
    for (entry, data) in facts.data.range(planned.born + 1..) {
        // A record that cannot be decoded or computed is in no run.
        if data.counts.get(&planned.source).is_none_or(|c| c.dead > 0) {
            continue;
        }
        let below = facts.upto.is_some_and(|upto| *entry <= upto);
        let before = facts.times.get(entry).and_then(|t| t.horizon_before.get(name).copied().flatten());
        let latest = data.intervals.get(&planned.source).into_iter().flatten().filter(|(_, i)| !i.claims_idle()).filter_map(|(_, i)| i.max_event_us);
        for (start, end) in latest.map(|at| windows.of(at)).collect::<BTreeSet<_>>() {
            let late = |horizon: Option<i64>| horizon.is_some_and(|h| end <= h);
            if late(before) || (below && late(horizon)) {
                continue;
            }
            let there = match below {
                true => {
                    let mut may = of.iter().filter(|(r, last)| (r.entry..=*last).contains(entry) && has(r.run.run.kind, start));
                    // One of its own has it; those that were merged hold the window somewhere.
                    may.clone().any(|(r, _)| own(r)) || may.next().is_some() && (covered.holds(name, start) || covered.unknown.contains(name))
                }
                false => facts.runs.get(entry).is_some_and(|o| o.runs.iter().any(|r| r.run.table == *name && has(r.run.kind, start))),
            };
            if !there {
                lost.push((*entry, start));
            }
        }
    }
    lost.dedup_by_key(|(entry, _)| *entry);
    lost
}
