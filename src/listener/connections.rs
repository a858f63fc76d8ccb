//! The open connections: limits (by kind, by address, by file descriptors), and the choice of an
//! idle connection to close for a new one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::process::{Resource, getrlimit};

/// Limits the number of WebSocket and event-stream clients.
const WEBSOCKETS_MAX: usize = 10_000;
/// Limits the number of HTTP connections.
const HTTP_MAX: usize = 1_024;
/// Limits additional HTTP connections while all others are in use; they answer only probes.
const PROBES_MAX: usize = 16;
/// Limits the connections of one other machine, of both kinds together, unless the configuration
/// sets a limit: enough for many users behind one router, and a quarter of the HTTP connections.
const PER_ADDRESS_MAX: usize = 256;
/// Descriptors reserved for the database (16 readers with two files each), for calls to providers
/// (64, each with a few), for probes and for the rest. With a low limit, half of all descriptors.
const RESERVED_DESCRIPTORS: usize = 256;
/// The network part of an IPv6 address: 64 bits identify one customer of an access provider
/// (RFC 6177, section 2), and a machine may use any address within them.
const IPV6_NETWORK: u128 = !0 << 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    /// HTTP, accepted while all other connections are in use.
    Probe,
    /// A WebSocket or an event stream.
    WebSocket,
}

struct Connection {
    stream: Arc<TcpStream>,
    address: IpAddr,
    kind: Kind,
    /// Start of a kept-alive connection's wait for its next request.
    idle_since: Option<Instant>,
}

/// The open connections of a listener.
pub struct Connections {
    descriptors_max: usize,
    probes_max: usize,
    per_address_max: Option<usize>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    is_closed: bool,
    open: HashMap<u64, Connection>,
}

/// The reason for refusing a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("too many connections")]
    All,
    #[error("too many connections from your address; the limit is {0}")]
    Address(usize),
}

impl Connections {
    /// Limits connections to the descriptors that this process may open. `per_address_max` also
    /// applies to loopback addresses. Without it, other machines may have [`PER_ADDRESS_MAX`], and
    /// this one (or a proxy on it) has no such limit.
    pub fn new(per_address_max: Option<usize>) -> Arc<Self> {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Self::within(limit, per_address_max)
    }

    fn within(descriptors: usize, per_address_max: Option<usize>) -> Arc<Self> {
        let reserved = RESERVED_DESCRIPTORS.min(descriptors / 2);
        Arc::new(Self {
            descriptors_max: descriptors - reserved,
            probes_max: PROBES_MAX.min(reserved / 8),
            per_address_max,
            table: Mutex::default(),
        })
    }

    /// Admits a new connection. If the limit is reached, closes the connection that has been idle
    /// longest; if none is idle, admits the new one for probes only.
    pub fn open(
        self: &Arc<Self>,
        number: u64,
        stream: &Arc<TcpStream>,
        address: IpAddr,
    ) -> Result<ConnectionPermit, Full> {
        let address = machine(address);
        let per_address_max = match self.per_address_max {
            None if address.is_loopback() => usize::MAX,
            max => max.unwrap_or(PER_ADDRESS_MAX),
        };
        let mut table = self.table();
        // Checked under the lock that `close` takes, so that no connection is admitted after it.
        if table.is_closed {
            return Err(Full::All);
        }
        if table.count(|it| it.address == address) >= per_address_max {
            return Err(Full::Address(per_address_max));
        }
        let is_full = table.count(|it| it.kind == Kind::Http) >= HTTP_MAX
            || table.count(|it| it.kind != Kind::Probe) >= self.descriptors_max;
        let kind = if !is_full || table.close_oldest_idle() {
            Kind::Http
        } else if table.count(|it| it.kind == Kind::Probe) < self.probes_max {
            Kind::Probe
        } else {
            return Err(Full::All);
        };
        let connection = Connection { stream: Arc::clone(stream), address, kind, idle_since: None };
        table.open.insert(number, connection);
        Ok(ConnectionPermit { connections: Arc::clone(self), number, kind })
    }

    /// Admits no more connections, and wakes those that wait for a request.
    pub fn close(&self) {
        let mut table = self.table();
        table.is_closed = true;
        for connection in table.open.values() {
            if connection.kind != Kind::WebSocket {
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
    }

    pub fn cut(&self) {
        for connection in self.table().open.values() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Scans all connections, which takes less time than starting a new connection's thread.
    fn count(&self, fits: impl Fn(&Connection) -> bool) -> usize {
        self.open.values().filter(|it| fits(it)).count()
    }

    fn close_oldest_idle(&mut self) -> bool {
        let idle = self.open.iter();
        let idle = idle.filter_map(|(number, it)| Some((it.idle_since?, *number)));
        let Some((_, number)) = idle.min() else {
            return false;
        };
        // The connection's thread ends now; its permit then finds no entry to remove.
        if let Some(connection) = self.open.remove(&number) {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        true
    }
}

/// Returns the address that stands for one machine: an IPv4 address, or an IPv6 network.
pub fn machine(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK))
        }
        address => address,
    }
}

