//! `GET /api/overview`: sums of a period in a time zone, budgets, failures and what runs now.

use std::io::Write;

use flowledger::providers::Kind;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{TestServer, add_provider, agent, chain, eventually, two_nodes};
use crate::upstream::{Upstream, completion, json_answer};

#[test]
fn the_overview_has_sums_of_the_period_and_of_the_one_before() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("fail") {
            json_answer("400 Bad Request", r#"{"error":{"message":"not today"}}"#)
        } else {
            completion("fine", 1_000, 10)
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let mut server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    server.leave_unverified();
    let flow = server.save(&two_nodes());
    let bad = server.save(&chain("Bad", &[agent("a", "openai", "gpt-5", "fail")]));
    for _ in 0..3 {
        server.run(flow, &json!({"topic": "ants"}));
    }
    server.run(bad, &json!({}));
    let budget = json!({"budgets": [{"name": "All", "per": "month", "limitUsd": 5}]});
    server.request("PUT", "/api/budget", &[], budget.to_string().as_bytes());
    server.stop();
    // Six calls succeeded, the seventh failed.
    let database = Connection::open(server.data().join("flowledger.db")).unwrap();
    let at = |id: i64, time: &str| {
        let sql = "UPDATE ledger SET timestamp_ms = unixepoch(?2) * 1000, latency_ms = id * 10,
            cost_nanousd = 1000000 * id WHERE id = ?1 AND status = 'SUCCESS'";
        database.execute(sql, (id, time)).unwrap();
    };
    at(1, "2026-06-01 21:59:59");
    at(2, "2026-06-01 22:00:00");
    at(3, "2026-06-02 12:00:00");
    at(4, "2026-06-03 21:59:59");
    at(5, "2026-06-03 22:00:00");
    at(6, "2026-05-31 00:00:00");
    drop(database);
    server.start_again();
    let of = |query: &str| server.get(&format!("/api/overview?{query}"));

    // Two days in Berlin.
    let found = of("from=2026-06-01T22:00:00Z&to=2026-06-03T22:00:00Z&tz=Europe/Berlin").json();
    assert_eq!(found["total"]["calls"], 3);
    assert_eq!(found["total"]["total_cost_usd"], json!(0.009));
    assert_eq!(found["total"]["latency_p50_ms"], 30);
    assert_eq!(found["total"]["latency_p95_ms"], 40);
    assert_eq!(found["previous"]["calls"], 2);
    let days: Vec<(&str, &Value)> = found["days"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| (day["day"].as_str().unwrap(), &day["models"][0]["cost"]))
        .collect();
    assert_eq!(days, [("2026-06-02", &json!(0.005)), ("2026-06-03", &json!(0.004))]);
    assert_eq!(found["flows"][0]["name"], "Two nodes");
    assert_eq!(found["models"][0]["key"], "echo-1");
    assert_eq!(found["failures"], json!([]));

    let all = of("").json();
    assert_eq!((&all["total"]["calls"], &all["previous"]), (&json!(7), &Value::Null));
    assert_eq!(all["total"]["failed"], 1);
    assert_eq!(all["failures"][0]["flow_name"], "Bad");
    assert!(all["failures"][0]["error_message"].as_str().unwrap().contains("not today"));
    assert_eq!(all["days"][0]["day"], "2026-05-31");
    assert_eq!(all["budgets"][0]["name"], "All");
    assert_eq!((&all["running"], &all["running_calls"]), (&json!([]), &json!(0)));

    for query in ["tz=Mars/Base", "from=x", "from=2026-06-02&to=2026-06-01", "period=7d"] {
        assert_eq!(of(query).status, 422, "{query}");
    }
}

#[test]
fn the_overview_shows_runs_that_are_not_over() {
    let (release, wait) = crossbeam_channel::bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = wait.recv();
        let _ = stream.write_all(completion("done", 1, 1).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    });
    let flow = server.save(&chain("Slow", &[agent("a", "openai", "gpt-5", "wait")]));
    let run = server.execute(flow, &json!({}));
    eventually("the call is in flight", || {
        server.get("/api/overview").json()["running_calls"] == 1
    });
    let running = server.get("/api/overview").json()["running"].clone();
    assert_eq!(running[0]["runId"], run);
    assert_eq!(running[0]["flowName"], "Slow");
    release.send(()).unwrap();
    eventually("the run is over", || server.get("/api/overview").json()["running"] == json!([]));
}
