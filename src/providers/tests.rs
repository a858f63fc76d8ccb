//! The providers against real loopback sockets with scripted peers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use proptest::prelude::*;

use super::*;
use crate::event::{Charge, Usage, UsageSource};
use crate::money::Usd;
use crate::prices::COST_MAX;
use crate::time::Timestamp;

const KEY: &str = "sk-secret-0123456789";

/// The longest wait of a test.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server that serves its connections one after another with the script.
struct Server {
    base_url: String,
    /// The received requests, head and body.
    requests: Receiver<String>,
    /// Dropped with the server, which ends hanging scripts.
    _up: Sender<()>,
}

/// A connection, on the server's side.
struct Peer {
    stream: TcpStream,
    requests: Sender<String>,
    /// Closes when the test ends.
    up: Receiver<()>,
}

impl Server {
    fn start(script: impl Fn(&mut Peer) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let (request, requests) = unbounded();
        let (_up, up) = unbounded();
        // A thread that still waits for a connection ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let (requests, up) = (request.clone(), up.clone());
                script(&mut Peer { stream, requests, up });
            }
        });
        Self { base_url, requests, _up }
    }

    /// Answers every request with these bytes and closes the connection.
    fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::start(move |peer| {
            peer.read_request();
            peer.write(&answer);
        })
    }

    fn request(&self) -> String {
        self.requests.recv_timeout(DEADLINE).unwrap()
    }

    fn providers(&self, kind: Kind) -> Providers {
        providers(kind, &self.base_url, Timeouts::default())
    }

    fn failure(&self, call: &Call) -> Failure {
        let failure = self.providers(Kind::OpenAi).call(call, &Cancel::new(), &mut |_| {});
        let failure = failure.unwrap_err();
        assert!(!format!("{failure:?}").contains(KEY), "{failure:?}");
        assert!(failure.message.starts_with("p/m: "), "{failure}");
        failure
    }
}

impl Peer {
    /// Reads a request; returns false if the client closed the connection instead.
    fn read_request(&mut self) -> bool {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            if self.stream.read(&mut byte).unwrap_or(0) == 0 {
                return false;
            }
            request.push(byte[0]);
        }
        let head = String::from_utf8(request).unwrap();
        let length = head.lines().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned)
        });
        // CONNECT has no body.
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        let _ = self.requests.send(head + &String::from_utf8(body).unwrap());
        true
    }

    fn write(&mut self, bytes: &str) {
        // The client may have disconnected, if the test is about that.
        let _ = self.stream.write_all(bytes.as_bytes());
    }

    /// Keeps the connection open and silent until the test ends.
    fn hang(&self) {
        let _ = self.up.recv_timeout(DEADLINE);
    }
}

