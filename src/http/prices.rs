//! `/api/prices`: current prices of calls, the price that a ledger row used, and missing prices.

use std::cmp::Reverse;

use serde::Serialize;
use serde_json::value::RawValue;

use super::Context;
use super::reply::{self, Answer};
use super::request::Query;
use crate::error::{Error, Fault};
use crate::listener::Presence;
use crate::prices::{Quote, Rates, StoredPrice, Weekdays};
use crate::store::{ModelNames, Store};
use crate::time::Timestamp;

/// Micro-dollars per million tokens equal pico-dollars per token: six digits after the point.
const PER_MTOK_DIGITS: usize = 6;
/// Pico-dollars per call: twelve digits after the point.
const PER_REQUEST_DIGITS: usize = 12;

/// A price in readable form. Amounts are exact decimals of US dollars.
#[derive(Serialize)]
struct View<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    source: &'a str,
    provider: &'a str,
    model: &'a str,
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daily: Option<(i64, i64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<Weekdays>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    surcharges: Vec<String>,
    usd_per_request: Box<RawValue>,
    usd_per_mtok: PerMtok,
    tiers: Vec<Tier>,
}

#[derive(Serialize)]
struct Tier {
    above: u64,
    usd_per_mtok: PerMtok,
}

#[derive(Serialize)]
struct PerMtok {
    input: Box<RawValue>,
    cache_read: Box<RawValue>,
    cache_write: Box<RawValue>,
    cache_write_1h: Box<RawValue>,
    output: Box<RawValue>,
    reasoning: Box<RawValue>,
}

pub fn get(context: &Context, id: i64) -> Answer {
    view(Some(id), &context.store.price(id)?)
}

/// `GET /api/prices?provider&model`: returns the current price.
pub fn find(context: &Context, mut query: Query) -> Answer {
    let provider: Option<String> = query.take("provider");
    let model: Option<String> = query.take("model");
    query.finish()?;
    let (Some(provider), Some(model)) = (&provider, &model) else {
        let missing = [("provider", &provider), ("model", &model)];
        let missing = missing.iter().filter(|(_, value)| value.is_none());
        return Err(Error::Invalid {
            message: "cannot read the query".into(),
            faults: missing.map(|(name, _)| Fault::new(*name, "is missing")).collect(),
        }
        .into());
    };
    if !context.providers.knows(provider) {
        return Err(Error::NotFound(format!("provider `{provider}`")).into());
    }
    let quote = context.providers.quote(provider, &[model], Timestamp::now());
    let unknown = || Error::NotFound(format!("price of {provider}/{model}"));
    let quote = quote.ok_or_else(unknown)?;
    match quote.text() {
        Some(text) => view(None, text),
        // `echo` is always free.
        None => Ok(reply::json(
            200,
            &View {
                id: None,
                source: "flowledger",
                provider,
                model,
                from: None,
                daily: None,
                days: None,
                surcharges: Vec::new(),
                usd_per_request: decimal(0, PER_REQUEST_DIGITS)?,
                usd_per_mtok: per_mtok(&Rates::default())?,
                tiers: Vec::new(),
            },
        )),
    }
}

/// The price of a model in short, for a short prompt.
#[derive(Serialize)]
pub(super) struct ModelPrice {
    input: Box<RawValue>,
    cached_input: Box<RawValue>,
    cache_write: Box<RawValue>,
    output: Box<RawValue>,
    per: &'static str,
    source: String,
}

pub(super) fn model_price(quote: &Quote) -> Result<ModelPrice, Error> {
    let source = match quote.text() {
        Some(text) => stored(text)?.source,
        // `echo` is always free.
        None => "flowledger".to_owned(),
    };
    let PerMtok { input, cache_read, cache_write, output, .. } = per_mtok(quote.rates(0))?;
    let per = "million tokens";
    Ok(ModelPrice { input, cached_input: cache_read, cache_write, output, per, source })
}

