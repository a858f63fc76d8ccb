//! OpenAI's Responses API: forwarding, accounting, stored objects and background responses.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use flowledger::config::Config;
use flowledger::gateway::Target;
use flowledger::providers::Kind;
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::binary::Home;
use crate::clients::{rows, server, server_with};
use crate::harness::{DEADLINE, Response, TestServer, add_provider, eventually};
use crate::upstream::{STREAM_HEAD, Upstream, json_answer};

const RESPONSES: &str = "/v1/responses";

fn request(fields: Value) -> Value {
    let mut body = json!({"model": "openai/gpt-4o-mini", "input": "Hi"});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn response(id: &str, status: &str, usage: Value) -> Value {
    let text = json!({"type": "output_text", "text": "Hello", "annotations": []});
    let message = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [text]});
    let output = if status == "completed" { json!([message]) } else { json!([]) };
    json!({
        "id": id, "object": "response", "created_at": 1, "status": status, "error": null,
        "model": "gpt-4o-mini-2024-07-18", "output": output, "usage": usage,
        "service_tier": "default",
    })
}

fn counted(input: u64, output: u64) -> Value {
    json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input + output,
    })
}

fn event(kind: &str, fields: Value) -> String {
    let mut data = fields;
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}

fn created(id: &str) -> String {
    event("response.created", json!({"response": response(id, "in_progress", Value::Null)}))
}

fn completed(id: &str) -> String {
    event("response.completed", json!({"response": response(id, "completed", counted(1000, 100))}))
}

fn text(delta: &str) -> String {
    event("response.output_text.delta", json!({"delta": delta, "output_index": 0}))
}

/// An upstream that sends these answers, one for each request.
fn answering(answers: Vec<String>) -> Upstream {
    let next = AtomicUsize::new(0);
    Upstream::start(move |_, stream| {
        let at = next.fetch_add(1, Ordering::SeqCst);
        let answer = answers.get(at).unwrap_or_else(|| panic!("request {at} was not expected"));
        let _ = stream.write_all(answer.as_bytes());
    })
}

fn ok(document: &Value) -> String {
    json_answer("200 OK", &document.to_string())
}

fn with_token(config: &mut Config) {
    config.token = Some(Secret::new("admin-token"));
}

/// Sends a request with a key.
fn send(server: &TestServer, key: &str, method: &str, path: &str, body: &str) -> Response {
    let authorization = format!("Bearer {key}");
    server.request(method, path, &[("authorization", &authorization)], body.as_bytes())
}

fn new_key(server: &TestServer, name: &str) -> String {
    let body = json!({"name": name}).to_string();
    let made = send(server, "admin-token", "POST", "/api/keys", &body);
    assert_eq!(made.status, 201, "{}", made.text());
    made.json()["key"].as_str().unwrap().to_owned()
}

fn rows_of(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger").json()["items"].as_array().unwrap().clone();
    rows.into_iter().rev().collect()
}

#[test]
fn a_response_passes_byte_for_byte_and_is_booked() {
    let answer = response("resp_1", "completed", counted(1000, 100)).to_string();
    let upstream = Upstream::saying(json_answer("200 OK", &answer));
    let server = server(&upstream);
    let body = "{ \"input\":[{\"type\":\"reasoning\",\"encrypted_content\":\"gAAA\",\"new\":1.00}],\n\"model\": \"openai\\/gpt-4o-mini\" ,\"unknown\":{\"z\":1}}";
    let headers = [
        ("originator", "codex_cli_rs"),
        ("session_id", "s-1"),
        ("x-codex-turn-state", "t-1"),
        ("openai-beta", "responses=experimental"),
    ];
    let got = server.request("POST", RESPONSES, &headers, body.as_bytes());
    assert_eq!((got.status, got.text()), (200, answer));
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert_eq!(sent, body.replace("\"openai\\/gpt-4o-mini\"", "\"gpt-4o-mini\""));
    let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
    assert!(head.starts_with("post /v1/responses http"), "{head}");
    for (name, value) in headers {
        assert!(head.contains(&format!("{name}: {value}\n")), "{head}");
    }
    let row = &rows(&server, 1)[0];
    assert_eq!(row["status"], "SUCCESS");
    assert_eq!(row["model_used"], "gpt-4o-mini-2024-07-18");
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(1000), &json!(100)));
    assert_eq!(row["total_cost_usd"], json!(0.00021));
}

