//! Is a source still the one that the log was read from, and does it still hold what was read?

use super::WorkerError;
use crate::epoch::ledger::SourceState;
use crate::source::SourceFacts;

/// # Errors
/// Refused: the topic was made anew, or files came, went or changed places.
pub fn check_same(name: &str, known: &SourceState, facts: &SourceFacts) -> Result<(), WorkerError> {
    let refused = |why: String| Err(WorkerError::Refused(format!("source {name}: {why}")));
    for (partition, state) in &known.partitions {
        match (&state.name, facts.names.get(partition)) {
            (Some(file), None) => {
                return refused(format!(
                    "{file}, which is partition {partition} in the log, is gone, or `path` does not match it any more; put it back, or begin anew under another pipeline name"
                ));
            }
            (Some(file), Some(found)) if file != found => {
                return refused(format!(
                    "partition {partition} is {found} now, and the log was written from {file}: files came or went before it in the order of names; \
                     put the old files back (new ones must sort after them), or begin anew under another pipeline name"
                ));
            }
            _ => {}
        }
    }
    match (&known.incarnation, &facts.incarnation) {
        (Some(known), Some(found)) if known != found => refused(format!(
            "topic {} is another than the log was written from (topic id {found}, expected {known}): it was deleted and made again, and its offsets mean other records; \
             restore the old topic, or read the new one under another source and table name",
            facts.topic
        )),
        _ => Ok(()),
    }
}

/// For who may find nothing more to read: reading on finds it out by itself.
///
/// # Errors
/// Refused: the source ends before the log's positions, or with another record than the one that was read there.
pub fn check_ends(name: &str, known: &SourceState, facts: &SourceFacts) -> Result<(), WorkerError> {
    for (partition, read) in &known.partitions {
        let Some((_, end)) = facts.partitions.get(partition) else { continue };
        let of = facts.names.get(partition).map_or_else(|| format!("partition {partition} of {}", facts.topic), Clone::clone);
        let refused = |what: String| {
            Err(WorkerError::Refused(format!(
                "source {name}: {of} {what}; put it back as it was, or give the pipeline another name, under which it reads all from the beginning"
            )))
        };
        if *end < read.offset {
            return refused(format!("ends at offset {end}, and the epoch log goes on at {}: what was read of it was cut off, or replaced by something else", read.offset));
        }
        let other = |last: &i32| *last >= 0 && read.leader_epoch >= 0 && *last != read.leader_epoch;
        if *end == read.offset && facts.last.get(partition).is_some_and(other) {
            return refused(format!("ends with another record than was read at offset {}: it was replaced, or its last line was written on after it was read", end - 1));
        }
    }
    Ok(())
}
