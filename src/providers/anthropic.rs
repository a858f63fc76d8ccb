//! Anthropic's messages: <https://docs.anthropic.com/en/api/messages>, streamed as in
//! <https://docs.anthropic.com/en/api/messages-streaming>. Pure: no network, no clock.

use serde_json::{Map, Value, json};

use super::call::Call;
use super::config::ProviderConfig;
use super::failure::{FailureKind, Fault};
use super::framer::Event;
use super::wire::{
    Count, Flow, Header, Reader, Request, ResponseAccumulator, counts_anything, event_json,
    reported_fault,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// The version of the API that this module speaks; the header is required.
const VERSION: &str = "2023-06-01";

/// The limit of an answer if the call has none, tokens: the API requires one. Every model allows
/// this.
pub(super) const MAX_TOKENS_DEFAULT: u32 = 4096;

pub(super) fn request(call: &Call, provider: &ProviderConfig) -> Request {
    let key = provider.key().map(api_key);
    Request {
        url: url(provider),
        headers: key.into_iter().chain([version()]).collect(),
        body: body(call),
    }
}

pub(super) fn url(provider: &ProviderConfig) -> String {
    let base_url = provider.base_url();
    // Compatible servers and OpenAI's own URL are written with `/v1`.
    let base_url = base_url.strip_suffix("/v1").unwrap_or(base_url);
    format!("{base_url}/v1/messages")
}

pub(super) fn api_key(key: &Secret) -> (&'static str, Header) {
    ("x-api-key", Header::Secret(key.expose().to_owned()))
}

pub(super) fn version() -> (&'static str, Header) {
    ("anthropic-version", Header::Plain(VERSION.into()))
}

fn body(call: &Call) -> Value {
    let mut body = Map::new();
    body.insert("model".into(), call.model.clone().into());
    body.insert(
        "max_tokens".into(),
        call.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).into(),
    );
    if let Some(system) = &call.system {
        let system = match call.cache_marks.system && !is_blank(system) {
            true => json!([marked(system)]),
            false => system.clone().into(),
        };
        body.insert("system".into(), system);
    }
    body.insert(
        "messages".into(),
        json!([{"role": "user", "content": content(call)}]),
    );
    if let Some(temperature) = call.temperature {
        body.insert("temperature".into(), temperature.into());
    }
    if call.stream {
        body.insert("stream".into(), true.into());
    }
    body.into()
}

/// The prompt; its marked beginning, if there is one, in a block of its own. The API refuses blocks
/// without anything but white space. What is shorter than a model caches (from 1,024 tokens on) is
/// taken without.
fn content(call: &Call) -> Value {
    match call.prompt.split_at_checked(call.cache_marks.prompt_bytes) {
        Some((beginning, "")) if !is_blank(beginning) => json!([marked(beginning)]),
        Some((beginning, rest)) if !is_blank(beginning) && !is_blank(rest) => {
            json!([marked(beginning), {"type": "text", "text": rest}])
        }
        _ => call.prompt.clone().into(),
    }
}

/// A text up to whose end the request is to be cached:
/// <https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>. There may be four of them.
fn marked(text: &str) -> Value {
    json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

#[derive(Debug, Default)]
pub(super) struct MessageReader {
    counts: Counts,
}

impl Reader for MessageReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let data = event_json(event)?;
        // The name of the event stands in its data as well; some proxies keep only one of them.
        match data["type"].as_str().unwrap_or(&event.name) {
            "message_start" => {
                let message = &data["message"];
                partial.note_model(&message["model"]);
                // That it counts an output of 1 says nothing: there is none yet.
                self.note_usage(&message["usage"], false, partial);
            }
            "content_block_start" => note_block(&data["content_block"], partial)?,
            "content_block_delta" => note_block(&data["delta"], partial)?,
            "message_delta" => {
                partial.note_finish(&data["delta"]["stop_reason"]);
                self.note_usage(&data["usage"], true, partial);
            }
            "message_stop" => {
                partial.is_complete = true;
                return Ok(Flow::End);
            }
            "error" => return Err(fault_of(&data)),
            // `ping`, `content_block_stop`, and what may be added: to be ignored, says the API.
            _ => {}
        }
        Ok(Flow::More)
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        partial.note_model(&document["model"]);
        self.note_usage(&document["usage"], true, partial);
        if document["type"] == "error" || document.get("error").is_some_and(|e| !e.is_null()) {
            return Err(fault_of(document));
        }
        let Some(blocks) = document["content"].as_array() else {
            return Err(Fault::bad_answer("the answer has no `content`"));
        };
        for block in blocks {
            note_block(block, partial)?;
        }
        self.note_usage(&document["usage"], true, partial);
        partial.note_finish(&document["stop_reason"]);
        partial.is_complete = true;
        Ok(())
    }
}

