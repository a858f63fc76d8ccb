//! The public listener: one port for the page, the API and the WebSocket.
//!
//! It reads each request's head with a limit and a deadline, turns away who may not come in,
//! takes `/ws` for itself, gives what a [`RequestHandler`] wants to it, and passes everything else on to the
//! HTTP server behind it, which listens on a private Unix socket: one connection there for each
//! request, so that the end of the answer is the end of the stream, and limits hold for every
//! request of a kept-alive connection.

mod auth;
mod connection_limit;
mod relay;
mod request_head;
mod response_writer;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

pub use auth::{Auth, Denied};
pub use request_head::RequestHead;
pub use response_writer::{Presence, RequestHandler, ResponseWriter};

use self::connection_limit::{ConnectionLimit, ConnectionPermit, Full};
use self::request_head::BadRequestHead;
use self::response_writer::Bodies;
use crate::error::{Error, Result};
use crate::threads::{OnFatal, Threads, vital};
use crate::websocket::{self, Sockets, Upgrade};

/// How long a head may take from its first byte (for the first one: from the connection's start).
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a kept-alive connection may be idle.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an answer may make no progress because the client does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much is read from a client at a time.
const READ_BYTES: usize = 4 << 10;
/// Stack of a connection's thread: JSON that nests as deep as it may, calls to providers over TLS, and
/// the tokenizer that estimates what they did not count are its deepest work. What is not touched takes no memory, hence nothing of an idle WebSocket.
/// A build that is not optimised takes several times as much.
const STACK_BYTES: usize = if cfg!(debug_assertions) {
    2 << 20
} else {
    512 << 10
};
/// How long accepting pauses when descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that is cut at the end may take to notice.
const CUT_TIME: Duration = Duration::from_millis(200);
/// How often the log says that accepting fails.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Who may come in, and how often.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Who may.
    pub access: Auth,
    /// How many connections one address may have at a time, requests and WebSockets together. Where
    /// nothing is said, 256 for other machines, and as many as there may be in all for this one.
    pub connections_per_address: Option<usize>,
}

/// What connections need.
struct Shared {
    access: Auth,
    sockets: Sockets,
    backend: PathBuf,
    direct: Option<Arc<dyn RequestHandler>>,
    bodies: Bodies,
    stopping: AtomicBool,
    places: Arc<ConnectionLimit>,
    open: Mutex<HashMap<u64, Open>>,
    threads: Threads,
}

