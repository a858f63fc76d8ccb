//! Providers of every kind behind `/v1`: request paths, headers and usage.

use std::io::Write;

use flowledger::config::Config;
use flowledger::gateway::Target;
use flowledger::providers::Kind;
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, eventually};
use crate::upstream::{STREAM_HEAD, Upstream, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// A server whose providers `anthropic`, `gemini` and `ollama` are the upstream.
pub fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().trim_end_matches("/v1").to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "anthropic", Kind::Anthropic, &url);
        add_provider(config, "gemini", Kind::Gemini, &url);
        add_provider(config, "ollama", Kind::Ollama, &url);
        change(config);
    })
}

pub fn server(upstream: &Upstream) -> TestServer {
    server_with(upstream, |_| {})
}

fn chat(model: &str, is_streamed: bool) -> Value {
    json!({"model": model, "stream": is_streamed, "messages": [{"role": "user", "content": "Hi"}]})
}

pub fn head(upstream: &Upstream) -> String {
    upstream.heads().recv_timeout(DEADLINE).unwrap()
}

/// Returns the newest row once there are `count` and none is pending.
pub fn newest_row(server: &TestServer, count: usize) -> Value {
    let mut newest = Value::Null;
    eventually("the ledger has its rows", || {
        let rows = server.get("/api/ledger").json()["items"].clone();
        let rows = rows.as_array().unwrap();
        newest = rows.first().cloned().unwrap_or_default();
        rows.len() == count && rows.iter().all(|row| row["status"] != "PENDING")
    });
    newest
}

