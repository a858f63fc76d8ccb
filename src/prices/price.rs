//! The arithmetic of a price.

use serde::{Deserialize, Serialize};

use crate::event::Usage;
use crate::money::Usd;

pub(super) const PICO_PER_NANO: u128 = 1_000;

/// The maximum price of a token (100,000 dollars per million): the most expensive model takes 600,
/// so a higher one is an error. The limit also keeps the sum of seven products of any `u64` counts
/// below 2¹²⁸.
pub(super) const TOKEN_PICOUSD_MAX: u64 = 100_000_000_000;

/// The maximum price of a call (1,000 dollars); a higher one is an error.
pub(super) const REQUEST_PICOUSD_MAX: u64 = 1_000_000_000_000_000;

/// The price of one model at one provider at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Pico-dollars per call.
    pub(super) request: u64,
    pub(super) rates: Rates,
    pub(super) tiers: Vec<Tier>,
    /// True if the price of cache writes for an hour is only that of those for five minutes.
    pub(super) lacks_hour_writes: bool,
    /// True if the price of cache reads, or of cache writes, is unknown and only that of `input`.
    pub(super) lacks_cache_reads: bool,
    pub(super) lacks_cache_writes: bool,
}

impl Price {
    /// Checks the limits and the order of the tiers.
    ///
    /// # Errors
    /// Returns the first fault.
    pub(super) fn new(request: u64, rates: Rates, mut tiers: Vec<Tier>) -> Result<Self, String> {
        check_price("request", request, REQUEST_PICOUSD_MAX)?;
        if !tiers.is_sorted_by(|first, second| first.above < second.above) {
            return Err("`tiers` must be in ascending order of `above`".to_owned());
        }
        tiers.shrink_to_fit();
        Ok(Self { request, rates, tiers, ..Self::default() })
    }

    /// Returns the cost of a call with these counts, rounded once, half to even, to nano-dollars;
    /// it saturates at the largest amount.
    pub fn cost(&self, usage: &Usage) -> Usd {
        self.cost_of_all(1, usage.input_tokens, usage)
    }

    pub(super) fn cost_of_all(&self, calls: u64, prompt_tokens: u64, sums: &Usage) -> Usd {
        let picos = self.picodollars(calls, prompt_tokens, sums);
        let (whole, rest) = (picos / PICO_PER_NANO, picos % PICO_PER_NANO);
        let half = PICO_PER_NANO / 2;
        let up = rest > half || (rest == half && whole % 2 == 1);
        Usd::from_nanousd(i64::try_from(whole + u128::from(up)).unwrap_or(i64::MAX))
    }

    /// Always fits: see [`TOKEN_PICOUSD_MAX`].
    pub(super) fn picodollars(&self, calls: u64, prompt_tokens: u64, usage: &Usage) -> u128 {
        let rates = self.rates_for(prompt_tokens);
        let read = usage.cached_input_tokens;
        let hour_writes = usage.cache_write_1h_tokens.min(usage.cache_write_tokens);
        let short_writes = usage.cache_write_tokens - hour_writes;
        // Inconsistent counts never make a call cheaper than its parts.
        let uncached =
            usage.input_tokens.saturating_sub(read).saturating_sub(usage.cache_write_tokens);
        let answer = usage.output_tokens.saturating_sub(usage.reasoning_tokens);
        let billed = [
            (uncached, rates.input),
            (read, rates.cache_read),
            (short_writes, rates.cache_write),
            (hour_writes, rates.cache_write_1h),
            (answer, rates.output),
            (usage.reasoning_tokens, rates.reasoning),
        ];
        let tokens = billed.map(|(count, price)| u128::from(count) * u128::from(price));
        u128::from(self.request) * u128::from(calls) + tokens.iter().sum::<u128>()
    }

    pub(super) fn rates_for(&self, prompt_tokens: u64) -> &Rates {
        let mut longest_first = self.tiers.iter().rev();
        let tier = longest_first.find(|tier| prompt_tokens > tier.above);
        tier.map_or(&self.rates, |tier| &tier.picousd_per_token)
    }
}

/// The prices of a call with a longer prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    pub above: u64,
    pub picousd_per_token: Rates,
}

/// Pico-dollars per token, with fallbacks applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Prompt tokens that were neither read from a cache nor written to one.
    pub input: u64,
    pub cache_read: u64,
    /// Written to a cache for five minutes.
    pub cache_write: u64,
    /// Written to a cache for an hour.
    pub cache_write_1h: u64,
    pub output: u64,
    pub reasoning: u64,
}

impl Rates {
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("input", self.input),
            ("cache_read", self.cache_read),
            ("cache_write", self.cache_write),
            ("cache_write_1h", self.cache_write_1h),
            ("output", self.output),
            ("reasoning", self.reasoning),
        ]
    }

    pub(super) fn all_mut(&mut self) -> [&mut u64; 6] {
        [
            &mut self.input,
            &mut self.cache_read,
            &mut self.cache_write,
            &mut self.cache_write_1h,
            &mut self.output,
            &mut self.reasoning,
        ]
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let named = self.named();
        named.into_iter().try_for_each(|(name, price)| check_price(name, price, TOKEN_PICOUSD_MAX))
    }
}

/// The token prices in a file, without fallbacks: `input`, `cache_read`, `cache_write`,
/// `cache_write_1h`, `output`, `reasoning`.
pub(super) struct GivenRates(pub(super) [Option<u64>; 6]);

impl GivenRates {
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Applies the fallbacks; none if both `input` and `output` are missing.
    pub(super) fn rates(&self) -> Option<Rates> {
        let [input, cache_read, cache_write, cache_write_1h, output, reasoning] = self.0;
        if input.is_none() && output.is_none() {
            return None;
        }
        let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
        let cache_write = cache_write.unwrap_or(input);
        Some(Rates {
            input,
            cache_read: cache_read.unwrap_or(input),
            cache_write,
            cache_write_1h: cache_write_1h.unwrap_or(cache_write),
            output,
            reasoning: reasoning.unwrap_or(output),
        })
    }
}

pub(super) fn check_price(name: &str, price: u64, max: u64) -> Result<(), String> {
    match price > max {
        true => Err(format!("`{name}` is {price} pico-dollars; the limit is {max}")),
        false => Ok(()),
    }
}
