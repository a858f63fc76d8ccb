//! The names that each API format has for the parts of a request. Pure.

use super::fields::Fields;
use crate::listener::ApiError;
use crate::providers::ApiFormat;

pub(super) struct Shape {
    /// The known fields; each may occur once.
    pub(super) known_fields: &'static [&'static str],
    /// The fields that may contain the model, in order of precedence.
    pub(super) model: &'static [&'static str],
    /// The model of a request that names none, if the API has a default.
    pub(super) default_model: Option<&'static str>,
    /// True if the path contains the model, and the body at most repeats it.
    pub(super) has_model_in_path: bool,
    pub(super) streaming: Streaming,
    /// Spellings of the object that contains the limits; none if the request contains them itself.
    pub(super) config: &'static [&'static str],
    /// The known fields of that object.
    pub(super) config_fields: &'static [&'static str],
    /// The limits of the answer, in tokens.
    pub(super) limits: &'static [&'static str],
    /// The fields that may reserve a part of the output for thinking.
    pub(super) thinking: &'static [&'static str],
    /// The number of choices.
    pub(super) choices: &'static [&'static str],
    pub(super) system: &'static [&'static str],
    pub(super) messages: &'static [&'static str],
    /// True if `messages` is one text or a list of texts.
    pub(super) is_prompt: bool,
    /// True if `messages` may contain items of OpenAI's Responses API.
    pub(super) is_responses: bool,
    /// The name of content that an earlier request stored.
    pub(super) reference: &'static [&'static str],
    pub(super) content: Content,
}

/// The content of a request, and the bound of its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Messages,
    /// Texts that are completed.
    Prompts,
    /// Texts whose answer has no tokens.
    Texts,
    /// Texts that may also be objects with images or sound, and whose answer has no tokens.
    Inputs,
    /// Images or sound, whose tokens have no known bound.
    Media,
}

impl Content {
    /// Returns whether the answer has no tokens.
    pub(super) fn has_no_answer(self) -> bool {
        matches!(self, Self::Texts | Self::Inputs)
    }
}

/// The part of a request that decides whether its answer is streamed.
#[derive(Clone, Copy)]
pub(super) enum Streaming {
    /// The field `stream`, with this default.
    Field(bool),
    /// The path.
    Fixed(bool),
}

impl Streaming {
    pub(super) fn read(self, fields: &Fields<'_>) -> Result<bool, ApiError> {
        let default = match self {
            Self::Fixed(is_streamed) => return Ok(is_streamed),
            Self::Field(default) => default,
        };
        Ok(fields.flag("stream")?.unwrap_or(default))
    }
}

const CHAT: Shape = Shape {
    known_fields: &[
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "system",
        "messages",
        "tools",
        "thinking",
        "reasoning",
        "models",
    ],
    model: &["model"],
    default_model: None,
    has_model_in_path: false,
    streaming: Streaming::Field(false),
    config: &[],
    config_fields: &[],
    // The client may set both; which one counts depends on the provider.
    limits: &["max_tokens", "max_completion_tokens"],
    thinking: &["thinking", "reasoning"],
    choices: &["n"],
    system: &["system"],
    messages: &["messages"],
    is_prompt: false,
    is_responses: false,
    reference: &[],
    content: Content::Messages,
};

const COMPLETIONS: Shape = Shape {
    known_fields: &["model", "stream", "stream_options", "max_tokens", "n", "best_of", "prompt"],
    limits: &["max_tokens"],
    thinking: &[],
    // All of `best_of` are billed: <https://platform.openai.com/docs/api-reference/completions>.
    choices: &["n", "best_of"],
    system: &[],
    messages: &["prompt"],
    content: Content::Prompts,
    ..CHAT
};

/// Embeddings.
const INPUT: Shape = Shape {
    known_fields: &["model", "stream", "input"],
    limits: &[],
    thinking: &[],
    choices: &[],
    system: &[],
    messages: &["input"],
    content: Content::Inputs,
    ..CHAT
};

/// <https://platform.openai.com/docs/api-reference/moderations/create>.
const MODERATION: Shape = Shape { default_model: Some("omni-moderation-latest"), ..INPUT };

const RERANK: Shape = Shape {
    known_fields: &["model", "stream", "query", "documents"],
    system: &["query"],
    messages: &["documents"],
    content: Content::Texts,
    ..INPUT
};

/// Images and speech.
const MEDIA: Shape = Shape {
    known_fields: &["model", "stream", "n", "prompt", "input"],
    choices: &["n"],
    system: &["input"],
    messages: &["prompt"],
    content: Content::Media,
    ..INPUT
};

/// OpenAI's Responses API. The limit includes reasoning.
const RESPONSES: Shape = Shape {
    known_fields: &[
        "model",
        "stream",
        "max_output_tokens",
        "instructions",
        "input",
        "tools",
        "background",
        "store",
        "previous_response_id",
        "conversation",
        "prompt",
        "models",
    ],
    limits: &["max_output_tokens"],
    thinking: &[],
    choices: &[],
    system: &["instructions"],
    messages: &["input"],
    is_responses: true,
    reference: &["prompt"],
    ..CHAT
};

