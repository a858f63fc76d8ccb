//! The journal's thread. It takes all waiting entries, writes them in one transaction, numbers
//! their events, and publishes these after the commit.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::call_metrics::CallMetrics;
use super::housekeeping::{Housekeeping, Retention};
use super::retries::Retries;
use super::{Command, Entry};
use crate::error::{Error, Result};
use crate::event::{Event, encode};
use crate::hub::{Message, Publish};
use crate::ids::Seq;
use crate::store::{Batch, Change, Receipt, Writer};
use crate::time::Timestamp;

/// Limits the entries of one transaction, so that the first of them does not wait long.
const BATCH_ENTRIES_MAX: usize = 512;

pub(super) struct WriterThread {
    calls: CallMetrics,
    writer: Writer,
    publisher: Box<dyn Publish>,
    retries: Retries,
    housekeeping: Housekeeping,
}

/// Why the journal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Shutdown,
    /// A file of the database was deleted or replaced.
    FileLost,
}

/// An entry that is written but not committed yet.
struct Written {
    receipts: Vec<Receipt>,
    messages: Vec<Message>,
}

impl WriterThread {
    pub(super) fn new(
        writer: Writer,
        publisher: Box<dyn Publish>,
        calls: CallMetrics,
        retention: Retention,
    ) -> Result<Self> {
        Ok(Self {
            housekeeping: Housekeeping::new(retention, writer.newest_moment()?),
            retries: Retries::default(),
            calls,
            writer,
            publisher,
        })
    }

    pub(super) fn run(mut self, received: &Receiver<Command>) -> End {
        loop {
            let (mut entries, stop) = receive(received, self.housekeeping.interval());
            let waiting_before = self.retries.len();
            if waiting_before > 0 {
                let retried = entries.extract_if(.., |entry| entry.is_retried);
                retried.for_each(|entry| self.retries.push(entry));
            }
            if stop || self.retries.is_due() || !entries.is_empty() {
                self.retry();
            }
            self.write(entries);
            if stop {
                self.retries.end();
                return End::Shutdown;
            }
            let waiting = self.retries.len();
            if waiting > waiting_before {
                log::error!("{waiting} changes wait for disk space; retrying");
            }
            if self.housekeeping.is_due()
                && let Some(path) = self.writer.lost_file()
            {
                log::error!(
                    "{} was deleted or replaced while it was in use; stopping, because changes \
                     can no longer be saved. Restore the file, and stop flowledger before you \
                     replace or move its files",
                    path.display()
                );
                self.retries.end();
                return End::FileLost;
            }
            let oldest = self.housekeeping.run(&mut self.writer);
            if oldest.is_some() {
                self.publisher.publish(Vec::new(), oldest);
            }
        }
    }

    /// Tries kept entries again: first a few to test for space, then all.
    fn retry(&mut self) {
        while !self.retries.is_empty() {
            let entries = self.retries.take();
            let made_progress = self.write(entries);
            self.retries.record_attempt(made_progress);
            if !made_progress {
                return;
            }
            if self.retries.is_empty() {
                log::warn!("all changes that waited for disk space are saved");
            }
        }
    }

    /// Writes the entries and keeps those that are to be retried. Returns whether at least one was
    /// written or finally refused.
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
                log::error!("cannot write to the database: {error}");
                let refused = |_: &Entry| Some(Err(batch_error(&error)));
                entries.iter().map(refused).collect()
            }
        };
        let mut messages = Vec::new();
        let mut completed = Vec::new();
        let mut refused = Vec::new();
        for (entry, result) in entries.into_iter().zip(results) {
            match result {
                None => refused.push(entry),
                Some(Err(error)) if entry.may_be_retried(&error) => {
                    if refused.is_empty() {
                        log::error!("cannot write a change, retrying: {error}");
                    }
                    refused.push(entry);
                }
                Some(result) => completed.push((
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
        // Publish before notifying the submitters: a client that reacts to its response must see
        // this event before the events that it causes.
        self.publisher.publish(messages, None);
        let any_completed = !completed.is_empty();
        for (entry, result) in completed {
            entry.complete(result);
        }
        any_completed
    }

    /// Writes the entries in one transaction. Returns the result of each, or none if it has to wait
    /// for an earlier entry that will be retried.
    ///
    /// # Errors
    /// Returns the error of the whole transaction; then nothing was written.
    fn write_batch(&mut self, entries: &[Entry]) -> Result<Vec<Option<Result<Written>>>> {
        let all = self.writer.transaction(|batch| {
            let written = entries.iter().map(|entry| write_entry(batch, &entry.changes));
            written.map(|one| one.map(|one| Some(Ok(one)))).collect()
        });
        // Few batches contain a refused entry, and savepoints add a fifth to the cost of a batch.
        // So only a batch that failed is written again, entry by entry.
        all.or_else(|error| match error {
            Error::Disk(_) => Err(error),
            _ => self.writer.transaction(|batch| Ok(write_each(batch, entries))),
        })
    }
}

/// Waits up to `time_max` for entries. Returns them, and true if they are the last.
fn receive(received: &Receiver<Command>, time_max: Duration) -> (Vec<Entry>, bool) {
    let first = match received.recv_timeout(time_max) {
        Ok(first) => first,
        Err(error) => return (Vec::new(), error == RecvTimeoutError::Disconnected),
    };
    let rest = received.try_iter().take(BATCH_ENTRIES_MAX - 1);
    let mut entries = Vec::new();
    for command in std::iter::once(first).chain(rest) {
        match command {
            Command::Write(entry) => entries.push(entry),
            Command::Shutdown => return (entries, true),
        }
    }
    (entries, false)
}

/// Returns the error for each entry of a batch that failed as a whole.
fn batch_error(error: &Error) -> Error {
    match error {
        Error::Disk(why) => Error::Disk(why.clone()),
        other => Error::internal(format!("cannot write to the database: {other}")),
    }
}

/// Writes each entry in a savepoint. Retried entries do not overtake each other.
fn write_each(batch: &mut Batch<'_>, entries: &[Entry]) -> Vec<Option<Result<Written>>> {
    let mut is_blocked = false;
    let mut write = |entry: &Entry| {
        if is_blocked && entry.is_retried {
            return None;
        }
        let written = batch.isolated(|batch| write_entry(batch, &entry.changes));
        if let Err(error) = &written {
            is_blocked |= entry.may_be_retried(error);
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
    Ok(Message { seq: Some(seq), flow_id, type_name, text: encode(seq, &body) })
}
