//! Reading a section: known keys only, each of its kind, with its default from the key table.

use super::super::duration;
use super::super::keys::{Key as KnownKey, Kind, SECTIONS, Section, Words, nearest, nearest_key};
use super::super::problem::Span;
use super::super::raw::{Key, Node, Scalar, Value};
use super::Build;

/// The keys of one section that the file has.
pub(super) struct Fields<'n> {
    section: &'static Section,
    /// The key that the section stands under.
    pub at: Span,
    found: Vec<(&'static KnownKey, Span, &'n Node)>,
    /// Keys that the file has and this version lacks; they were reported.
    pub later: bool,
}

impl<'n> Fields<'n> {
    /// The value of a key; `None` when the file does not have it, or has nothing there.
    pub fn get(&self, name: &str) -> Option<&'n Node> {
        self.found.iter().find(|(key, ..)| key.name == name).map(|(_, _, node)| *node).filter(|node| !matches!(node.value, Value::Null))
    }

    /// Whether the file has the key, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.found.iter().any(|(key, ..)| key.name == name)
    }

    /// Where a key stands; the section's own place when it is not there.
    pub fn span(&self, name: &str) -> Span {
        self.found.iter().find(|(key, ..)| key.name == name).map_or(self.at, |(_, span, _)| *span)
    }

    fn default(&self, name: &str) -> Option<&'static str> {
        self.section.key(name).and_then(|key| key.default)
    }
}

/// A type with a comma in it, such as `decimal(12,2)`, that YAML tore there: its first half, which says so when it is read.
pub(super) fn is_torn(value: &Node) -> bool {
    matches!(&value.value, Value::Scalar(s) if s.text.matches(['(', '<']).count() > s.text.matches([')', '>']).count())
}

/// The other half, which looks like a key.
pub(super) fn is_rest(key: &Key, value: &Node) -> bool {
    matches!(value.value, Value::Null) && key.text.ends_with([')', '>'])
}

