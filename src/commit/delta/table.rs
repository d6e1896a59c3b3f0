//! One Delta table: its newest state, and commits on top of it.

use super::log::{self, Add, Remove, State, Txn, encode_path, object_path, unavailable};
use super::publish::{self, Verdict};
use super::{ENGINE, INFO_ATTEMPT, INFO_ENTRY, INFO_LAST_COLUMN, INFO_LOG, INFO_OFFSETS, Site, lines, protocol, references, rewrite, schema, stats, upkeep};
use crate::commit::{ANOTHER_NAME, Base, CommitError, CommitReport, CommitRow, Committed, LakeTable, LiveFile, Rewritten, Stamp, TableChange};
use crate::mutant::{self, Mutant};
use crate::observe::FileCounts;
use crate::pipeline::TableFormatKind;
use crate::stage::{DataFile, Scalar, TableSpec, names};
use async_trait::async_trait;
use object_store::{ObjectStoreExt, path::Path};
use roaring::RoaringTreemap;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// A Delta table that this pipeline's log fills.
pub struct DeltaTable {
    site: Site,
    spec: Arc<TableSpec>,
    log: Uuid,
    uuid: String,
    state: State,
    /// The version that the caller knew last: foreign commits are counted from there.
    known: u64,
    /// Not ours, beyond `known`.
    foreign: u64,
    /// The highest entry ever seen in it: a table that says less was rolled back.
    entry: i64,
    /// The state may not be the table's any more: read it from nothing.
    suspect: bool,
    loaded: bool,
    /// What was found to fit: protocol and metadata, and the spec that was asked for.
    fitting: Option<(Value, Value, Arc<TableSpec>)>,
    upkeep_error: Option<String>,
}

impl DeltaTable {
    pub(super) fn new(site: Site, spec: Arc<TableSpec>, state: State, log: Uuid) -> Result<Self, CommitError> {
        // Before the first load nothing is known but our own newest commit.
        let known = state.origins.first().filter(|o| o.ours.is_some()).map_or(state.version, |o| o.version);
        let (uuid, foreign) = (state.table_uuid().to_string(), state.version - known);
        let mut table = Self { site, spec, log, uuid, state, known, foreign, entry: -1, suspect: false, loaded: false, fitting: None, upkeep_error: None };
        table.check()?;
        Ok(table)
    }

    /// Why the newest checkpoint or cleanup of the log failed; it is tried again. The commits stand.
    pub fn upkeep_error(&self) -> Option<&str> {
        self.upkeep_error.as_deref()
    }

    fn app_id(&self) -> String {
        format!("{}{}", super::app_prefix(&self.site.pipeline), self.log)
    }

    fn refuse(&self, why: impl std::fmt::Display) -> CommitError {
        CommitError::Refused(format!("{}: {why}", self.site.url))
    }

