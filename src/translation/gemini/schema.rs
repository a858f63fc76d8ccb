//! Google's form of a schema, a subset of OpenAPI 3.0: <https://ai.google.dev/api/caching#Schema>.

use serde_json::{Map, Value, json};

use super::fields::take;

/// Lists of schemas, maps of schemas, and single schemas.
const LISTS: &[&str] = &["anyOf", "oneOf", "allOf", "prefixItems"];
const MAPS: &[(&str, &str)] =
    &[("properties", "properties"), ("defs", "$defs"), ("$defs", "$defs")];
const SINGLE: &[&str] = &["items", "additionalProperties", "not"];
/// Fields whose names have two spellings, or another one in JSON Schema.
const RENAMED: &[(&str, &str)] = &[
    ("minItems", "minItems"),
    ("maxItems", "maxItems"),
    ("minLength", "minLength"),
    ("maxLength", "maxLength"),
    ("minProperties", "minProperties"),
    ("maxProperties", "maxProperties"),
    ("ref", "$ref"),
];
/// Limits that are 64-bit integers, which protobuf's JSON may write as strings.
const LIMITS: &[&str] =
    &["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
/// How deep schemas are converted; deeper ones stay as they are.
const DEPTH_MAX: usize = 64;

/// Returns the JSON schema. A JSON schema stays unchanged.
pub(super) fn to_json_schema(schema: &Value) -> Value {
    converted(schema, DEPTH_MAX)
}

fn converted(schema: &Value, depth: usize) -> Value {
    let (Some(fields), Some(depth)) = (schema.as_object(), depth.checked_sub(1)) else {
        return schema.clone();
    };
    let mut fields = fields.clone();
    for (name, new) in RENAMED {
        if let Some(value) = take(&mut fields, name) {
            fields.insert((*new).to_owned(), renamed(name, value));
        }
    }
    for name in LISTS {
        if let Some(Value::Array(list)) = take(&mut fields, name) {
            let list = list.iter().map(|it| converted(it, depth)).collect();
            fields.insert((*name).to_owned(), list);
        }
    }
    for (name, new) in MAPS {
        if let Some(Value::Object(map)) = take(&mut fields, name) {
            let map = map.into_iter().map(|(key, it)| (key, converted(&it, depth)));
            fields.insert((*new).to_owned(), Value::Object(map.collect()));
        }
    }
    for name in SINGLE {
        if let Some(value) = take(&mut fields, name) {
            fields.insert((*name).to_owned(), converted(&value, depth));
        }
    }
    if let Some(example) = fields.remove("example") {
        fields.insert("examples".to_owned(), json!([example]));
    }
    // Only an order of the output, and the format of a string with listed values.
    take(&mut fields, "propertyOrdering");
    if fields.get("format").is_some_and(|format| format == "enum") {
        fields.remove("format");
    }
    set_type(&mut fields);
    Value::Object(fields)
}

fn renamed(name: &str, value: Value) -> Value {
    if let Some(path) = value.as_str().and_then(|path| path.strip_prefix("#/defs/")) {
        return format!("#/$defs/{path}").into();
    }
    match value.as_str().filter(|_| LIMITS.contains(&name)).map(str::parse::<u64>) {
        Some(Ok(limit)) => limit.into(),
        _ => value,
    }
}

/// Writes the type in lower case, with `null` for nullable ones.
fn set_type(fields: &mut Map<String, Value>) {
    let is_nullable = fields.remove("nullable") == Some(Value::Bool(true));
    let kind = match fields.get("type") {
        Some(Value::String(kind)) => kind.to_ascii_lowercase(),
        Some(_) => return,
        None if is_nullable => {
            if let Some(Value::Array(list)) = fields.get_mut("anyOf") {
                list.push(json!({"type": "null"}));
            }
            return;
        }
        None => return,
    };
    match &*kind {
        "type_unspecified" => {
            fields.remove("type");
        }
        _ if is_nullable => {
            fields.insert("type".to_owned(), json!([kind, "null"]));
            if let Some(Value::Array(values)) = fields.get_mut("enum") {
                values.push(Value::Null);
            }
        }
        _ => {
            fields.insert("type".to_owned(), kind.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn googles_schema_becomes_a_json_schema() {
        let google = json!({
            "type": "OBJECT",
            "properties": {
                "type": {"type": "STRING", "format": "enum", "enum": ["a", "b"], "nullable": true},
                "list": {"type": "ARRAY", "items": {"type": "INTEGER", "format": "int32"},
                         "max_items": "3", "example": [1]},
                "either": {"any_of": [{"type": "NUMBER"}, {"ref": "#/defs/x"}], "nullable": true},
            },
            "required": ["type"],
            "property_ordering": ["type", "list"],
            "defs": {"x": {"type": "BOOLEAN"}},
        });
        let expected = json!({
            "type": "object",
            "properties": {
                "type": {"type": ["string", "null"], "enum": ["a", "b", null]},
                "list": {"type": "array", "items": {"type": "integer", "format": "int32"},
                         "maxItems": 3, "examples": [[1]]},
                "either": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/x"}, {"type": "null"}]},
            },
            "required": ["type"],
            "$defs": {"x": {"type": "boolean"}},
        });
        let schema = to_json_schema(&google);
        assert_eq!(schema, expected);
        assert_eq!(to_json_schema(&schema), schema);
    }
}