impl MessageReader {
    fn note_usage(&mut self, usage: &Value, is_behind: bool, partial: &mut ResponseAccumulator) {
        // Fast mode costs more: <https://platform.claude.com/docs/en/build-with-claude/fast-mode>.
        for tier in ["service_tier", "speed"] {
            partial.note_tier(&usage[tier]);
        }
        if !counts_anything(usage) {
            return;
        }
        self.counts.overwrite(usage);
        let counts = self.counts.normal_usage();
        if is_behind && usage["output_tokens"].is_u64() {
            partial.note_usage(counts, true);
        } else {
            partial.usage = counts;
        }
    }
}

/// Reads how many tokens a message has: <https://platform.claude.com/docs/en/api/messages-count-tokens>.
#[derive(Debug)]
pub(super) struct CountReader;

impl Reader for CountReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("a number of tokens came as a stream"))
    }

    fn document(
        &mut self,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        if !document["input_tokens"].is_u64() {
            return Err(Fault::bad_answer("the answer has no `input_tokens`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Takes in a block or its delta. Thinking and the use of tools are billed as a part of the answer, but
/// are no text of it.
fn note_block(block: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    match block["type"].as_str() {
        Some("text" | "text_delta") => partial.push(block["text"].as_str().unwrap_or_default()),
        Some("thinking" | "thinking_delta") => {
            partial.note_thinking(&block["thinking"]);
            Ok(())
        }
        Some("tool_use" | "server_tool_use" | "mcp_tool_use") => {
            partial.note_beside(&block["name"]);
            // Of a stream it is empty, and comes in pieces.
            if block["input"].as_object().is_some_and(|it| !it.is_empty()) {
                partial.note_beside(&block["input"]);
            }
            Ok(())
        }
        Some("input_json_delta") => {
            partial.note_beside(&block["partial_json"]);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn fault_of(document: &Value) -> Fault {
    let unknown = || {
        Fault::new(
            FailureKind::Status,
            "reported an error without saying which",
        )
    };
    reported_fault(document).unwrap_or_else(unknown)
}

/// The counts of a message. Those of `message_delta` are cumulative ("The token counts shown in
/// the usage field of the message_delta event are cumulative"), so each one overwrites.
#[derive(Debug, Default)]
struct Counts {
    /// Neither read from nor written to the cache.
    input: Count,
    cache_read: Count,
    cache_write: Count,
    /// Of `cache_write`, those that are kept for an hour.
    cache_write_1h: Count,
    output: Count,
    /// Of `output`, what was thought.
    thinking: Count,
}

impl Counts {
    fn overwrite(&mut self, usage: &Value) {
        let by_age = &usage["cache_creation"];
        let by_kind = &usage["output_tokens_details"];
        for (usage, name, kept) in [
            (usage, "input_tokens", &mut self.input),
            (usage, "cache_read_input_tokens", &mut self.cache_read),
            (usage, "cache_creation_input_tokens", &mut self.cache_write),
            (
                by_age,
                "ephemeral_1h_input_tokens",
                &mut self.cache_write_1h,
            ),
            (usage, "output_tokens", &mut self.output),
            (by_kind, "thinking_tokens", &mut self.thinking),
        ] {
            kept.overwrite(usage, name);
        }
    }

    /// The three kinds of input are apart from each other: "Total input tokens in a request is
    /// the summation of `input_tokens`, `cache_creation_input_tokens`, and
    /// `cache_read_input_tokens`". `output_tokens` includes thinking.
    fn normal_usage(&self) -> Usage {
        let all = [
            self.input,
            self.cache_read,
            self.cache_write,
            self.cache_write_1h,
            self.output,
            self.thinking,
        ];
        if !Count::are_known(&all) {
            return Usage::default();
        }
        let (read, written) = (self.cache_read.tokens(), self.cache_write.tokens());
        Usage {
            input_tokens: self.input.tokens() + read + written,
            cached_input_tokens: read,
            cache_write_tokens: written,
            cache_write_1h_tokens: self.cache_write_1h.tokens().min(written),
            output_tokens: self.output.tokens(),
            reasoning_tokens: self.thinking.tokens().min(self.output.tokens()),
            source: UsageSource::Provider,
        }
    }
}

#[cfg(test)]
mod tests;
