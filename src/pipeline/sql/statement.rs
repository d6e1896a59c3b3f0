//! The text of a table's SQL: one `select` over one source, checked before anything is planned.
//!
//! What a table cannot be is refused here, on the syntax tree, because only the tree knows where each
//! word stands. The window function of the `from` clause is taken out and names are made exact, so that
//! what is left is a plain query over one plain table.

use super::window::whole_days;
use super::{Align, SqlError, Tumble, did_you_mean};
use crate::pipeline::SourceSpec;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident, ObjectName, Query, Select, SetExpr, Spanned, Statement, TableFactor,
    Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser, tokenizer::Span};
use std::ops::ControlFlow;

/// A statement over the table named by its source, ready to be planned.
pub(super) struct Checked<'a> {
    pub statement: Statement,
    pub source: &'a SourceSpec,
    pub window: Option<Tumble>,
}

pub(super) fn at(span: Span) -> Option<(usize, usize)> {
    (span.start.line > 0).then_some((span.start.line as usize, span.start.column as usize))
}

fn refuse<T>(message: impl Into<String>, span: Span) -> Result<T, SqlError> {
    Err(SqlError { message: message.into(), at: at(span), unsupported: false })
}

fn later<T>(message: impl Into<String>, span: Span) -> Result<T, SqlError> {
    Err(SqlError { message: message.into(), at: at(span), unsupported: true })
}

pub(super) fn check<'a>(sql: &str, sources: &'a [SourceSpec]) -> Result<Checked<'a>, SqlError> {
    let parsed = Parser::new(&GenericDialect {}).with_recursion_limit(64).try_with_sql(sql).and_then(|mut p| p.parse_statements());
    let mut statements = parsed.map_err(|e| SqlError::of_parser(&e))?;
    if statements.len() != 1 {
        return Err(SqlError::new(format!("expected one select, found {} statements", statements.len())));
    }
    let mut statement = statements.remove(0);
    let Statement::Query(query) = &mut statement else {
        let word = sql.split_whitespace().next().unwrap_or_default();
        return Err(SqlError::new(format!("a table is one select; found {word}")));
    };
    let select = only_select(query)?;
    let (source, window) = from_clause(select, sources)?;
    let aliased = match &select.from[0].relation {
        TableFactor::Table { alias: Some(alias), .. } => Some(alias.name.value.clone()),
        _ => None,
    };
    let mut columns: Vec<String> = source.columns.iter().map(|c| c.name.clone()).collect();
    if window.is_some() {
        for reserved in ["window_start", "window_end"] {
            if columns.iter().any(|c| c.eq_ignore_ascii_case(reserved)) {
                return Err(SqlError::new(format!("source {} has a column {reserved}, which tumble() adds; rename it with `from`", source.name)));
            }
            columns.push(reserved.to_string());
        }
    }
    let mut exact = Exact { columns: &columns, source: &source.name, alias: aliased.as_deref() };
    match VisitMut::visit(select, &mut exact) {
        ControlFlow::Break(e) => Err(*e),
        ControlFlow::Continue(()) => Ok(Checked { statement, source, window }),
    }
}

fn only_select(query: &mut Query) -> Result<&mut Select, SqlError> {
    if let Some(with) = &query.with {
        return refuse("a table is one select: with … is not supported; write the expressions in place", with.span());
    }
    if let Some(order) = &query.order_by {
        return refuse("order by has no meaning for a table that keeps growing; leave it out and order when you query", order.span());
    }
    if let Some(limit) = &query.limit_clause {
        return refuse("limit would depend on which rows came first; leave it out and limit when you query", limit.span());
    }
    if let Some(fetch) = &query.fetch {
        return refuse("fetch would depend on which rows came first; leave it out and limit when you query", fetch.span());
    }
    if !query.locks.is_empty() || query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() || !query.pipe_operators.is_empty() {
        return Err(SqlError::new("a table is one plain select; remove what follows it"));
    }
    let span = query.body.span();
    let select = match query.body.as_mut() {
        SetExpr::Select(select) => select.as_mut(),
        SetExpr::SetOperation { op, .. } => {
            return refuse(format!("{} of selects is not supported; declare one table for each", op.to_string().to_lowercase()), span);
        }
        SetExpr::Values(_) => return refuse("a table is a select over a source, not a list of values", span),
        _ => return refuse("a table is one plain select", span),
    };
    if select.distinct.is_some() {
        return refuse("select distinct is not supported; use group by window_start and the columns over tumble(…)", span);
    }
    if let Some(e) = &select.qualify {
        return refuse("qualify is not supported: window functions need the whole table", e.span());
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
        return refuse("a table is a select with from, where, group by and having only", span);
    }
    let modifiers = match &select.group_by {
        GroupByExpr::All(m) => m,
        GroupByExpr::Expressions(exprs, m) => {
            if let Some(e) = exprs.iter().find(|e| matches!(e, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_))) {
                return refuse("grouping sets, cube and rollup are not supported; declare one table for each grouping", e.span());
            }
            m
        }
    };
    if !modifiers.is_empty() {
        return refuse("grouping sets, cube and rollup are not supported; declare one table for each grouping", span);
    }
    Ok(select)
}

