//! A table's files read once, row by row: keys are there once, and what readers prune by holds every row.

use super::bounds::{Claim, Range, by_footer, misplaced};
use super::structure::{SHOWN, TableState};
use super::{Finding, Lake, RowFinding, VerifyError, footer};
use crate::pipeline::TableFormatKind;
use crate::read::{LiveFile, delta_schema, live_rows};
use crate::stage::TableSpec;
use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use parquet::file::metadata::ParquetMetaData;
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Every live file is there, as long as it should be, with as many rows, and with the rows that are said of it.
pub async fn check(lake: &Lake, spec: &TableSpec, state: &mut TableState) -> Result<(), VerifyError> {
    let mut reading = Reading::new(spec, state.format);
    let mut found = vec![];
    for file in &mut state.files {
        let path = file.path.as_str();
        let Some(bytes) = footer::size(lake, path).await.map_err(VerifyError::Unavailable)? else {
            found.push(Finding::new("file-missing", format!("data file {path} with {} rows is named and not there", file.records)));
            continue;
        };
        if bytes != file.bytes {
            found.push(Finding::new("file-size", format!("data file {path} has {bytes} bytes, the table says {}", file.bytes)));
            // What lies there is compared all the same.
            file.bytes = bytes;
        }
        let metadata = match footer::metadata(lake, path, bytes).await {
            Ok(metadata) => metadata,
            Err(e) => {
                found.push(Finding::new("file-unreadable", format!("data file {path} is no whole Parquet file: {e}")));
                continue;
            }
        };
        let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        if rows != file.records {
            found.push(Finding::new("file-rows", format!("data file {path} holds {rows} rows, the table says {}", file.records)));
            file.records = rows;
        }
        let said = state.said.get(path);
        let place = misplaced(spec, &state.folder, file).map(|text| ("partition-value", "its path", "the table".to_string(), text));
        let mut claims = vec![];
        if let Some(said) = said {
            claims = said.claims(&reading.schema, &reading.plain, !file.deleted.is_empty());
        }
        match reading.rows(lake, file, &metadata).await {
            Ok(Some(columns)) => {
                for claim in claims {
                    reading.meet("the table", &claim, &columns[claim.column], path);
                }
                for claim in said.map(|s| s.partition(&spec.schema)).unwrap_or_default() {
                    if let Some(text) = claim.against(&columns[claim.column], reading.schema.field(claim.column)) {
                        reading.say("partition-value", reading.schema.field(claim.column).name().clone(), "the table", path, text);
                    }
                }
            }
            Ok(None) => {}
            Err(e) => found.push(Finding::new("file-unreadable", e)),
        }
        if let Some((kind, column, by, text)) = place {
            reading.say(kind, column.to_string(), &by, path, text);
        }
    }
    found.extend(reading.findings());
    state.findings.extend(found.into_iter().map(|f| f.of(&spec.name, state.format)));
    Ok(())
}

/// Goes through a table's files.
struct Reading {
    /// In which the files are read: what a format shows of the columns.
    schema: SchemaRef,
    /// Places of the columns that are not nested.
    plain: Vec<usize>,
    keys: Option<Keys>,
    /// By kind, column and who says it: how many files, and what is said of the first.
    wrong: BTreeMap<(&'static str, String, String), (usize, String)>,
}

impl Reading {
    fn new(spec: &TableSpec, format: TableFormatKind) -> Self {
        let schema = match format {
            TableFormatKind::Iceberg => spec.schema.clone(),
            TableFormatKind::Delta => Arc::new(delta_schema(&spec.schema)),
        };
        let plain = (0..schema.fields().len()).filter(|c| !schema.field(*c).data_type().is_nested()).collect();
        let keys = Keys::new(spec, &schema);
        Self { schema, plain, keys, wrong: BTreeMap::new() }
    }

    /// Reads the file's columns that are not nested, deleted rows included, and compares its row groups with its footer.
    /// What each column holds, by its place in the table. `None`: it was cut short while it was read.
    async fn rows(&mut self, lake: &Lake, file: &LiveFile, metadata: &ParquetMetaData) -> Result<Option<Vec<Range>>, String> {
        let columns: Vec<usize> = (0..self.schema.fields().len()).filter(|c| self.plain.contains(c) || self.keys.as_ref().is_some_and(|k| k.columns.contains(c))).collect();
        let names: Vec<String> = columns.iter().map(|c| self.schema.field(*c).name().clone()).collect();
        // A partition column that the file does not hold has no bounds in it.
        let own: Vec<usize> = self.plain.iter().copied().filter(|c| !file.partition_values.contains_key(self.schema.field(*c).name())).collect();
        let said = by_footer(metadata, &self.schema, &own);
        let mut groups = metadata.row_groups().iter().map(|g| u64::try_from(g.num_rows()).unwrap_or(0)).zip(said);
        let whole = LiveFile { deleted: RoaringTreemap::new(), ..file.clone() };
        let mut stream = live_rows(lake.store.clone(), &whole, &self.schema, Some(&names), 8192);
        let none = || vec![Range::default(); self.schema.fields().len()];
        let (mut of_file, mut of_group) = (none(), none());
        let (mut at, mut end, mut claims) = (0, 0, vec![]);
        loop {
            let Some(mut batch) = stream.try_next().await.map_err(|e| e.to_string())? else { break };
            while batch.num_rows() > 0 {
                while at == end {
                    self.close(&mut of_group, &mut of_file, &claims, &file.path);
                    let Some((rows, said)) = groups.next() else { return Ok(None) };
                    (end, claims) = (end + rows, said);
                }
                let n = (batch.num_rows() as u64).min(end - at) as usize;
                let part = batch.slice(0, n);
                batch = batch.slice(n, batch.num_rows() - n);
                let live = live_part(&part, at, &file.deleted)?;
                for &column in &self.plain {
                    if let Ok(place) = columns.binary_search(&column) {
                        of_group[column].take(part.column(place), live.column(place));
                    }
                }
                if let Some(keys) = &mut self.keys {
                    keys.take(&live, &columns, &file.path)?;
                }
                at += n as u64;
            }
        }
        self.close(&mut of_group, &mut of_file, &claims, &file.path);
        Ok((at == file.records).then_some(of_file))
    }

