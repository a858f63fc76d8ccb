//! Runs: exact messages, ledger rows, cancel and restart.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, TestServer, add_provider, agent, chain, eventually, two_nodes, types, was_logged,
};
use crate::upstream::{STREAM_HEAD, Upstream, completion, completion_of, delta, json_answer};

fn with_upstream(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| add_provider(config, "openai", Kind::OpenAi, upstream.url()))
}

fn one_call(prompt: &str) -> Value {
    chain("One call", &[agent("only", "openai", "gpt-4o-mini", prompt)])
}

fn without<'a>(messages: &'a [Value], leave_out: &[&str]) -> Vec<&'a Value> {
    messages.iter().filter(|m| !leave_out.contains(&m["type"].as_str().unwrap())).collect()
}

#[test]
fn a_run_of_two_nodes_emits_the_documented_events() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let mut client = server.client();
    let run_id = server.execute(flow, &json!({"topic": "bees"}));
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    assert_eq!(
        types(&seen).into_iter().filter(|t| *t != "NODE_OUTPUT").collect::<Vec<_>>(),
        [
            "FLOW_STARTED",
            "FLOW_STATUS",
            "NODE_STARTED",
            "LEDGER_UPDATE",
            "LEDGER_UPDATE",
            "NODE_COMPLETED",
            "FLOW_STATUS",
            "NODE_STARTED",
            "LEDGER_UPDATE",
            "LEDGER_UPDATE",
            "NODE_COMPLETED",
            "FLOW_STATUS",
            "FLOW_COMPLETED",
            "FLOW_STATUS",
        ]
    );
    let logged: Vec<u64> = seen.iter().filter_map(|m| m["seq"].as_u64()).collect();
    let before = client.hello["payload"]["seq"].as_u64().unwrap();
    assert_eq!(logged, (before + 1..=before + 14).collect::<Vec<_>>());
    for message in &seen {
        let payload = &message["payload"];
        assert_eq!((&payload["flowId"], &payload["runId"]), (&json!(flow), &json!(run_id)));
        assert!(payload["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(payload.get("nodeId").is_some());
    }
    let main = without(&seen, &["FLOW_STATUS", "LEDGER_UPDATE", "NODE_OUTPUT"]);
    assert_eq!(main[0]["payload"]["nodeCount"], 2);
    assert_eq!(main[0]["payload"]["trigger"], "api");
    let draft = &main[4]["payload"];
    assert_eq!(draft["nodeId"], "draft");
    assert_eq!(draft["label"], "DRAFT");
    assert_eq!(draft["resultPreview"], "[echo of echo-1] Write [echo of echo-1] Plan bees");
    assert_eq!((&draft["cost"], &draft["cached"]), (&json!(0), &json!(false)));
    let end = &main[5]["payload"];
    let rows = server.get("/api/ledger").json();
    let sum = |key: &str| {
        rows["items"].as_array().unwrap().iter().map(|r| r[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(end["inputTokens"], sum("input_tokens"));
    assert_eq!(end["outputTokens"], sum("output_tokens"));
}

#[test]
fn a_failed_node_fails_the_run_with_its_error() {
    let error = r#"{"error":{"message":"out of order","type":"server_error"}}"#;
    let upstream = Upstream::saying(json_answer("500 Internal Server Error", error));
    let server = with_upstream(&upstream);
    let flow = server.save(&chain(
        "Fails",
        &[
            agent("first", "openai", "gpt-4o-mini", "x"),
            agent("never", "echo", "echo-1", "{{ nodes.first.output }}"),
        ],
    ));
    let mut client = server.client();
    server.execute(flow, &json!({}));
    let seen = client.until(|message| {
        message["payload"]["status"] == "FAILED" && message["type"] == "FLOW_STATUS"
    });
    assert_eq!(
        types(&seen),
        [
            "FLOW_STARTED",
            "FLOW_STATUS",
            "NODE_STARTED",
            "LEDGER_UPDATE",
            "LEDGER_UPDATE",
            "NODE_FAILED",
            "FLOW_FAILED",
            "FLOW_STATUS"
        ]
    );
    let failed = &seen[6]["payload"];
    assert_eq!(failed["nodeId"], "first");
    assert!(failed["error"].as_str().unwrap().contains("out of order"), "{failed}");
    assert_eq!(seen[5]["payload"]["willRetry"], false);
    let rows = server.get("/api/ledger").json();
    let row = &rows["items"][0];
    assert_eq!(rows["items"].as_array().unwrap().len(), 1);
    assert_eq!(row["status"], "FAILED");
    assert!(row["error_message"].as_str().unwrap().contains("500"), "{row}");
    // The provider may have charged for it, so the cost is not 0.
    assert_eq!(row["total_cost_usd"], Value::Null);
}

#[test]
fn a_call_is_priced_from_the_reported_counts() {
    let upstream = Upstream::saying(completion("hi", 1_000_000, 100_000));
    let server = with_upstream(&upstream);
    let run = server.run(server.save(&one_call("x")), &json!({}));
    assert_eq!(run["nodes"][0]["output"], "hi");
    // gpt-4o-mini: 0.15 and 0.60 USD per million tokens.
    assert_eq!(run["cost"], json!(0.21));
    let row = &server.get("/api/ledger").json()["items"][0];
    assert_eq!((&row["total_cost_usd"], &row["usage_source"]), (&json!(0.21), &json!("provider")));
}

#[test]
fn a_model_without_a_price_has_an_unknown_cost() {
    let upstream = Upstream::saying(completion_of("my-own-model", "hi", 5, 5));
    let server = with_upstream(&upstream);
    let flow = chain("Own", &[agent("only", "openai", "my-own-model", "x")]);
    let run = server.run(server.save(&flow), &json!({}));
    assert_eq!((&run["status"], &run["cost"]), (&json!("COMPLETED"), &Value::Null));
    let summary = server.get("/api/ledger/summary?group_by=model").json();
    assert_eq!(summary["total"]["unpriced_calls"], 1);
}

#[test]
fn an_intent_is_recorded_before_the_request_is_sent() {
    let (release, wait) = crossbeam_channel::bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = wait.recv_timeout(DEADLINE);
        let _ = stream.write_all(completion("hi", 1, 1).as_bytes());
    });
    let server = with_upstream(&upstream);
    let flow = server.save(&one_call("x"));
    server.execute(flow, &json!({}));
    upstream.requests().recv_timeout(DEADLINE).unwrap();
    let row = server.get("/api/ledger").json()["items"][0].clone();
    assert_eq!((&row["status"], &row["latency_ms"]), (&json!("PENDING"), &Value::Null));
    assert_eq!(
        server.get(&format!("/api/flows/{flow}/status")).json()["nodes"][0]["status"],
        "RUNNING"
    );
    release.send_timeout((), DEADLINE).unwrap();
    eventually("the row is settled", || {
        server.get("/api/ledger").json()["items"][0]["status"] == "SUCCESS"
    });
}

#[test]
fn text_is_streamed_live_with_usage_of_the_last_chunk() {
    let (release, wait) = crossbeam_channel::bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Hello ")).as_bytes());
        let _ = wait.recv_timeout(DEADLINE);
        let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let _ = stream.write_all(format!("{}{end}", delta("world")).as_bytes());
    });
    let server = with_upstream(&upstream);
    let flow = server.save(&one_call("x"));
    let mut client = server.client();
    server.execute(flow, &json!({}));
    let first = client.until_type("NODE_OUTPUT").pop().unwrap();
    assert_eq!(first["payload"]["delta"], "Hello ");
    assert!(first.get("seq").is_none());
    release.send_timeout((), DEADLINE).unwrap();
    let rest = client.until_type("NODE_COMPLETED");
    let text: String = rest.iter().filter_map(|m| m["payload"]["delta"].as_str()).collect();
    assert_eq!(text, "world");
    let completed = rest.last().unwrap();
    assert_eq!(completed["payload"]["resultPreview"], "Hello world");
    assert_eq!(
        (&completed["payload"]["inputTokens"], &completed["payload"]["outputTokens"]),
        (&json!(7), &json!(3))
    );
}

