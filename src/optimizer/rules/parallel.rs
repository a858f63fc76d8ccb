//! Consecutive calls that do not depend on each other. Running them in parallel saves time, not
//! money.

use serde_json::json;

use super::{CALLS_MIN, RUNS_MAX, RuleContext, or_default};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::Node;
use crate::optimizer::edit::Edit;

/// The minimum saving per run for a proposal.
const SAVING_MS_MIN: u64 = 100;

/// Takes two consecutive nodes that could run in parallel (see `shape::independent`).
pub fn propose(context: &RuleContext<'_>, first: &Node, second: &Node) -> Option<Proposal> {
    // Uses durations of nodes, not of calls: a map makes many calls at once, and a retry waits.
    let duration = |node: &Node| {
        let duration = context.store.node_ms(context.flow_id, &node.id, RUNS_MAX);
        or_default(node, duration)
    };
    let (first_runs, first_ms) = duration(first)?;
    let (second_runs, second_ms) = duration(second)?;
    let saving_ms = first_ms.min(second_ms);
    let runs = first_runs.min(second_runs);
    let threshold_ms = context.threshold(Kind::Parallel, second, SAVING_MS_MIN);
    if runs < CALLS_MIN || saving_ms < threshold_ms {
        return None;
    }
    Some(Proposal {
        other_node_id: Some(first.id.clone()),
        title: format!("Run “{}” and “{}” in parallel", first.label, second.label),
        reason: format!(
            "“{}” waits for “{}”, but does not use its output. They take {second_ms} ms and {first_ms} ms on average. In parallel, they take only as long as the slower one.",
            second.label, first.label,
        ),
        calls: runs,
        saving_ms: Some(saving_ms),
        evidence: json!({
            "firstNodeId": first.id,
            "firstRuns": first_runs,
            "firstAverageMs": first_ms,
            "secondRuns": second_runs,
            "secondAverageMs": second_ms,
        }),
        edit: json!(Edit::RunBeside { first: first.id.clone(), second: second.id.clone() }),
        ..context.proposal(Kind::Parallel, second, None, None)
    })
}
