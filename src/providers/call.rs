//! A call to a model and its answer.

use std::time::Duration;

use crate::event::Usage;

/// The tokens of an answer without a limit, in budgets and as the limit that Anthropic requires. Every
/// model allows this.
pub const ANSWER_TOKENS_ASSUMED: u32 = 4_096;

/// How long a call may take. Each is cut to a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the name lookup, and again for TCP and TLS. 10 s by default.
    pub connect: Duration,
    /// Of a streamed call: from the end of the request to the head of the response, and again until
    /// the first event; when a client's answer is passed on, anything before it, such as a comment,
    /// restarts the wait. A call that is not streamed is answered only when the answer is complete, so
    /// only [`Timeouts::total`] bounds it. 60 s by default.
    pub first_byte: Duration,
    /// For all of it. 300 s by default.
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

/// A longer timeout cannot be meant, and adding it to an instant could overflow.
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
    /// The model, as the provider names it.
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
    /// What the provider shall keep in its prompt cache, if that has to be requested.
    pub cache_marks: CacheMarks,
}

impl Call {
    pub(super) fn prompt_bytes(&self) -> u64 {
        (self.prompt.len() + self.system.as_ref().map_or(0, String::len)) as u64
    }
}

/// The parts of a call that other calls begin with as well, so that a provider may cache them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMarks {
    /// Whether the whole system text is one.
    pub system: bool,
    /// How many bytes at the beginning of the prompt are.
    pub prompt_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// At most 4 MiB; empty if the model answered with something else.
    pub text: String,
    /// In the normal form; estimated as far as the provider sent no usable counts.
    pub usage: Usage,
    /// Whether the provider says that it bills them by other prices than its standard ones.
    pub is_billed_otherwise: bool,
    /// The model as the provider reports it, else as requested.
    pub model: String,
    /// Why the answer ends, in the provider's word (`stop`, `end_turn`, `length`, …).
    pub finish_reason: Option<String>,
    /// From the call until its end.
    pub latency_ms: u64,
    /// From the call until the first piece of text; none if it was not streamed.
    pub first_token_ms: Option<u64>,
}
