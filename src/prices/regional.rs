//! Surcharges of addresses in certain regions.

use serde::Deserialize;

use super::pattern::{Pattern, host_matches};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Regional {
    /// Names the surcharge in ledger rows, with the part of the address that has the `*`.
    name: String,
    hosts: Vec<Box<str>>,
    /// Multiplies the prices, in thousandths.
    per_mille: u64,
    /// The models with the surcharge.
    models: Pattern,
    /// The models without it. It is unknown for all others.
    standard: Pattern,
    #[serde(rename = "source")]
    _source: String,
    #[serde(rename = "date")]
    _date: String,
}

/// Both surcharges have a name.
pub(super) enum Rate {
    Standard,
    /// In thousandths of the standard prices.
    Factor(String, u64),
    Unknown(String),
}

impl Regional {
    /// Returns the rate of a model at an address; none if this surcharge is not of the address.
    pub(super) fn rate(&self, address: &str, spellings: &[String]) -> Option<Rate> {
        let host = self.hosts.iter().find(|host| host_matches(host, address))?;
        let position = host.split('.').position(|part| part.contains('*'));
        let region = address.split(['.', '/']).nth(position.unwrap_or(0)).unwrap_or_default();
        let name = format!("{} {region}", self.name);
        let has = |models: &Pattern| spellings.iter().any(|model| models.matches(model));
        Some(match (has(&self.models), has(&self.standard)) {
            (true, _) => Rate::Factor(name, self.per_mille),
            (false, true) => Rate::Standard,
            (false, false) => Rate::Unknown(name),
        })
    }
}
