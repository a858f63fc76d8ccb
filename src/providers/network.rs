//! The way to a provider: its proxy, and the certificates that its connections trust.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

/// How the connections to a provider are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub proxy: ProxyRule,
    /// Trusted in addition to the built-in roots.
    pub authorities: Authorities,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyRule {
    /// The environment variables (`HTTPS_PROXY`, `NO_PROXY`, …).
    #[default]
    Environment,
    None,
    Through(Proxy),
}

/// A proxy. `Debug` hides its user name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy(ureq::Proxy);

impl Proxy {
    /// Parses `SCHEME://[USER:PASSWORD@]HOST[:PORT]`. Hosts that match one of `exceptions`, which
    /// have the format of `NO_PROXY`, are called directly.
    ///
    /// # Errors
    /// Returns the expected format, without the URL, because it may contain a password.
    pub fn parse(url: &str, exceptions: &[String]) -> Result<Self, &'static str> {
        const FORMAT: &str = "must be a URL such as http://proxy.example.com:3128, with the scheme \
             http, https, socks5 or socks5h, without a path. Percent-encode special characters in \
             the user name and the password";
        let (scheme, authority) = url.trim().split_once("://").ok_or(FORMAT)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let is_known = ["http", "https", "socks5", "socks5h"].contains(&scheme);
        // The URL parser would take the end of a password as a path or a fragment.
        if !is_known || authority.contains(['/', '?', '#', '\\']) {
            return Err(FORMAT);
        }
        let parsed = ureq::Proxy::new(&format!("{scheme}://{authority}")).map_err(|_| FORMAT)?;
        let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
        let has_port = host_and_port.trim_start_matches(parsed.host());
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        if parsed.host().is_empty() || !(has_port.is_empty() || is_port(&has_port[1..])) {
            return Err(FORMAT);
        }
        let mut builder = ureq::Proxy::builder(parsed.protocol())
            .host(parsed.host())
            .port(parsed.port())
            .resolve_target(parsed.resolve_target());
        if let Some(user) = parsed.username() {
            builder = builder.username(user).password(parsed.password().unwrap_or_default());
        }
        builder = exceptions.iter().fold(builder, |builder, host| builder.no_proxy(host));
        builder.build().map(Self).map_err(|_| FORMAT)
    }
}

impl ProxyRule {
    pub(super) fn proxy(&self) -> Option<ureq::Proxy> {
        match self {
            Self::Environment => ureq::Proxy::try_from_env(),
            Self::None => None,
            Self::Through(proxy) => Some(proxy.0.clone()),
        }
    }
}

/// Returns `HOST:PORT` of the proxy that a request uses.
pub(super) fn proxy_address(proxy: Option<&ureq::Proxy>, uri: &Uri) -> Option<String> {
    let proxy = proxy.filter(|proxy| !proxy.is_no_proxy(uri))?;
    Some(format!("{}:{}", proxy.host(), proxy.port()))
}

/// Certificate authorities from a PEM file.
#[derive(Clone, Default)]
pub struct Authorities(Arc<Vec<Certificate<'static>>>);

impl Authorities {
    /// Parses the certificates of a PEM file; other items are ignored. Also returns the number of
    /// ignored certificates, because system bundles contain some that no verifier supports.
    ///
    /// # Errors
    /// Returns the reason if the file has no usable certificate.
    pub fn parse(pem: &[u8]) -> Result<(Self, usize), String> {
        let (mut found, mut ignored) = (Vec::new(), 0);
        for item in parse_pem(pem) {
            match item.map_err(|_| "is not a valid PEM file")? {
                PemItem::Certificate(certificate) if is_usable(&certificate) => {
                    found.push(certificate);
                }
                PemItem::Certificate(_) => ignored += 1,
                _ => {}
            }
        }
        match (found.is_empty(), ignored) {
            (false, _) => Ok((Self(Arc::new(found)), ignored)),
            (true, 0) => Err("contains no certificate (`-----BEGIN CERTIFICATE-----`)".into()),
            (true, _) => Err("contains no usable certificate".into()),
        }
    }

    /// Returns these roots and the built-in ones.
    pub(super) fn roots(&self) -> RootCerts {
        if self.0.is_empty() {
            return RootCerts::WebPki;
        }
        let built_in = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        let built_in = built_in.map(|der| Certificate::from_der(der.as_ref()));
        let all: Vec<_> = built_in.chain(self.0.iter().cloned()).collect();
        RootCerts::Specific(Arc::new(all))
    }
}

fn is_usable(certificate: &Certificate<'_>) -> bool {
    RootCertStore::empty().add(CertificateDer::from(certificate.der())).is_ok()
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(Certificate::der).eq(other.0.iter().map(Certificate::der))
    }
}

impl Eq for Authorities {}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_urls_of_four_schemes_are_accepted() {
        for (url, host, port) in [
            ("http://proxy.example.com", "proxy.example.com", 80),
            ("http://proxy.example.com:3128/", "proxy.example.com", 3128),
            ("https://user:p%40ss@10.0.0.1:8443", "10.0.0.1", 8443),
            ("socks5://user:pass@[::1]:1081", "[::1]", 1081),
            ("socks5h://localhost", "localhost", 1080),
        ] {
            let proxy = Proxy::parse(url, &[]).unwrap().0;
            assert_eq!((proxy.host(), proxy.port()), (host, port), "{url}");
        }
        let proxy = Proxy::parse("http://us%3Aer:p%40s%2Fs@h:1", &[]).unwrap().0;
        assert_eq!((proxy.username(), proxy.password()), (Some("us:er"), Some("p@s/s")));
    }

    #[test]
    fn invalid_proxy_urls_are_refused_without_the_password() {
        for url in [
            "",
            "proxy:3128",
            "ftp://proxy",
            "http://",
            "http://user:hunter2@",
            "http://user:hunter2#x@proxy:1",
            "http://user:hunter2/x@proxy:1",
            "http://user:hunter2@proxy:port",
            "http://user:hunter2@proxy:0",
            "http://user:hunter2@proxy:99999",
            "http://user:hunter2@proxy:80/path",
            "http://user:hunter 2@proxy:80",
        ] {
            let error = Proxy::parse(url, &[]).unwrap_err();
            assert!(error.contains("must be a URL") && !error.contains("hunter"), "{url}: {error}");
        }
    }

    #[test]
    fn exceptions_are_called_directly() {
        let exceptions = ["localhost".to_owned(), "127.*".to_owned(), ".corp".to_owned()];
        let proxy = Proxy::parse("http://u:p@h:1", &exceptions).unwrap().0;
        let address = |url: &str| proxy_address(Some(&proxy), &url.parse().unwrap());
        for url in ["http://127.0.0.1:11434/x", "http://localhost/", "https://llm.corp/v1"] {
            assert_eq!(address(url), None, "{url}");
        }
        assert_eq!(address("https://corp.example.com/").as_deref(), Some("h:1"));
    }

    #[test]
    fn debug_output_hides_the_password_of_a_proxy() {
        let proxy = Proxy::parse("http://someone:hunter2@h:1", &[]).unwrap();
        let network = Network { proxy: ProxyRule::Through(proxy), ..Network::default() };
        let text = format!("{network:?}");
        assert!(!text.contains("hunter2") && !text.contains("omeone"), "{text}");
    }
}
