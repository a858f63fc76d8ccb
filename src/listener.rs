//! The public listener: one port for the page, the API and the WebSocket.
//!
//! Each connection has a thread. It reads each request's head with a limit and a deadline, refuses
//! requests that may not come in, upgrades `/ws` itself, and lets a [`RequestHandler`] answer all
//! others. Limits hold for every request of a kept-alive connection.

mod api_error;
mod auth;
mod connections;
mod request_body;
mod request_head;
mod response_writer;

use std::cell::Cell;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

pub use api_error::ApiError;
pub use auth::Auth;
pub use request_body::RequestBody;
pub use request_head::RequestHead;
pub use response_writer::{Presence, ResponseCopy, ResponseWriter};

use self::auth::is_probe;
use self::connections::{ConnectionPermit, Connections, Full, Kind, machine};
use self::request_body::{BodyBytes, BodyOwner};
use self::request_head::{BadRequestHead, Body};
use crate::error::{Error, Result};
use crate::event_stream::{self, Opening, Subscription};
use crate::flow::TEMPLATE_STACK_BYTES_MIN;
use crate::hub::Position;
use crate::threads::{OnFatal, Threads, vital};
use crate::websocket::{self, Sockets, Upgrade};

/// How long a head may take from its first byte (for the first one: from the connection's start).
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// The same for a connection that may only probe: such places are few.
const PROBE_HEAD_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a kept-alive connection may be idle.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a response may make no progress because the client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a head is read at a time.
const READ_BYTES: usize = 4 << 10;
/// Stack of a connection's thread: routes read templates on it. Untouched pages take no memory, so
/// an idle WebSocket does not pay for it.
const STACK_BYTES: usize = TEMPLATE_STACK_BYTES_MIN;
/// How long accepting pauses when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that is cut at the end may take to notice.
const CUT_TIME: Duration = Duration::from_millis(200);
/// How often the log says that accepting fails.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);
/// After a refusal, further bytes of the client are dropped for this long, so that the system does
/// not answer it with a reset that overtakes the refusal.
const LINGER_TIME: Duration = Duration::from_millis(500);

/// Who may come in, and how often.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub access: Auth,
    /// Limits the connections of one address, requests and WebSockets together. By default, 256
    /// for other machines, and as many as there may be in all for this one.
    pub connections_per_address: Option<usize>,
}

/// Answers requests in the thread of their connection.
pub trait RequestHandler: Send + Sync {
    /// Whether a request is for this handler. Only `Host` and `Origin` were checked.
    fn takes(&self, head: &RequestHead) -> bool;

    /// Checks a request before its body is read. By default, the server's token is required.
    /// Returns the number of the client's key if it has its own share of the room for bodies.
    fn admit(&self, head: &RequestHead, auth: &Auth) -> Result<Option<i64>, ApiError> {
        auth.check_token(head).map(|()| None)
    }

    /// Answers a request. A body that is not read ends the connection.
    fn answer(
        &self,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        response: &mut ResponseWriter<'_>,
    );

    /// The JSON of a refusal, in the form that clients of this handler expect.
    fn refusal(&self, _head: &RequestHead, error: &ApiError) -> Vec<u8> {
        error.to_json()
    }
}

struct Shared {
    access: Auth,
    sockets: Sockets,
    /// The first that takes a request answers it.
    handlers: Vec<Arc<dyn RequestHandler>>,
    body_bytes: BodyBytes,
    is_stopping: Arc<AtomicBool>,
    connections: Arc<Connections>,
    threads: Threads,
}

impl Shared {
    fn handler(&self, head: &RequestHead) -> Option<&dyn RequestHandler> {
        let mut handlers = self.handlers.iter();
        handlers.find(|it| it.takes(head)).map(|it| &**it)
    }
}

/// The listener, for those who start and stop it.
pub struct Listener {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

impl Listener {
    /// Accepts connections of `listener`. The first of `handlers` that takes a request answers it.
    pub fn start(
        listener: TcpListener,
        handlers: Vec<Arc<dyn RequestHandler>>,
        rules: Rules,
        sockets: Sockets,
        on_fatal: OnFatal,
    ) -> Result<Self> {
        let address =
            listener.local_addr().map_err(Error::io("cannot get the listening address"))?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            access: rules.access,
            sockets,
            handlers,
            body_bytes: BodyBytes::default(),
            is_stopping: Arc::default(),
            connections: Connections::new(rules.connections_per_address),
            threads: Threads::default(),
        });
        let acceptor = {
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            vital("listener", on_fatal, move || accept(&listener, &shared))?
        };
        Ok(Self { address, listener, shared, acceptor })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, and wakes connections that wait for their next request. Requests under
    /// way are still answered.
    pub fn stop_accepting(&self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        // Wakes `accept`: on Linux it returns an error once the socket is shut down.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        self.shared.connections.close();
    }

