//! `/api/providers`: the providers and the states of their keys.

use std::time::Instant;

use serde_json::{Value, json};

use super::Context;
use super::reply::{self, Answer};
use crate::error::Error;
use crate::providers::{Cancel, HealthView, Kind, ProviderHealth};

pub fn list(context: &Context) -> Answer {
    let providers = context.providers.providers().map(|(name, _)| name);
    let all: Vec<Value> = providers.filter_map(|name| view(context, name)).collect();
    Ok(reply::list(&all, None::<i64>))
}

/// Lists the models of a provider, which shows that it is reached and that its key is valid.
pub fn test(context: &Context, name: &str) -> Answer {
    let kind = context.providers.kind(name);
    let kind = kind.ok_or_else(|| Error::NotFound(format!("provider {name}")))?;
    let began = Instant::now();
    let listed = match kind {
        Kind::Echo => Ok(0),
        _ => context.providers.list_models(name, &Cancel::new()).map(|models| models.len()),
    };
    let latency_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (models, error) = match listed {
        Ok(models) => (Some(models), None),
        Err(error) => (None, Some(error)),
    };
    let ok = error.is_none();
    let result = json!({"ok": ok, "models": models, "error": error, "latencyMs": latency_ms});
    Ok(reply::json(200, &result))
}

fn view(context: &Context, name: &str) -> Option<Value> {
    let (kind, url) = context.providers.server_of(name)?;
    let ProviderHealth { health, keys } = context.providers.health(name)?;
    let keys: Vec<Value> = keys
        .iter()
        .map(|key| {
            let mut view = health_view(&key.health);
            view["name"] = json!(key.name);
            view["weight"] = json!(key.weight);
            view
        })
        .collect();
    let mut view = health_view(&health);
    view["name"] = json!(name);
    view["kind"] = json!(kind);
    view["baseUrl"] = json!(without_user(url));
    view["keys"] = json!(keys);
    Some(view)
}

fn health_view(health: &HealthView) -> Value {
    json!({
        "state": health.state,
        "until": health.until,
        "failures": health.failures,
        "lastError": health.last_error.as_ref().map(|(message, _)| message),
        "lastErrorAt": health.last_error.as_ref().map(|(_, at)| at),
        "lastSuccessAt": health.last_success,
    })
}

/// Returns a URL without user, password and query.
fn without_user(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, expected) in [
            ("http://user:p@ss@h:1/v1?key=k", "http://h:1/v1"),
            ("https://api.openai.com/v1", "https://api.openai.com/v1"),
            ("http://h", "http://h"),
            ("", ""),
        ] {
            assert_eq!(without_user(url), expected);
        }
    }
}
