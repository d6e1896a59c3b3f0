//! Writes the Parquet files of one table in one format, one file per partition.
//!
//! Each open file holds its encoders in memory, so that not more than [`MAX_OPEN_PARTITIONS`] are open (FAULTS 66). Rows of
//! further partitions wait as they are, and are encoded partition by partition at the end, or when they are many.

use super::bounds::StatsBuilder;
use super::file_layout::file_layout;
use super::layout::{children, field_id, is_uuid, type_name};
use super::partition::{PartitionError, PartitionSplitter, partition_path, time_text};
use super::{DataFile, Scalar, TableSpec};
use crate::pipeline::TableFormatKind;
use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions, StringArray, StructArray};
use arrow::datatypes::*;
use bytes::Bytes;
use ::parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use ::parquet::arrow::ArrowSchemaConverter;
use ::parquet::basic::{Compression, LogicalType, Type as PhysicalType, ZstdLevel};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use ::parquet::schema::types::{SchemaDescriptor, Type, TypePtr};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Files of one table that may be open at once.
pub const MAX_OPEN_PARTITIONS: usize = 256;

/// Bytes of rows that wait for a file, in memory, before they are encoded: a partition may have several files then.
const MAX_WAITING_BYTES: usize = 32 << 20;

/// Rows of a row group at most.
const ROW_GROUP_ROWS: usize = 1_000_000;

/// What the rows of one epoch make is small, written once and compacted later: level 3 takes two to
/// three times as long for them, and gains nothing where values differ.
const DEFAULT_LEVEL: &str = "1";

/// A dictionary above this is given up for plain values. Looking values up in one that outgrows the
/// processor's caches costs more than compressing them plain, and saves next to nothing.
const DICTIONARY_BYTES: usize = 64 << 10;
/// The same for strings and binaries, whose values are longer.
const TEXT_DICTIONARY_BYTES: usize = 256 << 10;

/// Why rows cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("table `{table}` has the property {key} = `{value}`: expected {expected}")]
    Property { table: String, key: &'static str, value: String, expected: &'static str },
    #[error("a batch for table `{table}` has {found} where the table has {expected}")]
    Mismatch { table: String, expected: String, found: String },
    #[error("table `{table}`: {source}")]
    Partition { table: String, source: PartitionError },
    #[error("table `{table}`: {source}")]
    Parquet { table: String, source: ParquetError },
}

/// Encodes the rows of one table in one format, in memory.
pub struct ParquetStager {
    spec: Arc<TableSpec>,
    format: TableFormatKind,
    folder: String,
    file_name: Box<dyn FnMut() -> String + Send>,
    splitter: PartitionSplitter,
    /// Of the table's columns, those that are in the files.
    kept: Vec<usize>,
    schema: SchemaRef,
    parquet: SchemaDescriptor,
    properties: WriterProperties,
    /// By number: every file that was begun.
    files: Vec<StagedFile>,
    /// Partition tuple, as JSON, to the file that its next rows go to.
    by_partition: HashMap<String, usize>,
    open: usize,
    waiting_bytes: usize,
    max_open: usize,
    max_waiting_bytes: usize,
}

enum StagedFile {
    Open(Box<OpenFile>),
    Waiting { partition: Vec<Option<Scalar>>, rows: Vec<RecordBatch> },
    Done(Box<DataFile>, Bytes),
}

struct OpenFile {
    path: String,
    partition: Vec<Option<Scalar>>,
    writer: ArrowWriter<Vec<u8>>,
    stats: StatsBuilder,
    records: u64,
}

impl OpenFile {
    fn write(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        self.stats.update(rows);
        self.records += rows.num_rows() as u64;
        self.writer.write(rows)
    }

    fn finish(mut self) -> Result<(DataFile, Bytes), ParquetError> {
        let footer = self.writer.finish()?;
        let bytes = Bytes::from(std::mem::take(self.writer.inner_mut()));
        let split_offsets = footer
            .row_groups()
            .iter()
            .filter_map(|g| g.columns().iter().map(|c| c.dictionary_page_offset().unwrap_or(c.data_page_offset()).min(c.data_page_offset())).min())
            .collect();
        let data_file = DataFile {
            path: self.path,
            bytes: bytes.len() as u64,
            records: self.records,
            partition: self.partition,
            columns: self.stats.finish(&footer),
            split_offsets,
        };
        Ok((data_file, bytes))
    }
}

