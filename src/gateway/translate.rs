//! How a target serves a client's request: in the client's API, or translated to another one.

use std::borrow::Cow;

use serde_json::Value;

use super::Gateway;
use super::echo;
use super::operation::Operation;
use super::protocol::Protocol;
use super::targets::Target;
use crate::listener::ApiError;
use crate::providers::{
    ANSWER_TOKENS_ASSUMED, AnswerHead, ApiFormat, CacheWrites, Call, Failure, FailureKind,
    ForwardError, Kind, Translation, error_message, retry_delay,
};
use crate::time::Timestamp;
use crate::translation::{self, Api, Context, Conversation, Refusal, Written};

/// See [`output_tokens_assumed`].
const OUTPUT_TOKENS_ASSUMED: u32 = 32_000;
/// Limits the response header with the dropped fields, in bytes.
const DROPPED_BYTES_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// The offline provider answers in the client's API.
    Echo,
    /// The provider gets the client's bytes.
    PassedOn,
    Translated(Api),
    /// The provider has no token count, so flowledger estimates one.
    Counted,
}

/// Returns how a provider of this kind, with these APIs, serves a format.
pub(super) fn service(format: ApiFormat, kind: Kind, apis: &[Api]) -> Option<Service> {
    if kind == Kind::Echo {
        return echo::has_form(format).then_some(Service::Echo);
    }
    let api = match format {
        ApiFormat::TokenCount => Some(Api::Messages),
        ApiFormat::ResponseTokenCount => Some(Api::Responses),
        ApiFormat::ContentTokenCount => Some(Api::Gemini),
        format => format.api(),
    };
    let is_spoken = api.is_none_or(|api| apis.contains(&api));
    if is_spoken && format.is_supported_by(kind) {
        return Some(Service::PassedOn);
    }
    match (format.api(), apis.first()) {
        (Some(_), Some(api)) => Some(Service::Translated(*api)),
        _ if is_token_count(format) => Some(Service::Counted),
        _ => None,
    }
}

fn is_token_count(format: ApiFormat) -> bool {
    use ApiFormat::{ContentTokenCount, ResponseTokenCount, TokenCount};
    matches!(format, TokenCount | ResponseTokenCount | ContentTokenCount)
}

/// A client's request for a provider of another API.
pub(super) struct TranslatedRequest {
    conversation: Conversation,
    target: translation::Target,
    written: Written,
    context: Context,
    api: Api,
    client: Api,
}

impl Gateway {
    /// Translates a request for a target: to `api`, or to another API of the provider if only that one
    /// can express it.
    ///
    /// # Errors
    /// 400 if the request is invalid, or no API of the target can express it.
    pub(super) fn translate(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        api: Api,
    ) -> Result<TranslatedRequest, ApiError> {
        self.translate_to(operation, target, api).or_else(|error| {
            let others = self.providers.apis(&target.provider).iter().filter(|it| **it != api);
            let mut translated = others.map(|api| self.translate_to(operation, target, *api));
            translated.find_map(Result::ok).ok_or(error)
        })
    }

    fn translate_to(
        &self,
        operation: &Operation<'_>,
        target: &Target,
        api: Api,
    ) -> Result<TranslatedRequest, ApiError> {
        let request = &operation.request;
        let Some(client) = operation.format.api() else {
            return Err(ApiError::bad_request(
                "wrong_protocol",
                "the request cannot be translated",
            ));
        };
        let mut body: Value = serde_json::from_str(request.body())
            .map_err(|error| ApiError::bad_request("bad_json", error.to_string()))?;
        normalize_limits(&mut body);
        let refused = |refusal| refused(&refusal, api, &target.provider);
        let mut conversation = translation::read_for_other(client, &body).map_err(refused)?;
        conversation.model.clone_from(&target.model);
        conversation.is_streamed = request.is_streamed;
        let to = self.target_of(&target.provider, &target.model);
        let written = translation::write_request(api, &conversation, &to).map_err(refused)?;
        let context = Context {
            id: operation.id.replace('-', ""),
            created: Timestamp::now().0 / 1_000,
            model: target.model.clone(),
            wants_usage: request.wants_usage,
            is_array: operation.format == ApiFormat::ContentArray,
            request: body,
        };
        Ok(TranslatedRequest { conversation, target: to, written, context, api, client })
    }

