//! Names of the files that a worker writes. Each is used once, and says whose the file is: the
//! cleaner must know without opening it, and must never take another program's file for ours.
//!
//! | file | name | belongs to |
//! |---|---|---|
//! | data file of an epoch | `epoch-<attempt>-<lane>-<n>.parquet` | the attempt |
//! | runs of an epoch | `<attempt>.run` | the attempt |
//! | runs merged for a checkpoint | `merged-<M>-<attempt>-<n>.run` | the checkpoint's attempt |
//! | rows that the table half emits | `emit-<stamp>-<id>-<n>.parquet` | commits on a table with that stamp |
//! | a data file less some rows | `rewrite-<stamp>-<id>.parquet` | the same |
//! | position deletes | `deletes-<stamp>-<id>.parquet` | the same |
//! | Iceberg manifest, manifest list | `manifest-<stamp>-<id>-<n>.avro`, `snap-<snapshot>-<stamp>-<id>.avro` | the same |
//! | Iceberg metadata | `<version>-<id>.metadata.json` | a swap from the version before |
//!
//! An attempt is that of the log's entry. A commit is conditional on the base that it started from,
//! so that nothing which carries a stamp can come into a table that has passed it.

use uuid::Uuid;

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An entry of the log, if it was decided.
    Attempt(Uuid),
    /// A commit on top of a table that was stamped with this entry.
    Stamp(u64),
    /// An Iceberg table's state of this version, ours or another program's: names do not tell.
    Metadata(u64),
}

/// Where a pipeline's log and all that goes with it lie, relative to the lake's root.
pub fn state_folder(pipeline: &str) -> String {
    format!("_millpond/{pipeline}")
}

pub fn epoch_file(attempt: Uuid, lane: usize, nth: usize) -> String {
    format!("epoch-{attempt}-{lane}-{nth}.parquet")
}

pub fn epoch_runs(attempt: Uuid) -> String {
    format!("{attempt}.run")
}

/// Runs that a checkpoint as of entry `upto` holds in the place of older ones.
pub fn merged_runs(upto: u64, attempt: Uuid, nth: usize) -> String {
    format!("merged-{upto:020}-{attempt}-{nth}.run")
}

pub fn emitted(stamp: u64, id: Uuid, nth: usize) -> String {
    format!("emit-{stamp:020}-{id}-{nth}.parquet")
}

pub fn rewritten(stamp: u64, id: Uuid) -> String {
    format!("rewrite-{stamp:020}-{id}.parquet")
}

pub fn deletes(stamp: u64, id: Uuid) -> String {
    format!("deletes-{stamp:020}-{id}.parquet")
}

pub fn manifest(stamp: u64, id: Uuid, nth: usize) -> String {
    format!("manifest-{stamp:020}-{id}-{nth}.avro")
}

pub fn manifest_list(snapshot: i64, stamp: u64, id: Uuid) -> String {
    format!("snap-{snapshot}-{stamp:020}-{id}.avro")
}

pub fn metadata(version: u64, id: Uuid) -> String {
    format!("{version:05}-{id}.metadata.json")
}

/// The last segment of a path, location or URL.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Whose the file of this name is; `None`: none of ours, whatever it is.
pub fn owner(name: &str) -> Option<Owner> {
    parse(name).filter(|(_, again)| again == name).map(|(owner, _)| owner)
}

