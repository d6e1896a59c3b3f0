//! Runs at rest: all runs of an epoch in one object, each readable by itself.
//!
//! ```text
//!   object  = "MPRUNS" version(u16) segment*
//!   segment = "MPRN" version(u16) bucket(u8) last bucket(u8) xxh3(u64, of the body) body
//!   body    = one Arrow IPC stream, buffers lz4
//! ```
//! Integers are little-endian. A [`RunRef`] in the log's entry says where a segment lies; a segment that was cut
//! short or changed is never taken for data.
//!
//! A run may hold one bucket of an epoch's keys, cut by a stable hash, so that big states can be folded in parts:
//! this version writes the bucket 0 of 0..=0, all keys, and reads any, since it merges all runs of a window
//! whatever they were cut by. A version that cuts needs no new format.

use crate::run::{Run, RunKind};
use arrow::array::RecordBatchOptions;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::ipc::{CompressionType, reader::StreamReader};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

const OBJECT_MAGIC: &[u8; 6] = b"MPRUNS";
const SEGMENT_MAGIC: &[u8; 4] = b"MPRN";
const SEGMENT_HEADER: usize = 16;

/// Version of the object and of its segments.
///
/// 2: a run may hold several windows.
pub const VERSION: u16 = 2;

/// Where a run lies in its epoch's object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRef {
    pub table: String,
    pub kind: RunKind,
    pub rows: u64,
    /// Bytes from the start of the object.
    pub offset: u64,
    pub length: u64,
}

/// A segment that cannot be read as the run that its entry names.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("run of table {table} is cut short: expected {expected} bytes, found {found}; restore the object from a copy")]
    Truncated { table: String, expected: u64, found: u64 },
    #[error("run of table {table} is corrupt: {what}; restore the object from a copy")]
    Corrupt { table: String, what: String },
    #[error("run of table {table} has format version {found}, but this program reads versions up to {VERSION}; use a newer one")]
    Version { table: String, found: u16 },
    #[error("run of table {table} cannot be written: {source}")]
    Write { table: String, source: ArrowError },
}

/// The object with all runs of an epoch, and where each lies in it, in the same order.
pub fn write_runs(runs: &[Run]) -> Result<(Vec<u8>, Vec<RunRef>), RunError> {
    let mut object = OBJECT_MAGIC.to_vec();
    object.extend(VERSION.to_le_bytes());
    let mut refs = Vec::with_capacity(runs.len());
    for run in runs {
        let offset = object.len();
        object.extend(SEGMENT_MAGIC);
        object.extend(VERSION.to_le_bytes());
        object.extend([0; 10]);
        write_body(&mut object, &run.batch).map_err(|source| RunError::Write { table: run.table.clone(), source })?;
        let hash = XxHash3_64::oneshot(&object[offset + SEGMENT_HEADER..]);
        object[offset + 8..offset + SEGMENT_HEADER].copy_from_slice(&hash.to_le_bytes());
        refs.push(RunRef {
            table: run.table.clone(),
            kind: run.kind,
            rows: run.batch.num_rows() as u64,
            offset: offset as u64,
            length: (object.len() - offset) as u64,
        });
    }
    Ok((object, refs))
}

fn write_body(out: &mut Vec<u8>, batch: &RecordBatch) -> Result<(), ArrowError> {
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut writer = StreamWriter::try_new_with_options(out, &batch.schema(), options)?;
    writer.write(batch)?;
    writer.finish()
}

