//! Random records of random types against a slow reference over serde_json's raw values.

use super::tests::{Cell, cell, column, raw};
use super::*;
use crate::pipeline::EpochUnit;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use proptest::prelude::*;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Text times 10^scale by moving the point in the written digits.
fn exact(text: &str, scale: i64) -> Option<i128> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let negative = mantissa.starts_with('-');
    let (whole, fraction) = mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa.trim_start_matches('-'), ""));
    let digits = format!("{whole}{fraction}");
    if digits.bytes().all(|b| b == b'0') {
        return Some(0);
    }
    let point = whole.len() as i64 + exponent + scale;
    if point > 1000 {
        return None;
    }
    let kept: String = (0..point.max(0)).map(|i| digits.chars().nth(i as usize).unwrap_or('0')).collect();
    let dropped = digits.chars().enumerate().filter(|(i, _)| *i as i64 >= point).any(|(_, c)| c != '0');
    let value: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    if dropped { None } else { Some(if negative { -value } else { value }) }
}

fn number(text: &str) -> Option<&str> {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(text)
}

fn micros(us: i64) -> Option<Cell> {
    let first = NaiveDate::from_ymd_opt(1, 1, 1)?.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros();
    let end = NaiveDate::from_ymd_opt(10000, 1, 1)?.and_hms_opt(0, 0, 0)?.and_utc().timestamp_micros();
    (first <= us && us < end).then_some(Cell::Int(us as i128))
}

fn naive(text: &str) -> Option<NaiveDateTime> {
    let form = if text.as_bytes().get(10) == Some(&b' ') { "%Y-%m-%d %H:%M:%S%.f" } else { "%Y-%m-%dT%H:%M:%S%.f" };
    let read = NaiveDateTime::parse_from_str(text, form).ok()?;
    (read.nanosecond() % 1000 == 0).then_some(read)
}

