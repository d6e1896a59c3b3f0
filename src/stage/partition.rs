//! Which partition of its table a row belongs to.

use super::file_layout::file_layout;
use super::{Scalar, TableSpec};
use crate::pipeline::{PartitionField, PartitionTransform, TableFormatKind};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::*;
use arrow::row::{RowConverter, SortField};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

/// Why rows cannot be told apart by partition.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    #[error("`partition_by` names the column `{0}`, which the table does not have")]
    NoColumn(String),
    #[error("`partition_by` takes {transform} of the column `{column}`, which is {found}: expected a date or a timestamp")]
    NotATime { column: String, transform: &'static str, found: String },
    #[error("`partition_by` names the column `{column}`, which is {found}: expected a column of one plain value")]
    NotPlain { column: String, found: String },
    #[error("`partition_by` names the column `{column}`, which is {found}: not a number and zero are no one value to every reader; cast it to an integer, a decimal or a string in the sql")]
    Float { column: String, found: String },
    #[error("the time {0} us is too far from 1970 to be counted in hours")]
    TooFar(i64),
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Parts batches by the partition values of their rows.
pub struct PartitionSplitter {
    columns: Vec<(usize, PartitionTransform)>,
    rows: Option<RowConverter>,
}

impl PartitionSplitter {
    /// `fields` are the table's partition fields in the format that is written
    /// ([`TableSpec::partition_fields`]), `schema` that of the batches.
    ///
    /// # Errors
    /// A field whose column is missing or of a type that its transform does not take.
    pub fn new(schema: &Schema, fields: &[PartitionField]) -> Result<Self, PartitionError> {
        let mut columns = Vec::new();
        let mut sort = Vec::new();
        for p in fields {
            let (i, field) = schema.column_with_name(&p.column).ok_or_else(|| PartitionError::NoColumn(p.column.clone()))?;
            let ty = field.data_type();
            let time = matches!(ty, DataType::Timestamp(TimeUnit::Microsecond, _));
            let date = ty == &DataType::Date32;
            match p.transform {
                PartitionTransform::Identity if ty.is_nested() => {
                    return Err(PartitionError::NotPlain { column: p.column.clone(), found: ty.to_string() });
                }
                PartitionTransform::Identity if ty.is_floating() => {
                    return Err(PartitionError::Float { column: p.column.clone(), found: ty.to_string() });
                }
                PartitionTransform::Identity => sort.push(SortField::new(ty.clone())),
                PartitionTransform::Hour if time => sort.push(SortField::new(DataType::Int64)),
                PartitionTransform::Day | PartitionTransform::Month if time || date => sort.push(SortField::new(DataType::Int64)),
                other => {
                    return Err(PartitionError::NotATime { column: p.column.clone(), transform: transform_name(other), found: ty.to_string() });
                }
            }
            columns.push((i, p.transform));
        }
        let rows = if sort.is_empty() { None } else { Some(RowConverter::new(sort)?) };
        Ok(Self { columns, rows })
    }

    /// One batch per partition that has rows, in the order of their first rows; rows keep their order.
    /// The values are those of the partition fields, `None` for null.
    pub fn split(&mut self, batch: &RecordBatch) -> Result<Vec<(Vec<Option<Scalar>>, RecordBatch)>, PartitionError> {
        let Some(converter) = &mut self.rows else { return Ok(vec![(Vec::new(), batch.clone())]) };
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let mut values: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for (i, transform) in &self.columns {
            values.push(transformed(batch.column(*i), *transform)?);
        }
        let rows = converter.convert_columns(&values)?;
        let mut groups: HashMap<&[u8], usize> = HashMap::new();
        let mut members: Vec<Vec<u32>> = Vec::new();
        for i in 0..rows.num_rows() {
            let group = *groups.entry(rows.row(i).data()).or_insert_with(|| {
                members.push(Vec::new());
                members.len() - 1
            });
            members[group].push(i as u32);
        }
        let mut parts = Vec::with_capacity(members.len());
        for rows in members {
            let first = rows[0] as usize;
            let tuple = values.iter().map(|v| scalar_at(v, first)).collect::<Result<Vec<_>, _>>()?;
            let part = if rows.len() == batch.num_rows() { batch.clone() } else { take_record_batch(batch, &UInt32Array::from(rows))? };
            parts.push((tuple, part));
        }
        Ok(parts)
    }
}

/// The transform's name, as it stands in pipeline files and in Iceberg partition specs.
pub fn transform_name(transform: PartitionTransform) -> &'static str {
    match transform {
        PartitionTransform::Identity => "identity",
        PartitionTransform::Hour => "hour",
        PartitionTransform::Day => "day",
        PartitionTransform::Month => "month",
    }
}

