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
