//! One attempt at a client's call: one target, one ledger row.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::Gateway;
use super::cache::CACHED_HEADER;
use super::chat_request::ChatRequest;
use super::client::{Client, is_login};
use super::client_sink::ClientSink;
use super::echo::{self, EchoFormat};
use super::in_flight::InFlightGuard;
use super::operation::Operation;
use super::prompt_text::SentPrompt;
use super::protocol::{ErrorForm, ErrorResponse, Protocol};
use super::route::path_of;
use super::stored::ObjectRecorder;
use super::targets::Target;
use super::translate::{Service, TranslatedRequest, not_written, service, translated_error};
use crate::budget::OutputLimit;
use crate::calls::{
    self, CallOutcome, CallRequest, Ended, Exchanged, FillGuard, PromptSize, Waiter,
};
use crate::error::Error;
use crate::event::{Billing, Usage};
use crate::listener::{ApiError, ResponseWriter};
use crate::providers::{
    API_FORMATS, Answer, AnswerHead, ApiFormat, Call, ClientKey, Failure, FailureKind, Forward,
    ForwardError, KeyLease, Kind, Method, ResponseSink,
};
use crate::store::{Bought, NewCall};

/// Limits the wait for amounts that calls in flight hold in a budget. Clients wait longer for the
/// start of an answer.
const HELD_WAIT_MAX: Duration = Duration::from_secs(30);

const ANTHROPIC_URL: &str = "https://api.anthropic.com";

pub(super) enum Attempt {
    /// The client has its answer or a part of it, or disconnected.
    Over,
    /// Nothing was sent to the client yet, so another target may be tried.
    Failed(Box<ErrorResponse>),
    /// This target cannot be used, but another may work.
    Unusable(Box<ErrorResponse>),
    /// Nothing was sent to the client, and no other target would help.
    Refused(Box<ErrorResponse>),
}

impl Gateway {
    /// Tries one target with the key of `lease`. Increments `number` for an attempt with a ledger
    /// row. If it is the last one and a budget has enough left without the amounts that calls in
    /// flight hold, waits for these. Also returns the place of the key if it was refused, so that
    /// another one may be tried.
    pub(super) fn attempt(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        lease: KeyLease<'_>,
        is_last: bool,
        number: &mut u32,
        reply: &mut ResponseWriter<'_>,
    ) -> (Attempt, Option<usize>) {
        let (service, translated) = match self.service(operation, target) {
            Ok(service) => service,
            // No call was made, so there is no row.
            Err(refusal) => return (Attempt::Unusable(refusal.into()), None),
        };
        if let Err(refusal) = operation.take_rate() {
            return (refused(refusal), None);
        }
        let presence = reply.presence();
        let ends_with_client = self.policy(&target.provider).drain_max.is_none();
        let Some(guard) = self.in_flight.enter(ends_with_client.then(|| presence.clone())) else {
            return (refused(stopping()), None);
        };
        let call = call_at(operation, target, &lease, translated.as_ref());
        let format = translated.as_ref().map_or(operation.format, TranslatedRequest::format);
        let prompt = SentPrompt { request: &operation.request, format };
        let request = self.call_request(operation, &call, &prompt, *number + 1);
        let request = with_cache_writes(request, translated.as_ref());
        let waiter = Waiter { cancel: &guard.cancel, has_left: &|| presence.is_disconnected() };
        // The provider's error if the client may see it, or an interrupted answer.
        let mut forward_error = None;
        let mut objects = self.recorder(operation, &call);
        let give_up_at = Instant::now() + HELD_WAIT_MAX;
        let ended = loop {
            let ended = match self.calls.wait(&request, &waiter) {
                Err(ended) => *ended,
                Ok(resources) => {
                    let exchange = |id, fill, limit| {
                        operation.begin_call();
                        operation.note_row(id);
                        if service == Service::Echo {
                            return self.echo(operation, &call, fill, &guard, reply);
                        }
                        objects.set_row(id);
                        let shows_miss = operation.cache_age.is_some();
                        let sink = ClientSink::new(shows_miss, fill, &mut objects, reply);
                        let mut sink = sink.with_limit(limit).with_lease(&lease);
                        let sent = (translated.as_ref(), limit);
                        let result = self.send(operation, &call, sent, &guard, &mut sink);
                        let filled = sink.into_filled();
                        let result = result.map_err(|error| {
                            let failure = Box::new(error.failure.clone());
                            forward_error = Some(error);
                            failure
                        });
                        (result, filled)
                    };
                    self.calls.make_limited(&request, resources, Vec::new(), exchange)
                }
            };
            let is_held = matches!(ended.outcome, CallOutcome::HeldBudget(_));
            let may_wait = || self.calls.is_any_in_flight() && Instant::now() < give_up_at;
            if !is_held || !is_last || !may_wait() {
                break ended;
            }
            self.calls.wait_for_settlement();
        };
        *number += u32::from(ended.has_row());
        operation.end_call(&ended.outcome);
        let refused_key = ended.outcome.record(lease);
        let ended = objects.conclude(ended);
        let attempt = self.conclude(operation, &call, ended, forward_error, &guard, reply);
        if let Attempt::Failed(error) | Attempt::Refused(error) = &attempt {
            operation.note_error(error);
        }
        (attempt, refused_key)
    }

