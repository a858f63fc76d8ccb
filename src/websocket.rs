//! WebSocket clients: handshake, reader thread, writer thread. The only user of `tungstenite`.
//!
//! Only one of a client's two threads ever writes to the stream: tungstenite's replies to the
//! reader (pongs, closes) go into the client's outbox. Two `WebSocket`s over one stream would mix
//! their frames as soon as a write is cut short.

mod limits;
mod stream;

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::handshake::server as handshake;
use tungstenite::http::Version;
use tungstenite::http::header::{HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error as WsError, Message, WebSocket};

pub use self::limits::{BucketRate, Limits};

use self::limits::{Excess, Meter};
use self::stream::{Half, StreamSink};
use crate::error::{Error, Result};
use crate::event::{Event, Filter, Request, encode};
use crate::hub::{Encoding, Ending, Eviction, Format, Hub, Outbox, Position, Replay, close};
use crate::ids::{ClientId, Seq};
use crate::store::Store;

/// The subprotocol that a client may offer; a client that sends its token as a subprotocol must.
pub const SUBPROTOCOL: &str = "flowledger";
/// tungstenite's own default is 128 KiB for each connection; clients send small messages.
const READ_BUFFER_BYTES: usize = 512;
/// After a close frame, further input is read and dropped for this long.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Stack of a client's writer thread: it formats and copies, nothing deep.
const WRITER_STACK_BYTES: usize = 96 << 10;
/// See RFC 6455, section 5.5.
const CLOSE_REASON_BYTES_MAX: usize = 123;
/// The longest head of a server frame, which has no mask.
const FRAME_HEAD_BYTES_MAX: usize = 10;
/// Limits the events read from the log at a time for a client that catches up …
const PAGE_EVENTS: usize = 256;
/// … and their bytes, unless a single event is larger.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Limits the flows and types in a subscription.
#[doc(hidden)]
pub const FILTER_ITEMS_MAX: usize = 1_000;

/// Formats messages as unmasked WebSocket frames, the same for every client.
pub struct Frames;

impl Encoding for Frames {
    fn format(&self) -> Format {
        Format::WebSocket
    }

    fn text(&self, _: Option<Seq>, text: &str, out: &mut Vec<u8>) {
        format_frame(Frame::message(text.to_owned(), OpCode::Data(Data::Text), true), out);
    }

    fn ping(&self) -> Vec<u8> {
        let mut out = Vec::new();
        format_frame(Frame::ping(Vec::new()), &mut out);
        out
    }

    fn close(&self, code: u16, reason: &str) -> Vec<u8> {
        let mut out = Vec::new();
        // A control frame has at most 125 bytes, and the code takes two.
        let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason[..end].into();
        let frame = CloseFrame { code: CloseCode::from(code), reason };
        format_frame(Frame::close(Some(frame)), &mut out);
        out
    }
}

fn format_frame(frame: Frame, out: &mut Vec<u8>) {
    // Writing to memory does not fail. If it does, send nothing rather than half a frame.
    let length = out.len();
    if let Err(error) = frame.format(out) {
        log::error!("cannot encode a frame: {error}");
        out.truncate(length);
    }
}

/// Reads the events that a client missed from the log.
struct LogReplay {
    store: Arc<Store>,
}

impl Replay for LogReplay {
    fn page(
        &self,
        after: Seq,
        upto: Seq,
        filter: &Filter,
        encoding: &dyn Encoding,
        out: &mut Vec<u8>,
    ) -> Result<Seq> {
        let events = self.store.events(after, upto, PAGE_EVENTS, PAGE_BYTES_MAX)?;
        // The log has no gaps, but its oldest events may have been deleted since `HELLO`.
        if events.first().is_none_or(|first| first.seq != after + 1) {
            return Err(Error::NotFound(format!("event {}", after + 1)));
        }
        for event in &events {
            if filter.passes(event.flow_id, &event.type_name) {
                encoding.text(Some(event.seq), &encode(event.seq, &event.body), out);
            }
        }
        Ok(events.last().map_or(upto, |last| last.seq))
    }
}

