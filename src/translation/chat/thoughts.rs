//! The thoughts of a message. Servers have several fields for them:
//! - `reasoning_content`: DeepSeek, <https://api-docs.deepseek.com/guides/thinking_mode>, and many;
//! - `reasoning`: vLLM, <https://docs.vllm.ai/en/stable/features/reasoning_outputs>, OpenRouter, Groq;
//! - `reasoning_details`, with signatures: OpenRouter,
//!   <https://openrouter.ai/docs/guides/best-practices/reasoning-tokens>;
//! - content parts of type `thinking`: Mistral, <https://docs.mistral.ai/capabilities/reasoning>.
//!
//! The signature of such thoughts is the name of the field, or the detail without its text as JSON:
//! enough to send them back in the form in which the server wrote them.

use serde_json::{Value, json};

use super::fields::{object, take_str};
use crate::translation::{Api, Extra, Part, PartKind, Signature};

pub(super) const DETAILS: &str = "reasoning_details";
pub(super) const CONTENT: &str = "reasoning_content";
const REASONING: &str = "reasoning";
/// The type of Mistral's content parts.
pub(super) const THINKING: &str = "thinking";
const TEXT_TYPE: &str = "reasoning.text";
const SUMMARY_TYPE: &str = "reasoning.summary";
const ENCRYPTED_TYPE: &str = "reasoning.encrypted";

/// Returns the field that has the thoughts of a message or of a delta.
pub(super) fn field_of(message: &Extra) -> Option<&'static str> {
    let has_details = message
        .get(DETAILS)
        .and_then(Value::as_array)
        .is_some_and(|details| !details.is_empty() && details.iter().all(Value::is_object));
    if has_details {
        return Some(DETAILS);
    }
    [CONTENT, REASONING].into_iter().find(|name| message.get(*name).is_some_and(Value::is_string))
}

/// Removes the thoughts from a message.
pub(super) fn take_thoughts(message: &mut Extra) -> Vec<Part> {
    match field_of(message) {
        Some(DETAILS) => take_details(message),
        Some(name) => {
            let text = take_str(message, name).unwrap_or_default();
            vec![signed(text, Some(Signature::new(Api::Chat, name)))]
        }
        None => Vec::new(),
    }
}

fn take_details(message: &mut Extra) -> Vec<Part> {
    let details = message.shift_remove(DETAILS);
    let details = details.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let objects = details.iter().filter_map(Value::as_object);
    let parts: Vec<Part> =
        objects.enumerate().map(|(at, detail)| read_detail(detail, at)).collect();
    let joined: String = parts.iter().filter_map(text_of).collect();
    for name in [CONTENT, REASONING] {
        if message.get(name).and_then(Value::as_str) == Some(&*joined) {
            message.shift_remove(name);
        }
    }
    parts
}

fn signed(text: String, signature: Option<Signature>) -> Part {
    Part { signature, ..Part::new(PartKind::Thinking(text)) }
}

/// Returns the text of thoughts.
pub(super) fn text_of(part: &Part) -> Option<&str> {
    match &part.kind {
        PartKind::Thinking(text) => Some(text),
        _ => None,
    }
}

fn read_detail(detail: &Extra, at: usize) -> Part {
    let mut part = signed(text_of_detail(detail).to_owned(), signature_of_detail(detail));
    if write_detail(&part, at) != *detail {
        part.extra.insert(DETAILS.to_owned(), Value::Object(detail.clone()));
    }
    part
}

/// Returns the text of a detail; empty if it is encrypted.
pub(super) fn text_of_detail(detail: &Extra) -> &str {
    detail.get(text_name(detail)).and_then(Value::as_str).unwrap_or_default()
}

fn text_name(detail: &Extra) -> &'static str {
    if detail.get("type").is_some_and(|it| it == SUMMARY_TYPE) { "summary" } else { "text" }
}

