//! Passes an answer on to a client that speaks the provider's protocol: byte for byte, frame by frame.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use ureq::http::HeaderMap;

use super::client::{Receiver, framing, redacted};
use super::failure::{FailureKind, Fault};
use super::framer::{Event, Frame, Framing};
use super::json;
use super::object::ProviderObject;
use super::response_sink::{AnswerHead, ForwardReceiver, Forwarded, ResponseSink, answer_head};
use super::transport::Scope;
use super::wire::{DONE, Flow, ResponseAccumulator, is_error};
use crate::secret::Secret;

/// Limits the frames that are held back after an error, before anything was sent, in bytes.
const HELD_BYTES_MAX: usize = 1 << 20;
/// Fields that each chunk of a stream repeats, or that hide its length. A chunk with only these and
/// its counts has no other content.
const CHUNK_FIELDS: &[&str] = &[
    "id",
    "object",
    "created",
    "model",
    "provider",
    "system_fingerprint",
    "service_tier",
    "obfuscation",
    "choices",
    "request_id",
];
/// Counts and times of a chunk: OpenAI's, and those of llama.cpp (`timings`), Cerebras (`time_info`)
/// and Groq (`x_groq`).
const COUNT_FIELDS: &[&str] = &["usage", "timings", "time_info", "x_groq"];

/// Forwards an answer to a client.
pub(super) struct ClientReceiver<'a> {
    sink: &'a mut dyn ResponseSink,
    scope: &'a Scope,
    first_token_ms: Option<u64>,
    /// The object that the sink knows.
    object: Option<ProviderObject>,
    hides_usage: bool,
    key: Option<&'a Secret>,
    /// True for a stream of Gemini's API.
    is_gemini: bool,
    framing: Framing,
    /// True if the client has the beginning of an array and not its end.
    is_open: bool,
    head: AnswerHead,
    refused: Option<(AnswerHead, Vec<u8>)>,
    ready: Vec<u8>,
    /// True after an event with output.
    has_output: bool,
    /// True from an error before any output was sent: another target may still answer.
    is_held: bool,
    is_begun: bool,
    is_bytes: bool,
    has_failed: bool,
    is_reported_to_client: bool,
}

impl<'a> ClientReceiver<'a> {
    pub(super) fn new(sink: &'a mut dyn ResponseSink, scope: &'a Scope) -> Self {
        Self {
            sink,
            scope,
            first_token_ms: None,
            object: None,
            hides_usage: false,
            key: None,
            is_gemini: false,
            framing: Framing::Sse,
            is_open: false,
            head: AnswerHead::default(),
            refused: None,
            ready: Vec::new(),
            has_output: false,
            is_held: false,
            is_begun: false,
            is_bytes: false,
            has_failed: false,
            is_reported_to_client: false,
        }
    }

    pub(super) fn with(self, hides_usage: bool, is_gemini: bool) -> Self {
        Self { hides_usage, is_gemini, ..self }
    }

    /// Returns whether the client ignores comments and empty lines. Google's SDKs parse each line of
    /// an event stream, and Ollama's each line of NDJSON.
    fn takes_comments(&self) -> bool {
        self.framing == Framing::Sse && !self.is_gemini
    }

    /// Passes the end of an array on, unless the gateway's own error takes its place.
    fn close(&mut self, frame: &Frame<'_>, partial: &ResponseAccumulator) {
        let is_failed = !partial.is_complete || self.has_failed;
        if self.is_open && (!is_failed || self.is_reported_to_client) {
            self.ready.extend_from_slice(frame.raw);
            self.is_open = false;
        }
    }

    /// Notes an error that the provider reported within a stream.
    fn note_reported(&mut self, event: &Event, fault: &Fault) {
        if fault.kind != FailureKind::Status {
            return;
        }
        self.is_held |= !self.is_begun && !self.has_output;
        // Clients know no other form of an error.
        self.is_reported_to_client |= event.name == "error" || shows_error(event.data.as_bytes());
    }

