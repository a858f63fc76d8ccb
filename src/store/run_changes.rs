//! Writes the changes of runs.

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use super::change::{Applied, NewRun, Receipt, RunEnd, RunStart, done};
use super::ledger::cost_sums;
use super::sql::{execute, no_conflict, one, require_row, single};
use super::suggestions;
use crate::error::{Error, Result};
use crate::event::{Event, EventContext, FlowProgress, RunStatus};
use crate::ids::{FlowId, hex};
use crate::time::Timestamp;

/// The weight of a restart of a run without a call in flight, in restarts with one.
pub const RESTART_WITHOUT_CALL: u32 = 4;

/// # Errors
/// [`Error::NotFound`] if the flow was deleted meanwhile.
pub(super) fn queue(db: &Connection, run: &NewRun) -> Result<Applied> {
    // Ids are not used again, so a missing flow with an earlier id was deleted.
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM flows WHERE id = ?1) AND EXISTS
             (SELECT 1 FROM sqlite_sequence WHERE name = 'flows' AND seq >= ?1)";
    if single::<bool>(db, sql, [run.flow_id])? {
        return Err(Error::NotFound(format!("flow {}", run.flow_id)));
    }
    let hash = hex(&Sha256::digest(run.graph.as_bytes()));
    let sql = "INSERT OR IGNORE INTO graphs (hash, data) VALUES (?1, ?2)";
    execute(db, sql, params![hash, run.graph])?;
    let sql =
        "INSERT INTO runs (id, flow_id, flow_name, graph_hash, trigger, input, status, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'QUEUED', ?7)";
    execute(
        db,
        sql,
        params![run.id, run.flow_id, run.flow_name, hash, run.trigger, run.input, run.at],
    )?;
    Ok(Receipt::Done.into())
}

pub(super) fn start(db: &Connection, start: &RunStart) -> Result<Applied> {
    let sql = "UPDATE runs SET status = 'RUNNING', started_ms = coalesce(started_ms, ?2)
         WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')";
    let changed = execute(db, sql, params![start.run_id, start.at])?;
    require_row(changed, || format!("open run {}", start.run_id))?;
    Ok(started(start))
}

/// # Errors
/// [`Error::Conflict`] for a run that neither failed nor was cancelled.
pub(super) fn resume(db: &Connection, start: &RunStart) -> Result<Applied> {
    let run_id = &start.run_id;
    let sql = "UPDATE runs SET status = 'RUNNING', started_ms = ?2, finished_ms = NULL,
            cancel_ms = NULL, error = NULL, error_node = NULL
         WHERE id = ?1 AND status IN ('FAILED', 'CANCELLED')";
    let changed = execute(db, sql, params![run_id, start.at])?;
    no_conflict(changed, || {
        format!("cannot resume run {run_id}: only failed or cancelled runs can resume")
    })?;
    for table in ["run_nodes", "run_items"] {
        let sql = format!(
            "UPDATE {table} SET status = 'WAITING', error = NULL
                 WHERE run_id = ?1 AND status IN ('FAILED', 'CANCELLED')"
        );
        execute(db, &sql, params![run_id])?;
    }
    Ok(started(start))
}

fn started(start: &RunStart) -> Applied {
    let context = EventContext {
        flow_id: Some(start.flow_id),
        run_id: Some(start.run_id.clone()),
        node_id: None,
        timestamp: start.at,
    };
    let started = Event::FlowStarted {
        context: context.clone(),
        name: start.flow_name.clone(),
        node_count: start.node_count,
        trigger: start.trigger.clone(),
    };
    let status = FlowProgress::Started;
    vec![started, Event::FlowStatus { context, status }].into()
}

pub(super) fn cancel(db: &Connection, run_id: &str, at: Timestamp) -> Result<Applied> {
    let sql = "UPDATE runs SET cancel_ms = ?2 WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')";
    execute(db, sql, params![run_id, at]).map(done)
}

/// Counts the restarts of open runs. One counts less if a call was in flight, because the provider,
/// and not the run, took the time; and for a queued run, which may only have waited. Its start is
/// committed with its first call or output, so a queued run may have been the cause.
pub(super) fn count_restarts(db: &Connection) -> Result<Applied> {
    let completed = |table| {
        format!("(SELECT count(*) FROM {table} WHERE run_id = runs.id AND status = 'COMPLETED')")
    };
    let (nodes, items) = (completed("run_nodes"), completed("run_items"));
    let weight = format!(
        "CASE WHEN status = 'QUEUED' OR id IN (SELECT run_id FROM ledger WHERE status = 'PENDING') THEN 1
             ELSE {RESTART_WITHOUT_CALL} END"
    );
    let sql = format!(
        "INSERT INTO run_restarts (run_id, restarts, completed)
             SELECT id, {weight}, {nodes} + {items} FROM runs
             WHERE status IN ('QUEUED', 'RUNNING')
         ON CONFLICT (run_id) DO UPDATE SET
             restarts = excluded.restarts +
                 CASE WHEN excluded.completed > completed THEN 0 ELSE restarts END,
             completed = excluded.completed"
    );
    execute(db, &sql, params![]).map(done)
}