/// Decides when an unresponsive client is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    /// Time between pings. 25 s by default, because proxies drop silent connections after 30 s or
    /// 60 s.
    pub interval: Duration,
    /// Time limit for the pong. 10 s by default.
    pub timeout: Duration,
}

impl Default for Pings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(25), timeout: Duration::from_secs(10) }
    }
}

impl Pings {
    /// Returns the longest time without input from a client.
    pub(crate) fn silence_max(self) -> Duration {
        self.interval.saturating_add(self.timeout)
    }
}

/// Handles clients: [`HubClients`] in the server, an echo in `examples/echo.rs`. Each client's
/// reader thread calls it.
pub trait Handler: Send + Sync {
    /// Returns an unused number for a new client.
    fn next_id(&self) -> ClientId;

    /// Returns the present epoch of the event log, which is part of positions.
    fn epoch(&self) -> &str;

    /// Returns the source of missed events, for a client whose [`Outbox::open`] had a `since`.
    fn replay(&self) -> Arc<dyn Replay + Send + Sync>;

    /// Called after the handshake is answered. An error ends the client, without a call of
    /// [`Handler::ended`].
    fn opened(&self, client: &Peer) -> Result<()>;

    fn text(&self, client: &Peer, text: &str) -> Result<(), Goodbye>;

    fn binary(&self, client: &Peer, bytes: &[u8]) -> Result<(), Goodbye>;

    fn ended(&self, client: &Peer, ending: Ending);
}

/// A client, as its handler sees it.
pub struct Peer {
    pub id: ClientId,
    pub address: SocketAddr,
    /// The last event that the client has seen.
    pub since: Option<Position>,
    /// The client's first filter.
    pub filter: Filter,
    /// Messages on their way to the client.
    pub outbox: Arc<Outbox>,
}

impl Peer {
    /// Sends a text to this client alone.
    pub fn send_text(&self, text: &str) {
        self.outbox.push_reply(&self.outbox.frame(None, text));
    }

    /// Sends a binary message to this client alone.
    pub fn send_binary(&self, bytes: &[u8]) {
        let mut frame = Vec::with_capacity(bytes.len() + FRAME_HEAD_BYTES_MAX);
        let message = Frame::message(bytes.to_vec(), OpCode::Data(Data::Binary), true);
        format_frame(message, &mut frame);
        self.outbox.push_reply(&frame.into());
    }
}

/// The server's reason for ending a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// One of the codes of [`close`].
    pub code: u16,
    /// Sent to the client and logged.
    pub reason: Cow<'static, str>,
}

impl Goodbye {
    fn new(code: u16, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: reason.into() }
    }
}

pub struct HubClients {
    pub hub: Hub,
    /// The source of missed events.
    pub store: Arc<Store>,
}

impl Handler for HubClients {
    fn next_id(&self) -> ClientId {
        self.hub.next_client_id()
    }

    fn epoch(&self) -> &str {
        self.hub.epoch()
    }

    fn replay(&self) -> Arc<dyn Replay + Send + Sync> {
        Arc::new(LogReplay { store: Arc::clone(&self.store) })
    }

    fn opened(&self, client: &Peer) -> Result<()> {
        let outbox = Arc::clone(&client.outbox);
        let (since, filter) = (client.since.clone(), client.filter.clone());
        self.hub.register(client.id, client.address, outbox, since, filter)
    }

    /// An invalid request is reported to this client alone.
    fn text(&self, client: &Peer, text: &str) -> Result<(), Goodbye> {
        let sent = match read_request(text) {
            Ok(Request::Ping) => self.hub.send_to_client(client.id, &Event::Pong {}),
            Ok(Request::Subscribe(filter)) => self.hub.subscribe(client.id, filter),
            Err((code, message)) => {
                let code = code.into();
                let error = Event::Error { code, message };
                self.hub.send_to_client(client.id, &error)
            }
        };
        sent.map_err(|_| Goodbye::new(close::GOING_AWAY, "the server is shutting down"))
    }

