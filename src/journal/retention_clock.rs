//! The clock that decides by age what is removed for good.
//!
//! The system clock can be set forward by mistake, and removed rows do not come back. So nothing is
//! old enough until the clock has gone on for an hour without a step.

use std::time::{Duration, Instant};

use crate::event::Timestamp;

/// Smaller deviations are corrections of a clock, not steps.
const STEP_MAX_MS: u64 = 60 * 1000;
/// How long the clock must go on without a step.
const HOLD: Duration = Duration::from_secs(60 * 60);
/// A start is a step if the clock is further ahead of the newest row: either no server ran
/// meanwhile, or the clock is wrong.
const GAP_MAX_MS: i64 = 24 * 60 * 60 * 1000;

pub(super) struct RetentionClock {
    /// The system clock at `since`: at the last step, or later once that has held.
    at: Timestamp,
    since: Instant,
    has_held: bool,
}

impl RetentionClock {
    /// At a start; `newest` is the time of the newest row in the database.
    pub(super) fn new(newest: Option<Timestamp>, system: Timestamp, now: Instant) -> Self {
        Self {
            at: system,
            since: now,
            has_held: newest.is_none_or(|newest| system.0.saturating_sub(newest.0) <= GAP_MAX_MS),
        }
    }

    /// Returns the time by which ages count, given what the system clock says: the earliest of all
    /// times while a step has to hold.
    pub(super) fn now(&mut self, system: Timestamp, now: Instant) -> Timestamp {
        let held = now.saturating_duration_since(self.since);
        let held_ms = i64::try_from(held.as_millis()).unwrap_or(i64::MAX);
        let is_step = system.0.abs_diff(self.at.0.saturating_add(held_ms)) > STEP_MAX_MS;
        self.has_held = !is_step && (self.has_held || held >= HOLD);
        if is_step || self.has_held {
            (self.at, self.since) = (system, now);
        }
        match self.has_held {
            true => system,
            false => Timestamp(i64::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    const START: Timestamp = Timestamp(1_000 * DAY_MS);
    const NEVER: Timestamp = Timestamp(i64::MIN);

    #[test]
    fn a_step_forward_counts_once_it_has_held() {
        let began = Instant::now();
        let mut clock = RetentionClock::new(None, START, began);
        assert_eq!(clock.now(START, began), START);
        let ahead = |held: Duration| Timestamp(START.0 + 100 * DAY_MS + held.as_millis() as i64);
        for minutes in 0..60 {
            let held = Duration::from_secs(60 * minutes);
            assert_eq!(clock.now(ahead(held), began + held), NEVER);
        }
        assert_eq!(clock.now(ahead(HOLD), began + HOLD), ahead(HOLD));
    }

    #[test]
    fn a_start_far_ahead_of_the_newest_row_has_to_hold() {
        let began = Instant::now();
        for (days, is_believed) in [(-1, true), (0, true), (1, true), (2, false)] {
            let system = Timestamp(START.0 + days * DAY_MS);
            let mut clock = RetentionClock::new(Some(START), system, began);
            assert_eq!(clock.now(system, began) == system, is_believed, "{days}");
            let later = Timestamp(system.0 + HOLD.as_millis() as i64);
            assert_eq!(clock.now(later, began + HOLD), later);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_old_because_the_clock_stepped(
            looks in proptest::collection::vec((1u64..600, -200i64..200, any::<bool>()), 1..80),
        ) {
            let began = Instant::now();
            let mut clock = RetentionClock::new(None, START, began);
            let (mut now, mut shift_ms) = (began, 0);
            let mut steady_since = None;
            for (seconds, days, steps) in looks {
                now += Duration::from_secs(seconds);
                if steps && days * DAY_MS != shift_ms {
                    shift_ms = days * DAY_MS;
                    steady_since = Some(now);
                }
                let system = Timestamp(START.0 + (now - began).as_millis() as i64 + shift_ms);
                let has_held = steady_since.is_none_or(|since| now - since >= HOLD);
                prop_assert_eq!(clock.now(system, now), if has_held { system } else { NEVER });
            }
        }
    }
}
