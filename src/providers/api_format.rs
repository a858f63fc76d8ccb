//! The wire formats of clients' requests: the kinds of providers that support them, their URLs, and
//! the readers of their answers. Pure.

use serde_json::Value;

use super::call::Call;
use super::config::{Kind, ProviderConfig};
use super::counted::CountedReader;
use super::failure::Fault;
use super::framer::{Event, Framing};
use super::media::MediaReader;
use super::wire::{Flow, Reader, ResponseAccumulator, check_reported};
use super::{anthropic, gemini, ollama, openai, responses};
use crate::translation::Api;

/// The protocol of a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFormat {
    ChatCompletions,
    Messages,
    /// Anthropic's token count of a message.
    TokenCount,
    /// A new response of OpenAI's Responses API.
    Responses,
    /// The same, which summarizes its input.
    Compaction,
    /// The token count of such a request.
    ResponseTokenCount,
    Completions,
    Embeddings,
    Moderations,
    /// Cohere's and Jina's order of documents by relevance.
    Rerank,
    /// The same in Cohere's second version.
    RerankV2,
    Images,
    ImageEdits,
    ImageVariations,
    Speech,
    Transcriptions,
    Translations,
    /// A request about stored objects, at the path of [`Forward::path`].
    Object,
    /// Gemini's answer in one piece.
    GenerateContent,
    /// Gemini's stream of server-sent events.
    ContentStream,
    /// Gemini's stream as an array that grows.
    ContentArray,
    /// Gemini's token count of a prompt.
    ContentTokenCount,
    EmbedContent,
    BatchEmbedContents,
    OllamaChat,
    OllamaGenerate,
    OllamaEmbed,
    /// Ollama's embedding of one text, which `OllamaEmbed` replaces.
    OllamaEmbeddings,
    /// Ollama's description of a model.
    OllamaShow,
}

/// The usual formats of calls that generate text.
pub const API_FORMATS: [ApiFormat; 5] = [
    ApiFormat::ChatCompletions,
    ApiFormat::Messages,
    ApiFormat::Responses,
    ApiFormat::GenerateContent,
    ApiFormat::OllamaChat,
];

/// Returns the URL of a request and the reader of its answer.
pub(super) type Route = fn(&ProviderConfig, &Call) -> (String, Box<dyn Reader>);

impl ApiFormat {
    /// Returns the format of a call in an API.
    pub fn of(api: Api, is_streamed: bool) -> Self {
        match api {
            Api::Chat => Self::ChatCompletions,
            Api::Responses => Self::Responses,
            Api::Messages => Self::Messages,
            Api::Gemini if is_streamed => Self::ContentStream,
            Api::Gemini => Self::GenerateContent,
        }
    }

    /// Returns the API of a call that can be translated.
    pub fn api(self) -> Option<Api> {
        Some(match self {
            Self::ChatCompletions => Api::Chat,
            Self::Responses => Api::Responses,
            Self::Messages => Api::Messages,
            Self::GenerateContent | Self::ContentStream | Self::ContentArray => Api::Gemini,
            _ => return None,
        })
    }

    /// Returns whether a provider of this kind understands the format.
    pub fn is_supported_by(self, kind: Kind) -> bool {
        self.route(kind).is_some()
    }

    /// Returns whether the answer consists of numbers that describe the input.
    pub fn is_embedding(self) -> bool {
        use ApiFormat::{BatchEmbedContents, EmbedContent, OllamaEmbed, OllamaEmbeddings};
        matches!(self, EmbedContent | BatchEmbedContents | OllamaEmbed | OllamaEmbeddings)
    }

