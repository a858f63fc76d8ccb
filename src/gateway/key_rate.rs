//! Limits the requests and tokens of a virtual key in any minute. A call above a limit is refused
//! and not queued, because the provider's own queue would otherwise fill with the calls of one key.
//!
//! A request counts from the time when it is made. Its tokens are estimated, and corrected when
//! the call ends: fewer tokens free the rest of the estimate, more tokens count from the end on.
//! Pure except for a lock: callers pass the time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::providers::Rate;

/// Counts the calls of one key. A rotated key keeps its counts.
#[derive(Debug, Default)]
pub struct KeyLimiter {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    rate: Rate,
    /// Oldest first.
    recent: VecDeque<Entry>,
    /// The sums of `recent`.
    requests: usize,
    tokens: u64,
    next_number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u64,
    at: Instant,
    tokens: u64,
    /// False for tokens that became known after the call.
    is_request: bool,
}

impl KeyLimiter {
    pub fn new(rate: Rate) -> Self {
        let limiter = Self::default();
        limiter.set_rate(rate);
        limiter
    }

    pub fn set_rate(&self, rate: Rate) {
        self.window().rate = rate;
    }

    /// Counts a request with its estimated tokens; a request with more tokens than the limit
    /// counts as the limit.
    ///
    /// # Errors
    /// Returns the wait until it fits.
    pub fn take(self: &Arc<Self>, tokens: u64, now: Instant) -> Result<KeyUse, Duration> {
        let mut window = self.window();
        let tokens = window.rate.tokens_per_minute.map_or(tokens, |limit| tokens.min(limit));
        let wait = window.wait(tokens, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        let number = window.push(tokens, true, now);
        drop(window);
        Ok(KeyUse {
            limiter: Arc::clone(self),
            number,
            estimate: tokens,
            counted: Cell::new(tokens),
            used: Cell::new(0),
            is_made: Cell::new(false),
        })
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Returns the wait until a request of `tokens` fits.
    fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        let minute = self.rate.minute;
        while self.recent.front().is_some_and(|oldest| oldest.at + minute <= now) {
            self.remove(0);
        }
        let (mut count, mut used, mut due) = (self.requests, self.tokens, now);
        let mut oldest = self.recent.iter();
        while !self.rate.has_room(count, used, tokens)
            && let Some(entry) = oldest.next()
        {
            due = entry.at + minute;
            count -= usize::from(entry.is_request);
            used = used.saturating_sub(entry.tokens);
        }
        due.saturating_duration_since(now)
    }

    fn push(&mut self, tokens: u64, is_request: bool, now: Instant) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let at = self.recent.back().map_or(now, |newest| newest.at.max(now));
        self.recent.push_back(Entry { number, at, tokens, is_request });
        self.requests += usize::from(is_request);
        self.tokens = self.tokens.saturating_add(tokens);
        number
    }

    fn remove(&mut self, at: usize) {
        if let Some(entry) = self.recent.remove(at) {
            self.requests -= usize::from(entry.is_request);
            self.tokens = self.tokens.saturating_sub(entry.tokens);
        }
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.recent.binary_search_by_key(&number, |entry| entry.number).ok()
    }
}

/// A counted request. Dropping it without [`KeyUse::begin`] frees it, because no call was made.
#[derive(Debug)]
pub struct KeyUse {
    limiter: Arc<KeyLimiter>,
    number: u64,
    estimate: u64,
    /// The tokens that count now.
    counted: Cell<u64>,
    /// The tokens of the calls that have ended.
    used: Cell<u64>,
    is_made: Cell<bool>,
}

impl KeyUse {
    /// A call is made. There may be several, one for each target of an alias.
    pub fn begin(&self, now: Instant) {
        self.is_made.set(true);
        self.correct(self.used.get().saturating_add(self.estimate), now);
    }

    /// The call has ended with this number of tokens; none if it is unknown, so that the estimate
    /// stays.
    pub fn end(&self, tokens: Option<u64>, now: Instant) {
        let used = self.used.get().saturating_add(tokens.unwrap_or(self.estimate));
        self.used.set(used);
        self.correct(used, now);
    }