    /// Waits for all connections to end. A little before the deadline, the rest (a client that
    /// reads nothing, for example) is cut. Returns how many are left even then.
    pub fn join(self, deadline: Instant) -> usize {
        let _ = self.acceptor.join();
        if self.shared.threads.join(deadline - CUT_TIME) > 0 {
            self.shared.connections.cut();
        }
        self.shared.threads.join(deadline)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    let mut logged_at: Option<Instant> = None;
    loop {
        let accepted = listener.accept();
        if shared.is_stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, address)) => {
                number += 1;
                admit(shared, stream, address, number);
            }
            // The client was gone before it was accepted.
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                if logged_at.is_none_or(|at| at.elapsed() > ACCEPT_LOG_INTERVAL) {
                    log::error!(
                        "cannot accept connections: {error}; if file descriptors have run out, raise the limit (ulimit -n, LimitNOFILE)"
                    );
                    logged_at = Some(Instant::now());
                }
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Gives a connection a thread of its own, or refuses it.
fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, number: u64) {
    let stream = Arc::new(stream);
    let permit = match shared.connections.open(number, &stream, address.ip()) {
        Ok(permit) => permit,
        Err(full) => {
            let (status, code) = match full {
                Full::All => (503, "busy"),
                Full::Address(_) => (429, "too_many_connections"),
            };
            let message = format!("{full}; try again in a second");
            return refuse_at_once(shared, &stream, &ApiError::new(status, code, message));
        }
    };
    // On the heap, since the stack of a future WebSocket reader is dear.
    let connection = Box::new(Connection {
        shared: Arc::clone(shared),
        stream: Arc::clone(&stream),
        address,
        buffer: Vec::new(),
        permit,
    });
    let name = format!("conn-{number}");
    let thread = shared.threads.spawn(name, STACK_BYTES, move || connection.serve());
    if let Err(error) = thread {
        log::error!("{error}");
        let denied = ApiError::new(503, "busy", "too many threads; try again in a second");
        refuse_at_once(shared, &stream, &denied);
    }
}

/// Answers from the accepting thread, which must not wait.
fn refuse_at_once(shared: &Shared, stream: &Arc<TcpStream>, denied: &ApiError) {
    let _ = stream.set_nonblocking(true);
    let is_unread = Cell::new(true);
    let mut response = ResponseWriter::new(stream, &shared.is_stopping, &is_unread);
    response.refuse(denied, &denied.to_json());
}

/// One connection, in a thread of its own.
struct Connection {
    shared: Arc<Shared>,
    stream: Arc<TcpStream>,
    address: SocketAddr,
    /// Read from the client, but not used yet.
    buffer: Vec<u8>,
    permit: ConnectionPermit,
}

enum Next {
    KeepAlive,
    Close,
    Refuse(ApiError),
    Live(Live),
}

/// What a connection becomes for the rest of its time.
enum Live {
    WebSocket(Box<Upgrade>),
    Events(Box<Opening>),
}

impl Connection {
    #[expect(clippy::boxed_local, reason = "unboxed, it would lie on the stack for days")]
    fn serve(mut self: Box<Self>) {
        let _ = self.stream.set_nodelay(true);
        let _ = self.stream.set_write_timeout(Some(WRITE_TIMEOUT));
        if let Some(live) = self.serve_requests() {
            self.serve_live(live);
        }
    }

    /// Answers requests until the connection ends or becomes a WebSocket or an event stream. Not
    /// inlined, because the thread of a WebSocket would carry its stack for days.
    #[inline(never)]
    fn serve_requests(&mut self) -> Option<Live> {
        let mut first = true;
        loop {
            let head = match self.read_head(first) {
                Ok(head) => head?,
                Err(denied) => {
                    self.refuse(&denied, RequestHead::parse_partial(&self.buffer).as_ref());
                    return None;
                }
            };
            first = false;
            match self.handle(&head) {
                Next::KeepAlive if !self.shared.is_stopping.load(Ordering::SeqCst) => {}
                Next::KeepAlive | Next::Close => return None,
                Next::Refuse(denied) => {
                    self.refuse(&denied, Some(&head));
                    return None;
                }
                Next::Live(live) => return Some(live),
            }
        }
    }

