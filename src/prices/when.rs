//! The times in which a price applies.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

const MS_PER_MINUTE: i64 = 60_000;
const MINUTES_PER_DAY: i64 = 24 * 60;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct When {
    pub(super) from: Option<Timestamp>,
    /// Minutes of the UTC day, `[start, end)`; over midnight if the end is smaller.
    pub(super) daily: Option<(i64, i64)>,
    /// Days of UTC. A time over midnight belongs to the day on which it starts.
    pub(super) days: Option<Weekdays>,
}

/// A set of weekdays; in JSON a list of numbers from 1, Monday, to 7, Sunday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Weekdays(u8);

impl When {
    pub(super) fn starting(from: Option<Timestamp>) -> Self {
        Self { from, ..Self::default() }
    }

    /// Checks the minutes.
    ///
    /// # Errors
    /// Describes the fault.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.daily {
            Some((start, end))
                if !(0..MINUTES_PER_DAY).contains(&start)
                    || !(0..=MINUTES_PER_DAY).contains(&end) =>
            {
                Err(format!(
                    "`daily` must be two minutes of the day from 0 to {MINUTES_PER_DAY}, not [{start}, {end}]"
                ))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn covers(&self, at: Timestamp) -> bool {
        let minutes = at.0.div_euclid(MS_PER_MINUTE);
        let (day, minute) =
            (minutes.div_euclid(MINUTES_PER_DAY), minutes.rem_euclid(MINUTES_PER_DAY));
        // The day on which the time of the day began, if it has begun.
        let began = match self.daily {
            None => Some(day),
            Some((start, end)) if end < start && minute < end => Some(day - 1),
            Some((start, end)) if end < start => (minute >= start).then_some(day),
            Some((start, end)) => (start..end).contains(&minute).then_some(day),
        };
        let has_started = self.from.is_none_or(|from| at >= from);
        has_started
            && began.is_some_and(|day| self.days.is_none_or(|days| days.contains(weekday(day))))
    }
}

/// Returns the weekday, 1 for Monday, of a day since 1970-01-01, a Thursday.
fn weekday(day: i64) -> i64 {
    (day + 3).rem_euclid(7) + 1
}

impl Weekdays {
    fn contains(self, weekday: i64) -> bool {
        self.0 & (1 << weekday) != 0
    }
}

impl TryFrom<Vec<u8>> for Weekdays {
    type Error = &'static str;

    fn try_from(days: Vec<u8>) -> Result<Self, Self::Error> {
        if days.is_empty() || !days.iter().all(|day| (1..=7).contains(day)) {
            return Err("`days` must be numbers from 1, Monday, to 7, Sunday");
        }
        Ok(Self(days.iter().fold(0, |set, day| set | (1 << day))))
    }
}

impl From<Weekdays> for Vec<u8> {
    fn from(days: Weekdays) -> Self {
        (1..=7).filter(|day| days.contains(i64::from(*day))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(when: When, at: &str) -> bool {
        when.covers(at.parse().unwrap())
    }

    #[test]
    fn hours_apply_on_their_days_only() {
        let days = Some(Weekdays::try_from(vec![1, 2, 3, 4, 5]).unwrap());
        let when = When { daily: Some((60, 240)), days, ..When::default() };
        // 2026-11-20 is a Friday.
        assert!(covers(when, "2026-11-20T01:00:00Z"));
        assert!(covers(when, "2026-11-20T03:59:59.999Z"));
        assert!(!covers(when, "2026-11-20T04:00:00Z"));
        assert!(!covers(when, "2026-11-21T02:00:00Z"));
        assert!(!covers(when, "2026-11-22T02:00:00Z"));
        assert!(covers(when, "2026-11-23T02:00:00Z"));
        let all_day = When { days, ..When::default() };
        assert!(covers(all_day, "2026-11-20T23:59:59.999Z"));
        assert!(!covers(all_day, "2026-11-21T00:00:00Z"));
        // 1969-12-31 was a Wednesday, and 1969-12-28 a Sunday.
        assert!(covers(all_day, "1969-12-31T12:00:00Z"));
        assert!(!covers(all_day, "1969-12-28T12:00:00Z"));
    }

    #[test]
    fn hours_over_midnight_belong_to_their_first_day() {
        let days = Some(Weekdays::try_from(vec![5]).unwrap());
        let when = When { daily: Some((1380, 60)), days, ..When::default() };
        assert!(covers(when, "2026-11-20T23:30:00Z"));
        assert!(covers(when, "2026-11-21T00:30:00Z"));
        assert!(!covers(when, "2026-11-21T23:30:00Z"));
        assert!(!covers(when, "2026-11-20T00:30:00Z"));
    }

    #[test]
    fn a_start_limits_hours_and_days() {
        let from = Some("2026-08-22T16:00:00Z".parse().unwrap());
        let when = When { from, daily: Some((60, 240)), days: None };
        assert!(!covers(when, "2026-08-22T02:00:00Z"));
        assert!(covers(when, "2026-08-23T02:00:00Z"));
    }

    #[test]
    fn weekdays_are_numbers_from_one_to_seven() {
        let read = |text: &str| serde_json::from_str::<Weekdays>(text);
        assert_eq!(serde_json::to_string(&read("[7,1,1]").unwrap()).unwrap(), "[1,7]");
        for text in ["[]", "[0]", "[8]", "[\"mon\"]", "5"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
