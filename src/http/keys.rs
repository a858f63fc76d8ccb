//! `/api/keys`: virtual keys, each valid only for the gateway (`/v1/*`).

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::budget::reference_faults;
use super::reply::{self, Answer, With};
use super::request::{Query, read_json};
use crate::budget::Budget;
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::store::KeyRecord;
use crate::time::Timestamp;

/// Limits the flows that one key may name.
const FLOWS_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateRequest {
    name: String,
    expires_at: Option<Timestamp>,
    /// The flows that the key may name with `X-Flowledger-Flow`.
    flows: Option<Vec<FlowId>>,
    budget: Option<Value>,
}

/// `GET /api/keys`: lists all keys, with the names of their budgets, without the keys themselves.
pub fn list(context: &Context) -> Answer {
    let budgets = context.store.bare_budgets()?;
    let keys = context.store.keys()?;
    let keys: Vec<Value> = keys.iter().map(|key| view(key, &budgets)).collect();
    Ok(reply::list(&keys, None::<i64>))
}

/// `POST /api/keys`: creates a key, shown only once, and optionally its budget.
pub fn create(context: &Context, body: &[u8]) -> Answer {
    let mut new: CreateRequest = read_json(body)?;
    let flows = new.flows.unwrap_or_default();
    let faults = flow_faults(context, &flows)?;
    if !faults.is_empty() {
        let message = "cannot create the key".to_owned();
        return Err(Error::Invalid { message, faults }.into());
    }
    if let Some(Value::String(name)) = new.budget.as_mut().and_then(|it| it.get_mut("endUser")) {
        *name = context.end_users.stored(std::mem::take(name));
    }
    if let Some(budget) = &new.budget {
        let model = budget.get("model").and_then(Value::as_str);
        let flow_id = budget.get("flowId").and_then(Value::as_i64);
        let model = model.filter(|it| it.contains('/'));
        let faults = reference_faults(context, "budget", model, flow_id)?;
        if !faults.is_empty() {
            let message = "cannot create the key".to_owned();
            return Err(Error::Invalid { message, faults }.into());
        }
    }
    let (record, key) = context.keys.create(&new.name, new.expires_at, flows, new.budget)?;
    // The key is returned even if the budgets cannot be read, because it is shown only once.
    let budgets = context.store.bare_budgets().unwrap_or_default();
    let mut view = view(&record, &budgets);
    view["key"] = key.expose().into();
    Ok(reply::json(201, &view).with("location", format!("/api/keys/{}", record.id)))
}

fn flow_faults(context: &Context, flows: &[FlowId]) -> Result<Vec<Fault>> {
    if flows.len() > FLOWS_MAX {
        return Ok(vec![Fault::new("flows", format!("must have up to {FLOWS_MAX} ids"))]);
    }
    let mut faults = Vec::new();
    for (at, id) in flows.iter().enumerate() {
        if !context.store.has_flow(*id)? {
            faults.push(Fault::new(format!("flows[{at}]"), format!("flow {id} not found")));
        }
    }
    Ok(faults)
}

pub fn delete(context: &Context, id: i64, mut query: Query) -> Answer {
    let with_budgets = query.take("with_budgets").unwrap_or(false);
    query.finish()?;
    context.keys.delete(id, with_budgets)?;
    Ok(reply::empty())
}

fn view(key: &KeyRecord, budgets: &[Budget]) -> Value {
    let own = budgets.iter().filter(|budget| budget.key.as_deref() == Some(&key.name));
    let own: Vec<&str> = own.map(|budget| budget.name.as_str()).collect();
    json!({
        "id": key.id,
        "name": key.name,
        "createdAt": key.created_at,
        "lastUsedAt": key.last_used_at,
        "expiresAt": key.expires_at,
        "flows": key.flows.0,
        "budgets": own,
    })
}
