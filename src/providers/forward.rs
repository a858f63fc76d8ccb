//! Forwards a request that a client wrote, and its answer as it arrives: byte for byte, frame by
//! frame. The usage is read from the same frames.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use ureq::http::HeaderMap;

use super::Providers;
use super::api_format::{API_FORMATS, ApiFormat};
use super::call::{Answer, Call};
use super::cancel::Cancel;
use super::client::{Exchange, HttpRequest, Method, ReadRules, Receiver, framing, redacted};
use super::config::{Kind, ProviderConfig};
use super::failure::{Failure, FailureKind, Fault};
use super::framer::{Event, Frame, Framing};
use super::json;
use super::object::ProviderObject;
use super::transport::Scope;
use super::wire::{DONE, Flow, Header, ResponseAccumulator, is_error};
use super::{anthropic, gemini, openai};
use crate::secret::Secret;

/// Limits the answer of other calls than conversations: embeddings of many texts, several images.
const OTHER_BYTES_MAX: usize = 128 << 20;
const RULES: ReadRules = ReadRules {
    // Images and sound are base64.
    document_bytes_max: 32 << 20,
    // Some servers send an image in one event.
    event_bytes_max: 16 << 20,
    is_forwarded: true,
    drain_max: None,
};
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

/// The client's own key, used in place of the configured one.
#[derive(Clone, Debug)]
pub struct ClientKey {
    pub key: Secret,
    /// True if it was sent as a bearer token.
    pub is_bearer: bool,
}

pub struct Forward<'a> {
    /// Provider, model and streaming; its texts are not used.
    pub call: &'a Call,
    pub api_format: ApiFormat,
    pub method: Method,
    /// The path after the version, for [`ApiFormat::Object`].
    pub path: Option<&'a str>,
    /// The query of the client's request, without `?`.
    pub query: &'a str,
    /// Returns all texts of the request, for an estimate if the provider does not count them.
    pub texts: &'a dyn Fn() -> String,
    /// Only for [`Method::Post`].
    pub body: &'a [u8],
    /// Headers in addition to those that the protocol needs.
    pub headers: &'a [(&'static str, String)],
    /// Used in place of the configured key.
    pub key: Option<&'a ClientKey>,
    /// True if the chunk that contains only the usage is hidden from the client, which did not
    /// request it.
    pub hides_usage: bool,
    /// True if the prompt has audio or video. Providers do not always count these apart from text,
    /// which has another price.
    pub has_sound: bool,
    /// Limits reading after the client disconnected; none ends the call immediately.
    pub drain_max: Option<Duration>,
}

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

/// The reason why there is no answer, or only a part of one.
#[derive(Debug)]
pub struct ForwardError {
    pub failure: Failure,
    /// The provider's error response, with its key redacted; not forwarded yet.
    pub refused: Option<(AnswerHead, Vec<u8>)>,
    /// True if the client got a part of the answer.
    pub is_begun: bool,
    /// True if that part ends with the provider's own error.
    pub is_reported_to_client: bool,
    /// True if that part is no stream of events, so an error cannot follow it.
    pub is_bytes: bool,
}

impl Providers {
    /// Forwards a request, and its answer to `sink` as it arrives. For providers with the client's
    /// protocol; `echo` has none.
    ///
    /// # Errors
    /// [`FailureKind`] lists the causes of an incomplete or missing answer.
    pub fn forward(
        &self,
        forward: &Forward<'_>,
        cancel: &Cancel,
        sink: &mut dyn ResponseSink,
    ) -> Result<Answer, Box<ForwardError>> {
        let entered = Scope::enter(cancel);
        let scope = &entered.scope;
        let mut receiver = ClientReceiver {
            hides_usage: forward.hides_usage,
            is_gemini: [ApiFormat::ContentStream, ApiFormat::ContentArray]
                .contains(&forward.api_format),
            ..ClientReceiver::new(sink, scope)
        };
        let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
        let outcome = self.exchange_forward(forward, scope, &mut partial, &mut receiver);
        receiver.note_object(&partial);
        receiver.release();
        if let Err(fault) = &outcome {
            receiver.drop_silent_error(fault);
        }
        if forward.has_sound && !partial.has_modalities {
            partial.billing.note_unpriced("audio tokens");
        }
        // Extracting the texts scans the whole body, so only for an estimate.
        let is_estimated = forward.api_format != ApiFormat::Object && !partial.has_no_estimate;
        let counted = partial.usage;
        let has_any = is_estimated && (outcome.is_ok() || partial.has_any());
        let texts = if has_any && partial.usage.input_tokens == 0 {
            // Joined by line feeds; the outer ones are not part of the text.
            (forward.texts)().trim_matches('\n').to_owned()
        } else {
            String::new()
        };
        let call = Call { prompt: texts, ..forward.call.clone() };
        let concluded = self.conclude(&call, outcome, partial, scope, receiver.first_token_ms);
        let concluded = concluded.map(|answer| match is_estimated {
            true => answer,
            false => Answer { usage: counted, ..answer },
        });
        concluded.map_err(|mut failure| {
            if let Some(own) = forward.key {
                failure.message = own.key.redact(&failure.message);
                failure.model = own.key.redact_name(&failure.model);
            }
            Box::new(ForwardError {
                failure,
                refused: receiver.refused,
                is_begun: receiver.is_begun,
                is_reported_to_client: receiver.is_reported_to_client,
                is_bytes: receiver.is_bytes,
            })
        })
    }

