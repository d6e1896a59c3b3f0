//! Tumbling windows: which window an instant lies in, in microseconds and nothing finer.

use chrono::{Datelike, NaiveDate, NaiveDateTime, Offset, TimeDelta, TimeZone};
use chrono_tz::Tz;

/// Back-to-back windows of one size. Every instant lies in exactly one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Tumble {
    /// Nominal length, above 0. A window aligned to a time zone's days may be an hour or so longer or shorter.
    pub size_us: i64,
    pub align: Align,
}

/// Where windows start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// At whole multiples of the size after 1970-01-01T00:00:00, plus this offset (`0 <= offset_us < size_us`).
    Epoch { offset_us: i64 },
    /// At local midnights of a time zone, every `days` days counted from the local 1970-01-01.
    Days { zone: Tz, days: i32 },
}

/// How a window stands in the log.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    size_us: i64,
    #[serde(default)]
    offset_us: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(default)]
    days: i32,
}

impl From<Tumble> for Stored {
    fn from(t: Tumble) -> Self {
        match t.align {
            Align::Epoch { offset_us } => Self { size_us: t.size_us, offset_us, zone: None, days: 0 },
            Align::Days { zone, days } => Self { size_us: t.size_us, offset_us: 0, zone: Some(zone.name().to_string()), days },
        }
    }
}

impl TryFrom<Stored> for Tumble {
    type Error = String;

    fn try_from(s: Stored) -> Result<Self, String> {
        let align = match s.zone {
            None => Align::Epoch { offset_us: s.offset_us },
            Some(name) => Align::Days { zone: name.parse().map_err(|_| format!("no time zone {name} is known"))?, days: s.days },
        };
        if s.size_us <= 0 || matches!(align, Align::Days { days, .. } if days <= 0) {
            return Err(format!("a window of {} us cannot be", s.size_us));
        }
        Ok(Self { size_us: s.size_us, align })
    }
}

const DAY_US: i64 = 86_400_000_000;

impl Tumble {
    /// The half-open window `[start, end)`, in microseconds since 1970-01-01, that holds this instant.
    ///
    /// The result is clamped to what 64 bits hold. Beyond the years that the calendar knows (about ±262,000),
    /// windows aligned to a time zone are those of UTC.
    pub fn window_of(&self, event_us: i64) -> (i64, i64) {
        match self.align {
            Align::Epoch { offset_us } => fixed(event_us, self.size_us, offset_us),
            Align::Days { zone, days } => zoned(event_us, zone, days).unwrap_or_else(|| fixed(event_us, self.size_us, 0)),
        }
    }
}

fn fixed(event_us: i64, size_us: i64, offset_us: i64) -> (i64, i64) {
    let into = (event_us as i128 - offset_us as i128).rem_euclid(size_us as i128) as i64;
    let start = event_us.saturating_sub(into);
    (start, start.saturating_add(size_us))
}

/// Boundaries are instants, not dates: where a clock goes back over midnight a date comes twice, and the
/// hour that repeats belongs to the window that its instant lies in.
fn zoned(event_us: i64, zone: Tz, days: i32) -> Option<(i64, i64)> {
    let utc = chrono::DateTime::from_timestamp_micros(event_us)?.naive_utc();
    let date = utc.checked_add_offset(zone.offset_from_utc_datetime(&utc).fix())?.date();
    let day = date.num_days_from_ce() - EPOCH_FROM_CE;
    let mut first = day - day.rem_euclid(days);
    loop {
        let (start, end) = (midnight(first, zone)?, midnight(first.checked_add(days)?, zone)?);
        if event_us < start {
            first = first.checked_sub(days)?;
        } else if event_us >= end {
            first = first.checked_add(days)?;
        } else {
            return Some((start, end));
        }
    }
}

/// Days from the common era's first to 1970-01-01.
const EPOCH_FROM_CE: i32 = 719_163;

