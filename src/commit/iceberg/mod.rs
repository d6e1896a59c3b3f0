//! Iceberg v2 tables: a commit is our own manifests, one snapshot, and one compare-and-swap in the
//! catalog. The crate's own transactions are not used: they rebase, and a stale writer would succeed.

pub mod catalog;
#[cfg(test)]
pub(crate) mod conformance;
mod deletes;
mod propose;
mod references;
mod schema;
pub(crate) mod stamp;
mod table;

pub use catalog::{Catalog, SqliteCatalog};
pub use table::IcebergTable;

use crate::commit::{CommitError, LakeTable, Stamp, TableFormat};
use crate::failpoint;
use crate::pipeline::TableFormatKind;
use crate::stage::{TableSpec, names};
use crate::store::iceberg_io::{LakeRoot, file_io};
use async_trait::async_trait;
use catalog::CatalogError;
use iceberg::io::FileIO;
use iceberg::spec::{FormatVersion, Manifest, ManifestFile, TableMetadata, TableMetadataBuilder};
use iceberg::{ErrorKind, TableCreation};
use object_store::ObjectStore;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use url::Url;
use uuid::Uuid;

/// What a commit takes from the world around it.
#[derive(Clone)]
pub struct Ambient {
    /// Milliseconds since 1970-01-01 UTC.
    pub now_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Ids that are never given twice: names of files, snapshot ids, table uuids.
    pub new_id: Arc<dyn Fn() -> Uuid + Send + Sync>,
}

/// The Iceberg tables of one pipeline.
pub struct IcebergFormat {
    lake: Arc<Lake>,
    log: Option<Uuid>,
    expected: Mutex<BTreeMap<String, String>>,
}

/// What all tables of a pipeline share.
pub(crate) struct Lake {
    io: FileIO,
    root: LakeRoot,
    catalog: Arc<dyn Catalog>,
    pipeline: String,
    namespace: String,
    ambient: Ambient,
    manifests: Mutex<KnownManifests>,
}

/// Entries of manifests that are kept: a commit, a look for orphans and a query ask for much the same ones.
const KEPT_ENTRIES: usize = 2000;

/// Manifests that were read, the newest last. A manifest is never changed.
#[derive(Default)]
struct KnownManifests {
    by: HashMap<ManifestKey, Arc<Manifest>>,
    order: VecDeque<ManifestKey>,
    entries: usize,
}

/// A manifest's location, and what its entries inherit from the list that names it.
type ManifestKey = (String, i64, i64);

impl KnownManifests {
    fn keep(&mut self, key: ManifestKey, manifest: Arc<Manifest>) {
        let more = manifest.entries().len();
        if more > KEPT_ENTRIES || self.by.insert(key.clone(), manifest).is_some() {
            return;
        }
        self.order.push_back(key);
        self.entries += more;
        while self.entries > KEPT_ENTRIES {
            let Some(gone) = self.order.pop_front().and_then(|oldest| self.by.remove(&oldest)) else { break };
            self.entries -= gone.entries().len();
        }
    }
}

/// Properties that we would have to honour and do not.
const REFUSED_PROPERTIES: [&str; 5] =
    ["write.data.path", "write.metadata.path", "write.object-storage.enabled", "write.metadata.compression-codec", "format-version"];

/// The number of snapshots that a table keeps, at least 2.
pub(crate) const KEEP_SNAPSHOTS: &str = "history.expire.min-snapshots-to-keep";

/// From how many small manifests on they are merged.
pub(crate) const MERGE_MANIFESTS: &str = "commit.manifest.min-count-to-merge";

/// Where a table lies, relative to the lake's root.
pub fn table_folder(pipeline: &str, table: &str) -> String {
    format!("iceberg/{pipeline}/{table}")
}

/// Where a table's data files lie, relative to the lake's root: what [`crate::stage::parquet::ParquetStager`] takes.
pub fn data_folder(pipeline: &str, table: &str) -> String {
    crate::stage::data_folder(pipeline, TableFormatKind::Iceberg, table)
}

impl IcebergFormat {
    /// `root_url` is the absolute folder of the lake's root; the store's paths are relative to it.
    pub fn new(store: Arc<dyn ObjectStore>, root_url: &Url, catalog: impl Catalog + 'static, pipeline: &str, namespace: &str, ambient: Ambient) -> Self {
        let root = LakeRoot::new(root_url);
        let io = file_io(store, root.clone());
        let lake = Lake { io, root, catalog: Arc::new(catalog), pipeline: pipeline.to_string(), namespace: namespace.to_string(), ambient, manifests: Mutex::default() };
        Self { lake: Arc::new(lake), log: None, expected: Mutex::default() }
    }

    /// Refuses tables stamped by another log also where [`TableFormat::open`] says no log.
    pub fn with_log(mut self, log: Uuid) -> Self {
        self.log = Some(log);
        self
    }

    /// From here on the table is known to exist under this uuid: missing or made anew it is refused.
    pub fn expect_uuid(&self, table: &str, uuid: &str) {
        self.expected.lock().unwrap_or_else(|e| e.into_inner()).insert(table.to_string(), uuid.to_string());
    }

