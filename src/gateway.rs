//! The gateway for clients of other programs, with the protocols of their providers. The ledger
//! contains every call, like those of flows: the intent is committed before the request is
//! sent, and every outcome is settled.
//!
//! The connection's thread, which the listener lends, answers the request.

mod attempt;
mod attribution;
mod batches;
mod body;
mod body_store;
mod cache;
mod chat_request;
mod client;
mod client_sink;
mod count;
mod echo;
mod files;
mod form;
mod gemini;
mod hours;
mod in_flight;
mod json;
mod key_rate;
mod keys;
mod labels;
mod loops;
mod models;
mod objects;
mod ollama;
mod operation;
mod output_limit;
mod prompt;
mod prompt_text;
mod protocol;
mod route;
mod stats;
mod stored;
mod targets;
mod translate;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::hours::Hours;
pub use self::keys::{KeyLookup, Keys};
pub use self::loops::LoopLimits;
pub use self::stats::Stats;
pub use self::targets::{Aliases, TARGETS_MAX, Target, TargetRule};

use self::attempt::Attempt;
use self::body_store::{BodyStore, COPY_BYTES_MAX, RequestRows};
use self::chat_request::ChatRequest;
use self::client::Client;
use self::in_flight::InFlight;
use self::labels::Labels;
use self::loops::Loops;
use self::models::ModelLists;
use self::operation::Operation;
use self::protocol::{ErrorResponse, Protocol};
use self::route::{Endpoint, Route};
use crate::calls::Calls;
use crate::error::{Error, Result};
use crate::event::Attribution;
use crate::ids::time_sorted_uuid;
use crate::listener::{ApiError, Auth, RequestBody, RequestHandler, RequestHead, ResponseWriter};
use crate::providers::{ApiFormat, Cancel, KeyChoice, Providers};
use crate::secret::Secret;
use crate::store::{Change, EndUsers, ObjectKind, Store};
use crate::threads::Threads;
use crate::time::Timestamp;

/// The default of [`ClientPolicy::drain_max`].
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// Stack size of the thread that checks for disconnected clients.
const STACK_BYTES: usize = 64 << 10;

/// Stack size of the thread that settles open objects: it reads the database.
const EXPIRY_STACK_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPolicy {
    /// Limits reading after the client disconnected; none ends the call immediately.
    pub drain_max: Option<Duration>,
    /// True if the client's own key is sent to the provider instead of the configured one.
    pub pass_through_key: bool,
}

impl Default for ClientPolicy {
    fn default() -> Self {
        Self { drain_max: Some(DRAIN_MAX), pass_through_key: false }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Aliases of models.
    pub aliases: Aliases,
    /// When each target of an alias is used; missing for aliases whose targets are tried in order.
    pub alias_rules: BTreeMap<String, Vec<TargetRule>>,
    /// By provider; the default policy applies to all others.
    pub policies: BTreeMap<String, ClientPolicy>,
    /// True if ledger rows have hashes in place of the names of end users.
    pub hash_end_users: bool,
    pub loop_limits: LoopLimits,
    pub stores_bodies: bool,
}

impl Settings {
    /// Returns the providers and models that aliases name.
    pub fn alias_models(&self) -> Vec<(String, String)> {
        let targets = self.aliases.values().flatten();
        let named = targets.filter(|target| !target.model.ends_with(targets::ANY_END));
        named.map(|target| (target.provider.clone(), target.model.clone())).collect()
    }
}

pub struct Gateway {
    settings: Settings,
    token: Option<Secret>,
    keys: Arc<Keys>,
    end_users: EndUsers,
    loops: Loops,
    store: Arc<Store>,
    providers: Arc<Providers>,
    calls: Calls,
    stats: Arc<Stats>,
    in_flight: Arc<InFlight>,
    threads: Threads,
    /// Stops the search for objects that were never read to their end.
    expiry: Cancel,
    model_lists: ModelLists,
    /// None if bodies are not stored.
    bodies: Option<BodyStore>,
}

impl Gateway {
    /// Starts the gateway, which accepts `token` in place of a virtual key.
    pub fn start(
        settings: Settings,
        token: Option<Secret>,
        keys: Arc<Keys>,
        store: Arc<Store>,
        calls: Calls,
        stats: Arc<Stats>,
    ) -> Result<Self> {
        let (in_flight, threads) = (Arc::<InFlight>::default(), Threads::default());
        if settings.policies.values().any(|it| it.drain_max.is_none()) {
            let in_flight = Arc::clone(&in_flight);
            threads.spawn("client-watch", STACK_BYTES, move || in_flight.watch())?;
        }
        let expiry = Cancel::new();
        let (expiring_calls, expiring_store, stop) =
            (calls.clone(), Arc::clone(&store), expiry.clone());
        threads.spawn("expiry", EXPIRY_STACK_BYTES, move || {
            Self::expire(&expiring_calls, &expiring_store, &stop);
        })?;
        let providers = Arc::clone(calls.providers());
        let end_users = EndUsers::load(&store, settings.hash_end_users)?;
        let loops = Loops::new(settings.loop_limits);
        let model_lists = ModelLists::default();
        let bodies = settings.stores_bodies.then(|| BodyStore::new(&providers, token.as_ref()));
        Ok(Self {
            settings,
            token,
            keys,
            end_users,
            loops,
            store,
            providers,
            calls,
            stats,
            in_flight,
            threads,
            expiry,
            model_lists,
            bodies,
        })
    }

