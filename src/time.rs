//! Timestamps.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A time in milliseconds since the Unix epoch; printed as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the current time of the system clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }
}

/// Always prints milliseconds, so that timestamps also compare correctly as text.
static PRINTER: jiff::fmt::temporal::DateTimePrinter =
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(3));

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Clamp times beyond the calendar: an error here would make `to_string` panic.
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
