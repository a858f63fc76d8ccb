//! OpenAI's chat completions, which many other servers also support:
//! <https://platform.openai.com/docs/api-reference/chat>. Pure: no network, no clock.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::billing::{Billing, TOOL_FEE};
use super::call::Call;
use super::config::{ProviderConfig, host};
use super::excerpt::one_line;
use super::failure::{FailureKind, Fault};
use super::framer::Event;
use super::wire::{
    BadCount, DONE, FINISH_CHARS_MAX, Flow, Header, Reader, ResponseAccumulator, Spellings,
    check_part, check_reported, count, counts_anything, event_json, finish_reason, is_counted,
    provider_message, spelled,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// Limits the choices of an answer that are distinguished: OpenAI's own limit.
const CHOICES_MAX: usize = 128;

pub(super) fn url(provider: &ProviderConfig) -> String {
    format!("{}/chat/completions", provider.base_url())
}

/// Returns the URL of the Responses API, or of another path.
pub(super) fn url_of(provider: &ProviderConfig, path: &str) -> String {
    format!("{}/{path}", provider.base_url())
}

/// Returns the header with the key.
pub(super) fn authorization(key: &Secret) -> (&'static str, Header) {
    let value = format!("Bearer {}", key.expose());
    ("authorization", Header::Secret(value))
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
pub(super) fn max_tokens_name(base_url: &str) -> &'static str {
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
    /// True for the predecessor of chat completions, whose choices have `text` in place of a
    /// message: <https://platform.openai.com/docs/api-reference/completions/object>.
    has_texts: bool,
}

impl ChatReader {
    /// Creates a reader for a server with its own way to count.
    pub(super) fn counting(usage: fn(&Value) -> Result<Usage, BadCount>) -> Self {
        Self { usage, choices: BTreeMap::new(), has_texts: false }
    }

    /// Creates a reader of completions without messages.
    pub(super) fn of_texts() -> Self {
        Self { has_texts: true, ..Self::default() }
    }

    /// Returns the message or delta of a choice.
    fn part<'a>(&self, choice: &'a Value, name: &str) -> &'a Value {
        if self.has_texts { choice } else { &choice[name] }
    }

    /// Overwrites the counts: servers send `null` in all chunks but one, or cumulative counts in
    /// every chunk. A missing, zero or impossible count does not replace a valid one.
    fn note_usage(&self, document: &Value, partial: &mut ResponseAccumulator) {
        let usage = usage_of(document);
        partial.billing.note_stated_cost(usage);
        note_media(usage, &mut partial.billing);
        note_tools(usage, &mut partial.billing);
        if !counts_anything(usage) {
            return;
        }
        if let Ok(usage) = (self.usage)(usage)
            && usage.source != UsageSource::None
        {
            partial.note_usage(usage, usage.output_tokens > 0);
        }
    }

    /// Notes whether a choice has ended: the stream is complete when all have. An ended choice
    /// stays ended, because some servers send further chunks for it.
    fn note_end(&mut self, choice: &Value) {
        let index = choice["index"].as_u64().unwrap_or(0);
        if self.choices.len() < CHOICES_MAX || self.choices.contains_key(&index) {
            let is_end = finish_reason(&choice["finish_reason"]).is_some();
            *self.choices.entry(index).or_default() |= is_end;
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
        if event.data.trim() == DONE {
            // Without any choice, the provider refused the request in some unknown way.
            partial.is_complete = !self.choices.is_empty();
            return Ok(Flow::End);
        }
        let chunk = event_json(event)?;
        note(&chunk, partial);
        // The chunk with the usage has no choices.
        let choices = chunk["choices"].as_array().map_or(&[][..], Vec::as_slice);
        for choice in choices {
            partial.note_finish(&choice["finish_reason"]);
            let delta = self.part(choice, "delta");
            partial.push(&text_of(delta))?;
            note_other_output(delta, partial);
            self.note_end(choice);
        }
        // Cumulative counts include this chunk's text.
        self.note_usage(&chunk, partial);
        check_reported(&chunk)?;
        check_error_event(event, &chunk)?;
        choices.iter().try_for_each(check_choice)?;
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
        let name = if self.has_texts { "text" } else { "message" };
        let has_part = |it: &&Value| match self.has_texts {
            true => it["text"].is_string(),
            false => it["message"].is_object(),
        };
        let Some(first) = choices.first().filter(has_part) else {
            choices.iter().try_for_each(check_choice)?;
            return Err(Fault::bad_answer(format!("the response has no `choices[0].{name}`")));
        };
        partial.note_finish(&first["finish_reason"]);
        partial.push(&text_of(self.part(first, name)))?;
        for choice in choices {
            note_other_output(self.part(choice, name), partial);
        }
        for other in &choices[1..] {
            partial.note_other_output(&text_of(self.part(other, name)).into());
        }
        self.note_usage(body, partial);
        choices.iter().try_for_each(check_choice)?;
        partial.is_complete = true;
        Ok(())
    }
}

