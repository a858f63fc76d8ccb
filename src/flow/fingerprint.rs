//! Fingerprints of a node's data, by subject. Labels, positions and styles do not count.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::read::name_of;
use crate::event::text_form;

/// The subject of a change to a node's data. A change invalidates the statistics of the node's
/// earlier calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    Question,
    Repeats,
    Failures,
}

impl Concern {
    pub const ALL: [Self; 3] = [Self::Question, Self::Repeats, Self::Failures];

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Question => {
                &["provider", "model", "prompt", "system", "items", "temperature", "promptCache"]
            }
            Self::Repeats => &["cache"],
            Self::Failures => &["retry", "timeouts", "fallback"],
        }
    }
}

text_form!(Concern { Question = "question", Repeats = "repeats", Failures = "failures" });

const ALIASES: &[(&str, &str)] = &[("maxTokens", "max_tokens")];

/// Returns some keys of a node's data as JSON that does not depend on their order.
pub fn canonical_json(data: &Value, keys: &[&str]) -> String {
    let mut fields = Map::new();
    for key in keys {
        let mut names = ALIASES.iter().filter(|(name, _)| name == key);
        let alias = names.next().map(|(_, alias)| *alias);
        let value = data.get(*key).or_else(|| data.get(alias?));
        if let Some(value) = value.filter(|value| !value.is_null()) {
            fields.insert((*key).to_owned(), value.clone());
        }
    }
    Value::Object(fields).to_string()
}

/// Returns the fingerprints of each node of a stored flow; none if it cannot be read.
pub fn fingerprint(document: &str) -> BTreeMap<String, BTreeMap<Concern, String>> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let nodes = document["data"]["nodes"].as_array().into_iter().flatten();
    let of = |data: &Value| {
        let each = Concern::ALL.map(|concern| (concern, canonical_json(data, concern.keys())));
        BTreeMap::from(each)
    };
    nodes.filter_map(|node| Some((name_of(&node["id"])?, of(&node["data"])))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(data: Value) -> BTreeMap<Concern, String> {
        let document = json!({"data": {"nodes": [{"id": 7, "data": data}]}});
        fingerprint(&document.to_string()).remove("7").unwrap()
    }

    #[test]
    fn labels_and_styles_do_not_change_a_fingerprint() {
        let plain = of(json!({"model": "m", "prompt": "p", "system": null}));
        let shown =
            json!({"prompt": "p", "label": "New", "color": "red", "maxTokens": 9, "model": "m"});
        assert_eq!(of(shown), plain);
        for (other, concern) in [
            (json!({"model": "n", "prompt": "p"}), Concern::Question),
            (json!({"model": "m", "prompt": "p", "promptCache": true}), Concern::Question),
            (json!({"model": "m", "prompt": "p", "cache": true}), Concern::Repeats),
            (json!({"model": "m", "prompt": "p", "timeouts": {"totalMs": 1}}), Concern::Failures),
        ] {
            let other = of(other);
            for each in Concern::ALL {
                assert_eq!(other[&each] != plain[&each], each == concern, "{other:?}");
            }
        }
        assert!(fingerprint("no flow").is_empty());
    }
}
