//! `/api/flows/{id}/hook` and `/hooks/{slug}`: runs that other programs start, each with the secret
//! of one flow alone.

use serde_json::{Map, Value, json};
use tiny_http::Request;

use super::reply::{Failure, Reply, read_json};
use super::{Context, header, headers};
use crate::error::{Error, Result};
use crate::event::{FlowId, RunId, Timestamp};
use crate::secret::{Secret, random_hex};
use crate::store::{Change, Delivery, HookRecord, NewHook, Receipt};

type Answer = std::result::Result<Reply, Failure>;

/// How long an idempotency key may be, in characters.
const KEY_CHARS_MAX: usize = 200;
/// The randomness in a webhook's name, in bytes.
const SLUG_BYTES: usize = 12;

/// What the run that a delivery starts says of where it came from.
const TRIGGER: &str = "hook";

/// `PUT /api/flows/{id}/hook`: a webhook with a new secret, which is shown this once.
pub fn set(context: &Context, flow_id: FlowId, base_url: &str) -> Answer {
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
    let url = url(base_url, &slug);
    let secret = secret.expose();
    Ok(Reply::json(
        200,
        &json!({"slug": slug, "secret": secret, "url": url}),
    ))
}

/// `GET /api/flows/{id}/hook`.
pub fn get(context: &Context, flow_id: FlowId, base_url: &str) -> Answer {
    let hook = context.store.hook(flow_id)?;
    let url = url(base_url, &hook.slug);
    Ok(Reply::json(
        200,
        &json!({
            "slug": hook.slug,
            "url": url,
            "createdAt": hook.created_at,
            "secretCreatedAt": hook.secret_at,
        }),
    ))
}

/// `DELETE /api/flows/{id}/hook`.
pub fn delete(context: &Context, flow_id: FlowId) -> Answer {
    context.journal.commit_one(Change::DeleteHook(flow_id))?;
    Ok(Reply::empty())
}

/// Where the one who asks reaches the server, by its own words.
pub fn base_url(request: &Request) -> String {
    let scheme = header(request, "x-forwarded-proto")
        .filter(|scheme| scheme.eq_ignore_ascii_case("https"))
        .map_or("http", |_| "https");
    format!("{scheme}://{}", header(request, "host").unwrap_or_default())
}

fn url(base_url: &str, slug: &str) -> String {
    format!("{base_url}/hooks/{slug}")
}

/// What a delivery says beside its body.
pub struct Envelope {
    /// The secrets that it carries; usually one.
    secrets: Vec<Secret>,
    /// All `Idempotency-Key` fields.
    keys: Vec<String>,
}

impl Envelope {
    /// Reads it from the request's fields.
    pub fn of(request: &Request) -> Self {
        let in_field = header(request, "x-flowledger-secret");
        let bearer = header(request, "authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            let is_bearer = scheme.eq_ignore_ascii_case("bearer");
            is_bearer.then(|| token.trim().to_owned())
        });
        Self {
            secrets: in_field
                .into_iter()
                .chain(bearer)
                .map(Secret::new)
                .collect(),
            keys: headers(request, "idempotency-key").collect(),
        }
    }

    /// The hash of the secret that it carries, if that is the webhook's.
    fn opens(&self, hook: Option<HookRecord>) -> Option<HookRecord> {
        // Where there is no such webhook, something is compared as well, so that the time of the
        // refusal does not tell.
        let expected = hook
            .as_ref()
            .map_or_else(String::new, |hook| hook.secret_hash.clone());
        let expected = Secret::new(format!("{expected:64}"));
        let fits = |secret: &Secret| expected.matches(secret.hash().as_bytes());
        // Not `any`, which would stop at the first.
        let fitting = self.secrets.iter().filter(|secret| fits(secret)).count();
        hook.filter(|_| fitting > 0)
    }

    fn key(&self) -> std::result::Result<Option<&str>, Failure> {
        match self.keys.as_slice() {
            [] => Ok(None),
            [key]
                if (1..=KEY_CHARS_MAX).contains(&key.len())
                    && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Ok(Some(key))
            }
            _ => Err(Failure::new(
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
pub fn deliver(context: &Context, slug: &str, envelope: Envelope, body: &[u8]) -> Answer {
    let hook = context.store.hook_by_slug(slug)?;
    let Some(hook) = envelope.opens(hook) else {
        return Err(unknown());
    };
    let key = envelope.key()?;
    let input = input(body)?;
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
            let reply = Reply::json(202, &json!({"runId": accepted.run_id}));
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

fn repeated(run_id: &RunId) -> Reply {
    let location = format!("/api/runs/{run_id}");
    Reply::json(200, &json!({"runId": run_id})).with("location", location)
}

fn input(body: &[u8]) -> std::result::Result<Value, Failure> {
    if body.trim_ascii().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match read_json(body)? {
        input @ Value::Object(_) => Ok(input),
        _ => Err(Error::invalid("the body cannot be read", "", "must be an object").into()),
    }
}

/// Whoever has not both name and secret right learns of neither.
fn unknown() -> Failure {
    let message = "there is no webhook of this name with this secret (X-Flowledger-Secret)";
    Failure::new(401, "unauthorized", message)
}

/// The webhook was removed, or its secret replaced, since it was looked up.
fn gone(error: Error) -> Failure {
    match error {
        Error::NotFound(_) => unknown(),
        error => error.into(),
    }
}
