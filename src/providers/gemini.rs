//! Google's Gemini API: <https://ai.google.dev/api/generate-content>. Pure: no network, no clock.

use serde_json::{Map, Value, json};

use super::call::Call;
use super::config::ProviderConfig;
use super::failure::Fault;
use super::framer::Event;
use super::openai;
use super::wire::{
    BadCount, Count, Flow, Header, Reader, Request, ResponseAccumulator, count, counts_anything,
    event_json, reported_fault,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// The version of the API that is spoken where the address names none:
/// <https://ai.google.dev/gemini-api/docs/api-versions>.
const VERSION: &str = "v1beta";

/// The request for a call. The key goes into a header and not into the URL, where logs would have it:
/// <https://ai.google.dev/api/all-methods>.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let method = if call.stream {
        "streamGenerateContent?alt=sse"
    } else {
        "generateContent"
    };
    let base_url = versioned(provider.base_url());
    Request {
        url: format!("{base_url}/{}:{method}", resource(&call.model)),
        headers: provider.key().map(api_key).into_iter().collect(),
        body: body(call),
    }
}

pub(super) fn api_key(key: &Secret) -> (&'static str, Header) {
    ("x-goog-api-key", Header::Secret(key.expose().to_owned()))
}

/// Where chat completions are asked for in OpenAI's protocol, with the key as a bearer token:
/// <https://ai.google.dev/gemini-api/docs/openai>.
pub(super) fn chat_url(provider: &ProviderConfig) -> String {
    let base_url = versioned(provider.base_url());
    format!("{base_url}/openai/chat/completions")
}

/// Token counts of chat completions in the normal form. `completion_tokens` leaves out thoughts, of which
/// nothing but `total_tokens` tells: 9 of the prompt and 1 of the answer are 103 in all, in
/// <https://discuss.ai.google.dev/t/127400>. Thoughts are billed as the answer is.
pub(super) fn chat_usage(usage: &Value) -> Result<Usage, BadCount> {
    let counted = openai::normal_usage(usage)?;
    let total = count(usage, "total_tokens")?.unwrap_or(0);
    let output = total.saturating_sub(counted.input_tokens);
    // The total alone does not say what to bill.
    if counted.source == UsageSource::None || output <= counted.output_tokens {
        return Ok(counted);
    }
    let thoughts = output - counted.output_tokens;
    Ok(Usage {
        output_tokens: output,
        reasoning_tokens: counted.reasoning_tokens + thoughts,
        ..counted
    })
}

/// The address with a version at its end, as `/v1beta` or `/v1`; one that is there is kept. With `/openai`
/// the compatible API is written: taken as meant.
pub(super) fn versioned(base_url: &str) -> String {
    let base_url = base_url.strip_suffix("/openai").unwrap_or(base_url);
    let last = base_url.rsplit('/').next().unwrap_or_default();
    let is_version = last
        .strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if is_version {
        base_url.to_owned()
    } else {
        format!("{base_url}/{VERSION}")
    }
}

/// The model's name as the API wants it: `models/NAME`, where no collection (`tunedModels/NAME`) is
/// named. What a path cannot hold is escaped.
fn resource(model: &str) -> String {
    let mut path = String::from(if model.contains('/') { "" } else { "models/" });
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

fn body(call: &Call) -> Value {
    let mut body = Map::new();
    if let Some(system) = &call.system {
        let instruction = json!({"parts": [{"text": system}]});
        body.insert("systemInstruction".into(), instruction);
    }
    let contents = json!([{"role": "user", "parts": [{"text": call.prompt}]}]);
    body.insert("contents".into(), contents);
    let mut config = Map::new();
    if let Some(tokens) = call.max_tokens {
        config.insert("maxOutputTokens".into(), tokens.into());
    }
    if let Some(temperature) = call.temperature {
        config.insert("temperature".into(), temperature.into());
    }
    if !config.is_empty() {
        body.insert("generationConfig".into(), config.into());
    }
    body.into()
}

/// Reads answers. A stream is a sequence of documents of the same form, and ends where its
/// connection does.
#[derive(Debug, Default)]
pub(super) struct ContentReader {
    counts: Counts,
}

impl Reader for ContentReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        self.take_in(&event_json(event)?, partial)?;
        Ok(Flow::More)
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        self.take_in(document, partial)?;
        if !document["candidates"][0].is_object() {
            return Err(Fault::bad_answer("the answer has no `candidates[0]`"));
        }
        // A document is all there is, also where a compatible server gives no reason for its end.
        partial.is_complete = true;
        Ok(())
    }
}

