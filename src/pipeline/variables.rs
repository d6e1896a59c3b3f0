//! Values of variables may be secrets: where words of a table's declaration are quoted, the text of the file is shown.

use super::problem::Problem;
use std::collections::BTreeSet;

/// What variables stand for in a stretch of the pipeline file.
#[derive(Clone, Default, PartialEq)]
pub struct Variables {
    /// As written (`${NAME}`), and the value.
    values: Vec<(String, String)>,
    /// Words that stand in the file itself, in lower case: they tell nothing.
    written: BTreeSet<String>,
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.values.iter().map(|(reference, _)| reference)).finish()
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|w| !w.is_empty())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Begins a line of the log that is set against one of the file.
const LOGGED: &str = "the log has:";

impl Variables {
    /// `file`: the lines of the pipeline file as they stand there.
    pub(super) fn new<'f>(mut values: Vec<(String, String)>, file: impl Iterator<Item = &'f str>) -> Self {
        let written: BTreeSet<String> = if values.is_empty() { BTreeSet::new() } else { file.flat_map(words).map(str::to_lowercase).collect() };
        let secret = |value: &str| words(value).any(|w| !written.contains(&w.to_lowercase()));
        values.retain(|(_, value)| secret(value));
        // A value that holds another one is replaced first.
        values.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        values.dedup();
        Self { values, written }
    }

    pub(super) fn extend(&mut self, other: &Self) {
        let values = std::mem::take(&mut self.values).into_iter().chain(other.values.iter().cloned());
        let mut values: Vec<(String, String)> = values.collect();
        values.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        values.dedup();
        self.values = values;
        self.written.extend(other.written.iter().cloned());
    }

    /// The text with references in the place of values; words that only look like a part of one are left, for the text is
    /// not about a declaration alone. A difference from the log is told as by [`Variables::hide_difference`].
    pub fn hide_values(&self, text: &str) -> String {
        if text.contains(LOGGED) {
            return self.hide_difference(text);
        }
        self.values.iter().fold(text.to_string(), |shown, (reference, value)| replaced(&shown, value.trim(), reference, false))
    }

    /// As [`Variables::hide_values`], of what was computed with values: a text that stands in the SQL which one holds is not
    /// shown either, nor a long one within a word.
    pub fn hide_within(&self, text: &str) -> String {
        let told = |part: &str| words(part).all(|w| self.written.contains(&w.to_lowercase()));
        let hidden = |shown: String, value: &str, by: &str| replaced(&shown, value, by, value.chars().count() >= LONG);
        self.values.iter().fold(text.to_string(), |shown, (reference, value)| {
            let quoted = value.split('\'').skip(1).step_by(2).filter(|part| !told(part));
            quoted.fold(hidden(shown, value.trim(), reference), |shown, part| hidden(shown, part.trim(), reference))
        })
    }

    /// The text with references in the place of values. Where a part of a value is left, the text says no more than that
    /// the value does not fit.
    pub fn hide(&self, text: &str) -> String {
        let mut shown = text.to_string();
        for (reference, value) in &self.values {
            shown = replaced(&shown, value.trim(), reference, false);
        }
        let left = self.values.iter().find(|(reference, value)| self.left(&shown.replace(reference.as_str(), ""), value));
        left.map_or(shown, |(reference, _)| format!("what {reference} stands for does not fit here"))
    }

    /// The same of a text that sets a line of the log against one of the file: a value that a variable had before stands in
    /// the former, and nothing tells it there.
    pub fn hide_difference(&self, text: &str) -> String {
        let shown = self.hide(text);
        if !self.values.iter().any(|(reference, _)| shown.contains(reference.as_str())) {
            return shown;
        }
        let line = |line: &str| match line.split_once(LOGGED) {
            Some((before, _)) => format!("{before}{LOGGED}  another text, which is not shown: it may hold what a variable stood for"),
            None => line.to_string(),
        };
        shown.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    fn left(&self, text: &str, value: &str) -> bool {
        let mut secrets = words(value).map(str::to_lowercase).filter(|w| !self.written.contains(w));
        let found: Vec<String> = words(text).map(str::to_lowercase).collect();
        // Long texts are cut.
        let parts: Vec<&str> = text.split('…').collect();
        let cut: Vec<String> = parts[..parts.len() - 1].iter().filter_map(|part| words(part).last()).map(str::to_lowercase).collect();
        secrets.any(|s| found.contains(&s) || cut.iter().any(|c| s.starts_with(c.as_str())))
    }

    pub fn hide_in(&self, problem: &mut Problem) {
        if self.values.is_empty() {
            return;
        }
        problem.message = self.hide(&problem.message);
        problem.expected = problem.expected.take().map(|text| self.hide(&text));
        problem.nearest = problem.nearest.take().map(|text| self.hide(&text));
    }
}

