//! Calls of clients to providers of another API.

use std::io::Write;

use flowledger::config::Config;
use flowledger::gateway::Target;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::client_kinds::newest_row;
use crate::clients::rows;
use crate::harness::{DEADLINE, Response, TestServer, add_provider};
use crate::upstream::{STREAM_HEAD, Upstream, completion, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// A server with the providers `local` (chat completions) and `claude` (Anthropic's messages), and the
/// aliases `fast` (both, in this order) and `any` (the second, then the first).
fn server(local: &Upstream, claude: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let claude_url = claude.url().trim_end_matches("/v1").to_owned();
    TestServer::start_with(|config| {
        add_provider(config, "local", Kind::OpenAi, local.url());
        add_provider(config, "claude", Kind::Anthropic, &claude_url);
        let (one, other) = (target("local", "qwen3"), target("claude", "claude-haiku-4-5"));
        config.gateway.aliases.insert("fast".into(), vec![one.clone(), other.clone()]);
        config.gateway.aliases.insert("any".into(), vec![other, one]);
        change(config);
    })
}

fn target(provider: &str, model: &str) -> Target {
    Target { provider: provider.into(), model: model.into() }
}

fn message(model: &str, is_streamed: bool) -> Value {
    json!({
        "model": model, "max_tokens": 500, "stream": is_streamed, "system": "Be brief.",
        "messages": [{"role": "user", "content": "Weather in Paris?"}],
        "tools": [{"name": "get_weather", "description": "d", "input_schema": {
            "type": "object", "properties": {"city": {"type": "string"}},
        }}],
    })
}

fn chat(model: &str, is_streamed: bool) -> Value {
    json!({"model": model, "stream": is_streamed, "messages": [{"role": "user", "content": "Hi"}]})
}

/// A streamed chat completion with a tool call, 30 prompt tokens (10 cached) and 7 others.
fn tool_stream() -> String {
    let chunk = |delta: Value, finish: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "qwen3", "choices": choices});
        format!("data: {chunk}\n\n")
    };
    let call = |call: Value| chunk(json!({"tool_calls": [call]}), Value::Null);
    let usage = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "qwen3", "choices": [], "usage": {
        "prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37,
        "prompt_tokens_details": {"cached_tokens": 10},
    }});
    [
        STREAM_HEAD.to_owned(),
        chunk(json!({"role": "assistant", "content": "I look."}), Value::Null),
        call(json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}})),
        call(json!({"index": 0, "function": {"arguments": "{\"city\":"}})),
        call(json!({"index": 0, "function": {"arguments": "\"Paris\"}"}})),
        chunk(json!({}), json!("tool_calls")),
        format!("data: {usage}\n\ndata: [DONE]\n\n"),
    ]
    .concat()
}

