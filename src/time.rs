//! Timestamps.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A time in milliseconds since the Unix epoch; printed as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// The last moment that the system's clock may show: a year before the calendar of [`jiff`] ends, so
/// that the ends of periods around it can be computed.
const NOW_MAX_MS: i64 = 253_339_228_800_000;

impl Timestamp {
    /// Returns the current time of the system clock, clamped to the years 1970 to 9998.
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    fn of(clock: SystemTime) -> Self {
        let since_1970 = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_1970.as_millis()).map_or(NOW_MAX_MS, |ms| ms.min(NOW_MAX_MS)))
    }
}

/// Always prints milliseconds, so that timestamps also compare correctly as text.
static PRINTER: jiff::fmt::temporal::DateTimePrinter =
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(3));

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A time beyond the calendar is printed as its end, because a failed `fmt` would panic in
        // `to_string`.
        let end = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        let moment = jiff::Timestamp::from_millisecond(self.0).unwrap_or(end);
        f.write_str(&PRINTER.timestamp_to_string(&moment))
    }
}

impl FromStr for Timestamp {
    type Err = String;

    /// Parses RFC 3339 (`2025-12-04T10:00:00Z`), or a date, which stands for its start in UTC.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = text.parse::<jiff::Timestamp>() {
            return Ok(Self(moment.as_millisecond()));
        }
        let date = text.parse::<jiff::civil::Date>().map_err(|_| {
            format!("`{text}` is not a date or an RFC 3339 time such as 2025-12-04T10:00:00Z")
        })?;
        let start = date
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map_err(|_| format!("`{text}` is out of range"))?;
        Ok(Self(start.timestamp().as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Returns the error message for an unknown time zone.
pub fn unknown_zone(name: &str) -> String {
    format!("unknown time zone `{name}`; use an IANA name such as `Europe/Berlin`")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_beyond_the_calendar_is_clamped() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Timestamp::of(before).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::of(at(1_700_000_000)).0, 1_700_000_000_000);
        for late in [at(253_402_300_799), at(1 << 60)] {
            assert_eq!(Timestamp::of(late).to_string(), "9998-01-01T00:00:00.000Z");
        }
    }
}
