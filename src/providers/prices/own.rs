//! The user's own prices, from a file that may change while the server runs.
//!
//! A file whose name ends in `.json` has the format of `assets/prices.json` (`source` may be left
//! out). Any other is TOML, one entry for each price:
//!
//! ```toml
//! [[price]]
//! provider = "openai"          # its name in the configuration
//! model = "gpt-4o*"            # `*` at the end: all names that begin so; the longest entry counts
//! input_per_mtok = "2.50"      # US dollars for a million tokens, in quotes, so that it stays exact
//! output_per_mtok = "10"
//! # may be left out: cache_read_per_mtok, cache_write_per_mtok, cache_write_1h_per_mtok,
//! # reasoning_per_mtok, per_request (US dollars a call), and:
//! from = "2026-01-01"          # counts from this date (UTC) on; before, an earlier entry or the
//!                              # built-in price does
//! tiers = [{ above = 200000, input_per_mtok = "5", output_per_mtok = "15" }]
//! ```
//!
//! What is left out and what tiers mean is as in the built-in table. Where the file names a provider
//! and a model, it counts; for all others, the built-in table does.

use std::cmp::Reverse;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{
    Clause, Given, Model, Price, Provider, REQUEST_PICOUSD_MAX, Rates, TOKEN_PICOUSD_MAX, Table,
    Version, When,
};
use crate::error::{Error, Result};
use crate::event::Timestamp;

/// It is looked at most this often whether the file has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// A file longer than this is no table of prices: fifty times the built-in one.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Digits after the point of dollars for a million tokens, down to a pico-dollar a token.
const PER_MTOK_DIGITS: usize = 6;
/// Digits after the point of dollars for a call, down to a pico-dollar.
const PER_REQUEST_DIGITS: usize = 12;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl Stamp {
    /// None where there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let data = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: data.modified().ok(),
            bytes: data.len(),
            inode: data.ino(),
        })
    }
}

/// The file, and what it said when it could be read last.
pub(super) struct OwnPrices {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    table: Arc<Table>,
    stamp: Option<Stamp>,
    checked: Instant,
}

