//! Rows that may be in a table but once: of one key, of one source record, and of one group after what was taken back.
//! A file that is there twice, or a copy of it under another name, is found by its rows.

use super::shown::Shown;
use super::structure::{Role, SHOWN};
use super::{Finding, RowFinding};
use crate::pipeline::TableFormatKind;
use crate::pipeline::sql::OP;
use crate::stage::TableSpec;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::collections::{HashMap, HashSet};

/// Hashes that do not meet another's by chance.
type Hash = u128;

enum Rule {
    /// Each row is alone: by its key, or by the record that it came from, if it came from one.
    Alone { kind: &'static str, of_record: bool, seen: HashSet<Hash>, twice: usize, shown: Vec<RowFinding> },
    /// Insertions less retractions, by row and by group.
    Balance { op: usize, rows: HashMap<Hash, i64>, groups: Option<(Columns, HashMap<Hash, i64>)> },
}

pub struct Once {
    by: Columns,
    rule: Rule,
}

/// Columns of the table, by which rows are told apart.
struct Columns {
    places: Vec<usize>,
    names: Vec<String>,
    converter: RowConverter,
}

impl Columns {
    fn new(schema: &SchemaRef, places: Vec<usize>) -> Option<Self> {
        let fields = places.iter().map(|c| SortField::new(schema.field(*c).data_type().clone())).collect();
        let names = places.iter().map(|c| schema.field(*c).name().clone()).collect();
        Some(Self { converter: RowConverter::new(fields).ok()?, places, names })
    }

    /// `read`: which columns of the table the batch has, ascending.
    fn of(&self, batch: &RecordBatch, read: &[usize]) -> Vec<ArrayRef> {
        self.places.iter().filter_map(|c| read.binary_search(c).ok()).map(|at| batch.column(at).clone()).collect()
    }

    fn hashes(&self, batch: &RecordBatch, read: &[usize]) -> Result<Vec<Hash>, String> {
        let rows = self.converter.convert_columns(&self.of(batch, read)).map_err(|e| e.to_string())?;
        Ok(rows.iter().map(|row| twox_hash::XxHash3_128::oneshot(row.data())).collect())
    }

    fn show(&self, columns: &[ArrayRef], row: usize) -> String {
        let options = FormatOptions::default().with_null("null");
        let value = |c: &ArrayRef| ArrayFormatter::try_new(c.as_ref(), &options).map_or_else(|_| "?".into(), |f| f.value(row).to_string());
        self.names.iter().zip(columns).map(|(name, c)| format!("{name}={}", value(c))).collect::<Vec<_>>().join(", ")
    }
}

impl Once {
    /// `None`: of this table any row may be there any number of times.
    pub fn of(spec: &TableSpec, format: TableFormatKind, role: &Role, shown: Option<&Shown>, schema: &SchemaRef) -> Option<Self> {
        let named = |names: &[&str]| names.iter().map(|n| schema.index_of(n).ok()).collect::<Option<Vec<usize>>>();
        let alone = |kind, of_record| Rule::Alone { kind, of_record, seen: HashSet::new(), twice: 0, shown: vec![] };
        let (places, rule) = match role {
            _ if !spec.key.is_empty() => (named(&spec.key.iter().map(String::as_str).collect::<Vec<_>>())?, alone("key-twice", false)),
            Role::Dead(_) => (named(&["_topic", "_partition", "_offset", "_table"])?, alone("row-twice", true)),
            Role::Late(_) => (named(&["_topic", "_partition", "_offset", "window_start"])?, alone("row-twice", true)),
            Role::Declared { .. } => {
                // Rows from before and after a change of the SQL do not show the same.
                let shown = shown.filter(|s| s.unchanged)?;
                let op = schema.index_of(OP).ok()?;
                if schema.fields().iter().any(|f| f.data_type().is_nested()) {
                    return None;
                }
                // Two texts may be read as one null where they partition a Delta table.
                let merged = |c: &usize| format == TableFormatKind::Delta && schema.field(*c).is_nullable() && spec.partition_fields(format).iter().any(|p| p.column == *schema.field(*c).name());
                let groups = match shown.groups.as_ref().filter(|places| !places.iter().any(merged)) {
                    Some(places) => Some((Columns::new(schema, places.clone())?, HashMap::new())),
                    None => None,
                };
                let exact = (0..schema.fields().len()).filter(|c| *c != op && !shown.inexact.contains(c)).collect();
                (exact, Rule::Balance { op, rows: HashMap::new(), groups })
            }
        };
        Some(Self { by: Columns::new(schema, places)?, rule })
    }

    /// Whether it has to see this column of the table.
    pub fn needs(&self, column: usize) -> bool {
        let more = match &self.rule {
            Rule::Balance { op, .. } => *op == column,
            Rule::Alone { .. } => false,
        };
        more || self.by.places.contains(&column)
    }

