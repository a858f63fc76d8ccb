//! Items of requests and answers, and the parts of their content.

use serde_json::{Map, Value, json};

use crate::translation::{
    Api, Extra, Media, OutputFormat, Part, PartKind, Role, Signature, Source, Tool, ToolKind,
};

/// Joins the namespace of a tool and its name. No name contains it, so other APIs get a name that
/// `ToolNames` accepts, and the answer gets the namespace back.
const NAMESPACE_END: char = '\u{1f}';
/// Marks an unknown item; an unknown part of a message's content has no mark.
pub(super) const IS_ITEM: &str = "is_item";

/// Returns the fields of `given` that `written` lacks or has otherwise.
pub(super) fn rest(given: &Map<String, Value>, written: &Map<String, Value>) -> Extra {
    let differs = |(key, value): &(&String, &Value)| written.get(*key) != Some(*value);
    given.iter().filter(differs).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns an object of the fields that have a value.
pub(super) fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

pub(super) fn joined_name(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}{NAMESPACE_END}{name}"),
        None => name.to_owned(),
    }
}

/// Returns the namespace of a tool, if any, and its name.
pub(super) fn split_name(name: &str) -> (Option<&str>, &str) {
    match name.split_once(NAMESPACE_END) {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, name),
    }
}

fn text_field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// Returns the type of texts in a message of this role.
pub(super) fn text_type(role: Role) -> &'static str {
    if role == Role::Assistant { "output_text" } else { "input_text" }
}

/// Reads a part of a message's content, or of a tool's output.
pub(super) fn read_content(value: &Value, role: Role) -> Part {
    let kind = value.as_object().and_then(content_kind);
    let (Some(kind), Some(fields)) = (kind, value.as_object()) else {
        return Part::new(PartKind::Other(value.clone()));
    };
    let mut part = Part::new(kind);
    if let Some(written) = write_content(&part.kind, role) {
        part.extra = rest(fields, &written);
    }
    part
}

fn content_kind(fields: &Map<String, Value>) -> Option<PartKind> {
    let text = |name: &str| text_field(fields, name);
    let stored = || text("file_id").map(|id| Source::File(id.to_owned()));
    let media = |source, name: Option<&str>| Media { source, name: name.map(str::to_owned) };
    Some(match text("type")? {
        "input_text" | "output_text" | "text" => PartKind::Text(text("text")?.to_owned()),
        "refusal" => PartKind::Refusal(text("refusal")?.to_owned()),
        "input_image" => {
            let source = text("image_url").map(Source::of_url).or_else(stored)?;
            PartKind::Image(media(source, None))
        }
        "input_file" => {
            let data = text("file_data").map(|data| file_source(data, text("filename")));
            let url = || Some(Source::of_url(text("file_url")?));
            let source = data.or_else(url).or_else(stored)?;
            PartKind::Document(media(source, text("filename")))
        }
        "input_audio" => {
            let audio = fields.get("input_audio")?.as_object()?;
            let media_type = audio_media_type(text_field(audio, "format")?)?.to_owned();
            let base64 = text_field(audio, "data")?.to_owned();
            PartKind::Audio(media(Source::Data { media_type, base64 }, None))
        }
        _ => return None,
    })
}

/// Reads `file_data`, which some clients send without the beginning of a data URL.
fn file_source(data: &str, name: Option<&str>) -> Source {
    match Source::of_url(data) {
        source @ Source::Data { .. } => source,
        _ => {
            let is_text = name.is_some_and(|name| name.ends_with(".txt") || name.ends_with(".md"));
            let media_type = if is_text { "text/plain" } else { "application/pdf" };
            Source::Data { media_type: media_type.to_owned(), base64: data.to_owned() }
        }
    }
}

fn audio_media_type(format: &str) -> Option<&'static str> {
    match format {
        "mp3" => Some("audio/mpeg"),
        "wav" => Some("audio/wav"),
        _ => None,
    }
}

/// Writes a part of a message's content, without its extra fields. None if it is not one.
pub(super) fn write_content(kind: &PartKind, role: Role) -> Option<Map<String, Value>> {
    Some(match kind {
        PartKind::Text(text) => {
            object([("type", Some(text_type(role).into())), ("text", Some(json!(text)))])
        }
        PartKind::Refusal(text) => {
            object([("type", Some("refusal".into())), ("refusal", Some(json!(text)))])
        }
        PartKind::Image(media) => object([
            ("type", Some("input_image".into())),
            ("image_url", media.source.to_url().map(Value::from)),
            ("file_id", file_id(media)),
        ]),
        PartKind::Document(media) => {
            let is_data = matches!(media.source, Source::Data { .. });
            let field = if is_data { "file_data" } else { "file_url" };
            object([
                ("type", Some("input_file".into())),
                ("filename", media.name.clone().map(Value::from)),
                (field, media.source.to_url().map(Value::from)),
                ("file_id", file_id(media)),
            ])
        }
        PartKind::Audio(media) => {
            let Source::Data { media_type, base64 } = &media.source else {
                return None;
            };
            let format = if media_type == "audio/mpeg" { "mp3" } else { "wav" };
            let audio = json!({"data": base64, "format": format});
            object([("type", Some("input_audio".into())), ("input_audio", Some(audio))])
        }
        _ => return None,
    })
}

fn file_id(media: &Media) -> Option<Value> {
    match &media.source {
        Source::File(id) => Some(json!(id)),
        _ => None,
    }
}

