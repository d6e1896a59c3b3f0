//! The text of a table's SQL: one `select` over one source, checked before anything is planned.
//!
//! What a table cannot be is refused here, on the syntax tree, because only the tree knows where each
//! word stands. The window function of the `from` clause is taken out and names are made exact, so that
//! what is left is a plain query over one plain table. One error does not hide the next: a part that cannot be
//! judged any more is left open, and what depends on it is not judged either.

use super::error::{Place, SqlError, UNNAMED};
use super::names::{Clause, Part, Pick, Scope, covering, is_aggregate, pick, words_are_columns};
use super::split::Frame;
use super::window::whole_days;
use super::{Align, Declared, OP, Tumble, write_uuids_out};
use crate::pipeline::{FileInput, Format, Input, SourceSpec};
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, GroupByExpr, Ident, ObjectName, Query, Select, SelectItem, SetExpr, Spanned, Statement, TableFactor, Value,
};
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser, tokenizer::Span};

/// A statement over the table named by its source, ready to be planned, and what is wrong with its words.
pub(super) struct Checked {
    pub statement: Statement,
    pub source: Origin,
    pub window: Option<Tumble>,
    /// It selects from a window function, be that right or not.
    pub windowed: bool,
    pub errors: Vec<SqlError>,
    /// In the order of the select list; a `*` holds nothing.
    pub items: Vec<Part>,
    pub condition: Option<Part>,
    pub groups: Vec<Part>,
    pub having: Option<Part>,
    names: Vec<Option<String>>,
    /// Where the source stands.
    from: Span,
}

/// The source of a select, as far as it is known.
pub(super) struct Origin {
    pub spec: SourceSpec,
    pub doubtful: Vec<String>,
    pub open: bool,
    pub timeless: bool,
}

impl Origin {
    fn of(declared: &Declared<'_>) -> Self {
        Self { spec: declared.spec.clone(), doubtful: declared.doubtful.to_vec(), open: declared.open, timeless: declared.timeless }
    }

    /// Where nothing is known of the source, any column may be its.
    fn unknown() -> Self {
        let input = Input::File(FileInput { path: String::new() });
        let spec = SourceSpec { name: "source".into(), input, format: Format::Json, columns: vec![], watermark: None, max_record_bytes: 0, max_depth: 0 };
        Self { spec, doubtful: vec![], open: true, timeless: true }
    }
}

