//! The optimizer: proposes savings that follow from the user's own ledger, and measures what those that
//! were applied have brought.
//!
//! A thread of its own reads the rows that are new a moment after calls end, over a read-only
//! connection, and sums them up (`facts`). Flows of which something new is known are looked at by
//! `rules`; what they propose goes to the journal like everything else: committed, then told. `edit` is
//! how a flow is changed, `shape` what a graph alone tells. `trial` asks another model before a flow does.

pub mod edit;
pub mod facts;
mod listings;
mod models;
mod realised;
mod rules;
mod saving;
pub mod shape;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::facts::{Facts, Forget, Target, window_start};
use self::listings::Listings;
use self::models::Models;
use self::realised::Measures;
use self::rules::Look;
use crate::error::{Error, Result};
use crate::event::suggestion::{Kind, Proposal, Status, Suggestion};
use crate::event::{CallStatus, FlowId, Seq, Timestamp, Usage, hex};
use crate::flow::Graph;
use crate::gateway::{Cancel, Gateway};
use crate::hub::{Message, Publish};
use crate::journal::Journal;
use crate::store::{CallFact, Change, FlowRecord, Store};
use crate::threads::{OnFatal, panic_message, vital};

/// It looks once nothing has happened for so long …
const QUIET: Duration = Duration::from_millis(500);
/// … or after so long where something always does.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// How often it looks where nothing happens: days pass, and prices change.
const IDLE_MAX: Duration = Duration::from_secs(60 * 60);
/// How many rows are read at a time; between, it is looked whether the server ends.
const ROWS_STEP: usize = 5_000;
/// How many rows that were not settled are looked at again in a pass.
const PENDING_MAX: usize = 4_096;
/// How many of the newest runs of a flow are looked at for what a node asks and how long it takes.
const RUNS_MAX: usize = 20;

/// The optimizer, for those who change flows and who stop it.
#[derive(Clone)]
pub struct Optimizer {
    /// Holds one word at most: several changes are one reason to look.
    wake: Sender<()>,
    /// Flows that were changed.
    changed: Arc<Mutex<BTreeSet<FlowId>>>,
    stopping: Cancel,
}

/// Wakes the optimizer when calls have ended, and passes everything on.
pub struct Watched {
    inner: Box<dyn Publish>,
    wake: Sender<()>,
}

/// The two ends of what wakes an optimizer.
pub struct Alarm {
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl Default for Alarm {
    fn default() -> Self {
        let (wake, woken) = bounded(1);
        Self { wake, woken }
    }
}

impl Alarm {
    /// Passes events on to `inner`, and wakes the optimizer with those of calls.
    pub fn watch(&self, inner: Box<dyn Publish>) -> Watched {
        Watched {
            inner,
            wake: self.wake.clone(),
        }
    }
}

impl Publish for Watched {
    fn publish(&self, messages: Vec<Message>, oldest: Option<Seq>) {
        if messages
            .iter()
            .any(|message| message.type_name == "LEDGER_UPDATE")
        {
            let _ = self.wake.try_send(());
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
        alarm: &Alarm,
        store: Arc<Store>,
        journal: Journal,
        gateway: Arc<Gateway>,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let optimizer = Self {
            wake: alarm.wake.clone(),
            changed: Arc::default(),
            stopping: Cancel::new(),
        };
        let state = State {
            pass: Pass::new(store, gateway, optimizer.stopping.clone()),
            journal,
            changed: Arc::clone(&optimizer.changed),
        };
        let woken = alarm.woken.clone();
        let thread = vital("optimizer", on_fatal, move || state.run(&woken))?;
        Ok((optimizer, thread))
    }

    /// Makes it look at a flow again, which was changed or removed. Does not wait for it.
    pub fn look(&self, flow_id: FlowId) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.insert(flow_id);
        drop(changed);
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
    changed: Arc<Mutex<BTreeSet<FlowId>>>,
}

impl State {
    fn run(mut self, woken: &Receiver<()>) {
        // At the start there is everything to look at.
        let mut due = Some(Ok(()));
        while !self.pass.is_stopping() {
            match due.take().unwrap_or_else(|| woken.recv_timeout(IDLE_MAX)) {
                Ok(()) => self.wait_for_quiet(woken),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.pass.is_stopping() {
                return;
            }
            let changed = {
                let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *changed)
            };
            if let Err(error) = self.look(changed, Timestamp::now()) {
                log::warn!("suggestions could not be brought up to date: {error}");
            }
        }
    }

