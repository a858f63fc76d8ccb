//! Limits on client calls: reservations, sizes and memory; calls of disconnected clients are
//! dropped; errors follow the client's protocol.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use flowledger::config::Config;
use flowledger::gateway::Target;
use flowledger::providers::{Kind, Rate};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, TestServer, add_provider, eventually};
use crate::upstream::{Upstream, completion, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
/// Most tokens of an image in chat completions and in messages.
const CHAT_IMAGE: u64 = 48_169;
const MESSAGE_IMAGE: u64 = 4_784;

/// A server whose providers `openai` and `anthropic` are the upstream.
fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, &url);
        change(config);
    })
}

/// The same, with a hard budget of `tokens` per day.
fn server_with_tokens(upstream: &Upstream, tokens: u64) -> TestServer {
    let server = server_with(upstream, |_| {});
    let budgets = json!({"budgets": [{"name": "all", "per": "day", "limitTokens": tokens, "onShort": "refuse"}]});
    let set = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    server
}

fn chat_body(content: &Value) -> Value {
    json!({"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": content}]})
}

/// An upstream whose answer is valid in both protocols.
fn answering() -> Upstream {
    Upstream::start(|body, stream| {
        let message = r#"{"id":"m","type":"message","model":"m","content":[{"type":"text","text":"a"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}"#;
        let is_message = body.contains("\"claude\"");
        let answer = match is_message {
            true => json_answer("200 OK", message),
            false => completion("Hello", 1, 1),
        };
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn rows(server: &TestServer, count: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    eventually("the ledger has its rows", || {
        let all = server.get("/api/ledger").json();
        rows = all["items"].as_array().unwrap().clone();
        rows.reverse();
        rows.len() == count && rows.iter().all(|row| row["status"] != "PENDING")
    });
    rows
}

/// Waits until `count` requests were answered with this status.
fn answered(server: &TestServer, status: u16, count: usize) {
    let line = format!(
        "flowledger_gateway_requests_total{{protocol=\"openai\",status=\"{status}\"}} {count}\n"
    );
    eventually(&line, || server.get("/metrics").text().contains(&line));
}

/// Sends a request and returns the connection.
fn send(server: &TestServer, body: &Value, fields: &str) -> TcpStream {
    let mut stream = server.connect();
    let body = body.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{fields}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head, body].concat().into_bytes()).unwrap();
    stream
}

fn response_of(mut stream: TcpStream) -> Response {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    Response::parse(&answer).unwrap()
}

/// A provider that answers on demand. Also returns the received bodies and a sender that releases
/// one answer. A model called `bad` gets an error.
fn on_demand() -> (Upstream, Receiver<String>, Sender<()>) {
    let (arrived, arrivals) = unbounded();
    let (release, released) = bounded::<()>(0);
    let released = Mutex::new(released);
    let upstream = Upstream::start(move |body, stream| {
        let _ = arrived.send(body.to_owned());
        let _ = released.lock().unwrap().recv_timeout(DEADLINE);
        let answer = match body.contains("\"bad\"") {
            true => json_answer("503 Busy", r#"{"error":{"message":"overloaded"}}"#),
            false => completion("Hello", 1, 1),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    (upstream, arrivals, release)
}

fn target(provider: &str, model: &str) -> Target {
    Target { provider: provider.into(), model: model.into() }
}

#[test]
fn non_image_content_counts_by_its_bytes_against_a_budget() {
    let upstream = answering();
    let server = server_with_tokens(&upstream, 100_000);
    let long = "A".repeat(1 << 20);
    let data_url = |kind: &str| format!("data:{kind};base64,{long}");
    let source = |kind: &str| json!({"type": "base64", "media_type": kind, "data": long});
    for (path, content) in [
        (CHAT, json!(long)),
        (CHAT, json!([{"type": "text", "text": data_url("image/png")}])),
        (CHAT, json!([{"type": "input_audio", "input_audio": {"data": long, "format": "mp3"}}])),
        (CHAT, json!([{"type": "file", "file": {"file_data": data_url("application/pdf")}}])),
        (CHAT, json!([{"type": "image_url", "image_url": {"url": data_url("text/plain")}}])),
        (MESSAGES, json!(long)),
        (MESSAGES, json!([{"type": "document", "source": source("application/pdf")}])),
        (MESSAGES, json!([{"type": "image", "source": source("text/plain")}])),
        // No known size.
        (CHAT, json!([{"type": "file", "file": {"file_id": "f"}}])),
        (
            MESSAGES,
            json!([{"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}]),
        ),
    ] {
        let response = server.post(path, &chat_body(&content));
        let kinds = &content[0]["type"];
        assert_eq!(response.status, 402, "{path}, {kinds}: {}", response.text());
    }
    assert_eq!(upstream.count(), 0);
    let image = json!([{"type": "image_url", "image_url": {"url": data_url("image/png")}}]);
    assert_eq!(server.post(CHAT, &chat_body(&image)).status, 200);
    let image = json!([{"type": "image", "source": source("image/png")}]);
    let mut body = chat_body(&image);
    body["model"] = json!("claude");
    assert_eq!(server.post(MESSAGES, &body).status, 200);
}

#[test]
fn each_image_counts_with_the_maximum_size() {
    let upstream = answering();
    let tokens = 100_000;
    let inline = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let remote = json!({"type": "image_url", "image_url": {"url": "https://a/b.png"}});
    let source = json!({"type": "base64", "media_type": "image/png", "data": "AAAA"});
    let inline_of_message = json!({"type": "image", "source": source});
    let remote_of_message = json!({"type": "image", "source": {"type": "url", "url": "https://a"}});
    for (path, image, of_one) in [
        (CHAT, inline, CHAT_IMAGE),
        (CHAT, remote, CHAT_IMAGE),
        (MESSAGES, inline_of_message, MESSAGE_IMAGE),
        (MESSAGES, remote_of_message, MESSAGE_IMAGE),
    ] {
        let server = server_with_tokens(&upstream, tokens);
        let images_max = usize::try_from(tokens / of_one).unwrap();
        for (count, status) in [(images_max + 1, 402), (images_max, 200)] {
            let mut body = chat_body(&json!(vec![image.clone(); count]));
            if path == MESSAGES {
                body["model"] = json!("claude");
                // Also in the result of a tool.
                let result =
                    json!({"type": "tool_result", "content": body["messages"][0]["content"]});
                body["messages"][0]["content"] = json!([result]);
            }
            let response = server.post(path, &body);
            assert_eq!(response.status, status, "{count} of {image}: {}", response.text());
        }
    }
}

#[test]
fn a_token_limit_is_reserved_in_any_number_format() {
    let upstream = answering();
    let server = server_with_tokens(&upstream, 100_000);
    let ask = |limits: &str| {
        let body = format!(r#"{{"model":"m","messages":[]{limits}}}"#);
        let response = server.request("POST", CHAT, &[], body.as_bytes());
        let error = response.json()["error"].clone();
        let code = error["code"].as_str().unwrap_or_default().to_owned();
        (response.status, code)
    };
    for limits in [
        r#","max_tokens":90000000"#,
        r#","max_tokens":9e7"#,
        r#","max_tokens":90000000.0"#,
        r#","max_tokens":99999999999999999999"#,
        r#","max_tokens":90000000,"max_completion_tokens":1"#,
        r#","max_tokens":1,"max_completion_tokens":90000000"#,
        r#","max_tokens":1000,"n":100"#,
        r#","n":25"#,
    ] {
        assert_eq!(ask(limits), (402, "budget".into()), "{limits}");
    }
    for (limits, code) in [
        (r#","max_tokens":1,"max_tokens":90000000"#, "ambiguous"),
        (r#","max_completion_tokens":1,"max_completion_tokens":1"#, "ambiguous"),
        (r#","n":1,"n":90"#, "ambiguous"),
        (r#","max_tokens":1,"Max_Tokens":90000000"#, "ambiguous"),
        (r#","max_tokens":"90000000""#, "bad_limit"),
        (r#","max_tokens":1.5"#, "bad_limit"),
        (r#","n":[90]"#, "bad_limit"),
    ] {
        assert_eq!(ask(limits), (400, code.into()), "{limits}");
    }
    assert_eq!(upstream.count(), 0);
    for limits in ["", r#","max_tokens":null,"n":null"#, r#","max_tokens":1e2,"n":1.0"#] {
        assert_eq!(ask(limits).0, 200, "{limits}");
    }
    let response = server.request("POST", MESSAGES, &[], br#"{"model":"m","max_tokens":"1"}"#);
    assert_eq!(response.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn a_chunked_body_reserves_memory_for_its_bytes_only() {
    let (upstream, arrivals, release) = on_demand();
    let server = server_with(&upstream, |_| {});
    // More requests than fit in memory at their largest size, each too large to ignore.
    let count = 20;
    let body = chat_body(&json!("many words ".repeat(20_000))).to_string();
    let clients: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = server.connect();
            let head = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            let (one, two) = body.split_at(1_000);
            let chunk = |part: &str| format!("{:x}\r\n{part}\r\n", part.len());
            let request = [head, chunk(one), chunk(two), "0\r\n\r\n".into()].concat();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in 0..count {
        assert_eq!(arrivals.recv_timeout(DEADLINE).unwrap(), body);
    }
    for _ in 0..count {
        release.send_timeout((), DEADLINE).unwrap();
    }
    for client in clients {
        assert_eq!(response_of(client).status, 200);
    }
}

#[test]
fn a_disconnected_client_triggers_no_fallback() {
    let (upstream, arrivals, release) = on_demand();
    let server = server_with(&upstream, |config| {
        let targets = vec![target("openai", "bad"), target("openai", "good")];
        config.gateway.aliases.insert("fast".into(), targets);
    });
    let mut body = chat_body(&json!("Hi"));
    body["model"] = json!("fast");
    let client = send(&server, &body, "");
    arrivals.recv_timeout(DEADLINE).unwrap();
    drop(client);
    release.send_timeout((), DEADLINE).unwrap();
    answered(&server, 499, 1);
    assert_eq!(upstream.count(), 1);
    assert_eq!(rows(&server, 1)[0]["status"], "FAILED");
}

#[test]
fn a_client_that_leaves_the_queue_frees_its_permit() {
    let upstream = answering();
    let server = server_with(&upstream, |config| {
        let rate =
            Rate { requests_per_minute: Some(1), tokens_per_minute: None, minute: DEADLINE * 2 };
        config.rates.insert("openai".into(), rate);
    });
    let body = chat_body(&json!("Hi"));
    assert_eq!(response_of(send(&server, &body, "")).status, 200);
    for count in 1..=2 {
        // If the first kept its permit, the second would have to wait too long and would be
        // refused.
        drop(send(&server, &body, ""));
        answered(&server, 499, count);
    }
    assert_eq!(upstream.count(), 1);
    assert_eq!(rows(&server, 1)[0]["status"], "SUCCESS");
}

#[test]
fn a_client_that_leaves_a_shared_wait_makes_no_call() {
    let (upstream, arrivals, release) = on_demand();
    let server = server_with(&upstream, |_| {});
    let fields = "x-flowledger-cache: 60\r\n";
    let body = chat_body(&json!("Hi"));
    let first = send(&server, &body, fields);
    arrivals.recv_timeout(DEADLINE).unwrap();
    drop(send(&server, &body, fields));
    answered(&server, 499, 1);
    release.send_timeout((), DEADLINE).unwrap();
    assert_eq!(response_of(first).status, 200);
    assert_eq!(rows(&server, 1).len(), 1);
}

#[test]
fn a_failed_alias_returns_the_most_useful_error() {
    let upstream = Upstream::start(|body, stream| {
        let answer = match body.contains("\"long\"") {
            true => json_answer(
                "400 Bad Request",
                r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
            ),
            false => json_answer("503 Busy", r#"{"error":{"message":"overloaded"}}"#),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        add_provider(config, "gone", Kind::OpenAi, "http://127.0.0.1:9/v1");
        add_provider(config, "claude", Kind::Anthropic, "http://127.0.0.1:9");
        add_provider(config, "keyless", Kind::OpenAi, "http://127.0.0.1:9/v1");
        add_provider(config, "slow", Kind::OpenAi, "http://127.0.0.1:9/v1");
        let keyless = config.providers.get_mut("keyless").unwrap();
        keyless.api_key = None;
        keyless.missing_key_hint = Some("set KEY".into());
        let rate = Rate {
            requests_per_minute: Some(1),
            tokens_per_minute: None,
            minute: Duration::from_secs(3600),
        };
        config.rates.insert("slow".into(), rate);
        let (long, busy) = (target("openai", "long"), target("openai", "busy"));
        let [gone, slow] = ["gone", "slow"].map(|name| target(name, "x"));
        let [keyless, claude] = ["keyless", "claude"].map(|name| target(name, "x"));
        for (name, targets) in [
            ("a", vec![long.clone(), keyless.clone()]),
            ("b", vec![long.clone(), gone.clone(), claude]),
            ("c", vec![keyless.clone(), long.clone(), slow.clone()]),
            ("d", vec![long, busy]),
            ("e", vec![gone, keyless.clone()]),
            ("f", vec![slow, keyless]),
        ] {
            config.gateway.aliases.insert(name.into(), targets);
        }
    });
    let mut body = chat_body(&json!("Hi"));
    body["model"] = json!("slow/x");
    assert_eq!(server.post(CHAT, &body).error_code(), "provider_unreachable");
    for (name, status, code) in [
        ("a", 400, "context_length_exceeded"),
        ("b", 400, "context_length_exceeded"),
        ("c", 400, "context_length_exceeded"),
        ("d", 503, ""),
        ("e", 502, "provider_unreachable"),
        ("f", 429, "rate_limit"),
        // An alias of such models only is refused at the start.
        ("keyless/x", 400, "provider_not_configured"),
    ] {
        body["model"] = json!(name);
        let response = server.post(CHAT, &body);
        assert_eq!((response.status, &*response.error_code()), (status, code), "{name}");
        if name == "f" {
            let retry_after = response.header("retry-after").unwrap();
            assert!((3500..=3601).contains(&retry_after.parse().unwrap()), "{retry_after}");
        }
    }
}

#[test]
fn every_refusal_has_the_error_format_of_the_protocol() {
    let upstream = answering();
    let server = server_with(&upstream, |_| {});
    let long = format!("x: {}\r\n", "x".repeat(16 << 10));
    for (fields, status, code, kind) in [
        ("host: evil.example\r\n", 421, "unknown_host", "invalid_request_error"),
        ("", 400, "bad_host", "invalid_request_error"),
        (
            "host: localhost\r\nauthorization: Bearer \u{e9}\r\n",
            400,
            "bad_request",
            "invalid_request_error",
        ),
        ("host: localhost\r\ncontent-length: +1\r\n", 400, "bad_request", "invalid_request_error"),
        (
            "host: localhost\r\norigin: https://evil.example\r\n",
            403,
            "foreign_origin",
            "permission_error",
        ),
        (&*long, 431, "head_too_large", "invalid_request_error"),
    ] {
        let ask =
            |path: &str| server.raw(format!("POST {path} HTTP/1.1\r\n{fields}\r\n").as_bytes());
        let response = ask(CHAT);
        assert_eq!(response.status, status, "{}", response.text());
        let error = &response.json()["error"];
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &Value::Null));
        assert!(error["type"].is_string(), "{error}");
        let response = ask(MESSAGES);
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(response.json()["type"], "error");
        assert_eq!(response.json()["error"]["type"], kind);
        // Other routes keep the error format of the API.
        let response = ask("/api/flows");
        assert_eq!(response.json()["error"]["code"], code);
        assert_eq!(response.json()["error"].get("type"), None);
    }
}

#[test]
fn a_forwarded_header_may_be_any_text() {
    let upstream = answering();
    let server = server_with(&upstream, |_| {});
    let body = chat_body(&json!("Hi")).to_string();
    for title in ["Über uns\u{2009}✓".as_bytes(), b"\xdcber uns"] {
        let head = [
            format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\nx-title: ", body.len()).as_bytes(),
            title,
            b"\r\nuser-agent: caf\xe9\r\n\r\n",
            body.as_bytes(),
        ]
        .concat();
        let response = server.raw(&head);
        assert_eq!(response.status, 200, "{}", response.text());
        let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
        assert!(head.contains("x-title: Über uns"), "{head}");
    }
    // The server behind the listener reads only ASCII, so a header that it knows is refused and not
    // dropped.
    let head = "POST /hooks/a HTTP/1.1\r\nhost: localhost\r\nidempotency-key: \u{e9}\r\n\r\n";
    assert_eq!(server.raw(head.as_bytes()).status, 400);
    for fields in ["x-title: a\u{0}b", "x-title: a\rb", "x-title: \u{7f}", "x-titl\u{e9}: a"] {
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n\r\n");
        assert_eq!(server.raw(head.as_bytes()).status, 400, "{fields:?}");
    }
}

#[test]
fn a_wrong_method_is_refused_with_the_allowed_ones() {
    let upstream = answering();
    let server = server_with(&upstream, |_| {});
    for (method, path, allowed) in [
        ("GET", CHAT, "POST"),
        ("PUT", MESSAGES, "POST"),
        ("DELETE", "/v1/messages/count_tokens", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/openai/x", "GET, HEAD"),
    ] {
        let response = server.request(method, path, &[], b"");
        assert_eq!(response.status, 405, "{method} {path}");
        assert_eq!(response.header("allow"), Some(allowed), "{method} {path}");
    }
    assert_eq!(server.get("/v1/nothing").status, 404);
}

#[test]
fn tool_calls_and_results_are_estimated() {
    let answer = json!({"model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]});
    let upstream = Upstream::saying(json_answer("200 OK", &answer.to_string()));
    let server = server_with(&upstream, |_| {});
    let words = "word ".repeat(100);
    let call =
        json!({"id": "x", "type": "function", "function": {"name": "f", "arguments": words}});
    let tool = json!({"type": "function", "function": {"name": "f", "description": words}});
    for (at, body) in [
        json!({"model": "m", "messages": [{"role": "assistant", "content": null, "tool_calls": [call]}]}),
        json!({"model": "m", "tools": [tool], "messages": []}),
        json!({"model": "m", "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": words}]}]}]}),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(server.post(CHAT, &body).status, 200);
        let row = rows(&server, at + 1).remove(at);
        assert_eq!(row["usage_source"], "estimated", "{row:#}");
        assert!(row["input_tokens"].as_u64().unwrap() >= 100, "{row:#}");
    }
}
