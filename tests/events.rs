//! `GET /api/events`: the messages of the WebSocket as server-sent events, without gap or repeat.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flowledger::event::{Event, EventContext};
use flowledger::hub::Eviction;
use flowledger::secret::Secret;
use flowledger::time::Timestamp;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, eventually, two_nodes};

/// A client that has read the head of its response.
struct Stream {
    reader: BufReader<TcpStream>,
    head: String,
    /// The id of the last event that had one.
    last_id: String,
    comments: Vec<String>,
}

impl Stream {
    fn open(server: &TestServer, query: &str, last_id: Option<&str>) -> Self {
        Self::try_open(server, query, last_id).unwrap_or_else(|head| panic!("{head}"))
    }

    /// Fails with the head of a refusal.
    fn try_open(server: &TestServer, query: &str, last_id: Option<&str>) -> Result<Self, String> {
        let mut stream = server.connect();
        let last_id = last_id.unwrap_or_default();
        let request = format!(
            "GET /api/events{query} HTTP/1.1\r\nhost: {}\r\nlast-event-id: {last_id}\r\n\r\n",
            server.address()
        );
        // The server may refuse and reset the connection before this is sent.
        let _ = stream.write_all(request.as_bytes());
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return Err(head);
            }
        }
        if !head.starts_with("HTTP/1.1 200") {
            return Err(head);
        }
        Ok(Self { reader, head, last_id: last_id.to_owned(), comments: Vec::new() })
    }

    /// Returns the next message, or none at the end of the stream.
    fn next(&mut self) -> Option<Value> {
        let mut data = None;
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).expect("a message comes in time") == 0 {
                assert_eq!(data, None, "an event is cut");
                return None;
            }
            let line = line.strip_suffix('\n').expect("a line is whole");
            match line.split_once(": ") {
                Some(("", comment)) => self.comments.push(comment.to_owned()),
                Some(("id", id)) => id.clone_into(&mut self.last_id),
                Some(("data", text)) => data = Some(serde_json::from_str(text).unwrap()),
                _ => assert_eq!(line, ""),
            }
            if line.is_empty() && data.is_some() {
                return data;
            }
        }
    }

    fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        while !seen.last().is_some_and(&fits) {
            assert!(Instant::now() < deadline, "{seen:#?}");
            seen.push(self.next().expect("the stream goes on"));
        }
        seen
    }

    fn hello(&mut self) -> Value {
        let hello = self.next().unwrap();
        assert_eq!(hello["type"], "HELLO");
        hello["payload"].clone()
    }
}

fn run(server: &TestServer, flow: i64) {
    server.run(flow, &json!({"topic": "x"}));
}

fn newest(server: &TestServer) -> u64 {
    server.server().core().store.newest_seq().unwrap()
}

fn clients(server: &TestServer) -> usize {
    server.server().core().hub.stats().clients.load(Ordering::Relaxed)
}

fn broadcast(server: &TestServer, delta: &str) {
    let context =
        EventContext { flow_id: Some(1), run_id: None, node_id: None, timestamp: Timestamp(0) };
    let event = Event::NodeOutput { context, delta: delta.to_owned() };
    server.server().core().hub.broadcast(&event).unwrap();
}

fn seqs(messages: &[Value]) -> Vec<u64> {
    messages.iter().filter_map(|message| message["seq"].as_u64()).collect()
}

#[test]
fn the_stream_has_the_messages_of_the_websocket() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let mut stream = Stream::open(&server, "", None);
    for header in
        ["content-type: text/event-stream", "cache-control: no-store", "x-accel-buffering: no"]
    {
        assert!(stream.head.contains(header), "{}", stream.head);
    }
    let hello = stream.hello();
    assert_eq!((&hello["seq"], &hello["recovered"]), (&json!(newest(&server)), &json!(true)));
    let mut socket = server.client();
    assert_eq!(clients(&server), 2);
    run(&server, flow);
    broadcast(&server, "not logged");
    let last = |message: &Value| message["payload"]["delta"] == "not logged";
    let messages = socket.until(last);
    assert!(seqs(&messages).len() >= 14);
    assert_eq!(stream.until(last), messages);
    // A message that is not logged leaves the position as it is.
    let epoch = hello["epoch"].as_str().unwrap();
    assert_eq!(stream.last_id, format!("{epoch}-{}", newest(&server)));
}