/// The name of a partition field in Iceberg: the column's, with the transform behind it.
pub fn partition_name(field: &PartitionField) -> String {
    avro_name(&match field.transform {
        PartitionTransform::Identity => field.column.clone(),
        other => format!("{}_{}", field.column, transform_name(other)),
    })
}

/// Manifests are Avro files whose records have these names (Avro 1.11 specification, *Names*): other characters are spelled
/// `_x` and their number, as other writers of Iceberg do.
fn avro_name(name: &str) -> String {
    let spelled = |(at, c): (usize, char)| match c {
        'a'..='z' | 'A'..='Z' | '_' => c.to_string(),
        '0'..='9' if at > 0 => c.to_string(),
        '0'..='9' => format!("_{c}"),
        other => format!("_x{:X}", u32::from(other)),
    };
    name.chars().enumerate().map(spelled).collect()
}

/// The folder of a partition below the table's data folder, `name=value` for each field, empty when
/// there is none. Nothing in a value can leave the folder or confuse a reader that parses the
/// location as a URI: what is not a letter, digit, `_`, `-` or `.` is written as `%XX`, and a long
/// value is cut and ends in a hash of the whole.
pub fn partition_path(spec: &TableSpec, format: TableFormatKind, values: &[Option<Scalar>]) -> String {
    let layout = file_layout(format);
    let mut path = String::new();
    for (field, value) in spec.partition_fields(format).iter().zip(values) {
        if !path.is_empty() {
            path.push('/');
        }
        let ty = spec.schema.field_with_name(&field.column).map(|f| f.data_type().clone()).unwrap_or(DataType::Null);
        let text = match value {
            None => layout.null().to_string(),
            Some(v) => encode(&value_text(v, &ty, field.transform)),
        };
        // Infallible: writing to a string.
        let _ = write!(path, "{}={text}", encode(&layout.partition_name(field)));
    }
    path
}

const LONGEST_SEGMENT: usize = 100;

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if out.len() > LONGEST_SEGMENT {
            let _ = write!(out, "~{:016x}", twox_hash::XxHash3_64::oneshot(text.as_bytes()));
            return out;
        }
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => out.push(b as char),
            _ => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

fn value_text(value: &Scalar, ty: &DataType, transform: PartitionTransform) -> String {
    match (value, transform, ty) {
        (Scalar::Int(v), PartitionTransform::Hour, _) => {
            let (y, m, d) = civil(v.div_euclid(24));
            format!("{y:04}-{m:02}-{d:02}-{:02}", v.rem_euclid(24))
        }
        (Scalar::Int(v), PartitionTransform::Month, _) => format!("{:04}-{:02}", 1970 + v.div_euclid(12), v.rem_euclid(12) + 1),
        (Scalar::Int(v), PartitionTransform::Day, _) | (Scalar::Int(v), _, DataType::Date32) => {
            let (y, m, d) = civil(*v);
            format!("{y:04}-{m:02}-{d:02}")
        }
        (Scalar::Int(v), _, DataType::Timestamp(_, zone)) => {
            let (y, m, d) = civil(v.div_euclid(DAY_US));
            let t = v.rem_euclid(DAY_US);
            format!("{y:04}-{m:02}-{d:02}T{}{}", time_text(t), if zone.is_some() { "Z" } else { "" })
        }
        (Scalar::Int(v), _, DataType::Time64(_)) => time_text(*v),
        (Scalar::Int(v), ..) => v.to_string(),
        (Scalar::Bool(v), ..) => v.to_string(),
        (Scalar::Float(v), ..) => v.to_string(),
        (Scalar::Decimal(v), _, DataType::Decimal128(p, s)) => Decimal128Type::format_decimal(*v, *p, *s),
        (Scalar::Decimal(v), ..) => v.to_string(),
        (Scalar::Text(v), ..) => v.clone(),
        (Scalar::Bytes(v), _, DataType::FixedSizeBinary(16)) => {
            v.as_slice().try_into().map(|b| uuid::Uuid::from_bytes(b).to_string()).unwrap_or_default()
        }
        (Scalar::Bytes(v), ..) => v.iter().fold(String::new(), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        }),
    }
}

