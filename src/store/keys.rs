//! Keys of the gateway's clients. Only their hashes are stored.

use rusqlite::types::ToSql;
use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::change::{Applied, KeyEdit, NewKey, Receipt, done};
use super::key_record::{KeyLimits, KeyRecord};
use super::reader::Store;
use super::sql::{FromRow, execute, no_conflict, one, single};
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// Limits the former hashes of one key. Expired ones are kept as well, so that their clients learn
/// that the key was rotated.
pub const FORMER_KEYS_MAX: usize = 10;

/// A hash that a rotated key had before.
#[derive(Clone, Debug)]
pub struct FormerKey {
    pub hash: String,
    pub key_id: i64,
    pub valid_until: Timestamp,
}

from_row!(KeyRecord; id, name, hash, created_at, last_used_at, expires_at, revision, limits);
from_row!(FormerKey; hash, key_id, valid_until);

/// The columns of [`KeyRecord`].
const COLUMNS: &str =
    "id, name, hash, created_ms, last_used_ms, expires_ms, revision, flows, models,
    requests_per_minute, tokens_per_minute";

impl FromRow for KeyLimits {
    fn read(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Self> {
        Ok(Self {
            flows: list(row, at)?.unwrap_or_default(),
            models: list(row, at)?,
            requests_per_minute: FromRow::read(row, at)?,
            tokens_per_minute: FromRow::read(row, at)?,
        })
    }
}

/// Reads a JSON array; none for null. Unreadable permissions permit nothing.
fn list<T: DeserializeOwned>(row: &Row<'_>, at: &mut usize) -> rusqlite::Result<Option<Vec<T>>> {
    let stored: Option<String> = FromRow::read(row, at)?;
    Ok(stored.map(|text| serde_json::from_str(&text).unwrap_or_default()))
}

impl Store {
    pub fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.all(&format!("SELECT {COLUMNS} FROM keys ORDER BY id DESC"), [])
    }

    pub fn former_keys(&self) -> Result<Vec<FormerKey>> {
        self.all("SELECT hash, key_id, valid_until_ms FROM former_keys", [])
    }
}

pub(super) fn create(db: &Connection, key: &NewKey) -> Result<Applied> {
    let sql = "INSERT INTO keys (name, hash, created_ms, expires_ms, flows, models,
                 requests_per_minute, tokens_per_minute)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING";
    let KeyLimits { flows, models, requests_per_minute, tokens_per_minute } = &key.limits;
    let flows = (!flows.is_empty()).then(|| json!(flows).to_string());
    let models = models.as_ref().map(|models| json!(models).to_string());
    let values = params![
        key.name,
        key.hash,
        key.at,
        key.expires_at,
        flows,
        models,
        requests_per_minute,
        tokens_per_minute
    ];
    let changed = execute(db, sql, values)?;
    no_conflict(changed, || format!("key `{}` already exists", key.name))?;
    Ok(Receipt::Key(db.last_insert_rowid()).into())
}

pub(super) fn edit(db: &Connection, id: i64, edit: &KeyEdit) -> Result<Applied> {
    let flows = edit.flows.as_ref().map(|flows| json!(flows).to_string());
    let models = edit.models.as_ref().map(|models| models.as_ref().map(|it| json!(it).to_string()));
    let values: [(&str, Option<&dyn ToSql>); 5] = [
        ("expires_ms", edit.expires_at.as_ref().map(|it| it as _)),
        ("flows", flows.as_ref().map(|it| it as _)),
        ("models", models.as_ref().map(|it| it as _)),
        ("requests_per_minute", edit.requests_per_minute.as_ref().map(|it| it as _)),
        ("tokens_per_minute", edit.tokens_per_minute.as_ref().map(|it| it as _)),
    ];
    for (column, value) in values {
        if let Some(value) = value {
            let sql = format!("UPDATE keys SET {column} = ?2 WHERE id = ?1");
            execute(db, &sql, params![id, value])?;
        }
    }
    let before = hash(db, id)?;
    edited(db, id, before)
}

pub(super) fn rotate(
    db: &Connection,
    id: i64,
    new_hash: &str,
    valid_until: Timestamp,
    at: Timestamp,
) -> Result<Applied> {
    let before = hash(db, id)?;
    let sql = "SELECT count(*) FROM former_keys WHERE key_id = ?1 AND valid_until_ms > ?2";
    let valid: usize = single(db, sql, params![id, at])?;
    if valid >= FORMER_KEYS_MAX {
        return Err(Error::Conflict(format!(
            "{FORMER_KEYS_MAX} former keys of key {id} are still valid; wait until one expires"
        )));
    }
    let sql = "INSERT INTO former_keys (hash, key_id, valid_until_ms) VALUES (?1, ?2, ?3)";
    execute(db, sql, params![before, id, valid_until])?;
    let sql = "DELETE FROM former_keys WHERE hash IN (SELECT hash FROM former_keys
             WHERE key_id = ?1 ORDER BY valid_until_ms DESC LIMIT -1 OFFSET ?2)";
    execute(db, sql, params![id, FORMER_KEYS_MAX])?;
    execute(db, "UPDATE keys SET hash = ?2 WHERE id = ?1", params![id, new_hash])?;
    edited(db, id, before)
}

fn hash(db: &Connection, id: i64) -> Result<String> {
    one(db, "SELECT hash FROM keys WHERE id = ?1", [id])?.ok_or_else(|| unknown(id))
}

fn edited(db: &Connection, id: i64, hash_before: String) -> Result<Applied> {
    let sql = format!("UPDATE keys SET revision = revision + 1 WHERE id = ?1 RETURNING {COLUMNS}");
    let record = one(db, &sql, [id])?.ok_or_else(|| unknown(id))?;
    Ok(Receipt::EditedKey(Box::new(record), hash_before).into())
}

fn unknown(id: i64) -> Error {
    Error::NotFound(format!("key {id}"))
}

pub(super) fn delete(db: &Connection, id: i64) -> Result<String> {
    execute(db, "DELETE FROM former_keys WHERE key_id = ?1", params![id])?;
    one(db, "DELETE FROM keys WHERE id = ?1 RETURNING name", [id])?.ok_or_else(|| unknown(id))
}

/// Updates the time of the last use. Writes nothing if the key was removed in the meantime.
pub(super) fn touch(db: &Connection, id: i64, at: Timestamp) -> Result<Applied> {
    execute(db, "UPDATE keys SET last_used_ms = ?2 WHERE id = ?1", params![id, at]).map(done)
}
