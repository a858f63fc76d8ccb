//! The rules that propose savings for a flow, one file for each kind.

mod cache;
mod dead_node;
mod max_tokens;
mod model_switch;
mod parallel;
mod prompt_cache;
mod retry_waste;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::call_stats::{CallStats, NodeCalls, window_start};
use super::changed_document;
use super::edit::Edit;
use super::models::Models;
use super::saving::{DailySpend, MS_PER_DAY, days_between, per_30_days};
use super::shape;
use crate::budget::Budget;
use crate::error::Result;
use crate::event::suggestion::{Kind, Proposal, Saving, Status, Suggestion};
use crate::flow::{Agent, Concern, Graph, Node, NodeKind, canonical_json, name_of};
use crate::ids::{FlowId, hex};
use crate::money::Usd;
use crate::providers::Providers;
use crate::store::Store;
use crate::time::Timestamp;

/// The minimum number of calls for a proposal.
const CALLS_MIN: u64 = 10;
/// The minimum saving in 30 days for a proposal.
const SAVING_MIN: Usd = Usd::from_nanousd(100_000_000);
/// An open suggestion is withdrawn only below this percentage of the threshold. Otherwise it would
/// come and go near the threshold.
const KEEP_PERCENT: u64 = 70;
/// A saving from a shorter observation is marked as a rough estimate.
const RELIABLE_DAYS: f64 = 3.0;
/// Number of a flow's newest runs that the rules use.
const RUNS_MAX: usize = 20;

/// The input of a rule.
pub struct RuleContext<'a> {
    pub flow_id: FlowId,
    pub document: &'a Value,
    /// SHA-256 of the stored document, in hexadecimal.
    pub document_hash: &'a str,
    pub graph: &'a Graph,
    pub calls: &'a CallStats,
    pub models: &'a Models<'a>,
    pub providers: &'a Providers,
    pub store: &'a Store,
    pub stored: &'a [Suggestion],
    pub budgets: &'a [Budget],
    pub now: Timestamp,
}

/// Returns all proposals for the current flow.
pub fn propose(context: &RuleContext<'_>) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    let unused = shape::unused(context.graph);
    for node in context.graph.nodes() {
        if unused.contains(&node.id) {
            // Other proposals for an unused node are pointless.
            proposals.extend(dead_node::propose(context, node));
            continue;
        }
        if let Some(agent) = agent(node) {
            proposals.extend(model_switch::propose(context, node, agent));
            proposals.extend(cache::propose(context, node, agent));
            proposals.extend(prompt_cache::propose(context, node, agent));
            proposals.extend(retry_waste::propose(context, node, agent));
            proposals.extend(max_tokens::propose(context, node, agent));
        }
    }
    let node = |id: &str| context.graph.nodes().iter().find(|node| node.id == id);
    for (first, second) in shape::independent(context.graph) {
        if let (Some(first), Some(second)) = (node(&first), node(&second)) {
            proposals.extend(parallel::propose(context, first, second));
        }
    }
    // Checks all rules: only changes that can be saved are proposed.
    let knows = |provider: &str| context.providers.knows(provider);
    proposals.retain(|proposal| {
        let changed = changed_document(context.document, &proposal.edit);
        changed.is_ok_and(|after| Graph::parse(&after["data"], &knows).is_ok())
    });
    mention_overlaps(&mut proposals);
    proposals
}

/// Notes overlaps: several proposals for the same calls save less together than their sum.
fn mention_overlaps(proposals: &mut [Proposal]) {
    let mut counts = BTreeMap::<String, usize>::new();
    let saves = |it: &Proposal| it.saving_per_30_days.is_some();
    for proposal in proposals.iter().filter(|it| saves(it)) {
        *counts.entry(proposal.node_id.clone()).or_default() += 1;
    }
    for proposal in proposals.iter_mut().filter(|it| saves(it)) {
        if counts.get(&proposal.node_id) > Some(&1) {
            proposal
                .reason
                .push_str(" Other suggestions cover the same calls, so their savings overlap.");
        }
    }
}

/// Returns the LLM call of a node, if it has one.
pub fn agent(node: &Node) -> Option<&Agent> {
    match &node.kind {
        NodeKind::Agent(agent) => Some(agent),
        NodeKind::Map(map) => Some(&map.agent),
        _ => None,
    }
}

/// The expected saving of 30 days.
#[derive(Clone, Copy)]
struct Projection {
    saving: Saving,
    observed_days: f64,
}

/// Returns an edit that sets keys of a node.
fn set<const N: usize>(node: &Node, values: [(&str, Value); N]) -> Value {
    let values = values.map(|(key, value)| (key.to_owned(), value));
    json!(Edit::SetNode { node_id: node.id.clone(), values: Map::from_iter(values) })
}

