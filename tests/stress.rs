//! Stress scenarios, each with its own invariant. They run one after another in one process. At the
//! end no thread, socket or file descriptor may remain.
//!
//! `STRESS_ONLY=part` runs only the scenarios whose name contains `part`; `STRESS_SEED=number` sets
//! the random seed. Names, times and seeds go to standard error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
mod binary;
#[allow(dead_code)]
mod harness;
#[allow(dead_code)]
mod random;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flowledger::event::{Event, EventContext};
use flowledger::hub::Eviction;
use flowledger::server::Server;
use flowledger::store::{Change, NodeRef, Store};
use flowledger::time::Timestamp;
use harness::{DEADLINE, TestServer, eventually, two_nodes};
use random::{Random, from_environment};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

// ---------------------------------------------------------------------------------------------
// Tools

fn seed() -> u64 {
    from_environment("STRESS_SEED", 20_251_204)
}

/// Returns an independent random stream.
fn seeded(stream: u64) -> Random {
    Random::new(seed(), stream)
}

/// Received from the server.
#[derive(Debug, PartialEq)]
enum Got {
    Text(String),
    Ping,
    Pong(Vec<u8>),
    Close(u16),
    /// The end of the stream, clean or not.
    End,
    /// Timeout.
    Nothing,
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;

/// A client that sees raw frames and fails on any frame that a server must not send.
struct Ws {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Number of consumed bytes in the buffer.
    used: usize,
    hello: Value,
    closed: bool,
}

fn handshake(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A client frame. The mask has no effect on these tests, but the protocol requires it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut bytes = vec![first];
    match payload.len() {
        short @ 0..126 => bytes.push(0x80 | short as u8),
        middle @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(0x80 | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
    bytes
}

fn subscribe_to(flows: &[i64]) -> String {
    json!({"type": "SUBSCRIBE", "payload": {"flowIds": flows}}).to_string()
}

const ASK: &str = r#"{"type":"PING"}"#;

impl Ws {
    fn connect(address: SocketAddr, path: &str) -> io::Result<Self> {
        Self::over(TcpStream::connect(address)?, address, path)
    }

    /// Connects with a small kernel buffer, so that the client soon falls behind.
    fn with_small_buffer(address: SocketAddr, path: &str) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into(), address, path).unwrap()
    }

    fn over(mut stream: TcpStream, address: SocketAddr, path: &str) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.write_all(handshake(address, path).as_bytes())?;
        Self::after_request(stream)
    }

    /// Reads the response to a handshake that was already sent, and `HELLO`.
    fn after_request(stream: TcpStream) -> io::Result<Self> {
        let mut ws =
            Self { stream, buffer: Vec::new(), used: 0, hello: Value::Null, closed: false };
        let deadline = Instant::now() + DEADLINE;
        let end = loop {
            if let Some(at) = ws.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !ws.fill(deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        if !ws.buffer.starts_with(b"HTTP/1.1 101 ") {
            let text = String::from_utf8_lossy(&ws.buffer[..end]).into_owned();
            return Err(io::Error::other(text));
        }
        ws.used = end;
        match ws.get(DEADLINE) {
            Got::Text(text) => ws.hello = serde_json::from_str(&text).unwrap(),
            other => return Err(io::Error::other(format!("{other:?} instead of HELLO"))),
        }
        assert_eq!(ws.hello["type"], "HELLO", "{}", ws.hello);
        Ok(ws)
    }

    fn to(server: &TestServer) -> Self {
        Self::connect(server.address(), "/ws").unwrap()
    }

    fn since(server: &TestServer, since: u64) -> Self {
        Self::connect(server.address(), &format!("/ws?since={since}")).unwrap()
    }

    fn recovered(&self) -> bool {
        self.hello["payload"]["recovered"] == true
    }

    /// Returns false at the end of the stream.
    fn fill(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        let old = self.buffer.len();
        self.buffer.resize(old + (16 << 10), 0);
        let read = self.stream.read(&mut self.buffer[old..]);
        self.buffer.truncate(old + read.as_ref().copied().unwrap_or(0));
        Ok(read? > 0)
    }

    /// Returns the next frame, if one comes in time.
    fn get(&mut self, time: Duration) -> Got {
        let deadline = Instant::now() + time;
        loop {
            if let Some(got) = self.parse() {
                assert!(!self.closed, "{got:?} came after a close frame");
                self.closed = matches!(got, Got::Close(_));
                return got;
            }
            match self.fill(deadline) {
                Ok(true) => {}
                Ok(false) => return Got::End,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Got::Nothing;
                }
                Err(_) => return Got::End,
            }
        }
    }

    fn parse(&mut self) -> Option<Got> {
        let bytes = &self.buffer[self.used..];
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let (head, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
            127 => {
                let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap());
                (10, usize::try_from(length).unwrap())
            }
            short => {
                assert!(short < 126, "a masked frame: {second:#x}");
                (2, usize::from(short))
            }
        };
        assert!(length < 64 << 20, "no frame is so large: {length}");
        let payload = bytes.get(head..head + length)?;
        let got = match first {
            0x81 => {
                let text = std::str::from_utf8(payload).expect("a text is UTF-8");
                assert!(text.starts_with('{') && text.ends_with('}'), "{text}");
                Got::Text(text.to_owned())
            }
            0x88 => Got::Close(u16::from_be_bytes(
                payload.get(..2).map_or([0, 0], |code| code.try_into().unwrap()),
            )),
            0x89 => Got::Ping,
            0x8a => Got::Pong(payload.to_vec()),
            other => panic!("a corrupt frame: {other:#x}"),
        };
        self.used += head + length;
        Some(got)
    }

    /// Returns the next text message; fails on anything else and on a timeout.
    fn text(&mut self) -> String {
        loop {
            match self.get(DEADLINE) {
                Got::Text(text) => return text,
                Got::Ping | Got::Pong(_) => {}
                other => panic!("{other:?} instead of a text"),
            }
        }
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.text()).expect("one JSON object in a message")
    }

    /// Returns the delta of the next `NODE_OUTPUT`.
    fn delta(&mut self) -> String {
        let message = self.json();
        message["payload"]["delta"].as_str().expect("a delta").to_owned()
    }

    fn send(&mut self, first: u8, payload: &[u8]) {
        self.stream.write_all(&frame(first, payload)).unwrap();
    }

    /// Sends a message and waits until the server has processed it and all earlier ones.
    fn tell(&mut self, text: &str) -> Vec<String> {
        self.send(FIN | TEXT, text.as_bytes());
        self.send(FIN | TEXT, ASK.as_bytes());
        let mut before = Vec::new();
        loop {
            let text = self.text();
            if type_of(&text) == "PONG" {
                return before;
            }
            before.push(text);
        }
    }

    /// Reads to the end; returns the close code, if any.
    fn read_to_close(&mut self) -> Option<u16> {
        let deadline = Instant::now() + DEADLINE;
        let mut code = None;
        loop {
            match self.get(DEADLINE) {
                Got::End => return code,
                Got::Close(with) => code = Some(with),
                Got::Nothing => panic!("the connection does not end"),
                _ => {}
            }
            assert!(Instant::now() < deadline, "the connection does not end");
        }
    }

    /// Resets the connection.
    fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// Returns the sequence number of a logged message.
