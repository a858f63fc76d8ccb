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
