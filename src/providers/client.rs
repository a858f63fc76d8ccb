//! One HTTP exchange: sends a request, reads the answer within its limits, and classifies failures.
//! Calls of flows and requests of clients differ in their [`Receiver`] and [`ReadRules`].

use std::borrow::Cow;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use ureq::http::{self, HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, AsSendBody, Body, Timeout};

use super::call::Timeouts;
use super::content_encoding::{self, Decoder};
use super::excerpt::{describe, is_html};
use super::failure::{FailureKind, Fault};
use super::framer::{Frame, Framer, Framing};
use super::network::{Network, proxy_address};
use super::refusal::Refusal;
use super::transport::{Connect, LookupLater, Scope};
use super::wire::{Flow, Header, Reader, ResponseAccumulator, is_keep_alive};
use crate::secret::Secret;

/// Limits the body of an error, in bytes. A longer one is not passed on, because a part of it would
/// not be valid JSON.
const ERROR_BODY_BYTES_MAX: usize = 1024 * 1024;

/// The read buffer, in bytes. It is on the heap, because calls run on threads with small stacks.
const READ_BYTES: usize = 16 * 1024;

/// Length of the stream's beginning kept for error messages, in bytes.
const OPENING_BYTES: usize = 1024;

/// Limits the wait for the end of the body after the end of the answer. Usually both arrive
/// together, and the connection can serve another call; otherwise it is closed.
const DRAIN_MAX: Duration = Duration::from_millis(50);

/// Limits the bytes read of an answer after its client disconnected.
const DRAINED_BYTES_MAX: usize = 16 << 20;

/// Limits the further reading of a stream after the provider reported an error in it: only its usage
/// and its end may still arrive.
const AFTER_ERROR_MAX: Duration = Duration::from_secs(1);

/// Limits the idle connections to one provider: as many as the parallel calls.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// Limits the head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The error of `rustls` for a certificate of an unknown authority.
const UNKNOWN_ISSUER: &str = "UnknownIssuer";

/// Makes exchanges; owns the connection pool.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) agent: Agent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Delete,
}

pub(super) struct HttpRequest<'a> {
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'static str, Header)],
    pub(super) method: Method,
    /// JSON; only for POST.
    pub(super) body: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ReadRules {
    /// Limits an answer in one piece, in bytes.
    pub(super) document_bytes_max: usize,
    /// Limits an event of a stream, in bytes.
    pub(super) event_bytes_max: usize,
    /// True if the answer is passed on to a client. Then comments restart the wait for the first
    /// event, and reading continues after an error in the stream, so that the client gets it in the
    /// provider's words.
    pub(super) is_forwarded: bool,
    /// Limits reading after the client disconnected; none ends the call immediately.
    pub(super) drain_max: Option<Duration>,
}

pub(super) struct Exchange<'a> {
    pub(super) provider: &'a str,
    pub(super) timeouts: Timeouts,
    pub(super) key: Option<&'a Secret>,
    pub(super) is_streamed: bool,
    pub(super) scope: &'a Scope,
    pub(super) rules: ReadRules,
    pub(super) reader: &'a mut dyn Reader,
    pub(super) receiver: &'a mut dyn Receiver,
    /// Grows as the answer arrives, and keeps the received part if the exchange fails.
    pub(super) partial: &'a mut ResponseAccumulator,
}