fn seq_of(text: &str) -> Option<u64> {
    let rest = text.strip_prefix("{\"seq\":")?;
    let end = rest.find(',')?;
    Some(rest[..end].parse().unwrap())
}

fn type_of(text: &str) -> &str {
    let at = text.find("\"type\":\"").expect("a message has a type") + 8;
    &text[at..at + text[at..].find('"').unwrap()]
}

/// Returns the flow id in the text of a message.
fn flow_of(text: &str) -> Option<u64> {
    let at = text.find("\"flowId\":")? + 9;
    let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// A change that produces one logged message of about `size` bytes in this flow.
fn change(flow: u64, size: usize) -> Change {
    Change::StartNode {
        node: NodeRef {
            item: None,
            flow_id: i64::try_from(flow).unwrap(),
            run_id: "stress".into(),
            node_id: "node".into(),
            label: "x".repeat(size),
            attempt: 1,
        },
        prompt: None,
        at: Timestamp::now(),
    }
}

/// Commits `count` logged messages in one transaction.
fn commit(server: &Server, flow: u64, count: usize, size: usize) {
    let changes = vec![change(flow, size); count];
    server.core().journal.commit(changes).unwrap();
}

/// Commits `count` logged messages, a few at a time; the flow of each is its seq modulo `flows`.
fn commit_cycling(server: &Server, count: u64, per_commit: u64, flows: u64, pace: Duration) {
    let mut seq = server.core().store.newest_seq().unwrap();
    let last = seq + count;
    while seq < last {
        let upto = last.min(seq + per_commit);
        let changes = (seq + 1..=upto).map(|seq| change(seq % flows, 60));
        server.core().journal.commit(changes.collect()).unwrap();
        seq = upto;
        thread::park_timeout(pace);
    }
}

fn newest(server: &TestServer) -> u64 {
    server.server().core().store.newest_seq().unwrap()
}

fn clients(server: &TestServer) -> usize {
    let stats = server.server().core().hub.stats();
    stats.clients.load(Ordering::Relaxed)
}

fn all_are_gone(server: &TestServer) {
    eventually("all clients are unregistered", || clients(server) == 0);
}

/// An event that is not logged.
fn delta_event(flow: i64, delta: impl Into<String>) -> Event {
    let context =
        EventContext { flow_id: Some(flow), run_id: None, node_id: None, timestamp: Timestamp(0) };
    Event::NodeOutput { context, delta: delta.into() }
}

fn broadcast(server: &TestServer, delta: impl Into<String>) {
    let hub = &server.server().core().hub;
    hub.broadcast(&delta_event(1, delta)).unwrap();
}

/// A client that reconnects with `since` after every disconnect and checks that it receives each
/// message once.
struct Follower {
    address: SocketAddr,
    last: u64,
    ws: Option<Ws>,
    /// For `(flow, flows)`: wants only messages whose seq is `flow` modulo `flows`.
    wants: Option<(u64, u64)>,
    connections: usize,
    cut: usize,
    /// True if the server may go away for a while.
    survives_restarts: bool,
}

impl Follower {
    fn new(address: SocketAddr, last: u64, wants: Option<(u64, u64)>) -> Self {
        Self { address, last, ws: None, wants, connections: 0, cut: 0, survives_restarts: false }
    }

    fn connect(&mut self) {
        let path = format!("/ws?since={}", self.last);
        let deadline = Instant::now() + DEADLINE;
        let mut ws = loop {
            match Ws::connect(self.address, &path) {
                Ok(ws) => break ws,
                Err(error) => assert!(
                    self.survives_restarts && Instant::now() < deadline,
                    "cannot connect: {error}"
                ),
            }
            thread::park_timeout(Duration::from_millis(5));
        };
        assert!(ws.recovered(), "{}", ws.hello);
        if let Some((flow, _)) = self.wants {
            let subscribe = subscribe_to(&[i64::try_from(flow).unwrap()]);
            // The connection may be cut before this is sent.
            let _ = ws.stream.write_all(&frame(FIN | TEXT, subscribe.as_bytes()));
        }
        self.connections += 1;
        self.ws = Some(ws);
    }

    fn takes(&mut self, seq: u64) {
        let next = self.last + 1;
        match self.wants {
            None => assert_eq!(seq, next, "a gap or a repeat"),
            Some((flow, flows)) => {
                assert!(seq >= next, "{seq} comes after {}", self.last);
                let missed = (next..seq).find(|seq| seq % flows == flow);
                assert_eq!(missed, None, "missed before {seq}");
            }
        }
        self.last = seq;
    }

    /// Takes the next message. Returns false if none comes in time.
    fn step(&mut self, time: Duration) -> bool {
        if self.ws.is_none() {
            self.connect();
        }
        let Some(ws) = &mut self.ws else { return false };
        match ws.get(time) {
            Got::Text(text) => {
                if let Some(seq) = seq_of(&text) {
                    self.takes(seq);
                }
                true
            }
            Got::Ping | Got::Pong(_) => true,
            Got::Close(1001) | Got::End if self.survives_restarts => {
                self.ws = None;
                true
            }
            Got::Close(code) => {
                assert_eq!(code, 1013, "cut with another code");
                self.cut += 1;
                self.ws = None;
                true
            }
            Got::End => panic!("the connection was lost without a close"),
            Got::Nothing => false,
        }
    }

    fn until(&mut self, last: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.last < last {
            assert!(self.step(DEADLINE), "nothing comes after {}, but {last} should", self.last);
            assert!(Instant::now() < deadline, "{} of {last} in time", self.last);
        }
    }

    /// Disconnects without a close, with a reset, or with a close.
    fn leave(&mut self, how: u64) {
        let Some(mut ws) = self.ws.take() else { return };
        match how % 3 {
            0 => drop(ws),
            1 => ws.reset(),
            _ => {
                let _ = ws.stream.write_all(&frame(FIN | CLOSE, &[]));
            }
        }
    }
}

/// Runs `work` in `count` threads and waits for all.
fn in_threads(count: u64, work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for number in 0..count {
            let work = &work;
            scope.spawn(move || work(number));
        }
    });
}

/// Stops the threads of a scope, also if the scope's own thread fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Resident memory of the process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|kib| kib.parse().ok())
        .expect("the memory is reported");
    kib << 10
}

