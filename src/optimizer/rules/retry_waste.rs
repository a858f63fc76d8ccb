//! Attempts that were billed but not answered.
//!
//! Only attempts of known cost count: partial answers that broke off or timed out. The provider may
//! have billed others, but their cost is unknown.

use std::cmp::Reverse;
use std::time::Duration;

use serde_json::{Value, json};

use super::{CALLS_MIN, Projection, RuleContext, set};
use crate::event::suggestion::{Kind, Proposal, Saving};
use crate::flow::{Agent, Concern, Node, WAIT_MAX};
use crate::money::Usd;
use crate::optimizer::call_stats::{Outcome, WASTED};

const WASTED_MIN: u64 = 3;
/// Factor for the timeout of a call.
const TIMEOUT_FACTOR: u32 = 2;
/// Factor for the first pause.
const BACKOFF_FACTOR: u32 = 4;
const BACKOFF_MIN: Duration = Duration::from_secs(2);

struct Remedy {
    title: String,
    effect: String,
    edit: Value,
}

pub fn propose(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    let calls = context.calls_of(node)?;
    let failed = calls.sum(&[Outcome::Failed]).spend;
    let timed_out = calls.sum(&[Outcome::TimedOut]).spend;
    let saved = calls.daily_spend(WASTED);
    let wasted = saved.total;
    let (all, since) = context.projection_about(node, &calls, &saved, Concern::Failures);
    let saving = Projection {
        saving: Saving {
            // The part that the change fixes is unknown.
            low_usd: Usd::ZERO,
            ..all.saving
        },
        ..all
    };
    if wasted.calls < WASTED_MIN || !context.is_worthwhile(Kind::RetryWaste, node, &saving) {
        return None;
    }
    let remedy = if timed_out.nanousd >= failed.nanousd {
        longer_timeout(context, node, agent)?
    } else {
        another_model(context, node, agent).or_else(|| longer_pause(node, agent))?
    };
    let base = context.proposal(Kind::RetryWaste, node, Some(since), Some(&saving));
    Some(Proposal {
        title: remedy.title,
        reason: format!(
            "{} attempts were billed without a usable response: {} timed out ({} USD) and {} failed ({} USD). {} The change may not prevent all of them, so the saving may be as low as 0 USD.{}",
            wasted.calls,
            timed_out.calls,
            Usd::from_nanousd(timed_out.nanousd),
            failed.calls,
            Usd::from_nanousd(failed.nanousd),
            remedy.effect,
            base.reason,
        ),
        calls: wasted.calls,
        evidence: json!({
            "since": since,
            "failedCalls": failed.calls,
            "failedCostNanousd": failed.nanousd,
            "timedOutCalls": timed_out.calls,
            "timedOutCostNanousd": timed_out.nanousd,
            "wastedCostNanousd": wasted.nanousd,
            "answeredCalls": calls.all().answered_since_retry_change,
        }),
        edit: remedy.edit,
        ..base
    })
}

/// Proposes a longer total timeout: only this one ends an answer that has begun.
fn longer_timeout(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Remedy> {
    let total_timeout = context.providers.total_timeout();
    let current = agent.total_timeout.unwrap_or(total_timeout);
    let longer = (current * TIMEOUT_FACTOR).min(WAIT_MAX);
    (longer > current).then(|| Remedy {
        title: format!("Increase the timeout to {}", seconds(longer)),
        effect: format!(
            "A timeout of {} instead of {} lets more calls finish.",
            seconds(longer),
            seconds(current)
        ),
        edit: set(node, [("timeouts", json!({"totalMs": milliseconds(longer)}))]),
    })
}

/// Replaces retries by the most used other model, preferably of another provider.
fn another_model(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Remedy> {
    let [current] = agent.targets.as_slice() else {
        return None;
    };
    if agent.retry.attempts < 2 {
        return None;
    }
    let all = context.models.candidates.iter();
    let used = all.filter(|it| it.answered >= CALLS_MIN && it.target != *current);
    let best = used.max_by_key(|it| {
        let is_elsewhere = it.target.provider != current.provider;
        (is_elsewhere, it.answered, Reverse(&it.target))
    })?;
    let (provider, model) = (&best.target.provider, &best.target.model);
    let fallback = json!([{"provider": provider, "model": model}]);
    let retry = json!({"attempts": 1});
    Some(Remedy {
        title: format!("Fall back to {model} when {} fails", current.model),
        effect: format!(
            "After the first failure, {provider}/{model}, which your flows already use, replaces the retries of {}.",
            current.model
        ),
        edit: set(node, [("retry", retry), ("fallback", fallback)]),
    })
}

fn longer_pause(node: &Node, agent: &Agent) -> Option<Remedy> {
    let retry = &agent.retry;
    let longer = retry.backoff.saturating_mul(BACKOFF_FACTOR);
    let longer = longer.clamp(BACKOFF_MIN, WAIT_MAX);
    if retry.attempts < 2 || longer <= retry.backoff {
        return None;
    }
    let mut pauses = json!({"backoffMs": milliseconds(longer)});
    if retry.backoff_max < longer {
        pauses["backoffMaxMs"] = milliseconds(longer);
    }
    Some(Remedy {
        title: format!("Wait up to {} before the first retry", seconds(longer)),
        effect: format!(
            "Waiting up to {} instead of {} before the first retry, and longer before later ones, gives the provider time to recover.",
            seconds(longer),
            seconds(retry.backoff)
        ),
        edit: set(node, [("retry", pauses)]),
    })
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

fn milliseconds(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