    fn binary(&self, _: &Peer, _: &[u8]) -> Result<(), Goodbye> {
        Err(Goodbye::new(close::UNSUPPORTED, "binary messages are not supported; send text"))
    }

    fn ended(&self, client: &Peer, ending: Ending) {
        // An error means that the hub has ended and has closed this client itself.
        let _ = self.hub.unregister(client.id, ending);
    }
}

#[derive(Clone)]
pub struct Sockets {
    /// Handles the clients' messages.
    pub handler: Arc<dyn Handler>,
    pub pings: Pings,
    /// Limits what clients send and the bytes queued for them.
    pub limits: Limits,
}

/// A client whose request to become a WebSocket is accepted.
pub struct Upgrade {
    pub stream: Arc<TcpStream>,
    /// The response to the handshake, see [`accept`]; not written yet.
    pub answer: Vec<u8>,
    /// Bytes already received after the request head.
    pub rest: Vec<u8>,
    pub address: SocketAddr,
    /// The last event that the client has seen.
    pub since: Option<Position>,
}

/// Ends a client cleanly if its reader panics.
pub(crate) struct PanicGuard<'a> {
    pub sockets: &'a Sockets,
    pub client: &'a Peer,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let ending = Ending::left("internal error in the reader thread");
            self.sockets.handler.ended(self.client, ending);
            self.client.outbox.reader_done();
        }
    }
}

/// Returns the response to a handshake. The listener has parsed the head, because tungstenite's
/// parser would use a page of stack that an idle reader keeps. `version` is 0 for HTTP/1.0, 1 for
/// HTTP/1.1.
pub fn accept<'a>(
    method: &str,
    version: u8,
    fields: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>, String> {
    let refused = |error: &dyn std::fmt::Display| error.to_string();
    let mut request = handshake::Request::default();
    *request.method_mut() = method.parse().map_err(|error| refused(&error))?;
    if version == 0 {
        *request.version_mut() = Version::HTTP_10;
    }
    let mut offers_ours = false;
    for (name, value) in fields {
        let name: HeaderName = name.parse().map_err(|error| refused(&error))?;
        offers_ours |= name == SEC_WEBSOCKET_PROTOCOL
            && value.split(',').any(|name| name.trim() == SUBPROTOCOL);
        let value = value.parse().map_err(|error| refused(&error))?;
        request.headers_mut().append(name, value);
    }
    let mut response = handshake::create_response(&request).map_err(|error| refused(&error))?;
    if offers_ours {
        let ours = HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, ours);
    }
    let mut bytes = Vec::new();
    handshake::write_response(&mut bytes, &response).map_err(|error| refused(&error))?;
    Ok(bytes)
}

impl Sockets {
    /// Serves a client until it is gone. The calling thread reads, a second one writes. Fails with
    /// [`Error::Busy`], before anything is written, if the second thread cannot be started.
    pub fn serve(&self, upgrade: Box<Upgrade>) -> Result<()> {
        let stream = Arc::clone(&upgrade.stream);
        let (client, writer, rest) = self.open(upgrade)?;
        // A client that leaves before the handshake is answered is not an error.
        let mut served = Ok(());
        let _in_panic = PanicGuard { sockets: self, client: &client };
        match rest {
            Ok(rest) => {
                let ending = self.read(&client, self.protocol(&client, &stream, rest));
                self.handler.ended(&client, ending);
            }
            Err(Error::Io { .. }) => {}
            Err(error) => served = Err(error),
        }
        client.outbox.reader_done();
        if writer.join().is_err() {
            log::error!("the writer thread of client {} panicked", client.id);
        }
        served
    }

