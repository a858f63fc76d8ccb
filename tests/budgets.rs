//! Budgets: refused and allowed calls, warnings, and no overrun.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use flowledger::providers::Kind;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Response, TestServer, add_provider, agent, chain, eventually};
use crate::upstream::{Upstream, completion, json_answer};

/// A server whose `openai` answers everything with 1,000 tokens for 100: gpt-4o-mini costs 100 ×
/// 150 + 1,000 × 600 nano-dollars for that, 0.000615 USD.
fn server(upstream: &Upstream) -> TestServer {
    TestServer::start_with(|config| {
        add_provider(config, "openai", Kind::OpenAi, upstream.url());
    })
}

fn answering() -> Upstream {
    Upstream::saying(completion("done", 100, 1_000))
}

const COST: &str = "0.000615";

/// A call that reserves its prompt of one byte and 1,000 tokens.
fn call(id: &str) -> Value {
    let mut node = agent(id, "openai", "gpt-4o-mini", "x");
    node["data"]["stream"] = json!(false);
    node["data"]["maxTokens"] = json!(1_000);
    node
}

fn put(server: &TestServer, budgets: Value) -> Response {
    let body = json!({"budgets": budgets}).to_string();
    server.request("PUT", "/api/budget", &[], body.as_bytes())
}

fn set(server: &TestServer, budgets: Value) {
    let answer = put(server, budgets);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn state(server: &TestServer) -> Value {
    server.get("/api/budget").json()["budgets"][0]["state"].clone()
}

fn rows(server: &TestServer) -> Vec<Value> {
    let rows = server.get("/api/ledger").json();
    rows["items"].as_array().unwrap().clone()
}

#[test]
fn a_hard_budget_refuses_a_call_and_records_a_row() {
    let upstream = answering();
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    // Two calls fit at their actual cost; a third does not.
    set(&server, json!([{"name": "daily", "per": "day", "limitUsd": "0.0013"}]));
    for _ in 0..2 {
        assert_eq!(server.run(flow, &json!({}))["status"], "COMPLETED");
    }
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "FAILED", "{run:#}");
    let error = run["error"].as_str().unwrap();
    assert!(
        error.contains("budget `daily` refused the call: limit 0.0013 USD per day, spent 0.00123 USD, held 0 USD, this call up to"),
        "{error}"
    );
    assert_eq!(run["cost"], json!(0));
    assert_eq!(upstream.count(), 2);
    let rows = rows(&server);
    assert_eq!(rows.len(), 3);
    assert_eq!((&rows[0]["status"], &rows[0]["total_cost_usd"]), (&json!("FAILED"), &json!(0)));
    assert_eq!(rows[0]["error_message"], error);
    assert_eq!((&rows[0]["refused"], rows[1].get("refused")), (&json!("budget"), None));
    let csv = server.get("/api/ledger.csv").text();
    let mut csv = csv::Reader::from_reader(csv.as_bytes());
    let at = csv.headers().unwrap().iter().position(|name| name == "refused").unwrap();
    let refused: Vec<String> = csv.records().map(|row| row.unwrap()[at].to_owned()).collect();
    assert_eq!(refused, ["budget", "", ""]);
    assert_eq!(rows[1]["total_cost_usd"].to_string(), COST);
    let state = state(&server);
    assert_eq!(state["used"], "0.00123");
    assert_eq!((&state["spent"], &state["held"]), (&json!("0.00123"), &json!("0")));
    assert_eq!(state["left"], "0.00007");
    assert_eq!(state["percent"], 94);
}

