//! JSON records into declared columns: exact or dead.
//!
//! A record is checked whole (UTF-8, grammar, escapes, depth) in one pass that remembers, for each
//! declared column, where its value stands. Then every declared column is judged, in order, from
//! there; values go straight into the columns under construction, and a row that turns out dead
//! halfway is cut off again. Rules that a reader may ask for:
//!
//! - Of equal field names in one object the last counts, with everything under it.
//! - A path that leads nowhere is null, as is JSON's `null`.
//! - A record is an object, unless a column takes `$` or starts at an index (`[0]`).
//! - Numbers keep every digit: `1.0` and `1e2` are integers, `1.5` is none; a decimal column takes
//!   numbers in quotes too, no other column does.
//! - Depth counts open arrays and objects: `[[1]]` is 2.
//! - Of Kafka headers with one name the last counts.
//!
//! The scanner is our own because jiter's pull parser bounds the nesting that it skips at 200, a
//! number that cannot be set, and does not say that the strings it skips are UTF-8; with a second
//! pass for both there was nothing left to save.

mod number;
mod path;
mod scan;
mod time;
mod values;

#[cfg(test)]
mod property_test;
#[cfg(test)]
mod suite_test;
#[cfg(test)]
mod tests;

use super::{ColumnError, Decoded, Decoder};
use crate::pipeline::{Column, ColumnType, From};
use crate::source::{RawBatch, RawRecord};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use path::{Paths, Tokens};
use scan::{Scanner, Token};
use std::sync::Arc;
use values::{Scratch, Values, shorten};

/// Offsets of Arrow strings are 32 bits: a larger record could not be kept whatever its columns.
const MAX_RECORD_BYTES: usize = 1 << 30;

/// The columns of [`Decoded::batch`]: those that are used, in that order. Indices that `columns`
/// does not have are left out.
pub fn schema(columns: &[Column], used: &[usize]) -> SchemaRef {
    let fields: Vec<Field> = used.iter().filter_map(|i| columns.get(*i)).map(|c| c.ty.field(&c.name, c.nullable)).collect();
    Arc::new(Schema::new(fields))
}

/// Decodes the JSON records of one source.
pub struct JsonDecoder {
    schema: SchemaRef,
    /// All declared columns.
    columns: Vec<Judge>,
    /// Which of `columns` become Arrow columns, in order.
    used: Vec<usize>,
    paths: Paths,
    tokens: Tokens,
    max_depth: usize,
    scratch: Scratch,
}

struct Judge {
    /// The column's name, and its path where that is another.
    title: String,
    from: From,
    nullable: bool,
    is_time: bool,
    used: bool,
    values: Values,
}

impl JsonDecoder {
    /// See [`super::open`].
    pub fn new(columns: &[Column], used: &[usize], time_column: Option<usize>, max_depth: usize) -> Result<JsonDecoder, ColumnError> {
        if let Some(index) = used.iter().copied().chain(time_column).find(|i| *i >= columns.len()) {
            return Err(ColumnError::Undeclared { index, declared: columns.len() });
        }
        columns.iter().try_for_each(check_column)?;
        let judges = columns.iter().enumerate().map(|(i, column)| {
            let used = used.contains(&i);
            Judge {
                title: path::title(column),
                from: column.from.clone(),
                nullable: column.nullable,
                is_time: time_column == Some(i),
                used,
                values: if used { Values::new(&column.ty) } else { Values::judged(&column.ty) },
            }
        });
        Ok(JsonDecoder {
            schema: schema(columns, used),
            columns: judges.collect(),
            used: used.to_vec(),
            paths: Paths::new(columns),
            tokens: Tokens::new(columns.len()),
            max_depth,
            scratch: Scratch::default(),
        })
    }

    /// Appends the row of one record to all columns, or says why it is dead; columns may then
    /// hold a part of it.
    fn record(&mut self, raw: &RawBatch, record: &RawRecord) -> Result<(), String> {
        if let Some(size) = record.oversized {
            return Err(format!("record of {size} bytes is over max_record_bytes"));
        }
        let value = raw.slice(record.value.as_ref().ok_or("null payload, expected a JSON record")?);
        let text = self.check(value)?;
        for (i, judge) in self.columns.iter_mut().enumerate() {
            judge.append(raw, record, text, self.tokens.get(i), &mut self.scratch)?;
        }
        Ok(())
    }

    /// Checks the whole text and finds the columns' values.
    fn check<'a>(&mut self, value: &'a [u8]) -> Result<&'a str, String> {
        if value.is_empty() {
            return Err("empty payload, expected a JSON record".to_string());
        }
        if value.len() > MAX_RECORD_BYTES {
            return Err(format!("record of {} bytes, expected at most {MAX_RECORD_BYTES}", value.len()));
        }
        if value.starts_with(b"\xEF\xBB\xBF") {
            return Err("starts with a byte order mark, expected JSON".to_string());
        }
        let text = std::str::from_utf8(value).map_err(|e| format!("not valid UTF-8 at byte {}", e.valid_up_to()))?;
        self.tokens.clear();
        let mut scanner = Scanner::new(text, 0, self.max_depth, &mut self.scratch.open);
        let root = self.paths.scan(&mut scanner, text, &mut self.tokens, &mut self.scratch.bytes);
        let root = root.map_err(|malformed| malformed.describe(text, self.max_depth))?;
        if !self.paths.allows(root.kind) {
            return Err(format!("not a JSON object, found {}", shorten(root.text(text))));
        }
        Ok(text)
    }
}