    fn target_of(&self, provider: &str, model: &str) -> translation::Target {
        translation::Target {
            chat_limit: match needs_new_limit(model) {
                true => "max_completion_tokens",
                false => self.providers.output_limit_name(provider),
            },
            takes_stream_options: self.providers.takes_stream_options(provider),
            output_tokens_assumed: output_tokens_assumed(model),
        }
    }

    /// Returns the body of a request that passes on. It keeps its bytes, unless translated answers
    /// added parts to its conversation that its own API refuses.
    pub(super) fn own_body(&self, format: ApiFormat, call: &Call, body: Vec<u8>) -> Vec<u8> {
        let target = self.target_of(&call.provider, &call.model);
        let changed =
            format.api().and_then(|api| translation::without_foreign(api, &body, &target));
        changed.unwrap_or(body)
    }
}

impl TranslatedRequest {
    /// Returns the format of the request at the provider.
    pub(super) fn format(&self) -> ApiFormat {
        ApiFormat::of(self.api, self.conversation.is_streamed)
    }

    /// Returns the query of the request at the provider.
    pub(super) fn query(&self) -> &'static str {
        match self.format() {
            ApiFormat::ContentStream => "alt=sse",
            _ => "",
        }
    }

    /// Returns the request for the provider, with a lowered output limit if there is one.
    pub(super) fn written(&self, limit: Option<u32>) -> Result<Cow<'_, Written>, Refusal> {
        let Some(limit) = limit else {
            return Ok(Cow::Borrowed(&self.written));
        };
        let mut conversation = self.conversation.clone();
        conversation.max_tokens = Some(u64::from(limit));
        translation::write_request(self.api, &conversation, &self.target).map(Cow::Owned)
    }

    /// Returns the part of the prompt that may be written to the provider's cache.
    pub(super) fn cache_writes(&self) -> CacheWrites {
        match self.written.body["cache_control"].is_object() {
            true => CacheWrites::Short,
            false => CacheWrites::None,
        }
    }

    /// Returns the output limit that the provider gets, if there is one.
    pub(super) fn output_tokens(&self) -> Option<u32> {
        let body = &self.written.body;
        let limit = match self.api {
            Api::Chat => &body[self.target.chat_limit],
            Api::Responses => &body["max_output_tokens"],
            Api::Messages => &body["max_tokens"],
            Api::Gemini => &body["generationConfig"]["maxOutputTokens"],
        };
        limit.as_u64().map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX))
    }

    /// Returns the translation of the answer.
    pub(super) fn translation(&self, written: &Written) -> Translation {
        Translation {
            client: self.client,
            provider: self.api,
            is_streamed: self.conversation.is_streamed,
            names: written.names.clone(),
            context: self.context.clone(),
            dropped: header_of(&written.dropped),
        }
    }
}

/// Removes a negative output limit, which stands for none, and writes `500.0` as `500`.
fn normalize_limits(body: &mut Value) {
    let Some(fields) = body.as_object_mut() else {
        return;
    };
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
        match fields.get(name).and_then(Value::as_f64) {
            Some(limit) if limit < 0.0 => {
                fields.remove(name);
            }
            Some(limit) if limit.fract() == 0.0 && limit <= f64::from(u32::MAX) => {
                fields.insert(name.to_owned(), (limit as u32).into());
            }
            _ => {}
        }
    }
}

/// Returns whether a model of OpenAI rejects `max_tokens`, behind whatever server: "not compatible with
/// o-series models" (<https://platform.openai.com/docs/api-reference/chat/create>), which later models
/// share.
fn needs_new_limit(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    let version = name.strip_prefix("gpt-").and_then(|rest| rest.split(['.', '-']).next());
    let is_series =
        name.strip_prefix('o').is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()));
    is_series || version.and_then(|it| it.parse::<u32>().ok()).is_some_and(|version| version >= 5)
}

