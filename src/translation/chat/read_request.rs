use serde_json::{Value, json};

use super::fields::{expect, keep_rest, take, take_bool, take_object, take_str};
use super::message::read_message;
use crate::translation::{
    Api, Conversation, Extra, OutputFormat, Reasoning, Refusal, ThinkingMode, Tool, ToolChoice,
    ToolKind,
};

/// Fields that change the meaning of the answer, and that no other API has.
const ONLY_HERE: &[&str] =
    &["audio", "functions", "function_call", "logit_bias", "response_format"];
/// Such fields of messages. `role` remains only if it is unknown.
const ONLY_HERE_IN_MESSAGES: &[&str] = &["role", "audio", "function_call", "tool_calls"];

pub fn read_request(body: &Value) -> Result<Conversation, Refusal> {
    let mut conversation = Conversation::new(Api::Chat);
    let Some(body) = body.as_object() else {
        return Err(Refusal::new("body", "must be a JSON object"));
    };
    let mut fields = body.clone();
    let messages = expect(&mut fields, "messages", "an array", |it| it.as_array().cloned())?;
    let messages = messages.ok_or_else(|| Refusal::new("messages", "is missing"))?;
    let turns = messages.iter().enumerate().map(|(at, message)| read_message(at, message));
    conversation.turns = turns.collect::<Result<_, _>>()?;

    let text = |value: &Value| value.as_str().map(str::to_owned);
    conversation.model = expect(&mut fields, "model", "a string", text)?.unwrap_or_default();
    let is_streamed = expect(&mut fields, "stream", "true or false", Value::as_bool)?;
    conversation.is_streamed = is_streamed.unwrap_or_default();
    let tools = expect(&mut fields, "tools", "an array", |it| it.as_array().cloned())?;
    conversation.tools = tools.unwrap_or_default().into_iter().map(read_tool).collect();
    read_sampling(&mut conversation, &mut fields)?;
    let choice = take(&mut fields, "tool_choice", |it| (!it.is_null()).then(|| it.clone()));
    conversation.tool_choice = choice.map(|it| read_choice(it, &conversation.tools));
    if let Some(format) = fields.get("response_format").and_then(read_format) {
        conversation.format = format;
        fields.shift_remove("response_format");
    }
    conversation.reasoning = read_reasoning(&mut fields)?;
    conversation.extra = fields;
    Ok(conversation)
}

fn read_sampling(conversation: &mut Conversation, fields: &mut Extra) -> Result<(), Refusal> {
    let mut number = |name: &str| expect(fields, name, "a number", Value::as_f64);
    conversation.temperature = number("temperature")?;
    conversation.top_p = number("top_p")?;
    conversation.frequency_penalty = number("frequency_penalty")?;
    conversation.presence_penalty = number("presence_penalty")?;
    conversation.top_k = match fields.get("top_k") {
        // vLLM: -1 for all tokens, https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html
        Some(value) if value.as_i64().is_some_and(|value| value < 0) => None,
        _ => expect(fields, "top_k", "a whole number", Value::as_u64)?,
    };
    let mut limit = |name: &str| expect(fields, name, "a whole number", Value::as_u64);
    conversation.max_tokens = match limit("max_completion_tokens")? {
        Some(limit) => Some(limit),
        None => limit("max_tokens")?,
    };
    conversation.seed = expect(fields, "seed", "a whole number", Value::as_i64)?;
    conversation.stop =
        expect(fields, "stop", "a string or an array of strings", read_stop)?.unwrap_or_default();
    conversation.parallel_tools =
        expect(fields, "parallel_tool_calls", "true or false", Value::as_bool)?;
    Ok(())
}

