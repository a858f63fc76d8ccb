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
    let newest = client.hello["payload"]["seq"].as_u64().unwrap();
    let flow = server.save(&two_nodes());
    server.run(flow, &json!({"topic": "x"}));
    assert_eq!(client.next()["seq"], newest + 1);
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

/// Returns the newest `seq` and the epoch.
fn position(server: &TestServer) -> (u64, String) {
    let hello = server.client().hello;
    let payload = &hello["payload"];
    (payload["seq"].as_u64().unwrap(), payload["epoch"].as_str().unwrap().to_owned())
}

fn is_recovered(server: &TestServer, since: u64, epoch: &str) -> bool {
    server.client_of_epoch(since, epoch).hello["payload"]["recovered"] == true
}

#[test]
fn a_restored_copy_that_went_on_is_another_history() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let run = |server: &TestServer| server.run(flow, &json!({"topic": "x"}));
    run(&server);
    let (copied, first) = position(&server);
    server.stop();
    let database = server.data().join("flowledger.db");
    let copy = server.data().join("copy.db");
    std::fs::copy(&database, &copy).unwrap();
    server.start_again();
    run(&server);
    let (lost, second) = position(&server);
    server.stop();
    std::fs::rename(&copy, &database).unwrap();
    server.start_again();
    // The numbers of lost events are used again, by other events.
    while newest(&server) <= lost {
        run(&server);
    }
    assert!(!is_recovered(&server, lost, &second));
    assert!(!is_recovered(&server, copied, &second));
    // The first process never had an event after the copy in this history.
    assert!(!is_recovered(&server, copied + 1, &first));
    // Up to the copy, both histories are the same.
    let last = newest(&server);
    let mut client = server.client_of_epoch(copied - 1, &first);
    assert_eq!(client.hello["payload"]["recovered"], true);
    assert_eq!(seqs_until(&mut client, last), (copied..=last).collect::<Vec<_>>());
}

#[test]
fn each_earlier_epoch_is_recovered_after_restarts() {
    let mut server = TestServer::start();
    let flow = server.save(&two_nodes());
    let mut epochs = Vec::new();
    for _ in 0..3 {
        server.run(flow, &json!({"topic": "x"}));
        epochs.push(position(&server));
        server.start_again();
    }
    let status = server.get(&format!("/api/flows/{flow}/status")).json();
    let present = (status["seq"].as_u64().unwrap(), status["epoch"].as_str().unwrap().to_owned());
    assert_eq!(present, position(&server));
    epochs.push(present);
    for (seq, epoch) in &epochs {
        assert!(is_recovered(&server, *seq, epoch), "{epochs:?}");
        assert!(is_recovered(&server, 0, epoch), "{epochs:?}");
        assert!(!is_recovered(&server, seq + 100, epoch), "{epochs:?}");
    }
    assert!(!is_recovered(&server, 0, "0123456789abcdef"));
    // Clients of earlier versions send no epoch.
    assert_eq!(server.client_since(1).hello["payload"]["recovered"], true);
}
