//! The optimizer: proposes savings that follow from the user's own ledger, and measures what those that
//! were applied have brought.
//!
//! A thread of its own reads the rows that are new a moment after calls end, over a read-only
//! connection, and sums them up (`facts`). Flows of which something new is known are looked at by
//! `rules`; what they propose goes to the journal like everything else: committed, then told. `edit` is
//! how a flow is changed, `shape` what a graph alone tells. `trial` asks another model before a flow does.

pub mod call_stats;
pub mod edit;
mod model_catalog;
mod models;
mod rules;
mod saving;
mod savings_tracker;
pub mod shape;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound::{Excluded, Unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::call_stats::{CallStats, Target, window_start};
use self::model_catalog::ModelCatalog;
use self::models::Models;
use self::rules::RuleContext;
use self::savings_tracker::Measures;
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Status, Suggestion};
use crate::event::{CallStatus, FlowId, Seq, Timestamp, Usage, hex};
use crate::flow::Graph;
use crate::hub::{Message, Publish};
use crate::journal::Journal;
use crate::providers::{Cancel, Providers};
pub use crate::store::document_hash;
use crate::store::{CallRow, Change, FlowRecord, Store};
use crate::threads::{OnFatal, panic_message, vital};

/// It looks once nothing has happened for so long …
const QUIET: Duration = Duration::from_millis(500);
/// … or after so long where something always does.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// How often it looks again at all that is known, also where nothing happens: days pass, and prices
/// change.
const IDLE_MAX: Duration = Duration::from_millis(IDLE_MAX_MS.unsigned_abs());
/// How long it waits after what it could not read or write.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// How many flows are looked at in a pass; the rest comes with the next, after what is new.
const FLOWS_STEP: usize = 256;
/// How many rows are read at a time; between, it is looked whether the server ends.
const ROWS_STEP: usize = 5_000;
/// How many rows that were not settled are looked at again in a pass.
const PENDING_MAX: usize = 4_096;
/// How many of the newest runs of a flow are looked at for what a node asks and how long it takes.
const RUNS_MAX: usize = 20;
const IDLE_MAX_MS: i64 = 60 * 60 * 1000;

/// The optimizer, for those who change flows and who stop it.
#[derive(Clone)]
pub struct Optimizer {
    /// Holds one word at most: several changes are one reason to look.
    wake: Sender<()>,
    wanted: Arc<Mutex<Wanted>>,
    stopping: Cancel,
}

/// What somebody wants to be looked at.
#[derive(Default)]
pub struct Wanted {
    /// Flows that were changed.
    pub flows: BTreeSet<FlowId>,
    /// Whether something has changed that is about all flows.
    pub all: bool,
}

/// Tells the optimizer when calls have ended, and passes everything on.
pub struct ActivityPublisher {
    inner: Box<dyn Publish>,
    wake: Sender<()>,
    bustle: Arc<ActivityCounter>,
}

/// The two ends of what wakes an optimizer.
pub struct WakeSignal {
    wake: Sender<()>,
    woken: Receiver<()>,
    bustle: Arc<ActivityCounter>,
}

/// Whether calls have ended, for a thread that is woken by the first alone: to wake it by each would
/// cost every call more than the rest of what it does about it.
#[derive(Default)]
struct ActivityCounter {
    /// Raised with each.
    seen: AtomicU64,
    /// Whether the thread sleeps until there is something to do.
    is_idle: AtomicBool,
}

impl Default for WakeSignal {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self {
            wake,
            woken,
            bustle: Arc::default(),
        }
    }
}

impl WakeSignal {
    /// Passes events on to `inner`, and tells the optimizer of those of calls.
    pub fn watch(&self, inner: Box<dyn Publish>) -> ActivityPublisher {
        ActivityPublisher {
            inner,
            wake: self.wake.clone(),
            bustle: Arc::clone(&self.bustle),
        }
    }
}