    /// Starts the writer, answers the handshake and introduces the client to the handler. Not
    /// inlined, because the reader would carry its stack for days.
    #[inline(never)]
    #[expect(clippy::boxed_local, reason = "unboxed, it would lie on the frame of `serve`")]
    fn open(&self, upgrade: Box<Upgrade>) -> Result<(Peer, JoinHandle<()>, Result<Vec<u8>>)> {
        let Upgrade { stream, answer, rest, address, since } = *upgrade;
        let outbox = self.outbox(&stream, Arc::new(Frames));
        let (id, filter) = (self.handler.next_id(), Filter::default());
        let client = Peer { id, address, since, filter, outbox };
        let writer = self.start_writer(&client)?;
        // Safe to write here: the outbox is empty until the handler knows it.
        let rest = (&*stream)
            .write_all(&answer)
            .map_err(Error::io("cannot send the handshake response"))
            .and_then(|()| self.handler.opened(&client))
            .map(|()| rest);
        Ok((client, writer, rest))
    }

    pub(crate) fn outbox(
        &self,
        stream: &Arc<TcpStream>,
        encoding: Arc<dyn Encoding>,
    ) -> Arc<Outbox> {
        let sink = Box::new(StreamSink::new(Arc::clone(stream)));
        Arc::new(Outbox::new(sink, encoding, self.limits.outbox_bytes))
    }

    pub(crate) fn start_writer(&self, client: &Peer) -> Result<JoinHandle<()>> {
        let (outbox, interval) = (Arc::clone(&client.outbox), self.pings.interval);
        let replay = self.handler.replay();
        Builder::new()
            .name(format!("ws-writer-{}", client.id))
            .stack_size(WRITER_STACK_BYTES)
            .spawn(move || outbox.run(&*replay, interval))
            .map_err(|error| Error::Busy(format!("cannot start a thread: {error}")))
    }

    /// Reads messages until the client is gone, and returns the reason. Not inlined, so that the
    /// frame of [`Sockets::open`] is not below its own.
    #[inline(never)]
    fn read(&self, client: &Peer, mut socket: Box<WebSocket<Half<'_>>>) -> Ending {
        let stream = socket.get_ref().stream();
        if let Err(error) = stream.set_read_timeout(Some(self.pings.silence_max())) {
            return Ending::left(format!("cannot set the read timeout: {error}"));
        }
        let outbox = &client.outbox;
        let mut meter = Meter::new(&self.limits);
        loop {
            let message = socket.read();
            // Pass pending pongs on first, so that replies keep the order of the messages.
            if !matches!(message, Ok(Message::Ping(_) | Message::Pong(_))) {
                socket.get_mut().flush_replies();
            }
            let counted = message.as_ref().map_or(Ok(()), |message| meter.count(message));
            let done = match (counted, message) {
                (Err(excess), _) => Err(excess.into()),
                (Ok(()), Ok(Message::Text(text))) => self.handler.text(client, &text),
                (Ok(()), Ok(Message::Binary(bytes))) => self.handler.binary(client, &bytes),
                // Tungstenite answers pings and closes, into the outbox.
                (Ok(()), Ok(_)) => Ok(()),
                // The client still reads; its pong follows once it has read up to the ping.
                (Ok(()), Err(WsError::Io(error)))
                    if is_timeout(&error) && outbox.has_written_within(self.pings.timeout) =>
                {
                    Ok(())
                }
                (Ok(()), Err(error)) => match self.end_of_reading(&error) {
                    Ok(goodbye) => Err(goodbye),
                    Err(reason) => return Ending::left(reason),
                },
            };
            if let Err(goodbye) = done {
                outbox.close(goodbye.code, &goodbye.reason);
                drain(stream, DRAIN_TIME);
                return goodbye.into();
            }
        }
    }

