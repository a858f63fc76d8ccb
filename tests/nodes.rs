//! Nodes that are no calls (inputs, conditions, templates, outputs), and how runs go around them.

use serde_json::{Value, json};

use crate::harness::{TestServer, agent, types};

fn flow(nodes: &[Value], edges: &[Value]) -> Value {
    json!({"name": "Nodes", "data": {"nodes": nodes, "edges": edges}})
}

fn edge(source: &str, target: &str) -> Value {
    json!({"source": source, "target": target})
}

fn branch(source: &str, outcome: &str, target: &str) -> Value {
    json!({"source": source, "sourceHandle": outcome, "target": target})
}

fn node(id: &str, kind: &str, data: Value) -> Value {
    json!({"id": id, "type": kind, "data": data})
}

/// Asks for a long or a short answer, whichever the input wants, and returns it.
fn long_or_short() -> Value {
    flow(
        &[
            node(
                "in",
                "input",
                json!({"inputs": [
                    {"name": "topic"},
                    {"name": "words", "type": "number", "default": 100}
                ]}),
            ),
            node(
                "is_long",
                "condition",
                json!({"expression": "input.words > 50"}),
            ),
            agent("long", "echo", "echo-1", "Much about {{ input.topic }}"),
            agent("short", "echo", "echo-1", "Little about {{ input.topic }}"),
            node(
                "join",
                "template",
                json!({"template": "<{{ nodes.long.output }}|{{ nodes.short.output }}>"}),
            ),
            node(
                "out",
                "output",
                json!({"template": "{{ nodes.join.output }} in {{ nodes['in'].output.words }}{% if nodes.is_long.output %}!{% endif %}"}),
            ),
        ],
        &[
            edge("in", "is_long"),
            branch("is_long", "true", "long"),
            branch("is_long", "false", "short"),
            edge("long", "join"),
            edge("short", "join"),
            edge("join", "out"),
            edge("is_long", "out"),
        ]
        .map(|mut edge| {
            // The output looks at the condition, whichever way it went.
            if edge["source"] == "is_long" && edge["target"] == "out" {
                edge["sourceHandle"] = json!("true");
            }
            edge
        }),
    )
}

fn status_of<'a>(run: &'a Value, id: &str) -> &'a Value {
    let nodes = run["nodes"].as_array().unwrap();
    &nodes.iter().find(|node| node["nodeId"] == id).unwrap()["status"]
}

#[test]
fn a_condition_decides_which_branch_runs_and_a_join_waits_for_that_one_only() {
    let server = TestServer::start();
    let flow = server.save(&long_or_short());
    let run = server.run(flow, &json!({"topic": "ants"}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(run["output"], "<[echo of echo-1] Much about ants|> in 100!");
    assert_eq!(status_of(&run, "long"), "COMPLETED");
    assert_eq!(status_of(&run, "short"), "SKIPPED");
    let run = server.run(flow, &json!({"topic": "ants", "words": 10}));
    assert_eq!(run["output"], "<|[echo of echo-1] Little about ants> in 10");
    assert_eq!(status_of(&run, "long"), "SKIPPED");
    // Each run has bought one call.
    let rows = server.get("/api/ledger").json();
    assert_eq!(rows["items"].as_array().unwrap().len(), 2);
    assert_eq!(run["input"], json!({"topic": "ants", "words": 10}));
}

#[test]
fn viewers_are_told_of_free_nodes_as_of_others_and_of_skipped_ones_nothing() {
    let server = TestServer::start();
    let flow = server.save(&long_or_short());
    let mut client = server.client();
    server.execute(flow, &json!({"topic": "ants"}));
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    let of = |id: &str| -> Vec<Value> {
        let of_node = |message: &&Value| message["payload"]["nodeId"] == id;
        seen.iter().filter(of_node).cloned().collect()
    };
    let free = ["NODE_STARTED", "NODE_COMPLETED", "FLOW_STATUS"];
    for id in ["in", "is_long", "join", "out"] {
        assert_eq!(types(&of(id)), free, "{id}");
        assert_eq!(of(id)[1]["payload"]["cost"], json!(0), "{id}");
    }
    assert_eq!(of("short"), [] as [Value; 0]);
}

#[test]
fn an_input_that_the_flow_does_not_take_is_refused_before_anything_runs() {
    let server = TestServer::start();
    let flow = server.save(&long_or_short());
    let path = format!("/api/flows/{flow}/execute");
    let response = server.post(&path, &json!({"input": {"words": "many"}}));
    assert_eq!(response.status, 422);
    let details = response.json()["error"]["details"].clone();
    let fields: Vec<&str> = details
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["input.topic", "input.words"]);
    assert_eq!(server.get("/api/runs").json()["items"], json!([]));
}

#[test]
fn a_run_of_which_everything_is_skipped_ends_well_and_returns_nothing() {
    let server = TestServer::start();
    let flow = server.save(&flow(
        &[
            node("no", "condition", json!({"expression": "false"})),
            agent("never", "echo", "echo-1", "x"),
            node(
                "out",
                "output",
                json!({"template": "{{ nodes.never.output }}"}),
            ),
        ],
        &[branch("no", "true", "never"), edge("never", "out")],
    ));
    let run = server.run(flow, &json!({}));
    assert_eq!(
        (&run["status"], &run["output"]),
        (&json!("COMPLETED"), &Value::Null)
    );
    assert_eq!(status_of(&run, "out"), "SKIPPED");
    assert_eq!(run["cost"], json!(0));
}

#[test]
fn several_outputs_are_returned_by_their_ids() {
    let server = TestServer::start();
    let output = |id: &str| node(id, "output", json!({"template": format!("it is {id}")}));
    let flow = server.save(&flow(&[output("a"), output("b")], &[]));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["output"], json!({"a": "it is a", "b": "it is b"}));
}
