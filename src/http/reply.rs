//! Responses of routes, and the HTTP status of each error.

use std::borrow::Cow;
use std::io::{self, Cursor, Read};

use flate2::Compression;
use flate2::read::GzEncoder;
use serde::Serialize;
use tiny_http::{HTTPVersion, Header, Response, ResponseBox, StatusCode};

use crate::error::{Error, Result};
use crate::listener::{ApiError, RequestHead, ResponseWriter};

/// A larger response is created in pieces while it is sent, so that clients that read slowly do not
/// hold it in memory.
pub const BYTES_AT_ONCE_MAX: usize = 1 << 20;
/// A smaller response fits into one packet anyway.
const GZIP_BYTES_MIN: usize = 1_400;
/// The size of the pieces in which a stream is sent.
const PIECE_BYTES: usize = 16 << 10;

pub type Answer = Result<ResponseBox, ApiError>;

/// Sets a header of a response.
pub trait With {
    fn with(self, name: &'static str, value: impl Into<String>) -> Self;
}

impl With for ResponseBox {
    fn with(self, name: &'static str, value: impl Into<String>) -> Self {
        // Omit an invalid value: a line break in it would start another header.
        match Header::from_bytes(name, value.into()) {
            Ok(header) => self.with_header(header),
            Err(()) => self,
        }
    }
}

/// Returns a JSON response, never cached.
pub fn json(status: u16, value: &impl Serialize) -> ResponseBox {
    match serde_json::to_vec(value) {
        Ok(bytes) => finite(status, "application/json", bytes),
        Err(error) => {
            let why = format!("cannot encode a response: {error}");
            self::error(Error::internal(why).into())
        }
    }
}

/// Returns a text response, never cached.
pub fn text(content_type: &'static str, text: String) -> ResponseBox {
    finite(200, content_type, text.into_bytes())
}

pub fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::internal(format!("cannot encode a response: {error}")))
}

/// Returns a JSON response of pieces, each of which is created when the one before is sent.
pub fn json_pieces(pieces: impl Iterator<Item = Result<Vec<u8>>> + Send + 'static) -> ResponseBox {
    stream("application/json", Pieces { pieces, ready: Cursor::default() })
        .with("cache-control", "no-store")
}

struct Pieces<I> {
    pieces: I,
    ready: Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = Result<Vec<u8>>>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.ready.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.pieces.next() {
                None => return Ok(0),
                Some(piece) => self.ready = Cursor::new(piece.map_err(io::Error::other)?),
            }
        }
    }
}

/// Returns one page of a list; `next` is the cursor of the next page, if there is one.
pub fn list(items: &impl Serialize, next: Option<impl Serialize>) -> ResponseBox {
    // Not `json!`, which would turn exact amounts of money into floating point numbers.
    #[derive(Serialize)]
    struct List<'a, T, N> {
        items: &'a T,
        next: Option<N>,
    }
    json(200, &List { items, next })
}

/// Truncates `found` to `limit` items and returns the cursor of the next page, if any. The caller
/// reads one item more than the limit.
pub fn cut<T, N>(found: &mut Vec<T>, limit: usize, cursor: impl Fn(&T) -> N) -> Option<N> {
    let has_more = found.len() > limit;
    found.truncate(limit);
    found.last().filter(|_| has_more).map(cursor)
}

/// Returns the response for a started run.
pub fn run(status: u16, run_id: &str) -> ResponseBox {
    let reply = json(status, &serde_json::json!({"runId": run_id}));
    reply.with("location", format!("/api/runs/{run_id}"))
}

/// Returns a file; the caller decides how long it is cached.
pub fn file(content_type: &'static str, bytes: Cow<'static, [u8]>) -> ResponseBox {
    let length = bytes.len();
    response(200, Cursor::new(bytes), Some(length)).with("content-type", content_type)
}

pub fn not_modified() -> ResponseBox {
    response(304, io::empty(), Some(0))
}

/// Returns a response with a body of unknown length, which is generated while it is sent.
pub fn stream(content_type: &'static str, reader: impl Read + Send + 'static) -> ResponseBox {
    response(200, reader, None).with("content-type", content_type)
}

pub fn empty() -> ResponseBox {
    response(204, io::empty(), Some(0))
}

