//! The tables that the rows and the log imply, reckoned row by row with none of the product's code:
//! no batches, no panes, no merging, only the rules of DESIGN section 3.

use super::broker::{Row, Slot, Topics};
use crate::epoch::entry::{Body, Data, Entry, Note, Plan};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a table as text, in order.
pub type Rows = Vec<Vec<String>>;

pub const MINUTE: i64 = 60_000_000;
/// `max_ahead` of the sources.
pub const MAX_AHEAD: i64 = 6 * 60 * MINUTE;
/// The column that a plan may add to a plain table, and to windows with a key.
pub const ADDED: &str = "w";
/// How a table's SQL says that its windows are days of Berlin, that it counts the values that differ, and that rows with
/// some sums are not shown.
pub const ZONE: &str = "'Europe/Berlin'";
pub const DISTINCT: &str = "count(distinct v)";
pub const HAVING: &str = " having sum(v) % 3 <> 0";

/// The rows of one key in one window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    pub sum: i64,
    pub n: i64,
    /// A bit for each value: they are below 64.
    values: u64,
}

/// The last day that begins in Berlin while summer time is on there: 2021-10-31.
const LAST_OF_SUMMER: i64 = 18_931;

/// When a day begins in Berlin, of those around it.
fn midnight(day: i64) -> i64 {
    day * 24 * 60 * MINUTE - if day <= LAST_OF_SUMMER { 120 } else { 60 } * MINUTE
}

/// The state after some entry; [`Reckoning::apply`] leads to that after the next one.
#[derive(Debug, Default, Clone)]
pub struct Reckoning {
    sources: BTreeMap<String, Source>,
    windowed: BTreeMap<String, Windowed>,
    plain: BTreeMap<String, Plain>,
    pub late: u64,
}

#[derive(Debug, Default, Clone)]
struct Source {
    delay: i64,
    highest: BTreeMap<i32, Option<i64>>,
    at: BTreeMap<i32, i64>,
    watermark: Option<i64>,
    dead: Rows,
}

#[derive(Debug, Default, Clone)]
struct Plain {
    source: String,
    /// The plan has [`ADDED`]: rows from here on have a value in it.
    added: bool,
    rows: Rows,
    ended: bool,
}

#[derive(Debug, Default, Clone)]
struct Windowed {
    source: String,
    size: i64,
    zoned: bool,
    distinct: bool,
    having: bool,
    lateness: i64,
    on_update: bool,
    upsert: bool,
    horizon: Option<i64>,
    groups: BTreeMap<i64, BTreeMap<&'static str, Group>>,
    /// Emitted by an end of input, before the watermark came.
    early: BTreeSet<i64>,
    /// The plan has [`ADDED`].
    added: bool,
    /// Groups whose row was written since then.
    widened: BTreeSet<(i64, &'static str)>,
    late: Rows,
    /// Append-only: everything that was ever emitted.
    emitted: Rows,
    /// Taken out of the file: what readers saw then, they see for ever.
    ended: Option<Rows>,
}

impl Windowed {
    fn text(&self, start: i64, key: &str, group: Group) -> Vec<String> {
        let mut row = vec![start.to_string(), key.to_string(), group.sum.to_string(), group.n.to_string()];
        row.extend(self.distinct.then(|| group.values.count_ones().to_string()));
        row
    }

    fn start(&self, at: i64) -> i64 {
        if !self.zoned {
            return at.div_euclid(self.size) * self.size;
        }
        let day = (at + 120 * MINUTE).div_euclid(24 * 60 * MINUTE);
        midnight(if at < midnight(day) { day - 1 } else { day })
    }

    fn end(&self, start: i64) -> i64 {
        // Some hour of the next day is behind it, however long this one is.
        if self.zoned { self.start(start + 27 * 60 * MINUTE) } else { start + self.size }
    }

    /// A row that is not to be seen now may be seen later, and the other way round.
    fn passes(&self, group: Group) -> bool {
        !self.having || group.sum % 3 != 0
    }

    fn emit(&mut self, op: &str, start: i64, key: &'static str, group: Group) {
        if !self.passes(group) {
            return;
        }
        if !self.upsert {
            let mut row = self.text(start, key, group);
            row.push(op.to_string());
            self.emitted.push(row);
        } else if self.added {
            self.widened.insert((start, key));
        }
    }

    /// Whether the window's rows were to be seen before this entry.
    fn shown(&self, start: i64, watermark: Option<i64>) -> bool {
        self.on_update || watermark.is_some_and(|w| self.end(start) <= w) || self.early.contains(&start)
    }

