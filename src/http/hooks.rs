//! `/api/flows/{id}/hook` and `/hooks/{slug}`: runs that other programs start, each with the secret
//! of a single flow.

use serde_json::{Map, Value, json};

use super::Context;
use super::reply::{self, Answer};
use super::request::{Request, read_json};
use crate::error::{Error, Result};
use crate::flow::without_mark;
use crate::ids::{FlowId, RunId};
use crate::listener::{ApiError, RequestHead};
use crate::secret::{Secret, random_hex};
use crate::store::{Change, Delivery, HookRecord, NewHook, Receipt};
use crate::time::Timestamp;

const KEY_CHARS_MAX: usize = 200;
/// Limits the body of a delivery, like the input of a run.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// Random bytes in a webhook's name.
const SLUG_BYTES: usize = 12;

const TRIGGER: &str = "hook";

/// `PUT /api/flows/{id}/hook`: creates a webhook with a new secret, which is shown only once.
pub fn set(context: &Context, flow_id: FlowId, head: &RequestHead) -> Answer {
    let secret = Secret::random()?;
    let receipt = context.journal.commit_one(Change::SetHook(NewHook {
        flow_id,
        slug: random_hex::<SLUG_BYTES>()?,
        secret_hash: secret.hash(),
        at: Timestamp::now(),
    }))?;
    let Receipt::Hook(slug) = receipt else {
        return Err(Error::internal("the journal returned no name for the webhook").into());
    };
    let url = url(head, &slug);
    let secret = secret.expose();
    Ok(reply::json(200, &json!({"slug": slug, "secret": secret, "url": url})))
}

pub fn get(context: &Context, flow_id: FlowId, head: &RequestHead) -> Answer {
    let hook = context.store.hook(flow_id)?;
    let url = url(head, &hook.slug);
    let view = json!({
        "slug": hook.slug, "url": url,
        "createdAt": hook.created_at, "secretCreatedAt": hook.secret_at,
    });
    Ok(reply::json(200, &view))
}

pub fn delete(context: &Context, flow_id: FlowId) -> Answer {
    context.journal.commit_one(Change::DeleteHook(flow_id))?;
    Ok(reply::empty())
}

/// Returns the webhook's URL, under the host name that the client used.
fn url(head: &RequestHead, slug: &str) -> String {
    let scheme = head
        .header("x-forwarded-proto")
        .filter(|scheme| scheme.eq_ignore_ascii_case("https"))
        .map_or("http", |_| "https");
    let host = head.header("host").unwrap_or_default();
    format!("{scheme}://{host}/hooks/{slug}")
}

/// Returns whether a request has the webhook's secret. Also compares if there is no such webhook,
/// so that the response time reveals nothing.
fn has_secret(head: &RequestHead, hook: Option<&HookRecord>) -> bool {
    let expected = hook.map_or("", |hook| &hook.secret_hash);
    let expected = Secret::new(format!("{expected:64}"));
    let secrets = head.header("x-flowledger-secret").into_iter().chain(head.bearer());
    // Not `any`, which would stop at the first match.
    let matching =
        secrets.filter(|it| expected.matches(Secret::new(*it).hash().as_bytes())).count();
    hook.is_some() && matching > 0
}

fn idempotency_key(head: &RequestHead) -> Result<Option<&str>, ApiError> {
    let is_key = |key: &str| {
        (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|it| it.is_ascii_graphic())
    };
    match head.all("idempotency-key").collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [key] if is_key(key) => Ok(Some(key)),
        _ => Err(ApiError::bad_request(
            "bad_idempotency_key",
            format!(
                "`Idempotency-Key` must occur once and have 1 to {KEY_CHARS_MAX} ASCII characters without spaces"
            ),
        )),
    }
}

/// `POST /hooks/{slug}`: starts a run of the webhook's flow with the body as its input.
pub fn deliver(context: &Context, request: &mut Request<'_, '_>) -> Answer {
    let (slug, head) = (request.name, request.head);
    let hook = context.store.hook_by_slug(slug)?;
    let is_authorized = has_secret(head, hook.as_ref());
    let hook = hook.filter(|_| is_authorized).ok_or_else(unknown)?;
    let key = idempotency_key(head)?;
    let input = input(&request.body_up_to(BODY_BYTES_MAX)?)?;
    if let Some(run_id) = delivered(context, slug, key)? {
        return Ok(reply::run(200, &run_id));
    }
    let flow = context.store.flow(hook.flow_id).map_err(unknown_if_deleted)?;
    let take_delivery = |run_id: &RunId| {
        vec![Change::TakeDelivery(Delivery {
            slug: slug.to_owned(),
            secret_hash: hook.secret_hash,
            key: key.map(str::to_owned),
            run_id: run_id.clone(),
            at: Timestamp::now(),
        })]
    };
    match context.engine.execute_with(&flow, input, TRIGGER, take_delivery) {
        Ok(accepted) => Ok(reply::run(202, &accepted.run_id)),
        // A concurrent delivery with the same key came first.
        Err(error @ Error::Conflict(_)) => match delivered(context, slug, key)? {
            Some(run_id) => Ok(reply::run(200, &run_id)),
            None => Err(error.into()),
        },
        Err(error) => Err(unknown_if_deleted(error)),
    }
}

/// Returns the run that an earlier delivery with the same key started.
fn delivered(context: &Context, slug: &str, key: Option<&str>) -> Result<Option<RunId>> {
    match key {
        Some(key) => context.store.delivered(slug, key, Timestamp::now()),
        None => Ok(None),
    }
}

fn input(body: &[u8]) -> Result<Value, ApiError> {
    if without_mark(body).trim_ascii().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match read_json(body)? {
        input @ Value::Object(_) => Ok(input),
        _ => Err(Error::invalid("cannot read the request body", "", "must be an object").into()),
    }
}

/// Returns the same error for a wrong name and a wrong secret, so that it reveals neither.
fn unknown() -> ApiError {
    let message = "unknown webhook or wrong secret; send the secret as `X-Flowledger-Secret`";
    ApiError::new(401, "unauthorized", message)
}

/// The webhook was deleted, or its secret replaced, since the lookup.
fn unknown_if_deleted(error: Error) -> ApiError {
    match error {
        Error::NotFound(_) => unknown(),
        error => error.into(),
    }
}
