//! Files that are in a table twice, as they are or as a copy under another name: found without the source.

use super::readers::plant;
use super::*;

/// Tables whose rows have no key: what is appended there stays, twice as well as once.
const TABLES: [&str; 5] = ["spend_log", "spend_log__late", "spend__late", "live__late", "events__dead"];

impl Site {
    /// A copy of one of the table's files under another name, in the commit or manifest that names it.
    fn double(&self, table: &str) {
        let copied = |path: &Path| {
            let copy = path.with_file_name(format!("again-{}", path.file_name().unwrap().to_str().unwrap()));
            std::fs::copy(path, &copy).unwrap();
            copy
        };
        match self.format {
            TableFormatKind::Delta => self.edit_commit(table, "add", |a| {
                let mut add = a.iter().find(|a| a.get("add").is_some()).unwrap().clone();
                let copy = copied(&self.folder(table).join(add["add"]["path"].as_str().unwrap()));
                add["add"]["path"] = json!(copy.file_name().unwrap().to_str().unwrap());
                a.push(add);
            }),
            TableFormatKind::Iceberg => {
                let (mut named, bytes) = self.rewritten_manifest(ManifestContentType::Data, table, |files| {
                    for file in files {
                        file.path = format!("file://{}", copied(Path::new(file.path.trim_start_matches("file://"))).display());
                    }
                });
                named.manifest_path = named.manifest_path.replace("/manifest-", "/again-");
                named.manifest_length = bytes.len() as i64;
                (named.existing_files_count, named.existing_rows_count) = (named.added_files_count.take(), named.added_rows_count.take());
                (named.added_files_count, named.added_rows_count) = (Some(0), Some(0));
                std::fs::write(named.manifest_path.trim_start_matches("file://"), bytes).unwrap();
                self.edit_list(table, |manifests| [manifests, vec![named]].concat());
            }
        }
    }
}

/// Delta's readers are given null for both where such a column partitions a table: two groups that look like one.
#[test]
fn groups_of_no_text_and_of_null_are_no_row_twice() {
    let pond = Pond::new("");
    let table = "
  by_user:
    sql: select window_start, user_id, count(*) as n from tumble(events, interval '5 minutes') group by window_start, user_id
    allowed_lateness: 20m
    partition_by: [user_id]
    formats: [iceberg, delta]
  spend_log:";
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s").replace("\n  spend_log:", table));
    let nobody = |line: String| line.replace("\"nobody\"", "null");
    // Of each the same number, so that their rows look alike, too; then one of them is corrected.
    for lines in [vec![event(1, "", 1, 0, 100), nobody(event(2, "nobody", 1, 5, 100)), event(3, "ann", 20, 0, 100)], vec![event(4, "", 2, 0, 100), event(5, "ann", 25, 0, 100)]] {
        append(&pond, 0, &lines);
        pond.until_end();
        assert_right(&judge(&pond, deep()));
        assert_right(&judge(&pond, Options::default()));
    }
    let of = |format: &str| pond.query_in(format, "select count(*) as n from by_user where user_id is null").remove(0)["n"].as_i64();
    assert_eq!((of("iceberg"), of("delta")), (Some(1), Some(4)), "both, and what took one of them back");
}

#[test]
fn files_that_are_there_twice_are_found_without_the_source() {
    for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
        let mut site = Site::new(format);
        for table in TABLES {
            plant(&mut site, &format!("{table}: a copy of a file"), "row-twice", |s| s.double(table));
            plant(&mut site, &format!("{table}: a file named twice"), "file-twice", |s| match format {
                TableFormatKind::Iceberg => s.edit_list(table, |m| [m.clone(), m[..1].to_vec()].concat()),
                TableFormatKind::Delta => s.edit_commit(table, "add", |a| {
                    let mut add = a.iter().find(|a| a.get("add").is_some()).unwrap().clone();
                    add["add"]["path"] = json!(add["add"]["path"].as_str().unwrap().replacen('e', "%65", 1));
                    a.push(add);
                }),
            });
        }
        plant(&mut site, "spend_log: a retraction of what is not there", "retract-unmatched", |s| {
            let retracts = |p: &&PathBuf| std::fs::read(p).is_ok_and(|b| String::from_utf8_lossy(&b).contains("retract"));
            edit_rows(s.live("spend_log").iter().rfind(retracts).unwrap(), |b| in_text(b, "_op", "insert", "retract"));
        });
        site.done(11);
    }
}
