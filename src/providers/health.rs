//! The state of a provider or of one of its keys, as its calls showed it. Pure: the caller passes
//! the time.
//!
//! - A provider that fails several times in a row is open: its calls go elsewhere for a while.
//! - A key that is refused is benched, and a key whose rate limit is reached cools.
//!
//! After its pause, a provider or a refused key is half-open: one call at a time probes it. A
//! success ends the pause, and another failure begins a longer one.

use std::mem::discriminant;
use std::time::{Duration, Instant};

/// Limits the length of a pause in addition to the settings, because a sum of an instant and a
/// duration may overflow.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// When calls pause, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// The failures in a row that open a provider.
    pub failures: u32,
    /// The pause of an open provider. Each failed probe doubles it.
    pub open: Pause,
    /// The pause of a refused key. Each failed probe doubles it.
    pub bench: Pause,
    /// The pause of a key whose rate limit is reached, if the provider does not state one. It
    /// doubles until a call succeeds.
    pub cool: Pause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    pub first: Duration,
    pub max: Duration,
}

impl Default for HealthRules {
    fn default() -> Self {
        let pause =
            |first, max| Pause { first: Duration::from_secs(first), max: Duration::from_secs(max) };
        Self { failures: 3, open: pause(5, 5 * 60), bench: pause(60, 60 * 60), cool: pause(1, 60) }
    }
}

impl Pause {
    /// Returns the pause after one of length `last`, which is zero before the first.
    fn after(self, last: Duration) -> Duration {
        let doubled = if last.is_zero() { self.first } else { last.saturating_mul(2) };
        doubled.min(self.max).min(PAUSE_MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    Ok,
    /// The rate limit of a key is reached. Its end needs no probe.
    Cooling(Instant),
    /// A key was refused.
    Benched(Instant),
    /// A provider fails.
    Open(Instant),
}

/// The result of a call, as far as it concerns a provider or a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HealthEvent {
    Success,
    /// The provider refused the request, so it is not down.
    Reached,
    /// The provider was not reached, took too long, or failed.
    Failure,
    /// The key was refused.
    Rejected,
    /// The rate limit of the key is reached, with the requested delay.
    RateLimited(Option<Duration>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Free,
    /// The next call is a probe.
    Probe,
    /// A call is better made elsewhere until then.
    Pause(Instant),
}

/// A call that was admitted. It ends with [`Health::record`] or [`Health::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) is_probe: bool,
    /// The changes of the state before the call.
    changes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    state: HealthState,
    /// Failures since the last success.
    failures: u32,
    /// The length of the last pause; zero after a success.
    pause: Duration,
    is_probing: bool,
    changes: u64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: HealthState::Ok,
            failures: 0,
            pause: Duration::ZERO,
            is_probing: false,
            changes: 0,
        }
    }
}

impl Health {
    pub(super) fn state(&self) -> HealthState {
        self.state
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn admission(&self, now: Instant) -> Admission {
        match self.state {
            HealthState::Ok => Admission::Free,
            HealthState::Cooling(until) if until <= now => Admission::Free,
            HealthState::Benched(until) | HealthState::Open(until)
                if until <= now && !self.is_probing =>
            {
                Admission::Probe
            }
            HealthState::Cooling(until)
            | HealthState::Benched(until)
            | HealthState::Open(until) => Admission::Pause(until),
        }
    }

    /// Begins a call, also during a pause.
    pub(super) fn begin(&mut self, now: Instant) -> Admitted {
        let is_probe = self.admission(now) == Admission::Probe;
        self.is_probing |= is_probe;
        Admitted { is_probe, changes: self.changes }
    }

    /// Ends a call without a result.
    pub(super) fn release(&mut self, call: Admitted) {
        // A later state has its own probe.
        if call.is_probe && call.changes == self.changes {
            self.is_probing = false;
        }
    }

    /// Ends a call with its result. A call that began in an earlier state says nothing about the
    /// present one, except for a longer delay that the provider requests.
    pub(super) fn record(
        &mut self,
        call: Admitted,
        event: HealthEvent,
        rules: &HealthRules,
        now: Instant,
    ) {
        self.release(call);
        let is_present = call.changes == self.changes;
        let is_ok = match self.state {
            HealthState::Cooling(until) => until <= now,
            state => state == HealthState::Ok,
        };
        let may_pause = is_present && (is_ok || call.is_probe);
        match event {
            HealthEvent::Success if is_present => self.recover(),
            HealthEvent::Reached if is_present && !is_ok => self.recover(),
            HealthEvent::Failure if may_pause => {
                self.failures = self.failures.saturating_add(1);
                if call.is_probe || self.failures >= rules.failures {
                    self.begin_pause(HealthState::Open, rules.open, now);
                }
            }
            HealthEvent::Rejected if may_pause => {
                self.failures = self.failures.saturating_add(1);
                self.begin_pause(HealthState::Benched, rules.bench, now);
            }
            HealthEvent::RateLimited(None) if may_pause => {
                self.failures = self.failures.saturating_add(1);
                self.begin_pause(HealthState::Cooling, rules.cool, now);
            }
            HealthEvent::RateLimited(Some(delay)) => {
                let until = now + delay.min(PAUSE_MAX);
                match self.state {
                    HealthState::Cooling(known) if known > now => {
                        self.state = HealthState::Cooling(known.max(until));
                    }
                    _ if may_pause => {
                        self.failures = self.failures.saturating_add(1);
                        if call.is_probe {
                            self.pause = Duration::ZERO;
                        }
                        self.enter(HealthState::Cooling(until));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn recover(&mut self) {
        self.failures = 0;
        self.pause = Duration::ZERO;
        if self.state != HealthState::Ok {
            self.enter(HealthState::Ok);
        }
    }

    fn begin_pause(&mut self, state: fn(Instant) -> HealthState, pause: Pause, now: Instant) {
        // A pause for another reason starts with the first length.
        let is_same = discriminant(&self.state) == discriminant(&state(now));
        let last = if is_same { self.pause } else { Duration::ZERO };
        self.pause = pause.after(last);
        self.enter(state(now + self.pause));
    }

    fn enter(&mut self, state: HealthState) {
        self.state = state;
        self.is_probing = false;
        self.changes += 1;
    }
}

#[cfg(test)]
mod tests;
