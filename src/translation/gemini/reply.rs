//! Answers in one piece: <https://ai.google.dev/api/generate-content#GenerateContentResponse>.

use serde_json::{Value, json};

use super::fields::{get, take, take_as, text};
use super::parts::{created_id_of_reply, read_part, write_part};
use super::signatures::pack_thoughts;
use crate::event::{Usage, UsageSource};
use crate::translation::{Context, Extra, Part, PartKind, Reply, Stop};

/// Contains the fields that only Gemini knows, in `extra` of answers and of their parts: a writer
/// does not know the API of an answer.
const OWN: &str = "gemini";

/// Why an answer is withheld: <https://ai.google.dev/api/generate-content#FinishReason>.
const REFUSALS: &[&str] = &[
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "MODEL_ARMOR",
    "ESCALATION",
];
/// Further reasons, in the same place.
const OTHERS: &[&str] = &[
    "OTHER",
    "MALFORMED_FUNCTION_CALL",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
    "MALFORMED_RESPONSE",
    "NO_IMAGE",
    "IMAGE_OTHER",
];

/// Returns the reason for the end. The default value of the enumeration is none.
pub(super) fn read_stop(reason: &str, has_calls: bool) -> Option<Stop> {
    Some(match reason {
        "" | "FINISH_REASON_UNSPECIFIED" => return None,
        "STOP" if has_calls => Stop::ToolCalls,
        "STOP" => Stop::End,
        "MAX_TOKENS" => Stop::MaxTokens,
        _ if REFUSALS.contains(&reason) => Stop::Refused,
        _ => Stop::Other(reason.to_owned()),
    })
}

/// Returns the reason in Gemini's terms, which have none for tool calls and stop sequences.
pub(super) fn write_stop(stop: &Stop) -> &str {
    match stop {
        Stop::End | Stop::ToolCalls | Stop::Sequence(_) => "STOP",
        Stop::MaxTokens => "MAX_TOKENS",
        Stop::Refused => "SAFETY",
        Stop::Other(reason) if OTHERS.contains(&&**reason) => reason,
        Stop::Paused | Stop::Other(_) => "OTHER",
    }
}

/// Reads the parts of the first candidate.
pub(super) fn read_parts(candidate: &Value) -> Vec<Part> {
    let content = candidate.as_object().and_then(|it| get(it, "content")?.as_object());
    let parts = content.and_then(|content| get(content, "parts")?.as_array());
    parts.into_iter().flatten().map(read_part).collect()
}

/// Gives an id to a call without one. It differs from those of other answers, by the id of the
/// answer, or by the content of the call.
pub(super) fn complete_id(part: &mut Part, reply_id: &str, index: usize) {
    if let PartKind::ToolCall { id, name, arguments, .. } = &mut part.kind
        && id.is_empty()
    {
        *id = match reply_id {
            "" => created_id_of_reply(&format!("{name}{arguments}"), index),
            reply_id => created_id_of_reply(reply_id, index),
        };
    }
}

pub(super) fn is_call(part: &Part) -> bool {
    matches!(part.kind, PartKind::ToolCall { .. })
}

/// Returns whether the prompt was refused, without candidates:
/// <https://ai.google.dev/api/generate-content#PromptFeedback>.
pub(super) fn is_blocked(body: &Value) -> bool {
    let feedback = body.as_object().and_then(|it| get(it, "promptFeedback")?.as_object());
    feedback.is_some_and(|feedback| get(feedback, "blockReason").is_some_and(Value::is_string))
}

/// Reads an answer: its first candidate. The content of a candidate is the model's.
pub fn read_reply(body: &Value) -> Reply {
    let mut fields = body.as_object().cloned().unwrap_or_default();
    take(&mut fields, "usageMetadata");
    let id = take_as(&mut fields, "responseId", text).unwrap_or_default();
    let model = take_as(&mut fields, "modelVersion", text).unwrap_or_default();
    let mut candidates = match fields.remove("candidates") {
        Some(Value::Array(candidates)) => candidates,
        _ => Vec::new(),
    };
    let candidate = match candidates.is_empty() {
        true => Value::Null,
        false => candidates.remove(0),
    };
    if !candidates.is_empty() {
        fields.insert("candidates".to_owned(), candidates.into());
    }
    let mut parts = read_parts(&candidate);
    let calls = parts.iter_mut().filter(|part| is_call(part));
    calls.enumerate().for_each(|(index, call)| complete_id(call, &id, index));
    for part in parts.iter_mut().filter(|part| !part.extra.is_empty()) {
        part.extra = own(std::mem::take(&mut part.extra));
    }
    let reason = candidate.as_object().and_then(|it| get(it, "finishReason")?.as_str());
    let reason = reason.unwrap_or_default().to_owned();
    let stop = read_stop(&reason, parts.iter().any(is_call));
    let stop = stop.or_else(|| is_blocked(body).then_some(Stop::Refused));
    let mut extra = Extra::from_iter([("fields".to_owned(), fields.into())]);
    if let Value::Object(mut candidate) = candidate {
        take(&mut candidate, "content");
        if stop.as_ref().is_some_and(|stop| write_stop(stop) == reason) {
            take(&mut candidate, "finishReason");
        }
        extra.insert("candidate".to_owned(), candidate.into());
    }
    Reply { id, model, parts, stop, extra: own(extra) }
}

