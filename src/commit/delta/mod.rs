//! Delta tables through their log: one attempt at one version, never rebased, never retried blindly.
//!
//! The stamp is `txn {appId: "millpond/<pipeline>/<log uuid>", version: entry}` without
//! `lastUpdated`, so that it never expires; `commitInfo` says who wrote a commit and finds it again
//! when an answer was lost. The log is folded by [`log`], commits are composed by [`table`] and put
//! by [`publish`]; checkpoints are written by deltalake's own kernel ([`upkeep`]).

pub(crate) mod log;
mod protocol;
mod publish;
mod references;
mod rewrite;
mod schema;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;
mod vector;

pub(crate) use protocol::property_refusal;
pub use table::DeltaTable;
pub(crate) use upkeep::interval_ms;

use super::{ANOTHER_NAME, CommitError, LakeTable, Stamp, TableFormat};
use crate::failpoint;
use crate::pipeline::TableFormatKind;
use crate::stage::{TableSpec, data_folder};
use arrow::datatypes::{DataType, Field};
use async_trait::async_trait;
use log::State;
use object_store::{ObjectStore, path::Path, prefix::PrefixStore};
use publish::Verdict;
use serde_json::{Value, json};
use std::sync::Arc;
use url::Url;
use uuid::Uuid;

const INFO_ATTEMPT: &str = "millpond.attempt";
const INFO_LOG: &str = "millpond.log";
const INFO_ENTRY: &str = "millpond.entry";
const INFO_OFFSETS: &str = "millpond.offsets";
/// The highest field id of the columns that the commit leaves the table with: later ones are yet to come.
const INFO_LAST_COLUMN: &str = "millpond.last-column-id";
const ENGINE: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));

/// Milliseconds since 1970-01-01 UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
/// Ids that are never used twice: file names and table ids.
pub type Ids = Arc<dyn Fn() -> Uuid + Send + Sync>;

/// Makes and opens the Delta tables of one pipeline, below `delta/<pipeline>/` of the lake.
#[derive(Clone)]
pub struct DeltaFormat {
    store: Arc<dyn ObjectStore>,
    root_url: Url,
    pipeline: String,
    clock: Clock,
    ids: Ids,
}

/// What a table needs of the world.
#[derive(Clone)]
struct Site {
    /// Rooted at the table's folder.
    store: Arc<dyn ObjectStore>,
    /// The table's folder, relative to the lake's root: `delta/<pipeline>/<table>`.
    folder: String,
    /// The table as users name it: its url.
    url: String,
    pipeline: String,
    clock: Clock,
    ids: Ids,
}

impl DeltaFormat {
    /// `store` is rooted at the lake's root, `root_url` is that root for people and messages.
    pub fn new(store: Arc<dyn ObjectStore>, root_url: Url, pipeline: &str, clock: Clock, ids: Ids) -> Self {
        Self { store, root_url, pipeline: pipeline.to_string(), clock, ids }
    }

    fn site(&self, spec: &TableSpec) -> Result<Site, CommitError> {
        let folder = data_folder(&self.pipeline, TableFormatKind::Delta, &spec.name);
        let prefix = Path::parse(&folder).map_err(|e| CommitError::Refused(format!("table `{}`: its name makes no folder: {e}", spec.name)))?;
        Ok(Site {
            store: Arc::new(PrefixStore::new(self.store.clone(), prefix)),
            url: format!("{}/{folder}", self.root_url.as_str().trim_end_matches('/')),
            folder,
            pipeline: self.pipeline.clone(),
            clock: self.clock.clone(),
            ids: self.ids.clone(),
        })
    }
}

/// The error of a log, with the table that it is of.
fn named(url: &str, e: CommitError) -> CommitError {
    match e {
        CommitError::Refused(why) => CommitError::Refused(format!("{url}: {why}")),
        CommitError::Unavailable(why) => CommitError::Unavailable(format!("{url}: {why}")),
    }
}

/// `txn.appId` of this pipeline's tables, up to the log's uuid.
fn app_prefix(pipeline: &str) -> String {
    format!("millpond/{pipeline}/")
}