/// Returns the data of all events.
fn events(response: &Response) -> Vec<Value> {
    let text = response.text();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[test]
fn a_message_is_streamed_from_chat_completions() {
    let local = Upstream::saying(tool_stream());
    let claude = Upstream::saying("");
    let server = server(&local, &claude, |_| {});
    let response = server.post(MESSAGES, &message("local/qwen3", true));
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.header("content-type").unwrap().starts_with("text/event-stream"));
    let events = events(&response);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"message_start"), "{kinds:?}");
    assert_eq!(kinds[kinds.len() - 2..], ["message_delta", "message_stop"]);
    let deltas = |name: &str| -> String {
        let pieces = events.iter().filter_map(|event| event["delta"][name].as_str());
        pieces.collect()
    };
    assert_eq!(deltas("text"), "I look.");
    assert_eq!(deltas("partial_json"), "{\"city\":\"Paris\"}");
    let call = events.iter().find(|event| event["content_block"]["type"] == "tool_use").unwrap();
    assert_eq!(call["content_block"]["name"], "get_weather");
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "tool_use");
    let usage = &end["usage"];
    let counts = ["input_tokens", "cache_read_input_tokens", "output_tokens"];
    assert_eq!(counts.map(|name| usage[name].as_u64().unwrap()), [20, 10, 7], "{usage}");
    let sent: Value =
        serde_json::from_str(&local.requests().recv_timeout(DEADLINE).unwrap()).unwrap();
    assert_eq!(sent["model"], "qwen3");
    assert_eq!(sent["messages"][0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!(sent["tools"][0]["function"]["name"], "get_weather");
    assert_eq!(sent["stream_options"]["include_usage"], true);
    let row = newest_row(&server, 1);
    let counts = ["input_tokens", "cached_input_tokens", "output_tokens"];
    assert_eq!(counts.map(|name| row[name].as_u64().unwrap()), [30, 10, 7], "{row}");
    assert_eq!((&row["status"], &row["provider"]), (&json!("SUCCESS"), &json!("local")));
}

#[test]
fn a_fallback_of_another_api_hides_the_failure() {
    let local = Upstream::saying(json_answer("503 Busy", r#"{"error":{"message":"overloaded"}}"#));
    let claude = Upstream::start(|_, stream| {
        let message = json!({"id": "msg_1", "type": "message", "role": "assistant",
            "model": "claude-haiku-4-5", "content": []});
        let events = [
            json!({"type": "message_start", "message": message}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 5, "output_tokens": 2}}),
            json!({"type": "message_stop"}),
        ];
        let _ = stream.write_all(STREAM_HEAD.as_bytes());
        for event in events {
            let name = event["type"].as_str().unwrap();
            let _ = write!(stream, "event: {name}\ndata: {event}\n\n");
        }
    });
    let server = server(&local, &claude, |_| {});
    let response = server.post(CHAT, &chat("fast", true));
    assert_eq!(response.status, 200, "{}", response.text());
    let text: String = events(&response)
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text, "Hello");
    assert!(response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    let rows = rows(&server, 2);
    let seen: Vec<_> =
        rows.iter().map(|row| (row["provider"].as_str(), row["status"].as_str())).collect();
    assert_eq!(
        seen,
        [(Some("local"), Some("FAILED")), (Some("claude"), Some("SUCCESS"))],
        "{rows:?}"
    );
}

#[test]
fn an_error_has_the_form_and_status_of_the_client() {
    let limited = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 7\r\n\
        x-ratelimit-remaining-requests: 0\r\nconnection: close\r\n\r\n\
        {\"error\":{\"message\":\"slow down\",\"type\":\"requests\",\"code\":\"rate_limit_exceeded\"}}";
    let (local, claude) = (Upstream::saying(limited), Upstream::saying(""));
    let server = server(&local, &claude, |_| {});
    let response = server.post(MESSAGES, &message("local/qwen3", true));
    assert_eq!(response.status, 429, "{}", response.text());
    assert_eq!(response.json()["error"]["type"], "rate_limit_error");
    assert_eq!(response.header("retry-after"), Some("7"));
    assert_eq!(response.header("anthropic-ratelimit-requests-remaining"), Some("0"));
}

#[test]
fn a_field_without_equivalent_is_named() {
    let local = Upstream::saying(completion("Hello", 3, 1));
    let claude = Upstream::saying("");
    let server = server(&local, &claude, |_| {});
    let mut stored = json!({"model": "claude/claude-haiku-4-5", "input": "Hi"});
    stored["previous_response_id"] = json!("resp_1");
    let response = server.post(RESPONSES, &stored);
    assert_eq!(response.status, 400, "{}", response.text());
    let mut several = chat("claude/claude-haiku-4-5", false);
    several["n"] = json!(2);
    let response = server.post(CHAT, &several);
    assert_eq!(response.status, 400);
    assert!(response.text().contains("`n`"), "{}", response.text());
    // A hint is dropped, and the client is told.
    let mut hinted = message("local/qwen3", false);
    hinted["top_k"] = json!(5);
    let response = server.post(MESSAGES, &hinted);
    assert_eq!(response.status, 200, "{}", response.text());
    let dropped = response.header("x-flowledger-dropped").unwrap();
    assert!(dropped.split(", ").any(|field| field == "top_k"), "{dropped}");
    let row = newest_row(&server, 1);
    assert_eq!(row["provider"], "local");
}

#[test]
fn a_broken_translated_stream_ends_with_an_error_of_the_protocol() {
    let begun = format!(
        "{STREAM_HEAD}data: {}\n\n",
        json!({"id": "c", "model": "qwen3", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hal"}}]})
    );
    let (local, claude) = (Upstream::saying(begun), Upstream::saying(""));
    let server = server(&local, &claude, |_| {});
    let response = server.post(MESSAGES, &message("fast", true));
    let events = events(&response);
    assert_eq!(events.last().unwrap()["type"], "error", "{events:?}");
    assert!(events.iter().any(|event| event["delta"]["text"] == "Hal"), "{events:?}");
    let row = newest_row(&server, 1);
    assert_eq!(row["status"], "FAILED");
}

#[test]
fn a_translated_response_is_cached_in_the_form_of_the_client() {
    let local = Upstream::saying(completion("Hello", 3, 1));
    let claude = Upstream::saying("");
    let server = server(&local, &claude, |_| {});
    let body = message("local/qwen3", false).to_string();
    let ask = || {
        let headers = [("x-flowledger-cache", "60")];
        server.request("POST", MESSAGES, &headers, body.as_bytes())
    };
    let (first, second) = (ask(), ask());
    assert_eq!(first.json()["content"][0]["text"], "Hello", "{}", first.text());
    assert_eq!(second.header("x-flowledger-cached"), Some("true"));
    assert_eq!(first.text(), second.text());
    assert_eq!(local.count(), 1);
    // The same prompt in another API is another response.
    let response = server.post(CHAT, &chat("local/qwen3", false)).json();
    assert_eq!(response["choices"][0]["message"]["content"], "Hello");
}
