//! Which tables this log has filled, by their uuids: so that a table that somebody dropped, or made
//! anew under its name, is told from one that was never there. Without it a dropped table would be
//! made again, empty but for what the log still holds; and one made anew would tell the cleaner which files nobody needs.

use super::CommitError;
use crate::pipeline::TableFormatKind;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use uuid::Uuid;

/// `_millpond/<pipeline>/tables/<table>-<born>.<format>.json`, one for each table that was opened once: a name
/// that a later plan gives again is another table.
pub struct Known {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    log: Uuid,
}

#[derive(Serialize, Deserialize)]
struct Record {
    log: Uuid,
    uuid: String,
}

impl Known {
    pub fn new(store: Arc<dyn ObjectStore>, state_folder: &str, log: Uuid) -> Self {
        Self { store, folder: Path::from(format!("{state_folder}/tables")), log }
    }

    fn path(&self, table: &str, format: TableFormatKind, born: u64) -> Path {
        self.folder.clone().join(format!("{table}-{born}.{format}.json"))
    }

    /// The uuid under which this log fills the table; `None` when it was never opened.
    ///
    /// # Errors
    /// A store that does not answer, and a record that is damaged.
    pub async fn uuid(&self, table: &str, format: TableFormatKind, born: u64) -> Result<Option<String>, CommitError> {
        let path = self.path(table, format, born);
        let away = |e: Error| CommitError::Unavailable(format!("cannot read {path}: {e}"));
        let bytes = match self.store.get(&path).await {
            Ok(got) => got.bytes().await.map_err(away)?,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(away(e)),
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| {
            CommitError::Refused(format!("{path} is damaged: {e}; delete it if the {format} table {table} was neither dropped nor made anew"))
        })?;
        Ok((record.log == self.log).then_some(record.uuid))
    }

    /// From here on the table is known under this uuid.
    pub async fn remember(&self, table: &str, format: TableFormatKind, born: u64, uuid: &str) -> Result<(), CommitError> {
        let path = self.path(table, format, born);
        let text = serde_json::json!(Record { log: self.log, uuid: uuid.to_string() }).to_string();
        self.store.put(&path, text.into()).await.map_err(|e| CommitError::Unavailable(format!("cannot write {path}: {e}")))?;
        Ok(())
    }
}