impl Checked {
    pub fn select(&self) -> Option<&Select> {
        match &self.statement {
            Statement::Query(query) => match query.body.as_ref() {
                SetExpr::Select(select) => Some(select.as_ref()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The statement for the planner, with these items of its select list. The planner knows no `count(*)` under
    /// `group by all`: its groups are written out.
    pub fn planned(&self, keeps: impl Fn(usize) -> bool) -> Statement {
        let mut statement = self.statement.clone();
        let Statement::Query(query) = &mut statement else { return statement };
        let SetExpr::Select(select) = query.body.as_mut() else { return statement };
        if matches!(select.group_by, GroupByExpr::All(_)) {
            let group = |(item, part): (&SelectItem, &Part)| match item {
                // A number would be the place of a column.
                SelectItem::UnnamedExpr(Expr::Value(_)) | SelectItem::ExprWithAlias { expr: Expr::Value(_), .. } => None,
                SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } if !part.aggregates => Some(e.clone()),
                _ => None,
            };
            let kept = select.projection.iter().zip(&self.items).enumerate().filter(|(nth, _)| keeps(*nth));
            select.group_by = GroupByExpr::Expressions(kept.filter_map(|(_, item)| group(item)).collect(), vec![]);
        }
        let mut nth = 0..;
        select.projection.retain(|_| nth.next().is_some_and(&keeps));
        statement
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.items.iter().chain(&self.condition).chain(&self.groups).chain(&self.having)
    }

    pub fn aggregated(&self) -> bool {
        let all = self.select().is_some_and(|s| matches!(s.group_by, GroupByExpr::All(_)));
        all || !self.groups.is_empty() || self.parts().any(|p| p.aggregates)
    }

    /// Whether what was declared is too wrong for the SQL to be planned.
    pub fn in_doubt(&self) -> bool {
        self.source.open || (self.source.timeless && self.windowed) || self.parts().any(|p| p.doubtful || p.wrong)
    }

    pub fn frame(&self) -> Frame<'_> {
        Frame { source: &self.source.spec, window: self.window, windowed: self.windowed }
    }

    /// The names of the table's columns, if all of them are known.
    pub fn columns(&self) -> Option<Vec<String>> {
        let select = self.select()?;
        let named = |((item, name), part): ((&SelectItem, &Option<String>), &Part)| match (item, name) {
            // A misspelt column names none.
            (SelectItem::UnnamedExpr(_), _) if part.wrong => None,
            (_, Some(name)) => Some(vec![name.clone()]),
            (SelectItem::Wildcard(_), None) if !self.source.open => {
                Some(self.source.spec.columns.iter().map(|c| c.name.clone()).chain(self.source.doubtful.iter().cloned()).collect())
            }
            _ => None,
        };
        let each: Option<Vec<Vec<String>>> = select.projection.iter().zip(&self.names).zip(&self.items).map(named).collect();
        each.map(|e| e.concat())
    }

    /// The names that the select list gives, in its order.
    pub fn names(&self) -> &[Option<String>] {
        &self.names
    }

    /// Finds the place of an error that knows only of what kind of thing it is.
    pub fn place(&self, error: SqlError) -> SqlError {
        let span = match error.place {
            Place::Source => Some(self.from),
            Place::Group => {
                let grouped = self.groups.iter().find_map(|p| p.span);
                let aggregate = || self.items.iter().find(|p| p.aggregates).and_then(|p| p.span);
                grouped.or_else(aggregate).or_else(|| self.items.iter().find_map(|p| p.span))
            }
            _ => return error,
        };
        match span {
            Some(span) => error.spanning(span),
            None => error.placed(Place::Unknown),
        }
    }
}

fn refused(errors: &mut Vec<SqlError>, message: impl Into<String>, span: Span) {
    errors.push(SqlError::at_span(message, span));
}

/// # Errors
/// What leaves nothing to go on with: the text is no SQL, or no select.
pub(super) fn check(sql: &str, sources: &[Declared<'_>], unsure: bool) -> Result<Checked, Vec<SqlError>> {
    let parsed = Parser::new(&GenericDialect {}).with_recursion_limit(64).try_with_sql(sql).and_then(|mut p| p.parse_statements());
    let mut statements = parsed.map_err(|e| vec![misspelt(sql, SqlError::of_parser(&e))])?;
    if statements.len() != 1 {
        let error = SqlError::new(format!("expected one select, found {} statements", statements.len()));
        return Err(vec![statements.get(1).map_or(error.clone(), |second| error.spanning(second.span()))]);
    }
    let mut statement = statements.remove(0);
    let mut errors = vec![];
    let Statement::Query(query) = &mut statement else {
        let word = sql.split_whitespace().next().unwrap_or_default();
        return Err(vec![SqlError::new(format!("a table is one select; found {word}"))]);
    };
    words_are_columns(query);
    // What a `with` names may stand where a source does.
    let unsure = unsure || query.with.is_some();
    let Some(select) = only_select(query, sql, &mut errors) else { return Err(errors) };
    let from = select.from.first().map_or(Span::empty(), |f| covering(sql, f.relation.span()));
    let alias = select.from.first().and_then(|f| match &f.relation {
        TableFactor::Table { alias, .. } | TableFactor::Function { alias, .. } => alias.as_ref().map(|a| a.name.value.clone()),
        _ => None,
    });
    let Origins { source, window, windowed } = from_clause(select, sql, sources, unsure, &mut errors);
    let mut columns: Vec<String> = source.spec.columns.iter().map(|c| c.name.clone()).chain(source.doubtful.iter().cloned()).collect();
    let mut doubtful: std::collections::BTreeSet<String> = source.doubtful.iter().cloned().collect();
    let given: Vec<Option<String>> = select.projection.iter().map(|item| name_of(item, &source.spec.name, alias.as_deref())).collect();
    if windowed {
        for reserved in ["window_start", "window_end"] {
            if columns.iter().any(|c| c.eq_ignore_ascii_case(reserved)) {
                refused(&mut errors, format!("source {} has a column {reserved}, which tumble() adds; rename it with `from`", source.spec.name), from);
                doubtful.insert(reserved.to_string());
                continue;
            }
            columns.push(reserved.to_string());
            if source.timeless || source.open {
                doubtful.insert(reserved.to_string());
            }
        }
    }
    let mut scope = Scope { sql, columns, doubtful, open: source.open, source: source.spec.name.clone(), alias, given };
    let judged = judge(&mut scope, select, windowed, &mut errors);
    for (text, span) in write_uuids_out(select, &source.spec.columns) {
        errors.push(SqlError::at_span(format!("'{text}' is no uuid"), span).expecting("a text such as '123e4567-e89b-12d3-a456-426614174000'"));
    }
    let names = judged.names(select, &scope);
    let Judged { items, condition, groups, having } = judged;
    let mut checked = Checked { statement, source, window, windowed, errors, items, condition, groups, having, names, from };
    whole(&mut checked, sql);
    Ok(checked)
}

struct Judged {
    items: Vec<Part>,
    condition: Option<Part>,
    groups: Vec<Part>,
    having: Option<Part>,
}

impl Judged {
    /// As [`Scope::given`], with the exact names of columns that are handed through.
    fn names(&self, select: &Select, scope: &Scope<'_>) -> Vec<Option<String>> {
        select.projection.iter().map(|item| name_of(item, &scope.source, scope.alias.as_deref())).collect()
    }
}

fn judge(scope: &mut Scope<'_>, select: &mut Select, windowed: bool, errors: &mut Vec<SqlError>) -> Judged {
    let calls = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } => scope.walk(Clause::Item, &mut e.clone(), &mut vec![]).aggregates,
        _ => false,
    };
    let grouped = matches!(&select.group_by, GroupByExpr::Expressions(each, _) if !each.is_empty());
    if !windowed && (grouped || select.projection.iter().any(calls)) {
        // That it has no window is told once; its bounds are not missed again.
        for bound in ["window_start", "window_end"].map(String::from) {
            if !scope.columns.contains(&bound) {
                scope.columns.push(bound.clone());
                scope.doubtful.insert(bound);
            }
        }
    }
    let items = |item: &mut SelectItem| match item {
        SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } => scope.walk(Clause::Item, e, errors),
        _ => Part { doubtful: !scope.doubtful.is_empty() || scope.open, ..Part::default() },
    };
    let items = select.projection.iter_mut().map(items).collect();
    let condition = select.selection.as_mut().map(|e| scope.walk(Clause::Where, e, errors));
    let groups = match &mut select.group_by {
        GroupByExpr::Expressions(each, _) => each.iter_mut().map(|e| scope.walk(Clause::GroupBy, e, errors)).collect(),
        GroupByExpr::All(_) => vec![],
    };
    let having = select.having.as_mut().map(|e| scope.walk(Clause::Having, e, errors));
    Judged { items, condition, groups, having }
}

