use serde_json::{Value, json};

use super::fields::{merge, object, take_object, take_str};
use super::message::{NO_ARGUMENTS, take_parts, write_call};
use super::thoughts::{CONTENT, DETAILS, field_of, text_of, write_detail};
use super::write_own::{put_some, write_parts};
use crate::event::Usage;
use crate::translation::{Context, Extra, Part, PartKind, Reply, Stop};

/// The field of [`Reply::extra`] with the unknown fields, by the object they belong to. Answers of
/// other APIs lack it.
const OWN: &str = "chat";

pub fn read_reply(body: &Value) -> Reply {
    let mut top = body.as_object().cloned().unwrap_or_default();
    top.shift_remove("usage");
    let id = take_str(&mut top, "id").unwrap_or_default();
    let model = take_str(&mut top, "model").unwrap_or_default();
    let mut choices = match top.get_mut("choices") {
        Some(Value::Array(choices)) => std::mem::take(choices),
        _ => Vec::new(),
    };
    let first = if choices.is_empty() { Value::Null } else { choices.remove(0) };
    let mut choice = object(first);
    let mut message = take_object(&mut choice, "message").unwrap_or_default();
    let empty = [take_empty_content(&mut message), take_empty_thoughts(&mut message)];
    let mut parts = take_parts(&mut message);
    message.extend(empty.into_iter().flatten());
    give_ids(&mut parts, &id);

    let has_calls = parts.iter().any(is_call);
    let finish = choice.get("finish_reason").and_then(Value::as_str).map(str::to_owned);
    let stop = finish.as_deref().map(|finish| read_stop(finish, has_calls));
    if stop.is_some() && stop.as_ref().map(write_stop) == finish.as_deref() {
        choice.shift_remove("finish_reason");
    }
    let stop = stop.or_else(|| has_calls.then_some(Stop::ToolCalls));
    let own = json!({"top": top, "choice": choice, "message": message, "others": choices});
    Reply { id, model, parts, stop, extra: object(json!({OWN: own})) }
}

fn is_call(part: &Part) -> bool {
    matches!(part.kind, PartKind::ToolCall { .. })
}

/// Removes an empty text, which is no part of a streamed answer either.
fn take_empty_content(message: &mut Extra) -> Option<(String, Value)> {
    let is_empty = message.get("content").is_some_and(|text| text == "");
    is_empty.then(|| message.shift_remove_entry("content")).flatten()
}

/// Removes empty thoughts, which some servers send with every answer. DeepSeek requires them back
/// in a message with tool calls:
/// <https://github.com/deepseek-ai/deepseek-harness/discussions/739>.
fn take_empty_thoughts(message: &mut Extra) -> Option<(String, Value)> {
    let name = field_of(message).filter(|name| *name != DETAILS)?;
    let has_calls = message.get("tool_calls").and_then(Value::as_array);
    let has_calls = has_calls.is_some_and(|calls| !calls.is_empty());
    let is_empty = message.get(name).is_some_and(|text| text == "");
    if is_empty && !(has_calls && name == CONTENT) {
        message.shift_remove_entry(name)
    } else {
        None
    }
}

fn give_ids(parts: &mut [Part], reply_id: &str) {
    let ids = parts.iter_mut().filter_map(|part| match &mut part.kind {
        PartKind::ToolCall { id, .. } => Some(id),
        _ => None,
    });
    for (number, id) in ids.enumerate().filter(|(_, id)| id.is_empty()) {
        *id = call_id(reply_id, number);
    }
}

/// Returns the id of a tool call to which the server gave none, as Gemini's OpenAI-compatible API
/// does: <https://github.com/meilisearch/meilisearch/pull/5712>. The answer's id makes it unique.
pub(super) fn call_id(reply_id: &str, number: usize) -> String {
    let base = reply_id.strip_prefix("chatcmpl-").unwrap_or(reply_id);
    if base.is_empty() { format!("call_{number}") } else { format!("call_{base}_{number}") }
}

/// Reads a finish reason. Many servers state `stop` with tool calls; OpenAI too if the request
/// requires a call: <https://community.openai.com/t/731488/13>.
pub(super) fn read_stop(finish: &str, has_calls: bool) -> Stop {
    match finish {
        "stop" if has_calls => Stop::ToolCalls,
        "stop" => Stop::End,
        // The second is Mistral's: https://docs.mistral.ai/api
        "length" | "model_length" => Stop::MaxTokens,
        "tool_calls" | "function_call" => Stop::ToolCalls,
        "content_filter" => Stop::Refused,
        other => Stop::Other(other.to_owned()),
    }
}

