//! What must hold after every entry and every commit, and what the tables hold in the end.

use super::reckoning::{Reckoning, Rows, sorted};
use super::references::read;
use super::store::TrueCatalog;
use super::world::{LAKE_URL, PIPELINE, World};
use crate::commit::delta::DeltaFormat;
use crate::commit::iceberg::{Ambient, IcebergFormat};
use crate::commit::{CommitError, LakeTable, TableFormat};
use crate::epoch::checkpoint::Checkpoint;
use crate::epoch::entry::{Body, Data, Entry, Interval, Note, SpecRecord};
use crate::epoch::ledger::{Ledger, LiveRun};
use crate::pipeline::TableFormatKind;
use crate::run::RunKind;
use crate::stage::TableSpec;
use crate::stage::runs::read_run;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// The log as it really came to be, whatever was removed or landed on a freed name later.
#[derive(Default)]
pub struct Decided {
    pub entries: Vec<Entry>,
    pub ledger: Option<Ledger>,
    states: Vec<Ledger>,
    attempts: BTreeMap<Uuid, u64>,
    pub condemned: BTreeSet<Uuid>,
    pub strays: u64,
    /// Attempts whose writer was told that they do not fit.
    pub stale: BTreeSet<Uuid>,
    positions: BTreeMap<(String, i32), i64>,
    /// What the tables should hold after each entry.
    pub reckoned: Vec<Arc<Reckoning>>,
    /// By name, the newest record of every table that a plan ever asked for, and whether one still does.
    known: BTreeMap<String, (SpecRecord, bool)>,
    plan: u64,
    upto: Option<u64>,
}

impl Decided {
    /// Entry `seq` has landed on its name for the first time, from a worker in this slot. Returns
    /// what is wrong with it.
    pub fn landed(&mut self, seq: u64, entry: Entry, world: &World, slot: usize) -> Result<(), String> {
        if seq as usize != self.entries.len() {
            return Err(format!("entry {seq} landed when the log ended at {}", self.entries.len()));
        }
        self.fits(seq, &entry)?;
        match &mut self.ledger {
            None => self.ledger = Some(Ledger::born(&entry).map_err(|e| e.to_string())?),
            Some(ledger) => {
                ledger.apply(&entry).map(|_| ()).map_err(|e| format!("I1, I5: {e}"))?;
            }
        }
        if self.attempts.insert(entry.attempt, seq).is_some() {
            return Err(format!("attempt {} was decided a second time, as entry {seq}", entry.attempt));
        }
        if self.condemned.contains(&entry.attempt) {
            return Err(format!("I4: entry {seq} was condemned: its files may be gone"));
        }
        if self.stale.contains(&entry.attempt) {
            return Err(format!("I4: the writer of entry {seq} was told that it is stale"));
        }
        match &entry.body {
            Body::Data(data) => {
                let began = world.clocks.moments(slot, data.read_at_ms, world.trace.now_ms());
                if began.is_empty() {
                    return Err(format!("entry {seq} says that its making began at {}, which its worker's clock never showed", data.read_at_ms));
                }
                let topics = world.broker.topics.lock().unwrap();
                for (source, p, interval) in intervals(data).filter(|(_, _, i)| i.claims_idle()) {
                    // Where the clock was set back, it may have been any of them.
                    let end = began.iter().map(|at| topics[source].partitions[p as usize].written_at(at - 1)).min().unwrap_or(0);
                    if end > interval.from {
                        return Err(format!("entry {seq} claims partition {p} of {source} idle at {}, and the broker's end was {end} when its making began", interval.from));
                    }
                }
            }
            Body::Note(Note::Condemned { attempts }) => self.condemned.extend(attempts),
            Body::Checkpoint(c) => {
                self.runs_are_in_order(seq, c, world)?;
                let mut expected = self.states.get(c.upto as usize).cloned().ok_or_else(|| format!("entry {seq} is a checkpoint as of entry {}, which is not there", c.upto))?;
                let mut found = (*c.ledger).clone();
                for runs in found.runs.values().flatten() {
                    let horizon = found.horizons.get(&runs.run.run.table).copied().flatten();
                    if horizon.is_some_and(|h| runs.run.last_window_end_us <= h) {
                        return Err(format!("I8: the checkpoint in entry {seq} holds a run of a window that is over for good"));
                    }
                }
                for state in [&mut expected, &mut found] {
                    // Runs may have been merged.
                    state.runs.clear();
                    state.runs_as_of = 0;
                }
                if found != expected {
                    return Err(format!("the checkpoint in entry {seq} differs from the fold of the entries up to {}", c.upto));
                }
            }
            _ => {}
        }
        let mut reckoned = self.reckoned.last().map_or_else(Reckoning::default, |r| (**r).clone());
        reckoned.apply(&world.broker.topics.lock().unwrap(), &entry);
        self.reckoned.push(Arc::new(reckoned));
        if let (Body::Plan(_), Some(ledger)) = (&entry.body, &self.ledger) {
            self.known.values_mut().for_each(|(_, lives)| *lives = false);
            self.known.extend(ledger.specs().into_iter().map(|(record, _)| (record.name.clone(), (record.clone(), true))));
        }
        self.states.extend(self.ledger.clone());
        self.entries.push(entry);
        Ok(())
    }

