//! The texts in the parts of a request, for estimates and for `echo`. Pure.

use serde_json::Value;
use serde_json::value::RawValue;

/// Parses a value of the request; null if it is missing or nested too deep.
pub(super) fn read(raw: Option<&RawValue>) -> Value {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null)
}

/// Returns a text as it is, other values as JSON, and an empty text for null.
pub(super) fn text_or_json(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Adds the texts of an item of the Responses API, besides its content: a tool call, its result, or
/// reasoning.
pub(super) fn collect_item(item: &Value, texts: &mut Vec<String>) {
    texts.extend(["name", "arguments", "input"].map(|name| text_or_json(&item[name])));
    for name in ["output", "summary"] {
        collect_texts(&item[name], texts);
    }
}

/// Adds the texts of a content and its nested parts, without the data of images, sounds and files.
pub(super) fn collect_texts(content: &Value, texts: &mut Vec<String>) {
    let Value::Array(parts) = content else {
        texts.extend(content.as_str().map(str::to_owned));
        return;
    };
    for part in parts {
        // Text, thinking, or a tool call.
        texts.extend(["text", "thinking", "name", "input"].map(|name| text_or_json(&part[name])));
        let source = &part["source"];
        if source["type"] == "text" {
            texts.push(text_or_json(&source["data"]));
        }
        // A tool result, or a document with parts.
        collect_texts(&part["content"], texts);
        collect_texts(&source["content"], texts);
    }
}

/// Adds the texts of Gemini's contents: of one, of a list, or of the contents within requests.
pub(super) fn collect_parts(content: &Value, texts: &mut Vec<String>) {
    if content.is_null() {
        return;
    }
    for content in content.as_array().into_iter().flatten() {
        collect_parts(content, texts);
        collect_parts(&content["content"], texts);
    }
    collect_parts(&content["contents"], texts);
    for part in content["parts"].as_array().into_iter().flatten() {
        texts.push(text_or_json(&part["text"]));
        for name in ["functionCall", "functionResponse"] {
            texts
                .extend(["name", "args", "response"].map(|field| text_or_json(&part[name][field])));
        }
    }
}

pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Object(_) => {
            let mut texts = vec![];
            collect_parts(content, &mut texts);
            texts.retain(|text| !text.is_empty());
            texts.join("\n")
        }
        Value::Array(parts) => {
            let mut of_contents = vec![];
            collect_parts(content, &mut of_contents);
            let texts = parts.iter().filter_map(|part| part["text"].as_str().or(part.as_str()));
            let texts = texts.chain(of_contents.iter().map(String::as_str));
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// Adds all strings of a value.
pub(super) fn plain_texts(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| plain_texts(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| plain_texts(field, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