impl Judge {
    #[inline]
    fn append(&mut self, raw: &RawBatch, record: &RawRecord, text: &str, token: Token, scratch: &mut Scratch) -> Result<(), String> {
        let null = match &self.from {
            From::Path(_) => {
                if let Err(misfit) = self.values.append(text, token, scratch) {
                    return Err(self.misfit(*misfit));
                }
                token.is_null()
            }
            _ => self.append_meta(raw, record)?,
        };
        if null && (self.is_time || !self.nullable) { Err(self.absent(token)) } else { Ok(()) }
    }

    #[cold]
    fn misfit(&self, misfit: values::Misfit) -> String {
        let values::Misfit { path, expected, found, why } = misfit;
        let at = if path.is_empty() { String::new() } else { format!(", at {}", path.trim_start_matches('.')) };
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        format!("column {}{at}: expected {expected}, found {found}{why}", self.title)
    }

    #[cold]
    fn absent(&self, token: Token) -> String {
        let found = match (&self.from, token.kind) {
            (From::Path(_), scan::Kind::Missing) => "nothing",
            _ => "null",
        };
        let expected = if self.is_time { "the event time" } else { "a value, since the column is not null" };
        format!("column {}: expected {expected}, found {found}", self.title)
    }

    /// Appends what the record says beside its payload; `true` when that is null.
    fn append_meta(&mut self, raw: &RawBatch, record: &RawRecord) -> Result<bool, String> {
        match &self.from {
            From::Partition => self.values.push_integer(raw.partition as i64),
            From::Offset => self.values.push_integer(record.offset),
            From::Timestamp => match record.timestamp_ms {
                None => {
                    self.values.append_null();
                    return Ok(true);
                }
                Some(ms) => {
                    let us = ms.checked_mul(1000).and_then(|us| time::in_range(us).ok());
                    self.values.push_integer(us.ok_or_else(|| format!("column {}: record time {ms} ms is not in the years 0001 to 9999", self.title))?);
                }
            },
            From::Key => match &record.key {
                None => {
                    self.values.append_null();
                    return Ok(true);
                }
                Some(key) => {
                    let key = raw.slice(key);
                    if self.values.is_string() && std::str::from_utf8(key).is_err() {
                        return Err(format!("column {}: expected a key in UTF-8, found {}", self.title, shorten(&String::from_utf8_lossy(key))));
                    }
                    self.values.push_bytes(key)?;
                }
            },
            From::Headers => {
                let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::with_capacity(record.headers.len());
                for (name, value) in &record.headers {
                    let name = raw.slice(name);
                    let name = std::str::from_utf8(name).map_err(|_| {
                        format!("column {}: expected header names in UTF-8, found {}", self.title, shorten(&String::from_utf8_lossy(name)))
                    })?;
                    headers.push((name, value.as_ref().map(|value| raw.slice(value))));
                }
                // The last of equal names, in a stable order.
                let mut seen = hashbrown::HashSet::new();
                headers.reverse();
                headers.retain(|(name, _)| seen.insert(*name));
                headers.reverse();
                self.values.push_map(&headers)?;
            }
            From::Path(_) => {}
        }
        Ok(false)
    }
}

impl Decoder for JsonDecoder {
    fn decode(&mut self, raw: &RawBatch) -> Decoded {
        let mut rows: Vec<u32> = Vec::with_capacity(raw.records.len());
        let mut dead = Vec::new();
        for column in &mut self.columns {
            column.values.reserve(raw.records.len());
        }
        for (i, record) in raw.records.iter().enumerate() {
            match self.record(raw, record) {
                Ok(()) => rows.push(i as u32),
                Err(reason) => {
                    self.columns.iter_mut().for_each(|column| column.values.truncate(rows.len()));
                    dead.push((i as u32, reason));
                }
            }
        }
        let mut arrays: Vec<_> = self.columns.iter_mut().map(|column| column.used.then(|| column.values.finish())).collect();
        self.columns.iter_mut().filter(|column| !column.used).for_each(|column| column.values.truncate(0));
        // A column may be asked for twice: every place gets the same array.
        let arrays: Vec<_> = self.used.iter().filter_map(|i| arrays[*i].as_mut().map(|array| array.clone())).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .expect("every column has one value per row, of its declared type, and no null where it is not null");
        Decoded { batch, rows, dead }
    }
}

fn check_column(column: &Column) -> Result<(), ColumnError> {
    let (from, expected, fits) = match &column.from {
        From::Path(_) => return check_type(&column.name, &column.ty),
        From::Key => ("_key", "string or binary", matches!(column.ty, ColumnType::String | ColumnType::Binary)),
        From::Partition => ("_partition", "int32", column.ty == ColumnType::Int32),
        From::Offset => ("_offset", "int64", column.ty == ColumnType::Int64),
        From::Timestamp => ("_timestamp", "timestamp", matches!(column.ty, ColumnType::Timestamp(_))),
        From::Headers => {
            let map = ColumnType::Map(Box::new(ColumnType::String), Box::new(ColumnType::Binary));
            ("_headers", "a map of string to binary", column.ty == map)
        }
    };
    if fits { Ok(()) } else { Err(ColumnError::Meta { column: column.name.clone(), from, expected, found: values::expected(&column.ty) }) }
}

fn check_type(column: &str, ty: &ColumnType) -> Result<(), ColumnError> {
    match ty {
        ColumnType::Decimal(precision, scale) if !(1..=38).contains(precision) || scale > precision => {
            Err(ColumnError::Decimal { column: column.to_string(), precision: *precision, scale: *scale })
        }
        ColumnType::List(item) => check_type(column, item),
        ColumnType::Struct(fields) => fields.iter().try_for_each(|(_, ty)| check_type(column, ty)),
        ColumnType::Map(key, value) => match **key {
            ColumnType::String | ColumnType::Int32 | ColumnType::Int64 => check_type(column, value),
            _ => Err(ColumnError::MapKey { column: column.to_string(), found: values::expected(key) }),
        },
        _ => Ok(()),
    }
}