    /// Returns whether Gemini serves the format by its OpenAI-compatible API, which takes the key as a
    /// bearer token: <https://ai.google.dev/gemini-api/docs/openai>.
    pub(super) fn is_compatible_api(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Embeddings | Self::Images)
    }

    pub(super) fn route(self, kind: Kind) -> Option<Route> {
        let route: Route = match (self, kind) {
            (Self::ChatCompletions, Kind::OpenAi) => |it, _| (openai::url(it), chat()),
            (Self::ChatCompletions, Kind::Gemini) => |it, _| {
                let reader = openai::ChatReader::counting(gemini::chat_usage);
                (gemini::chat_url(it), Box::new(reader))
            },
            (Self::ChatCompletions, Kind::Ollama) => |it, _| (ollama::chat_url(it), chat()),
            (Self::Messages, Kind::Anthropic) => |it, _| (anthropic::url(it), messages()),
            (Self::Messages, Kind::Ollama) => |it, _| (ollama::messages_url(it), messages()),
            (Self::TokenCount, Kind::Anthropic) => |it, _| {
                let url = format!("{}/count_tokens", anthropic::url(it));
                (url, Box::new(anthropic::CountReader))
            },
            (Self::Responses, Kind::OpenAi) => {
                |it, _| (openai::url_of(it, "responses"), response())
            }
            (Self::Responses, Kind::Ollama) => |it, _| (ollama::responses_url(it), response()),
            (Self::Compaction, Kind::OpenAi) => {
                |it, _| (openai::url_of(it, "responses/compact"), response())
            }
            (Self::ResponseTokenCount, Kind::OpenAi) => |it, _| {
                let url = openai::url_of(it, "responses/input_tokens");
                (url, Box::new(anthropic::CountReader))
            },
            (Self::Object, Kind::OpenAi) => {
                |it, _| (it.base_url().to_owned(), Box::<responses::ObjectReader>::default())
            }
            (
                Self::Completions
                | Self::Embeddings
                | Self::Moderations
                | Self::Rerank
                | Self::RerankV2
                | Self::Images
                | Self::ImageEdits
                | Self::ImageVariations
                | Self::Speech
                | Self::Transcriptions
                | Self::Translations,
                _,
            ) => return self.other_route(kind),
            (format, Kind::Gemini) => return format.gemini_route(),
            (format, Kind::Ollama) => return format.ollama_route(),
            (_, Kind::OpenAi | Kind::Anthropic | Kind::Echo) => return None,
        };
        Some(route)
    }

    fn gemini_route(self) -> Option<Route> {
        let route: Route = match self {
            Self::GenerateContent => {
                |it, call| (gemini::action_url(it, &call.model, "generateContent"), content())
            }
            Self::ContentStream => {
                |it, call| (gemini::action_url(it, &call.model, "streamGenerateContent"), content())
            }
            Self::ContentArray => |it, call| {
                let reader = gemini::ContentReader::forwarding(Framing::JsonArray);
                let url = gemini::action_url(it, &call.model, "streamGenerateContent");
                (url, Box::new(reader))
            },
            Self::ContentTokenCount => |it, call| {
                let url = gemini::action_url(it, &call.model, "countTokens");
                (url, Box::new(UnreadDocument))
            },
            Self::EmbedContent => |it, call| {
                let url = gemini::action_url(it, &call.model, "embedContent");
                (url, Box::new(gemini::EmbeddingReader))
            },
            Self::BatchEmbedContents => |it, call| {
                let url = gemini::action_url(it, &call.model, "batchEmbedContents");
                (url, Box::new(gemini::EmbeddingReader))
            },
            _ => return None,
        };
        Some(route)
    }

    fn ollama_route(self) -> Option<Route> {
        let route: Route = match self {
            Self::OllamaChat => |it, _| (ollama::own_url(it, "chat"), Box::new(ollama::ChatReader)),
            Self::OllamaGenerate => {
                |it, _| (ollama::own_url(it, "generate"), Box::new(ollama::GenerateReader))
            }
            Self::OllamaEmbed => {
                |it, _| (ollama::own_url(it, "embed"), Box::new(ollama::EmbeddingReader))
            }
            Self::OllamaEmbeddings => {
                |it, _| (ollama::own_url(it, "embeddings"), Box::new(ollama::EmbeddingReader))
            }
            Self::OllamaShow => |it, _| (ollama::own_url(it, "show"), Box::new(UnreadDocument)),
            _ => return None,
        };
        Some(route)
    }

    /// Returns the route of a call other than a conversation.
    fn other_route(self, kind: Kind) -> Option<Route> {
        let route: Route = match (self, kind) {
            (Self::Completions, Kind::OpenAi) => |it, _| (at(it, "completions"), texts()),
            (Self::Completions, Kind::Ollama) => {
                |it, _| (beside_chat(ollama::chat_url(it), "completions"), texts())
            }
            (Self::Embeddings, Kind::OpenAi) => |it, _| (at(it, "embeddings"), embeddings()),
            (Self::Embeddings, Kind::Gemini) => {
                |it, _| (beside_chat(gemini::chat_url(it), "embeddings"), embeddings())
            }
            (Self::Embeddings, Kind::Ollama) => {
                |it, _| (beside_chat(ollama::chat_url(it), "embeddings"), embeddings())
            }
            (Self::Moderations, Kind::OpenAi) => {
                |it, _| (at(it, "moderations"), Box::new(CountedReader::moderations()))
            }
            (Self::Rerank, Kind::OpenAi) => |it, _| (at(it, "rerank"), rerank()),
            (Self::RerankV2, Kind::OpenAi) => |it, _| {
                let url = at(it, "rerank");
                let older = url.strip_suffix("/v1/rerank").map(|base| format!("{base}/v2/rerank"));
                (older.unwrap_or(url), rerank())
            },
            (Self::Images, Kind::OpenAi) => |it, _| (at(it, "images/generations"), images()),
            (Self::Images, Kind::Gemini) => {
                |it, _| (beside_chat(gemini::chat_url(it), "images/generations"), images())
            }
            (Self::ImageEdits, Kind::OpenAi) => |it, _| (at(it, "images/edits"), images()),
            (Self::ImageVariations, Kind::OpenAi) => {
                |it, _| (at(it, "images/variations"), images())
            }
            (Self::Speech, Kind::OpenAi) => |it, _| (at(it, "audio/speech"), audio()),
            (Self::Transcriptions, Kind::OpenAi) => {
                |it, _| (at(it, "audio/transcriptions"), audio())
            }
            (Self::Translations, Kind::OpenAi) => |it, _| (at(it, "audio/translations"), audio()),
            _ => return None,
        };
        Some(route)
    }
}

