//! The journal: the one thread that writes the database.
//!
//! Commit, then publish: it writes all waiting entries in one transaction, sends their events to
//! the hub only after the commit, and then answers the submitters. So viewers never see an event
//! that did not happen, the order of `seq` is the order of broadcasts, and rows get cheaper as load
//! rises (group commit).

mod call_metrics;
mod housekeeping;
mod retention_clock;
mod retries;
mod writer_thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

pub use self::call_metrics::{CallMetrics, Model, ModelMetrics};
pub use self::housekeeping::{BodyLimits, EVENT_AGE_MAX, EVENTS_MAX, Retention};
use self::writer_thread::{End, WriterThread};
use crate::error::{Error, Result};
use crate::hub::Publish;
use crate::store::{Change, Receipt, Writer};
use crate::threads::{OnFatal, Threads, vital};

/// Limits how many entries wait. Further senders block.
const ENTRIES_MAX: usize = 4_096;
/// Limits how often a retried entry may fail for another reason than the disk. Such errors rarely
/// go away, and the entry delays those behind it.
const FAILURES_MAX: u32 = 10;
/// The interval at which a thread that waits for a commit checks whether the journal has ended.
const END_POLL: Duration = Duration::from_millis(100);

/// Stack of the checkpoint thread.
const CHECKPOINT_STACK_BYTES: usize = 128 << 10;
/// Limits how long the end waits for a checkpoint; the rest is copied at the next start.
const CHECKPOINT_END_MAX: Duration = Duration::from_secs(1);

/// Called in the journal's thread once the entry is committed or refused; must not block.
pub type Done = Box<dyn FnOnce(Result<Vec<Receipt>>) + Send>;

enum Command {
    Write(Entry),
    Shutdown,
}

/// Changes that are written together or not at all.
struct Entry {
    changes: Vec<Change>,
    done: Done,
    /// True if the entry is tried again after the disk refused it.
    is_retried: bool,
    /// The number of failures for another reason than the disk.
    failures: u32,
}

impl Entry {
    /// Returns whether another attempt makes sense after this error.
    fn may_be_retried(&self, error: &Error) -> bool {
        self.is_retried && error.is_transient() && self.failures < FAILURES_MAX
    }

    fn complete(self, result: Result<Vec<Receipt>>) {
        (self.done)(result);
    }
}

/// A handle of the journal for submitters.
#[derive(Clone)]
pub struct Journal {
    commands: Sender<Command>,
    calls: CallMetrics,
    /// True once the thread has ended, so that no `done` is called any more.
    ended: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the journal's thread over `writer`; committed events go to `publisher`. `retention`
    /// limits how long runs that are over are kept.
    ///
    /// # Errors
    /// Fails when the database cannot be opened a second time, or no thread can be started.
    pub fn start(
        mut writer: Writer,
        publisher: Box<dyn Publish>,
        retention: Retention,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (commands, received) = bounded(ENTRIES_MAX);
        let calls = CallMetrics::default();
        let checkpointer = writer.checkpointer()?;
        let checkpoint_threads = Threads::default();
        checkpoint_threads.spawn("checkpoint", CHECKPOINT_STACK_BYTES, move || {
            checkpointer.run();
        })?;
        let writer = WriterThread::new(writer, publisher, calls.clone(), retention)?;
        let ended = Arc::new(AtomicBool::new(false));
        let set_ended = SetOnDrop(Arc::clone(&ended));
        let on_lost = Arc::clone(&on_fatal);
        let thread = vital("journal", on_fatal, move || {
            let set_ended = set_ended;
            // This drops the writer, and with it the checkpoint thread ends.
            let end = writer.run(&received);
            checkpoint_threads.join(Instant::now() + CHECKPOINT_END_MAX);
            drop(set_ended);
            if end == End::FileLost {
                on_lost("journal");
            }
        })?;
        let journal = Self { commands, calls, ended };
        Ok((journal, thread))
    }

    /// Writes all `changes` or none, and waits for the commit. Returns a receipt for each change.
    ///
    /// # Errors
    /// The reason of a refused change, [`Error::Disk`] for a full disk, or [`Error::Stopping`] after
    /// the journal's end.
    pub fn commit(&self, changes: Vec<Change>) -> Result<Vec<Receipt>> {
        self.wait_for(|done| self.submit(changes, done))
    }

    /// Like [`Journal::commit`], but retries while the disk is full; see
    /// [`Journal::submit_retried`].
    ///
    /// # Errors
    /// The reason of a refused change, or [`Error::Stopping`] after the journal's end.
    pub fn commit_retried(&self, changes: Vec<Change>) -> Result<Vec<Receipt>> {
        self.wait_for(|done| self.submit_retried(changes, done))
    }

    fn wait_for(&self, submit: impl FnOnce(Done) -> Result<()>) -> Result<Vec<Receipt>> {
        let (sender, receiver) = oneshot::channel();
        submit(Box::new(move |result| {
            // A caller leaves early only if the journal has ended.
            let _ = sender.send(result);
        }))?;
        loop {
            // An entry sent during the shutdown stays in the channel while any sender exists, so
            // waiting for the channel to close is not enough.
            let has_ended = self.ended.load(Ordering::SeqCst);
            match receiver.recv_timeout(END_POLL) {
                Ok(result) => return result,
                Err(oneshot::RecvTimeoutError::Timeout) if !has_ended => {}
                Err(_) => return Err(Error::Stopping),
            }
        }
    }

    /// Writes one change; see [`Journal::commit`].
    pub fn commit_one(&self, change: Change) -> Result<Receipt> {
        let mut receipts = self.commit(vec![change])?;
        receipts.pop().ok_or_else(|| Error::internal("the journal returned no receipt"))
    }

    /// Submits `changes` without waiting; `done` is called once they are committed or refused.
    /// Entries of one thread are committed in the order of their submission.
    ///
    /// # Errors
    /// [`Error::Stopping`] after the journal's end; then `done` is not called.
    pub fn submit(&self, changes: Vec<Change>, done: Done) -> Result<()> {
        self.send(changes, done, false)
    }

    /// Like [`Journal::submit`], for changes that must not be lost: settlements, ends of nodes and
    /// runs. If the disk refuses them, the journal keeps them in order and tries again until it
    /// ends. `done` is called once this is decided, with an error if they were refused for another
    /// reason, if too many entries are kept ([`Error::Busy`]), or if the journal ends
    /// ([`Error::Stopping`]).
    ///
    /// # Errors
    /// Same as [`Journal::submit`].
    pub fn submit_retried(&self, changes: Vec<Change>, done: Done) -> Result<()> {
        self.send(changes, done, true)
    }

    fn send(&self, changes: Vec<Change>, done: Done, is_retried: bool) -> Result<()> {
        let entry = Entry { changes, done, is_retried, failures: 0 };
        self.commands.send(Command::Write(entry)).map_err(|_| Error::Stopping)
    }

    /// Returns the metrics of calls since the server started.
    pub fn calls(&self) -> &CallMetrics {
        &self.calls
    }

    /// Ends the journal once all earlier entries are written.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }
}

/// Sets the flag if the journal's thread ends, even by a panic.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
