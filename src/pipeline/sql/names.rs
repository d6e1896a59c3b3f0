//! The words within a select: names are made exact, and what no table can hold is found, all of it.
//!
//! Each expression of the select is walked once. What is wrong with one word does not end the walk, and the
//! expression is marked, so that nothing is said twice when its types are looked at.

use super::error::SqlError;
use super::functions::{self, Known};
use datafusion::sql::sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, ObjectNamePart, Query, Spanned, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser, tokenizer::Span};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Where in the select an expression stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clause {
    /// A column of the table.
    Item,
    Where,
    GroupBy,
    Having,
}

impl Clause {
    fn title(self) -> &'static str {
        match self {
            Self::Item => "the select list",
            Self::Where => "where",
            Self::GroupBy => "group by",
            Self::Having => "having",
        }
    }
}

/// What one expression of the select was found to hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// Something in it is wrong, and has been told.
    pub wrong: bool,
    /// It reads a column whose type is not known.
    pub doubtful: bool,
    /// It calls an aggregate.
    pub aggregates: bool,
    /// Columns of the select list that it names.
    pub names: BTreeSet<usize>,
    /// Columns of the source outside of aggregates.
    pub bare: Vec<Expr>,
    pub span: Option<Span>,
}

/// What the words of a select may mean.
pub(super) struct Scope<'a> {
    pub sql: &'a str,
    /// Names of the source's columns, with the window's bounds where there are any.
    pub columns: Vec<String>,
    /// Those of unknown type.
    pub doubtful: BTreeSet<String>,
    /// Any name may be a column.
    pub open: bool,
    pub source: String,
    pub alias: Option<String>,
    /// Names that the select list gives.
    pub given: Vec<Option<String>>,
}

pub(super) enum Pick {
    One(usize),
    Many(String),
    None,
}

/// An exact match first; an unquoted word also fits one name that differs in case only.
pub(super) fn pick<'n>(word: &str, quoted: bool, names: impl Iterator<Item = &'n str>) -> Pick {
    let names: Vec<&str> = names.collect();
    if let Some(i) = names.iter().position(|n| *n == word) {
        return Pick::One(i);
    }
    let fits: Vec<usize> = (0..names.len()).filter(|&i| !quoted && names[i].eq_ignore_ascii_case(word)).collect();
    match fits.as_slice() {
        [] => Pick::None,
        [one] => Pick::One(*one),
        many => Pick::Many(many.iter().map(|&i| names[i]).collect::<Vec<_>>().join(", ")),
    }
}

impl Scope<'_> {
    /// Walks one expression of the select; what is wrong with it is added to `errors`.
    pub fn walk(&self, clause: Clause, e: &mut Expr, errors: &mut Vec<SqlError>) -> Part {
        let span = Some(e.span()).filter(|s| s.start.line > 0).map(|s| covering(self.sql, s));
        let known = errors.len();
        let mut walk = Walk { scope: self, clause, errors, part: Part { span, ..Part::default() }, subqueries: 0, aggregates: 0 };
        let _ = VisitMut::visit(e, &mut walk);
        let mut part = walk.part;
        part.wrong = errors.len() > known;
        part
    }
}

struct Walk<'a, 'e> {
    scope: &'a Scope<'a>,
    clause: Clause,
    errors: &'e mut Vec<SqlError>,
    part: Part,
    /// How many subqueries we are in: what is in them is not looked at.
    subqueries: usize,
    /// How many aggregates we are in.
    aggregates: usize,
}

impl Walk<'_, '_> {
    fn refuse(&mut self, message: impl Into<String>, span: Span) {
        self.errors.push(SqlError::at_span(message, span));
    }

