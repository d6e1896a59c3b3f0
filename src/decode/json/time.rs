//! Dates, times and timestamps as text to days and microseconds, exactly or not at all.
//!
//! Proleptic Gregorian calendar, years 0001 to 9999; no leap seconds, since neither table format
//! can hold one.

/// Why a text does not stand for a value, in words.
pub type Why = &'static str;

const DAY_US: i64 = 86_400_000_000;
/// 0001-01-01T00:00:00Z in microseconds since 1970.
pub const MIN_US: i64 = -719_162 * DAY_US;
/// 9999-12-31T23:59:59.999999Z.
pub const MAX_US: i64 = 2_932_897 * DAY_US - 1;

const YEARS: Why = "years run from 0001 to 9999";

/// The instant or local time, if its year has four digits.
pub fn in_range(us: i64) -> Result<i64, Why> {
    if (MIN_US..=MAX_US).contains(&us) { Ok(us) } else { Err(YEARS) }
}

#[inline(always)]
fn digit(b: u8) -> Option<u32> {
    let value = b.wrapping_sub(b'0');
    if value < 10 { Some(value as u32) } else { None }
}

#[inline(always)]
fn two(text: &[u8], at: usize) -> Option<u32> {
    Some(digit(text[at])? * 10 + digit(text[at + 1])?)
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
pub fn date(text: &[u8]) -> Result<i32, Why> {
    const SHAPE: Why = "not of the form YYYY-MM-DD";
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return Err(SHAPE);
    }
    let (Some(century), Some(rest), Some(month), Some(day)) = (two(text, 0), two(text, 2), two(text, 5), two(text, 8)) else {
        return Err(SHAPE);
    };
    let year = century * 100 + rest;
    if year == 0 {
        return Err(YEARS);
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err("no such month"),
    };
    if day == 0 || day > days {
        return Err("no such day");
    }
    // Years that begin in March, so that the leap day comes last.
    let year = (if month <= 2 { year - 1 } else { year }) as i32;
    let month = ((month + 9) % 12) as i32;
    Ok(year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day as i32 - 1 - 719_468)
}

/// Microseconds of the `hh:mm:ss[.f]` that `text` starts with, and what follows it. Fractions
/// have at most `max_fraction` digits; those behind the sixth are zero.
#[inline]
fn clock(text: &[u8], max_fraction: usize) -> Result<(i64, &[u8]), Why> {
    const SHAPE: Why = "the time is not of the form hh:mm:ss[.ffffff]";
    if text.len() < 8 || text[2] != b':' || text[5] != b':' {
        return Err(SHAPE);
    }
    let (Some(hour), Some(minute), Some(second)) = (two(text, 0), two(text, 3), two(text, 6)) else {
        return Err(SHAPE);
    };
    if second == 60 && minute < 60 && hour < 24 {
        return Err("leap seconds cannot be kept");
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err("no such time of day");
    }
    let mut us = ((hour * 60 + minute) * 60 + second) as i64 * 1_000_000;
    let mut rest = &text[8..];
    if rest.first() == Some(&b'.') {
        let mut unit = 100_000;
        let mut digits = 0;
        rest = &rest[1..];
        while let Some(value) = rest.first().and_then(|b| digit(*b)) {
            if unit == 0 && value != 0 {
                return Err("more precise than a microsecond");
            }
            us += value as i64 * unit;
            unit /= 10;
            digits += 1;
            rest = &rest[1..];
        }
        if digits == 0 {
            return Err(SHAPE);
        }
        if digits > max_fraction {
            return Err("too many digits behind the seconds");
        }
    }
    Ok((us, rest))
}

/// Microseconds since midnight of `hh:mm:ss[.f]`, up to 6 digits behind the point.
pub fn time(text: &[u8]) -> Result<i64, Why> {
    match clock(text, 6)? {
        (us, []) => Ok(us),
        _ => Err("something follows the time"),
    }
}

/// Date and time, up to 9 digits behind the point; whether a space parted them, and what follows.
#[inline]
fn date_and_clock(text: &[u8]) -> Result<(i64, bool, &[u8]), Why> {
    if text.len() < 19 {
        return Err("not of the form YYYY-MM-DDThh:mm:ss");
    }
    let spaced = match text[10] {
        b'T' | b't' => false,
        b' ' => true,
        _ => return Err("not of the form YYYY-MM-DDThh:mm:ss"),
    };
    let days = date(&text[..10])? as i64;
    let (us, rest) = clock(&text[11..], 9)?;
    Ok((days * DAY_US + us, spaced, rest))
}

