//! The tables computed once more from the source, and compared row by row.

use super::append_only::{Balance, Closing, replayed};
use super::compare::{At, Encoder, Matcher, show};
use super::dead_letters::{Letters, Lost, lost_of};
use super::facts::Facts;
use super::select::{Select, Shown};
use super::source_rows::{DeadRow, Held, Lineage, Part, Reader, SourceRows, TableRows, widest};
use super::structure::{Checked, Role, SHOWN, TableState};
use super::{Finding, Lake, OpenSource, Options, Progress, Report, RowFinding, VerifyError, instant};
use crate::pipeline::{Pipeline, TableFormatKind};
use crate::pipeline::sql::OP;
use crate::read::live_rows;
use crate::stage::TableSpec;
use crate::stage::dead::dead_schema;
use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, MapBuilder, MapFieldNames, StringArray, StringBuilder, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Rows that a table must show, and what is left out of the comparison.
struct Expected {
    batches: Vec<RecordBatch>,
    origin: Origin,
    /// Columns that are compared.
    compared: Vec<usize>,
    inexact: BTreeSet<usize>,
    key: Vec<usize>,
    /// A missing and a surplus row of one key are one that differs.
    paired: bool,
    window: Option<usize>,
    keep: Keep,
    /// The table may rightly hold rows that were not computed.
    only_missing: bool,
    lost: Vec<Lost>,
}

/// Where expected rows came from.
enum Origin {
    /// By batch and row.
    Rows(Vec<Vec<Lineage>>),
    /// Groups of the rows of a table, by batch: the select that summed them, and its group columns.
    Groups(Vec<(usize, RecordBatch)>),
}

/// Which rows of the table are compared at all.
#[derive(Clone, Default)]
pub struct Keep {
    from_us: Option<i64>,
    to_us: Option<i64>,
    sample: Option<u8>,
    /// Windows that start at or before it cannot be proven.
    lost_until_us: Option<i64>,
    /// Windows that two forms of the SQL have a part in.
    mixed: BTreeSet<i64>,
    /// Of rows with lineage: offsets that the source still holds, by partition.
    held: Option<BTreeMap<i32, Held>>,
}

impl Keep {
    pub fn window(&self, start: i64) -> bool {
        self.from_us.is_none_or(|f| start >= f)
            && self.to_us.is_none_or(|t| start < t)
            && self.lost_until_us.is_none_or(|l| start > l)
            && !self.mixed.contains(&start)
            && self.sample.is_none_or(|s| sampled(&start.to_le_bytes(), s))
    }

    fn judges_windows(&self) -> bool {
        self.from_us.is_some() || self.to_us.is_some() || self.sample.is_some() || self.lost_until_us.is_some() || !self.mixed.is_empty()
    }
}

fn sampled(bytes: &[u8], percent: u8) -> bool {
    twox_hash::XxHash3_64::oneshot(bytes) % 100 < u64::from(percent)
}

pub fn failed(e: impl std::fmt::Display) -> VerifyError {
    VerifyError::Refused(format!("rows cannot be compared: {e}"))
}

#[allow(clippy::too_many_arguments)]
pub async fn check(
    pipeline: &Pipeline,
    lake: &Lake,
    facts: &Facts,
    tables: &[Checked],
    options: &Options,
    open: OpenSource<'_>,
    progress: Progress<'_>,
    report: &mut Report,
) -> Result<(), VerifyError> {
    for name in facts.plan().sources.keys() {
        let of = |c: &Checked| match &c.role {
            Role::Declared { .. } => facts.plan().tables.get(&c.spec.name).map(|t| t.source.clone()),
            Role::Late(table) => facts.plan().tables.get(table).map(|t| t.source.clone()),
            Role::Dead(source) => Some(source.clone()),
        };
        let mine: Vec<&Checked> = tables.iter().filter(|c| of(c).as_ref() == Some(name)).collect();
        if mine.is_empty() {
            continue;
        }
        let Some(spec) = pipeline.sources.iter().find(|s| s.name == *name) else {
            report.unprovable.push(format!("source {name} is in the log and not in the pipeline file: its tables are not compared"));
            continue;
        };
        let dead = mine.iter().any(|c| matches!(c.role, Role::Dead(_)));
        // What is dead depends on every table of the source.
        let declared = facts.eras.iter().flat_map(|e| &e.plan.tables).filter(|(_, t)| t.source == *name).map(|(n, _)| n.clone());
        let computed: BTreeSet<String> = match dead {
            true => declared.collect(),
            false => mine.iter().map(|c| match &c.role { Role::Late(table) => table.clone(), _ => c.spec.name.clone() }).collect(),
        };
        let read = || {
            let mut source = open(&widest(facts, spec))?;
            Reader::new(facts, name, spec, options, &pipeline.variables, &computed)?.read(source.as_mut(), progress)
        };
        // A runtime of one thread has nobody else to hold up.
        let alone = tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread;
        let rows = if alone { read()? } else { tokio::task::block_in_place(read)? };
        report.findings.extend(rows.findings.iter().cloned());
        report.unprovable.extend(rows.unprovable.iter().cloned());
        report.notes.extend(rows.notes.iter().cloned());
        // Dead letters come last: by then it is known which values did not fit.
        let mut lost = vec![];
        for table in mine {
            for state in &table.states {
                match compare_table(lake, facts, &rows, table, state, options, &mut lost, report).await {
                    Err(VerifyError::Refused(why)) => report.unchecked.push(format!("table {}: {why}", table.spec.name)),
                    done => done?,
                }
            }
        }
    }
    Ok(())
}

