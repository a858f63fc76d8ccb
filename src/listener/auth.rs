//! Access checks: the token, the accepted `Host` names (against DNS rebinding), and the `Origin` of
//! requests that browsers send for a page (against other sites).

use std::net::IpAddr;

use super::api_error::ApiError;
use super::request_head::RequestHead;
use crate::secret::Secret;

const HEALTH_PATH: &str = "/api/health";
/// The first segments of the page's addresses and files.
const PAGE_PATHS: &[&str] = &[
    "flows",
    "runs",
    "calls",
    "savings",
    "budgets",
    "connect",
    "settings",
    "assets",
    "favicon.ico",
];

#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// Required everywhere except for the page's own files, the health check and webhook
    /// deliveries, which have their own secrets.
    pub token: Option<Secret>,
    /// Accepted `Host` names, in addition to `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Origins of other sites' pages that may use the API, such as `https://example.org`.
    pub origins: Vec<String>,
}

impl Auth {
    /// Checks `Host` and `Origin`.
    pub fn check_source(&self, head: &RequestHead) -> Result<(), ApiError> {
        self.check_host(head)?;
        self.check_origin(head)
    }

    /// Returns the request's origin if it is an allowed page of another server.
    pub fn allowed_origin<'a>(&self, head: &'a RequestHead) -> Option<&'a str> {
        head.header("origin").filter(|origin| {
            let mut allowed = self.origins.iter();
            allowed.any(|allowed| allowed.eq_ignore_ascii_case(origin))
        })
    }

    /// Rejects DNS rebinding: a page of another site can make the browser connect here under that
    /// site's own name, and `Host` then has that name. An address in `Host` was typed or linked,
    /// never rebound.
    fn check_host(&self, head: &RequestHead) -> Result<(), ApiError> {
        let hosts: Vec<&str> = head.all("host").collect();
        let [host] = hosts.as_slice() else {
            return Err(ApiError::bad_request("bad_host", "send exactly one Host header"));
        };
        let name = without_port(host);
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_known = is_address
            || name.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
        if is_known {
            return Ok(());
        }
        let message = format!(
            "unknown host name `{name}`; start the server with --allow-host {name} to allow it"
        );
        Err(ApiError::new(421, "unknown_host", message))
    }

    fn check_origin(&self, head: &RequestHead) -> Result<(), ApiError> {
        self.check_fetch_site(head)?;
        let reads = matches!(head.method.as_str(), "GET" | "HEAD" | "OPTIONS");
        if reads && head.path() != "/ws" {
            return Ok(());
        }
        // Clients other than browsers send no `Origin`.
        let Some(origin) = head.header("origin") else {
            return Ok(());
        };
        let is_own = origin.split_once("://").is_some_and(|(_, authority)| {
            head.header("host").is_some_and(|host| host.eq_ignore_ascii_case(authority))
        });
        if is_own || self.allowed_origin(head).is_some() {
            return Ok(());
        }
        let message = format!(
            "requests from pages of `{origin}` are blocked; start the server with --allow-origin {origin} to allow them"
        );
        Err(ApiError::new(403, "foreign_origin", message))
    }

    /// Rejects a read that a browser makes for another site's page, such as an image's. The page
    /// could not see the response, but a sum over the whole ledger would cost the server seconds.
    fn check_fetch_site(&self, head: &RequestHead) -> Result<(), ApiError> {
        let is_cross_site = head.header("sec-fetch-site") == Some("cross-site");
        if !is_cross_site || is_public(head) || self.allowed_origin(head).is_some() {
            return Ok(());
        }
        let message = "requests from pages of other sites are blocked; start the server with \
                       --allow-origin ORIGIN to allow one";
        Err(ApiError::new(403, "foreign_origin", message))
    }

    /// Checks the token, and rejects headers that are not ASCII.
    pub fn check_token(&self, head: &RequestHead) -> Result<(), ApiError> {
        if let Some((name, _)) = head.fields().find(|(_, value)| !value.is_ascii()) {
            let message = format!("cannot read the request: header {name} is not ASCII");
            return Err(ApiError::bad_request("bad_request", message));
        }
        let Some(token) = &self.token else {
            return Ok(());
        };
        if is_public(head) || is_delivery(head) || head.carries(token) {
            return Ok(());
        }
        let message =
            "missing or wrong token; send the server's token as `Authorization: Bearer TOKEN`";
        Err(ApiError::new(401, "unauthorized", message))
    }
}

/// The page has to load before it can ask for the token; it holds no data. A preflight cannot
/// carry a token.
fn is_public(head: &RequestHead) -> bool {
    let path = head.path();
    let first = path.split('/').nth(1).unwrap_or_default();
    let is_page = path == "/" || PAGE_PATHS.contains(&first);
    head.method == "OPTIONS" || is_page || path == HEALTH_PATH
}

/// Returns true for a health check, which is answered even if all connections are in use.
pub fn is_probe(head: &RequestHead) -> bool {
    matches!(head.method.as_str(), "GET" | "HEAD") && head.path() == HEALTH_PATH
}

