//! Dead letters of values that did not fit when a window was emitted: they name a window and a key, and no record.
//!
//! How many there are of one value depends on how often its window was emitted. That each value which does not fit has
//! one, and that none speaks of a window without rows, does not.

use super::compare::Encoder;
use super::deep::failed;
use super::source_rows::{Part, SourceRows};
use super::structure::SHOWN;
use super::{Finding, RowFinding, VerifyError, instant};
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// A group with a value that its type cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    table: String,
    window_us: i64,
    /// Values of the group key, without the window's bounds.
    key: Vec<String>,
    /// The entry at which it was emitted last, with all of its rows.
    at: u64,
}

/// The groups of these rows that were lost at their last emission, of those that were last emitted in `during`.
/// `shown_at`: the entry at which a window is shown first.
pub fn lost_of(table: &str, parts: &[&Part], during: Range<u64>, unfit: &RecordBatch, as_of: u64, shown_at: &dyn Fn(i64) -> Option<u64>) -> Result<Vec<Lost>, VerifyError> {
    let places: Vec<usize> = (0..unfit.num_columns()).collect();
    let types: Vec<DataType> = unfit.columns().iter().map(|c| c.data_type().clone()).collect();
    let encoder = Encoder::new(&types, &places, &BTreeSet::new()).map_err(failed)?;
    let mut newest: HashMap<Vec<u8>, u64> = encoder.encode(unfit).map_err(failed)?.into_iter().map(|(bytes, _)| (bytes, 0)).collect();
    for part in parts {
        let keys = encoder.encode(&part.values.project(&places).map_err(failed)?).map_err(failed)?;
        for (lineage, (bytes, _)) in part.lineage.iter().zip(keys).filter(|(l, _)| l.entry <= as_of) {
            newest.entry(bytes).and_modify(|at| *at = (*at).max(lineage.entry));
        }
    }
    let options = FormatOptions::default().with_null("null");
    let schema = unfit.schema();
    let bound = |name: &str| matches!(name, "window_start" | "window_end");
    let Some(starts) = unfit.column_by_name("window_start").and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>()) else { return Ok(vec![]) };
    let mut lost = vec![];
    for (row, (bytes, _)) in encoder.encode(unfit).map_err(failed)?.into_iter().enumerate() {
        let Some(first) = shown_at(starts.value(row)) else { continue };
        let mut key = vec![];
        for (column, _) in unfit.columns().iter().zip(schema.fields()).filter(|(_, f)| !bound(f.name())) {
            key.push(ArrayFormatter::try_new(column.as_ref(), &options).map_err(failed)?.value(row).to_string());
        }
        let at = newest.get(&bytes).copied().unwrap_or(0).max(first);
        if !during.contains(&at) {
            continue;
        }
        lost.push(Lost { table: table.to_string(), window_us: starts.value(row), key, at });
    }
    Ok(lost)
}

/// Letters without a record that a dead-letter table holds: table and reason.
#[derive(Default)]
pub struct Letters {
    found: Vec<(String, String)>,
}

/// The window of a letter, to the second as it is written.
fn begins(window_us: i64) -> String {
    let second = chrono::DateTime::from_timestamp_micros(window_us).map(|t| t.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    format!("window {}, key ", second.unwrap_or_else(|| format!("{window_us} us")))
}

fn speaks_of(reason: &str, lost: &Lost) -> bool {
    let Some(rest) = reason.strip_prefix(&begins(lost.window_us)) else { return false };
    // `name=value, name=value: column …`, in the order of the group key.
    let mut at = 0;
    lost.key.iter().enumerate().all(|(nth, value)| {
        let end = if nth + 1 == lost.key.len() { ": column " } else { ", " };
        match rest[at..].find(&format!("={value}{end}")) {
            Some(found) => {
                at += found + 1 + value.len();
                true
            }
            None => false,
        }
    })
}

impl Letters {
    pub fn take(&mut self, batch: &RecordBatch) {
        let text = |name: &str| batch.column_by_name(name).and_then(|c| cast(c, &DataType::Utf8).ok());
        let (Some(partition), Some(table), Some(reason)) = (batch.column_by_name("_partition"), text("_table"), text("_reason")) else { return };
        let (table, reason) = (table.as_string::<i32>(), reason.as_string::<i32>());
        let value = |a: &arrow::array::StringArray, i: usize| if a.is_valid(i) { a.value(i).to_string() } else { String::new() };
        self.found.extend((0..batch.num_rows()).filter(|i| partition.is_null(*i)).map(|i| (value(table, i), value(reason, i))));
    }

    /// Against what was lost up to the entry as of which the table is judged. `whole`: tables of which every window is
    /// known, from the log's beginning on.
    pub fn against(&self, lost: &[Lost], rows: &SourceRows, (since, as_of): (u64, u64), whole: &BTreeSet<&str>) -> Vec<Finding> {
        let mut findings = vec![];
        let due = lost.iter().filter(|l| l.at <= as_of && l.at > since);
        let missing: Vec<&Lost> = due.filter(|l| !self.found.iter().any(|(table, reason)| *table == l.table && speaks_of(reason, l))).collect();
        let row = |key: String, window: Option<String>, expected: Option<String>, found: Option<String>| RowFinding { key, window, expected, found, offsets: vec![], records: 0 };
        if !missing.is_empty() {
            let text = format!("{} keys have a value that does not fit its type, and no dead letter that says so", missing.len());
            let mut finding = Finding::new("overflow-missing", text).times(missing.len());
            let told = |l: &&Lost| row(format!("table {}, key ({})", l.table, l.key.join(", ")), Some(instant(l.window_us)), Some("a dead letter".into()), None);
            finding.rows = missing.iter().take(SHOWN).map(told).collect();
            findings.push(finding);
        }
        let mut windows: HashMap<&str, BTreeSet<String>> = HashMap::new();
        for (name, table) in rows.tables.iter().filter(|(name, _)| whole.contains(name.as_str())) {
            let starts: BTreeSet<i64> = table.parts.iter().flat_map(|p| p.windows.iter().map(|w| w.0)).collect();
            windows.insert(name, starts.into_iter().map(begins).collect());
        }
        let known = |table: &str, reason: &str| windows.get(table).is_none_or(|of| of.iter().any(|w| reason.starts_with(w.as_str())));
        let strange: Vec<&(String, String)> = self.found.iter().filter(|(table, reason)| !known(table, reason)).collect();
        if !strange.is_empty() {
            let text = format!("{} dead letters without a record speak of a window that has no row", strange.len());
            let mut finding = Finding::new("overflow-extra", text).times(strange.len());
            finding.rows = strange.iter().take(SHOWN).map(|(table, reason)| row(format!("table {table}"), None, None, Some(reason.clone()))).collect();
            findings.push(finding);
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_speaks_of_one_window_and_key() {
        let lost = |key: &[&str]| Lost { table: "t".into(), window_us: 1_769_853_600_000_000, key: key.iter().map(|k| k.to_string()).collect(), at: 1 };
        let letter = "window 2026-01-31T10:00:00Z, key user=ann, city=new york: column sum(id): the sum does not fit its type Int64";
        assert!(speaks_of(letter, &lost(&["ann", "new york"])));
        assert!(!speaks_of(letter, &lost(&["an", "new york"])) && !speaks_of(letter, &lost(&["ann", "york"])) && !speaks_of(letter, &lost(&["ann", "new"])));
        assert!(!speaks_of(&letter.replace("10:00", "10:05"), &lost(&["ann", "new york"])));
        assert!(speaks_of("window 2026-01-31T10:00:00Z, key : column n: why", &lost(&[])));
    }
}
