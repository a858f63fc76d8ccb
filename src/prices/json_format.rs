//! The format of `assets/prices.json`. The file names the version of its source and the date. Its
//! parts have upstream's meaning:
//!
//! - Prices are whole pico-dollars per token, equal to micro-dollars per million tokens; `request`
//!   is pico-dollars per call. `input`, `cache_read`, `cache_write` (kept for 5 minutes),
//!   `cache_write_1h` (kept for an hour), `output`, `reasoning`.
//! - A missing price falls back to the more general one: cache prices to `input`
//!   (`cache_write_1h` to `cache_write` first), `reasoning` to `output`. A missing `input` or
//!   `output` means that this side is not billed (embeddings have no `output`).
//!   A provider with `"cache_fallback": false` has unknown prices for the tokens of a cache that
//!   have no price of their own.
//! - `tiers` by length: if the *whole* prompt, cached tokens included, is longer than `above`,
//!   that tier prices *every* token of the call, including the answer. The last matching tier
//!   applies. A tier has all its prices; it inherits none from the tier below.
//! - In `prices`, the last entry in force applies, or the first one if none is. `from` is the first
//!   date (UTC) of a price; `daily` has the minutes of the UTC day, `[start, end)`, in which it
//!   applies (over midnight if the end is smaller); `days` the weekdays of UTC, from 1, Monday, to
//!   7, Sunday. A price has any of the three. An empty list: the model is known, but its price is
//!   not.
//! - `match` selects the names of the model, by default its id: `=` equals, `^` starts with, `$`
//!   ends with, `~` contains, `#` has the shape (`#` is a digit, a trailing `*` matches any rest); a
//!   list means any of them, `{"and": […]}` all of them, `{"not": …}` not. Names are compared in
//!   lower case. The first matching model applies.
//! - `hosts` are a provider's addresses without scheme; `*` (once in a part) is one or more
//!   characters other than `/`. `name_match` finds the provider by its common names, `model_match`
//!   by a model's name alone. `fallback` lists other providers whose models it also offers at their
//!   prices.
//! - A model can have its own `source` and `date`. `regional` lists surcharges of addresses: see
//!   `regional`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::pattern::{Mark, Pattern};
use super::price::{GivenRates, Price, Rates, Tier};
use super::regional::Regional;
use super::table::{Model, Provider, Table, Version};
use super::when::{Weekdays, When};
use crate::time::Timestamp;

// Unknown keys are rejected if a misspelled one would change a price.

#[derive(Deserialize)]
struct FileJson<'a> {
    source: Option<SourceJson>,
    /// Each entry is parsed separately, like its models, so that an error can name its line.
    #[serde(borrow)]
    providers: Vec<&'a RawValue>,
    #[serde(default)]
    regional: Vec<Regional>,
}

#[derive(Deserialize)]
struct SourceJson {
    package: String,
    version: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderJson<'a> {
    id: String,
    hosts: Vec<Box<str>>,
    name_match: Option<Pattern>,
    model_match: Option<Pattern>,
    #[serde(default)]
    fallback: Vec<String>,
    #[serde(default = "yes")]
    cache_fallback: bool,
    #[serde(borrow)]
    models: Vec<&'a RawValue>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct ModelId {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelJson {
    id: String,
    r#match: Option<Pattern>,
    prices: Vec<PriceJson>,
    source: Option<String>,
    date: Option<String>,
}

/// A price, or a tier of one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceJson {
    /// Set only for tiers.
    above: Option<u64>,
    /// Not set for tiers, like the next four.
    from: Option<Timestamp>,
    daily: Option<(i64, i64)>,
    days: Option<Weekdays>,
    request: Option<u64>,
    #[serde(default)]
    tiers: Vec<PriceJson>,
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

impl PriceJson {
    fn rates(&self) -> Result<Rates, String> {
        let given = GivenRates([
            self.input,
            self.cache_read,
            self.cache_write,
            self.cache_write_1h,
            self.output,
            self.reasoning,
        ]);
        let rates = given.rates().ok_or("set `input` or `output`; both are missing")?;
        rates.check()?;
        Ok(rates)
    }

    fn tier(&self) -> Result<Tier, String> {
        let is_always = self.from.is_none() && self.daily.is_none() && self.days.is_none();
        let is_tier = is_always && self.request.is_none();
        let above = self.above.filter(|_| is_tier && self.tiers.is_empty());
        let above = above.ok_or("a tier must have `above` and token prices only")?;
        Ok(Tier { above, picousd_per_token: self.rates()? })
    }