#[test]
fn parallel_calls_cannot_exceed_a_budget() {
    let upstream = answering();
    let server = server(&upstream);
    let nodes: Vec<Value> = (0..16)
        .map(|at| {
            let mut node = call(&format!("n{at}"));
            node["data"]["onError"] = json!("continue");
            node
        })
        .collect();
    let flow = server.save(&json!({"name": "Wide", "data": {"nodes": nodes}}));
    set(
        &server,
        json!([{"name": "tight", "per": "month", "limitUsd": "0.002", "timezone": "Europe/Berlin"}]),
    );
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED");
    let used = state(&server)["used"].as_str().unwrap().to_owned();
    let used: f64 = used.parse().unwrap();
    assert!(used > 0.0 && used <= 0.002, "{used}");
    assert_eq!(upstream.count(), 3);
    let rows = rows(&server);
    assert_eq!(rows.len(), 16);
    let refused = rows.iter().filter(|row| row["status"] == "FAILED");
    assert_eq!(refused.count(), 13);
}

#[test]
fn a_budget_keeps_its_usage_across_a_restart() {
    let upstream = answering();
    let mut server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    set(&server, json!([{"name": "tokens", "per": "day", "limitTokens": 2500}]));
    assert_eq!(server.run(flow, &json!({}))["status"], "COMPLETED");
    server.start_again();
    assert_eq!(state(&server)["used"], 1_100);
    // 1,033 are reserved for the next call, which fits. Then nothing fits.
    assert_eq!(server.run(flow, &json!({}))["status"], "COMPLETED");
    let run = server.run(flow, &json!({}));
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("limit 2500 tokens per day, spent 2200 tokens, held 0 tokens, this call up to 1033 tokens"), "{error}");
}

#[test]
fn a_call_of_unknown_outcome_counts_its_reservation() {
    let (asked, questions) = crossbeam_channel::unbounded();
    let upstream = Upstream::start(move |_, _| {
        let _ = asked.send(());
        std::thread::park_timeout(DEADLINE);
    });
    let mut server = server(&upstream);
    let mut node = call("only");
    node["data"]["retry"] = json!({"afterRestart": false});
    let flow = server.save(&chain("One", &[node]));
    set(&server, json!([{"name": "tokens", "per": "day", "limitTokens": 10_000}]));
    let run_id = server.execute(flow, &json!({}));
    questions.recv_timeout(DEADLINE).unwrap();
    let amounts =
        |state: Value| (state["used"].clone(), state["spent"].clone(), state["held"].clone());
    let held = (json!(1_033), json!(0), json!(1_033));
    assert_eq!(amounts(state(&server)), held);
    server.start_again();
    eventually("it is over", || {
        server.get(&format!("/api/runs/{run_id}")).json()["status"] == "FAILED"
    });
    assert_eq!(rows(&server)[0]["status"], "UNKNOWN");
    assert_eq!(amounts(state(&server)), held);
}

#[test]
fn a_call_refused_by_the_provider_frees_its_reservation() {
    let upstream = Upstream::saying(json_answer("400 Bad Request", "{}"));
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    set(
        &server,
        json!([{"name": "a", "per": "day", "limitTokens": 1500}, {"name": "b", "per": "day", "limitUsd": "0.001"}]),
    );
    for _ in 0..3 {
        assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
    }
    assert_eq!(upstream.count(), 3);
    let budgets = server.get("/api/budget").json()["budgets"].clone();
    assert_eq!(budgets[0]["state"]["used"], 0);
    assert_eq!(budgets[1]["state"]["used"], "0");
}

