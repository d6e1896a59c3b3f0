//! YAML, parsed loosely: a tree of texts, lists and maps that knows where each word stands.
//!
//! Scalars stay texts; what a text has to be (a duration, a number, a name) is for the strict
//! build to say, after variables were substituted.

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar as YamlScalar, YamlData};

use super::problem::{Problem, SourceText, Span};

/// A node of the tree.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub span: Span,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file. Keys are texts and unique.
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub span: Span,
    pub text: String,
}

#[derive(Debug, Clone)]
pub(super) struct Scalar {
    pub text: String,
    /// The text as written, where variables were substituted since: values of variables may be
    /// secrets and are never shown.
    pub before: Option<String>,
    /// A variable could not be substituted; that was reported, more would only be noise.
    pub broken: bool,
    /// What its variables stand for: as written, and the value.
    pub values: Vec<(String, String)>,
}

impl Scalar {
    /// The text as it may be shown.
    pub fn shown(&self) -> &str {
        self.before.as_deref().unwrap_or(&self.text)
    }
}

impl Value {
    /// What this is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// First character of a key that stood there before; see [`parse`]. Private use characters cannot
/// be typed by accident, and no key may start with one.
const DOUBLE: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

/// Parses the text of a pipeline file. A text that is no YAML yields the one problem that ended
/// it; every duplicate key is a problem, and the tree keeps the first of them.
pub(super) fn parse(text: &SourceText, problems: &mut Vec<Problem>) -> Option<Node> {
    let mut lines: Vec<Vec<char>> = (1..=text.line_count()).map(|l| text.line(l).chars().collect()).collect();
    // The YAML crate stops at a duplicate key. So that the rest of the file is checked all the
    // same, the double gets another first letter, in a copy, and the copy is parsed again.
    for double in DOUBLE {
        let copy: String = lines.iter().map(|l| l.iter().collect::<String>()).collect::<Vec<_>>().join("\n");
        let error = match MarkedYaml::load_from_str(&copy) {
            Ok(documents) => return tree(text, &documents, problems),
            Err(error) => error,
        };
        let (line, column) = (error.marker().line(), error.marker().col() + 1);
        let letter = lines.get_mut(line.wrapping_sub(1)).and_then(|l| {
            let quote = l.get(column - 1).is_some_and(|c| matches!(c, '"' | '\''));
            let first = column - 1 + usize::from(quote);
            let length = l[first.min(l.len())..].iter().take_while(|c| !matches!(c, ':' | '"' | '\'' | ' ')).count();
            l.get_mut(first).map(|c| (c, Span { line, column: first + 1, length }))
        });
        match letter {
            Some((letter, span)) if error.info().starts_with("duplicated key") => {
                let name: String = text.line(line).chars().skip(span.column - 1).take(span.length).collect();
                problems.push(text.problem(span, format!("`{name}` stands here twice")).expected("each key once; remove one of the two"));
                *letter = double;
            }
            _ => {
                problems.push(syntax(text, line, column, error.info()));
                return None;
            }
        }
    }
    None
}

fn syntax(text: &SourceText, line: usize, column: usize, info: &str) -> Problem {
    // The scanner may stand behind the last line when it notices.
    let mut line = line.clamp(1, text.line_count());
    let mut column = column;
    while line > 1 && text.line(line).trim().is_empty() {
        line -= 1;
        column = text.line(line).trim_end().chars().count();
    }
    let written = text.line(line);
    let column = column.clamp(1, written.chars().count() + 1);
    let problem = text.problem(Span { line, column, length: 1 }, format!("this is not YAML: {}", info.trim_end_matches('.').to_lowercase()));
    let near = [line.saturating_sub(1), line].map(|l| text.line(l));
    if written.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t') {
        problem.expected("spaces for indentation, not tabs")
    } else if near.iter().any(|l| l.contains('{') && l.contains(": ${")) {
        problem.expected("quotes around a variable inside { }: \"${NAME}\"")
    } else if written.contains('{') && written.contains(['<', '(']) {
        problem.expected("quotes around a type inside { }: \"decimal(12,2)\", \"struct<a: int64>\"")
    } else if near.iter().any(|l| l.contains('{') && l.contains('[')) {
        problem.expected("quotes around a path with [ ] inside { }: \"lines[0].sku\"")
    } else if info.contains("mapping values are not allowed") || info.contains("comment intercepting") {
        problem.expected("quotes around a value with `: ` or ` #` in it; for SQL `sql: |`, and the select on the lines below")
    } else {
        problem
    }
}

