//! What is proposed about a flow: one file for each kind of ground. Pure, but for the clock that comes
//! as a value.

mod cache;
mod dead_node;
mod max_tokens;
mod model_switch;
mod parallel;
mod prompt_cache;
mod retry_waste;

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::edit::{Edit, apply};
use super::facts::{Facts, Known};
use super::models::Models;
use super::shape;
use crate::budget::Budget;
use crate::event::suggestion::{Kind, Proposal, Saving};
use crate::event::{FlowId, Timestamp, Usd, hex};
use crate::flow::{Agent, Graph, Node, NodeKind, name_of, said};
use crate::gateway::Gateway;

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
/// How many calls a proposal rests on at least.
const CALLS_MIN: u64 = 10;
/// What saves less than this in 30 days is nobody's time worth.
const SAVING_MIN: Usd = Usd::from_nanousd(100_000_000);

/// All that a rule may look at.
pub struct Look<'a> {
    /// The flow.
    pub flow_id: FlowId,
    /// Its document.
    pub document: &'a Value,
    /// SHA-256 of the document as it is stored, in hexadecimal.
    pub document_hash: &'a str,
    /// Its graph.
    pub graph: &'a Graph,
    /// What is known of calls.
    pub facts: &'a Facts,
    /// What else could be asked.
    pub models: &'a Models,
    /// What calls cost.
    pub gateway: &'a Gateway,
    /// How long what was asked lately is on average, of a node, in bytes; none where nothing is stored.
    pub asked_bytes: &'a dyn Fn(&str) -> Option<u64>,
    /// What may be spent.
    pub budgets: &'a [Budget],
    /// How long a call may take where its node does not say.
    pub total_timeout: Duration,
    /// The moment.
    pub now: Timestamp,
}

/// All that may be proposed about a flow, as it is now.
pub fn propose(look: &Look<'_>) -> Vec<Proposal> {
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
    proposals
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
    saving: Option<Saving>,
    evidence: Value,
    edit: Edit,
}

impl Look<'_> {
    /// The calls of a node to the target that it asks first.
    fn first_target(&self, node: &Node, agent: &Agent) -> Option<Known> {
        let target = agent.targets.first()?;
        self.facts
            .known(self.flow_id, &node.id, &target.provider, &target.model)
    }

    fn asked_bytes(&self, node: &Node) -> Option<u64> {
        (self.asked_bytes)(&node.id)
    }

    /// The proposal, where its change can be made.
    fn proposal(&self, node: &Node, draft: Draft) -> Option<Proposal> {
        apply(self.document, &draft.edit).ok()?;
        let seen_days = self.seen_days(&draft.evidence);
        Some(Proposal {
            kind: draft.kind,
            node_id: node.id.clone(),
            other_node_id: None,
            title: draft.title,
            reason: draft.reason,
            calls: draft.calls,
            saving_per_30_days: draft.saving,
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
        let said = node.map(|node| said(&node["data"], ground_of(kind)));
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
