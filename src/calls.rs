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

mod prompt_size;
mod response_cache;
mod settlement;
mod settlement_queue;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::prompt_size::PromptMeasures;
pub use self::prompt_size::{PromptText, TextSize};
use self::response_cache::{CacheLookup, ResponseCache, key_of};
pub use self::response_cache::{FillGuard, SAME_CALL_POLL};
pub use self::settlement::{
    interrupted, later_settlement, lost_call, prompt_hash, unknown_end, with_unknown_end,
};
use self::settlement_queue::SettlementQueue;
use crate::budget::{CallBounds, OutputLimit};
use crate::error::{Error, Result};
use crate::event::RefusedBy;
use crate::journal::Journal;
use crate::prices::COST_MAX;
use crate::providers::{
    Answer, CacheWrites, Call, Cancel, Failure, KeyLease, Permit, PricedOptions, Providers,
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
/// The time from the end of a call until its settlement is queued, with ample reserve.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
/// Stack size of the thread that commits settlements.
const STACK_BYTES: usize = 64 << 10;

/// The source of a prompt's size.
#[derive(Clone, Copy, Debug)]
pub enum PromptSize<'a> {
    /// The texts of the call, which budgets refuse rather than lower.
    OfCall,
    /// The client's request body, which contains the prompt.
    OfBody {
        /// The expected size in bytes, for the rate limit.
        bytes: u64,
        /// The prompt, for the budget reservation.
        prompt: &'a dyn PromptText,
        /// The output limit of the request, if budgets may lower it.
        output: Option<OutputLimit>,
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
    pub prompt: PromptSize<'a>,
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
    /// A hard budget has too little left until calls in flight have ended; no call was made.
    HeldBudget(String),
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

impl CallOutcome {
    /// Notes the outcome for the states of the provider and the key. Returns the place of the key
    /// if it was refused, so that another one may succeed.
    pub fn record(&self, lease: KeyLease<'_>) -> Option<usize> {
        let key = lease.key();
        match self {
            Self::Answered(answer) => lease.record(Ok(answer)),
            Self::Failed(failure) => {
                lease.record(Err(failure));
                return key.filter(|_| failure.concerns_key());
            }
            // No call was made.
            _ => drop(lease),
        }
        None
    }
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
    measures: Arc<PromptMeasures>,
    settlements: Arc<SettlementQueue>,
    in_flight: Arc<InFlight>,
    threads: Arc<Threads>,
}

/// Counts the calls in flight, so that a caller can wait for the settlement of one.
#[derive(Default)]
struct InFlight {
    state: Mutex<InFlightState>,
    is_settled: Condvar,
}

#[derive(Default)]
struct InFlightState {
    count: usize,
    last_end: Option<Instant>,
}

struct InFlightGuard<'a> {
    of: &'a InFlight,
    /// True if the intent is committed.
    is_made: bool,
}

impl InFlight {
    fn state(&self) -> MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> InFlightGuard<'_> {
        self.state().count += 1;
        InFlightGuard { of: self, is_made: false }
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.of.state();
        state.count -= 1;
        if self.is_made {
            state.last_end = Some(Instant::now());
        }
    }
}