impl ParquetStager {
    /// `folder` is the table's data folder, relative to the lake's root; `file_name` gives names
    /// (with their suffix) that are used once.
    ///
    /// # Errors
    /// Partition fields that the columns do not allow, or a bad `write.parquet.*` property.
    pub fn new(
        spec: Arc<TableSpec>,
        format: TableFormatKind,
        folder: String,
        file_name: Box<dyn FnMut() -> String + Send>,
    ) -> Result<Self, StageError> {
        let partition_by = spec.partition_fields(format);
        let splitter =
            PartitionSplitter::new(&spec.schema, partition_by).map_err(|source| StageError::Partition { table: spec.name.clone(), source })?;
        let layout = file_layout(format);
        let left_out = |name: &str| !layout.holds_partition_columns() && partition_by.iter().any(|p| p.column == name);
        let kept: Vec<usize> = (0..spec.schema.fields().len()).filter(|i| !left_out(spec.schema.field(*i).name())).collect();
        let whole = layout.schema(&spec.schema);
        let schema = Arc::new(Schema::new(kept.iter().map(|i| whole.fields()[*i].clone()).collect::<Vec<_>>()));
        let parquet = parquet_schema(&schema).map_err(|source| StageError::Parquet { table: spec.name.clone(), source })?;
        let properties = writer_properties(&spec.name, &spec.properties, &parquet)?;
        Ok(Self {
            spec,
            format,
            folder: folder.trim_end_matches('/').to_string(),
            file_name,
            splitter,
            kept,
            schema,
            parquet,
            properties,
            files: Vec::new(),
            by_partition: HashMap::new(),
            open: 0,
            waiting_bytes: 0,
            max_open: MAX_OPEN_PARTITIONS,
            max_waiting_bytes: MAX_WAITING_BYTES,
        })
    }

    #[cfg(test)]
    fn with_limits(mut self, max_open: usize, max_waiting_bytes: usize) -> Self {
        (self.max_open, self.max_waiting_bytes) = (max_open, max_waiting_bytes);
        self
    }

