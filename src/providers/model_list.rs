//! Lists the models that a provider serves. The request is free and not a call, so it has no ledger
//! row.
//!
//! - OpenAI and compatible servers: `GET {base_url}/models`, `created` in seconds
//!   (<https://platform.openai.com/docs/api-reference/models/list>). The standard has no field for the
//!   length of a prompt; OpenRouter has `context_length`, Groq `context_window`, Mistral
//!   `max_context_length`, vLLM `max_model_len`.
//! - Anthropic: `GET …/v1/models`, `created_at` as RFC 3339, "may be set to an epoch value if the release
//!   date is unknown" (<https://platform.claude.com/docs/en/api/models>).
//! - Ollama: `GET {base_url}/v1/models`, in the form of OpenAI.
//! - Gemini: `GET …/v1beta/models`, no date (<https://ai.google.dev/api/models#method:-models.list>).
//!
//! The last two return up to 1,000 per page, which covers all their models.

use std::time::Duration;

use serde_json::Value;

use super::Providers;
use super::cancel::Cancel;
use super::client::{Exchange, HttpRequest, Method, ReadRules, Receiver};
use super::config::{Kind, ProviderConfig, host};
use super::failure::Fault;
use super::framer::Event;
use super::transport::Scope;
use super::wire::{Flow, Header, Reader, ResponseAccumulator};
use super::{anthropic, gemini, ollama, openai};
use crate::time::Timestamp;

/// A router's list of 400 models has half a megabyte.
const RULES: ReadRules = ReadRules {
    document_bytes_max: 4 << 20,
    event_bytes_max: 4 << 20,
    is_forwarded: false,
    drain_max: None,
};
const LIST_TIME_MAX: Duration = Duration::from_secs(10);
/// The maximum of Anthropic and Gemini.
const PAGE_MODELS_MAX: usize = 1_000;
/// Limits the models read from a list.
const MODELS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 200;
/// Field names for the length of a prompt and its answer, on servers of OpenAI's protocol.
const CONTEXT_KEYS: &[&str] = &[
    "context_length",
    "context_window",
    "max_context_length",
    "max_model_len",
    "max_input_tokens",
];

/// A model in a provider's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// Anthropic's and Gemini's name for people.
    pub display_name: Option<String>,
    pub created_at: Option<Timestamp>,
    /// The limit of a prompt and its answer together.
    pub context_tokens: Option<u64>,
}

impl Providers {
    /// Returns whether a provider can list its models. Excludes `echo` and Ollama, whose models are
    /// free, and Azure, which lists models that are not deployed.
    pub fn has_list(&self, provider: &str) -> bool {
        self.server_of(provider).is_some_and(|(kind, base_url)| match kind {
            Kind::OpenAi => !host(base_url).ends_with(".azure.com"),
            Kind::Anthropic | Kind::Gemini => true,
            Kind::Ollama | Kind::Echo => false,
        })
    }

    /// Returns whether a provider can list the models of clients: also Ollama's.
    pub fn has_client_list(&self, provider: &str) -> bool {
        self.has_list(provider) || self.kind(provider) == Some(Kind::Ollama)
    }

    /// Lists a provider's models, with the key and at the address of its calls.
    ///
    /// # Errors
    /// Returns the reason as a sentence without the key.
    pub fn list_models(&self, provider: &str, cancel: &Cancel) -> Result<Vec<Listed>, String> {
        let entered = Scope::enter(cancel);
        self.exchange_list(provider, &entered.scope)
            .map_err(|fault| self.message(provider, &format!("{provider}: {}", fault.message)))
    }

