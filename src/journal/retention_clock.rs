//! The clock by which things are old enough to be removed for good.
//!
//! The system's clock may be put forward by mistake, for a moment; what was removed meanwhile would not
//! come back. So a step forward is believed only once it has held. Pure: moments are given.

use std::time::{Duration, Instant};

use crate::event::Timestamp;

/// A step forward that is believed at once, in milliseconds: clocks are corrected by less.
const STEP_MAX_MS: i64 = 60 * 1000;
/// How long a larger step has to hold.
const HOLD: Duration = Duration::from_secs(60 * 60);
/// At a start: how far the clock may be ahead of the newest that is known, in milliseconds. More may
/// mean that no server ran, or that the clock is wrong.
const GAP_MAX_MS: i64 = 24 * 60 * 60 * 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct RetentionClock {
    /// The last moment that was believed, and when that was.
    at: Timestamp,
    since: Instant,
    /// What the system's clock said when it was first doubted, and when that was.
    doubted: Option<(Timestamp, Instant)>,
}

impl RetentionClock {
    /// At a start. `newest` is the moment of the newest that the database holds.
    pub(super) fn new(newest: Option<Timestamp>, system: Timestamp, now: Instant) -> Self {
        let is_behind = |newest: &Timestamp| system.0.saturating_sub(newest.0) > GAP_MAX_MS;
        Self {
            at: newest.filter(is_behind).unwrap_or(system),
            since: now,
            doubted: None,
        }
    }

    /// The present moment, where `system` is what the system's clock says. A step back is believed at
    /// once: it only keeps things longer.
    pub(super) fn now(&mut self, system: Timestamp, now: Instant) -> Timestamp {
        let expected = later(self.at, now.saturating_duration_since(self.since));
        if system.0.saturating_sub(expected.0) > STEP_MAX_MS && !self.has_held(system, now) {
            return expected;
        }
        (self.at, self.since, self.doubted) = (system, now, None);
        system
    }

    /// Whether the system's clock has gone on for long enough from where it stepped to.
    fn has_held(&mut self, system: Timestamp, now: Instant) -> bool {
        let (from, since) = *self.doubted.get_or_insert((system, now));
        let held = now.saturating_duration_since(since);
        if system.0.abs_diff(later(from, held).0) > STEP_MAX_MS.unsigned_abs() {
            // Another step: it is that one which has to hold.
            self.doubted = Some((system, now));
            return false;
        }
        held >= HOLD
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp(at.0.saturating_add(by_ms))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{RunStatus, Seq};
    use crate::hub::{Message, Publish};
    use crate::journal::{Journal, Retention};
    use crate::store::{Change, NewRun, RunEnd, Store};

    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    const START: Timestamp = Timestamp(1_000 * DAY_MS);

    #[test]
    fn a_clock_that_is_put_forward_for_a_moment_is_not_believed() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut clock = RetentionClock::new(Some(START), START, began);
        let ahead = |seconds: i64| Timestamp(START.0 + 100 * DAY_MS + seconds * 1000);
        assert_eq!(clock.now(ahead(1), at(1)), later(START, at(1) - began));
        assert_eq!(clock.now(ahead(4), at(4)), later(START, at(4) - began));
        let right = Timestamp(START.0 + 5_200);
        assert_eq!(clock.now(right, at(5)), right);
        // From then on it has to hold anew.
        assert_eq!(clock.now(ahead(3_590), at(3_590)).0, right.0 + 3_585_000);
        assert_eq!(clock.now(ahead(3_700), at(3_700)).0, right.0 + 3_695_000);
    }

    #[test]
    fn a_step_that_has_held_for_an_hour_is_believed_and_a_step_back_at_once() {
        let began = Instant::now();
        let mut clock = RetentionClock::new(None, START, began);
        let ahead = |held| later(Timestamp(START.0 + 100 * DAY_MS), held);
        for minutes in 0..60 {
            let held = Duration::from_secs(60 * minutes);
            assert_eq!(clock.now(ahead(held), began + held), later(START, held));
        }
        assert_eq!(clock.now(ahead(HOLD), began + HOLD), ahead(HOLD));
        let back = Timestamp(START.0 - 300 * DAY_MS);
        assert_eq!(clock.now(back, began + HOLD), back);
    }

    #[test]
    fn at_a_start_a_clock_far_ahead_of_all_that_is_known_has_to_hold_as_well() {
        let began = Instant::now();
        let ahead = Timestamp(START.0 + 2 * DAY_MS);
        let mut clock = RetentionClock::new(Some(START), ahead, began);
        assert_eq!(clock.now(ahead, began), START);
        assert_eq!(
            clock.now(later(ahead, HOLD), began + HOLD),
            later(ahead, HOLD)
        );
        for newest in [None, Some(Timestamp(ahead.0 - DAY_MS)), Some(START)] {
            let soon = newest.map_or(START, |newest| Timestamp(newest.0 + DAY_MS));
            assert_eq!(
                RetentionClock::new(newest, soon, began).now(soon, began),
                soon
            );
        }
    }

    proptest! {
        #[test]
        fn nothing_ages_faster_than_time_goes_by_until_a_step_has_held(
            looks in proptest::collection::vec((1u64..600, -200i64..200, any::<bool>()), 1..80),
        ) {
            let began = Instant::now();
            let mut clock = RetentionClock::new(None, START, began);
            let (mut now, mut true_ms, mut shift_ms) = (began, START.0, 0);
            // Since when the clock has not been put anywhere.
            let mut steady_since = began;
            let mut most = START.0;
            for (seconds, days, steps) in looks {
                now += Duration::from_secs(seconds);
                let went_by = i64::try_from(seconds).unwrap() * 1000;
                true_ms += went_by;
                most += went_by;
                if steps && days != 0 {
                    shift_ms = days * DAY_MS;
                    steady_since = now;
                }
                let system = true_ms + shift_ms;
                let told = clock.now(Timestamp(system), now);
                prop_assert!(told.0 <= system);
                if now - steady_since < HOLD {
                    prop_assert!(told.0 <= most, "{told} after {most}");
                }
                most = told.0;
            }
        }
    }

    struct Nobody;

    impl Publish for Nobody {
        fn publish(&self, _: Vec<Message>, _: Option<Seq>) {}
    }

    #[test]
    fn after_a_start_far_ahead_of_the_newest_only_what_there_is_no_room_for_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let at = Timestamp(Timestamp::now().0 - 100 * DAY_MS);
        for id in ["a", "b", "c"] {
            let run = NewRun {
                id: id.into(),
                flow_id: 1,
                flow_name: "f".into(),
                trigger: "api".into(),
                input: "{}".into(),
                graph: "{}".into(),
                at,
            };
            let finish = Change::FinishRun(RunEnd {
                flow_id: 1,
                run_id: id.into(),
                status: RunStatus::Failed,
                error: None,
                error_node: None,
                at,
            });
            writer
                .transaction(|batch| {
                    batch.append_event(at, None, "T", "{}")?;
                    batch.apply(&Change::QueueRun(run))?;
                    batch.apply(&finish)
                })
                .unwrap();
        }
        let retention = Retention {
            runs: 2,
            ..Retention::default()
        };
        let (journal, thread) =
            Journal::start(writer, Box::new(Nobody), retention, Arc::new(|_| {})).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.run("a").is_ok() {
            assert!(Instant::now() < deadline, "nothing was removed");
            std::thread::yield_now();
        }
        assert!(store.run("b").is_ok() && store.run("c").is_ok());
        assert_eq!(store.events(0, 100, 100, 100).unwrap().len(), 3);
        journal.shutdown();
        thread.join().unwrap();
    }
}