impl Calls {
    /// Starts the thread that commits settlements.
    ///
    /// # Errors
    /// Fails when the system cannot start another thread, or the database cannot be read.
    pub fn start(store: Arc<Store>, journal: Journal, providers: Arc<Providers>) -> Result<Self> {
        let calls = Self {
            cache: ResponseCache::new(Arc::clone(&store)),
            measures: Arc::new(PromptMeasures::load(&store)?),
            settlements: Arc::new(SettlementQueue::new(journal)),
            in_flight: Arc::default(),
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
        if is_new {
            let prefixes = self.prefixes(request);
            let check = |row: &NewCall| self.store.check_budgets(row);
            let (row, checked) = self.open(request, &prefixes, check);
            if let Err(error @ (Error::Budget(_) | Error::BudgetHeld(_))) = checked {
                return Prepared::Over(over_budget(row, error, Vec::new()));
            }
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

    /// Like [`Calls::make_limited`], for requests whose output limit stays as it is.
    pub fn make(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
        before: Vec<Change>,
        exchange: impl FnOnce(Option<FillGuard>) -> Exchanged,
    ) -> Ended {
        self.make_limited(request, resources, before, |_, fill, _| exchange(fill))
    }

    /// Commits the intent, after `before` and in the same transaction, makes the call through
    /// `exchange`, and computes its settlement. If the intent cannot be committed, [`Ended`]
    /// contains the changes of `before`. `exchange` gets the id of the row, and the output limit of
    /// each choice, if budgets lowered it. Then the answer is not cached, because the next request
    /// may have more left.
    pub fn make_limited(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
        before: Vec<Change>,
        exchange: impl FnOnce(i64, Option<FillGuard>, Option<u32>) -> Exchanged,
    ) -> Ended {
        let prefixes = self.prefixes(request);
        let commit = |row: &NewCall| {
            let mut changes = before.clone();
            changes.push(Change::OpenCall(row.clone()));
            self.settlements.commit_with(changes)
        };
        // From before the commit, so that the held amount of a call is never without it.
        let mut in_flight = self.in_flight.enter();
        let (row, receipt) = self.open(request, &prefixes, commit);
        let (id, limit) = match receipt {
            Ok(Receipt::Call(entry)) => (entry.id, None),
            Ok(Receipt::LoweredCall(entry, limit)) => (entry.id, Some(limit)),
            Ok(_) => {
                let error = Error::internal("the journal returned no ledger row");
                return Ended::without_row(CallOutcome::NotCommitted(error));
            }
            Err(error @ (Error::Budget(_) | Error::BudgetHeld(_))) => {
                return over_budget(row, error, before);
            }
            Err(error) => {
                return Ended { outcome: CallOutcome::NotCommitted(error), changes: before };
            }
        };
        resources.permit.consume();
        let began = Timestamp::now();
        in_flight.is_made = true;
        let fill = resources.fill.filter(|_| limit.is_none());
        let exchanged = catch_unwind(AssertUnwindSafe(|| exchange(id, fill, limit)));
        let (providers, call) = (&self.providers, request.call);
        match exchanged {
            Ok((Ok(answer), filled)) => {
                let settlement = settlement::answered(providers, call, id, &answer, began);
                let to_store = filled.map(|filled| filled.done(&answer.model, &settlement));
                let mut changes = vec![Change::SettleCall(settlement)];
                changes.extend(to_store.map(Change::KeepAnswer));
                changes.extend(self.measure(request, &prefixes, &answer));
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
    pub fn open_call(
        &self,
        request: &CallRequest<'_>,
        resources: CallResources,
    ) -> std::result::Result<i64, Box<Ended>> {
        let prefixes = self.prefixes(request);
        let row = self.intent(request, &prefixes, None);
        match self.settlements.commit_with(vec![Change::OpenCall(row.clone())]) {
            Ok(Receipt::Call(entry)) => {
                resources.permit.consume();
                Ok(entry.id)
            }
            Ok(_) => {
                let error = Error::internal("the journal returned no ledger row");
                Err(Box::new(Ended::without_row(CallOutcome::NotCommitted(error))))
            }
            Err(error @ (Error::Budget(_) | Error::BudgetHeld(_))) => {
                Err(Box::new(over_budget(row, error, Vec::new())))
            }
            Err(error) => Err(Box::new(Ended::without_row(CallOutcome::NotCommitted(error)))),
        }
    }

    fn prefixes(&self, request: &CallRequest<'_>) -> Vec<u64> {
        match request.prompt {
            PromptSize::OfCall => Vec::new(),
            PromptSize::OfBody { prompt, .. } => self.measures.prefixes(request.call, prompt),
        }
    }

    fn measure(
        &self,
        request: &CallRequest<'_>,
        prefixes: &[u64],
        answer: &Answer,
    ) -> Option<Change> {
        match request.prompt {
            // Results of searches are part of the input, but not of the prompt.
            PromptSize::OfBody { prompt, options, .. } if options.searches == 0 => {
                self.measures.measure(request.call, prompt, prefixes, &answer.usage)
            }
            _ => None,
        }
    }

    /// Passes the intent of a call to `commit`. If a budget refuses it, or would have to lower its
    /// output limit, its tokens are counted, which takes time, and it is passed on again.
    fn open<T>(
        &self,
        request: &CallRequest<'_>,
        prefixes: &[u64],
        mut commit: impl FnMut(&NewCall) -> Result<T>,
    ) -> (NewCall, Result<T>) {
        let can_count = matches!(request.prompt, PromptSize::OfBody { prompt, .. }
            if prompt.can_count(&request.call.model));
        let mut row = self.intent(request, prefixes, None);
        if can_count {
            let unlowered = row.bounds.map(|bounds| CallBounds { output: None, ..bounds });
            let row = NewCall { bounds: unlowered, ..row.clone() };
            match commit(&row) {
                Err(Error::Budget(_) | Error::BudgetHeld(_)) => {}
                result => return (row, result),
            }
        }
        if let PromptSize::OfBody { prompt, .. } = request.prompt
            && can_count
        {
            row = self.intent(request, prefixes, prompt.count(&request.call.model));
        }
        let result = commit(&row);
        (row, result)
    }

    /// Returns the row to commit before the call, with the maximum cost to reserve. `counted` is the
    /// number of the prompt's tokens, if it was counted.
    fn intent(&self, request: &CallRequest<'_>, prefixes: &[u64], counted: Option<u64>) -> NewCall {
        let (call, at) = (request.call, Timestamp::now());
        let (reserve, bounds) = match request.prompt {
            PromptSize::OfCall => (self.providers.reserve(call, at), None),
            PromptSize::OfBody { prompt, output, cache_writes, options, .. } => {
                let strict = prompt.size().tokens_max();
                let estimated = self.measures.estimate(call, prompt, prefixes, counted);
                let tokens = [strict, estimated];
                let [strict, estimated] =
                    self.providers.maxima(call, tokens, cache_writes, options, at);
                // A capped cost does not say how much each token costs.
                let is_capped = strict.whole.cost.is_some_and(|cost| cost >= COST_MAX);
                let output = output.filter(|_| !is_capped);
                // Free calls have no cost to bound.
                let is_unbounded = options.is_unbounded && strict.whole.cost.is_none();
                (strict.whole, Some(CallBounds { strict, estimated, output, is_unbounded }))
            }
        };
        NewCall { at, reserve, bounds, ..request.row.clone() }
    }

    /// Returns whether a call is being made or settled, which may free a held amount.
    pub fn is_any_in_flight(&self) -> bool {
        let state = self.in_flight.state();
        state.count > 0 || state.last_end.is_some_and(|end| end.elapsed() < SETTLED_WITHIN)
    }

    /// Waits until a client's call is settled, at most [`WATCH_INTERVAL`].
    pub fn wait_for_settlement(&self) {
        drop(self.in_flight.is_settled.wait_timeout(self.in_flight.state(), WATCH_INTERVAL));
    }

    /// Queues the settlement of a call without waiting. It is committed with the next intent, or
    /// after a few milliseconds.
    pub fn settle(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.settlements.settle(changes);
        }
        self.in_flight.is_settled.notify_all();
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

    /// Like [`Calls::commit`], and returns the id of the row if the last change writes one.
    ///
    /// # Errors
    /// Same as [`Journal::commit`].
    pub fn commit_row(&self, changes: Vec<Change>) -> Result<Option<i64>> {
        Ok(match self.settlements.commit_with(changes)? {
            Receipt::Call(row) => Some(row.id),
            _ => None,
        })
    }

    /// Commits the row of a refused call before its caller is notified, and returns its id. If the
    /// disk is full, the row is written once there is room.
    pub fn commit_refusal(&self, changes: Vec<Change>) -> Option<i64> {
        match self.commit_row(changes.clone()) {
            Ok(row) => row,
            Err(error) => {
                log::warn!("cannot write a refused call to the ledger, retrying: {error}");
                self.settle(changes);
                None
            }
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
fn over_budget(row: NewCall, error: Error, before: Vec<Change>) -> Ended {
    let (mut changes, why) = (before, error.to_string());
    changes.push(Change::RefuseCall(row, RefusedBy::Budget, why.clone()));
    let outcome = match error {
        Error::BudgetHeld(_) => CallOutcome::HeldBudget(why),
        _ => CallOutcome::OverBudget(why),
    };
    Ended { outcome, changes }
}