/// Did anything happen in `(as_of, last]` that some table may have to take?
fn quiet_since(facts: &Facts, as_of: u64) -> bool {
    let data = facts.data.range(as_of + 1..).all(|(_, d)| d.intervals.values().flatten().all(|(_, i)| i.from == i.to));
    let before = facts.times.range(..=as_of).next_back().map(|(_, t)| t.watermark_after.clone()).unwrap_or_default();
    let moved = facts.times.range(as_of + 1..).any(|(_, t)| t.ends_input || t.watermark_after.iter().any(|(n, w)| before.get(n).copied().flatten() < *w));
    data && !moved
}

#[allow(clippy::too_many_arguments)]
async fn compare_table(lake: &Lake, facts: &Facts, rows: &SourceRows, table: &Checked, state: &TableState, options: &Options, lost: &mut Vec<Lost>, report: &mut Report) -> Result<(), VerifyError> {
    let Some((log, stamp)) = state.stamp else { return Ok(()) };
    if log != facts.log {
        return Ok(());
    }
    let name = &table.spec.name;
    // Below a checkpoint's M nothing was left to do for any table.
    let as_of = stamp.max(facts.upto.unwrap_or(0)).max(facts.first.saturating_sub(1)).min(facts.last);
    let as_of = if options.caught_up { facts.last } else { as_of };
    // Dead letters go to a format from the plan on that asks for it.
    let since = match &table.role {
        Role::Dead(source) => facts.eras.iter().find(|e| e.plan.sources.get(source).is_some_and(|s| s.dead.formats.contains(&state.format))).map_or(0, |e| e.entry),
        _ => 0,
    };
    let Some(mut expected) = expect(facts, rows, table, options, (since, as_of), report).await? else { return Ok(()) };
    // Both formats of a table lose the same.
    lost.extend(std::mem::take(&mut expected.lost).into_iter().filter(|l| !lost.contains(l)).collect::<Vec<_>>());
    let mut letters = matches!(table.role, Role::Dead(_)).then(Letters::default);
    let (mut findings, compared) = meet(lake, rows, table, state, expected, letters.as_mut()).await?;
    if let Some(letters) = letters {
        // Of what the source lost, or what nobody asked for, no windows are known; nor those of an earlier table of a name.
        let all = !rows.partly_lost && options.from_us.is_none() && options.to_us.is_none();
        let whole = facts.plan().tables.iter().filter(|(_, t)| all && t.born == 0 && t.window.is_some()).map(|(n, _)| n.as_str()).collect();
        findings.extend(letters.against(lost, rows, (since, as_of), &whole));
        if options.table.is_some() {
            report.notes.push(format!("table {name}: whether every value that does not fit has a dead letter is found out with the tables themselves, without --table"));
        }
    }
    let right = findings.is_empty();
    report.findings.extend(findings.into_iter().map(|f| f.of(name, state.format)));
    if let Some(line) = report.tables.iter_mut().find(|t| t.table == *name && t.format == state.format) {
        line.compared = Some(compared);
    }
    if right && as_of < facts.last && !quiet_since(facts, as_of) {
        let mut silent = Report::default();
        let Some(newest) = expect(facts, rows, table, options, (since, facts.last), &mut silent).await? else { return Ok(()) };
        let (behind, _) = meet(lake, rows, table, state, newest, None).await?;
        if !behind.is_empty() {
            let due: u64 = behind.iter().map(|f| f.count).sum();
            report.notes.push(format!("{} table {name} is right as of entry {as_of}; entries up to {} have {due} rows for it that it does not show yet", state.format, facts.last));
        }
    }
    Ok(())
}

