//! A call to a model and its answer.

use std::time::Duration;

use super::billing::Billing;
use crate::event::Usage;

/// The assumed limit of an answer without a limit, in tokens: for budgets, and for Anthropic, which
/// requires a limit. Every model allows this one.
pub const ANSWER_TOKENS_ASSUMED: u32 = 4_096;

/// Time limits of a call. Each is capped at a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Limits the name lookup, and separately TCP and TLS. Default: 10 s.
    pub connect: Duration,
    /// For a streamed call: limits the time from the end of the request to the head of the
    /// response, and again until the first event. If a client's answer is passed on, anything
    /// before it, such as a comment, restarts the wait. A call that is not streamed is answered
    /// only when the answer is complete, so only [`Timeouts::total`] limits it. Default: 60 s.
    pub first_byte: Duration,
    /// Limits the whole call. Default: 300 s.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            total: Duration::from_secs(300),
        }
    }
}

/// The maximum timeout. Longer ones are not useful, and adding one to an instant could overflow.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Timeouts {
    pub(super) fn bounded(self, limit: Duration) -> Self {
        Self {
            connect: self.connect.min(limit),
            first_byte: self.first_byte.min(limit),
            total: self.total.min(limit),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The provider's name of the model.
    pub model: String,
    pub system: Option<String>,
    pub prompt: String,
    /// The limit of the answer; see [`ANSWER_TOKENS_ASSUMED`].
    pub max_tokens: Option<u32>,
    /// None for the provider's default.
    pub temperature: Option<f64>,
    pub stream: bool,
    /// Overrides [`Timeouts::first_byte`].
    pub first_byte_timeout: Option<Duration>,
    /// Overrides [`Timeouts::total`].
    pub total_timeout: Option<Duration>,
    /// The parts to keep in the provider's prompt cache, if it must be requested.
    pub cache_marks: CacheMarks,
    /// The place of the key in the provider's pool; none for the first one that works.
    pub key: Option<usize>,
}

impl Call {
    pub(super) fn prompt_bytes(&self) -> u64 {
        (self.prompt.len() + self.system.as_ref().map_or(0, String::len)) as u64
    }
}

/// The prefixes that other calls share, which a provider may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMarks {
    /// True if the whole system text is shared.
    pub system: bool,
    /// The length of the prompt's shared prefix, in bytes.
    pub prompt_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// At most 4 MiB; empty if the answer has no text.
    pub text: String,
    /// In normal form; estimated if the provider sent no usable counts.
    pub usage: Usage,
    pub billing: Billing,
    /// The model as the provider reports it, else as requested.
    pub model: String,
    /// The provider's reason for the end of the answer (`stop`, `end_turn`, `length`, …).
    pub finish_reason: Option<String>,
    /// From the start of the call to its end.
    pub latency_ms: u64,
    /// From the start of the call to the first piece of text; none if it was not streamed.
    pub first_token_ms: Option<u64>,
}