impl Publish for ActivityPublisher {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        if messages
            .iter()
            .any(|message| message.type_name == "LEDGER_UPDATE")
        {
            // Before it is looked whether the thread is idle, as that looks in the other order.
            self.bustle.seen.fetch_add(1, Ordering::SeqCst);
            if self.bustle.is_idle.load(Ordering::SeqCst) {
                let _ = self.wake.try_send(());
            }
        }
        self.inner.publish(messages, oldest);
    }
}

impl Optimizer {
    /// Starts the optimizer's thread, which begins with the calls of the last 30 days.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub fn start(
        alarm: &WakeSignal,
        store: Arc<Store>,
        journal: Journal,
        providers: Arc<Providers>,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let optimizer = Self {
            wake: alarm.wake.clone(),
            wanted: Arc::default(),
            stopping: Cancel::new(),
        };
        let state = State {
            pass: Pass::new(store, providers, optimizer.stopping.clone()),
            journal,
            wanted: Arc::clone(&optimizer.wanted),
            bustle: Arc::clone(&alarm.bustle),
        };
        let woken = alarm.woken.clone();
        let thread = vital("optimizer", on_fatal, move || state.run(&woken))?;
        Ok((optimizer, thread))
    }

    /// Makes it look at a flow again, which was changed or removed. Does not wait for it.
    pub fn look(&self, flow_id: FlowId) {
        self.want(|wanted| {
            wanted.flows.insert(flow_id);
        });
    }

    /// Makes it look at all flows again, for all of which something has changed. Does not wait for it.
    pub fn look_at_all(&self) {
        self.want(|wanted| wanted.all = true);
    }

    fn want(&self, add: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut wanted);
        drop(wanted);
        let _ = self.wake.try_send(());
    }

    /// Ends it.
    pub fn shutdown(&self) {
        self.stopping.cancel();
        let _ = self.wake.try_send(());
    }
}

/// Owned by the optimizer's thread.
struct State {
    pass: Pass,
    journal: Journal,
    wanted: Arc<Mutex<Wanted>>,
    bustle: Arc<ActivityCounter>,
}

impl State {
    fn run(mut self, woken: &Receiver<()>) {
        let mut looked_at = 0;
        // At the start there is everything to look at.
        let mut due = Some(Ok(()));
        let mut pause = IDLE_MAX;
        while !self.pass.is_stopping() {
            match due
                .take()
                .unwrap_or_else(|| self.wait(woken, looked_at, pause))
            {
                Ok(()) => self.wait_for_quiet(woken),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            looked_at = self.bustle.seen.load(Ordering::SeqCst);
            if self.pass.is_stopping() {
                return;
            }
            let now = Timestamp::now();
            pause = match self.look(now) {
                Ok(()) => self.pass.rest(now),
                Err(error) => {
                    log::warn!("suggestions could not be brought up to date: {error}");
                    RETRY_PAUSE
                }
            };
        }
    }

    /// Waits for the first call that ends after those that were looked at, or whatever else is to be
    /// looked at, but no longer than `pause`.
    fn wait(
        &self,
        woken: &Receiver<()>,
        looked_at: u64,
        pause: Duration,
    ) -> Result<(), RecvTimeoutError> {
        self.bustle.is_idle.store(true, Ordering::SeqCst);
        let waited = match self.bustle.seen.load(Ordering::SeqCst) == looked_at {
            true => woken.recv_timeout(pause),
            // Nobody has woken it for these.
            false => Ok(()),
        };
        self.bustle.is_idle.store(false, Ordering::SeqCst);
        waited
    }

    fn wait_for_quiet(&self, woken: &Receiver<()>) {
        let began = Instant::now();
        while began.elapsed() < BUSY_MAX && !self.pass.is_stopping() {
            let seen = self.bustle.seen.load(Ordering::SeqCst);
            let was_woken = woken.recv_timeout(QUIET).is_ok();
            if !was_woken && self.bustle.seen.load(Ordering::SeqCst) == seen {
                return;
            }
        }
    }

    fn look(&mut self, now: Timestamp) -> Result<()> {
        let wanted = {
            let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *wanted)
        };
        self.pass.run(
            wanted,
            now,
            &mut |change| match self.journal.commit_one(change) {
                // Somebody was faster, who has said so: it is looked at again.
                Ok(_) | Err(Error::Conflict(_) | Error::NotFound(_)) => Ok(()),
                Err(error) => Err(error),
            },
        )
    }
}

