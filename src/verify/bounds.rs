//! What readers prune by, against the rows: bounds and counts that a manifest, a commit's `stats` and a file's own footer
//! give of its columns, and the values of its partition.
//!
//! A bound that excludes a row makes readers lose it in silence: each may leave out the file, and says nothing.

use crate::pipeline::{PartitionTransform, TableFormatKind};
use crate::read::LiveFile;
use crate::stage::partition::{partition_path, scalar_at};
use crate::stage::{FIELD_ID, Scalar, TableSpec, names};
use ::iceberg::spec::{DataFile, Datum, FieldSummary, Literal, PrimitiveLiteral, PrimitiveType, Transform};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute;
use arrow::datatypes::*;
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;
use serde_json::Value;
use std::cmp::Ordering;
use std::fmt::Write as _;

/// What a table's metadata says of one of its files.
pub enum Said {
    /// A manifest's entry, and what each partition value was made of: the column's field id and how.
    Iceberg(Box<DataFile>, Vec<(i32, Transform)>),
    /// The `stats` of an add.
    Delta(Value),
}

/// What somebody says of one column of a file, or of one of its row groups.
pub struct Claim {
    /// Place among the columns of the table.
    pub column: usize,
    pub lower: Option<Scalar>,
    pub upper: Option<Scalar>,
    pub values: Option<u64>,
    pub nulls: Option<u64>,
    pub nans: Option<u64>,
}

/// The value of a file's partition by one column.
pub struct PartitionClaim {
    pub column: usize,
    pub transform: Transform,
    pub value: Option<Scalar>,
}

/// What the rows of a file, or of a row group, hold in one column. Bounds are those of rows that readers see, counts those
/// of all.
#[derive(Debug, Clone, Default)]
pub struct Range {
    pub min: Option<Scalar>,
    pub max: Option<Scalar>,
    pub rows: u64,
    pub nulls: u64,
    pub nans: u64,
}