    /// Cancels the calls in flight and waits until the deadline. Returns the number of remaining
    /// calls.
    pub fn shutdown(&self, deadline: Instant) -> usize {
        self.expiry.cancel();
        let left = self.in_flight.stop(deadline);
        self.model_lists.stop(deadline);
        self.threads.join(deadline);
        left
    }

    /// Answers a request whose body has arrived.
    fn route(
        &self,
        route: &Route,
        head: &RequestHead,
        body: &[u8],
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        match route.endpoint {
            Endpoint::Call(format) => match &self.bodies {
                None => self.ask(format, route, head, body, None, reply),
                Some(bodies) => {
                    self.ask_and_store(bodies, format, route, head, body, reply);
                    Ok(())
                }
            },
            Endpoint::Count(format) => {
                let request = ChatRequest::read(format, body, route.model())?;
                let mut operation = self.operation(format, route, head, request)?;
                operation.origin = self.origin(&mut operation)?;
                self.count_tokens(&operation, reply)
            }
            Endpoint::Object(kind) => self.object(kind, route, head, body, reply),
            // Answered without the whole body in memory.
            Endpoint::Storage(_) => Ok(()),
            Endpoint::Models => {
                let models = self.models(route.protocol, head)?;
                let list = match route.protocol {
                    Protocol::OpenAi | Protocol::Anthropic => {
                        models::list(route.protocol, &models, head)?
                    }
                    Protocol::Gemini => gemini::list(&models, head)?,
                    Protocol::Ollama => ollama::list(&models),
                };
                answer_json(reply, &list);
                Ok(())
            }
            Endpoint::OllamaVersion => {
                answer_json(reply, &ollama::version());
                Ok(())
            }
            Endpoint::OllamaRunning => {
                answer_json(reply, &ollama::running());
                Ok(())
            }
            Endpoint::OllamaModels => Err(ollama::no_model_changes(head.path()).into()),
            Endpoint::Model => {
                let name = route.names.first().map_or("", String::as_str);
                let models = self.models(route.protocol, head)?;
                let model = models.iter().find(|model| model.id == name);
                let message = format!("model `{name}` not found; GET /v1/models lists all models");
                let unknown = || ApiError::new(404, "model_not_found", message);
                let model = model.ok_or_else(unknown)?;
                let document = match route.protocol {
                    Protocol::Gemini => gemini::model(model),
                    _ => model.to_json(),
                };
                answer_json(reply, &document);
                Ok(())
            }
        }
    }

    /// Returns the models that a client can use in its protocol.
    fn models(
        &self,
        protocol: Protocol,
        head: &RequestHead,
    ) -> Result<Vec<models::Model>, ApiError> {
        let client = self.client(head)?;
        let formats: Vec<ApiFormat> = route::formats_of(protocol);
        let supports = |provider: &str| {
            let apis = self.providers.apis(provider);
            self.providers.kind(provider).is_some_and(|kind| {
                formats.iter().any(|format| translate::service(*format, kind, apis).is_some())
            })
        };
        let aliases = &self.settings.aliases;
        let mut models = self.model_lists.models(protocol, aliases, &self.providers, supports);
        models.retain(|model| match aliases.get(&model.id) {
            Some(targets) => targets.iter().any(|it| client.may_use(&it.provider, &it.model)),
            None => {
                let prefix = format!("{}/", model.owner);
                let name = model.id.strip_prefix(&prefix).unwrap_or(&model.id);
                client.may_use(&model.owner, name)
            }
        });
        Ok(models)
    }

