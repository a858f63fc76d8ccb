//! Bad input over the wire: each request gets a clear answer, no data is stored, and the server
//! keeps running.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::binary::{Home, Served};
use crate::harness::{DEADLINE, Response, TestServer, agent, chain, two_nodes};

/// The largest request head and body that the server accepts.
const HEAD_MAX: usize = 16 << 10;
const BODY_MAX: usize = 4 << 20;
/// Time limit for a head.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// A connection for several requests.
struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    fn with(server: &TestServer) -> Self {
        Self { stream: server.connect(), unread: Vec::new() }
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // A server that has already refused may not read the rest.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Reads exactly one response.
    fn receive(&mut self) -> Response {
        self.receive_without_body(false)
    }

    /// The response to `HEAD` has a content length and no body.
    fn receive_without_body(&mut self, is_head: bool) -> Response {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Response::parse(&self.unread[..end + 4]).unwrap();
                let length = match head.header("content-length") {
                    Some(length) if !is_head && head.status >= 200 => length.parse().unwrap(),
                    _ => 0,
                };
                if self.unread.len() >= end + 4 + length {
                    let rest = self.unread.split_off(end + 4 + length);
                    let answer = std::mem::replace(&mut self.unread, rest);
                    return Response::parse(&answer).unwrap();
                }
            }
            let count = self.stream.read(&mut chunk).unwrap();
            let received = String::from_utf8_lossy(&self.unread);
            assert!(count > 0, "the connection ended after: {received}");
            self.unread.extend_from_slice(&chunk[..count]);
        }
    }

    /// Returns true if only the connection's end follows.
    fn is_over(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset also ends the connection.
        let _ = self.stream.read_to_end(&mut rest);
        self.unread.is_empty() && rest.is_empty()
    }
}

/// A request whose head has only `Host` and `fields`.
fn request(server: &TestServer, line: &str, fields: &str, body: &str) -> Vec<u8> {
    let host = server.address();
    format!("{line} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n{body}").into_bytes()
}

fn ask_for_health(server: &TestServer) -> Vec<u8> {
    request(server, "GET /api/health", "", "")
}

