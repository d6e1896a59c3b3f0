//! Table properties, told before a table is made: what cannot hold, and what Millpond's own files do not follow.

use crate::commit::delta::{interval_ms, property_refusal};
use crate::commit::iceberg::{KEEP_SNAPSHOTS, MERGE_MANIFESTS};
use crate::pipeline::TableFormatKind::{self, Delta, Iceberg};

/// What is to be told of a property.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// The value cannot be; what would have been right.
    Value(String, String),
    /// The property cannot be set.
    Name(String, String),
    /// It is set, and Millpond does nothing with it.
    Idle(String),
}

pub(super) fn judge(name: &str, value: &str, formats: &[TableFormatKind]) -> Option<Told> {
    let value = value.trim();
    let lower = value.to_lowercase();
    let only = |expected: &str, right: bool| (!right).then(|| Told::Value(format!("`{name}` cannot be `{value}`"), expected.to_string()));
    let number = |from: i64| value.parse::<i64>().is_ok_and(|n| n >= from);
    let of = if name.starts_with("delta.") {
        Delta
    } else if name.starts_with("write.") || name == "format-version" || name == MERGE_MANIFESTS || name == KEEP_SNAPSHOTS {
        Iceberg
    } else {
        return None;
    };
    // Both formats' files are written alike.
    if name == "write.parquet.compression-codec" {
        return only("zstd, snappy, lz4 or uncompressed", matches!(lower.as_str(), "zstd" | "snappy" | "lz4" | "lz4_raw" | "uncompressed" | "none"));
    }
    if name == "write.parquet.compression-level" {
        return only("a level of zstd from 1 to 22", value.parse::<i32>().is_ok_and(|n| (1..=22).contains(&n)));
    }
    if !formats.contains(&of) {
        let held = if of == Delta { "Iceberg" } else { "Delta" };
        return Some(Told::Idle(format!("`{name}` does nothing: this table is kept in {held} only")));
    }
    match name {
        "format-version" => only("2, or no `format-version`", value == "2"),
        "write.format.default" | "write.delete.format.default" => only("parquet, which is what Millpond writes", lower == "parquet"),
        "write.metadata.compression-codec" => only("none, which is what Millpond writes", lower == "none"),
        "write.metadata.previous-versions-max" => only("a whole number from 1", number(1)),
        MERGE_MANIFESTS => only("a whole number of manifests from 2", number(2)),
        KEEP_SNAPSHOTS => only("a whole number of snapshots from 2", number(2)),
        "write.data.path" | "write.metadata.path" | "write.object-storage.enabled" => {
            Some(Told::Name(format!("`{name}` is not in this version: files lie in the table's own folder below `lake.root`"), "no such property".into()))
        }
        "delta.checkpointInterval" => only("a whole number of commits from 1", number(1)),
        "delta.logRetentionDuration" | "delta.deletedFileRetentionDuration" => {
            only("a length of time such as `interval 1 hours` or `interval 7 days`", interval_ms(value).is_some_and(|ms| ms >= 0))
        }
        "delta.dataSkippingNumIndexedCols" => only("a whole number of columns, or -1 for all", number(-1)),
        "delta.enableExpiredLogCleanup" => only("true or false", matches!(lower.as_str(), "true" | "false")),
        _ if of == Delta => match property_refusal(name, value) {
            Some(_) => Some(Told::Name(format!("`{name}` = `{value}` asks for a table feature that Millpond does not write"), "no such property".into())),
            None => Some(idle(name)),
        },
        _ => Some(idle(name)),
    }
}

fn idle(name: &str) -> Told {
    Told::Idle(format!("Millpond's own files do not follow `{name}`: it is set on the table for other engines that write to it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_hold_is_told_from_what_is_meant_for_others() {
        let both = [Iceberg, Delta];
        for (name, value) in [
            ("write.format.default", "parquet"),
            ("write.parquet.compression-codec", "ZSTD"),
            ("write.parquet.compression-level", "9"),
            ("write.metadata.previous-versions-max", "10"),
            ("commit.manifest.min-count-to-merge", "100"),
            ("history.expire.min-snapshots-to-keep", "20"),
            ("format-version", "2"),
            ("delta.checkpointInterval", "10"),
            ("delta.logRetentionDuration", "interval 30 days"),
            ("delta.dataSkippingNumIndexedCols", "-1"),
            ("owner", "me"),
            ("history.expire.max-snapshot-age-ms", "1"),
        ] {
            assert_eq!(judge(name, value, &both), None, "{name}");
        }
        for (name, value) in [
            ("write.format.default", "orc"),
            ("write.parquet.compression-codec", "gzip"),
            ("write.parquet.compression-level", "90"),
            ("write.metadata.previous-versions-max", "0"),
            ("commit.manifest.min-count-to-merge", "1"),
            ("history.expire.min-snapshots-to-keep", "1"),
            ("format-version", "3"),
            ("delta.checkpointInterval", "ten"),
            ("delta.checkpointInterval", "0"),
            ("delta.logRetentionDuration", "30 fortnights"),
            ("delta.logRetentionDuration", "interval 1 month"),
            ("delta.dataSkippingNumIndexedCols", "-2"),
            ("delta.enableExpiredLogCleanup", "maybe"),
        ] {
            assert!(matches!(judge(name, value, &both), Some(Told::Value(..))), "{name}");
        }
        for (name, value) in [("write.data.path", "/x"), ("delta.appendOnly", "true"), ("delta.feature.x", "supported"), ("delta.enableChangeDataFeed", "true")] {
            assert!(matches!(judge(name, value, &both), Some(Told::Name(..))), "{name}");
        }
        for (name, value) in [("write.target-file-size-bytes", "1000"), ("write.distribution-mode", "hash"), ("delta.targetFileSize", "10mb")] {
            assert!(matches!(judge(name, value, &both), Some(Told::Idle(_))), "{name}");
        }
        assert!(matches!(judge("delta.checkpointInterval", "x", &[Iceberg]), Some(Told::Idle(_))));
        assert!(matches!(judge("write.format.default", "orc", &[Delta]), Some(Told::Idle(_))));
    }
}
