//! Parts of a cost that the price of tokens does not contain.

use std::sync::Arc;

use super::price::{Price, REQUEST_PICOUSD_MAX, Rates, TOKEN_PICOUSD_MAX, Tier};
use super::stored::StoredPrice;
use super::table::Quote;
use crate::event::Usage;

const STANDARD_PER_MILLE: u64 = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surcharge {
    /// Names it in the ledger row: `inference_geo us x1.1`, `3 web searches`.
    pub note: String,
    /// Multiplies the prices of tokens, in thousandths: 1,100 for 10 % more.
    pub per_mille: u64,
    /// Pico-dollars for the whole call.
    pub picousd: u64,
}

impl Surcharge {
    /// A factor on all prices of tokens.
    pub fn factor(name: &str, per_mille: u64) -> Self {
        let (whole, rest) = (per_mille / 1_000, per_mille % 1_000);
        let factor = format!("{whole}.{rest:03}");
        let note = format!("{name} x{}", factor.trim_end_matches('0').trim_end_matches('.'));
        Self { note, per_mille, picousd: 0 }
    }

    /// A fee for each use of a tool.
    pub fn fee(name: &str, uses: u64, picousd_per_use: u64) -> Self {
        let picousd = uses.saturating_mul(picousd_per_use);
        Self { note: format!("{uses} {name}"), per_mille: STANDARD_PER_MILLE, picousd }
    }
}

impl Quote {
    /// Returns the provider in the price table; none for `echo`.
    pub fn maker(&self) -> Option<String> {
        StoredPrice::from_json(self.text()?).ok().map(|stored| stored.provider)
    }

    /// Returns the surcharges that are part of the price, if any.
    pub fn surcharges(&self) -> Option<Vec<String>> {
        let text = self.text().filter(|text| text.contains("\"surcharges\""))?;
        Some(StoredPrice::from_json(text).ok()?.surcharges)
    }

    /// Returns the price of a call with these surcharges; none if it exceeds the limits of a price.
    /// The new price is stored like any other, so that `verify` computes the same cost again.
    pub fn with_surcharges(self, surcharges: &[Surcharge]) -> Option<Self> {
        if surcharges.is_empty() {
            return Some(self);
        }
        let scale_all = |rates: &Rates| {
            let mut rates = rates.clone();
            for rate in rates.all_mut() {
                let factors = surcharges.iter().map(|surcharge| u128::from(surcharge.per_mille));
                let scaled = factors.fold(u128::from(*rate), |rate, factor| {
                    (rate * factor + 500) / u128::from(STANDARD_PER_MILLE)
                });
                *rate = u64::try_from(scaled).ok().filter(|rate| *rate <= TOKEN_PICOUSD_MAX)?;
            }
            Some(rates)
        };
        let fees = surcharges.iter().map(|surcharge| surcharge.picousd);
        let request = fees.fold(self.price.request, u64::saturating_add);
        let tiers = self.price.tiers.iter().map(|tier| {
            let picousd_per_token = scale_all(&tier.picousd_per_token)?;
            Some(Tier { above: tier.above, picousd_per_token })
        });
        let price = Price {
            request: Some(request).filter(|request| *request <= REQUEST_PICOUSD_MAX)?,
            rates: scale_all(&self.price.rates)?,
            tiers: tiers.collect::<Option<_>>()?,
            ..Price::clone(&self.price)
        };
        let notes = surcharges.iter().map(|surcharge| surcharge.note.clone());
        Some(self.replaced(price, notes.collect()))
    }

    /// Returns the price of a call that consisted of several prompts with lengths in this range,
    /// each with the price of its own length; none if these prices differ.
    pub fn for_prompts(self, shortest: u64, longest: u64) -> Option<Self> {
        if self.price.tiers.is_empty() {
            return Some(self);
        }
        let rates = self.rates(longest).clone();
        if *self.rates(shortest) != rates {
            return None;
        }
        let price = Price { rates, tiers: Vec::new(), ..Price::clone(&self.price) };
        Some(self.replaced(price, Vec::new()))
    }

