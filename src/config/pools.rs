//! Pools of keys, aliases with several models, and the check that each of them can serve.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::file::{FileKey, FileProvider, FileTarget};
use super::providers::field_error;
use super::{Config, Variable, config_error};
use crate::error::{Error, Result};
use crate::gateway::{Aliases, Hours, TARGETS_MAX, Target, TargetRule};
use crate::providers::{Kind, POOL_KEYS_MAX, PoolKey, ProviderConfig};
use crate::secret::Secret;

const WEIGHT_MAX: u32 = 1_000_000;
/// Clients of Anthropic itself may send their own login.
const ANTHROPIC: (&str, &str) = ("anthropic", "https://api.anthropic.com");

/// Returns the keys of all providers with `api_keys`.
pub(super) fn keys(
    providers: &BTreeMap<String, FileProvider>,
    directory: &Path,
    variable: Variable<'_>,
) -> Result<BTreeMap<String, Vec<PoolKey>>> {
    let mut pools = BTreeMap::new();
    for (name, file) in providers {
        let Some(entries) = &file.api_keys else {
            continue;
        };
        let fault = |message: &str| Err(field_error(name, "api_keys", message));
        if file.api_key.is_some() || file.api_key_env.is_some() || file.api_key_file.is_some() {
            return fault("set only one of api_key, api_key_env, api_key_file and api_keys");
        }
        if !(1..=POOL_KEYS_MAX).contains(&entries.len()) {
            return fault(&format!("must have 1 to {POOL_KEYS_MAX} keys"));
        }
        let mut keys: Vec<PoolKey> = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let key = key(entry, at + 1, directory, variable)
                .map_err(|message| field_error(name, "api_keys", &message))?;
            let is_same = |other: &&PoolKey| other.key.is_some() && other.key == key.key;
            if let Some(other) = keys.iter().find(is_same) {
                return fault(&format!("{} and {} are the same key", other.name, key.name));
            }
            keys.push(key);
        }
        if keys.iter().all(|key| key.weight == 0) {
            return fault("no key has a weight above 0");
        }
        pools.insert(name.clone(), keys);
    }
    Ok(pools)
}

fn key(
    entry: &FileKey,
    number: usize,
    directory: &Path,
    variable: Variable<'_>,
) -> std::result::Result<PoolKey, String> {
    let (name, key) = match (&entry.env, &entry.file, &entry.key) {
        (Some(env), None, None) => (env.clone(), variable(env).map(Secret::new)),
        (None, Some(file), None) => {
            let path = directory.join(file);
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            (file.display().to_string(), Some(Secret::new(text.trim())))
        }
        (None, None, Some(key)) => (format!("#{number}"), Some(key.clone())),
        _ => return Err(format!("key #{number} must have one of env, file and key")),
    };
    if key.as_ref().is_some_and(|key| key.expose().is_empty()) {
        return Err(format!("key #{number} is empty"));
    }
    let weight = entry.weight.unwrap_or(1);
    check_weight(weight).map_err(|message| format!("key #{number}: {message}"))?;
    Ok(PoolKey { name, key, weight })
}

fn check_weight(weight: u32) -> std::result::Result<(), String> {
    if weight <= WEIGHT_MAX {
        return Ok(());
    }
    Err(format!("weight must be a whole number from 0 to {WEIGHT_MAX}"))
}

/// Returns the targets of each alias, and the rules of aliases that have any.
pub(super) fn aliases(
    file: BTreeMap<String, toml::Value>,
    providers: &BTreeMap<String, ProviderConfig>,
) -> Result<(Aliases, BTreeMap<String, Vec<TargetRule>>)> {
    let (mut aliases, mut all_rules) = (Aliases::new(), BTreeMap::new());
    for (alias, value) in file {
        let entries = match value {
            toml::Value::Array(entries) => entries,
            one => vec![one],
        };
        let fault = |message: String| config_error(format!("aliases.{alias}: {message}"));
        if !(1..=TARGETS_MAX).contains(&entries.len()) {
            return Err(fault(format!("must name 1 to {TARGETS_MAX} models")));
        }
        let has_rules = entries.iter().any(toml::Value::is_table);
        let read = entries.into_iter().map(|entry| target(entry, providers).map_err(fault));
        let (targets, rules): (Vec<Target>, Vec<TargetRule>) =
            read.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        if rules.iter().all(|rule| rule.weight == Some(0)) {
            return Err(fault("no model has a weight above 0".to_owned()));
        }
        if has_rules {
            all_rules.insert(alias.clone(), rules);
        }
        aliases.insert(alias, targets);
    }
    Ok((aliases, all_rules))
}

