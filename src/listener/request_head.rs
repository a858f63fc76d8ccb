//! A request's head: read with limits, parsed strictly.
//!
//! Ambiguous requests (two lengths, a length and chunks, spaces in odd places) are refused, so that
//! the listener and the server behind it never disagree about the end of a request.

use crate::secret::Secret;

/// The largest head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 100;
/// Headers that the server reads, so their values must be ASCII, like those of `X-Flowledger-*`.
const UNDERSTOOD: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "origin",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

/// The framing of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This number of bytes follows; 0 without a body.
    Length(u64),
    /// Chunks follow (RFC 9112, section 7.1).
    Chunked,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    /// The target as sent; starts with `/`.
    pub target: String,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version: u8,
    /// The headers in order; names in lower case, values without control characters. Values in
    /// `UNDERSTOOD` headers are ASCII; other values are read as UTF-8 or else as Latin-1 (RFC 9110,
    /// section 5.5).
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequestHead {
    /// Over [`HEAD_BYTES_MAX`] or too many headers: 431.
    #[error(
        "request headers too large; the limits are {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} headers"
    )]
    TooLarge,
    /// Not HTTP, or ambiguous: 400.
    #[error("cannot read the request: {0}")]
    Malformed(String),
}

impl RequestHead {
    /// Returns the head at the start of `bytes` and its length, or none if it is incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadRequestHead> {
        let mut fields = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadRequestHead::TooLarge),
            Err(error) => return Err(malformed(error.to_string())),
        };
        // httparse accepts such a line. A proxy in front may read it as a part of the line before.
        if has_bare_line_feed(&bytes[..length]) {
            return Err(malformed("lines must end with CRLF"));
        }
        let target = request.path.unwrap_or_default();
        if !target.starts_with('/') || !target.is_ascii() {
            return Err(malformed("the request target must be a path"));
        }
        let mut headers = Vec::with_capacity(request.headers.len());
        for field in request.headers.iter() {
            let name = field.name.to_ascii_lowercase();
            let is_understood =
                UNDERSTOOD.contains(&name.as_str()) || name.starts_with("x-flowledger-");
            if is_understood && !field.value.is_ascii() {
                return Err(malformed(format!("header {name} is not ASCII")));
            }
            // Trim only ASCII white space: other parsers treat any other as a part of the value.
            headers.push((name, text_of(field.value.trim_ascii())));
        }
        let mut head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: target.to_owned(),
            version: request.version.unwrap_or(1),
            headers,
            body: Body::Length(0),
        };
        head.body = head.find_body()?;
        Ok(Some((head, length)))
    }

    /// Returns the method and the target of an invalid or incomplete head; the target may be cut
    /// off.
    pub(super) fn parse_partial(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.trim_ascii_start().split(|byte| *byte <= b' ');
        let mut word = || std::str::from_utf8(words.next()?).ok();
        let (method, target) = (word()?, word()?);
        target.starts_with('/').then(|| Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: 1,
            headers: Vec::new(),
            body: Body::Length(0),
        })
    }

    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Returns the items of a comma-separated header.
    pub fn items<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name).flat_map(|value| value.split(',')).map(str::trim)
    }

    /// Returns the target up to the query.
    pub fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    /// Returns the first value of a query parameter, without decoding.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Returns true if a comma-separated header contains the token, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.items(name).any(|item| item.eq_ignore_ascii_case(token))
    }

    /// Returns true if the connection may stay open after the response.
    pub fn keeps_alive(&self) -> bool {
        self.version == 1 && !self.has_token("connection", "close")
    }

    /// Returns the token of `Authorization: Bearer`.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// Returns true if the request carries this token: as a bearer token, or as the subprotocol
    /// `bearer.HEX`, because browsers cannot set headers for `/ws`. Compares in constant time.
    pub fn carries(&self, token: &Secret) -> bool {
        if let Some(offered) = self.bearer() {
            return token.matches(offered.as_bytes());
        }
        let as_protocol = Secret::new(crate::ids::hex(token.expose().as_bytes()));
        self.items("sec-websocket-protocol")
            .filter_map(|name| name.strip_prefix("bearer."))
            .any(|offered| as_protocol.matches(offered.as_bytes()))
    }

    fn find_body(&self) -> Result<Body, BadRequestHead> {
        let codings: Vec<&str> = self.all("transfer-encoding").collect();
        let lengths: Vec<&str> = self.all("content-length").collect();
        match (codings.as_slice(), lengths.as_slice()) {
            ([], []) => Ok(Body::Length(0)),
            ([], [length]) if length.bytes().all(|byte| byte.is_ascii_digit()) => length
                .parse()
                .map(Body::Length)
                .map_err(|_| malformed("content-length is not a valid length")),
            ([], _) => Err(malformed("content-length must occur once and be a whole number")),
            ([coding], []) if coding.eq_ignore_ascii_case("chunked") && self.version == 1 => {
                Ok(Body::Chunked)
            }
            _ => Err(malformed("transfer-encoding must be `chunked`, without content-length")),
        }
    }
}

