//! The SQL catalog on SQLite, with the tables that PyIceberg, Java and iceberg-rust use: they open
//! this catalog as their own.
//!
//! A table is a row; a commit is a compare-and-swap of its `metadata_location`. Each call opens the
//! database anew: a catalog that was moved or deleted under us is noticed, and never written to as an
//! unlinked file.

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why the catalog gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// Nothing was changed.
    #[error("the Iceberg catalog {path} is busy: {reason}")]
    Busy { path: String, reason: String },
    /// Nothing was changed.
    #[error("the Iceberg catalog {path} cannot be opened: {reason}")]
    Unavailable { path: String, reason: String },
    /// Nothing was changed.
    #[error("the Iceberg catalog {path} is damaged: {reason}; restore it from a copy")]
    Damaged { path: String, reason: String },
    /// Whether something was changed nobody knows.
    #[error("the Iceberg catalog {path} gave no answer to a change: {reason}")]
    AnswerLost { path: String, reason: String },
}

/// Where an Iceberg table's newest metadata lies, and the compare-and-swap that moves it.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The name under which readers open it.
    fn name(&self) -> &str;

    /// Where it is, for people.
    fn place(&self) -> String;

    /// Where a table's newest metadata lies; `None` when there is no such table.
    async fn metadata_location(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError>;

    /// Makes a table unless there is one of that name. Returns the location that the table has afterwards.
    async fn create_table(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError>;

    /// Moves a table from one metadata file to the next. `false`: it is not at `from` any more, and nothing was changed.
    ///
    /// # Errors
    /// Only [`CatalogError::AnswerLost`] leaves it open whether the table moved.
    async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Result<bool, CatalogError>;
}

#[async_trait]
impl Catalog for SqliteCatalog {
    fn name(&self) -> &str {
        self.name()
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }

    async fn metadata_location(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        self.metadata_location(namespace, table).await
    }

    async fn create_table(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        self.create_table(namespace, table, location).await
    }

    async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Result<bool, CatalogError> {
        self.swap(namespace, table, from, to).await
    }
}

/// One catalog in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteCatalog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    name: String,
    busy: Duration,
    /// For tests: the next swap is done, and its answer lost.
    #[cfg(test)]
    lose_answer: std::sync::atomic::AtomicBool,
}

/// How long a locked database is waited for, per try.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const BUSY_TRIES: usize = 3;

impl SqliteCatalog {
    /// Opens the catalog `name` in the file `path`, making file, folder and tables that are missing.
    ///
    /// # Errors
    /// [`CatalogError`] when the file cannot be opened or is no SQLite database.
    pub async fn open(path: &Path, name: &str) -> Result<Self, CatalogError> {
        let catalog = Self {
            shared: Arc::new(Shared {
                path: path.to_path_buf(),
                name: name.to_string(),
                busy: BUSY_TIMEOUT,
                #[cfg(test)]
                lose_answer: Default::default(),
            }),
        };
        let shared = catalog.shared.clone();
        blocking(&catalog.shared, move || {
            if let Some(folder) = shared.path.parent() {
                std::fs::create_dir_all(folder).map_err(|e| shared.unavailable(&e))?;
            }
            let connection = Connection::open(&shared.path).map_err(|e| shared.classify(&e, false))?;
            connection.busy_timeout(shared.busy).map_err(|e| shared.classify(&e, false))?;
            connection
                .query_row("PRAGMA journal_mode=WAL", [], |row| row.get::<_, String>(0))
                .map_err(|e| shared.classify(&e, false))?;
            connection.execute_batch(TABLES).map_err(|e| shared.classify(&e, false))
        })
        .await?;
        Ok(catalog)
    }

