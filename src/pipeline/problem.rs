//! What is wrong with a pipeline file, and where: rendered as compilers do it.

use std::fmt;
use std::path::Path;

use super::sql::{Place, SqlError};
use super::{TableDecl, TablePart, secret};

/// A stretch of one line of the pipeline file. Lines and columns count from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub line: usize,
    pub column: usize,
    /// In characters; at least 1 when it is shown.
    pub length: usize,
}

impl Span {
    /// The first character of the file: where things are missing that have no better place.
    pub const START: Span = Span { line: 1, column: 1, length: 1 };
}

/// The text of a pipeline file, ready to be quoted: what looks like a secret is masked.
#[derive(Debug, Clone)]
pub struct SourceText {
    file: String,
    lines: Vec<String>,
    /// As `lines`, with the values of secret keys replaced by stars of the same length.
    shown: Vec<String>,
}

impl SourceText {
    /// `file` is the name that problems are reported under.
    pub fn new(file: impl Into<String>, text: &str) -> Self {
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        // YAML's line ends: a carriage return alone is one.
        let lines: Vec<String> = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).flat_map(|l| l.split('\r')).map(str::to_string).collect();
        let shown = secret::mask(&lines);
        Self { file: file.into(), lines, shown }
    }

    /// Reads a pipeline file for [`sql_problem`]; [`super::load`] reads it itself.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        Ok(Self::new(path.display().to_string(), &std::fs::read_to_string(path)?))
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// A line as it stands in the file, secrets included: for reading, never for showing.
    pub(super) fn line(&self, line: usize) -> &str {
        line.checked_sub(1).and_then(|i| self.lines.get(i)).map_or("", String::as_str)
    }

    pub(super) fn line_count(&self) -> usize {
        self.lines.len()
    }

    /// A problem at a place of this file.
    pub fn problem(&self, span: Span, message: impl Into<String>) -> Problem {
        let line_text = span.line.checked_sub(1).and_then(|i| self.shown.get(i)).cloned().unwrap_or_default();
        let left = (line_text.chars().count() + 1).saturating_sub(span.column).max(1);
        Problem {
            file: self.file.clone(),
            line: span.line,
            column: span.column,
            length: span.length.clamp(1, left),
            line_text,
            message: message.into(),
            expected: None,
            nearest: None,
            unsupported: false,
            level: Level::Error,
        }
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    /// It can be meant so.
    Warning,
}

/// One thing that is wrong with a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters from `column` on are meant.
    pub length: usize,
    /// The line, with secrets masked; empty when the file could not be read.
    pub line_text: String,
    /// Lower case, without a full stop.
    pub message: String,
    /// What would have been right.
    pub expected: Option<String>,
    /// The known word nearest to what was found.
    pub nearest: Option<String>,
    /// The words are Millpond's, but this version does not have them yet.
    pub unsupported: bool,
    pub level: Level,
}

impl Problem {
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    pub fn nearest(mut self, nearest: Option<impl Into<String>>) -> Self {
        self.nearest = nearest.map(Into::into);
        self
    }

    pub fn unsupported(mut self) -> Self {
        self.unsupported = true;
        self
    }

