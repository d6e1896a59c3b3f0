//! A column under construction: JSON values in, one Arrow array out.
//!
//! The storage is plain vectors whose lengths follow from the number of rows, so that a row that
//! turns out dead halfway is taken back by [`Values::truncate`], whatever it had appended.

use super::number::{self, Inexact};
use super::scan::{Kind, Scanner, Token, unescape};
use super::time;
use crate::pipeline::{ColumnType, EpochUnit};
use arrow::array::*;
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::sync::Arc;

/// Standard alphabet, padding optional; bits that no byte takes must be zero.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// A value that its column cannot hold.
#[derive(Debug)]
pub struct Misfit {
    /// Below the column: `[3].name`, or empty.
    pub path: String,
    pub expected: String,
    /// As it stands in the record, shortened.
    pub found: String,
    /// May be empty.
    pub why: &'static str,
}

/// What decoding needs between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    pub bytes: Vec<u8>,
    /// For [`Scanner`].
    pub open: Vec<bool>,
}

enum Reject {
    Because(&'static str),
    Below(Box<Misfit>),
}

impl std::convert::From<&'static str> for Reject {
    fn from(why: &'static str) -> Reject {
        Reject::Because(why)
    }
}

impl std::convert::From<Box<Misfit>> for Reject {
    fn from(below: Box<Misfit>) -> Reject {
        Reject::Below(below)
    }
}

/// The kind of the value alone says that it is wrong.
const KIND: Reject = Reject::Because("");

/// One column, or a child of one.
#[derive(Debug)]
pub struct Values {
    ty: ColumnType,
    nulls: NullBufferBuilder,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// For strings and JSON that no table reads: judged, not kept.
    Judged,
    Bool(BooleanBufferBuilder),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal(Vec<i128>, u8, u8),
    /// String, binary and JSON: offsets (one more than rows) and bytes.
    Bytes(Vec<i32>, Vec<u8>),
    Uuid(Vec<u8>),
    List(Vec<i32>, Box<Values>),
    Struct(Vec<(String, Values)>),
    Map(Vec<i32>, Box<Values>, Box<Values>),
}

impl Values {
    pub fn new(ty: &ColumnType) -> Values {
        use ColumnType as T;
        let store = match ty {
            T::Bool => Store::Bool(BooleanBufferBuilder::new(0)),
            T::Int32 | T::Date => Store::Int32(Vec::new()),
            T::Int64 | T::Time | T::Timestamp(_) | T::TimestampLocal(_) => Store::Int64(Vec::new()),
            T::Float32 => Store::Float32(Vec::new()),
            T::Float64 => Store::Float64(Vec::new()),
            T::Decimal(p, s) => Store::Decimal(Vec::new(), *p, *s),
            T::String | T::Json | T::Binary => Store::Bytes(vec![0], Vec::new()),
            T::Uuid => Store::Uuid(Vec::new()),
            T::List(item) => Store::List(vec![0], Box::new(Values::new(item))),
            T::Struct(fields) => Store::Struct(fields.iter().map(|(name, ty)| (name.clone(), Values::new(ty))).collect()),
            T::Map(key, value) => Store::Map(vec![0], Box::new(Values::new(key)), Box::new(Values::new(value))),
        };
        Values { ty: ty.clone(), nulls: NullBufferBuilder::new(0), store }
    }

    /// A column that is judged but not kept: what it appends is to be truncated, never finished.
    pub fn judged(ty: &ColumnType) -> Values {
        match ty {
            ColumnType::String | ColumnType::Json => Values { ty: ty.clone(), nulls: NullBufferBuilder::new(0), store: Store::Judged },
            _ => Values::new(ty),
        }
    }

