//! The stored bodies of calls.

use serde::Serialize;

use super::Context;
use super::reply::{self, Answer};
use crate::error::{Error, Result};
use crate::listener::ApiError;
use crate::store::{Bodies, BodyPart, Change, Receipt, StoredBody};

/// Limits how many bodies are removed at once, so that calls do not wait long.
const STEP: usize = 100;

#[derive(Serialize)]
struct View {
    request: Option<String>,
    response: Option<String>,
    request_bytes: u64,
    response_bytes: u64,
    is_request_cut: bool,
    is_response_cut: bool,
    request_content_type: Option<String>,
    response_content_type: Option<String>,
}

/// `GET /api/ledger/{id}/body`.
pub fn get(context: &Context, id: i64) -> Answer {
    let Some(StoredBody { request, response }) = context.store.body(id)? else {
        return Err(not_stored(context, id));
    };
    let texts = (request.text()?, response.text()?);
    let BodyPart { bytes: request_bytes, is_cut: is_request_cut, .. } = request;
    let BodyPart { bytes: response_bytes, is_cut: is_response_cut, .. } = response;
    Ok(reply::json(
        200,
        &View {
            request: texts.0,
            response: texts.1,
            request_bytes,
            response_bytes,
            is_request_cut,
            is_response_cut,
            request_content_type: request.content_type,
            response_content_type: response.content_type,
        },
    ))
}

/// `DELETE /api/ledger/{id}/body`.
pub fn delete(context: &Context, id: i64) -> Answer {
    match delete_step(context, Bodies::OfRow(id))? {
        0 => Err(not_stored(context, id)),
        _ => Ok(reply::empty()),
    }
}

/// `DELETE /api/bodies`: removes all bodies in small steps, and returns their number.
pub fn delete_all(context: &Context) -> Answer {
    // Calls that end meanwhile do not prolong this.
    let count = match context.store.newest_body()? {
        Some(newest) => delete_each(context, &Bodies::UpTo(newest))?,
        None => 0,
    };
    Ok(reply::json(200, &serde_json::json!({"removed": count})))
}

/// Removes these bodies in small steps. Returns their number.
pub(super) fn delete_each(context: &Context, bodies: &Bodies) -> Result<usize> {
    let mut all = 0;
    loop {
        match delete_step(context, bodies.clone())? {
            0 => return Ok(all),
            count => all += count,
        }
    }
}

fn delete_step(context: &Context, bodies: Bodies) -> Result<usize> {
    match context.journal.commit_one(Change::DeleteBodies(bodies, STEP))? {
        Receipt::DeletedBodies(count) => Ok(count),
        _ => Err(Error::internal("the journal returned no number of bodies")),
    }
}

fn not_stored(context: &Context, id: i64) -> ApiError {
    let message = match context.settings.retention.bodies {
        None => format!(
            "the body of ledger row {id} is not stored; to store bodies of later calls, set \
             `bodies_days` in section `[retention]` of the configuration file and restart"
        ),
        Some(_) => format!(
            "the body of ledger row {id} is not stored; only recent calls of the gateway's clients \
             have one"
        ),
    };
    ApiError::new(404, "not_found", message)
}
