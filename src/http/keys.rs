//! `/api/keys`: virtual keys, each of which opens the gateway (`/v1/*`) and nothing else.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::reply::{Failure, Reply, read_json};
use crate::error::Error;
use crate::event::Timestamp;
use crate::store::KeyRecord;

type Answer = std::result::Result<Reply, Failure>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct New {
    name: String,
    expires_at: Option<Timestamp>,
}

/// `GET /api/keys`: all of them; none tells the key itself.
pub fn list(context: &Context) -> Answer {
    let keys: Vec<Value> = context.store.keys()?.iter().map(shown).collect();
    Ok(Reply::list(&keys, None::<i64>))
}

/// `POST /api/keys`: a new one, which is shown this once.
pub fn create(context: &Context, body: &[u8]) -> Answer {
    let new: New = read_json(body)?;
    let (record, key) = context.keys.create(&new.name, new.expires_at)?;
    let mut shown = shown(&record);
    shown["key"] = key.expose().into();
    Ok(Reply::json(201, &shown).with("location", format!("/api/keys/{}", record.id)))
}

/// `DELETE /api/keys/{id}`.
pub fn delete(context: &Context, id: &str) -> Answer {
    let id = id
        .parse()
        .map_err(|_| Error::NotFound(format!("key `{id}`; a key's id is a number")))?;
    context.keys.delete(id)?;
    Ok(Reply::empty())
}

fn shown(key: &KeyRecord) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "createdAt": key.created_at,
        "lastUsedAt": key.last_used_at,
        "expiresAt": key.expires_at,
    })
}
