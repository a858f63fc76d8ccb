//! What a node's data says about what it asks, apart from what only people read: labels, places, styles.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::read::name_of;

/// The keys of a node's data that decide what is asked of whom, and how.
pub const ASKING_KEYS: &[&str] = &[
    "provider",
    "model",
    "prompt",
    "system",
    "items",
    "maxTokens",
    "temperature",
    "cache",
    "promptCache",
    "retry",
    "timeouts",
    "fallback",
];
/// What is read under another name as well.
const ALIASES: &[(&str, &str)] = &[("maxTokens", "max_tokens")];

/// What a node's data says under some of [`ASKING_KEYS`], as one text that is the same whatever the order
/// of its keys.
pub fn said(data: &Value, keys: &[&str]) -> String {
    let mut said = Map::new();
    for key in keys {
        let mut names = ALIASES.iter().filter(|(name, _)| name == key);
        let alias = names.next().map(|(_, alias)| *alias);
        let value = data.get(*key).or_else(|| data.get(alias?));
        if let Some(value) = value.filter(|value| !value.is_null()) {
            said.insert((*key).to_owned(), value.clone());
        }
    }
    Value::Object(said).to_string()
}

/// What each node of a stored flow asks; of one that cannot be read, nothing.
pub fn asked(document: &str) -> BTreeMap<String, String> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let nodes = document["data"]["nodes"].as_array().into_iter().flatten();
    nodes
        .filter_map(|node| Some((name_of(&node["id"])?, said(&node["data"], ASKING_KEYS))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(data: Value) -> String {
        let document = json!({"data": {"nodes": [{"id": 7, "data": data}]}});
        asked(&document.to_string()).remove("7").unwrap()
    }

    #[test]
    fn what_only_people_read_is_not_what_a_node_asks() {
        let plain = of(json!({"model": "m", "prompt": "p", "maxTokens": 5, "system": null}));
        let shown =
            json!({"prompt": "p", "label": "New", "color": "red", "max_tokens": 5, "model": "m"});
        assert_eq!(of(shown), plain);
        for other in [
            json!({"model": "n", "prompt": "p", "maxTokens": 5}),
            json!({"model": "m", "prompt": "p", "maxTokens": 6}),
            json!({"model": "m", "prompt": "p", "maxTokens": 5, "timeouts": {"totalMs": 1}}),
        ] {
            assert_ne!(of(other), plain);
        }
        assert!(asked("no flow").is_empty());
    }
}
