//! Keys of the gateway's clients. Only their hashes are stored.

use rusqlite::{Connection, Row, params};
use serde_json::json;

use super::change::{Applied, NewKey, Receipt, done};
use super::reader::Store;
use super::sql::{FromRow, execute, no_conflict, one};
use crate::error::{Error, Result};
use crate::ids::FlowId;
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: i64,
    /// A unique name, which ledger rows and budgets refer to.
    pub name: String,
    pub hash: String,
    pub created_at: Timestamp,
    /// The time of the last use, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// The key is refused from this time on.
    pub expires_at: Option<Timestamp>,
    /// The flows that the key may name.
    pub flows: KeyFlows,
}

/// The ids of flows, stored as a JSON array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFlows(pub Vec<FlowId>);

impl FromRow for KeyFlows {
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        let stored: Option<String> = FromRow::read(row, at)?;
        // Unreadable permissions permit nothing.
        let ids = stored.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Self(ids.unwrap_or_default()))
    }
}

from_row!(KeyRecord; id, name, hash, created_at, last_used_at, expires_at, flows);

impl Store {
    pub fn keys(&self) -> Result<Vec<KeyRecord>> {
        let sql = "SELECT id, name, hash, created_ms, last_used_ms, expires_ms, flows FROM keys
                 ORDER BY id DESC";
        self.all(sql, [])
    }
}

pub(super) fn create(db: &Connection, key: &NewKey) -> Result<Applied> {
    let sql = "INSERT INTO keys (name, hash, created_ms, expires_ms, flows)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
    let flows = (!key.flows.is_empty()).then(|| json!(key.flows).to_string());
    let changed = execute(db, sql, params![key.name, key.hash, key.at, key.expires_at, flows])?;
    no_conflict(changed, || format!("key `{}` already exists", key.name))?;
    Ok(Receipt::Key(db.last_insert_rowid()).into())
}

pub(super) fn delete(db: &Connection, id: i64) -> Result<String> {
    one(db, "DELETE FROM keys WHERE id = ?1 RETURNING name", [id])?
        .ok_or_else(|| Error::NotFound(format!("key {id}")))
}

/// Updates the time of the last use. Writes nothing if the key was removed in the meantime.
pub(super) fn touch(db: &Connection, id: i64, at: Timestamp) -> Result<Applied> {
    execute(db, "UPDATE keys SET last_used_ms = ?2 WHERE id = ?1", params![id, at]).map(done)
}
