//! Suggestions of the optimizer: reads and writes them, and the flows that they change.

use std::collections::BTreeSet;

use rusqlite::{Connection, ToSql, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Store;
use super::change::{Applied, Receipt, done};
use super::flow_events::with_change;
use super::sql::{all, execute, no_conflict, one, single};
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Realised, Status, Suggestion, Trial};
use crate::event::{Event, EventContext, FlowChange};
use crate::flow::{Concern, fingerprint};
use crate::ids::{FlowId, hex};
use crate::time::Timestamp;

const COLUMNS: &str =
    "id, status, flow_id, flow_name, proposal, created_ms, changed_ms, applied_ms,
    realised, trial";
/// Lists leave out trials, because their texts may be long.
const COLUMNS_OF_LISTS: &str =
    "id, status, flow_id, flow_name, proposal, created_ms, changed_ms, applied_ms, realised, NULL";

/// Limits how long an applied suggestion is measured, in milliseconds: later, too much else
/// has changed.
pub const MEASURED_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// A change of a node's data.
#[derive(Clone, Debug)]
pub struct NodeChange {
    pub flow_id: FlowId,
    pub node_id: String,
    pub concern: Concern,
    /// The newest ledger row at that time: rows up to it are outdated for this concern.
    pub last_call: i64,
    pub at: Timestamp,
}

/// The documents of a flow before and after a suggestion was applied.
#[derive(Clone, Debug)]
pub struct AppliedEdit {
    pub before: String,
    pub after: String,
    /// The newest ledger row at that time.
    pub last_call: i64,
}

from_row!(
    Suggestion; id, status, flow_id, flow_name, proposal, created_at, changed_at, applied_at,
    realised, trial
);
from_row!(NodeChange; flow_id, node_id, concern, last_call, at);
from_row!(AppliedEdit; before, after, last_call);

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::internal(format!("cannot encode a suggestion: {error}")))
}

/// Returns the suggestions that meet a condition.
fn select(
    db: &Connection,
    columns: &str,
    condition: &str,
    params: &[&dyn ToSql],
) -> Result<Vec<Suggestion>> {
    let sql = format!("SELECT {columns} FROM suggestions WHERE {condition}");
    all(db, &sql, params)
}

fn suggestion_of(db: &Connection, id: i64) -> Result<Suggestion> {
    let mut rows = select(db, COLUMNS, "id = ?1", params![id])?;
    rows.pop().ok_or_else(|| Error::NotFound(format!("suggestion {id}")))
}

impl Store {
    /// # Errors
    /// [`Error::NotFound`] for an unknown suggestion.
    pub fn suggestion(&self, id: i64) -> Result<Suggestion> {
        self.read(|db| suggestion_of(db, id))
    }