/// Encodes a body in chunks of this size.
fn chunks(text: &str, size: usize) -> String {
    let mut body = String::new();
    for chunk in text.as_bytes().chunks(size) {
        let chunk = std::str::from_utf8(chunk).unwrap();
        body.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    body + "0\r\n\r\n"
}

/// Returns all stored data.
fn stored(server: &TestServer) -> [Value; 3] {
    ["/api/flows", "/api/runs", "/api/ledger"].map(|path| server.get(path).json())
}

/// Runs `disturb`, then checks that the server answers and has written nothing.
fn assert_unharmed(server: &TestServer, disturb: impl FnOnce()) {
    let before = stored(server);
    disturb();
    assert_eq!(stored(server), before);
    let health = server.get("/api/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
}

/// Returns status, code and message, and checks that the message is a readable sentence.
fn refusal(response: &Response) -> (u16, String, String) {
    let error = &response.json()["error"];
    let message = error["message"].as_str().unwrap().to_owned();
    assert!(message.len() > 10, "{message}");
    (response.status, response.error_code(), message)
}

fn assert_refused(response: &Response, status: u16, code: &str) {
    let (was, is_code, message) = refusal(response);
    assert_eq!((was, is_code.as_str()), (status, code), "{message}");
}

/// Returns the fields that a 422 lists.
fn fields(response: &Response) -> Vec<String> {
    assert_refused(response, 422, "invalid");
    response.json()["error"]["details"]
        .as_array()
        .unwrap_or_else(|| panic!("no details: {}", response.text()))
        .iter()
        .map(|fault| {
            assert!(!fault["message"].as_str().unwrap().is_empty(), "{fault}");
            fault["field"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn post(server: &TestServer, path: &str, body: &str) -> Response {
    server.request("POST", path, &[], body.as_bytes())
}

#[test]
fn invalid_json_is_refused_with_its_line() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for (body, place) in [
            ("{\n\"name\": oops}", "line 2"),
            ("{\"name\": \"x\",\n\n", "line 3"),
            ("", "line 1"),
            ("{\"name\": \"x\"} trailing", "line 1"),
            ("{\"name\": \"\\ud800\"}", "line 1"),
            ("{\"name\": 1e999}", "line 1"),
        ] {
            for (method, path) in [("POST", "/api/flows"), ("PUT", "/api/flows/1")] {
                let response = server.request(method, path, &[], body.as_bytes());
                let (status, code, message) = refusal(&response);
                assert_eq!((status, code.as_str()), (400, "invalid_json"), "{message}");
                assert!(message.contains(place), "{body}: {message}");
            }
        }
        let response = post(&server, "/api/flows/1/execute", "{\"input\":\n{]}");
        assert!(refusal(&response).2.contains("line 2"));
        assert_refused(&response, 400, "invalid_json");
        let no_utf8 = server.request("POST", "/api/flows", &[], b"{\"name\": \"\xff\xfe\"}");
        assert_refused(&no_utf8, 400, "invalid_json");
    });
}

#[test]
fn wrong_types_are_refused_with_their_field() {
    let server = TestServer::start();
    let node = agent("a", "echo", "echo-1", "x");
    let with = |key: &str, value: Value| {
        let mut node = node.clone();
        node["data"][key] = value;
        json!({"name": "x", "data": {"nodes": [node], "edges": []}})
    };
    assert_unharmed(&server, || {
        for (body, field) in [
            (json!([]), ""),
            (json!("flow"), ""),
            (json!(null), ""),
            (json!({"name": 3, "data": {"nodes": [node]}}), "name"),
            (json!({"name": "", "data": {"nodes": [node]}}), "name"),
            (json!({"name": "é".repeat(101), "data": {"nodes": [node]}}), "name"),
            (json!({"data": {"nodes": [node]}}), "name"),
            (json!({"name": "x"}), "data"),
            (json!({"name": "x", "data": 3}), "data"),
            (json!({"name": "x", "data": [node]}), "data"),
            (json!({"name": "x", "data": "{\"nodes\": oops}"}), "data"),
            (json!({"name": "x", "data": "[]"}), "data"),
            (json!({"name": "x", "data": {}}), "data.nodes"),
            (json!({"name": "x", "data": {"nodes": []}}), "data.nodes"),
            (json!({"name": "x", "data": {"nodes": {}}}), "data.nodes"),
            (json!({"name": "x", "data": {"nodes": [node], "edges": 1}}), "data.edges"),
            (json!({"name": "x", "data": {"nodes": [3]}}), "data.nodes[0]"),
            (
                json!({"name": "x", "data": {"nodes": [["a", "agent", node["data"]]]}}),
                "data.nodes[0]",
            ),
            (
                json!({"name": "x", "data": {"nodes": [{"id": "a", "type": 7, "data": node["data"]}]}}),
                "data.nodes[0].type",
            ),
            (
                json!({"name": "x", "data": {"nodes": [{"id": "a", "data": "x"}]}}),
                "data.nodes[0].data",
            ),
            (json!({"name": "x", "data": {"nodes": [{"data": node["data"]}]}}), "data.nodes[0].id"),
            (
                json!({"name": "x", "data": {"nodes": [{"id": [], "data": node["data"]}]}}),
                "data.nodes[0].id",
            ),
            (
                json!({"name": "x", "data": {"nodes": [node], "edges": [["a", "a"]]}}),
                "data.edges[0]",
            ),
            (
                json!({"name": "x", "data": {"nodes": [node], "edges": [{"source": "a"}]}}),
                "data.edges[0].target",
            ),
            (with("temperature", json!("warm")), "data.nodes[0].data.temperature"),
            (with("temperature", json!(2.5)), "data.nodes[0].data.temperature"),
            (with("maxTokens", json!(-1)), "data.nodes[0].data.maxTokens"),
            (with("maxTokens", json!(1.5)), "data.nodes[0].data.maxTokens"),
            (with("maxTokens", json!(5_000_000_000_u64)), "data.nodes[0].data.maxTokens"),
            (with("maxTokens", json!(0)), "data.nodes[0].data.maxTokens"),
            (with("stream", json!("yes")), "data.nodes[0].data.stream"),
            (with("prompt", json!(["x"])), "data.nodes[0].data.prompt"),
            (with("prompt", json!(" ")), "data.nodes[0].data.prompt"),
            (with("model", json!(null)), "data.nodes[0].data.model"),
            (with("label", json!("é".repeat(101))), "data.nodes[0].data.label"),
        ] {
            let response = server.post("/api/flows", &body);
            assert_eq!(fields(&response), [field], "{body}: {}", response.text());
            let put = server.request("PUT", "/api/flows/1", &[], body.to_string().as_bytes());
            assert_eq!(fields(&put), [field]);
        }
    });
}

#[test]
fn unknown_routes_and_methods_are_named() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for path in [
            "/nothing",
            "/api",
            "/api/",
            "/api/flow",
            "/api/flows/",
            "/api/flows/1/",
            "/api/flows/1/run",
            "/api//flows",
            "//",
            "/assets/",
            "/assets/nothing.js",
            "/assets/../src/main.rs",
            "/assets/%2e%2e/index.html",
            "/index.html",
            "/api/flows/one",
            "/api/flows/99999999999999999999",
            "/api/flows/-1",
            "/api/flows/999",
            "/api/flows/999/status",
            "/api/flows/999/hook",
            "/api/flows/999/schedule",
            "/hooks",
            "/hooks/a/b",
            "/api/runs/999",
        ] {
            let response = server.get(path);
            assert_refused(&response, 404, "not_found");
        }
        for (method, path, allow) in [
            ("PATCH", "/api/flows/1", "GET, PUT, DELETE"),
            ("BREW", "/api/flows", "GET, POST"),
            ("DELETE", "/api/flows", "GET, POST"),
            ("GET", "/api/flows/1/execute", "POST"),
            ("POST", "/api/flows/1/status", "GET"),
            ("PATCH", "/api/flows/1/hook", "GET, PUT, DELETE"),
            ("POST", "/api/flows/1/schedule", "GET, PUT, DELETE"),
            ("GET", "/hooks/x", "POST"),
            ("PUT", "/api/runs", "GET"),
            ("PATCH", "/api/runs/x", "GET, DELETE"),
            ("GET", "/api/runs/x/cancel", "POST"),
            ("POST", "/api/ledger", "GET"),
            ("DELETE", "/api/ledger.csv", "GET"),
            ("POST", "/api/health", "GET"),
            ("POST", "/", "GET"),
            ("TRACE", "/", "GET"),
            ("get", "/api/health", "GET"),
        ] {
            let response = server.request(method, path, &[], b"");
            assert_refused(&response, 405, "method_not_allowed");
            assert_eq!(response.header("allow"), Some(allow), "{method} {path}");
            assert!(refusal(&response).2.contains(method));
        }
    });
}

