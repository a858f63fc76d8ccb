//! Programs that speak OpenAI's or Anthropic's protocol to flowledger: forwarding, accounting and
//! authentication.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use flowledger::config::Config;
use flowledger::gateway::{ClientPolicy, Target};
use flowledger::providers::{Kind, Rate};
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::client_streams::open_ended;
use crate::harness::{DEADLINE, Response, TestServer, add_provider, eventually, two_nodes};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A server whose providers `openai` and `anthropic` are the upstream.
pub fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, &url);
        change(config);
    })
}

pub fn server(upstream: &Upstream) -> TestServer {
    server_with(upstream, |_| {})
}

pub fn chat(model: &str, is_streamed: bool) -> Value {
    json!({"model": model, "stream": is_streamed, "messages": [{"role": "user", "content": "Hi"}]})
}

/// Returns all rows, oldest first, once there are `count` and none is pending.
pub fn rows(server: &TestServer, count: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    eventually("the ledger has its rows", || {
        rows = server.get("/api/ledger").json()["items"].as_array().unwrap().clone();
        rows.reverse();
        rows.len() == count && rows.iter().all(|row| row["status"] != "PENDING")
    });
    rows
}

/// A connection that is read in steps.
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    pub fn with(server: &TestServer) -> Self {
        Self { reader: BufReader::new(server.connect()) }
    }

    pub fn ask(&mut self, path: &str, body: &str) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.reader.get_mut();
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Reads the head of a response.
    pub fn head(&mut self) -> Vec<String> {
        let lines = std::iter::from_fn(|| Some(self.line()));
        lines.take_while(|line| !line.is_empty()).collect()
    }

    /// Reads the next chunk; empty at the end.
    pub fn chunk(&mut self) -> String {
        let size = usize::from_str_radix(&self.line(), 16).unwrap();
        let mut bytes = vec![0; size + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes[..size].to_vec()).unwrap()
    }

    pub fn chunks(&mut self) -> String {
        let chunks = std::iter::from_fn(|| Some(self.chunk()));
        chunks.take_while(|chunk| !chunk.is_empty()).collect()
    }

    fn body(&mut self, head: &[String]) -> String {
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut bytes = vec![0; length.parse().unwrap()];
        self.reader.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

#[test]
fn requests_and_responses_change_only_in_the_model() {
    let answer = "{\"id\":\"x\", \"model\":\"gpt-4o-mini-2024-07-18\",\"new_field\":1.00,\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]},\"finish_reason\":\"tool_calls\"}],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":100}}";
    let upstream = Upstream::saying(json_answer("200 OK", answer));
    let server = server(&upstream);
    let body = "{ \"temperature\":0.70, \"big\":12345678901234567890123, \"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"model\":\"openai/x\"}}}],\n\"model\": \"openai\\/gpt-4o-mini\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png;base64,AAAA\"}}]}] ,\"unknown\":{\"z\":1,\"a\":[]}}";
    let headers = [
        ("x-flowledger-role", "planner"),
        ("x-flowledger-tags", "team=a, beta"),
        ("x-flowledger-flow", "1"),
        ("openai-beta", "x=1"),
        ("authorization", "Bearer sk-of-the-client"),
    ];
    let response = server.request("POST", CHAT, &headers, body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.text(), answer);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert_eq!(sent, body.replace("\"openai\\/gpt-4o-mini\"", "\"gpt-4o-mini\""));
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    assert!(head.contains("post /v1/chat/completions"), "{head}");
    assert!(head.contains("authorization: bearer test-key\n"), "{head}");
    assert!(head.contains("openai-beta: x=1\n"), "{head}");
    assert!(!head.contains("x-flowledger"), "{head}");
    let row = &rows(&server, 1)[0];
    for (name, expected) in [
        ("status", json!("SUCCESS")),
        ("provider", json!("openai")),
        ("model_used", json!("gpt-4o-mini-2024-07-18")),
        ("attempt", json!(1)),
        ("flow_id", json!(1)),
        ("run_id", Value::Null),
        ("node_id", Value::Null),
        ("agent_role", json!("planner")),
        ("tags", json!("team=a,beta")),
        ("input_tokens", json!(1000)),
        ("output_tokens", json!(100)),
        ("total_cost_usd", json!(0.00021)),
    ] {
        assert_eq!(row[name], expected, "{name}: {row}");
    }
    assert_eq!(row["prompt_hash"].as_str().unwrap().len(), 64);
}