    fn exchange_list(&self, name: &str, scope: &Scope) -> Result<Vec<Listed>, Fault> {
        let provider = self.member(name, None)?;
        let Some((url, headers)) = request(provider) else {
            return Err(Fault::not_configured("does not list models"));
        };
        let request = HttpRequest { url: &url, headers: &headers, method: Method::Get, body: &[] };
        let mut reader = ListReader { kind: provider.kind, models: Vec::new() };
        let exchange = Exchange {
            provider: name,
            timeouts: self.timeouts.bounded(LIST_TIME_MAX),
            key: provider.key(),
            is_streamed: false,
            scope,
            rules: RULES,
            reader: &mut reader,
            receiver: &mut Ignore,
            partial: &mut ResponseAccumulator::default(),
        };
        self.client(name)?.exchange(&request, exchange)?;
        Ok(reader.models)
    }
}

struct ListReader {
    kind: Kind,
    models: Vec<Listed>,
}

impl Reader for ListReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected a list of models, received a stream"))
    }

    fn document(&mut self, body: &Value, _: &mut ResponseAccumulator) -> Result<(), Fault> {
        let models = models(self.kind, body);
        self.models =
            models.ok_or_else(|| Fault::bad_answer("the response has no list of models"))?;
        Ok(())
    }
}

struct Ignore;

impl Receiver for Ignore {}

