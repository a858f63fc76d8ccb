//! LLM providers: makes one call, at OpenAI and all that is compatible, at Anthropic, at Gemini, at
//! Ollama, or at the built-in `echo`. The only place that knows HTTP clients and providers' protocols.
//!
//! A call blocks its thread until it is answered, fails, runs out of time or is cancelled from
//! another thread. Nothing is retried here, and nothing is written down: that is up to the caller,
//! for whom every [`Failure`] tells what is known of its cost.
//!
//! `openai`, `anthropic`, `gemini`, `ollama`, `sse`, `lines`, `pieces`, `json` and `refusal` are pure; `client` makes the exchange over HTTP;
//! `estimate` says what was used where the provider did not; `listing` asks which models there are; `fetch` is the request of an `http` node; `transport` is what makes both cancellable.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::budget::Reserve;
use crate::event::{Timestamp, Usage, UsageSource, Usd};
use crate::secret::Secret;

mod anthropic;
mod cancel;
mod client;
mod echo;
mod estimate;
mod fetch;
mod forward;
mod gemini;
mod json;
mod model_list;
mod ndjson;
mod ollama;
mod openai;
pub mod prices;
mod rate_limit;
mod refusal;
mod sse;
mod sse_framer;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use cancel::Cancel;
use client::{Client, Exchange};
use fetch::Fetcher;
pub use fetch::{ANSWER_BYTES_MAX as FETCHED_BYTES_MAX, Fetch, FetchFailure, FetchRules, Fetched};
pub use forward::{AnswerHead, ApiFormat, ClientKey, Forward, ForwardError, ResponseSink};
pub use model_list::Listed;
pub use prices::{COST_MAX, Prices, Quote};
use rate_limit::Side;
pub use rate_limit::{Permit, REQUESTS_MAX as REQUESTS_PER_MINUTE_MAX, Rate, RateLimiter};
use transport::Scope;
use wire::{Fault, ResponseAccumulator};

/// The protocol that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenAI's chat completions, which many other servers speak as well.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
    /// Google's Gemini API; clients speak OpenAI's protocol to it.
    Gemini,
    /// Ollama's own API; clients speak OpenAI's or Anthropic's protocol to it.
    Ollama,
    /// The built-in provider: offline, deterministic, free. It answers with the prompt behind
    /// the label `[echo of MODEL] `. The model `echo-slow` pauses 50 ms before each word, any
    /// other (`echo-1`) answers at once. Its tokens are words.
    Echo,
}

/// A provider, as the configuration has it.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Its protocol.
    pub kind: Kind,
    /// Where it is: what stands before `/chat/completions`, `/v1/messages`, `/v1beta/models`
    /// or `/api/chat`. Empty means the protocol's own: `https://api.openai.com/v1`,
    /// `https://api.anthropic.com`, `https://generativelanguage.googleapis.com`,
    /// `http://127.0.0.1:11434`.
    pub base_url: String,
    /// The key, if there is one.
    pub api_key: Option<Secret>,
    /// What to do to get a key in place (`set OPENAI_API_KEY`). None means that the provider can
    /// be called without one, as local servers can.
    pub missing_key_hint: Option<String>,
    /// Whether a streamed chat completion is asked to end with its usage (`stream_options`). There are
    /// servers that refuse that, and give it unasked.
    pub stream_usage: bool,
}

impl ProviderConfig {
    /// Without slashes at the end, and never empty for a kind that has a URL.
    fn base_url(&self) -> &str {
        match (self.base_url.trim().trim_end_matches('/'), self.kind) {
            ("", Kind::OpenAi) => openai::BASE_URL,
            ("", Kind::Anthropic) => anthropic::BASE_URL,
            ("", Kind::Gemini) => gemini::BASE_URL,
            ("", Kind::Ollama) => ollama::BASE_URL,
            (base_url, _) => base_url,
        }
    }

    /// The key; an empty one is none.
    fn key(&self) -> Option<&Secret> {
        self.api_key.as_ref().filter(|key| !key.expose().is_empty())
    }
}

