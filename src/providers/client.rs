//! One exchange over HTTP: sends a request, reads the answer within its limits, and says in words
//! what went wrong.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use ureq::{Agent, Body, Timeout};

use super::refusal::{self, Refusal};
use super::transport::{Connect, LookupLater, Scope};
use super::wire::{Fault, Flow, Framing, Header, Reader, Request, ResponseAccumulator};
use super::{FailureKind, Timeouts, json, ndjson, sse};
use crate::event::Timestamp;
use crate::secret::Secret;

/// How much of the body of an error is read, bytes. One that is longer is not passed on: a part of it
/// would be no JSON.
const ERROR_BODY_BYTES_MAX: usize = 1024 * 1024;

/// The longest body of an answer in one piece, bytes. JSON may need six bytes for one (`\u0000`),
/// but hardly for all: this is four times the longest text.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much is read at a time, bytes. On the heap: calls run on threads with small stacks.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// How much of a stream is kept to show what it began with, bytes.
pub(super) const OPENING_BYTES: usize = 1024;

/// How long to wait for the end of the body behind the end of the answer. It usually came with it;
/// then the connection can serve another call, else it is closed.
pub(super) const DRAIN_MAX: Duration = Duration::from_millis(50);

/// Idle connections that are kept to one provider: as many as there may be parallel calls.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// The most that the head of a response may have, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A response that is not of status 2xx; its body is redacted.
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// Makes exchanges; holds the pool of connections.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
}

/// What one exchange needs, and what becomes of it.
pub(super) struct Exchange<'a> {
    pub(super) provider: &'a str,
    pub(super) timeouts: Timeouts,
    pub(super) key: Option<&'a Secret>,
    /// Whether the answer was asked for piece by piece.
    pub(super) is_streamed: bool,
    pub(super) scope: &'a Scope,
    /// Grows as the answer comes; what is known stays also where the exchange fails.
    pub(super) partial: &'a mut ResponseAccumulator,
    pub(super) on_piece: &'a mut dyn FnMut(&str),
}

/// The fault of a call that was stopped.
pub(super) fn cancelled() -> Fault {
    Fault::new(FailureKind::Cancelled, "the call was cancelled")
}

