//! Days in UTC, the end of the days that are summed up, and plans to read the ledger with them.

use rusqlite::Connection;

use super::sql::one;
use crate::error::Result;
use crate::time::Timestamp;

pub(super) const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// A day, counted from 1970-01-01.
pub(super) type Day = i64;

pub(super) fn day_of(moment: Timestamp) -> Day {
    moment.0.div_euclid(MS_PER_DAY)
}

/// Returns the first day that is not summed up, or the smallest day if none is.
pub(super) fn rolled_up_until(db: &Connection) -> Result<Day> {
    let sql = "SELECT until_day FROM ledger_summed";
    Ok(one(db, sql, [])?.unwrap_or(Day::MIN))
}

/// A plan to read the rows between two times: from whole days that are summed up, and from
/// the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The first day, and the first day after the last.
    pub(super) days: (Day, Day),
    /// The rows before these days: the first time, and the end, in milliseconds.
    pub(super) head: (i64, i64),
    pub(super) tail: (i64, i64),
}

impl Plan {
    /// Creates the plan; `rolled_up_until` is the result of [`rolled_up_until`].
    pub(super) fn new(
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        rolled_up_until: Day,
    ) -> Self {
        let from = from.map_or(i64::MIN, |from| from.0);
        let to = to.map_or(i64::MAX, |to| to.0);
        let first = match from {
            i64::MIN => Day::MIN,
            from => from.div_euclid(MS_PER_DAY) + i64::from(from.rem_euclid(MS_PER_DAY) > 0),
        };
        let end = to.div_euclid(MS_PER_DAY).min(rolled_up_until);
        if first >= end {
            return Self { days: (0, 0), head: (from, to), tail: (0, 0) };
        }
        let start_ms = first.saturating_mul(MS_PER_DAY);
        Self { days: (first, end), head: (from, start_ms.max(from)), tail: (end * MS_PER_DAY, to) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plan_covers_each_time_once(
            from in proptest::option::of(-3 * MS_PER_DAY..10 * MS_PER_DAY),
            length in proptest::option::of(0..10 * MS_PER_DAY),
            until in prop_oneof![Just(Day::MIN), -3i64..12],
            moment in -4 * MS_PER_DAY..15 * MS_PER_DAY,
        ) {
            let to = length.map(|length| from.unwrap_or(0) + length);
            let plan = Plan::new(from.map(Timestamp), to.map(Timestamp), until);
            let is_meant = from.is_none_or(|from| from <= moment) && to.is_none_or(|to| moment < to);
            let day = moment.div_euclid(MS_PER_DAY);
            let within = |(from, to): (i64, i64), at: i64| usize::from(from <= at && at < to);
            let count = within(plan.days, day) + within(plan.head, moment) + within(plan.tail, moment);
            prop_assert_eq!(count, usize::from(is_meant), "{:?}", plan);
            // Only whole days with sums are read from the sums.
            prop_assert!(within(plan.days, day) == 0 || day < until);
        }
    }
}
