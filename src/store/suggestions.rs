//! Suggestions of the optimizer: reading and writing them, and what becomes of the flows that they are
//! about.

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::Store;
use super::change::{Applied, Receipt};
use super::sql::parsed;
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Realised, Status, Suggestion, Trial};
use crate::event::{Event, EventContext, FlowId, Timestamp, hex};
use crate::flow::{Concern, fingerprint};

const COLUMNS: &str =
    "id, status, flow_id, flow_name, proposal, created_ms, changed_ms, applied_ms, realised, trial";
/// The same without the trial, whose texts may be long.
const COLUMNS_OF_LISTS: &str =
    "id, status, flow_id, flow_name, proposal, created_ms, changed_ms, applied_ms, realised, NULL";

/// For how long it is measured after one was applied, in milliseconds: later, too much else has changed.
pub const MEASURED_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// A node that says something else since a moment.
#[derive(Clone, Debug)]
pub struct NodeChange {
    /// The flow.
    pub flow_id: FlowId,
    /// The node.
    pub node_id: String,
    /// What it says something else about.
    pub concern: Concern,
    /// The newest ledger row of that time: those up to it tell nothing about it any more.
    pub last_call: i64,
    /// When it was changed.
    pub at: Timestamp,
}

/// A flow as it was before a suggestion was applied, and after.
#[derive(Clone, Debug)]
pub struct AppliedEdit {
    /// The document before.
    pub before: String,
    /// The document after.
    pub after: String,
    /// The newest ledger row when it was applied; what follows is its doing.
    pub last_call: i64,
}

fn suggestion(row: &Row<'_>) -> rusqlite::Result<Suggestion> {
    let proposal: String = row.get(4)?;
    Ok(Suggestion {
        id: row.get(0)?,
        status: parsed(row, 1)?,
        flow_id: row.get(2)?,
        flow_name: row.get(3)?,
        proposal: from_json(4, &proposal)?,
        created_at: Timestamp(row.get(5)?),
        changed_at: Timestamp(row.get(6)?),
        applied_at: row.get::<_, Option<i64>>(7)?.map(Timestamp),
        realised: json(row, 8)?,
        trial: json(row, 9)?,
    })
}

fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| from_json(column, &text)).transpose()
}

fn from_json<T: serde::de::DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let text = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(column, text, error.into())
    })
}

fn one(connection: &Connection, id: i64) -> Result<Suggestion> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM suggestions WHERE id = ?1"))?
        .query_row([id], suggestion)
        .optional()?
        .ok_or_else(|| Error::NotFound(format!("suggestion {id}")))
}

