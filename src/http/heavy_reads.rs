//! The queue for reads that may look at every row of the ledger.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};

use super::reply;
use crate::error::{Error, Result};
use crate::listener::{ApiError, Presence};

/// How many such reads run at a time: a few cores' worth, and a quarter of the database's readers.
const AT_ONCE_MAX: usize = 4;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The interval of checks for a client that has left.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Bounds the heavy reads of all requests together.
pub struct HeavyReads {
    /// Holds one item for each read that runs.
    running: (Sender<()>, Receiver<()>),
}

impl Default for HeavyReads {
    fn default() -> Self {
        let running = bounded(AT_ONCE_MAX);
        Self { running }
    }
}

impl HeavyReads {
    /// Waits for a turn, then runs `read`.
    pub fn run<T>(
        &self,
        client: &Presence,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T, ApiError> {
        let deadline = Instant::now() + WAIT_MAX;
        let (running, done) = &self.running;
        while let Err(SendTimeoutError::Timeout(())) = running.send_timeout((), LOOK_INTERVAL) {
            if client.is_server_stopping() {
                return Err(Error::Stopping.into());
            }
            if client.has_left() {
                return Err(reply::client_left());
            }
            if Instant::now() >= deadline {
                let why = "too many sums and pages of the ledger are asked for; try again later";
                return Err(Error::Busy(why.into()).into());
            }
        }
        let _turn = Turn(done);
        Ok(read()?)
    }
}

/// Ends the turn of a read on drop.
struct Turn<'a>(&'a Receiver<()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}
