//! Objects that a provider stores for its clients. Pure.

use serde_json::Value;

/// Limits the id of a stored object, in bytes.
const OBJECT_ID_BYTES_MAX: usize = 256;

/// An object that the provider stores, such as a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderObject {
    pub id: String,
    /// `completed`, `failed`, `in_progress`, `cancelled`, `queued` or `incomplete`.
    pub status: Option<String>,
}

impl ProviderObject {
    pub(super) fn read(document: &Value) -> Option<Self> {
        let id = document["id"].as_str().filter(|id| is_object_id(id))?;
        let status = document["status"].as_str();
        Some(Self { id: id.to_owned(), status: status.map(str::to_owned) })
    }

    /// Returns whether the response has ended, in any way.
    pub fn is_over(&self) -> bool {
        let ends = ["completed", "incomplete", "failed", "cancelled"];
        self.status.as_deref().is_some_and(|status| ends.contains(&status))
    }
}

/// Returns whether a text can be an id: it has no characters with a meaning in URLs.
pub fn is_object_id(id: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    (1..=OBJECT_ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(is_safe)
        && id.bytes().any(|byte| byte != b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_are_safe_in_paths_are_ids() {
        for id in ["resp_67ccd3a9da748190baa7f1570fe91ac604becb25c45c1d41", "a.b:c-d_1"] {
            assert!(is_object_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "a%2fb", "a?b", "a b", "ä", &"a".repeat(257)] {
            assert!(!is_object_id(id), "{id}");
        }
    }
}
