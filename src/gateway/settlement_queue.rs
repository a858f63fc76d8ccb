//! Settlements on their way to the journal. The client has its answer by then, so they are not
//! waited for, and wait themselves a moment: for the intent of the next call, with which they share
//! a commit. That is half of all commits, and no call waits for the settlement of the one before.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::store::{Bought, Change, Receipt, Settlement};

/// How long a settlement waits for a call.
const WAIT_MAX: Duration = Duration::from_millis(5);
/// How many settlements go with one call, and how many of those that failed are tried again while
/// nothing says that there is room.
const STEP: usize = 64;
/// How many settlements that could not be written are kept, to be tried again after the next call or
/// [`RETRY_AFTER`]. Rows of those beyond become `UNKNOWN` at the next start.
const FAILED_MAX: usize = 10_000;
/// When those are tried again where no call comes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The settlements that wait.
pub(super) struct SettlementQueue {
    journal: Journal,
    waiting: Arc<Waiting>,
}

/// A settlement, with the answer that is to be kept.
#[derive(Clone)]
struct Settled {
    settlement: Settlement,
    kept: Option<Arc<Bought>>,
}

impl Settled {
    fn changes(self) -> impl Iterator<Item = Change> {
        let settled = Change::SettleCall(self.settlement);
        std::iter::once(settled).chain(self.kept.map(Change::KeepAnswer))
    }
}

#[derive(Default)]
struct Waiting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    settlements: VecDeque<Settled>,
    /// Those that could not be written.
    failed: VecDeque<Settlement>,
    /// Whether the thread sleeps until there is something to do. It is not woken otherwise, which each
    /// call would pay for.
    is_idle: bool,
    /// Whether the last that was tried could not.
    is_refused: bool,
    is_over: bool,
}

