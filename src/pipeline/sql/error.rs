//! What is wrong with a table's SQL, and where in its declaration.

use crate::pipeline::keys;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Span;

/// Said where only the planner saw it.
pub(super) const SAME_NAME: &str = "two columns of the table have the same name";

/// How the complaint of a column without a name ends: the planner writes the column otherwise than the file.
pub(super) const UNNAMED: &str = "needs a name";

/// Names that are listed where none is near: more would hide the message.
const MOST_NAMES: usize = 24;

/// Why a table's SQL cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// Lower case, without a full stop.
    pub message: String,
    pub place: Place,
    /// What would have been right.
    pub expected: Option<String>,
    /// The known word nearest to what was found.
    pub nearest: Option<String>,
    /// A later version may do it.
    pub unsupported: bool,
}

/// Where in a table's declaration an error is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Somewhere in the SQL.
    Unknown,
    /// Line and column in the SQL text, from 1; to the end of the word where no end is known.
    Sql { from: (usize, usize), to: Option<(usize, usize)> },
    /// The `group by` of the SQL, or what is aggregated without one.
    Group,
    /// The source or window function of the SQL.
    Source,
    /// The `key` beside the SQL, or one of its columns.
    Key(Option<String>),
    /// The `emit` beside the SQL.
    Emit,
}

impl Place {
    pub(super) fn is_sql(&self) -> bool {
        matches!(self, Self::Sql { .. })
    }
}

impl std::error::Error for SqlError {}

impl std::fmt::Display for SqlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

pub(super) fn start(span: Span) -> Option<(usize, usize)> {
    (span.start.line > 0).then_some((span.start.line as usize, span.start.column as usize))
}

