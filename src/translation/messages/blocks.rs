//! The blocks of a message's content.

use serde_json::{Map, Value, json};

use super::super::base64;
use super::super::conversation::{Extra, Media, Part, PartKind, Source};
use super::super::{Api, Signature, ToolNames};

/// Reads a content, which is a text or a list of blocks; nothing if it is neither.
pub(super) fn read_content(content: &Value) -> Option<Vec<Part>> {
    match content {
        Value::String(text) => Some(vec![Part::text(text)]),
        Value::Array(blocks) => Some(blocks.iter().map(read_block).collect()),
        _ => None,
    }
}

/// Returns a text in place of one plain text block: compatible servers accept both, and some require
/// a text in the results of tools.
pub(super) fn content_of(blocks: Vec<Value>) -> Value {
    if let [Value::Object(block)] = blocks.as_slice()
        && let (2, Some(Value::String(text))) = (block.len(), block.get("text"))
        && block.get("type").is_some_and(|kind| kind == "text")
    {
        return text.as_str().into();
    }
    Value::Array(blocks)
}

/// Reads a block. A block with an unknown type or an unexpected field type is kept as it is.
pub(super) fn read_block(block: &Value) -> Part {
    let known = block.as_object().and_then(|block| known_block(block.clone()));
    known.unwrap_or_else(|| Part::new(PartKind::Other(block.clone())))
}

fn known_block(mut fields: Extra) -> Option<Part> {
    let Value::String(kind) = fields.remove("type")? else {
        return None;
    };
    let mut signature = None;
    let kind = match kind.as_str() {
        "text" => PartKind::Text(text(&mut fields, "text")?),
        "image" => PartKind::Image(read_media(&mut fields, false)?),
        "document" => PartKind::Document(read_media(&mut fields, true)?),
        "tool_use" => {
            let id = text(&mut fields, "id")?;
            let (id, attached) = Signature::detach_from(&id);
            signature = attached;
            let input = fields.remove("input").filter(Value::is_object)?;
            let (name, arguments) = (text(&mut fields, "name")?, input.to_string());
            PartKind::ToolCall { id: id.to_owned(), name, arguments, is_custom: false }
        }
        "tool_result" => read_tool_result(&mut fields)?,
        "thinking" => {
            let value = fields.remove("signature").unwrap_or_else(|| "".into());
            signature = read_signature(value.as_str()?, false);
            PartKind::Thinking(text(&mut fields, "thinking")?)
        }
        "redacted_thinking" => {
            signature = Some(read_signature(&text(&mut fields, "data")?, true)?);
            PartKind::Thinking(String::new())
        }
        // Claude Code's search for tools answers with references to tools, all of which the request
        // defines. The text is for other APIs; the fields are written back in this one.
        "tool_reference" => {
            let text = format!("The tool {} is available.", fields.get("tool_name")?.as_str()?);
            fields.insert("type".into(), kind.into());
            PartKind::Text(text)
        }
        _ => return None,
    };
    Some(Part { kind, signature, extra: fields })
}

/// An empty signature is none: a client sends it back for thoughts that have none.
pub(super) fn read_signature(value: &str, is_redacted: bool) -> Option<Signature> {
    let mut signature = Some(value)
        .filter(|value| !value.is_empty())
        .map(|value| Signature::read(Api::Messages, value))?;
    signature.is_redacted |= is_redacted;
    Some(signature)
}

