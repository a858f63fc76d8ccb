//! What a route gets and gives: queries, replies, and errors with the fitting status.

use std::io::{self, Cursor, Read};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tiny_http::{Header, Request, Response, StatusCode};

use crate::error::{Error, Fault, Result};

/// How many items a list gives unless asked, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;

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

/// An answer.
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

enum Body {
    Empty,
    Bytes(Vec<u8>),
    Static(&'static [u8]),
    /// Of unknown length; goes out in chunks.
    Stream(Box<dyn Read + Send>),
}

impl Reply {
    /// JSON, never cached.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::new(status, "application/json", Body::Bytes(bytes)),
            Err(error) => Failure::from(Error::internal(format!(
                "an answer cannot be written: {error}"
            )))
            .into_reply(),
        }
        .with("cache-control", "no-store")
    }

    /// A text, never cached.
    pub fn text(content_type: &'static str, text: String) -> Self {
        Self::new(200, content_type, Body::Bytes(text.into_bytes()))
            .with("cache-control", "no-store")
    }

    /// One page of a list; `next` is the cursor of the next, if there is one.
    pub fn list(items: &impl Serialize, next: Option<impl Serialize>) -> Self {
        // Not by `json!`, which would turn exact amounts of money into floating point numbers.
        #[derive(Serialize)]
        struct List<'a, T, N> {
            items: &'a T,
            next: Option<N>,
        }
        Self::json(200, &List { items, next })
    }

    /// A file that is part of the program.
    pub fn file(content_type: &'static str, bytes: &'static [u8]) -> Self {
        // Checked each time: after an update of the program nobody is to see a mix of versions.
        Self::new(200, content_type, Body::Static(bytes)).with("cache-control", "no-cache")
    }

    /// A body that is made while it is sent.
    pub fn stream(content_type: &'static str, reader: impl Read + Send + 'static) -> Self {
        Self::new(200, content_type, Body::Stream(Box::new(reader)))
            .with("cache-control", "no-store")
    }

    /// Nothing to say: 204.
    pub fn empty() -> Self {
        Self {
            status: 204,
            headers: Vec::new(),
            body: Body::Empty,
        }
    }

    /// The answer to a browser that asks what pages of other origins may do. Whether this one
    /// may is said by [`Reply::for_origin`].
    pub fn preflight() -> Self {
        Self::empty()
            .with("access-control-allow-methods", "GET, POST, PUT, DELETE")
            .with(
                "access-control-allow-headers",
                "authorization, content-type, idempotency-key, if-match, x-flowledger-secret, x-api-key, \
                 anthropic-version, anthropic-beta, x-flowledger-flow, x-flowledger-role, \
                 x-flowledger-tags, x-flowledger-cache",
            )
            .with("access-control-max-age", "600")
    }

    /// Lets pages of that origin read the answer, if not all may: a browser refuses an answer that
    /// says it twice.
    pub fn for_origin(self, origin: &str) -> Self {
        const FIELD: &str = "access-control-allow-origin";
        if self.headers.iter().any(|(name, _)| *name == FIELD) {
            return self;
        }
        self.with(FIELD, origin).with("vary", "origin")
    }

    /// With a header field.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn new(status: u16, content_type: &str, body: Body) -> Self {
        Self {
            status,
            headers: vec![("content-type", content_type.to_owned())],
            body,
        }
    }

    /// Writes the answer.
    pub fn send(self, request: Request) -> io::Result<()> {
        let mut headers: Vec<Header> = Vec::new();
        let common = [
            ("server", "flowledger".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
        ];
        for (name, value) in common.into_iter().chain(self.headers) {
            // A value that is no header value is left out rather than sent as two fields.
            headers.extend(Header::from_bytes(name, value));
        }
        let status = StatusCode(self.status);
        match self.body {
            Body::Empty => {
                request.respond(Response::new(status, headers, io::empty(), Some(0), None))
            }
            Body::Bytes(bytes) => {
                let length = Some(bytes.len());
                request.respond(whole(Response::new(
                    status,
                    headers,
                    Cursor::new(bytes),
                    length,
                    None,
                )))
            }
            Body::Static(bytes) => request.respond(whole(Response::new(
                status,
                headers,
                bytes,
                Some(bytes.len()),
                None,
            ))),
            Body::Stream(reader) => {
                request.respond(Response::new(status, headers, reader, None, None))
            }
        }
    }
}

/// tiny_http sends bodies over 32 KiB in chunks even where it knows their length.
fn whole<R: Read>(response: Response<R>) -> Response<R> {
    response.with_chunked_threshold(usize::MAX)
}

/// An error on its way to the one who asked.
pub struct Failure {
    status: u16,
    code: &'static str,
    message: String,
    faults: Vec<Fault>,
    allow: Option<&'static str>,
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
    pub fn method_not_allowed(method: &str, path: &str, allow: &'static str) -> Self {
        let message = format!("{path} does not take {method}; it takes {allow}");
        Self {
            allow: Some(allow),
            ..Self::new(405, "method_not_allowed", message)
        }
    }

    /// The answer: `{"error": {"code", "message", "details"}}`.
    pub fn into_reply(self) -> Reply {
        let mut error = json!({"code": self.code, "message": self.message});
        if !self.faults.is_empty() {
            error["details"] = json!(self.faults);
        }
        let reply = Reply::json(self.status, &json!({"error": error}));
        match (self.allow, self.status) {
            (Some(allow), _) => reply.with("allow", allow),
            (None, 429 | 503) => reply.with("retry-after", "1"),
            _ => reply,
        }
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
