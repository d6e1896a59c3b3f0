//! Which files can hold a row that a filter lets through, told from their bounds.

use super::LiveFile;
use crate::stage::{ColumnStats, FIELD_ID, Scalar};
use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use std::collections::HashSet;
use std::sync::Arc;

/// The bounds of files, as DataFusion's pruning asks for them. A bound that is not known, or not
/// of the column's type, is null: it prunes nothing.
pub struct FileBounds<'a> {
    schema: SchemaRef,
    files: &'a [LiveFile],
}

impl<'a> FileBounds<'a> {
    pub fn new(schema: SchemaRef, files: &'a [LiveFile]) -> Self {
        Self { schema, files }
    }

    fn field(&self, column: &Column) -> Option<&FieldRef> {
        self.schema.fields().iter().find(|f| *f.name() == column.name)
    }

    fn stats<'f>(field: &FieldRef, file: &'f LiveFile) -> Option<&'f ColumnStats> {
        let id: i32 = field.metadata().get(FIELD_ID)?.parse().ok()?;
        file.columns.iter().find(|c| c.field_id == id)
    }

    fn bounds(&self, column: &Column, bound: impl Fn(&ColumnStats) -> Option<&Scalar>) -> Option<ArrayRef> {
        let field = self.field(column)?;
        let null = ScalarValue::try_from(field.data_type()).ok()?;
        let values = self.files.iter().map(|file| {
            let stats = Self::stats(field, file);
            // NaN sorts above every bound and below none: a file that holds one is never pruned.
            let known = stats.filter(|s| s.nans == 0).and_then(&bound).and_then(|v| value(v, field.data_type()));
            known.unwrap_or_else(|| null.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

/// `None` when the scalar is not of the type.
fn value(scalar: &Scalar, ty: &DataType) -> Option<ScalarValue> {
    use ScalarValue as S;
    match (scalar, ty) {
        (Scalar::Bool(v), DataType::Boolean) => Some(S::Boolean(Some(*v))),
        (Scalar::Int(v), DataType::Int64) => Some(S::Int64(Some(*v))),
        (Scalar::Int(v), DataType::Int32) => Some(S::Int32(Some(i32::try_from(*v).ok()?))),
        (Scalar::Int(v), DataType::Date32) => Some(S::Date32(Some(i32::try_from(*v).ok()?))),
        (Scalar::Int(v), DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, zone)) => Some(S::TimestampMicrosecond(Some(*v), zone.clone())),
        (Scalar::Int(v), DataType::Time64(arrow::datatypes::TimeUnit::Microsecond)) => Some(S::Time64Microsecond(Some(*v))),
        // -0.0 and 0.0 are equal in SQL, and DataFusion orders them: a zero bound must hold both.
        (Scalar::Float(v), DataType::Float64) if *v != 0.0 => Some(S::Float64(Some(*v))),
        (Scalar::Float(v), DataType::Float32) if *v != 0.0 => Some(S::Float32(Some(*v as f32))),
        (Scalar::Decimal(v), DataType::Decimal128(p, s)) => Some(S::Decimal128(Some(*v), *p, *s)),
        (Scalar::Text(v), DataType::Utf8) => Some(S::Utf8(Some(v.clone()))),
        (Scalar::Bytes(v), DataType::Binary) => Some(S::Binary(Some(v.clone()))),
        _ => None,
    }
}

impl PruningStatistics for FileBounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |s| s.lower.as_ref())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |s| s.upper.as_ref())
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let field = self.field(column)?;
        Some(Arc::new(self.files.iter().map(|file| Self::stats(field, file).map(|s| s.nulls)).collect::<UInt64Array>()))
    }

    fn row_counts(&self, _: &Column) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|file| Some(file.records)).collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
