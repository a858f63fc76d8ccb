//! Settings: flags and environment variables (given by `main`), then a TOML file, then defaults.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::engine;
use crate::error::{Error, Result};
use crate::gateway::{self, Aliases, TARGETS_MAX, Target, Toward};
use crate::journal::Retention;
use crate::providers::{FetchRules, Kind, ProviderConfig, REQUESTS_PER_MINUTE_MAX, Rate, Timeouts};
use crate::secret::Secret;
use crate::websocket::Pings;

/// Where the server listens unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7700";

/// As many as this server has memory and threads for; a gigabyte and then some.
const ACTIVE_RUNS_MAX: usize = 10_000;
/// About a hundred megabytes of names.
const QUEUED_RUNS_MAX: usize = 1_000_000;
/// Their descriptors are among the 256 that the listener keeps back.
const CALLS_MAX: usize = 100;

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address of the one port.
    pub listen: SocketAddr,
    /// The data directory.
    pub data: PathBuf,
    /// Asked for at every request but for the page's own files.
    pub token: Option<Secret>,
    /// Names that the server answers to, beside `localhost` and addresses.
    pub allow_hosts: Vec<String>,
    /// Origins of other pages that may use the API.
    pub allow_origins: Vec<String>,
    /// How many connections one address may have at a time; see [`crate::listener::Rules`].
    pub connections_per_address: Option<usize>,
    /// How much is done at a time.
    pub engine: engine::Limits,
    /// Providers by name.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// How fast calls may follow each other, by provider.
    pub rates: BTreeMap<String, Rate>,
    /// The user's own prices, before the built-in ones.
    pub prices: Option<PathBuf>,
    /// The gateway for clients.
    pub gateway: gateway::Settings,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// How long runs that are over are kept.
    pub retention: Retention,
    /// Where `http` nodes may send requests.
    pub fetch_rules: FetchRules,
    /// When WebSocket clients count as gone.
    pub pings: Pings,
}