    /// Only a prefix of a window's runs may be merged, and no row be left out: what the runs below an entry that one
    /// names add up to is what the entries below it added, and all of them what the entries up to M did.
    fn runs_are_in_order(&self, seq: u64, checkpoint: &Checkpoint, world: &World) -> Result<(), String> {
        let (ledger, upto) = (&checkpoint.ledger, checkpoint.upto);
        for (table, runs) in &ledger.runs {
            // Rows that are still to be judged are in none of the sums.
            if runs.iter().any(|r| r.run.run.kind.windows().is_none()) {
                continue;
            }
            let horizon = ledger.horizons.get(table).copied().flatten();
            let mut windows: BTreeMap<i64, BTreeMap<u64, Vec<Group>>> = BTreeMap::new();
            for run in runs {
                for (start, group) in groups(world, run).map_err(|e| format!("I4: a run of the checkpoint in entry {seq}: {e}"))? {
                    windows.entry(start).or_default().entry(run.entry).or_default().push(group);
                }
            }
            let Some(window) = ledger.plan.tables.get(table).and_then(|t| t.window) else { continue };
            for (start, entries) in windows.into_iter().filter(|(start, _)| horizon.is_none_or(|h| window.window_of(*start).1 > h)) {
                let mut sums: BTreeMap<String, (i64, i64)> = BTreeMap::new();
                let firsts: Vec<u64> = entries.keys().copied().skip(1).chain([upto + 1]).collect();
                for (groups, next) in entries.into_values().zip(firsts) {
                    for (key, sum, n) in groups {
                        let of = sums.entry(key).or_default();
                        *of = (of.0 + sum, of.1 + n);
                    }
                    let expected = self.reckoned.get(next as usize - 1).ok_or("a run is of an entry that is not there")?.groups(table, start);
                    if sums.iter().map(|(key, group)| (key.as_str(), *group)).ne(expected.into_iter().map(|(key, group)| (key, (group.sum, group.n)))) {
                        return Err(format!("I7: the runs of table {table} in the checkpoint in entry {seq} are merged out of order: those below entry {next} hold other rows of window {start}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// How often a plan was decided.
    pub fn plans(&self) -> usize {
        self.entries.iter().filter(|e| matches!(e.body, Body::Plan(_))).count()
    }

    /// Whether windows show before they close, by the newest plan; `None`: it has no windows.
    pub fn emits_on_update(&self) -> Option<bool> {
        let plan = self.entries.iter().rev().find_map(|e| if let Body::Plan(plan) = &e.body { Some(plan) } else { None })?;
        plan.tables.values().find(|t| t.window.is_some()).map(|t| t.emit_on_update)
    }

    /// A table as the newest plan that knows it has it.
    pub fn record(&self, table: &str) -> Option<&SpecRecord> {
        self.known.get(table).map(|(record, _)| record)
    }

    /// A table as the plan has it under which this entry was made.
    pub fn record_at(&self, table: &str, entry: u64) -> Option<&SpecRecord> {
        let plans = self.entries.iter().take(entry as usize + 1).rev().filter_map(|e| if let Body::Plan(plan) = &e.body { Some(plan) } else { None });
        plans.into_iter().find_map(|plan| {
            let declared = plan.tables.values().flat_map(|t| [Some(&t.table), t.late.as_ref()]).flatten();
            declared.chain(plan.sources.values().map(|s| &s.dead)).find(|record| record.name == table)
        })
    }

    /// Whether the newest plan asks for it.
    pub fn lives(&self, table: &str) -> bool {
        self.known.get(table).is_some_and(|(_, lives)| *lives)
    }

    /// The entry that this attempt became.
    pub fn entry_of(&self, attempt: Uuid) -> Option<u64> {
        self.attempts.get(&attempt).copied()
    }

    /// M of the newest checkpoint.
    pub fn upto(&self) -> Option<u64> {
        self.upto
    }

    /// The rules of DESIGN section 2, asked without the code that decides by them.
    fn fits(&mut self, seq: u64, entry: &Entry) -> Result<(), String> {
        let upto = self.upto;
        match &entry.body {
            Body::Plan(plan) => {
                self.plan = seq;
                for (name, source) in &plan.sources {
                    for (p, start) in &source.starts {
                        self.positions.entry((name.clone(), *p)).or_insert(*start);
                    }
                }
                return Ok(());
            }
            Body::Data(data) => {
                for (source, p, interval) in intervals(data) {
                    let at = self.positions.insert((source.clone(), p), interval.to);
                    if at.is_some_and(|at| at != interval.from) || interval.to < interval.from {
                        return Err(format!("I1: entry {seq} holds {}..{} of partition {p} of {source}, and the log stands at {at:?}", interval.from, interval.to));
                    }
                }
                if entry.plan != self.plan {
                    return Err(format!("I5: entry {seq} was made under plan {}, the newest is {}", entry.plan, self.plan));
                }
                for source in data.intervals.keys() {
                    let watermark = self.ledger.as_ref().and_then(|l| l.sources[source].watermark);
                    if data.bounds.get(source).is_none_or(|bound| *bound < watermark) {
                        return Err(format!("I5: entry {seq} was staged under the bound {:?} of {source}, the watermark is {watermark:?}", data.bounds.get(source)));
                    }
                }
            }
            Body::Checkpoint(c) => {
                if upto.is_some_and(|newest| c.upto <= newest) {
                    return Err(format!("entry {seq} is a checkpoint as of {}, and the newest is as of {upto:?}", c.upto));
                }
                self.upto = Some(c.upto);
            }
            Body::Note(_) => {}
        }
        if upto.is_some_and(|upto| entry.began <= upto) {
            return Err(format!("I5: the work of entry {seq} began at {}, and the newest checkpoint is as of {upto:?}", entry.began));
        }
        Ok(())
    }

    /// Everything that an entry names is there when it is decided.
    pub fn named(entry: &Entry) -> Vec<Path> {
        let Body::Data(data) = &entry.body else { return vec![] };
        let files = data.files.iter().map(|f| f.file.path.as_str());
        files.chain(data.runs.as_ref().map(|r| r.path.as_str())).map(Path::from).collect()
    }
}

/// Key, sum and number of rows.
type Group = (String, i64, i64);

/// The groups of a run, by window: its first two aggregates are a sum and a count.
fn groups(world: &World, run: &LiveRun) -> Result<Vec<(i64, Group)>, String> {
    let (at, object) = (&run.run.run, read(world, &Path::from(run.object.as_str()))?);
    let segment = object.get(at.offset as usize..(at.offset + at.length) as usize).ok_or_else(|| format!("{} is cut short", run.object))?;
    let batch = read_run(segment, at).map_err(|e| e.to_string())?.batch;
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("{} has no column {name}", run.object));
    let (keys, sums, counts) = (column("k0")?.as_string::<i32>(), column("a0_0")?.as_primitive::<Decimal128Type>(), column("a1_0")?.as_primitive::<Int64Type>());
    let start = |row: usize| match at.kind {
        RunKind::Partial { window_start_us } => window_start_us,
        _ => batch.column(0).as_primitive::<TimestampMicrosecondType>().value(row),
    };
    Ok((0..batch.num_rows()).map(|row| (start(row), (keys.value(row).to_string(), sums.value(row) as i64, counts.value(row)))).collect())
}

fn intervals(data: &Data) -> impl Iterator<Item = (&String, i32, &Interval)> {
    data.intervals.iter().flat_map(|(source, of)| of.iter().map(move |(p, i)| (source, *p, i)))
}

fn format_of(world: &Arc<World>, kind: TableFormatKind) -> Box<dyn TableFormat> {
    let store: Arc<dyn ObjectStore> = world.objects.clone();
    let root = url::Url::parse(LAKE_URL).unwrap();
    let (clock, ids) = (world.clone(), world.clone());
    let (now_ms, new_id): (Arc<dyn Fn() -> i64 + Send + Sync>, Arc<dyn Fn() -> Uuid + Send + Sync>) =
        (Arc::new(move || super::broker::wall(&clock)), Arc::new(move || ids.new_id()));
    match kind {
        TableFormatKind::Iceberg => {
            let ambient = Ambient { now_ms, new_id };
            Box::new(IcebergFormat::new(store, &root, TrueCatalog(world.clone()), PIPELINE, PIPELINE, ambient))
        }
        TableFormatKind::Delta => Box::new(DeltaFormat::new(store, root, PIPELINE, now_ms, new_id)),
    }
}

/// Opens a table as it is now, whoever wrote it last.
pub async fn open(world: &Arc<World>, spec: &Arc<TableSpec>, kind: TableFormatKind) -> Result<Option<Box<dyn LakeTable>>, CommitError> {
    format_of(world, kind).open(spec.clone()).await
}

/// The rows that readers of the table see, with these columns.
pub async fn rows(world: &Arc<World>, table: &mut Box<dyn LakeTable>, columns: &[String]) -> Result<Rows, String> {
    let schema = schema_of(table.spec(), table.format());
    let mut found = vec![];
    for file in table.live_files().await.map_err(|e| e.to_string())? {
        let mut batches = crate::read::live_rows(world.objects.clone(), &file, &schema, Some(columns), 8192);
        while let Some(batch) = batches.try_next().await.map_err(|e| e.to_string())? {
            found.extend(texts(&batch));
        }
    }
    Ok(sorted(found))
}

/// The columns of a table as readers of this format get them.
pub fn schema_of(spec: &TableSpec, kind: TableFormatKind) -> SchemaRef {
    match kind {
        TableFormatKind::Iceberg => spec.schema.clone(),
        TableFormatKind::Delta => Arc::new(crate::read::delta_schema(&spec.schema)),
    }
}

/// Each row as text.
pub fn texts(batch: &RecordBatch) -> Rows {
    let options = FormatOptions::default();
    let cells: Vec<Vec<String>> = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Timestamp(..) => column.as_primitive::<TimestampMicrosecondType>().values().iter().map(|v| v.to_string()).collect(),
            _ => {
                let text = ArrayFormatter::try_new(column, &options).expect("the columns are of plain types");
                (0..column.len()).map(|r| text.value(r).to_string()).collect()
            }
        })
        .collect();
    (0..batch.num_rows()).map(|r| cells.iter().map(|c| c[r].clone()).collect()).collect()
}

/// Compares a table as it is now with what the log up to its stamp implies (I2, I3, I6, I7). `None`: it is not there.
pub async fn compare(world: &Arc<World>, name: &str, kind: TableFormatKind) -> Result<Option<u64>, String> {
    let spec = {
        let decided = world.decided.lock().unwrap();
        decided.record(name).ok_or_else(|| format!("{kind} table {name} is in no plan"))?.shared()?
    };
    let Some(mut table) = open(world, &spec, kind).await.map_err(|e| e.to_string())? else { return Ok(None) };
    let base = table.load().await.map_err(|e| e.to_string())?;
    let (reckoned, length) = world.reckoned(name, kind, base.stamp.entry)?;
    let columns = reckoned.columns(name);
    let found = rows(world, &mut table, &columns).await?;
    let expected = world.with_foreign(name, kind, &reckoned);
    if found != expected {
        return Err(format!("I2, I7: {kind} table {name} at entry {} of {length}:{}", base.stamp.entry, difference(&found, &expected)));
    }
    Ok(Some(base.stamp.entry))
}

fn difference(found: &Rows, expected: &Rows) -> String {
    let mut net: BTreeMap<&Vec<String>, i64> = BTreeMap::new();
    found.iter().for_each(|r| *net.entry(r).or_default() += 1);
    expected.iter().for_each(|r| *net.entry(r).or_default() -= 1);
    let line = |(row, n): (&&Vec<String>, &i64)| format!("\n    {} {}", if *n > 0 { "too many:" } else { "missing: " }, row.join(" "));
    net.iter().filter(|(_, n)| **n != 0).take(12).map(line).collect()
}

/// Every table that a plan asks for or asked for, in every format that each has.
pub fn tables(world: &World) -> Vec<(String, TableFormatKind)> {
    let decided = world.decided.lock().unwrap();
    decided.known.values().flat_map(|(s, _)| s.formats.iter().map(|f| (s.name.clone(), *f)).collect::<Vec<_>>()).collect()
}

/// Files that an entry names and the store has not.
pub async fn missing(world: &World, entry: &Entry) -> Option<Path> {
    for path in Decided::named(entry) {
        if world.objects.head(&path).await.is_err() {
            return Some(path);
        }
    }
    None
}
