//! Stopping a call from another thread.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use ureq::unversioned::transport::ShutdownHandle;

/// Stops calls from another thread. Clones are one and the same; one `Cancel` may be given to
/// several calls, which then end together. Once cancelled it stays so.
#[derive(Clone)]
pub struct Cancel {
    shared: Arc<Shared>,
    /// Never carries a message; it closes when the calls are to end, which wakes whoever waits.
    ended: Receiver<Infallible>,
}

struct Shared {
    state: Mutex<State>,
}

struct State {
    /// Dropped by [`Cancel::cancel`]: the closed channel is what "cancelled" means.
    alive: Option<Sender<Infallible>>,
    /// The sockets of the calls that are under way, by the number of their attachment.
    sockets: HashMap<u64, Weak<dyn ShutdownHandle>>,
    /// The number of the next attachment.
    next: u64,
}

impl Shared {
    /// The state is consistent at every point where a panic could come from, so a poisoned lock
    /// is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancel {
    /// Not cancelled yet.
    pub fn new() -> Self {
        let (alive, ended) = bounded(0);
        let state = State {
            alive: Some(alive),
            sockets: HashMap::new(),
            next: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
        });
        Self { shared, ended }
    }

    /// Ends every call that was given this `Cancel` or a clone of it, also one that is blocked in
    /// a read, and every call that will be. Does not wait for them to return.
    pub fn cancel(&self) {
        let mut state = self.shared.state();
        state.alive = None;
        // Shut down under the lock: a connection that was let go (see `Attachment`) in time to
        // serve another call must not be hit. `shutdown(2)` does not block.
        for socket in state
            .sockets
            .drain()
            .filter_map(|(_, socket)| socket.upgrade())
        {
            socket.shutdown();
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Closes on cancel, for `select!`.
    pub(super) fn ended(&self) -> &Receiver<Infallible> {
        &self.ended
    }

    /// Waits for that long, or until cancelled; tells whether it was cancelled.
    pub fn wait(&self, duration: Duration) -> bool {
        matches!(
            self.ended.recv_timeout(duration),
            Err(RecvTimeoutError::Disconnected)
        )
    }

    /// From now on [`Cancel::cancel`] shuts that socket down, until the attachment is dropped.
    /// None where it is cancelled already.
    pub(super) fn attach(&self, socket: Weak<dyn ShutdownHandle>) -> Option<Attachment> {
        let mut state = self.shared.state();
        state.alive.as_ref()?;
        let number = state.next;
        state.next += 1;
        state.sockets.insert(number, socket);
        Some(Attachment {
            shared: Arc::clone(&self.shared),
            number,
        })
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// A socket's tie to the `Cancel` of the call that uses it; ends when dropped.
pub(super) struct Attachment {
    shared: Arc<Shared>,
    number: u64,
}

impl Attachment {
    /// Whether it ties to that `Cancel` and not to another call's.
    pub(super) fn is_to(&self, cancel: &Cancel) -> bool {
        Arc::ptr_eq(&self.shared, &cancel.shared)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shared.state().sockets.remove(&self.number);
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
    fn cancel_reaches_the_attached_sockets_and_no_other() {
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
    fn a_wait_ends_on_cancel() {
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