/// What flags and environment variables say; what they leave open comes from the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<String>,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--prices`.
    pub prices: Option<PathBuf>,
    /// `--token`.
    pub token: Option<String>,
    /// `--allow-host`.
    pub allow_hosts: Vec<String>,
    /// `--allow-origin`.
    pub allow_origins: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<String>,
    data: Option<PathBuf>,
    prices: Option<PathBuf>,
    token: Option<String>,
    #[serde(default)]
    allow_hosts: Vec<String>,
    #[serde(default)]
    allow_origins: Vec<String>,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    retention: FileRetention,
    #[serde(default)]
    http: FileHttp,
    #[serde(default)]
    timeouts: FileTimeouts,
    #[serde(default)]
    websocket: FileWebsocket,
    #[serde(default)]
    aliases: BTreeMap<String, OneOrMore>,
    #[serde(default)]
    providers: BTreeMap<String, FileProvider>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// What becomes of a call whose client has left.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnDisconnect {
    Drain,
    Abort,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    connections_per_address: Option<NonZeroUsize>,
    active_runs: Option<usize>,
    queued_runs: Option<usize>,
    calls: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHttp {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    private: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRetention {
    runs: Option<u64>,
    run_days: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTimeouts {
    connect_s: Option<f64>,
    first_byte_s: Option<f64>,
    total_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWebsocket {
    ping_interval_s: Option<f64>,
    pong_timeout_s: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProvider {
    kind: Option<Kind>,
    base_url: Option<String>,
    api_key: Option<Secret>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    on_disconnect: Option<OnDisconnect>,
    #[serde(default)]
    pass_through_key: bool,
    stream_usage: Option<bool>,
}

/// A provider that is there without being configured.
struct WellKnown {
    name: &'static str,
    kind: Kind,
    base_url: &'static str,
    /// Its variables are `PREFIX_API_KEY` and `PREFIX_BASE_URL`.
    prefix: &'static str,
    /// Another usual name of the variable with the key.
    other_key: Option<&'static str>,
    needs_key: bool,
    /// Whether it takes the option that has a streamed answer end with its usage.
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

/// Addresses as the providers' own documentation gives them.
const WELL_KNOWN: &[WellKnown] = &[
    well_known("openai", "https://api.openai.com/v1", "OPENAI"),
    WellKnown {
        kind: Kind::Anthropic,
        ..well_known("anthropic", "https://api.anthropic.com", "ANTHROPIC")
    },
    // Both names are Google's: <https://ai.google.dev/gemini-api/docs/api-key>.
    WellKnown {
        kind: Kind::Gemini,
        other_key: Some("GOOGLE_API_KEY"),
        ..well_known(
            "gemini",
            "https://generativelanguage.googleapis.com",
            "GEMINI",
        )
    },
    well_known("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER"),
    well_known("groq", "https://api.groq.com/openai/v1", "GROQ"),
    // Refuses the option as unknown, and gives the usage without:
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
    WellKnown {
        kind: Kind::Echo,
        needs_key: false,
        ..well_known("echo", "", "ECHO")
    },
];

impl Config {
    /// Puts all settings together and checks them.
    ///
    /// # Errors
    /// [`Error::Config`] that names the setting and says what would be right.
    pub fn load(overrides: Overrides) -> Result<Self> {
        Self::from_sources(overrides, &|name| {
            env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    fn from_sources(given: Overrides, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let file = given
            .config
            .as_deref()
            .map(read_file)
            .transpose()?
            .unwrap_or_default();
        let beside = given
            .config
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(Path::new("."));
        let listen = given
            .listen
            .or(file.listen)
            .unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let toward = toward(&file.providers);
        let rates = rates(&file.providers)?;
        let providers = providers(file.providers, beside, variable)?;
        let gateway = gateway::Settings {
            aliases: aliases(&file.aliases, &providers)?,
            toward,
        };
        Ok(Self {
            listen: listen.parse().map_err(|_| {
                wrong(format!(
                    "listen: `{listen}` is not an address with a port, such as {LISTEN_DEFAULT}"
                ))
            })?,
            data: given
                .data
                .or(file.data)
                .unwrap_or_else(|| default_data_dir(variable)),
            token: given.token.or(file.token).map(token).transpose()?,
            allow_hosts: either(given.allow_hosts, file.allow_hosts),
            allow_origins: origins(either(given.allow_origins, file.allow_origins))?,
            connections_per_address: file.limits.connections_per_address.map(NonZeroUsize::get),
            engine: engine_limits(&file.limits)?,
            rates,
            prices: given
                .prices
                .or(file.prices.map(|prices| beside.join(prices))),
            providers,
            gateway,
            timeouts: timeouts(&file.timeouts)?,
            retention: retention(&file.retention)?,
            fetch_rules: FetchRules {
                hosts: file.http.hosts,
                private: file.http.private,
            },
            pings: pings(&file.websocket)?,
        })
    }

    /// Whether serving is safe: other machines are let in with a token only.
    ///
    /// # Errors
    /// [`Error::Config`] that says what to do.
    pub fn check_exposure(&self) -> Result<()> {
        if self.token.is_some() || self.listen.ip().is_loopback() {
            return Ok(());
        }
        Err(wrong(format!(
            "listening on {} lets other machines in; give a token (FLOWLEDGER_TOKEN or --token), \
             or listen on {LISTEN_DEFAULT}",
            self.listen
        )))
    }
}

fn engine_limits(file: &FileLimits) -> Result<engine::Limits> {
    let default = engine::Limits::default();
    Ok(engine::Limits {
        active_runs: within(
            "active_runs",
            file.active_runs,
            default.active_runs,
            1..=ACTIVE_RUNS_MAX,
        )?,
        queued_runs: within(
            "queued_runs",
            file.queued_runs,
            default.queued_runs,
            0..=QUEUED_RUNS_MAX,
        )?,
        calls: within("calls", file.calls, default.calls, 1..=CALLS_MAX)?,
    })
}

fn within(
    name: &str,
    given: Option<usize>,
    default: usize,
    range: RangeInclusive<usize>,
) -> Result<usize> {
    let value = given.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = range.into_inner();
    Err(wrong(format!(
        "limits.{name}: {value} is not a number from {least} to {most}"
    )))
}

fn origins(origins: Vec<String>) -> Result<Vec<String>> {
    match origins
        .iter()
        .find(|origin| !origin.contains("://") || origin.ends_with('/'))
    {
        None => Ok(origins),
        Some(odd) => Err(wrong(format!(
            "allow_origins: `{odd}` is not an origin, such as https://example.org"
        ))),
    }
}

fn wrong(message: String) -> Error {
    Error::Config(message)
}

fn read_file(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).map_err(Error::io(format!(
        "the configuration {} cannot be read",
        path.display()
    )))?;
    // The message of a TOML error quotes the line, which may hold a key.
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let before = error
            .span()
            .and_then(|span| text.get(..span.start))
            .unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        wrong(format!(
            "{}, line {line}: {}",
            path.display(),
            error.message()
        ))
    })
}

fn either(given: Vec<String>, file: Vec<String>) -> Vec<String> {
    if given.is_empty() { file } else { given }
}

/// The user's own data, where the XDG base directory specification wants it.
fn default_data_dir(variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let base = variable("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/share")));
    base.map_or_else(
        || PathBuf::from("flowledger-data"),
        |base| base.join("flowledger"),
    )
}

fn token(text: String) -> Result<Secret> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            "token: must be visible ASCII characters without spaces".into(),
        ));
    }
    Ok(Secret::new(text))
}

