//! Answers in one piece.

use serde_json::{Map, Value, json};

use super::super::conversation::{Extra, Part, PartKind, Reply, Stop};
use super::super::{Api, Context, Signature};
use super::blocks::{read_block, thinking_block, write_block};
use crate::event::Usage;

/// Reads an answer in one piece. Written in the same API it is the same, apart from the usage.
pub fn read_reply(body: &Value) -> Reply {
    let mut extra = body.as_object().cloned().unwrap_or_default();
    let content = extra.remove("content");
    let blocks = content.as_ref().and_then(Value::as_array).into_iter().flatten();
    let sequence = extra.remove("stop_sequence");
    let stop = extra.remove("stop_reason");
    extra.remove("usage");
    Reply {
        id: take_text(&mut extra, "id"),
        model: take_text(&mut extra, "model"),
        parts: blocks.map(read_block).collect(),
        stop: stop.as_ref().and_then(|stop| read_stop(stop, sequence.as_ref())),
        extra,
    }
}

fn take_text(fields: &mut Extra, key: &str) -> String {
    let text = fields.remove(key);
    text.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub(super) fn read_stop(reason: &Value, sequence: Option<&Value>) -> Option<Stop> {
    Some(match reason.as_str()? {
        "end_turn" => Stop::End,
        "max_tokens" => Stop::MaxTokens,
        "stop_sequence" => Stop::Sequence(sequence.and_then(Value::as_str).map(str::to_owned)),
        "tool_use" => Stop::ToolCalls,
        "refusal" => Stop::Refused,
        "pause_turn" => Stop::Paused,
        // "We exceeded the model's context window."
        other => Stop::Other(other.to_owned()),
    })
}

/// Writes an answer for a client. That of another API has only texts, thinking and tool calls.
pub fn write_reply(reply: &Reply, usage: &Usage, context: &Context) -> Value {
    // `read_reply` keeps the type.
    let is_own = reply.extra.get("type").is_some_and(|kind| kind == "message");
    let blocks: Vec<Value> = match is_own {
        true => reply.parts.iter().filter_map(write_block).collect(),
        false => reply.parts.iter().filter_map(answer_block).collect(),
    };
    let stop = match (is_own, &reply.stop) {
        (true, None) => None,
        (true, Some(stop)) => Some(stop.clone()),
        (false, stop) => {
            let has = |is: fn(&PartKind) -> bool| reply.parts.iter().any(|part| is(&part.kind));
            let has_calls = has(|kind| matches!(kind, PartKind::ToolCall { .. }));
            let is_refused = has(|kind| matches!(kind, PartKind::Refusal(_)));
            Some(stop_for_client(stop.as_ref(), has_calls, is_refused))
        }
    };
    let (reason, sequence) = write_stop(stop.as_ref());
    let mut body = head(&reply.id, &reply.model, context);
    body.insert("content".into(), blocks.into());
    body.insert("stop_reason".into(), reason);
    body.insert("stop_sequence".into(), sequence);
    body.insert("usage".into(), write_usage(usage));
    if is_own {
        body.extend(reply.extra.clone());
    }
    Value::Object(body)
}

/// Returns the first fields of a message.
pub(super) fn head(id: &str, model: &str, context: &Context) -> Extra {
    let id = match id.starts_with("msg_") {
        true => id.to_owned(),
        false => format!("msg_{}", context.id),
    };
    let model = if model.is_empty() { &context.model } else { model };
    Map::from_iter([
        ("id".to_owned(), id.into()),
        ("type".to_owned(), "message".into()),
        ("role".to_owned(), "assistant".into()),
        ("model".to_owned(), model.into()),
    ])
}

/// Returns the block of a part that any provider wrote, if this API has one.
fn answer_block(part: &Part) -> Option<Value> {
    let plain = Part::new(part.kind.clone());
    match &part.kind {
        PartKind::Text(text) | PartKind::Refusal(text) if text.is_empty() => None,
        PartKind::Text(_) | PartKind::Refusal(_) => write_block(&plain),
        PartKind::ToolCall { id, .. } => {
            let mut block = write_block(&plain)?;
            block["id"] = signed_id(id, part.signature.as_ref()).into();
            Some(block)
        }
        PartKind::Thinking(text) => match &part.signature {
            Some(signature) => Some(thinking_block(text, signature)),
            None if text.is_empty() => None,
            None => write_block(&plain),
        },
        _ => None,
    }
}

/// Returns the id of a tool call with the signature of the provider, which has no other place.
pub(super) fn signed_id(id: &str, signature: Option<&Signature>) -> String {
    match signature.filter(|it| it.api != Api::Messages) {
        Some(signature) => signature.attach_to(id),
        None => id.to_owned(),
    }
}

/// Returns the reason in this API's terms. Some providers report a normal end although the answer has
/// tool calls, which the client would then not run.
pub(super) fn stop_for_client(stop: Option<&Stop>, has_calls: bool, is_refused: bool) -> Stop {
    match stop {
        Some(Stop::End | Stop::Other(_)) | None if has_calls => Stop::ToolCalls,
        Some(Stop::End | Stop::Other(_)) | None if is_refused => Stop::Refused,
        Some(Stop::Other(_)) | None => Stop::End,
        Some(stop) => stop.clone(),
    }
}

/// Returns the reason and the stop sequence.
pub(super) fn write_stop(stop: Option<&Stop>) -> (Value, Value) {
    let Some(stop) = stop else {
        return (Value::Null, Value::Null);
    };
    let (reason, sequence) = match stop {
        Stop::End => ("end_turn", None),
        Stop::MaxTokens => ("max_tokens", None),
        Stop::ToolCalls => ("tool_use", None),
        Stop::Sequence(sequence) => ("stop_sequence", sequence.as_deref()),
        Stop::Refused => ("refusal", None),
        Stop::Paused => ("pause_turn", None),
        Stop::Other(other) => (other.as_str(), None),
    };
    (reason.into(), sequence.into())
}

/// "Total input tokens in a request is the summation of `input_tokens`,
/// `cache_creation_input_tokens`, and `cache_read_input_tokens`."
pub(super) fn write_usage(usage: &Usage) -> Value {
    let in_cache = usage.cached_input_tokens.saturating_add(usage.cache_write_tokens);
    let mut counts = json!({
        "input_tokens": usage.input_tokens.saturating_sub(in_cache),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens":
                usage.cache_write_tokens.saturating_sub(usage.cache_write_1h_tokens),
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
    });
    if usage.reasoning_tokens > 0 {
        counts["output_tokens_details"] = json!({"thinking_tokens": usage.reasoning_tokens});
    }
    counts
}
