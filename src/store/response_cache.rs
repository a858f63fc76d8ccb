//! The response cache: stored answers for nodes and clients that want to pay once for
//! identical calls.

use rusqlite::{Connection, params};

use super::change::{Applied, Bought, Receipt, done};
use super::reader::Store;
use super::sql::{all, execute, single};
use crate::error::Result;
use crate::time::Timestamp;

/// The largest answer that is stored, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Limits the size of all answers in bytes; beyond it the oldest are removed.
pub const ANSWERS_BYTES_MAX: i64 = 256 << 20;
/// The approximate size of a row without its text, in bytes: the key, twice, and numbers.
const ROW_BYTES: usize = 200;
/// The greatest age of an answer, in milliseconds, which is also the most that a node or client
/// may request.
pub const ANSWERS_AGE_MAX_MS: i64 = 365 * 24 * 60 * 60 * 1000;

/// Stores an answer in place of an older one, unless it is too large.
pub(super) fn insert(db: &Connection, response: &Bought) -> Result<Applied> {
    if response.output.len() > ANSWER_BYTES_MAX {
        return Ok(Receipt::Done.into());
    }
    let sql = "INSERT OR REPLACE INTO answers (key, created_ms, bytes, model, output, cost_nanousd,
                content_type)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    execute(
        db,
        sql,
        params![
            response.key,
            response.at,
            response.output.len() + ROW_BYTES,
            response.model,
            response.output,
            response.cost,
            response.content_type
        ],
    )
    .map(done)
}

/// Returns by how many bytes the answers exceed [`ANSWERS_BYTES_MAX`].
pub(super) fn bytes_over_limit(db: &Connection) -> Result<i64> {
    let bytes: i64 = single(db, "SELECT coalesce(sum(bytes), 0) FROM answers", [])?;
    Ok((bytes - ANSWERS_BYTES_MAX).max(0))
}

/// Removes those of the `step` oldest answers that are too old, or all of them if `is_over_limit`.
/// Returns their number and their bytes.
pub(super) fn prune(
    db: &Connection,
    is_over_limit: bool,
    now: Timestamp,
    step: usize,
) -> Result<(usize, i64)> {
    let sql = "DELETE FROM answers WHERE key IN (
            SELECT key FROM (SELECT key, created_ms FROM answers ORDER BY created_ms LIMIT ?3)
            WHERE ?1 OR created_ms < ?2)
         RETURNING bytes";
    let removed: Vec<i64> =
        all(db, sql, params![is_over_limit, now.0.saturating_sub(ANSWERS_AGE_MAX_MS), step])?;
    Ok((removed.len(), removed.iter().sum()))
}

from_row!(Bought; key, at, model, output, content_type, cost);

impl Store {
    /// Returns the answer with that key if it was stored from `since` to `until`.
    pub fn answer(&self, key: &str, since: Timestamp, until: Timestamp) -> Result<Option<Bought>> {
        let sql = "SELECT key, created_ms, model, output, content_type, cost_nanousd FROM answers
             WHERE key = ?1 AND created_ms BETWEEN ?2 AND ?3";
        self.one(sql, params![key, since, until])
    }
}
