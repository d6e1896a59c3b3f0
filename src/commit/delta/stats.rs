//! Column bounds and partition values as Delta writes them, and back.
//!
//! Delta protocol, "Per-file Statistics" and "Partition Value Serialization". Whatever cannot be
//! said exactly is rounded outwards: readers prune by these. To leave a bound out is allowed, but deltalake's
//! `to_pyarrow_dataset` then takes no value to be within it: only NaN, the very ends of a type's range, and very long texts
//! of the highest characters have none.

use crate::stage::bounds::WHOLE_BYTES;
use crate::stage::{ColumnStats, FIELD_ID, Scalar};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde_json::{Value, json, value::RawValue};
use std::collections::BTreeMap;

/// Columns that get statistics unless `delta.dataSkippingNumIndexedCols` says otherwise.
const INDEXED_COLUMNS: usize = 32;
/// A double holds each whole number below, and those of as many digits before or behind a point.
const SURE_DIGITS: u128 = 1_000_000_000_000_000;
const DAY_US: i64 = 86_400_000_000;

pub(super) fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(FIELD_ID)?.parse().ok()
}

/// The `stats` of an add: `numRecords`, `minValues`, `maxValues`, `nullCount` of the top-level
/// primitive columns that are not partition columns.
pub(super) fn to_json(schema: &Schema, partition_columns: &[String], records: u64, columns: &[ColumnStats], indexed: Option<&str>) -> String {
    let most = match indexed.and_then(|t| t.parse::<i64>().ok()) {
        Some(n) if n < 0 => usize::MAX,
        Some(n) => n as usize,
        None => INDEXED_COLUMNS,
    };
    let mut mins: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    let mut maxs: BTreeMap<&str, Box<RawValue>> = BTreeMap::new();
    let mut nulls: BTreeMap<&str, u64> = BTreeMap::new();
    for field in schema.fields().iter().filter(|f| !partition_columns.contains(f.name())).take(most) {
        if field.data_type().is_nested() {
            continue;
        }
        let Some(stats) = field_id(field).and_then(|id| columns.iter().find(|c| c.field_id == id)) else { continue };
        nulls.insert(field.name(), stats.nulls);
        if let Some(text) = stats.lower.as_ref().and_then(|v| bound(field, v, false)) {
            mins.insert(field.name(), text);
        }
        // NaN is above every number in the engines that order it: a maximum without it would prune it.
        if stats.nans == 0
            && let Some(text) = stats.upper.as_ref().and_then(|v| bound(field, v, true))
        {
            maxs.insert(field.name(), text);
        }
    }
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Stats<'a> {
        num_records: u64,
        min_values: BTreeMap<&'a str, Box<RawValue>>,
        max_values: BTreeMap<&'a str, Box<RawValue>>,
        null_count: BTreeMap<&'a str, u64>,
    }
    let stats = Stats { num_records: records, min_values: mins, max_values: maxs, null_count: nulls };
    serde_json::to_string(&stats).unwrap_or_else(|_| json!({"numRecords": records}).to_string())
}

