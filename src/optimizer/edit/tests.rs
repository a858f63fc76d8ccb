use super::*;
use crate::flow::{Graph, NodeKind, Progress, Verdict};
use crate::optimizer::diff::diff;
use crate::optimizer::shape::{independent, unused};
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
    assert_eq!(written, json!({"type": "setNode", "nodeId": "a", "values": {"model": "m"}}));
    for edit in [set(json!({"x": null})), remove("a"), beside("a", "b")] {
        let written = serde_json::to_value(&edit).unwrap();
        assert_eq!(serde_json::from_value::<Edit>(written).unwrap(), edit);
    }
}

#[test]
fn node_keys_are_edited_and_everything_else_keeps_its_order() {
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
    let shown: Vec<(&str, &Value, &Value)> = lines
        .iter()
        .map(|line| (line.key.as_deref().unwrap(), &line.before, &line.after))
        .collect();
    assert_eq!(
        shown,
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
fn edges_around_a_removed_node_keep_style_and_branch() {
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
    let lines: Vec<(String, bool)> =
        diff(&before, &after).into_iter().map(|line| (line.what, line.after.is_null())).collect();
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
fn parallel_nodes_have_the_same_neighbours() {
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
fn an_edit_of_a_missing_node_or_edge_is_a_conflict() {
    let before = document(json!([agent("b", "x")]), json!([]));
    for edit in [set(json!({"model": "m"})), remove("a")] {
        assert_eq!(conflict(&before, &edit), "node `a` not found");
    }
    assert_eq!(conflict(&before, &beside("a", "b")), "edge from node `a` to node `b` not found");
    for broken in [json!(null), json!({"data": 3}), json!({"data": {"nodes": {}}})] {
        conflict(&broken, &remove("a"));
        conflict(&broken, &set(json!({})));
        conflict(&broken, &beside("a", "b"));
    }
}

#[test]
fn an_edit_that_adds_too_many_edges_is_a_conflict() {
    let around = 101;
    let edges: Vec<Value> = (0..around)
        .flat_map(|n| {
            let (before, after) = (format!("b{n}"), format!("a{n}"));
            [json!({"source": before, "target": "a"}), json!({"source": "a", "target": after})]
        })
        .collect();
    let before = document(json!([agent("a", "x")]), edges.into());
    let why = conflict(&before, &remove("a"));
    assert!(why.contains("10201 edges"), "{why}");
}

/// A flow of random nodes. Edges lead from a lower to a higher number, and templates name earlier
/// nodes.
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

/// The properties that an edit must keep.
#[derive(Debug, PartialEq)]
struct Course {
    /// Pairs of nodes in execution order.
    order: BTreeSet<(String, String)>,
    /// Skipped nodes for some outcomes of the conditions.
    skipped: BTreeSet<String>,
    results: BTreeSet<String>,
}

fn course(graph: &Graph, outcomes: u32) -> Course {
    let id = |at: usize| graph.nodes()[at].id.clone();
    let before = graph.ancestors();
    let all = 0..before.len();
    let mut progress = Progress::new(graph, []);
    while let Some(at) = progress.take(|_| true) {
        let number: u32 = id(at)[2..].parse().unwrap();
        let verdict = match graph.nodes()[at].kind {
            NodeKind::Condition(_) => Verdict::Branch(outcomes >> number & 1 == 1),
            _ => Verdict::Done,
        };
        progress.complete(graph, at, verdict);
    }
    let is_skipped = |at: &usize| progress.is_skipped(*at);
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
    fn unused_nodes_can_be_removed_without_other_changes(
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
            // Parsing also checks that no template names a removed or later node.
            prop_assert_eq!(&course(&graph(&document), outcomes), &expected);
        }
        assert_edges_are_distinct(&document);
        prop_assert_eq!(unused(&graph(&document)), Vec::<String>::new());
    }

    #[test]
    fn independent_nodes_can_be_made_parallel(
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
        // Applying one edit after another terminates.
        let mut left = kinds.len() * kinds.len();
        while let Some((first, second)) = independent(&graph(&document)).pop() {
            document = apply(&document, &beside(&first, &second)).unwrap();
            left -= 1;
            prop_assert!(left > 0);
        }
    }
}
