//! Parts of contents: <https://ai.google.dev/api/caching#Part>.

use serde_json::{Value, json};

use super::fields::{elements, get, hash, take, take_as, text};
use super::signatures::{read_signature, write_signature};
use crate::translation::{Extra, Media, Part, PartKind, Role, Source};

/// The fields of a part that contain its data. Exactly one is set.
const DATA: &[&str] = &[
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
];
/// Begins the ids of calls to which Gemini gave none. They are not sent to Gemini, which matches
/// calls without ids to their results by their order.
const ID_PREFIX: &str = "call_gemini_";
/// "Use "output" key to specify function output and "error" key to specify error details":
/// <https://ai.google.dev/api/caching#FunctionResponse>.
const OUTPUT: &str = "output";
const ERROR: &str = "error";
/// The hosts of files that Google stores: <https://ai.google.dev/api/files>.
const STORED: &[&str] = &["https://generativelanguage.googleapis.com/", "gs://", "files/"];
/// Videos by URL: <https://ai.google.dev/gemini-api/docs/video-understanding>.
const VIDEO_SITES: &[&str] =
    &["https://www.youtube.com/", "https://youtube.com/", "https://youtu.be/"];

/// Returns the id of a call that has none.
pub(super) fn created_id(index: usize) -> String {
    format!("{ID_PREFIX}{index}")
}

/// Returns an id that is also unique among other answers: `base` is the id of the answer, or its
/// content.
pub(super) fn created_id_of_reply(base: &str, index: usize) -> String {
    format!("{ID_PREFIX}{:016x}_{index}", hash(base))
}

/// Reads a part. Calls and results without ids have an empty one. The name in a result is in its
/// `extra`.
pub(super) fn read_part(value: &Value) -> Part {
    read_typed(value).unwrap_or_else(|| Part::new(PartKind::Other(value.clone())))
}

fn read_typed(value: &Value) -> Option<Part> {
    let mut fields = value.as_object()?.clone();
    let signature = match get(&fields, "thoughtSignature") {
        None => None,
        Some(signature) => Some(read_signature(signature.as_str()?)),
    };
    take(&mut fields, "thoughtSignature");
    let mut names = DATA.iter().filter(|name| get(&fields, name).is_some());
    let (Some(name), None) = (names.next(), names.next()) else {
        return None;
    };
    let data = take(&mut fields, name)?;
    let (kind, rest) = match (*name, data) {
        ("text", Value::String(text)) => {
            let kind = match fields.get("thought") {
                Some(Value::Bool(true)) => PartKind::Thinking(text),
                _ => PartKind::Text(text),
            };
            if matches!(kind, PartKind::Thinking(_)) {
                fields.remove("thought");
            }
            (kind, Extra::new())
        }
        ("inlineData", Value::Object(data)) => read_inline(data)?,
        ("fileData", Value::Object(data)) => read_file(data)?,
        ("functionCall", Value::Object(data)) => read_call(data)?,
        ("functionResponse", Value::Object(data)) => read_result(data)?,
        _ => return None,
    };
    if !rest.is_empty() {
        fields.insert((*name).to_owned(), Value::Object(rest));
    }
    Some(Part { kind, signature, extra: fields })
}

fn read_inline(mut data: Extra) -> Option<(PartKind, Extra)> {
    let media_type = take_as(&mut data, "mimeType", text)?;
    let base64 = take_as(&mut data, "data", text)?;
    let name = take_as(&mut data, "displayName", text);
    let source = Source::Data { media_type: media_type.clone(), base64 };
    Some((of_type(&media_type, Media { source, name })?, data))
}

fn read_file(mut data: Extra) -> Option<(PartKind, Extra)> {
    let url = take_as(&mut data, "fileUri", text)?;
    let is_at = |hosts: &[&str]| hosts.iter().any(|host| url.starts_with(host));
    let media_type = get(&data, "mimeType").and_then(text);
    let kind = match &media_type {
        Some(media_type) => media_type.clone(),
        None if is_at(VIDEO_SITES) => return None,
        None => type_of_url(&url).unwrap_or_default().to_owned(),
    };
    let source = match is_at(STORED) {
        true => Source::File(url),
        false => {
            take_as(&mut data, "mimeType", text);
            Source::Url { url, media_type }
        }
    };
    let name = take_as(&mut data, "displayName", text);
    Some((of_type(&kind, Media { source, name })?, data))
}

/// Returns none for a video, which no other API takes.
fn of_type(media_type: &str, media: Media) -> Option<PartKind> {
    match media_type.split('/').next().unwrap_or_default() {
        "image" => Some(PartKind::Image(media)),
        "audio" => Some(PartKind::Audio(media)),
        "video" => None,
        _ => Some(PartKind::Document(media)),
    }
}

/// Returns the media type of the file name in a URL, for the types that Gemini takes by URL:
/// <https://ai.google.dev/gemini-api/docs/file-input-methods>.
pub(super) fn type_of_url(url: &str) -> Option<&'static str> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let (_, extension) = path.rsplit_once('.')?;
    Some(match &*extension.to_ascii_lowercase() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "bmp" => "image/bmp",
        "gif" => "image/gif",
        "heic" => "image/heic",
        "heif" => "image/heif",
        "pdf" => "application/pdf",
        "txt" => "text/plain",
        "html" => "text/html",
        "csv" => "text/csv",
        "json" => "application/json",
        "mp3" => "audio/mp3",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        _ => return None,
    })
}

