//! SQL over tables, and its answer as text: a table for people, NDJSON for programs.

use super::adapt::{is_uuid, uuid_to_text};
use crate::pipeline::sql::{bounded, write_uuids_out};
use crate::pipeline::{Column, ColumnType, From, TYPE_KEY};
use arrow::array::{Array, ArrayAccessor, AsArray, Float64Array, Int64Array, ListArray, MapArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, NullableEncoder, WriterBuilder, make_encoder};
use arrow::json::{Encoder, EncoderFactory, EncoderOptions, Writer};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::TableReference;
use datafusion::sql::parser::Statement;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, LazyLock};

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The text is not a query, or names what is not there. DataFusion's words, which name the
    /// offending part.
    #[error("cannot run the query: {0}")]
    Refused(String),
    /// It started and could not go on: a file is gone, the store is away, a value does not cast.
    #[error("the query failed: {0}")]
    Failed(String),
}

/// Plans `sql` over `tables` and starts it. A name may have two parts (`millpond.epochs`): the
/// first is a schema. Only queries are let through, no DDL, DML or settings.
///
/// Timestamps print as UTC whatever the machine's zone.
pub async fn run(tables: Vec<(String, Arc<dyn TableProvider>)>, sql: &str) -> Result<(SchemaRef, SendableRecordBatchStream), QueryError> {
    let refused = |e: DataFusionError| QueryError::Refused(e.strip_backtrace());
    let context = SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
    bounded(&context).into_iter().for_each(|function| context.register_udf(function.as_ref().clone()));
    let uuids = uuid_columns(&tables);
    for (name, table) in tables {
        let reference = match name.split_once('.') {
            None => TableReference::bare(name),
            Some((schema, table)) => {
                let catalog = context.catalog("datafusion").ok_or_else(|| QueryError::Failed("the session has no default catalog".to_string()))?;
                if catalog.schema(schema).is_none() {
                    catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new())).map_err(refused)?;
                }
                TableReference::partial(schema, table)
            }
        };
        context.register_table(reference, table).map_err(refused)?;
    }
    let only_queries = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let state = context.state();
    let mut statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect).map_err(refused)?;
    if let Statement::Statement(statement) = &mut statement
        && let Some((text, _)) = write_uuids_out(statement.as_mut(), &uuids).first()
    {
        return Err(QueryError::Refused(format!("'{text}' is no uuid")));
    }
    let plan = state.statement_to_plan(statement).await.map_err(refused)?;
    only_queries.verify_plan(&plan).map_err(refused)?;
    let frame = context.execute_logical_plan(plan).await.map_err(refused)?;
    let stream = frame.execute_stream().await.map_err(refused)?;
    Ok((stream.schema(), stream))
}

/// The columns that are uuids in every table that has a column of the name.
fn uuid_columns(tables: &[(String, Arc<dyn TableProvider>)]) -> Vec<Column> {
    let mut names: BTreeMap<String, bool> = BTreeMap::new();
    for (_, table) in tables {
        for field in table.schema().fields() {
            *names.entry(field.name().clone()).or_insert(true) &= is_uuid(field);
        }
    }
    let column = |name: String| Column { name, ty: ColumnType::Uuid, nullable: true, from: From::Path(vec![]) };
    names.into_iter().filter(|(_, uuid)| *uuid).map(|(name, _)| column(name)).collect()
}

/// `batches` as a table with borders, for a terminal. Nulls are empty cells. Ends with a line break.
pub fn human_table(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<String, QueryError> {
    let failed = |e: ArrowError| QueryError::Failed(e.to_string());
    let mut shown = vec![readable(&RecordBatch::new_empty(schema.clone())).map_err(failed)?];
    for batch in batches {
        shown.push(readable(batch).map_err(failed)?);
    }
    let options = FormatOptions::new().with_display_error(true);
    let table = pretty_format_batches_with_options(&shown, &options).map_err(failed)?;
    Ok(format!("{table}\n"))
}

/// Uuids as people write them.
fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.num_columns());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if is_uuid(field) && column.data_type() == &DataType::FixedSizeBinary(16) {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())));
            columns.push(uuid_to_text(column.as_fixed_size_binary()));
        } else {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

/// The name that several columns have.
pub fn named_twice(schema: &Schema) -> Option<&str> {
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)).map(|(_, name)| *name)
}

/// Writes rows as JSON objects, one a line, every column in each (null included). Integers and
/// decimals are numbers with all their digits; NaN and infinities, which JSON lacks, are "NaN", "Infinity" and "-Infinity";
/// timestamps are RFC 3339 (an instant ends in `Z`, a local one has no offset), dates
/// `YYYY-MM-DD`, uuids their text, binaries base64, `json` columns text.
pub struct Ndjson<W: Write> {
    writer: Writer<W, LineDelimited>,
}

impl<W: Write> Ndjson<W> {
    pub fn new(out: W) -> Self {
        Self { writer: WriterBuilder::new().with_explicit_nulls(true).with_encoder_factory(Arc::new(JsonTypes)).build(out) }
    }

    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        self.writer.write(batch).map_err(|e| QueryError::Failed(e.to_string()))
    }

    /// Returns what was written to, which it did not flush.
    pub fn finish(mut self) -> Result<W, QueryError> {
        self.writer.finish().map_err(|e| QueryError::Failed(e.to_string()))?;
        Ok(self.writer.into_inner())
    }
}

