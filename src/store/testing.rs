//! Changes for tests, to be altered as a test needs it.

use super::change::{NewCall, Settlement};
use crate::budget::Reserve;
use crate::event::{CallStatus, Timestamp, Usage};

/// A call of no flow that reserves nothing.
pub fn new_call(at: Timestamp) -> NewCall {
    NewCall {
        at,
        flow_id: None,
        run_id: None,
        node_id: None,
        attempt: 1,
        operation_id: "o".into(),
        provider: "p".into(),
        model: "m".into(),
        role: None,
        prompt_hash: String::new(),
        key_name: None,
        tags: None,
        reserve: Reserve::default(),
    }
}

/// The settlement of a call whose end is unknown.
pub fn settlement(id: i64, at: Timestamp) -> Settlement {
    Settlement {
        id,
        model: None,
        usage: Usage::default(),
        cost: None,
        price: None,
        latency_ms: None,
        first_token_ms: None,
        status: CallStatus::Unknown,
        error: None,
        at,
    }
}
