//! The single path for every call, used by the engine's workers, the gateway's clients and trials:
//!
//! ```text
//! response cache ─▶ rate-limit permit ─▶ intent with its budget reservation ─▶ provider
//!     ─▶ usage, price ─▶ settlement
//! ```
//!
//! [`Calls::prepare`] does the part before the intent and never blocks; [`Calls::wait`] does the
//! same for callers that may block. [`Calls::make`] commits the intent, makes the call and computes
//! the settlement. [`CallOutcome`] reports the end of the call. Uncommitted changes are returned,
//! because the engine commits them with the end of the node; other callers pass them to
//! [`Calls::settle`].

mod response_cache;
mod settlement;
mod settlement_queue;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::response_cache::{CacheLookup, ResponseCache, key_of};
pub use self::response_cache::{FillGuard, SAME_CALL_POLL};
pub use self::settlement::{interrupted, later_settlement, lost_call, prompt_hash, unknown_end};
use self::settlement_queue::SettlementQueue;
use crate::error::{Error, Result};
use crate::event::RefusedBy;
use crate::journal::Journal;
use crate::providers::{
    Answer, CacheWrites, Call, Cancel, Failure, Permit, PricedOptions, Providers,
};
use crate::store::{Bought, Change, NewCall, Receipt, Store};
use crate::threads::{Threads, panic_message};
use crate::time::Timestamp;

/// Limits the wait for a permit: a caller with a longer estimated wait is refused at once. Calls of
/// flows that arrive later take every other permit, so the wait can double; after that the caller
/// is refused.
pub const PERMIT_WAIT_MAX: Duration = Duration::from_secs(60);
/// Interval at which a blocked caller checks that its client is still connected.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Stack size of the thread that commits settlements.
const STACK_BYTES: usize = 64 << 10;

/// The source of a prompt's size.
#[derive(Clone, Copy, Debug)]
pub enum PromptSize {
    /// The texts of the call.
    OfCall,
    /// The client's request body, which contains the prompt.
    OfBody {
        /// The expected size in bytes, for the rate limit.
        bytes: u64,
        /// The largest possible size in bytes, for the budget reservation.
        bytes_max: u64,
        /// The parts that may be written to the provider's prompt cache.
        cache_writes: CacheWrites,
        /// The options that may add to the price.
        options: PricedOptions,
    },
}

/// A call and its row in the ledger.
pub struct CallRequest<'a> {
    pub call: &'a Call,
    /// Time and reservation are missing; they are set when the intent is committed.
    pub row: NewCall,
    pub prompt: PromptSize,
    /// The cache key, and the maximum age of an acceptable stored response.
    pub cache: Option<(String, Duration)>,
    /// True if the client sends its own key, so the configured one may be missing.
    pub has_own_key: bool,
}

/// The resources that a call needs; dropping this returns them to their owners.
pub struct CallResources {
    permit: Permit,
    /// The exclusive right to fill the cache; identical calls wait for it.
    fill: Option<FillGuard>,
}

/// The state of a call before its intent is committed.
pub enum Prepared {
    /// The call may be made now.
    Ready(CallResources),
    /// The caller must call `prepare` again after `wait`.
    Deferred { wait: Duration, resources: Option<CallResources>, reason: WaitReason },
    /// The call is over without a request.
    Over(Ended),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// An identical call is in flight.
    SameCall,
    RateLimit,
}

/// The end of a call.
pub enum CallOutcome {
    Answered(Answer),
    /// A stored response was reused; no call was made.
    Cached(Arc<Bought>),
    /// A hard budget has too little left; no call was made.
    OverBudget(String),
    /// No permit was available within [`PERMIT_WAIT_MAX`]; no call was made. Contains the remaining
    /// wait.
    RateLimited(Duration),
    /// An identical call by another caller took too long; no call was made.
    SameCallTimeout,
    /// The provider is unknown or lacks its key; no call was made and no row is written.
    NotConfigured(String),
    /// Cancelled before the request was sent, or the client disconnected; no call was made.
    Cancelled,
    /// The intent could not be committed; no call was made.
    NotCommitted(Error),
    /// The provider reported an error, the call timed out, or it was cancelled.
    Failed(Box<Failure>),
    /// A bug; the row is settled as `UNKNOWN`.
    Panicked(String),
}

/// The end of a call with its uncommitted changes.
pub struct Ended {
    pub outcome: CallOutcome,
    /// Changes to commit, in order.
    pub changes: Vec<Change>,
}

