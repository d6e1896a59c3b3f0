//! Append-only tables: every insertion and retraction computed again, or what they add up to.

use super::VerifyError;
use super::compare::{At, Encoder, show};
use super::deep::{Keep, failed};
use super::facts::Facts;
use super::source_rows::{Part, TableRows};
use arrow::array::{AsArray, StringArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// When windows of a table are shown for the first time: the watermark passes their end, or the input ends and they have a row.
pub struct Closing {
    on_update: bool,
    /// Entries and the watermark after each; neither ever falls.
    watermarks: Vec<(u64, Option<i64>)>,
    ends: Vec<u64>,
}

impl Closing {
    pub fn new(facts: &Facts, table: &str, on_update: bool, as_of: u64) -> Self {
        let times = facts.times.range(..=as_of);
        let watermarks = times.clone().filter_map(|(e, t)| Some((*e, *t.watermark_after.get(table)?))).collect();
        Self { on_update, watermarks, ends: times.filter(|(_, t)| t.ends_input).map(|(e, _)| *e).collect() }
    }

    /// The entry at which a window is shown that ends at `end_us` and got its first row by `first`.
    pub fn first_shown(&self, end_us: i64, first: u64) -> Option<u64> {
        if self.on_update {
            return Some(first);
        }
        let passed = self.watermarks.partition_point(|(_, w)| w.is_none_or(|w| w < end_us));
        let passed = self.watermarks.get(passed).map(|(e, _)| (*e).max(first));
        let ended = self.ends.iter().copied().find(|e| *e > first);
        [passed, ended].into_iter().flatten().min()
    }
}

/// Rows that an append-only table may be computed for beyond those of its source, before only what is left is compared.
const MOST_REPLAYED: usize = 20_000_000;

/// Every insertion and retraction of an append-only table: the groups that an entry touched in a window that is shown,
/// as they were before and after it; beside the rows what they were grouped by. `None`: that would be too many.
#[allow(clippy::too_many_arguments)]
pub async fn replayed(facts: &Facts, computed: &TableRows, nth: usize, name: &str, schema: &Schema, on_update: bool, as_of: u64, keep: &Keep) -> Result<Option<Vec<(RecordBatch, RecordBatch)>>, VerifyError> {
    let select = &computed.selects[nth];
    let parts: Vec<&Part> = computed.parts.iter().filter(|p| p.select == nth).collect();
    let mut windows: BTreeMap<i64, (i64, BTreeMap<u64, usize>)> = BTreeMap::new();
    for part in &parts {
        for (lineage, (start, end)) in part.lineage.iter().zip(&part.windows).filter(|(l, w)| l.entry <= as_of && keep.window(w.0)) {
            *windows.entry(*start).or_insert_with(|| (*end, BTreeMap::new())).1.entry(lineage.entry).or_default() += 1;
        }
    }
    // The entries at which each window is shown, and how many rows that takes.
    let closing = Closing::new(facts, name, on_update, as_of);
    let mut shown_at: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    let mut rows = 0;
    for (start, (end, entries)) in &windows {
        let Some(first) = entries.keys().next().and_then(|first| closing.first_shown(*end, *first)) else { continue };
        let at: Vec<u64> = std::iter::once(first).chain(entries.keys().copied().filter(|e| *e > first)).collect();
        rows += at.iter().map(|n| entries.range(..=n).map(|(_, rows)| rows).sum::<usize>()).sum::<usize>();
        shown_at.insert(*start, at);
    }
    if rows > MOST_REPLAYED {
        return Ok(None);
    }
    let (mut input, mut at_entry) = (vec![], vec![]);
    for part in &parts {
        let (mut taken, mut at): (Vec<u32>, Vec<u64>) = (vec![], vec![]);
        for (i, (lineage, (start, _))) in part.lineage.iter().zip(&part.windows).enumerate() {
            for n in shown_at.get(start).into_iter().flatten().filter(|n| **n >= lineage.entry) {
                taken.push(i as u32);
                at.push(*n);
            }
        }
        input.push(take_record_batch(&part.input, &UInt32Array::from(taken)).map_err(failed)?);
        at_entry.push(at);
    }
    let states = select.sum_up_at(input, at_entry).await.map_err(failed)?;
    // Which groups an entry touched in a window that was shown before.
    let width = select.group_width();
    let places: Vec<usize> = (0..width).collect();
    let Some(types) = parts.first().map(|p| (0..width).map(|c| p.values.column(c).data_type().clone()).collect::<Vec<_>>()) else { return Ok(Some(vec![])) };
    let encoder = Encoder::new(&types, &places, &BTreeSet::new()).map_err(failed)?;
    let mut touched: HashSet<(u64, Vec<u8>)> = Default::default();
    for part in &parts {
        let keys = encoder.encode(&part.values.project(&places).map_err(failed)?).map_err(failed)?;
        touched.extend(part.lineage.iter().zip(keys).map(|(l, (bytes, _))| (l.entry, bytes)));
    }
    // States of each group in the order of entries: what was shown is taken back, what is shown now put in.
    let mut order: Vec<(u64, i64, Vec<u8>, usize)> = vec![];
    for (row, (bytes, _)) in encoder.encode(&states.groups).map_err(failed)?.into_iter().enumerate() {
        order.push((states.at[row], states.window[row], bytes, row));
    }
    order.sort();
    let mut last: HashMap<Vec<u8>, usize> = HashMap::new();
    let (mut inserted, mut retracted): (Vec<u32>, Vec<u32>) = (vec![], vec![]);
    for (at, start, bytes, row) in order {
        let first = shown_at.get(&start).and_then(|s| s.first()) == Some(&at);
        if !first && !touched.contains(&(at, bytes.clone())) {
            continue;
        }
        if let Some(before) = last.insert(bytes, row).filter(|b| states.shown[*b]) {
            retracted.push(before as u32);
        }
        if states.shown[row] {
            inserted.push(row as u32);
        }
    }
    let mut batches = vec![];
    for (op, rows) in [("insert", inserted), ("retract", retracted)] {
        let rows = UInt32Array::from(rows);
        let groups = take_record_batch(&states.groups, &rows).map_err(failed)?;
        let rows = take_record_batch(&states.rows, &rows).map_err(failed)?;
        let mut columns = rows.columns().to_vec();
        let shown = schema.fields().len() - 1;
        columns.insert(shown, Arc::new(StringArray::from(vec![op; rows.num_rows()])));
        let table = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
        // Behind the table's columns: how far each row may be off.
        let fields: Vec<_> = table.chain(rows.schema().fields().iter().skip(shown).map(|f| f.as_ref().clone())).collect();
        batches.push((RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)?, groups));
    }
    Ok(Some(batches))
}

