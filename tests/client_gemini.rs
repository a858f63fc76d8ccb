//! Programs that speak Gemini's own protocol: paths, keys, streams of both forms, and accounting.

use std::io::Write;
use std::time::Duration;

use flowledger::gateway::{ClientPolicy, Target};
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::client_kinds::{head, newest_row, server, server_with};
use crate::clients::Conversation;
use crate::harness::{DEADLINE, Response, TestServer};
use crate::upstream::{STREAM_HEAD, Upstream, json_answer};

const ARRAY_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=UTF-8\r\nconnection: close\r\n\r\n";
const MODEL: &str = "/v1beta/models/gemini-2.5-flash";
/// The ways to ask for a stream: the path, and whether it is an array.
const STREAMS: [(&str, bool); 2] =
    [("streamGenerateContent?alt=sse", false), ("streamGenerateContent", true)];

fn request() -> Value {
    json!({
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {"maxOutputTokens": 100},
    })
}

fn part(text: &str) -> String {
    let content = json!({"parts": [{"text": text}], "role": "model"});
    json!({"candidates": [{"content": content}], "modelVersion": "gemini-2.5-flash"}).to_string()
}

/// The last part: 1,000 tokens in, 100 of them cached, 20 out and 80 thoughts.
fn last() -> String {
    json!({
        "candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 1000, "cachedContentTokenCount": 100, "candidatesTokenCount": 20,
            "thoughtsTokenCount": 80, "totalTokenCount": 1100,
        },
        "modelVersion": "gemini-2.5-flash",
    })
    .to_string()
}

/// Returns a stream of these parts; an open one lacks its end.
fn stream(parts: &[String], is_array: bool, is_open: bool) -> String {
    if !is_array {
        let events = parts.iter().map(|part| format!("data: {part}\r\n\r\n"));
        return events.collect();
    }
    format!("[{}{}", parts.join("\n,\r\n"), if is_open { "" } else { "\n]\n" })
}

fn stream_head(is_array: bool) -> &'static str {
    if is_array { ARRAY_HEAD } else { STREAM_HEAD }
}

fn assert_row(row: &Value, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(row[*name], *value, "{name}: {row}");
    }
}

fn ask(server: &TestServer, action: &str) -> Response {
    server.post(&format!("{MODEL}:{action}"), &request())
}

#[test]
fn gemini_requests_are_forwarded_with_the_providers_key() {
    let upstream = Upstream::saying(json_answer("200 OK", &last()));
    let server = server(&upstream);
    let headers = [("x-goog-api-key", "key-of-client"), ("x-goog-api-client", "google-genai/1")];
    let body = request().to_string();
    for (at, path) in [
        "/v1beta/models/gemini-2.5-flash:generateContent?key=query-key&x=1",
        "/gemini/v1beta/models/gemini%2Fgemini-2.5-flash:generateContent?x=1",
        "/v1/models/gemini/gemini-2.5-flash:generateContent?x=1",
    ]
    .into_iter()
    .enumerate()
    {
        let response = server.request("POST", path, &headers, body.as_bytes());
        assert_eq!((response.status, response.text()), (200, last()), "{path}");
        let head = head(&upstream);
        let target = "post /v1beta/models/gemini-2.5-flash:generatecontent?x=1 http/1.1\n";
        assert!(head.starts_with(target), "{head}");
        assert!(head.contains("x-goog-api-key: test-key\n"), "{head}");
        assert!(head.contains("x-goog-api-client: google-genai/1\n"), "{head}");
        assert!(!head.contains("query-key") && !head.contains("anthropic"), "{head}");
        assert_eq!(upstream.requests().recv_timeout(DEADLINE).unwrap(), body);
        assert_row(
            &newest_row(&server, at + 1),
            &[
                ("status", json!("SUCCESS")),
                ("provider", json!("gemini")),
                ("model_used", json!("gemini-2.5-flash")),
                ("usage_source", json!("provider")),
                ("input_tokens", json!(1000)),
                ("cached_input_tokens", json!(100)),
                ("output_tokens", json!(100)),
                ("reasoning_tokens", json!(80)),
            ],
        );
    }
}

