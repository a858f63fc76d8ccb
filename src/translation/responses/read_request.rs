//! Reads a client's request.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::item::{
    IS_ITEM, joined_name, kind_of_tool, object, read_content, read_model_item, rest, result_type,
    write_format, write_tool,
};
use crate::translation::{
    Api, Conversation, Extra, OutputFormat, Part, PartKind, Reasoning, Refusal, Role, Signature,
    Tool, ToolChoice, ToolKind, Turn,
};

/// Reads a client's request.
///
/// # Errors
/// A field has the wrong JSON type.
pub fn read_request(body: &Value) -> Result<Conversation, Refusal> {
    let mut conversation = Conversation::new(Api::Responses);
    let fields = body.as_object().ok_or_else(|| Refusal::new("body", "must be a JSON object"))?;
    for (key, value) in fields {
        if value.is_null() {
            conversation.extra.insert(key.clone(), Value::Null);
        } else {
            read_field(&mut conversation, key, value)?;
        }
    }
    if let Some(choice) = fields.get("tool_choice").filter(|choice| !choice.is_null()) {
        conversation.tool_choice = Some(read_tool_choice(choice, &conversation.tools));
    }
    Ok(conversation)
}

fn read_field(conversation: &mut Conversation, key: &str, value: &Value) -> Result<(), Refusal> {
    match key {
        "model" => conversation.model = string(key, value)?.to_owned(),
        "stream" => conversation.is_streamed = boolean(key, value)?,
        "instructions" => conversation.system = vec![Part::text(string(key, value)?)],
        "input" => conversation.turns = read_input(value)?,
        "tools" => conversation.tools = read_tools(value)?,
        // Read last, because it depends on the tools.
        "tool_choice" => {}
        "parallel_tool_calls" => conversation.parallel_tools = Some(boolean(key, value)?),
        "text" => read_text(conversation, value)?,
        "reasoning" => conversation.reasoning = read_reasoning(value)?,
        "max_output_tokens" => {
            let limit = value.as_u64().ok_or_else(|| Refusal::new(key, "must be an integer"))?;
            conversation.max_tokens = Some(limit);
        }
        "temperature" => conversation.temperature = Some(number(key, value)?),
        "top_p" => conversation.top_p = Some(number(key, value)?),
        _ => {
            conversation.extra.insert(key.to_owned(), value.clone());
        }
    }
    Ok(())
}

fn string<'a>(path: &str, value: &'a Value) -> Result<&'a str, Refusal> {
    value.as_str().ok_or_else(|| Refusal::new(path, "must be a string"))
}

fn boolean(path: &str, value: &Value) -> Result<bool, Refusal> {
    value.as_bool().ok_or_else(|| Refusal::new(path, "must be true or false"))
}

fn number(path: &str, value: &Value) -> Result<f64, Refusal> {
    value.as_f64().ok_or_else(|| Refusal::new(path, "must be a number"))
}

fn list<'a>(path: &str, value: &'a Value) -> Result<&'a Vec<Value>, Refusal> {
    value.as_array().ok_or_else(|| Refusal::new(path, "must be a list"))
}

fn fields<'a>(path: &str, value: &'a Value) -> Result<&'a Map<String, Value>, Refusal> {
    value.as_object().ok_or_else(|| Refusal::new(path, "must be an object"))
}

fn read_input(value: &Value) -> Result<Vec<Turn>, Refusal> {
    if let Some(text) = value.as_str() {
        return Ok(vec![Turn::new(Role::User, vec![Part::text(text)])]);
    }
    let mut custom_calls = HashSet::new();
    let items = value.as_array();
    let items = items.ok_or_else(|| Refusal::new("input", "must be a string or a list"))?;
    let read = |(index, item)| read_item(&format!("input[{index}]"), item, &mut custom_calls);
    items.iter().enumerate().map(read).collect()
}

