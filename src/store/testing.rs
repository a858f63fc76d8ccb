//! Changes for tests, to be altered as a test needs it.

use super::change::{Applied, Change, NewCall, Receipt, Settlement};
use super::writer::Writer;
use crate::budget::Reserve;
use crate::error::Result;
use crate::event::{CallStatus, LedgerEntry, Usage};
use crate::time::Timestamp;

/// A call of no flow that reserves nothing.
pub fn new_call(at: i64) -> NewCall {
    NewCall {
        at: Timestamp(at),
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

/// The settlement of a call that succeeded, of unknown cost.
pub fn settlement(id: i64, at: i64) -> Settlement {
    Settlement {
        id,
        model: None,
        usage: Usage::default(),
        cost: None,
        price: None,
        latency_ms: Some(1),
        first_token_ms: None,
        status: CallStatus::Success,
        error: None,
        at: Timestamp(at),
    }
}

/// Writes a change in a transaction of its own.
pub fn apply(writer: &mut Writer, change: Change) -> Result<Applied> {
    writer.transaction(|batch| batch.apply(&change))
}

/// The ledger row that a change has written.
pub fn row(applied: Applied) -> LedgerEntry {
    match applied.receipt {
        Receipt::Call(row) => *row,
        other => panic!("{other:?}"),
    }
}