#[test]
fn gemini_thoughts_are_counted_and_priced_as_output() {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 103});
    let upstream = Upstream::start(move |body, stream| {
        let model = "gemini-2.5-flash";
        let answer = if body.contains("\"stream\":true") {
            // Each chunk has the running totals.
            let first = json!({"model": model, "choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 50}});
            let last = json!({"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage});
            format!("{STREAM_HEAD}data: {first}\n\ndata: {last}\n\ndata: [DONE]\n\n")
        } else {
            let answer = json!({"model": model, "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage});
            json_answer("200 OK", &answer.to_string())
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server(&upstream);
    for (at, is_streamed) in [false, true].into_iter().enumerate() {
        let response = server.post(CHAT, &chat("gemini/gemini-2.5-flash", is_streamed));
        assert_eq!(response.status, 200, "{}", response.text());
        let head = head(&upstream);
        assert!(head.starts_with("post /v1beta/openai/chat/completions "), "{head}");
        assert!(head.contains("authorization: bearer test-key\n"), "{head}");
        let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
        let sent: Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["model"], "gemini-2.5-flash");
        assert_eq!(sent.pointer("/stream_options/include_usage").is_some(), is_streamed);
        let row = newest_row(&server, at + 1);
        for (name, expected) in [
            ("status", json!("SUCCESS")),
            ("provider", json!("gemini")),
            ("usage_source", json!("provider")),
            ("input_tokens", json!(9)),
            ("output_tokens", json!(94)),
            ("reasoning_tokens", json!(93)),
            ("total_cost_usd", json!(0.000_237_7)),
        ] {
            assert_eq!(row[name], expected, "{name}: {row}");
        }
    }
}

#[test]
fn ollama_serves_both_protocols_with_a_bearer_token() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("max_tokens") {
            let begin = json!({"type": "message_start", "message": {"model": "llama3.2", "usage": {"input_tokens": 3, "output_tokens": 0}}});
            let end = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 7, "output_tokens": 2}});
            format!(
                "{STREAM_HEAD}data: {begin}\n\ndata: {end}\n\ndata: {{\"type\":\"message_stop\"}}\n\n"
            )
        } else {
            let first = json!({"model": "llama3.2", "choices": [{"delta": {"content": "a", "reasoning": "hm"}, "finish_reason": null}]});
            let stop = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
            let last = json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}});
            format!(
                "{STREAM_HEAD}data: {first}\n\ndata: {stop}\n\ndata: {last}\n\ndata: [DONE]\n\n"
            )
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server(&upstream);
    let mut message = chat("ollama/llama3.2", true);
    message["max_tokens"] = json!(9);
    let requests = [(CHAT, chat("ollama/llama3.2", true)), (MESSAGES, message)];
    for (at, (path, body)) in requests.into_iter().enumerate() {
        let response = server.post(path, &body);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(!response.text().contains("prompt_tokens"), "{}", response.text());
        let head = head(&upstream);
        assert!(head.starts_with(&format!("post {path} ")), "{head}");
        assert!(head.contains("authorization: bearer test-key\n"), "{head}");
        assert_eq!(head.contains("anthropic-version: 2023-06-01\n"), path == MESSAGES);
        let row = newest_row(&server, at + 1);
        for (name, expected) in [
            ("status", json!("SUCCESS")),
            ("provider", json!("ollama")),
            ("usage_source", json!("provider")),
            ("input_tokens", json!(7)),
            ("output_tokens", json!(2)),
            ("total_cost_usd", Value::Null),
        ] {
            assert_eq!(row[name], expected, "{name}: {row}");
        }
    }
}

#[test]
fn an_unsupported_protocol_is_refused_with_the_supported_one() {
    let upstream = Upstream::saying("");
    let server = server(&upstream);
    for (path, model, advice) in [
        ("/api/chat", "gemini/gemini-2.5-flash", CHAT),
        ("/v1/embeddings", "anthropic/claude-haiku-4-5", MESSAGES),
    ] {
        let refused = server.post(path, &chat(model, false));
        assert_eq!(refused.status, 400);
        let text = refused.text();
        assert!(text.contains("; use ") && text.contains(advice), "{text}");
    }
    assert_eq!(upstream.count(), 0);
}

#[test]
fn the_model_list_includes_gemini_models() {
    let server = server(&Upstream::saying(""));
    let model = server.get("/v1/models/gemini/gemini-2.5-flash");
    assert_eq!(model.status, 200, "{}", model.text());
    assert_eq!(model.json()["owned_by"], "gemini");
}

#[test]
fn tokens_are_counted_by_the_first_target_without_a_row() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("none") {
            json_answer("404 Not Found", r#"{"type":"error","error":{"message":"no test-key"}}"#)
        } else {
            json_answer("200 OK", "{ \"input_tokens\": 14 }")
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let server = server_with(&upstream, |config| {
        config.token = Some(Secret::new("the-token"));
        let target = |model: &str| Target { provider: "anthropic".into(), model: model.into() };
        let both = vec![target("claude-haiku-4-5"), target("never")];
        config.gateway.aliases.insert("fast".into(), both);
    });
    let ask = |model: &str, key: &str| {
        let headers = [("x-api-key", key), ("anthropic-beta", "a")];
        let body = chat(model, false).to_string();
        server.request("POST", COUNT, &headers, body.as_bytes())
    };
    let counted = ask("fast", "the-token");
    assert_eq!((counted.status, counted.text().as_str()), (200, "{ \"input_tokens\": 14 }"));
    let head = head(&upstream);
    assert!(head.starts_with("post /v1/messages/count_tokens "), "{head}");
    for line in ["x-api-key: test-key\n", "anthropic-version: 2023-06-01\n", "anthropic-beta: a\n"]
    {
        assert!(head.contains(line), "{head}");
    }
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(sent.contains("\"claude-haiku-4-5\""), "{sent}");
    // The provider's own message, without its key.
    let refused = ask("none", "the-token");
    assert_eq!(refused.status, 404);
    assert!(refused.text().contains("no ***"), "{}", refused.text());
    assert_eq!(ask("fast", "another").status, 401);
    // Providers without a token count of this protocol: an estimate.
    for model in ["ollama/llama3.2", "gemini/gemini-2.5-flash"] {
        let counted = ask(model, "the-token");
        let tokens = counted.json()["input_tokens"].as_u64().unwrap();
        assert!(counted.status == 200 && (1..100).contains(&tokens), "{model}: {tokens}");
    }
    assert_eq!(ask("echo/echo-1", "the-token").status, 400);
    assert_eq!(upstream.count(), 2);
    let headers = [("authorization", "Bearer the-token")];
    let rows = server.request("GET", "/api/ledger", &headers, b"").json();
    assert_eq!(rows["items"], json!([]));
}
