//! The way of an answer to a client: its head, and the traits of its receivers.

use ureq::http::HeaderMap;

use super::client::Receiver;
use super::failure::Fault;
use super::framer::Framing;
use super::object::ProviderObject;
use super::wire::ResponseAccumulator;
use crate::secret::Secret;

/// Response headers that are forwarded. The others concern the connection, the provider's own
/// domain, or the owner of the key (`openai-organization`).
const PASSED_ON: &[&str] = &[
    "content-type",
    "retry-after",
    "request-id",
    "x-request-id",
    "x-should-retry",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
    // For Codex, like `x-codex-*`:
    // <https://github.com/openai/codex/blob/main/codex-rs/codex-api/src/sse/responses.rs>.
    "x-models-etag",
    "x-reasoning-included",
];
/// Prefixes of further forwarded headers, which report the rest of a rate limit.
const PASSED_ON_PREFIXES: &[&str] =
    &["x-ratelimit-", "anthropic-ratelimit-", "anthropic-priority-", "x-codex-"];
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerHead {
    pub status: u16,
    /// The headers to forward to the client.
    pub headers: Vec<(String, String)>,
}

/// Receives the answer, including the part after the client disconnected.
pub trait ResponseSink {
    /// The provider stores an object, or its status changed. Called before the client can read it.
    fn object(&mut self, _object: &ProviderObject) {}
    /// Takes the answer in one piece. Returns false if the client disconnected.
    fn whole(&mut self, head: &AnswerHead, body: &[u8]) -> bool;
    /// An answer in pieces begins. Returns false if the client disconnected.
    fn begin(&mut self, head: &AnswerHead) -> bool;
    /// Takes the next piece. Returns false if the client disconnected.
    fn piece(&mut self, bytes: &[u8]) -> bool;
    /// The stream ended. The answer is complete, unless the connection broke between its last word
    /// and the end of the stream.
    fn end(&mut self, is_whole: bool);
}

/// What became of the part of an answer that arrived.
#[derive(Debug, Default)]
pub(super) struct Forwarded {
    /// The provider's error response; not forwarded yet.
    pub(super) refused: Option<(AnswerHead, Vec<u8>)>,
    pub(super) is_begun: bool,
    pub(super) is_reported_to_client: bool,
    pub(super) is_bytes: bool,
    pub(super) first_token_ms: Option<u64>,
}

/// Sends an answer to a client.
pub(super) trait ForwardReceiver<'a>: Receiver {
    /// Takes what is known once the provider is: its key, to be redacted, and its framing.
    fn prepare(&mut self, key: Option<&'a Secret>, framing: Framing);
    /// Ends an answer that may be incomplete.
    fn finish(&mut self, outcome: Result<(), &Fault>, partial: &ResponseAccumulator) -> Forwarded;
}

/// Returns the head for the client, with the key redacted: some servers repeat it.
pub(super) fn answer_head(status: u16, headers: &HeaderMap, key: Option<&Secret>) -> AnswerHead {
    let passed_on = |name: &str| {
        let mut prefixes = PASSED_ON_PREFIXES.iter();
        PASSED_ON.contains(&name) || prefixes.any(|prefix| name.starts_with(prefix))
    };
    let clean = |text: &str| key.map_or_else(|| text.to_owned(), |key| key.redact_name(text));
    let headers = headers
        .iter()
        .filter(|(name, _)| passed_on(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), clean(value.to_str().ok()?))))
        .collect();
    AnswerHead { status, headers }
}