#[test]
fn a_node_starts_only_after_its_inputs_are_committed() {
    // `quick` and `slow` are both called. `quick` ends and starts `dull`, which renders for long.
    // Then `slow` ends, and `last`, which needs both, may start.
    let (ended, wait) = crossbeam_channel::bounded::<()>(1);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("Slow") {
            let _ = wait.recv_timeout(DEADLINE);
        }
        let _ = stream.write_all(completion("done", 1, 1).as_bytes());
        if body.contains("Quick") {
            // Until the client has read the answer and disconnects.
            let _ = std::io::Read::read(stream, &mut [0; 1]);
            let _ = ended.send(());
        }
    });
    let server = with_upstream(&upstream);
    let node = |id, prompt| {
        let mut node = agent(id, "openai", "gpt-4o-mini", prompt);
        node["data"]["stream"] = json!(false);
        node
    };
    let long = "{% for i in range(9999) %}{% if nodes.quick.output == i %}{% endif %}{% endfor %}";
    let edge = |source, target| json!({"source": source, "target": target});
    let flow = server.save(&json!({"name": "Two at once", "data": {
        "nodes": [node("quick", "Quick"), node("slow", "Slow"), node("dull", long),
            node("last", "{{ nodes.quick.output }} {{ nodes.slow.output }}")],
        "edges": [edge("quick", "dull"), edge("quick", "last"), edge("slow", "last")]}}));
    let mut client = server.client();
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let seen = client.until_type("FLOW_COMPLETED");
    let place = |kind: &str, node: &str| {
        let fits = |m: &Value| m["type"] == kind && m["payload"]["nodeId"] == node;
        seen.iter().position(fits).unwrap()
    };
    for needed in ["quick", "slow"] {
        assert!(
            place("NODE_COMPLETED", needed) < place("NODE_STARTED", "last"),
            "{needed}: {seen:#?}"
        );
    }
}