async fn expect(facts: &Facts, rows: &SourceRows, table: &Checked, options: &Options, (since, as_of): (u64, u64), report: &mut Report) -> Result<Option<Expected>, VerifyError> {
    let keep = Keep { from_us: options.from_us, to_us: options.to_us, sample: options.sample_percent, lost_until_us: rows.lost_until_us, ..Keep::default() };
    let name = &table.spec.name;
    let all: Vec<usize> = (0..table.spec.schema.fields().len()).collect();
    let column = |n: &str| table.spec.schema.index_of(n).ok();
    let computed = |name: &str, report: &mut Report| {
        let computed = rows.tables.get(name)?;
        if let Some(why) = &computed.unchecked {
            report.unchecked.push(format!("table {name}: {why}"));
            return None;
        }
        match &computed.unplanned {
            None => Some(computed),
            Some(why) => {
                report.unprovable.push(format!("table {name}: {why}"));
                None
            }
        }
    };
    Ok(match &table.role {
        Role::Declared { windowed: false } => {
            let Some(computed) = computed(name, report) else { return Ok(None) };
            let mut batches = vec![];
            let mut origin = vec![];
            for part in &computed.parts {
                let taken: Vec<u32> = (0..part.lineage.len()).filter(|i| part.lineage[*i].entry <= as_of).map(|i| i as u32).collect();
                let values = take_record_batch(&part.values, &UInt32Array::from(taken.clone())).map_err(failed)?;
                batches.push(in_columns_of(&table.spec, &values, &computed.selects[part.select])?);
                origin.push(taken.iter().map(|i| part.lineage[*i as usize]).collect());
            }
            let partly = options.from_us.is_some() || options.to_us.is_some() || rows.partly_lost;
            if partly {
                report.notes.push(format!("table {name}: its rows do not tell where they came from; rows that it should not have are not found here"));
            }
            Some(Expected { batches, origin: Origin::Rows(origin), compared: all, inexact: BTreeSet::new(), key: vec![], paired: true, window: None, keep, only_missing: partly, lost: vec![] })
        }
        Role::Declared { windowed: true } => {
            let Some(computed) = computed(name, report) else { return Ok(None) };
            windowed(facts, computed, table, as_of, keep, report).await?
        }
        Role::Late(of) => {
            let Some(computed) = computed(of, report) else { return Ok(None) };
            let (mut batches, mut origin) = (vec![], vec![]);
            let keep = Keep { sample: None, lost_until_us: None, held: Some(rows.held.clone()), ..keep };
            for (batch, entries) in &computed.late {
                let starts = batch.column_by_name("window_start").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>().cloned());
                let starts = starts.ok_or_else(|| failed("window_start is no timestamp"))?;
                let taken: Vec<u32> = (0..entries.len()).filter(|i| entries[*i] <= as_of && keep.window(starts.value(*i))).map(|i| i as u32).collect();
                let batch = take_record_batch(batch, &UInt32Array::from(taken.clone())).map_err(failed)?;
                origin.push(lineage_of(&batch, &taken.iter().map(|i| entries[*i as usize]).collect::<Vec<_>>()));
                batches.push(batch);
            }
            let key = ["_partition", "_offset"].into_iter().filter_map(column).collect();
            Some(Expected { batches, origin: Origin::Rows(origin), compared: all, inexact: BTreeSet::new(), key, paired: true, window: column("window_start"), keep, only_missing: false, lost: vec![] })
        }
        Role::Dead(source) => {
            if let Some((name, why)) = rows.tables.iter().find_map(|(n, t)| Some((n, t.unchecked.as_ref()?))) {
                report.unchecked.push(format!("table {}: what is dead for table {name} is not known: {why}", table.spec.name));
                return Ok(None);
            }
            if let Some((name, why)) = rows.tables.iter().find_map(|(n, t)| Some((n, t.unplanned.as_ref()?))) {
                report.unprovable.push(format!("table {}: what is dead for table {name} is not known: {why}", table.spec.name));
                return Ok(None);
            }
            let topic = facts.plan().sources.get(source).map(|s| s.topic.clone()).unwrap_or_default();
            let (batches, origin) = dead_batches(rows, &topic, (since, as_of), DEAD_BATCH_BYTES)?;
            let key = ["_partition", "_offset", "_table"].into_iter().filter_map(column).collect();
            let keep = Keep { held: Some(rows.held.clone()), ..Keep::default() };
            Some(Expected { batches, origin: Origin::Rows(origin), compared: all, inexact: BTreeSet::new(), key, paired: true, window: None, keep, only_missing: false, lost: vec![] })
        }
    })
}

/// What a plain select made, in the columns that the table has by now: they are known by their names.
fn in_columns_of(spec: &TableSpec, values: &RecordBatch, select: &Select) -> Result<RecordBatch, VerifyError> {
    let fields: Vec<_> = spec.schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let column = |f: &arrow::datatypes::Field| match select.place(f.name()) {
        Some(place) => cast(values.column(place), f.data_type()),
        // A plan older than a column computes none of it.
        None => Ok(arrow::array::new_null_array(f.data_type(), values.num_rows())),
    };
    let columns = fields.iter().map(column).collect::<Result<Vec<ArrayRef>, _>>().map_err(failed)?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)
}

fn lineage_of(batch: &RecordBatch, entries: &[u64]) -> Vec<Lineage> {
    let (Some(p), Some(o)) = (batch.column_by_name("_partition"), batch.column_by_name("_offset")) else { return vec![] };
    let (p, o) = (p.as_primitive::<Int32Type>(), o.as_primitive::<Int64Type>());
    (0..batch.num_rows()).map(|i| Lineage { entry: entries[i], partition: p.value(i), offset: o.value(i) }).collect()
}

