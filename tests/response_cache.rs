//! Cached answers: reused if a node allows it, and recorded in the ledger.

use std::io::Write;

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{Upstream, completion, json_answer};

fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    })
}

fn agent_node(prompt: &str, cache: &Value) -> Value {
    let mut node = agent("only", "openai", "gpt-4o-mini", prompt);
    node["data"]["stream"] = json!(false);
    node["data"]["cache"] = cache.clone();
    node
}

fn rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger").json();
    let mut rows = rows["items"].as_array().unwrap().clone();
    rows.reverse();
    rows
}

#[test]
fn an_equal_call_is_cached_and_its_row_shows_the_saving() {
    let upstream = Upstream::saying(completion("well", 100, 1_000));
    let mut server = server(&upstream);
    let flow = server.save(&chain("One", &[agent_node("{{ input.x }}", &json!(true))]));
    let mut client = server.client();
    let first = server.run(flow, &json!({"x": "same"}));
    let second = server.run(flow, &json!({"x": "same"}));
    assert_eq!(second["status"], "COMPLETED");
    assert_eq!(second["nodes"][0]["output"], first["nodes"][0]["output"]);
    assert_eq!((&second["cost"], &second["inputTokens"]), (&json!(0), &json!(0)));
    server.start_again();
    // The cache survives a restart; another prompt is another call.
    server.run(flow, &json!({"x": "same"}));
    server.run(flow, &json!({"x": "other"}));
    assert_eq!(upstream.count(), 2);
    let rows = rows(&server);
    let shown: Vec<(&Value, &Value)> =
        rows.iter().map(|row| (&row["cached"], &row["saved_usd"])).collect();
    let (none, saved) = (Value::Null, rows[0]["total_cost_usd"].clone());
    assert_eq!(
        shown,
        [(&none, &none), (&json!(true), &saved), (&json!(true), &saved), (&none, &none)]
    );
    assert_eq!((&rows[1]["status"], &rows[1]["total_cost_usd"]), (&json!("SUCCESS"), &json!(0)));
    let completed: Vec<Value> = client
        .until_closed()
        .0
        .into_iter()
        .filter(|message| message["type"] == "NODE_COMPLETED")
        .map(|message| message["payload"]["cached"].clone())
        .collect();
    assert_eq!(completed, [json!(false), json!(true)]);
}

#[test]
fn only_fresh_responses_to_equal_calls_are_reused() {
    let upstream = Upstream::saying(completion("well", 1, 1));
    let mut server = server(&upstream);
    let mut warm = agent_node("x", &json!(true));
    warm["data"]["temperature"] = json!(0.5);
    let mut long = agent_node("x", &json!(true));
    long["data"]["maxTokens"] = json!(9);
    for node in [agent_node("x", &json!(true)), agent_node("x", &json!(false)), warm, long] {
        let flow = server.save(&chain("One", &[node]));
        server.run(flow, &json!({}));
    }
    assert_eq!(upstream.count(), 4);
    let short = server.save(&chain("Short", &[agent_node("x", &json!({"maxAgeS": 1}))]));
    server.run(short, &json!({}));
    assert_eq!(upstream.count(), 4);
    server.stop();
    let database = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    let older = "UPDATE answers SET created_ms = created_ms - 1000";
    database.execute(older, []).unwrap();
    drop(database);
    server.start_again();
    server.run(short, &json!({}));
    assert_eq!(upstream.count(), 5);
}

#[test]
fn responses_of_another_server_or_the_future_are_not_reused() {
    let upstreams = ["old", "new"].map(|text| Upstream::saying(completion(text, 1, 1)));
    let mut server = server(&upstreams[0]);
    let flow = server.save(&chain("One", &[agent_node("x", &json!(true))]));
    let ask = |server: &TestServer| {
        let run = server.run(flow, &json!({}));
        run["nodes"][0]["output"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(&server), "old");
    let url = upstreams[1].url().to_owned();
    server.configure(|config| add_provider(config, "openai", Kind::OpenAi, &url));
    server.start_again();
    assert_eq!([ask(&server), ask(&server)], ["new", "new"]);
    assert_eq!(upstreams[1].count(), 1);

    // The clock was an hour ahead when both were stored.
    server.stop();
    let database = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    let later = "UPDATE answers SET created_ms = created_ms + 3600000";
    assert_eq!(database.execute(later, []).unwrap(), 2);
    drop(database);
    server.start_again();
    assert_eq!([ask(&server), ask(&server)], ["new", "new"]);
    assert_eq!(upstreams[1].count(), 2);
}

#[test]
fn concurrent_equal_requests_share_one_call() {
    let (arrived, arrivals) = crossbeam_channel::unbounded();
    let (leave, left) = crossbeam_channel::unbounded::<()>();
    let upstream = Upstream::start(move |_, stream| {
        let _ = arrived.send(());
        if left.recv_timeout(DEADLINE).is_ok() {
            drop(stream.write_all(completion("well", 1, 1).as_bytes()));
        }
    });
    let server = server(&upstream);
    let mut map = agent_node("{{ item }}", &json!(true));
    map["type"] = json!("map");
    map["data"]["items"] = json!("input.list");
    map["data"]["atOnce"] = json!(4);
    let flow = server.save(&chain("Map", &[map]));
    let run_id = server.execute(flow, &json!({"list": ["a", "a", "b", "a"]}));
    for _ in 0..2 {
        arrivals.recv_timeout(DEADLINE).unwrap();
        leave.send(()).unwrap();
    }
    let path = format!("/api/runs/{run_id}");
    eventually("it is over", || server.get(&path).json()["status"] == "COMPLETED");
    assert_eq!(upstream.count(), 2);
    let rows = rows(&server);
    let cached = rows.iter().filter(|row| row["cached"] == true);
    assert_eq!((rows.len(), cached.count()), (4, 2));
}

#[test]
fn a_failure_is_not_cached_and_waiting_callers_retry() {
    let upstream = Upstream::saying(json_answer("400 Bad Request", "{}"));
    let server = server(&upstream);
    let nodes: Vec<Value> = ["a", "b"]
        .map(|id| {
            let mut node = agent_node("x", &json!(true));
            node["id"] = json!(id);
            node["data"]["onError"] = json!("continue");
            node
        })
        .to_vec();
    let flow = server.save(&json!({"name": "Two", "data": {"nodes": nodes}}));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED");
    assert_eq!(upstream.count(), 2);
}

#[test]
fn an_invalid_cache_age_is_refused_on_save() {
    let server = TestServer::start();
    for cache in [json!({"maxAgeS": 0}), json!({"maxAgeS": 99_999_999}), json!("long")] {
        let mut node = agent("only", "echo", "echo-1", "x");
        node["data"]["cache"] = cache.clone();
        let refused = server.post("/api/flows", &chain("One", &[node]));
        assert_eq!(refused.status, 422, "{cache}");
        assert!(refused.text().contains("data.cache"), "{}", refused.text());
    }
}