/// Checks that healthy clients receive everything in order and in time while `disturb` runs.
/// Returns the result of `disturb`.
fn healthy_beside<T: Send>(
    server: &TestServer,
    events: usize,
    disturb: impl FnOnce(&AtomicBool) -> T + Send,
) -> T {
    let over = AtomicBool::new(false);
    let mut healthy: Vec<Ws> = (0..5).map(|_| Ws::to(server)).collect();
    thread::scope(|scope| {
        let disturbance = scope.spawn(|| disturb(&over));
        let readers: Vec<_> = healthy
            .iter_mut()
            .map(|ws| {
                scope.spawn(move || {
                    for number in 0..events {
                        let message = loop {
                            let message = ws.json();
                            // The disturbance uses other flows.
                            if message["payload"]["flowId"] == 1 {
                                break message;
                            }
                        };
                        assert_eq!(message["payload"]["delta"], number.to_string());
                    }
                })
            })
            .collect();
        for number in 0..events {
            broadcast(server, number.to_string());
            thread::park_timeout(Duration::from_millis(1));
        }
        // The disturbance must end even if a reader failed.
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        over.store(true, Ordering::SeqCst);
        let done = disturbance.join();
        assert!(read.iter().all(Result::is_ok), "a healthy client was disturbed");
        done.unwrap()
    })
}

// ---------------------------------------------------------------------------------------------
// Nothing is lost

/// Runs 500 clients in 10 threads that connect, read a little and leave while events flow.
fn recovery_storm(wants: impl Fn(u64) -> Option<(u64, u64)> + Sync, flows: u64) {
    let server = TestServer::start();
    let start = newest(&server);
    let over = AtomicBool::new(false);
    let connections = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            commit_cycling(server.server(), 1_000, 2, flows, Duration::from_millis(2));
            over.store(true, Ordering::SeqCst);
        });
        in_threads(10, |number| {
            let mut random = seeded(number);
            let mut followers: Vec<Follower> = (0..50)
                .map(|at| Follower::new(server.address(), start, wants(number * 50 + at)))
                .collect();
            while !over.load(Ordering::SeqCst) {
                let at = random.below(50) as usize;
                for _ in 0..random.below(40) {
                    if !followers[at].step(Duration::from_millis(1)) {
                        break;
                    }
                }
                if random.below(3) == 0 {
                    followers[at].leave(random.next());
                }
            }
            let last = newest(&server);
            for follower in &mut followers {
                let upto = follower.wants.map_or(last, |(flow, flows)| {
                    (0..=last).rev().find(|seq| seq % flows == flow).unwrap()
                });
                follower.until(upto);
                connections.fetch_add(follower.connections, Ordering::Relaxed);
            }
        });
    });
    let connections = connections.into_inner();
    assert!(connections >= 600, "no storm: {connections} connections");
    all_are_gone(&server);
}

fn a_recovery_storm_of_500_clients_has_no_gap_and_no_repeat() {
    recovery_storm(|_| None, 7);
}

fn a_recovery_storm_respects_subscriptions() {
    recovery_storm(|number| Some((number % 5, 5)), 5);
}

fn slow_readers_are_closed_with_1013_and_can_catch_up() {
    let server = TestServer::start();
    let start = newest(&server);
    let mut slow: Vec<Follower> = (0..20)
        .map(|_| {
            let mut follower = Follower::new(server.address(), start, None);
            follower.ws = Some(Ws::with_small_buffer(server.address(), "/ws"));
            follower
        })
        .collect();
    let hub = &server.server().core().hub;
    let deadline = Instant::now() + DEADLINE;
    while hub.stats().evicted(Eviction::OutboxFull) < 20 {
        commit(server.server(), 1, 20, 30_000);
        assert!(Instant::now() < deadline, "slow readers were not cut");
    }
    let last = newest(&server);
    for follower in &mut slow {
        follower.until(last);
        assert_eq!(follower.cut, 1, "it was cut once");
    }
}

fn a_burst_larger_than_an_outbox_reaches_every_client() {
    let server = TestServer::start();
    let start = newest(&server);
    let mut followers: Vec<Follower> =
        (0..8).map(|_| Follower::new(server.address(), start, None)).collect();
    followers.iter_mut().for_each(Follower::connect);
    commit(server.server(), 1, 12, 256 << 10);
    let last = newest(&server);
    for follower in &mut followers {
        follower.until(last);
    }
}

fn an_event_larger_than_an_outbox_reaches_every_client() {
    let server = TestServer::start();
    let start = newest(&server);
    let mut followers: Vec<Follower> =
        (0..4).map(|_| Follower::new(server.address(), start, None)).collect();
    followers.iter_mut().for_each(Follower::connect);
    commit(server.server(), 1, 1, 9 << 20);
    commit(server.server(), 1, 1, 10);
    let last = newest(&server);
    for follower in &mut followers {
        follower.until(last);
    }
}

fn a_since_in_the_future_is_not_recovered_but_goes_live() {
    let server = TestServer::start();
    commit(server.server(), 1, 3, 10);
    let last = newest(&server);
    for since in [last + 1, last + 1_000, u64::MAX - 1, u64::MAX] {
        let mut ws = Ws::since(&server, since);
        assert!(!ws.recovered(), "{since}: {}", ws.hello);
        commit(server.server(), 1, 1, 10);
        assert_eq!(seq_of(&ws.text()), Some(newest(&server)));
    }
}

/// Writes `count` events of this age into the log of a stopped server.
fn write_log(dir: &std::path::Path, count: usize, at: Timestamp) {
    let (_store, mut writer) = Store::open(dir).unwrap();
    let body = r#"{"type":"NODE_STARTED","payload":{"flowId":1}}"#;
    writer
        .transaction(|batch| {
            (0..count)
                .try_for_each(|_| batch.append_event(at, Some(1), "NODE_STARTED", body).map(drop))
        })
        .unwrap();
}

fn a_replay_during_event_removal_has_no_gap() {
    // Too many to remove before the deadline unless the steps follow each other at once.
    const OLD: u64 = 25_000;
    const ALL: u64 = OLD + 500;
    let server = TestServer::start_with(|config| {
        write_log(&config.data, OLD as usize, Timestamp(0));
        write_log(&config.data, 500, Timestamp::now());
    });
    let mut random = seeded(1);
    let deadline = Instant::now() + DEADLINE;
    let (mut whole, mut refused) = (0, 0);
    loop {
        let since = random.below(ALL);
        let mut ws = Ws::since(&server, since);
        let oldest = ws.hello["payload"]["oldestSeq"].as_u64().unwrap();
        assert_eq!(ws.recovered(), since + 1 >= oldest, "{}", ws.hello);
        if !ws.recovered() {
            refused += 1;
        }
        // A replay whose old events are removed ends with a close and leaves no gap.
        let mut next = since + 1;
        while ws.recovered() && next <= ALL {
            match ws.get(DEADLINE) {
                Got::Text(text) => assert_eq!(seq_of(&text), Some(next)),
                Got::Close(1011) => break,
                other => panic!("{other:?} instead of {next}"),
            }
            next += 1;
        }
        whole += usize::from(next == ALL + 1);
        if oldest == OLD + 1 && whole > 0 && refused > 0 {
            break;
        }
        let is_late = Instant::now() >= deadline;
        assert!(!is_late, "{oldest} is the oldest; {whole} whole, {refused} refused");
    }
    assert!(Ws::since(&server, OLD).recovered());
    assert!(!Ws::since(&server, OLD - 1).recovered());
}

