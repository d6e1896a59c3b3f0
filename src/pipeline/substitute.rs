//! `${NAME}`, `${NAME:-default}` and `${file:/path}` in the values of a pipeline file.
//!
//! Substituted after parsing and in scalar values only: whatever a variable holds, it cannot
//! change the structure of the file.

use std::path::Path;

use super::problem::{Problem, SourceText, Span};
use super::raw::{Node, Value};

/// Looks a variable up.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Substitutes in every scalar value below `node`. What cannot be is a problem at its place, and
/// its scalar is marked broken.
pub(super) fn substitute(node: &mut Node, text: &SourceText, cwd: &Path, env: Env<'_>, problems: &mut Vec<Problem>) {
    match &mut node.value {
        Value::Null => {}
        Value::List(items) => items.iter_mut().for_each(|item| substitute(item, text, cwd, env, problems)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| substitute(value, text, cwd, env, problems)),
        Value::Scalar(scalar) => {
            if !scalar.text.contains("${") {
                return;
            }
            let Expanded { text: value, failures, values } = expand(&scalar.text, cwd, env);
            scalar.values = values;
            scalar.broken = !failures.is_empty();
            for failure in failures {
                let problem = text.problem(locate(text, node.span, &failure.reference), failure.message);
                problems.push(match failure.expected {
                    Some(expected) => problem.expected(expected),
                    None => problem,
                });
            }
            scalar.before = Some(std::mem::replace(&mut scalar.text, value));
        }
    }
}

struct Failure {
    /// As written, `${` included.
    reference: String,
    message: String,
    expected: Option<String>,
}

struct Expanded {
    text: String,
    failures: Vec<Failure>,
    /// References as written, and what they stand for.
    values: Vec<(String, String)>,
}

fn expand(text: &str, cwd: &Path, env: Env<'_>) -> Expanded {
    let mut out = String::new();
    let (mut failures, mut values) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        // `$${` is a literal `${`.
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start - 1]);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let Some(end) = rest[start..].find('}') else {
            failures.push(Failure {
                reference: rest[start..].lines().next().unwrap_or("${").to_string(),
                message: "`${` is never closed".to_string(),
                expected: Some("${NAME}, ${NAME:-default} or ${file:/path}; a literal `${` is written `$${`".to_string()),
            });
            return Expanded { text: out, failures, values };
        };
        let reference = &rest[start..start + end + 1];
        match resolve(&reference[2..end], cwd, env) {
            Ok(value) => {
                out.push_str(&value);
                values.push((reference.to_string(), value));
            }
            Err((message, expected)) => failures.push(Failure { reference: reference.to_string(), message, expected }),
        }
        rest = &rest[start + end + 1..];
    }
    out.push_str(rest);
    Expanded { text: out, failures, values }
}

type Refusal = (String, Option<String>);

fn resolve(inner: &str, cwd: &Path, env: Env<'_>) -> Result<String, Refusal> {
    if let Some(path) = inner.strip_prefix("file:") {
        let read = std::fs::read_to_string(cwd.join(path));
        return match read {
            // Editors end files with a line break; no secret does.
            Ok(content) => Ok(content.trim_end_matches(['\n', '\r']).to_string()),
            Err(error) => Err((format!("cannot read the file `{path}`: {}", error.to_string().to_lowercase()), None)),
        };
    }
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        return Err((format!("`{name}` is no name of a variable"), Some("${NAME}, ${NAME:-default} or ${file:/path}; a literal `${` is written `$${`".to_string())));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        // As in the shell: `:-` also stands in for an empty value.
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_string()),
        (None, None) => Err((format!("the variable `{name}` is not set"), Some(format!("{name} in the environment, or a default: ${{{name}:-…}}")))),
    }
}

/// Where a reference stands: in the line where its value begins or, for a value of several
/// lines, in one below it.
fn locate(text: &SourceText, value: Span, reference: &str) -> Span {
    for line in value.line..=text.line_count() {
        let from = if line == value.line { value.column - 1 } else { 0 };
        let written: String = text.line(line).chars().skip(from).collect();
        if let Some(at) = written.find(reference) {
            let column = from + written[..at].chars().count() + 1;
            return Span { line, column, length: reference.chars().count() };
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, Vec<String>> {
        let env = |name: &str| match name {
            "A" => Some("1".to_string()),
            "EMPTY" => Some(String::new()),
            "TRICK" => Some("x: {y: ${A}}".to_string()),
            _ => None,
        };
        let Expanded { text, failures, .. } = expand(text, Path::new("/nonexistent"), &env);
        if failures.is_empty() { Ok(text) } else { Err(failures.into_iter().map(|f| f.message).collect()) }
    }

    #[test]
    fn variables_and_defaults() {
        assert_eq!(expanded("${A}"), Ok("1".into()));
        assert_eq!(expanded("x${A}y${A}z"), Ok("x1y1z".into()));
        assert_eq!(expanded("${B:-localhost:9092}"), Ok("localhost:9092".into()));
        assert_eq!(expanded("${EMPTY:-d}|${EMPTY}|${B:-}"), Ok("d||".into()));
        assert_eq!(expanded("$${A} $A $"), Ok("${A} $A $".into()));
        // What a variable holds is a value, whatever it looks like; it is not expanded again.
        assert_eq!(expanded("${TRICK}"), Ok("x: {y: ${A}}".into()));
    }

    #[test]
    fn every_failure_is_named() {
        assert_eq!(expanded("${B} ${C}"), Err(vec!["the variable `B` is not set".into(), "the variable `C` is not set".into()]));
        assert_eq!(expanded("${no name}"), Err(vec!["`no name` is no name of a variable".into()]));
        assert_eq!(expanded("${A"), Err(vec!["`${` is never closed".into()]));
        assert!(expanded("${file:secret}").unwrap_err()[0].starts_with("cannot read the file `secret`: "));
    }

    #[test]
    fn files_are_read_without_their_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pw"), "hunter2\n").unwrap();
        let Expanded { text, failures, .. } = expand("${file:pw}", dir.path(), &|_| None);
        assert!(failures.is_empty());
        assert_eq!(text, "hunter2");
    }
}
