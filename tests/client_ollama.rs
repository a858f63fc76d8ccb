//! Programs that speak Ollama's own protocol, beside flowledger's own `/api`.

use std::io::Write;

use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::client_kinds::{head, newest_row, server};
use crate::harness::{DEADLINE, TestServer};
use crate::upstream::{Upstream, json_answer};

const LINES_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";
/// The paths with a text as their answer, and the field of the text.
const TEXTS: [(&str, &str); 2] =
    [("/api/chat", "/message/content"), ("/api/generate", "/response")];

fn request(path: &str, model: &str) -> Value {
    match path {
        "/api/generate" => json!({"model": model, "prompt": "Hi"}),
        _ => json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]}),
    }
}

fn object(path: &str, text: &str) -> Value {
    let mut object =
        json!({"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z", "done": false});
    match path {
        "/api/generate" => object["response"] = text.into(),
        _ => object["message"] = json!({"role": "assistant", "content": text}),
    }
    object
}

fn part(path: &str, text: &str) -> String {
    format!("{}\n", object(path, text))
}

fn last(path: &str) -> String {
    let mut object = object(path, "");
    object["done"] = true.into();
    object["done_reason"] = "stop".into();
    object["prompt_eval_count"] = 26.into();
    object["eval_count"] = 7.into();
    format!("{object}\n")
}

fn assert_row(row: &Value, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(row[*name], *value, "{name}: {row}");
    }
}

#[test]
fn ollama_answers_pass_on_with_their_counts() {
    for (path, _) in TEXTS {
        let lines = [part(path, "a"), part(path, "b"), last(path)].concat();
        let whole = last(path);
        let answers = (format!("{LINES_HEAD}{lines}"), json_answer("200 OK", whole.trim_end()));
        let upstream = Upstream::start(move |body, stream| {
            let answer = if body.contains("\"stream\":false") { &answers.1 } else { &answers.0 };
            let _ = stream.write_all(answer.as_bytes());
        });
        let server = server(&upstream);
        for (at, is_streamed) in [true, false].into_iter().enumerate() {
            let mut body = request(path, "ollama/llama3.2:1b");
            if !is_streamed {
                body["stream"] = json!(false);
            }
            let response = server.post(path, &body);
            let expected = if is_streamed { &lines } else { &whole };
            assert_eq!((response.status, response.text().trim_end()), (200, expected.trim_end()));
            let head = head(&upstream);
            assert!(head.starts_with(&format!("post {path} http/1.1\n")), "{head}");
            assert!(head.contains("authorization: bearer test-key\n"), "{head}");
            assert!(!head.contains("anthropic"), "{head}");
            let sent: Value =
                serde_json::from_str(&upstream.requests().recv_timeout(DEADLINE).unwrap()).unwrap();
            assert_eq!(sent["model"], "llama3.2:1b");
            assert_row(
                &newest_row(&server, at + 1),
                &[
                    ("status", json!("SUCCESS")),
                    ("provider", json!("ollama")),
                    ("usage_source", json!("provider")),
                    ("input_tokens", json!(26)),
                    ("output_tokens", json!(7)),
                ],
            );
        }
    }
}

#[test]
fn ollama_streams_end_with_an_error_line_if_they_fail() {
    for (path, _) in TEXTS {
        let half = &last(path)[..20];
        let error = "{\"error\":\"out of memory\"}\n";
        for (end, expected) in [(half, "stream ended"), (error, "out of memory"), ("\n\n", "ended")]
        {
            let lines = [part(path, "Once"), part(path, " upon")].concat();
            let upstream = Upstream::saying(format!("{LINES_HEAD}{lines}{end}"));
            let server = server(&upstream);
            let text = server.post(path, &request(path, "llama3.2")).text();
            let found: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(found.len(), 3, "{text}");
            assert!(found[2]["error"].as_str().unwrap().contains(expected), "{text}");
            assert_row(
                &newest_row(&server, 1),
                &[
                    ("status", json!("FAILED")),
                    ("usage_source", json!("estimated")),
                    ("output_tokens", json!(2)),
                ],
            );
        }
    }
    let refused = json_answer("404 Not Found", r#"{"error":"model 'x' not found"}"#);
    let upstream = Upstream::saying(refused);
    let server = server(&upstream);
    let response = server.post("/api/chat", &request("/api/chat", "x"));
    assert_eq!(
        (response.status, response.text().as_str()),
        (404, r#"{"error":"model 'x' not found"}"#)
    );
}

#[test]
fn tool_calls_of_ollama_are_counted_and_estimated() {
    let call = json!({"message": {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "weather", "arguments": {"city": "Paris"}}}]}, "done": false});
    let done = json!({"message": {"role": "assistant", "content": ""}, "done": true});
    let upstream = Upstream::saying(format!("{LINES_HEAD}{call}\n{done}\n"));
    let server = server(&upstream);
    let mut body = request("/api/chat", "llama3.2");
    body["tools"] =
        json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let response = server.post("/api/chat", &body);
    assert_eq!(response.text(), format!("{call}\n{done}\n"));
    let row = newest_row(&server, 1);
    assert_row(&row, &[("status", json!("SUCCESS")), ("usage_source", json!("estimated"))]);
    assert!(row["output_tokens"].as_u64() > Some(5), "{row}");
}

