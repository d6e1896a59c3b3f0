//! A store that counts what is read of it, for tests that promise not to read.

use crate::store::double::{Delegating, Double};
use async_trait::async_trait;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) type CountingStore = Double<Counting>;

#[derive(Debug)]
pub(crate) struct Counting {
    inner: Arc<dyn ObjectStore>,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl CountingStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self(Counting { inner, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) })
    }
}

impl Counting {
    pub fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

#[async_trait]
impl Delegating for Counting {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.inner.get_opts(location, options).await?;
        self.reads.fetch_add(1, Relaxed);
        self.bytes.fetch_add(result.range.end - result.range.start, Relaxed);
        Ok(result)
    }
}

#[tokio::test]
async fn it_is_a_store_like_any_other() {
    crate::store::conformance::holds(Arc::new(CountingStore::new(Arc::new(object_store::memory::InMemory::new())))).await;
}
