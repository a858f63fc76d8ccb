//! Suggestions about billed failures and about limits that block room in budgets, and measured
//! savings after a suggestion was applied. The tests recompute all amounts.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{TestServer, agent, chain, eventually};
use crate::optimizer_fixture::{
    Fixture, apply, assert_near, flow_of, interval, interval_of, of_kind, run_times, suggestion,
    two_and_output, wait_for_pass,
};
use crate::upstream::{STREAM_HEAD, Upstream, completion_of, delta, json_answer};

/// Cost of 1,000 prompt tokens and 1,000 answer tokens at gpt-4o, in nano-dollars.
const CALL: i64 = 12_500_000;

/// A part of a streamed answer that was billed with 1,000 and 1,000 tokens.
fn billed() -> String {
    let chunk = json!({"choices": [{"index": 0, "delta": {"content": "half"}}],
        "usage": {"prompt_tokens": 1_000, "completion_tokens": 1_000}});
    format!("data: {chunk}\n\n")
}

/// Returns true if the prompt of a request contains this word.
fn is_asked(body: &str, word: &str) -> bool {
    let asked: Value = serde_json::from_str(body).unwrap();
    asked["messages"].to_string().contains(word)
}

/// A provider with faults. Every first of two requests to gpt-4o with `fail` gets an error within
/// the answer, answers to `stall` begin and never end, and `busy` is refused. All other requests
/// succeed.
fn unsteady() -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::start(move |body, stream| {
        let asked: Value = serde_json::from_str(body).unwrap();
        let model = asked["model"].as_str().unwrap();
        let fails = model == "gpt-4o" && is_asked(body, "fail");
        if fails && count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            let error = r#"data: {"error":{"message":"The server had an error"}}"#;
            let answer = format!("{STREAM_HEAD}{}{error}\n\n", billed());
            let _ = stream.write_all(answer.as_bytes());
        } else if is_asked(body, "stall") {
            let begun = format!("{STREAM_HEAD}{}", delta(&"word ".repeat(1_000)));
            let _ = stream.write_all(begun.as_bytes());
            // Until the client disconnects.
            let _ = stream.read(&mut [0]);
        } else if is_asked(body, "busy") {
            let busy = json_answer("429 Too Many Requests", r#"{"error":{"message":"busy"}}"#);
            let _ = stream.write_all(busy.as_bytes());
        } else if asked["stream"] == true {
            let answer = format!(
                "{STREAM_HEAD}{}data: {}\n\ndata: [DONE]\n\n",
                billed(),
                json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            );
            let _ = stream.write_all(answer.as_bytes());
        } else {
            let answer = completion_of(model, "well", 1_000, 1_000);
            let _ = stream.write_all(answer.as_bytes());
        }
    })
}

/// Saves a flow of one streaming node at gpt-4o, with more in its data.
fn streamed(server: &TestServer, more: Value) -> i64 {
    let mut node = agent("n", "openai", "gpt-4o", "Say {{ input.what }}");
    for (key, value) in more.as_object().unwrap() {
        node["data"][key] = value.clone();
    }
    server.save(&chain("Streamed", &[node]))
}

/// Runs a flow `count` times, with or without success.
fn try_times(server: &TestServer, flow: i64, count: usize, what: &str) {
    for number in 0..count {
        server.run(flow, &json!({"what": format!("{what} {number}")}));
    }
}

/// Waits for the measured savings of `calls` calls.
fn realised(server: &TestServer, path: &str, calls: u64) -> Value {
    let mut found = Value::Null;
    eventually(&format!("{calls} calls are measured"), || {
        found = server.get(path).json()["realised"].clone();
        found["calls"] == calls
    });
    found
}

/// Returns the measured amounts in nano-dollars: before, after, and the difference.
fn amounts(realised: &Value) -> [i64; 3] {
    ["wouldHaveCostUsd", "costUsd", "savedUsd"].map(|key| {
        let usd = realised[key].as_f64().unwrap_or_else(|| panic!("{realised}"));
        (usd * 1e9).round() as i64
    })
}

/// Returns the rows of a flow, oldest first.
fn rows(server: &TestServer, flow: i64) -> Vec<Value> {
    let rows = server.get(&format!("/api/ledger?flow_id={flow}&limit=100"));
    let mut rows = rows.json()["items"].as_array().unwrap().clone();
    rows.reverse();
    rows
}

