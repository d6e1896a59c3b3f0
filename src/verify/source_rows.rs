//! The source read once more over the offsets that the log holds, row by row: which entry a record is
//! in, whether it can be decoded, which tables take it, and for which window it came too late.

use super::facts::{Facts, Span};
use super::select::{Select, at, with_windows};
use super::window::Windows;
use super::structure::SHOWN;
use super::{Finding, Options, Progress, VerifyError, instant};
use crate::decode::{self, Decoder};
use crate::epoch::entry::{Limits, Plan, SourcePlan};
use crate::pipeline::{SourceSpec, Variables};
use crate::source::{KEPT_BYTES, Position, RawBatch, RawRecord, Source, SourceEvent};
use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Rows that one batch of records brought to a table.
pub struct Part {
    /// Which of [`TableRows::selects`] took them.
    pub select: usize,
    /// What the GROUP BY reads; empty for a plain table.
    pub input: RecordBatch,
    /// Group key and arguments, or the plain table's columns.
    pub values: RecordBatch,
    pub lineage: Vec<Lineage>,
    pub windows: Vec<(i64, i64)>,
}

#[derive(Debug, Clone, Copy)]
pub struct Lineage {
    pub entry: u64,
    pub partition: i32,
    pub offset: i64,
}

/// Everything that a declared table must hold.
#[derive(Default)]
pub struct TableRows {
    pub selects: Vec<Arc<Select>>,
    /// The entry from which on each of them is first the table's.
    pub since: Vec<u64>,
    /// Rows that count, in the order of the reading.
    pub parts: Vec<Part>,
    /// Rows that came too late, in the columns of the late table.
    pub late: Vec<(RecordBatch, Vec<u64>)>,
    /// Why it cannot be computed.
    pub unplanned: Option<String>,
    /// Why computing it went wrong: that is the judge's fault.
    pub unchecked: Option<String>,
}

impl TableRows {
    /// The newest query that extends this one, if only by nothing.
    pub fn newest(&self, nth: usize) -> usize {
        (nth..self.selects.len()).rev().find(|m| self.selects[*m].extends(&self.selects[nth])).unwrap_or(nth)
    }
}

/// A record that must be in the dead-letter table.
pub struct DeadRow {
    pub lineage: Lineage,
    pub timestamp_us: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The table that could not compute it; `None`: it could not be decoded.
    pub table: Option<String>,
    /// Each of them may be told: where several expressions fail, the planner's order decides. The first ones are without the
    /// values of variables.
    pub reasons: Vec<String>,
}

/// Of the offsets `..end` that the log decided, the source still holds `from..to`.
#[derive(Debug, Clone)]
pub struct Held {
    pub from: i64,
    pub to: i64,
    pub end: i64,
    /// Offsets between them that hold no record and may have held one, in order.
    pub thinned: Vec<(i64, i64)>,
}

impl Held {
    pub fn has(&self, from: i64, to: i64) -> bool {
        from == to || (self.from <= from && to <= self.to)
    }

    /// The log decided this offset and nobody can read it any more.
    pub fn lost(&self, offset: i64) -> bool {
        let after = self.thinned.partition_point(|(_, to)| *to <= offset);
        let thinned = self.thinned.get(after).is_some_and(|(from, _)| *from <= offset);
        offset < self.end && (thinned || !(self.from..self.to).contains(&offset))
    }
}

/// What a source holds of what the log decided.
#[derive(Default)]
pub struct SourceRows {
    pub tables: BTreeMap<String, TableRows>,
    pub dead: Vec<DeadRow>,
    /// Partition to the offsets of the log that the source still holds.
    pub held: BTreeMap<i32, Held>,
    /// Records that the log decided are not in the source any more.
    pub partly_lost: bool,
    /// Rows of windows that start at or before it may be lost; `i64::MAX` when nothing bounds them.
    pub lost_until_us: Option<i64>,
    pub findings: Vec<Finding>,
    pub unprovable: Vec<String>,
    pub notes: Vec<String>,
}

/// What becomes of the rows of one source under one plan.
struct Era {
    decoder: Box<dyn Decoder>,
    /// Place of the event time among the decoded columns.
    time: Option<usize>,
    tables: Vec<EraTable>,
    limits: Limits,
    /// Bytes up to which a record that is over the limits was kept.
    kept_bytes: u64,
}

struct EraTable {
    name: String,
    /// Its rows are in the table as it is now; of one that was taken out, or came again anew, only the dead letters are left.
    counts: bool,
    select: Option<usize>,
    windows: Option<Windows>,
    /// Places among the decoded columns.
    projection: Vec<usize>,
    late: Option<Late>,
}