#[test]
fn only_a_budget_refusal_marks_a_row_as_refused() {
    let words = r#"{"error":{"message":"budget `daily` refused the call: limit 1 USD per day"}}"#;
    let upstream = Upstream::saying(json_answer("402 Payment Required", words));
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
    set(&server, json!([{"name": "daily", "per": "day", "limitUsd": "0"}]));
    let mut client = server.client();
    assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
    // The gateway refuses its clients in the same way, and viewers get the event.
    let asked = json!({"model": "gpt-4o-mini", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(server.post("/v1/chat/completions", &asked).status, 402);
    let reported = client.until(|message| {
        message["type"] == "LEDGER_UPDATE" && message["payload"]["entry"]["flow_id"].is_null()
    });
    assert_eq!(reported.last().unwrap()["payload"]["entry"]["refused"], "budget");
    let refused: Vec<Value> = rows(&server).iter().map(|row| row["refused"].clone()).collect();
    assert_eq!(refused, [json!("budget"), json!("budget"), Value::Null]);
}

#[test]
fn a_budget_can_limit_a_flow_a_model_or_each_run() {
    let upstream = answering();
    let server = server(&upstream);
    let one = server.save(&chain("One", &[call("only")]));
    let other = server.save(&chain("Other", &[call("only")]));
    let three = server.save(&chain("Three", &[call("a"), call("b"), call("c")]));
    let status = |flow: i64| server.run(flow, &json!({}))["status"].clone();
    set(&server, json!([{"name": "of one", "per": "day", "flowId": one, "limitUsd": 0}]));
    assert_eq!((status(one), status(other)), (json!("FAILED"), json!("COMPLETED")));
    set(
        &server,
        json!([{"name": "minis", "per": "day", "model": "openai/gpt-4o-m*", "limitUsd": 0}]),
    );
    assert_eq!(status(other), "FAILED");
    set(
        &server,
        json!([{"name": "others", "per": "day", "model": "openai/gpt-5*", "limitUsd": 0}]),
    );
    assert_eq!(status(other), "COMPLETED");
    set(&server, json!([{"name": "each", "per": "run", "limitUsd": "0.0013"}]));
    for _ in 0..2 {
        let run = server.run(three, &json!({}));
        assert_eq!(run["status"], "FAILED");
        assert_eq!(run["errorNodeId"], "c", "{run:#}");
    }
    assert_eq!(status(one), "COMPLETED");
}

#[test]
fn a_soft_budget_notifies_once_per_share_and_blocks_nothing() {
    let upstream = answering();
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    set(&server, json!([{"name": "soft", "per": "day", "limitUsd": "0.00123", "hard": false}]));
    let mut client = server.client();
    let mut warnings = Vec::new();
    for _ in 0..4 {
        server.execute(flow, &json!({}));
        let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
        warnings.extend(seen.into_iter().filter(|seen| seen["type"] == "BUDGET_WARNING"));
    }
    let [warning] = warnings.as_slice() else {
        panic!("{warnings:#?}");
    };
    assert!(warning["seq"].is_u64());
    let payload = &warning["payload"];
    assert_eq!(payload["flowId"], flow);
    assert_eq!(
        (&payload["budget"], &payload["percent"], &payload["hard"]),
        (&json!("soft"), &json!(100), &json!(false))
    );
    assert_eq!(
        (&payload["used"], &payload["limit"]),
        (&json!("0.00123 USD"), &json!("0.00123 USD"))
    );
    assert_eq!((&payload["spent"], &payload["held"]), (&json!("0.00123 USD"), &json!("0 USD")));
}

#[test]
fn a_hard_budget_refuses_calls_without_a_known_price() {
    let upstream = Upstream::saying(completion("done", 1, 1));
    let server = TestServer::start_with(|config| {
        add_provider(config, "local", Kind::OpenAi, upstream.url());
    });
    let mut node = agent("only", "local", "home-grown", "x");
    node["data"]["stream"] = json!(false);
    let flow = server.save(&chain("One", &[node]));
    let free = server.save(&chain("Free", &[agent("e", "echo", "echo-1", "x")]));
    let mut budget = json!({"name": "b", "per": "day", "limitUsd": "0"});
    set(&server, json!([budget]));
    let run = server.run(flow, &json!({}));
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("unknown price of local/home-grown"), "{error}");
    assert_eq!(upstream.count(), 0);
    // Calls that are certainly free are allowed with an exhausted budget.
    assert_eq!(server.run(free, &json!({}))["status"], "COMPLETED");
    budget["allowUnpriced"] = json!(true);
    set(&server, json!([budget]));
    assert_eq!(server.run(flow, &json!({}))["status"], "COMPLETED");
}

#[test]
fn a_budget_refusal_triggers_the_fallback_model() {
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start(move |body, stream| {
        count.fetch_add(1, Ordering::SeqCst);
        assert!(body.contains("gpt-4o-mini"), "{body}");
        drop(stream.write_all(completion("done", 1, 1).as_bytes()));
    });
    let server = server(&upstream);
    let mut node = call("only");
    node["data"]["model"] = json!("gpt-4o");
    node["data"]["fallback"] = json!([{"provider": "openai", "model": "gpt-4o-mini"}]);
    let flow = server.save(&chain("One", &[node]));
    set(&server, json!([{"name": "large", "per": "day", "model": "openai/gpt-4o", "limitUsd": 0}]));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    assert_eq!(rows(&server).len(), 2);
}

#[test]
fn invalid_budgets_change_nothing_and_output_is_valid_input() {
    let server = TestServer::start();
    let budget = json!({"name": "kept", "per": "day", "limitUsd": "12.5", "timezone": "Europe/Berlin", "hard": true, "allowUnpriced": false});
    set(&server, json!([budget]));
    let refused = put(&server, json!([{"name": "", "per": "week", "limitUsd": "much"}]));
    assert_eq!(refused.status, 422);
    let reported = server.get("/api/budget").json();
    assert_eq!(reported["budgets"][0]["limitUsd"], "12.5");
    let again = server.request("PUT", "/api/budget", &[], reported.to_string().as_bytes());
    assert_eq!((again.status, again.json()), (200, reported));
    set(&server, json!([]));
    assert_eq!(server.get("/api/budget").json()["budgets"], json!([]));
}

#[test]
fn concurrent_budget_changes_are_not_overwritten() {
    let server = TestServer::start();
    let budget = |name: &str| json!({"name": name, "per": "day", "limitUsd": "1"});
    let put = |body: Value, headers: &[(&str, &str)]| {
        server.request("PUT", "/api/budget", headers, body.to_string().as_bytes())
    };
    let reported = server.get("/api/budget");
    let version = reported.json()["version"].clone();
    let tag = format!("\"{}\"", version.as_str().unwrap());
    assert_eq!(reported.header("etag"), Some(&*tag));
    let first = put(json!({"budgets": [budget("first")], "version": version}), &[]);
    assert_eq!(first.status, 200, "{}", first.text());

    let late = json!({"budgets": [budget("late")], "version": version});
    let refused = put(late, &[]);
    assert_eq!((refused.status, &*refused.error_code()), (409, "conflict"));
    assert!(refused.text().contains("reload them"));
    let late = json!({"budgets": [budget("late")]});
    let refused = put(late.clone(), &[("if-match", &tag)]);
    assert_eq!(refused.status, 412, "{}", refused.text());
    let refused = put(json!({"budgets": [], "version": 7}), &[]);
    assert_eq!(refused.json()["error"]["details"][0]["field"], "version");
    let kept = server.get("/api/budget").json();
    assert_eq!(kept["budgets"][0]["name"], "first");

    // A key's budget changes the version; usage does not.
    let made = json!({"name": "k", "budget": {"per": "day", "limitUsd": "1"}});
    assert_eq!(server.post("/api/keys", &made).status, 201);
    let refused = put(kept, &[]);
    assert_eq!(refused.status, 409);
    let present = server.get("/api/budget");
    let tag = present.header("etag").unwrap();
    assert_eq!(put(late.clone(), &[("if-match", tag)]).status, 200);
    // A request without a version replaces the current budgets.
    for headers in [&[][..], &[("if-match", "*")]] {
        assert_eq!(put(late.clone(), headers).status, 200);
    }
}

#[test]
fn concurrent_saves_lose_no_budget() {
    const EACH: usize = 15;
    let server = TestServer::start();
    let add = |name: &str| loop {
        let mut reported = server.get("/api/budget").json();
        let budget = json!({"name": name, "per": "day", "limitUsd": "1"});
        reported["budgets"].as_array_mut().unwrap().push(budget);
        let put = server.request("PUT", "/api/budget", &[], reported.to_string().as_bytes());
        match put.status {
            200 => break,
            409 => {}
            _ => panic!("{}", put.text()),
        }
    };
    std::thread::scope(|scope| {
        for saver in ["a", "b"] {
            let add = &add;
            scope.spawn(move || (0..EACH).for_each(|at| add(&format!("{saver}{at}"))));
        }
    });
    let reported = server.get("/api/budget").json();
    let names: std::collections::HashSet<String> = reported["budgets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|budget| budget["name"].to_string())
        .collect();
    assert_eq!(names.len(), 2 * EACH);
}

#[test]
fn an_estimate_has_expected_and_worst_costs() {
    let upstream = answering();
    let server = server(&upstream);
    let mut second = call("second");
    second["data"]["prompt"] = json!("{{ nodes.first.output }} and {{ input.topic }}");
    second["data"]["retry"] = json!({"attempts": 2});
    second["data"]["fallback"] = json!([{"provider": "openai", "model": "gpt-4o"}]);
    let flow = server.save(&chain("Two", &[call("first"), second]));
    let path = format!("/api/flows/{flow}/estimate");
    let body = json!({"input": {"topic": "ants"}});
    let before = server.post(&path, &body).json();
    assert_eq!(before["runs"], 0);
    assert_eq!(before["expected"]["calls"], 2);
    // The first node once; the second twice at each of its targets.
    assert_eq!(before["worst"]["calls"], 5, "{before:#}");
    // Its answer of 1,000 tokens is in the prompt of the second, four times.
    let second = &before["nodes"][1];
    assert!(second["worst"]["inputTokens"].as_u64().unwrap() >= 4_000);
    assert_eq!(upstream.count(), 0);
    let run = server.run(flow, &json!({"topic": "ants"}));
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&run["cost"]) <= number(&before["worst"]["cost"]));
    let after = server.post(&path, &body).json();
    assert_eq!((&after["runs"], &after["expected"]["cost"]), (&json!(1), &run["cost"]));
    assert_eq!(after["worst"], before["worst"]);
    let refused = server.post(&path, &json!({"input": 7}));
    assert_eq!(refused.status, 422);
}

