//! LLM providers: makes one call to OpenAI and compatible servers, Anthropic, Gemini, Ollama, or
//! the built-in `echo`. The only module that uses HTTP clients and the providers' protocols.
//!
//! A call blocks its thread until it is answered, fails, times out or is cancelled from another
//! thread. This module does not retry or store anything: callers do, and every [`Failure`] has the
//! known facts about its cost.
//!
//! `openai`, `responses`, `anthropic`, `gemini`, `ollama`, `wire`, `framer`, `json`, `refusal`, `excerpt` and
//! `content_encoding` are pure; `client` makes the HTTP exchange, for calls and for requests that `forward` passes on;
//! `estimate` counts tokens that the provider did not; `model_list` lists the models of a provider;
//! `fetch` sends the request of an `http` node; `transport` makes all of them cancellable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::prices::Prices;
use crate::secret::Secret;
use crate::translation::Api;

mod anthropic;
mod api_format;
mod batch;
mod billing;
mod call;
mod call_request;
mod cancel;
mod client;
mod config;
mod content_encoding;
mod costs;
mod counted;
mod echo;
mod estimate;
mod excerpt;
mod failure;
mod fetch;
mod forward;
mod framer;
mod gemini;
mod health;
mod json;
mod media;
mod model_list;
mod network;
mod object;
mod ollama;
mod openai;
mod pass_through;
mod pool;
mod probe;
mod rate_limit;
mod rate_limit_headers;
mod refusal;
mod relay;
mod response_sink;
mod responses;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tokenizer;
mod translated;
mod transport;
mod wire;

pub use api_format::{API_FORMATS, ApiFormat};
pub use batch::{BatchStatus, BatchTally};
pub use billing::{Billing, PricedOptions};
use call::TIMEOUT_MAX;
pub use call::{ANSWER_TOKENS_ASSUMED, Answer, CacheMarks, Call, Timeouts};
pub use cancel::Cancel;
pub use client::Method;
use client::{Client, Exchange, HttpRequest, ReadRules, Receiver};
pub use config::{Kind, ProviderConfig};
pub use content_encoding::{Coding, Decoder, ZSTD_WINDOW_BYTES_MAX};
pub use costs::{CacheWrites, prompt_tokens_max};
pub use estimate::count as count_tokens;
use failure::Fault;
pub use failure::{FailedCallCosts, Failure, FailureKind};
use fetch::Fetcher;
pub use fetch::{ANSWER_BYTES_MAX as FETCHED_BYTES_MAX, Fetch, FetchFailure, FetchRules, Fetched};
pub use forward::{ClientKey, Forward, ForwardError};
use framer::Frame;
pub use health::{HealthRules, Pause};
pub use model_list::Listed;
pub use network::{Authorities, Network, Proxy, ProxyRule};
pub use object::{ProviderObject, is_object_id};
use pool::Pools;
pub use pool::{
    HealthView, KeyChoice, KeyHealth, KeyLease, POOL_KEYS_MAX, PoolKey, ProviderHealth,
    STATES as HEALTH_STATES, weighted,
};
pub use probe::ReadAnswer;
use rate_limit::Side;
pub use rate_limit::{Permit, REQUESTS_MAX as REQUESTS_PER_MINUTE_MAX, Rate, RateLimiter};
pub use refusal::retry_delay;
pub use relay::{Relay, RelayBody, Relayed};
pub use response_sink::{AnswerHead, ResponseSink};
pub use tokenizer::has_known_tokenizer;
pub use translated::Translation;
use transport::Scope;
pub use wire::provider_message as error_message;
use wire::{Flow, ResponseAccumulator};

/// The assumed tokens of an answer without a limit, for a provider's limit of tokens per minute.
const ANSWER_TOKENS_TYPICAL: u32 = 1_024;

const CALL_RULES: ReadRules = ReadRules {
    // Four times the longest text: JSON may escape a byte as six (`\u0000`), but rarely every byte.
    document_bytes_max: 16 << 20,
    // Providers send a few hundred bytes at a time; a whole answer in one event still fits.
    event_bytes_max: 1 << 20,
    is_forwarded: false,
    drain_max: None,
};

