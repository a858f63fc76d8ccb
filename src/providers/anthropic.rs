//! Anthropic's messages: <https://docs.anthropic.com/en/api/messages>, streamed as in
//! <https://docs.anthropic.com/en/api/messages-streaming>. Pure: no network, no clock.

use serde_json::{Value, json};

use super::call::{ANSWER_TOKENS_ASSUMED, Call};
use super::config::ProviderConfig;
use super::failure::{FailureKind, Fault};
use super::framer::Event;
use super::wire::{
    Counts, Flow, Header, Reader, Request, ResponseAccumulator, check_reported, counts_anything,
    event_json, without_nulls,
};
use crate::event::{Usage, UsageSource};
use crate::secret::Secret;

/// The API version of this module; the header is required.
const VERSION: &str = "2023-06-01";

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
    // Users often write the URLs of compatible servers and of OpenAI with `/v1`.
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
    let system = call.system.as_ref();
    let system = system.map(|system| match call.cache_marks.system && !is_blank(system) {
        true => json!([marked(system)]),
        false => json!(system),
    });
    without_nulls(json!({
        "model": call.model,
        "max_tokens": call.max_tokens.unwrap_or(ANSWER_TOKENS_ASSUMED),
        "system": system,
        "messages": [{"role": "user", "content": content(call)}],
        "temperature": call.temperature,
        "stream": call.stream.then_some(true),
    }))
}

/// Returns the prompt, with its marked prefix, if any, in a separate block. The API rejects blank
/// blocks, and ignores marks on texts shorter than a model's minimum (1,024 tokens or more).
fn content(call: &Call) -> Value {
    match call.prompt.split_at_checked(call.cache_marks.prompt_bytes) {
        Some((beginning, "")) if !is_blank(beginning) => json!([marked(beginning)]),
        Some((beginning, rest)) if !is_blank(beginning) && !is_blank(rest) => {
            json!([marked(beginning), {"type": "text", "text": rest}])
        }
        _ => call.prompt.clone().into(),
    }
}

/// Returns a text with a mark at its end, up to which the request is cached. At most four marks are
/// allowed: <https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>.
fn marked(text: &str) -> Value {
    json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

#[derive(Debug, Default)]
pub(super) struct MessageReader {
    /// Uncached input, cache reads, cache writes, one-hour cache writes, output, and thinking
    /// within the output. Counts in `message_delta` are cumulative ("The token counts shown in the
    /// usage field of the message_delta event are cumulative"), so each one overwrites the
    /// previous.
    counts: Counts<6>,
}

impl Reader for MessageReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let data = event_json(event)?;
        // The event's name is also in its data; some proxies keep only one of them.
        match data["type"].as_str().unwrap_or(&event.name) {
            "message_start" => {
                let message = &data["message"];
                partial.note_model(&message["model"]);
                // Its output count of 1 is meaningless: there is no output yet.
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
            // The API requires clients to ignore `ping`, `content_block_stop` and unknown events.
            _ => {}
        }
        Ok(Flow::More)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        partial.note_model(&body["model"]);
        self.note_usage(&body["usage"], true, partial);
        if body["type"] == "error" || !body["error"].is_null() {
            return Err(fault_of(body));
        }
        let Some(blocks) = body["content"].as_array() else {
            return Err(Fault::bad_answer("the response has no `content`"));
        };
        for block in blocks {
            note_block(block, partial)?;
        }
        self.note_usage(&body["usage"], true, partial);
        partial.note_finish(&body["stop_reason"]);
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
        self.counts.overwrite([
            (usage, "input_tokens"),
            (usage, "cache_read_input_tokens"),
            (usage, "cache_creation_input_tokens"),
            (&usage["cache_creation"], "ephemeral_1h_input_tokens"),
            (usage, "output_tokens"),
            (&usage["output_tokens_details"], "thinking_tokens"),
        ]);
        let counts = self.counts.tokens().map_or_else(Usage::default, normal_usage);
        if is_behind && usage["output_tokens"].is_u64() {
            partial.note_usage(counts, true);
        } else {
            partial.usage = counts;
        }
    }
}

/// Reads a count of tokens: <https://platform.claude.com/docs/en/api/messages-count-tokens>.
#[derive(Debug)]
pub(super) struct CountReader;

impl Reader for CountReader {
    fn event(&mut self, _: &Event, _: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        Err(Fault::bad_answer("expected a token count, received a stream"))
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        if !body["input_tokens"].is_u64() {
            return Err(Fault::bad_answer("the response has no `input_tokens`"));
        }
        partial.is_complete = true;
        Ok(())
    }
}

/// Notes a block or its delta. Thinking and tool use are billed as parts of the answer, but are not
/// in its text.
fn note_block(block: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    match block["type"].as_str() {
        Some("text" | "text_delta") => partial.push(block["text"].as_str().unwrap_or_default())?,
        Some("thinking" | "thinking_delta") => partial.note_thinking(&block["thinking"]),
        Some("tool_use" | "server_tool_use" | "mcp_tool_use") => {
            partial.note_other_output(&block["name"]);
            // In a stream the input is empty here, and follows in pieces.
            if block["input"].as_object().is_some_and(|it| !it.is_empty()) {
                partial.note_other_output(&block["input"]);
            }
        }
        Some("input_json_delta") => partial.note_other_output(&block["partial_json"]),
        _ => {}
    }
    Ok(())
}

fn fault_of(document: &Value) -> Fault {
    let unknown = "reported an unknown error";
    let reported = check_reported(document).err();
    reported.unwrap_or_else(|| Fault::new(FailureKind::Status, unknown))
}

/// Converts the counts to normal form. The three kinds of input exclude each other: "Total input
/// tokens in a request is the summation of `input_tokens`, `cache_creation_input_tokens`, and
/// `cache_read_input_tokens`". `output_tokens` includes thinking.
fn normal_usage([input, read, written, for_an_hour, output, thinking]: [u64; 6]) -> Usage {
    Usage {
        input_tokens: input + read + written,
        cached_input_tokens: read,
        cache_write_tokens: written,
        cache_write_1h_tokens: for_an_hour.min(written),
        output_tokens: output,
        reasoning_tokens: thinking.min(output),
        source: UsageSource::Provider,
    }
}

#[cfg(test)]
mod tests;
