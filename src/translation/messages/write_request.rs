//! Writes requests for providers.

use serde_json::{Map, Value, json};

use super::super::conversation::{
    Conversation, Extra, OutputFormat, Part, PartKind, Reasoning, Role, ThinkingMode, Tool,
    ToolChoice, ToolKind, Turn,
};
use super::super::{Api, Refusal, Target, ToolNames, Written};
use super::adapt::adapted;
use super::blocks::{content_of, with_extra, write_block};
use super::models::Model;

/// Stands for a request of any JSON object, which the API does not have.
const JSON_ONLY: &str = "Answer with one JSON object and nothing else.";

/// Writes a request for a provider. That of another API is adapted first.
///
/// # Errors
/// The API cannot express a field that changes the meaning of the answer.
pub fn write_request(conversation: &Conversation, target: &Target) -> Result<Written, Refusal> {
    if conversation.api == Api::Messages {
        let body = write_body(conversation, target);
        return Ok(Written { body, dropped: Vec::new(), names: ToolNames::default() });
    }
    let adapted = adapted(conversation, target)?;
    let body = write_body(&adapted.conversation, target);
    Ok(Written { body, dropped: adapted.dropped, names: adapted.names })
}

fn write_body(it: &Conversation, target: &Target) -> Value {
    let mut body = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    set("model", Some(it.model.as_str().into()));
    let max_tokens = it.max_tokens.unwrap_or(target.output_tokens_assumed.into());
    set("max_tokens", Some(max_tokens.into()));
    let mut system: Vec<Value> = it.system.iter().filter_map(write_block).collect();
    if it.format == OutputFormat::Json {
        system.push(json!({"type": "text", "text": JSON_ONLY}));
    }
    set("system", (!system.is_empty()).then(|| content_of(system)));
    let is_claude = Model::read(&it.model).is_some();
    let turns = it.turns.iter().filter_map(|turn| write_turn(turn, is_claude));
    set("messages", Some(turns.collect()));
    let tools: Vec<Value> = it.tools.iter().map(write_tool).collect();
    set("tools", (!tools.is_empty()).then(|| tools.into()));
    set("tool_choice", write_tool_choice(it));
    set("thinking", write_thinking(&it.reasoning));
    set("temperature", it.temperature.map(number));
    set("top_p", it.top_p.map(number));
    set("top_k", it.top_k.map(Value::from));
    set("stop_sequences", (!it.stop.is_empty()).then(|| json!(it.stop)));
    set("stream", it.is_streamed.then_some(true.into()));
    body.extend(it.extra.clone());
    write_output_config(it, &mut body);
    Value::Object(body)
}

/// Returns an integer if the number is one, because clients wrote it so.
fn number(value: f64) -> Value {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match value.fract() == 0.0 && value.abs() < EXACT_MAX {
        true => (value as i64).into(),
        false => value.into(),
    }
}

/// Returns nothing if all parts are left out: thinking that another maker signed, and for Claude also
/// thinking without a signature, which a client has from another model.
fn write_turn(turn: &Turn, is_claude: bool) -> Option<Value> {
    if let [part] = turn.parts.as_slice()
        && let (PartKind::Other(message), true) = (&part.kind, turn.extra.contains_key("role"))
    {
        return Some(message.clone());
    }
    let role = match turn.role {
        Role::System | Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let is_unsigned =
        |part: &Part| matches!(part.kind, PartKind::Thinking(_)) && part.signature.is_none();
    let kept = turn.parts.iter().filter(|part| !(is_claude && is_unsigned(part)));
    let blocks: Vec<Value> = kept.filter_map(write_block).collect();
    if blocks.is_empty() && !turn.parts.is_empty() {
        return None;
    }
    Some(with_extra(json!({"role": role, "content": content_of(blocks)}), &turn.extra))
}

fn write_tool(tool: &Tool) -> Value {
    let object = match &tool.kind {
        ToolKind::Function { name, description, parameters, strict } => {
            let mut object = json!({"name": name});
            if let Some(description) = description {
                object["description"] = description.as_str().into();
            }
            if let Some(parameters) = parameters {
                object["input_schema"] = parameters.clone();
            }
            if let Some(strict) = strict {
                object["strict"] = (*strict).into();
            }
            object
        }
        ToolKind::Custom { name, description, format } => json!({
            "name": name,
            "description": ToolNames::wrapped_description(description.as_deref(), format.as_ref()),
            "input_schema": ToolNames::wrapped_parameters(),
        }),
        ToolKind::Other(value) => value.clone(),
    };
    with_extra(object, &tool.extra)
}

fn write_tool_choice(it: &Conversation) -> Option<Value> {
    let is_serial = it.parallel_tools == Some(false) && !it.tools.is_empty();
    let mut choice = match &it.tool_choice {
        Some(ToolChoice::Auto) => json!({"type": "auto"}),
        Some(ToolChoice::Required) => json!({"type": "any"}),
        Some(ToolChoice::Named(name)) => json!({"type": "tool", "name": name}),
        Some(ToolChoice::None) => json!({"type": "none"}),
        Some(ToolChoice::Other(value)) => return Some(value.clone()),
        None if is_serial => json!({"type": "auto"}),
        None => return None,
    };
    if it.parallel_tools == Some(false) {
        choice["disable_parallel_tool_use"] = true.into();
    }
    Some(choice)
}

fn write_thinking(reasoning: &Reasoning) -> Option<Value> {
    let mut thinking = Extra::new();
    if let Some(mode) = reasoning.mode {
        let kind = match mode {
            ThinkingMode::Enabled => "enabled",
            ThinkingMode::Adaptive => "adaptive",
            ThinkingMode::Disabled => "disabled",
        };
        thinking.insert("type".into(), kind.into());
    }
    if let Some(budget) = reasoning.budget_tokens {
        thinking.insert("budget_tokens".into(), budget.into());
    }
    if let Some(is_shown) = reasoning.is_shown {
        let display = if is_shown { "summarized" } else { "omitted" };
        thinking.insert("display".into(), display.into());
    }
    thinking.extend(reasoning.extra.clone());
    (!thinking.is_empty()).then_some(thinking.into())
}

fn write_output_config(it: &Conversation, body: &mut Extra) {
    let mut config = Extra::new();
    if let Some(effort) = &it.reasoning.effort {
        config.insert("effort".into(), effort.as_str().into());
    }
    if let OutputFormat::Schema { schema, .. } = &it.format {
        config.insert("format".into(), json!({"type": "json_schema", "schema": schema}));
    }
    if config.is_empty() {
        return;
    }
    if let Some(Value::Object(rest)) = body.remove("output_config") {
        config.extend(rest);
    }
    body.insert("output_config".into(), config.into());
}