    /// Makes room for this many rows.
    pub fn reserve(&mut self, rows: usize) {
        match &mut self.store {
            Store::Int32(v) => v.reserve(rows),
            Store::Int64(v) => v.reserve(rows),
            Store::Float32(v) => v.reserve(rows),
            Store::Float64(v) => v.reserve(rows),
            Store::Decimal(v, ..) => v.reserve(rows),
            Store::Bytes(offsets, bytes) => {
                offsets.reserve(rows);
                bytes.reserve(rows * 8);
            }
            Store::List(offsets, _) | Store::Map(offsets, ..) => offsets.reserve(rows),
            Store::Uuid(v) => v.reserve(rows * 16),
            Store::Struct(fields) => fields.iter_mut().for_each(|(_, field)| field.reserve(rows)),
            Store::Bool(_) | Store::Judged => {}
        }
    }

    pub fn append_null(&mut self) {
        self.nulls.append_null();
        match &mut self.store {
            Store::Judged => {}
            Store::Bool(v) => v.append(false),
            Store::Int32(v) => v.push(0),
            Store::Int64(v) => v.push(0),
            Store::Float32(v) => v.push(0.0),
            Store::Float64(v) => v.push(0.0),
            Store::Decimal(v, ..) => v.push(0),
            Store::Bytes(offsets, _) | Store::List(offsets, _) | Store::Map(offsets, ..) => offsets.push(last(offsets)),
            Store::Uuid(v) => v.extend_from_slice(&[0; 16]),
            Store::Struct(fields) => fields.iter_mut().for_each(|(_, field)| field.append_null()),
        }
    }

    /// Appends the value of `token`; a missing one is null. After an error the column must be
    /// truncated to its last whole row.
    #[inline]
    pub fn append(&mut self, text: &str, token: Token, scratch: &mut Scratch) -> Result<(), Box<Misfit>> {
        if token.is_null() {
            self.append_null();
            return Ok(());
        }
        match self.push(text, token, scratch) {
            Ok(()) => {
                self.nulls.append_non_null();
                Ok(())
            }
            Err(Reject::Below(misfit)) => Err(misfit),
            Err(Reject::Because(why)) => Err(self.misfit(shorten(token.text(text)), why)),
        }
    }

    #[cold]
    fn misfit(&self, found: String, why: &'static str) -> Box<Misfit> {
        Box::new(Misfit { path: String::new(), expected: expected(&self.ty), found, why })
    }