#[test]
fn billed_failures_are_suggested_a_fallback_model() {
    let upstream = unsteady();
    let mut server = Fixture::of(upstream);
    let used = flow_of(&server, "gpt-4o-mini");
    run_times(&server, used, 10, |at| at.to_string());
    let retry = json!({"retry": {"attempts": 2, "backoffMs": 1}});
    let flow = streamed(&server, retry);
    run_times(&server, flow, 4, |at| format!("fail {at}"));
    let found = suggestion(&server, "retry_waste");
    assert_eq!(found["flowId"], flow);
    let evidence = &found["evidence"];
    assert_eq!((&found["calls"], &evidence["failedCalls"]), (&json!(4), &json!(4)));
    assert_eq!(evidence["failedCostNanousd"], 4 * CALL, "{found}");
    assert_eq!(evidence["answeredCalls"], 4);
    // The number of failures that the change would avoid is unknown.
    let [_, expected, high] = interval_of(4, CALL);
    assert_near(interval(&found), [0, expected, high]);
    assert_eq!(
        found["edit"]["values"],
        json!({"fallback": [{"provider": "openai", "model": "gpt-4o-mini"}], "retry": {"attempts": 1}})
    );

    let path = apply(&server, &found);
    run_times(&server, flow, 1, |_| "fail anew".into());
    let asked = rows(&server, flow);
    let [failed, answered] = asked.last_chunk().unwrap();
    assert_eq!(
        (&failed["status"], &answered["model_used"]),
        (&json!("FAILED"), &json!("gpt-4o-mini"))
    );
    run_times(&server, flow, 3, |at| format!("well {at}"));
    // Four answers came with four billed failures before, and with one since.
    let measured = realised(&server, &path, 4);
    assert_eq!(amounts(&measured), [4 * CALL, CALL, 3 * CALL]);
    server.start_again();
    run_times(&server, flow, 1, |_| "well again".into());
    let measured = realised(&server, &path, 5);
    assert_eq!(amounts(&measured), [5 * CALL, CALL, 4 * CALL]);
}

#[test]
fn billed_failures_with_a_fallback_get_a_longer_backoff() {
    let upstream = unsteady();
    let server = Fixture::of(upstream);
    let flow = streamed(
        &server,
        json!({"retry": {"attempts": 2, "backoffMs": 1, "backoffMaxMs": 1},
            "fallback": [{"provider": "openai", "model": "gpt-4o-mini"}]}),
    );
    run_times(&server, flow, 3, |at| format!("fail {at}"));
    let found = suggestion(&server, "retry_waste");
    assert_eq!(
        found["edit"]["values"],
        json!({"retry": {"backoffMs": 2_000, "backoffMaxMs": 2_000}})
    );
}

#[test]
fn billed_timeouts_are_suggested_a_longer_timeout() {
    let upstream = unsteady();
    let server = Fixture::of(upstream);
    let flow = streamed(&server, json!({"timeouts": {"totalMs": 300}}));
    try_times(&server, flow, 3, "stall");
    let found = suggestion(&server, "retry_waste");
    let rows = rows(&server, flow);
    assert_eq!(rows.len(), 3);
    let mut cost = 0;
    for row in &rows {
        assert_eq!(
            (&row["status"], &row["usage_source"]),
            (&json!("TIMEOUT"), &json!("estimated"))
        );
        let tokens = |key: &str| row[key].as_i64().unwrap();
        cost += tokens("input_tokens") * 2_500 + tokens("output_tokens") * 10_000;
    }
    let evidence = &found["evidence"];
    assert_eq!((&found["calls"], &evidence["timedOutCalls"]), (&json!(3), &json!(3)));
    assert_eq!(evidence["timedOutCostNanousd"], cost, "{found}");
    assert_eq!(found["savingPer30Days"]["lowUsd"], 0);
    assert_eq!(found["edit"]["values"], json!({"timeouts": {"totalMs": 600}}));
}

#[test]
fn rare_unbilled_or_unretried_failures_get_no_suggestion() {
    let upstream = unsteady();
    let server = Fixture::of(upstream);
    let retry = json!({"retry": {"attempts": 2, "backoffMs": 1}});
    let few = streamed(&server, retry.clone());
    run_times(&server, few, 2, |at| format!("fail {at}"));
    let unbilled = streamed(&server, retry);
    try_times(&server, unbilled, 4, "busy");
    let timed_out = streamed(&server, json!({}));
    try_times(&server, timed_out, 8, "fail");
    wait_for_pass(&server);
    let failed = rows(&server, timed_out);
    let failed = failed.iter().filter(|row| row["status"] == "FAILED");
    assert_eq!(failed.count(), 4);
    assert_eq!(of_kind(&server, "retry_waste", "OPEN"), Vec::<Value>::new());
}

