//! OpenAI's chat completions, which many other servers also support:
//! <https://platform.openai.com/docs/api-reference/chat>. Pure: no network, no clock.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::billing::{Billing, usd};
use super::call::Call;
use super::config::{ProviderConfig, host};
use super::failure::Fault;
use super::framer::Event;
use super::wire::{
    BadCount, Flow, Header, Reader, Request, ResponseAccumulator, check_reported, count,
    counts_anything, event_json, without_nulls,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// Limits the choices of an answer that are distinguished: OpenAI's own limit.
const CHOICES_MAX: usize = 128;

pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    Request {
        url: url(provider),
        headers: provider.key().map(authorization).into_iter().collect(),
        body: body(call, provider),
    }
}

pub(super) fn url(provider: &ProviderConfig) -> String {
    format!("{}/chat/completions", provider.base_url())
}

/// Returns the header with the key.
pub(super) fn authorization(key: &Secret) -> (&'static str, Header) {
    let value = format!("Bearer {}", key.expose());
    ("authorization", Header::Secret(value))
}

fn body(call: &Call, provider: &ProviderConfig) -> Value {
    let asks_for_usage = call.stream && provider.stream_usage;
    without_nulls(json!({
        "model": call.model,
        "messages": messages(call),
        max_tokens_name(provider.base_url()): call.max_tokens,
        "temperature": call.temperature,
        "stream": call.stream.then_some(true),
        "stream_options": asks_for_usage.then(|| json!({"include_usage": true})),
    }))
}

/// Returns the system text and the prompt as messages.
pub(super) fn messages(call: &Call) -> Value {
    let system = call.system.as_ref();
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let user = json!({"role": "user", "content": call.prompt});
    system.into_iter().chain([user]).collect()
}

/// Returns the name of the answer's limit. OpenAI's reference calls `max_tokens` "deprecated in
/// favor of `max_completion_tokens`, and not compatible with o-series models". Newer models reject
/// a request that has it, on OpenAI's own hosts and on Azure's; every model there accepts the new
/// name. Compatible servers (llama.cpp, older vLLM, many others) know only the old name, and would
/// ignore or reject the new.
fn max_tokens_name(base_url: &str) -> &'static str {
    let host = host(base_url);
    if host == "api.openai.com" || host.ends_with(".openai.azure.com") {
        "max_completion_tokens"
    } else {
        "max_tokens"
    }
}

#[derive(Debug)]
pub(super) struct ChatReader {
    /// Converts token counts to normal form.
    usage: fn(&Value) -> Result<Usage, BadCount>,
    /// The choices of a stream by index, and whether each has ended.
    choices: BTreeMap<u64, bool>,
}

impl ChatReader {
    /// Creates a reader for a server with its own way to count.
    pub(super) fn counting(usage: fn(&Value) -> Result<Usage, BadCount>) -> Self {
        Self { usage, choices: BTreeMap::new() }
    }

    /// Overwrites the counts: servers send `null` in all chunks but one, or cumulative counts in
    /// every chunk. A missing, zero or impossible count does not replace a valid one.
    fn note_usage(&self, document: &Value, partial: &mut ResponseAccumulator) {
        let usage = &document["usage"];
        note_stated_cost(usage, &mut partial.billing);
        if !counts_anything(usage) {
            return;
        }
        if has_audio(usage) {
            partial.billing.note_unpriced("audio tokens");
        }
        let Ok(mut usage) = (self.usage)(usage) else {
            return;
        };
        let known = partial.usage;
        let counts_answer = usage.output_tokens > 0;
        if !counts_answer {
            usage.output_tokens = known.output_tokens;
            usage.reasoning_tokens = known.reasoning_tokens;
        }
        if usage.input_tokens == 0 {
            usage.input_tokens = known.input_tokens;
            usage.cached_input_tokens = known.cached_input_tokens;
            usage.cache_write_tokens = known.cache_write_tokens;
        }
        if usage.source != UsageSource::None {
            partial.note_usage(usage, counts_answer);
        }
    }

    /// Notes whether a choice has ended: the stream is complete when all have. An ended choice
    /// stays ended, because some servers send further chunks for it.
    fn note_end(&mut self, choice: &Value) {
        let index = choice["index"].as_u64().unwrap_or(0);
        if self.choices.len() < CHOICES_MAX || self.choices.contains_key(&index) {
            *self.choices.entry(index).or_default() |= choice["finish_reason"].is_string();
        }
    }
}

impl Default for ChatReader {
    fn default() -> Self {
        Self::counting(normal_usage)
    }
}

impl Reader for ChatReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        if event.data.trim() == "[DONE]" {
            partial.is_complete = true;
            return Ok(Flow::End);
        }
        let chunk = event_json(event)?;
        note(&chunk, partial);
        check_reported(&chunk).inspect_err(|_| self.note_usage(&chunk, partial))?;
        // The chunk with the usage has no choices.
        let choices = chunk["choices"].as_array().map_or(&[][..], Vec::as_slice);
        for choice in choices {
            partial.note_finish(&choice["finish_reason"]);
            partial.push(&text_of(&choice["delta"]))?;
            note_other_output(&choice["delta"], partial);
            self.note_end(choice);
        }
        // Cumulative counts include this chunk's text.
        self.note_usage(&chunk, partial);
        // The usage follows, so continue until `[DONE]` or the end of the stream.
        if !choices.is_empty() {
            partial.is_complete = self.choices.values().all(|has_ended| *has_ended);
        }
        Ok(Flow::More)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        note(body, partial);
        self.note_usage(body, partial);
        check_reported(body)?;
        let choices = body["choices"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(first) = choices.first().filter(|it| it["message"].is_object()) else {
            return Err(Fault::bad_answer("the response has no `choices[0].message`"));
        };
        partial.note_finish(&first["finish_reason"]);
        partial.push(&text_of(&first["message"]))?;
        for choice in choices {
            note_other_output(&choice["message"], partial);
        }
        for other in &choices[1..] {
            partial.note_other_output(&text_of(&other["message"]).into());
        }
        self.note_usage(body, partial);
        partial.is_complete = true;
        Ok(())
    }
}

