//! What the index knows of a table version: its files, and which of their rows are gone.
//!
//! Entries on disk are never rewritten when a file is: they keep the positions that its rows had
//! when it was indexed, and a copy on write is a set of positions that fell out. All changes are
//! [`Record`]s, applied alike when they happen and when they are read back from the journal.

use super::KeyIndexError;
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// First of a snapshot: what the hashes are made of.
    Identity(String),
    File {
        id: u32,
        path: String,
        /// Entries that it has in segments.
        rows: u64,
        /// The latest end, in microseconds, of a window that it holds rows of; `None`: unknown.
        until: Option<i64>,
        /// It can hold nothing that changes any more: it has no entries.
        closed: bool,
    },
    Gone(u32),
    Closed(u32),
    /// Rows deleted since the record before, by their positions in the file as it lies there.
    Deleted(u32, #[serde(with = "treemap")] RoaringTreemap),
    /// Rewritten as `path` without the rows at these positions.
    Rewritten { id: u32, path: String, #[serde(with = "treemap")] dropped: RoaringTreemap },
    Segment(String),
    SegmentGone(String),
    /// Last of a frame: everything before it holds for this version of the table.
    Version { version: String, next_file: u32, next_segment: u64 },
}

#[derive(Debug)]
pub struct IndexedFile {
    pub path: Arc<str>,
    rows: u64,
    pub until: Option<i64>,
    pub closed: bool,
    /// Positions as indexed that rewrites left out.
    dropped: RoaringTreemap,
    /// Positions as the file lies there now that delete files or vectors hide.
    pub deleted: RoaringTreemap,
}

impl IndexedFile {
    /// Where a row lies now; `None` when it is gone.
    fn now(&self, indexed: u64) -> Option<u64> {
        if self.closed || self.dropped.contains(indexed) {
            return None;
        }
        let now = indexed - self.dropped.rank(indexed);
        (!self.deleted.contains(now)).then_some(now)
    }

    /// Positions as indexed of these positions of now.
    fn as_indexed(&self, now: &RoaringTreemap) -> RoaringTreemap {
        let mut dropped = self.dropped.iter().peekable();
        let mut before = 0;
        let indexed = now.iter().map(|position| {
            while dropped.next_if(|d| *d <= position + before).is_some() {
                before += 1;
            }
            position + before
        });
        indexed.collect()
    }

    fn live_rows(&self) -> u64 {
        if self.closed { 0 } else { self.rows.saturating_sub(self.dropped.len() + self.deleted.len()) }
    }
}

/// The files of one version of the table, and the segments that hold their entries.
#[derive(Debug, Default)]
pub struct Files {
    pub identity: String,
    by_id: HashMap<u32, IndexedFile>,
    by_path: HashMap<Arc<str>, u32>,
    pub segments: Vec<String>,
    pub version: Option<String>,
    pub next_file: u32,
    pub next_segment: u64,
}

impl Files {
    pub fn empty(identity: &str) -> Self {
        Self { identity: identity.to_string(), ..Self::default() }
    }

    /// Errors when the record speaks of a file that is not there: the journal is not ours.
    pub fn apply(&mut self, record: &Record) -> Result<(), KeyIndexError> {
        match record {
            Record::Identity(identity) => self.identity = identity.clone(),
            Record::File { id, path, rows, until, closed } => {
                let path: Arc<str> = path.as_str().into();
                self.by_path.insert(path.clone(), *id);
                let file = IndexedFile { path, rows: *rows, until: *until, closed: *closed, dropped: RoaringTreemap::new(), deleted: RoaringTreemap::new() };
                self.by_id.insert(*id, file);
            }
            Record::Gone(id) => {
                if let Some(file) = self.by_id.remove(id) {
                    self.by_path.remove(&file.path);
                }
            }
            Record::Closed(id) => {
                let file = self.known(*id)?;
                file.closed = true;
                file.dropped.clear();
                file.deleted.clear();
            }
            Record::Deleted(id, positions) => self.known(*id)?.deleted |= positions,
            Record::Rewritten { id, path, dropped } => {
                let file = self.known(*id)?;
                let indexed = file.as_indexed(dropped);
                file.dropped |= indexed;
                file.deleted = (&file.deleted - dropped).iter().map(|p| p - dropped.rank(p)).collect();
                let path: Arc<str> = path.as_str().into();
                let old = std::mem::replace(&mut file.path, path.clone());
                self.by_path.remove(&old);
                self.by_path.insert(path, *id);
            }
            Record::Segment(name) => self.segments.push(name.clone()),
            Record::SegmentGone(name) => self.segments.retain(|s| s != name),
            Record::Version { version, next_file, next_segment } => {
                self.version = Some(version.clone());
                self.next_file = *next_file;
                self.next_segment = *next_segment;
            }
        }
        Ok(())
    }

    fn known(&mut self, id: u32) -> Result<&mut IndexedFile, KeyIndexError> {
        self.by_id.get_mut(&id).ok_or_else(|| KeyIndexError::UnknownFile { path: format!("number {id}") })
    }

    pub fn id(&self, path: &str) -> Option<u32> {
        self.by_path.get(path).copied()
    }

    pub fn file(&self, id: u32) -> Option<&IndexedFile> {
        self.by_id.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &IndexedFile)> {
        self.by_id.iter().map(|(id, file)| (*id, file))
    }

    /// Where the row of an entry lies now; `None` when it or its file is gone or closed.
    pub fn live(&self, id: u32, indexed: u32) -> Option<u64> {
        self.by_id.get(&id)?.now(u64::from(indexed))
    }

    pub fn live_rows(&self) -> u64 {
        self.by_id.values().map(IndexedFile::live_rows).sum()
    }

    /// The records that make these files from nothing.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::Identity(self.identity.clone())];
        let files: BTreeMap<u32, &IndexedFile> = self.iter().collect();
        for (id, file) in files {
            records.push(Record::File { id, path: file.path.to_string(), rows: file.rows, until: file.until, closed: file.closed });
            if !file.dropped.is_empty() {
                records.push(Record::Rewritten { id, path: file.path.to_string(), dropped: file.dropped.clone() });
            }
            if !file.deleted.is_empty() {
                records.push(Record::Deleted(id, file.deleted.clone()));
            }
        }
        records.extend(self.segments.iter().cloned().map(Record::Segment));
        if let Some(version) = self.version.clone() {
            records.push(Record::Version { version, next_file: self.next_file, next_segment: self.next_segment });
        }
        records
    }
}