impl RuleContext<'_> {
    fn calls_of(&self, node: &Node) -> Option<NodeCalls<'_>> {
        self.calls.calls_of(self.flow_id, &node.id)
    }

    /// Returns the calls of a node to its first target.
    fn first_target(&self, node: &Node, agent: &Agent) -> Option<NodeCalls<'_>> {
        let target = agent.targets.first()?;
        self.calls.calls_to(self.flow_id, &node.id, target)
    }

    /// Returns the start of the observation of a node; `calls` are those to one of its targets, or
    /// to all.
    ///
    /// A node from before the window, or changed since, was observed the whole time, even if its
    /// first call in the window is recent: it may run in bursts, or once a month. A target with a
    /// later first call than the node's other targets was added then.
    fn since(&self, node: &Node, calls: &NodeCalls<'_>) -> Timestamp {
        let all = self.calls_of(node);
        if all.is_some_and(|all| all.since < calls.since) {
            return calls.since;
        }
        let start = window_start(self.now);
        let was_started_before = || {
            let (flow_id, store) = (self.flow_id, self.store);
            or_default(node, store.was_started_before(flow_id, &node.id, start, RUNS_MAX))
        };
        match self.changed_at(node, Concern::Question) {
            Some(at) => at.max(start).min(calls.since),
            None if was_started_before() => start,
            None => calls.since,
        }
    }

    fn changed_at(&self, node: &Node, concern: Concern) -> Option<Timestamp> {
        self.calls.changed_at(self.flow_id, &node.id, concern)
    }

    fn projection(&self, node: &Node, calls: &NodeCalls<'_>, saved: &DailySpend) -> Projection {
        self.projection_since(self.since(node, calls), saved)
    }

    /// Returns the projection from the calls since the last change of this concern, and the start
    /// of these calls.
    fn projection_about(
        &self,
        node: &Node,
        calls: &NodeCalls<'_>,
        saved: &DailySpend,
        concern: Concern,
    ) -> (Projection, Timestamp) {
        let changed_at = self.changed_at(node, concern);
        let later = |at: Timestamp| changed_at.map_or(at, |changed| changed.max(at));
        let projection = self.projection_since(later(self.since(node, calls)), saved);
        (projection, later(calls.since))
    }

    fn projection_since(&self, since: Timestamp, saved: &DailySpend) -> Projection {
        Projection {
            saving: per_30_days(saved, since, self.now),
            observed_days: days_between(since, self.now),
        }
    }

    /// Returns the open suggestion of this kind for a node.
    fn open(&self, kind: Kind, node: &Node) -> Option<&Proposal> {
        let mut open = self.stored.iter().filter(|it| it.status == Status::Open);
        let is_it = |it: &&Suggestion| it.proposal.kind == kind && it.proposal.node_id == node.id;
        open.find(is_it).map(|it| &it.proposal)
    }

    /// Returns the threshold, which is lower for an open suggestion.
    fn threshold(&self, kind: Kind, node: &Node, minimum: u64) -> u64 {
        match self.open(kind, node) {
            Some(_) => minimum.saturating_mul(KEEP_PERCENT) / 100,
            None => minimum,
        }
    }

    /// Returns whether the saving justifies a new proposal, or keeping an open one.
    fn is_worthwhile(&self, kind: Kind, node: &Node, projection: &Projection) -> bool {
        let minimum = SAVING_MIN.nanousd.unsigned_abs();
        let threshold = self.threshold(kind, node, minimum);
        u64::try_from(projection.saving.expected_usd.nanousd).is_ok_and(|saved| saved >= threshold)
    }

    /// Returns a proposal for a rule to complete. Its reason warns of a short observation; its
    /// `seen_days` start at `since`.
    fn proposal(
        &self,
        kind: Kind,
        node: &Node,
        since: Option<Timestamp>,
        projection: Option<&Projection>,
    ) -> Proposal {
        let days = projection.map(|projection| projection.observed_days);
        let reason = days.filter(|days| *days < RELIABLE_DAYS).map(|days| {
            let days = match days.floor() as i64 + 1 {
                1 => "1 day".to_owned(),
                days => format!("{days} days"),
            };
            format!(
                " Based on less than {days} of calls, so the 30-day saving is a rough estimate."
            )
        });
        let seen_ms = since.map_or(0, |since| self.now.0.saturating_sub(since.0));
        Proposal {
            kind,
            node_id: node.id.clone(),
            other_node_id: None,
            title: String::new(),
            reason: reason.unwrap_or_default(),
            calls: 0,
            saving_per_30_days: projection.map(|projection| projection.saving),
            saving_ms: None,
            evidence: Value::Null,
            edit: Value::Null,
            alternatives: Vec::new(),
            definition: self.definition(kind, &node.id),
            seen_days: u64::try_from(seen_ms / MS_PER_DAY).unwrap_or(0),
            document: self.document_hash.to_owned(),
        }
    }

    /// Returns the SHA-256, in hexadecimal, of the node data that a proposal of this kind depends
    /// on.
    fn definition(&self, kind: Kind, node_id: &str) -> String {
        let nodes = self.document["data"]["nodes"].as_array();
        let is_it = |node: &&Value| name_of(&node["id"]).as_deref() == Some(node_id);
        let node = nodes.and_then(|nodes| nodes.iter().find(is_it));
        let data = node.map(|node| canonical_json(&node["data"], relevant_keys(kind)));
        hex(&Sha256::digest(data.unwrap_or_default()))
    }
}

/// Returns the value that was read for a node, or the default on an error.
fn or_default<T: Default>(node: &Node, read: Result<T>) -> T {
    read.unwrap_or_else(|error| {
        log::warn!("cannot read the history of node {}: {error}", node.id);
        T::default()
    })
}

/// Returns the keys of a node's data that a kind depends on; a dismissal holds while they stay the
/// same.
fn relevant_keys(kind: Kind) -> &'static [&'static str] {
    const CALL_KEYS: &[&str] = &["provider", "model", "prompt", "system", "items"];
    const LIMITED_CALL_KEYS: &[&str] =
        &["provider", "model", "prompt", "system", "items", "maxTokens"];
    match kind {
        Kind::RetryWaste => &["provider", "model", "retry", "timeouts", "fallback"],
        Kind::MaxTokens => LIMITED_CALL_KEYS,
        Kind::ModelSwitch | Kind::Cache | Kind::PromptCache | Kind::DeadNode | Kind::Parallel => {
            CALL_KEYS
        }
    }
}
