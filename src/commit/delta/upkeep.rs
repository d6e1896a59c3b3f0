//! What keeps `_delta_log` short: checkpoints, and the removal of what they and time made useless.
//!
//! A commit or checkpoint goes when it lies below a checkpoint that is itself older than
//! `delta.logRetentionDuration` and not the newest: every version of the retention time can still
//! be read, and a reader that has just picked the newest checkpoint loses nothing.

use super::log::{self, State};
use crate::runtime::apart;
use deltalake_core::logstore::{StorageConfig, default_logstore};
use deltalake_core::table::builder::DeltaTableConfig;
use futures::StreamExt;
use object_store::ObjectStore;
use std::sync::Arc;
use url::Url;

pub(super) const CHECKPOINT_INTERVAL: &str = "delta.checkpointInterval";
pub(super) const LOG_RETENTION: &str = "delta.logRetentionDuration";
pub(super) const DAY_MS: i64 = 86_400_000;

/// Commits between checkpoints.
pub(super) fn checkpoint_interval(state: &State) -> u64 {
    state.config(CHECKPOINT_INTERVAL).and_then(|t| t.trim().parse().ok()).filter(|n| *n > 0).unwrap_or(50)
}

/// Writes the checkpoint of this version with the library that readers share.
pub(super) async fn checkpoint(table_store: Arc<dyn ObjectStore>, version: u64) -> Result<(), String> {
    // The library resolves urls against the store's root, and sorts listings for `file` urls only:
    // this url is the root of the table's own store, whatever that is.
    let root = Url::parse("file:///").map_err(|e| e.to_string())?;
    let log_store = default_logstore(table_store.clone(), table_store, &root, &StorageConfig::default());
    let config = DeltaTableConfig { require_files: false, ..Default::default() };
    let write = async move {
        let mut table = deltalake_core::DeltaTable::new(log_store, config);
        table.load_version(version).await.map_err(|e| e.to_string())?;
        deltalake_core::checkpoints::create_checkpoint(&table, None).await.map_err(|e| e.to_string())
    };
    apart(write).await?
}

/// Deletes expired log files, oldest first; returns how many.
pub(super) async fn clean(store: &dyn ObjectStore, state: &State, now_ms: i64) -> Result<usize, String> {
    if state.config("delta.enableExpiredLogCleanup").is_some_and(|v| v.eq_ignore_ascii_case("false")) {
        return Ok(0);
    }
    let retention_ms = match state.config(LOG_RETENTION) {
        Some(text) => interval_ms(text).ok_or_else(|| format!("property {LOG_RETENTION} = `{text}` is no interval such as `interval 1 hours`"))?,
        None => 30 * DAY_MS,
    };
    let listing = log::list(store, None).await.map_err(|e| e.to_string())?;
    let Some(newest) = listing.checkpoints.keys().next_back().copied() else { return Ok(0) };
    let cutoff = now_ms.saturating_sub(retention_ms);
    let old = |(version, parts): (&u64, &Vec<object_store::ObjectMeta>)| {
        (*version < newest && parts.iter().all(|p| p.last_modified.timestamp_millis() <= cutoff)).then_some(*version)
    };
    let Some(keep) = listing.checkpoints.iter().rev().find_map(old) else { return Ok(0) };
    // The commit of the kept checkpoint stays: time travel and provenance read it.
    let mut gone: Vec<_> = listing.all.into_iter().filter(|(version, _)| *version < keep).collect();
    gone.sort_by_key(|(version, _)| *version);
    let count = gone.len();
    let mut deletes = store.delete_stream(futures::stream::iter(gone.into_iter().map(|(_, meta)| Ok(meta.location))).boxed());
    while let Some(deleted) = deletes.next().await {
        match deleted {
            // Another worker cleans too.
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(count)
}

/// `interval 1 hours`, `interval 2 days 3 hours`, with or without the first word.
pub(crate) fn interval_ms(text: &str) -> Option<i64> {
    let lower = text.trim().to_lowercase();
    let words: Vec<&str> = lower.strip_prefix("interval").unwrap_or(&lower).split_whitespace().collect();
    if words.is_empty() || words.len() % 2 != 0 {
        return None;
    }
    words.chunks(2).try_fold(0i64, |sum, pair| {
        let unit = match pair[1].trim_end_matches('s') {
            "millisecond" => 1,
            "second" => 1000,
            "minute" => 60_000,
            "hour" => 3_600_000,
            "day" => DAY_MS,
            "week" => 7 * DAY_MS,
            _ => return None,
        };
        sum.checked_add(pair[0].parse::<i64>().ok()?.checked_mul(unit)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read() {
        assert_eq!(interval_ms("interval 1 hours"), Some(3_600_000));
        assert_eq!(interval_ms("INTERVAL 1 week"), Some(7 * DAY_MS));
        assert_eq!(interval_ms("2 days 3 minutes"), Some(2 * DAY_MS + 180_000));
        assert_eq!(interval_ms("interval 1 month"), None);
        assert_eq!(interval_ms("interval"), None);
    }
}
