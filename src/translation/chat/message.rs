//! The messages of a request, and the message of an answer.

use serde_json::{Value, json};

use super::content::take_content;
use super::fields::{keep_rest, merge, object, take_object, take_str};
use super::thoughts::take_thoughts;
use crate::translation::{Api, Extra, Part, PartKind, Refusal, Role, Signature, Turn};

/// The place of a signature that Gemini's OpenAI-compatible API adds to a tool call:
/// <https://ai.google.dev/gemini-api/docs/thought-signatures>.
const EXTRA_CONTENT: &str = "extra_content";

/// The arguments of a function that has none: clients and servers expect JSON.
pub(super) const NO_ARGUMENTS: &str = "{}";

/// Reads the message with this number. A message of an unknown role remains as it is in `extra`.
pub(super) fn read_message(at: usize, value: &Value) -> Result<Turn, Refusal> {
    let invalid =
        |name: &str, message: &str| Refusal::new(format!("messages[{at}]{name}"), message);
    let mut message = value.as_object().ok_or_else(|| invalid("", "must be an object"))?.clone();
    let role = message.get("role").and_then(Value::as_str);
    let role = match role.ok_or_else(|| invalid(".role", "must be a string"))? {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => return read_result(at, message),
        _ => return Ok(Turn { role: Role::User, parts: Vec::new(), extra: message }),
    };
    message.shift_remove("role");
    check_content(at, &message)?;
    let calls = message.get("tool_calls").filter(|calls| !calls.is_null());
    if calls.is_some_and(|calls| !calls.is_array()) {
        return Err(invalid(".tool_calls", "must be an array"));
    }
    let parts = match role {
        Role::Assistant => take_parts(&mut message),
        _ => take_content(&mut message),
    };
    Ok(Turn { role, parts, extra: message })
}

fn check_content(at: usize, message: &Extra) -> Result<(), Refusal> {
    match message.get("content") {
        None | Some(Value::Null | Value::String(_) | Value::Array(_)) => Ok(()),
        _ => Err(Refusal::new(format!("messages[{at}].content"), "must be a string or an array")),
    }
}

fn read_result(at: usize, mut message: Extra) -> Result<Turn, Refusal> {
    message.shift_remove("role");
    check_content(at, &message)?;
    let id = take_str(&mut message, "tool_call_id")
        .ok_or_else(|| Refusal::new(format!("messages[{at}].tool_call_id"), "must be a string"))?;
    // The call has the signature.
    let id = Signature::detach_from(&id).0.to_owned();
    let content = take_content(&mut message);
    let result = Part::new(PartKind::ToolResult { id, content, is_error: false });
    Ok(Turn { role: Role::User, parts: vec![result], extra: message })
}

/// Removes all parts of an assistant's message: thoughts, content, refusal, and tool calls. If one
/// of the calls is of an unknown kind, all remain.
pub(super) fn take_parts(message: &mut Extra) -> Vec<Part> {
    let mut parts = take_thoughts(message);
    parts.extend(take_content(message));
    parts.extend(take_str(message, "refusal").map(|text| Part::new(PartKind::Refusal(text))));
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let calls: Option<Vec<Part>> =
        calls.filter(|calls| !calls.is_empty()).and_then(|it| it.iter().map(read_call).collect());
    if let Some(calls) = calls {
        message.shift_remove("tool_calls");
        parts.extend(calls);
    }
    parts
}

/// Reads a tool call; none if its kind is unknown.
fn read_call(value: &Value) -> Option<Part> {
    let mut call = value.as_object()?.clone();
    let is_custom = match call.get("type") {
        None | Some(Value::Null) => false,
        Some(Value::String(kind)) => match &**kind {
            "function" => false,
            "custom" => true,
            _ => return None,
        },
        _ => return None,
    };
    call.shift_remove("type");
    let (of_kind, input) = names(is_custom);
    let mut inner = take_object(&mut call, of_kind)?;
    let name = take_str(&mut inner, "name")?;
    let arguments = text_of_arguments(inner.shift_remove(input).as_ref());
    keep_rest(&mut call, of_kind, inner);
    let id = take_str(&mut call, "id").unwrap_or_default();
    let (id, attached) = Signature::detach_from(&id);
    let signature = attached.or_else(|| take_signature(&mut call));
    let kind = PartKind::ToolCall { id: id.to_owned(), name, arguments, is_custom };
    Some(Part { kind, signature, extra: call })
}

fn names(is_custom: bool) -> (&'static str, &'static str) {
    if is_custom { ("custom", "input") } else { ("function", "arguments") }
}

/// Returns the arguments as text. Some servers and clients have an object in place of its JSON.
pub(super) fn text_of_arguments(arguments: Option<&Value>) -> String {
    match arguments {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Removes Gemini's signature from a tool call.
pub(super) fn take_signature(call: &mut Extra) -> Option<Signature> {
    let value = call.get(EXTRA_CONTENT)?["google"]["thought_signature"].as_str()?;
    let signature = Signature::new(Api::Chat, value);
    if call.get(EXTRA_CONTENT) == Some(&extra_content(&signature)) {
        call.shift_remove(EXTRA_CONTENT);
    }
    Some(signature)
}

fn extra_content(signature: &Signature) -> Value {
    json!({"google": {"thought_signature": signature.value}})
}

/// Adds a signature that a server of this API wrote to a tool call.
pub(super) fn put_signature(call: &mut Extra, signature: &Signature) {
    if signature.api == Api::Chat {
        call.insert(EXTRA_CONTENT.to_owned(), extra_content(signature));
    }
}

/// Returns a tool call with its signature, in the id if another API wrote it.
pub(super) fn write_call(part: &Part) -> Option<Value> {
    let PartKind::ToolCall { id, name, arguments, is_custom } = &part.kind else {
        return None;
    };
    let foreign = part.signature.as_ref().filter(|signature| signature.api != Api::Chat);
    let id = foreign.map_or_else(|| id.clone(), |signature| signature.attach_to(id));
    let mut call = call(&id, name, arguments, *is_custom);
    if let Some(signature) = &part.signature {
        put_signature(&mut call, signature);
    }
    merge(&mut call, &part.extra);
    Some(Value::Object(call))
}

/// Returns a tool call.
pub(super) fn call(id: &str, name: &str, arguments: &str, is_custom: bool) -> Extra {
    let (of_kind, input) = names(is_custom);
    object(json!({"id": id, "type": of_kind, of_kind: {"name": name, input: arguments}}))
}
