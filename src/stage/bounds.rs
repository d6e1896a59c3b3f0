//! Column statistics of a data file, computed from the rows themselves.
//!
//! Readers skip files by these bounds, so a bound that is too narrow hides live rows. The statistics
//! in a Parquet footer cannot serve: the writer truncates long strings there, and whoever takes the
//! minimum over row groups then loses those without an exact one. Here every value is seen, and a
//! bound that cannot be right is left out.

use super::layout::{field_id, is_uuid};
use super::{ColumnStats, Scalar};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute;
use arrow::datatypes::*;
use ::parquet::file::metadata::ParquetMetaData;
use std::collections::BTreeMap;

/// Code points of a string, bytes of a binary, that a bound keeps.
pub const BOUND_LENGTH: usize = 16;
/// A greatest value that cannot be cut and rounded up is its own bound, if it is not longer.
pub const WHOLE_BYTES: usize = 1024;

/// Follows the columns of one file while it is written.
pub struct StatsBuilder {
    columns: Vec<Column>,
}

struct Column {
    field_id: i32,
    bounded: bool,
    nested: bool,
    values: u64,
    nulls: u64,
    nans: u64,
    lower: Option<Scalar>,
    upper: Option<Scalar>,
}

impl StatsBuilder {
    /// For files of this schema, whose fields carry their ids.
    pub fn new(schema: &Schema) -> Self {
        let columns = schema
            .fields()
            .iter()
            .map(|f| Column {
                field_id: field_id(f).unwrap_or(0),
                // Readers disagree on the order of uuids: Java long compared them as two signed
                // numbers, the Iceberg specification compares bytes.
                bounded: !is_uuid(f),
                nested: f.data_type().is_nested(),
                values: 0,
                nulls: 0,
                nans: 0,
                lower: None,
                upper: None,
            })
            .collect();
        Self { columns }
    }

    /// Takes in all rows of `batch`, whose columns are those of the schema.
    pub fn update(&mut self, batch: &RecordBatch) {
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            if !column.nested {
                column.update(array);
            }
        }
    }

    /// The statistics, with the compressed sizes that the file's footer tells. Columns nested in
    /// structs have counts only, those nested in lists and maps nothing: their values are not rows.
    pub fn finish(self, footer: &ParquetMetaData) -> Vec<ColumnStats> {
        let mut leaves: BTreeMap<i32, ColumnStats> = BTreeMap::new();
        for group in footer.row_groups() {
            for chunk in group.columns() {
                let info = chunk.column_descr().self_type().get_basic_info();
                if !info.has_id() || chunk.column_descr().max_rep_level() > 0 {
                    continue;
                }
                let leaf = leaves.entry(info.id()).or_insert_with(|| ColumnStats {
                    field_id: info.id(),
                    bytes: 0,
                    values: 0,
                    nulls: 0,
                    nans: 0,
                    lower: None,
                    upper: None,
                });
                leaf.bytes += u64::try_from(chunk.compressed_size()).unwrap_or(0);
                leaf.values += u64::try_from(chunk.num_values()).unwrap_or(0);
                leaf.nulls += chunk.statistics().and_then(|s| s.null_count_opt()).unwrap_or(0);
            }
        }
        // Without NaN counts of its own a nested float would be taken to hold none.
        let floats: Vec<i32> = footer
            .file_metadata()
            .schema_descr()
            .columns()
            .iter()
            .filter(|c| matches!(c.physical_type(), parquet::basic::Type::FLOAT | parquet::basic::Type::DOUBLE) && c.path().parts().len() > 1)
            .map(|c| c.self_type().get_basic_info().id())
            .collect();
        leaves.retain(|id, _| !floats.contains(id));
        for column in self.columns.into_iter().filter(|c| !c.nested) {
            if let Some(leaf) = leaves.get_mut(&column.field_id) {
                leaf.values = column.values;
                leaf.nulls = column.nulls;
                leaf.nans = column.nans;
                if column.bounded {
                    leaf.lower = column.lower.as_ref().map(lower_bound);
                    leaf.upper = column.upper.as_ref().and_then(upper_bound);
                }
            }
        }
        leaves.into_values().collect()
    }
}