fn a_second_server_on_the_same_data_continues_the_seq() {
    let mut server = TestServer::start();
    let mut expected = newest(&server);
    let first = expected;
    for round in 1..=4 {
        commit(server.server(), 1, 10 * round, 20);
        expected += 10 * round as u64;
        assert_eq!(newest(&server), expected, "a seq was used twice or left out");
        server.start_again();
        assert_eq!(newest(&server), expected, "a seq was lost");
        assert_eq!(Ws::to(&server).hello["payload"]["seq"], expected);
    }
    Follower::new(server.address(), first, None).until(expected);
}

fn a_restart_with_200_clients_loses_no_event() {
    let mut server = TestServer::start();
    let (start, address) = (newest(&server), server.address());
    let target = AtomicU64::new(u64::MAX);
    let connected = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut followers: Vec<Follower> =
                    (0..20).map(|_| Follower::new(address, start, None)).collect();
                for follower in &mut followers {
                    follower.survives_restarts = true;
                    follower.connect();
                    connected.fetch_add(1, Ordering::SeqCst);
                }
                let deadline = Instant::now() + DEADLINE;
                while target.load(Ordering::SeqCst) == u64::MAX {
                    for follower in &mut followers {
                        follower.step(Duration::from_millis(1));
                    }
                    assert!(Instant::now() < deadline, "the server does not come back");
                }
                for mut follower in followers {
                    follower.until(target.load(Ordering::SeqCst));
                    assert!(follower.connections >= 2, "it was not closed");
                }
            });
        }
        eventually("200 are connected", || connected.load(Ordering::SeqCst) == 200);
        commit(server.server(), 1, 50, 100);
        server.start_again();
        commit(server.server(), 1, 50, 100);
        target.store(newest(&server), Ordering::SeqCst);
    });
}

fn a_replay_of_100000_events_is_streamed_beside_live_clients() {
    const EVENTS: u64 = 100_000;
    let server =
        TestServer::start_with(|config| write_log(&config.data, EVENTS as usize, Timestamp::now()));
    let mut live = Ws::to(&server);
    let before = resident();
    let over = AtomicBool::new(false);
    let (mut slowest, mut most, mut rounds) = (Duration::ZERO, before, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut follower = Follower::new(server.address(), 0, None);
            follower.until(EVENTS);
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
            let began = Instant::now();
            broadcast(&server, rounds.to_string());
            assert_eq!(live.delta(), rounds.to_string());
            slowest = slowest.max(began.elapsed());
            most = most.max(resident());
            rounds += 1;
            thread::park_timeout(Duration::from_millis(2));
        }
    });
    assert!(rounds > 10, "{rounds} rounds are none to judge by");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let grown = most.saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
}

fn thirty_clients_catch_up_at_once_while_events_flow() {
    let server = TestServer::start_with(|config| {
        write_log(&config.data, 3_000, Timestamp::now());
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            commit_cycling(server.server(), 1_000, 5, 3, Duration::from_millis(1));
        });
        in_threads(30, |_| {
            Follower::new(server.address(), 0, None).until(4_000);
        });
    });
}

fn clients_that_leave_during_a_replay_leak_nothing() {
    let server = TestServer::start_with(|config| {
        write_log(&config.data, 5_000, Timestamp::now());
    });
    in_threads(10, |number| {
        let mut random = seeded(number);
        for _ in 0..6 {
            let mut follower = Follower::new(server.address(), random.below(4_000), None);
            for _ in 0..random.below(300) {
                follower.step(DEADLINE);
            }
            follower.leave(random.next());
        }
    });
    all_are_gone(&server);
    Follower::new(server.address(), 0, None).until(5_000);
}

fn commits_of_many_threads_reach_all_clients_in_one_order() {
    let server = TestServer::start();
    let start = newest(&server);
    thread::scope(|scope| {
        let address = server.address();
        for _ in 0..10 {
            let mut follower = Follower::new(address, start, None);
            follower.connect();
            scope.spawn(move || follower.until(start + 1_600));
        }
        for flow in 0..8 {
            let server = &server;
            scope.spawn(move || (0..100).for_each(|_| commit(server.server(), flow, 2, 40)));
        }
    });
}

fn concurrent_runs_reach_many_clients_whole_and_in_order() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let start = newest(&server);
    let mut crowd: Vec<Follower> =
        (0..20).map(|_| Follower::new(server.address(), start, None)).collect();
    crowd.iter_mut().for_each(Follower::connect);
    in_threads(6, |_| {
        for _ in 0..5 {
            let run = server.run(flow, &json!({"topic": "ants"}));
            assert_eq!(run["status"], "COMPLETED", "{run:#}");
        }
    });
    let last = newest(&server);
    crowd.iter_mut().for_each(|follower| follower.until(last));
    let events = server.server().core().store.events(start, last, 10_000, usize::MAX).unwrap();
    let count = |name: &str| events.iter().filter(|event| event.type_name == name).count();
    assert_eq!((count("FLOW_STARTED"), count("FLOW_COMPLETED")), (30, 30));
    assert_eq!(count("NODE_COMPLETED"), 60);
}

// ---------------------------------------------------------------------------------------------
// Undisturbed clients