fn reference(ty: &ColumnType, text: &str) -> Option<Cell> {
    use ColumnType as T;
    if text == "null" {
        return Some(Cell::Null);
    }
    let string = || serde_json::from_str::<String>(text).ok();
    Some(match ty {
        T::Bool => Cell::Bool(serde_json::from_str(text).ok()?),
        T::Int32 => Cell::Int(i32::try_from(exact(number(text)?, 0)?).ok()? as i128),
        T::Int64 => Cell::Int(i64::try_from(exact(number(text)?, 0)?).ok()? as i128),
        T::Float32 => Cell::Float(number(text)?.parse::<f32>().ok().filter(|f| f.is_finite())?.to_bits() as u64),
        T::Float64 => Cell::Float(number(text)?.parse::<f64>().ok().filter(|f| f.is_finite())?.to_bits()),
        T::Decimal(p, s) => {
            let quoted = string();
            let text = quoted.as_deref().unwrap_or(text);
            let written = serde_json::from_str::<Box<RawValue>>(text).ok().filter(|v| v.get() == text)?;
            let value = exact(number(written.get())?, *s as i64)?;
            (value.abs() < 10i128.pow(*p as u32)).then_some(Cell::Int(value))?
        }
        T::String => Cell::Text(string()?),
        T::Binary => {
            let text = string()?;
            let bare = text.trim_end_matches('=');
            let padded = text.len() > bare.len();
            (!padded || (text.len() % 4 == 0 && text.len() - bare.len() <= 2)).then_some(())?;
            Cell::Bytes(STANDARD_NO_PAD.decode(bare).ok()?)
        }
        T::Date => {
            let date = string().filter(|s| s.len() == 10).and_then(|s| NaiveDate::parse_from_str(&s, "%Y-%m-%d").ok())?;
            Cell::Int((date - NaiveDate::from_ymd_opt(1970, 1, 1)?).num_days() as i128)
        }
        T::Time => {
            let time = string().filter(|s| s.len() <= 15).and_then(|s| NaiveTime::parse_from_str(&s, "%H:%M:%S%.f").ok())?;
            Cell::Int(time.num_seconds_from_midnight() as i128 * 1_000_000 + time.nanosecond() as i128 / 1000)
        }
        T::Timestamp(unit) | T::TimestampLocal(unit) => {
            if let Some(number) = number(text) {
                let scale = match (*unit)? {
                    EpochUnit::Seconds => 6,
                    EpochUnit::Millis => 3,
                    EpochUnit::Micros => 0,
                    EpochUnit::Nanos => -3,
                };
                return micros(exact(number, scale)?.try_into().ok()?);
            }
            let text = string()?;
            match ty {
                T::TimestampLocal(_) => micros(naive(&text)?.and_utc().timestamp_micros())?,
                _ if text.contains(' ') => micros(naive(&text)?.and_utc().timestamp_micros())?,
                _ => {
                    let read = DateTime::parse_from_rfc3339(&text).ok().filter(|t| t.nanosecond() % 1000 == 0)?;
                    micros(read.timestamp_micros())?
                }
            }
        }
        T::Uuid => Cell::Bytes(uuid::Uuid::parse_str(&string().filter(|s| s.len() == 36)?).ok()?.as_bytes().to_vec()),
        T::List(item) => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text).ok()?;
            Cell::List(items.iter().map(|v| reference(item, v.get())).collect::<Option<_>>()?)
        }
        T::Struct(fields) => {
            let found: HashMap<String, Box<RawValue>> = text.starts_with('{').then(|| serde_json::from_str(text).ok())??;
            let value = |(name, ty): &(String, T)| found.get(name).map_or(Some(Cell::Null), |v| reference(ty, v.get()));
            Cell::List(fields.iter().map(value).collect::<Option<_>>()?)
        }
        T::Map(key, value) => {
            let found: HashMap<String, Box<RawValue>> = text.starts_with('{').then(|| serde_json::from_str(text).ok())??;
            let key = |text: &str| match **key {
                T::String => Some(Cell::Text(text.into())),
                T::Int32 => text.parse::<i32>().ok().filter(|k| k.to_string() == text).map(|k| Cell::Int(k as i128)),
                _ => text.parse::<i64>().ok().filter(|k| k.to_string() == text).map(|k| Cell::Int(k as i128)),
            };
            let entry = |(k, v): (&String, &Box<RawValue>)| Some((key(k)?, reference(value, v.get())?));
            Cell::Map(found.iter().map(entry).collect::<Option<_>>()?)
        }
        T::Json => Cell::Text(text.into()),
    })
}

/// Maps in the order of their keys.
fn sorted(cell: Cell) -> Cell {
    match cell {
        Cell::List(items) => Cell::List(items.into_iter().map(sorted).collect()),
        Cell::Map(entries) => {
            let mut entries: Vec<_> = entries.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by_key(|(k, _)| format!("{k:?}"));
            Cell::Map(entries)
        }
        other => other,
    }
}

fn types() -> BoxedStrategy<ColumnType> {
    use ColumnType as T;
    let unit = || prop::option::of(prop::sample::select(vec![EpochUnit::Seconds, EpochUnit::Millis, EpochUnit::Micros, EpochUnit::Nanos]));
    let leaf = prop_oneof![
        prop::sample::select(vec![
            T::Bool, T::Int32, T::Int64, T::Float32, T::Float64, T::String, T::Binary, T::Date, T::Time, T::Uuid, T::Json
        ]),
        (1..=38u8).prop_flat_map(|p| (Just(p), 0..=p)).prop_map(|(p, s)| T::Decimal(p, s)),
        unit().prop_map(T::Timestamp),
        unit().prop_map(T::TimestampLocal),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|item| T::List(Box::new(item))),
            prop::collection::vec(inner.clone(), 1..4)
                .prop_map(|types| T::Struct(types.into_iter().zip(["a", "é", "q\""]).map(|(ty, name)| (name.to_string(), ty)).collect())),
            (prop::sample::select(vec![T::String, T::Int32, T::Int64]), inner).prop_map(|(k, v)| T::Map(Box::new(k), Box::new(v))),
        ]
    })
    .boxed()
}

