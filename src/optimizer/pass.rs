//! A pass: reads new rows, applies the rules to flows with new sums, and returns the changes to
//! commit. Writes nothing itself.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::call_stats::{CallStats, window_start};
use super::model_catalog::ModelCatalog;
use super::models::Models;
use super::read_document;
use super::rules::{self, RuleContext};
use super::savings_tracker::SavingsTracker;
use crate::error::{Error, Result};
use crate::event::Usage;
use crate::event::suggestion::{Proposal, Status, Suggestion};
use crate::flow::Graph;
use crate::ids::FlowId;
use crate::providers::{Cancel, Providers};
use crate::store::{CallRow, Change, FlowRecord, Store, document_hash};
use crate::threads::panic_message;
use crate::time::Timestamp;

/// Interval of reviews of all flows without new calls: days pass, and prices change.
const IDLE_MAX_MS: i64 = 60 * 60 * 1000;
/// Rows are read in steps of this size, so that a shutdown need not wait.
const ROWS_STEP: usize = 5_000;

#[derive(Default)]
pub struct Wanted {
    pub flows: BTreeSet<FlowId>,
    /// True if a change affects all flows.
    pub all: bool,
}

/// The sums, and the remaining work of earlier passes.
pub struct Pass {
    store: Arc<Store>,
    providers: Arc<Providers>,
    totals: Option<Totals>,
    /// Flows that wait for a review.
    flows_to_review: BTreeSet<FlowId>,
    /// Time of the last review of all flows; none requests a new one.
    reviewed_at: Option<Timestamp>,
    /// A hash of the prices at the last review.
    prices: u64,
    catalog: ModelCatalog,
    stopping: Cancel,
}

struct Totals {
    calls: CallStats,
    savings: SavingsTracker,
}

type Write<'a> = &'a mut dyn FnMut(Change) -> Result<()>;

