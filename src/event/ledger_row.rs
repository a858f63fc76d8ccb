//! The wire form of a ledger row.

use std::sync::Arc;

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
///
/// In JSON the counts are null if `source` is [`UsageSource::None`]: an unknown number is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "UsageJson", into = "UsageJson")]
pub struct Usage {
    /// All tokens of the prompt, cached or not.
    pub input_tokens: u64,
    /// Part of `input_tokens`: read from the provider's prompt cache.
    pub cached_input_tokens: u64,
    /// Part of `input_tokens`: written to the provider's prompt cache.
    pub cache_write_tokens: u64,
    /// Part of `cache_write_tokens`: kept for an hour, which costs more than five minutes.
    pub cache_write_1h_tokens: u64,
    /// All tokens of the answer, reasoning included.
    pub output_tokens: u64,
    /// Part of `output_tokens`: used for reasoning.
    pub reasoning_tokens: u64,
    pub source: UsageSource,
}

#[derive(Serialize, Deserialize)]
struct UsageJson {
    input_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_write_1h_tokens: Option<u64>,
    output_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    usage_source: UsageSource,
}

impl From<Usage> for UsageJson {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.known(usage.input_tokens),
            cached_input_tokens: usage.known(usage.cached_input_tokens),
            cache_write_tokens: usage.known(usage.cache_write_tokens),
            cache_write_1h_tokens: Some(usage.cache_write_1h_tokens).filter(|count| *count > 0),
            output_tokens: usage.known(usage.output_tokens),
            reasoning_tokens: usage.known(usage.reasoning_tokens),
            usage_source: usage.source,
        }
    }
}

impl From<UsageJson> for Usage {
    fn from(json: UsageJson) -> Self {
        Self {
            input_tokens: json.input_tokens.unwrap_or(0),
            cached_input_tokens: json.cached_input_tokens.unwrap_or(0),
            cache_write_tokens: json.cache_write_tokens.unwrap_or(0),
            cache_write_1h_tokens: json.cache_write_1h_tokens.unwrap_or(0),
            output_tokens: json.output_tokens.unwrap_or(0),
            reasoning_tokens: json.reasoning_tokens.unwrap_or(0),
            source: json.usage_source,
        }
    }
}

impl Usage {
    /// Returns one of the counts; none if they are unknown.
    pub fn known(&self, count: u64) -> Option<u64> {
        (self.source != UsageSource::None).then_some(count)
    }
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
    /// How a call is paid for, if not by its tokens.
    pub enum Billing {
        /// The client's own login, whose plan covers the call. The cost is notional.
        Subscription = "subscription",
    }
}

text_enum! {
    pub enum RefusedBy { Budget = "budget" }
}

text_enum! {
    /// The origin of a row's cost.
    pub enum CostSource {
        /// Computed from our own price and the tokens.
        Price = "price",
        /// Stated in the response of a provider that is trusted in this.
        Provider = "provider",
        /// Neither: the cost is unknown, or certainly 0.
        None = "none",
    }
}

/// The cost of a call, as it is written to its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// None if it is unknown.
    pub cost: Option<Usd>,
    pub source: CostSource,
    /// Surcharges, fees, or the reason why the price of tokens does not apply.
    pub note: Option<String>,
    /// The price in the form of ledger rows, a [`StoredPrice`](crate::prices::StoredPrice); none
    /// for `echo`, which is free.
    pub price: Option<Arc<str>>,
    /// The cost by our own price, if the provider stated another.
    pub price_cost: Option<Usd>,
    /// The cost that the provider stated.
    pub provider_cost: Option<Usd>,
}

impl Charge {
    /// The charge of a call that certainly cost nothing.
    pub const FREE: Self = Self { cost: Some(Usd::ZERO), ..Self::UNKNOWN };
    pub const UNKNOWN: Self = Self {
        cost: None,
        source: CostSource::None,
        note: None,
        price: None,
        price_cost: None,
        provider_cost: None,
    };
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
    /// None if it is unknown; see `cost_note`.
    pub total_cost_usd: Option<Usd>,
    /// None while pending.
    pub latency_ms: Option<u64>,
    pub status: CallStatus,
    pub error_message: Option<String>,
    #[serde(flatten)]
    pub more: LedgerDetails,
}

/// The origin of a call of the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attribution {
    /// The program that made the call, such as `claude-cli`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The client's own id of a conversation or of a session of an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The user of the client's application, or a hash of the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

impl Attribution {
    pub const NONE: Self = Self { client: None, session: None, end_user: None, project: None };
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
    #[serde(flatten)]
    pub attribution: Attribution,
    /// None if the tokens are billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing: Option<Billing>,
    /// Set if the call was refused before it was sent, and so cost nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedBy>,
    /// None while pending, and in rows of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_source: Option<CostSource>,
    /// Surcharges and fees in the cost, or the reason why it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_note: Option<String>,
    /// The cost by our own price, if the response stated one as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_cost_usd: Option<Usd>,
    /// The cost that the response stated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_cost_usd: Option<Usd>,
    /// The cost by a price that was added after the call; the row's own cost stays unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrected_cost_usd: Option<Usd>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}
