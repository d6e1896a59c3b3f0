//! What manifest lists say of manifests, against the manifests themselves.
//!
//! Readers go by the list: by a manifest's length they find its end, by its counts they skip it, by its sequence numbers
//! they tell which deletes reach which files.

use super::Finding;
use crate::pipeline::TableFormatKind;
use ::iceberg::spec::{FormatVersion, Manifest, ManifestContentType, ManifestFile, ManifestStatus, Snapshot, TableMetadata};
use std::collections::BTreeMap;

/// What a manifest holds.
pub struct Tally {
    bytes: u64,
    content: ManifestContentType,
    spec_id: i32,
    /// Added, existing and deleted ones.
    files: [u64; 3],
    rows: [u64; 3],
    /// Lowest and highest sequence number that its live files state, where any does.
    stated: Option<(i64, i64)>,
    /// A live file states none, and has the manifest's.
    inherits: bool,
}

fn place(status: ManifestStatus) -> usize {
    match status {
        ManifestStatus::Added => 0,
        ManifestStatus::Existing => 1,
        ManifestStatus::Deleted => 2,
    }
}

impl Tally {
    /// `manifest` as it was written: nothing is inherited yet.
    pub fn of(manifest: &Manifest, bytes: u64) -> Self {
        let metadata = manifest.metadata();
        let mut tally = Self { bytes, content: *metadata.content(), spec_id: metadata.partition_spec().spec_id(), files: [0; 3], rows: [0; 3], stated: None, inherits: false };
        for entry in manifest.entries() {
            tally.files[place(entry.status())] += 1;
            tally.rows[place(entry.status())] += entry.record_count();
            match entry.sequence_number() {
                _ if !entry.is_alive() => {}
                Some(at) => tally.stated = Some(tally.stated.map_or((at, at), |(low, high)| (low.min(at), high.max(at)))),
                None => tally.inherits = true,
            }
        }
        tally
    }

    /// What a list says of it otherwise.
    fn against(&self, said: &ManifestFile, snapshot: &Snapshot, metadata: &TableMetadata) -> Vec<String> {
        let mut wrong = vec![];
        let mut compare = |what: &str, said: String, found: String| {
            if said != found {
                wrong.push(format!("has {what} {said}, and it is {found}"));
            }
        };
        compare("the length", said.manifest_length.to_string(), self.bytes.to_string());
        compare("the content", said.content.to_string(), self.content.to_string());
        compare("the partition spec", said.partition_spec_id.to_string(), self.spec_id.to_string());
        let files = [said.added_files_count, said.existing_files_count, said.deleted_files_count].map(|n| n.map(u64::from));
        let rows = [said.added_rows_count, said.existing_rows_count, said.deleted_rows_count];
        for (what, said, found) in [("files", files, self.files), ("rows", rows, self.rows)] {
            for (nth, status) in ["added", "existing", "deleted"].iter().enumerate() {
                if let Some(said) = said[nth] {
                    compare(&format!("the number of {status} {what}"), said.to_string(), found[nth].to_string());
                }
            }
        }
        // Version 1 knows no sequence numbers.
        if metadata.format_version() != FormatVersion::V1 {
            wrong.extend(self.sequence(said, snapshot, metadata));
        }
        wrong
    }

    fn sequence(&self, said: &ManifestFile, snapshot: &Snapshot, metadata: &TableMetadata) -> Vec<String> {
        let mut wrong = vec![];
        let at = said.sequence_number;
        match metadata.snapshot_by_id(said.added_snapshot_id).map(|s| s.sequence_number()) {
            Some(added) if added != at => wrong.push(format!("has the sequence number {at}, and snapshot {}, which added it, {added}", said.added_snapshot_id)),
            None if at > snapshot.sequence_number() => wrong.push(format!("has the sequence number {at}, and the list {}", snapshot.sequence_number())),
            _ => {}
        }
        if let Some((_, highest)) = self.stated.filter(|(_, highest)| *highest > at) {
            wrong.push(format!("has the sequence number {at}, and a file in it {highest}"));
        }
        let inherited = self.inherits.then_some(at);
        let lowest = self.stated.map(|(lowest, _)| lowest).into_iter().chain(inherited).min();
        if let Some(lowest) = lowest.filter(|lowest| said.min_sequence_number > *lowest) {
            wrong.push(format!("has the lowest sequence number {}, and a file in it {lowest}: readers may leave deletes out", said.min_sequence_number));
        }
        wrong
    }
}

/// Everything that the lists of a table say wrongly.
#[derive(Default)]
pub struct Lists {
    /// By manifest and text: in how many lists, and the snapshot of the first.
    wrong: BTreeMap<(String, String), (usize, i64)>,
}

impl Lists {
    pub fn compare(&mut self, tally: &Tally, said: &ManifestFile, snapshot: &Snapshot, metadata: &TableMetadata) {
        for text in tally.against(said, snapshot, metadata) {
            self.wrong.entry((said.manifest_path.clone(), text)).or_insert((0, snapshot.snapshot_id())).0 += 1;
        }
    }

    pub fn findings(self, table: &str) -> Vec<Finding> {
        let told = self.wrong.into_iter().map(|((path, text), (lists, snapshot))| {
            let more = if lists > 1 { format!(" ({} lists more)", lists - 1) } else { String::new() };
            let text = format!("in the manifest list of snapshot {snapshot}{more} the manifest {path} {text}");
            Finding::new("manifest-list", text).of(table, TableFormatKind::Iceberg).times(lists)
        });
        told.collect()
    }
}
