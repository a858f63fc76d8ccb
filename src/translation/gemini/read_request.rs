//! Reads requests: <https://ai.google.dev/api/generate-content#request-body>.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::fields::{elements, get, take, take_as, text, whole};
use super::parts::{created_id, read_part};
use super::schema::to_json_schema;
use super::signatures::unpack_thoughts;
use super::thinking::read_thinking;
use crate::translation::{
    Api, Conversation, Extra, OutputFormat, Part, PartKind, Refusal, Role, Tool, ToolChoice,
    ToolKind, Turn,
};

/// The fields that the writer of the same API repeats as the client wrote them.
pub(super) const SYSTEM: &str = "systemInstruction";
pub(super) const TOOLS: &str = "tools";
pub(super) const TOOL_CONFIG: &str = "toolConfig";
pub(super) const GENERATION: &str = "generationConfig";

/// Fields of `generationConfig` that change the answer and that no other API has.
const NOT_TRANSLATED: &[&str] =
    &["responseLogprobs", "logprobs", "responseFormat", "translationConfig", "responseMimeType"];

/// Reads a request. A content without a role is the user's: "must be either 'user' or 'model'", "can
/// be left blank" in <https://ai.google.dev/api/caching#Content>. A call without arguments has `{}`,
/// and so has a result without a response.
pub fn read_request(body: &Value) -> Result<Conversation, Refusal> {
    let Some(fields) = body.as_object() else {
        return Err(Refusal::new("body", "must be an object"));
    };
    let mut fields = fields.clone();
    let mut conversation = Conversation::new(Api::Gemini);
    for name in [SYSTEM, TOOLS, TOOL_CONFIG, GENERATION] {
        if let Some(value) = get(&fields, name) {
            conversation.own.insert(name.to_owned(), value.clone());
        }
    }
    let contents = take(&mut fields, "contents").unwrap_or_else(|| json!([]));
    conversation.turns = read_contents(contents)?;
    if let Some(system) = take(&mut fields, SYSTEM) {
        conversation.system = read_system(system)?;
    }
    if let Some(tools) = take(&mut fields, TOOLS) {
        conversation.tools = read_tools(tools)?;
    }
    if let Some(config) = take(&mut fields, TOOL_CONFIG) {
        read_tool_config(config, &mut conversation)?;
    }
    if let Some(config) = take(&mut fields, GENERATION) {
        read_generation(config, &mut conversation)?;
    }
    conversation.extra.extend(fields);
    Ok(conversation)
}

fn read_contents(contents: Value) -> Result<Vec<Turn>, Refusal> {
    let Some(contents) = elements(contents) else {
        return Err(Refusal::new("contents", "must be a list"));
    };
    let contents = contents.into_iter().enumerate();
    let turns: Result<Vec<Turn>, Refusal> = contents.map(|(at, it)| read_content(it, at)).collect();
    let mut turns = restore_thoughts(turns?);
    assign_ids(&mut turns);
    Ok(turns)
}

fn read_content(content: Value, index: usize) -> Result<Turn, Refusal> {
    let Value::Object(mut fields) = content else {
        return Err(Refusal::new(format!("contents[{index}]"), "must be an object"));
    };
    let role = match get(&fields, "role").and_then(Value::as_str) {
        Some("model") => Role::Assistant,
        _ => Role::User,
    };
    let is_known = |role: &Value| matches!(role.as_str(), Some("user" | "model" | ""));
    if fields.get("role").is_some_and(|role| is_known(role) || role.is_null()) {
        fields.remove("role");
    }
    let parts = take(&mut fields, "parts").unwrap_or_else(|| json!([]));
    let Some(parts) = elements(parts) else {
        return Err(Refusal::new(format!("contents[{index}].parts"), "must be a list"));
    };
    let parts = parts.iter().map(read_part).collect();
    Ok(Turn { role, parts, extra: fields })
}

