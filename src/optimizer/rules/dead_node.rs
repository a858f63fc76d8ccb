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
    let saving = context.projection(node, &calls, &saved);
    if paid.calls < CALLS_MIN || !context.is_worthwhile(Kind::DeadNode, node, &saving) {
        return None;
    }
    let guard = match node.on_error {
        OnError::Fail => " Today a run fails if this node fails; without the node it continues.",
        OnError::Continue(_) => "",
    };
    let base = context.proposal(Kind::DeadNode, node, Some(calls.since), Some(&saving));
    Some(Proposal {
        title: format!("Remove unused node “{}”", node.label),
        reason: format!(
            "No other node uses its output, and it is not part of the flow's output. Its last {} calls cost {} USD.{guard}{}",
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
