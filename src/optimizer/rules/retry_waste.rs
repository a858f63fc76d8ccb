//! Attempts that were billed and gave nothing.
//!
//! Only such attempts count whose cost is known: an answer that broke off, or was not finished in time,
//! of which something had come. What the provider may have billed beside nobody knows.

use std::cmp::Reverse;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{CALLS_MIN, Draft, Promise, RuleContext};
use crate::event::Usd;
use crate::event::suggestion::{Kind, Proposal, Saving};
use crate::flow::{Agent, Concern, Node, WAIT_MAX};
use crate::optimizer::call_stats::Target;
use crate::optimizer::edit::Edit;

/// How many billed attempts have come to nothing at least.
const WASTED_MIN: u64 = 3;
/// How much longer a call may take.
const TIMEOUT_FACTOR: u32 = 2;
/// How much longer the first pause becomes …
const BACKOFF_FACTOR: u32 = 4;
/// … which is this long at least.
const BACKOFF_MIN: Duration = Duration::from_secs(2);

/// A change that may help.
struct Remedy {
    title: String,
    /// What it does, to go on with after "This".
    words: String,
    values: Map<String, Value>,
}

pub fn propose(look: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let known = look.facts.sum_of_node(look.flow_id, &node.id)?;
    let (failed, timed_out) = (known.calls.failed, known.calls.timed_out);
    let wasted = failed.plus(timed_out);
    let seen = known.seen(|calls| calls.failed.plus(calls.timed_out));
    let (all, since) = look.promise_about(node, &known, &seen, Concern::Failures);
    let saving = Promise {
        saving: Saving {
            // Nobody knows beforehand how much of it the change cures.
            low_usd: Usd::ZERO,
            ..all.saving
        },
        ..all
    };
    if wasted.calls < WASTED_MIN || !look.is_worth(Kind::RetryWaste, node, &saving) {
        return None;
    }
    let remedy = if timed_out.nanousd >= failed.nanousd {
        longer_timeout(look, agent)?
    } else {
        another_model(look, agent).or_else(|| longer_pause(agent))?
    };
    look.proposal(
        node,
        Draft {
            kind: Kind::RetryWaste,
            title: remedy.title,
            reason: format!(
                "{} attempts were billed and gave nothing: {} that took too long cost {} USD, {} that failed {} USD. This {}. It may not cure all of them, so the saving may be anything from nothing to what they cost.",
                wasted.calls,
                timed_out.calls,
                Usd::from_nanousd(timed_out.nanousd),
                failed.calls,
                Usd::from_nanousd(failed.nanousd),
                remedy.words,
            ),
            calls: wasted.calls,
            saving: Some(saving),
            evidence: json!({
                "since": since,
                "failedCalls": failed.calls,
                "failedCostNanousd": failed.nanousd,
                "timedOutCalls": timed_out.calls,
                "timedOutCostNanousd": timed_out.nanousd,
                "wastedCostNanousd": wasted.nanousd,
                "answeredCalls": known.calls.tried,
            }),
            edit: Edit::SetNode {
                node_id: node.id.clone(),
                values: remedy.values,
            },
        },
    )
}

/// Only the timeout for all of an answer ends one that has begun.
fn longer_timeout(look: &RuleContext<'_>, agent: &Agent) -> Option<Remedy> {
    let present = agent.total_timeout.unwrap_or(look.total_timeout);
    let longer = (present * TIMEOUT_FACTOR).min(WAIT_MAX);
    if longer <= present {
        return None;
    }
    Some(Remedy {
        title: format!("Wait up to {longer:?} for an answer"),
        words: format!(
            "lets a call take {longer:?} instead of {present:?}, so that what was begun may be finished"
        ),
        values: values("timeouts", json!({"totalMs": milliseconds(longer)})),
    })
}

/// Instead of the same model again: one of another provider, where there is one, that was asked most.
fn another_model(look: &RuleContext<'_>, agent: &Agent) -> Option<Remedy> {
    let [first] = agent.targets.as_slice() else {
        return None;
    };
    if agent.retry.attempts < 2 {
        return None;
    }
    let present: Target = (first.provider.clone(), first.model.clone());
    let used = look
        .models
        .all()
        .iter()
        .filter(|candidate| candidate.answered >= CALLS_MIN && candidate.target != present);
    let (provider, model) = &used
        .max_by_key(|candidate| {
            let is_elsewhere = candidate.target.0 != present.0;
            (is_elsewhere, candidate.answered, Reverse(&candidate.target))
        })?
        .target;
    let mut values = values("retry", json!({"attempts": 1}));
    let fallback = json!([{"provider": provider, "model": model}]);
    values.insert("fallback".to_owned(), fallback);
    Some(Remedy {
        title: format!("Ask {model} where {} fails", present.1),
        words: format!(
            "asks {provider}/{model}, which your flows use already, after the first failure, instead of {} again",
            present.1
        ),
        values,
    })
}

fn longer_pause(agent: &Agent) -> Option<Remedy> {
    let retry = &agent.retry;
    let longer = retry.backoff.saturating_mul(BACKOFF_FACTOR);
    let longer = longer.clamp(BACKOFF_MIN, WAIT_MAX);
    if retry.attempts < 2 || longer <= retry.backoff {
        return None;
    }
    let mut pauses = json!({"backoffMs": milliseconds(longer)});
    if retry.backoff_max < longer {
        pauses["backoffMaxMs"] = json!(milliseconds(longer));
    }
    Some(Remedy {
        title: format!("Wait up to {longer:?} before it is tried again"),
        words: format!(
            "lets up to {longer:?} pass before the second attempt instead of {:?}, and more before the next, so that what is wrong at the provider may be over",
            retry.backoff
        ),
        values: values("retry", pauses),
    })
}

fn values(key: &str, value: Value) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), value)])
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