impl Ended {
    fn without_row(outcome: CallOutcome) -> Self {
        let changes = Vec::new();
        Self { outcome, changes }
    }

    /// Returns true if the call has a row in the ledger, or gets one when its changes are
    /// committed.
    pub fn has_row(&self) -> bool {
        !self.changes.is_empty()
    }
}

/// A complete answer in its cached form.
pub struct Filled {
    pub fill: FillGuard,
    pub output: String,
    pub content_type: Option<String>,
}

/// The result of a call at the provider. [`Filled`] is present only if the answer is to be cached.
pub type Exchanged = (std::result::Result<Answer, Box<Failure>>, Option<Filled>);

/// A caller that may block.
pub struct Waiter<'a> {
    pub cancel: &'a Cancel,
    pub has_left: &'a dyn Fn() -> bool,
}

impl Waiter<'_> {
    fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || (self.has_left)()
    }
}

/// Makes calls. Clones share all state.
#[derive(Clone)]
pub struct Calls {
    store: Arc<Store>,
    providers: Arc<Providers>,
    cache: ResponseCache,
    settlements: Arc<SettlementQueue>,
    threads: Arc<Threads>,
}

impl Calls {
    /// Starts the thread that commits settlements.
    ///
    /// # Errors
    /// Fails when the system cannot start another thread.
    pub fn start(store: Arc<Store>, journal: Journal, providers: Arc<Providers>) -> Result<Self> {
        let calls = Self {
            cache: ResponseCache::new(Arc::clone(&store)),
            settlements: Arc::new(SettlementQueue::new(journal)),
            threads: Arc::default(),
            store,
            providers,
        };
        let settlements = Arc::clone(&calls.settlements);
        calls.threads.spawn("settlements", STACK_BYTES, move || settlements.run())?;
        Ok(calls)
    }

    /// Commits all queued settlements. Later ones are committed at once.
    pub fn shutdown(&self, deadline: Instant) {
        self.settlements.end();
        self.threads.join(deadline);
    }

    pub fn providers(&self) -> &Arc<Providers> {
        &self.providers
    }

    /// Returns the cache key of a call that contains its texts.
    pub fn cache_key(&self, call: &Call) -> String {
        key_of(call, self.providers.server_of(&call.provider))
    }

    /// Looks for a stored response, then for a permit. Never blocks. `resources` comes from an
    /// earlier [`Prepared::Deferred`].
    pub fn prepare(&self, request: &CallRequest<'_>, resources: Option<CallResources>) -> Prepared {
        self.prepare_within(request, resources, Duration::MAX)
    }

    /// Like [`Calls::prepare`], but refuses a call if the first estimate of its wait for a permit
    /// exceeds `wait_max`.
    fn prepare_within(
        &self,
        request: &CallRequest<'_>,
        resources: Option<CallResources>,
        wait_max: Duration,
    ) -> Prepared {
        let is_new = resources.is_none();
        let resources = match resources {
            Some(resources) => resources,
            None => match self.enter(request) {
                Ok(resources) => resources,
                Err(prepared) => return *prepared,
            },
        };
        let wait = resources.permit.acquire(Instant::now());
        if wait.is_zero() {
            return Prepared::Ready(resources);
        }
        if is_new && wait > wait_max {
            return Prepared::Over(Ended::without_row(CallOutcome::RateLimited(wait)));
        }
        // Refuses early: a call over its budget need not wait. The journal checks again.
        let row = is_new.then(|| self.intent(request));
        if let Some(row) = row
            && let Err(Error::Budget(why)) = self.store.check_budgets(&row)
        {
            return Prepared::Over(over_budget(row, why, Vec::new()));
        }
        Prepared::Deferred { wait, resources: Some(resources), reason: WaitReason::RateLimit }
    }

    /// Joins the queue for a permit, unless the call needs none.
    fn enter(
        &self,
        request: &CallRequest<'_>,
    ) -> std::result::Result<CallResources, Box<Prepared>> {
        let fill = match &request.cache {
            Some((key, age_max)) => self.look_up(request, key, *age_max)?,
            None => None,
        };
        let call = request.call;
        if !request.has_own_key
            && let Err(why) = self.providers.check(&call.provider)
        {
            let ended = Ended::without_row(CallOutcome::NotConfigured(why));
            return Err(Box::new(Prepared::Over(ended)));
        }
        let permit = match request.prompt {
            PromptSize::OfCall => self.providers.permit(call),
            PromptSize::OfBody { bytes, .. } => self.providers.permit_for(call, bytes),
        };
        Ok(CallResources { permit, fill })
    }

