//! Cached answers for clients: reused byte for byte if the request allows it, and recorded in the
//! ledger.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use flowledger::config::Config;
use flowledger::gateway::{ClientPolicy, Target};
use flowledger::providers::{Kind, Rate};
use flowledger::secret::Secret;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{STREAM_HEAD, Upstream, completion, delta, json_answer};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

/// A server whose providers `openai` and `anthropic` are the upstream.
fn server_with(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> TestServer {
    let url = upstream.url().to_owned();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, &url);
        change(config);
    })
}

fn server(upstream: &Upstream) -> TestServer {
    server_with(upstream, |_| {})
}

fn chat(text: &str, is_streamed: bool) -> Value {
    json!({"model": "gpt-4o-mini", "stream": is_streamed, "messages": [{"role": "user", "content": text}]})
}

/// Sends a request that accepts a cached answer of up to an hour.
fn ask_with(server: &TestServer, path: &str, body: &Value, headers: &[(&str, &str)]) -> Response {
    let headers = [&[("x-flowledger-cache", "3600")], headers].concat();
    let response = server.request("POST", path, &headers, body.to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

fn ask(server: &TestServer, body: &Value) -> Response {
    ask_with(server, CHAT, body, &[])
}

fn was_cached(response: &Response) -> bool {
    match response.header("x-flowledger-cached") {
        Some("true") => true,
        Some("false") => false,
        other => panic!("{other:?}"),
    }
}

/// Returns all rows, oldest first, once there are `count` and none is pending.
fn rows(server: &TestServer, count: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    eventually("the ledger has its rows", || {
        rows = server.get("/api/ledger").json()["items"].as_array().unwrap().clone();
        rows.reverse();
        rows.len() == count && rows.iter().all(|row| row["status"] != "PENDING")
    });
    rows
}

fn gzip(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(text.as_bytes(), flate2::Compression::fast());
    encoder.read_to_end(&mut bytes).unwrap();
    bytes
}

/// An upstream that compresses its answers, whatever the request accepts.
fn compressing(answer: &str, coding: &str, is_compressed: bool) -> Upstream {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head: Vec<&str> =
        head.split("\r\n").filter(|line| !line.starts_with("content-length")).collect();
    let head = format!("{}\r\ncontent-encoding: {coding}\r\n\r\n", head.join("\r\n"));
    let body = if is_compressed { gzip(body) } else { b"\x0b\x02\x80".to_vec() };
    let bytes = [head.into_bytes(), body].concat();
    Upstream::start(move |_, stream| drop(stream.write_all(&bytes)))
}

#[test]
fn responses_that_were_compressed_unasked_are_decoded() {
    let document = completion("Hello", 7, 2);
    let stream = format!("{STREAM_HEAD}{}data: [DONE]\n\n", delta("Hello"));
    let error = json_answer("400 Bad Request", r#"{"error":{"message":"too long"}}"#);
    for (answer, is_streamed, status) in
        [(&document, false, "SUCCESS"), (&stream, true, "SUCCESS"), (&error, false, "FAILED")]
    {
        let upstream = compressing(answer, "gzip", true);
        let server = server(&upstream);
        let response = server.post(CHAT, &chat("Hi", is_streamed));
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(response.text(), body);
        assert_eq!(response.header("content-encoding"), None);
        assert!(upstream.heads().recv().unwrap().contains("accept-encoding: identity\n"));
        let flow = server.save(&chain("one", &[agent("a", "openai", "gpt-4o-mini", "Hi")]));
        server.run(flow, &json!({}));
        for row in rows(&server, 2) {
            assert_eq!(row["status"], status, "{row}");
        }
    }
}

#[test]
fn an_unsupported_compression_is_refused_by_name() {
    for (answer, is_streamed, status) in [
        (completion("Hello", 7, 2), false, 502),
        (STREAM_HEAD.to_owned(), true, 502),
        (json_answer("400 Bad Request", "{}"), false, 400),
        (json_answer("429 Slow\r\nretry-after: 7", "{}"), true, 429),
    ] {
        let upstream = compressing(&answer, "br", false);
        let server = server(&upstream);
        let response = server.post(CHAT, &chat("Hi", is_streamed));
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(response.header("retry-after"), (status == 429).then_some("7"));
        assert!(response.json()["error"]["message"].is_string(), "{}", response.text());
        assert!(response.text().contains("compressed with br"), "{}", response.text());
        assert_eq!(rows(&server, 1)[0]["status"], "FAILED");
    }
    // The limit is on the decoded bytes.
    let body = json!({"choices": [{"message": {"content": "x".repeat(33 << 20)}}]}).to_string();
    let upstream = compressing(&json_answer("200 OK", &body), "gzip", true);
    let response = server(&upstream).post(CHAT, &chat("Hi", false));
    assert!(response.text().contains("longer than"), "{}", response.text());
}

/// A streamed answer with its usage at the end.
fn write_stream(stream: &mut TcpStream, text: &str) {
    let last = json!({"model": "gpt-4o-mini", "choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 1000}});
    let answer =
        format!("{STREAM_HEAD}: a comment\r\n\r\n{}data: {last}\n\ndata: [DONE]\n\n", delta(text));
    let _ = stream.write_all(answer.as_bytes());
}

/// An upstream that reports each request and answers on demand.
fn on_demand(
    answer: impl Fn(&mut TcpStream) + Send + Sync + 'static,
) -> (Upstream, Receiver<()>, Sender<()>) {
    let (arrived, arrivals) = unbounded();
    let (release, released) = unbounded::<()>();
    let upstream = Upstream::start(move |_, stream| {
        let _ = arrived.send(());
        if released.recv_timeout(DEADLINE).is_ok() {
            answer(stream);
        }
    });
    (upstream, arrivals, release)
}

#[test]
fn an_equal_request_is_cached_and_its_row_shows_the_saving() {
    let upstream = Upstream::saying(completion("well", 100, 1_000));
    let mut server = server(&upstream);
    let mut viewer = server.client();
    let first = ask(&server, &chat("same", false));
    let second = ask(&server, &chat("same", false));
    assert_eq!((was_cached(&first), was_cached(&second)), (false, true));
    assert_eq!(first.body, second.body);
    assert_eq!(second.header("content-type"), Some("application/json"));
    let seen = viewer.until(|message| message["payload"]["entry"]["cached"] == true);
    assert_eq!(seen.last().unwrap()["type"], "LEDGER_UPDATE");
    rows(&server, 2);
    server.start_again();
    // The cache survives a restart; another text is another request.
    assert!(was_cached(&ask(&server, &chat("same", false))));
    assert!(!was_cached(&ask(&server, &chat("other", false))));
    assert_eq!(upstream.count(), 2);
    let rows = rows(&server, 4);
    let cost = &rows[0]["total_cost_usd"];
    assert_eq!(cost, &json!(0.000_615));
    for row in &rows[1..3] {
        for (name, expected) in [
            ("cached", &json!(true)),
            ("saved_usd", cost),
            ("total_cost_usd", &json!(0)),
            ("status", &json!("SUCCESS")),
            ("model_used", &json!("gpt-4o-mini")),
            ("input_tokens", &Value::Null),
        ] {
            assert_eq!(&row[name], expected, "{name}: {row}");
        }
        assert_eq!(row["prompt_hash"], rows[0]["prompt_hash"]);
        assert_ne!(row["operation_id"], rows[0]["operation_id"]);
    }
    assert_eq!(rows[3]["cached"], Value::Null);
}

#[test]
fn the_cache_is_used_only_on_request() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server(&upstream);
    for _ in 0..2 {
        let response = server.post(CHAT, &chat("x", false));
        assert_eq!(response.header("x-flowledger-cached"), None);
    }
    assert!(!was_cached(&ask(&server, &chat("x", false))));
    server.post(CHAT, &chat("x", false));
    assert_eq!(upstream.count(), 4);
    for (path, of_error) in [(CHAT, "/error/code"), (MESSAGES, "/error/type")] {
        let headers = [("x-flowledger-cache", "for ever")];
        let body = chat("x", false).to_string();
        let response = server.request("POST", path, &headers, body.as_bytes());
        assert_eq!(response.status, 400);
        assert!(response.json().pointer(of_error).is_some());
        assert!(response.text().contains("X-Flowledger-Cache"));
    }
}

#[test]
fn a_cached_stream_is_replayed_in_the_requested_format() {
    let upstream = Upstream::start(|_, stream| write_stream(stream, "wëll"));
    let server = server(&upstream);
    let plain = chat("x", true);
    let mut with_usage = plain.clone();
    with_usage["stream_options"] = json!({"include_usage": true});
    for (body, shows_usage) in [(&plain, false), (&with_usage, true)] {
        let first = ask(&server, body);
        let second = ask(&server, body);
        assert_eq!((was_cached(&first), was_cached(&second)), (false, true));
        assert_eq!(second.text(), first.text());
        assert_eq!(second.header("content-type"), Some("text/event-stream"));
        let text = second.text();
        assert!(text.starts_with(": a comment\r\n\r\n") && text.contains("wëll"));
        assert!(text.ends_with("data: [DONE]\n\n"));
        assert_eq!(text.contains("usage"), shows_usage, "{text}");
    }
    assert_eq!(upstream.count(), 2);
    let rows = rows(&server, 4);
    assert_eq!(rows[1]["saved_usd"], rows[0]["total_cost_usd"]);
}

#[test]
fn relevant_bytes_and_headers_change_the_cache_key() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("max_tokens") {
            json!({"type": "message", "model": "claude-haiku-4-5", "content": [], "usage": {"input_tokens": 1, "output_tokens": 1}})
        } else {
            json!({"model": "m", "choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        };
        let _ = stream.write_all(json_answer("200 OK", &answer.to_string()).as_bytes());
    });
    let server = server_with(&upstream, |config| {
        let target = Target { provider: "openai".into(), model: "gpt-4o-mini".into() };
        config.gateway.aliases.insert("fast".into(), vec![target]);
    });
    let body = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    let sent = |path, body: &str, header| {
        let headers = [("x-flowledger-cache", "60"), header];
        let response = server.request("POST", path, &headers, body.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
        was_cached(&response)
    };
    let plain = ("x-other", "1");
    assert!(!sent(CHAT, body, plain));
    // Headers that only name the caller or mark a repetition.
    assert!(sent(CHAT, body, ("idempotency-key", "1")));
    assert!(sent(CHAT, body, ("x-flowledger-role", "planner")));
    assert!(sent(CHAT, &body.replace("gpt-4o-mini", "fast"), plain));
    assert!(!sent(CHAT, &body.replace("[]", "[ ]"), plain));
    assert!(!sent(CHAT, &body.replace("[]", "[],\"seed\":1"), plain));
    assert!(!sent(CHAT, body, ("openai-beta", "a")));
    let body = r#"{"model":"claude-haiku-4-5","max_tokens":9,"messages":[]}"#;
    assert!(!sent(MESSAGES, body, plain));
    assert!(!sent(MESSAGES, body, ("anthropic-beta", "a")));
    assert!(sent(MESSAGES, body, ("anthropic-beta", "a")));
    assert!(!sent(MESSAGES, body, ("anthropic-beta", "b")));
}

#[test]
fn cached_responses_are_private_to_their_key() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server_with(&upstream, |config| {
        config.token = Some(Secret::new("the-token"));
    });
    let token = ("authorization", "Bearer the-token");
    let keys = ["a", "b"].map(|name| {
        let body = json!({"name": name}).to_string();
        let made = server.request("POST", "/api/keys", &[token], body.as_bytes());
        format!("Bearer {}", made.json()["key"].as_str().unwrap())
    });
    let body = chat("x", false);
    let sent = |bearer: &str| {
        let response = ask_with(&server, CHAT, &body, &[("authorization", bearer)]);
        was_cached(&response)
    };
    for bearer in [token.1, &keys[0], &keys[1]] {
        assert_eq!((sent(bearer), sent(bearer)), (false, true));
    }
    assert_eq!(upstream.count(), 3);
}

#[test]
fn a_new_key_sees_no_responses_of_a_removed_namesake() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server(&upstream);
    for _ in 0..2 {
        let made = server.post("/api/keys", &json!({"name": "bot"})).json();
        let bearer = format!("Bearer {}", made["key"].as_str().unwrap());
        let headers = [("authorization", bearer.as_str())];
        let sent = || was_cached(&ask_with(&server, CHAT, &chat("x", false), &headers));
        assert_eq!((sent(), sent()), (false, true));
        let path = format!("/api/keys/{}", made["id"]);
        assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn responses_of_another_server_or_the_future_are_not_reused() {
    let upstreams = ["old", "new"].map(|text| Upstream::saying(completion(text, 1, 1)));
    let mut server = server(&upstreams[0]);
    let body = chat("x", false);
    assert!(!was_cached(&ask(&server, &body)));
    let url = upstreams[1].url().to_owned();
    server.configure(|config| add_provider(config, "openai", Kind::OpenAi, &url));
    server.start_again();
    assert!(!was_cached(&ask(&server, &body)));
    let again = ask(&server, &body);
    assert!(was_cached(&again) && again.text().contains("new"));

    // The clock was an hour ahead when both were stored.
    server.stop();
    let database = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    let later = "UPDATE answers SET created_ms = created_ms + 3600000";
    assert_eq!(database.execute(later, []).unwrap(), 2);
    drop(database);
    server.start_again();
    assert!(!was_cached(&ask(&server, &body)));
    assert!(was_cached(&ask(&server, &body)));
    let counts = upstreams.map(|upstream| upstream.count());
    assert_eq!(counts, [1, 2]);
}

#[test]
fn a_forwarded_client_key_has_separate_cached_responses() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server_with(&upstream, |config| {
        let through = ClientPolicy { pass_through_key: true, ..ClientPolicy::default() };
        config.gateway.policies.insert("openai".into(), through);
    });
    let body = chat("x", false);
    let sent = |key| was_cached(&ask_with(&server, CHAT, &body, &[("authorization", key)]));
    assert_eq!((sent("Bearer sk-1"), sent("Bearer sk-1")), (false, true));
    assert!(!sent("Bearer sk-2"));
}

#[test]
fn concurrent_equal_requests_share_one_call() {
    for is_streamed in [false, true] {
        let (upstream, arrivals, release) = on_demand(move |stream| {
            if is_streamed {
                write_stream(stream, "well");
            } else {
                let _ = stream.write_all(completion("well", 1, 1).as_bytes());
            }
        });
        let server = server(&upstream);
        let body = chat("x", is_streamed);
        std::thread::scope(|scope| {
            let callers = [(); 4].map(|()| scope.spawn(|| ask(&server, &body)));
            arrivals.recv_timeout(DEADLINE).unwrap();
            release.send(()).unwrap();
            let answers = callers.map(|it| it.join().unwrap());
            let uncached = answers.iter().filter(|it| !was_cached(it)).count();
            assert_eq!(uncached, 1);
            assert!(answers.iter().all(|it| it.body == answers[0].body));
        });
        assert_eq!(upstream.count(), 1);
        rows(&server, 4);
    }
}

#[test]
fn a_failure_is_not_cached_and_waiting_callers_retry() {
    let (upstream, arrivals, release) = on_demand(|stream| {
        let _ = stream.write_all(json_answer("400 Bad Request", "{}").as_bytes());
    });
    let server = server(&upstream);
    let body = chat("x", false).to_string();
    let send = || {
        let headers = [("x-flowledger-cache", "60")];
        server.request("POST", CHAT, &headers, body.as_bytes())
    };
    std::thread::scope(|scope| {
        let callers = [(); 2].map(|()| scope.spawn(send));
        for _ in 0..2 {
            arrivals.recv_timeout(DEADLINE).unwrap();
            release.send(()).unwrap();
        }
        for answer in callers {
            let answer = answer.join().unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (400, "{}"));
        }
    });
    assert_eq!(upstream.count(), 2);
}

#[test]
fn incomplete_and_oversized_responses_are_not_cached() {
    let upstream = Upstream::start(|body, stream| {
        if body.contains("large") {
            write_stream(stream, &"x".repeat(1 << 20));
        } else if body.contains("half") {
            let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("x")).as_bytes());
        } else {
            // The text is complete, but the end of the stream never comes.
            let last = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
            let head = STREAM_HEAD.replace("\r\n\r\n", "\r\ncontent-length: 9999\r\n\r\n");
            let _ = stream.write_all(format!("{head}data: {last}\n\n").as_bytes());
        }
    });
    let server = server(&upstream);
    for text in ["large", "half", "cut"] {
        for _ in 0..2 {
            assert!(!was_cached(&ask(&server, &chat(text, true))), "{text}");
        }
    }
    assert_eq!(upstream.count(), 6);
    let rows = rows(&server, 6);
    let statuses = rows.iter().map(|row| row["status"].as_str().unwrap());
    let expected = ["SUCCESS", "SUCCESS", "FAILED", "FAILED", "SUCCESS", "SUCCESS"];
    assert!(statuses.eq(expected), "{rows:#?}");
}

/// Sends the request only; the test reads or drops the connection.
fn send(server: &TestServer, body: &Value) -> TcpStream {
    let body = body.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-flowledger-cache: 60\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = server.connect();
    client.write_all(&[head, body].concat().into_bytes()).unwrap();
    client
}

#[test]
fn a_cacheable_stream_is_forwarded_live() {
    let (go, wait) = unbounded::<()>();
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("first")).as_bytes());
        // Writes the rest after the client has seen the first part.
        if wait.recv_timeout(DEADLINE).is_ok() {
            let _ = stream.write_all(b"data: [DONE]\n\n");
        }
    });
    let server = server(&upstream);
    let body = chat("x", true);
    let mut client = send(&server, &body);
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("first") {
        let length = client.read(&mut buffer).unwrap();
        assert!(length > 0, "the answer ended");
        seen.extend_from_slice(&buffer[..length]);
    }
    go.send(()).unwrap();
    client.read_to_end(&mut seen).unwrap();
    let response = Response::parse(&seen).unwrap();
    assert!(response.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(ask(&server, &body).body, response.body);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn clients_waiting_for_a_shared_call_get_503_at_shutdown() {
    let (upstream, arrivals, _release) = on_demand(|_| {});
    let mut server = server(&upstream);
    let body = chat("x", false);
    let mut clients = [(); 2].map(|()| send(&server, &body));
    arrivals.recv_timeout(DEADLINE).unwrap();
    server.stop();
    for client in &mut clients {
        let mut answer = Vec::new();
        // The server may not have accepted the other request yet.
        if client.read_to_end(&mut answer).is_ok() && !answer.is_empty() {
            assert_eq!(Response::parse(&answer).unwrap().status, 503);
        }
    }
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_complete_response_is_cached_after_a_disconnect() {
    for (drain_max, is_kept) in [(Some(DEADLINE), true), (None, false)] {
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let upstream = Upstream::start(move |_, stream| {
            let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("a")).as_bytes());
            // Keeps writing, because the server notices a disconnected client when it writes.
            while !is_over.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_millis(2));
                if stream.write_all(delta("more").as_bytes()).is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b"data: [DONE]\n\n");
        });
        let server = server_with(&upstream, |config| {
            let policy = ClientPolicy { drain_max, ..ClientPolicy::default() };
            config.gateway.policies.insert("openai".into(), policy);
        });
        let body = chat("x", true);
        let client = send(&server, &body);
        eventually("the upstream is asked", || upstream.count() == 1);
        drop(client);
        ends.store(is_kept, Ordering::SeqCst);
        let status = if is_kept { "SUCCESS" } else { "CANCELLED" };
        assert_eq!(rows(&server, 1)[0]["status"], status);
        ends.store(true, Ordering::SeqCst);
        assert_eq!(was_cached(&ask(&server, &body)), is_kept);
    }
}