    /// Returns how a target serves the request, and the request in the target's API if it is
    /// another one.
    fn service(
        &self,
        operation: &Operation<'_>,
        target: &Target,
    ) -> Result<(Service, Option<TranslatedRequest>), ApiError> {
        let service = self.usable(operation, target)?;
        let translated = match service {
            Service::Translated(api) => Some(self.translate(operation, target, api)?),
            _ => None,
        };
        Ok((service, translated))
    }

    fn send(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        (translated, limit): (Option<&TranslatedRequest>, Option<u32>),
        guard: &InFlightGuard<'_>,
        sink: &mut ClientSink<'_, '_, '_>,
    ) -> Result<Answer, Box<ForwardError>> {
        match translated {
            Some(translated) => {
                self.forward_translated(operation, call, (translated, limit), guard, sink)
            }
            None => self.forward(operation, call, limit, guard, sink),
        }
    }

    pub(super) fn call_request<'a>(
        &self,
        operation: &'a Operation<'_>,
        call: &'a Call,
        prompt: &'a SentPrompt<'a>,
        attempt: u32,
    ) -> CallRequest<'a> {
        let request = &operation.request;
        let own_key = self.own_key(operation, &call.provider);
        let billing = own_key.filter(|key| is_login(key)).map(|_| Billing::Subscription);
        CallRequest {
            call,
            row: NewCall { billing, ..operation.row(call, attempt) },
            prompt: PromptSize::OfBody {
                bytes: request.prompt.bytes_estimate(),
                prompt,
                // Calls of `echo` are free.
                output: output_limit(request, call)
                    .filter(|_| self.providers.kind(&call.provider) != Some(Kind::Echo)),
                cache_writes: request.cache_writes,
                options: request.priced_options,
            },
            cache: operation.cache_age.map(|age| (self.cache_key(operation, call), age)),
            has_own_key: own_key.is_some(),
        }
    }

    /// Commits or settles the row of an ended call, and sends the client an error if it has no
    /// answer.
    pub(super) fn conclude(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        ended: Ended,
        forward_error: Option<Box<ForwardError>>,
        guard: &InFlightGuard<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let Ended { outcome, changes } = ended;
        match outcome {
            CallOutcome::Answered(_) => {
                self.calls.settle(changes);
                Attempt::Over
            }
            CallOutcome::Cached(response) => match self.calls.commit_row(changes) {
                Ok(row) => {
                    row.into_iter().for_each(|id| operation.note_row(id));
                    reply_cached(&response, reply);
                    Attempt::Over
                }
                Err(error) => not_committed(error),
            },
            CallOutcome::Failed(failure) => {
                let is_interrupted =
                    failure.kind == FailureKind::Cancelled && self.in_flight.is_stopping();
                self.calls.settle(match is_interrupted {
                    true => calls::interrupted(changes),
                    false => changes,
                });
                match forward_error {
                    Some(_) if guard.is_disconnected() => Attempt::Over,
                    Some(error) => self.forward_error(operation.error_form(), *error, reply),
                    None => self.fail(operation.error_form(), self.refusal(&failure), reply),
                }
            }
            CallOutcome::Panicked(_) => {
                self.calls.settle(changes);
                let message = "internal error; see the server's log";
                self.fail(operation.error_form(), ApiError::new(500, "internal", message), reply)
            }
            CallOutcome::OverBudget(why) | CallOutcome::HeldBudget(why) => {
                let row = self.calls.commit_refusal(changes);
                row.into_iter().for_each(|id| operation.note_row(id));
                // A retry would not help.
                failed(ApiError::new(402, "budget", why).with("x-should-retry", "false"))
            }
            CallOutcome::RateLimited(wait) => rate_limited(call, wait),
            CallOutcome::SameCallTimeout => {
                let message = "timed out while waiting for an identical request of another client";
                refused(ApiError::new(504, "provider_timeout", message))
            }
            CallOutcome::Cancelled => refused(self.ended()),
            CallOutcome::NotConfigured(why) => {
                failed(ApiError::bad_request("provider_not_configured", why))
            }
            CallOutcome::NotCommitted(error) => not_committed(error),
        }
    }

    /// Returns how a target serves the request, if it can be used.
    pub(super) fn usable(
        &self,
        operation: &Operation<'_>,
        target: &Target,
    ) -> Result<Service, ApiError> {
        let protocol = operation.protocol;
        let provider = &target.provider;
        operation.check_model(target)?;
        let own_key = self.own_key(operation, provider).is_some();
        if let Err(why) = self.providers.check(provider)
            && !(own_key && self.providers.knows(provider))
        {
            let message = format!(
                "{why} (a model is `PROVIDER/MODEL`, an alias, or a model of provider {})",
                protocol.name()
            );
            return Err(ApiError::bad_request("provider_not_configured", message));
        }
        let format = operation.format;
        let kind = self.providers.kind(provider);
        if let Some(service) =
            kind.and_then(|kind| service(format, kind, self.providers.apis(provider)))
        {
            return Ok(service);
        }
        let others = API_FORMATS
            .into_iter()
            .filter(|format| kind.is_some_and(|kind| format.is_supported_by(kind)));
        let others: Vec<String> = others.map(path_of).collect();
        let mut message = format!("provider {provider} does not support {}", path_of(format));
        if !others.is_empty() {
            message = format!("{message}; use {}", others.join(" or "));
        }
        Err(ApiError::bad_request("wrong_protocol", message))
    }

    /// Returns whether the gateway requests the usage of a stream and hides it from the client.
    pub(super) fn adds_usage(&self, operation: &Operation<'_>, provider: &str) -> bool {
        let request = &operation.request;
        let has_option =
            matches!(operation.format, ApiFormat::ChatCompletions | ApiFormat::Completions);
        let is_possible = has_option && request.is_streamed;
        is_possible && !request.wants_usage && self.providers.takes_stream_options(provider)
    }

    /// Returns the reason why a call ended before it was made.
    pub(super) fn ended(&self) -> ApiError {
        if self.in_flight.is_stopping() {
            stopping()
        } else {
            ApiError::new(499, "cancelled", "client disconnected")
        }
    }

    /// Returns the client's own key if the provider should get it.
    pub(super) fn own_key<'a>(
        &self,
        operation: &'a Operation<'_>,
        provider: &str,
    ) -> Option<&'a ClientKey> {
        self.own_key_of(&operation.client, provider)
    }

    pub(super) fn own_key_of<'a>(
        &self,
        client: &'a Client,
        provider: &str,
    ) -> Option<&'a ClientKey> {
        let own = client.own.as_ref()?;
        let passes = self.policy(provider).pass_through_key;
        let is_sent = match is_login(own) {
            true if self.providers.kind(provider) != Some(Kind::Anthropic) => false,
            true => passes || client.brings_login() && self.is_anthropic(provider),
            false => passes,
        };
        is_sent.then_some(own)
    }

    /// Returns whether a provider is Anthropic itself. Others of its kind must not get its logins.
    fn is_anthropic(&self, provider: &str) -> bool {
        let url = self.providers.server_of(provider).map_or("", |(_, url)| url);
        provider == Protocol::Anthropic.name() || url.starts_with(ANTHROPIC_URL)
    }

    fn forward(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        limit: Option<u32>,
        guard: &InFlightGuard<'_>,
        sink: &mut ClientSink<'_, '_, '_>,
    ) -> Result<Answer, Box<ForwardError>> {
        let request = &operation.request;
        let name = match operation.format {
            ApiFormat::Responses => "max_output_tokens",
            _ => self.providers.output_limit_name(&call.provider),
        };
        let limit = limit.map(|limit| request.limit.edits(limit, name)).unwrap_or_default();
        let adds_usage = self.adds_usage(operation, &call.provider);
        let forward = Forward {
            call,
            api_format: operation.format,
            method: Method::Post,
            path: None,
            query: &operation.query,
            texts: &|| request.all_texts(),
            body: &self.own_body(
                operation.format,
                call,
                request.edited(&call.model, adds_usage, &limit),
            ),
            headers: &operation.headers,
            key: self.own_key(operation, &call.provider),
            hides_usage: adds_usage,
            has_sound: request.prompt.has_sound(),
            drain_max: self.policy(&call.provider).drain_max,
            translation: None,
        };
        let forwarded = self.providers.forward(&forward, &guard.cancel, sink);
        forwarded.map_err(|error| with_disconnect(error, guard))
    }

    /// Forwards a translated request, with its lowered output limit if there is one.
    fn forward_translated(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        (translated, limit): (&TranslatedRequest, Option<u32>),
        guard: &InFlightGuard<'_>,
        sink: &mut ClientSink<'_, '_, '_>,
    ) -> Result<Answer, Box<ForwardError>> {
        let request = &operation.request;
        let written = translated.written(limit).map_err(|refusal| not_written(&refusal, call))?;
        let body = written.body.to_string().into_bytes();
        let forward = Forward {
            call,
            api_format: translated.format(),
            method: Method::Post,
            path: None,
            query: translated.query(),
            texts: &|| request.all_texts(),
            body: &body,
            headers: &[],
            key: self.own_key(operation, &call.provider),
            hides_usage: false,
            has_sound: request.prompt.has_sound(),
            drain_max: self.policy(&call.provider).drain_max,
            translation: Some(&translated.translation(&written)),
        };
        let forwarded = self.providers.forward(&forward, &guard.cancel, sink);
        forwarded.map_err(|mut error| {
            let refused = error.refused.take();
            error.refused =
                refused.map(|(head, body)| translated_error(operation.protocol, &head, &body));
            with_disconnect(error, guard)
        })
    }

    pub(super) fn forward_error(
        &self,
        form: ErrorForm,
        error: ForwardError,
        reply: &mut ResponseWriter<'_>,
    ) -> Attempt {
        let ForwardError { failure, refused, is_begun, is_reported_to_client, is_bytes } = error;
        if is_begun && is_bytes {
            // The connection ends before the response does, so the client notices.
            return Attempt::Over;
        }
        if is_begun && is_reported_to_client {
            reply.end();
            return Attempt::Over;
        }
        match refused {
            // Clients cannot follow a redirect: their key would be sent along.
            Some((head, body)) if !(300..400).contains(&head.status) => {
                Attempt::Failed(Box::new(ErrorResponse::Providers(head, body)))
            }
            _ => self.fail(form, self.refusal(&failure), reply),
        }
    }

    /// Returns the client's error for a failed call without a provider's response.
    pub(super) fn refusal(&self, failure: &Failure) -> ApiError {
        let (status, code) = match failure.kind {
            FailureKind::NotConfigured => (400, "provider_not_configured"),
            FailureKind::Connect => (502, "provider_unreachable"),
            FailureKind::Timeout => (504, "provider_timeout"),
            FailureKind::Status => (502, "provider_error"),
            FailureKind::BadAnswer | FailureKind::TooLarge => (502, "provider_bad_answer"),
            FailureKind::Cancelled if self.in_flight.is_stopping() => return stopping(),
            FailureKind::Cancelled => (499, "cancelled"),
        };
        ApiError::new(status, code, failure.message.clone())
    }

    /// Ends an answer that has begun; otherwise another target may be tried.
    fn fail(&self, form: ErrorForm, refusal: ApiError, reply: &mut ResponseWriter<'_>) -> Attempt {
        if !reply.is_open() {
            reply.piece(&form.event(&refusal));
            reply.end();
            return Attempt::Over;
        }
        if self.in_flight.is_stopping() {
            return refused(stopping());
        }
        failed(refusal)
    }

    fn echo(
        &self,
        operation: &Operation<'_>,
        call: &Call,
        fill: Option<FillGuard>,
        guard: &InFlightGuard<'_>,
        reply: &mut ResponseWriter<'_>,
    ) -> Exchanged {
        let mut objects = ObjectRecorder::new(&self.calls);
        let shows_miss = operation.cache_age.is_some();
        let mut sink = ClientSink::new(shows_miss, fill, &mut objects, reply);
        if operation.format == ApiFormat::Embeddings {
            let (answer, document) = echo::embeddings(&call.model, &operation.request);
            sink.whole(&answer_head("application/json"), &document);
            return (Ok(answer), sink.into_filled());
        }
        let (system, prompt) = operation.request.texts();
        let call = Call { system, prompt, ..call.clone() };
        let echo_format = EchoFormat {
            format: operation.format,
            id: &operation.id,
            model: &call.model,
            wants_usage: operation.request.wants_usage,
            next_event: Cell::new(0),
            inputs: &operation.echo_inputs(),
        };
        let mut is_connected = true;
        if call.stream {
            is_connected = sink.begin(&answer_head(echo_format.stream_type()))
                && sink.piece(&echo_format.begin());
        }
        let called = self.providers.call(&call, &guard.cancel, &mut |text| {
            is_connected &= sink.piece(&echo_format.piece(text));
            if !is_connected {
                // The echo provider is free, so a disconnected client ends the call.
                guard.cancel.cancel();
            }
        });
        let called = called.map(|answer| match operation.format.is_embedding() {
            true => Answer { usage: Usage { output_tokens: 0, ..answer.usage }, ..answer },
            false => answer,
        });
        if let Ok(answer) = &called {
            if call.stream {
                sink.piece(&echo_format.end(answer));
                sink.end(true);
            } else {
                sink.whole(&answer_head("application/json"), &echo_format.document(answer));
            }
        }
        (called.map_err(Box::new), sink.into_filled())
    }
}

