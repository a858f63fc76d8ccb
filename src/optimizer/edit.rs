//! Edits of a flow. They apply to its stored document, so that unknown parts stay unchanged. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::flow::{EDGES_MAX, name_of};

/// Keys of a node's data with two spellings.
const ALIASES: &[(&str, &str)] = &[("maxTokens", "max_tokens"), ("atOnce", "at_once")];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Edit {
    /// Sets keys of a node's data. A null removes the key; an object is merged into the existing one.
    SetNode { node_id: String, values: Map<String, Value> },
    /// Removes a node and connects its predecessors with its successors.
    RemoveNode { node_id: String },
    /// Lets the second of two consecutive nodes run in parallel with the first: it follows the
    /// predecessors of the first, and its successors follow both.
    RunBeside { first: String, second: String },
}

/// Returns the edited document; all other nodes keep their order.
///
/// References between nodes are not checked: the caller validates the result like any saved flow.
/// Edits that [`shape`](super::shape) derives from the same graph are always valid.
///
/// # Errors
/// [`Error::Conflict`] for a node or edge that was removed, and for too many new edges.
pub fn apply(document: &Value, edit: &Edit) -> Result<Value> {
    let mut document = document.clone();
    let Some(data) = document.get_mut("data") else {
        return Err(Error::Conflict("the flow has no `data`".into()));
    };
    match edit {
        Edit::SetNode { node_id, values } => {
            let mut nodes = list_of(data, "nodes")?.iter_mut();
            let node = nodes.find(|node| id_at(node, "id") == *node_id);
            let node = node.and_then(Value::as_object_mut);
            let node = node.ok_or_else(|| node_not_found(node_id))?;
            merge(node.entry("data").or_insert(Value::Null), values);
        }
        Edit::RemoveNode { node_id } => {
            let nodes = list_of(data, "nodes")?;
            let count = nodes.len();
            nodes.retain(|node| id_at(node, "id") != *node_id);
            if nodes.len() == count {
                return Err(node_not_found(node_id));
            }
            let (incoming, others) = split(edges_of(data), |it| id_at(it, "target") == *node_id);
            let (outgoing, remaining) = split(others, |it| id_at(it, "source") == *node_id);
            let mut edges = Edges::of(remaining);
            for incoming in &incoming {
                outgoing.iter().for_each(|outgoing| edges.join(incoming, outgoing));
            }
            edges.put_into(data)?;
        }
        Edit::RunBeside { first, second } => {
            let (removed, remaining) = split(edges_of(data), |it| {
                id_at(it, "source") == *first && id_at(it, "target") == *second
            });
            let Some(between) = removed.first() else {
                return Err(Error::Conflict(format!(
                    "edge from node `{first}` to node `{second}` not found"
                )));
            };
            let mut edges = Edges::of(remaining.clone());
            for incoming in remaining.iter().filter(|it| id_at(it, "target") == *first) {
                edges.join(incoming, between);
            }
            for outgoing in remaining.iter().filter(|it| id_at(it, "source") == *second) {
                edges.join(between, outgoing);
            }
            edges.put_into(data)?;
        }
    }
    Ok(document)
}

fn node_not_found(id: &str) -> Error {
    Error::Conflict(format!("node `{id}` not found"))
}

/// Returns the id under a key of a node or an edge, or an empty text.
pub(super) fn id_at(value: &Value, key: &str) -> String {
    name_of(&value[key]).unwrap_or_default()
}

fn list_of<'a>(data: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>> {
    data.get_mut(key)
        .and_then(Value::as_array_mut)
        .ok_or_else(|| Error::Conflict(format!("the flow has no `{key}`")))
}

/// Returns the edges; a flow of one node may have no list of them.
fn edges_of(data: &Value) -> Vec<Value> {
    data["edges"].as_array().cloned().unwrap_or_default()
}

fn split(edges: Vec<Value>, is_first: impl FnMut(&Value) -> bool) -> (Vec<Value>, Vec<Value>) {
    edges.into_iter().partition(is_first)
}

/// Sets keys of an object and of nested objects; a null removes the key.
fn merge(target: &mut Value, values: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in values {
        let key = existing_key(target, key);
        match value {
            Value::Null => drop(target.shift_remove(key)),
            Value::Object(values) => merge(target.entry(key).or_insert(Value::Null), values),
            value => drop(target.insert(key.to_owned(), value.clone())),
        }
    }
}

/// Returns the spelling in the object, because using both is an error.
fn existing_key<'a>(target: &Map<String, Value>, key: &'a str) -> &'a str {
    let pairs = ALIASES.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
    let mut used = pairs.filter(|(name, other)| *name == key && target.contains_key(*other));
    used.next().map_or(key, |(_, other)| other)
}

/// A flow's edges, without duplicates.
struct Edges {
    all: Vec<Value>,
    ids: BTreeSet<String>,
    ends: BTreeSet<Ends>,
}

/// Source, handle of the source, target.
pub(super) type Ends = (String, String, String);

pub(super) fn ends(edge: &Value) -> Ends {
    let of = |key| id_at(edge, key);
    (of("source"), of("sourceHandle"), of("target"))
}

impl Edges {
    fn of(all: Vec<Value>) -> Self {
        Self {
            ids: all.iter().map(|edge| id_at(edge, "id")).collect(),
            ends: all.iter().map(ends).collect(),
            all,
        }
    }

    /// Adds an edge from the source of `incoming` to the target of `outgoing`, with all other keys
    /// of `incoming`.
    fn join(&mut self, incoming: &Value, outgoing: &Value) {
        let Value::Object(mut edge) = incoming.clone() else {
            return;
        };
        edge.insert("target".into(), outgoing["target"].clone());
        match outgoing.get("targetHandle") {
            Some(handle) => drop(edge.insert("targetHandle".into(), handle.clone())),
            None => drop(edge.shift_remove("targetHandle")),
        }
        let mut edge = Value::Object(edge);
        if self.ends.insert(ends(&edge)) {
            let base_id = format!("{}-{}", id_at(&edge, "source"), id_at(&edge, "target"));
            let numbered = (2..).map(|number| format!("{base_id}-{number}"));
            let mut ids = [base_id.clone()].into_iter().chain(numbered);
            edge["id"] = ids.find(|id| self.ids.insert(id.clone())).into();
            self.all.push(edge);
        }
    }

    fn put_into(self, data: &mut Value) -> Result<()> {
        if self.all.len() > EDGES_MAX {
            return Err(Error::Conflict(format!(
                "the flow would have {} edges; the limit is {EDGES_MAX}",
                self.all.len()
            )));
        }
        data["edges"] = Value::Array(self.all);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