/// What a windowed table shows: windows that the watermark has passed, or all of them.
async fn windowed(facts: &Facts, computed: &TableRows, table: &Checked, as_of: u64, mut keep: Keep, report: &mut Report) -> Result<Option<Expected>, VerifyError> {
    let name = &table.spec.name;
    let Some(planned) = facts.plan().tables.get(name) else { return Ok(None) };
    let appends = table.spec.schema.index_of(OP).is_ok();
    // A query that another one extends is computed as that one: it was given columns since.
    let extended: Vec<usize> = (0..computed.selects.len()).map(|nth| if appends { nth } else { computed.newest(nth) }).collect();
    let newest = |nth: usize| extended[nth];
    // Window to its end, the first entry with a row of it, and the queries that have a part in it.
    let mut windows: BTreeMap<i64, (i64, u64, BTreeSet<usize>)> = BTreeMap::new();
    for part in &computed.parts {
        for (lineage, (start, end)) in part.lineage.iter().zip(&part.windows).filter(|(l, _)| l.entry <= as_of) {
            let known = windows.entry(*start).or_insert_with(|| (*end, lineage.entry, BTreeSet::new()));
            known.1 = known.1.min(lineage.entry);
            known.2.insert(newest(part.select));
        }
    }
    keep.mixed = windows.iter().filter(|(_, (_, _, by))| by.len() > 1).map(|(s, _)| *s).collect();
    if !keep.mixed.is_empty() {
        report.unprovable.push(format!("table {name}: {} windows hold rows from before and after its SQL changed, and are not compared", keep.mixed.len()));
    }
    if let Some(lost) = keep.lost_until_us {
        let text = if lost == i64::MAX { "no window can be compared: lost records may lie in any".to_string() } else { format!("windows that start up to {} are not compared: lost records may have counted in them", instant(lost)) };
        report.unprovable.push(format!("table {name}: {text}"));
    }
    let closing = Closing::new(facts, name, planned.emit_on_update, as_of);
    let shown = |start: &i64| windows.get(start).is_some_and(|(end, first, _)| closing.first_shown(*end, *first).is_some());
    let (mut batches, mut groups, mut lost) = (vec![], vec![], vec![]);
    let (mut inexact, mut window, mut key) = (BTreeSet::new(), None, vec![]);
    for (nth, select) in computed.selects.iter().enumerate() {
        (inexact, window, key) = (select.inexact.clone(), select.window_output(), select.group_output());
        let mut input = vec![];
        for part in computed.parts.iter().filter(|p| newest(p.select) == nth) {
            let taken = (0..part.lineage.len()).filter(|i| part.lineage[*i].entry <= as_of && shown(&part.windows[*i].0) && keep.window(part.windows[*i].0));
            let taken: Vec<u32> = taken.map(|i| i as u32).collect();
            if !taken.is_empty() {
                input.push(take_record_batch(&part.input, &UInt32Array::from(taken)).map_err(failed)?);
            }
        }
        if input.is_empty() {
            continue;
        }
        let Shown { mut rows, groups: by, unfit } = select.sum_up(input.clone()).await.map_err(failed)?;
        let older: Vec<usize> = (0..nth).filter(|m| newest(*m) == nth).collect();
        let first_shown = |start: i64| windows.get(&start).and_then(|(end, first, _)| closing.first_shown(*end, *first));
        let parts: Vec<&Part> = computed.parts.iter().filter(|p| newest(p.select) == nth).collect();
        if !older.is_empty() {
            let given: Vec<(usize, u64)> = older.iter().map(|m| (computed.selects[*m].width(), computed.since[*m])).collect();
            rows = without_later_columns(computed, nth, &given, (rows, &by), &parts, as_of, &first_shown)?;
        }
        if unfit.num_rows() > 0 {
            let since = if older.is_empty() { 0 } else { computed.since[nth] };
            lost.extend(lost_of(name, &parts, since..u64::MAX, &unfit, as_of, &first_shown)?);
            // What was written last under a query with fewer columns was lost if it was lost in those.
            for (m, next) in older.iter().zip(older.iter().skip(1).chain([&nth])) {
                let Shown { unfit, .. } = computed.selects[*m].sum_up(input.clone()).await.map_err(failed)?;
                lost.extend(lost_of(name, &parts, computed.since[*m]..computed.since[*next], &unfit, as_of, &first_shown)?);
            }
        }
        batches.push(rows);
        groups.push((nth, by));
    }
    if window.is_none() && keep.judges_windows() {
        report.unprovable.push(format!("table {name}: it does not show window_start, so that its rows cannot be told apart by window"));
        return Ok(None);
    }
    let mut columns = table.spec.schema.fields().iter().filter(|f| f.name() != OP).count();
    let mut paired = true;
    if columns < table.spec.schema.fields().len() {
        let mut all = Some(vec![]);
        for nth in 0..computed.selects.len() {
            let batches = replayed(facts, computed, nth, name, &table.spec.schema, planned.emit_on_update, as_of, &keep).await?;
            all = all.zip(batches).map(|(mut all, batches)| {
                all.extend(batches.into_iter().map(|(rows, groups)| (rows, (nth, groups))));
                all
            });
        }
        match all {
            // A correction is an insertion and a retraction of one group: they are not one row that differs.
            Some(all) => {
                (columns, paired) = (columns + 1, false);
                (batches, groups) = all.into_iter().unzip();
            }
            None => report.unprovable.push(format!("table {name}: it was corrected too often for every correction to be computed again; what they add up to is compared")),
        }
    }
    let compared = (0..columns).collect();
    Ok(Some(Expected { batches, origin: Origin::Groups(groups), compared, inexact, key, paired, window, keep, only_missing: false, lost }))
}

