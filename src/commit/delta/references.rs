//! Which files of a Delta table may go, as far as the table can tell.

use super::log::{self, State, object_path};
use super::upkeep::{DAY_MS, interval_ms};
use crate::commit::{Base, CommitError};
use crate::mutant::{self, Mutant};
use crate::stage::names::{self, Owner};
use object_store::ObjectStore;
use std::collections::BTreeSet;

/// How long a removed file is kept for those who read older versions.
const REMOVED_RETENTION: &str = "delta.deletedFileRetentionDuration";

/// See [`crate::commit::LakeTable::unneeded`]; `state` is the table's newest one, `base` its judgement.
pub(super) async fn unneeded(store: &dyn ObjectStore, state: &State, base: &Base, mut names: BTreeSet<String>, now_ms: i64) -> Result<BTreeSet<String>, CommitError> {
    names.retain(|name| match names::owner(name) {
        Some(Owner::Attempt(_)) => true,
        Some(Owner::Stamp(stamp)) => stamp < base.stamp.entry || mutant::on(Mutant::UnpassedStampDeleted),
        // No name of ours in a Delta table.
        Some(Owner::Metadata(_)) | None => false,
    });
    for add in state.files.values() {
        needed(&mut names, &add.path);
    }
    if names.is_empty() {
        return Ok(names);
    }
    // A text that we do not understand keeps everything.
    let retention_ms = match state.config(REMOVED_RETENTION) {
        Some(text) => interval_ms(text).unwrap_or(i64::MAX),
        None => 7 * DAY_MS,
    };
    let cutoff = now_ms.saturating_sub(retention_ms);
    log::removes(store, state.version, |remove| {
        if remove.deletion_timestamp.is_none_or(|at| at > cutoff) {
            needed(&mut names, &remove.path);
        }
    })
    .await?;
    Ok(names)
}

fn needed(names: &mut BTreeSet<String>, path: &str) {
    match object_path(path) {
        Ok(inside) => names.remove(names::file_name(inside.as_ref())),
        // An absolute path, perhaps to this very folder.
        Err(_) => names.remove(names::file_name(path)),
    };
}
