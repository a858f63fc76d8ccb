//! A table of prices, and its lookup.

use std::sync::{Arc, LazyLock, OnceLock};

use super::model_name::{bare_spellings, without_publisher, without_variants};
use super::pattern::{Pattern, address, host_matches, with_dashed_dates};
use super::price::{Price, Rates};
use super::regional::{Rate, Regional};
use super::stored::StoredPrice;
use super::when::When;
use crate::event::Usage;
use crate::money::Usd;
use crate::time::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    pub(super) price: Arc<Price>,
    pub(super) text: Option<Arc<str>>,
}

impl Quote {
    /// Returns the price of `echo`, which makes no call. It is a rule and not a row of the table,
    /// because the table has the prices of others and may be replaced. It is not stored.
    pub(super) fn free() -> Self {
        static FREE: LazyLock<Arc<Price>> = LazyLock::new(Arc::default);
        Self { price: Arc::clone(&FREE), text: None }
    }

    /// Returns whether every call is free.
    pub fn is_free(&self) -> bool {
        let rates = self.price.rates.named();
        self.price.request == 0
            && self.price.tiers.is_empty()
            && rates.iter().all(|(_, rate)| *rate == 0)
    }

    /// See [`Price::cost`].
    pub fn cost(&self, usage: &Usage) -> Usd {
        self.price.cost(usage)
    }

    /// Returns the cost of `calls` calls with `sums` tokens in total, if all prompts are priced
    /// like one of `prompt_tokens`. Except for rounding, it is the sum of their costs.
    pub fn cost_of_all(&self, calls: u64, prompt_tokens: u64, sums: &Usage) -> Usd {
        self.price.cost_of_all(calls, prompt_tokens, sums)
    }

    /// Returns the token prices for a prompt of this length.
    pub fn rates(&self, prompt_tokens: u64) -> &Rates {
        self.price.rates_for(prompt_tokens)
    }

    /// Returns whether both are the same price of the same model, under any names.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.price, &other.price) || (self.text.is_some() && self == other)
    }

    /// Returns the price in the form of ledger rows, a [`StoredPrice`]; none for `echo`.
    pub fn text(&self) -> Option<&Arc<str>> {
        self.text.as_ref()
    }
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) source: String,
    pub(super) providers: Vec<Provider>,
    /// True if the first price also applies before its start.
    pub(super) is_open_ended: bool,
    pub(super) regional: Vec<Regional>,
}

pub(super) struct Provider {
    pub(super) id: Box<str>,
    pub(super) hosts: Vec<Box<str>>,
    pub(super) name_match: Option<Pattern>,
    pub(super) model_match: Option<Pattern>,
    /// Indices of the providers in the table whose models it also offers.
    pub(super) fallback: Vec<usize>,
    pub(super) models: Vec<Model>,
}

pub(super) struct Model {
    /// None if it equals the text of `names`.
    pub(super) id: Option<Box<str>>,
    /// None if it is the table's.
    pub(super) source: Option<Box<str>>,
    pub(super) names: Pattern,
    pub(super) versions: Box<[Version]>,
}

pub(super) struct Version {
    when: When,
    pub(super) price: Arc<Price>,
    /// The form of ledger rows, created on first use.
    text: OnceLock<Arc<str>>,
}

impl Table {
    pub(super) fn is_empty(&self) -> bool {
        let mut providers = self.providers.iter();
        providers.all(|provider| provider.models.is_empty())
    }

    /// See [`Prices::find_any`](super::Prices::find_any). Both names must be in lower case.
    pub(super) fn find(
        &self,
        name: &str,
        base_url: Option<&str>,
        model: &str,
        at: Timestamp,
    ) -> Option<Quote> {
        let by_url = base_url.and_then(|url| self.by_url(url));
        let (provider, model) = match by_url {
            Some(provider) => (provider, model),
            None if name == "litellm" => self.by_routed_model(model)?,
            None if base_url.is_some() => (self.by_exact_name(name)?, model),
            None => (self.by_name(name)?, model),
        };
        let (provider, model) = self.find_model(provider, model)?;
        self.quote(provider, model, at)
    }

    /// Returns the surcharge of an address, if any.
    pub(super) fn regional_rate(&self, base_url: &str, model: &str) -> Option<Rate> {
        let address = address(base_url);
        let mut regional = self.regional.iter();
        regional.find_map(|it| it.rate(&address, &bare_spellings(model)))
    }

    /// Adds the prices of another table, which take precedence.
    pub(super) fn overlay(&mut self, other: Self) {
        for mut added in other.providers {
            let known = self.providers.iter_mut().find(|provider| provider.id == added.id);
            let Some(known) = known else {
                // Indices of another table.
                added.fallback.clear();
                self.providers.push(added);
                continue;
            };
            known.hosts.append(&mut added.hosts);
            known.models.splice(..0, added.models);
        }
        self.regional.extend(other.regional);
    }

