//! What models cost: dated prices by provider and model, and the exact cost of a call.
//!
//! The built-in table is `assets/prices.json`, which `make prices` makes from the Python package
//! `genai-prices` (<https://github.com/pydantic/genai-prices>, MIT); the file names the version and
//! the date. Its format, with upstream's meaning of each part:
//!
//! - Prices are whole pico-dollars per token, which are micro-dollars per million tokens; `request`
//!   is pico-dollars per call. `input`, `cache_read`, `cache_write` (kept for 5 minutes),
//!   `cache_write_1h` (kept for an hour), `output`, `reasoning`.
//! - A missing price falls back to the more general one: cache prices to `input`
//!   (`cache_write_1h` to `cache_write` first), `reasoning` to `output`. A missing `input` or
//!   `output` means that this side is not billed (embeddings have no `output`).
//! - `tiers` by length: where the *whole* prompt, cached tokens included, is longer than `above`,
//!   that tier prices *every* token of the call, those of the answer too. The last such tier counts.
//!   A tier gives all its prices; nothing is taken over from the tier below.
//! - Of the entries in `prices`, the last one in force counts, and the first where none is: `from`
//!   is the date (UTC) on which a price begins, `daily` the minutes of the UTC day, `[start, end)`,
//!   between which it counts (it goes over midnight where the end is smaller). An empty list: the
//!   model is known, its price is not.
//! - `match` says which names mean the model, by default its id: `=` equals, `^` starts with, `$`
//!   ends with, `~` contains, `#` has the shape (`#` is a digit, `*` at the end is anything); a list
//!   is "any of", `{"and": […]}` all of, `{"not": …}` not. Names are compared in lower case. The
//!   first model that fits counts.
//! - `hosts` are a provider's addresses without scheme, where `*` (once in a part) is one or more
//!   characters other than `/`. `name_match` finds it by the name that people give it,
//!   `model_match` by a model's name alone. `fallback` lists the providers whose models it also
//!   offers at their prices.
//!
//! The user's own prices come from a file of their own, before the built-in ones: see `own`. Which
//! price a call was given is kept with its ledger row: see `stored`.
//!
//! Only the standard price is known: batch and priority processing, tools such as web search, and
//! audio or images in the prompt cost otherwise. Models that always bill something beside tokens of
//! text are listed without a price.

mod own;
mod stored;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use self::own::OwnPrices;
pub use self::stored::{StoredPrice, StoredTier};
use crate::error::Result;
use crate::event::{Timestamp, Usage, Usd};

/// Pico-dollars in a nano-dollar.
const PICO_PER_NANO: u128 = 1_000;

/// A price of a token above this (100,000 dollars per million) is a mistake: the dearest model takes
/// 600. The bounds also keep the sum of seven products of any `u64` counts below 2¹²⁸.
const TOKEN_PICOUSD_MAX: u64 = 100_000_000_000;

/// A price of a call above this (1,000 dollars) is a mistake.
const REQUEST_PICOUSD_MAX: u64 = 1_000_000_000_000_000;

/// What a call may cost at most: more (10,000 dollars) is a mistake of the provider or in a price, and
/// taken as not known. It takes more than 900,000 such calls until a sum does not fit an `i64` any more.
pub const COST_MAX: Usd = Usd::from_nanousd(10_000_000_000_000);

const MS_PER_MINUTE: i64 = 60_000;
const MINUTES_PER_DAY: i64 = 24 * 60;

/// A table of prices, and the user's own before it.
pub struct Prices {
    own: Option<OwnPrices>,
    table: Source,
}

/// The table is too long to be read in a log.
impl std::fmt::Debug for Prices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prices")
    }
}

enum Source {
    BuiltIn,
    #[cfg(test)]
    Given(Table),
}

/// Parsed when it is first asked for, so that a server that makes no call never pays for it.
static BUILT_IN: LazyLock<Table> = LazyLock::new(|| {
    Table::from_json(include_str!("../../assets/prices.json")).unwrap_or_else(|error| {
        // A test reads the same text, so this cannot happen in a build that was tested.
        log::error!("the built-in prices cannot be read, so costs stay unknown: {error}");
        Table::default()
    })
});

/// The built-in `echo` provider makes no call, so it is free by its nature: a rule here and no row
/// of the table, which holds what others charge and may be replaced. Hence nothing is stored of it.
static ECHO: LazyLock<Arc<Price>> = LazyLock::new(|| {
    Arc::new(Price {
        request: 0,
        rates: Rates::ZERO,
        tiers: Vec::new(),
    })
});

/// A price that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    price: Arc<Price>,
    text: Option<Arc<str>>,
}

impl Quote {
    /// What a call with these counts costs; see [`Price::cost`].
    pub fn cost(&self, usage: &Usage) -> Usd {
        self.price.cost(usage)
    }

    /// What so many calls cost, whose prompts are all priced as one of `prompt_tokens` is, and whose
    /// tokens are `sums` together. But for rounding, the sum of their costs.
    pub fn cost_of_all(&self, calls: u64, prompt_tokens: u64, sums: &Usage) -> Usd {
        self.price.cost_of_all(calls, prompt_tokens, sums)
    }

    /// The prices of tokens, for a prompt of that many.
    pub fn rates(&self, prompt_tokens: u64) -> &Rates {
        self.price.rates_for(prompt_tokens)
    }

    /// Whether it is the same price of the same model, whatever names that was asked for by.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.price, &other.price)
    }

    /// The price as it is kept with a ledger row, a [`StoredPrice`]; none of `echo`.
    pub fn text(&self) -> Option<&Arc<str>> {
        self.text.as_ref()
    }
}

impl Prices {
    /// The prices that come with the program.
    pub fn built_in() -> Self {
        Self {
            own: None,
            table: Source::BuiltIn,
        }
    }

    /// These, and before them the user's own in that file, which is read again when it changes.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] that names file and line.
    pub fn with_own(self, path: &Path) -> Result<Self> {
        Ok(Self {
            own: Some(OwnPrices::read(path)?),
            ..self
        })
    }

    /// A table in the format of `assets/prices.json`, as described at the top of this module.
    #[cfg(test)]
    fn from_json(text: &str) -> Result<Self, String> {
        let table = Table::from_json(text)?;
        Ok(Self {
            own: None,
            table: Source::Given(table),
        })
    }

    /// Where the built-in prices come from, with the version.
    #[cfg(test)]
    fn source(&self) -> &str {
        &self.table().source
    }