fn tree(text: &SourceText, documents: &[MarkedYaml<'_>], problems: &mut Vec<Problem>) -> Option<Node> {
    if let Some(second) = documents.get(1) {
        let span = span(text, second);
        problems.push(text.problem(span, "a second document (`---`) in the same file").expected("one pipeline per file"));
    }
    match documents.first() {
        Some(first) if !matches!(first.data, YamlData::BadValue | YamlData::Value(YamlScalar::Null)) => Some(node(text, first, problems)),
        _ => {
            problems.push(text.problem(Span::START, "the file is empty").expected("a pipeline: `pipeline`, `sources`, `tables` and `lake`"));
            None
        }
    }
}

fn span(text: &SourceText, yaml: &MarkedYaml<'_>) -> Span {
    let (start, end) = (yaml.span.start, yaml.span.end);
    let line = start.line().clamp(1, text.line_count());
    let written = text.line(line);
    let column = start.col() + 1;
    let rest = written.trim_end().chars().count().saturating_sub(start.col());
    let length = if end.line() == start.line() { end.col().saturating_sub(start.col()).min(rest) } else { rest };
    let length = length.max(1);
    // Within brackets the parser's span of a list or a map ends before its own closing one.
    let at = |i: usize| written.chars().nth(i);
    let close = match at(start.col()) {
        Some('[') => Some(']'),
        Some('{') => Some('}'),
        _ => None,
    };
    let unclosed = close.is_some() && at(start.col() + length - 1) != close && at(start.col() + length) == close;
    Span { line, column, length: length + usize::from(unclosed) }
}

fn node(text: &SourceText, yaml: &MarkedYaml<'_>, problems: &mut Vec<Problem>) -> Node {
    let span = span(text, yaml);
    let value = match &yaml.data {
        YamlData::Value(YamlScalar::Null) => Value::Null,
        YamlData::Value(scalar) => Value::Scalar(Scalar { text: scalar_text(text, scalar, span), before: None, broken: false, values: vec![] }),
        YamlData::Representation(words, ..) => Value::Scalar(Scalar { text: words.to_string(), before: None, broken: false, values: vec![] }),
        YamlData::Sequence(items) => Value::List(items.iter().map(|item| node(text, item, problems)).collect()),
        YamlData::Mapping(entries) => Value::Map(entries.iter().filter_map(|(key, value)| entry(text, key, value, problems)).collect()),
        YamlData::Tagged(_, inner) => {
            problems.push(text.problem(span, "YAML tags (`!name`) mean nothing here").expected("the value without its tag"));
            return node(text, inner, problems);
        }
        YamlData::Alias(_) | YamlData::BadValue => {
            problems.push(text.problem(span, "this value cannot be read").expected("a text, a list or a map"));
            Value::Null
        }
    };
    Node { span, value }
}

fn entry(text: &SourceText, key: &MarkedYaml<'_>, value: &MarkedYaml<'_>, problems: &mut Vec<Problem>) -> Option<(Key, Node)> {
    let at = span(text, key);
    let YamlData::Value(scalar) = &key.data else {
        problems.push(text.problem(at, "a key must be a text").expected("`name: value`"));
        return None;
    };
    let name = match scalar {
        YamlScalar::Null => String::new(),
        scalar => scalar_text(text, scalar, at),
    };
    let value = node(text, value, problems);
    // The double of another key, already reported: what it holds was checked loosely only.
    if name.starts_with(|c| DOUBLE.contains(&c)) {
        return None;
    }
    if name == "<<" {
        problems.push(text.problem(at, "YAML merge keys (`<<`) are not supported").expected("the keys written out"));
        return None;
    }
    Some((Key { span: at, text: name }, value))
}

/// The text of a scalar. The YAML crate has already made numbers of what looks like one (`1.10`,
/// `0x1f`): their text is taken from the file.
fn scalar_text(text: &SourceText, scalar: &YamlScalar<'_>, span: Span) -> String {
    if let YamlScalar::String(words) = scalar {
        return words.to_string();
    }
    let written: String = text.line(span.line).chars().skip(span.column - 1).take(span.length).collect();
    let written = written.trim();
    // An alias (`*name`) or a tagged value: the value it stands for.
    match scalar {
        YamlScalar::Boolean(b) if written.starts_with(['*', '!', '&']) => b.to_string(),
        YamlScalar::Integer(i) if written.starts_with(['*', '!', '&']) => i.to_string(),
        YamlScalar::FloatingPoint(f) if written.starts_with(['*', '!', '&']) => f.to_string(),
        _ => written.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<Node>, Vec<Problem>) {
        let mut problems = Vec::new();
        let node = parse(&SourceText::new("t.yaml", text), &mut problems);
        (node, problems)
    }

    fn outline(node: &Node) -> String {
        let at = format!("@{}:{}+{}", node.span.line, node.span.column, node.span.length);
        match &node.value {
            Value::Null => format!("null{at}"),
            Value::Scalar(s) => format!("{:?}{at}", s.text),
            Value::List(items) => format!("[{}]", items.iter().map(outline).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{}@{}:{}+{}={}", k.text, k.span.line, k.span.column, k.span.length, outline(v))).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    #[test]
    fn every_word_knows_its_place() {
        let (node, problems) = parsed("a: 1.10\nb:\n  é: [x, \"y z\", 'w']\n  d: {e: 010, f: }\n  s: |\n    one\n    two\n");
        assert_eq!(problems, []);
        assert_eq!(
            outline(&node.unwrap()),
            "{a@1:1+1=\"1.10\"@1:4+4, b@2:1+1={é@3:3+1=[\"x\"@3:7+1, \"y z\"@3:10+5, \"w\"@3:17+3], \
             d@4:3+1={e@4:7+1=\"010\"@4:10+3, f@4:15+1=null@4:16+1}, s@5:3+1=\"one\\ntwo\\n\"@6:5+3}}"
        );
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_move_nothing() {
        let (node, problems) = parsed("\u{FEFF}a: b\r\nc: d\r\n");
        assert_eq!(problems, []);
        assert_eq!(outline(&node.unwrap()), "{a@1:1+1=\"b\"@1:4+1, c@2:1+1=\"d\"@2:4+1}");
    }

    #[test]
    fn all_duplicate_keys_are_reported_and_the_first_stays() {
        let (node, problems) = parsed("a: 1\nb: {x: 1, \"x\": 2}\na: 2\nc: 3\na: 3\n");
        let places: Vec<_> = problems.iter().map(|p| (p.line, p.column, p.message.as_str())).collect();
        assert_eq!(places, [(2, 12, "`x` stands here twice"), (3, 1, "`a` stands here twice"), (5, 1, "`a` stands here twice")]);
        assert_eq!(outline(&node.unwrap()), "{a@1:1+1=\"1\"@1:4+1, b@2:1+1={x@2:5+1=\"1\"@2:8+1}, c@4:1+1=\"3\"@4:4+1}");
    }

    #[test]
    fn what_is_no_yaml_is_one_problem_with_a_place() {
        let (node, problems) = parsed("a: b\nc: [d\ne: f\n");
        assert!(node.is_none());
        assert_eq!(problems.len(), 1);
        assert!(problems[0].line >= 2, "{}", problems[0]);
        let (node, problems) = parsed("k: {brokers: ${B}, topic: t}\n");
        assert!(node.is_none());
        assert_eq!(problems[0].expected.as_deref(), Some("quotes around a variable inside { }: \"${NAME}\""));
    }

    #[test]
    fn anchors_serve_and_tags_do_not() {
        let (node, problems) = parsed("a: &x 5s\nb: *x\n");
        assert_eq!(problems, []);
        let Value::Map(entries) = node.unwrap().value else { panic!() };
        assert!(matches!(&entries[1].1.value, Value::Scalar(s) if s.text == "5s"));
        assert_eq!(parsed("a: !secret x\n").1.len(), 1);
    }
}
