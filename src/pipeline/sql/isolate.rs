//! The planner stops at its first error: each part of a select is planned for itself, so that one error does not hide
//! the next, and an error without a place has that of its part.

use super::error::{Place, SqlError};
use super::names::Part;
use super::split::{Frame, split};
use super::statement::Checked;
use crate::pipeline::{Emit, TableDecl};
use datafusion::sql::sqlparser::ast::{Expr, GroupByExpr, Ident, Select, SelectItem, SetExpr, Statement, Value, VisitMut, VisitorMut};
use std::ops::ControlFlow;

/// What the planner refuses of the parts that are not known to be wrong. `whole`: its answer to the select as it is.
pub(super) fn find(decl: &TableDecl, checked: &Checked, whole: Option<SqlError>) -> Vec<SqlError> {
    let Some(select) = checked.select() else { return whole.into_iter().collect() };
    let aggregated = checked.aggregated();
    let frame = Frame { windowed: aggregated || checked.windowed, ..checked.frame() };
    let parts = Parts { checked, select, frame, grouped: aggregated && checked.windowed };
    let mut errors = vec![];
    let sound: Vec<bool> = (0..select.projection.len()).map(|i| parts.item(i, &mut errors)).collect();
    let right = |p: &Part| !p.wrong && !p.doubtful && p.names.iter().all(|i| sound.get(*i) == Some(&true));
    let numbered = |nth: usize| parts.number(nth).is_none_or(|i| sound.get(i) != Some(&false));
    let condition = checked.condition.as_ref().is_none_or(|p| right(p) && parts.condition(p, &mut errors));
    let mut groups = true;
    for (nth, p) in checked.groups.iter().enumerate() {
        groups &= right(p) && numbered(nth) && parts.group(nth, p, &mut errors);
    }
    let mut having = checked.having.as_ref().is_none_or(right);
    if let Some(p) = checked.having.as_ref().filter(|_| having && aggregated) {
        having = parts.having(p, &sound, &mut errors);
    }
    // What is right by itself, together: what is amiss between the parts.
    let usable = groups && checked.windowed == aggregated && !checked.source.open && !(checked.source.timeless && checked.windowed);
    if usable && sound.contains(&true) {
        let mut statement = checked.planned(|nth| sound[nth]);
        edit(&mut statement, |select| {
            select.selection = select.selection.take().filter(|_| condition);
            select.having = select.having.take().filter(|_| having);
        });
        // A column that is left out here may be one of the key.
        let lost = sound.contains(&false) && decl.key.as_ref().is_some_and(|key| lost_key(checked, &sound, key));
        let key = decl.key.clone().filter(|_| !lost);
        let decl = TableDecl { key, emit: Emit::OnClose, ..decl.clone() };
        let dummy = checked.frame();
        if let Err(e) = split(&decl, statement, &dummy) {
            push(&mut errors, checked.place(e));
        }
    }
    if errors.is_empty() {
        errors.extend(whole.map(|e| checked.place(e)));
    }
    errors
}

fn lost_key(checked: &Checked, sound: &[bool], key: &[String]) -> bool {
    let names = checked.names();
    names.iter().zip(sound).any(|(name, sound)| !sound && name.as_ref().is_some_and(|n| key.iter().any(|k| k.eq_ignore_ascii_case(n))))
}

fn push(errors: &mut Vec<SqlError>, error: SqlError) {
    if !errors.iter().any(|e| e.message == error.message) {
        errors.push(error);
    }
}

fn edit(statement: &mut Statement, change: impl FnOnce(&mut Select)) {
    if let Statement::Query(query) = statement
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        change(select);
    }
}

struct Parts<'a> {
    checked: &'a Checked,
    select: &'a Select,
    frame: Frame<'a>,
    /// It aggregates over windows, as it should.
    grouped: bool,
}

