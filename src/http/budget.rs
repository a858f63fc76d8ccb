//! `/api/budget`: spending limits.

use serde_json::{Value, json};

use super::Context;
use super::reply::{self, Answer, With};
use super::request::read_json;
use crate::budget::{Limit, model_fault, parse_all, version};
use crate::error::{Error, Fault, Result};
use crate::ids::FlowId;
use crate::listener::ApiError;
use crate::money::Usd;
use crate::store::{BudgetState, Change};
use crate::time::Timestamp;

/// `GET /api/budget`: all budgets, with their use in the current period.
pub fn get(context: &Context) -> Answer {
    let states = context.store.budgets(Timestamp::now())?;
    let version = version(states.iter().map(|state| &state.budget));
    let budgets: Vec<Value> = states.iter().map(view).collect();
    let reply = reply::json(200, &json!({"budgets": budgets, "version": version}));
    Ok(reply.with("etag", format!("\"{version}\"")))
}

/// Returns all budgets with their use, as `GET /api/budget` does.
pub(super) fn views(context: &Context) -> Result<Vec<Value>> {
    Ok(context.store.budgets(Timestamp::now())?.iter().map(view).collect())
}

/// `PUT /api/budget`: replaces all budgets if `version` (or `If-Match`) is still current.
pub fn set(context: &Context, body: &[u8], if_match: Option<&str>) -> Answer {
    let mut document = without_state(read_json(body)?);
    let version = match document.as_object_mut().and_then(|it| it.remove("version")) {
        None => None,
        Some(Value::String(version)) => Some(version),
        Some(_) => {
            let message = "cannot set the budgets";
            let fault = "must be the string that `GET` returned";
            return Err(Error::invalid(message, "version", fault).into());
        }
    };
    // `*` matches any version.
    let tag = if_match.filter(|tag| *tag != "*");
    let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
    let mut all = parse_all(document)?;
    for budget in &mut all {
        budget.end_user = budget.end_user.take().map(|name| context.end_users.stored(name));
    }
    let mut faults = Vec::new();
    let current = context.store.bare_budgets()?;
    for (at, budget) in all.iter().enumerate() {
        // An unchanged budget may keep the name of a deleted flow, so that the others can still be
        // edited.
        if !current.contains(budget) {
            let (model, at) = (budget.model.as_deref(), format!("budgets[{at}]"));
            faults.extend(reference_faults(context, &at, model, budget.flow_id)?);
        }
    }
    if !faults.is_empty() {
        let message = "cannot set the budgets".to_owned();
        return Err(Error::Invalid { message, faults }.into());
    }
    let change = Change::SetBudgets { all, version: version.or(tag) };
    match context.journal.commit_one(change) {
        Ok(_) => {
            context.optimizer.request_full_review();
            get(context)
        }
        Err(Error::Conflict(why)) if if_match.is_some() => {
            Err(ApiError::new(412, "precondition_failed", why))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reports budgets that no call can match. A key may be created later.
pub(super) fn reference_faults(
    context: &Context,
    at: &str,
    model: Option<&str>,
    flow_id: Option<FlowId>,
) -> Result<Vec<Fault>> {
    let knows = |provider: &str| context.providers.knows(provider);
    let mut faults = Vec::new();
    if let Some(why) = model.and_then(|model| model_fault(model, knows)) {
        faults.push(Fault::new(format!("{at}.model"), why));
    }
    if let Some(flow_id) = flow_id
        && !context.store.has_flow(flow_id)?
    {
        faults.push(Fault::new(format!("{at}.flowId"), format!("flow {flow_id} not found")));
    }
    Ok(faults)
}

/// Removes the fields that `GET` adds, so that clients can edit its response and send it back.
fn without_state(mut document: Value) -> Value {
    let budgets = document.get_mut("budgets").and_then(Value::as_array_mut);
    for budget in budgets.into_iter().flatten() {
        if let Some(budget) = budget.as_object_mut() {
            budget.remove("state");
        }
    }
    document
}

fn view(state: &BudgetState) -> Value {
    let mut view = state.budget.to_json();
    if let (Some(amounts), Some((start, end))) = (state.amounts, state.period) {
        let limit = state.budget.limit;
        let used = amounts.used();
        let left = limit.amount().saturating_sub(used).max(0);
        let amount = |amount: i64| match limit {
            Limit::Usd(_) => Value::from(Usd::from_nanousd(amount).to_string()),
            Limit::Tokens(_) => Value::from(amount),
        };
        view["state"] = json!({
            "used": amount(used),
            "spent": amount(amounts.spent),
            "held": amount(amounts.held),
            "left": amount(left),
            "percent": percent(used, limit.amount()),
            "from": start,
            "to": end,
        });
    }
    view
}

/// Rounds down. For a limit of 0, any use is 100 %.
fn percent(used: i64, limit: i64) -> i128 {
    match (used, limit) {
        (0, _) => 0,
        (_, 0) => 100,
        (used, limit) => i128::from(used) * 100 / i128::from(limit),
    }
}