fn a_flood_of_pings_during_large_messages_corrupts_no_frame() {
    const MESSAGES: usize = 200;
    let server = TestServer::start();
    let mut ws = Ws::to(&server);
    let mut pinging = ws.stream.try_clone().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let pings: Vec<u8> = (0..50).flat_map(|_| frame(FIN | PING, b"hello")).collect();
            // As many pings as the rate limit allows in a burst.
            for _ in 0..18 {
                if over.load(Ordering::SeqCst) || pinging.write_all(&pings).is_err() {
                    return;
                }
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let (send, read) = crossbeam_channel::bounded::<()>(8);
        let server = &server;
        scope.spawn(move || {
            for number in 0..MESSAGES {
                let length = 10_000 + number * 977 % 50_000;
                broadcast(server, format!("{number}:{}", "y".repeat(length)));
                // Keeps only a few messages in flight, so that the server does not cut the client.
                if send.send_timeout((), DEADLINE).is_err() {
                    return;
                }
            }
        });
        let _stop = StopOnDrop(&over);
        let mut pongs = 0;
        let mut next = 0;
        while next < MESSAGES {
            match ws.get(DEADLINE) {
                Got::Text(text) => {
                    let delta = format!("\"delta\":\"{next}:yyy");
                    assert!(text.contains(&delta), "not {next}: {}", &text[..200]);
                    next += 1;
                    let _ = read.recv_timeout(DEADLINE);
                }
                Got::Pong(payload) => {
                    assert_eq!(payload, b"hello");
                    pongs += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(pongs > 0);
    });
}

fn a_hundred_non_readers_are_closed_and_disturb_no_other() {
    let server = TestServer::start();
    let mut stuck: Vec<Ws> =
        (0..100).map(|_| Ws::with_small_buffer(server.address(), "/ws")).collect();
    let hub = &server.server().core().hub;
    healthy_beside(&server, 300, |_| {
        let large = "z".repeat(30_000);
        let deadline = Instant::now() + DEADLINE;
        while hub.stats().evicted(Eviction::OutboxFull) < 100 {
            hub.broadcast(&delta_event(2, large.clone())).unwrap();
            thread::park_timeout(Duration::from_millis(2));
            assert!(Instant::now() < deadline, "they are not cut");
        }
    });
    for ws in &mut stuck {
        assert_eq!(ws.read_to_close(), Some(1013));
    }
}

fn a_hundred_ping_flooders_disturb_no_other() {
    let server = TestServer::start();
    let address = server.address();
    healthy_beside(&server, 200, |over| {
        in_threads(10, |_| {
            let mut flood: Vec<Ws> =
                (0..10).map(|_| Ws::connect(address, "/ws").unwrap()).collect();
            let pings = frame(FIN | PING, b"flood").repeat(10);
            while !over.load(Ordering::SeqCst) {
                for ws in &mut flood {
                    ws.stream.write_all(&pings).unwrap();
                    let mut pongs = 0;
                    while pongs < 10 {
                        match ws.get(DEADLINE) {
                            Got::Pong(payload) => {
                                assert_eq!(payload, b"flood");
                                pongs += 1;
                            }
                            Got::Text(_) => {}
                            other => panic!("{other:?} instead of a pong"),
                        }
                    }
                }
            }
        });
    });
    all_are_gone(&server);
}

fn a_hundred_garbage_senders_are_closed_and_disturb_no_other() {
    let server = TestServer::start();
    let address = server.address();
    healthy_beside(&server, 200, |_| {
        in_threads(10, |number| {
            let mut random = seeded(number);
            for _ in 0..10 {
                // An undefined opcode: the server must close the connection, whatever follows.
                let mut garbage = vec![0x83 | random.below(4) as u8 | 0x70];
                garbage.extend(random.bytes(2_000));
                let mut ws = Ws::connect(address, "/ws").unwrap();
                let _ = ws.stream.write_all(&garbage);
                let _ = ws.stream.shutdown(Shutdown::Write);
                assert_eq!(ws.read_to_close(), Some(1002));
                // An invalid request head gets only errors.
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                let mut bytes = random.bytes(500);
                bytes[0] |= 0x80;
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert!(
                    answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
                    "{}",
                    String::from_utf8_lossy(&answer)
                );
            }
        });
    });
}

fn two_hundred_half_request_heads_disturb_no_other() {
    let server = TestServer::start();
    let whole = handshake(server.address(), "/ws");
    let mut random = seeded(0);
    let half: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = server.connect();
            let length = 1 + random.below(whole.len() as u64 - 1) as usize;
            stream.write_all(&whole.as_bytes()[..length]).unwrap();
            stream
        })
        .collect();
    healthy_beside(&server, 200, |_| {
        for _ in 0..20 {
            assert_eq!(server.get("/api/health").status, 200);
            drop(Ws::to(&server));
        }
    });
    drop(half);
    all_are_gone(&server);
}

fn fifty_simultaneous_resets_disturb_no_other() {
    let server = TestServer::start();
    let address = server.address();
    healthy_beside(&server, 200, |_| {
        in_threads(5, |number| {
            for at in 0..10 {
                let mut stream = TcpStream::connect(address).unwrap();
                if (number + at) % 2 == 0 {
                    stream.write_all(handshake(address, "/ws").as_bytes()).unwrap();
                }
                let linger = Some(Duration::ZERO);
                socket2::SockRef::from(&stream).set_linger(linger).unwrap();
            }
        });
        assert_eq!(server.get("/api/health").status, 200);
    });
    all_are_gone(&server);
}

fn without_free_descriptors_clients_get_503_until_some_are_free() {
    let home = binary::Home::new();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 80; exec \"$0\" serve --listen 127.0.0.1:0"])
        .arg(env!("CARGO_BIN_EXE_flowledger"))
        .env_clear()
        .env("HOME", home.path("."))
        .env("FLOWLEDGER_DATA", home.data());
    let served = binary::Served::start(&mut command);
    for _ in 0..3 {
        let mut connected = Vec::new();
        let refusal = loop {
            match Ws::connect(served.address, "/ws") {
                Ok(ws) => connected.push(ws),
                Err(error) => break error,
            }
            assert!(connected.len() < 80, "more than there are descriptors for");
        };
        assert!(refusal.to_string().contains(" 503 "), "{refusal}");
        assert!(connected.len() > 20, "only {}", connected.len());
        // Connected clients stay connected.
        for ws in &mut connected {
            ws.tell(ASK);
        }
        drop(connected);
        eventually("there is room again", || Ws::connect(served.address, "/ws").is_ok());
    }
    served.running.signal("TERM");
    assert_eq!(served.running.end().code, Some(0));
}

fn concurrent_clients_are_counted_and_have_unique_ids() {
    let server = TestServer::start();
    let ids = Mutex::new(HashSet::new());
    in_threads(12, |number| {
        let mut random = seeded(number);
        for _ in 0..30 {
            let mut ws = Ws::to(&server);
            let id = ws.hello["payload"]["clientId"].as_u64().unwrap();
            assert!(ids.lock().unwrap().insert(id), "{id} was given twice");
            match random.below(4) {
                0 => ws.reset(),
                1 => ws.send(FIN | CLOSE, &[]),
                2 => ws.send(FIN | TEXT, b"not even json"),
                _ => {}
            }
            broadcast(&server, "x");
        }
    });
    assert_eq!(ids.into_inner().unwrap().len(), 360);
    all_are_gone(&server);
}

fn changing_subscriptions_never_deliver_a_wrong_event() {
    let server = TestServer::start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let hub = &server.server().core().hub;
            let mut number = 0;
            while !over.load(Ordering::SeqCst) {
                hub.broadcast(&delta_event(number % 6, "x")).unwrap();
                number += 1;
                thread::park_timeout(Duration::from_micros(200));
            }
        });
        let _stop = StopOnDrop(&over);
        {
            in_threads(12, |number| {
                let mut random = seeded(number);
                let mut ws = Ws::to(&server);
                for _ in 0..25 {
                    let flow = random.below(6);
                    ws.tell(&subscribe_to(&[flow as i64]));
                    for _ in 0..4 {
                        let text = ws.text();
                        assert_eq!(flow_of(&text), Some(flow), "{text}");
                    }
                }
            });
        }
    });
}

