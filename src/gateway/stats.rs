//! Counts of answered requests by protocol and status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::protocol::Protocol;

/// Counts by protocol and status. Statuses have three digits, so the table stays small.
#[derive(Debug, Default)]
pub struct Stats(Mutex<BTreeMap<(Protocol, u16), u64>>);

impl Stats {
    pub(super) fn count(&self, protocol: Protocol, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((protocol, status)).or_default() += 1;
    }

    /// Returns all counts: protocol, status, number of requests.
    pub fn read(&self) -> Vec<(&'static str, u16, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = counts.iter();
        all.map(|((protocol, status), count)| (protocol.name(), *status, *count)).collect()
    }
}
