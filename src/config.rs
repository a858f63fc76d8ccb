//! Settings: flags and environment variables override a TOML file, which overrides defaults.

mod file;
mod network;
mod pools;
mod providers;

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::engine;
use crate::error::{Error, Result};
use crate::gateway;
pub use crate::journal::{BodyLimits, Retention};
use crate::providers::{
    FailedCallCosts, FetchRules, HealthRules, PoolKey, ProviderConfig, Rate, Timeouts,
};
use crate::secret::Secret;
use crate::websocket::Pings;

use file::ConfigFile;

pub const LISTEN_DEFAULT: &str = "127.0.0.1:7700";

/// Reads an environment variable; an empty one counts as missing.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub data: PathBuf,
    /// Required for every request except the page's own files.
    pub token: Option<Secret>,
    /// Accepted `Host` names, in addition to `localhost` and addresses.
    pub allow_hosts: Vec<String>,
    /// Origins of other sites' pages that may use the API.
    pub allow_origins: Vec<String>,
    /// See [`crate::listener::Rules`].
    pub connections_per_address: Option<usize>,
    pub engine: engine::Limits,
    pub providers: BTreeMap<String, ProviderConfig>,
    pub rates: BTreeMap<String, Rate>,
    /// The keys of providers with `api_keys`.
    pub pools: BTreeMap<String, Vec<PoolKey>>,
    /// The names of the keys of all other providers.
    pub key_names: BTreeMap<String, String>,
    pub health: HealthRules,
    /// The file of the user's own prices.
    pub prices: Option<PathBuf>,
    pub gateway: gateway::Settings,
    pub timeouts: Timeouts,
    pub failed_call_costs: FailedCallCosts,
    pub retention: Retention,
    /// The hosts that `http` nodes may send requests to.
    pub fetch_rules: FetchRules,
    pub pings: Pings,
}

/// The flags and environment variables of the same names.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub prices: Option<PathBuf>,
    pub token: Option<String>,
    pub allow_hosts: Vec<String>,
    pub allow_origins: Vec<String>,
}

impl Config {
    /// Merges all sources and checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] names a wrong setting and the expected value.
    pub fn load(overrides: Overrides) -> Result<Self> {
        Self::from_sources(overrides, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_sources(overrides: Overrides, variable: Variable<'_>) -> Result<Self> {
        let path = overrides.config.as_deref();
        let file = path.map(ConfigFile::read).transpose()?.unwrap_or_default();
        // Paths in the file are relative to it.
        let directory = path.and_then(Path::parent).unwrap_or(Path::new("."));
        let listen = overrides.listen.or(file.listen);
        let listen = listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let data = overrides.data.or(file.data);
        let own_prices = file.prices.map(|prices| directory.join(prices));
        let policies = providers::client_policies(&file.providers);
        let rates = providers::rates(&file.providers)?;
        let network = network::default(file.proxy, file.ca_file, directory, variable)?;
        let pools = pools::keys(&file.providers, directory, variable)?;
        let key_names = providers::key_names(&file.providers, variable);
        let providers = providers::all(file.providers, &pools, &network, directory, variable)?;
        let (aliases, alias_rules) = pools::aliases(file.aliases, &providers)?;
        let retention = file.retention.checked()?;
        Ok(Self {
            listen: listen.parse().map_err(|_| {
                config_error(format!(
                    "listen: `{listen}` is not an address with a port, such as {LISTEN_DEFAULT}"
                ))
            })?,
            data: data.map_or_else(|| default_data_dir(variable), Ok)?,
            token: overrides.token.or(file.token).map(token).transpose()?,
            allow_hosts: either(overrides.allow_hosts, file.allow_hosts),
            allow_origins: origins(either(overrides.allow_origins, file.allow_origins))?,
            connections_per_address: file.limits.connections_per_address.map(NonZeroUsize::get),
            engine: file.limits.engine()?,
            rates,
            pools,
            key_names,
            health: file.health.checked()?,
            prices: overrides.prices.or(own_prices),
            gateway: gateway::Settings {
                stores_bodies: retention.bodies.is_some(),
                aliases,
                alias_rules,
                policies,
                hash_end_users: file.gateway.hash_end_users,
                loop_limits: file.gateway.loop_limits(),
            },
            providers,
            timeouts: file.timeouts.checked()?,
            failed_call_costs: file.failed_call_cost,
            retention,
            fetch_rules: FetchRules { hosts: file.http.hosts, private: file.http.private },
            pings: file.websocket.checked()?,
        })
    }

    /// Refuses pools and aliases that can never serve.
    ///
    /// # Errors
    /// [`Error::Config`] names the pool or the alias.
    pub fn check_pools(&self) -> Result<()> {
        pools::check(self)
    }

    /// Requires a token if other machines can connect.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing token, with a fix.
    pub fn check_exposure(&self) -> Result<()> {
        if self.token.is_some() || self.listen.ip().is_loopback() {
            return Ok(());
        }
        Err(config_error(format!(
            "cannot listen on {} without a token, because other machines can connect; set a token \
             (FLOWLEDGER_TOKEN or --token), or listen on {LISTEN_DEFAULT}",
            self.listen
        )))
    }
}

fn config_error(message: String) -> Error {
    Error::Config(message)
}

fn either(overrides: Vec<String>, file: Vec<String>) -> Vec<String> {
    if overrides.is_empty() { file } else { overrides }
}

fn origins(origins: Vec<String>) -> Result<Vec<String>> {
    let is_invalid = |origin: &&String| !origin.contains("://") || origin.ends_with('/');
    match origins.iter().find(is_invalid) {
        None => Ok(origins),
        Some(invalid) => Err(config_error(format!(
            "allow_origins: `{invalid}` is not an origin, such as https://example.org"
        ))),
    }
}

fn token(text: String) -> Result<Secret> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(config_error(
            "token: must consist of visible ASCII characters, without spaces".into(),
        ));
    }
    Ok(Secret::new(text))
}

/// Follows the XDG base directory specification, which ignores relative paths.
fn default_data_dir(variable: Variable<'_>) -> Result<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .ok_or_else(|| {
            config_error(
                "no directory for the data: set --data (FLOWLEDGER_DATA), or XDG_DATA_HOME or HOME \
                 to an absolute path"
                    .into(),
            )
        })?;
    Ok(base.join("flowledger"))
}

#[cfg(test)]
mod tests;