/// What an item of the select list names its column, if it does.
fn name_of(item: &SelectItem, source: &str, alias: Option<&str>) -> Option<String> {
    let folded = |i: &Ident| if i.quote_style.is_some() { i.value.clone() } else { i.value.to_lowercase() };
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(Expr::Identifier(i)) => Some(i.value.clone()),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(ids)) => match ids.as_slice() {
            [table, column] if table.value.eq_ignore_ascii_case(alias.unwrap_or(source)) => Some(column.value.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// What only shows when the parts are seen together.
fn whole(checked: &mut Checked, sql: &str) {
    let (aggregated, windowed, from) = (checked.aggregated(), checked.windowed, checked.from);
    let source = checked.source.spec.name.clone();
    if aggregated && !windowed && !checked.source.open {
        let error = SqlError::new("an aggregate over a stream never ends without a window").placed(Place::Group);
        let error = error.expecting(format!("from tumble({source}, interval '5 minutes') and group by window_start"));
        let error = checked.place(error);
        checked.errors.push(error);
    }
    if windowed && !aggregated {
        let message = "a window is used without an aggregate";
        checked.errors.push(SqlError::at_span(message, from).expecting(format!("group by window_start and aggregates, or `from {source}` alone")));
    }
    let (mut found, mut mixed) = (vec![], vec![]);
    if let Some(select) = checked.select() {
        for (nth, (item, part)) in select.projection.iter().zip(&checked.items).enumerate() {
            let span = part.span.unwrap_or_else(|| covering(sql, item.span()));
            let with_alias = covering(sql, item.span());
            match (item, &checked.names[nth]) {
                // An aggregate alone has its own text for a name.
                (SelectItem::UnnamedExpr(e), None) if !part.wrong && !is_aggregate(e) => {
                    found.push(SqlError::at_span(format!("the column {} {UNNAMED}", short(e)), span).expecting("`… as name` behind it"));
                }
                (SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. }, _)
                    if matches!(select.group_by, GroupByExpr::All(_)) && part.aggregates && !part.wrong && !is_aggregate(e) =>
                {
                    let message = format!("group by all cannot group by {}, which holds an aggregate", short(e));
                    found.push(SqlError::at_span(message, span).expecting("the columns of the group written out: group by window_start, …"));
                    mixed.push(nth);
                }
                (_, Some(name)) if name.eq_ignore_ascii_case(OP) => {
                    let message = format!("the column name {OP} is taken by append-only tables");
                    found.push(SqlError::at_span(message, with_alias).expecting("another name with `as`"));
                }
                (_, Some(name)) if checked.names[..nth].iter().flatten().any(|n| n.eq_ignore_ascii_case(name)) => {
                    let message = format!("two columns are named {name}: no two columns have the same name, and case does not tell them apart");
                    found.push(SqlError::at_span(message, with_alias).expecting("another name with `as` for one of them"));
                }
                _ => {}
            }
        }
    }
    checked.errors.extend(found);
    mixed.into_iter().for_each(|nth| checked.items[nth].wrong = true);
}

/// An expression in a few words, for a message.
fn short(e: &Expr) -> String {
    let text = e.to_string().replace('"', "");
    if text.chars().count() > 40 { text.chars().take(37).chain("…".chars()).collect() } else { text }
}

/// A word near the place where the parser stopped that is a keyword but for a letter.
fn misspelt(sql: &str, error: SqlError) -> SqlError {
    const WORDS: [&str; 14] = ["select", "from", "where", "group", "by", "having", "as", "and", "or", "not", "case", "when", "then", "filter"];
    let Place::Sql { from: (line, column), .. } = error.place else {
        // The text ends too early: its last character is shown.
        let text = sql.trim_end();
        let column = text.rsplit('\n').next().unwrap_or_default().chars().count().max(1);
        return error.placed(Place::Sql { from: (text.matches('\n').count() + 1, column), to: None });
    };
    let (line, column) = (line.max(1), column.max(1));
    let before: String = sql.split('\n').take(line - 1).map(|l| format!("{l}\n")).collect();
    let on: Vec<char> = sql.split('\n').nth(line - 1).unwrap_or_default().chars().collect();
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    let found: String = on.iter().skip(column - 1).take_while(|c| word(c)).collect();
    let ahead: String = before.chars().chain(on.iter().copied().take(column - 1)).collect();
    let near = |w: &str| {
        let known = ALL_KEYWORDS.iter().any(|k| k.eq_ignore_ascii_case(w)) || w.chars().count() < 3;
        WORDS.into_iter().find(|k| !known && strsim::damerau_levenshtein(&w.to_lowercase(), k) == 1)
    };
    if let Some(near) = near(&found) {
        return SqlError { nearest: Some(near.to_string()), ..error };
    }
    // `select a frm events`: the parser takes `frm` for a name, and wonders at what follows.
    for wrong in ahead.split(|c| !word(&c)).rev().filter(|w| !w.is_empty()).take(2) {
        let Some(near) = near(wrong) else { continue };
        let at = ahead.rfind(wrong).unwrap_or_default();
        let line = ahead[..at].matches('\n').count() + 1;
        let column = ahead[..at].rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let error = SqlError { message: format!("{wrong} is no word of SQL here"), nearest: Some(near.to_string()), ..error };
        return error.placed(Place::Sql { from: (line, column), to: None });
    }
    error
}

/// The select of a query; `None` where there is none.
fn only_select<'a>(query: &'a mut Query, sql: &str, errors: &mut Vec<SqlError>) -> Option<&'a mut Select> {
    if let Some(with) = &query.with {
        refused(errors, "a table is one select: with … is not supported; write the expressions in place", with.span());
    }
    if let Some(order) = &query.order_by {
        refused(errors, "order by has no meaning for a table that keeps growing; leave it out and order when you query", order.span());
    }
    if let Some(limit) = &query.limit_clause {
        refused(errors, "limit would depend on which rows came first; leave it out and limit when you query", limit.span());
    }
    if let Some(fetch) = &query.fetch {
        refused(errors, "fetch would depend on which rows came first; leave it out and limit when you query", fetch.span());
    }
    if !query.locks.is_empty() || query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() || !query.pipe_operators.is_empty() {
        errors.push(SqlError::new("a table is one plain select; remove what follows it"));
    }
    let span = covering(sql, query.body.span());
    let select = match query.body.as_mut() {
        SetExpr::Select(select) => select.as_mut(),
        SetExpr::SetOperation { op, right, .. } => {
            let message = format!("{} of selects is not supported; declare one table for each", op.to_string().to_lowercase());
            refused(errors, message, right.span());
            return None;
        }
        SetExpr::Values(_) => {
            refused(errors, "a table is a select over a source, not a list of values", span);
            return None;
        }
        _ => {
            refused(errors, "a table is one plain select", span);
            return None;
        }
    };
    if select.distinct.is_some() {
        refused(errors, "select distinct is not supported; use group by window_start and the columns over tumble(…)", span);
    }
    if let Some(e) = &select.qualify {
        refused(errors, "qualify is not supported: window functions need the whole table", e.span());
    }
    let odd = select.top.is_some()
        || select.into.is_some()
        || !select.lateral_views.is_empty()
        || select.prewhere.is_some()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || !select.named_window.is_empty()
        || select.value_table_mode.is_some();
    if odd {
        refused(errors, "a table is a select with from, where, group by and having only", span);
    }
    const GROUPINGS: &str = "grouping sets, cube and rollup are not supported; declare one table for each grouping";
    match &select.group_by {
        GroupByExpr::All(modifiers) if !modifiers.is_empty() => refused(errors, GROUPINGS, span),
        GroupByExpr::All(_) => {}
        GroupByExpr::Expressions(exprs, modifiers) => {
            let sets = exprs.iter().find(|e| matches!(e, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_)));
            if let Some(e) = sets {
                refused(errors, GROUPINGS, e.span());
            } else if !modifiers.is_empty() {
                refused(errors, GROUPINGS, span);
            }
        }
    }
    // What was refused must not be refused again by the planner.
    select.distinct = None;
    select.qualify = None;
    (query.with, query.order_by, query.limit_clause, query.fetch) = (None, None, None, None);
    Some(select)
}

