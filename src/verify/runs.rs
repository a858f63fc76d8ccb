//! Checks runs and nodes against their ledger rows.

use super::{Check, sums};
use crate::error::Result;
use crate::store::{Audit, AuditNode, AuditRun};

pub(super) fn check(audit: &Audit, on_row: &dyn Fn(), report: &mut dyn FnMut(Check)) -> Result<()> {
    let mut runs = Check::of("runs");
    let mut nodes = Check::of("nodes");
    let (mut open, mut deleted) = (0, 0);
    audit.runs(|run| {
        nodes.checked += run.nodes.len() as u64;
        if let Some(stored) = &run.stored {
            on_row();
            runs.checked += 1;
            open += u64::from(is_open(&stored.status));
            check_run(&run, &mut runs);
            check_nodes(&run, &stored.status, &mut nodes);
        } else {
            deleted += 1;
            if !run.nodes.is_empty() || run.items > 0 {
                nodes.add(format_args!(
                    "run {} is missing, but it has {} nodes and {} items",
                    run.id,
                    run.nodes.len(),
                    run.items
                ));
            }
        }
    })?;
    runs.notes = vec![(open, "open runs"), (deleted, "deleted runs with ledger rows")];
    report(runs);
    report(nodes);
    Ok(())
}

fn is_open(status: &str) -> bool {
    matches!(status, "QUEUED" | "RUNNING")
}

fn check_run(run: &AuditRun, check: &mut Check) {
    let Some(stored) = &run.stored else {
        return;
    };
    let (id, status) = (&run.id, stored.status.as_str());
    if is_open(status) {
        return;
    }
    if !matches!(status, "COMPLETED" | "FAILED" | "CANCELLED") {
        check.add(format_args!("run {id}: unknown status `{status}`"));
        return;
    }
    if stored.sums != run.sums {
        check.add(format_args!(
            "run {id}: stored {}, but its {} ledger rows sum to {}",
            sums(&stored.sums),
            run.calls,
            sums(&run.sums)
        ));
    }
    if !stored.is_finished {
        check.add(format_args!("run {id}: is {status}, but has no end time"));
    }
    if run.running_items > 0 {
        check.add(format_args!(
            "run {id}: is {status}, but {} map items are RUNNING",
            run.running_items
        ));
    }
    match stored.graph_nodes {
        None => check.add(format_args!("run {id}: the graph is missing")),
        Some(count) if status == "COMPLETED" && count != run.nodes.len() => {
            check.add(format_args!(
                "run {id}: is COMPLETED, but {} of its {count} nodes have started",
                run.nodes.len()
            ));
        }
        Some(_) => {}
    }
}

fn check_nodes(run: &AuditRun, run_status: &str, check: &mut Check) {
    for node in &run.nodes {
        if let Some(fault) = node_fault(run, run_status, node) {
            check.add(format_args!("run {}, node {}: {fault}", run.id, node.id));
        }
    }
    for name in run.node_sums.keys() {
        if !run.nodes.iter().any(|node| node.id == *name) {
            check.add(format_args!(
                "run {}, node {name}: has ledger rows, but never started",
                run.id
            ));
        }
    }
}

fn node_fault(run: &AuditRun, run_status: &str, node: &AuditNode) -> Option<String> {
    let is_over = match node.status.as_str() {
        "COMPLETED" | "FAILED" | "CANCELLED" => true,
        "WAITING" | "RUNNING" | "SKIPPED" => false,
        status => return Some(format!("unknown status `{status}`")),
    };
    let fits = match run_status {
        "COMPLETED" => matches!(node.status.as_str(), "COMPLETED" | "SKIPPED"),
        _ => is_open(run_status) || node.status != "RUNNING",
    };
    if !fits {
        return Some(format!("is {}, but its run is {run_status}", node.status));
    }
    let of_rows = run.node_sums.get(&node.id).copied().unwrap_or_default();
    // The sums of other nodes are set when they end.
    (is_over && node.sums != of_rows).then(|| {
        format!("stored {}, but its ledger rows sum to {}", sums(&node.sums), sums(&of_rows))
    })
}