/// Makes calls. Threads share it with its connection pool.
#[derive(Debug)]
pub struct Providers {
    providers: BTreeMap<String, ProviderConfig>,
    /// By provider. Providers with the same network share a client, and with it the connections.
    clients: BTreeMap<String, Arc<Client>>,
    fetcher: Fetcher,
    timeouts: Timeouts,
    rate_limiter: RateLimiter,
    pools: Pools,
    prices: Prices,
    failed_call_costs: FailedCallCosts,
    /// Models whose missing price has been logged.
    logged_unpriced: Mutex<BTreeSet<(String, String)>>,
}

impl Providers {
    /// Creates the clients for providers by name, without connecting.
    pub fn new(providers: BTreeMap<String, ProviderConfig>, timeouts: Timeouts) -> Self {
        Self {
            clients: clients(&providers),
            pools: Pools::new(&providers, [].into(), &[].into(), HealthRules::default()),
            providers,
            fetcher: Fetcher::new(FetchRules::default()),
            timeouts,
            rate_limiter: RateLimiter::default(),
            prices: Prices::built_in(),
            failed_call_costs: FailedCallCosts::default(),
            logged_unpriced: Mutex::default(),
        }
    }

    /// Sets the hosts that `http` nodes may send requests to, instead of any public address.
    pub fn with_fetch_rules(self, rules: FetchRules) -> Self {
        Self { fetcher: Fetcher::new(rules), ..self }
    }

    /// Limits calls to their providers' rates.
    pub fn with_rates(self, rates: BTreeMap<String, Rate>) -> Self {
        Self { rate_limiter: RateLimiter::new(rates), ..self }
    }

    pub fn with_prices(self, prices: Prices) -> Self {
        Self { prices, ..self }
    }

    pub fn with_failed_call_costs(self, failed_call_costs: FailedCallCosts) -> Self {
        Self { failed_call_costs, ..self }
    }