fn from_clause<'a>(select: &mut Select, sources: &'a [SourceSpec]) -> Result<(&'a SourceSpec, Option<Tumble>), SqlError> {
    let span = select.span();
    let [from] = select.from.as_mut_slice() else {
        return match select.from.len() {
            0 => refuse("a select needs a source in its from", span),
            _ => later("joins are not in this version; a table reads one source", select.from[1].relation.span()),
        };
    };
    if let Some(join) = from.joins.first() {
        return later("joins are not in this version; a table reads one source", join.relation.span());
    }
    let span = from.relation.span();
    let TableFactor::Table { name, alias, args, with_hints, version, with_ordinality, partitions, json_path, sample, index_hints } = &mut from.relation else {
        return refuse("the from of a table is a source or tumble(source, interval '…'); subqueries are not supported", span);
    };
    if !with_hints.is_empty()
        || version.is_some()
        || *with_ordinality
        || !partitions.is_empty()
        || json_path.is_some()
        || sample.is_some()
        || !index_hints.is_empty()
    {
        return refuse("the from of a table is a source or tumble(source, interval '…'), with nothing after it", span);
    }
    if let Some(alias) = alias
        && !alias.columns.is_empty()
    {
        return refuse("the alias of a source cannot rename its columns; rename them in the select", span);
    }
    let Some(args) = args.take() else {
        let source = find_source(name, sources)?;
        *name = exact_name(source, span);
        return Ok((source, None));
    };
    let function = name.to_string().to_lowercase();
    match function.as_str() {
        "tumble" => {}
        "hop" | "session" => return later(format!("{function}() is not in this version; tumble(source, size) is"), span),
        _ => return refuse(format!("there is no table function {function}; tumble(source, size) adds window_start and window_end"), span),
    }
    let args: Vec<&Expr> = args
        .args
        .iter()
        .map(|a| match a {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Ok(e),
            other => refuse(format!("tumble takes its arguments by position; found {other}"), other.span()),
        })
        .collect::<Result<_, _>>()?;
    let (source, size, shift) = match args.as_slice() {
        [source, size] => (*source, *size, None),
        [source, size, shift] => (*source, *size, Some(*shift)),
        _ => return refuse(format!("tumble takes a source, a size and optionally a shift or a time zone; found {} arguments", args.len()), span),
    };
    let Expr::Identifier(id) = source else {
        return refuse(format!("the first argument of tumble is the name of a source; found {source}"), source.span());
    };
    let source = find_source(&ObjectName::from(vec![id.clone()]), sources)?;
    let window = tumble(source, size, shift)?;
    *name = exact_name(source, span);
    Ok((source, Some(window)))
}

fn exact_name(source: &SourceSpec, span: Span) -> ObjectName {
    let mut ident = Ident::with_quote('"', source.name.clone());
    ident.span = span;
    ObjectName::from(vec![ident])
}

fn find_source<'a>(name: &ObjectName, sources: &'a [SourceSpec]) -> Result<&'a SourceSpec, SqlError> {
    let ident = match name.0.as_slice() {
        [part] => part.as_ident(),
        _ => None,
    };
    let Some(ident) = ident else {
        return refuse(format!("no source is named {name}"), name.span());
    };
    let quoted = ident.quote_style.is_some();
    match pick(&ident.value, quoted, sources.iter().map(|s| s.name.as_str())) {
        Pick::One(i) => Ok(&sources[i]),
        Pick::Many(names) => refuse(format!("{} may be any of the sources {names}; put it in double quotes", ident.value), ident.span),
        Pick::None => {
            let names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
            refuse(format!("no source is named {}{}", ident.value, did_you_mean(&ident.value, &names)), ident.span)
        }
    }
}

enum Pick {
    One(usize),
    Many(String),
    None,
}