    /// Announces a new object, or its new status.
    fn note_object(&mut self, partial: &ResponseAccumulator) {
        if let Some(object) = &partial.object
            && self.object.as_ref() != Some(object)
        {
            self.sink.object(object);
            self.object = Some(object.clone());
        }
    }

    /// Turns held frames into the provider's error response, and ends an array with an error.
    fn release(&mut self) {
        if !self.is_reported_to_client {
            return;
        }
        let is_open = std::mem::take(&mut self.is_open);
        if self.is_held {
            self.ready.extend_from_slice(if is_open { b"]" } else { b"" });
            let held = std::mem::take(&mut self.ready);
            self.refused = Some((self.head.clone(), held));
        } else if is_open {
            self.sink.piece(b"]");
        }
    }

    /// Drops a document with status 200 whose error a client would not see; the gateway's own error
    /// takes its place.
    fn drop_silent_error(&mut self, fault: &Fault) {
        if fault.kind == FailureKind::Status && self.head.status == 200 && !self.is_held {
            self.refused.take_if(|(_, body)| !shows_error(body));
        }
    }
}

impl<'a> ForwardReceiver<'a> for ClientReceiver<'a> {
    fn prepare(&mut self, key: Option<&'a Secret>, framing: Framing) {
        self.key = key;
        self.framing = framing;
    }

    fn finish(&mut self, outcome: Result<(), &Fault>, partial: &ResponseAccumulator) -> Forwarded {
        self.note_object(partial);
        self.release();
        if let Err(fault) = outcome {
            self.drop_silent_error(fault);
        }
        Forwarded {
            refused: self.refused.take(),
            is_begun: self.is_begun,
            is_reported_to_client: self.is_reported_to_client,
            is_bytes: self.is_bytes,
            first_token_ms: self.first_token_ms,
        }
    }
}

impl Receiver for ClientReceiver<'_> {
    fn head(&mut self, status: u16, headers: &HeaderMap) {
        self.head = answer_head(status, headers, self.key);
        self.framing = framing(headers, self.framing);
    }

    fn refused(&mut self, body: Vec<u8>) {
        self.refused = Some((self.head.clone(), body));
    }

    fn document(&mut self, bytes: &[u8], partial: &ResponseAccumulator) {
        self.note_object(partial);
        self.is_begun = true;
        // The cost stays the same if the client disconnected.
        self.sink.whole(&self.head, bytes);
    }

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        read: Option<&Result<Flow, Fault>>,
        partial: &ResponseAccumulator,
    ) {
        self.note_object(partial);
        if let Some(event) = frame.event.filter(|_| read.is_some())
            && self.first_token_ms.is_none()
            && begins_the_answer(event, partial)
        {
            self.first_token_ms = Some(self.scope.elapsed_ms());
        }
        if let (Some(event), Some(Err(fault))) = (frame.event, read) {
            self.has_failed = true;
            self.note_reported(event, fault);
        }
        if self.is_held && self.ready.len() > HELD_BYTES_MAX {
            return;
        }
        match (frame.event, read) {
            // Clients expect a JSON object.
            (Some(event), Some(Ok(_))) if !is_object_or_end(event) => {
                if self.takes_comments() {
                    self.ready.extend_from_slice(b": keep-alive\n\n");
                }
                return;
            }
            (None, _) if self.framing == Framing::JsonArray => return self.close(frame, partial),
            (None, _) if !self.takes_comments() => return,
            // The end of a failed stream; the gateway's own error takes its place.
            (Some(event), Some(Ok(flow)))
                if (!partial.is_complete || (self.has_failed && !self.is_reported_to_client))
                    && (*flow == Flow::End || event.data.trim() == DONE) =>
            {
                return;
            }
            (Some(event), Some(Ok(_))) => {
                if self.hides_usage && is_usage_alone(&event.data) {
                    return;
                }
                self.has_output = partial.has_any();
                self.ready.extend_from_slice(frame.raw);
            }
            // An answer does not contain the key; other events may, so it is redacted.
            _ => self.ready.extend_from_slice(&redacted(frame.raw, self.key)),
        }
        self.is_open |=
            self.framing == Framing::JsonArray && frame.raw.trim_ascii_start().starts_with(b"[");
        if !frame.is_ended {
            self.ready.extend_from_slice(match self.framing {
                Framing::Sse => b"\n\n",
                Framing::NdJson | Framing::JsonArray => b"\n",
            });
        }
    }

    fn bytes(&mut self, piece: &[u8]) -> bool {
        let elapsed_ms = || self.scope.elapsed_ms();
        self.first_token_ms.get_or_insert_with(elapsed_ms);
        self.is_bytes = true;
        self.ready.extend_from_slice(piece);
        self.flush()
    }

    fn flush(&mut self) -> bool {
        if self.ready.is_empty() || self.is_held {
            return true;
        }
        let is_new = !std::mem::replace(&mut self.is_begun, true);
        let has_begun = !is_new || self.sink.begin(&self.head);
        let is_taken = self.sink.piece(&self.ready);
        self.ready.clear();
        has_begun && is_taken
    }

    fn end(&mut self, is_whole: bool) {
        if std::mem::take(&mut self.is_open) {
            self.sink.piece(b"]");
        }
        self.sink.end(is_whole);
    }
}