#[test]
fn an_oversized_body_is_refused_by_length_and_by_chunks() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for length in ["4194305", "99999999999999999"] {
            let mut connection = Connection::with(&server);
            let length = format!("content-length: {length}\r\n");
            connection.write(request(&server, "POST /api/flows", &length, "{"));
            assert_refused(&connection.receive(), 413, "body_too_large");
            assert!(connection.is_over());
        }
        let padding = " ".repeat(BODY_MAX + 1);
        let refused = post(&server, "/api/flows", &padding);
        assert_refused(&refused, 413, "body_too_large");

        let chunked = "transfer-encoding: chunked\r\n";
        for size in [BODY_MAX + 1, 100_000] {
            let body = chunks(&padding, size);
            let refused = server.raw(&request(&server, "POST /api/flows", chunked, &body));
            assert_refused(&refused, 413, "body_too_large");
        }
        // Sizes whose sum would overflow to a small number modulo 2⁶⁴.
        for body in ["ffffffffffffffff\r\n{", "1\r\n{\r\nffffffffffffffff\r\n{"] {
            let refused = server.raw(&request(&server, "POST /api/flows", chunked, body));
            assert_refused(&refused, 413, "body_too_large");
        }
    });
    let flow = two_nodes().to_string();
    let whole = format!("{flow}{}", " ".repeat(BODY_MAX - flow.len()));
    assert_eq!(post(&server, "/api/flows", &whole).status, 201);
    let chunked = "transfer-encoding: chunked\r\nconnection: close\r\n";
    let body = chunks(&whole, 1_000_000);
    let taken = server.raw(&request(&server, "POST /api/flows", chunked, &body));
    assert_eq!(taken.status, 201, "{}", taken.text());
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        let long = "x".repeat(HEAD_MAX);
        for (line, fields) in [
            ("GET /api/health", format!("x: {long}\r\n")),
            ("GET /api/health", "x: y\r\n".repeat(101)),
            (&*format!("GET /{long}"), String::new()),
            (&*long, String::new()),
        ] {
            let refused = server.raw(&request(&server, line, &fields, ""));
            assert_refused(&refused, 431, "head_too_large");
        }
        // The server buffers no more of an endless head than of a complete one.
        let mut connection = Connection::with(&server);
        connection.write(format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(1 << 20)));
        assert_refused(&connection.receive(), 431, "head_too_large");
    });
    let fits = format!("connection: close\r\nx: {}\r\n", "x".repeat(HEAD_MAX - 200));
    let taken = server.raw(&request(&server, "GET /api/health", &fits, ""));
    assert_eq!(taken.status, 200);
}

fn assert_timed_out(mut connection: Connection, began: Instant) {
    assert_refused(&connection.receive(), 408, "timeout");
    let took = began.elapsed();
    let slack = Duration::from_secs(5);
    assert!((HEAD_TIME..HEAD_TIME + slack).contains(&took), "{took:?}");
    assert!(connection.is_over());
}

#[test]
fn an_unfinished_head_times_out_after_five_seconds() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let began = Instant::now();
                let mut connection = Connection::with(&server);
                connection.write("GET / HTTP/1.1\r\nhost:");
                assert_timed_out(connection, began);
            });
            scope.spawn(|| {
                // The second request of a connection has the same time limit as the first.
                let mut connection = Connection::with(&server);
                connection.write(ask_for_health(&server));
                assert_eq!(connection.receive().status, 200);
                let began = Instant::now();
                connection.write("GET /api/health HTTP/1.1\r\n");
                assert_timed_out(connection, began);
            });
            scope.spawn(|| {
                // A head that arrives byte by byte does not extend the time limit.
                let began = Instant::now();
                let mut connection = Connection::with(&server);
                connection.write("GET / HTTP/1.1\r\nx: ");
                let pace = Some(Duration::from_millis(100));
                connection.stream.set_read_timeout(pace).unwrap();
                while connection.stream.peek(&mut [0]).is_err() {
                    connection.write("x");
                    assert!(began.elapsed() < 2 * HEAD_TIME, "it is still listened to");
                }
                connection.stream.set_read_timeout(Some(DEADLINE)).unwrap();
                assert_timed_out(connection, began);
            });
        });
    });
}

