//! Expressions that fail where DataFusion would wrap or lose digits.

use crate::pipeline::sql::values;
use arrow::array::{Array, ArrayRef, AsArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, concat};
use arrow::datatypes::{DataType, Decimal128Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, Operator};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::prelude::SessionContext;
use std::sync::Arc;

pub type Physical = Arc<dyn PhysicalExpr>;

/// An expression that fails where it would otherwise wrap or lose digits.
pub struct Strict {
    pub expr: Physical,
    /// Digits that a computed decimal may have.
    pub digits: Option<u8>,
    pub to: Option<DataType>,
}

impl Strict {
    pub fn of(&self, batch: &RecordBatch) -> Result<ArrayRef> {
        let mut column = values(&self.expr, batch)?;
        if let Some(digits) = self.digits {
            let decimals = column.as_primitive_opt::<Decimal128Type>();
            decimals.map(|d| d.validate_decimal_precision(digits)).transpose()?;
        }
        if let Some(to) = self.to.as_ref().filter(|to| *to != column.data_type()) {
            column = cast_with_options(&column, to, &CastOptions { safe: false, ..CastOptions::default() })?;
        }
        Ok(column)
    }

    /// As [`Strict::of`], null in the rows that fail. `first`: the place of the first row.
    pub fn each(&self, batch: &RecordBatch, first: usize, failed: &mut Vec<usize>) -> Result<ArrayRef> {
        let n = batch.num_rows();
        match self.of(batch) {
            Ok(column) => Ok(column),
            Err(e) if n == 0 => Err(e),
            Err(_) if n == 1 => {
                failed.push(first);
                let ty = self.to.clone().map_or_else(|| self.expr.data_type(batch.schema_ref()), Ok)?;
                Ok(new_null_array(&ty, 1))
            }
            Err(_) => {
                let low = self.each(&batch.slice(0, n / 2), first, failed)?;
                let high = self.each(&batch.slice(n / 2, n - n / 2), first + n / 2, failed)?;
                Ok(concat(&[low.as_ref(), high.as_ref()])?)
            }
        }
    }
}

/// An expression that can be evaluated. Some functions are only ever run in the form that simplifying gives them.
pub fn strict(context: &SessionContext, e: &Expr, schema: &DFSchemaRef) -> Result<Physical> {
    let state = context.state();
    let simplify = SimplifyContext::default().with_schema(schema.clone()).with_config_options(state.config_options().clone());
    // Literals may change the digits of a decimal, for which what is around it was planned.
    let typed = |e: Expr| match (matches!(e, Expr::ScalarFunction(_)), e.get_type(schema.as_ref())?) {
        (true, ty @ DataType::Decimal128(..)) => Ok(Transformed::yes(Expr::Cast(Cast::new(Box::new(e), ty)))),
        _ => Ok(Transformed::no(e)),
    };
    let simple = ExprSimplifier::new(simplify).simplify(e.clone().transform_up(typed)?.data)?;
    checked(create_physical_expr(&simple, schema, state.execution_props())?)
}

/// Integer `+`, `-` and `*` that fail instead of wrapping.
fn checked(e: Physical) -> Result<Physical> {
    let strict = |e: Physical| match e.as_any().downcast_ref::<BinaryExpr>() {
        Some(b) if matches!(b.op(), Operator::Plus | Operator::Minus | Operator::Multiply) => {
            let strict = BinaryExpr::new(b.left().clone(), *b.op(), b.right().clone()).with_fail_on_overflow(true);
            Ok(Transformed::yes(Arc::new(strict) as Physical))
        }
        _ => Ok(Transformed::no(e)),
    };
    Ok(e.transform_up(strict)?.data)
}
