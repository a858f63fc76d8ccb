//! Calls that wait for one another for no reason. To make them at once saves time, not money.

use serde_json::json;

use super::{CALLS_MIN, Draft, RuleContext};
use crate::event::suggestion::{Kind, Proposal};
use crate::flow::Node;
use crate::optimizer::edit::Edit;

/// What saves less time than this in a run, in milliseconds, is nobody's worth.
const SAVING_MS_MIN: u64 = 100;

/// `second` comes after `first`, and need not (see `shape::independent`).
pub fn propose(look: &RuleContext<'_>, first: &Node, second: &Node) -> Option<Proposal> {
    // Of nodes in runs, not of calls: a map makes many at once, and a node that tries again waits.
    let (first_runs, first_ms) = (look.node_ms)(&first.id)?;
    let (second_runs, second_ms) = (look.node_ms)(&second.id)?;
    let saving_ms = first_ms.min(second_ms);
    let runs = first_runs.min(second_runs);
    let least_ms = look.least(Kind::Parallel, second, SAVING_MS_MIN);
    if runs < CALLS_MIN || saving_ms < least_ms {
        return None;
    }
    let draft = Draft {
        kind: Kind::Parallel,
        title: format!("Ask “{}” and “{}” at once", first.label, second.label),
        reason: format!(
            "“{}” does not use what “{}” answers, and waits for it all the same. They take {second_ms} and {first_ms} ms on average; together they would take as long as the slower.",
            second.label, first.label,
        ),
        calls: runs,
        saving: None,
        evidence: json!({
            "firstNodeId": first.id,
            "firstRuns": first_runs,
            "firstAverageMs": first_ms,
            "secondRuns": second_runs,
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
