//! The parts of a message's content.

use serde_json::{Value, json};

use super::fields::{keep_rest, merge, object, take_object, take_str};
use super::thoughts::{THINKING, read_thinking, write_thinking};
use crate::translation::{Extra, Media, Part, PartKind, Source};

/// Removes the content of a message. A content without parts remains.
pub(super) fn take_content(message: &mut Extra) -> Vec<Part> {
    let parts = match message.get("content") {
        Some(Value::String(text)) => vec![Part::text(text)],
        Some(Value::Array(parts)) if !parts.is_empty() => parts.iter().map(read_part).collect(),
        _ => return Vec::new(),
    };
    message.shift_remove("content");
    parts
}

fn read_part(value: &Value) -> Part {
    let known = value.as_object().and_then(|part| match part.get("type")?.as_str()? {
        "text" => read_text(part.clone()),
        "image_url" => read_image(part.clone()),
        "input_audio" => read_audio(part.clone()),
        "file" => read_file(part.clone()),
        "refusal" => read_refusal(part.clone()),
        THINKING => Some(read_thinking(part)),
        _ => None,
    });
    known.unwrap_or_else(|| Part::new(PartKind::Other(value.clone())))
}

fn without_type(kind: PartKind, mut extra: Extra) -> Part {
    extra.shift_remove("type");
    Part { kind, signature: None, extra }
}

fn read_text(mut part: Extra) -> Option<Part> {
    let text = take_str(&mut part, "text")?;
    Some(without_type(PartKind::Text(text), part))
}

/// Keeps the type in `extra`, because a refusal without it is the message's field of that name.
fn read_refusal(mut part: Extra) -> Option<Part> {
    let text = take_str(&mut part, "refusal")?;
    Some(Part { extra: part, ..Part::new(PartKind::Refusal(text)) })
}

fn read_image(mut part: Extra) -> Option<Part> {
    let url = match take_object(&mut part, "image_url") {
        Some(mut image) => {
            let url = take_str(&mut image, "url")?;
            keep_rest(&mut part, "image_url", image);
            url
        }
        // Mistral's form: https://docs.mistral.ai/capabilities/vision
        None => part.get("image_url")?.as_str()?.to_owned(),
    };
    let media = Media { source: Source::of_url(&url), name: None };
    Some(without_type(PartKind::Image(media), part))
}

fn read_audio(mut part: Extra) -> Option<Part> {
    let mut audio = take_object(&mut part, "input_audio")?;
    let base64 = take_str(&mut audio, "data")?;
    let format = audio.get("format")?.as_str()?.to_owned();
    let media_type = match &*format {
        "mp3" => "audio/mpeg".to_owned(),
        format => format!("audio/{format}"),
    };
    if audio_format(&media_type) == format {
        audio.shift_remove("format");
    }
    keep_rest(&mut part, "input_audio", audio);
    let media = Media { source: Source::Data { media_type, base64 }, name: None };
    Some(without_type(PartKind::Audio(media), part))
}

/// Returns the name of an audio format: OpenAI's are `wav` and `mp3`.
fn audio_format(media_type: &str) -> &str {
    match media_type {
        "audio/mpeg" | "audio/mp3" => "mp3",
        "audio/wave" | "audio/x-wav" | "audio/vnd.wave" => "wav",
        other => other.strip_prefix("audio/").unwrap_or(other),
    }
}

fn read_file(mut part: Extra) -> Option<Part> {
    let mut file = take_object(&mut part, "file")?;
    let source = match take_str(&mut file, "file_data") {
        Some(data) if data.starts_with("data:") || data.starts_with("http") => {
            Source::of_url(&data)
        }
        Some(base64) => {
            file.insert("file_data".to_owned(), base64.clone().into());
            Source::Data { media_type: "application/pdf".to_owned(), base64 }
        }
        None => Source::File(take_str(&mut file, "file_id")?),
    };
    let name = take_str(&mut file, "filename");
    keep_rest(&mut part, "file", file);
    Some(without_type(PartKind::Document(Media { source, name }), part))
}

/// Returns the content of a message: a string if it is one text without further fields.
pub(super) fn write_content(parts: &[&Part]) -> Value {
    match parts {
        [Part { kind: PartKind::Text(text), extra, .. }] if extra.is_empty() => {
            Value::String(text.clone())
        }
        parts => parts.iter().filter_map(|part| write_part(part)).collect(),
    }
}

/// Returns a content part with its further fields; none for parts that are not in the content.
fn write_part(part: &Part) -> Option<Value> {
    let mut written = match &part.kind {
        PartKind::Text(text) => object(json!({"type": "text", "text": text})),
        PartKind::Image(media) | PartKind::Document(media) | PartKind::Audio(media) => {
            object(write_media(&part.kind, media)?)
        }
        PartKind::Refusal(text) => object(json!({"type": "refusal", "refusal": text})),
        PartKind::Thinking(_) => return Some(Value::Object(write_thinking(part))),
        PartKind::Other(value) => return Some(value.clone()),
        PartKind::ToolCall { .. } | PartKind::ToolResult { .. } => return None,
    };
    merge(&mut written, &part.extra);
    Some(Value::Object(written))
}

/// Returns a part with a medium; none if the API cannot express its source.
pub(super) fn write_media(kind: &PartKind, media: &Media) -> Option<Value> {
    match (kind, &media.source) {
        (PartKind::Image(_), source) => {
            Some(json!({"type": "image_url", "image_url": {"url": source.to_url()?}}))
        }
        (PartKind::Audio(_), Source::Data { media_type, base64 }) => {
            let audio = json!({"data": base64, "format": audio_format(media_type)});
            Some(json!({"type": "input_audio", "input_audio": audio}))
        }
        (PartKind::Document(_), source) => {
            let mut file = match source {
                Source::File(id) => object(json!({"file_id": id})),
                source => object(json!({"file_data": source.to_url()})),
            };
            if let Some(name) = &media.name {
                file.insert("filename".to_owned(), name.clone().into());
            }
            Some(json!({"type": "file", "file": file}))
        }
        _ => None,
    }
}