impl Store {
    /// The suggestion of that number.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn suggestion(&self, id: i64) -> Result<Suggestion> {
        self.read(|connection| one(connection, id))
    }

    /// Up to `limit` suggestions of numbers below `before`, newest first; all, or those of a status.
    /// Without their trials.
    pub fn suggestions(
        &self,
        status: Option<Status>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<Suggestion>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS_OF_LISTS} FROM suggestions WHERE (?1 IS NULL OR status = ?1) AND id < ?2
                 ORDER BY id DESC LIMIT ?3"
            ))?;
            let status = status.map(Status::as_str);
            let before = before.unwrap_or(i64::MAX);
            let rows = statement.query_map(params![status, before, limit], suggestion)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// All suggestions about a flow, newest first. Without their trials.
    pub fn suggestions_of(&self, flow_id: FlowId) -> Result<Vec<Suggestion>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT {COLUMNS_OF_LISTS} FROM suggestions WHERE flow_id = ?1 ORDER BY id DESC"
            ))?;
            let rows = statement.query_map([flow_id], suggestion)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Flows that have suggestions which somebody may still do something about.
    pub fn flows_with_suggestions(&self) -> Result<Vec<FlowId>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT DISTINCT flow_id FROM suggestions WHERE status IN ('OPEN', 'APPLIED')",
            )?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Changes of nodes since that ledger row.
    pub fn changed_nodes(&self, since_call: i64) -> Result<Vec<NodeChange>> {
        self.node_changes("last_call >= ?1", since_call)
    }

    /// Those of a flow.
    pub fn changed_nodes_of(&self, flow_id: FlowId) -> Result<Vec<NodeChange>> {
        self.node_changes("flow_id = ?1", flow_id)
    }

    fn node_changes(&self, condition: &str, value: i64) -> Result<Vec<NodeChange>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "SELECT flow_id, node_id, concern, last_call, at_ms FROM node_changes WHERE {condition}"
            ))?;
            let changes = statement.query_map([value], |row| {
                Ok(NodeChange {
                    flow_id: row.get(0)?,
                    node_id: row.get(1)?,
                    concern: parsed(row, 2)?,
                    last_call: row.get(3)?,
                    at: Timestamp(row.get(4)?),
                })
            })?;
            Ok(changes.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// How many runs that began since a suggestion was applied went well, and how long they took
    /// together, in milliseconds.
    pub fn runs_since(&self, id: i64) -> Result<(u64, u64)> {
        self.read(|connection| {
            let read = connection
                .prepare_cached("SELECT runs, runs_ms FROM suggestions WHERE id = ?1")?
                .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            Ok(read.unwrap_or_default())
        })
    }

    /// What a suggestion did to its flow.
    ///
    /// # Errors
    /// [`Error::Conflict`] where it was never applied.
    pub fn applied_edit(&self, id: i64) -> Result<AppliedEdit> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT document_before, document_after, last_call FROM suggestions
                     WHERE id = ?1 AND applied_ms IS NOT NULL",
                )?
                .query_row([id], |row| {
                    Ok(AppliedEdit {
                        before: row.get(0)?,
                        after: row.get(1)?,
                        last_call: row.get(2)?,
                    })
                })
                .optional()?
                .ok_or_else(|| Error::Conflict(format!("suggestion {id} was never applied")))
        })
    }
}

fn to_json(proposal: &Proposal) -> Result<String> {
    serde_json::to_string(proposal)
        .map_err(|error| Error::internal(format!("a proposal cannot be written: {error}")))
}

/// Makes a suggestion, or brings up to date the one that there is. One that was dismissed or taken
/// back stays so unless `proposal` is news after it. Tells whether people are to be told.
///
/// # Errors
/// [`Error::Conflict`] where the flow has changed since somebody looked at it for this.
pub(super) fn propose(
    connection: &Connection,
    flow_id: FlowId,
    flow_name: &str,
    proposal: &Proposal,
    at: Timestamp,
) -> Result<Applied> {
    let document: Option<String> = connection
        .prepare_cached("SELECT document FROM flows WHERE id = ?1")?
        .query_row([flow_id], |row| row.get(0))
        .optional()?;
    if document.is_none_or(|document| document_hash(&document) != proposal.document) {
        return Err(Error::Conflict(format!(
            "flow {flow_id} has changed since it was looked at"
        )));
    }
    let key = proposal.key();
    let present = connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM suggestions
             WHERE flow_id = ?1 AND key = ?2 ORDER BY id DESC LIMIT 1"
        ))?
        .query_row(params![flow_id, key], suggestion)
        .optional()?;
    let text = to_json(proposal)?;
    let id = match present {
        Some(open) if open.status == Status::Open => {
            connection
                .prepare_cached(
                    "UPDATE suggestions SET flow_name = ?2, proposal = ?3 WHERE id = ?1",
                )?
                .execute(params![open.id, flow_name, text])?;
            return Ok(Receipt::Done.into());
        }
        Some(old)
            if matches!(old.status, Status::Dismissed | Status::Reverted)
                && !proposal.is_news_after(&old.proposal) =>
        {
            return Ok(Receipt::Done.into());
        }
        // Under the number that it had, so that one which comes and goes does not become many.
        Some(old) if matches!(old.status, Status::Dismissed | Status::Withdrawn) => {
            connection
                .prepare_cached(
                    "UPDATE suggestions SET status = 'OPEN', changed_ms = ?2, flow_name = ?3,
                        proposal = ?4 WHERE id = ?1",
                )?
                .execute(params![old.id, at.0, flow_name, text])?;
            old.id
        }
        _ => {
            connection
                .prepare_cached(
                    "INSERT INTO suggestions (key, status, flow_id, flow_name, proposal, created_ms,
                        changed_ms) VALUES (?1, 'OPEN', ?2, ?3, ?4, ?5, ?5)",
                )?
                .execute(params![key, flow_id, flow_name, text, at.0])?;
            connection.last_insert_rowid()
        }
    };
    let suggestion = one(connection, id)?;
    let context = context(&suggestion);
    let suggestion = without_trial(suggestion);
    Ok(vec![Event::OptimizationAvailable {
        context,
        suggestion,
    }]
    .into())
}

