//! One table, as declared. Whether its SQL can be planned is not judged here.

use std::collections::BTreeMap;

use super::super::keys::TABLE_FORMATS;
use super::super::raw::{Key, Node, Value};
use super::super::types::partition_field;
use super::super::{Emit, PartitionField, TableDecl, TableFormatKind, Variables};
use super::super::problem::Span;
use super::{Build, OptionPart, TablePart};
use super::fields::Fields;

impl Build<'_> {
    pub fn table(&self, name: &Key, node: &Node, fields: &Fields<'_>) -> Option<TableDecl> {
        let sql = fields.get("sql").and_then(|node| Some((self.filled(node, "a select")?.text.clone(), self.sql_at(node))));
        let key = match fields.get("key") {
            Some(node) => self.names(node, "key").map(Some),
            None => Some(None),
        };
        let allowed_lateness = self.duration_us(fields, "allowed_lateness");
        let emit = self.word(fields, "emit").map(|word| if word == "on_update" { Emit::OnUpdate } else { Emit::OnClose });
        let formats = self.formats(fields);
        let partition_by = match fields.get("partition_by") {
            Some(node) => self.partition_by(node),
            None => Some((Vec::new(), true)),
        };
        let properties = match fields.get("properties") {
            Some(node) => self.properties(node),
            None => Some(BTreeMap::new()),
        };
        let comment = match fields.get("comment") {
            Some(node) => self.text_of(node, "a text").map(|s| Some(s.text.clone())),
            None => Some(None),
        };
        let (sql, sql_at) = sql?;
        let (partition_by, partition_at, whole) = match partition_by {
            Some((fields, whole)) => {
                let (fields, at): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
                (fields, at, whole)
            }
            None => (vec![], vec![], false),
        };
        let right = key.is_some() && allowed_lateness.is_some() && emit.is_some() && formats.is_some() && whole && properties.is_some() && comment.is_some();
        let items = key.as_ref().and_then(|_| fields.get("key")).map(|node| self.key_items(node)).unwrap_or_default();
        let decl = TableDecl {
            name: name.text.clone(),
            sql,
            key: key.flatten(),
            allowed_lateness_us: allowed_lateness.unwrap_or_default(),
            emit: emit.unwrap_or(Emit::OnClose),
            formats: formats.unwrap_or_default(),
            partition_by,
            properties: properties.unwrap_or_default(),
            comment: comment.flatten(),
            sql_at,
        };
        self.parts.borrow_mut().tables.push(TablePart {
            decl: decl.clone(),
            name_at: name.span,
            key_at: fields.get("key").map(|node| node.span),
            key_items: items,
            emit_at: fields.get("emit").map(|node| node.span),
            lateness_at: fields.get("allowed_lateness").map(|node| node.span),
            formats_at: fields.get("formats").map(|node| node.span),
            partition_at,
            properties: fields.get("properties").map(property_parts).unwrap_or_default(),
            variables: self.variables(node),
        });
        right.then_some(decl)
    }

    fn variables(&self, node: &Node) -> Variables {
        fn values(node: &Node, out: &mut Vec<(String, String)>) {
            match &node.value {
                Value::Null => {}
                Value::Scalar(scalar) => out.extend(scalar.values.iter().cloned()),
                Value::List(items) => items.iter().for_each(|item| values(item, out)),
                Value::Map(entries) => entries.iter().for_each(|(_, value)| values(value, out)),
            }
        }
        let mut found = vec![];
        values(node, &mut found);
        Variables::new(found, (1..=self.text.line_count()).map(|line| self.text.line(line)))
    }

    fn key_items(&self, node: &Node) -> Vec<(String, Span)> {
        match &node.value {
            Value::List(items) => items.iter().flat_map(|item| self.key_items(item)).collect(),
            Value::Scalar(scalar) => vec![(scalar.text.clone(), node.span)],
            _ => vec![],
        }
    }

    /// Where the first character of the SQL stands. A quoted text begins behind its quote; the place
    /// of a block (`|`, `>`) already is that of its first line.
    fn sql_at(&self, node: &Node) -> (usize, usize) {
        let span = node.span;
        match self.text.line(span.line).chars().nth(span.column - 1) {
            Some('"' | '\'') => (span.line, span.column + 1),
            _ => (span.line, span.column),
        }
    }

    /// A list of different names, at least one.
    fn names(&self, node: &Node, what: &str) -> Option<Vec<String>> {
        let items = self.items(node, what)?;
        if items.is_empty() {
            self.wrong(node.span, format!("`{what}` is empty"), "at least one column, or no `key` for an append-only table");
        }
        let mut names: Vec<String> = Vec::new();
        for item in &items {
            if let Some(scalar) = self.filled(item, "a column's name") {
                match names.contains(&scalar.text) {
                    true => self.wrong(item.span, format!("`{}` stands in `{what}` twice", scalar.shown()), "each column once"),
                    false => names.push(scalar.text.clone()),
                }
            }
        }
        (!items.is_empty() && names.len() == items.len()).then_some(names)
    }

    fn formats(&self, fields: &Fields<'_>) -> Option<Vec<TableFormatKind>> {
        let Some(node) = fields.get("formats") else {
            return Some(TableFormatKind::ALL.to_vec());
        };
        let items = self.items(node, "formats")?;
        if items.is_empty() {
            self.wrong(node.span, "`formats` is empty", "iceberg, delta or both");
        }
        let mut formats = Vec::new();
        for item in &items {
            let Some(format) = self.word_of(item, &TABLE_FORMATS, "formats").and_then(TableFormatKind::named) else { continue };
            match formats.contains(&format) {
                true => self.wrong(item.span, format!("`{format}` stands in `formats` twice"), "each format once"),
                false => formats.push(format),
            }
        }
        (!items.is_empty() && formats.len() == items.len()).then_some(formats)
    }

    /// The fields that are right, each with the place of its column, and whether all of them are.
    fn partition_by(&self, node: &Node) -> Option<(Vec<(PartitionField, Span)>, bool)> {
        let items = self.items(node, "partition_by")?;
        let mut fields: Vec<(PartitionField, Span)> = Vec::new();
        for item in &items {
            let Some(scalar) = self.text_of(item, "a column, or day(column)") else { continue };
            match partition_field(&scalar.text) {
                Err(misfit) => self.misfit(item, scalar, misfit),
                Ok(field) if fields.iter().any(|(known, _)| *known == field) => self.wrong(item.span, format!("`{}` stands in `partition_by` twice", scalar.shown()), "each field once"),
                Ok(field) => {
                    let at = scalar.text.rfind(&field.column).map(|at| scalar.text[..at].chars().count());
                    let span = at.map_or(item.span, |at| self.within(item.span, scalar, at, field.column.chars().count()));
                    fields.push((field, span));
                }
            }
        }
        let whole = fields.len() == items.len();
        Some((fields, whole))
    }

    fn properties(&self, node: &Node) -> Option<BTreeMap<String, String>> {
        let entries = self.entries(node, "properties")?;
        let mut properties = BTreeMap::new();
        for (key, value) in entries {
            if key.text.starts_with("millpond.") {
                self.wrong(key.span, format!("the property `{}` is Millpond's own", key.text), "another name");
            } else if let Some(scalar) = self.text_of(value, "a text") {
                properties.insert(key.text.clone(), scalar.text.clone());
            }
        }
        (properties.len() == entries.len()).then_some(properties)
    }
}

/// The properties that are texts, be they right or not.
fn property_parts(node: &Node) -> Vec<OptionPart> {
    let Value::Map(entries) = &node.value else { return vec![] };
    let each = entries.iter().filter_map(|(key, value)| match &value.value {
        Value::Scalar(scalar) if !scalar.broken && !key.text.starts_with("millpond.") => {
            Some(OptionPart { name: key.text.clone(), value: scalar.text.clone(), shown: scalar.shown().to_string(), name_at: key.span, value_at: value.span })
        }
        _ => None,
    });
    each.collect()
}
