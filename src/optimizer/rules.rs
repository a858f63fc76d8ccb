//! What is proposed about a flow: one file for each kind of ground. Pure, but for the clock that comes
//! as a value.

mod cache;
mod dead_node;
mod max_tokens;
mod model_switch;
mod parallel;
mod prompt_cache;
mod retry_waste;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::call_stats::{CallStats, Known, MS_PER_DAY, window_start};
use super::edit::{Edit, apply};
use super::models::Models;
use super::saving::{Seen, days_between, per_30_days};
use super::shape;
use crate::budget::Budget;
use crate::event::suggestion::{Kind, Proposal, Saving, Status, Suggestion};
use crate::event::{FlowId, Timestamp, Usd, hex};
use crate::flow::{Agent, Concern, Graph, Node, NodeKind, canonical_json, name_of};
use crate::providers::Providers;

/// How many calls a proposal rests on at least.
const CALLS_MIN: u64 = 10;
/// What saves less than this in 30 days is nobody's time worth.
const SAVING_MIN: Usd = Usd::from_nanousd(100_000_000);
/// What is open is withdrawn only where it is below this part of what it must come to before it is told,
/// in per cent: else it would come and go where it is just about that.
const KEPT_PART: u64 = 70;
/// What was seen for less than this, in days, is said to be a guess.
const DAYS_SURE: f64 = 3.0;

/// All that a rule may look at.
pub struct RuleContext<'a> {
    /// The flow.
    pub flow_id: FlowId,
    /// Its document.
    pub document: &'a Value,
    /// SHA-256 of the document as it is stored, in hexadecimal.
    pub document_hash: &'a str,
    /// Its graph.
    pub graph: &'a Graph,
    /// What is known of calls.
    pub facts: &'a CallStats,
    /// What else could be asked.
    pub models: &'a Models,
    /// What calls cost.
    pub providers: &'a Providers,
    /// How long what was asked lately is on average, of a node, in bytes; none where nothing is stored.
    pub asked_bytes: &'a dyn Fn(&str) -> Option<u64>,
    /// In how many of the newest runs a node was completed, and how long it took there on average, in
    /// milliseconds; none where that is none.
    pub node_ms: &'a dyn Fn(&str) -> Option<(u64, u64)>,
    /// Whether a node was begun before the days that are known.
    pub was_begun_before: &'a dyn Fn(&str) -> bool,
    /// The suggestions about the flow that there are.
    pub stored: &'a [Suggestion],
    /// What may be spent.
    pub budgets: &'a [Budget],
    /// How long a call may take where its node does not say.
    pub total_timeout: Duration,
    /// The moment.
    pub now: Timestamp,
}

/// All that may be proposed about a flow, as it is now.
pub fn propose(look: &RuleContext<'_>) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    let unused = shape::unused(look.graph);
    for node in look.graph.nodes() {
        if unused.contains(&node.id) {
            // Whatever else could be said about it is of no use then.
            proposals.extend(dead_node::propose(look, node));
            continue;
        }
        if let Some(agent) = agent(node) {
            proposals.extend(model_switch::propose(look, node, agent));
            proposals.extend(cache::propose(look, node, agent));
            proposals.extend(prompt_cache::propose(look, node, agent));
            proposals.extend(retry_waste::propose(look, node, agent));
            proposals.extend(max_tokens::propose(look, node, agent));
        }
    }
    let node = |id: &str| look.graph.nodes().iter().find(|node| node.id == id);
    for (first, second) in shape::independent(look.graph) {
        if let (Some(first), Some(second)) = (node(&first), node(&second)) {
            proposals.extend(parallel::propose(look, first, second));
        }
    }
    tell_of_overlaps(&mut proposals);
    proposals
}

/// Several suggestions about the same calls save less together than each alone.
fn tell_of_overlaps(proposals: &mut [Proposal]) {
    let mut counts = BTreeMap::<String, usize>::new();
    let saves = |it: &Proposal| it.saving_per_30_days.is_some();
    for proposal in proposals.iter().filter(|it| saves(it)) {
        *counts.entry(proposal.node_id.clone()).or_default() += 1;
    }
    for proposal in proposals.iter_mut().filter(|it| saves(it)) {
        if counts
            .get(&proposal.node_id)
            .is_some_and(|count| *count > 1)
        {
            proposal.reason.push_str(
                " There are other suggestions about the same calls: what they save does not add up.",
            );
        }
    }
}

/// What a node asks, where it asks a model.
pub fn agent(node: &Node) -> Option<&Agent> {
    match &node.kind {
        NodeKind::Agent(agent) => Some(agent),
        NodeKind::Map(map) => Some(&map.agent),
        _ => None,
    }
}

/// The parts of a proposal that rules decide about.
struct Draft {
    kind: Kind,
    title: String,
    reason: String,
    calls: u64,
    saving: Option<Promise>,
    evidence: Value,
    edit: Edit,
}

/// Money in 30 days.
#[derive(Clone, Copy)]
struct Promise {
    saving: Saving,
    /// What it rests on was seen in so many days.
    days: f64,
}

