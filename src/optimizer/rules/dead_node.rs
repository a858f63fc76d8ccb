//! Calls whose answers nobody uses.

use serde_json::json;

use super::{CALLS_MIN, Draft, RuleContext};
use crate::event::Usd;
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Node, OnError};
use crate::optimizer::edit::Edit;

/// `node` is one that nobody uses (see `shape::unused`).
pub fn propose(look: &RuleContext<'_>, node: &Node) -> Option<Proposal> {
    let known = look.facts.sum_of_node(look.flow_id, &node.id)?;
    let seen = known.seen(|calls| {
        let answered = calls.answered().amount;
        answered.plus(calls.failed).plus(calls.timed_out)
    });
    let paid = seen.amount;
    let saving = look.promise(node, &known, &seen);
    if paid.calls < CALLS_MIN || !look.is_worth(Kind::DeadNode, node, &saving) {
        return None;
    }
    let guard = match node.on_error {
        OnError::Fail => " Where it fails, the run fails today; without it, it would not.",
        OnError::Continue(_) => "",
    };
    look.proposal(
        node,
        Draft {
            kind: Kind::DeadNode,
            title: format!("Leave “{}” out", node.label),
            reason: format!(
                "Nobody uses what it answers: no other node names it, and it is not what the flow gives. Its last {} calls cost {} USD.{guard}",
                paid.calls,
                Usd::from_nanousd(paid.nanousd),
            ),
            calls: paid.calls,
            saving: Some(saving),
            evidence: json!({
                "since": known.since,
                "calls": paid.calls,
                "costNanousd": paid.nanousd,
            }),
            edit: Edit::RemoveNode {
                node_id: node.id.clone(),
            },
        },
    )
}