/// Restores the thoughts of other APIs, which this API's writers wrote for the client. Google's
/// clients return each chunk of a stream as a content of its own, so answers with such thoughts are
/// joined.
fn restore_thoughts(turns: Vec<Turn>) -> Vec<Turn> {
    if !turns.iter().flat_map(|turn| &turn.parts).any(has_foreign) {
        return turns;
    }
    let mut restored: Vec<Turn> = Vec::with_capacity(turns.len());
    for run in turns.chunk_by(|a, b| a.role == b.role) {
        let parts = run.iter().flat_map(|turn| &turn.parts);
        match run {
            [first, ..] if first.role == Role::Assistant && parts.clone().any(has_foreign) => {
                let parts = with_thoughts(with_joined_thoughts(parts.cloned()));
                restored.push(Turn { parts, ..first.clone() });
            }
            run => restored.extend(run.iter().cloned()),
        }
    }
    restored
}

/// Returns whether a part has a signature of another API, or a call carries one.
fn has_foreign(part: &Part) -> bool {
    part.signature.as_ref().is_some_and(|signature| {
        signature.api != Api::Gemini || unpack_thoughts(signature).is_some()
    })
}

/// Joins the chunks of thoughts, of which the last one has the signature.
fn with_joined_thoughts(parts: impl Iterator<Item = Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), &part.kind) {
            (
                Some(Part { kind: PartKind::Thinking(last), signature, .. }),
                PartKind::Thinking(text),
            ) if signature.is_none() => {
                last.push_str(text);
                *signature = part.signature;
            }
            _ => joined.push(part),
        }
    }
    joined
}

/// Puts the thoughts that calls carry before the texts and calls of their answer, unless the client
/// returns them as well.
fn with_thoughts(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::with_capacity(parts.len());
    let mut start = 0;
    for mut part in parts {
        let is_call = matches!(part.kind, PartKind::ToolCall { .. });
        let signature = part.signature.as_ref().filter(|_| is_call);
        if let Some(thoughts) = signature.and_then(unpack_thoughts) {
            part.signature = None;
            let is_new = |it: &Part| !all.iter().any(|part| part.signature == it.signature);
            let thoughts: Vec<Part> = thoughts.into_iter().filter(is_new).collect();
            all.splice(start..start, thoughts);
        }
        all.push(part);
        if is_call {
            start = all.len();
        }
    }
    all
}

/// Gives ids to calls and results without one. A result belongs to the first call of its name that
/// has no result yet.
fn assign_ids(turns: &mut [Turn]) {
    let mut names: HashMap<String, String> = HashMap::new();
    let mut waiting: Vec<String> = Vec::new();
    let mut created = 0;
    for part in turns.iter_mut().flat_map(|turn| &mut turn.parts) {
        match &mut part.kind {
            PartKind::ToolCall { id, name, .. } => {
                if id.is_empty() {
                    *id = created_id(created);
                    created += 1;
                }
                names.insert(id.clone(), name.clone());
                waiting.push(id.clone());
            }
            PartKind::ToolResult { id, .. } => {
                let name = name_of_result(&part.extra).unwrap_or_default();
                let is_named = |it: &String| names.get(it).is_some_and(|it| it == name);
                let found = match id.is_empty() {
                    true => waiting.iter().position(is_named),
                    false => waiting.iter().position(|waiting| waiting == id),
                };
                let found = found.map(|at| waiting.remove(at));
                if id.is_empty() {
                    *id = found.unwrap_or_else(|| {
                        created += 1;
                        created_id(created - 1)
                    });
                }
                if names.get(id).is_some_and(|it| it == name) {
                    remove_name(&mut part.extra);
                }
            }
            _ => {}
        }
    }
}

/// Returns the name that a result has and its call has not.
pub(super) fn name_of_result(extra: &Extra) -> Option<&str> {
    extra.get("functionResponse")?.get("name")?.as_str()
}

fn remove_name(extra: &mut Extra) {
    let Some(Value::Object(rest)) = extra.get_mut("functionResponse") else {
        return;
    };
    rest.remove("name");
    if rest.is_empty() {
        extra.remove("functionResponse");
    }
}

