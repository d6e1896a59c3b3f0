//! What other engines do to keep a table small: a Delta log cut below a checkpoint, files deleted that no version
//! needs which they still keep. Nothing of it may disturb us.

use super::check;
use super::foreign::{newest_commit, spoiled};
use super::references::read;
use super::world::World;
use crate::pipeline::TableFormatKind;
use deltalake_core::logstore::{StorageConfig, default_logstore};
use deltalake_core::table::builder::DeltaTableConfig;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use url::Url;

/// The Delta tables that are as we left them, one or another first.
fn delta_tables(world: &World) -> Vec<String> {
    let mut tables: Vec<String> = check::tables(world).into_iter().filter(|(table, kind)| *kind == TableFormatKind::Delta && !spoiled(world, table, *kind)).map(|(table, _)| table).collect();
    let first = world.below(tables.len() as u64) as usize;
    tables.rotate_left(first);
    tables
}

/// Writes a checkpoint of a Delta table, and deletes the commits below it; but our newest one is within their
/// retention: nobody could prove our stamp without it.
pub async fn clean_log(world: &Arc<World>) {
    let mut found = None;
    for table in delta_tables(world) {
        let (newest, commit) = newest_commit(world, &table).await;
        let ours = |version: &u64| read(world, &commit(*version)).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("millpond.attempt"));
        let keep = (0..=newest).rev().find(ours).filter(|keep| *keep > 0 && read(world, &commit(*keep - 1)).is_ok());
        found = found.or(keep.map(|keep| (table, newest, keep)));
    }
    let Some((table, newest, keep)) = found else { return };
    let version = keep + world.below(newest - keep + 1);
    let folder = format!("delta/p/{table}");
    if let Err(why) = checkpoint(world, &folder, version) {
        return world.fail(format!("nobody can write a checkpoint of version {version} of delta table {table}: {why}"));
    }
    // Days have passed in the world outside, where the library has its clock from.
    world.references.lock().unwrap().forgot_removed(&table, version);
    let listed: Vec<_> = world.objects.list(Some(&Path::from(format!("{folder}/_delta_log")))).try_collect().await.expect("it is in memory");
    let below = |at: &Path| at.filename().and_then(|n| n.split_once('.')?.0.parse::<u64>().ok()).is_some_and(|v| v < keep);
    let gone: Vec<Path> = listed.into_iter().map(|o| o.location).filter(below).collect();
    for at in &gone {
        world.objects.delete(at).await.expect("it is in memory");
    }
    world.trace.note("hand", format_args!("delta table {table}: a checkpoint of version {version}, and {} files of the log below version {keep} are deleted", gone.len()));
}

/// With the library that others use, which has threads of its own: here all waits for it.
fn checkpoint(world: &World, folder: &str, version: u64) -> Result<(), String> {
    let store: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(world.objects.clone(), folder));
    let write = async move {
        let root = Url::parse("file:///").expect("it is a url");
        let log = default_logstore(store.clone(), store, &root, &StorageConfig::default());
        let mut table = deltalake_core::DeltaTable::new(log, DeltaTableConfig { require_files: false, ..Default::default() });
        table.load_version(version).await.map_err(|e| e.to_string())?;
        deltalake_core::checkpoints::create_checkpoint(&table, None).await.map_err(|e| e.to_string())
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs nothing");
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(write)).join()).map_err(|_| "it panicked".to_string())?
}

/// Deletes files of a Delta table that commits removed. What waits for its commit no version ever had: it is younger
/// than their retention.
pub async fn vacuum(world: &Arc<World>) {
    let removed = |table: String| {
        let removed = world.references.lock().unwrap().removed(&table);
        (!removed.is_empty()).then_some((table, removed))
    };
    let Some((table, removed)) = delta_tables(world).into_iter().find_map(removed) else { return };
    let mut gone = 0;
    for at in removed {
        gone += u64::from(world.objects.delete(&at).await.is_ok());
    }
    world.trace.note("hand", format_args!("delta table {table}: vacuum deletes {gone} files"));
}