    /// Returns the providers, sorted by name.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &ProviderConfig)> {
        self.providers.iter().map(|(name, provider)| (name.as_str(), provider))
    }

    pub fn knows(&self, provider: &str) -> bool {
        self.providers.contains_key(provider)
    }

    pub fn kind(&self, provider: &str) -> Option<Kind> {
        self.providers.get(provider).map(|provider| provider.kind)
    }

    /// Returns the APIs that generate text at a provider, the preferred one first.
    pub fn apis(&self, provider: &str) -> &[Api] {
        self.providers.get(provider).map_or(&[], ProviderConfig::apis)
    }

    /// Returns the protocol and the URL of a provider.
    pub fn server_of(&self, provider: &str) -> Option<(Kind, &str)> {
        let provider = self.providers.get(provider)?;
        Some((provider.kind, provider.base_url()))
    }

    /// Returns whether the usage of a streamed chat completion must be requested.
    pub fn takes_stream_options(&self, provider: &str) -> bool {
        self.providers.get(provider).is_none_or(|provider| provider.stream_usage)
    }

    /// Checks that the provider is known and has its key.
    ///
    /// # Errors
    /// Returns a sentence that names the missing part.
    pub fn check(&self, provider: &str) -> Result<(), String> {
        self.usable_provider(provider)
            .map(drop)
            .map_err(|fault| format!("{provider}: {}", fault.message))
    }

    /// Queues a call of a flow at its provider. The token estimate is one per four bytes of the
    /// prompt, plus the answer's limit, or 1,024 if it has none.
    pub fn permit(&self, call: &Call) -> Permit {
        self.enqueue(call, Side::Flows, call.prompt_bytes())
    }

    /// Queues a client's call, whose prompt is not in `call`; see [`Providers::permit`].
    pub fn permit_for(&self, call: &Call, prompt_bytes: u64) -> Permit {
        self.enqueue(call, Side::Clients, prompt_bytes)
    }

    fn enqueue(&self, call: &Call, side: Side, prompt_bytes: u64) -> Permit {
        let tokens = tokens_estimate(prompt_bytes, call.max_tokens);
        self.rate_limiter.enqueue(&call.provider, side, tokens)
    }

    /// Returns the default maximum duration of a call.
    pub fn total_timeout(&self) -> Duration {
        self.timeouts.bounded(TIMEOUT_MAX).total
    }

    pub fn timeouts_of(&self, call: &Call) -> Timeouts {
        let defaults = self.timeouts;
        let timeouts = Timeouts {
            connect: defaults.connect,
            first_byte: call.first_byte_timeout.unwrap_or(defaults.first_byte),
            total: call.total_timeout.unwrap_or(defaults.total),
        };
        timeouts.bounded(TIMEOUT_MAX)
    }

    /// Makes the request of an `http` node and waits for its answer.
    ///
    /// # Errors
    /// Fails without a complete answer of status 2xx.
    pub fn fetch(&self, fetch: &Fetch, cancel: &Cancel) -> Result<Fetched, FetchFailure> {
        self.fetcher.fetch(fetch, cancel)
    }

    /// Makes a call and waits for its end. If `call.stream` is set, `on_delta` receives the text
    /// piece by piece as it arrives, even if the call fails later; the pieces together form
    /// [`Answer::text`].
    ///
    /// # Errors
    /// [`FailureKind`] lists the causes.
    #[expect(
        clippy::result_large_err,
        reason = "128 bytes once per call, which takes a network round trip at least"
    )]
    pub fn call(
        &self,
        call: &Call,
        cancel: &Cancel,
        on_delta: &mut dyn FnMut(&str),
    ) -> Result<Answer, Failure> {
        let entered = Scope::enter(cancel);
        let scope = &entered.scope;
        let mut partial = ResponseAccumulator::default();
        let mut receiver = TextReceiver {
            is_streamed: call.stream,
            on_delta,
            scope,
            received: 0,
            first_token_ms: None,
        };
        let outcome = self.exchange_call(call, scope, &mut partial, &mut receiver);
        self.conclude(call, outcome, partial, scope, receiver.first_token_ms)
    }

    fn exchange_call(
        &self,
        call: &Call,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        receiver: &mut TextReceiver<'_>,
    ) -> Result<(), Fault> {
        let provider = self.member(&call.provider, call.key)?;
        let timeouts = self.timeouts_of(call);
        let Some((request, mut reader)) = call_request::request(call, provider)? else {
            let deadline = Instant::now() + timeouts.total;
            return echo::answer(call, &scope.cancel, deadline, partial, &mut |text| {
                receiver.take(text);
            });
        };
        let body = request.body.to_string();
        let http_request = HttpRequest {
            url: &request.url,
            headers: &request.headers,
            method: Method::Post,
            body: body.as_bytes(),
        };
        let exchange = Exchange {
            provider: &call.provider,
            timeouts,
            key: provider.key(),
            is_streamed: call.stream,
            scope,
            rules: CALL_RULES,
            reader: reader.as_mut(),
            receiver,
            partial,
        };
        self.client(&call.provider)?.exchange(&http_request, exchange)
    }

    /// Returns the result of an exchange, with estimates for usage that the provider did not count.
    #[expect(clippy::result_large_err, reason = "as for `call`")]
    fn conclude(
        &self,
        call: &Call,
        outcome: Result<(), Fault>,
        mut partial: ResponseAccumulator,
        scope: &Scope,
        first_token_ms: Option<u64>,
    ) -> Result<Answer, Failure> {
        let latency_ms = scope.elapsed_ms();
        let clean_name = |name: &str| match self.key(&call.provider) {
            Some(key) => key.redact_name(name),
            None => name.to_owned(),
        };
        let model = partial.model.as_deref();
        let model = model.map_or_else(|| call.model.clone(), clean_name);
        anthropic::price_region(&model, &mut partial.billing);
        openai::note_search_model(&model, &mut partial.billing);
        let usage = match self.kind(&call.provider) {
            // Echo counts words, not tokens, so no frame tokens are added.
            None | Some(Kind::Echo) => partial.usage,
            Some(_) if partial.has_no_estimate => partial.usage,
            Some(_) => estimate::usage(call, &partial, outcome.is_ok()),
        };
        match outcome {
            Ok(()) => Ok(Answer {
                text: partial.text,
                usage,
                billing: partial.billing,
                model,
                finish_reason: partial.finish_reason.as_deref().map(clean_name),
                latency_ms,
                first_token_ms,
            }),
            Err(fault) => Err(Failure {
                kind: fault.kind,
                message: self.message(
                    &call.provider,
                    &format!("{}/{}: {}", call.provider, call.model, fault.message),
                ),
                status: fault.status,
                retry_after: fault.retry_after,
                usage,
                billing: partial.billing,
                model,
                latency_ms,
                sent: scope.sent.get(),
            }),
        }
    }

    /// Returns the provider of this name, if it can be called.
    fn usable_provider(&self, name: &str) -> Result<&ProviderConfig, Fault> {
        let Some(provider) = self.providers.get(name) else {
            let known: Vec<&str> = self.providers.keys().map(String::as_str).collect();
            return Err(Fault::not_configured(format!(
                "unknown provider; expected one of {}",
                known.join(", ")
            )));
        };
        match &provider.missing_key_hint {
            Some(hint) if provider.key().is_none() && provider.kind != Kind::Echo => {
                let message = format!("the API key is missing; {hint}");
                Err(Fault::not_configured(message))
            }
            _ => Ok(provider),
        }
    }

    fn client(&self, provider: &str) -> Result<&Client, Fault> {
        let client = self.clients.get(provider);
        client.map(Arc::as_ref).ok_or_else(|| Fault::not_configured("unknown provider"))
    }

    /// Shortens a message to one line without the provider's key, which some servers repeat.
    fn message(&self, provider: &str, text: &str) -> String {
        let redacted = self.key(provider).map(|key| key.redact(text));
        excerpt::one_line(redacted.as_deref().unwrap_or(text), refusal::MESSAGE_CHARS_MAX)
    }

    fn key(&self, provider: &str) -> Option<&Secret> {
        // Each key of a pool redacts all of them.
        self.pools.member(provider, None).and_then(ProviderConfig::key)
    }
}

