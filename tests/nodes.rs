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

fn fault_of(server: &TestServer, flow: &Value) -> String {
    let response = server.post("/api/flows", flow);
    assert_eq!(response.status, 422, "{}", response.text());
    response.text()
}

#[test]
fn a_condition_on_a_text_and_a_number_fails_its_run() {
    let server = TestServer::start();
    let flow = server.save(&flow(
        &[
            node("is_long", "condition", json!({"expression": "input.words > 50"})),
            agent("long", "echo", "echo-1", "x"),
        ],
        &[branch("is_long", "true", "long")],
    ));
    let run = server.run(flow, &json!({"words": "20"}));
    assert_eq!(run["status"], "FAILED", "{run:#}");
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("a text with a number") && error.contains("`| int`"), "{error}");
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
    assert_eq!(server.run(flow, &json!({"words": 20}))["status"], "COMPLETED");
}

#[test]
fn unknown_names_in_templates_are_refused_when_saved() {
    let server = TestServer::start();
    for (template, part) in [
        ("{{ input.x | uper }}", "unknown filter `uper`; known: `abs`"),
        ("{{ input.x is emtpy }}", "unknown test `emtpy`"),
        ("{{ nodes.a.ouput }}", "node `a` has no `ouput`"),
        ("{{ rnage(3) }}", "unknown function `rnage`"),
    ] {
        let faulty = flow(
            &[
                agent("a", "echo", "echo-1", "x"),
                node("b", "template", json!({"template": template})),
            ],
            &[edge("a", "b")],
        );
        let text = fault_of(&server, &faulty);
        assert!(text.contains(part) && text.contains("data.nodes[1].data.template"), "{text}");
    }
}

#[test]
fn an_exported_flow_of_react_flow_runs() {
    let server = TestServer::start();
    let output = json!({
        "id": "out", "type": "output", "position": {"x": 12.5, "y": -3}, "selected": true,
        "measured": {"width": 150, "height": 40}, "dragging": false, "width": "auto",
        "data": {"template": "done", "inputs": "none", "headers": ["a"], "prompt": 7}
    });
    let sent = json!({"name": "React", "data": {
        "nodes": [output], "edges": [], "viewport": {"x": 0, "y": 0, "zoom": 1.5}
    }});
    let id = server.save(&sent);
    assert_eq!(server.run(id, &json!({}))["output"], "done");
    let stored = server.get(&format!("/api/flows/{id}")).json();
    assert_eq!(stored["data"], sent["data"]);
}

