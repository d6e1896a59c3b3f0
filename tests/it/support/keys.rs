//! Many keys in one window of a day, and their sums.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Writes rows of these numbers: each has a key below `keys`, all keys come before one comes again, and a value.
pub fn write_rows(path: &Path, numbers: Range<u64>, keys: u64) {
    let mut rows = std::io::BufWriter::new(File::create(path).unwrap());
    for n in numbers {
        writeln!(rows, "{{\"k\":{},\"at\":\"2026-01-31T10:00:00Z\",\"v\":{}}}", n * 7_919 % keys, n % 1000).unwrap();
    }
    rows.into_inner().unwrap().sync_all().unwrap();
}

/// The sum of the values of the first rows.
pub fn total(rows: u64) -> u64 {
    (0..rows).map(|n| n % 1000).sum()
}

/// A pipeline file that sums the rows of all `*.ndjson` by key, into `by_key`; `memory`, `epoch` and `commit` are given.
pub fn pipeline(name: &str, memory: &str, epoch: &str, commit: &str) -> String {
    let table = "  by_key:
    sql: select window_start, k, sum(v) as total, count(*) as n from tumble(rows, interval '1 day') group by window_start, k
    key: [window_start, k]
";
    over_rows(name, table, memory, epoch, commit)
}

/// The same that counts the keys of all rows, into `counted`.
pub fn counting(name: &str, memory: &str, epoch: &str, commit: &str) -> String {
    let table = "  counted:
    sql: select window_start, count(distinct k) as keys, sum(v) as total, count(*) as n from tumble(rows, interval '1 day') group by window_start
    key: [window_start]
    allowed_lateness: 1d
";
    over_rows(name, table, memory, epoch, commit)
}

fn over_rows(name: &str, table: &str, memory: &str, epoch: &str, commit: &str) -> String {
    format!(
        "pipeline: {name}
sources:
  rows:
    file: \"*.ndjson\"
    format: json
    columns: {{k: int64, at: timestamp, v: int64}}
    watermark: {{column: at}}
tables:
{table}lake: {{root: ./lake}}
memory: {memory}
epoch: {{every: {epoch}}}
commit: {{every: {commit}}}
"
    )
}
