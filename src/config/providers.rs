//! Providers: the well-known ones, and those from the configuration file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::file::{FileProvider, OnDisconnect};
use super::{Variable, config_error, network};
use crate::error::{Error, Result};
use crate::gateway::ClientPolicy;
use crate::providers::{
    ApiFormat, Kind, Network, PoolKey, ProviderConfig, REQUESTS_PER_MINUTE_MAX, Rate,
};
use crate::secret::Secret;
use crate::translation::Api;

/// A provider that needs no configuration.
struct WellKnown {
    name: &'static str,
    kind: Kind,
    base_url: &'static str,
    /// The environment variables are `PREFIX_API_KEY` and `PREFIX_BASE_URL`.
    prefix: &'static str,
    /// Another common variable for the key.
    other_key: Option<&'static str>,
    needs_key: bool,
    /// True if the server supports the option that ends a streamed answer with its usage.
    stream_usage: bool,
}

const fn well_known(name: &'static str, base_url: &'static str, prefix: &'static str) -> WellKnown {
    WellKnown {
        name,
        kind: Kind::OpenAi,
        base_url,
        prefix,
        other_key: None,
        needs_key: true,
        stream_usage: true,
    }
}

/// Addresses come from the providers' documentation.
const WELL_KNOWN: &[WellKnown] = &[
    well_known("openai", "https://api.openai.com/v1", "OPENAI"),
    WellKnown {
        kind: Kind::Anthropic,
        ..well_known("anthropic", "https://api.anthropic.com", "ANTHROPIC")
    },
    // Google documents both names: <https://ai.google.dev/gemini-api/docs/api-key>.
    WellKnown {
        kind: Kind::Gemini,
        other_key: Some("GOOGLE_API_KEY"),
        ..well_known("gemini", "https://generativelanguage.googleapis.com", "GEMINI")
    },
    well_known("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER"),
    well_known("groq", "https://api.groq.com/openai/v1", "GROQ"),
    // Rejects the option as unknown, and sends the usage without it:
    // <https://github.com/openai/openai-agents-python/issues/442>.
    WellKnown {
        stream_usage: false,
        ..well_known("mistral", "https://api.mistral.ai/v1", "MISTRAL")
    },
    well_known("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK"),
    well_known("xai", "https://api.x.ai/v1", "XAI"),
    well_known("together", "https://api.together.xyz/v1", "TOGETHER"),
    WellKnown {
        kind: Kind::Ollama,
        needs_key: false,
        ..well_known("ollama", "http://127.0.0.1:11434", "OLLAMA")
    },
    WellKnown { kind: Kind::Echo, needs_key: false, ..well_known("echo", "", "ECHO") },
];

/// Returns the well-known providers with the file's changes, and the file's own providers.
pub(super) fn all(
    from_file: BTreeMap<String, FileProvider>,
    pools: &BTreeMap<String, Vec<PoolKey>>,
    network: &Network,
    directory: &Path,
    variable: Variable<'_>,
) -> Result<BTreeMap<String, ProviderConfig>> {
    let known = WELL_KNOWN.iter();
    let mut providers: BTreeMap<String, ProviderConfig> = known
        .map(|known| (known.name.to_owned(), known.provider(network.clone(), variable)))
        .collect();
    for (name, file) in from_file {
        let known = providers.remove(&name);
        let network = network::of_provider(&file, &name, network, directory)?;
        let mut provider = provider(file, &name, known, network, directory, variable)?;
        if let Some(pool) = pools.get(&name) {
            provider.api_key = pool.iter().find(|it| it.is_usable()).and_then(|it| it.key.clone());
            let names: Vec<&str> = pool.iter().map(|key| key.name.as_str()).collect();
            let names = names.join(" or ");
            provider.missing_key_hint =
                Some(format!("set {names} (api_keys of [providers.{name}])"));
        }
        providers.insert(name, provider);
    }
    Ok(providers)
}