#[test]
fn cancel_stops_a_streamed_call_within_a_second() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(format!("{STREAM_HEAD}{}", delta("Once upon")).as_bytes());
        // Silent until the client disconnects.
        let _ = std::io::Read::read(stream, &mut [0; 1]);
    });
    let server = with_upstream(&upstream);
    let flow = server.save(&one_call("x"));
    let mut client = server.client();
    let run_id = server.execute(flow, &json!({}));
    client.until_type("NODE_OUTPUT");
    let began = Instant::now();
    assert_eq!(server.post(&format!("/api/runs/{run_id}/cancel"), &json!({})).status, 202);
    let seen = client.until_type("FLOW_CANCELLED");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(types(&seen).contains(&"NODE_FAILED"));
    assert_eq!(server.get(&format!("/api/runs/{run_id}")).json()["status"], "CANCELLED");
    let row = server.get("/api/ledger").json()["items"][0].clone();
    // The partial answer is billed, but has no count.
    assert_eq!((&row["status"], &row["usage_source"]), (&json!("CANCELLED"), &json!("estimated")));
    let again = server.post(&format!("/api/runs/{run_id}/cancel"), &json!({}));
    assert_eq!((again.status, again.error_code().as_str()), (409, "conflict"));
    assert_eq!(server.post("/api/runs/nothing/cancel", &json!({})).status, 404);
}

#[test]
fn independent_nodes_run_in_parallel() {
    // Both calls must arrive before either is answered.
    let both = std::sync::Arc::new(std::sync::Barrier::new(2));
    let upstream = Upstream::start(move |_, stream| {
        both.wait();
        let _ = stream.write_all(completion("hi", 1, 1).as_bytes());
    });
    let server = with_upstream(&upstream);
    let run = server.run(
        server.save(&json!({"name": "Diamond", "data": {
            "nodes": [agent("a", "openai", "gpt-4o-mini", "x"), agent("b", "openai", "gpt-4o-mini", "x"),
                      agent("c", "echo", "echo-1", "{{ nodes.a.output }}{{ nodes.b.output }}")],
            "edges": [{"source": "a", "target": "c"}, {"source": "b", "target": "c"}]}})),
        &json!({}),
    );
    assert_eq!(run["nodes"][2]["output"], "[echo of echo-1] hihi");
}

