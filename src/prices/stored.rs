//! The form of a price in ledger rows: one line of JSON, enough to compute the row's cost again.
//! Equal prices have equal texts.

use serde::{Deserialize, Serialize};

use super::price::{Price, REQUEST_PICOUSD_MAX, Rates, Tier, check_price};
use super::when::Weekdays;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPrice {
    /// The package with its version, the page with its date, or the user's file.
    pub source: String,
    /// The name in the source, like `model`.
    pub provider: String,
    pub model: String,
    /// The start of the price, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The minutes of the UTC day, `[start, end)`, in which the price applies, if not all day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<(i64, i64)>,
    /// The days of the week on which it applies, if not on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<Weekdays>,
    /// Pico-dollars (10⁻¹² USD) per call, in addition to its tokens.
    pub request_picousd: u64,
    /// Pico-dollars per token, equal to micro-dollars per million.
    pub picousd_per_token: Rates,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// The surcharges and fees that are part of these prices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub surcharges: Vec<String>,
}

impl StoredPrice {
    /// Parses the price of a ledger row.
    ///
    /// # Errors
    /// Returns the first fault of an invalid text.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let stored: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let request = stored.request_picousd;
        check_price("request_picousd", request, REQUEST_PICOUSD_MAX)?;
        let tiers = stored.tiers.iter().map(|tier| &tier.picousd_per_token);
        for rates in std::iter::once(&stored.picousd_per_token).chain(tiers) {
            rates.check()?;
        }
        Ok(stored)
    }

    pub fn price(&self) -> Price {
        Price {
            request: self.request_picousd,
            rates: self.picousd_per_token.clone(),
            tiers: self.tiers.clone(),
            ..Price::default()
        }
    }
}