/// Fails if a choice reports an error.
fn check_choice(choice: &Value) -> Result<(), Fault> {
    check_part(choice, &["finish_reason", "native_finish_reason"])?;
    check_part(&choice["delta"], &[])?;
    check_part(&choice["message"], &[])
}

/// Fails for an event that is named an error, whatever its data.
pub(super) fn check_error_event(event: &Event, chunk: &Value) -> Result<(), Fault> {
    if event.name != "error" {
        return Ok(());
    }
    let message = provider_message(chunk).unwrap_or_else(|| "unknown error".into());
    Err(Fault::new(FailureKind::Status, format!("reported an error: {message}")))
}

fn note(document: &Value, partial: &mut ResponseAccumulator) {
    partial.note_model(&document["model"]);
    partial.note_tier(&document["service_tier"]);
}

/// Notes output other than text in a message or a delta: thinking, and names and arguments of tool
/// calls.
fn note_other_output(message: &Value, partial: &mut ResponseAccumulator) {
    note_thinking(message, partial);
    note_special_output(message, &mut partial.billing);
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

/// Returns the usage of a response or a chunk. In a stream, Moonshot sends it within the choice
/// that ends (<https://github.com/earendil-works/pi/issues/2017>), and Groq in `x_groq`
/// (<https://github.com/vercel/ai/issues/1651>).
fn usage_of(document: &Value) -> &Value {
    let choices = document["choices"].as_array();
    let of_choices = choices.into_iter().flatten().map(|choice| &choice["usage"]);
    let mut others = std::iter::once(&document["x_groq"]["usage"]).chain(of_choices);
    let usage = &document["usage"];
    match counts_anything(usage) {
        true => usage,
        false => others.find(|usage| counts_anything(usage)).unwrap_or(usage),
    }
}

/// Notes counts of audio, images and video, which have other prices than text. Mistral counts
/// seconds of audio.
pub(super) fn note_media(usage: &Value, billing: &mut Billing) {
    for details in ["prompt_tokens_details", "completion_tokens_details"] {
        for kind in ["audio", "image", "video"] {
            if is_counted(&usage[details], &format!("{kind}_tokens")) {
                billing.note_unpriced(format!("{kind} tokens"));
            }
        }
    }
    if usage["prompt_audio_seconds"].as_f64() > Some(0.0) {
        billing.note_unpriced("audio tokens");
    }
}

/// Notes the uses of the server's own tools, which cost extra: searches of OpenRouter, Perplexity's
/// deep research and xAI. Their prices depend on the search engine or the model; these providers
/// state the whole cost.
pub(super) fn note_tools(usage: &Value, billing: &mut Billing) {
    let names = ["num_search_queries", "citation_tokens", "num_sources_used"];
    if names.iter().any(|name| is_counted(usage, name))
        || is_counted(usage, "num_server_side_tools_used")
        || counts_anything(&usage["server_tool_use"])
    {
        billing.note_unpriced(TOOL_FEE);
    }
    // Perplexity's fee depends on it; the price table has only that of `high`:
    // <https://docs.perplexity.ai/getting-started/pricing>.
    if let Some(size) = usage["search_context_size"].as_str().filter(|size| *size != "high") {
        let size = one_line(size, FINISH_CHARS_MAX);
        billing.note_unpriced(format!("search context {size}"));
    }
}

/// Notes output of a message or a delta that has other prices than text: images
/// (<https://openrouter.ai/docs/features/multimodal/image-generation>), audio, and search results,
/// whose searches cost extra and are not counted
/// (<https://platform.openai.com/docs/guides/tools-web-search>).
fn note_special_output(message: &Value, billing: &mut Billing) {
    let has_any = |name: &str| message[name].as_array().is_some_and(|list| !list.is_empty());
    if has_any("images") {
        billing.note_unpriced("image tokens");
    }
    if message["audio"].is_object() {
        billing.note_unpriced("audio tokens");
    }
    let annotations = message["annotations"].as_array();
    let is_cited = |annotation: &Value| annotation["type"] == "url_citation";
    // Groq lists the tools of its compound systems:
    // <https://console.groq.com/docs/compound/built-in-tools>.
    if annotations.is_some_and(|list| list.iter().any(is_cited)) || has_any("executed_tools") {
        billing.note_unpriced(TOOL_FEE);
    }
}

/// Notes the fee of OpenAI's models for web search in chat completions, which search before each
/// answer. The response does not count the searches:
/// <https://platform.openai.com/docs/guides/tools-web-search>.
pub(super) fn note_search_model(model: &str, billing: &mut Billing) {
    let name = model.rsplit('/').next().unwrap_or(model);
    let is_search = |name: &str| name.contains("-search-preview") || name.contains("-search-api");
    if name.starts_with("gpt-") && is_search(name) {
        billing.note_unpriced(TOOL_FEE);
    }
}

/// Returns the text of a message or a delta. Some servers send an array of parts instead. A model
/// that refuses may use only `refusal`.
fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => {
            let texts = [&message["refusal"], &message["text"]].into_iter();
            texts
                .filter_map(Value::as_str)
                .find(|text| !text.is_empty())
                .unwrap_or_default()
                .to_owned()
        }
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
    let reasoning = count(&usage["completion_tokens_details"], "reasoning_tokens")?.unwrap_or(0);
    let total = count(usage, "total_tokens")?;
    let output = completion + reasoning_beside(input, completion, reasoning, total);
    let [read, written, for_an_hour] = cache_tokens(usage)?;
    // Servers that pass on Anthropic's counts may exclude cached tokens, which the total shows.
    let is_beside = total == Some(input + output + read + written);
    let input = if is_beside { input + read + written } else { input };
    let read = read.min(input);
    let written = written.min(input - read);
    Ok(Usage {
        input_tokens: input,
        cached_input_tokens: read,
        cache_write_tokens: written,
        cache_write_1h_tokens: for_an_hour.min(written),
        output_tokens: output,
        reasoning_tokens: reasoning.min(output),
        source: UsageSource::Provider,
    })
}

