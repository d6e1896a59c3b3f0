//! Watermark, horizon and lateness: pure functions over facts that the log holds.
//!
//! All times are microseconds since 1970-01-01 UTC (a local time column: of its wall clock). The
//! watermark moves only between epochs, so that thread timing and batch size can never make a row
//! late (DESIGN section 3). Time before any row is `None`: nothing is closed, nothing is late.

use crate::mutant::{self, Mutant};

/// A partition as the watermark sees it in one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionTime {
    /// The highest event time so far, rows beyond `max_ahead` left out; `None` before the first row.
    pub max_event_us: Option<i64>,
    /// This very entry claims that the partition is idle. Claims are never carried over.
    pub idle: bool,
}

/// The highest event time that may move a watermark: `max_ahead_us` beyond the earlier of the
/// record's own time and the start of its epoch. Sources without record times have no cap.
pub fn cap_us(record_ms: Option<i64>, epoch_start_ms: i64, max_ahead_us: i64) -> i64 {
    match record_ms {
        Some(record) => record.min(epoch_start_ms).saturating_mul(1000).saturating_add(max_ahead_us),
        None => i64::MAX,
    }
}

/// The source's watermark after an entry: the minimum over its partitions, never below `before`.
/// A partition without a row holds it; one that the entry claims idle is left out; with every
/// partition left out it stays.
pub fn watermark(before: Option<i64>, partitions: impl IntoIterator<Item = PartitionTime>, delay_us: i64) -> Option<i64> {
    let mut lowest: Option<i64> = None;
    for partition in partitions {
        if partition.idle {
            continue;
        }
        let Some(highest) = partition.max_event_us else { return before };
        let here = highest.saturating_sub(delay_us);
        lowest = Some(lowest.map_or(here, |l| l.min(here)));
    }
    before.max(lowest)
}

/// The horizon of a table: the running maximum of watermark minus allowed lateness. It never
/// falls, also when the lateness is raised later.
pub fn horizon(before: Option<i64>, watermark: Option<i64>, allowed_lateness_us: i64) -> Option<i64> {
    let now = watermark.map(|w| w.saturating_sub(allowed_lateness_us));
    if mutant::on(Mutant::HorizonFalls) && now.is_some() {
        return now;
    }
    before.max(now)
}

/// A row is late for a window that ended at or before the horizon.
pub fn is_late(window_end_us: i64, horizon: Option<i64>) -> bool {
    horizon.is_some_and(|h| window_end_us <= h)
}

/// What the ingest half may assume of the watermark while it makes an epoch (DESIGN section 3).
///
/// The larger of the log's watermark when the work began and the minimum over the worker's own
/// partitions that have rows waiting then (over all its own where none has). If the log's
/// watermark is above it at the decision, the work is stale.
pub fn bound(watermark: Option<i64>, own: impl IntoIterator<Item = (Option<i64>, bool)>, delay_us: i64) -> Option<i64> {
    let own: Vec<(Option<i64>, bool)> = own.into_iter().collect();
    let any_waiting = own.iter().any(|(_, waiting)| *waiting);
    let considered = own.iter().filter(|(_, waiting)| *waiting || !any_waiting);
    let lowest = considered.map(|(highest, _)| highest.map(|h| h.saturating_sub(delay_us))).min().flatten();
    watermark.max(lowest)
}

/// Rows of windows that end at or before this are staged raw, for the fold to judge.
pub fn judge_below(horizon: Option<i64>, bound: Option<i64>, allowed_lateness_us: i64) -> Option<i64> {
    horizon.max(bound.map(|b| b.saturating_sub(allowed_lateness_us)))
}

