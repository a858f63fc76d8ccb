//! What may be expected of the next 30 days, from what was seen. Pure.

use crate::event::suggestion::Saving;
use crate::event::{Timestamp, Usd};

use super::facts::Amount;

const MS_PER_DAY: f64 = 24.0 * 60.0 * 60.0 * 1000.0;
/// What was seen for less than this is taken as if it had been seen for so long, in days.
const SEEN_DAYS_MIN: f64 = 1.0;
/// What was seen for less than this may have been all there is: the lower end is what would have been
/// saved already.
const SEEN_DAYS_SURE: f64 = 7.0;
/// Of a normal distribution, 95 % lie within so many standard deviations.
const DEVIATIONS: f64 = 1.96;

/// What is saved in 30 days, where `seen` would have been saved since that moment.
///
/// Calls come independently of each other (a compound Poisson process), so the variance of their sum
/// is the sum of their squares; the interval holds 95 %.
pub fn per_30_days(seen: Amount, since: Timestamp, now: Timestamp) -> Saving {
    let days = (now.0.saturating_sub(since.0) as f64 / MS_PER_DAY).max(0.0);
    let scale = 30.0 / days.max(SEEN_DAYS_MIN);
    let expected = seen.nanousd as f64 * scale;
    let deviation = DEVIATIONS * seen.squares.max(0.0).sqrt() * scale;
    let mut low = (expected - deviation).max(0.0);
    if days < SEEN_DAYS_SURE {
        low = low.min(seen.nanousd as f64);
    }
    // Casts saturate.
    let usd = |nanousd: f64| Usd::from_nanousd(nanousd.round() as i64);
    Saving {
        low_usd: usd(low),
        expected_usd: usd(expected),
        high_usd: usd(expected + deviation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(calls: u64, each: i64) -> Amount {
        Amount {
            calls,
            nanousd: calls as i64 * each,
            squares: calls as f64 * each as f64 * each as f64,
        }
    }

    #[test]
    fn a_month_of_calls_is_expected_again_and_a_moment_of_them_is_no_promise() {
        let day = |n: i64| Timestamp(n * 24 * 60 * 60 * 1000);
        let month = per_30_days(seen(100, 1_000_000), day(0), day(30));
        assert_eq!(month.expected_usd.nanousd, 100_000_000);
        // Ten of a hundred, twice.
        assert_eq!(month.low_usd.nanousd, 80_400_000);
        assert_eq!(month.high_usd.nanousd, 119_600_000);
        let moment = per_30_days(seen(100, 1_000_000), day(0), Timestamp(1));
        assert_eq!(moment.low_usd.nanousd, 100_000_000);
        assert_eq!(moment.expected_usd.nanousd, 3_000_000_000);
    }

    proptest! {
        #[test]
        fn the_ends_of_an_interval_are_in_order(
            calls in 0..1_000_000_u64, each in 0..1_000_000_000_i64, since in any::<i64>(), now in any::<i64>(),
        ) {
            let saving = per_30_days(seen(calls, each), Timestamp(since), Timestamp(now));
            prop_assert!(Usd::ZERO <= saving.low_usd);
            prop_assert!(saving.low_usd <= saving.expected_usd);
            prop_assert!(saving.expected_usd <= saving.high_usd);
        }
    }
}
