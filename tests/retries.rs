//! Failure handling of nodes: retries, fallbacks, timeouts and substitutes.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flowledger::providers::{Kind, Rate};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{Upstream, completion, json_answer};

const BUSY: &str = r#"{"error":{"message":"too many requests"}}"#;

/// An upstream that fails `times` times with this answer, then succeeds.
fn failing(times: usize, answer: String) -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::start(move |_, stream| {
        let answer = if count.fetch_add(1, Ordering::SeqCst) < times {
            answer.clone()
        } else {
            completion("well", 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    })
}

fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        add_provider(config, "nowhere", Kind::OpenAi, "http://127.0.0.1:9/v1");
    })
}

/// A flow of one node without streaming, with more in its data.
fn one(provider: &str, more: Value) -> Value {
    let mut node = agent("only", provider, "gpt-4o-mini", "x");
    node["data"]["stream"] = json!(false);
    for (key, value) in more.as_object().unwrap() {
        node["data"][key] = value.clone();
    }
    chain("One", &[node])
}

fn rows(server: &TestServer) -> Vec<Value> {
    let mut rows = server.get("/api/ledger").json()["items"].clone();
    let rows = rows.as_array_mut().unwrap();
    rows.reverse();
    rows.clone()
}

/// Returns true if the first node has failed and waits for its next attempt.
fn pauses(run: &Value) -> bool {
    let node = &run["nodes"][0];
    node["status"] == "WAITING" && node["attempt"] == 1
}

#[test]
fn transient_failures_are_retried_with_a_row_per_attempt() {
    let upstream = failing(2, json_answer("429 Too Many Requests", BUSY));
    let server = server(&upstream);
    let retry = json!({"retry": {"attempts": 3, "backoffMs": 20}});
    let flow = server.save(&one("openai", retry));
    let mut client = server.client();
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(run["nodes"][0]["attempt"], 3);
    assert_eq!(run["nodes"][0]["output"], "well");
    let rows = rows(&server);
    let shown: Vec<(&Value, &Value)> =
        rows.iter().map(|row| (&row["attempt"], &row["status"])).collect();
    let expected =
        [(1, "FAILED"), (2, "FAILED"), (3, "SUCCESS")].map(|(n, s)| (json!(n), json!(s)));
    assert!(shown.into_iter().eq(expected.iter().map(|(n, s)| (n, s))), "{rows:#?}");
    assert!(rows.iter().all(|row| row["operation_id"] == rows[0]["operation_id"]));
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    let failures: Vec<&Value> = seen
        .iter()
        .filter(|message| message["type"] == "NODE_FAILED")
        .map(|message| &message["payload"])
        .collect();
    assert_eq!(failures.len(), 2);
    for (at, failure) in failures.into_iter().enumerate() {
        assert_eq!(failure["willRetry"], true);
        assert_eq!(failure["attempt"], at + 1);
    }
}

#[test]
fn permanent_failures_are_not_retried() {
    let upstream = failing(9, json_answer("400 Bad Request", BUSY));
    let server = server(&upstream);
    let flow = server.save(&one("openai", json!({"retry": {"attempts": 5}})));
    let run = server.run(flow, &json!({}));
    assert_eq!((&run["status"], upstream.count()), (&json!("FAILED"), 1));
}

#[test]
fn a_failure_is_not_retried_by_default() {
    let upstream = failing(9, json_answer("500 Internal Server Error", BUSY));
    let server = server(&upstream);
    let flow = server.save(&one("openai", json!({})));
    let run = server.run(flow, &json!({}));
    assert_eq!((&run["status"], upstream.count()), (&json!("FAILED"), 1));
}

