//! Money in integer nano-dollars.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

/// An amount of money in nano-dollars (10⁻⁹ USD); in JSON an exact decimal number of dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd {
    /// The amount in nano-dollars; the range is about 9 billion dollars.
    pub nanousd: i64,
}

impl Usd {
    pub const ZERO: Self = Self { nanousd: 0 };

    /// Creates an amount from nano-dollars.
    pub const fn from_nanousd(nanousd: i64) -> Self {
        Self { nanousd }
    }

    /// Returns the sum, or the largest amount if it would overflow.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { nanousd: self.nanousd.saturating_add(other.nanousd) }
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = self.plus(other);
    }
}

/// Formats the amount without trailing zeros: `0.0015`, `12`.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanousd < 0 { "-" } else { "" };
        let nanousd = self.nanousd.unsigned_abs();
        let (whole, fraction) = (nanousd / 1_000_000_000, nanousd % 1_000_000_000);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{fraction:09}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl FromStr for Usd {
    type Err = String;

    /// Parses a decimal number of dollars exactly: `12`, `0.0015`, `1.5e-3`. It may have up to nine
    /// digits after the point.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("`{text}` is not an amount of US dollars, such as 12.5");
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| invalid())?),
            None => (text, 0_i32),
        };
        let (sign, digits) = match mantissa.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, mantissa),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let digits = all.trim_start_matches('0');
        if digits.is_empty() {
            return Ok(Self::ZERO);
        }
        // The value is `digits` times ten to the power of this, in nano-dollars.
        let shift = 9 + i64::from(exponent) - i64::try_from(fraction.len()).unwrap_or(i64::MAX);
        let trimmed = digits.trim_end_matches('0');
        let shift = shift + i64::try_from(digits.len() - trimmed.len()).unwrap_or(0);
        let shift = u32::try_from(shift)
            .map_err(|_| format!("`{text}` has more than nine digits after the decimal point"))?;
        let nanousd = trimmed.parse::<i64>().ok();
        let nanousd = nanousd.and_then(|digits| digits.checked_mul(10_i64.checked_pow(shift)?));
        let nanousd = nanousd.ok_or_else(|| format!("`{text}` is out of range"))?;
        Ok(Self::from_nanousd(sign * nanousd))
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string())
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let usd = f64::deserialize(deserializer)?;
        let nanousd = (usd * 1e9).round();
        // The cast below would saturate, so reject values near the limits of i64.
        if !(-9.2e18..=9.2e18).contains(&nanousd) {
            return Err(de::Error::custom("amount of money out of range"));
        }
        Ok(Self { nanousd: nanousd as i64 })
    }
}
