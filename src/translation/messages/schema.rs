//! JSON schemas, as structured outputs accept them.

use serde_json::{Map, Value, json};

/// Keywords that are accepted with any value.
const KEPT: [&str; 8] =
    ["type", "enum", "const", "$ref", "description", "title", "required", "default"];
/// The formats of texts that are accepted.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];

/// Returns the schema with closed objects, and with the constraints that the API does not know in the
/// description, as Anthropic's SDK does
/// (<https://github.com/anthropics/anthropic-sdk-python/blob/main/src/anthropic/lib/_parse/_transform.py>).
pub(super) fn closed(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else {
        return schema.clone();
    };
    let mut out = Map::new();
    let mut constraints = Vec::new();
    for (key, value) in fields {
        match key.as_str() {
            key if KEPT.contains(&key) => put(&mut out, key, value.clone()),
            "properties" | "$defs" | "definitions" => {
                let all = value.as_object().into_iter().flatten();
                let all = all.map(|(name, schema)| (name.clone(), closed(schema)));
                put(&mut out, key, Value::Object(all.collect()));
            }
            "items" => put(&mut out, key, closed(value)),
            "anyOf" | "oneOf" => put(&mut out, "anyOf", all_closed(value)),
            "allOf" => put(&mut out, key, all_closed(value)),
            "format" if value.as_str().is_some_and(|it| FORMATS.contains(&it)) => {
                put(&mut out, key, value.clone());
            }
            "minItems" if matches!(value.as_u64(), Some(0 | 1)) => {
                put(&mut out, key, value.clone());
            }
            "additionalProperties" | "$schema" | "$id" => {}
            _ => constraints.push(format!("{key}: {value}")),
        }
    }
    if fields.contains_key("properties") || fields.get("type") == Some(&json!("object")) {
        put(&mut out, "additionalProperties", false.into());
    }
    if !constraints.is_empty() {
        let text = out.get("description").and_then(Value::as_str).unwrap_or_default();
        let gap = if text.is_empty() { "" } else { "\n\n" };
        let text = format!("{text}{gap}{{{}}}", constraints.join(", "));
        put(&mut out, "description", text.into());
    }
    Value::Object(out)
}

fn put(out: &mut Map<String, Value>, key: &str, value: Value) {
    out.insert(key.to_owned(), value);
}

fn all_closed(schemas: &Value) -> Value {
    schemas.as_array().into_iter().flatten().map(closed).collect()
}
