//! Translates between the APIs that generate text: a client's request into one internal form, the
//! [`Conversation`], and from there into the API of a provider; the provider's answer back, in one
//! piece or streamed. Pure: no network, no clock.
//!
//! Each API has a module with readers (into the internal form) and writers (out of it). A request
//! that is read and written in the same API is unchanged. The token counts of an answer are not part
//! of the internal form: `providers` reads them for the ledger, and a writer shows them in the terms
//! of its API.

mod base64;
pub mod chat;
mod conversation;
mod dropped;
pub mod gemini;
pub mod messages;
mod piece;
pub mod responses;
mod signature;
mod tool_names;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::conversation::{
    Conversation, Extra, Media, OutputFormat, Part, PartKind, Reasoning, Reply, Role, Source, Stop,
    ThinkingMode, Tool, ToolChoice, ToolKind, Turn, joined,
};
pub use self::piece::{Opened, Piece, StreamReader, StreamWriter, pieces_of, reply_of};
pub use self::signature::Signature;
pub use self::tool_names::{RestoredPieces, ToolNames};
use crate::event::Usage;

/// An API that generates text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// OpenAI's chat completions: <https://platform.openai.com/docs/api-reference/chat>.
    Chat,
    /// OpenAI's Responses: <https://platform.openai.com/docs/api-reference/responses>.
    Responses,
    /// Anthropic's messages: <https://platform.claude.com/docs/en/api/messages>.
    Messages,
    /// Gemini's `generateContent`: <https://ai.google.dev/api/generate-content>.
    Gemini,
}

impl Api {
    /// Returns the name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::Gemini => "gemini",
        }
    }
}

/// The reason why a request cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The path of the field in the client's request, such as `messages[2].content[0].type`.
    pub field: String,
    /// A sentence without the field's name: "must be …", "cannot be sent to …".
    pub message: String,
}

impl Refusal {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The target's API has no equivalent of the field.
    pub fn not_expressible(field: impl Into<String>, target: Api) -> Self {
        let message = format!("has no equivalent in the {} API of the provider", target.name());
        Self::new(field, message)
    }
}

/// What a writer needs to know about the provider.
#[derive(Clone, Debug)]
pub struct Target {
    /// The name of the output limit in chat completions: `max_tokens` or `max_completion_tokens`.
    pub chat_limit: &'static str,
    /// True if a streamed chat completion must request its usage.
    pub takes_stream_options: bool,
    /// The output limit for APIs that require one, in tokens.
    pub output_tokens_assumed: u32,
}

/// A request in the API of a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub body: Value,
    /// The fields of the client's request that the provider does not get.
    pub dropped: Vec<String>,
    /// The names of tools that differ from the client's.
    pub names: ToolNames,
}

/// What a writer of answers needs besides the answer.
#[derive(Clone, Debug)]
pub struct Context {
    /// Unique; the base of ids that the provider's API does not have.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The requested model, for providers that do not name theirs.
    pub model: String,
    /// True if the client wants the usage of a streamed chat completion.
    pub wants_usage: bool,
    /// True if Gemini's client expects a JSON array in place of server-sent events.
    pub is_array: bool,
    /// The client's request, parts of which answers of the Responses API repeat.
    pub request: Value,
}

/// Reads a client's request for a provider of another API.
///
/// # Errors
/// A field is invalid, or has no meaning outside of its API.
pub fn read_for_other(api: Api, body: &Value) -> Result<Conversation, Refusal> {
    let mut conversation = read_request(api, body)?;
    // Differs in each request, which would prevent that a provider caches the prompt.
    conversation.system.retain(|part| !is_billing_header(part));
    for turn in &mut conversation.turns {
        turn.parts.iter_mut().for_each(standardize_files);
    }
    match api {
        Api::Chat => {
            chat::check_for_other(&conversation).inspect(|()| chat::forget(&mut conversation))
        }
        Api::Responses => responses::check_for_other(&conversation),
        Api::Messages => messages::check_for_other(&conversation),
        Api::Gemini => gemini::check_for_other(&conversation),
    }?;
    Ok(conversation)
}

/// Writes the data of files in the alphabet of base64 that all makers accept.
fn standardize_files(part: &mut Part) {
    match &mut part.kind {
        PartKind::Image(media) | PartKind::Document(media) | PartKind::Audio(media) => {
            if let Source::Data { base64, .. } = &mut media.source {
                *base64 = base64::standard(base64);
            }
        }
        PartKind::ToolResult { content, .. } => content.iter_mut().for_each(standardize_files),
        _ => {}
    }
}

/// The beginning of a system text in which Claude Code describes itself to Anthropic.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

fn is_billing_header(part: &Part) -> bool {
    matches!(&part.kind, PartKind::Text(text) if text.starts_with(BILLING_HEADER))
}