#[test]
fn a_cache_hit_needs_neither_budget_nor_permit() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let server = server_with(&upstream, |config| {
        let rate = Rate {
            requests_per_minute: Some(1),
            tokens_per_minute: None,
            minute: Duration::from_secs(3600),
        };
        config.rates.insert("openai".into(), rate);
    });
    ask(&server, &chat("x", false));
    let budgets = json!({"budgets": [{"name": "none", "per": "day", "limitTokens": 1}]});
    let set = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    for _ in 0..3 {
        assert!(was_cached(&ask(&server, &chat("x", false))));
    }
    let body = chat("y", false).to_string();
    let headers = [("x-flowledger-cache", "60")];
    let refused = server.request("POST", CHAT, &headers, body.as_bytes());
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn echo_responses_are_cached() {
    let server = TestServer::start();
    for path in [CHAT, MESSAGES] {
        for is_streamed in [false, true] {
            let mut body = chat("Hi", is_streamed);
            body["model"] = json!("echo/echo-1");
            let first = ask_with(&server, path, &body, &[]);
            let second = ask_with(&server, path, &body, &[]);
            assert_eq!((was_cached(&first), was_cached(&second)), (false, true));
            assert_eq!(first.body, second.body);
            assert_eq!(first.header("content-type"), second.header("content-type"));
        }
    }
    let rows = rows(&server, 8);
    let saved = rows.iter().filter(|row| row["cached"] == true);
    assert!(saved.clone().all(|row| row["saved_usd"] == 0));
    assert_eq!(saved.count(), 4);
}
