//! What goes over the wire: event types, ledger rows, ids, money and time, as plain data.
//!
//! Field names are those of the contract (README, "Messages"): camelCase in event payloads,
//! snake_case in ledger rows. Nothing here does I/O except [`Timestamp::now`].

pub mod suggestion;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use self::suggestion::Suggestion;

/// Identifies a flow: the number that `POST /api/flows` answers with.
pub type FlowId = i64;
/// Identifies a run: a UUID of version 7, so that ids sort by time of creation.
pub type RunId = String;
/// Identifies a WebSocket client for as long as it is connected; never used twice by a process.
pub type ClientId = u64;
/// The place of an event in the durable log; the first is 1.
pub type Seq = u64;

/// A moment in milliseconds since the Unix epoch; printed as RFC 3339 in UTC with three digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The present moment by the system's clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }
}

/// Prints milliseconds always, so that timestamps of equal precision compare as text.
static PRINTER: jiff::fmt::temporal::DateTimePrinter =
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(3));

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What lies beyond the calendar is printed as its end: an error here would be a panic of
        // whoever prints.
        let end = if self.0 < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        };
        let moment = jiff::Timestamp::from_millisecond(self.0).unwrap_or(end);
        f.write_str(&PRINTER.timestamp_to_string(&moment))
    }
}

impl FromStr for Timestamp {
    type Err = String;

    /// Reads RFC 3339 (`2025-12-04T10:00:00Z`) or a date alone, which means its start in UTC.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = text.parse::<jiff::Timestamp>() {
            return Ok(Self(moment.as_millisecond()));
        }
        let date = text.parse::<jiff::civil::Date>().map_err(|_| {
            format!("`{text}` is neither an RFC 3339 time (2025-12-04T10:00:00Z) nor a date")
        })?;
        let start = date
            .to_zoned(jiff::tz::TimeZone::UTC)
            .map_err(|_| format!("`{text}` is out of range"))?;
        Ok(Self(start.timestamp().as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// An amount of money in nano-dollars (10⁻⁹ USD); in JSON an exact decimal number of dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd {
    /// The amount in nano-dollars. 2⁶³ of them are nine thousand million dollars.
    pub nanousd: i64,
}

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self { nanousd: 0 };

    /// An amount given in nano-dollars.
    pub const fn from_nanousd(nanousd: i64) -> Self {
        Self { nanousd }
    }

    /// The sum; stays at the largest amount instead of overflowing.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            nanousd: self.nanousd.saturating_add(other.nanousd),
        }
    }
}

/// Without trailing zeros: `0.0015`, `12`.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanousd < 0 { "-" } else { "" };
        let nanousd = self.nanousd.unsigned_abs();
        let (whole, fraction) = (nanousd / 1_000_000_000, nanousd % 1_000_000_000);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{fraction:09}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl FromStr for Usd {
    type Err = String;

    /// Reads a decimal number of dollars exactly: `12`, `0.0015`, `1.5e-3`; no more than nine
    /// digits after the point.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an amount of US dollars, such as 12.5");
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| wrong())?),
            None => (text, 0_i32),
        };
        let (sign, digits) = match mantissa.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, mantissa),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let digits = all.trim_start_matches('0');
        if digits.is_empty() {
            return Ok(Self::ZERO);
        }
        // The value is `digits` times ten to the power of this, in nano-dollars.
        let shift = 9 + i64::from(exponent) - i64::try_from(fraction.len()).unwrap_or(i64::MAX);
        let trimmed = digits.trim_end_matches('0');
        let shift = shift + i64::try_from(digits.len() - trimmed.len()).unwrap_or(0);
        let shift = u32::try_from(shift)
            .map_err(|_| format!("`{text}` has more than nine digits after the point"))?;
        let nanousd = trimmed.parse::<i64>().ok();
        let nanousd = nanousd.and_then(|digits| digits.checked_mul(10_i64.checked_pow(shift)?));
        let nanousd = nanousd.ok_or_else(|| format!("`{text}` is out of range"))?;
        Ok(Self::from_nanousd(sign * nanousd))
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string())
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let usd = f64::deserialize(deserializer)?;
        let nanousd = (usd * 1e9).round();
        // 2⁶³ is exact as f64; casts saturate, so refuse what does not fit.
        if !(-9.2e18..=9.2e18).contains(&nanousd) {
            return Err(de::Error::custom("amount of money out of range"));
        }
        Ok(Self {
            nanousd: nanousd as i64,
        })
    }
}

