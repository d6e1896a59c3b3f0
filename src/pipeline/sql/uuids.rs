//! Uuids in SQL. DataFusion has 16 bytes where people write a text: a text that a uuid is compared with becomes the bytes that
//! it names, and a cast to a text yields lower case with hyphens. Done to the syntax tree, so that whoever plans the same text
//! gets the same answer.

use crate::pipeline::{Column, ColumnType};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CharacterLength, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::{dialect::GenericDialect, parser::Parser, tokenizer::Span};
use std::ops::ControlFlow;

/// Rewrites what is done to uuids. Names are exact by now. Returns the texts that are none, and where they stand.
pub(crate) fn write_out(node: &mut impl VisitMut, columns: &[Column]) -> Vec<(String, Span)> {
    if !columns.iter().any(|c| c.ty == ColumnType::Uuid) {
        return vec![];
    }
    let mut uuids = Uuids { columns, wrong: vec![] };
    let _ = VisitMut::visit(node, &mut uuids);
    uuids.wrong
}

struct Uuids<'a> {
    columns: &'a [Column],
    wrong: Vec<(String, Span)>,
}

impl Uuids<'_> {
    fn is_uuid(&self, e: &Expr) -> bool {
        /// What yields one of its arguments.
        const HANDED_ON: [&str; 8] = ["min", "max", "coalesce", "nullif", "nvl", "ifnull", "greatest", "least"];
        let column = |name: &str| self.columns.iter().find(|c| c.name == name);
        let uuid = |name: &str| column(name).is_some_and(|c| c.ty == ColumnType::Uuid);
        match e {
            Expr::Identifier(i) => uuid(&i.value),
            Expr::CompoundIdentifier(parts) => matches!(parts.as_slice(), [table, name] if column(&table.value).is_none() && uuid(&name.value)),
            Expr::Nested(e) => self.is_uuid(e),
            Expr::Case { conditions, else_result, .. } => conditions.iter().map(|c| &c.result).chain(else_result.as_deref()).any(|e| self.is_uuid(e)),
            Expr::Function(f) => {
                let handed_on = HANDED_ON.iter().any(|name| f.name.to_string().eq_ignore_ascii_case(name));
                let FunctionArguments::List(list) = &f.args else { return false };
                handed_on && list.args.iter().any(|a| matches!(a, FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) if self.is_uuid(e)))
            }
            _ => false,
        }
    }

    fn bytes(&mut self, e: &mut Expr) {
        match e {
            Expr::Nested(inner) => self.bytes(inner),
            Expr::Value(v) => {
                let Value::SingleQuotedString(text) = &v.value else { return };
                v.value = match uuid::Uuid::parse_str(text.trim()) {
                    Ok(uuid) => Value::HexStringLiteral(uuid.simple().to_string()),
                    Err(_) => {
                        self.wrong.push((text.clone(), v.span));
                        Value::Null
                    }
                };
            }
            _ => {}
        }
    }

    fn compared(&mut self, one: &mut Expr, other: &mut Expr) {
        if self.is_uuid(one) {
            self.bytes(other);
        } else if self.is_uuid(other) {
            self.bytes(one);
        }
    }
}

fn is_text(ty: &DataType) -> bool {
    let unbounded = |length: &Option<CharacterLength>| length.is_none();
    match ty {
        DataType::Text | DataType::String(None) => true,
        DataType::Varchar(length) | DataType::CharVarying(length) | DataType::CharacterVarying(length) => unbounded(length),
        _ => false,
    }
}

impl VisitorMut for Uuids<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, e: &mut Expr) -> ControlFlow<()> {
        use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
        match e {
            Expr::BinaryOp { left, op: Eq | NotEq | Lt | LtEq | Gt | GtEq, right } => self.compared(left, right),
            Expr::IsDistinctFrom(left, right) | Expr::IsNotDistinctFrom(left, right) => self.compared(left, right),
            Expr::InList { expr, list, .. } if self.is_uuid(expr) => list.iter_mut().for_each(|e| self.bytes(e)),
            Expr::Between { expr, low, high, .. } if self.is_uuid(expr) => {
                self.bytes(low);
                self.bytes(high);
            }
            Expr::Case { operand: Some(operand), conditions, .. } if self.is_uuid(operand) => conditions.iter_mut().for_each(|c| self.bytes(&mut c.condition)),
            Expr::Cast { expr, data_type, .. } if is_text(data_type) && self.is_uuid(expr) => {
                let text = format!(r"regexp_replace(encode({expr}, 'hex'), '^(.{{8}})(.{{4}})(.{{4}})(.{{4}})(.{{12}})$', '\1-\2-\3-\4-\5')");
                if let Ok(parsed) = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut p| p.parse_expr()) {
                    *e = parsed;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