/// What the `from` yields.
struct Origins {
    source: Origin,
    window: Option<Tumble>,
    windowed: bool,
}

fn from_clause(select: &mut Select, sql: &str, sources: &[Declared<'_>], unsure: bool, errors: &mut Vec<SqlError>) -> Origins {
    const EXPECTED: &str = "a source or tumble(source, interval '…')";
    let nothing = |windowed| Origins { source: Origin::unknown(), window: None, windowed };
    let span = select.span();
    let known: Vec<&str> = sources.iter().map(|s| s.spec.name.as_str()).collect();
    if select.from.is_empty() {
        errors.push(SqlError::at_span("a select needs a source in its from", span).expecting(format!("from {}", known.join(" or "))));
        return nothing(false);
    }
    if let Some(join) = select.from.get(1).map(|f| &f.relation).or(select.from[0].joins.first().map(|j| &j.relation)) {
        errors.push(SqlError::at_span("joins are not in this version; a table reads one source", covering(sql, join.span())).unsupported());
        return nothing(false);
    }
    let span = covering(sql, select.from[0].relation.span());
    let TableFactor::Table { name, alias, args, with_hints, version, with_ordinality, partitions, json_path, sample, index_hints } = &mut select.from[0].relation
    else {
        errors.push(SqlError::at_span("subqueries are not supported: the from of a table is one source", span).expecting(EXPECTED));
        return nothing(false);
    };
    let odd = !with_hints.is_empty()
        || version.is_some()
        || *with_ordinality
        || !partitions.is_empty()
        || json_path.is_some()
        || sample.is_some()
        || !index_hints.is_empty();
    if odd {
        errors.push(SqlError::at_span("something follows the source in the from", span).expecting(format!("{EXPECTED}, with nothing after it")));
    }
    if let Some(alias) = alias
        && !alias.columns.is_empty()
    {
        refused(errors, "the alias of a source cannot rename its columns; rename them in the select", span);
    }
    let name_span = name.span();
    let Some(args) = args.take() else {
        let source = find_source(name, sources, unsure, errors);
        *name = exact_name(&source.spec, name_span);
        return Origins { source, window: None, windowed: false };
    };
    let function = name.to_string().to_lowercase();
    if function != "tumble" {
        if matches!(function.as_str(), "hop" | "session") {
            errors.push(SqlError::at_span(format!("{function}() is not in this version; tumble(source, size) is"), name_span).unsupported());
        } else {
            let error = SqlError::at_span(format!("there is no table function {function}"), name_span);
            let near = super::error::nearest(&function, &["tumble"]).map(String::from);
            errors.push(SqlError { nearest: near, ..error.expecting("tumble(source, size), which adds window_start and window_end") });
        }
        // Its source all the same, as tumble would have it: its columns are checked.
        let first = args.args.first().and_then(|a| match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(id))) => Some(ObjectName::from(vec![id.clone()])),
            _ => None,
        });
        let Some(first) = first else { return nothing(true) };
        let source = find_source(&first, sources, unsure, errors);
        *name = exact_name(&source.spec, name_span);
        return Origins { source, window: None, windowed: true };
    }
    let mut given: Vec<&Expr> = vec![];
    for a in &args.args {
        match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => given.push(e),
            other => refused(errors, format!("tumble takes its arguments by position; found {other}"), other.span()),
        }
    }
    if given.len() == args.args.len() && !(2..=3).contains(&given.len()) {
        let error = SqlError::at_span(format!("tumble takes a source, a size and optionally a shift or a time zone; found {} arguments", given.len()), span);
        errors.push(error.expecting(format!("tumble({}, interval '5 minutes')", known.first().unwrap_or(&"source"))));
    }
    let source = match given.first() {
        Some(Expr::Identifier(id)) => find_source(&ObjectName::from(vec![id.clone()]), sources, unsure, errors),
        Some(other) => {
            refused(errors, format!("the first argument of tumble is the name of a source; found {other}"), other.span());
            Origin::unknown()
        }
        None => Origin::unknown(),
    };
    let mut source = source;
    if source.spec.watermark.is_none() && !source.timeless && !source.open {
        let message = format!("tumble needs event time: source {} declares no watermark; add `watermark: {{column: …}}` to it", source.spec.name);
        refused(errors, message, span);
        source.timeless = true;
    }
    let window = match given.as_slice() {
        [_, size] => tumble(&source, size, None, errors),
        [_, size, shift] => tumble(&source, size, Some(shift), errors),
        _ => None,
    };
    *name = exact_name(&source.spec, name_span);
    Origins { source, window, windowed: true }
}

