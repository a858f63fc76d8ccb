//! Reads and writes flows.

use rusqlite::{Connection, params};

use super::change::{Applied, NewFlow, Receipt};
use super::flow_events::changed;
use super::reader::Store;
use super::sql::{execute, one, single};
use super::{suggestions, triggers};
use crate::error::{Error, Result};
use crate::event::FlowChange;
use crate::ids::FlowId;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct FlowRecord {
    pub id: FlowId,
    pub name: String,
    pub document: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

const COLUMNS: &str = "id, name, document, created_ms, updated_ms";

from_row!(FlowRecord; id, name, document, created_at, updated_at);

impl Store {
    /// # Errors
    /// [`Error::NotFound`] for an unknown flow.
    pub fn flow(&self, id: FlowId) -> Result<FlowRecord> {
        self.one(&format!("SELECT {COLUMNS} FROM flows WHERE id = ?1"), [id])?
            .ok_or_else(|| Error::NotFound(format!("flow {id}")))
    }

    /// Returns the name and the document of a flow; of a deleted one only the name that its newest
    /// run had.
    pub fn flow_name(&self, id: FlowId) -> Result<Option<(String, Option<String>)>> {
        let sql = "SELECT name, document FROM flows WHERE id = ?1 UNION ALL
             SELECT flow_name, NULL FROM
                (SELECT flow_name FROM runs WHERE flow_id = ?1 ORDER BY id DESC LIMIT 1)
             LIMIT 1";
        self.one(sql, [id])
    }

    pub fn has_flow(&self, id: FlowId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM flows WHERE id = ?1)";
        self.read(|db| single(db, sql, [id]))
    }

    /// Returns the flow that was imported from this file, if any.
    pub fn flow_by_origin(&self, origin: &str) -> Result<Option<FlowRecord>> {
        self.one(&format!("SELECT {COLUMNS} FROM flows WHERE origin = ?1"), [origin])
    }

    /// Returns up to `limit` flows with ids below `before`, newest first, with the bytes of their
    /// documents.
    pub fn flow_sizes(&self, before: Option<FlowId>, limit: usize) -> Result<Vec<(FlowId, usize)>> {
        let sql =
            "SELECT id, octet_length(document) FROM flows WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        self.all(sql, params![before.unwrap_or(i64::MAX), limit])
    }

    /// Returns whether no flow was ever saved. Stays false after the last flow is removed.
    pub fn has_never_had_a_flow(&self) -> Result<bool> {
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'flows')";
        self.read(|db| single(db, sql, []))
    }
}

pub(super) fn create(db: &Connection, flow: &NewFlow) -> Result<Applied> {
    let sql = "INSERT INTO flows (name, document, origin, created_ms, updated_ms)
         VALUES (?1, ?2, ?3, ?4, ?4)";
    execute(db, sql, params![flow.name, flow.document, flow.origin, flow.at])?;
    let id = db.last_insert_rowid();
    let events = vec![changed(id, &flow.name, FlowChange::Created, flow.at)];
    Ok(Applied { receipt: Receipt::Flow(id), events })
}

pub(super) fn update(db: &Connection, id: FlowId, flow: &NewFlow) -> Result<Applied> {
    let before: Option<String> = one(db, "SELECT document FROM flows WHERE id = ?1", [id])?;
    let before = before.ok_or_else(|| Error::NotFound(format!("flow {id}")))?;
    let sql = "UPDATE flows SET name = ?2, document = ?3, updated_ms = ?4 WHERE id = ?1";
    execute(db, sql, params![id, flow.name, flow.document, flow.at])?;
    suggestions::record_changed_nodes(db, id, &before, &flow.document, flow.at)?;
    let events = vec![changed(id, &flow.name, FlowChange::Saved, flow.at)];
    Ok(Applied { receipt: Receipt::Flow(id), events })
}

/// # Errors
/// [`Error::Conflict`] while a run of the flow is open, so that no call is made for a deleted flow.
pub(super) fn delete(db: &Connection, id: FlowId) -> Result<Applied> {
    let sql = "SELECT count(*) FROM runs WHERE flow_id = ?1 AND status IN ('QUEUED', 'RUNNING')";
    let open: i64 = single(db, sql, [id])?;
    if open > 0 {
        return Err(Error::Conflict(format!(
            "cannot delete flow {id}: {open} of its runs are still open; cancel them first"
        )));
    }
    let name: Option<String> = one(db, "DELETE FROM flows WHERE id = ?1 RETURNING name", [id])?;
    let name = name.ok_or_else(|| Error::NotFound(format!("flow {id}")))?;
    triggers::delete_of_flow(db, id)?;
    execute(db, "DELETE FROM node_changes WHERE flow_id = ?1", params![id])?;
    Ok(vec![changed(id, &name, FlowChange::Deleted, Timestamp::now())].into())
}
