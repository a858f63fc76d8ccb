//! Edits of a flow, made in its stored document: what nobody knows here is kept as it is. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::flow::{EDGES_MAX, name_of};

/// Keys of a node's data that may be written in two ways.
const ALIASES: &[(&str, &str)] = &[("maxTokens", "max_tokens"), ("atOnce", "at_once")];

/// An edit of a flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Edit {
    /// Sets keys of a node's data. A null removes the key; an object is merged into the one that is
    /// there, key by key.
    SetNode {
        /// The node.
        node_id: String,
        /// The keys.
        values: Map<String, Value>,
    },
    /// Removes a node. What came before it comes before what came after it.
    RemoveNode {
        /// The node.
        node_id: String,
    },
    /// Lets the second of two nodes in a row run beside the first: after what comes before the first;
    /// and what comes after the second comes after both.
    RunBeside {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
}

/// The document with the edit made; all other nodes keep their order.
///
/// Whether nodes name each other is not looked at: the result is to be checked like any flow that is
/// saved. That it passes is sure for what [`shape`](super::shape) tells of the same graph.
///
/// # Errors
/// [`Error::Conflict`] where the node or the edge is not there any more, or where there would be too
/// many edges.
pub fn apply(document: &Value, edit: &Edit) -> Result<Value> {
    let mut document = document.clone();
    let Some(data) = document.get_mut("data") else {
        return Err(Error::Conflict("the flow has no graph".into()));
    };
    match edit {
        Edit::SetNode { node_id, values } => {
            let node = list_of(data, "nodes")?
                .iter_mut()
                .find(|node| id_at(node, "id") == *node_id)
                .ok_or_else(|| no_node(node_id))?;
            let Some(node) = node.as_object_mut() else {
                return Err(no_node(node_id));
            };
            merge(node.entry("data").or_insert(Value::Null), values);
        }
        Edit::RemoveNode { node_id } => {
            let nodes = list_of(data, "nodes")?;
            let count = nodes.len();
            nodes.retain(|node| id_at(node, "id") != *node_id);
            if nodes.len() == count {
                return Err(no_node(node_id));
            }
            let ends = |edge: &Value| [id_at(edge, "source"), id_at(edge, "target")];
            let edges = edges_of(data);
            let (gone, kept): (Vec<Value>, Vec<Value>) = edges
                .into_iter()
                .partition(|edge| ends(edge).contains(node_id));
            let mut edges = Edges::of(kept);
            for inward in gone.iter().filter(|edge| id_at(edge, "target") == *node_id) {
                for outward in gone.iter().filter(|edge| id_at(edge, "source") == *node_id) {
                    edges.join(inward, outward);
                }
            }
            edges.put_into(data)?;
        }
        Edit::RunBeside { first, second } => {
            let edges = edges_of(data);
            let (gone, kept): (Vec<Value>, Vec<Value>) = edges.into_iter().partition(|edge| {
                id_at(edge, "source") == *first && id_at(edge, "target") == *second
            });
            let Some(between) = gone.first() else {
                return Err(Error::Conflict(format!(
                    "there is no edge from node `{first}` to node `{second}` any more"
                )));
            };
            let mut edges = Edges::of(kept.clone());
            for inward in kept.iter().filter(|edge| id_at(edge, "target") == *first) {
                edges.join(inward, between);
            }
            for outward in kept.iter().filter(|edge| id_at(edge, "source") == *second) {
                edges.join(between, outward);
            }
            edges.put_into(data)?;
        }
    }
    Ok(document)
}

fn no_node(id: &str) -> Error {
    Error::Conflict(format!("there is no node `{id}` any more"))
}

/// The id that stands under a key of a node or an edge.
fn id_at(value: &Value, key: &str) -> String {
    name_of(&value[key]).unwrap_or_default()
}

fn list_of<'a>(data: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>> {
    data.get_mut(key)
        .and_then(Value::as_array_mut)
        .ok_or_else(|| Error::Conflict(format!("the flow has no {key}")))
}

/// The edges; a flow of one node may have no list of them.
fn edges_of(data: &Value) -> Vec<Value> {
    data["edges"].as_array().cloned().unwrap_or_default()
}

/// Sets keys of an object, and of the objects in it; a null removes the key.
fn merge(target: &mut Value, values: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else {
        return;
    };
    for (key, value) in values {
        let key = as_written(target, key);
        match value {
            Value::Null => drop(target.shift_remove(key)),
            Value::Object(values) => merge(target.entry(key).or_insert(Value::Null), values),
            value => drop(target.insert(key.to_owned(), value.clone())),
        }
    }
}

