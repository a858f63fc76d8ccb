//! Limits of one WebSocket client: the size of a message, the rates of messages, control frames and
//! bytes, and the bytes that wait for it. A client that exceeds one is closed with the reason.

use std::io;
use std::time::Instant;

use tungstenite::Message;

use crate::hub::QUEUE_BYTES_MAX;

const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Includes subscriptions; people and pages send a few messages a minute.
const MESSAGES: BucketRate = BucketRate { per_second: 50, burst: 200 };
/// Pings and pongs cost less than a message; a few a minute are usual.
const CONTROLS: BucketRate = BucketRate { per_second: 200, burst: 1_000 };
/// All bytes. Also bounds the fragments of an endless message, which count as neither of the above.
const BYTES: BucketRate = BucketRate { per_second: 256 << 10, burst: 4 << 20 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRate {
    pub per_second: u32,
    /// Limits a burst after a pause.
    pub burst: u32,
}

impl BucketRate {
    pub const UNLIMITED: Self = Self { per_second: u32::MAX, burst: u32::MAX };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Limits a message, in one frame or in many. Excess closes with 1009.
    pub message_bytes: usize,
    /// Text and binary messages. Excess closes with 1008, as for the following rates.
    pub messages: BucketRate,
    pub controls: BucketRate,
    pub bytes: BucketRate,
    /// Limits the queued bytes; above it the client counts as too slow.
    pub outbox_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: MESSAGE_BYTES_MAX,
            messages: MESSAGES,
            controls: CONTROLS,
            bytes: BYTES,
            outbox_bytes: QUEUE_BYTES_MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {unit}; the limit is {} at once, then {} per second", rate.burst, rate.per_second)]
pub struct Excess {
    unit: &'static str,
    rate: BucketRate,
}

impl Excess {
    /// Returns the excess that an error of the stream wraps, if any.
    pub fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Excess> for io::Error {
    fn from(excess: Excess) -> Self {
        Self::other(excess)
    }
}

/// A token bucket that starts full. It bounds cost, not a provider's quota: unlike
/// `providers::rate_limit`, it allows a burst above the rate and never waits.
#[derive(Debug)]
pub struct Bucket {
    rate: BucketRate,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub fn new(rate: BucketRate) -> Self {
        Self { rate, tokens: f64::from(rate.burst), filled: Instant::now() }
    }

    /// Takes `count` tokens; errors name the `unit`. Tokens are taken even if there are too
    /// few, so that a client that keeps sending stays refused.
    pub fn take(&mut self, count: usize, unit: &'static str) -> Result<(), Excess> {
        self.take_at(count, unit, Instant::now())
    }

    fn take_at(&mut self, count: usize, unit: &'static str, now: Instant) -> Result<(), Excess> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let tokens = self.tokens + passed * f64::from(self.rate.per_second);
        // Exact, because no count comes near 2^53.
        self.tokens = tokens.min(f64::from(self.rate.burst)) - count as f64;
        if self.tokens < 0.0 {
            return Err(Excess { unit, rate: self.rate });
        }
        Ok(())
    }
}

/// Counts the messages of one client.
#[derive(Debug)]
pub struct Meter {
    messages: Bucket,
    controls: Bucket,
}

impl Meter {
    pub fn new(limits: &Limits) -> Self {
        Self { messages: Bucket::new(limits.messages), controls: Bucket::new(limits.controls) }
    }

    pub fn count(&mut self, message: &Message) -> Result<(), Excess> {
        match message {
            Message::Text(_) | Message::Binary(_) => self.messages.take(1, "messages"),
            Message::Ping(_) | Message::Pong(_) => self.controls.take(1, "pings and pongs"),
            // Always the last message of its connection.
            Message::Close(_) | Message::Frame(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let rate = BucketRate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::new(rate);
        let start = bucket.filled;
        let mut takes = |milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            bucket.take_at(1, "things", now).is_ok()
        };
        assert_eq!([0, 0, 0, 0].map(&mut takes), [true, true, true, false]);
        // The refused take also cost a token.
        assert!(!takes(50));
        assert!(takes(400));
        // The bucket never holds more than its burst.
        let later = [9_000; 4].map(&mut takes);
        assert_eq!(later, [true, true, true, false]);
    }

    #[test]
    fn the_error_names_the_exceeded_limit() {
        let mut bucket = Bucket::new(MESSAGES);
        let excess = bucket.take(201, "messages").unwrap_err();
        let error = io::Error::from(excess);
        assert_eq!(Excess::within(&error), Some(&excess));
        assert_eq!(
            error.to_string(),
            "too many messages; the limit is 200 at once, then 50 per second"
        );
        assert_eq!(Excess::within(&io::ErrorKind::WouldBlock.into()), None);
    }

    #[test]
    fn unlimited_rate_is_never_exceeded() {
        let mut bucket = Bucket::new(BucketRate::UNLIMITED);
        assert!((0..10).all(|_| bucket.take(64 << 20, "bytes").is_ok()));
    }
}
