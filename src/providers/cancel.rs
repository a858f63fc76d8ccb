//! Cancels calls from another thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use ureq::unversioned::transport::ShutdownHandle;

/// Cancels calls from another thread, permanently. Clones share one state; several calls may share
/// one and end together.
#[derive(Clone)]
pub struct Cancel {
    state: Arc<Mutex<CancelState>>,
    /// Never carries a message; it closes on cancel, which wakes waiting threads.
    ended: Receiver<Infallible>,
}

struct CancelState {
    /// Dropped by [`Cancel::cancel`]; the closed channel signals the cancellation.
    alive: Option<Sender<Infallible>>,
    /// The sockets of running calls, by attachment number.
    sockets: HashMap<u64, Weak<dyn ShutdownHandle>>,
    next_number: u64,
}

/// Locks the state. It is consistent at every possible panic, so a poisoned lock is safe to use.
fn lock(state: &Mutex<CancelState>) -> MutexGuard<'_, CancelState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cancel {
    pub fn new() -> Self {
        let (alive, ended) = bounded(0);
        let state = CancelState { alive: Some(alive), sockets: HashMap::new(), next_number: 0 };
        Self { state: Arc::new(Mutex::new(state)), ended }
    }

    /// Ends every call with this `Cancel` or a clone of it, including one blocked in a read, and
    /// every later one. Does not wait for them to return.
    pub fn cancel(&self) {
        let mut state = lock(&self.state);
        state.alive = None;
        // Shut down under the lock: a connection released in time (see `Attachment`) may already
        // serve another call. `shutdown(2)` does not block.
        let sockets = state.sockets.drain();
        for socket in sockets.filter_map(|(_, socket)| socket.upgrade()) {
            socket.shutdown();
        }
    }

    pub fn is_cancelled(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Closes on cancel, for `select!`.
    pub(super) fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }

    /// Waits for this duration, or until cancelled; returns whether it was cancelled.
    pub fn wait(&self, duration: Duration) -> bool {
        matches!(self.ended.recv_timeout(duration), Err(RecvTimeoutError::Disconnected))
    }

    /// Lets [`Cancel::cancel`] shut this socket down until the attachment is dropped. Returns none
    /// if it is already cancelled.
    pub(super) fn attach(&self, socket: Weak<dyn ShutdownHandle>) -> Option<Attachment> {
        let mut state = lock(&self.state);
        state.alive.as_ref()?;
        let number = state.next_number;
        state.next_number += 1;
        state.sockets.insert(number, socket);
        Some(Attachment { state: Arc::clone(&self.state), number })
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cancel({})", self.is_cancelled())
    }
}

/// Ties a socket to the `Cancel` of its call, until dropped.
pub(super) struct Attachment {
    state: Arc<Mutex<CancelState>>,
    number: u64,
}

impl Attachment {
    pub(super) fn is_to(&self, cancel: &Cancel) -> bool {
        Arc::ptr_eq(&self.state, &cancel.state)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        lock(&self.state).sockets.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Socket(AtomicUsize);

    impl ShutdownHandle for Socket {
        fn shutdown(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn weak(socket: &Arc<Socket>) -> Weak<dyn ShutdownHandle> {
        Arc::downgrade(socket) as Weak<dyn ShutdownHandle>
    }

    #[test]
    fn cancel_shuts_down_attached_sockets_only() {
        let (used, let_go) = (Arc::new(Socket::default()), Arc::new(Socket::default()));
        let cancel = Cancel::new();
        let _attachment = cancel.attach(weak(&used)).unwrap();
        drop(cancel.attach(weak(&let_go)).unwrap());
        assert!(!cancel.is_cancelled());
        cancel.clone().cancel();
        cancel.cancel();
        assert!(cancel.is_cancelled());
        assert_eq!(used.0.load(Ordering::SeqCst), 1);
        assert_eq!(let_go.0.load(Ordering::SeqCst), 0);
        assert!(cancel.attach(weak(&used)).is_none());
    }

    #[test]
    fn cancel_ends_a_wait() {
        let cancel = Cancel::new();
        assert!(!cancel.wait(Duration::from_millis(1)));
        let waiting = std::thread::spawn({
            let cancel = cancel.clone();
            move || cancel.wait(Duration::from_secs(30))
        });
        cancel.cancel();
        assert!(waiting.join().unwrap());
    }
}