/// Reads an item. `custom_calls` has the ids of earlier calls of custom tools.
fn read_item(
    path: &str,
    item: &Value,
    custom_calls: &mut HashSet<String>,
) -> Result<Turn, Refusal> {
    let item_fields = fields(path, item)?;
    let kind = item["type"].as_str();
    let role = item["role"].as_str().and_then(read_role);
    if let (Some("message") | None, Some(role)) = (kind, role) {
        return read_message(path, item_fields, role);
    }
    if let Some(part) = read_model_item(item) {
        if let PartKind::ToolCall { id, is_custom: true, .. } = &part.kind {
            custom_calls.insert(id.clone());
        }
        return Ok(Turn::new(Role::Assistant, vec![part]));
    }
    if let Some("function_call_output" | "custom_tool_call_output") = kind
        && let Some(id) = item["call_id"].as_str()
    {
        let part = read_result(path, item_fields, id, custom_calls)?;
        return Ok(Turn::new(Role::User, vec![part]));
    }
    let is_call = kind.is_some_and(|kind| kind.ends_with("_call"));
    let mut part = Part::new(PartKind::Other(item.clone()));
    part.extra.insert(IS_ITEM.to_owned(), Value::Bool(true));
    Ok(Turn::new(if is_call { Role::Assistant } else { Role::User }, vec![part]))
}

fn read_role(name: &str) -> Option<Role> {
    Some(match name {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return None,
    })
}

fn read_message(path: &str, item: &Map<String, Value>, role: Role) -> Result<Turn, Refusal> {
    let path = format!("{path}.content");
    let parts = read_contents(&path, item.get("content").unwrap_or(&Value::Null), role)?;
    let is_extra = |key: &str| !["type", "role", "content"].contains(&key);
    let extra = item.iter().filter(|(key, _)| is_extra(key));
    let extra = extra.map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Turn { role, parts, extra })
}

fn read_contents(path: &str, content: &Value, role: Role) -> Result<Vec<Part>, Refusal> {
    match content {
        Value::String(text) => Ok(vec![Part::text(text)]),
        Value::Array(parts) => {
            let read = |(index, part): (usize, &Value)| {
                fields(&format!("{path}[{index}]"), part)?;
                Ok(read_content(part, role))
            };
            parts.iter().enumerate().map(read).collect()
        }
        _ => Err(Refusal::new(path, "must be a string or a list")),
    }
}

fn read_result(
    path: &str,
    item: &Map<String, Value>,
    call_id: &str,
    custom_calls: &HashSet<String>,
) -> Result<Part, Refusal> {
    let output = item.get("output").unwrap_or(&Value::Null);
    let content = read_contents(&format!("{path}.output"), output, Role::User)?;
    let (id, _) = Signature::detach_from(call_id);
    let written = object([
        ("type", Some(result_type(custom_calls.contains(id)).into())),
        ("call_id", Some(json!(call_id))),
        ("output", Some(output.clone())),
    ]);
    let extra = rest(item, &written);
    let kind = PartKind::ToolResult { id: id.to_owned(), content, is_error: false };
    Ok(Part { extra, ..Part::new(kind) })
}

fn read_tools(value: &Value) -> Result<Vec<Tool>, Refusal> {
    let mut tools = Vec::new();
    for (index, value) in list("tools", value)?.iter().enumerate() {
        fields(&format!("tools[{index}]"), value)?;
        match read_namespace(value) {
            Some(of_namespace) => tools.extend(of_namespace),
            None => tools.push(read_tool(value, None).unwrap_or_else(|| Tool {
                kind: ToolKind::Other(value.clone()),
                extra: Extra::new(),
            })),
        }
    }
    Ok(tools)
}

/// Reads a function or a custom tool.
fn read_tool(value: &Value, namespace: Option<&str>) -> Option<Tool> {
    let name = joined_name(namespace, value["name"].as_str()?);
    let description = value["description"].as_str().map(str::to_owned);
    let given = |key: &str| value.get(key).filter(|value| !value.is_null()).cloned();
    let kind = match value["type"].as_str()? {
        "function" => {
            let strict = value["strict"].as_bool();
            ToolKind::Function { name, description, parameters: given("parameters"), strict }
        }
        "custom" => ToolKind::Custom { name, description, format: given("format") },
        _ => return None,
    };
    let extra = rest(value.as_object()?, &write_tool(&kind)?);
    Some(Tool { kind, extra })
}