impl SqlError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: Place::Unknown, expected: None, nearest: None, unsupported: false }
    }

    /// An error at a word or at what spans several.
    pub(super) fn at_span(message: impl Into<String>, span: Span) -> Self {
        Self::new(message).spanning(span)
    }

    pub(super) fn later(message: impl Into<String>) -> Self {
        Self { unsupported: true, ..Self::new(message) }
    }

    pub(super) fn unsupported(mut self) -> Self {
        self.unsupported = true;
        self
    }

    pub(super) fn placed(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    pub(super) fn spanning(self, span: Span) -> Self {
        let place = match start(span) {
            Some(from) => {
                let end = (span.end.line as usize, span.end.column as usize);
                Place::Sql { from, to: (end > from).then_some(end) }
            }
            None => Place::Unknown,
        };
        self.placed(place)
    }

    pub(super) fn expecting(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// The known word that is nearest to `word`; all of them where none is near and they are few.
    pub(super) fn among(mut self, word: &str, known: &[&str]) -> Self {
        self.nearest = nearest(word, known).map(String::from);
        if self.nearest.is_none() && !known.is_empty() && known.len() <= MOST_NAMES {
            self.expected = Some(format!("one of {}", known.join(", ")));
        }
        self
    }

    pub(super) fn of_parser(e: &ParserError) -> Self {
        let text = match e {
            ParserError::TokenizerError(t) | ParserError::ParserError(t) => t.clone(),
            ParserError::RecursionLimitExceeded => "the expression is nested too deeply".to_string(),
        };
        // The parser tells the place in its text only: "… at Line: 3, Column: 7".
        let Some((message, place)) = text.rsplit_once(" at Line: ") else { return Self::new(lower_first(&text)) };
        let at = place.split_once(", Column: ").and_then(|(l, c)| Some((l.trim().parse().ok()?, c.trim().parse().ok()?)));
        Self::new(lower_first(message)).placed(at.map_or(Place::Unknown, |from| Place::Sql { from, to: None }))
    }

    pub(super) fn of_planner(e: &DataFusionError) -> Self {
        let place = match e.diagnostic().and_then(|d| d.span).map(|s| (s.start.line as usize, s.start.column as usize)) {
            Some(from) if from.0 > 0 => Place::Sql { from, to: None },
            _ => Place::Unknown,
        };
        let message = match e.find_root() {
            DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
                datafusion::common::SchemaError::FieldNotFound { field, valid_fields } => {
                    let names: Vec<&str> = valid_fields.iter().map(|c| c.name()).collect();
                    return Self::new(format!("no column is named {}", field.name)).among(&field.name, &names).placed(place);
                }
                datafusion::common::SchemaError::DuplicateUnqualifiedField { name } => {
                    format!("two expressions are {name} but for a cast, which is not enough to tell them apart; change one of them, for example by adding 0")
                }
                other => other.to_string(),
            },
            DataFusionError::Plan(t) | DataFusionError::NotImplemented(t) | DataFusionError::Execution(t) => t.clone(),
            other => other.strip_backtrace(),
        };
        Self::plainly(&message).placed(place)
    }

    /// The planner's words, shorter where they are about its insides.
    fn plainly(whole: &str) -> Self {
        // It may stand behind a list of all that was tried.
        let text = whole.lines().next().unwrap_or_default().trim_end_matches('.');
        if let Some(message) = ungrouped(text) {
            return Self::new(message);
        }
        if let Some((_, call)) = whole.split_once("No function matches the given name and argument types '") {
            let call = call.split_once('\'').map_or(call, |(call, _)| call);
            if let Some(error) = unsummed(call) {
                return error;
            }
            return Self::new(format!("no form of the function takes {}", in_our_words(call))).expecting("arguments of other types or another number of them; `cast(… as …)` changes a type");
        }
        const OPERATIONS: [&str; 5] = [
            "Cannot infer common argument type for comparison operation ",
            "Cannot infer common argument type for logical boolean operation ",
            "Cannot infer common argument type for regex operation ",
            "Cannot infer common type for bitwise operation ",
            "Cannot infer common string type for string concat operation ",
        ];
        let liked = || text.strip_prefix("There isn't a common type to coerce ")?.strip_suffix(" in LIKE expression")?.split_once(" and ");
        let listed = || text.strip_prefix("Can not find compatible types to compare ")?.split_once(" with ");
        let operation = OPERATIONS.iter().find_map(|prefix| text.strip_prefix(prefix)).map(String::from);
        let operation = operation.or_else(|| liked().map(|(a, b)| format!("{a} like {b}"))).or_else(|| listed().map(|(a, b)| format!("{a} in {b}")));
        if let Some(operation) = operation {
            let error = Self::new(format!("there is no {}", in_our_words(&operation)));
            return error.expecting("values of one kind; `cast(… as …)` changes a type, and `cast(… as varchar)` makes a text of a uuid");
        }
        let cast = ["Unsupported CAST from ", "Cannot automatically convert "].iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some((from, to)) = cast.and_then(|types| types.split_once(" to ")) {
            let error = Self::new(format!("there is no cast from {} to {}", in_our_words(from), in_our_words(to)));
            return error.expecting("another type; `cast(… as varchar)` makes a text of a uuid, too");
        }
        let sum = ["Cannot coerce arithmetic expression ", "Cannot get result type for temporal operation "].iter().find_map(|prefix| text.strip_prefix(prefix));
        if let Some(sum) = sum {
            let sum = sum.trim_end_matches(" to valid types");
            let sum = sum.split(": ").next().unwrap_or(sum);
            return Self::new(format!("there is no {}", in_our_words(sum))).expecting("numbers; `||` joins texts, and `cast(… as …)` changes a type");
        }
        if text.starts_with("Projections require unique expression names") {
            return Self::new(SAME_NAME).expecting("another name with `as` for one of them");
        }
        if let Some(ty) = text.strip_prefix("Unsupported SQL type ") {
            const TYPES: [&str; 14] = ["boolean", "int", "integer", "bigint", "smallint", "real", "float", "double", "decimal", "varchar", "string", "date", "time", "timestamp"];
            let error = Self::new(format!("SQL has no type {ty}")).expecting(format!("one of {}", TYPES.join(", ")));
            if ty.eq_ignore_ascii_case("uuid") {
                return error.expecting("a text: id = '123e4567-e89b-12d3-a456-426614174000' compares a uuid with the one that it names");
            }
            return Self { nearest: nearest(ty, &TYPES).map(String::from), ..error };
        }
        // How the planner holds what it speaks of.
        let text = [" Substring {", " AggregateFunction(", " ScalarFunction("].iter().fold(text, |text, inside| text.split(inside).next().unwrap_or(text));
        let text = ["Arrow error: ", "Cast error: ", "Parser error: "].iter().fold(text, |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
        let error = Self::new(lower_first(&in_our_words(text)));
        if text.starts_with("Failed to coerce") { error.expecting("values of one kind; `cast(… as …)` changes a type") } else { error }
    }
}

/// An aggregate of what it cannot take.
fn unsummed(call: &str) -> Option<SqlError> {
    let (name, types) = call.strip_suffix(')')?.split_once('(')?;
    let expected = match name.to_lowercase().as_str() {
        "sum" | "avg" | "mean" | "var" | "var_pop" | "stddev" | "stddev_pop" => {
            "a number; `cast(… as double)` or `cast(… as decimal(38,2))` makes one of a text, `count(*) filter (where …)` counts what is true"
        }
        "bool_and" | "bool_or" => "what is true or false, such as a comparison",
        _ => return None,
    };
    let types = in_our_words(types);
    (!types.contains(", ")).then(|| SqlError::new(format!("there is no {name} of {types}")).expecting(expected))
}

/// The planner's words for a column that is neither grouped by nor aggregated, said shorter.
fn ungrouped(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("expanding wildcard, column \"")?;
    let (column, _) = rest.split_once("\" must appear in the GROUP BY")?;
    let column = column.rsplit('.').next().unwrap_or(column);
    Some(format!("{column} is neither in the group by nor within an aggregate; group by it, or use an aggregate such as max({column})"))
}

/// Arrow's names of types as a pipeline file has them.
pub(super) fn in_our_words(text: &str) -> String {
    const TYPES: [(&str, &str); 16] = [
        ("Interval(MonthDayNano)", "interval"),
        ("FixedSizeBinary(16)", "uuid"),
        ("Utf8View", "string"),
        ("LargeUtf8", "string"),
        ("Float32", "float32"),
        ("Binary", "binary"),
        ("Time64(µs)", "time"),
        ("Utf8", "string"),
        ("Int64", "int64"),
        ("Int32", "int32"),
        ("Float64", "float64"),
        ("Boolean", "bool"),
        ("Decimal128", "decimal"),
        ("Date32", "date"),
        ("Timestamp(µs, \"UTC\")", "timestamp"),
        ("Timestamp(µs)", "timestamp_local"),
    ];
    let mut text = TYPES.iter().fold(text.to_string(), |text, (arrow, ours)| text.replace(arrow, ours));
    while let Some(at) = text.rfind("List(") {
        let Some(end) = text[at..].find(')').map(|end| at + end) else { break };
        text = format!("{}list<{}>{}", &text[..at], &text[at + "List(".len()..end], &text[end + 1..]);
    }
    text
}

pub(super) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(c) if !text.starts_with(|c: char| c.is_uppercase()) || !chars.as_str().starts_with(|c: char| c.is_uppercase()) => {
            c.to_lowercase().chain(chars).collect()
        }
        _ => text.to_string(),
    }
}

/// By edits where few of them make it; else the word that is most alike, when it is very much so.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let score = |k: &&str| strsim::jaro_winkler(&lower, &k.to_lowercase());
    let alike = || known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b))).filter(|k| score(k) > 0.8);
    let same = known.iter().copied().find(|k| k.eq_ignore_ascii_case(word));
    // Of a short word another one with no letter of it is a guess.
    let edits = keys::nearest(word, known.iter().copied()).filter(|k| lower.chars().any(|c| k.to_lowercase().contains(c)));
    same.or(edits).or_else(alike)
}