/// A bound as JSON text; `None` where it cannot be said.
fn bound(field: &Field, value: &Scalar, upper: bool) -> Option<Box<RawValue>> {
    let text = |t: String| serde_json::to_string(&t).ok();
    let raw = match (field.data_type(), value) {
        (DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64, Scalar::Int(v)) => Some(v.to_string()),
        (DataType::Date32, Scalar::Int(days)) => text(date(*days)?),
        (DataType::Timestamp(_, zone), Scalar::Int(us)) => {
            // Milliseconds is what every reader understands: outwards.
            let ms = if upper { us.checked_add(999)?.div_euclid(1000) } else { us.div_euclid(1000) };
            let at = in_four_digit_years(DateTime::from_timestamp_millis(ms)?.naive_utc())?;
            text(format!("{}{}", at.format("%Y-%m-%dT%H:%M:%S%.3f"), if zone.is_some() { "Z" } else { "" }))
        }
        (DataType::Time32(_) | DataType::Time64(_), Scalar::Int(us)) => {
            // A prefix is below whatever number of digits the file has, the full form above.
            let full = time(*us)?;
            text(if upper { full } else { full[..8].to_string() })
        }
        // As Spark writes them.
        (DataType::Float32 | DataType::Float64, Scalar::Float(v)) if v.is_infinite() => text(if *v > 0.0 { "Infinity" } else { "-Infinity" }.into()),
        (DataType::Float32 | DataType::Float64, Scalar::Float(v)) => {
            // Total order parts the zeros, IEEE does not: the bound holds under both.
            let v = if *v != 0.0 { *v } else if upper { 0.0 } else { -0.0 };
            serde_json::to_string(&v).ok()
        }
        (DataType::Decimal128(precision, scale), Scalar::Decimal(unscaled)) => Some(decimal(short_decimal(*unscaled, *precision, upper)?, *scale)),
        (DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View, Scalar::Text(t)) => text(truncate_text(t, 32, upper)?),
        (DataType::FixedSizeBinary(16), Scalar::Bytes(b)) if super::schema::is_uuid(field) => text(uuid::Uuid::from_slice(b).ok()?.to_string()),
        (DataType::FixedSizeBinary(16) | DataType::Time32(_) | DataType::Time64(_), Scalar::Text(t)) => text(truncate_text(t, 32, upper)?),
        _ => None,
    }?;
    RawValue::from_string(raw).ok()
}

/// Some readers go through a double, which holds 15 digits, and scale it: the rest is rounded away, and the last of them is
/// theirs to get wrong. `None` beyond the type's range.
fn short_decimal(unscaled: i128, precision: u8, upper: bool) -> Option<i128> {
    let mut unit = 1;
    while unscaled.unsigned_abs() / (unit as u128) >= SURE_DIGITS {
        unit *= 10;
    }
    let below = unscaled.div_euclid(unit).checked_mul(unit)?;
    let short = if upper && below != unscaled { below.checked_add(unit)? } else { below };
    let short = if unit == 1 { short } else { short.checked_add(if upper { unit } else { -unit })? };
    (short.unsigned_abs() < 10u128.checked_pow(precision.into())?).then_some(short)
}

