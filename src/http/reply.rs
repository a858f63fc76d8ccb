//! What a route reads and returns: queries, responses, and errors with the fitting status.

use std::io::{self, Cursor, Read};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tiny_http::{HTTPVersion, Header, Response, ResponseBox, StatusCode};

use crate::error::{Error, Fault, Result};
use crate::listener::{Denied, RequestHead, ResponseWriter};

/// How many items a list gives unless asked, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;
/// How much of a stream is sent at a time.
const PIECE_BYTES: usize = 16 << 10;

/// What a route returns.
pub type Answer = std::result::Result<ResponseBox, Failure>;

/// The parameters of a query. A route takes out those that it knows and then calls
/// [`Query::finish`]: one that nobody knows is an error, because a filter with a typing mistake
/// would give numbers that are wrong.
pub struct Query {
    pairs: Vec<(String, String)>,
    faults: Vec<Fault>,
}

impl Query {
    /// Reads what stands behind the `?`.
    pub fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes())
            .into_owned()
            .collect();
        Self {
            pairs,
            faults: Vec::new(),
        }
    }

    /// Takes a parameter out; an empty one counts as none.
    pub fn take<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let at = self.pairs.iter().position(|(key, _)| key == name)?;
        let (_, value) = self.pairs.remove(at);
        if value.is_empty() {
            return None;
        }
        match value.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.faults.push(Fault::new(name, error.to_string()));
                None
            }
        }
    }

    /// Takes `limit` out, within its bounds.
    pub fn take_limit(&mut self) -> usize {
        let limit: Option<usize> = self.take("limit");
        if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
            self.faults.push(Fault::new(
                "limit",
                format!("must be between 1 and {LIMIT_MAX}"),
            ));
        }
        limit.unwrap_or(LIMIT_DEFAULT)
    }

    /// Says what was wrong.
    pub fn finish(mut self) -> Result<()> {
        for (name, _) in self.pairs {
            self.faults
                .push(Fault::new(name, "is not a parameter of this route"));
        }
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid {
            message: "the query cannot be read".into(),
            faults: self.faults,
        })
    }
}

/// Reads a body as JSON.
///
/// # Errors
/// A [`Failure`] of 400 with line and column for what is not JSON; of 422 for what is not of the
/// form wanted.
pub fn read_json<T: DeserializeOwned>(body: &[u8]) -> std::result::Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let (status, code) = if error.is_data() {
            (422, "invalid")
        } else {
            (400, "invalid_json")
        };
        Failure::new(status, code, format!("the body cannot be read: {error}"))
    })
}

/// Sets a header of a response.
pub trait With {
    fn with(self, name: &'static str, value: impl Into<String>) -> Self;
}

impl With for ResponseBox {
    fn with(self, name: &'static str, value: impl Into<String>) -> Self {
        // A value that is no header value is left out rather than sent as two headers.
        match Header::from_bytes(name, value.into()) {
            Ok(header) => self.with_header(header),
            Err(()) => self,
        }
    }
}

/// JSON, never cached.
pub fn json(status: u16, value: &impl Serialize) -> ResponseBox {
    match serde_json::to_vec(value) {
        Ok(bytes) => finite(status, "application/json", bytes),
        Err(error) => {
            let why = format!("a response cannot be written: {error}");
            Failure::from(Error::internal(why)).into_response()
        }
    }
}

/// A text, never cached.
pub fn text(content_type: &'static str, text: String) -> ResponseBox {
    finite(200, content_type, text.into_bytes())
}

/// One page of a list; `next` is the cursor of the next page, if there is one.
pub fn list(items: &impl Serialize, next: Option<impl Serialize>) -> ResponseBox {
    // Not by `json!`, which would turn exact amounts of money into floating point numbers.
    #[derive(Serialize)]
    struct List<'a, T, N> {
        items: &'a T,
        next: Option<N>,
    }
    json(200, &List { items, next })
}

/// A file that is part of the program.
pub fn file(content_type: &'static str, bytes: &'static [u8]) -> ResponseBox {
    // Checked each time, so that an update of the program never leads to a mix of versions.
    response(200, bytes, Some(bytes.len()))
        .with("content-type", content_type)
        .with("cache-control", "no-cache")
}

/// A body of unknown length, which is made while it is sent.
pub fn stream(content_type: &'static str, reader: impl Read + Send + 'static) -> ResponseBox {
    response(200, reader, None).with("content-type", content_type)
}

/// 204.
pub fn empty() -> ResponseBox {
    response(204, io::empty(), Some(0))
}

