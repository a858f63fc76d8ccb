//! Identical prompts that were bought again.

use serde_json::{Map, json};

use super::{Draft, RuleContext};
use crate::event::Usd;
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Agent, Concern, Node};
use crate::optimizer::call_stats::{ANSWER_AGE_S, Calls};
use crate::optimizer::edit::Edit;

/// How often something is bought again at least.
const REPEATS_MIN: u64 = 3;

pub fn propose(look: &RuleContext<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    if agent.cache_age.is_some() {
        return None;
    }
    let known = look.facts.sum_of_node(look.flow_id, &node.id)?;
    let seen = known.seen(Calls::repeated);
    let repeated = seen.amount;
    let answered = known.calls.answered().amount.calls;
    let (saving, since) = look.promise_about(node, &known, &seen, Concern::Repeats);
    if repeated.calls < REPEATS_MIN || !look.is_worth(Kind::Cache, node, &saving) {
        return None;
    }
    let values = Map::from_iter([("cache".to_owned(), json!({"maxAgeS": ANSWER_AGE_S}))]);
    look.proposal(
        node,
        Draft {
            kind: Kind::Cache,
            title: "Keep its answers".to_owned(),
            reason: format!(
                "{} of {answered} calls asked exactly what had been answered within a week before, for {} USD. With a cache they would have got the same answer for nothing.",
                repeated.calls,
                Usd::from_nanousd(repeated.nanousd),
            ),
            calls: repeated.calls,
            saving: Some(saving),
            evidence: json!({
                "since": since,
                "calls": answered,
                "repeatedCalls": repeated.calls,
                "repeatedCostNanousd": repeated.nanousd,
                "maxAgeS": ANSWER_AGE_S,
            }),
            edit: Edit::SetNode {
                node_id: node.id.clone(),
                values,
            },
        },
    )
}