    fn correct(&self, tokens: u64, now: Instant) {
        let counted = self.counted.replace(tokens);
        let mut window = self.limiter.window();
        if tokens > counted {
            window.push(tokens - counted, false, now);
        } else if let Some(at) = window.position(self.number) {
            let freed = window.recent[at].tokens.min(counted - tokens);
            window.recent[at].tokens -= freed;
            window.tokens = window.tokens.saturating_sub(freed);
        }
    }
}

impl Drop for KeyUse {
    fn drop(&mut self) {
        if !self.is_made.get() {
            let mut window = self.limiter.window();
            let at = window.position(self.number);
            at.inspect(|at| window.remove(*at));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limiter(requests: Option<u32>, tokens: Option<u64>) -> Arc<KeyLimiter> {
        let rate =
            Rate { requests_per_minute: requests, tokens_per_minute: tokens, ..Rate::default() };
        Arc::new(KeyLimiter::new(rate))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn requests_above_the_limit_wait_for_the_oldest() {
        let (limiter, start) = (limiter(Some(2), None), Instant::now());
        let made: Vec<KeyUse> =
            [0, 10].map(|at| limiter.take(1, start + seconds(at)).unwrap()).into();
        made.iter().for_each(|it| it.begin(start));
        assert_eq!(limiter.take(1, start + seconds(20)).unwrap_err(), seconds(40));
        assert!(limiter.take(1, start + seconds(60)).is_ok());
    }

    #[test]
    fn a_request_without_a_call_is_free() {
        let (limiter, now) = (limiter(Some(1), None), Instant::now());
        drop(limiter.take(1, now).unwrap());
        let made = limiter.take(1, now).unwrap();
        assert!(limiter.take(1, now).is_err());
        made.begin(now);
        drop(made);
        assert!(limiter.take(1, now).is_err());
    }

    #[test]
    fn the_end_of_a_call_corrects_its_tokens() {
        let (limiter, start) = (limiter(None, Some(1_000)), Instant::now());
        let call = limiter.take(900, start).unwrap();
        call.begin(start);
        assert!(limiter.take(200, start).is_err());
        call.end(Some(100), start + seconds(30));
        drop(limiter.take(900, start + seconds(30)).unwrap());
        // More tokens than estimated count from the end of the call on.
        let call = limiter.take(900, start + seconds(30)).unwrap();
        call.begin(start + seconds(30));
        call.end(Some(1_200), start + seconds(100));
        let wait = limiter.take(800, start + seconds(100)).unwrap_err();
        assert_eq!(wait, seconds(60));
        assert!(limiter.take(700, start + seconds(100)).is_ok());
    }

    #[test]
    fn each_call_of_a_request_counts_its_tokens() {
        let (limiter, now) = (limiter(Some(1), Some(1_000)), Instant::now());
        let request = limiter.take(400, now).unwrap();
        for tokens in [Some(300), None] {
            request.begin(now);
            request.end(tokens, now);
        }
        limiter.set_rate(Rate { tokens_per_minute: Some(1_000), ..Rate::default() });
        assert!(limiter.take(301, now).is_err());
        assert!(limiter.take(300, now).is_ok());
    }

    #[test]
    fn a_request_larger_than_the_limit_passes_alone() {
        let (limiter, now) = (limiter(None, Some(10)), Instant::now());
        let call = limiter.take(5_000, now).unwrap();
        call.begin(now);
        assert!(limiter.take(1, now).is_err());
    }

    proptest! {
        /// In any minute, the counted requests stay within the limit, and a refused one fits after
        /// its wait.
        #[test]
        fn no_minute_has_more_than_the_limit(
            limit in 1..5_u32,
            pauses in prop::collection::vec(0..40_u64, 1..60),
        ) {
            let (limiter, mut now) = (limiter(Some(limit), None), Instant::now());
            let mut made: Vec<Instant> = Vec::new();
            for pause in pauses {
                now += seconds(pause);
                let request = match limiter.take(1, now) {
                    Ok(request) => request,
                    Err(wait) => {
                        now += wait;
                        limiter.take(1, now).unwrap()
                    }
                };
                request.begin(now);
                made.push(now);
                let in_minute = made.iter().filter(|at| **at + seconds(60) > now).count();
                prop_assert!(in_minute <= limit as usize);
            }
        }
    }
}