#[test]
fn calls_are_filtered_and_summed_by_client_tags() {
    let upstream = Upstream::saying(completion("well", 1_000, 100));
    let server = server(&upstream);
    for tags in ["team=a,beta", "team=a", "team=ab"] {
        let headers = [("x-flowledger-tags", tags)];
        let body = chat("openai/gpt-4o-mini", false).to_string();
        let response = server.request("POST", CHAT, &headers, body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(server.post(CHAT, &chat("echo/echo-1", false)).status, 200);
    rows(&server, 4);
    let sums = server.get("/api/ledger/summary?group_by=tag").json();
    let calls = |group: &Value| (group["key"].as_str().map(str::to_owned), group["calls"].clone());
    let groups: Vec<_> = sums["items"].as_array().unwrap().iter().map(calls).collect();
    let of = |tag: &str, calls: u64| (Some(tag.to_owned()), json!(calls));
    assert_eq!(groups, [of("team=a", 2), of("beta", 1), of("team=ab", 1), (None, json!(1))]);
    assert_eq!(sums["total"]["calls"], 4);
    assert_eq!(sums["total"]["total_cost_usd"], 0.00063);
    let tagged = server.get("/api/ledger?tag=team%3Da").json();
    assert_eq!(tagged["items"].as_array().unwrap().len(), 2, "{tagged}");
    let of_key = server.get("/api/ledger/summary?key=nobody&group_by=key").json();
    assert_eq!(of_key["total"]["calls"], 0);
}

#[test]
fn a_message_is_forwarded_with_its_protocol_headers() {
    let answer = r#"{"id":"m","type":"message","model":"claude-haiku-4-5","content":[{"type":"tool_use","id":"t","name":"f","input":{}}],"stop_reason":"tool_use","usage":{"input_tokens":10,"cache_read_input_tokens":90,"output_tokens":5}}"#;
    let upstream = Upstream::saying(json_answer("200 OK", answer));
    let server = server(&upstream);
    let body = r#"{"model":"claude-haiku-4-5","max_tokens":10,"system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"Hi"}]}"#;
    let headers = [("anthropic-beta", "a"), ("anthropic-version", "2024-01-01")];
    let response = server.request("POST", MESSAGES, &headers, body.as_bytes());
    assert_eq!(response.text(), answer);
    assert_eq!(upstream.requests().recv_timeout(DEADLINE).unwrap(), body);
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    for line in ["x-api-key: test-key\n", "anthropic-beta: a\n", "anthropic-version: 2024-01-01\n"]
    {
        assert_eq!(head.matches(line).count(), 1, "{head}");
    }
    let row = &rows(&server, 1)[0];
    assert_eq!(row["provider"], "anthropic");
    assert_eq!(row["input_tokens"], 100);
    assert_eq!(row["cached_input_tokens"], 90);
}

#[test]
fn a_stream_is_forwarded_live_with_usage_on_request() {
    let (go, wait) = bounded::<()>(0);
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |_, stream| {
        stream.write_all(STREAM_HEAD.as_bytes()).unwrap();
        stream.write_all(delta("Hel").as_bytes()).unwrap();
        // Each chunk is written after the client has seen the previous one.
        wait.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        stream.write_all(delta("lo").as_bytes()).unwrap();
        let last = json!({"model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}});
        // Split in two, as networks do.
        let last = format!("data: {last}\n\ndata: [DONE]\n\n");
        let (one, two) = last.split_at(40);
        stream.write_all(one.as_bytes()).unwrap();
        wait.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        stream.write_all(two.as_bytes()).unwrap();
    });
    let server = server(&upstream);
    let mut conversation = Conversation::with(&server);
    for asks in [false, true] {
        let mut body = chat("gpt-4o-mini", true);
        if asks {
            body["stream_options"] = json!({"include_usage": true});
        }
        // On one connection, which SDKs reuse.
        conversation.ask(CHAT, &body.to_string());
        let head = conversation.head();
        assert_eq!(head[0], "HTTP/1.1 200 OK");
        assert!(head.contains(&"content-type: text/event-stream".to_owned()), "{head:?}");
        assert_eq!(conversation.chunk(), delta("Hel"));
        go.send_timeout((), DEADLINE).unwrap();
        assert_eq!(conversation.chunk(), delta("lo"));
        // An incomplete event is not forwarded.
        go.send_timeout((), DEADLINE).unwrap();
        let rest = conversation.chunks();
        assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
        assert_eq!(rest.contains("usage"), asks, "{rest}");
        let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
        let sent: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["stream_options"]["include_usage"], true);
    }
    for row in rows(&server, 2) {
        assert_eq!(row["status"], "SUCCESS");
        assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(7), &json!(2)));
        assert!(row["first_token_ms"].is_u64(), "{row}");
    }
}

#[test]
fn a_connection_serves_consecutive_requests() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server(&upstream);
    let mut conversation = Conversation::with(&server);
    for _ in 0..2 {
        conversation.ask(CHAT, &chat("gpt-4o-mini", false).to_string());
        let head = conversation.head();
        assert_eq!(head[0], "HTTP/1.1 200 OK");
        assert!(conversation.body(&head).contains("Hello"));
        // The error comes after the whole body was read, so the rest of it is not taken for a new
        // request.
        conversation.ask(CHAT, "{");
        let head = conversation.head();
        assert_eq!(head[0], "HTTP/1.1 400 Bad Request");
        assert!(conversation.body(&head).contains("invalid_json"));
        conversation.ask("/v1/nothing", "{}");
        let head = conversation.head();
        assert_eq!(head[0], "HTTP/1.1 404 Not Found");
        conversation.body(&head);
    }
    assert_eq!(rows(&server, 2).len(), 2);
}

fn target(provider: &str, model: &str) -> Target {
    Target { provider: provider.into(), model: model.into() }
}