/// The key, or the other way to write it where that stands there: both are refused.
fn as_written<'a>(target: &Map<String, Value>, key: &'a str) -> &'a str {
    let others = ALIASES.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
    let mut others = others
        .filter(|(name, _)| *name == key)
        .map(|(_, other)| other);
    others
        .find(|other| target.contains_key(*other))
        .unwrap_or(key)
}

/// The edges of a flow, to which others are added, none twice.
struct Edges {
    all: Vec<Value>,
    ids: BTreeSet<String>,
    ends: BTreeSet<Ends>,
}

/// Source, handle of the source, target.
type Ends = (String, String, String);

fn ends(edge: &Value) -> Ends {
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

    /// Adds an edge from where `inward` comes from to where `outward` leads. It is like `inward` else.
    fn join(&mut self, inward: &Value, outward: &Value) {
        let Value::Object(mut edge) = inward.clone() else {
            return;
        };
        edge.insert("target".into(), outward["target"].clone());
        match outward.get("targetHandle") {
            Some(handle) => drop(edge.insert("targetHandle".into(), handle.clone())),
            None => drop(edge.shift_remove("targetHandle")),
        }
        let mut edge = Value::Object(edge);
        if self.ends.insert(ends(&edge)) {
            edge["id"] = self.free_id(&edge).into();
            self.all.push(edge);
        }
    }

    /// An id that no edge has yet.
    fn free_id(&mut self, edge: &Value) -> String {
        let wanted = format!("{}-{}", id_at(edge, "source"), id_at(edge, "target"));
        let mut id = wanted.clone();
        let mut count = 1;
        while !self.ids.insert(id.clone()) {
            count += 1;
            id = format!("{wanted}-{count}");
        }
        id
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

/// One difference between two documents.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What differs: `node draft`, `edge plan → draft`, and of a condition's `edge check → draft (true)`.
    pub what: String,
    /// Of a node that is in both, the key: `model`, `retry.attempts`. None where the whole was added
    /// or removed.
    pub key: Option<String>,
    /// What it was; null where it was not there.
    pub before: Value,
    /// What it is; null where it is not there any more.
    pub after: Value,
}

/// How the nodes and edges of two documents differ, for people to look at: nodes first, in their
/// order, then edges.
pub fn diff(before: &Value, after: &Value) -> Vec<Line> {
    let mut lines = Vec::new();
    let nodes = |document: &Value| {
        named(document, "nodes", |node| {
            format!("node {}", id_at(node, "id"))
        })
    };
    compare(&nodes(before), &nodes(after), &mut lines);
    let edges = |document: &Value| named(document, "edges", name_of_edge);
    compare(&edges(before), &edges(after), &mut lines);
    lines
}

fn name_of_edge(edge: &Value) -> String {
    let (source, handle, target) = ends(edge);
    match handle.as_str() {
        "" => format!("edge {source} → {target}"),
        handle => format!("edge {source} → {target} ({handle})"),
    }
}

/// The things of a list in a document with their names, in order.
fn named(document: &Value, key: &str, name: fn(&Value) -> String) -> Vec<(String, Value)> {
    let all = document["data"][key].as_array().into_iter().flatten();
    all.map(|value| (name(value), value.clone())).collect()
}

/// Adds the differences between two lists of things that have names.
fn compare(before: &[(String, Value)], after: &[(String, Value)], lines: &mut Vec<Line>) {
    let by_name =
        |all: &[(String, Value)]| -> BTreeMap<String, Value> { all.iter().cloned().collect() };
    let (old, new) = (by_name(before), by_name(after));
    for (what, was) in before {
        let line = |key, before: &Value, after: &Value| Line {
            what: what.clone(),
            key,
            before: before.clone(),
            after: after.clone(),
        };
        match new.get(what) {
            None => lines.push(line(None, was, &Value::Null)),
            Some(is) => changes("", was, is, &mut |key, before, after| {
                lines.push(line(Some(key.to_owned()), before, after));
            }),
        }
    }
    let added = after.iter().filter(|(what, _)| !old.contains_key(what));
    lines.extend(added.map(|(what, is)| Line {
        what: what.clone(),
        key: None,
        before: Value::Null,
        after: is.clone(),
    }));
}

/// Calls `found` for each key whose value differs, also in objects within. The keys of a node's `data`
/// stand by themselves, as people know them.
fn changes(path: &str, before: &Value, after: &Value, found: &mut dyn FnMut(&str, &Value, &Value)) {
    let keys: Vec<&String> = match (before, after) {
        _ if before == after => return,
        (Value::Object(old), Value::Object(new)) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            old.keys().chain(added).collect()
        }
        // Of an object that was added or removed, each key was.
        (Value::Object(all), Value::Null) | (Value::Null, Value::Object(all))
            if !all.is_empty() =>
        {
            all.keys().collect()
        }
        _ => return found(path, before, after),
    };
    for key in keys {
        let within = match (path, key.as_str()) {
            ("", "data") => String::new(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        changes(&within, &before[key], &after[key], found);
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{independent, unused};
    use super::*;
    use crate::flow::{Graph, NodeKind, NodeState, Progress, Verdict};
    use proptest::prelude::*;
    use serde_json::json;

    fn agent(id: &str, prompt: &str) -> Value {
        json!({"id": id, "type": "agent", "position": {"x": 1}, "data": {"provider": "echo", "model": "echo-1", "prompt": prompt}})
    }

    fn document(nodes: Value, edges: Value) -> Value {
        json!({"name": "x", "color": "red", "data": {"nodes": nodes, "edges": edges, "viewport": {"zoom": 1}}})
    }

    fn set(values: Value) -> Edit {
        let Value::Object(values) = values else {
            panic!("{values}");
        };
        let node_id = "a".to_owned();
        Edit::SetNode { node_id, values }
    }

    fn remove(node_id: &str) -> Edit {
        let node_id = node_id.to_owned();
        Edit::RemoveNode { node_id }
    }

    fn beside(first: &str, second: &str) -> Edit {
        let (first, second) = (first.to_owned(), second.to_owned());
        Edit::RunBeside { first, second }
    }

    fn conflict(document: &Value, edit: &Edit) -> String {
        match apply(document, edit) {
            Err(Error::Conflict(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_edit_is_written_as_an_object_with_its_type() {
        let written = serde_json::to_value(set(json!({"model": "m"}))).unwrap();
        assert_eq!(
            written,
            json!({"type": "setNode", "nodeId": "a", "values": {"model": "m"}})
        );
        for edit in [set(json!({"x": null})), remove("a"), beside("a", "b")] {
            let written = serde_json::to_value(&edit).unwrap();
            assert_eq!(serde_json::from_value::<Edit>(written).unwrap(), edit);
        }
    }

    #[test]
    fn keys_of_a_node_are_set_merged_and_removed_and_all_else_stays_in_its_order() {
        let mut node = agent("a", "p");
        node["data"]["max_tokens"] = json!(5);
        node["data"]["retry"] = json!({"attempts": 3, "backoffMs": 100});
        node["data"]["note"] = json!("mine");
        let before = document(json!([node]), json!([]));
        let edit = set(json!({
            "model": "echo-2", "prompt": null, "maxTokens": 9,
            "retry": {"backoffMs": null, "afterRestart": false}, "timeouts": {"totalMs": 7}
        }));
        let after = apply(&before, &edit).unwrap();
        assert_eq!(
            after.to_string(),
            r#"{"name":"x","color":"red","data":{"nodes":[{"id":"a","type":"agent","position":{"x":1},"data":{"provider":"echo","model":"echo-2","max_tokens":9,"retry":{"attempts":3,"afterRestart":false},"note":"mine","timeouts":{"totalMs":7}}}],"edges":[],"viewport":{"zoom":1}}}"#
        );
        let lines = diff(&before, &after);
        assert!(lines.iter().all(|line| line.what == "node a"));
        let told: Vec<(&str, &Value, &Value)> = lines
            .iter()
            .map(|line| (line.key.as_deref().unwrap(), &line.before, &line.after))
            .collect();
        assert_eq!(
            told,
            [
                ("model", &json!("echo-1"), &json!("echo-2")),
                ("prompt", &json!("p"), &Value::Null),
                ("max_tokens", &json!(5), &json!(9)),
                ("retry.backoffMs", &json!(100), &Value::Null),
                ("retry.afterRestart", &Value::Null, &json!(false)),
                ("timeouts.totalMs", &Value::Null, &json!(7)),
            ]
        );
    }

    #[test]
    fn a_removed_node_leaves_edges_that_keep_their_look_and_their_branch() {
        let before = document(
            json!([
                {"id": 1, "type": "condition", "data": {"expression": "input.x"}},
                agent("a", "x"), agent("b", "x"), agent("c", "x"),
            ]),
            json!([
                {"id": "e1", "source": 1, "sourceHandle": "true", "target": "a", "animated": true, "targetHandle": "left"},
                {"id": "1-b", "source": "a", "target": "b"},
                {"source": "a", "target": "c", "targetHandle": "top"},
                {"id": "e4", "source": 1, "sourceHandle": "true", "target": "c"},
            ]),
        );
        let after = apply(&before, &remove("a")).unwrap();
        assert_eq!(
            after["data"]["edges"],
            json!([
                {"id": "e4", "source": 1, "sourceHandle": "true", "target": "c"},
                {"id": "1-b", "source": 1, "sourceHandle": "true", "target": "b", "animated": true},
            ])
        );
        let lines: Vec<(String, bool)> = diff(&before, &after)
            .into_iter()
            .map(|line| (line.what, line.after.is_null()))
            .collect();
        let expected = [
            ("node a", true),
            ("edge 1 → a (true)", true),
            ("edge a → b", true),
            ("edge a → c", true),
            ("edge 1 → b (true)", false),
        ];
        assert_eq!(lines, expected.map(|(what, gone)| (what.to_owned(), gone)));
    }

    #[test]
    fn a_node_that_runs_beside_another_comes_after_and_before_the_same() {
        let ids = ["a", "b", "c", "d"];
        let before = document(
            ids.map(|id| agent(id, "x")).into(),
            json!([
                {"id": "e1", "source": "a", "target": "b"},
                {"id": "e2", "source": "b", "target": "c"},
                {"id": "e3", "source": "c", "target": "d"},
            ]),
        );
        let after = apply(&before, &beside("b", "c")).unwrap();
        assert_eq!(
            after["data"]["edges"],
            json!([
                {"id": "e1", "source": "a", "target": "b"},
                {"id": "e3", "source": "c", "target": "d"},
                {"id": "a-c", "source": "a", "target": "c"},
                {"id": "b-d", "source": "b", "target": "d"},
            ])
        );
    }

    #[test]
    fn an_edit_of_what_is_no_longer_there_is_a_conflict() {
        let before = document(json!([agent("b", "x")]), json!([]));
        for edit in [set(json!({"model": "m"})), remove("a")] {
            assert_eq!(conflict(&before, &edit), "there is no node `a` any more");
        }
        assert_eq!(
            conflict(&before, &beside("a", "b")),
            "there is no edge from node `a` to node `b` any more"
        );
        for broken in [
            json!(null),
            json!({"data": 3}),
            json!({"data": {"nodes": {}}}),
        ] {
            conflict(&broken, &remove("a"));
            conflict(&broken, &set(json!({})));
            conflict(&broken, &beside("a", "b"));
        }
    }

    #[test]
    fn an_edit_that_would_need_too_many_edges_is_a_conflict() {
        let around = 101;
        let edges: Vec<Value> = (0..around)
            .flat_map(|n| {
                let (before, after) = (format!("b{n}"), format!("a{n}"));
                [
                    json!({"source": before, "target": "a"}),
                    json!({"source": "a", "target": after}),
                ]
            })
            .collect();
        let before = document(json!([agent("a", "x")]), edges.into());
        let why = conflict(&before, &remove("a"));
        assert!(why.contains("10201 edges"), "{why}");
    }

    /// A flow of random nodes whose edges lead from a lower to a higher number, and whose templates
    /// name nodes before them.
    fn flow(kinds: &[u8], edges: &[(usize, usize, bool)], names: &[(usize, usize)]) -> Value {
        let count = kinds.len();
        let edges: Vec<Value> = edges
            .iter()
            .map(|&(a, b, branch)| ((a % count).min(b % count), (a % count).max(b % count), branch))
            .filter(|(a, b, _)| a != b)
            .enumerate()
            .map(|(at, (a, b, branch))| {
                let mut edge = json!({"id": format!("e{at}"), "source": format!("n-{a}"), "target": format!("n-{b}")});
                if kinds[a] == CONDITION {
                    edge["sourceHandle"] = json!(branch.to_string());
                }
                edge
            })
            .collect();
        let with_names = |names: &[(usize, usize)]| {
            let nodes = kinds.iter().enumerate().map(|(at, &kind)| {
                let named = names.iter().filter(|(_, reader)| *reader == at);
                let text: String = named
                    .map(|(name, _)| format!("{{{{ nodes['n-{name}'].output }}}}"))
                    .collect();
                let id = format!("n-{at}");
                let call = json!({"provider": "echo", "model": "m", "prompt": format!("p{text}"), "items": "input.list"});
                match kind {
                    CONDITION => json!({"id": id, "type": "condition", "data": {"expression": "input.x"}}),
                    3 => json!({"id": id, "type": "template", "data": {"template": format!("t{text}")}}),
                    4 => json!({"id": id, "type": "output", "data": {"template": format!("o{text}")}}),
                    5 => json!({"id": id, "type": "map", "data": call}),
                    _ => json!({"id": id, "type": "agent", "data": call}),
                }
            });
            document(nodes.collect(), edges.clone().into())
        };
        let before = graph(&with_names(&[])).ancestors();
        let names: Vec<(usize, usize)> = names
            .iter()
            .map(|(name, reader)| (name % count, reader % count))
            .filter(|&(name, reader)| before[reader][name])
            .collect();
        with_names(&names)
    }

    const CONDITION: u8 = 2;

    fn graph(document: &Value) -> Graph {
        Graph::parse(&document["data"], &|_| true).unwrap()
    }

    /// What must not change.
    #[derive(Debug, PartialEq)]
    struct Course {
        /// Which node comes before which.
        order: BTreeSet<(String, String)>,
        /// What is skipped with some outcomes of the conditions.
        skipped: BTreeSet<String>,
        results: BTreeSet<String>,
    }

    fn course(graph: &Graph, outcomes: u32) -> Course {
        let id = |at: usize| graph.nodes()[at].id.clone();
        let before = graph.ancestors();
        let all = 0..before.len();
        let mut progress = Progress::new(graph, []);
        while let Some(at) = progress.take() {
            let number: u32 = id(at)[2..].parse().unwrap();
            let verdict = match graph.nodes()[at].kind {
                NodeKind::Condition(_) => Verdict::Branch(outcomes >> number & 1 == 1),
                _ => Verdict::Done,
            };
            progress.complete(graph, at, verdict);
        }
        let is_skipped = |at: &usize| progress.state(*at) == NodeState::Skipped;
        Course {
            order: all
                .clone()
                .flat_map(|at| all.clone().map(move |other| (other, at)))
                .filter(|&(other, at)| before[at][other])
                .map(|(other, at)| (id(other), id(at)))
                .collect(),
            skipped: all.clone().filter(is_skipped).map(id).collect(),
            results: graph.results().into_iter().map(id).collect(),
        }
    }

    fn assert_edges_are_distinct(document: &Value) {
        let edges = edges_of(&document["data"]);
        let ids: BTreeSet<String> = edges.iter().map(|edge| id_at(edge, "id")).collect();
        assert_eq!(ids.len(), edges.len());
    }

    proptest! {
        #[test]
        fn what_nobody_uses_can_be_removed_and_nothing_else_changes(
            kinds in proptest::collection::vec(0u8..8, 1..10),
            edges in proptest::collection::vec((0usize..10, 0usize..10, any::<bool>()), 0..20),
            names in proptest::collection::vec((0usize..10, 0usize..10), 0..12),
            outcomes: u32,
        ) {
            let mut document = flow(&kinds, &edges, &names);
            let mut expected = course(&graph(&document), outcomes);
            for node in unused(&graph(&document)) {
                document = apply(&document, &remove(&node)).unwrap();
                expected.order.retain(|(a, b)| *a != node && *b != node);
                expected.skipped.remove(&node);
                // Parsing it says that no template names what is gone or no longer comes before.
                prop_assert_eq!(&course(&graph(&document), outcomes), &expected);
            }
            assert_edges_are_distinct(&document);
            prop_assert_eq!(unused(&graph(&document)), Vec::<String>::new());
        }

        #[test]
        fn what_is_independent_runs_side_by_side_and_nothing_else_changes(
            kinds in proptest::collection::vec(0u8..8, 1..10),
            edges in proptest::collection::vec((0usize..10, 0usize..10, any::<bool>()), 0..20),
            names in proptest::collection::vec((0usize..10, 0usize..10), 0..12),
            outcomes: u32,
        ) {
            let mut document = flow(&kinds, &edges, &names);
            for (first, second) in independent(&graph(&document)) {
                let mut expected = course(&graph(&document), outcomes);
                prop_assert!(expected.order.remove(&(first.clone(), second.clone())));
                let after = apply(&document, &beside(&first, &second)).unwrap();
                prop_assert_eq!(course(&graph(&after), outcomes), expected);
                assert_edges_are_distinct(&after);
            }
            // One after the other it comes to an end.
            let mut left = kinds.len() * kinds.len();
            while let Some((first, second)) = independent(&graph(&document)).pop() {
                document = apply(&document, &beside(&first, &second)).unwrap();
                left -= 1;
                prop_assert!(left > 0);
            }
        }
    }
}