    /// Encodes the rows of `batch`, whose columns are the table's, in order, field ids or not. Tells which rows went to which
    /// file, by its place in [`ParquetStager::finish`]; files keep the order of their rows.
    ///
    /// # Errors
    /// Columns that are not the table's. The stager is of no use afterwards.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<Vec<(usize, RecordBatch)>, StageError> {
        let spec = self.spec.clone();
        let table = &spec.name;
        if batch.num_columns() != self.spec.schema.fields().len() {
            return Err(StageError::Mismatch {
                table: table.clone(),
                expected: format!("{} columns", self.spec.schema.fields().len()),
                found: format!("{} columns", batch.num_columns()),
            });
        }
        let parts = self.splitter.split(batch).map_err(|source| StageError::Partition { table: table.clone(), source })?;
        let mut told = Vec::with_capacity(parts.len());
        for (partition, part) in parts {
            if part.num_rows() == 0 {
                continue;
            }
            let rows = &part;
            let mut columns = Vec::with_capacity(self.kept.len());
            for (i, to) in self.kept.iter().zip(self.schema.fields()) {
                let column = conform(rows.column(*i), self.spec.schema.field(*i), to).ok_or_else(|| StageError::Mismatch {
                    table: table.clone(),
                    expected: format!("`{}` as {}", to.name(), type_name(self.spec.schema.field(*i))),
                    found: rows.column(*i).data_type().to_string(),
                })?;
                columns.push(column);
            }
            let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
                .map_err(|e| StageError::Parquet { table: table.clone(), source: e.into() })?;
            let broken = |source| StageError::Parquet { table: table.clone(), source };
            let number = match self.by_partition.get(&partition_key(&partition)) {
                Some(number) => *number,
                None => self.begin(partition).map_err(broken)?,
            };
            match &mut self.files[number] {
                StagedFile::Open(file) => file.write(&rows).map_err(broken)?,
                StagedFile::Waiting { rows: waiting, .. } => {
                    self.waiting_bytes += rows.get_array_memory_size();
                    waiting.push(rows);
                }
                StagedFile::Done(..) => return Err(broken(ParquetError::General("rows for a file that is closed".into()))),
            }
            told.push((number, part));
            if self.waiting_bytes > self.max_waiting_bytes {
                self.encode_waiting().map_err(broken)?;
            }
        }
        Ok(told)
    }

    /// Bytes held in memory: encoded row groups, what the encoders hold, rows that wait.
    pub fn bytes(&self) -> usize {
        let of = |file: &StagedFile| match file {
            StagedFile::Open(f) => f.writer.bytes_written() + f.writer.memory_size(),
            StagedFile::Waiting { .. } => 0,
            StagedFile::Done(_, bytes) => bytes.len(),
        };
        self.files.iter().map(of).sum::<usize>() + self.waiting_bytes
    }

    /// Closes all files. Nothing is on disk: the caller puts the bytes where [`DataFile::path`] says,
    /// durably, before it names a file to anyone.
    pub fn finish(mut self) -> Result<Vec<(DataFile, Bytes)>, StageError> {
        let table = self.spec.name.clone();
        let broken = |source| StageError::Parquet { table: table.clone(), source };
        self.encode_waiting().map_err(broken)?;
        let closed = self.files.into_iter().map(|file| match file {
            StagedFile::Open(file) => file.finish(),
            StagedFile::Done(file, bytes) => Ok((*file, bytes)),
            StagedFile::Waiting { .. } => Err(ParquetError::General("rows were not encoded".into())),
        });
        closed.collect::<Result<_, _>>().map_err(broken)
    }

    /// The number of a new file.
    fn begin(&mut self, partition: Vec<Option<Scalar>>) -> Result<usize, ParquetError> {
        self.by_partition.insert(partition_key(&partition), self.files.len());
        let file = if self.open < self.max_open {
            self.open += 1;
            StagedFile::Open(Box::new(self.open_file(partition)?))
        } else {
            StagedFile::Waiting { partition, rows: vec![] }
        };
        self.files.push(file);
        Ok(self.files.len() - 1)
    }

    fn encode_waiting(&mut self) -> Result<(), ParquetError> {
        for number in 0..self.files.len() {
            let StagedFile::Waiting { partition, rows } = &mut self.files[number] else { continue };
            let (partition, rows) = (std::mem::take(partition), std::mem::take(rows));
            self.by_partition.remove(&partition_key(&partition));
            let mut file = self.open_file(partition)?;
            rows.iter().try_for_each(|rows| file.write(rows))?;
            let (file, bytes) = file.finish()?;
            self.files[number] = StagedFile::Done(Box::new(file), bytes);
        }
        self.waiting_bytes = 0;
        Ok(())
    }

    fn open_file(&mut self, partition: Vec<Option<Scalar>>) -> Result<OpenFile, ParquetError> {
        let below = partition_path(&self.spec, self.format, &partition);
        let name = (self.file_name)();
        let path = [self.folder.as_str(), &below, &name].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("/");
        // The file describes itself by field ids; an Arrow schema in its footer would only repeat it.
        let options = ArrowWriterOptions::new()
            .with_properties(self.properties.clone())
            .with_skip_arrow_metadata(true)
            .with_parquet_schema(self.parquet.clone());
        let writer = ArrowWriter::try_new_with_options(Vec::new(), self.schema.clone(), options)?;
        Ok(OpenFile { path, partition, writer, stats: StatsBuilder::new(&self.schema), records: 0 })
    }
}

fn partition_key(partition: &[Option<Scalar>]) -> String {
    serde_json::to_string(partition).expect("scalars have no map keys and no floats that JSON lacks")
}

/// The Parquet schema: three-level lists, field ids, decimals by their width, uuid as such.
pub fn parquet_schema(schema: &Schema) -> Result<SchemaDescriptor, ParquetError> {
    let plain = ArrowSchemaConverter::new().with_coerce_types(true).schema_root("table").convert(schema)?;
    let mut uuids = Vec::new();
    for field in schema.fields() {
        collect_uuids(field, &mut uuids);
    }
    if uuids.is_empty() {
        return Ok(plain);
    }
    Ok(SchemaDescriptor::new(mark_uuids(plain.root_schema_ptr(), &uuids)?))
}

fn collect_uuids(field: &Field, ids: &mut Vec<i32>) {
    if is_uuid(field) {
        ids.extend(field_id(field));
    }
    for child in children(field.data_type()) {
        collect_uuids(child, ids);
    }
}