fn a_subscription_during_a_replay_holds_from_its_reply() {
    let server = TestServer::start();
    commit_cycling(server.server(), 3_000, 500, 3, Duration::ZERO);
    let last = newest(&server);
    in_threads(10, |number| {
        let mut random = seeded(number);
        let mut follower = Follower::new(server.address(), 0, Some((number % 3, 3)));
        follower.connect();
        for _ in 0..random.below(200) {
            follower.step(DEADLINE);
        }
        let mut ws = follower.ws.take().unwrap();
        ws.send(FIN | TEXT, ASK.as_bytes());
        let mut answered = false;
        while follower.last < last - 3 {
            let text = ws.text();
            match seq_of(&text) {
                None => answered |= type_of(&text) == "PONG",
                Some(seq) => {
                    assert!(!answered || seq % 3 == number % 3, "{text}");
                    follower.takes(seq);
                }
            }
        }
    });
}

fn many_distinct_filters_each_get_exactly_their_events() {
    let server = TestServer::start();
    let mut all: Vec<Ws> = (0..150).map(|_| Ws::to(&server)).collect();
    for (flow, ws) in all.iter_mut().enumerate() {
        let flow = flow as i64;
        ws.tell(&subscribe_to(&[flow, flow + 1, flow + 1_000]));
    }
    for flow in 0..151 {
        let hub = &server.server().core().hub;
        hub.broadcast(&delta_event(flow, flow.to_string())).unwrap();
    }
    for (flow, ws) in all.iter_mut().enumerate() {
        assert_eq!(ws.delta(), flow.to_string());
        assert_eq!(ws.delta(), (flow + 1).to_string());
        assert!(ws.tell(ASK).is_empty(), "it received an unsubscribed event");
    }
}

fn the_last_of_many_subscriptions_applies() {
    let server = TestServer::start();
    let mut ws = Ws::to(&server);
    let many: Vec<u8> =
        (0..150).flat_map(|flow| frame(FIN | TEXT, subscribe_to(&[flow]).as_bytes())).collect();
    ws.stream.write_all(&many).unwrap();
    ws.tell(&subscribe_to(&[7]));
    let hub = &server.server().core().hub;
    for flow in 0..150 {
        hub.broadcast(&delta_event(flow, flow.to_string())).unwrap();
    }
    assert_eq!(ws.delta(), "7");
    assert!(ws.tell(ASK).is_empty());
}

fn private_messages_never_reach_another_client() {
    let server = TestServer::start();
    let hub = &server.server().core().hub;
    in_threads(12, |number| {
        let mut random = seeded(number);
        for _ in 0..12 {
            let mut ws = Ws::to(&server);
            let id = ws.hello["payload"]["clientId"].as_u64().unwrap();
            for at in 0..20 {
                hub.send_to_client(id, &delta_event(1, format!("{id}:{at}"))).unwrap();
                // The target is a past, present or future client.
                let other = id.saturating_sub(6) + random.below(12);
                if other != id {
                    hub.send_to_client(other, &delta_event(1, format!("{other}:other"))).unwrap();
                }
            }
            let mut next = 0;
            while next < random.below(21) {
                let delta = ws.delta();
                let (to, which) = delta.split_once(':').unwrap();
                assert_eq!(to, id.to_string(), "it was meant for another");
                if which != "other" {
                    assert_eq!(which, next.to_string());
                    next += 1;
                }
            }
        }
    });
    all_are_gone(&server);
}

fn each_request_gets_a_reply() {
    let server = TestServer::start();
    in_threads(4, |_| {
        let mut ws = Ws::to(&server);
        let many = frame(FIN | TEXT, ASK.as_bytes()).repeat(150);
        ws.stream.write_all(&many).unwrap();
        for _ in 0..150 {
            assert_eq!(type_of(&ws.text()), "PONG");
        }
        assert_eq!(ws.get(Duration::from_millis(20)), Got::Nothing);
    });
}

fn http_responds_while_a_hundred_clients_receive_events() {
    let server = TestServer::start();
    let address = server.address();
    let start = newest(&server);
    let mut crowd: Vec<Follower> = (0..100).map(|_| Follower::new(address, start, None)).collect();
    crowd.iter_mut().for_each(Follower::connect);
    thread::scope(|scope| {
        scope.spawn(|| {
            commit_cycling(server.server(), 500, 5, 3, Duration::from_millis(1));
        });
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert_eq!(server.get("/api/health").status, 200);
                    assert_eq!(server.get("/api/ledger").status, 200);
                }
            });
        }
    });
    let last = newest(&server);
    crowd.iter_mut().for_each(|follower| follower.until(last));
}

// ---------------------------------------------------------------------------------------------
// The protocol

fn control_frames_between_fragments_get_replies_in_order() {
    let server = TestServer::start();
    in_threads(8, |number| {
        let mut random = seeded(number);
        let mut ws = Ws::to(&server);
        for round in 0..20 {
            let (mut bytes, mut pings) = (Vec::new(), 0);
            let letters = ASK.as_bytes();
            let (mut at, mut first) = (0, TEXT);
            while at < letters.len() {
                let count = (random.below(5) as usize).min(letters.len() - at);
                let is_last = at + count == letters.len();
                let fin = if is_last { FIN } else { 0 };
                bytes.extend(frame(fin | first, &letters[at..at + count]));
                at += count;
                first = 0;
                if !is_last {
                    bytes.extend(frame(FIN | PING, format!("{round}:{pings}").as_bytes()));
                    bytes.extend(frame(FIN | PONG, b"unasked"));
                    pings += 1;
                }
            }
            ws.stream.write_all(&bytes).unwrap();
            for ping in 0..pings {
                let payload = format!("{round}:{ping}").into_bytes();
                assert_eq!(ws.get(DEADLINE), Got::Pong(payload));
            }
            assert_eq!(type_of(&ws.text()), "PONG");
        }
    });
}

fn a_handshake_and_frames_sent_byte_by_byte_are_parsed() {
    let server = TestServer::start();
    in_threads(6, |_| {
        let mut stream = server.connect();
        stream.set_nodelay(true).unwrap();
        for byte in handshake(server.address(), "/ws").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        let mut ws = Ws::after_request(stream).unwrap();
        for _ in 0..3 {
            for byte in frame(FIN | TEXT, ASK.as_bytes()) {
                ws.stream.write_all(&[byte]).unwrap();
            }
            assert_eq!(type_of(&ws.text()), "PONG");
        }
    });
}

