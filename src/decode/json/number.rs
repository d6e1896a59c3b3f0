//! Numbers as they are written to exact integers and decimals; nothing passes through a float.
//!
//! Every text here has the grammar of a JSON number already.

/// Why a number does not fit exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inexact {
    /// Digits other than zero are left behind the last place that the type has.
    Fraction,
    /// Too large.
    Range,
}

/// `text * 10^scale`, exactly.
pub fn scaled(text: &[u8], scale: i32) -> Result<i128, Inexact> {
    // Most numbers are short and have no exponent: one pass in 64 bits.
    if text.len() > 18 {
        return scaled_slowly(text, scale);
    }
    let mut value = 0u64;
    let mut fraction = 0;
    let mut behind_point = 0;
    let (negative, digits) = sign(text);
    for &b in digits {
        match b {
            b'0'..=b'9' => {
                value = value * 10 + (b - b'0') as u64;
                fraction += behind_point;
            }
            b'.' => behind_point = 1,
            _ => return scaled_slowly(text, scale),
        }
    }
    let shift = scale - fraction;
    let value = if (0..=19).contains(&shift) {
        // Below 10^18 * 10^19 < 2^127.
        value as i128 * 10i128.pow(shift as u32)
    } else if (-18..0).contains(&shift) {
        let unit = 10u64.pow(-shift as u32);
        if value % unit != 0 {
            return Err(Inexact::Fraction);
        }
        (value / unit) as i128
    } else {
        return scaled_slowly(text, scale);
    };
    Ok(if negative { -value } else { value })
}

fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    }
}

fn scaled_slowly(text: &[u8], scale: i32) -> Result<i128, Inexact> {
    let (negative, text) = sign(text);
    let (mantissa, exponent) = match text.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let (whole, fraction) = match mantissa.iter().position(|b| *b == b'.') {
        Some(at) => (&mantissa[..at], &mantissa[at + 1..]),
        None => (mantissa, &[][..]),
    };
    // The value is `value * 10^trailing`, ending in a digit that is not zero, at `10^(exponent - fraction.len())`.
    let mut value = 0i128;
    let mut trailing = 0i64;
    let mut overflow = false;
    for &b in whole.iter().chain(fraction) {
        let digit = (b - b'0') as i128;
        if digit == 0 {
            trailing += (value != 0) as i64;
            continue;
        }
        let grown = power(trailing + 1).and_then(|unit| value.checked_mul(unit)).and_then(|v| v.checked_add(digit));
        match grown {
            Some(grown) if !overflow => value = grown,
            // Too many digits for 128 bits; whether they are whole or a fraction is seen below.
            _ => overflow = true,
        }
        trailing = 0;
    }
    if value == 0 {
        return Ok(0);
    }
    let shift = exponent.saturating_add(scale as i64).saturating_sub(fraction.len() as i64).saturating_add(trailing);
    if shift < 0 {
        return Err(Inexact::Fraction);
    }
    if overflow {
        return Err(Inexact::Range);
    }
    let value = power(shift).and_then(|unit| value.checked_mul(unit)).ok_or(Inexact::Range)?;
    Ok(if negative { -value } else { value })
}

fn power(exponent: i64) -> Option<i128> {
    10i128.checked_pow(u32::try_from(exponent).ok()?)
}

/// Saturates: a number has far fewer digits than 2^62, so what saturates is out of range or zero.
fn exponent(text: &[u8]) -> i64 {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let value = digits.iter().fold(0i64, |value, b| value.saturating_mul(10).saturating_add((b - b'0') as i64)).min(1 << 62);
    if negative { -value } else { value }
}

pub fn int64(text: &[u8]) -> Result<i64, Inexact> {
    if text.len() <= 18 {
        let (negative, digits) = sign(text);
        let mut value = 0i64;
        let mut whole = true;
        for b in digits {
            value = value * 10 + (b.wrapping_sub(b'0') & 15) as i64;
            whole &= b.is_ascii_digit();
        }
        if whole {
            return Ok(if negative { -value } else { value });
        }
    }
    i64::try_from(scaled(text, 0)?).map_err(|_| Inexact::Range)
}

/// The unscaled value of a `decimal(precision, scale)`.
pub fn decimal(text: &[u8], precision: u8, scale: u8) -> Result<i128, Inexact> {
    let value = scaled(text, scale as i32)?;
    // Precision is at most 38, and 10^38 < 2^127.
    if value.unsigned_abs() >= 10u128.pow(precision as u32) { Err(Inexact::Range) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0", 0),
            ("7", 7),
            ("1.0", 1),
            ("1e2", 100),
            ("100e-2", 1),
            ("12.50e1", 125),
            ("0e99999999999999999999", 0),
            ("0.000e-99999999999999999999", 0),
            ("9007199254740993", 9007199254740993),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
            ("9223372036854775807.000", i64::MAX),
            ("922337203685477580700000000000000000000000000000000000000e-38", i64::MAX),
            ("0.0000000000000000000000000000000000000000000000000001e52", 1),
        ] {
            assert_eq!(int64(text.as_bytes()), Ok(value), "{text}");
        }
        for (text, why) in [
            ("1.5", Inexact::Fraction),
            ("1e-1", Inexact::Fraction),
            ("1e-99999999999999999999", Inexact::Fraction),
            ("0.1000000000000000000000000000000000000000000000000001", Inexact::Fraction),
            ("9223372036854775808", Inexact::Range),
            ("-9223372036854775809", Inexact::Range),
            ("1e19", Inexact::Range),
            ("1e99999999999999999999", Inexact::Range),
            ("123456789012345678901234567890123456789012345", Inexact::Range),
        ] {
            assert_eq!(int64(text.as_bytes()), Err(why), "{text}");
        }
    }

    #[test]
    fn decimals() {
        for (text, p, s, value) in [
            ("123.45", 12, 2, 12345),
            ("123.4500000", 12, 2, 12345),
            ("-0.1", 2, 1, -1),
            ("1e3", 4, 0, 1000),
            ("12345e-2", 5, 2, 12345),
            ("0.00000000000000000000000000000000000001", 38, 38, 1),
            ("99999999999999999999999999999999999999", 38, 0, 10i128.pow(38) - 1),
            ("-99999999999999999999999999999999999999", 38, 0, 1 - 10i128.pow(38)),
            ("0", 38, 38, 0),
            ("0.1", 38, 38, 10i128.pow(37)),
        ] {
            assert_eq!(decimal(text.as_bytes(), p, s), Ok(value), "{text}");
        }
        for (text, p, s, why) in [
            ("1.005", 12, 2, Inexact::Fraction),
            ("0.001", 12, 2, Inexact::Fraction),
            ("100", 2, 0, Inexact::Range),
            ("1", 38, 38, Inexact::Range),
            ("100000000000000000000000000000000000000", 38, 0, Inexact::Range),
            ("999999999999999999", 38, 38, Inexact::Range),
            ("1e40", 38, 0, Inexact::Range),
        ] {
            assert_eq!(decimal(text.as_bytes(), p, s), Err(why), "{text}");
        }
    }
}