/// How long a call may take. Each is cut to a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For looking up the name, and again for TCP and TLS. 10 s by default.
    pub connect: Duration,
    /// Of a streamed call: from the end of the request to the head of the response, and again
    /// until the first event; where the answer is passed on, whatever comes before that, such as
    /// comments, starts the wait again. A call that is not streamed is answered only when all of the answer
    /// is there, so [`Timeouts::total`] alone bounds it. 60 s by default.
    pub first_byte: Duration,
    /// For all of it. 300 s by default.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            total: Duration::from_secs(300),
        }
    }
}

/// The longest timeout: more cannot be meant, and could not be added to a moment without overflow.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Timeouts {
    fn bounded(self) -> Self {
        Self {
            connect: self.connect.min(TIMEOUT_MAX),
            first_byte: self.first_byte.min(TIMEOUT_MAX),
            total: self.total.min(TIMEOUT_MAX),
        }
    }
}

/// What to ask, and whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model, as the provider names it.
    pub model: String,
    /// The system text.
    pub system: Option<String>,
    /// The user's text.
    pub prompt: String,
    /// The most tokens that the answer may have. Anthropic gets 4,096 where there is none.
    pub max_tokens: Option<u32>,
    /// The sampling temperature; the provider's default where there is none.
    pub temperature: Option<f64>,
    /// Whether the answer is to come piece by piece.
    pub stream: bool,
    /// In place of [`Timeouts::first_byte`].
    pub first_byte_timeout: Option<Duration>,
    /// In place of [`Timeouts::total`].
    pub total_timeout: Option<Duration>,
    /// What the provider is asked to keep in its prompt cache, where that has to be asked for.
    pub cache_marks: CacheMarks,
}

/// The parts of a call that other calls begin with as well: what a provider may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMarks {
    /// Whether the system text is one, all of it.
    pub system: bool,
    /// How many bytes at the beginning of the prompt are.
    pub prompt_bytes: usize,
}

/// What of a prompt may be written to the provider's cache, for which most ask more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheWrites {
    /// Nothing.
    None,
    /// Any part, for five minutes.
    Short,
    /// Any part, also for an hour.
    Long,
}

impl CacheWrites {
    /// The same usage with nothing written, and with all of the input written in each way that there
    /// may be: one of them costs the most.
    fn ways(self, usage: Usage) -> impl Iterator<Item = Usage> {
        let written = [
            (Self::None, 0, 0),
            (Self::Short, usage.input_tokens, 0),
            (Self::Long, usage.input_tokens, usage.input_tokens),
        ];
        let possible = written.into_iter().filter(move |(way, ..)| *way <= self);
        possible.map(move |(_, all, for_an_hour)| Usage {
            cache_write_tokens: all,
            cache_write_1h_tokens: for_an_hour,
            ..usage
        })
    }
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text, at most 4 MiB; empty where the model answered with something else.
    pub text: String,
    /// Tokens, in the normal form; estimated as far as the provider gave no usable counts.
    pub usage: Usage,
    /// Whether the provider says that it bills them by other prices than its standard ones.
    pub is_billed_otherwise: bool,
    /// The model that answered, as the provider reports it, else as asked for.
    pub model: String,
    /// Why the answer ends, in the provider's word (`stop`, `end_turn`, `length`, …).
    pub finish_reason: Option<String>,
    /// From the call until its end, milliseconds.
    pub latency_ms: u64,
    /// From the call until the first piece of text, milliseconds; none where it was not streamed.
    pub first_token_ms: Option<u64>,
}

/// Why there is no answer. Printed, it is [`Failure::message`].
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened, to which provider and model, and what to do about it where that is obvious.
    /// Never holds the key. At most about a thousand characters, in one line.
    pub message: String,
    /// The status that the provider answered with, where it is what failed the call.
    pub status: Option<u16>,
    /// How long the provider wants one to wait before the next attempt.
    pub retry_after: Option<Duration>,
    /// The tokens that were used as far as is known: what the provider counted, and what else came,
    /// estimated; `source` is `None` where nothing came.
    pub usage: Usage,
    /// As of an [`Answer`].
    pub is_billed_otherwise: bool,
    /// The model, as the provider reported it, else as asked for.
    pub model: String,
    /// From the call until it failed, milliseconds.
    pub latency_ms: u64,
    /// Whether the request, or a part of it, had left.
    pub sent: bool,
}