    /// Returns the protocol machine over the input; on the heap, because stack memory is scarcer.
    #[inline(never)]
    fn protocol<'a>(
        &self,
        client: &'a Peer,
        stream: &'a TcpStream,
        rest: Vec<u8>,
    ) -> Box<WebSocket<Half<'a>>> {
        let half = Half::new(stream, &client.outbox, self.limits.bytes);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .max_message_size(Some(self.limits.message_bytes))
            .max_frame_size(Some(self.limits.message_bytes));
        Box::new(WebSocket::from_partially_read(half, rest, Role::Server, Some(config)))
    }

    /// Returns the close for a client that can still read it, or else the reason why it is gone.
    fn end_of_reading(&self, error: &WsError) -> Result<Goodbye, String> {
        Ok(match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => {
                return Err("closed by the client".into());
            }
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                return Err("connection lost".into());
            }
            WsError::Io(error) if is_timeout(error) => {
                let seconds = self.pings.silence_max().as_secs();
                Goodbye::new(
                    close::TRY_AGAIN,
                    format!("timed out after {seconds} s without a pong"),
                )
            }
            WsError::Io(error) => match Excess::within(error) {
                Some(excess) => (*excess).into(),
                None => return Err(format!("connection lost: {error}")),
            },
            WsError::Capacity(CapacityError::MessageTooLong { .. }) => {
                let bytes = self.limits.message_bytes;
                Goodbye::new(
                    close::TOO_BIG,
                    format!("message too large; the limit is {bytes} bytes"),
                )
            }
            WsError::Utf8(_) => Goodbye::new(close::INVALID_DATA, "a text message must be UTF-8"),
            other => Goodbye::new(close::PROTOCOL, other.to_string()),
        })
    }
}

impl From<Goodbye> for Ending {
    fn from(Goodbye { code, reason }: Goodbye) -> Self {
        let reason = format!("{reason} (close code {code})");
        let eviction = match code {
            close::TRY_AGAIN => Some(Eviction::Silent),
            close::POLICY => Some(Eviction::TooMuch),
            close::TOO_BIG => Some(Eviction::TooLarge),
            close::PROTOCOL | close::UNSUPPORTED | close::INVALID_DATA => Some(Eviction::Protocol),
            _ => None,
        };
        Self { reason, eviction, is_counted: false }
    }
}

impl From<Excess> for Goodbye {
    fn from(excess: Excess) -> Self {
        Self::new(close::POLICY, excess.to_string())
    }
}

/// Parses a client's message. Fails with an error code and a sentence. Public only for `fuzz/`.
#[doc(hidden)]
pub fn read_request(text: &str) -> Result<Request, (&'static str, String)> {
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| ("invalid_json", format!("the message is not JSON: {error}")))?;
    let type_name = value.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
    if !matches!(type_name, "PING" | "SUBSCRIBE") {
        let message = "`type` must be PING or SUBSCRIBE".to_owned();
        return Err(("unknown_type", message));
    }
    // A client may send PING with any payload, or none.
    if type_name == "PING" {
        return Ok(Request::Ping);
    }
    let payload = value.get("payload").cloned().unwrap_or_else(|| serde_json::json!({}));
    let filter: Filter = serde_json::from_value(payload)
        .map_err(|error| ("invalid_payload", format!("invalid payload of SUBSCRIBE: {error}")))?;
    let items =
        filter.flow_ids.as_ref().map_or(0, Vec::len).max(filter.types.as_ref().map_or(0, Vec::len));
    if items > FILTER_ITEMS_MAX {
        let message =
            format!("too many flows or types in a subscription; the limit is {FILTER_ITEMS_MAX}");
        return Err(("too_many", message));
    }
    Ok(Request::Subscribe(filter))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Reads and drops input until the other side ends the stream, for at most `time`. Closing a