/// Returns one of OpenAI's finish reasons.
pub(super) fn write_stop(stop: &Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Sequence(_) | Stop::Paused | Stop::Other(_) => "stop",
        Stop::MaxTokens => "length",
        Stop::ToolCalls => "tool_calls",
        Stop::Refused => "content_filter",
    }
}

pub fn write_reply(reply: &Reply, usage: &Usage, context: &Context) -> Value {
    if let Some(Value::Object(own)) = reply.extra.get(OWN) {
        return write_own_reply(reply, own, usage);
    }
    let default = if reply.parts.iter().any(is_call) { "tool_calls" } else { "stop" };
    json!({
        "id": completion_id(&reply.id, context),
        "object": "chat.completion",
        "created": context.created,
        "model": if reply.model.is_empty() { &context.model } else { &reply.model },
        "choices": [{
            "index": 0,
            "message": write_message(&reply.parts),
            "logprobs": null,
            "finish_reason": reply.stop.as_ref().map_or(default, write_stop),
        }],
        "usage": write_usage(usage),
    })
}

/// Returns the answer's id, or one of this API's form.
pub(super) fn completion_id(id: &str, context: &Context) -> String {
    if id.starts_with("chatcmpl-") { id.to_owned() } else { format!("chatcmpl-{}", context.id) }
}

/// Writes an answer of this API as it was, except for its usage.
fn write_own_reply(reply: &Reply, own: &Extra, usage: &Usage) -> Value {
    let of = |name: &str| own.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut message = Extra::new();
    write_parts(&mut message, &reply.parts.iter().collect::<Vec<_>>());
    merge(&mut message, &of("message"));
    let mut choice = object(json!({"message": message}));
    if let Some(stop) = &reply.stop {
        choice.insert("finish_reason".to_owned(), write_stop(stop).into());
    }
    merge(&mut choice, &of("choice"));
    let others = own.get("others").and_then(Value::as_array).cloned().unwrap_or_default();
    let choices: Vec<Value> = [Value::Object(choice)].into_iter().chain(others).collect();
    let mut body = Extra::new();
    put_some(&mut body, "id", Some(&*reply.id).filter(|id| !id.is_empty()));
    put_some(&mut body, "model", Some(&*reply.model).filter(|model| !model.is_empty()));
    merge(&mut body, &of("top"));
    body.insert("choices".to_owned(), choices.into());
    body.insert("usage".to_owned(), write_usage(usage));
    Value::Object(body)
}

fn write_message(parts: &[Part]) -> Value {
    let (mut text, mut refusal) = (String::new(), None::<String>);
    for part in parts {
        match &part.kind {
            PartKind::Text(it) => text.push_str(it),
            PartKind::Refusal(it) => refusal.get_or_insert_default().push_str(it),
            _ => {}
        }
    }
    let calls: Vec<Value> = parts.iter().filter_map(write_call).map(with_arguments).collect();
    let has_other = !calls.is_empty() || refusal.is_some();
    let content = (!text.is_empty() || !has_other).then_some(text);
    let mut message = object(json!({"role": "assistant", "content": content, "refusal": refusal}));
    let thoughts: Vec<&Part> = parts.iter().filter(|part| text_of(part).is_some()).collect();
    if !thoughts.is_empty() {
        let text: String = thoughts.iter().copied().filter_map(text_of).collect();
        if !text.is_empty() {
            message.insert(CONTENT.to_owned(), text.into());
        }
        let details = thoughts.iter().enumerate();
        let details = details.map(|(at, part)| Value::Object(write_detail(part, at)));
        message.insert(DETAILS.to_owned(), details.collect());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    Value::Object(message)
}

fn with_arguments(mut call: Value) -> Value {
    if let Some(arguments) = call.pointer_mut("/function/arguments").filter(|it| **it == "") {
        *arguments = NO_ARGUMENTS.into();
    }
    call
}

/// Returns the usage in this API's terms:
/// <https://platform.openai.com/docs/api-reference/chat/object>.
pub(super) fn write_usage(usage: &Usage) -> Value {
    let mut prompt = object(json!({"cached_tokens": usage.cached_input_tokens}));
    if usage.cache_write_tokens > 0 {
        prompt.insert("cache_write_tokens".to_owned(), usage.cache_write_tokens.into());
    }
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
        "prompt_tokens_details": prompt,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}