#[test]
fn a_retry_waits_for_the_delay_of_retry_after() {
    let answer = json_answer("503 Service Unavailable", BUSY)
        .replace("connection: close", "retry-after: 1\r\nconnection: close");
    let upstream = failing(1, answer);
    let server = server(&upstream);
    let retry = json!({"retry": {"attempts": 2, "backoffMs": 1}});
    let flow = server.save(&one("openai", retry));
    let began = Instant::now();
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_fallback_provider_responds_and_is_named_in_the_row() {
    let upstream = failing(0, String::new());
    let server = server(&upstream);
    let more = json!({"fallback": [{"provider": "openai", "model": "gpt-4o"}]});
    let flow = server.save(&one("nowhere", more));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    let rows = rows(&server);
    let row_providers: Vec<&Value> = rows.iter().map(|row| &row["provider"]).collect();
    assert_eq!(row_providers, ["nowhere", "openai"]);
    assert_eq!((&rows[0]["status"], &rows[1]["status"]), (&json!("FAILED"), &json!("SUCCESS")));
    // An unsent request costs nothing, so the total is known.
    assert_eq!(run["cost"], rows[1]["total_cost_usd"]);
}

#[test]
fn a_failed_node_is_replaced_by_its_on_error_output() {
    let upstream = failing(9, json_answer("400 Bad Request", BUSY));
    let server = server(&upstream);
    for (on_error, given) in [(json!("continue"), ""), (json!({"output": "none"}), "none")] {
        let mut flow = one("openai", json!({"onError": on_error}));
        let data = &mut flow["data"];
        let out = json!({"id": "out", "type": "output", "data": {"template": "[{{ nodes.only.output }}]"}});
        data["nodes"].as_array_mut().unwrap().push(out);
        data["edges"] = json!([{"source": "only", "target": "out"}]);
        let flow = server.save(&flow);
        let run = server.run(flow, &json!({}));
        assert_eq!(run["status"], "COMPLETED", "{run:#}");
        assert_eq!(run["output"], format!("[{given}]"));
        let error = run["nodes"][0]["error"].as_str().unwrap();
        assert!(error.contains("status 400"), "{error}");
    }
}

#[test]
fn a_node_can_override_timeouts() {
    let upstream = Upstream::start(|_, _| std::thread::park_timeout(DEADLINE));
    let server = server(&upstream);
    let more = json!({"timeouts": {"totalMs": 100}});
    let flow = server.save(&one("openai", more));
    let began = Instant::now();
    let run = server.run(flow, &json!({}));
    assert!(began.elapsed() < DEADLINE / 2);
    assert_eq!(run["status"], "FAILED");
    assert_eq!(rows(&server)[0]["status"], "TIMEOUT");
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("timed out after 100ms"), "{error}");
}

#[test]
fn cancel_ends_a_pausing_run_at_once() {
    let upstream = failing(9, json_answer("500 Internal Server Error", BUSY));
    let server = server(&upstream);
    let retry =
        json!({"retry": {"attempts": 9, "backoffMs": 86_000_000, "backoffMaxMs": 86_000_000}});
    let flow = server.save(&one("openai", retry));
    let run_id = server.execute(flow, &json!({}));
    let run = || server.get(&format!("/api/runs/{run_id}")).json();
    eventually("it pauses", || pauses(&run()));
    let cancelled = server.post(&format!("/api/runs/{run_id}/cancel"), &json!({}));
    assert_eq!(cancelled.status, 202);
    eventually("it is over", || run()["status"] == "CANCELLED");
    assert_eq!(run()["nodes"][0]["status"], "CANCELLED");
}

#[test]
fn a_pause_survives_a_restart_as_another_attempt() {
    let upstream = failing(1, json_answer("500 Internal Server Error", BUSY));
    let mut server = server(&upstream);
    let retry =
        json!({"retry": {"attempts": 2, "backoffMs": 86_000_000, "backoffMaxMs": 86_000_000}});
    let flow = server.save(&one("openai", retry));
    let run_id = server.execute(flow, &json!({}));
    let path = format!("/api/runs/{run_id}");
    eventually("it pauses", || pauses(&server.get(&path).json()));
    server.start_again();
    eventually("it is over", || server.get(&path).json()["status"] == "COMPLETED");
    let rows = rows(&server);
    assert_eq!((rows.len(), &rows[1]["attempt"]), (2, &json!(2)));
}

