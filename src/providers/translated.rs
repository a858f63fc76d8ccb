//! Translates an answer for a client that speaks another API than the provider, as it arrives.

use ureq::http::HeaderMap;

use super::client::Receiver;
use super::failure::Fault;
use super::framer::{Frame, Framing};
use super::response_sink::{AnswerHead, ForwardReceiver, Forwarded, ResponseSink, answer_head};
use super::transport::Scope;
use super::wire::{Flow, ResponseAccumulator};
use super::{json, rate_limit_headers};
use crate::event::Usage;
use crate::secret::Secret;
use crate::time::Timestamp;
use crate::translation::{
    self, Api, Context, Piece, Reply, RestoredPieces, StreamReader, StreamWriter, ToolNames,
    pieces_of, reply_of,
};

/// The client's side of a translated call.
#[derive(Clone, Debug)]
pub struct Translation {
    pub client: Api,
    pub provider: Api,
    pub is_streamed: bool,
    pub names: ToolNames,
    pub context: Context,
    /// The fields that the provider does not get, for the response header.
    pub dropped: Option<String>,
}

/// The response header with the fields of the request that the provider did not get.
const DROPPED_HEADER: &str = "x-flowledger-dropped";

pub(super) struct TranslatingReceiver<'a> {
    translation: &'a Translation,
    sink: &'a mut dyn ResponseSink,
    scope: &'a Scope,
    key: Option<&'a Secret>,
    reader: Box<dyn StreamReader>,
    writer: Box<dyn StreamWriter>,
    names: RestoredPieces<'a>,
    head: AnswerHead,
    refused: Option<(AnswerHead, Vec<u8>)>,
    pieces: Vec<Piece>,
    /// The first piece, until output follows: until then another target may answer.
    held: Option<Piece>,
    /// The pieces for a client that expects an answer in one piece.
    collected: Vec<Piece>,
    /// The counts that the provider has reported so far.
    usage: Usage,
    has_failed: bool,
    ready: Vec<u8>,
    is_begun: bool,
    first_token_ms: Option<u64>,
}

impl<'a> TranslatingReceiver<'a> {
    pub(super) fn new(
        translation: &'a Translation,
        sink: &'a mut dyn ResponseSink,
        scope: &'a Scope,
    ) -> Self {
        Self {
            translation,
            sink,
            scope,
            key: None,
            reader: translation::stream_reader(translation.provider),
            writer: translation::stream_writer(translation.client, translation.context.clone()),
            names: translation.names.pieces(),
            head: AnswerHead::default(),
            refused: None,
            pieces: Vec::new(),
            held: None,
            collected: Vec::new(),
            usage: Usage::default(),
            has_failed: false,
            ready: Vec::new(),
            is_begun: false,
            first_token_ms: None,
        }
    }

    /// Returns the head for the client.
    fn client_head(&self, is_stream: bool) -> AnswerHead {
        let Translation { client, provider, context, .. } = self.translation;
        let content_type = match is_stream && !context.is_array {
            true => "text/event-stream",
            false => "application/json",
        };
        let mut headers = vec![("content-type".to_owned(), content_type.to_owned())];
        let limits = rate_limit_headers::translated(
            &self.head.headers,
            *provider,
            *client,
            Timestamp::now(),
        );
        headers.extend(limits);
        let dropped = self.translation.dropped.clone();
        headers.extend(dropped.map(|fields| (DROPPED_HEADER.to_owned(), fields)));
        AnswerHead { status: self.head.status, headers }
    }

    /// Writes the pieces that have arrived.
    fn write(&mut self, usage: &Usage) {
        for piece in std::mem::take(&mut self.pieces) {
            for piece in self.names.restore(piece).into_iter().flatten() {
                if !self.translation.is_streamed {
                    self.collected.push(piece);
                } else if matches!(piece, Piece::Begin { .. }) {
                    self.held = Some(piece);
                } else {
                    if let Some(begin) = self.held.take() {
                        self.writer.piece(&begin, usage, &mut self.ready);
                    }
                    self.writer.piece(&piece, usage, &mut self.ready);
                }
            }
        }
    }

    /// Writes the end of an answer.
    fn write_end(&mut self, usage: &Usage) {
        if let Some(begin) = self.held.take() {
            self.writer.piece(&begin, usage, &mut self.ready);
        }
        self.writer.end(usage, &mut self.ready);
    }

    /// Sends an answer in one piece.
    fn send_whole(&mut self, reply: &Reply, usage: &Usage) {
        let Translation { client, context, .. } = self.translation;
        let body = translation::write_reply(*client, reply, usage, context);
        self.is_begun = true;
        self.sink.whole(&self.client_head(false), body.to_string().as_bytes());
    }

    /// Returns whether the client ignores comments in its stream.
    fn takes_comments(&self) -> bool {
        self.translation.is_streamed && self.translation.client != Api::Gemini
    }
}