/// Returns the limit of an answer for an API that requires one, if the client sets none. All models of
/// Anthropic since Claude Opus 4 allow as much
/// (<https://platform.claude.com/docs/en/about-claude/models/overview>), and older ones
/// [`ANSWER_TOKENS_ASSUMED`].
fn output_tokens_assumed(model: &str) -> u32 {
    let is_old = ["claude-3-", "claude-3.", "claude-2", "claude-instant"];
    match is_old.iter().any(|name| model.contains(name)) {
        true => ANSWER_TOKENS_ASSUMED,
        false => OUTPUT_TOKENS_ASSUMED,
    }
}

/// Returns the value of the response header with the dropped fields; none if there are none.
fn header_of(dropped: &[String]) -> Option<String> {
    if dropped.is_empty() {
        return None;
    }
    let mut fields = dropped.join(", ");
    fields.truncate(fields.floor_char_boundary(DROPPED_BYTES_MAX));
    let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    Some(fields.chars().map(visible).collect())
}

fn refused(refusal: &Refusal, api: Api, provider: &str) -> ApiError {
    let Refusal { field, message } = refusal;
    let message = format!(
        "`{field}` {message} (provider {provider} gets requests in the {} API)",
        api.name()
    );
    ApiError::bad_request("not_translatable", message)
}

/// Returns the failure of a request that cannot be written after its output limit was lowered.
pub(super) fn not_written(refusal: &Refusal, call: &Call) -> Box<ForwardError> {
    let Refusal { field, message } = refusal;
    let message = format!("{}/{}: `{field}` {message}", call.provider, call.model);
    Box::new(ForwardError::not_sent(Failure::not_sent(FailureKind::NotConfigured, message, call)))
}

/// The words with which providers reject a prompt that is longer than the context of the model:
/// <https://platform.openai.com/docs/guides/error-codes>,
/// <https://platform.claude.com/docs/en/build-with-claude/context-windows>,
/// <https://ai.google.dev/gemini-api/docs/troubleshooting>; vLLM and llama.cpp use those of OpenAI.
const TOO_LONG: [&str; 6] = [
    "maximum context length",
    "context_length_exceeded",
    "exceeds the context window",
    "prompt is too long",
    "exceed context limit",
    "exceeds the maximum number of tokens",
];

/// Returns a provider's error response in the client's form.
pub(super) fn translated_error(
    protocol: Protocol,
    head: &AnswerHead,
    body: &[u8],
) -> (AnswerHead, Vec<u8>) {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = error_message(&document)
        .unwrap_or_else(|| format!("the provider answered with status {}", head.status));
    let code = document["error"]["code"].as_str().unwrap_or_default();
    let is_too_long = matches!(head.status, 400 | 413 | 422)
        && TOO_LONG.iter().any(|words| message.contains(words) || code == *words);
    let status = match (head.status, protocol) {
        // Anthropic's own status for an overloaded provider; others do not know it.
        (503, Protocol::Anthropic) => 529,
        (529, Protocol::OpenAi | Protocol::Gemini | Protocol::Ollama) => 503,
        (status, _) => status,
    };
    let error = if is_too_long {
        ApiError::new(status, "context_length_exceeded", too_long(protocol, &message))
    } else {
        ApiError::new(status, code_of(status, code), message)
    };
    let mut headers = head.headers.clone();
    if let Some(delay) = retry_delay(&document)
        && headers.iter().all(|(name, _)| name != "retry-after")
    {
        headers.push(("retry-after".to_owned(), delay.as_secs_f64().ceil().to_string()));
    }
    (AnswerHead { status, headers }, protocol.error(&error))
}

/// Agents shorten their conversation if they find these words: Claude Code those of Anthropic.
fn too_long(protocol: Protocol, message: &str) -> String {
    let words = match protocol {
        Protocol::Anthropic => "prompt is too long",
        Protocol::Gemini => "The input token count exceeds the maximum number of tokens allowed",
        Protocol::OpenAi | Protocol::Ollama => "maximum context length",
    };
    if message.contains(words) { message.to_owned() } else { format!("{words}: {message}") }
}