/// A string as JSON: plain, or each character as an escape.
fn quoted(text: impl Strategy<Value = String> + 'static) -> BoxedStrategy<String> {
    let escaped = |s: &str| s.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect::<String>();
    (text, prop::bool::weighted(0.2))
        .prop_map(move |(s, escape)| if escape { format!("\"{}\"", escaped(&s)) } else { serde_json::to_string(&s).unwrap() })
        .boxed()
}

fn numbers() -> BoxedStrategy<String> {
    prop_oneof![
        4 => "-?(0|[1-9][0-9]{0,5})",
        2 => "-?(0|[1-9][0-9]{0,19})",
        3 => "-?(0|[1-9][0-9]{0,8})\\.[0-9]{0,4}[0-9]0{0,3}",
        2 => "-?(0|[1-9][0-9]{0,12})(\\.[0-9]{1,12})?[eE][+-]?[0-9]{1,2}",
        1 => "-?(0|[1-9][0-9]{0,45})(\\.[0-9]{1,45})?([eE][+-]?[0-9]{1,3})?",
    ]
    .boxed()
}

fn object(keys: BoxedStrategy<String>, value: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let member = (quoted(keys), value, "[ \n]?").prop_map(|(k, v, space)| format!("{k}{space}:{space}{v}"));
    prop::collection::vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(" ,"))).boxed()
}

/// The text of a JSON value that fits the type, mostly.
fn texts(ty: &ColumnType) -> BoxedStrategy<String> {
    use ColumnType as T;
    let stamp = || quoted("(0000|0001|1969|1970|20[0-9]{2}|9999)-(0[1-9]|1[0-3])-([0-2][0-9]|3[01])[Tt ][0-2][0-9]:[0-5][0-9]:([0-5][0-9]|60)(\\.[0-9]{1,6}0{0,3})?([Zz]|[+-][0-2][0-9]:[0-5][0-9])?"
        // Chrono reads what the column's rules leave out: a space and an offset, a leap second, a time without its offset.
        .prop_filter("chrono's rules are others", |s: &String| !s.contains(":60") && !(s.contains(' ') && s.len() > 19 && s[19..].contains(['Z', 'z', '+', '-'])) && !s.starts_with("0000") && !s.contains('t')));
    let fitting = match ty {
        T::Bool => "true|false".boxed(),
        T::Int32 | T::Int64 | T::Float32 | T::Float64 => numbers(),
        T::Decimal(..) => prop_oneof![numbers(), quoted(numbers())].boxed(),
        T::String => quoted(any::<String>()),
        T::Binary => quoted("([A-Za-z0-9+/]{4}){0,3}([A-Za-z0-9+/][AQgw]={0,2}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?)?"),
        T::Date => quoted("(0001|19[0-9]{2}|20[0-9]{2}|9999)-(0[0-9]|1[0-3])-([0-2][0-9]|3[0-2])"),
        T::Time => quoted("[0-2][0-9]:[0-6][0-9]:[0-5][0-9](\\.[0-9]{1,7})?"),
        T::Timestamp(_) | T::TimestampLocal(_) => prop_oneof![2 => stamp(), 1 => numbers()].boxed(),
        T::Uuid => quoted("[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-fA-F]{12}"),
        T::List(item) => prop::collection::vec(texts(item), 0..4).prop_map(|items| format!("[{}]", items.join(", "))).boxed(),
        T::Struct(fields) => {
            let members: Vec<_> = fields.iter().map(|(name, ty)| (quoted(Just(name.clone())), texts(ty)).prop_map(|(k, v)| format!("{k}:{v}"))).collect();
            (members, random_json(), any::<bool>())
                .prop_map(|(mut members, other, double)| {
                    members.insert(members.len() / 2, format!("\"other\":{other}"));
                    if double {
                        members.push(members[0].clone());
                        members[0] = members[0].split_once(':').map_or_else(String::new, |(k, _)| format!("{k}:[0]"));
                    }
                    format!("{{{}}}", members.join(","))
                })
                .boxed()
        }
        T::Map(key, value) => {
            let keys = if **key == T::String { "[abé]{0,2}".boxed() } else { "0|-?[1-9][0-9]{0,4}|-?[0-9]{1,2}".boxed() };
            object(keys, texts(value))
        }
        T::Json => random_json(),
    };
    prop_oneof![20 => fitting, 1 => Just("null".to_string()), 1 => random_json()].boxed()
}