    fn wait_for_quiet(&self, woken: &Receiver<()>) {
        let began = Instant::now();
        while began.elapsed() < BUSY_MAX && !self.pass.is_stopping() {
            if woken.recv_timeout(QUIET).is_err() {
                return;
            }
        }
    }

    fn look(&mut self, changed: BTreeSet<FlowId>, now: Timestamp) -> Result<()> {
        for change in self.pass.run(changed, now)? {
            match self.journal.commit_one(change) {
                // Somebody was faster; it is looked at again with the next rows.
                Ok(_) | Err(Error::Conflict(_) | Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What is known of calls, and how it is turned into what is to be written. Writes nothing itself.
pub struct Pass {
    store: Arc<Store>,
    gateway: Arc<Gateway>,
    known: Option<(Facts, Measures)>,
    listings: Listings,
    stopping: Cancel,
}

impl Pass {
    /// Nothing is known yet. Ends early once `stopping` is cancelled.
    pub fn new(store: Arc<Store>, gateway: Arc<Gateway>, stopping: Cancel) -> Self {
        Self {
            store,
            gateway,
            known: None,
            listings: Listings::default(),
            stopping,
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Reads what is new, and gives what is to be written: about each flow of which something new is
    /// known, or that is in `changed`, and about what was applied.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn run(&mut self, changed: BTreeSet<FlowId>, now: Timestamp) -> Result<Vec<Change>> {
        let (mut facts, mut measures) = match self.known.take() {
            Some(known) => known,
            None => self.begin(now)?,
        };
        for flow_id in &changed {
            self.follow_applied(&mut facts, &mut measures, *flow_id, now)?;
        }
        let read = self.read(&mut facts, &mut measures, now);
        self.catch_up(&facts, &mut measures)?;
        let mut flows = facts.take_changed();
        flows.extend(changed);
        let used = facts.targets();
        if !flows.is_empty() {
            self.ask_for_lists(&used, now);
        }
        let models = Models::new(&self.gateway, &used, &self.listings, now);
        let mut all = Vec::new();
        for flow_id in flows {
            if self.is_stopping() {
                break;
            }
            let changes = or_nothing(flow_id, || self.changes(flow_id, &facts, &models, now));
            all.extend(changes.transpose()?.into_iter().flatten());
        }
        if !self.is_stopping() {
            all.extend(measures.changes(&self.store)?);
        }
        self.known = Some((facts, measures));
        read.map(|()| all)
    }

    /// Which models the providers serve that flows have used lately.
    fn ask_for_lists(&mut self, used: &BTreeMap<Target, u64>, now: Timestamp) {
        let (gateway, stopping) = (&self.gateway, &self.stopping);
        let providers = used.keys().map(|(provider, _)| provider);
        let providers = providers.filter(|it| gateway.has_list(it) && gateway.check(it).is_ok());
        let providers = providers.cloned().collect();
        self.listings.refresh(&providers, now, |provider| {
            gateway.list_models(provider, stopping)
        });
    }

    fn begin(&self, now: Timestamp) -> Result<(Facts, Measures)> {
        let after = self.store.last_call_before(window_start(now))?;
        let mut facts = Facts::new(after, self.gateway.tier_bounds());
        let mut measures = Measures::default();
        for flow_id in self.store.flows_with_suggestions()? {
            self.follow_applied(&mut facts, &mut measures, flow_id, now)?;
            facts.touch(flow_id);
        }
        Ok((facts, measures))
    }

    /// Calls from before a node was changed by a suggestion say nothing any more about what that changed,
    /// and those from after it tell what it saves.
    fn follow_applied(
        &self,
        facts: &mut Facts,
        measures: &mut Measures,
        flow_id: FlowId,
        now: Timestamp,
    ) -> Result<()> {
        let mut applied = Vec::new();
        for suggestion in self.store.suggestions_of(flow_id)? {
            if let Some(at) = suggestion.applied_at {
                let edit = self.store.applied_edit(suggestion.id)?;
                if let Some(what) = outdated_by(suggestion.proposal.kind) {
                    let node_id = &suggestion.proposal.node_id;
                    facts.forget(flow_id, node_id, what, edit.last_call, at);
                }
                applied.push((suggestion, edit));
            }
        }
        measures.follow(&self.store, flow_id, &applied, now)
    }

    fn read(&self, facts: &mut Facts, measures: &mut Measures, now: Timestamp) -> Result<()> {
        let price = |provider: &str, model: &str, usage: &Usage, at| {
            self.gateway.cost_of(provider, model, usage, at)
        };
        let mut take = |facts: &mut Facts, row: &CallFact<'_>| {
            facts.take(row);
            if row.status != CallStatus::Pending {
                measures.take(row, &price);
            }
        };
        for id in facts.pending().into_iter().take(PENDING_MAX) {
            self.store.fact(id, |row| take(facts, row))?;
        }
        loop {
            let read = self
                .store
                .facts_after(facts.cursor(), ROWS_STEP, |row| take(facts, row))?;
            if read.is_none() || self.is_stopping() {
                break;
            }
        }
        facts.expire(now);
        Ok(())
    }

    /// Shows those that were applied lately, or all when the server starts, the rows that they missed.
    fn catch_up(&self, facts: &Facts, measures: &mut Measures) -> Result<()> {
        let price = |provider: &str, model: &str, usage: &Usage, at| {
            self.gateway.cost_of(provider, model, usage, at)
        };
        let Some(mut after) = measures.missing_after() else {
            return Ok(());
        };
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
        facts: &Facts,
        models: &Models,
        now: Timestamp,
    ) -> Result<Vec<Change>> {
        let stored = self.store.suggestions_of(flow_id)?;
        let flow = match self.store.flow(flow_id) {
            Ok(flow) => Some(flow),
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let proposals = match &flow {
            Some(flow) => self.propose(flow, &stored, facts, models, now)?,
            None => Vec::new(),
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
        facts: &Facts,
        models: &Models,
        now: Timestamp,
    ) -> Result<Vec<Proposal>> {
        let document: Value = serde_json::from_str(&flow.document)
            .map_err(|error| Error::internal(format!("flow {}: {error}", flow.id)))?;
        let parse = |document: &Value| {
            Graph::parse(&document["data"], &|provider| self.gateway.knows(provider))
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
        let mut proposals = rules::propose(&Look {
            flow_id: flow.id,
            document: &document,
            document_hash: &document_hash(&flow.document),
            graph: &graph,
            facts,
            models,
            gateway: &self.gateway,
            asked_bytes: &asked_bytes,
            node_ms: &node_ms,
            was_begun_before: &was_begun_before,
            stored,
            budgets: &budgets,
            total_timeout: self.gateway.total_timeout(),
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

/// What calls of before say nothing about any more once a suggestion was applied: neither what other
/// models would have cost nor what is asked is changed by all of them.
fn outdated_by(kind: Kind) -> Option<Forget> {
    match kind {
        Kind::ModelSwitch | Kind::PromptCache | Kind::DeadNode => Some(Forget::All),
        Kind::Cache => Some(Forget::Repeated),
        Kind::RetryWaste => Some(Forget::Failures),
        Kind::MaxTokens | Kind::Parallel => None,
    }
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

/// SHA-256 of a flow's document as it is stored, in hexadecimal.
pub fn document_hash(document: &str) -> String {
    hex(&Sha256::digest(document))
}

/// The change that a suggestion puts forward, or the alternative of that name.
///
/// # Errors
/// [`Error::Invalid`] where there is no such alternative.
pub fn chosen_edit<'a>(proposal: &'a Proposal, alternative: Option<&str>) -> Result<&'a Value> {
    let Some(name) = alternative else {
        return Ok(&proposal.edit);
    };
    let all = &proposal.alternatives;
    let found = all.iter().find(|alternative| alternative.name == name);
    found.map(|alternative| &alternative.edit).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
        let fault = format!("`{name}` is none of its alternatives: {}", names.join(", "));
        Error::invalid("there is no such change", "alternative", fault)
    })
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
