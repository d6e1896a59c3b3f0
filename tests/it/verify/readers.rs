//! What readers go by: columns, partitioning, bounds, counts, partition values and hints of a table are those of its rows,
//! and the runs that a start needs are whole. One of each is damaged, and must be found and named.

use super::*;
use crate::support::millpond::reader;
use iceberg::spec::{DataFile, DataFileBuilder, Datum, FormatVersion, Manifest, ManifestWriterBuilder, Struct};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};
use parquet::file::statistics::{Statistics, ValueStatistics};
use std::collections::HashMap;

/// Flat and partitioned tables with and without a key. Delta knows no partitions by day.
fn tables(dir: &Path, format: TableFormatKind) -> String {
    let by = if format == TableFormatKind::Iceberg { "day(window_start)" } else { "user_id" };
    format!(
        r#"
pipeline: proof
sources:
  events:
    file: "{dir}/data/*.ndjson"
    format: json
    columns: {{id: int64, user_id: string not null, event_time: timestamp, amount: "decimal(12,2)", weight: float64}}
    watermark: {{column: event_time, delay: 1m, idle_after: never}}
tables:
  spend:
    sql: |
      select window_start, user_id, sum(amount) as total, count(*) as n, avg(weight) as weight
      from tumble(events, interval '5 minutes') group by window_start, user_id
    key: [window_start, user_id]
    allowed_lateness: 20m
    partition_by: [{by}]
    formats: [{format}]
  flat:
    sql: select id, user_id, event_time, amount, weight from events
    formats: [{format}]
  parted:
    sql: select id, user_id, event_time, amount, weight from events
    partition_by: [user_id]
    formats: [{format}]
lake: {{root: ./lake, iceberg: {{catalog: sql, uri: "sqlite://./lake/catalog.db"}}}}
epoch: {{every: 5s}}
commit: {{every: 5s}}
"#,
        dir = dir.display()
    )
}