/// The order of one column's values; `None` of values that do not meet.
fn order(a: &Scalar, b: &Scalar) -> Option<Ordering> {
    match (a, b) {
        (Scalar::Bool(a), Scalar::Bool(b)) => Some(a.cmp(b)),
        (Scalar::Int(a), Scalar::Int(b)) => Some(a.cmp(b)),
        (Scalar::Float(a), Scalar::Float(b)) => a.partial_cmp(b),
        (Scalar::Decimal(a), Scalar::Decimal(b)) => Some(a.cmp(b)),
        (Scalar::Text(a), Scalar::Text(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Scalar::Bytes(a), Scalar::Bytes(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

impl Range {
    /// Takes in rows; `live` are those of them that readers see.
    pub fn take(&mut self, all: &ArrayRef, live: &ArrayRef) {
        self.rows += all.len() as u64;
        self.nulls += all.null_count() as u64;
        macro_rules! ends {
            ($ty:ty, $to:expr) => {{
                let a = live.as_primitive::<$ty>();
                (compute::min(a).map($to), compute::max(a).map($to))
            }};
        }
        let (min, max) = match live.data_type() {
            DataType::Boolean => {
                let a = live.as_boolean();
                (compute::min_boolean(a).map(Scalar::Bool), compute::max_boolean(a).map(Scalar::Bool))
            }
            DataType::Int32 => ends!(Int32Type, |v| Scalar::Int(v.into())),
            DataType::Int64 => ends!(Int64Type, Scalar::Int),
            DataType::Date32 => ends!(Date32Type, |v| Scalar::Int(v.into())),
            DataType::Time64(TimeUnit::Microsecond) => ends!(Time64MicrosecondType, Scalar::Int),
            DataType::Timestamp(TimeUnit::Microsecond, _) => ends!(TimestampMicrosecondType, Scalar::Int),
            DataType::Decimal128(..) => ends!(Decimal128Type, Scalar::Decimal),
            DataType::Float32 => {
                self.nans += all.as_primitive::<Float32Type>().iter().flatten().filter(|v| v.is_nan()).count() as u64;
                floats(live.as_primitive::<Float32Type>().iter().flatten().map(f64::from))
            }
            DataType::Float64 => {
                self.nans += all.as_primitive::<Float64Type>().iter().flatten().filter(|v| v.is_nan()).count() as u64;
                floats(live.as_primitive::<Float64Type>().iter().flatten())
            }
            DataType::Utf8 => {
                let a = live.as_string::<i32>();
                (compute::min_string(a).map(|v| Scalar::Text(v.into())), compute::max_string(a).map(|v| Scalar::Text(v.into())))
            }
            DataType::Binary => {
                let a = live.as_binary::<i32>();
                (compute::min_binary(a).map(|v| Scalar::Bytes(v.into())), compute::max_binary(a).map(|v| Scalar::Bytes(v.into())))
            }
            DataType::FixedSizeBinary(_) => {
                let a = live.as_fixed_size_binary();
                let of = |v: Option<&[u8]>| v.map(|v| Scalar::Bytes(v.to_vec()));
                (of(a.iter().flatten().min()), of(a.iter().flatten().max()))
            }
            _ => (None, None),
        };
        self.widen(min, max);
    }

    fn widen(&mut self, min: Option<Scalar>, max: Option<Scalar>) {
        if let Some(min) = min.filter(|new| self.min.as_ref().is_none_or(|old| order(new, old) == Some(Ordering::Less))) {
            self.min = Some(min);
        }
        if let Some(max) = max.filter(|new| self.max.as_ref().is_none_or(|old| order(new, old) == Some(Ordering::Greater))) {
            self.max = Some(max);
        }
    }

    pub fn merge(&mut self, other: &Range) {
        self.rows += other.rows;
        self.nulls += other.nulls;
        self.nans += other.nans;
        self.widen(other.min.clone(), other.max.clone());
    }
}

/// NaN lies within no bounds, and what readers make of it differs.
fn floats(values: impl Iterator<Item = f64>) -> (Option<Scalar>, Option<Scalar>) {
    let ends = values.filter(|v| !v.is_nan()).fold(None, |ends: Option<(f64, f64)>, v| Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v)))));
    (ends.map(|e| Scalar::Float(e.0)), ends.map(|e| Scalar::Float(e.1)))
}

impl Claim {
    /// What is wrong with it, given what the rows hold: the kind of the finding, and what was said and found.
    pub fn against(&self, found: &Range, field: &Field) -> Vec<(&'static str, String)> {
        let mut wrong = vec![];
        let none = || "none".to_string();
        let show = |s: &Option<Scalar>| s.as_ref().map_or_else(none, |s| text(s, field));
        let below = matches!((&self.lower, &found.min), (Some(l), Some(m)) if order(m, l) == Some(Ordering::Less));
        let above = matches!((&self.upper, &found.max), (Some(u), Some(m)) if order(m, u) == Some(Ordering::Greater));
        if below || above {
            let (said, rows) = (format!("{} to {}", show(&self.lower), show(&self.upper)), format!("{} to {}", show(&found.min), show(&found.max)));
            wrong.push(("bounds", format!("says {said}, its rows hold {rows}")));
        }
        for (what, said, found) in [("values", self.values, found.rows), ("nulls", self.nulls, found.nulls), ("NaN", self.nans, found.nans)] {
            if let Some(said) = said.filter(|said| *said != found) {
                wrong.push(("column-counts", format!("says {said} {what}, its rows hold {found}")));
            }
        }
        wrong
    }
}

impl PartitionClaim {
    /// What the rows have in its place, where that is another value. Every transform that is judged keeps the order, so
    /// that the least and the greatest value speak for all rows.
    pub fn against(&self, found: &Range, field: &Field) -> Option<String> {
        if found.rows == 0 || (found.min.is_none() && found.nulls < found.rows) {
            return None;
        }
        let of = |value: &Option<Scalar>| value.as_ref().map(|v| transformed(v, field, self.transform));
        let (low, high) = match (of(&found.min), of(&found.max)) {
            (None, None) => (None, None),
            (Some(Some(low)), Some(Some(high))) => (Some(low), Some(high)),
            _ => return None,
        };
        let equal = |a: &Option<Scalar>| match (a, &self.value) {
            (None, None) => true,
            (Some(a), Some(b)) => order(a, b) == Some(Ordering::Equal),
            _ => false,
        };
        let mixed = self.value.is_some() && found.nulls > 0;
        if equal(&low) && equal(&high) && !mixed {
            return None;
        }
        let show = |v: &Option<Scalar>| v.as_ref().map_or("null".to_string(), plain);
        let nulls = if mixed { " and nulls" } else { "" };
        Some(format!("says {}, its rows have {} to {}{nulls}", show(&self.value), show(&low), show(&high)))
    }
}

/// `None`: a transform that this program's tables do not have.
fn transformed(value: &Scalar, field: &Field, transform: Transform) -> Option<Scalar> {
    const HOUR_US: i64 = 3_600_000_000;
    let days = |value: i64| match field.data_type() {
        DataType::Date32 => Some(value),
        DataType::Timestamp(..) => Some(value.div_euclid(24 * HOUR_US)),
        _ => None,
    };
    match (transform, value) {
        (Transform::Identity, value) => Some(value.clone()),
        (Transform::Day, Scalar::Int(v)) => days(*v).map(Scalar::Int),
        (Transform::Hour, Scalar::Int(v)) if matches!(field.data_type(), DataType::Timestamp(..)) => Some(Scalar::Int(v.div_euclid(HOUR_US))),
        (Transform::Month, Scalar::Int(v)) => {
            let date = NaiveDate::from_num_days_from_ce_opt(i32::try_from(days(*v)? + 719_163).ok()?)?;
            Some(Scalar::Int((i64::from(date.year()) - 1970) * 12 + i64::from(date.month0())))
        }
        _ => None,
    }
}

impl Said {
    /// Of the columns at these places in `schema`. `deleted`: readers do not see all of the file's rows.
    pub fn claims(&self, schema: &Schema, columns: &[usize], deleted: bool) -> Vec<Claim> {
        columns.iter().filter_map(|&column| self.claim(schema.field(column), column, deleted)).collect()
    }

    fn claim(&self, field: &Field, column: usize, deleted: bool) -> Option<Claim> {
        match self {
            Said::Iceberg(file, _) => {
                let id = field_id(field)?;
                let bound = |d: Option<&Datum>| d.and_then(|d| scalar(d.literal()));
                Some(Claim {
                    column,
                    lower: bound(file.lower_bounds().get(&id)),
                    upper: bound(file.upper_bounds().get(&id)),
                    values: file.value_counts().get(&id).copied(),
                    nulls: file.null_value_counts().get(&id).copied(),
                    nans: file.nan_value_counts().get(&id).copied(),
                })
            }
            Said::Delta(stats) => {
                let of = |kind: &str, upper: bool| said_by_delta(&stats[kind][field.name().as_str()], field.data_type(), upper);
                // With a deletion vector the count may be that of the rows which are left.
                let nulls = stats["nullCount"][field.name().as_str()].as_u64().filter(|_| !deleted);
                Some(Claim { column, lower: of("minValues", false), upper: of("maxValues", true), values: None, nulls, nans: None })
            }
        }
    }

    pub fn partition(&self, schema: &Schema) -> Vec<PartitionClaim> {
        let Said::Iceberg(file, by) = self else { return vec![] };
        let claims = by.iter().zip(file.partition().iter()).filter_map(|((source, transform), value)| {
            let column = schema.fields().iter().position(|f| field_id(f) == Some(*source))?;
            let value = match value {
                None => None,
                Some(Literal::Primitive(p)) => Some(scalar(p)?),
                Some(_) => return None,
            };
            Some(PartitionClaim { column, transform: *transform, value })
        });
        claims.collect()
    }
}

/// By row group, what the footer says of the columns at these places in `schema`.
pub fn by_footer(metadata: &ParquetMetaData, schema: &Schema, columns: &[usize]) -> Vec<Vec<Claim>> {
    let groups = metadata.row_groups();
    let mut claims: Vec<Vec<Claim>> = groups.iter().map(|_| vec![]).collect();
    let described = metadata.file_metadata().schema_descr();
    let Ok(arrow) = parquet_to_arrow_schema(described, None) else { return claims };
    for &column in columns {
        let field = schema.field(column);
        let roots = || described.columns().iter().enumerate().filter(|(_, c)| c.path().parts().len() == 1);
        let id = |c: &parquet::schema::types::ColumnDescriptor| Some(c.self_type().get_basic_info()).filter(|i| i.has_id()).map(|i| i.id());
        let by_id = roots().find(|(_, c)| id(c).is_some() && id(c) == field_id(field));
        let Some((leaf, root)) = by_id.or_else(|| roots().find(|(_, c)| c.name() == field.name() && id(c).is_none())) else { continue };
        let Ok(converter) = StatisticsConverter::try_new(root.name(), &arrow, described) else { continue };
        let comparable = |found: &DataType| {
            let text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
            found == field.data_type() || text(found) == text(field.data_type()) && !matches!(found, DataType::FixedSizeBinary(_))
        };
        let read = |array: parquet::errors::Result<ArrayRef>| array.ok().filter(|a| comparable(a.data_type())).and_then(|a| compute::cast(&a, field.data_type()).ok());
        let (mins, maxes) = (read(converter.row_group_mins(groups)), read(converter.row_group_maxes(groups)));
        let nulls = converter.with_missing_null_counts_as_zero(false).row_group_null_counts(groups).ok();
        for (nth, group) in groups.iter().enumerate() {
            // Old writers compared text as signed bytes, and readers know.
            let sound = group.column(leaf).statistics().is_some_and(|s| !s.is_min_max_deprecated());
            let at = |a: &Option<ArrayRef>| a.as_ref().filter(|_| sound).and_then(|a| scalar_at(a, nth).ok().flatten());
            let nulls = nulls.as_ref().filter(|n| n.is_valid(nth)).map(|n| n.value(nth));
            claims[nth].push(Claim { column, lower: at(&mins), upper: at(&maxes), values: None, nulls, nans: None });
        }
    }
    claims
}

fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(FIELD_ID)?.parse().ok()
}

