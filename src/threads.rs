//! Threads with names, limits and ends: nothing runs that nobody waits for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How often a waiting shutdown looks whether the threads have ended.
const JOIN_POLL: Duration = Duration::from_millis(2);

/// A set of threads of one kind, joined together at the end.
#[derive(Default)]
pub struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts a thread. A panic in it is logged and ends that thread alone.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        stack_bytes: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let name = name.into();
        let handle = Builder::new()
            .name(name.clone())
            .stack_size(stack_bytes)
            .spawn(move || guarded(work))
            .map_err(Error::io(format!(
                "cannot start the thread `{name}`; raise the limit on threads (ulimit -u, TasksMax)"
            )))?;
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        // Handles of ended threads are dropped when the list would grow, so that it stays as
        // long as the most threads there ever were at once.
        if handles.len() == handles.capacity() {
            handles.retain(|handle| !handle.is_finished());
        }
        handles.push(handle);
        Ok(())
    }

    /// Waits until all have ended or `deadline` has passed. Gives how many are left.
    pub fn join(&self, deadline: Instant) -> usize {
        loop {
            let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
            let (ended, left): (Vec<_>, Vec<_>) =
                handles.drain(..).partition(JoinHandle::is_finished);
            *handles = left;
            let left = handles.len();
            drop(handles);
            for handle in ended {
                // The panic, if any, was logged where it happened.
                let _ = handle.join();
            }
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            thread::sleep(JOIN_POLL);
        }
    }
}

fn guarded(work: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        log::error!(
            "a thread ended by a panic: {}",
            panic_message(panic.as_ref())
        );
    }
}

/// The text of a panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Called when a thread ended that the server cannot do without; gets the thread's name.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Starts a thread that the server cannot do without: when it panics, `on_fatal` is called, so
/// that the server ends in good order and with an error instead of going on half dead.
///
/// # Errors
/// When the system cannot start another thread.
pub fn vital(
    name: &'static str,
    on_fatal: OnFatal,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                log::error!(
                    "the {name} thread panicked: {}",
                    panic_message(panic.as_ref())
                );
                on_fatal(name);
            }
        })
        .map_err(Error::io(format!("cannot start the {name} thread")))
}