#[test]
fn a_client_that_disconnects_midway_affects_no_other() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        let flow = two_nodes().to_string();
        let whole = request(
            &server,
            "POST /api/flows",
            &format!("content-length: {}\r\n", flow.len()),
            &flow,
        );
        let chunked = request(
            &server,
            "POST /api/flows",
            "transfer-encoding: chunked\r\n",
            &chunks(&flow, 50),
        );
        for bytes in [&whole, &chunked] {
            // In the request line, in the head, in the body, and just before the end.
            for cut in [0, 5, 30, bytes.len() - flow.len() / 2, bytes.len() - 1] {
                let mut connection = Connection::with(&server);
                connection.write(&bytes[..cut]);
                connection.stream.shutdown(Shutdown::Write).unwrap();
                assert!(connection.is_over(), "cut after {cut} bytes");
            }
        }
    });
}

#[test]
fn non_http_bytes_are_refused() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hello of TLS\r\n\r\n"[..],
            b"hello\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2.0\r\nhost: localhost\r\n\r\n",
            b"GET http://localhost/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\n folded: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: \x00\r\n\r\n",
            b"GET / HTTP/1.1\nhost: localhost\n\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: y\ncontent-length: 2\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: \xff\r\n\r\n",
            b"GET /\xc3\xa9 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        ] {
            let response = server.raw(bytes);
            assert_refused(&response, 400, "bad_request");
        }
        let none = server.raw(b"GET / HTTP/1.1\r\n\r\n");
        assert_refused(&none, 400, "bad_host");
        let two = server.raw(b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n");
        assert_refused(&two, 400, "bad_host");
    });
}

#[test]
fn a_body_of_ambiguous_length_is_refused() {
    let server = TestServer::start();
    let flow = two_nodes().to_string();
    let length = flow.len();
    assert_unharmed(&server, || {
        for fields in [
            format!("content-length: {length}\r\ncontent-length: {length}\r\n"),
            format!("content-length: {length}\r\ncontent-length: 0\r\n"),
            format!("content-length: {length}, {length}\r\n"),
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
            format!("content-length: +{length}\r\n"),
            format!("content-length: 0x{length:x}\r\n"),
            "content-length: -1\r\n".to_owned(),
            "content-length: \r\n".to_owned(),
            "content-length: 18446744073709551616\r\n".to_owned(),
            "transfer-encoding: gzip\r\n".to_owned(),
            "transfer-encoding: gzip, chunked\r\n".to_owned(),
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".to_owned(),
            "transfer-encoding: identity\r\n".to_owned(),
        ] {
            let mut connection = Connection::with(&server);
            connection.write(request(&server, "POST /api/flows", &fields, &flow));
            let response = connection.receive();
            assert_refused(&response, 400, "bad_request");
            assert!(connection.is_over(), "{fields}");
        }
    });
}

#[test]
fn invalid_chunks_are_refused() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for body in [
            "zz\r\n",
            "-1\r\n",
            "0x2\r\n{}\r\n",
            "2\n{}\n0\n\n",
            "2\r\n{}0\r\n\r\n",
            "1\r\n{}\r\n0\r\n\r\n",
            "\r\n",
            " \r\n",
            "10000000000000000\r\n",
            &format!("2;{}\r\n", "x".repeat(10_000)),
            "2;a\nb\r\n{}\r\n0\r\n\r\n",
            "2;\n\r\n{}\r\n0\r\n\r\n",
            "2;a=\0\r\n{}\r\n0\r\n\r\n",
            "2;a\r\r\n{}\r\n0\r\n\r\n",
            "2\r\n{}\r\n0;\n\r\n\r\n",
            "2\r\n{}\r\n0\r\nx: y\nz: w\r\n\r\n",
            "2\r\n{}\r\n0\r\nx: \0\r\n\r\n",
            "2\r\n{}\r\n0\r\nGET /api/health HTTP/1.1\r\n\r\n",
            "2\r\n{}\r\n0\r\n\n",
        ] {
            let fields = "transfer-encoding: chunked\r\n";
            let mut connection = Connection::with(&server);
            connection.write(request(&server, "POST /api/flows", fields, body));
            let response = connection.receive();
            assert_refused(&response, 400, "bad_request");
            assert!(connection.is_over(), "{body}");
        }
    });
}

#[test]
fn chunks_and_trailers_end_before_the_next_request() {
    let server = TestServer::start();
    let flow = two_nodes().to_string();
    let chunked = |extra: &str| format!("transfer-encoding: {extra}\r\n");
    let with_trailers = chunks(&flow, 7).trim_end().to_owned() + "\r\nx-sum: 1\r\ny: z\r\n\r\n";
    let with_extensions = format!("{:X};a=b;c\r\n{flow}\r\n0\r\n\r\n", flow.len());
    for body in [chunks(&flow, 1), with_trailers, with_extensions] {
        let mut connection = Connection::with(&server);
        let post = request(&server, "POST /api/flows", &chunked("Chunked"), &body);
        connection.write([post, ask_for_health(&server)].concat());
        let saved = connection.receive();
        assert_eq!(saved.status, 201, "{}", saved.text());
        assert_eq!(saved.json()["name"], "Two nodes");
        assert_eq!(connection.receive().json()["status"], "ok");
    }
    assert_unharmed(&server, || {
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(5_000));
        let endless = request(&server, "POST /api/flows", &chunked("chunked"), &trailers);
        assert_refused(&server.raw(&endless), 431, "head_too_large");
    });
}

