//! Limits the number of calls, and of tokens, that a provider gets in any minute.
//!
//! Calls queue for a permit, so that the provider need not reject them. Calls of flows and calls of
//! clients each keep their order of arrival, and the two sides alternate while both wait. A call
//! that does not ask for its permit in time is skipped until it does.
//!
//! The window counts when calls are made, not when they were permitted, so that late calls cannot
//! exceed the limit. A token bucket would allow two minutes' worth of calls in one minute. Pure
//! except for a lock: callers pass the time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// The maximum limit of calls per minute: each call is remembered for a minute.
pub const REQUESTS_MAX: u32 = 100_000;

/// Time after which an overdue call loses its turn. Other calls go first until it asks again.
const GRACE: Duration = Duration::from_secs(1);

/// The limits of a provider; none means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 1 to [`REQUESTS_MAX`].
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers, at least 1.
    pub tokens_per_minute: Option<u64>,
    /// The length of the window: a minute, or less in tests.
    pub minute: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self { requests_per_minute: None, tokens_per_minute: None, minute: MINUTE }
    }
}

impl Rate {
    /// Returns whether a call of `tokens` fits in addition to `count` others with `used` tokens.
    pub fn has_room(&self, count: usize, used: u64, tokens: u64) -> bool {
        let requests = self.requests_per_minute.map(|limit| limit as usize);
        requests.is_none_or(|limit| count < limit)
            && self.tokens_per_minute.is_none_or(|limit| used.saturating_add(tokens) <= limit)
    }
}

/// The origin of a call. The two sides alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Flows,
    /// Clients at `/v1`.
    Clients,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Flows => Self::Clients,
            Self::Clients => Self::Flows,
        }
    }
}

/// Queues calls at the providers that have a limit.
#[derive(Debug, Default)]
pub struct RateLimiter {
    queues: BTreeMap<String, Arc<Mutex<ProviderQueue>>>,
}

impl RateLimiter {
    pub fn new(rates: BTreeMap<String, Rate>) -> Self {
        let limited = rates.into_iter();
        let limited = limited.filter(|(_, rate)| *rate != Rate::default());
        Self {
            queues: limited
                .map(|(name, rate)| (name, Arc::new(Mutex::new(ProviderQueue::new(rate)))))
                .collect(),
        }
    }

    /// Queues a call. A call with more tokens than the limit waits until the window is empty.
    pub fn enqueue(&self, provider: &str, side: Side, tokens: u64) -> Permit {
        let queue = self.queues.get(provider);
        Permit { queued: queue.map(|queue| (Arc::clone(queue), lock(queue).enqueue(side, tokens))) }
    }
}

/// A call's place in its provider's queue. Dropping it without [`Permit::consume`] frees it for
/// others.
#[derive(Debug)]
pub struct Permit {
    /// The queue and the call's number in it; none if the provider has no limit, and after
    /// `consume`.
    queued: Option<(Arc<Mutex<ProviderQueue>>, u64)>,
}

impl Permit {
    /// Acquires the permit if it is the call's turn, and then returns zero. Otherwise returns the
    /// expected wait before the next attempt. An acquired permit counts as a call made now until it
    /// is consumed or dropped.
    pub fn acquire(&self, now: Instant) -> Duration {
        self.queued
            .as_ref()
            .map_or(Duration::ZERO, |(queue, number)| lock(queue).acquire(*number, now))
    }

    pub fn consume(self) {
        self.consume_at(Instant::now());
    }

