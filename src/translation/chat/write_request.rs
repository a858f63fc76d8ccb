use std::borrow::Cow;

use serde_json::{Value, json};

use super::super::dropped::Dropped;
use super::fields::object;
use super::write_messages::{Messages, is_mistral};
use super::write_own::{put_some, write_format, write_own};
use crate::translation::{
    Api, Conversation, Extra, OutputFormat, Reasoning, Refusal, Target, ThinkingMode, ToolChoice,
    ToolKind, ToolNames, Written,
};

/// OpenAI's limit: <https://platform.openai.com/docs/api-reference/chat/create#chat_create-stop>.
const STOPS_MAX: usize = 4;

pub fn write_request(conversation: &Conversation, target: &Target) -> Result<Written, Refusal> {
    if conversation.api == Api::Chat {
        let body = write_own(conversation, target);
        return Ok(Written { body, dropped: Vec::new(), names: ToolNames::default() });
    }
    // Few compatible servers have custom tools; OpenAI itself also speaks Responses.
    let names = ToolNames::new(conversation, false);
    let mut dropped = Dropped::default();
    let (messages, of_messages) = Messages::write(conversation, &names)?;
    let mut body = object(json!({"model": conversation.model, "messages": messages}));
    let tools = write_tools(conversation, &names, &mut dropped);
    write_choice(conversation, &names, tools.len(), &mut body)?;
    if !tools.is_empty() {
        body.insert("tools".to_owned(), tools.into());
        put_some(&mut body, "parallel_tool_calls", conversation.parallel_tools);
    }
    put_some(&mut body, "response_format", write_format(&named(&conversation.format, &names)));
    put_some(&mut body, target.chat_limit, conversation.max_tokens);
    write_sampling(conversation, &mut body, &mut dropped)?;
    write_effort(conversation, &mut body, &mut dropped);
    if conversation.is_streamed {
        body.insert("stream".to_owned(), true.into());
        let options = target.takes_stream_options.then(|| json!({"include_usage": true}));
        put_some(&mut body, "stream_options", options);
    }
    for name in of_messages {
        dropped.add(name);
    }
    for (name, value) in conversation.extra.iter().chain(&conversation.reasoning.extra) {
        if !value.is_null() {
            dropped.add(name.clone());
        }
    }
    Ok(Written { body: Value::Object(body), dropped: dropped.0, names })
}

fn write_tools(
    conversation: &Conversation,
    names: &ToolNames,
    dropped: &mut Dropped,
) -> Vec<Value> {
    let mut tools = Vec::new();
    for (at, tool) in conversation.tools.iter().enumerate() {
        let (name, description, parameters, strict) = match &tool.kind {
            ToolKind::Function { name, description, parameters, strict } => {
                (name, description.clone(), parameters.clone(), *strict)
            }
            ToolKind::Custom { name, description, format } => {
                let text = ToolNames::wrapped_description(description.as_deref(), format.as_ref());
                (name, Some(text), Some(ToolNames::wrapped_parameters()), None)
            }
            ToolKind::Other(tool) => {
                dropped.add(format!("tools[{at}] ({})", kind_of(tool)));
                continue;
            }
        };
        dropped.add_all("tools[*]", &tool.extra);
        let mut function = object(json!({"name": names.at_provider(name)}));
        put_some(&mut function, "description", description.filter(|text| !text.is_empty()));
        // Some servers need the parameters of a function without any, which are optional at OpenAI.
        let none = || json!({"type": "object", "properties": {}});
        function.insert("parameters".to_owned(), parameters.unwrap_or_else(none));
        put_some(&mut function, "strict", strict);
        tools.push(json!({"type": "function", "function": function}));
    }
    tools
}

/// Returns the name of a tool that the provider would run: its type, or its first field in Gemini.
fn kind_of(tool: &Value) -> Cow<'_, str> {
    let first = || tool.as_object().and_then(|fields| fields.keys().next()).map(String::as_str);
    tool["type"].as_str().or_else(first).unwrap_or("unknown").into()
}

/// Adds `tool_choice`. OpenAI rejects it in a request without tools.
fn write_choice(
    conversation: &Conversation,
    names: &ToolNames,
    tools: usize,
    body: &mut Extra,
) -> Result<(), Refusal> {
    let field = if conversation.api == Api::Gemini { "toolConfig" } else { "tool_choice" };
    let refuse = || Err(Refusal::not_expressible(field, Api::Chat));
    let is_named = |wanted: &str| {
        conversation.tools.iter().any(|tool| match &tool.kind {
            ToolKind::Function { name, .. } | ToolKind::Custom { name, .. } => name == wanted,
            ToolKind::Other(_) => false,
        })
    };
    let choice = match &conversation.tool_choice {
        None => return Ok(()),
        Some(ToolChoice::Auto) => "auto".into(),
        Some(ToolChoice::None) => "none".into(),
        Some(ToolChoice::Required) if tools == 0 => return refuse(),
        Some(ToolChoice::Required) => "required".into(),
        Some(ToolChoice::Named(name)) if is_named(name) => {
            json!({"type": "function", "function": {"name": names.at_provider(name)}})
        }
        Some(ToolChoice::Named(_) | ToolChoice::Other(_)) => return refuse(),
    };
    if tools > 0 {
        body.insert("tool_choice".to_owned(), choice);
    }
    Ok(())
}