    /// Whether the state is that of the table we know, and one we may write to.
    fn check(&mut self) -> Result<Base, CommitError> {
        let state = &self.state;
        if state.table_uuid() != self.uuid {
            return Err(self.refuse(format!(
                "the table was recreated: its id is {} and was {}; bring the old one back, or {ANOTHER_NAME}",
                state.table_uuid(),
                self.uuid
            )));
        }
        let fits = self.fitting.as_ref().is_some_and(|(p, m, spec)| *p == state.protocol && *m == state.metadata && Arc::ptr_eq(spec, &self.spec));
        if let Some(feature) = Some(state).filter(|_| !fits).and_then(|s| protocol::refusal(&s.protocol, &s.metadata)) {
            return Err(self.refuse(format!("it has {feature}: millpond does not write to it until that is taken off")));
        }
        let choices = format!("restore it forward to where it was, or {ANOTHER_NAME} (accepting the loss: not in this version)");
        let log = super::stamped_by(state, &self.site)?;
        let entry = state.txns.get(&self.app_id()).copied();
        let Some(entry) = entry.filter(|_| log == self.log) else {
            return Err(self.refuse(format!("it carries the stamp of log {log}, and ours is {}", self.log)));
        };
        if entry < self.entry {
            return Err(self.refuse(format!("rolled back: its stamp says entry {entry} and said {}; {choices}", self.entry)));
        }
        let ours = state.origins.first().and_then(|o| o.ours.as_ref());
        match ours {
            Some((log, at)) if *log == self.log.to_string() && *at as i64 == entry => {}
            _ => {
                return Err(self.refuse(format!(
                    "unproven: the commit that stamped entry {entry} is no longer in the delta log, so nobody can tell whether a RESTORE went below it; \
                     restore its commit file from a copy, or {ANOTHER_NAME}"
                )));
            }
        }
        if !log::holds_first(&state.origins) && !mutant::on(Mutant::RollbackIgnored) {
            let by = state.origins.iter().rev().find(|o| o.restore.is_some());
            let first = &state.origins[0];
            return Err(self.refuse(format!(
                "rolled back: a RESTORE (version {}) went below version {}, which holds entry {entry}; {choices}",
                by.map_or(state.version, |o| o.version),
                first.version
            )));
        }
        if !fits {
            self.fit()?;
            self.fitting = Some((self.state.protocol.clone(), self.state.metadata.clone(), self.spec.clone()));
        }
        self.entry = entry;
        Ok(Base {
            version: self.state.version.to_string(),
            table_uuid: self.uuid.clone(),
            stamp: Stamp { log: self.log, entry: entry as u64, offsets: serde_json::from_value(self.state.offsets.clone()).unwrap_or_default() },
            foreign_commits: self.foreign,
        })
    }

    /// Whether its columns and partitions are those that are asked for, or can become them.
    fn fit(&self) -> Result<(), CommitError> {
        let state = &self.state;
        self.compared(&self.spec)?;
        let (want, have) = (super::partition_columns(&self.spec).map_err(|e| self.refuse(e))?, state.partition_columns());
        if want != have {
            return Err(self.refuse(format!("it is partitioned by [{}] and the pipeline asks for [{}]; {}", have.join(", "), want.join(", "), self.back())));
        }
        Ok(())
    }

    /// The way out of what others made of the columns.
    fn back(&self) -> String {
        let ours = self.state.origins.first().filter(|o| o.ours.is_some()).map_or(String::new(), |o| format!(", or RESTORE it to version {}", o.version));
        format!("take that back with the tool that did it{ours}, or {ANOTHER_NAME}; what was decided for it waits in the log")
    }

    /// The table's columns, and those that a commit under this spec adds.
    fn compared(&self, spec: &TableSpec) -> Result<(Vec<Value>, Vec<Value>), CommitError> {
        let have = schema::parse_schema(self.state.metadata["schemaString"].as_str().unwrap_or_default()).map_err(|e| self.refuse(e))?;
        let want = schema::delta_fields(&spec.schema).map_err(|e| self.refuse(e))?;
        let mut fit = schema::fit(&want, &have);
        fit.differences.extend(schema::dropped(&spec.schema, &fit.missing, self.state.last_column));
        if !fit.differences.is_empty() {
            return Err(self.refuse(format!("the schema does not fit: {}; {}", fit.differences.join("; "), self.back())));
        }
        Ok((have, fit.missing))
    }

    /// Brings the state up to the newest version.
    async fn refresh(&mut self) -> Result<(), CommitError> {
        if !self.suspect && self.advance().await? {
            return Ok(());
        }
        self.suspect = true;
        let state = log::read(self.site.store.as_ref()).await.map_err(|e| super::named(&self.site.url, e))?;
        self.state = state.ok_or_else(|| self.refuse(format!("its delta log has vanished; bring the folder back, or {ANOTHER_NAME}")))?;
        if self.state.version < self.known && self.state.table_uuid() == self.uuid {
            return Err(self.refuse(format!("its log ends at version {} and reached {} before: commits were deleted; restore them from a copy", self.state.version, self.known)));
        }
        let ours = self.state.origins.iter().filter(|o| o.ours.is_some() && o.version > self.known).count() as u64;
        self.foreign = self.state.version.saturating_sub(self.known).saturating_sub(ours);
        self.suspect = false;
        Ok(())
    }