impl<'a> ForwardReceiver<'a> for TranslatingReceiver<'a> {
    fn prepare(&mut self, key: Option<&'a Secret>, _: Framing) {
        self.key = key;
    }

    fn finish(&mut self, _: Result<(), &Fault>, _: &ResponseAccumulator) -> Forwarded {
        // An error in a document with status 200 is no response for the client.
        let refused = self.refused.take().filter(|(head, _)| !(200..300).contains(&head.status));
        Forwarded {
            refused,
            is_begun: self.is_begun,
            is_reported_to_client: false,
            is_bytes: false,
            first_token_ms: self.first_token_ms,
        }
    }
}

impl Receiver for TranslatingReceiver<'_> {
    fn head(&mut self, status: u16, headers: &HeaderMap) {
        self.head = answer_head(status, headers, self.key);
    }

    fn refused(&mut self, body: Vec<u8>) {
        self.refused = Some((self.client_head(false), body));
    }

    fn document(&mut self, bytes: &[u8], partial: &ResponseAccumulator) {
        let body = json::read(bytes).unwrap_or_default();
        let mut reply = translation::read_reply_for_other(self.translation.provider, &body);
        if !self.translation.is_streamed {
            self.translation.names.restore(&mut reply);
            return self.send_whole(&reply, &partial.usage);
        }
        self.pieces = pieces_of(&reply);
        self.write(&partial.usage);
        self.write_end(&partial.usage);
        self.flush();
        self.sink.end(true);
    }

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        read: Option<&Result<Flow, Fault>>,
        partial: &ResponseAccumulator,
    ) {
        self.has_failed |= matches!(read, Some(Err(_)));
        let event = frame.event.filter(|_| read.is_some() && !self.has_failed);
        let data = event.and_then(|event| json::read(event.data.as_bytes()).ok());
        if let (Some(event), Some(data)) = (event, data) {
            self.reader.event(&event.name, &data, &mut self.pieces);
        }
        if self.first_token_ms.is_none()
            && self.pieces.iter().any(|piece| matches!(piece, Piece::Open(_)))
        {
            self.first_token_ms = Some(self.scope.elapsed_ms());
        }
        let has_begun = self.is_begun || !self.ready.is_empty();
        let has_begun = has_begun && (frame.event.is_some() || frame.raw.starts_with(b":"));
        if self.pieces.is_empty() && has_begun && self.takes_comments() {
            self.ready.extend_from_slice(b": keep-alive\n\n");
        }
        self.write(&partial.usage);
        self.usage = partial.usage;
    }

    fn flush(&mut self) -> bool {
        if self.ready.is_empty() {
            return true;
        }
        let is_new = !std::mem::replace(&mut self.is_begun, true);
        let has_begun = !is_new || self.sink.begin(&self.client_head(true));
        let is_taken = self.sink.piece(&self.ready);
        self.ready.clear();
        has_begun && is_taken
    }

    fn end(&mut self, is_whole: bool) {
        let usage = self.usage;
        self.reader.end(&mut self.pieces);
        self.write(&usage);
        if !self.translation.is_streamed {
            let reply = reply_of(std::mem::take(&mut self.collected));
            return self.send_whole(&reply, &usage);
        }
        self.write_end(&usage);
        self.flush();
        self.sink.end(is_whole);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use ureq::http::HeaderMap;

    use super::super::api_format::ApiFormat;
    use super::super::cancel::Cancel;
    use super::super::config::Kind;
    use super::super::framer::Framer;
    use super::super::testing::{self, Kept};
    use super::*;

    const APIS: [Api; 4] = [Api::Chat, Api::Responses, Api::Messages, Api::Gemini];

    fn translation(provider: Api, client: Api, is_streamed: bool) -> Translation {
        let context = Context {
            id: "0".into(),
            created: 1,
            model: "m".into(),
            wants_usage: true,
            is_array: false,
            request: json!({}),
        };
        let names = ToolNames::default();
        Translation { client, provider, is_streamed, names, context, dropped: None }
    }

    /// Returns the client's stream of a provider's stream that arrives in these pieces.
    fn translated(provider: Api, client: Api, is_streamed: bool, pieces: &[&[u8]]) -> Vec<u8> {
        let (cancel, mut kept) = (Cancel::default(), Kept::default());
        let entered = Scope::enter(&cancel);
        let translation = translation(provider, client, is_streamed);
        let mut receiver = TranslatingReceiver::new(&translation, &mut kept, &entered.scope);
        receiver.head(200, &HeaderMap::new());
        let kind = match provider {
            Api::Chat | Api::Responses => Kind::OpenAi,
            Api::Messages => Kind::Anthropic,
            Api::Gemini => Kind::Gemini,
        };
        let route = ApiFormat::of(provider, true).route(kind).unwrap();
        let config = testing::provider(kind, "http://h");
        let (_, mut reader) = route(&config, &testing::call("m", true));
        let mut partial = ResponseAccumulator { beyond: Some(0), ..Default::default() };
        let mut framer = Framer::new(reader.framing(), 1 << 20);
        for bytes in pieces {
            framer.push(bytes);
            while let Ok(Some(frame)) = framer.next() {
                let read = frame.event.map(|event| reader.event(event, &mut partial));
                receiver.frame(&frame, read.as_ref(), &partial);
            }
            receiver.flush();
        }
        assert!(partial.is_complete, "{provider:?}");
        receiver.end(true);
        kept.0
    }

    /// Returns a stream of each API with thoughts, a text and two tool calls.
    fn stream_of(api: Api) -> Vec<u8> {
        let usage = Usage {
            input_tokens: 30,
            cached_input_tokens: 10,
            output_tokens: 20,
            reasoning_tokens: 5,
            ..Usage::default()
        };
        let mut writer = translation::stream_writer(api, translation(api, api, true).context);
        let mut bytes = Vec::new();
        for piece in pieces() {
            writer.piece(&piece, &usage, &mut bytes);
        }
        writer.end(&usage, &mut bytes);
        bytes
    }

    fn pieces() -> Vec<Piece> {
        use crate::translation::{Opened, Stop};
        let part = |opened, texts: &[&str]| {
            let deltas = texts.iter().map(|text| Piece::Delta((*text).to_owned()));
            let mut part = vec![Piece::Open(opened)];
            part.extend(deltas);
            part.push(Piece::Close);
            part
        };
        let call = |id: &str, texts: &[&str]| {
            let (id, name) = (id.to_owned(), "get_weather".to_owned());
            part(Opened::ToolCall { id, name, is_custom: false }, texts)
        };
        [
            vec![Piece::Begin { id: "a-1".into(), model: "m-1".into() }],
            part(Opened::Thinking, &["Let me ", "see. "]),
            part(Opened::Text, &["Bonjour, ", "\u{1f41d}\n\n", "data: x"]),
            call("call_1", &["{\"city\":", "\"Paris\"}"]),
            call("call_2", &["{\"city\":\"Köln\"}"]),
            vec![Piece::Stop(Stop::ToolCalls)],
        ]
        .concat()
    }

    /// Returns the texts and arguments that a client's reader finds in a stream.
    fn read_by(api: Api, bytes: &[u8]) -> Vec<(String, String)> {
        let mut reader = translation::stream_reader(api);
        let mut framer = Framer::new(Framing::Sse, 1 << 20);
        framer.push(bytes);
        let mut pieces = Vec::new();
        while let Ok(Some(frame)) = framer.next() {
            if let Some(event) = frame.event
                && let Ok(data) = serde_json::from_str::<Value>(&event.data)
            {
                reader.event(&event.name, &data, &mut pieces);
            }
        }
        reader.end(&mut pieces);
        let mut parts = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Open(opened) => parts.push((format!("{opened:?}"), String::new())),
                Piece::Delta(text) => parts.last_mut().unwrap().1.push_str(&text),
                _ => {}
            }
        }
        parts
    }

    #[test]
    fn a_stream_says_the_same_in_every_api() {
        for provider in APIS {
            let stream = stream_of(provider);
            for client in APIS {
                let bytes = translated(provider, client, true, &[&stream]);
                let parts = read_by(client, &bytes);
                let texts: Vec<&str> = parts.iter().map(|(_, text)| text.as_str()).collect();
                let expected = ["Let me see. ", "Bonjour, \u{1f41d}\n\ndata: x", "Paris", "Köln"];
                assert_eq!(texts.len(), 4, "{provider:?} to {client:?}: {parts:?}");
                for (text, expected) in texts.iter().zip(expected) {
                    assert!(text.contains(expected), "{provider:?} to {client:?}: {parts:?}");
                }
            }
        }
    }

    #[test]
    fn a_stream_becomes_a_document_for_a_client_that_wants_one() {
        for provider in APIS {
            for client in APIS {
                let bytes = translated(provider, client, false, &[&stream_of(provider)]);
                let reply =
                    translation::read_reply(client, &serde_json::from_slice(&bytes).unwrap());
                assert_eq!(reply.parts.len(), 4, "{provider:?} to {client:?}: {reply:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_split_of_a_stream_does_not_matter(
            provider in 0..APIS.len(),
            client in 0..APIS.len(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let (provider, client) = (APIS[provider], APIS[client]);
            let stream = stream_of(provider);
            let mut cuts: Vec<usize> = cuts.iter().map(|it| it.index(stream.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream[start..cut]);
                start = cut;
            }
            let whole = translated(provider, client, true, &[&stream]);
            let split = translated(provider, client, true, &pieces);
            prop_assert_eq!(String::from_utf8(split).unwrap(), String::from_utf8(whole).unwrap());
        }
    }
}