#[test]
fn an_interrupted_run_resumes_without_repeating_nodes() {
    // Only the first call of the second node gets no answer.
    let is_stuck = AtomicBool::new(true);
    let upstream = Upstream::start(move |body, stream| {
        if body.contains("second") && is_stuck.swap(false, Ordering::SeqCst) {
            let _ = std::io::Read::read(stream, &mut [0; 1]);
            return;
        }
        let _ = stream.write_all(completion("hi", 1, 1).as_bytes());
    });
    let mut server = with_upstream(&upstream);
    let flow = server.save(&chain(
        "Long",
        &[
            agent("a", "openai", "gpt-4o-mini", "first"),
            agent("b", "openai", "gpt-4o-mini", "second {{ nodes.a.output }}"),
        ],
    ));
    let run_id = server.execute(flow, &json!({}));
    for _ in 0..2 {
        upstream.requests().recv_timeout(DEADLINE).unwrap();
    }
    server.start_again();
    eventually("the run continues", || {
        server.get(&format!("/api/runs/{run_id}")).json()["status"] == "COMPLETED"
    });
    assert_eq!(upstream.count(), 3);
    let rows = server.get("/api/ledger").json();
    let statuses: Vec<_> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            (
                r["node_id"].as_str().unwrap(),
                r["attempt"].as_u64().unwrap(),
                r["status"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(statuses, [("b", 2, "SUCCESS"), ("b", 1, "UNKNOWN"), ("a", 1, "SUCCESS")]);
    assert_eq!(rows["items"][1]["total_cost_usd"], Value::Null);
}

#[test]
fn the_status_route_serves_clients_without_a_websocket() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    let path = format!("/api/flows/{flow}/status");
    let before = server.get(&path).json();
    assert_eq!(
        (&before["runId"], &before["nodes"][0]["status"]),
        (&Value::Null, &json!("WAITING"))
    );
    let run = server.run(flow, &json!({"topic": "x"}));
    let after = server.get(&path).json();
    assert_eq!((&after["runId"], &after["status"]), (&run["runId"], &json!("COMPLETED")));
    assert_eq!(after["seq"], server.client().hello["payload"]["seq"]);
    assert_eq!(server.get("/api/flows/999/status").status, 404);
}

#[test]
fn ledger_pages_and_sums_and_csv_agree() {
    let server = TestServer::start();
    let flow = server.save(&two_nodes());
    for _ in 0..4 {
        server.run(flow, &json!({"topic": "x"}));
    }
    let mut ids = Vec::new();
    let mut path = "/api/ledger?limit=3".to_owned();
    loop {
        let page = server.get(&path).json();
        ids.extend(page["items"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()));
        let Some(next) = page["next"].as_i64() else {
            break;
        };
        path = format!("/api/ledger?limit=3&before={next}");
    }
    assert_eq!(ids, (1..=8).rev().collect::<Vec<_>>());
    for group in ["model", "provider", "flow", "role", "day", "status"] {
        let summary = server.get(&format!("/api/ledger/summary?group_by={group}")).json();
        assert_eq!(summary["items"].as_array().unwrap().len(), 1, "{group}");
        assert_eq!(summary["total"]["calls"], 8);
    }
    let csv = server.get("/api/ledger.csv?status=SUCCESS").text();
    assert_eq!(csv.lines().count(), 9);
    assert_eq!(server.get("/api/ledger?status=FAILED").json()["items"], json!([]));
}

#[test]
fn cancelled_waiting_runs_free_no_active_slot() {
    const ACTIVE_RUNS_MAX: usize = 256;
    let server = TestServer::start();
    let prompt = "word ".repeat(2_000);
    let flow = server.save(&chain("Slow", &[agent("a", "echo", "echo-slow", &prompt)]));
    let ids: Vec<String> =
        (0..ACTIVE_RUNS_MAX + 30).map(|_| server.execute(flow, &json!({}))).collect();
    let mut client = server.client();
    for id in &ids[ACTIVE_RUNS_MAX..ACTIVE_RUNS_MAX + 20] {
        assert_eq!(server.post(&format!("/api/runs/{id}/cancel"), &json!({})).status, 202);
        client.until_type("FLOW_CANCELLED");
    }
    let runs = server.get("/api/runs?limit=1000").json();
    let running = runs["items"].as_array().unwrap().iter();
    let running = running.filter(|run| run["status"] == "RUNNING").count();
    assert_eq!(running, ACTIVE_RUNS_MAX);
}

#[test]
fn a_failed_run_stays_failed_when_its_calls_are_cut() {
    let upstream = Upstream::start(|body, stream| {
        if body.contains("stuck") {
            let _ = std::io::Read::read(stream, &mut [0; 1]);
            return;
        }
        let answer = json_answer("400 Bad Request", r#"{"error":{"message":"no"}}"#);
        let _ = stream.write_all(answer.as_bytes());
    });
    let mut server = with_upstream(&upstream);
    let nodes = [
        agent("stuck", "openai", "gpt-4o-mini", "stuck"),
        agent("fails", "openai", "gpt-4o-mini", "fails"),
    ];
    let flow = server.save(&json!({"name": "Two", "data": {"nodes": nodes, "edges": []}}));
    let mut client = server.client();
    let run_id = server.execute(flow, &json!({}));
    client.until_type("NODE_FAILED");
    for _ in 0..2 {
        upstream.requests().recv_timeout(DEADLINE).unwrap();
    }
    server.start_again();
    let run = server.get(&format!("/api/runs/{run_id}")).json();
    assert_eq!((&run["status"], &run["errorNodeId"]), (&json!("FAILED"), &json!("fails")));
    assert_eq!(upstream.count(), 2);
}

/// Opens a second connection to the database of a running server.
fn database(server: &TestServer) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(server.data().join("flowledger.db")).unwrap();
    connection.busy_timeout(DEADLINE).unwrap();
    connection
}

#[test]
fn refused_writes_are_retried_until_the_database_recovers() {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = held.recv_timeout(DEADLINE);
        let _ = stream.write_all(completion("hi", 1, 1).as_bytes());
    });
    let server = with_upstream(&upstream);
    let nodes = [agent("fast", "echo", "echo-1", "x"), agent("slow", "openai", "gpt-4o-mini", "x")];
    let flow = server.save(&json!({"name": "Two", "data": {"nodes": nodes, "edges": []}}));
    let database = database(&server);
    database
        .execute_batch(
            "CREATE TRIGGER full_1 BEFORE UPDATE ON ledger
                BEGIN SELECT raise(ABORT, 'no node is settled'); END;
             CREATE TRIGGER full_2 BEFORE UPDATE ON runs WHEN new.status = 'COMPLETED'
                BEGIN SELECT raise(ABORT, 'no run is completed'); END;",
        )
        .unwrap();
    let run_id = server.execute(flow, &json!({}));
    upstream.requests().recv_timeout(DEADLINE).unwrap();
    eventually("the fast node has ended", || {
        server.get("/api/ledger").json()["items"].as_array().unwrap().len() == 2
    });
    eventually("the settlement of the fast node is refused", || {
        was_logged(&["retrying", "no node is settled"])
    });
    database.execute_batch("DROP TRIGGER full_1").unwrap();
    drop(release);
    eventually("the end of the run is refused", || {
        was_logged(&["retrying", "no run is completed"])
    });
    database.execute_batch("DROP TRIGGER full_2").unwrap();
    eventually("the end is written", || {
        server.get(&format!("/api/runs/{run_id}")).json()["status"] == "COMPLETED"
    });
    let rows = server.get("/api/ledger").json();
    for row in rows["items"].as_array().unwrap() {
        assert_eq!(row["status"], "SUCCESS", "{row}");
    }
    let run = server.get(&format!("/api/runs/{run_id}")).json();
    assert_eq!(run["nodes"][0]["status"], "COMPLETED");
    assert_eq!(run["inputTokens"], 2);
}

