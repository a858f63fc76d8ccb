//! The queue for reads that may look at every row of the ledger.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::reply::Failure;
use crate::error::Error;
use crate::listener::Presence;

/// How many such reads run at a time: a few cores' worth, and a quarter of the database's readers.
const AT_ONCE_MAX: usize = 4;
/// How long a read waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a waiting read checks whether its client has left.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Bounds the heavy reads of all requests together.
#[derive(Default)]
pub struct HeavyReads {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    is_stopping: bool,
}

/// The turn of a read, given back on drop.
pub struct Turn<'a>(&'a HeavyReads);

impl HeavyReads {
    /// Waits for a turn.
    ///
    /// # Errors
    /// When none comes in time, when the client leaves, and when the server stops.
    pub fn turn(&self, client: &Presence) -> Result<Turn<'_>, Failure> {
        let deadline = Instant::now() + WAIT_MAX;
        let mut state = self.state();
        while state.running >= AT_ONCE_MAX && !state.is_stopping {
            if Instant::now() >= deadline {
                let why = "too many sums and pages of the ledger are asked for; try again later";
                return Err(Error::Busy(why.into()).into());
            }
            let waited = self.changed.wait_timeout(state, LOOK_INTERVAL);
            let timed_out;
            (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            if timed_out.timed_out() && client.has_left() {
                return Err(Failure::client_left());
            }
        }
        if state.is_stopping {
            return Err(Error::Stopping.into());
        }
        state.running += 1;
        Ok(Turn(self))
    }

    /// Ends the waiting.
    pub fn stop(&self) {
        self.state().is_stopping = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_one();
    }
}