    fn push(&mut self, text: &str, token: Token, scratch: &mut Scratch) -> Result<(), Reject> {
        let number = || match token.kind {
            Kind::Integer | Kind::Number => Ok(token.text(text)),
            _ => Err(KIND),
        };
        match &mut self.store {
            Store::Judged => {
                if matches!(self.ty, ColumnType::String) && !token.is_text() {
                    return Err(KIND);
                }
            }
            Store::Bool(v) => match token.kind {
                Kind::True => v.append(true),
                Kind::False => v.append(false),
                _ => return Err(KIND),
            },
            Store::Int32(v) if matches!(self.ty, ColumnType::Date) => v.push(time::date(string(text, token, &mut scratch.bytes)?.as_bytes())?),
            Store::Int32(v) => v.push(int32(number()?)?),
            Store::Int64(v) => v.push(match &self.ty {
                ColumnType::Timestamp(unit) | ColumnType::TimestampLocal(unit) if !token.is_text() => epoch(number()?, *unit)?,
                ColumnType::Timestamp(_) => time::timestamp(string(text, token, &mut scratch.bytes)?.as_bytes())?,
                ColumnType::TimestampLocal(_) => time::timestamp_local(string(text, token, &mut scratch.bytes)?.as_bytes())?,
                ColumnType::Time => time::time(string(text, token, &mut scratch.bytes)?.as_bytes())?,
                _ => int64(number()?)?,
            }),
            // The nearest float is what a float column promises; an overflow is not near.
            Store::Float32(v) => v.push(number()?.parse().ok().filter(|f: &f32| f.is_finite()).ok_or("out of range")?),
            Store::Float64(v) => v.push(number()?.parse().ok().filter(|f: &f64| f.is_finite()).ok_or("out of range")?),
            Store::Decimal(v, precision, scale) => {
                let text = if token.is_text() { quoted_number(text, token, scratch)? } else { number()? };
                v.push(number::decimal(text.as_bytes(), *precision, *scale).map_err(|inexact| match inexact {
                    Inexact::Fraction => "more digits behind the point than the scale has",
                    Inexact::Range => "more digits before the point than precision and scale leave",
                })?);
            }
            Store::Bytes(offsets, bytes) => {
                match &self.ty {
                    ColumnType::Json => bytes.extend_from_slice(token.text(text).as_bytes()),
                    ColumnType::Binary => {
                        let encoded = string(text, token, &mut scratch.bytes)?;
                        // All of the padding or none: the crate would take a part of it too.
                        if encoded.ends_with('=') && encoded.len() % 4 != 0 {
                            return Err(Reject::Because("not base64"));
                        }
                        BASE64.decode_vec(encoded, bytes).map_err(|_| "not base64")?;
                    }
                    _ => match token.kind {
                        Kind::Text => bytes.extend_from_slice(token.inner(text).as_bytes()),
                        Kind::EscapedText => unescape(token.inner(text), bytes),
                        _ => return Err(KIND),
                    },
                }
                offsets.push(offset(bytes.len())?);
            }
            Store::Uuid(v) => {
                let hyphenated = string(text, token, &mut scratch.bytes)?;
                // Of the forms that the crate reads only the hyphenated one has 36 characters.
                let uuid = uuid::Uuid::try_parse(hyphenated).ok().filter(|_| hyphenated.len() == 36);
                v.extend_from_slice(uuid.ok_or("not of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")?.as_bytes());
            }
            Store::List(offsets, items) => {
                if token.kind != Kind::Array {
                    return Err(KIND);
                }
                let mut at = token.start as usize;
                let mut index = 0;
                while let Some(item) = next(text, &mut at, false, scratch)? {
                    items.append(text, item.value, scratch).map_err(|misfit| under(misfit, || format!("[{index}]")))?;
                    index += 1;
                }
                let end = last(offsets) as usize + index;
                offsets.push(offset(end)?);
            }
            Store::Struct(fields) => {
                if token.kind != Kind::Object {
                    return Err(KIND);
                }
                let mut tokens = vec![Token::MISSING; fields.len()];
                let mut at = token.start as usize;
                while let Some(member) = next(text, &mut at, true, scratch)? {
                    let name = string(text, member.key, &mut scratch.bytes)?;
                    if let Some(i) = fields.iter().position(|(field, _)| field == name) {
                        tokens[i] = member.value;
                    }
                }
                for ((name, field), token) in fields.iter_mut().zip(tokens) {
                    field.append(text, token, scratch).map_err(|misfit| under(misfit, || format!(".{name}")))?;
                }
            }
            Store::Map(offsets, keys, values) => {
                if token.kind != Kind::Object {
                    return Err(KIND);
                }
                let mut entries: Vec<(Key, Token)> = Vec::new();
                let mut places: hashbrown::HashMap<Key, usize> = hashbrown::HashMap::new();
                let mut at = token.start as usize;
                while let Some(member) = next(text, &mut at, true, scratch)? {
                    let key = keys.key(text, member.key, scratch)?;
                    // A key has one value, the last, at the place where it came first.
                    let place = *places.entry(key.clone()).or_insert(entries.len());
                    if place == entries.len() {
                        entries.push((key, member.value));
                    } else {
                        entries[place].1 = member.value;
                    }
                }
                for (key, value) in entries {
                    values.append(text, value, scratch).map_err(|misfit| under(misfit, || format!("[{key}]")))?;
                    keys.push_key(key)?;
                }
                let end = keys.len();
                offsets.push(offset(end)?);
            }
        }
        Ok(())
    }

