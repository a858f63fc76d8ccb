//! Keys of the gateway's clients. Of a key itself only the hash is known.

use rusqlite::{Connection, params};

use super::change::{Applied, NewKey, Receipt, done};
use super::reader::Store;
use super::sql::{execute, no_conflict, one};
use crate::error::{Error, Result};
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: i64,
    /// What people, ledger rows and budgets call it; unique.
    pub name: String,
    pub hash: String,
    pub created_at: Timestamp,
    /// When it was used last, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// From when on it opens nothing any more.
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
    no_conflict(changed, || format!("there is a key named `{}` already", key.name))?;
    Ok(Receipt::Key(db.last_insert_rowid()).into())
}

pub(super) fn delete(db: &Connection, id: i64) -> Result<String> {
    one(db, "DELETE FROM keys WHERE id = ?1 RETURNING name", [id])?
        .ok_or_else(|| Error::NotFound(format!("key {id}")))
}

/// Of a key that was removed meanwhile, nothing is written.
pub(super) fn touch(db: &Connection, id: i64, at: Timestamp) -> Result<Applied> {
    execute(db, "UPDATE keys SET last_used_ms = ?2 WHERE id = ?1", params![id, at]).map(done)
}