fn content() -> Box<dyn Reader> {
    Box::new(gemini::ContentReader::forwarding(Framing::Sse))
}

/// Reads an answer without usage.
pub(super) struct UnreadDocument;

impl Reader for UnreadDocument {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected a JSON document, received a stream"))
    }

    fn document(&mut self, body: &Value, _: &mut ResponseAccumulator) -> Result<(), Fault> {
        check_reported(body)
    }
}

/// Returns the URL of a path at a server of OpenAI's protocol.
fn at(provider: &ProviderConfig, path: &str) -> String {
    format!("{}/{path}", provider.base_url())
}

/// Returns the URL of a path beside that of chat completions.
fn beside_chat(chat_url: String, path: &str) -> String {
    match chat_url.strip_suffix("chat/completions") {
        Some(base) => format!("{base}{path}"),
        None => chat_url,
    }
}

fn texts() -> Box<dyn Reader> {
    Box::new(openai::ChatReader::of_texts())
}

fn embeddings() -> Box<dyn Reader> {
    Box::new(CountedReader::embeddings())
}

fn rerank() -> Box<dyn Reader> {
    Box::new(CountedReader::rerank())
}

fn images() -> Box<dyn Reader> {
    Box::new(MediaReader::images())
}

fn audio() -> Box<dyn Reader> {
    Box::new(MediaReader::audio())
}

fn chat() -> Box<dyn Reader> {
    Box::<openai::ChatReader>::default()
}

fn response() -> Box<dyn Reader> {
    Box::<responses::ResponseReader>::default()
}

fn messages() -> Box<dyn Reader> {
    Box::<anthropic::MessageReader>::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_sent_to_the_kinds_that_support_it() {
        for (format, expected) in [
            (ApiFormat::ChatCompletions, &[Kind::OpenAi, Kind::Gemini, Kind::Ollama][..]),
            (ApiFormat::Messages, &[Kind::Anthropic, Kind::Ollama]),
            (ApiFormat::TokenCount, &[Kind::Anthropic]),
            (ApiFormat::Completions, &[Kind::OpenAi, Kind::Ollama]),
            (ApiFormat::Embeddings, &[Kind::OpenAi, Kind::Gemini, Kind::Ollama]),
            (ApiFormat::Moderations, &[Kind::OpenAi]),
            (ApiFormat::Rerank, &[Kind::OpenAi]),
            (ApiFormat::Images, &[Kind::OpenAi, Kind::Gemini]),
            (ApiFormat::Transcriptions, &[Kind::OpenAi]),
            (ApiFormat::Responses, &[Kind::OpenAi, Kind::Ollama]),
            (ApiFormat::Compaction, &[Kind::OpenAi]),
            (ApiFormat::ResponseTokenCount, &[Kind::OpenAi]),
            (ApiFormat::Object, &[Kind::OpenAi]),
            (ApiFormat::GenerateContent, &[Kind::Gemini]),
            (ApiFormat::ContentArray, &[Kind::Gemini]),
            (ApiFormat::BatchEmbedContents, &[Kind::Gemini]),
            (ApiFormat::OllamaChat, &[Kind::Ollama]),
            (ApiFormat::OllamaShow, &[Kind::Ollama]),
        ] {
            let kinds = [Kind::OpenAi, Kind::Anthropic, Kind::Gemini, Kind::Ollama, Kind::Echo];
            let reached = kinds.into_iter().filter(|kind| format.is_supported_by(*kind));
            assert_eq!(reached.collect::<Vec<_>>(), expected, "{format:?}");
        }
    }
}