/// `hh:mm:ss.ffffff` of microseconds since midnight.
pub(crate) fn time_text(us: i64) -> String {
    let s = us.div_euclid(1_000_000);
    format!("{:02}:{:02}:{:02}.{:06}", s / 3600, s / 60 % 60, s % 60, us.rem_euclid(1_000_000))
}

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// Year, month and day of a count of days since 1970-01-01, in the proleptic Gregorian calendar.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

fn transformed(column: &ArrayRef, transform: PartitionTransform) -> Result<ArrayRef, PartitionError> {
    let month = |days: i64| {
        let (y, m, _) = civil(days);
        (y - 1970) * 12 + m - 1
    };
    Ok(match (transform, column.data_type()) {
        (PartitionTransform::Identity, _) => column.clone(),
        (_, DataType::Date32) => {
            let days = column.as_primitive::<Date32Type>();
            Arc::new(days.iter().map(|d| d.map(|d| if transform == PartitionTransform::Month { month(d.into()) } else { d.into() })).collect::<Int64Array>())
        }
        _ => {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            let counted: Int64Array = times
                .iter()
                .map(|t| {
                    t.map(|t| match transform {
                        PartitionTransform::Hour => t.div_euclid(HOUR_US),
                        PartitionTransform::Month => month(t.div_euclid(DAY_US)),
                        _ => t.div_euclid(DAY_US),
                    })
                })
                .collect();
            // Iceberg counts in 32 bits; only hours can leave them.
            if let Some(i) = (0..counted.len()).find(|i| counted.is_valid(*i) && i32::try_from(counted.value(*i)).is_err()) {
                return Err(PartitionError::TooFar(times.value(i)));
            }
            Arc::new(counted)
        }
    })
}