    /// Applies the commits above the state; `false` where the log does not continue it.
    async fn advance(&mut self) -> Result<bool, CommitError> {
        let from = self.state.version;
        let listing = log::list(self.site.store.as_ref(), Some(from)).await?;
        let Some(base) = listing.commits.get(&from) else { return Ok(false) };
        if self.state.etag.is_some() && base.e_tag.is_some() && self.state.etag != base.e_tag {
            return Ok(false);
        }
        let newest = listing.newest().unwrap_or(from);
        if (from + 1..=newest).any(|v| !listing.commits.contains_key(&v)) {
            return Ok(false);
        }
        // Until all of them are in, the state is nobody's.
        self.suspect = true;
        for version in from + 1..=newest {
            let read = |e| unavailable(&format!("read commit {version} of {}", self.site.url), e);
            let answer = match self.site.store.get(&log::commit_path(version)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(false),
                answer => answer.map_err(read)?,
            };
            let etag = answer.meta.e_tag.clone();
            let bytes = answer.bytes().await.map_err(read)?;
            self.state.apply_commit(version, &bytes, etag).map_err(|e| super::named(&self.site.url, e))?;
            if self.state.origins.last().is_some_and(|o| o.ours.is_none()) {
                self.foreign += 1;
            }
        }
        self.state.checkpoint = self.state.checkpoint.max(listing.checkpoints.keys().next_back().copied());
        self.suspect = false;
        Ok(true)
    }

    /// The live add behind a path as [`LakeTable::live_files`] gives it.
    fn live(&self, path: &str) -> Result<&Add, CommitError> {
        let inside = path.strip_prefix(&self.site.folder).and_then(|p| p.strip_prefix('/'));
        let inside = inside.ok_or_else(|| self.refuse(format!("file {path} does not lie in the table's folder")))?;
        let encoded = encode_path(inside);
        let near = self.state.files.range((encoded.clone(), String::new())..).next().filter(|((p, _), _)| *p == encoded).map(|(_, add)| add);
        // Other writers encode other characters.
        let found = near.or_else(|| self.state.files.values().find(|a| object_path(&a.path).is_ok_and(|p| p.as_ref() == inside)));
        found.ok_or_else(|| self.refuse(format!("rows are to be deleted from {path}, which is not a live file of version {}", self.state.version)))
    }

    fn partition_values(&self, file: &DataFile, spec: &TableSpec) -> Result<BTreeMap<String, Option<String>>, CommitError> {
        let columns = self.state.partition_columns();
        if file.partition.len() != columns.len() {
            return Err(self.refuse(format!("{} has {} partition values and the table {} partition columns", file.path, file.partition.len(), columns.len())));
        }
        let value = |(column, value): (String, &Option<Scalar>)| {
            let field = spec.schema.field_with_name(&column).map_err(|e| self.refuse(e))?;
            Ok((column, stats::partition_text(field, value.as_ref()).map_err(|e| self.refuse(e))?))
        };
        columns.into_iter().zip(&file.partition).map(value).collect()
    }

    fn stats_of(&self, file: &DataFile, spec: &TableSpec) -> String {
        let indexed = self.state.config("delta.dataSkippingNumIndexedCols");
        stats::to_json(&spec.schema, &self.state.partition_columns(), file.records, &file.columns, indexed)
    }