/// What is known of calls, and how it is turned into what is to be written. Writes nothing itself.
pub struct Pass {
    store: Arc<Store>,
    providers: Arc<Providers>,
    known: Option<(CallStats, Measures)>,
    /// Flows of which it was not looked yet whether something was applied.
    changed: BTreeSet<FlowId>,
    /// Flows that are still to be looked at.
    left: BTreeSet<FlowId>,
    /// The last one that was, where others are still left.
    last_flow: FlowId,
    /// When it was decided last to look at all again; none where that is to be.
    reviewed_at: Option<Timestamp>,
    /// A hash of the prices of that time.
    prices: u64,
    listings: ModelCatalog,
    stopping: Cancel,
}

impl Pass {
    /// Nothing is known yet. Ends early once `stopping` is cancelled.
    pub fn new(store: Arc<Store>, providers: Arc<Providers>, stopping: Cancel) -> Self {
        Self {
            store,
            providers,
            known: None,
            changed: BTreeSet::new(),
            left: BTreeSet::new(),
            last_flow: 0,
            reviewed_at: None,
            prices: 0,
            listings: ModelCatalog::default(),
            stopping,
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// How long nothing is to be done unless something happens.
    pub fn rest(&self, now: Timestamp) -> Duration {
        if !self.left.is_empty() {
            return Duration::ZERO;
        }
        let due = self.reviewed_at.map_or(now.0, |at| at.0 + IDLE_MAX_MS);
        let ms = due.saturating_sub(now.0).clamp(0, IDLE_MAX_MS);
        Duration::from_millis(ms.unsigned_abs())
    }

    /// Providers that calls went to lately and that cannot be used: why not.
    pub fn not_usable(&self) -> Vec<String> {
        let targets = self.known.as_ref().map(|(facts, _)| facts.targets());
        let providers: BTreeSet<String> = targets
            .into_iter()
            .flatten()
            .map(|((provider, _), _)| provider)
            .collect();
        let checked = providers.iter().map(|name| self.providers.check(name));
        checked.filter_map(std::result::Result::err).collect()
    }

    /// Reads what is new, and has written what follows: about flows of which something new is known, or
    /// that are wanted, and about what was applied. What could not be read or written is tried again
    /// with the next pass.
    ///
    /// # Errors
    /// When the database cannot be read, and those of `write`.
    pub fn run(
        &mut self,
        wanted: Wanted,
        now: Timestamp,
        write: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<()> {
        self.changed.extend(wanted.flows);
        if wanted.all {
            self.reviewed_at = None;
        }
        // Calls that were summed up by other bounds cannot be priced by these.
        let bounds = self.providers.tier_bounds();
        let known = self.known.take();
        let mut known = match known.filter(|(facts, _)| facts.bounds() == bounds) {
            Some(known) => known,
            None => self.begin(bounds, now)?,
        };
        let done = self.go_on(&mut known, now, write);
        self.known = Some(known);
        done
    }

    /// Which models the providers serve that flows have used lately.
    fn ask_for_lists(&mut self, used: &BTreeMap<Target, u64>, now: Timestamp) {
        let (providers, stopping) = (&self.providers, &self.stopping);
        let names = used.keys().map(|(provider, _)| provider);
        let names = names.filter(|it| providers.has_list(it) && providers.check(it).is_ok());
        let names = names.cloned().collect();
        self.listings.refresh(&names, now, |provider| {
            providers.list_models(provider, stopping)
        });
    }

    fn begin(&mut self, bounds: Vec<u64>, now: Timestamp) -> Result<(CallStats, Measures)> {
        let after = self.store.last_call_before(window_start(now))?;
        let mut facts = CallStats::new(after, bounds);
        for change in self.store.changed_nodes(0)? {
            facts.forget(&change);
        }
        self.changed.extend(self.store.flows_with_suggestions()?);
        Ok((facts, Measures::default()))
    }

    fn go_on(
        &mut self,
        (facts, measures): &mut (CallStats, Measures),
        now: Timestamp,
        write: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<()> {
        // One that fails keeps no others from being looked at.
        let mut done = Ok(());
        for flow_id in std::mem::take(&mut self.changed) {
            if let Err(error) = self.follow_applied(measures, flow_id, now) {
                self.changed.insert(flow_id);
                done = done.and(Err(error));
            }
            self.left.insert(flow_id);
        }
        self.read(facts, measures, now)?;
        self.catch_up(facts, measures)?;
        let used = facts.targets();
        self.ask_for_lists(&used, now);
        let models = Models::new(&self.providers, &used, &self.listings, now);
        self.review(facts, &models, now)?;
        self.left.append(&mut facts.take_changed());
        let next = self.left.range((Excluded(self.last_flow), Unbounded));
        let others = self.left.range(..=self.last_flow);
        let flows: Vec<FlowId> = next.chain(others).take(FLOWS_STEP).copied().collect();
        for flow_id in flows {
            if self.is_stopping() {
                return Ok(());
            }
            let changes = or_nothing(flow_id, || self.changes(flow_id, facts, &models, now));
            let changes = changes.unwrap_or_else(|| Ok(Vec::new()));
            match changes.and_then(|changes| changes.into_iter().try_for_each(&mut *write)) {
                Ok(()) => {
                    self.left.remove(&flow_id);
                }
                Err(error) => done = done.and(Err(error)),
            }
            self.last_flow = flow_id;
        }
        if self.left.is_empty() {
            self.last_flow = 0;
        }
        for (id, realised) in measures.news(&self.store)? {
            write(Change::SetRealised { id, realised })?;
            measures.stored(id, realised);
        }
        done
    }

    /// Looks at all again from time to time, and where prices have changed: what is expected of 30 days
    /// changes with the days, also of flows that do not run.
    fn review(&mut self, facts: &CallStats, models: &Models, now: Timestamp) -> Result<()> {
        let mut hasher = DefaultHasher::new();
        for candidate in models.all() {
            (&candidate.target, candidate.quote.text()).hash(&mut hasher);
        }
        let prices = hasher.finish();
        let is_due = self.reviewed_at.is_none_or(|at| {
            let passed = now.0.saturating_sub(at.0);
            !(0..IDLE_MAX_MS).contains(&passed)
        });
        if is_due || prices != self.prices {
            self.left.extend(self.store.flows_with_suggestions()?);
            self.left.extend(facts.flows());
            self.reviewed_at = Some(now);
            self.prices = prices;
        }
        Ok(())
    }

    /// Calls from after a node was changed by a suggestion tell what it saves.
    fn follow_applied(
        &self,
        measures: &mut Measures,
        flow_id: FlowId,
        now: Timestamp,
    ) -> Result<()> {
        let mut applied = Vec::new();
        for suggestion in self.store.suggestions_of(flow_id)? {
            if suggestion.status == Status::Applied {
                let edit = self.store.applied_edit(suggestion.id)?;
                applied.push((suggestion, edit));
            }
        }
        measures.follow(&self.store, flow_id, &applied, now)
    }

    fn read(&self, facts: &mut CallStats, measures: &mut Measures, now: Timestamp) -> Result<()> {
        let price = |provider: &str, model: &str, usage: &Usage, at| {
            self.providers.cost_of(provider, model, usage, at)
        };
        let mut take = |facts: &mut CallStats, row: &CallRow<'_>| {
            facts.take(row);
            if row.status != CallStatus::Pending {
                measures.take(row, &price);
            }
        };
        // No row that comes after a change is taken before the change is known: to forget what was before
        // it would forget such a row as well.
        let last = self.store.last_call()?;
        for change in self.store.changed_nodes(facts.cursor())? {
            facts.forget(&change);
        }
        for id in facts.pending().into_iter().take(PENDING_MAX) {
            self.store.fact(id, |row| take(facts, row))?;
        }
        while facts.cursor() < last && !self.is_stopping() {
            let read = self.store.facts_after(facts.cursor(), ROWS_STEP, |row| {
                if row.id <= last {
                    take(facts, row);
                }
            })?;
            if read.is_none() {
                break;
            }
        }
        facts.expire(now);
        Ok(())
    }

    /// Shows those that were applied lately, or all when the server starts, the rows that they missed.
    fn catch_up(&self, facts: &CallStats, measures: &mut Measures) -> Result<()> {
        let price = |provider: &str, model: &str, usage: &Usage, at| {
            self.providers.cost_of(provider, model, usage, at)
        };
        let Some(mut after) = measures.missing_after() else {
            return Ok(());
        };
        measures.begin_to_catch_up();
        // What is pending comes by itself when it is settled.
        let last = facts.cursor();
        while after < last {
            if self.is_stopping() {
                return Ok(());
            }
            let read = self.store.facts_after(after, ROWS_STEP, |row| {
                if row.id <= last && !facts.is_pending(row.id) {
                    measures.catch_up(row, &price);
                }
            })?;
            match read {
                Some(read) => after = read,
                None => break,
            }
        }
        measures.caught_up();
        Ok(())
    }

    /// What is to be written about the suggestions of a flow.
    fn changes(
        &self,
        flow_id: FlowId,
        facts: &mut CallStats,
        models: &Models,
        now: Timestamp,
    ) -> Result<Vec<Change>> {
        let stored = self.store.suggestions_of(flow_id)?;
        let flow = match self.store.flow(flow_id) {
            Ok(flow) => Some(flow),
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        // After the flow was read, so that nothing is known of it that its nodes no longer ask.
        for change in self.store.changed_nodes_of(flow_id)? {
            facts.forget(&change);
        }
        let proposals = match &flow {
            Some(flow) => self.propose(flow, &stored, facts, models, now)?,
            None => {
                facts.forget_changes(flow_id);
                Vec::new()
            }
        };
        let is_proposed = |open: &Suggestion| {
            let key = open.proposal.key();
            proposals.iter().any(|proposal| proposal.key() == key)
        };
        let mut changes: Vec<Change> = stored
            .iter()
            .filter(|it| it.status == Status::Open && !is_proposed(it))
            .map(|it| Change::CloseSuggestion {
                id: it.id,
                status: Status::Withdrawn,
                at: now,
            })
            .collect();
        let name = flow.map(|flow| flow.name).unwrap_or_default();
        for proposal in proposals {
            if is_to_be_told(&stored, &proposal) {
                changes.push(Change::Propose {
                    flow_id,
                    flow_name: name.clone(),
                    proposal: Box::new(proposal),
                    at: now,
                });
            }
        }
        Ok(changes)
    }

    fn propose(
        &self,
        flow: &FlowRecord,
        stored: &[Suggestion],
        facts: &CallStats,
        models: &Models,
        now: Timestamp,
    ) -> Result<Vec<Proposal>> {
        let document: Value = serde_json::from_str(&flow.document)
            .map_err(|error| Error::internal(format!("flow {}: {error}", flow.id)))?;
        let parse = |document: &Value| {
            Graph::parse(&document["data"], &|provider| {
                self.providers.knows(provider)
            })
        };
        // One that cannot run is not made better by a suggestion.
        let Ok(graph) = parse(&document) else {
            return Ok(Vec::new());
        };
        let asked_bytes = |node_id: &str| {
            let asked = self.store.asked_bytes(flow.id, node_id, RUNS_MAX);
            or_unknown(node_id, asked)
        };
        let node_ms = |node_id: &str| {
            let took = self.store.node_ms(flow.id, node_id, RUNS_MAX);
            or_unknown(node_id, took)
        };
        let was_begun_before = |node_id: &str| {
            let start = window_start(now);
            let begun = self
                .store
                .was_begun_before(flow.id, node_id, start, RUNS_MAX);
            or_unknown(node_id, begun)
        };
        let budgets = self.store.bare_budgets()?;
        let mut proposals = rules::propose(&RuleContext {
            flow_id: flow.id,
            document: &document,
            document_hash: &document_hash(&flow.document),
            graph: &graph,
            facts,
            models,
            providers: &self.providers,
            asked_bytes: &asked_bytes,
            node_ms: &node_ms,
            was_begun_before: &was_begun_before,
            stored,
            budgets: &budgets,
            total_timeout: self.providers.total_timeout(),
            now,
        });
        // Whatever a rule says, nothing is proposed that could not be saved.
        proposals.retain(|proposal| {
            changed_document(&document, &proposal.edit).is_ok_and(|after| parse(&after).is_ok())
        });
        Ok(proposals)
    }
}

/// What was read about a node, and else that it is not known.
fn or_unknown<T: Default>(node_id: &str, read: Result<T>) -> T {
    read.unwrap_or_else(|error| {
        log::warn!("what node {node_id} did cannot be read: {error}");
        T::default()
    })
}

/// What `look` gives; nothing where it panics, which is told. A flow that a rule cannot cope with stays
/// as it is, and the others are looked at all the same.
fn or_nothing<T>(flow_id: FlowId, look: impl FnOnce() -> T) -> Option<T> {
    let looked = catch_unwind(AssertUnwindSafe(look));
    looked
        .inspect_err(|panic| {
            let message = panic_message(panic.as_ref());
            log::error!("flow {flow_id} was not looked at for savings: {message}");
        })
        .ok()
}

/// Whether the journal is to hear of a proposal at all: it decides again, but need not be asked where
/// nothing changes.
fn is_to_be_told(stored: &[Suggestion], proposal: &Proposal) -> bool {
    let key = proposal.key();
    // The newest first.
    let mut same = stored
        .iter()
        .filter(|it| it.status != Status::Withdrawn && it.proposal.key() == key);
    match same.next() {
        Some(open) if open.status == Status::Open => open.proposal != *proposal,
        Some(applied) if applied.status == Status::Applied => true,
        Some(old) => proposal.is_news_after(&old.proposal),
        None => true,
    }
}

/// What a suggestion proposes, or the same with the change of that name.
///
/// # Errors
/// [`Error::Invalid`] where there is no such change.
pub fn chosen(proposal: &Proposal, name: Option<&str>) -> Result<Proposal> {
    let Some(name) = name else {
        return Ok(proposal.clone());
    };
    proposal.with(name).ok_or_else(|| {
        let others = proposal.alternatives.iter().map(|it| it.name.clone());
        let names: Vec<String> = proposal.name().into_iter().chain(others).collect();
        let fault = format!("`{name}` is none of its changes: {}", names.join(", "));
        Error::invalid("there is no such change", "alternative", fault)
    })
}

/// What tells the change that a proposal puts forward from any other: what it sets, in which document.
pub fn version(proposal: &Proposal) -> String {
    let change = format!("{}\n{}", proposal.document, proposal.edit);
    hex(&Sha256::digest(change))
}

/// A flow's document, changed as a suggestion says.
///
/// # Errors
/// [`Error::Conflict`] where what it changes is not there any more.
pub fn changed_document(document: &Value, edit: &Value) -> Result<Value> {
    let edit: edit::Edit = serde_json::from_value(edit.clone())
        .map_err(|error| Error::internal(format!("an edit cannot be read: {error}")))?;
    edit::apply(document, &edit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_a_rule_panics_at_is_left_out() {
        assert_eq!(or_nothing(7, || 1), Some(1));
        assert_eq!(or_nothing::<u8>(7, || panic!("a rule went wrong")), None);
    }
}