/// Estimates the tokens of a call before it is made: one per four bytes of the prompt, plus the
/// answer's limit, or 1,024 if it has none.
pub fn tokens_estimate(prompt_bytes: u64, max_tokens: Option<u32>) -> u64 {
    prompt_bytes / 4 + u64::from(max_tokens.unwrap_or(ANSWER_TOKENS_TYPICAL))
}

fn clients(providers: &BTreeMap<String, ProviderConfig>) -> BTreeMap<String, Arc<Client>> {
    let mut distinct: Vec<(&Network, Arc<Client>)> = Vec::new();
    let mut clients = BTreeMap::new();
    for (name, ProviderConfig { network, .. }) in providers {
        let known = distinct.iter().find(|(other, _)| *other == network);
        let client = known.map(|(_, client)| Arc::clone(client)).unwrap_or_else(|| {
            let client = Arc::new(Client::new(network));
            distinct.push((network, Arc::clone(&client)));
            client
        });
        clients.insert(name.clone(), client);
    }
    clients
}

/// Passes the text of an answer to the caller.
struct TextReceiver<'a> {
    is_streamed: bool,
    on_delta: &'a mut dyn FnMut(&str),
    scope: &'a Scope,
    /// Length of the received text, in bytes.
    received: usize,
    first_token_ms: Option<u64>,
}

impl TextReceiver<'_> {
    fn take(&mut self, text: &str) {
        if self.is_streamed && !text.is_empty() {
            let elapsed_ms = || self.scope.elapsed_ms();
            self.first_token_ms.get_or_insert_with(elapsed_ms);
            (self.on_delta)(text);
        }
    }
}

impl Receiver for TextReceiver<'_> {
    fn document(&mut self, _: &[u8], partial: &ResponseAccumulator) {
        self.take(&partial.text);
    }

    fn frame(
        &mut self,
        _: &Frame<'_>,
        _: Option<&Result<Flow, Fault>>,
        partial: &ResponseAccumulator,
    ) {
        self.take(&partial.text[self.received..]);
        self.received = partial.text.len();
    }
}
