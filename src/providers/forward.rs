//! Passing on a request that a client wrote itself, and its answer as it comes: byte for byte, event by
//! event, while the usage is read from what goes by.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use ureq::http::{HeaderMap, Response};

use super::client::{
    self, DRAIN_MAX, Exchange, Form, OPENING_BYTES, READ_BYTES, Stop, drain, parse_url,
};
use super::sse_framer::SseFramer;
use super::transport::Scope;
use super::wire::{Fault, Flow, Header, Reader, ResponseAccumulator};
use super::{
    Answer, Call, Cancel, Course, Failure, FailureKind, Kind, ProviderConfig, Providers, anthropic,
    gemini, json, milliseconds, ollama, openai, refusal, sse,
};
use crate::secret::Secret;

/// The longest answer in one piece, bytes: images and sound come in base64.
const DOCUMENT_BYTES_MAX: usize = 32 << 20;
/// The longest event of a stream, bytes: some servers send an image in one.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// How much of an answer is read to its end for a client that has left, bytes.
const DRAINED_BYTES_MAX: usize = 16 << 20;
/// For how long a stream is read on when its provider has reported an error in it: what may still
/// come is its end.
const AFTER_ERROR_MAX: Duration = Duration::from_secs(1);
/// Fields of an answer that are passed on. The others concern the connection, the provider's own
/// domain, or whose key it is (`openai-organization`).
const PASSED_ON: &[&str] = &[
    "content-type",
    "retry-after",
    "request-id",
    "x-request-id",
    "x-should-retry",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
];
/// What the names of more such fields begin with: how much may still be asked for.
const PASSED_ON_OF_LIMITS: &[&str] = &[
    "x-ratelimit-",
    "anthropic-ratelimit-",
    "anthropic-priority-",
];
/// Fields that each chunk of a stream repeats, or that hide how long it is. A chunk of these and
/// `usage` says nothing else.
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
    "usage",
];

/// The key that a client came with, to be used in place of ours.
#[derive(Clone, Debug)]
pub struct ClientKey {
    /// The key.
    pub key: Secret,
    /// Whether it came as a bearer token.
    pub is_bearer: bool,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFormat {
    /// Chat completions, as OpenAI defines them.
    ChatCompletions,
    /// Messages, as Anthropic defines them.
    Messages,
    /// How many tokens a message has, as Anthropic defines it.
    TokenCount,
}

impl ApiFormat {
    /// Whether a provider of that kind understands it.
    pub fn reaches(self, kind: Kind) -> bool {
        match self {
            Self::ChatCompletions => matches!(kind, Kind::OpenAi | Kind::Gemini | Kind::Ollama),
            Self::Messages => matches!(kind, Kind::Anthropic | Kind::Ollama),
            Self::TokenCount => kind == Kind::Anthropic,
        }
    }
}

/// A client's request.
pub struct Forward<'a> {
    /// Provider, model and whether it is streamed; its texts are not used.
    pub call: &'a Call,
    /// What it is written in.
    pub api_format: ApiFormat,
    /// All texts of the request, for where the provider does not count them.
    pub texts: &'a dyn Fn() -> String,
    /// The body, as it is to be sent.
    pub body: &'a [u8],
    /// Fields that are to be sent beside those that the protocol needs.
    pub headers: &'a [(&'static str, String)],
    /// In place of the configured key.
    pub key: Option<&'a ClientKey>,
    /// Whether the chunk that holds nothing but the usage is kept from the client, who did not ask
    /// for it.
    pub hides_usage: bool,
    /// For how long an answer is read on when its client has left; none to end the call then.
    pub drain_max: Option<Duration>,
}

/// What an answer begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// The status.
    pub status: u16,
    /// Fields that concern the client.
    pub headers: Vec<(String, String)>,
}

/// Whoever gets the answer. What is read on when nobody takes it any more is given to it all the same.
pub trait ResponseSink {
    /// The answer in one piece. Gives whether it was taken.
    fn whole(&mut self, head: &AnswerHead, body: &[u8]) -> bool;
    /// An answer in pieces begins. Gives whether there is somebody to take it.
    fn begin(&mut self, head: &AnswerHead) -> bool;
    /// The next piece. Gives whether it was taken.
    fn piece(&mut self, bytes: &[u8]) -> bool;
    /// That was all that came: the whole answer, unless the connection broke between its last word
    /// and the end of the stream.
    fn end(&mut self, is_whole: bool);
}

