//! The clock that decides which rows are old enough to be removed.
//!
//! The system clock can be set forward by mistake, and removed rows cannot be restored. So no row
//! counts as old until the clock has run for an hour without a step.

use std::time::{Duration, Instant};

use crate::time::Timestamp;

/// Smaller deviations are corrections of a clock, not steps.
const STEP_MAX_MS: u64 = 60 * 1000;
/// The time that the clock must run without a step.
const STABLE_MIN: Duration = Duration::from_secs(60 * 60);
/// At startup, a larger gap between the newest row and the clock counts as a step: either no
/// server ran meanwhile, or the clock is wrong.
const GAP_MAX_MS: i64 = 24 * 60 * 60 * 1000;

pub(super) struct RetentionClock {
    /// The system clock at `since`: at the last step, or later if the clock has held since.
    at: Timestamp,
    since: Instant,
    is_stable: bool,
}

impl RetentionClock {
    /// Creates the clock at a start; `newest` is the time of the newest row in the database.
    pub(super) fn new(newest: Option<Timestamp>, system: Timestamp, now: Instant) -> Self {
        Self {
            at: system,
            since: now,
            is_stable: newest.is_none_or(|newest| system.0.saturating_sub(newest.0) <= GAP_MAX_MS),
        }
    }

    /// Returns the time from which ages are computed. After a step this is the earliest possible
    /// time until the clock has held.
    pub(super) fn now(&mut self, system: Timestamp, now: Instant) -> Timestamp {
        let stable_for = now.saturating_duration_since(self.since);
        let stable_ms = i64::try_from(stable_for.as_millis()).unwrap_or(i64::MAX);
        let is_step = system.0.abs_diff(self.at.0.saturating_add(stable_ms)) > STEP_MAX_MS;
        if is_step {
            let step_s = system.0.saturating_sub(self.at.0.saturating_add(stable_ms)) / 1000;
            log::warn!(
                "the system clock stepped by {step_s} s, or the machine slept; nothing is removed by age until it has \
                 run for an hour without a step"
            );
        }
        self.is_stable = !is_step && (self.is_stable || stable_for >= STABLE_MIN);
        if is_step || self.is_stable {
            (self.at, self.since) = (system, now);
        }
        match self.is_stable {
            true => system,
            false => Timestamp(i64::MIN),
        }
    }
}

#[cfg(test)]
mod tests;