impl Build<'_> {
    /// Reads a map with fixed keys. Unknown keys are problems; one that is nearly a known key is
    /// read as that key, so that what stands below it is checked too.
    pub fn fields<'n>(&self, node: &'n Node, section: &'static Section, at: Span) -> Option<Fields<'n>> {
        let entries: &[(Key, Node)] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            other => {
                let names: Vec<_> = section.names().collect();
                self.wrong(node.span, format!("{} must be a map, not {}", section.title, other.kind()), &format!("keys: {}", names.join(", ")));
                return None;
            }
        };
        let mut found: Vec<(&'static KnownKey, Span, &'n Node)> = Vec::new();
        let mut misspelt = Vec::new();
        let mut later = false;
        let mut torn = false;
        for (key, value) in entries {
            if torn && is_rest(key, value) {
                continue;
            }
            torn = key.text == "type" && is_torn(value);
            match section.key(&key.text) {
                Some(known) if known.later => {
                    let problem = self.text.problem(key.span, format!("`{}` of {} is not in this version", key.text, section.title));
                    self.note(problem.unsupported());
                    later = true;
                }
                Some(known) => found.push((known, key.span, value)),
                None => {
                    let near = nearest_key(&key.text, section);
                    self.unknown_key(key, section, near);
                    if let Some(known) = near.and_then(|near| section.key(near)) {
                        misspelt.push((known, key.span, value));
                    }
                }
            }
        }
        for (known, span, value) in misspelt {
            if !found.iter().any(|(key, ..)| key.name == known.name) {
                found.push((known, span, value));
            }
        }
        for key in section.keys {
            match found.iter().find(|(found, ..)| found.name == key.name) {
                None if key.required => self.wrong(at, format!("{} needs `{}`", section.title, key.name), &example(key)),
                // Never read as if the key were not there: an empty `key:` would make a table append-only.
                Some((_, span, node)) if matches!(node.value, Value::Null) => self.wrong(*span, format!("`{}` has no value", key.name), &example(key)),
                _ => {}
            }
        }
        Some(Fields { section, at, found, later })
    }

    fn unknown_key(&self, key: &Key, section: &'static Section, near: Option<&'static str>) {
        let names: Vec<_> = section.names().collect();
        let elsewhere = SECTIONS.into_iter().find(|s| s.path != section.path && s.key(&key.text).is_some_and(|k| !k.later));
        let expected = match (near, elsewhere) {
            (None, Some(other)) => format!("`{}` belongs under {}; here: {}", key.text, other.path, names.join(", ")),
            _ => format!("one of {}", names.join(", ")),
        };
        self.note(self.text.problem(key.span, format!("unknown key `{}` in {}", key.text, section.title)).expected(expected).nearest(near));
    }

    /// An optional section: all its defaults when it is absent, `None` when it is no map.
    pub fn section<'n>(&self, fields: &Fields<'n>, name: &'static str, section: &'static Section) -> Option<Fields<'n>> {
        match fields.get(name) {
            Some(node) => self.fields(node, section, fields.span(name)),
            None => Some(Fields { section, at: fields.span(name), found: Vec::new(), later: false }),
        }
    }

    /// A map of any names.
    pub fn entries<'n>(&self, node: &'n Node, what: &str) -> Option<&'n [(Key, Node)]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            Value::Null => Some(&[]),
            other => {
                self.wrong(node.span, format!("`{what}` must be a map, not {}", other.kind()), "`name: …`, one or several");
                None
            }
        }
    }

    /// A list; a single text stands for a list of one.
    pub fn items<'n>(&self, node: &'n Node, what: &str) -> Option<Vec<&'n Node>> {
        match &node.value {
            Value::List(items) => Some(items.iter().collect()),
            Value::Scalar(_) => Some(vec![node]),
            other => {
                self.wrong(node.span, format!("`{what}` must be a list, not {}", other.kind()), "[one, two]");
                None
            }
        }
    }

    /// A scalar whose variables could all be substituted.
    pub fn text_of<'n>(&self, node: &'n Node, what: &str) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(scalar) if scalar.broken => None,
            Value::Scalar(scalar) => Some(scalar),
            other => {
                self.wrong(node.span, format!("{} where {what} belongs", other.kind()), what);
                None
            }
        }
    }

    /// A scalar that is not empty.
    pub fn filled<'n>(&self, node: &'n Node, what: &str) -> Option<&'n Scalar> {
        let scalar = self.text_of(node, what)?;
        if scalar.text.trim().is_empty() {
            self.wrong(node.span, format!("empty where {what} belongs"), what);
            return None;
        }
        Some(scalar)
    }

    /// Parses the value of a key, or its default.
    fn parsed<T>(&self, fields: &Fields<'_>, name: &'static str, what: &str, parse: impl Fn(&str) -> Result<T, duration::Misread>) -> Option<T> {
        let Some(node) = fields.get(name) else {
            // A default that did not parse would fail the test below that reads all of them.
            return fields.default(name).and_then(|text| parse(text).ok());
        };
        let scalar = self.text_of(node, what)?;
        match parse(&scalar.text) {
            Ok(value) => Some(value),
            Err(misread) => {
                let message = format!("`{}` is no {}", scalar.shown(), what.trim_start_matches("a "));
                let near = misread.nearest.filter(|_| scalar.before.is_none());
                self.note(self.text.problem(node.span, message).expected(misread.expected).nearest(near));
                None
            }
        }
    }

    pub fn duration_us(&self, fields: &Fields<'_>, name: &'static str) -> Option<i64> {
        self.parsed(fields, name, "a duration", duration::duration_us)
    }

    /// The outer `None` is a problem, the inner one `never`.
    pub fn duration_or_never(&self, fields: &Fields<'_>, name: &'static str) -> Option<Option<i64>> {
        self.parsed(fields, name, "a duration", |text| match text {
            "never" => Ok(None),
            text => duration::duration_us(text).map(Some).map_err(|m| duration::Misread { expected: "a duration such as 30s, or `never`", ..m }),
        })
    }

    pub fn bytes(&self, fields: &Fields<'_>, name: &'static str) -> Option<u64> {
        self.parsed(fields, name, "a size", duration::bytes)
    }

    pub fn integer(&self, fields: &Fields<'_>, name: &'static str) -> Option<u64> {
        self.parsed(fields, name, "a whole number", |text| {
            let plain = text.len() <= 18 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|_| plain).ok_or(duration::Misread { expected: "a whole number from 0", nearest: None })
        })
    }

    pub fn boolean(&self, fields: &Fields<'_>, name: &'static str) -> Option<bool> {
        self.parsed(fields, name, "a truth value", |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(duration::Misread { expected: "true or false", nearest: None }),
        })
    }

    /// The value of a key, or its default, as a text that is not empty.
    pub fn text_or_default(&self, fields: &Fields<'_>, name: &'static str, what: &str) -> Option<String> {
        match fields.get(name) {
            Some(node) => self.filled(node, what).map(|s| s.text.clone()),
            None => fields.default(name).map(String::from),
        }
    }

    /// One of the words of a key, or its default.
    pub fn word(&self, fields: &Fields<'_>, name: &'static str) -> Option<&'static str> {
        let key = fields.section.key(name)?;
        let (Kind::Word(words) | Kind::WordList(words) | Kind::WordOrSection(words, _)) = &key.kind else {
            return None;
        };
        match fields.get(name) {
            Some(node) => self.word_of(node, words, name),
            None => key.default.and_then(|default| words.now.iter().find(|w| **w == default).copied()),
        }
    }

    pub fn word_of(&self, node: &Node, words: &'static Words, what: &str) -> Option<&'static str> {
        let scalar = self.text_of(node, &format!("one of {}", words.now.join(", ")))?;
        if let Some(word) = words.now.iter().find(|w| **w == scalar.text) {
            return Some(word);
        }
        let shown = scalar.shown();
        let expected = format!("one of {}", words.now.join(", "));
        if words.later.contains(&scalar.text.as_str()) {
            self.note(self.text.problem(node.span, format!("`{what}: {shown}` is not in this version")).expected(expected).unsupported());
        } else {
            let near = nearest(&scalar.text, words.now.iter().copied());
            self.note(self.text.problem(node.span, format!("`{shown}` is no value of `{what}`")).expected(expected).nearest(near));
        }
        None
    }
}

/// How a missing key is written.
fn example(key: &KnownKey) -> String {
    match key.name {
        "pipeline" => "`pipeline: name`".into(),
        "sources" => "`sources: {events: {kafka: {…}, columns: {…}}}`".into(),
        "tables" => "`tables: {name: {sql: select …}}`".into(),
        "lake" => "`lake: {root: ./lake}`".into(),
        "root" => "`root: ./lake`, a folder".into(),
        "brokers" => "`brokers: host:9092`".into(),
        "columns" => "`columns: {user_id: string, event_time: timestamp}`".into(),
        name => format!("`{name}: …`: {}", decapitalized(key.doc)),
    }
}

fn decapitalized(doc: &str) -> String {
    let mut chars = doc.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