/// Returns the name of each provider's key: of its variable or its file.
pub(super) fn key_names(
    from_file: &BTreeMap<String, FileProvider>,
    variable: Variable<'_>,
) -> BTreeMap<String, String> {
    let known = WELL_KNOWN.iter().map(|known| {
        let key_variable = format!("{}_API_KEY", known.prefix);
        let other = known.other_key.filter(|name| variable(name).is_some());
        let name = match other.filter(|_| variable(&key_variable).is_none()) {
            Some(other) => other.to_owned(),
            None => key_variable,
        };
        (known.name.to_owned(), name)
    });
    let mut names: BTreeMap<String, String> = known.collect();
    for (provider, file) in from_file {
        let file_name = file.api_key_file.as_ref().map(|path| path.display().to_string());
        if let Some(name) = file.api_key_env.clone().or(file_name) {
            names.insert(provider.clone(), name);
        } else if file.api_key.is_some() {
            names.remove(provider);
        }
    }
    names
}

/// Returns the gateway's policy for each provider.
pub(super) fn client_policies(
    providers: &BTreeMap<String, FileProvider>,
) -> BTreeMap<String, ClientPolicy> {
    let policy = |file: &FileProvider| {
        let mut policy =
            ClientPolicy { pass_through_key: file.pass_through_key, ..ClientPolicy::default() };
        if let OnDisconnect::Abort = file.on_disconnect {
            policy.drain_max = None;
        }
        policy
    };
    let all = providers.iter();
    all.map(|(name, file)| (name.clone(), policy(file))).collect()
}

pub(super) fn rates(providers: &BTreeMap<String, FileProvider>) -> Result<BTreeMap<String, Rate>> {
    let rate = |(name, file): (&String, &FileProvider)| {
        let requests = file.requests_per_minute;
        if requests.is_some_and(|count| !(1..=REQUESTS_PER_MINUTE_MAX).contains(&count)) {
            let message = format!("must be a whole number from 1 to {REQUESTS_PER_MINUTE_MAX}");
            return Err(field_error(name, "requests_per_minute", &message));
        }
        if file.tokens_per_minute == Some(0) {
            return Err(field_error(name, "tokens_per_minute", "must be at least 1"));
        }
        let rate = Rate {
            requests_per_minute: requests,
            tokens_per_minute: file.tokens_per_minute,
            ..Rate::default()
        };
        Ok((name.clone(), rate))
    };
    providers.iter().map(rate).collect()
}

pub(super) fn field_error(provider: &str, key: &str, message: &str) -> Error {
    config_error(format!("providers.{provider}.{key}: {message}"))
}

impl WellKnown {
    fn provider(&self, network: Network, variable: Variable<'_>) -> ProviderConfig {
        let key_variable = format!("{}_API_KEY", self.prefix);
        let key = variable(&key_variable).or_else(|| self.other_key.and_then(variable));
        let host = || match self.kind {
            Kind::Ollama => variable("OLLAMA_HOST").map(|host| ollama_url(&host)),
            _ => None,
        };
        ProviderConfig {
            kind: self.kind,
            base_url: variable(&format!("{}_BASE_URL", self.prefix))
                .or_else(host)
                .unwrap_or_else(|| self.base_url.to_owned()),
            api_key: key.map(Secret::new),
            missing_key_hint: self.needs_key.then(|| {
                format!(
                    "set {key_variable}, or api_key_env in [providers.{}] of the configuration",
                    self.name
                )
            }),
            stream_usage: self.stream_usage,
            trust_stated_cost: None,
            apis: Vec::new(),
            network,
        }
    }
}

/// Used if `OLLAMA_HOST` has no port.
const OLLAMA_PORT: &str = "11434";

/// Converts `OLLAMA_HOST`, which Ollama's own programs read as `[scheme://]host[:port][/path]` with
/// a default for each part: <https://github.com/ollama/ollama/blob/main/envconfig/config.go>. It is
/// the server's listening address, which may be one that clients cannot connect to.
fn ollama_url(host: &str) -> String {
    let host = host.trim().trim_matches(['"', '\'']);
    let (scheme, rest) = host.split_once("://").unwrap_or(("", host));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let is_port = |port: &&str| port.parse::<u16>().is_ok();
    let (name, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address without a port are not separators.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
            (name, Some(port).filter(is_port))
        }
        _ => (authority, None),
    };
    let name = match name.trim_matches(['[', ']']) {
        "" | "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        name if name.contains(':') => format!("[{name}]"),
        name => name.to_owned(),
    };
    let default_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => OLLAMA_PORT,
    };
    let scheme = if scheme == "https" { "https" } else { "http" };
    let port = port.unwrap_or(default_port);
    format!("{scheme}://{name}:{port}{}", path.trim_end_matches('/'))
}