/// Reads the system text: a content, whose role has no meaning, or a text as in Google's clients.
pub(super) fn read_system(system: Value) -> Result<Vec<Part>, Refusal> {
    let must_be = || Refusal::new(SYSTEM, "must be a content");
    match system {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![Part::text(text)]),
        Value::Object(mut content) => {
            let parts = take(&mut content, "parts").unwrap_or_else(|| json!([]));
            Ok(elements(parts).ok_or_else(must_be)?.iter().map(read_part).collect())
        }
        _ => Err(must_be()),
    }
}

/// Reads tools. An object has functions, tools of Google, or both.
pub(super) fn read_tools(tools: Value) -> Result<Vec<Tool>, Refusal> {
    let mut read = Vec::new();
    let tools = match tools {
        Value::Null => Vec::new(),
        tools => elements(tools).ok_or_else(|| Refusal::new(TOOLS, "must be a list"))?,
    };
    for (index, tool) in tools.into_iter().enumerate() {
        let Value::Object(mut fields) = tool else {
            return Err(Refusal::new(format!("tools[{index}]"), "must be an object"));
        };
        if let Some(functions) = take_as(&mut fields, "functionDeclarations", list) {
            read.extend(functions.into_iter().map(read_function));
        }
        for (name, value) in fields {
            let kind = ToolKind::Other(json!({name: value}));
            read.push(Tool { kind, extra: Extra::new() });
        }
    }
    Ok(read)
}

fn list(value: &Value) -> Option<Vec<Value>> {
    elements(value.clone())
}

fn read_function(function: Value) -> Tool {
    let mut fields = match &function {
        Value::Object(fields) => fields.clone(),
        _ => Extra::new(),
    };
    let Some(name) = take_as(&mut fields, "name", text) else {
        let kind = ToolKind::Other(json!({"functionDeclarations": [function]}));
        return Tool { kind, extra: Extra::new() };
    };
    let description = take_as(&mut fields, "description", text);
    let google = take(&mut fields, "parameters").map(|schema| to_json_schema(&schema));
    let parameters = take(&mut fields, "parametersJsonSchema").or(google);
    let parameters = parameters.filter(|parameters| !parameters.is_null());
    Tool { kind: ToolKind::Function { name, description, parameters, strict: None }, extra: fields }
}

/// Reads the modes of <https://ai.google.dev/api/caching#FunctionCallingConfig>. Further fields are
/// in `extra`, with their path.
fn read_tool_config(config: Value, conversation: &mut Conversation) -> Result<(), Refusal> {
    let mut fields = match config {
        Value::Object(fields) => fields,
        Value::Null => return Ok(()),
        _ => return Err(Refusal::new(TOOL_CONFIG, "must be an object")),
    };
    let calling = take(&mut fields, "functionCallingConfig");
    if let Some(Value::Object(calling)) = calling {
        let (choice, rest) = read_calling(calling);
        conversation.tool_choice = choice;
        add_paths(&mut conversation.extra, "toolConfig.functionCallingConfig", rest);
    }
    add_paths(&mut conversation.extra, TOOL_CONFIG, fields);
    Ok(())
}

fn read_calling(mut calling: Extra) -> (Option<ToolChoice>, Extra) {
    let names = get(&calling, "allowedFunctionNames").and_then(Value::as_array);
    let names: Vec<String> = names.into_iter().flatten().filter_map(text).collect();
    let mode = get(&calling, "mode").and_then(Value::as_str).unwrap_or_default();
    let choice = match (mode, &names[..]) {
        ("AUTO", []) => ToolChoice::Auto,
        ("NONE", _) => ToolChoice::None,
        ("ANY", []) => ToolChoice::Required,
        ("ANY", [name]) => ToolChoice::Named(name.clone()),
        // As `AUTO`, with calls that always match their schema.
        ("VALIDATED", []) => return (Some(ToolChoice::Auto), calling),
        ("" | "MODE_UNSPECIFIED", []) => return (None, calling),
        _ => ToolChoice::Other(Value::Object(calling.clone())),
    };
    take(&mut calling, "mode");
    take(&mut calling, "allowedFunctionNames");
    (Some(choice), calling)
}

