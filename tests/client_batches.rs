//! Files and batches of clients at their providers: uploads, ownership, and one booking for each
//! batch.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::clients::rows;
use crate::harness::{Response, TestServer, add_provider};

const OPENAI_BATCHES: &str = "/v1/batches";
const MESSAGE_BATCHES: &str = "/v1/messages/batches";

/// A provider that stores files and batches.
struct Storage {
    url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    batches: Mutex<BTreeMap<String, Value>>,
    is_over: AtomicBool,
    has_usage: AtomicBool,
    reads: AtomicUsize,
    uploaded: AtomicUsize,
}

impl Storage {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Self { url, state }
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut length, mut request) = (None, String::new());
        let mut is_chunked = false;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_owned();
            if request.is_empty() {
                request.clone_from(&line);
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse::<usize>().ok();
            }
            is_chunked |= lower.starts_with("transfer-encoding: chunked");
            if line.is_empty() {
                break;
            }
        }
        assert!(!is_chunked, "the length was declared");
        let mut body = Vec::new();
        let _ = reader.take(length.unwrap_or(0) as u64).read_to_end(&mut body);
        let mut parts = request.split(' ');
        let (method, target) = (parts.next().unwrap(), parts.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.strip_prefix("/v1/").unwrap_or(path);
        let (status, kind, answer) = self.answer(method, path, query, &body);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), &answer].concat());
    }

    fn answer(
        &self,
        method: &str,
        path: &str,
        query: &str,
        body: &[u8],
    ) -> (u16, &'static str, Vec<u8>) {
        let json = |document: Value| (200, "application/json", document.to_string().into_bytes());
        let segments: Vec<&str> = path.split('/').collect();
        match (method, segments.as_slice()) {
            ("POST", ["files"]) => {
                self.uploaded.store(body.len(), Ordering::SeqCst);
                let mut files = self.files.lock().unwrap();
                let id = format!("file-{}", files.len());
                files.insert(id.clone(), body[..body.len().min(1000)].to_vec());
                json(json!({"id": id, "object": "file", "bytes": body.len()}))
            }
            ("GET", ["files"]) => {
                let ids: Vec<String> = self.files.lock().unwrap().keys().cloned().collect();
                json(page(&ids, query))
            }
            ("GET", ["files", id]) => json(json!({"id": id, "object": "file"})),
            ("DELETE", ["files", id]) => {
                self.files.lock().unwrap().remove(*id);
                json(json!({"id": id, "deleted": true}))
            }
            ("GET", ["files", "file-output", "content"]) => {
                self.reads.fetch_add(1, Ordering::SeqCst);
                let line = json!({"custom_id": "a", "response": {"status_code": 200, "body": {
                    "object": "chat.completion", "model": "gpt-4o-mini-2024-07-18",
                    "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}}});
                (200, "application/octet-stream", format!("{line}\n{line}\n").into_bytes())
            }
            ("GET", ["files", _, "content"]) => (200, "application/octet-stream", vec![0, 255, 7]),
            ("POST", ["batches"]) => json(self.create("batch")),
            ("POST", ["messages", "batches"]) => json(self.create("msgbatch")),
            ("GET", ["messages", "batches", _, "results"]) => {
                let line = json!({"custom_id": "a", "result": {"type": "succeeded", "message": {
                    "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
                    "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn",
                    "usage": {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"}}}});
                (200, "application/x-jsonl", format!("{line}\n").into_bytes())
            }
            ("GET", ["batches"] | ["messages", "batches"]) => {
                let ids: Vec<String> = self.batches.lock().unwrap().keys().cloned().collect();
                json(page(&ids, query))
            }
            (_, ["batches", id, ..] | ["messages", "batches", id, ..]) => {
                match self.batches.lock().unwrap().get(*id) {
                    Some(batch) => json(self.current(batch.clone())),
                    None => {
                        (404, "application/json", b"{\"error\":{\"message\":\"none\"}}".to_vec())
                    }
                }
            }
            _ => (404, "application/json", b"{\"error\":{\"message\":\"no route\"}}".to_vec()),
        }
    }

    fn create(&self, kind: &str) -> Value {
        let mut batches = self.batches.lock().unwrap();
        let id = format!("{kind}_{}", batches.len());
        let batch = json!({"id": id, "object": "batch", "status": "validating", "type": "message_batch",
            "processing_status": "in_progress", "results_url": null});
        batches.insert(id, batch.clone());
        batch
    }

    fn current(&self, mut batch: Value) -> Value {
        if self.is_over.load(Ordering::SeqCst) {
            batch["status"] = "completed".into();
            batch["processing_status"] = "ended".into();
            batch["output_file_id"] = "file-output".into();
            batch["request_counts"] = json!({"completed": 2, "succeeded": 1});
            let id = batch["id"].as_str().unwrap();
            let url = format!("https://api.anthropic.com/v1/messages/batches/{id}/results");
            batch["results_url"] = url.into();
            if self.has_usage.load(Ordering::SeqCst) {
                batch["model"] = "gpt-4o-mini-2024-07-18".into();
                batch["usage"] = json!({"input_tokens": 4000, "output_tokens": 10});
            }
        }
        batch
    }
}

/// Returns a page of ids, two at a time.
fn page(ids: &[String], query: &str) -> Value {
    let after =
        query.split('&').find_map(|it| it.split_once("after=").or(it.split_once("after_id=")));
    let after = after.map_or("", |(_, id)| id);
    let rest: Vec<&String> = ids.iter().filter(|id| id.as_str() > after).collect();
    let data: Vec<Value> = rest.iter().take(2).map(|id| json!({"id": id})).collect();
    json!({"object": "list", "data": data, "has_more": rest.len() > 2})
}

fn server_of(storage: &Storage) -> TestServer {
    let url = storage.url.clone();
    TestServer::start_with(move |config| {
        add_provider(config, "openai", Kind::OpenAi, &url);
        add_provider(config, "anthropic", Kind::Anthropic, &url);
    })
}

fn key(server: &TestServer, name: &str) -> String {
    let created = server.post("/api/keys", &json!({"name": name})).json();
    created["key"].as_str().unwrap().to_owned()
}

fn ask(server: &TestServer, key: &str, method: &str, path: &str, body: &Value) -> Response {
    let headers = [("x-flowledger-key", key), ("x-flowledger-tags", "nightly")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    server.request(method, path, &headers, body.as_bytes())
}

fn ids(list: &Response) -> Vec<String> {
    let list = list.json();
    let data = list["data"].as_array().unwrap_or_else(|| panic!("{list}")).iter();
    data.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
}

fn upload(server: &TestServer, key: &str, content: &[u8]) -> String {
    let body = [
        &b"--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x\r\n"[..],
        b"Content-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n",
        content,
        b"\r\n--x--\r\n",
    ]
    .concat();
    let headers = [("x-flowledger-key", key), ("content-type", "multipart/form-data; boundary=x")];
    let answer = server.request("POST", "/v1/files", &headers, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_key_sees_only_its_own_files() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let (one, two) = (key(&server, "one"), key(&server, "two"));
    let mine: Vec<String> = (0..3).map(|_| upload(&server, &one, b"{}")).collect();
    let other = upload(&server, &two, b"{}");
    let later = upload(&server, &one, b"{}");
    let get = |key: &str, path: &str| ask(&server, key, "GET", path, &Value::Null);
    let all = get(&one, "/v1/files");
    assert_eq!(ids(&all), [&mine[..], std::slice::from_ref(&later)].concat());
    assert_eq!(all.json()["has_more"], false);
    let first = get(&one, "/v1/files?limit=2");
    assert_eq!((ids(&first), &first.json()["has_more"]), (mine[..2].to_vec(), &json!(true)));
    let rest = get(&one, &format!("/v1/files?limit=2&after={}", mine[1]));
    assert_eq!(
        (ids(&rest), &rest.json()["has_more"]),
        (vec![mine[2].clone(), later], &json!(false))
    );
    assert_eq!(ids(&get(&two, "/v1/files")), std::slice::from_ref(&other));
    assert_eq!(get(&one, &format!("/v1/files?after={other}")).status, 404);
    for path in [format!("/v1/files/{other}"), format!("/v1/files/{other}/content")] {
        let refused = get(&one, &path);
        assert_eq!((refused.status, refused.error_code()), (404, "not_found".into()), "{path}");
        assert_eq!(get(&two, &path).status, 200);
        // Clients without a key have the rest of the account.
        assert_eq!(server.get(&path).status, 404);
    }
    assert_eq!(get(&two, &format!("/v1/files/{other}/content")).body, [0, 255, 7]);
    let batch = json!({"input_file_id": other, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    assert_eq!(ask(&server, &one, "POST", OPENAI_BATCHES, &batch).status, 404);
    let delete =
        |key: &str| ask(&server, key, "DELETE", &format!("/v1/files/{other}"), &Value::Null);
    assert_eq!(delete(&one).status, 404);
    assert_eq!(delete(&two).status, 200);
    assert_eq!(get(&two, &format!("/v1/files/{other}")).status, 404);
    // A conversation cannot refer to it either.
    let part = json!({"type": "file", "file": {"file_id": mine[0]}});
    let chat = json!({"model": "echo/echo-1", "messages": [{"role": "user", "content": [part]}]});
    let chat = |key: &str| ask(&server, key, "POST", "/v1/chat/completions", &chat).status;
    assert_eq!((chat(&two), chat(&one)), (404, 200));
    assert_eq!(rows(&server, 1).len(), 1);
}

#[test]
fn a_large_file_streams_through() {
    let storage = Storage::start();
    let server = server_of(&storage);
    // More than the limit of other bodies.
    let content = vec![b'x'; 40 << 20];
    upload(&server, &key(&server, "one"), &content);
    assert!(storage.state.uploaded.load(Ordering::SeqCst) > content.len());
}

#[test]
fn a_batch_is_booked_once_at_half_the_price() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let (one, two) = (key(&server, "one"), key(&server, "two"));
    let file = upload(&server, &one, b"{}");
    let body = json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let batch = ask(&server, &one, "POST", OPENAI_BATCHES, &body);
    assert_eq!(batch.status, 200, "{}", batch.text());
    let path = format!("{OPENAI_BATCHES}/{}", batch.json()["id"].as_str().unwrap());
    let get = |key: &str, path: &str| ask(&server, key, "GET", path, &Value::Null);
    assert_eq!(get(&two, &path).status, 404);
    assert_eq!(get(&one, &path).json()["status"], "validating");
    let ledger = server.get("/api/ledger").json();
    assert_eq!(ledger["items"][0]["status"], "PENDING");
    storage.state.is_over.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(get(&one, &path).json()["status"], "completed"));
        }
    });
    let row = rows(&server, 1).remove(0);
    for (name, expected) in [
        ("status", json!("SUCCESS")),
        ("provider", json!("openai")),
        ("model_used", json!("gpt-4o-mini-2024-07-18")),
        ("input_tokens", json!(2000)),
        ("output_tokens", json!(1000)),
        // Half of 2,000 at 0.15 and 1,000 at 0.60 dollars per million.
        ("total_cost_usd", json!(0.00045)),
        ("cost_note", json!("batch x0.5")),
        ("key_name", json!("one")),
        ("tags", json!("nightly")),
    ] {
        assert_eq!(row[name], expected, "{name} of {row}");
    }
    let reads = storage.state.reads.load(Ordering::SeqCst);
    assert_eq!(get(&one, &path).status, 200);
    assert_eq!(storage.state.reads.load(Ordering::SeqCst), reads);
    // The results belong to the same key.
    assert_eq!(get(&one, "/v1/files/file-output/content").status, 200);
    assert_eq!(get(&two, "/v1/files/file-output/content").status, 404);
    assert_eq!(rows(&server, 1).len(), 1);
}

#[test]
fn the_usage_that_a_batch_states_counts() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let one = key(&server, "one");
    let body = json!({"input_file_id": upload(&server, &one, b"{}"), "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let batch = ask(&server, &one, "POST", OPENAI_BATCHES, &body).json();
    storage.state.is_over.store(true, Ordering::SeqCst);
    storage.state.has_usage.store(true, Ordering::SeqCst);
    let path = format!("{OPENAI_BATCHES}/{}", batch["id"].as_str().unwrap());
    assert_eq!(ask(&server, &one, "GET", &path, &Value::Null).status, 200);
    let row = rows(&server, 1).remove(0);
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(4000), &json!(10)));
    assert_eq!(row["total_cost_usd"], 0.000_303);
    assert_eq!(storage.state.reads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_batch_of_messages_is_booked_when_its_results_are_read() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let one = key(&server, "one");
    let requests = json!({"requests": [{"custom_id": "a", "params": {"model": "claude-haiku-4-5",
        "max_tokens": 200, "messages": [{"role": "user", "content": "Hi"}]}}]});
    let created = ask(&server, &one, "POST", MESSAGE_BATCHES, &requests);
    assert_eq!(created.status, 200, "{}", created.text());
    let path = format!("{MESSAGE_BATCHES}/{}", created.json()["id"].as_str().unwrap());
    storage.state.is_over.store(true, Ordering::SeqCst);
    let results = ask(&server, &one, "GET", &format!("{path}/results"), &Value::Null);
    assert!(results.text().contains("\"succeeded\""), "{}", results.text());
    let row = rows(&server, 1).remove(0);
    assert_eq!((&row["input_tokens"], &row["output_tokens"]), (&json!(1000), &json!(100)));
    // Half of 1,000 at 1 and 100 at 5 dollars per million.
    assert_eq!((&row["total_cost_usd"], &row["status"]), (&json!(0.000_75), &json!("SUCCESS")));
    // SDKs read the results at this address.
    let batch = ask(&server, &one, "GET", &path, &Value::Null).json();
    let url = format!("http://{}{path}/results", server.address());
    assert_eq!(batch["results_url"], url);
    assert_eq!(rows(&server, 1).len(), 1);
    let listed = ask(&server, &one, "GET", MESSAGE_BATCHES, &Value::Null);
    assert_eq!(ids(&listed).len(), 1);
    let two = key(&server, "two");
    assert!(ids(&ask(&server, &two, "GET", MESSAGE_BATCHES, &Value::Null)).is_empty());
    let refused = ask(&server, &two, "GET", &path, &Value::Null);
    assert_eq!((refused.status, &refused.json()["type"]), (404, &json!("error")));
}

#[test]
fn a_hard_budget_applies_to_batches() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let one = key(&server, "one");
    let budget = json!({"budgets": [{"name": "b", "per": "day", "limitUsd": "0.01"}]}).to_string();
    assert_eq!(server.request("PUT", "/api/budget", &[], budget.as_bytes()).status, 200);
    let batch = |max_tokens: u64| {
        let requests = json!({"requests": [{"custom_id": "a", "params": {"model": "claude-haiku-4-5",
            "max_tokens": max_tokens, "messages": []}}]});
        ask(&server, &one, "POST", MESSAGE_BATCHES, &requests).status
    };
    assert_eq!(batch(10_000), 402);
    assert_eq!(batch(100), 200);
    // The requests in a file have no known bound.
    let body = json!({"input_file_id": upload(&server, &one, b"{}"), "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    assert_eq!(ask(&server, &one, "POST", OPENAI_BATCHES, &body).status, 402);
    // Nor has it a known number of tokens.
    let tokens = json!({"budgets": [{"name": "t", "per": "day", "limitTokens": 100_000}]});
    assert_eq!(
        server.request("PUT", "/api/budget", &[], tokens.to_string().as_bytes()).status,
        200
    );
    let refused = ask(&server, &one, "POST", OPENAI_BATCHES, &body);
    let message = refused.json()["error"]["message"].to_string();
    assert!(refused.status == 402 && message.contains("no known maximum"), "{message}");
    assert_eq!(server.request("PUT", "/api/budget", &[], budget.as_bytes()).status, 200);
    // OpenAI ignores requests beside the file.
    let mut both = body;
    both["requests"] = json!([{"params": {"model": "gpt-4o-mini", "max_tokens": 1}}]);
    assert_eq!(ask(&server, &one, "POST", OPENAI_BATCHES, &both).status, 402);
    // A document by URL has no known length, and a search has a fee.
    let document = json!({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}});
    for (field, value) in [
        ("messages", json!([{"role": "user", "content": [document]}])),
        ("tools", json!([{"type": "web_search_20250305", "name": "web_search", "max_uses": 9}])),
    ] {
        let mut params = json!({"model": "claude-haiku-4-5", "max_tokens": 1, "messages": []});
        params[field] = value;
        let requests = json!({"requests": [{"custom_id": "a", "params": params}]});
        assert_eq!(ask(&server, &one, "POST", MESSAGE_BATCHES, &requests).status, 402, "{field}");
    }
    assert_eq!(storage.state.batches.lock().unwrap().len(), 1);
}

#[test]
fn a_batch_may_use_only_the_files_of_its_key() {
    let storage = Storage::start();
    let server = server_of(&storage);
    let one = key(&server, "one");
    let source = json!({"type": "file", "file_id": "file_of_another"});
    let content = json!([{"type": "document", "source": source}]);
    let params = json!({"model": "claude-haiku-4-5", "max_tokens": 1,
        "messages": [{"role": "user", "content": content}]});
    let batch = json!({"requests": [{"custom_id": "a", "params": params}]});
    assert_eq!(ask(&server, &one, "POST", MESSAGE_BATCHES, &batch).status, 404);
    // Nor may a request hide them behind a depth that is not read.
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let body = format!(r#"{{"x":{deep},{}"#, params.to_string().trim_start_matches('{'));
    let headers = [("x-flowledger-key", &*one)];
    assert_eq!(server.request("POST", "/v1/messages", &headers, body.as_bytes()).status, 400);
    assert!(rows(&server, 0).is_empty());
}

#[test]
fn other_kinds_of_providers_have_no_files() {
    let server = TestServer::start();
    let headers = [("x-flowledger-provider", "echo")];
    let refused = server.request("GET", "/v1/files", &headers, b"");
    assert_eq!((refused.status, refused.error_code()), (400, "wrong_protocol".into()));
}