fn providers(kind: Kind, base_url: &str, timeouts: Timeouts) -> Providers {
    let provider = ProviderConfig {
        kind,
        base_url: base_url.to_owned(),
        api_key: Some(Secret::new(KEY)),
        missing_key_hint: Some("set THE_KEY".into()),
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    Providers::new([("p".to_owned(), provider)].into(), timeouts)
}

fn call(stream: bool) -> Call {
    Call {
        provider: "p".into(),
        model: "m".into(),
        system: None,
        prompt: "Hi there".into(),
        max_tokens: None,
        temperature: None,
        stream,
        first_byte_timeout: None,
        total_timeout: None,
        cache_marks: CacheMarks::default(),
        key: None,
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

const JSON: &str = "content-type: application/json\r\n";

/// The head of a streamed answer that ends with the connection.
const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

const PLAIN: &str = r#"{"model":"m-1","choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1}}"#;

const FIRST_CHUNK: &str = "data: {\"model\":\"m-1\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}\n\n";

const LAST_CHUNKS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

fn usage(input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { input_tokens, output_tokens, source: UsageSource::Provider, ..Usage::default() }
}

/// Makes a streamed call; also returns its deltas.
fn stream(providers: &Providers, cancel: &Cancel) -> (Result<Answer, Failure>, Vec<String>) {
    let mut pieces = Vec::new();
    let answer = providers.call(&call(true), cancel, &mut |piece| pieces.push(piece.to_owned()));
    (answer, pieces)
}

#[test]
fn providers_are_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Providers>();
    is_shared::<Cancel>();
}

#[test]
fn an_openai_response_is_streamed() {
    let server = Server::answering(format!("{STREAM_HEAD}{FIRST_CHUNK}{LAST_CHUNKS}"));
    let (answer, pieces) = stream(&server.providers(Kind::OpenAi), &Cancel::new());
    let answer = answer.unwrap();
    assert_eq!(pieces, ["Hel", "lo"]);
    assert_eq!(answer.text, "Hello");
    assert_eq!(answer.usage, usage(2, 3));
    assert_eq!(answer.model, "m-1");
    assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
    assert!(answer.first_token_ms.unwrap() <= answer.latency_ms);
    let request = server.request();
    assert!(request.starts_with("POST /chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("authorization: Bearer {KEY}\r\n")), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(request.contains(r#""stream_options":{"include_usage":true}"#), "{request}");
}

#[test]
fn an_anthropic_response_is_streamed() {
    let server = Server::answering(format!(
        "{STREAM_HEAD}event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"model\":\"c\",\"usage\":{{\"input_tokens\":2,\"output_tokens\":1}}}}}}\n\n\
         event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"text_delta\",\"text\":\"Hello\"}}}}\n\n\
         event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\"}},\"usage\":{{\"output_tokens\":3}}}}\n\n\
         event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
    ));
    let (answer, pieces) = stream(&server.providers(Kind::Anthropic), &Cancel::new());
    let answer = answer.unwrap();
    assert_eq!(pieces, ["Hello"]);
    assert_eq!((answer.text.as_str(), answer.usage), ("Hello", usage(2, 3)));
    let request = server.request();
    assert!(request.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("x-api-key: {KEY}\r\n")), "{request}");
    assert!(request.contains("anthropic-version: 2023-06-01\r\n"), "{request}");
}

#[test]
fn a_plain_response_is_read_without_deltas() {
    let server = Server::answering(response("200 OK", JSON, PLAIN));
    let mut pieces = 0;
    let answer = server
        .providers(Kind::OpenAi)
        .call(&call(false), &Cancel::new(), &mut |_| pieces += 1)
        .unwrap();
    assert_eq!((answer.text.as_str(), answer.usage), ("Hello", usage(2, 1)));
    assert_eq!((pieces, answer.first_token_ms), (0, None));
}

#[test]
fn a_streamed_request_accepts_a_plain_response() {
    let server = Server::answering(response("200 OK", JSON, PLAIN));
    let (answer, pieces) = stream(&server.providers(Kind::OpenAi), &Cancel::new());
    assert_eq!(answer.unwrap().text, "Hello");
    assert_eq!(pieces, ["Hello"]);
}

#[test]
fn a_stream_without_a_content_type_is_parsed() {
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    let server = Server::answering(format!("{head}{FIRST_CHUNK}{LAST_CHUNKS}"));
    let (answer, _) = stream(&server.providers(Kind::OpenAi), &Cancel::new());
    assert_eq!(answer.unwrap().text, "Hello");
}

#[test]
fn an_unrequested_stream_is_parsed() {
    let server = Server::answering(format!("{STREAM_HEAD}{FIRST_CHUNK}{LAST_CHUNKS}"));
    let providers = server.providers(Kind::OpenAi);
    let answer = providers.call(&call(false), &Cancel::new(), &mut |_| panic!("no pieces"));
    assert_eq!(answer.unwrap().text, "Hello");
}

#[test]
fn a_refused_key_is_reported_without_its_value() {
    let body = format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}."}}}}"#);
    let failure = Server::answering(response("401 Unauthorized", JSON, &body)).failure(&call(true));
    assert_eq!((failure.kind, failure.status), (FailureKind::Status, Some(401)));
    assert_eq!(
        failure.message,
        "p/m: returned status 401: Incorrect API key provided: ***.; \
         check the API key of provider p"
    );
    assert!(failure.sent && !failure.may_have_been_billed());
}

#[test]
fn a_key_in_an_error_body_is_redacted() {
    let page = format!("<html><title>{KEY}</title>");
    let long = format!("{}{KEY}", "x".repeat(290));
    let chunk = format!("{STREAM_HEAD}data: {{\"model\":\"{KEY}\",\"error\":\"{KEY}\"}}\n\n");
    let location = format!("location: http://127.0.0.1:1/{KEY}\r\n");
    for answer in [
        response("500 Oops", "", KEY),
        response("500 Oops", "", &long),
        response("500 Oops", "content-type: text/html\r\n", &page),
        response("200 OK", "content-type: text/html\r\n", &page),
        response("200 OK", JSON, &format!(r#"{{"error":"{KEY}"}}"#)),
        response("200 OK", JSON, KEY),
        response("200 OK", "", &format!("data: {KEY}\n\n")),
        response("307 Elsewhere", &location, ""),
        chunk,
    ] {
        // `failure` checks for the key.
        for is_streamed in [true, false] {
            Server::answering(answer.clone()).failure(&call(is_streamed));
        }
    }
}

#[test]
fn a_rate_limit_error_has_its_retry_delay() {
    let body = r#"{"error":{"message":"Rate limit reached"}}"#;
    let answer = response("429 Too Many Requests", "retry-after: 7\r\n", body);
    let failure = Server::answering(answer).failure(&call(true));
    assert_eq!((failure.kind, failure.status), (FailureKind::Status, Some(429)));
    assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    assert_eq!(failure.message, "p/m: returned status 429: Rate limit reached");
}

#[test]
fn server_error_may_have_been_billed() {
    let failure = Server::answering(response("500 Oops", "", "oh no")).failure(&call(true));
    assert_eq!((failure.kind, failure.status), (FailureKind::Status, Some(500)));
    assert_eq!(failure.message, "p/m: returned status 500: oh no");
    assert!(failure.may_have_been_billed());
}

#[test]
fn html_with_status_200_is_a_bad_response() {
    let page = "<!doctype html><title>Welcome</title>";
    for content_type in ["content-type: text/html\r\n", ""] {
        for is_streamed in [true, false] {
            let server = Server::answering(response("200 OK", content_type, page));
            let failure = server.failure(&call(is_streamed));
            assert_eq!((failure.kind, failure.status), (FailureKind::BadAnswer, None));
            assert_eq!(failure.message, "p/m: unexpected response: HTML page “Welcome”");
        }
    }
}

#[test]
fn an_empty_body_is_a_bad_response() {
    for is_streamed in [true, false] {
        let failure = Server::answering(response("200 OK", "", "")).failure(&call(is_streamed));
        assert_eq!(failure.kind, FailureKind::BadAnswer);
        assert_eq!(failure.message, "p/m: unexpected response: empty body");
    }
}

#[test]
fn a_body_that_is_not_json_is_a_bad_response() {
    let failure =
        Server::answering(response("200 OK", JSON, "{\"choices\":")).failure(&call(false));
    assert_eq!(failure.kind, FailureKind::BadAnswer);
    assert!(failure.message.contains("the response is not JSON"), "{failure}");
}

#[test]
fn a_response_that_is_not_http_is_a_bad_response() {
    let failure = Server::answering("SSH-2.0-OpenSSH\r\n\r\n").failure(&call(false));
    assert_eq!(failure.kind, FailureKind::BadAnswer, "{failure}");
}

#[test]
fn a_truncated_stream_keeps_its_usage() {
    for cut in ["", "data: {\"choi"] {
        let server = Server::answering(format!("{STREAM_HEAD}{FIRST_CHUNK}{cut}"));
        let failure = server.failure(&call(true));
        assert_eq!(failure.kind, FailureKind::BadAnswer);
        assert_eq!(failure.message, "p/m: the stream ended before the response was complete");
        assert_eq!((failure.usage, failure.model.as_str()), (usage(2, 1), "m-1"));
        assert!(failure.may_have_been_billed());
    }
}

#[test]
fn broken_chunked_stream_keeps_its_usage() {
    let length = FIRST_CHUNK.len();
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let server = Server::answering(format!("{head}{length:x}\r\n{FIRST_CHUNK}\r\n"));
    let failure = server.failure(&call(true));
    assert_eq!((failure.kind, failure.usage), (FailureKind::BadAnswer, usage(2, 1)));
    assert!(failure.message.contains("connection lost"), "{failure}");
}

#[test]
fn a_complete_response_survives_a_broken_connection() {
    let chunk =
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"},\"finish_reason\":\"stop\"}]}\n\n";
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let server = Server::answering(format!("{head}{:x}\r\n{chunk}\r\n", chunk.len()));
    let (answer, _) = stream(&server.providers(Kind::OpenAi), &Cancel::new());
    assert_eq!(answer.unwrap().text, "Hello");
}

#[test]
fn error_within_a_stream_has_no_status() {
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    let server = Server::answering(format!("{STREAM_HEAD}{error}"));
    let (answer, _) = stream(&server.providers(Kind::Anthropic), &Cancel::new());
    let failure = answer.unwrap_err();
    assert_eq!((failure.kind, failure.status), (FailureKind::Status, None));
    assert_eq!(failure.message, "p/m: reported an error: Overloaded (overloaded_error)");
}

#[test]
fn a_response_above_the_size_limit_is_refused() {
    let text = "x".repeat(wire::ANSWER_BYTES_MAX + 1);
    let body = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}}}}]}}"#);
    let failure = Server::answering(response("200 OK", JSON, &body)).failure(&call(false));
    assert_eq!(failure.kind, FailureKind::TooLarge);
    let line = format!("{STREAM_HEAD}data: {text}");
    assert_eq!(Server::answering(line).failure(&call(true)).kind, FailureKind::TooLarge);
}