/// Returns true for a webhook delivery; its route checks the webhook's own secret. Strict, so that
/// no other request passes without the token.
fn is_delivery(head: &RequestHead) -> bool {
    let slug = head.path().strip_prefix("/hooks/");
    let is_slug = |slug: &str| !slug.is_empty() && slug.bytes().all(|b| b.is_ascii_alphanumeric());
    head.method == "POST" && slug.is_some_and(is_slug)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // In `[::1]` the last colon belongs to the address.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(access: &Auth, request: &str) -> Result<(), u16> {
        let text = format!("{}\r\n\r\n", request.replace('\n', "\r\n"));
        let (head, _) = RequestHead::parse(text.as_bytes()).unwrap().unwrap();
        let checked = access.check_source(&head);
        let checked = checked.and_then(|()| access.check_token(&head));
        checked.map_err(|denied| denied.status)
    }

    #[test]
    fn unknown_host_names_are_refused() {
        let access = Auth { hosts: vec!["ledger.lan".into()], ..Auth::default() };
        for host in [
            "localhost:7700",
            "LOCALHOST",
            "127.0.0.1:7700",
            "[::1]:7700",
            "[::1]",
            "192.168.1.5",
            "ledger.lan:80",
        ] {
            assert_eq!(check(&access, &format!("GET / HTTP/1.1\nHost: {host}")), Ok(()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7700", ""] {
            assert_eq!(
                check(&access, &format!("GET / HTTP/1.1\nHost: {host}")),
                Err(421),
                "{host}"
            );
        }
        assert_eq!(check(&access, "GET / HTTP/1.1\nX: y"), Err(400));
        assert_eq!(check(&access, "GET / HTTP/1.1\nHost: a\nHost: localhost"), Err(400));
    }

    #[test]
    fn other_origins_can_neither_write_nor_open_a_websocket() {
        let access = Auth { origins: vec!["https://app.example".into()], ..Auth::default() };
        let from = |method: &str, path: &str, origin: &str| {
            check(
                &access,
                &format!("{method} {path} HTTP/1.1\nHost: localhost:7700\nOrigin: {origin}"),
            )
        };
        assert_eq!(from("POST", "/api/flows", "http://localhost:7700"), Ok(()));
        assert_eq!(from("POST", "/api/flows", "https://app.example"), Ok(()));
        assert_eq!(from("GET", "/ws?since=1", "https://app.example"), Ok(()));
        assert_eq!(from("GET", "/api/flows", "https://evil.example"), Ok(()));
        for origin in ["https://evil.example", "http://localhost:8000", "null"] {
            assert_eq!(from("POST", "/api/flows", origin), Err(403), "{origin}");
            assert_eq!(from("DELETE", "/api/flows/1", origin), Err(403), "{origin}");
            assert_eq!(from("GET", "/ws", origin), Err(403), "{origin}");
        }
    }

    #[test]
    fn browsers_cannot_read_the_api_for_pages_of_other_sites() {
        let access = Auth { origins: vec!["https://app.example".into()], ..Auth::default() };
        let get = |path: &str, fields: &str| {
            check(&access, &format!("GET {path} HTTP/1.1\nHost: localhost:7700\n{fields}"))
        };
        let cross = "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: no-cors";
        for path in [
            "/api/ledger/summary?group_by=tag",
            "/api/flows",
            "/api/tags",
            "/v1/models",
            "/v1beta/models",
            "/metrics",
        ] {
            assert_eq!(get(path, cross), Err(403), "{path}");
            for site in ["same-origin", "same-site", "none"] {
                assert_eq!(get(path, &format!("Sec-Fetch-Site: {site}")), Ok(()), "{path} {site}");
            }
            let allowed = format!("{cross}\nOrigin: https://app.example");
            assert_eq!(get(path, &allowed), Ok(()), "{path}");
        }
        for path in ["/", "/assets/app.js", "/api/health"] {
            assert_eq!(get(path, cross), Ok(()), "{path}");
        }
    }

    #[test]
    fn with_a_token_only_the_page_and_the_health_check_are_public() {
        let access = Auth { token: Some(Secret::new("t")), ..Auth::default() };
        for path in ["/", "/assets/app.js", "/api/health"] {
            assert_eq!(check(&access, &format!("GET {path} HTTP/1.1\nHost: localhost")), Ok(()));
        }
        let post = |path: &str| check(&access, &format!("POST {path} HTTP/1.1\nHost: localhost"));
        assert_eq!(post("/hooks/0123abc"), Ok(()));
        assert_eq!(post("/hooks/0123abc?x=/"), Ok(()));
        for path in [
            "/hooks",
            "/hooks/",
            "/hooks/a/b",
            "/hooks/../api/flows",
            "/hooks/%2e%2e",
            "//hooks/a",
            "/Hooks/a",
            "/api/hooks/a",
        ] {
            assert_eq!(post(path), Err(401), "{path}");
        }
        for path in
            ["/hooks/0123abc", "/api/flows", "/ws", "/metrics", "/v1/models", "//", "/nothing"]
        {
            let request = format!("GET {path} HTTP/1.1\nHost: localhost");
            assert_eq!(check(&access, &request), Err(401), "{path}");
            assert_eq!(check(&access, &format!("{request}\nAuthorization: Bearer t")), Ok(()));
        }
    }
}