fn status(server: &TestServer, id: &str) -> String {
    let run = server.get(&format!("/api/runs/{id}")).json();
    run["status"].as_str().unwrap().to_owned()
}

#[test]
fn excess_runs_queue_fairly_and_survive_a_restart() {
    const ACTIVE_MAX: usize = 256;
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_open);
    let upstream = Upstream::start(move |_, stream| {
        let deadline = Instant::now() + DEADLINE;
        while !gate.load(Ordering::SeqCst) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        drop(stream.write_all(completion("well", 1, 1).as_bytes()));
    });
    let mut server = with_upstream(&upstream);
    let many = server.save(&one_call("many"));
    let one = server.save(&one_call("one"));
    let held: Vec<String> = (0..ACTIVE_MAX).map(|_| server.execute(many, &json!({}))).collect();
    let waiting: Vec<String> = (0..20).map(|_| server.execute(many, &json!({}))).collect();
    let alone = server.execute(one, &json!({}));
    for id in waiting.iter().chain([&alone]) {
        assert_eq!(status(&server, id), "QUEUED");
    }
    // Two places: the first for the flow that has waited longest, the second for the other.
    for id in &held[..2] {
        let cancelled = server.post(&format!("/api/runs/{id}/cancel"), &json!({}));
        assert_eq!(cancelled.status, 202);
    }
    eventually("both begin", || {
        status(&server, &alone) == "RUNNING" && status(&server, &waiting[0]) == "RUNNING"
    });
    assert_eq!(status(&server, &waiting[1]), "QUEUED");
    // A waiting run can be cancelled too.
    let last = waiting.last().unwrap();
    let cancelled = server.post(&format!("/api/runs/{last}/cancel"), &json!({}));
    assert_eq!(cancelled.status, 202);
    eventually("it is cancelled", || status(&server, last) == "CANCELLED");
    server.start_again();
    assert_eq!(status(&server, &waiting[1]), "QUEUED");
    is_open.store(true, Ordering::SeqCst);
    let open = || {
        let runs = server.get("/api/runs?limit=1000").json();
        let runs = runs["items"].as_array().unwrap().clone();
        let is_over = |run: &&Value| run["finishedAt"].is_null();
        runs.iter().filter(is_over).count()
    };
    eventually("all are over", || open() == 0);
    for id in held[2..].iter().chain(&waiting[..19]).chain([&alone]) {
        assert_eq!(status(&server, id), "COMPLETED");
    }
}

