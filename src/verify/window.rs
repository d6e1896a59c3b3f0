//! Which tumbling window an instant lies in: the judge's own arithmetic.

use crate::pipeline::sql::{Align, Tumble};
use chrono::{Datelike, Offset, TimeZone};
use chrono_tz::Tz;
use std::collections::HashMap;

const DAY_US: i128 = 86_400_000_000;
/// A time zone's clock is never further from UTC, and a date begins within this of its UTC midnight.
const FAR_US: i64 = 30 * 3_600_000_000;
const QUARTER_US: i64 = 900_000_000;

/// Finds windows of one kind; remembers the days of a time zone that it has looked up.
pub struct Windows {
    tumble: Tumble,
    begins: HashMap<i32, Option<i64>>,
}

impl Windows {
    pub fn new(tumble: Tumble) -> Self {
        Self { tumble, begins: HashMap::new() }
    }

    /// The half-open window in microseconds, clamped to what 64 bits hold.
    pub fn of(&mut self, event_us: i64) -> (i64, i64) {
        let (size, offset) = match self.tumble.align {
            Align::Epoch { offset_us } => (self.tumble.size_us, offset_us),
            Align::Days { zone, days } => match self.of_days(event_us, zone, days) {
                Some(window) => return window,
                None => (self.tumble.size_us, 0),
            },
        };
        let nth = (i128::from(event_us) - i128::from(offset)).div_euclid(i128::from(size));
        let start = nth * i128::from(size) + i128::from(offset);
        let clamp = |at: i128| at.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        // A start below what 64 bits hold is the lowest instant, and its window is still one size long.
        let start = clamp(start);
        (start, clamp(i128::from(start) + i128::from(size)))
    }

    fn of_days(&mut self, event_us: i64, zone: Tz, days: i32) -> Option<(i64, i64)> {
        let day = local_day(event_us, zone)?;
        let first = day - day.rem_euclid(days);
        // The date that a clock shows twice, where it goes back over midnight, belongs to the later day.
        for first in [first, first + days, first - days] {
            let (start, end) = (self.begin(first, zone)?, self.begin(first + days, zone)?);
            if (start..end).contains(&event_us) {
                return Some((start, end));
            }
        }
        None
    }

    /// The first instant at which the zone's date is this day or a later one.
    fn begin(&mut self, day: i32, zone: Tz) -> Option<i64> {
        *self.begins.entry(day).or_insert_with(|| {
            let midnight = i64::try_from(i128::from(day) * DAY_US).ok()?;
            let reached = |at: i64| local_day(at, zone).map(|d| d >= day);
            let mut high = midnight.checked_sub(FAR_US)?;
            while !reached(high)? {
                high += QUARTER_US;
            }
            let mut low = high - QUARTER_US;
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                if reached(middle)? { high = middle } else { low = middle }
            }
            Some(high)
        })
    }
}

/// Days since 1970-01-01 on the zone's calendar.
fn local_day(at_us: i64, zone: Tz) -> Option<i32> {
    let utc = chrono::DateTime::from_timestamp_micros(at_us)?.naive_utc();
    let local = utc.checked_add_offset(zone.offset_from_utc_datetime(&utc).fix())?;
    Some(local.date().num_days_from_ce() - 719_163)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ways to the same windows: the one that the tables are made with, and this one.
    #[test]
    fn windows_are_those_that_the_tables_are_made_with() {
        let zones = ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Pacific/Apia", "America/Havana", "UTC", "America/Scoresbysund"];
        let mut kinds = vec![];
        for (size_us, offset_us) in [(300_000_000, 0), (7, 3), (3_600_000_000, 59)] {
            kinds.push(Tumble { size_us, align: Align::Epoch { offset_us } });
        }
        for (n, zone) in zones.iter().enumerate() {
            let days = 1 + n as i32 % 4;
            kinds.push(Tumble { size_us: days as i64 * DAY_US as i64, align: Align::Days { zone: zone.parse().unwrap(), days } });
        }
        for tumble in kinds {
            let mut windows = Windows::new(tumble);
            for n in 0..3000i64 {
                // From 1950 on, in steps that hit every hour of the day, and every transition's neighbourhood.
                let at = -631_152_000_000_000 + n * 1_234_567_891_234;
                assert_eq!(windows.of(at), tumble.window_of(at), "{tumble} {at}");
            }
        }
        let mut edges = Windows::new(Tumble { size_us: 300, align: Align::Epoch { offset_us: 0 } });
        for at in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
            assert_eq!(edges.of(at), edges.tumble.window_of(at), "{at}");
        }
    }
}