fn set_budgets(server: &TestServer, budgets: Value) {
    let body = json!({"budgets": budgets}).to_string();
    let answer = server.request("PUT", "/api/budget", &[], body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn an_excessive_token_limit_is_suggested_with_the_freed_budget() {
    let server = Fixture::answering(1_000, 100);
    set_budgets(&server, json!([{"name": "daily", "per": "day", "limitUsd": "1"}]));
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let found = suggestion(&server, "max_tokens");
    assert_eq!(found["flowId"], flow);
    let evidence = &found["evidence"];
    assert_eq!(evidence["longestAnswerTokens"], 100, "{found}");
    assert_eq!(evidence["budget"], "daily");
    assert_eq!(evidence["freedTokens"], 4_096 - 256);
    assert_eq!(evidence["freedNanousd"], (4_096 - 256) * 10_000);
    assert!(found["savingPer30Days"].is_null());
    let path = apply(&server, &found);
    while server.upstream.requests().try_recv().is_ok() {}
    run_times(&server, flow, 2, |at| format!("after {at}"));
    let asked: Value = serde_json::from_str(&server.upstream.requests().recv().unwrap()).unwrap();
    assert!(asked.to_string().contains("256"), "{asked}");
    assert_eq!(amounts(&realised(&server, &path, 2)), [0, 0, 0]);
}

#[test]
fn a_small_excess_limit_is_suggested_after_refusals() {
    let server = Fixture::answering(100_000, 100);
    // 20 calls at 15 cents per million; a call leaves a little less than 1 % unused.
    set_budgets(&server, json!([{"name": "small", "per": "day", "limitUsd": "0.3"}]));
    let flow = flow_of(&server, "gpt-4o-mini");
    run_times(&server, flow, 19, |at| at.to_string());
    try_times(&server, flow, 2, "more");
    let refused = rows(&server, flow);
    let refused = refused.iter().filter(|row| row["refused"] == "budget");
    let refused = refused.count();
    assert!(refused > 0);
    let found = suggestion(&server, "max_tokens");
    assert_eq!(found["evidence"]["refusedCalls"], refused, "{found}");
    assert_eq!(found["evidence"]["freedNanousd"], (4_096 - 256) * 600);
}

#[test]
fn a_tight_or_irrelevant_limit_gets_no_suggestion() {
    let server = Fixture::answering(1_000, 100);
    let near = |tokens: u64| {
        let mut node = agent("n", "openai", "gpt-4o", "Say {{ input.what }}");
        node["data"]["stream"] = json!(false);
        node["data"]["maxTokens"] = json!(tokens);
        server.save(&chain("Near", &[node]))
    };
    let (near, soft, wide) = (near(399), near(8_000), near(8_000));
    set_budgets(
        &server,
        json!([
            {"name": "near", "per": "day", "flowId": near, "limitUsd": "0.5"},
            {"name": "soft", "per": "day", "flowId": soft, "limitUsd": "0.5", "hard": false},
            {"name": "wide", "per": "day", "flowId": wide, "limitUsd": "100"},
        ]),
    );
    for flow in [near, soft, wide] {
        run_times(&server, flow, 10, |at| at.to_string());
    }
    wait_for_pass(&server);
    assert_eq!(of_kind(&server, "max_tokens", "OPEN"), Vec::<Value>::new());
}

#[test]
fn model_savings_survive_a_restart_and_a_revert() {
    let mut server = Fixture::answering(1_000, 100);
    let used = flow_of(&server, "gpt-4o-mini");
    run_times(&server, used, 10, |at| at.to_string());
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 10, |at| at.to_string());
    let path = apply(&server, &suggestion(&server, "model_switch"));
    assert!(server.get(&path).json()["realised"].is_null());
    let (before, now) = (1_000 * 2_500 + 100 * 10_000, 1_000 * 150 + 100 * 600);
    run_times(&server, flow, 3, |at| format!("after {at}"));
    let measured = realised(&server, &path, 3);
    assert_eq!(amounts(&measured), [3 * before, 3 * now, 3 * (before - now)]);
    assert_eq!(measured["since"], server.get(&path).json()["appliedAt"]);
    server.start_again();
    run_times(&server, flow, 2, |at| format!("again {at}"));
    let measured = realised(&server, &path, 5);
    assert_eq!(amounts(&measured), [5 * before, 5 * now, 5 * (before - now)]);
    let reverted = server.post(&format!("{path}/revert"), &json!({}));
    assert_eq!(reverted.status, 200, "{}", reverted.text());
    run_times(&server, flow, 2, |at| format!("back {at}"));
    wait_for_pass(&server);
    assert_eq!(server.get(&path).json()["realised"], measured);
}

#[test]
fn an_unreadable_suggestion_stops_no_other_measurement() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flows = [flow_of(&server, "gpt-4o"), flow_of(&server, "gpt-4o")];
    let [_, path] = flows.map(|flow| {
        run_times(&server, flow, 5, |_| "again".into());
        apply(&server, &suggestion(&server, "cache"))
    });
    let spoil = "UPDATE suggestions SET proposal = '{' WHERE flow_id = ?1";
    server.alter(flows[0], spoil);
    run_times(&server, flows[1], 3, |_| "again".into());
    realised(&server, &path, 2);
}