/// Receives an answer while it is read, after the reader of its protocol.
pub(super) trait Receiver {
    /// The response begins, with any status.
    fn head(&mut self, _status: u16, _headers: &HeaderMap) {}
    /// The body of an error response, with the key redacted.
    fn refused(&mut self, _body: Vec<u8>) {}
    fn document(&mut self, _bytes: &[u8], _partial: &ResponseAccumulator) {}
    /// A frame of a stream, with the reader's result if the frame has an event.
    fn frame(
        &mut self,
        _frame: &Frame<'_>,
        _read: Option<&Result<Flow, Fault>>,
        _partial: &ResponseAccumulator,
    ) {
    }
    /// A piece of an answer that is neither JSON nor a stream of events. Returns false if the client
    /// disconnected.
    fn bytes(&mut self, _piece: &[u8]) -> bool {
        true
    }
    /// Called after all arrived frames. Returns false if the client disconnected.
    fn flush(&mut self) -> bool {
        true
    }
    /// The stream ended; `is_whole` is false if its connection broke after the end of the answer.
    fn end(&mut self, _is_whole: bool) {}
}

impl Client {
    pub(super) fn new(network: &Network) -> Self {
        let tls = TlsConfig::builder().root_certs(network.authorities.roots()).build();
        let config = Agent::config_builder()
            .proxy(network.proxy.proxy())
            .tls_config(tls)
            .http_status_as_error(false)
            // A redirect would send the key elsewhere, so it is reported as a failure.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("flowledger/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEAD_BYTES_MAX)
            .max_idle_connections(2 * IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .build();
        Self { agent: Agent::with_parts(config, Connect::default(), LookupLater) }
    }

    /// Sends the request and reads the answer.
    pub(super) fn exchange(
        &self,
        request: &HttpRequest<'_>,
        mut exchange: Exchange<'_>,
    ) -> Result<(), Fault> {
        if exchange.scope.cancel.is_cancelled() {
            return Err(Fault::cancelled());
        }
        let uri = parse_url(request.url, exchange.provider)?;
        let response = match request.method {
            Method::Post => {
                self.send(http::Method::POST, &uri, request.headers, request.body, &exchange)
            }
            Method::Get => self.send(http::Method::GET, &uri, request.headers, (), &exchange),
            Method::Delete => self.send(http::Method::DELETE, &uri, request.headers, (), &exchange),
        }?;
        let (status, headers) = (response.status(), response.headers());
        exchange.receiver.head(status.as_u16(), headers);
        if !status.is_success() {
            return Err(exchange.refused(response));
        }
        let framing = framing(headers, exchange.reader.framing());
        let is_stream = is_stream(headers, exchange.is_streamed, framing);
        let is_bytes = !is_stream_type(headers)
            && !has_type(headers, &["json", "html"])
            && exchange.reader.begin_bytes(exchange.partial);
        let codings = content_encoding::of(headers).map_err(Fault::bad_answer)?;
        let body = Decoder::new(response.into_body().into_reader(), &codings);
        let read = match is_stream {
            _ if is_bytes => exchange.read_bytes(body),
            true => Stream::new(&mut exchange, framing).read(body),
            false => exchange.read_document(body),
        };
        match exchange.scope.cancel.is_cancelled() {
            true => read.map_err(|_| Fault::cancelled()),
            false => read,
        }
    }

    fn send(
        &self,
        method: http::Method,
        uri: &Uri,
        headers: &[(&'static str, Header)],
        body: impl AsSendBody,
        exchange: &Exchange<'_>,
    ) -> Result<Response<Body>, Fault> {
        let invalid_key = || {
            Fault::not_configured(format!(
                "the API key of provider {} contains invalid characters, such as a line break or a \
                 non-ASCII letter",
                exchange.provider
            ))
        };
        let mut builder = Request::builder().uri(uri).header(ACCEPT_ENCODING, "identity");
        if method == http::Method::POST && headers.iter().all(|(name, _)| *name != CONTENT_TYPE) {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            let value = header_value(value).ok_or_else(invalid_key)?;
            builder = builder.header(HeaderName::from_static(name), value);
        }
        let request = builder.method(method).body(body);
        let request = request.map_err(|_| invalid_key())?;
        let Timeouts { connect, first_byte, total } = exchange.timeouts;
        let request = self
            .agent
            .configure_request(request)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_global(Some(total))
            // The head of an answer in one piece arrives only when the answer is complete.
            .timeout_recv_response(exchange.is_streamed.then_some(first_byte))
            .build();
        let response = self.agent.run(request);
        let proxy = proxy_address(self.agent.config().proxy(), uri);
        response.map_err(|error| exchange.not_sent(error, uri, proxy))
    }
}

/// A streamed answer while it is read.
struct Stream<'a, 'e> {
    exchange: &'a mut Exchange<'e>,
    framer: Framer,
    opening: Vec<u8>,
    /// Deadline of the first event; none once it has arrived.
    begin_by: Option<Instant>,
    /// The first fault of a forwarded stream, and the deadline for reading on.
    fault: Option<Fault>,
    end_by: Option<Instant>,
    /// The time when the client disconnected, and the bytes received since.
    disconnected_at: Option<Instant>,
    drained_bytes: usize,
}

impl<'a, 'e> Stream<'a, 'e> {
    fn new(exchange: &'a mut Exchange<'e>, framing: Framing) -> Self {
        Self {
            framer: Framer::new(framing, exchange.rules.event_bytes_max),
            begin_by: Some(Instant::now() + exchange.timeouts.first_byte),
            exchange,
            opening: Vec::new(),
            fault: None,
            end_by: None,
            disconnected_at: None,
            drained_bytes: 0,
        }
    }

    fn read(mut self, mut body: impl Read) -> Result<(), Fault> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.exchange.scope.read_by.set(self.read_by());
            let (length, is_whole) = match read(&mut body, &mut buffer) {
                Ok(length) => (length, true),
                // The provider's error is more useful than the end of the stream. Or the whole
                // answer has arrived, and is paid for; only its usage may be missing.
                Err(_) if self.fault.is_some() || self.exchange.is_complete() => (0, false),
                Err(_) if self.disconnected_at.is_some() => return Err(self.client_disconnected()),
                Err(error) => return Err(self.exchange.broken(error.into())),
            };
            let flow = self.take(&buffer[..length])?;
            if flow == Flow::More && length > 0 && self.should_continue()? {
                continue;
            }
            if let Some(fault) = self.fault {
                return Err(fault);
            }
            if flow == Flow::More || !self.exchange.partial.is_complete {
                self.exchange.check_complete(&self.opening)?;
            }
            self.exchange.receiver.end(is_whole);
            if flow == Flow::End {
                let drained_by = Instant::now() + DRAIN_MAX;
                self.exchange.scope.read_by.set(Some(drained_by));
                while matches!(body.read(&mut buffer), Ok(1..)) {}
            }
            return Ok(());
        }
    }

    /// Returns the deadline of the next bytes.
    fn read_by(&self) -> Option<Instant> {
        let drain_max = self.exchange.rules.drain_max.unwrap_or_default();
        let drained_by = self.disconnected_at.map(|disconnected_at| disconnected_at + drain_max);
        let all = [self.begin_by, self.end_by, drained_by];
        all.into_iter().flatten().min()
    }

    /// Processes the next bytes; none at the end of the stream.
    fn take(&mut self, bytes: &[u8]) -> Result<Flow, Fault> {
        let remaining = OPENING_BYTES.saturating_sub(self.opening.len());
        self.opening.extend_from_slice(&bytes[..bytes.len().min(remaining)]);
        if self.disconnected_at.is_some() {
            self.drained_bytes += bytes.len();
        }
        if self.exchange.rules.is_forwarded {
            let first_byte = self.exchange.timeouts.first_byte;
            self.begin_by = self.begin_by.map(|_| Instant::now() + first_byte);
        }
        self.framer.push(bytes);
        let mut flow = Flow::More;
        let framed = loop {
            let frame = match self.framer.next() {
                Ok(Some(frame)) => frame,
                framed => break framed.map(drop),
            };
            let event = frame.event.filter(|_| flow == Flow::More);
            let exchange = &mut *self.exchange;
            let read = event.map(|event| exchange.reader.event(event, exchange.partial));
            exchange.receiver.frame(&frame, read.as_ref(), exchange.partial);
            if let Some(read) = read {
                if !event.is_some_and(is_keep_alive) {
                    self.begin_by = None;
                }
                flow = self.note(read)?;
            }
        };
        if bytes.is_empty() && flow == Flow::More {
            flow = self.take_rest()?;
        }
        // Checked after the frames: their usage counts even if the client disconnected.
        if !self.exchange.receiver.flush() {
            self.disconnected_at.get_or_insert_with(Instant::now);
        }
        match framed {
            Err(_) if flow == Flow::More => {
                let bytes_max = self.exchange.rules.event_bytes_max;
                Err(Fault::too_large("an event", bytes_max))
            }
            _ => Ok(flow),
        }
    }

    /// Processes the event that the stream ended within. Half an event is not valid JSON, so the
    /// error reports the interrupted stream instead.
    fn take_rest(&mut self) -> Result<Flow, Fault> {
        if let Some(frame) = self.framer.finish()
            && let Some(event) = frame.event
        {
            let exchange = &mut *self.exchange;
            let read = exchange.reader.event(event, exchange.partial);
            let is_half = matches!(&read, Err(fault) if fault.kind == FailureKind::BadAnswer);
            if !is_half {
                exchange.receiver.frame(&frame, Some(&read), exchange.partial);
                return self.note(read);
            }
        }
        Ok(Flow::More)
    }

    /// Notes the result of an event. Reading continues after an error that the provider reports,
    /// because the usage may follow. Reading of a forwarded stream continues after any fault, so
    /// that the client gets the provider's words, and anything after them.
    fn note(&mut self, read: Result<Flow, Fault>) -> Result<Flow, Fault> {
        read.or_else(|fault| {
            if !self.exchange.rules.is_forwarded && fault.kind != FailureKind::Status {
                return Err(fault);
            }
            if fault.kind == FailureKind::Status {
                let end_by = Instant::now() + AFTER_ERROR_MAX;
                self.end_by.get_or_insert(end_by);
            }
            self.fault.get_or_insert(fault);
            Ok(Flow::More)
        })
    }

    /// Returns whether to continue reading a stream that has not ended.
    fn should_continue(&self) -> Result<bool, Fault> {
        if self.exchange.scope.cancel.is_cancelled() {
            return Err(Fault::cancelled());
        }
        let is_drained =
            self.exchange.rules.drain_max.is_none() || self.drained_bytes > DRAINED_BYTES_MAX;
        if self.disconnected_at.is_some() && is_drained {
            return Err(self.client_disconnected());
        }
        Ok(self.end_by.is_none_or(|end_by| Instant::now() < end_by))
    }

    fn client_disconnected(&self) -> Fault {
        let message = match self.exchange.rules.drain_max {
            None => "client disconnected during the response".to_owned(),
            Some(limit) => format!(
                "client disconnected during the response, which did not end within {limit:?} and \
                 {DRAINED_BYTES_MAX} bytes"
            ),
        };
        Fault::new(FailureKind::Cancelled, message)
    }
}

impl Exchange<'_> {
    /// Reads a response with a status other than 2xx.
    fn refused(&mut self, response: Response<Body>) -> Fault {
        // The status is known; the body is not worth the whole timeout.
        let read_by = Instant::now() + self.timeouts.first_byte;
        self.scope.read_by.set(Some(read_by));
        let mut refusal = Refusal::read(response, ERROR_BODY_BYTES_MAX);
        if self.scope.cancel.is_cancelled() {
            return Fault::cancelled();
        }
        refusal.body = self.redact(&refusal.body);
        refusal.location = refusal.location.map(|it| self.redact(&it));
        let fault = refusal.fault(self.provider);
        if refusal.is_whole {
            self.receiver.refused(refusal.body.into_bytes());
        }
        fault
    }

