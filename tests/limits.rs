//! Input that is too deep, too large or cut short is refused, and the server keeps running.

use std::io::Write;
use std::net::Shutdown;

use serde_json::json;

use crate::harness::{TestServer, agent, chain, two_nodes};

#[test]
fn an_endlessly_nested_template_is_refused_safely() {
    let server = TestServer::start();
    for prompt in [
        format!("{{{{ 1{} }}}}", "+1".repeat(10_000)),
        format!("{{{{ input{} }}}}", ".a".repeat(10_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(10_000)),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(10_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000)),
    ] {
        let flow = chain("Deep", &[agent("a", "echo", "echo-1", &prompt)]);
        let response = server.post("/api/flows", &flow);
        assert_eq!(response.status, 422);
        let fault = &response.json()["error"]["details"][0];
        assert_eq!(fault["field"], json!("data.nodes[0].data.prompt"));
    }
    assert_eq!(server.get("/api/health").status, 200);
}

#[test]
fn a_request_with_a_truncated_body_starts_no_run() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    for sent in ["", "{\"input\": {}} "] {
        let mut stream = server.connect();
        write!(
            stream,
            "POST /api/flows/{flow}/execute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000\r\n\r\n{sent}"
        )
        .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The listener closes the connection after the handler has released it.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    // A run accepted in between would be older than this one.
    server.run(flow, &json!({"topic": "ants"}));
    let runs = server.get("/api/runs").json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs:#}");
}

#[test]
fn stalled_large_bodies_leave_room_for_other_requests() {
    let server = TestServer::start();
    let path = "/v1/chat/completions";
    let stalled: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = server.connect();
            let length = 32 << 20;
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let text = "x".repeat(2 << 20);
    let messages = json!([{"role": "user", "content": text}]);
    let response = server.post(path, &json!({"model": "echo/echo-1", "messages": messages}));
    assert_eq!(response.status, 200, "{}", response.text());
    drop(stalled);
}

#[test]
fn a_huge_value_in_a_template_fails_runs_and_estimates_safely() {
    let server = TestServer::start();
    for prompt in [
        "{{ [1] | slice(100000000) | list | length }}",
        "{{ '%100000000d' | format(1) | length }}",
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) | length }}",
        "{{ range(100000) | join('x' * 1000000) | length }}",
        "{{ ([1] * 100000000) | list | length }}",
    ] {
        let flow = server.save(&chain("Huge", &[agent("a", "echo", "echo-1", prompt)]));
        let path = format!("/api/flows/{flow}/estimate");
        assert_eq!(server.post(&path, &json!({})).status, 200, "{prompt}");
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], "FAILED", "{prompt}: {run:#}");
        assert!(run["error"].as_str().unwrap().contains("template"), "{run:#}");
    }
}