/// What the name says, and the name that says just that: equal, or it is not one of ours.
fn parse(name: &str) -> Option<(Owner, String)> {
    if let Some(rest) = name.strip_prefix("epoch-") {
        let (attempt, rest) = id(rest)?;
        let (lane, nth) = rest.strip_prefix('-')?.strip_suffix(".parquet")?.split_once('-')?;
        return Some((Owner::Attempt(attempt), epoch_file(attempt, lane.parse().ok()?, nth.parse().ok()?)));
    }
    if let Some(rest) = name.strip_prefix("merged-") {
        let (upto, rest) = number(rest)?;
        let (attempt, rest) = id(rest)?;
        let nth = rest.strip_prefix('-')?.strip_suffix(".run")?.parse().ok()?;
        return Some((Owner::Attempt(attempt), merged_runs(upto, attempt, nth)));
    }
    if let Some(rest) = name.strip_suffix(".run") {
        let (attempt, _) = id(rest)?;
        return Some((Owner::Attempt(attempt), epoch_runs(attempt)));
    }
    if let Some(rest) = name.strip_prefix("emit-") {
        let (stamp, rest) = number(rest)?;
        let (by, rest) = id(rest)?;
        let nth = rest.strip_prefix('-')?.strip_suffix(".parquet")?.parse().ok()?;
        return Some((Owner::Stamp(stamp), emitted(stamp, by, nth)));
    }
    type Named = fn(u64, Uuid) -> String;
    for (prefix, named) in [("rewrite-", rewritten as Named), ("deletes-", deletes)] {
        if let Some(rest) = name.strip_prefix(prefix) {
            let (stamp, rest) = number(rest)?;
            let (by, _) = id(rest)?;
            return Some((Owner::Stamp(stamp), named(stamp, by)));
        }
    }
    if let Some(rest) = name.strip_prefix("manifest-") {
        let (stamp, rest) = number(rest)?;
        let (by, rest) = id(rest)?;
        let nth = rest.strip_prefix('-')?.strip_suffix(".avro")?.parse().ok()?;
        return Some((Owner::Stamp(stamp), manifest(stamp, by, nth)));
    }
    if let Some(rest) = name.strip_prefix("snap-") {
        let (snapshot, rest) = rest.split_once('-')?;
        let (stamp, rest) = number(rest)?;
        let (by, _) = id(rest)?;
        return Some((Owner::Stamp(stamp), manifest_list(snapshot.parse().ok()?, stamp, by)));
    }
    let (version, rest) = name.strip_suffix(".metadata.json")?.split_once('-')?;
    let version = version.parse().ok()?;
    Some((Owner::Metadata(version), metadata(version, id(rest)?.0)))
}

/// Twenty digits and a dash.
fn number(text: &str) -> Option<(u64, &str)> {
    let (digits, rest) = text.split_at_checked(20)?;
    Some((digits.parse().ok()?, rest.strip_prefix('-')?))
}

fn id(text: &str) -> Option<(Uuid, &str)> {
    let (id, rest) = text.split_at_checked(36)?;
    Some((Uuid::try_parse(id).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_whose_it_is_and_no_other_name_does() {
        let a = Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788);
        let ours = [
            (epoch_file(a, 3, 17), Owner::Attempt(a)),
            (epoch_runs(a), Owner::Attempt(a)),
            (merged_runs(9, a, 2), Owner::Attempt(a)),
            (emitted(0, a, 1), Owner::Stamp(0)),
            (rewritten(u64::MAX, a), Owner::Stamp(u64::MAX)),
            (deletes(5, a), Owner::Stamp(5)),
            (manifest(6, a, 0), Owner::Stamp(6)),
            (manifest_list(i64::MAX, 7, a), Owner::Stamp(7)),
            (metadata(3, a), Owner::Metadata(3)),
            (metadata(1_234_567, a), Owner::Metadata(1_234_567)),
        ];
        for (name, whose) in &ours {
            assert_eq!(owner(name), Some(*whose), "{name}");
            assert_eq!(owner(file_name(&format!("s3a://bucket/a b/{name}"))), Some(*whose));
            // One letter more, less or other, and it is not ours (or another number's).
            for at in 0..name.len() {
                let mut shorter = name.clone();
                shorter.remove(at);
                assert_ne!(owner(&shorter).map(|o| (o, &shorter)), Some((*whose, name)));
                let mut longer = name.clone();
                longer.insert(at, '%');
                assert_eq!(owner(&longer), None, "{longer}");
            }
            assert_eq!(owner(&name.to_uppercase()), None);
        }
        // What other engines call theirs.
        for foreign in [
            "00000-0-12345678-9abc-def0-1122-334455667788.parquet",
            "00000-0-12345678-9abc-def0-1122-334455667788-0-00001.parquet",
            "part-00000-12345678-9abc-def0-1122-334455667788-c000.snappy.parquet",
            "12345678-9abc-def0-1122-334455667788.parquet",
            "12345678-9abc-def0-1122-334455667788-m0.avro",
            "snap-3051729675574597004-1-12345678-9abc-def0-1122-334455667788.avro",
            "deletion_vector_12345678-9abc-def0-1122-334455667788.bin",
            "v3.metadata.json",
            "00000000000000000007.json",
            "00000000000000000007.checkpoint.parquet",
            "version-hint.text",
            "_last_checkpoint",
            "catalog.db",
            "",
        ] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