    fn expected(&self, table: &str) -> Option<String> {
        self.expected.lock().unwrap_or_else(|e| e.into_inner()).get(table).cloned()
    }

    async fn opened(&self, spec: Arc<TableSpec>, log: Option<Uuid>) -> Result<Box<dyn LakeTable>, CommitError> {
        let uuid = self.expected(&spec.name);
        let mut table = IcebergTable::new(self.lake.clone(), spec, log, uuid);
        table.load().await?;
        Ok(Box::new(table))
    }
}

#[async_trait]
impl TableFormat for IcebergFormat {
    fn check(&self, spec: &TableSpec) -> Result<(), CommitError> {
        Lake::check_properties(spec)?;
        let nobody = Stamp { log: Uuid::nil(), entry: 0, offsets: BTreeMap::new() };
        self.lake.fresh_metadata(spec, &nobody, Uuid::nil()).map(|_| ())
    }

    async fn open_or_create(&self, spec: Arc<TableSpec>, birth: &Stamp) -> Result<Box<dyn LakeTable>, CommitError> {
        let found = self.lake.catalog.metadata_location(&self.lake.namespace, &spec.name).await.map_err(unavailable)?;
        if found.is_none() {
            if let Some(uuid) = self.expected(&spec.name) {
                return Err(table::gone(&self.lake, &spec.name, &uuid));
            }
            self.lake.create(&spec, birth).await?;
        }
        self.opened(spec, Some(birth.log)).await
    }

    async fn open(&self, spec: Arc<TableSpec>) -> Result<Option<Box<dyn LakeTable>>, CommitError> {
        let found = self.lake.catalog.metadata_location(&self.lake.namespace, &spec.name).await.map_err(unavailable)?;
        match (found, self.expected(&spec.name)) {
            (None, Some(uuid)) => Err(table::gone(&self.lake, &spec.name, &uuid)),
            (None, None) => Ok(None),
            (Some(_), _) => Ok(Some(self.opened(spec, self.log).await?)),
        }
    }

    fn place(&self, table: &str) -> String {
        format!("{} in the catalog {}", self.lake.identifier(table), self.lake.catalog.place())
    }
}

impl Lake {
    /// The catalog's name of a table, for people.
    fn identifier(&self, table: &str) -> String {
        format!("{}.{table}", self.namespace)
    }

    fn check_properties(spec: &TableSpec) -> Result<(), CommitError> {
        for key in REFUSED_PROPERTIES {
            if let Some(value) = spec.properties.get(key).filter(|v| !matches!((key, v.as_str()), ("format-version", "2") | ("write.metadata.compression-codec", "none"))) {
                return Err(CommitError::Refused(format!("table `{}` has the property {key} = `{value}`, which this version does not honour; remove it", spec.name)));
            }
        }
        if let Some(key) = spec.properties.keys().find(|k| k.starts_with("millpond.")) {
            return Err(CommitError::Refused(format!("table `{}` has the property {key}, but names that begin with `millpond.` are kept for the stamp; rename it", spec.name)));
        }
        Ok(())
    }

    async fn create(&self, spec: &TableSpec, birth: &Stamp) -> Result<(), CommitError> {
        Self::check_properties(spec)?;
        let file_id = (self.ambient.new_id)();
        let metadata = self.fresh_metadata(spec, birth, file_id)?;
        let location = format!("{}/metadata/{}", metadata.location(), names::metadata(0, file_id));
        if location.len() > 1000 {
            return Err(CommitError::Refused(format!("table `{}` would lie at {location}, but a SQL catalog holds locations of at most 1000 characters; shorten `lake.root`", spec.name)));
        }
        failpoint::hit("create-before-metadata");
        self.write_metadata(&metadata, &location).await?;
        failpoint::hit("create-after-metadata");
        let now = self.catalog.create_table(&self.namespace, &spec.name, &location).await;
        failpoint::hit("create-after-entry");
        match now {
            // Who lost the race opens what the other made.
            Ok(now) if now != location => {
                let _ = self.io.delete(&location).await;
            }
            Ok(_) => self.write_version_hint(&metadata, &location).await,
            // The file stays: if the row was made after all, it names it.
            Err(e) => return Err(unavailable(e)),
        }
        Ok(())
    }

