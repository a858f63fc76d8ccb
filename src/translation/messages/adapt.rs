//! Turns the request of another API into one that Anthropic accepts.

use serde_json::{Value, json};

use super::super::conversation::{Conversation, Extra, OutputFormat, Tool, ToolChoice, ToolKind};
use super::super::dropped::Dropped;
use super::super::{Api, Refusal, Target, ToolNames};
use super::models::Model;
use super::schema::closed;
use super::{thinking, turns};

pub(super) struct Adapted {
    pub conversation: Conversation,
    pub dropped: Vec<String>,
    pub names: ToolNames,
}

/// Returns the request in Anthropic's terms.
///
/// # Errors
/// The API cannot express a field that changes the meaning of the answer.
pub(super) fn adapted(from: &Conversation, target: &Target) -> Result<Adapted, Refusal> {
    let names = ToolNames::new(from, false);
    let mut dropped = Dropped::default();
    let mut it = Conversation::new(Api::Messages);
    it.model = from.model.clone();
    it.is_streamed = from.is_streamed;
    let turns = turns::converted(from, &names, &mut dropped)?;
    (it.system, it.turns) = (turns.system, turns.turns);
    adapt_tools(from, &names, &mut it, &mut dropped)?;
    match &from.format {
        OutputFormat::Text | OutputFormat::Json => it.format = from.format.clone(),
        OutputFormat::Schema { description, schema, .. } => {
            it.format = OutputFormat::Schema {
                name: None,
                description: None,
                schema: described(closed(schema), description.as_deref()),
                strict: None,
            };
        }
    }
    it.max_tokens = Some(from.max_tokens.unwrap_or(target.output_tokens_assumed.into()));
    let model = Model::read(&from.model);
    let outcome = thinking::adapt(&from.reasoning, model, &mut it);
    if outcome == thinking::Outcome::Dropped {
        dropped.add_field(from.api, "reasoning");
    }
    let is_thinking = outcome == thinking::Outcome::On;
    adapt_sampling(from, model, is_thinking, &mut it, &mut dropped);
    for (key, value) in &from.extra {
        // Says only how chat completions stream their usage.
        if !value.is_null() && key != "stream_options" {
            dropped.add(key);
        }
    }
    for (key, value) in &from.reasoning.extra {
        if !value.is_null() {
            dropped.add(format!("reasoning.{key}"));
        }
    }
    if model.is_some() && !it.tools.is_empty() && !has_marks(&it) {
        // Clients of other APIs expect that their provider caches a prompt that grows. Anthropic does
        // so only on request: <https://platform.claude.com/docs/en/build-with-claude/prompt-caching>.
        it.extra.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    }
    Ok(Adapted { conversation: it, dropped: dropped.0, names })
}

/// Returns whether the client marked parts of its prompt for the cache itself.
fn has_marks(it: &Conversation) -> bool {
    let parts = it.turns.iter().flat_map(|turn| &turn.parts).chain(&it.system);
    let extras = parts.map(|part| &part.extra).chain(it.tools.iter().map(|tool| &tool.extra));
    extras.into_iter().any(|extra| extra.contains_key("cache_control"))
}

fn described(mut schema: Value, description: Option<&str>) -> Value {
    if let (Value::Object(fields), Some(description)) = (&mut schema, description) {
        fields.entry("description").or_insert(description.into());
    }
    schema
}

fn adapt_tools(
    from: &Conversation,
    names: &ToolNames,
    it: &mut Conversation,
    dropped: &mut Dropped,
) -> Result<(), Refusal> {
    for (index, tool) in from.tools.iter().enumerate() {
        match adapted_tool(tool, names, dropped) {
            Some(tool) => it.tools.push(tool),
            None => dropped.add(other_tool(index, tool)),
        }
    }
    let field = if from.api == Api::Gemini { "toolConfig" } else { "tool_choice" };
    let has_tool = |name: &str| {
        it.tools
            .iter()
            .any(|tool| matches!(&tool.kind, ToolKind::Function { name: it, .. } if it == name))
    };
    it.tool_choice = match &from.tool_choice {
        Some(ToolChoice::Named(name)) => {
            let name = names.at_provider(name);
            if !has_tool(&name) {
                return Err(Refusal::not_expressible(field, Api::Messages));
            }
            Some(ToolChoice::Named(name))
        }
        Some(ToolChoice::Required) if it.tools.is_empty() => {
            return Err(Refusal::not_expressible(field, Api::Messages));
        }
        Some(ToolChoice::Other(_)) => {
            return Err(Refusal::not_expressible(field, Api::Messages));
        }
        // A choice needs tools, but calls in earlier turns do not:
        // <https://github.com/anthropics/anthropic-sdk-python/issues/849>.
        choice => choice.clone().filter(|_| !it.tools.is_empty()),
    };
    it.parallel_tools = from.parallel_tools.filter(|_| !it.tools.is_empty());
    if it.tool_choice == Some(ToolChoice::None) {
        it.parallel_tools = None;
    }
    Ok(())
}

