//! What other hands do to the tables.

use super::check;
use super::store::TrueCatalog;
use super::world::{LAKE_URL, World};
use crate::commit::iceberg::Catalog;
use crate::pipeline::TableFormatKind;
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention, TableMetadata};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn inside(location: &str) -> Path {
    Path::from(location.trim_start_matches(LAKE_URL))
}

/// Sets one table back to an earlier state, as an operator does who made a mistake.
pub async fn roll_back(world: &Arc<World>) {
    let mut tables = check::tables(world);
    while !tables.is_empty() {
        let (table, kind) = tables.swap_remove(world.below(tables.len() as u64) as usize);
        let done = match kind {
            TableFormatKind::Iceberg => set_back(world, &table).await,
            TableFormatKind::Delta => restore(world, &table).await,
        };
        if done {
            world.trace.note("hand", format_args!("rolled back {kind} table {table}"));
            world.frozen.lock().unwrap().insert((table, kind));
            world.expect("rolled back");
            world.doomed.store(true, Ordering::Relaxed);
            return;
        }
    }
}

async fn set_back(world: &Arc<World>, table: &str) -> bool {
    let Some(from) = world.location(table) else { return false };
    let Ok(got) = world.objects.get(&inside(&from)).await else { return false };
    let metadata: TableMetadata = serde_json::from_slice(&got.bytes().await.expect("it is in memory")).expect("it was written by us");
    let Some(parent) = metadata.current_snapshot().and_then(|s| s.parent_snapshot_id()).filter(|p| metadata.snapshot_by_id(*p).is_some()) else { return false };
    let reference = SnapshotReference::new(parent, SnapshotRetention::branch(None, None, None));
    let location = metadata.location().to_string();
    let builder = metadata.into_builder(Some(from.clone()));
    let update = TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.into(), reference };
    let built = update.apply(builder).and_then(|b| b.build()).expect("the snapshot is there").metadata;
    let to = format!("{location}/metadata/99999-{}.metadata.json", world.new_id());
    world.objects.put(&inside(&to), serde_json::to_vec(&built).expect("it was read from JSON").into()).await.expect("it is in memory");
    TrueCatalog(world.clone()).swap("p", table, &from, &to).await.unwrap_or(false)
}

async fn restore(world: &Arc<World>, table: &str) -> bool {
    let commit = |v: u64| Path::from(format!("delta/p/{table}/_delta_log/{v:020}.json"));
    let mut newest = 0;
    while world.objects.head(&commit(newest + 1)).await.is_ok() {
        newest += 1;
    }
    if newest < 2 {
        return false;
    }
    let text = format!(r#"{{"commitInfo":{{"operation":"RESTORE","operationParameters":{{"version":{}}}}}}}"#, newest - 2);
    world.objects.put_opts(&commit(newest + 1), text.into(), PutOptions { mode: PutMode::Create, ..Default::default() }).await.is_ok()
}
