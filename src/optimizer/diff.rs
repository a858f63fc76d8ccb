//! The differences between two documents of a flow. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::edit::{ends, id_at};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffLine {
    /// The node or edge: `node draft`, `edge plan → draft`, with a branch `edge check → draft
    /// (true)`.
    pub what: String,
    /// The key, such as `retry.attempts`; none if the whole node or edge was added or removed.
    pub key: Option<String>,
    /// Null for an added key.
    pub before: Value,
    /// Null for a removed key.
    pub after: Value,
}

/// Lists the differences, nodes first, in the order of the documents.
pub fn diff(before: &Value, after: &Value) -> Vec<DiffLine> {
    let mut lines = Vec::new();
    let name_of_node = |node: &Value| format!("node {}", id_at(node, "id"));
    compare(before, after, "nodes", name_of_node, &mut lines);
    compare(before, after, "edges", name_of_edge, &mut lines);
    lines
}

fn name_of_edge(edge: &Value) -> String {
    let (source, handle, target) = ends(edge);
    match handle.as_str() {
        "" => format!("edge {source} → {target}"),
        handle => format!("edge {source} → {target} ({handle})"),
    }
}

/// Compares the lists under a key of both documents by the names of their elements.
fn compare(
    before: &Value,
    after: &Value,
    key: &str,
    name: impl Fn(&Value) -> String,
    lines: &mut Vec<DiffLine>,
) {
    let named = |document: &Value| -> Vec<(String, Value)> {
        let all = document["data"][key].as_array().into_iter().flatten();
        all.map(|value| (name(value), value.clone())).collect()
    };
    let (before, after) = (named(before), named(after));
    let old: BTreeMap<&String, &Value> =
        before.iter().map(|(name, old_value)| (name, old_value)).collect();
    let new: BTreeMap<&String, &Value> =
        after.iter().map(|(name, new_value)| (name, new_value)).collect();
    let mut add = |what: &str, key: Option<&str>, before: &Value, after: &Value| {
        lines.push(DiffLine {
            what: what.to_owned(),
            key: key.map(str::to_owned),
            before: before.clone(),
            after: after.clone(),
        });
    };
    for (what, old_value) in &before {
        match new.get(what) {
            None => add(what, None, old_value, &Value::Null),
            Some(new_value) => {
                changes("", old_value, new_value, &mut |key, old_value, new_value| {
                    add(what, Some(key), old_value, new_value)
                })
            }
        }
    }
    for (what, new_value) in after.iter().filter(|(what, _)| !old.contains_key(what)) {
        add(what, None, &Value::Null, new_value);
    }
}

/// Calls `report` for each key whose value differs, also in nested objects. The keys of a node's
/// `data` get no prefix.
fn changes(
    path: &str,
    before: &Value,
    after: &Value,
    report: &mut dyn FnMut(&str, &Value, &Value),
) {
    let keys: Vec<&String> = match (before, after) {
        _ if before == after => return,
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            old.keys().chain(added).collect()
        }
        (Value::Object(all), Value::Null) | (Value::Null, Value::Object(all))
            if !all.is_empty() =>
        {
            all.keys().collect()
        }
        _ => return report(path, before, after),
    };
    for key in keys {
        let within = match (path, key.as_str()) {
            ("", "data") => String::new(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        changes(&within, &before[key], &after[key], report);
    }
}