/// Raises the parts that may be written to a cache to those of the translated request.
/// Returns the call with the output limit that the provider gets, so that budgets reserve it.
fn call_at(
    operation: &Operation<'_>,
    target: &Target,
    lease: &KeyLease<'_>,
    translated: Option<&TranslatedRequest>,
) -> Call {
    let call = operation.call(target);
    let max_tokens = translated.and_then(TranslatedRequest::output_tokens).or(call.max_tokens);
    Call { key: lease.key(), max_tokens, ..call }
}

fn with_cache_writes<'a>(
    mut request: CallRequest<'a>,
    translated: Option<&TranslatedRequest>,
) -> CallRequest<'a> {
    if let (Some(translated), PromptSize::OfBody { cache_writes, .. }) =
        (translated, &mut request.prompt)
    {
        *cache_writes = (*cache_writes).max(translated.cache_writes());
    }
    request
}

/// Returns the limit that budgets may lower. A translated call may have another one than the request.
fn output_limit(request: &ChatRequest<'_>, call: &Call) -> Option<OutputLimit> {
    let own = request.limit.output();
    let translated = call.max_tokens.filter(|_| call.max_tokens != request.max_tokens);
    let limit = own.or(translated.map(|tokens| OutputLimit { tokens, thinking_tokens: 0 }))?;
    match translated {
        Some(tokens) => Some(OutputLimit { tokens, ..limit }),
        None => Some(limit),
    }
}