#[test]
fn expect_continue_is_answered_with_100_or_a_refusal() {
    let server = TestServer::start();
    let flow = two_nodes().to_string();
    let ask = |length: usize| {
        let fields = format!("content-length: {length}\r\nexpect: 100-continue\r\n");
        request(&server, "POST /api/flows", &fields, "")
    };
    let mut connection = Connection::with(&server);
    connection.write(ask(flow.len()));
    assert_eq!(connection.receive().status, 100);
    connection.write(&flow);
    assert_eq!(connection.receive().status, 201);
    connection.write(ask_for_health(&server));
    assert_eq!(connection.receive().status, 200);

    assert_unharmed(&server, || {
        let mut connection = Connection::with(&server);
        connection.write(ask(BODY_MAX + 1));
        assert_refused(&connection.receive(), 413, "body_too_large");
        assert!(connection.is_over());
    });
}

#[test]
fn pipelined_requests_get_responses_in_order() {
    let server = TestServer::start();
    let flow = two_nodes().to_string();
    let length = format!("content-length: {}\r\n", flow.len());
    let mut connection = Connection::with(&server);
    // Pipelined.
    connection.write(
        [
            request(&server, "GET /api/flows/1", "", ""),
            request(&server, "POST /api/flows", &length, &flow),
            request(&server, "GET /api/flows/999", "", ""),
            request(&server, "GET /api/flows/2", "", ""),
        ]
        .concat(),
    );
    let answers: Vec<(u16, Value)> = (0..4)
        .map(|_| connection.receive())
        .map(|answer| (answer.status, answer.json()["id"].clone()))
        .collect();
    assert_eq!(answers, [(200, json!(1)), (201, json!(3)), (404, Value::Null), (200, json!(2))]);
    // Sequential, also after an error.
    for status in [200, 404, 200] {
        let path = if status == 200 { "/api/flows/1" } else { "/x" };
        connection.write(request(&server, &format!("GET {path}"), "", ""));
        let answer = connection.receive();
        assert_eq!(answer.status, status);
        assert_ne!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn limits_apply_to_every_request_of_a_connection() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        let chunked = "transfer-encoding: chunked\r\n";
        let too_long = format!("x: {}\r\n", "x".repeat(HEAD_MAX));
        let too_big = format!("content-length: {}\r\n", BODY_MAX + 1);
        let big_chunk = format!("{:x}\r\n", BODY_MAX + 1);
        let seconds = [
            (request(&server, "GET /", &too_long, ""), 431),
            (request(&server, "POST /api/flows", &too_big, ""), 413),
            (request(&server, "POST /api/flows", chunked, &big_chunk), 413),
            (request(&server, "POST /api/flows", chunked, "zz\r\n"), 400),
            (b"GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_vec(), 421),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
            (b"nonsense\r\n\r\n".to_vec(), 400),
            (request(&server, "DELETE /api/flows/1", "origin: http://evil.example\r\n", ""), 403),
        ];
        for (second, status) in seconds {
            for at_once in [false, true] {
                let mut connection = Connection::with(&server);
                let first = ask_for_health(&server);
                if at_once {
                    connection.write([first, second.clone()].concat());
                    assert_eq!(connection.receive().status, 200);
                } else {
                    connection.write(first);
                    assert_eq!(connection.receive().status, 200);
                    connection.write(&second);
                }
                let refused = connection.receive();
                assert_eq!(refused.status, status, "{}", refused.text());
                assert_eq!(refused.header("connection"), Some("close"));
                // Bytes after a refusal are not read as a request.
                connection.write(ask_for_health(&server));
                assert!(connection.is_over());
            }
        }
    });
}

#[test]
fn http_1_0_head_and_close_are_supported() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "x"}));
    for path in ["/api/health", "/api/ledger.csv"] {
        let old = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n");
        let answer = server.raw(old.as_bytes());
        assert_eq!(answer.status, 200);
        // HTTP/1.0 has no chunks.
        assert_eq!(answer.header("transfer-encoding"), None, "{path}");
        assert!(!answer.body.is_empty());
    }
    let csv = server.raw(b"GET /api/ledger.csv HTTP/1.0\r\nhost: localhost\r\n\r\n");
    assert_eq!(csv.text().lines().count(), 3, "{}", csv.text());

    let whole = server.get("/api/flows");
    let mut connection = Connection::with(&server);
    for _ in 0..2 {
        connection.write(request(&server, "HEAD /api/flows", "", ""));
        let head = connection.receive_without_body(true);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), whole.header("content-length"));
        connection.write(request(&server, "HEAD /nothing", "", ""));
        assert_eq!(connection.receive_without_body(true).status, 404);
        connection.write(ask_for_health(&server));
        assert_eq!(connection.receive().status, 200);
    }
    connection.write(request(&server, "GET /api/health", "connection: close\r\n", ""));
    assert_eq!(connection.receive().status, 200);
    assert!(connection.is_over());
}