pub(super) fn site(format: TableFormatKind) -> Site {
    let pond = Pond::new("");
    pond.rewrite(&tables(pond.path(), format));
    let users = ["ann", "bob", "a user whose name is longer than what a bound keeps"];
    for part in 0..2 {
        for file in 0..2 {
            let lines: Vec<String> = (0..30).map(|n| event(part * 200 + n * 2 + file, users[(n % 3) as usize], part * 20 + n, file * 10, 100 + n)).collect();
            append(&pond, file as usize, &lines.iter().enumerate().map(|(n, l)| if n % 7 == 3 { l.replace("\"weight\":", "\"unknown\":").replace("\"amount\":", "\"nothing\":") } else { l.clone() }).collect::<Vec<_>>());
        }
        pond.until_end();
    }
    // Characters that a path writes otherwise are in a partition's value: others find those rows, too.
    let (lake, parted) = (pond.path().join("lake"), ["proof", "parted"].join("."));
    let text = |p: PathBuf| p.to_str().unwrap().to_string();
    let readers: [Vec<String>; 2] = match format {
        TableFormatKind::Iceberg => [vec!["pyiceberg".into(), text(lake.join("catalog.db")), parted], vec!["duckdb-iceberg".into(), text(lake.join("iceberg/proof/parted"))]],
        TableFormatKind::Delta => ["deltalake", "duckdb-delta"].map(|by| vec![by.into(), text(lake.join("delta/proof/parted"))]),
    };
    for args in readers {
        let rows = reader(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(rows.len() == 120 && rows.iter().filter(|r| r["user_id"].as_str().unwrap().starts_with("a user")).count() == 40, "{args:?}: {}", rows.len());
    }
    Site::over(pond, format)
}

/// Structure alone: whatever is found here needs no source.
pub(super) fn plant(site: &mut Site, what: &str, kind: &str, damage: impl FnOnce(&Site)) {
    site.mend();
    damage(site);
    let report = judge(&site.pond, Options { caught_up: true, ..Options::default() });
    let first = !site.planted.iter().any(|p| p.ends_with(&format!("[{kind}]")));
    let found: Vec<String> = report.findings.iter().map(|f| format!("{}: {}", f.kind, f.text)).collect();
    if !report.findings.iter().any(|f| f.kind == kind) {
        site.missed.push(format!("{what}: expected {kind}, found {found:#?}"));
    }
    // The first of each kind as people and programs are told.
    if first {
        let ended = site.pond.millpond(&["verify", "pipeline.yaml"]);
        assert!(ended.code == 3 && ended.stdout.contains(&format!("WRONG [{kind}]")), "{what}: {ended:?}");
        let ended = site.pond.millpond(&["verify", "pipeline.yaml", "--json"]);
        let value: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert!(ended.code == 3 && value["report"]["findings"].as_array().unwrap().iter().any(|f| f["kind"] == kind), "{what}: {value}");
    }
    site.planted.push(format!("{what} [{kind}]"));
}

/// Writes the footer of a Parquet file again, with other statistics of one column, and pads nothing: its rows stay.
fn edit_footer(path: &Path, column: &str, edit: impl Fn(&Statistics) -> Statistics) {
    let bytes = bytes::Bytes::from(std::fs::read(path).unwrap());
    let metadata: ParquetMetaData = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    let data = bytes[..bytes.len() - 8 - length].to_vec();
    let groups = metadata.row_groups().iter().map(|group| {
        let columns = group.columns().iter().map(|c| match c.column_path().string() == column {
            true => c.clone().into_builder().set_statistics(edit(c.statistics().unwrap())).build().unwrap(),
            false => c.clone(),
        });
        group.clone().into_builder().set_column_metadata(columns.collect()).build().unwrap()
    });
    let metadata = metadata.clone().into_builder().set_row_groups(groups.collect()).build();
    let mut out = data;
    ParquetMetaDataWriter::new(&mut out, &metadata).finish().unwrap();
    std::fs::write(path, out).unwrap();
}

fn narrower(stats: &Statistics) -> Statistics {
    let Statistics::Int64(v) = stats else { panic!("{stats}") };
    Statistics::Int64(ValueStatistics::new(v.min_opt().copied(), v.max_opt().map(|m| m - 1), None, v.null_count_opt(), false))
}

fn fewer_nulls(stats: &Statistics) -> Statistics {
    let Statistics::Int64(v) = stats else { panic!("{stats}") };
    Statistics::Int64(ValueStatistics::new(v.min_opt().copied(), v.max_opt().copied(), None, Some(0), false))
}

/// The value at `row` of a column becomes that at `from`.
fn copied(batch: RecordBatch, column: &str, row: u32, from: u32) -> RecordBatch {
    let at = batch.schema().index_of(column).unwrap();
    let rows: UInt32Array = (0..batch.num_rows() as u32).map(|r| if r == row { from } else { r }).collect();
    let mut columns = batch.columns().to_vec();
    columns[at] = arrow::compute::take(batch.column(at), &rows, None).unwrap();
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// Values beyond those that any bound allows.
fn far(batch: RecordBatch, column: &str) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    let at = batch.schema().index_of(column).unwrap();
    columns[at] = Arc::new(batch.column(at).as_primitive::<Int64Type>().unary::<_, Int64Type>(|v| v + 100_000));
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// Damage that both formats know.
fn plant_in_both(site: &mut Site) {
    for table in ["flat", "parted"] {
        plant(site, &format!("{table}: rows beyond the bounds of their file"), "bounds", |s| edit_rows(&s.live(table)[0], |b| far(b, "id")));
        plant(site, &format!("{table}: a footer with too low a bound"), "bounds", |s| edit_footer(&s.live(table)[0], "id", narrower));
        plant(site, &format!("{table}: a footer that hides nulls"), "column-counts", |s| edit_footer(&s.live(table)[0], "amount", fewer_nulls));
        plant(site, &format!("{table}: a null more than is said"), "column-counts", |s| {
            edit_rows(&s.live(table)[0], |b| {
                let weights = b.column_by_name("weight").unwrap();
                let (null, value) = ((0..b.num_rows()).find(|r| weights.is_null(*r)).unwrap(), (0..b.num_rows()).find(|r| weights.is_valid(*r)).unwrap());
                copied(b, "weight", value as u32, null as u32)
            });
        });
    }
    plant(site, "spend: a window's count beyond its bounds", "bounds", |s| edit_rows(s.live("spend").last().unwrap(), |b| far(b, "n")));
    let runs = |s: &Site| files(&s.lake().join("_millpond/proof/runs"));
    plant(site, "runs removed", "run-missing", |s| std::fs::remove_file(&runs(s)[0]).unwrap());
    plant(site, "runs cut short", "run-size", |s| {
        let bytes = std::fs::read(&runs(s)[0]).unwrap();
        std::fs::write(&runs(s)[0], &bytes[..bytes.len() - 5]).unwrap();
    });
    for (what, at) in [("in the middle", 2), ("at the end", 1)] {
        plant(site, &format!("a byte of a run flipped {what}"), "run-damaged", |s| {
            let mut bytes = std::fs::read(&runs(s)[0]).unwrap();
            let place = bytes.len() / at - 1;
            bytes[place] ^= 1;
            std::fs::write(&runs(s)[0], bytes).unwrap();
        });
    }
}

impl Site {
    /// Writes the oldest manifest of data of an Iceberg table again, with its first file changed.
    fn edit_manifest(&self, table: &str, edit: impl FnOnce(&mut Changed)) {
        self.edit_manifest_of(ManifestContentType::Data, table, edit);
    }

    pub(super) fn edit_manifest_of(&self, content: ManifestContentType, table: &str, edit: impl FnOnce(&mut Changed)) {
        let mut edit = Some(edit);
        let (named, bytes) = self.rewritten_manifest(content, table, |entries| {
            entries.iter_mut().for_each(|f| edit.take().into_iter().for_each(|edit| edit(f)));
        });
        std::fs::write(named.manifest_path.trim_start_matches("file://"), bytes).unwrap();
    }

    /// The first manifest of this content, with other files, and as the newest list has it.
    pub(super) fn rewritten_manifest(&self, content: ManifestContentType, table: &str, edit: impl FnOnce(&mut Vec<Changed>)) -> (ManifestFile, bytes::Bytes) {
        let list = ManifestList::parse_with_version(&std::fs::read(self.lists(table).last().unwrap()).unwrap(), FormatVersion::V2).unwrap();
        let named = list.entries().iter().find(|m| m.content == content).unwrap().clone();
        let path = named.manifest_path.trim_start_matches("file://").to_string();
        let (entries, metadata) = Manifest::parse_avro(&std::fs::read(&path).unwrap()).unwrap().into_parts();
        let mut changed: Vec<Changed> = entries.iter().map(|e| Changed::of(e.data_file())).collect();
        edit(&mut changed);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let bytes = runtime.block_on(async {
            let io = iceberg::io::FileIO::new_with_memory();
            let output = io.new_output("memory:///manifest.avro").unwrap();
            let builder = ManifestWriterBuilder::new(output, Some(named.added_snapshot_id), metadata.schema.clone(), metadata.partition_spec.clone());
            let mut writer = if content == ManifestContentType::Data { builder.build_v2_data() } else { builder.build_v2_deletes() };
            for (entry, changed) in entries.iter().zip(changed) {
                let sequence = entry.sequence_number().unwrap_or(named.sequence_number);
                let snapshot = entry.snapshot_id().unwrap_or(named.added_snapshot_id);
                writer.add_existing_file(changed.built(entry.data_file()), snapshot, sequence, Some(sequence)).unwrap();
            }
            writer.write_manifest_file().await.unwrap();
            io.new_input("memory:///manifest.avro").unwrap().read().await.unwrap()
        });
        (named, bytes)
    }
}

/// What is said of a data file in a manifest.
pub(super) struct Changed {
    pub(super) path: String,
    records: u64,
    bytes: u64,
    pub(super) partition: Struct,
    nulls: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    pub(super) upper: HashMap<i32, Datum>,
}

impl Changed {
    fn of(file: &DataFile) -> Self {
        Self {
            path: file.file_path().to_string(),
            records: file.record_count(),
            bytes: file.file_size_in_bytes(),
            partition: file.partition().clone(),
            nulls: file.null_value_counts().clone(),
            values: file.value_counts().clone(),
            lower: file.lower_bounds().clone(),
            upper: file.upper_bounds().clone(),
        }
    }

    fn built(self, file: &DataFile) -> DataFile {
        DataFileBuilder::default()
            .content(file.content_type())
            .file_path(self.path)
            .file_format(file.file_format())
            .partition(self.partition)
            .record_count(self.records)
            .file_size_in_bytes(self.bytes)
            .column_sizes(file.column_sizes().clone())
            .value_counts(self.values)
            .null_value_counts(self.nulls)
            .nan_value_counts(file.nan_value_counts().clone())
            .lower_bounds(self.lower)
            .upper_bounds(self.upper)
            .partition_spec_id(0)
            .build()
            .unwrap()
    }
}

/// Field ids of `flat` and `parted`.
const ID: i32 = 1;
const WEIGHT: i32 = 5;

#[test]
fn what_an_iceberg_table_tells_its_readers_is_compared() {
    let mut site = site(TableFormatKind::Iceberg);
    plant_in_both(&mut site);
    for table in ["flat", "parted"] {
        plant(&mut site, &format!("{table}: a manifest with too high a lower bound"), "bounds", |s| s.edit_manifest(table, |f| f.lower.extend([(ID, Datum::long(1_000))])));
        plant(&mut site, &format!("{table}: a manifest with too low an upper bound"), "bounds", |s| s.edit_manifest(table, |f| f.upper.extend([(ID, Datum::long(3))])));
        plant(&mut site, &format!("{table}: a manifest that hides nulls"), "column-counts", |s| s.edit_manifest(table, |f| f.nulls.extend([(WEIGHT, 0)])));
        plant(&mut site, &format!("{table}: a manifest with other value counts"), "column-counts", |s| s.edit_manifest(table, |f| f.values.extend([(ID, 7)])));
        plant(&mut site, &format!("{table}: a manifest with another number of rows"), "file-rows", |s| s.edit_manifest(table, |f| f.records += 1));
    }
    plant(&mut site, "flat: a manifest with another size", "file-size", |s| s.edit_manifest("flat", |f| f.bytes += 1));
    let text = |t: &str| Struct::from_iter([Some(iceberg::spec::Literal::string(t))]);
    plant(&mut site, "parted: a file in another's partition", "partition-value", |s| s.edit_manifest("parted", |f| f.partition = text("bobby")));
    plant(&mut site, "parted: a file in no partition", "partition-value", |s| s.edit_manifest("parted", |f| f.partition = Struct::from_iter([None])));
    plant(&mut site, "spend: a file of another day", "partition-value", |s| s.edit_manifest("spend", |f| f.partition = Struct::from_iter([Some(iceberg::spec::Literal::date(7))])));
    plant(&mut site, "parted: a manifest list that excludes a partition", "manifest-bounds", |s| {
        s.edit_list("parted", |mut manifests| {
            for manifest in &mut manifests {
                let summary = &mut manifest.partitions.as_mut().unwrap()[0];
                summary.upper_bound = Some(iceberg::spec::Datum::string("a user").to_bytes().unwrap());
            }
            manifests
        });
    });
    // Columns and partitioning.
    type Edit = fn(&mut Vec<Value>);
    let edits: [(&str, Edit); 7] = [
        ("a column renamed", |f| f[0]["name"] = json!("number")),
        ("a column dropped", |f| drop(f.remove(4))),
        ("a column of another type", |f| f[0]["type"] = json!("int")),
        ("a decimal of another scale", |f| f[3]["type"] = json!("decimal(12, 3)")),
        ("a column with another field id", |f| f[0]["id"] = json!(77)),
        ("a column that must not be null", |f| f[4]["required"] = json!(true)),
        ("a column that the plan has not", |f| f.push(json!({"id": 99, "name": "extra", "type": "string", "required": false}))),
    ];
    for table in ["flat", "parted"] {
        for (what, edit) in edits {
            plant(&mut site, &format!("{table}: {what}"), "schema", |s| {
                edit_json(&s.metadata(table), |m| {
                    let current = m["current-schema-id"].clone();
                    let schema = m["schemas"].as_array_mut().unwrap().iter_mut().find(|s| s["schema-id"] == current).unwrap();
                    edit(schema["fields"].as_array_mut().unwrap());
                    m["last-column-id"] = json!(100);
                });
            });
        }
    }
    plant(&mut site, "parted: another partitioning", "partitioning", |s| {
        edit_json(&s.metadata("parted"), |m| m["partition-specs"][0]["fields"][0]["transform"] = json!("bucket[4]"));
    });
    plant(&mut site, "spend: partitioned by hour", "partitioning", |s| {
        edit_json(&s.metadata("spend"), |m| m["partition-specs"][0]["fields"][0]["transform"] = json!("hour"));
    });
    plant(&mut site, "flat: a partitioning where there was none", "partitioning", |s| {
        edit_json(&s.metadata("flat"), |m| {
            m["partition-specs"][0]["fields"] = json!([{"source-id": 2, "field-id": 1000, "name": "user_id", "transform": "identity"}]);
            m["last-partition-id"] = json!(1000);
        });
    });
    site.done(30);
    // The hint by which others find the table: worth knowing, and nothing wrong with it.
    let hint = |site: &Site| site.folder("flat").join("metadata/version-hint.text");
    let noted = |site: &mut Site, what: &str, damage: &dyn Fn(&Path)| {
        site.mend();
        damage(&hint(site));
        let report = judge(&site.pond, Options { caught_up: true, ..Options::default() });
        assert!(report.is_right() && report.is_proven() && report.notes.iter().any(|n| n.contains(what)), "{what}: {report:#?}");
    };
    noted(&mut site, "is not there: readers by folder", &|p| std::fs::remove_file(p).unwrap());
    noted(&mut site, "which is not there", &|p| std::fs::write(p, "00099-x").unwrap());
    let older = files(&site.folder("flat").join("metadata")).into_iter().find(|p| p.to_str().unwrap().ends_with(".metadata.json")).unwrap();
    noted(&mut site, "see an older state", &|p| std::fs::write(p, older.file_name().unwrap().to_str().unwrap().trim_end_matches(".metadata.json")).unwrap());
}

/// Nothing is wrong with a file that belongs to nothing: all of them are told, in every folder that the cleaner looks into.
#[test]
fn files_that_belong_to_nothing_are_listed_and_are_no_error() {
    let pond = Pond::new("");
    pond.rewrite(&yaml(pond.path(), "[iceberg, delta]", "5s"));
    (0..2).for_each(|p| append(&pond, p, &(0..10).map(|n| event(n, "ann", n, 0, 5)).collect::<Vec<_>>()));
    pond.until_end();
    let lake = pond.path().join("lake");
    let run = pond.millpond(&["verify", "pipeline.yaml", "--json"]);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &value["report"]["orphans"]), (0, &json!([])), "{value}");
    let mut strays: Vec<String> = (0..19).map(|n| format!("delta/proof/plain/stray-{n}.parquet")).collect();
    let one = ["delta/proof/plain/_delta_log/stray.json", "delta/proof/spend/deletion_vector_x.bin", "iceberg/proof/plain/data/stray.parquet", "iceberg/proof/plain/metadata/stray.avro",
        "iceberg/proof/spend__late/metadata/00077-x.metadata.json", "_millpond/proof/runs/stray.run", "delta/proof/events__dead/more/stray"];
    strays.extend(one.map(str::to_string));
    for stray in &strays {
        std::fs::create_dir_all(lake.join(stray).parent().unwrap()).unwrap();
        std::fs::write(lake.join(stray), "stray").unwrap();
    }
    strays.sort();
    let run = pond.millpond(&["verify", "pipeline.yaml", "--json"]);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &value["report"]["orphans"]), (0, &json!(strays)), "{value}");
    let run = pond.millpond(&["verify", "pipeline.yaml"]);
    assert!(run.code == 0 && run.stdout.contains("26 files belong to nothing") && run.stdout.contains("and 6 more"), "{run:?}");
    assert_eq!(strays.iter().filter(|s| run.stdout.contains(&format!("  {s}\n"))).count(), 20, "{run:?}");
}