#[test]
fn an_estimate_lists_its_unknowns() {
    let server = TestServer::start_with(|config| {
        add_provider(config, "local", Kind::OpenAi, "http://127.0.0.1:9/v1");
    });
    let mut map = agent("each", "local", "home-grown", "{{ item }}");
    map["type"] = json!("map");
    map["data"]["items"] = json!("nodes.list.output");
    let list = agent("list", "echo", "echo-1", "[1, 2]");
    let flow = server.save(&chain("Map", &[list, map]));
    let estimate = server.post(&format!("/api/flows/{flow}/estimate"), &json!({})).json();
    // One unknown price makes the total unknown.
    assert_eq!(estimate["nodes"][1]["expected"]["cost"], Value::Null);
    assert_eq!(estimate["worst"]["cost"], Value::Null);
    assert_eq!(estimate["nodes"][1]["worst"]["calls"], 1_000);
    let notes = estimate["notes"].to_string();
    assert!(notes.contains("the number of items is unknown"), "{notes}");
}

#[test]
fn run_budget_shares_are_notified_once_with_parallel_calls() {
    let upstream = answering();
    let server = server(&upstream);
    let nodes: Vec<Value> = (0..16).map(|at| call(&format!("n{at}"))).collect();
    let flow = server.save(&json!({"name": "Wide", "data": {"nodes": nodes}}));
    // 16 calls cost 0.00984; the reservations are slightly higher.
    for (limit, share) in [("0.0096", 100), ("0.011", 80), ("0.02", 0)] {
        set(&server, json!([{"name": "each", "per": "run", "limitUsd": limit, "hard": false}]));
        let mut client = server.client();
        server.execute(flow, &json!({}));
        let seen = client.until(|message| message["payload"]["status"] == "FINISHED");
        let reported = seen
            .iter()
            .filter(|message| message["type"] == "BUDGET_WARNING")
            .map(|message| message["payload"]["percent"].as_u64().unwrap());
        let reported: Vec<u64> = reported.collect();
        // The number of concurrent calls decides whether 80 is reached before 100.
        assert_eq!(reported.last().copied().unwrap_or(0), share, "{limit}");
        assert!(reported.is_sorted_by(|one, next| one < next), "{reported:?}");
    }
}

