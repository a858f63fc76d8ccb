//! The cost of a call: before it for the reservation, after it for the ledger.

use std::sync::PoisonError;

use super::Providers;
use super::anthropic;
use super::billing::{Billing, PricedOptions, TOOL_FEE};
use super::call::{ANSWER_TOKENS_ASSUMED, CacheMarks, Call};
use super::config::{Kind, ProviderConfig};
use super::failure::{FailedCallCost, Failure};
use super::openai;
use crate::budget::{Maximum, Reserve};
use crate::event::{Charge, CostSource, Usage, UsageSource};
use crate::money::Usd;
use crate::prices::{COST_MAX, Quote, Surcharge};
use crate::time::Timestamp;

/// A generous bound of the tokens that providers add to a prompt to mark its roles.
const FRAME_TOKENS: u64 = 32;

const BATCH_PER_MILLE: u64 = 500;

/// Limits the remembered models without a price; more are not logged.
const LOGGED_UNPRICED_MAX: usize = 1_000;

/// Returns the price of a call from that of its model.
///
/// # Errors
/// Returns the reason why the price does not apply.
fn adapted(quote: Quote, usage: &Usage, billing: &Billing) -> Result<Quote, &'static str> {
    if let Some(tokens) = quote.unpriced_tokens(usage) {
        return Err(tokens);
    }
    let quote = match billing.prompt_lengths {
        Some((shortest, longest)) => quote.for_prompts(shortest, longest),
        None => Some(quote),
    };
    let quote = quote.ok_or("prompts of several price tiers")?;
    quote.with_surcharges(&billing.surcharges).ok_or("surcharges above the limit")
}

/// Returns the maximum tokens of a prompt of this length: one per byte, plus the frame. A token has
/// at least one byte, and digits, hexadecimal and some scripts come close to that.
///
/// Ordinary text has about a quarter of these tokens, but a tighter bound is not safe: tokenizers
/// differ, and only the length of a client's request is known. The excess of a reservation is
/// released when the call ends.
pub fn prompt_tokens_max(bytes: u64) -> u64 {
    bytes.saturating_add(FRAME_TOKENS)
}

/// The part of a prompt that may be written to the provider's cache; most providers bill more for
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheWrites {
    None,
    Short,
    /// Any part, also for an hour.
    Long,
}

impl CacheWrites {
    /// Returns the usage without cache writes, and with the whole input written in each possible
    /// way: one of them has the maximum cost.
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
    /// Returns the cost of `usage` at the model that answered `call`, at the prices in force at
    /// `at`. The cost that the response states counts for a provider that is trusted in this. The
    /// cost is unknown if the tokens or the model's price are unknown (logged once for each model),
    /// if `billing` names a reason, and if it exceeds [`COST_MAX`].
    pub fn charge(
        &self,
        call: &Call,
        model: &str,
        usage: &Usage,
        billing: &Billing,
        at: Timestamp,
    ) -> Charge {
        let provider_cost = billing.stated_cost.filter(|cost| *cost <= COST_MAX);
        let trusted = provider_cost.filter(|_| self.trusts_cost_of(&call.provider));
        let quote = match usage.source {
            UsageSource::None => None,
            _ if !billing.unpriced.is_empty() => None,
            _ if trusted.is_some() => self.quote(&call.provider, &[model, &call.model], at),
            _ => self.quote_or_log(call, model, at),
        };
        let regional = self.regional_note(call, model, quote.as_ref(), usage);
        // Without a price, the row would not show that its prompts may have several price tiers.
        let is_split = quote.is_none() && billing.prompt_lengths.is_some();
        let prompts = is_split.then(|| "several prompts".to_owned());
        let notes = [regional, billing.note(), prompts].into_iter().flatten();
        let mut note = notes.reduce(|one, other| format!("{one}, {other}"));
        let quote = quote.and_then(|quote| {
            // The fees are Anthropic's; those of other servers of its protocol are unknown.
            let is_fee_unknown =
                billing.has_fee() && quote.maker() != Some(anthropic::MAKER.into());
            let adapted = match is_fee_unknown {
                true => Err(TOOL_FEE),
                false => adapted(quote, usage, billing),
            };
            if let Err(reason) = adapted {
                let others = note.take().map(|others| others + ", ");
                note = Some(others.unwrap_or_default() + reason);
            }
            adapted.ok()
        });
        let price_cost = quote.as_ref().map(|quote| quote.cost(usage)).filter(|cost| {
            let is_possible = *cost <= COST_MAX;
            if !is_possible {
                log::warn!(
                    "the cost of a call of {}/{model} would be {cost} USD for {} input and {} \
                     output tokens; the limit is {COST_MAX} USD, so it is stored as unknown",
                    call.provider,
                    usage.input_tokens,
                    usage.output_tokens
                );
                note.get_or_insert_with(|| format!("above {COST_MAX} USD"));
            }
            is_possible
        });
        let price = price_cost.and_then(|_| quote.as_ref()?.text().cloned());
        let (cost, source) = match (trusted, &price) {
            (Some(cost), _) => (Some(cost), CostSource::Provider),
            (None, Some(_)) => (price_cost, CostSource::Price),
            // Calls of `echo` are free and have no price.
            (None, None) => (price_cost, CostSource::None),
        };
        let price_cost = price_cost.filter(|_| provider_cost.is_some());
        Charge { cost, source, note, price, price_cost, provider_cost }
    }