/// The late table under one plan.
struct Late {
    /// Its schema under the newest plan.
    schema: SchemaRef,
    /// For each of its columns between the lineage and the window's bounds: place among the decoded ones.
    columns: BTreeMap<String, usize>,
}

#[derive(Default, Clone, Copy)]
struct Seen {
    records: u64,
    dead: u64,
}

pub struct Reader<'a> {
    facts: &'a Facts,
    name: &'a str,
    spec: &'a SourceSpec,
    options: &'a Options,
    variables: &'a Variables,
    topic: String,
    eras: Vec<Option<Era>>,
    spans: BTreeMap<i32, Vec<Span>>,
    out: SourceRows,
    highest: BTreeMap<(i32, u64), i64>,
    counts: BTreeMap<u64, Seen>,
    /// Records that were read, by partition and entry.
    read: BTreeMap<(i32, u64), u64>,
    /// Offsets that were read over and hold no record, by partition, in order: control records, what was aborted, and what
    /// compaction took.
    gaps: BTreeMap<i32, Vec<(i64, i64)>>,
    /// Partition and entry, where compaction may have taken records.
    thinned: BTreeSet<(i32, u64)>,
    /// Partitions that are not those of the log any more.
    other: BTreeSet<i32>,
}

impl<'a> Reader<'a> {
    /// `tables`: the declared tables to compute.
    pub fn new(facts: &'a Facts, name: &'a str, spec: &'a SourceSpec, options: &'a Options, variables: &'a Variables, tables: &BTreeSet<String>) -> Result<Self, VerifyError> {
        let mut out = SourceRows::default();
        let newest = facts.plan();
        let mut eras = vec![];
        for era in &facts.eras {
            eras.push(match era.plan.sources.get(name) {
                Some(source) => Some(plan_era(facts, (era.entry, &era.plan), name, source, spec, tables, &mut out)?),
                None => None,
            });
        }
        let topic = newest.sources.get(name).map(|s| s.topic.clone()).unwrap_or_default();
        let spans = facts.spans.get(name).cloned().unwrap_or_default();
        Ok(Self { facts, name, spec, options, variables, topic, eras, spans, out, highest: BTreeMap::new(), counts: BTreeMap::new(), read: BTreeMap::new(), gaps: BTreeMap::new(), thinned: BTreeSet::new(), other: BTreeSet::new() })
    }

    /// Reads to where the log stands. Blocks.
    pub fn read(mut self, source: &mut dyn Source, progress: Progress<'_>) -> Result<SourceRows, VerifyError> {
        let known = source.facts()?;
        self.identity(&known.incarnation, &known.names);
        let starts = self.facts.starts.get(self.name).cloned().unwrap_or_default();
        let mut left: BTreeMap<i32, (i64, i64)> = BTreeMap::new();
        for (&partition, &(start, _)) in &starts {
            let end = self.spans.get(&partition).and_then(|s| s.last()).map_or(start, |s| s.to);
            let there = known.partitions.get(&partition).filter(|_| !self.other.contains(&partition));
            let (begin, last) = there.copied().unwrap_or((i64::MAX, i64::MIN));
            let (from, to) = (start.max(begin).min(end), end.min(last.max(start.min(end))));
            self.lost(partition, (start, from), (to.max(from), end));
            self.out.held.insert(partition, Held { from, to: to.max(from), end, thinned: vec![] });
            if from < to {
                left.insert(partition, (from, to));
            }
        }
        let total: u64 = left.values().map(|(from, to)| (to - from) as u64).sum();
        self.poll(source, left, total, progress)?;
        self.thinned(source);
        self.judge_facts();
        if self.facts.first > 0 {
            self.out.partly_lost = true;
            // Rows beyond `max_ahead` left no trace in what a checkpoint holds.
            let capped = self.spec.input.has_record_times();
            let before = if capped { Some(i64::MAX) } else { self.facts.lost_event_us.get(self.name).copied().flatten() };
            self.out.lost_until_us = self.out.lost_until_us.max(before);
        }
        Ok(self.out)
    }