/// The calls of a model whose price is unknown.
#[derive(Serialize)]
struct MissingPrice {
    provider: String,
    model: String,
    calls: u64,
    input_tokens: u64,
    output_tokens: u64,
    last_seen: Timestamp,
}

/// `GET /api/prices/missing`: returns the models that have calls of unknown cost and still no
/// price, most tokens first.
pub fn missing(context: &Context, mut query: Query, client: &Presence) -> Answer {
    let limit = query.take_limit();
    query.finish()?;
    let read = |store: &Store| store.unpriced_models();
    let now = Timestamp::now();
    let mut missing: Vec<MissingPrice> = Vec::new();
    for found in context.heavy_reads.run(&context.store, client, read)? {
        let ModelNames { provider, model, model_asked } = found.names;
        if context.providers.quote(&provider, &[&model, &model_asked], now).is_some() {
            continue;
        }
        // The models that were requested do not matter any more.
        let known = missing.iter_mut().find(|it| it.provider == provider && it.model == model);
        match known {
            Some(known) => {
                known.calls += found.calls;
                known.input_tokens += found.input_tokens;
                known.output_tokens += found.output_tokens;
                known.last_seen = known.last_seen.max(found.last_seen);
            }
            None => missing.push(MissingPrice {
                provider,
                model,
                calls: found.calls,
                input_tokens: found.input_tokens,
                output_tokens: found.output_tokens,
                last_seen: found.last_seen,
            }),
        }
    }
    missing.sort_by_key(|it| Reverse(it.input_tokens.saturating_add(it.output_tokens)));
    missing.truncate(limit);
    Ok(reply::list(&missing, None::<()>))
}

fn view(id: Option<i64>, text: &str) -> Answer {
    let stored = stored(text)?;
    let tiers = stored.tiers.iter().map(|tier| {
        Ok(Tier { above: tier.above, usd_per_mtok: per_mtok(&tier.picousd_per_token)? })
    });
    Ok(reply::json(
        200,
        &View {
            id,
            source: &stored.source,
            provider: &stored.provider,
            model: &stored.model,
            from: stored.from,
            daily: stored.daily,
            days: stored.days,
            surcharges: stored.surcharges.clone(),
            usd_per_request: decimal(stored.request_picousd, PER_REQUEST_DIGITS)?,
            usd_per_mtok: per_mtok(&stored.picousd_per_token)?,
            tiers: tiers.collect::<Result<_, Error>>()?,
        },
    ))
}

fn stored(text: &str) -> Result<StoredPrice, Error> {
    StoredPrice::from_json(text)
        .map_err(|error| Error::internal(format!("cannot read a stored price: {error}")))
}

fn per_mtok(rates: &Rates) -> Result<PerMtok, Error> {
    let amount = |rate| decimal(rate, PER_MTOK_DIGITS);
    Ok(PerMtok {
        input: amount(rates.input)?,
        cache_read: amount(rates.cache_read)?,
        cache_write: amount(rates.cache_write)?,
        cache_write_1h: amount(rates.cache_write_1h)?,
        output: amount(rates.output)?,
        reasoning: amount(rates.reasoning)?,
    })
}

/// Returns a JSON number: `amount` in units of the last of `digits` digits after the point.
fn decimal(amount: u64, digits: usize) -> Result<Box<RawValue>, Error> {
    let all = format!("{amount:0>width$}", width = digits + 1);
    let (whole, fraction) = all.split_at(all.len() - digits);
    let text = match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    };
    RawValue::from_string(text).map_err(|error| Error::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_decimals() {
        let text = |amount, digits| decimal(amount, digits).unwrap().get().to_owned();
        assert_eq!(text(0, 6), "0");
        assert_eq!(text(150_000, 6), "0.15");
        assert_eq!(text(1, 12), "0.000000000001");
        assert_eq!(text(12_500_000, 6), "12.5");
        assert_eq!(text(1_000_000_000_000_000, 6), "1000000000");
    }
}
