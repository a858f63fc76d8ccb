//! The calls under way, so that they can be ended: with the server, or since nobody waits for them.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::listener::Presence;
use crate::providers::Cancel;

/// How often it is looked whether clients have left whose calls end with them, or are still to be made.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct InFlight {
    state: Mutex<Calls>,
    changed: Condvar,
}

#[derive(Default)]
struct Calls {
    is_stopping: bool,
    next: u64,
    calls: HashMap<u64, One>,
}

struct One {
    cancel: Cancel,
    /// Of a call that ends when its client leaves.
    presence: Option<Presence>,
    has_left: bool,
}

/// One of them, until it is dropped.
pub(super) struct InFlightGuard<'a> {
    in_flight: &'a InFlight,
    number: u64,
    pub(super) cancel: Cancel,
}

impl InFlight {
    fn state(&self) -> MutexGuard<'_, Calls> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins, which ends as soon as `presence` says that its client has left; none where the
    /// server is about to end.
    pub(super) fn enter(&self, presence: Option<Presence>) -> Option<InFlightGuard<'_>> {
        let mut state = self.state();
        if state.is_stopping {
            return None;
        }
        let (number, cancel) = (state.next, Cancel::new());
        state.next += 1;
        let one = One { cancel: cancel.clone(), presence, has_left: false };
        state.calls.insert(number, one);
        Some(InFlightGuard { in_flight: self, number, cancel })
    }

    /// Whether the server is about to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.state().is_stopping
    }

    /// Ends all calls and waits for them, but not beyond the deadline. Gives how many are left.
    pub(super) fn stop(&self, deadline: Instant) -> usize {
        let mut state = self.state();
        state.is_stopping = true;
        let cancels: Vec<Cancel> = state.calls.values().map(|one| one.cancel.clone()).collect();
        drop(state);
        self.changed.notify_all();
        cancels.iter().for_each(Cancel::cancel);
        let time = deadline.saturating_duration_since(Instant::now());
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), time, |state| !state.calls.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        state.calls.len()
    }

    /// Ends calls whose clients have left, until the server ends.
    pub(super) fn watch(&self) {
        loop {
            let (mut state, _) = self
                .changed
                .wait_timeout_while(self.state(), WATCH_INTERVAL, |state| !state.is_stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if state.is_stopping {
                return;
            }
            let mut gone = Vec::new();
            for one in state.calls.values_mut().filter(|one| !one.has_left) {
                // Asks the system, which answers at once.
                if one.presence.as_ref().is_some_and(Presence::has_left) {
                    one.has_left = true;
                    gone.push(one.cancel.clone());
                }
            }
            drop(state);
            gone.iter().for_each(Cancel::cancel);
        }
    }
}

impl InFlightGuard<'_> {
    /// Whether the call was ended because its client had left.
    pub(super) fn has_left(&self) -> bool {
        let state = self.in_flight.state();
        state.calls.get(&self.number).is_some_and(|one| one.has_left)
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.in_flight.state();
        state.calls.remove(&self.number);
        if state.is_stopping {
            self.in_flight.changed.notify_all();
        }
    }
}
