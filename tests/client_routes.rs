//! The paths, keys, encodings and queries with which clients reach the gateway.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use flowledger::secret::Secret;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use crate::clients::{chat, rows, server, server_with};
use crate::harness::{DEADLINE, TestServer};
use crate::upstream::{Upstream, completion, json_answer};

const TOKEN: &str = "the-token";

fn message() -> String {
    let body = json!({
        "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    });
    json_answer("200 OK", &body.to_string())
}

fn message_request() -> Value {
    json!({"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]})
}

fn new_key(server: &TestServer) -> String {
    let admin = [("authorization", "Bearer the-token")];
    let made = server.request("POST", "/api/keys", &admin, br#"{"name":"laptop"}"#);
    made.json()["key"].as_str().unwrap().to_owned()
}

#[test]
fn each_base_path_reaches_the_operation() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server(&upstream);
    let paths = [
        "/v1/chat/completions",
        "/chat/completions",
        "/openai/v1/chat/completions",
        "/openai/chat/completions",
        "/v1/v1/chat/completions",
    ];
    for path in paths {
        let response = server.post(path, &chat("gpt-4o-mini", false));
        assert_eq!(response.status, 200, "{path}: {}", response.text());
    }
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let path = "/openai/deployments/openai%2Fgpt-4o-mini/chat/completions?api-version=2024-10-21";
    let response = server.request("POST", path, &[("api-key", "x")], body.to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    let sent: Vec<String> =
        (0..=paths.len()).map(|_| upstream.requests().recv_timeout(DEADLINE).unwrap()).collect();
    let last: Value = serde_json::from_str(sent.last().unwrap()).unwrap();
    assert_eq!(last, json!({"model": "gpt-4o-mini", "messages": body["messages"]}));
    for row in rows(&server, paths.len() + 1) {
        assert_eq!((&row["provider"], &row["input_tokens"]), (&json!("openai"), &json!(3)));
    }
}

#[test]
fn messages_are_reached_below_each_base_path() {
    let upstream = Upstream::saying(message());
    let server = server(&upstream);
    for path in ["/v1/messages", "/messages", "/anthropic/v1/messages", "/anthropic/messages"] {
        let response = server.post(path, &message_request());
        assert_eq!(response.status, 200, "{path}: {}", response.text());
    }
    rows(&server, 4);
}

#[test]
fn every_usual_header_can_carry_the_key() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server_with(&upstream, |config| config.token = Some(Secret::new(TOKEN)));
    let key = new_key(&server);
    let body = chat("gpt-4o-mini", false).to_string();
    let ask = |path: &str, headers: &[(&str, &str)]| {
        server.request("POST", path, headers, body.as_bytes()).status
    };
    let path = "/v1/chat/completions";
    for header in ["x-api-key", "api-key", "x-goog-api-key", "x-flowledger-key"] {
        assert_eq!(ask(path, &[(header, &key)]), 200, "{header}");
        assert_eq!(ask(path, &[(header, "wrong")]), 401, "{header}");
    }
    assert_eq!(ask(&format!("{path}?key={key}"), &[]), 200);
    assert_eq!(ask(&format!("{path}?key=wrong"), &[]), 401);
    // A login of the client beside the key changes nothing.
    let both = [("x-flowledger-key", &*key), ("authorization", "Bearer sk-of-the-client")];
    assert_eq!(ask(path, &both), 200);
    for _ in 0..6 {
        let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
        assert!(!head.contains(&key) && !head.contains("sk-of-the-client"), "{head}");
    }
}

#[test]
fn a_query_is_passed_on_without_keys() {
    let upstream = Upstream::saying(message());
    let server = server(&upstream);
    server.post("/v1/messages?beta=true&key=secret", &message_request());
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    assert!(head.starts_with("post /v1/messages?beta=true http/1.1"), "{head}");
}

#[test]
fn compressed_requests_are_decoded() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server(&upstream);
    let body = chat("gpt-4o-mini", false).to_string();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(body.as_bytes()).unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(body.as_bytes()).unwrap();
    let zstd = compress_to_vec(body.as_bytes(), CompressionLevel::Fastest);
    let path = "/v1/chat/completions";
    for (coding, bytes) in
        [("gzip", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap()), ("zstd", zstd)]
    {
        let response = server.request("POST", path, &[("content-encoding", coding)], &bytes);
        assert_eq!(response.status, 200, "{coding}: {}", response.text());
        let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&sent).unwrap()["messages"][0]["content"], "Hi");
    }
    let unknown = server.request("POST", path, &[("content-encoding", "br")], body.as_bytes());
    assert_eq!((unknown.status, unknown.error_code()), (415, "unsupported_encoding".into()));
    let damaged = server.request("POST", path, &[("content-encoding", "gzip")], b"\x1f\x8bxxxx");
    assert_eq!((damaged.status, damaged.error_code()), (400, "bad_encoding".into()));
}

#[test]
fn a_compressed_body_cannot_exceed_the_limit() {
    let server = server(&Upstream::saying(completion("Hello", 3, 1)));
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    std::io::copy(&mut std::io::repeat(b' ').take(64 << 20), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 128 << 10, "{}", bomb.len());
    let headers = [("content-encoding", "gzip")];
    let response = server.request("POST", "/v1/chat/completions", &headers, &bomb);
    assert_eq!((response.status, response.error_code()), (413, "body_too_large".into()));
}

#[test]
fn a_wrong_path_names_the_right_one() {
    let server = server(&Upstream::saying(completion("Hello", 3, 1)));
    let response = server.post("/openai/v1/chat/completion", &chat("gpt-4o-mini", false));
    assert_eq!((response.status, response.error_code()), (404, "not_found".into()));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("did you mean /v1/chat/completions?"), "{message}");
    let response = server.post("/anthropic/v1/message", &message_request());
    assert_eq!(response.json()["error"]["type"], "not_found_error");
}