pub(super) fn forget_restarts(db: &Connection) -> Result<Applied> {
    execute(db, "DELETE FROM run_restarts", params![]).map(done)
}

/// # Errors
/// [`Error::Conflict`] for a run that is not over.
pub(super) fn delete(db: &Connection, run_id: &str) -> Result<Applied> {
    let sql = "DELETE FROM runs WHERE id = ?1 AND status NOT IN ('QUEUED', 'RUNNING')
             RETURNING graph_hash, flow_id";
    let deleted: Option<(String, FlowId)> = one(db, sql, [run_id])?;
    let Some((graph, flow_id)) = deleted else {
        return Err(Error::Conflict(format!(
            "cannot delete run {run_id}: it is still open; cancel it first"
        )));
    };
    execute(db, "DELETE FROM run_nodes WHERE run_id = ?1", params![run_id])?;
    execute(db, "DELETE FROM run_items WHERE run_id = ?1", params![run_id])?;
    let sql = "DELETE FROM graphs WHERE hash = ?1
         AND NOT EXISTS (SELECT 1 FROM runs WHERE graph_hash = ?1)";
    execute(db, sql, params![graph])?;
    let context = EventContext {
        flow_id: Some(flow_id),
        run_id: Some(run_id.to_owned()),
        node_id: None,
        timestamp: Timestamp::now(),
    };
    Ok(vec![Event::RunDeleted { context }].into())
}

/// Cancels nodes that started and never ended, for example because of a restart, when their
/// run ends.
fn end_open_nodes(db: &Connection, run_id: &str, at: Timestamp) -> Result<()> {
    for table in ["run_nodes", "run_items"] {
        let sql = format!(
            "UPDATE {table} SET status = 'CANCELLED', finished_ms = ?2,
                    error = coalesce(error, 'the run ended first')
                 WHERE run_id = ?1 AND status IN ('RUNNING', 'WAITING')"
        );
        execute(db, &sql, params![run_id, at])?;
    }
    // Costs of their calls are not added up yet.
    let sums = cost_sums("ledger.run_id = run_nodes.run_id AND ledger.node_id = run_nodes.node_id");
    let sql = format!("UPDATE run_nodes SET {sums} WHERE run_id = ?1 AND status = 'CANCELLED'");
    execute(db, &sql, params![run_id])?;
    Ok(())
}

pub(super) fn finish(db: &Connection, end: &RunEnd) -> Result<Applied> {
    let run_id = &end.run_id;
    if end.status != RunStatus::Completed {
        end_open_nodes(db, run_id, end.at)?;
    }
    let sums = cost_sums("run_id = ?1");
    let sql = format!(
        "UPDATE runs SET status = ?2, error = ?3, error_node = ?4, finished_ms = ?5, {sums}
             WHERE id = ?1 AND status IN ('QUEUED', 'RUNNING')"
    );
    let changed =
        execute(db, &sql, params![run_id, end.status, end.error, end.error_node, end.at])?;
    require_row(changed, || format!("open run {run_id}"))?;
    execute(db, "DELETE FROM run_restarts WHERE run_id = ?1", params![run_id])?;
    if end.status == RunStatus::Completed {
        suggestions::count_run(db, run_id)?;
    }
    finished(db, end)
}

fn finished(db: &Connection, end: &RunEnd) -> Result<Applied> {
    let context = EventContext {
        flow_id: Some(end.flow_id),
        run_id: Some(end.run_id.clone()),
        node_id: end.error_node.clone(),
        timestamp: end.at,
    };
    let sql = "SELECT coalesce(started_ms, created_ms), input_tokens, output_tokens, cost_nanousd
         FROM runs WHERE id = ?1";
    let (started, input_tokens, output_tokens, cost): (Timestamp, _, _, _) =
        single(db, sql, [&end.run_id])?;
    let execution_time_ms = end.at.0.saturating_sub(started.0).max(0).unsigned_abs();
    let last = match end.status {
        RunStatus::Completed => Event::FlowCompleted {
            context: context.clone(),
            execution_time_ms,
            input_tokens,
            output_tokens,
            cost,
        },
        RunStatus::Cancelled => {
            Event::FlowCancelled { context: context.clone(), execution_time_ms }
        }
        _ => Event::FlowFailed {
            context: context.clone(),
            error: end.error.clone().unwrap_or_default(),
            execution_time_ms,
        },
    };
    let status = match end.status {
        RunStatus::Completed => FlowProgress::Finished,
        _ => FlowProgress::Failed,
    };
    Ok(vec![last, Event::FlowStatus { context, status }].into())
}
