//! `/api/flows/{id}/hook` and `/hooks/{slug}`: runs that other programs start, each with the secret
//! of one flow alone.

use serde_json::{Map, Value, json};

use tiny_http::ResponseBox;

use super::Context;
use super::reply::{self, Answer, With};
use super::request::{Request, read_json};
use crate::error::{Error, Result};
use crate::ids::{FlowId, RunId};
use crate::listener::{ApiError, RequestHead};
use crate::secret::{Secret, random_hex};
use crate::store::{Change, Delivery, HookRecord, NewHook, Receipt};
use crate::time::Timestamp;

/// How long an idempotency key may be, in characters.
const KEY_CHARS_MAX: usize = 200;
/// The randomness in a webhook's name, in bytes.
const SLUG_BYTES: usize = 12;

/// What the run that a delivery starts says of where it came from.
const TRIGGER: &str = "hook";

/// `PUT /api/flows/{id}/hook`: a webhook with a new secret, which is shown this once.
pub fn set(context: &Context, flow_id: FlowId, head: &RequestHead) -> Answer {
    let secret = Secret::random()?;
    let receipt = context.journal.commit_one(Change::SetHook(NewHook {
        flow_id,
        slug: random_hex::<SLUG_BYTES>()?,
        secret_hash: secret.hash(),
        at: Timestamp::now(),
    }))?;
    let Receipt::Hook(slug) = receipt else {
        return Err(Error::internal("a webhook got no name").into());
    };
    let url = url(head, &slug);
    let secret = secret.expose();
    Ok(reply::json(200, &json!({"slug": slug, "secret": secret, "url": url})))
}

pub fn get(context: &Context, flow_id: FlowId, head: &RequestHead) -> Answer {
    let hook = context.store.hook(flow_id)?;
    let url = url(head, &hook.slug);
    Ok(reply::json(
        200,
        &json!({
            "slug": hook.slug,
            "url": url,
            "createdAt": hook.created_at,
            "secretCreatedAt": hook.secret_at,
        }),
    ))
}

pub fn delete(context: &Context, flow_id: FlowId) -> Answer {
    context.journal.commit_one(Change::DeleteHook(flow_id))?;
    Ok(reply::empty())
}

/// The webhook's address, under the name by which the client reaches the server.
fn url(head: &RequestHead, slug: &str) -> String {
    let scheme = head
        .header("x-forwarded-proto")
        .filter(|scheme| scheme.eq_ignore_ascii_case("https"))
        .map_or("http", |_| "https");
    let host = head.header("host").unwrap_or_default();
    format!("{scheme}://{host}/hooks/{slug}")
}

/// What a delivery says beside its body.
struct Envelope<'a> {
    /// The secrets that it carries; usually one.
    secrets: Vec<Secret>,
    /// All `Idempotency-Key` headers.
    keys: Vec<&'a str>,
}

impl<'a> Envelope<'a> {
    fn of(head: &'a RequestHead) -> Self {
        let bearer = head.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let secrets = head.header("x-flowledger-secret").into_iter().chain(bearer);
        Self {
            secrets: secrets.map(Secret::new).collect(),
            keys: head.all("idempotency-key").collect(),
        }
    }

    /// The hash of the secret that it carries, if that is the webhook's.
    fn opens(&self, hook: Option<HookRecord>) -> Option<HookRecord> {
        // Where there is no such webhook, something is compared as well, so that the time of the
        // refusal does not tell.
        let expected = hook.as_ref().map_or_else(String::new, |hook| hook.secret_hash.clone());
        let expected = Secret::new(format!("{expected:64}"));
        let fits = |secret: &Secret| expected.matches(secret.hash().as_bytes());
        // Not `any`, which would stop at the first.
        let fitting = self.secrets.iter().filter(|secret| fits(secret)).count();
        hook.filter(|_| fitting > 0)
    }

    fn key(&self) -> Result<Option<&'a str>, ApiError> {
        match self.keys.as_slice() {
            [] => Ok(None),
            [key]
                if (1..=KEY_CHARS_MAX).contains(&key.len())
                    && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(Some(key))
            }
            _ => Err(ApiError::new(
                400,
                "bad_idempotency_key",
                format!(
                    "`Idempotency-Key` must be there once, with 1 to {KEY_CHARS_MAX} visible ASCII characters"
                ),
            )),
        }
    }
}

/// `POST /hooks/{slug}`: starts a run of the webhook's flow with the body as its input.
pub fn deliver(context: &Context, request: &mut Request<'_, '_>) -> Answer {
    let (slug, envelope) = (request.name, Envelope::of(request.head));
    let hook = context.store.hook_by_slug(slug)?;
    let Some(hook) = envelope.opens(hook) else {
        return Err(unknown());
    };
    let key = envelope.key()?;
    let input = input(&request.body()?)?;
    if let Some(run_id) = delivered(context, slug, key)? {
        return Ok(repeated(&run_id));
    }
    let flow = context.store.flow(hook.flow_id).map_err(gone)?;
    let taken = |run_id: &RunId| {
        vec![Change::TakeDelivery(Delivery {
            slug: slug.to_owned(),
            secret_hash: hook.secret_hash,
            key: key.map(str::to_owned),
            run_id: run_id.clone(),
            at: Timestamp::now(),
        })]
    };
    match context.engine.execute_with(&flow, input, TRIGGER, taken) {
        Ok(accepted) => {
            let location = format!("/api/runs/{}", accepted.run_id);
            let reply = reply::json(202, &json!({"runId": accepted.run_id}));
            Ok(reply.with("location", location))
        }
        // The same was delivered at the same time, and was first.
        Err(error @ Error::Conflict(_)) => match delivered(context, slug, key)? {
            Some(run_id) => Ok(repeated(&run_id)),
            None => Err(error.into()),
        },
        Err(error) => Err(gone(error)),
    }
}

/// The run that was started by a delivery with that key.
fn delivered(context: &Context, slug: &str, key: Option<&str>) -> Result<Option<RunId>> {
    match key {
        Some(key) => context.store.delivered(slug, key, Timestamp::now()),
        None => Ok(None),
    }
}

fn repeated(run_id: &RunId) -> ResponseBox {
    let location = format!("/api/runs/{run_id}");
    reply::json(200, &json!({"runId": run_id})).with("location", location)
}

fn input(body: &[u8]) -> Result<Value, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match read_json(body)? {
        input @ Value::Object(_) => Ok(input),
        _ => Err(Error::invalid("the body cannot be read", "", "must be an object").into()),
    }
}

/// Whoever has not both name and secret right learns of neither.
fn unknown() -> ApiError {
    let message = "there is no webhook of this name with this secret (X-Flowledger-Secret)";
    ApiError::new(401, "unauthorized", message)
}

/// The webhook was removed, or its secret replaced, since it was looked up.
fn gone(error: Error) -> ApiError {
    match error {
        Error::NotFound(_) => unknown(),
        error => error.into(),
    }
}