#[test]
fn an_alias_tries_its_models_in_order_with_a_row_each() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("\"bad\"") {
            json_answer("503 Busy", r#"{"error":{"message":"overloaded"}}"#)
        } else {
            completion("Hello", 3, 1)
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        add_provider(config, "gone", Kind::OpenAi, "http://127.0.0.1:9/v1");
        add_provider(config, "keyless", Kind::OpenAi, "http://127.0.0.1:9/v1");
        let keyless = config.providers.get_mut("keyless").unwrap();
        keyless.api_key = None;
        keyless.missing_key_hint = Some("set KEY".into());
        let fast = [
            ("keyless", "k"),
            ("openai", "bad"),
            ("gone", "g"),
            ("openai", "gpt-4o-mini"),
            ("openai", "never"),
        ];
        let fast = fast.map(|(provider, model)| target(provider, model));
        config.gateway.aliases.insert("fast".into(), fast.into());
        let all_bad = vec![target("gone", "g"), target("openai", "bad")];
        config.gateway.aliases.insert("bad".into(), all_bad);
    });
    let mut viewer = server.client();
    let response = server.post(CHAT, &chat("fast", false));
    assert_eq!(response.status, 200, "{}", response.text());
    let expected = [("openai", "FAILED"), ("gone", "FAILED"), ("openai", "SUCCESS")];
    let all = rows(&server, 3);
    for (at, (row, (provider, status))) in all.iter().zip(expected).enumerate() {
        assert_eq!(
            (row["provider"].as_str(), row["status"].as_str()),
            (Some(provider), Some(status))
        );
        assert_eq!(row["attempt"], at + 1);
        assert_eq!(row["operation_id"], all[0]["operation_id"]);
    }
    assert_eq!(upstream.count(), 2);
    let seen = viewer.until(|message| message["payload"]["entry"]["status"] == "SUCCESS");
    let statuses: Vec<_> = seen
        .iter()
        .map(|message| message["payload"]["entry"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["PENDING", "FAILED", "PENDING", "FAILED", "PENDING", "SUCCESS"]);
    // The client gets the error of the last model.
    let response = server.post(CHAT, &chat("bad", true));
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["error"]["message"], "overloaded");
}

#[test]
fn a_provider_error_is_forwarded_without_the_key() {
    let body = r#"{"error":{"message":"bad key test-key","type":"t","code":"c","more":[1]}}"#;
    let answer = json_answer("429 Slow", body).replacen(
        "content-type",
        "retry-after: 7\r\nx-request-id: r1\r\nset-cookie: a=b\r\ncontent-type",
        1,
    );
    let upstream = Upstream::saying(answer);
    let server = server(&upstream);
    for (path, is_streamed) in [(CHAT, false), (CHAT, true), (MESSAGES, true)] {
        let response = server.post(path, &chat("m", is_streamed));
        assert_eq!(response.status, 429);
        assert_eq!(response.text(), body.replace("test-key", "***"));
        assert_eq!(response.header("retry-after"), Some("7"));
        assert_eq!(response.header("x-request-id"), Some("r1"));
        assert_eq!(response.header("set-cookie"), None);
    }
    for row in rows(&server, 3) {
        assert_eq!((&row["status"], &row["total_cost_usd"]), (&json!("FAILED"), &json!(0)));
        assert!(!row["error_message"].as_str().unwrap().contains("test-key"));
    }
}

