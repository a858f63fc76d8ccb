//! The wire form of a ledger row.

use serde::{Deserialize, Serialize};

use super::text_enum;
use crate::ids::{FlowId, RunId};
use crate::money::Usd;
use crate::time::Timestamp;

text_enum! {
    #[derive(Default)]
    pub enum UsageSource {
        Provider = "provider",
        /// Counted here, because the provider reported no usage.
        Estimated = "estimated",
        #[default]
        None = "none",
    }
}

/// The tokens of one call in normal form: `input_tokens` includes cache reads and writes,
/// `output_tokens` includes reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All tokens of the prompt, cached or not.
    pub input_tokens: u64,
    /// Part of `input_tokens`: read from the provider's prompt cache.
    pub cached_input_tokens: u64,
    /// Part of `input_tokens`: written to the provider's prompt cache.
    pub cache_write_tokens: u64,
    /// Part of `cache_write_tokens`: kept for an hour, which costs more than five minutes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_write_1h_tokens: u64,
    /// All tokens of the answer, reasoning included.
    pub output_tokens: u64,
    /// Part of `output_tokens`: used for reasoning.
    pub reasoning_tokens: u64,
    #[serde(rename = "usage_source")]
    pub source: UsageSource,
}

text_enum! {
    pub enum CallStatus {
        /// Committed before the request is sent; not settled yet.
        Pending = "PENDING",
        Success = "SUCCESS",
        /// Refused, or answered with an error.
        Failed = "FAILED",
        /// Not answered in time. It may have been billed.
        Timeout = "TIMEOUT",
        Cancelled = "CANCELLED",
        /// The process ended during the call. It may have been billed.
        Unknown = "UNKNOWN",
    }
}

text_enum! {
    pub enum RefusedBy { Budget = "budget" }
}

/// One row of the ledger: one call. It never contains prompts or keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub id: i64,
    pub timestamp: Timestamp,
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub node_id: Option<String>,
    /// Starts at 1.
    pub attempt: u32,
    /// Joins the attempts of one operation.
    pub operation_id: String,
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model that answered, or the requested one if no model answered.
    pub model_used: String,
    pub agent_role: Option<String>,
    /// SHA-256 of the prompt in hexadecimal.
    pub prompt_hash: String,
    #[serde(flatten)]
    pub usage: Usage,
    /// None if the price is unknown.
    pub total_cost_usd: Option<Usd>,
    /// None while pending.
    pub latency_ms: Option<u64>,
    pub status: CallStatus,
    pub error_message: Option<String>,
    #[serde(flatten)]
    pub more: LedgerDetails,
}

/// Optional fields; missing values are omitted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerDetails {
    /// Set only for streamed calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// See `GET /api/prices/{id}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_id: Option<i64>,
    /// True if flowledger's own cache answered, without a call.
    #[serde(skip_serializing_if = "is_false")]
    pub cached: bool,
    /// The cost that the cache saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_usd: Option<Usd>,
    /// The virtual key of the gateway's client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// Separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<String>,
    /// Set if the call was refused before it was sent, and so cost nothing.
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
