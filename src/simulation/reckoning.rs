//! The tables that the rows and the log imply, reckoned row by row with none of the product's code:
//! no batches, no panes, no merging, only the rules of DESIGN section 3.

use super::broker::{Row, Slot, Topic};
use crate::epoch::entry::{Body, Data, Entry, Note, Plan};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a table as text, in order.
pub type Rows = Vec<Vec<String>>;

pub const MINUTE: i64 = 60_000_000;
/// Size of every window.
pub const FIVE: i64 = 5 * MINUTE;
/// `max_ahead` of the source.
pub const MAX_AHEAD: i64 = 6 * 60 * MINUTE;

#[derive(Debug, Default, Clone)]
pub struct Reckoning {
    topic: Vec<Vec<Slot>>,
    delay: i64,
    highest: BTreeMap<i32, Option<i64>>,
    at: BTreeMap<i32, i64>,
    pub watermark: Option<i64>,
    tables: BTreeMap<String, Windowed>,
    plain: Rows,
    dead: Rows,
    pub late: u64,
}

#[derive(Debug, Default, Clone)]
struct Windowed {
    lateness: i64,
    on_update: bool,
    upsert: bool,
    horizon: Option<i64>,
    groups: BTreeMap<i64, BTreeMap<&'static str, (i64, i64)>>,
    /// Emitted by an end of input, before the watermark came.
    early: BTreeSet<i64>,
    late: Rows,
    /// Append-only: everything that was ever emitted.
    emitted: Rows,
}

impl Windowed {
    fn text(start: i64, key: &str, (sum, n): (i64, i64)) -> Vec<String> {
        vec![start.to_string(), key.to_string(), sum.to_string(), n.to_string()]
    }

    fn emit(&mut self, op: &str, start: i64, key: &str, group: (i64, i64)) {
        if !self.upsert {
            let mut row = Self::text(start, key, group);
            row.push(op.to_string());
            self.emitted.push(row);
        }
    }

    /// Whether the window's rows were to be seen before this entry.
    fn shown(&self, start: i64, watermark: Option<i64>) -> bool {
        self.on_update || watermark.is_some_and(|w| start + FIVE <= w) || self.early.contains(&start)
    }

    fn entry(&mut self, rows: &[(i32, i64, Row)], before: Option<i64>) -> u64 {
        let old = self.groups.clone();
        let mut changed: BTreeSet<(i64, &'static str)> = BTreeSet::new();
        let mut late = 0;
        for (partition, offset, row) in rows {
            let start = row.at_us.div_euclid(FIVE) * FIVE;
            if self.horizon.is_some_and(|h| start + FIVE <= h) {
                self.late.push(vec![partition.to_string(), offset.to_string(), start.to_string(), row.key.to_string(), row.value.to_string()]);
                late += 1;
                continue;
            }
            let group = self.groups.entry(start).or_default().entry(row.key).or_default();
            *group = (group.0 + row.value, group.1 + 1);
            changed.insert((start, row.key));
        }
        for (start, key) in changed.into_iter().filter(|(start, _)| self.shown(*start, before)).collect::<Vec<_>>() {
            if let Some(was) = old.get(&start).and_then(|g| g.get(key)) {
                self.emit("retract", start, key, *was);
            }
            let now = self.groups[&start][key];
            self.emit("insert", start, key, now);
        }
        late
    }

    fn close(&mut self, before: Option<i64>, after: Option<i64>, all: bool) {
        for (start, groups) in self.groups.clone() {
            let due = all || after.is_some_and(|w| start + FIVE <= w);
            if due && !self.shown(start, before) {
                groups.iter().for_each(|(key, group)| self.emit("insert", start, key, *group));
            }
            // A pane that is dropped is forgotten; one that is not was emitted.
            if all {
                self.early.insert(start);
            }
        }
    }

    fn content(&self, watermark: Option<i64>) -> Rows {
        if !self.upsert {
            return sorted(self.emitted.clone());
        }
        let shown = self.groups.iter().filter(|(start, _)| self.shown(**start, watermark));
        sorted(shown.flat_map(|(start, groups)| groups.iter().map(|(key, group)| Self::text(*start, key, *group))).collect())
    }
}

pub fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

impl Reckoning {
    /// From the broker's rows, of which nothing was ever forgotten here, and the log's first entries.
    pub fn of<'a>(topic: &Topic, entries: impl Iterator<Item = &'a Entry>) -> Self {
        let slots = topic.first.clone().unwrap_or_else(|| topic.partitions.iter().map(|p| p.slots.clone()).collect());
        let mut made = Self { topic: slots, ..Self::default() };
        for entry in entries {
            match &entry.body {
                Body::Plan(plan) => made.plan(plan),
                Body::Data(data) => made.data(data),
                Body::Note(Note::EndOfInput { .. }) => made.end(),
                _ => {}
            }
        }
        made
    }

