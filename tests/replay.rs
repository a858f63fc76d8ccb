//! `/ws?since=SEQ`: missed events arrive once and in order, then live events follow without a gap.

use serde_json::{Value, json};

use crate::harness::{Client, TestServer, two_nodes};

/// Returns the sequence numbers of logged messages up to and including `last`.
fn seqs_until(client: &mut Client, last: u64) -> Vec<u64> {
    client
        .until(|message| message["seq"] == last)
        .iter()
        .filter_map(|message| message["seq"].as_u64())
        .collect()
}

fn newest(server: &TestServer) -> u64 {
    server.client().hello["payload"]["seq"].as_u64().unwrap()
}

#[test]
fn a_returning_client_gets_missed_events_once_and_in_order() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    for _ in 0..5 {
        server.run(flow, &json!({"topic": "x"}));
    }
    let newest = newest(&server);
    for since in [0, 1, newest / 2, newest - 1] {
        let mut client = server.client_since(since);
        assert_eq!(client.hello["payload"]["recovered"], true);
        let seqs = seqs_until(&mut client, newest);
        assert_eq!(seqs, (since + 1..=newest).collect::<Vec<_>>());
    }
}

#[test]
fn replay_joins_live_events_without_gap_or_repeat() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| {
            for _ in 0..60 {
                server.run(flow, &json!({"topic": "x"}));
            }
        });
        let mut clients = Vec::new();
        while !runner.is_finished() && clients.len() < 200 {
            clients.push(server.client_since(0));
        }
        let last = newest(&server);
        for mut client in clients {
            assert_eq!(seqs_until(&mut client, last), (1..=last).collect::<Vec<_>>());
        }
    });
}

#[test]
fn replay_continues_across_a_restart() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "x"}));
    let before = newest(&server);
    server.start_again();
    server.run(flow, &json!({"topic": "y"}));
    let last = newest(&server);
    assert!(last > before);
    let mut client = server.client_since(before - 2);
    assert_eq!(seqs_until(&mut client, last), (before - 1..=last).collect::<Vec<_>>());
}

#[test]
fn an_unknown_seq_is_reported_as_not_recovered() {
    let server = TestServer::start();
    let mut client = server.client_since(1_000_000);
    assert_eq!(client.hello["payload"]["recovered"], false);
    // It still receives live events.
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "x"}));
    assert_eq!(client.next()["seq"], 1);
}

#[test]
fn a_non_numeric_since_is_refused() {
    let server = TestServer::start();
    let response = server.request("GET", "/ws?since=yesterday", &[], b"");
    assert_eq!((response.status, response.error_code().as_str()), (400, "bad_since"));
}

#[test]
fn replies_reach_a_client_that_is_catching_up() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    for _ in 0..30 {
        server.run(flow, &json!({"topic": "x"}));
    }
    let last = newest(&server);
    let mut client = server.client_since(0);
    client.send(r#"{"type":"PING"}"#);
    let mut seen: Vec<Value> = Vec::new();
    while !(seen.iter().any(|m| m["type"] == "PONG") && seen.iter().any(|m| m["seq"] == last)) {
        seen.push(client.next());
    }
    let seqs: Vec<u64> = seen.iter().filter_map(|m| m["seq"].as_u64()).collect();
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
}