/// The crate writes the uuid annotation only with a feature that the tree leaves out.
fn mark_uuids(node: TypePtr, uuids: &[i32]) -> Result<TypePtr, ParquetError> {
    let info = node.get_basic_info();
    let id = info.has_id().then(|| info.id());
    if node.is_primitive() {
        if !id.is_some_and(|id| uuids.contains(&id)) {
            return Ok(node);
        }
        let marked = Type::primitive_type_builder(node.name(), node.get_physical_type())
            .with_repetition(info.repetition())
            .with_length(16)
            .with_logical_type(Some(LogicalType::Uuid))
            .with_id(id)
            .build()?;
        return Ok(Arc::new(marked));
    }
    let fields = node.get_fields().iter().map(|f| mark_uuids(f.clone(), uuids)).collect::<Result<Vec<_>, _>>()?;
    let mut group = Type::group_type_builder(node.name())
        .with_fields(fields)
        .with_id(id)
        .with_converted_type(info.converted_type())
        .with_logical_type(info.logical_type_ref().cloned());
    if info.has_repetition() {
        group = group.with_repetition(info.repetition());
    }
    Ok(Arc::new(group.build()?))
}

fn writer_properties(table: &str, properties: &BTreeMap<String, String>, columns: &SchemaDescriptor) -> Result<WriterProperties, StageError> {
    const CODEC: &str = "write.parquet.compression-codec";
    const LEVEL: &str = "write.parquet.compression-level";
    let refused = |key, value: &str, expected| StageError::Property { table: table.to_string(), key, value: value.to_string(), expected };
    let zstd = |level: i32| ZstdLevel::try_new(level).map(Compression::ZSTD);
    let codec = properties.get(CODEC).map(|c| c.to_ascii_lowercase());
    let compression = match codec.as_deref() {
        None | Some("zstd") => {
            let expected = "a zstd level from 1 to 22";
            let level = properties.get(LEVEL).map_or(DEFAULT_LEVEL, |v| v);
            level.parse().ok().and_then(|l| zstd(l).ok()).ok_or_else(|| refused(LEVEL, level, expected))?
        }
        Some("snappy") => Compression::SNAPPY,
        Some("lz4" | "lz4_raw") => Compression::LZ4_RAW,
        Some("uncompressed" | "none") => Compression::UNCOMPRESSED,
        Some(other) => return Err(refused(CODEC, other, "zstd, snappy, lz4 or uncompressed")),
    };
    let mut builder = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by(format!("millpond {}", env!("CARGO_PKG_VERSION")))
        .set_coerce_types(true);
    for column in columns.columns().iter().filter(|c| c.physical_type() == PhysicalType::BYTE_ARRAY) {
        builder = builder.set_column_dictionary_page_size_limit(column.path().clone(), TEXT_DICTIONARY_BYTES);
    }
    Ok(without_float_statistics(builder, columns).build())
}

/// Footer statistics of floats leave NaN out; readers that order NaN above all numbers (DuckDB,
/// Spark) prune by them nevertheless, and lose it.
pub(crate) fn without_float_statistics(mut builder: WriterPropertiesBuilder, columns: &SchemaDescriptor) -> WriterPropertiesBuilder {
    for column in columns.columns() {
        if matches!(column.physical_type(), PhysicalType::FLOAT | PhysicalType::DOUBLE) {
            builder = builder.set_column_statistics_enabled(column.path().clone(), EnabledStatistics::None);
        }
    }
    builder
}

/// The same values under the field's own type: ids on nested fields, and text where Delta has no
/// type of its own. `None` when the array is not of the type `from`.
pub(crate) fn conform(array: &ArrayRef, from: &Field, to: &Field) -> Option<ArrayRef> {
    match (from.data_type(), to.data_type()) {
        (DataType::List(from), DataType::List(to)) => {
            let list = array.as_list_opt::<i32>()?;
            let values = conform(list.values(), from, to)?;
            Some(Arc::new(ListArray::try_new(to.clone(), list.offsets().clone(), values, list.nulls().cloned()).ok()?))
        }
        (DataType::Struct(_), DataType::Struct(_)) => Some(Arc::new(conform_struct(array.as_struct_opt()?, from, to)?)),
        (DataType::Map(from, _), DataType::Map(to, sorted)) => {
            let map = array.as_map_opt()?;
            let entries = conform_struct(map.entries(), from, to)?;
            Some(Arc::new(MapArray::try_new(to.clone(), map.offsets().clone(), entries, map.nulls().cloned(), *sorted).ok()?))
        }
        (from, to) if array.data_type() != from => {
            debug_assert!(!to.is_nested());
            None
        }
        (from, to) if from == to => Some(array.clone()),
        (DataType::FixedSizeBinary(16), DataType::Utf8) => {
            let bytes = array.as_fixed_size_binary();
            let text = |b: &[u8]| uuid::Uuid::from_slice(b).map(|u| u.to_string()).unwrap_or_default();
            Some(Arc::new(bytes.iter().map(|b| b.map(text)).collect::<StringArray>()))
        }
        (DataType::Time64(TimeUnit::Microsecond), DataType::Utf8) => {
            let times = array.as_primitive::<Time64MicrosecondType>();
            Some(Arc::new(times.iter().map(|t| t.map(time_text)).collect::<StringArray>()))
        }
        _ => None,
    }
}

