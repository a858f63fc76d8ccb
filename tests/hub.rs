//! The hub: clients connect and leave, broadcasts reach all, and no client disturbs another.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flowledger::event::{Event, EventContext};
use flowledger::hub::Eviction;
use flowledger::time::Timestamp;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tungstenite::Message;

use crate::harness::{Client, DEADLINE, Response, TestServer, eventually, two_nodes, was_logged};

fn clients(server: &TestServer) -> usize {
    server.server().core().hub.stats().clients.load(Ordering::Relaxed)
}

/// A node output event with this text.
fn delta_event(delta: impl Into<String>) -> Event {
    let context =
        EventContext { flow_id: Some(1), run_id: None, node_id: None, timestamp: Timestamp(0) };
    Event::NodeOutput { context, delta: delta.into() }
}

fn broadcast_delta(server: &TestServer, text: impl Into<String>) {
    server.server().core().hub.broadcast(&delta_event(text)).unwrap();
}

/// The value of a line of `/metrics`.
fn metric(server: &TestServer, name: &str) -> f64 {
    let text = server.get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("flowledger_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

fn wait_for_delta(client: &mut Client, delta: &str) {
    client.until(|message| message["payload"]["delta"] == delta);
}

#[test]
fn clients_are_registered_and_unregistered() {
    let server = TestServer::start();
    let one = server.client();
    let mut two = server.client();
    assert_ne!(one.id(), two.id());
    eventually("both are registered", || clients(&server) == 2);
    drop(one);
    eventually("the dropped one is unregistered", || clients(&server) == 1);
    two.socket.close(None).unwrap();
    eventually("the one that closed is unregistered", || clients(&server) == 0);
}

#[test]
fn connects_and_disconnects_are_logged_with_reasons() {
    let server = TestServer::start();
    let mut client = server.client();
    let id = format!("id={} ", client.id());
    let address = format!("address={}", client.socket.get_ref().local_addr().unwrap());
    assert!(was_logged(&["client connected", &id, &address]));
    client.socket.close(None).unwrap();
    eventually("the log says that it is gone", || {
        was_logged(&["client disconnected", &id, &address, "reason=closed by the client"])
    });
}

#[test]
fn a_broadcast_reaches_every_client_in_order() {
    let server = TestServer::start();
    let mut all: Vec<Client> = (0..20).map(|_| server.client()).collect();
    for number in 0..100 {
        broadcast_delta(&server, number.to_string());
    }
    for client in &mut all {
        for number in 0..100 {
            assert_eq!(client.next()["payload"]["delta"], number.to_string());
        }
    }
}

#[test]
fn send_to_client_reaches_exactly_one() {
    let server = TestServer::start();
    let (mut one, mut two) = (server.client(), server.client());
    let hub = &server.server().core().hub;
    hub.send_to_client(one.id(), &delta_event("for one")).unwrap();
    hub.send_to_client(999, &delta_event("for nobody")).unwrap();
    hub.broadcast(&delta_event("for all")).unwrap();
    assert_eq!(one.next()["payload"]["delta"], "for one");
    assert_eq!(one.next()["payload"]["delta"], "for all");
    assert_eq!(two.next()["payload"]["delta"], "for all");
}

#[test]
fn a_stuck_client_is_closed_and_delays_no_other() {
    let server = TestServer::start();
    let mut stuck = server.client();
    let mut healthy = server.client();
    let hub = &server.server().core().hub;
    let large = "x".repeat(60_000);
    let mut slowest = Duration::ZERO;
    let mut sent = 0;
    while hub.stats().evicted(Eviction::OutboxFull) == 0 {
        let began = Instant::now();
        hub.broadcast(&delta_event(large.clone())).unwrap();
        wait_for_delta(&mut healthy, &large);
        slowest = slowest.max(began.elapsed());
        sent += 1;
        assert!(sent < 1_000, "a client that never reads was never cut");
    }
    // A write that waited for the stuck client would take ten seconds.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let (seen, code) = stuck.until_closed();
    assert_eq!(code, Some(1013));
    assert_eq!(metric(&server, r#"clients_evicted_total{reason="outbox_full"}"#), 1.0);
    assert!(seen.len() < sent);
    eventually("the stuck client is gone", || clients(&server) == 1);
}

#[test]
fn a_slow_reader_that_pings_sees_no_corrupt_frame() {
    let server = TestServer::start();
    let mut client = server.client();
    let hub = server.server().core().hub.clone();
    const MESSAGES: usize = 300;
    let publisher = std::thread::spawn(move || {
        for number in 0..MESSAGES {
            let text = format!("{number}:{}", "y".repeat(20_000 + number % 7 * 3_000));
            hub.broadcast(&delta_event(text)).unwrap();
            // Paced by the hub's own pings and the reader below, to stay below the outbox limit.
            if number % 10 == 9 {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    });
    let mut pongs = 0;
    let mut next = 0;
    let mut to_ping = 0;
    while next < MESSAGES {
        if next >= to_ping {
            to_ping = next + 1;
            client.socket.send(Message::Ping(next.to_string().into())).unwrap();
        }
        match client.socket.read().expect("no frame is corrupt") {
            Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                let delta = message["payload"]["delta"].as_str().unwrap();
                assert!(delta.starts_with(&format!("{next}:")), "{}", &delta[..10]);
                next += 1;
            }
            Message::Pong(_) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    publisher.join().unwrap();
    assert!(pongs > 0);
}

#[test]
fn a_close_gets_one_reply_and_no_frame_follows() {
    let server = TestServer::start();
    let mut client = server.client();
    // Events race with the close; none may follow the close frame.
    let hub = server.server().core().hub.clone();
    let publisher = std::thread::spawn(move || {
        for number in 0..200 {
            let _ = hub.broadcast(&delta_event(number.to_string()));
        }
    });
    client.socket.close(None).unwrap();
    client.socket.flush().unwrap();
    let mut rest = Vec::new();
    client.socket.get_mut().read_to_end(&mut rest).unwrap();
    publisher.join().unwrap();
    let closes = frames(&rest).iter().filter(|opcode| **opcode == 8).count();
    assert_eq!(closes, 1);
    assert_eq!(frames(&rest).last(), Some(&8));
}

/// The opcodes of the unmasked frames in `bytes`.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut opcodes = Vec::new();
    while bytes.len() >= 2 {
        opcodes.push(bytes[0] & 0x0f);
        let (head, length) = match bytes[1] {
            126 => (4, u16::from_be_bytes([bytes[2], bytes[3]]) as usize),
            short => (2, short as usize),
        };
        bytes = &bytes[head + length..];
    }
    opcodes
}

#[test]
fn an_invalid_message_gets_an_error_and_stays_connected() {
    let server = TestServer::start();
    let (mut bad_client, mut good_client) = (server.client(), server.client());
    for (text, code) in [
        ("not json", "invalid_json"),
        ("[1]", "unknown_type"),
        (r#"{"type":"DANCE"}"#, "unknown_type"),
        (r#"{"type":"SUBSCRIBE","payload":{"flowIds":"all"}}"#, "invalid_payload"),
    ] {
        bad_client.send(text);
        let answer = bad_client.next();
        assert_eq!(
            (answer["type"].as_str(), answer["payload"]["code"].as_str()),
            (Some("ERROR"), Some(code))
        );
        assert!(answer.get("seq").is_none());
    }
    bad_client.send(r#"{"type":"PING"}"#);
    assert_eq!(bad_client.next()["type"], "PONG");
    server.server().core().hub.broadcast(&delta_event("hello")).unwrap();
    assert_eq!(good_client.next()["payload"]["delta"], "hello");
}

#[test]
fn a_protocol_error_is_closed_with_its_code() {
    let server = TestServer::start();
    let closes = |send: &dyn Fn(&mut Client)| {
        let mut client = server.client();
        send(&mut client);
        client.until_closed().1
    };
    assert_eq!(closes(&|client| client.send(&"x".repeat(70_000))), Some(1009));
    assert_eq!(closes(&|client| client.socket.send(Message::binary(vec![1])).unwrap()), Some(1003));
    // An unmasked frame, a reserved opcode, and a text that is not UTF-8.
    for (bytes, code) in [
        (&[0x81, 0x01, b'x'][..], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
    ] {
        let raw = closes(&|client| client.socket.get_mut().write_all(bytes).unwrap());
        assert_eq!(raw, Some(code), "{bytes:x?}");
    }
}

#[test]
fn a_subscription_filters_events() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let other = server.save(&two_nodes());
    let mut narrow = server.client();
    let subscribe =
        json!({"type": "SUBSCRIBE", "payload": {"flowIds": [flow], "types": ["FLOW_STATUS"]}});
    narrow.send(&subscribe.to_string());
    // The reply shows that the server has processed the earlier messages.
    narrow.send(r#"{"type":"PING"}"#);
    narrow.until_type("PONG");
    server.run(other, &json!({"topic": "x"}));
    server.run(flow, &json!({"topic": "x"}));
    let seen = narrow.until(|message| message["payload"]["status"] == "FINISHED");
    assert!(seen.iter().all(|message| message["type"] == "FLOW_STATUS" && message["payload"]["flowId"] == flow));
    let statuses: Vec<&str> =
        seen.iter().map(|m| m["payload"]["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["STARTED", "NODE_COMPLETE", "NODE_COMPLETE", "FINISHED"]);
}

#[test]
fn only_a_client_without_pongs_is_closed() {
    let server = TestServer::start_with(|config| {
        config.pings.interval = Duration::from_millis(200);
        config.pings.timeout = Duration::from_millis(300);
    });
    let silent = server.client();
    let mut alive = server.client();
    let began = Instant::now();
    // Reading answers pings; this client reads until long after the other must be gone.
    alive.socket.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while clients(&server) == 2 || began.elapsed() < Duration::from_millis(1_000) {
        let _ = alive.socket.read();
        assert!(began.elapsed() < DEADLINE, "a client that is gone stays registered");
    }
    assert_eq!(clients(&server), 1);
    drop(silent);
    server.server().core().hub.broadcast(&delta_event("still here")).unwrap();
    alive.socket.get_ref().set_read_timeout(Some(DEADLINE)).unwrap();
    wait_for_delta(&mut alive, "still here");
}

#[test]
fn the_metrics_count_clients_and_deliveries() {
    let server = TestServer::start();
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    for number in 0..5 {
        broadcast_delta(&server, number.to_string());
    }
    for client in &mut clients {
        wait_for_delta(client, "4");
    }
    server.server().core().hub.flush();
    let response = server.get("/metrics");
    let content_type = response.header("content-type").unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    assert_eq!(metric(&server, "clients"), 3.0);
    assert_eq!(metric(&server, "clients_total"), 3.0);
    assert_eq!(metric(&server, "deliveries_total"), 15.0);
    assert_eq!(metric(&server, r#"clients_evicted_total{reason="outbox_full"}"#), 0.0);
    assert!(metric(&server, "delivered_bytes_total") > 15.0 * 50.0);
    assert!(metric(&server, "hub_fan_out_seconds_sum") > 0.0);
    let rounds = metric(&server, "hub_fan_out_seconds_count");
    let all = metric(&server, r#"hub_fan_out_seconds_bucket{le="+Inf"}"#);
    assert!((1.0..=5.0).contains(&rounds) && all == rounds, "{rounds}");
}

#[test]
fn metrics_count_ended_clients_by_reason_and_their_backlog() {
    let server = TestServer::start_with(|config| {
        config.pings.interval = Duration::from_millis(200);
        // Long enough that only the silent client misses it, also on a busy machine.
        config.pings.timeout = Duration::from_secs(3);
    });
    let newest = server.server().core().store.newest_seq().unwrap();
    let evicted = |reason: &str| {
        let name = format!(r#"clients_evicted_total{{reason="{reason}"}}"#);
        metric(&server, &name)
    };
    // It reads nothing, so it answers no ping.
    let silent = server.client();
    let mut too_large = server.client();
    too_large.send(&"x".repeat(100_000));
    assert_eq!(too_large.until_closed().1, Some(1009));
    let mut broken = server.client();
    broken.socket.get_mut().write_all(&[0xff; 8]).unwrap();
    assert_eq!(broken.until_closed().1, Some(1002));
    let mut flooding = server.client();
    // In one piece, so that they arrive at once also on a busy machine.
    let flood = masked(0x81, br#"{"type":"PING"}"#).repeat(500);
    // The server may close it before all is sent.
    let _ = flooding.socket.get_mut().write_all(&flood);
    assert_eq!(flooding.until_closed().1, Some(1008));
    for reason in ["silent", "too_large", "protocol", "too_much"] {
        eventually(reason, || evicted(reason) == 1.0);
    }
    drop(silent);
    for reason in ["outbox_full", "write_timeout", "log_unreadable"] {
        assert_eq!(evicted(reason), 0.0, "{reason}");
    }
    server.save(&two_nodes());
    server.run(server.save(&two_nodes()), &json!({"topic": "ants"}));
    let missed = server.server().core().store.newest_seq().unwrap() - newest;
    drop(server.client_since(newest));
    eventually("it was counted", || metric(&server, "replay_events_sum") == missed as f64);
    assert_eq!(metric(&server, r#"replay_events_bucket{le="1"}"#), 0.0);
    assert_eq!(metric(&server, "replay_events_count"), 1.0);
}

#[test]
fn an_address_at_its_connection_limit_gets_429() {
    let server = TestServer::start_with(|config| config.connections_per_address = Some(3));
    let connect_from = |address: [u8; 4]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let from = SocketAddr::from((address, 0));
        socket.bind(&from.into()).unwrap();
        socket.connect(&server.address().into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    };
    let ask = |mut stream: TcpStream| {
        let request = b"GET /api/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        // The server may refuse and reset the connection before this is sent.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Response::parse(&answer)
    };
    let mut held: Vec<Client> = (0..3).map(|_| server.client()).collect();
    let mut refused = None;
    eventually("the excess client is refused", || {
        refused = ask(connect_from([127, 0, 0, 1]));
        refused.as_ref().is_some_and(|response| response.status == 429)
    });
    let refused = refused.unwrap();
    assert_eq!(refused.error_code(), "too_many_connections");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let other = ask(connect_from([127, 0, 0, 2])).unwrap();
    assert_eq!(other.status, 200);
    held.pop();
    eventually("there is room again", || {
        let response = ask(connect_from([127, 0, 0, 1]));
        response.is_some_and(|response| response.status == 200)
    });
    broadcast_delta(&server, "those who were in stay in");
    for client in &mut held {
        wait_for_delta(client, "those who were in stay in");
    }
}

#[test]
fn at_shutdown_clients_are_closed_with_1001_within_five_seconds() {
    let mut server = TestServer::start();
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    // A client that does not answer the close delays no other.
    let silent_client = server.client();
    let readers: Vec<_> = clients
        .drain(..)
        .map(|mut client| std::thread::spawn(move || client.until_closed().1))
        .collect();
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Some(1001));
    }
    drop(silent_client);
}

/// A masked frame; its mask is zero, so the payload is unchanged.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

#[test]
fn a_flooding_client_alone_is_closed_with_1008() {
    const TEXT: u8 = 0x81;
    const PING: u8 = 0x89;
    const PONG: u8 = 0x8a;
    const UNFINISHED_TEXT: u8 = 0x01;
    const CONTINUATION: u8 = 0x00;
    let subscribe = br#"{"type":"SUBSCRIBE","payload":{"flowIds":[1]}}"#;
    let endless = [masked(UNFINISHED_TEXT, b""), masked(CONTINUATION, b"").repeat(900_000)];
    let floods = [
        ("messages", masked(TEXT, br#"{"type":"PING"}"#).repeat(500)),
        ("messages", masked(TEXT, subscribe).repeat(500)),
        ("messages", masked(TEXT, b"garbage").repeat(500)),
        ("pings and pongs", masked(PING, b"?").repeat(5_000)),
        ("pings and pongs", masked(PONG, b"").repeat(5_000)),
        ("bytes", endless.concat()),
    ];
    let server = TestServer::start();
    let mut good_client = server.client();
    for (what, flood) in floods {
        let mut client = server.client();
        let mut stream = client.socket.get_ref().try_clone().unwrap();
        // An unoptimized build takes 13 s for the tiny frames, and longer beside other tests.
        stream.set_read_timeout(Some(3 * DEADLINE)).unwrap();
        let sender = std::thread::spawn(move || drop(stream.write_all(&flood)));
        let id = format!("id={} ", client.id());
        let reason = client.until_closed_with_reason();
        assert_eq!(reason.0, Some(1008), "{what}");
        let expected = format!("too many {what}; the limit is ");
        assert!(reason.1.starts_with(&expected), "{reason:?}");
        sender.join().unwrap();
        eventually("the log says why", || was_logged(&[&id, &expected, "(close code 1008)"]));
    }
    server.server().core().hub.broadcast(&delta_event("calm")).unwrap();
    wait_for_delta(&mut good_client, "calm");
}

#[test]
fn a_burst_within_the_limits_gets_all_replies() {
    let server = TestServer::start();
    let mut client = server.client();
    for _ in 0..200 {
        client.send(r#"{"type":"PING"}"#);
    }
    for _ in 0..200 {
        client.until_type("PONG");
    }
    for _ in 0..500 {
        client.socket.send(Message::Ping(Vec::new().into())).unwrap();
    }
    let mut pongs = 0;
    while pongs < 500 {
        pongs += usize::from(client.socket.read().unwrap().is_pong());
    }
}