fn own(fields: Extra) -> Extra {
    Extra::from_iter([(OWN.to_owned(), fields.into())])
}

/// Writes an answer for a client.
pub fn write_reply(reply: &Reply, usage: &Usage, context: &Context) -> Value {
    let own = reply.extra.get(OWN);
    let of_own = |name: &str| own.and_then(|own| own.get(name)?.as_object().cloned());
    let mut body = of_own("fields").unwrap_or_default();
    let others = match body.remove("candidates") {
        Some(Value::Array(others)) => others,
        _ => Vec::new(),
    };
    // A blocked prompt has no candidate.
    let candidate = match own {
        Some(_) => of_own("candidate"),
        None => Some(Extra::from_iter([("index".to_owned(), 0.into())])),
    };
    if let Some(mut candidate) = candidate {
        let mut parts = write_parts(&reply.parts, own.is_some());
        if parts.is_empty() && own.is_none() {
            // Google's clients take a content without parts for an invalid answer.
            parts.push(json!({"text": ""}));
        }
        candidate.insert("content".to_owned(), json!({"parts": parts, "role": "model"}));
        if let Some(stop) = &reply.stop {
            candidate.entry("finishReason").or_insert_with(|| write_stop(stop).into());
        }
        let candidates: Vec<Value> =
            std::iter::once(Value::Object(candidate)).chain(others).collect();
        body.insert("candidates".to_owned(), candidates.into());
    }
    body.extend(write_usage(usage).map(|usage| ("usageMetadata".to_owned(), usage)));
    let Names { id, model } = names(&reply.id, &reply.model, context);
    body.insert("modelVersion".to_owned(), model.into());
    body.insert("responseId".to_owned(), id.into());
    Value::Object(body)
}

/// Writes the parts. A call without a signature carries those of the thoughts before it.
fn write_parts(parts: &[Part], is_own: bool) -> Vec<Value> {
    let mut thoughts: Vec<Part> = Vec::new();
    let mut written = Vec::new();
    for part in parts {
        if is_call(part) {
            let signature = part.signature.clone().or_else(|| pack_thoughts(&thoughts));
            thoughts.clear();
            written.extend(write_reply_part(&Part { signature, ..part.clone() }, is_own));
            continue;
        }
        if matches!(part.kind, PartKind::Thinking(_)) {
            thoughts.push(part.clone());
        }
        written.extend(write_reply_part(part, is_own));
    }
    written
}

/// Writes a part. Leaves out empty texts and unknown parts of another API.
fn write_reply_part(part: &Part, is_own: bool) -> Option<Value> {
    let is_left_out = match &part.kind {
        PartKind::Text(text) | PartKind::Refusal(text) => {
            text.is_empty() && part.signature.is_none()
        }
        PartKind::Other(_) => true,
        _ => false,
    };
    if is_left_out && !is_own {
        return None;
    }
    let own = part.extra.get(OWN).and_then(Value::as_object);
    Some(write_part(part, own.unwrap_or(&Extra::new()), None))
}

/// The id of an answer and its model.
pub(super) struct Names {
    pub id: String,
    pub model: String,
}

/// Returns the provider's names, or else those of the request.
pub(super) fn names(id: &str, model: &str, context: &Context) -> Names {
    let of = |stated: &str, other: &str| if stated.is_empty() { other } else { stated }.to_owned();
    Names { id: of(id, &context.id), model: of(model, &context.model) }
}

/// Writes token counts: those of the candidates exclude thoughts, and those of the prompt include
/// cached content. <https://ai.google.dev/api/generate-content#UsageMetadata>
pub(super) fn write_usage(usage: &Usage) -> Option<Value> {
    if usage.source == UsageSource::None {
        return None;
    }
    let mut counts = json!({
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens.saturating_sub(usage.reasoning_tokens),
        "totalTokenCount": usage.input_tokens.saturating_add(usage.output_tokens),
    });
    if usage.cached_input_tokens > 0 {
        counts["cachedContentTokenCount"] = usage.cached_input_tokens.into();
    }
    if usage.reasoning_tokens > 0 {
        counts["thoughtsTokenCount"] = usage.reasoning_tokens.into();
    }
    Some(counts)
}