/// Returns the prompt tokens that were read from a cache, written to one, and written for an hour.
/// Each has several names: OpenAI's and OpenRouter's `cached_tokens` and `cache_write_tokens`;
/// DeepSeek's (<https://api-docs.deepseek.com/api/create-chat-completion>); Moonshot's; Qwen's
/// (<https://github.com/BerriAI/litellm/issues/40090>); Anthropic's, which LiteLLM, new-api and
/// other proxies pass on at the top, within the details or both
/// (<https://github.com/envoyproxy/ai-gateway/issues/1719>).
fn cache_tokens(usage: &Value) -> Result<[u64; 3], BadCount> {
    let details = &usage["prompt_tokens_details"];
    let read = [
        (details, "cached_tokens"),
        (details, "cache_read_input_tokens"),
        (details, "cache_read_tokens"),
        (details, "cached_read_tokens"),
        (usage, "prompt_cache_hit_tokens"),
        (usage, "cached_tokens"),
        (usage, "cache_read_input_tokens"),
        (usage, "cache_read_tokens"),
    ];
    let written = [
        (details, "cache_write_tokens"),
        (details, "cache_creation_tokens"),
        (details, "cache_creation_input_tokens"),
        (details, "cached_creation_tokens"),
        (details, "cached_write_tokens"),
        (usage, "cache_creation_input_tokens"),
        (usage, "cache_creation_tokens"),
        (usage, "cache_write_tokens"),
        (usage, "cache_write_input_tokens"),
    ];
    let tokens = |spellings: &Spellings<'_>| {
        let (counts, name) = spelled(spellings);
        Ok(count(counts, name)?.unwrap_or(0))
    };
    let parts = [(usage, "cache_creation"), (details, "cache_creation")];
    let parts = parts.map(|(usage, name)| &usage[name]).into_iter();
    let parts = parts.chain([&details["cache_creation_token_details"], usage]);
    let (mut for_minutes, mut for_an_hour) = (Vec::new(), Vec::new());
    for part in parts {
        for_minutes.extend([
            (part, "ephemeral_5m_input_tokens"),
            (part, "claude_cache_creation_5_m_tokens"),
        ]);
        for_an_hour.extend([
            (part, "ephemeral_1h_input_tokens"),
            (part, "claude_cache_creation_1_h_tokens"),
        ]);
    }
    let for_an_hour = tokens(&for_an_hour)?;
    // Some servers have only the parts.
    let written = tokens(&written)?.max(tokens(&for_minutes)? + for_an_hour);
    Ok([tokens(&read)?, written, for_an_hour])
}

/// Returns the reasoning tokens that `completion_tokens` does not include. xAI counts them
/// separately (<https://docs.x.ai/docs/key-information/consumption-and-rate-limits>): then the
/// total shows it, or reasoning exceeds completion. It also does so at servers that count it
/// differently; then the total is that of prompt and completion
/// (<https://github.com/Kilo-Org/kilocode/issues/9168>).
fn reasoning_beside(input: u64, completion: u64, reasoning: u64, total: Option<u64>) -> u64 {
    let is_within = total == Some(input + completion);
    let is_beside = total == Some(input + completion + reasoning) || reasoning > completion;
    if is_beside && !is_within { reasoning } else { 0 }
}

#[cfg(test)]
mod tests;