/// Tells a browser what pages of other origins may do. Whether the asking page may is said by the
/// header that the listener adds.
pub fn preflight() -> ResponseBox {
    empty()
        .with(
            "access-control-allow-methods",
            "GET, POST, PUT, DELETE",
        )
        .with(
            "access-control-allow-headers",
            "authorization, content-type, idempotency-key, if-match, x-flowledger-secret, x-api-key, \
             anthropic-version, anthropic-beta, x-flowledger-flow, x-flowledger-role, \
             x-flowledger-tags, x-flowledger-cache",
        )
        .with("access-control-max-age", "600")
}

fn finite(status: u16, content_type: &'static str, bytes: Vec<u8>) -> ResponseBox {
    let length = bytes.len();
    response(status, Cursor::new(bytes), Some(length))
        .with("content-type", content_type)
        .with("cache-control", "no-store")
}

fn response(status: u16, body: impl Read + Send + 'static, length: Option<usize>) -> ResponseBox {
    Response::new(StatusCode(status), Vec::new(), body, length, None)
        // By default, tiny_http sends bodies over 32 KiB in chunks.
        .with_chunked_threshold(usize::MAX)
        .boxed()
}

/// Sends a response: printed where its length is known, else in pieces as they are made.
pub fn send(response: ResponseBox, head: &RequestHead, writer: &mut ResponseWriter<'_>) {
    let status = response.status_code().0;
    let Some(length) = response.data_length() else {
        return send_stream(response, writer);
    };
    let response = response
        .with("server", "flowledger")
        .with("x-content-type-options", "nosniff")
        .with("referrer-policy", "no-referrer");
    let without_body = head.method == "HEAD";
    // Also to a client of HTTP/1.0: nothing in it is beyond that.
    writer.print(status, length, |out| {
        response.raw_print(out, HTTPVersion(1, 1), &[], without_body, None)
    });
}

fn send_stream(response: ResponseBox, writer: &mut ResponseWriter<'_>) {
    let headers = response.headers().to_vec();
    let fields: Vec<(&str, &str)> = headers
        .iter()
        .map(|header| (header.field.as_str().as_str(), header.value.as_str()))
        .chain([("referrer-policy", "no-referrer")])
        .collect();
    if !writer.begin(response.status_code().0, &fields) {
        return;
    }
    let mut reader = response.into_reader();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return writer.end(),
            Ok(count) if writer.piece(&piece[..count]) => {}
            Ok(_) => return,
            Err(error) => {
                // Without an end, the client sees that something is missing.
                log::error!("a response breaks off: {error}");
                return;
            }
        }
    }
}

/// An error on its way to the one who asked.
pub struct Failure {
    status: u16,
    code: &'static str,
    message: String,
    faults: Vec<Fault>,
    allow: Option<String>,
}

impl Failure {
    /// An error of that status.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            faults: Vec::new(),
            allow: None,
        }
    }

    /// The route exists, the method does not.
    pub fn method_not_allowed(method: &str, path: &str, allow: String) -> Self {
        let message = format!("{path} does not take {method}; it takes {allow}");
        Self {
            allow: Some(allow),
            ..Self::new(405, "method_not_allowed", message)
        }
    }

    /// For a client that is not there to read it.
    pub fn client_left() -> Self {
        Self::new(499, "cancelled", "the client has left")
    }

    /// The response: `{"error": {"code", "message", "details"}}`.
    pub fn into_response(self) -> ResponseBox {
        let mut error = json!({"code": self.code, "message": self.message});
        if !self.faults.is_empty() {
            error["details"] = json!(self.faults);
        }
        let response = json(self.status, &json!({"error": error}));
        match (self.allow, self.status) {
            (Some(allow), _) => response.with("allow", allow),
            (None, 429 | 503) => response.with("retry-after", "1"),
            _ => response,
        }
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        Self::new(denied.status, denied.code, denied.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Invalid { .. } => (422, "invalid"),
            Error::NotFound(_) => (404, "not_found"),
            Error::Conflict(_) => (409, "conflict"),
            Error::Budget(_) => (402, "budget"),
            Error::Busy(_) => (429, "busy"),
            Error::Stopping => (503, "stopping"),
            Error::Disk(_) => (503, "disk"),
            Error::Store(_) | Error::Io { .. } | Error::Config(_) | Error::Internal { .. } => {
                (500, "internal")
            }
        };
        if status == 500 {
            log::error!("{error}");
        }
        match error {
            Error::Invalid { message, faults } => Self {
                faults,
                ..Self::new(status, code, message)
            },
            other => Self::new(status, code, other.to_string()),
        }
    }
}
