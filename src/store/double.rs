//! Stores before stores: each passes every call on to a real one and says only where it differs. Doubles for fault
//! injection are made so, and what keeps an eye on a store.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt::{Debug, Display, Formatter};
use std::ops::Deref;

/// What a [`Double`] does. The methods are those that [`ObjectStore`] leaves without a default; its others (ranges,
/// listings from an offset, renames) go through these, so that a double cannot be read or written past what it changes.
#[async_trait]
pub(crate) trait Delegating: Debug + Send + Sync + 'static {
    /// The store behind it, asked for anew at each call that is passed on.
    fn inner(&self) -> &dyn ObjectStore;

    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner().put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner().put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner().get_opts(at, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner().delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner().list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner().list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner().copy_opts(from, to, options).await
    }
}

/// The store that a [`Delegating`] describes; what that has besides is reached through the [`Deref`].
#[derive(Debug)]
pub(crate) struct Double<T>(pub T);

impl<T> Deref for Double<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Delegating> Display for Double<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

#[async_trait]
impl<T: Delegating> ObjectStore for Double<T> {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(at, payload, options).await
    }
    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(at, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// The store may have done it, or not.
#[cfg(test)]
pub(crate) fn lost() -> object_store::Error {
    object_store::Error::Generic { store: "double", source: "connection reset".into() }
}

/// A conflict, whether or not there is anything under the name.
#[cfg(test)]
pub(crate) fn taken(at: &Path) -> object_store::Error {
    object_store::Error::AlreadyExists { path: at.to_string(), source: "409".into() }
}