    /// Reads an answer in one piece.
    fn read_document(&mut self, body: impl Read) -> Result<(), Fault> {
        let bytes_max = self.rules.document_bytes_max;
        let bytes = read_at_most(body, bytes_max)
            .map_err(|error| self.broken(error.into()))?
            .ok_or_else(|| Fault::too_large("the response", bytes_max))?;
        let document = self.reader.parse(&bytes).map_err(|error| {
            let text = self.redact(&String::from_utf8_lossy(&bytes));
            let excerpt = describe(&text);
            Fault::bad_answer(match text.trim().is_empty() || is_html(&text) {
                true => format!("unexpected response: {excerpt}"),
                false => format!("the response is not JSON ({error}): {excerpt}"),
            })
        })?;
        let read = self.reader.document(&document, self.partial);
        match &read {
            Ok(()) => self.receiver.document(&bytes, self.partial),
            Err(_) => {
                let body = redacted(&bytes, self.key).into_owned();
                self.receiver.refused(body);
            }
        }
        read
    }

    /// Passes an answer on as it arrives, such as a sound. Its cost does not depend on its rest, so
    /// the exchange ends with its client.
    fn read_bytes(&mut self, mut body: impl Read) -> Result<(), Fault> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let length = read(&mut body, &mut buffer).map_err(|error| self.broken(error.into()))?;
            if length == 0 {
                self.partial.is_complete = true;
                self.receiver.end(true);
                return Ok(());
            }
            if self.scope.cancel.is_cancelled() {
                return Err(Fault::cancelled());
            }
            if !self.receiver.bytes(&buffer[..length]) {
                let message = "client disconnected during the response";
                return Err(Fault::new(FailureKind::Cancelled, message));
            }
        }
    }

    /// Returns whether the answer is complete, although its stream may not be.
    fn is_complete(&self) -> bool {
        self.partial.is_complete && !self.scope.cancel.is_cancelled()
    }

    /// Checks an answer whose stream ended without the provider's final event.
    fn check_complete(&self, opening: &[u8]) -> Result<(), Fault> {
        if self.is_complete() {
            return Ok(());
        }
        let opening = self.redact(&String::from_utf8_lossy(opening));
        let has_any = !self.partial.text.is_empty() || self.partial.model.is_some();
        Err(Fault::bad_answer(if opening.trim().is_empty() || is_html(&opening) {
            format!("unexpected response: {}", describe(&opening))
        } else if has_any {
            "the stream ended before the response was complete".into()
        } else {
            let excerpt = describe(&opening);
            format!("the stream ended without a response: {excerpt}")
        }))
    }

    /// Classifies an error before the response.
    fn not_sent(&self, error: ureq::Error, uri: &Uri, proxy: Option<String>) -> Fault {
        let is_timeout = matches!(error, ureq::Error::Timeout(_));
        if is_timeout || self.scope.sent.get() || self.scope.cancel.is_cancelled() {
            return self.broken(error);
        }
        let host = uri.host().unwrap_or_default();
        let port = uri.port().map(|port| format!(":{port}"));
        let target = format!("{host}{}", port.unwrap_or_default());
        let (error, provider) = (describe_error(error), self.provider);
        let message = if error.contains(UNKNOWN_ISSUER) {
            format!(
                "cannot connect to {target}: {error}; if your network has its own certificate \
                 authority, set ca_file for provider {provider}"
            )
        } else if let Some(proxy) = proxy {
            format!(
                "cannot connect to {target} through the proxy {proxy}: {error}; check the proxy of \
                 provider {provider}"
            )
        } else {
            format!(
                "cannot connect to {target}: {error}; check the base_url of provider {provider} and \
                 that it is running"
            )
        };
        Fault::new(FailureKind::Connect, message)
    }

    /// Classifies an error after a part of the request was sent.
    fn broken(&self, error: ureq::Error) -> Fault {
        if self.scope.cancel.is_cancelled() {
            return Fault::cancelled();
        }
        let Timeouts { connect, first_byte, total } = self.timeouts;
        let ureq::Error::Timeout(timeout) = error else {
            let is_damaged = matches!(&error, ureq::Error::Io(error) if is_decoding(error));
            let message = match is_damaged {
                true => "cannot decode the compressed response",
                false => "connection lost before the response was complete",
            };
            return Fault::bad_answer(format!("{message}: {}", describe_error(error)));
        };
        let message = match timeout {
            Timeout::Resolve | Timeout::Connect => {
                format!("timed out after {connect:?} (connect timeout)")
            }
            Timeout::RecvResponse => {
                format!("timed out after {first_byte:?} (first byte timeout)")
            }
            _ => format!("timed out after {total:?} (total timeout)"),
        };
        Fault::new(FailureKind::Timeout, message)
    }

    /// Redacts the key: some servers repeat a rejected key.
    fn redact(&self, text: &str) -> String {
        self.key.map_or_else(|| text.to_owned(), |key| key.redact(text))
    }
}