    /// Makes a column's name exact; `whole` is the expression that it is.
    fn column(&mut self, ident: &mut Ident, alone: bool) {
        let quoted = ident.quote_style.is_some();
        let given = self.scope.given.iter().position(|g| g.as_ref().is_some_and(|g| *g == ident.value || (!quoted && g.eq_ignore_ascii_case(&ident.value))));
        match pick(&ident.value, quoted, self.scope.columns.iter().map(String::as_str)) {
            Pick::One(i) => {
                let name = self.scope.columns[i].clone();
                self.part.doubtful |= self.scope.doubtful.contains(&name);
                ident.value = name;
                ident.quote_style = Some('"');
                if self.clause == Clause::Having && alone {
                    self.part.names.extend(given);
                }
            }
            Pick::Many(names) => self.refuse(format!("{} may be any of the columns {names}; put it in double quotes", ident.value), ident.span),
            Pick::None => match given {
                Some(i) if alone && matches!(self.clause, Clause::GroupBy | Clause::Having) => {
                    self.part.names.insert(i);
                }
                _ if self.scope.open => self.part.doubtful = true,
                Some(_) if alone && self.clause == Clause::Where => {
                    let message = format!("{} is a column of the table, which where does not know; write its expression", ident.value);
                    self.refuse(message, ident.span);
                }
                _ => self.unknown(ident),
            },
        }
    }

    fn unknown(&mut self, ident: &Ident) {
        let bound = ["window_start", "window_end"].iter().any(|b| b.eq_ignore_ascii_case(&ident.value));
        let error = SqlError::at_span(format!("no column is named {}", ident.value), ident.span);
        // What double quotes hold is a name; a text was perhaps meant.
        let text = ident.quote_style == Some('"');
        let columns: Vec<&str> = self.scope.columns.iter().map(String::as_str).collect();
        self.errors.push(match (bound, text) {
            (true, _) => error.expecting(format!("from tumble({}, interval '5 minutes'), which adds it", self.scope.source)),
            (_, true) => {
                let mut error = error.among(&ident.value, &columns);
                let meant = error.nearest.take_if(|near| near.eq_ignore_ascii_case(&ident.value));
                SqlError { nearest: meant, ..error }.expecting("a column, or a text in single quotes: double quotes hold names")
            }
            _ => error.among(&ident.value, &columns),
        });
    }

    fn table(&self, ident: &mut Ident) -> bool {
        let named = self.scope.alias.as_deref().unwrap_or(&self.scope.source);
        let fits = ident.value == named || (ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case(named));
        if fits && self.scope.alias.is_none() {
            ident.value = named.to_string();
            ident.quote_style = Some('"');
        }
        fits
    }

    fn expr(&mut self, e: &mut Expr) {
        let before = self.errors.len();
        match e {
            Expr::Identifier(id) => self.column(id, true),
            Expr::CompoundIdentifier(ids) => {
                // `table.column` or `struct_column.field`.
                let at = usize::from(ids.len() > 1 && self.table(&mut ids[0]));
                self.column(&mut ids[at], false);
            }
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => {
                let span = covering(self.scope.sql, e.span());
                self.refuse("subqueries are not supported: a table is one select over one source", span);
            }
            Expr::Function(f) => self.function(f),
            // A number with an exponent is a float; others with a point are decimals.
            Expr::Value(v) if matches!(&v.value, Value::Number(n, _) if n.contains(['e', 'E'])) => {
                let text = format!("cast('{}' as double)", v.value);
                match Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut p| p.parse_expr()) {
                    Ok(parsed) => *e = parsed,
                    Err(why) => self.errors.push(SqlError::of_parser(&why).spanning(v.span())),
                }
            }
            Expr::Value(v) if matches!(v.value, Value::Placeholder(_)) => {
                let (message, span) = (format!("{} is a placeholder; write the value itself", v.value), v.span());
                self.refuse(message, span);
            }
            _ => {}
        }
        let plain = matches!(e, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        if plain && self.errors.len() == before && self.aggregates == 0 && self.part.names.is_empty() {
            self.part.bare.push(e.clone());
        }
    }

