//! The calls in flight, so that a shutdown or the client's disconnect can end them.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::listener::Presence;
use crate::providers::Cancel;

/// Interval of checks for disconnected clients.
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
    calls: HashMap<u64, Entry>,
}

struct Entry {
    cancel: Cancel,
    /// Set for a call that ends when its client disconnects.
    presence: Option<Presence>,
    is_disconnected: bool,
}

pub(super) struct InFlightGuard<'a> {
    in_flight: &'a InFlight,
    number: u64,
    pub(super) cancel: Cancel,
}

impl InFlight {
    fn state(&self) -> MutexGuard<'_, Calls> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a call, which ends if the client of `presence` disconnects. Returns none if the
    /// server is stopping.
    pub(super) fn enter(&self, presence: Option<Presence>) -> Option<InFlightGuard<'_>> {
        let mut state = self.state();
        if state.is_stopping {
            return None;
        }
        let (number, cancel) = (state.next, Cancel::new());
        state.next += 1;
        let entry = Entry { cancel: cancel.clone(), presence, is_disconnected: false };
        state.calls.insert(number, entry);
        Some(InFlightGuard { in_flight: self, number, cancel })
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.state().is_stopping
    }

    /// Cancels all calls and waits until the deadline. Returns the number of remaining calls.
    pub(super) fn stop(&self, deadline: Instant) -> usize {
        let mut state = self.state();
        state.is_stopping = true;
        let cancels: Vec<Cancel> = state.calls.values().map(|entry| entry.cancel.clone()).collect();
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

    /// Ends calls whose clients have disconnected, until the server ends.
    pub(super) fn watch(&self) {
        loop {
            let (mut state, _) = self
                .changed
                .wait_timeout_while(self.state(), WATCH_INTERVAL, |state| !state.is_stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if state.is_stopping {
                return;
            }
            let mut to_cancel = Vec::new();
            for entry in state.calls.values_mut().filter(|entry| !entry.is_disconnected) {
                // A system call that does not block.
                if entry.presence.as_ref().is_some_and(Presence::is_disconnected) {
                    entry.is_disconnected = true;
                    to_cancel.push(entry.cancel.clone());
                }
            }
            drop(state);
            to_cancel.iter().for_each(Cancel::cancel);
        }
    }
}

impl InFlightGuard<'_> {
    /// Returns whether the call was ended because its client disconnected.
    pub(super) fn is_disconnected(&self) -> bool {
        let state = self.in_flight.state();
        state.calls.get(&self.number).is_some_and(|entry| entry.is_disconnected)
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