/// SHA-256 of a flow's document as it is stored, in hexadecimal.
pub fn document_hash(document: &str) -> String {
    hex(&Sha256::digest(document))
}

/// Notes which nodes of a flow say something else from now on, and about what.
pub(super) fn note_changed_nodes(
    connection: &Connection,
    flow_id: FlowId,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<()> {
    let (before, after) = (fingerprint(before), fingerprint(after));
    for (node_id, said) in &after {
        let old = before.get(node_id);
        for (concern, said) in said {
            if old.and_then(|old| old.get(concern)) == Some(said) {
                continue;
            }
            connection
                .prepare_cached(
                    "INSERT INTO node_changes (flow_id, node_id, concern, last_call, at_ms)
                     VALUES (?1, ?2, ?3, (SELECT coalesce(max(id), 0) FROM ledger), ?4)
                     ON CONFLICT DO UPDATE SET last_call = excluded.last_call, at_ms = excluded.at_ms",
                )?
                .execute(params![flow_id, node_id, concern.as_str(), at.0])?;
        }
    }
    // One that comes back is another one.
    for node_id in before.keys().filter(|id| !after.contains_key(*id)) {
        connection
            .prepare_cached("DELETE FROM node_changes WHERE flow_id = ?1 AND node_id = ?2")?
            .execute(params![flow_id, node_id])?;
    }
    Ok(())
}

/// Sets what becomes of an open one.
///
/// # Errors
/// [`Error::Conflict`] where it is not open.
pub(super) fn close(
    connection: &Connection,
    id: i64,
    status: Status,
    at: Timestamp,
) -> Result<Applied> {
    let old = one(connection, id)?;
    if old.status != Status::Open {
        return Err(is_not(&old, Status::Open));
    }
    set_status(connection, id, status, at)
}

/// Changes a flow as a suggestion says. What is kept of it is what was chosen, so that a promise stands
/// beside what it has brought.
///
/// # Errors
/// [`Error::Conflict`] where the flow is not what the change was made for, and where the suggestion
/// does not stand any more.
pub(super) fn apply(
    connection: &Connection,
    id: i64,
    proposal: &Proposal,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<Applied> {
    let old = one(connection, id)?;
    if !matches!(old.status, Status::Open | Status::Dismissed) {
        return Err(is_not(&old, Status::Open));
    }
    replace_document(connection, old.flow_id, before, after, at)?;
    connection
        .prepare_cached(
            "UPDATE suggestions SET proposal = ?5, applied_ms = ?2, document_before = ?3,
                document_after = ?4, last_call = (SELECT coalesce(max(id), 0) FROM ledger)
             WHERE id = ?1",
        )?
        .execute(params![id, at.0, before, after, to_json(proposal)?])?;
    set_status(connection, id, Status::Applied, at)
}

/// Takes back what a suggestion did to its flow.
///
/// # Errors
/// [`Error::Conflict`] where the flow was changed since, or it is not applied.
pub(super) fn revert(connection: &Connection, id: i64, at: Timestamp) -> Result<Applied> {
    let old = one(connection, id)?;
    if old.status != Status::Applied {
        return Err(is_not(&old, Status::Applied));
    }
    let (before, after): (String, String) = connection
        .prepare_cached("SELECT document_before, document_after FROM suggestions WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    replace_document(connection, old.flow_id, &after, &before, at)?;
    set_status(connection, id, Status::Reverted, at)
}

/// Counts a run that went well for the suggestions that were applied before it began.
pub(super) fn count_run(connection: &Connection, run_id: &str) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE suggestions SET runs = runs + 1, runs_ms = runs_ms + took_ms
             FROM (SELECT flow_id AS of_flow, created_ms AS began_ms,
                       max(coalesce(finished_ms - started_ms, 0), 0) AS took_ms
                   FROM runs WHERE id = ?1)
             WHERE flow_id = of_flow AND status = 'APPLIED'
                 AND began_ms BETWEEN applied_ms AND applied_ms + ?2",
        )?
        .execute(params![run_id, MEASURED_MS])?;
    Ok(())
}

/// Keeps what was measured after one was applied; of one that was taken back meanwhile, what is kept
/// stays.
pub(super) fn set_realised(
    connection: &Connection,
    id: i64,
    realised: &Realised,
) -> Result<Applied> {
    let text = serde_json::to_string(realised)
        .map_err(|error| Error::internal(format!("savings cannot be written: {error}")))?;
    connection
        .prepare_cached(
            "UPDATE suggestions SET realised = ?2 WHERE id = ?1 AND status = 'APPLIED'",
        )?
        .execute(params![id, text])?;
    Ok(Receipt::Done.into())
}

/// Keeps what a trial gave.
pub(super) fn set_trial(connection: &Connection, id: i64, trial: &Trial) -> Result<Applied> {
    let text = serde_json::to_string(trial)
        .map_err(|error| Error::internal(format!("a trial cannot be written: {error}")))?;
    connection
        .prepare_cached("UPDATE suggestions SET trial = ?2 WHERE id = ?1")?
        .execute(params![id, text])?;
    changed(connection, id)
}

fn set_status(connection: &Connection, id: i64, status: Status, at: Timestamp) -> Result<Applied> {
    connection
        .prepare_cached("UPDATE suggestions SET status = ?2, changed_ms = ?3 WHERE id = ?1")?
        .execute(params![id, status.as_str(), at.0])?;
    changed(connection, id)
}

fn changed(connection: &Connection, id: i64) -> Result<Applied> {
    let suggestion = one(connection, id)?;
    let context = context(&suggestion);
    let suggestion = without_trial(suggestion);
    Ok(vec![Event::OptimizationChanged {
        context,
        suggestion,
    }]
    .into())
}

fn context(suggestion: &Suggestion) -> EventContext {
    EventContext {
        flow_id: Some(suggestion.flow_id),
        run_id: None,
        node_id: Some(suggestion.proposal.node_id.clone()),
        timestamp: suggestion.changed_at,
    }
}

/// As in lists: a trial's texts are only for those who ask for them.
fn without_trial(suggestion: Suggestion) -> Box<Suggestion> {
    Box::new(Suggestion {
        trial: None,
        ..suggestion
    })
}

fn replace_document(
    connection: &Connection,
    flow_id: FlowId,
    before: &str,
    after: &str,
    at: Timestamp,
) -> Result<()> {
    let changed = connection
        .prepare_cached(
            "UPDATE flows SET document = ?3, updated_ms = ?4 WHERE id = ?1 AND document = ?2",
        )?
        .execute(params![flow_id, before, after, at.0])?;
    if changed == 0 {
        return Err(Error::Conflict(format!(
            "flow {flow_id} has changed since: look at it again"
        )));
    }
    note_changed_nodes(connection, flow_id, before, after, at)
}

fn is_not(old: &Suggestion, wanted: Status) -> Error {
    Error::Conflict(format!(
        "suggestion {} is {}, not {wanted}",
        old.id, old.status
    ))
}