    /// Rewrites one file without these rows; `None` when they are gone already.
    async fn rewrite(&self, path: &str, add: &Add, positions: &RoaringTreemap, spec: &Arc<TableSpec>) -> Result<Option<Rewritten>, CommitError> {
        let at = object_path(&add.path)?;
        let store = self.site.store.as_ref();
        let mut dropped = positions.clone();
        if let Some(vector) = &add.deletion_vector {
            let deleted = vector.read(store).await?;
            if positions.is_subset(&deleted) {
                return Ok(None);
            }
            dropped |= deleted;
        }
        if dropped.is_empty() {
            return Ok(None);
        }
        let read = |e| unavailable(&format!("read data file {path}"), e);
        let bytes = store.get(&at).await.map_err(read)?.bytes().await.map_err(read)?;
        let (drop, spec_here) = (dropped.clone(), spec.clone());
        // Decoding and encoding a file would hold up everything else on this thread.
        let rest = crate::runtime::offload(move || rewrite::without(bytes, &drop, &spec_here)).await;
        let rest = rest.map_err(|e| self.refuse(format!("data file {path} could not be rewritten: {e}")))?;
        let rest = rest.map_err(|e| self.refuse(format!("data file {path} could not be rewritten: {e}")))?;
        let Some(file) = rest.file else { return Ok(Some(Rewritten { old: path.to_string(), new: None, dropped })) };
        // The name says from which stamp it was made: once the table has passed it, an unreferenced one may go.
        let name = names::rewritten(self.entry.max(0) as u64, (self.site.ids)());
        let mut parts: Vec<String> = at.parts().map(|p| p.as_ref().to_string()).collect();
        parts.pop();
        parts.push(name);
        let new_path = Path::parse(parts.join("/")).map_err(|e| self.refuse(e))?;
        let size = file.len() as u64;
        store.put(&new_path, file.into()).await.map_err(|e| unavailable(&format!("write data file {new_path} of {}", self.site.url), e))?;
        let value = |column: &String| {
            let text = add.partition_values.get(column).cloned().flatten()?;
            stats::parse_value(spec.schema.field_with_name(column).ok()?, &text)
        };
        let new = DataFile {
            path: format!("{}/{new_path}", self.site.folder),
            bytes: size,
            records: rest.records,
            partition: self.state.partition_columns().iter().map(value).collect(),
            columns: rest.columns,
            split_offsets: rest.split_offsets,
        };
        Ok(Some(Rewritten { old: path.to_string(), new: Some(new), dropped }))
    }

    fn add_action(&self, file: &DataFile, values: BTreeMap<String, Option<String>>, spec: &TableSpec, now: i64) -> Result<Value, CommitError> {
        let inside = file.path.strip_prefix(&self.site.folder).and_then(|p| p.strip_prefix('/'));
        let inside = inside.ok_or_else(|| self.refuse(format!("file {} does not lie in the table's folder {}", file.path, self.site.folder)))?;
        let path = encode_path(inside);
        if self.state.files.contains_key(&(path.clone(), String::new())) {
            return Err(self.refuse(format!("file {} is in the table already", file.path)));
        }
        let stats = Some(self.stats_of(file, spec));
        let add = Add { path, partition_values: values, size: file.bytes as i64, modification_time: now, data_change: true, stats, deletion_vector: None };
        Ok(json!({ "add": add }))
    }

    fn remove_action(&self, add: &Add, now: i64) -> Value {
        // A checkpoint may have dropped the nulls: the protocol wants one value per partition column.
        let values = self.state.partition_columns().into_iter().map(|c| (add.partition_values.get(&c).cloned().flatten(), c)).map(|(v, c)| (c, v)).collect();
        let remove = Remove {
            path: add.path.clone(),
            deletion_timestamp: Some(now),
            data_change: true,
            extended_file_metadata: Some(true),
            partition_values: Some(values),
            size: Some(add.size),
            deletion_vector: add.deletion_vector.clone(),
        };
        json!({ "remove": remove })
    }

