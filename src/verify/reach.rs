//! What the system keeps from being read says nothing of the tables: whoever may not read a lake, or whose disk fails,
//! cannot check it, and accuses nobody.

use super::VerifyError;
use crate::store::double::{Delegating, Double};
use async_trait::async_trait;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, ObjectStore, Result};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

/// A store that keeps in mind what could not be read of it.
pub type WatchedStore = Double<Watched>;

#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn ObjectStore>,
    trouble: Mutex<Option<String>>,
}

impl WatchedStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self(Watched { inner, trouble: Mutex::default() })
    }
}

impl Watched {
    /// # Errors
    /// Something could not be read since the last call.
    pub fn check(&self) -> std::result::Result<(), VerifyError> {
        match self.trouble.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(why) => Err(VerifyError::Unavailable(why)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Delegating for Watched {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let got = self.inner.get_opts(at, options).await;
        if let Err(e) = &got
            && is_kept_from_us(e)
        {
            self.trouble.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_with(|| format!("{at} cannot be read: {e}"));
        }
        got
    }
}

/// Not the object's fault: permissions, descriptors, a disk that fails.
fn is_kept_from_us(error: &Error) -> bool {
    if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
        return true;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            let failed = [libc::EIO, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ESTALE, libc::ETIMEDOUT];
            return io.kind() == ErrorKind::PermissionDenied || io.raw_os_error().is_some_and(|n| failed.contains(&n));
        }
        cause = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    #[derive(Debug)]
    struct Failing(InMemory);

    #[async_trait]
    impl Delegating for Failing {
        fn inner(&self) -> &dyn ObjectStore {
            &self.0
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            let number = match at.as_ref() {
                "mine" => libc::EACCES,
                "broken" => libc::EIO,
                "odd" => libc::EINVAL,
                _ => return self.0.get_opts(at, options).await,
            };
            Err(Error::Generic { store: "double", source: Box::new(std::io::Error::from_raw_os_error(number)) })
        }
    }

    /// Whatever is asked of it but for what fails.
    #[tokio::test]
    async fn a_watched_store_is_one_like_any_other() {
        crate::store::conformance::holds(Arc::new(WatchedStore::new(Arc::new(Double(Failing(InMemory::new())))))).await;
    }

    #[tokio::test]
    async fn what_cannot_be_read_accuses_nobody() {
        let store = WatchedStore::new(Arc::new(Double(Failing(InMemory::new()))));
        for (at, kept) in [("mine", true), ("broken", true), ("odd", false), ("gone", false)] {
            assert!(store.get(&Path::from(at)).await.is_err());
            let told = store.check();
            assert_eq!(told.is_err(), kept, "{at}: {told:?}");
            assert!(told.is_ok() || told.unwrap_err().to_string().starts_with(&format!("{at} cannot be read")), "{at}");
            assert!(store.check().is_ok(), "it is told once");
        }
    }
}
