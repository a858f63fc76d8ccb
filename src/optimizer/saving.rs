//! What may be expected of the next 30 days, from what was seen. Pure.

use crate::event::suggestion::Saving;
use crate::event::{Timestamp, Usd};

use super::call_stats::{Amount, MS_PER_DAY};

/// What was seen for less than this is taken as if it had been seen for so long, in days.
const SEEN_DAYS_MIN: f64 = 1.0;
/// Of a normal distribution, 95 % lie within so many standard deviations.
const DEVIATIONS: f64 = 1.96;

/// Something that would have been saved, with what of it falls on each day that had any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// All of it.
    pub amount: Amount,
    /// What of it each day had, nano-dollars.
    pub by_day: Vec<i64>,
}

impl Seen {
    /// Another amount of which each call, and so each day, has the same part.
    #[must_use]
    pub fn scaled_to(&self, nanousd: i64) -> Self {
        let part = nanousd as f64 / self.amount.nanousd.max(1) as f64;
        Self {
            amount: Amount {
                calls: self.amount.calls,
                nanousd,
                squares: self.amount.squares * part * part,
            },
            // Casts saturate.
            by_day: (self.by_day.iter())
                .map(|day| (*day as f64 * part).round() as i64)
                .collect(),
        }
    }

    /// How much the sum may vary, in square nano-dollars, where it was looked for on so many days.
    ///
    /// Single calls that come independently of each other (a compound Poisson process) vary by the sum
    /// of their squares. Calls that come in bursts vary by more: there days are what is independent, and
    /// a sum of days varies by as much as they differ, those that had nothing among them.
    fn variance(&self, days: f64) -> f64 {
        let days = days.max(self.by_day.len() as f64);
        let sum = self.amount.nanousd as f64;
        let squares: f64 = self.by_day.iter().map(|day| (*day as f64).powi(2)).sum();
        let of_days = if days > 1.0 {
            days * (squares - sum * sum / days) / (days - 1.0)
        } else {
            0.0
        };
        of_days.max(self.amount.squares).max(0.0)
    }
}

/// What is saved in 30 days, where `seen` would have been saved since that moment, from when on it was
/// looked for. Days without calls count like others.
///
/// Expected is that it goes on like that. The interval holds 95 %, but for its lower end, which is never
/// above what would have been saved already: that alone is certain.
pub fn per_30_days(seen: &Seen, since: Timestamp, now: Timestamp) -> Saving {
    let scale = 30.0 / days_between(since, now).max(SEEN_DAYS_MIN);
    let sum = seen.amount.nanousd as f64;
    let expected = sum * scale;
    let day = |at: Timestamp| at.0.div_euclid(MS_PER_DAY) as f64;
    let days = day(now) - day(since) + 1.0;
    let deviation = DEVIATIONS * seen.variance(days).sqrt() * scale;
    let low = (expected - deviation).min(sum).max(0.0);
    // Casts saturate.
    let usd = |nanousd: f64| Usd::from_nanousd(nanousd.round() as i64);
    Saving {
        low_usd: usd(low),
        expected_usd: usd(expected),
        high_usd: usd(expected + deviation),
    }
}

/// How many days lie between two moments; none where the clock was put back.
pub fn days_between(since: Timestamp, now: Timestamp) -> f64 {
    let ms = now.0.saturating_sub(since.0) as f64;
    (ms / MS_PER_DAY as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EACH: i64 = 1_000_000;

    /// Calls of one price, so many on each of these days.
    fn seen(by_day: &[u64], each: i64) -> Seen {
        let calls: u64 = by_day.iter().sum();
        Seen {
            amount: Amount {
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
    fn a_month_of_steady_calls_is_expected_again() {
        // 100 calls, of which 20 come and go by chance.
        let month = per_30_days(&seen(&[4; 25], EACH), day(0), day(30));
        assert_eq!(nanousd(month), [80_400_000, 100_000_000, 119_600_000]);
    }

    #[test]
    fn a_burst_is_not_expected_every_day_and_days_without_calls_count() {
        // 300 calls on the last of 30 days: the burst that comes once a month.
        let burst = seen(&[300], EACH);
        let month = nanousd(per_30_days(&burst, day(0), Timestamp(day(30).0 - 1)));
        assert_eq!((month[0], month[1]), (0, 300_000_000));
        // Days are what is independent: one burst may be none, or three.
        assert_eq!(month[2], 300_000_000 + 588_000_000);
    }

    #[test]
    fn what_was_seen_for_a_moment_is_expected_daily_and_only_what_was_seen_is_promised() {
        let moment = per_30_days(&seen(&[100], EACH), day(0), Timestamp(1));
        assert_eq!(nanousd(moment), [100_000_000, 3_000_000_000, 3_588_000_000]);
        // Ten of ten days alike: thrice that in 30, but it has not been saved yet.
        let days = per_30_days(&seen(&[100; 10], EACH), day(0), Timestamp(day(10).0 - 1));
        assert_eq!(nanousd(days)[..2], [1_000_000_000, 3_000_000_003]);
    }

    proptest! {
        #[test]
        fn the_ends_of_an_interval_are_in_order_and_the_lower_one_is_not_above_what_was_seen(
            by_day in prop::collection::vec(0..100_000_u64, 0..31),
            each in 0..1_000_000_000_i64, since in any::<i64>(), now in any::<i64>(),
        ) {
            let seen = seen(&by_day, each);
            let saving = per_30_days(&seen, Timestamp(since), Timestamp(now));
            prop_assert!(Usd::ZERO <= saving.low_usd);
            prop_assert!(saving.low_usd.nanousd <= seen.amount.nanousd);
            prop_assert!(saving.low_usd <= saving.expected_usd);
            prop_assert!(saving.expected_usd <= saving.high_usd);
        }
    }
}