fn is_object_or_end(event: &Event) -> bool {
    let data = event.data.trim();
    data.starts_with('{') || data == DONE
}

/// Returns whether clients see an error in a document or chunk: one of its own, or of a choice.
fn shows_error(json: &[u8]) -> bool {
    let document = json::read(json).unwrap_or_default();
    let choices = document["choices"].as_array().into_iter().flatten();
    let mut parts = choices.flat_map(|choice| [choice, &choice["delta"], &choice["message"]]);
    let kinds = ["error", "response.failed", "response.cancelled"];
    kinds.iter().any(|kind| document["type"] == *kind)
        || is_error(&document["error"])
        || parts.any(|part| is_error(&part["error"]))
}

/// Returns whether the event has the beginning of the answer: text, or a part of other output.
fn begins_the_answer(event: &Event, partial: &ResponseAccumulator) -> bool {
    let other = [
        "\"tool_calls\"",
        "\"content_block_delta\"",
        "\"reasoning_content\"",
        "\"response.function_call_arguments.delta\"",
        "\"response.custom_tool_call_input.delta\"",
        "\"response.reasoning_summary_text.delta\"",
        "\"response.reasoning_text.delta\"",
        "\"functionCall\"",
        "\"thought\"",
    ];
    !partial.text.is_empty() || other.iter().any(|mark| event.data.contains(mark))
}

/// Returns whether an event is the final chunk of a chat completion stream whose usage was
/// requested: no choices, and only counts.
fn is_usage_alone(data: &str) -> bool {
    if !data.contains("\"usage\"") {
        return false;
    }
    let Ok(chunk) = serde_json::from_str::<BTreeMap<String, &RawValue>>(data) else {
        return false;
    };
    let raw = |name| chunk.get(name).map_or("", |value| value.get());
    let has_no_choices = raw("choices") == "null"
        || serde_json::from_str::<Vec<IgnoredAny>>(raw("choices")).is_ok_and(|it| it.is_empty());
    let has_counts = COUNT_FIELDS.iter().any(|name| raw(name).starts_with('{'));
    let says_nothing = |(name, value): (&String, &&RawValue)| {
        let is_known = [CHUNK_FIELDS, COUNT_FIELDS].iter().any(|all| all.contains(&&**name));
        is_known || is_bare(value.get())
    };
    has_counts && has_no_choices && chunk.iter().all(says_nothing)
}

