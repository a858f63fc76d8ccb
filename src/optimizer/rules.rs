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
use crate::flow::{Agent, Graph, Node, NodeKind};
use crate::gateway::Gateway;

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
            definition: self.definition(&node.id),
            document: self.document_hash.to_owned(),
        })
    }

    /// SHA-256 of what the node says, in hexadecimal.
    fn definition(&self, node_id: &str) -> String {
        let nodes = self.document["data"]["nodes"].as_array();
        let node = nodes.and_then(|nodes| nodes.iter().find(|node| node["id"] == node_id));
        let data = node.map(|node| node["data"].to_string());
        hex(&Sha256::digest(data.unwrap_or_default()))
    }
}
