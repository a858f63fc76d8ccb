//! One request of an `http` node: to allowed hosts, and to this machine or its private networks
//! only if configured.
//!
//! The address of the connection is checked, not the name: after the lookup, a name that points to
//! a private address is rejected. For the same reason, redirects are not followed and proxies are
//! not used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use encoding_rs::Encoding;
use ureq::config::Config;
use ureq::http::header::ACCEPT_ENCODING;
use ureq::http::{Method, Request, Response, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;
use ureq::{Agent, Body, Error};

use super::call::TIMEOUT_MAX;
use super::cancel::Cancel;
use super::client::read_at_most;
use super::content_encoding::{self, Decoder};
use super::excerpt::{EXCERPT_CHARS_MAX, describe, one_line};
use super::failure::is_transient_status;
use super::refusal::Refusal;
use super::transport::{Connect, Lookup, Scope};

pub const ANSWER_BYTES_MAX: usize = 1 << 20;
const REFUSAL_BYTES_MAX: usize = 4 << 10;
const HEAD_BYTES_MAX: usize = 64 << 10;
const IDLE_CONNECTIONS_MAX: usize = 16;

/// The hosts that `http` nodes may send requests to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchRules {
    /// By name or address, without a port; an empty list allows all.
    pub hosts: Vec<String>,
    /// True if addresses that are not public (loopback, private, link-local, …) are allowed.
    pub private: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// `GET`, `POST`, …
    pub method: String,
    /// Absolute, `http` or `https`.
    pub url: String,
    /// In addition to the client's default headers.
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    pub timeout: Duration,
}

/// An answer with status 2xx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// At most 1 MiB.
    pub body: String,
    /// From the request to the end of the answer.
    pub latency_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchFailure {
    /// The error, its host, and a fix if there is an obvious one.
    pub message: String,
    pub cancelled: bool,
    /// True if a retry may succeed soon.
    pub is_transient: bool,
    pub retry_after: Option<Duration>,
}

impl FetchFailure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cancelled: false, is_transient: false, retry_after: None }
    }
}

/// Sends requests of `http` nodes.
#[derive(Debug)]
pub(super) struct Fetcher {
    agent: Agent,
    rules: FetchRules,
}

impl Fetcher {
    pub(super) fn new(rules: FetchRules) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("flowledger/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEAD_BYTES_MAX)
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .build();
        let lookup = CheckedLookup { private: rules.private };
        Self { agent: Agent::with_parts(config, Connect::default(), lookup), rules }
    }

    pub(super) fn fetch(&self, fetch: &Fetch, cancel: &Cancel) -> Result<Fetched, FetchFailure> {
        let uri = self.parse_url(&fetch.url)?;
        let host = uri.host().unwrap_or_default().to_owned();
        let failure = |message: String| FetchFailure::new(format!("{host}: {message}"));
        let request = request(fetch, uri).map_err(failure)?;
        let entered = Scope::enter(cancel);
        if entered.scope.cancel.is_cancelled() {
            return Err(cancelled_failure());
        }
        let io = |error: Error| self.request_failure(&host, &error, fetch.timeout, cancel);
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(Some(fetch.timeout.min(TIMEOUT_MAX)))
            .build();
        let response = self.agent.run(request).map_err(io)?;
        if !response.status().is_success() {
            return Err(status_failure(&host, response));
        }
        let charset = charset(&response);
        let too_long = || failure(format!("the response is longer than {ANSWER_BYTES_MAX} bytes"));
        let codings = content_encoding::of(response.headers()).map_err(failure)?;
        let body = Decoder::new(response.into_body().into_reader(), &codings);
        let bytes = read_at_most(body, ANSWER_BYTES_MAX)
            .map_err(|error| io(error.into()))?
            .ok_or_else(too_long)?;
        let body = decode(bytes, charset.as_deref()).map_err(failure)?;
        Ok(Fetched { body, latency_ms: entered.scope.elapsed_ms() })
    }