impl Waiting {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SettlementQueue {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            waiting: Arc::default(),
        }
    }

    /// Takes a settlement. It is committed a moment later, together with the answer that was bought,
    /// where that is to be kept.
    pub(super) fn settle(&self, settlement: Settlement, kept: Option<Arc<Bought>>) {
        let mut state = self.waiting.state();
        let is_over = state.is_over;
        let is_idle = state.is_idle;
        state.settlements.push_back(Settled { settlement, kept });
        drop(state);
        if is_over {
            self.flush();
        } else if is_idle {
            self.waiting.changed.notify_all();
        }
    }

    /// Commits a change, and settlements that wait before it.
    ///
    /// # Errors
    /// As [`Journal::commit_one`], of the change alone.
    pub(super) fn commit_with(&self, change: Change) -> Result<Receipt> {
        let settlements = self.take(STEP);
        if settlements.is_empty() {
            return self.journal.commit_one(change);
        }
        let changes = settlements.iter().cloned().flat_map(Settled::changes);
        let changes = changes.chain([change.clone()]).collect();
        match self.journal.commit(changes) {
            Ok(receipts) => receipts
                .into_iter()
                .next_back()
                .ok_or_else(|| Error::internal("the journal gave no receipt")),
            // Whosever fault it is, nothing of it was written.
            Err(_) => {
                self.submit(settlements);
                self.journal.commit_one(change)
            }
        }
    }

    /// Hands over what has waited for long enough, until the end.
    pub(super) fn run(&self) {
        loop {
            let is_idle = |state: &mut State| {
                state.is_idle = state.settlements.is_empty() && !state.is_over;
                state.is_idle
            };
            let has_none = |state: &mut State| is_idle(state) && state.failed.is_empty();
            let changed = &self.waiting.changed;
            let state = changed.wait_while(self.waiting.state(), has_none);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            let waited = changed.wait_timeout_while(state, RETRY_AFTER, is_idle);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            // Also where the time was up.
            state.is_idle = false;
            let waited = changed.wait_timeout_while(state, WAIT_MAX, |state| !state.is_over);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let is_over = state.is_over;
            drop(state);
            self.flush();
            if is_over {
                return;
            }
        }
    }

    /// From now on nothing waits.
    pub(super) fn end(&self) {
        self.waiting.state().is_over = true;
        self.waiting.changed.notify_all();
        self.flush();
    }

    /// Hands over all that wait, and of those that could not be written before, some to see whether
    /// there is room, and all where there is or this is the end.
    fn flush(&self) {
        let mut settlements = self.take(usize::MAX);
        let mut state = self.waiting.state();
        let count_max = if state.is_refused && !state.is_over {
            STEP
        } else {
            usize::MAX
        };
        let count = state.failed.len().min(count_max);
        let failed = state.failed.drain(..count).map(|settlement| Settled {
            settlement,
            kept: None,
        });
        settlements.extend(failed);
        drop(state);
        self.submit(settlements);
    }

    fn take(&self, count_max: usize) -> Vec<Settled> {
        let mut state = self.waiting.state();
        let count = state.settlements.len().min(count_max);
        state.settlements.drain(..count).collect()
    }

    /// Hands settlements over, each by itself.
    fn submit(&self, settlements: Vec<Settled>) {
        for settled in settlements {
            // Without the answer: those that fail wait for long, and others may buy it again.
            let settlement = settled.settlement.clone();
            let waiting = Arc::clone(&self.waiting);
            let done = Box::new(move |result: Result<_>| match result {
                // One that is settled already is nobody's loss.
                Ok(_) | Err(Error::NotFound(_)) => waiting.state().is_refused = false,
                Err(error) => {
                    log::error!(
                        "the settlement of call {} is not written: {error}",
                        settlement.id
                    );
                    let mut state = waiting.state();
                    state.is_refused = true;
                    if state.failed.len() < FAILED_MAX {
                        state.failed.push_back(settlement);
                        waiting.changed.notify_all();
                    }
                }
            });
            // A journal that has ended leaves the row to the next start.
            let _ = self.journal.submit(settled.changes().collect(), done);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use tempfile::TempDir;

    use super::*;
    use crate::budget::Reserve;
    use crate::event::{Seq, Timestamp};
    use crate::hub::{Message, Publish};
    use crate::journal::Retention;
    use crate::settlement::lost_call;
    use crate::store::{NewCall, Store, alter};

    struct Nobody;

    impl Publish for Nobody {
        fn publish(&self, _: Vec<Message>, _: Option<Seq>) {}
    }

    fn eventually(what: &str, has_happened: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !has_happened() {
            assert!(Instant::now() < deadline, "{what} did not happen in time");
            std::thread::yield_now();
        }
    }

    /// So many calls under way, all of which end while the database takes no settlement.
    fn all_refused(dir: &Path, count: usize) -> (Store, Journal, SettlementQueue) {
        let (store, writer) = Store::open(dir).unwrap();
        let on_fatal = Arc::new(|_: &str| {});
        let (journal, _) =
            Journal::start(writer, Box::new(Nobody), Retention::default(), on_fatal).unwrap();
        let call = NewCall {
            at: Timestamp(1),
            flow_id: None,
            run_id: None,
            node_id: None,
            attempt: 1,
            operation_id: "o".into(),
            provider: "p".into(),
            model: "m".into(),
            role: None,
            prompt_hash: String::new(),
            key_name: None,
            tags: None,
            reserve: Reserve::default(),
        };
        let calls = vec![Change::OpenCall(call); count];
        journal.commit(calls).unwrap();
        alter(
            dir,
            "CREATE TRIGGER full BEFORE UPDATE ON ledger BEGIN SELECT RAISE(FAIL, 'full'); END",
        );
        let settlements = SettlementQueue::new(journal.clone());
        for row in store.pending_calls().unwrap() {
            settlements.settle(lost_call(row.id, Timestamp(2)), None);
        }
        settlements.flush();
        eventually("all are refused", || {
            settlements.waiting.state().failed.len() == count
        });
        alter(dir, "DROP TRIGGER full");
        (store, journal, settlements)
    }

    #[test]
    fn all_that_could_not_be_written_is_handed_over_at_the_end() {
        let dir = TempDir::new().unwrap();
        let (store, journal, settlements) = all_refused(dir.path(), 3 * STEP + 1);
        settlements.end();
        journal.shutdown();
        eventually("all are written", || {
            store.pending_calls().unwrap().is_empty()
        });
    }

    #[test]
    fn once_one_is_written_all_that_could_not_be_are_tried_at_once() {
        let dir = TempDir::new().unwrap();
        let (store, journal, settlements) = all_refused(dir.path(), 3 * STEP + 1);
        for left in [2 * STEP + 1, 0] {
            settlements.flush();
            assert_eq!(settlements.waiting.state().failed.len(), left);
            eventually("those that were tried are written", || {
                store.pending_calls().unwrap().len() == left
            });
        }
        journal.shutdown();
    }
}