impl Failure {
    /// Whether the same call may go better a little later: it was not reached, took too long, or
    /// was answered with 408, 429, a 5xx, or an error in the midst of an answer.
    pub fn is_transient(&self) -> bool {
        let is_passing = |status| matches!(status, 408 | 429 | 500..);
        match self.kind {
            FailureKind::Connect | FailureKind::Timeout => true,
            FailureKind::Status => self.status.is_none_or(is_passing),
            _ => false,
        }
    }

    /// Whether the provider may ask money for the call all the same. Says yes in doubt. More
    /// exact than [`FailureKind::may_have_been_billed`], because it is known here whether
    /// anything was sent and with what status it was answered.
    pub fn may_have_been_billed(&self) -> bool {
        let was_refused = self
            .status
            .is_some_and(|status| (300..500).contains(&status));
        self.sent && !was_refused && self.kind.may_have_been_billed()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What a call costs, and by which price.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// None where the tokens or the price are not known.
    pub cost: Option<Usd>,
    /// The price as it is kept with the ledger row, a [`prices::StoredPrice`]; none of what is free
    /// by its nature.
    pub price: Option<Arc<str>>,
}

impl Charge {
    /// Of a call that cost nothing for certain.
    pub const FREE: Self = Self {
        cost: Some(Usd::ZERO),
        price: None,
    };
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// There is no such provider, its key is missing or cannot be sent, or its `base_url` is none.
    /// Nothing was sent; not billed.
    NotConfigured,
    /// The provider could not be reached: no such name, refused, no TLS. Nothing was sent; not
    /// billed.
    Connect,
    /// One of the [`Timeouts`] ran out; the message names it. May have been billed, unless it was
    /// the one for connecting.
    Timeout,
    /// The provider said that the call failed: by the HTTP status, or by an error in the midst of
    /// an answer, where [`Failure::status`] is none then. Not billed with a status below 500;
    /// above, it may be a proxy that speaks while the provider went on; within an answer, what
    /// was answered may have been billed.
    Status,
    /// The answer cannot be used: no JSON, HTML, empty, or cut short. May have been billed.
    BadAnswer,
    /// The answer is longer than the limits allow. May have been billed.
    TooLarge,
    /// Stopped by [`Cancel::cancel`]. May have been billed, unless nothing was sent yet.
    Cancelled,
}

impl FailureKind {
    /// Whether a call that failed so may have cost money; says yes in doubt.
    /// [`Failure::may_have_been_billed`] knows more.
    pub fn may_have_been_billed(self) -> bool {
        match self {
            Self::NotConfigured | Self::Connect => false,
            Self::Timeout | Self::Status | Self::BadAnswer | Self::TooLarge | Self::Cancelled => {
                true
            }
        }
    }
}

/// Makes calls; shared between threads, which share its pool of connections.
#[derive(Debug)]
pub struct Providers {
    providers: BTreeMap<String, ProviderConfig>,
    client: Client,
    fetcher: Fetcher,
    timeouts: Timeouts,
    pace: RateLimiter,
    prices: Prices,
    /// Models whose missing price the log has told of, each once.
    told_unpriced: Mutex<BTreeSet<(String, String)>>,
}

/// What became of an exchange, beside its outcome.
struct Course {
    partial: ResponseAccumulator,
    first_token_ms: Option<u64>,
    latency_ms: u64,
    sent: bool,
}

/// How long an answer without a limit is taken to be for budgets, in tokens: what Anthropic is asked
/// for where nobody said.
pub const ANSWER_TOKENS_ASSUMED: u32 = 4_096;

/// How long an answer without a limit is taken to be where a provider's tokens a minute are kept.
pub const ANSWER_TOKENS_PACED: u32 = 1_024;

/// What providers add to a prompt to mark who says what, in tokens: a generous guess.
const FRAME_TOKENS: u64 = 32;

/// How many tokens a prompt of so many bytes has at most: one for each byte, and those around it. A
/// token of the tokenizers in use is a byte of the text at least, and rows of digits, hexadecimal and
/// some scripts come to nearly that. Ordinary text has a fourth of it; but what the one tokenizer here
/// makes of a text is no bound for the others, of clients' requests only the length is known, and
/// what is reserved beyond the need is given back when the call ends.
pub fn prompt_tokens_max(bytes: u64) -> u64 {
    bytes.saturating_add(FRAME_TOKENS)
}

/// How many models without a price are remembered; beyond it the log stays silent about more.
const TOLD_UNPRICED_MAX: usize = 1_000;

impl Providers {
    /// Clients of those providers, by their names. Nothing is connected yet. Proxies are taken
    /// from the usual environment variables (`HTTPS_PROXY`, `NO_PROXY`, …).
    pub fn new(providers: BTreeMap<String, ProviderConfig>, timeouts: Timeouts) -> Self {
        Self {
            providers,
            client: Client::new(),
            fetcher: Fetcher::new(FetchRules::default()),
            timeouts,
            pace: RateLimiter::default(),
            prices: Prices::built_in(),
            told_unpriced: Mutex::default(),
        }
    }

