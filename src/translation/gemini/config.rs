//! The tools and settings of a request.

use super::super::dropped::Dropped;
use serde_json::{Value, json};

use super::fields::number;
use super::thinking::write_thinking;
use crate::translation::{
    Api, Conversation, Extra, OutputFormat, Refusal, ToolChoice, ToolKind, ToolNames,
};

/// "up to 5": <https://ai.google.dev/api/generate-content#GenerationConfig>.
const STOPS_MAX: usize = 5;
/// "Values can range from [0.0, 2.0]", in the same place.
const TEMPERATURE_MAX: f64 = 2.0;

/// Writes the functions as one tool, and after it those of Google, if the client knows them. The
/// parameters are a JSON schema: `parametersJsonSchema` in
/// <https://ai.google.dev/api/caching#FunctionDeclaration>.
pub(super) fn write_tools(
    it: &Conversation,
    names: &ToolNames,
    dropped: &mut Dropped,
) -> Option<Value> {
    let (mut functions, mut others) = (Vec::new(), Vec::new());
    for (index, tool) in it.tools.iter().enumerate() {
        let (name, description, parameters) = match &tool.kind {
            ToolKind::Function { name, description, parameters, strict } => {
                if *strict == Some(true) {
                    dropped.add("tools[*].strict");
                }
                (name, description.clone(), parameters.clone())
            }
            ToolKind::Custom { name, description, format } => {
                let description = description.as_deref();
                let description = ToolNames::wrapped_description(description, format.as_ref());
                (name, Some(description), Some(ToolNames::wrapped_parameters()))
            }
            ToolKind::Other(value) if it.api == Api::Gemini => {
                others.push(value.clone());
                continue;
            }
            ToolKind::Other(value) => {
                let kind = value["type"].as_str().unwrap_or("unknown");
                dropped.add(format!("tools[{index}] ({kind})"));
                continue;
            }
        };
        let mut function = match it.api {
            Api::Gemini => tool.extra.clone(),
            _ => Extra::new(),
        };
        function.insert("name".to_owned(), names.at_provider(name).into());
        let description = description.filter(|it| !it.is_empty()).map(Value::from);
        function.extend(description.map(|it| ("description".to_owned(), it)));
        function.extend(parameters.map(|it| ("parametersJsonSchema".to_owned(), it)));
        functions.push(Value::Object(function));
    }
    let functions =
        Some(json!({"functionDeclarations": functions})).filter(|_| !functions.is_empty());
    let tools: Vec<Value> = functions.into_iter().chain(others).collect();
    Some(Value::from(tools)).filter(|tools| *tools != json!([]))
}

/// Writes the choice of a tool, if there are functions: Gemini refuses it without them.
pub(super) fn write_tool_config(
    it: &Conversation,
    names: &ToolNames,
) -> Result<Option<Value>, Refusal> {
    let is_function = |name: &str| {
        it.tools.iter().any(|tool| match &tool.kind {
            ToolKind::Function { name: it, .. } | ToolKind::Custom { name: it, .. } => it == name,
            ToolKind::Other(_) => false,
        })
    };
    let has_functions = it.tools.iter().any(|tool| !matches!(tool.kind, ToolKind::Other(_)));
    let is_own = it.api == Api::Gemini;
    let calling = match &it.tool_choice {
        None => return Ok(None),
        Some(ToolChoice::Auto | ToolChoice::None) if !has_functions && !is_own => return Ok(None),
        Some(ToolChoice::Auto) => json!({"mode": "AUTO"}),
        Some(ToolChoice::None) => json!({"mode": "NONE"}),
        Some(ToolChoice::Required) if has_functions || is_own => json!({"mode": "ANY"}),
        Some(ToolChoice::Named(name)) if is_function(name) || is_own => {
            json!({"mode": "ANY", "allowedFunctionNames": [names.at_provider(name)]})
        }
        Some(ToolChoice::Other(value)) if is_own => value.clone(),
        Some(_) => return Err(Refusal::not_expressible("tool_choice", Api::Gemini)),
    };
    Ok(Some(json!({"functionCallingConfig": calling})))
}

/// Writes <https://ai.google.dev/api/generate-content#GenerationConfig>.
pub(super) fn write_generation(
    it: &Conversation,
    dropped: &mut Dropped,
) -> Result<Option<Value>, Refusal> {
    let stop = if it.api == Api::Messages { "stop_sequences" } else { "stop" };
    if it.stop.len() > STOPS_MAX && it.api != Api::Gemini {
        let message = format!("must have at most {STOPS_MAX} entries for the API of the provider");
        return Err(Refusal::new(stop, message));
    }
    let temperature = it.temperature.map(|it| it.clamp(0.0, TEMPERATURE_MAX));
    if temperature != it.temperature {
        dropped.add("temperature");
    }
    // A 32-bit integer in the protocol: <https://ai.google.dev/api/generate-content#GenerationConfig>.
    let seed = it.seed.filter(|seed| i32::try_from(*seed).is_ok());
    if seed != it.seed {
        dropped.add("seed");
    }
    if it.parallel_tools == Some(false) {
        dropped.add(match it.api {
            Api::Messages => "tool_choice.disable_parallel_tool_use",
            _ => "parallel_tool_calls",
        });
    }
    let (media_type, schema) = match &it.format {
        OutputFormat::Text => (None, None),
        OutputFormat::Json => (Some("application/json"), None),
        OutputFormat::Schema { schema, .. } => (Some("application/json"), Some(schema.clone())),
    };
    let fields = [
        ("maxOutputTokens", it.max_tokens.map(Value::from)),
        ("temperature", temperature.map(number)),
        ("topP", it.top_p.map(number)),
        ("topK", it.top_k.map(Value::from)),
        ("seed", seed.map(Value::from)),
        ("frequencyPenalty", it.frequency_penalty.map(number)),
        ("presencePenalty", it.presence_penalty.map(number)),
        ("stopSequences", Some(&it.stop).filter(|stop| !stop.is_empty()).map(|it| json!(it))),
        ("responseMimeType", media_type.map(Value::from)),
        ("responseJsonSchema", schema),
        (
            "thinkingConfig",
            write_thinking(
                &it.reasoning,
                &it.model,
                it.max_tokens.filter(|_| it.api != Api::Gemini),
            ),
        ),
    ];
    let set = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Ok(Some(Value::Object(set.collect())).filter(|config| *config != json!({})))
}
