//! Reads the requests of clients.

use serde_json::{Map, Value};

use super::super::conversation::{
    Conversation, Extra, OutputFormat, Part, PartKind, Reasoning, Role, ThinkingMode, Tool,
    ToolChoice, ToolKind, Turn,
};
use super::super::{Api, Refusal};
use super::blocks::read_content;

/// Reads a client's request. Written in the same API it is the same, apart from these equivalent
/// forms: a text and a list with one text block; `null` and a missing field of the request; the older
/// `output_format` and `output_config.format`; a tool with type `custom` and without a type; `false`
/// in `is_error` and `disable_parallel_tool_use`, an empty content of a tool's result, and an empty
/// signature, and none of them.
///
/// # Errors
/// A field has the wrong type.
pub fn read_request(body: &Value) -> Result<Conversation, Refusal> {
    let Some(mut fields) = body.as_object().cloned() else {
        return Err(Refusal::new("body", "must be a JSON object"));
    };
    fields.retain(|_, value| !value.is_null());
    let mut conversation = Conversation::new(Api::Messages);
    let it = &mut conversation;
    it.model = take(&mut fields, "model", "a text", text)?.unwrap_or_default();
    it.is_streamed = take(&mut fields, "stream", "a boolean", Value::as_bool)?.unwrap_or_default();
    let expected = "a text or an array of blocks";
    it.system = take(&mut fields, "system", expected, read_content)?.unwrap_or_default();
    it.turns = read_turns(&mut fields)?;
    it.max_tokens = take(&mut fields, "max_tokens", "a non-negative integer", Value::as_u64)?;
    it.temperature = take(&mut fields, "temperature", "a number", Value::as_f64)?;
    it.top_p = take(&mut fields, "top_p", "a number", Value::as_f64)?;
    it.top_k = take(&mut fields, "top_k", "a non-negative integer", Value::as_u64)?;
    let stop = take(&mut fields, "stop_sequences", "an array of texts", texts)?;
    it.stop = stop.unwrap_or_default();
    let tools = take(&mut fields, "tools", "an array", |value| value.as_array().cloned())?;
    it.tools = tools.unwrap_or_default().into_iter().map(read_tool).collect();
    if let Some(choice) = fields.remove("tool_choice") {
        (it.tool_choice, it.parallel_tools) = read_tool_choice(choice);
    }
    it.reasoning = read_thinking(&mut fields)?;
    read_output_config(&mut fields, it)?;
    it.extra = fields;
    Ok(conversation)
}

/// Refuses the fields whose meaning another API cannot express.
///
/// # Errors
/// The request has such a field.
pub fn check_for_other(conversation: &Conversation) -> Result<(), Refusal> {
    let message = "has a meaning only for Anthropic's models";
    for field in ["container", "mcp_servers"] {
        let value = conversation.extra.get(field);
        if value.is_some_and(|value| *value != Value::Array(Vec::new())) {
            return Err(Refusal::new(field, message));
        }
    }
    // It writes the provider's prompt cache and generates nothing.
    if conversation.max_tokens == Some(0) {
        return Err(Refusal::new("max_tokens", "of 0 has a meaning only for Anthropic's models"));
    }
    Ok(())
}

/// Removes a field and reads it.
fn take<T>(
    fields: &mut Extra,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let Some(value) = fields.remove(key) else {
        return Ok(None);
    };
    match read(&value) {
        Some(read) => Ok(Some(read)),
        None => Err(Refusal::new(key, format!("must be {expected}"))),
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text).collect()
}

fn read_turns(fields: &mut Extra) -> Result<Vec<Turn>, Refusal> {
    let messages = take(fields, "messages", "an array", |value| value.as_array().cloned())?;
    let Some(messages) = messages else {
        return Err(Refusal::new("messages", "is required"));
    };
    messages.iter().enumerate().map(|(index, message)| read_turn(index, message)).collect()
}

fn read_turn(index: usize, message: &Value) -> Result<Turn, Refusal> {
    let path = |field: &str| format!("messages[{index}]{field}");
    let Some(mut fields) = message.as_object().cloned() else {
        return Err(Refusal::new(path(""), "must be an object"));
    };
    let Some(Value::String(role)) = fields.remove("role") else {
        return Err(Refusal::new(path(".role"), "must be a text"));
    };
    let role = match role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        // Kept as one part, so that another API refuses it.
        _ => {
            let part = Part::new(PartKind::Other(message.clone()));
            let extra = Map::from_iter([("role".to_owned(), role.into())]);
            return Ok(Turn { role: Role::User, parts: vec![part], extra });
        }
    };
    let parts = fields.remove("content").as_ref().and_then(read_content);
    let Some(parts) = parts else {
        return Err(Refusal::new(path(".content"), "must be a text or an array of blocks"));
    };
    Ok(Turn { role, parts, extra: fields })
}

