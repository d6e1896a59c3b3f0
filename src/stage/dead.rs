//! Rows of the dead-letter tables: what could not be read or computed, as it came.

use crate::source::RawBatch;
use arrow::array::{Array, ArrayRef, BinaryBuilder, Int32Builder, Int64Builder, MapBuilder, MapFieldNames, RecordBatch, StringBuilder, TimestampMicrosecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Where a record came from and why it is dead.
fn lineage() -> Vec<Field> {
    vec![
        Field::new("_topic", DataType::Utf8, true),
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
        Field::new("_timestamp", instant(), true),
        Field::new("_key", DataType::Binary, true),
        Field::new("_reason", DataType::Utf8, true),
    ]
}

/// Columns of `<source>__dead`.
pub fn dead_schema() -> SchemaRef {
    let entry = Field::new("entries", DataType::Struct(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)].into()), false);
    let mut fields = lineage();
    fields.push(Field::new("_table", DataType::Utf8, true));
    fields.push(Field::new("_value", DataType::Binary, true));
    fields.push(Field::new("_headers", DataType::Map(Arc::new(entry), false), true));
    Arc::new(Schema::new(fields))
}

/// Rows of a dead-letter table, as they gather.
pub struct DeadRows {
    topic: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    timestamp: TimestampMicrosecondBuilder,
    key: BinaryBuilder,
    reason: StringBuilder,
    table: StringBuilder,
    value: BinaryBuilder,
    headers: MapBuilder<StringBuilder, BinaryBuilder>,
    pub bytes: usize,
}

impl Default for DeadRows {
    fn default() -> Self {
        let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
        Self {
            topic: StringBuilder::new(),
            partition: Int32Builder::new(),
            offset: Int64Builder::new(),
            timestamp: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            key: BinaryBuilder::new(),
            reason: StringBuilder::new(),
            table: StringBuilder::new(),
            value: BinaryBuilder::new(),
            headers: MapBuilder::new(Some(names), StringBuilder::new(), BinaryBuilder::new()),
            bytes: 0,
        }
    }
}

impl DeadRows {
    /// A record as it came, and why it is dead; `table` when only one table could not take it.
    pub fn push(&mut self, topic: &str, raw: &RawBatch, record: u32, reason: &str, table: Option<&str>) {
        let record = &raw.records[record as usize];
        let slice = |r: &Option<std::ops::Range<u32>>| r.as_ref().map(|r| raw.slice(r));
        let value = slice(&record.value);
        self.topic.append_value(topic);
        self.partition.append_value(raw.partition);
        self.offset.append_value(record.offset);
        self.timestamp.append_option(record.timestamp_ms.and_then(|ms| ms.checked_mul(1000)));
        self.key.append_option(slice(&record.key));
        self.reason.append_value(reason);
        self.table.append_option(table);
        self.value.append_option(value);
        for (name, value) in &record.headers {
            self.headers.keys().append_value(String::from_utf8_lossy(raw.slice(name)));
            self.headers.values().append_option(slice(value));
        }
        // Both sides of an entry were appended together.
        let _ = self.headers.append(true);
        self.bytes += 64 + reason.len() + value.map_or(0, <[u8]>::len);
    }

    /// A value that was lost when a window was emitted: there is no record to show.
    pub fn push_emitted(&mut self, reason: &str, table: &str) {
        self.topic.append_null();
        self.partition.append_null();
        self.offset.append_null();
        self.timestamp.append_null();
        self.key.append_null();
        self.reason.append_value(reason);
        self.table.append_value(table);
        self.value.append_null();
        let _ = self.headers.append(false);
        self.bytes += 64 + reason.len();
    }

    pub fn finish(mut self) -> Result<Option<RecordBatch>, arrow::error::ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.topic.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.key.finish()),
            Arc::new(self.reason.finish()),
            Arc::new(self.table.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.headers.finish()),
        ];
        if columns[0].is_empty() {
            return Ok(None);
        }
        RecordBatch::try_new(dead_schema(), columns).map(Some)
    }
}