impl OwnPrices {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`Error::Config`] that names file and line.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let stamp = Stamp::of(path);
        let table = read(path).map_err(|error| {
            Error::Config(format!("the prices cannot be used: {}", at(path, &error)))
        })?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State {
                table: Arc::new(table),
                stamp,
                checked: Instant::now(),
            }),
        })
    }

    /// What the file says, or said when it could be read last.
    pub(super) fn table(&self) -> Arc<Table> {
        self.table_checked_after(CHECK_INTERVAL)
    }

    fn table_checked_after(&self, interval: Duration) -> Arc<Table> {
        let mut state = self.lock();
        let before = Arc::clone(&state.table);
        if state.checked.elapsed() < interval {
            return before;
        }
        // Nobody else looks while this one does, and nobody waits for it.
        state.checked = Instant::now();
        let known = state.stamp.clone();
        drop(state);
        // From before it is read: what changes meanwhile is seen the next time.
        let stamp = Stamp::of(&self.path);
        if stamp == known {
            return before;
        }
        let read = read(&self.path);
        let mut state = self.lock();
        state.stamp = stamp;
        match read {
            // As editors leave it for a moment while they save it.
            Ok(table) if table.is_empty() && !state.table.is_empty() => log::warn!(
                "the prices in {} are all gone, so that the ones before still count until there are \
                 others or the server starts anew",
                self.path.display()
            ),
            Ok(table) => {
                log::info!(
                    "the prices in {} have changed and count now",
                    self.path.display()
                );
                state.table = Arc::new(table);
            }
            Err(error) => log::warn!(
                "the prices have changed, but cannot be used, so that the ones before still count: {}",
                at(&self.path, &error)
            ),
        }
        Arc::clone(&state.table)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `file, line 3: …`
fn at(path: &Path, error: &str) -> String {
    format!("{}, {error}", path.display())
}

fn read(path: &Path) -> Result<Table, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| {
        let mut limited = file.take(FILE_BYTES_MAX + 1);
        limited.read_to_string(&mut text)
    });
    match read {
        Err(error) => return Err(format!("which cannot be read: {error}")),
        Ok(bytes) if bytes as u64 > FILE_BYTES_MAX => {
            return Err(format!("which is longer than {FILE_BYTES_MAX} bytes"));
        }
        Ok(_) => {}
    }
    let is_json = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let table = if is_json {
        Table::from_json(&text)?
    } else {
        from_toml(&text)?
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(Table {
        source: name.to_string_lossy().into_owned(),
        // Before a price is in force, the built-in one counts.
        is_open_ended: false,
        ..table
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToml {
    #[serde(default)]
    price: Vec<Spanned<EntryToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryToml {
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

type PerMtok = Amount<PER_MTOK_DIGITS, TOKEN_PICOUSD_MAX>;
type PerRequest = Amount<PER_REQUEST_DIGITS, REQUEST_PICOUSD_MAX>;

/// An amount of dollars, in units of the last of so many digits after the point, of which there may be
/// so many.
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

/// A decimal in units of the last of so many digits after the point, exactly; `max` of them at most.
fn decimal(text: &str, digits: usize, max: u64) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not an amount of US dollars, such as \"0.15\"");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || text.ends_with('.') {
        return Err(wrong());
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > digits {
        return Err(format!(
            "`{text}` has more than {digits} digits after the point"
        ));
    }
    let all = format!("{whole}{fraction:0<digits$}");
    let amount = all.parse().ok().filter(|amount| *amount <= max);
    let unit = (0..digits).fold(1, |unit, _| unit * 10);
    amount.ok_or_else(|| {
        let most = max / unit;
        format!("`{text}` is more than anything costs; it may be {most} US dollars at most")
    })
}

/// A date or time, in quotes or as TOML has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Date(Timestamp);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text,
            toml::Value::Datetime(date) => date.to_string(),
            other => other.to_string(),
        };
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// Of an optional amount, its number.
fn number<const DIGITS: usize, const MAX: u64>(
    amount: &Option<Amount<DIGITS, MAX>>,
) -> Option<u64> {
    amount.as_ref().map(|amount| amount.0)
}

impl EntryToml {
    fn price(&self) -> Result<Price, String> {
        let given = Given {
            input: number(&self.input_per_mtok),
            cache_read: number(&self.cache_read_per_mtok),
            cache_write: number(&self.cache_write_per_mtok),
            cache_write_1h: number(&self.cache_write_1h_per_mtok),
            output: number(&self.output_per_mtok),
            reasoning: number(&self.reasoning_per_mtok),
        };
        let request = number(&self.per_request).unwrap_or(0);
        let rates = match given.rates() {
            Ok(rates) => rates,
            // A price for the call alone.
            Err(_) if self.per_request.is_some() && given.is_empty() => Rates::ZERO,
            Err(_) => {
                let message = "neither `input_per_mtok` nor `output_per_mtok` is given";
                return Err(message.to_owned());
            }
        };
        let tiers: Vec<(u64, Rates)> = self
            .tiers
            .iter()
            .map(TierToml::rates)
            .collect::<Result<_, String>>()?;
        if !tiers.is_sorted_by(|(first, _), (second, _)| first < second) {
            return Err("`above` of the tiers does not ascend".to_owned());
        }
        Ok(Price {
            request,
            rates,
            tiers,
        })
    }

    fn names(&self) -> Result<(bool, String), String> {
        let model = self.model.trim().to_lowercase();
        let (is_start, name) = match model.strip_suffix('*') {
            Some(start) => (true, start.to_owned()),
            None => (false, model),
        };
        if name.contains('*') || (name.is_empty() && !is_start) {
            return Err(format!(
                "model `{}`: a name, with `*` at its end at most",
                self.model
            ));
        }
        Ok((is_start, name))
    }
}

impl TierToml {
    fn rates(&self) -> Result<(u64, Rates), String> {
        let given = Given {
            input: number(&self.input_per_mtok),
            cache_read: number(&self.cache_read_per_mtok),
            cache_write: number(&self.cache_write_per_mtok),
            cache_write_1h: number(&self.cache_write_1h_per_mtok),
            output: number(&self.output_per_mtok),
            reasoning: number(&self.reasoning_per_mtok),
        };
        let rates = given.rates().map_err(|_| {
            format!(
                "the tier above {}: neither `input_per_mtok` nor `output_per_mtok` is given",
                self.above
            )
        })?;
        Ok((self.above, rates))
    }
}

/// An entry as it was read.
struct Entry {
    provider: String,
    is_start: bool,
    name: String,
    from: Option<Date>,
    price: Price,
}

fn read_entry(entry: &EntryToml) -> Result<Entry, String> {
    let provider = entry.provider.trim().to_lowercase();
    if provider.is_empty() {
        return Err("provider: its name in the configuration".to_owned());
    }
    let (is_start, name) = entry.names()?;
    Ok(Entry {
        provider,
        is_start,
        name,
        from: entry.from,
        price: entry.price()?,
    })
}

/// Reads the TOML form.
fn from_toml(text: &str) -> Result<Table, String> {
    let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let file: FileToml = toml::from_str(text).map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        format!("line {}: {}", line(start), error.message())
    })?;
    let mut entries: Vec<(usize, Entry)> = Vec::with_capacity(file.price.len());
    for spanned in &file.price {
        let line = line(spanned.span().start);
        let entry =
            read_entry(spanned.get_ref()).map_err(|error| format!("line {line}: {error}"))?;
        entries.push((line, entry));
    }
    // Of one model together, the oldest price first; whole names before beginnings, and longer
    // beginnings before shorter ones.
    entries.sort_by(|(_, one), (_, other)| {
        let key = |entry: &Entry| (entry.is_start, Reverse(entry.name.len()));
        (&one.provider, key(one), &one.name, one.from).cmp(&(
            &other.provider,
            key(other),
            &other.name,
            other.from,
        ))
    });
    let is_same = |one: &Entry, other: &Entry| {
        (&one.provider, one.is_start, &one.name) == (&other.provider, other.is_start, &other.name)
    };
    for pair in entries.windows(2) {
        if let [(first_line, first), (second_line, second)] = pair
            && is_same(first, second)
            && first.from == second.from
        {
            let (first, second) = (first_line.min(second_line), first_line.max(second_line));
            return Err(format!(
                "line {second}: the same provider, model and `from` as in line {first}"
            ));
        }
    }
    let mut providers: Vec<Provider> = Vec::new();
    for group in entries.chunk_by(|(_, one), (_, other)| is_same(one, other)) {
        let Some((_, first)) = group.first() else {
            continue;
        };
        let versions = group.iter().map(|(_, entry)| {
            let when = entry.from.map_or(When::Always, |from| When::From(from.0));
            Version::new(when, entry.price.clone())
        });
        let name = first.name.as_str().into();
        let model = Model {
            id: first.is_start.then(|| format!("{}*", first.name).into()),
            names: if first.is_start {
                Clause::StartsWith(name)
            } else {
                Clause::Equals(name)
            },
            versions: versions.collect(),
        };
        match providers.last_mut() {
            Some(last) if *last.id == *first.provider => last.models.push(model),
            _ => providers.push(Provider {
                id: first.provider.as_str().into(),
                hosts: Vec::new(),
                name_match: None,
                model_match: None,
                fallback: Vec::new(),
                models: vec![model],
            }),
        }
    }
    Ok(Table {
        source: String::new(),
        providers,
        is_open_ended: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Prices, StoredPrice};
    use super::*;
    use crate::event::Usage;

    fn noon() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    /// The file in a directory of its own, and prices with it.
    fn own(name: &str, text: &str) -> Result<(tempfile::TempDir, Prices)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let prices = Prices::built_in().with_own(&path)?;
        Ok((dir, prices))
    }

    fn stored(prices: &Prices, provider: &str, model: &str, at: Timestamp) -> Option<StoredPrice> {
        let quote = prices.find(provider, Some("http://127.0.0.1:1/v1"), model, at)?;
        Some(StoredPrice::from_json(quote.text().unwrap()).unwrap())
    }

    #[test]
    fn own_prices_win_where_they_name_provider_and_model_and_the_rest_stays() {
        let (_dir, prices) = own(
            "mine.toml",
            r#"
            [[price]]
            provider = "OpenAI"
            model = "gpt-4o"
            input_per_mtok = "0.15"
            output_per_mtok = 3
            cache_read_per_mtok = "0.000001"
            per_request = "0.000000000001"
            tiers = [{ above = 1000, input_per_mtok = "0.3", output_per_mtok = "6" }]
            [[price]]
            provider = "local"
            model = "*"
            input_per_mtok = "0"
            [[price]]
            provider = "local"
            model = "big-*"
            per_request = "0.5"
            [[price]]
            provider = "local"
            model = "big-one"
            output_per_mtok = "1"
            "#,
        )
        .unwrap();
        let openai = stored(&prices, "openai", "GPT-4o", noon()).unwrap();
        assert_eq!((&*openai.source, &*openai.model), ("mine.toml", "gpt-4o"));
        assert_eq!(openai.picousd_per_token.input, 150_000);
        assert_eq!(openai.picousd_per_token.output, 3_000_000);
        assert_eq!(openai.picousd_per_token.cache_read, 1);
        assert_eq!(openai.request_picousd, 1);
        assert_eq!(openai.tiers[0].above, 1000);
        assert_eq!(openai.tiers[0].picousd_per_token.input, 300_000);
        let mini = stored(&prices, "openai", "gpt-4o-mini", noon()).unwrap();
        assert!(mini.source.starts_with("genai-prices "), "{mini:?}");
        let model = |name| stored(&prices, "local", name, noon()).unwrap().model;
        assert_eq!(model("small"), "*");
        assert_eq!(model("big-two"), "big-*");
        assert_eq!(model("big-one"), "big-one");
        assert_eq!(stored(&prices, "other", "small", noon()), None);
    }

    #[test]
    fn a_price_that_is_not_in_force_yet_leaves_it_to_the_one_before_or_the_built_in_one() {
        let (_dir, prices) = own(
            "mine.toml",
            "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\nfrom = 2027-02-01\n\
             input_per_mtok = '2'\n\
             [[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\nfrom = '2027-01-01'\n\
             input_per_mtok = '1'\n",
        )
        .unwrap();
        let input = |at: &str| {
            let stored = stored(&prices, "openai", "gpt-4o", at.parse().unwrap()).unwrap();
            (stored.source == "mine.toml").then_some(stored.picousd_per_token.input)
        };
        assert_eq!(input("2026-12-31T23:59:59.999Z"), None);
        assert_eq!(input("2027-01-01T00:00:00Z"), Some(1_000_000));
        assert_eq!(input("2027-01-31T23:59:59.999Z"), Some(1_000_000));
        assert_eq!(input("2027-02-01T00:00:00Z"), Some(2_000_000));
    }

    #[test]
    fn an_own_price_of_the_model_asked_counts_before_a_built_in_one_of_the_model_that_answered() {
        let (_dir, prices) = own(
            "mine.toml",
            "[[price]]\nprovider = 'openai'\nmodel = 'gpt-4o'\ninput_per_mtok = '1'",
        )
        .unwrap();
        let url = Some("https://api.openai.com/v1");
        let models = ["gpt-4o-2024-08-06", "gpt-4o"];
        let quote = prices.find_any("openai", url, &models, noon()).unwrap();
        assert!(quote.text().unwrap().contains("mine.toml"), "{quote:?}");
        let tokens = Usage {
            input_tokens: 7,
            ..Usage::default()
        };
        assert_eq!(quote.cost(&tokens).nanousd, 7_000);
    }

    #[test]
    fn the_built_in_format_does_as_well_and_may_say_that_a_price_is_not_known() {
        let (_dir, prices) = own(
            "mine.json",
            r#"{"providers": [{"id": "openai", "hosts": [], "models": [
                {"id": "gpt-4o", "prices": [{"input": 5, "output": 7}]},
                {"id": "gpt-4", "prices": []}]}]}"#,
        )
        .unwrap();
        let gpt_4o = stored(&prices, "openai", "gpt-4o", noon()).unwrap();
        assert_eq!(
            (&*gpt_4o.source, gpt_4o.picousd_per_token.output),
            ("mine.json", 7)
        );
        assert_eq!(stored(&prices, "openai", "gpt-4", noon()), None);
        assert!(stored(&prices, "openai", "gpt-4o-mini", noon()).is_some());
    }

    #[test]
    fn in_the_built_in_format_too_a_price_counts_from_its_date_on_whatever_case_names_have() {
        let (_dir, prices) = own(
            "mine.json",
            r#"{"providers": [{"id": "OpenAI", "hosts": ["API.Acme.example"], "models": [
                {"id": "GPT-4o", "prices": [{"from": "2027-01-01", "input": 5}]},
                {"id": "both", "prices": [{"input": 7}, {"from": "2027-01-01", "input": 8}]}]}]}"#,
        )
        .unwrap();
        let input = |model: &str, at: &str| {
            let stored = stored(&prices, "openai", model, at.parse().unwrap()).unwrap();
            (stored.source == "mine.json").then_some(stored.picousd_per_token.input)
        };
        assert_eq!(input("gpt-4o", "2026-12-31T23:59:59.999Z"), None);
        assert_eq!(input("gpt-4o", "2027-01-01T00:00:00Z"), Some(5));
        assert_eq!(input("both", "2026-12-31T23:59:59.999Z"), Some(7));
        assert_eq!(input("both", "2027-01-01T00:00:00Z"), Some(8));
        let url = Some("https://api.acme.example/v1");
        assert!(prices.find("other", url, "both", noon()).is_some());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_and_line() {
        let entry = "[[price]]\nprovider = 'a'\nmodel = 'm'\n";
        let cases = [
            (
                format!("{entry}input_per_mtok = 0.15"),
                "line 4",
                "in quotes",
            ),
            (format!("{entry}input_per_mtok = '-1'"), "line 4", "`-1`"),
            (format!("{entry}input_per_mtok = '1.'"), "line 4", "`1.`"),
            (format!("{entry}input_per_mtok = '1e3'"), "line 4", "`1e3`"),
            (
                format!("{entry}input_per_mtok = '0.0000001'"),
                "line 4",
                "more than 6 digits",
            ),
            (
                format!("{entry}input_per_mtok = '100000.000001'"),
                "line 4",
                "it may be 100000 US dollars at most",
            ),
            (
                format!("{entry}input_per_mtok = '1000000000'"),
                "line 4",
                "more than anything costs",
            ),
            (
                format!("{entry}per_request = '1000.1'"),
                "line 4",
                "it may be 1000 US dollars at most",
            ),
            (
                format!("{entry}inputs_per_mtok = '1'"),
                "line 4",
                "inputs_per_mtok",
            ),
            (format!("{entry}from = 'soon'"), "line 4", "soon"),
            (format!("\n{entry}"), "line 2", "neither `input_per_mtok`"),
            (
                "[[price]]\nprovider = 'a'\nmodel = 'a*b'\n".into(),
                "line 1",
                "`a*b`",
            ),
            ("[[price]]\nprovider = 'a'".into(), "line 1", "model"),
            ("price = 1".into(), "line 1", "invalid type"),
            ("[[price]\n".into(), "line 1", ""),
            (
                format!("{entry}input_per_mtok = '1'\n{entry}input_per_mtok = '2'"),
                "line 5",
                "as in line 1",
            ),
            (
                format!("{entry}input_per_mtok = '1'\ntiers = [{{above = 1}}]"),
                "line 1",
                "tier above 1",
            ),
        ];
        for (text, line, word) in cases {
            let error = own("mine.toml", &text).err().unwrap();
            assert!(matches!(error, Error::Config(_)));
            let error = error.to_string();
            assert!(
                error.contains(&format!("mine.toml, {line}: ")),
                "{text}: {error}"
            );
            assert!(error.contains(word), "{text}: {error}");
        }
        let json = "{\"providers\": [\n{\"id\": \"a\", \"hosts\": [], \"models\": [\n{\"id\": \"m\",\n\
                    \"prices\": [{\"input\": -1}]}]}]}";
        let error = own("mine.json", json).err().unwrap().to_string();
        assert!(
            error.contains("mine.json, line 4: provider `a`, model `m`"),
            "{error}"
        );
        let missing = Prices::built_in().with_own(Path::new("/nowhere/prices.toml"));
        let error = missing.err().unwrap().to_string();
        assert!(error.contains("/nowhere/prices.toml"), "{error}");
    }

    #[test]
    fn a_file_that_changes_counts_and_one_that_cannot_be_read_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let write = |amount: &str| {
            let text = format!("[[price]]\nprovider = 'a'\nmodel = 'm'\ninput_per_mtok = {amount}");
            std::fs::write(&path, text).unwrap();
        };
        write("'1'");
        let own = OwnPrices::read(&path).unwrap();
        let input = |table: &Table| {
            let quote = table.own("a", None, "m", noon()).unwrap().unwrap();
            quote.price.rates.input
        };
        let looked_at_again = || input(&own.table_checked_after(Duration::ZERO));
        assert_eq!(looked_at_again(), 1_000_000);
        write("'22'");
        // Not looked at so soon again.
        assert_eq!(input(&own.table()), 1_000_000);
        assert_eq!(looked_at_again(), 22_000_000);
        write("wrong");
        assert_eq!(looked_at_again(), 22_000_000);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(looked_at_again(), 22_000_000);
        // As editors leave it while they save it.
        std::fs::write(&path, "").unwrap();
        assert_eq!(looked_at_again(), 22_000_000);
        write("'3'");
        assert_eq!(looked_at_again(), 3_000_000);
    }
}