/// Redacts the key in the bytes of a text.
pub(super) fn redacted<'b>(bytes: &'b [u8], key: Option<&Secret>) -> Cow<'b, [u8]> {
    let text = String::from_utf8_lossy(bytes);
    match key.map(|key| key.redact(&text)) {
        Some(clean) if clean != text => Cow::Owned(clean.into_bytes()),
        _ => Cow::Borrowed(bytes),
    }
}

/// Returns whether an error is of the decoder and not of the connection.
fn is_decoding(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}

fn describe_error(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// Returns whether an answer with status 2xx is a stream. Servers may answer a streamed request in
/// one piece, and the reverse, so the content type takes precedence over the request. Some servers
/// declare another type, or none, for a stream.
fn is_stream(headers: &HeaderMap, is_streamed: bool, framing: Framing) -> bool {
    let documents: &[&str] = match framing {
        Framing::JsonArray => &["html"],
        Framing::Sse | Framing::NdJson => &["json", "html"],
    };
    is_stream_type(headers) || (is_streamed && !has_type(headers, documents))
}

/// Returns the framing of a stream. Some servers send events to a client that requested an array.
pub(super) fn framing(headers: &HeaderMap, expected: Framing) -> Framing {
    match expected {
        Framing::JsonArray if has_type(headers, &["event-stream"]) => Framing::Sse,
        expected => expected,
    }
}

fn is_stream_type(headers: &HeaderMap) -> bool {
    has_type(headers, &["event-stream", "ndjson", "jsonl"])
}

/// Returns whether the content type contains one of these.
fn has_type(headers: &HeaderMap, names: &[&str]) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
    names.iter().any(|name| content_type.contains(name))
}

pub(super) fn parse_url(url: &str, provider: &str) -> Result<Uri, Fault> {
    let uri = url.parse::<Uri>().ok().filter(|uri| {
        let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        has_scheme && uri.host().is_some_and(|host| !host.is_empty())
    });
    // The URL itself is not shown: it may contain a password.
    uri.ok_or_else(|| {
        Fault::not_configured(format!(
            "the base_url of provider {provider} must be an http or https URL"
        ))
    })
}

/// Returns none if the text is not valid in a header.
pub(super) fn header_value(value: &Header) -> Option<HeaderValue> {
    let (text, is_secret) = match value {
        Header::Plain(text) => (&**text, false),
        Header::Secret(text) => (&**text, true),
    };
    let mut value = HeaderValue::from_str(text).ok()?;
    // Debug output then shows "Sensitive".
    value.set_sensitive(is_secret);
    Some(value)
}

/// Reads a whole body; none if it is longer than `bytes_max`.
pub(super) fn read_at_most(body: impl Read, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    body.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() <= bytes_max))
}

fn read(body: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match body.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}