/// Returns the proof in a detail: a provider's signature, or the detail's other fields.
pub(super) fn signature_of_detail(detail: &Extra) -> Option<Signature> {
    let is_encrypted = detail.get("type").is_some_and(|it| it == ENCRYPTED_TYPE);
    let proof = detail.get(if is_encrypted { "data" } else { "signature" });
    let proof = proof.and_then(Value::as_str).map(|proof| Signature::read(Api::Chat, proof));
    if proof.as_ref().is_some_and(|proof| proof.api != Api::Chat) {
        return proof;
    }
    // Details as this module writes them for clients have no further fields.
    let names: &[&str] = if is_encrypted {
        &["type", "data", "index"]
    } else {
        &["type", "text", "signature", "index"]
    };
    if detail.keys().all(|name| names.contains(&&**name))
        && detail.get("type").is_some_and(|it| it != SUMMARY_TYPE)
    {
        return proof.map(|proof| Signature { is_redacted: is_encrypted, ..proof });
    }
    let mut rest = detail.clone();
    if !text_of_detail(detail).is_empty() {
        rest.shift_remove(text_name(detail));
    }
    rest.sort_keys();
    let value = Value::Object(rest).to_string();
    Some(Signature { is_redacted: is_encrypted, ..Signature::new(Api::Chat, value) })
}

/// Returns an item of `reasoning_details`.
pub(super) fn write_detail(part: &Part, at: usize) -> Extra {
    if let Some(Value::Object(detail)) = part.extra.get(DETAILS) {
        return detail.clone();
    }
    let text = text_of(part).unwrap_or_default();
    detail(text, part.signature.as_ref(), at)
}

/// Returns an item of `reasoning_details`, or a part of a streamed one.
pub(super) fn detail(text: &str, signature: Option<&Signature>, at: usize) -> Extra {
    if let Some(mut detail) = signature.and_then(own_detail) {
        if !text.is_empty() {
            detail.insert(text_name(&detail).to_owned(), text.into());
        }
        return detail;
    }
    let proof = signature.map(|signature| signature.text_for(Api::Chat));
    if signature.is_some_and(|signature| signature.is_redacted) {
        return object(json!({"type": ENCRYPTED_TYPE, "data": proof, "index": at}));
    }
    let mut detail = object(json!({"type": TEXT_TYPE, "text": text, "index": at}));
    if let Some(proof) = proof {
        detail.insert("signature".to_owned(), proof.into());
    }
    detail
}

/// Returns the detail that a signature of this API contains.
fn own_detail(signature: &Signature) -> Option<Extra> {
    let is_own = signature.api == Api::Chat && signature.value.starts_with('{');
    let detail = is_own.then(|| serde_json::from_str(&signature.value).ok())?;
    detail.filter(|detail: &Extra| detail.contains_key("type"))
}

/// Returns the field in which a server of this API wrote the thoughts: none if another API wrote
/// them, or if they have no signature.
pub(super) fn origin(part: &Part) -> Option<&'static str> {
    let signature = part.signature.as_ref().filter(|signature| signature.api == Api::Chat)?;
    let named = [CONTENT, REASONING, THINKING].into_iter().find(|name| *name == signature.value);
    Some(named.unwrap_or(DETAILS))
}

/// Reads a content part of type `thinking`.
pub(super) fn read_thinking(part: &Extra) -> Part {
    let text = match part.get(THINKING) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(chunks)) => chunks.iter().filter_map(|it| it["text"].as_str()).collect(),
        _ => String::new(),
    };
    let mut read = signed(text, Some(Signature::new(Api::Chat, THINKING)));
    if write_thinking(&read) != *part {
        read.extra.insert(THINKING.to_owned(), Value::Object(part.clone()));
    }
    read
}

/// Returns a content part of type `thinking`.
pub(super) fn write_thinking(part: &Part) -> Extra {
    if let Some(Value::Object(part)) = part.extra.get(THINKING) {
        return part.clone();
    }
    let text = text_of(part).unwrap_or_default();
    object(json!({"type": THINKING, THINKING: [{"type": "text", "text": text}]}))
}