/// A connection's entry; removed on drop.
pub struct ConnectionPermit {
    connections: Arc<Connections>,
    number: u64,
    kind: Kind,
}

impl ConnectionPermit {
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Marks the connection as waiting for its next request; it may be closed for a new connection.
    pub fn set_idle(&self) {
        if let Some(connection) = self.connections.table().open.get_mut(&self.number) {
            connection.idle_since = Some(Instant::now());
        }
    }

    /// Marks the start of a request. Returns false if the connection was closed for a new one.
    pub fn set_busy(&self) -> bool {
        let mut table = self.connections.table();
        let connection = table.open.get_mut(&self.number);
        connection.map(|it| it.idle_since = None).is_some()
    }

    /// Counts the connection as a WebSocket or an event stream. Returns false if their limit is reached.
    pub fn become_websocket(&mut self) -> bool {
        let mut table = self.connections.table();
        // `close` leaves WebSockets open, because the hub closes them with a close frame.
        let websockets = table.count(|it| it.kind == Kind::WebSocket);
        if table.is_closed || websockets >= WEBSOCKETS_MAX {
            return false;
        }
        self.kind = Kind::WebSocket;
        let connection = table.open.get_mut(&self.number);
        connection.map(|it| it.kind = self.kind).is_some()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    /// Returns connections that all share one stream.
    struct Opener {
        connections: Arc<Connections>,
        stream: Arc<TcpStream>,
        client: TcpStream,
        next: u64,
    }

    impl Opener {
        fn new(descriptors: usize, per_address_max: Option<usize>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            Self {
                connections: Connections::within(descriptors, per_address_max),
                stream: Arc::new(listener.accept().unwrap().0),
                client,
                next: 0,
            }
        }

        fn open(&mut self, address: IpAddr) -> Result<ConnectionPermit, Full> {
            self.next += 1;
            self.connections.open(self.next, &self.stream, address)
        }
    }

    #[test]
    fn connections_are_limited_by_descriptors_and_released() {
        let mut opener = Opener::new(4, None);
        let (mut one, two) = (opener.open(HERE).unwrap(), opener.open(HERE).unwrap());
        assert_eq!(opener.open(HERE).err(), Some(Full::All));
        assert!(one.become_websocket());
        assert_eq!(opener.open(HERE).err(), Some(Full::All));
        drop(one);
        assert_eq!(opener.open(HERE).unwrap().kind(), Kind::Http);
        drop(two);
        assert!(opener.connections.table().open.is_empty());
    }

    #[test]
    fn probes_connect_when_all_other_slots_are_taken() {
        let mut opener = Opener::new(usize::MAX, None);
        let all: Vec<_> = (0..HTTP_MAX).map(|_| opener.open(HERE).unwrap()).collect();
        assert!(all.iter().all(|permit| permit.kind() == Kind::Http));
        let probes: Vec<_> = (0..PROBES_MAX).map(|_| opener.open(HERE).unwrap()).collect();
        assert!(probes.iter().all(|permit| permit.kind() == Kind::Probe));
        assert_eq!(opener.open(HERE).err(), Some(Full::All));
        drop(all);
        assert_eq!(opener.open(HERE).unwrap().kind(), Kind::Http);
    }

    #[test]
    fn the_oldest_idle_connection_is_closed_for_a_new_one() {
        let mut opener = Opener::new(4, None);
        let (old, new) = (opener.open(HERE).unwrap(), opener.open(HERE).unwrap());
        old.set_idle();
        new.set_idle();
        assert_eq!(opener.open(HERE).unwrap().kind(), Kind::Http);
        assert!(!old.set_busy());
        assert_eq!(opener.client.read(&mut [0]).unwrap(), 0);
        assert!(new.set_busy());
        drop(old);
        assert_eq!(opener.connections.table().open.len(), 1);
    }

    #[test]
    fn an_address_has_one_share_of_requests_and_websockets() {
        let mut opener = Opener::new(usize::MAX, Some(2));
        let mut socket = opener.open(HERE).unwrap();
        assert!(socket.become_websocket());
        let request = opener.open(HERE).unwrap();
        assert_eq!(opener.open(HERE).err(), Some(Full::Address(2)));
        let other = opener.open("127.0.0.1".parse().unwrap()).unwrap();
        drop(socket);
        let again = opener.open(HERE).unwrap();
        drop((request, other, again));
        assert!(opener.connections.table().open.is_empty());
    }

    #[test]
    fn only_other_machines_are_limited_by_default() {
        let mut opener = Opener::new(usize::MAX, None);
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let mut take = |address| {
            let mut permit = opener.open(address)?;
            assert!(permit.become_websocket());
            Ok::<_, Full>(permit)
        };
        let held: Vec<_> = (0..PER_ADDRESS_MAX).map(|_| take(other)).collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(take(other).err(), Some(Full::Address(PER_ADDRESS_MAX)));
        let same = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(take(same).err(), Some(Full::Address(PER_ADDRESS_MAX)));
        let here: Vec<_> = (0..2 * PER_ADDRESS_MAX).map(|_| take(HERE)).collect();
        assert!(here.iter().all(Result::is_ok));
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_machine() {
        let network = |text: &str| machine(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
    }
}