    /// Like `find`, in the user's own table, where the provider's name in the configuration takes
    /// precedence over its address. The inner option is none for a model that the table lists
    /// without a price.
    pub(super) fn find_own(
        &self,
        name: &str,
        base_url: Option<&str>,
        model: &str,
        at: Timestamp,
    ) -> Option<Option<Quote>> {
        let by_name = self.by_exact_name(name);
        let provider = by_name.or_else(|| self.by_url(base_url?))?;
        let (provider, model) = self.find_model(provider, model)?;
        let quote = self.quote(provider, model, at);
        (quote.is_some() || model.versions.is_empty()).then_some(quote)
    }

    /// See [`Prices::models`](super::Prices::models).
    pub(super) fn models(&self, name: &str, base_url: &str) -> Vec<&str> {
        let provider = self.by_url(base_url).or_else(|| self.by_exact_name(name));
        let mut names = Vec::new();
        for model in provider.iter().flat_map(|provider| &provider.models) {
            model.names.exact_into(&mut names);
        }
        names
    }

    pub(super) fn tier_bounds(&self) -> impl Iterator<Item = u64> {
        let models = self.providers.iter().flat_map(|it| &it.models);
        let versions = models.flat_map(|model| &model.versions);
        let tiers = versions.flat_map(|version| &version.price.tiers);
        tiers.map(|tier| tier.above)
    }

    fn by_url(&self, url: &str) -> Option<&Provider> {
        let address = address(url);
        self.providers.iter().find(|provider| {
            let mut hosts = provider.hosts.iter();
            hosts.any(|host| host_matches(host, &address))
        })
    }

    fn by_id_or(&self, id: &str, matches: impl Fn(&Provider) -> bool) -> Option<&Provider> {
        let by_id = self.providers.iter().find(|provider| *provider.id == *id);
        by_id.or_else(|| self.providers.iter().find(|provider| matches(provider)))
    }

    fn by_name(&self, name: &str) -> Option<&Provider> {
        let matches = |pattern: &Pattern| pattern.matches(name);
        self.by_id_or(name, |provider| provider.name_match.as_ref().is_some_and(matches))
    }

    fn by_exact_name(&self, name: &str) -> Option<&Provider> {
        let names = |pattern: &Pattern| pattern.names(name);
        self.by_id_or(name, |provider| provider.name_match.as_ref().is_some_and(names))
    }

    /// Returns the provider and the model that a router's model name refers to.
    fn by_routed_model<'m>(&self, model: &'m str) -> Option<(&Provider, &'m str)> {
        if let Some((name, rest)) = model.split_once('/')
            && let Some(provider) = self.by_name(name)
        {
            return Some((provider, rest));
        }
        let matches = |pattern: &Pattern| pattern.matches(model);
        let mut providers = self.providers.iter();
        let provider = providers.find(|it| it.model_match.as_ref().is_some_and(matches))?;
        Some((provider, model))
    }

    /// Returns the model, and the provider that lists it.
    fn find_model<'a>(
        &'a self,
        provider: &'a Provider,
        model: &str,
    ) -> Option<(&'a Provider, &'a Model)> {
        let find = |name: &str| {
            let others = provider.fallback.iter();
            let others = others.filter_map(|position| self.providers.get(*position));
            std::iter::once(provider).chain(others).find_map(|it| {
                let mut models = it.models.iter();
                Some((it, models.find(|model| model.names.matches(name))?))
            })
        };
        let find = |name: &str| find(name).or_else(|| find(&with_dashed_dates(name)?));
        // In the user's table, providers have any name.
        let is_users = !self.is_open_ended;
        let other = match &*provider.id {
            "google" => without_publisher(model),
            "openrouter" => without_variants(model),
            _ if is_users => without_publisher(without_variants(model)),
            _ => model,
        };
        find(model).or_else(|| Some(other).filter(|other| *other != model).and_then(find))
    }

    pub(super) fn quote(&self, provider: &Provider, model: &Model, at: Timestamp) -> Option<Quote> {
        let version = model.version(at, self.is_open_ended)?;
        let text = version.text.get_or_init(|| {
            let text = serde_json::to_string(&self.stored(provider, model, version));
            // Only numbers and texts, so serialization cannot fail; an empty text means none.
            text.unwrap_or_default().into()
        });
        Some(Quote {
            price: Arc::clone(&version.price),
            text: Some(Arc::clone(text)).filter(|text| !text.is_empty()),
        })
    }

    fn stored(&self, provider: &Provider, model: &Model, version: &Version) -> StoredPrice {
        let When { from, daily, days } = version.when;
        StoredPrice {
            source: model.source.as_deref().unwrap_or(&self.source).to_owned(),
            provider: provider.id.to_string(),
            model: model.id.as_deref().unwrap_or(model.names.text()).to_owned(),
            from,
            daily,
            days,
            request_picousd: version.price.request,
            picousd_per_token: version.price.rates.clone(),
            tiers: version.price.tiers.clone(),
            surcharges: Vec::new(),
        }
    }
}

impl Model {
    fn version(&self, at: Timestamp, is_open_ended: bool) -> Option<&Version> {
        let mut newest_first = self.versions.iter().rev();
        newest_first
            .find(|version| version.when.covers(at))
            .or(self.versions.first().filter(|_| is_open_ended))
    }
}

impl Version {
    pub(super) fn new(when: When, price: Price) -> Self {
        Self { when, price: Arc::new(price), text: OnceLock::new() }
    }
}