    fn entry(&mut self, rows: &[(i32, i64, Row)], before: Option<i64>) -> u64 {
        let old = self.groups.clone();
        let mut changed: BTreeSet<(i64, &'static str)> = BTreeSet::new();
        let mut late = 0;
        for (partition, offset, row) in rows {
            let start = self.start(row.at_us);
            if self.horizon.is_some_and(|h| self.end(start) <= h) {
                self.late.push(vec![partition.to_string(), offset.to_string(), start.to_string(), row.key.to_string(), row.value.to_string()]);
                late += 1;
                continue;
            }
            let group = self.groups.entry(start).or_default().entry(row.key).or_default();
            *group = Group { sum: group.sum + row.value, n: group.n + 1, values: group.values | 1 << row.value };
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
            let due = all || after.is_some_and(|w| self.end(start) <= w);
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
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        if !self.upsert {
            return sorted(self.emitted.clone());
        }
        let shown = self.groups.iter().filter(|(start, _)| self.shown(**start, watermark));
        let row = |start: i64, key: &'static str, group: Group| {
            let mut row = self.text(start, key, group);
            row.push(if self.widened.contains(&(start, key)) { (group.sum * 2).to_string() } else { String::new() });
            row
        };
        sorted(shown.flat_map(|(start, groups)| groups.iter().filter(|(_, group)| self.passes(**group)).map(|(key, group)| row(*start, key, *group))).collect())
    }
}

pub fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

impl Reckoning {
    /// One more entry. The broker's rows are asked for, of which nothing was ever forgotten here.
    pub fn apply(&mut self, topics: &Topics, entry: &Entry) {
        match &entry.body {
            Body::Plan(plan) => self.plan(plan),
            Body::Data(data) => data.intervals.keys().for_each(|source| self.data(source, topics, data)),
            Body::Note(Note::EndOfInput { .. }) => self.end(),
            _ => {}
        }
    }

    fn plan(&mut self, plan: &Plan) {
        for (name, planned) in &plan.sources {
            let source = self.sources.entry(name.clone()).or_default();
            source.delay = planned.delay_us;
            for (p, start) in &planned.starts {
                source.highest.entry(*p).or_default();
                source.at.entry(*p).or_insert(*start);
            }
        }
        for (_, table) in self.windowed.iter_mut().filter(|(n, t)| t.ended.is_none() && !plan.tables.contains_key(*n)) {
            table.ended = Some(table.content(self.sources[&table.source].watermark));
        }
        self.plain.iter_mut().filter(|(n, _)| !plan.tables.contains_key(*n)).for_each(|(_, t)| t.ended = true);
        // A name that is taken up again is of another table.
        self.windowed.retain(|n, t| t.ended.is_none() || !plan.tables.contains_key(n));
        self.plain.retain(|n, t| !t.ended || !plan.tables.contains_key(n));
        for (name, table) in &plan.tables {
            if let Some(window) = table.window {
                let known = self.windowed.entry(name.clone()).or_default();
                known.source.clone_from(&table.source);
                (known.lateness, known.on_update, known.upsert) = (table.allowed_lateness_us, table.emit_on_update, !table.table.key.is_empty());
                (known.size, known.added) = (window.size_us, table.sql.contains(ADDED_AS));
                (known.zoned, known.distinct, known.having) = (table.sql.contains(ZONE), table.sql.contains(DISTINCT), table.sql.contains(HAVING));
            } else {
                let known = self.plain.entry(name.clone()).or_default();
                known.source.clone_from(&table.source);
                known.added = table.sql.contains(ADDED_AS);
            }
        }
        self.raise();
    }

    fn raise(&mut self) {
        for table in self.windowed.values_mut() {
            let watermark = self.sources[&table.source].watermark;
            table.horizon = table.horizon.max(watermark.map(|w| w - table.lateness));
        }
    }

