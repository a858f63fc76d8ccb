//! OpenAI's Responses API, which Ollama and other servers also support:
//! <https://platform.openai.com/docs/api-reference/responses>. Pure: no network, no clock.

use serde_json::Value;

use super::billing::{Billing, TOOL_FEE};
use super::failure::{FailureKind, Fault};
use super::framer::Event;
use super::object::ProviderObject;
use super::openai;
use super::wire::{
    DONE, Flow, Reader, ResponseAccumulator, check_reported, counts_anything, event_json,
    is_counted, provider_message,
};
use crate::event::UsageSource;

/// Calls of tools that run at the client, or that cost only tokens. MCP tools have no fee
/// (<https://platform.openai.com/docs/guides/tools-connectors-mcp>).
const CALLS_WITHOUT_FEE: [&str; 7] = [
    "function_call",
    "custom_tool_call",
    "computer_call",
    "local_shell_call",
    "apply_patch_call",
    "mcp_call",
    "tool_search_call",
];
/// The names of counts in this API, and in chat completions.
const COUNTS: [(&str, &str); 4] = [
    ("input_tokens", "prompt_tokens"),
    ("output_tokens", "completion_tokens"),
    ("input_tokens_details", "prompt_tokens_details"),
    ("output_tokens_details", "completion_tokens_details"),
];

/// Reads the answer to a new response or a compaction.
#[derive(Debug, Default)]
pub(super) struct ResponseReader {
    /// True after a delta of the current item.
    has_delta: bool,
}

impl Reader for ResponseReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        // Some servers end streams of every API like those of chat completions.
        if event.data.trim() == DONE {
            return Ok(Flow::End);
        }
        let document = event_json(event)?;
        let kind = document["type"].as_str().unwrap_or(&event.name);
        if kind == "error" || event.name == "error" {
            check_reported(&document)?;
            let message = provider_message(&document).unwrap_or_else(|| "unknown error".into());
            return Err(reported(&message));
        }
        let status = match kind {
            "response.completed" => "completed",
            "response.incomplete" => "incomplete",
            "response.failed" => "failed",
            "response.cancelled" => "cancelled",
            _ => {
                self.note_event(kind, &document, partial)?;
                check_reported(&document)?;
                return Ok(Flow::More);
            }
        };
        finish(status, &document["response"], partial)?;
        Ok(Flow::End)
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        note_response(body, partial);
        if !body["output"].is_array() {
            note_usage(body, partial);
            check_reported(body)?;
            return Err(Fault::bad_answer("the response has no `output`"));
        }
        match body["status"].as_str().unwrap_or("completed") {
            // A background response continues at the provider.
            "queued" | "in_progress" => {
                check_reported(body)?;
                partial.is_complete = true;
                Ok(())
            }
            status => finish(status, body, partial),
        }
    }
}