/// Rows that were last written before their table was given a column hold null in it. `older`: for each query that was
/// the table's before, how many columns it showed, and since when.
fn without_later_columns(
    computed: &TableRows,
    nth: usize,
    older: &[(usize, u64)],
    (rows, groups): (RecordBatch, &RecordBatch),
    parts: &[&Part],
    as_of: u64,
    first_shown: &dyn Fn(i64) -> Option<u64>,
) -> Result<RecordBatch, VerifyError> {
    let width = computed.selects[nth].group_width();
    let places: Vec<usize> = (0..width).collect();
    let Some(types) = parts.first().map(|p| (0..width).map(|c| p.values.column(c).data_type().clone()).collect::<Vec<_>>()) else { return Ok(rows) };
    let encoder = Encoder::new(&types, &places, &BTreeSet::new()).map_err(failed)?;
    // The entry at which each group was written last: when its window was first shown, or at the last of its rows after that.
    let mut written: HashMap<Vec<u8>, u64> = HashMap::new();
    for part in parts {
        let keys = encoder.encode(&part.values.project(&places).map_err(failed)?).map_err(failed)?;
        for (i, (key, _)) in keys.into_iter().enumerate().filter(|(i, _)| part.lineage[*i].entry <= as_of) {
            let at = part.lineage[i].entry.max(first_shown(part.windows[i].0).unwrap_or(0));
            let last = written.entry(key).or_insert(at);
            *last = (*last).max(at);
        }
    }
    let last: Vec<u64> = encoder.encode(groups).map_err(failed)?.into_iter().map(|(key, _)| written.get(&key).copied().unwrap_or(0)).collect();
    // Each column is there from the first query on that shows it.
    let queries: Vec<(usize, u64)> = older.iter().copied().chain([(computed.selects[nth].width(), computed.since[nth])]).collect();
    let mut columns = rows.columns().to_vec();
    for (place, column) in columns.iter_mut().enumerate() {
        let Some(since) = queries.iter().filter(|(shown, _)| place < *shown).map(|(_, since)| *since).min() else { continue };
        let before: arrow::array::BooleanArray = last.iter().map(|at| Some(*at < since)).collect();
        *column = arrow::compute::nullif(column, &before).map_err(failed)?;
    }
    RecordBatch::try_new(rows.schema(), columns).map_err(failed)
}

/// Bytes of dead letters in one batch, but for the last of them: an array holds less than 2 GiB.
const DEAD_BATCH_BYTES: usize = 64 << 20;

fn dead_batches(rows: &SourceRows, topic: &str, (since, as_of): (u64, u64), most_bytes: usize) -> Result<(Vec<RecordBatch>, Vec<Vec<Lineage>>), VerifyError> {
    let dead: Vec<&DeadRow> = rows.dead.iter().filter(|d| d.lineage.entry > since && d.lineage.entry <= as_of).collect();
    let (mut batches, mut origins) = (vec![], vec![]);
    let mut from = 0;
    while from < dead.len() || batches.is_empty() {
        let mut bytes = 0;
        let size = |d: &DeadRow| d.key.as_ref().map_or(0, Vec::len) + d.value.as_ref().map_or(0, Vec::len) + d.headers.iter().map(|(n, v)| n.len() + v.as_ref().map_or(0, Vec::len)).sum::<usize>();
        let fit = dead[from..].iter().take_while(|d| { let before = bytes; bytes += size(d); before < most_bytes }).count();
        let (batch, origin) = dead_batch(&dead[from..from + fit], topic)?;
        batches.push(batch);
        origins.push(origin);
        from += fit;
    }
    Ok((batches, origins))
}

fn dead_batch(dead: &[&DeadRow], topic: &str) -> Result<(RecordBatch, Vec<Lineage>), VerifyError> {
    let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
    let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
    let mut headers = MapBuilder::new(Some(names), StringBuilder::new(), BinaryBuilder::new());
    for d in dead {
        keys.append_option(d.key.as_ref());
        values.append_option(d.value.as_ref());
        for (name, value) in &d.headers {
            headers.keys().append_value(name);
            headers.values().append_option(value.as_ref());
        }
        headers.append(true).map_err(failed)?;
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![topic; dead.len()])),
        Arc::new(Int32Array::from_iter_values(dead.iter().map(|d| d.lineage.partition))),
        Arc::new(Int64Array::from_iter_values(dead.iter().map(|d| d.lineage.offset))),
        Arc::new(dead.iter().map(|d| d.timestamp_us).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        Arc::new(keys.finish()),
        Arc::new(dead.iter().map(|d| d.reasons.first().cloned()).collect::<StringArray>()),
        Arc::new(dead.iter().map(|d| d.table.clone()).collect::<StringArray>()),
        Arc::new(values.finish()),
        Arc::new(headers.finish()),
    ];
    let batch = RecordBatch::try_new(dead_schema(), columns).map_err(failed)?;
    Ok((batch, dead.iter().map(|d| d.lineage).collect()))
}

