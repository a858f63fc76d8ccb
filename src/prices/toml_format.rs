//! The TOML format of the user's own prices, with one entry for each price:
//!
//! ```toml
//! [[price]]
//! provider = "openai"          # the name in the configuration
//! model = "gpt-4o*"            # a trailing `*` matches any rest; the longest entry wins
//! input_per_mtok = "2.50"      # US dollars per million tokens, in quotes to stay exact
//! output_per_mtok = "10"
//! # Optional: cache_read_per_mtok, cache_write_per_mtok, cache_write_1h_per_mtok,
//! # reasoning_per_mtok, per_request (US dollars per call), and:
//! from = "2026-01-01"          # the first date (UTC); before it, an earlier entry or the
//!                              # built-in price applies
//! tiers = [{ above = 200000, input_per_mtok = "5", output_per_mtok = "15" }]
//! ```
//!
//! Fallbacks and tiers are as in the built-in table.

use std::cmp::Reverse;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use toml::Spanned;

use super::pattern::{Mark, Pattern};
use super::price::{GivenRates, Price, REQUEST_PICOUSD_MAX, Rates, TOKEN_PICOUSD_MAX, Tier};
use super::table::{Model, Provider, Table, Version};
use super::when::When;
use crate::time::Timestamp;

/// Digits after the point of dollars per million tokens, down to one pico-dollar per token.
const PER_MTOK_DIGITS: usize = 6;
/// Digits after the point of dollars per call, down to one pico-dollar.
const PER_REQUEST_DIGITS: usize = 12;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToml {
    #[serde(default)]
    price: Vec<Spanned<PriceToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceToml {
    provider: String,
    model: String,
    from: Option<Date>,
    per_request: Option<PerRequest>,
    input_per_mtok: Option<PerMtok>,
    cache_read_per_mtok: Option<PerMtok>,
    cache_write_per_mtok: Option<PerMtok>,
    cache_write_1h_per_mtok: Option<PerMtok>,
    output_per_mtok: Option<PerMtok>,
    reasoning_per_mtok: Option<PerMtok>,
    #[serde(default)]
    tiers: Vec<TierToml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TierToml {
    above: u64,
    input_per_mtok: Option<PerMtok>,
    cache_read_per_mtok: Option<PerMtok>,
    cache_write_per_mtok: Option<PerMtok>,
    cache_write_1h_per_mtok: Option<PerMtok>,
    output_per_mtok: Option<PerMtok>,
    reasoning_per_mtok: Option<PerMtok>,
}

/// The rates of a price or a tier.
macro_rules! given_rates {
    ($entry:expr) => {{
        let rates = [
            &$entry.input_per_mtok,
            &$entry.cache_read_per_mtok,
            &$entry.cache_write_per_mtok,
            &$entry.cache_write_1h_per_mtok,
            &$entry.output_per_mtok,
            &$entry.reasoning_per_mtok,
        ];
        GivenRates(rates.map(|rate| rate.as_ref().map(|amount| amount.0)))
    }};
}

type PerMtok = Amount<PER_MTOK_DIGITS, TOKEN_PICOUSD_MAX>;
type PerRequest = Amount<PER_REQUEST_DIGITS, REQUEST_PICOUSD_MAX>;

/// An amount of dollars, at most `MAX` units of the last of `DIGITS` digits after the point.
struct Amount<const DIGITS: usize, const MAX: u64>(u64);

impl<'de, const DIGITS: usize, const MAX: u64> Deserialize<'de> for Amount<DIGITS, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

struct AmountVisitor<const DIGITS: usize, const MAX: u64>;

impl<const DIGITS: usize, const MAX: u64> Visitor<'_> for AmountVisitor<DIGITS, MAX> {
    type Value = Amount<DIGITS, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("US dollars as a decimal in quotes, such as \"0.15\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        decimal(text, DIGITS, MAX).map(Amount).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Self::Value, E> {
        self.visit_str(&whole.to_string())
    }
}

/// Parses a decimal exactly, in units of the last of `digits` digits after the point.
///
/// # Errors
/// Fails for text that is not a decimal, and for a value above `max`.
fn decimal(text: &str, digits: usize, max: u64) -> Result<u64, String> {
    let invalid = || format!("`{text}` is not an amount of US dollars, such as \"0.15\"");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || text.ends_with('.') {
        return Err(invalid());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > digits {
        return Err(format!("`{text}` has more than {digits} digits after the decimal point"));
    }
    let all = format!("{whole}{fraction:0<digits$}");
    let amount = all.parse().ok().filter(|amount| *amount <= max);
    let unit = (0..digits).fold(1, |unit, _| unit * 10);
    amount.ok_or_else(|| {
        let most = max / unit;
        format!("`{text}` is too large; the limit is {most} US dollars")
    })
}

/// A date or time, in quotes or as a TOML value.
struct Date(Timestamp);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// An entry after validation.
struct Entry {
    line: usize,
    provider: String,
    /// True if `name` is a prefix of the selected names.
    is_prefix: bool,
    name: String,
    from: Option<Timestamp>,
    price: Price,
}

impl Entry {
    fn new(line: usize, toml: &PriceToml) -> Result<Self, String> {
        let provider = toml.provider.trim().to_lowercase();
        if provider.is_empty() {
            return Err("provider: must be the name of a provider in the configuration".to_owned());
        }
        let model = toml.model.trim().to_lowercase();
        let prefix = model.strip_suffix('*');
        let name = prefix.unwrap_or(&model);
        if name.contains('*') || model.is_empty() {
            let model = &toml.model;
            return Err(format!(
                "model `{model}`: must be a name; a `*` is allowed only at its end"
            ));
        }
        Ok(Self {
            line,
            provider,
            is_prefix: prefix.is_some(),
            name: name.to_owned(),
            from: toml.from.as_ref().map(|from| from.0),
            price: price(toml)?,
        })
    }

    /// Orders exact names before prefixes, and longer prefixes before shorter ones.
    fn key(&self) -> (&str, bool, Reverse<usize>, &str) {
        let length = Reverse(self.name.len());
        (&self.provider, self.is_prefix, length, &self.name)
    }
}

fn price(toml: &PriceToml) -> Result<Price, String> {
    let missing = "set `input_per_mtok` or `output_per_mtok`; both are missing";
    let given = given_rates!(toml);
    let rates = match given.rates() {
        // Only a price per call.
        None if toml.per_request.is_some() && given.is_empty() => Rates::default(),
        rates => rates.ok_or(missing)?,
    };
    let tiers = toml.tiers.iter().map(|tier| {
        let rates = given_rates!(tier).rates();
        let rates = rates.ok_or_else(|| format!("the tier above {}: {missing}", tier.above))?;
        Ok(Tier { above: tier.above, picousd_per_token: rates })
    });
    let request = toml.per_request.as_ref().map_or(0, |amount| amount.0);
    Price::new(request, rates, tiers.collect::<Result<_, String>>()?)
}

/// Parses a table.
///
/// # Errors
/// Returns the first fault, with its line.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let file: FileToml = toml::from_str(text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        format!("line {}: {}", line(start), error.message())
    })?;
    let entries = file.price.iter().map(|spanned| {
        let line = line(spanned.span().start);
        let entry = Entry::new(line, spanned.get_ref());
        entry.map_err(|error| format!("line {line}: {error}"))
    });
    let mut entries = entries.collect::<Result<Vec<Entry>, String>>()?;
    // The oldest price of a model comes first.
    entries.sort_by(|one, other| (one.key(), one.from).cmp(&(other.key(), other.from)));
    let mut providers: Vec<Provider> = Vec::new();
    for versions in entries.chunk_by(|one, other| one.key() == other.key()) {
        let model = model(versions)?;
        let id = versions.first().map_or("", |entry| &entry.provider);
        match providers.last_mut() {
            Some(last) if *last.id == *id => last.models.push(model),
            _ => providers.push(Provider {
                id: id.into(),
                hosts: Vec::new(),
                name_match: None,
                model_match: None,
                fallback: Vec::new(),
                models: vec![model],
            }),
        }
    }
    Ok(Table { providers, ..Table::default() })
}

/// Builds the model from entries that differ in their dates.
fn model(entries: &[Entry]) -> Result<Model, String> {
    let mut pairs = entries.windows(2);
    if let Some([one, other]) = pairs.find(|pair| pair[0].from == pair[1].from) {
        let (first, second) = (one.line.min(other.line), one.line.max(other.line));
        return Err(format!(
            "line {second}: duplicate price; line {first} has the same provider, model and `from`"
        ));
    }
    let versions =
        entries.iter().map(|entry| Version::new(When::starting(entry.from), entry.price.clone()));
    let (name, is_prefix) = entries.first().map_or(("", false), |it| (&it.name, it.is_prefix));
    Ok(Model {
        id: is_prefix.then(|| format!("{name}*").into()),
        source: None,
        names: match is_prefix {
            true => Pattern::new(Mark::StartsWith, name),
            false => Pattern::new(Mark::Equals, name),
        },
        versions: versions.collect(),
    })
}