/// Characters of a value that is not within a word by chance.
const LONG: usize = 6;

/// Replaces a value where it stands for itself and not within a word, unless it may stand `within` one, whatever its case.
fn replaced(text: &str, value: &str, by: &str, within: bool) -> String {
    let (folded, wanted) = (text.to_ascii_lowercase(), value.to_ascii_lowercase());
    let (mut out, mut from) = (String::new(), 0);
    while let Some(at) = folded[from..].find(&wanted).map(|at| from + at) {
        let end = at + wanted.len();
        let whole = |outside: Option<char>, edge: Option<char>| !(outside.is_some_and(is_word) && edge.is_some_and(is_word));
        let stands = within || whole(text[..at].chars().next_back(), wanted.chars().next()) && whole(text[end..].chars().next(), wanted.chars().next_back());
        out.push_str(&text[from..at]);
        out.push_str(if stands { by } else { &text[at..end] });
        from = end;
        if wanted.is_empty() {
            break;
        }
    }
    out.push_str(&text[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(value: &str, text: &str) -> String {
        Variables::new(vec![("${X}".into(), value.into())], "sql: select a, ${X} from events".split('\n')).hide(text)
    }

    /// A message of a run is not about the declaration alone: words that a variable holds, too, say nothing of it.
    #[test]
    fn a_message_is_shown_whatever_words_a_variable_holds() {
        let variables = Variables::new(vec![("${X}".into(), "id > 0 and pw <> 'hunter2'".into())], "sql: select a from events where ${X}".split('\n'));
        let told = "source events reads b and the log was written from a: an id of one means nothing in the other";
        assert_eq!(variables.hide_values(told), told);
        assert_eq!(variables.hide_values("cannot plan id > 0 AND pw <> 'hunter2' here"), "cannot plan ${X} here");
        let differs = variables.hide_values("no:\n  the log has:  pw <> 'hunter1'\n  the file has: id > 0 and pw <> 'hunter2'\nso");
        assert_eq!(differs, "what ${X} stands for does not fit here", "a difference is about the declaration");
    }

    /// What an expression says of its values: a secret may be next to a value of a row.
    #[test]
    fn a_value_is_not_shown_within_a_word() {
        let within = |value: &str, text: &str| Variables::new(vec![("${X}".into(), value.into())], "sql: select a, ${X} from events".split('\n')).hide_within(text);
        assert_eq!(within("Hunter2", "cannot cast string 'abchunter2' to value of Int32 type"), "cannot cast string 'abc${X}' to value of Int32 type");
        assert_eq!(within("id", "invalid id"), "invalid ${X}");
        assert_eq!(within("date_trunc('hunter2', a) > cast('a' as int)", "cannot cast: no granularity 'hunter2', 'a'"), "cannot cast: no granularity '${X}', 'a'");
        assert_eq!(within("events", "no events"), "no events", "it stands in the file");
    }

    #[test]
    fn values_and_parts_of_them_are_not_shown() {
        assert_eq!(hidden("hunter2", "no column is named hunter2"), "no column is named ${X}");
        assert_eq!(hidden("Hunter2", "no function is named hunter2"), "no function is named ${X}");
        assert_eq!(hidden("hunter", "no column is named hunters"), "no column is named hunters");
        assert_eq!(hidden("where pw = 'hunter2'", "no column is named pw"), "what ${X} stands for does not fit here");
        assert_eq!(hidden("hunter_and_gatherer + 1", "the column hunter_and_gath… needs a name"), "what ${X} stands for does not fit here");
        let changed = Variables::new(vec![("${X}".into(), "hunter3".into())], std::iter::empty()).hide_difference("no:\n  the log has:  u = hunter2\n  the file has: u = hunter3\nso");
        assert!(!changed.contains("hunter") && changed.ends_with("  the file has: u = ${X}\nso"), "{changed}");
        // What stands in the file is no secret.
        assert_eq!(hidden("events", "no source is named events"), "no source is named events");
        assert_eq!(hidden("", "no source is named events"), "no source is named events");
        assert!(!format!("{:?}", Variables::new(vec![("${X}".into(), "hunter2".into())], std::iter::empty())).contains("hunter2"));
    }
}
