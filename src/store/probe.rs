//! Is create-if-absent what it says? Asked of every store before it is trusted with a log.
//!
//! Some stores answer yes to all of several racers (PROTOCOLS section 2). The probe cannot see
//! faults that need a lost quorum or several endpoints.

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::sync::Arc;

const RACERS: usize = 8;

/// A name that [`create_if_absent`] gives and takes back: one that is left was cut short by a kill.
pub fn is_probe(path: &Path) -> bool {
    path.filename().and_then(|n| n.strip_prefix("probe-")).is_some_and(|id| uuid::Uuid::try_parse(id).is_ok())
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It gave no answer: it may do so later.
    #[error("{0}")]
    Unavailable(String),
    /// It gave a wrong one, which names what is wrong: it must not be used.
    #[error("{0}")]
    Broken(String),
}

/// Races [`RACERS`] creates of one new name below `folder`; `id` makes the name new.
///
/// # Errors
/// [`ProbeError`], which parts a store that is away from one that lies.
pub async fn create_if_absent(store: &Arc<dyn ObjectStore>, folder: &Path, id: uuid::Uuid) -> Result<(), ProbeError> {
    let away = ProbeError::Unavailable;
    let path = folder.clone().join(format!("probe-{id}"));
    let create = |body: String| {
        let (store, path) = (store.clone(), path.clone());
        tokio::spawn(async move { store.put_opts(&path, body.into(), PutOptions { mode: PutMode::Create, ..Default::default() }).await })
    };
    let racers: Vec<_> = (0..RACERS).map(|n| create(n.to_string())).collect();
    let mut winners = vec![];
    for (n, racer) in racers.into_iter().enumerate() {
        match racer.await.map_err(|e| away(e.to_string()))? {
            Ok(_) => winners.push(n),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(e) => return Err(away(format!("the store cannot create {path}: {e}; check the path, its permissions and free space"))),
        }
    }
    let body = store.get(&path).await.map_err(|e| away(format!("cannot read {path} back: {e}")))?.bytes().await.map_err(|e| away(e.to_string()))?;
    let late = create("late".into()).await.map_err(|e| away(e.to_string()))?;
    let removed = store.delete(&path).await;
    let [winner] = winners[..] else {
        return Err(ProbeError::Broken(format!("{} of {RACERS} racing creates of {path} succeeded, expected exactly 1: this store has no atomic create-if-absent; use another store", winners.len())));
    };
    if body != winner.to_string() {
        return Err(ProbeError::Broken(format!("{path} holds {body:?} and the winner wrote {winner:?}: this store has no atomic create-if-absent; use another store")));
    }
    if late.is_ok() {
        return Err(ProbeError::Broken(format!("{path} was created a second time: this store ignores create-if-absent; use another store")));
    }
    removed.map_err(|e| away(format!("cannot delete {path}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn local_disk_passes() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(crate::store::local::DurableLocal::open(dir.path()).unwrap());
        create_if_absent(&store, &Path::from("x"), uuid::Uuid::nil()).await.unwrap();
    }
}
