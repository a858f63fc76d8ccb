//! Maps: one call per item of a list.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, TestServer, add_provider, eventually, types};
use crate::upstream::{Upstream, completion, json_answer};

/// A map over `input.list`, with `more` in its data, and an output that joins its answers.
fn over_list(provider: &str, more: Value) -> Value {
    let mut map = json!({"id": "each", "type": "map", "data": {
        "label": "Each", "provider": provider, "model": "gpt-4o-mini", "stream": false,
        "items": "{{ input.list }}", "prompt": "{{ index }}: {{ item }}"
    }});
    for (key, value) in more.as_object().unwrap() {
        map["data"][key] = value.clone();
    }
    let out = json!({"id": "out", "type": "output", "data": {"template": "{{ nodes.each.output | join('+') }}"}});
    json!({"name": "Map", "data": {"nodes": [map, out], "edges": [{"source": "each", "target": "out"}]}})
}

fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    })
}

/// Returns the prompt of a request to the upstream.
fn prompt(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    body["messages"][0]["content"].as_str().unwrap().to_owned()
}

/// Answers each prompt with itself in brackets, and fails if `is_bad` returns true for it.
fn failing_on(is_bad: impl Fn(&str) -> bool + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |body, stream| {
        let prompt = prompt(body);
        let answer = if is_bad(&prompt) {
            json_answer("400 Bad Request", r#"{"error":{"message":"bad item"}}"#)
        } else {
            completion(&format!("[{prompt}]"), 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    })
}

/// An upstream that reports each prompt and answers with it on demand.
fn on_demand() -> (Upstream, Receiver<String>, Sender<()>) {
    let (prompts, arrivals) = unbounded();
    let (release, released) = unbounded::<()>();
    let upstream = Upstream::start(move |body, stream| {
        let prompt = prompt(body);
        let _ = prompts.send(prompt.clone());
        if released.recv_timeout(DEADLINE).is_ok() {
            drop(stream.write_all(completion(&prompt, 10, 5).as_bytes()));
        }
    });
    (upstream, arrivals, release)
}

fn rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger").json();
    rows["items"].as_array().unwrap().clone()
}

#[test]
fn a_map_makes_one_call_per_item_and_returns_a_list() {
    let upstream = failing_on(|_| false);
    let server = server(&upstream);
    let flow = server.save(&over_list("openai", json!({"atOnce": 3})));
    let mut client = server.client();
    let run = server.run(flow, &json!({"list": ["a", "b", "c", 4]}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(run["output"], "[0: a]+[1: b]+[2: c]+[3: 4]");
    let map = &run["nodes"][0];
    let output: Value = serde_json::from_str(map["output"].as_str().unwrap()).unwrap();
    assert_eq!(output[1], "[1: b]");
    let items = map["items"].as_array().unwrap();
    assert_eq!(items.len(), 4);
    assert_eq!((&items[3]["prompt"], &items[3]["status"]), (&json!("3: 4"), &json!("COMPLETED")));
    // Each item has its own row, and the node's sums cover all items.
    let rows = rows(&server);
    assert_eq!(rows.len(), 4);
    let mut operations: Vec<&str> =
        rows.iter().map(|row| row["operation_id"].as_str().unwrap()).collect();
    operations.sort_unstable();
    assert!(operations[2].ends_with(":each[2]"), "{operations:?}");
    assert!(rows.iter().all(|row| row["node_id"] == "each"));
    assert_eq!((&map["inputTokens"], &map["outputTokens"]), (&json!(40), &json!(20)));
    assert_eq!(map["cost"], run["cost"]);
    // Viewers see one node.
    let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
    let of_map: Vec<Value> = seen
        .into_iter()
        .filter(|message| {
            message["payload"]["nodeId"] == "each" && message["type"] != "LEDGER_UPDATE"
        })
        .collect();
    assert_eq!(types(&of_map), ["NODE_STARTED", "NODE_COMPLETED", "FLOW_STATUS"]);
}

#[test]
fn items_run_in_order_unless_the_node_allows_concurrency() {
    for (more, at_once) in [(json!({}), 1), (json!({"atOnce": 3}), 3)] {
        let (upstream, arrivals, release) = on_demand();
        let server = server(&upstream);
        let flow = server.save(&over_list("openai", more));
        let run_id = server.execute(flow, &json!({"list": [0, 1, 2, 3, 4, 5]}));
        let mut prompts = Vec::new();
        for _ in 0..6 / at_once {
            for _ in 0..at_once {
                prompts.push(arrivals.recv_timeout(DEADLINE).unwrap());
            }
            assert!(arrivals.is_empty(), "more than {at_once} at once");
            for _ in 0..at_once {
                release.send(()).unwrap();
            }
            if at_once > 1 {
                // The next items begin as these end, so only the set of each round is
                // deterministic.
                prompts.sort();
            }
        }
        assert_eq!(prompts, ["0: 0", "1: 1", "2: 2", "3: 3", "4: 4", "5: 5"]);
        eventually("it is over", || {
            server.get(&format!("/api/runs/{run_id}")).json()["status"] == "COMPLETED"
        });
    }
}

#[test]
fn a_map_accepts_only_lists_and_json_text_of_lists() {
    let upstream = failing_on(|_| false);
    let server = server(&upstream);
    let flow = server.save(&over_list("openai", json!({})));
    let output = |list: Value| server.run(flow, &json!({"list": list}))["output"].clone();
    assert_eq!(output(json!([])), "");
    assert_eq!(output(json!("[7, 8]")), "[0: 7]+[1: 8]");
    for (list, why) in [
        (json!("x"), "must be an array, not a string without a JSON array"),
        (json!({"a": 1}), "must be an array, not an object"),
        (json!(null), "must be an array, not null"),
        (json!(vec![0; 1_001]), "has 1001 items; the limit is 1000"),
    ] {
        let run = server.run(flow, &json!({"list": list}));
        assert_eq!(run["status"], "FAILED");
        assert_eq!(run["errorNodeId"], "each");
        let error = run["error"].as_str().unwrap();
        assert!(error.contains("`items`") && error.contains(why), "{error}");
    }
    assert_eq!(upstream.count(), 2);
}

#[test]
fn a_resumed_map_calls_only_its_missing_items() {
    let is_mended = Arc::new(AtomicUsize::new(0));
    let mended = Arc::clone(&is_mended);
    let upstream = failing_on(move |prompt| prompt == "2: c" && mended.load(Ordering::SeqCst) == 0);
    let server = server(&upstream);
    let flow = server.save(&over_list("openai", json!({})));
    let run = server.run(flow, &json!({"list": ["a", "b", "c", "d"]}));
    assert_eq!(run["status"], "FAILED");
    let error = run["error"].as_str().unwrap();
    assert!(error.starts_with("items[2]: ") && error.contains("bad item"), "{error}");
    let items = run["nodes"][0]["items"].as_array().unwrap();
    let statuses: Vec<&Value> = items.iter().map(|item| &item["status"]).collect();
    assert_eq!(statuses, ["COMPLETED", "COMPLETED", "FAILED"]);
    assert_eq!(run["nodes"][0]["cost"], run["cost"]);
    is_mended.store(1, Ordering::SeqCst);
    let path = format!("/api/runs/{}", run["runId"].as_str().unwrap());
    let resumed = server.post(&format!("{path}/resume"), &json!({}));
    assert_eq!(resumed.status, 202);
    eventually("it is over", || server.get(&path).json()["status"] == "COMPLETED");
    let run = server.get(&path).json();
    assert_eq!(run["output"], "[0: a]+[1: b]+[2: c]+[3: d]");
    // Three, then the failed item and the last.
    assert_eq!(upstream.count(), 5);
    assert_eq!(run["nodes"][0]["cost"], run["cost"]);
}

#[test]
fn a_failed_item_is_replaced_by_its_on_error_output() {
    let upstream = failing_on(|prompt| prompt == "1: b");
    let server = server(&upstream);
    let more = json!({"atOnce": 16, "onError": {"output": "none"}});
    let flow = server.save(&over_list("openai", more));
    let run = server.run(flow, &json!({"list": ["a", "b", "c"]}));
    assert_eq!(run["output"], "[0: a]+none+[2: c]", "{run:#}");
    let item = &run["nodes"][0]["items"][1];
    assert_eq!(item["output"], "none");
    assert!(item["error"].as_str().unwrap().contains("bad item"));
}

#[test]
fn a_failed_item_is_retried_alone() {
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start(move |body, stream| {
        let prompt = prompt(body);
        let fails = prompt == "1: b" && count.fetch_add(1, Ordering::SeqCst) < 2;
        let answer = if fails {
            json_answer("503 Service Unavailable", "{}")
        } else {
            completion(&prompt, 10, 5)
        };
        drop(stream.write_all(answer.as_bytes()));
    });
    let server = server(&upstream);
    let retry = json!({"atOnce": 2, "retry": {"attempts": 3, "backoffMs": 10}});
    let flow = server.save(&over_list("openai", retry));
    let run = server.run(flow, &json!({"list": ["a", "b", "c"]}));
    assert_eq!(run["output"], "0: a+1: b+2: c", "{run:#}");
    let items = &run["nodes"][0]["items"];
    let attempts = [0, 1, 2].map(|item: usize| items[item]["attempt"].clone());
    assert_eq!(attempts, [1, 3, 1]);
    assert_eq!(upstream.count(), 5);
}

#[test]
fn a_restart_repeats_no_finished_item() {
    let (upstream, arrivals, release) = on_demand();
    let mut server = server(&upstream);
    let flow = server.save(&over_list("openai", json!({})));
    let run_id = server.execute(flow, &json!({"list": ["a", "b", "c"]}));
    let path = format!("/api/runs/{run_id}");
    assert_eq!(arrivals.recv_timeout(DEADLINE).unwrap(), "0: a");
    release.send(()).unwrap();
    assert_eq!(arrivals.recv_timeout(DEADLINE).unwrap(), "1: b");
    server.start_again();
    // The item in flight may have been billed; it is requested again and gets a new row.
    assert_eq!(arrivals.recv_timeout(DEADLINE).unwrap(), "1: b");
    for _ in 0..3 {
        let _ = release.send(());
    }
    eventually("it is over", || server.get(&path).json()["status"] == "COMPLETED");
    assert_eq!(arrivals.recv_timeout(DEADLINE).unwrap(), "2: c");
    assert!(arrivals.is_empty());
    let run = server.get(&path).json();
    assert_eq!(run["output"], "0: a+1: b+2: c");
    let unknown = rows(&server);
    let unknown = unknown.iter().filter(|row| row["status"] == "UNKNOWN");
    assert_eq!(unknown.count(), 1);
}

#[test]
fn an_interrupted_unrepeatable_item_fails_the_run() {
    let (upstream, arrivals, _release) = on_demand();
    let mut server = server(&upstream);
    let retry = json!({"retry": {"afterRestart": false}});
    let flow = server.save(&over_list("openai", retry));
    let run_id = server.execute(flow, &json!({"list": ["a", "b"]}));
    arrivals.recv_timeout(DEADLINE).unwrap();
    server.start_again();
    let path = format!("/api/runs/{run_id}");
    eventually("it is over", || server.get(&path).json()["status"] == "FAILED");
    let run = server.get(&path).json();
    let error = run["error"].as_str().unwrap();
    assert!(error.starts_with("items[0]: ") && error.contains("afterRestart"), "{error}");
    assert!(arrivals.is_empty());
}

#[test]
fn a_cancelled_map_stops_its_calls_and_starts_no_more() {
    let (upstream, arrivals, _release) = on_demand();
    let server = server(&upstream);
    let flow = server.save(&over_list("openai", json!({"atOnce": 2})));
    let run_id = server.execute(flow, &json!({"list": ["a", "b", "c"]}));
    for _ in 0..2 {
        arrivals.recv_timeout(DEADLINE).unwrap();
    }
    let path = format!("/api/runs/{run_id}");
    let cancelled = server.post(&format!("{path}/cancel"), &json!({}));
    assert_eq!(cancelled.status, 202);
    eventually("it is over", || server.get(&path).json()["status"] == "CANCELLED");
    let run = server.get(&path).json();
    assert_eq!(run["nodes"][0]["status"], "CANCELLED", "{run:#}");
    let items = run["nodes"][0]["items"].as_array().unwrap();
    assert!(items.len() == 2 && items.iter().all(|item| item["status"] == "CANCELLED"));
    assert!(rows(&server).iter().all(|row| row["status"] == "CANCELLED"));
}

#[test]
fn cancel_ends_a_run_with_a_pausing_item_at_once() {
    let upstream = Upstream::saying(json_answer("503 Service Unavailable", "{}"));
    let server = server(&upstream);
    let retry =
        json!({"retry": {"attempts": 9, "backoffMs": 86_000_000, "backoffMaxMs": 86_000_000}});
    let flow = server.save(&over_list("openai", retry));
    let run_id = server.execute(flow, &json!({"list": ["a", "b"]}));
    let path = format!("/api/runs/{run_id}");
    eventually("it pauses", || {
        server.get(&path).json()["nodes"][0]["items"][0]["status"] == "WAITING"
    });
    server.post(&format!("{path}/cancel"), &json!({}));
    eventually("it is over", || server.get(&path).json()["status"] == "CANCELLED");
    let run = server.get(&path).json();
    assert_eq!(run["nodes"][0]["items"][0]["status"], "CANCELLED");
    assert_eq!(run["nodes"][0]["status"], "CANCELLED");
}

#[test]
fn missing_map_fields_are_reported_on_save() {
    let server = TestServer::start();
    let mut flow = over_list("echo", json!({"atOnce": 17, "prompt": "{{ itme }}"}));
    flow["data"]["nodes"][0]["data"]["items"] = json!("item");
    flow["data"]["nodes"][1]["data"]["template"] = json!("{{ item }}");
    let response = server.post("/api/flows", &flow);
    assert_eq!(response.status, 422);
    let details = response.json()["error"]["details"].clone();
    let mut fields: Vec<&str> =
        details.as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "data.nodes[0].data.atOnce",
            "data.nodes[0].data.items",
            "data.nodes[0].data.prompt",
            "data.nodes[1].data.template",
        ],
        "{details:#}"
    );
}