/// The run in these bytes: the object's `at.offset .. at.offset + at.length`.
pub fn read_run(segment: &[u8], at: &RunRef) -> Result<Run, RunError> {
    let table = || at.table.clone();
    let corrupt = |what: &str| RunError::Corrupt { table: table(), what: what.to_string() };
    if (segment.len() as u64) < at.length || segment.len() < SEGMENT_HEADER {
        return Err(RunError::Truncated { table: table(), expected: at.length.max(SEGMENT_HEADER as u64), found: segment.len() as u64 });
    }
    if segment.len() as u64 > at.length {
        return Err(corrupt(&format!("expected {} bytes, found {}", at.length, segment.len())));
    }
    let (header, body) = segment.split_at(SEGMENT_HEADER);
    if &header[..4] != SEGMENT_MAGIC {
        return Err(corrupt("it does not start with MPRN"));
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version == 0 || version > VERSION {
        return Err(RunError::Version { table: table(), found: version });
    }
    let hash: [u8; 8] = header[8..].try_into().expect("the header is 16 bytes long");
    if XxHash3_64::oneshot(body) != u64::from_le_bytes(hash) {
        return Err(corrupt("its checksum differs"));
    }
    super::claims::hold(body).map_err(|e| corrupt(&e))?;
    let read = || -> Result<RecordBatch, ArrowError> {
        let reader = StreamReader::try_new(body, None)?;
        let schema = reader.schema();
        let mut batches = reader.collect::<Result<Vec<_>, _>>()?;
        match batches.len() {
            1 => Ok(batches.remove(0)),
            // Without columns only the batches themselves know how many rows there are.
            _ if schema.fields().is_empty() => {
                let rows = batches.iter().map(|b| b.num_rows()).sum();
                RecordBatch::try_new_with_options(schema, vec![], &RecordBatchOptions::new().with_row_count(Some(rows)))
            }
            _ => concat_batches(&schema, &batches),
        }
    };
    // Where the stream contradicts itself, arrow panics: nothing outlives the closure, so that no harm is done.
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).map_err(|_| corrupt("it contradicts itself"))?;
    let batch = read.map_err(|e| corrupt(&e.to_string()))?;
    if batch.num_rows() as u64 != at.rows {
        return Err(corrupt(&format!("expected {} rows, found {}", at.rows, batch.num_rows())));
    }
    Ok(Run { table: at.table.clone(), kind: at.kind, batch })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, BinaryArray, Decimal128Array, Decimal256Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Int64Type, i256};
    use std::path::PathBuf;
    use std::sync::Arc;

    fn runs() -> Vec<Run> {
        let partial = RecordBatch::try_from_iter_with_nullable([
            ("k0", Arc::new(StringArray::from(vec![Some("A"), None, Some("käse")])) as ArrayRef, true),
            ("a0_0", Arc::new(Decimal128Array::from(vec![Some(7), None, Some(-3)]).with_precision_and_scale(38, 2).unwrap()), true),
            ("a1_0", Arc::new(Decimal256Array::from(vec![Some(i256::MAX), None, Some(i256::MINUS_ONE)])), true),
            ("a2_0", Arc::new(Int64Array::from(vec![1, 2, 3])), true),
            ("a3_0", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), Some(vec![]), Some(vec![Some(9)])])), true),
        ])
        .unwrap();
        let later = RecordBatch::try_from_iter_with_nullable([
            ("_topic", Arc::new(StringArray::from(vec!["events"])) as ArrayRef, false),
            ("_key", Arc::new(BinaryArray::from_opt_vec(vec![Some(&[0u8, 255][..])])), true),
            ("event_time", Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_000_000]).with_timezone("UTC")), true),
        ])
        .unwrap();
        let kind = RunKind::Partial { window_start_us: -300_000_000 };
        vec![Run { table: "t".into(), kind, batch: partial }, Run { table: "t".into(), kind: RunKind::JudgeLater, batch: later }]
    }

    fn segment<'a>(object: &'a [u8], at: &RunRef) -> &'a [u8] {
        &object[at.offset as usize..(at.offset + at.length) as usize]
    }

    #[test]
    fn runs_come_back_as_they_were() {
        let runs = runs();
        let (object, refs) = write_runs(&runs).unwrap();
        let back: Vec<Run> = refs.iter().map(|r| read_run(segment(&object, r), r).unwrap()).collect();
        assert_eq!(back, runs);
        let text = serde_json::to_string(&refs).unwrap();
        assert_eq!(serde_json::from_str::<Vec<RunRef>>(&text).unwrap(), refs);
    }

    #[test]
    fn a_run_that_was_cut_by_key_is_read_as_any() {
        let runs = runs();
        let (mut object, refs) = write_runs(&runs).unwrap();
        let at = refs[0].offset as usize;
        assert_eq!(object[at + 6..at + 8], [0, 0]);
        object[at + 6..at + 8].copy_from_slice(&[3, 15]);
        assert_eq!(read_run(segment(&object, &refs[0]), &refs[0]).unwrap(), runs[0]);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let (object, refs) = write_runs(&runs()).unwrap();
        let whole = segment(&object, &refs[0]);
        for n in 0..whole.len() {
            assert!(matches!(read_run(&whole[..n], &refs[0]), Err(RunError::Truncated { .. })), "cut at {n}");
        }
        for n in (0..whole.len()).filter(|n| !(6..8).contains(n)) {
            let mut bad = whole.to_vec();
            bad[n] ^= 1;
            assert!(read_run(&bad, &refs[0]).is_err(), "byte {n}");
        }
        let mut newer = whole.to_vec();
        newer[4] = VERSION as u8 + 1;
        assert!(matches!(read_run(&newer, &refs[0]), Err(RunError::Version { found: 3, .. })));
        let other = RunRef { rows: 4, ..refs[0].clone() };
        assert!(read_run(whole, &other).unwrap_err().to_string().contains("expected 4 rows, found 3"));
    }

    /// Runs as this version writes them.
    fn runs_of(version: u16) -> Vec<Run> {
        let mut all = runs();
        if version >= 2 {
            let shared = RecordBatch::try_from_iter_with_nullable([
                ("window_start", Arc::new(TimestampMicrosecondArray::from(vec![-300_000_000, 0, 0]).with_timezone("UTC")) as ArrayRef, false),
                ("k0", Arc::new(StringArray::from(vec![None, Some("A"), Some("B")])), true),
                ("a0_0", Arc::new(Int64Array::from(vec![1, 2, 3])), true),
            ]);
            all.push(Run { table: "t".into(), kind: RunKind::Windows { first_start_us: -300_000_000, last_start_us: 0 }, batch: shared.unwrap() });
        }
        all
    }

    /// Each version must be read for ever. Its fixture is made once with `MILLPOND_WRITE_FIXTURES=1`, and never again.
    #[test]
    fn runs_of_every_version_are_read() {
        for version in 1..=VERSION {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/runs/v{version}"));
            if std::env::var_os("MILLPOND_WRITE_FIXTURES").is_some() && !folder.exists() {
                let (object, refs) = write_runs(&runs_of(version)).unwrap();
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join("runs.bin"), object).unwrap();
                std::fs::write(folder.join("refs.json"), serde_json::to_string_pretty(&refs).unwrap()).unwrap();
            }
            let object = std::fs::read(folder.join("runs.bin")).unwrap();
            let refs: Vec<RunRef> = serde_json::from_slice(&std::fs::read(folder.join("refs.json")).unwrap()).unwrap();
            let back: Vec<Run> = refs.iter().map(|r| read_run(segment(&object, r), r).unwrap()).collect();
            assert_eq!(back, runs_of(version));
            assert_eq!((&object[..6], object[6] as u16), (&OBJECT_MAGIC[..], version));
        }
    }
}