#[test]
fn invalid_queries_are_refused_with_their_parameter() {
    let server = TestServer::start();
    assert_unharmed(&server, || {
        for (path, field) in [
            ("/api/ledger?colour=red", "colour"),
            ("/api/ledger?limit=0", "limit"),
            ("/api/ledger?limit=1001", "limit"),
            ("/api/ledger?limit=-1", "limit"),
            ("/api/ledger?limit=ten", "limit"),
            ("/api/ledger?limit=1&limit=2", "limit"),
            ("/api/ledger?before=newest", "before"),
            ("/api/ledger?flow_id=one", "flow_id"),
            ("/api/ledger?status=FINE", "status"),
            ("/api/ledger?from=yesterday", "from"),
            ("/api/ledger?to=2025-13-01", "to"),
            ("/api/ledger?from=2025-02-30T00:00:00Z", "from"),
            ("/api/ledger/summary?group_by=colour", "group_by"),
            ("/api/ledger/summary?limit=1", "limit"),
            ("/api/ledger.csv?status=FINE", "status"),
            ("/api/ledger.csv?since=1", "since"),
            ("/api/flows?limit=0", "limit"),
            ("/api/flows?before=x", "before"),
            ("/api/flows?name=x", "name"),
            ("/api/runs?limit=5000", "limit"),
            ("/api/runs?flow_id=x", "flow_id"),
            ("/api/runs?before=newest", "before"),
            ("/api/runs?status=FINE", "status"),
        ] {
            let response = server.get(path);
            assert_eq!(fields(&response), [field], "{path}: {}", response.text());
        }
        let waits = post(&server, "/api/flows/1/execute?wait=maybe", "");
        assert_eq!(fields(&waits), ["wait"]);
        let all = server.get("/api/ledger?limit=0&status=x&from=y&colour=z");
        assert_eq!(fields(&all), ["status", "from", "limit", "colour"]);
    });
    for path in [
        "/api/ledger?limit=1000&status=&from=2025-01-01&to=2025-01-02T03:04:05%2B06:00",
        "/api/ledger?model=gpt%20%26%20more%00&provider=%ff%27%3B--",
    ] {
        assert_eq!(server.get(path).json()["items"], json!([]), "{path}");
    }
}

#[test]
fn all_errors_of_a_flow_are_listed_with_their_fields() {
    let server = TestServer::start();
    let node = |id: &str, prompt: &str| agent(id, "echo", "echo-1", prompt);
    let mut odd = node("odd", "x");
    odd["type"] = json!("group");
    odd["data"]["temperature"] = json!(3);
    odd["data"]["model"] = json!("");
    let flow = json!({"name": "", "data": {
    "nodes": [
        node("first", "{{ nodes.ghost.output }}"),
        node("first", "x"),
        agent("b", "nobody", "m", "{{ nodes.c.output }}"),
        node("c", "fine\n{{ oops "),
        node("d", "{{ topic }} {{ nodes.c.output }}"),
        odd,
        node("", "x"),
        node("far-1", "{{ nodes['far-2'].output }}"),
        node("far-2", "x"),
    ],
    "edges": [
        {"source": "b", "target": "c"},
        {"source": "c", "target": "b"},
        {"source": "first", "target": "nowhere"},
        {"source": "nobody", "target": "nothing"},
        {"source": "d", "target": "d"},
    ]}});
    assert_unharmed(&server, || {
        for text in [false, true] {
            let mut flow = flow.clone();
            if text {
                flow["data"] = json!(flow["data"].to_string());
            }
            let response = server.post("/api/flows", &flow);
            let mut found = fields(&response);
            found.sort();
            assert_eq!(
                found,
                [
                    "data.edges",
                    "data.edges[2].target",
                    "data.edges[3].source",
                    "data.edges[3].target",
                    "data.nodes[0].data.prompt",
                    "data.nodes[1].id",
                    "data.nodes[2].data.provider",
                    "data.nodes[3].data.prompt",
                    "data.nodes[4].data.prompt",
                    "data.nodes[4].data.prompt",
                    "data.nodes[5].type",
                    "data.nodes[6].id",
                    "data.nodes[7].data.prompt",
                    "name",
                ],
                "{}",
                response.text()
            );
            for part in [
                "node `ghost` not found",
                "duplicate node id `first`",
                "unknown provider `nobody`",
                "line 2",
                "unknown name `topic`",
                "unknown node type `group`",
                "node `nowhere` not found",
                "the nodes b, c, d form a cycle",
                "node `far-2` does not run before node `far-1`",
            ] {
                assert!(response.text().contains(part), "{part}: {}", response.text());
            }
        }
        let many: Vec<Value> = (0..1_001).map(|n| node(&n.to_string(), "x")).collect();
        let response = server.post("/api/flows", &chain("Many", &many));
        assert_eq!(fields(&response), ["data.nodes"]);
        assert!(response.text().contains("the limit is 1000"));
    });
}