    fn handle(&mut self, head: &RequestHead) -> Next {
        if let Err(denied) = self.shared.access.check_source(head) {
            return Next::Refuse(denied);
        }
        if self.permit.kind() == Kind::Probe && !is_probe(head) {
            return refuse(503, "busy", "too many connections; try again in a second");
        }
        if head.path() == "/ws" {
            return match self.shared.access.check_token(head) {
                Ok(()) => self.upgrade(head),
                Err(denied) => Next::Refuse(denied),
            };
        }
        if head.path() == "/api/events" && head.method == "GET" {
            return match self.shared.access.check_token(head) {
                Ok(()) => self.open_events(head),
                Err(denied) => Next::Refuse(denied),
            };
        }
        self.exchange(head)
    }

    /// Has a request answered. Not inlined, because a thread that becomes the reader of a
    /// WebSocket would carry its stack for days.
    #[inline(never)]
    fn exchange(&mut self, head: &RequestHead) -> Next {
        let shared = &self.shared;
        let Some(handler) = shared.handler(head) else {
            let message = format!("route {} not found; use /ws", head.path());
            return refuse(404, "not_found", message);
        };
        let is_unread = Cell::new(head.body != Body::Length(0));
        let keep_alive = head.keeps_alive() && self.permit.kind() == Kind::Http;
        let origin = shared.access.allowed_origin(head);
        let mut response = ResponseWriter::new(&self.stream, &shared.is_stopping, &is_unread)
            .to(head, keep_alive, origin);
        match handler.admit(head, &shared.access) {
            Ok(key) => {
                let (client, buffer) = (&self.stream, &mut self.buffer);
                let address = BodyOwner::Address(machine(self.address.ip()));
                let owner = key.map_or(address, BodyOwner::Key);
                let bytes = &shared.body_bytes;
                let mut body = RequestBody::new(client, buffer, head, &is_unread, bytes, owner);
                handler.answer(head, &mut body, &mut response);
            }
            Err(denied) => response.refuse(&denied, &handler.refusal(head, &denied)),
        }
        if response.is_complete() && response.keeps_alive() {
            return Next::KeepAlive;
        }
        if response.is_complete() && is_unread.get() {
            linger(&self.stream);
        }
        Next::Close
    }

    /// Upgrades the connection to a WebSocket, or refuses the request.
    fn upgrade(&mut self, head: &RequestHead) -> Next {
        let epoch = head.query("epoch").map(str::to_owned);
        let since = match head.query("since").map(str::parse).transpose() {
            Ok(since) => since.map(|seq| Position { seq, epoch }),
            Err(_) => return refuse(400, "bad_since", "`since` must be the `seq` of an event"),
        };
        let answer = match websocket::accept(&head.method, head.version, head.fields()) {
            Ok(answer) => answer,
            Err(error) => {
                let message = format!("/ws accepts only WebSocket requests: {error}");
                return refuse(426, "not_a_websocket", message);
            }
        };
        if !self.permit.become_websocket() {
            return refuse(503, "busy", "too many WebSocket clients; try again later");
        }
        let upgrade = Upgrade {
            stream: Arc::clone(&self.stream),
            answer,
            rest: std::mem::take(&mut self.buffer),
            address: self.address,
            since,
        };
        Next::Live(Live::WebSocket(Box::new(upgrade)))
    }

    /// Makes the connection an event stream, or refuses the request.
    fn open_events(&mut self, head: &RequestHead) -> Next {
        let (_, query) = head.target.split_once('?').unwrap_or_default();
        let subscription = match Subscription::read(query, head.header("last-event-id")) {
            Ok(subscription) => subscription,
            Err(faults) => {
                let denied = ApiError::new(422, "invalid", "cannot read the request");
                return Next::Refuse(ApiError { faults, ..denied });
            }
        };
        if !self.permit.become_websocket() {
            return refuse(503, "busy", "too many live clients; try again later");
        }
        let shared = &self.shared;
        let is_unread = Cell::new(false);
        let origin = shared.access.allowed_origin(head);
        let answer = ResponseWriter::new(&self.stream, &shared.is_stopping, &is_unread)
            .to(head, false, origin)
            .head_until_close(&[
                ("content-type", "text/event-stream"),
                ("referrer-policy", "no-referrer"),
                ("x-accel-buffering", "no"),
            ]);
        let (stream, address) = (Arc::clone(&self.stream), self.address);
        self.buffer = Vec::new();
        Next::Live(Live::Events(Box::new(Opening { stream, answer, address, subscription })))
    }