    /// Adds the discount of a batch to its billing. OpenAI: "Each model will be offered at 50% cost
    /// discount" (<https://help.openai.com/en/articles/9197833-batch-api-faq>). Anthropic: "All usage is
    /// charged at 50% of the standard API prices"
    /// (<https://platform.claude.com/docs/en/build-with-claude/batch-processing#pricing>). The batch
    /// prices of others are unknown.
    pub fn discount_batch(&self, call: &Call, model: &str, billing: &mut Billing, at: Timestamp) {
        let quote = self.quote(&call.provider, &[model, &call.model], at);
        let maker = quote.as_ref().and_then(Quote::maker);
        match maker.as_deref() {
            Some("openai" | anthropic::MAKER) => {
                billing.note_surcharge(Surcharge::factor("batch", BATCH_PER_MILLE));
            }
            _ => billing.note_unpriced("batch price"),
        }
    }

    /// Returns the cost of a failed call without known tokens.
    fn charge_of_failure(&self, failure: &Failure) -> Charge {
        let charge = match self.failed_call_costs.of(failure) {
            FailedCallCost::Zero => Charge::FREE,
            FailedCallCost::Unknown => Charge::UNKNOWN,
        };
        let provider_cost = failure.billing.stated_cost.filter(|cost| *cost <= COST_MAX);
        Charge { provider_cost, ..charge }
    }

    /// Returns the cost of a failed call, at the prices in force at `at`.
    pub fn charge_failed(&self, call: &Call, failure: &Failure, at: Timestamp) -> Charge {
        let is_stated =
            failure.billing.stated_cost.is_some() && self.trusts_cost_of(&call.provider);
        match failure.usage.source {
            UsageSource::None if !is_stated => self.charge_of_failure(failure),
            _ => self.charge(call, &failure.model, &failure.usage, &failure.billing, at),
        }
    }

    /// Names the surcharge of the provider's address, which is part of the price or, if it is not
    /// known for the model, the reason why there is none.
    fn regional_note(
        &self,
        call: &Call,
        model: &str,
        quote: Option<&Quote>,
        usage: &Usage,
    ) -> Option<String> {
        if let Some(quote) = quote {
            return quote.surcharges().map(|surcharges| surcharges.join(", "));
        }
        let config = self.providers.get(&call.provider)?;
        let is_called = usage.source != UsageSource::None && config.kind != Kind::Echo;
        is_called.then(|| {
            let models = [model, call.model.as_str()];
            self.prices.unknown_surcharge(config.base_url(), &models)
        })?
    }

