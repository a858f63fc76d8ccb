//! The connections beneath `ureq`, wrapped so that one call can be cancelled without the others.
//!
//! `ureq::Agent::shutdown` ends all calls of an agent, and with them the pool. A wrapped connection
//! is tied to the [`Cancel`] of its thread's call whenever it does I/O, and released when it
//! returns to the pool. A thread-local [`Scope`] has the call, because `ureq` takes connections
//! from its pool without a call to the connector; a call never leaves its thread.
//!
//! Name lookup and TCP connect cannot be interrupted. They run in a helper thread, which a
//! cancelled call leaves behind; it ends at the connect timeout.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{bounded, select};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, ShutdownHandle, Transport,
};
use ureq::{Error, Timeout};

use super::cancel::{Attachment, Cancel};

/// The stack size of a helper thread, in bytes: enough for name lookup and a TLS handshake. Only
/// touched pages use memory.
const HELPER_STACK_BYTES: usize = 512 * 1024;

/// Limits the request bytes that are held back until the rest follows or the response is awaited:
/// most requests are then sent in one write, head and body together.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    static SCOPE: RefCell<Option<Rc<Scope>>> = const { RefCell::new(None) };
}

/// The call of the current thread, with the data that its connections need.
pub(super) struct Scope {
    pub(super) cancel: Cancel,
    started: Instant,
    /// True if a part of the request was sent.
    pub(super) sent: Cell<bool>,
    /// Deadline of the next bytes, in addition to the timeouts of `ureq`.
    pub(super) read_by: Cell<Option<Instant>>,
}

pub(super) struct Entered {
    pub(super) scope: Rc<Scope>,
    /// The enclosing call: a callback may make a call within a call.
    outer: Option<Rc<Scope>>,
}

impl Scope {
    /// Makes a scope the current one of this thread.
    pub(super) fn enter(cancel: &Cancel) -> Entered {
        let scope = Rc::new(Self {
            cancel: cancel.clone(),
            started: Instant::now(),
            sent: Cell::new(false),
            read_by: Cell::new(None),
        });
        let outer = SCOPE.replace(Some(Rc::clone(&scope)));
        Entered { scope, outer }
    }

    /// Returns the time since the call began.
    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn present() -> Option<Rc<Self>> {
        SCOPE.with_borrow(Clone::clone)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        SCOPE.replace(self.outer.take());
    }
}

/// Returns an error for `ureq`. The provider client checks the [`Cancel`] instead of this error.
fn cancelled() -> Error {
    Error::Io(io::Error::other("the call was cancelled"))
}

/// Runs `work`, which cannot be interrupted, so that a cancelled call need not wait for its end.
fn abandonable<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let Some(scope) = Scope::present() else {
        return work(); // In a helper thread already.
    };
    let (done, result) = bounded(1);
    thread::Builder::new().name(name.to_owned()).stack_size(HELPER_STACK_BYTES).spawn(
        move || {
            // A cancelled call no longer waits for the result.
            let _ = done.send(work());
        },
    )?;
    select! {
        recv(result) -> result => result.unwrap_or(Err(Error::ConnectionFailed)),
        recv(scope.cancel.ended()) -> _ => Err(cancelled()),
    }
}

/// `ureq`'s resolver, which a cancelled call can abandon.
#[derive(Debug)]
pub(super) struct Lookup;

impl Resolver for Lookup {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (uri, config) = (uri.clone(), config.clone());
        abandonable("lookup", move || DefaultResolver::default().resolve(&uri, &config, timeout))
    }
}

/// A placeholder for the addresses of a name whose lookup is deferred.
const LATER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Defers the lookup until a connection is made: `ureq` resolves before it looks into its pool, and
/// a call over a pooled connection needs neither an address nor a thread for the lookup. Not for a
/// resolver that checks addresses.
#[derive(Debug)]
pub(super) struct LookupLater;

impl Resolver for LookupLater {
    fn resolve(
        &self,
        _uri: &Uri,
        _config: &Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut addrs = self.empty();
        addrs.push(LATER);
        Ok(addrs)
    }
}

/// `ureq`'s connector (proxies, TCP, TLS), which a cancelled call can abandon and whose connections
/// follow a [`Cancel`]. It looks the name up if the address is [`LATER`].
#[derive(Debug, Default)]
pub(super) struct Connect {
    inner: Arc<DefaultConnector>,
}

impl Connector for Connect {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _chained: Option<()>,
    ) -> Result<Option<Connection>, Error> {
        let socket = Arc::new(OnceLock::new());
        let work = connecting(Arc::clone(&self.inner), details, Arc::clone(&socket));
        let connected = abandonable("connect", work);
        let socket = socket.get().cloned();
        if connected.is_err() {
            // Aborts an abandoned TLS handshake.
            let socket = socket.as_ref().and_then(Weak::upgrade);
            socket.inspect(|socket| socket.shutdown());
        }
        Ok(connected?.map(|inner| Connection {
            inner,
            socket,
            attachment: None,
            unsent: Vec::new(),
        }))
    }
}