/// A number of seconds above 0, or the default where there is none.
fn seconds(name: &str, value: Option<f64>, default: Duration) -> Result<Duration> {
    let Some(value) = value else {
        return Ok(default);
    };
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| {
            wrong(format!(
                "{name}: `{value}` is not a number of seconds above 0"
            ))
        })
}

fn timeouts(file: &FileTimeouts) -> Result<Timeouts> {
    let default = Timeouts::default();
    Ok(Timeouts {
        connect: seconds("timeouts.connect_s", file.connect_s, default.connect)?,
        first_byte: seconds(
            "timeouts.first_byte_s",
            file.first_byte_s,
            default.first_byte,
        )?,
        total: seconds("timeouts.total_s", file.total_s, default.total)?,
    })
}

fn retention(file: &FileRetention) -> Result<Retention> {
    const DAY_S: f64 = 24.0 * 60.0 * 60.0;
    let default = Retention::default();
    let age = file.run_days.map(|days| days * DAY_S);
    Ok(Retention {
        runs: file.runs.unwrap_or(default.runs),
        run_age: seconds("retention.run_days", age, default.run_age)?,
    })
}

fn pings(file: &FileWebsocket) -> Result<Pings> {
    let default = Pings::default();
    Ok(Pings {
        interval: seconds(
            "websocket.ping_interval_s",
            file.ping_interval_s,
            default.interval,
        )?,
        timeout: seconds(
            "websocket.pong_timeout_s",
            file.pong_timeout_s,
            default.timeout,
        )?,
    })
}

/// How providers are used for clients of the gateway.
fn toward(providers: &BTreeMap<String, FileProvider>) -> BTreeMap<String, Toward> {
    let all = providers.iter().map(|(name, file)| {
        let mut toward = Toward {
            pass_through_key: file.pass_through_key,
            ..Toward::default()
        };
        if let Some(OnDisconnect::Abort) = file.on_disconnect {
            toward.drain_max = None;
        }
        (name.clone(), toward)
    });
    all.collect()
}