/// Reads the table and compares.
async fn meet(lake: &Lake, rows: &SourceRows, table: &Checked, state: &TableState, expected: Expected, mut letters: Option<&mut Letters>) -> Result<(Vec<Finding>, u64), VerifyError> {
    let spec = &table.spec;
    let types: Vec<DataType> = spec.schema.fields().iter().map(|f| f.data_type().clone()).collect();
    let sample = expected.keep.sample.filter(|_| matches!(table.role, Role::Declared { windowed: false }));
    let encoder = || Encoder::new(&types, &expected.compared, &expected.inexact).map_err(failed);
    let held = expected.batches.iter().map(|b| as_held(b, spec, state.format)).collect::<Result<Vec<_>, _>>()?;
    let wanted: Vec<RecordBatch> = match sample {
        Some(percent) => held.iter().map(|b| sample_rows(b, &encoder()?, percent)).collect::<Result<_, _>>()?,
        None => held,
    };
    let mut matcher = Matcher::new(encoder()?, &wanted).map_err(failed)?;
    let mut findings = vec![];
    let op = spec.schema.index_of(OP).ok();
    let mut balance = Balance::default();
    let reasons: HashMap<(i32, i64, Option<&str>), &[String]> = match table.role {
        Role::Dead(_) => rows.dead.iter().filter(|d| d.table.is_some()).map(|d| ((d.lineage.partition, d.lineage.offset, d.table.as_deref()), d.reasons.as_slice())).collect(),
        _ => HashMap::new(),
    };
    for file in &state.files {
        let mut stream = live_rows(lake.store.clone(), file, &spec.schema, None, 8192);
        loop {
            let batch = match stream.try_next().await {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(e) => {
                    findings.push(Finding::new("file-unreadable", e.to_string()));
                    break;
                }
            };
            if let Some(letters) = &mut letters {
                letters.take(&batch);
            }
            let mut batch = kept(&batch, &expected, table)?;
            if matches!(table.role, Role::Dead(_)) {
                batch = one_reason(&batch, &reasons)?;
            }
            if let Some(percent) = sample {
                batch = sample_rows(&batch, &encoder()?, percent)?;
            }
            match op.filter(|op| !expected.compared.contains(op)) {
                Some(op) => balance.add(&batch, op, &encoder()?)?,
                None => matcher.found(&batch).map_err(failed)?,
            }
        }
    }
    if op.is_some_and(|op| !expected.compared.contains(&op)) {
        let (net, unmatched) = balance.net()?;
        if let Some((count, text)) = unmatched {
            findings.push(Finding::new("retract-unmatched", text).times(count));
        }
        for batch in net {
            matcher.found(&batch).map_err(failed)?;
        }
    }
    let compared = matcher.matched;
    findings.extend(told(&wanted, &expected, rows, spec, &matcher)?);
    Ok((findings, compared))
}

/// Rows as the format holds them: an empty text in a column that a Delta table is partitioned by is null (Delta protocol,
/// *Partition Value Serialization*).
fn as_held(batch: &RecordBatch, spec: &TableSpec, format: TableFormatKind) -> Result<RecordBatch, VerifyError> {
    let mut columns = batch.columns().to_vec();
    for field in spec.partition_fields(format).iter().filter(|_| format == TableFormatKind::Delta) {
        let Ok(place) = spec.schema.index_of(&field.column) else { continue };
        // One that cannot be null is read as what it was.
        if !spec.schema.field(place).is_nullable() {
            continue;
        }
        if let Some(text) = columns.get(place).and_then(|c| c.as_string_opt::<i32>()) {
            columns[place] = Arc::new(text.iter().map(|t| t.filter(|t| !t.is_empty())).collect::<StringArray>());
        }
    }
    let fields: Vec<_> = batch.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)
}

/// The rows that are compared. Dead letters of values that did not fit when a window was emitted name no record: they are
/// compared by [`Letters`].
fn kept(batch: &RecordBatch, expected: &Expected, table: &Checked) -> Result<RecordBatch, VerifyError> {
    let keep = &expected.keep;
    let mut mask: Vec<bool> = vec![true; batch.num_rows()];
    if let Some(window) = expected.window.filter(|_| keep.judges_windows()) {
        let starts = batch.column(window).as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| failed("window_start is no timestamp"))?;
        (0..batch.num_rows()).for_each(|i| mask[i] = starts.is_valid(i) && keep.window(starts.value(i)));
    }
    if let (Some(held), Some(p), Some(o)) = (&keep.held, batch.column_by_name("_partition"), batch.column_by_name("_offset")) {
        let (p, o) = (p.as_primitive::<Int32Type>(), o.as_primitive::<Int64Type>());
        for (i, mask) in mask.iter_mut().enumerate() {
            if matches!(table.role, Role::Dead(_)) && p.is_null(i) {
                *mask = false;
            } else if p.is_valid(i) && o.is_valid(i) {
                // What the source lost proves nothing; what it never had must not be there.
                let lost = held.get(&p.value(i)).is_some_and(|h| h.lost(o.value(i)));
                *mask &= !lost;
            }
        }
    }
    let rows: Vec<u32> = (0..mask.len()).filter(|i| mask[*i]).map(|i| i as u32).collect();
    take_record_batch(batch, &UInt32Array::from(rows)).map_err(failed)
}

