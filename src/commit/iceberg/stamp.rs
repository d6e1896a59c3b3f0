//! The stamp in a table's properties, and whether the table still holds what it says.

use crate::commit::Stamp;
use iceberg::spec::{Snapshot, TableMetadata};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

pub const LOG: &str = "millpond.log";
pub const ENTRY: &str = "millpond.entry";
pub const OFFSETS: &str = "millpond.offsets";
pub const ATTEMPT: &str = "millpond.attempt";
/// The snapshot of the newest stamped commit that had one, and its sequence number.
pub const SNAPSHOT_ID: &str = "millpond.snapshot-id";
pub const SEQUENCE_NUMBER: &str = "millpond.sequence-number";
/// The table's own uuid: a copy that took the properties along is told by it.
pub const TABLE_UUID: &str = "millpond.table-uuid";

/// The id in the name of the metadata file that we wrote: another writer's file takes the property over and has
/// another name.
pub const METADATA_ID: &str = "millpond.metadata-id";

/// A stamp as found in the properties of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub stamp: Stamp,
    /// Snapshot id and sequence number; `None` while no commit of ours had a snapshot.
    pub snapshot: Option<(i64, i64)>,
}

/// Reads the stamp; `None` when there is none, an error when it cannot be read.
pub fn find(properties: &HashMap<String, String>) -> Result<Option<Found>, String> {
    let (Some(log), Some(entry)) = (properties.get(LOG), properties.get(ENTRY)) else { return Ok(None) };
    let bad = |key: &str, value: &str| format!("the table property {key} = `{value}` is not what a stamp holds");
    let log = Uuid::parse_str(log).map_err(|_| bad(LOG, log))?;
    let entry = entry.parse().map_err(|_| bad(ENTRY, entry))?;
    let offsets = match properties.get(OFFSETS) {
        None => Default::default(),
        Some(text) => serde_json::from_str(text).map_err(|_| bad(OFFSETS, text))?,
    };
    let number = |key: &str| match properties.get(key) {
        None => Ok(None),
        Some(text) => text.parse::<i64>().map(Some).map_err(|_| bad(key, text)),
    };
    let snapshot = number(SNAPSHOT_ID)?.zip(number(SEQUENCE_NUMBER)?);
    Ok(Some(Found { stamp: Stamp { log, entry, offsets }, snapshot }))
}

/// The stamp as key and value pairs, for properties and snapshot summaries alike.
pub fn pairs(stamp: &Stamp, attempt: Uuid) -> HashMap<String, String> {
    let offsets = serde_json::to_string(&stamp.offsets).expect("maps keyed by strings and numbers are JSON");
    HashMap::from([
        (LOG.to_string(), stamp.log.to_string()),
        (ENTRY.to_string(), stamp.entry.to_string()),
        (OFFSETS.to_string(), offsets),
        (ATTEMPT.to_string(), attempt.to_string()),
    ])
}

/// What somebody took off a table that we stamped, and how to put it back; `None` while nothing is
/// missing, or nothing says that a stamp was ever there.
///
/// Each of our snapshots bears the stamp too. A stamp put back from the newest of them is not above
/// the lost one, and lower only by commits that held no rows.
pub fn lost(metadata: &TableMetadata) -> Option<String> {
    let properties = metadata.properties();
    let has = |key: &str| properties.contains_key(key);
    let of_log = |s: &&Snapshot| s.summary().additional_properties.get(LOG).is_some_and(|l| properties.get(LOG).is_none_or(|log| l == log));
    let newest = ancestry(metadata).into_iter().find(of_log);
    let mut wanted: Vec<(&str, String)> = Vec::new();
    if let Some(snapshot) = newest {
        let said = |key: &str| snapshot.summary().additional_properties.get(key).cloned().unwrap_or_default();
        wanted.extend([(LOG, said(LOG)), (ENTRY, said(ENTRY))]);
        wanted.extend([(SNAPSHOT_ID, snapshot.snapshot_id().to_string()), (SEQUENCE_NUMBER, snapshot.sequence_number().to_string())]);
        wanted.retain(|(key, _)| !has(key));
        if wanted.is_empty() {
            return None;
        }
        let keys: Vec<&str> = wanted.iter().map(|(key, _)| *key).collect();
        let set: Vec<String> = wanted.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        return Some(format!(
            "somebody removed the properties {} that hold its stamp; set {} again, as our newest snapshot says, and it goes on",
            keys.join(", "),
            set.join(", ")
        ));
    }
    let rest = [ATTEMPT, OFFSETS, SNAPSHOT_ID, TABLE_UUID].into_iter().find(|key| has(key) && !(has(LOG) && has(ENTRY)))?;
    Some(format!("somebody removed the properties that hold its stamp ({rest} is still there), and no snapshot of ours is left that tells it"))
}

/// Whether a table holds the stamped snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soundness {
    /// It does, below this many commits of others.
    Sound { foreign: u64 },
    /// It was there, and the table was set back to before it.
    RolledBack,
    /// Too much was expired to tell.
    Unproven,
}

/// A snapshot's place in its branch: id, parent, sequence number.
pub type Link = (i64, Option<i64>, i64);

/// The main branch, newest first, down to the oldest snapshot that is retained.
pub fn ancestry(metadata: &TableMetadata) -> Vec<&Snapshot> {
    let mut chain = Vec::new();
    let mut next = metadata.current_snapshot();
    while let Some(snapshot) = next {
        chain.push(snapshot.as_ref());
        if chain.len() > metadata.snapshots().len() {
            break;
        }
        next = snapshot.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
    }
    chain
}