#[test]
fn savings_from_before_the_window_count_after_a_restart() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let path = apply(&server, &suggestion(&server, "cache"));
    run_times(&server, flow, 3, |_| "again".into());
    realised(&server, &path, 2);
    // 40 days ago: calls count for 30 days, and savings are measured for 90.
    for older in [
        "UPDATE ledger SET timestamp_ms = timestamp_ms - 40 * 86400000 WHERE flow_id = ?1",
        "UPDATE suggestions SET applied_ms = applied_ms - 40 * 86400000
             WHERE flow_id = ?1 AND status = 'APPLIED'",
    ] {
        server.alter(flow, older);
    }
    run_times(&server, flow, 1, |_| "again".into());
    let measured = realised(&server, &path, 3);
    assert_eq!(amounts(&measured), [3 * CALL, 0, 3 * CALL]);
}

#[test]
fn cache_savings_are_measured_across_a_restart() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = flow_of(&server, "gpt-4o");
    run_times(&server, flow, 5, |_| "again".into());
    let path = apply(&server, &suggestion(&server, "cache"));
    // One call is made and cached.
    run_times(&server, flow, 3, |_| "again".into());
    assert_eq!(amounts(&realised(&server, &path, 2)), [2 * CALL, 0, 2 * CALL]);
    server.start_again();
    run_times(&server, flow, 1, |_| "again".into());
    assert_eq!(amounts(&realised(&server, &path, 3)), [3 * CALL, 0, 3 * CALL]);
}

#[test]
fn a_removed_call_saves_its_cost_in_each_later_run() {
    let mut server = Fixture::answering(1_000, 1_000);
    let flow = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ input.what }}",
        "{{ nodes.second.output }}",
    ));
    run_times(&server, flow, 10, |at| at.to_string());
    let path = apply(&server, &suggestion(&server, "dead_node"));
    run_times(&server, flow, 2, |at| format!("after {at}"));
    let measured = realised(&server, &path, 2);
    assert_eq!(amounts(&measured), [2 * CALL, 0, 2 * CALL]);
    server.start_again();
    run_times(&server, flow, 1, |_| "again".into());
    assert_eq!(amounts(&realised(&server, &path, 3)), [3 * CALL, 0, 3 * CALL]);
}

/// Returns the average duration of these runs in milliseconds.
fn average_ms(runs: &[Value]) -> i64 {
    let at = |run: &Value, key: &str| -> i64 {
        let at: jiff::Timestamp = run[key].as_str().unwrap().parse().unwrap();
        at.as_millisecond()
    };
    let all = runs.iter().map(|run| at(run, "finishedAt") - at(run, "startedAt"));
    all.sum::<i64>() / runs.len() as i64
}

#[test]
fn time_saved_by_parallel_calls_is_measured() {
    let mut server = Fixture::answering(10, 10);
    let flow = server.save(&two_and_output(
        "A {{ input.what }}",
        "B {{ input.what }}",
        "{{ nodes.first.output }} {{ nodes.second.output }}",
    ));
    run_times(&server, flow, 10, |at| at.to_string());
    server.alter(flow, "UPDATE runs SET finished_ms = finished_ms + 300 WHERE flow_id = ?1");
    server.alter(
        flow,
        "UPDATE run_nodes SET finished_ms = started_ms + 150 WHERE run_id IN
            (SELECT id FROM runs WHERE flow_id = ?1)",
    );
    let path = apply(&server, &suggestion(&server, "parallel"));
    run_times(&server, flow, 2, |at| format!("after {at}"));
    let measured = realised(&server, &path, 2);
    let runs = server.get(&format!("/api/runs?flow_id={flow}&limit=50")).json();
    let mut runs = runs["items"].as_array().unwrap().clone();
    runs.reverse();
    let (before, after) = runs.split_at(10);
    assert_eq!(after.len(), 2);
    assert_eq!(measured["runMsBefore"], average_ms(before), "{measured}");
    assert_eq!(measured["savedMs"], average_ms(before) - average_ms(after));
    assert_eq!(amounts(&measured), [0, 0, 0]);
}