    /// Lets `http` nodes ask where `rules` say, instead of any public address.
    pub fn with_fetch_rules(self, rules: FetchRules) -> Self {
        Self {
            fetcher: Fetcher::new(rules),
            ..self
        }
    }

    /// Lets calls follow each other no faster than their providers' rates.
    pub fn with_rates(self, rates: BTreeMap<String, Rate>) -> Self {
        Self {
            pace: RateLimiter::new(rates),
            ..self
        }
    }

    /// Who answers under a provider's name: the protocol that it speaks, and where it is.
    pub fn server_of(&self, provider: &str) -> Option<(Kind, &str)> {
        let provider = self.providers.get(provider)?;
        Some((provider.kind, provider.base_url()))
    }

    /// Gives a call its turn among those of its provider. Its tokens are taken to be one for every
    /// four bytes of its prompt, and as many as its answer may have, or [`ANSWER_TOKENS_PACED`].
    pub fn permit(&self, call: &Call) -> Permit {
        let bytes = call.prompt.len() + call.system.as_ref().map_or(0, String::len);
        self.give_turn(call, Side::Flows, bytes as u64)
    }

    /// As [`Providers::turn`], for the call of a client, whose prompt is elsewhere.
    pub fn permit_for(&self, call: &Call, prompt_bytes: u64) -> Permit {
        self.give_turn(call, Side::Clients, prompt_bytes)
    }

    fn give_turn(&self, call: &Call, side: Side, prompt_bytes: u64) -> Permit {
        let answer = call.max_tokens.unwrap_or(ANSWER_TOKENS_PACED);
        let tokens = prompt_bytes / 4 + u64::from(answer);
        self.pace.give(&call.provider, side, tokens)
    }

    /// Computes costs with these prices instead of the built-in ones.
    pub fn with_prices(self, prices: Prices) -> Self {
        Self { prices, ..self }
    }

    /// Makes the request of an `http` node and waits for its answer.
    ///
    /// # Errors
    /// Everything but a whole answer of status 2xx.
    pub fn fetch(&self, fetch: &Fetch, cancel: &Cancel) -> Result<Fetched, FetchFailure> {
        self.fetcher.fetch(fetch, cancel)
    }

    /// The providers, sorted by name.
    pub fn providers(&self) -> impl Iterator<Item = (&str, &ProviderConfig)> {
        self.providers
            .iter()
            .map(|(name, provider)| (name.as_str(), provider))
    }

    /// Whether there is a provider of that name.
    pub fn knows(&self, provider: &str) -> bool {
        self.providers.contains_key(provider)
    }

    /// Whether calls to that provider can be made at all: that it is known and has its key.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn check(&self, provider: &str) -> Result<(), String> {
        self.usable_provider(provider)
            .map(drop)
            .map_err(|fault| format!("{provider}: {}", fault.message))
    }

