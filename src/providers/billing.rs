//! The facts of a response, besides its token counts, that determine the cost of a call.

use serde_json::Value;

use crate::money::Usd;
use crate::prices::Surcharge;

/// Limits the reasons and surcharges of one call.
const NOTES_MAX: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Billing {
    /// The cost that the response states.
    pub stated_cost: Option<Usd>,
    /// Why the price of tokens does not give the cost, such as `service tier flex`.
    pub unpriced: Vec<String>,
    pub surcharges: Vec<Surcharge>,
}

impl Billing {
    /// Notes a reason why the cost cannot be computed.
    pub(super) fn note_unpriced(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.unpriced.len() < NOTES_MAX && !self.unpriced.contains(&reason) {
            self.unpriced.push(reason);
        }
    }

    /// Notes a fee for the uses of a tool. It replaces an earlier one of the same tool, because
    /// the counts of a stream are cumulative.
    pub(super) fn note_fee(&mut self, tool: &str, uses: u64, picousd_per_use: u64) {
        self.surcharges.retain(|known| !known.note.ends_with(tool));
        if uses > 0 {
            self.note_surcharge(Surcharge::fee(tool, uses, picousd_per_use));
        }
    }

    pub(super) fn note_surcharge(&mut self, surcharge: Surcharge) {
        let is_new = !self.surcharges.contains(&surcharge);
        if is_new && self.surcharges.len() < NOTES_MAX {
            self.surcharges.push(surcharge);
        }
    }

    /// Notes the cost in US dollars that the response states, if it is finite and not negative.
    pub(super) fn note_stated_cost(&mut self, cost: &Value) {
        if let Some(cost) = usd(cost) {
            self.stated_cost = Some(cost);
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
pub(super) fn usd(value: &Value) -> Option<Usd> {
    let dollars = value.as_f64().filter(|dollars| (0.0..=1e6).contains(dollars))?;
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
