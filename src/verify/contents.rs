//! A table's files read once, row by row: what may be there but once is, and what readers prune by holds every row.

use super::bounds::{Claim, Range, by_footer, misplaced};
use super::facts::Facts;
use super::once::Once;
use super::shown::{Open, Shown};
use super::structure::{Commit, Role, TableState};
use super::{Finding, Lake, VerifyError, columns, footer};
use crate::pipeline::TableFormatKind;
use crate::read::{LiveFile, delta_schema, live_rows};
use crate::stage::TableSpec;
use crate::stage::names;
use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use parquet::file::metadata::ParquetMetaData;
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Every live file is there, as long as it should be, with as many rows, and with the rows that are said of it.
pub async fn check(lake: &Lake, facts: &Facts, spec: &TableSpec, role: &Role, shown: Option<&Shown>, state: &mut TableState) -> Result<(), VerifyError> {
    let mut reading = Reading::new(facts, spec, role, shown, state.format);
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
        for (kind, column, text) in columns::check(&metadata, &reading.schema, state.format, state.name_mapping) {
            reading.say(kind, column, "its footer", path, text);
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
    // What others took away of it, insertions and their retractions add up to no more.
    let strange = |f: &LiveFile| names::owner(names::file_name(&f.path)).is_none();
    let theirs = state.commits.iter().any(Commit::changed_rows_and_is_not_ours) || (!state.all_commits && state.files.iter().any(strange));
    state.open_windows = std::mem::take(&mut reading.open_windows);
    found.extend(reading.findings(theirs, state.all_commits));
    state.findings.extend(found.into_iter().map(|f| f.of(&spec.name, state.format)));
    Ok(())
}

/// Goes through a table's files.
struct Reading {
    /// In which the files are read: what a format shows of the columns.
    schema: SchemaRef,
    /// Places of the columns that are not nested.
    plain: Vec<usize>,
    once: Option<Once>,
    open: Option<Open>,
    open_windows: BTreeSet<i64>,
    /// By kind, column and who says it: how many files, and what is said of the first.
    wrong: BTreeMap<(&'static str, String, String), (usize, String)>,
}

impl Reading {
    fn new(facts: &Facts, spec: &TableSpec, role: &Role, shown: Option<&Shown>, format: TableFormatKind) -> Self {
        let schema = match format {
            TableFormatKind::Iceberg => spec.schema.clone(),
            TableFormatKind::Delta => Arc::new(delta_schema(&spec.schema)),
        };
        let plain = (0..schema.fields().len()).filter(|c| !schema.field(*c).data_type().is_nested()).collect();
        let once = Once::of(spec, format, role, shown, &schema);
        let open = shown.and_then(|s| Open::of(facts, spec, s));
        Self { schema, plain, once, open, open_windows: BTreeSet::new(), wrong: BTreeMap::new() }
    }

    /// Reads the file's columns that are not nested, deleted rows included, and compares its row groups with its footer.
    /// What each column holds, by its place in the table. `None`: it was cut short while it was read.
    async fn rows(&mut self, lake: &Lake, file: &LiveFile, metadata: &ParquetMetaData) -> Result<Option<Vec<Range>>, String> {
        let columns: Vec<usize> = (0..self.schema.fields().len()).filter(|c| self.plain.contains(c) || self.once.as_ref().is_some_and(|o| o.needs(*c))).collect();
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
                if let Some(once) = &mut self.once {
                    once.take(&live, &columns, &file.path)?;
                }
                self.windows(&live, &columns, &file.path);
                at += n as u64;
            }
        }
        self.close(&mut of_group, &mut of_file, &claims, &file.path);
        Ok((at == file.records).then_some(of_file))
    }

    /// Which windows that may still be corrected are shown. Of rows that others wrote, or that were moved together with
    /// theirs, nobody has to know.
    fn windows(&mut self, live: &RecordBatch, places: &[usize], path: &str) {
        let Some(open) = self.open.as_mut().filter(|_| names::file_name(path).starts_with("emit-") && names::owner(names::file_name(path)).is_some()) else { return };
        let column = places.binary_search(&open.column()).ok().and_then(|at| live.column(at).as_primitive_opt::<TimestampMicrosecondType>());
        for start in column.into_iter().flatten().flatten() {
            if !self.open_windows.contains(&start) && open.is(start) {
                self.open_windows.insert(start);
            }
        }
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

    /// `theirs`: others changed rows; `all`: every commit is known.
    fn findings(self, theirs: bool, all: bool) -> Vec<Finding> {
        let mut found = vec![];
        for ((kind, column, _), (files, first)) in self.wrong {
            let what = match kind {
                "bounds" => format!("bounds of column {column} exclude a row of file"),
                "column-counts" => format!("counts of column {column} are not those of file"),
                "field-ids" => format!("column {column} is another to readers in file"),
                "time-zone" => format!("values of column {column} are other ones to readers in file"),
                _ => format!("the partition value of {column} is not that of the rows of file"),
            };
            let more = if files > 1 { format!(" ({} files more)", files - 1) } else { String::new() };
            let cost = if matches!(kind, "field-ids" | "time-zone") { "" } else { ": readers may leave rows out" };
            found.push(Finding::new(kind, format!("{what} {first}{more}{cost}")).times(files));
        }
        found.extend(self.once.into_iter().flat_map(|o| o.findings(theirs, all)));
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