/// Of partitions with rows waiting, those that are more than `slack_us` ahead of the one furthest behind. Under memory
/// pressure they wait for it: what they bring only opens more windows, which the watermark cannot close yet. Partitions
/// without a row so far say nothing of where they are.
pub fn furthest_ahead(waiting: impl IntoIterator<Item = (i32, Option<i64>)>, slack_us: i64) -> Vec<i32> {
    let known: Vec<(i32, i64)> = waiting.into_iter().filter_map(|(p, highest)| Some((p, highest?))).collect();
    let Some(lowest) = known.iter().map(|(_, highest)| *highest).min() else { return vec![] };
    known.into_iter().filter(|(_, highest)| *highest > lowest.saturating_add(slack_us)).map(|(p, _)| p).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(max_event_us: Option<i64>, idle: bool) -> PartitionTime {
        PartitionTime { max_event_us, idle }
    }

    /// FAULTS 58.
    #[test]
    fn a_partition_without_a_row_holds_the_watermark_until_it_is_claimed_idle() {
        let rows = partition(Some(100), false);
        assert_eq!(watermark(None, [rows, partition(None, false)], 10), None);
        assert_eq!(watermark(None, [rows, partition(None, true)], 10), Some(90));
        assert_eq!(watermark(Some(95), [partition(Some(200), true)], 10), Some(95));
    }

    /// FAULTS 60.
    #[test]
    fn a_row_exactly_on_the_watermark_closes_its_window() {
        // Zero delay: an event at 12:05:00 moves the watermark to the end of the window before it.
        assert_eq!(watermark(None, [partition(Some(300), false)], 0), Some(300));
        assert!(is_late(300, Some(300)));
        assert!(!is_late(301, Some(300)));
        assert!(!is_late(i64::MIN, None));
    }

    #[test]
    fn only_partitions_that_are_ahead_of_one_with_rows_wait() {
        assert_eq!(furthest_ahead([(0, Some(100)), (1, Some(111)), (2, Some(110)), (3, None)], 10), [1]);
        assert_eq!(furthest_ahead([(1, Some(500))], 10), Vec::<i32>::new(), "alone it is the last one");
        assert_eq!(furthest_ahead([(0, None), (1, Some(500))], 10), Vec::<i32>::new());
    }

    /// FAULTS 56.
    #[test]
    fn a_wrong_clock_cannot_move_the_cap() {
        let hour = 3_600_000_000;
        assert_eq!(cap_us(Some(5_000), 1_000, hour), 1_000_000 + hour);
        assert_eq!(cap_us(Some(1_000), 5_000, hour), 1_000_000 + hour);
        assert_eq!(cap_us(None, 5_000, hour), i64::MAX);
    }

    fn times() -> impl Strategy<Value = Vec<(Option<i64>, bool)>> {
        proptest::collection::vec((proptest::option::of(-1000i64..1000), any::<bool>()), 0..5)
    }

    proptest! {
        #[test]
        fn the_watermark_never_falls(before in proptest::option::of(-1000i64..1000), ps in times(), delay in 0i64..50) {
            let after = watermark(before, ps.iter().map(|&(m, idle)| partition(m, idle)), delay);
            prop_assert!(after >= before);
        }

        #[test]
        fn the_horizon_never_falls_whatever_the_lateness(marks in proptest::collection::vec((0i64..1000, 0i64..500), 1..20)) {
            let mut at = None;
            for (mark, lateness) in marks {
                let next = horizon(at, Some(mark), lateness);
                prop_assert!(next >= at);
                at = next;
            }
        }

        /// What a single worker reads cannot carry the log past its own bound, whichever of its
        /// waiting partitions move, as long as nobody claims one idle.
        #[test]
        fn rows_of_a_partition_that_lags_keep_the_watermark_at_the_bound(ps in times(), delay in 0i64..50) {
            let start = watermark(None, ps.iter().map(|&(m, _)| partition(m, false)), delay);
            let limit = bound(start, ps.clone(), delay);
            // Partitions without waiting rows stay where they are; the lowest of the others too.
            let after = watermark(start, ps.iter().map(|&(m, _)| partition(m, false)), delay);
            prop_assert!(after <= limit || limit.is_none() && after.is_none());
        }
    }
}
