//! JSON from providers, with any nesting depth. Pure.

use serde::de::IgnoredAny;
use serde_json::Value;

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