    fn function(&mut self, f: &mut Function) {
        let name_span = f.name.span();
        let whole = call(self.scope.sql, name_span);
        let word = match f.name.0.as_slice() {
            [part] => part.as_ident().map(|i| if i.quote_style.is_some() { i.value.clone() } else { i.value.to_lowercase() }),
            _ => None,
        };
        let word = word.unwrap_or_else(|| f.name.to_string());
        if f.over.is_some() {
            let message = format!("{word}(…) over (…) is not supported: a window function needs the whole table; use group by over tumble(…)");
            return self.refuse(message, whole);
        }
        if matches!(word.as_str(), "tumble" | "hop" | "session") {
            return self.refuse(format!("{word} belongs into the from: from {word}({}, …)", self.scope.source), whole);
        }
        if matches!(f.args, FunctionArguments::Subquery(_)) {
            return self.refuse("subqueries are not supported: a table is one select over one source", whole);
        }
        match functions::known(&word) {
            Known::Scalar => {}
            Known::Volatile => {
                let message = format!("{word}() gives another answer each time it is asked, and a table must depend on its source alone");
                self.errors.push(SqlError::at_span(message, whole).expecting("a column of the source, such as the time of an event"));
            }
            Known::AggregateLater => {
                let message = format!("the aggregate {word} is not in this version");
                self.errors.push(SqlError::at_span(message, name_span).expecting(format!("one of {}", functions::WRITTEN)).unsupported());
                // Where no aggregate can be, that is no matter of versions.
                self.part.aggregates = true;
            }
            Known::Window => self.refuse(format!("{word} is a window function, which needs the whole table; use group by over tumble(…)"), whole),
            Known::Unknown => {
                let error = SqlError::at_span(format!("no function is named {word}"), name_span);
                let nearest = functions::elsewhere(&word).or_else(|| super::error::nearest(&word, &functions::names()));
                let expected = "a scalar function of DataFusion that this build has (none of hashes), or an aggregate: ";
                self.errors.push(SqlError { nearest: nearest.map(String::from), ..error.expecting(format!("{expected}{}", functions::WRITTEN)) });
            }
            Known::Aggregate => self.aggregate(f, &word, whole),
        }
    }

    fn aggregate(&mut self, f: &mut Function, word: &str, whole: Span) {
        self.part.aggregates = true;
        if let (Some(planned), [part]) = (functions::planned_name(word), f.name.0.as_mut_slice()) {
            *part = ObjectNamePart::Identifier(Ident { value: planned.to_string(), quote_style: None, span: whole });
        }
        if self.aggregates > 0 {
            self.refuse(format!("{word}(…) within another aggregate cannot be computed in one pass"), whole);
        }
        match self.clause {
            Clause::Where => self.refuse(format!("{word}(…) cannot be in where, which judges single rows; use having, or {word}(…) filter (where …)"), whole),
            Clause::GroupBy => self.refuse(format!("{word}(…) cannot be in {}: it is computed for each group", self.clause.title()), whole),
            Clause::Item | Clause::Having => {}
        }
        let FunctionArguments::List(list) = &f.args else {
            return self.refuse(format!("{word} needs an argument"), whole);
        };
        let exact = |word: &str| matches!(word, "count" | "min" | "max" | "bool_and" | "bool_or");
        if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) && !exact(word) {
            self.refuse(format!("{word}(distinct …): distinct is supported for count only"), whole);
        }
        let star = |arg: &FunctionArg| matches!(arg, FunctionArg::Unnamed(FunctionArgExpr::Wildcard | FunctionArgExpr::QualifiedWildcard(_)));
        if list.duplicate_treatment == Some(DuplicateTreatment::Distinct) && list.args.iter().any(star) {
            self.refuse(format!("{word}(distinct *): distinct is supported of one value; name a column"), whole);
        }
        let ordered = list.clauses.iter().any(|c| matches!(c, FunctionArgumentClause::OrderBy(_))) || !f.within_group.is_empty();
        if ordered {
            self.refuse(format!("{word}: order by within an aggregate is not supported"), whole);
        }
        let nulls = f.null_treatment.is_some() || list.clauses.iter().any(|c| matches!(c, FunctionArgumentClause::IgnoreOrRespectNulls(_)));
        if nulls {
            self.refuse(format!("{word}: ignore nulls and respect nulls are not supported"), whole);
        }
        if list.args.len() != 1 && !(word == "count" && list.args.is_empty()) {
            self.refuse(format!("{word}: one argument is supported; found {}", list.args.len()), whole);
        }
    }
}