    /// What the model costs at the provider at that moment; none where that is not known.
    ///
    /// `provider` is the name in the configuration, or `echo` for that kind of provider.
    /// `base_url` is the provider's address, with or without scheme and path; the path tells some
    /// providers of one host apart. The address decides, where it is a known one, since it says who
    /// will send the bill. Where it is not known (a proxy, a local server), the name counts if it
    /// is exactly the name of a priced provider (`openai`, `gemini`, …): what happens to run at
    /// `mistral-local` must not be priced as if Mistral had served it. Without an address the name
    /// is matched as loosely as upstream does. A provider named `litellm` at an address of its own
    /// is priced by the provider before the slash in the model's name, or by the model alone.
    pub fn find(
        &self,
        provider: &str,
        base_url: Option<&str>,
        model: &str,
        at: Timestamp,
    ) -> Option<Quote> {
        self.find_any(provider, base_url, &[model], at)
    }

    /// The price of the first of the names that has one. The user's own price of any of them counts
    /// before a built-in one: who sets a price for `gpt-4o` means it also where the provider says
    /// that `gpt-4o-2024-08-06` answered.
    pub fn find_any(
        &self,
        provider: &str,
        base_url: Option<&str>,
        models: &[&str],
        at: Timestamp,
    ) -> Option<Quote> {
        let name = provider.trim().to_lowercase();
        if base_url.is_none() && name == "echo" {
            return Some(Quote {
                price: Arc::clone(&ECHO),
                text: None,
            });
        }
        let models: Vec<String> = models.iter().map(|model| model.to_lowercase()).collect();
        if let Some(own) = &self.own {
            let table = own.table();
            let mut found = models.iter();
            if let Some(own) = found.find_map(|model| table.own(&name, base_url, model, at)) {
                return own;
            }
        }
        let table = self.table();
        let mut found = models.iter();
        found.find_map(|model| table.find(&name, base_url, model, at))
    }

    /// The names of the models that are known at the provider; see [`Prices::find`]. Of those that are
    /// known by a pattern, none.
    pub fn models(&self, provider: &str, base_url: &str) -> Vec<&str> {
        let table = self.table();
        let found = table
            .by_url(base_url)
            .or_else(|| table.by_exact_name(&provider.to_lowercase()));
        let mut names = Vec::new();
        for model in found.iter().flat_map(|provider| &provider.models) {
            model.names.exact_into(&mut names);
        }
        names
    }

    /// The lengths of prompts, in tokens, beyond which any price changes, in ascending order.
    pub fn tier_bounds(&self) -> Vec<u64> {
        let own = self.own.as_ref().map(OwnPrices::table);
        let mut bounds = BTreeSet::new();
        for table in std::iter::once(self.table()).chain(own.as_deref()) {
            let models = table.providers.iter().flat_map(|it| &it.models);
            let versions = models.flat_map(|model| &model.versions);
            let tiers = versions.flat_map(|version| &version.price.tiers);
            bounds.extend(tiers.map(|(above, _)| *above));
        }
        bounds.into_iter().collect()
    }

    fn table(&self) -> &Table {
        match &self.table {
            Source::BuiltIn => &BUILT_IN,
            #[cfg(test)]
            Source::Given(table) => table,
        }
    }
}

/// What one model costs at one provider at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// Pico-dollars per call.
    request: u64,
    rates: Rates,
    /// Prices for prompts longer than so many tokens, in ascending order.
    tiers: Vec<(u64, Rates)>,
}

impl Price {
    /// What a call with these counts costs, rounded once, half to even, to nano-dollars; at most the
    /// largest amount.
    pub fn cost(&self, usage: &Usage) -> Usd {
        self.cost_of_all(1, usage.input_tokens, usage)
    }

    fn cost_of_all(&self, calls: u64, prompt_tokens: u64, sums: &Usage) -> Usd {
        let picos = self.picodollars(calls, prompt_tokens, sums);
        let (whole, rest) = (picos / PICO_PER_NANO, picos % PICO_PER_NANO);
        let half = PICO_PER_NANO / 2;
        let up = rest > half || (rest == half && whole % 2 == 1);
        Usd::from_nanousd(i64::try_from(whole + u128::from(up)).unwrap_or(i64::MAX))
    }

    /// Always fits: see TOKEN_PICOUSD_MAX.
    fn picodollars(&self, calls: u64, prompt_tokens: u64, usage: &Usage) -> u128 {
        let rates = self.rates_for(prompt_tokens);
        let read = usage.cached_input_tokens;
        let hour_writes = usage.cache_write_1h_tokens.min(usage.cache_write_tokens);
        let short_writes = usage.cache_write_tokens - hour_writes;
        // Counts that contradict each other never make a call cheaper than its parts.
        let uncached = usage
            .input_tokens
            .saturating_sub(read)
            .saturating_sub(usage.cache_write_tokens);
        let answer = usage.output_tokens.saturating_sub(usage.reasoning_tokens);
        let billed = [
            (uncached, rates.input),
            (read, rates.cache_read),
            (short_writes, rates.cache_write),
            (hour_writes, rates.cache_write_1h),
            (answer, rates.output),
            (usage.reasoning_tokens, rates.reasoning),
        ];
        let tokens = billed.map(|(count, price)| u128::from(count) * u128::from(price));
        u128::from(self.request) * u128::from(calls) + tokens.iter().sum::<u128>()
    }

    /// The prices for a prompt of that many tokens.
    fn rates_for(&self, prompt: u64) -> &Rates {
        let tier = self.tiers.iter().rev().find(|(above, _)| prompt > *above);
        tier.map_or(&self.rates, |(_, rates)| rates)
    }
}

/// Pico-dollars per token, with the fallbacks filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Of the prompt, neither read from a cache nor written to one.
    pub input: u64,
    /// Read from a cache.
    pub cache_read: u64,
    /// Written to a cache, for five minutes.
    pub cache_write: u64,
    /// Written to a cache, for an hour.
    pub cache_write_1h: u64,
    /// Of the answer.
    pub output: u64,
    /// Of the answer, where it is reasoning.
    pub reasoning: u64,
}

impl Rates {
    /// Nothing costs anything.
    pub const ZERO: Self = Self {
        input: 0,
        cache_read: 0,
        cache_write: 0,
        cache_write_1h: 0,
        output: 0,
        reasoning: 0,
    };