fn with_disconnect(mut error: Box<ForwardError>, guard: &InFlightGuard<'_>) -> Box<ForwardError> {
    if guard.is_disconnected() {
        "client disconnected".clone_into(&mut error.failure.message);
    }
    error
}

fn reply_cached(response: &Bought, reply: &mut ResponseWriter<'_>) {
    let mut headers = vec![(CACHED_HEADER, "true")];
    headers.extend(response.content_type.as_deref().map(|value| ("content-type", value)));
    reply.whole(200, &headers, response.output.as_bytes());
}

/// The provider's rate limit has no permit soon enough.
fn rate_limited(call: &Call, wait: Duration) -> Attempt {
    let seconds = wait.as_secs() + 1;
    let message = format!("rate limit of provider {} reached; retry in {seconds} s", call.provider);
    let refusal = ApiError::new(429, "rate_limit", message);
    failed(refusal.with("retry-after", seconds.to_string()))
}

fn failed(refusal: ApiError) -> Attempt {
    Attempt::Failed(refusal.into())
}

fn refused(refusal: ApiError) -> Attempt {
    Attempt::Refused(refusal.into())
}

pub(super) fn stopping() -> ApiError {
    ApiError::new(503, "stopping", "the server is shutting down")
}

/// The intent could not be committed, so no call was made.
fn not_committed(error: Error) -> Attempt {
    match error {
        Error::Busy(why) => failed(ApiError::new(429, "busy", why)),
        Error::Stopping => refused(stopping()),
        error => {
            let message =
                format!("the call was not sent, because it was not written to the ledger: {error}");
            refused(ApiError::new(503, "ledger", message))
        }
    }
}

fn answer_head(content_type: &str) -> AnswerHead {
    AnswerHead { status: 200, headers: vec![("content-type".to_owned(), content_type.to_owned())] }
}
