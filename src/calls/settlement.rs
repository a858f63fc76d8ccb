//! The ledger's side of a call: the hash of its prompt, its cost, and its end.

use sha2::{Digest, Sha256};

use crate::event::{CallStatus, Charge, Usage};
use crate::ids::hex;
use crate::providers::{Answer, Call, Failure, FailureKind, Providers};
use crate::store::{Change, Settlement};
use crate::time::Timestamp;

/// The cost note of a row whose call the shutdown interrupted.
const INTERRUPTED: &str = "interrupted by the shutdown";
/// The error of a row whose call was in flight when its process ended.
const LOST_CALL: &str = "the server stopped during the call; the provider may have billed it";

/// Returns the SHA-256 of the prompt in hexadecimal. If there is a system prompt, it comes first,
/// followed by a zero byte.
pub fn prompt_hash(call: &Call) -> String {
    let mut hash = Sha256::new();
    if let Some(system) = &call.system {
        hash.update(system);
        hash.update([0]);
    }
    hash.update(&call.prompt);
    hex(&hash.finalize())
}

/// Returns the settlement of an answered call, at the prices in force when it `began`.
pub fn answered(
    providers: &Providers,
    call: &Call,
    id: i64,
    answer: &Answer,
    began: Timestamp,
) -> Settlement {
    let charge = providers.charge(call, &answer.model, &answer.usage, &answer.billing, began);
    Settlement {
        id,
        model: Some(answer.model.clone()),
        usage: answer.usage,
        charge,
        latency_ms: Some(answer.latency_ms),
        first_token_ms: answer.first_token_ms,
        status: CallStatus::Success,
        error: None,
        at: Timestamp::now(),
    }
}

/// Returns the settlement of a failed call, at the prices in force when it `began`.
pub fn failed(
    providers: &Providers,
    call: &Call,
    id: i64,
    failure: &Failure,
    began: Timestamp,
) -> Settlement {
    let charge = providers.charge_failed(call, failure, began);
    let status = match failure.kind {
        FailureKind::Timeout => CallStatus::Timeout,
        FailureKind::Cancelled => CallStatus::Cancelled,
        _ => CallStatus::Failed,
    };
    Settlement {
        id,
        model: Some(failure.model.clone()),
        usage: failure.usage,
        charge,
        latency_ms: Some(failure.latency_ms),
        first_token_ms: None,
        status,
        error: Some(failure.message.clone()),
        at: Timestamp::now(),
    }
}

/// Returns the settlement of a call whose end is unknown.
pub fn lost_call(id: i64, at: Timestamp) -> Settlement {
    Settlement {
        id,
        model: None,
        usage: Usage::default(),
        charge: Charge::UNKNOWN,
        latency_ms: None,
        first_token_ms: None,
        status: CallStatus::Unknown,
        error: Some(LOST_CALL.to_owned()),
        at,
    }
}

/// Returns the settlement of a call whose thread panicked.
pub fn panicked(id: i64, error: &str) -> Settlement {
    unknown_end(id, error)
}

/// Returns the settlement of a call whose end stays unknown, with the reason.
pub fn unknown_end(id: i64, reason: &str) -> Settlement {
    Settlement { error: Some(reason.to_owned()), ..lost_call(id, Timestamp::now()) }
}

/// Returns the settlement of a call that continued at the provider after its request, which
/// `began` then. Its duration is unknown.
pub fn later_settlement(
    providers: &Providers,
    call: &Call,
    id: i64,
    result: Result<&Answer, &Failure>,
    began: Timestamp,
) -> Settlement {
    let settlement = match result {
        Ok(answer) => answered(providers, call, id, answer, began),
        Err(failure) => failed(providers, call, id, failure, began),
    };
    Settlement { latency_ms: None, first_token_ms: None, ..settlement }
}

/// Replaces the settlements of calls whose end stays unknown, with the reason.
pub fn with_unknown_end(changes: Vec<Change>, reason: &str) -> Vec<Change> {
    let unknown = |change| match change {
        Change::SettleCall(settlement) => Change::SettleCall(unknown_end(settlement.id, reason)),
        other => other,
    };
    changes.into_iter().map(unknown).collect()
}

/// Marks the settlements of calls that the shutdown cancelled as `UNKNOWN`, with their known usage.
pub fn interrupted(changes: Vec<Change>) -> Vec<Change> {
    let unknown = |change| match change {
        Change::SettleCall(settlement) => Change::SettleCall(Settlement {
            usage: settlement.usage,
            latency_ms: settlement.latency_ms,
            // The cost is unknown for another reason than the price.
            charge: Charge { note: Some(INTERRUPTED.to_owned()), ..Charge::UNKNOWN },
            ..lost_call(settlement.id, settlement.at)
        }),
        other => other,
    };
    changes.into_iter().map(unknown).collect()
}
