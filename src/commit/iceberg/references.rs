//! Which files of an Iceberg table may go, as far as the table can tell.

use super::propose::metadata_version;
use super::table::IcebergTable;
use super::stamp;
use crate::commit::{Base, CommitError, LakeTable};
use crate::mutant::{self, Mutant};
use crate::stage::names::{self, Owner};
use iceberg::spec::TableMetadata;
use std::collections::{BTreeSet, HashSet};

impl IcebergTable {
    /// See [`LakeTable::unneeded`].
    pub(super) async fn unneeded_of(&mut self, mut names: BTreeSet<String>) -> Result<(Base, BTreeSet<String>), CommitError> {
        let base = self.load().await?;
        let loaded = self.loaded()?;
        let version = metadata_version(&loaded.location);
        names.retain(|name| match names::owner(name) {
            Some(Owner::Attempt(_)) => true,
            Some(Owner::Stamp(stamp)) => stamp < base.stamp.entry || mutant::on(Mutant::UnpassedStampDeleted),
            // A swap to it starts from a version below its own, and a location is never used twice.
            Some(Owner::Metadata(of)) => of <= version,
            None => false,
        });
        names.remove(names::file_name(&loaded.location));
        for older in loaded.metadata.metadata_log() {
            names.remove(names::file_name(&older.metadata_file));
        }
        // The newest snapshot names nearly all that is listed: mostly the others need not be read.
        let mut snapshots: Vec<_> = loaded.metadata.snapshots().collect();
        snapshots.sort_by_key(|s| std::cmp::Reverse(s.sequence_number()));
        let mut read = HashSet::new();
        for snapshot in snapshots {
            if names.is_empty() {
                break;
            }
            names.remove(names::file_name(snapshot.manifest_list()));
            for manifest in self.manifests(snapshot).await? {
                if !read.insert(manifest.manifest_path.clone()) {
                    continue;
                }
                names.remove(names::file_name(&manifest.manifest_path));
                for entry in self.lake.read_manifest(&manifest).await?.entries().iter().filter(|e| e.is_alive()) {
                    names.remove(names::file_name(entry.file_path()));
                }
            }
        }
        let mut ours = BTreeSet::new();
        for name in names {
            if !matches!(names::owner(&name), Some(Owner::Metadata(_))) || self.wrote_metadata(&name).await {
                ours.insert(name);
            }
        }
        Ok((base, ours))
    }

    /// Names do not tell who wrote a metadata file. What cannot be read stays.
    async fn wrote_metadata(&self, name: &str) -> bool {
        let Ok(loaded) = self.loaded() else { return false };
        let location = format!("{}/metadata/{name}", loaded.metadata.location());
        let Ok(metadata) = TableMetadata::read_from(&self.lake.io, &location).await else { return false };
        let (Some(id), Some(Owner::Metadata(version))) = (metadata.properties().get(stamp::METADATA_ID), names::owner(name)) else { return false };
        id.parse().is_ok_and(|id| names::metadata(version, id) == name)
    }
}