fn add_paths(extra: &mut Extra, prefix: &str, fields: Extra) {
    extra.extend(fields.into_iter().map(|(name, value)| (format!("{prefix}.{name}"), value)));
}

/// Reads <https://ai.google.dev/api/generate-content#GenerationConfig>. Further fields, and fields
/// with another type, are in `extra`, with their path.
fn read_generation(config: Value, it: &mut Conversation) -> Result<(), Refusal> {
    let mut fields = match config {
        Value::Object(fields) => fields,
        Value::Null => return Ok(()),
        _ => return Err(Refusal::new(GENERATION, "must be an object")),
    };
    fields.retain(|_, value| !value.is_null());
    it.max_tokens = take_as(&mut fields, "maxOutputTokens", whole);
    it.temperature = take_as(&mut fields, "temperature", Value::as_f64);
    it.top_p = take_as(&mut fields, "topP", Value::as_f64);
    it.top_k = take_as(&mut fields, "topK", whole);
    it.seed = take_as(&mut fields, "seed", Value::as_i64);
    it.frequency_penalty = take_as(&mut fields, "frequencyPenalty", Value::as_f64);
    it.presence_penalty = take_as(&mut fields, "presencePenalty", Value::as_f64);
    it.stop = take_as(&mut fields, "stopSequences", texts).unwrap_or_default();
    if let Some(reasoning) = take_as(&mut fields, "thinkingConfig", read_thinking) {
        it.reasoning = reasoning;
    }
    it.format = read_format(&mut fields);
    add_paths(&mut it.extra, GENERATION, fields);
    Ok(())
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(text).collect()
}

fn read_format(fields: &mut Extra) -> OutputFormat {
    let media_type = get(fields, "responseMimeType").and_then(text);
    let is_json = media_type.as_deref() == Some("application/json");
    if is_json || media_type.as_deref() == Some("text/plain") {
        take(fields, "responseMimeType");
    }
    if !is_json {
        return OutputFormat::Text;
    }
    let google = take(fields, "responseSchema").map(|schema| to_json_schema(&schema));
    match take(fields, "responseJsonSchema").or(google) {
        Some(schema) => {
            OutputFormat::Schema { name: None, description: None, schema, strict: None }
        }
        None => OutputFormat::Json,
    }
}

/// Refuses fields that change the answer and that no other API can express.
pub fn check_for_other(conversation: &Conversation) -> Result<(), Refusal> {
    const MESSAGE: &str = "cannot be translated for the API of the provider";
    let extra = &conversation.extra;
    if get(extra, "cachedContent").is_some_and(|cached| !cached.is_null()) {
        return Err(Refusal::new("cachedContent", MESSAGE));
    }
    for (path, value) in extra {
        let Some(name) = path.strip_prefix("generationConfig.") else {
            continue;
        };
        let mut field = Extra::from_iter([(name.to_owned(), value.clone())]);
        let is = |field: &Extra, name: &str| get(field, name).is_some();
        let is_refused = match () {
            () if is(&field, "candidateCount") => whole(value).is_none_or(|count| count > 1),
            () if is(&field, "responseModalities") => {
                let all = take(&mut field, "responseModalities").and_then(elements);
                let all = all.unwrap_or_else(|| vec![value.clone()]);
                all.iter().any(|it| it.as_str().is_none_or(|it| !it.eq_ignore_ascii_case("TEXT")))
            }
            () => NOT_TRANSLATED.iter().any(|name| is(&field, name)) && *value != false,
        };
        if is_refused {
            return Err(Refusal::new(path, MESSAGE));
        }
    }
    Ok(())
}