    pub fn warning(mut self) -> Self {
        self.level = Level::Warning;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.level == Level::Error { "error" } else { "warning" };
        write!(f, "{}:{}:{}: {level}: {}", self.file, self.line, self.column, self.message)?;
        if !self.line_text.is_empty() {
            let number = self.line.to_string();
            let gutter = " ".repeat(number.len());
            // A tab stays a tab under a tab, so that the marks stand right whatever its width.
            let before: String = self.line_text.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let pad = " ".repeat((self.column - 1).saturating_sub(before.chars().count()));
            write!(f, "\n {number} | {}", self.line_text)?;
            write!(f, "\n {gutter} | {before}{pad}{}", "^".repeat(self.length))?;
        }
        if let Some(expected) = &self.expected {
            write!(f, "\n   expected: {expected}")?;
        }
        if let Some(nearest) = &self.nearest {
            write!(f, "\n   did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a pipeline file, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
pub struct Problems {
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A problem of a table's SQL, placed in the pipeline file.
pub fn sql_problem(text: &SourceText, table: &TablePart, error: &SqlError) -> Problem {
    let whole = || sql_span(text, &table.decl, (1, 1), None);
    let span = match &error.place {
        Place::Sql { from, to } => sql_span(text, &table.decl, *from, *to),
        Place::Key(Some(name)) => table.key_items.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, span)| *span).or(table.key_at).unwrap_or_else(whole),
        Place::Key(None) => table.key_at.unwrap_or_else(whole),
        Place::Emit => table.emit_at.unwrap_or_else(whole),
        Place::Unknown | Place::Group | Place::Source => whole(),
    };
    let mut problem = text.problem(span, format!("table {}: {}", table.decl.name, error.message));
    problem.expected.clone_from(&error.expected);
    problem.nearest.clone_from(&error.nearest);
    problem.unsupported = error.unsupported;
    table.variables.hide_in(&mut problem);
    problem
}

/// Finds a place of the SQL in the file, to the end of its word where no end is given. YAML folds, indents and escapes,
/// but keeps the order of what is not white space: so both texts are walked side by side, skipping white space.
fn sql_span(text: &SourceText, table: &TableDecl, from: (usize, usize), to: Option<(usize, usize)>) -> Span {
    let written = Written::new(text, table);
    let Some((at, line, column, first)) = written.find(table, from) else {
        return Span { line: table.sql_at.0, column: table.sql_at.1, length: 1 };
    };
    let rest = || written.source[at..].iter().take_while(|(l, _, c)| *l == line && *c != '\n').map(|(_, _, c)| *c);
    if let Some(to) = to {
        // What is meant ends before the next word; on this line it is shown up to there, or to the line's end.
        let left = rest().count();
        let length = match written.behind(table, to) {
            Some((l, c)) if l == line && c > column => (c - column).min(left),
            _ => left,
        };
        let blank = rest().take(length).collect::<Vec<_>>().iter().rev().take_while(|c| c.is_whitespace()).count();
        return Span { line, column, length: (length - blank).max(1) };
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let length = match first {
        '\'' | '"' => rest().skip(1).position(|c| c == first).map_or(1, |end| end + 2),
        c if word(c) => rest().take_while(|c| word(*c)).count(),
        _ => 1,
    };
    Span { line, column, length }
}

/// The file's text from the SQL's first character on, as it is written there.
struct Written {
    /// Line, column (0 at a line's end) and character.
    source: Vec<(usize, usize, char)>,
    single_quoted: bool,
    double_quoted: bool,
}

impl Written {
    fn new(text: &SourceText, table: &TableDecl) -> Self {
        let (first_line, first_column) = table.sql_at;
        let lines = (first_line..=text.line_count()).flat_map(|l| {
            let skip = if l == first_line { first_column.saturating_sub(1) } else { 0 };
            let chars = text.line(l).chars().enumerate().skip(skip).map(move |(i, c)| (l, i + 1, c));
            chars.chain(std::iter::once((l, usize::MAX, '\n')))
        });
        let quote = first_column.checked_sub(2).and_then(|i| text.line(first_line).chars().nth(i));
        Self { source: lines.collect(), single_quoted: quote == Some('\''), double_quoted: quote == Some('"') }
    }

    fn skip_space(&self, mut at: usize) -> usize {
        loop {
            match (self.source.get(at), self.source.get(at + 1)) {
                (Some((_, _, c)), _) if c.is_whitespace() => at += 1,
                (Some((_, _, '\\')), Some((_, _, 'n' | 't' | 'r'))) if self.double_quoted => at += 2,
                _ => break at,
            }
        }
    }

    /// Index behind the last character of the SQL that stands before this place of it.
    fn walk(&self, table: &TableDecl, (line, column): (usize, usize)) -> usize {
        let mut before = String::new();
        for (i, sql_line) in table.sql.split('\n').enumerate().take(line) {
            let keep = if i + 1 == line { column.saturating_sub(1) } else { usize::MAX };
            before.extend(sql_line.chars().take(keep));
        }
        let mut at = self.skip_space(0);
        for wanted in before.chars().filter(|c| !c.is_whitespace()) {
            at = self.skip_space(at);
            match (self.source.get(at), self.source.get(at + 1)) {
                (Some((_, _, '\'')), Some((_, _, '\''))) if self.single_quoted && wanted == '\'' => at += 2,
                (Some((_, _, found)), _) if *found == wanted => at += 1,
                (Some((_, _, '\\')), Some((_, _, found))) if self.double_quoted && *found == wanted => at += 2,
                // A substituted variable: what comes after it cannot be found any more.
                _ => break,
            }
        }
        at
    }

    /// The character that stands at this place of the SQL: its index, line and column.
    fn find(&self, table: &TableDecl, place: (usize, usize)) -> Option<(usize, usize, usize, char)> {
        let at = self.skip_space(self.walk(table, place));
        self.source.get(at).map(|(l, c, first)| (at, *l, *c, *first))
    }

    /// The line and column behind what stands before this place.
    fn behind(&self, table: &TableDecl, place: (usize, usize)) -> Option<(usize, usize)> {
        let last = self.walk(table, place).checked_sub(1)?;
        self.source.get(last).map(|(l, c, _)| (*l, c + 1))
    }
}
