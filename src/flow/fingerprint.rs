//! What a node's data says about what it asks, apart from what only people read: labels, places, styles.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::read::name_of;

/// What changes of a node's data are about: what was known of its calls before is of no use then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// What is asked of whom: nothing that is known of earlier calls holds any more.
    Question,
    /// Whether answers are kept: prompts that were bought again are not any more.
    Repeats,
    /// What is done about failures.
    Failures,
}

impl Concern {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Question, Self::Repeats, Self::Failures];

    /// The name that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Repeats => "repeats",
            Self::Failures => "failures",
        }
    }

    /// The keys of a node's data that decide it.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Question => &[
                "provider",
                "model",
                "prompt",
                "system",
                "items",
                "temperature",
                "promptCache",
            ],
            Self::Repeats => &["cache"],
            Self::Failures => &["retry", "timeouts", "fallback"],
        }
    }
}

impl FromStr for Concern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|it| it.as_str() == text)
            .ok_or_else(|| format!("`{text}` is nothing that a change is about"))
    }
}

/// What is read under another name as well.
const ALIASES: &[(&str, &str)] = &[("maxTokens", "max_tokens")];

/// What a node's data says under some keys, as one text that is the same whatever the order they stand in.
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

/// What each node of a stored flow says about each concern; of one that cannot be read, nothing.
pub fn asked(document: &str) -> BTreeMap<String, BTreeMap<Concern, String>> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let nodes = document["data"]["nodes"].as_array().into_iter().flatten();
    let of = |data: &Value| {
        let each = Concern::ALL.map(|concern| (concern, said(data, concern.keys())));
        BTreeMap::from(each)
    };
    nodes
        .filter_map(|node| Some((name_of(&node["id"])?, of(&node["data"]))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(data: Value) -> BTreeMap<Concern, String> {
        let document = json!({"data": {"nodes": [{"id": 7, "data": data}]}});
        asked(&document.to_string()).remove("7").unwrap()
    }

    #[test]
    fn what_only_people_read_is_not_what_a_node_asks() {
        let plain = of(json!({"model": "m", "prompt": "p", "system": null}));
        let shown =
            json!({"prompt": "p", "label": "New", "color": "red", "maxTokens": 9, "model": "m"});
        assert_eq!(of(shown), plain);
        for (other, concern) in [
            (json!({"model": "n", "prompt": "p"}), Concern::Question),
            (
                json!({"model": "m", "prompt": "p", "promptCache": true}),
                Concern::Question,
            ),
            (
                json!({"model": "m", "prompt": "p", "cache": true}),
                Concern::Repeats,
            ),
            (
                json!({"model": "m", "prompt": "p", "timeouts": {"totalMs": 1}}),
                Concern::Failures,
            ),
        ] {
            let other = of(other);
            for each in Concern::ALL {
                assert_eq!(other[&each] != plain[&each], each == concern, "{other:?}");
            }
        }
        assert!(asked("no flow").is_empty());
    }
}
