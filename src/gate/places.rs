//! How many connections there may be: of each kind, and as far as descriptors go.
//!
//! Running out of descriptors would hurt in places that cannot say so (tiny_http's accepting
//! thread ends for good). So the gate counts what its connections take, and turns away whom there
//! would be none left for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

/// How many WebSocket clients there may be.
const SOCKETS_MAX: usize = 10_000;
/// How many HTTP connections there may be at a time.
const HTTP_MAX: usize = 1_024;
/// What an HTTP connection takes at most: the client's, the one to the server behind, and the two
/// that tiny_http has for that one.
const HTTP_DESCRIPTORS: usize = 4;
/// What is left for the database, for calls to providers (64, each with a few), and for the rest;
/// where there are few in all, a quarter of them.
const RESERVED_DESCRIPTORS: usize = 256;

/// Counts the connections. Places are given back when they are dropped.
#[derive(Debug)]
pub struct Places {
    descriptors_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    http: usize,
    sockets: usize,
}

impl Taken {
    fn descriptors(&self) -> usize {
        self.http * HTTP_DESCRIPTORS + self.sockets
    }
}

impl Places {
    /// As many places as this process may open descriptors for.
    pub fn new() -> Arc<Self> {
        let limit = getrlimit(Resource::Nofile).current;
        let limit = limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        Arc::new(Self {
            descriptors_max: limit - RESERVED_DESCRIPTORS.min(limit / 4),
            taken: Mutex::default(),
        })
    }

    /// A place for a connection whose first request is still to come.
    pub fn take(self: &Arc<Self>) -> Option<HttpPlace> {
        let mut taken = self.taken();
        let is_full =
            taken.http >= HTTP_MAX || taken.descriptors() + HTTP_DESCRIPTORS > self.descriptors_max;
        if is_full {
            return None;
        }
        taken.http += 1;
        Some(HttpPlace(Arc::clone(self)))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of an HTTP connection.
#[derive(Debug)]
pub struct HttpPlace(Arc<Places>);

impl HttpPlace {
    /// Gives it up for that of a WebSocket, if there is one.
    pub fn into_socket(self) -> Option<SocketPlace> {
        let mut taken = self.0.taken();
        if taken.sockets >= SOCKETS_MAX {
            return None;
        }
        taken.sockets += 1;
        drop(taken);
        Some(SocketPlace(Arc::clone(&self.0)))
    }
}

impl Drop for HttpPlace {
    fn drop(&mut self) {
        self.0.taken().http -= 1;
    }
}

/// The place of a WebSocket.
#[derive(Debug)]
pub struct SocketPlace(Arc<Places>);

impl Drop for SocketPlace {
    fn drop(&mut self) {
        self.0.taken().sockets -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_out_as_far_as_descriptors_go_and_given_back() {
        let places = Arc::new(Places {
            descriptors_max: 2 * HTTP_DESCRIPTORS + 1,
            taken: Mutex::default(),
        });
        let (one, two) = (places.take().unwrap(), places.take().unwrap());
        assert!(places.take().is_none());
        let socket = one.into_socket().unwrap();
        // A WebSocket takes one descriptor of the four, and three are too few for another.
        let three = places.take().unwrap();
        assert!(places.take().is_none());
        drop((two, three, socket));
        assert_eq!(places.taken().descriptors(), 0);
    }
}