#[test]
fn embeddings_of_ollama_have_a_row() {
    let upstream = Upstream::start(|body, stream| {
        let answer = match body.contains("input") {
            true => r#"{"model":"e","embeddings":[[0.5]],"prompt_eval_count":8}"#,
            false => r#"{"embedding":[0.5]}"#,
        };
        let _ = stream.write_all(json_answer("200 OK", answer).as_bytes());
    });
    let server = server(&upstream);
    let response = server.post("/api/embed", &json!({"model": "ollama/e", "input": ["a", "b"]}));
    assert_eq!(response.json()["embeddings"], json!([[0.5]]), "{}", response.text());
    let expected = [
        ("usage_source", json!("provider")),
        ("input_tokens", json!(8)),
        ("output_tokens", json!(0)),
    ];
    assert_row(&newest_row(&server, 1), &expected);
    let response = server.post("/api/embeddings", &json!({"model": "e", "prompt": "a"}));
    assert_eq!(response.json()["embedding"], json!([0.5]), "{}", response.text());
    let expected = [("usage_source", json!("estimated")), ("output_tokens", json!(0))];
    assert_row(&newest_row(&server, 2), &expected);
}

#[test]
fn ollama_models_are_listed_and_shown() {
    let upstream = Upstream::start(|body, stream| {
        let answer = format!(r#"{{"capabilities":["tools"],"asked":{body}}}"#);
        let _ = stream.write_all(json_answer("200 OK", &answer).as_bytes());
    });
    let server = server(&upstream);
    let tags = server.get("/api/tags").json();
    let echo = tags["models"].as_array().unwrap().iter().find(|it| it["name"] == "echo/echo-1");
    let echo = echo.unwrap();
    assert_eq!(echo["model"], "echo/echo-1");
    assert_eq!(echo["digest"].as_str().unwrap().len(), 64);
    assert!(!tags.to_string().contains("claude"), "{tags}");
    let shown = server.post("/api/show", &json!({"model": "ollama/llama3.2"})).json();
    assert_eq!(shown, json!({"capabilities": ["tools"], "asked": {"model": "llama3.2"}}));
    let shown = server.post("/api/show", &json!({"name": "llama3.2", "verbose": true})).json();
    assert_eq!(shown["asked"], json!({"name": "llama3.2", "verbose": true}));
    let shown = server.post("/api/show", &json!({"model": "echo/echo-1"})).json();
    assert_eq!(shown["capabilities"], json!(["completion", "embedding"]));
    assert!(server.get("/api/version").json()["version"].is_string());
    assert_eq!(server.get("/api/ps").json(), json!({"models": []}));
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
}

#[test]
fn echo_answers_in_every_form_of_ollama() {
    let server = TestServer::start();
    for (path, field) in TEXTS {
        let mut body = request(path, "echo/echo-1");
        let text = server.post(path, &body).text();
        let parts: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        let texts: Vec<&str> =
            parts.iter().map(|part| part.pointer(field).unwrap().as_str().unwrap()).collect();
        assert_eq!(texts.concat(), "[echo of echo-1] Hi");
        let last = parts.last().unwrap();
        assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(4)));
        body["stream"] = json!(false);
        let whole = server.post(path, &body).json();
        assert_eq!(whole.pointer(field), Some(&json!("[echo of echo-1] Hi")));
        assert_eq!(whole["prompt_eval_count"], 1);
    }
    let body = json!({"model": "echo/echo-1", "input": ["a", "b"]});
    let vectors = server.post("/api/embed", &body).json();
    assert_eq!(vectors["embeddings"].as_array().unwrap().len(), 2);
    let body = json!({"model": "echo/echo-1", "prompt": "a"});
    assert_eq!(server.post("/api/embeddings", &body).json()["embedding"], vectors["embeddings"][0]);
}

#[test]
fn ollama_routes_leave_those_of_the_api_alone() {
    let server = TestServer::start();
    for path in ["/api/health", "/api/flows", "/api/ledger", "/api/keys", "/api/budget", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
        assert_eq!(server.request("HEAD", path, &[], b"").status, 200, "{path}");
    }
    for (method, path) in
        [("POST", "/api/pull"), ("DELETE", "/api/delete"), ("HEAD", "/api/blobs/sha256:a")]
    {
        let refused = server.request(method, path, &[], b"{\"model\":\"x\"}");
        assert_eq!(refused.status, 404, "{path}");
        if method != "HEAD" {
            assert!(refused.json()["error"].as_str().unwrap().contains(path), "{}", refused.text());
        }
    }
    let refused = server.get("/api/chat");
    assert_eq!(refused.status, 405);
    assert!(refused.json()["error"].is_string(), "{}", refused.text());
}

#[test]
fn ollama_routes_need_a_key_and_an_allowed_origin() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new("the-token")));
    let body = request("/api/chat", "echo/echo-1").to_string();
    for (method, path) in [("POST", "/api/chat"), ("POST", "/api/show"), ("GET", "/api/tags")] {
        let refused = server.request(method, path, &[], body.as_bytes());
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.json()["error"].is_string(), "{}", refused.text());
        let key = ("authorization", "Bearer the-token");
        assert_eq!(server.request(method, path, &[key], body.as_bytes()).status, 200, "{path}");
        let foreign = [key, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
        let refused = server.request(method, path, &foreign, body.as_bytes());
        assert_eq!(refused.status, 403, "{path}");
    }
    // A virtual key opens these routes and not the API.
    let headers = [("authorization", "Bearer the-token")];
    let key = server.request("POST", "/api/keys", &headers, br#"{"name":"laptop"}"#).json();
    let key = format!("Bearer {}", key["key"].as_str().unwrap());
    let headers = [("authorization", key.as_str())];
    assert_eq!(server.request("POST", "/api/chat", &headers, body.as_bytes()).status, 200);
    assert_eq!(server.request("GET", "/api/flows", &headers, b"").status, 401);
}