#[test]
fn what_a_delta_table_tells_its_readers_is_compared() {
    let mut site = site(TableFormatKind::Delta);
    plant_in_both(&mut site);
    let stats = |s: &Site, table: &str, edit: &dyn Fn(&mut Value)| {
        s.edit_commit(table, "add", |a| {
            let add = a.iter_mut().find_map(|a| a.get_mut("add")).unwrap();
            let mut stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
            edit(&mut stats);
            add["stats"] = json!(stats.to_string());
        });
    };
    for table in ["flat", "parted"] {
        plant(&mut site, &format!("{table}: stats with too high a minimum"), "bounds", |s| stats(s, table, &|v| v["minValues"]["id"] = json!(1_000)));
        plant(&mut site, &format!("{table}: stats with too low a maximum"), "bounds", |s| stats(s, table, &|v| v["maxValues"]["id"] = json!(1)));
        plant(&mut site, &format!("{table}: stats with too early a maximum"), "bounds", |s| stats(s, table, &|v| v["maxValues"]["event_time"] = json!("2026-01-31T10:20:00.000Z")));
        plant(&mut site, &format!("{table}: stats with too low a decimal"), "bounds", |s| stats(s, table, &|v| v["maxValues"]["amount"] = json!(1.02)));
        plant(&mut site, &format!("{table}: stats with too high a float"), "bounds", |s| stats(s, table, &|v| v["minValues"]["weight"] = json!(13.9)));
        plant(&mut site, &format!("{table}: stats that hide nulls"), "column-counts", |s| stats(s, table, &|v| v["nullCount"]["weight"] = json!(0)));
        plant(&mut site, &format!("{table}: stats of a column that is all null"), "column-counts", |s| stats(s, table, &|v| v["nullCount"]["id"] = v["numRecords"].clone()));
        plant(&mut site, &format!("{table}: stats with another number of rows"), "file-rows", |s| stats(s, table, &|v| v["numRecords"] = json!(v["numRecords"].as_u64().unwrap() + 1)));
    }
    plant(&mut site, "flat: stats with too low a text", "bounds", |s| stats(s, "flat", &|v| v["maxValues"]["user_id"] = json!("ann")));
    let partition = |s: &Site, table: &str, value: Value| {
        s.edit_commit(table, "add", |a| a.iter_mut().find_map(|a| a.get_mut("add")).unwrap()["partitionValues"]["user_id"] = value);
    };
    for table in ["parted", "spend"] {
        plant(&mut site, &format!("{table}: a file in another's partition"), "partition-value", |s| partition(s, table, json!("bobby")));
        plant(&mut site, &format!("{table}: a file in no partition"), "partition-value", |s| partition(s, table, Value::Null));
    }
    type Edit = fn(&mut Vec<Value>);
    let edits: [(&str, Edit); 6] = [
        ("a column renamed", |f| f[0]["name"] = json!("number")),
        ("a column dropped", |f| drop(f.remove(4))),
        ("a column of another type", |f| f[0]["type"] = json!("integer")),
        ("a decimal of another scale", |f| f[3]["type"] = json!("decimal(12,3)")),
        ("a column that must not be null", |f| f[4]["nullable"] = json!(false)),
        ("a column of others that must not be null", |f| f.push(json!({"name": "extra", "type": "string", "nullable": false, "metadata": {}}))),
    ];
    let schema = |s: &Site, table: &str, edit: &dyn Fn(&mut Vec<Value>)| {
        s.edit_commit(table, "metaData", |a| {
            let metadata = a.iter_mut().find_map(|a| a.get_mut("metaData")).unwrap();
            let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
            edit(schema["fields"].as_array_mut().unwrap());
            metadata["schemaString"] = json!(schema.to_string());
        });
    };
    for table in ["flat", "parted"] {
        for (what, edit) in edits {
            plant(&mut site, &format!("{table}: {what}"), "schema", |s| schema(s, table, &edit));
        }
    }
    let columns = |s: &Site, table: &str, value: Value| {
        s.edit_commit(table, "metaData", |a| a.iter_mut().find_map(|a| a.get_mut("metaData")).unwrap()["partitionColumns"] = value);
    };
    plant(&mut site, "parted: no partitioning", "partitioning", |s| columns(s, "parted", json!([])));
    plant(&mut site, "flat: a partitioning where there was none", "partitioning", |s| columns(s, "flat", json!(["user_id"])));
    site.done(35);
    // A column that another tool added, which may be null: a worker goes on, and so does the judge.
    site.mend();
    schema(&site, "flat", &|f| f.push(json!({"name": "extra", "type": "string", "nullable": true, "metadata": {}})));
    let report = judge(&site.pond, deep());
    assert!(report.is_right() && report.is_proven() && report.notes.iter().any(|n| n.contains("extra")), "{report:#?}");
}
