//! Repeated calls with identical prompts.

use serde_json::json;

use super::{RuleContext, set};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Agent, Concern, Node};
use crate::money::Usd;
use crate::optimizer::call_stats::{ANSWER_AGE_S, Outcome};

const REPEATS_MIN: u64 = 3;

pub fn propose(context: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    if agent.cache_age.is_some() {
        return None;
    }
    let calls = context.calls_of(node)?;
    let saved = calls.daily_spend(&[Outcome::Repeated]);
    let repeated = saved.total;
    let answered = calls.answered().spend.calls;
    let (saving, since) = context.projection_about(node, &calls, &saved, Concern::Repeats);
    if repeated.calls < REPEATS_MIN || !context.is_worthwhile(Kind::Cache, node, &saving) {
        return None;
    }
    let base = context.proposal(Kind::Cache, node, Some(since), Some(&saving));
    Some(Proposal {
        title: format!("Cache responses of “{}”", node.label),
        reason: format!(
            "{} of {answered} calls repeated a request from the previous 7 days, at a cost of {} USD. Cached responses would have cost nothing.{}",
            repeated.calls,
            Usd::from_nanousd(repeated.nanousd),
            base.reason,
        ),
        calls: repeated.calls,
        evidence: json!({
            "since": since,
            "calls": answered,
            "repeatedCalls": repeated.calls,
            "repeatedCostNanousd": repeated.nanousd,
            "maxAgeS": ANSWER_AGE_S,
        }),
        edit: set(node, [("cache", json!({"maxAgeS": ANSWER_AGE_S}))]),
        ..base
    })
}