    fn trusts_cost_of(&self, provider: &str) -> bool {
        self.providers.get(provider).is_some_and(ProviderConfig::trusts_cost)
    }

    /// Returns the price of the model that answered a call, else of the requested one; logs a
    /// missing price.
    fn quote_or_log(&self, call: &Call, model: &str, at: Timestamp) -> Option<Quote> {
        let quote = self.quote(&call.provider, &[model, &call.model], at);
        if quote.is_none() && self.knows(&call.provider) {
            let mut logged = self.logged_unpriced.lock().unwrap_or_else(PoisonError::into_inner);
            let name = (call.provider.clone(), model.to_owned());
            if logged.len() < LOGGED_UNPRICED_MAX && logged.insert(name) {
                log::warn!(
                    "unknown price of {}/{model}; its calls have no cost in the ledger until you set one",
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

    /// Returns the maximum cost of `usage` at a provider's model, if `writes` limits the cache
    /// writes; none if its price is unknown.
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

    /// Returns the maximum usage of a call, at the prices in force at `at`. The prompt is assumed
    /// to have [`prompt_tokens_max`], the answer its limit, or [`ANSWER_TOKENS_ASSUMED`] if it has
    /// none.
    pub fn reserve(&self, call: &Call, at: Timestamp) -> Reserve {
        let is_marked = call.cache_marks != CacheMarks::default();
        let writes = self.cache_writes(&call.provider, is_marked);
        let tokens = [prompt_tokens_max(call.prompt_bytes())];
        let [maximum] = self.maxima(call, tokens, writes, PricedOptions::default(), at);
        maximum.whole
    }

    /// Like [`Providers::reserve`], for each of these numbers of prompt tokens. `writes` is the part
    /// that may be written to a cache, in addition to the provider's automatic writes.
    pub fn maxima<const N: usize>(
        &self,
        call: &Call,
        prompt_tokens: [u64; N],
        writes: CacheWrites,
        options: PricedOptions,
        at: Timestamp,
    ) -> [Maximum; N] {
        let quote = match options.is_unbounded {
            // The model of a batch in a file is not known.
            true => self.quote(&call.provider, &[&call.model], at).filter(Quote::is_free),
            false => self.quote_or_log(call, &call.model, at),
        };
        let quote = quote.and_then(|quote| match self.kind(&call.provider) {
            Some(Kind::Anthropic) => quote.with_surcharges(&anthropic::surcharges(options)),
            _ => Some(quote),
        });
        let writes = writes.max(self.cache_writes(&call.provider, false));
        let reserve = |input_tokens: u64, output_tokens: u64| {
            let source = UsageSource::Estimated;
            let usage = Usage { input_tokens, output_tokens, source, ..Usage::default() };
            let costs =
                |quote: &Quote| writes.variants(usage).map(|usage| quote.cost(&usage)).max();
            Reserve {
                cost: quote.as_ref().and_then(costs).map(|cost| cost.min(COST_MAX)),
                tokens: input_tokens.saturating_add(output_tokens),
            }
        };
        let output = u64::from(call.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED));
        prompt_tokens
            .map(|input| Maximum { input: reserve(input, 0), whole: reserve(input, output) })
    }

    /// Returns the part of a call that may be written to a cache, with or without marks. Servers of
    /// OpenAI's protocol cache automatically, and some bill more for writes.
    pub fn cache_writes(&self, provider: &str, is_marked: bool) -> CacheWrites {
        match self.kind(provider) {
            Some(Kind::Anthropic) if is_marked => CacheWrites::Short,
            Some(Kind::OpenAi) => CacheWrites::Short,
            _ => CacheWrites::None,
        }
    }

    /// Returns the name of the output limit in chat completions for a provider.
    pub fn output_limit_name(&self, provider: &str) -> &'static str {
        let config = self.providers.get(provider);
        openai::max_tokens_name(config.map_or("", ProviderConfig::base_url))
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