/// Gives a schema the name that OpenAI requires.
fn named(format: &OutputFormat, names: &ToolNames) -> OutputFormat {
    let mut format = format.clone();
    if let OutputFormat::Schema { name, .. } = &mut format {
        *name = Some(names.at_provider(name.as_deref().unwrap_or("answer")));
    }
    format
}

fn write_sampling(
    conversation: &Conversation,
    body: &mut Extra,
    dropped: &mut Dropped,
) -> Result<(), Refusal> {
    let in_config = |name: &str, config: &str| match conversation.api {
        Api::Gemini => format!("generationConfig.{config}"),
        _ => name.to_owned(),
    };
    put_some(body, "temperature", conversation.temperature);
    put_some(body, "top_p", conversation.top_p);
    put_some(body, "seed", conversation.seed);
    put_some(body, "frequency_penalty", conversation.frequency_penalty);
    put_some(body, "presence_penalty", conversation.presence_penalty);
    if conversation.stop.len() > STOPS_MAX {
        let field = in_config("stop_sequences", "stopSequences");
        let message = format!("has more than {STOPS_MAX} items, the limit of the provider's API");
        return Err(Refusal::new(field, message));
    }
    if !conversation.stop.is_empty() {
        body.insert("stop".to_owned(), conversation.stop.clone().into());
    }
    // OpenAI rejects unknown fields.
    if conversation.top_k.is_some() {
        dropped.add(in_config("top_k", "topK"));
    }
    Ok(())
}

/// Adds the effort of reasoning.
///
/// A disabled mode has no equivalent: OpenAI's models without reasoning reject the field, and the
/// older ones with reasoning reject `none`.
fn write_effort(conversation: &Conversation, body: &mut Extra, dropped: &mut Dropped) {
    let Reasoning { mode, effort, budget_tokens, .. } = &conversation.reasoning;
    let field = match conversation.api {
        Api::Responses => "reasoning",
        Api::Gemini => "generationConfig.thinkingConfig",
        Api::Messages | Api::Chat if effort.is_some() => "output_config.effort",
        Api::Messages | Api::Chat => "thinking",
    };
    let is_off = *mode == Some(ThinkingMode::Disabled) || *budget_tokens == Some(0);
    let budget = budget_tokens.map(|tokens| nearest_effort(tokens).to_owned());
    let wanted = effort.clone().or(budget).filter(|_| !is_off);
    let model = &conversation.model;
    let sent = if body.contains_key("tools") && has_no_tools_with_reasoning(model) {
        Some("none".to_owned())
    } else if is_mistral(model) {
        wanted.as_deref().map(|effort| mistral_effort(effort).to_owned())
    } else {
        wanted.clone().filter(|_| !has_no_reasoning(model))
    };
    if is_off || wanted.is_some_and(|wanted| sent != Some(wanted)) {
        dropped.add(field);
    }
    put_some(body, "reasoning_effort", sent);
}

/// Returns the effort that is nearest to a budget in Google's table:
/// <https://ai.google.dev/gemini-api/docs/openai#thinking>.
fn nearest_effort(budget_tokens: u64) -> &'static str {
    let table = [("low", 1_024_u64), ("medium", 8_192), ("high", 24_576)];
    let nearest = table.into_iter().min_by_key(|(_, tokens)| tokens.abs_diff(budget_tokens));
    nearest.map_or("medium", |(effort, _)| effort)
}

/// Returns the nearest of the efforts that Mistral has:
/// <https://docs.mistral.ai/capabilities/reasoning>.
fn mistral_effort(effort: &str) -> &'static str {
    if ["none", "minimal", "low"].contains(&effort) { "none" } else { "high" }
}

/// Returns whether a model is known to reject `reasoning_effort`: OpenAI's up to GPT-4.5,
/// <https://github.com/generative-computing/mellea/issues/270>.
fn has_no_reasoning(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    ["gpt-3.5", "gpt-4", "chatgpt-4o"].iter().any(|family| name.starts_with(family))
}

/// Returns whether a model of OpenAI rejects functions in chat completions unless the effort is
/// `none`: since GPT-5.4, <https://github.com/openai/openai-openapi/issues/541>,
/// <https://github.com/BerriAI/litellm/pull/34569>. Names of other providers contain a slash.
fn has_no_tools_with_reasoning(model: &str) -> bool {
    let version = model.strip_prefix("gpt-5.").unwrap_or_default();
    let minor = version.split(|c: char| !c.is_ascii_digit()).next();
    minor.and_then(|minor| minor.parse().ok()).is_some_and(|minor: u32| minor >= 4)
}