/// An exact match first; an unquoted word also fits one name that differs in case only.
fn pick<'n>(word: &str, quoted: bool, names: impl Iterator<Item = &'n str>) -> Pick {
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

fn tumble(source: &SourceSpec, size: &Expr, shift: Option<&Expr>) -> Result<Tumble, SqlError> {
    let size_us = super::interval_us(size).map_err(|e| SqlError { message: format!("the size of tumble {e}"), at: at(size.span()), unsupported: false })?;
    if size_us <= 0 {
        return refuse(format!("the size of tumble must be above zero; found {size}"), size.span());
    }
    let Some(watermark) = &source.watermark else {
        return Err(SqlError::new(format!("tumble needs event time: source {0} declares no watermark; add `watermark: {{column: …}}` to it", source.name)));
    };
    let align = match shift {
        None => Align::Epoch { offset_us: 0 },
        Some(Expr::Value(v)) if matches!(v.value, Value::SingleQuotedString(_)) => {
            let Value::SingleQuotedString(name) = &v.value else { unreachable!("matched above") };
            let zone: chrono_tz::Tz = match name.parse() {
                Ok(zone) => zone,
                Err(_) => {
                    let known: Vec<&str> = chrono_tz::TZ_VARIANTS.iter().map(|z| z.name()).collect();
                    return refuse(format!("no time zone is named {name}{}", nearest_only(name, &known)), v.span());
                }
            };
            let Some(days) = whole_days(size_us) else {
                return refuse(format!("a time zone aligns windows of whole days; found a size of {size}"), size.span());
            };
            let column = source.columns.iter().find(|c| c.name == watermark.column);
            if matches!(column.map(|c| &c.ty), Some(crate::pipeline::ColumnType::TimestampLocal(_))) {
                return refuse(format!("{} is a timestamp_local, which is in no time zone; leave the zone out", watermark.column), v.span());
            }
            Align::Days { zone, days }
        }
        Some(e) => {
            let offset = super::interval_us(e)
                .map_err(|why| SqlError { message: format!("the shift of tumble, if it is no time zone, {why}"), at: at(e.span()), unsupported: false })?;
            Align::Epoch { offset_us: offset.rem_euclid(size_us) }
        }
    };
    Ok(Tumble { size_us, align })
}

fn nearest_only(word: &str, known: &[&str]) -> String {
    super::nearest(word, known).map(|n| format!("; did you mean {n}?")).unwrap_or_default()
}

/// Makes names exact, and refuses what no table can hold.
struct Exact<'a> {
    columns: &'a [String],
    source: &'a str,
    alias: Option<&'a str>,
}

impl Exact<'_> {
    fn column(&self, ident: &mut Ident) -> Result<bool, SqlError> {
        match pick(&ident.value, ident.quote_style.is_some(), self.columns.iter().map(String::as_str)) {
            Pick::One(i) => {
                ident.value = self.columns[i].clone();
                ident.quote_style = Some('"');
                Ok(true)
            }
            Pick::Many(names) => refuse(format!("{} may be any of the columns {names}; put it in double quotes", ident.value), ident.span),
            Pick::None => Ok(false),
        }
    }

    fn table(&self, ident: &mut Ident) -> bool {
        let named = self.alias.unwrap_or(self.source);
        let fits = ident.value == named || (ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case(named));
        if fits && self.alias.is_none() {
            ident.value = named.to_string();
            ident.quote_style = Some('"');
        }
        fits
    }

    fn expr(&self, e: &mut Expr) -> Result<(), SqlError> {
        match e {
            Expr::Identifier(id) => self.column(id).map(drop),
            Expr::CompoundIdentifier(ids) => {
                // `table.column` or `struct_column.field`.
                if ids.len() > 1 && self.table(&mut ids[0]) { self.column(&mut ids[1]).map(drop) } else { self.column(&mut ids[0]).map(drop) }
            }
            Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. } => {
                refuse("subqueries are not supported: a table is one select over one source", e.span())
            }
            Expr::Function(f) => {
                if f.over.is_some() {
                    return refuse(
                        format!("{}(…) over (…) is not supported: a window function needs the whole table; use group by over tumble(…)", f.name),
                        f.span(),
                    );
                }
                if matches!(f.name.to_string().to_lowercase().as_str(), "tumble" | "hop" | "session") {
                    return refuse(format!("{} belongs into the from: from {}({}, …)", f.name, f.name.to_string().to_lowercase(), self.source), f.span());
                }
                match &f.args {
                    FunctionArguments::Subquery(_) => refuse("subqueries are not supported: a table is one select over one source", f.span()),
                    _ => Ok(()),
                }
            }
            // A number with an exponent is a float; others with a point are decimals.
            Expr::Value(v) if matches!(&v.value, Value::Number(n, _) if n.contains(['e', 'E'])) => {
                let text = format!("cast('{}' as double)", v.value);
                let parsed = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut p| p.parse_expr());
                *e = parsed.map_err(|e| SqlError::of_parser(&e))?;
                Ok(())
            }
            Expr::Value(v) if matches!(v.value, Value::Placeholder(_)) => refuse(format!("{} is a placeholder; write the value itself", v.value), v.span()),
            _ => Ok(()),
        }
    }
}

impl VisitorMut for Exact<'_> {
    type Break = Box<SqlError>;

    fn pre_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<Self::Break> {
        match self.expr(e) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(Box::new(e)),
        }
    }
}
