//! How a call is entered in the ledger: what its prompt is known by, what it cost, and what became of it.

use sha2::{Digest, Sha256};

use crate::event::{CallStatus, Timestamp, Usage, UsageSource, hex};
use crate::providers::{Answer, Call, Charge, Failure, FailureKind, Providers};
use crate::store::Settlement;

/// What the ledger says of a call that an earlier process did not see the end of.
const LOST_CALL: &str = "the server ended during the call; it may have been billed";

/// SHA-256 of the prompt; of system prompt, a zero byte and prompt where there are both.
pub fn prompt_hash(call: &Call) -> String {
    let mut hash = Sha256::new();
    if let Some(system) = &call.system {
        hash.update(system);
        hash.update([0]);
    }
    hash.update(&call.prompt);
    hex(&hash.finalize())
}

/// The settlement of a call that was answered; `began` says which prices were in force.
pub fn answered(
    providers: &Providers,
    call: &Call,
    id: i64,
    answer: &Answer,
    began: Timestamp,
) -> Settlement {
    let charge = match answer.is_billed_otherwise {
        true => Charge::default(),
        false => providers.charge(call, &answer.model, &answer.usage, began),
    };
    Settlement {
        id,
        model: Some(answer.model.clone()),
        usage: answer.usage,
        cost: charge.cost,
        price: charge.price,
        latency_ms: Some(answer.latency_ms),
        first_token_ms: answer.first_token_ms,
        status: CallStatus::Success,
        error: None,
        at: Timestamp::now(),
    }
}

/// The settlement of a call that failed; `began` says which prices were in force.
pub fn failed(
    providers: &Providers,
    call: &Call,
    id: i64,
    failure: &Failure,
    began: Timestamp,
) -> Settlement {
    let charge = if failure.is_billed_otherwise {
        Charge::default()
    } else if failure.usage.source != UsageSource::None {
        providers.charge(call, &failure.model, &failure.usage, began)
    } else if failure.may_have_been_billed() {
        // Not 0: nobody knows.
        Charge::default()
    } else {
        Charge::FREE
    };
    let status = match failure.kind {
        FailureKind::Timeout => CallStatus::Timeout,
        FailureKind::Cancelled => CallStatus::Cancelled,
        _ => CallStatus::Failed,
    };
    Settlement {
        id,
        model: Some(failure.model.clone()),
        usage: failure.usage,
        cost: charge.cost,
        price: charge.price,
        latency_ms: Some(failure.latency_ms),
        first_token_ms: None,
        status,
        error: Some(failure.message.clone()),
        at: Timestamp::now(),
    }
}

/// The settlement of a call of which nothing more is known.
pub fn lost_call(id: i64, at: Timestamp) -> Settlement {
    Settlement {
        id,
        model: None,
        usage: Usage::default(),
        cost: None,
        price: None,
        latency_ms: None,
        first_token_ms: None,
        status: CallStatus::Unknown,
        error: Some(LOST_CALL.to_owned()),
        at,
    }
}