    /// Makes the call of a request, and stores its bodies once its client has the answer.
    fn ask_and_store(
        &self,
        bodies: &BodyStore,
        format: ApiFormat,
        route: &Route,
        head: &RequestHead,
        body: &[u8],
        reply: &mut ResponseWriter<'_>,
    ) {
        let rows = RequestRows::default();
        reply.copy_up_to(COPY_BYTES_MAX);
        if let Err(error) = self.ask(format, route, head, body, Some(&rows), reply) {
            send_error(route.protocol, &error, reply);
        }
        let response = reply.take_copy().unwrap_or_default();
        for body in bodies.bodies(rows, head, body, &response) {
            self.calls.settle(vec![Change::KeepBody(body)]);
        }
    }

    /// Makes the call of a request.
    fn ask(
        &self,
        format: ApiFormat,
        route: &Route,
        head: &RequestHead,
        body: &[u8],
        rows: Option<&RequestRows>,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let labels = Labels::read(head)?;
        let cache_age = cache::age_max(head)?;
        let boundary = form::boundary(head);
        let request = match boundary {
            Some(boundary) => {
                let form = form::Form::read(body, boundary)?;
                ChatRequest::read_form(format, body, &form, route.model())?
            }
            None => ChatRequest::read(format, body, route.model())?,
        };
        let mut operation = self.operation(format, route, head, request)?;
        if boundary.is_some() {
            operation
                .headers
                .extend(head.header("content-type").map(|it| ("content-type", it.to_owned())));
        }
        operation = Operation { labels, cache_age, rows, ..operation };
        self.check_flow(&operation)?;
        self.check_files(&operation)?;
        operation.origin = self.origin(&mut operation)?;
        if operation.request.is_background {
            // Only the beginning of the response would be stored.
            operation.cache_age = None;
        }
        // A client that accepts stored responses repeats its requests on purpose.
        let session = operation.session().filter(|_| cache_age.is_none());
        let looping = session.clone().and_then(|session| {
            let (prompt_hash, body) = (&operation.prompt_hash, operation.request.body());
            self.loops.observe(session, prompt_hash, body, Timestamp::now())
        });
        let operation = Operation { looping, ..operation };
        let answered = self.try_targets(&operation, reply);
        if let Some(session) = session.filter(|_| answered.is_err()) {
            self.loops.forget(session, &operation.prompt_hash);
        }
        answered
    }

    /// Tries the targets of the requested model in order, until one has answered. A provider that
    /// pauses is skipped. If no other has answered, it is tried nevertheless, so that a pause never
    /// refuses a call.
    fn try_targets(
        &self,
        operation: &Operation<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<(), Box<ErrorResponse>> {
        let targets = self.targets(operation)?;
        let mut attempts = Attempts::default();
        let mut paused = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            let is_last = at + 1 == targets.len() && paused.is_empty();
            match self.try_keys(operation, target, is_last, &mut attempts, reply)? {
                Tried::Over => return Ok(()),
                Tried::Failed => {}
                Tried::Paused(until) => paused.push((until, target)),
            }
        }
        paused.sort_by_key(|(until, _)| *until);
        for (at, (_, target)) in paused.iter().enumerate() {
            let choice = self.key_choice(operation, target, &[]);
            let lease = self.providers.choose_paused(&target.provider, choice);
            let is_last = at + 1 == paused.len();
            let number = &mut attempts.number;
            let (attempt, _) = self.attempt(operation, target, lease, is_last, number, reply);
            if let Tried::Over = attempts.note(attempt)? {
                return Ok(());
            }
        }
        Err(attempts.error.unwrap_or_else(|| no_target().into()))
    }

    /// Tries the keys of one target, until one is not refused.
    fn try_keys(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        is_last: bool,
        attempts: &mut Attempts,
        reply: &mut ResponseWriter<'_>,
    ) -> Result<Tried, Box<ErrorResponse>> {
        let mut tried = Vec::new();
        loop {
            let choice = self.key_choice(operation, target, &tried);
            let lease = match self.providers.choose(&target.provider, choice) {
                Ok(lease) => lease,
                Err(Some(until)) if tried.is_empty() => return Ok(Tried::Paused(until)),
                Err(_) => return Ok(Tried::Failed),
            };
            let number = &mut attempts.number;
            let (attempt, refused_key) =
                self.attempt(operation, target, lease, is_last, number, reply);
            match (attempts.note(attempt)?, refused_key) {
                (Tried::Failed, Some(key)) => tried.push(key),
                (noted, _) => return Ok(noted),
            }
        }
    }