impl ContentReader {
    fn take_in(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        partial.note_model(&document["modelVersion"]);
        let taken = take_candidate(&document["candidates"][0], partial);
        // After the text: the totals are of this piece as well.
        self.note_usage(&document["usageMetadata"], partial);
        taken?;
        if let Some(fault) = reported_fault(document) {
            return Err(fault);
        }
        // Set where the prompt was blocked; then there are no candidates:
        // <https://ai.google.dev/api/generate-content#PromptFeedback>.
        if let Some(reason) = document["promptFeedback"]["blockReason"].as_str() {
            return Err(Fault::bad_answer(format!(
                "the prompt was blocked by the provider: {reason}"
            )));
        }
        check_finish(partial)
    }

    fn note_usage(&mut self, usage: &Value, partial: &mut ResponseAccumulator) {
        if !counts_anything(usage) {
            return;
        }
        self.counts.overwrite(usage);
        let is_counted = |name: &str| usage[name].as_u64() > Some(0);
        let counts_answer = is_counted("candidatesTokenCount");
        partial.note_usage(self.counts.normal_usage(), counts_answer);
        if let (Some(counted), true) = (&mut partial.counted, is_counted("thoughtsTokenCount")) {
            counted.thinking = partial.thinking.len();
        }
    }
}

fn take_candidate(candidate: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    let parts = candidate["content"]["parts"].as_array();
    for part in parts.into_iter().flatten() {
        // "Indicates if the part is thought from the model": <https://ai.google.dev/api/caching#Part>.
        if part["thought"] == true {
            partial.note_thinking(&part["text"]);
        } else {
            partial.push(part["text"].as_str().unwrap_or_default())?;
        }
    }
    partial.note_finish(&candidate["finishReason"]);
    partial.is_complete |= candidate["finishReason"].is_string();
    Ok(())
}

/// An answer that was withheld (`SAFETY`, `RECITATION`, `PROHIBITED_CONTENT`, …) is none. What was cut
/// short by such a reason is an answer that says so in its reason, as at `MAX_TOKENS`. The reasons:
/// <https://ai.google.dev/api/generate-content#FinishReason>.
fn check_finish(partial: &ResponseAccumulator) -> Result<(), Fault> {
    match partial.finish_reason.as_deref() {
        None | Some("STOP" | "MAX_TOKENS" | "FINISH_REASON_UNSPECIFIED") => Ok(()),
        Some(reason) if partial.text.is_empty() => Err(Fault::bad_answer(format!(
            "the provider gave no text, because: {reason}"
        ))),
        Some(_) => Ok(()),
    }
}

/// The counts of an answer. In a stream each event has the totals until then, so each overwrites; a
/// zero is left out, as proto3 does, and never comes after something greater.
/// <https://ai.google.dev/api/generate-content#UsageMetadata>
#[derive(Debug, Default)]
struct Counts {
    /// "When `cachedContent` is set, this is still the total effective prompt size".
    prompt: Count,
    cached: Count,
    /// Tokens of the results of tools, which the model read as well; not within `prompt`.
    tool_prompt: Count,
    candidates: Count,
    /// Beside `candidates`: "Total token count for the generation request (prompt + thoughts +
    /// response candidates)", says the description of `totalTokenCount`.
    thoughts: Count,
    total: Count,
}

impl Counts {
    fn overwrite(&mut self, usage: &Value) {
        for (name, kept) in [
            ("promptTokenCount", &mut self.prompt),
            ("cachedContentTokenCount", &mut self.cached),
            ("toolUsePromptTokenCount", &mut self.tool_prompt),
            ("candidatesTokenCount", &mut self.candidates),
            ("thoughtsTokenCount", &mut self.thoughts),
            ("totalTokenCount", &mut self.total),
        ] {
            kept.overwrite(usage, name);
        }
    }

    fn normal_usage(&self) -> Usage {
        let parts = [
            self.prompt,
            self.cached,
            self.tool_prompt,
            self.candidates,
            self.thoughts,
        ];
        // The total alone does not say what to bill.
        if !Count::are_known(&parts) || self.total == Count::Impossible {
            return Usage::default();
        }
        let input = self.prompt.tokens() + self.tool_prompt.tokens();
        let (candidates, thoughts) = (self.candidates.tokens(), self.thoughts.tokens());
        // Servers that speak this API for other models may count thoughts within; then the total
        // shows it.
        let are_within = thoughts <= candidates && self.total == Count::Given(input + candidates);
        Usage {
            input_tokens: input,
            cached_input_tokens: self.cached.tokens().min(input),
            cache_write_tokens: 0,
            cache_write_1h_tokens: 0,
            output_tokens: candidates + if are_within { 0 } else { thoughts },
            reasoning_tokens: thoughts,
            source: UsageSource::Provider,
        }
    }
}

#[cfg(test)]
mod tests;