#[test]
fn gateway_errors_have_the_format_of_the_protocol() {
    let upstream = Upstream::saying(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html><title>Login</title></html>",
    );
    let server = server_with(&upstream, |config| {
        config.providers.remove("anthropic");
        add_provider(config, "gone", Kind::OpenAi, "http://127.0.0.1:9/v1");
        add_provider(config, "claude", Kind::Anthropic, "http://127.0.0.1:9");
    });
    let openai = |body: &str, headers: &[(&str, &str)]| {
        let response = server.request("POST", CHAT, headers, body.as_bytes());
        let error = &response.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        (response.status, error["code"].as_str().unwrap().to_owned())
    };
    let m = |model: &str| chat(model, true).to_string();
    for (body, expected) in [
        (m("gpt"), (502, "provider_bad_answer")),
        (m("gone/x"), (502, "provider_unreachable")),
        (m("claude/x"), (502, "provider_unreachable")),
        ("{".into(), (400, "invalid_json")),
        ("{\"model\":7}".into(), (400, "bad_model")),
    ] {
        let (status, code) = openai(&body, &[]);
        assert_eq!((status, &*code), expected, "{body}");
    }
    let flow = [("x-flowledger-flow", "99")];
    assert_eq!(openai(&m("gpt"), &flow), (400, "no_such_flow".into()));
    let tags = [("x-flowledger-tags", "a b")];
    assert_eq!(openai(&m("gpt"), &tags), (400, "bad_tags".into()));
    for (path, status, kind) in
        [(MESSAGES, 400, "invalid_request_error"), ("/v1/messages/nothing", 404, "not_found_error")]
    {
        let response = server.post(path, &chat("m", false));
        assert_eq!(response.status, status);
        assert_eq!(response.json()["type"], "error");
        assert_eq!(response.json()["error"]["type"], kind);
    }
    assert_eq!(server.get(CHAT).status, 405);
    let metrics = server.get("/metrics").text();
    let line = "flowledger_gateway_requests_total{protocol=\"anthropic\",status=\"404\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn oversized_and_malformed_bodies_are_refused() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server(&upstream);
    // Larger than other routes allow, for example because of an image.
    let image = "A".repeat(6 << 20);
    let mut body = chat("gpt-4o-mini", false);
    body["image"] = json!(image);
    let response = server.post(CHAT, &body);
    assert_eq!(response.status, 200);
    assert_eq!(upstream.requests().recv_timeout(DEADLINE).unwrap(), body.to_string());
    // Chunked.
    let text = chat("gpt-4o-mini", false).to_string();
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
        text.len()
    );
    assert_eq!(server.raw(chunked.as_bytes()).status, 200);
    let too_large =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 33554433\r\n\r\n");
    let response = server.raw(too_large.as_bytes());
    assert_eq!(response.status, 413);
    assert_eq!(response.json()["error"]["code"], "body_too_large");
    let deep = format!(
        "{{\"model\":\"gpt-4o-mini\",\"messages\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(server.request("POST", CHAT, &[], deep.as_bytes()).status, 200);
    for body in ["", "null", "[]", "{\"model\":\"a\",\"model\":\"b\"}", "{\"model\":\"\\ud800\"}"] {
        assert_eq!(server.request("POST", CHAT, &[], body.as_bytes()).status, 400, "{body}");
    }
    let host = format!("POST {CHAT} HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(server.raw(host.as_bytes()).status, 421);
    let origin = [("origin", "https://evil.example")];
    assert_eq!(server.request("POST", CHAT, &origin, b"{}").status, 403);
    assert_eq!(rows(&server, 3).len(), 3);
}

#[test]
fn a_deeply_nested_response_is_harmless() {
    let nested = format!("{}{}", "[".repeat(120), "]".repeat(120));
    let body = format!(r#"{{"x":{nested},"choices":[{{"message":{{"content":"a"}}}}]}}"#);
    let upstream = Upstream::saying(json_answer("200 OK", &body));
    assert_eq!(server(&upstream).post(CHAT, &chat("m", false)).text(), body);
    let body = format!(r#"{{"x":{}}}"#, "[".repeat(500_000));
    let upstream = Upstream::saying(json_answer("200 OK", &body));
    assert_eq!(server(&upstream).post(CHAT, &chat("m", false)).status, 502);
}

fn make_key(server: &TestServer, body: &Value) -> Response {
    let admin = [("authorization", "Bearer the-token")];
    server.request("POST", "/api/keys", &admin, body.to_string().as_bytes())
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

#[test]
fn a_virtual_key_opens_only_the_gateway_and_labels_its_calls() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let mut server = server_with(&upstream, |config| config.token = Some(Secret::new("the-token")));
    let made = make_key(&server, &json!({"name": "team a"}));
    assert_eq!(made.status, 201, "{}", made.text());
    let (id, key) = (made.json()["id"].clone(), made.json()["key"].as_str().unwrap().to_owned());
    assert!(key.starts_with("fl-") && key.len() == 67, "{key}");
    let body = chat("gpt-4o-mini", false).to_string();
    let ask = |server: &TestServer, field: &str, value: &str| {
        server.request("POST", CHAT, &[(field, value)], body.as_bytes()).status
    };
    for _ in 0..2 {
        assert_eq!(ask(&server, "authorization", &bearer(&key)), 200);
        assert_eq!(ask(&server, "x-api-key", &key), 200);
        assert_eq!(ask(&server, "authorization", "Bearer the-token"), 200);
        for wrong in ["Bearer fl-0", "Bearer sk-x", "Basic the-token", "x"] {
            assert_eq!(ask(&server, "authorization", wrong), 401, "{wrong}");
        }
        let refused = server.request("POST", MESSAGES, &[("x-api-key", "no")], b"{}");
        assert_eq!(refused.json()["error"]["type"], "authentication_error");
        assert_eq!(server.get("/v1/models").status, 401);
        for path in ["/api/ledger", "/api/keys", "/metrics", "/v1x"] {
            let headers = [("authorization", &*bearer(&key))];
            assert_eq!(server.request("GET", path, &headers, b"").status, 401, "{path}");
        }
        // The key survives a restart.
        server.start_again();
    }
    let names: Vec<Value> = {
        let admin = [("authorization", "Bearer the-token")];
        eventually("six rows", || {
            let ledger = server.request("GET", "/api/ledger?status=SUCCESS", &admin, b"");
            ledger.json()["items"].as_array().unwrap().len() == 6
        });
        let ledger = server.request("GET", "/api/ledger", &admin, b"").json();
        let rows = ledger["items"].as_array().unwrap().clone();
        rows.iter().map(|row| row["key_name"].clone()).collect()
    };
    assert_eq!(names.iter().filter(|name| **name == "team a").count(), 4);
    assert_eq!(names.iter().filter(|name| name.is_null()).count(), 2);
    let admin = [("authorization", "Bearer the-token")];
    let list = server.request("GET", "/api/keys", &admin, b"").json();
    assert!(list["items"][0]["lastUsedAt"].is_string(), "{list}");
    assert!(list["items"][0]["key"].is_null(), "{list}");
    let deleted = server.request("DELETE", &format!("/api/keys/{id}"), &admin, b"");
    assert_eq!(deleted.status, 204);
    assert_eq!(ask(&server, "authorization", &bearer(&key)), 401);
    // No file contains the key.
    server.stop();
    for file in std::fs::read_dir(server.data()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
        assert!(!bytes.windows(key.len()).any(|part| part == key.as_bytes()));
    }
}

#[test]
fn a_virtual_key_names_only_flows_that_it_was_created_for() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let mut server = server_with(&upstream, |config| config.token = Some(Secret::new("the-token")));
    let admin = [("authorization", "Bearer the-token")];
    let save = |server: &TestServer| {
        let made = server.request("POST", "/api/flows", &admin, two_nodes().to_string().as_bytes());
        made.json()["id"].as_i64().unwrap()
    };
    let (one, other) = (save(&server), save(&server));
    let missing = other + 1;
    let body = chat("gpt-4o-mini", false).to_string();
    let ask = |server: &TestServer, key: &str, flow: i64| {
        let fields = [("authorization", key), ("x-flowledger-flow", &*flow.to_string())];
        server.request("POST", CHAT, &fields, body.as_bytes())
    };
    let key_for = |flows: Value| {
        let made = make_key(&server, &json!({"name": format!("for {flows}"), "flows": flows}));
        assert_eq!((made.status, &made.json()["flows"]), (201, &flows), "{}", made.text());
        bearer(made.json()["key"].as_str().unwrap())
    };
    let (none, allowed) = (key_for(json!([])), key_for(json!([one])));
    for _ in 0..2 {
        assert_eq!(ask(&server, &allowed, one).status, 200);
        assert_eq!(ask(&server, "Bearer the-token", other).status, 200);
        assert_eq!(ask(&server, "Bearer the-token", missing).error_code(), "no_such_flow");
        for (key, flow) in
            [(&none, one), (&none, missing), (&allowed, other), (&allowed, missing), (&allowed, -1)]
        {
            let refused = ask(&server, key, flow);
            assert_eq!((refused.status, refused.error_code()), (403, "flow_not_allowed".into()));
            let text = refused.text().replace(&flow.to_string(), "N");
            let of_missing = ask(&server, &none, missing).text();
            assert_eq!(text, of_missing.replace(&missing.to_string(), "N"));
        }
        server.start_again();
    }
    for flows in [json!([missing]), json!(["1"]), json!(1), json!(vec![one; 1_001])] {
        let refused = make_key(&server, &json!({"name": "x", "flows": flows}));
        assert_eq!(refused.status, 422, "{flows}");
    }
    let rows = server.request("GET", &format!("/api/ledger?flow_id={one}"), &admin, b"").json();
    assert_eq!(rows["items"].as_array().unwrap().len(), 2, "{rows}");
}

#[test]
fn keys_have_unique_names_and_may_expire() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server_with(&upstream, |config| config.token = Some(Secret::new("the-token")));
    let soon = flowledger::time::Timestamp(flowledger::time::Timestamp::now().0 + 1_500);
    let made = make_key(&server, &json!({"name": "a", "expiresAt": soon}));
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(make_key(&server, &json!({"name": "a"})).status, 409);
    for body in [
        json!({"name": ""}),
        json!({"name": "x".repeat(101)}),
        json!({"name": "b", "expiresAt": "2020-01-01"}),
        json!({"name": "b", "more": 1}),
    ] {
        assert_eq!(make_key(&server, &body).status, 422, "{body}");
    }
    let key = bearer(made.json()["key"].as_str().unwrap());
    let status = || {
        let headers = [("authorization", &*key)];
        server.request("GET", "/v1/models", &headers, b"").status
    };
    assert_eq!(status(), 200);
    eventually("the key expires", || status() == 401);
}

#[test]
fn a_key_and_its_budget_are_created_atomically() {
    // 10 tokens each; 16 are reserved for the answer and some for the prompt.
    let upstream = Upstream::saying(completion("Hello", 9, 1));
    let server = server(&upstream);
    let make = |body: Value| server.post("/api/keys", &body);
    let made = make(json!({"name": "laptop", "budget": {"per": "day", "limitTokens": 1_000}}));
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["budgets"], json!(["laptop"]));
    let budgets = || server.get("/api/budget").json()["budgets"].clone();
    let first = budgets()[0].clone();
    assert_eq!(
        (&first["name"], &first["key"], &first["hard"]),
        (&json!("laptop"), &json!("laptop"), &json!(true))
    );
    // The budget covers the calls of this key only.
    let key = bearer(made.json()["key"].as_str().unwrap());
    let other = make(json!({"name": "other"})).json();
    let other = bearer(other["key"].as_str().unwrap());
    let mut body = chat("gpt-4o-mini", false);
    let mut ask = |key: &str, max_tokens: u32| {
        body["max_tokens"] = json!(max_tokens);
        let headers = [("authorization", key)];
        let body = body.to_string();
        server.request("POST", CHAT, &headers, body.as_bytes()).status
    };
    assert_eq!(ask(&key, 16), 200);
    assert_eq!((ask(&key, 1_000), ask(&other, 1_000)), (402, 200));
    eventually("its call is counted", || budgets()[0]["state"]["used"] == json!(10));

    // If either is invalid, neither is created.
    let limit = json!({"per": "month", "limitUsd": "1"});
    for (status, body) in [
        (409, json!({"name": "laptop", "budget": limit})),
        (409, json!({"name": "new", "budget": {"name": "laptop", "per": "day", "limitUsd": 1}})),
        (422, json!({"name": "new", "budget": {"per": "day", "limitUsd": "much"}})),
        (422, json!({"name": "new", "budget": {"key": "other", "per": "day", "limitUsd": 1}})),
        (422, json!({"name": "new", "budget": 7})),
        (422, json!({"name": "", "budget": limit})),
    ] {
        let refused = make(body.clone());
        assert_eq!(refused.status, status, "{body}: {}", refused.text());
    }
    let faults = make(json!({"name": "", "expiresAt": "2020-01-01", "budget": {"per": "year"}}));
    let fields: Vec<Value> = faults.json()["error"]["details"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["field"].clone())
        .collect();
    assert_eq!(fields, ["name", "expiresAt", "budget.per"]);
    assert_eq!(budgets().as_array().unwrap().len(), 1);
    let keys = server.get("/api/keys").json();
    let listed: Vec<(&Value, &Value)> = keys["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (&key["name"], &key["budgets"]))
        .collect();
    assert_eq!(listed, [(&json!("other"), &json!([])), (&json!("laptop"), &json!(["laptop"]))]);
    // Earlier use still counts after a second budget was added.
    let second = make(
        json!({"name": "b", "budget": {"name": "of b", "per": "month", "limitUsd": "2", "hard": false}}),
    );
    assert_eq!(second.status, 201, "{}", second.text());
    assert_eq!((ask(&key, 1_000), ask(&key, 16)), (402, 200));
    assert_eq!(budgets()[1]["name"], "of b");
}

#[test]
fn removing_a_key_keeps_or_removes_its_budgets() {
    let server = TestServer::start();
    let ids = ["stays", "goes"].map(|name| {
        let budget = json!({"per": "day", "limitTokens": 1});
        let made = server.post("/api/keys", &json!({"name": name, "budget": budget}));
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["id"].clone()
    });
    let remove = |id: &Value, query: &str| {
        let path = format!("/api/keys/{id}{query}");
        server.request("DELETE", &path, &[], b"").status
    };
    assert_eq!(remove(&ids[0], "?budgets=true"), 422);
    assert_eq!(remove(&json!(99), "?with_budgets=true"), 404);
    assert_eq!(remove(&ids[0], ""), 204);
    assert_eq!(remove(&ids[1], "?with_budgets=true"), 204);
    assert_eq!(server.get("/api/keys").json()["items"], json!([]));
    let budgets = server.get("/api/budget").json();
    assert_eq!(budgets["budgets"].as_array().unwrap().len(), 1);
    assert_eq!(budgets["budgets"][0]["name"], "stays");
    // A new key with the old name gets the remaining budget of that name.
    server.post("/api/keys", &json!({"name": "stays"}));
    let keys = server.get("/api/keys").json();
    assert_eq!(keys["items"][0]["budgets"], json!(["stays"]));
}

#[test]
fn a_client_key_is_ignored_unless_forwarding_is_enabled() {
    let upstream = Upstream::start(|_, stream| {
        let body = r#"{"error":{"message":"no sk-mine"}}"#;
        let _ = stream.write_all(json_answer("401 No", body).as_bytes());
    });
    let server = server_with(&upstream, |config| {
        let through = ClientPolicy { pass_through_key: true, ..ClientPolicy::default() };
        config.gateway.policies.insert("anthropic".into(), through);
        config.providers.get_mut("anthropic").unwrap().api_key = None;
        config.providers.get_mut("anthropic").unwrap().missing_key_hint = Some("set KEY".into());
    });
    let headers = [("x-api-key", "sk-mine")];
    let sent = |path: &str, headers: &[(&str, &str)]| {
        let body = chat("m", false).to_string();
        let response = server.request("POST", path, headers, body.as_bytes());
        (response, upstream.heads().recv_timeout(DEADLINE).unwrap())
    };
    let (_, head) = sent(CHAT, &headers);
    assert!(head.contains("bearer test-key") && !head.contains("sk-mine"), "{head}");
    let (response, head) = sent(MESSAGES, &headers);
    assert!(head.contains("x-api-key: sk-mine\n"), "{head}");
    assert!(response.text().contains("no ***"), "{}", response.text());
    let (_, head) = sent(MESSAGES, &[("authorization", "Bearer sk-mine")]);
    assert!(head.contains("authorization: bearer sk-mine\n"), "{head}");
    for row in rows(&server, 3).iter().skip(1) {
        assert!(!row.to_string().contains("sk-mine"), "{row}");
    }
    // Without a client key, the error is about the key of the server.
    assert_eq!(server.post(MESSAGES, &chat("m", false)).status, 400);
}

/// Streams until the client leaves or the test ends it. Also returns the number of chunks written.
fn endless(end: crossbeam_channel::Receiver<()>) -> (Upstream, Arc<AtomicUsize>) {
    let end = Mutex::new(end);
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        let first = json!({"model": "gpt-4o-mini", "choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}});
        let _ = stream.write_all(format!("data: {first}\n\n").as_bytes());
        let is_open = || {
            let waited = end.lock().unwrap().recv_timeout(Duration::from_millis(5));
            matches!(waited, Err(RecvTimeoutError::Timeout))
        };
        while is_open() {
            count.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(delta("more").as_bytes()).is_err() {
                return;
            }
        }
        let last = json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}});
        let _ = stream.write_all(format!("data: {last}\n\ndata: [DONE]\n\n").as_bytes());
    });
    (upstream, written)
}