fn text(fields: &mut Extra, key: &str) -> Option<String> {
    match fields.remove(key)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn read_media(fields: &mut Extra, is_document: bool) -> Option<Media> {
    let source = fields.remove("source")?;
    let source = source.as_object()?;
    let text = |key| source.get(key).and_then(Value::as_str);
    let media_type = || text("media_type").map(str::to_owned);
    let is_text = media_type().is_some_and(|it| it.starts_with("text/"));
    let (read, len) = match text("type")? {
        "base64" if !is_text => {
            let base64 = text("data")?.to_owned();
            (Source::Data { media_type: media_type()?, base64 }, 3)
        }
        "text" if is_text && is_document => {
            let base64 = base64::encode(text("data")?.as_bytes());
            (Source::Data { media_type: media_type()?, base64 }, 3)
        }
        "url" => (Source::Url { url: text("url")?.to_owned(), media_type: None }, 2),
        "file" => (Source::File(text("file_id")?.to_owned()), 2),
        _ => return None,
    };
    let name = fields.get("title").filter(|_| is_document).and_then(Value::as_str);
    let name = name.map(str::to_owned);
    if name.is_some() {
        fields.remove("title");
    }
    (source.len() == len).then_some(Media { source: read, name })
}

fn read_tool_result(fields: &mut Extra) -> Option<PartKind> {
    let id = text(fields, "tool_use_id")?;
    let content = match fields.remove("content") {
        Some(content) => read_content(&content)?,
        None => Vec::new(),
    };
    let is_error = match fields.remove("is_error") {
        Some(is_error) => is_error.as_bool()?,
        None => false,
    };
    let id = Signature::detach_from(&id).0.to_owned();
    Some(PartKind::ToolResult { id, content, is_error })
}

/// Returns the block of a request; none for a part that this API does not accept.
pub(super) fn write_block(part: &Part) -> Option<Value> {
    if part.extra.contains_key("type") {
        return Some(Value::Object(part.extra.clone()));
    }
    let block = match &part.kind {
        PartKind::Text(text) | PartKind::Refusal(text) => json!({"type": "text", "text": text}),
        PartKind::Image(media) => json!({"type": "image", "source": write_source(&media.source)}),
        PartKind::Document(media) => {
            let mut block = json!({"type": "document", "source": write_source(&media.source)});
            if let Some(name) = &media.name {
                block["title"] = name.as_str().into();
            }
            block
        }
        PartKind::ToolCall { id, name, arguments, .. } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": input_of(arguments)})
        }
        PartKind::ToolResult { id, content, is_error } => {
            let mut block = json!({"type": "tool_result", "tool_use_id": id});
            if !content.is_empty() {
                block["content"] = content_of(content.iter().filter_map(write_block).collect());
            }
            if *is_error {
                block["is_error"] = true.into();
            }
            block
        }
        PartKind::Thinking(text) => write_thinking(text, part.signature.as_ref())?,
        PartKind::Other(value) => value.clone(),
        PartKind::Audio(_) => return None,
    };
    Some(with_extra(block, &part.extra))
}

/// Returns nothing if the signature is another API's: the maker rejects thinking that it did not sign.
fn write_thinking(text: &str, signature: Option<&Signature>) -> Option<Value> {
    let Some(signature) = signature else {
        return Some(json!({"type": "thinking", "thinking": text, "signature": ""}));
    };
    (signature.api == Api::Messages).then(|| thinking_block(text, signature))
}

pub(super) fn thinking_block(text: &str, signature: &Signature) -> Value {
    let value = signature.text_for(Api::Messages);
    match signature.api == Api::Messages && signature.is_redacted {
        true => json!({"type": "redacted_thinking", "data": value}),
        false => json!({"type": "thinking", "thinking": text, "signature": value}),
    }
}

fn write_source(source: &Source) -> Value {
    match source {
        Source::Data { media_type, base64 } if media_type.starts_with("text/") => {
            let bytes = base64::decode(base64).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            json!({"type": "text", "media_type": media_type, "data": text})
        }
        Source::Data { media_type, base64 } => {
            json!({"type": "base64", "media_type": media_type, "data": base64})
        }
        Source::Url { url, .. } => json!({"type": "url", "url": url}),
        Source::File(id) => json!({"type": "file", "file_id": id}),
    }
}

/// Returns the input of a tool, which must be an object. Other arguments, such as the invalid JSON of
/// a model, become its field `input`.
pub(super) fn input_of(arguments: &str) -> Value {
    if arguments.trim().is_empty() {
        return Value::Object(Map::new());
    }
    match serde_json::from_str(arguments) {
        Ok(Value::Object(input)) => Value::Object(input),
        Ok(other) => json!({"input": other}),
        Err(_) => ToolNames::wrapped_arguments(arguments),
    }
}

pub(super) fn with_extra(mut object: Value, extra: &Extra) -> Value {
    if let Value::Object(fields) = &mut object {
        fields.extend(extra.clone());
    }
    object
}