#[test]
fn a_reconnect_continues_without_gap_or_repeat() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| (0..40).for_each(|_| run(&server, flow)));
        let mut seen = Vec::new();
        let mut last_id = None;
        // Leaves after a few messages, again and again, also while it catches up.
        while !runner.is_finished() || seen.last() != Some(&newest(&server)) {
            let mut stream = Stream::open(&server, "?since=0", last_id.as_deref());
            assert_eq!(stream.hello()["recovered"], true);
            for _ in 0..50 {
                if seen.last() == Some(&newest(&server)) {
                    break;
                }
                let message = stream.next().unwrap();
                seen.extend(message["seq"].as_u64());
            }
            last_id = Some(stream.last_id);
        }
        assert_eq!(seen, (1..=newest(&server)).collect::<Vec<_>>());
    });
}

#[test]
fn a_reconnect_continues_across_restarts() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let mut stream = Stream::open(&server, "", None);
    let first = stream.hello()["seq"].as_u64().unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        run(&server, flow);
        // Some are read before the restart. The first time none is, and `HELLO` is the position.
        for _ in 0..seen.len().min(5) {
            seen.extend(stream.next().unwrap()["seq"].as_u64());
        }
        server.start_again();
        run(&server, flow);
        let last_id = stream.last_id.clone();
        stream = Stream::open(&server, "", Some(&last_id));
        assert_eq!(stream.hello()["recovered"], true);
        let last = newest(&server);
        seen.extend(seqs(&stream.until(|message| message["seq"] == last)));
    }
    assert_eq!(seen, (first + 1..=newest(&server)).collect::<Vec<_>>());
    let unknown = format!("0123456789abcdef-{first}");
    assert_eq!(Stream::open(&server, "", Some(&unknown)).hello()["recovered"], false);
}

#[test]
fn filters_select_missed_and_live_messages() {
    let server = TestServer::start();
    let (flow, other) = (server.save(&two_nodes()), server.save(&two_nodes()));
    let query = format!("?since=0&flow_ids={flow}%2C999&types=FLOW_STATUS,FLOW_STARTED");
    let run_both = || {
        run(&server, other);
        run(&server, flow);
    };
    run_both();
    let mut stream = Stream::open(&server, &query, None);
    stream.hello();
    for _ in 0..2 {
        let seen = stream.until(|message| message["payload"]["status"] == "FINISHED");
        let types: Vec<&str> = seen.iter().map(|it| it["type"].as_str().unwrap()).collect();
        let status = "FLOW_STATUS";
        assert_eq!(types, ["FLOW_STARTED", status, status, status, status]);
        assert!(seen.iter().all(|it| it["payload"]["flowId"] == json!(flow)), "{seen:#?}");
        run_both();
    }
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let server = TestServer::start();
    let mut slow = Stream::open(&server, "", None);
    let mut healthy = Stream::open(&server, "", None);
    healthy.hello();
    let large = "x".repeat(60_000);
    let mut sent = 0;
    while server.server().core().hub.stats().evicted(Eviction::OutboxFull) == 0 {
        broadcast(&server, &large);
        assert_eq!(healthy.next().unwrap()["payload"]["delta"], json!(large));
        sent += 1;
        assert!(sent < 1_000, "it was never disconnected");
    }
    let mut received = 0;
    while slow.next().is_some() {
        received += 1;
    }
    // `HELLO` is one of them.
    assert!(received <= sent, "{received}");
    assert!(slow.comments.last().unwrap().contains("1013"), "{:?}", slow.comments);
    eventually("it is gone", || clients(&server) == 1);
}