    fn key_choice<'a>(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        tried: &'a [usize],
    ) -> KeyChoice<'a> {
        match self.own_key(operation, &target.provider) {
            Some(_) => KeyChoice::Own,
            None => KeyChoice::Pool(tried),
        }
    }

    /// Checks that a virtual key created the files that its request refers to.
    fn check_files(&self, operation: &Operation<'_>) -> Result<(), ApiError> {
        self.check_files_of(&operation.request, &operation.client)
    }

    fn check_files_of(&self, request: &ChatRequest<'_>, client: &Client) -> Result<(), ApiError> {
        if client.key_id.is_some() {
            for id in request.file_ids()? {
                self.find(ObjectKind::File, &id, client)?;
            }
        }
        Ok(())
    }

    /// Checks that the client may name this flow. With a virtual key, a missing flow and one of
    /// others have the same error, so that ids reveal nothing.
    fn check_flow(&self, operation: &Operation<'_>) -> Result<(), ApiError> {
        let Some(id) = operation.labels.flow_id else {
            return Ok(());
        };
        let flows = operation.client.flows.as_ref();
        let is_allowed = flows.is_none_or(|flows| flows.contains(&id));
        if is_allowed && self.store.has_flow(id).map_err(|error| internal(&error))? {
            return Ok(());
        }
        if flows.is_none() {
            let message = format!("flow {id} not found (header `X-Flowledger-Flow`)");
            return Err(ApiError::bad_request("no_such_flow", message));
        }
        let message = format!(
            "this key may not use flow {id} (header `X-Flowledger-Flow`); add it to the key's `flows`"
        );
        Err(ApiError::new(403, "flow_not_allowed", message))
    }

    /// Returns the targets of the requested model, at the provider that has the earlier turns.
    fn targets(&self, operation: &Operation<'_>) -> Result<Vec<Target>, ApiError> {
        let is_provider = |name: &str| self.providers.knows(name);
        let model = &operation.request.model;
        let aliases = &self.settings.aliases;
        let (mut targets, alias) =
            targets::targets(operation.protocol, model, aliases, is_provider);
        if let Some(origin) = &operation.origin {
            targets.retain(|target| target.provider == *origin);
            if targets.is_empty() {
                let message = format!(
                    "the request continues a response of provider {origin}; use a model of it"
                );
                return Err(ApiError::bad_request("wrong_provider", message));
            }
            // The provider of the earlier turns is used at any hour.
            return Ok(targets);
        }
        let Some(rules) = alias.and_then(|alias| self.settings.alias_rules.get(alias)) else {
            return Ok(targets);
        };
        let now = Timestamp::now();
        let targets = targets::select(targets, rules, now, &mut |below| fastrand::u32(..below));
        match targets::wait(rules, now).filter(|_| targets.is_empty()) {
            Some(wait) => {
                let seconds = wait.as_secs() + 1;
                let message = format!(
                    "no model of alias `{model}` is used at this hour; retry in {seconds} s"
                );
                let error = ApiError::new(503, "outside_hours", message);
                Err(error.with("retry-after", seconds.to_string()))
            }
            None => Ok(targets),
        }
    }

    fn operation<'a>(
        &self,
        format: ApiFormat,
        route: &Route,
        head: &RequestHead,
        request: ChatRequest<'a>,
    ) -> Result<Operation<'a>, ApiError> {
        Ok(Operation {
            id: time_sorted_uuid().to_string(),
            protocol: route.protocol,
            format,
            prompt_hash: request.prompt_hash(),
            headers: passed_headers(route.protocol, head),
            query: route::passed_query(head),
            attribution: self.attribution(head, request.body())?,
            looping: None,
            request,
            labels: Labels::default(),
            cache_age: None,
            origin: None,
            client: self.client(head)?,
            key_use: OnceCell::new(),
            rows: None,
        })
    }

    /// Returns the origin of a request as its row stores it.
    fn attribution(&self, head: &RequestHead, body: &str) -> Result<Attribution, ApiError> {
        let origin = attribution::read(head, body)?;
        let end_user = origin.end_user.map(|name| self.end_users.of_client(name));
        Ok(Attribution { end_user, ..origin })
    }

    fn policy(&self, provider: &str) -> ClientPolicy {
        self.settings.policies.get(provider).copied().unwrap_or_default()
    }
}

impl RequestHandler for Gateway {
    fn takes(&self, head: &RequestHead) -> bool {
        // The API replies to CORS preflights itself.
        route::is_ours(head.path()) && head.method != "OPTIONS"
    }

    fn admit(&self, head: &RequestHead, _: &Auth) -> Result<Option<i64>, ApiError> {
        self.client(head).map(|client| client.key_id)
    }

