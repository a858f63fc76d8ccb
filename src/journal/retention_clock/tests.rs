use proptest::prelude::*;

use super::*;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const START: Timestamp = Timestamp(1_000 * DAY_MS);
const NEVER: Timestamp = Timestamp(i64::MIN);

#[test]
fn a_clock_step_forward_counts_after_the_hold_time() {
    let began = Instant::now();
    let mut clock = RetentionClock::new(None, START, began);
    assert_eq!(clock.now(START, began), START);
    let ahead = |held: Duration| Timestamp(START.0 + 100 * DAY_MS + held.as_millis() as i64);
    for minutes in 0..60 {
        let held = Duration::from_secs(60 * minutes);
        assert_eq!(clock.now(ahead(held), began + held), NEVER);
    }
    assert_eq!(clock.now(ahead(STABLE_MIN), began + STABLE_MIN), ahead(STABLE_MIN));
}

#[test]
fn a_start_far_ahead_of_the_newest_row_must_hold() {
    let began = Instant::now();
    for (days, is_believed) in [(-1, true), (0, true), (1, true), (2, false)] {
        let system = Timestamp(START.0 + days * DAY_MS);
        let mut clock = RetentionClock::new(Some(START), system, began);
        assert_eq!(clock.now(system, began) == system, is_believed, "{days}");
        let later = Timestamp(system.0 + STABLE_MIN.as_millis() as i64);
        assert_eq!(clock.now(later, began + STABLE_MIN), later);
    }
}

proptest! {
    #[test]
    fn a_clock_step_expires_nothing(
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
            let is_stable = steady_since.is_none_or(|since| now - since >= STABLE_MIN);
            prop_assert_eq!(clock.now(system, now), if is_stable { system } else { NEVER });
        }
    }
}