    /// The name under which readers open it.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The SQLite file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Where a table's newest metadata lies; `None` when there is no such table.
    pub async fn metadata_location(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        let (shared, namespace, table) = (self.shared.clone(), namespace.to_string(), table.to_string());
        blocking(&self.shared, move || {
            let connection = shared.connect()?;
            let sql = "SELECT metadata_location FROM iceberg_tables WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3";
            connection
                .query_row(sql, params![shared.name, namespace, table], |row| row.get::<_, Option<String>>(0))
                .optional()
                .map(Option::flatten)
                .map_err(|e| shared.classify(&e, false))
        })
        .await
    }

    /// Makes a table (and its namespace) unless there is one of that name. Returns the location that
    /// the table has afterwards: `location`, or what another made it.
    pub async fn create_table(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        let (shared, n, t, l) = (self.shared.clone(), namespace.to_string(), table.to_string(), location.to_string());
        blocking(&self.shared, move || {
            let connection = shared.connect()?;
            let namespace = "INSERT OR IGNORE INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value) VALUES (?1, ?2, 'exists', 'true')";
            connection.execute(namespace, params![shared.name, n]).map_err(|e| shared.classify(&e, true))?;
            let table = "INSERT OR IGNORE INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, previous_metadata_location, iceberg_type) VALUES (?1, ?2, ?3, ?4, NULL, 'TABLE')";
            connection.execute(table, params![shared.name, n, t, l]).map_err(|e| shared.classify(&e, true))
        })
        .await?;
        let now = self.metadata_location(namespace, table).await?;
        now.ok_or_else(|| self.shared.unavailable(&format!("the table {namespace}.{table} vanished while it was made")))
    }

    /// Moves a table from one metadata file to the next. `false`: it is not at `from` any more, and
    /// nothing was changed.
    ///
    /// # Errors
    /// Only [`CatalogError::AnswerLost`] leaves it open whether the table moved.
    pub async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Result<bool, CatalogError> {
        let (shared, namespace, table) = (self.shared.clone(), namespace.to_string(), table.to_string());
        let (from, to) = (from.to_string(), to.to_string());
        blocking(&self.shared, move || {
            let connection = shared.connect()?;
            let sql = "UPDATE iceberg_tables SET metadata_location = ?1, previous_metadata_location = ?2 WHERE catalog_name = ?3 AND table_namespace = ?4 AND table_name = ?5 AND metadata_location = ?2";
            let moved = connection.execute(sql, params![to, from, shared.name, namespace, table]).map_err(|e| shared.classify(&e, true))?;
            #[cfg(test)]
            if shared.lose_answer.swap(false, std::sync::atomic::Ordering::SeqCst) {
                return Err(CatalogError::AnswerLost { path: shared.path.display().to_string(), reason: "lost by the test".into() });
            }
            Ok(moved == 1)
        })
        .await
    }

