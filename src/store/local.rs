//! Local disk as an object store that survives a power cut.
//!
//! `object_store`'s local file system never calls fsync, so that what it acknowledged may be gone
//! after a crash of the machine. Here every put is written to a temporary name, synced, moved to
//! its name (a hard link for create-if-absent, which fails when the name is taken; a rename
//! otherwise), and the folder is synced too.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// A folder as an object store with durable puts.
#[derive(Debug)]
pub struct DurableLocal {
    inner: LocalFileSystem,
    root: PathBuf,
    puts: AtomicU64,
}

impl std::fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "local folder {}", self.root.display())
    }
}

impl DurableLocal {
    /// Opens the folder, and makes it (durably) where it is missing.
    pub fn open(root: &FsPath) -> io::Result<Self> {
        create_dirs(root)?;
        let root = root.canonicalize()?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Self { inner, root, puts: AtomicU64::new(0) })
    }

    pub fn root(&self) -> &FsPath {
        &self.root
    }

    /// Does the object lie below the folder on the disk too, or does a link lead out of it?
    pub fn lies_inside(&self, object: &Path, folder: &Path) -> bool {
        let real = |path: &Path| self.inner.path_to_filesystem(path).and_then(|p| p.canonicalize().map_err(|e| Error::Generic { store: "local", source: e.into() }));
        let parent: Path = object.parts().take(object.parts_count().saturating_sub(1)).collect();
        matches!((real(&parent), real(folder)), (Ok(parent), Ok(folder)) if parent.starts_with(&folder))
    }

    /// Deletes what puts below this folder left half-written when their process was killed, if it is not younger
    /// than `before_ms` (since 1970, by the file's modification time). Links are not followed. Files and bytes.
    pub fn sweep_cut_short(&self, folder: &Path, before_ms: i64) -> io::Result<(u64, u64)> {
        let start = self.inner.path_to_filesystem(folder).map_err(io::Error::other)?;
        let (mut files, mut bytes) = (0, 0);
        let mut folders = vec![start];
        while let Some(dir) = folders.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io::Error::new(e.kind(), format!("cannot list {}: {e}", dir.display()))),
            };
            for entry in entries {
                let entry = entry?;
                // What goes away meanwhile is gone.
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                let old = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).is_some_and(|t| t.as_millis() as i64 <= before_ms);
                if old && meta.is_file() && entry.file_name().to_str().is_some_and(is_temporary) {
                    match fs::remove_file(entry.path()) {
                        Ok(()) => (files, bytes) = (files + 1, bytes + meta.len()),
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(io::Error::new(e.kind(), format!("cannot delete {}: {e}", entry.path().display()))),
                    }
                }
            }
        }
        Ok((files, bytes))
    }
}

/// `#` and digits: the form that the inner store leaves out of its listings.
pub(crate) fn temporary_name(target: &str, process: u32, nth: u64) -> String {
    format!("{target}#{process}{nth:08}")
}

/// A name that [`temporary_name`] gives. The inner store's own, of other programs too, have fewer digits.
fn is_temporary(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(target, digits)| !target.is_empty() && digits.len() > 8 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes a folder and syncs every folder that got a new name in it.
fn create_dirs(dir: &FsPath) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(FsPath::new("."));
    create_dirs(parent)?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(parent)?.sync_all()
}

fn put_durably(target: &FsPath, temporary: &FsPath, payload: &PutPayload, create: bool) -> io::Result<()> {
    let dir = target.parent().ok_or_else(|| io::Error::other("an object needs a folder"))?;
    create_dirs(dir)?;
    let write = || -> io::Result<()> {
        let mut file = File::create(temporary)?;
        for chunk in payload.iter() {
            file.write_all(chunk)?;
        }
        file.sync_all()?;
        if create { fs::hard_link(temporary, target) } else { fs::rename(temporary, target) }
    };
    let outcome = write();
    if create || outcome.is_err() {
        let _ = fs::remove_file(temporary);
    }
    outcome?;
    File::open(dir)?.sync_all()
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, opts).await,
        };
        let target = self.inner.path_to_filesystem(location)?;
        let nth = self.puts.fetch_add(1, Ordering::Relaxed);
        let temporary = PathBuf::from(temporary_name(&target.display().to_string(), std::process::id(), nth));
        let path = location.to_string();
        tokio::task::spawn_blocking(move || {
            put_durably(&target, &temporary, &payload, create).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: Box::new(e) },
                _ => Error::Generic { store: "local", source: format!("cannot write {}: {e}", target.display()).into() },
            })
        })
        .await
        .map_err(|source| Error::JoinError { source })??;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn a_name_is_created_once_and_listings_show_no_temporary_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = DurableLocal::open(&dir.path().join("a/b")).unwrap();
        let path = Path::from("log/0001.json");
        let create = || PutOptions { mode: PutMode::Create, ..Default::default() };
        store.put_opts(&path, "one".into(), create()).await.unwrap();
        let again = store.put_opts(&path, "two".into(), create()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "one");
        store.put(&path, "three".into()).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "three");
        fs::write(dir.path().join("a/b/log/0002.json#123"), "torn").unwrap();
        let listed: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
        assert_eq!(listed.len(), 1);
    }
}
