//! The hours of the day in which a model of an alias is used.

use std::time::Duration;

use jiff::tz::TimeZone;

use crate::time::{Timestamp, unknown_zone};

const MINUTES_PER_DAY: u16 = 24 * 60;

/// From the start to before the end, by the clock of a time zone; over midnight if the end is
/// smaller.
#[derive(Clone, Debug)]
pub struct Hours {
    /// Minutes of the day.
    start: u16,
    end: u16,
    zone: TimeZone,
}

impl Hours {
    /// Parses hours such as `22:00-06:00`, in UTC or in an IANA time zone.
    ///
    /// # Errors
    /// Describes the fault.
    pub fn parse(hours: &str, zone: Option<&str>) -> Result<Self, String> {
        let fault = || format!("`{hours}` is not a time of the day such as 22:00-06:00");
        let (start, end) = hours.split_once('-').ok_or_else(fault)?;
        let start = minute(start).filter(|start| *start < MINUTES_PER_DAY).ok_or_else(fault)?;
        let end = minute(end).ok_or_else(fault)?;
        if start == end {
            return Err(format!(
                "`{hours}` ends when it starts; leave `hours` out for the whole day"
            ));
        }
        let zone = match zone {
            Some(name) => TimeZone::get(name).map_err(|_| unknown_zone(name))?,
            None => TimeZone::UTC,
        };
        Ok(Self { start, end, zone })
    }

    pub(super) fn contains(&self, at: Timestamp) -> bool {
        let (minute, _) = self.clock(at);
        match self.start < self.end {
            true => (self.start..self.end).contains(&minute),
            false => minute >= self.start || minute < self.end,
        }
    }

    /// Returns the time until the next start, if the clock is not set meanwhile.
    pub(super) fn wait(&self, at: Timestamp) -> Duration {
        let (minute, second) = self.clock(at);
        let minutes = (self.start + MINUTES_PER_DAY - minute) % MINUTES_PER_DAY;
        Duration::from_secs((u64::from(minutes) * 60).saturating_sub(u64::from(second)))
    }

    /// Returns the minute of the day and the second.
    fn clock(&self, at: Timestamp) -> (u16, u8) {
        let moment = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
        let clock = moment.to_zoned(self.zone.clone()).time();
        let number = |it: i8| u8::try_from(it).unwrap_or_default();
        let minute = u16::from(number(clock.hour())) * 60 + u16::from(number(clock.minute()));
        (minute, number(clock.second()))
    }
}

/// Parses `HH:MM`, up to `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute).filter(|minute| *minute < 60)?);
    Some(hour * 60 + minute).filter(|minute| *minute <= MINUTES_PER_DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_follow_the_clock_of_their_zone() {
        let contains = |hours, zone, at: &str| {
            Hours::parse(hours, zone).unwrap().contains(at.parse().unwrap())
        };
        for (at, expected) in [
            ("2026-11-30T21:59:59Z", false),
            ("2026-11-30T22:00:00Z", true),
            ("2026-11-30T05:59:59Z", true),
            ("2026-11-30T06:00:00Z", false),
        ] {
            assert_eq!(contains("22:00-06:00", None, at), expected, "{at}");
        }
        let berlin = Some("Europe/Berlin");
        assert!(contains("22:00-06:00", berlin, "2026-11-30T21:00:00Z"));
        assert!(contains("22:00-06:00", berlin, "2026-07-01T20:00:00Z"));
        assert!(!contains("22:00-06:00", berlin, "2026-07-01T04:00:00Z"));
        assert!(contains("08:30-24:00", None, "2026-07-01T23:59:59Z"));
        assert!(!contains("08:30-24:00", None, "2026-07-01T00:00:00Z"));
    }

    #[test]
    fn the_wait_lasts_until_the_start() {
        let hours = Hours::parse("22:00-06:00", None).unwrap();
        let wait = |at: &str| hours.wait(at.parse().unwrap()).as_secs();
        assert_eq!(wait("2026-11-30T21:59:30Z"), 30);
        assert_eq!(wait("2026-11-30T06:00:00Z"), 16 * 60 * 60);
    }

    #[test]
    fn wrong_hours_are_refused() {
        for hours in
            ["", "22:00", "22-06", "24:00-06:00", "22:00-25:00", "1:00-02:00", "22:60-06:00"]
        {
            let error = Hours::parse(hours, None).unwrap_err();
            assert!(error.contains("such as 22:00-06:00"), "{error}");
        }
        assert!(Hours::parse("06:00-06:00", None).unwrap_err().contains("leave `hours` out"));
        let error = Hours::parse("22:00-06:00", Some("Mars")).unwrap_err();
        assert!(error.contains("unknown time zone `Mars`"), "{error}");
    }
}
