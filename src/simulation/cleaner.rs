//! Somebody who condemns attempts that were staged and not decided, and deletes their files then.
//!
//! What it searches it sees as it is; what it appends goes through the real log and decision, with
//! the same faults and naps as anybody's.

use super::broker::wall;
use super::store::{WorkerStore, pause};
use super::world::{PIPELINE, World};
use crate::epoch::decide::fits;
use crate::epoch::entry::{Body, Entry, Note, VERSION};
use crate::epoch::ledger::Ledger;
use crate::epoch::log::{Log, LogError, Proposed};
use crate::store::double::Double;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

pub async fn clean(world: Arc<World>) {
    loop {
        pause(200 + world.below(1200)).await;
        // What goes wrong is tried again in the next pass.
        let _ = pass(&world).await;
    }
}

async fn pass(world: &Arc<World>) -> Result<(), LogError> {
    let store: Arc<dyn ObjectStore> = Arc::new(Double(WorkerStore { world: world.clone(), who: "cleaner".into() }));
    let log = Log::new(store.clone(), Path::from(format!("_millpond/{PIPELINE}/log")));
    let listed: Vec<_> = store.list(Some(&Path::from(format!("_millpond/{PIPELINE}/runs")))).try_collect().await?;
    let grace_ms = world.below(400) as i64;
    let old = listed.iter().filter(|o| o.last_modified.timestamp_millis() + grace_ms <= wall(world));
    let staged: BTreeSet<Uuid> = old.filter_map(|o| o.location.filename()?.strip_suffix(".run")?.parse().ok()).collect();
    let Some(reading) = log.open().await? else { return Ok(()) };
    let mut ledger = reading.head;
    let began = ledger.next;
    let attempts: Vec<Uuid> = {
        let decided = world.decided.lock().unwrap();
        let known: BTreeSet<Uuid> = decided.entries.iter().map(|e| e.attempt).collect();
        staged.into_iter().filter(|a| !known.contains(a) && !decided.condemned.contains(a)).collect()
    };
    if attempts.is_empty() {
        return Ok(());
    }
    let mut entry = Entry {
        version: VERSION,
        attempt: world.new_id(),
        log: ledger.log,
        writer: "cleaner".into(),
        plan: ledger.plan_entry,
        began,
        checkpoint: None,
        written_at_ms: wall(world),
        body: Body::Note(Note::Condemned { attempts: attempts.clone() }),
    };
    loop {
        if fits(&ledger, &entry).is_err() {
            return Ok(());
        }
        entry.checkpoint = ledger.checkpoint;
        match log.propose(ledger.next, &entry, |_| {}).await? {
            Proposed::Decided(_) => break,
            Proposed::Lost => read_on(&log, &mut ledger).await?,
            Proposed::StartOver => return Ok(()),
        }
    }
    let files: Vec<_> = world.objects.list(None).try_collect().await?;
    for file in files {
        if attempts.iter().any(|a| file.location.as_ref().contains(&a.to_string())) {
            let _ = store.delete(&file.location).await;
        }
    }
    Ok(())
}

async fn read_on(log: &Log, ledger: &mut Ledger) -> Result<(), LogError> {
    for (_, entry) in log.tail(ledger.next).await? {
        ledger.apply(&entry)?;
    }
    Ok(())
}
