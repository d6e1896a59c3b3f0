//! What a Delta table asks of its readers and writers, against what is in it: the `protocol` action, the features that
//! are in use, and the hint by which readers find the newest checkpoint.
//!
//! Delta protocol, "Protocol Evolution" and "Table Features": a reader that does not know a feature refuses the table,
//! and one that is not told of a feature reads wrong rows.

use serde_json::Value;
use std::collections::BTreeSet;

/// Features that a table may list while workers write to it.
const KNOWN: [&str; 11] = [
    "appendOnly",
    "invariants",
    "checkConstraints",
    "changeDataFeed",
    "generatedColumns",
    "identityColumns",
    "allowColumnDefaults",
    "columnMapping",
    "timestampNtz",
    "deletionVectors",
    "vacuumProtocolCheck",
];

/// What is wrong with a table's newest `protocol` and `metaData`. `vectors`: it has deletion vectors.
pub fn check(protocol: &Value, metadata: &Value, vectors: bool) -> Vec<(&'static str, String)> {
    let mut wrong = vec![];
    if let Some(mode) = metadata["configuration"]["delta.columnMapping.mode"].as_str().filter(|m| *m != "none") {
        let text = format!("its columns are mapped by {mode} (delta.columnMapping.mode): readers look for physical names, which files of ours have not, and no worker writes to it");
        wrong.push(("column-mapping", text));
    }
    wrong.extend(versions(protocol, metadata, vectors).into_iter().map(|text| ("protocol", text)));
    wrong
}

fn versions(protocol: &Value, metadata: &Value, vectors: bool) -> Vec<String> {
    if protocol.is_null() {
        return vec!["its log holds no protocol action: readers refuse it".into()];
    }
    let (Some(reader), Some(writer)) = (protocol["minReaderVersion"].as_u64(), protocol["minWriterVersion"].as_u64()) else {
        return vec![format!("its protocol states no versions: {protocol}")];
    };
    let mut wrong = vec![];
    if !(1..=3).contains(&reader) || !(1..=7).contains(&writer) {
        wrong.push(format!("its protocol asks for reader version {reader} and writer version {writer}: readers know 1 to 3, and workers write 1 to 7"));
    }
    let listed = |key: &str| -> BTreeSet<String> { protocol[key].as_array().into_iter().flatten().filter_map(|f| f.as_str().map(str::to_string)).collect() };
    let (readers, writers) = (listed("readerFeatures"), listed("writerFeatures"));
    for (key, version, from, features) in [("readerFeatures", reader, 3, &readers), ("writerFeatures", writer, 7, &writers)] {
        if version == from && !protocol[key].is_array() {
            wrong.push(format!("its protocol is of version {version} and lists no {key}: readers refuse it"));
        }
        if version < from && !features.is_empty() {
            wrong.push(format!("its protocol is of version {version} and lists {key}, which begin with version {from}: readers refuse it"));
        }
    }
    let strange: Vec<&str> = readers.union(&writers).map(String::as_str).filter(|f| !KNOWN.contains(f)).collect();
    if !strange.is_empty() {
        wrong.push(format!("its protocol asks for {}: readers that do not know it refuse the table, and no worker writes to it", strange.join(", ")));
    }
    let unwritten: Vec<&str> = readers.difference(&writers).map(String::as_str).collect();
    if writer >= 7 && !unwritten.is_empty() {
        wrong.push(format!("its protocol asks {} of readers and not of writers: readers refuse it", unwritten.join(", ")));
    }
    let schema = metadata["schemaString"].as_str().and_then(|t| serde_json::from_str::<Value>(t).ok()).unwrap_or_default();
    for (feature, used, cost) in [
        ("deletionVectors", vectors, "readers show rows that were deleted"),
        ("timestampNtz", uses(&schema, "timestamp_ntz"), "readers that do not know its type refuse it"),
    ] {
        if used && !(reader >= 3 && readers.contains(feature)) {
            wrong.push(format!("it uses {feature}, and its protocol does not ask it of readers: {cost}"));
        }
    }
    wrong
}

/// Whether a type of a Delta schema is this primitive one, or holds it.
fn uses(ty: &Value, primitive: &str) -> bool {
    match ty {
        Value::String(name) => name == primitive,
        Value::Object(_) => {
            let fields = ty["fields"].as_array().into_iter().flatten();
            ["type", "elementType", "keyType", "valueType"].iter().any(|k| uses(&ty[*k], primitive)) || fields.into_iter().any(|f| uses(&f["type"], primitive))
        }
        _ => false,
    }
}

/// What the hint beside the log says of its newest checkpoint.
pub enum Hint {
    Fine,
    /// Readers that cannot parse it list the log.
    Unreadable(String),
    Wrong(String),
}