fn read_stop(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(texts) => texts.iter().map(|it| it.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn read_tool(value: Value) -> Tool {
    let known = value.as_object().and_then(|tool| match tool.get("type")?.as_str()? {
        "function" => read_function(tool.clone()),
        "custom" => read_custom(tool.clone()),
        _ => None,
    });
    known.unwrap_or_else(|| Tool { kind: ToolKind::Other(value), extra: Extra::new() })
}

fn read_function(mut tool: Extra) -> Option<Tool> {
    let mut function = take_object(&mut tool, "function")?;
    let kind = ToolKind::Function {
        name: take_str(&mut function, "name")?,
        description: take_str(&mut function, "description"),
        parameters: take(&mut function, "parameters", |it| it.is_object().then(|| it.clone())),
        strict: take_bool(&mut function, "strict"),
    };
    keep_rest(&mut tool, "function", function);
    tool.shift_remove("type");
    Some(Tool { kind, extra: tool })
}

fn read_custom(mut tool: Extra) -> Option<Tool> {
    let mut custom = take_object(&mut tool, "custom")?;
    let kind = ToolKind::Custom {
        name: take_str(&mut custom, "name")?,
        description: take_str(&mut custom, "description"),
        format: take(&mut custom, "format", flat_grammar),
    };
    keep_rest(&mut tool, "custom", custom);
    tool.shift_remove("type");
    Some(Tool { kind, extra: tool })
}

/// Returns the format of a custom tool as the Responses API has it: there, the fields of `grammar`
/// are beside the type.
fn flat_grammar(format: &Value) -> Option<Value> {
    let format = format.as_object()?;
    let mut flat = match format.get("grammar") {
        Some(grammar) if format.len() == 2 => grammar.as_object()?.clone(),
        None if format.len() == 1 => return Some(format.clone().into()),
        _ => return None,
    };
    let is_unique = !flat.is_empty() && !flat.contains_key("type");
    flat.insert("type".to_owned(), format.get("type")?.clone());
    is_unique.then_some(Value::Object(flat))
}

fn read_choice(value: Value, tools: &[Tool]) -> ToolChoice {
    match value.as_str() {
        Some("auto") => return ToolChoice::Auto,
        Some("none") => return ToolChoice::None,
        Some("required") => return ToolChoice::Required,
        _ => {}
    }
    let name = value["function"]["name"].as_str().or_else(|| value["custom"]["name"].as_str());
    match name {
        Some(name) if named_choice(name, tools) == value => ToolChoice::Named(name.to_owned()),
        _ => ToolChoice::Other(value),
    }
}

/// Returns the choice of one tool.
pub(super) fn named_choice(name: &str, tools: &[Tool]) -> Value {
    let is_it = |tool: &Tool| matches!(&tool.kind, ToolKind::Custom { name: it, .. } if it == name);
    let kind = if tools.iter().any(is_it) { "custom" } else { "function" };
    json!({"type": kind, kind: {"name": name}})
}

/// Reads a format without unknown fields.
fn read_format(value: &Value) -> Option<OutputFormat> {
    let mut format = value.as_object()?.clone();
    match &*take_str(&mut format, "type")? {
        "text" if format.is_empty() => Some(OutputFormat::Text),
        "json_object" if format.is_empty() => Some(OutputFormat::Json),
        "json_schema" => {
            let mut inner = take_object(&mut format, "json_schema")?;
            let read = OutputFormat::Schema {
                name: take_str(&mut inner, "name"),
                description: take_str(&mut inner, "description"),
                schema: take(&mut inner, "schema", |it| it.is_object().then(|| it.clone()))?,
                strict: take_bool(&mut inner, "strict"),
            };
            (format.is_empty() && inner.is_empty()).then_some(read)
        }
        _ => None,
    }
}

/// Reads OpenAI's effort, OpenRouter's `reasoning` and DeepSeek's `thinking`:
/// <https://openrouter.ai/docs/guides/best-practices/reasoning-tokens>,
/// <https://api-docs.deepseek.com/guides/thinking_mode>.
fn read_reasoning(fields: &mut Extra) -> Result<Reasoning, Refusal> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let effort = expect(fields, "reasoning_effort", "a string", text)?;
    let mut reasoning = Reasoning { effort: effort.clone(), ..Reasoning::default() };
    if let Some(own) = take_object(fields, "reasoning") {
        reasoning.effort = effort.clone().or_else(|| own.get("effort").and_then(text));
        reasoning.budget_tokens = own.get("max_tokens").and_then(Value::as_u64);
        reasoning.is_shown = own.get("exclude").and_then(Value::as_bool).map(|it| !it);
        reasoning.mode = own.get("enabled").and_then(Value::as_bool).map(mode);
        keep(&mut reasoning.extra, "reasoning", own);
    }
    if let Some(own) = take_object(fields, "thinking") {
        let kind = own.get("type").and_then(Value::as_str);
        reasoning.mode = match kind {
            Some("enabled") => Some(ThinkingMode::Enabled),
            Some("disabled") => Some(ThinkingMode::Disabled),
            _ => reasoning.mode,
        };
        keep(&mut reasoning.extra, "thinking", own);
    }
    if let Some(effort) = effort.filter(|_| !reasoning.extra.is_empty()) {
        reasoning.extra.insert("reasoning_effort".to_owned(), effort.into());
    }
    Ok(reasoning)
}

fn mode(is_enabled: bool) -> ThinkingMode {
    if is_enabled { ThinkingMode::Enabled } else { ThinkingMode::Disabled }
}

fn keep(extra: &mut Extra, name: &str, own: Extra) {
    extra.insert(name.to_owned(), Value::Object(own));
}

/// Refuses fields that change the meaning of the answer, and that only chat completions have.
///
/// # Errors
/// The conversation has such a field.
pub fn check_for_other(conversation: &Conversation) -> Result<(), Refusal> {
    let extra = &conversation.extra;
    let refuse = |field: String| Err(Refusal::new(field, "needs a provider of chat completions"));
    if extra.get("n").and_then(Value::as_u64).is_some_and(|n| n > 1) {
        return refuse("n".to_owned());
    }
    if extra.get("logprobs").and_then(Value::as_bool) == Some(true) {
        return refuse("logprobs".to_owned());
    }
    // An empty object enables the search.
    if extra.get("web_search_options").is_some_and(Value::is_object) {
        return refuse("web_search_options".to_owned());
    }
    let modalities = extra.get("modalities").and_then(Value::as_array);
    if modalities.is_some_and(|all| all.iter().any(|modality| modality != "text")) {
        return refuse("modalities".to_owned());
    }
    if let Some(field) = ONLY_HERE.iter().find(|name| extra.get(**name).is_some_and(is_set)) {
        return refuse((*field).to_owned());
    }
    for (at, turn) in conversation.turns.iter().enumerate() {
        let is_here = |name: &&&str| turn.extra.get(**name).is_some_and(is_set);
        if let Some(field) = ONLY_HERE_IN_MESSAGES.iter().find(is_here) {
            return refuse(format!("messages[{at}].{field}"));
        }
    }
    Ok(())
}

/// Removes the fields of a checked conversation that do not change the answer, so that they are not
/// listed as dropped: the number 1 of choices, for example. The gateway sees to `stream_options`.
pub fn forget(conversation: &mut Conversation) {
    let names = ["stream_options", "n", "logprobs", "modalities"];
    conversation.extra.retain(|name, _| !names.contains(&&**name));
}

/// Returns whether a field has a value other than none, or an empty list or object.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}
