//! How many requests were answered, and how.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::protocol::Protocol;

/// Counts by protocol and status. There are as many as there are statuses, which have three digits.
#[derive(Debug, Default)]
pub struct Stats(Mutex<BTreeMap<(Protocol, u16), u64>>);

impl Stats {
    pub(super) fn count(&self, protocol: Protocol, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((protocol, status)).or_default() += 1;
    }

    /// All counts: protocol, status, how many.
    pub fn read(&self) -> Vec<(&'static str, u16, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = counts.iter();
        all.map(|((protocol, status), count)| (protocol.name(), *status, *count)).collect()
    }
}