#[test]
fn a_streamed_response_passes_event_by_event() {
    let stream = [created("resp_1"), text("Hel"), text("lo"), completed("resp_1")].concat();
    let unknown = event("response.future", json!({"x": 1.0}));
    let all = format!("{unknown}{stream}");
    let head =
        STREAM_HEAD.replace("\r\n\r\n", "\r\nx-codex-turn-state: t-2\r\nx-models-etag: e\r\n\r\n");
    let upstream = Upstream::saying(format!("{head}{all}"));
    let server = server(&upstream);
    let got = server.post(RESPONSES, &request(json!({"stream": true})));
    assert_eq!(got.text(), all);
    assert_eq!(got.header("x-codex-turn-state"), Some("t-2"));
    assert_eq!(got.header("x-models-etag"), Some("e"));
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(1000), &json!(100)));
    assert!(row["first_token_ms"].is_u64(), "{row}");
    // The stream did not request usage, which chat completions need.
    let sent = upstream.requests().recv_timeout(DEADLINE).unwrap();
    assert!(!sent.contains("stream_options"), "{sent}");
}

#[test]
fn a_stream_without_its_end_fails_with_estimates() {
    let stream = format!("{STREAM_HEAD}{}{}", created("resp_1"), text("Hello there"));
    let upstream = Upstream::saying(stream);
    let server = server(&upstream);
    let got = server.post(RESPONSES, &request(json!({"stream": true}))).text();
    assert!(got.contains("Hello there"), "{got}");
    assert!(got.contains("event: error\ndata: {\"type\":\"error\",\"code\":"), "{got}");
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["status"], &row["usage_source"]), (&json!("FAILED"), &json!("estimated")));
    assert_eq!(row["output_tokens"], 2);
}

#[test]
fn a_failed_response_keeps_its_tokens_and_falls_back() {
    let mut failed = response("resp_1", "failed", counted(1000, 100));
    failed["error"] = json!({"code": "server_error", "message": "The model crashed."});
    let failed = event("response.failed", json!({"response": failed}));
    let streams = [created("resp_1") + &failed, completed("resp_2")];
    let upstream = answering(streams.iter().map(|it| format!("{STREAM_HEAD}{it}")).collect());
    let server = server_with(&upstream, |config| {
        let target = |model: &str| Target { provider: "openai".into(), model: model.into() };
        let targets = vec![target("gpt-4o-mini"), target("gpt-4o")];
        config.gateway.aliases.insert("either".into(), targets);
    });
    let got = server.post(RESPONSES, &request(json!({"model": "either", "stream": true})));
    assert_eq!(got.text(), streams[1]);
    let rows = rows(&server, 2);
    assert_eq!(rows[0]["status"], "FAILED");
    assert_eq!((&rows[0]["input_tokens"], &rows[0]["output_tokens"]), (&json!(1000), &json!(100)));
    assert!(rows[0]["error_message"].as_str().unwrap().contains("The model crashed."));
    assert_eq!(rows[1]["status"], "SUCCESS");
}

#[test]
fn a_response_with_a_paid_tool_has_no_known_cost() {
    let mut answer = response("resp_1", "completed", counted(1000, 100));
    answer["output"] = json!([{"type": "web_search_call", "id": "ws_1", "status": "completed"}]);
    let upstream = Upstream::saying(ok(&answer));
    let server = server(&upstream);
    assert_eq!(server.post(RESPONSES, &request(json!({}))).status, 200);
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["total_cost_usd"], &row["cost_note"]), (&Value::Null, &json!("tool fee")));
    assert_eq!(row["input_tokens"], 1000);
}

