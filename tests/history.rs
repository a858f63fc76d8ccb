//! Run history: attempts of each node, resuming after a failure, deletion and retention.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{TestServer, add_provider, agent, chain, eventually, two_nodes, types};
use crate::upstream::{Upstream, completion, json_answer};

/// An upstream that refuses prompts with `second` in them until `is_mended`.
fn half_broken(is_mended: &Arc<AtomicBool>) -> Upstream {
    let is_mended = Arc::clone(is_mended);
    Upstream::start(move |body, stream| {
        let answer = if body.contains("second") && !is_mended.load(Ordering::SeqCst) {
            json_answer("402 Payment Required", r#"{"error":{"message":"no credit"}}"#)
        } else {
            completion("well", 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    })
}

fn two_calls() -> Value {
    let mut flow = chain(
        "Two calls",
        &[
            agent("a", "openai", "gpt-4o-mini", "first"),
            agent("b", "openai", "gpt-4o-mini", "second after {{ nodes.a.output }}"),
        ],
    );
    for node in flow["data"]["nodes"].as_array_mut().unwrap() {
        node["data"]["stream"] = json!(false);
    }
    flow
}

fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| add_provider(config, "openai", Kind::OpenAi, upstream.url()))
}

#[test]
fn a_failed_run_resumes_at_the_failed_node() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let upstream = half_broken(&is_mended);
    let server = server(&upstream);
    let flow = server.save(&two_calls());
    let failed = server.run(flow, &json!({}));
    assert_eq!((&failed["status"], upstream.count()), (&json!("FAILED"), 2));
    is_mended.store(true, Ordering::SeqCst);
    let mut client = server.client();
    let run_id = failed["runId"].as_str().unwrap();
    let resumed = server.post(&format!("/api/runs/{run_id}/resume"), &json!({}));
    assert_eq!((resumed.status, resumed.json()), (202, json!({"runId": run_id})));
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    assert_eq!(types(&seen)[..2], ["FLOW_STARTED", "FLOW_STATUS"]);
    // The first node was not called again.
    assert_eq!(upstream.count(), 3);
    let run = server.get(&format!("/api/runs/{run_id}")).json();
    assert_eq!(run["status"], "COMPLETED");
    assert_eq!(run["nodes"][1]["attempt"], 2);
    assert_eq!(run["error"], Value::Null);
    let calls: Vec<&Value> = run["calls"].as_array().unwrap().iter().collect();
    let shown: Vec<Value> = calls
        .iter()
        .map(|call| json!([call["node_id"], call["attempt"], call["status"]]))
        .collect();
    assert_eq!(
        shown,
        [json!(["a", 1, "SUCCESS"]), json!(["b", 1, "FAILED"]), json!(["b", 2, "SUCCESS"])]
    );
    // The sums cover all attempts.
    assert_eq!(run["inputTokens"], 20);
}

#[test]
fn only_a_failed_or_cancelled_run_can_be_resumed() {
    let server = TestServer::start();
    let run = server.run(server.save(&two_nodes()), &json!({"topic": "ants"}));
    let resume = |id: &str| server.post(&format!("/api/runs/{id}/resume"), &json!({}));
    let response = resume(run["runId"].as_str().unwrap());
    assert_eq!((response.status, response.error_code()), (409, "conflict".to_owned()));
    assert_eq!(resume("01890000-0000-7000-8000-000000000000").status, 404);
}

#[test]
fn a_run_of_a_deleted_flow_is_not_resumed() {
    let upstream = Upstream::saying(json_answer("400 Bad Request", "{}"));
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[agent("a", "openai", "gpt-4o-mini", "Hi")]));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "FAILED");
    assert_eq!(server.request("DELETE", &format!("/api/flows/{flow}"), &[], b"").status, 204);
    let path = format!("/api/runs/{}/resume", run["runId"].as_str().unwrap());
    let refused = server.request("POST", &path, &[], b"");
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert_eq!(upstream.count(), 1);
}

#[test]
fn concurrent_resumes_start_a_run_once() {
    let is_mended = Arc::new(AtomicBool::new(false));
    let upstream = half_broken(&is_mended);
    let server = server(&upstream);
    let run = server.run(server.save(&two_calls()), &json!({}));
    is_mended.store(true, Ordering::SeqCst);
    let path = format!("/api/runs/{}/resume", run["runId"].as_str().unwrap());
    let mut statuses = std::thread::scope(|scope| {
        let resume = || server.post(&path, &json!({})).status;
        let both = [scope.spawn(resume), scope.spawn(resume)];
        both.map(|one| one.join().unwrap())
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409]);
    let path = path.trim_end_matches("/resume");
    eventually("it is over", || server.get(path).json()["status"] == "COMPLETED");
    assert_eq!(upstream.count(), 3);
}