/// Answers a preflight; the listener adds the allowed origin.
pub fn preflight() -> ResponseBox {
    empty()
        .with("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE")
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

/// Returns the response compressed, if the client accepts that and it is worth it. Only answers to
/// `GET`, because they contain no secret whose length a page of another site could guess.
pub fn compressed(answer: ResponseBox, head: &RequestHead) -> ResponseBox {
    let length = answer.data_length().unwrap_or_default();
    let accepted = head.header("accept-encoding").unwrap_or_default();
    let mut headers = answer.headers().iter();
    let is_encoded = headers.any(|header| header.field.equiv("content-encoding"));
    if head.method != "GET" || length < GZIP_BYTES_MIN || is_encoded || !accepts(accepted, "gzip") {
        return answer;
    }
    let (status, headers) = (answer.status_code().0, answer.headers().to_vec());
    let mut encoder = GzEncoder::new(answer.into_reader(), Compression::fast());
    let mut bytes = Vec::with_capacity(length / 4);
    if let Err(error) = encoder.read_to_end(&mut bytes) {
        let why = format!("cannot compress a response: {error}");
        return self::error(Error::internal(why).into());
    }
    let length = bytes.len();
    let compressed = response(status, Cursor::new(bytes), Some(length));
    let compressed = headers.into_iter().fold(compressed, ResponseBox::with_header);
    compressed.with("content-encoding", "gzip").with("vary", "accept-encoding")
}

/// Returns whether an `Accept-Encoding` header names an encoding without a quality of 0.
pub fn accepts(header: &str, encoding: &str) -> bool {
    header.split(',').any(|part| {
        let mut parts = part.split(';').map(str::trim);
        let is_named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(encoding));
        let is_refused = parts.any(|parameter| {
            let quality = parameter.strip_prefix("q=").and_then(|quality| quality.parse().ok());
            quality == Some(0.0)
        });
        is_named && !is_refused
    })
}

/// Sends a response: in one part if its length is known, else in pieces as they are generated.
pub fn send(response: ResponseBox, head: &RequestHead, writer: &mut ResponseWriter<'_>) {
    let status = response.status_code().0;
    let without_body = head.method == "HEAD";
    let response = response.with("referrer-policy", "no-referrer");
    let Some(length) = response.data_length() else {
        return send_stream(response, without_body, writer);
    };
    let response = response.with("server", "flowledger").with("x-content-type-options", "nosniff");
    // Also valid for HTTP/1.0 clients: it uses no newer feature.
    writer.print(status, length, |out| {
        response.raw_print(out, HTTPVersion(1, 1), &[], without_body, None)
    });
}

fn send_stream(response: ResponseBox, without_body: bool, writer: &mut ResponseWriter<'_>) {
    let headers = response.headers().to_vec();
    let fields = headers.iter().map(|it| (it.field.as_str().as_str(), it.value.as_str()));
    let fields: Vec<(&str, &str)> = fields.collect();
    if !writer.begin(response.status_code().0, &fields) {
        return;
    }
    if without_body {
        return writer.end();
    }
    let mut reader = response.into_reader();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return writer.end(),
            Ok(count) if writer.piece(&piece[..count]) => {}
            Ok(_) => return,
            Err(error) => {
                // The missing end marker shows the client that the response is incomplete.
                log::error!("cannot complete a response: {error}");
                return;
            }
        }
    }
}

pub fn error(error: ApiError) -> ResponseBox {
    let response = finite(error.status, "application/json", error.to_json());
    error.headers.into_iter().fold(response, |response, (name, value)| response.with(name, value))
}

/// Returns the error for a disconnected client, which will not read it.
pub fn client_disconnected() -> ApiError {
    ApiError::new(499, "cancelled", "client disconnected")
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Invalid { .. } => (422, "invalid"),
            Error::NotFound(_) => (404, "not_found"),
            Error::Conflict(_) => (409, "conflict"),
            Error::Budget(_) | Error::BudgetHeld(_) => (402, "budget"),
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
            Error::Invalid { message, faults } => {
                Self { faults, ..Self::new(status, code, message) }
            }
            other => Self::new(status, code, other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_used_if_the_client_accepts_it() {
        for accepted in ["br", "gzip, br;q=1.0", "gzip;q=0.5,BR ; q=0.1"] {
            assert!(accepts(accepted, "br"), "{accepted}");
        }
        for refused in ["", "gzip", "br;q=0", "br;q=0.0", "brotli"] {
            assert!(!accepts(refused, "br"), "{refused}");
        }
    }
}
