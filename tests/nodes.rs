//! Nodes that make no model calls (requests, inputs, conditions, templates, outputs), and the paths
//! of runs through them.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, agent, eventually, types};
use crate::upstream::{Upstream, json_answer};

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

/// A flow that requests and returns a long or a short answer, as the input says.
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
            node("is_long", "condition", json!({"expression": "input.words > 50"})),
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
            // The output uses the condition's result, whichever branch ran.
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
fn a_join_waits_only_for_the_chosen_branch() {
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
    // Each run has made one call.
    let rows = server.get("/api/ledger").json();
    assert_eq!(rows["items"].as_array().unwrap().len(), 2);
    assert_eq!(run["input"], json!({"topic": "ants", "words": 10}));
}

#[test]
fn events_cover_nodes_without_calls_but_not_skipped_ones() {
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
fn an_undeclared_input_is_refused_before_the_run() {
    let server = TestServer::start();
    let flow = server.save(&long_or_short());
    let path = format!("/api/flows/{flow}/execute");
    let response = server.post(&path, &json!({"input": {"words": "many"}}));
    assert_eq!(response.status, 422);
    let details = response.json()["error"]["details"].clone();
    let fields: Vec<&str> =
        details.as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["input.topic", "input.words"]);
    assert_eq!(server.get("/api/runs").json()["items"], json!([]));
}

#[test]
fn a_fully_skipped_run_succeeds_with_no_output() {
    let server = TestServer::start();
    let flow = server.save(&flow(
        &[
            node("no", "condition", json!({"expression": "false"})),
            agent("never", "echo", "echo-1", "x"),
            node("out", "output", json!({"template": "{{ nodes.never.output }}"})),
        ],
        &[branch("no", "true", "never"), edge("never", "out")],
    ));
    let run = server.run(flow, &json!({}));
    assert_eq!((&run["status"], &run["output"]), (&json!("COMPLETED"), &Value::Null));
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

/// A flow with one request node that returns its response.
fn request(data: Value) -> Value {
    flow(
        &[
            node("ask", "http", data),
            node("out", "output", json!({"template": "{{ (nodes.ask.output | fromjson).name }}"})),
        ],
        &[edge("ask", "out")],
    )
}

fn that_may_ask_this_machine() -> TestServer {
    TestServer::start_with(|config| config.fetch_rules.private = true)
}

#[test]
fn an_http_node_renders_its_request_and_returns_the_body() {
    let upstream = Upstream::saying(json_answer("200 OK", r#"{"name": "ant"}"#));
    let server = that_may_ask_this_machine();
    let url = format!("{}/{{{{ input.topic }}}}", upstream.url());
    let flow = server.save(&request(json!({
        "method": "POST",
        "url": url,
        "headers": {"x-topic": "{{ input.topic }}"},
        "body": "about {{ input.topic }}"
    })));
    let run = server.run(flow, &json!({"topic": "ants"}));
    assert_eq!((&run["status"], &run["output"]), (&json!("COMPLETED"), &json!("ant")));
    assert_eq!(upstream.requests().recv().unwrap(), "about ants");
    // It is no model call, so it has no ledger row.
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
}

#[test]
fn an_http_node_reaches_loopback_only_if_configured() {
    let upstream = Upstream::saying(json_answer("200 OK", r#"{"name": "secret"}"#));
    let server = TestServer::start();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = upstream.url().replace("127.0.0.1", host);
        let flow = server.save(&request(json!({"url": url})));
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], "FAILED", "{host}");
        let error = run["error"].as_str().unwrap();
        assert!(error.contains("is not a public address"), "{error}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn an_http_node_follows_no_redirect_and_reports_refusals() {
    let answer = json_answer("302 Found", "")
        .replace("connection: close", "location: http://127.0.0.1:1/x\r\nconnection: close");
    let upstream = Upstream::saying(answer);
    let server = that_may_ask_this_machine();
    let flow = server.save(&request(json!({"url": upstream.url()})));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "FAILED");
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("redirects are not followed"), "{error}");
    assert_eq!(upstream.count(), 1);
}

#[test]
fn an_http_node_decodes_a_response_compressed_unasked() {
    let mut gzip = Vec::new();
    let text = br#"{"name": "ant"}"#;
    let mut encoder = flate2::read::GzEncoder::new(&text[..], flate2::Compression::fast());
    encoder.read_to_end(&mut gzip).unwrap();
    for (coding, outcome) in [("gzip", "COMPLETED"), ("br", "FAILED")] {
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\nconnection: close\r\n\r\n");
        let bytes = [head.into_bytes(), gzip.clone()].concat();
        let upstream = Upstream::start(move |_, stream| drop(stream.write_all(&bytes)));
        let server = that_may_ask_this_machine();
        let flow = server.save(&request(json!({"url": upstream.url()})));
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], outcome, "{run:#}");
        assert!(upstream.heads().recv().unwrap().contains("accept-encoding: identity\n"));
        if outcome == "COMPLETED" {
            assert_eq!(run["output"], "ant");
        } else {
            let error = run["error"].as_str().unwrap();
            assert!(error.contains("compressed with br"), "{error}");
        }
    }
}

#[test]
fn an_http_node_retries_transient_failures() {
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start(move |_, stream| {
        let answer = match count.fetch_add(1, Ordering::SeqCst) {
            0 => json_answer("503 Service Unavailable", "busy"),
            _ => json_answer("200 OK", r#"{"name": "ant"}"#),
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = that_may_ask_this_machine();
    let retry = json!({"attempts": 2, "backoffMs": 1});
    let flow = server.save(&request(json!({"url": upstream.url(), "retry": retry})));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["output"], "ant", "{run:#}");
    assert_eq!((&run["nodes"][0]["attempt"], upstream.count()), (&json!(2), 2));
}

#[test]
fn cancel_ends_an_http_node_at_once() {
    let upstream = Upstream::start(|_, _| std::thread::park_timeout(DEADLINE));
    let server = that_may_ask_this_machine();
    let flow = server.save(&request(json!({"url": upstream.url()})));
    let run_id = server.execute(flow, &json!({}));
    eventually("it is asked", || upstream.count() == 1);
    let path = format!("/api/runs/{run_id}");
    let began = Instant::now();
    server.post(&format!("{path}/cancel"), &json!({}));
    eventually("it is over", || server.get(&path).json()["status"] == "CANCELLED");
    assert!(began.elapsed() < DEADLINE / 4);
}
