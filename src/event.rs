//! The wire types: events, ledger rows, and requests of clients.
//!
//! Field names follow the contract (docs/api.md, "Messages"): camelCase in event payloads,
//! snake_case in ledger rows.

mod ledger_row;
pub mod suggestion;

pub use self::ledger_row::{
    Attribution, Billing, CallStatus, Charge, CostSource, LedgerDetails, LedgerEntry, RefusedBy,
    Usage, UsageSource,
};

use serde::{Deserialize, Serialize};

use self::suggestion::Suggestion;
use crate::ids::{ClientId, FlowId, RunId, Seq};
use crate::money::Usd;
use crate::time::Timestamp;

/// Implements a text form equal to the JSON form without quotes, for SQL columns and query
/// parameters.
macro_rules! text_form {
    ($type:ty { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// Returns the form used in JSON, in the database and in queries.
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
                    _ => Err(format!("unknown value `{text}`; expected one of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

/// Declares an enum with a text for each variant: the same in JSON, SQL columns and query
/// parameters.
macro_rules! text_enum {
    ($(#[$attribute:meta])* pub enum $type:ident {
        $($(#[$of_variant:meta])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize)]
        $(#[$attribute])*
        pub enum $type { $($(#[$of_variant])* #[serde(rename = $text)] $variant),+ }
        $crate::event::text_form!($type { $($variant = $text),+ });
    };
}

pub(crate) use {text_enum, text_form};

text_enum! {
    pub enum RunStatus {
        Queued = "QUEUED",
        Running = "RUNNING",
        Completed = "COMPLETED",
        Failed = "FAILED",
        Cancelled = "CANCELLED",
    }
}

impl RunStatus {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventContext {
    /// None for a call that came only through the gateway.
    pub flow_id: Option<FlowId>,
    pub run_id: Option<RunId>,
    pub node_id: Option<String>,
    pub timestamp: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetWarning {
    pub budget: String,
    /// `day`, `month`, `run` or `session`.
    pub per: String,
    pub percent: u8,
    /// The spent and held amounts together, in readable form, such as `4.1 USD`.
    pub used: String,
    /// Empty in events of earlier versions, like `held`.
    #[serde(default)]
    pub spent: String,
    /// Reserved by calls in flight and by calls whose cost is unknown.
    #[serde(default)]
    pub held: String,
    pub limit: String,
    /// True if calls beyond the limit are refused.
    pub hard: bool,
    #[serde(default)]
    pub kind: WarningKind,
    /// The session of the call, if the budget is per session or the warning is about a loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarningKind {
    /// A part of the limit is used or reserved.
    #[default]
    Limit,
    /// A session repeats itself.
    Loop,
}

/// The coarse progress in `FLOW_STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FlowProgress {
    Started,
    NodeComplete,
    Finished,
    /// The run failed or was cancelled.
    Failed,
}

/// The cause of a `FLOW_CHANGED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowChange {
    Created,
    Saved,
    /// Its webhook or schedule was set or removed.
    Triggers,
    Deleted,
}

/// A message from the server. Its JSON is `{"type": …, "payload": …}`; [`encode`] puts `seq`
/// first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    content = "payload",
    rename_all = "SCREAMING_SNAKE_CASE",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    FlowStarted {
        #[serde(flatten)]
        context: EventContext,
        name: String,
        node_count: usize,
        /// The trigger of the run: `api`, `cli`, `hook` or `schedule`.
        trigger: String,
    },
    NodeStarted {
        #[serde(flatten)]
        context: EventContext,
        label: String,
        /// Starts at 1.
        attempt: u32,
    },
    /// A piece of streamed text. It is not logged and has no `seq`.
    NodeOutput {
        #[serde(flatten)]
        context: EventContext,
        delta: String,
    },
    NodeCompleted {
        #[serde(flatten)]
        context: EventContext,
        label: String,
        input_tokens: u64,
        output_tokens: u64,
        /// None if the price is unknown.
        cost: Option<Usd>,
        latency_ms: u64,
        /// The first [`PREVIEW_CHARS`] characters of the output.
        result_preview: String,
        cached: bool,
    },
    NodeFailed {
        #[serde(flatten)]
        context: EventContext,
        label: String,
        attempt: u32,
        error: String,
        will_retry: bool,
    },
    FlowCompleted {
        #[serde(flatten)]
        context: EventContext,
        execution_time_ms: u64,
        input_tokens: u64,
        output_tokens: u64,
        /// None if the price of any call is unknown.
        cost: Option<Usd>,
    },
    /// A run failed; `nodeId` names the failed node.
    FlowFailed {
        #[serde(flatten)]
        context: EventContext,
        error: String,
        execution_time_ms: u64,
    },
    FlowCancelled {
        #[serde(flatten)]
        context: EventContext,
        execution_time_ms: u64,
    },
    /// Sent in addition to the events above, for clients that follow only one type.
    FlowStatus {
        #[serde(flatten)]
        context: EventContext,
        status: FlowProgress,
    },
    /// A flow or its triggers changed.
    FlowChanged {
        #[serde(flatten)]
        context: EventContext,
        /// The name after the change; of a deleted flow, its last one.
        name: String,
        change: FlowChange,
    },
    /// A run that was over was deleted. Runs that retention removes have no events.
    RunDeleted {
        #[serde(flatten)]
        context: EventContext,
    },
    /// A ledger row was written or settled.
    LedgerUpdate {
        #[serde(flatten)]
        context: EventContext,
        entry: Box<LedgerEntry>,
    },
    /// The use of a budget reached a warning level. Sent once per level and period; after a server
    /// restart, only if the level is reached again.
    BudgetWarning {
        /// The call that reached the level.
        #[serde(flatten)]
        context: EventContext,
        #[serde(flatten)]
        warning: BudgetWarning,
    },
    OptimizationAvailable {
        #[serde(flatten)]
        context: EventContext,
        suggestion: Box<Suggestion>,
    },
    /// A suggestion changed: it was applied, reverted, dismissed, withdrawn or tried.
    OptimizationChanged {
        #[serde(flatten)]
        context: EventContext,
        suggestion: Box<Suggestion>,
    },
    /// The first message to a new client.
    Hello {
        client_id: ClientId,
        version: String,
        /// The newest event in the log; 0 if there is none.
        seq: Seq,
        /// The oldest event in the log; `seq` + 1 if there is none.
        oldest_seq: Seq,
        /// The history of the log, to be sent back with `since`.
        epoch: String,
        /// False if events after `since` are missing.
        recovered: bool,
    },
    /// Sent to a client whose message could not be read.
    Error {
        code: String,
        message: String,
    },
    Pong {},
}

impl Event {
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
            Self::FlowChanged { .. } => "FLOW_CHANGED",
            Self::RunDeleted { .. } => "RUN_DELETED",
            Self::LedgerUpdate { .. } => "LEDGER_UPDATE",
            Self::BudgetWarning { .. } => "BUDGET_WARNING",
            Self::OptimizationAvailable { .. } => "OPTIMIZATION_AVAILABLE",
            Self::OptimizationChanged { .. } => "OPTIMIZATION_CHANGED",
            Self::Hello { .. } => "HELLO",
            Self::Error { .. } => "ERROR",
            Self::Pong {} => "PONG",
        }
    }

    /// Returns none for messages that are not about flows.
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
            | Self::FlowChanged { context, .. }
            | Self::RunDeleted { context }
            | Self::LedgerUpdate { context, .. }
            | Self::BudgetWarning { context, .. }
            | Self::OptimizationAvailable { context, .. }
            | Self::OptimizationChanged { context, .. } => Some(context),
            Self::Hello { .. } | Self::Error { .. } | Self::Pong {} => None,
        }
    }

    /// Returns the JSON text `{"type": …, "payload": …}`, which the event log stores.
    pub fn body(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| {
            // Plain data with string keys always serializes; log an error rather than panic.
            log::error!("cannot encode {}: {error}", self.type_name());
            r#"{"type":"ERROR","payload":{"code":"internal","message":"cannot encode an event"}}"#
                .to_owned()
        })
    }
}

/// Limits `resultPreview`, in characters.
pub const PREVIEW_CHARS: usize = 200;

/// Returns the first [`PREVIEW_CHARS`] characters of `text`.
pub fn preview(text: &str) -> &str {
    match text.char_indices().nth(PREVIEW_CHARS) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Returns the message for a logged event: `body` (see [`Event::body`]) with `seq` put first.
pub fn encode(seq: Seq, body: &str) -> String {
    match body.strip_prefix('{') {
        Some(rest) => format!("{{\"seq\":{seq},{rest}"),
        None => body.to_owned(),
    }
}

/// A client's event filter; a missing list selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    pub flow_ids: Option<Vec<FlowId>>,
    pub types: Option<Vec<String>>,
}

impl Filter {
    pub fn passes(&self, flow_id: Option<FlowId>, type_name: &str) -> bool {
        let flow_fits =
            self.flow_ids.as_ref().is_none_or(|ids| flow_id.is_some_and(|id| ids.contains(&id)));
        let type_fits =
            self.types.as_ref().is_none_or(|types| types.iter().any(|wanted| wanted == type_name));
        flow_fits && type_fits
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", content = "payload", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Request {
    Subscribe(Filter),
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
    fn a_message_has_its_seq_first_and_the_documented_fields() {
        let event = Event::FlowStatus { context: context(), status: FlowProgress::NodeComplete };
        assert_eq!(
            encode(7, &event.body()),
            r#"{"seq":7,"type":"FLOW_STATUS","payload":{"flowId":1,"runId":"r","nodeId":null,"timestamp":"2025-12-04T10:00:00.123Z","status":"NODE_COMPLETE"}}"#
        );
    }

    #[test]
    fn the_type_name_equals_the_json_type() {
        for event in [
            Event::Pong {},
            Event::FlowCancelled { context: context(), execution_time_ms: 1 },
            Event::FlowChanged {
                context: context(),
                name: "n".into(),
                change: FlowChange::Triggers,
            },
            Event::RunDeleted { context: context() },
            Event::Error { code: "c".into(), message: "m".into() },
        ] {
            let json: serde_json::Value = serde_json::from_str(&event.body()).unwrap();
            assert_eq!(json["type"], event.type_name());
        }
    }

    #[test]
    fn a_client_message_parses_with_and_without_payload() {
        assert_eq!(serde_json::from_str::<Request>(r#"{"type":"PING"}"#).unwrap(), Request::Ping);
        let narrowed: Request =
            serde_json::from_str(r#"{"type":"SUBSCRIBE","payload":{"flowIds":[1]}}"#).unwrap();
        assert_eq!(narrowed, Request::Subscribe(Filter { flow_ids: Some(vec![1]), types: None }));
    }

    proptest! {
        #[test]
        fn amounts_round_trip_in_json_to_the_nano_dollar(nanousd in -1_000_000_000_000_000i64..1_000_000_000_000_000) {
            let usd = Usd::from_nanousd(nanousd);
            let json = serde_json::to_string(&usd).unwrap();
            prop_assert_eq!(serde_json::from_str::<Usd>(&json).unwrap(), usd);
        }

        #[test]
        fn timestamps_round_trip_as_text(ms in 0i64..4_000_000_000_000) {
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