fn frames_sent_with_the_handshake_are_not_lost() {
    let server = TestServer::start();
    in_threads(8, |_| {
        for count in 0..12 {
            let mut bytes = handshake(server.address(), "/ws").into_bytes();
            bytes.extend(frame(FIN | TEXT, ASK.as_bytes()).repeat(count));
            let mut stream = server.connect();
            stream.write_all(&bytes).unwrap();
            let mut ws = Ws::after_request(stream).unwrap();
            for _ in 0..count {
                assert_eq!(type_of(&ws.text()), "PONG");
            }
            ws.send(FIN | CLOSE, &1000u16.to_be_bytes());
            assert_eq!(ws.get(DEADLINE), Got::Close(1000));
            assert_eq!(ws.get(DEADLINE), Got::End);
        }
    });
}

fn messages_above_the_size_limit_are_closed_with_1009() {
    const LARGEST: usize = 64 << 10;
    let server = TestServer::start();
    in_threads(10, |number| {
        let mut message = ASK.as_bytes().to_vec();
        message.resize(LARGEST, b' ');
        let mut ws = Ws::to(&server);
        for _ in 0..3 {
            ws.send(FIN | TEXT, &message);
            assert_eq!(type_of(&ws.text()), "PONG");
        }
        message.push(b' ');
        if number % 2 == 0 {
            ws.send(FIN | TEXT, &message);
        } else {
            // In fragments that are each small enough.
            ws.send(TEXT, &message[..LARGEST / 2]);
            ws.send(FIN, &message[LARGEST / 2..]);
        }
        let _ = ws.stream.shutdown(Shutdown::Write);
        assert_eq!(ws.read_to_close(), Some(1009));
    });
}

fn half_closed_clients_are_disconnected() {
    let server = TestServer::start();
    let mut all: Vec<Ws> = (0..50).map(|_| Ws::to(&server)).collect();
    for ws in &all {
        ws.stream.shutdown(Shutdown::Write).unwrap();
    }
    all_are_gone(&server);
    for ws in &mut all {
        ws.read_to_close();
    }
}

fn unsolicited_pongs_are_ignored() {
    let server = TestServer::start();
    let mut ws = Ws::to(&server);
    let pongs = frame(FIN | PONG, b"unasked").repeat(900);
    ws.stream.write_all(&pongs).unwrap();
    assert!(ws.tell(ASK).is_empty());
    assert_eq!(type_of(&ws.text()), "PONG");
    assert_eq!(ws.get(Duration::from_millis(20)), Got::Nothing);
}

fn a_protocol_error_during_events_is_closed_once() {
    let server = TestServer::start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                broadcast(&server, "x".repeat(500));
                thread::park_timeout(Duration::from_micros(500));
            }
        });
        let _stop = StopOnDrop(&over);
        {
            in_threads(10, |number| {
                for at in 0..6 {
                    let (bytes, code) = match (number + at) % 6 {
                        0 => (frame(FIN, b"nothing to go on with"), 1002),
                        1 => (frame(PING, b"a control frame in pieces"), 1002),
                        2 => (frame(FIN | PING, &[b'x'; 126]), 1002),
                        3 => (frame(FIN | TEXT, &[0xc3, 0x28]), 1007),
                        4 => (frame(FIN | BINARY, b"binary"), 1003),
                        _ => (vec![0x81, 1, b'x'], 1002),
                    };
                    let mut ws = Ws::to(&server);
                    ws.stream.write_all(&bytes).unwrap();
                    let _ = ws.stream.shutdown(Shutdown::Write);
                    assert_eq!(ws.read_to_close(), Some(code), "{bytes:x?}");
                }
            });
        }
    });
}

fn a_close_amid_events_gets_one_reply_and_no_frame_follows() {
    let server = TestServer::start();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                broadcast(&server, "x".repeat(2_000));
                thread::park_timeout(Duration::from_micros(300));
            }
        });
        let _stop = StopOnDrop(&over);
        {
            in_threads(10, |_| {
                for _ in 0..10 {
                    let mut ws = Ws::to(&server);
                    ws.send(FIN | CLOSE, &1000u16.to_be_bytes());
                    // For every client, nothing follows the close.
                    assert_eq!(ws.read_to_close(), Some(1000));
                }
            });
        }
    });
    all_are_gone(&server);
}

fn simultaneous_closes_exchange_one_close_each() {
    for _ in 0..3 {
        let mut server = TestServer::start();
        let all: Vec<Ws> = (0..40).map(|_| Ws::to(&server)).collect();
        let start = std::sync::Barrier::new(41);
        thread::scope(|scope| {
            for mut ws in all {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let _ = ws.stream.write_all(&frame(FIN | CLOSE, &1000u16.to_be_bytes()));
                    let code = ws.read_to_close();
                    assert!(matches!(code, Some(1000 | 1001)), "{code:?}");
                });
            }
            start.wait();
            server.stop();
        });
    }
}

// ---------------------------------------------------------------------------------------------
// Shutdown

const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(5);

fn stop_in_time(server: &mut TestServer) {
    let began = Instant::now();
    server.stop();
    let took = began.elapsed();
    assert!(took < SHUTDOWN_TIME_MAX, "{took:?}");
}

fn shutdown_under_load_closes_clients_and_keeps_all_commits() {
    let mut server = TestServer::start();
    let start = newest(&server);
    let committed = AtomicU64::new(0);
    let all: Vec<Ws> = (0..100).map(|_| Ws::to(&server)).collect();
    let journal = server.server().core().journal.clone();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for flow in 0..4 {
            let (journal, committed, over) = (journal.clone(), &committed, &over);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst)
                    && journal.commit(vec![change(flow, 200)]).is_ok()
                {
                    committed.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let readers: Vec<_> =
            all.into_iter().map(|mut ws| scope.spawn(move || ws.read_to_close())).collect();
        eventually("there is a load", || committed.load(Ordering::SeqCst) > 200);
        stop_in_time(&mut server);
        for reader in readers {
            assert!(matches!(reader.join().unwrap(), Some(1001) | None));
        }
    });
    server.start_again();
    let found = newest(&server) - start;
    assert!(found >= committed.into_inner(), "{found} were found");
    Follower::new(server.address(), start, None).until(start + found);
}

fn clients_connecting_during_shutdown_do_not_hang() {
    for _ in 0..2 {
        let mut server = TestServer::start();
        let address = server.address();
        let crowd: Vec<Ws> = (0..100).map(|_| Ws::to(&server)).collect();
        let connected = AtomicUsize::new(0);
        let closed_at = Mutex::new(None::<Instant>);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let Ok(ws) = Ws::connect(address, "/ws") {
                        connected.fetch_add(1, Ordering::SeqCst);
                        mine.push(ws);
                    }
                    for mut ws in mine {
                        ws.read_to_close();
                    }
                });
            }
            eventually("some have come", || connected.load(Ordering::SeqCst) > 40);
            let began = Instant::now();
            server.stop();
            *closed_at.lock().unwrap() = Some(Instant::now());
            // None of these answers the close, so the server waits for them for a while.
            assert!(began.elapsed() < SHUTDOWN_TIME_MAX);
        });
        // Every client got the close before the server ended; none hangs until a ping times out.
        let closed_at = closed_at.into_inner().unwrap().unwrap();
        assert!(closed_at.elapsed() < Duration::from_secs(3), "a client hung");
        drop(crowd);
    }
}