fn with_rate(upstream: &Upstream, requests: u32, minute: Duration) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        let rate = Rate { requests_per_minute: Some(requests), tokens_per_minute: None, minute };
        config.rates.insert("openai".into(), rate);
    })
}

/// A flow of `count` independent nodes.
fn wide(count: usize) -> Value {
    let nodes: Vec<Value> = (0..count)
        .map(|at| {
            let mut node = agent(&format!("n{at}"), "openai", "gpt-4o-mini", "x");
            node["data"]["stream"] = json!(false);
            node
        })
        .collect();
    json!({"name": "Wide", "data": {"nodes": nodes}})
}

#[test]
fn calls_wait_for_the_rate_limit_of_their_provider() {
    let upstream = failing(0, String::new());
    let minute = Duration::from_millis(500);
    let server = with_rate(&upstream, 2, minute);
    let flow = server.save(&wide(5));
    let began = Instant::now();
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert!(began.elapsed() >= 2 * minute);
    // None was refused, and none was started twice.
    let rows = rows(&server);
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row["attempt"] == 1 && row["status"] == "SUCCESS"));
}

#[test]
fn cancel_ends_a_rate_limited_run_at_once() {
    let upstream = failing(0, String::new());
    let server = with_rate(&upstream, 1, Duration::from_secs(3600));
    let flow = server.save(&wide(3));
    let run_id = server.execute(flow, &json!({}));
    let path = format!("/api/runs/{run_id}");
    eventually("one is over", || {
        let nodes = server.get(&path).json()["nodes"].clone();
        let nodes = nodes.as_array().unwrap();
        nodes.iter().any(|node| node["status"] == "COMPLETED")
    });
    server.post(&format!("{path}/cancel"), &json!({}));
    eventually("it is over", || server.get(&path).json()["status"] == "CANCELLED");
    assert_eq!(rows(&server).len(), 1);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_call_without_a_key_skips_the_rate_limit() {
    let upstream = failing(0, String::new());
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        let provider = config.providers.get_mut("openai").unwrap();
        provider.api_key = None;
        provider.missing_key_hint = Some("set A_KEY".into());
        let rate = Rate {
            requests_per_minute: Some(1),
            tokens_per_minute: None,
            minute: Duration::from_secs(3600),
        };
        config.rates.insert("openai".into(), rate);
    });
    let flow = server.save(&wide(1));
    for _ in 0..2 {
        let path = format!("/api/runs/{}", server.execute(flow, &json!({})));
        eventually("it has failed", || server.get(&path).json()["status"] == "FAILED");
    }
}

#[test]
fn a_backlog_of_flows_does_not_delay_a_client() {
    let upstream = failing(0, String::new());
    let server = with_rate(&upstream, 1, Duration::from_secs(1));
    let flow = server.save(&wide(100));
    server.execute(flow, &json!({}));
    eventually("the others wait", || upstream.count() == 2);
    let body =
        json!({"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]});
    let answered = server.post("/v1/chat/completions", &body);
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert!(upstream.count() < 10, "{}", upstream.count());
}

#[test]
fn a_budget_refuses_a_call_before_the_rate_limit() {
    let upstream = failing(0, String::new());
    // Longer than a client would wait.
    let server = with_rate(&upstream, 1, Duration::from_secs(59));
    let flow = server.save(&wide(1));
    assert_eq!(server.run(flow, &json!({}))["status"], "COMPLETED");
    let budgets = json!({"budgets": [{"name": "all", "per": "day", "limitTokens": 1}]});
    let set = server.request("PUT", "/api/budget", &[], budgets.to_string().as_bytes());
    assert_eq!(set.status, 200, "{}", set.text());
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "FAILED", "{run:#}");
    let body =
        json!({"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]});
    let refused = server.post("/v1/chat/completions", &body);
    assert_eq!(refused.status, 402, "{}", refused.text());
    let refusals: Vec<Value> =
        rows(&server)[1..].iter().map(|row| row["refused"].clone()).collect();
    assert_eq!(refusals, ["budget", "budget"]);
    assert_eq!(upstream.count(), 1);
}
