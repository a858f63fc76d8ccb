//! The request of a call that flowledger makes itself, in an API of its provider. Pure.

use serde_json::{Value, json};

use super::api_format::ApiFormat;
use super::call::{ANSWER_TOKENS_ASSUMED, Call};
use super::config::{Kind, ProviderConfig};
use super::failure::Fault;
use super::wire::{Header, Reader, Request};
use super::{anthropic, gemini, ollama, openai, responses};
use crate::secret::Secret;
use crate::translation::{self, Api, Conversation, Part, Role, Target, Turn};

/// A request and the reader of its answer.
pub(super) type ReadRequest = (Request, Box<dyn Reader>);

/// Returns the request for a call and the reader of its answer; none for `echo`.
pub(super) fn request(
    call: &Call,
    provider: &ProviderConfig,
) -> Result<Option<ReadRequest>, Fault> {
    let api = match provider.kind {
        Kind::Echo => return Ok(None),
        Kind::Ollama => {
            return Ok(Some((ollama::request(call, provider), Box::new(ollama::ChatReader))));
        }
        // The older API, which all servers have and which stores nothing.
        Kind::OpenAi if provider.apis().contains(&Api::Chat) => Api::Chat,
        _ => preferred(provider)?,
    };
    let url = match api {
        Api::Chat if provider.kind == Kind::Gemini => gemini::chat_url(provider),
        Api::Chat => openai::url(provider),
        Api::Responses => openai::url_of(provider, "responses"),
        Api::Messages => anthropic::url(provider),
        Api::Gemini if call.stream => {
            gemini::action_url(provider, &call.model, "streamGenerateContent?alt=sse")
        }
        Api::Gemini => gemini::action_url(provider, &call.model, "generateContent"),
    };
    let key = provider.key().map(|key| key_header(api, key));
    let version = (api == Api::Messages).then(anthropic::version);
    let headers = key.into_iter().chain(version).collect();
    let body = body(call, provider, api)?;
    Ok(Some((Request { url, headers, body }, reader(api, provider.kind))))
}

fn preferred(provider: &ProviderConfig) -> Result<Api, Fault> {
    let api = provider.apis().first().copied();
    api.filter(|api| ApiFormat::of(*api, false).is_supported_by(provider.kind))
        .ok_or_else(|| Fault::not_configured("no API of the provider generates text"))
}

fn key_header(api: Api, key: &Secret) -> (&'static str, Header) {
    match api {
        Api::Chat | Api::Responses => openai::authorization(key),
        Api::Messages => anthropic::api_key(key),
        Api::Gemini => gemini::api_key(key),
    }
}

fn reader(api: Api, kind: Kind) -> Box<dyn Reader> {
    match api {
        Api::Chat if kind == Kind::Gemini => {
            Box::new(openai::ChatReader::counting(gemini::chat_usage))
        }
        Api::Chat => Box::<openai::ChatReader>::default(),
        Api::Responses => Box::<responses::ResponseReader>::default(),
        Api::Messages => Box::<anthropic::MessageReader>::default(),
        Api::Gemini => Box::<gemini::ContentReader>::default(),
    }
}

fn body(call: &Call, provider: &ProviderConfig, api: Api) -> Result<Value, Fault> {
    let target = Target {
        chat_limit: openai::max_tokens_name(provider.base_url()),
        takes_stream_options: provider.stream_usage,
        output_tokens_assumed: ANSWER_TOKENS_ASSUMED,
    };
    let written = translation::write_request(api, &conversation(call, provider, api), &target);
    let written = written.map_err(|refusal| {
        Fault::not_configured(format!("`{}` {}", refusal.field, refusal.message))
    })?;
    Ok(written.body)
}

fn conversation(call: &Call, provider: &ProviderConfig, api: Api) -> Conversation {
    let system = call.system.as_ref().map(|system| match call.cache_marks.system {
        true if api == Api::Messages && !is_blank(system) => marked(system),
        _ => Part::text(system),
    });
    let mut conversation = Conversation {
        model: call.model.clone(),
        is_streamed: call.stream,
        max_tokens: call.max_tokens.map(u64::from),
        temperature: call.temperature,
        ..Conversation::new(api)
    };
    match api {
        Api::Chat => {
            let turns = system.map(|system| Turn::new(Role::System, vec![system]));
            conversation.turns.extend(turns);
            if call.stream && provider.stream_usage {
                let options = json!({"include_usage": true});
                conversation.extra.insert("stream_options".to_owned(), options);
            }
        }
        _ => conversation.system.extend(system),
    }
    conversation.turns.push(Turn::new(Role::User, prompt(call, api)));
    conversation
}

/// Returns the prompt, with its marked prefix, if any, in a part of its own. The API rejects blank
/// parts, and ignores marks on texts shorter than a model's minimum (1,024 tokens or more).
fn prompt(call: &Call, api: Api) -> Vec<Part> {
    let split = call.prompt.split_at_checked(call.cache_marks.prompt_bytes);
    match split.filter(|_| api == Api::Messages) {
        Some((beginning, "")) if !is_blank(beginning) => vec![marked(beginning)],
        Some((beginning, rest)) if !is_blank(beginning) && !is_blank(rest) => {
            vec![marked(beginning), Part::text(rest)]
        }
        _ => vec![Part::text(&call.prompt)],
    }
}

/// Returns a text with a mark at its end, up to which the request is cached. At most four marks are
/// allowed: <https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>.
fn marked(text: &str) -> Part {
    let mut part = Part::text(text);
    part.extra.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    part
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