/// Why there is no answer, or only a part of one.
#[derive(Debug)]
pub struct ForwardError {
    /// Why, as of any other call.
    pub failure: Failure,
    /// What the provider said instead, its key replaced; nobody was given it yet.
    pub refused: Option<(AnswerHead, Vec<u8>)>,
    /// Whether the client was given a part of the answer.
    pub begun: bool,
    /// Whether that part ends with the provider's own word about the failure.
    pub told: bool,
}

impl Providers {
    /// Passes a request on and gives the answer to `taker` as it comes. For providers that speak the
    /// client's protocol; `echo` has none.
    ///
    /// # Errors
    /// See [`FailureKind`].
    pub fn forward(
        &self,
        forward: &Forward<'_>,
        cancel: &Cancel,
        taker: &mut dyn ResponseSink,
    ) -> Result<Answer, Box<ForwardError>> {
        let entered = Scope::enter(cancel);
        let mut partial = ResponseAccumulator {
            beyond: Some(0),
            ..ResponseAccumulator::default()
        };
        let mut passing = Passing::new(forward, taker);
        let outcome = self.pass(forward, &entered.scope, &mut partial, &mut passing);
        let Passing {
            started,
            first_token_ms,
            begun,
            told,
            refused,
            ..
        } = passing;
        let course = Course {
            partial,
            first_token_ms,
            latency_ms: milliseconds(started.elapsed()),
            sent: entered.scope.sent.get(),
        };
        // They are looked for in the whole body, hence only where the call is estimated by them.
        let has_come = outcome.is_ok() || course.partial.has_any();
        let texts = if has_come && course.partial.usage.input_tokens == 0 {
            // Joined by line feeds, of which those around are no part of it.
            (forward.texts)().trim_matches('\n').to_owned()
        } else {
            String::new()
        };
        let call = Call {
            prompt: texts,
            ..forward.call.clone()
        };
        self.conclude(&call, outcome, course)
            .map_err(|mut failure| {
                if let Some(own) = forward.key {
                    failure.message = own.key.redact(&failure.message);
                    failure.model = own.key.redact_name(&failure.model);
                }
                Box::new(ForwardError {
                    failure,
                    refused,
                    begun,
                    told,
                })
            })
    }

    fn pass(
        &self,
        forward: &Forward<'_>,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        passing: &mut Passing<'_>,
    ) -> Result<(), Fault> {
        let name = &forward.call.provider;
        let provider = match (self.usable_provider(name), self.providers.get(name)) {
            // Ours may be missing then.
            (Err(_), Some(provider)) if forward.key.is_some() => provider,
            (usable, _) => usable?,
        };
        if scope.cancel.is_cancelled() {
            return Err(client::cancelled());
        }
        let mut exchange = Exchange {
            provider: name,
            timeouts: self.timeouts_of(forward.call),
            key: forward.key.map(|own| &own.key).or(provider.key()),
            is_streamed: forward.call.stream,
            scope,
            partial,
            on_piece: &mut |_| {},
        };
        let Some((url, mut reader)) = way(forward.api_format, provider) else {
            let message = "cannot be passed requests of this protocol";
            return Err(Fault::new(FailureKind::NotConfigured, message));
        };
        let uri = parse_url(&url, name)?;
        let headers = headers(forward, provider);
        let sent = self.client.send(&uri, &headers, forward.body, &exchange);
        let response = sent.map_err(|error| self.client.fault(error, &exchange, &uri))?;
        if !response.status().is_success() {
            let (fault, refused) = self.client.refused(response, &exchange);
            passing.refused = refused.map(|refused| {
                let head = answer_head(refused.status, &refused.headers);
                (head, refused.body.into_bytes())
            });
            return Err(fault);
        }
        let form = Form::of(response.headers(), exchange.is_streamed);
        let read = match form {
            Form::Stream => passing.stream(response, reader.as_mut(), &mut exchange),
            Form::Document => passing.document(response, reader.as_mut(), &mut exchange),
        };
        read.map_err(|stop| match stop {
            _ if scope.cancel.is_cancelled() => client::cancelled(),
            Stop::Fault(fault) => fault,
            Stop::Io(_) if passing.left_at.is_some() => passing.left_in_the_middle(),
            Stop::Io(error) => self.client.fault(error.into(), &exchange, &uri),
        })
    }
}

