//! A row of the ledger as clients see it.

use serde::{Deserialize, Serialize};

use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    Provider,
    /// Counted here, because the provider gave none.
    Estimated,
    #[default]
    None,
}

/// Tokens of one call in the normal form: `input_tokens` includes what was read from or written
/// to a cache, `output_tokens` includes reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All tokens of the prompt, cached or not.
    pub input_tokens: u64,
    /// Those of `input_tokens` that the provider read from its prompt cache.
    pub cached_input_tokens: u64,
    /// Those of `input_tokens` that the provider wrote to its prompt cache.
    pub cache_write_tokens: u64,
    /// Those of `cache_write_tokens` that are kept for an hour, which costs more than five minutes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write_1h_tokens: u64,
    /// All tokens of the answer, reasoning included.
    pub output_tokens: u64,
    /// Those of `output_tokens` that were reasoning.
    pub reasoning_tokens: u64,
    #[serde(rename = "usage_source")]
    pub source: UsageSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallStatus {
    /// Committed before the request leaves; not settled yet.
    Pending,
    Success,
    /// Refused, or answered with an error.
    Failed,
    /// Not answered in time. It may have been billed.
    Timeout,
    Cancelled,
    /// The process ended while the call was under way. It may have been billed.
    Unknown,
}

/// What did not let a call leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedBy {
    Budget,
}

/// One row of the ledger: one call that was made. Prompts and keys are never in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub id: i64,
    /// When the call was about to leave.
    pub timestamp: Timestamp,
    /// The flow, where a flow made the call.
    pub flow_id: Option<FlowId>,
    /// The run, where a run made the call.
    pub run_id: Option<RunId>,
    /// The node, where a node made the call.
    pub node_id: Option<String>,
    /// The number of the attempt; the first is 1.
    pub attempt: u32,
    /// Joins the attempts of one operation.
    pub operation_id: String,
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model that answered, or the one that was asked for where none answered.
    pub model_used: String,
    /// The role that the flow gives the node.
    pub agent_role: Option<String>,
    /// SHA-256 of the prompt in hexadecimal.
    pub prompt_hash: String,
    #[serde(flatten)]
    pub usage: Usage,
    /// The price of the call; none where the model's price is not known.
    pub total_cost_usd: Option<Usd>,
    /// From just before the request left until its end, milliseconds; none while pending.
    pub latency_ms: Option<u64>,
    pub status: CallStatus,
    /// Why it did not succeed.
    pub error_message: Option<String>,
    #[serde(flatten)]
    pub more: LedgerDetails,
}

/// What only some rows say; what is not said is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerDetails {
    /// From just before the request left until the first piece of the answer, milliseconds; only of
    /// calls that were streamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// The price that the cost was computed with, by its number (`GET /api/prices/{id}`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_id: Option<i64>,
    /// Whether it was answered from flowledger's own cache, so that no call was made.
    #[serde(skip_serializing_if = "is_false")]
    pub cached: bool,
    /// Of one that was answered from the cache: what the call would have cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_usd: Option<Usd>,
    /// The name of the key that the client of the gateway came with, where it is one of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// What the client of the gateway wants its calls to be grouped by, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Of a call that was refused before it left: by what. It has cost nothing, and nobody was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedBy>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}