fn shutdown_closes_many_clients_in_batches() {
    let mut server = TestServer::start();
    let crowd: Vec<Ws> = (0..500).map(|_| Ws::to(&server)).collect();
    let closed: Vec<Instant> = thread::scope(|scope| {
        let readers: Vec<_> = crowd
            .into_iter()
            .map(|mut ws| {
                scope.spawn(move || {
                    assert_eq!(ws.read_to_close(), Some(1001));
                    Instant::now()
                })
            })
            .collect();
        stop_in_time(&mut server);
        let readers = readers.into_iter();
        readers.map(|reader| reader.join().unwrap()).collect()
    });
    // Five batches with four pauses of 50 ms between them.
    let (first, last) = (closed.iter().min().unwrap(), closed.iter().max().unwrap());
    let spread = *last - *first;
    assert!(spread > Duration::from_millis(100), "all within {spread:?}");
}

fn clients_that_never_read_do_not_delay_shutdown() {
    let mut server = TestServer::start();
    let stuck: Vec<Ws> = (0..20).map(|_| Ws::with_small_buffer(server.address(), "/ws")).collect();
    let hub = server.server().core().hub.clone();
    let deadline = Instant::now() + DEADLINE;
    while hub.stats().evicted(Eviction::OutboxFull) < 10 {
        assert!(Instant::now() < deadline, "no client was closed");
        hub.broadcast(&delta_event(1, "z".repeat(30_000))).unwrap();
        hub.flush();
    }
    stop_in_time(&mut server);
    drop(stuck);
}

// ---------------------------------------------------------------------------------------------
// The runner

type Scenario = (&'static str, fn());

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        &[$((stringify!($name), $name as fn())),+]
    };
}

const SCENARIOS: &[Scenario] = scenarios![
    a_recovery_storm_of_500_clients_has_no_gap_and_no_repeat,
    a_recovery_storm_respects_subscriptions,
    slow_readers_are_closed_with_1013_and_can_catch_up,
    a_burst_larger_than_an_outbox_reaches_every_client,
    an_event_larger_than_an_outbox_reaches_every_client,
    a_since_in_the_future_is_not_recovered_but_goes_live,
    a_replay_during_event_removal_has_no_gap,
    a_second_server_on_the_same_data_continues_the_seq,
    a_restart_with_200_clients_loses_no_event,
    a_replay_of_100000_events_is_streamed_beside_live_clients,
    thirty_clients_catch_up_at_once_while_events_flow,
    clients_that_leave_during_a_replay_leak_nothing,
    commits_of_many_threads_reach_all_clients_in_one_order,
    concurrent_runs_reach_many_clients_whole_and_in_order,
    a_flood_of_pings_during_large_messages_corrupts_no_frame,
    a_hundred_non_readers_are_closed_and_disturb_no_other,
    a_hundred_ping_flooders_disturb_no_other,
    a_hundred_garbage_senders_are_closed_and_disturb_no_other,
    two_hundred_half_request_heads_disturb_no_other,
    fifty_simultaneous_resets_disturb_no_other,
    without_free_descriptors_clients_get_503_until_some_are_free,
    concurrent_clients_are_counted_and_have_unique_ids,
    changing_subscriptions_never_deliver_a_wrong_event,
    a_subscription_during_a_replay_holds_from_its_reply,
    many_distinct_filters_each_get_exactly_their_events,
    the_last_of_many_subscriptions_applies,
    private_messages_never_reach_another_client,
    each_request_gets_a_reply,
    http_responds_while_a_hundred_clients_receive_events,
    control_frames_between_fragments_get_replies_in_order,
    a_handshake_and_frames_sent_byte_by_byte_are_parsed,
    frames_sent_with_the_handshake_are_not_lost,
    messages_above_the_size_limit_are_closed_with_1009,
    half_closed_clients_are_disconnected,
    unsolicited_pongs_are_ignored,
    a_protocol_error_during_events_is_closed_once,
    a_close_amid_events_gets_one_reply_and_no_frame_follows,
    simultaneous_closes_exchange_one_close_each,
    shutdown_under_load_closes_clients_and_keeps_all_commits,
    clients_connecting_during_shutdown_do_not_hang,
    shutdown_closes_many_clients_in_batches,
    clients_that_never_read_do_not_delay_shutdown,
];

/// Returns the names of the process's threads, in order.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names: Vec<String> = tasks
        // A thread may end meanwhile.
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect();
    names.sort();
    names
}

/// Returns the targets of the process's descriptors, in order, without socket and pipe numbers.
fn descriptors() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut kinds: Vec<String> = open
        .filter_map(|open| std::fs::read_link(open.ok()?.path()).ok())
        .map(|target| {
            let target = target.to_string_lossy().into_owned();
            target.split(':').next().unwrap_or_default().to_owned()
        })
        .collect();
    kinds.sort();
    kinds
}

/// Writes to standard error directly: the test harness captures `eprintln!`, and the progress of a
/// test that takes minutes should be visible.
fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn within(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::park_timeout(Duration::from_millis(2));
    }
    true
}

#[test]
fn every_scenario_passes_and_leaks_no_thread_or_descriptor() {
    // Their events belong to a run that does not exist.
    TestServer::leave_all_unverified();
    let only = std::env::var("STRESS_ONLY").unwrap_or_default();
    let (threads_before, descriptors_before) = (threads(), descriptors());
    let began = Instant::now();
    log(&format!("\nSTRESS_SEED={}", seed()));
    let mut failed = Vec::new();
    let mut count = 0;
    for (name, scenario) in SCENARIOS {
        if !name.contains(&only) {
            continue;
        }
        count += 1;
        let began = Instant::now();
        let passed = catch_unwind(scenario).is_ok();
        let result = if passed { "ok" } else { "FAILED" };
        let took = began.elapsed();
        log(&format!("{result} in {took:>5.2?} {name}"));
        if !passed {
            failed.push(*name);
        }
        // Checked after each scenario, so that a leak has a name.
        if !within(DEADLINE, || descriptors() == descriptors_before) {
            log(&format!("left behind by {name}: {:?}", descriptors()));
            failed.push(*name);
            break;
        }
    }
    log(&format!("{count} scenarios in {:.1?}", began.elapsed()));
    assert!(failed.is_empty(), "failed: {failed:#?}");
    // The last threads may be about to end.
    within(DEADLINE, || threads() == threads_before);
    assert_eq!(threads(), threads_before, "threads were left behind");
    assert_eq!(descriptors(), descriptors_before);
}
