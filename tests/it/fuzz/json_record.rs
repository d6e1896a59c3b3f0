//! Any bytes as a JSON record: read or dead as serde_json judges their grammar, whatever the columns.

use super::{drive, kind};
use base64::Engine;
use millpond::decode::{self, Decoder};
use millpond::pipeline::{Column, ColumnType as T, EpochUnit, Format, From, Segment};
use millpond::source::{RawBatch, RawRecord};
use std::cell::RefCell;
use std::io::Read;

const DEPTH: usize = 512;

fn column(name: &str, ty: T, nullable: bool) -> Column {
    Column { name: name.into(), ty, nullable, from: From::Path(name.split('.').map(|n| Segment::Field(n.into())).collect()) }
}

fn whole() -> Box<dyn Decoder> {
    let all = Column { name: "v".into(), ty: T::Json, nullable: true, from: From::Path(vec![]) };
    decode::open(Format::Json, &[all], &[0], None, DEPTH).unwrap()
}

/// A column of every type, the odd ones judged only.
fn typed() -> Box<dyn Decoder> {
    let columns = vec![
        column("at", T::Timestamp(None), false),
        column("b", T::Bool, true),
        column("i", T::Int32, true),
        column("l", T::Int64, true),
        column("f", T::Float32, true),
        column("d", T::Float64, true),
        column("n", T::Decimal(12, 2), true),
        column("s", T::String, true),
        column("x", T::Binary, true),
        column("day", T::Date, true),
        column("time", T::Time, true),
        column("local", T::TimestampLocal(None), true),
        column("ms", T::Timestamp(Some(EpochUnit::Millis)), true),
        column("u", T::Uuid, true),
        column("list", T::List(Box::new(T::Int64)), true),
        column("o", T::Struct(vec![("a".into(), T::String), ("b".into(), T::List(Box::new(T::Float64)))]), true),
        column("m", T::Map(Box::new(T::String), Box::new(T::Int64)), true),
        column("j", T::Json, true),
        column("o.a", T::String, true),
    ];
    let used: Vec<usize> = (0..columns.len()).step_by(2).collect();
    decode::open(Format::Json, &columns, &used, Some(0), DEPTH).unwrap()
}

/// How deep a text of valid JSON nests, and whether a `\u` escape of it is half a character.
fn depth_and_lone_surrogate(text: &str) -> (usize, bool) {
    let (mut depth, mut deepest, mut lone) = (0usize, 0, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '[' | '{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            ']' | '}' => depth -= 1,
            '"' => {
                let mut units: Vec<u16> = vec![];
                loop {
                    let c = rest.chars().next().unwrap();
                    rest = &rest[c.len_utf8()..];
                    match c {
                        '"' => break,
                        '\\' if rest.starts_with('u') => {
                            units.push(u16::from_str_radix(&rest[1..5], 16).unwrap());
                            rest = &rest[5..];
                        }
                        '\\' => {
                            units.push(u16::from(b'x'));
                            rest = &rest[1..];
                        }
                        c => units.extend(c.encode_utf16(&mut [0; 2]).iter()),
                    }
                }
                // Characters that stand for themselves are whole: only escapes can be halves.
                lone |= char::decode_utf16(units).any(|c| c.is_err());
            }
            _ => {}
        }
    }
    (deepest, lone)
}

fn expected(bytes: &[u8]) -> bool {
    let Ok(raw) = serde_json::from_slice::<Box<serde_json::value::RawValue>>(bytes) else { return false };
    let (depth, lone) = depth_and_lone_surrogate(raw.get());
    depth <= DEPTH && !lone
}

fn raw(bytes: &[u8]) -> RawBatch {
    let record = RawRecord { offset: 0, timestamp_ms: None, key: None, value: Some(0..bytes.len() as u32), headers: vec![], oversized: None };
    RawBatch { from: 0, to: 1, bytes: bytes.to_vec(), records: vec![record], ..RawBatch::default() }
}

thread_local! {
    static DECODERS: RefCell<(Box<dyn Decoder>, Box<dyn Decoder>)> = RefCell::new((whole(), typed()));
}

fn target(bytes: &[u8]) -> String {
    DECODERS.with_borrow_mut(|(whole, typed)| {
        let batch = raw(bytes);
        let decoded = whole.decode(&batch);
        assert_eq!(decoded.rows.len() + decoded.dead.len(), 1, "a record is read or dead");
        let valid = expected(bytes);
        assert_eq!(decoded.rows.len() == 1, valid, "read or dead, {:?}", decoded.dead);
        if valid {
            let text = arrow::array::AsArray::as_string::<i32>(decoded.batch.column(0));
            let own = std::str::from_utf8(bytes).unwrap().trim_matches([' ', '\n', '\r', '\t']);
            assert_eq!(arrow::array::Array::is_null(text, 0), own == "null", "null is null");
            assert!(own == "null" || text.value(0) == own, "the text is kept as it came");
        }
        // Whatever is declared, what is no JSON is dead; and a dead record leaves nothing behind.
        let decoded = typed.decode(&batch);
        assert_eq!((decoded.rows.len() + decoded.dead.len(), decoded.batch.num_rows()), (1, decoded.rows.len()));
        assert!(valid || decoded.rows.is_empty(), "what is no JSON was read by columns");
        match decoded.dead.first() {
            None => "read".into(),
            Some((_, reason)) => {
                assert!(!reason.is_empty() && reason.len() < 4096, "a reason that a person can read: {reason}");
                kind(reason)
            }
        }
    })
}

#[test]
fn json_record() {
    let mut suite = String::new();
    let file = std::fs::File::open(super::here().join("tests/data/json-test-suite/test_parsing.ndjson.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut suite).unwrap();
    let suite = suite.lines().map(|line| {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        base64::engine::general_purpose::STANDARD.decode(case["bytes_b64"].as_str().unwrap()).unwrap()
    });
    let words: [&[u8]; 22] = [
        b"\"at\":\"2026-01-31T10:00:00Z\"", b"\\ud83d\\ude00", b"\\ud83d", b"\\u0000", b"[", b"]", b"{", b"}", b":", b",", b"null", b"true", b"1e400", b"-0.0", b"1E-7",
        b"9223372036854775808", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\"9999-12-31T23:59:59.999999Z\"", b"[[[[[[[[", b"]]]]]]]]",
    ];
    drive("json_record", target, suite.collect(), &words);
}