    fn identity(&mut self, incarnation: &Option<String>, names: &BTreeMap<i32, String>) {
        let planned = self.facts.plan().sources.get(self.name).and_then(|s| s.incarnation.clone());
        if let (Some(planned), Some(found)) = (&planned, incarnation)
            && planned != found
        {
            self.out.findings.push(Finding::new("topic-id", format!("topic {} has the id {found}, the log was written from {planned}: it was made anew, and its offsets mean other records", self.topic)));
        }
        let Some(logged) = self.facts.names.get(self.name) else { return };
        for (partition, known) in logged {
            let Some(found) = names.get(partition).filter(|f| *f != known) else { continue };
            let text = format!("source {} partition {partition} was {known} when the log was written, and is {found} now", self.name);
            // Whoever rotates files makes the log no worse: what it says of them contradicts nothing, and cannot be proven.
            let why = if names.len() == logged.len() { "that one is gone, and another has its place" } else { "files came or went before it in the order of names" };
            self.out.unprovable.push(format!("{text}: {why}"));
            self.other.insert(*partition);
        }
    }

    fn lost(&mut self, partition: i32, below: (i64, i64), above: (i64, i64)) {
        for (from, to) in [below, above].into_iter().filter(|(from, to)| from < to) {
            self.out.partly_lost = true;
            self.out.unprovable.push(format!(
                "source {} partition {partition}: offsets {from}..{to} are in the log and no longer in the source: rows and windows that they may have counted in cannot be proven",
                self.name
            ));
            let spans: Vec<Span> = self.spans.get(&partition).into_iter().flatten().filter(|s| s.from < to && s.to > from).copied().collect();
            spans.iter().for_each(|span| self.lost_in(span));
        }
    }

    /// Records of these offsets may have counted in any window up to the latest of them.
    fn lost_in(&mut self, span: &Span) {
        self.out.partly_lost = true;
        let ahead = self.facts.data.get(&span.entry).and_then(|d| d.counts.get(self.name)).is_some_and(|c| c.ahead > 0);
        let until = if ahead { Some(i64::MAX) } else { span.max_event_us };
        self.out.lost_until_us = self.out.lost_until_us.max(until);
    }