    /// Rows that readers see. `read`: which columns of the table the batch has, ascending.
    pub fn take(&mut self, batch: &RecordBatch, read: &[usize], path: &str) -> Result<(), String> {
        let hashes = self.by.hashes(batch, read)?;
        match &mut self.rule {
            Rule::Alone { of_record, seen, twice, shown, .. } => {
                let columns = self.by.of(batch, read);
                // Letters of what did not fit came from no one record.
                let partition = self.by.names.iter().position(|n| n == "_partition").filter(|_| *of_record).map(|at| &columns[at]);
                for (row, hash) in hashes.into_iter().enumerate() {
                    if partition.is_some_and(|p| p.is_null(row)) || seen.insert(hash) {
                        continue;
                    }
                    *twice += 1;
                    if shown.len() < SHOWN {
                        let key = self.by.show(&columns, row);
                        shown.push(RowFinding { key, window: None, expected: None, found: Some(format!("again in {path}")), offsets: vec![], records: 0 });
                    }
                }
            }
            Rule::Balance { op, rows, groups } => {
                let op = read.binary_search(op).map_err(|_| "_op was not read".to_string())?;
                let ops = cast(batch.column(op), &DataType::Utf8).map_err(|e| e.to_string())?;
                let steps: Vec<i64> = ops.as_string::<i32>().iter().map(|op| if op == Some("insert") { 1 } else { -1 }).collect();
                add(rows, &hashes, &steps);
                if let Some((by, groups)) = groups {
                    add(groups, &by.hashes(batch, read)?, &steps);
                }
            }
        }
        Ok(())
    }

    /// `theirs`: others changed rows; `all`: every commit of the table is known.
    pub fn findings(self, theirs: bool, all: bool) -> Vec<Finding> {
        match self.rule {
            Rule::Alone { twice: 0, .. } => vec![],
            Rule::Alone { kind, of_record, twice, shown, .. } => {
                let what = if of_record { "are of a source record of which another row is" } else { "have a key that another row has" };
                let mut finding = Finding::new(kind, format!("{twice} rows {what}")).times(twice);
                finding.rows = shown;
                vec![finding]
            }
            // What others took out or put in need not add up.
            Rule::Balance { .. } if theirs => vec![],
            Rule::Balance { rows, groups, .. } => {
                let over = |net: &HashMap<Hash, i64>| net.values().map(|n| (n - 1).max(0)).sum::<i64>();
                let twice = groups.map_or(0, |(_, groups)| over(&groups).max(over(&rows)));
                let unmatched: i64 = rows.values().map(|n| (-n).max(0)).sum();
                let others = if all { "" } else { "; of its commits only the newest are retained, and others may have made some of those that are not" };
                let mut found = vec![];
                if twice > 0 {
                    found.push(Finding::new("row-twice", format!("{twice} rows are in it of groups that have a row already, which no retraction took back{others}")).times(twice as usize));
                }
                if unmatched > 0 {
                    found.push(Finding::new("retract-unmatched", format!("{unmatched} rows are retracted that were not inserted{others}")).times(unmatched as usize));
                }
                found
            }
        }
    }
}

fn add(net: &mut HashMap<Hash, i64>, hashes: &[Hash], steps: &[i64]) {
    for (hash, step) in hashes.iter().zip(steps) {
        let sum = net.entry(*hash).or_default();
        *sum += step;
        if *sum == 0 {
            net.remove(hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    /// A table `n, v, _op`, of which `n` is the group.
    fn once(groups: Option<Vec<usize>>) -> (Once, SchemaRef) {
        let field = |n: &str, ty| Field::new(n, ty, true);
        let schema = Arc::new(Schema::new(vec![field("n", DataType::Int64), field("v", DataType::Int64), field(OP, DataType::Utf8)]));
        let spec = TableSpec { name: "t".into(), schema: schema.clone(), key: vec![], formats: vec![], partition_by: vec![], properties: BTreeMap::new(), comment: None };
        let shown = Shown { window: Some(0), groups, inexact: BTreeSet::new(), unchanged: true, takes_all: true };
        (Once::of(&spec, TableFormatKind::Iceberg, &Role::Declared { windowed: true }, Some(&shown), &schema).unwrap(), schema)
    }

    fn kinds(groups: Option<Vec<usize>>, files: &[&[(i64, i64, &str)]]) -> Vec<(&'static str, u64)> {
        let (mut once, schema) = once(groups);
        for rows in files {
            let ints = |of: fn(&(i64, i64, &str)) -> i64| Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) as ArrayRef;
            let ops: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.2)));
            let batch = RecordBatch::try_new(schema.clone(), vec![ints(|r| r.0), ints(|r| r.1), ops]).unwrap();
            once.take(&batch, &[0, 1, 2], "f").unwrap();
        }
        once.findings(false, true).iter().map(|f| (f.kind, f.count)).collect()
    }

    #[test]
    fn a_group_has_one_row_after_what_was_taken_back() {
        let (first, second): (&[_], &[_]) = (&[(1, 5, "insert"), (2, 6, "insert")], &[(1, 5, "retract"), (1, 7, "insert"), (2, 6, "retract")]);
        let by_group = || Some(vec![0]);
        assert_eq!(kinds(by_group(), &[second, first]), [], "in whatever order the files come");
        assert_eq!(kinds(by_group(), &[first, first]), [("row-twice", 2)]);
        // What was taken back stands again, beside what took its place.
        assert_eq!(kinds(by_group(), &[first, second, first]), [("row-twice", 1)]);
        assert_eq!(kinds(by_group(), &[first, second, second]), [("row-twice", 1), ("retract-unmatched", 2)]);
        // Groups that look alike may each have such a row.
        assert_eq!(kinds(None, &[first, first]), []);
        assert_eq!(kinds(None, &[first, second, second]), [("retract-unmatched", 2)]);
    }
}
