//! How fast calls may follow each other at a provider: so many, and so many tokens, in any minute.
//!
//! Each call is given its moment, in the order in which they come, and waits for it instead of being
//! refused by the provider. Pure but for a lock: moments are given.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The length of the window over which calls and tokens are counted.
pub const MINUTE: Duration = Duration::from_secs(60);

/// The most calls a minute that a provider may be given: each is remembered for a minute.
pub const REQUESTS_MAX: u32 = 100_000;

/// What a provider allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Calls in any minute, 1 to [`REQUESTS_MAX`]; none: as many as come.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in any minute, at least 1; none: as many as come.
    pub tokens_per_minute: Option<u64>,
    /// What counts as a minute: [`MINUTE`], but in tests, which cannot wait for so long.
    pub minute: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            minute: MINUTE,
        }
    }
}

/// Gives calls their moments.
#[derive(Debug, Default)]
pub struct Pace {
    lanes: BTreeMap<String, Arc<Mutex<Lane>>>,
}

/// The moment at which a call may be made. Given back when dropped, unless it was used: whoever does
/// not make the call lets others have it.
#[derive(Debug)]
pub struct Turn {
    /// Where it was given, with the moment; none where nothing is limited, and once it was used.
    given: Option<(Arc<Mutex<Lane>>, Instant)>,
}

impl Turn {
    /// How long it has to be waited for.
    pub fn wait(&self, now: Instant) -> Duration {
        let moment = self.given.as_ref().map(|(_, moment)| *moment);
        moment.map_or(Duration::ZERO, |moment| {
            moment.saturating_duration_since(now)
        })
    }

    /// The call is made.
    pub fn used(mut self) {
        self.given = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((lane, moment)) = self.given.take() {
            locked(&lane).take_back(moment);
        }
    }
}

fn locked(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Lane {
    rate: Rate,
    /// Moments that were given within a window of the last, and their tokens; in order.
    given: VecDeque<(Instant, u64)>,
    /// Their tokens together.
    tokens: u64,
}

impl Pace {
    /// Paces for the providers of those names.
    pub fn new(rates: BTreeMap<String, Rate>) -> Self {
        let lane = |rate| {
            Arc::new(Mutex::new(Lane {
                rate,
                given: VecDeque::new(),
                tokens: 0,
            }))
        };
        Self {
            lanes: rates
                .into_iter()
                .filter(|(_, rate)| *rate != Rate::default())
                .map(|(name, rate)| (name, lane(rate)))
                .collect(),
        }
    }

    /// Gives a call of so many tokens its moment. A call that has more tokens than a minute may have
    /// goes when the minute is all its own.
    pub fn give(&self, provider: &str, tokens: u64, now: Instant) -> Turn {
        let given = self.lanes.get(provider).map(|lane| {
            let moment = locked(lane).give(tokens, now);
            (Arc::clone(lane), moment)
        });
        Turn { given }
    }
}

impl Lane {
    /// Those behind it keep their moments; the next that comes is given one after theirs.
    fn take_back(&mut self, moment: Instant) {
        if let Some(at) = self.given.iter().rposition(|(given, _)| *given == moment)
            && let Some((_, tokens)) = self.given.remove(at)
        {
            self.tokens -= tokens;
        }
    }

    fn give(&mut self, tokens: u64, now: Instant) -> Instant {
        let tokens = match self.rate.tokens_per_minute {
            Some(most) => tokens.min(most),
            None => 0,
        };
        let minute = self.rate.minute;
        while let Some((first, tokens)) = self.given.front()
            && *first + minute <= now
        {
            self.tokens -= tokens;
            self.given.pop_front();
        }
        // Not before those that came before.
        let last = self.given.back().map(|(moment, _)| *moment);
        let mut moment = last.map_or(now, |last| last.max(now));
        // Those of the minute that ends with the moment: all but the first ones.
        let (mut count, mut used) = (self.given.len(), self.tokens);
        for (first, of_first) in &self.given {
            if *first + minute > moment {
                let has_room = self
                    .rate
                    .requests_per_minute
                    .is_none_or(|most| count < usize::try_from(most).unwrap_or(usize::MAX));
                let fits = self
                    .rate
                    .tokens_per_minute
                    .is_none_or(|most| used.saturating_add(tokens) <= most);
                if has_room && fits {
                    break;
                }
                moment = *first + minute;
            }
            count -= 1;
            used -= of_first;
        }
        self.given.push_back((moment, tokens));
        self.tokens += tokens;
        moment
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pace(requests: Option<u32>, tokens: Option<u64>) -> Pace {
        let rate = Rate {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            minute: MINUTE,
        };
        Pace::new([("p".to_owned(), rate)].into())
    }

    #[test]
    fn as_many_go_at_once_as_a_minute_may_have_and_the_next_wait_for_room() {
        let pace = pace(Some(2), None);
        let now = Instant::now();
        let wait = || {
            let turn = pace.give("p", 1, now);
            let wait = turn.wait(now).as_secs();
            turn.used();
            wait
        };
        assert_eq!([(); 5].map(|()| wait()), [0, 0, 60, 60, 120]);
        assert_eq!(pace.give("other", 1, now).wait(now), Duration::ZERO);
    }

    #[test]
    fn a_turn_that_is_not_used_is_had_by_another() {
        let pace = pace(Some(1), None);
        let now = Instant::now();
        let first = pace.give("p", 1, now);
        let second = pace.give("p", 1, now);
        assert_eq!(second.wait(now).as_secs(), 60);
        drop(second);
        assert_eq!(pace.give("p", 1, now).wait(now).as_secs(), 60);
        drop(first);
        assert_eq!(pace.give("p", 1, now).wait(now).as_secs(), 0);
    }

    #[test]
    fn a_call_that_no_minute_has_room_for_goes_alone() {
        let pace = pace(None, Some(100));
        let now = Instant::now();
        let wait = |tokens| {
            let turn = pace.give("p", tokens, now);
            let wait = turn.wait(now).as_secs();
            turn.used();
            wait
        };
        let waits = [60, 40, 1, 5_000, 1].map(wait);
        assert_eq!(waits, [0, 0, 60, 120, 180]);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_it_may_and_the_order_is_kept(
            requests in proptest::option::of(1u32..6),
            most in proptest::option::of(1u64..200),
            calls in proptest::collection::vec((0u64..30_000, 0u64..300), 1..60),
        ) {
            let pace = pace(requests, most);
            let start = Instant::now();
            let mut now = start;
            let mut moments: Vec<(Instant, u64)> = Vec::new();
            for (after_ms, tokens) in calls {
                now += Duration::from_millis(after_ms);
                let turn = pace.give("p", tokens, now);
                let moment = now + turn.wait(now);
                turn.used();
                prop_assert!(moments.last().is_none_or(|(last, _)| *last <= moment));
                moments.push((moment, most.map_or(0, |most| tokens.min(most))));
            }
            for (begin, _) in &moments {
                let within = moments.iter().filter(|(at, _)| at >= begin && *at < *begin + MINUTE);
                let (count, sum) = within.fold((0, 0), |(n, sum), (_, tokens)| (n + 1, sum + tokens));
                prop_assert!(requests.is_none_or(|requests| count <= requests));
                prop_assert!(most.is_none_or(|most| sum <= most));
            }
        }
    }
}