/// connection with unread input resets it, and the reset can overtake the last bytes written.
pub fn drain(mut stream: &TcpStream, time: Duration) {
    let deadline = Instant::now() + time;
    let mut dropped = vec![0; 4 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut dropped) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_messages_are_parsed_or_refused_with_a_reason() {
        assert_eq!(read_request(r#"{"type":"PING"}"#).unwrap(), Request::Ping);
        assert_eq!(
            read_request(r#"{"type":"SUBSCRIBE"}"#).unwrap(),
            Request::Subscribe(Filter::default())
        );
        let code = |text: &str| read_request(text).unwrap_err().0;
        assert_eq!(code("garbage"), "invalid_json");
        assert_eq!(code("[]"), "unknown_type");
        assert_eq!(code(r#"{"type":"SHOUT"}"#), "unknown_type");
        assert_eq!(code(r#"{"type":"SUBSCRIBE","payload":{"flowIds":"1"}}"#), "invalid_payload");
        assert_eq!(code(r#"{"type":"SUBSCRIBE","payload":{"flows":[1]}}"#), "invalid_payload");
    }

    #[test]
    fn a_replay_of_removed_events_ends_instead_of_skipping() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        writer
            .transaction(|batch| {
                (0..9).try_for_each(|_| {
                    let at = crate::time::Timestamp(0);
                    batch.append_event(at, None, "PONG", "{}").map(drop)
                })
            })
            .unwrap();
        let store = Arc::new(store);
        let replay = LogReplay { store };
        let page = |after| replay.page(after, 9, &Filter::default(), &Frames, &mut Vec::new());
        assert_eq!(page(2).unwrap(), 9);
        writer.prune_events(5, crate::time::Timestamp(0), 500).unwrap();
        assert!(page(2).is_err());
        assert_eq!(page(4).unwrap(), 9);
    }

    #[test]
    fn pages_of_large_events_are_split_by_size() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = Store::open(dir.path()).unwrap();
        let sizes = [PAGE_BYTES_MAX + 1, PAGE_BYTES_MAX / 2, PAGE_BYTES_MAX / 2, 1];
        writer
            .transaction(|batch| {
                sizes.iter().try_for_each(|size| {
                    let at = crate::time::Timestamp(0);
                    let body = format!("{{{}}}", " ".repeat(size - 1));
                    batch.append_event(at, None, "PONG", &body).map(drop)
                })
            })
            .unwrap();
        let store = Arc::new(store);
        let replay = LogReplay { store };
        let page = |after| {
            let mut out = Vec::new();
            let reached = replay.page(after, 4, &Filter::default(), &Frames, &mut out);
            (reached.unwrap(), out.len())
        };
        let ends = [0, 1, 2, 3].map(|after| page(after).0);
        assert_eq!(ends, [1, 2, 4, 4]);
        assert!(page(2).1 <= PAGE_BYTES_MAX + 100, "{}", page(2).1);
    }

    struct Broken {
        ended: std::sync::mpsc::Sender<String>,
    }

    impl Handler for Broken {
        fn next_id(&self) -> ClientId {
            1
        }
        fn epoch(&self) -> &str {
            ""
        }
        fn replay(&self) -> Arc<dyn Replay + Send + Sync> {
            let dir = tempfile::tempdir().unwrap();
            let (store, _) = Store::open(dir.path()).unwrap();
            let store = Arc::new(store);
            Arc::new(LogReplay { store })
        }
        fn opened(&self, client: &Peer) -> Result<()> {
            client.outbox.open(None, 0);
            Ok(())
        }
        fn text(&self, _: &Peer, _: &str) -> Result<(), Goodbye> {
            panic!("as it is meant to")
        }
        fn binary(&self, _: &Peer, _: &[u8]) -> Result<(), Goodbye> {
            Ok(())
        }
        fn ended(&self, _: &Peer, ending: Ending) {
            self.ended.send(ending.reason).unwrap();
        }
    }

    #[test]
    fn a_reader_panic_ends_its_client_and_writer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, address) = listener.accept().unwrap();
        let (ended, reason) = std::sync::mpsc::channel();
        let sockets = Sockets {
            handler: Arc::new(Broken { ended }),
            pings: Pings::default(),
            limits: Limits::default(),
        };
        let upgrade = Box::new(Upgrade {
            stream: Arc::new(stream),
            answer: b"welcome".to_vec(),
            rest: Vec::new(),
            address,
            since: None,
        });
        let reader = std::thread::spawn(move || sockets.serve(upgrade));
        // A masked text of one byte.
        client.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'x']).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"welcome");
        assert!(reason.recv().unwrap().contains("internal error"));
        assert!(reader.join().is_err());
    }

    #[test]
    fn a_close_reason_fits_into_a_control_frame() {
        for reason in ["too slow; reconnect with ?since=SEQ", "the server is shutting down"] {
            assert!(Frames.close(close::TRY_AGAIN, reason).len() <= 127);
        }
    }
}