#[test]
fn values_in_a_url_can_be_encoded() {
    let upstream = Upstream::saying(json_answer("200 OK", r#"{"name": "ant"}"#));
    let server = that_may_ask_this_machine();
    let url = |filter: &str| format!("{}?q={{{{ input.q{filter} }}}}", upstream.url());
    let flow = server.save(&request(json!({"url": url(" | urlencode")})));
    let run = server.run(flow, &json!({"q": "a b&c"}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    let head = upstream.heads().recv().unwrap();
    assert!(head.starts_with("get /v1?q=a%20b%26c http/1.1"), "{head}");
    let flow = server.save(&request(json!({"url": url("")})));
    let run = server.run(flow, &json!({"q": "a b&c"}));
    assert!(run["error"].as_str().unwrap().contains("`| urlencode`"), "{run:#}");
}

#[test]
fn an_http_node_decodes_the_declared_charset() {
    let upstream = Upstream::start(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=ISO-8859-1\r\ncontent-length: 16\r\n\r\n";
        let body = b"{\"name\": \"caf\xe9\"}";
        drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
    });
    let server = that_may_ask_this_machine();
    let flow = server.save(&request(json!({"url": upstream.url()})));
    assert_eq!(server.run(flow, &json!({}))["output"], "café");
}

#[test]
fn byte_order_marks_are_skipped() {
    let server = TestServer::start();
    let output = node("out", "output", json!({"template": "{{ (input.x | fromjson)[0] }}"}));
    let flow = format!("\u{feff}{}", flow(&[output], &[]));
    let saved = server.request("POST", "/api/flows", &[], flow.as_bytes());
    assert_eq!(saved.status, 201, "{}", saved.text());
    let id = saved.json()["id"].as_i64().unwrap();
    let path = format!("/api/flows/{id}/execute?wait=true");
    let body = "\u{feff}{\"input\": {\"x\": \"\u{feff}[7]\"}}";
    let run = server.request("POST", &path, &[], body.as_bytes()).json();
    assert_eq!(run["output"], "7", "{run:#}");
    let run = server.request("POST", &path, &[], "\u{feff}".as_bytes());
    assert_eq!(run.status, 200, "{}", run.text());
    // A delivery of a webhook, too.
    let hook = server.request("PUT", &format!("/api/flows/{id}/hook"), &[], b"").json();
    let secret = hook["secret"].as_str().unwrap().to_owned();
    let slug = hook["slug"].as_str().unwrap();
    let delivered = server.request(
        "POST",
        &format!("/hooks/{slug}"),
        &[("x-flowledger-secret", &secret)],
        "\u{feff}{\"x\": \"[8]\"}".as_bytes(),
    );
    assert_eq!(delivered.status, 202, "{}", delivered.text());
}

#[test]
fn integers_beyond_64_bits_are_refused_in_bodies() {
    let server = TestServer::start();
    let output = node("out", "output", json!({"template": "{{ input.x }}"}));
    let id = server.save(&flow(&[output], &[]));
    let path = format!("/api/flows/{id}/execute?wait=true");
    let send = |x: &str| {
        let body = format!("{{\"input\": {{\"x\": {x}}}}}");
        server.request("POST", &path, &[], body.as_bytes())
    };
    let refused = send("115700000000000000000000000000000000000000");
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("does not fit into 64 bits"), "{}", refused.text());
    assert_eq!(send("18446744073709551615").json()["output"], "18446744073709551615");
}

#[test]
fn nodes_without_calls_do_not_wait_for_calls() {
    let (release, hang) = crossbeam_channel::bounded::<()>(0);
    let upstream = Upstream::start(move |_, _| {
        let _ = hang.recv_timeout(DEADLINE);
    });
    let server = TestServer::start_with(|config| {
        config.fetch_rules.private = true;
        config.engine.calls = 4;
    });
    let hanging = node("ask", "http", json!({"url": upstream.url()}));
    let hanging = server.save(&flow(&[hanging], &[]));
    let waiting: Vec<String> = (0..6).map(|_| server.execute(hanging, &json!({}))).collect();
    eventually("all calls hang", || upstream.count() == 4);
    let free = server.save(&flow(
        &[
            node("is", "condition", json!({"expression": "true"})),
            node("text", "template", json!({"template": "x"})),
            node("out", "output", json!({"template": "{{ nodes.text.output }}"})),
        ],
        &[branch("is", "true", "text"), edge("text", "out")],
    ));
    assert_eq!(server.run(free, &json!({}))["output"], "x");
    for run_id in waiting {
        let cancelled = server.post(&format!("/api/runs/{run_id}/cancel"), &json!({}));
        assert_eq!(cancelled.status, 202, "{}", cancelled.text());
    }
    drop(release);
}

#[test]
fn long_renderings_end_and_do_not_starve_other_runs() {
    let server = TestServer::start();
    let sorting = "{% for i in range(60000) %}{% set x = input.many | sort %}{% endfor %}";
    let slow = server.save(&flow(&[node("slow", "output", json!({"template": sorting}))], &[]));
    let many: Vec<u32> = (0..20_000).rev().collect();
    let runs: Vec<String> = (0..16).map(|_| server.execute(slow, &json!({"many": many}))).collect();
    let quick = server.save(&flow(&[node("out", "output", json!({"template": "x"}))], &[]));
    assert_eq!(server.run(quick, &json!({}))["output"], "x");
    for run_id in &runs {
        // A run that is over already cannot be cancelled.
        server.post(&format!("/api/runs/{run_id}/cancel"), &json!({}));
    }
    for run_id in runs {
        eventually("the rendering ends", || {
            let run = server.get(&format!("/api/runs/{run_id}")).json();
            ["FAILED", "CANCELLED"].contains(&run["status"].as_str().unwrap())
        });
    }
}