fn scalar(literal: &PrimitiveLiteral) -> Option<Scalar> {
    Some(match literal {
        PrimitiveLiteral::Boolean(v) => Scalar::Bool(*v),
        PrimitiveLiteral::Int(v) => Scalar::Int(i64::from(*v)),
        PrimitiveLiteral::Long(v) => Scalar::Int(*v),
        PrimitiveLiteral::Float(v) => Scalar::Float(f64::from(v.0)),
        PrimitiveLiteral::Double(v) => Scalar::Float(v.0),
        PrimitiveLiteral::String(v) => Scalar::Text(v.clone()),
        PrimitiveLiteral::Binary(v) => Scalar::Bytes(v.clone()),
        PrimitiveLiteral::Int128(v) => Scalar::Decimal(*v),
        PrimitiveLiteral::UInt128(v) => Scalar::Bytes(v.to_be_bytes().to_vec()),
        PrimitiveLiteral::AboveMax | PrimitiveLiteral::BelowMin => return None,
    })
}

/// What a manifest list's summary of a manifest says of a partition value that the manifest holds, where it excludes it.
pub fn summary_excludes(summary: &FieldSummary, ty: &PrimitiveType, value: Option<&Literal>) -> Option<String> {
    let Some(Literal::Primitive(literal)) = value else {
        return (value.is_none() && !summary.contains_null).then(|| "that it holds no null, and it does".to_string());
    };
    let bound = |b: &[u8]| Datum::try_from_bytes(b, ty.clone()).ok().and_then(|d| scalar(d.literal()));
    let (lower, upper) = (summary.lower_bound.as_ref().and_then(|b| bound(b)), summary.upper_bound.as_ref().and_then(|b| bound(b)));
    let value = scalar(literal)?;
    let below = lower.as_ref().is_some_and(|l| order(&value, l) == Some(Ordering::Less));
    let above = upper.as_ref().is_some_and(|u| order(&value, u) == Some(Ordering::Greater));
    let show = |v: &Option<Scalar>| v.as_ref().map_or("none".to_string(), plain);
    (below || above).then(|| format!("{} to {}, and it holds {}", show(&lower), show(&upper), plain(&value)))
}