    fn consume_at(mut self, now: Instant) {
        if let Some((queue, number)) = self.queued.take() {
            lock(&queue).consume(number, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((queue, number)) = self.queued.take() {
            lock(&queue).remove(number);
        }
    }
}

fn lock(queue: &Mutex<ProviderQueue>) -> MutexGuard<'_, ProviderQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct ProviderQueue {
    rate: Rate,
    /// Times of the calls in the last minute, and their tokens; oldest first.
    recent: VecDeque<(Instant, u64)>,
    recent_tokens: u64,
    /// Calls that were not made yet, in order of arrival and number.
    pending: Vec<PendingCall>,
    /// The side that goes next if both wait.
    next_side: Side,
    next_number: u64,
}

#[derive(Debug)]
struct PendingCall {
    number: u64,
    side: Side,
    tokens: u64,
    /// True if the permit was acquired. The call may be made later.
    is_acquired: bool,
    /// The due time from the last `acquire`; none before the first one.
    due: Option<Instant>,
}

impl ProviderQueue {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            recent: VecDeque::new(),
            recent_tokens: 0,
            pending: Vec::new(),
            next_side: Side::Clients,
            next_number: 0,
        }
    }

    fn enqueue(&mut self, side: Side, tokens: u64) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let limit = self.rate.tokens_per_minute;
        self.pending.push(PendingCall {
            number,
            side,
            tokens: limit.map_or(0, |limit| tokens.min(limit)),
            is_acquired: false,
            due: None,
        });
        number
    }

    fn position(&self, number: u64) -> Option<usize> {
        let found = self.pending.binary_search_by_key(&number, |it| it.number);
        found.ok()
    }

    fn remove(&mut self, number: u64) -> Option<PendingCall> {
        self.position(number).map(|at| self.pending.remove(at))
    }

    fn consume(&mut self, number: u64, now: Instant) {
        if let Some(call) = self.remove(number) {
            let last = self.recent.back().map_or(now, |(at, _)| *at);
            self.recent.push_back((last.max(now), call.tokens));
            self.recent_tokens += call.tokens;
        }
    }

    fn acquire(&mut self, number: u64, now: Instant) -> Duration {
        let Some(position) = self.position(number) else {
            return Duration::ZERO;
        };
        if self.pending[position].is_acquired {
            return Duration::ZERO;
        }
        while let Some((at, tokens)) = self.recent.front()
            && *at + self.rate.minute <= now
        {
            self.recent_tokens -= tokens;
            self.recent.pop_front();
        }
        let due = self.due(number, now);
        let call = &mut self.pending[position];
        call.due = Some(due);
        if due <= now {
            call.is_acquired = true;
            self.next_side = call.side.other();
        }
        due.saturating_duration_since(now)
    }

    /// Returns the time when a call may be made, if all calls before it are made as soon as
    /// possible, except for overdue ones.
    fn due(&self, number: u64, now: Instant) -> Instant {
        let acquired = self.pending.iter().filter(|call| call.is_acquired);
        let acquired = acquired.map(|call| (now, call.tokens));
        let mut count = self.recent.len() + acquired.clone().count();
        let mut used = self.recent_tokens + acquired.clone().map(|(_, it)| it).sum::<u64>();
        let mut counted = self.recent.iter().copied().chain(acquired);
        let mut planned = VecDeque::new();
        let mut due = now;
        for call in self.in_turn(number, now) {
            while !self.rate.has_room(count, used, call.tokens)
                && let Some((at, tokens)) = counted.next().or_else(|| planned.pop_front())
            {
                due = due.max(at + self.rate.minute);
                count -= 1;
                used -= tokens;
            }
            if call.number == number {
                break;
            }
            planned.push_back((due, call.tokens));
            count += 1;
            used += call.tokens;
        }
        due
    }

    /// Returns the waiting calls in the order in which they may go: the sides alternate while both
    /// have any. Overdue calls are excluded, except for `number`, which asks now.
    fn in_turn(&self, number: u64, now: Instant) -> impl Iterator<Item = &PendingCall> {
        let is_overdue = move |call: &PendingCall| call.due.is_some_and(|due| due + GRACE < now);
        let waiting = move |side| {
            self.pending.iter().filter(move |call| {
                let is_waiting = call.side == side && !call.is_acquired;
                is_waiting && (call.number == number || !is_overdue(call))
            })
        };
        let (mut one, mut other) = (waiting(self.next_side), waiting(self.next_side.other()));
        std::iter::from_fn(move || {
            let next = one.next();
            std::mem::swap(&mut one, &mut other);
            // Once one side is empty, the other continues alone.
            next.or_else(|| one.next())
        })
    }
}

#[cfg(test)]
mod tests;
