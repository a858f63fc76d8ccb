//! A price as ledger rows keep it: all that is needed to compute their costs again, as a line of
//! JSON in which equal prices are equal texts.

use serde::{Deserialize, Serialize};

use super::{Price, REQUEST_PICOUSD_MAX, Rates, check_price};
use crate::event::Timestamp;

/// What a price was, and where it was from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPrice {
    /// The package with its version, or the user's file.
    pub source: String,
    /// The provider, by its name there.
    pub provider: String,
    /// The model, by its name there.
    pub model: String,
    /// Since when it is in force, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The minutes of the UTC day, `[start, end)`, between which it is in force, where it is not so
    /// all day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<(i64, i64)>,
    /// Pico-dollars (10⁻¹² USD) for the call, whatever its tokens are.
    pub request_picousd: u64,
    /// Pico-dollars for a token, which are micro-dollars for a million.
    pub picousd_per_token: Rates,
    /// What a token costs where the whole prompt is longer than so many tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<StoredTier>,
}

/// What tokens cost in a longer prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTier {
    /// Longer than this.
    pub above: u64,
    /// Pico-dollars for a token.
    pub picousd_per_token: Rates,
}

impl StoredPrice {
    /// Reads what a ledger row keeps.
    ///
    /// # Errors
    /// What is wrong with it.
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

    /// The price, to compute costs with.
    pub fn price(&self) -> Price {
        let tiers = self.tiers.iter();
        Price {
            request: self.request_picousd,
            rates: self.picousd_per_token.clone(),
            tiers: tiers
                .map(|tier| (tier.above, tier.picousd_per_token.clone()))
                .collect(),
        }
    }
}