/// Where token counts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The provider's own counts.
    Provider,
    /// Counted here, because the provider gave none.
    Estimated,
    /// No counts are known.
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
    /// Where the counts come from.
    #[serde(rename = "usage_source")]
    pub source: UsageSource,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CallStatus {
    /// Committed before the request leaves; not settled yet.
    Pending,
    /// Answered.
    Success,
    /// Refused, or answered with an error.
    Failed,
    /// Not answered in time. It may have been billed.
    Timeout,
    /// Stopped by somebody.
    Cancelled,
    /// The process ended while the call was under way. It may have been billed.
    Unknown,
}

/// What did not let a call leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedBy {
    /// A hard budget.
    Budget,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// Accepted, waits for its turn.
    Queued,
    /// Under way.
    Running,
    /// Every node finished.
    Completed,
    /// A node failed.
    Failed,
    /// Stopped by somebody.
    Cancelled,
}

impl RunStatus {
    /// Whether nothing more will happen to the run.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Gives a text form that is the JSON form without quotes, for SQL columns and query parameters.
macro_rules! text_form {
    ($type:ty { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// The form used in JSON, in the database and in queries.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

pub(crate) use text_form;

text_form!(UsageSource { Provider = "provider", Estimated = "estimated", None = "none" });
text_form!(RefusedBy { Budget = "budget" });
text_form!(CallStatus {
    Pending = "PENDING",
    Success = "SUCCESS",
    Failed = "FAILED",
    Timeout = "TIMEOUT",
    Cancelled = "CANCELLED",
    Unknown = "UNKNOWN",
});
text_form!(RunStatus {
    Queued = "QUEUED",
    Running = "RUNNING",
    Completed = "COMPLETED",
    Failed = "FAILED",
    Cancelled = "CANCELLED",
});

/// One row of the ledger: one call that was made. Prompts and keys are never in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Its number; grows with time.
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
    /// Tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// The price of the call; none where the model's price is not known.
    pub total_cost_usd: Option<Usd>,
    /// From just before the request left until its end, milliseconds; none while pending.
    pub latency_ms: Option<u64>,
    /// What became of it.
    pub status: CallStatus,
    /// Why it did not succeed.
    pub error_message: Option<String>,
    /// What the row says beside.
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

/// What every flow message says about where and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventContext {
    /// The flow; none for a call that came through the gateway alone.
    pub flow_id: Option<FlowId>,
    /// The run.
    pub run_id: Option<RunId>,
    /// The node, where one is meant.
    pub node_id: Option<String>,
    /// When it happened.
    pub timestamp: Timestamp,
}

/// How much of a budget is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetWarning {
    /// The budget's name.
    pub budget: String,
    /// For what time it is: `day`, `month` or `run`.
    pub per: String,
    /// The share that is reached, in per cent.
    pub percent: u8,
    /// What is used or reserved, for people: `4.1 USD`.
    pub used: String,
    /// What may be used: `5 USD`.
    pub limit: String,
    /// Whether calls are refused beyond it.
    pub hard: bool,
}

/// The coarse progress that `FLOW_STATUS` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FlowProgress {
    /// The run began.
    Started,
    /// A node finished.
    NodeComplete,
    /// The run finished well.
    Finished,
    /// The run failed or was cancelled.
    Failed,
}

/// A message from the server. In JSON `{"type": …, "payload": …}`; [`encode`] puts `seq` before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    content = "payload",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// A run begins.
    FlowStarted {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The flow's name.
        name: String,
        /// How many nodes it has.
        node_count: usize,
        /// What started it: `api`, `cli`, `hook`, `schedule`.
        trigger: String,
    },
    /// A node is about to execute.
    NodeStarted {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The node's label.
        label: String,
        /// The number of the attempt; the first is 1.
        attempt: u32,
    },
    /// A piece of streamed text; not logged, hence without `seq`.
    NodeOutput {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The piece.
        delta: String,
    },
    /// A node executed.
    NodeCompleted {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The node's label.
        label: String,
        /// Tokens of the prompt.
        input_tokens: u64,
        /// Tokens of the answer.
        output_tokens: u64,
        /// What it cost; none where the price is not known.
        cost: Option<Usd>,
        /// How long it took, milliseconds.
        latency_ms: u64,
        /// The first [`PREVIEW_CHARS`] characters of the output.
        result_preview: String,
        /// Whether it came from the cache.
        cached: bool,
    },
    /// An attempt failed.
    NodeFailed {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The node's label.
        label: String,
        /// The number of the attempt.
        attempt: u32,
        /// Why.
        error: String,
        /// Whether another attempt follows.
        will_retry: bool,
    },
    /// A run finished well.
    FlowCompleted {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// From its start, milliseconds.
        execution_time_ms: u64,
        /// Tokens of all prompts.
        input_tokens: u64,
        /// Tokens of all answers.
        output_tokens: u64,
        /// What it cost; none where the price of any call is not known.
        cost: Option<Usd>,
    },
    /// A run failed; `nodeId` names the node at fault.
    FlowFailed {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// Why.
        error: String,
        /// From its start, milliseconds.
        execution_time_ms: u64,
    },
    /// Somebody stopped a run.
    FlowCancelled {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// From its start, milliseconds.
        execution_time_ms: u64,
    },
    /// Beside the above, for clients that follow one type only.
    FlowStatus {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// How far the run is.
        status: FlowProgress,
    },
    /// A ledger row was written or settled.
    LedgerUpdate {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The row, as the API gives it.
        entry: Box<LedgerEntry>,
    },
    /// So much of a budget is used as viewers are told of; once for each share in each period, and
    /// again after a restart of the server only where it is reached again.
    BudgetWarning {
        /// Where and when: of the call with which it was reached.
        #[serde(flatten)]
        context: EventContext,
        /// How much of which.
        #[serde(flatten)]
        warning: BudgetWarning,
    },
    /// A new suggestion.
    OptimizationAvailable {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The suggestion, as the API gives it.
        suggestion: Box<Suggestion>,
    },
    /// Something became of a suggestion: it was applied, taken back, dismissed, withdrawn or tried.
    OptimizationChanged {
        /// Where and when.
        #[serde(flatten)]
        context: EventContext,
        /// The suggestion, as the API gives it.
        suggestion: Box<Suggestion>,
    },
    /// To one client, first of all.
    Hello {
        /// The client's number.
        client_id: ClientId,
        /// The server's version.
        version: String,
        /// The newest event in the log; 0 where there is none.
        seq: Seq,
        /// The oldest event in the log; `seq` + 1 where there is none.
        oldest_seq: Seq,
        /// False where `since` could not be met without a gap.
        recovered: bool,
    },
    /// To one client, for a message that could not be read.
    Error {
        /// A word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// To one client, the answer to `PING`.
    Pong {},
}

impl Event {
    /// The name in the field `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::FlowStarted { .. } => "FLOW_STARTED",
            Self::NodeStarted { .. } => "NODE_STARTED",
            Self::NodeOutput { .. } => "NODE_OUTPUT",
            Self::NodeCompleted { .. } => "NODE_COMPLETED",
            Self::NodeFailed { .. } => "NODE_FAILED",
            Self::FlowCompleted { .. } => "FLOW_COMPLETED",
            Self::FlowFailed { .. } => "FLOW_FAILED",
            Self::FlowCancelled { .. } => "FLOW_CANCELLED",
            Self::FlowStatus { .. } => "FLOW_STATUS",
            Self::LedgerUpdate { .. } => "LEDGER_UPDATE",
            Self::BudgetWarning { .. } => "BUDGET_WARNING",
            Self::OptimizationAvailable { .. } => "OPTIMIZATION_AVAILABLE",
            Self::OptimizationChanged { .. } => "OPTIMIZATION_CHANGED",
            Self::Hello { .. } => "HELLO",
            Self::Error { .. } => "ERROR",
            Self::Pong {} => "PONG",
        }
    }

    /// Where and when, for messages about flows.
    pub fn context(&self) -> Option<&EventContext> {
        match self {
            Self::FlowStarted { context, .. }
            | Self::NodeStarted { context, .. }
            | Self::NodeOutput { context, .. }
            | Self::NodeCompleted { context, .. }
            | Self::NodeFailed { context, .. }
            | Self::FlowCompleted { context, .. }
            | Self::FlowFailed { context, .. }
            | Self::FlowCancelled { context, .. }
            | Self::FlowStatus { context, .. }
            | Self::LedgerUpdate { context, .. }
            | Self::BudgetWarning { context, .. }
            | Self::OptimizationAvailable { context, .. }
            | Self::OptimizationChanged { context, .. } => Some(context),
            Self::Hello { .. } | Self::Error { .. } | Self::Pong {} => None,
        }
    }

    /// The JSON text `{"type": …, "payload": …}`, which the event log stores.
    pub fn body(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| {
            // Plain data with string keys cannot fail to serialise; say so rather than panic.
            log::error!("{} could not be encoded: {error}", self.type_name());
            r#"{"type":"ERROR","payload":{"code":"internal","message":"an event could not be encoded"}}"#
                .to_owned()
        })
    }
}

