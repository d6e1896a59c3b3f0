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

/// How often it is tried.
const TRIES: u128 = 3;

/// Races [`RACERS`] creates of one new name below `folder`; `id` makes the name new. It is tried
/// again under another where there is no answer: a cleaner may take the put of a process that slept for one that a kill cut
/// short. A wrong answer stands, for a store that lies now and then lies.
///
/// # Errors
/// [`ProbeError`], which parts a store that is away from one that lies.
pub async fn create_if_absent(store: &Arc<dyn ObjectStore>, folder: &Path, id: uuid::Uuid) -> Result<(), ProbeError> {
    let mut tried = once(store, folder, id).await;
    for nth in 1..TRIES {
        let Err(ProbeError::Unavailable(_)) = tried else { break };
        tried = once(store, folder, uuid::Uuid::from_u128(id.as_u128() ^ nth)).await;
    }
    tried
}

async fn once(store: &Arc<dyn ObjectStore>, folder: &Path, id: uuid::Uuid) -> Result<(), ProbeError> {
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
    match removed {
        // Somebody was faster.
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(away(format!("cannot delete {path}: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::double::{Delegating, Double};
    use async_trait::async_trait;
    use object_store::memory::InMemory;
    use object_store::{PutPayload, PutResult};
    use std::sync::Mutex;

    /// What a store does with a create whose name is taken.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Taken {
        /// It overwrites, and says that all is well: the condition is ignored.
        Overwrites,
        /// It keeps what is there, and says that all is well.
        KeepsAndLies,
        /// It asks and then writes, with time in between for others: the last of several racers stays.
        AsksFirst,
    }

    #[derive(Debug)]
    struct Unconditional(InMemory, Taken);

    #[async_trait]
    impl Delegating for Unconditional {
        fn inner(&self) -> &dyn ObjectStore {
            &self.0
        }
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
            let taken = self.0.head(at).await.is_ok();
            match self.1 {
                Taken::KeepsAndLies if taken => return Ok(PutResult { e_tag: None, version: None }),
                Taken::AsksFirst if taken => return self.0.put_opts(at, payload, options).await,
                Taken::AsksFirst => tokio::task::yield_now().await,
                Taken::Overwrites | Taken::KeepsAndLies => {}
            }
            self.0.put(at, payload).await
        }
    }

    #[tokio::test]
    async fn local_disk_passes() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(crate::store::local::DurableLocal::open(dir.path()).unwrap());
        create_if_absent(&store, &Path::from("x"), uuid::Uuid::nil()).await.unwrap();
    }

    /// A suite that cannot fail proves nothing.
    #[tokio::test]
    async fn the_conformance_suite_finds_a_store_without_a_conditional_put() {
        for taken in [Taken::Overwrites, Taken::KeepsAndLies, Taken::AsksFirst] {
            let suite = tokio::spawn(crate::store::conformance::holds(Arc::new(Double(Unconditional(InMemory::new(), taken)))));
            assert!(suite.await.is_err_and(|e| e.is_panic()), "{taken:?} passed");
        }
    }

    /// Its first puts fail, as those of a process that slept for longer than a cleaner waits.
    #[derive(Debug)]
    struct Swept(InMemory, Mutex<usize>);

    #[async_trait]
    impl Delegating for Swept {
        fn inner(&self) -> &dyn ObjectStore {
            &self.0
        }
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
            {
                let mut left = self.1.lock().unwrap();
                if *left > 0 {
                    *left -= 1;
                    return Err(Error::NotFound { path: at.to_string(), source: "No such file or directory".into() });
                }
            }
            self.0.put_opts(at, payload, options).await
        }
    }

    #[tokio::test]
    async fn a_put_that_is_swept_away_at_a_start_is_tried_again() {
        let swept = |times| -> Arc<dyn ObjectStore> { Arc::new(Double(Swept(InMemory::new(), Mutex::new(times)))) };
        crate::store::conformance::holds(swept(0)).await;
        let store = swept(RACERS + 3);
        create_if_absent(&store, &Path::from("x"), uuid::Uuid::nil()).await.unwrap();
        let refusal = create_if_absent(&swept(1000), &Path::from("x"), uuid::Uuid::nil()).await.unwrap_err();
        assert!(matches!(&refusal, ProbeError::Unavailable(why) if why.contains("cannot create x/probe-")), "{refusal}");
    }

    /// FAULTS 15.
    #[tokio::test]
    async fn a_store_without_a_conditional_put_is_refused() {
        for taken in [Taken::Overwrites, Taken::KeepsAndLies, Taken::AsksFirst] {
            let store: Arc<dyn ObjectStore> = Arc::new(Double(Unconditional(InMemory::new(), taken)));
            let refusal = create_if_absent(&store, &Path::from("x"), uuid::Uuid::nil()).await.expect_err(&format!("{taken:?} was trusted"));
            assert!(matches!(&refusal, ProbeError::Broken(why) if why.contains("create-if-absent; use another store")), "{taken:?}: {refusal}");
            assert!(refusal.to_string().contains(&uuid::Uuid::nil().to_string()), "a lie was followed by another try: {refusal}");
        }
    }
}