    fn fresh_metadata(&self, spec: &TableSpec, birth: &Stamp, file_id: Uuid) -> Result<TableMetadata, CommitError> {
        let refused = |e: iceberg::Error| CommitError::Refused(format!("table `{}` cannot be made in Iceberg: {e}", spec.name));
        let schema = schema::iceberg_schema(spec)?;
        let partitioning = schema::partition_spec(spec, &schema)?;
        let uuid = (self.ambient.new_id)();
        let mut properties: HashMap<String, String> = asked_for(spec).collect();
        properties.entry("write.parquet.compression-codec".into()).or_insert_with(|| "zstd".into());
        properties.entry("write.metadata.previous-versions-max".into()).or_insert_with(|| "100".into());
        properties.insert(stamp::TABLE_UUID.into(), uuid.to_string());
        properties.insert(stamp::METADATA_ID.into(), file_id.to_string());
        properties.extend(stamp::pairs(birth, (self.ambient.new_id)()));
        let location = self.root.location(&table_folder(&self.pipeline, &spec.name));
        let create = |schema, partitioning| {
            let creation = TableCreation::builder()
                .name(spec.name.clone())
                .location(location.clone())
                .schema(schema)
                .partition_spec(partitioning)
                .properties(properties.clone())
                .format_version(FormatVersion::V2)
                .build();
            TableMetadataBuilder::from_table_creation(creation)
        };
        // The crate numbers the fields of a fresh table itself. Where that is not our numbering (the
        // columns evolved before this table was made) the table starts empty and gets our schema.
        let plain = create(schema.clone(), partitioning.clone()).map_err(refused)?.assign_uuid(uuid).build().map_err(refused)?.metadata;
        if plain.current_schema().as_struct() == schema.as_struct() {
            return Ok(plain);
        }
        let empty = iceberg::spec::Schema::builder().build().map_err(refused)?;
        let built = create(empty, iceberg::spec::UnboundPartitionSpec::builder().build())
            .and_then(|b| b.assign_uuid(uuid).add_current_schema(schema))
            .and_then(|b| b.add_default_partition_spec(partitioning))
            .and_then(|b| b.remove_schemas(&[0]))
            .and_then(|b| b.build())
            .map_err(refused)?;
        Ok(built.metadata)
    }

    async fn read_metadata(&self, location: &str) -> Result<TableMetadata, CommitError> {
        TableMetadata::read_from(&self.io, location).await.map_err(|e| damaged("metadata file", location, e))
    }

    /// A manifest, whole: an Avro file that was cut between two blocks still parses.
    async fn read_manifest(&self, file: &ManifestFile) -> Result<Arc<Manifest>, CommitError> {
        let path = &file.manifest_path;
        let key = (path.clone(), file.sequence_number, file.added_snapshot_id);
        if let Some(known) = self.manifests.lock().unwrap_or_else(|e| e.into_inner()).by.get(&key) {
            return Ok(known.clone());
        }
        let manifest = file.load_manifest(&self.io).await.map_err(|e| damaged("manifest", path, e))?;
        let counts = [file.added_files_count, file.existing_files_count, file.deleted_files_count];
        let listed = counts.into_iter().sum::<Option<u32>>().map(|n| n as usize);
        match listed {
            Some(listed) if listed != manifest.entries().len() => {
                let found = manifest.entries().len();
                Err(CommitError::Refused(format!("the Iceberg manifest {path} is damaged: expected {listed} entries, found {found}; restore it from a copy")))
            }
            _ => {
                let manifest = Arc::new(manifest);
                self.manifests.lock().unwrap_or_else(|e| e.into_inner()).keep(key, manifest.clone());
                Ok(manifest)
            }
        }
    }

    async fn write_metadata(&self, metadata: &TableMetadata, location: &str) -> Result<u64, CommitError> {
        let json = serde_json::to_vec(metadata).map_err(|e| CommitError::Refused(format!("the table's metadata is no JSON: {e}")))?;
        let bytes = json.len() as u64;
        let output = self.io.new_output(location).map_err(storage)?;
        output.write(json.into()).await.map_err(storage)?;
        Ok(bytes)
    }

    /// For readers that open the table by its folder, such as DuckDB. Never read by us, so that a
    /// failure to write it costs them a version and us nothing.
    async fn write_version_hint(&self, metadata: &TableMetadata, location: &str) {
        let name = location.rsplit('/').next().unwrap_or(location).trim_end_matches(".metadata.json").to_string();
        if let Ok(output) = self.io.new_output(format!("{}/metadata/version-hint.text", metadata.location())) {
            let _ = output.write(name.into()).await;
        }
    }
}

/// The properties that the pipeline file asks for, its comment among them.
fn asked_for(spec: &TableSpec) -> impl Iterator<Item = (String, String)> {
    let properties = spec.properties.iter().filter(|(k, _)| !REFUSED_PROPERTIES.contains(&k.as_str()));
    properties.map(|(k, v)| (k.clone(), v.clone())).chain(spec.comment.clone().map(|c| ("comment".to_string(), c)))
}

fn unavailable(e: CatalogError) -> CommitError {
    CommitError::Unavailable(e.to_string())
}

/// An error of a read: the store's, or one of what was read.
fn damaged(what: &str, location: &str, e: iceberg::Error) -> CommitError {
    match e.kind() {
        ErrorKind::DataInvalid => CommitError::Refused(format!("the Iceberg {what} {location} is damaged: {e}; restore it from a copy")),
        _ => storage(e),
    }
}

fn storage(e: iceberg::Error) -> CommitError {
    match e.kind() {
        // A file outside the lake: it will not come into it.
        ErrorKind::FeatureUnsupported => CommitError::Refused(e.message().to_string()),
        _ => CommitError::Unavailable(e.to_string()),
    }
}

#[cfg(test)]
mod tests;