/// Whether what was found is a reason with references to variables in the place of values, which may have been others then.
fn without_values(found: &str, reason: &str) -> bool {
    let mut parts = vec![];
    let mut rest = found;
    while let Some((before, after)) = rest.split_once("${").and_then(|(before, after)| Some((before, after.split_once('}')?.1))) {
        parts.push(before);
        rest = after;
    }
    let Some(mut left) = parts.first().and_then(|first| reason.strip_prefix(first)) else { return false };
    for part in &parts[1..] {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(rest)
}

/// Where several expressions of a row fail, any of their reasons is as good as the first.
fn one_reason(batch: &RecordBatch, reasons: &HashMap<(i32, i64, Option<&str>), &[String]>) -> Result<RecordBatch, VerifyError> {
    let place = |name: &str| batch.schema_ref().index_of(name).map_err(failed);
    let (at, table) = (place("_reason")?, place("_table")?);
    if reasons.is_empty() {
        return Ok(batch.clone());
    }
    let (p, o) = (batch.column(place("_partition")?).as_primitive::<Int32Type>(), batch.column(place("_offset")?).as_primitive::<Int64Type>());
    let (found, tables) = (batch.column(at).as_string::<i32>(), batch.column(table).as_string::<i32>());
    let text = |array: &'_ StringArray, i: usize| array.is_valid(i).then(|| array.value(i).to_string());
    let each = (0..batch.num_rows()).map(|i| {
        let said = text(found, i);
        let table = text(tables, i);
        let all = reasons.get(&(p.value(i), o.value(i), table.as_deref())).filter(|all| said.as_ref().is_some_and(|s| all.iter().any(|why| why == s || without_values(s, why))));
        all.map_or(said.clone(), |all| all.first().cloned())
    });
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(each.collect::<StringArray>());
    RecordBatch::try_new(batch.schema(), columns).map_err(failed)
}

fn sample_rows(batch: &RecordBatch, encoder: &Encoder, percent: u8) -> Result<RecordBatch, VerifyError> {
    let rows = encoder.encode(batch).map_err(failed)?;
    let taken: Vec<u32> = rows.iter().enumerate().filter(|(_, (bytes, _))| sampled(bytes, percent)).map(|(i, _)| i as u32).collect();
    take_record_batch(batch, &UInt32Array::from(taken)).map_err(failed)
}

/// Missing, surplus and different rows, in words.
fn told(wanted: &[RecordBatch], expected: &Expected, rows: &SourceRows, spec: &TableSpec, matcher: &Matcher) -> Result<Vec<Finding>, VerifyError> {
    let types: Vec<DataType> = spec.schema.fields().iter().map(|f| f.data_type().clone()).collect();
    let keys = Encoder::new(&types, &expected.key, &BTreeSet::new()).map_err(failed)?;
    let missing = matcher.missing();
    let mut by_key: HashMap<Vec<u8>, Vec<At>> = HashMap::new();
    let paired = expected.paired && !expected.key.is_empty();
    if paired {
        for at in &missing {
            let row = wanted[at.0].slice(at.1, 1);
            let bytes = keys.encode(&row).map_err(failed)?.remove(0).0;
            by_key.entry(bytes).or_default().push(*at);
        }
    }
    let all: Vec<usize> = expected.compared.clone();
    let origins = |at: At| origin(expected, rows, spec, at);
    let window_of = |batch: &RecordBatch, row: usize| {
        let starts = batch.column(expected.window?).as_primitive_opt::<TimestampMicrosecondType>()?;
        starts.is_valid(row).then(|| instant(starts.value(row)))
    };
    let key_columns: &[usize] = if expected.key.is_empty() { &all } else { &expected.key };
    let (mut different, mut extra, mut met): (Vec<RowFinding>, Vec<RowFinding>, BTreeSet<At>) = (vec![], vec![], BTreeSet::new());
    let (mut differing, mut surplus) = (0, 0);
    for batch in &matcher.extra {
        let bytes = if paired { keys.encode(batch).map_err(failed)? } else { vec![] };
        for row in 0..batch.num_rows() {
            let twin = bytes.get(row).and_then(|(b, _)| by_key.get_mut(b)?.pop());
            let base = RowFinding { key: show(batch, row, key_columns), window: window_of(batch, row), expected: None, found: Some(show(batch, row, &all)), offsets: vec![], records: 0 };
            match twin {
                Some(at) => {
                    met.insert(at);
                    differing += 1;
                    if different.len() < SHOWN {
                        let (offsets, records) = origins(at)?;
                        different.push(RowFinding { expected: Some(show(&wanted[at.0], at.1, &all)), offsets, records, ..base });
                    }
                }
                None => {
                    surplus += 1;
                    if extra.len() < SHOWN {
                        extra.push(base);
                    }
                }
            }
        }
    }
    let absent: Vec<At> = missing.into_iter().filter(|at| !met.contains(at)).collect();
    let mut gone = vec![];
    for at in absent.iter().take(SHOWN) {
        let (offsets, records) = origins(*at)?;
        let batch = &wanted[at.0];
        gone.push(RowFinding { key: show(batch, at.1, key_columns), window: window_of(batch, at.1), expected: Some(show(batch, at.1, &all)), found: None, offsets, records });
    }
    let mut findings = vec![];
    let mut say = |kind: &'static str, count: usize, text: String, rows: Vec<RowFinding>| {
        if count > 0 {
            let mut finding = Finding::new(kind, text).times(count);
            finding.rows = rows;
            findings.push(finding);
        }
    };
    say("row-missing", absent.len(), format!("{} rows that the source yields are not in it", absent.len()), gone);
    say("row-different", differing, format!("{differing} rows are not what the source yields"), different);
    if !expected.only_missing {
        say("row-extra", surplus, format!("{surplus} rows are in it that the source does not yield"), extra);
    }
    Ok(findings)
}