fn has_bare_line_feed(bytes: &[u8]) -> bool {
    let mut feeds = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    feeds.any(|(at, _)| at == 0 || bytes[at - 1] != b'\r')
}

fn text_of(value: &[u8]) -> String {
    let latin = |_| value.iter().copied().map(char::from).collect();
    std::str::from_utf8(value).map_or_else(latin, str::to_owned)
}

fn malformed(why: impl Into<String>) -> BadRequestHead {
    BadRequestHead::Malformed(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<RequestHead, BadRequestHead> {
        RequestHead::parse(text.as_bytes()).map(|found| found.expect("complete").0)
    }

    #[test]
    fn a_request_head_parses() {
        let head = parse("POST /api/flows?x=1&since=7 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: Keep-Alive, Close\r\n\r\n").unwrap();
        assert_eq!((head.path(), head.query("since")), ("/api/flows", Some("7")));
        assert_eq!(head.body, Body::Length(3));
        assert!(!head.keeps_alive());
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for fields in [
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: +3",
            "Content-Length: 99999999999999999999",
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length : 3",
            "Host: \u{e9}",
            "Transfer-Encoding: \u{a0}chunked",
            "Content-Length: 3\u{a0}",
            "Content-Length: \u{0663}",
            "X-Flowledger-Role: \u{e9}",
            "X\u{e9}: 1",
            "X: a\u{7f}",
            "X: a\u{0}",
            "X: a\rb",
            "X: a\nTransfer-Encoding: chunked",
        ] {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            assert!(matches!(parse(&text), Err(BadRequestHead::Malformed(_))), "{fields}");
        }
        for text in ["GET / HTTP/1.1\nHost: a\n\n", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            assert!(matches!(parse(text), Err(BadRequestHead::Malformed(_))), "{text}");
        }
        assert!(matches!(
            parse("GET http://a/ HTTP/1.1\r\n\r\n"),
            Err(BadRequestHead::Malformed(_))
        ));
    }

    #[test]
    fn unknown_headers_accept_any_text() {
        let value = |bytes: &[u8]| {
            let head = [b"GET / HTTP/1.1\r\nX: ", bytes, b"\r\n\r\n"].concat();
            let (head, _) = RequestHead::parse(&head).unwrap().unwrap();
            head.header("x").unwrap().to_owned()
        };
        assert_eq!(value("ant\u{2009}é ".as_bytes()), "ant\u{2009}é");
        assert_eq!(value(b" caf\xe9"), "café");
        // Not white space to HTTP.
        assert_eq!(value("\u{a0}a\u{85}".as_bytes()), "\u{a0}a\u{85}");
    }

    #[test]
    fn a_refused_head_still_yields_its_path() {
        let path = |text: &str| {
            RequestHead::parse_partial(text.as_bytes()).map(|head| head.path().to_owned())
        };
        for (text, expected) in [
            ("\r\nPOST /v1/messages?a=b HTTP/1.1\r\nx", Some("/v1/messages")),
            ("POST /v1/mes", Some("/v1/mes")),
            ("GET  /v1/models HTTP/1.1\r\n", None),
            ("GET http://a/v1/models HTTP/1.1\r\n", None),
            ("nonsense\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(path(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_head_over_the_limit_is_refused_complete_or_not() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(RequestHead::parse(long.as_bytes()), Err(BadRequestHead::TooLarge));
        assert_eq!(
            RequestHead::parse(format!("{long}\r\n\r\n").as_bytes()),
            Err(BadRequestHead::TooLarge)
        );
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(RequestHead::parse(many.as_bytes()), Err(BadRequestHead::TooLarge));
    }

    #[test]
    fn a_token_is_accepted_in_its_two_headers_only() {
        let token = Secret::new("s3cret");
        let with = |field: &str| parse(&format!("GET /ws HTTP/1.1\r\n{field}\r\n\r\n")).unwrap();
        assert!(with("Authorization: Bearer s3cret").carries(&token));
        assert!(with("Sec-WebSocket-Protocol: flowledger, bearer.733363726574").carries(&token));
        assert!(!with("Authorization: Bearer s3cre").carries(&token));
        assert!(!with("Authorization: Basic s3cret").carries(&token));
        assert!(!with("Sec-WebSocket-Protocol: bearer.s3cret").carries(&token));
        assert!(!with("X: s3cret").carries(&token));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = RequestHead::parse(&bytes);
        }

        #[test]
        fn a_truncated_head_is_incomplete(cut in 0usize..66) {
            let text = "GET /ws?since=12 HTTP/1.1\r\nHost: localhost:7700\r\nUpgrade: websocket\r\n\r\n";
            prop_assert_eq!(RequestHead::parse(&text.as_bytes()[..cut]), Ok(None));
        }
    }
}