    /// Returns up to `limit` suggestions with ids below `before`, newest first, all or with one
    /// status, without their trials.
    pub fn suggestions(
        &self,
        status: Option<Status>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<Suggestion>> {
        let condition = "(?1 IS NULL OR status = ?1) AND id < ?2 ORDER BY id DESC LIMIT ?3";
        let params = params![status, before.unwrap_or(i64::MAX), limit];
        self.read(|db| select(db, COLUMNS_OF_LISTS, condition, params))
    }

    /// Returns all suggestions for a flow, newest first, without their trials.
    pub fn suggestions_of(&self, flow_id: FlowId) -> Result<Vec<Suggestion>> {
        let condition = "flow_id = ?1 ORDER BY id DESC";
        self.read(|db| select(db, COLUMNS_OF_LISTS, condition, params![flow_id]))
    }

    /// Returns the flows with open or applied suggestions.
    pub fn flows_with_suggestions(&self) -> Result<BTreeSet<FlowId>> {
        let sql = "SELECT flow_id FROM suggestions WHERE status IN ('OPEN', 'APPLIED')";
        self.all(sql, [])
    }

    /// Returns the ids of applied suggestions.
    pub fn applied_ids(&self) -> Result<BTreeSet<i64>> {
        let sql = "SELECT id FROM suggestions WHERE status = 'APPLIED'";
        self.all(sql, [])
    }

    /// Returns the changes of nodes after a ledger row.
    pub fn changed_nodes(&self, since_call: i64) -> Result<Vec<NodeChange>> {
        self.node_changes("last_call >= ?1", since_call)
    }

    /// Returns the changes of a flow's nodes.
    pub fn changed_nodes_of(&self, flow_id: FlowId) -> Result<Vec<NodeChange>> {
        self.node_changes("flow_id = ?1", flow_id)
    }

    fn node_changes(&self, condition: &str, value: i64) -> Result<Vec<NodeChange>> {
        let sql = format!(
            "SELECT flow_id, node_id, concern, last_call, at_ms FROM node_changes WHERE {condition}"
        );
        self.all(&sql, [value])
    }

    /// Returns the number of completed runs since a suggestion was applied, and their total
    /// duration in milliseconds.
    pub fn runs_since(&self, id: i64) -> Result<(u64, u64)> {
        let sql = "SELECT runs, runs_ms FROM suggestions WHERE id = ?1";
        let read = self.one(sql, [id])?;
        Ok(read.unwrap_or_default())
    }

    /// # Errors
    /// [`Error::Conflict`] for a suggestion that was never applied.
    pub fn applied_edit(&self, id: i64) -> Result<AppliedEdit> {
        let sql = "SELECT document_before, document_after, last_call FROM suggestions
            WHERE id = ?1 AND applied_ms IS NOT NULL";
        self.one(sql, [id])?
            .ok_or_else(|| Error::Conflict(format!("suggestion {id} was never applied")))
    }
}

/// Adds a suggestion, or updates the open one. A dismissed or reverted one stays so unless
/// `proposal` differs enough from it. Viewers get an event if the suggestion was not open before.
///
/// # Errors
/// [`Error::Conflict`] for a flow that changed after it was read.
pub(super) fn propose(
    db: &Connection,
    flow_id: FlowId,
    flow_name: &str,
    proposal: &Proposal,
    at: Timestamp,
) -> Result<Applied> {
    let sql = "SELECT document FROM flows WHERE id = ?1";
    let document: Option<String> = one(db, sql, [flow_id])?;
    if document.is_none_or(|document| document_hash(&document) != proposal.document) {
        return Err(Error::Conflict(format!("flow {flow_id} has changed since its analysis")));
    }
    let key = proposal.key();
    let newest = "flow_id = ?1 AND key = ?2 ORDER BY id DESC LIMIT 1";
    let mut current = select(db, COLUMNS, newest, params![flow_id, key])?;
    let text = to_json(proposal)?;
    let id = match current.pop() {
        Some(open) if open.status == Status::Open => {
            let sql = "UPDATE suggestions SET flow_name = ?2, proposal = ?3 WHERE id = ?1";
            execute(db, sql, params![open.id, flow_name, text])?;
            return Ok(Receipt::Done.into());
        }
        Some(old)
            if matches!(old.status, Status::Dismissed | Status::Reverted)
                && !proposal.supersedes(&old.proposal) =>
        {
            return Ok(Receipt::Done.into());
        }
        // Keeps the old id, so that a suggestion that comes and goes has a single row.
        Some(old) if matches!(old.status, Status::Dismissed | Status::Withdrawn) => {
            let sql = "UPDATE suggestions SET status = 'OPEN', changed_ms = ?2, flow_name = ?3,
                    proposal = ?4 WHERE id = ?1";
            execute(db, sql, params![old.id, at, flow_name, text])?;
            old.id
        }
        _ => {
            let sql =
                "INSERT INTO suggestions (key, status, flow_id, flow_name, proposal, created_ms,
                    changed_ms) VALUES (?1, 'OPEN', ?2, ?3, ?4, ?5, ?5)";
            execute(db, sql, params![key, flow_id, flow_name, text, at])?;
            db.last_insert_rowid()
        }
    };
    let (context, suggestion) = context_and_suggestion(db, id)?;
    Ok(vec![Event::OptimizationAvailable { context, suggestion }].into())
}

/// Returns the SHA-256 of a stored document, in hexadecimal.
pub fn document_hash(document: &str) -> String {
    hex(&Sha256::digest(document))
}

