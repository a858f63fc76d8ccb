//! `/api/ledger/optimizations`: what the optimizer proposes, and what becomes of it.

use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::reply::{Failure, Query, Reply, read_json};
use crate::error::{Error, Result};
use crate::event::Timestamp;
use crate::event::suggestion::{Status, Suggestion};
use crate::optimizer::edit::{Line, diff};
use crate::optimizer::{changed_document, document_hash};
use crate::store::{Change, FlowRecord};

type Answer = std::result::Result<Reply, Failure>;

/// `GET /api/ledger/optimizations?limit&before&status`: newest first.
pub fn list(context: &Context, mut query: Query) -> Answer {
    let limit = query.take_limit();
    let before: Option<i64> = query.take("before");
    let status: Option<Status> = query.take("status");
    query.finish()?;
    let mut items = context.store.suggestions(status, before, limit + 1)?;
    let more = items.len() > limit;
    items.truncate(limit);
    items.iter_mut().for_each(|item| item.trial = None);
    let next = items.last().filter(|_| more).map(|last| last.id);
    Ok(Reply::list(&items, next))
}

/// A suggestion with what it changes.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    suggestion: Suggestion,
    /// What it changes in the flow, or has changed.
    changes: Vec<Line>,
    /// Why it cannot be applied as things are.
    #[serde(skip_serializing_if = "Option::is_none")]
    conflict: Option<String>,
}

/// `GET /api/ledger/optimizations/{id}`: with what it changes, before and after.
pub fn get(context: &Context, id: i64) -> Answer {
    Ok(Reply::json(200, &whole(context, id)?))
}

fn whole(context: &Context, id: i64) -> Result<Whole> {
    let suggestion = context.store.suggestion(id)?;
    let changed = if suggestion.applied_at.is_some() {
        let edit = context.store.applied_edit(id)?;
        read(&edit.before).and_then(|before| Ok((before, read(&edit.after)?)))
    } else {
        edited(context, &suggestion, &suggestion.proposal.edit).map(|it| (it.before, it.after))
    };
    let (changes, conflict) = match changed {
        Ok((before, after)) => (diff(&before, &after), None),
        Err(error @ (Error::Conflict(_) | Error::NotFound(_) | Error::Invalid { .. })) => {
            (Vec::new(), Some(error.to_string()))
        }
        Err(error) => return Err(error),
    };
    Ok(Whole {
        suggestion,
        changes,
        conflict,
    })
}

/// `POST /api/ledger/optimizations/{id}/apply`: changes the flow. The body may choose another change
/// than the one put forward: `{"alternative": "provider/model"}`.
pub fn apply(context: &Context, id: i64, body: &[u8]) -> Answer {
    #[derive(serde::Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct Choice {
        alternative: Option<String>,
    }
    let choice: Choice = if body.is_empty() {
        Choice::default()
    } else {
        read_json(body)?
    };
    let suggestion = context.store.suggestion(id)?;
    let edit = match &choice.alternative {
        None => &suggestion.proposal.edit,
        Some(name) => chosen(&suggestion, name)?,
    };
    let edited = edited(context, &suggestion, edit)?;
    context.journal.commit_one(Change::ApplySuggestion {
        id,
        before: edited.flow.document,
        after: edited.after.to_string(),
        at: Timestamp::now(),
    })?;
    context.optimizer.look(suggestion.flow_id);
    get(context, id)
}

fn chosen<'a>(suggestion: &'a Suggestion, name: &str) -> Result<&'a Value> {
    let all = &suggestion.proposal.alternatives;
    let found = all.iter().find(|alternative| alternative.name == name);
    found.map(|alternative| &alternative.edit).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
        let fault = format!("`{name}` is none of its alternatives: {}", names.join(", "));
        Error::invalid("the suggestion cannot be applied so", "alternative", fault)
    })
}

/// `POST /api/ledger/optimizations/{id}/revert`: puts the flow back as it was.
pub fn revert(context: &Context, id: i64) -> Answer {
    let suggestion = context.store.suggestion(id)?;
    let at = Timestamp::now();
    context
        .journal
        .commit_one(Change::RevertSuggestion { id, at })?;
    context.optimizer.look(suggestion.flow_id);
    get(context, id)
}

/// `POST /api/ledger/optimizations/{id}/dismiss`: it does not come back unless its ground changes.
pub fn dismiss(context: &Context, id: i64) -> Answer {
    context.journal.commit_one(Change::CloseSuggestion {
        id,
        status: Status::Dismissed,
        at: Timestamp::now(),
    })?;
    get(context, id)
}

/// A flow, and how a suggestion would leave it.
struct Edited {
    flow: FlowRecord,
    before: Value,
    after: Value,
}

/// # Errors
/// [`Error::Conflict`] where the flow has changed since the suggestion was made, or is gone.
fn edited(context: &Context, suggestion: &Suggestion, edit: &Value) -> Result<Edited> {
    let flow = context.store.flow(suggestion.flow_id).map_err(|error| {
        let gone = format!("flow {} is gone", suggestion.flow_id);
        match error {
            Error::NotFound(_) => Error::Conflict(gone),
            other => other,
        }
    })?;
    if document_hash(&flow.document) != suggestion.proposal.document {
        return Err(Error::Conflict(format!(
            "flow {} has changed since the suggestion was made; it is looked at again a moment later",
            flow.id
        )));
    }
    let before = read(&flow.document)?;
    let after = changed_document(&before, edit)?;
    context.engine.parse(&after["data"])?;
    Ok(Edited {
        flow,
        before,
        after,
    })
}

fn read(document: &str) -> Result<Value> {
    serde_json::from_str(document)
        .map_err(|error| Error::internal(format!("a stored flow cannot be read: {error}")))
}
