//! Durations (`ms s m h d`) and sizes (`KiB MiB GiB`, `KB MB GB`, plain bytes).

/// Longest duration that is accepted: a hundred years, far inside what microseconds hold.
const MAX_US: i64 = 36_525 * 86_400_000_000;

/// What a duration or size looks like, and what the text perhaps meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misread {
    pub expected: &'static str,
    pub nearest: Option<String>,
}

/// Microseconds of a text such as `5s`, `250ms` or `1h`.
pub(super) fn duration_us(text: &str) -> Result<i64, Misread> {
    const EXPECTED: &str = "a duration: a whole number with ms, s, m, h or d, such as 30s";
    let misread = |nearest: Option<String>| Misread { expected: EXPECTED, nearest };
    let (number, unit) = split(text).ok_or_else(|| misread(None))?;
    let us_per_unit = match unit {
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        other => {
            let short = match other.to_lowercase().as_str() {
                "" if number == 0 => "s",
                "sec" | "secs" | "second" | "seconds" => "s",
                "min" | "mins" | "minute" | "minutes" => "m",
                "hr" | "hrs" | "hour" | "hours" => "h",
                "day" | "days" => "d",
                "millis" | "millisecond" | "milliseconds" | "msec" => "ms",
                _ => return Err(misread(None)),
            };
            return Err(misread(Some(format!("{number}{short}"))));
        }
    };
    match i64::try_from(number).ok().and_then(|n| n.checked_mul(us_per_unit)) {
        Some(us) if us <= MAX_US => Ok(us),
        _ => Err(Misread { expected: "a duration of at most 36525d", nearest: None }),
    }
}

/// Bytes of a text such as `8MiB`, `10 GB` or `1048576`.
pub(super) fn bytes(text: &str) -> Result<u64, Misread> {
    const EXPECTED: &str = "a size: a whole number with KiB, MiB, GiB, KB, MB or GB, such as 8MiB, or plain bytes";
    let misread = |nearest: Option<String>| Misread { expected: EXPECTED, nearest };
    let (number, unit) = split(text).ok_or_else(|| misread(None))?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        other => {
            let unit = match other.to_lowercase().as_str() {
                "k" | "ki" | "kib" => "KiB",
                "m" | "mi" | "mib" => "MiB",
                "g" | "gi" | "gib" => "GiB",
                "kb" => "KB",
                "mb" => "MB",
                "gb" => "GB",
                _ => return Err(misread(None)),
            };
            return Err(misread(Some(format!("{number}{unit}"))));
        }
    };
    number.checked_mul(factor).filter(|bytes| *bytes <= i64::MAX as u64).ok_or(Misread { expected: "a size of less than 8 EiB", nearest: None })
}

/// A whole number and what follows it, spaces between them left out.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration_us("0s"), Ok(0));
        assert_eq!(duration_us("250ms"), Ok(250_000));
        assert_eq!(duration_us("10 m"), Ok(600_000_000));
        assert_eq!(duration_us("22h"), Ok(79_200_000_000));
        assert_eq!(duration_us("1d"), Ok(86_400_000_000));
        assert_eq!(duration_us("5 minutes").unwrap_err().nearest.as_deref(), Some("5m"));
        for bad in ["", "5", "s", "-5s", "1.5h", "5s5", "99999999999999999999s", "9223372036854775807d", "5M", "٣s"] {
            assert!(duration_us(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_both_kinds_of_units() {
        assert_eq!(bytes("8MiB"), Ok(8 << 20));
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(bytes("10 GB"), Ok(10_000_000_000));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("512m").unwrap_err().nearest.as_deref(), Some("512MiB"));
        for bad in ["", "MiB", "-1", "1.5GiB", "1 XiB", "99999999999GiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