#[test]
fn redirect_is_reported_and_not_followed() {
    let elsewhere = Server::answering(response("200 OK", JSON, PLAIN));
    let location = format!("location: {}/\r\n", elsewhere.base_url);
    for status in ["301 Moved", "307 Moved"] {
        let failure = Server::answering(response(status, &location, "")).failure(&call(false));
        assert_eq!(failure.kind, FailureKind::Status);
        assert!(failure.message.contains(&elsewhere.base_url), "{failure}");
    }
    assert!(elsewhere.requests.is_empty());
}

#[test]
fn refused_connection_is_a_connect_failure() {
    // Bound, so that no other process has the port, but not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any_port: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any_port.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let providers = providers(Kind::OpenAi, &format!("http://{address}"), Timeouts::default());
    let failure = stream(&providers, &Cancel::new()).0.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Connect);
    assert!(failure.message.contains(&format!("cannot connect to {address}")), "{failure}");
    assert!(!failure.sent && !failure.may_have_been_billed());
}

const SHORT: Duration = Duration::from_millis(100);

/// Timeouts with the given one as the shortest.
fn short(shorten: impl FnOnce(&mut Timeouts)) -> Timeouts {
    let mut timeouts = Timeouts { connect: DEADLINE, first_byte: DEADLINE, total: DEADLINE };
    shorten(&mut timeouts);
    timeouts
}

fn timeout_of(base_url: &str, timeouts: Timeouts, is_streamed: bool) -> Failure {
    let providers = providers(Kind::OpenAi, base_url, timeouts);
    let failure = providers.call(&call(is_streamed), &Cancel::new(), &mut |_| {}).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout, "{failure}");
    assert!((100..10_000).contains(&failure.latency_ms), "{failure:?}");
    failure
}