fn aliases(
    file: &BTreeMap<String, OneOrMore>,
    providers: &BTreeMap<String, ProviderConfig>,
) -> Result<Aliases> {
    let target = |alias: &str, text: &str| {
        let found = text
            .split_once('/')
            .filter(|(provider, model)| providers.contains_key(*provider) && !model.is_empty());
        let (provider, model) = found.ok_or_else(|| {
            wrong(format!(
                "aliases.{alias}: `{text}` is not PROVIDER/MODEL with a provider that there is, \
                 such as openai/gpt-4o-mini"
            ))
        })?;
        Ok(Target {
            provider: provider.to_owned(),
            model: model.to_owned(),
        })
    };
    let all = file.iter().map(|(alias, given)| {
        let texts = match given {
            OneOrMore::One(text) => std::slice::from_ref(text),
            OneOrMore::More(texts) => texts.as_slice(),
        };
        if !(1..=TARGETS_MAX).contains(&texts.len()) {
            return Err(wrong(format!(
                "aliases.{alias}: must name 1 to {TARGETS_MAX} models"
            )));
        }
        let targets = texts.iter().map(|text| target(alias, text));
        Ok((alias.clone(), targets.collect::<Result<_>>()?))
    });
    all.collect()
}

fn providers(
    from_file: BTreeMap<String, FileProvider>,
    beside: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, ProviderConfig>> {
    let mut providers: BTreeMap<String, ProviderConfig> = WELL_KNOWN
        .iter()
        .map(|known| (known.name.to_owned(), known.provider(variable)))
        .collect();
    for (name, file) in from_file {
        let known = providers.remove(&name);
        providers.insert(name.clone(), file.provider(&name, known, beside, variable)?);
    }
    Ok(providers)
}

fn rates(from_file: &BTreeMap<String, FileProvider>) -> Result<BTreeMap<String, Rate>> {
    let rate = |(name, file): (&String, &FileProvider)| {
        let field = |key: &str| format!("providers.{name}.{key}");
        if file
            .requests_per_minute
            .is_some_and(|count| !(1..=REQUESTS_PER_MINUTE_MAX).contains(&count))
        {
            return Err(wrong(format!(
                "{}: must be a number from 1 to {REQUESTS_PER_MINUTE_MAX}",
                field("requests_per_minute")
            )));
        }
        if file.tokens_per_minute == Some(0) {
            let field = field("tokens_per_minute");
            return Err(wrong(format!("{field}: must be at least 1")));
        }
        let rate = Rate {
            requests_per_minute: file.requests_per_minute,
            tokens_per_minute: file.tokens_per_minute,
            ..Rate::default()
        };
        Ok((name.clone(), rate))
    };
    from_file.iter().map(rate).collect()
}

impl WellKnown {
    fn provider(&self, variable: &dyn Fn(&str) -> Option<String>) -> ProviderConfig {
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
        }
    }
}

/// Ollama's port where `OLLAMA_HOST` names none.
const OLLAMA_PORT: &str = "11434";

/// The address that `OLLAMA_HOST` means, which Ollama's own programs read as
/// `[scheme://]host[:port][/path]`, each part with a default:
/// <https://github.com/ollama/ollama/blob/main/envconfig/config.go>. The server listens there, so that
/// it may also be an address that is none to connect to.
fn ollama_url(host: &str) -> String {
    let host = host.trim().trim_matches(['"', '\'']);
    let (scheme, rest) = host.split_once("://").unwrap_or(("", host));
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let is_port = |port: &&str| port.parse::<u16>().is_ok();
    let (name, port) = match authority.rsplit_once(':') {
        // The colons of an address without a port are no separators.
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
    let usual_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => OLLAMA_PORT,
    };
    let scheme = if scheme == "https" { "https" } else { "http" };
    let port = port.unwrap_or(usual_port);
    format!("{scheme}://{name}:{port}{}", path.trim_end_matches('/'))
}

