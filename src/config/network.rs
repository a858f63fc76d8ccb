//! `proxy` and `ca_file`: of a provider, or of all providers without their own.

use std::fs;
use std::path::Path;

use super::file::FileProvider;
use super::{Variable, config_error};
use crate::error::Result;
use crate::providers::{Authorities, Network, Proxy, ProxyRule};
use crate::secret::Secret;

/// The value of `proxy` for direct connections.
const NO_PROXY: &str = "none";

/// Hosts that the default proxy is not used for, because it cannot reach this machine.
const THIS_MACHINE: [&str; 3] = ["localhost", "127.*", "[::1]"];

/// Returns the network of providers without their own settings.
pub(super) fn default(
    proxy: Option<Secret>,
    ca_file: Option<impl AsRef<Path>>,
    directory: &Path,
    variable: Variable<'_>,
) -> Result<Network> {
    let excluded = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    let excluded = excluded.split(',').map(str::trim).filter(|host| !host.is_empty());
    let excluded: Vec<String> = THIS_MACHINE.into_iter().chain(excluded).map(Into::into).collect();
    let proxy = proxy.map(|url| rule("proxy", &url, &excluded)).transpose()?;
    let authorities = ca_file.map(|path| read("ca_file", &directory.join(path))).transpose()?;
    Ok(Network { proxy: proxy.unwrap_or_default(), authorities: authorities.unwrap_or_default() })
}

pub(super) fn of_provider(
    file: &FileProvider,
    name: &str,
    default: &Network,
    directory: &Path,
) -> Result<Network> {
    let key = |key: &str| format!("providers.{name}.{key}");
    let proxy = file.proxy.as_ref().map(|url| rule(&key("proxy"), url, &[])).transpose()?;
    let path = file.ca_file.as_ref().map(|path| directory.join(path));
    let authorities = path.map(|path| read(&key("ca_file"), &path)).transpose()?;
    Ok(Network {
        proxy: proxy.unwrap_or_else(|| default.proxy.clone()),
        authorities: authorities.unwrap_or_else(|| default.authorities.clone()),
    })
}

fn rule(key: &str, url: &Secret, excluded: &[String]) -> Result<ProxyRule> {
    if url.expose() == NO_PROXY {
        return Ok(ProxyRule::None);
    }
    let proxy = Proxy::parse(url.expose(), excluded);
    proxy.map(ProxyRule::Through).map_err(|format| {
        config_error(format!("{key}: {format}; \"{NO_PROXY}\" connects directly"))
    })
}

fn read(key: &str, path: &Path) -> Result<Authorities> {
    let pem = fs::read(path)
        .map_err(|error| config_error(format!("{key}: cannot read {}: {error}", path.display())))?;
    let (authorities, ignored) = Authorities::parse(&pem)
        .map_err(|fault| config_error(format!("{key}: {} {fault}", path.display())))?;
    if ignored > 0 {
        log::warn!("{key}: ignored {ignored} unusable certificates in {}", path.display());
    }
    Ok(authorities)
}
