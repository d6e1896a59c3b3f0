//! What tables ask of their readers and how these find files, deletes and columns: protocol, hints, manifest lists, delete
//! files, field ids and time zones. None of the damage here changes a row of a data file, and readers lose or show rows by it.

use super::readers::{plant, site};
use super::*;
use crate::support::millpond::act;
use arrow::datatypes::{Field, Schema, TimeUnit};
use iceberg::spec::{Datum, Struct};

/// Writes a file's columns again under other fields.
fn edit_fields(path: &Path, edit: impl Fn(&Field) -> Field) {
    edit_rows(path, |b| {
        let fields: Vec<Field> = b.schema().fields().iter().map(|f| edit(f)).collect();
        let columns = b.columns().iter().zip(&fields).map(|(c, f)| arrow::compute::cast(c, f.data_type()).unwrap()).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    });
}

fn in_local_time(field: &Field) -> Field {
    let ty = match field.data_type() {
        DataType::Timestamp(..) => DataType::Timestamp(TimeUnit::Microsecond, None),
        other => other.clone(),
    };
    Field::new(field.name(), ty, field.is_nullable()).with_metadata(field.metadata().clone())
}

fn assert_right_of_structure(site: &Site, what: &str) -> Report {
    let report = judge(&site.pond, Options { caught_up: true, ..Options::default() });
    assert!(report.is_right() && report.is_proven(), "{what}: {report:#?}");
    report
}

