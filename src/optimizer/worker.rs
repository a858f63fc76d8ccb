//! The optimizer's thread: waits until calls have ended and activity has stopped, then runs a pass
//! and commits its changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::pass::{Pass, Wanted};
use crate::error::{Error, Result};
use crate::hub::{Message, Publish};
use crate::ids::{FlowId, Seq};
use crate::journal::Journal;
use crate::providers::{Cancel, Providers};
use crate::store::Store;
use crate::threads::{OnFatal, vital};
use crate::time::Timestamp;

/// A pass starts after this time without activity.
const QUIET: Duration = Duration::from_millis(500);
/// Limits the wait for a pass under continuous activity.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// The pause after an error.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// A handle to the optimizer's thread.
#[derive(Clone)]
pub struct Optimizer {
    signal: WakeSignal,
    requested: Arc<Mutex<Wanted>>,
    stopping: Cancel,
}

/// Wakes an optimizer; created before it starts.
#[derive(Clone)]
pub struct WakeSignal {
    /// Holds one message, because several changes need only one pass.
    wake: Sender<()>,
    woken: Receiver<()>,
    activity: Arc<ActivityCounter>,
}

/// Counts call events. Only the first one wakes the idle thread: a wake per call would cost more
/// than the call's row.
#[derive(Default)]
struct ActivityCounter {
    seen: AtomicU64,
    is_idle: AtomicBool,
}

impl ActivityCounter {
    fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

/// Forwards events and counts those of calls.
pub struct ActivityPublisher {
    inner: Box<dyn Publish>,
    signal: WakeSignal,
}

impl Default for WakeSignal {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self { wake, woken, activity: Arc::default() }
    }
}

impl WakeSignal {
    pub fn watch(&self, inner: Box<dyn Publish>) -> ActivityPublisher {
        ActivityPublisher { inner, signal: self.clone() }
    }

    fn wake(&self) {
        let _ = self.wake.try_send(());
    }
}

impl Publish for ActivityPublisher {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        let mut types = messages.iter().map(|message| message.type_name);
        if types.any(|name| name == "LEDGER_UPDATE") {
            // The counter first: the thread accesses these two in the opposite order.
            let activity = &self.signal.activity;
            activity.seen.fetch_add(1, Ordering::SeqCst);
            if activity.is_idle.load(Ordering::SeqCst) {
                self.signal.wake();
            }
        }
        self.inner.publish(messages, oldest);
    }
}

impl Optimizer {
    /// Starts the thread. The first pass reads the calls of the last 30 days.
    ///
    /// # Errors
    /// Fails when the system cannot start another thread.
    pub fn start(
        signal: &WakeSignal,
        store: Arc<Store>,
        journal: Journal,
        providers: Arc<Providers>,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let optimizer =
            Self { signal: signal.clone(), requested: Arc::default(), stopping: Cancel::new() };
        let worker = Worker {
            pass: Pass::new(store, providers, optimizer.stopping.clone()),
            journal,
            requested: Arc::clone(&optimizer.requested),
            signal: signal.clone(),
        };
        let thread = vital("optimizer", on_fatal, move || worker.run())?;
        Ok((optimizer, thread))
    }

    /// Requests a review of a changed or deleted flow, without waiting for it.
    pub fn request_review(&self, flow_id: FlowId) {
        self.request(|requested| requested.flows.extend([flow_id]));
    }

    /// Requests a review of all flows, without waiting for it.
    pub fn request_full_review(&self) {
        self.request(|requested| requested.all = true);
    }

    fn request(&self, add: impl FnOnce(&mut Wanted)) {
        add(&mut self.requested.lock().unwrap_or_else(PoisonError::into_inner));
        self.signal.wake();
    }

    pub fn shutdown(&self) {
        self.stopping.cancel();
        self.signal.wake();
    }
}

struct Worker {
    pass: Pass,
    journal: Journal,
    requested: Arc<Mutex<Wanted>>,
    signal: WakeSignal,
}

impl Worker {
    fn run(mut self) {
        // The first pass reviews everything.
        self.wait_for_quiet();
        while !self.pass.is_stopping() {
            let seen = self.signal.activity.seen();
            let now = Timestamp::now();
            let pause = match self.run_pass(now) {
                Ok(()) => self.pass.rest(now),
                Err(error) => {
                    log::warn!("cannot update the suggestions: {error}");
                    RETRY_PAUSE
                }
            };
            if self.wait(seen, pause) {
                self.wait_for_quiet();
            }
        }
    }

    /// Waits up to `pause` for a request, or for a call that ended after the first `seen` calls.
    /// Returns whether there was one.
    fn wait(&self, seen: u64, pause: Duration) -> bool {
        let activity = &self.signal.activity;
        activity.is_idle.store(true, Ordering::SeqCst);
        let is_due = activity.seen() != seen || self.signal.woken.recv_timeout(pause).is_ok();
        activity.is_idle.store(false, Ordering::SeqCst);
        is_due
    }

    fn wait_for_quiet(&self) {
        let began = Instant::now();
        while began.elapsed() < BUSY_MAX && !self.pass.is_stopping() {
            let seen = self.signal.activity.seen();
            let was_woken = self.signal.woken.recv_timeout(QUIET).is_ok();
            if !was_woken && self.signal.activity.seen() == seen {
                return;
            }
        }
    }

    fn run_pass(&mut self, now: Timestamp) -> Result<()> {
        let requested =
            std::mem::take(&mut *self.requested.lock().unwrap_or_else(PoisonError::into_inner));
        let journal = &self.journal;
        let mut write = |change| match journal.commit_one(change) {
            // Another change came first, and has requested a review.
            Ok(_) | Err(Error::Conflict(_) | Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        };
        self.pass.run(requested, now, &mut write)
    }
}
