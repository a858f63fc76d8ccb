//! What the providers' protocols have in common: the request as data, the answer as it grows,
//! and the reading of errors and token counts. Pure: no network, no clock.

use std::time::Duration;

use serde_json::Value;

use super::FailureKind;
use super::{json, sse};
use crate::event::Usage;

/// The longest text of an answer, bytes. The longest that models write today (128,000 tokens) is
/// about 600 KiB; what is longer is a server gone wild.
pub(super) const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A token count above this is an error of the provider: a thousand times the largest context.
/// Sums of a few such counts stay far from overflow.
const TOKENS_MAX: u64 = 1_000_000_000;

/// A request, ready to be sent by POST.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) url: String,
    /// Beside `content-type` and `accept`. Some values are secret: print the names only.
    pub(super) headers: Vec<(&'static str, Header)>,
    pub(super) body: Value,
}

/// The value of a header. `Debug` shows it only where it is not secret.
pub(super) enum Header {
    Plain(&'static str),
    /// As a client of ours sent it.
    Given(String),
    Secret(String),
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(value) => value,
            Self::Given(value) => value,
            Self::Secret(_) => "***",
        })
    }
}

/// Why there is no answer: a `Failure` in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: FailureKind,
    /// What happened; may hold text from outside that is not redacted yet.
    pub(super) message: String,
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<Duration>,
}

impl Fault {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            status: None,
            retry_after: None,
        }
    }

    pub(super) fn bad_answer(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadAnswer, message)
    }
}

/// An answer as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub(super) text: String,
    /// How many bytes of text came beyond [`ANSWER_BYTES_MAX`], where that fails no answer: nobody here
    /// needs the text of one that is passed on.
    pub(super) beyond: Option<usize>,
    /// What the model thought before it spoke, as far as the provider shows it; only counted.
    pub(super) thinking: String,
    pub(super) usage: Usage,
    /// How much of the text and of `thinking` had come when `usage` was last given, bytes: what came
    /// after is not in it.
    pub(super) counted: (usize, usize),
    pub(super) model: Option<String>,
    pub(super) finish_reason: Option<String>,
    /// Whether the provider said that this is all of it.
    pub(super) is_complete: bool,
}

impl Partial {
    /// Adds to the text.
    pub(super) fn push(&mut self, piece: &str) -> Result<(), Fault> {
        let room = match self.beyond {
            Some(1..) => 0,
            _ => ANSWER_BYTES_MAX - self.text.len(),
        };
        let (piece, rest) = piece.split_at(piece.floor_char_boundary(room));
        match &mut self.beyond {
            Some(beyond) => *beyond += rest.len(),
            None if rest.is_empty() => {}
            None => {
                return Err(Fault::new(
                    FailureKind::TooLarge,
                    format!("the answer is longer than {ANSWER_BYTES_MAX} bytes; set max_tokens"),
                ));
            }
        }
        self.text.push_str(piece);
        Ok(())
    }

    /// Adds to what was thought; what is longer than an answer may be is left out.
    pub(super) fn note_thinking(&mut self, piece: &Value) {
        let piece = piece.as_str().unwrap_or_default();
        let room = ANSWER_BYTES_MAX.saturating_sub(self.thinking.len());
        let piece = &piece[..piece.floor_char_boundary(room)];
        self.thinking.push_str(piece);
    }

    /// Notes the provider's counts, which are those of all that has come until now.
    pub(super) fn note_usage(&mut self, usage: Usage) {
        self.usage = usage;
        let text_bytes = self.text.len() + self.beyond.unwrap_or_default();
        self.counted = (text_bytes, self.thinking.len());
    }

    /// Notes the model that answers, as far as the provider names one.
    pub(super) fn note_model(&mut self, model: &Value) {
        if let Some(model) = model.as_str().filter(|model| !model.is_empty()) {
            self.model = Some(model.to_owned());
        }
    }

    /// Notes why the answer ends, as far as the provider says so.
    pub(super) fn note_finish(&mut self, reason: &Value) {
        if let Some(reason) = reason.as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
    }
}

/// Whether more of a stream is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    More,
    End,
}

/// How a streamed answer is cut into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events.
    Sse,
    /// A JSON text in each line.
    Lines,
}

/// Reads a provider's answer into a [`Partial`]; one per call.
pub(super) trait Reader {
    /// How this provider's streams are cut into events.
    fn framing(&self) -> Framing {
        Framing::Sse
    }
    /// Reads one event of a streamed answer.
    fn event(&mut self, event: &sse::Event, partial: &mut Partial) -> Result<Flow, Fault>;
    /// Reads an answer that came in one piece.
    fn document(&mut self, document: &Value, partial: &mut Partial) -> Result<(), Fault>;
}

/// The JSON of an event.
pub(super) fn event_json(event: &sse::Event) -> Result<Value, Fault> {
    json::read(event.data.as_bytes())
        .map_err(|error| Fault::bad_answer(format!("an event of the stream is not JSON: {error}")))
}

/// The fault that an error within an answer of status 200 means, where there is one: in the midst
/// of a stream a provider has no other way to say so.
pub(super) fn reported_fault(document: &Value) -> Option<Fault> {
    let error = document.get("error").filter(|error| !error.is_null())?;
    let message = provider_message(document).unwrap_or_else(|| error.to_string());
    Some(Fault::new(
        FailureKind::Status,
        format!("reported an error: {message}"),
    ))
}

