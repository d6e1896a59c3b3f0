//! FAULTS 19: compactions of some files, as engines commit them that know `replace`: what a worker deletes from after that lies
//! elsewhere by then.

use super::*;

/// `act.py` compacts the two oldest files of both tables in a format.
fn compact(lake: &Lake, format: &str, began: Option<&[Value]>) {
    for (nth, table) in ["spend", "plain"].into_iter().enumerate() {
        let mut step = json!({"in": format, "do": "replace", "table": table, "files": 2});
        if let Some(began) = began {
            step["at"] = began[nth].clone();
        }
        let done = lake.act(&[step]).remove(0);
        assert_eq!(done["files"], 2, "{done}");
        if format == "iceberg" {
            let (rows, records) = (done["rows"].as_u64(), done["records"].as_u64());
            assert!(if table == "spend" { done["with_deletes"].as_u64() > Some(0) && rows < records } else { rows == records }, "{table}: {done}");
            assert_eq!(done["sequence"].as_i64() < done["newest"].as_i64(), began.is_some(), "{table}: {done}");
        }
    }
}

impl Lake {
    /// Ours, theirs and the source agree.
    fn assert_agreed(&self, when: &str) {
        self.assert_holds(when);
        self.pond.assert_proven();
        for (table, rows) in [("spend", self.spend.len()), ("plain", self.plain.len())] {
            assert_eq!(self.pond.rows(NAME, table).len(), rows, "{when}: {table}");
        }
    }

    /// More events, that correct windows which this many seconds ago were new.
    fn correct(&mut self, back_s: i64) {
        self.back_s = back_s;
        self.more();
    }
}

#[test]
fn f19_upserts_reach_the_rows_of_a_partial_compaction() {
    let mut lake = Lake::new();
    lake.more();
    FORMATS.iter().for_each(|format| compact(&lake, format, None));
    lake.assert_agreed("after a compaction of some files");
    lake.correct(2500);
    lake.assert_agreed("after corrections of rows that were moved");
    FORMATS.iter().for_each(|format| compact(&lake, format, None));
    lake.correct(4000);
    lake.assert_agreed("after another, with deletes in what the first wrote");
}

/// Readers find deletes by the partition of what they delete from: files that others wrote while they had the table partitioned stay where
/// they are when that is taken back.
#[test]
fn f19_upserts_reach_rows_of_a_partitioning_that_was_taken_back() {
    let mut lake = Lake::new();
    lake.more();
    lake.act(&[json!({"in": "iceberg", "do": "partition", "table": "spend", "by": "user_id"}), json!({"in": "iceberg", "do": "replace", "table": "spend", "files": 2})]);
    lake.arrive();
    let said = lake.refused();
    assert!(said.contains("make its partition spec 0 the default one again"), "{said}");
    lake.act(&[json!({"in": "iceberg", "do": "layout", "table": "spend", "spec": 0})]);
    lake.pond.until_end();
    for back_s in [2500, 4000] {
        lake.correct(back_s);
    }
    lake.assert_agreed("after corrections of rows in partitions");
}

/// Who keeps the sequence number of the snapshot at which the rewrite began commits a file that is older than deletes which are there already.
#[test]
fn f19_upserts_reach_the_rows_of_a_compaction_that_keeps_an_older_sequence_number() {
    let mut lake = Lake::new();
    lake.more();
    let began = lake.act(&["spend", "plain"].map(|table| json!({"in": "iceberg", "do": "snapshot", "table": table})));
    // Commits in between, which delete nothing from what is compacted.
    lake.correct(0);
    lake.correct(1200);
    compact(&lake, "iceberg", Some(&began));
    lake.assert_agreed("after a compaction that began before two commits");
    for back_s in [4000, 4500, 1200] {
        lake.correct(back_s);
    }
    lake.assert_agreed("after corrections of rows that were moved");
}