/// The value at a row of a plain column; `None` for null.
pub(crate) fn scalar_at(column: &ArrayRef, row: usize) -> Result<Option<Scalar>, PartitionError> {
    if column.is_null(row) {
        return Ok(None);
    }
    Ok(Some(match column.data_type() {
        DataType::Boolean => Scalar::Bool(column.as_boolean().value(row)),
        DataType::Int32 => Scalar::Int(column.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Scalar::Int(column.as_primitive::<Int64Type>().value(row)),
        DataType::Date32 => Scalar::Int(column.as_primitive::<Date32Type>().value(row).into()),
        DataType::Time64(TimeUnit::Microsecond) => Scalar::Int(column.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Scalar::Int(column.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Float32 => Scalar::Float(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Scalar::Float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => Scalar::Decimal(column.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => Scalar::Text(column.as_string::<i32>().value(row).to_string()),
        DataType::Binary => Scalar::Bytes(column.as_binary::<i32>().value(row).to_vec()),
        DataType::FixedSizeBinary(_) => Scalar::Bytes(column.as_fixed_size_binary().value(row).to_vec()),
        other => return Err(PartitionError::NotPlain { column: String::new(), found: other.to_string() }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::layout::assign_field_ids;
    use arrow::array::{Date32Array, StringArray, TimestampMicrosecondArray};

    fn by(column: &str, transform: PartitionTransform) -> PartitionField {
        PartitionField { column: column.into(), transform }
    }

    fn table(fields: Vec<Field>, partition_by: Vec<PartitionField>) -> TableSpec {
        TableSpec {
            name: "t".into(),
            schema: assign_field_ids(&Schema::new(fields), None).unwrap(),
            key: vec![],
            formats: vec![TableFormatKind::Iceberg],
            partition_by,
            properties: Default::default(),
            comment: None,
        }
    }

    #[test]
    fn times_before_1970_floor() {
        let t: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), Some(0), None, Some(HOUR_US), Some(-DAY_US - 1)]));
        let ints = |tr| transformed(&t, tr).unwrap().as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
        assert_eq!(ints(PartitionTransform::Hour), [Some(-1), Some(0), None, Some(1), Some(-25)]);
        assert_eq!(ints(PartitionTransform::Day), [Some(-1), Some(0), None, Some(0), Some(-2)]);
        assert_eq!(ints(PartitionTransform::Month), [Some(-1), Some(0), None, Some(0), Some(-1)]);
        let d: ArrayRef = Arc::new(Date32Array::from(vec![-1, 0, 31, 365]));
        let months = transformed(&d, PartitionTransform::Month).unwrap();
        assert_eq!(months.as_primitive::<Int64Type>().values(), &[-1, 0, 1, 12]);
    }

    #[test]
    fn civil_dates_agree_with_chrono() {
        for days in (-800_000..3_000_000).step_by(977) {
            let date = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap() + chrono::Duration::days(days);
            use chrono::Datelike;
            assert_eq!(civil(days), (date.year() as i64, date.month() as i64, date.day() as i64));
        }
    }

    #[test]
    fn rows_keep_their_order_within_partitions() {
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("n", DataType::Int64, false)]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![Arc::new(StringArray::from(vec![Some("b"), None, Some("a"), Some("b"), None])), Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5]))],
        )
        .unwrap();
        let mut splitter = PartitionSplitter::new(&schema, &[by("k", PartitionTransform::Identity)]).unwrap();
        let parts = splitter.split(&batch).unwrap();
        let got: Vec<_> = parts.iter().map(|(v, b)| (v[0].clone(), b.column(1).as_primitive::<Int64Type>().values().to_vec())).collect();
        let text = |s: &str| Some(Scalar::Text(s.into()));
        assert_eq!(got, [(text("b"), vec![1, 4]), (None, vec![2, 5]), (text("a"), vec![3])]);
    }

    #[test]
    fn no_value_escapes_the_folder() {
        let t = table(vec![Field::new("k", DataType::Utf8, true)], vec![by("k", PartitionTransform::Identity)]);
        let path = |s: &str| partition_path(&t, TableFormatKind::Iceberg, &[Some(Scalar::Text(s.into()))]);
        assert_eq!(path("../../etc/passwd"), "k=..%2F..%2Fetc%2Fpasswd");
        assert_eq!(path(".."), "k=..");
        assert_eq!(path("a b?c#d%e\n"), "k=a%20b%3Fc%23d%25e%0A");
        assert_eq!(path(""), "k=");
        let long = path(&"ä".repeat(4000));
        assert!(long.len() < 150, "{}", long.len());
        assert_ne!(long, path(&"ä".repeat(4001)));
        assert_eq!(partition_path(&t, TableFormatKind::Iceberg, &[None]), "k=null");
        assert_eq!(partition_path(&t, TableFormatKind::Delta, &[None]), "k=__HIVE_DEFAULT_PARTITION__");
        for s in ["..", "../../x", "a/b", "\0", "é"] {
            object_store::path::Path::parse(path(s)).unwrap();
        }
    }

    #[test]
    fn folders_read_as_dates() {
        let time = Field::new("w", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true);
        for (transform, value, want) in [
            (PartitionTransform::Day, 20_454, "w_day=2026-01-01"),
            (PartitionTransform::Hour, 20_454 * 24 + 5, "w_hour=2026-01-01-05"),
            (PartitionTransform::Month, 56 * 12 + 1, "w_month=2026-02"),
            (PartitionTransform::Day, -1, "w_day=1969-12-31"),
            (PartitionTransform::Identity, 1_000_001, "w=1970-01-01T00%3A00%3A01.000001Z"),
        ] {
            let t = table(vec![time.clone()], vec![by("w", transform)]);
            assert_eq!(partition_path(&t, TableFormatKind::Iceberg, &[Some(Scalar::Int(value))]), want);
        }
    }

    #[test]
    fn a_transform_of_the_wrong_type_is_refused() {
        let schema = Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("d", DataType::Date32, true)]);
        assert!(matches!(PartitionSplitter::new(&schema, &[by("k", PartitionTransform::Day)]), Err(PartitionError::NotATime { .. })));
        assert!(matches!(PartitionSplitter::new(&schema, &[by("d", PartitionTransform::Hour)]), Err(PartitionError::NotATime { .. })));
        assert!(matches!(PartitionSplitter::new(&schema, &[by("x", PartitionTransform::Day)]), Err(PartitionError::NoColumn(_))));
        let float = Schema::new(vec![Field::new("f", DataType::Float64, true)]);
        assert!(matches!(PartitionSplitter::new(&float, &[by("f", PartitionTransform::Identity)]), Err(PartitionError::Float { .. })));
    }
}