#[test]
fn a_silent_server_hits_the_timeout_named_in_the_error() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.hang();
    });
    let first_byte = short(|timeouts| timeouts.first_byte = SHORT);
    let failure = timeout_of(&server.base_url, first_byte, true);
    assert_eq!(failure.message, "p/m: timed out after 100ms (first byte timeout)");
    assert!(failure.may_have_been_billed());
    let server = Server::start(|peer| peer.hang());
    let total = short(|timeouts| timeouts.total = SHORT);
    let failure = timeout_of(&server.base_url, total, false);
    assert_eq!(failure.message, "p/m: timed out after 100ms (total timeout)");
}

#[test]
fn head_without_an_event_hits_the_first_byte_timeout() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.write(STREAM_HEAD);
        peer.write(": keep-alive\n\n");
        peer.hang();
    });
    let first_byte = short(|timeouts| timeouts.first_byte = SHORT);
    let failure = timeout_of(&server.base_url, first_byte, true);
    assert!(failure.message.contains("first byte timeout"), "{failure}");
}

#[test]
fn stalled_stream_hits_the_total_timeout_and_keeps_its_usage() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.write(STREAM_HEAD);
        peer.write(FIRST_CHUNK);
        peer.hang();
    });
    // The first-byte timeout has long passed when the total timeout expires.
    let timeouts = short(|timeouts| {
        timeouts.first_byte = SHORT;
        timeouts.total = 4 * SHORT;
    });
    let failure = timeout_of(&server.base_url, timeouts, true);
    assert!(failure.message.contains("total timeout"), "{failure}");
    assert_eq!(failure.usage, usage(2, 1));
}

#[test]
fn stalled_tls_handshake_hits_the_connect_timeout() {
    let server = Server::start(|peer| peer.hang());
    let base_url = server.base_url.replace("http:", "https:");
    let connect = short(|timeouts| timeouts.connect = SHORT);
    let failure = timeout_of(&base_url, connect, true);
    assert!(failure.message.contains("connect timeout"), "{failure}");
    assert!(!failure.may_have_been_billed());
}

#[test]
fn server_without_tls_is_a_connect_failure() {
    let server = Server::start(|peer| peer.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let base_url = server.base_url.replace("http:", "https:");
    let providers = providers(Kind::OpenAi, &base_url, Timeouts::default());
    let failure = stream(&providers, &Cancel::new()).0.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Connect, "{failure}");
}

/// Starts a streamed call on a thread, and cancels it when `ready` returns.
fn cancelled_when(providers: Providers, ready: impl FnOnce(&Receiver<String>)) -> Failure {
    let cancel = Cancel::new();
    let (piece, pieces) = unbounded();
    let (done, outcome) = unbounded();
    thread::spawn({
        let cancel = cancel.clone();
        move || {
            let on_delta = &mut |delta: &str| piece.send(delta.to_owned()).unwrap();
            let _ = done.send(providers.call(&call(true), &cancel, on_delta));
        }
    });
    ready(&pieces);
    let before = Instant::now();
    cancel.cancel();
    let failure = outcome.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
    failure
}

#[test]
fn cancel_ends_a_stream_at_once_and_keeps_its_usage() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.write(STREAM_HEAD);
        peer.write(FIRST_CHUNK);
        peer.hang();
    });
    let failure = cancelled_when(server.providers(Kind::OpenAi), |pieces| {
        assert_eq!(pieces.recv_timeout(DEADLINE).unwrap(), "Hel");
    });
    assert_eq!(failure.usage, usage(2, 1));
    assert!(failure.may_have_been_billed());
}

#[test]
fn cancel_ends_a_call_waiting_for_the_head() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.hang();
    });
    let failure = cancelled_when(server.providers(Kind::OpenAi), |_| {
        server.request();
    });
    assert!(failure.may_have_been_billed());
}

#[test]
fn cancel_ends_a_call_waiting_for_an_error_body() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.write("HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nab");
        peer.hang();
    });
    cancelled_when(server.providers(Kind::OpenAi), |_| {
        server.request();
    });
}

#[test]
fn cancel_ends_a_connecting_call() {
    let (accepted, accepts) = unbounded();
    let server = Server::start(move |peer| {
        // The first bytes of the TLS handshake.
        peer.stream.read_exact(&mut [0; 5]).unwrap();
        accepted.send(()).unwrap();
        peer.hang();
    });
    let base_url = server.base_url.replace("http:", "https:");
    let providers = providers(Kind::OpenAi, &base_url, Timeouts::default());
    let failure = cancelled_when(providers, |_| accepts.recv_timeout(DEADLINE).unwrap());
    assert!(!failure.sent && !failure.may_have_been_billed());
}

/// A provider that is reached through the server as a proxy of this scheme.
fn proxied(server: &Server, scheme: &str) -> Providers {
    let address = server.base_url.trim_start_matches("http://").split('/').next().unwrap();
    let proxy = Proxy::parse(&format!("{scheme}://u:p@{address}"), &[]).unwrap();
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: "http://far.example.test/v1".into(),
        api_key: Some(Secret::new(KEY)),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network { proxy: ProxyRule::Through(proxy), ..Network::default() },
    };
    Providers::new([("p".to_owned(), provider)].into(), Timeouts::default())
}