/// Records the changes of a flow's nodes.
pub(super) fn record_changed_nodes(
    db: &Connection,
    flow_id: FlowId,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<()> {
    let (before, after) = (fingerprint(before), fingerprint(after));
    for (node_id, concerns) in &after {
        let old = before.get(node_id);
        for (concern, data) in concerns {
            if old.and_then(|old| old.get(concern)) == Some(data) {
                continue;
            }
            let sql = "INSERT INTO node_changes (flow_id, node_id, concern, last_call, at_ms)
                 VALUES (?1, ?2, ?3, (SELECT coalesce(max(id), 0) FROM ledger), ?4)
                 ON CONFLICT DO UPDATE SET last_call = excluded.last_call, at_ms = excluded.at_ms";
            execute(db, sql, params![flow_id, node_id, concern, at])?;
        }
    }
    // A removed node that is added again counts as new.
    for node_id in before.keys().filter(|id| !after.contains_key(*id)) {
        let sql = "DELETE FROM node_changes WHERE flow_id = ?1 AND node_id = ?2";
        execute(db, sql, params![flow_id, node_id])?;
    }
    Ok(())
}

/// Dismisses or withdraws a suggestion.
///
/// # Errors
/// [`Error::Conflict`] for a suggestion that is not open.
pub(super) fn close(db: &Connection, id: i64, status: Status, at: Timestamp) -> Result<Applied> {
    require_status(&suggestion_of(db, id)?, &[Status::Open])?;
    set_status(db, id, status, at)
}

/// Applies a suggestion to its flow. The chosen proposal is stored, so that the promised savings
/// can be compared with the measured ones.
///
/// # Errors
/// [`Error::Conflict`] for a document other than `before`, or a suggestion that cannot be applied.
pub(super) fn apply(
    db: &Connection,
    id: i64,
    proposal: &Proposal,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<Applied> {
    let old = suggestion_of(db, id)?;
    require_status(&old, &[Status::Open, Status::Dismissed])?;
    replace_document(db, old.flow_id, before, after, at)?;
    let sql = "UPDATE suggestions SET proposal = ?5, applied_ms = ?2, document_before = ?3,
            document_after = ?4, last_call = (SELECT coalesce(max(id), 0) FROM ledger)
         WHERE id = ?1";
    execute(db, sql, params![id, at, before, after, to_json(proposal)?])?;
    let applied = set_status(db, id, Status::Applied, at)?;
    with_change(db, applied, old.flow_id, FlowChange::Saved, at)
}

/// Restores the flow from before a suggestion was applied.
///
/// # Errors
/// [`Error::Conflict`] for a flow that changed since, or a suggestion that is not applied.
pub(super) fn revert(db: &Connection, id: i64, at: Timestamp) -> Result<Applied> {
    let old = suggestion_of(db, id)?;
    require_status(&old, &[Status::Applied])?;
    let sql = "SELECT document_before, document_after FROM suggestions WHERE id = ?1";
    let (before, after): (String, String) = single(db, sql, [id])?;
    replace_document(db, old.flow_id, &after, &before, at)?;
    let reverted = set_status(db, id, Status::Reverted, at)?;
    with_change(db, reverted, old.flow_id, FlowChange::Saved, at)
}

/// Counts a completed run for the suggestions that were applied before it started.
pub(super) fn count_run(db: &Connection, run_id: &str) -> Result<()> {
    let sql = "UPDATE suggestions SET runs = runs + 1, runs_ms = runs_ms + took_ms
         FROM (SELECT flow_id AS of_flow, created_ms AS began_ms,
                   max(coalesce(finished_ms - started_ms, 0), 0) AS took_ms
               FROM runs WHERE id = ?1)
         WHERE flow_id = of_flow AND status = 'APPLIED'
             AND began_ms BETWEEN applied_ms AND applied_ms + ?2";
    execute(db, sql, params![run_id, MEASURED_MS]).map(drop)
}

/// Stores the measured savings of an applied suggestion; a reverted one keeps its stored savings.
pub(super) fn set_realised(db: &Connection, id: i64, realised: &Realised) -> Result<Applied> {
    let sql = "UPDATE suggestions SET realised = ?2 WHERE id = ?1 AND status = 'APPLIED'";
    execute(db, sql, params![id, to_json(realised)?]).map(done)
}

pub(super) fn set_trial(db: &Connection, id: i64, trial: &Trial) -> Result<Applied> {
    let sql = "UPDATE suggestions SET trial = ?2 WHERE id = ?1";
    execute(db, sql, params![id, to_json(trial)?])?;
    changed(db, id)
}

fn set_status(db: &Connection, id: i64, status: Status, at: Timestamp) -> Result<Applied> {
    let sql = "UPDATE suggestions SET status = ?2, changed_ms = ?3 WHERE id = ?1";
    execute(db, sql, params![id, status, at])?;
    changed(db, id)
}

fn changed(db: &Connection, id: i64) -> Result<Applied> {
    let (context, suggestion) = context_and_suggestion(db, id)?;
    Ok(vec![Event::OptimizationChanged { context, suggestion }].into())
}

/// Reads a suggestion for an event; like lists, events leave out the trial.
fn context_and_suggestion(db: &Connection, id: i64) -> Result<(EventContext, Box<Suggestion>)> {
    let mut suggestion = Box::new(suggestion_of(db, id)?);
    suggestion.trial = None;
    let context = EventContext {
        flow_id: Some(suggestion.flow_id),
        run_id: None,
        node_id: Some(suggestion.proposal.node_id.clone()),
        timestamp: suggestion.changed_at,
    };
    Ok((context, suggestion))
}

fn replace_document(
    db: &Connection,
    flow_id: FlowId,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<()> {
    let sql = "UPDATE flows SET document = ?3, updated_ms = ?4 WHERE id = ?1 AND document = ?2";
    let replaced = execute(db, sql, params![flow_id, before, after, at])?;
    no_conflict(replaced, || {
        format!("flow {flow_id} has changed since the suggestion was made; reload and retry")
    })?;
    record_changed_nodes(db, flow_id, before, after, at)
}

/// # Errors
/// [`Error::Conflict`] for a suggestion with another status.
fn require_status(old: &Suggestion, allowed: &[Status]) -> Result<()> {
    if allowed.contains(&old.status) {
        return Ok(());
    }
    let allowed = allowed.first().map_or("", |status| status.as_str());
    Err(Error::Conflict(format!("suggestion {} is {}, not {allowed}", old.id, old.status)))
}
