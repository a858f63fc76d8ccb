//! The facts of a response, besides its token counts, that determine the cost of a call.

use serde_json::Value;

use crate::money::Usd;
use crate::prices::Surcharge;

/// Limits the reasons and surcharges of one call.
const NOTES_MAX: usize = 8;

/// The reason of a call that used tools of the provider with unknown prices.
pub(super) const TOOL_FEE: &str = "tool fee";

/// The beginning of the reason of a call in another service tier.
pub(super) const SERVICE_TIER: &str = "service tier";

/// "1 USD = 10,000,000,000 ticks": <https://docs.x.ai/developers/cost-tracking>.
const TICKS_PER_USD: f64 = 1e10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Billing {
    /// The cost that the response states.
    pub stated_cost: Option<Usd>,
    /// The reasons why the price of tokens does not apply, such as `service tier flex`.
    pub unpriced: Vec<String>,
    pub surcharges: Vec<Surcharge>,
    /// The shortest and the longest of several prompts that the call consisted of, in tokens. Each
    /// has the price of its own length.
    pub prompt_lengths: Option<(u64, u64)>,
}

/// The options of a client's request that may add to the price of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PricedOptions {
    /// True if the tokens of the call have no known bound, so its maximum cost is unknown.
    pub is_unbounded: bool,
    /// True if the request may choose the region of the inference.
    pub has_region: bool,
    /// The limit of web searches.
    pub searches: u64,
}

impl Billing {
    /// Notes a reason why the cost cannot be computed.
    pub(super) fn note_unpriced(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.unpriced.len() < NOTES_MAX && !self.unpriced.contains(&reason) {
            self.unpriced.push(reason);
        }
    }

    /// Forgets the service tier, because a later part of the response states another.
    pub(super) fn forget_tier(&mut self) {
        self.unpriced.retain(|reason| !reason.starts_with(SERVICE_TIER));
    }

    /// Notes a fee for the uses of a tool. It replaces an earlier one of the same tool, because
    /// the counts of a stream are cumulative.
    pub(super) fn note_fee(&mut self, tool: &str, uses: u64, picousd_per_use: u64) {
        self.surcharges.retain(|known| !known.note.ends_with(tool));
        if uses > 0 {
            self.note_surcharge(Surcharge::fee(tool, uses, picousd_per_use));
        }
    }

    pub(super) fn has_fee(&self) -> bool {
        self.surcharges.iter().any(|surcharge| surcharge.picousd > 0)
    }

    pub(super) fn note_surcharge(&mut self, surcharge: Surcharge) {
        let is_new = !self.surcharges.contains(&surcharge);
        if is_new && self.surcharges.len() < NOTES_MAX {
            self.surcharges.push(surcharge);
        }
    }

    /// Notes the cost that a usage states: a number at OpenRouter
    /// (<https://openrouter.ai/docs/use-cases/usage-accounting>) and LiteLLM, an object at
    /// Perplexity (<https://docs.perplexity.ai/api-reference/chat-completions-post>), ten-billionths
    /// of a dollar at xAI (<https://docs.x.ai/developers/cost-tracking>). If the user's own key is
    /// used at OpenRouter, the cost is its fee, and the upstream's bill is added; some servers state
    /// the same sum as both.
    pub(super) fn note_stated_cost(&mut self, usage: &Value) {
        let cost = match &usage["cost"] {
            Value::Object(parts) => parts.get("total_cost").unwrap_or(&Value::Null),
            cost => cost,
        };
        let in_ticks = || usd_of(usage["cost_in_usd_ticks"].as_f64()? / TICKS_PER_USD);
        let Some(mut sum) = usd(cost).or_else(in_ticks) else {
            return;
        };
        if usage["is_byok"] == true
            && let Some(upstream) = usd(&usage["cost_details"]["upstream_inference_cost"])
            && upstream != sum
        {
            sum += upstream;
        }
        // A later 0 replaces no cost, like that of a count.
        if sum > Usd::ZERO || self.stated_cost.is_none() {
            self.stated_cost = Some(sum);
        }
    }

    /// Returns the ledger's note; none for a call with standard prices.
    pub(super) fn note(&self) -> Option<String> {
        let surcharges = self.surcharges.iter().map(|surcharge| surcharge.note.as_str());
        let notes: Vec<&str> = self.unpriced.iter().map(String::as_str).chain(surcharges).collect();
        (!notes.is_empty()).then(|| notes.join(", "))
    }
}

/// Returns an amount in US dollars, rounded to nano-dollars; none if it is no possible cost.
fn usd(value: &Value) -> Option<Usd> {
    usd_of(value.as_f64()?)
}

fn usd_of(dollars: f64) -> Option<Usd> {
    if !(0.0..=1e6).contains(&dollars) {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 10¹⁵")]
    let nanousd = (dollars * 1e9).round() as i64;
    Some(Usd::from_nanousd(nanousd))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_possible_costs_are_taken() {
        for (value, cost) in [
            (json!(0), Some(0)),
            (json!(0.036_079_5), Some(36_079_500)),
            (json!(1e-10), Some(0)),
            (json!(-0.1), None),
            (json!(1e300), None),
            (json!("0.1"), None),
            (json!(null), None),
        ] {
            assert_eq!(usd(&value), cost.map(Usd::from_nanousd), "{value}");
        }
    }

    #[test]
    fn a_stated_cost_is_found_in_every_form() {
        for (usage, cost) in [
            (json!({"cost": 0.005_15}), Some(5_150_000)),
            (json!({"cost": {"input_tokens_cost": 1, "total_cost": 0.005_15}}), Some(5_150_000)),
            (json!({"cost_in_usd_ticks": 37_756_000}), Some(3_775_600)),
            (json!({"cost_in_usd_ticks": -1}), None),
            (json!({"cost": null, "cost_in_usd_ticks": 10}), Some(1)),
            (json!({"is_byok": true, "cost_details": {"upstream_inference_cost": 1}}), None),
            (
                json!({"cost": 0.001, "is_byok": true, "cost_details": {"upstream_inference_cost": 1}}),
                Some(1_001_000_000),
            ),
        ] {
            let mut billing = Billing::default();
            billing.note_stated_cost(&usage);
            billing.note_stated_cost(&json!(null));
            if cost.is_some() {
                billing.note_stated_cost(&json!({"cost": 0}));
            }
            assert_eq!(billing.stated_cost, cost.map(Usd::from_nanousd), "{usage}");
        }
    }

    #[test]
    fn notes_are_distinct_and_few() {
        let mut billing = Billing::default();
        assert_eq!(billing.note(), None);
        for n in 0..20 {
            billing.note_unpriced(format!("tier {}", n / 2));
        }
        billing.note_fee("web searches", 1, 7);
        billing.note_fee("web searches", 3, 7);
        assert_eq!(billing.unpriced.len(), NOTES_MAX);
        assert_eq!(billing.surcharges, [Surcharge::fee("web searches", 3, 7)]);
        assert!(billing.note().unwrap().ends_with("tier 7, 3 web searches"));
    }
}