    /// Serves a WebSocket or an event stream for the rest of the connection. The request's head is
    /// let go of by now, so that an idle client does not keep it.
    fn serve_live(&self, live: Live) {
        let sockets = &self.shared.sockets;
        let served = match live {
            Live::WebSocket(upgrade) => sockets.serve(upgrade),
            Live::Events(opening) => event_stream::serve(sockets, opening),
        };
        if let Err(Error::Busy(why)) = served {
            self.refuse_for_threads(&why);
        }
    }

    #[inline(never)]
    fn refuse_for_threads(&self, why: &str) {
        log::error!("{why}; raise the thread limit (ulimit -u, TasksMax)");
        let message = "too many threads; try again later";
        self.refuse(&ApiError::new(503, "busy", message), None);
    }

    /// Reads the next head. Returns none when the client has left, or has sent no request in time.
    fn read_head(&mut self, first: bool) -> Result<Option<RequestHead>, ApiError> {
        let time_max = match self.permit.kind() {
            Kind::Probe => PROBE_HEAD_TIME_MAX,
            _ => HEAD_TIME_MAX,
        };
        let mut is_idle = !first && self.buffer.is_empty();
        let mut deadline = Instant::now() + if is_idle { IDLE_TIME_MAX } else { time_max };
        if is_idle {
            self.permit.set_idle();
        }
        loop {
            match RequestHead::parse(&self.buffer) {
                Ok(Some((head, length))) => {
                    // There is seldom anything behind the head, and then no buffer is kept.
                    self.buffer = self.buffer.split_off(length);
                    return Ok(Some(head));
                }
                Ok(None) => {}
                Err(error) => return Err(bad_head(&error)),
            }
            match read_some(&self.stream, &mut self.buffer, READ_BYTES, deadline) {
                Ok(0) => return Ok(None),
                Ok(_) if is_idle => {
                    if !self.permit.set_busy() {
                        return Ok(None);
                    }
                    is_idle = false;
                    deadline = Instant::now() + time_max;
                }
                Ok(_) => {}
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && !self.buffer.is_empty() =>
                {
                    let seconds = time_max.as_secs();
                    let message = format!("request headers timed out after {seconds} s");
                    return Err(ApiError::new(408, "timeout", message));
                }
                Err(_) => return Ok(None),
            }
        }
    }

    /// Refuses a request and ends the connection. `head` is the known part of the request: its
    /// handler chooses the form of the refusal.
    fn refuse(&self, denied: &ApiError, head: Option<&RequestHead>) {
        let shared = &self.shared;
        let handler = head.and_then(|head| Some((head, shared.handler(head)?)));
        let body = handler
            .map_or_else(|| denied.to_json(), |(head, handler)| handler.refusal(head, denied));
        let is_unread = Cell::new(true);
        let mut response = ResponseWriter::new(&self.stream, &shared.is_stopping, &is_unread);
        if let Some(head) = head {
            response = response.to(head, false, shared.access.allowed_origin(head));
        }
        response.refuse(denied, &body);
        if response.is_complete() {
            linger(&self.stream);
        }
    }
}

/// Says that nothing more follows, and waits a little for the client to take it.
fn linger(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    websocket::drain(stream, LINGER_TIME);
}

fn refuse(status: u16, code: &'static str, message: impl Into<String>) -> Next {
    Next::Refuse(ApiError::new(status, code, message))
}

fn bad_head(error: &BadRequestHead) -> ApiError {
    let (status, code) = match error {
        BadRequestHead::TooLarge => (431, "head_too_large"),
        BadRequestHead::Malformed(_) => (400, "bad_request"),
    };
    ApiError::new(status, code, error.to_string())
}

/// Appends the next bytes of the stream to `buffer`, at most `bytes_max`. Returns 0 at the end of
/// the stream. Fails with `TimedOut` at the deadline.
fn read_some(
    mut stream: &TcpStream,
    buffer: &mut Vec<u8>,
    bytes_max: usize,
    deadline: Instant,
) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    // Into the buffer itself: of a thread's stack, all that was ever touched stays taken, and this
    // thread may be the reader of an idle WebSocket for days.
    let old = buffer.len();
    buffer.resize(old + bytes_max, 0);
    let read = loop {
        match stream.read(&mut buffer[old..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                break Err(io::ErrorKind::TimedOut.into());
            }
            read => break read,
        }
    };
    buffer.truncate(old + read.as_ref().copied().unwrap_or(0));
    read
}