fn read_call(mut data: Extra) -> Option<(PartKind, Extra)> {
    let name = take_as(&mut data, "name", text)?;
    let id = take_as(&mut data, "id", text).unwrap_or_default();
    let arguments = match data.get("args") {
        None => "{}".to_owned(),
        Some(Value::Object(_)) => data.remove("args")?.to_string(),
        Some(_) => return None,
    };
    Some((PartKind::ToolCall { id, name, arguments, is_custom: false }, data))
}

fn read_result(mut data: Extra) -> Option<(PartKind, Extra)> {
    text(data.get("name")?)?;
    let id = take_as(&mut data, "id", text).unwrap_or_default();
    let response = data.remove("response").unwrap_or_else(|| json!({}));
    let (output, is_error) = read_response(response.as_object()?);
    let mut content = vec![Part::text(output)];
    if let Some(parts) = take(&mut data, "parts") {
        content.extend(elements(parts)?.iter().map(read_medium));
    }
    Some((PartKind::ToolResult { id, content, is_error }, data))
}

/// Reads a part of a result, which has media only.
fn read_medium(value: &Value) -> Part {
    let part = read_part(value);
    match part.kind {
        PartKind::Image(_) | PartKind::Document(_) | PartKind::Audio(_) => part,
        _ => Part::new(PartKind::Other(value.clone())),
    }
}

/// Returns the text of a result: the only field, if it is a text in `output` or `error`, or else the
/// whole object.
fn read_response(response: &Extra) -> (String, bool) {
    let is_object = |text: &str| serde_json::from_str::<Extra>(text).is_ok();
    match (response.len(), response.get(OUTPUT), response.get(ERROR)) {
        (1, Some(Value::String(output)), _) if !is_object(output) => (output.clone(), false),
        (1, _, Some(Value::String(error))) => (error.clone(), true),
        _ => (Value::Object(response.clone()).to_string(), false),
    }
}

/// Returns the response for the text of a result.
fn response(text: &str, is_error: bool) -> Value {
    match serde_json::from_str::<Extra>(text) {
        _ if is_error => json!({ERROR: text}),
        Ok(object) => Value::Object(object),
        Err(_) => json!({OUTPUT: text}),
    }
}

/// Writes a part with the fields that only Gemini knows. `name` is the function of a result, unless
/// `extra` contains it.
pub(super) fn write_part(part: &Part, extra: &Extra, name: Option<&str>) -> Value {
    let (field, data) = match &part.kind {
        PartKind::Text(text) | PartKind::Refusal(text) | PartKind::Thinking(text) => {
            ("text", text.as_str().into())
        }
        PartKind::Image(media) | PartKind::Document(media) | PartKind::Audio(media) => {
            write_media(media)
        }
        PartKind::ToolCall { id, name, arguments, .. } => {
            ("functionCall", write_call(id, name, arguments))
        }
        PartKind::ToolResult { id, content, is_error } => {
            ("functionResponse", write_result(id, name, content, *is_error))
        }
        PartKind::Other(value) => return value.clone(),
    };
    let mut fields = extra.clone();
    let data = match (data, fields.remove(field)) {
        (Value::Object(mut data), Some(Value::Object(rest))) => {
            data.extend(rest);
            Value::Object(data)
        }
        (data, _) => data,
    };
    fields.insert(field.to_owned(), data);
    if matches!(part.kind, PartKind::Thinking(_)) {
        fields.insert("thought".to_owned(), true.into());
    }
    if let Some(signature) = &part.signature {
        fields.insert("thoughtSignature".to_owned(), write_signature(signature).into());
    }
    Value::Object(fields)
}

fn write_media(media: &Media) -> (&'static str, Value) {
    let (field, mut data) = match &media.source {
        Source::Data { media_type, base64 } => {
            ("inlineData", json!({"mimeType": media_type, "data": base64}))
        }
        Source::Url { url, media_type: Some(media_type) } => {
            ("fileData", json!({"mimeType": media_type, "fileUri": url}))
        }
        Source::Url { url, .. } | Source::File(url) => ("fileData", json!({"fileUri": url})),
    };
    if let Some(name) = &media.name {
        data["displayName"] = name.as_str().into();
    }
    (field, data)
}

fn write_call(id: &str, name: &str, arguments: &str) -> Value {
    let args = match serde_json::from_str::<Extra>(arguments) {
        Ok(args) => Value::Object(args),
        Err(_) if arguments.trim().is_empty() => json!({}),
        // The model wrote no JSON object, and the field takes nothing else.
        Err(_) => json!({"input": arguments}),
    };
    with_id(id, json!({"name": name, "args": args}))
}

fn write_result(id: &str, name: Option<&str>, content: &[Part], is_error: bool) -> Value {
    let (texts, others): (Vec<&Part>, Vec<&Part>) =
        content.iter().partition(|part| matches!(part.kind, PartKind::Text(_)));
    let texts = texts.iter().filter_map(|part| match &part.kind {
        PartKind::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    let mut data = json!({"name": name, "response": response(&text, is_error)});
    if !others.is_empty() {
        let parts = others.iter().map(|part| write_part(part, &part.extra, None));
        data["parts"] = parts.collect();
    }
    with_id(id, data)
}

fn with_id(id: &str, mut data: Value) -> Value {
    if !id.is_empty() && !id.starts_with(ID_PREFIX) {
        data["id"] = id.into();
    }
    data
}

/// Returns the name of a side.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Assistant => "model",
        _ => "user",
    }
}
