//! Calls that wait for one another for no reason. To make them at once saves time, not money.

use serde_json::json;

use super::{CALLS_MIN, Draft, Look};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::Node;
use crate::optimizer::edit::Edit;

/// What saves less time than this in a run, in milliseconds, is nobody's worth.
const SAVING_MS_MIN: u64 = 100;

/// `second` comes after `first`, and need not (see `shape::independent`).
pub fn propose(look: &Look<'_>, first: &Node, second: &Node) -> Option<Proposal> {
    let (first_calls, first_ms) = average_ms(look, first)?;
    let (second_calls, second_ms) = average_ms(look, second)?;
    let saving_ms = first_ms.min(second_ms);
    let calls = first_calls.min(second_calls);
    if calls < CALLS_MIN || saving_ms < SAVING_MS_MIN {
        return None;
    }
    let draft = Draft {
        kind: Kind::Parallel,
        title: format!("Ask “{}” and “{}” at once", first.label, second.label),
        reason: format!(
            "“{}” does not use what “{}” answers, and waits for it all the same. They take {second_ms} and {first_ms} ms on average; together they would take as long as the slower.",
            second.label, first.label,
        ),
        calls,
        saving: None,
        evidence: json!({
            "firstNodeId": first.id,
            "firstCalls": first_calls,
            "firstAverageMs": first_ms,
            "secondCalls": second_calls,
            "secondAverageMs": second_ms,
        }),
        edit: Edit::RunBeside {
            first: first.id.clone(),
            second: second.id.clone(),
        },
    };
    Some(Proposal {
        other_node_id: Some(first.id.clone()),
        saving_ms: Some(saving_ms),
        ..look.proposal(second, draft)?
    })
}

/// How many calls a node's targets have answered, and how long these took on average.
fn average_ms(look: &Look<'_>, node: &Node) -> Option<(u64, u64)> {
    let all = look.facts.of_node(look.flow_id, &node.id);
    let sum = |of: fn(&crate::optimizer::facts::Calls) -> u64| -> u64 {
        all.iter().map(|(_, known)| of(&known.calls)).sum()
    };
    let calls = sum(|calls| calls.answered().amount.calls);
    let latency_ms = sum(|calls| calls.latency_ms);
    Some((calls, latency_ms.checked_div(calls)?))
}
