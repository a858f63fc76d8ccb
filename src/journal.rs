//! The journal: one thread, the only writer of the database.
//!
//! Commit, then publish: it takes all entries that wait, writes them in one transaction, and only
//! after the commit numbers the events that follow from them, hands them to the hub, and wakes
//! whoever waited. So viewers are never told of something that did not happen, the order of `seq`
//! is the order of broadcasts, and the busier the server, the cheaper a row (group commit).

mod calls;
mod housekeeping;
mod retention_clock;
mod retries;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

pub use self::calls::{Calls, Model, OfModel};
use self::housekeeping::Housekeeping;
pub use self::housekeeping::Retention;
use self::retries::Retries;
use crate::error::{Error, Result};
use crate::event::{Event, Seq, Timestamp, encode};
use crate::hub::{Message, Publish};
use crate::store::{Batch, Change, Receipt, Writer};
use crate::threads::{OnFatal, Threads, vital};

/// How many entries may wait; who sends more waits.
const ENTRIES_MAX: usize = 4_096;
/// How many entries one transaction takes, so that the first of them does not wait for long.
const BATCH_ENTRIES_MAX: usize = 512;
/// How often a retried entry may fail by itself, while the disk is not full, before it is given up.
/// Such faults rarely pass, and the entry holds up those behind it.
const FAILURES_MAX: u32 = 10;
/// How often somebody who waits for a commit looks whether the journal has ended.
const END_POLL: Duration = Duration::from_millis(100);

/// Stack of the thread that copies commits into the database.
const CHECKPOINT_STACK_BYTES: usize = 128 << 10;
/// How long a copy under way may take at the end; what is left is copied at the next start.
const CHECKPOINT_END_MAX: Duration = Duration::from_secs(1);
/// Called in the journal's thread once the entry is committed or refused; must not block.
pub type Done = Box<dyn FnOnce(Result<Vec<Receipt>>) + Send>;

enum Command {
    Write(Entry),
    Shutdown,
}

/// Changes that are written as a whole or not at all.
struct Entry {
    changes: Vec<Change>,
    done: Done,
    /// Whether it is tried again if the disk refuses it.
    is_retried: bool,
    /// How often it failed by itself, while the database took others.
    failures: u32,
}

impl Entry {
    /// Whether it is worth another attempt after this error.
    fn may_be_retried(&self, error: &Error) -> bool {
        self.is_retried && error.is_transient() && self.failures < FAILURES_MAX
    }

    fn answer(self, result: Result<Vec<Receipt>>) {
        (self.done)(result);
    }
}

/// The journal, for those who write.
#[derive(Clone)]
pub struct Journal {
    commands: Sender<Command>,
    calls: Calls,
    /// Set once nothing will be answered any more.
    ended: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the journal's thread over `writer`; committed events go to `publisher`. Runs that are
    /// over are kept as long as `retention` says.
    ///
    /// # Errors
    /// When the database cannot be opened once more, or the system cannot start another thread.
    pub fn start(
        mut writer: Writer,
        publisher: Box<dyn Publish>,
        retention: Retention,
        on_fatal: OnFatal,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (commands, received) = bounded(ENTRIES_MAX);
        let calls = Calls::default();
        let checkpointer = writer.checkpointer()?;
        let copying = Threads::default();
        copying.spawn("checkpoint", CHECKPOINT_STACK_BYTES, move || {
            checkpointer.run();
        })?;
        let housekeeping = Housekeeping::new(retention, writer.newest_moment()?);
        let state = State {
            calls: calls.clone(),
            writer,
            publisher,
            retries: Retries::default(),
            housekeeping,
        };
        let ended = Arc::new(AtomicBool::new(false));
        let at_end = SetOnDrop(Arc::clone(&ended));
        let thread = vital("journal", on_fatal, move || {
            let _at_end = at_end;
            // With the writer ends what copies its commits.
            state.run(&received);
            copying.join(Instant::now() + CHECKPOINT_END_MAX);
        })?;
        let journal = Self {
            commands,
            calls,
            ended,
        };
        Ok((journal, thread))
    }

    /// Writes `changes` as a whole or not at all, and waits for the commit. Gives a receipt for
    /// each change.
    ///
    /// # Errors
    /// What a change was refused for; [`Error::Disk`] when the disk refuses; [`Error::Stopping`].
    pub fn commit(&self, changes: Vec<Change>) -> Result<Vec<Receipt>> {
        self.wait_for(|done| self.submit(changes, done))
    }

