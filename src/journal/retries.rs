//! Entries that must not be lost and that a full disk refuses. They are kept in the order of
//! their submission and tried again until they are written.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Entry;
use crate::error::Error;
use crate::store::Change;

/// Limits how many entries are kept. Only calls and runs that were in flight when the disk filled up
/// add entries, because no new ones start. A call whose settlement is refused becomes `UNKNOWN` at
/// the next start.
const RETRIES_MAX: usize = 10_000;
/// Limits the entries of one attempt, so that a failed attempt costs little.
const STEP: usize = 64;
/// The time between attempts if there is nothing else to write.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Retries {
    entries: VecDeque<Entry>,
    /// The time of the last attempt that wrote nothing.
    refused_at: Option<Instant>,
}

impl Retries {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_due(&self) -> bool {
        let is_early = |at: Instant| at.elapsed() < RETRY_INTERVAL;
        !self.is_empty() && !self.refused_at.is_some_and(is_early)
    }

    /// Adds a new entry behind the older ones, which it must not overtake.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.len() < RETRIES_MAX {
            self.entries.push_back(entry);
        } else {
            let why = format!("{RETRIES_MAX} changes already wait for disk space; try again later");
            entry.complete(Err(Error::Busy(why)));
        }
    }

    /// Takes the entries for the next attempt, oldest first.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.entries.drain(..self.entries.len().min(STEP)).collect()
    }

    /// Puts refused entries back in front of all others.
    pub(super) fn put_back(&mut self, refused: Vec<Entry>) {
        if refused.is_empty() {
            return;
        }
        self.refused_at = Some(Instant::now());
        for mut entry in refused.into_iter().rev() {
            // A kept answer only saves a later call, and may be as large as 1 MiB. A body is only
            // for people.
            entry
                .changes
                .retain(|change| !matches!(change, Change::KeepAnswer(_) | Change::KeepBody(_)));
            self.entries.push_front(entry);
        }
    }

    /// Records whether the last attempt wrote something.
    pub(super) fn record_attempt(&mut self, made_progress: bool) {
        self.refused_at = (!made_progress).then(Instant::now);
    }

    /// Ends all entries with an error; none is tried again.
    pub(super) fn end(&mut self) {
        if !self.is_empty() {
            log::error!("{} changes were not saved before the shutdown", self.len());
        }
        for entry in self.entries.drain(..) {
            entry.complete(Err(Error::Stopping));
        }
    }
}