    /// Each with its name.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("input", self.input),
            ("cache_read", self.cache_read),
            ("cache_write", self.cache_write),
            ("cache_write_1h", self.cache_write_1h),
            ("output", self.output),
            ("reasoning", self.reasoning),
        ]
    }

    fn check(&self) -> Result<(), String> {
        let named = self.named();
        named
            .into_iter()
            .try_for_each(|(name, price)| check_price(name, price, TOKEN_PICOUSD_MAX))
    }
}

#[derive(Default)]
struct Table {
    /// As stored with each price.
    source: String,
    providers: Vec<Provider>,
    /// Whether a price counts also before the first that is in force.
    is_open_ended: bool,
}

struct Provider {
    id: Box<str>,
    hosts: Vec<Box<str>>,
    name_match: Option<Clause>,
    model_match: Option<Clause>,
    /// Places in the table.
    fallback: Vec<usize>,
    models: Vec<Model>,
}

struct Model {
    /// Its id, where the names are not that alone.
    id: Option<Box<str>>,
    names: Clause,
    versions: Box<[Version]>,
}

struct Version {
    when: When,
    price: Arc<Price>,
    /// As ledger rows keep it; made when it is first asked for.
    text: OnceLock<Arc<str>>,
}

/// When a price is in force.
enum When {
    Always,
    From(Timestamp),
    /// Minutes of the UTC day.
    Daily {
        start: i64,
        end: i64,
    },
}

/// Which texts are meant; all in lower case.
enum Clause {
    Equals(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Contains(Box<str>),
    /// `#` is a digit, `*` at the end is anything.
    Shape(Box<str>),
    Any(Box<[Clause]>),
    All(Box<[Clause]>),
    Not(Box<Clause>),
}

impl Clause {
    /// The names that it means exactly.
    fn exact_into<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Self::Equals(name) => names.push(name),
            Self::Any(clauses) => {
                for clause in clauses {
                    clause.exact_into(names);
                }
            }
            _ => {}
        }
    }
}

impl Table {
    /// Whether it says nothing of any model.
    fn is_empty(&self) -> bool {
        self.providers
            .iter()
            .all(|provider| provider.models.is_empty())
    }

    fn by_url(&self, url: &str) -> Option<&Provider> {
        let address = address(url);
        self.providers.iter().find(|provider| {
            let mut hosts = provider.hosts.iter();
            hosts.any(|host| host_matches(host, &address))
        })
    }

    fn by_id(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| &*provider.id == id)
    }

    fn by_name(&self, name: &str) -> Option<&Provider> {
        self.by_id(name).or_else(|| {
            self.providers.iter().find(|provider| {
                let clause = provider.name_match.as_ref();
                clause.is_some_and(|clause| clause.matches(name))
            })
        })
    }

    fn by_exact_name(&self, name: &str) -> Option<&Provider> {
        self.by_id(name).or_else(|| {
            self.providers.iter().find(|provider| {
                let clause = provider.name_match.as_ref();
                clause.is_some_and(|clause| clause.names(name))
            })
        })
    }

    /// The provider and the model that a router's name for a model means.
    fn by_routed_model<'m>(&self, model: &'m str) -> Option<(&Provider, &'m str)> {
        if let Some((name, rest)) = model.split_once('/')
            && let Some(provider) = self.by_name(name)
        {
            return Some((provider, rest));
        }
        let provider = self.providers.iter().find(|provider| {
            let clause = provider.model_match.as_ref();
            clause.is_some_and(|clause| clause.matches(model))
        })?;
        Some((provider, model))
    }

    /// What a model costs; see [`Prices::find`]. Both names in lower case.
    fn find(
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

    /// The same of the user's own table, where a provider's name in the configuration decides before
    /// its address. The inner none is of a model that the table says to have no price.
    fn own(
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

    fn quote(&self, provider: &Provider, model: &Model, at: Timestamp) -> Option<Quote> {
        let version = model.version(at, self.is_open_ended)?;
        let text = version.text.get_or_init(|| {
            let text = serde_json::to_string(&self.stored(provider, model, version));
            // Of numbers and texts alone, so that it cannot fail; and an empty text is none.
            text.unwrap_or_default().into()
        });
        Some(Quote {
            price: Arc::clone(&version.price),
            text: Some(Arc::clone(text)).filter(|text| !text.is_empty()),
        })
    }

    fn stored(&self, provider: &Provider, model: &Model, version: &Version) -> StoredPrice {
        let (from, daily) = match version.when {
            When::Always => (None, None),
            When::From(start) => (Some(start), None),
            When::Daily { start, end } => (None, Some((start, end))),
        };
        let tiers = version.price.tiers.iter();
        StoredPrice {
            source: self.source.clone(),
            provider: provider.id.to_string(),
            model: model.id().to_owned(),
            from,
            daily,
            request_picousd: version.price.request,
            picousd_per_token: version.price.rates.clone(),
            tiers: tiers
                .map(|(above, rates)| StoredTier {
                    above: *above,
                    picousd_per_token: rates.clone(),
                })
                .collect(),
        }
    }

    /// The model, and the provider that it is listed under.
    fn find_model<'a>(
        &'a self,
        provider: &'a Provider,
        model: &str,
    ) -> Option<(&'a Provider, &'a Model)> {
        let find = |name: &str| {
            let others = provider.fallback.iter();
            let others = others.filter_map(|place| self.providers.get(*place));
            let mut all = std::iter::once(provider).chain(others);
            all.find_map(|provider| Some((provider, provider.model(name)?)))
        };
        find(model).or_else(|| match with_dashed_dates(model) {
            Cow::Owned(dashed) => find(&dashed),
            Cow::Borrowed(_) => None,
        })
    }
}

impl Provider {
    fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.names.matches(name))
    }
}

impl Model {
    fn id(&self) -> &str {
        match (&self.id, &self.names) {
            (Some(id), _) => id,
            (None, Clause::Equals(name) | Clause::StartsWith(name)) => name,
            (None, _) => "",
        }
    }

    fn version(&self, at: Timestamp, is_open_ended: bool) -> Option<&Version> {
        let mut newest_first = self.versions.iter().rev();
        newest_first
            .find(|version| version.when.covers(at))
            .or(self.versions.first().filter(|_| is_open_ended))
    }
}

impl Version {
    fn new(when: When, price: Price) -> Self {
        Self {
            when,
            price: Arc::new(price),
            text: OnceLock::new(),
        }
    }
}