/// The main branch with what is known of snapshots that were expired (id to parent and sequence
/// number): some engines take the parent's id off a snapshot when they expire the parent.
pub fn links(metadata: &TableMetadata, expired: &BTreeMap<i64, Link>) -> Vec<Link> {
    let mut links: Vec<Link> = ancestry(metadata).iter().map(|s| (s.snapshot_id(), s.parent_snapshot_id(), s.sequence_number())).collect();
    while let Some(last) = links.last_mut() {
        if last.1.is_none() {
            last.1 = expired.get(&last.0).and_then(|known| known.1);
        }
        let Some(parent) = last.1.and_then(|id| expired.get(&id)) else { break };
        // Ids are unique and sequence numbers fall from child to parent: this ends.
        if parent.2 >= last.2 {
            break;
        }
        links.push(*parent);
    }
    links
}

/// Judges a branch (newest first) by the stamp's snapshot. The parent of the oldest known
/// snapshot counts: it outlives expiry as an id.
pub fn judge(chain: &[Link], stamped: Option<(i64, i64)>) -> Soundness {
    let Some((id, sequence)) = stamped else { return Soundness::Sound { foreign: chain.len() as u64 } };
    for (above, (snapshot, parent, number)) in chain.iter().enumerate() {
        if *snapshot == id {
            return Soundness::Sound { foreign: above as u64 };
        }
        if *number < sequence {
            return Soundness::RolledBack;
        }
        if above + 1 == chain.len() && *parent == Some(id) {
            return Soundness::Sound { foreign: chain.len() as u64 };
        }
    }
    // An empty branch holds nothing of what the stamp says.
    if chain.is_empty() { Soundness::RolledBack } else { Soundness::Unproven }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_is_found_as_written() {
        let stamp = Stamp { log: Uuid::from_u128(7), entry: 42, offsets: [("src".to_string(), [(0, 10), (3, 7)].into())].into() };
        let mut properties = pairs(&stamp, Uuid::from_u128(1));
        assert_eq!(find(&properties).unwrap(), Some(Found { stamp: stamp.clone(), snapshot: None }));
        properties.insert(SNAPSHOT_ID.into(), "5".into());
        properties.insert(SEQUENCE_NUMBER.into(), "3".into());
        assert_eq!(find(&properties).unwrap().unwrap().snapshot, Some((5, 3)));
        properties.insert(ENTRY.into(), "x".into());
        assert!(find(&properties).is_err());
        assert_eq!(find(&HashMap::new()).unwrap(), None);
    }

    #[test]
    fn expired_snapshots_are_linked_by_what_older_metadata_says() {
        let schema = iceberg::spec::Schema::builder().build().unwrap();
        let creation = iceberg::TableCreation::builder().name("t".into()).location("file:///t".into()).schema(schema).build();
        let fresh = iceberg::spec::TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata;
        let at = fresh.last_updated_ms() + 1;
        let snapshot = Snapshot::builder()
            .with_snapshot_id(40)
            .with_sequence_number(4)
            .with_timestamp_ms(at)
            .with_manifest_list("x")
            .with_summary(iceberg::spec::Summary { operation: iceberg::spec::Operation::Append, additional_properties: Default::default() })
            .with_schema_id(0)
            .build();
        let metadata = fresh.into_builder(None).set_branch_snapshot(snapshot, "main").unwrap().build().unwrap().metadata;
        let known = BTreeMap::from([(40, (40, Some(30), 4)), (30, (30, Some(20), 3)), (99, (99, Some(30), 9))]);
        assert_eq!(links(&metadata, &BTreeMap::new()), [(40, None, 4)]);
        assert_eq!(links(&metadata, &known), [(40, Some(30), 4), (30, Some(20), 3)]);
        assert_eq!(judge(&links(&metadata, &known), Some((20, 2))), Soundness::Sound { foreign: 2 });
        // Knowledge of other branches proves nothing.
        assert_eq!(judge(&links(&metadata, &known), Some((99, 9))), Soundness::RolledBack);
        // A loop in damaged metadata ends.
        let looped = BTreeMap::from([(40, (40, Some(30), 4)), (30, (30, Some(40), 3))]);
        assert_eq!(links(&metadata, &looped).len(), 2);
    }

    #[test]
    fn a_branch_is_judged_by_its_ancestry() {
        let chain = [(40, Some(30), 4), (30, Some(20), 3), (20, Some(10), 2)];
        let sound = |foreign| Soundness::Sound { foreign };
        assert_eq!(judge(&chain, Some((40, 4))), sound(0));
        assert_eq!(judge(&chain, Some((20, 2))), sound(2));
        // Expired, but the oldest retained snapshot still names it.
        assert_eq!(judge(&chain, Some((10, 1))), sound(3));
        assert_eq!(judge(&chain, Some((5, 0))), Soundness::Unproven);
        assert_eq!(judge(&chain, Some((50, 5))), Soundness::RolledBack);
        // Rolled back and written anew: the numbers went on, the stamped snapshot is not below.
        assert_eq!(judge(&[(60, Some(20), 6), (20, Some(10), 2)], Some((50, 5))), Soundness::RolledBack);
        assert_eq!(judge(&[], Some((50, 5))), Soundness::RolledBack);
        assert_eq!(judge(&[], None), sound(0));
    }
}
