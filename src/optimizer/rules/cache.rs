//! Identical prompts that were bought again.

use serde_json::{Map, json};

use super::{Draft, Look, SAVING_MIN};
use crate::event::Usd;
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Agent, Node};
use crate::optimizer::edit::Edit;
use crate::optimizer::facts::{ANSWER_AGE_S, Amount};
use crate::optimizer::saving::per_30_days;

/// How often something is bought again at least.
const REPEATS_MIN: u64 = 3;

pub fn propose(look: &Look<'_>, node: &Node, agent: &Agent) -> Option<Proposal> {
    if agent.cache_age.is_some() {
        return None;
    }
    let all = look.facts.of_node(look.flow_id, &node.id);
    let since = all.iter().map(|(_, known)| known.since).min()?;
    let repeated = all
        .iter()
        .map(|(_, known)| known.calls.repeated)
        .fold(Amount::default(), Amount::plus);
    let answered: u64 = all
        .iter()
        .map(|(_, known)| known.calls.answered().amount.calls)
        .sum();
    let saving = per_30_days(repeated, since, look.now);
    if repeated.calls < REPEATS_MIN || saving.expected_usd < SAVING_MIN {
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