#[test]
fn cancel_ends_a_call_waiting_for_its_proxy() {
    for scheme in ["http", "https", "socks5h"] {
        let (accepted, accepts) = unbounded();
        let server = Server::start(move |peer| {
            peer.stream.read_exact(&mut [0; 3]).unwrap();
            accepted.send(()).unwrap();
            peer.hang();
        });
        let providers = proxied(&server, scheme);
        let failure = cancelled_when(providers, |_| accepts.recv_timeout(DEADLINE).unwrap());
        assert!(!failure.sent && !failure.may_have_been_billed(), "{scheme}");
    }
}

#[test]
fn cancel_ends_a_stream_through_a_proxy() {
    let server = Server::start(|peer| {
        peer.read_request();
        peer.write("HTTP/1.1 200 OK\r\n\r\n");
        peer.read_request();
        peer.write(STREAM_HEAD);
        peer.write(FIRST_CHUNK);
        peer.hang();
    });
    let failure = cancelled_when(proxied(&server, "http"), |pieces| {
        assert_eq!(pieces.recv_timeout(DEADLINE).unwrap(), "Hel");
    });
    assert_eq!(failure.usage, usage(2, 1));
    assert!(server.request().starts_with("CONNECT far.example.test:80"));
}

#[test]
fn cancelled_call_is_not_sent() {
    let server = Server::answering(response("200 OK", JSON, PLAIN));
    let cancel = Cancel::new();
    cancel.cancel();
    let failure = stream(&server.providers(Kind::OpenAi), &cancel).0.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!(!failure.sent && server.requests.is_empty());
}

#[test]
fn one_cancel_ends_all_its_calls() {
    let server = Server::start(|peer| {
        // In parallel, because all connections must hang at the same time.
        let (mut stream, up) = (peer.stream.try_clone().unwrap(), peer.up.clone());
        peer.read_request();
        thread::spawn(move || {
            let _ = up.recv_timeout(DEADLINE);
            let _ = stream.flush();
        });
    });
    let providers = Arc::new(server.providers(Kind::OpenAi));
    let cancel = Cancel::new();
    let (done, outcomes) = unbounded();
    for _ in 0..3 {
        let (providers, cancel, done) = (Arc::clone(&providers), cancel.clone(), done.clone());
        thread::spawn(move || {
            let _ = done.send(providers.call(&call(true), &cancel, &mut |_| {}));
        });
    }
    (0..3).for_each(|_| drop(server.request()));
    cancel.cancel();
    for _ in 0..3 {
        let failure = outcomes.recv_timeout(DEADLINE).unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Cancelled);
    }
}

/// Serves any number of requests on each connection; every second one waits for the sender.
fn keep_alive_server(stream_end: &'static str) -> (Server, Sender<()>) {
    let (go, released) = unbounded::<()>();
    let server = Server::start(move |peer| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let body = format!("{FIRST_CHUNK}{LAST_CHUNKS}");
        let mut number = 0;
        while peer.read_request() {
            number += 1;
            if number % 2 == 0 {
                let _ = released.recv_timeout(DEADLINE);
            }
            let port = peer.stream.peer_addr().unwrap().port();
            let _ = peer.requests.send(port.to_string());
            peer.write(&format!("{head}{:x}\r\n{body}\r\n{stream_end}", body.len()));
        }
    });
    (server, go)
}

#[test]
fn cancel_does_not_affect_the_next_call_of_a_connection() {
    let (server, go) = keep_alive_server("0\r\n\r\n");
    let providers = Arc::new(server.providers(Kind::OpenAi));
    let first_cancel = Cancel::new();
    stream(&providers, &first_cancel).0.unwrap();
    server.request();
    let first_port = server.request();
    let (done, outcome) = unbounded();
    thread::spawn({
        let providers = Arc::clone(&providers);
        move || {
            let _ = done.send(stream(&providers, &Cancel::new()).0);
        }
    });
    server.request(); // The second call waits for its head now, on the same connection.
    first_cancel.cancel();
    go.send(()).unwrap();
    outcome.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(server.request(), first_port);
}

#[test]
fn requests_of_any_length_reuse_one_connection() {
    let server = Server::start(|peer| {
        while peer.read_request() {
            let port = peer.stream.peer_addr().unwrap().port();
            let _ = peer.requests.send(port.to_string());
            peer.write(&response("200 OK", JSON, PLAIN));
        }
    });
    let providers = server.providers(Kind::OpenAi);
    let mut ports = Vec::new();
    // Below, near and above the size that is held back until the rest of the request is ready.
    for length in [1, 15_000, 16_000, 16_384, 17_000, 40_000, 1_000_000] {
        let prompt: String = (0..length).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let call = Call { prompt: prompt.clone(), ..call(false) };
        providers.call(&call, &Cancel::new(), &mut |_| {}).unwrap();
        assert!(server.request().contains(&format!("\"{prompt}\"")));
        ports.push(server.request());
    }
    ports.dedup();
    assert_eq!(ports.len(), 1);
}