    /// What `usage` costs at the model that answered `call`, by the prices in force at `at`, and by
    /// which. None where the tokens or the model's price are not known, the latter is logged once a
    /// model; and where it is more than [`COST_MAX`].
    pub fn charge(&self, call: &Call, model: &str, usage: &Usage, at: Timestamp) -> Charge {
        if usage.source == UsageSource::None {
            return Charge::default();
        }
        let Some(quote) = self.quote_or_tell(call, model, at) else {
            return Charge::default();
        };
        let cost = quote.cost(usage);
        if cost > COST_MAX {
            log::warn!(
                "a call of {}/{model} would have cost {cost} USD for {} tokens of prompt and {} of \
                 answer; more than {COST_MAX} USD are not believed, and it is kept without a cost",
                call.provider,
                usage.input_tokens,
                usage.output_tokens
            );
            return Charge::default();
        }
        Charge {
            cost: Some(cost),
            price: quote.text().cloned(),
        }
    }

    /// What the model that answered a call costs, else the one that was asked. Where none is known, that
    /// is logged.
    fn quote_or_tell(&self, call: &Call, model: &str, at: Timestamp) -> Option<Quote> {
        let quote = self.quote(&call.provider, &[model, &call.model], at);
        if quote.is_none() && self.knows(&call.provider) {
            self.tell_unpriced(&call.provider, model);
        }
        quote
    }

    /// The cost alone of [`Providers::charge`].
    pub fn cost(&self, call: &Call, model: &str, usage: &Usage, at: Timestamp) -> Option<Usd> {
        self.charge(call, model, usage, at).cost
    }

    /// What the first of these models that has a price costs at a configured provider.
    pub fn quote(&self, provider: &str, models: &[&str], at: Timestamp) -> Option<Quote> {
        let config = self.providers.get(provider)?;
        match config.kind {
            Kind::Echo => self.prices.find_any("echo", None, models, at),
            _ => {
                // Some servers report a name of their own; then the one asked for decides.
                let base_url = Some(config.base_url());
                self.prices.find_any(provider, base_url, models, at)
            }
        }
    }

    /// What `usage` would cost at a provider's model at most, where so much may be written to a cache,
    /// by the prices in force at `at`; none where they are not known.
    pub fn cost_at_most(
        &self,
        provider: &str,
        model: &str,
        usage: &Usage,
        writes: CacheWrites,
        at: Timestamp,
    ) -> Option<Usd> {
        let ways = writes.ways(*usage);
        ways.filter_map(|usage| self.cost_of(provider, model, &usage, at))
            .max()
    }

    /// What `usage` would cost at a provider's model, by the prices in force at `at`; none where
    /// they are not known.
    pub fn cost_of(
        &self,
        provider: &str,
        model: &str,
        usage: &Usage,
        at: Timestamp,
    ) -> Option<Usd> {
        let quote = self.quote(provider, &[model], at)?;
        Some(quote.cost(usage))
    }

    /// What a call may need at most, by the prices in force at `at`. Its prompt is taken to have
    /// [`prompt_tokens_max`]; its answer to be as long as it may, or [`ANSWER_TOKENS_ASSUMED`] where
    /// it has no limit.
    pub fn reserve(&self, call: &Call, at: Timestamp) -> Reserve {
        let bytes = call.prompt.len() + call.system.as_ref().map_or(0, String::len);
        let is_marked = call.cache_marks != CacheMarks::default();
        let writes = self.cache_writes(&call.provider, is_marked);
        self.reserve_for(call, bytes as u64, writes, at)
    }