/// A connection that is open, so that it can be ended.
struct Open {
    stream: Arc<TcpStream>,
    is_socket: bool,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Listens on `listener`; HTTP requests go to `direct` where it takes them, else to the server at
    /// the Unix socket `backend`.
    pub fn start(
        listener: TcpListener,
        backend: PathBuf,
        direct: Option<Arc<dyn RequestHandler>>,
        rules: Rules,
        sockets: Sockets,
        on_fatal: OnFatal,
    ) -> Result<Self> {
        let address = listener
            .local_addr()
            .map_err(Error::io("cannot tell the own address"))?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared {
            access: rules.access,
            sockets,
            backend,
            direct,
            bodies: Bodies::default(),
            stopping: AtomicBool::new(false),
            places: ConnectionLimit::new(rules.connections_per_address),
            open: Mutex::default(),
            threads: Threads::default(),
        });
        let acceptor = {
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            vital("listener", on_fatal, move || accept(&listener, &shared))?
        };
        Ok(Self {
            address,
            listener,
            shared,
            acceptor,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, and wakes connections that wait for their next request. Answers under
    /// way go on.
    pub fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes `accept`: on Linux it returns an error once the socket is shut down.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        for open in self.shared.open().values().filter(|open| !open.is_socket) {
            let _ = open.stream.shutdown(Shutdown::Read);
        }
    }

    /// Waits for all connections to end; a little before the deadline, those that have not (a
    /// client that reads nothing, say) are cut. Gives how many are left even then.
    pub fn join(self, deadline: Instant) -> usize {
        let _ = self.acceptor.join();
        if self.shared.threads.join(deadline - CUT_TIME) > 0 {
            for open in self.shared.open().values() {
                let _ = open.stream.shutdown(Shutdown::Both);
            }
        }
        self.shared.threads.join(deadline)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    let mut logged_at: Option<Instant> = None;
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
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
                        "cannot accept connections: {error}; if descriptors have run out, raise the limit (ulimit -n, LimitNOFILE)"
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
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Gives a connection a thread of its own, or turns it away.
fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr, number: u64) {
    let stream = Arc::new(stream);
    let known = match Known::new(shared, number, &stream, address) {
        Ok(known) => known,
        Err(full) => return turn_away(&stream, &full),
    };
    let thread =
        {
            let (shared, stream) = (Arc::clone(shared), Arc::clone(&stream));
            // On the heap, since the stack of what may become the reader of a WebSocket is dear.
            let connection = Box::new(Connection {
                shared,
                stream,
                address,
                buffer: Vec::new(),
                known,
            });
            connection.shared.clone().threads.spawn(
                format!("conn-{number}"),
                STACK_BYTES,
                move || connection.serve(),
            )
        };
    if let Err(error) = thread {
        log::error!("{error}");
        let denied = Denied::new(503, "busy", "no thread to be had; try again in a second");
        answer_at_once(&stream, &denied);
    }
}

fn turn_away(stream: &TcpStream, full: &Full) {
    let (status, code) = match full {
        Full::All => (503, "busy"),
        Full::Address(_) => (429, "too_many_connections"),
    };
    let message = format!("{full}; try again in a second");
    answer_at_once(stream, &Denied::new(status, code, message));
}

/// Answers from the accepting thread, which must not wait.
fn answer_at_once(mut stream: &TcpStream, denied: &Denied) {
    let _ = stream.set_nonblocking(true);
    let body = relay::error_body(denied);
    let _ = stream.write(&relay::error_response(denied, &body, None));
}

/// A connection that is known to the listener, so that it can be ended.
struct Known {
    shared: Arc<Shared>,
    number: u64,
    place: ConnectionPermit,
}

impl Known {
    fn new(
        shared: &Arc<Shared>,
        number: u64,
        stream: &Arc<TcpStream>,
        address: SocketAddr,
    ) -> std::result::Result<Self, Full> {
        let place = shared.places.take(address.ip())?;
        let mut open = shared.open();
        // Looked at under the lock under which `stop_accepting` wakes all that are open: nobody
        // comes in behind its back and is waited for.
        if shared.stopping.load(Ordering::SeqCst) {
            return Err(Full::All);
        }
        let is_socket = false;
        let stream = Arc::clone(stream);
        open.insert(number, Open { stream, is_socket });
        Ok(Self {
            shared: Arc::clone(shared),
            number,
            place,
        })
    }

    /// From now on it counts as a WebSocket. Gives whether there is a place for another.
    fn become_socket(&mut self) -> bool {
        let mut open = self.shared.open();
        // As above: what is woken at the end could no longer say goodbye as a WebSocket does.
        let becomes = !self.shared.stopping.load(Ordering::SeqCst) && self.place.become_socket();
        if becomes && let Some(open) = open.get_mut(&self.number) {
            open.is_socket = true;
        }
        becomes
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.shared.open().remove(&self.number);
    }
}

/// One connection, in a thread of its own.
struct Connection {
    shared: Arc<Shared>,
    stream: Arc<TcpStream>,
    address: SocketAddr,
    /// What was read and not used yet.
    buffer: Vec<u8>,
    known: Known,
}

/// What follows a request.
enum Next {
    KeepAlive,
    Close,
    /// Answer with this and close.
    Refuse(Denied),
    /// Go on as a WebSocket.
    Upgrade(Box<Upgrade>),
}

impl Connection {
    #[expect(
        clippy::boxed_local,
        reason = "unboxed, it would lie on the stack for days"
    )]
    fn serve(mut self: Box<Self>) {
        let _ = self.stream.set_nodelay(true);
        let _ = self.stream.set_write_timeout(Some(WRITE_TIMEOUT));
        if let Some(upgrade) = self.take_requests() {
            self.become_socket(upgrade);
        }
    }

    /// Answers requests until the connection ends or becomes a WebSocket. Not inlined, because the
    /// thread of a WebSocket would carry its stack for days.
    #[inline(never)]
    fn take_requests(&mut self) -> Option<Box<Upgrade>> {
        let mut first = true;
        loop {
            let head = match self.read_head(first) {
                Ok(head) => head?,
                Err(denied) => {
                    self.refuse(&denied, RequestHead::begun(&self.buffer).as_ref());
                    return None;
                }
            };
            first = false;
            match self.handle(&head) {
                Next::KeepAlive if !self.shared.stopping.load(Ordering::SeqCst) => {}
                Next::KeepAlive | Next::Close => return None,
                Next::Refuse(denied) => {
                    self.refuse(&denied, Some(&head));
                    return None;
                }
                Next::Upgrade(upgrade) => return Some(upgrade),
            }
        }
    }