/// Insertions less retractions of an append-only table.
#[derive(Default)]
pub struct Balance {
    batches: Vec<RecordBatch>,
    rows: HashMap<Vec<u8>, (i64, At)>,
}

impl Balance {
    pub fn add(&mut self, batch: &RecordBatch, op: usize, encoder: &Encoder) -> Result<(), VerifyError> {
        let ops = cast(batch.column(op), &DataType::Utf8).map_err(failed)?;
        let ops = ops.as_string::<i32>();
        let nth = self.batches.len();
        for (row, (mut bytes, loose)) in encoder.encode(batch).map_err(failed)?.into_iter().enumerate() {
            // A retraction takes back the very row, to the last bit.
            loose.iter().for_each(|v| bytes.extend(v.bytes()));
            let step = match ops.value(row) {
                "insert" => 1,
                _ => -1,
            };
            let entry = self.rows.entry(bytes).or_insert((0, (nth, row)));
            entry.0 += step;
        }
        self.batches.push(batch.clone());
        Ok(())
    }

    /// The rows that are left, and those of which more was taken back than was put in.
    pub fn net(self) -> Result<(Vec<RecordBatch>, Option<(usize, String)>), VerifyError> {
        let mut taken: Vec<Vec<u32>> = vec![vec![]; self.batches.len()];
        let (mut count, mut first) = (0, None);
        for (net, (batch, row)) in self.rows.into_values() {
            (0..net).for_each(|_| taken[batch].push(row as u32));
            if net < 0 {
                count += net.unsigned_abs() as usize;
                first.get_or_insert((batch, row));
            }
        }
        let text = first.map(|(b, r)| {
            let all: Vec<usize> = (0..self.batches[b].num_columns()).collect();
            (count, format!("{count} rows are retracted that were not inserted, such as {}", show(&self.batches[b], r, &all)))
        });
        let net = self.batches.iter().zip(taken).map(|(b, rows)| take_record_batch(b, &UInt32Array::from(rows))).collect::<Result<_, _>>().map_err(failed)?;
        Ok((net, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};

    fn batch(rows: &[(i64, &str)]) -> RecordBatch {
        let (n, op): (Vec<i64>, Vec<&str>) = rows.iter().copied().unzip();
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(n)) as ArrayRef), ("_op", Arc::new(StringArray::from(op)))]).unwrap()
    }

    #[test]
    fn what_is_taken_back_must_have_been_put_in() {
        let encoder = Encoder::new(&[DataType::Int64, DataType::Utf8], &[0], &BTreeSet::new()).unwrap();
        let mut balance = Balance::default();
        balance.add(&batch(&[(1, "insert"), (2, "insert"), (2, "insert"), (1, "retract")]), 1, &encoder).unwrap();
        balance.add(&batch(&[(3, "retract"), (4, "insert"), (4, "retract"), (2, "retract")]), 1, &encoder).unwrap();
        let (net, unmatched) = balance.net().unwrap();
        let left: Vec<i64> = net.iter().flat_map(|b| b.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec()).collect();
        assert_eq!(left, [2]);
        let (count, text) = unmatched.unwrap();
        assert!(count == 1 && text.contains("n=3"), "{text}");
    }
}