fn exact_name(source: &SourceSpec, span: Span) -> ObjectName {
    let mut ident = Ident::with_quote('"', source.name.clone());
    ident.span = span;
    ObjectName::from(vec![ident])
}

/// The source of this name; where there is none, the one that was perhaps meant, so that columns are checked.
fn find_source(name: &ObjectName, sources: &[Declared<'_>], unsure: bool, errors: &mut Vec<SqlError>) -> Origin {
    let ident = match name.0.as_slice() {
        [part] => part.as_ident(),
        _ => None,
    };
    let Some(ident) = ident else {
        errors.push(SqlError::at_span(format!("no source is named {name}"), name.span()).expecting("the name of a source, without a schema before it"));
        return Origin::unknown();
    };
    let names: Vec<&str> = sources.iter().map(|s| s.spec.name.as_str()).collect();
    match pick(&ident.value, ident.quote_style.is_some(), names.iter().copied()) {
        Pick::One(i) => Origin::of(&sources[i]),
        Pick::Many(names) => {
            refused(errors, format!("{} may be any of the sources {names}; put it in double quotes", ident.value), ident.span);
            Origin::unknown()
        }
        Pick::None if unsure => Origin::unknown(),
        Pick::None => {
            let error = SqlError::at_span(format!("no source is named {}", ident.value), ident.span).among(&ident.value, &names);
            let meant = error.nearest.as_ref().and_then(|near| sources.iter().find(|s| s.spec.name == *near)).map(Origin::of);
            errors.push(error);
            meant.unwrap_or_else(Origin::unknown)
        }
    }
}

fn tumble(source: &Origin, size: &Expr, shift: Option<&Expr>, errors: &mut Vec<SqlError>) -> Option<Tumble> {
    let known = errors.len();
    let size_us = match super::interval_us(size) {
        Ok(us) if us > 0 => us,
        Ok(_) => {
            refused(errors, format!("the size of tumble must be above zero; found {size}"), size.span());
            0
        }
        Err(why) => {
            refused(errors, format!("the size of tumble {why}"), size.span());
            0
        }
    };
    let align = match shift {
        None => Align::Epoch { offset_us: 0 },
        Some(Expr::Value(v)) if matches!(v.value, Value::SingleQuotedString(_)) => {
            let Value::SingleQuotedString(name) = &v.value else { unreachable!("matched above") };
            let zone: Option<chrono_tz::Tz> = name.parse().ok();
            if zone.is_none() {
                let zones: Vec<&str> = chrono_tz::TZ_VARIANTS.iter().map(|z| z.name()).collect();
                let error = SqlError::at_span(format!("no time zone is named {name}"), v.span()).among(name, &zones);
                errors.push(if error.nearest.is_none() { error.expecting("a zone such as 'Europe/Berlin', or a shift such as interval '15 minutes'") } else { error });
            }
            let days = whole_days(size_us).filter(|d| *d > 0);
            if days.is_none() && size_us > 0 {
                refused(errors, format!("a time zone aligns windows of whole days; found a size of {size}"), size.span());
            }
            let watermark = source.spec.watermark.as_ref().map(|w| w.column.as_str());
            let column = source.spec.columns.iter().find(|c| Some(c.name.as_str()) == watermark);
            if let Some(column) = column.filter(|c| matches!(c.ty, crate::pipeline::ColumnType::TimestampLocal(_))) {
                refused(errors, format!("{} is a timestamp_local, which is in no time zone; leave the zone out", column.name), v.span());
            }
            Align::Days { zone: zone.unwrap_or(chrono_tz::UTC), days: days.unwrap_or(1) }
        }
        Some(e) => match super::interval_us(e) {
            Ok(offset) => Align::Epoch { offset_us: offset.rem_euclid(size_us.max(1)) },
            Err(why) => {
                refused(errors, format!("the shift of tumble, if it is no time zone, {why}"), e.span());
                Align::Epoch { offset_us: 0 }
            }
        },
    };
    (errors.len() == known).then_some(Tumble { size_us, align })
}