#[test]
fn echo_answers_with_all_events_of_a_response() {
    let server = TestServer::start();
    let body = json!({"model": "echo/echo-1", "instructions": "s", "input": "Hi you"});
    let got = server.post(RESPONSES, &body).json();
    assert_eq!((&got["object"], &got["status"]), (&json!("response"), &json!("completed")));
    let said = got["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    assert!(said.contains("Hi you"), "{said}");
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let stream = server.post(RESPONSES, &streamed).text();
    let events: Vec<Value> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let mut kinds: Vec<&str> = events.iter().map(|it| it["type"].as_str().unwrap()).collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let numbers: Vec<u64> =
        events.iter().map(|it| it["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let deltas = events.iter().filter(|it| it["type"] == "response.output_text.delta");
    let text: String = deltas.map(|it| it["delta"].as_str().unwrap()).collect();
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text.as_str());
    assert!(last["response"]["usage"]["output_tokens"].as_u64() > Some(0));
    rows(&server, 2);
}

#[test]
fn a_websocket_is_refused_so_that_codex_falls_back() {
    let server = TestServer::start();
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let refused = server.request("GET", RESPONSES, &upgrade, b"");
    assert_eq!((refused.status, refused.error_code()), (426, "upgrade_required".into()));
    assert_eq!(server.get(RESPONSES).status, 405);
}

#[test]
fn compaction_and_token_counts_have_their_own_paths() {
    let compacted = json!({
        "id": "resp_1", "object": "response.compaction", "created_at": 1,
        "output": [{"type": "compaction", "encrypted_content": "gAAA"}],
        "usage": counted(1000, 100),
    });
    let count = json!({"object": "response.input_tokens", "input_tokens": 11});
    let upstream = answering(vec![ok(&compacted), ok(&count)]);
    let server = server(&upstream);
    let got = server.post("/v1/responses/compact", &request(json!({})));
    assert_eq!(got.json(), compacted);
    let got = server.post("/v1/responses/input_tokens", &request(json!({})));
    assert_eq!(got.json(), count);
    for path in ["post /v1/responses/compact", "post /v1/responses/input_tokens"] {
        let head = upstream.heads().recv_timeout(DEADLINE).unwrap();
        assert!(head.starts_with(path), "{head}");
    }
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(1000), &json!(100)));
    assert_eq!(row["total_cost_usd"], json!(0.00021));
}

#[test]
fn requests_about_a_response_go_to_its_provider() {
    let answer = response("resp_1", "completed", counted(1000, 100));
    let items = json!({"object": "list", "data": [], "has_more": false});
    let deleted = json!({"id": "resp_1", "object": "response", "deleted": true});
    let other = answering(vec![ok(&answer), ok(&answer), ok(&items), ok(&deleted)]);
    let upstream = answering(vec![]);
    let url = other.url().to_owned();
    let server = server_with(&upstream, move |config| {
        add_provider(config, "other", Kind::OpenAi, &url);
    });
    let made = server.post(RESPONSES, &request(json!({"model": "other/gpt-4o-mini"})));
    assert_eq!(made.status, 200, "{}", made.text());
    let got = server.get("/v1/responses/resp_1?include=a&include=b");
    assert_eq!((got.status, got.json()), (200, answer));
    let got = server.get("/v1/responses/resp_1/input_items?limit=5");
    assert_eq!((got.status, got.json()), (200, items));
    let got = server.request("DELETE", "/v1/responses/resp_1", &[], b"");
    assert_eq!((got.status, got.json()), (200, deleted));
    for line in [
        "post /v1/responses http",
        "get /v1/responses/resp_1?include=a&include=b http",
        "get /v1/responses/resp_1/input_items?limit=5 http",
        "delete /v1/responses/resp_1 http",
    ] {
        let head = other.heads().recv_timeout(DEADLINE).unwrap();
        assert!(head.starts_with(line), "{head}");
        assert!(head.contains("authorization: bearer test-key\n"), "{head}");
    }
    assert_eq!(upstream.count(), 0);
    // These requests are free.
    assert_eq!(rows(&server, 1).len(), 1);
}