#[test]
fn a_missing_flow_can_be_neither_changed_nor_run() {
    let server = TestServer::start();
    let flow = two_nodes().to_string();
    assert_unharmed(&server, || {
        for id in ["999", "0", "-1", "x", "99999999999999999999"] {
            for (method, path, body) in [
                ("GET", format!("/api/flows/{id}"), ""),
                ("PUT", format!("/api/flows/{id}"), &*flow),
                ("DELETE", format!("/api/flows/{id}"), ""),
                ("POST", format!("/api/flows/{id}/execute"), ""),
                ("POST", format!("/api/flows/{id}/execute?wait=true"), "{}"),
                ("GET", format!("/api/flows/{id}/status"), ""),
            ] {
                let response = server.request(method, &path, &[], body.as_bytes());
                assert_refused(&response, 404, "not_found");
            }
        }
    });
    let saved = server.save(&two_nodes());
    let path = format!("/api/flows/{saved}");
    assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    assert_unharmed(&server, || {
        assert_refused(&server.request("DELETE", &path, &[], b""), 404, "not_found");
        assert_refused(&post(&server, &format!("{path}/execute"), ""), 404, "not_found");
    });
}

#[test]
fn a_run_accepts_only_an_object_as_input() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/execute");
    assert_unharmed(&server, || {
        for body in [
            r#"{"inputs": {}}"#,
            r#"{"input": {}, "wait": true}"#,
            r#"{"input": "bees"}"#,
            r#"{"input": ["bees"]}"#,
            r#"{"input": 3}"#,
            r#"{"input": false}"#,
            r#"["bees"]"#,
            r#"[{"topic": "bees"}]"#,
            r#""bees""#,
            "3",
            "null",
        ] {
            let response = post(&server, &path, body);
            assert_refused(&response, 422, "invalid");
            let text = response.text();
            assert!(text.contains("input") && !text.contains("struct"), "{body}: {text}");
        }
        let large = json!({"input": {"topic": "x".repeat(1 << 20)}});
        assert_eq!(fields(&server.post(&path, &large)), ["input"]);
    });
}

#[test]
fn a_missing_input_fails_the_run_without_a_call() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let run = server.run(flow, &json!({"theme": "bees"}));
    assert_eq!((&run["status"], &run["errorNodeId"]), (&json!("FAILED"), &json!("plan")));
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("cannot render the template") && error.contains("line 1"), "{error}");
    assert_eq!(server.get("/api/ledger").json()["items"], json!([]));
}

#[test]
fn editor_fields_of_a_flow_round_trip() {
    let server = TestServer::start();
    let mut flow = two_nodes();
    flow["viewport"] = json!({"x": 1.5, "zoom": 2});
    flow["data"]["nodes"][0]["position"] = json!({"x": 10, "y": -20});
    flow["data"]["nodes"][0]["data"]["colour"] = json!("tūrquoise 🟦");
    flow["data"]["edges"][0]["style"] = json!({"stroke": null});
    flow["data"]["version"] = json!([1, {"a": []}]);
    let mut as_text = flow.clone();
    as_text["data"] = json!(flow["data"].to_string());
    for posted in [&flow, &as_text] {
        let id = server.save(posted);
        let mut got = server.get(&format!("/api/flows/{id}")).json();
        assert_eq!(got["inputs"], json!(["topic"]));
        let own = ["id", "node_count", "inputs", "created_at", "updated_at"];
        got.as_object_mut().unwrap().retain(|key, _| !own.contains(&key.as_str()));
        assert_eq!(got, flow);
        let run = server.run(id, &json!({"topic": "bees"}));
        assert_eq!(run["status"], "COMPLETED");
    }
}

#[test]
fn long_and_unicode_texts_pass_through_unchanged() {
    let server = TestServer::start();
    let odd = "Grüße 東京 👩‍👩‍👧 \u{202e}\u{0} \"\\</script>\u{7f} e\u{301}\r\n\t";
    for text in [odd.to_owned(), "ü".repeat(500_000)] {
        let flow = chain(
            &format!("{odd} flow"),
            &[agent("é 1", "echo", "echo-1", "{{ input[\"ß\"] }}|{{ input.tail }}")],
        );
        let id = server.save(&flow);
        let mut client = server.client();
        let run = server.run(id, &json!({"ß": text, "tail": "!"}));
        let output = format!("[echo of echo-1] {text}|!");
        assert_eq!(run["status"], "COMPLETED", "{}", run["error"]);
        assert!(run["nodes"][0]["output"] == output);
        assert_eq!(run["input"]["ß"].as_str().unwrap().len(), text.len());
        let completed = client.until_type("NODE_COMPLETED").pop().unwrap();
        let preview: String = output.chars().take(200).collect();
        assert_eq!(completed["payload"]["resultPreview"], preview);
        assert_eq!(completed["payload"]["nodeId"], "é 1");
        let row = &server.get("/api/ledger?limit=1").json()["items"][0];
        assert_eq!((&row["node_id"], &row["status"]), (&json!("é 1"), &json!("SUCCESS")));
    }
    // The longest prompt is 1 MiB; one byte more is refused before a call is made.
    for (length, status) in [(1 << 20, "COMPLETED"), ((1 << 20) + 1, "FAILED")] {
        let prompt = "x".repeat(length);
        let id = server.save(&chain("Long", &[agent("a", "echo", "echo-1", &prompt)]));
        let rows = server.get("/api/ledger").json()["items"].as_array().unwrap().len();
        let run = server.run(id, &json!({}));
        assert_eq!(run["status"], status, "{}", run["error"]);
        let now = server.get("/api/ledger").json()["items"].as_array().unwrap().len();
        assert_eq!(now - rows, usize::from(status == "COMPLETED"));
    }
}

