//! The drawn graph of a flow shows exactly the edges of its document: each begins at the border of
//! its source and ends at that of its target, and no two nodes overlap.

use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::page::Person;

fn agent(id: &str) -> Value {
    json!({"id": id, "type": "agent", "data": {"label": format!("Label of {id}"),
        "provider": "echo", "model": "echo-1", "prompt": "hi"}})
}

fn condition(id: &str) -> Value {
    json!({"id": id, "type": "condition", "data": {"expression": "input.x is defined"}})
}

/// A graph of these edges, written as `a>b`, with `a>b?true` for a branch of a condition.
fn graph(edges: &str) -> Value {
    let mut ids: Vec<&str> = Vec::new();
    let mut conditions: Vec<&str> = Vec::new();
    let mut list = Vec::new();
    for (at, edge) in edges.split_whitespace().enumerate() {
        let (edge, branch) = edge.split_once('?').map_or((edge, None), |(e, b)| (e, Some(b)));
        let (source, target) = edge.split_once('>').unwrap();
        let mut edge = json!({"id": format!("e{at}"), "source": source, "target": target});
        if let Some(branch) = branch {
            edge["sourceHandle"] = json!(branch);
            conditions.push(source);
        }
        for id in [source, target] {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        list.push(edge);
    }
    let nodes: Vec<Value> = ids
        .iter()
        .map(|id| if conditions.contains(id) { condition(id) } else { agent(id) })
        .collect();
    json!({"nodes": nodes, "edges": list})
}

fn chain_of(count: usize) -> String {
    (1..count).map(|at| format!("n{at}>n{} ", at + 1)).collect()
}

fn shapes() -> Vec<(&'static str, Value)> {
    let mut shapes: Vec<(&str, Value)> = [
        ("chain", "a>b b>c"),
        ("fan out", "a>b a>c a>d a>e"),
        ("fan in", "a>e b>e c>e d>e"),
        ("diamond", "a>b a>c b>d c>d"),
        ("skip edge", "a>b b>c a>c"),
        ("skip edges over skip edges", "a>b b>c c>d d>e a>c a>d a>e b>e"),
        ("two parts", "a>b c>d"),
        ("condition", "a>b b>c?true b>d?false"),
        ("both branches to one node", "a>b b>c?true b>c?false"),
        ("nested conditions", "a>b?true a>c?false b>d?true b>e?false d>f e>f c>f"),
        ("branch that skips", "a>b b>c?true b>e?false c>d d>e"),
        ("crossing edges", "a>d a>e b>c b>e c>f d>f e>f"),
        ("all to all", "a>x a>y a>z b>x b>y b>z c>x c>y c>z"),
        ("butterfly", "a>c b>c c>d c>e d>f e>f"),
        ("order against the edges", "z>y y>x x>w"),
        ("numbers and spaces", "1>2 2>33 1>33"),
    ]
    .into_iter()
    .map(|(name, edges)| (name, graph(edges)))
    .collect();
    shapes.push(("one node", json!({"nodes": [agent("only")], "edges": []})));
    shapes.push(("nodes without edges", json!({"nodes": [agent("a"), agent("b")], "edges": []})));
    shapes.push(("long chain", graph(&chain_of(30))));
    let mut odd = graph("a>b b>c");
    odd["nodes"][1]["id"] = json!("quote \" <b> {{x}}");
    odd["edges"][0]["target"] = json!("quote \" <b> {{x}}");
    odd["edges"][1]["source"] = json!("quote \" <b> {{x}}");
    odd["nodes"][2]["data"]["label"] =
        json!("A very long label that does not fit into a box of a graph at all");
    shapes.push(("odd names", odd));
    let wide: String = (0..24).map(|at| format!("a>m{at} m{at}>z ")).collect();
    shapes.push(("wide", graph(&wide)));
    shapes
}

/// Returns the drawn edges as `source>target`, and the faults of the drawing.
const DRAWN: &str = "(() => {
    const nodes = [...document.querySelectorAll('[data-testid=graph] [data-testid=node]')];
    const boxes = new Map(nodes.map((node) => [node.dataset.nodeId, node.getBoundingClientRect()]));
    const faults = [];
    const gap = (box, { x, y }) => Math.hypot(
        Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
    const edges = [...document.querySelectorAll('[data-testid=graph-edge]')].map((edge) => {
        const { source, target } = edge.dataset;
        const point = (at) => edge.getPointAtLength(at).matrixTransform(edge.getScreenCTM());
        const [first, last] = [point(0), point(edge.getTotalLength())];
        if (gap(boxes.get(source), first) > 6) faults.push(`${source}>${target} does not begin at its source`);
        if (gap(boxes.get(target), last) > 14) faults.push(`${source}>${target} does not end at its target`);
        return `${source}>${target}${edge.dataset.branch ? `?${edge.dataset.branch}` : ''}`;
    });
    const list = [...boxes];
    list.forEach(([id, box], at) => list.slice(at + 1).forEach(([other, second]) => {
        if (box.left < second.right - 1 && second.left < box.right - 1 && box.top < second.bottom - 1 && second.top < box.bottom - 1)
            faults.push(`${id} and ${other} overlap`);
    }));
    return { edges: edges.sort(), nodes: nodes.map((node) => node.dataset.nodeId).sort(), faults };
})()";

fn sorted(mut texts: Vec<String>) -> Value {
    texts.sort();
    json!(texts)
}

#[test]
fn the_drawing_has_the_edges_of_the_document() {
    let server = TestServer::start();
    let shapes = shapes();
    assert!(shapes.len() >= 20);
    let person = Person::opens(&server);
    for (width, height) in [(1440, 900), (390, 844)] {
        person.browser.resize(width, height, width < 600);
        for (name, graph) in &shapes {
            let flow = server.save(&json!({"name": name, "data": graph}));
            person.goes_to(&format!("/flows/{flow}"));
            person
                .browser
                .wait_for("document.querySelector('[data-testid=graph] [data-testid=node]')");
            let drawn = person.browser.eval(DRAWN);
            let edges = graph["edges"].as_array().unwrap().iter().map(|edge| {
                let branch = edge["sourceHandle"].as_str().map(|b| format!("?{b}"));
                let [source, target] = ["source", "target"].map(|end| edge[end].as_str().unwrap());
                format!("{source}>{target}{}", branch.unwrap_or_default())
            });
            let ids = graph["nodes"].as_array().unwrap().iter();
            let ids = ids.map(|node| node["id"].as_str().unwrap().to_owned());
            assert_eq!(drawn["edges"], sorted(edges.collect()), "{name}");
            assert_eq!(drawn["nodes"], sorted(ids.collect()), "{name}");
            assert_eq!(drawn["faults"], json!([]), "{name}");
        }
    }
    person.has_a_clean_console(&[]);
}