#[test]
fn a_key_sees_only_its_own_objects() {
    let answer = response("resp_1", "completed", counted(1000, 100));
    let conversation = json!({"id": "conv_1", "object": "conversation", "created_at": 1});
    let upstream = answering(vec![
        ok(&answer),
        ok(&conversation),
        ok(&answer),
        ok(&conversation),
        ok(&answer),
        json_answer("404 Not Found", r#"{"error":{"message":"gone"}}"#),
    ]);
    let server = server_with(&upstream, with_token);
    let (mine, others) = (new_key(&server, "mine"), new_key(&server, "others"));
    let body = request(json!({})).to_string();
    assert_eq!(send(&server, &mine, "POST", RESPONSES, &body).status, 200);
    let made = send(&server, &mine, "POST", "/v1/conversations", "{}");
    assert_eq!((made.status, made.json()), (200, conversation));
    let before = upstream.count();
    for key in [&*others, "admin-token"] {
        for (method, path, body) in [
            ("GET", "/v1/responses/resp_1", ""),
            ("DELETE", "/v1/responses/resp_1", ""),
            ("POST", "/v1/responses/resp_1/cancel", ""),
            ("GET", "/v1/responses/resp_1/input_items", ""),
            ("GET", "/v1/conversations/conv_1", ""),
            ("POST", "/v1/conversations/conv_1/items", "{}"),
            ("POST", RESPONSES, &request(json!({"previous_response_id": "resp_1"})).to_string()),
            ("POST", RESPONSES, &request(json!({"conversation": {"id": "conv_1"}})).to_string()),
            (
                "POST",
                "/v1/responses/input_tokens",
                &request(json!({"previous_response_id": "resp_1"})).to_string(),
            ),
        ] {
            let refused = send(&server, key, method, path, body);
            assert_eq!((refused.status, refused.error_code()), (404, "not_found".into()), "{path}");
            assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
        }
    }
    let unknown = send(&server, &others, "GET", "/v1/responses/resp_9", "");
    assert_eq!(unknown.status, 404);
    assert_eq!(send(&server, "admin-token", "GET", "/v1/responses/..%2fx", "").status, 404);
    assert_eq!(upstream.count(), before);
    assert_eq!(send(&server, &mine, "GET", "/v1/responses/resp_1", "").status, 200);
    assert_eq!(send(&server, &mine, "GET", "/v1/conversations/conv_1", "").status, 200);
    let next = request(json!({"previous_response_id": "resp_1"})).to_string();
    assert_eq!(send(&server, &mine, "POST", RESPONSES, &next).status, 200);
    // An id that no key created may be the account's own.
    let got = send(&server, "admin-token", "GET", "/v1/responses/resp_9", "");
    assert_eq!((got.status, got.text().contains("gone")), (404, true));
}

#[test]
fn a_response_that_is_not_stored_is_not_remembered() {
    let answer = response("resp_1", "completed", counted(1000, 100));
    let upstream = answering(vec![ok(&answer)]);
    let server = server_with(&upstream, with_token);
    let key = new_key(&server, "mine");
    let body = request(json!({"store": false})).to_string();
    assert_eq!(send(&server, &key, "POST", RESPONSES, &body).status, 200);
    assert_eq!(send(&server, &key, "GET", "/v1/responses/resp_1", "").status, 404);
}

#[test]
fn earlier_turns_count_in_the_reservation() {
    let answer = response("resp_1", "completed", counted(1000, 100));
    let upstream = answering(vec![ok(&answer), ok(&answer), ok(&answer)]);
    let server = server(&upstream);
    let set = |limit: u64| {
        let budget = json!({"name": "b", "per": "day", "limitTokens": limit});
        let set = server.request(
            "PUT",
            "/api/budget",
            &[],
            json!({"budgets": [budget]}).to_string().as_bytes(),
        );
        assert_eq!(set.status, 200, "{}", set.text());
    };
    let ask = |fields: Value| {
        let mut fields = fields;
        fields["max_output_tokens"] = 100.into();
        server.post(RESPONSES, &request(fields)).status
    };
    assert_eq!(ask(json!({})), 200);
    rows(&server, 1);
    // 1,100 tokens are used, and the earlier turns have as many.
    set(2 * 1100 + 100);
    assert_eq!(ask(json!({"previous_response_id": "resp_1"})), 402);
    set(2 * 1100 + 400);
    assert_eq!(ask(json!({"previous_response_id": "resp_1"})), 200);
    rows(&server, 3);
    set(900_000);
    assert_eq!(ask(json!({"previous_response_id": "resp_of_another_program"})), 402);
    assert_eq!(ask(json!({"conversation": "conv_of_another_program"})), 402);
}

#[test]
fn a_background_response_is_booked_once_when_it_is_read() {
    let queued = response("resp_1", "queued", Value::Null);
    let running = response("resp_1", "in_progress", Value::Null);
    let done = response("resp_1", "completed", counted(1000, 100));
    let upstream = answering(vec![ok(&queued), ok(&running), ok(&done), ok(&done), ok(&done)]);
    let mut server = server(&upstream);
    let budget = json!({"name": "b", "per": "day", "limitTokens": 5000});
    let set = json!({"budgets": [budget]}).to_string();
    assert_eq!(server.request("PUT", "/api/budget", &[], set.as_bytes()).status, 200);
    let body = request(json!({"background": true, "max_output_tokens": 200}));
    assert_eq!(server.post(RESPONSES, &body).json(), queued);
    assert_eq!(server.get("/v1/responses/resp_1").json(), running);
    let used = |server: &TestServer| {
        server.get("/api/budget").json()["budgets"][0]["state"]["used"].as_i64().unwrap()
    };
    assert!(used(&server) > 200);
    assert_eq!(rows_of(&server)[0]["status"], "PENDING");
    server.start_again();
    assert_eq!(rows_of(&server)[0]["status"], "PENDING");
    for _ in 0..3 {
        assert_eq!(server.get("/v1/responses/resp_1").json(), done);
    }
    let row = &rows(&server, 1)[0];
    assert_eq!(row["status"], "SUCCESS");
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(1000), &json!(100)));
    assert_eq!(row["total_cost_usd"], json!(0.00021));
    assert_eq!(row["latency_ms"], Value::Null);
    assert_eq!(row["model_used"], "gpt-4o-mini-2024-07-18");
    assert_eq!(used(&server), 1100);
}