impl FileProvider {
    fn provider(
        self,
        name: &str,
        known: Option<ProviderConfig>,
        beside: &Path,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ProviderConfig> {
        let field =
            |key: &str, message: String| wrong(format!("providers.{name}.{key}: {message}"));
        let Some(kind) = self.kind.or(known.as_ref().map(|known| known.kind)) else {
            return Err(field(
                "kind",
                "is missing: openai, anthropic, gemini, ollama or echo".into(),
            ));
        };
        let base_url = self.base_url.or(known.as_ref().map(|known| {
            let url = known.base_url.trim_end_matches('/');
            // Ollama's compatible API is below its own.
            let is_below = known.kind == Kind::Ollama && kind == Kind::OpenAi;
            if is_below && !url.ends_with("/v1") {
                format!("{url}/v1")
            } else {
                known.base_url.clone()
            }
        }));
        let base_url = base_url.unwrap_or_default();
        if base_url.is_empty() && kind != Kind::Echo {
            return Err(field(
                "base_url",
                "is missing, such as https://api.openai.com/v1".into(),
            ));
        }
        let is_url = base_url.starts_with("https://") || base_url.starts_with("http://");
        if !base_url.is_empty() && !is_url {
            return Err(field(
                "base_url",
                format!("`{base_url}` does not begin with https:// or http://"),
            ));
        }
        let known_stream_usage = known.as_ref().is_none_or(|known| known.stream_usage);
        let stream_usage = self.stream_usage.unwrap_or(known_stream_usage);
        let (api_key, missing_key_hint) = match (self.api_key, self.api_key_env, self.api_key_file)
        {
            (Some(key), None, None) => (Some(key), None),
            (None, Some(env_name), None) => {
                let hint = format!("set {env_name} (api_key_env of [providers.{name}])");
                (variable(&env_name).map(Secret::new), Some(hint))
            }
            (None, None, Some(file)) => {
                let path = beside.join(file);
                let text = fs::read_to_string(&path).map_err(|error| {
                    field(
                        "api_key_file",
                        format!("{} cannot be read: {error}", path.display()),
                    )
                })?;
                (Some(Secret::new(text.trim())), None)
            }
            (None, None, None) => match known {
                Some(known) => (known.api_key, known.missing_key_hint),
                // A server without a key, as local ones are.
                None => (None, None),
            },
            _ => {
                let message = "give one of api_key, api_key_env and api_key_file".to_owned();
                return Err(field("api_key", message));
            }
        };
        Ok(ProviderConfig {
            kind,
            base_url,
            api_key,
            missing_key_hint,
            stream_usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, given: Overrides, variables: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, toml).unwrap();
        fs::write(dir.path().join("key"), "from-file\n").unwrap();
        let given = Overrides {
            config: Some(path),
            ..given
        };
        Config::from_sources(given, &|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn key(config: &Config, provider: &str) -> Option<String> {
        config.providers[provider]
            .api_key
            .as_ref()
            .map(|key| key.expose().to_owned())
    }

    #[test]
    fn without_any_settings_it_works_on_loopback() {
        let config = Config::from_sources(Overrides::default(), &|_| None).unwrap();
        assert_eq!(config.listen.to_string(), LISTEN_DEFAULT);
        assert!(config.providers["echo"].missing_key_hint.is_none());
        assert!(
            config.providers["openai"]
                .missing_key_hint
                .as_ref()
                .unwrap()
                .contains("OPENAI_API_KEY")
        );
    }

    #[test]
    fn flags_win_over_the_file() {
        let toml = "listen = '127.0.0.1:1'\ndata = 'a'";
        let given = Overrides {
            listen: Some("127.0.0.1:2".into()),
            ..Overrides::default()
        };
        let config = load(toml, given, &[]).unwrap();
        assert_eq!((config.listen.port(), config.data), (2, PathBuf::from("a")));
    }

    #[test]
    fn the_file_of_prices_is_looked_for_beside_the_configuration() {
        let toml = "prices = 'mine.toml'";
        let config = load(toml, Overrides::default(), &[]).unwrap();
        let path = config.prices.unwrap();
        assert!(
            path.is_absolute() && path.ends_with("mine.toml"),
            "{path:?}"
        );
        let given = Overrides {
            prices: Some("other.toml".into()),
            ..Overrides::default()
        };
        let config = load(toml, given, &[]).unwrap();
        assert_eq!(config.prices, Some("other.toml".into()));
    }

    #[test]
    fn keys_come_from_where_the_file_says() {
        let toml = "
            [providers.mine]
            kind = 'openai'
            base_url = 'http://127.0.0.1:9/v1'
            api_key_env = 'MY_KEY'
            [providers.filed]
            kind = 'anthropic'
            base_url = 'http://127.0.0.1:9'
            api_key_file = 'key'
            [providers.openai]
            base_url = 'http://127.0.0.1:9/v1'";
        let variables = [("MY_KEY", "from-env"), ("OPENAI_API_KEY", "usual")];
        let config = load(toml, Overrides::default(), &variables).unwrap();
        assert_eq!(key(&config, "mine").as_deref(), Some("from-env"));
        assert_eq!(key(&config, "filed").as_deref(), Some("from-file"));
        assert_eq!(key(&config, "openai").as_deref(), Some("usual"));
        assert_eq!(config.providers["openai"].base_url, "http://127.0.0.1:9/v1");
    }

    #[test]
    fn aliases_and_what_clients_may_do_come_from_the_file() {
        let toml = "
            [aliases]
            fast = ['openai/a', 'openrouter/b/c']
            slow = 'echo/echo-slow'
            [providers.openai]
            on_disconnect = 'abort'
            pass_through_key = true";
        let gateway = load(toml, Overrides::default(), &[]).unwrap().gateway;
        assert_eq!(gateway.aliases["fast"].len(), 2);
        assert_eq!(gateway.aliases["fast"][1].model, "b/c");
        assert_eq!(gateway.aliases["slow"][0].provider, "echo");
        let expected = Toward {
            drain_max: None,
            pass_through_key: true,
        };
        assert_eq!(gateway.toward["openai"], expected);
    }

    #[test]
    fn usage_of_streams_is_asked_for_unless_the_provider_refuses_that() {
        let toml = "
            [providers.mine]
            kind = 'openai'
            base_url = 'http://127.0.0.1:9/v1'
            [providers.odd]
            kind = 'openai'
            base_url = 'http://127.0.0.1:9/v1'
            stream_usage = false";
        let config = load(toml, Overrides::default(), &[]).unwrap();
        for (name, expected) in [
            ("openai", true),
            ("mine", true),
            ("mistral", false),
            ("odd", false),
        ] {
            assert_eq!(config.providers[name].stream_usage, expected, "{name}");
        }
        for (toml, expected) in [
            ("[providers.mistral]\napi_key = 'k'", false),
            ("[providers.mistral]\nstream_usage = true", true),
        ] {
            let config = load(toml, Overrides::default(), &[]).unwrap();
            assert_eq!(config.providers["mistral"].stream_usage, expected, "{toml}");
        }
    }

    #[test]
    fn gemini_has_its_key_under_either_name() {
        for (variables, expected) in [
            (&[("GOOGLE_API_KEY", "b")][..], "b"),
            (&[("GOOGLE_API_KEY", "b"), ("GEMINI_API_KEY", "a")], "a"),
        ] {
            let config = load("", Overrides::default(), variables).unwrap();
            assert_eq!(key(&config, "gemini").as_deref(), Some(expected));
            assert_eq!(config.providers["gemini"].kind, Kind::Gemini);
        }
    }

    #[test]
    fn ollama_is_where_its_own_programs_look_for_it() {
        let ollama = |toml: &str, variables: &[(&str, &str)]| {
            let mut config = load(toml, Overrides::default(), variables).unwrap();
            let provider = config.providers.remove("ollama").unwrap();
            assert!(provider.missing_key_hint.is_none());
            (provider.kind, provider.base_url)
        };
        for (host, url) in [
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:8080", "http://127.0.0.1:8080"),
            (":8080", "http://127.0.0.1:8080"),
            ("box.lan", "http://box.lan:11434"),
            ("http://box.lan:1/", "http://box.lan:1"),
            ("http://box.lan", "http://box.lan:80"),
            ("https://box.lan/ollama", "https://box.lan:443/ollama"),
            ("[::]:8080", "http://[::1]:8080"),
            ("::1", "http://[::1]:11434"),
            ("[fe80::1]", "http://[fe80::1]:11434"),
            ("box:99999", "http://box:11434"),
        ] {
            let found = ollama("", &[("OLLAMA_HOST", host)]);
            assert_eq!(found, (Kind::Ollama, url.to_owned()), "{host}");
        }
        let given = [("OLLAMA_HOST", "a"), ("OLLAMA_BASE_URL", "http://b:1/v1")];
        assert_eq!(ollama("", &given).1, "http://b:1/v1");
        // As it was configured before it had a kind of its own.
        let openai = "[providers.ollama]\nkind = 'openai'";
        let expected = |url: &str| (Kind::OpenAi, url.to_owned());
        assert_eq!(ollama(openai, &[]), expected("http://127.0.0.1:11434/v1"));
        assert_eq!(ollama(openai, &given), expected("http://b:1/v1"));
        let own = format!("{openai}\nbase_url = 'http://c:1/x'");
        assert_eq!(ollama(&own, &[]), expected("http://c:1/x"));
    }

    #[test]
    fn an_open_address_needs_a_token() {
        let open = || Overrides {
            listen: Some("0.0.0.0:7700".into()),
            ..Overrides::default()
        };
        let error = load("", open(), &[])
            .unwrap()
            .check_exposure()
            .unwrap_err()
            .to_string();
        assert!(error.contains("token"), "{error}");
        let with_token = Overrides {
            token: Some("t".into()),
            ..open()
        };
        load("", with_token, &[]).unwrap().check_exposure().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_and_keys_are_not_shown() {
        for (toml, expected) in [
            ("listen = 'nowhere'", "listen: `nowhere`"),
            ("token = ''", "token"),
            ("\nport = 3", "line 2"),
            ("[providers.x]\nkind = 'openai'", "providers.x.base_url"),
            ("[providers.x]\nbase_url = 'http://a'", "providers.x.kind"),
            (
                "[providers.x]\nkind = 'openai'\nbase_url = 'a'",
                "does not begin with",
            ),
            (
                "[providers.openai]\napi_key = 'sk-1'\napi_key_env = 'A'",
                "give one of",
            ),
            ("[providers.openai]\napi_key = 'sk-1'\nwrong = 1", "line 3"),
            ("[timeouts]\ntotal_s = -1", "timeouts.total_s"),
            (
                "[limits]\ncalls = 101",
                "limits.calls: 101 is not a number from 1 to 100",
            ),
            (
                "[providers.openai]\nrequests_per_minute = 0",
                "providers.openai.requests_per_minute",
            ),
            (
                "[providers.openai]\ntokens_per_minute = 0",
                "providers.openai.tokens_per_minute",
            ),
            ("[limits]\nactive_runs = 0", "limits.active_runs"),
            ("allow_origins = ['example.org']", "allow_origins"),
            ("[aliases]\nfast = []", "aliases.fast: must name 1 to 16"),
            (
                "[aliases]\nfast = ['nobody/m']",
                "aliases.fast: `nobody/m` is not PROVIDER/MODEL",
            ),
        ] {
            let error = load(toml, Overrides::default(), &[])
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{toml}: {error}");
            assert!(!error.contains("sk-1"), "{error}");
        }
    }
}