    /// Names the tokens of a call whose price is unknown, if any.
    pub fn unpriced_tokens(&self, usage: &Usage) -> Option<&'static str> {
        let Price { lacks_hour_writes, lacks_cache_reads, lacks_cache_writes, .. } = *self.price;
        let unpriced_reads = lacks_cache_reads && usage.cached_input_tokens > 0;
        let unpriced_writes = lacks_cache_writes && usage.cache_write_tokens > 0;
        if unpriced_reads || unpriced_writes {
            return Some("cache tokens");
        }
        let unpriced_hour_writes = lacks_hour_writes && usage.cache_write_1h_tokens > 0;
        unpriced_hour_writes.then_some("one-hour cache writes")
    }

    /// Returns another price of the same model in the form of ledger rows.
    fn replaced(self, price: Price, surcharges: Vec<String>) -> Self {
        let text = self.text().and_then(|text| StoredPrice::from_json(text).ok()).map(|stored| {
            let stored = StoredPrice {
                request_picousd: price.request,
                picousd_per_token: price.rates.clone(),
                tiers: price.tiers.clone(),
                surcharges: stored.surcharges.iter().cloned().chain(surcharges).collect(),
                ..stored
            };
            serde_json::to_string(&stored).unwrap_or_default().into()
        });
        Self { price: Arc::new(price), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Usd;
    use crate::prices::Prices;
    use crate::time::Timestamp;

    fn quote() -> Quote {
        let prices = Prices::built_in();
        let at: Timestamp = "2026-11-01".parse().unwrap();
        prices.find_any("openai", None, &["gpt-4o".to_owned().as_str()], at).unwrap()
    }

    #[test]
    fn surcharges_are_part_of_the_stored_price() {
        let usage = Usage { input_tokens: 1_000, output_tokens: 500, ..Usage::default() };
        let standard = quote().cost(&usage);
        assert_eq!(standard, Usd::from_nanousd(7_500_000));
        let surcharges =
            [Surcharge::factor("eu", 1_100), Surcharge::fee("web searches", 3, 10_000_000_000)];
        let quote = quote().with_surcharges(&surcharges).unwrap();
        assert_eq!(quote.cost(&usage), Usd::from_nanousd(8_250_000 + 30_000_000));
        let stored = StoredPrice::from_json(quote.text().unwrap()).unwrap();
        assert_eq!(stored.surcharges, ["eu x1.1", "3 web searches"]);
        assert_eq!(stored.price().cost(&usage), quote.cost(&usage));
    }

    #[test]
    fn several_prompts_have_the_price_of_their_lengths() {
        let prices = Prices::built_in();
        let at: Timestamp = "2026-11-01".parse().unwrap();
        let quote = || prices.find_any("anthropic", None, &["claude-sonnet-4-5"], at).unwrap();
        let usage = Usage { input_tokens: 300_000, output_tokens: 10, ..Usage::default() };
        let short = quote().for_prompts(100, 200_000).unwrap();
        assert_eq!(short.cost(&usage), Usd::from_nanousd(900_150_000));
        let long = quote().for_prompts(200_001, 300_000).unwrap();
        assert_eq!(long.cost(&usage), quote().cost(&usage));
        let stored = StoredPrice::from_json(short.text().unwrap()).unwrap();
        assert_eq!(stored.price().cost(&usage), short.cost(&usage));
        assert_eq!(quote().for_prompts(200_000, 200_001), None);
    }

    #[test]
    fn only_listed_prices_of_hour_writes_are_known() {
        let prices = Prices::built_in();
        let at: Timestamp = "2026-11-01".parse().unwrap();
        for (provider, model, is_unknown) in [
            ("anthropic", "claude-opus-4-6", false),
            ("openrouter", "anthropic/claude-opus-4.6", true),
            ("openrouter", "bytedance-research/ui-tars-72b:free", false),
        ] {
            let quote = prices.find_any(provider, None, &[model], at).unwrap();
            let hour_writes =
                Usage { cache_write_tokens: 1, cache_write_1h_tokens: 1, ..Usage::default() };
            let unpriced = is_unknown.then_some("one-hour cache writes");
            assert_eq!(quote.unpriced_tokens(&hour_writes), unpriced, "{provider} {model}");
            assert_eq!(quote.unpriced_tokens(&Usage::default()), None, "{provider} {model}");
        }
    }

    #[test]
    fn unlisted_cache_prices_of_dashscope_are_unknown() {
        let prices = Prices::built_in();
        let at: Timestamp = "2026-11-30".parse().unwrap();
        let url = Some("https://dashscope-intl.aliyuncs.com/compatible-mode/v1");
        let read = Usage { input_tokens: 10, cached_input_tokens: 1, ..Usage::default() };
        let written = Usage { input_tokens: 10, cache_write_tokens: 1, ..Usage::default() };
        let unknown = Some("cache tokens");
        for (model, of_reads, of_writes) in [
            ("qwen-max", unknown, unknown),
            ("qwen3.5-plus", unknown, unknown),
            ("qwen3-coder-plus", None, unknown),
            ("qwen3.8-max", None, unknown),
            ("qwen3.7-max", None, None),
        ] {
            let quote = prices.find_any("qwen", url, &[model], at).unwrap();
            assert_eq!(quote.unpriced_tokens(&read), of_reads, "{model}");
            assert_eq!(quote.unpriced_tokens(&written), of_writes, "{model}");
            assert_eq!(quote.unpriced_tokens(&Usage::default()), None, "{model}");
            let surcharged = quote.with_surcharges(&[Surcharge::factor("eu", 1_100)]).unwrap();
            assert_eq!(surcharged.unpriced_tokens(&read), of_reads, "{model}");
        }
    }

    #[test]
    fn impossible_surcharges_leave_no_price() {
        let fee = Surcharge::fee("web searches", u64::MAX, 10_000_000_000);
        assert_eq!(quote().with_surcharges(&[fee]), None);
        assert_eq!(quote().with_surcharges(&[Surcharge::factor("x", u64::MAX)]), None);
    }
}