/// Returns a request without what translated answers added to its conversation: signatures of other
/// APIs, and Anthropic's thoughts without a signature. None if it has neither, so that it passes on
/// byte for byte.
pub fn without_foreign(api: Api, body: &[u8], target: &Target) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(body).ok()?;
    let is_foreign = text.contains(signature::MARK)
        || (api == Api::Messages && has_empty_signature(text))
        || (api == Api::Gemini && text.contains(gemini::SIGNATURE_MARK));
    if !is_foreign {
        return None;
    }
    let mut conversation = read_request(api, &serde_json::from_str(text).ok()?).ok()?;
    for turn in &mut conversation.turns {
        remove_foreign(api, &mut turn.parts);
    }
    let mut body = write_request(api, &conversation, target).ok()?.body;
    if let Some(fields) = body.as_object_mut().filter(|_| conversation.max_tokens.is_none()) {
        // A default of the writer, which no budget has reserved.
        fields.remove("max_tokens");
    }
    Some(body.to_string().into_bytes())
}

/// Returns whether a JSON text has the field `signature` with an empty text.
fn has_empty_signature(text: &str) -> bool {
    let after_name = |at: usize| text[at..].trim_start().strip_prefix(':').map(str::trim_start);
    let names = text.match_indices(r#""signature""#);
    let mut values = names.filter_map(|(at, name)| after_name(at + name.len()));
    values.any(|value| value.starts_with(r#""""#))
}

/// Removes signatures of other APIs, and the thoughts that have them.
fn remove_foreign(api: Api, parts: &mut Vec<Part>) {
    let is_foreign = |part: &Part| part.signature.as_ref().is_some_and(|it| it.api != api);
    parts.retain(|part| !(is_foreign(part) && matches!(part.kind, PartKind::Thinking(_))));
    for part in parts.iter_mut().filter(|part| is_foreign(part)) {
        part.signature = None;
    }
}

/// Reads a client's request. The caller sets the model and whether the answer is streamed, if the
/// path of the API has them.
///
/// # Errors
/// A field is invalid, or has no meaning outside of its API.
pub fn read_request(api: Api, body: &Value) -> Result<Conversation, Refusal> {
    match api {
        Api::Chat => chat::read_request(body),
        Api::Responses => responses::read_request(body),
        Api::Messages => messages::read_request(body),
        Api::Gemini => gemini::read_request(body),
    }
}

/// Writes a request for a provider.
///
/// # Errors
/// The API cannot express a field that changes the meaning of the answer.
pub fn write_request(
    api: Api,
    conversation: &Conversation,
    target: &Target,
) -> Result<Written, Refusal> {
    match api {
        Api::Chat => chat::write_request(conversation, target),
        Api::Responses => responses::write_request(conversation, target),
        Api::Messages => messages::write_request(conversation, target),
        Api::Gemini => gemini::write_request(conversation, target),
    }
}

/// Reads an answer in one piece. Ignores what it does not know, because the provider is paid already.
pub fn read_reply(api: Api, body: &Value) -> Reply {
    match api {
        Api::Chat => chat::read_reply(body),
        Api::Responses => responses::read_reply(body),
        Api::Messages => messages::read_reply(body),
        Api::Gemini => gemini::read_reply(body),
    }
}

/// Writes an answer in one piece for a client.
pub fn write_reply(api: Api, reply: &Reply, usage: &Usage, context: &Context) -> Value {
    match api {
        Api::Chat => chat::write_reply(reply, usage, context),
        Api::Responses => responses::write_reply(reply, usage, context),
        Api::Messages => messages::write_reply(reply, usage, context),
        Api::Gemini => gemini::write_reply(reply, usage, context),
    }
}

/// Reads an answer in one piece for a client of another API, which has no use for the fields that only
/// this one knows.
pub fn read_reply_for_other(api: Api, body: &Value) -> Reply {
    let mut reply = read_reply(api, body);
    reply.extra.clear();
    for part in &mut reply.parts {
        part.extra.clear();
    }
    reply
}

pub fn stream_reader(api: Api) -> Box<dyn StreamReader> {
    match api {
        Api::Chat => Box::<chat::ChunkReader>::default(),
        Api::Responses => Box::<responses::EventReader>::default(),
        Api::Messages => Box::<messages::EventReader>::default(),
        Api::Gemini => Box::<gemini::ChunkReader>::default(),
    }
}

pub fn stream_writer(api: Api, context: Context) -> Box<dyn StreamWriter> {
    match api {
        Api::Chat => Box::new(chat::ChunkWriter::new(context)),
        Api::Responses => Box::new(responses::EventWriter::new(context)),
        Api::Messages => Box::new(messages::EventWriter::new(context)),
        Api::Gemini => Box::new(gemini::ChunkWriter::new(context)),
    }
}

#[cfg(test)]
mod tests;