/// Where a request goes, and who reads its answer; none where the provider does not understand it.
fn way(api_format: ApiFormat, provider: &ProviderConfig) -> Option<(String, Box<dyn Reader>)> {
    let chat = Box::<openai::ChatReader>::default;
    let messages = Box::<anthropic::MessageReader>::default;
    let way: (String, Box<dyn Reader>) = match (api_format, provider.kind) {
        (ApiFormat::ChatCompletions, Kind::OpenAi) => (openai::url(provider), chat()),
        (ApiFormat::ChatCompletions, Kind::Gemini) => (
            gemini::chat_url(provider),
            Box::new(openai::ChatReader::counting(gemini::chat_usage)),
        ),
        (ApiFormat::ChatCompletions, Kind::Ollama) => (ollama::chat_url(provider), chat()),
        (ApiFormat::Messages, Kind::Anthropic) => (anthropic::url(provider), messages()),
        (ApiFormat::Messages, Kind::Ollama) => (ollama::messages_url(provider), messages()),
        (ApiFormat::TokenCount, Kind::Anthropic) => {
            let url = format!("{}/count_tokens", anthropic::url(provider));
            (url, Box::new(anthropic::CountReader))
        }
        (
            ApiFormat::ChatCompletions | ApiFormat::Messages | ApiFormat::TokenCount,
            Kind::OpenAi | Kind::Anthropic | Kind::Gemini | Kind::Ollama | Kind::Echo,
        ) => return None,
    };
    Some(way)
}

fn headers(forward: &Forward<'_>, provider: &ProviderConfig) -> Vec<(&'static str, Header)> {
    let ours = |key| match provider.kind {
        Kind::Anthropic => anthropic::api_key(key),
        _ => openai::authorization(key),
    };
    let key = match forward.key {
        Some(own) if own.is_bearer => Some(openai::authorization(&own.key)),
        Some(own) => Some(ours(&own.key)),
        None => provider.key().map(ours),
    };
    let given = forward.headers.iter();
    let mut headers: Vec<_> = given
        .map(|(name, value)| (*name, Header::Given(value.clone())))
        .chain(key)
        .collect();
    let (name, version) = anthropic::version();
    if forward.api_format != ApiFormat::ChatCompletions
        && headers.iter().all(|(given, _)| *given != name)
    {
        headers.push((name, version));
    }
    headers
}

fn answer_head(status: u16, headers: &HeaderMap) -> AnswerHead {
    let passed_on = |name: &str| {
        let of_limits = |start: &&str| name.starts_with(start);
        PASSED_ON.contains(&name) || PASSED_ON_OF_LIMITS.iter().any(of_limits)
    };
    let headers = headers
        .iter()
        .filter(|(name, _)| passed_on(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.into())))
        .collect();
    AnswerHead { status, headers }
}

/// An answer on its way from a provider to a client.
struct Passing<'a> {
    taker: &'a mut dyn ResponseSink,
    started: Instant,
    first_token_ms: Option<u64>,
    hides_usage: bool,
    drain_max: Option<Duration>,
    /// When the client had left, and how much was read since.
    left_at: Option<Instant>,
    drained_bytes: usize,
    begun: bool,
    told: bool,
    refused: Option<(AnswerHead, Vec<u8>)>,
    /// Until when the first event must have come; none once it has.
    begin_by: Option<Instant>,
    /// The first that was wrong with a stream, and until when it is read on all the same.
    fault: Option<Fault>,
    end_by: Option<Instant>,
}

/// How an event is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    AsItIs,
    /// Without the key: it is no part of an answer.
    Redacted,
    Hidden,
}

