//! Default changes that tests can modify.

use super::change::{Applied, Change, NewCall, Receipt, Settlement};
use super::writer::Writer;
use crate::budget::Reserve;
use crate::error::Result;
use crate::event::{Attribution, CallStatus, Charge, LedgerEntry, Usage};
use crate::time::Timestamp;

/// A call without a flow and without a reservation.
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
        attribution: Attribution::default(),
        billing: None,
        looping: None,
        reserve: Reserve::default(),
        bounds: None,
    }
}

/// The settlement of a successful call of unknown cost.
pub fn settlement(id: i64, at: i64) -> Settlement {
    Settlement {
        id,
        model: None,
        usage: Usage::default(),
        charge: Charge::UNKNOWN,
        latency_ms: Some(1),
        first_token_ms: None,
        status: CallStatus::Success,
        error: None,
        at: Timestamp(at),
    }
}

/// Writes a change in its own transaction.
pub fn apply(writer: &mut Writer, change: Change) -> Result<Applied> {
    writer.transaction(|batch| batch.apply(&change))
}

/// Returns the ledger row that a change has written.
pub fn row(applied: Applied) -> LedgerEntry {
    match applied.receipt {
        Receipt::Call(row) => *row,
        other => panic!("{other:?}"),
    }
}