    fn plan(&mut self, plan: &Plan) {
        let source = &plan.sources["events"];
        self.delay = source.delay_us;
        for (p, start) in &source.starts {
            self.highest.entry(*p).or_default();
            self.at.entry(*p).or_insert(*start);
        }
        for (name, table) in plan.tables.iter().filter(|(_, t)| t.window.is_some()) {
            let known = self.tables.entry(name.clone()).or_default();
            (known.lateness, known.on_update, known.upsert) = (table.allowed_lateness_us, table.emit_on_update, !table.table.key.is_empty());
        }
        self.raise();
    }

    fn raise(&mut self) {
        for table in self.tables.values_mut() {
            table.horizon = table.horizon.max(self.watermark.map(|w| w - table.lateness));
        }
    }

    fn data(&mut self, data: &Data) {
        let mut rows = vec![];
        let mut idle = BTreeSet::new();
        for (p, interval) in data.intervals.get("events").into_iter().flatten() {
            self.at.insert(*p, interval.to);
            let highest = self.highest.entry(*p).or_default();
            if interval.from == interval.to {
                idle.insert(*p);
            }
            for offset in interval.from..interval.to {
                let Some(Slot::Record { row, timestamp_ms }) = self.topic.get(*p as usize).and_then(|t| t.get(offset as usize)).cloned() else { continue };
                let Some(row) = row else {
                    self.dead.push(vec![p.to_string(), offset.to_string()]);
                    continue;
                };
                self.plain.push(vec![row.id.to_string(), row.key.to_string(), row.value.to_string()]);
                if row.at_us <= timestamp_ms.min(data.read_at_ms) * 1000 + MAX_AHEAD {
                    *highest = (*highest).max(Some(row.at_us));
                }
                if row.value > 0 {
                    rows.push((*p, offset, row));
                }
            }
        }
        let before = self.watermark;
        for table in self.tables.values_mut() {
            self.late += table.entry(&rows, before);
        }
        let counted: Vec<Option<i64>> = self.highest.iter().filter(|(p, _)| !idle.contains(p)).map(|(_, h)| *h).collect();
        if !counted.is_empty() && counted.iter().all(Option::is_some) {
            let lowest = counted.into_iter().flatten().min().map(|h| h - self.delay);
            self.watermark = self.watermark.max(lowest);
        }
        for table in self.tables.values_mut() {
            table.close(before, self.watermark, false);
        }
        self.raise();
    }

    fn end(&mut self) {
        let before = self.watermark;
        let latest = self.highest.values().flatten().max().map(|at| at.div_euclid(FIVE) * FIVE + FIVE);
        self.watermark = self.watermark.max(latest);
        for table in self.tables.values_mut() {
            table.close(before, self.watermark, true);
        }
        self.raise();
    }

    pub fn positions(&self) -> &BTreeMap<i32, i64> {
        &self.at
    }

    /// What readers of this table see.
    pub fn content(&self, table: &str) -> Rows {
        if let Some(windowed) = self.tables.get(table) {
            return windowed.content(self.watermark);
        }
        if let Some(windowed) = table.strip_suffix("__late").and_then(|t| self.tables.get(t)) {
            return sorted(windowed.late.clone());
        }
        sorted(if table == "plain" { self.plain.clone() } else { self.dead.clone() })
    }

    /// The columns of this table that [`Reckoning::content`] gives.
    pub fn columns(&self, table: &str) -> Vec<String> {
        let names: &[&str] = match table {
            "plain" => &["id", "k", "v"],
            "events__dead" => &["_partition", "_offset"],
            late if late.ends_with("__late") => &["_partition", "_offset", "window_start", "k", "v"],
            windowed if self.tables.get(windowed).is_some_and(|t| !t.upsert) => &["window_start", "k", "s", "n", "_op"],
            _ => &["window_start", "k", "s", "n"],
        };
        names.iter().map(|n| n.to_string()).collect()
    }
}