impl Column {
    fn update(&mut self, array: &ArrayRef) {
        self.values += array.len() as u64;
        self.nulls += array.null_count() as u64;
        macro_rules! ints {
            ($ty:ty) => {{
                let a = array.as_primitive::<$ty>();
                self.widen(compute::min(a).map(|v| Scalar::Int(v.into())), compute::max(a).map(|v| Scalar::Int(v.into())))
            }};
        }
        match array.data_type() {
            DataType::Boolean => {
                let a = array.as_boolean();
                self.widen(compute::min_boolean(a).map(Scalar::Bool), compute::max_boolean(a).map(Scalar::Bool));
            }
            DataType::Int32 => ints!(Int32Type),
            DataType::Int64 => ints!(Int64Type),
            DataType::Date32 => ints!(Date32Type),
            DataType::Time64(TimeUnit::Microsecond) => ints!(Time64MicrosecondType),
            DataType::Timestamp(TimeUnit::Microsecond, _) => ints!(TimestampMicrosecondType),
            DataType::Float32 => self.floats(array.as_primitive::<Float32Type>().iter().flatten().map(f64::from)),
            DataType::Float64 => self.floats(array.as_primitive::<Float64Type>().iter().flatten()),
            DataType::Decimal128(..) => {
                let a = array.as_primitive::<Decimal128Type>();
                self.widen(compute::min(a).map(Scalar::Decimal), compute::max(a).map(Scalar::Decimal));
            }
            DataType::Utf8 => {
                let a = array.as_string::<i32>();
                self.widen(compute::min_string(a).map(|v| Scalar::Text(v.into())), compute::max_string(a).map(|v| Scalar::Text(v.into())));
            }
            DataType::Binary => {
                let a = array.as_binary::<i32>();
                self.widen(compute::min_binary(a).map(|v| Scalar::Bytes(v.into())), compute::max_binary(a).map(|v| Scalar::Bytes(v.into())));
            }
            _ => self.bounded = false,
        }
    }

    fn floats(&mut self, values: impl Iterator<Item = f64>) {
        let mut range: Option<(f64, f64)> = None;
        for v in values {
            if v.is_nan() {
                self.nans += 1;
            } else {
                range = Some(range.map_or((v, v), |(lo, hi)| (lo.min(v), hi.max(v))));
            }
        }
        self.widen(range.map(|r| Scalar::Float(r.0)), range.map(|r| Scalar::Float(r.1)));
    }

    fn widen(&mut self, lower: Option<Scalar>, upper: Option<Scalar>) {
        if let Some(new) = lower
            && self.lower.as_ref().is_none_or(|old| less(&new, old))
        {
            self.lower = Some(new);
        }
        if let Some(new) = upper
            && self.upper.as_ref().is_none_or(|old| less(old, &new))
        {
            self.upper = Some(new);
        }
    }
}

/// The order of one column's values; false for values of different kinds, which do not meet.
fn less(a: &Scalar, b: &Scalar) -> bool {
    match (a, b) {
        (Scalar::Bool(a), Scalar::Bool(b)) => a < b,
        (Scalar::Int(a), Scalar::Int(b)) => a < b,
        (Scalar::Float(a), Scalar::Float(b)) => a < b,
        (Scalar::Decimal(a), Scalar::Decimal(b)) => a < b,
        (Scalar::Text(a), Scalar::Text(b)) => a < b,
        (Scalar::Bytes(a), Scalar::Bytes(b)) => a < b,
        _ => false,
    }
}

/// A value that is not above `least`, and short. A zero becomes -0.0, which orders below +0.0.
fn lower_bound(least: &Scalar) -> Scalar {
    match least {
        Scalar::Float(v) if *v == 0.0 => Scalar::Float(-0.0),
        Scalar::Text(v) => Scalar::Text(v.chars().take(BOUND_LENGTH).collect()),
        Scalar::Bytes(v) => Scalar::Bytes(v.iter().take(BOUND_LENGTH).copied().collect()),
        other => other.clone(),
    }
}

/// A value that is not below `greatest`, and short if there is a short one. A bound that is missing is allowed, but there is
/// a reader (deltalake's `to_pyarrow_dataset`) that then finds no row.
fn upper_bound(greatest: &Scalar) -> Option<Scalar> {
    match greatest {
        Scalar::Float(v) if *v == 0.0 => Some(Scalar::Float(0.0)),
        Scalar::Text(v) if v.chars().nth(BOUND_LENGTH).is_some() => {
            let mut kept: Vec<char> = v.chars().take(BOUND_LENGTH).collect();
            while let Some(last) = kept.pop() {
                if let Some(next) = next_char(last) {
                    kept.push(next);
                    return Some(Scalar::Text(kept.into_iter().collect()));
                }
            }
            (v.len() <= WHOLE_BYTES).then(|| greatest.clone())
        }
        Scalar::Bytes(v) if v.len() > BOUND_LENGTH => {
            let mut kept = v[..BOUND_LENGTH].to_vec();
            while let Some(last) = kept.pop() {
                if last < u8::MAX {
                    kept.push(last + 1);
                    return Some(Scalar::Bytes(kept));
                }
            }
            (v.len() <= WHOLE_BYTES).then(|| greatest.clone())
        }
        other => Some(other.clone()),
    }
}