#[test]
fn a_client_that_leaves_frees_its_connection_at_once() {
    let server = TestServer::start_with(|config| config.connections_per_address = Some(2));
    let mut first = Stream::open(&server, "", None);
    let second = Stream::open(&server, "", None);
    let refused = server.get("/api/health");
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "too_many_connections"));
    let left_at = Instant::now();
    drop(second);
    eventually("it is unregistered", || clients(&server) == 1);
    let mut third = None;
    eventually("there is room again", || {
        third = Stream::try_open(&server, "", None).ok();
        third.is_some()
    });
    let mut third = third.unwrap();
    // The next keep-alive would have noticed it too.
    assert!(left_at.elapsed() < Duration::from_secs(20));
    for stream in [&mut first, &mut third] {
        stream.hello();
    }
    broadcast(&server, "both stay");
    for stream in [&mut first, &mut third] {
        assert_eq!(stream.next().unwrap()["payload"]["delta"], "both stay");
    }
}

#[test]
fn a_quiet_stream_has_keep_alive_comments() {
    let server = TestServer::start_with(|config| {
        config.pings.interval = Duration::from_millis(50);
    });
    let mut stream = Stream::open(&server, "", None);
    stream.hello();
    let mut text = [0; 28];
    stream.reader.read_exact(&mut text).unwrap();
    assert_eq!(std::str::from_utf8(&text).unwrap(), ": keep-alive\n\n: keep-alive\n\n");
}

#[test]
fn a_client_that_goes_on_sending_is_disconnected() {
    let server = TestServer::start();
    let mut stream = Stream::open(&server, "", None);
    stream.hello();
    let _ = stream.reader.get_mut().write_all(&vec![b'x'; 70_000]);
    assert_eq!(stream.next(), None);
    assert!(stream.comments[0].contains("too much input"), "{:?}", stream.comments);
    eventually("it is counted", || {
        server.server().core().hub.stats().evicted(Eviction::TooMuch) == 1
    });
}

#[test]
fn a_shutdown_ends_the_streams() {
    let mut server = TestServer::start();
    let mut streams: Vec<Stream> = (0..10).map(|_| Stream::open(&server, "", None)).collect();
    let began = Instant::now();
    let readers: Vec<_> = streams
        .drain(..)
        .map(|mut stream| {
            std::thread::spawn(move || {
                while stream.next().is_some() {}
                stream.comments
            })
        })
        .collect();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for reader in readers {
        let comments = reader.join().unwrap();
        assert!(comments.last().unwrap().contains("1001"), "{comments:?}");
    }
}

#[test]
fn a_faulty_or_foreign_request_is_refused() {
    let server = TestServer::start_with(|config| {
        config.token = Some(Secret::new("the-token"));
        config.allow_origins = vec!["https://a.example".to_owned()];
    });
    let bearer = ("authorization", "Bearer the-token");
    let refused = server.get("/api/events");
    assert_eq!((refused.status, refused.error_code().as_str()), (401, "unauthorized"));
    for (query, headers, field) in [
        ("?since=x", vec![bearer], "since"),
        ("?flow_ids=1,x", vec![bearer], "flow_ids"),
        ("?flowIds=1", vec![bearer], "flowIds"),
        ("", vec![bearer, ("last-event-id", "7")], "Last-Event-ID"),
    ] {
        let refused = server.request("GET", &format!("/api/events{query}"), &headers, b"");
        assert_eq!(refused.status, 422, "{query}");
        assert_eq!(refused.json()["error"]["details"][0]["field"], field);
    }
    let refused = server.request("POST", "/api/events", &[bearer], b"");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET")));
    let foreign = [bearer, ("sec-fetch-site", "cross-site"), ("origin", "https://b.example")];
    assert_eq!(server.request("GET", "/api/events", &foreign, b"").status, 403);
    // A page of an allowed origin may read the stream.
    let mut stream = server.connect();
    let request = format!(
        "GET /api/events HTTP/1.1\r\nhost: {}\r\norigin: https://a.example\r\n\
         sec-fetch-site: cross-site\r\nauthorization: Bearer the-token\r\n\r\n",
        server.address()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "access-control-allow-origin: https://a.example"));
    let mut stream = server.connect();
    stream.write_all(request.replace("GET", "HEAD").as_bytes()).unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}
