//! The files of one table in all its formats. Rows are encoded once for formats whose files would be
//! the same, and the bytes put where each of them looks for its own.

use super::file_layout::file_layout;
use super::parquet::{ParquetStager, StageError};
use super::{DataFile, TableSpec, data_folder};
use crate::pipeline::TableFormatKind;
use arrow::array::RecordBatch;
use bytes::Bytes;
use std::sync::Arc;

/// Gives the names of files, with their suffix; each is used once.
pub type FileNames = Box<dyn FnMut() -> String + Send>;

/// Encodes the rows of one table in every format that it has, in memory.
pub struct TableStager {
    groups: Vec<Group>,
}

/// Formats that share their files' bytes.
struct Group {
    stager: ParquetStager,
    /// The first is the one that `stager` writes.
    formats: Vec<(TableFormatKind, String)>,
}

impl TableStager {
    /// `names` makes a giver of file names for each group of formats.
    ///
    /// # Errors
    /// As [`ParquetStager::new`].
    pub fn new(pipeline: &str, spec: &Arc<TableSpec>, names: impl Fn() -> FileNames) -> Result<Self, StageError> {
        let mut groups: Vec<Group> = Vec::new();
        for &format in &spec.formats {
            let place = (format, data_folder(pipeline, format, &spec.name));
            match groups.iter_mut().find(|g| same_files(spec, g.formats[0].0, format)) {
                Some(group) => group.formats.push(place),
                None => {
                    let stager = ParquetStager::new(spec.clone(), format, place.1.clone(), names())?;
                    groups.push(Group { stager, formats: vec![place] });
                }
            }
        }
        Ok(Self { groups })
    }

    /// Encodes the rows of `batch`.
    ///
    /// # Errors
    /// As [`ParquetStager::write`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), StageError> {
        self.groups.iter_mut().try_for_each(|g| g.stager.write(batch).map(drop))
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.groups.iter().map(|g| g.stager.bytes()).sum()
    }

    /// Closes all files; nothing is on disk (see [`ParquetStager::finish`]).
    pub fn finish(self) -> Result<Vec<(TableFormatKind, DataFile, Bytes)>, StageError> {
        let mut files = Vec::new();
        for Group { stager, formats } in self.groups {
            let made = stager.finish()?;
            let folder = &formats[0].1;
            for (file, bytes) in made {
                let below = file.path.strip_prefix(folder.as_str()).unwrap_or(&file.path);
                let elsewhere = formats[1..].iter().map(|(format, folder)| (*format, DataFile { path: format!("{folder}{below}"), ..file.clone() }, bytes.clone()));
                files.extend(elsewhere);
                files.push((formats[0].0, file, bytes));
            }
        }
        Ok(files)
    }
}

/// The files of both formats hold the same columns of the same types, and rows are parted alike. Delta
/// has fewer types and leaves partition columns out; the field ids that Iceberg asks for are nothing to it.
fn same_files(spec: &TableSpec, one: TableFormatKind, other: TableFormatKind) -> bool {
    let unpartitioned = |format| spec.partition_fields(format).is_empty();
    unpartitioned(one) && unpartitioned(other) && file_layout(one).schema(&spec.schema) == file_layout(other).schema(&spec.schema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{ColumnType as T, PartitionField, PartitionTransform};
    use crate::stage::layout::assign_field_ids;
    use arrow::array::{ArrayRef, FixedSizeBinaryArray, Int64Array};
    use arrow::datatypes::Schema;
    use std::collections::BTreeMap;

    fn staged(column: T, values: ArrayRef, partition_by: Vec<PartitionField>) -> Vec<(TableFormatKind, DataFile, Bytes)> {
        let schema = assign_field_ids(&Schema::new(vec![column.field("c", true)]), None).unwrap();
        let spec = Arc::new(TableSpec {
            name: "t".into(),
            schema: schema.clone(),
            key: vec![],
            formats: vec![TableFormatKind::Iceberg, TableFormatKind::Delta],
            partition_by,
            properties: BTreeMap::new(),
            comment: None,
        });
        let names = || -> FileNames {
            let mut n = 0;
            Box::new(move || {
                n += 1;
                format!("f{n}.parquet")
            })
        };
        let mut stager = TableStager::new("p", &spec, names).unwrap();
        stager.write(&RecordBatch::try_new(schema, vec![values]).unwrap()).unwrap();
        assert!(stager.bytes() > 0);
        let mut files = stager.finish().unwrap();
        files.sort_by_key(|(format, ..)| *format);
        files
    }

    #[test]
    fn formats_that_agree_share_the_bytes() {
        let files = staged(T::Int64, Arc::new(Int64Array::from(vec![1, 2])), vec![]);
        let paths: Vec<&str> = files.iter().map(|(_, f, _)| f.path.as_str()).collect();
        assert_eq!(paths, ["iceberg/p/t/data/f1.parquet", "delta/p/t/f1.parquet"]);
        // Not only equal: encoded once.
        assert_eq!(files[0].2.as_ptr(), files[1].2.as_ptr());
        assert_eq!(files[0].1.columns, files[1].1.columns);
        assert_eq!((files[1].1.records, files[1].1.bytes), (2, files[1].2.len() as u64));
    }

    #[test]
    fn a_type_that_delta_lacks_or_a_partition_parts_them() {
        let ids = FixedSizeBinaryArray::try_from_iter([[7u8; 16]].into_iter()).unwrap();
        let identity = vec![PartitionField { column: "c".into(), transform: PartitionTransform::Identity }];
        for files in [staged(T::Uuid, Arc::new(ids), vec![]), staged(T::Int64, Arc::new(Int64Array::from(vec![1])), identity)] {
            assert_eq!(files.iter().map(|(format, ..)| *format).collect::<Vec<_>>(), [TableFormatKind::Iceberg, TableFormatKind::Delta]);
            assert_ne!(files[0].2, files[1].2);
        }
    }
}