    /// Protocol and metadata actions that the spec after the commit asks for.
    fn evolution(&self, spec: &TableSpec) -> Result<Vec<Value>, CommitError> {
        let (have, missing) = self.compared(spec)?;
        let mut metadata = self.state.metadata.clone();
        for (key, value) in &spec.properties {
            metadata["configuration"][key] = json!(value);
        }
        if let Some(comment) = &spec.comment {
            metadata["description"] = json!(comment);
        }
        if missing.is_empty() && metadata == self.state.metadata {
            return Ok(Vec::new());
        }
        let mut actions = Vec::new();
        if schema::has_ntz(&missing)
            && let Some(up) = protocol::with_ntz(&self.state.protocol)
        {
            actions.push(json!({ "protocol": up }));
        }
        if !missing.is_empty() {
            let all: Vec<Value> = have.into_iter().chain(missing).collect();
            metadata["schemaString"] = json!(schema::schema_string(&all));
        }
        actions.push(json!({ "metaData": metadata }));
        Ok(actions)
    }

    /// After a put at `version` that seems to be ours: is that name still part of the live log? A
    /// name below a checkpoint is free again, and a writer that slept may have put its commit there.
    async fn in_live_log(&self, version: u64) -> Result<(), String> {
        let listing = log::list(self.site.store.as_ref(), Some(version - 1)).await.map_err(|e| e.to_string())?;
        if let Some(checkpoint) = listing.checkpoints.keys().find(|c| **c >= version) {
            return Err(format!("a checkpoint of version {checkpoint} is there already"));
        }
        let base = listing.commits.get(&(version - 1)).ok_or_else(|| format!("commit {} below it is gone", version - 1))?;
        let same = self.state.etag.is_none() || base.e_tag.is_none() || base.e_tag == self.state.etag;
        if same { Ok(()) } else { Err(format!("commit {} below it is not the one that was read", version - 1)) }
    }

    /// Best effort: the commits stand without it.
    async fn keep_up(&mut self) {
        let (version, newest) = (self.state.version, self.state.checkpoint.unwrap_or(0));
        if version - newest < upkeep::checkpoint_interval(&self.state) {
            return;
        }
        let done = match upkeep::checkpoint(self.site.store.clone(), version).await {
            Ok(()) => {
                self.state.checkpoint = Some(version);
                upkeep::clean(self.site.store.as_ref(), &self.state, (self.site.clock)()).await.map(|_| ())
            }
            Err(e) => Err(e),
        };
        self.upkeep_error = done.err().map(|e| format!("{}: upkeep of the delta log at version {version}: {e}", self.site.url));
    }
}

#[async_trait]
impl LakeTable for DeltaTable {
    fn format(&self) -> TableFormatKind {
        TableFormatKind::Delta
    }