impl Parts<'_> {
    /// Plans a select with these parts only.
    fn plan(&self, items: Vec<SelectItem>, condition: Option<Expr>, groups: Vec<Expr>, having: Option<Expr>) -> Result<(), SqlError> {
        let mut statement = self.checked.statement.clone();
        edit(&mut statement, |select| {
            select.projection = items;
            select.selection = condition;
            select.group_by = GroupByExpr::Expressions(groups, vec![]);
            select.having = having;
        });
        let decl = TableDecl {
            name: String::new(),
            sql: String::new(),
            key: None,
            allowed_lateness_us: 0,
            emit: Emit::OnClose,
            formats: vec![],
            partition_by: vec![],
            properties: Default::default(),
            comment: None,
            sql_at: (1, 1),
        };
        split(&decl, statement, &self.frame).map(drop)
    }

    /// What the select groups by, where all of it can be planned; else the window and whatever `part` reads bare.
    fn groups(&self, part: &Part) -> Vec<Expr> {
        let start = Expr::Identifier(Ident::with_quote('"', "window_start"));
        let numbered = |nth: usize| self.number(nth).is_none_or(|i| self.known(i));
        let right = |g: &Part| !g.wrong && !g.doubtful && g.names.iter().all(|i| self.known(*i));
        let known = self.checked.groups.iter().enumerate().all(|(nth, g)| right(g) && numbered(nth));
        let mut groups: Vec<Expr> = match &self.select.group_by {
            GroupByExpr::Expressions(each, _) if self.grouped && known => {
                each.iter().zip(&self.checked.groups).enumerate().map(|(nth, (e, p))| self.resolved(nth, e, p)).collect()
            }
            _ => part.bare.clone(),
        };
        if !groups.iter().any(is_start) {
            groups.push(start);
        }
        groups
    }

    fn known(&self, item: usize) -> bool {
        self.checked.items.get(item).is_some_and(|p| !p.wrong && !p.doubtful)
    }

    /// The column of the table that a group expression names by its number.
    fn number(&self, nth: usize) -> Option<usize> {
        let GroupByExpr::Expressions(each, _) = &self.select.group_by else { return None };
        match each.get(nth) {
            Some(Expr::Value(v)) => match &v.value {
                Value::Number(n, _) => n.to_string().parse::<usize>().ok().and_then(|n| n.checked_sub(1)),
                _ => None,
            },
            _ => None,
        }
    }

    /// A group expression with the column of the table that it names, by name or by number, written out.
    fn resolved(&self, nth: usize, e: &Expr, part: &Part) -> Expr {
        let named = self.number(nth).or_else(|| part.names.first().copied().filter(|_| matches!(e, Expr::Identifier(_))));
        match named.and_then(|i| self.select.projection.get(i)) {
            Some(SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. }) => e.clone(),
            _ => e.clone(),
        }
    }

    /// Whether the planner takes this part; an error without a place has the part's.
    fn judge(&self, part: &Part, answer: Result<(), SqlError>, errors: &mut Vec<SqlError>) -> bool {
        let Err(e) = answer else { return true };
        let e = match (e.place.clone(), part.span) {
            // Of a select that only stands for a part: what holds for the whole is asked of the whole.
            (Place::Group | Place::Source | Place::Key(_) | Place::Emit, _) => return true,
            (Place::Unknown, Some(span)) => e.spanning(span),
            _ => e,
        };
        push(errors, e);
        false
    }

    fn item(&self, nth: usize, errors: &mut Vec<SqlError>) -> bool {
        let (item, part) = (&self.select.projection[nth], &self.checked.items[nth]);
        if part.wrong || part.doubtful {
            return false;
        }
        let item = match item {
            SelectItem::UnnamedExpr(e) if !super::names::is_aggregate(e) && !matches!(e, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => named(e.clone()),
            // All columns at once: asked together with the rest.
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => return true,
            other => other.clone(),
        };
        if !self.frame.windowed {
            return self.judge(part, self.plan(vec![item], None, vec![], None), errors);
        }
        let mut items = vec![item];
        if !part.aggregates {
            items.push(counted());
        }
        self.judge(part, self.plan(items, None, self.groups(part), None), errors)
    }

    fn condition(&self, part: &Part, errors: &mut Vec<SqlError>) -> bool {
        let condition = self.select.selection.clone();
        let answer = match self.frame.windowed {
            true => self.plan(vec![counted()], condition, vec![Expr::Identifier(Ident::with_quote('"', "window_start"))], None),
            false => self.plan(vec![named(Expr::Value(Value::Boolean(true).into()))], condition, vec![], None),
        };
        self.judge(part, answer, errors)
    }

    fn group(&self, nth: usize, part: &Part, errors: &mut Vec<SqlError>) -> bool {
        let GroupByExpr::Expressions(each, _) = &self.select.group_by else { return true };
        let mut groups = vec![self.resolved(nth, &each[nth], part)];
        if !is_start(&groups[0]) {
            groups.push(Expr::Identifier(Ident::with_quote('"', "window_start")));
        }
        self.judge(part, self.plan(vec![counted()], None, groups, None), errors)
    }

    fn having(&self, part: &Part, sound: &[bool], errors: &mut Vec<SqlError>) -> bool {
        let Some(mut having) = self.select.having.clone() else { return true };
        // Columns of the table that it names are written out, so that it stands alone.
        let mut written = Written { select: self.select, checked: self.checked, part };
        let _ = VisitMut::visit(&mut having, &mut written);
        let mut read = part.clone();
        read.bare.extend(part.names.iter().filter(|i| sound.get(**i) == Some(&true)).flat_map(|i| self.checked.items[*i].bare.clone()));
        self.judge(part, self.plan(vec![counted()], None, self.groups(&read), Some(having)), errors)
    }
}

/// Replaces what names a column of the table by its expression.
struct Written<'a> {
    select: &'a Select,
    checked: &'a Checked,
    part: &'a Part,
}

impl VisitorMut for Written<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<()> {
        if let Expr::Identifier(id) = e {
            let names = self.checked.names();
            let found = self.part.names.iter().find(|i| names.get(**i).is_some_and(|n| n.as_ref().is_some_and(|n| n.eq_ignore_ascii_case(&id.value))));
            if let Some(SelectItem::ExprWithAlias { expr, .. }) = found.and_then(|i| self.select.projection.get(*i)) {
                *e = expr.clone();
            }
        }
        ControlFlow::Continue(())
    }
}

fn is_start(e: &Expr) -> bool {
    match e {
        Expr::Identifier(i) => i.value == "window_start",
        Expr::CompoundIdentifier(ids) => ids.len() == 2 && ids[1].value == "window_start",
        _ => false,
    }
}

fn named(expr: Expr) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: Ident::new("one_part") }
}

fn counted() -> SelectItem {
    use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser};
    let parsed = Parser::new(&GenericDialect {}).try_with_sql("count(*)").and_then(|mut p| p.parse_expr());
    SelectItem::ExprWithAlias { expr: parsed.unwrap_or(Expr::Value(Value::Null.into())), alias: Ident::new("rows_of_one_part") }
}