impl<'a> Passing<'a> {
    fn new(forward: &Forward<'_>, taker: &'a mut dyn ResponseSink) -> Self {
        Self {
            taker,
            started: Instant::now(),
            first_token_ms: None,
            hides_usage: forward.hides_usage,
            drain_max: forward.drain_max,
            left_at: None,
            drained_bytes: 0,
            begun: false,
            told: false,
            refused: None,
            begin_by: None,
            fault: None,
            end_by: None,
        }
    }

    fn document(
        &mut self,
        response: Response<ureq::Body>,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
    ) -> Result<(), Stop> {
        let head = answer_head(response.status().as_u16(), response.headers());
        let mut bytes = Vec::new();
        let body = response.into_body().into_reader();
        body.take(DOCUMENT_BYTES_MAX as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(Stop::Io)?;
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let message = format!("the answer is longer than {DOCUMENT_BYTES_MAX} bytes");
            return Err(Stop::Fault(Fault::new(FailureKind::TooLarge, message)));
        }
        let document = json::read(&bytes).map_err(|error| {
            let text = exchange.clean(&String::from_utf8_lossy(&bytes));
            let text = refusal::describe(&text);
            let message = format!("the answer is not JSON ({error}): {text}");
            Stop::Fault(Fault::bad_answer(message))
        })?;
        if let Err(fault) = reader.document(&document, exchange.partial) {
            self.refused = Some((head, redacted(&bytes, exchange).into_owned()));
            return Err(Stop::Fault(fault));
        }
        // That it is not taken changes nothing of what it cost.
        self.begun = true;
        if !self.taker.whole(&head, &bytes) {
            self.left_at = Some(Instant::now());
        }
        Ok(())
    }

    fn stream(
        &mut self,
        response: Response<ureq::Body>,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
    ) -> Result<(), Stop> {
        let head = answer_head(response.status().as_u16(), response.headers());
        let mut body = response.into_body().into_reader();
        let mut pieces = SseFramer::default();
        let mut parser = client::Parser::Sse(sse::Parser::with_limit(EVENT_BYTES_MAX));
        let mut buffer = vec![0; READ_BYTES];
        let mut opening = Vec::new();
        let mut is_whole = true;
        let first_byte = exchange.timeouts.first_byte;
        self.begin_by = Some(Instant::now() + first_byte);
        loop {
            exchange.scope.read_by.set(self.read_by());
            let length = match client::read(&mut body, &mut buffer) {
                Ok(length) => length,
                // What the provider said of it counts more than how it ended. Or all of the answer is
                // there, and paid for; only its usage may be missing.
                Err(_) if self.fault.is_some() || exchange.is_complete() => {
                    is_whole = false;
                    0
                }
                Err(error) => return Err(Stop::Io(error)),
            };
            let bytes = &buffer[..length];
            let room = OPENING_BYTES.saturating_sub(opening.len());
            opening.extend_from_slice(&bytes[..length.min(room)]);
            if self.left_at.is_some() {
                self.drained_bytes += length;
            }
            // Comments, which some send while a model thinks, are no event, but show that one will come.
            self.begin_by = self.begin_by.map(|_| Instant::now() + first_byte);
            let mut flow = Flow::More;
            let mut ready = Vec::new();
            pieces.push(bytes);
            while let Some(piece) = pieces.next() {
                let mut shown = Shown::AsItIs;
                if flow == Flow::More {
                    (flow, shown) = self.read_piece(piece, &mut parser, reader, exchange)?;
                }
                add(&mut ready, piece, shown, exchange);
            }
            if length == 0 && flow == Flow::More {
                flow = self.read_rest(pieces.rest(), &mut parser, reader, exchange, &mut ready);
            }
            // Read before it is given: what it says of the usage is known also where nobody takes it.
            self.give(&head, &ready);
            if flow == Flow::More {
                if exchange.scope.cancel.is_cancelled() {
                    return Err(Stop::Fault(client::cancelled()));
                }
                if length > 0 && self.goes_on(pieces.rest().len())? {
                    continue;
                }
            }
            if let Some(fault) = self.fault.take() {
                self.told = fault.kind == FailureKind::Status;
                return Err(Stop::Fault(fault));
            }
            if flow == Flow::More {
                exchange.read_end(reader, &mut parser, &opening)?;
            }
            self.taker.end(is_whole);
            if flow == Flow::End {
                let drained_by = Instant::now() + DRAIN_MAX;
                exchange.scope.read_by.set(Some(drained_by));
                drain(body, &mut buffer);
            }
            return Ok(());
        }
    }