/// Returns the URL of the list and the headers to send.
fn request(provider: &ProviderConfig) -> Option<(String, Vec<(&'static str, Header)>)> {
    let key = provider.key();
    let (url, headers) = match provider.kind {
        Kind::OpenAi => {
            let url = format!("{}/models", provider.base_url());
            (url, key.map(openai::authorization).into_iter().collect())
        }
        Kind::Anthropic => {
            let key = key.map(anthropic::api_key).into_iter();
            let url = anthropic::url(provider);
            let url = url.strip_suffix("/messages").unwrap_or(&url);
            let url = format!("{url}/models?limit={PAGE_MODELS_MAX}");
            (url, key.chain([anthropic::version()]).collect())
        }
        Kind::Gemini => {
            let base_url = gemini::versioned(provider.base_url());
            let url = format!("{base_url}/models?pageSize={PAGE_MODELS_MAX}");
            (url, key.map(gemini::api_key).into_iter().collect())
        }
        Kind::Ollama => {
            let url = ollama::chat_url(provider);
            let url = url.strip_suffix("/chat/completions").unwrap_or(&url);
            (format!("{url}/models"), key.map(openai::authorization).into_iter().collect())
        }
        Kind::Echo => return None,
    };
    Some((url, headers))
}

/// Returns the models of a list; none if it is not a list. Invalid entries are skipped.
fn models(kind: Kind, document: &Value) -> Option<Vec<Listed>> {
    let all = match kind {
        Kind::Gemini => &document["models"],
        // Together returns a bare array.
        _ if document.is_array() => document,
        _ => &document["data"],
    };
    let all = all.as_array()?.iter().take(MODELS_MAX);
    let read = match kind {
        Kind::Gemini => gemini_model,
        _ => model,
    };
    Some(all.filter_map(read).collect())
}

/// Parses a model of OpenAI, compatible servers or Anthropic.
fn model(model: &Value) -> Option<Listed> {
    // Groq also lists retired models.
    if model["active"] == false {
        return None;
    }
    let created_at = match (&model["created"], &model["created_at"]) {
        (Value::Number(seconds), _) => {
            seconds.as_i64().map(|seconds| Timestamp(seconds.saturating_mul(1_000)))
        }
        (_, Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    Some(Listed {
        name: name(&model["id"])?,
        display_name: name(&model["display_name"]),
        // Anthropic and others write 1970 for an unknown date.
        created_at: created_at.filter(|at| at.0 > 0),
        context_tokens: CONTEXT_KEYS.iter().find_map(|key| tokens(&model[key])),
    })
}

fn gemini_model(model: &Value) -> Option<Listed> {
    let methods = model["supportedGenerationMethods"].as_array()?;
    // The other ones serve none of the gateway's calls, for example `predict` and `bidiGenerateContent`.
    if !methods.iter().any(|method| method == "generateContent" || method == "embedContent") {
        return None;
    }
    let name = name(&model["name"])?;
    Some(Listed {
        name: name.strip_prefix("models/").unwrap_or(&name).to_owned(),
        display_name: self::name(&model["displayName"]),
        created_at: None,
        context_tokens: tokens(&model["inputTokenLimit"]),
    })
}

fn name(name: &Value) -> Option<String> {
    let is_name = |name: &&str| (1..=NAME_BYTES_MAX).contains(&name.len());
    name.as_str().filter(is_name).map(str::to_owned)
}

/// Parses a limit; 0 counts as missing.
fn tokens(limit: &Value) -> Option<u64> {
    limit.as_u64().filter(|tokens| *tokens > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::provider;
    use super::*;

    fn listed(name: &str, created_s: Option<i64>, context_tokens: Option<u64>) -> Listed {
        Listed {
            name: name.into(),
            display_name: None,
            created_at: created_s.map(|seconds| Timestamp(seconds * 1_000)),
            context_tokens,
        }
    }

    #[test]
    fn each_kind_has_its_own_list_url_and_key() {
        for (kind, base_url, url, key) in [
            (Kind::OpenAi, "", "https://api.openai.com/v1/models", "authorization"),
            (Kind::OpenAi, "http://h/v1/", "http://h/v1/models", "authorization"),
            (Kind::Anthropic, "http://h/v1", "http://h/v1/models?limit=1000", "x-api-key"),
            (Kind::Gemini, "http://h", "http://h/v1beta/models?pageSize=1000", "x-goog-api-key"),
        ] {
            let (to, headers) = request(&provider(kind, base_url)).unwrap();
            assert_eq!((to.as_str(), headers[0].0), (url, key));
        }
        let (url, _) = request(&provider(Kind::Ollama, "http://h")).unwrap();
        assert_eq!(url, "http://h/v1/models");
        assert!(request(&provider(Kind::Echo, "")).is_none());
    }

    #[test]
    fn lists_of_each_kind_are_parsed() {
        let openai = json!({"object": "list", "data": [
            {"id": "gpt-4o", "object": "model", "created": 1_715_367_049, "owned_by": "system"},
            {"id": "groq", "created": 0, "active": true, "context_window": 131_072},
            {"id": "retired", "active": false},
            {"id": "routed/one", "created": 7, "context_length": 8_192},
            {"id": 7}, "no model",
        ]});
        assert_eq!(
            models(Kind::OpenAi, &openai).unwrap(),
            [
                listed("gpt-4o", Some(1_715_367_049), None),
                listed("groq", None, Some(131_072)),
                listed("routed/one", Some(7), Some(8_192)),
            ]
        );
        assert_eq!(models(Kind::OpenAi, &openai["data"]).unwrap().len(), 3);
        let anthropic = json!({"data": [
            {"type": "model", "id": "claude-opus-4-6", "created_at": "2026-02-04T00:00:00Z",
                "max_input_tokens": 0},
            {"type": "model", "id": "claude-x", "created_at": "1970-01-01T00:00:00Z"},
        ], "has_more": false});
        assert_eq!(
            models(Kind::Anthropic, &anthropic).unwrap(),
            [listed("claude-opus-4-6", Some(1_770_163_200), None), listed("claude-x", None, None),]
        );
        let gemini = json!({"models": [
            {"name": "models/gemini-2.5-pro", "inputTokenLimit": 1_048_576,
                "supportedGenerationMethods": ["generateContent", "countTokens"]},
            {"name": "models/embedding-001", "supportedGenerationMethods": ["embedContent"]},
            {"name": "models/imagen-4", "supportedGenerationMethods": ["predict"]},
        ]});
        assert_eq!(
            models(Kind::Gemini, &gemini).unwrap(),
            [listed("gemini-2.5-pro", None, Some(1_048_576)), listed("embedding-001", None, None),]
        );
        for none in [json!({}), json!("x"), json!({"data": 1}), json!({"models": {}})] {
            assert_eq!(models(Kind::OpenAi, &none), None, "{none}");
        }
    }
}
