//! The iceberg crate's storage over our object store, so that every byte of a table takes one way.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig, StorageFactory};
use iceberg::{Error, ErrorKind, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use url::Url;

/// Where a lake lies: absolute locations, as tables name their files, and paths below the root, as
/// the store does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LakeRoot {
    /// Without a slash at its end. For `file:` the plain path after `file://`: readers take it
    /// literally and decode no escapes.
    base: String,
}

impl LakeRoot {
    /// The folder at `url`, `file:///…` or that of a bucket.
    pub fn new(url: &Url) -> Self {
        let base = match url.to_file_path() {
            Ok(path) if url.scheme() == "file" => format!("file://{}", path.display()),
            _ => url.to_string(),
        };
        Self { base: base.trim_end_matches('/').to_string() }
    }

    /// The absolute location of a path below the root.
    pub fn location(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// The path below the root; `None` for what lies elsewhere. `file:/x`, `file:///x` and `/x` are
    /// the same place.
    pub fn relative<'a>(&self, location: &'a str) -> Option<&'a str> {
        let below = |base: &str, location: &'a str| location.strip_prefix(base)?.strip_prefix('/');
        match self.base.strip_prefix("file://") {
            Some(folder) => {
                let plain = location.strip_prefix("file://").or_else(|| location.strip_prefix("file:")).unwrap_or(location);
                below(folder, plain)
            }
            None => below(&self.base, location),
        }
    }
}

/// [`iceberg::io::Storage`] over an object store whose paths are those below `root`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LakeStorage {
    root: LakeRoot,
    /// Absent only in a copy that went through serialization, which nothing here does.
    #[serde(skip)]
    store: Option<Arc<dyn ObjectStore>>,
}

/// Access to files by absolute location, for the iceberg crate.
pub fn file_io(store: Arc<dyn ObjectStore>, root: LakeRoot) -> FileIO {
    FileIOBuilder::new(Arc::new(LakeStorage { root, store: Some(store) })).build()
}

impl LakeStorage {
    fn at(&self, location: &str) -> Result<(&Arc<dyn ObjectStore>, Path)> {
        let store = self.store.as_ref().ok_or_else(|| Error::new(ErrorKind::Unexpected, "a lake's storage was sent elsewhere without its store"))?;
        let below = self.root.relative(location).ok_or_else(|| {
            Error::new(ErrorKind::FeatureUnsupported, outside(location, &self.root))
        })?;
        let path = Path::parse(below).map_err(|e| Error::new(ErrorKind::DataInvalid, format!("the file {location}: {e}")))?;
        Ok((store, path))
    }
}

/// Why a file that a table names is none of this lake's.
pub fn outside(location: &str, root: &LakeRoot) -> String {
    format!(
        "the file {location} is not below the lake's root {}: the lake was moved, or lake.root is another than before (Iceberg names files by whole paths); \
         put the lake back where it was, or name its old path",
        root.base
    )
}

fn failed(doing: &str, location: &str, e: object_store::Error) -> Error {
    Error::new(ErrorKind::Unexpected, format!("cannot {doing} {location}: {e}"))
}