/// How much of a node's output `resultPreview` shows, in characters.
pub const PREVIEW_CHARS: usize = 200;

/// The first [`PREVIEW_CHARS`] characters of `text`.
pub fn preview(text: &str) -> &str {
    match text.char_indices().nth(PREVIEW_CHARS) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// The message for a logged event: `body` (see [`Event::body`]) with its place put first.
pub fn encode(seq: Seq, body: &str) -> String {
    match body.strip_prefix('{') {
        Some(rest) => format!("{{\"seq\":{seq},{rest}"),
        None => body.to_owned(),
    }
}

/// Bytes in hexadecimal, as hashes are printed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a client narrows its events to; a missing list means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Events of these flows only.
    pub flow_ids: Option<Vec<FlowId>>,
    /// Events of these types only.
    pub types: Option<Vec<String>>,
}

impl Filter {
    /// Whether an event of that flow and type passes.
    pub fn passes(&self, flow_id: Option<FlowId>, type_name: &str) -> bool {
        let flow_fits = self
            .flow_ids
            .as_ref()
            .is_none_or(|ids| flow_id.is_some_and(|id| ids.contains(&id)));
        let type_fits = self
            .types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted == type_name));
        flow_fits && type_fits
    }
}

/// A message from a client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", content = "payload", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Request {
    /// Narrows what the client gets.
    Subscribe(Filter),
    /// Asks for `PONG`.
    Ping,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context() -> EventContext {
        EventContext {
            flow_id: Some(1),
            run_id: Some("r".into()),
            node_id: None,
            timestamp: Timestamp(1_764_842_400_123),
        }
    }

    #[test]
    fn a_message_has_its_seq_first_and_the_fields_of_the_contract() {
        let event = Event::FlowStatus {
            context: context(),
            status: FlowProgress::NodeComplete,
        };
        assert_eq!(
            encode(7, &event.body()),
            r#"{"seq":7,"type":"FLOW_STATUS","payload":{"flowId":1,"runId":"r","nodeId":null,"timestamp":"2025-12-04T10:00:00.123Z","status":"NODE_COMPLETE"}}"#
        );
    }

    #[test]
    fn the_type_name_is_the_one_in_the_json() {
        for event in [
            Event::Pong {},
            Event::FlowCancelled {
                context: context(),
                execution_time_ms: 1,
            },
            Event::Error {
                code: "c".into(),
                message: "m".into(),
            },
        ] {
            let json: serde_json::Value = serde_json::from_str(&event.body()).unwrap();
            assert_eq!(json["type"], event.type_name());
        }
    }

    #[test]
    fn a_client_message_is_read_with_and_without_payload() {
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"type":"PING"}"#).unwrap(),
            Request::Ping
        );
        let narrowed: Request =
            serde_json::from_str(r#"{"type":"SUBSCRIBE","payload":{"flowIds":[1]}}"#).unwrap();
        assert_eq!(
            narrowed,
            Request::Subscribe(Filter {
                flow_ids: Some(vec![1]),
                types: None
            })
        );
    }

    proptest! {
        #[test]
        fn money_survives_json_to_the_nano_dollar(nanousd in -1_000_000_000_000_000i64..1_000_000_000_000_000) {
            let usd = Usd::from_nanousd(nanousd);
            let json = serde_json::to_string(&usd).unwrap();
            prop_assert_eq!(serde_json::from_str::<Usd>(&json).unwrap(), usd);
        }

        #[test]
        fn time_survives_its_text_form(ms in 0i64..4_000_000_000_000) {
            let moment = Timestamp(ms);
            prop_assert_eq!(moment.to_string().parse::<Timestamp>().unwrap(), moment);
        }

        #[test]
        fn a_preview_is_a_prefix_of_at_most_two_hundred_characters(text in "\\PC{0,300}") {
            let shown = preview(&text);
            prop_assert!(text.starts_with(shown));
            prop_assert!(shown.chars().count() == text.chars().count().min(PREVIEW_CHARS));
        }
    }
}