fn random_json() -> BoxedStrategy<String> {
    let leaf = prop_oneof![Just("null".to_string()), Just("true".into()), numbers(), quoted(any::<String>())];
    leaf.prop_recursive(3, 10, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            object("[ab\\\\\"é]{0,3}".boxed(), inner.boxed()),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equals_the_reference_however_it_is_cut(
        (ty, values) in types().prop_flat_map(|ty| { let values = prop::collection::vec(texts(&ty), 1..6); (Just(ty), values) }),
        cut in any::<prop::sample::Index>(),
    ) {
        let columns = [column("k", ColumnType::Int64), column("v", ty.clone()), column("w", ColumnType::String)];
        let records: Vec<String> = values.iter().enumerate().map(|(i, v)| format!("{{\"k\":{i},\"w\":\"x\", \"v\": {v} }}")).collect();
        let records: Vec<&[u8]> = records.iter().map(|r| r.as_bytes()).collect();
        let mut decoder = JsonDecoder::new(&columns, &[1, 0, 2], None, 512).unwrap();
        let mut rows = Vec::new();
        let cut = cut.index(records.len());
        for (base, part) in [(0, &records[..cut]), (cut, &records[cut..])] {
            let decoded = decoder.decode(&raw(part));
            prop_assert_eq!(decoded.rows.len() + decoded.dead.len(), part.len());
            for (row, index) in decoded.rows.iter().enumerate() {
                let index = base + *index as usize;
                prop_assert_eq!(cell(decoded.batch.column(1), row), Cell::Int(index as i128));
                prop_assert_eq!(cell(decoded.batch.column(2), row), Cell::Text("x".into()));
                rows.push((index, sorted(cell(decoded.batch.column(0), row))));
            }
        }
        let expected: Vec<_> = values.iter().enumerate().filter_map(|(i, v)| Some((i, sorted(reference(&ty, v)?)))).collect();
        prop_assert_eq!(&rows, &expected, "{:?} {:?}", ty, values);
        let unused = JsonDecoder::new(&columns, &[0], None, 512).unwrap().decode(&raw(&records));
        prop_assert_eq!(unused.rows, expected.iter().map(|(i, _)| *i as u32).collect::<Vec<_>>());
    }

    #[test]
    fn mutated_bytes_are_judged_as_serde_json_judges_them(
        (ty, text) in types().prop_flat_map(|ty| { let text = texts(&ty); (Just(ty), text) }),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\ude0189-+. \n\x00\xed\xa0".to_vec())]), 0..5),
    ) {
        let mut bytes = text.into_bytes();
        for (at, what, byte) in mutations {
            let at = at.index(bytes.len() + 1);
            match what {
                0 => bytes.insert(at, byte),
                1 if at < bytes.len() => { bytes.remove(at); }
                2 => bytes.truncate(at),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => {}
            }
        }
        let root = |ty: &ColumnType| Column { from: From::Path(vec![]), ..column("v", ty.clone()) };
        let typed = JsonDecoder::new(&[root(&ty), column("a", ty.clone())], &[0, 1], None, 512).unwrap().decode(&raw(&[&bytes]));
        let kept = JsonDecoder::new(&[root(&ColumnType::Json)], &[0], None, 512).unwrap().decode(&raw(&[&bytes]));
        let judged = serde_json::from_slice::<serde_json::Value>(&bytes);
        // The one thing that only the reference minds: a number that no float holds.
        if !judged.as_ref().is_err_and(|e| e.to_string().starts_with("number out of range")) {
            prop_assert_eq!(judged.is_ok(), kept.dead.is_empty(), "{:?} {:?}", judged, kept.dead);
        }
        prop_assert!(kept.dead.is_empty() || !typed.dead.is_empty());
    }
}