    /// A row group is at its end.
    fn close(&mut self, group: &mut [Range], file: &mut [Range], claims: &[Claim], path: &str) {
        for claim in claims {
            self.meet("its footer", claim, &group[claim.column], path);
        }
        for (group, file) in group.iter_mut().zip(file) {
            file.merge(&std::mem::take(group));
        }
    }

    fn meet(&mut self, by: &str, claim: &Claim, found: &Range, path: &str) {
        let schema = self.schema.clone();
        let field = schema.field(claim.column);
        for (kind, text) in claim.against(found, field) {
            self.say(kind, field.name().clone(), by, path, text);
        }
    }

    fn say(&mut self, kind: &'static str, column: String, by: &str, path: &str, text: String) {
        let known = self.wrong.entry((kind, column, by.to_string())).or_insert_with(|| (0, format!("{path}: {by} {text}")));
        known.0 += 1;
    }

    fn findings(self) -> Vec<Finding> {
        let mut found = vec![];
        for ((kind, column, _), (files, first)) in self.wrong {
            let what = match kind {
                "bounds" => format!("bounds of column {column} exclude a row of file"),
                "column-counts" => format!("counts of column {column} are not those of file"),
                _ => format!("the partition value of {column} is not that of the rows of file"),
            };
            let more = if files > 1 { format!(" ({} files more)", files - 1) } else { String::new() };
            found.push(Finding::new(kind, format!("{what} {first}{more}: readers may leave rows out")).times(files));
        }
        found.extend(self.keys.and_then(Keys::finding));
        found
    }
}

fn live_part(part: &RecordBatch, first: u64, deleted: &RoaringTreemap) -> Result<RecordBatch, String> {
    let n = part.num_rows() as u64;
    if deleted.range_cardinality(first..first + n) == 0 {
        return Ok(part.clone());
    }
    let live: BooleanArray = (first..first + n).map(|at| Some(!deleted.contains(at))).collect();
    filter_record_batch(part, &live).map_err(|e| e.to_string())
}

/// Keys that were seen, by a hash that does not meet another's by chance.
struct Keys {
    columns: Vec<usize>,
    names: Vec<String>,
    converter: RowConverter,
    seen: HashSet<u128>,
    twice: usize,
    shown: Vec<RowFinding>,
}

impl Keys {
    /// `None` without a key.
    fn new(spec: &TableSpec, schema: &SchemaRef) -> Option<Self> {
        if spec.key.is_empty() {
            return None;
        }
        let columns = spec.key.iter().map(|k| schema.index_of(k).ok()).collect::<Option<Vec<usize>>>()?;
        let fields = columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone())).collect();
        Some(Self { columns, names: spec.key.clone(), converter: RowConverter::new(fields).ok()?, seen: HashSet::new(), twice: 0, shown: vec![] })
    }

    /// `places`: what columns of the table the batch has.
    fn take(&mut self, batch: &RecordBatch, places: &[usize], path: &str) -> Result<(), String> {
        let columns: Vec<_> = self.columns.iter().filter_map(|c| places.binary_search(c).ok()).map(|at| batch.column(at).clone()).collect();
        let encoded = self.converter.convert_columns(&columns).map_err(|e| e.to_string())?;
        let options = FormatOptions::default().with_null("null");
        for (nth, row) in encoded.iter().enumerate() {
            if self.seen.insert(twox_hash::XxHash3_128::oneshot(row.data())) {
                continue;
            }
            self.twice += 1;
            if self.shown.len() < SHOWN {
                let key = self.names.iter().zip(&columns).map(|(k, c)| {
                    format!("{k}={}", ArrayFormatter::try_new(c.as_ref(), &options).map_or_else(|_| "?".into(), |f| f.value(nth).to_string()))
                });
                let key = key.collect::<Vec<_>>().join(", ");
                self.shown.push(RowFinding { key, window: None, expected: None, found: Some(format!("again in {path}")), offsets: vec![], records: 0 });
            }
        }
        Ok(())
    }

    fn finding(self) -> Option<Finding> {
        let mut finding = Finding::new("key-twice", format!("{} rows have a key that another row has", self.twice)).times(self.twice);
        finding.rows = self.shown;
        (self.twice > 0).then_some(finding)
    }
}
