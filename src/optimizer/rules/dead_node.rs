//! Calls whose answers are never used.

use serde_json::json;

use super::{CALLS_MIN, RuleContext};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::{Node, OnError};
use crate::money::Usd;
use crate::optimizer::call_stats::Outcome;
use crate::optimizer::edit::Edit;

const PAID: &[Outcome] = &[Outcome::First, Outcome::Repeated, Outcome::Failed, Outcome::TimedOut];

/// Takes an unused node (see `shape::unused`).
pub fn propose(context: &RuleContext<'_>, node: &Node) -> Option<Proposal> {
    let calls = context.calls_of(node)?;
    let saved = calls.daily_spend(PAID);
    let paid = saved.total;
    let saving = context.promise(node, &calls, &saved);
    if paid.calls < CALLS_MIN || !context.is_worth(Kind::DeadNode, node, &saving) {
        return None;
    }
    let guard = match node.on_error {
        OnError::Fail => " Where it fails, the run fails today; without it, it would not.",
        OnError::Continue(_) => "",
    };
    let base = context.proposal(Kind::DeadNode, node, Some(calls.since), Some(&saving));
    Some(Proposal {
        title: format!("Leave “{}” out", node.label),
        reason: format!(
            "Nobody uses what it answers: no other node names it, and it is not what the flow gives. Its last {} calls cost {} USD.{guard}{}",
            paid.calls,
            Usd::from_nanousd(paid.nanousd),
            base.reason,
        ),
        calls: paid.calls,
        evidence: json!({
            "since": calls.since,
            "calls": paid.calls,
            "costNanousd": paid.nanousd,
        }),
        edit: json!(Edit::RemoveNode { node_id: node.id.clone() }),
        ..base
    })
}