/// Source records behind an expected row: the first few, and how many.
fn origin(expected: &Expected, rows: &SourceRows, spec: &TableSpec, at: At) -> Result<(Vec<String>, u64), VerifyError> {
    let text = |l: &Lineage| format!("{}:{}", l.partition, l.offset);
    match &expected.origin {
        Origin::Rows(lineage) => Ok((lineage.get(at.0).and_then(|l| l.get(at.1)).map(text).into_iter().collect(), 1)),
        Origin::Groups(groups) => {
            let (Some((nth, groups)), Some(table)) = (groups.get(at.0), rows.tables.get(&spec.name)) else { return Ok((vec![], 0)) };
            let width = table.selects[*nth].group_width();
            let (mut offsets, mut records) = (vec![], 0);
            let places: Vec<usize> = (0..width).collect();
            let mut wanted = None;
            let extended: Vec<bool> = (0..table.selects.len()).map(|m| m == *nth || table.newest(m) == *nth).collect();
            for part in table.parts.iter().filter(|p| extended[p.select]) {
                let keys = part.values.project(&places).map_err(failed)?;
                let types: Vec<DataType> = keys.schema().fields().iter().map(|f| f.data_type().clone()).collect();
                let encoder = Encoder::new(&types, &places, &BTreeSet::new()).map_err(failed)?;
                if wanted.is_none() {
                    wanted = encoder.encode(&groups.slice(at.1, 1)).map_err(failed)?.pop();
                }
                for (row, bytes) in encoder.encode(&keys).map_err(failed)?.into_iter().enumerate() {
                    if wanted.as_ref() == Some(&bytes) {
                        records += 1;
                        if offsets.len() < SHOWN {
                            offsets.push(text(&part.lineage[row]));
                        }
                    }
                }
            }
            Ok((offsets, records))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    #[test]
    fn a_reason_is_known_without_the_values_of_variables() {
        let reason = "no granularity 'old': 'a', 'b'";
        for (found, same) in [("no granularity '${X}': 'a', 'b'", true), ("no granularity '${X}': '${Y:-c}', 'b'", true), ("no granularity '${X}': 'c', 'b'", false), ("no granularity '${X}': 'a'", false), ("none '${X}': 'a', 'b'", false), (reason, false)] {
            assert_eq!(without_values(found, reason), same, "{found}");
        }
    }

    #[test]
    fn dead_letters_are_met_in_batches_that_an_array_can_hold() {
        let row = |offset: i64, bytes: usize| DeadRow {
            lineage: Lineage { entry: offset as u64 / 10, partition: 0, offset },
            timestamp_us: None,
            key: None,
            value: Some(vec![b'x'; bytes]),
            headers: vec![("h".into(), Some(vec![0; 4]))],
            table: None,
            reasons: vec!["no JSON".into()],
        };
        let rows = |sizes: &[usize]| SourceRows { dead: sizes.iter().enumerate().map(|(n, s)| row(10 + n as i64, *s)).collect(), ..SourceRows::default() };
        let offsets = |rows: &SourceRows, most_bytes: usize| {
            let (batches, origins) = dead_batches(rows, "t", (0, 1), most_bytes).unwrap();
            let of = |b: &RecordBatch| b.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().values().to_vec();
            assert!(batches.iter().zip(&origins).all(|(b, o)| o.iter().map(|l| l.offset).eq(of(b))), "each row has its own lineage");
            batches.iter().map(of).collect::<Vec<_>>()
        };
        // Five bytes more of each are its header.
        assert_eq!(offsets(&rows(&[10, 10, 10, 10, 10]), 20), [vec![10, 11], vec![12, 13], vec![14]]);
        assert_eq!(offsets(&rows(&[0, 500, 0, 0]), 20), [vec![10, 11], vec![12, 13]], "one that is larger is met, too");
        assert_eq!(offsets(&rows(&[500, 500]), 1), [[10], [11]]);
        assert_eq!(offsets(&rows(&[1; 12]), 1 << 20), [(10..20).collect::<Vec<_>>()], "of the entries that are asked for");
        assert_eq!(offsets(&rows(&[]), 20), [Vec::<i64>::new()], "nothing is expected: what is there is too much");
    }
}