    fn compaction(&self) -> &'static str {
        "`optimize.compact()` of deltalake, say"
    }

    fn spec(&self) -> &Arc<TableSpec> {
        &self.spec
    }

    fn expect(&mut self, spec: Arc<TableSpec>) {
        self.spec = spec;
    }

    async fn load(&mut self) -> Result<Base, CommitError> {
        self.refresh().await?;
        let base = self.check()?;
        (self.known, self.foreign, self.loaded) = (self.state.version, 0, true);
        Ok(base)
    }

    async fn commit(&mut self, change: TableChange) -> Result<Committed, CommitError> {
        if !self.loaded || self.suspect {
            return Ok(Committed::Moved);
        }
        if change.stamp.log != self.log || (change.stamp.entry as i64) < self.entry {
            return Err(self.refuse(format!(
                "a commit of log {} entry {} was asked for on top of log {} entry {}",
                change.stamp.log, change.stamp.entry, self.log, self.entry
            )));
        }
        if !change.delete.is_empty() && self.state.config("delta.appendOnly").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            return Err(self.refuse("rows are to be deleted and someone set delta.appendOnly = true: unset it, or make the table append-only in the pipeline"));
        }
        let now = (self.site.clock)();
        let version = self.state.version + 1;
        let spec = change.spec.clone();
        let mut report = CommitReport { version: version.to_string(), snapshot: version.to_string(), ..Default::default() };
        let evolution = self.evolution(&spec)?;
        let (mut removes, mut adds) = (Vec::new(), Vec::new());
        let (mut inserted, mut copied, mut deleted) = (0u64, 0u64, 0u64);
        for (path, positions) in &change.delete {
            let add = match self.live(path) {
                Err(_) if mutant::on(Mutant::DeletesLostUnderCompaction) => continue,
                live => live?.clone(),
            };
            let Some(rewritten) = self.rewrite(path, &add, positions, &spec).await? else { continue };
            report.data_files_read += 1;
            removes.push(self.remove_action(&add, now));
            if let Some(new) = &rewritten.new {
                let values = self.partition_values(new, &spec)?;
                adds.push(self.add_action(new, values, &spec, now)?);
                (copied, report.bytes_written) = (copied + new.records, report.bytes_written + new.bytes);
            }
            let gone_before = add.deletion_vector.as_ref().map_or(0, |v| v.cardinality as u64);
            deleted += rewritten.dropped.len().saturating_sub(gone_before);
            report.rewritten.push(rewritten);
        }
        for file in &change.add {
            let values = self.partition_values(file, &spec)?;
            adds.push(self.add_action(file, values, &spec, now)?);
            (inserted, report.bytes_written) = (inserted + file.records, report.bytes_written + file.bytes);
        }
        let mode = if removes.is_empty() { "Append" } else { "Update" };
        let info = json!({"commitInfo": {
            "timestamp": now, "operation": "STREAMING UPDATE",
            "operationParameters": {"outputMode": mode, "queryId": self.site.pipeline, "epochId": change.stamp.entry.to_string()},
            "readVersion": version - 1, "isolationLevel": "Serializable", "isBlindAppend": removes.is_empty() && !adds.is_empty(),
            "operationMetrics": {
                "numAddedFiles": adds.len().to_string(), "numRemovedFiles": removes.len().to_string(), "numOutputRows": (inserted + copied).to_string(),
                "numInsertedRows": inserted.to_string(), "numCopiedRows": copied.to_string(), "numDeletedRows": deleted.to_string(),
            },
            "engineInfo": ENGINE, INFO_ATTEMPT: change.attempt, INFO_LOG: self.log, INFO_ENTRY: change.stamp.entry, INFO_OFFSETS: change.stamp.offsets,
            INFO_LAST_COLUMN: schema::last_column(&spec.schema),
        }});
        let txn = json!({"txn": Txn { app_id: self.app_id(), version: change.stamp.entry as i64 }});
        let actions: Vec<Value> = [vec![info], evolution, vec![txn], removes, adds].concat();
        let bytes = lines(&actions);
        report.bytes_written += bytes.len() as u64;
        let etag = match publish::create(self.site.store.as_ref(), version, bytes.clone(), change.attempt).await {
            Verdict::Mine(etag) => etag,
            Verdict::Other => return Ok(Committed::Moved),
            Verdict::Unknown(why) => {
                self.suspect = true;
                return Ok(Committed::Unknown(format!("{}: {why}", self.site.url)));
            }
        };
        if let Err(why) = self.in_live_log(version).await {
            self.suspect = true;
            return Ok(Committed::Unknown(format!("{}: commit {version} was written, but {why}", self.site.url)));
        }
        self.suspect = true;
        self.state.apply_commit(version, &bytes, etag)?;
        self.suspect = false;
        (self.known, self.foreign, self.entry) = (version, 0, change.stamp.entry as i64);
        self.spec = spec;
        self.keep_up().await;
        Ok(Committed::Done(report))
    }

    async fn live_files(&mut self) -> Result<Vec<LiveFile>, CommitError> {
        let store = self.site.store.clone();
        let partition_columns = self.state.partition_columns();
        let mut files = Vec::with_capacity(self.state.files.len());
        for add in self.state.files.values() {
            let path = object_path(&add.path)?;
            let (records, columns) = add.stats.as_deref().map_or((None, Vec::new()), |s| stats::from_json(&self.spec.schema, s));
            let records = match records {
                Some(records) => records,
                None => {
                    // A writer that keeps no statistics: the file's footer knows.
                    let read = |e| unavailable(&format!("read data file {path} of {}", self.site.url), e);
                    let bytes = store.get(&path).await.map_err(read)?.bytes().await.map_err(read)?;
                    let metadata = parquet::arrow::arrow_reader::ArrowReaderMetadata::load(&bytes, Default::default());
                    metadata.map_err(|e| self.refuse(format!("data file {path} is not readable: {e}")))?.metadata().file_metadata().num_rows() as u64
                }
            };
            let deleted = match &add.deletion_vector {
                Some(vector) => vector.read(store.as_ref()).await?,
                None => RoaringTreemap::new(),
            };
            let value = |c: &String| (c.clone(), add.partition_values.get(c).cloned().flatten().filter(|v| !v.is_empty()));
            let partition_values = partition_columns.iter().map(value).collect();
            files.push(LiveFile { path: format!("{}/{path}", self.site.folder), bytes: add.size as u64, records, deleted, partition_values, columns });
        }
        Ok(files)
    }

    fn files(&self) -> Option<FileCounts> {
        let each = self.state.files.values();
        Some(each.fold(FileCounts::default(), |sum, add| FileCounts {
            data: sum.data + 1,
            deletes: sum.deletes + u64::from(add.deletion_vector.is_some()),
            bytes: sum.bytes + add.size.max(0) as u64,
        }))
    }

    async fn unneeded(&mut self, names: BTreeSet<String>) -> Result<(Base, BTreeSet<String>), CommitError> {
        let base = self.load().await?;
        let left = references::unneeded(self.site.store.as_ref(), &self.state, &base, names, (self.site.clock)()).await?;
        Ok((base, left))
    }

    async fn history(&mut self, most: usize) -> Result<Vec<CommitRow>, CommitError> {
        let mut rows = Vec::new();
        for version in (0..=self.state.version).rev().take(most) {
            let read = |e| unavailable(&format!("read commit {version} of {}", self.site.url), e);
            let bytes = match self.site.store.get(&log::commit_path(version)).await {
                Err(object_store::Error::NotFound { .. }) => break,
                answer => answer.map_err(read)?.bytes().await.map_err(read)?,
            };
            let lines = log::parse(version, &bytes)?;
            let info = lines.iter().find_map(|l| l.commit_info.clone()).unwrap_or_default();
            let metric = |names: &[&str]| {
                let value = |n: &&str| info["operationMetrics"].get(*n).map(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok()));
                names.iter().find_map(value).flatten()
            };
            let adds: Vec<&Add> = lines.iter().filter_map(|l| l.add.as_ref()).collect();
            let records = |a: &&Add| a.stats.as_deref().and_then(|s| serde_json::from_str::<Value>(s).ok()?["numRecords"].as_u64()).unwrap_or(0);
            let ours = info[INFO_LOG].as_str().is_some_and(|l| l == self.log.to_string());
            rows.push(CommitRow {
                snapshot: version.to_string(),
                committed_at_ms: info["timestamp"].as_i64().unwrap_or(0),
                entry: if ours { info[INFO_ENTRY].as_u64() } else { None },
                operation: info["operation"].as_str().unwrap_or("unknown").to_string(),
                added_files: adds.len() as u64,
                added_records: metric(&["numInsertedRows"]).unwrap_or_else(|| adds.iter().filter(|a| a.data_change).map(records).sum()),
                deleted_records: metric(&["numDeletedRows", "num_deleted_rows"]).unwrap_or(0),
            });
        }
        Ok(rows)
    }
}