/// Where our JSON differs from Arrow's.
#[derive(Debug)]
struct JsonTypes;

impl EncoderFactory for JsonTypes {
    fn make_default_encoder<'a>(&self, field: &'a FieldRef, array: &'a dyn Array, options: &'a EncoderOptions) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::FixedSizeBinary(16) if field.metadata().get(TYPE_KEY).is_some_and(|t| t == "uuid") => Box::new(Bytes { array: array.as_fixed_size_binary(), text: uuid_text }),
            DataType::FixedSizeBinary(_) => Box::new(Bytes { array: array.as_fixed_size_binary(), text: base64_text }),
            DataType::Binary => Box::new(Bytes { array: array.as_binary::<i32>(), text: base64_text }),
            DataType::LargeBinary => Box::new(Bytes { array: array.as_binary::<i64>(), text: base64_text }),
            DataType::BinaryView => Box::new(Bytes { array: array.as_binary_view(), text: base64_text }),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                let values = cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone();
                Box::new(Floats { values, text: make_encoder(field, array, &PLAIN)? })
            }
            DataType::Timestamp(_, _) => {
                let values = cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone();
                Box::new(Times { values, text: make_encoder(field, array, &PLAIN)? })
            }
            // Arrow's own encoders of these hand the outer field down, which knows no inner uuid.
            DataType::List(item) => {
                let list = array.as_list::<i32>();
                Box::new(Items { list, items: make_encoder(item, list.values(), options)? })
            }
            DataType::Map(_, _) => {
                let map = array.as_map();
                let DataType::Struct(fields) = map.entries().data_type() else { return Ok(None) };
                let value = fields.last().unwrap_or(field);
                Box::new(Entries { map, keys: ArrayFormatter::try_new(map.keys(), &KEYS)?, values: make_encoder(value, map.values(), options)? })
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

const KEYS: FormatOptions<'static> = FormatOptions::new();

static PLAIN: LazyLock<EncoderOptions> = LazyLock::new(EncoderOptions::default);

/// Timestamps as Arrow writes them, but for times that no calendar has: those as their number.
struct Times<'a> {
    values: Int64Array,
    text: NullableEncoder<'a>,
}

impl Encoder for Times<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let start = out.len();
        self.text.encode(row, out);
        // With quotes in it that make it no JSON.
        if out[start..].starts_with(b"\"ERROR") {
            out.truncate(start);
            out.extend_from_slice(self.values.value(row).to_string().as_bytes());
        }
    }
}

/// Floats as Arrow writes them, but for what is no number of JSON.
struct Floats<'a> {
    values: Float64Array,
    text: NullableEncoder<'a>,
}

impl Encoder for Floats<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        match self.values.value(row) {
            v if v.is_nan() => out.extend_from_slice(br#""NaN""#),
            f64::INFINITY => out.extend_from_slice(br#""Infinity""#),
            f64::NEG_INFINITY => out.extend_from_slice(br#""-Infinity""#),
            _ => self.text.encode(row, out),
        }
    }
}

struct Items<'a> {
    list: &'a ListArray,
    items: NullableEncoder<'a>,
}

impl Encoder for Items<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let offsets = self.list.value_offsets();
        out.push(b'[');
        for at in offsets[row] as usize..offsets[row + 1] as usize {
            if at > offsets[row] as usize {
                out.push(b',');
            }
            encode_or_null(&mut self.items, at, out);
        }
        out.push(b']');
    }
}

/// A map as an object; keys that are not text become text.
struct Entries<'a> {
    map: &'a MapArray,
    keys: ArrayFormatter<'a>,
    values: NullableEncoder<'a>,
}

impl Encoder for Entries<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let offsets = self.map.value_offsets();
        out.push(b'{');
        for at in offsets[row] as usize..offsets[row + 1] as usize {
            if at > offsets[row] as usize {
                out.push(b',');
            }
            let key = serde_json::Value::String(self.keys.value(at).to_string());
            out.extend_from_slice(key.to_string().as_bytes());
            out.push(b':');
            encode_or_null(&mut self.values, at, out);
        }
        out.push(b'}');
    }
}

fn encode_or_null(encoder: &mut NullableEncoder<'_>, at: usize, out: &mut Vec<u8>) {
    if encoder.is_null(at) { out.extend_from_slice(b"null") } else { encoder.encode(at, out) }
}

struct Bytes<A> {
    array: A,
    /// Needs no escapes in JSON.
    text: fn(&[u8]) -> String,
}

impl<'a, A: ArrayAccessor<Item = &'a [u8]>> Encoder for Bytes<A> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice((self.text)(self.array.value(row)).as_bytes());
        out.push(b'"');
    }
}

fn uuid_text(bytes: &[u8]) -> String {
    uuid::Uuid::from_slice(bytes).map_or_else(|_| base64_text(bytes), |u| u.to_string())
}

fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