#[test]
fn an_abandoned_stream_is_drained_or_cut_as_configured() {
    for (drain_max, status, source) in [
        (Some(DEADLINE), "SUCCESS", "provider"),
        (Some(Duration::from_millis(200)), "CANCELLED", "estimated"),
        (None, "CANCELLED", "estimated"),
    ] {
        let (end, ended) = bounded(1);
        let (upstream, written) = endless(ended);
        let server = server_with(&upstream, |config| {
            let policy = ClientPolicy { drain_max, ..ClientPolicy::default() };
            config.gateway.policies.insert("openai".into(), policy);
        });
        let mut conversation = Conversation::with(&server);
        conversation.ask(CHAT, &chat("gpt-4o-mini", true).to_string());
        conversation.head();
        while !conversation.chunk().contains("more") {}
        drop(conversation);
        if drain_max == Some(DEADLINE) {
            let before = written.load(Ordering::SeqCst);
            eventually("some more pieces were read", || {
                written.load(Ordering::SeqCst) > before + 5
            });
            end.send(()).unwrap();
        }
        let row = &rows(&server, 1)[0];
        assert_eq!(row["status"], status, "{drain_max:?}: {row}");
        assert_eq!(row["usage_source"], source, "{drain_max:?}: {row}");
        let output = row["output_tokens"].as_u64().unwrap();
        // The final count is 9. Before it, one token was counted, and at least one more chunk came.
        match source {
            "provider" => assert_eq!(output, 9, "{row}"),
            _ => assert!(output > 1, "{row}"),
        }
        let _ = end.try_send(());
    }
}

