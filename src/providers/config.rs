//! The configuration of a provider.

use serde::{Deserialize, Serialize};

use super::network::Network;
use crate::secret::Secret;
use crate::translation::Api;

/// The protocol that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenAI's chat completions, which many other servers speak as well.
    OpenAi,
    Anthropic,
    /// Google's Gemini API; clients speak OpenAI's protocol to it.
    Gemini,
    /// Ollama's own API; clients speak OpenAI's or Anthropic's protocol to it.
    Ollama,
    /// The built-in provider: offline, deterministic, free. It answers with the prompt after the
    /// label `[echo of MODEL] `. The model `echo-slow` pauses 50 ms before each word, any other
    /// (`echo-1`) answers at once. Its tokens are words.
    Echo,
}

#[derive(Clone, Debug)]
pub struct ProviderConfig {
    pub kind: Kind,
    /// The part of the URL before `/chat/completions`, `/v1/messages`, `/v1beta/models` or
    /// `/api/chat`. If it is empty, the protocol's default is used, such as
    /// `https://api.openai.com/v1`.
    pub base_url: String,
    pub api_key: Option<Secret>,
    /// A hint for configuring the key (`set OPENAI_API_KEY`). None if the key is optional, as for
    /// local servers.
    pub missing_key_hint: Option<String>,
    /// True if a streamed chat completion must request its usage (`stream_options`). Some servers
    /// reject that, and send the usage without it.
    pub stream_usage: bool,
    /// True if the cost in a response is the cost of the call. None for the default, which is true
    /// for OpenRouter, xAI and Perplexity only, because they bill this cost. A server that states 0
    /// could evade a budget.
    pub trust_stated_cost: Option<bool>,
    /// The APIs that generate text; empty for the default of the kind. Requests in others are
    /// translated to the first.
    pub apis: Vec<Api>,
    pub network: Network,
}

/// Hosts whose stated costs are trusted by default.
const TRUSTED_HOSTS: [&str; 3] = ["openrouter.ai", "api.x.ai", "api.perplexity.ai"];

impl ProviderConfig {
    /// Returns the URL without trailing slashes; empty only for `echo`.
    pub(super) fn base_url(&self) -> &str {
        match (self.base_url.trim().trim_end_matches('/'), self.kind) {
            ("", Kind::OpenAi) => "https://api.openai.com/v1",
            ("", Kind::Anthropic) => "https://api.anthropic.com",
            ("", Kind::Gemini) => "https://generativelanguage.googleapis.com",
            ("", Kind::Ollama) => "http://127.0.0.1:11434",
            (base_url, _) => base_url,
        }
    }

    /// Returns the APIs that generate text, the preferred one first. Some of OpenAI's models have all
    /// abilities only in the Responses API
    /// (<https://platform.openai.com/docs/guides/migrate-to-responses>).
    pub fn apis(&self) -> &[Api] {
        match self.kind {
            _ if !self.apis.is_empty() => &self.apis,
            Kind::OpenAi if host(self.base_url()) == "api.openai.com" => {
                &[Api::Responses, Api::Chat]
            }
            Kind::OpenAi => &[Api::Chat, Api::Responses],
            Kind::Anthropic => &[Api::Messages],
            Kind::Gemini => &[Api::Gemini, Api::Chat],
            Kind::Ollama => &[Api::Chat, Api::Messages, Api::Responses],
            Kind::Echo => &[],
        }
    }

    pub(super) fn trusts_cost(&self) -> bool {
        self.trust_stated_cost.unwrap_or_else(|| TRUSTED_HOSTS.contains(&host(self.base_url())))
    }

    /// Returns the key, unless it is empty.
    pub(super) fn key(&self) -> Option<&Secret> {
        self.api_key.as_ref().filter(|key| !key.expose().is_empty())
    }
}

/// Returns the host of a URL, without user and port.
pub(super) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host_and_port.split(':').next().unwrap_or(host_and_port)
}