#[test]
fn a_connection_with_an_unread_body_is_not_reused() {
    let (server, _go) = keep_alive_server("");
    let providers = server.providers(Kind::OpenAi);
    let (answer, _) = stream(&providers, &Cancel::new());
    assert!(answer.unwrap().latency_ms < 10_000);
    server.request();
    let first_port = server.request();
    stream(&providers, &Cancel::new()).0.unwrap();
    server.request();
    assert_ne!(server.request(), first_port);
}

#[test]
fn call_to_an_unusable_provider_is_not_sent() {
    let server = Server::answering(response("200 OK", JSON, PLAIN));
    let provider = |api_key: Option<&str>, base_url: &str, hint: Option<&str>| ProviderConfig {
        kind: Kind::OpenAi,
        base_url: base_url.into(),
        api_key: api_key.map(Secret::new),
        missing_key_hint: hint.map(str::to_owned),
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let url = &server.base_url;
    let providers: BTreeMap<String, ProviderConfig> = [
        ("no-key", provider(None, url, Some("set THE_KEY"))),
        ("empty-key", provider(Some(""), url, Some("set THE_KEY"))),
        ("odd-key", provider(Some("sk-1\n"), url, None)),
        ("no-url", provider(Some(KEY), "localhost", None)),
        ("odd-url", provider(Some(KEY), "ftp://localhost", None)),
    ]
    .map(|(name, provider)| (name.to_owned(), provider))
    .into();
    let providers = Providers::new(providers, Timeouts::default());
    let message_of = |name: &str| {
        let mut call = call(true);
        call.provider = name.to_owned();
        let failure = providers.call(&call, &Cancel::new(), &mut |_| {}).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotConfigured, "{failure}");
        assert!(!failure.sent && !failure.may_have_been_billed());
        failure.message
    };
    assert_eq!(message_of("no-key"), "no-key/m: the API key is missing; set THE_KEY");
    assert_eq!(message_of("empty-key"), "empty-key/m: the API key is missing; set THE_KEY");
    assert!(message_of("odd-key").contains("invalid characters"));
    assert!(message_of("no-url").contains("must be an http or https URL"));
    assert!(message_of("odd-url").contains("must be an http or https URL"));
    assert_eq!(
        message_of("nobody"),
        "nobody/m: unknown provider; expected one of empty-key, no-key, no-url, \
         odd-key, odd-url"
    );
    assert!(server.requests.is_empty());
    assert!(providers.knows("no-key") && !providers.knows("nobody"));
    assert_eq!(providers.providers().count(), 5);
}

#[test]
fn local_server_is_called_without_a_key() {
    let server = Server::answering(response("200 OK", JSON, PLAIN));
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: server.base_url.clone(),
        api_key: None,
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers = Providers::new([("p".to_owned(), provider)].into(), Timeouts::default());
    providers.call(&call(false), &Cancel::new(), &mut |_| {}).unwrap();
    assert!(!server.request().contains("authorization"));
}

