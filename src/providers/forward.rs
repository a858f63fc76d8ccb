//! Forwards a request that a client wrote, and its answer as it arrives: byte for byte if the provider
//! speaks the client's protocol, else translated. The usage is read from the same frames.

use std::time::Duration;

use super::Providers;
use super::api_format::{API_FORMATS, ApiFormat};
use super::call::{Answer, Call};
use super::cancel::Cancel;
use super::client::{Exchange, HttpRequest, Method, ReadRules};
use super::config::{Kind, ProviderConfig};
use super::failure::{Failure, Fault};
use super::pass_through::ClientReceiver;
use super::response_sink::{AnswerHead, ForwardReceiver, Forwarded, ResponseSink};
use super::translated::{TranslatingReceiver, Translation};
use super::transport::Scope;
use super::wire::{Header, ResponseAccumulator};
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
    /// Present if the client speaks another API than `api_format`.
    pub translation: Option<&'a Translation>,
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

impl ForwardError {
    pub fn not_sent(failure: Failure) -> Self {
        Self {
            failure,
            refused: None,
            is_begun: false,
            is_reported_to_client: false,
            is_bytes: false,
        }
    }
}

impl Providers {
    /// Forwards a request, and its answer to `sink` as it arrives. `echo` has no API.
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
        let mut partial = ResponseAccumulator { beyond: Some(0), ..ResponseAccumulator::default() };
        let (outcome, forwarded) = match forward.translation {
            Some(translation) => {
                let mut receiver = TranslatingReceiver::new(translation, sink, scope);
                self.exchange_forward(forward, scope, &mut partial, &mut receiver)
            }
            None => {
                let is_gemini = [ApiFormat::ContentStream, ApiFormat::ContentArray]
                    .contains(&forward.api_format);
                let receiver = ClientReceiver::new(sink, scope);
                let mut receiver = receiver.with(forward.hides_usage, is_gemini);
                self.exchange_forward(forward, scope, &mut partial, &mut receiver)
            }
        };
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
        let concluded = self.conclude(&call, outcome, partial, scope, forwarded.first_token_ms);
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
                refused: forwarded.refused,
                is_begun: forwarded.is_begun,
                is_reported_to_client: forwarded.is_reported_to_client,
                is_bytes: forwarded.is_bytes,
            })
        })
    }

    fn exchange_forward<'a>(
        &'a self,
        forward: &Forward<'a>,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        receiver: &mut dyn ForwardReceiver<'a>,
    ) -> (Result<(), Fault>, Forwarded) {
        let outcome = self.send_forward(forward, scope, partial, receiver);
        let forwarded = receiver.finish(outcome.as_ref().copied(), partial);
        (outcome, forwarded)
    }

    fn send_forward<'a>(
        &'a self,
        forward: &Forward<'a>,
        scope: &Scope,
        partial: &mut ResponseAccumulator,
        receiver: &mut dyn ForwardReceiver<'a>,
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
        let key = forward.key.map(|own| &own.key).or(provider.key());
        receiver.prepare(key, reader.framing());
        let exchange = Exchange {
            provider: name,
            timeouts: self.timeouts_of(forward.call),
            key,
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

#[cfg(test)]
mod tests {
    use super::super::failure::FailureKind;
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
            translation: None,
        }
    }
}