/// Runs in its own process, because a stack overflow ends the whole process.
#[test]
fn deep_nesting_never_crashes_the_server() {
    let home = Home::new();
    let server = Served::start(&mut home.serve());
    let nest = |open: &str, inner: &str, close: &str, depth: usize| {
        format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
    };
    let mut client = server.client();
    let shows = server.save(&chain(
        "Shows",
        &[agent("a", "echo", "echo-1", "{{ input.x }} {{ input.x | tojson }}")],
    ));
    for depth in [100, 124, 126, 1_000, 30_000] {
        let deep = nest("[", "1", "]", depth);
        client.send(&deep);
        client.until_type("ERROR");
        client.send(&format!(r#"{{"type": "SUBSCRIBE", "payload": {deep}}}"#));
        client.until_type("ERROR");
        for body in [
            deep.clone(),
            format!(r#"{{"name": "x", "data": {deep}}}"#),
            nest(r#"{"data":"#, "1", "}", depth),
        ] {
            let response = server.request("POST", "/api/flows", &[], body.as_bytes());
            assert!([400, 422].contains(&response.status), "{}", response.text());
        }
        let body = format!(r#"{{"input": {{"x": {deep}}}}}"#);
        let response = server.request(
            "POST",
            &format!("/api/flows/{shows}/execute?wait=true"),
            &[],
            body.as_bytes(),
        );
        let expected = if depth < 126 { 200 } else { 400 };
        assert_eq!(response.status, expected, "{}", response.text());
    }
    let prompts = [
        ("parentheses", ("(", "1", ")"), "{{ ", " }}"),
        ("lists", ("[", "1", "]"), "{{ ", " }}"),
        ("not", ("not ", "1", ""), "{{ ", " }}"),
        ("minus", ("-", "1", ""), "{{ ", " }}"),
        ("sum", ("1+", "1", ""), "{{ ", " }}"),
        ("join", ("1~", "1", ""), "{{ ", " }}"),
        ("and", ("1 and ", "1", ""), "{{ ", " }}"),
        ("power", ("1**", "1", ""), "{{ ", " }}"),
        ("attributes", ("", "input.x", ".x"), "{{ ", " }}"),
        ("subscripts", ("", "input", "[0]"), "{{ ", " }}"),
        ("filters", ("", "1", "|string"), "{{ ", " }}"),
        ("conditions", ("", "1", " if 1"), "{{ ", " }}"),
        ("blocks", ("{% if 1 %}", "x", "{% endif %}"), "", ""),
        ("loops", ("{% for x in [1] %}", "x", "{% endfor %}"), "", ""),
        ("elif", ("", "{% if 0 %}x", "{% elif 0 %}x"), "", "{% endif %}"),
        ("braces", ("{{", "x", "}}"), "", ""),
    ];
    let save_and_run = |what: &str, prompt: &str| {
        let flow = chain("Deep", &[agent("a", "echo", "echo-1", prompt)]);
        let saved = server.post("/api/flows", &flow);
        assert!([201, 422].contains(&saved.status), "{what}: {}", saved.text());
        if saved.status == 201 {
            let path = format!("/api/flows/{}/execute?wait=true", saved.json()["id"]);
            assert_eq!(server.post(&path, &json!({})).status, 200, "{what}");
        }
        saved.status
    };
    // All kinds of nesting together, at the allowed depth.
    for link in ["1+", "not ", "1 if 1 else "] {
        let links = link.repeat(160 / link.split(' ').count().max(2));
        for (open, close) in [("[", "]"), ("(", ")"), ("{1:", "}")] {
            let tag = format!("{{{{ {} }}}}", nest(open, &format!("{links}1"), close, 8));
            let prompt = nest("{% for x in [1] %}", &tag, "{% endfor %}", 20);
            assert_eq!(save_and_run("together", &prompt), 201, "{prompt}");
        }
    }
    for (what, (open, inner, close), before, after) in prompts {
        for depth in [20, 140, 500, 5_000, 100_000] {
            let prompt = format!("{before}{}{after}", nest(open, inner, close, depth));
            save_and_run(&format!("{what}, {depth} deep"), &prompt);
        }
    }
    assert_eq!(server.get("/api/health")["status"], "ok");
}
