//! The cost of a call: before it for its reservation, after it for the ledger.

use std::sync::{Arc, PoisonError};

use super::Providers;
use super::call::{ANSWER_TOKENS_ASSUMED, CacheMarks, Call};
use super::config::Kind;
use crate::budget::Reserve;
use crate::event::{Usage, UsageSource};
use crate::money::Usd;
use crate::prices::{COST_MAX, Quote};
use crate::time::Timestamp;

/// Generous bound of the tokens that providers add to a prompt to mark its roles.
const FRAME_TOKENS: u64 = 32;

/// How many models without a price are remembered; beyond it no more are logged.
const LOGGED_UNPRICED_MAX: usize = 1_000;

/// Returns how many tokens a prompt of that many bytes has at most: one for each byte, and those
/// around it. A token is at least a byte of the text, and digits, hexadecimal and some scripts come
/// close to that. Ordinary text has a fourth; but one tokenizer is no bound for others, only the
/// length of a client's request is known, and an excess of the reservation is released when the call
/// ends.
pub fn prompt_tokens_max(bytes: u64) -> u64 {
    bytes.saturating_add(FRAME_TOKENS)
}

/// What a call costs, and by which price.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// None if the tokens or the price are unknown.
    pub cost: Option<Usd>,
    /// The price as the ledger row keeps it, a [`StoredPrice`](crate::prices::StoredPrice); none for
    /// `echo`, which is free.
    pub price: Option<Arc<str>>,
}

impl Charge {
    /// For a call that certainly cost nothing.
    pub const FREE: Self = Self { cost: Some(Usd::ZERO), price: None };
}

/// The part of a prompt that may be written to the provider's cache, which most bill higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheWrites {
    None,
    Short,
    /// Any part, also for an hour.
    Long,
}

impl CacheWrites {
    /// Returns the usage with nothing written, and with the whole input written in each possible way:
    /// one of them costs the most.
    fn variants(self, usage: Usage) -> impl Iterator<Item = Usage> {
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

impl Providers {
    /// Returns the cost of `usage` at the model that answered `call`, by the prices in force at `at`.
    /// It is unknown if the tokens or the model's price are, which is logged once for each model, and
    /// if it is more than [`COST_MAX`].
    pub fn charge(&self, call: &Call, model: &str, usage: &Usage, at: Timestamp) -> Charge {
        if usage.source == UsageSource::None {
            return Charge::default();
        }
        let Some(quote) = self.quote_or_log(call, model, at) else {
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
        Charge { cost: Some(cost), price: quote.text().cloned() }
    }

    /// Returns the price of the model that answered a call, else of the requested one; logs if there
    /// is none.
    fn quote_or_log(&self, call: &Call, model: &str, at: Timestamp) -> Option<Quote> {
        let quote = self.quote(&call.provider, &[model, &call.model], at);
        if quote.is_none() && self.knows(&call.provider) {
            let mut logged = self.logged_unpriced.lock().unwrap_or_else(PoisonError::into_inner);
            let name = (call.provider.clone(), model.to_owned());
            if logged.len() < LOGGED_UNPRICED_MAX && logged.insert(name) {
                log::warn!(
                    "no price is known for {}/{model}; its calls are kept without a cost",
                    call.provider
                );
            }
        }
        quote
    }

    /// Returns the price of the first of these models that has one at a configured provider.
    pub fn quote(&self, provider: &str, models: &[&str], at: Timestamp) -> Option<Quote> {
        let config = self.providers.get(provider)?;
        match config.kind {
            Kind::Echo => self.prices.find_any("echo", None, models, at),
            _ => {
                let base_url = Some(config.base_url());
                self.prices.find_any(provider, base_url, models, at)
            }
        }
    }

    /// Returns the highest cost of `usage` at a provider's model if its input may be written to a
    /// cache as `writes` says; none if its price is unknown.
    pub fn cost_at_most(
        &self,
        provider: &str,
        model: &str,
        usage: &Usage,
        writes: CacheWrites,
        at: Timestamp,
    ) -> Option<Usd> {
        let quote = self.quote(provider, &[model], at)?;
        let costs = writes.variants(*usage).map(|usage| quote.cost(&usage));
        costs.max()
    }

    /// Returns the cost of `usage` at a provider's model; none if its price is unknown.
    pub fn cost_of(
        &self,
        provider: &str,
        model: &str,
        usage: &Usage,
        at: Timestamp,
    ) -> Option<Usd> {
        self.cost_at_most(provider, model, usage, CacheWrites::None, at)
    }

    /// Returns what a call may use at most, by the prices in force at `at`. Its prompt is taken to have
    /// [`prompt_tokens_max`], its answer to be as long as it may, or [`ANSWER_TOKENS_ASSUMED`] if it
    /// has no limit.
    pub fn reserve(&self, call: &Call, at: Timestamp) -> Reserve {
        let is_marked = call.cache_marks != CacheMarks::default();
        let writes = self.cache_writes(&call.provider, is_marked);
        self.reserve_for(call, call.prompt_bytes(), writes, at)
    }

    /// As [`Providers::reserve`], for a prompt of that many bytes instead of the one in `call`, of which
    /// `writes` may be written to a cache, beside what the provider writes there by itself.
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
        let quote = self.quote_or_log(call, &call.model, at);
        let writes = writes.max(self.cache_writes(&call.provider, false));
        let variants = || writes.variants(usage);
        let most = quote.and_then(|quote| variants().map(|usage| quote.cost(&usage)).max());
        Reserve {
            cost: most.map(|cost| cost.min(COST_MAX)),
            tokens: usage.input_tokens.saturating_add(usage.output_tokens),
        }
    }

    /// Returns what a call may write to a cache if its constant parts are marked, or not. Servers of
    /// OpenAI's protocol cache by themselves, and some bill more for what they write.
    pub fn cache_writes(&self, provider: &str, is_marked: bool) -> CacheWrites {
        match self.kind(provider) {
            Some(Kind::Anthropic) if is_marked => CacheWrites::Short,
            Some(Kind::OpenAi) => CacheWrites::Short,
            _ => CacheWrites::None,
        }
    }

    /// Returns the models of a provider whose names the price table knows.
    pub fn priced_models(&self, provider: &str) -> Vec<&str> {
        let Some(config) = self.providers.get(provider) else {
            return Vec::new();
        };
        self.prices.models(provider, config.base_url())
    }

    /// See [`Prices::tier_bounds`](super::Prices::tier_bounds).
    pub fn tier_bounds(&self) -> Vec<u64> {
        self.prices.tier_bounds()
    }
}
