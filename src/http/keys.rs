//! `/api/keys`: virtual keys, each valid only for the gateway (`/v1/*`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Context;
use super::budget::reference_faults;
use super::reply::{self, Answer, With};
use super::request::{Query, read_json};
use crate::budget::{Budget, model_fault};
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::store::{FormerKey, KeyEdit, KeyLimits, KeyRecord};
use crate::time::Timestamp;

/// Limits the flows that one key may name.
const FLOWS_MAX: usize = 1_000;
/// Limits the patterns of models of one key.
const MODELS_MAX: usize = 100;
const MODEL_BYTES_MAX: usize = 256;
/// The time that a rotated key stays valid, in seconds.
const GRACE_DEFAULT_S: u64 = 60 * 60;
const GRACE_MAX_S: u64 = 30 * 24 * 60 * 60;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateRequest {
    name: String,
    expires_at: Option<Timestamp>,
    /// The flows that the key may name with `X-Flowledger-Flow`.
    flows: Option<Vec<FlowId>>,
    /// Patterns of the models that the key may use; all by default.
    models: Option<Vec<String>>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    budget: Option<Value>,
}

/// A missing field keeps its value, and null removes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EditRequest {
    /// Cannot change, because ledger rows and budgets refer to it.
    name: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    expires_at: Option<Option<Timestamp>>,
    #[serde(default, deserialize_with = "present")]
    flows: Option<Option<Vec<FlowId>>>,
    #[serde(default, deserialize_with = "present")]
    models: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    requests_per_minute: Option<Option<u32>>,
    #[serde(default, deserialize_with = "present")]
    tokens_per_minute: Option<Option<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RotateRequest {
    grace_seconds: Option<u64>,
}

/// Deserializes a field that is present, so that null differs from a missing field.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// `GET /api/keys`: lists all keys, with the names of their budgets, without the keys themselves.
pub fn list(context: &Context) -> Answer {
    let budgets = context.store.bare_budgets()?;
    let former = context.store.former_keys()?;
    let keys = context.store.keys()?;
    let keys: Vec<Value> = keys.iter().map(|key| view(key, &budgets, &former)).collect();
    Ok(reply::list(&keys, None::<i64>))
}

/// `POST /api/keys`: creates a key, shown only once, and optionally its budget.
pub fn create(context: &Context, body: &[u8]) -> Answer {
    let mut new: CreateRequest = read_json(body)?;
    let flows = new.flows.unwrap_or_default();
    let mut faults = flow_faults(context, &flows)?;
    faults.extend(model_faults(context, new.models.as_deref()));
    let limits = KeyLimits {
        flows: distinct(flows),
        models: new.models.map(distinct),
        requests_per_minute: new.requests_per_minute,
        tokens_per_minute: new.tokens_per_minute,
    };
    if faults.is_empty()
        && let Some(budget) = &new.budget
    {
        let model = budget.get("model").and_then(Value::as_str);
        let flow_id = budget.get("flowId").and_then(Value::as_i64);
        let model = model.filter(|it| it.contains('/'));
        faults = reference_faults(context, "budget", model, flow_id)?;
    }
    if !faults.is_empty() {
        let message = "cannot create the key".to_owned();
        return Err(Error::Invalid { message, faults }.into());
    }
    if let Some(Value::String(name)) = new.budget.as_mut().and_then(|it| it.get_mut("endUser")) {
        *name = context.end_users.stored(std::mem::take(name));
    }
    let (record, key) = context.keys.create(&new.name, new.expires_at, limits, new.budget)?;
    let mut view = complete_view(context, &record);
    view["key"] = key.expose().into();
    Ok(reply::json(201, &view).with("location", format!("/api/keys/{}", record.id)))
}