fn note(document: &Value, partial: &mut ResponseAccumulator) {
    partial.note_model(&document["model"]);
    partial.note_tier(&document["service_tier"]);
}

/// Notes output other than text in a message or a delta: thinking, and names and arguments of tool
/// calls.
fn note_other_output(message: &Value, partial: &mut ResponseAccumulator) {
    note_thinking(message, partial);
    let calls = message["tool_calls"].as_array();
    for call in calls.into_iter().flatten() {
        let (function, custom) = (&call["function"], &call["custom"]);
        for part in [&function["name"], &function["arguments"], &custom["name"], &custom["input"]] {
            partial.note_other_output(part);
        }
    }
    // The predecessor of `tool_calls`.
    for name in ["name", "arguments"] {
        partial.note_other_output(&message["function_call"][name]);
    }
}

/// Notes the visible thinking of compatible servers: `reasoning_content` of DeepSeek
/// (<https://api-docs.deepseek.com/guides/reasoning_model>), vLLM and xAI, `reasoning` of
/// OpenRouter (<https://openrouter.ai/docs/use-cases/reasoning-tokens>) and Groq.
fn note_thinking(message: &Value, partial: &mut ResponseAccumulator) {
    let shown = ["reasoning_content", "reasoning"].map(|name| &message[name]);
    if let Some(thinking) = shown.into_iter().find(|value| value.is_string()) {
        partial.note_thinking(thinking);
    }
}

/// Notes the cost that the usage states: a number at OpenRouter
/// (<https://openrouter.ai/docs/use-cases/usage-accounting>), xAI and LiteLLM, an object at
/// Perplexity (<https://docs.perplexity.ai/api-reference/chat-completions-post>). If the user's own
/// key is used at OpenRouter, the cost is its fee, and the upstream's bill is added; some servers
/// state the same sum as both.
fn note_stated_cost(usage: &Value, billing: &mut Billing) {
    let cost = match &usage["cost"] {
        Value::Object(parts) => parts.get("total_cost").unwrap_or(&Value::Null),
        cost => cost,
    };
    billing.note_stated_cost(cost);
    if usage["is_byok"] == true
        && let Some(upstream) = usd(&usage["cost_details"]["upstream_inference_cost"])
        && let Some(mut sum) = usd(cost).filter(|fee| *fee != upstream)
    {
        sum += upstream;
        billing.stated_cost = Some(sum);
    }
}

/// Returns whether the usage includes audio, which has other prices than text.
fn has_audio(usage: &Value) -> bool {
    ["prompt_tokens_details", "completion_tokens_details"]
        .iter()
        .any(|details| usage[details]["audio_tokens"].as_u64() > Some(0))
}

/// Returns the text of a message or a delta. Some servers send an array of parts instead. A model
/// that refuses may use only `refusal`.
fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => message["refusal"].as_str().unwrap_or_default().to_owned(),
    }
}

/// Returns token counts in normal form. `prompt_tokens` includes cached ones and
/// `completion_tokens` includes reasoning:
/// <https://platform.openai.com/docs/api-reference/chat/object>.
pub(super) fn normal_usage(usage: &Value) -> Result<Usage, BadCount> {
    let input = count(usage, "prompt_tokens")?;
    let completion = count(usage, "completion_tokens")?;
    if input.is_none() && completion.is_none() {
        return Ok(Usage::default());
    }
    // Servers that omit zeros omit one of them.
    let (input, completion) = (input.unwrap_or(0), completion.unwrap_or(0));
    let details = &usage["prompt_tokens_details"];
    let cached = cached_tokens(usage)?.min(input);
    // An OpenRouter extension; its `prompt_tokens` include these as well.
    let written = count(details, "cache_write_tokens")?.unwrap_or(0).min(input - cached);
    let reasoning = count(&usage["completion_tokens_details"], "reasoning_tokens")?.unwrap_or(0);
    let total = count(usage, "total_tokens")?;
    let output = completion + reasoning_beside(input, completion, reasoning, total);
    Ok(Usage {
        input_tokens: input,
        cached_input_tokens: cached,
        cache_write_tokens: written,
        cache_write_1h_tokens: 0,
        output_tokens: output,
        reasoning_tokens: reasoning,
        source: UsageSource::Provider,
    })
}

/// Returns the number of cached prompt tokens: under OpenAI's name, or else under that of DeepSeek
/// (<https://api-docs.deepseek.com/api/create-chat-completion>) or Moonshot.
fn cached_tokens(usage: &Value) -> Result<u64, BadCount> {
    let places = [
        (&usage["prompt_tokens_details"], "cached_tokens"),
        (usage, "prompt_cache_hit_tokens"),
        (usage, "cached_tokens"),
    ];
    for (counts, name) in places {
        if let Some(tokens) = count(counts, name)? {
            return Ok(tokens);
        }
    }
    Ok(0)
}

/// Returns the reasoning tokens that `completion_tokens` does not include. xAI counts them
/// separately (<https://docs.x.ai/docs/key-information/consumption-and-rate-limits>): then the
/// total shows it, or reasoning exceeds completion.
fn reasoning_beside(input: u64, completion: u64, reasoning: u64, total: Option<u64>) -> u64 {
    let is_beside = total == Some(input + completion + reasoning) || reasoning > completion;
    if is_beside { reasoning } else { 0 }
}

#[cfg(test)]
mod tests;