/// Google's servers accept each name in both spellings:
/// <https://protobuf.dev/programming-guides/json/>.
const CONTENT: Shape = Shape {
    known_fields: &[
        "model",
        "contents",
        "systemInstruction",
        "system_instruction",
        "generationConfig",
        "generation_config",
        "cachedContent",
        "cached_content",
        "tools",
    ],
    has_model_in_path: true,
    streaming: Streaming::Fixed(false),
    config: &["generationConfig", "generation_config"],
    config_fields: &[
        "maxOutputTokens",
        "max_output_tokens",
        "candidateCount",
        "candidate_count",
        "thinkingConfig",
        "thinking_config",
    ],
    thinking: &["thinkingConfig", "thinking_config"],
    limits: &["maxOutputTokens", "max_output_tokens"],
    choices: &["candidateCount", "candidate_count"],
    system: &["systemInstruction", "system_instruction"],
    messages: &["contents"],
    reference: &["cachedContent", "cached_content"],
    ..CHAT
};

const CONTENT_STREAM: Shape = Shape { streaming: Streaming::Fixed(true), ..CONTENT };

const CONTENT_TOKEN_COUNT: Shape = Shape {
    known_fields: &["model", "contents", "generateContentRequest", "generate_content_request"],
    messages: &["contents", "generateContentRequest", "generate_content_request"],
    ..UNLIMITED_CONTENT
};

/// A request without limits of its answer.
const UNLIMITED_CONTENT: Shape = Shape {
    config: &[],
    config_fields: &[],
    limits: &[],
    choices: &[],
    system: &[],
    reference: &[],
    is_prompt: true,
    ..CONTENT
};

const EMBED_CONTENT: Shape =
    Shape { known_fields: &["model", "content"], messages: &["content"], ..UNLIMITED_CONTENT };

const BATCH_EMBED_CONTENTS: Shape =
    Shape { known_fields: &["model", "requests"], messages: &["requests"], ..UNLIMITED_CONTENT };

const OLLAMA_CHAT: Shape = Shape {
    known_fields: &["model", "stream", "messages", "tools", "options"],
    // "streaming is enabled by default": <https://docs.ollama.com/api/streaming>.
    streaming: Streaming::Field(true),
    config: &["options"],
    config_fields: &["num_predict"],
    thinking: &[],
    limits: &["num_predict"],
    choices: &[],
    system: &[],
    ..CHAT
};

const OLLAMA_GENERATE: Shape = Shape {
    known_fields: &["model", "stream", "system", "prompt", "options"],
    system: &["system"],
    messages: &["prompt"],
    is_prompt: true,
    ..OLLAMA_CHAT
};

const OLLAMA_EMBED: Shape = Shape {
    known_fields: &["model", "input"],
    streaming: Streaming::Fixed(false),
    config: &[],
    config_fields: &[],
    limits: &[],
    system: &[],
    messages: &["input"],
    ..OLLAMA_GENERATE
};

const OLLAMA_EMBEDDINGS: Shape =
    Shape { known_fields: &["model", "prompt"], messages: &["prompt"], ..OLLAMA_EMBED };

/// Older clients write `name`.
const OLLAMA_SHOW: Shape = Shape {
    known_fields: &["model", "name"],
    model: &["model", "name"],
    messages: &[],
    ..OLLAMA_EMBED
};

impl Shape {
    pub(super) fn of(format: ApiFormat) -> &'static Self {
        match format {
            ApiFormat::ChatCompletions
            | ApiFormat::Messages
            | ApiFormat::TokenCount
            | ApiFormat::Object => &CHAT,
            ApiFormat::Responses | ApiFormat::Compaction | ApiFormat::ResponseTokenCount => {
                &RESPONSES
            }
            ApiFormat::Completions => &COMPLETIONS,
            ApiFormat::Embeddings => &INPUT,
            ApiFormat::Moderations => &MODERATION,
            ApiFormat::Rerank | ApiFormat::RerankV2 => &RERANK,
            ApiFormat::Images
            | ApiFormat::ImageEdits
            | ApiFormat::ImageVariations
            | ApiFormat::Speech
            | ApiFormat::Transcriptions
            | ApiFormat::Translations => &MEDIA,
            ApiFormat::GenerateContent => &CONTENT,
            ApiFormat::ContentStream | ApiFormat::ContentArray => &CONTENT_STREAM,
            ApiFormat::ContentTokenCount => &CONTENT_TOKEN_COUNT,
            ApiFormat::EmbedContent => &EMBED_CONTENT,
            ApiFormat::BatchEmbedContents => &BATCH_EMBED_CONTENTS,
            ApiFormat::OllamaChat => &OLLAMA_CHAT,
            ApiFormat::OllamaGenerate => &OLLAMA_GENERATE,
            ApiFormat::OllamaEmbed => &OLLAMA_EMBED,
            ApiFormat::OllamaEmbeddings => &OLLAMA_EMBEDDINGS,
            ApiFormat::OllamaShow => &OLLAMA_SHOW,
        }
    }
}
