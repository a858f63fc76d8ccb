//! Extrapolates observed spending to the savings of 30 days. Pure.

use std::ops::AddAssign;

use crate::event::suggestion::Saving;
use crate::money::Usd;
use crate::time::Timestamp;

pub const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// The minimum length of an observation; shorter ones count as this long.
const OBSERVED_DAYS_MIN: f64 = 1.0;
/// Standard deviations that contain 95 % of a normal distribution.
const DEVIATIONS: f64 = 1.96;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spend {
    pub calls: u64,
    pub nanousd: i64,
    /// The sum of the squared costs of single calls, for the variance.
    pub squares: f64,
}

impl Spend {
    pub fn of_call(cost: Usd) -> Self {
        let nanousd = cost.nanousd as f64;
        Self { calls: 1, nanousd: cost.nanousd, squares: nanousd * nanousd }
    }
}

impl AddAssign for Spend {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.nanousd = self.nanousd.saturating_add(other.nanousd);
        self.squares += other.squares;
    }
}

/// Spending that a change would have saved: the total, and by day.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DailySpend {
    pub total: Spend,
    /// Nano-dollars of each day with spending.
    pub by_day: Vec<i64>,
}

impl DailySpend {
    /// Scales every call, and so every day, by the same factor to this total.
    #[must_use]
    pub fn scaled_to(&self, nanousd: i64) -> Self {
        let part = nanousd as f64 / self.total.nanousd.max(1) as f64;
        let scaled = |day: &i64| (*day as f64 * part).round() as i64;
        Self {
            total: Spend {
                calls: self.total.calls,
                nanousd,
                squares: self.total.squares * part * part,
            },
            by_day: self.by_day.iter().map(scaled).collect(),
        }
    }

    /// Returns the variance of the total over this many days, in square nano-dollars.
    ///
    /// For independent single calls (a compound Poisson process) it is the sum of their squares.
    /// Bursts vary more: then days are independent, and the variance follows from their
    /// differences, including empty days.
    fn variance(&self, days: f64) -> f64 {
        let days = days.max(self.by_day.len() as f64);
        let sum = self.total.nanousd as f64;
        let squares: f64 = self.by_day.iter().map(|day| (*day as f64).powi(2)).sum();
        let of_days =
            if days > 1.0 { days * (squares - sum * sum / days) / (days - 1.0) } else { 0.0 };
        of_days.max(self.total.squares).max(0.0)
    }
}

/// Returns the saving of 30 days if `observed` is the saving since the start of the observation.
/// Days without calls count like others.
///
/// The interval covers 95 %, except that its lower end never exceeds the amount already observed:
/// only that is certain.
pub fn per_30_days(observed: &DailySpend, since: Timestamp, now: Timestamp) -> Saving {
    let scale = 30.0 / days_between(since, now).max(OBSERVED_DAYS_MIN);
    let sum = observed.total.nanousd as f64;
    let expected = sum * scale;
    let day = |at: Timestamp| at.0.div_euclid(MS_PER_DAY) as f64;
    let days = day(now) - day(since) + 1.0;
    let deviation = DEVIATIONS * observed.variance(days).sqrt() * scale;
    let low = (expected - deviation).min(sum).max(0.0);
    // Casts saturate.
    let usd = |nanousd: f64| Usd::from_nanousd(nanousd.round() as i64);
    Saving { low_usd: usd(low), expected_usd: usd(expected), high_usd: usd(expected + deviation) }
}

/// Returns the days between two moments; 0 if the clock was set back.
pub fn days_between(since: Timestamp, now: Timestamp) -> f64 {
    let ms = now.0.saturating_sub(since.0) as f64;
    (ms / MS_PER_DAY as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: i64 = 1_000_000;

    /// Builds an observation from the numbers of calls on each day, all at one price.
    fn observed(by_day: &[u64], each: i64) -> DailySpend {
        let calls: u64 = by_day.iter().sum();
        DailySpend {
            total: Spend {
                calls,
                nanousd: calls as i64 * each,
                squares: calls as f64 * each as f64 * each as f64,
            },
            by_day: by_day.iter().map(|calls| *calls as i64 * each).collect(),
        }
    }

    fn day(number: i64) -> Timestamp {
        Timestamp(number * MS_PER_DAY)
    }

    fn nanousd(saving: Saving) -> [i64; 3] {
        [saving.low_usd, saving.expected_usd, saving.high_usd].map(|usd| usd.nanousd)
    }

    #[test]
    fn a_month_of_steady_calls_is_projected_to_recur() {
        // 100 calls, with a random variation of 20.
        let month = per_30_days(&observed(&[4; 25], EACH), day(0), day(30));
        assert_eq!(nanousd(month), [80_400_000, 100_000_000, 119_600_000]);
    }

    #[test]
    fn a_burst_is_averaged_over_days_without_calls() {
        // 300 calls on the last of 30 days: a monthly burst.
        let burst = observed(&[300], EACH);
        let month = nanousd(per_30_days(&burst, day(0), Timestamp(day(30).0 - 1)));
        assert_eq!((month[0], month[1]), (0, 300_000_000));
        // Days are independent: one burst may be none, or three.
        assert_eq!(month[2], 300_000_000 + 588_000_000);
    }

    #[test]
    fn the_lower_bound_is_the_observed_saving() {
        let moment = per_30_days(&observed(&[100], EACH), day(0), Timestamp(1));
        assert_eq!(nanousd(moment), [100_000_000, 3_000_000_000, 3_588_000_000]);
        // Ten equal days of ten: the month has three times as much, but it is not saved yet.
        let days = per_30_days(&observed(&[100; 10], EACH), day(0), Timestamp(day(10).0 - 1));
        assert_eq!(nanousd(days)[..2], [1_000_000_000, 3_000_000_003]);
    }

    proptest! {
        #[test]
        fn interval_bounds_are_ordered_and_below_the_observation(
            by_day in prop::collection::vec(0..100_000_u64, 0..31),
            each in 0..1_000_000_000_i64, since in any::<i64>(), now in any::<i64>(),
        ) {
            let observed = observed(&by_day, each);
            let saving = per_30_days(&observed, Timestamp(since), Timestamp(now));
            prop_assert!(Usd::ZERO <= saving.low_usd);
            prop_assert!(saving.low_usd.nanousd <= observed.total.nanousd);
            prop_assert!(saving.low_usd <= saving.expected_usd);
            prop_assert!(saving.expected_usd <= saving.high_usd);
        }
    }
}