/// The first instant of a local date, counted in days since 1970-01-01.
fn midnight(day: i32, zone: Tz) -> Option<i64> {
    let local: NaiveDateTime = NaiveDate::from_num_days_from_ce_opt(day.checked_add(EPOCH_FROM_CE)?)?.and_hms_opt(0, 0, 0)?;
    // A clock may skip midnight: the date then starts where the gap ends, to the second in the years of local mean times.
    let instant = |at: &NaiveDateTime| zone.from_local_datetime(at).earliest();
    let mut at = local;
    for _ in 0..=24 * 60 {
        if instant(&at).is_some() {
            while at > local && instant(&(at - TimeDelta::seconds(1))).is_some() {
                at -= TimeDelta::seconds(1);
            }
            return Some(instant(&at)?.naive_utc().and_utc().timestamp_micros());
        }
        at = at.checked_add_signed(TimeDelta::minutes(1))?;
    }
    // A whole date is missing (Samoa, 2011-12-30): it is empty, and starts where the next one does.
    midnight(day + 1, zone)
}

impl std::fmt::Display for Tumble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.align {
            Align::Epoch { offset_us } => write!(f, "tumble size {} us, offset {offset_us} us", self.size_us),
            Align::Days { zone, days } => write!(f, "tumble {days} days of {}", zone.name()),
        }
    }
}

/// Whole days in a size, if it is nothing else.
pub(super) fn whole_days(size_us: i64) -> Option<i32> {
    (size_us % DAY_US == 0).then(|| i32::try_from(size_us / DAY_US).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(text: &str) -> i64 {
        chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    #[test]
    fn windows_of_fixed_size_floor_also_before_1970() {
        let w = Tumble { size_us: 300, align: Align::Epoch { offset_us: 0 } };
        assert_eq!(w.window_of(0), (0, 300));
        assert_eq!(w.window_of(299), (0, 300));
        assert_eq!(w.window_of(300), (300, 600));
        assert_eq!(w.window_of(-1), (-300, 0));
        assert_eq!(w.window_of(-300), (-300, 0));
        let shifted = Tumble { size_us: 300, align: Align::Epoch { offset_us: 100 } };
        assert_eq!(shifted.window_of(99), (-200, 100));
        assert_eq!(shifted.window_of(100), (100, 400));
        assert_eq!(w.window_of(i64::MAX).1, i64::MAX);
        assert_eq!(w.window_of(i64::MIN).0, i64::MIN);
    }

    #[test]
    fn days_of_a_zone_follow_its_clock_changes() {
        let berlin = Tumble { size_us: DAY_US, align: Align::Days { zone: chrono_tz::Europe::Berlin, days: 1 } };
        let spring = berlin.window_of(us("2025-03-30T12:00:00+02:00"));
        assert_eq!(spring, (us("2025-03-30T00:00:00+01:00"), us("2025-03-31T00:00:00+02:00")));
        assert_eq!(spring.1 - spring.0, 23 * 3_600_000_000);
        let autumn = berlin.window_of(us("2025-10-26T02:30:00+01:00"));
        assert_eq!(autumn.1 - autumn.0, 25 * 3_600_000_000);
        // Beirut skips midnight: the day starts at 01:00.
        let beirut = Tumble { size_us: DAY_US, align: Align::Days { zone: chrono_tz::Asia::Beirut, days: 1 } };
        assert_eq!(beirut.window_of(us("2022-03-27T12:00:00+03:00")).0, us("2022-03-27T01:00:00+03:00"));
        // Monrovia left its local mean time for UTC: the day starts at 00:44:30, to the second.
        let monrovia = Tumble { size_us: DAY_US, align: Align::Days { zone: chrono_tz::Africa::Monrovia, days: 1 } };
        assert_eq!(monrovia.window_of(us("1972-01-07T00:44:40Z")).0, us("1972-01-07T00:44:30Z"));
        assert_eq!(monrovia.window_of(us("1972-01-07T00:44:20Z")).1, us("1972-01-07T00:44:30Z"));
    }

    proptest! {
        #[test]
        fn zoned_windows_tile_time(at in -4_000_000_000_000_000i64..4_000_000_000_000_000, days in 1..9i32, zone in 0usize..7) {
            let zones = ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Pacific/Apia", "America/Havana", "Africa/Monrovia", "America/Scoresbysund"];
            let zone: Tz = zones[zone].parse().unwrap();
            let w = Tumble { size_us: days as i64 * DAY_US, align: Align::Days { zone, days } };
            let (start, end) = w.window_of(at);
            prop_assert!(start <= at && at < end);
            prop_assert_eq!(w.window_of(start), (start, end));
            prop_assert_eq!(w.window_of(end - 1), (start, end));
            prop_assert_eq!(w.window_of(end).0, end);
        }
    }
}