/// A bound in `stats`: Delta protocol, "Per-file Statistics". `None` where it cannot be told what it means.
fn said_by_delta(value: &Value, ty: &DataType, upper: bool) -> Option<Scalar> {
    let outwards = |v: f64, by: f64| if v.is_infinite() { v } else if upper { v + v.abs() * by } else { v - v.abs() * by };
    // Infinities are words, and NaN bounds nothing.
    let float = || value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|v| !v.is_nan());
    Some(match ty {
        DataType::Boolean => Scalar::Bool(value.as_bool()?),
        DataType::Int32 | DataType::Int64 => Scalar::Int(value.as_i64()?),
        DataType::Float32 => Scalar::Float(f64::from(float()? as f32)),
        // JSON is read to the last digit but one.
        DataType::Float64 => Scalar::Float(outwards(float()?, 2.0 * f64::EPSILON)),
        DataType::Decimal128(_, scale) => {
            let scaled = value.as_f64()? * 10f64.powi(i32::from(*scale));
            // A double holds 15 digits: of longer ones the rest is not said.
            let scaled = if scaled.abs() < 1e15 { scaled.round() } else { outwards(scaled, 4.0 * f64::EPSILON) };
            (scaled.abs() < 1e38).then_some(Scalar::Decimal(scaled as i128))?
        }
        DataType::Utf8 => Scalar::Text(value.as_str()?.to_string()),
        DataType::Date32 | DataType::Timestamp(..) => match (from_text(value.as_str()?, ty)?, ty) {
            // Writers cut to milliseconds, and readers add one.
            (Scalar::Int(us), DataType::Timestamp(..)) if upper => Scalar::Int(us.saturating_add(999)),
            (other, _) => other,
        },
        _ => return None,
    })
}

