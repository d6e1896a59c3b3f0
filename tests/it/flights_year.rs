//! The flights of 2013, shuffled within bounds, through a real broker: what comes in is counted, late or dead, and with
//! enough lateness the tables equal DuckDB's `GROUP BY` over the input, in both formats.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use chrono::DateTime;

use serde_json::Value;

use crate::support::generate::Load;
use crate::support::kafka::Broker;
use crate::support::millpond::{Pond, assert_same, reader};
use crate::support::spending::mixed;

const FLIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/flights/flights-2013.ndjson.gz");
const ROWS: i64 = 336_776;
const TIMES: [&str; 2] = ["actual_dep", "sched_dep"];

/// A row comes at most so long after its time. By their scheduled departure, which is the event time, rows of the file are
/// 43 minutes early to 21 hours and 41 minutes late: 29 hours of lateness are enough.
const SHUFFLED_WITHIN_S: u64 = 6 * 3600;
const SEED: u64 = 2013;
const AGGREGATES: &str = "count(*) as flights, count(*) filter (where status = 'cancelled') as cancelled, \
     avg(dep_delay) as avg_dep_delay, max(dep_delay) as max_dep_delay, sum(distance) as total_distance";

/// Epochs and commits are short, so that there are many, and with them corrections and deletes.
fn pipeline(broker: &Broker) -> String {
    let sql = format!("select window_start, origin, {AGGREGATES} from tumble(flights, interval '1 hour') group by window_start, origin");
    format!(
        "pipeline: year
sources:
  flights:
    kafka: {{brokers: '{}', topic: flights-2013, start: earliest}}
    format: json
    columns: {{origin: string not null, status: string, sched_dep: timestamp, dep_delay: int64, distance: int64}}
    watermark: {{column: sched_dep}}
tables:
  enough: {{sql: \"{sql}\", key: [window_start, origin], allowed_lateness: 29h}}
  appended: {{sql: \"{sql}\", allowed_lateness: 29h}}
  little: {{sql: \"{sql}\", key: [window_start, origin], allowed_lateness: 0s}}
lake: {{root: ./lake}}
epoch: {{every: 100ms}}
commit: {{every: 500ms}}
",
        broker.address()
    )
}

/// Writes the flights in another order, the same every time. How many come after one that departed later.
fn shuffle(into: &Path) -> usize {
    let rows = BufReader::new(flate2::read::MultiGzDecoder::new(std::fs::File::open(FLIGHTS).unwrap())).lines();
    let mut rows: Vec<(i64, i64, String)> = rows
        .zip(0..)
        .map(|(line, nth)| {
            let line = line.unwrap();
            let row: Value = serde_json::from_str(&line).unwrap();
            let at = TIMES.iter().find_map(|t| row[*t].as_str()).unwrap();
            let at = DateTime::parse_from_rfc3339(at).unwrap().timestamp();
            (at + (mixed(nth ^ SEED) % SHUFFLED_WITHIN_S) as i64, at, line)
        })
        .collect();
    rows.sort();
    let mut file = std::io::BufWriter::new(std::fs::File::create(into).unwrap());
    rows.iter().for_each(|(_, _, line)| writeln!(file, "{line}").unwrap());
    file.flush().unwrap();
    let (mut latest, mut after_later) = (i64::MIN, 0);
    for (_, at, _) in &rows {
        after_later += usize::from(*at < latest);
        latest = latest.max(*at);
    }
    after_later
}

fn number(row: &Value, column: &str) -> i64 {
    row[column].as_i64().unwrap_or_else(|| panic!("{column} of {row}"))
}

#[test]
fn the_year_is_counted_late_or_dead() {
    let broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let shuffled = dir.path().join("shuffled.ndjson");
    let after_later = shuffle(&shuffled);
    assert!(after_later as i64 > ROWS * 9 / 10, "only {after_later} rows come after one that departed later");
    let load = Load { brokers: &broker.address(), topic: "flights-2013", partitions: 4, path: &shuffled, key: "flight", times: &TIMES };
    assert_eq!(load.run().unwrap() as i64, ROWS);
    for (partition, broken) in [(0, "{\"origin\":"), (1, "[]"), (3, "{\"origin\":\"EWR\"}")] {
        broker.produce("flights-2013", partition, "broken", broken, 0);
    }
    let pond = Pond::new(&pipeline(broker));
    let summary = pond.run(&["--final"]);
    assert_eq!(summary["records"], ROWS + 3, "{summary}");
    assert_eq!(summary["dead"], 3, "{summary}");
    assert!(summary["epochs"].as_i64() > Some(2) && summary["commits"].as_i64() > Some(12), "{summary}");

    let group = format!(
        "select strftime(date_trunc('hour', sched_dep), '%Y-%m-%dT%H:%M:%S.000000+00:00') as window_start, origin, {AGGREGATES} \
         from read_json('{FLIGHTS}', format = 'newline_delimited', columns = {{origin: 'VARCHAR', status: 'VARCHAR', sched_dep: 'TIMESTAMP', dep_delay: 'BIGINT', distance: 'BIGINT'}}) \
         group by all"
    );
    let expected = reader(&["duckdb", &group]);
    assert!(expected.len() > 15_000);
    let enough = pond.rows("year", "enough");
    assert_same(&enough, &expected, "millpond and DuckDB over the input");

    // Without a key: what was inserted less what was retracted.
    let appended = pond.rows("year", "appended");
    let mut left: std::collections::BTreeMap<String, i64> = Default::default();
    for row in &appended {
        let mut plain = row.clone();
        let op = plain.as_object_mut().unwrap().shift_remove("_op").unwrap();
        *left.entry(plain.to_string()).or_default() += if op == "insert" { 1 } else { -1 };
    }
    left.retain(|_, n| *n != 0);
    assert!(appended.len() > expected.len(), "no window was corrected");
    let mut insertions: Vec<Value> = left.iter().map(|(row, n)| if *n == 1 { serde_json::from_str(row).unwrap() } else { panic!("{n} of {row}") }).collect();
    insertions.sort_by_key(|r| expected_order(r));
    let mut ordered = expected.clone();
    ordered.sort_by_key(expected_order);
    assert_same(&insertions, &ordered, "insertions less retractions");

    // With little lateness: what a window lacks is in the late table, with that window.
    let little = pond.rows("year", "little");
    let late = pond.rows("year", "little__late");
    let dead = pond.rows("year", "flights__dead");
    assert_eq!(dead.len(), 3);
    assert!(!late.is_empty(), "no row was late");
    // Where lateness is enough none is.
    assert_eq!(summary["late"], late.len());
    let mut sums: std::collections::BTreeMap<(String, String), (i64, i64)> = Default::default();
    let key = |row: &Value| (row["window_start"].to_string(), row["origin"].to_string());
    for row in &little {
        let sum = sums.entry(key(row)).or_default();
        *sum = (number(row, "flights"), number(row, "total_distance"));
    }
    for row in &late {
        let sum = sums.entry(key(row)).or_default();
        *sum = (sum.0 + 1, sum.1 + number(row, "distance"));
    }
    assert_eq!(sums.values().map(|s| s.0).sum::<i64>(), ROWS);
    for row in &expected {
        assert_eq!(sums[&key(row)], (number(row, "flights"), number(row, "total_distance")), "{row}");
    }
}

fn expected_order(row: &Value) -> (String, String) {
    (row["window_start"].to_string(), row["origin"].to_string())
}
