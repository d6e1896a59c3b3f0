//! One commit file, created if absent, and what became of it.
//!
//! An answer is no verdict unless it is a clean success: an error may hide a put that landed, and
//! `AlreadyExists` may mean our own put (sent twice by the client) or nothing written at all (an
//! S3 409). So the file is read back and its attempt compared.

use super::log::{commit_path, parse};
use bytes::Bytes;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::time::Duration;
use uuid::Uuid;

const TRIES: u32 = 5;
const PAUSE_MS: u64 = 25;

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// The file at this version holds our attempt; its e-tag where the store gave one.
    Mine(Option<String>),
    /// It holds someone else's.
    Other,
    /// Nobody knows. A delayed put may still land.
    Unknown(String),
}

/// Creates the commit file of this version with these bytes, at most once, and finds out whether it
/// did. Absent after an error means: the same bytes again, a bounded number of times.
pub(super) async fn create(store: &dyn ObjectStore, version: u64, bytes: Bytes, attempt: Uuid) -> Verdict {
    let path = commit_path(version);
    let mut said = String::new();
    for round in 0..TRIES {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        match store.put_opts(&path, bytes.clone().into(), options).await {
            Ok(put) => return Verdict::Mine(put.e_tag),
            Err(e) => said = e.to_string(),
        }
        match read_back(store, version, attempt).await {
            Ok(Some(verdict)) => return verdict,
            Ok(None) => {}
            Err(e) => return Verdict::Unknown(format!("commit {version}: the answer was lost ({said}) and it cannot be read back: {e}")),
        }
        tokio::time::sleep(Duration::from_millis(PAUSE_MS << round)).await;
    }
    Verdict::Unknown(format!("commit {version}: not there after {TRIES} puts; the last answer was: {said}"))
}

/// `None`: not there.
async fn read_back(store: &dyn ObjectStore, version: u64, attempt: Uuid) -> Result<Option<Verdict>, String> {
    let mut said = String::new();
    for round in 0..TRIES {
        let answer = match store.get(&commit_path(version)).await {
            Ok(answer) => {
                let etag = answer.meta.e_tag.clone();
                answer.bytes().await.map(|b| (b, etag))
            }
            Err(e) => Err(e),
        };
        match answer {
            Ok((bytes, etag)) => {
                let lines = parse(version, &bytes).map_err(|e| e.to_string())?;
                let found = lines.iter().find_map(|l| l.commit_info.as_ref()?[super::INFO_ATTEMPT].as_str().map(String::from));
                let mine = found.is_some_and(|f| f == attempt.to_string());
                return Ok(Some(if mine { Verdict::Mine(etag) } else { Verdict::Other }));
            }
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(e) => said = e.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(PAUSE_MS << round)).await;
    }
    Err(said)
}