/// At most `most` code points; an upper bound is rounded up to the next text of that length. Where there is none it is the
/// text itself, and `None` when that is very long.
pub(super) fn truncate_text(text: &str, most: usize, upper: bool) -> Option<String> {
    if text.chars().count() <= most {
        return Some(text.to_string());
    }
    let mut chars: Vec<char> = text.chars().take(most).collect();
    if !upper {
        return Some(chars.into_iter().collect());
    }
    while let Some(last) = chars.pop() {
        let next = (last as u32 + 1..=0x10FFFF).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    (text.len() <= WHOLE_BYTES).then(|| text.to_string())
}

fn date(days: i64) -> Option<String> {
    let at = DateTime::from_timestamp(days.checked_mul(86_400)?, 0)?.naive_utc();
    Some(in_four_digit_years(at)?.format("%Y-%m-%d").to_string())
}

fn in_four_digit_years(at: NaiveDateTime) -> Option<NaiveDateTime> {
    use chrono::Datelike;
    (1..=9999).contains(&at.year()).then_some(at)
}

fn time(us: i64) -> Option<String> {
    (0..DAY_US).contains(&us).then(|| {
        let s = us / 1_000_000;
        format!("{:02}:{:02}:{:02}.{:06}", s / 3600, s / 60 % 60, s % 60, us % 1_000_000)
    })
}

fn decimal(unscaled: i128, scale: i8) -> String {
    let scale = scale.max(0) as usize;
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// A partition value as text; `None` is null. An empty string is null to every Delta reader.
pub(super) fn partition_text(field: &Field, value: Option<&Scalar>) -> Result<Option<String>, String> {
    let Some(value) = value else { return Ok(None) };
    let text = match (field.data_type(), value) {
        (DataType::Boolean, Scalar::Bool(v)) => Some(v.to_string()),
        (DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64, Scalar::Int(v)) => Some(v.to_string()),
        (DataType::Float32, Scalar::Float(v)) => Some((*v as f32).to_string()),
        (DataType::Float64, Scalar::Float(v)) => Some(v.to_string()),
        (DataType::Date32, Scalar::Int(days)) => date(*days),
        (DataType::Timestamp(_, zone), Scalar::Int(us)) => DateTime::from_timestamp_micros(*us).and_then(|t| in_four_digit_years(t.naive_utc())).map(|t| {
            // The form with a zone is read alike whatever the reader's session zone is.
            t.format(if zone.is_some() { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%d %H:%M:%S%.6f" }).to_string()
        }),
        (DataType::Time32(_) | DataType::Time64(_), Scalar::Int(us)) => time(*us),
        (DataType::Decimal128(_, scale), Scalar::Decimal(v)) => Some(decimal(*v, *scale)),
        (DataType::FixedSizeBinary(16), Scalar::Bytes(b)) => uuid::Uuid::from_slice(b).ok().map(|u| u.to_string()),
        (_, Scalar::Text(t)) => Some(t.clone()),
        _ => None,
    };
    text.map(Some).ok_or_else(|| format!("column `{}`: {value:?} cannot be a delta partition value", field.name()))
}

/// Text of the log as a value of this column; `None` for null and for what does not parse.
pub(super) fn parse_value(field: &Field, text: &str) -> Option<Scalar> {
    Some(match field.data_type() {
        _ if text.is_empty() => return None,
        DataType::Boolean => Scalar::Bool(text.parse().ok()?),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Scalar::Int(text.parse().ok()?),
        DataType::Float32 | DataType::Float64 => Scalar::Float(text.parse::<f64>().ok()?),
        DataType::Date32 => {
            let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
            Scalar::Int(day.and_hms_opt(0, 0, 0)?.and_utc().timestamp() / 86_400)
        }
        DataType::Timestamp(..) => Scalar::Int(timestamp(text)?),
        DataType::Time32(_) | DataType::Time64(_) => {
            let t = chrono::NaiveTime::parse_from_str(text, "%H:%M:%S%.f").ok()?;
            use chrono::Timelike;
            Scalar::Int(i64::from(t.num_seconds_from_midnight()) * 1_000_000 + i64::from(t.nanosecond() / 1000))
        }
        DataType::Decimal128(_, scale) => Scalar::Decimal(parse_decimal(text, *scale)?),
        DataType::FixedSizeBinary(16) => Scalar::Bytes(uuid::Uuid::parse_str(text).ok()?.as_bytes().to_vec()),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Scalar::Text(text.to_string()),
        _ => return None,
    })
}

/// Microseconds of any form of timestamp that Delta writers use.
fn timestamp(text: &str) -> Option<i64> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.timestamp_micros());
    }
    let text = text.trim_end_matches('Z');
    let forms = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
    forms.iter().find_map(|f| NaiveDateTime::parse_from_str(text, f).ok()).map(|t| t.and_utc().timestamp_micros())
}

fn parse_decimal(text: &str, scale: i8) -> Option<i128> {
    // Large numbers come with an exponent.
    let (digits, exponent) = text.split_once(['e', 'E']).map_or(Some((text, 0)), |(d, e)| Some((d, e.parse::<i32>().ok()?)))?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let zeros = usize::try_from(i32::from(scale.max(0)) + exponent - fraction.len() as i32).ok().filter(|z| *z <= 38)?;
    format!("{whole}{fraction}{:0<zeros$}", "").parse().ok()
}

/// What the `stats` of an add say of the columns of this schema: records, and bounds where they parse.
pub(super) fn from_json(schema: &Schema, stats: &str) -> (Option<u64>, Vec<ColumnStats>) {
    let Ok(stats) = serde_json::from_str::<Value>(stats) else { return (None, Vec::new()) };
    let records = stats["numRecords"].as_u64();
    let mut columns = Vec::new();
    for field in schema.fields().iter().filter(|f| !f.data_type().is_nested()) {
        let (Some(field_id), Some(records)) = (field_id(field), records) else { continue };
        // Uuid and time are text in the file: their bounds are prefixes, no values.
        let textual = matches!(field.data_type(), DataType::FixedSizeBinary(_) | DataType::Time32(_) | DataType::Time64(_));
        let value = |kind: &str| {
            let v = &stats[kind][field.name().as_str()];
            let text = v.as_str().map(String::from).or_else(|| v.is_number().then(|| v.to_string()))?;
            match parse_value(field, &text).filter(|_| !textual)? {
                Scalar::Float(v) if v.is_nan() => None,
                // Read through a double, of which 15 digits are sure.
                Scalar::Decimal(v) if v.unsigned_abs() >= SURE_DIGITS => {
                    let slack = (v.unsigned_abs() / SURE_DIGITS + 1) as i128;
                    Some(Scalar::Decimal(if kind == "maxValues" { v.saturating_add(slack) } else { v.saturating_sub(slack) }))
                }
                other => Some(other),
            }
        };
        let Some(nulls) = stats["nullCount"][field.name().as_str()].as_u64() else { continue };
        let (lower, mut upper) = (value("minValues"), value("maxValues"));
        if let (DataType::Timestamp(..), Some(Scalar::Int(us))) = (field.data_type(), &mut upper) {
            // Other writers cut the maximum to milliseconds.
            *us += if *us % 1000 == 0 { 999 } else { 0 };
        }
        let float = matches!(field.data_type(), DataType::Float32 | DataType::Float64);
        // Without a maximum a float column may hold NaN, in any row.
        let nans = if float && upper.is_none() { records.saturating_sub(nulls) } else { 0 };
        columns.push(ColumnStats { field_id, bytes: 0, values: records, nulls, nans, lower, upper });
    }
    (records, columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ColumnType as C;

    fn field(ty: C) -> Field {
        ty.field("c", true).with_metadata([(FIELD_ID.to_string(), "1".to_string())].into())
    }

    fn said(ty: C, v: Scalar, upper: bool) -> Option<String> {
        bound(&ty.field("c", true), &v, upper).map(|r| r.get().to_string())
    }

    #[test]
    fn bounds_are_rounded_outwards_or_left_out() {
        assert_eq!(said(C::Timestamp(None), Scalar::Int(1_234), false).unwrap(), r#""1970-01-01T00:00:00.001Z""#);
        assert_eq!(said(C::Timestamp(None), Scalar::Int(1_234), true).unwrap(), r#""1970-01-01T00:00:00.002Z""#);
        assert_eq!(said(C::TimestampLocal(None), Scalar::Int(-1), false).unwrap(), r#""1969-12-31T23:59:59.999""#);
        assert_eq!(said(C::TimestampLocal(None), Scalar::Int(-1), true).unwrap(), r#""1970-01-01T00:00:00.000""#);
        assert_eq!(said(C::Decimal(12, 2), Scalar::Decimal(-5), false).unwrap(), "-0.05");
        let decimal = |v: i128, upper| said(C::Decimal(20, 2), Scalar::Decimal(v), upper);
        assert_eq!(decimal(12_345_678_901_234_567, false).unwrap(), "123456789012344.00");
        assert_eq!(decimal(12_345_678_901_234_567, true).unwrap(), "123456789012347.00");
        assert_eq!(decimal(-12_345_678_901_234_567, false).unwrap(), "-123456789012347.00");
        assert_eq!(decimal(-12_345_678_901_234_567, true).unwrap(), "-123456789012344.00");
        assert_eq!(decimal(10i128.pow(19), true).unwrap(), "100000000000001000.00");
        assert_eq!(decimal(10i128.pow(20) - 1, true), None, "beyond what the type holds");
        assert_eq!(said(C::Float64, Scalar::Float(f64::INFINITY), true).unwrap(), r#""Infinity""#);
        assert_eq!(said(C::Float32, Scalar::Float(f64::NEG_INFINITY), false).unwrap(), r#""-Infinity""#);
        assert_eq!(said(C::Float64, Scalar::Float(0.0), false).unwrap(), "-0.0");
        assert_eq!(said(C::Float64, Scalar::Float(-0.0), true).unwrap(), "0.0");
        assert_eq!(said(C::Date, Scalar::Int(19_000), true).unwrap(), r#""2022-01-08""#);
        assert_eq!(said(C::Date, Scalar::Int(i64::from(i32::MAX)), true), None, "beyond the year 9999");
        assert_eq!(said(C::Binary, Scalar::Bytes(vec![1]), true), None);
        assert_eq!(said(C::Time, Scalar::Int(1), false).unwrap(), r#""00:00:00""#);
        assert_eq!(said(C::Time, Scalar::Int(1), true).unwrap(), r#""00:00:00.000001""#);
    }

    #[test]
    fn long_texts_are_cut_and_the_upper_one_rounded_up() {
        let long = "a".repeat(40);
        assert_eq!(truncate_text(&long, 32, false).unwrap(), "a".repeat(32));
        assert_eq!(truncate_text(&long, 32, true).unwrap(), format!("{}b", "a".repeat(31)));
        assert_eq!(truncate_text(&format!("a{}", "\u{10FFFF}".repeat(40)), 32, true).unwrap(), "b");
        assert_eq!(truncate_text(&"\u{10FFFF}".repeat(40), 32, true).unwrap(), "\u{10FFFF}".repeat(40));
        assert_eq!(truncate_text(&"\u{10FFFF}".repeat(400), 32, true), None);
        assert_eq!(truncate_text(&"\u{D7FF}".repeat(33), 32, true).unwrap().chars().last(), Some('\u{E000}'), "surrogates are skipped");
    }

    #[test]
    fn bounds_survive_the_log_and_a_nan_takes_the_maximum_away() {
        let of = |lower: Scalar, upper: Option<Scalar>, nans| ColumnStats { field_id: 1, bytes: 0, values: 3, nulls: 1, nans, lower: Some(lower), upper };
        let floats = Schema::new(vec![field(C::Float64)]);
        let json: Value = serde_json::from_str(&to_json(&floats, &[], 3, &[of(Scalar::Float(1.5), Some(Scalar::Float(2.0)), 1)], None)).unwrap();
        assert_eq!(json, json!({"numRecords": 3, "minValues": {"c": 1.5}, "maxValues": {}, "nullCount": {"c": 1}}));
        let decimals = Schema::new(vec![field(C::Decimal(38, 2))]);
        let cases = [
            (&floats, Scalar::Float(1.5), Scalar::Float(2.0)),
            (&floats, Scalar::Float(f64::NEG_INFINITY), Scalar::Float(f64::INFINITY)),
            (&decimals, Scalar::Decimal(-105), Scalar::Decimal(999_999_999_999_999)),
        ];
        for (schema, lower, upper) in cases {
            let stats = of(lower, Some(upper), 0);
            assert_eq!(from_json(schema, &to_json(schema, &[], 3, std::slice::from_ref(&stats), None)), (Some(3), vec![stats]));
        }
        // Of others, with more digits than a double holds: read outwards.
        for text in ["12345678901234569.00", "1.2345678901234569e16", "12345678901234569"] {
            let stats = format!(r#"{{"numRecords":3,"minValues":{{"c":{text}}},"maxValues":{{"c":{text}}},"nullCount":{{"c":1}}}}"#);
            let read = from_json(&decimals, &stats).1.remove(0);
            let (Some(Scalar::Decimal(lower)), Some(Scalar::Decimal(upper))) = (read.lower, read.upper) else { panic!("{text} is not read") };
            let exact = 1_234_567_890_123_456_900;
            assert!(lower <= exact && exact <= upper && upper - lower < 10_000, "{text}: {lower} to {upper}");
        }
    }

    #[test]
    fn partition_values_survive_the_log() {
        let cases = [
            (C::Int64, Scalar::Int(-4)),
            (C::Date, Scalar::Int(19_000)),
            (C::Timestamp(None), Scalar::Int(1_700_000_000_123_456)),
            (C::TimestampLocal(None), Scalar::Int(1_700_000_000_123_456)),
            (C::Decimal(20, 3), Scalar::Decimal(-12_345)),
            (C::String, Scalar::Text("a/b c=ü".into())),
            (C::Bool, Scalar::Bool(true)),
            (C::Uuid, Scalar::Bytes(vec![7; 16])),
            (C::Float64, Scalar::Float(-0.5)),
        ];
        for (ty, value) in cases {
            let text = partition_text(&field(ty.clone()), Some(&value)).unwrap().unwrap();
            assert_eq!(parse_value(&field(ty), &text), Some(value), "{text}");
        }
        assert_eq!(partition_text(&field(C::Int64), None), Ok(None));
        assert!(partition_text(&field(C::Binary), Some(&Scalar::Bytes(vec![1]))).is_err());
    }
}