    /// Until when the next bytes must have come.
    fn read_by(&self) -> Option<Instant> {
        let drained_by = self
            .left_at
            .map(|left_at| left_at + self.drain_max.unwrap_or_default());
        let all = [self.begin_by, self.end_by, drained_by];
        all.into_iter().flatten().min()
    }

    /// Whether a stream of which nothing says that it is over is to be read on; so much of it is held
    /// back.
    fn goes_on(&self, held_bytes: usize) -> Result<bool, Stop> {
        if held_bytes > EVENT_BYTES_MAX {
            return Err(event_too_long());
        }
        let is_drained = self.drain_max.is_none() || self.drained_bytes > DRAINED_BYTES_MAX;
        if self.left_at.is_some() && is_drained {
            return Err(Stop::Fault(self.left_in_the_middle()));
        }
        Ok(self.end_by.is_none_or(|end_by| Instant::now() < end_by))
    }

    /// Reads a piece of a stream.
    fn read_piece(
        &mut self,
        piece: &[u8],
        parser: &mut client::Parser,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
    ) -> Result<(Flow, Shown), Stop> {
        parser.push(piece).map_err(|_| event_too_long())?;
        let Some(event) = parser.next() else {
            return Ok((Flow::More, Shown::Redacted));
        };
        self.begin_by = None;
        let read = reader.event(&event, exchange.partial);
        Ok(self.note(&event, read, exchange))
    }

    /// Reads what did not end with a stream. Some servers forget the empty line after the last event,
    /// and the client gets that with one; of half an event nobody can make anything.
    fn read_rest(
        &mut self,
        rest: &[u8],
        parser: &mut client::Parser,
        reader: &mut dyn Reader,
        exchange: &mut Exchange,
        ready: &mut Vec<u8>,
    ) -> Flow {
        let pushed = parser.push(rest);
        let Some(event) = pushed.ok().and_then(|()| parser.finish()) else {
            return Flow::More;
        };
        match reader.event(&event, exchange.partial) {
            Err(fault) if fault.kind == FailureKind::BadAnswer => Flow::More,
            read => {
                let (flow, shown) = self.note(&event, read, exchange);
                add(ready, &[rest, b"\n\n"].concat(), shown, exchange);
                flow
            }
        }
    }

    /// Notes what was read of an event.
    fn note(
        &mut self,
        event: &sse::Event,
        read: Result<Flow, Fault>,
        exchange: &Exchange,
    ) -> (Flow, Shown) {
        if self.first_token_ms.is_none() && begins_the_answer(event, exchange.partial) {
            self.first_token_ms = Some(milliseconds(self.started.elapsed()));
        }
        match read {
            Ok(flow) if self.hides_usage && is_usage_alone(&event.data) => (flow, Shown::Hidden),
            Ok(flow) => (flow, Shown::AsItIs),
            // The client shall hear it in the provider's words, and what comes after.
            Err(fault) => {
                if fault.kind == FailureKind::Status {
                    self.end_by
                        .get_or_insert_with(|| Instant::now() + AFTER_ERROR_MAX);
                }
                self.fault.get_or_insert(fault);
                (Flow::More, Shown::Redacted)
            }
        }
    }

    /// Gives the client what is ready for it.
    fn give(&mut self, head: &AnswerHead, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.begun, true) {
            let is_there = self.taker.begin(head);
            self.note_presence(is_there);
        }
        let is_there = self.taker.piece(bytes);
        self.note_presence(is_there);
    }

    fn note_presence(&mut self, is_there: bool) {
        if !is_there && self.left_at.is_none() {
            self.left_at = Some(Instant::now());
        }
    }

    fn left_in_the_middle(&self) -> Fault {
        let message = match self.drain_max {
            None => "the client left in the middle of the answer".to_owned(),
            Some(limit) => format!(
                "the client left in the middle of the answer, which did not end within {limit:?} \
                 and {DRAINED_BYTES_MAX} bytes after"
            ),
        };
        Fault::new(FailureKind::Cancelled, message)
    }
}