#[test]
fn gemini_streams_pass_on_piece_by_piece() {
    for (action, is_array) in STREAMS {
        let (go, wait) = crossbeam_channel::bounded::<()>(0);
        let all = stream(&[part("a"), part("[\"b\\"), last()], is_array, false);
        let (first, rest) = all.split_at(all.find("[\\\"b").unwrap());
        let (first, rest) = (first.to_owned(), rest.to_owned());
        let upstream = Upstream::start(move |_, stream| {
            stream.write_all(stream_head(is_array).as_bytes()).unwrap();
            stream.write_all(first.as_bytes()).unwrap();
            // The second part is split.
            wait.recv_timeout(DEADLINE).unwrap();
            let _ = stream.write_all(rest.as_bytes());
        });
        let server = server(&upstream);
        let mut conversation = Conversation::with(&server);
        conversation.ask(&format!("{MODEL}:{action}"), &request().to_string());
        let head = conversation.head();
        assert_eq!(head[0], "HTTP/1.1 200 OK", "{head:?}");
        let begin = conversation.chunk();
        assert_eq!(begin.trim_end(), stream(&[part("a")], is_array, true).trim_end());
        go.send_timeout((), DEADLINE).unwrap();
        let found = begin + &conversation.chunks();
        assert_eq!(found.trim_end(), all.trim_end());
        if is_array {
            let elements: Vec<Value> = serde_json::from_str(&found).unwrap();
            assert_eq!(elements.len(), 3);
        }
        assert_row(
            &newest_row(&server, 1),
            &[("status", json!("SUCCESS")), ("output_tokens", json!(100))],
        );
    }
}