    /// The key of a map that a field's name stands for.
    fn key(&self, text: &str, name: Token, scratch: &mut Scratch) -> Result<Key, Box<Misfit>> {
        let found = string(text, name, &mut scratch.bytes).unwrap_or_default();
        let not_a_number = |why| self.misfit(shorten(&format!("the key {found:?}")), why);
        // Only the one way to write an integer, so that a key has one text.
        let integer = || match found.strip_prefix('-').unwrap_or(found).as_bytes() {
            b"0" if found.len() == 1 => Ok(0),
            [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => found.parse().map_err(|_| not_a_number("out of range")),
            _ => Err(not_a_number("")),
        };
        match self.ty {
            ColumnType::Int32 => i32::try_from(integer()?).map(|key| Key::Int(key as i64)).map_err(|_| not_a_number("out of range")),
            ColumnType::Int64 => Ok(Key::Int(integer()?)),
            _ => Ok(Key::Text(found.to_string())),
        }
    }

    fn push_key(&mut self, key: Key) -> Result<(), &'static str> {
        match (key, &mut self.store) {
            (Key::Text(key), Store::Bytes(..)) => return self.push_bytes(key.as_bytes()),
            // `key` checked the range against the type.
            (Key::Int(key), Store::Int32(v)) => v.push(key as i32),
            (Key::Int(key), Store::Int64(v)) => v.push(key),
            _ => return Err("map keys are strings or integers"),
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Appends bytes to a string or binary column; for a string the caller knows that they are UTF-8.
    pub fn push_bytes(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if let Store::Bytes(offsets, bytes) = &mut self.store {
            bytes.extend_from_slice(value);
            offsets.push(offset(bytes.len())?);
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Appends to an int32, int64 or timestamp (microseconds) column; the value fits the type.
    pub fn push_integer(&mut self, value: i64) {
        match &mut self.store {
            Store::Int32(v) => v.push(value as i32),
            Store::Int64(v) => v.push(value),
            _ => {}
        }
        self.nulls.append_non_null();
    }

    /// Appends to a map of string to binary.
    pub fn push_map(&mut self, entries: &[(&str, Option<&[u8]>)]) -> Result<(), &'static str> {
        if let Store::Map(offsets, keys, values) = &mut self.store {
            for (name, value) in entries {
                keys.push_bytes(name.as_bytes())?;
                match value {
                    Some(value) => values.push_bytes(value)?,
                    None => values.append_null(),
                }
            }
            offsets.push(offset(keys.len())?);
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Its bytes must be UTF-8.
    pub fn is_string(&self) -> bool {
        self.ty == ColumnType::String
    }

    fn len(&self) -> usize {
        self.nulls.len()
    }

    /// Takes back all rows from `rows` on, whole ones and what a failed append left.
    pub fn truncate(&mut self, rows: usize) {
        self.nulls.truncate(rows);
        match &mut self.store {
            Store::Judged => {}
            Store::Bool(v) => v.truncate(rows),
            Store::Int32(v) => v.truncate(rows),
            Store::Int64(v) => v.truncate(rows),
            Store::Float32(v) => v.truncate(rows),
            Store::Float64(v) => v.truncate(rows),
            Store::Decimal(v, ..) => v.truncate(rows),
            Store::Bytes(offsets, bytes) => {
                offsets.truncate(rows + 1);
                bytes.truncate(last(offsets) as usize);
            }
            Store::Uuid(v) => v.truncate(rows * 16),
            Store::List(offsets, items) => {
                offsets.truncate(rows + 1);
                items.truncate(last(offsets) as usize);
            }
            Store::Struct(fields) => fields.iter_mut().for_each(|(_, field)| field.truncate(rows)),
            Store::Map(offsets, keys, values) => {
                offsets.truncate(rows + 1);
                keys.truncate(last(offsets) as usize);
                values.truncate(last(offsets) as usize);
            }
        }
    }

    /// The array of everything appended; the column is empty then.
    pub fn finish(&mut self) -> ArrayRef {
        let rows = self.nulls.len();
        let nulls = self.nulls.finish();
        let ty = self.ty.arrow();
        match &mut self.store {
            Store::Judged => new_null_array(&ty, rows),
            Store::Bool(v) => Arc::new(BooleanArray::new(v.finish(), nulls)),
            Store::Int32(v) => match ty {
                DataType::Date32 => Arc::new(Date32Array::new(std::mem::take(v).into(), nulls)),
                _ => Arc::new(Int32Array::new(std::mem::take(v).into(), nulls)),
            },
            Store::Int64(v) => {
                let values: ScalarBuffer<i64> = std::mem::take(v).into();
                match ty {
                    DataType::Timestamp(_, zone) => Arc::new(TimestampMicrosecondArray::new(values, nulls).with_timezone_opt(zone)),
                    DataType::Time64(_) => Arc::new(Time64MicrosecondArray::new(values, nulls)),
                    _ => Arc::new(Int64Array::new(values, nulls)),
                }
            }
            Store::Float32(v) => Arc::new(Float32Array::new(std::mem::take(v).into(), nulls)),
            Store::Float64(v) => Arc::new(Float64Array::new(std::mem::take(v).into(), nulls)),
            Store::Decimal(v, ..) => Arc::new(Decimal128Array::new(std::mem::take(v).into(), nulls).with_data_type(ty)),
            Store::Bytes(offsets, bytes) => {
                let offsets = take_offsets(offsets);
                let bytes = Buffer::from_vec(std::mem::take(bytes));
                match ty {
                    DataType::Binary => Arc::new(BinaryArray::new(offsets, bytes, nulls)),
                    _ => Arc::new(StringArray::new(offsets, bytes, nulls)),
                }
            }
            Store::Uuid(v) => Arc::new(FixedSizeBinaryArray::new(16, Buffer::from_vec(std::mem::take(v)), nulls)),
            Store::List(offsets, items) => match ty {
                DataType::List(item) => Arc::new(ListArray::new(item, take_offsets(offsets), items.finish(), nulls)),
                _ => unreachable!("the arrow type of a list is a list"),
            },
            Store::Struct(fields) => match ty {
                DataType::Struct(arrow_fields) => {
                    let columns: Vec<_> = fields.iter_mut().map(|(_, field)| field.finish()).collect();
                    match columns.is_empty() {
                        true => Arc::new(StructArray::new_empty_fields(rows, nulls)),
                        false => Arc::new(StructArray::new(arrow_fields, columns, nulls)),
                    }
                }
                _ => unreachable!("the arrow type of a struct is a struct"),
            },
            Store::Map(offsets, keys, values) => match ty {
                DataType::Map(entries, ordered) => {
                    let DataType::Struct(fields) = entries.data_type() else { unreachable!("the entries of a map are a struct") };
                    let pairs = StructArray::new(fields.clone(), vec![keys.finish(), values.finish()], None);
                    Arc::new(MapArray::new(entries, take_offsets(offsets), pairs, nulls, ordered))
                }
                _ => unreachable!("the arrow type of a map is a map"),
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Int(i64),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Text(text) => write!(f, "\"{}\"", shorten(text)),
            Key::Int(key) => write!(f, "{key}"),
        }
    }
}

#[inline(always)]
fn last(offsets: &[i32]) -> i32 {
    offsets.last().copied().unwrap_or(0)
}

#[inline(always)]
fn offset(end: usize) -> Result<i32, &'static str> {
    i32::try_from(end).map_err(|_| "more than 2 GiB in one batch of a column")
}

/// They start at 0 and never fall, since every append pushes the length so far.
fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(std::mem::replace(offsets, vec![0]).into())
}

struct Member {
    /// [`Token::MISSING`] in an array.
    key: Token,
    value: Token,
}

/// The next member of the container at `at`, which is moved behind it. At first `at` is the
/// opening bracket. The text was checked whole before, so that the grammar cannot fail here.
fn next(text: &str, at: &mut usize, object: bool, scratch: &mut Scratch) -> Result<Option<Member>, &'static str> {
    const CHECKED: &str = "the text changed while it was read";
    let first = matches!(text.as_bytes().get(*at), Some(b'{' | b'['));
    let mut scanner = Scanner::new(text, *at, usize::MAX, &mut scratch.open);
    let found = if first { scanner.enter(object) } else { scanner.separator(object) };
    if !found.map_err(|_| CHECKED)? {
        return Ok(None);
    }
    let key = if object { scanner.key().map_err(|_| CHECKED)? } else { Token::MISSING };
    let value = scanner.value().map_err(|_| CHECKED)?;
    scanner.space();
    *at = scanner.position();
    Ok(Some(Member { key, value }))
}

/// What the string stands for.
#[inline]
fn string<'a>(text: &'a str, token: Token, scratch: &'a mut Vec<u8>) -> Result<&'a str, Reject> {
    match token.kind {
        Kind::Text => Ok(token.inner(text)),
        Kind::EscapedText => {
            scratch.clear();
            unescape(token.inner(text), scratch);
            std::str::from_utf8(scratch).map_err(|_| Reject::Because("not UTF-8"))
        }
        _ => Err(KIND),
    }
}

/// Decimals are often quoted so that no reader takes them for floats: a string that is a JSON
/// number, and nothing else, is one.
fn quoted_number<'a>(text: &'a str, token: Token, scratch: &'a mut Scratch) -> Result<&'a str, Reject> {
    let inner = string(text, token, &mut scratch.bytes)?;
    let mut scanner = Scanner::new(inner, 0, 0, &mut scratch.open);
    match scanner.value() {
        Ok(Token { kind: Kind::Integer | Kind::Number, end, .. }) if end as usize == inner.len() => Ok(inner),
        _ => Err(Reject::Because("the string is not a number")),
    }
}

fn integral(inexact: Inexact) -> &'static str {
    match inexact {
        Inexact::Fraction => "not a whole number",
        Inexact::Range => "out of range",
    }
}

fn int64(text: &str) -> Result<i64, &'static str> {
    number::int64(text.as_bytes()).map_err(integral)
}

fn int32(text: &str) -> Result<i32, &'static str> {
    i32::try_from(int64(text)?).map_err(|_| "out of range")
}

