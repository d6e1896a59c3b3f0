//! An object store that lies in every way a store can, and a catalog of the same kind.
//!
//! What is really there lies in memory and is never wrong. Between it and each worker stands a
//! [`WorkerStore`]: calls take their time or sleep for long, answers are lost, puts land and are
//! denied, are denied and land later, or are told to be taken without anything having been written.

use super::disk::UnderWay;
use super::world::World;
use async_trait::async_trait;
use bytes::Bytes;
use crate::commit::iceberg::Catalog;
use crate::commit::iceberg::catalog::CatalogError;
use crate::store::double::{Delegating, lost, taken};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::*;
use std::sync::Arc;
use std::time::Duration;

/// The store as one life of a worker sees it.
#[derive(Clone)]
pub struct WorkerStore {
    pub world: Arc<World>,
    pub who: String,
}

impl std::fmt::Debug for WorkerStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the store of {}", self.who)
    }
}

/// What becomes of a call that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// Nothing was done.
    Denied,
    /// Done; the answer is lost.
    AnswerLost,
    /// Done, and the client that sent it twice says that it was there already.
    SentTwice,
    /// Nothing was written, and the answer says that something was there.
    EmptyConflict,
    /// Done when nobody thinks of it any more.
    LandsLate,
    /// Done at once, and a second time much later.
    LandsAgain,
}

fn away(what: &str) -> Error {
    Error::Generic { store: "simulated", source: what.to_string().into() }
}

impl WorkerStore {
    async fn put_for_real(&self, at: &Path, bytes: Bytes, create: bool) -> Result<PutResult> {
        self.world.put(&self.who, at, bytes, create).await
    }

    fn later(&self, at: &Path, bytes: Bytes, create: bool) {
        let (store, at) = (self.clone(), at.clone());
        let wait = self.world.a_long_time(&at);
        self.world.later(async move {
            tokio::time::sleep(wait).await;
            let landed = store.put_for_real(&at, bytes, create).await.is_ok();
            store.world.trace.note(&store.who, format_args!("put of {at} arrives late: {}", if landed { "lands" } else { "is refused" }));
        });
    }
}

#[async_trait]
impl Delegating for WorkerStore {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.world.objects
    }

    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let bytes: Bytes = payload.into();
        let create = matches!(options.mode, PutMode::Create);
        let mut under_way = UnderWay::begin(&self.world, &self.who, at, &bytes);
        self.world.dawdle_before_put(&self.who, at, create).await;
        if under_way.as_ref().is_some_and(|u| u.is_gone()) {
            return Err(away("cannot link: no such file"));
        }
        let fate = self.world.fate(at, create);
        if fate != Fate::Done {
            self.world.trace.note(&self.who, format_args!("put {at}: {fate:?}"));
        }
        let answer = match fate {
            Fate::Done => self.put_for_real(at, bytes, create).await,
            Fate::Denied => Err(away("503 slow down")),
            Fate::AnswerLost => self.put_for_real(at, bytes, create).await.and(Err(lost())),
            Fate::SentTwice => self.put_for_real(at, bytes, create).await.and(Err(taken(at))),
            Fate::EmptyConflict => Err(taken(at)),
            Fate::LandsLate => {
                self.later(at, bytes, create);
                Err(away("timed out"))
            }
            Fate::LandsAgain => {
                self.later(at, bytes.clone(), create);
                self.put_for_real(at, bytes, create).await
            }
        };
        // A new name is linked, and the temporary one removed; another takes its place.
        under_way.iter_mut().filter(|_| !create).for_each(UnderWay::finish);
        self.world.dawdle(&self.who, at).await;
        under_way.iter_mut().for_each(UnderWay::finish);
        answer
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.world.dawdle(&self.who, at).await;
        if self.world.read_fails(at) {
            return Err(away("503 slow down"));
        }
        let got = self.world.objects.get_opts(at, options).await;
        // Sometimes what was read is old when it arrives.
        self.world.dawdle(&self.who, at).await;
        got
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        paths
            .then(move |path| {
                let store = store.clone();
                async move {
                    let path = path?;
                    store.world.dawdle(&store.who, &path).await;
                    let fate = store.world.fate(&path, false);
                    if matches!(fate, Fate::Denied | Fate::EmptyConflict) {
                        return Err(away("503 slow down"));
                    }
                    store.world.delete(&store.who, &path).await?;
                    if matches!(fate, Fate::AnswerLost | Fate::LandsLate) {
                        return Err(lost());
                    }
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        async move {
            store.world.dawdle(&store.who, &prefix).await;
            if store.world.read_fails(&prefix) {
                return Err(away("503 slow down"));
            }
            let listed: Vec<ObjectMeta> = store.world.objects.list(Some(&prefix)).try_collect().await?;
            store.world.dawdle(&store.who, &prefix).await;
            let dated = listed.into_iter().map(|meta| Ok(store.world.dated(meta)));
            Ok(futures::stream::iter(dated.collect::<Vec<Result<ObjectMeta>>>()))
        }
        .into_stream()
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        self.world.dawdle(&self.who, &at).await;
        if self.world.read_fails(&at) {
            return Err(away("503 slow down"));
        }
        let mut listed = self.world.objects.list_with_delimiter(prefix).await?;
        listed.objects = listed.objects.into_iter().map(|meta| self.world.dated(meta)).collect();
        Ok(listed)
    }

}

/// The Iceberg catalog as one life of a worker sees it.
#[derive(Clone)]
pub struct WorkerCatalog {
    pub world: Arc<World>,
    pub who: String,
}

impl WorkerCatalog {
    fn busy(&self) -> CatalogError {
        CatalogError::Busy { path: "simulated".into(), reason: "locked".into() }
    }
}

#[async_trait]
impl Catalog for WorkerCatalog {
    fn name(&self) -> &str {
        "millpond"
    }

    fn place(&self) -> String {
        "simulated".into()
    }

    async fn metadata_location(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        let at = Path::from(format!("catalog/{table}"));
        self.world.dawdle(&self.who, &at).await;
        if self.world.read_fails(&at) {
            return Err(self.busy());
        }
        Ok(self.world.location(namespace, table))
    }

    async fn create_table(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        let at = Path::from(format!("catalog/{table}"));
        self.world.dawdle(&self.who, &at).await;
        let fate = self.world.fate(&at, false);
        if matches!(fate, Fate::Denied | Fate::EmptyConflict) {
            return Err(self.busy());
        }
        let now = self.world.create_table(&self.who, namespace, table, location);
        self.world.dawdle(&self.who, &at).await;
        match fate {
            Fate::AnswerLost | Fate::LandsLate => Err(CatalogError::AnswerLost { path: "simulated".into(), reason: "connection reset".into() }),
            _ => Ok(now),
        }
    }

    async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Result<bool, CatalogError> {
        let at = Path::from(format!("catalog/{table}"));
        self.world.dawdle(&self.who, &at).await;
        let fate = self.world.fate(&at, false);
        if fate != Fate::Done {
            self.world.trace.note(&self.who, format_args!("swap of {table}: {fate:?}"));
        }
        let lost = || CatalogError::AnswerLost { path: "simulated".into(), reason: "connection reset".into() };
        let answer = match fate {
            Fate::Denied | Fate::EmptyConflict => Err(self.busy()),
            Fate::AnswerLost | Fate::SentTwice => {
                self.world.swap(&self.who, namespace, table, from, to).await;
                Err(lost())
            }
            Fate::LandsLate => {
                let (world, who, wait) = (self.world.clone(), self.who.clone(), self.world.a_long_time(&at));
                let (namespace, table, from, to) = (namespace.to_string(), table.to_string(), from.to_string(), to.to_string());
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let landed = world.swap(&who, &namespace, &table, &from, &to).await;
                    world.trace.note(&who, format_args!("swap of {table} arrives late: {}", if landed { "lands" } else { "is refused" }));
                });
                Err(lost())
            }
            Fate::Done | Fate::LandsAgain => Ok(self.world.swap(&self.who, namespace, table, from, to).await),
        };
        self.world.dawdle(&self.who, &at).await;
        answer
    }
}