#[test]
fn a_full_run_queue_returns_429_until_a_run_leaves() {
    let (release, wait) = crossbeam_channel::unbounded::<()>();
    let upstream = Upstream::start(move |_, stream| {
        let _ = wait.recv_timeout(DEADLINE);
        let _ = stream.write_all(completion("done", 1, 1).as_bytes());
    });
    let server = TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
        config.engine.active_runs = 2;
        config.engine.queued_runs = 3;
    });
    let flow = server.save(&one_call("x"));
    let held: Vec<String> = (0..5).map(|_| server.execute(flow, &json!({}))).collect();
    let path = format!("/api/flows/{flow}/execute");
    let refused = server.post(&path, &json!({}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.text().contains("the run queue is full (3 runs)"));
    // A refused run leaves no trace.
    let runs = server.get("/api/runs").json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 5);
    release.send(()).unwrap();
    eventually("one is over, and another takes its place", || {
        status(&server, &held[2]) == "RUNNING"
    });
    let accepted = server.execute(flow, &json!({}));
    assert_eq!(server.post(&path, &json!({})).status, 429);
    for _ in 0..5 {
        release.send(()).unwrap();
    }
    for id in held.iter().chain([&accepted]) {
        eventually("it is over", || status(&server, id) == "COMPLETED");
    }
}

