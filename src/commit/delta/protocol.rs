//! What a table asks of its writers, and whether we can give it.
//!
//! Protocol version 2 for writers means append-only and column invariants; from 7 on every
//! feature is listed by name. A feature that is listed but not in use asks nothing of us.

use super::schema;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Features that a table may list without asking for more than we do.
const HARMLESS: [&str; 11] = [
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

/// Why we must not write to a table with this protocol and this metadata; names the feature.
pub(super) fn refusal(protocol: &Value, metadata: &Value) -> Option<String> {
    let reader = protocol["minReaderVersion"].as_i64().unwrap_or(0);
    let writer = protocol["minWriterVersion"].as_i64().unwrap_or(0);
    if reader > 3 || writer > 7 {
        return Some(format!("protocol reader {reader}, writer {writer} is newer than what millpond knows (3, 7)"));
    }
    let listed = |key: &str| protocol[key].as_array().cloned().unwrap_or_default();
    for feature in listed("readerFeatures").iter().chain(&listed("writerFeatures")).filter_map(Value::as_str) {
        if !HARMLESS.contains(&feature) {
            return Some(format!("table feature `{feature}`, which millpond does not write"));
        }
    }
    let config = |key: &str| metadata["configuration"][key].as_str();
    let on = |key: &str| config(key).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if config("delta.columnMapping.mode").is_some_and(|m| m != "none") {
        return Some("table feature `columnMapping` in use (delta.columnMapping.mode)".into());
    }
    for (key, feature) in [
        ("delta.enableChangeDataFeed", "changeDataFeed"),
        ("delta.enableRowTracking", "rowTracking"),
        ("delta.enableInCommitTimestamps", "inCommitTimestamp"),
        ("delta.enableIcebergCompatV1", "icebergCompatV1"),
        ("delta.enableIcebergCompatV2", "icebergCompatV2"),
    ] {
        if on(key) {
            return Some(format!("table feature `{feature}` in use ({key})"));
        }
    }
    if let Some(map) = metadata["configuration"].as_object() {
        if let Some(key) = map.keys().find(|k| k.starts_with("delta.constraints.")) {
            return Some(format!("table feature `checkConstraints` in use ({key})"));
        }
    }
    let fields = schema::parse_schema(metadata["schemaString"].as_str().unwrap_or_default()).unwrap_or_default();
    for field in &fields {
        for (key, feature) in [
            ("delta.invariants", "invariants"),
            ("delta.generationExpression", "generatedColumns"),
            ("delta.identity.start", "identityColumns"),
        ] {
            if field["metadata"].get(key).is_some() {
                return Some(format!("table feature `{feature}` in use (column {})", field["name"]));
            }
        }
    }
    None
}

/// The protocol action of a new table: the lowest versions that its types allow, so that every reader can.
pub(super) fn for_new_table(ntz: bool) -> Value {
    let lowest = json!({"minReaderVersion": 1, "minWriterVersion": 2});
    if ntz { with_ntz(&lowest).unwrap_or(lowest) } else { lowest }
}

/// The protocol with the feature that wall-clock timestamps need; `None` where it has it already.
/// A step up to named features must name what the old versions implied.
pub(super) fn with_ntz(protocol: &Value) -> Option<Value> {
    let names = |key: &str| -> Vec<String> {
        protocol[key].as_array().map(|a| a.iter().filter_map(|f| f.as_str().map(String::from)).collect()).unwrap_or_default()
    };
    let (mut readers, mut writers) = (names("readerFeatures"), names("writerFeatures"));
    if readers.iter().any(|f| f == "timestampNtz") && writers.iter().any(|f| f == "timestampNtz") {
        return None;
    }
    let writer = protocol["minWriterVersion"].as_i64().unwrap_or(2);
    let reader = protocol["minReaderVersion"].as_i64().unwrap_or(1);
    if reader == 2 {
        readers.push("columnMapping".into());
    }
    if writer < 7 {
        let implied: [(i64, &str); 7] = [
            (2, "appendOnly"),
            (2, "invariants"),
            (3, "checkConstraints"),
            (4, "changeDataFeed"),
            (4, "generatedColumns"),
            (5, "columnMapping"),
            (6, "identityColumns"),
        ];
        writers.extend(implied.iter().filter(|(v, _)| writer >= *v).map(|(_, f)| f.to_string()));
    }
    for list in [&mut readers, &mut writers] {
        if !list.iter().any(|f| f == "timestampNtz") {
            list.push("timestampNtz".into());
        }
    }
    Some(json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": readers, "writerFeatures": writers}))
}

/// Why this table property cannot be set on a table that we write.
pub(crate) fn property_refusal(key: &str, value: &str) -> Option<String> {
    let truthy = value.eq_ignore_ascii_case("true");
    let asks = match key {
        "delta.appendOnly" => truthy,
        "delta.columnMapping.mode" => value != "none",
        "delta.checkpointPolicy" => value != "classic",
        "delta.minReaderVersion" | "delta.minWriterVersion" => true,
        "delta.enableDeletionVectors" | "delta.enableTypeWidening" => truthy,
        _ if key.starts_with("delta.feature.") || key.starts_with("delta.constraints.") => true,
        _ => refusal(&json!({}), &json!({"configuration": {key: value}})).is_some(),
    };
    asks.then(|| format!("property `{key}` = `{value}` asks for a table feature that millpond does not write: remove it"))
}

/// Properties of a new table: the user's, and ours where he set none.
///
/// A checkpoint every 50 commits and one hour of log keep `_delta_log` at some thousands of small
/// files at one commit a second; the protocol's own default of 30 days would make it millions.
pub(super) fn configuration(properties: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.insert(super::upkeep::CHECKPOINT_INTERVAL.into(), "50".into());
    all.insert(super::upkeep::LOG_RETENTION.into(), "interval 1 hours".into());
    all.extend(properties.iter().map(|(k, v)| (k.clone(), v.clone())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(config: Value) -> Value {
        json!({"schemaString": r#"{"type":"struct","fields":[]}"#, "configuration": config})
    }

    #[test]
    fn features_in_use_are_refused_by_name() {
        let plain = json!({"minReaderVersion": 1, "minWriterVersion": 2});
        assert_eq!(refusal(&plain, &metadata(json!({}))), None);
        let named = |f: &str| json!({"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [], "writerFeatures": [f]});
        for f in ["v2Checkpoint", "domainMetadata", "rowTracking", "inCommitTimestamp", "clustering", "typeWidening", "catalogManaged"] {
            assert!(refusal(&named(f), &metadata(json!({}))).is_some_and(|r| r.contains(f)), "{f}");
        }
        for f in ["deletionVectors", "timestampNtz", "appendOnly", "changeDataFeed", "columnMapping"] {
            assert_eq!(refusal(&named(f), &metadata(json!({}))), None, "{f}");
        }
        let old = json!({"minReaderVersion": 2, "minWriterVersion": 5});
        assert!(refusal(&old, &metadata(json!({"delta.columnMapping.mode": "name"}))).unwrap().contains("columnMapping"));
        assert!(refusal(&old, &metadata(json!({"delta.enableChangeDataFeed": "true"}))).unwrap().contains("changeDataFeed"));
        assert!(refusal(&old, &metadata(json!({"delta.constraints.c": "a > 0"}))).unwrap().contains("checkConstraints"));
        assert!(refusal(&json!({"minReaderVersion": 4, "minWriterVersion": 8}), &metadata(json!({}))).is_some());
    }

    #[test]
    fn the_step_to_named_features_names_what_was_implied() {
        let up = for_new_table(true);
        assert_eq!(up["writerFeatures"], json!(["appendOnly", "invariants", "timestampNtz"]));
        assert_eq!(up["readerFeatures"], json!(["timestampNtz"]));
        assert_eq!(with_ntz(&up), None);
    }

    #[test]
    fn properties_that_ask_for_features_are_refused() {
        for (k, v) in [("delta.appendOnly", "true"), ("delta.enableChangeDataFeed", "true"), ("delta.feature.x", "supported")] {
            assert!(property_refusal(k, v).is_some_and(|r| r.contains(k)));
        }
        assert_eq!(property_refusal("delta.deletedFileRetentionDuration", "interval 1 days"), None);
        assert_eq!(property_refusal("owner", "me"), None);
    }
}