fn epoch(text: &str, unit: Option<EpochUnit>) -> Result<i64, &'static str> {
    let scale = match unit.ok_or("a number, and no unit is declared for numbers")? {
        EpochUnit::Seconds => 6,
        EpochUnit::Millis => 3,
        EpochUnit::Micros => 0,
        EpochUnit::Nanos => -3,
    };
    let us = number::scaled(text.as_bytes(), scale).map_err(|inexact| match inexact {
        Inexact::Fraction => "more precise than a microsecond",
        Inexact::Range => "years run from 0001 to 9999",
    })?;
    time::in_range(i64::try_from(us).map_err(|_| "years run from 0001 to 9999")?)
}

#[cold]
fn under(mut misfit: Box<Misfit>, step: impl FnOnce() -> String) -> Box<Misfit> {
    misfit.path.insert_str(0, &step());
    misfit
}

/// A type as the user declared it, as far as a reason needs it.
#[cold]
pub fn expected(ty: &ColumnType) -> String {
    match ty {
        ColumnType::Bool => "bool".into(),
        ColumnType::Int32 => "int32".into(),
        ColumnType::Int64 => "int64".into(),
        ColumnType::Float32 => "float32".into(),
        ColumnType::Float64 => "float64".into(),
        ColumnType::Decimal(p, s) => format!("decimal({p},{s})"),
        ColumnType::String => "string".into(),
        ColumnType::Binary => "binary (a base64 string)".into(),
        ColumnType::Date => "date (YYYY-MM-DD)".into(),
        ColumnType::Time => "time (hh:mm:ss)".into(),
        ColumnType::Timestamp(_) => "timestamp".into(),
        ColumnType::TimestampLocal(_) => "timestamp_local".into(),
        ColumnType::Uuid => "uuid".into(),
        ColumnType::List(_) => "list (a JSON array)".into(),
        ColumnType::Struct(_) => "struct (a JSON object)".into(),
        ColumnType::Map(..) => "map (a JSON object)".into(),
        ColumnType::Json => "json".into(),
    }
}

/// At most about 40 characters on one line.
#[cold]
pub fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
