//! Entries that must not be lost, while the disk refuses them: kept in the order of their
//! submission, and tried again until they are written.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Entry;
use crate::error::Error;
use crate::store::Change;

/// How many entries are kept. They come from calls and runs that were in flight when the disk
/// filled up, since no more begin then; a call whose settlement is refused becomes `UNKNOWN` at the
/// next start.
const KEPT_MAX: usize = 10_000;
/// How many entries one attempt takes, so that one which fails costs little.
const STEP: usize = 64;
/// When they are tried again if nothing else is to be written before.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Retries {
    entries: VecDeque<Entry>,
    /// When the last attempt wrote nothing.
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

    /// Adds an entry that was not tried yet, behind those that it must not overtake.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.len() < KEPT_MAX {
            self.entries.push_back(entry);
        } else {
            let why = format!("{KEPT_MAX} changes already wait for room on the disk");
            entry.answer(Err(Error::Busy(why)));
        }
    }

    /// Takes the entries of the next attempt, oldest first.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.entries.drain(..self.entries.len().min(STEP)).collect()
    }

    /// Puts refused entries back, before all others.
    pub(super) fn put_back(&mut self, refused: Vec<Entry>) {
        if refused.is_empty() {
            return;
        }
        self.refused_at = Some(Instant::now());
        for mut entry in refused.into_iter().rev() {
            // Only a copy for later calls, which can buy it again; it may be as large as 1 MiB.
            entry.changes.retain(|change| !matches!(change, Change::KeepAnswer(_)));
            self.entries.push_front(entry);
        }
    }

    /// Notes whether the last attempt wrote something.
    pub(super) fn tried(&mut self, has_written: bool) {
        self.refused_at = (!has_written).then(Instant::now);
    }

    /// Ends all: none is tried again.
    pub(super) fn end(&mut self) {
        if !self.is_empty() {
            log::error!("{} changes could not be written before the end", self.len());
        }
        for entry in self.entries.drain(..) {
            entry.answer(Err(Error::Stopping));
        }
    }
}
