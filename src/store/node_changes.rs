//! Writes the changes of nodes and of map items. For viewers a map is one node: its items have no
//! events of their own, and show up in the updates of the ledger.

use rusqlite::{Connection, params};

use super::change::{Applied, FailedNode, FinishedNode, NodeRef, Prompt, Receipt, done};
use super::ledger::cost_sums;
use super::sql::{execute, require_row, single};
use crate::error::Result;
use crate::event::{Event, FlowProgress, preview};
use crate::time::Timestamp;

/// # Errors
/// [`Error::NotFound`](crate::error::Error::NotFound) for a completed node or item. This is the
/// last check against paying for it twice.
pub(super) fn start(
    db: &Connection,
    node: &NodeRef,
    prompt: Option<&Prompt>,
    at: Timestamp,
) -> Result<Applied> {
    let (table, column, value) = match node.item {
        Some(_) => ("run_items", ", item", ", ?7"),
        None => ("run_nodes", "", ""),
    };
    let sql = format!(
        "INSERT INTO {table} (run_id, node_id, status, attempt, started_ms, prompt, system{column})
         VALUES (?1, ?2, 'RUNNING', ?3, ?4, ?5, ?6{value})
         ON CONFLICT DO UPDATE SET status = 'RUNNING', attempt = ?3, started_ms = ?4,
            error = NULL, finished_ms = NULL, prompt = ?5, system = ?6
         WHERE status != 'COMPLETED'"
    );
    let (text, system) = match prompt {
        Some(prompt) => (Some(&prompt.prompt), prompt.system.as_ref()),
        None => (None, None),
    };
    let values = params![node.run_id, node.node_id, node.attempt, at, text, system, node.item];
    // The statement for a node has no parameter for the item.
    let values = &values[..values.len() - usize::from(node.item.is_none())];
    let changed = execute(db, &sql, values)?;
    require_row(changed, || {
        let item = node.item.map_or_else(String::new, |item| format!("item {item} of "));
        let (node_id, run_id) = (&node.node_id, &node.run_id);
        format!("unfinished {item}node {node_id} in run {run_id}")
    })?;
    Ok(event_of(node, || Event::NodeStarted {
        context: node.context(at),
        label: node.label.clone(),
        attempt: node.attempt,
    }))
}

pub(super) fn finish(db: &Connection, finished: &FinishedNode) -> Result<Applied> {
    let FinishedNode { node, output, error, .. } = finished;
    let latency_ms = finished.latency_ms;
    let (table, condition) = row_of(node);
    let sums = match node.item {
        Some(_) => String::new(),
        None => format!(", {}", cost_sums("run_id = ?1 AND node_id = ?2")),
    };
    let sql = format!(
        "UPDATE {table} SET status = 'COMPLETED', output = ?4, latency_ms = ?5, error = ?6,
            finished_ms = ?7{sums} WHERE {condition}"
    );
    let (run_id, node_id) = (&node.run_id, &node.node_id);
    let values = params![run_id, node_id, node.item, output, latency_ms, error, finished.at];
    require_started(node, execute(db, &sql, values)?)?;
    if node.item.is_some() {
        return Ok(Receipt::Done.into());
    }
    let context = node.context(finished.at);
    let sql = "SELECT input_tokens, output_tokens, cost_nanousd FROM run_nodes
         WHERE run_id = ?1 AND node_id = ?2";
    let (input_tokens, output_tokens, cost) = single(db, sql, [run_id, node_id])?;
    let completed = Event::NodeCompleted {
        context: context.clone(),
        label: node.label.clone(),
        input_tokens,
        output_tokens,
        cost,
        latency_ms,
        result_preview: preview(output).to_owned(),
        cached: finished.cached,
    };
    let status = FlowProgress::NodeComplete;
    Ok(vec![completed, Event::FlowStatus { context, status }].into())
}

pub(super) fn skip(db: &Connection, node: &NodeRef, at: Timestamp) -> Result<Applied> {
    let sql = "INSERT INTO run_nodes (run_id, node_id, status, attempt, started_ms, finished_ms)
         VALUES (?1, ?2, 'SKIPPED', 0, ?3, ?3) ON CONFLICT DO NOTHING";
    execute(db, sql, params![node.run_id, node.node_id, at]).map(done)
}

pub(super) fn retry(
    db: &Connection,
    node: &NodeRef,
    error: &str,
    at: Timestamp,
) -> Result<Applied> {
    end_attempt(db, node, "WAITING", error, at)?;
    Ok(failed(node, error, at, true))
}

pub(super) fn fail(db: &Connection, end: &FailedNode) -> Result<Applied> {
    let status = if end.cancelled { "CANCELLED" } else { "FAILED" };
    end_attempt(db, &end.node, status, &end.error, end.at)?;
    if end.node.item.is_none() {
        let sums = cost_sums("run_id = ?1 AND node_id = ?2");
        let sql = format!("UPDATE run_nodes SET {sums} WHERE run_id = ?1 AND node_id = ?2");
        execute(db, &sql, params![end.node.run_id, end.node.node_id])?;
    }
    Ok(failed(&end.node, &end.error, end.at, false))
}

fn end_attempt(
    db: &Connection,
    node: &NodeRef,
    status: &str,
    error: &str,
    at: Timestamp,
) -> Result<()> {
    let (table, condition) = row_of(node);
    let sql =
        format!("UPDATE {table} SET status = ?4, error = ?5, finished_ms = ?6 WHERE {condition}");
    let values = params![node.run_id, node.node_id, node.item, status, error, at];
    require_started(node, execute(db, &sql, values)?)
}

/// Returns the table of a node or an item, and the condition that selects it by the parameters 1
/// to 3.
fn row_of(node: &NodeRef) -> (&'static str, &'static str) {
    match node.item {
        Some(_) => ("run_items", "run_id = ?1 AND node_id = ?2 AND item = ?3"),
        None => ("run_nodes", "run_id = ?1 AND node_id = ?2 AND ?3 IS NULL"),
    }
}

fn require_started(node: &NodeRef, changed: usize) -> Result<()> {
    require_row(changed, || format!("node {} in run {}", node.node_id, node.run_id))
}

fn failed(node: &NodeRef, error: &str, at: Timestamp, will_retry: bool) -> Applied {
    event_of(node, || Event::NodeFailed {
        context: node.context(at),
        label: node.label.clone(),
        attempt: node.attempt,
        error: error.to_owned(),
        will_retry,
    })
}

fn event_of(node: &NodeRef, event: impl FnOnce() -> Event) -> Applied {
    match node.item {
        Some(_) => Receipt::Done.into(),
        None => vec![event()].into(),
    }
}