fn conform_struct(array: &StructArray, from: &Field, to: &Field) -> Option<StructArray> {
    let (DataType::Struct(from), DataType::Struct(to)) = (from.data_type(), to.data_type()) else { return None };
    if array.num_columns() != to.len() || from.len() != to.len() {
        return None;
    }
    let columns = array.columns().iter().zip(from.iter().zip(to)).map(|(c, (f, t))| conform(c, f, t)).collect::<Option<Vec<_>>>()?;
    StructArray::try_new_with_length(to.clone(), columns, array.nulls().cloned(), array.len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{ColumnType as T, PartitionField, PartitionTransform};
    use crate::stage::layout::assign_field_ids;
    use arrow::array::{Decimal128Array, FixedSizeBinaryArray, Int64Array, Time64MicrosecondArray};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    fn names() -> Box<dyn FnMut() -> String + Send> {
        let mut n = 0;
        Box::new(move || {
            n += 1;
            format!("f{n}.parquet")
        })
    }

    fn spec(columns: &[(&str, T)], partition_by: &[(&str, PartitionTransform)]) -> Arc<TableSpec> {
        let fields: Vec<Field> = columns.iter().map(|(n, t)| t.field(n, true)).collect();
        Arc::new(TableSpec {
            name: "t".into(),
            schema: assign_field_ids(&Schema::new(fields), None).unwrap(),
            key: vec![],
            formats: vec![TableFormatKind::Iceberg, TableFormatKind::Delta],
            partition_by: partition_by.iter().map(|(c, t)| PartitionField { column: c.to_string(), transform: *t }).collect(),
            properties: Default::default(),
            comment: None,
        })
    }

    fn plain(spec: &TableSpec, columns: Vec<ArrayRef>) -> RecordBatch {
        RecordBatch::try_new(spec.schema.clone(), columns).unwrap()
    }

    #[test]
    fn uuid_and_time_are_themselves_in_iceberg_and_text_in_delta() {
        let spec = spec(&[("u", T::Uuid), ("t", T::Time), ("k", T::String)], &[("k", PartitionTransform::Identity)]);
        let id = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let batch = plain(
            &spec,
            vec![
                Arc::new(FixedSizeBinaryArray::try_from_iter([id.into_bytes()].into_iter()).unwrap()),
                Arc::new(Time64MicrosecondArray::from(vec![3_661_000_001])),
                Arc::new(StringArray::from(vec!["x/y"])),
            ],
        );
        let file = |format| {
            let mut stager = ParquetStager::new(spec.clone(), format, "f/data".into(), names()).unwrap();
            stager.write(&batch).unwrap();
            stager.finish().unwrap().remove(0)
        };
        let (iceberg, bytes) = file(TableFormatKind::Iceberg);
        assert_eq!(iceberg.path, "f/data/k=x%2Fy/f1.parquet");
        assert_eq!(iceberg.columns.iter().map(|c| c.field_id).collect::<Vec<_>>(), [1, 2, 3]);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let column = reader.parquet_schema().column(0);
        assert_eq!(column.logical_type_ref(), Some(&LogicalType::Uuid));
        assert_eq!(column.self_type().get_basic_info().id(), 1);

        let (delta, bytes) = file(TableFormatKind::Delta);
        assert_eq!(delta.partition, vec![Some(Scalar::Text("x/y".into()))]);
        let read: Vec<RecordBatch> = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(|b| b.unwrap()).collect();
        assert_eq!(read[0].num_columns(), 2);
        assert_eq!(read[0].column(0).as_string::<i32>().value(0), id.to_string());
        assert_eq!(read[0].column(1).as_string::<i32>().value(0), "01:01:01.000001");
        assert_eq!(delta.columns[0].lower, Some(Scalar::Text("01234567-89ab-cd".into())));
    }

    #[test]
    fn nested_values_survive_and_every_leaf_has_its_id() {
        let point = T::Struct(vec![("x".into(), T::Int64), ("u".into(), T::Uuid)]);
        let spec = spec(&[("l", T::List(Box::new(point.clone()))), ("m", T::Map(Box::new(T::String), Box::new(point)))], &[]);
        // Batches come without ids.
        let T::Struct(inner) = T::Struct(vec![("x".into(), T::Int64), ("u".into(), T::Uuid)]) else { unreachable!() };
        let fields: Fields = inner.iter().map(|(n, t)| t.field(n, true)).collect();
        let points = StructArray::new(
            fields.clone(),
            vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(FixedSizeBinaryArray::try_from_iter([[7u8; 16], [8u8; 16]].into_iter()).unwrap())],
            None,
        );
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0]);
        let item = Arc::new(Field::new("item", DataType::Struct(fields.clone()), true));
        let list = ListArray::new(item, offsets.clone(), Arc::new(points.clone()), None);
        let kv: Fields = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Struct(fields), true)].into();
        let entries = StructArray::new(kv.clone(), vec![Arc::new(StringArray::from(vec!["a", "b"])), Arc::new(points)], None);
        let map = MapArray::new(Arc::new(Field::new("entries", DataType::Struct(kv), false)), offsets, entries, None, false);
        let bare = Schema::new(vec![Field::new("l", list.data_type().clone(), true), Field::new("m", map.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(bare), vec![Arc::new(list), Arc::new(map)]).unwrap();

        for format in [TableFormatKind::Iceberg, TableFormatKind::Delta] {
            let mut stager = ParquetStager::new(spec.clone(), format, "f".into(), names()).unwrap();
            stager.write(&batch).unwrap();
            assert!(stager.bytes() > 0);
            let (file, bytes) = stager.finish().unwrap().remove(0);
            assert_eq!((file.records, file.path.as_str()), (2, "f/f1.parquet"));
            assert_eq!(file.split_offsets, [4]);
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            let leaves: Vec<(String, i32)> =
                reader.parquet_schema().columns().iter().map(|c| (c.path().string(), c.self_type().get_basic_info().id())).collect();
            let want = [("l.list.element.x", 4), ("l.list.element.u", 5), ("m.key_value.key", 6), ("m.key_value.value.x", 8), ("m.key_value.value.u", 9)];
            assert_eq!(leaves, want.map(|(p, i)| (p.to_string(), i)));
            let read = reader.build().unwrap().next().unwrap().unwrap();
            let first = read.column(0).as_list::<i32>().value(0);
            assert_eq!(first.as_struct().column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
            assert_eq!(read.column(1).as_map().value_length(0), 2);
        }
    }

    #[test]
    fn decimals_are_as_wide_as_their_precision_asks() {
        let spec = spec(&[("a", T::Decimal(9, 2)), ("b", T::Decimal(18, 2)), ("c", T::Decimal(38, 2))], &[]);
        let d = |p| Arc::new(Decimal128Array::from(vec![-5, 700]).with_precision_and_scale(p, 2).unwrap()) as ArrayRef;
        let mut stager = ParquetStager::new(spec.clone(), TableFormatKind::Iceberg, "f".into(), names()).unwrap();
        stager.write(&plain(&spec, vec![d(9), d(18), d(38)])).unwrap();
        let (file, bytes) = stager.finish().unwrap().remove(0);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        use parquet::basic::Type as P;
        let types: Vec<P> = reader.parquet_schema().columns().iter().map(|c| c.physical_type()).collect();
        assert_eq!(types, [P::INT32, P::INT64, P::FIXED_LEN_BYTE_ARRAY]);
        assert_eq!(file.columns[2].lower, Some(Scalar::Decimal(-5)));
        assert_eq!(file.columns[2].upper, Some(Scalar::Decimal(700)));
    }

    /// FAULTS 66: of many partitions few files are open, and no row is lost or changes its place in its file.
    #[test]
    fn rows_of_more_partitions_than_files_may_be_open_wait() {
        let spec = spec(&[("n", T::Int64), ("i", T::Int64)], &[("n", PartitionTransform::Identity)]);
        let rows: Vec<(i64, i64)> = (0..400).map(|i| ((i * 7) % 23, i)).collect();
        let run = |max_waiting: usize| {
            let mut stager = ParquetStager::new(spec.clone(), TableFormatKind::Iceberg, "f".into(), names()).unwrap().with_limits(3, max_waiting);
            let mut told: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
            for chunk in rows.chunks(50) {
                let (n, i): (Vec<i64>, Vec<i64>) = chunk.iter().copied().unzip();
                for (file, part) in stager.write(&plain(&spec, vec![Arc::new(Int64Array::from(n)), Arc::new(Int64Array::from(i))])).unwrap() {
                    told.entry(file).or_default().extend(part.column(1).as_primitive::<Int64Type>().values());
                }
                assert!(stager.open <= 3 && stager.bytes() > 0);
            }
            let files = stager.finish().unwrap();
            assert_eq!(files.len(), told.len());
            for (place, (file, bytes)) in files.iter().enumerate() {
                let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap().build().unwrap();
                let read: Vec<(i64, i64)> = reader.flat_map(|b| { let b = b.unwrap(); let of = |c: usize| b.column(c).as_primitive::<Int64Type>().values().to_vec(); of(0).into_iter().zip(of(1)).collect::<Vec<_>>() }).collect();
                assert_eq!(read.iter().map(|(_, i)| *i).collect::<Vec<_>>(), told[&place], "file {place}");
                assert!(read.iter().all(|(n, _)| file.partition == [Some(Scalar::Int(*n))]) && file.records == read.len() as u64);
            }
            let mut all: Vec<i64> = told.into_values().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, (0..400).collect::<Vec<_>>());
            files.len()
        };
        assert_eq!(run(1 << 20), 23, "one file for each partition");
        assert!(run(1) > 23, "what waits is bounded");
    }

    #[test]
    fn a_codec_is_honoured_or_refused() {
        let with = |codec: &str| {
            let mut s = spec(&[("n", T::Int64)], &[]).as_ref().clone();
            s.properties.insert("write.parquet.compression-codec".into(), codec.into());
            let s = Arc::new(s);
            let mut stager = ParquetStager::new(s.clone(), TableFormatKind::Iceberg, "f".into(), names())?;
            stager.write(&plain(&s, vec![Arc::new(Int64Array::from(vec![1]))]))?;
            let (_, bytes) = stager.finish()?.remove(0);
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            Ok::<_, StageError>(reader.metadata().row_group(0).column(0).compression())
        };
        assert_eq!(with("snappy").unwrap(), Compression::SNAPPY);
        assert!(matches!(with("zstd").unwrap(), Compression::ZSTD(_)));
        assert!(with("brotli").unwrap_err().to_string().contains("expected zstd"));
    }

    #[test]
    fn batches_of_other_columns_are_refused() {
        let s = spec(&[("n", T::Int64)], &[]);
        let mut stager = ParquetStager::new(s, TableFormatKind::Iceberg, "f".into(), names()).unwrap();
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)]));
        let wrong = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["1"]))]).unwrap();
        assert!(matches!(stager.write(&wrong), Err(StageError::Mismatch { .. })));
    }

    #[test]
    fn footers_hold_no_float_statistics_that_would_hide_nan() {
        let schema = Schema::new(vec![Field::new("i", DataType::Int64, true), Field::new("f", DataType::Float64, true)]);
        let schema = crate::stage::layout::assign_field_ids(&schema, None).unwrap();
        let spec = TableSpec { name: "t".into(), schema: schema.clone(), key: vec![], formats: vec![], partition_by: vec![], properties: BTreeMap::new(), comment: None };
        let rows = RecordBatch::try_new(schema, vec![Arc::new(arrow::array::Int64Array::from(vec![1, 2])), Arc::new(arrow::array::Float64Array::from(vec![0.5, f64::NAN]))]).unwrap();
        let mut stager = ParquetStager::new(Arc::new(spec), TableFormatKind::Delta, "t".into(), Box::new(|| "a.parquet".into())).unwrap();
        stager.write(&rows).unwrap();
        let (_, bytes) = stager.finish().unwrap().remove(0);
        let reader = ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let group = reader.metadata().row_group(0);
        assert!(group.column(0).statistics().is_some());
        assert!(group.column(1).statistics().is_none());
    }
}
