//! The fields of another API's request that have no place in this one.

use super::super::Api;
use super::super::conversation::Extra;

/// The fields of the client's request that the provider does not get.
pub(super) struct Dropped {
    api: Api,
    names: Vec<String>,
}

impl Dropped {
    pub(super) fn new(api: Api) -> Self {
        Self { api, names: Vec::new() }
    }

    pub(super) fn names(self) -> Vec<String> {
        self.names
    }

    pub(super) fn add(&mut self, name: impl Into<String>) {
        let name = name.into();
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// Adds a field by its name in chat completions.
    pub(super) fn add_field(&mut self, name: &str) {
        let (chat, responses, gemini) = match name {
            "reasoning" => ("reasoning_effort", "reasoning", "thinkingConfig"),
            "stop" => (name, name, "stopSequences"),
            "top_p" => (name, name, "topP"),
            "top_k" => (name, name, "topK"),
            "frequency_penalty" => (name, name, "frequencyPenalty"),
            "presence_penalty" => (name, name, "presencePenalty"),
            _ => (name, name, name),
        };
        match self.api {
            Api::Chat | Api::Messages => self.add(chat),
            Api::Responses => self.add(responses),
            Api::Gemini => self.add(format!("generationConfig.{gemini}")),
        }
    }

    /// Adds the unknown fields of the objects in a list.
    pub(super) fn add_extra(&mut self, list: &str, extra: &Extra) {
        for key in extra.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key) {
            self.add(format!("{list}[*].{key}"));
        }
    }
}