impl When {
    fn covers(&self, at: Timestamp) -> bool {
        match *self {
            Self::Always => true,
            Self::From(start) => at >= start,
            Self::Daily { start, end } => {
                let minute = at.0.div_euclid(MS_PER_MINUTE).rem_euclid(MINUTES_PER_DAY);
                if end < start {
                    minute >= start || minute < end
                } else {
                    start <= minute && minute < end
                }
            }
        }
    }
}

impl Clause {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Equals(part) => text == &**part,
            Self::StartsWith(part) => text.starts_with(&**part),
            Self::EndsWith(part) => text.ends_with(&**part),
            Self::Contains(part) => text.contains(&**part),
            Self::Shape(shape) => has_shape(text, shape),
            Self::Any(clauses) => clauses.iter().any(|clause| clause.matches(text)),
            Self::All(clauses) => clauses.iter().all(|clause| clause.matches(text)),
            Self::Not(clause) => !clause.matches(text),
        }
    }

    /// Whether the text is one of those that the clause looks for, and nothing beside it.
    fn names(&self, text: &str) -> bool {
        match self {
            Self::Equals(part)
            | Self::StartsWith(part)
            | Self::EndsWith(part)
            | Self::Contains(part) => text == &**part,
            Self::Any(clauses) => clauses.iter().any(|clause| clause.names(text)),
            Self::Shape(_) | Self::All(_) | Self::Not(_) => false,
        }
    }
}

fn has_shape(text: &str, shape: &str) -> bool {
    let (shape, open_end) = match shape.strip_suffix('*') {
        Some(start) => (start.as_bytes(), true),
        None => (shape.as_bytes(), false),
    };
    let text = text.as_bytes();
    let long_enough = text.len() == shape.len() || (open_end && text.len() > shape.len());
    let fits = |(byte, wanted): (&u8, &u8)| match wanted {
        b'#' => byte.is_ascii_digit(),
        _ => byte == wanted,
    };
    long_enough && text.iter().zip(shape).all(fits)
}

/// `host/path` in lower case, without scheme, user, port and what comes after the path.
fn address(url: &str) -> String {
    let rest = url.trim();
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    format!("{host}{path}").to_lowercase()
}

/// Whether the address is the pattern's or lies below it. Upstream takes every address that starts
/// like the pattern; here `api.openai.com.example` is not `api.openai.com`.
fn host_matches(pattern: &str, address: &str) -> bool {
    let mut rest = address;
    let mut pieces = pattern.split('/');
    loop {
        let Some(wanted) = pieces.next() else {
            return true;
        };
        let (piece, after) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = match wanted.split_once('*') {
            None => piece == wanted,
            Some((start, end)) => {
                piece.len() > start.len() + end.len()
                    && piece.starts_with(start)
                    && piece.ends_with(end)
            }
        };
        if !fits {
            return false;
        }
        rest = after;
    }
}

/// Routers write dates as `-20251211` where the table has `-2025-12-11`; as upstream, names that
/// are not known otherwise are tried in that form.
fn with_dashed_dates(name: &str) -> Cow<'_, str> {
    let dashed = |segment: &str| {
        let (digits, after) = segment.split_at_checked(8)?;
        let ends = after.is_empty() || after.starts_with(':');
        if !ends || !digits.starts_with("20") || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let (year, month, day) = (&digits[..4], &digits[4..6], &digits[6..]);
        let date = format!("{year}-{month}-{day}");
        // Eight digits that are no day are part of the name.
        date.parse::<jiff::civil::Date>().ok()?;
        Some(format!("{date}{after}"))
    };
    let mut segments = name.split('-');
    let mut out = segments.next().unwrap_or_default().to_owned();
    let mut changed = false;
    for segment in segments {
        out.push('-');
        match dashed(segment) {
            Some(date) => {
                out.push_str(&date);
                changed = true;
            }
            None => out.push_str(segment),
        }
    }
    if changed {
        Cow::Owned(out)
    } else {
        Cow::Borrowed(name)
    }
}

// The file's form. Unknown keys are refused where a misspelt one would change a price.