/// An instant in microseconds since 1970 UTC: RFC 3339 with `Z` or an offset; `YYYY-MM-DD
/// hh:mm:ss[.f]`, with a space and no offset, is UTC.
pub fn timestamp(text: &[u8]) -> Result<i64, Why> {
    let (us, spaced, rest) = date_and_clock(text)?;
    let offset_minutes = match rest {
        [b'Z' | b'z'] => 0,
        [] if spaced => 0,
        [] => return Err("no offset from UTC; declare the column as timestamp_local, or write Z behind the time"),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (Some(hours), Some(minutes)) = (two(rest, 1), two(rest, 4)) else {
                return Err("the offset from UTC is not of the form +hh:mm");
            };
            if hours > 23 || minutes > 59 {
                return Err("no such offset from UTC");
            }
            let offset = (hours * 60 + minutes) as i64;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return Err("the offset from UTC is neither Z nor of the form +hh:mm"),
    };
    in_range(us - offset_minutes * 60_000_000)
}

/// A wall clock reading in microseconds since 1970-01-01T00:00:00, without an offset.
pub fn timestamp_local(text: &[u8]) -> Result<i64, Why> {
    match date_and_clock(text)? {
        (us, _, []) => Ok(us),
        (_, _, [b'Z' | b'z' | b'+' | b'-', ..]) => Err("a local time has no offset from UTC; declare the column as timestamp"),
        _ => Err("something follows the time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, NaiveDate, NaiveDateTime};

    #[test]
    fn every_day_agrees_with_chrono() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        let mut day = NaiveDate::from_ymd_opt(1, 1, 1).unwrap();
        let last = NaiveDate::from_ymd_opt(9999, 12, 31).unwrap();
        while day <= last {
            let text = day.format("%Y-%m-%d").to_string();
            assert_eq!(date(text.as_bytes()), Ok((day - epoch).num_days() as i32), "{text}");
            day = day.succ_opt().unwrap();
        }
        for text in ["0000-01-01", "2025-02-29", "1900-02-29", "2025-13-01", "2025-00-01", "2025-04-31", "2025-01-00", "2025-1-01", "25-01-01", "20250101",
            "2025-01-01 ", "+025-01-01", "10000-01-01", "2025/01/01", ""] {
            assert!(date(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, us) in [("00:00:00", 0), ("23:59:59.999999", DAY_US - 1), ("01:02:03.4", 3_723_400_000), ("00:00:00.000001", 1)] {
            assert_eq!(time(text.as_bytes()), Ok(us), "{text}");
        }
        for text in ["24:00:00", "23:60:00", "23:59:60", "1:02:03", "01:02", "01:02:03.", "01:02:03.1234567", "01:02:03.0000000", "01:02:03Z", "01-02-03", "é1:02:03"] {
            assert!(time(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn timestamps() {
        for text in [
            "2026-01-01T00:00:00.123Z",
            "2026-01-01t00:00:00z",
            "2026-01-01T00:00:00.123456+02:00",
            "1969-12-31T23:59:59.999999-23:59",
            "2026-01-01 10:11:12+05:30",
            "2026-01-01T00:00:00.123456000Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "0001-01-01T01:00:00+01:00",
        ] {
            let expected = DateTime::parse_from_rfc3339(&text.to_uppercase()).unwrap().timestamp_micros();
            assert_eq!(timestamp(text.as_bytes()), Ok(expected), "{text}");
        }
        let utc = |text: &str| NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").unwrap().and_utc().timestamp_micros();
        assert_eq!(timestamp(b"2026-01-01 10:11:12.5"), Ok(utc("2026-01-01 10:11:12.5")));
        assert_eq!(timestamp_local(b"2026-01-01 10:11:12.5"), Ok(utc("2026-01-01 10:11:12.5")));
        assert_eq!(timestamp_local(b"2026-01-01T10:11:12"), Ok(utc("2026-01-01 10:11:12")));
        for text in [
            "2026-01-01T00:00:00",
            "2026-01-01T00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:60Z",
            "2016-12-31T23:59:60Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567Z",
            "2026-01-01T00:00:00.0000000000Z",
            "2026-01-01T00:00:00+0200",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+02:60",
            "2026-01-01T00:00:00 Z",
            "2026-01-01T00:00:00Z ",
            "2026-01-01_00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "+292277-01-01T00:00:00Z",
            "infinity",
        ] {
            assert!(timestamp(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["2026-01-01T00:00:00Z", "2026-01-01 00:00:00+00:00", "2026-01-01 00:00:00 x", "2026-01-01"] {
            assert!(timestamp_local(text.as_bytes()).is_err(), "{text}");
        }
    }
}