    fn exchange_forward<'a>(
        &'a self,
        forward: &Forward<'a>,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        receiver: &mut ClientReceiver<'a>,
    ) -> Result<(), Fault> {
        let name = &forward.call.provider;
        let provider = match (self.member(name, forward.call.key), self.providers.get(name)) {
            // With the client's own key, the configured one may be missing.
            (Err(_), Some(provider)) if forward.key.is_some() => provider,
            (usable, _) => usable?,
        };
        let Some(route) = forward.api_format.route(provider.kind) else {
            let message = "does not support this protocol";
            return Err(Fault::not_configured(message));
        };
        let (mut url, mut reader) = route(provider, forward.call);
        if let Some(path) = forward.path {
            url.push('/');
            url.push_str(path);
        }
        if !forward.query.is_empty() {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(forward.query);
        }
        let request = HttpRequest {
            url: &url,
            headers: &headers(forward, provider),
            method: forward.method,
            body: forward.body,
        };
        receiver.key = forward.key.map(|own| &own.key).or(provider.key());
        receiver.framing = reader.framing();
        let exchange = Exchange {
            provider: name,
            timeouts: self.timeouts_of(forward.call),
            key: receiver.key,
            is_streamed: forward.call.stream,
            scope,
            rules: ReadRules {
                drain_max: forward.drain_max,
                document_bytes_max: match API_FORMATS.contains(&forward.api_format) {
                    true => RULES.document_bytes_max,
                    false => OTHER_BYTES_MAX,
                },
                ..RULES
            },
            reader: reader.as_mut(),
            receiver,
            partial,
        };
        self.client(name)?.exchange(&request, exchange)
    }
}

fn headers(forward: &Forward<'_>, provider: &ProviderConfig) -> Vec<(&'static str, Header)> {
    let ours = |key| match provider.kind {
        Kind::Anthropic => anthropic::api_key(key),
        Kind::Gemini if !forward.api_format.is_compatible_api() => gemini::api_key(key),
        _ => openai::authorization(key),
    };
    let key = match forward.key {
        Some(own) if own.is_bearer => Some(openai::authorization(&own.key)),
        Some(own) => Some(ours(&own.key)),
        None => provider.key().map(ours),
    };
    let given = forward.headers.iter();
    let mut headers: Vec<_> =
        given.map(|(name, value)| (*name, Header::Plain(value.clone()))).chain(key).collect();
    let (name, version) = anthropic::version();
    if matches!(forward.api_format, ApiFormat::Messages | ApiFormat::TokenCount)
        && headers.iter().all(|(given, _)| *given != name)
    {
        headers.push((name, version));
    }
    headers
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

/// Forwards an answer to a client.
struct ClientReceiver<'a> {
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
    fn new(sink: &'a mut dyn ResponseSink, scope: &'a Scope) -> Self {
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

    use super::super::wire::Reader;
    use super::*;

    struct LeftClient;

    impl ResponseSink for LeftClient {
        fn whole(&mut self, _: &AnswerHead, _: &[u8]) -> bool {
            false
        }
        fn begin(&mut self, _: &AnswerHead) -> bool {
            false
        }
        fn piece(&mut self, _: &[u8]) -> bool {
            false
        }
        fn end(&mut self, _: bool) {}
    }

    #[test]
    fn request_texts_are_not_collected_without_a_response() {
        let providers = Providers::new([].into(), Default::default());
        let call = super::super::testing::call("m", false);
        let forward = forward(&call, ApiFormat::ChatCompletions);
        let failed = providers.forward(&forward, &Cancel::default(), &mut LeftClient);
        assert_eq!(failed.unwrap_err().failure.kind, FailureKind::NotConfigured);
    }

    #[test]
    fn compatible_api_of_gemini_takes_a_bearer_token() {
        let provider = super::super::testing::provider(Kind::Gemini, "http://h");
        for (api_format, expected) in [
            (ApiFormat::ChatCompletions, "authorization"),
            (ApiFormat::Embeddings, "authorization"),
            (ApiFormat::Images, "authorization"),
            (ApiFormat::GenerateContent, "x-goog-api-key"),
            (ApiFormat::EmbedContent, "x-goog-api-key"),
        ] {
            let call = super::super::testing::call("m", false);
            let headers = headers(&forward(&call, api_format), &provider);
            let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [expected], "{api_format:?}");
        }
    }

    fn forward(call: &Call, api_format: ApiFormat) -> Forward<'_> {
        Forward {
            call,
            api_format,
            method: Method::Post,
            path: None,
            query: "",
            texts: &|| unreachable!("nothing came"),
            body: b"{}",
            headers: &[],
            key: None,
            hides_usage: false,
            has_sound: false,
            drain_max: None,
        }
    }

    /// A client that keeps the bytes of a stream.
    #[derive(Default)]
    struct Kept(Vec<u8>);

    impl ResponseSink for Kept {
        fn whole(&mut self, _: &AnswerHead, _: &[u8]) -> bool {
            true
        }
        fn begin(&mut self, _: &AnswerHead) -> bool {
            true
        }
        fn piece(&mut self, bytes: &[u8]) -> bool {
            self.0.extend_from_slice(bytes);
            true
        }
        fn end(&mut self, _: bool) {}
    }

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