/// The truth, for checks: no faults, no waiting.
#[derive(Clone)]
pub struct TrueCatalog(pub Arc<World>);

#[async_trait]
impl Catalog for TrueCatalog {
    fn name(&self) -> &str {
        "millpond"
    }

    fn place(&self) -> String {
        "simulated".into()
    }

    async fn metadata_location(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        Ok(self.0.location(namespace, table))
    }

    async fn create_table(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        Ok(self.0.create_table("foreign", namespace, table, location))
    }

    async fn swap(&self, namespace: &str, table: &str, from: &str, to: &str) -> Result<bool, CatalogError> {
        Ok(self.0.swap("foreign", namespace, table, from, to).await)
    }
}

/// A pause between two things that a person or a machine does.
pub async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

mod tests {
    use super::*;
    use crate::commit::iceberg::conformance::{Hands, holds, what_it_says_is_so};
    use crate::epoch::protocol_tests::Rng;
    use crate::simulation::world::Temper;
    use crate::store::double::Double;
    use std::collections::BTreeSet;

    impl Hands for TrueCatalog {
        fn drop_table(&self, namespace: &str, table: &str) {
            self.0.drop_table(namespace, table);
        }

        fn tables(&self, namespace: &str) -> BTreeSet<String> {
            self.0.tables_of(namespace)
        }
    }

    /// Every call takes its time, so that swappers get in each other's way.
    fn world(seed: u64, faults: u64) -> Arc<World> {
        World::new(seed, Rng(seed), Temper { faults, naps: 2000, ..Temper::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_true_catalog_holds() {
        let truth = TrueCatalog(world(1, 0));
        holds(truth.clone(), &truth).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_catalog_without_faults_holds() {
        for seed in 0..4 {
            let world = world(seed, 0);
            holds(WorkerCatalog { world: world.clone(), who: "a".into() }, &TrueCatalog(world)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_catalog_that_fails_says_nothing_that_is_not_so() {
        for seed in 0..4 {
            let world = world(seed, 300);
            let catalog = WorkerCatalog { world: world.clone(), who: "a".into() };
            let truth = TrueCatalog(world);
            let told = what_it_says_is_so(&catalog, &truth, &truth, |_| {}).await;
            let all = [told.moved, told.refused, told.not_done, told.unknown_and_done, told.unknown_and_not_done];
            assert!(all.iter().all(|n| *n > 10), "{told:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_without_faults_holds() {
        let world = world(1, 0);
        crate::store::conformance::holds(Arc::new(Double(WorkerStore { world, who: "a".into() }))).await;
    }
}