#[test]
fn an_abandoned_call_without_output_ends_as_configured() {
    let (_go, wait) = bounded::<()>(0);
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |_, _| {
        let _ = wait.lock().unwrap().recv_timeout(DEADLINE);
    });
    let server = server_with(&upstream, |config| {
        let policy = ClientPolicy { drain_max: None, ..ClientPolicy::default() };
        config.gateway.policies.insert("openai".into(), policy);
    });
    for is_streamed in [false, true] {
        let mut conversation = Conversation::with(&server);
        conversation.ask(CHAT, &chat("gpt-4o-mini", is_streamed).to_string());
        eventually("the upstream is asked", || upstream.requests().try_recv().is_ok());
        drop(conversation);
    }
    for row in rows(&server, 2) {
        let outcome = (&row["status"], &row["error_message"], &row["total_cost_usd"]);
        let expected = (&json!("CANCELLED"), &json!("client disconnected"), &Value::Null);
        assert_eq!(outcome, expected);
    }
}

#[test]
fn a_broken_stream_ends_with_an_error_and_keeps_its_usage() {
    let upstream = Upstream::start(|body, stream| {
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        if body.contains("reported") {
            let _ = stream.write_all(b"data: {\"error\":{\"message\":\"overloaded\"}}\n\n");
        } else {
            let chunk = json!({"model": "gpt-4o-mini", "choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}});
            let _ = stream.write_all(format!("data: {chunk}\n\n").as_bytes());
        }
    });
    let server = server(&upstream);
    let response = server.post(CHAT, &chat("gpt-4o-mini", true));
    assert_eq!(response.status, 200);
    let text = response.text();
    assert!(text.contains("\"code\":\"provider_bad_answer\""), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    // The client receives the provider's own error only once.
    let text = server.post(CHAT, &chat("reported", true)).text();
    assert_eq!(text.matches("error").count(), 1, "{text}");
    let rows = rows(&server, 2);
    assert_eq!((&rows[0]["status"], &rows[0]["input_tokens"]), (&json!("FAILED"), &json!(7)));
    assert_eq!(rows[1]["status"], "FAILED");
}

#[test]
fn shutdown_ends_and_records_calls_in_flight() {
    // Every chunk has a count: an estimate may take longer than the server's shutdown.
    let chunk = json!({"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}});
    let (upstream, _go) = open_ended(format!("data: {chunk}\n\n"));
    let mut server = server(&upstream);
    let mut conversation = Conversation::with(&server);
    conversation.ask(CHAT, &chat("gpt-4o-mini", true).to_string());
    conversation.head();
    conversation.chunk();
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5));
    let rest = conversation.chunks();
    assert!(rest.contains("shutting down"), "{rest}");
    server.start_again();
    let row = &rows(&server, 1)[0];
    assert_eq!(row["status"], "UNKNOWN", "{row}");
    assert_eq!(row["input_tokens"], 7);
}

#[test]
fn a_budget_refusal_is_recorded_without_a_call() {
    let upstream = Upstream::saying(completion("Hello", 3, 1));
    let server = server(&upstream);
    let budgets = json!({"budgets": [{"name": "small", "per": "day", "limitTokens": 10}]});
    let set = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    let response = server.post(CHAT, &chat("gpt-4o-mini", false));
    assert_eq!(response.status, 402);
    assert_eq!(response.json()["error"]["code"], "budget");
    assert_eq!(response.header("x-should-retry"), Some("false"));
    let response = server.post(MESSAGES, &chat("m", true));
    assert_eq!(response.json()["error"]["type"], "billing_error");
    assert_eq!(upstream.count(), 0);
    for row in rows(&server, 2) {
        assert_eq!((&row["status"], &row["total_cost_usd"]), (&json!("FAILED"), &json!(0)));
    }
}

#[test]
fn echo_responds_in_either_format() {
    let server = TestServer::start();
    let ask = |path: &str, is_streamed| server.post(path, &chat("echo/echo-1", is_streamed));
    let openai = ask(CHAT, false).json();
    assert_eq!(openai["choices"][0]["message"]["content"], "[echo of echo-1] Hi");
    assert_eq!(
        openai["usage"],
        json!({"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5})
    );
    let anthropic = ask(MESSAGES, false).json();
    assert_eq!(anthropic["content"][0]["text"], "[echo of echo-1] Hi");
    assert_eq!(anthropic["usage"], json!({"input_tokens": 1, "output_tokens": 4}));
    let openai = ask(CHAT, true).text();
    assert!(
        openai.contains(r#""content":"[echo ""#) && openai.ends_with("data: [DONE]\n\n"),
        "{openai}"
    );
    assert!(!openai.contains("usage"), "{openai}");
    let anthropic = ask(MESSAGES, true).text();
    for name in ["message_start", "content_block_delta", "message_delta", "message_stop"] {
        assert!(
            anthropic.contains(&format!("event: {name}\ndata: {{\"type\":\"{name}\"")),
            "{anthropic}"
        );
    }
    for row in rows(&server, 4) {
        assert_eq!(
            (&row["status"], &row["output_tokens"], &row["total_cost_usd"]),
            (&json!("SUCCESS"), &json!(4), &json!(0))
        );
    }
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect()
}

#[test]
fn the_model_list_has_built_in_names_without_a_providers_list() {
    let upstream = Upstream::saying("");
    let server = server_with(&upstream, |config| {
        config.gateway.aliases.insert("fast".into(), vec![target("openai", "gpt-4o-mini")]);
        config.gateway.aliases.insert("claude".into(), vec![target("anthropic", "none")]);
        config.providers.get_mut("anthropic").unwrap().api_key = None;
        config.providers.get_mut("anthropic").unwrap().missing_key_hint = Some("set KEY".into());
    });
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    let ids = ids(&list);
    assert_eq!(ids[0], "fast", "{ids:?}");
    for id in ["echo/echo-1", "openai/gpt-4o-mini", "gpt-4o-mini"] {
        assert!(ids.contains(&id), "{ids:?}");
    }
    assert!(!ids.iter().any(|id| id.contains("claude")), "{ids:?}");
    assert_eq!(server.get("/v1/models/echo/echo-1").json()["owned_by"], "echo");
    assert_eq!(server.get("/v1/models/none").status, 404);
}

#[test]
fn the_model_list_is_that_of_the_providers() {
    let upstream = Upstream::listing(
        |stream| {
            let list = json!({"data": [
                {"type": "model", "id": "claude-next-1", "display_name": "Claude Next",
                    "created_at": "2026-11-01T00:00:00Z"},
                {"type": "model", "id": "claude-next-2"},
            ]});
            let _ = stream.write_all(json_answer("200 OK", &list.to_string()).as_bytes());
        },
        |_, _| {},
    );
    let server = server(&upstream);
    // As Claude Code discovers models: <https://code.claude.com/docs/en/llm-gateway-protocol>.
    let headers = [("anthropic-version", "2023-06-01")];
    let ask = |path: &str| server.request("GET", path, &headers, b"").json();
    let list = ask("/v1/models?limit=1000");
    let all = ids(&list);
    assert_eq!(&all[..2], ["claude-next-1", "claude-next-2"], "{all:?}");
    assert!(
        all.contains(&"anthropic/claude-next-1") && all.contains(&"openai/claude-next-1"),
        "{all:?}"
    );
    let first = &list["data"][0];
    assert_eq!((&first["type"], &first["display_name"]), (&json!("model"), &json!("Claude Next")));
    assert!(first["created_at"].as_str().unwrap().starts_with("2026-11-01T00:00:00"));
    let page = ask("/v1/models?limit=1&after_id=claude-next-1");
    assert_eq!((ids(&page), &page["has_more"]), (vec!["claude-next-2"], &json!(true)));
    assert_eq!(ask("/v1/models/claude-next-2")["id"], "claude-next-2");
    // The lists are kept.
    let list = server.get("/v1/models").json();
    assert!(ids(&list).contains(&"openai/claude-next-1"), "{list}");
    let requests = upstream.lists();
    server.get("/v1/models");
    ask("/v1/models");
    assert_eq!(upstream.lists(), requests);
}

#[test]
fn flows_and_clients_share_one_ledger() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "ants"}));
    let id = flow.to_string();
    let body = chat("echo/echo-1", false).to_string();
    server.request("POST", CHAT, &[("x-flowledger-flow", &id)], body.as_bytes());
    eventually("three rows of the flow", || {
        let rows = server.get(&format!("/api/ledger?flow_id={id}&status=SUCCESS")).json();
        rows["items"].as_array().unwrap().len() == 3
    });
}

#[test]
fn missing_counts_are_estimated_from_all_request_texts() {
    let answer = json!({"model": "gpt-4o-mini", "choices": [{"index": 0, "message": {"role": "assistant", "content": "well said"}, "finish_reason": "stop"}]});
    let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
    let server = server(&upstream);
    let request = json!({"model": "openai/gpt-4o-mini", "messages": [
        {"role": "system", "content": "one two three"},
        {"role": "user", "content": [{"type": "text", "text": "four five six"}]},
    ]});
    let answered = server.post("/v1/chat/completions", &request);
    assert_eq!(answered.status, 200);
    let row = rows(&server, 1).remove(0);
    assert_eq!(row["usage_source"], "estimated", "{row:#}");
    assert!(row["input_tokens"].as_u64().unwrap() >= 6, "{row:#}");
    assert!(row["output_tokens"].as_u64().unwrap() >= 2, "{row:#}");
}

#[test]
fn clients_queue_for_a_provider_up_to_a_maximum_wait() {
    let upstream = Upstream::saying(completion("done", 1, 1));
    let minute = Duration::from_millis(300);
    let rate = |minute| Rate { requests_per_minute: Some(1), tokens_per_minute: None, minute };
    let server = server_with(&upstream, |config| {
        config.rates.insert("openai".into(), rate(minute));
    });
    let request = chat("openai/gpt-4o-mini", false);
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(server.post("/v1/chat/completions", &request).status, 200);
    }
    assert!(began.elapsed() >= minute);
    let server = server_with(&upstream, |config| {
        config.rates.insert("openai".into(), rate(Duration::from_secs(3600)));
    });
    let statuses = [(); 3].map(|()| server.post("/v1/chat/completions", &request).status);
    assert_eq!(statuses, [200, 429, 429]);
    // A refused call has no row and frees its place in the queue.
    assert_eq!(rows(&server, 1).len(), 1);
}

#[test]
fn unknown_routes_are_refused_without_their_body() {
    let server = server(&Upstream::saying(completion("well", 1, 1)));
    for (path, status) in [("/v1/nothing", 404), ("/v1/models", 405), ("/v1/models/m", 405)] {
        let mut conversation = Conversation::with(&server);
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n");
        conversation.reader.get_mut().write_all(head.as_bytes()).unwrap();
        let head = conversation.head();
        assert!(head[0].starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head:?}");
    }
}