#[test]
fn verify_accepts_a_background_response_that_is_not_over() {
    let queued = response("resp_1", "queued", Value::Null);
    let upstream = answering(vec![ok(&queued)]);
    let mut server = server(&upstream);
    assert_eq!(server.post(RESPONSES, &request(json!({"background": true}))).json(), queued);
    server.stop();
    let ended = Home::new().run(&["verify", "--data", server.data().to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let note = "note: 1 background calls whose end was not read yet";
    assert!(ended.stdout.contains(note), "{}", ended.stdout);
    assert!(!ended.stdout.contains("PENDING"), "{}", ended.stdout);
}

#[test]
fn a_background_response_of_a_known_id_has_an_unknown_end() {
    let queued = response("resp_1", "queued", Value::Null);
    let done = response("resp_1", "completed", counted(1000, 100));
    // A provider that repeats its answer to a repeated request.
    let upstream = answering(vec![ok(&queued), ok(&queued), ok(&done)]);
    let server = server(&upstream);
    for _ in 0..2 {
        assert_eq!(server.post(RESPONSES, &request(json!({"background": true}))).json(), queued);
    }
    assert_eq!(server.get("/v1/responses/resp_1").json(), done);
    let rows = rows(&server, 2);
    assert_eq!((&rows[0]["status"], &rows[1]["status"]), (&json!("SUCCESS"), &json!("UNKNOWN")));
}

#[test]
fn parallel_reads_book_a_background_response_once() {
    let queued = response("resp_1", "queued", Value::Null);
    let done = response("resp_1", "completed", counted(1000, 100));
    let answers = [vec![ok(&queued)], vec![ok(&done); 8]].concat();
    let upstream = answering(answers);
    let server = server(&upstream);
    server.post(RESPONSES, &request(json!({"background": true})));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(server.get("/v1/responses/resp_1").status, 200));
        }
    });
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["status"], &row["input_tokens"]), (&json!("SUCCESS"), &json!(1000)));
}