impl Client {
    pub(super) fn new() -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would take the key elsewhere. It is told as what it is.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("flowledger/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEAD_BYTES_MAX)
            .max_idle_connections(2 * IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .build();
        Self {
            agent: Agent::with_parts(config, Connect::new(), LookupLater),
        }
    }

    /// Sends the request and has the answer read. Where it fails, `exchange.partial` keeps what
    /// came before.
    pub(super) fn exchange(
        &self,
        request: Request,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
    ) -> Result<(), Fault> {
        let uri = parse_url(&request.url, exchange.provider)?;
        let body = serde_json::to_vec(&request.body);
        let sent = body
            .map_err(|_| SendError::Unsendable)
            .and_then(|body| self.send(&uri, &request.headers, &body, exchange));
        let response = sent.map_err(|error| self.fault(error, exchange, &uri))?;
        if !response.status().is_success() {
            return Err(self.refused(response, exchange).0);
        }
        let form = Form::of(response.headers(), exchange.is_streamed);
        let body = response.into_body().into_reader();
        let read = match form {
            Form::Stream => self.read_stream(body, reader, exchange),
            Form::Document => read_document(body, reader, exchange),
        };
        read.map_err(|stop| match stop {
            _ if exchange.scope.cancel.is_cancelled() => cancelled(),
            Stop::Fault(fault) => fault,
            Stop::Io(error) => self.fault(error.into(), exchange, &uri),
        })
    }

    pub(super) fn send(
        &self,
        uri: &Uri,
        headers: &[(&'static str, Header)],
        body: &[u8],
        exchange: &Exchange,
    ) -> Result<Response<Body>, SendError> {
        // An answer in one piece has its head when all of it is there.
        let Timeouts {
            connect,
            first_byte,
            total,
        } = exchange.timeouts;
        let head = exchange.is_streamed.then_some(first_byte);
        let mut builder = self
            .agent
            .post(uri)
            .config()
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_global(Some(total))
            .timeout_recv_response(head)
            .build()
            .header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            builder = builder.header(HeaderName::from_static(name), header_value(value)?);
        }
        Ok(builder.send(body)?)
    }

    /// Asks for a document.
    pub(super) fn get(
        &self,
        uri: &Uri,
        headers: &[(&'static str, Header)],
        exchange: &Exchange,
    ) -> Result<Response<Body>, SendError> {
        let Timeouts { connect, total, .. } = exchange.timeouts;
        let mut builder = self
            .agent
            .get(uri)
            .config()
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_global(Some(total))
            .build();
        for (name, value) in headers {
            builder = builder.header(HeaderName::from_static(name), header_value(value)?);
        }
        Ok(builder.call()?)
    }

    /// What a response says that is not of status 2xx, and the response itself, unless it is too long
    /// or the call was cancelled meanwhile.
    pub(super) fn refused(
        &self,
        response: Response<Body>,
        exchange: &Exchange,
    ) -> (Fault, Option<Refused>) {
        let clean = |text: &str| match exchange.key {
            Some(key) => key.redact(text),
            None => text.to_owned(),
        };
        let (head, body) = response.into_parts();
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after =
            header(RETRY_AFTER).and_then(|header| refusal::retry_after(header, Timestamp::now()));
        let location = header(LOCATION).map(clean);
        // The status is known; what a server says about it is not worth the whole timeout.
        exchange
            .scope
            .read_by
            .set(Some(Instant::now() + exchange.timeouts.first_byte));
        let mut bytes = Vec::new();
        // What came before an error is told all the same.
        let _ = body
            .into_reader()
            .take(ERROR_BODY_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes);
        if exchange.scope.cancel.is_cancelled() {
            return (cancelled(), None);
        }
        let is_all = bytes.len() <= ERROR_BODY_BYTES_MAX;
        let body = clean(&String::from_utf8_lossy(&bytes));
        let refusal = Refusal {
            provider: exchange.provider,
            status: head.status.as_u16(),
            retry_after,
            location: location.as_deref(),
            body: &body,
        };
        let fault = refusal.fault();
        let refused = Refused {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        };
        (fault, Some(refused).filter(|_| is_all))
    }

    /// Reads an answer that comes as events.
    fn read_stream(
        &self,
        mut body: impl Read,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
    ) -> Result<(), Stop> {
        let read_by = &exchange.scope.read_by;
        read_by.set(Some(Instant::now() + exchange.timeouts.first_byte));
        let mut parser = Parser::new(reader.framing());
        let mut buffer = vec![0; READ_BYTES];
        let mut opening = Vec::new();
        loop {
            let length = match read(&mut body, &mut buffer) {
                Ok(length) if !exchange.scope.cancel.is_cancelled() => length,
                // All of the text is there, and paid for; only its usage may be missing.
                Err(_) if exchange.is_complete() => 0,
                Ok(_) => return Err(Stop::Fault(cancelled())),
                Err(error) => return Err(Stop::Io(error)),
            };
            let bytes = &buffer[..length];
            let room = OPENING_BYTES.saturating_sub(opening.len());
            opening.extend_from_slice(&bytes[..length.min(room)]);
            parser
                .push(bytes)
                .map_err(|_| Stop::Fault(event_too_long()))?;
            while let Some(event) = parser.next() {
                read_by.set(None);
                if exchange.read_event(reader, &event)? == Flow::End {
                    read_by.set(Some(Instant::now() + DRAIN_MAX));
                    drain(body, &mut buffer);
                    return Ok(());
                }
            }
            if length == 0 {
                return exchange.read_end(reader, &mut parser, &opening);
            }
        }
    }

    /// Says in words what `ureq` failed with.
    pub(super) fn fault(&self, error: SendError, exchange: &Exchange, uri: &Uri) -> Fault {
        let provider = exchange.provider;
        if exchange.scope.cancel.is_cancelled() {
            return cancelled();
        }
        let error = match error {
            SendError::Unsendable => {
                let message = format!(
                    "the key of provider {provider} holds characters that cannot be sent, such as \
                     a line break or a letter that is not ASCII"
                );
                return Fault::new(FailureKind::NotConfigured, message);
            }
            SendError::Ureq(ureq::Error::Timeout(timeout)) => {
                return timed_out(timeout, exchange.timeouts);
            }
            SendError::Ureq(ureq::Error::Io(error)) => error.to_string(),
            SendError::Ureq(error) => error.to_string(),
        };
        if exchange.scope.sent.get() {
            return Fault::bad_answer(format!(
                "the connection broke before the answer was complete: {error}"
            ));
        }
        let host = uri.host().unwrap_or_default();
        let port = uri
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        let message = format!(
            "could not connect to {host}{port}: {error}; check the base_url of provider \
             {provider}, and whether it is running"
        );
        Fault::new(FailureKind::Connect, message)
    }
}

fn timed_out(timeout: Timeout, timeouts: Timeouts) -> Fault {
    let Timeouts {
        connect,
        first_byte,
        total,
    } = timeouts;
    let message = match timeout {
        Timeout::Resolve | Timeout::Connect => {
            format!("no connection within {connect:?} (connect timeout)")
        }
        Timeout::RecvResponse => {
            format!("no answer began within {first_byte:?} (first byte timeout)")
        }
        _ => format!("not finished within {total:?} (total timeout)"),
    };
    Fault::new(FailureKind::Timeout, message)
}

impl Exchange<'_> {
    pub(super) fn is_complete(&self) -> bool {
        self.partial.is_complete && !self.scope.cancel.is_cancelled()
    }

    pub(super) fn read_event(
        &mut self,
        reader: &mut dyn Reader,
        event: &sse::Event,
    ) -> Result<Flow, Stop> {
        let before = self.partial.text.len();
        let read = reader.event(event, self.partial);
        (self.on_piece)(&self.partial.text[before..]);
        read.map_err(Stop::Fault)
    }

    /// The stream ended without the provider's last event: is the answer complete?
    pub(super) fn read_end(
        &mut self,
        reader: &mut dyn Reader,
        parser: &mut Parser,
        opening: &[u8],
    ) -> Result<(), Stop> {
        if let Some(event) = parser.finish() {
            match self.read_event(reader, &event) {
                // Half an event is no JSON; that the stream broke off says more.
                Err(Stop::Fault(fault)) if fault.kind == FailureKind::BadAnswer => {}
                read => {
                    read?;
                }
            }
        }
        if self.is_complete() {
            return Ok(());
        }
        let opening = String::from_utf8_lossy(opening);
        let message = if opening.trim().is_empty() || refusal::is_html(&opening) {
            format!("answered with {}", refusal::describe(&self.clean(&opening)))
        } else if !self.has_anything() {
            let opening = self.clean(&opening);
            format!(
                "the stream ended without an answer; it was: {}",
                refusal::describe(&opening)
            )
        } else {
            "the stream ended before the answer was complete".into()
        };
        Err(Stop::Fault(Fault::bad_answer(message)))
    }

    fn has_anything(&self) -> bool {
        !self.partial.text.is_empty() || self.partial.model.is_some()
    }

    pub(super) fn clean(&self, text: &str) -> String {
        self.key
            .map_or_else(|| text.to_owned(), |key| key.redact(text))
    }
}

/// Why reading an answer stopped.
pub(super) enum Stop {
    Fault(Fault),
    /// `ureq`'s own errors come wrapped in these.
    Io(std::io::Error),
}

/// Why a request was not answered at all.
pub(super) enum SendError {
    /// It cannot be written down: the key does not fit into a header.
    Unsendable,
    Ureq(ureq::Error),
}

impl From<ureq::Error> for SendError {
    fn from(error: ureq::Error) -> Self {
        Self::Ureq(error)
    }
}

impl From<std::io::Error> for SendError {
    /// Unwraps what `ureq` wrapped.
    fn from(error: std::io::Error) -> Self {
        Self::Ureq(error.into())
    }
}

/// Cuts a stream into events.
pub(super) enum Parser {
    Sse(sse::Parser),
    Lines(ndjson::Parser),
}

impl Parser {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Sse => Self::Sse(sse::Parser::default()),
            Framing::Lines => Self::Lines(ndjson::Parser::default()),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), sse::TooLong> {
        match self {
            Self::Sse(parser) => parser.push(bytes),
            Self::Lines(parser) => parser.push(bytes),
        }
    }

    pub(super) fn next(&mut self) -> Option<sse::Event> {
        match self {
            Self::Sse(parser) => parser.next(),
            Self::Lines(parser) => parser.next(),
        }
    }

    pub(super) fn finish(&mut self) -> Option<sse::Event> {
        match self {
            Self::Sse(parser) => parser.finish(),
            Self::Lines(parser) => parser.finish(),
        }
    }
}

/// What an answer of status 2xx is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Stream,
    Document,
}

impl Form {
    /// Servers may answer a streamed request in one piece, and the other way round, so what they
    /// say counts more than what was asked for. Some say something else, or nothing, of a stream.
    pub(super) fn of(headers: &HeaderMap, is_streamed: bool) -> Self {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        let is_stream = ["event-stream", "ndjson", "jsonl"];
        if is_stream.iter().any(|name| content_type.contains(name)) {
            Self::Stream
        } else if content_type.contains("json") || content_type.contains("html") || !is_streamed {
            Self::Document
        } else {
            Self::Stream
        }
    }
}

pub(super) fn parse_url(url: &str, provider: &str) -> Result<Uri, Fault> {
    let uri = url.parse::<Uri>().ok().filter(|uri| {
        let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        has_scheme && uri.host().is_some_and(|host| !host.is_empty())
    });
    // The URL itself is not shown: it may hold a password.
    uri.ok_or_else(|| {
        let message = format!("the base_url of provider {provider} is no http or https URL");
        Fault::new(FailureKind::NotConfigured, message)
    })
}

fn header_value(value: &Header) -> Result<HeaderValue, SendError> {
    match value {
        Header::Plain(value) => Ok(HeaderValue::from_static(value)),
        Header::Given(value) => HeaderValue::from_str(value).map_err(|_| SendError::Unsendable),
        Header::Secret(value) => {
            let mut value = HeaderValue::from_str(value).map_err(|_| SendError::Unsendable)?;
            // Whoever prints it prints "Sensitive".
            value.set_sensitive(true);
            Ok(value)
        }
    }
}

/// Reads an answer that comes in one piece.
fn read_document(
    body: impl Read,
    reader: &mut dyn Reader,
    exchange: &mut Exchange,
) -> Result<(), Stop> {
    let mut bytes = Vec::new();
    let mut body = body.take(DOCUMENT_BYTES_MAX as u64 + 1);
    body.read_to_end(&mut bytes).map_err(Stop::Io)?;
    if bytes.len() > DOCUMENT_BYTES_MAX {
        let message = format!("the body of the answer is longer than {DOCUMENT_BYTES_MAX} bytes");
        return Err(Stop::Fault(Fault::new(FailureKind::TooLarge, message)));
    }
    let document = json::read(&bytes).map_err(|error| {
        let text = exchange.clean(&String::from_utf8_lossy(&bytes));
        let message = if text.trim().is_empty() || refusal::is_html(&text) {
            format!("answered with {}", refusal::describe(&text))
        } else {
            format!(
                "the answer is not JSON ({error}): {}",
                refusal::describe(&text)
            )
        };
        Stop::Fault(Fault::bad_answer(message))
    })?;
    reader
        .document(&document, exchange.partial)
        .map_err(Stop::Fault)?;
    (exchange.on_piece)(&exchange.partial.text);
    Ok(())
}

pub(super) fn read(body: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match body.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Reads what is behind the end of the answer, so that the connection can be used again. What it
/// is, or whether it comes, does not matter.
pub(super) fn drain(mut body: impl Read, buffer: &mut [u8]) {
    while matches!(body.read(buffer), Ok(1..)) {}
}

fn event_too_long() -> Fault {
    let message = format!(
        "an event of the stream is longer than {} bytes",
        sse::LINE_BYTES_MAX
    );
    Fault::new(FailureKind::TooLarge, message)
}
