//! Prices of models: dated prices by provider and model, and the exact cost of a call.
//!
//! The built-in table is `assets/prices.json`, which `make prices` generates from the Python
//! package `genai-prices` (<https://github.com/pydantic/genai-prices>, MIT); `json_format`
//! describes its format. `assets/prices-extra.json` has the same format; it adds and corrects
//! prices, each with its source and date. The user's own prices come from a separate file and
//! override the built-in ones: see `user_prices`. Each ledger row keeps its price: see `stored`.
//!
//! Only standard prices are known: batch and priority processing, tools such as web search, and
//! audio or images in the prompt have other prices. Models that always bill more than text tokens
//! are listed without a price.

mod json_format;
mod model_name;
mod pattern;
mod price;
mod regional;
mod stored;
mod surcharge;
mod table;
#[cfg(test)]
mod tests;
mod toml_format;
mod user_prices;
mod when;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

pub use self::model_name::selects;
pub use self::price::{Price, Rates};
use self::regional::Rate;
pub use self::stored::StoredPrice;
pub use self::surcharge::Surcharge;
pub use self::table::Quote;
use self::table::Table;
use self::user_prices::UserPrices;
pub use self::when::Weekdays;
use crate::error::Result;
use crate::money::Usd;
use crate::time::Timestamp;

/// The maximum cost of a call. A higher one (10,000 dollars) is an error of the provider or in a
/// price, and counts as unknown. The sum of 900,000 such calls still fits an `i64`.
pub const COST_MAX: Usd = Usd::from_nanousd(10_000_000_000_000);

/// Parsed on first use, so that a server without calls never pays for it.
static BUILT_IN: LazyLock<Table> = LazyLock::new(|| {
    let read = |text: &str| {
        json_format::parse(text).unwrap_or_else(|error| {
            // A test parses the same texts, so this cannot happen in a tested build.
            log::error!("cannot read the built-in prices; costs stay unknown: {error}");
            Table::default()
        })
    };
    let mut table = read(include_str!("../assets/prices.json"));
    table.overlay(read(include_str!("../assets/prices-extra.json")));
    table
});

/// The built-in table, and the user's own, which overrides it.
pub struct Prices {
    user: Option<UserPrices>,
    #[cfg(test)]
    replaced: Option<Table>,
}

/// Omits the table, which is too long for a log.
impl fmt::Debug for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prices")
    }
}

impl Prices {
    pub fn built_in() -> Self {
        Self {
            user: None,
            #[cfg(test)]
            replaced: None,
        }
    }

    /// Adds the user's own prices from a file, which override the built-in ones. The file is read
    /// again when it changes.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] names the file and line of a fault.
    pub fn with_own(mut self, path: &Path) -> Result<Self> {
        self.user = Some(UserPrices::read(path)?);
        Ok(self)
    }

    /// Returns the price of the first of these models that has one at the provider at that time.
    /// The user's own price of any of them overrides a built-in one: a price for `gpt-4o` also
    /// applies if the provider reports that `gpt-4o-2024-08-06` answered.
    ///
    /// `provider` is the name in the configuration, or `echo` for that kind of provider. `base_url`
    /// is the provider's address, with or without scheme and path; the path distinguishes some
    /// providers of one host. A known address decides, because it identifies the sender of the
    /// bill. At an unknown one (a proxy, a local server) the name counts if it is exactly the name
    /// of a priced provider (`openai`, `gemini`, …): a server named `mistral-local` must not be
    /// priced as Mistral. Without an address the name is matched as loosely as upstream does. A
    /// provider named `litellm` with its own address is priced by the provider before the slash in
    /// the model's name, or by the model alone.
    pub fn find_any(
        &self,
        provider: &str,
        base_url: Option<&str>,
        models: &[&str],
        at: Timestamp,
    ) -> Option<Quote> {
        let name = provider.trim().to_lowercase();
        if base_url.is_none() && name == "echo" {
            return Some(Quote::free());
        }
        let models: Vec<String> = models.iter().map(|model| model.to_lowercase()).collect();
        let own = self.user.as_ref().and_then(|user| {
            let table = user.table();
            let find = |model: &String| table.find_own(&name, base_url, model, at);
            models.iter().find_map(find)
        });
        own.unwrap_or_else(|| {
            let find = |model: &String| {
                let quote = self.table().find(&name, base_url, model, at)?;
                match base_url.and_then(|url| self.table().regional_rate(url, model)) {
                    Some(Rate::Factor(name, per_mille)) => {
                        quote.with_surcharges(&[Surcharge::factor(&name, per_mille)])
                    }
                    Some(Rate::Unknown(_)) => None,
                    Some(Rate::Standard) | None => Some(quote),
                }
            };
            models.iter().find_map(find)
        })
    }

    /// Returns the name of a surcharge of this address that may apply to the models, if its rate is
    /// not known for them. Their cost is then unknown, although they have a price.
    pub fn unknown_surcharge(&self, base_url: &str, models: &[&str]) -> Option<String> {
        let rate = |model: &&str| self.table().regional_rate(base_url, &model.to_lowercase());
        models.iter().find_map(|model| match rate(model)? {
            Rate::Unknown(name) => Some(name),
            Rate::Standard | Rate::Factor(..) => None,
        })
    }

    /// Returns the names of the models that the built-in table lists for the provider, except those
    /// matched only by a pattern.
    pub fn models(&self, provider: &str, base_url: &str) -> Vec<&str> {
        self.table().models(&provider.to_lowercase(), base_url)
    }

    /// Returns the prompt lengths, in tokens, above which any price changes, in ascending order.
    pub fn tier_bounds(&self) -> Vec<u64> {
        let user = self.user.as_ref().map(UserPrices::table);
        let tables = std::iter::once(self.table()).chain(user.as_deref());
        let bounds: BTreeSet<u64> = tables.flat_map(Table::tier_bounds).collect();
        bounds.into_iter().collect()
    }

    fn table(&self) -> &Table {
        #[cfg(test)]
        if let Some(table) = &self.replaced {
            return table;
        }
        &BUILT_IN
    }
}

#[cfg(test)]
impl Prices {
    fn from_json(text: &str) -> Result<Self, String> {
        Ok(Self { user: None, replaced: Some(json_format::parse(text)?) })
    }

    fn find(
        &self,
        provider: &str,
        base_url: Option<&str>,
        model: &str,
        at: Timestamp,
    ) -> Option<Quote> {
        self.find_any(provider, base_url, &[model], at)
    }
}