mod treemap {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use roaring::RoaringTreemap;
    use serde::de::Error;

    pub fn serialize<S: serde::Serializer>(set: &RoaringTreemap, s: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(set.serialized_size());
        set.serialize_into(&mut bytes).map_err(serde::ser::Error::custom)?;
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<RoaringTreemap, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        RoaringTreemap::deserialize_from(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(positions: &[u64]) -> RoaringTreemap {
        positions.iter().copied().collect()
    }

    fn one_file() -> Files {
        let mut files = Files::default();
        files.apply(&Record::File { id: 3, path: "a".into(), rows: 6, until: None, closed: false }).unwrap();
        files
    }

    fn where_now(files: &Files, rows: u32) -> Vec<Option<u64>> {
        (0..rows).map(|p| files.live(3, p)).collect()
    }

    #[test]
    fn rewrites_shift_and_deletes_hide() {
        let mut files = one_file();
        files.apply(&Record::Deleted(3, set(&[1]))).unwrap();
        assert_eq!(where_now(&files, 6), [Some(0), None, Some(2), Some(3), Some(4), Some(5)]);
        files.apply(&Record::Rewritten { id: 3, path: "b".into(), dropped: set(&[1, 3]) }).unwrap();
        assert_eq!(where_now(&files, 6), [Some(0), None, Some(1), None, Some(2), Some(3)]);
        assert_eq!((files.id("a"), files.id("b")), (None, Some(3)));
        files.apply(&Record::Deleted(3, set(&[0]))).unwrap();
        // Keeps the row that is hidden: it moves, and stays hidden.
        files.apply(&Record::Rewritten { id: 3, path: "c".into(), dropped: set(&[2]) }).unwrap();
        assert_eq!(where_now(&files, 6), [None, None, Some(1), None, None, Some(2)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a plain list of which row lies where.
        #[test]
        fn any_history_is_that_of_a_list(history in prop::collection::vec((any::<bool>(), prop::collection::btree_set(0u64..40, 0..8)), 0..8)) {
            let mut files = one_file();
            let mut rows: Vec<(u32, bool)> = (0..40).map(|p| (p, false)).collect();
            for (n, (rewrite, positions)) in history.into_iter().enumerate() {
                let positions: RoaringTreemap = positions.into_iter().filter(|p| (*p as usize) < rows.len()).collect();
                if rewrite {
                    files.apply(&Record::Rewritten { id: 3, path: format!("f{n}"), dropped: positions.clone() }).unwrap();
                    rows = rows.iter().enumerate().filter(|(i, _)| !positions.contains(*i as u64)).map(|(_, r)| *r).collect();
                } else {
                    files.apply(&Record::Deleted(3, positions.clone())).unwrap();
                    positions.iter().for_each(|p| rows[p as usize].1 = true);
                }
                let mut again = Files::default();
                for record in files.snapshot() {
                    let text = serde_json::to_string(&record).unwrap();
                    again.apply(&serde_json::from_str(&text).unwrap()).unwrap();
                }
                for p in 0..40u32 {
                    let expected = rows.iter().position(|r| *r == (p, false)).map(|i| i as u64);
                    prop_assert_eq!(files.live(3, p), expected);
                    prop_assert_eq!(again.live(3, p), expected);
                }
            }
        }
    }
}