    fn look_up(
        &self,
        request: &CallRequest<'_>,
        key: &str,
        age_max: Duration,
    ) -> std::result::Result<Option<FillGuard>, Box<Prepared>> {
        match self.cache.lookup(key, age_max, Timestamp::now()) {
            Ok(CacheLookup::Nothing(fill)) => Ok(Some(fill)),
            Ok(CacheLookup::InFlight) => Err(Box::new(Prepared::Deferred {
                wait: SAME_CALL_POLL,
                resources: None,
                reason: WaitReason::SameCall,
            })),
            Ok(CacheLookup::Answer(response)) => {
                let change = Change::BookCached {
                    call: NewCall { at: Timestamp::now(), ..request.row.clone() },
                    model: response.model.clone(),
                    saved: response.cost,
                };
                Err(Box::new(Prepared::Over(Ended {
                    outcome: CallOutcome::Cached(response),
                    changes: vec![change],
                })))
            }
            // A cache error does not prevent the call.
            Err(error) => {
                log::warn!("cannot look up a cached response: {error}");
                Ok(None)
            }
        }
    }

    /// Like [`Calls::prepare`], but blocks until the call may be made.
    ///
    /// # Errors
    /// Returns the end of a call that is not made.
    pub fn wait(
        &self,
        request: &CallRequest<'_>,
        waiter: &Waiter<'_>,
    ) -> std::result::Result<CallResources, Box<Ended>> {
        let began = Instant::now();
        let mut resources = None;
        loop {
            let (wait, reason) = match self.prepare_within(request, resources, PERMIT_WAIT_MAX) {
                // Checked last, so that a cancelled call is not made.
                Prepared::Ready(_) if waiter.is_over() => break,
                Prepared::Ready(resources) => return Ok(resources),
                Prepared::Over(ended) => return Err(Box::new(ended)),
                Prepared::Deferred { wait, resources: deferred, reason } => {
                    resources = deferred;
                    (wait, reason)
                }
            };
            let (wait_max, timeout_outcome) = match reason {
                WaitReason::RateLimit => (2 * PERMIT_WAIT_MAX, CallOutcome::RateLimited(wait)),
                // Waits for the maximum wait and duration of the other call. If that call fails,
                // one of its waiters makes the call.
                WaitReason::SameCall => {
                    let total = self.providers.timeouts_of(request.call).total;
                    (2 * PERMIT_WAIT_MAX + total, CallOutcome::SameCallTimeout)
                }
            };
            let left = wait_max.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Box::new(Ended::without_row(timeout_outcome)));
            }
            let pause = wait.min(WATCH_INTERVAL).min(left);
            if (waiter.has_left)() || waiter.cancel.wait(pause) {
                break;
            }
        }
        Err(Box::new(Ended::without_row(CallOutcome::Cancelled)))
    }

    /// Like [`Calls::make_row`], for an exchange that does not need its row.
    pub fn make(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
        before: Vec<Change>,
        exchange: impl FnOnce(Option<FillGuard>) -> Exchanged,
    ) -> Ended {
        self.make_row(request, resources, before, |_, fill| exchange(fill))
    }

    /// Commits the intent, after `before` and in the same transaction, makes the call through
    /// `exchange`, and computes its settlement. If the intent cannot be committed, [`Ended`]
    /// contains the changes of `before`. `exchange` receives the id of the row.
    pub fn make_row(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
        before: Vec<Change>,
        exchange: impl FnOnce(i64, Option<FillGuard>) -> Exchanged,
    ) -> Ended {
        let row = self.intent(request);
        let mut changes = before.clone();
        changes.push(Change::OpenCall(row.clone()));
        let id = match self.settlements.commit_with(changes) {
            Ok(Receipt::Call(entry)) => entry.id,
            Ok(_) => {
                let error = Error::internal("the journal returned no ledger row");
                return Ended::without_row(CallOutcome::NotCommitted(error));
            }
            Err(Error::Budget(why)) => return over_budget(row, why, before),
            Err(error) => {
                return Ended { outcome: CallOutcome::NotCommitted(error), changes: before };
            }
        };
        resources.permit.consume();
        let began = Timestamp::now();
        let exchanged = catch_unwind(AssertUnwindSafe(|| exchange(id, resources.fill)));
        let (providers, call) = (&self.providers, request.call);
        match exchanged {
            Ok((Ok(answer), filled)) => {
                let settlement = settlement::answered(providers, call, id, &answer, began);
                let to_store = filled.map(|filled| filled.done(&answer.model, &settlement));
                let mut changes = vec![Change::SettleCall(settlement)];
                changes.extend(to_store.map(Change::KeepAnswer));
                Ended { outcome: CallOutcome::Answered(answer), changes }
            }
            Ok((Err(failure), _)) => {
                let settlement = settlement::failed(providers, call, id, &failure, began);
                Ended {
                    outcome: CallOutcome::Failed(failure),
                    changes: vec![Change::SettleCall(settlement)],
                }
            }
            Err(panic) => {
                let message = panic_message(panic.as_ref());
                let error = format!("internal error during the call: {message}");
                log::error!("{error}");
                let settlement = settlement::panicked(id, &error);
                Ended {
                    outcome: CallOutcome::Panicked(error),
                    changes: vec![Change::SettleCall(settlement)],
                }
            }
        }
    }

    /// Commits the intent of a call that continues at the provider after its request, such as a batch.
    /// Returns the id of its row, which its caller settles.
    ///
    /// # Errors
    /// Returns the end of a call that is not made.
    pub fn open(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
    ) -> std::result::Result<i64, Box<Ended>> {
        let row = self.intent(request);
        match self.settlements.commit_with(vec![Change::OpenCall(row.clone())]) {
            Ok(Receipt::Call(entry)) => {
                resources.permit.consume();
                Ok(entry.id)
            }
            Ok(_) => {
                let error = Error::internal("the journal returned no ledger row");
                Err(Box::new(Ended::without_row(CallOutcome::NotCommitted(error))))
            }
            Err(Error::Budget(why)) => Err(Box::new(over_budget(row, why, Vec::new()))),
            Err(error) => Err(Box::new(Ended::without_row(CallOutcome::NotCommitted(error)))),
        }
    }

    /// Returns the row to commit before the call, with the worst-case cost reserved.
    fn intent(&self, request: &CallRequest<'_>) -> NewCall {
        let (call, at) = (request.call, Timestamp::now());
        let reserve = match request.prompt {
            PromptSize::OfCall => self.providers.reserve(call, at),
            PromptSize::OfBody { bytes_max, cache_writes, options, .. } => {
                self.providers.reserve_for(call, bytes_max, cache_writes, options, at)
            }
        };
        NewCall { at, reserve, ..request.row.clone() }
    }

    /// Queues the settlement of a call without waiting. It is committed with the next intent, or
    /// after a few milliseconds.
    pub fn settle(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.settlements.settle(changes);
        }
    }

    /// Commits the settlement of a call and waits for it, even while the disk is full.
    ///
    /// # Errors
    /// Same as [`Journal::commit_retried`].
    pub fn settle_and_wait(&self, changes: Vec<Change>) -> Result<()> {
        self.settlements.commit_retried(changes)
    }

    /// Commits changes together with queued settlements.
    ///
    /// # Errors
    /// Same as [`Journal::commit`].
    pub fn commit(&self, changes: Vec<Change>) -> Result<()> {
        self.settlements.commit_with(changes).map(drop)
    }

    /// Commits the row of a refused call before its caller is notified. If the disk is full, the
    /// row is written once there is room.
    pub fn commit_refusal(&self, changes: Vec<Change>) {
        if let Err(error) = self.settlements.commit_with(changes.clone()) {
            log::warn!("cannot write a refused call to the ledger, retrying: {error}");
            self.settle(changes);
        }
    }
}

impl Filled {
    /// Makes the answer available to other callers; the caller still has to store it.
    fn done(self, model: &str, settlement: &crate::store::Settlement) -> Arc<Bought> {
        self.fill.done(|key| Bought {
            key,
            at: settlement.at,
            model: model.to_owned(),
            output: self.output,
            content_type: self.content_type,
            cost: settlement.charge.cost,
        })
    }
}

/// Returns the end of a call over its budget. The refusal gets its own row.
fn over_budget(row: NewCall, why: String, before: Vec<Change>) -> Ended {
    let mut changes = before;
    changes.push(Change::RefuseCall(row, RefusedBy::Budget, why.clone()));
    Ended { outcome: CallOutcome::OverBudget(why), changes }
}