/// Returns whether a JSON value is null, false, a number or empty.
fn is_bare(value: &str) -> bool {
    let is_number = value.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    is_number || ["null", "false", "[]", "{}", "\"\""].contains(&value)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::cancel::Cancel;
    use super::super::gemini;
    use super::super::testing::Kept;
    use super::super::wire::Reader;
    use super::*;

    /// Returns the bytes for the client of an array that ends here, and whether it is complete.
    fn array_for_client(bytes: &[u8]) -> (Vec<u8>, bool) {
        let (cancel, mut kept) = (Cancel::default(), Kept::default());
        let entered = Scope::enter(&cancel);
        let mut receiver = ClientReceiver {
            framing: Framing::JsonArray,
            is_gemini: true,
            ..ClientReceiver::new(&mut kept, &entered.scope)
        };
        let mut reader = gemini::ContentReader::forwarding(Framing::JsonArray);
        let mut partial = ResponseAccumulator::default();
        let mut framer = super::super::framer::Framer::new(Framing::JsonArray, 1 << 20);
        framer.push(bytes);
        while let Ok(Some(frame)) = framer.next() {
            let read = frame.event.map(|event| reader.event(event, &mut partial));
            receiver.frame(&frame, read.as_ref(), &partial);
        }
        receiver.flush();
        match partial.is_complete {
            true => receiver.end(true),
            false => receiver.release(),
        }
        (kept.0, partial.is_complete)
    }

    #[test]
    fn an_array_that_breaks_off_anywhere_stays_an_array() {
        let part = r#"{"candidates":[{"content":{"parts":[{"text":"]}\\\",["}]}}]}"#;
        let last = r#"{"candidates":[{"content":{},"finishReason":"STOP"}]}"#;
        let all = format!("[{part}\n,\r\n{part},{last}\n]\n");
        for end in 0..=all.len() {
            let (mut kept, is_complete) = array_for_client(&all.as_bytes()[..end]);
            if kept.is_empty() {
                assert!(end <= part.len() + 1, "{end}");
                continue;
            }
            if !is_complete {
                // As the gateway's own error.
                kept.extend_from_slice(b",{}]");
            }
            let text = String::from_utf8(kept).unwrap();
            let elements: Vec<Value> = serde_json::from_str(&text).expect(&text);
            assert!((1..=3).contains(&elements.len()), "{text}");
        }
        let error = format!(r#"[{part},{{"error":{{"code":500}}}}"#);
        let (kept, _) = array_for_client(error.as_bytes());
        assert_eq!(serde_json::from_slice::<Vec<Value>>(&kept).unwrap().len(), 2);
    }

    #[test]
    fn only_chunks_with_usage_alone_are_hidden() {
        for (data, expected) in [
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, true),
            (r#"{ "usage" : {"prompt_tokens":1}, "choices" : [ ] }"#, true),
            (r#"{"choices":[],"usage":null}"#, false),
            (r#"{"choices":[{"delta":{}}],"usage":{}}"#, false),
            (r#"{"usage":{"prompt_tokens":1}}"#, false),
            (r#"{"choices":[],"prompt_filter_results":[]}"#, false),
            ("[DONE]", false),
            (r#"{"usage""#, false),
            (
                r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","service_tier":null,"system_fingerprint":"f","obfuscation":"x","choices":[],"usage":{}}"#,
                true,
            ),
            (r#"{"choices":[],"usage":{},"citations":null}"#, true),
            (r#"{"choices":null,"usage":{"prompt_tokens":1}}"#, true),
            (r#"{"choices":null}"#, false),
            (r#"{"choices":[],"usage":{},"timings":{"prompt_n":12,"prompt_ms":3.5}}"#, true),
            (r#"{"choices":[],"x_groq":{"id":"r","usage":{"prompt_tokens":1}}}"#, true),
            (r#"{"choices":[],"usage":{},"time_info":{"queue_time":0.1},"seed":-7}"#, true),
            (r#"{"choices":[],"usage":{},"citations":[],"warnings":{}}"#, true),
            (r#"{"choices":[],"usage":{},"warning":"deprecated"}"#, false),
            (r#"{"choices":[],"usage":{},"citations":["a"]}"#, false),
        ] {
            assert_eq!(is_usage_alone(data), expected, "{data}");
        }
    }
}