/// Fills in a provider of the file from the well-known one of the same name.
fn provider(
    file: FileProvider,
    name: &str,
    known: Option<ProviderConfig>,
    network: Network,
    directory: &Path,
    variable: Variable<'_>,
) -> Result<ProviderConfig> {
    let Some(kind) = file.kind.or(known.as_ref().map(|known| known.kind)) else {
        let message = "is missing; expected one of openai, anthropic, gemini, ollama, echo";
        return Err(field_error(name, "kind", message));
    };
    let known_url = known.as_ref().map(|known| known_url(known, kind));
    let base_url = file.base_url.clone().or(known_url).unwrap_or_default();
    let is_url = base_url.starts_with("https://") || base_url.starts_with("http://");
    if base_url.is_empty() && kind != Kind::Echo {
        let message = "is missing; set a URL such as https://api.openai.com/v1";
        return Err(field_error(name, "base_url", message));
    }
    if !base_url.is_empty() && !is_url {
        let message = format!("`{base_url}` must start with https:// or http://");
        return Err(field_error(name, "base_url", &message));
    }
    let known_stream_usage = known.as_ref().is_none_or(|known| known.stream_usage);
    let stream_usage = file.stream_usage.unwrap_or(known_stream_usage);
    let trust_stated_cost = file.trust_stated_cost;
    let apis = apis(&file.apis, name, kind)?;
    let (api_key, missing_key_hint) = key(file, name, known, directory, variable)?;
    Ok(ProviderConfig {
        kind,
        base_url,
        api_key,
        missing_key_hint,
        stream_usage,
        trust_stated_cost,
        apis,
        network,
    })
}

/// Checks the APIs of a provider.
fn apis(apis: &[Api], name: &str, kind: Kind) -> Result<Vec<Api>> {
    let is_supported = |api: &Api| ApiFormat::of(*api, false).is_supported_by(kind);
    let Some(api) = apis.iter().find(|api| !is_supported(api)) else {
        return Ok(apis.to_vec());
    };
    let all = [Api::Chat, Api::Responses, Api::Messages, Api::Gemini];
    let known: Vec<&str> = all.iter().filter(|api| is_supported(api)).map(|it| it.name()).collect();
    let message =
        format!("`{}` is not possible with this kind; expected {}", api.name(), known.join(" or "));
    Err(field_error(name, "apis", &message))
}

/// Ollama serves its OpenAI-compatible API below its own.
fn known_url(known: &ProviderConfig, kind: Kind) -> String {
    let url = known.base_url.trim_end_matches('/');
    if known.kind == Kind::Ollama && kind == Kind::OpenAi && !url.ends_with("/v1") {
        return format!("{url}/v1");
    }
    known.base_url.clone()
}

/// Returns the key, and a hint if it is missing. A server that needs no key, such as a local one,
/// has neither.
fn key(
    file: FileProvider,
    name: &str,
    known: Option<ProviderConfig>,
    directory: &Path,
    variable: Variable<'_>,
) -> Result<(Option<Secret>, Option<String>)> {
    Ok(match (file.api_key, file.api_key_env, file.api_key_file) {
        (Some(key), None, None) => (Some(key), None),
        (None, Some(env_name), None) => {
            let hint = format!("set {env_name} (api_key_env of [providers.{name}])");
            (variable(&env_name).map(Secret::new), Some(hint))
        }
        (None, None, Some(file)) => {
            let path = directory.join(file);
            let text = fs::read_to_string(&path).map_err(|error| {
                let message = format!("cannot read {}: {error}", path.display());
                field_error(name, "api_key_file", &message)
            })?;
            (Some(Secret::new(text.trim())), None)
        }
        (None, None, None) => {
            known.map_or((None, None), |known| (known.api_key, known.missing_key_hint))
        }
        _ => {
            let message = "set only one of api_key, api_key_env and api_key_file";
            return Err(field_error(name, "api_key", message));
        }
    })
}
