//! Position deletes of an Iceberg table: which rows each file takes from which data files, and whether readers would
//! agree. They find the deletes of a data file by its location, letter by letter, by bounds of these locations, by
//! partition and by sequence number: what misses in one of them leaves deleted rows in the table.

use super::structure::TableState;
use super::{Finding, Lake, footer};
use crate::pipeline::TableFormatKind;
use crate::read::LiveFile;
use crate::store::iceberg_io::LakeRoot;
use ::iceberg::metadata_columns::{RESERVED_FIELD_ID_DELETE_FILE_PATH as FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS as POS};
use ::iceberg::spec::{DataFile, Datum, PrimitiveLiteral, Struct};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;

/// A data file that readers see.
pub struct Live {
    pub sequence: i64,
    /// As its manifest writes it.
    pub location: String,
    pub partition: (i32, Struct),
    pub file: LiveFile,
}

pub struct DeleteFile {
    pub sequence: i64,
    pub path: String,
    pub spec_id: i32,
    pub said: DataFile,
}

/// Takes the rows of one delete file out of the live files.
pub async fn apply(lake: &Lake, root: &LakeRoot, delete: &DeleteFile, live: &mut BTreeMap<String, Live>, state: &mut TableState, table: &str) {
    let path = &delete.path;
    let (bytes, records) = (delete.said.file_size_in_bytes(), delete.said.record_count());
    let mut say = |kind: &'static str, text: String| state.findings.push(Finding::new(kind, text).of(table, TableFormatKind::Iceberg));
    let data = match footer::object(lake, path).await {
        Ok(Some(data)) => data,
        Ok(None) => return say("delete-file-missing", format!("position-delete file {path} is named and not there: {records} deleted rows are back")),
        Err(e) => return say("delete-file-unreadable", format!("position-delete file {path}: {e}")),
    };
    if data.len() as u64 != bytes {
        say("file-size", format!("position-delete file {path} has {} bytes, the table says {bytes}", data.len()));
    }
    let positions = match footer::positions(data) {
        Ok(positions) => positions,
        Err(e) => return say("delete-file-unreadable", format!("position-delete file {path}: {e}")),
    };
    let held: u64 = positions.values().map(|p| p.len()).sum();
    if held != records {
        say("delete-file-rows", format!("position-delete file {path} deletes {held} rows, the table says {records}"));
    }
    for text in narrow(&delete.said, &positions) {
        say("delete-bounds", format!("position-delete file {path} {text}: readers may leave it out, and deleted rows are back"));
    }
    for (target, positions) in positions {
        let place = root.relative(&target);
        let Some(Live { sequence, location, partition, file }) = place.and_then(|t| live.get_mut(t)) else {
            // A compaction of others leaves deletes behind; what expired snapshots named nobody knows.
            if state.all_commits && place.is_none_or(|t| !state.referenced.contains(t)) {
                say("delete-target", format!("position-delete file {path} deletes {} rows of {target}, which no snapshot names", positions.len()));
            }
            continue;
        };
        if let Some(beyond) = positions.max().filter(|m| *m >= file.records) {
            say("delete-file-rows", format!("position-delete file {path} deletes row {beyond} of {}, which has {} rows", file.path, file.records));
        }
        let rows = positions.len();
        let back = |why: String| format!("position-delete file {path} deletes {rows} rows of {}, {why}: readers leave it out, and the rows are back", file.path);
        if *location != target {
            say("delete-target", back(format!("which it calls {target}, and its manifest {location}")));
        }
        if *partition != (delete.spec_id, delete.said.partition().clone()) {
            say("delete-target", back("which lies in another partition".into()));
        }
        if *sequence > delete.sequence {
            say("delete-target", back(format!("which is younger: its sequence number is {sequence}, that of the deletes {}", delete.sequence)));
        } else {
            file.deleted |= positions;
        }
    }
}

/// What a manifest says of a delete file that leaves out some of its rows.
fn narrow(said: &DataFile, positions: &BTreeMap<String, RoaringTreemap>) -> Vec<String> {
    let mut wrong = vec![];
    let text = |d: Option<&Datum>| match d.map(Datum::literal) {
        Some(PrimitiveLiteral::String(text)) => Some(text.clone()),
        _ => None,
    };
    let number = |d: Option<&Datum>| match d.map(Datum::literal) {
        Some(PrimitiveLiteral::Long(n)) => Some(i128::from(*n)),
        _ => None,
    };
    let (lower, upper) = (text(said.lower_bounds().get(&FILE_PATH)), text(said.upper_bounds().get(&FILE_PATH)));
    let outside = |path: &&String| lower.as_ref().is_some_and(|l| path.as_bytes() < l.as_bytes()) || upper.as_ref().is_some_and(|u| path.as_bytes() > u.as_bytes());
    if let Some(path) = positions.keys().find(outside) {
        wrong.push(format!("deletes rows of {path}, and its bounds are {} to {}", lower.as_deref().unwrap_or("none"), upper.as_deref().unwrap_or("none")));
    }
    let (lower, upper) = (number(said.lower_bounds().get(&POS)), number(said.upper_bounds().get(&POS)));
    let (least, most) = (positions.values().filter_map(RoaringTreemap::min).min(), positions.values().filter_map(RoaringTreemap::max).max());
    if let Some((least, most)) = least.zip(most)
        && (lower.is_some_and(|l| i128::from(least) < l) || upper.is_some_and(|u| i128::from(most) > u))
    {
        let show = |bound: Option<i128>| bound.map_or("none".to_string(), |b| b.to_string());
        wrong.push(format!("deletes rows {least} to {most}, and its bounds are {} to {}", show(lower), show(upper)));
    }
    if let Some(only) = said.referenced_data_file().filter(|only| positions.keys().any(|p| p != only)) {
        wrong.push(format!("is said to be of {only} alone, and deletes rows of others"));
    }
    wrong
}
