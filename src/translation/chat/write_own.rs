//! Writes a conversation of this API as it was.

use serde_json::{Value, json};

use super::content::write_content;
use super::fields::{merge, object};
use super::message::write_call;
use super::read_request::named_choice;
use super::thoughts::{self, DETAILS, THINKING, text_of, write_detail};
use crate::translation::{
    Conversation, Extra, OutputFormat, Part, PartKind, Role, Target, Tool, ToolChoice, ToolKind,
    Turn,
};

pub(super) fn write_own(conversation: &Conversation, target: &Target) -> Value {
    let messages: Vec<Value> = conversation.turns.iter().map(write_turn).collect();
    let mut body = object(json!({"messages": messages}));
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    let it = conversation;
    put("model", (!it.model.is_empty()).then(|| it.model.clone().into()));
    put("stream", it.is_streamed.then_some(Value::Bool(true)));
    let tools: Vec<Value> = it.tools.iter().map(write_tool).collect();
    put("tools", (!tools.is_empty()).then(|| tools.into()));
    put("tool_choice", it.tool_choice.as_ref().map(|choice| write_choice(choice, &it.tools)));
    put("parallel_tool_calls", it.parallel_tools.map(Value::Bool));
    put("response_format", write_format(&it.format));
    put(target.chat_limit, it.max_tokens.map(Value::from));
    put("temperature", it.temperature.map(Value::from));
    put("top_p", it.top_p.map(Value::from));
    put("top_k", it.top_k.map(Value::from));
    put("stop", (!it.stop.is_empty()).then(|| it.stop.clone().into()));
    put("seed", it.seed.map(Value::from));
    put("frequency_penalty", it.frequency_penalty.map(Value::from));
    put("presence_penalty", it.presence_penalty.map(Value::from));
    if it.reasoning.extra.is_empty() {
        put("reasoning_effort", it.reasoning.effort.clone().map(Value::from));
    }
    merge(&mut body, &it.reasoning.extra);
    merge(&mut body, &it.extra);
    Value::Object(body)
}

fn write_turn(turn: &Turn) -> Value {
    if turn.extra.contains_key("role") {
        return Value::Object(turn.extra.clone());
    }
    let parts: Vec<&Part> = turn.parts.iter().collect();
    let mut message = match &*parts {
        [Part { kind: PartKind::ToolResult { id, content, .. }, .. }] => {
            let mut message = object(json!({"role": "tool", "tool_call_id": id}));
            put_content(&mut message, &content.iter().collect::<Vec<_>>());
            message
        }
        parts => {
            let mut message = object(json!({"role": role_name(turn.role)}));
            write_parts(&mut message, parts);
            message
        }
    };
    merge(&mut message, &turn.extra);
    Value::Object(message)
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

fn put_content(message: &mut Extra, parts: &[&Part]) {
    if !parts.is_empty() {
        message.insert("content".to_owned(), write_content(parts));
    }
}

/// Adds parts to a message, each to the field it belongs to.
pub(super) fn write_parts(message: &mut Extra, parts: &[&Part]) {
    write_thoughts(message, parts);
    let is_content = |part: &&&Part| match &part.kind {
        PartKind::ToolCall { .. } | PartKind::ToolResult { .. } => false,
        PartKind::Thinking(_) => thoughts::origin(part) == Some(THINKING),
        PartKind::Refusal(_) => part.extra.contains_key("type"),
        _ => true,
    };
    let content: Vec<&Part> = parts.iter().filter(is_content).copied().collect();
    put_content(message, &content);
    let refusal = parts.iter().find_map(|part| match &part.kind {
        PartKind::Refusal(text) if !part.extra.contains_key("type") => Some(text),
        _ => None,
    });
    if let Some(refusal) = refusal {
        message.insert("refusal".to_owned(), refusal.clone().into());
    }
    let calls: Vec<Value> = parts.iter().filter_map(|part| write_call(part)).collect();
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
}

/// Adds the thoughts in the field from which they were read.
fn write_thoughts(message: &mut Extra, parts: &[&Part]) {
    let is_thought =
        |part: &&&Part| text_of(part).is_some() && thoughts::origin(part) != Some(THINKING);
    let all: Vec<&Part> = parts.iter().filter(is_thought).copied().collect();
    match &*all {
        [] => {}
        [part] if thoughts::origin(part).is_some_and(|name| name != DETAILS) => {
            let name = thoughts::origin(part).unwrap_or(DETAILS);
            message.insert(name.to_owned(), text_of(part).unwrap_or_default().into());
        }
        all => {
            let details = all.iter().enumerate();
            let details = details.map(|(at, part)| Value::Object(write_detail(part, at)));
            message.insert(DETAILS.to_owned(), details.collect());
        }
    }
}

fn write_tool(tool: &Tool) -> Value {
    let (kind, inner) = match &tool.kind {
        ToolKind::Function { name, description, parameters, strict } => {
            let mut function = object(json!({"name": name}));
            put_some(&mut function, "description", description.clone());
            put_some(&mut function, "parameters", parameters.clone());
            put_some(&mut function, "strict", *strict);
            ("function", function)
        }
        ToolKind::Custom { name, description, format } => {
            let mut custom = object(json!({"name": name}));
            put_some(&mut custom, "description", description.clone());
            put_some(&mut custom, "format", format.as_ref().map(nested_grammar));
            ("custom", custom)
        }
        ToolKind::Other(value) => return value.clone(),
    };
    let mut written = object(json!({"type": kind, kind: inner}));
    merge(&mut written, &tool.extra);
    Value::Object(written)
}

pub(super) fn put_some(object: &mut Extra, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(name.to_owned(), value.into());
    }
}

/// Returns the format of a custom tool in the form of this API.
fn nested_grammar(format: &Value) -> Value {
    let mut grammar = format.as_object().cloned().unwrap_or_default();
    let kind = grammar.shift_remove("type").unwrap_or_default();
    if grammar.is_empty() {
        return json!({"type": kind});
    }
    json!({"type": kind, "grammar": grammar})
}

fn write_choice(choice: &ToolChoice, tools: &[Tool]) -> Value {
    match choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => named_choice(name, tools),
        ToolChoice::Other(value) => value.clone(),
    }
}

/// Returns the field of the output's format; none for text.
pub(super) fn write_format(format: &OutputFormat) -> Option<Value> {
    match format {
        OutputFormat::Text => None,
        OutputFormat::Json => Some(json!({"type": "json_object"})),
        OutputFormat::Schema { name, description, schema, strict } => {
            let mut inner = Extra::new();
            put_some(&mut inner, "name", name.clone());
            put_some(&mut inner, "description", description.clone());
            inner.insert("schema".to_owned(), schema.clone());
            put_some(&mut inner, "strict", *strict);
            Some(json!({"type": "json_schema", "json_schema": inner}))
        }
    }
}
