//! JSON from providers, with any nesting depth. Pure.

use std::fmt;

use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// Limits the nesting of the kept part of a text that is too deep for `serde_json`, which rejects
/// more than 127 levels to protect the stack. Readers need less than half of this depth.
const DEPTH_MAX: usize = 32;

/// Parses a text. If it is nested too deep, parts below [`DEPTH_MAX`] are omitted: the answer was
/// paid for, and its usage is near its top.
///
/// # Errors
/// Returns serde's error for invalid JSON.
pub(super) fn read(json: &[u8]) -> serde_json::Result<Value> {
    // Some servers write a byte order mark.
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    serde_json::from_slice(json).or_else(|error| {
        // Validates the whole text without recursion.
        match serde_json::from_slice::<IgnoredAny>(json) {
            Ok(IgnoredAny) => serde_json::from_slice(&shallow(json)),
            Err(_) => Err(error),
        }
    })
}

/// Parses an object without the value of one field, which may be long; the value is validated.
///
/// # Errors
/// Returns serde's error for invalid JSON, and for a text that is no object.
pub(super) fn read_without(json: &[u8], skipped: &'static str) -> serde_json::Result<Value> {
    struct Fields(&'static str);
    impl<'de> Visitor<'de> for Fields {
        type Value = Value;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
            let mut fields = Map::new();
            while let Some(name) = map.next_key::<String>()? {
                if name == self.0 {
                    let IgnoredAny = map.next_value()?;
                    fields.insert(name, Value::Bool(true));
                } else {
                    fields.insert(name, map.next_value()?);
                }
            }
            Ok(Value::Object(fields))
        }
    }
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let document = deserializer.deserialize_map(Fields(skipped))?;
    deserializer.end()?;
    Ok(document)
}

/// Returns the text, which is valid JSON, with `null` in place of containers that are nested too
/// deep.
fn shallow(json: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    let mut depth = 0_usize;
    let (mut in_string, mut is_escaped) = (false, false);
    for &byte in json {
        if in_string {
            in_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
        } else {
            match byte {
                b'"' => in_string = true,
                b'{' | b'[' => {
                    depth += 1;
                    if depth == DEPTH_MAX + 1 {
                        output.extend_from_slice(b"null");
                    }
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == DEPTH_MAX {
                        continue;
                    }
                }
                _ => {}
            }
        }
        if depth <= DEPTH_MAX {
            output.push(byte);
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_skipped_field_is_validated_but_not_kept() {
        let read = |json: &str| read_without(json.as_bytes(), "data");
        let document = read(r#"{"data":[{"embedding":[0.1,-2e9]}],"usage":{"a":1}}"#).unwrap();
        assert_eq!(document, json!({"data": true, "usage": {"a": 1}}));
        for invalid in ["[]", r#"{"data":[0.1,}"#, "{} x", ""] {
            assert!(read(invalid).is_err(), "{invalid}");
        }
    }

    /// Wraps `inner` in `depth` containers of both kinds.
    fn nested(depth: usize, inner: &str) -> String {
        let (opening, closing) = (r#"[{"a}]\"[":"#, "},0]");
        format!("{}{inner}{}", opening.repeat(depth / 2), closing.repeat(depth / 2))
    }

    #[test]
    fn too_deeply_nested_parts_are_omitted() {
        for depth in [2, 32, 126, 128, 1_000_000] {
            let deep = nested(depth, "7");
            let text = format!(r#"{{"before":"ä\\","x":{deep},"after":[{{"b":1}}]}}"#);
            let found = read(text.as_bytes()).unwrap();
            assert_eq!(found["before"], "ä\\", "{depth}");
            assert_eq!(found["after"], json!([{"b": 1}]), "{depth}");
            assert!(found["x"].is_array(), "{depth}");
        }
    }

    #[test]
    fn invalid_json_has_the_usual_error() {
        for text in ["", "{", "<html>", &nested(1_000, "")] {
            let usual = serde_json::from_str::<Value>(text).unwrap_err();
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), usual.to_string());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), depth in 0usize..400) {
            let _ = read(&bytes);
            let text = [nested(depth, "7").as_bytes(), &bytes].concat();
            let _ = read(&text);
        }

        #[test]
        fn json_within_the_depth_limit_is_unchanged(keys in prop::collection::vec("(?s).{0,6}", 0..16)) {
            let value = keys.iter().fold(json!(1.5), |inner, key| json!([{key: inner}, key]));
            let text = value.to_string();
            prop_assert_eq!(shallow(text.as_bytes()), text.into_bytes());
        }
    }
}