#[test]
fn kind_is_written_in_lower_case() {
    for (kind, text) in [
        (Kind::OpenAi, r#""openai""#),
        (Kind::Anthropic, r#""anthropic""#),
        (Kind::Gemini, r#""gemini""#),
        (Kind::Ollama, r#""ollama""#),
        (Kind::Echo, r#""echo""#),
    ] {
        assert_eq!(serde_json::to_string(&kind).unwrap(), text);
        assert_eq!(serde_json::from_str::<Kind>(text).unwrap(), kind);
    }
}

fn echo(model: &str, timeouts: Timeouts) -> (Providers, Call) {
    let mut call = call(true);
    call.model = model.into();
    call.system = Some("Be brief.".into());
    (providers(Kind::Echo, "", timeouts), call)
}

#[test]
fn echo_streams_word_by_word() {
    let (providers, mut call) = echo("echo-1", Timeouts::default());
    call.prompt = "Hi  there,\nyou".into();
    let mut pieces = Vec::new();
    let on_delta = &mut |piece: &str| pieces.push(piece.to_owned());
    let answer = providers.call(&call, &Cancel::new(), on_delta).unwrap();
    assert_eq!(answer.text, "[echo of echo-1] Hi  there,\nyou");
    assert_eq!(pieces.concat(), answer.text);
    assert_eq!(pieces, ["[echo ", "of ", "echo-1] ", "Hi ", " ", "there,\n", "you"]);
    assert_eq!(answer.usage, usage(5, 6));
    assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
}

#[test]
fn slow_echo_can_be_cancelled() {
    let (providers, mut call) = echo("echo-slow", Timeouts::default());
    call.prompt = "word ".repeat(1000);
    let (cancel, mut pieces) = (Cancel::new(), 0);
    let from_another_thread = cancel.clone();
    let failure = providers.call(&call, &cancel, &mut |_| {
        pieces += 1;
        if pieces == 2 {
            let cancel = from_another_thread.clone();
            thread::spawn(move || cancel.cancel());
        }
    });
    let failure = failure.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!((100..5_000).contains(&failure.latency_ms), "{failure:?}");
    assert_eq!(failure.usage.output_tokens, pieces);
    assert!(!failure.may_have_been_billed());
}

#[test]
fn slow_echo_has_the_total_timeout() {
    let (providers, call) = echo("echo-slow", short(|timeouts| timeouts.total = SHORT));
    let failure = providers.call(&call, &Cancel::new(), &mut |_| {}).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
}

/// Field names that the readers use.
const NAMES: &str = "type message delta content_block content text thinking thought usage model error choices \
    finish_reason stop_reason done candidates parts finishReason promptFeedback blockReason \
    usageMetadata refusal prompt_tokens completion_tokens total_tokens prompt_tokens_details \
    cached_tokens cache_write_tokens completion_tokens_details reasoning_tokens input_tokens \
    output_tokens cache_read_input_tokens cache_creation_input_tokens cache_creation \
    ephemeral_1h_input_tokens promptTokenCount candidatesTokenCount prompt_eval_count \
    eval_count";

/// JSON with these names at any position.
fn any_answer() -> impl Strategy<Value = serde_json::Value> {
    let names: Vec<&str> = NAMES.split_whitespace().collect();
    let leaf = prop_oneof![
        testing::any_count(),
        prop::sample::select(vec![
            "message_start",
            "message_delta",
            "content_block_delta",
            "text_delta",
            "text",
            "thinking_delta",
            "message_stop",
            "error",
            "STOP",
            "SAFETY",
            "",
        ])
        .prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Into::into),
            prop::collection::vec((prop::sample::select(names.clone()), inner), 0..8).prop_map(
                |named| {
                    let named = named.into_iter().map(|(name, value)| (name.to_owned(), value));
                    serde_json::Value::Object(named.collect())
                }
            ),
        ]
    })
}

fn readers() -> [Box<dyn wire::Reader>; 9] {
    [
        Box::<openai::ChatReader>::default(),
        Box::<anthropic::MessageReader>::default(),
        Box::<gemini::ContentReader>::default(),
        Box::new(ollama::ChatReader),
        Box::new(gemini::ContentReader::forwarding(framer::Framing::JsonArray)),
        Box::new(gemini::EmbeddingReader),
        Box::new(ollama::GenerateReader),
        Box::new(ollama::EmbeddingReader),
        Box::new(api_format::UnreadDocument),
    ]
}

#[test]
fn the_reservation_covers_cache_writes_of_marked_prompts() {
    let provider = ProviderConfig {
        kind: Kind::Anthropic,
        base_url: String::new(),
        api_key: None,
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers =
        Providers::new([("anthropic".to_owned(), provider)].into(), Timeouts::default());
    let call = Call {
        provider: "anthropic".into(),
        model: "claude-sonnet-4-5".into(),
        max_tokens: Some(1),
        ..call(false)
    };
    let at = Timestamp::now();
    let input_tokens = 2_000 + (prompt_tokens_max(0));
    let used = |written: u64, for_an_hour: u64| {
        let usage = Usage {
            input_tokens,
            cache_write_tokens: written,
            cache_write_1h_tokens: for_an_hour,
            output_tokens: 1,
            source: UsageSource::Provider,
            ..Usage::default()
        };
        providers.charge(&call, &call.model, &usage, &Billing::default(), at).cost
    };
    let all = input_tokens;
    for (writes, most) in [
        (CacheWrites::None, used(0, 0)),
        (CacheWrites::Short, used(all, 0)),
        (CacheWrites::Long, used(all, all)),
    ] {
        let tokens = [prompt_tokens_max(2_000)];
        let [maximum] = providers.maxima(&call, tokens, writes, PricedOptions::default(), at);
        assert_eq!(maximum.whole.cost, most, "{writes:?}");
    }
    assert!(used(0, 0) < used(all, 0) && used(all, 0) < used(all, all));
    let of_prompt = |cache_marks| {
        let (system, prompt) = (None, "x".repeat(2_000));
        let call = Call { system, prompt, cache_marks, ..call.clone() };
        providers.reserve(&call, at).cost
    };
    let marks = CacheMarks { system: false, prompt_bytes: 1_500 };
    assert_eq!(of_prompt(CacheMarks::default()), used(0, 0));
    assert_eq!(of_prompt(marks), used(all, 0));
}

#[test]
fn the_reservation_covers_automatic_caching() {
    let providers = providers(Kind::OpenAi, "", Timeouts::default());
    let at = "2026-08-01T00:00:00Z".parse().unwrap();
    for (model, is_dearer) in [("gpt-5.6-luna", true), ("gpt-4o-mini", false)] {
        let call = Call {
            model: model.into(),
            prompt: "x".repeat(1_000),
            max_tokens: Some(1),
            ..call(false)
        };
        let used = |cache_write_tokens| {
            let usage = Usage {
                input_tokens: 1_000 + (prompt_tokens_max(0)),
                cache_write_tokens,
                output_tokens: 1,
                source: UsageSource::Provider,
                ..Usage::default()
            };
            providers.charge(&call, model, &usage, &Billing::default(), at).cost
        };
        let written = used(1_000 + (prompt_tokens_max(0)));
        assert_eq!(providers.reserve(&call, at).cost, written);
        assert_eq!(written > used(0), is_dearer, "{model}");
        // If a client marks nothing, the provider may still write to its cache.
        let (tokens, writes) = ([prompt_tokens_max(1_000)], CacheWrites::None);
        let [maximum] = providers.maxima(&call, tokens, writes, PricedOptions::default(), at);
        assert_eq!(maximum.whole.cost, written);
    }
}

#[test]
fn regional_surcharges_are_part_of_the_cost() {
    let providers = providers(Kind::OpenAi, "https://eu.api.openai.com/v1", Timeouts::default());
    let at = "2026-11-22T12:00:00Z".parse().unwrap();
    let charge = |model: &str, source| {
        let usage = Usage { input_tokens: 1_000, output_tokens: 500, source, ..Usage::default() };
        let call = Call { model: model.into(), ..call(false) };
        providers.charge(&call, model, &usage, &Billing::default(), at)
    };
    let priced = charge("gpt-5.4", UsageSource::Provider);
    assert_eq!(priced.cost, Some(Usd::from_nanousd(11_000_000)));
    assert_eq!(priced.note.as_deref(), Some("data residency eu x1.1"));
    let older = charge("gpt-4o", UsageSource::Provider);
    assert_eq!((older.cost, older.note), (Some(Usd::from_nanousd(7_500_000)), None));
    let unknown = charge("gpt-chat-latest", UsageSource::Provider);
    assert_eq!(unknown, Charge { note: Some("data residency eu".into()), ..Charge::UNKNOWN });
    assert_eq!(charge("gpt-5.4", UsageSource::None), Charge::UNKNOWN);
    let call = Call { model: "gpt-5.4".into(), max_tokens: Some(1_000_000), ..call(false) };
    // 16.50 USD for a million tokens of the answer.
    let reserve = providers.reserve(&call, at).cost.unwrap();
    assert!(reserve >= Usd::from_nanousd(16_500_000_000), "{reserve}");
}

#[test]
fn cost_above_the_maximum_is_unknown() {
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: String::new(),
        api_key: None,
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers = [("openai".to_owned(), provider)].into();
    let providers = Providers::new(providers, Timeouts::default());
    let call = Call {
        provider: "openai".into(),
        model: "o1-pro".into(),
        max_tokens: Some(u32::MAX),
        ..call(false)
    };
    let at = Timestamp::now();
    let charge = |output_tokens| {
        let usage = Usage { output_tokens, source: UsageSource::Provider, ..Usage::default() };
        providers.charge(&call, &call.model, &usage, &Billing::default(), at)
    };
    // 600 USD per million.
    let most = charge(16_666_666);
    assert_eq!(most.cost, Some(Usd::from_nanousd(9_999_999_600_000)));
    assert!(most.price.is_some());
    assert_eq!(
        charge(16_666_667),
        Charge { note: Some("above 10000 USD".to_owned()), ..Charge::UNKNOWN }
    );
    assert_eq!(providers.reserve(&call, at).cost, Some(COST_MAX));
}

#[test]
fn short_key_is_not_redacted_in_names() {
    let body = PLAIN.replace("m-1", "claude-haiku");
    let server = Server::answering(response("200 OK", JSON, &body));
    let provider = ProviderConfig {
        kind: Kind::OpenAi,
        base_url: server.base_url.clone(),
        api_key: Some(Secret::new("k")),
        missing_key_hint: None,
        stream_usage: true,
        trust_stated_cost: None,
        apis: Vec::new(),
        network: Network::default(),
    };
    let providers = Providers::new([("p".to_owned(), provider)].into(), Timeouts::default());
    let answer = providers.call(&call(false), &Cancel::new(), &mut |_| {});
    assert_eq!(answer.unwrap().model, "claude-haiku");
}

proptest! {
    #[test]
    fn arbitrary_responses_never_panic_or_break_sums(
        answers in prop::collection::vec(any_answer(), 1..4),
    ) {
        for (mut streamed, mut whole) in readers().into_iter().zip(readers()) {
            let mut partial = ResponseAccumulator::default();
            for answer in &answers {
                let event = framer::Event { name: String::new(), data: answer.to_string() };
                let _ = streamed.event(&event, &mut partial);
                prop_assert!(testing::holds_sum_rules(&partial.usage), "{:?}", partial.usage);
                let mut partial = ResponseAccumulator::default();
                let _ = whole.document(answer, &mut partial);
                prop_assert!(testing::holds_sum_rules(&partial.usage), "{:?}", partial.usage);
            }
        }
    }

    #[test]
    fn parts_of_openai_and_anthropic_counts_do_not_exceed_sums(
        openai in testing::any_counts(&["prompt_tokens", "completion_tokens", "total_tokens"]),
        prompt in testing::any_counts(&["cached_tokens", "cache_write_tokens"]),
        completion in testing::any_counts(&["reasoning_tokens"]),
        anthropic in testing::any_counts(&[
            "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens",
        ]),
        age in testing::any_counts(&["ephemeral_1h_input_tokens"]),
        details in testing::any_counts(&["thinking_tokens"]),
    ) {
        let (mut openai, mut anthropic) = (openai, anthropic);
        openai["prompt_tokens_details"] = prompt;
        openai["completion_tokens_details"] = completion;
        anthropic["cache_creation"] = age;
        anthropic["output_tokens_details"] = details;
        for (mut reader, usage) in readers().into_iter().zip([openai, anthropic]) {
            let mut partial = ResponseAccumulator::default();
            let _ = reader.document(&serde_json::json!({"usage": usage}), &mut partial);
            prop_assert!(testing::holds_sum_rules(&partial.usage), "{:?}", partial.usage);
        }
    }
}
