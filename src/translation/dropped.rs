//! The fields of a client's request that have no place in another API.

use super::Api;
use super::conversation::Extra;

/// The fields that the provider does not get, each once.
#[derive(Debug, Default)]
pub(super) struct Dropped(pub(super) Vec<String>);

impl Dropped {
    pub(super) fn add(&mut self, path: impl Into<String>) {
        let path = path.into();
        if !self.0.contains(&path) {
            self.0.push(path);
        }
    }

    /// Adds the fields of an object that only the client's API has.
    pub(super) fn add_all(&mut self, path: &str, extra: &Extra) {
        for (name, _) in extra.iter().filter(|(_, value)| !value.is_null()) {
            self.add(format!("{path}.{name}"));
        }
    }

    /// Adds a field of a request in `api` by its name in chat completions.
    pub(super) fn add_field(&mut self, api: Api, name: &str) {
        let (chat, responses, gemini) = match name {
            "reasoning" => ("reasoning_effort", "reasoning", "thinkingConfig"),
            "stop" => (name, name, "stopSequences"),
            "top_p" => (name, name, "topP"),
            "top_k" => (name, name, "topK"),
            "frequency_penalty" => (name, name, "frequencyPenalty"),
            "presence_penalty" => (name, name, "presencePenalty"),
            _ => (name, name, name),
        };
        match api {
            Api::Chat | Api::Messages => self.add(chat),
            Api::Responses => self.add(responses),
            Api::Gemini => self.add(format!("generationConfig.{gemini}")),
        }
    }
}
