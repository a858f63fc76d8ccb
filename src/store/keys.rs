//! Keys of the gateway's clients. Only their hashes are stored.

use rusqlite::{Connection, params};

use super::change::{Applied, NewKey, Receipt, done};
use super::reader::Store;
use super::sql::{execute, no_conflict, one};
use crate::error::{Error, Result};
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
}

from_row!(KeyRecord; id, name, hash, created_at, last_used_at, expires_at);

impl Store {
    pub fn keys(&self) -> Result<Vec<KeyRecord>> {
        let sql = "SELECT id, name, hash, created_ms, last_used_ms, expires_ms FROM keys
                 ORDER BY id DESC";
        self.all(sql, [])
    }
}

pub(super) fn create(db: &Connection, key: &NewKey) -> Result<Applied> {
    let sql = "INSERT INTO keys (name, hash, created_ms, expires_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO NOTHING";
    let changed = execute(db, sql, params![key.name, key.hash, key.at, key.expires_at])?;
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