/// What a provider's error document says. OpenAI writes `{"error":{"message","type","code"}}`,
/// Anthropic `{"type":"error","error":{"type","message"}}`, Google
/// `{"error":{"code","message","status"}}`, Ollama `{"error":"…"}`; compatible servers also write
/// `{"message":"…"}`, `{"detail":"…"}` or an array of one such object.
pub(super) fn provider_message(document: &Value) -> Option<String> {
    let document = document.get(0).unwrap_or(document);
    let error = &document["error"];
    let message = [
        &error["message"],
        error,
        &document["message"],
        &document["detail"],
    ]
    .into_iter()
    .find_map(Value::as_str)?;
    let kind = error["type"].as_str().or(error["status"].as_str());
    match kind.filter(|kind| !kind.is_empty()) {
        Some(kind) => Some(format!("{message} ({kind})")),
        None => Some(message.to_owned()),
    }
}

/// A token count that cannot be one: negative, above `TOKENS_MAX` or no integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadCount;

/// The count of that name; none where it is missing or null. What cannot be a count is logged.
pub(super) fn count(usage: &Value, name: &str) -> Result<Option<u64>, BadCount> {
    let value = &usage[name];
    if value.is_null() {
        return Ok(None);
    }
    match value.as_u64().filter(|tokens| *tokens <= TOKENS_MAX) {
        Some(tokens) => Ok(Some(tokens)),
        None => {
            // Of the value only its kind: it comes from outside and may be of any length.
            log::warn!("a provider's usage is ignored: its `{name}` is no possible token count");
            Err(BadCount)
        }
    }
}

/// One count, as the last event that had it gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Count {
    #[default]
    Missing,
    Given(u64),
    Impossible,
}

impl Count {
    /// Takes the count of that name, if there is one.
    pub(super) fn overwrite(&mut self, usage: &Value, name: &str) {
        match count(usage, name) {
            Ok(Some(tokens)) => *self = Self::Given(tokens),
            Ok(None) => {}
            Err(BadCount) => *self = Self::Impossible,
        }
    }

    /// The count, and 0 where there is none.
    pub(super) fn tokens(self) -> u64 {
        match self {
            Self::Given(tokens) => tokens,
            Self::Missing | Self::Impossible => 0,
        }
    }

    /// Whether these counts are of use: one at least is given, and each is possible.
    pub(super) fn are_known(counts: &[Self]) -> bool {
        let is_given = counts.iter().any(|count| *count != Self::Missing);
        is_given && !counts.contains(&Self::Impossible)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_that_cannot_be_counts_are_bad() {
        let usage = json!({"ok": 7, "null": null, "negative": -1, "huge": 1_000_000_001u64,
            "overflow": 1e300, "fraction": 1.5, "text": "7", "object": {}});
        assert_eq!(count(&usage, "ok"), Ok(Some(7)));
        assert_eq!(count(&usage, "null"), Ok(None));
        assert_eq!(count(&usage, "missing"), Ok(None));
        for name in ["negative", "huge", "overflow", "fraction", "text", "object"] {
            assert_eq!(count(&usage, name), Err(BadCount), "{name}");
        }
    }

    #[test]
    fn the_message_is_found_in_every_form_of_error() {
        for (document, message) in [
            (json!({"error": {"message": "m", "type": "t"}}), "m (t)"),
            (
                json!({"error": {"message": "m", "type": null, "code": 7}}),
                "m",
            ),
            (
                json!({"type": "error", "error": {"type": "t", "message": "m"}}),
                "m (t)",
            ),
            (
                json!({"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}),
                "m (RESOURCE_EXHAUSTED)",
            ),
            (json!({"error": "m"}), "m"),
            (json!({"message": "m"}), "m"),
            (json!({"detail": "m"}), "m"),
            (json!([{"error": {"message": "m"}}]), "m"),
        ] {
            assert_eq!(
                provider_message(&document).as_deref(),
                Some(message),
                "{document}"
            );
        }
        for document in [
            json!({}),
            json!([]),
            json!(1),
            json!("x"),
            json!({"error": {"x": 1}}),
        ] {
            assert_eq!(provider_message(&document), None, "{document}");
        }
    }

    #[test]
    fn an_answer_is_bounded() {
        let mut partial = Partial::default();
        let piece = "x".repeat(ANSWER_BYTES_MAX);
        assert_eq!(partial.push(&piece), Ok(()));
        assert_eq!(partial.push("x").unwrap_err().kind, FailureKind::TooLarge);
    }

    #[test]
    fn of_an_answer_that_is_passed_on_the_rest_is_only_measured() {
        let mut partial = Partial {
            beyond: Some(0),
            ..Partial::default()
        };
        // The last character has no room for all of its bytes.
        for piece in ["x".repeat(ANSWER_BYTES_MAX - 1).as_str(), "\u{20ac}y", "z"] {
            assert_eq!(partial.push(piece), Ok(()));
        }
        assert_eq!(partial.text.len(), ANSWER_BYTES_MAX - 1);
        assert_eq!(partial.beyond, Some(5));
        partial.note_usage(Usage::default());
        assert_eq!(partial.counted, (ANSWER_BYTES_MAX + 4, 0));
    }
}