fn read_tool(tool: Value) -> Tool {
    let read = tool.as_object().cloned().and_then(read_function);
    read.unwrap_or_else(|| Tool { kind: ToolKind::Other(tool), extra: Extra::new() })
}

/// Returns nothing for a tool of Anthropic's own, which has a type such as `web_search_20250305`.
fn read_function(mut fields: Extra) -> Option<Tool> {
    let kind = fields.remove("type");
    if kind.is_some_and(|kind| kind != "custom" && !kind.is_null()) {
        return None;
    }
    let name = fields.remove("name")?.as_str()?.to_owned();
    let description = fields.get("description").and_then(text);
    let strict = fields.get("strict").and_then(Value::as_bool);
    fields.retain(|key, _| {
        !(key == "description" && description.is_some() || key == "strict" && strict.is_some())
    });
    let parameters = fields.remove("input_schema");
    Some(Tool { kind: ToolKind::Function { name, description, parameters, strict }, extra: fields })
}

fn read_tool_choice(choice: Value) -> (Option<ToolChoice>, Option<bool>) {
    let known = choice.as_object().and_then(|fields| {
        let name = fields.get("name").and_then(Value::as_str);
        let read = match (fields.get("type")?.as_str()?, name) {
            ("auto", None) => ToolChoice::Auto,
            ("any", None) => ToolChoice::Required,
            ("none", None) => ToolChoice::None,
            ("tool", Some(name)) => ToolChoice::Named(name.to_owned()),
            _ => return None,
        };
        let disabled = fields.get("disable_parallel_tool_use");
        let is_disabled = match disabled {
            Some(disabled) => disabled.as_bool()?,
            None => false,
        };
        let known = 1 + usize::from(name.is_some()) + usize::from(disabled.is_some());
        (fields.len() == known).then_some((read, is_disabled.then_some(false)))
    });
    match known {
        Some((read, parallel)) => (Some(read), parallel),
        None => (Some(ToolChoice::Other(choice)), None),
    }
}

fn read_thinking(fields: &mut Extra) -> Result<Reasoning, Refusal> {
    let thinking = take(fields, "thinking", "an object", |value| value.as_object().cloned())?;
    let mut reasoning = Reasoning::default();
    let Some(mut thinking) = thinking else {
        return Ok(reasoning);
    };
    let kind = thinking.get("type").and_then(Value::as_str);
    reasoning.mode = match kind {
        Some("enabled") => Some(ThinkingMode::Enabled),
        Some("adaptive") => Some(ThinkingMode::Adaptive),
        // "Thinking turned off, and any short progress updates … come back as thinking blocks."
        Some("disabled" | "between_tools") => Some(ThinkingMode::Disabled),
        _ => None,
    };
    if reasoning.mode.is_some() && kind != Some("between_tools") {
        thinking.remove("type");
    }
    reasoning.budget_tokens = thinking.get("budget_tokens").and_then(Value::as_u64);
    if reasoning.budget_tokens.is_some() {
        thinking.remove("budget_tokens");
    }
    reasoning.is_shown = match thinking.get("display").and_then(Value::as_str) {
        Some("summarized") => Some(true),
        Some("omitted") => Some(false),
        _ => None,
    };
    if reasoning.is_shown.is_some() {
        thinking.remove("display");
    }
    reasoning.extra = thinking;
    Ok(reasoning)
}

fn read_output_config(fields: &mut Extra, it: &mut Conversation) -> Result<(), Refusal> {
    let config = take(fields, "output_config", "an object", |value| value.as_object().cloned())?;
    let mut config = config.unwrap_or_default();
    // The name of `output_config.format` before it was one of several.
    if let Some(format) = fields.remove("output_format") {
        config.entry("format").or_insert(format);
    }
    config.retain(|_, value| !value.is_null());
    it.reasoning.effort = config.get("effort").and_then(text);
    if it.reasoning.effort.is_some() {
        config.remove("effort");
    }
    let format = config.get("format").and_then(Value::as_object);
    let is_schema = |it: &&Map<String, Value>| {
        it.len() == 2 && it.get("type").is_some_and(|kind| kind == "json_schema")
    };
    let schema = format.filter(is_schema);
    if let Some(schema) = schema.and_then(|format| format.get("schema")).cloned() {
        it.format = OutputFormat::Schema { name: None, description: None, schema, strict: None };
        config.remove("format");
    }
    if !config.is_empty() {
        fields.insert("output_config".into(), config.into());
    }
    Ok(())
}