    fn version(&self, cache_fallback: bool) -> Result<Version, String> {
        if self.above.is_some() {
            return Err("`above` is allowed only in `tiers`".to_owned());
        }
        let when = When { from: self.from, daily: self.daily, days: self.days };
        when.check()?;
        let tiers = self.tiers.iter().map(Self::tier);
        let tiers = tiers.collect::<Result<_, String>>()?;
        let mut price = Price::new(self.request.unwrap_or(0), self.rates()?, tiers)?;
        price.lacks_hour_writes = self.cache_write_1h.is_none() && self.input > Some(0);
        price.lacks_cache_reads = !cache_fallback && self.cache_read.is_none();
        price.lacks_cache_writes = !cache_fallback && self.cache_write.is_none();
        Ok(Version::new(when, price))
    }
}

impl ModelJson {
    fn model(self, cache_fallback: bool) -> Result<Model, String> {
        let versions = self.prices.iter().map(|price| price.version(cache_fallback));
        let versions = versions.collect::<Result<_, String>>()?;
        let name = self.id.to_lowercase();
        let is_known_by_name = self.r#match.is_none() && name == self.id;
        let source = self.source.map(|source| match &self.date {
            Some(date) => format!("{source}, {date}"),
            None => source,
        });
        Ok(Model {
            source: source.map(String::into_boxed_str),
            names: self.r#match.unwrap_or_else(|| Pattern::new(Mark::Equals, &name)),
            id: (!is_known_by_name).then(|| self.id.into()),
            versions,
        })
    }
}

/// Parses a table.
///
/// # Errors
/// Returns the first fault, with its line and its model, if any.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    let file: FileJson =
        serde_json::from_str(text).map_err(|error| fault_in(text, text, &error))?;
    let mut parsed: Vec<(&str, ProviderJson)> = Vec::with_capacity(file.providers.len());
    for raw in file.providers {
        let part = raw.get();
        let mut provider: ProviderJson =
            serde_json::from_str(part).map_err(|error| fault_in(text, part, &error))?;
        // Names and addresses are compared in lower case.
        provider.id = provider.id.to_lowercase();
        for host in &mut provider.hosts {
            *host = host.to_lowercase().into();
        }
        parsed.push((part, provider));
    }
    let position = |id: &str| parsed.iter().position(|(_, known)| known.id == id);
    let mut fallbacks = Vec::with_capacity(parsed.len());
    for (index, (part, ProviderJson { id, fallback, .. })) in parsed.iter().enumerate() {
        if position(id) != Some(index) {
            let line = line_of(text, part);
            return Err(format!("line {line}: duplicate provider `{id}`"));
        }
        let positions = fallback.iter().map(|other| {
            position(&other.to_lowercase()).ok_or_else(|| {
                let line = line_of(text, part);
                format!("line {line}: provider `{id}` falls back to unknown provider `{other}`")
            })
        });
        fallbacks.push(positions.collect::<Result<Vec<usize>, String>>()?);
    }
    let providers = parsed.into_iter().zip(fallbacks);
    let providers = providers.map(|((_, json), fallback)| {
        let models = json.models.iter().enumerate();
        let models = models.map(|(index, raw)| read_model(text, &json, index, raw));
        Ok(Provider {
            models: models.collect::<Result<_, String>>()?,
            id: json.id.into(),
            hosts: json.hosts,
            name_match: json.name_match,
            model_match: json.model_match,
            fallback,
        })
    });
    Ok(Table {
        providers: providers.collect::<Result<_, String>>()?,
        source: file
            .source
            .map_or_else(String::new, |source| format!("{} {}", source.package, source.version)),
        is_open_ended: true,
        regional: file.regional,
    })
}

fn read_model(
    whole: &str,
    provider: &ProviderJson,
    index: usize,
    text: &RawValue,
) -> Result<Model, String> {
    let text = text.get();
    let json = serde_json::from_str::<ModelJson>(text);
    let json = json.map_err(|error| fault_in(whole, text, &error));
    let model = json.and_then(|json| {
        let model = json.model(provider.cache_fallback);
        model.map_err(|error| format!("line {}: {error}", line_of(whole, text)))
    });
    model.map_err(|error| {
        let model = match serde_json::from_str::<ModelId>(text) {
            Ok(model) => format!("`{}`", model.id),
            Err(_) => format!("number {}", index + 1),
        };
        let (line, message) = error.split_once(": ").unwrap_or(("", &error));
        format!("{line}: provider `{}`, model {model}: {message}", provider.id)
    })
}

/// Returns the line number in `text`, from 1, at which this part of it begins.
fn line_of(text: &str, part: &str) -> usize {
    let at = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let before = text.as_bytes().iter().take(at);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// Describes a fault in a part of a text, with the line number in the whole text.
fn fault_in(text: &str, part: &str, error: &serde_json::Error) -> String {
    let line = line_of(text, part) + error.line().saturating_sub(1);
    let message = error.to_string();
    // The error's own position is relative to the part.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    format!("line {line}: {message}")
}