    fn data(&mut self, name: &str, topics: &Topics, data: &Data) {
        let Some(source) = self.sources.get_mut(name) else { return };
        let mut rows = vec![];
        let mut plain = vec![];
        let mut idle = BTreeSet::new();
        for (p, interval) in &data.intervals[name] {
            source.at.insert(*p, interval.to);
            let highest = source.highest.entry(*p).or_default();
            if interval.from == interval.to {
                idle.insert(*p);
            }
            let slots = topics[name].slots(*p);
            for offset in interval.from..interval.to {
                let Some(Slot::Record { row, timestamp_ms }) = slots.get(offset as usize).cloned() else { continue };
                let Some(row) = row else {
                    source.dead.push(vec![p.to_string(), offset.to_string()]);
                    continue;
                };
                plain.push(row);
                if row.at_us <= timestamp_ms.min(data.read_at_ms) * 1000 + MAX_AHEAD {
                    *highest = (*highest).max(Some(row.at_us));
                }
                if row.value > 0 {
                    rows.push((*p, offset, row));
                }
            }
        }
        for table in self.plain.values_mut().filter(|t| !t.ended && t.source == name) {
            let doubled = |row: &Row| if table.added { (row.value * 2).to_string() } else { String::new() };
            table.rows.extend(plain.iter().map(|row| vec![row.id.to_string(), row.key.to_string(), row.value.to_string(), doubled(row)]));
        }
        let before = source.watermark;
        for table in self.windowed.values_mut().filter(|t| t.ended.is_none() && t.source == name) {
            self.late += table.entry(&rows, before);
        }
        let counted: Vec<Option<i64>> = source.highest.iter().filter(|(p, _)| !idle.contains(p)).map(|(_, h)| *h).collect();
        if !counted.is_empty() && counted.iter().all(Option::is_some) {
            let lowest = counted.into_iter().flatten().min().map(|h| h - source.delay);
            source.watermark = source.watermark.max(lowest);
        }
        let after = source.watermark;
        for table in self.windowed.values_mut().filter(|t| t.ended.is_none() && t.source == name) {
            table.close(before, after, false);
        }
        self.raise();
    }

    fn end(&mut self) {
        // All windows of a file are alike.
        let windowed: BTreeMap<&String, &Windowed> = self.windowed.values().filter(|t| t.ended.is_none()).map(|t| (&t.source, t)).collect();
        let mut moved = BTreeMap::new();
        for (name, source) in &mut self.sources {
            let before = source.watermark;
            if let Some(table) = windowed.get(name) {
                let latest = source.highest.values().flatten().max().map(|at| table.end(table.start(*at)));
                source.watermark = source.watermark.max(latest);
            }
            moved.insert(name.clone(), (before, source.watermark));
        }
        for table in self.windowed.values_mut().filter(|t| t.ended.is_none()) {
            let (before, after) = moved[&table.source];
            table.close(before, after, true);
        }
        self.raise();
    }

    /// How far each partition of each source is in the log.
    pub fn positions(&self) -> BTreeMap<(String, i32), i64> {
        self.sources.iter().flat_map(|(name, s)| s.at.iter().map(|(p, at)| ((name.clone(), *p), *at))).collect()
    }

    /// What readers of this table see.
    pub fn content(&self, table: &str) -> Rows {
        if let Some(windowed) = self.windowed.get(table) {
            let (width, mut rows) = (self.columns(table).len(), windowed.content(self.sources[&windowed.source].watermark));
            rows.iter_mut().for_each(|row| row.truncate(width));
            return rows;
        }
        if let Some(windowed) = table.strip_suffix("__late").and_then(|t| self.windowed.get(t)) {
            return sorted(windowed.late.clone());
        }
        if let Some(source) = table.strip_suffix("__dead").and_then(|s| self.sources.get(s)) {
            return sorted(source.dead.clone());
        }
        let columns = self.columns(table).len();
        let rows = self.plain.get(table).map(|t| t.rows.iter().map(|row| row[..columns].to_vec()).collect());
        sorted(rows.unwrap_or_default())
    }

    /// Of a window of a table: the rows of each key so far.
    pub fn groups(&self, table: &str, start: i64) -> BTreeMap<&str, Group> {
        let groups = self.windowed.get(table).and_then(|t| t.groups.get(&start));
        groups.into_iter().flatten().map(|(key, group)| (*key, *group)).collect()
    }

    /// The columns of this table that [`Reckoning::content`] gives.
    pub fn columns(&self, table: &str) -> Vec<String> {
        let (plain, windowed) = (self.plain.get(table), self.windowed.get(table));
        let mut names = match (plain, windowed) {
            (Some(_), _) => vec!["id", "k", "v"],
            (_, Some(_)) => vec!["window_start", "k", "s", "n"],
            _ if table.ends_with("__dead") => vec!["_partition", "_offset"],
            _ => vec!["_partition", "_offset", "window_start", "k", "v"],
        };
        names.extend(windowed.filter(|t| t.distinct).map(|_| "d"));
        names.extend(windowed.filter(|t| !t.upsert).map(|_| "_op"));
        names.extend((plain.is_some_and(|t| t.added) || windowed.is_some_and(|t| t.upsert && t.added)).then_some(ADDED));
        names.into_iter().map(String::from).collect()
    }
}

/// How a table's SQL says that it has [`ADDED`].
const ADDED_AS: &str = "as w ";