/// `PATCH /api/keys/{id}`: changes the limits of a key.
pub fn edit(context: &Context, id: i64, body: &[u8]) -> Answer {
    let new: EditRequest = read_json(body)?;
    let mut faults = Vec::new();
    if new.name.is_some() {
        let fault = "cannot change, because ledger rows and budgets refer to it";
        faults.push(Fault::new("name", fault));
    }
    let flows = new.flows.map(Option::unwrap_or_default);
    faults.extend(flow_faults(context, flows.as_deref().unwrap_or_default())?);
    faults.extend(model_faults(context, new.models.as_ref().and_then(Option::as_deref)));
    if !faults.is_empty() {
        let message = "cannot edit the key".to_owned();
        return Err(Error::Invalid { message, faults }.into());
    }
    let edit = KeyEdit {
        expires_at: new.expires_at,
        flows: flows.map(distinct),
        models: new.models.map(|models| models.map(distinct)),
        requests_per_minute: new.requests_per_minute,
        tokens_per_minute: new.tokens_per_minute,
    };
    let record = context.keys.edit(id, edit)?;
    Ok(reply::json(200, &complete_view(context, &record)))
}

/// `POST /api/keys/{id}/rotate`: replaces a key by a new one, shown only once. The current one stays
/// valid for `graceSeconds`.
pub fn rotate(context: &Context, id: i64, body: &[u8]) -> Answer {
    let request: RotateRequest = match body.trim_ascii().is_empty() {
        true => RotateRequest::default(),
        false => read_json(body)?,
    };
    let grace_s = request.grace_seconds.unwrap_or(GRACE_DEFAULT_S);
    if grace_s > GRACE_MAX_S {
        let fault = format!("must be a whole number from 0 to {GRACE_MAX_S}");
        return Err(Error::invalid("cannot rotate the key", "graceSeconds", fault).into());
    }
    let (record, key) = context.keys.rotate(id, Duration::from_secs(grace_s))?;
    let mut view = complete_view(context, &record);
    view["key"] = key.expose().into();
    Ok(reply::json(200, &view))
}

pub fn delete(context: &Context, id: i64, mut query: Query) -> Answer {
    let with_budgets = query.take("with_budgets").unwrap_or(false);
    query.finish()?;
    context.keys.delete(id, with_budgets)?;
    Ok(reply::empty())
}

/// Removes repeated values and keeps the order.
fn distinct<T: Clone + Ord>(mut values: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    values.retain(|value| seen.insert(value.clone()));
    values
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

fn model_faults(context: &Context, models: Option<&[String]>) -> Vec<Fault> {
    let Some(models) = models else {
        return Vec::new();
    };
    if !(1..=MODELS_MAX).contains(&models.len()) {
        let fault = format!("must have 1 to {MODELS_MAX} patterns; null allows all models");
        return vec![Fault::new("models", fault)];
    }
    let fault = |model: &str| {
        if model.len() > MODEL_BYTES_MAX {
            return Some(format!("must have up to {MODEL_BYTES_MAX} bytes"));
        }
        if !model.contains('/') {
            return Some("must be PROVIDER/MODEL, such as openai/gpt-4o*".into());
        }
        model_fault(model, |provider| context.providers.knows(provider))
    };
    let all = models.iter().enumerate();
    let faults =
        all.filter_map(|(at, model)| Some(Fault::new(format!("models[{at}]"), fault(model)?)));
    faults.collect()
}

/// Returns a key that was just written. Its own data is returned even if the rest cannot be read,
/// because a new key is shown only once.
fn complete_view(context: &Context, key: &KeyRecord) -> Value {
    let budgets = context.store.bare_budgets().unwrap_or_default();
    view(key, &budgets, &context.store.former_keys().unwrap_or_default())
}

fn view(key: &KeyRecord, budgets: &[Budget], former: &[FormerKey]) -> Value {
    let own = budgets.iter().filter(|budget| budget.key.as_deref() == Some(&key.name));
    let own: Vec<&str> = own.map(|budget| budget.name.as_str()).collect();
    let former = former.iter().filter(|former| former.key_id == key.id);
    let former = former.map(|former| former.valid_until).max();
    json!({
        "id": key.id,
        "name": key.name,
        "createdAt": key.created_at,
        "lastUsedAt": key.last_used_at,
        "expiresAt": key.expires_at,
        "flows": key.limits.flows,
        "models": key.limits.models,
        "requestsPerMinute": key.limits.requests_per_minute,
        "tokensPerMinute": key.limits.tokens_per_minute,
        "formerKeyValidUntil": former.filter(|end| *end > Timestamp::now()),
        "budgets": own,
    })
}