#[test]
fn prompts_are_in_the_run_but_not_in_the_ledger() {
    let server = TestServer::start();
    let mut flow = two_nodes();
    flow["data"]["nodes"][0]["data"]["system"] = json!("Be {{ input.tone }}");
    let flow = server.save(&flow);
    let run = server.run(flow, &json!({"topic": "ants", "tone": "brief"}));
    assert_eq!(run["nodes"][0]["prompt"], "Plan ants");
    assert_eq!(run["nodes"][0]["system"], "Be brief");
    assert_eq!(run["nodes"][1]["prompt"], "Write [echo of echo-1] Plan ants");
    let rows = server.get("/api/ledger").text() + &server.get("/api/ledger.csv").text();
    assert!(!rows.contains("Plan ants"), "{rows}");
    let status = server.get(&format!("/api/flows/{flow}/status")).json();
    assert_eq!(status["nodes"][0]["prompt"], Value::Null);
}

#[test]
fn deleting_a_finished_run_keeps_its_ledger_rows() {
    let server = TestServer::start();
    let slow = chain("Slow", &[agent("slow", "echo", "echo-slow", &"word ".repeat(1_000))]);
    let slow = server.execute(server.save(&slow), &json!({}));
    let delete = |id: &str| {
        let path = format!("/api/runs/{id}");
        server.request("DELETE", &path, &[], b"")
    };
    let response = delete(&slow);
    assert_eq!((response.status, response.error_code()), (409, "conflict".to_owned()));
    let run = server.run(server.save(&two_nodes()), &json!({"topic": "ants"}));
    let id = run["runId"].as_str().unwrap();
    assert_eq!(delete(id).status, 204);
    assert_eq!(delete(id).status, 404);
    assert_eq!(server.get(&format!("/api/runs/{id}")).status, 404);
    let rows = server.get(&format!("/api/ledger?run_id={id}")).json();
    assert_eq!(rows["items"].as_array().unwrap().len(), 2);
}

#[test]
fn retention_removes_old_runs_and_keeps_their_rows() {
    let server = TestServer::start_with(|config| {
        config.retention.run_age = Duration::from_millis(1);
    });
    let flow = server.save(&two_nodes());
    let slow = chain("Slow", &[agent("slow", "echo", "echo-slow", &"word ".repeat(1_000))]);
    let in_flight = server.execute(server.save(&slow), &json!({}));
    server.execute(flow, &json!({"topic": "ants"}));
    eventually("it is removed", || {
        let runs = server.get("/api/runs").json();
        let ids: Vec<&Value> =
            runs["items"].as_array().unwrap().iter().map(|run| &run["runId"]).collect();
        ids == [&json!(in_flight)]
    });
    let rows = server.get(&format!("/api/ledger?flow_id={flow}")).json();
    assert_eq!(rows["items"].as_array().unwrap().len(), 2);
}

#[test]
fn a_list_of_large_flows_is_sent_whole() {
    let server = TestServer::start();
    let keys = |list: &Value| -> Vec<String> {
        list.as_object().unwrap().keys().map(String::to_owned).collect()
    };
    let small = server.get("/api/flows?limit=2");
    assert!(small.header("content-length").is_some());
    let mut flow = two_nodes();
    for text in ["x", "y", "z"] {
        flow["description"] = json!(text.repeat(700_000));
        server.save(&flow);
    }
    let list = server.get("/api/flows?limit=2");
    assert!(list.header("content-length").is_none(), "it is created while it is sent");
    let list = list.json();
    assert_eq!(keys(&list), keys(&small.json()));
    let items = list["items"].as_array().unwrap();
    assert_eq!((items.len(), &list["next"]), (2, &items[1]["id"]));
    for item in items {
        assert_eq!(*item, server.get(&format!("/api/flows/{}", item["id"])).json());
    }
    let rest = server.get(&format!("/api/flows?before={}", list["next"])).json();
    assert_eq!(rest["next"], Value::Null);
    assert_eq!(rest["items"].as_array().unwrap().len(), 3);
}
