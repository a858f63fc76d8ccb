//! Stores and removes the bodies of calls: requests and responses of the gateway's clients, if that
//! is switched on.

use rusqlite::{Connection, params};

use super::body::{Bodies, BodyPart, NewBody};
use super::change::{Applied, Receipt};
use super::reader::Store;
use super::sql::{execute, single};
use crate::error::Result;
use crate::time::Timestamp;

/// The approximate size of a row without its texts, in bytes.
const ROW_BYTES: usize = 100;

from_row!(BodyPart; text, bytes, is_cut, content_type);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    pub request: BodyPart,
    pub response: BodyPart,
}

from_row!(StoredBody; request, response);

pub(super) fn insert(db: &Connection, body: &NewBody) -> Result<Applied> {
    let NewBody { ledger_id, end_user, at, request, response } = body;
    let sql = "INSERT INTO bodies (ledger_id, created_ms, end_user, bytes, request, request_bytes,
            is_request_cut, request_type, response, response_bytes, is_response_cut, response_type)
         SELECT id, ?3, ?2, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12
         FROM ledger WHERE id = ?1 AND end_user IS ?2
         ON CONFLICT DO NOTHING";
    let params = params![
        ledger_id,
        end_user,
        at,
        ROW_BYTES + request.stored_bytes() + response.stored_bytes(),
        request.text,
        request.bytes,
        request.is_cut,
        request.content_type,
        response.text,
        response.bytes,
        response.is_cut,
        response.content_type
    ];
    execute(db, sql, params)?;
    Ok(Receipt::Done.into())
}

pub(super) fn delete(db: &Connection, which: &Bodies, step: usize) -> Result<Applied> {
    // The old text is overwritten in the file as well.
    db.pragma_update(None, "secure_delete", true)?;
    let some = |condition: &str| {
        format!(
            "DELETE FROM bodies WHERE ledger_id IN (
                SELECT ledger_id FROM bodies WHERE {condition} ORDER BY ledger_id LIMIT ?2)"
        )
    };
    let count = match which {
        Bodies::OfRow(id) => execute(db, &some("ledger_id = ?1"), params![id, step])?,
        Bodies::UpTo(id) => execute(db, &some("ledger_id <= ?1"), params![id, step])?,
        Bodies::OfEndUser(names) => {
            let mut count = 0;
            for name in names {
                let left = step - count;
                count += execute(db, &some("end_user = ?1"), params![name, left])?;
            }
            count
        }
    };
    db.pragma_update(None, "secure_delete", false)?;
    Ok(Receipt::DeletedBodies(count).into())
}

/// Removes those of the `step` oldest bodies that are older than `before`, or that exceed
/// `bytes_max` with all newer ones. Returns their number.
pub(super) fn prune(
    db: &Connection,
    before: Timestamp,
    bytes_max: u64,
    step: usize,
) -> Result<usize> {
    let bytes: u64 = single(db, "SELECT bytes FROM body_bytes", [])?;
    if bytes == 0 {
        return Ok(0);
    }
    let sql = "DELETE FROM bodies WHERE ledger_id IN (
            SELECT ledger_id FROM (
                SELECT ledger_id, created_ms,
                    sum(bytes) OVER (ORDER BY created_ms, ledger_id) - bytes AS bytes_before
                FROM (SELECT ledger_id, created_ms, bytes FROM bodies
                    ORDER BY created_ms, ledger_id LIMIT ?3))
            WHERE created_ms < ?1 OR bytes_before < ?2)";
    execute(db, sql, params![before, bytes.saturating_sub(bytes_max), step])
}

impl Store {
    /// Returns the bodies of a ledger row, if they are stored.
    pub fn body(&self, ledger_id: i64) -> Result<Option<StoredBody>> {
        let sql = "SELECT request, request_bytes, is_request_cut, request_type, response,
                response_bytes, is_response_cut, response_type
             FROM bodies WHERE ledger_id = ?1";
        self.one(sql, [ledger_id])
    }

    pub fn has_body(&self, ledger_id: i64) -> Result<bool> {
        let sql = "SELECT 1 FROM bodies WHERE ledger_id = ?1";
        Ok(self.one::<i64>(sql, [ledger_id])?.is_some())
    }

    /// Returns the newest row with a body, if any.
    pub fn newest_body(&self) -> Result<Option<i64>> {
        self.one("SELECT ledger_id FROM bodies ORDER BY ledger_id DESC LIMIT 1", [])
    }
}
