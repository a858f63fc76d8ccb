//! Ollama's own API: `/api/chat` in <https://github.com/ollama/ollama/blob/main/docs/api.md>. Pure:
//! no network, no clock.
//!
//! Calls do not use its OpenAI-compatible API (<https://docs.ollama.com/api/openai-compatibility>),
//! which has no `options` and reports an uncounted prompt as 0 tokens. The gateway's clients use
//! that API, or the Anthropic-compatible one
//! (<https://docs.ollama.com/api/anthropic-compatibility>).

use serde_json::{Value, json};

use super::call::Call;
use super::config::ProviderConfig;
use super::failure::Fault;
use super::framer::{Event, Framing};
use super::openai;
use super::wire::{
    Counts, Flow, Reader, Request, ResponseAccumulator, check_part, check_reported, event_json,
    without_nulls,
};
use crate::event::{Usage, UsageSource};

/// Returns the URL without `/v1` of the compatible APIs or `/api` of this one.
fn base_url(provider: &ProviderConfig) -> &str {
    let base_url = provider.base_url();
    let mut paths = ["/v1", "/api"].iter();
    let stripped = paths.find_map(|path| base_url.strip_suffix(path));
    stripped.unwrap_or(base_url)
}

/// Returns the URL of OpenAI's protocol.
pub(super) fn chat_url(provider: &ProviderConfig) -> String {
    format!("{}/v1/chat/completions", base_url(provider))
}

/// Returns the URL of OpenAI's Responses API, which stores nothing here.
pub(super) fn responses_url(provider: &ProviderConfig) -> String {
    format!("{}/v1/responses", base_url(provider))
}

/// Returns the URL of Anthropic's protocol.
pub(super) fn messages_url(provider: &ProviderConfig) -> String {
    format!("{}/v1/messages", base_url(provider))
}

/// Returns the URL of an operation of this API.
pub(super) fn own_url(provider: &ProviderConfig, operation: &str) -> String {
    format!("{}/api/{operation}", base_url(provider))
}

/// Returns a request. <https://docs.ollama.com/cloud> and proxies need a key.
pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let authorization = provider.key().map(openai::authorization);
    Request {
        url: own_url(provider, "chat"),
        headers: authorization.into_iter().collect(),
        body: body(call),
    }
}

fn body(call: &Call) -> Value {
    let options = without_nulls(json!({
        "num_predict": call.max_tokens,
        "temperature": call.temperature,
    }));
    without_nulls(json!({
        "model": call.model,
        "messages": openai::messages(call),
        // The API streams by default.
        "stream": call.stream,
        "options": Some(options).filter(|options| *options != json!({})),
    }))
}

/// Stateless: the counts arrive once, with the last object.
#[derive(Debug, Default)]
pub(super) struct ChatReader;

impl Reader for ChatReader {
    fn framing(&self) -> Framing {
        Framing::NdJson
    }

    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let part = event_json(event)?;
        read_part(&part, &part["message"], "content", partial)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        read_part(body, &body["message"], "content", partial)?;
        if !body["message"].is_object() {
            return Err(Fault::bad_answer("the response has no `message`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Reads `/api/generate`, whose parts have the text beside the counts.
#[derive(Debug, Default)]
pub(super) struct GenerateReader;

impl Reader for GenerateReader {
    fn framing(&self) -> Framing {
        Framing::NdJson
    }

    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let part = event_json(event)?;
        read_part(&part, &part, "response", partial)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        read_part(body, body, "response", partial)?;
        if !body["response"].is_string() {
            return Err(Fault::bad_answer("the response has no `response`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Reads `/api/embed`, and `/api/embeddings`, which counts no tokens.
#[derive(Debug, Default)]
pub(super) struct EmbeddingReader;

impl Reader for EmbeddingReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected embeddings, received a stream"))
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["model"]);
        if let Some(usage) = normal_usage(body) {
            partial.note_usage(usage, true);
        }
        check_reported(body)?;
        if !body["embedding"].is_array() && !body["embeddings"].is_array() {
            return Err(Fault::bad_answer("the response has no `embedding` or `embeddings`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Reads an object of an answer, whose text is in the field `name` of `message`.
fn read_part(
    document: &Value,
    message: &Value,
    name: &str,
    partial: &mut ResponseAccumulator,
) -> Result<Flow, Fault> {
    partial.note_model(&document["model"]);
    partial.note_thinking(&message["thinking"]);
    partial.note_other_output(&message["tool_calls"]);
    let pushed = partial.push(message[name].as_str().unwrap_or_default());
    let usage = normal_usage(document);
    if let Some(usage) = usage {
        partial.note_usage(usage, usage.output_tokens > 0);
    }
    pushed?;
    check_reported(document)?;
    if document["done"] != true {
        return Ok(Flow::More);
    }
    partial.note_finish(&document["done_reason"]);
    check_part(document, &["done_reason"])?;
    // An end without any message or count is no answer.
    partial.is_complete = message.is_object() || usage.is_some() || partial.has_any();
    Ok(Flow::End)
}

/// Returns the counts of the last object, if any. `eval_count` includes thinking, which has no
/// separate count.
///
/// A server with the whole prompt in its cache omits `prompt_eval_count`
/// (<https://github.com/ollama/ollama/issues/2068>, versions up to 0.1.3x), or reports 0. No prompt
/// has 0 tokens, so 0 means unknown, and `estimate` provides the count.
fn normal_usage(document: &Value) -> Option<Usage> {
    let mut counts = Counts::default();
    counts.overwrite([(document, "prompt_eval_count"), (document, "eval_count")]);
    let usage = |[input_tokens, output_tokens]: [u64; 2]| Usage {
        input_tokens,
        output_tokens,
        source: UsageSource::Provider,
        ..Usage::default()
    };
    (!counts.are_missing()).then(|| counts.tokens().map(usage).unwrap_or_default())
}

#[cfg(test)]
mod tests;