    fn answer(
        &self,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        reply: &mut ResponseWriter<'_>,
    ) {
        let route = route::of(head);
        let protocol =
            route.as_ref().map_or_else(|_| route::protocol_of(head), |route| route.protocol);
        let answered = match route {
            Ok(route) => match route.endpoint {
                Endpoint::Storage(storage) => self.storage(storage, &route, head, body, reply),
                _ => body::read(head, body)
                    .map_err(Box::from)
                    .and_then(|bytes| self.route(&route, head, &bytes, reply)),
            },
            Err(error) => {
                body.discard_received();
                Err(error.into())
            }
        };
        if let Err(error) = answered {
            send_error(protocol, &error, reply);
        }
        if let Some(status) = reply.status() {
            self.stats.count(protocol, status);
        }
    }

    fn refusal(&self, head: &RequestHead, error: &ApiError) -> Vec<u8> {
        let protocol = route::protocol_of(head);
        self.stats.count(protocol, error.status);
        protocol.error(error)
    }
}

/// The attempts at a client's request.
#[derive(Default)]
struct Attempts {
    /// The number of those with a ledger row.
    number: u32,
    /// The error for the client if none has answered.
    error: Option<Box<ErrorResponse>>,
}

enum Tried {
    /// The client has its answer.
    Over,
    Failed,
    /// Nothing was tried, because the provider or its keys pause until then.
    Paused(Instant),
}

impl Attempts {
    /// Keeps the error of an attempt that has no answer.
    ///
    /// # Errors
    /// Returns an error that no other attempt would change.
    fn note(&mut self, attempt: Attempt) -> Result<Tried, Box<ErrorResponse>> {
        match attempt {
            Attempt::Over => return Ok(Tried::Over),
            Attempt::Refused(why) => return Err(why),
            Attempt::Unusable(why) => {
                self.error.get_or_insert(why);
            }
            // A provider's own error is more useful than the news that another was not reached.
            Attempt::Failed(why) => {
                if is_providers(&why) || !self.error.as_deref().is_some_and(is_providers) {
                    self.error = Some(why);
                }
            }
        }
        Ok(Tried::Failed)
    }
}

fn is_providers(error: &ErrorResponse) -> bool {
    matches!(error, ErrorResponse::Providers(..))
}

fn passed_headers(protocol: Protocol, head: &RequestHead) -> Vec<(&'static str, String)> {
    let names: &[&'static str] = match protocol {
        Protocol::OpenAi => &[
            "openai-organization",
            "openai-project",
            "openai-beta",
            "http-referer",
            "x-title",
            "idempotency-key",
            "x-client-request-id",
            // Codex: <https://github.com/openai/codex/blob/main/codex-rs/core/src/client.rs>.
            "originator",
            "session_id",
            "session-id",
            "thread-id",
            "conversation_id",
            "x-codex-beta-features",
            "x-codex-parent-thread-id",
            "x-codex-turn-metadata",
            "x-codex-turn-state",
            "x-codex-window-id",
            "x-openai-subagent",
        ],
        Protocol::Anthropic => &["anthropic-version", "anthropic-beta", "idempotency-key"],
        // The client's program and the deadline of its request.
        Protocol::Gemini => &["x-goog-api-client", "x-server-timeout"],
        Protocol::Ollama => &[],
    };
    let found = names.iter().filter_map(|name| {
        let values: Vec<&str> = head.all(name).collect();
        (!values.is_empty()).then(|| (*name, values.join(",")))
    });
    found.collect()
}

fn no_target() -> ApiError {
    ApiError::bad_request("no_target", "the alias has no models")
}

fn internal(error: &Error) -> ApiError {
    log::error!("{error}");
    ApiError::new(500, "internal", error.to_string())
}

fn answer_json(reply: &mut ResponseWriter<'_>, document: &serde_json::Value) {
    let body = document.to_string();
    reply.whole(200, &[("content-type", "application/json")], body.as_bytes());
}

fn send_error(protocol: Protocol, error: &ErrorResponse, reply: &mut ResponseWriter<'_>) {
    match error {
        ErrorResponse::Ours(refusal) if reply.is_open() => {
            reply.refuse(refusal, &protocol.error(refusal));
        }
        // The stream has its error already.
        ErrorResponse::Ours(_) => reply.end(),
        ErrorResponse::Providers(head, body) => {
            let fields: Vec<(&str, &str)> =
                head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            reply.whole(head.status, &fields, body);
        }
    }
}