/// Whose table this is: the uuid of the log that stamped it. Refuses one that no log of this pipeline did.
fn stamped_by(state: &State, site: &Site) -> Result<Uuid, CommitError> {
    let prefix = app_prefix(&site.pipeline);
    let logs: Vec<Uuid> = state.txns.keys().filter_map(|app| app.strip_prefix(&prefix)?.parse().ok()).collect();
    match logs[..] {
        [log] => Ok(log),
        [] => {
            let others: Vec<&str> = state.txns.keys().map(String::as_str).collect();
            let writers = if others.is_empty() { "nobody's stamp".to_string() } else { format!("the stamps of {}", others.join(", ")) };
            Err(CommitError::Refused(format!(
                "{} is a delta table at version {} that pipeline `{}` did not make (it has {writers}): {ANOTHER_NAME}",
                site.url, state.version, site.pipeline
            )))
        }
        _ => Err(CommitError::Refused(format!(
            "{} carries the stamps of {} logs of pipeline `{}` ({}): {ANOTHER_NAME}",
            site.url,
            logs.len(),
            site.pipeline,
            logs.iter().map(Uuid::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The actions of version 0, one JSON object each.
fn creation(spec: &TableSpec, birth: &Stamp, site: &Site, attempt: Uuid) -> Result<Vec<Value>, CommitError> {
    let refuse = |why: String| CommitError::Refused(format!("table `{}` cannot be made in delta: {why}", spec.name));
    let fields = schema::delta_fields(&spec.schema).map_err(refuse)?;
    let partition_columns = partition_columns(spec).map_err(refuse)?;
    // An empty text is null in a partition column, so that two keys would be one.
    let merges = |f: &&Field| f.is_nullable() && f.data_type() == &DataType::Utf8 && spec.key.contains(f.name()) && partition_columns.contains(f.name());
    if let Some(column) = spec.schema.fields().iter().map(AsRef::as_ref).find(merges) {
        return Err(refuse(format!(
            "it is partitioned by the key column `{}`, a string that may be null: delta reads '' there as null, so that both keys would be one; \
             declare the column `not null` in its source, or partition by another one",
            column.name()
        )));
    }
    if let Some(why) = spec.properties.iter().find_map(|(k, v)| protocol::property_refusal(k, v)) {
        return Err(refuse(why));
    }
    let now = (site.clock)();
    let mut metadata = json!({
        "id": (site.ids)(), "name": spec.name, "format": {"provider": "parquet", "options": {}},
        "schemaString": schema::schema_string(&fields), "partitionColumns": partition_columns,
        "configuration": protocol::configuration(&spec.properties), "createdTime": now,
    });
    if let Some(comment) = &spec.comment {
        metadata["description"] = json!(comment);
    }
    Ok(vec![
        json!({"commitInfo": {
            "timestamp": now, "operation": "CREATE TABLE", "operationParameters": {}, "isBlindAppend": true, "engineInfo": ENGINE,
            INFO_ATTEMPT: attempt, INFO_LOG: birth.log, INFO_ENTRY: birth.entry, INFO_OFFSETS: birth.offsets, INFO_LAST_COLUMN: schema::last_column(&spec.schema),
        }}),
        json!({"protocol": protocol::for_new_table(schema::has_ntz(&fields))}),
        json!({"metaData": metadata}),
        json!({"txn": {"appId": format!("{}{}", app_prefix(&site.pipeline), birth.log), "version": birth.entry}}),
    ])
}

fn partition_columns(spec: &TableSpec) -> Result<Vec<String>, String> {
    let fields = spec.partition_fields(TableFormatKind::Delta);
    for field in fields {
        let column = spec.schema.field_with_name(&field.column).map_err(|_| format!("partition column `{}` is not in the table", field.column))?;
        let ty = schema::delta_type(column)?;
        if !ty.is_string() || ty == "binary" {
            return Err(format!("column `{}` is {}: delta cannot partition by it", field.column, ty.as_str().unwrap_or("nested")));
        }
    }
    Ok(fields.iter().map(|f| f.column.clone()).collect())
}

/// A commit file: one action a line.
fn lines(actions: &[Value]) -> bytes::Bytes {
    let mut text = String::new();
    for action in actions {
        text.push_str(&action.to_string());
        text.push('\n');
    }
    text.into()
}

#[async_trait]
impl TableFormat for DeltaFormat {
    fn check(&self, spec: &TableSpec) -> Result<(), CommitError> {
        let nobody = Stamp { log: Uuid::nil(), entry: 0, offsets: Default::default() };
        creation(spec, &nobody, &self.site(spec)?, Uuid::nil()).map(|_| ())
    }

    async fn open_or_create(&self, spec: Arc<TableSpec>, birth: &Stamp) -> Result<Box<dyn LakeTable>, CommitError> {
        let site = self.site(&spec)?;
        let mut state = log::read(site.store.as_ref()).await.map_err(|e| named(&site.url, e))?;
        if state.is_none() {
            let attempt = (self.ids)();
            let actions = creation(&spec, birth, &site, attempt)?;
            failpoint::hit("create-before-version");
            let verdict = publish::create(site.store.as_ref(), 0, lines(&actions), attempt).await;
            failpoint::hit("create-after-version");
            if let Verdict::Unknown(why) = verdict {
                return Err(CommitError::Unavailable(format!("{} could not be created: {why}", site.url)));
            }
            // Whoever made it: it is judged as it lies there.
            state = log::read(site.store.as_ref()).await.map_err(|e| named(&site.url, e))?;
        }
        let state = state.ok_or_else(|| CommitError::Unavailable(format!("{} was created and is not there", site.url)))?;
        let log = stamped_by(&state, &site)?;
        if log != birth.log {
            return Err(CommitError::Refused(format!(
                "{} was filled from log {log}, and this pipeline's log is {}: bring that log back, or {ANOTHER_NAME}",
                site.url, birth.log
            )));
        }
        Ok(Box::new(DeltaTable::new(site, spec, state, log)?))
    }

    async fn open(&self, spec: Arc<TableSpec>) -> Result<Option<Box<dyn LakeTable>>, CommitError> {
        let site = self.site(&spec)?;
        let Some(state) = log::read(site.store.as_ref()).await.map_err(|e| named(&site.url, e))? else { return Ok(None) };
        let log = stamped_by(&state, &site)?;
        Ok(Some(Box::new(DeltaTable::new(site, spec, state, log)?)))
    }

    fn place(&self, table: &str) -> String {
        format!("{}/delta/{}/{table}", self.root_url.as_str().trim_end_matches('/'), self.pipeline)
    }
}