/// `newest` version of the log; `exists`: its checkpoint of a version is there, whole.
pub fn hint(bytes: &[u8], newest: u64, exists: impl Fn(u64) -> bool) -> Hint {
    let version = match serde_json::from_slice::<Value>(bytes) {
        Ok(hint) => hint["version"].as_u64().ok_or_else(|| "it names no version".to_string()),
        Err(e) => Err(e.to_string()),
    };
    match version {
        Err(why) => Hint::Unreadable(format!("its _last_checkpoint is not readable: {why}")),
        Ok(version) if version > newest => Hint::Wrong(format!("its _last_checkpoint names version {version}, and its log ends at version {newest}: readers find nothing there")),
        Ok(version) if !exists(version) => Hint::Wrong(format!("its _last_checkpoint names the checkpoint of version {version}, which is not there: readers that begin at it find nothing")),
        Ok(_) => Hint::Fine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(config: Value, ty: Value) -> Value {
        let schema = json!({"type": "struct", "fields": [{"name": "timestamp_ntz", "type": "string"}, {"name": "c", "type": ty}]});
        json!({"configuration": config, "schemaString": schema.to_string()})
    }

    fn named(readers: &[&str], writers: &[&str]) -> Value {
        json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers, "writerFeatures": writers})
    }

    #[test]
    fn tables_of_ours_and_those_that_others_gave_features_are_right() {
        let plain = metadata(json!({"delta.columnMapping.mode": "none"}), json!("timestamp"));
        let local = metadata(json!({}), json!({"type": "map", "keyType": "string", "valueType": {"type": "array", "elementType": "timestamp_ntz"}}));
        for (protocol, metadata, vectors) in [
            (json!({"minReaderVersion": 1, "minWriterVersion": 2}), &plain, false),
            (json!({"minReaderVersion": 2, "minWriterVersion": 5, "readerFeatures": [], "writerFeatures": null}), &plain, false),
            (json!({"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["appendOnly"]}), &plain, false),
            (named(&[], &["invariants"]), &plain, false),
            (named(&["deletionVectors"], &["deletionVectors"]), &plain, true),
            (named(&["timestampNtz", "columnMapping"], &["appendOnly", "columnMapping", "timestampNtz"]), &local, false),
        ] {
            assert_eq!(check(&protocol, metadata, vectors), [], "{protocol}");
        }
    }

    #[test]
    fn what_readers_refuse_or_are_not_told_is_named() {
        let plain = metadata(json!({}), json!("timestamp"));
        let local = metadata(json!({}), json!("timestamp_ntz"));
        let lowest = json!({"minReaderVersion": 1, "minWriterVersion": 2});
        for (protocol, metadata, vectors, said) in [
            (Value::Null, &plain, false, "no protocol action"),
            (json!({"minReaderVersion": 1}), &plain, false, "states no versions"),
            (json!({"minReaderVersion": 99, "minWriterVersion": 2}), &plain, false, "reader version 99"),
            (json!({"minReaderVersion": 1, "minWriterVersion": 8}), &plain, false, "writer version 8"),
            (json!({"minReaderVersion": 3, "minWriterVersion": 7, "writerFeatures": []}), &plain, false, "lists no readerFeatures"),
            (json!({"minReaderVersion": 1, "minWriterVersion": 7}), &plain, false, "lists no writerFeatures"),
            (json!({"minReaderVersion": 1, "minWriterVersion": 2, "readerFeatures": ["timestampNtz"]}), &plain, false, "begin with version 3"),
            (named(&["futureThing"], &["futureThing"]), &plain, false, "futureThing"),
            (named(&["deletionVectors"], &[]), &plain, false, "not of writers"),
            (lowest.clone(), &plain, true, "rows that were deleted"),
            (lowest, &local, false, "timestampNtz"),
        ] {
            let wrong = check(&protocol, metadata, vectors);
            assert!(wrong.iter().any(|(kind, text)| *kind == "protocol" && text.contains(said)), "{protocol}: {wrong:?}");
        }
        let mapped = metadata_of_mode("name");
        assert_eq!(check(&named(&["columnMapping"], &["columnMapping"]), &mapped, false)[0].0, "column-mapping");
    }

    fn metadata_of_mode(mode: &str) -> Value {
        metadata(json!({"delta.columnMapping.mode": mode}), json!("string"))
    }

    #[test]
    fn a_hint_leads_to_a_checkpoint_that_is_there() {
        let said = |text: &str| hint(text.as_bytes(), 12, |v| v == 10);
        assert!(matches!(said(r#"{"version":10,"size":3}"#), Hint::Fine));
        assert!(matches!(said(r#"{"version":5}"#), Hint::Wrong(_)) && matches!(said(r#"{"version":13}"#), Hint::Wrong(_)));
        assert!(matches!(said("{"), Hint::Unreadable(_)) && matches!(said("{}"), Hint::Unreadable(_)));
    }
}