    /// As [`Providers::reserve`], for a prompt of that many bytes instead of the one in `call`, of which
    /// `writes` may be written to a cache, and what the provider writes there by itself.
    pub fn reserve_for(
        &self,
        call: &Call,
        prompt_bytes: u64,
        writes: CacheWrites,
        at: Timestamp,
    ) -> Reserve {
        let usage = Usage {
            input_tokens: prompt_tokens_max(prompt_bytes),
            output_tokens: u64::from(call.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED)),
            source: UsageSource::Estimated,
            ..Usage::default()
        };
        let quote = self.quote_or_tell(call, &call.model, at);
        let writes = writes.max(self.cache_writes(&call.provider, false));
        let most = quote.and_then(|quote| writes.ways(usage).map(|it| quote.cost(&it)).max());
        Reserve {
            cost: most.map(|cost| cost.min(COST_MAX)),
            tokens: usage.input_tokens.saturating_add(usage.output_tokens),
        }
    }

    /// What may be written to a cache by a call whose constant parts are marked, or not. Behind
    /// OpenAI's protocol anything may be: there providers cache by themselves what they like, and
    /// some models ask more for what is written.
    pub fn cache_writes(&self, provider: &str, is_marked: bool) -> CacheWrites {
        match self.kind(provider) {
            Some(Kind::Anthropic) if is_marked => CacheWrites::Short,
            Some(Kind::OpenAi) => CacheWrites::Short,
            _ => CacheWrites::None,
        }
    }

    fn tell_unpriced(&self, provider: &str, model: &str) {
        let mut told = self
            .told_unpriced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD_UNPRICED_MAX && told.insert((provider.to_owned(), model.to_owned())) {
            log::warn!(
                "no price is known for {provider}/{model}; its calls are kept without a cost"
            );
        }
    }

    /// Makes a call and waits for its end. Where `call.stream` is set, `on_delta` gets the text
    /// piece by piece as it comes, also where the call fails in the end; the pieces together are
    /// [`Answer::text`].
    ///
    /// # Errors
    /// See [`FailureKind`].
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
        let started = Instant::now();
        let mut partial = ResponseAccumulator::default();
        let mut first_token_ms = None;
        let mut on_piece = |piece: &str| {
            if call.stream && !piece.is_empty() {
                first_token_ms.get_or_insert_with(|| milliseconds(started.elapsed()));
                on_delta(piece);
            }
        };
        let entered = Scope::enter(cancel);
        let outcome = self.exchange(call, &entered.scope, &mut partial, &mut on_piece);
        let course = Course {
            partial,
            first_token_ms,
            latency_ms: milliseconds(started.elapsed()),
            sent: entered.scope.sent.get(),
        };
        self.conclude(call, outcome, course)
    }

    /// What the caller is told of an exchange.
    #[expect(clippy::result_large_err, reason = "as for `call`")]
    fn conclude(
        &self,
        call: &Call,
        outcome: Result<(), Fault>,
        course: Course,
    ) -> Result<Answer, Failure> {
        let Course {
            partial,
            first_token_ms,
            latency_ms,
            sent,
        } = course;
        let clean = |text: &str| self.redact(&call.provider, text);
        let clean_name = |name: &str| match self.key(&call.provider) {
            Some(key) => key.redact_name(name),
            None => name.to_owned(),
        };
        let model = partial
            .model
            .as_deref()
            .map_or_else(|| call.model.clone(), clean_name);
        let is_billed_otherwise = partial.is_billed_otherwise;
        let usage = self.usage(call, &partial, outcome.is_ok());
        match outcome {
            Ok(()) => Ok(Answer {
                text: partial.text,
                usage,
                is_billed_otherwise,
                model,
                finish_reason: partial.finish_reason.as_deref().map(clean_name),
                latency_ms,
                first_token_ms,
            }),
            Err(fault) => Err(Failure {
                kind: fault.kind,
                message: refusal::tidy(
                    &clean(&format!(
                        "{}/{}: {}",
                        call.provider, call.model, fault.message
                    )),
                    refusal::MESSAGE_CHARS_MAX,
                ),
                status: fault.status,
                retry_after: fault.retry_after,
                usage,
                is_billed_otherwise,
                model,
                latency_ms,
                sent,
            }),
        }
    }

    /// What the call used, estimated where nobody counted it. The echo's words are no tokens, so
    /// that nothing is added to them.
    fn usage(&self, call: &Call, partial: &ResponseAccumulator, is_answered: bool) -> Usage {
        match self.providers.get(&call.provider) {
            Some(provider) if provider.kind != Kind::Echo => {
                estimate::usage(call, partial, is_answered)
            }
            _ => partial.usage,
        }
    }

    fn exchange(
        &self,
        call: &Call,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<(), Fault> {
        let provider = self.usable_provider(&call.provider)?;
        if scope.cancel.is_cancelled() {
            return Err(client::cancelled());
        }
        let timeouts = self.timeouts_of(call);
        let mut exchange = Exchange {
            provider: &call.provider,
            timeouts,
            key: provider.key(),
            is_streamed: call.stream,
            scope,
            partial,
            on_piece,
        };
        match provider.kind {
            Kind::OpenAi => {
                let request = openai::request(call, provider);
                self.client
                    .exchange(request, &mut openai::ChatReader::default(), &mut exchange)
            }
            Kind::Anthropic => {
                let request = anthropic::request(call, provider);
                let mut reader = anthropic::MessageReader::default();
                self.client.exchange(request, &mut reader, &mut exchange)
            }
            Kind::Gemini => {
                let request = gemini::request(call, provider);
                let mut reader = gemini::ContentReader::default();
                self.client.exchange(request, &mut reader, &mut exchange)
            }
            Kind::Ollama => {
                let request = ollama::request(call, provider);
                self.client
                    .exchange(request, &mut ollama::ChatReader, &mut exchange)
            }
            Kind::Echo => {
                let deadline = Instant::now() + timeouts.total;
                echo::answer(call, &scope.cancel, deadline, partial, on_piece)
            }
        }
    }

    /// Models of a provider whose names the price table knows.
    pub fn priced_models(&self, provider: &str) -> Vec<&str> {
        let Some(config) = self.providers.get(provider) else {
            return Vec::new();
        };
        self.prices.models(provider, config.base_url())
    }

    /// See [`Prices::tier_bounds`].
    pub fn tier_bounds(&self) -> Vec<u64> {
        self.prices.tier_bounds()
    }

    /// The protocol of the provider of that name.
    pub fn kind(&self, provider: &str) -> Option<Kind> {
        self.providers.get(provider).map(|provider| provider.kind)
    }

    /// Whether the provider is to be asked for the usage of a streamed chat completion.
    pub fn takes_stream_options(&self, provider: &str) -> bool {
        self.providers
            .get(provider)
            .is_none_or(|provider| provider.stream_usage)
    }

    /// How long a call may take where it does not say.
    pub fn total_timeout(&self) -> Duration {
        self.timeouts.bounded().total
    }

    /// How long a call may take.
    pub fn timeouts_of(&self, call: &Call) -> Timeouts {
        let usual = self.timeouts;
        let timeouts = Timeouts {
            connect: usual.connect,
            first_byte: call.first_byte_timeout.unwrap_or(usual.first_byte),
            total: call.total_timeout.unwrap_or(usual.total),
        };
        timeouts.bounded()
    }

    /// The provider of that name, if it can be called at all.
    fn usable_provider(&self, name: &str) -> Result<&ProviderConfig, Fault> {
        let not_configured = |message| Err(Fault::new(FailureKind::NotConfigured, message));
        let Some(provider) = self.providers.get(name) else {
            let known: Vec<&str> = self.providers.keys().map(String::as_str).collect();
            return not_configured(format!(
                "no provider of that name is configured; there are: {}",
                known.join(", ")
            ));
        };
        match &provider.missing_key_hint {
            Some(hint) if provider.key().is_none() && provider.kind != Kind::Echo => {
                not_configured(format!("the provider's API key is missing; {hint}"))
            }
            _ => Ok(provider),
        }
    }

    /// `text` without the provider's key: some servers repeat the key that they refuse.
    fn redact(&self, provider: &str, text: &str) -> String {
        let key = self.key(provider);
        key.map_or_else(|| text.to_owned(), |key| key.redact(text))
    }

    fn key(&self, provider: &str) -> Option<&Secret> {
        self.providers.get(provider).and_then(ProviderConfig::key)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