#[async_trait]
#[typetag::serde(name = "millpond-lake")]
impl Storage for LakeStorage {
    async fn exists(&self, location: &str) -> Result<bool> {
        let (store, path) = self.at(location)?;
        match store.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(failed("look for", location, e)),
        }
    }

    async fn metadata(&self, location: &str) -> Result<FileMetadata> {
        let (store, path) = self.at(location)?;
        let meta = store.head(&path).await.map_err(|e| failed("look at", location, e))?;
        Ok(FileMetadata { size: meta.size })
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        let (store, path) = self.at(location)?;
        let got = store.get(&path).await.map_err(|e| failed("read", location, e))?;
        got.bytes().await.map_err(|e| failed("read", location, e))
    }

    async fn reader(&self, location: &str) -> Result<Box<dyn FileRead>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Reader { store: store.clone(), path }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        let (store, path) = self.at(location)?;
        store.put(&path, bytes.into()).await.map_err(|e| failed("write", location, e))?;
        Ok(())
    }

    async fn writer(&self, location: &str) -> Result<Box<dyn FileWrite>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Writer { store: store.clone(), path, parts: Some(Vec::new()) }))
    }

    async fn delete(&self, location: &str) -> Result<()> {
        let (store, path) = self.at(location)?;
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(failed("delete", location, e)),
        }
    }

    async fn delete_prefix(&self, location: &str) -> Result<()> {
        let (store, path) = self.at(location)?;
        let mut found = store.list(Some(&path));
        while let Some(object) = found.next().await {
            let object = object.map_err(|e| failed("list", location, e))?;
            store.delete(&object.location).await.map_err(|e| failed("delete", object.location.as_ref(), e))?;
        }
        Ok(())
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> Result<()> {
        while let Some(location) = locations.next().await {
            self.delete(&location).await?;
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_string()))
    }

    fn new_output(&self, location: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_string()))
    }
}

#[typetag::serde(name = "millpond-lake")]
impl StorageFactory for LakeStorage {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.store.get_range(&self.path, range).await.map_err(|e| failed("read", self.path.as_ref(), e))
    }
}

/// Manifests are written whole: one put, so that half a file is never seen.
struct Writer {
    store: Arc<dyn ObjectStore>,
    path: Path,
    parts: Option<Vec<Bytes>>,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let parts = self.parts.as_mut().ok_or_else(|| Error::new(ErrorKind::Unexpected, format!("{} is closed", self.path)))?;
        parts.push(bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let parts = self.parts.take().ok_or_else(|| Error::new(ErrorKind::Unexpected, format!("{} is closed", self.path)))?;
        let payload: object_store::PutPayload = parts.into_iter().collect();
        self.store.put(&self.path, payload).await.map_err(|e| failed("write", self.path.as_ref(), e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[test]
    fn locations_are_compared_without_their_scheme() {
        let root = LakeRoot::new(&Url::from_directory_path("/a b/lake").unwrap());
        assert_eq!(root.location("x/y"), "file:///a b/lake/x/y");
        for same in ["file:///a b/lake/x%20y", "file:/a b/lake/x%20y", "/a b/lake/x%20y"] {
            assert_eq!(root.relative(same), Some("x%20y"));
        }
        assert_eq!(root.relative("file:///a b/lakes/x"), None);
        assert_eq!(root.relative("s3://a b/lake/x"), None);
        let bucket = LakeRoot::new(&Url::parse("s3://bucket/lake/").unwrap());
        assert_eq!(bucket.location("x"), "s3://bucket/lake/x");
        assert_eq!(bucket.relative("s3://bucket/lake/x"), Some("x"));
    }

    #[tokio::test]
    async fn files_are_written_whole_and_only_below_the_root() {
        let root = LakeRoot::new(&Url::parse("file:///lake").unwrap());
        let store = Arc::new(InMemory::new());
        let io = file_io(store.clone(), root);
        let mut writer = io.new_output("file:///lake/a/b").unwrap().writer().await.unwrap();
        writer.write("one ".into()).await.unwrap();
        assert!(!io.exists("file:///lake/a/b").await.unwrap());
        writer.write("two".into()).await.unwrap();
        writer.close().await.unwrap();
        assert!(writer.close().await.is_err());
        assert_eq!(io.new_input("/lake/a/b").unwrap().read().await.unwrap(), "one two");
        assert!(io.new_input("file:///elsewhere/b").unwrap().read().await.unwrap_err().to_string().contains("not below the lake's root"));
        io.delete("file:///lake/a/b").await.unwrap();
        io.delete("file:///lake/a/b").await.unwrap();
        assert!(!io.exists("file:///lake/a/b").await.unwrap());
    }
}
