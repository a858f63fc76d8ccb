use super::*;
use serde_json::{Value, json};

fn agent(id: &str, prompt: &str) -> Value {
    json!({"id": id, "data": {"provider": "echo", "model": "m", "prompt": prompt}})
}

fn text(kind: &str, id: &str, template: &str) -> Value {
    json!({"id": id, "type": kind, "data": {"template": template}})
}

fn condition(id: &str) -> Value {
    json!({"id": id, "type": "condition", "data": {"expression": "input.x"}})
}

/// Edges as `a b`, or as `c b true` from a condition.
fn graph(nodes: &[Value], edges: &[&str]) -> Graph {
    let edges: Vec<Value> = edges
        .iter()
        .map(|edge| {
            let parts: Vec<&str> = edge.split(' ').collect();
            json!({"source": parts[0], "target": parts[1], "sourceHandle": parts.get(2)})
        })
        .collect();
    Graph::parse(&json!({"nodes": nodes, "edges": edges}), &|_| true).unwrap()
}

fn pairs(graph: &Graph) -> Vec<String> {
    let pairs = independent(graph).into_iter();
    pairs.map(|(a, b)| format!("{a} {b}")).collect()
}

#[test]
fn unreferenced_nodes_and_their_inputs_are_unused() {
    let nodes =
        [agent("plan", "x"), agent("check", "{{ nodes.plan.output }}"), agent("draft", "y")];
    let graph = graph(&nodes, &["plan check", "check draft"]);
    assert_eq!(unused(&graph), ["check", "plan"]);
}

#[test]
fn a_final_node_is_used_unless_there_are_output_nodes() {
    let nodes = [agent("a", "x"), agent("b", "{{ nodes.a.output }}")];
    assert!(unused(&graph(&nodes, &["a b"])).is_empty());
    let [a, b] = nodes;
    let nodes = [a, b, text("output", "out", "{{ nodes.a.output }}")];
    assert_eq!(unused(&graph(&nodes, &["a b", "a out"])), ["b"]);
}

#[test]
fn a_node_is_used_by_direct_and_dynamic_references() {
    let by = |template: &str| {
        let nodes = [agent("a", "x"), agent("b", "y"), text("template", "t", template)];
        unused(&graph(&nodes, &["a b", "b t"]))
    };
    assert_eq!(by("{{ nodes.b.output }}"), ["a"]);
    assert!(by("{{ nodes.b.output }} {{ nodes['a'].output }}").is_empty());
    assert!(by("{{ nodes[input.which].output }}").is_empty());
}

#[test]
fn a_node_that_alone_triggers_the_next_one_is_kept() {
    let nodes = [condition("c"), agent("a", "x"), agent("b", "y"), agent("end", "z")];
    let edges = ["c b true", "a b", "b end"];
    assert_eq!(unused(&graph(&nodes, &edges)), ["b"]);
    // Without `a` before it, the end would be skipped if the condition is false.
    assert!(!unused(&graph(&nodes, &edges)).contains(&"a".to_owned()));
}

#[test]
fn agents_are_independent_without_a_reference_between_them() {
    let nodes = |prompt| [agent("a", "x"), agent("b", prompt), agent("end", "z")];
    let edges = ["a b", "b end"];
    // If `end` did not wait for `b`, the run would have two results.
    assert_eq!(pairs(&graph(&nodes("y"), &edges)), ["a b"]);
    for prompt in ["{{ nodes.a.output }}", "{{ nodes[input.x].output }}"] {
        assert!(pairs(&graph(&nodes(prompt), &edges)).is_empty(), "{prompt}");
    }
}

#[test]
fn nodes_with_another_path_or_a_branch_are_dependent() {
    let nodes = [
        agent("a", "x"),
        text("template", "t", "{{ nodes.a.output }}"),
        agent("b", "y"),
        agent("end", "z {{ nodes.b.output }}"),
    ];
    assert!(pairs(&graph(&nodes, &["a t", "t b", "a b", "b end"])).is_empty());
    let nodes =
        [condition("c"), agent("a", "x"), agent("b", "y"), agent("end", "{{ nodes.b.output }}")];
    assert!(pairs(&graph(&nodes, &["c b true", "b end"])).is_empty());
    // Without `a`, `b` would be skipped if the condition is false.
    assert!(pairs(&graph(&nodes, &["c b true", "a b", "b end"])).is_empty());
    assert_eq!(pairs(&graph(&nodes, &["c a true", "a b", "b end"])), ["a b"]);
}