/// Reads an item that is a part by itself: a call of a tool, or reasoning.
pub(super) fn read_model_item(item: &Value) -> Option<Part> {
    let fields = item.as_object()?;
    let mut part = match text_field(fields, "type")? {
        kind @ ("function_call" | "custom_tool_call") => {
            read_call(fields, kind != "function_call")?
        }
        "reasoning" => read_reasoning(fields)?,
        _ => return None,
    };
    let written = write_model_item(&part)?;
    part.extra = rest(fields, &written);
    // The id of a call may carry a signature.
    part.extra.remove("call_id");
    if written.get("summary").is_some_and(|it| *it != json!([])) && !fields.contains_key("summary")
    {
        // The text is that of `content`.
        part.extra.insert("summary".to_owned(), json!([]));
    }
    Some(part)
}

fn read_call(fields: &Map<String, Value>, is_custom: bool) -> Option<Part> {
    let (id, signature) = Signature::detach_from(text_field(fields, "call_id")?);
    let name = joined_name(text_field(fields, "namespace"), text_field(fields, "name")?);
    let arguments = text_field(fields, if is_custom { "input" } else { "arguments" })?.to_owned();
    let kind = PartKind::ToolCall { id: id.to_owned(), name, arguments, is_custom };
    Some(Part { signature, ..Part::new(kind) })
}

fn read_reasoning(fields: &Map<String, Value>) -> Option<Part> {
    let mut part = Part::new(PartKind::Thinking(reasoning_text(fields)));
    if let Some(text) = text_field(fields, "encrypted_content") {
        let mut signature = Signature::read(Api::Responses, text);
        if signature.api == Api::Responses {
            signature.id = text_field(fields, "id").map(str::to_owned);
        }
        part.signature = Some(signature).filter(|_| !is_unsigned(text));
    }
    Some(part)
}

/// The `encrypted_content` of thoughts that their API does not sign. Without one, OpenAI would search
/// for a stored item if the conversation returned to it.
pub(super) fn unsigned() -> String {
    Signature::new(Api::Gemini, "").text_for(Api::Responses)
}

pub(super) fn is_unsigned(encrypted_content: &str) -> bool {
    encrypted_content == unsigned()
}

/// Returns the summary of a reasoning item; the reasoning itself if a model shows it.
pub(super) fn reasoning_text(fields: &Map<String, Value>) -> String {
    let texts = |name: &str| -> Vec<&str> {
        let parts = fields.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let texts = parts.iter().filter_map(|part| part["text"].as_str());
        texts.filter(|text| !text.is_empty()).collect()
    };
    let summary = texts("summary");
    let texts = if summary.is_empty() { texts("content") } else { summary };
    texts.join(SUMMARY_GAP)
}

/// Separates the parts of a summary.
pub(super) const SUMMARY_GAP: &str = "\n\n";

/// Writes a call of a tool or reasoning, without its extra fields. None if it is neither.
pub(super) fn write_model_item(part: &Part) -> Option<Map<String, Value>> {
    Some(match &part.kind {
        PartKind::ToolCall { id, name, arguments, is_custom } => {
            let (namespace, name) = split_name(name);
            let (kind, field) = call_names(*is_custom);
            object([
                ("type", Some(kind.into())),
                ("call_id", Some(json!(id))),
                ("namespace", namespace.map(Value::from)),
                ("name", Some(json!(name))),
                (field, Some(json!(arguments))),
            ])
        }
        PartKind::Thinking(text) => {
            let summary = match text.as_str() {
                "" => json!([]),
                text => json!([{"type": "summary_text", "text": text}]),
            };
            let signature = part.signature.as_ref();
            object([
                ("type", Some("reasoning".into())),
                ("id", signature.and_then(|it| it.id.clone()).map(Value::from)),
                ("summary", Some(summary)),
                (
                    "encrypted_content",
                    signature.map(|signature| signature.text_for(Api::Responses).into()),
                ),
            ])
        }
        _ => return None,
    })
}

/// Returns the type of a call, and the field of its arguments.
pub(super) fn call_names(is_custom: bool) -> (&'static str, &'static str) {
    if is_custom { ("custom_tool_call", "input") } else { ("function_call", "arguments") }
}

/// Returns the type of a call's result.
pub(super) fn result_type(is_custom: bool) -> &'static str {
    if is_custom { "custom_tool_call_output" } else { "function_call_output" }
}

/// Writes a function or a custom tool, without its extra fields and its namespace.
pub(super) fn write_tool(kind: &ToolKind) -> Option<Map<String, Value>> {
    Some(match kind {
        ToolKind::Function { name, description, parameters, strict } => object([
            ("type", Some("function".into())),
            ("name", Some(split_name(name).1.into())),
            ("description", description.clone().map(Value::from)),
            ("parameters", parameters.clone()),
            ("strict", strict.map(Value::from)),
        ]),
        ToolKind::Custom { name, description, format } => object([
            ("type", Some("custom".into())),
            ("name", Some(split_name(name).1.into())),
            ("description", description.clone().map(Value::from)),
            ("format", format.clone()),
        ]),
        ToolKind::Other(_) => return None,
    })
}

/// Returns the type of the tool with this name.
pub(super) fn kind_of_tool(tools: &[Tool], searched: &str) -> Option<&'static str> {
    tools.iter().find_map(|tool| match &tool.kind {
        ToolKind::Function { name, .. } if name == searched => Some("function"),
        ToolKind::Custom { name, .. } if name == searched => Some("custom"),
        _ => None,
    })
}

/// Writes `text.format`; none for a text.
pub(super) fn write_format(format: &OutputFormat) -> Option<Map<String, Value>> {
    match format {
        OutputFormat::Text => None,
        OutputFormat::Json => Some(object([("type", Some("json_object".into()))])),
        OutputFormat::Schema { name, description, schema, strict } => Some(object([
            ("type", Some("json_schema".into())),
            ("name", name.clone().map(Value::from)),
            ("description", description.clone().map(Value::from)),
            ("schema", Some(schema.clone())),
            ("strict", strict.map(Value::from)),
        ])),
    }
}
