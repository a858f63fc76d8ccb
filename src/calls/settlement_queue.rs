//! The queue of settlements for the journal.
//!
//! The client already has its answer, so a settlement can wait briefly for the intent of the next
//! call and share its commit. That saves half of all commits, and no call waits for the settlement
//! of an earlier one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::store::{Change, Receipt};

/// Limits the time that a settlement waits for an intent.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// Limits the settlements that share the commit of one intent.
const STEP: usize = 64;

pub(super) struct SettlementQueue {
    journal: Journal,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Each entry has the changes of one call. The number of calls in flight bounds the queue.
    settlements: VecDeque<Vec<Change>>,
    /// True while the thread sleeps until it is woken. Waking it for every call would slow each of
    /// them.
    is_idle: bool,
    is_over: bool,
}

impl SettlementQueue {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the changes of one call, which are committed within [`WAIT_MAX`].
    pub(super) fn settle(&self, changes: Vec<Change>) {
        let mut state = self.state();
        let (is_over, is_idle) = (state.is_over, state.is_idle);
        state.settlements.push_back(changes);
        drop(state);
        if is_over {
            self.flush();
        } else if is_idle {
            self.changed.notify_all();
        }
    }

    /// Commits changes after the queued settlements, and returns the receipt of the last one.
    ///
    /// # Errors
    /// Those of [`Journal::commit`] for `changes` alone.
    pub(super) fn commit_with(&self, changes: Vec<Change>) -> Result<Receipt> {
        let settlements = self.take(STEP);
        let receipts = if settlements.is_empty() {
            self.journal.commit(changes)
        } else {
            let all = settlements.iter().flatten().chain(&changes).cloned();
            // Any part can have caused the error; nothing was written.
            self.journal.commit(all.collect()).or_else(|_| {
                self.submit(settlements);
                self.journal.commit(changes)
            })
        };
        receipts?.pop().ok_or_else(|| Error::internal("the journal returned no receipt"))
    }

    /// Commits changes, and waits while the disk is full.
    ///
    /// # Errors
    /// Same as [`Journal::commit_retried`].
    pub(super) fn commit_retried(&self, changes: Vec<Change>) -> Result<()> {
        self.journal.commit_retried(changes).map(drop)
    }

    /// Commits settlements that found no intent to share a commit with, until
    /// [`SettlementQueue::end`].
    pub(super) fn run(&self) {
        let mut is_over = false;
        while !is_over {
            let has_none = |state: &mut State| {
                state.is_idle = state.settlements.is_empty() && !state.is_over;
                state.is_idle
            };
            let state = self.changed.wait_while(self.state(), has_none);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_timeout_while(state, WAIT_MAX, |state| !state.is_over);
            is_over = waited.unwrap_or_else(PoisonError::into_inner).0.is_over;
            self.flush();
        }
    }

    /// Ends the queue: later settlements are submitted at once.
    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
        self.flush();
    }

    fn flush(&self) {
        let settlements = self.take(usize::MAX);
        self.submit(settlements);
    }

    fn take(&self, count_max: usize) -> Vec<Vec<Change>> {
        let mut state = self.state();
        let count = state.settlements.len().min(count_max);
        state.settlements.drain(..count).collect()
    }

    /// Submits each settlement as a separate entry, which the journal retries if the disk is full.
    fn submit(&self, settlements: Vec<Vec<Change>>) {
        for changes in settlements {
            let done = Box::new(|result: Result<_>| match result {
                // Another settlement of the same call came first.
                Ok(_) | Err(Error::NotFound(_)) => {}
                Err(error) => log::error!("cannot write a settlement to the ledger: {error}"),
            });
            // If the journal has ended, the row becomes UNKNOWN at the next start.
            let _ = self.journal.submit_retried(changes, done);
        }
    }
}