    /// The next swap happens and says that it does not know.
    #[cfg(test)]
    pub(crate) fn lose_next_answer(&self) {
        self.shared.lose_answer.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS iceberg_tables (
    catalog_name VARCHAR(255) NOT NULL,
    table_namespace VARCHAR(255) NOT NULL,
    table_name VARCHAR(255) NOT NULL,
    metadata_location VARCHAR(1000),
    previous_metadata_location VARCHAR(1000),
    iceberg_type VARCHAR(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name)
);
CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
    catalog_name VARCHAR(255) NOT NULL,
    namespace VARCHAR(255) NOT NULL,
    property_key VARCHAR(255) NOT NULL,
    property_value VARCHAR(1000) NOT NULL,
    PRIMARY KEY (catalog_name, namespace, property_key)
);";

/// Runs a call where it may block, again a few times while the database is locked.
async fn blocking<T, F>(shared: &Arc<Shared>, call: F) -> Result<T, CatalogError>
where
    T: Send + 'static,
    F: Fn() -> Result<T, CatalogError> + Send + 'static,
{
    let tried = crate::runtime::offload(move || {
        let mut answer = call();
        for _ in 1..BUSY_TRIES {
            if !matches!(answer, Err(CatalogError::Busy { .. })) {
                break;
            }
            answer = call();
        }
        answer
    });
    match tried.await {
        Ok(answer) => answer,
        Err(e) => Err(CatalogError::AnswerLost { path: shared.path.display().to_string(), reason: e.to_string() }),
    }
}

impl Shared {
    /// Never makes the file: a catalog that is gone must not come back empty.
    fn connect(&self) -> Result<Connection, CatalogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|e| self.classify(&e, false))?;
        connection.busy_timeout(self.busy).map_err(|e| self.classify(&e, false))?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(|e| self.classify(&e, false))?;
        Ok(connection)
    }

    fn unavailable(&self, reason: &impl ToString) -> CatalogError {
        CatalogError::Unavailable { path: self.path.display().to_string(), reason: reason.to_string() }
    }

    /// A change that SQLite refused was not made; one that failed while it was written may have been.
    fn classify(&self, e: &rusqlite::Error, changing: bool) -> CatalogError {
        let (path, reason) = (self.path.display().to_string(), e.to_string());
        match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => CatalogError::Busy { path, reason },
            Some(ErrorCode::SystemIoFailure | ErrorCode::DiskFull | ErrorCode::DatabaseCorrupt | ErrorCode::OutOfMemory) if changing => {
                CatalogError::AnswerLost { path, reason }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => CatalogError::Damaged { path, reason },
            _ => CatalogError::Unavailable { path, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn catalog() -> (tempfile::TempDir, SqliteCatalog) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = SqliteCatalog::open(&dir.path().join("sub/catalog.db"), "millpond").await.unwrap();
        (dir, catalog)
    }

    #[tokio::test]
    async fn only_who_knows_the_newest_location_moves_a_table() {
        let (_dir, c) = catalog().await;
        assert_eq!(c.metadata_location("ns", "t").await.unwrap(), None);
        assert_eq!(c.create_table("ns", "t", "m0").await.unwrap(), "m0");
        assert_eq!(c.create_table("ns", "t", "other").await.unwrap(), "m0");
        assert!(c.swap("ns", "t", "m0", "m1").await.unwrap());
        assert!(!c.swap("ns", "t", "m0", "m2").await.unwrap());
        assert!(!c.swap("other", "t", "m1", "m2").await.unwrap());
        assert_eq!(c.metadata_location("ns", "t").await.unwrap().as_deref(), Some("m1"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn racing_swaps_have_one_winner() {
        let (_dir, c) = catalog().await;
        c.create_table("ns", "t", "m0").await.unwrap();
        let racers = (0..16).map(|i| {
            let c = c.clone();
            tokio::spawn(async move { c.swap("ns", "t", "m0", &format!("w{i}")).await.unwrap() })
        });
        let won = futures::future::join_all(racers).await.into_iter().filter(|w| *w.as_ref().unwrap()).count();
        assert_eq!(won, 1);
    }

    #[tokio::test]
    async fn a_locked_database_is_busy_and_unchanged() {
        let (_dir, c) = catalog().await;
        c.create_table("ns", "t", "m0").await.unwrap();
        let quick = SqliteCatalog {
            shared: Arc::new(Shared { path: c.shared.path.clone(), name: "millpond".into(), busy: Duration::from_millis(5), lose_answer: Default::default() }),
        };
        let other = Connection::open(&c.shared.path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(matches!(quick.swap("ns", "t", "m0", "m1").await, Err(CatalogError::Busy { .. })));
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(c.metadata_location("ns", "t").await.unwrap().as_deref(), Some("m0"));
    }

    #[tokio::test]
    async fn a_deleted_catalog_does_not_come_back_empty() {
        let (_dir, c) = catalog().await;
        c.create_table("ns", "t", "m0").await.unwrap();
        std::fs::remove_file(&c.shared.path).unwrap();
        assert!(matches!(c.metadata_location("ns", "t").await, Err(CatalogError::Unavailable { .. })));
        assert!(!c.shared.path.exists());
    }
}