/// Words that the parser takes for functions without brackets, as `user` in PostgreSQL, are columns unless there is such a function.
pub(super) fn words_are_columns(query: &mut Query) {
    struct Words;
    impl VisitorMut for Words {
        type Break = ();

        fn pre_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<()> {
            if let Expr::Function(Function { name, args: FunctionArguments::None, over: None, filter: None, .. }) = e
                && let [ObjectNamePart::Identifier(word)] = name.0.as_slice()
                && word.quote_style.is_none()
                && functions::known(&word.value.to_lowercase()) == Known::Unknown
            {
                *e = Expr::Identifier(word.clone());
            }
            ControlFlow::Continue(())
        }
    }
    let _ = VisitMut::visit(query, &mut Words);
}

/// Whether it is the call of an aggregate.
pub(super) fn is_aggregate(e: &Expr) -> bool {
    let Expr::Function(f) = e else { return false };
    matches!(f.name.0.as_slice(), [part] if part.as_ident().is_some_and(|i| {
        let word = if i.quote_style.is_some() { i.value.clone() } else { i.value.to_lowercase() };
        matches!(functions::known(&word), Known::Aggregate | Known::AggregateLater)
    }))
}

impl VisitorMut for Walk<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.subqueries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.subqueries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<()> {
        if self.subqueries == 0 {
            self.expr(e);
            self.aggregates += usize::from(is_aggregate(e));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<()> {
        if self.subqueries == 0 {
            self.aggregates -= usize::from(is_aggregate(e));
        }
        ControlFlow::Continue(())
    }
}

/// The characters of a text from one place on, each with its own place and the next one's.
fn from(sql: &str, (line, column): (u64, u64)) -> impl Iterator<Item = ((u64, u64), char)> {
    let lines = sql.split('\n').enumerate().skip(line.saturating_sub(1) as usize);
    lines.flat_map(move |(i, text)| {
        let skip = if i as u64 + 1 == line { column.saturating_sub(1) as usize } else { 0 };
        let chars = text.chars().enumerate().skip(skip).map(move |(c, ch)| ((i as u64 + 1, c as u64 + 1), ch));
        let end = text.chars().count() as u64 + 1;
        chars.chain(std::iter::once(((i as u64 + 1, end), '\n')))
    })
}

/// A span with the brackets that are opened in it closed: the parser's spans end at the last word.
pub(super) fn covering(sql: &str, span: Span) -> Span {
    let end = (span.end.line, span.end.column);
    let (mut open, mut quote) = (0usize, None);
    for (at, c) in from(sql, (span.start.line, span.start.column)) {
        if at >= end && open == 0 && quote.is_none() {
            break;
        }
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => open += 1,
            (None, ')') => {
                open = open.saturating_sub(1);
                if open == 0 && at >= end {
                    return closed(span, at);
                }
            }
            _ => {}
        }
    }
    span
}

fn closed(span: Span, (line, column): (u64, u64)) -> Span {
    let mut span = span;
    span.end.line = line;
    span.end.column = column + 1;
    span
}

/// A function's name with its arguments.
fn call(sql: &str, name: Span) -> Span {
    let mut next = from(sql, (name.end.line, name.end.column)).skip_while(|(_, c)| c.is_whitespace());
    match next.next() {
        Some((at, '(')) => covering(sql, closed(name, at)),
        _ => name,
    }
}