#[test]
fn what_a_delta_table_asks_of_its_readers_is_compared() {
    let mut site = site(TableFormatKind::Delta);
    let action = |s: &Site, kind: &str, edit: &dyn Fn(&mut Value)| s.edit_commit("flat", kind, |a| edit(a.iter_mut().find_map(|a| a.get_mut(kind)).unwrap()));
    let protocol = |s: &Site, to: Value| action(s, "protocol", &|p| *p = to.clone());
    let named = |readers: Value, writers: Value| json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers, "writerFeatures": writers});
    plant(&mut site, "a protocol that is lost", "protocol", |s| s.edit_commit("flat", "protocol", |a| a.retain(|a| a.get("protocol").is_none())));
    for (what, to) in [
        ("a reader version that nobody knows", json!({"minReaderVersion": 99, "minWriterVersion": 2})),
        ("a writer version that nobody knows", json!({"minReaderVersion": 1, "minWriterVersion": 99})),
        ("a feature that nobody knows", named(json!(["futureThing"]), json!(["futureThing"]))),
        ("a feature that no worker writes", named(json!([]), json!(["rowTracking"]))),
        ("features that are not listed", json!({"minReaderVersion": 3, "minWriterVersion": 7})),
        ("a feature asked of readers alone", named(json!(["deletionVectors"]), json!([]))),
    ] {
        plant(&mut site, what, "protocol", |s| protocol(s, to));
    }
    let vector = |s: &Site| {
        let mut positions = vec![];
        roaring::RoaringTreemap::from_iter([0u64]).serialize_into(&mut positions).unwrap();
        let bytes = [1_681_511_377u32.to_le_bytes().to_vec(), positions].concat();
        action(s, "add", &|a| a["deletionVector"] = json!({"storageType": "i", "pathOrInlineDv": z85(&bytes), "sizeInBytes": bytes.len(), "cardinality": 1}));
    };
    plant(&mut site, "deletion vectors of which readers are not told", "protocol", vector);
    for mode in ["name", "id"] {
        plant(&mut site, &format!("columns that are mapped by {mode}"), "column-mapping", |s| action(s, "metaData", &|m| m["configuration"]["delta.columnMapping.mode"] = json!(mode)));
    }
    let hint = |s: &Site, text: &str| std::fs::write(s.folder("flat").join("_delta_log/_last_checkpoint"), text).unwrap();
    plant(&mut site, "a hint to a checkpoint ahead of the log", "last-checkpoint", |s| hint(s, r#"{"version":999,"size":3}"#));
    plant(&mut site, "a hint to a checkpoint that never was", "last-checkpoint", |s| hint(s, r#"{"version":0,"size":3}"#));
    plant(&mut site, "instants that are written as local time", "time-zone", |s| edit_fields(&s.live("flat")[0], in_local_time));
    plant(&mut site, "windows that are written as local time", "time-zone", |s| edit_fields(s.live("spend").last().unwrap(), in_local_time));
    // Nothing of that is wrong: a feature that others gave it, a checkpoint of theirs, a hint that nobody can read.
    site.mend();
    protocol(&site, named(json!(["deletionVectors"]), json!(["deletionVectors", "appendOnly", "invariants"])));
    assert_right_of_structure(&site, "a feature of others");
    site.mend();
    let root = site.lake().canonicalize().unwrap();
    let steps = ["compact", "checkpoint"].map(|step| json!({"in": "delta", "do": step, "table": "flat"}));
    act(&root, "proof", &steps);
    assert_right_of_structure(&site, "a compaction and a checkpoint of others");
    let folder = site.folder("flat").join("_delta_log");
    let checkpoint = files(&folder).into_iter().find(|p| p.to_str().unwrap().contains(".checkpoint.")).unwrap();
    let kept = std::fs::read(&checkpoint).unwrap();
    std::fs::remove_file(&checkpoint).unwrap();
    let report = judge(&site.pond, Options::default());
    assert!(report.findings.len() == 1 && report.findings[0].kind == "last-checkpoint", "{report:#?}");
    std::fs::write(&checkpoint, kept).unwrap();
    hint(&site, "{");
    let report = assert_right_of_structure(&site, "a hint that is cut short");
    assert!(report.notes.iter().any(|n| n.contains("_last_checkpoint is not readable")), "{report:#?}");
    site.done(14);
}

#[test]
fn what_manifest_lists_and_delete_files_say_is_compared() {
    let mut site = site(TableFormatKind::Iceberg);
    type Edit = fn(&mut ManifestFile);
    let edits: [(&str, Edit); 11] = [
        ("another length", |m| m.manifest_length += 1),
        ("another content", |m| m.content = ManifestContentType::Deletes),
        ("no added files", |m| m.added_files_count = Some(0)),
        ("an existing file", |m| m.existing_files_count = Some(1)),
        ("a deleted file", |m| m.deleted_files_count = Some(1)),
        ("other added rows", |m| m.added_rows_count = m.added_rows_count.map(|n| n + 1)),
        ("existing rows", |m| m.existing_rows_count = Some(7)),
        ("deleted rows", |m| m.deleted_rows_count = Some(7)),
        ("a higher sequence number", |m| m.sequence_number += 1),
        ("a lower sequence number", |m| m.sequence_number -= 1),
        ("too high a lowest sequence number", |m| m.min_sequence_number += 1),
    ];
    for (what, edit) in edits {
        plant(&mut site, &format!("a manifest list with {what}"), "manifest-list", |s| {
            s.edit_list("flat", |mut manifests| {
                edit(manifests.last_mut().unwrap());
                manifests
            });
        });
    }
    plant(&mut site, "a format version that knows no deletes", "format-version", |s| edit_json(&s.metadata("spend"), |m| m["format-version"] = json!(1)));
    for (what, to) in [("elsewhere in the lake", "/iceberg/proof/flat"), ("outside of the lake", "/../elsewhere")] {
        plant(&mut site, &format!("a table that is said to lie {what}"), "location", |s| {
            let to = format!("file://{}{to}", s.lake().canonicalize().unwrap().display());
            edit_json(&s.metadata("spend"), |m| m["location"] = json!(to));
        });
    }
    // Deletes that readers do not find, each by another way that they look.
    let deletes = |s: &Site| files(&s.folder("spend").join("data")).into_iter().rfind(|p| p.to_str().unwrap().contains("/deletes-")).unwrap();
    let target = |s: &Site, edit: &dyn Fn(&str) -> String| {
        edit_rows(&deletes(s), |b| {
            let paths = arrow::compute::cast(b.column(0), &DataType::Utf8).unwrap();
            let paths: StringArray = paths.as_string::<i32>().iter().map(|p| p.map(edit)).collect();
            RecordBatch::try_new(b.schema(), vec![arrow::compute::cast(&paths, b.column(0).data_type()).unwrap(), b.column(1).clone()]).unwrap()
        });
    };
    plant(&mut site, "deletes of files under another scheme", "delete-target", |s| target(s, &|p| p.replace("file:///", "file:/")));
    plant(&mut site, "deletes of files that never were", "delete-target", |s| target(s, &|p| p.replace("emit-", "omit-")));
    plant(&mut site, "deletes of files outside of the lake", "delete-target", |s| target(s, &|p| p.replace("file:///", "file:///elsewhere/")));
    plant(&mut site, "deletes older than what they delete from", "delete-target", |s| {
        s.edit_list("spend", |mut manifests| {
            for manifest in manifests.iter_mut().filter(|m| m.content == ManifestContentType::Deletes) {
                (manifest.sequence_number, manifest.min_sequence_number) = (0, 0);
            }
            manifests
        });
    });
    plant(&mut site, "deletes in another partition", "delete-target", |s| {
        s.edit_manifest_of(ManifestContentType::Deletes, "spend", |f| f.partition = Struct::from_iter([Some(iceberg::spec::Literal::date(7))]));
    });
    const FILE_PATH: i32 = 2_147_483_546;
    const POS: i32 = 2_147_483_545;
    plant(&mut site, "deletes whose bounds leave their files out", "delete-bounds", |s| {
        s.edit_manifest_of(ManifestContentType::Deletes, "spend", |f| drop(f.upper.insert(FILE_PATH, Datum::string("file:///a"))));
    });
    plant(&mut site, "deletes whose bounds leave their rows out", "delete-bounds", |s| {
        s.edit_manifest_of(ManifestContentType::Deletes, "spend", |f| drop(f.upper.insert(POS, Datum::long(-1))));
    });
    // Columns that readers do not find, or take for others.
    let id = "PARQUET:field_id";
    let with = |field: &Field, id: Option<i32>| {
        let metadata = id.map(|id| ("PARQUET:field_id".to_string(), id.to_string())).into_iter().collect();
        Field::new(field.name(), field.data_type().clone(), field.is_nullable()).with_metadata(metadata)
    };
    let own = |field: &Field| field.metadata()[id].parse::<i32>().unwrap();
    plant(&mut site, "a data file without field ids", "field-ids", |s| edit_fields(&s.live("flat")[0], |f| with(f, None)));
    plant(&mut site, "a data file with one field id less", "field-ids", |s| edit_fields(&s.live("flat")[0], |f| with(f, Some(own(f)).filter(|id| *id != 5))));
    plant(&mut site, "a data file whose columns lie under others' ids", "field-ids", |s| edit_fields(&s.live("flat")[0], |f| with(f, Some(if own(f) == 5 { 55 } else { own(f) }))));
    plant(&mut site, "instants that are written as local time", "time-zone", |s| edit_fields(&s.live("flat")[0], in_local_time));
    site.done(24);
    // Others wrote it anew, and cleaned up: what it was before is gone, and nothing is wrong with what it is.
    site.mend();
    let root = site.lake().canonicalize().unwrap();
    let old = site.live("flat")[0].clone();
    act(&root, "proof", &[json!({"in": "iceberg", "do": "compact", "table": "flat"})]);
    assert_right_of_structure(&site, "a compaction of others");
    std::fs::remove_file(old).unwrap();
    let report = assert_right_of_structure(&site, "files of the past removed");
    assert!(report.notes.iter().any(|n| n.contains("iceberg table flat: 1 files that only older snapshots name are gone")), "{report:#?}");
}
