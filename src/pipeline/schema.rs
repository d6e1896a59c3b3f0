//! A JSON Schema of the pipeline file, for an editor's completion and hints.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Section, TOP, Words};
use super::types::TYPE_NAMES;

/// What a `${VAR}` in a value looks like: allowed wherever a value of another shape is wanted.
const VARIABLE: &str = r"\$\{.*\}";

/// The JSON Schema (2020-12) of a pipeline file. What needs more than a look at the file (a
/// column that no source has, a topic that is not there) only `validate` can tell.
pub fn json_schema() -> Value {
    let mut schema = section(&TOP);
    schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".into(), json!("Millpond pipeline"));
    Value::Object(schema)
}

fn section(section: &'static Section) -> Map<String, Value> {
    let mut properties = Map::new();
    for key in section.keys.iter().filter(|k| !k.later) {
        properties.insert(key.name.into(), property(key));
    }
    let required: Vec<_> = section.keys.iter().filter(|k| k.required).map(|k| k.name).collect();
    let mut schema = Map::new();
    schema.insert("type".into(), json!("object"));
    schema.insert("properties".into(), Value::Object(properties));
    schema.insert("additionalProperties".into(), json!(false));
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    // Exactly one of the ways in: the keys that exclude each other.
    match section.path {
        "sources.<source>" => schema.insert("oneOf".into(), json!([{"required": ["kafka"]}, {"required": ["file"]}])),
        "sources.<source>.kafka.start" => schema.insert("oneOf".into(), json!([{"required": ["timestamp"]}, {"required": ["offsets"]}])),
        _ => None,
    };
    schema
}

fn property(key: &'static Key) -> Value {
    let mut schema = kind(&key.kind);
    schema.insert("description".into(), json!(key.doc));
    if let Some(default) = key.default {
        schema.insert("default".into(), default_value(&key.kind, default));
    }
    Value::Object(schema)
}

fn default_value(kind: &Kind, written: &str) -> Value {
    match kind {
        Kind::Bool => json!(written == "true"),
        Kind::Integer => written.parse::<u64>().map_or(Value::Null, |n| json!(n)),
        Kind::WordList(words) => json!(words.now.iter().filter(|w| written.contains(**w)).collect::<Vec<_>>()),
        _ => json!(written),
    }
}

fn kind(kind: &'static Kind) -> Map<String, Value> {
    let scalar = json!(["string", "number", "boolean"]);
    let value = match kind {
        Kind::Text => json!({"type": scalar}),
        Kind::Name => json!({"type": "string", "pattern": either("[a-z][a-z0-9_-]*")}),
        Kind::Bool => json!({"anyOf": [{"type": "boolean"}, variable()]}),
        Kind::Integer => json!({"anyOf": [{"type": "integer", "minimum": 0}, variable()]}),
        Kind::Duration => json!({"type": "string", "pattern": either("[0-9]+ ?(ms|s|m|h|d)")}),
        Kind::DurationOrNever => json!({"type": "string", "pattern": either("never|[0-9]+ ?(ms|s|m|h|d)")}),
        Kind::Bytes => json!({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": either("[0-9]+ ?(B|[KMGT]i?B)?")}]}),
        Kind::Address => json!({"type": "string", "pattern": either(".+:[0-9]+")}),
        Kind::Word(words) => return word(words),
        Kind::WordList(words) => json!({"anyOf": [{"type": "array", "items": word(words), "uniqueItems": true, "minItems": 1}, word(words)]}),
        Kind::TextList => json!({"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "string"}]}),
        Kind::TextMap => json!({"type": "object", "additionalProperties": {"type": scalar}}),
        Kind::OffsetMap => json!({"type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": {"type": "integer", "minimum": 0}}),
        Kind::Section(inner) => return section(inner),
        Kind::WordOrSection(words, inner) => json!({"anyOf": [word(words), section(inner)]}),
        Kind::TextOrSection(inner) => json!({"anyOf": [{"type": "string"}, section(inner)]}),
        Kind::Named(inner) => json!({"type": "object", "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"}, "additionalProperties": section(inner), "minProperties": 1}),
        Kind::Columns(inner) => json!({"type": "object", "additionalProperties": {"anyOf": [column_type(), section(inner)]}, "minProperties": 1}),
    };
    match value {
        Value::Object(map) => map,
        // Every arm above is written as an object.
        _ => Map::new(),
    }
}

fn variable() -> Value {
    json!({"type": "string", "pattern": VARIABLE})
}

fn either(pattern: &str) -> String {
    format!("^({pattern})$|{VARIABLE}")
}

fn word(words: &Words) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("anyOf".into(), json!([{"enum": words.now}, variable()]));
    map
}

/// A type's text: the plain names for completion, a pattern for those with parameters.
fn column_type() -> Value {
    let plain: Vec<_> = TYPE_NAMES.into_iter().filter(|n| !matches!(*n, "decimal" | "list" | "struct" | "map")).collect();
    let pattern = format!("^({})( not null)?$|^(decimal *\\(|list *<|struct *<|map *<)|{VARIABLE}", plain.join("|"));
    json!({"anyOf": [{"enum": plain}, {"type": "string", "pattern": pattern}]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::keys::SECTIONS;

    /// Walks the schema along a path of keys (`*` is any name).
    fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
        path.split('.').fold(schema, |schema, step| {
            let schema = schema.get("anyOf").and_then(|any| any.as_array()?.iter().find(|s| s.get("properties").is_some())).unwrap_or(schema);
            let next = if step == "*" { &schema["additionalProperties"] } else { &schema["properties"][step] };
            assert!(next.is_object(), "{path}: no {step} in {schema}");
            next
        })
    }

    #[test]
    fn the_schema_knows_every_key_and_no_later_one() {
        let schema = json_schema();
        for (section, path) in SECTIONS.iter().skip(1).zip([
            "sources.*",
            "sources.*.kafka",
            "sources.*.kafka.start",
            "sources.*.file",
            "sources.*.columns.*",
            "sources.*.watermark",
            "tables.*",
            "lake",
            "lake.iceberg",
            "epoch",
            "commit",
            "backlog",
            "clean",
        ]) {
            for key in section.keys.iter().filter(|k| !k.later) {
                let found = at(&schema, &format!("{path}.{}", key.name));
                assert_eq!(found["description"], key.doc);
            }
        }
        assert!(!schema.to_string().contains("sort_by"));
        assert_eq!(at(&schema, "tables.*.formats")["default"], json!(["iceberg", "delta"]));
        assert_eq!(at(&schema, "sources.*.max_depth")["default"], json!(512));
        assert_eq!(schema["required"], json!(["pipeline", "sources", "tables", "lake"]));
    }
}