    /// Parses the URL.
    ///
    /// # Errors
    /// Fails for an invalid URL and for a host that is not allowed.
    fn parse_url(&self, url: &str) -> Result<Uri, FetchFailure> {
        let shown = one_line(url, EXCERPT_CHARS_MAX);
        let uri: Uri = url.parse().map_err(|_| {
            // Usually the value of a query; another character that a URL cannot contain.
            let has_scheme = url.starts_with("http://") || url.starts_with("https://");
            let why = match has_scheme && url.bytes().any(|byte| !byte.is_ascii_graphic()) {
                true => "contains a space or another character that a URL must encode; use `| urlencode` for the values in it",
                false => "is not a URL, such as https://example.org/x",
            };
            FetchFailure::new(format!("`{shown}` {why}"))
        })?;
        let host = match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(host)) if !host.is_empty() => host,
            _ => {
                let message = format!("`{shown}` is not an http or https URL");
                return Err(FetchFailure::new(message));
            }
        };
        // The host of `https://allowed.example@other.example/` is other.example.
        let authority = uri.authority();
        if authority.is_some_and(|it| it.as_str().contains('@')) {
            let message = "a URL must not contain a user name; use an authorization header";
            return Err(FetchFailure::new(message));
        }
        let hosts = &self.rules.hosts;
        if !hosts.is_empty() && !hosts.iter().any(|it| it.eq_ignore_ascii_case(host)) {
            let message = format!("host {host} is not allowed; add it to `hosts` under [http]");
            return Err(FetchFailure::new(message));
        }
        Ok(uri)
    }

    fn request_failure(
        &self,
        host: &str,
        error: &Error,
        timeout: Duration,
        cancel: &Cancel,
    ) -> FetchFailure {
        if cancel.is_cancelled() {
            return cancelled_failure();
        }
        if let Error::Io(error) = error
            && let Some(ForbiddenAddress(address)) = error.get_ref().and_then(|e| e.downcast_ref())
        {
            return FetchFailure::new(format!(
                "{host}: {address} is not a public address; set `private = true` under [http] to allow it"
            ));
        }
        let message = match error {
            Error::Timeout(_) => format!("{host}: timed out after {timeout:?}"),
            error => format!("{host}: {error}"),
        };
        FetchFailure {
            is_transient: true,
            ..FetchFailure::new(one_line(&message, EXCERPT_CHARS_MAX))
        }
    }
}

/// Returns the charset that a response declares in `content-type`, without quotes.
fn charset(response: &Response<Body>) -> Option<String> {
    let kind = response.headers().get("content-type")?.to_str().ok()?;
    let parameters = kind.split(';').skip(1).filter_map(|it| it.split_once('='));
    let mut charsets = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let (_, charset) = charsets.next()?;
    Some(charset.trim().trim_matches(['"', '\'']).to_owned())
}

/// Decodes a body with its declared charset; UTF-8 by default. A byte order mark has precedence, as
/// in browsers.
fn decode(bytes: Vec<u8>, charset: Option<&str>) -> Result<String, String> {
    let encoding = match charset {
        Some(charset) => Encoding::for_label(charset.as_bytes())
            .ok_or_else(|| format!("the response has the unknown charset `{charset}`"))?,
        None => encoding_rs::UTF_8,
    };
    let (text, used, has_errors) = encoding.decode(&bytes);
    if has_errors {
        return Err(format!("the response is not {} text", used.name()));
    }
    let text = text.into_owned();
    match text.len() > ANSWER_BYTES_MAX {
        true => Err(format!("the response is longer than {ANSWER_BYTES_MAX} bytes")),
        false => Ok(text),
    }
}

fn status_failure(host: &str, response: Response<Body>) -> FetchFailure {
    let is_redirect = response.status().is_redirection();
    let refusal = Refusal::read(response, REFUSAL_BYTES_MAX);
    let excerpt = match &refusal.location {
        Some(location) if is_redirect => format!(
            "redirect to {}; redirects are not followed",
            one_line(location, EXCERPT_CHARS_MAX)
        ),
        _ => describe(&refusal.body),
    };
    let status = refusal.status;
    FetchFailure {
        is_transient: is_transient_status(status),
        retry_after: refusal.retry_after,
        ..FetchFailure::new(format!("{host}: returned status {status}: {excerpt}"))
    }
}

fn cancelled_failure() -> FetchFailure {
    FetchFailure { cancelled: true, ..FetchFailure::new("the request was cancelled") }
}

fn request(fetch: &Fetch, uri: Uri) -> Result<Request<Vec<u8>>, String> {
    let method = Method::from_bytes(fetch.method.as_bytes())
        .map_err(|_| format!("invalid method `{}`", fetch.method))?;
    let mut builder = Request::builder().method(method).uri(uri);
    let is_accept = |name: &str| name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str());
    if !fetch.headers.iter().any(|(name, _)| is_accept(name)) {
        builder = builder.header(ACCEPT_ENCODING, "identity");
    }
    for (name, value) in &fetch.headers {
        builder = builder.header(name, value);
    }
    let body = fetch.body.clone().unwrap_or_default().into_bytes();
    builder.body(body).map_err(|_| "invalid header name or value".into())
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is not a public address")]
struct ForbiddenAddress(IpAddr);

