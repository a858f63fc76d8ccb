//! How many connections there may be: of each kind, from each address, and as far as descriptors
//! go.
//!
//! Running out of descriptors would hurt in places that cannot say so (tiny_http's accepting
//! thread ends for good). So the listener counts what its connections take, and turns away whom there
//! would be none left for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

/// How many WebSocket clients there may be.
const SOCKETS_MAX: usize = 10_000;
/// How many HTTP connections there may be at a time.
const HTTP_MAX: usize = 1_024;
/// How many connections, of both kinds together, one other machine may have unless told otherwise:
/// a room full of people behind one router, and a quarter of the HTTP connections.
const PER_ADDRESS_MAX: usize = 256;
/// What an HTTP connection takes at most: the client's, the one to the server behind, and the two
/// that tiny_http has for that one.
const HTTP_DESCRIPTORS: usize = 4;
/// What is left for the database, for calls to providers (64, each with a few), and for the rest;
/// where there are few in all, a quarter of them.
const RESERVED_DESCRIPTORS: usize = 256;
/// The part of an IPv6 address that stands for one customer of a provider (RFC 6177, section 2):
/// the 64 bits of the network, in which a machine may take any address.
const IPV6_NETWORK: u128 = !0 << 64;

/// Counts the connections. Places are given back when they are dropped.
#[derive(Debug)]
pub struct ConnectionLimit {
    descriptors_max: usize,
    per_address_max: Option<usize>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    http: usize,
    sockets: usize,
    /// Connections of both kinds; nothing for an address without any.
    by_address: HashMap<IpAddr, usize>,
}

impl Taken {
    fn descriptors(&self) -> usize {
        self.http * HTTP_DESCRIPTORS + self.sockets
    }

    fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// There are too many in all.
    #[error("too many connections")]
    All,
    /// There are too many from this address.
    #[error("too many connections from your address, at most {0}")]
    Address(usize),
}

impl ConnectionLimit {
    /// As many places as this process may open descriptors for. `per_address_max` is how many one
    /// address may have, also a loopback one; without it, other machines may have
    /// [`PER_ADDRESS_MAX`], and for this one (or a proxy on it) there is no such limit.
    pub fn new(per_address_max: Option<usize>) -> Arc<Self> {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        Arc::new(Self {
            descriptors_max: limit - RESERVED_DESCRIPTORS.min(limit / 4),
            per_address_max,
            taken: Mutex::default(),
        })
    }

    /// A place for a connection whose first request is still to come.
    ///
    /// # Errors
    /// When there are too many connections.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionPermit, Full> {
        let address = machine(address);
        let mut taken = self.taken();
        if taken.http >= HTTP_MAX || taken.descriptors() + HTTP_DESCRIPTORS > self.descriptors_max {
            return Err(Full::All);
        }
        let max = match self.per_address_max {
            None if address.is_loopback() => usize::MAX,
            max => max.unwrap_or(PER_ADDRESS_MAX),
        };
        if taken.of(address) >= max {
            return Err(Full::Address(max));
        }
        taken.http += 1;
        *taken.by_address.entry(address).or_default() += 1;
        Ok(ConnectionPermit {
            places: Arc::clone(self),
            address,
            is_socket: false,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one machine: an IPv4 address, or an IPv6 network.
fn machine(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK))
        }
        address => address,
    }
}

/// The place of a connection: of HTTP at first, perhaps of a WebSocket later.
#[derive(Debug)]
pub struct ConnectionPermit {
    places: Arc<ConnectionLimit>,
    address: IpAddr,
    is_socket: bool,
}

impl ConnectionPermit {
    /// Gives it up for that of a WebSocket, if there is one. Gives whether there was.
    pub fn become_socket(&mut self) -> bool {
        let mut taken = self.places.taken();
        if taken.sockets >= SOCKETS_MAX {
            return false;
        }
        taken.http -= 1;
        taken.sockets += 1;
        self.is_socket = true;
        true
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if self.is_socket {
            taken.sockets -= 1;
        } else {
            taken.http -= 1;
        }
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn places(descriptors_max: usize, per_address_max: Option<usize>) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit {
            descriptors_max,
            per_address_max,
            taken: Mutex::default(),
        })
    }

    #[test]
    fn places_are_given_out_as_far_as_descriptors_go_and_given_back() {
        let places = places(2 * HTTP_DESCRIPTORS + 1, None);
        let (mut one, two) = (places.take(HERE).unwrap(), places.take(HERE).unwrap());
        assert_eq!(places.take(HERE).unwrap_err(), Full::All);
        assert!(one.become_socket());
        // A WebSocket takes one descriptor of the four, and three are too few for another.
        let three = places.take(HERE).unwrap();
        assert_eq!(places.take(HERE).unwrap_err(), Full::All);
        drop((one, two, three));
        assert_eq!(places.taken().descriptors(), 0);
        assert!(places.taken().by_address.is_empty());
    }

    #[test]
    fn an_address_has_its_share_whether_of_requests_or_of_web_sockets() {
        let places = places(usize::MAX, Some(2));
        let mut socket = places.take(HERE).unwrap();
        assert!(socket.become_socket());
        let request = places.take(HERE).unwrap();
        assert_eq!(places.take(HERE).unwrap_err(), Full::Address(2));
        let other = places.take("127.0.0.1".parse().unwrap()).unwrap();
        drop(socket);
        let again = places.take(HERE).unwrap();
        drop((request, other, again));
        assert!(places.taken().by_address.is_empty());
    }

    #[test]
    fn unless_told_otherwise_other_machines_are_limited_and_this_one_is_not() {
        let places = places(usize::MAX, None);
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let take = |address| {
            let mut place: ConnectionPermit = places.take(address)?;
            assert!(place.become_socket());
            Ok::<_, Full>(place)
        };
        let held: Vec<_> = (0..PER_ADDRESS_MAX).map(|_| take(other)).collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(take(other).unwrap_err(), Full::Address(PER_ADDRESS_MAX));
        let same = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(take(same).unwrap_err(), Full::Address(PER_ADDRESS_MAX));
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