fn target(
    entry: toml::Value,
    providers: &BTreeMap<String, ProviderConfig>,
) -> std::result::Result<(Target, TargetRule), String> {
    let entry = match entry {
        toml::Value::String(model) => FileTarget { model, weight: None, hours: None, zone: None },
        table @ toml::Value::Table(_) => table.try_into().map_err(|error: toml::de::Error| {
            format!("a model is a string or a table such as {{ model = \"openai/gpt-4o-mini\", weight = 80 }}: {}", error.message())
        })?,
        other => {
            return Err(format!("a model must be a string or a table, not {}", other.type_str()));
        }
    };
    let target = match entry.model.split_once('/') {
        Some((provider, model)) if providers.contains_key(provider) && !model.is_empty() => {
            Target { provider: provider.to_owned(), model: model.to_owned() }
        }
        _ => {
            return Err(format!(
                "`{}` is not PROVIDER/MODEL with a configured provider, such as \
                 openai/gpt-4o-mini",
                entry.model
            ));
        }
    };
    let hours = match (&entry.hours, &entry.zone) {
        (Some(hours), zone) => Some(Hours::parse(hours, zone.as_deref())?),
        (None, Some(_)) => return Err("`zone` needs `hours`".to_owned()),
        (None, None) => None,
    };
    entry.weight.map_or(Ok(()), check_weight)?;
    Ok((target, TargetRule { weight: entry.weight, hours }))
}

/// Refuses pools without any key, and aliases without any usable model.
pub(super) fn check(config: &Config) -> Result<()> {
    let passes_key = |provider: &str| {
        config.gateway.policies.get(provider).is_some_and(|policy| policy.pass_through_key)
    };
    for (name, keys) in &config.pools {
        if !passes_key(name) && !keys.iter().any(PoolKey::is_usable) {
            let names: Vec<&str> =
                keys.iter().filter(|key| key.weight > 0).map(|key| key.name.as_str()).collect();
            let message = format!("no key was found; set {}", names.join(" or "));
            return Err(field_error(name, "api_keys", &message));
        }
    }
    let is_usable = |target: &Target| {
        let Some(provider) = config.providers.get(&target.provider) else {
            return true;
        };
        let has_key =
            provider.api_key.as_ref().is_some_and(|key: &Secret| !key.expose().is_empty());
        let (name, url) = ANTHROPIC;
        let takes_login = provider.kind == Kind::Anthropic
            && (target.provider == name || provider.base_url.starts_with(url));
        has_key
            || provider.missing_key_hint.is_none()
            || provider.kind == Kind::Echo
            || takes_login
            || passes_key(&target.provider)
    };
    for (alias, targets) in &config.gateway.aliases {
        let rules = config.gateway.alias_rules.get(alias);
        let has_weight = |at: usize| {
            rules.and_then(|rules| rules.get(at)).is_none_or(|rule| rule.weight != Some(0))
        };
        let used = targets.iter().enumerate().filter(|(at, _)| has_weight(*at));
        let used: Vec<&Target> = used.map(|(_, target)| target).collect();
        if !used.iter().any(|target| is_usable(target)) {
            return Err(unusable(alias, &used, config));
        }
    }
    Ok(())
}

fn unusable(alias: &str, targets: &[&Target], config: &Config) -> Error {
    let mut reasons: Vec<String> = Vec::new();
    for target in targets {
        let provider = config.providers.get(&target.provider);
        let hint = provider.and_then(|it| it.missing_key_hint.as_deref()).unwrap_or_default();
        let reason = format!("the API key of {} is missing ({hint})", target.provider);
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    config_error(format!("aliases.{alias}: no model can be used: {}", reasons.join("; ")))
}