    /// Where an entry counted more records than its offsets hold now, and these have gaps: a topic that is compacted loses
    /// the older records of a key. In one that is not, that is wrong.
    fn thinned(&mut self, source: &mut dyn Source) {
        let mut found: BTreeMap<i32, Vec<Span>> = BTreeMap::new();
        for (entry, data) in &self.facts.data {
            let (Some(counts), Some(intervals)) = (data.counts.get(self.name), data.intervals.get(self.name)) else { continue };
            let whole = |p: &i32, from: i64, to: i64| self.out.held.get(p).is_some_and(|h| h.has(from, to));
            let complete = intervals.iter().all(|(p, i)| whole(p, i.from, i.to));
            let seen = self.counts.get(entry).map_or(0, |c| c.records);
            if complete && seen >= counts.records {
                continue;
            }
            for (partition, i) in intervals.iter().filter(|(p, i)| whole(p, i.from, i.to)) {
                let read = self.read.get(&(*partition, *entry)).copied().unwrap_or(0);
                let spans = self.spans.get(partition).into_iter().flatten();
                if read < (i.to - i.from) as u64 {
                    found.entry(*partition).or_default().extend(spans.filter(|s| s.entry == *entry));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        let why = match source.thins_out() {
            Ok(Some(false)) => return,
            Ok(Some(true)) => "the topic is compacted".to_string(),
            Ok(None) => "whether the topic is compacted may not be asked (that takes DescribeConfigs on it)".to_string(),
            Err(e) => format!("whether the topic is compacted is not known: {e}"),
        };
        for (partition, spans) in found {
            let mut intervals: Vec<(i64, i64)> = vec![];
            for span in &spans {
                self.thinned.insert((partition, span.entry));
                self.lost_in(span);
                match intervals.last_mut().filter(|last| last.1 == span.from) {
                    Some(last) => last.1 = span.to,
                    None => intervals.push((span.from, span.to)),
                }
            }
            let gaps = self.gaps.get(&partition).map_or(&[][..], Vec::as_slice);
            let within = intervals.iter().flat_map(|(from, to)| {
                let first = gaps.partition_point(|gap| gap.1 <= *from);
                gaps[first..].iter().take_while(|gap| gap.0 < *to).map(|gap| (gap.0.max(*from), gap.1.min(*to)))
            });
            let thinned: Vec<(i64, i64)> = within.collect();
            if let Some(held) = self.out.held.get_mut(&partition) {
                held.thinned = thinned;
            }
            let shown: Vec<String> = intervals.iter().take(SHOWN).map(|(from, to)| format!("{from}..{to}")).collect();
            let more = if intervals.len() > SHOWN { format!(" and {} more intervals", intervals.len() - SHOWN) } else { String::new() };
            self.out.unprovable.push(format!(
                "source {} partition {partition}: records of the offsets {}{more} that the log counted are not in the source any more, and {why}: rows and windows that they may have counted in cannot be proven",
                self.name,
                shown.join(", ")
            ));
        }
    }

    fn poll(&mut self, source: &mut dyn Source, mut left: BTreeMap<i32, (i64, i64)>, total: u64, progress: Progress<'_>) -> Result<(), VerifyError> {
        if left.is_empty() {
            return Ok(());
        }
        source.join(self.facts.log)?;
        let (mut read, mut silent) = (0u64, 0);
        while !left.is_empty() {
            match source.poll(Duration::from_millis(200))? {
                SourceEvent::Assigned(partitions) => {
                    let positions = partitions.iter().filter_map(|p| Some((*p, Position { offset: left.get(p)?.0, leader_epoch: -1 })));
                    let positions: BTreeMap<i32, Position> = positions.collect();
                    source.start(&positions)?;
                    silent = 0;
                }
                SourceEvent::Batch(batch) => {
                    silent = 0;
                    let Some((next, end)) = left.get(&batch.partition).copied() else { continue };
                    if batch.from != next {
                        return Err(VerifyError::Refused(format!("source {} partition {}: a batch starts at offset {}, expected {next}", self.name, batch.partition, batch.from)));
                    }
                    self.batch(&batch)?;
                    read += (batch.to.min(end) - next).max(0) as u64;
                    progress(read, total);
                    if batch.to >= end {
                        left.remove(&batch.partition);
                        let done: Vec<i32> = self.spans.keys().filter(|p| !left.contains_key(p)).copied().collect();
                        source.pause(&done)?;
                    } else if batch.at_end && batch.to == batch.from {
                        silent += 1;
                    } else if let Some(slot) = left.get_mut(&batch.partition) {
                        slot.0 = batch.to;
                    }
                }
                SourceEvent::Idle => silent += 1,
                SourceEvent::Notice(_) => {}
            }
            if silent > 300 {
                return Err(VerifyError::Unavailable(format!("source {} delivers nothing more before offsets {left:?}, which the log holds", self.name)));
            }
        }
        Ok(())
    }

    fn span_of(&self, partition: i32, offset: i64) -> Option<Span> {
        let spans = self.spans.get(&partition)?;
        let at = spans.partition_point(|s| s.to <= offset);
        spans.get(at).filter(|s| s.from <= offset).copied()
    }

    fn batch(&mut self, raw: &RawBatch) -> Result<(), VerifyError> {
        let mut entries: Vec<Option<u64>> = Vec::with_capacity(raw.records.len());
        let mut eras: BTreeSet<usize> = BTreeSet::new();
        let gaps = self.gaps.entry(raw.partition).or_default();
        let mut next = raw.from;
        for (offset, after) in raw.records.iter().map(|r| (r.offset, r.offset + 1)).chain([(raw.to, raw.to)]) {
            match gaps.last_mut().filter(|last| last.1 == next) {
                Some(last) if offset > next => last.1 = offset,
                None if offset > next => gaps.push((next, offset)),
                _ => {}
            }
            next = after;
        }
        for record in &raw.records {
            let entry = self.span_of(raw.partition, record.offset).map(|s| s.entry);
            if let Some(entry) = entry {
                self.counts.entry(entry).or_default().records += 1;
                *self.read.entry((raw.partition, entry)).or_default() += 1;
                eras.insert(self.facts.era_of(entry));
            }
            entries.push(entry);
        }
        for era in eras {
            self.batch_in(raw, &entries, era)?;
        }
        Ok(())
    }

    fn dead(&mut self, raw: &RawBatch, record: u32, entry: u64, table: Option<&str>, mut reasons: Vec<String>) {
        if table.is_some() {
            let mut hidden: Vec<String> = reasons.iter().map(|why| self.variables.hide_within(why)).collect();
            // Older versions told all.
            hidden.extend(reasons.into_iter().filter(|why| self.variables.hide_within(why) != *why));
            reasons = hidden;
        }
        self.counts.entry(entry).or_default().dead += 1;
        let r = &raw.records[record as usize];
        let bytes = |range: &Option<std::ops::Range<u32>>| range.as_ref().map(|r| raw.slice(r).to_vec());
        self.out.dead.push(DeadRow {
            lineage: Lineage { entry, partition: raw.partition, offset: r.offset },
            timestamp_us: r.timestamp_ms.and_then(|ms| ms.checked_mul(1000)),
            key: bytes(&r.key),
            value: bytes(&r.value),
            headers: r.headers.iter().map(|(n, v)| (String::from_utf8_lossy(raw.slice(n)).into_owned(), bytes(v))).collect(),
            table: table.map(str::to_string),
            reasons,
        });
    }

    fn batch_in(&mut self, raw: &RawBatch, entries: &[Option<u64>], nth: usize) -> Result<(), VerifyError> {
        let Some(mut era) = self.eras[nth].take() else { return Ok(()) };
        let done = self.decode_in(raw, entries, nth, &mut era);
        self.eras[nth] = Some(era);
        done
    }

    fn decode_in(&mut self, raw: &RawBatch, entries: &[Option<u64>], nth: usize, era: &mut Era) -> Result<(), VerifyError> {
        let raw = &limited(raw, era.limits.max_record_bytes, era.kept_bytes);
        let decoded = era.decoder.decode(raw);
        let in_era = |record: u32| entries[record as usize].filter(|e| self.facts.era_of(*e) == nth);
        let dead: Vec<(u32, u64, String)> = decoded.dead.iter().filter_map(|(r, why)| Some((*r, in_era(*r)?, why.to_string()))).collect();
        let (mut rows, mut records): (Vec<u32>, Vec<(u32, u64)>) = (vec![], vec![]);
        for (row, record) in decoded.rows.iter().enumerate() {
            if let Some(entry) = in_era(*record) {
                rows.push(row as u32);
                records.push((*record, entry));
            }
        }
        for (record, entry, why) in dead {
            self.dead(raw, record, entry, None, vec![why]);
        }
        let batch = if rows.len() == decoded.batch.num_rows() { decoded.batch } else { at(&decoded.batch, &rows).map_err(internal)? };
        if let Some(time) = era.time {
            self.event_times(raw, batch.column(time), &records, era.limits.max_ahead_us.unwrap_or(0));
        }
        for table in &mut era.tables {
            if self.out.tables.get(&table.name).is_some_and(|t| t.unchecked.is_some()) {
                continue;
            }
            match self.table(raw, &batch, &records, era.time, table) {
                // The others are judged all the same.
                Err(VerifyError::Refused(why)) => {
                    let out = self.out.tables.entry(table.name.clone()).or_default();
                    (out.parts, out.late, out.unchecked) = (vec![], vec![], Some(why));
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn event_times(&mut self, raw: &RawBatch, times: &ArrayRef, records: &[(u32, u64)], ahead: i64) {
        let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else { return };
        for (row, (record, entry)) in records.iter().enumerate() {
            if times.is_null(row) {
                continue;
            }
            let read_at = self.facts.data.get(entry).map_or(0, |d| d.read_at_ms);
            // A producer's clock and the reader's: the earlier one says what is too far ahead.
            let cap = raw.records[*record as usize].timestamp_ms.map_or(i64::MAX, |ms| ms.min(read_at).saturating_mul(1000).saturating_add(ahead));
            if times.value(row) <= cap {
                let highest = self.highest.entry((raw.partition, *entry)).or_insert(i64::MIN);
                *highest = (*highest).max(times.value(row));
            }
        }
    }

    fn table(&mut self, raw: &RawBatch, batch: &RecordBatch, records: &[(u32, u64)], time: Option<usize>, table: &mut EraTable) -> Result<(), VerifyError> {
        let Some(select_at) = table.select else { return Ok(()) };
        let Some(select) = self.out.tables.get(&table.name).map(|t| t.selects[select_at].clone()) else { return Ok(()) };
        let columns: Vec<ArrayRef> = table.projection.iter().map(|c| batch.column(*c).clone()).collect();
        let (input, windows) = match (&mut table.windows, time) {
            (Some(windows), Some(time)) => with_windows(&select.input, columns, batch.column(time), windows).map_err(internal)?,
            _ => {
                let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                (RecordBatch::try_new_with_options(select.input.clone(), columns, &options).map_err(|e| internal(e.into()))?, vec![])
            }
        };
        let passed = select.pass(&input).map_err(internal)?;
        for (row, reasons) in passed.failed.iter().cloned() {
            let (record, entry) = records[row as usize];
            self.dead(raw, record, entry, Some(&table.name), reasons);
        }
        if !table.counts {
            return Ok(());
        }
        let times = time.map(|t| batch.column(t).clone());
        let (mut counted, mut late, mut horizons): (Vec<u32>, Vec<u32>, Vec<i64>) = (vec![], vec![], vec![]);
        // Neighbours are mostly in one entry.
        let mut known: Option<(u64, Option<i64>)> = None;
        for (nth, &row) in passed.rows.iter().enumerate() {
            let (_, entry) = records[row as usize];
            if windows.is_empty() {
                let event = times.as_ref().and_then(|t| t.as_primitive_opt::<TimestampMicrosecondType>()).map(|t| t.value(row as usize));
                if event.is_none_or(|e| self.in_range(e)) {
                    counted.push(nth as u32);
                }
                continue;
            }
            let horizon = match known {
                Some((of, horizon)) if of == entry => horizon,
                _ => self.facts.times.get(&entry).and_then(|t| t.horizon_before.get(&table.name).copied()).flatten(),
            };
            known = Some((entry, horizon));
            let (start, end) = windows[row as usize];
            if let Some(horizon) = horizon.filter(|h| end <= *h) {
                late.push(row);
                horizons.push(horizon);
            } else if self.in_range(start) {
                counted.push(nth as u32);
            }
        }
        let lineage = |row: u32| {
            let (record, entry) = records[row as usize];
            Lineage { entry, partition: raw.partition, offset: raw.records[record as usize].offset }
        };
        let late_rows = match &table.late {
            Some(l) if !late.is_empty() => Some((late_batch(l, &self.topic, raw, batch, records, &late, &horizons, &windows)?, late.iter().map(|r| records[*r as usize].1).collect())),
            _ => None,
        };
        let Some(out) = self.out.tables.get_mut(&table.name) else { return Ok(()) };
        out.late.extend(late_rows);
        if counted.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = counted.iter().map(|n| passed.rows[*n as usize]).collect();
        out.parts.push(Part {
            select: select_at,
            input: if windows.is_empty() { input.slice(0, 0) } else { at(&input, &rows).map_err(internal)? },
            values: at(&passed.values, &counted).map_err(internal)?,
            lineage: rows.iter().map(|r| lineage(*r)).collect(),
            windows: if windows.is_empty() { vec![] } else { rows.iter().map(|r| windows[*r as usize]).collect() },
        });
        Ok(())
    }

    fn in_range(&self, us: i64) -> bool {
        self.options.from_us.is_none_or(|from| us >= from) && self.options.to_us.is_none_or(|to| us < to)
    }

    /// Event times and counts of the log's entries against what was read.
    fn judge_facts(&mut self) {
        let whole = |p: i32, s: &Span| self.out.held.get(&p).is_some_and(|h| h.has(s.from, s.to));
        let mut findings = vec![];
        let timed = self.facts.plan().sources.get(self.name).is_some_and(|s| s.time_column.is_some());
        let caps = self.spec.input.has_record_times();
        for (&partition, spans) in &self.spans {
            for span in spans.iter().filter(|s| timed && s.from < s.to && whole(partition, s)) {
                let found = self.highest.get(&(partition, span.entry)).copied();
                if found == span.max_event_us || (self.thinned.contains(&(partition, span.entry)) && found < span.max_event_us) {
                    continue;
                }
                let show = |t: Option<i64>| t.map_or_else(|| "no row".to_string(), instant);
                let text = format!("{} partition {partition}: the entry says that its latest event is at {}, its records at {}", self.name, show(span.max_event_us), show(found));
                let kept = self.facts.eras.get(self.facts.era_of(span.entry)).and_then(|e| e.plan.sources.get(self.name)).is_some_and(|s| s.limits.is_some());
                // Where `max_ahead` is not in the log, a lower time than expected may be an older pipeline file's.
                if caps && !kept && span.max_event_us < found {
                    self.out.notes.push(format!("entry {}: {text}; max_ahead may have been another then", span.entry));
                } else {
                    findings.push(Finding::new("event-time", text).at(span.entry));
                }
            }
        }
        for (&entry, data) in &self.facts.data {
            let Some(counts) = data.counts.get(self.name) else { continue };
            let complete = data.intervals.get(self.name).into_iter().flatten().all(|(p, i)| self.out.held.get(p).is_some_and(|h| h.has(i.from, i.to)));
            let seen = self.counts.get(&entry).copied().unwrap_or_default();
            let thinned = data.intervals.get(self.name).into_iter().flatten().any(|(p, _)| self.thinned.contains(&(*p, entry)));
            if complete && !thinned && counts.records != seen.records {
                findings.push(Finding::new("entry-counts", format!("source {}: the entry says {} records, its offsets hold {}", self.name, counts.records, seen.records)).at(entry));
            }
            let all = self.options.table.is_none() && self.out.tables.values().all(|t| t.unplanned.is_none() && t.unchecked.is_none());
            if complete && all && counts.dead != seen.dead && !(thinned && seen.dead < counts.dead) {
                findings.push(Finding::new("entry-counts", format!("source {}: the entry says {} dead letters, its offsets make {}", self.name, counts.dead, seen.dead)).at(entry));
            }
        }
        self.out.findings.extend(findings);
    }
}

fn internal(e: datafusion::error::DataFusionError) -> VerifyError {
    VerifyError::Refused(format!("the rows cannot be computed: {e}"))
}

fn plan_era(facts: &Facts, (entry, plan): (u64, &Plan), name: &str, source: &SourcePlan, spec: &SourceSpec, tables: &BTreeSet<String>, out: &mut SourceRows) -> Result<Era, VerifyError> {
    let newest = facts.plan();
    let place = |column: &str| source.columns.iter().position(|c| c.name == column);
    let time_column = source.time_column.as_deref().and_then(place);
    let mut used: Vec<usize> = time_column.into_iter().collect();
    // First with places among all columns of the source: only those that some table reads are decoded.
    let mut made: Vec<EraTable> = vec![];
    for (table_name, table) in plan.tables.iter().filter(|(n, t)| t.source == name && tables.contains(*n)) {
        let latest = newest.tables.get(table_name).filter(|latest| latest.born == table.born).unwrap_or(table);
        let counts = newest.tables.get(table_name).is_some_and(|latest| latest.born == table.born);
        let rows = out.tables.entry(table_name.clone()).or_default();
        // A plain select names its columns in the order of its own time.
        let laid_out = if table.window.is_some() { latest } else { table };
        let query = laid_out.table.spec().map_err(|e| e.to_string()).and_then(|spec| {
            Select::new(&table.sql, name, &source.columns, table.window, source.time_column.as_deref(), &spec.schema).map_err(|e| e.to_string())
        });
        let select = match query {
            Ok(select) => {
                // The same SQL over the same columns is one query, whatever else a plan changed.
                let same = plan_of_same(rows, &table.sql, &select);
                match same {
                    Some(at) => Some(at),
                    None => {
                        rows.selects.push(Arc::new(select));
                        rows.since.push(entry);
                        Some(rows.selects.len() - 1)
                    }
                }
            }
            Err(why) => {
                rows.unplanned.get_or_insert(format!("its SQL cannot be run as one query: {why}"));
                None
            }
        };
        let projection: Vec<usize> = select.map(|s| rows.selects[s].reads.iter().filter_map(|c| place(c)).collect()).unwrap_or_default();
        let late = match (&table.late, &latest.late) {
            (Some(then), Some(now)) => match (then.spec(), now.spec()) {
                (Ok(then), Ok(now)) => {
                    let columns = then.schema.fields().iter().filter_map(|f| Some((f.name().clone(), place(f.name())?)));
                    Some(Late { schema: now.schema, columns: columns.collect() })
                }
                _ => None,
            },
            _ => None,
        };
        used.extend(&projection);
        used.extend(late.iter().flat_map(|l| l.columns.values()));
        made.push(EraTable { name: table_name.clone(), counts, select, windows: table.window.map(Windows::new), projection, late });
    }
    let mut columns_used: Vec<usize> = vec![];
    for column in used {
        if !columns_used.contains(&column) {
            columns_used.push(column);
        }
    }
    let decoded = |column: usize| columns_used.iter().position(|u| *u == column).unwrap_or_default();
    // Logs did not always hold them: then they were what the next plan that has them says, and no bytes were kept.
    let later = facts.eras.iter().filter(|e| e.entry > entry).find_map(|e| e.plan.sources.get(name)?.limits);
    let limits = source.limits.or(later).unwrap_or_else(|| limits_of(spec));
    let kept_bytes = if source.limits.is_some() { limits.max_record_bytes.max(KEPT_BYTES as u64) } else { limits.max_record_bytes };
    let decoder = decode::open(source.format, &source.columns, &columns_used, time_column, limits.max_depth as usize).map_err(|e| VerifyError::Refused(e.to_string()))?;
    for table in &mut made {
        let late = table.late.iter_mut().flat_map(|l| l.columns.values_mut());
        table.projection.iter_mut().chain(late).for_each(|column| *column = decoded(*column));
    }
    Ok(Era { tables: made, time: time_column.map(decoded), decoder, limits, kept_bytes })
}

fn limits_of(spec: &SourceSpec) -> Limits {
    Limits { max_record_bytes: spec.max_record_bytes as u64, max_depth: spec.max_depth as u64, max_ahead_us: spec.watermark.as_ref().map(|w| w.max_ahead_us) }
}

/// The source as it must be opened: with the bytes of every record that some plan took.
pub fn widest(facts: &Facts, spec: &SourceSpec) -> SourceSpec {
    let limits = facts.eras.iter().filter_map(|e| e.plan.sources.get(&spec.name)?.limits);
    let max_record_bytes = limits.map(|l| l.max_record_bytes as usize).chain([spec.max_record_bytes]).max().unwrap_or(spec.max_record_bytes);
    SourceSpec { max_record_bytes, ..spec.clone() }
}

/// The records as a plan with this limit saw them.
fn limited(raw: &RawBatch, max_record_bytes: u64, kept: u64) -> Cow<'_, RawBatch> {
    let length = |r: &Option<Range<u32>>| r.as_ref().map_or(0, |r| u64::from(r.end - r.start));
    let size = |r: &RawRecord| r.oversized.unwrap_or_else(|| length(&r.key) + length(&r.value) + r.headers.iter().map(|(n, v)| u64::from(n.end - n.start) + length(v)).sum::<u64>());
    let over = |r: &RawRecord| Some(size(r)).filter(|size| *size > max_record_bytes);
    let held = |r: &RawRecord| r.value.is_some() || r.key.is_some() || !r.headers.is_empty();
    if raw.records.iter().all(|r| r.oversized == over(r) && !(held(r) && r.oversized.is_some_and(|size| size > kept))) {
        return Cow::Borrowed(raw);
    }
    let mut raw = raw.clone();
    for r in &mut raw.records {
        r.oversized = over(r);
        if r.oversized.is_some_and(|size| size > kept) {
            r.key = r.key.take().filter(|k| u64::from(k.end - k.start) <= kept);
            (r.value, r.headers) = (None, vec![]);
        }
    }
    Cow::Owned(raw)
}

fn plan_of_same(rows: &TableRows, sql: &str, select: &Select) -> Option<usize> {
    rows.selects.iter().position(|s| s.sql() == sql && s.input == select.input)
}

/// Late rows in the columns of the late table. `horizons`: what each was too late for.
#[allow(clippy::too_many_arguments)]
fn late_batch(late: &Late, topic: &str, raw: &RawBatch, batch: &RecordBatch, records: &[(u32, u64)], rows: &[u32], horizons: &[i64], windows: &[(i64, i64)]) -> Result<RecordBatch, VerifyError> {
    let of = |r: &u32| &raw.records[records[*r as usize].0 as usize];
    let n = rows.len();
    let mut keys = BinaryBuilder::new();
    rows.iter().for_each(|r| keys.append_option(of(r).key.as_ref().map(|k| raw.slice(k))));
    let keys: ArrayRef = Arc::new(keys.finish());
    let mut columns: Vec<ArrayRef> = vec![];
    for field in late.schema.fields() {
        let bound = |pick: fn(&(i64, i64)) -> i64| {
            let values = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| pick(&windows[*r as usize])));
            Arc::new(values.with_data_type(field.data_type().clone())) as ArrayRef
        };
        columns.push(match field.name().as_str() {
            "_topic" => Arc::new(StringArray::from(vec![topic; n])),
            "_partition" => Arc::new(Int32Array::from(vec![raw.partition; n])),
            "_offset" => Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| of(r).offset))),
            "_timestamp" => {
                let times: TimestampMicrosecondArray = rows.iter().map(|r| of(r).timestamp_ms.and_then(|ms| ms.checked_mul(1000))).collect();
                Arc::new(times.with_timezone("UTC"))
            }
            "_key" => keys.clone(),
            "_reason" => {
                let why = |h: &i64| format!("its window was over for good: the horizon had reached {}", instant(*h));
                Arc::new(horizons.iter().map(|h| Some(why(h))).collect::<StringArray>())
            }
            "window_start" => bound(|w| w.0),
            "window_end" => bound(|w| w.1),
            other => match late.columns.get(other) {
                Some(at) => {
                    let taken = arrow::compute::take(batch.column(*at), &arrow::array::UInt32Array::from(rows.to_vec()), None).map_err(|e| internal(e.into()))?;
                    // Nested fields have numbers in the table.
                    arrow::compute::cast(&taken, field.data_type()).map_err(|e| internal(e.into()))?
                }
                None => new_null_array(field.data_type(), n),
            },
        });
    }
    let fields: Vec<_> = late.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).map_err(|e| internal(e.into()))
}
