//! Signatures are bytes in base64: <https://ai.google.dev/api/caching#Part>. Google's clients decode
//! them, so another API's signature must be base64 as well. Python's client encodes them again in
//! the alphabet for URLs.

use serde_json::{Value, json};

use crate::translation::base64::{decode, encode};
use crate::translation::{Api, Part, PartKind, Signature};

/// The encoded mark of `Signature::text_for`, up to its last complete group.
pub const MARK: &str = "Zmxvd2xlZGdl";

/// Reads the field `thoughtSignature`.
pub(super) fn read_signature(text: &str) -> Signature {
    let decoded = text.strip_prefix(MARK).and_then(|_| decode(text));
    let Some(decoded) = decoded.and_then(|bytes| String::from_utf8(bytes).ok()) else {
        return Signature::new(Api::Gemini, text);
    };
    let signature = Signature::read(Api::Gemini, &decoded);
    match signature.api {
        Api::Gemini => Signature::new(Api::Gemini, text),
        _ => signature,
    }
}

/// Begins the signature of a call that carries thoughts.
const THOUGHTS: &str = "flowledger:thoughts:";

/// Returns a signature for a call that carries the thoughts before it. Gemini CLI keeps the
/// signatures of calls, but no thoughts: `filter((part) => !part.thought)` in its `geminiChat.ts`.
/// None if no thoughts have a signature of another API.
pub(super) fn pack_thoughts(thoughts: &[Part]) -> Option<Signature> {
    let packed: Vec<Value> = thoughts.iter().filter_map(pack).collect();
    let text = (!packed.is_empty()).then(|| format!("{THOUGHTS}{}", Value::from(packed)))?;
    Some(Signature::new(Api::Gemini, encode(text.as_bytes())))
}

fn pack(part: &Part) -> Option<Value> {
    let signature = part.signature.as_ref().filter(|signature| signature.api != Api::Gemini)?;
    match &part.kind {
        PartKind::Thinking(text) => Some(json!([text, signature.text_for(Api::Gemini)])),
        _ => None,
    }
}

/// Returns the thoughts that the signature of a call carries.
pub(super) fn unpack_thoughts(signature: &Signature) -> Option<Vec<Part>> {
    let text = signature.value.strip_prefix(MARK).and_then(|_| decode(&signature.value))?;
    let text = String::from_utf8(text).ok()?;
    let packed: Vec<(String, String)> = serde_json::from_str(text.strip_prefix(THOUGHTS)?).ok()?;
    let part = |(text, signature): (String, String)| {
        let signature = Some(Signature::read(Api::Gemini, &signature));
        Part { signature, ..Part::new(PartKind::Thinking(text)) }
    };
    Some(packed.into_iter().map(part).collect())
}

/// Writes the field for a client.
pub(super) fn write_signature(signature: &Signature) -> String {
    match signature.api {
        Api::Gemini => signature.value.clone(),
        _ => encode(signature.text_for(Api::Gemini).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_signatures_are_base64() {
        assert_eq!(encode(b"flowledger:"), "Zmxvd2xlZGdlcjo=");
        for value in ["", "a", "ab", "EqQB/+==", "é"] {
            let signature = Signature { is_redacted: true, ..Signature::new(Api::Messages, value) };
            let text = write_signature(&signature);
            assert_eq!(read_signature(&text), signature);
            assert_eq!(read_signature(&text.replace('+', "-").replace('/', "_")), signature);
        }
        for text in ["", "Zmxvd2xlZGdl", "Zmxvd2xlZGdlcjo=", "skip_thought_signature_validator"] {
            assert_eq!(read_signature(text), Signature::new(Api::Gemini, text));
        }
    }
}