/// Text of a Delta log as a value; `None` for what does not parse.
fn from_text(text: &str, ty: &DataType) -> Option<Scalar> {
    Some(match ty {
        DataType::Boolean => Scalar::Bool(text.parse().ok()?),
        DataType::Int32 | DataType::Int64 => Scalar::Int(text.parse().ok()?),
        DataType::Float32 => Scalar::Float(f64::from(text.parse::<f32>().ok()?)),
        DataType::Float64 => Scalar::Float(text.parse().ok()?),
        DataType::Utf8 => Scalar::Text(text.to_string()),
        DataType::Date32 => Scalar::Int(i64::from(NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.num_days_from_ce()) - 719_163),
        DataType::Timestamp(..) => {
            let forms = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
            let local = || forms.iter().find_map(|f| NaiveDateTime::parse_from_str(text.trim_end_matches('Z'), f).ok()).map(|t| t.and_utc().timestamp_micros());
            Scalar::Int(DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_micros()).or_else(local)?)
        }
        DataType::Decimal128(_, scale) => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            let scale = usize::try_from(*scale).ok().filter(|s| fraction.len() <= *s)?;
            Scalar::Decimal(format!("{whole}{fraction:0<scale$}").parse().ok()?)
        }
        _ => return None,
    })
}

/// A Delta file of ours lies in the folder of its partition: where the commit says another value than the folder, one of
/// them is wrong, since the file itself does not hold the column.
pub fn misplaced(spec: &TableSpec, folder: &str, file: &LiveFile) -> Option<String> {
    let fields = spec.partition_fields(TableFormatKind::Delta);
    let (place, name) = file.path.strip_prefix(folder)?.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
    if fields.is_empty() || names::owner(name).is_none() || !fields.iter().all(|f| f.transform == PartitionTransform::Identity) {
        return None;
    }
    let mut values = vec![];
    for field in fields {
        let said = file.partition_values.get(&field.column)?;
        let ty = spec.schema.field_with_name(&field.column).ok()?.data_type();
        values.push(match said {
            None => None,
            Some(said) => Some(from_text(said, ty)?),
        });
    }
    let expected = partition_path(spec, TableFormatKind::Delta, &values);
    // An empty text is null to Delta.
    (place != expected && !place.split('/').any(|s| s.ends_with('='))).then(|| format!("says {expected}, it lies in {place}"))
}

fn text(value: &Scalar, field: &Field) -> String {
    match (value, field.data_type()) {
        (Scalar::Int(v), DataType::Timestamp(..)) => super::instant(*v),
        (Scalar::Int(v), DataType::Date32) => DateTime::from_timestamp(v * 86_400, 0).map_or_else(|| v.to_string(), |t| t.format("%Y-%m-%d").to_string()),
        (Scalar::Decimal(v), DataType::Decimal128(p, s)) => Decimal128Type::format_decimal(*v, *p, *s),
        _ => plain(value),
    }
}