    /// As [`Journal::commit`], but waits until the disk takes it; see [`Journal::submit_retried`].
    ///
    /// # Errors
    /// If a change was refused for another reason; [`Error::Stopping`] at the end of the journal.
    pub fn commit_retried(&self, changes: Vec<Change>) -> Result<Vec<Receipt>> {
        self.wait_for(|done| self.submit_retried(changes, done))
    }

    fn wait_for(&self, submit: impl FnOnce(Done) -> Result<()>) -> Result<Vec<Receipt>> {
        let (sender, receiver) = oneshot::channel();
        submit(Box::new(move |result| {
            // The caller has given up waiting only if the journal has ended.
            let _ = sender.send(result);
        }))?;
        loop {
            // What is sent while the journal ends may stay in its channel for as long as somebody
            // holds the other side of it: the end of the channel alone is no sign to rely on.
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
        receipts
            .pop()
            .ok_or_else(|| Error::internal("the journal gave no receipt"))
    }

    /// Hands `changes` over without waiting; `done` is called once they are committed or refused.
    /// What one thread submits is committed in that order.
    ///
    /// # Errors
    /// [`Error::Stopping`]; then `done` is not called.
    pub fn submit(&self, changes: Vec<Change>, done: Done) -> Result<()> {
        self.send(changes, done, false)
    }

    /// As [`Journal::submit`], for changes that must not be lost: settlements, ends of nodes and
    /// runs. If the disk refuses them, the journal keeps them and tries again until its end. Such
    /// entries are written in the order in which they were submitted. `done` is called once it is
    /// decided: with an error if they were refused for another reason, if too many are kept
    /// ([`Error::Busy`]), or if the journal ends ([`Error::Stopping`]).
    ///
    /// # Errors
    /// As [`Journal::submit`].
    pub fn submit_retried(&self, changes: Vec<Change>, done: Done) -> Result<()> {
        self.send(changes, done, true)
    }

    fn send(&self, changes: Vec<Change>, done: Done, is_retried: bool) -> Result<()> {
        let entry = Entry {
            changes,
            done,
            is_retried,
            failures: 0,
        };
        self.commands
            .send(Command::Write(entry))
            .map_err(|_| Error::Stopping)
    }

    /// What calls took since the server started.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Ends the journal after all that was handed over before.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }
}

/// Says that the journal's thread has ended, however it did.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Owned by the journal's thread.
struct State {
    /// What calls took.
    calls: Calls,
    writer: Writer,
    publisher: Box<dyn Publish>,
    retries: Retries,
    housekeeping: Housekeeping,
}

/// An entry that was written, but not committed yet.
struct Written {
    receipts: Vec<Receipt>,
    messages: Vec<Message>,
}

impl State {
    fn run(mut self, received: &Receiver<Command>) {
        loop {
            let mut entries = Vec::new();
            let mut stop = false;
            match received.recv_timeout(self.housekeeping.interval()) {
                Ok(first) => {
                    let rest = received.try_iter().take(BATCH_ENTRIES_MAX - 1);
                    for command in std::iter::once(first).chain(rest) {
                        match command {
                            Command::Write(entry) => entries.push(entry),
                            Command::Shutdown => {
                                stop = true;
                                break;
                            }
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => stop = true,
            }
            let kept_before = self.retries.len();
            if kept_before > 0 {
                let retried = entries.extract_if(.., |entry| entry.is_retried);
                retried.for_each(|entry| self.retries.push(entry));
            }
            if stop || self.retries.is_due() || !entries.is_empty() {
                self.retry();
            }
            self.write(entries);
            if stop {
                return self.retries.end();
            }
            let kept = self.retries.len();
            if kept > kept_before {
                log::error!("{kept} changes wait for room on the disk, and are tried again");
            }
            let oldest = self.housekeeping.run(&mut self.writer);
            if oldest.is_some() {
                self.publisher.publish(Vec::new(), oldest);
            }
        }
    }

    /// Tries kept entries again: some to see if there is room, then all.
    fn retry(&mut self) {
        while !self.retries.is_empty() {
            let entries = self.retries.take();
            let has_written = self.write(entries);
            self.retries.tried(has_written);
            if !has_written {
                return;
            }
            if self.retries.is_empty() {
                log::warn!("all that the disk refused is written");
            }
        }
    }

    /// Writes the entries, and keeps those that are to be tried again. Returns whether one or more
    /// were written or refused for good.
    fn write(&mut self, mut entries: Vec<Entry>) -> bool {
        if entries.is_empty() {
            return false;
        }
        let results = match self.write_batch(&entries) {
            Ok(results) => {
                for (entry, result) in entries.iter_mut().zip(&results) {
                    let is_at_fault =
                        matches!(result, Some(Err(error)) if !matches!(error, Error::Disk(_)));
                    entry.failures += u32::from(is_at_fault);
                }
                results
            }
            Err(error) => {
                log::error!("nothing can be written: {error}");
                let refused = |_: &Entry| Some(Err(of_each(&error)));
                entries.iter().map(refused).collect()
            }
        };
        let mut messages = Vec::new();
        let mut answers = Vec::new();
        let mut refused = Vec::new();
        for (entry, result) in entries.into_iter().zip(results) {
            match result {
                None => refused.push(entry),
                Some(Err(error)) if entry.may_be_retried(&error) => {
                    if refused.is_empty() {
                        log::error!("a change cannot be written, trying again: {error}");
                    }
                    refused.push(entry);
                }
                Some(result) => answers.push((
                    entry,
                    result.map(|written| {
                        messages.extend(written.messages);
                        self.calls.record_all(&written.receipts);
                        written.receipts
                    }),
                )),
            }
        }
        self.retries.put_back(refused);
        // Published before anybody is answered, so that whoever acts on the answer and asks for
        // the newest event finds this one before its own.
        self.publisher.publish(messages, None);
        let has_ended_one = !answers.is_empty();
        for (entry, result) in answers {
            entry.answer(result);
        }
        has_ended_one
    }

    /// Writes the entries in one transaction. Returns what became of each: nothing yet, if it waits
    /// for an earlier one that is to be tried again.
    ///
    /// # Errors
    /// If nothing could be written.
    fn write_batch(&mut self, entries: &[Entry]) -> Result<Vec<Option<Result<Written>>>> {
        let all = self.writer.transaction(|batch| {
            let written = entries
                .iter()
                .map(|entry| write_entry(batch, &entry.changes));
            written.map(|one| one.map(|one| Some(Ok(one)))).collect()
        });
        // Hardly any batch holds an entry that is refused, and savepoints cost a fifth of writing
        // it. So nothing of the batch was kept, and only now each entry is written by itself.
        all.or_else(|error| match error {
            Error::Disk(_) => Err(error),
            _ => self
                .writer
                .transaction(|batch| Ok(write_each(batch, entries))),
        })
    }
}

/// The error of each entry of a batch that failed as a whole.
fn of_each(error: &Error) -> Error {
    match error {
        Error::Disk(why) => Error::Disk(why.clone()),
        other => Error::internal(format!("nothing can be written: {other}")),
    }
}

/// Writes each entry as far as it can be. Those that are retried do not overtake each other.
fn write_each(batch: &mut Batch<'_>, entries: &[Entry]) -> Vec<Option<Result<Written>>> {
    let mut is_held_up = false;
    let mut write = |entry: &Entry| {
        if is_held_up && entry.is_retried {
            return None;
        }
        let written = batch.isolated(|batch| write_entry(batch, &entry.changes));
        if let Err(error) = &written {
            is_held_up |= entry.may_be_retried(error);
        }
        Some(written)
    };
    entries.iter().map(&mut write).collect()
}

fn write_entry(batch: &mut Batch<'_>, changes: &[Change]) -> Result<Written> {
    let mut receipts = Vec::with_capacity(changes.len());
    let mut messages = Vec::new();
    for change in changes {
        let applied = batch.apply(change)?;
        for event in &applied.events {
            messages.push(log_event(batch, event)?);
        }
        receipts.push(applied.receipt);
    }
    Ok(Written { receipts, messages })
}

fn log_event(batch: &mut Batch<'_>, event: &Event) -> Result<Message> {
    let body = event.body();
    let type_name = event.type_name();
    let context = event.context();
    let flow_id = context.and_then(|context| context.flow_id);
    let at = context.map_or_else(Timestamp::now, |context| context.timestamp);
    let seq: Seq = batch.append_event(at, flow_id, type_name, &body)?;
    Ok(Message {
        seq: Some(seq),
        flow_id,
        type_name,
        text: encode(seq, &body),
    })
}

#[cfg(test)]
mod tests;