/// The next code point that is a character: the surrogates are none.
fn next_char(c: char) -> Option<char> {
    if c == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(c as u32 + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BinaryArray, Float64Array, StringArray};
    use std::sync::Arc;

    fn bounds(arrays: Vec<ArrayRef>) -> (Option<Scalar>, Option<Scalar>, u64, u64) {
        let field = Field::new("c", arrays[0].data_type().clone(), true);
        let schema = Arc::new(Schema::new(vec![field]));
        let mut stats = StatsBuilder::new(&schema);
        for array in arrays {
            stats.update(&RecordBatch::try_new(schema.clone(), vec![array]).unwrap());
        }
        let c = stats.columns.remove(0);
        (c.lower.as_ref().map(lower_bound), c.upper.as_ref().and_then(upper_bound), c.nulls, c.nans)
    }

    fn text(values: &[&str]) -> (Option<Scalar>, Option<Scalar>) {
        let (lower, upper, ..) = bounds(vec![Arc::new(StringArray::from(values.to_vec()))]);
        (lower, upper)
    }

    #[test]
    fn long_strings_are_cut_and_the_upper_bound_rounded_up() {
        let t = |s: &str| Some(Scalar::Text(s.into()));
        assert_eq!(text(&["abcdefghijklmnopq", "b"]), (t("abcdefghijklmnop"), t("b")));
        assert_eq!(text(&["abcdefghijklmnopq"]), (t("abcdefghijklmnop"), t("abcdefghijklmnoq")));
        assert_eq!(text(&[&"ä".repeat(17)]), (t(&"ä".repeat(16)), t(&format!("{}å", "ä".repeat(15)))));
        assert_eq!(text(&[&"ä".repeat(16)]).1, t(&"ä".repeat(16)));
        // The code point after U+D7FF is no character.
        assert_eq!(text(&[&"\u{D7FF}".repeat(17)]).1, t(&format!("{}\u{E000}", "\u{D7FF}".repeat(15))));
        assert_eq!(text(&[&format!("a{}", "\u{10FFFF}".repeat(16))]).1, t("b"));
        assert_eq!(text(&[&"\u{10FFFF}".repeat(17)]).1, t(&"\u{10FFFF}".repeat(17)), "nothing shorter is above it");
        assert_eq!(text(&[&"\u{10FFFF}".repeat(257)]).1, None);
    }

    #[test]
    fn long_binaries_likewise() {
        let upper = |v: &[u8]| bounds(vec![Arc::new(BinaryArray::from(vec![v]))]).1;
        let mut want = vec![7; 15];
        want.push(8);
        assert_eq!(upper(&[7; 17]), Some(Scalar::Bytes(want)));
        assert_eq!(upper(&[255; 17]), Some(Scalar::Bytes(vec![255; 17])));
        assert_eq!(upper(&[255; 1025]), None);
        assert_eq!(upper(&[255; 16]), Some(Scalar::Bytes(vec![255; 16])));
    }

    #[test]
    fn nan_is_counted_and_never_a_bound() {
        let a = |v: Vec<Option<f64>>| Arc::new(Float64Array::from(v)) as ArrayRef;
        let got = bounds(vec![a(vec![Some(f64::NAN), Some(1.0), None]), a(vec![Some(-f64::NAN), Some(-3.0)])]);
        assert_eq!(got, (Some(Scalar::Float(-3.0)), Some(Scalar::Float(1.0)), 1, 2));
        assert_eq!(bounds(vec![a(vec![Some(f64::NAN)])]), (None, None, 0, 1));
        let got = bounds(vec![a(vec![Some(f64::INFINITY), Some(f64::NEG_INFINITY)])]);
        assert_eq!(got.1, Some(Scalar::Float(f64::INFINITY)));
    }

    #[test]
    fn zeros_cover_both_signs() {
        for zero in [0.0, -0.0] {
            let (lower, upper, ..) = bounds(vec![Arc::new(Float64Array::from(vec![zero]))]);
            let bits = |s: Option<Scalar>| match s {
                Some(Scalar::Float(v)) => v.to_bits(),
                other => panic!("{other:?}"),
            };
            assert_eq!(bits(lower), (-0.0f64).to_bits());
            assert_eq!(bits(upper), 0.0f64.to_bits());
        }
    }

    #[test]
    fn later_batches_widen() {
        let a = |v: Vec<&str>| Arc::new(StringArray::from(v)) as ArrayRef;
        let (lower, upper, ..) = bounds(vec![a(vec!["m"]), a(vec!["z", "c"]), a(vec!["d"])]);
        assert_eq!((lower, upper), (Some(Scalar::Text("c".into())), Some(Scalar::Text("z".into()))));
    }
}