#[test]
fn a_cancelled_background_response_is_booked_as_cancelled() {
    let queued = response("resp_1", "queued", Value::Null);
    let cancelled = response("resp_1", "cancelled", counted(1000, 7));
    let upstream = answering(vec![ok(&queued), ok(&cancelled)]);
    let server = server(&upstream);
    server.post(RESPONSES, &request(json!({"background": true})));
    let got = server.post("/v1/responses/resp_1/cancel", &json!({}));
    assert_eq!((got.status, got.json()), (200, cancelled));
    let row = &rows(&server, 1)[0];
    assert_eq!((&row["status"], &row["output_tokens"]), (&json!("CANCELLED"), &json!(7)));
}

#[test]
fn a_background_stream_that_breaks_is_booked_later() {
    let broken = format!("{STREAM_HEAD}{}{}", created("resp_1"), text("Hel"));
    let rest = format!("{STREAM_HEAD}{}{}", text("lo"), completed("resp_1"));
    let whole = format!("{STREAM_HEAD}{}{}", created("resp_2"), completed("resp_2"));
    let upstream = answering(vec![broken, rest, whole]);
    let server = server(&upstream);
    let body = request(json!({"background": true, "stream": true}));
    assert!(server.post(RESPONSES, &body).text().contains("Hel"));
    assert_eq!(rows_of(&server)[0]["status"], "PENDING");
    let got = server.get("/v1/responses/resp_1?stream=true&starting_after=1").text();
    assert_eq!(got, format!("{}{}", text("lo"), completed("resp_1")));
    assert_eq!(rows(&server, 1)[0]["input_tokens"], 1000);
    // A stream that is read to its end needs no second read.
    assert!(server.post(RESPONSES, &body).text().contains("response.completed"));
    assert_eq!(rows(&server, 2)[1]["status"], "SUCCESS");
}

#[test]
fn a_background_response_that_is_never_read_frees_its_reservation() {
    let queued = response("resp_1", "queued", Value::Null);
    let upstream = answering(vec![ok(&queued)]);
    let mut server = server(&upstream);
    let budget = json!({"name": "b", "per": "month", "limitTokens": 5000});
    let set = json!({"budgets": [budget]}).to_string();
    assert_eq!(server.request("PUT", "/api/budget", &[], set.as_bytes()).status, 200);
    server.post(RESPONSES, &request(json!({"background": true, "max_output_tokens": 200})));
    server.stop();
    let database = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    let day = 26 * 60 * 60 * 1000;
    database.execute("UPDATE stored_objects SET created_ms = created_ms - ?1", [day]).unwrap();
    drop(database);
    server.start_again();
    let row = &rows(&server, 1)[0];
    assert_eq!(row["status"], "UNKNOWN");
    assert!(row["error_message"].as_str().unwrap().contains("was not read within"), "{row}");
    eventually("the reservation is freed", || {
        server.get("/api/budget").json()["budgets"][0]["state"]["used"] == json!(0)
    });
}