#[test]
fn metrics_measure_calls_under_opentelemetry_names() {
    let upstream = Upstream::start(|body, stream| {
        let answer = if body.contains("fails") {
            json_answer("400 Bad Request", "{}")
        } else {
            completion("done", 100, 1_000)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = with_upstream(&upstream);
    let flow = server.save(&one_call("{{ input.x }}"));
    for x in ["well", "fails", "well again"] {
        server.run(flow, &json!({"x": x}));
    }
    let text = server.get("/metrics").text();
    let model = r#"gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_response_model="gpt-4o-mini""#;
    for line in [
        "# TYPE gen_ai_client_token_usage histogram".to_owned(),
        format!(r#"gen_ai_client_token_usage_sum{{{model},gen_ai_token_type="input"}} 200"#),
        format!(
            r#"gen_ai_client_token_usage_bucket{{{model},gen_ai_token_type="output",le="1024"}} 2"#
        ),
        format!("gen_ai_client_operation_duration_seconds_count{{{model}}} 2"),
        format!(
            r#"gen_ai_client_operation_duration_seconds_count{{{model},error_type="failed"}} 1"#
        ),
        format!(r#"flowledger_calls_total{{{model},status="success"}} 2"#),
        format!(r#"flowledger_calls_total{{{model},status="failed"}} 1"#),
        format!("flowledger_cost_usd_total{{{model}}} 0.00123"),
        format!("flowledger_unpriced_calls_total{{{model}}} 0"),
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in: {text}");
    }
}

#[test]
fn a_cancelled_run_does_not_resume_after_a_restart() {
    let (arrived, arrivals) = crossbeam_channel::unbounded();
    let upstream = Upstream::start(move |_, _| {
        let _ = arrived.send(());
        std::thread::park_timeout(DEADLINE);
    });
    let mut server = with_upstream(&upstream);
    let flow = server.save(&one_call("x"));
    let run_id = server.execute(flow, &json!({}));
    arrivals.recv_timeout(DEADLINE).unwrap();
    server.stop();
    // The state after a kill before the calls of a cancelled run have ended.
    let cancelled = database(&server).execute("UPDATE runs SET cancel_ms = 1", []);
    assert_eq!(cancelled.unwrap(), 1);
    server.start_again();
    eventually("it is over", || status(&server, &run_id) == "CANCELLED");
    let run = server.get(&format!("/api/runs/{run_id}")).json();
    // Work of the first server does not appear as running.
    assert_eq!(run["nodes"][0]["status"], "CANCELLED");
    assert_eq!(run["nodes"][0]["cost"], run["cost"]);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_large_run_is_sent_whole() {
    let server = TestServer::start();
    // The second node's id is a number, as some editors write it.
    let mut nodes = vec![agent("a", "echo", "echo-1", &"first ".repeat(100_000))];
    let mut second = agent("b", "echo", "echo-1", &"second ".repeat(100_000));
    second["id"] = json!(2);
    nodes.push(second);
    nodes
        .push(json!({"id": "end", "type": "output", "data": {"template": "{{ nodes.a.output }}"}}));
    nodes.push(json!({"id": "never", "type": "output", "data": {"template": "short"}}));
    let small = json!({"name": "Small", "data": {"nodes": [nodes[3]], "edges": []}});
    let edges = json!([{"source": "a", "target": "end"}]);
    let large = json!({"name": "Large", "data": {"nodes": nodes, "edges": edges}});
    let run = server.run(server.save(&large), &json!({}));
    let keys = |run: &Value| -> Vec<String> {
        run.as_object().unwrap().keys().map(String::to_owned).collect()
    };
    assert_eq!(keys(&run), keys(&server.run(server.save(&small), &json!({}))));
    assert_eq!(run["status"], "COMPLETED");
    let ids: Vec<&Value> =
        run["nodes"].as_array().unwrap().iter().map(|node| &node["nodeId"]).collect();
    assert_eq!(ids, ["a", "2", "end", "never"]);
    for node in run["nodes"].as_array().unwrap() {
        assert_eq!(node["status"], "COMPLETED", "{}", node["nodeId"]);
    }
    assert!(run["nodes"][0]["output"].as_str().unwrap().len() > 600_000);
    assert_eq!(run["output"]["end"], run["nodes"][0]["output"]);
    assert_eq!(run["output"]["never"], "short");
    assert_eq!(run["calls"].as_array().unwrap().len(), 2);
}

#[test]
fn a_flow_with_an_open_run_is_not_deleted() {
    let (release, released) = bounded::<()>(0);
    let upstream = Upstream::start(move |_, stream| {
        let _ = released.recv_timeout(DEADLINE);
        drop(stream.write_all(completion("yes", 1, 1).as_bytes()));
    });
    let server = with_upstream(&upstream);
    let flow = server.save(&one_call("x"));
    let run_id = server.execute(flow, &json!({}));
    let path = format!("/api/flows/{flow}");
    let refused = server.request("DELETE", &path, &[], b"");
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("cancel them first"), "{}", refused.text());
    drop(release);
    eventually("the run ends", || {
        server.get(&format!("/api/runs/{run_id}")).json()["status"] == "COMPLETED"
    });
    assert_eq!(server.request("DELETE", &path, &[], b"").status, 204);
    assert_eq!(server.get(&path).status, 404);
}