/// Reads the tools of a namespace, which Codex groups so. Each keeps the namespace's other fields.
/// <https://developers.openai.com/api/docs/guides/function-calling>
fn read_namespace(value: &Value) -> Option<Vec<Tool>> {
    if value["type"] != "namespace" {
        return None;
    }
    let mut group = value.as_object()?.clone();
    let tools = group.remove("tools")?;
    let name = value["name"].as_str()?;
    let read = |tool: &Value| {
        let mut tool = read_tool(tool, Some(name))?;
        tool.extra.insert("namespace".to_owned(), Value::Object(group.clone()));
        Some(tool)
    };
    tools.as_array().filter(|tools| !tools.is_empty())?.iter().map(read).collect()
}

fn read_tool_choice(value: &Value, tools: &[Tool]) -> ToolChoice {
    let named = || {
        let name = value["name"].as_str()?;
        let is_plain = value.as_object()?.len() == 2;
        let is_tool = value["type"] == kind_of_tool(tools, name).unwrap_or("function");
        (is_plain && is_tool).then(|| ToolChoice::Named(name.to_owned()))
    };
    match value.as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("required") => ToolChoice::Required,
        _ => named().unwrap_or_else(|| ToolChoice::Other(value.clone())),
    }
}

/// Reads `text`. Fields without a place of their own get names such as `text.verbosity`.
fn read_text(conversation: &mut Conversation, value: &Value) -> Result<(), Refusal> {
    for (key, value) in fields("text", value)? {
        let mut rest_of_field = Some(value.clone());
        if key == "format" && value.is_object() {
            (conversation.format, rest_of_field) = read_format(value);
        }
        if let Some(value) = rest_of_field {
            conversation.extra.insert(format!("text.{key}"), value);
        }
    }
    Ok(())
}

/// Returns the format, and the fields that it does not have.
fn read_format(value: &Value) -> (OutputFormat, Option<Value>) {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let format = match value["type"].as_str() {
        Some("text") if value.as_object().is_some_and(|fields| fields.len() == 1) => {
            return (OutputFormat::Text, None);
        }
        Some("json_object") => OutputFormat::Json,
        Some("json_schema") if value["schema"].is_object() => OutputFormat::Schema {
            name: text("name"),
            description: text("description"),
            schema: value["schema"].clone(),
            strict: value["strict"].as_bool(),
        },
        _ => return (OutputFormat::Text, Some(value.clone())),
    };
    let written = write_format(&format).unwrap_or_default();
    let rest = value.as_object().map(|fields| rest(fields, &written)).unwrap_or_default();
    (format, (!rest.is_empty()).then_some(Value::Object(rest)))
}

fn read_reasoning(value: &Value) -> Result<Reasoning, Refusal> {
    let mut reasoning = Reasoning::default();
    for (key, value) in fields("reasoning", value)? {
        match (key.as_str(), value.as_str()) {
            ("effort", Some(effort)) => reasoning.effort = Some(effort.to_owned()),
            ("summary", Some("auto")) => reasoning.is_shown = Some(true),
            (_, text) => {
                if key == "summary" && text.is_some() {
                    reasoning.is_shown = Some(true);
                }
                reasoning.extra.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(reasoning)
}

/// Refuses fields that change the answer and that no other API has.
///
/// # Errors
/// The request has such a field.
pub fn check_for_other(conversation: &Conversation) -> Result<(), Refusal> {
    let is_set = |key: &str| match conversation.extra.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(_) => true,
    };
    // The provider has no stored responses, conversations, and prompts; only OpenAI runs a response
    // in the background. Log probabilities are part of the answer.
    let needed = ["previous_response_id", "conversation", "prompt", "background", "top_logprobs"];
    let refused = needed.into_iter().find(|key| is_set(key));
    let has_format = conversation.extra.get("text.format").is_some_and(|it| it["type"].is_string());
    let included = conversation.extra.get("include").and_then(Value::as_array);
    let has_logprobs = included
        .is_some_and(|names| names.iter().any(|name| name == "message.output_text.logprobs"));
    let refused = refused
        .or_else(|| has_format.then_some("text.format"))
        .or_else(|| has_logprobs.then_some("include"));
    match refused {
        Some(field) => Err(Refusal::new(field, "needs a provider with the Responses API")),
        None => Ok(()),
    }
}

/// Returns whether a part is a plain text, without fields of its own.
pub(super) fn plain_text(part: &Part) -> Option<&str> {
    match &part.kind {
        PartKind::Text(text) if part.extra.is_empty() => Some(text),
        _ => None,
    }
}