impl ResponseReader {
    /// Notes an event before the last one.
    fn note_event(
        &mut self,
        kind: &str,
        document: &Value,
        partial: &mut ResponseAccumulator,
    ) -> Result<(), Fault> {
        let delta = &document["delta"];
        match kind {
            "response.created" | "response.queued" | "response.in_progress" => {
                note_response(&document["response"], partial);
            }
            "response.output_item.added" => {
                self.has_delta = false;
                partial.note_other_output(&document["item"]["name"]);
                note_tool(&document["item"], &mut partial.billing);
            }
            "response.output_item.done" => {
                let item = &document["item"];
                note_tool(item, &mut partial.billing);
                if !self.has_delta {
                    note_output(item, partial)?;
                }
            }
            "response.output_text.delta" | "response.refusal.delta" => {
                self.has_delta = true;
                partial.push(delta.as_str().unwrap_or_default())?;
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.has_delta = true;
                partial.note_thinking(delta);
            }
            "response.audio.delta" => partial.billing.note_unpriced("audio tokens"),
            _ if kind.ends_with(".delta") && delta.is_string() => {
                self.has_delta = true;
                partial.note_other_output(delta);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Notes the last state of a response. Fails if it failed or was cancelled.
fn finish(status: &str, response: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    note_response(response, partial);
    if let Some(object) = &mut partial.object {
        object.status = Some(status.to_owned());
    }
    let items = response["output"].as_array().into_iter().flatten();
    let is_streamed = partial.has_any();
    for item in items {
        note_tool(item, &mut partial.billing);
        if !is_streamed {
            partial.note_other_output(&item["name"]);
            note_output(item, partial)?;
        }
    }
    note_usage(response, partial);
    match status {
        "failed" => {
            check_reported(response)?;
            Err(reported("the response has failed"))
        }
        "cancelled" => Err(Fault::new(FailureKind::Cancelled, "the response was cancelled")),
        _ => {
            check_reported(response)?;
            partial.note_finish(&Value::from(status));
            partial.note_finish(&response["incomplete_details"]["reason"]);
            partial.is_complete = true;
            Ok(())
        }
    }
}

fn note_response(response: &Value, partial: &mut ResponseAccumulator) {
    partial.note_model(&response["model"]);
    // The tier that was requested gives way to the one that was used.
    partial.billing.forget_tier();
    partial.note_tier(&response["service_tier"]);
    if let Some(object) = ProviderObject::read(response) {
        partial.object = Some(object);
    }
}

/// Notes the counts, which have other names than those of chat completions, and the same meaning:
/// the input includes cached tokens, and the output includes reasoning.
fn note_usage(response: &Value, partial: &mut ResponseAccumulator) {
    let mut usage = response["usage"].clone();
    let Some(counts) = usage.as_object_mut() else {
        return;
    };
    for (name, chat_name) in COUNTS {
        if let Some(value) = counts.remove(name) {
            counts.insert(chat_name.to_owned(), value);
        }
    }
    partial.billing.note_stated_cost(&usage);
    // Named by OpenAI's SDK; only the price of shorter ones is known.
    let writes = &usage["prompt_tokens_details"]["cache_write_tokens_details"];
    if is_counted(writes, "ttl_12h_tokens") {
        partial.billing.note_unpriced("12-hour cache writes");
    }
    openai::note_media(&usage, &mut partial.billing);
    openai::note_tools(&usage, &mut partial.billing);
    if counts_anything(&usage)
        && let Ok(usage) = openai::normal_usage(&usage)
        && usage.source != UsageSource::None
    {
        partial.note_usage(usage, usage.output_tokens > 0);
    }
}

/// Notes the text of an item that no delta contained.
fn note_output(item: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
    let parts = |name: &str| item[name].as_array().into_iter().flatten();
    for part in parts("content") {
        match part["type"].as_str() {
            Some("reasoning_text") => partial.note_thinking(&part["text"]),
            Some("refusal") => partial.push(part["refusal"].as_str().unwrap_or_default())?,
            _ => partial.push(part["text"].as_str().unwrap_or_default())?,
        }
    }
    for part in parts("summary") {
        partial.note_thinking(&part["text"]);
    }
    for name in ["arguments", "input", "code"] {
        partial.note_other_output(&item[name]);
    }
    Ok(())
}

/// Notes the fee of a tool that the provider ran: web and file searches, code interpreters and
/// containers (<https://platform.openai.com/docs/pricing>). The response does not state it. An
/// unknown tool may have one as well.
fn note_tool(item: &Value, billing: &mut Billing) {
    let kind = item["type"].as_str().unwrap_or_default();
    let is_local = kind == "shell_call" && item["environment"]["type"] == "local";
    if kind == "image_generation_call" {
        // The tokens of the image model are not counted.
        billing.note_unpriced("image tokens");
    } else if kind.ends_with("_call") && !is_local && !CALLS_WITHOUT_FEE.contains(&kind) {
        billing.note_unpriced(TOOL_FEE);
    }
}

fn reported(message: &str) -> Fault {
    Fault::new(FailureKind::Status, format!("reported an error: {message}"))
}

/// Reads stored objects, which cost nothing. A response that has failed is no failed request.
#[derive(Debug, Default)]
pub(super) struct ObjectReader(ResponseReader);

impl Reader for ObjectReader {
    fn event(&mut self, event: &Event, partial: &mut ResponseAccumulator) -> Result<Flow, Fault> {
        let read = self.0.event(event, partial);
        // The stream may begin after the response's own end.
        partial.is_complete = true;
        Ok(match read {
            Ok(flow) => flow,
            Err(fault) if fault.kind == FailureKind::BadAnswer => Flow::More,
            Err(_) => Flow::End,
        })
    }

    fn document(&mut self, body: &Value, partial: &mut ResponseAccumulator) -> Result<(), Fault> {
        if body["object"] == "response" {
            // Its faults are in the status.
            let _ = self.0.document(body, partial);
        } else {
            partial.object = ProviderObject::read(body);
        }
        partial.is_complete = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