impl Pass {
    /// Starts with no sums. A pass ends early once `stopping` is cancelled.
    pub fn new(store: Arc<Store>, providers: Arc<Providers>, stopping: Cancel) -> Self {
        Self {
            store,
            providers,
            totals: None,
            flows_to_review: BTreeSet::new(),
            reviewed_at: None,
            prices: 0,
            catalog: ModelCatalog::default(),
            stopping,
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Returns the time until the next pass if nothing happens.
    pub fn rest(&self, now: Timestamp) -> Duration {
        if !self.flows_to_review.is_empty() {
            return Duration::ZERO;
        }
        let due = self.reviewed_at.map_or(now.0, |at| at.0 + IDLE_MAX_MS);
        let ms = due.saturating_sub(now.0).clamp(0, IDLE_MAX_MS);
        Duration::from_millis(ms.unsigned_abs())
    }

    /// Returns the reasons why providers of recent calls cannot be used.
    pub fn not_usable(&self) -> Vec<String> {
        let targets = self.totals.iter().flat_map(|it| it.calls.targets());
        let names: BTreeSet<String> = targets.map(|(target, _)| target.provider).collect();
        let checked = names.iter().map(|name| self.providers.check(name));
        checked.filter_map(std::result::Result::err).collect()
    }

    /// Reads new rows and writes the resulting changes: of requested flows, of flows with new sums,
    /// and of applied suggestions. The next pass repeats failed work.
    ///
    /// # Errors
    /// Read errors of the database, and errors of `write`.
    pub fn run(&mut self, requested: Wanted, now: Timestamp, write: Write<'_>) -> Result<()> {
        self.flows_to_review.extend(requested.flows);
        if requested.all {
            self.reviewed_at = None;
        }
        // Sums with other length classes do not match these prices.
        let bounds = self.providers.tier_bounds();
        let totals = self.totals.take();
        let mut totals = match totals.filter(|it| it.calls.bounds == bounds) {
            Some(totals) => totals,
            None => self.start(bounds, now)?,
        };
        let done = self.advance(&mut totals, now, write);
        self.totals = Some(totals);
        done
    }

    /// Starts at the first row of the window, or after the first application of a suggestion.
    fn start(&self, bounds: Vec<u64>, now: Timestamp) -> Result<Totals> {
        let mut savings = SavingsTracker::default();
        savings.update(&self.store, now)?;
        let window = self.store.last_call_before(window_start(now))?;
        let after = savings.first_call().map_or(window, |first| first.min(window));
        let mut calls = CallStats::new(after, bounds);
        for change in self.store.changed_nodes(0)? {
            calls.forget(&change);
        }
        Ok(Totals { calls, savings })
    }

    fn advance(&mut self, totals: &mut Totals, now: Timestamp, write: Write<'_>) -> Result<()> {
        let Totals { calls, savings } = totals;
        self.read_new_rows(calls, savings, now)?;
        if self.is_stopping() {
            return Ok(());
        }
        let used = calls.targets();
        let providers = Arc::clone(&self.providers);
        let names = used.keys().map(|target| target.provider.as_str());
        let names = names.filter(|it| providers.has_list(it) && providers.check(it).is_ok());
        self.catalog.refresh(&names.collect(), now, |provider| {
            providers.list_models(provider, &self.stopping)
        });
        let models = Models::new(&providers, &used, &self.catalog, now);
        self.review(calls, &models, now)?;
        self.flows_to_review.append(&mut calls.changed_flows);
        // A flow that fails does not affect the others.
        let mut done = Ok(());
        for flow_id in self.flows_to_review.clone() {
            if self.is_stopping() {
                return Ok(());
            }
            let changes = catch_panic(flow_id, || self.changes(flow_id, calls, &models, now));
            let changes = changes.unwrap_or_else(|| Ok(Vec::new()));
            match changes.and_then(|changes| changes.into_iter().try_for_each(&mut *write)) {
                Ok(()) => drop(self.flows_to_review.remove(&flow_id)),
                Err(error) => done = done.and(Err(error)),
            }
        }
        for (id, realised) in savings.unsaved(&self.store)? {
            write(Change::SetRealised { id, realised })?;
            savings.mark_saved(id, realised);
        }
        done
    }

    /// Requests a review of all flows from time to time, and after price changes: the savings of 30
    /// days change daily, even for flows that do not run.
    fn review(&mut self, calls: &CallStats, models: &Models<'_>, now: Timestamp) -> Result<()> {
        let mut hasher = DefaultHasher::new();
        for candidate in &models.candidates {
            (&candidate.target, candidate.quote.text()).hash(&mut hasher);
        }
        let prices = hasher.finish();
        let age_ms = self.reviewed_at.map(|at| now.0.saturating_sub(at.0));
        let is_due = !age_ms.is_some_and(|age_ms| (0..IDLE_MAX_MS).contains(&age_ms));
        if is_due || prices != self.prices {
            self.flows_to_review.extend(self.store.flows_with_suggestions()?);
            self.flows_to_review.extend(calls.flows());
            self.reviewed_at = Some(now);
            self.prices = prices;
        }
        Ok(())
    }

    fn read_new_rows(
        &self,
        calls: &mut CallStats,
        savings: &mut SavingsTracker,
        now: Timestamp,
    ) -> Result<()> {
        // Read first, because suggestions applied later affect only later rows.
        let last = self.store.last_call()?;
        savings.update(&self.store, now)?;
        // Applied before the rows that follow the changes: forgetting removes all known calls.
        for change in self.store.changed_nodes(calls.cursor)? {
            calls.forget(&change);
        }
        calls.expire(now);
        let mut after = calls.cursor;
        let pending = calls.pending.clone();
        let mut take = |row: &CallRow<'_>| {
            calls.take(row);
            savings.take(row, &|provider, model, usage: &Usage, at| {
                self.providers.cost_of(provider, model, usage, at)
            });
        };
        for id in pending {
            self.store.call(id, &mut take)?;
        }
        while after < last && !self.is_stopping() {
            match self.store.calls_after(after, last, ROWS_STEP, &mut take)? {
                Some(read) => after = read,
                None => break,
            }
        }
        Ok(())
    }

    /// Returns the changes of a flow's suggestions.
    fn changes(
        &self,
        flow_id: FlowId,
        calls: &mut CallStats,
        models: &Models<'_>,
        now: Timestamp,
    ) -> Result<Vec<Change>> {
        let stored = self.store.suggestions_of(flow_id)?;
        let flow = match self.store.flow(flow_id) {
            Ok(flow) => Some(flow),
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        // Read after the flow, so that its sums exclude calls from before its latest change.
        for change in self.store.changed_nodes_of(flow_id)? {
            calls.forget(&change);
        }
        let Some(flow) = flow else {
            calls.forget_changes(flow_id);
            return Ok(withdrawals(&stored, &[], now).collect());
        };
        let mut proposals = self.propose(&flow, &stored, calls, models, now)?;
        let mut changes: Vec<Change> = withdrawals(&stored, &proposals, now).collect();
        proposals.retain(|proposal| needs_commit(&stored, proposal));
        changes.extend(proposals.into_iter().map(|proposal| Change::Propose {
            flow_id,
            flow_name: flow.name.clone(),
            proposal: Box::new(proposal),
            at: now,
        }));
        Ok(changes)
    }

    fn propose(
        &self,
        flow: &FlowRecord,
        stored: &[Suggestion],
        calls: &CallStats,
        models: &Models<'_>,
        now: Timestamp,
    ) -> Result<Vec<Proposal>> {
        let document = read_document(&flow.document)?;
        let knows = |provider: &str| self.providers.knows(provider);
        // Skip flows that cannot run: a suggestion does not help them.
        let Ok(graph) = Graph::parse(&document["data"], &knows) else {
            return Ok(Vec::new());
        };
        let budgets = self.store.bare_budgets()?;
        Ok(rules::propose(&RuleContext {
            flow_id: flow.id,
            document: &document,
            document_hash: &document_hash(&flow.document),
            graph: &graph,
            calls,
            models,
            providers: &self.providers,
            store: &self.store,
            stored,
            budgets: &budgets,
            now,
        }))
    }
}

/// Closes open suggestions that no proposal supports any more.
fn withdrawals(
    stored: &[Suggestion],
    proposals: &[Proposal],
    at: Timestamp,
) -> impl Iterator<Item = Change> {
    let keys: BTreeSet<String> = proposals.iter().map(Proposal::key).collect();
    let open = stored.iter().filter(|it| it.status == Status::Open);
    let gone = open.filter(move |it| !keys.contains(&it.proposal.key()));
    gone.map(move |it| Change::CloseSuggestion { id: it.id, status: Status::Withdrawn, at })
}

/// Returns the result of `review_flow`, or none if it panics: a flow that breaks a rule does not
/// affect the others.
fn catch_panic<T>(flow_id: FlowId, review_flow: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(review_flow));
    result
        .inspect_err(|panic| {
            let message = panic_message(panic.as_ref());
            log::error!("cannot review flow {flow_id} for savings: {message}");
        })
        .ok()
}

/// Returns whether a proposal needs a commit. The journal checks again, but is not called if
/// nothing changes.
fn needs_commit(stored: &[Suggestion], proposal: &Proposal) -> bool {
    let key = proposal.key();
    // Newest first.
    let mut same =
        stored.iter().filter(|it| it.status != Status::Withdrawn && it.proposal.key() == key);
    same.next().is_none_or(|it| match it.status {
        Status::Open => it.proposal != *proposal,
        Status::Applied => true,
        _ => proposal.supersedes(&it.proposal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_skipped_if_a_rule_panics() {
        assert_eq!(catch_panic(7, || 1), Some(1));
        assert_eq!(catch_panic::<u8>(7, || panic!("a rule went wrong")), None);
    }
}