/// Whether the event brings the first of the answer: text, or a part of something else.
fn begins_the_answer(event: &sse::Event, partial: &ResponseAccumulator) -> bool {
    let other = [
        "\"tool_calls\"",
        "\"content_block_delta\"",
        "\"reasoning_content\"",
    ];
    !partial.text.is_empty() || other.iter().any(|mark| event.data.contains(mark))
}

fn event_too_long() -> Stop {
    let message = format!("an event is longer than {EVENT_BYTES_MAX} bytes");
    Stop::Fault(Fault::new(FailureKind::TooLarge, message))
}

/// Adds to what is ready for a client.
fn add(ready: &mut Vec<u8>, piece: &[u8], shown: Shown, exchange: &Exchange) {
    match shown {
        Shown::AsItIs => ready.extend_from_slice(piece),
        Shown::Redacted => ready.extend_from_slice(&redacted(piece, exchange)),
        Shown::Hidden => {}
    }
}

/// The same bytes, the key replaced: some servers repeat it in what they say instead of an answer.
fn redacted<'b>(bytes: &'b [u8], exchange: &Exchange) -> Cow<'b, [u8]> {
    let text = String::from_utf8_lossy(bytes);
    let clean = exchange.clean(&text);
    if clean == text {
        Cow::Borrowed(bytes)
    } else {
        Cow::Owned(clean.into_bytes())
    }
}

/// Whether an event's data is the chunk that a stream of chat completions ends with where usage is
/// asked for: no choices, and nothing but the usage.
fn is_usage_alone(data: &str) -> bool {
    if !data.contains("\"usage\"") {
        return false;
    }
    let Ok(chunk) = serde_json::from_str::<BTreeMap<String, &RawValue>>(data) else {
        return false;
    };
    let raw = |name| chunk.get(name).map_or("", |value| value.get());
    let choices = serde_json::from_str::<Vec<IgnoredAny>>(raw("choices"));
    let says_nothing = |(name, value): (&String, &&RawValue)| {
        CHUNK_FIELDS.contains(&&**name) || value.get() == "null"
    };
    raw("usage").starts_with('{')
        && choices.is_ok_and(|choices| choices.is_empty())
        && chunk.iter().all(says_nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing.
    struct Nobody;

    impl ResponseSink for Nobody {
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
    fn the_texts_of_a_request_are_not_looked_for_where_nothing_came() {
        let providers = Providers::new([].into(), Default::default());
        let forward = Forward {
            call: &super::super::testing::call("m", false),
            api_format: ApiFormat::ChatCompletions,
            texts: &|| unreachable!("nothing came"),
            body: b"{}",
            headers: &[],
            key: None,
            hides_usage: false,
            drain_max: None,
        };
        let failed = providers.forward(&forward, &Cancel::default(), &mut Nobody);
        assert_eq!(failed.unwrap_err().failure.kind, FailureKind::NotConfigured);
    }

    #[test]
    fn there_is_a_way_to_each_kind_that_understands_a_request() {
        for api_format in [
            ApiFormat::ChatCompletions,
            ApiFormat::Messages,
            ApiFormat::TokenCount,
        ] {
            for kind in [
                Kind::OpenAi,
                Kind::Anthropic,
                Kind::Gemini,
                Kind::Ollama,
                Kind::Echo,
            ] {
                let provider = super::super::testing::provider(kind, "http://h:1");
                let is_there = way(api_format, &provider).is_some();
                assert_eq!(
                    is_there,
                    api_format.reaches(kind),
                    "{api_format:?}, {kind:?}"
                );
            }
        }
    }

    #[test]
    fn only_the_chunk_with_nothing_but_usage_is_one() {
        for (data, expected) in [
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, true),
            (
                r#"{ "usage" : {"prompt_tokens":1}, "choices" : [ ] }"#,
                true,
            ),
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
            (r#"{"choices":[],"usage":{},"citations":["a"]}"#, false),
        ] {
            assert_eq!(is_usage_alone(data), expected, "{data}");
        }
    }
}
