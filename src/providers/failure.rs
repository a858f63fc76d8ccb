//! The reason why a call has no answer.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::billing::Billing;
use super::call::Call;
use crate::event::Usage;

/// The failure of a call. Its `Display` output is [`Failure::message`].
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub kind: FailureKind,
    /// The error, its provider and model, and a fix if there is an obvious one. Never contains the
    /// key. At most about a thousand characters, in one line.
    pub message: String,
    /// The status of the response, if it failed the call.
    pub status: Option<u16>,
    /// The provider's requested delay before the next attempt.
    pub retry_after: Option<Duration>,
    /// The known tokens: the provider's counts, and estimates for the rest of the received answer.
    /// `source` is `None` if nothing arrived.
    pub usage: Usage,
    /// The same as in an [`Answer`](super::Answer).
    pub billing: Billing,
    /// The model as the provider reported it, else as requested.
    pub model: String,
    /// From the start of the call to its failure.
    pub latency_ms: u64,
    /// True if the request, or a part of it, was sent.
    pub sent: bool,
}

impl Failure {
    /// Returns whether a retry may succeed soon: the provider was not reached, took too long, or
    /// answered with 408, 429, a 5xx, or an error within a stream.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            FailureKind::Connect | FailureKind::Timeout => true,
            FailureKind::Status => self.status.is_none_or(is_transient_status),
            _ => false,
        }
    }

    /// Creates the failure of a call that was not sent.
    pub fn not_sent(kind: FailureKind, message: String, call: &Call) -> Self {
        Self {
            kind,
            message,
            status: None,
            retry_after: None,
            usage: Usage::default(),
            billing: Billing::default(),
            model: call.model.clone(),
            latency_ms: 0,
            sent: false,
        }
    }

    #[cfg(test)]
    pub(super) fn may_have_been_billed(&self) -> bool {
        FailedCallCosts::default().of(self) == FailedCallCost::Unknown
    }
}

/// The assumed cost of a failed call whose tokens are unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailedCallCost {
    Zero,
    Unknown,
}

/// The assumed costs by kind of failure. A call that was never sent costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailedCallCosts {
    /// A status from 300 to 499: the request was refused before any work.
    pub refused: FailedCallCost,
    /// A status of 500 or above. A proxy may have answered while the provider continued.
    pub server_error: FailedCallCost,
    /// An unusable or interrupted response, or an error within one.
    pub broken: FailedCallCost,
    pub timeout: FailedCallCost,
    pub cancelled: FailedCallCost,
}

impl Default for FailedCallCosts {
    fn default() -> Self {
        Self {
            refused: FailedCallCost::Zero,
            server_error: FailedCallCost::Unknown,
            broken: FailedCallCost::Unknown,
            timeout: FailedCallCost::Unknown,
            cancelled: FailedCallCost::Unknown,
        }
    }
}

impl FailedCallCosts {
    pub(super) fn of(&self, failure: &Failure) -> FailedCallCost {
        match (failure.kind, failure.status) {
            _ if !failure.sent => FailedCallCost::Zero,
            (FailureKind::NotConfigured | FailureKind::Connect, _) => FailedCallCost::Zero,
            (_, Some(300..500)) => self.refused,
            (_, Some(500..)) => self.server_error,
            (FailureKind::Timeout, _) => self.timeout,
            (FailureKind::Cancelled, _) => self.cancelled,
            _ => self.broken,
        }
    }
}

pub(super) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The provider is unknown, its key is missing or cannot be sent, or its `base_url` is invalid.
    /// Nothing was sent; not billed.
    NotConfigured,
    /// The provider could not be reached: unknown name, refused, no TLS. Nothing was sent; not billed.
    Connect,
    /// One of the [`Timeouts`](super::Timeouts) expired; the message names it. May have been billed,
    /// unless it was the connect timeout.
    Timeout,
    /// The provider reported a failure: by the HTTP status, or by an error within an answer, which
    /// has no [`Failure::status`]. Not billed with a status below 500. With a higher one, a proxy
    /// may have answered while the provider continued; with an error within an answer, the provider
    /// may bill its beginning.
    Status,
    /// The answer is unusable: not JSON, HTML, empty, or cut short. May have been billed.
    BadAnswer,
    /// The answer is longer than the limits allow. May have been billed.
    TooLarge,
    /// Stopped by [`Cancel::cancel`](super::Cancel::cancel). May have been billed, unless nothing was
    /// sent yet.
    Cancelled,
}

/// A [`Failure`] before it is completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FailureKind,
    /// May contain external text that is not redacted yet.
    pub(super) message: String,
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<Duration>,
}

impl Fault {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), status: None, retry_after: None }
    }

    pub(super) fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadAnswer, message)
    }

    pub(super) fn too_large(item: &str, bytes_max: usize) -> Self {
        let message = format!("{item} is longer than {bytes_max} bytes");
        Self::new(FailureKind::TooLarge, message)
    }

    pub(super) fn not_configured(message: impl Into<String>) -> Self {
        Self::new(FailureKind::NotConfigured, message)
    }

    pub(super) fn cancelled() -> Self {
        Self::new(FailureKind::Cancelled, "the call was cancelled")
    }
}