impl RuleContext<'_> {
    /// The calls of a node to the target that it asks first.
    fn first_target(&self, node: &Node, agent: &Agent) -> Option<Known> {
        let target = agent.targets.first()?;
        self.facts
            .known(self.flow_id, &node.id, &target.provider, &target.model)
    }

    /// Since when calls of a node would have been seen, of which `known` are those to one of its targets,
    /// or to all.
    ///
    /// A node that was asked before the days that are known, or was changed since, would have been seen
    /// all the time, however long its first call of these days is ago: it may run in bursts, or once a
    /// month. A target that was asked later than others of its node came to it then.
    fn since(&self, node: &Node, known: &Known) -> Timestamp {
        let all = self.facts.sum_of_node(self.flow_id, &node.id);
        if all.is_some_and(|all| all.since < known.since) {
            return known.since;
        }
        let start = window_start(self.now);
        match self.changed_at(node, Concern::Question) {
            Some(at) => at.max(start).min(known.since),
            None if (self.was_begun_before)(&node.id) => start,
            None => known.since,
        }
    }

    fn changed_at(&self, node: &Node, concern: Concern) -> Option<Timestamp> {
        self.facts.changed_at(self.flow_id, &node.id, concern)
    }

    /// What may be expected where `seen` of the calls of a node would have been saved.
    fn promise(&self, node: &Node, known: &Known, seen: &Seen) -> Promise {
        self.promise_since(self.since(node, known), seen)
    }

    /// The same of what counts only since a change of that concern, and the moment since when such calls
    /// are known.
    fn promise_about(
        &self,
        node: &Node,
        known: &Known,
        seen: &Seen,
        concern: Concern,
    ) -> (Promise, Timestamp) {
        let changed_at = self.changed_at(node, concern);
        let later = |at: Timestamp| changed_at.map_or(at, |changed| changed.max(at));
        let promise = self.promise_since(later(self.since(node, known)), seen);
        (promise, later(known.since))
    }

    fn promise_since(&self, since: Timestamp, seen: &Seen) -> Promise {
        Promise {
            saving: per_30_days(seen, since, self.now),
            days: days_between(since, self.now),
        }
    }

    /// The suggestion of that kind about a node that is open.
    fn open(&self, kind: Kind, node: &Node) -> Option<&Proposal> {
        let mut open = self.stored.iter().filter(|it| it.status == Status::Open);
        let is_it = |it: &&Suggestion| it.proposal.kind == kind && it.proposal.node_id == node.id;
        open.find(is_it).map(|it| &it.proposal)
    }

    /// What something must come to in order to be told, or to stay.
    fn least(&self, kind: Kind, node: &Node, usual: u64) -> u64 {
        match self.open(kind, node) {
            Some(_) => usual.saturating_mul(KEPT_PART) / 100,
            None => usual,
        }
    }

    /// Whether that much money is worth to be told of, or to be told of still.
    fn is_worth(&self, kind: Kind, node: &Node, promise: &Promise) -> bool {
        let usual = u64::try_from(SAVING_MIN.nanousd).unwrap_or(0);
        let least = self.least(kind, node, usual);
        u64::try_from(promise.saving.expected_usd.nanousd).is_ok_and(|saved| saved >= least)
    }

    fn asked_bytes(&self, node: &Node) -> Option<u64> {
        (self.asked_bytes)(&node.id)
    }

    /// The proposal, where its change can be made.
    fn proposal(&self, node: &Node, draft: Draft) -> Option<Proposal> {
        apply(self.document, &draft.edit).ok()?;
        let seen_days = self.seen_days(&draft.evidence);
        let mut reason = draft.reason;
        if let Some(Promise { days, .. }) = draft.saving.filter(|it| it.days < DAYS_SURE) {
            let days = match days.floor() as i64 + 1 {
                1 => "a day".to_owned(),
                days => format!("{days} days"),
            };
            reason.push_str(&format!(
                " That was seen in less than {days}: what 30 days save is a guess until more is known."
            ));
        }
        Some(Proposal {
            kind: draft.kind,
            node_id: node.id.clone(),
            other_node_id: None,
            title: draft.title,
            reason,
            calls: draft.calls,
            saving_per_30_days: draft.saving.map(|promise| promise.saving),
            saving_ms: None,
            evidence: draft.evidence,
            edit: json!(draft.edit),
            alternatives: Vec::new(),
            definition: self.definition(draft.kind, &node.id),
            seen_days,
            document: self.document_hash.to_owned(),
        })
    }

    /// SHA-256 of what the node says that a proposal of that kind rests on, in hexadecimal.
    fn definition(&self, kind: Kind, node_id: &str) -> String {
        let nodes = self.document["data"]["nodes"].as_array();
        let is_it = |node: &&Value| name_of(&node["id"]).as_deref() == Some(node_id);
        let node = nodes.and_then(|nodes| nodes.iter().find(is_it));
        let said = node.map(|node| canonical_json(&node["data"], ground_of(kind)));
        hex(&Sha256::digest(said.unwrap_or_default()))
    }

    /// How many whole days the calls lie in that evidence is about.
    fn seen_days(&self, evidence: &Value) -> u64 {
        let since: Option<Timestamp> = serde_json::from_value(evidence["since"].clone()).ok();
        let ms = since.map_or(0, |since| self.now.0.saturating_sub(since.0));
        u64::try_from(ms / MS_PER_DAY).unwrap_or(0)
    }
}

/// What of a node's data a kind rests on; all else may change without its being asked anew.
fn ground_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::RetryWaste => &["provider", "model", "retry", "timeouts", "fallback"],
        Kind::MaxTokens => &[
            "provider",
            "model",
            "prompt",
            "system",
            "items",
            "maxTokens",
        ],
        Kind::ModelSwitch | Kind::Cache | Kind::PromptCache | Kind::DeadNode | Kind::Parallel => {
            &["provider", "model", "prompt", "system", "items"]
        }
    }
}
