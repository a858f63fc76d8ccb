//! Answers that were bought, for nodes and clients that want none bought twice.

use rusqlite::{Connection, params};

use super::change::{Applied, Bought, Receipt, done};
use super::reader::Store;
use super::sql::{all, execute, single};
use crate::error::Result;
use crate::time::Timestamp;

/// The largest answer that is kept, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How many bytes of answers are kept in all; then the oldest go.
const ANSWERS_BYTES_MAX: i64 = 256 << 20;
/// What an answer takes beside its text, in bytes, roughly: its key, twice, and its numbers.
const ROW_BYTES: usize = 200;
/// None is kept for longer, in milliseconds: as long as a node or a client may ask for.
const AGE_MAX_MS: i64 = 365 * 24 * 60 * 60 * 1000;

/// Keeps an answer in place of an older one; one that is too large is not kept.
pub(super) fn keep(db: &Connection, bought: &Bought) -> Result<Applied> {
    if bought.output.len() > ANSWER_BYTES_MAX {
        return Ok(Receipt::Done.into());
    }
    let sql = "INSERT OR REPLACE INTO answers (key, created_ms, bytes, model, output, cost_nanousd,
                content_type)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    execute(
        db,
        sql,
        params![
            bought.key,
            bought.at,
            bought.output.len() + ROW_BYTES,
            bought.model,
            bought.output,
            bought.cost,
            bought.content_type
        ],
    )
    .map(done)
}

/// How many bytes of answers there are beyond what there is room for.
pub(super) fn bytes_too_many(db: &Connection) -> Result<i64> {
    let bytes: i64 = single(db, "SELECT coalesce(sum(bytes), 0) FROM answers", [])?;
    Ok((bytes - ANSWERS_BYTES_MAX).max(0))
}

/// Removes those of the `step` oldest answers that are too old; all of them where there are too many.
/// Gives how many these were, and how many bytes.
pub(super) fn prune(
    db: &Connection,
    too_many: bool,
    now: Timestamp,
    step: usize,
) -> Result<(usize, i64)> {
    let sql = "DELETE FROM answers WHERE key IN (
            SELECT key FROM (SELECT key, created_ms FROM answers ORDER BY created_ms LIMIT ?3)
            WHERE ?1 OR created_ms < ?2)
         RETURNING bytes";
    let removed: Vec<i64> =
        all(db, sql, params![too_many, now.0.saturating_sub(AGE_MAX_MS), step])?;
    Ok((removed.len(), removed.iter().sum()))
}

from_row!(Bought; key, at, model, output, content_type, cost);

impl Store {
    /// The answer of that key, if there is one that was bought from `since` to `until`.
    pub fn answer(&self, key: &str, since: Timestamp, until: Timestamp) -> Result<Option<Bought>> {
        let sql = "SELECT key, created_ms, model, output, content_type, cost_nanousd FROM answers
             WHERE key = ?1 AND created_ms BETWEEN ?2 AND ?3";
        self.one(sql, params![key, since, until])
    }
}
