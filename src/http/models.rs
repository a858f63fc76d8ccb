//! `GET /api/models`: the models that were called or can be, with their prices.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Context;
use super::prices::{ModelPrice, model_price};
use super::reply::{self, Answer};
use super::request::Query;
use crate::error::Result;
use crate::listener::Presence;
use crate::store::{Store, UsedModel};
use crate::time::Timestamp;

const MODELS_MAX: usize = 500;
/// The age of calls that count, in milliseconds.
const AGE_MAX_MS: i64 = 90 * 24 * 60 * 60 * 1000;

#[derive(Serialize)]
struct ModelView {
    provider: String,
    model: String,
    calls: u64,
    last_seen: Option<Timestamp>,
    price: Option<ModelPrice>,
    /// The reason why the price is unknown.
    reason: Option<String>,
}

/// Returns the called models, most calls first, then those of aliases, then those that the price
/// table has for usable providers.
pub fn list(context: &Context, query: Query, client: &Presence) -> Answer {
    query.finish()?;
    let now = Timestamp::now();
    let from = Timestamp(now.0.saturating_sub(AGE_MAX_MS));
    let read = |store: &Store| store.used_models(from, MODELS_MAX);
    let used = context.heavy_reads.run(&context.store, client, read)?;
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut models = Vec::new();
    for UsedModel { provider, model, calls, last_seen } in used {
        known.insert((provider.clone(), model.clone()));
        models.push(view(context, (provider, model), (calls, Some(last_seen)), now)?);
    }
    for name in possible(context) {
        if models.len() == MODELS_MAX {
            break;
        }
        if known.insert(name.clone()) {
            models.push(view(context, name, (0, None), now)?);
        }
    }
    Ok(reply::list(&models, None::<()>))
}

/// Returns the models of aliases and of the price table that can be called.
fn possible(context: &Context) -> impl Iterator<Item = (String, String)> + '_ {
    let is_usable = |provider: &str| context.providers.check(provider).is_ok();
    let of_aliases = context.settings.alias_models.iter().cloned();
    let of_aliases = of_aliases.filter(move |(provider, _)| is_usable(provider));
    let usable = context.providers.providers().filter(move |(name, _)| is_usable(name));
    let of_table = usable.flat_map(|(name, _)| {
        let models = context.providers.priced_models(name).into_iter();
        models.map(move |model| (name.to_owned(), model.to_owned()))
    });
    of_aliases.chain(of_table)
}

fn view(
    context: &Context,
    (provider, model): (String, String),
    (calls, last_seen): (u64, Option<Timestamp>),
    now: Timestamp,
) -> Result<ModelView> {
    let price = match context.providers.quote(&provider, &[&model], now) {
        Some(quote) => Some(model_price(&quote)?),
        None => None,
    };
    let reason = match price {
        Some(_) => None,
        None if !context.providers.knows(&provider) => {
            Some(format!("provider {provider} is not in the configuration any more"))
        }
        None => Some("the price table has no price for this model".to_owned()),
    };
    Ok(ModelView { provider, model, calls, last_seen, price, reason })
}