#[test]
fn a_broken_gemini_stream_ends_with_an_error() {
    for (action, is_array) in STREAMS {
        // Clients parse each line, so comments and empty lines are left out.
        let comment = if is_array { "" } else { ": comment\n\n" };
        let parts = stream(&[part("Once"), part(" upon")], is_array, true);
        let upstream = Upstream::saying(format!("{}{comment}{parts}", stream_head(is_array)));
        let server = server(&upstream);
        let response = ask(&server, action);
        assert_eq!(response.status, 200);
        let text = response.text();
        let error = if is_array {
            let elements: Vec<Value> = serde_json::from_str(&text).unwrap();
            assert_eq!(elements.len(), 3, "{text}");
            elements[2].clone()
        } else {
            assert!(!text.contains("comment"), "{text}");
            let last = text.trim_end().rsplit("data: ").next().unwrap();
            serde_json::from_str(last).unwrap()
        };
        assert_eq!(error["error"]["code"], 502, "{text}");
        assert_eq!(error["error"]["status"], "UNAVAILABLE", "{text}");
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

#[test]
fn errors_of_gemini_pass_on_unchanged() {
    let error = r#"{"error":{"code":429,"message":"slow down","status":"RESOURCE_EXHAUSTED"}}"#;
    let upstream = Upstream::saying(json_answer("429 Too Many Requests", error));
    let server = server(&upstream);
    let refused = ask(&server, "generateContent");
    assert_eq!((refused.status, refused.text().as_str()), (429, error));
    for (action, is_array) in STREAMS {
        // Before any output, and after some.
        for parts in [vec![error.to_owned()], vec![part("a"), error.to_owned()]] {
            let all = stream(&parts, is_array, false);
            let upstream = Upstream::saying(format!("{}{all}", stream_head(is_array)));
            let server = crate::client_kinds::server(&upstream);
            let response = ask(&server, action);
            assert_eq!(response.text().trim_end(), all.trim_end());
            assert_row(&newest_row(&server, 1), &[("status", json!("FAILED"))]);
        }
    }
}

#[test]
fn a_blocked_prompt_is_an_answer_for_the_client() {
    let blocked = json!({
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
    });
    let upstream = Upstream::saying(json_answer("200 OK", &blocked.to_string()));
    let server = server(&upstream);
    let response = ask(&server, "generateContent");
    assert_eq!((response.status, response.json()), (200, blocked));
    assert_row(
        &newest_row(&server, 1),
        &[("status", json!("SUCCESS")), ("input_tokens", json!(9)), ("output_tokens", json!(0))],
    );
}

#[test]
fn a_disconnect_from_a_gemini_stream_is_recorded() {
    for (action, is_array) in STREAMS {
        let (_end, ended) = crossbeam_channel::bounded::<()>(0);
        let parts = stream(&[part("Once"), part(" upon")], is_array, true);
        let upstream = Upstream::start(move |_, stream| {
            let _ = stream.write_all(format!("{}{parts}", stream_head(is_array)).as_bytes());
            while ended.recv_timeout(Duration::from_millis(20)).is_err_and(|it| it.is_timeout()) {
                let more = if is_array { " " } else { ": \n\n" };
                if stream.write_all(more.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let server = server_with(&upstream, |config| {
            let policy = ClientPolicy { drain_max: None, ..ClientPolicy::default() };
            config.gateway.policies.insert("gemini".into(), policy);
        });
        let mut conversation = Conversation::with(&server);
        conversation.ask(&format!("{MODEL}:{action}"), &request().to_string());
        conversation.head();
        while !conversation.chunk().contains("upon") {}
        drop(conversation);
        assert_row(
            &newest_row(&server, 1),
            &[
                ("status", json!("CANCELLED")),
                ("usage_source", json!("estimated")),
                ("output_tokens", json!(2)),
            ],
        );
    }
}

#[test]
fn token_counts_of_gemini_are_free() {
    let upstream = Upstream::saying(json_answer("200 OK", r#"{"totalTokens": 7}"#));
    let server = server(&upstream);
    let body = json!({"generateContentRequest": {
        "model": "models/gemini/gemini-2.5-flash",
        "contents": [{"parts": [{"text": "Hi you"}]}],
    }});
    let response = server.post("/v1beta/models/gemini/gemini-2.5-flash:countTokens", &body);
    assert_eq!((response.status, response.text().as_str()), (200, r#"{"totalTokens": 7}"#));
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(sent.contains("\"models/gemini-2.5-flash\""), "{sent}");
    let counted = server.post("/v1beta/models/echo/echo-1:countTokens", &body);
    assert_eq!(counted.json(), json!({"totalTokens": 2}));
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
}

#[test]
fn embeddings_of_gemini_have_a_row() {
    let upstream = Upstream::start(|body, stream| {
        let usage = json!({"promptTokenCount": 5});
        let answer = match body.contains("requests") {
            true => json!({"embeddings": [{"values": [0.5]}], "usageMetadata": usage}),
            // Older versions count nothing.
            false => json!({"embedding": {"values": [0.5]}}),
        };
        let _ = stream.write_all(json_answer("200 OK", &answer.to_string()).as_bytes());
    });
    let server = server(&upstream);
    let content = json!({"parts": [{"text": "Hi"}]});
    let batch = json!({"requests": [{"model": "models/gemini-embedding-001", "content": content}]});
    let path = "/v1beta/models/gemini-embedding-001";
    let response = server.post(&format!("{path}:batchEmbedContents"), &batch);
    assert_eq!(response.status, 200, "{}", response.text());
    let expected = [
        ("status", json!("SUCCESS")),
        ("usage_source", json!("provider")),
        ("input_tokens", json!(5)),
        ("output_tokens", json!(0)),
    ];
    assert_row(&newest_row(&server, 1), &expected);
    let response = server.post(&format!("{path}:embedContent"), &json!({"content": content}));
    assert_eq!(response.status, 200, "{}", response.text());
    let expected = [("usage_source", json!("estimated")), ("output_tokens", json!(0))];
    assert_row(&newest_row(&server, 2), &expected);
}

#[test]
fn echo_answers_in_every_form_of_gemini() {
    let server = TestServer::start();
    let path = "/v1beta/models/echo/echo-1";
    let whole = server.post(&format!("{path}:generateContent"), &request()).json();
    let text = |document: &Value| {
        let part = &document["candidates"][0]["content"]["parts"][0]["text"];
        part.as_str().unwrap().to_owned()
    };
    assert_eq!(text(&whole), "[echo of echo-1] Hi");
    assert_eq!(whole["usageMetadata"]["promptTokenCount"], 1);
    let streamed = server.post(&format!("{path}:streamGenerateContent?alt=sse"), &request());
    let events = streamed.text();
    let events: Vec<Value> =
        events.split("data: ").skip(1).map(|it| serde_json::from_str(it).unwrap()).collect();
    let array = server.post(&format!("{path}:streamGenerateContent"), &request());
    let elements: Vec<Value> = serde_json::from_str(&array.text()).unwrap();
    for parts in [&events, &elements] {
        let texts: Vec<String> = parts.iter().map(text).collect();
        assert_eq!(texts.concat(), "[echo of echo-1] Hi");
        let last = parts.last().unwrap();
        assert_eq!(last["candidates"][0]["finishReason"], "STOP");
        assert_eq!(last["usageMetadata"]["candidatesTokenCount"], 4);
    }
    let batch = json!({"requests": [{"content": {"parts": [{"text": "a"}]}}, {"content": {"parts": [{"text": "b"}]}}]});
    let vectors = server.post(&format!("{path}:batchEmbedContents"), &batch).json();
    assert_eq!(vectors["embeddings"].as_array().unwrap().len(), 2);
    assert_ne!(vectors["embeddings"][0], vectors["embeddings"][1]);
    let one = server.post(&format!("{path}:embedContent"), &batch["requests"][0]).json();
    assert_eq!(one["embedding"], vectors["embeddings"][0]);
}

#[test]
fn gemini_lists_the_models_that_it_can_use() {
    let upstream = Upstream::saying("");
    let server = server_with(&upstream, |config| {
        let target = |provider: &str, model: &str| {
            vec![Target { provider: provider.into(), model: model.into() }]
        };
        config.gateway.aliases.insert("fast".into(), target("gemini", "gemini-2.5-flash"));
        config.gateway.aliases.insert("other".into(), target("anthropic", "claude-haiku-4-5"));
    });
    let models = server.get("/v1beta/models?pageSize=1000").json();
    let names: Vec<&str> = models["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    for name in ["fast", "gemini/gemini-2.5-flash", "echo/echo-1", "other"] {
        let name = format!("models/{name}");
        assert!(names.contains(&name.as_str()), "{name} is not in {names:?}");
    }
    let first = server.get("/v1beta/models?pageSize=1").json();
    assert_eq!(first["models"].as_array().unwrap().len(), 1);
    let token = first["nextPageToken"].as_str().unwrap();
    let second = server.get(&format!("/v1beta/models?pageSize=1&pageToken={token}")).json();
    assert_eq!(second["models"][0], models["models"][1]);
    for name in ["gemini-2.5-flash", "gemini/gemini-2.5-flash", "fast"] {
        let model = server.get(&format!("/v1beta/models/{name}"));
        assert_eq!(model.json()["name"], format!("models/{name}"), "{}", model.text());
    }
    let wrong = server.post("/v1beta/models/other:embedContent", &request());
    let advice = "does not support /v1beta/models/MODEL:embedContent";
    assert!(wrong.text().contains(advice), "{}", wrong.text());
    let unknown = server.get("/v1beta/models/another");
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["status"], "NOT_FOUND");
}

#[test]
fn gemini_clients_need_a_key_if_there_is_a_token() {
    let server = TestServer::start_with(|config| config.token = Some(Secret::new("the-token")));
    let path = "/v1beta/models/echo/echo-1:generateContent";
    let body = request().to_string();
    let refused = server.request("POST", path, &[], body.as_bytes());
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["error"]["status"], "UNAUTHENTICATED");
    let with_query = format!("{path}?key=the-token");
    for (path, headers) in
        [(path, &[("x-goog-api-key", "the-token")][..]), (with_query.as_str(), &[])]
    {
        let response = server.request("POST", path, headers, body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let unsupported =
        server.request("POST", "/v1beta/models/x:predict?key=the-token", &[], body.as_bytes());
    assert_eq!(unsupported.status, 404);
    assert!(unsupported.text().contains(":generateContent"), "{}", unsupported.text());
}