#[derive(Deserialize)]
struct FileJson<'a> {
    source: Option<SourceJson>,
    /// Each is read on its own, as its models are, so that an error can name its line.
    #[serde(borrow)]
    providers: Vec<&'a RawValue>,
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
    name_match: Option<Clause>,
    model_match: Option<Clause>,
    #[serde(default)]
    fallback: Vec<String>,
    /// Each is read on its own, so that an error can name it.
    #[serde(borrow)]
    models: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct ModelId {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelJson {
    id: String,
    r#match: Option<Clause>,
    prices: Vec<PriceJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PriceJson {
    from: Option<Timestamp>,
    daily: Option<(i64, i64)>,
    request: Option<u64>,
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
    #[serde(default)]
    tiers: Vec<TierJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TierJson {
    above: u64,
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

/// The prices that are given, before the fallbacks.
struct Given {
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_write: Option<u64>,
    cache_write_1h: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

impl Given {
    fn is_empty(&self) -> bool {
        let all = [
            self.input,
            self.cache_read,
            self.cache_write,
            self.cache_write_1h,
            self.output,
            self.reasoning,
        ];
        all.iter().all(Option::is_none)
    }

    fn rates(&self) -> Result<Rates, String> {
        if self.input.is_none() && self.output.is_none() {
            return Err("neither `input` nor `output` has a price".to_owned());
        }
        let input = self.input.unwrap_or(0);
        let output = self.output.unwrap_or(0);
        let cache_write = self.cache_write.unwrap_or(input);
        let rates = Rates {
            input,
            cache_read: self.cache_read.unwrap_or(input),
            cache_write,
            cache_write_1h: self.cache_write_1h.unwrap_or(cache_write),
            output,
            reasoning: self.reasoning.unwrap_or(output),
        };
        rates.check()?;
        Ok(rates)
    }
}

fn check_price(name: &str, price: u64, max: u64) -> Result<(), String> {
    if price > max {
        return Err(format!(
            "`{name}` is {price} pico-dollars; it may be {max} at most"
        ));
    }
    Ok(())
}

impl TryFrom<TierJson> for (u64, Rates) {
    type Error = String;

    fn try_from(tier: TierJson) -> Result<Self, String> {
        let given = Given {
            input: tier.input,
            cache_read: tier.cache_read,
            cache_write: tier.cache_write,
            cache_write_1h: tier.cache_write_1h,
            output: tier.output,
            reasoning: tier.reasoning,
        };
        Ok((tier.above, given.rates()?))
    }
}

impl TryFrom<PriceJson> for Version {
    type Error = String;

    fn try_from(json: PriceJson) -> Result<Self, String> {
        let when = match (json.from, json.daily) {
            (None, None) => When::Always,
            (Some(start), None) => When::From(start),
            (None, Some((start, end))) => {
                if !(0..MINUTES_PER_DAY).contains(&start) || !(0..=MINUTES_PER_DAY).contains(&end) {
                    return Err(format!("`daily` is no time of day: [{start}, {end}]"));
                }
                When::Daily { start, end }
            }
            (Some(_), Some(_)) => return Err("both `from` and `daily`".to_owned()),
        };
        let given = Given {
            input: json.input,
            cache_read: json.cache_read,
            cache_write: json.cache_write,
            cache_write_1h: json.cache_write_1h,
            output: json.output,
            reasoning: json.reasoning,
        };
        let request = json.request.unwrap_or(0);
        check_price("request", request, REQUEST_PICOUSD_MAX)?;
        let tiers = json.tiers.into_iter().map(TryInto::try_into);
        let mut tiers: Vec<(u64, Rates)> = tiers.collect::<Result<_, String>>()?;
        tiers.shrink_to_fit();
        if !tiers.is_sorted_by(|(first, _), (second, _)| first < second) {
            return Err("`tiers` do not ascend".to_owned());
        }
        Ok(Self::new(
            when,
            Price {
                request,
                rates: given.rates()?,
                tiers,
            },
        ))
    }
}

impl TryFrom<ModelJson> for Model {
    type Error = String;

    fn try_from(json: ModelJson) -> Result<Self, String> {
        // Exact room, and no reuse of the much larger parsed form: the table lives on.
        let mut versions = Vec::with_capacity(json.prices.len());
        for price in json.prices {
            versions.push(price.try_into()?);
        }
        let name = json.id.to_lowercase();
        let is_known_by_name = json.r#match.is_none() && name == json.id;
        Ok(Self {
            names: json.r#match.unwrap_or(Clause::Equals(name.into())),
            id: (!is_known_by_name).then(|| json.id.into()),
            versions: versions.into(),
        })
    }
}

/// The line of `text` in which that part of it begins; the first is 1.
fn line_of(text: &str, part: &str) -> usize {
    let at = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    text.as_bytes()
        .iter()
        .take(at)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// What is wrong with a part of a text, with the line in the whole of it.
fn fault_in(text: &str, part: &str, error: &serde_json::Error) -> String {
    let line = line_of(text, part) + error.line().saturating_sub(1);
    let message = error.to_string();
    // Its own place is one within the part.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    format!("line {line}: {message}")
}

fn read_model(whole: &str, provider: &str, place: usize, text: &RawValue) -> Result<Model, String> {
    let text = text.get();
    serde_json::from_str::<ModelJson>(text)
        .map_err(|error| fault_in(whole, text, &error))
        .and_then(|json| {
            let model = Model::try_from(json);
            model.map_err(|error| format!("line {}: {error}", line_of(whole, text)))
        })
        .map_err(|error| {
            let model = match serde_json::from_str::<ModelId>(text) {
                Ok(model) => format!("`{}`", model.id),
                Err(_) => format!("number {}", place + 1),
            };
            let (line, message) = error.split_once(": ").unwrap_or(("", &error));
            format!("{line}: provider `{provider}`, model {model}: {message}")
        })
}

impl Table {
    fn from_json(text: &str) -> Result<Self, String> {
        let file: FileJson =
            serde_json::from_str(text).map_err(|error| fault_in(text, text, &error))?;
        let mut jsons: Vec<(&str, ProviderJson)> = Vec::with_capacity(file.providers.len());
        for raw in file.providers {
            let part = raw.get();
            let mut json: ProviderJson<'_> =
                serde_json::from_str(part).map_err(|error| fault_in(text, part, &error))?;
            // Names and addresses are compared in lower case.
            let others = json.fallback.iter_mut();
            for id in std::iter::once(&mut json.id).chain(others) {
                *id = id.to_lowercase();
            }
            for host in &mut json.hosts {
                *host = host.to_lowercase().into();
            }
            jsons.push((part, json));
        }
        let ids: Vec<Box<str>> = jsons.iter().map(|(_, p)| p.id.as_str().into()).collect();
        let mut providers = Vec::with_capacity(ids.len());
        for (place, (part, json)) in jsons.into_iter().enumerate() {
            let id = json.id;
            let place_of = |id: &str| ids.iter().position(|known| &**known == id);
            if place_of(&id) != Some(place) {
                let line = line_of(text, part);
                return Err(format!("line {line}: provider `{id}` comes twice"));
            }
            let fallback = json.fallback.iter().map(|other| {
                place_of(other).ok_or_else(|| {
                    let line = line_of(text, part);
                    format!(
                        "line {line}: provider `{id}` falls back to `{other}`, which is not there"
                    )
                })
            });
            let fallback = fallback.collect::<Result<_, String>>()?;
            let models = json.models.iter().enumerate();
            let models = models.map(|(place, raw)| read_model(text, &id, place, raw));
            providers.push(Provider {
                hosts: json.hosts,
                name_match: json.name_match,
                model_match: json.model_match,
                fallback,
                models: models.collect::<Result<_, String>>()?,
                id: id.into(),
            });
        }
        Ok(Self {
            source: match file.source {
                Some(source) => format!("{} {}", source.package, source.version),
                None => String::new(),
            },
            providers,
            is_open_ended: true,
        })
    }
}

impl<'de> Deserialize<'de> for Clause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ClauseVisitor)
    }
}

struct ClauseVisitor;

impl<'de> Visitor<'de> for ClauseVisitor {
    type Value = Clause;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a text that starts with one of `=^$~#`, a list, `{\"and\"}` or `{\"not\"}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Clause, E> {
        let mut chars = text.chars();
        let mark = chars.next();
        let part = || chars.as_str().to_lowercase().into_boxed_str();
        match mark {
            Some('=') => Ok(Clause::Equals(part())),
            Some('^') => Ok(Clause::StartsWith(part())),
            Some('$') => Ok(Clause::EndsWith(part())),
            Some('~') => Ok(Clause::Contains(part())),
            Some('#') => Ok(Clause::Shape(part())),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Clause, A::Error> {
        let mut clauses = Vec::new();
        while let Some(clause) = list.next_element()? {
            clauses.push(clause);
        }
        Ok(Clause::Any(clauses.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Clause, A::Error> {
        let clause = match map.next_key::<String>()?.as_deref() {
            Some("and") => Clause::All(map.next_value::<Vec<Clause>>()?.into()),
            Some("not") => Clause::Not(Box::new(map.next_value()?)),
            _ => return Err(de::Error::custom("expected the key `and` or `not`")),
        };
        match map.next_key::<String>()? {
            None => Ok(clause),
            Some(key) => Err(de::Error::custom(format!("a second key, `{key}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[derive(Deserialize)]
    struct Oracle {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        provider: String,
        base_url: Option<String>,
        model: String,
        at: Timestamp,
        usage: Usage,
        hour_write_tokens: u64,
        cost_nanousd: Option<i64>,
        /// Where ours may differ, by how much.
        #[serde(default)]
        within_nanousd: i64,
    }

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn built_in(provider: &str, base_url: Option<&str>, model: &str) -> Option<Price> {
        let prices = Prices::built_in();
        let quote = prices.find(provider, base_url, model, noon());
        quote.map(|quote| quote.price.as_ref().clone())
    }

    /// A table with one provider, `acme` at `api.acme.example`.
    fn acme(models: Value) -> Result<Prices, String> {
        let source = json!({
            "package": "p", "version": "1", "repository": "r", "retrieved": "2026-01-01"
        });
        let provider = json!({"id": "acme", "hosts": ["api.acme.example"], "models": models});
        Prices::from_json(&json!({"source": source, "providers": [provider]}).to_string())
    }

    fn one_price(price: Value) -> Result<Price, String> {
        let prices = acme(json!([{"id": "m", "prices": [price]}]))?;
        let quote = prices.find("acme", None, "m", noon()).unwrap();
        Ok(quote.price.as_ref().clone())
    }

    fn usage(counts: [u64; 5]) -> Usage {
        let [input, read, write, output, reasoning] = counts;
        Usage {
            input_tokens: input,
            cached_input_tokens: read,
            cache_write_tokens: write,
            output_tokens: output,
            reasoning_tokens: reasoning,
            ..Usage::default()
        }
    }

    #[test]
    fn the_built_in_table_is_read_without_error_and_says_where_it_is_from() {
        let table = Table::from_json(include_str!("../../assets/prices.json")).unwrap();
        let count: usize = table.providers.iter().map(|p| p.models.len()).sum();
        assert!(count > 2_000, "{count}");
        let source = Prices::built_in().source().to_owned();
        assert!(source.starts_with("genai-prices "), "{source}");
    }

    #[test]
    fn costs_are_those_of_the_oracle() {
        let text = include_str!("../../tests/fixtures/prices-oracle.json");
        let oracle: Oracle = serde_json::from_str(text).unwrap();
        assert!(oracle.cases.len() >= 350, "{}", oracle.cases.len());
        let deviating = oracle.cases.iter().filter(|case| case.within_nanousd > 0);
        assert!(deviating.count() < 10, "the oracle says too little");
        let prices = Prices::built_in();
        for case in oracle.cases {
            let price = prices.find(
                &case.provider,
                case.base_url.as_deref(),
                &case.model,
                case.at,
            );
            let usage = Usage {
                cache_write_1h_tokens: case.hour_write_tokens,
                ..case.usage
            };
            let cost = price.map(|price| price.cost(&usage).nanousd);
            let wanted = case.cost_nanousd;
            let off = cost.unwrap_or(0).abs_diff(wanted.unwrap_or(0));
            assert!(
                cost.is_some() == wanted.is_some() && off <= case.within_nanousd.unsigned_abs(),
                "{}/{} at {}: {cost:?}, but {wanted:?} by the oracle",
                case.provider,
                case.model,
                case.at
            );
        }
    }

    #[test]
    fn an_unknown_model_has_no_price_and_echo_is_free() {
        assert_eq!(built_in("openai", None, "gpt-4o-nothing"), None);
        assert_eq!(built_in("openai", None, ""), None);
        assert_eq!(
            built_in("ollama", Some("http://localhost:11434"), "llama3"),
            None
        );
        let echo = built_in("echo", None, "echo-1").unwrap();
        assert_eq!(echo.cost(&usage([u64::MAX; 5])), Usd::ZERO);
        assert_eq!(
            built_in("echo", Some("https://example.org"), "echo-1"),
            None
        );
    }

    #[test]
    fn the_address_decides_before_the_name_and_a_local_server_is_not_priced_by_likeness() {
        let groq = built_in("groq", None, "llama-3.3-70b-versatile");
        assert!(groq.is_some());
        let model = "llama-3.3-70b-versatile";
        for url in [
            "https://api.groq.com/openai/v1",
            "api.groq.com",
            "HTTPS://user@API.GROQ.com:443?x",
        ] {
            assert_eq!(built_in("openai", Some(url), model), groq, "{url}");
        }
        for url in [
            "https://api.groq.com.example",
            "https://example.org/api.groq.com",
        ] {
            assert_eq!(built_in("mine", Some(url), model), None, "{url}");
        }
        let local = Some("http://localhost:4000/v1");
        assert!(built_in("gemini", local, "gemini-2.5-pro").is_some());
        assert!(built_in("mistral", local, "mistral-small-latest").is_some());
        assert!(built_in("mistral-local", None, "mistral-small-latest").is_some());
        assert_eq!(
            built_in("mistral-local", local, "mistral-small-latest"),
            None
        );
    }

    #[test]
    fn a_path_tells_the_providers_of_one_host_apart() {
        let (model, host) = ("deepseek-ai/DeepSeek-R1", "https://router.huggingface.co");
        let path = |path: &str| built_in("hf", Some(&format!("{host}{path}")), model);
        assert!(path("/novita/v3/openai").is_some());
        assert_eq!(path("/novitas"), None);
        assert_eq!(path(""), None);
        let aws = |host: &str| built_in("x", Some(host), "amazon.nova-pro-v1:0");
        assert!(aws("bedrock-runtime.eu-west-1.amazonaws.com").is_some());
        assert_eq!(aws("bedrock-runtime.amazonaws.com"), None);
    }

    #[test]
    fn the_last_price_in_force_counts_and_the_first_where_none_is() {
        let prices = acme(json!([{"id": "m", "prices": [
            {"from": "2026-01-01", "input": 1},
            {"from": "2026-02-01", "input": 2},
            {"daily": [1380, 60], "input": 3},
        ]}]))
        .unwrap();
        let input = |at: &str| {
            let at = at.parse().unwrap();
            prices
                .find("acme", None, "m", at)
                .unwrap()
                .price
                .rates
                .input
        };
        assert_eq!(input("2025-06-01T12:00:00Z"), 1);
        assert_eq!(input("2026-01-31T22:59:59.999Z"), 1);
        assert_eq!(input("2026-01-31T23:00:00Z"), 3);
        assert_eq!(input("2026-02-01T00:59:59.999Z"), 3);
        assert_eq!(input("2026-02-01T01:00:00Z"), 2);
        assert_eq!(input("1969-12-31T23:30:00Z"), 3);
    }

    #[test]
    fn the_first_model_that_fits_counts_even_where_it_has_no_price() {
        let prices = acme(json!([
            {"id": "a-voice", "match": "^a-voice", "prices": []},
            {"id": "a", "match": ["^a-", "#b-####", "#c-#*", {"and": ["~d", {"not": ["$x", "~-x-"]}]}],
             "prices": [{"input": 1}]},
            {"id": "dated", "match": "=e-2026-01-31:free", "prices": [{"input": 1}]},
            {"id": "compact", "match": "=f-20260131", "prices": [{"input": 1}]},
            {"id": "Upper", "prices": [{"output": 1}]},
        ]))
        .unwrap();
        let known = |model| prices.find("acme", None, model, noon()).is_some();
        for model in [
            "A-1",
            "b-0123",
            "c-9",
            "c-9-x",
            "d",
            "x-dy",
            "e-20260131:free",
            "f-20260131",
            "uPPER",
        ] {
            assert!(known(model), "{model}");
        }
        for model in [
            "a-voice-1",
            "b-012",
            "b-01234",
            "b-012x",
            "c-",
            "dx",
            "d-x-1",
            "e-20260132:free",
            "f-2026-01-31",
            "é-20260131",
            "g-2026013é",
        ] {
            assert!(!known(model), "{model}");
        }
    }

    #[test]
    fn a_missing_price_falls_back_to_the_more_general_one() {
        let rates = |price| one_price(price).unwrap().rates;
        let bare = rates(json!({"input": 10, "output": 20}));
        let full = |read, write, hour, reasoning| Rates {
            input: 10,
            cache_read: read,
            cache_write: write,
            cache_write_1h: hour,
            output: 20,
            reasoning,
        };
        assert_eq!(bare, full(10, 10, 10, 20));
        let some = rates(json!({"input": 10, "cache_write": 12, "output": 20, "reasoning": 3}));
        assert_eq!(some, full(10, 12, 12, 3));
    }

    #[test]
    fn a_tier_prices_the_whole_call_by_the_whole_prompt() {
        let price = one_price(
            json!({"input": 1000, "cache_read": 100, "output": 5000, "tiers": [
                {"above": 10, "input": 2000, "cache_read": 200, "output": 9000},
                {"above": 20, "input": 3000, "cache_read": 300, "output": 9000},
            ]}),
        )
        .unwrap();
        let nanos = |counts| price.cost(&usage(counts)).nanousd;
        assert_eq!(nanos([10, 10, 0, 1, 0]), 1 + 5);
        assert_eq!(nanos([11, 10, 0, 1, 0]), 2 + 2 + 9);
        assert_eq!(nanos([21, 20, 0, 0, 0]), 3 + 6);
    }

    #[test]
    fn the_sum_is_rounded_once_half_to_even_and_stays_in_range() {
        let price = one_price(json!({"input": 500, "output": 1, "request": 2000})).unwrap();
        let nanos = |input, output| price.cost(&usage([input, 0, 0, output, 0])).nanousd;
        assert_eq!(nanos(0, 0), 2);
        assert_eq!(nanos(1, 0), 2);
        assert_eq!(nanos(1, 1), 3);
        assert_eq!(nanos(3, 0), 4);
        let most = TOKEN_PICOUSD_MAX;
        let dear = json!({"input": most, "output": most, "request": REQUEST_PICOUSD_MAX});
        let dear = one_price(dear).unwrap();
        assert_eq!(dear.cost(&usage([u64::MAX; 5])).nanousd, i64::MAX);
        // Counts that contradict each other are priced as far as they go.
        assert_eq!(price.cost(&usage([0, 4, 4, 0, 3000])).nanousd, 2 + 4 + 3);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_model_at_fault() {
        let fault = |price: Value| acme(json!([{"id": "m", "prices": [price]}])).err().unwrap();
        for (price, word) in [
            (json!({"input": -1}), "-1"),
            (json!({"input": 1.5}), "1.5"),
            (json!({"input": TOKEN_PICOUSD_MAX + 1}), "at most"),
            (
                json!({"input": 1, "request": REQUEST_PICOUSD_MAX + 1}),
                "`request`",
            ),
            (json!({"input": 1, "ouput": 1}), "ouput"),
            (json!({"cache_read": 1}), "neither"),
            (json!({"from": "soon", "input": 1}), "soon"),
            (json!({"daily": [0, 1441], "input": 1}), "1441"),
            (
                json!({"from": "2026-01-01", "daily": [0, 1], "input": 1}),
                "both",
            ),
            (
                json!({"input": 1, "tiers": [{"above": 2, "input": 1}, {"above": 2, "input": 1}]}),
                "ascend",
            ),
        ] {
            let error = fault(price);
            assert!(error.contains("provider `acme`, model `m`"), "{error}");
            assert!(error.contains(word), "{error}");
        }
        for clause in [
            json!(""),
            json!("gpt"),
            json!(1),
            json!({}),
            json!({"or": []}),
            json!({"not": "=a", "and": []}),
        ] {
            let models = json!([{"id": "m", "match": clause, "prices": []}]);
            let error = acme(models).err().unwrap();
            assert!(error.contains("model `m`"), "{error}");
        }
        let error = acme(json!([{"id": "m", "prices": []}, {"name": "x"}]))
            .err()
            .unwrap();
        assert!(error.contains("model number 2"), "{error}");
    }

    #[test]
    fn a_faulty_file_is_refused() {
        let source = r#""source":{"package":"p","version":"1","repository":"r","retrieved":"d"}"#;
        let provider = r#"{"id":"a","hosts":[],"fallback":[],"models":[]}"#;
        let lost = r#"{"id":"a","hosts":[],"fallback":["b"],"models":[]}"#;
        let file = |providers: &str| format!(r#"{{{source},"providers":[{providers}]}}"#);
        assert!(Prices::from_json(&file(provider)).is_ok());
        for (text, word) in [
            (String::new(), "line 1: EOF"),
            ("{}".to_owned(), "providers"),
            ("[]".to_owned(), "line 1"),
            (file(&format!("{provider},{provider}")), "twice"),
            (file(lost), "`b`"),
            (
                file(r#"{"id":"a","hosts":[],"models":[],"extra":1}"#),
                "extra",
            ),
        ] {
            let error = Prices::from_json(&text).err().unwrap();
            assert!(error.contains(word), "{error}");
        }
    }

    /// Else a longer prompt could cost less, and the property below would not hold.
    #[test]
    fn no_tier_is_cheaper_than_the_one_below() {
        for price in built_in_prices() {
            let mut below = &price.rates;
            for (_, rates) in &price.tiers {
                assert!(below.input <= rates.input && below.cache_read <= rates.cache_read);
                assert!(below.cache_write <= rates.cache_write);
                assert!(below.cache_write_1h <= rates.cache_write_1h);
                assert!(below.output <= rates.output && below.reasoning <= rates.reasoning);
                below = rates;
            }
        }
    }

    fn built_in_prices() -> Vec<&'static Price> {
        let models = BUILT_IN.providers.iter().flat_map(|p| &p.models);
        let versions = models.flat_map(|model| &model.versions);
        versions.map(|version| &*version.price).collect()
    }

    fn built_in_price() -> impl Strategy<Value = &'static Price> {
        proptest::sample::select(built_in_prices())
    }

    /// Any count, with those near the limits of tiers and of the type as likely as the rest.
    fn count() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..1_000_000, any::<u64>(), Just(u64::MAX)]
    }

    proptest! {
        #[test]
        fn no_counts_make_it_panic_or_negative(
            price in built_in_price(), counts in proptest::array::uniform5(count()), hour in count(),
        ) {
            let usage = Usage { cache_write_1h_tokens: hour, ..usage(counts) };
            prop_assert!(price.cost(&usage) >= Usd::ZERO);
        }

        #[test]
        fn the_cost_is_off_by_half_a_nano_dollar_at_most(
            price in built_in_price(), counts in proptest::array::uniform5(0u64..10_000_000),
        ) {
            let exact = {
                let usage = usage(counts);
                price.picodollars(1, usage.input_tokens, &usage)
            };
            let nanos = price.cost(&usage(counts)).nanousd;
            let rounded = u128::try_from(nanos).unwrap() * PICO_PER_NANO;
            prop_assert!(rounded.abs_diff(exact) <= PICO_PER_NANO / 2);
        }

        /// Rounding comes once, after the sum: before it, the parts are exactly the whole.
        #[test]
        fn the_sum_of_the_parts_is_the_total(
            price in built_in_price(), kinds in proptest::array::uniform6(0u64..400_000),
        ) {
            let [plain, read, short, hour, answer, reasoning] = kinds;
            let whole = Usage {
                input_tokens: plain + read + short + hour,
                cached_input_tokens: read,
                cache_write_tokens: short + hour,
                cache_write_1h_tokens: hour,
                output_tokens: answer + reasoning,
                reasoning_tokens: reasoning,
                ..Usage::default()
            };
            let rates = price.rates_for(whole.input_tokens).named().map(|(_, rate)| rate);
            let parts = kinds.iter().zip(rates);
            let parts: u128 = parts.map(|(count, rate)| u128::from(*count) * u128::from(rate)).sum();
            let total = u128::from(price.request) + parts;
            prop_assert_eq!(price.picodollars(1, whole.input_tokens, &whole), total);
            let nanos = u128::try_from(price.cost(&whole).nanousd).unwrap();
            prop_assert!((nanos * PICO_PER_NANO).abs_diff(total) <= PICO_PER_NANO / 2);
        }

        #[test]
        fn what_a_row_keeps_of_its_price_gives_its_cost_again(
            price in built_in_price(), counts in proptest::array::uniform5(count()), hour in count(),
            from in proptest::option::of(0i64..4_000_000_000_000),
        ) {
            let version = Version::new(from.map_or(When::Always, |at| When::From(Timestamp(at))), price.clone());
            let table = Table { source: "s 1".to_owned(), ..Table::default() };
            let model = Model { id: None, names: Clause::Equals("m".into()), versions: Box::new([version]) };
            let provider = Provider {
                id: "p".into(), hosts: Vec::new(), name_match: None, model_match: None,
                fallback: Vec::new(), models: Vec::new(),
            };
            let quote = table.quote(&provider, &model, Timestamp(i64::MAX)).unwrap();
            let stored = StoredPrice::from_json(quote.text().unwrap()).unwrap();
            prop_assert_eq!((&*stored.source, &*stored.provider, &*stored.model), ("s 1", "p", "m"));
            prop_assert_eq!(stored.from.map(|from| from.0), from);
            let usage = Usage { cache_write_1h_tokens: hour, ..usage(counts) };
            prop_assert_eq!(stored.price().cost(&usage), price.cost(&usage));
        }

        /// Of each kind: not cached, read from the cache, written to it, answer, reasoning.
        #[test]
        fn more_tokens_of_any_kind_never_cost_less(
            price in built_in_price(),
            kinds in proptest::array::uniform5(0u64..400_000),
            kind in 0usize..5,
            more in 0u64..400_000,
        ) {
            let normal = |k: [u64; 5]| usage([k[0] + k[1] + k[2], k[1], k[2], k[3] + k[4], k[4]]);
            let mut grown = kinds;
            grown[kind] += more;
            prop_assert!(price.cost(&normal(grown)) >= price.cost(&normal(kinds)));
        }

        #[test]
        fn no_text_makes_finding_or_reading_panic(
            name in "\\PC{0,20}", url in proptest::option::of("\\PC{0,30}"),
            model in "[a-z0-9é/:-]{0,30}", at in any::<i64>(),
        ) {
            let prices = Prices::built_in();
            let _ = prices.find(&name, url.as_deref(), &model, Timestamp(at));
            let _ = prices.find("litellm", None, &model, Timestamp(at));
            let _ = Prices::from_json(&model);
        }
    }
}