/// Returns OpenAI's code of an error: <https://platform.openai.com/docs/guides/error-codes>.
fn code_of(status: u16, code: &str) -> &'static str {
    match status {
        _ if code == "insufficient_quota" => "insufficient_quota",
        401 => "invalid_api_key",
        403 => "permission_denied",
        404 => "model_not_found",
        413 => "request_too_large",
        429 => "rate_limit_exceeded",
        400..=499 => "invalid_request",
        503 | 529 => "overloaded",
        _ => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_translated_unless_the_provider_speaks_its_api() {
        let service = |format, kind, apis: &[Api]| service(format, kind, apis);
        let (chat, openai) = (ApiFormat::ChatCompletions, Kind::OpenAi);
        assert_eq!(service(chat, openai, &[Api::Chat]), Some(Service::PassedOn));
        assert_eq!(
            service(chat, openai, &[Api::Responses]),
            Some(Service::Translated(Api::Responses))
        );
        assert_eq!(
            service(ApiFormat::ContentArray, Kind::Anthropic, &[Api::Messages]),
            Some(Service::Translated(Api::Messages))
        );
        assert_eq!(service(ApiFormat::TokenCount, openai, &[Api::Chat]), Some(Service::Counted));
        let count = ApiFormat::ResponseTokenCount;
        assert_eq!(service(count, openai, &[Api::Chat]), Some(Service::Counted));
        assert_eq!(service(count, openai, &[Api::Responses]), Some(Service::PassedOn));
        assert_eq!(service(ApiFormat::OllamaChat, openai, &[Api::Chat]), None);
        assert_eq!(service(chat, Kind::Echo, &[]), Some(Service::Echo));
    }

    #[test]
    fn a_negative_output_limit_stands_for_none() {
        let mut body = json!({"max_tokens": -1, "max_completion_tokens": 500.0, "n": 1});
        normalize_limits(&mut body);
        assert_eq!(body, json!({"max_completion_tokens": 500, "n": 1}));
        let mut other = json!({"max_tokens": "many", "max_output_tokens": 1.5});
        normalize_limits(&mut other);
        assert_eq!(other, json!({"max_tokens": "many", "max_output_tokens": 1.5}));
    }

    #[test]
    fn newer_models_of_openai_have_another_name_of_the_limit() {
        for model in ["o3", "o4-mini", "gpt-5", "openai/gpt-5.2-codex", "gpt-6-mini"] {
            assert!(needs_new_limit(model), "{model}");
        }
        for model in ["gpt-4o", "gpt-oss-120b", "qwen3", "olmo-2", "gpt-4.1-mini", "o"] {
            assert!(!needs_new_limit(model), "{model}");
        }
    }

    #[test]
    fn errors_are_translated_to_the_protocol_of_the_client() {
        let error = |protocol, status, body: Value| {
            let head = AnswerHead { status, headers: Vec::new() };
            let (head, body) = translated_error(protocol, &head, body.to_string().as_bytes());
            let body: Value = serde_json::from_slice(&body).unwrap();
            (head.status, body["error"].clone())
        };
        let overloaded =
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}});
        let (status, document) = error(Protocol::OpenAi, 529, overloaded);
        assert_eq!((status, &document["code"]), (503, &json!("overloaded")));
        let unavailable = json!({"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}});
        let (status, document) = error(Protocol::Anthropic, 503, unavailable);
        assert_eq!((status, &document["type"]), (529, &json!("overloaded_error")));
        let long = json!({"error": {"code": "context_length_exceeded", "message": "too big"}});
        let (status, document) = error(Protocol::Anthropic, 400, long);
        assert_eq!(status, 400);
        assert_eq!(document["message"], "prompt is too long: too big");
        let (_, document) = error(Protocol::OpenAi, 500, json!("no JSON object"));
        assert_eq!(document["message"], "the provider answered with status 500");
    }

    #[test]
    fn dropped_fields_cannot_break_the_header() {
        assert_eq!(header_of(&[]), None);
        let fields = ["a\r\nx: y".to_owned(), "ä".repeat(2_000)];
        let header = header_of(&fields).unwrap();
        assert!(header.starts_with("a??x: y, ?") && header.len() <= DROPPED_BYTES_MAX, "{header}");
    }
}