fn adapted_tool(tool: &Tool, names: &ToolNames, dropped: &mut Dropped) -> Option<Tool> {
    let (name, description, parameters) = match &tool.kind {
        ToolKind::Function { name, description, parameters, strict } => {
            // The maker's strict tools accept only a part of JSON schema, and only some of them.
            if *strict == Some(true) {
                dropped.add("tools[*].strict");
            }
            let (parameters, rest) = input_schema(parameters.as_ref());
            let description = description.iter().cloned().chain(rest).collect::<Vec<_>>();
            (name, description.join("\n\n"), parameters)
        }
        ToolKind::Custom { name, description, format } => {
            let text = ToolNames::wrapped_description(description.as_deref(), format.as_ref());
            (name, text, ToolNames::wrapped_parameters())
        }
        ToolKind::Other(_) => return None,
    };
    let mut extra = tool.extra.clone();
    let mark = extra.remove("cache_control").filter(|mark| mark["type"] == "ephemeral");
    dropped.add_all("tools[*]", &extra);
    let kind = ToolKind::Function {
        name: names.at_provider(name),
        description: Some(description).filter(|text| !text.is_empty()),
        parameters: Some(parameters),
        strict: None,
    };
    let mark = mark.map(|mark| ("cache_control".to_owned(), mark));
    Some(Tool { kind, extra: mark.into_iter().collect() })
}

/// Returns the schema of a tool's input, which is required and must be of an object. At its top the
/// maker rejects alternatives (<https://github.com/anthropics/claude-code/issues/5319>), which are
/// returned as a text for the description.
fn input_schema(parameters: Option<&Value>) -> (Value, Option<String>) {
    let Some(Value::Object(fields)) = parameters else {
        return (json!({"type": "object", "properties": {}}), None);
    };
    let mut fields = fields.clone();
    fields.insert("type".into(), "object".into());
    let mut rest = Extra::new();
    for key in ["anyOf", "oneOf", "allOf"] {
        rest.extend(fields.remove(key).map(|value| (key.to_owned(), value)));
    }
    let text =
        || format!("The input must match this JSON schema, too: {}", Value::from(rest.clone()));
    let text = (!rest.is_empty()).then(text);
    (Value::Object(fields), text)
}

fn other_tool(index: usize, tool: &Tool) -> String {
    let ToolKind::Other(value) = &tool.kind else {
        return format!("tools[{index}]");
    };
    let kind = value["type"].as_str();
    // Gemini's tools have their name as the only key.
    let key = || value.as_object().and_then(|fields| fields.keys().next()).map(String::as_str);
    match kind.or_else(key) {
        Some(name) => format!("tools[{index}] ({name})"),
        None => format!("tools[{index}]"),
    }
}

/// Sampling fields must be absent while the model thinks:
/// <https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility>.
fn adapt_sampling(
    from: &Conversation,
    model: Option<Model>,
    is_thinking: bool,
    it: &mut Conversation,
    dropped: &mut Dropped,
) {
    if is_thinking || model.is_some_and(Model::rejects_sampling) {
        let all = [("temperature", from.temperature.is_some()), ("top_p", from.top_p.is_some())];
        for (name, _) in all.into_iter().chain([("top_k", from.top_k.is_some())]).filter(|it| it.1)
        {
            dropped.add_field(from.api, name);
        }
    } else {
        it.temperature = from.temperature.map(|temperature| temperature.clamp(0.0, 1.0));
        if it.temperature != from.temperature {
            dropped.add_field(from.api, "temperature");
        }
        it.top_p = from.top_p;
        if it.temperature.is_some() && model.is_some_and(Model::rejects_both_sampling) {
            it.top_p = None;
            if from.top_p.is_some() {
                dropped.add_field(from.api, "top_p");
            }
        }
        it.top_k = from.top_k;
    }
    // A blank stop sequence is refused: <https://github.com/BerriAI/litellm/issues/3286>.
    it.stop = from.stop.iter().filter(|stop| !stop.trim().is_empty()).cloned().collect();
    if it.stop.len() < from.stop.len() {
        dropped.add_field(from.api, "stop");
    }
    let unknown = [
        ("seed", from.seed.is_some()),
        ("frequency_penalty", from.frequency_penalty.is_some()),
        ("presence_penalty", from.presence_penalty.is_some()),
    ];
    for (name, _) in unknown.into_iter().filter(|(_, is_set)| *is_set) {
        dropped.add_field(from.api, name);
    }
}
