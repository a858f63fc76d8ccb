//! The queue for reads that may scan the whole ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use super::reply;
use crate::error::{Error, Result};
use crate::listener::{ApiError, Presence};
use crate::store::Store;

/// Limits concurrent heavy reads: a few cores' worth, and a quarter of the database's readers.
const CONCURRENT_MAX: usize = 4;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Interval of checks for a disconnected client.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Limits the heavy reads of all requests together.
pub struct HeavyReads {
    /// Contains one item for each running read.
    running: (Sender<()>, Receiver<()>),
}

impl Default for HeavyReads {
    fn default() -> Self {
        let running = bounded(CONCURRENT_MAX);
        Self { running }
    }
}

impl HeavyReads {
    /// Waits for a slot, then runs `read`, which is interrupted if the client disconnects.
    pub fn run<T>(
        &self,
        store: &Store,
        client: &Presence,
        read: impl FnOnce(&Store) -> Result<T>,
    ) -> Result<T, ApiError> {
        let deadline = Instant::now() + WAIT_MAX;
        let (running, done) = &self.running;
        while let Err(SendTimeoutError::Timeout(())) = running.send_timeout((), CHECK_INTERVAL) {
            if client.is_server_stopping() {
                return Err(Error::Stopping.into());
            }
            if client.is_disconnected() {
                return Err(reply::client_disconnected());
            }
            if Instant::now() >= deadline {
                let why = "too many ledger queries at once; try again later";
                return Err(Error::Busy(why.into()).into());
            }
        }
        let _slot = Slot(done);
        let presence = client.clone();
        let is_abandoned = move || presence.is_disconnected() || presence.is_server_stopping();
        let store = store.interrupted_by(Arc::new(is_abandoned));
        read(&store).map_err(|error| match error {
            Error::Store(_) if client.is_disconnected() => reply::client_disconnected(),
            Error::Store(_) if client.is_server_stopping() => Error::Stopping.into(),
            error => error.into(),
        })
    }
}

/// Frees the slot of a read on drop.
struct Slot<'a>(&'a Receiver<()>);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}