fn plain(value: &Scalar) -> String {
    match value {
        Scalar::Bool(v) => v.to_string(),
        Scalar::Int(v) => v.to_string(),
        Scalar::Float(v) => v.to_string(),
        Scalar::Decimal(v) => v.to_string(),
        Scalar::Text(v) => format!("'{v}'"),
        Scalar::Bytes(v) => v.iter().fold("0x".to_string(), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, Int64Array, StringArray};
    use std::sync::Arc;

    fn range(array: ArrayRef) -> Range {
        let mut range = Range::default();
        range.take(&array, &array);
        range
    }

    fn claim(lower: Option<Scalar>, upper: Option<Scalar>) -> Claim {
        Claim { column: 0, lower, upper, values: None, nulls: None, nans: None }
    }

    #[test]
    fn bounds_may_be_wide_cut_short_or_absent_and_not_narrow() {
        let field = Field::new("c", DataType::Utf8, true);
        let found = range(Arc::new(StringArray::from(vec!["bob", "ann", "zoë"])));
        let text = |t: &str| Some(Scalar::Text(t.into()));
        for (lower, upper, wrong) in [
            (text("ann"), text("zoë"), false),
            (text("a"), text("zp"), false),
            (None, None, false),
            (text("anna"), text("zoë"), true),
            (text("ann"), text("zo"), true),
        ] {
            assert_eq!(!claim(lower.clone(), upper.clone()).against(&found, &field).is_empty(), wrong, "{lower:?} {upper:?}");
        }
        let field = Field::new("c", DataType::Float64, true);
        let found = range(Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::NAN), None, Some(2.5)])));
        assert_eq!((found.rows, found.nulls, found.nans), (4, 1, 1));
        let float = |v: f64| Some(Scalar::Float(v));
        assert!(claim(float(0.0), float(2.5)).against(&found, &field).is_empty(), "the zeros are one value");
        assert!(!claim(float(0.0), float(2.4)).against(&found, &field).is_empty());
        assert!(claim(float(f64::NAN), float(f64::NAN)).against(&found, &field).is_empty(), "no bound at all");
    }

    #[test]
    fn counts_are_exact_where_they_are_said() {
        let field = Field::new("c", DataType::Int64, true);
        let found = range(Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])));
        let said = |nulls| Claim { nulls, values: Some(3), ..claim(None, None) };
        assert!(said(Some(1)).against(&found, &field).is_empty() && said(None).against(&found, &field).is_empty());
        assert_eq!(said(Some(0)).against(&found, &field)[0].0, "column-counts");
    }

    #[test]
    fn stats_of_other_writers_are_read_as_the_protocol_means_them() {
        let stamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let said = |v: Value, ty: &DataType, upper| said_by_delta(&v, ty, upper).unwrap();
        // Cut to milliseconds, both ends.
        assert_eq!(said("1970-01-01T00:00:00.001Z".into(), &stamp, false), Scalar::Int(1000));
        assert_eq!(said("1970-01-01 00:00:00.001".into(), &stamp, true), Scalar::Int(1999));
        assert_eq!(said(0.07.into(), &DataType::Decimal128(12, 2), true), Scalar::Decimal(7));
        assert_eq!(said(Value::from(0.1f32 as f64), &DataType::Float32, true), Scalar::Float(f64::from(0.1f32)));
        assert_eq!(said(Value::from(0.1), &DataType::Float32, true), Scalar::Float(f64::from(0.1f32)));
        assert_eq!(said("2022-01-08".into(), &DataType::Date32, true), Scalar::Int(19_000));
        assert!(said_by_delta(&Value::Null, &DataType::Int64, true).is_none() && said_by_delta(&"x".into(), &DataType::Date32, true).is_none());
    }

    #[test]
    fn a_partition_is_that_of_its_least_and_its_greatest_row() {
        let day = |us: i64| us * 86_400_000_000;
        let field = Field::new("t", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true);
        let times = |us: Vec<Option<i64>>| range(Arc::new(arrow::array::TimestampMicrosecondArray::from(us).with_timezone("UTC")));
        let said = |transform, value: Option<i64>| PartitionClaim { column: 0, transform, value: value.map(Scalar::Int) };
        let rows = times(vec![Some(day(31)), Some(day(32) - 1)]);
        assert!(said(Transform::Day, Some(31)).against(&rows, &field).is_none());
        assert!(said(Transform::Month, Some(1)).against(&rows, &field).is_none());
        assert!(said(Transform::Day, Some(30)).against(&rows, &field).is_some());
        assert!(said(Transform::Day, None).against(&rows, &field).is_some());
        assert!(said(Transform::Day, Some(31)).against(&times(vec![Some(day(31)), Some(day(32))]), &field).is_some());
        assert!(said(Transform::Day, Some(31)).against(&times(vec![Some(day(31)), None]), &field).is_some());
        assert!(said(Transform::Day, None).against(&times(vec![None]), &field).is_none());
        assert!(said(Transform::Bucket(4), Some(3)).against(&rows, &field).is_none(), "not judged");
        assert_eq!(transformed(&Scalar::Int(-1), &field, Transform::Month), Some(Scalar::Int(-1)));
    }
}