    fn handle(&mut self, head: &RequestHead) -> Next {
        let access = &self.shared.access;
        if let Some(direct) = self.shared.direct.as_ref().filter(|it| it.takes(head)) {
            if let Err(denied) = access.check_source(head) {
                return Next::Refuse(denied);
            }
            let origin = access.allowed_origin(head);
            let (bodies, buffer) = (&self.shared.bodies, &mut self.buffer);
            return response_writer::request(&**direct, bodies, &self.stream, buffer, head, origin);
        }
        // The server behind understands nothing else.
        if let Some((name, _)) = head.fields().find(|(_, value)| !value.is_ascii()) {
            let message = format!("the request cannot be read: field {name} is not ASCII");
            return refuse(400, "bad_request", &message);
        }
        if let Err(denied) = access.check(head) {
            return Next::Refuse(denied);
        }
        if head.path() == "/ws" {
            return self.upgrade(head);
        }
        relay::request(&self.shared.backend, &self.stream, &mut self.buffer, head)
    }

    /// Answers with what is needed to become a WebSocket.
    fn upgrade(&mut self, head: &RequestHead) -> Next {
        let since = match head.query("since").map(str::parse).transpose() {
            Ok(since) => since,
            Err(_) => return refuse(400, "bad_since", "`since` must be the seq of an event"),
        };
        let answer = match websocket::accept(&head.method, head.version, head.fields()) {
            Ok(answer) => answer,
            Err(error) => {
                return refuse(
                    426,
                    "not_a_websocket",
                    &format!("/ws takes WebSockets only: {error}"),
                );
            }
        };
        if !self.known.become_socket() {
            return refuse(503, "busy", "too many WebSocket clients; try again later");
        }
        let upgrade = Upgrade {
            stream: Arc::clone(&self.stream),
            answer,
            rest: std::mem::take(&mut self.buffer),
            address: self.address,
            since,
        };
        Next::Upgrade(Box::new(upgrade))
    }

    /// Is a WebSocket for the rest of the connection. The request's head is let go of by now, so
    /// that an idle client does not keep it.
    fn become_socket(&self, upgrade: Box<Upgrade>) {
        let served = self.shared.sockets.serve(upgrade);
        if let Err(Error::Busy(why)) = served {
            self.refuse_for_threads(&why);
        }
    }

    #[inline(never)]
    fn refuse_for_threads(&self, why: &str) {
        log::error!("{why}; raise the limit on threads (ulimit -u, TasksMax)");
        let message = "no thread to be had; try again later";
        self.refuse(&Denied::new(503, "busy", message), None);
    }

    /// Reads the next head: none when the client is gone or has nothing more to ask.
    fn read_head(&mut self, first: bool) -> std::result::Result<Option<RequestHead>, Denied> {
        let begins_now = first || !self.buffer.is_empty();
        let mut deadline = Instant::now()
            + if begins_now {
                HEAD_TIME_MAX
            } else {
                IDLE_TIME_MAX
            };
        let mut idle = !begins_now;
        loop {
            match RequestHead::parse(&self.buffer) {
                Ok(Some((head, length))) => {
                    // Behind the head there is seldom anything, and then no buffer is kept.
                    self.buffer = self.buffer.split_off(length);
                    return Ok(Some(head));
                }
                Ok(None) => {}
                Err(error) => return Err(bad_head(&error)),
            }
            match read_some(&self.stream, &mut self.buffer, READ_BYTES, deadline) {
                Ok(0) => return Ok(None),
                Ok(_) if idle => {
                    idle = false;
                    deadline = Instant::now() + HEAD_TIME_MAX;
                }
                Ok(_) => {}
                Err(error)
                    if error.kind() == io::ErrorKind::TimedOut && !self.buffer.is_empty() =>
                {
                    let message = format!(
                        "the request's head took longer than {} s",
                        HEAD_TIME_MAX.as_secs()
                    );
                    return Err(Denied::new(408, "timeout", message));
                }
                Err(_) => return Ok(None),
            }
        }
    }

    /// `head` is what is known of the request: whoever would have answered it says it in its own way.
    fn refuse(&self, denied: &Denied, head: Option<&RequestHead>) {
        let origin = head.and_then(|head| self.shared.access.allowed_origin(head));
        let direct = self.shared.direct.as_deref();
        let body = head
            .zip(direct)
            .filter(|(head, direct)| direct.takes(head))
            .map_or_else(
                || relay::error_body(denied),
                |(head, direct)| direct.refusal(head, denied),
            );
        let response = relay::error_response(denied, &body, origin);
        if (&*self.stream).write_all(&response).is_ok() {
            relay::linger(&self.stream);
        }
    }
}

fn refuse(status: u16, code: &'static str, message: &str) -> Next {
    Next::Refuse(Denied::new(status, code, message.to_owned()))
}

fn bad_head(error: &BadRequestHead) -> Denied {
    let (status, code) = match error {
        BadRequestHead::TooLarge => (431, "head_too_large"),
        BadRequestHead::Malformed(_) => (400, "bad_request"),
    };
    Denied::new(status, code, error.to_string())
}

/// Appends what comes next to `buffer`, at most so many bytes. Gives 0 at the end of the stream.
///
/// # Errors
/// `TimedOut` when nothing has come by the deadline.
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