#[test]
fn a_run_budget_does_not_limit_client_calls() {
    let upstream = answering();
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    set(&server, json!([{"name": "each", "per": "run", "limitUsd": "0"}]));
    let asked = json!({"model": "gpt-4o-mini", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
    let answer = server.post("/v1/chat/completions", &asked);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
}

#[test]
fn no_spelling_of_a_model_evades_a_hard_budget() {
    let upstream = answering();
    let server = TestServer::start_with(|config| {
        for name in ["openai", "google", "openrouter", "anthropic"] {
            add_provider(config, name, Kind::OpenAi, upstream.url());
        }
    });
    let budget =
        |model: &str| json!({"name": model, "per": "day", "limitUsd": "0", "model": model});
    set(
        &server,
        json!([
            budget("openai/gpt-4o*"),
            budget("google/gemini-2.5-flash"),
            budget("google/models/gemini-2.5-pro"),
            budget("openrouter/openai/gpt-4o"),
            budget("openrouter/openai/gpt-4.1:nitro"),
            budget("openai/gpt-4.1-mini-20250414*"),
            budget("anthropic/claude-opus-4-6*"),
            budget("google/publishers/anthropic/models/claude-opus-4-6"),
            budget("google/projects/p/locations/l/publishers/google/models/gemini-3.5-flash"),
        ]),
    );
    let status = |model: &str| {
        let asked = json!({"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
        server.post("/v1/chat/completions", &asked).status
    };
    for model in [
        "openai/gpt-4o",
        "openai/GPT-4o",
        "openai/Gpt-4O-mini",
        "google/gemini-2.5-flash",
        "google/google/gemini-2.5-flash",
        "google/models/gemini-2.5-flash",
        "google/publishers/google/models/Gemini-2.5-Flash",
        "google/gemini-2.5-pro",
        "openrouter/openai/gpt-4o:nitro",
        "openrouter/OpenAI/gpt-4o:Floor",
        "openrouter/openai/gpt-4.1:floor",
        "openrouter/openai/gpt-4.1",
        "openai/gpt-4.1-mini-2025-04-14",
        "anthropic/claude-opus-4.6",
        "anthropic/claude-4.6-opus",
        "google/claude-opus-4-6",
        "google/anthropic/claude-opus-4.6",
        "google/google/gemini-3.5-flash",
    ] {
        assert_eq!(status(model), 402, "{model}");
    }
    assert_eq!(upstream.count(), 0);
    // Other models, and the same model without a budget.
    for model in [
        "openai/gpt-4.1",
        "openrouter/openai/gpt-4o:extended",
        "openrouter/openai/gpt-4.1:free",
        "openrouter/openai/gpt-4.1:batch",
        "anthropic/claude-sonnet-4.6",
        "google/claude-opus-4-5",
    ] {
        assert_eq!(status(model), 200, "{model}");
    }
}

#[test]
fn a_model_with_its_publisher_has_a_cost_under_a_hard_budget() {
    let upstream = answering();
    let server = TestServer::start_with(|config| {
        add_provider(config, "google", Kind::OpenAi, upstream.url());
    });
    set(&server, json!([{"name": "all", "per": "day", "limitUsd": "1"}]));
    for model in ["google/gemini-2.5-flash", "models/gemini-2.5-flash"] {
        let asked = json!({"model": format!("google/{model}"), "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
        assert_eq!(server.post("/v1/chat/completions", &asked).status, 200, "{model}");
    }
    eventually("both calls have a cost", || {
        let costs = rows(&server).into_iter().map(|row| row["total_cost_usd"].as_f64());
        costs.flatten().filter(|cost| *cost > 0.0).count() == 2
    });
}

#[test]
fn unmatchable_budgets_are_refused_unless_their_flow_is_gone() {
    let upstream = answering();
    let server = server(&upstream);
    let flow = server.save(&chain("One", &[call("only")]));
    let of = |name: &str, field: &str, value: Value| json!({"name": name, "per": "day", "limitUsd": "1", field: value});
    let refused = put(
        &server,
        json!([
            of("inside", "model", json!("openai/*mini")),
            of("nobody", "model", json!("opnai/*")),
            of("gone", "flowId", json!(flow + 1)),
            of("later", "key", json!("no key yet")),
            of("right", "model", json!("openai/gpt-4o*")),
        ]),
    );
    assert_eq!(refused.status, 422);
    let details = refused.json()["error"]["details"].clone();
    let fields: Vec<&str> =
        details.as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["budgets[0].model", "budgets[1].model", "budgets[2].flowId"]);
    assert!(details[1].to_string().contains("unknown provider `opnai`"), "{details}");
    let key = json!({"name": "k", "budget": {"per": "day", "limitUsd": "1", "model": "opnai/*", "flowId": flow + 1}});
    let refused = server.post("/api/keys", &key);
    assert_eq!(refused.status, 422);
    let details = &refused.json()["error"]["details"];
    assert_eq!(details[0]["field"], "budget.model");
    assert_eq!(details[1]["field"], "budget.flowId");

    set(&server, json!([of("its", "flowId", json!(flow))]));
    let deleted = server.request("DELETE", &format!("/api/flows/{flow}"), &[], b"");
    assert_eq!(deleted.status, 204, "{}", deleted.text());
    let more = of("more", "key", json!("no key yet"));
    set(&server, json!([of("its", "flowId", json!(flow)), more]));
}

#[test]
fn the_worst_cost_counts_outputs_in_loops_and_map_items() {
    let upstream = answering();
    let server = server(&upstream);
    let worst = |nodes: &[Value]| {
        let flow = server.save(&chain("Flow", nodes));
        let estimate = server.post(&format!("/api/flows/{flow}/estimate"), &json!({}));
        let worst = estimate.json()["nodes"][1]["worst"].clone();
        worst["inputTokens"].as_u64().unwrap()
    };
    let mut looped = call("looped");
    looped["data"]["prompt"] = json!("{% for i in range(50) %}{{ nodes.a.output }}{% endfor %}");
    assert_eq!(worst(&[call("a"), looped]), 50_000 + 32);
    // Any item may contain any part of the list, but the whole list is counted once.
    let mut map = call("each");
    map["type"] = json!("map");
    map["data"]["items"] = json!("nodes.a.output");
    map["data"]["prompt"] = json!("About {{ item.name }}");
    let input = 2;
    assert_eq!(worst(&[call("a"), map]), 1_000 * (6 + 32) + 1_000 + input);
    // An unknown length counts as the longest allowed prompt.
    let mut read = call("read");
    read["data"]["prompt"] = json!("{{ (nodes.a.output | fromjson).name }}");
    assert_eq!(worst(&[call("a"), read]), (1 << 20) + 32);
}

#[test]
fn the_expected_cost_uses_only_successful_runs() {
    let upstream = answering();
    let server = server(&upstream);
    let mut node = call("only");
    node["data"]["fallback"] = json!([{"provider": "openai", "model": "gpt-4o-mini"}]);
    node["data"]["model"] = json!("gpt-4o");
    let flow = server.save(&chain("One", &[node]));
    let none = |model: &str| json!({"name": model, "per": "day", "model": model, "limitUsd": 0});
    // One run is refused entirely; in the other the second model answers.
    set(&server, json!([none("openai/gpt*")]));
    assert_eq!(server.run(flow, &json!({}))["status"], "FAILED");
    set(&server, json!([none("openai/gpt-4o")]));
    let run = server.run(flow, &json!({}));
    assert_eq!(run["status"], "COMPLETED", "{run:#}");
    let path = format!("/api/flows/{flow}/estimate");
    let estimate = server.post(&path, &json!({})).json();
    assert_eq!(estimate["runs"], 1, "{estimate:#}");
    assert_eq!(estimate["expected"]["calls"], 1);
    assert_eq!(estimate["expected"]["cost"], run["cost"]);
}
