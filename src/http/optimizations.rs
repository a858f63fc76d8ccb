//! `/api/ledger/optimizations`: the optimizer's suggestions.

use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::reply::{self, Answer};
use super::request::{Query, read_json};
use crate::error::{Error, Result};
use crate::event::suggestion::{Proposal, Status, Suggestion};
use crate::listener::ApiError;
use crate::optimizer::diff::{DiffLine, diff};
use crate::optimizer::{changed_document, chosen, document_hash, read_document, version};
use crate::store::{Change, FlowRecord};
use crate::time::Timestamp;

/// The default number of stored inputs per trial.
const TRIAL_COUNT_DEFAULT: usize = 3;
const TRIAL_COUNT_MAX: usize = 10;

pub fn list(context: &Context, mut query: Query) -> Answer {
    let limit = query.take_limit();
    let before: Option<i64> = query.take("before");
    let status: Option<Status> = query.take("status");
    query.finish()?;
    let mut items = context.store.suggestions(status, before, limit + 1)?;
    let next = reply::cut(&mut items, limit, |item| item.id);
    Ok(reply::list(&items, next))
}

#[derive(Serialize)]
struct SuggestionDetail {
    #[serde(flatten)]
    suggestion: Suggestion,
    /// The planned or applied changes of the flow.
    changes: Vec<DiffLine>,
    /// Identifies these changes, if they can be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The reason why it cannot be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict: Option<String>,
}

/// `GET /api/ledger/optimizations/{id}?alternative`: returns it with its changes, or those of an
/// alternative.
pub fn get(context: &Context, id: i64, mut query: Query) -> Answer {
    let alternative: Option<String> = query.take("alternative");
    query.finish()?;
    let detail = detail(context, id, alternative.as_deref())?;
    Ok(reply::json(200, &detail))
}

fn detail(context: &Context, id: i64, alternative: Option<&str>) -> Result<SuggestionDetail> {
    let suggestion = context.store.suggestion(id)?;
    let proposal = chosen(&suggestion.proposal, alternative)?;
    let changed = if suggestion.applied_at.is_some() {
        let edit = context.store.applied_edit(id)?;
        read_document(&edit.before).and_then(|before| Ok((before, read_document(&edit.after)?)))
    } else {
        edited(context, &suggestion, &proposal).map(|it| (it.before, it.after))
    };
    let (changes, conflict) = match changed {
        Ok((before, after)) => (diff(&before, &after), None),
        Err(error @ (Error::Conflict(_) | Error::NotFound(_) | Error::Invalid { .. })) => {
            (Vec::new(), Some(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    let can_be_applied = suggestion.applied_at.is_none() && conflict.is_none();
    Ok(SuggestionDetail {
        suggestion,
        changes,
        version: can_be_applied.then(|| version(&proposal)),
        conflict,
    })
}

/// `POST /api/ledger/optimizations/{id}/apply`: changes the flow. The body may name an alternative,
/// and the version that the user saw: `{"alternative": "provider/model", "version": "…"}`.
pub fn apply(context: &Context, id: i64, body: &[u8]) -> Answer {
    #[derive(serde::Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct ApplyRequest {
        alternative: Option<String>,
        version: Option<String>,
    }
    let request: ApplyRequest =
        if body.is_empty() { ApplyRequest::default() } else { read_json(body)? };
    let suggestion = context.store.suggestion(id)?;
    let proposal = chosen(&suggestion.proposal, request.alternative.as_deref())?;
    let edited = edited(context, &suggestion, &proposal)?;
    if (request.version).is_some_and(|seen| seen != version(&proposal)) {
        return Err(Error::Conflict(format!(
            "suggestion {id} changed after it was shown; review it again"
        ))
        .into());
    }
    context.journal.commit_one(Change::ApplySuggestion {
        id,
        proposal: Box::new(proposal),
        before: edited.flow.document,
        after: edited.after.to_string(),
        at: Timestamp::now(),
    })?;
    context.optimizer.request_review(suggestion.flow_id);
    Ok(reply::json(200, &detail(context, id, None)?))
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TrialRequest {
    count: usize,
    alternative: Option<String>,
    confirm: bool,
}

impl Default for TrialRequest {
    fn default() -> Self {
        Self { count: TRIAL_COUNT_DEFAULT, alternative: None, confirm: false }
    }
}

impl TrialRequest {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        const MESSAGE: &str = "cannot run the trial";
        if body.is_empty() {
            return Ok(Self::default());
        }
        let value: Value = read_json(body)?;
        if !value.is_object() {
            return Err(Error::invalid(MESSAGE, "body", "must be an object").into());
        }
        let request: Self = serde_path_to_error::deserialize(&value).map_err(|error| {
            let field = error.path().to_string();
            Error::invalid(MESSAGE, &field, error.inner().to_string())
        })?;
        if !(1..=TRIAL_COUNT_MAX).contains(&request.count) {
            let fault = format!("must be a whole number from 1 to {TRIAL_COUNT_MAX}");
            return Err(Error::invalid(MESSAGE, "count", fault).into());
        }
        Ok(request)
    }
}

/// `POST /api/ledger/optimizations/{id}/trial`: sends the node's stored inputs to the other model.
/// Without `"confirm": true` it only estimates the cost.
pub fn trial(context: &Context, id: i64, body: &[u8]) -> Answer {
    let request = TrialRequest::read(body)?;
    let trials = &context.trials;
    let plan = trials.plan(id, request.count, request.alternative.as_deref())?;
    if !request.confirm {
        return Ok(reply::json(200, &trials.estimate(&plan)));
    }
    trials.make(&plan)?;
    Ok(reply::json(200, &detail(context, id, None)?))
}

pub fn revert(context: &Context, id: i64) -> Answer {
    let suggestion = context.store.suggestion(id)?;
    let at = Timestamp::now();
    context.journal.commit_one(Change::RevertSuggestion { id, at })?;
    context.optimizer.request_review(suggestion.flow_id);
    Ok(reply::json(200, &detail(context, id, None)?))
}

/// `POST /api/ledger/optimizations/{id}/dismiss`: hides it until its evidence changes.
pub fn dismiss(context: &Context, id: i64) -> Answer {
    let at = Timestamp::now();
    context.journal.commit_one(Change::CloseSuggestion { id, status: Status::Dismissed, at })?;
    Ok(reply::json(200, &detail(context, id, None)?))
}

/// A flow before and after a suggestion's edit.
struct Edited {
    flow: FlowRecord,
    before: Value,
    after: Value,
}

/// Returns the flow with the suggestion applied.
///
/// # Errors
/// [`Error::Conflict`] for a flow that was deleted, or changed since the suggestion was made.
fn edited(context: &Context, suggestion: &Suggestion, proposal: &Proposal) -> Result<Edited> {
    let flow = context.store.flow(suggestion.flow_id).map_err(|error| {
        let message = format!("flow {} was deleted", suggestion.flow_id);
        match error {
            Error::NotFound(_) => Error::Conflict(message),
            other => other,
        }
    })?;
    if document_hash(&flow.document) != proposal.document {
        return Err(Error::Conflict(format!(
            "flow {} changed after the suggestion was made; wait for an updated suggestion",
            flow.id
        )));
    }
    let before = read_document(&flow.document)?;
    let after = changed_document(&before, &proposal.edit)?;
    context.engine.parse(&after["data"])?;
    Ok(Edited { flow, before, after })
}
