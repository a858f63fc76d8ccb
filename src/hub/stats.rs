//! The hub's counters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::event::text_enum;
use crate::metrics::Histogram;

text_enum! {
    /// The server's reason for ending a client's connection, except for a shutdown.
    pub enum Eviction {
        /// The queue of the outbox exceeded its limit.
        OutboxFull = "outbox_full",
        /// The client read too slowly for too long, or not at all.
        WriteTimeout = "write_timeout",
        /// The client sent nothing, not even a pong.
        Silent = "silent",
        /// The client exceeded a rate limit.
        TooMuch = "too_much",
        /// The client sent a message over the size limit.
        TooLarge = "too_large",
        Protocol = "protocol",
        /// The log could not be read for the replay.
        LogUnreadable = "log_unreadable",
    }
}

impl Eviction {
    /// All variants, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::OutboxFull,
        Self::WriteTimeout,
        Self::Silent,
        Self::TooMuch,
        Self::TooLarge,
        Self::Protocol,
        Self::LogUnreadable,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub reason: String,
    /// Set if the server ended the connection.
    pub eviction: Option<Eviction>,
    /// True if [`super::outbox::Pushed`] already reported the eviction to the hub.
    pub is_counted: bool,
}

impl Ending {
    pub fn left(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), eviction: None, is_counted: false }
    }

    pub fn evicted(eviction: Eviction, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), eviction: Some(eviction), is_counted: false }
    }
}

/// The hub's counters. All of them only grow, except `clients`.
pub struct Stats {
    pub clients: AtomicUsize,
    pub registered: AtomicU64,
    /// Messages passed to clients' outboxes, without replayed ones.
    pub deliveries: AtomicU64,
    /// Size of these messages on the wire.
    pub delivered_bytes: AtomicU64,
    /// Messages passed together with an earlier one.
    pub merged: AtomicU64,
    evicted: [AtomicU64; Eviction::ALL.len()],
    /// Duration of fan-outs.
    pub fan_out_ns: Histogram<8>,
    /// Number of events that each reconnected client had missed.
    pub replay_events: Histogram<7>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            clients: AtomicUsize::default(),
            registered: AtomicU64::default(),
            deliveries: AtomicU64::default(),
            delivered_bytes: AtomicU64::default(),
            merged: AtomicU64::default(),
            evicted: Default::default(),
            // 0.1 ms to 0.25 s.
            fan_out_ns: Histogram::new([
                100_000,
                500_000,
                1_000_000,
                5_000_000,
                10_000_000,
                50_000_000,
                100_000_000,
                250_000_000,
            ]),
            replay_events: Histogram::new([0, 1, 10, 100, 1_000, 10_000, 100_000]),
        }
    }
}

impl Stats {
    pub(super) fn count_evicted(&self, eviction: Eviction, count: u64) {
        self.evicted[eviction as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn count_fan_out(&self, took: Duration) {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.fan_out_ns.record(took_ns);
    }

    /// Returns the number of connections that the server ended for this reason.
    pub fn evicted(&self, eviction: Eviction) -> u64 {
        self.evicted[eviction as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_eviction_has_a_separate_counter_and_name() {
        let stats = Stats::default();
        for eviction in Eviction::ALL {
            stats.count_evicted(eviction, eviction as u64 + 1);
        }
        for (at, eviction) in Eviction::ALL.into_iter().enumerate() {
            assert_eq!(stats.evicted(eviction), at as u64 + 1);
            let same = |other: &&Eviction| other.as_str() == eviction.as_str();
            assert_eq!(Eviction::ALL.iter().filter(same).count(), 1);
        }
    }
}