#[derive(Debug)]
struct CheckedLookup {
    private: bool,
}

impl Resolver for CheckedLookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let addresses = Lookup.resolve(uri, config, timeout)?;
        let forbidden = addresses
            .iter()
            .map(|address| address.ip())
            .find(|address| !self.private && !is_public(*address));
        match forbidden {
            None => Ok(addresses),
            Some(address) => Err(Error::Io(io::Error::other(ForbiddenAddress(address)))),
        }
    }
}

/// Returns whether an address belongs to the public internet, by IANA's registries of
/// special-purpose addresses (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_unspecified()
        || a == 0
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        // Shared by carriers (RFC 6598), protocol assignments, 6to4 relays, benchmarks, reserved.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240;
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Global unicast is 2000::/3; it includes some special addresses, and some that contain an IPv4
    // address.
    let is_global = segments[0] & 0xe000 == 0x2000;
    let is_special = (segments[0] == 0x2001 && (segments[1] < 0x200 || segments[1] == 0xdb8))
        || segments[0] == 0x2002
        || (segments[0] == 0x3fff && segments[1] < 0x1000);
    // NAT64 (RFC 6052) leads to the IPv4 address at the end.
    if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    is_global && !is_special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(url: &str) -> Fetch {
        Fetch {
            method: "GET".into(),
            url: url.into(),
            headers: Vec::new(),
            body: None,
            timeout: Duration::from_secs(5),
        }
    }

    fn refusal(rules: FetchRules, url: &str) -> String {
        let fetched = Fetcher::new(rules).fetch(&fetch(url), &Cancel::new());
        fetched.unwrap_err().message
    }

    #[test]
    fn a_body_is_decoded_with_its_declared_charset() {
        let decoded = |bytes: &[u8], charset| decode(bytes.to_vec(), charset);
        assert_eq!(decoded(b"caf\xe9 \x80", Some("ISO-8859-1")).unwrap(), "café €");
        assert_eq!(decoded(b"\x93\xfa\x96{", Some("shift_jis")).unwrap(), "日本");
        assert_eq!(decoded(b"\xff\xfea\0", Some("utf-16")).unwrap(), "a");
        assert_eq!(decoded("\u{feff}é".as_bytes(), None).unwrap(), "é");
        assert!(decoded(b"caf\xe9", None).unwrap_err().contains("not UTF-8 text"));
        assert!(decoded(b"x", Some("x-unknown")).unwrap_err().contains("charset `x-unknown`"));
    }

    #[test]
    fn an_error_about_a_space_in_a_url_names_the_filter() {
        let message = refusal(FetchRules::default(), "https://example.org/?q=a b&c");
        assert!(message.contains("`| urlencode`"), "{message}");
        let message = refusal(FetchRules::default(), "example org");
        assert!(message.contains("is not a URL"), "{message}");
    }

    #[test]
    fn special_purpose_addresses_are_not_public() {
        let public = |text: &str| is_public(text.parse().unwrap());
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "3fff::1",
        ] {
            assert!(!public(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "64:ff9b::808:808",
            "::ffff:8.8.8.8",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn private_addresses_are_refused_unless_configured() {
        for url in [
            "http://127.0.0.1:9/",
            "http://localhost:9/",
            "http://[::1]:9/",
            "http://[::ffff:127.0.0.1]:9/",
            "http://0.0.0.0:9/",
            "http://2130706433:9/",
        ] {
            let message = refusal(FetchRules::default(), url);
            assert!(
                message.contains("is not a public address") || message.contains("lookup"),
                "{url}: {message}"
            );
        }
        let rules = FetchRules { private: true, ..FetchRules::default() };
        let message = refusal(rules, "http://127.0.0.1:9/");
        assert!(!message.contains("public"), "{message}");
    }

    #[test]
    fn only_listed_hosts_are_allowed_and_no_user_names() {
        let rules = FetchRules { hosts: vec!["api.example.org".into()], private: false };
        let message = refusal(rules.clone(), "https://example.com/");
        assert!(message.contains("host example.com is not allowed"), "{message}");
        let message = refusal(rules, "https://api.example.org@127.0.0.1/");
        assert!(message.contains("user name"), "{message}");
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["", "file:///etc/passwd", "/x", "ftp://example.org/", "http://"] {
            let message = refusal(FetchRules::default(), url);
            assert!(message.contains("URL"), "{url}: {message}");
        }
    }
}