/// Returns the work of connecting, which owns its part of `details`, and sets the socket as soon as
/// it exists.
fn connecting(
    connector: Arc<DefaultConnector>,
    details: &ConnectionDetails,
    socket: Arc<OnceLock<Weak<dyn ShutdownHandle>>>,
) -> impl FnOnce() -> Result<Option<Box<dyn Transport>>, Error> + Send + 'static {
    let (uri, config) = (details.uri.clone(), details.config.clone());
    let mut addrs = details.resolver.empty();
    for addr in details.addrs.iter() {
        addrs.push(*addr);
    }
    let (request_level, now, timeout) = (details.request_level, details.now, details.timeout);
    let current_time = Arc::clone(&details.current_time);
    let run_connector = Arc::clone(&details.run_connector);
    let register_with_agent = Arc::clone(&details.register_shutdown);
    let register_shutdown = Arc::new(move |handle: Weak<dyn ShutdownHandle>| {
        // Already set only if a connector opens two sockets, which none does.
        let _ = socket.set(Weak::clone(&handle));
        register_with_agent(handle)
    });
    move || {
        if addrs[..] == [LATER] {
            addrs = Lookup.resolve(&uri, &config, timeout)?;
        }
        let details = ConnectionDetails {
            uri: &uri,
            addrs,
            config: &config,
            request_level,
            resolver: &Lookup,
            now,
            timeout,
            current_time,
            run_connector,
            register_shutdown,
        };
        connector.connect(&details, None)
    }
}

/// A connection that follows the [`Cancel`] of the call that uses it.
pub(super) struct Connection {
    inner: Box<dyn Transport>,
    socket: Option<Weak<dyn ShutdownHandle>>,
    /// None while the connection is in the pool.
    attachment: Option<Attachment>,
    /// Output that was not sent yet, at most [`UNSENT_BYTES_MAX`].
    unsent: Vec<u8>,
}

impl Connection {
    /// Ties the connection to the current call.
    fn follow(&mut self) -> Result<Option<Rc<Scope>>, Error> {
        let Some(scope) = Scope::present() else {
            return Ok(None);
        };
        let attachment = self.attachment.as_ref();
        if attachment.is_none_or(|attachment| !attachment.is_to(&scope.cancel)) {
            let socket = self.socket.clone();
            self.attachment = socket.and_then(|socket| scope.cancel.attach(socket));
        }
        if scope.cancel.is_cancelled() {
            return Err(cancelled());
        }
        Ok(Some(scope))
    }

    fn flush(&mut self, scope: Option<&Scope>, timeout: NextTimeout) -> Result<(), Error> {
        let unsent = std::mem::take(&mut self.unsent);
        if let Some(scope) = scope.filter(|_| !unsent.is_empty()) {
            // TLS and proxy handshakes are complete at this point, so these are bytes of the
            // request.
            scope.sent.set(true);
        }
        let mut rest = unsent.as_slice();
        while !rest.is_empty() {
            let output = self.inner.buffers().output();
            let (piece, after) = rest.split_at(rest.len().min(output.len()));
            output[..piece.len()].copy_from_slice(piece);
            rest = after;
            self.inner.transmit_output(piece.len(), timeout)?;
        }
        Ok(())
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let scope = self.follow()?;
        let piece = &self.inner.buffers().output()[..amount];
        self.unsent.extend_from_slice(piece);
        if self.unsent.len() <= UNSENT_BYTES_MAX {
            return Ok(());
        }
        self.flush(scope.as_deref(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let scope = self.follow()?;
        self.flush(scope.as_deref(), timeout)?;
        let read_by = scope.and_then(|scope| scope.read_by.get());
        self.inner.await_input(earlier(timeout, read_by))
    }

    fn is_open(&mut self) -> bool {
        // `ureq` calls this for a connection that enters the pool and for one that leaves it. The
        // attachment is released first, so that a concurrent shutdown is noticed.
        let goes_in = self.attachment.take().is_some();
        // The state matters on leaving, so it is not checked on entering.
        self.unsent.is_empty() && (goes_in || self.inner.is_open())
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Returns `timeout`, or the time until `read_by` if that is less; it counts as a wait for the
/// response.
fn earlier(mut timeout: NextTimeout, read_by: Option<Instant>) -> NextTimeout {
    if let Some(read_by) = read_by {
        let left = read_by.saturating_duration_since(Instant::now()).into();
        if left < timeout.after {
            timeout.after = left;
            timeout.reason = Timeout::RecvResponse;
        }
    }
    timeout
}
